//! What the shield should do, written a second time for the host.
//!
//! It shares no code with the kernel program but the list of verdicts and the limiter's arithmetic. It reads a frame as a
//! slice and follows the rules as the documents state them, so that a fault of the program shows as a difference.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use tunica_common::{
    gcra::{Limit, Pace},
    keys::SourceKey,
    policy::{COOKIES_OFF, MAX_EXTENSION_HEADERS, MAX_VLAN_TAGS},
    verdict::{Action, Class, Verdict},
};
pub use tunica_core::limits::{Mode, OnStale};
use tunica_core::{
    id::{PacketSource, Prefix},
    limits::{IcmpLimits, Port, PortSettings, Transport},
};

use crate::frame::{ACK, FIN, ICMP, ICMPV6, IPV4, IPV6, PSH, RST, SERVICE_VLAN, SYN, TCP, UDP, URG, VLAN};

/// A ban as the program sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ban {
    /// Whether it ended already.
    pub is_expired: bool,
    /// Whether it lapses without a heartbeat.
    pub is_dynamic: bool,
}

/// Everything besides the packet that the outcome depends on.
#[derive(Clone, Debug)]
pub struct World {
    /// The mode in force.
    pub mode: Mode,
    /// What to do while the heartbeat is stale.
    pub on_stale: OnStale,
    /// Whether it is.
    pub is_stale: bool,
    /// Sanity rules in force.
    pub sanity: BTreeSet<Verdict>,
    /// Uninspected classes that are dropped.
    pub drop_uninspected: BTreeSet<Verdict>,
    /// Bans.
    pub bans: BTreeMap<PacketSource, Ban>,
    /// The allow list.
    pub allow: Vec<Prefix>,
    /// The host's own addresses.
    pub own: BTreeSet<IpAddr>,
    /// The per-source SYN limit.
    pub syn: Option<Limit>,
    /// How many exceeding IPv6 networks make the next larger one share a limit; 0: never.
    pub escalate: u32,
    /// Banned ranges.
    pub banned_nets: Vec<(Prefix, Ban)>,
    /// Whether only open ports are open.
    pub lockdown: bool,
    /// What is said of ports.
    pub ports: BTreeMap<Port, PortSettings>,
    /// First port at which answers over UDP come back.
    pub ephemeral_low: u16,
    /// The SYN budget of each port.
    pub budget: Option<Pace>,
    /// TCP ports that are over their budget already.
    pub armed: BTreeSet<u16>,
    /// TCP ports of every own address at which somebody listens.
    pub listening: BTreeSet<u16>,
    /// One of the `COOKIES_…` numbers.
    pub cookies: u32,
    /// SYNs that still reach the listener of an armed port.
    pub trickle: Pace,
    /// The limit of segments without a socket; every segment is judged.
    pub segments: Option<Limit>,
    /// Segments without a socket, all sources together.
    pub segments_host: Option<Pace>,
    /// Whether the host translates addresses.
    pub translates: bool,
    /// ICMP.
    pub icmp: Option<IcmpLimits>,
}

/// Something that is counted, and by what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// New connections of a source.
    Syn(PacketSource),
    /// SYNs to a port.
    Budget(u16),
    /// SYNs that reach the listener of an armed port.
    Trickle(u16),
    /// New connections to a port.
    NewConnections(u16),
    /// UDP packets to a port.
    Udp(u16),
    /// Segments without a socket, of a source.
    Segments(PacketSource),
    /// Segments without a socket, of all sources.
    SegmentsHost,
    /// Echo requests of a source.
    Echo(PacketSource),
    /// Echo requests to the host.
    EchoHost,
    /// Other ICMP messages to the host.
    IcmpCeiling,
}

