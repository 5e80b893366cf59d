//! The same policy in nftables: every row of the table of packets, sent over a wire to a host that only nftables
//! protects.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper that fails is a test that fails"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    net::{IpAddr, SocketAddr, TcpListener},
    os::fd::{AsRawFd as _, OwnedFd},
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::{
    net::if_::if_nametoindex,
    sys::socket::{MsgFlags, send},
};
use tunica_common::{
    gcra::{self, Limit},
    keys::{ALLOW_BY_OPERATOR, AllowEntry, BanEntry},
    verdict::{Action, Class, Verdict},
};
use tunica_core::{
    ban_ladder::Ladder,
    desired::Tables,
    limits::{
        CookieSettings, IcmpLimits, NoSocketLimits, Port, PortSettings, SECOND_NS, Settings, Transport,
    },
    load_level::LoadSettings,
    newcomers::NewcomerSettings,
    time::Monotime,
};
use tunica_nft::{Listing, Plan, elements};
use tunica_tests::{
    frame::{ICMP, SYN, TCP, UDP, icmp, tcp, udp, v4},
    netns::{self, End, Namespace},
    reference::{Mode, World},
    rows::{Row, SOURCE_V4, rows},
    shield::{Shield, listen_at},
    sys::packet_socket,
};

/// What nftables says of rows of which it says something else than the shield; `None`: the packet ends before nftables
/// sees it. Each is an instance of a sentence in [`tunica_nft::DIFFERENCES`].
const DIFFERENCES: &[(&str, Option<Verdict>)] = &[
    // Frames that nftables never gets: no IP, or tagged for an interface that is not there.
    ("one tag", None),
    ("one tag, the packet behind them is judged", None),
    ("a service tag", None),
    ("a service tag, the packet behind them is judged", None),
    ("two tags", None),
    ("two tags, the packet behind them is judged", None),
    ("three tags", None),
    ("a tag with nothing behind", None),
    ("ARP", None),
    ("ARP behind a tag", None),
    ("LLDP", None),
    ("802.3 length instead of a type", None),
    ("PPPoE session", None),
    ("banned, behind a tag", None),
    ("SYN behind a tag to an armed port", None),
    ("unknown EtherType, dropped by policy", None),
    ("unknown EtherType, dropped by policy, observing", None),
    ("unknown EtherType, dropped by policy, no heartbeat, pass", None),
    ("three tags, dropped by policy", None),
    ("three tags, dropped by policy, observing", None),
    ("three tags, dropped by policy, no heartbeat, pass", None),
    ("ARP under the strictest policy", None),
    // Packets that the kernel drops before nftables, because their IP headers contradict themselves.
    ("IPv4 header cut", None),
    ("IPv6 header cut", None),
    ("version 6 under the IPv4 type", None),
    ("IPv4 header of four words", None),
    ("version 4 under the IPv6 type", None),
    ("total length one beyond the frame", None),
    ("total length below the header", None),
    ("payload length one beyond the frame", None),
    ("a large segment that claims still more", None),
    ("hop-by-hop header, the packet behind it is judged", None),
    // nftables knows no heartbeat.
    ("dynamic ban, no heartbeat, keep-limits", Some(Verdict::Banned)),
    ("operator's ban, no heartbeat, sanity-only", Some(Verdict::Banned)),
    ("operator's ban, no heartbeat, pass", Some(Verdict::Banned)),
    ("beyond the burst, no heartbeat, sanity-only", Some(Verdict::SynRate)),
    ("beyond the burst, no heartbeat, pass", Some(Verdict::SynRate)),
    ("lockdown, no heartbeat, sanity-only", Some(Verdict::PortClosed)),
    ("lockdown, no heartbeat, pass", Some(Verdict::PortClosed)),
    ("beyond the budget, no heartbeat, keep-limits", Some(Verdict::SynOverBudget)),
    ("no socket, no heartbeat, sanity-only", Some(Verdict::NoSocket)),
    ("seven extension headers, dropped by policy, no heartbeat, pass", Some(Verdict::Pass)),
    ("tunnel, dropped by policy, no heartbeat, pass", Some(Verdict::Tunnel)),
    ("later fragment, dropped by policy, no heartbeat, pass", Some(Verdict::LaterFragment)),
    ("no flag, no heartbeat, pass", Some(Verdict::NullFlags)),
    // No limit holds for all sources together.
    ("segments without a socket beyond what all sources have", Some(Verdict::Pass)),
    // Nothing is answered here, and no port is armed beyond its own rate.
    ("first SYN beyond the budget trickles", Some(Verdict::SynOverBudget)),
    ("second SYN beyond the budget is answered", Some(Verdict::SynOverBudget)),
    ("an armed port does not count SYNs by source", Some(Verdict::SynRate)),
    ("cookies know no allow list", Some(Verdict::SynOverBudget)),
    ("beyond the budget, observing", Some(Verdict::SynOverBudget)),
    ("a port that is armed already", Some(Verdict::Syn)),
    ("SYN with data to an armed port", Some(Verdict::Syn)),
    ("SYN without options to an armed port", Some(Verdict::Syn)),
    ("SYN with IPv4 options to an armed port", Some(Verdict::Syn)),
    ("SYN behind an extension header to an armed port", Some(Verdict::Syn)),
    // Extension headers behind which nftables looks, or does not.
    ("mobility header, the packet behind it is judged", Some(Verdict::ExtensionHeaders)),
    ("HIP header, the packet behind it is judged", Some(Verdict::ExtensionHeaders)),
    ("shim6 header, the packet behind it is judged", Some(Verdict::ExtensionHeaders)),
    ("authentication header, the packet behind it is judged", Some(Verdict::ExtensionHeaders)),
    ("seven extension headers", Some(Verdict::SynFin)),
    ("jumbogram", Some(Verdict::Pass)),
    ("seven extension headers, dropped by policy", Some(Verdict::Pass)),
    ("seven extension headers, dropped by policy, observing", Some(Verdict::Pass)),
    // nftables compares no two fields of a packet.
    ("LAND", Some(Verdict::Pass)),
    // Ranges inside others have no end of their own.
    ("the longest range decides", Some(Verdict::BannedNet)),
    // Lengths that only several fields together tell; the kernel drops these behind nftables.
    ("total length cuts the TCP header", Some(Verdict::Pass)),
    ("payload length cuts the TCP header", Some(Verdict::Pass)),
    ("payload length 0", Some(Verdict::Pass)),
    ("TCP options beyond the packet", Some(Verdict::Pass)),
    ("TCP of no byte", Some(Verdict::Pass)),
    ("UDP longer than the packet", Some(Verdict::Pass)),
    ("ICMP of 7 bytes", Some(Verdict::Pass)),
    ("ICMPv6 of 7 bytes", Some(Verdict::Pass)),
    ("tiny first fragment", Some(Verdict::Pass)),
    ("empty first fragment", Some(Verdict::Pass)),
    ("first fragment cuts TCP options", Some(Verdict::Pass)),
    ("UDP first fragment of 7 bytes", Some(Verdict::BadLength)),
    ("ICMP first fragment of 4 bytes", Some(Verdict::Pass)),
    ("fragment header in the padding", Some(Verdict::Pass)),
    ("fragment header cut", Some(Verdict::Pass)),
    ("extension header beyond the packet", Some(Verdict::Pass)),
    ("extension header longer than the packet", Some(Verdict::Pass)),
    ("nothing behind an extension header", Some(Verdict::Pass)),
    ("DHCP of the wrong length", Some(Verdict::Dhcp)),
];