impl World {
    /// Every rule on, every table empty, a SYN limit that nothing reaches by accident.
    pub fn enforcing() -> Self {
        Self {
            mode: Mode::Enforce,
            on_stale: OnStale::KeepLimits,
            is_stale: false,
            sanity: Verdict::ALL.iter().copied().filter(|verdict| verdict.class() == Class::Sanity).collect(),
            drop_uninspected: BTreeSet::new(),
            bans: BTreeMap::new(),
            allow: Vec::new(),
            own: BTreeSet::new(),
            syn: Limit::new(1, 1_000),
            escalate: 0,
            banned_nets: Vec::new(),
            lockdown: false,
            ports: BTreeMap::new(),
            ephemeral_low: 32_768,
            budget: None,
            armed: BTreeSet::new(),
            listening: BTreeSet::new(),
            cookies: COOKIES_OFF,
            trickle: [u64::MAX / 4, 0],
            segments: None,
            segments_host: None,
            translates: false,
            icmp: None,
        }
    }
}

/// What the headers of a frame say.
#[derive(Clone, Debug, Default)]
struct Headers {
    addresses: Option<(IpAddr, IpAddr)>,
    faults: BTreeSet<Verdict>,
    kind: Option<Verdict>,
    flags: u8,
    /// Protocol and destination port, where both were read.
    port: Option<(Transport, u16)>,
    /// Type of an ICMP message.
    icmp: Option<Icmp>,
    /// Whether cookies can be made for it: no tags, options, extension headers or fragments.
    is_plain: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Icmp {
    Echo,
    Other,
}

/// The source that the frame counts for as a SYN, if it is one that the limit judges.
pub fn syn_source(frame: &[u8]) -> Option<PacketSource> {
    let headers = read(frame);
    let (source, _) = headers.addresses?;
    (headers.flags & (SYN | ACK) == SYN).then(|| counted(source))
}

/// What the shield does with `frame`, where the host has no sockets but listeners.
///
/// `conforms` tells whether one more of something is inside its limit; it is asked only when that decides.
pub fn judge(world: &World, frame: &[u8], mut conforms: impl FnMut(Counted) -> bool) -> (Verdict, Action) {
    if world.mode == Mode::Off {
        return (Verdict::Unarmed, Action::Pass);
    }
    let headers = read(frame);
    let kind = headers.kind.unwrap_or(Verdict::Pass);
    let decision = decide(world, frame, &headers, kind, &mut conforms);
    let enforces = world.mode == Mode::Enforce;
    match decision {
        Decision::Pass(verdict) => (verdict, Action::Pass),
        Decision::Answer if enforces => (Verdict::SynCookie, Action::Answer),
        Decision::Answer => (Verdict::SynCookie, Action::WouldAnswer),
        Decision::Refuse(verdict) => {
            let is_stateless = matches!(verdict.class(), Class::Sanity | Class::Uninspected);
            let is_waived = match world.on_stale {
                OnStale::KeepLimits => false,
                OnStale::SanityOnly => !is_stateless,
                OnStale::Pass => true,
            };
            if world.is_stale && is_waived {
                return (kind, Action::Pass);
            }
            let protects =
                matches!(verdict.class(), Class::Ban | Class::Limit) || verdict == Verdict::IcmpRate;
            if protects
                && let Some((source, _)) = headers.addresses
                && world.allow.iter().any(|prefix| prefix.contains(source))
            {
                return (Verdict::Allowed, Action::Pass);
            }
            (verdict, if enforces { Action::Drop } else { Action::WouldDrop })
        }
    }
}

enum Decision {
    Pass(Verdict),
    Refuse(Verdict),
    Answer,
}

fn decide(
    world: &World,
    frame: &[u8],
    headers: &Headers,
    kind: Verdict,
    conforms: &mut impl FnMut(Counted) -> bool,
) -> Decision {
    if matches!(kind, Verdict::Arp | Verdict::NeighbourDiscovery | Verdict::Dhcp) {
        return Decision::Pass(kind);
    }
    if kind == Verdict::PathMtu {
        let is_under = world.icmp.is_none() || conforms(Counted::IcmpCeiling);
        return if is_under { Decision::Pass(kind) } else { Decision::Refuse(Verdict::IcmpCeiling) };
    }
    let mut faults = headers.faults.clone();
    if let Some((source, destination)) = headers.addresses {
        if source == destination {
            faults.insert(Verdict::Land);
        }
        if world.own.contains(&source) {
            faults.insert(Verdict::OwnSource);
        }
    }
    if let Some(fault) = faults.intersection(&world.sanity).next() {
        return Decision::Refuse(*fault);
    }
    if let Some((address, destination)) = headers.addresses {
        let source = counted(address);
        let holds = |ban: &Ban| !ban.is_expired && (!ban.is_dynamic || !world.is_stale);
        if world.bans.get(&source).is_some_and(holds) {
            return Decision::Refuse(Verdict::Banned);
        }
        let covering = world.banned_nets.iter().filter(|(prefix, _)| prefix.contains(address));
        if covering.max_by_key(|(prefix, _)| prefix.length()).is_some_and(|(_, ban)| holds(ban)) {
            return Decision::Refuse(Verdict::BannedNet);
        }
        let is_ours = world.own.contains(&destination);
        match (headers.port, headers.icmp) {
            (Some((Transport::Tcp, port)), _) if headers.flags & (SYN | ACK) == SYN => {
                return syn(world, frame, headers, source, is_ours.then_some(port), conforms);
            }
            (Some((Transport::Tcp, _)), _) => {
                let is_judged = world.segments.is_some() && is_ours && !world.translates;
                if is_judged && !(conforms(Counted::Segments(source)) && conforms(Counted::SegmentsHost)) {
                    return Decision::Refuse(Verdict::NoSocket);
                }
                return Decision::Pass(kind);
            }
            (Some((Transport::Udp, port)), _) => {
                let rule = rule(world, Transport::Udp, port);
                let is_open = !world.lockdown || rule.is_some_and(|rule| rule.is_open);
                if is_ours && !is_open && !(world.translates && port >= world.ephemeral_low) {
                    return Decision::Refuse(Verdict::PortClosed);
                }
                let is_limited = is_ours && rule.is_some_and(|rule| rule.pace.is_some());
                if is_limited && !conforms(Counted::Udp(port)) {
                    return Decision::Refuse(Verdict::UdpRate);
                }
                return Decision::Pass(kind);
            }
            (None, Some(Icmp::Echo)) if world.icmp.is_some() => {
                if !conforms(Counted::Echo(source)) {
                    return Decision::Refuse(Verdict::IcmpRate);
                }
                let is_under = conforms(Counted::EchoHost);
                return if is_under { Decision::Pass(kind) } else { Decision::Refuse(Verdict::IcmpHostRate) };
            }
            (None, Some(Icmp::Other)) if world.icmp.is_some() => {
                let is_under = conforms(Counted::IcmpCeiling);
                return if is_under { Decision::Pass(kind) } else { Decision::Refuse(Verdict::IcmpCeiling) };
            }
            (None, Some(_)) => return Decision::Pass(kind),
            (None, None) => {}
        }
        if world.lockdown && is_ours && kind == Verdict::Pass {
            return Decision::Refuse(Verdict::PortClosed);
        }
    }
    if world.drop_uninspected.contains(&kind) { Decision::Refuse(kind) } else { Decision::Pass(kind) }
}

/// A SYN; `port` is `None` where it is not for this host.
fn syn(
    world: &World,
    frame: &[u8],
    headers: &Headers,
    source: PacketSource,
    port: Option<u16>,
    conforms: &mut impl FnMut(Counted) -> bool,
) -> Decision {
    let rule = port.and_then(|port| rule(world, Transport::Tcp, port));
    if world.lockdown && port.is_some() && !rule.is_some_and(|rule| rule.is_open) {
        return Decision::Refuse(Verdict::PortClosed);
    }
    let is_armed = world.budget.is_some() && port.is_some_and(|port| world.armed.contains(&port));
    if let Some(port) = port
        && is_armed
        && world.cookies != COOKIES_OFF
    {
        return answer(world, frame, headers, source, port, conforms);
    }
    if world.syn.is_some() && !conforms(Counted::Syn(source)) {
        return Decision::Refuse(Verdict::SynRate);
    }
    let Some(port) = port else { return Decision::Pass(Verdict::Syn) };
    if rule.is_some_and(|rule| rule.pace.is_some()) && !conforms(Counted::NewConnections(port)) {
        return Decision::Refuse(Verdict::PortRate);
    }
    if world.budget.is_none() || conforms(Counted::Budget(port)) {
        return Decision::Pass(Verdict::Syn);
    }
    answer(world, frame, headers, source, port, conforms)
}

fn answer(
    world: &World,
    frame: &[u8],
    headers: &Headers,
    source: PacketSource,
    port: u16,
    conforms: &mut impl FnMut(Counted) -> bool,
) -> Decision {
    if !world.listening.contains(&port) {
        if world.translates {
            // Nothing comes back that could count.
            if world.cookies != COOKIES_OFF && world.syn.is_some() && !conforms(Counted::Syn(source)) {
                return Decision::Refuse(Verdict::SynRate);
            }
            let is_limited = rule(world, Transport::Tcp, port).is_some_and(|rule| rule.pace.is_some());
            if world.cookies != COOKIES_OFF && is_limited && !conforms(Counted::NewConnections(port)) {
                return Decision::Refuse(Verdict::PortRate);
            }
            return Decision::Pass(Verdict::SynOverBudget);
        }
        return Decision::Refuse(Verdict::NoListener);
    }
    if world.cookies == COOKIES_OFF {
        return Decision::Pass(Verdict::SynOverBudget);
    }
    if world.is_stale && world.on_stale != OnStale::KeepLimits {
        return Decision::Pass(Verdict::Syn);
    }
    if !headers.is_plain || frame.len() < 54 {
        return Decision::Pass(Verdict::SynOverBudget);
    }
    if conforms(Counted::Trickle(port)) { Decision::Pass(Verdict::SynTrickle) } else { Decision::Answer }
}

fn rule(world: &World, transport: Transport, number: u16) -> Option<PortSettings> {
    let number = std::num::NonZeroU16::new(number)?;
    world.ports.get(&Port { transport, number }).copied()
}

/// The source an address counts for. Unlike [`PacketSource::of`], an IPv6 packet is never taken for an IPv4 one, whatever
/// address it claims.
fn counted(address: IpAddr) -> PacketSource {
    match address {
        IpAddr::V4(_) => PacketSource::of(address),
        IpAddr::V6(v6) => {
            let [a, b, c, d, e, f, g, h, ..] = v6.octets();
            PacketSource::from_key(SourceKey::v6([a, b, c, d, e, f, g, h]))
        }
    }
}

/// Why reading stopped.
struct Stop(Verdict);

/// A packet's bytes.
#[derive(Clone, Copy)]
struct Buffer<'a>(&'a [u8]);

impl Buffer<'_> {
    fn at<const N: usize>(&self, offset: usize) -> Result<[u8; N], Stop> {
        let bytes = self.0.get(offset..offset + N).and_then(|bytes| bytes.try_into().ok());
        bytes.ok_or(Stop(Verdict::BadLength))
    }

    fn u16(&self, offset: usize) -> Result<usize, Stop> {
        self.at(offset).map(|bytes| usize::from(u16::from_be_bytes(bytes)))
    }
}

fn read(frame: &[u8]) -> Headers {
    let mut headers = Headers::default();
    if let Err(Stop(verdict)) = read_link(Buffer(frame), &mut headers) {
        if verdict.class() == Class::Sanity {
            headers.faults.insert(verdict);
        } else {
            headers.kind = Some(verdict);
        }
    }
    headers
}

fn read_link(buffer: Buffer<'_>, headers: &mut Headers) -> Result<(), Stop> {
    let mut at = 12;
    let mut tags = 0;
    loop {
        let ethertype = u16::from_be_bytes(buffer.at(at)?);
        match ethertype {
            VLAN | SERVICE_VLAN if tags < MAX_VLAN_TAGS => {
                tags += 1;
                at += 4;
            }
            VLAN | SERVICE_VLAN => return Err(Stop(Verdict::VlanDepth)),
            IPV4 | IPV6 => {
                headers.is_plain = tags == 0;
                let read = if ethertype == IPV4 { read_v4 } else { read_v6 };
                return read(buffer, headers, at + 2);
            }
            0x0806 => return Err(Stop(Verdict::Arp)),
            0x8864 => return Err(Stop(Verdict::Tunnel)),
            _ => return Err(Stop(Verdict::UnknownEthertype)),
        }
    }
}