/// The time at which every table is made.
const NOW: Monotime = Monotime(1);
/// Link-layer addresses that the rows' frames carry.
const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// Follows every row on the wire, and is counted apart: once it has come, so has whatever was sent before.
const MARKER: [u8; 4] = [203, 0, 113, 250];

/// A host that nftables protects, and the other end of its wire.
struct Host {
    namespace: Namespace,
    _peer: Namespace,
    socket: OwnedFd,
    own: Vec<IpAddr>,
    listeners: Vec<TcpListener>,
    markers: u64,
}

impl Host {
    fn new(purpose: &str) -> Result<Self> {
        ensure!(nix::unistd::geteuid().is_root(), "network namespaces need root: run the tests as root");
        let (namespace, peer) = (Namespace::create(purpose, "host")?, Namespace::create(purpose, "peer")?);
        netns::join(
            End { namespace: &namespace, interface: "h0", mac: HOST_MAC, address: "10.78.0.1/24" },
            End { namespace: &peer, interface: "p0", mac: PEER_MAC, address: "10.78.0.2/24" },
        )?;
        for (key, value) in [("accept_dad", "0"), ("accept_ra", "0"), ("disable_ipv6", "0")] {
            namespace.write_sysctl(&format!("net/ipv6/conf/h0/{key}"), value)?;
        }
        // One row's frame is larger than Ethernet's.
        namespace.ip(&["link", "set", "h0", "mtu", "9500"])?;
        peer.ip(&["link", "set", "p0", "mtu", "9500"])?;
        let socket = peer.run(|| Ok(packet_socket(if_nametoindex("p0")?)?))?;
        let host =
            Self { namespace, _peer: peer, socket, own: Vec::new(), listeners: Vec::new(), markers: 0 };
        host.nft(
            &["-f", "-"],
            "table inet lab {
                counter marker { }
                counter left { }
                chain first { type filter hook prerouting priority -400; ip saddr 203.0.113.250 counter name marker drop; }
                chain then { type filter hook prerouting priority -200; iifname h0 counter name left accept; }
            }",
        )?;
        Ok(host)
    }

    fn nft(&self, arguments: &[&str], input: &str) -> Result<String> {
        let mut child = self
            .namespace
            .command(Path::new("nft"))
            .args(arguments)
            .env("PATH", "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        child.stdin.take().context("no standard input")?.write_all(input.as_bytes())?;
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "this test needs nft; `cargo xtask setup` installs it: {said}");
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Makes addresses, listeners and table say what `world` says. Returns what the table's counters mean.
    fn set(&mut self, world: &World) -> Result<BTreeMap<Verdict, Action>> {
        let own: Vec<IpAddr> = world.own.iter().copied().collect();
        if own != self.own {
            self.namespace.ip(&["address", "flush", "dev", "h0", "scope", "global"])?;
            for address in &own {
                let length = if address.is_ipv4() { 32 } else { 128 };
                self.namespace.ip(&["address", "add", &format!("{address}/{length}"), "dev", "h0"])?;
            }
            self.own = own;
        }
        self.listeners.clear();
        for (address, port) in
            self.own.iter().flat_map(|own| world.listening.iter().map(move |port| (own, port)))
        {
            let address = SocketAddr::new(*address, *port);
            self.listeners.push(self.namespace.run(|| listen_at(address))?);
        }
        let interfaces = ["h0".to_owned()];
        let settings = settings(world);
        let plan = Plan {
            interfaces: &interfaces,
            settings: &settings,
            ephemeral_low: world.ephemeral_low,
            translates: world.translates,
            drop_invalid: false,
            loopback: &[],
        };
        let objects = plan.transaction(&elements(&tables(world), NOW), NOW);
        self.nft(&["-j", "-f", "-"], &serde_json::to_string(&objects)?)?;
        Ok(plan.actions())
    }

    /// Sends a frame and, behind it, the marker; returns once that came.
    fn send(&mut self, frame: &[u8], times: usize) -> Result<()> {
        let marker = v4(MARKER, UDP).frame(&udp(9, 9, 0, 0));
        let frame = with_checksum(frame);
        for frame in std::iter::repeat_n(&frame, times).chain([&with_checksum(&marker)]) {
            self.push(frame)?;
        }
        self.markers += 1;
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.lab("marker")? < self.markers {
            ensure!(Instant::now() < deadline, "the marker did not come");
        }
        Ok(())
    }

    fn push(&self, frame: &[u8]) -> Result<()> {
        send(self.socket.as_raw_fd(), frame, MsgFlags::empty()).map(|_| ()).context("sending a frame")
    }

    fn lab(&self, counter: &str) -> Result<u64> {
        let listed = self.nft(&["-j", "list", "counter", "inet", "lab", counter], "")?;
        Listing::read(&listed)?.counts().get(counter).copied().context("no such counter")
    }

    fn counts(&self) -> Result<BTreeMap<String, u64>> {
        let listed = self.nft(&["-j", "list", "table", "inet", tunica_nft::TABLE], "")?;
        let counts = Listing::read(&listed)?.counts().clone();
        Ok(counts.into_iter().filter(|(_, packets)| *packets > 0).collect())
    }
}