fn read_v4(buffer: Buffer<'_>, headers: &mut Headers, at: usize) -> Result<(), Stop> {
    let header: [u8; 20] = buffer.at(at)?;
    let source: [u8; 4] = buffer.at(at + 12)?;
    let destination: [u8; 4] = buffer.at(at + 16)?;
    headers.addresses = Some((Ipv4Addr::from(source).into(), Ipv4Addr::from(destination).into()));
    let [version_and_length, _, _, _, _, _, fragment_high, fragment_low, _, protocol, ..] = header;
    let header_bytes = usize::from(version_and_length % 16) * 4;
    headers.is_plain &= header_bytes == 20 && fragment_high & 0x3f == 0 && fragment_low == 0;
    let total = buffer.u16(at + 2)?;
    if version_and_length / 16 != 4
        || header_bytes < 20
        || total < header_bytes
        || at + total > buffer.0.len()
    {
        return Err(Stop(Verdict::BadLength));
    }
    let fragment = u16::from_be_bytes([fragment_high, fragment_low]);
    if fragment % 0x2000 != 0 {
        return Err(Stop(later(protocol, fragment % 0x2000)));
    }
    let part = Part {
        at: at + header_bytes,
        bytes: total - header_bytes,
        is_first_of_several: fragment & 0x2000 != 0,
        hops: 0,
    };
    read_transport(buffer, headers, protocol, ICMP, &part)
}