fn settings(world: &World) -> Settings {
    let mask = |verdicts: &BTreeSet<Verdict>| verdicts.iter().fold(0, |mask, verdict| mask | verdict.bit());
    Settings {
        reporters: Default::default(),
        report_window: Duration::from_secs(3_600),
        handshakes: None,
        ban_threshold: 5,
        violation_window: Duration::from_secs(60),
        mode: world.mode,
        sanity_mask: mask(&world.sanity),
        uninspected_drop_mask: mask(&world.drop_uninspected),
        on_stale: world.on_stale,
        stale_after: Duration::from_secs(30),
        event_interval: Duration::from_millis(10),
        syn: world.syn,
        escalate_after: world.escalate,
        port_syn: world.budget,
        cookies: CookieSettings {
            enabled: true,
            manage_syncookies: false,
            trickle: world.trickle,
            hold: Duration::from_secs(60),
        },
        no_socket: world.segments.map(|per_source| NoSocketLimits { host_per_second: 1, per_source }),
        icmp: world.icmp,
        lockdown: world.lockdown,
        ports: world.ports.clone(),
        ladder: Ladder::new(vec![Duration::from_secs(300)], Duration::from_secs(86_400)).unwrap(),
        config_allow: world.allow.clone(),
        ban_capacity: 1_024,
        net_capacity: 64,
        allow_capacity: 64,
        tor_keep: Duration::from_secs(86_400),
        log_lines_per_minute: None,
        load: LoadSettings::default(),
        newcomers: NewcomerSettings::default(),
    }
}

fn tables(world: &World) -> Tables {
    let entry = |ban: &tunica_tests::reference::Ban| BanEntry {
        expires_ns: if ban.is_expired { NOW.0 } else { 3_600 * SECOND_NS },
        ban_id: 1,
        flags: 0,
    };
    let allowed = AllowEntry { origin: ALLOW_BY_OPERATOR, allow_id: 1 };
    Tables {
        bans: world.bans.iter().map(|(source, ban)| (source.key(), entry(ban))).collect(),
        nets: world.banned_nets.iter().map(|(range, ban)| (range.kernel_key(), entry(ban))).collect(),
        allow: world.allow.iter().map(|range| (range.kernel_key(), allowed)).collect(),
        ..Tables::default()
    }
}

/// The frame with a right checksum in its IPv4 header, which the kernel looks at before nftables does. One that cannot
/// be right is left alone.
fn with_checksum(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    // Behind tags, too: a packet that a rule speaks against must not be lost for its checksum.
    let mut start = 12;
    while matches!(frame.get(start..start + 2), Some([0x81, 0] | [0x88, 0xa8])) {
        start += 4;
    }
    if frame.get(start..start + 2) != Some(&[8, 0]) {
        return frame;
    }
    let Some(header) = frame.get_mut(start + 2..) else { return frame };
    let length = header.first().map_or(0, |first| usize::from(first & 0x0f) * 4);
    if length < 20 || header.len() < length {
        return frame;
    }
    header[10..12].fill(0);
    let sum: u32 =
        header[..length].chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let sum = !(((folded & 0xffff) + (folded >> 16)) as u16);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// What the shield says of a row, in the words of the table: the verdict, and whether the packet goes on.
fn shields(row: &Row) -> (Option<Verdict>, bool) {
    let goes_on = match row.expect.1 {
        Action::Pass | Action::WouldDrop | Action::WouldAnswer => true,
        Action::Drop | Action::Answer => false,
    };
    (Some(row.expect.0), goes_on)
}

#[test]
fn every_row_ends_as_in_the_shield_or_as_documented() {
    let mut host = Host::new("nftrows").unwrap();
    let mut faults = Vec::new();
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    for row in rows() {
        // Without a heartbeat nftables goes on, whatever the policy says; see the table of differences.
        let actions = host.set(&row.world).unwrap();
        // The host's own rate, below which nobody judges segments, takes the first one.
        let before = row.before + u32::from(row.world.segments.is_some());
        let (left, total) = (host.lab("left").unwrap(), u64::from(before) + 1);
        host.send(&row.frame, total.try_into().unwrap()).unwrap();
        let (counts, left) = (host.counts().unwrap(), host.lab("left").unwrap() - left);
        let documented = DIFFERENCES.iter().find(|(name, _)| {
            let rest = row.name.strip_prefix(name);
            rest.is_some_and(|rest| matches!(rest, "" | ", v4" | ", v6"))
        });
        seen.extend(documented.map(|(name, _)| name));
        let shield = shields(&row);
        let (expected, goes_on) = match documented {
            None => shield,
            Some((_, None)) => (None, false),
            Some((_, Some(verdict))) => {
                let is_drop = match verdict.class() {
                    Class::Pass => false,
                    Class::Uninspected => row.world.drop_uninspected.contains(verdict),
                    Class::Sanity
                    | Class::Ban
                    | Class::Limit
                    | Class::Port
                    | Class::NoSocket
                    | Class::Icmp
                    | Class::Cookie => true,
                };
                (Some(*verdict), !is_drop || row.world.mode != Mode::Enforce)
            }
        };
        let is_told_right = expected.is_none_or(|verdict| match actions.get(&verdict) {
            Some(Action::Drop) => !goes_on,
            Some(Action::Pass | Action::WouldDrop) => goes_on,
            Some(Action::Answer | Action::WouldAnswer) => false,
            None => verdict == Verdict::Unarmed,
        });
        if !is_told_right {
            let told = expected.and_then(|verdict| actions.get(&verdict));
            faults.push(format!("{}: its counter is told to be of {told:?}", row.name));
        }
        let is_right = match expected {
            None => counts.is_empty() && left == 0,
            Some(Verdict::Unarmed) => counts.is_empty() && left == total,
            Some(verdict) => {
                let of_verdict = counts.get(verdict.label()).copied().unwrap_or(0);
                let passed = if goes_on { total } else { total - of_verdict };
                // A rate is exceeded by the last packet alone, or from some packet on.
                counts.values().sum::<u64>() == total
                    && of_verdict >= 1
                    && left == passed
                    && (row.before > 0 || of_verdict == total || row.world.segments.is_some())
            }
        };
        if !is_right {
            faults.push(format!(
                "{}: {counts:?}, {left} of {total} go on; the shield says {:?}, documented is {:?}",
                row.name,
                row.expect,
                documented.map(|(_, outcome)| outcome)
            ));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert_eq!(seen.len(), DIFFERENCES.len(), "a documented difference is of no row");
}

/// For one limit: the frame that it counts, its verdict, and what is admitted at once and in a second.
struct Paced {
    frame: Vec<u8>,
    verdict: Verdict,
    at_once: f64,
    each_second: f64,
}

/// What a limit has to give at these moments. Where this machine stands still for longer than it takes to fill up again, what
/// comes beyond that is lost, so a rate and a length of time do not tell.
struct Bucket {
    left: f64,
    at: Instant,
    admitted: f64,
}

impl Bucket {
    fn ask(&mut self, limit: &Paced) {
        let now = Instant::now();
        let filled = self.left + limit.each_second * now.duration_since(self.at).as_secs_f64();
        self.left = filled.min(limit.at_once);
        self.at = now;
        if self.left >= 1.0 {
            self.left -= 1.0;
            self.admitted += 1.0;
        }
    }
}

#[test]
fn rates_are_those_of_the_shield() {
    const SECONDS: f64 = 4.0;
    /// More than the widest limit gives in that time.
    const ENOUGH: u32 = 1_200;
    let mut world = World::enforcing();
    world.own.extend([IpAddr::from([192, 0, 2, 1])]);
    world.syn = Limit::new(20, 5);
    world.icmp = Some(IcmpLimits {
        per_source: Limit::new(10, 4).unwrap(),
        host: gcra::pace(1_000, SECOND_NS, 1_000).unwrap(),
        ceiling: gcra::pace(40, SECOND_NS, 40).unwrap(),
    });
    let port = Port { transport: Transport::Udp, number: 4_000.try_into().unwrap() };
    let pace = gcra::pace(300, 10 * SECOND_NS, 300);
    world.ports.insert(port, PortSettings { is_open: false, pace });
    let paced = |verdict, frame, at_once, each_second| Paced { frame, verdict, at_once, each_second };
    let limits = [
        paced(Verdict::SynRate, v4(SOURCE_V4, TCP).frame(&tcp(SYN, 5)), 5.0, 20.0),
        paced(Verdict::IcmpRate, v4(SOURCE_V4, ICMP).frame(&icmp(8, 0, 8)), 4.0, 10.0),
        paced(Verdict::IcmpCeiling, v4(SOURCE_V4, ICMP).frame(&icmp(0, 0, 8)), 40.0, 40.0),
        paced(Verdict::UdpRate, v4(SOURCE_V4, UDP).frame(&udp(53, 4_000, 8, 0)), 300.0, 30.0),
    ];
    let mut host = Host::new("nftrates").unwrap();
    host.set(&world).unwrap();
    let mut shield = Shield::load().unwrap();
    shield.set(&world).unwrap();
    // Both get the same packets at the same moments, so how long this takes does not matter.
    let begin = Instant::now();
    let mut buckets = limits.each_ref().map(|limit| Bucket { left: limit.at_once, at: begin, admitted: 0.0 });
    let mut sent = 0;
    while begin.elapsed().as_secs_f64() < SECONDS || sent < ENOUGH {
        for (limit, bucket) in limits.iter().zip(&mut buckets) {
            for _ in 0..4 {
                bucket.ask(limit);
                host.push(&with_checksum(&limit.frame)).unwrap();
                shield.repeat(&limit.frame, 1).unwrap();
            }
        }
        sent += 4;
        std::thread::sleep(Duration::from_millis(5));
    }
    host.send(&v4([203, 0, 113, 9], UDP).frame(&udp(1, 9, 0, 0)), 1).unwrap();
    let counts = host.counts().unwrap();
    for (limit, bucket) in limits.iter().zip(&buckets) {
        let refused = counts.get(limit.verdict.label()).copied().unwrap_or(0);
        let by_nft = f64::from(sent) - refused as f64;
        let by_shield = f64::from(sent) - shield.packets(limit.verdict, Action::Drop).unwrap() as f64;
        let expected = bucket.admitted;
        assert!(f64::from(sent) > 1.2 * expected, "{:?} was never exceeded: {sent} sent", limit.verdict);
        for admitted in [by_nft, by_shield] {
            assert!(
                (admitted / expected - 1.0).abs() < 0.1,
                "{:?}: nftables admitted {by_nft}, the shield {by_shield}, the rate {expected}",
                limit.verdict
            );
        }
    }
}