fn read_v6(buffer: Buffer<'_>, headers: &mut Headers, at: usize) -> Result<(), Stop> {
    let fixed: [u8; 40] = buffer.at(at)?;
    let source: [u8; 16] = buffer.at(at + 8)?;
    let destination: [u8; 16] = buffer.at(at + 24)?;
    headers.addresses = Some((Ipv6Addr::from(source).into(), Ipv6Addr::from(destination).into()));
    let [version, _, _, _, _, _, first_next, hops, ..] = fixed;
    if version / 16 != 6 {
        return Err(Stop(Verdict::BadLength));
    }
    let payload = buffer.u16(at + 4)?;
    if payload == 0 && first_next == 0 {
        return Err(Stop(Verdict::ExtensionHeaders));
    }
    let end = at + 40 + payload;
    if end > buffer.0.len() {
        return Err(Stop(Verdict::BadLength));
    }
    let (mut at, mut next, mut seen, mut is_first_of_several) = (at + 40, first_next, 0, false);
    headers.is_plain &= next == TCP;
    while matches!(next, 0 | 43 | 44 | 51 | 60 | 135 | 139 | 140) {
        if seen == MAX_EXTENSION_HEADERS {
            return Err(Stop(Verdict::ExtensionHeaders));
        }
        seen += 1;
        if next == 44 {
            let [following, _, high, low]: [u8; 4] = buffer.at(at)?;
            if at + 8 > end {
                return Err(Stop(Verdict::BadLength));
            }
            let word = u16::from_be_bytes([high, low]);
            if word / 8 != 0 {
                return Err(Stop(later(following, word / 8)));
            }
            is_first_of_several |= word % 2 == 1;
            next = following;
            at += 8;
        } else {
            let [following, length]: [u8; 2] = buffer.at(at)?;
            at += if next == 51 { (usize::from(length) + 2) * 4 } else { (usize::from(length) + 1) * 8 };
            next = following;
        }
        if at > end {
            return Err(Stop(Verdict::BadLength));
        }
    }
    let part = Part { at, bytes: end - at, is_first_of_several, hops };
    read_transport(buffer, headers, next, ICMPV6, &part)
}

fn later(protocol: u8, offset: u16) -> Verdict {
    if (protocol, offset) == (TCP, 1) { Verdict::BadFragment } else { Verdict::LaterFragment }
}

/// The transport part of a packet.
struct Part {
    at: usize,
    bytes: usize,
    is_first_of_several: bool,
    hops: u8,
}

fn read_transport(
    buffer: Buffer<'_>,
    headers: &mut Headers,
    protocol: u8,
    icmp: u8,
    part: &Part,
) -> Result<(), Stop> {
    let too_short = || Stop(if part.is_first_of_several { Verdict::BadFragment } else { Verdict::BadLength });
    let require = |needed: usize| if part.bytes < needed { Err(too_short()) } else { Ok(()) };
    if protocol == TCP {
        require(20)?;
        let [length, flags]: [u8; 2] = buffer.at(part.at + 12)?;
        headers.flags = flags;
        let header_bytes = usize::from(length / 16) * 4;
        if header_bytes < 20 {
            return Err(Stop(Verdict::BadLength));
        }
        require(header_bytes)?;
        headers.port = Some((Transport::Tcp, u16::from_be_bytes(buffer.at(part.at + 2)?)));
        if flags & (SYN | ACK) == SYN {
            headers.kind = Some(Verdict::Syn);
        }
        headers.faults.extend(flag_faults(flags));
    } else if protocol == UDP {
        require(8)?;
        let (source, destination, length) =
            (buffer.u16(part.at)?, buffer.u16(part.at + 2)?, buffer.u16(part.at + 4)?);
        let overruns = !part.is_first_of_several && length > part.bytes;
        if length < 8 || overruns {
            return Err(Stop(Verdict::BadLength));
        }
        headers.port = Some((Transport::Udp, u16::from_be_bytes(buffer.at(part.at + 2)?)));
        let dhcp = if icmp == ICMP { [67, 68] } else { [546, 547] };
        if dhcp.contains(&source) && dhcp.contains(&destination) {
            headers.kind = Some(Verdict::Dhcp);
        }
    } else if protocol == icmp {
        require(8)?;
        let message: [u8; 2] = buffer.at(part.at)?;
        headers.kind = match (icmp, message) {
            (ICMP, [3, 4]) | (ICMPV6, [2, _]) => Some(Verdict::PathMtu),
            (ICMPV6, [133..=137, 0]) if part.hops == 255 => Some(Verdict::NeighbourDiscovery),
            _ => None,
        };
        let is_echo = matches!((icmp, message), (ICMP, [8, _]) | (ICMPV6, [128, _]));
        headers.icmp = Some(if is_echo { Icmp::Echo } else { Icmp::Other });
    } else if [4, 41, 47, 50, 51, 97, 115].contains(&protocol) {
        headers.kind = Some(Verdict::Tunnel);
    }
    Ok(())
}

fn flag_faults(flags: u8) -> Vec<Verdict> {
    let set = |flag: u8| flags & flag != 0;
    [
        (Verdict::NullFlags, flags & 0x3f == 0),
        (Verdict::Xmas, set(FIN) && set(PSH) && set(URG) && (!set(ACK) || set(SYN))),
        (Verdict::SynFin, set(SYN) && set(FIN)),
        (Verdict::SynRst, set(SYN) && set(RST)),
        (Verdict::FinNoAck, set(FIN) && !set(ACK)),
    ]
    .into_iter()
    .filter_map(|(verdict, applies)| applies.then_some(verdict))
    .collect()
}
