//! All reads of packet bytes.
//!
//! Sources: IEEE 802.3 and 802.1Q (Ethernet, VLAN), RFC 791 (IPv4), RFC 8200 (IPv6), RFC 9293 (TCP), RFC 768 (UDP),
//! RFC 792 and RFC 4443 (ICMP).
//!
//! There are two ways to read. [`Direct`] dereferences at constant offsets, which serves plain Ethernet with an IP header
//! of the usual length. [`Copied`] asks the kernel to copy bytes from any offset and any buffer, which serves everything
//! else. The verifier leaves no third: without CAP_PERFMON it forbids to add a variable to a packet pointer, and to
//! subtract two of them. `unsafe` here stands for these two reads and for two loads from the context.

use core::{arch::asm, mem::MaybeUninit};

use aya_ebpf::{
    EbpfContext,
    helpers::generated::{
        bpf_xdp_adjust_tail, bpf_xdp_get_buff_len, bpf_xdp_load_bytes, bpf_xdp_store_bytes,
    },
    programs::XdpContext,
};
use tunica_common::{
    policy::{MAX_EXTENSION_HEADERS, MAX_VLAN_TAGS},
    verdict::Verdict,
};

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_SERVICE_VLAN: u16 = 0x88a8;
const ETHERTYPE_PPPOE_SESSION: u16 = 0x8864;
const ETHERNET_BYTES: usize = 14;
const VLAN_BYTES: usize = 4;

pub const PROTOCOL_ICMP: u8 = 1;
pub const PROTOCOL_TCP: u8 = 6;
pub const PROTOCOL_UDP: u8 = 17;
pub const PROTOCOL_ICMPV6: u8 = 58;
/// IP in IP (RFC 2003), IPv6 in IP (RFC 4213), GRE (RFC 2784), ESP and AH (RFC 4303, RFC 4302), a bit for each number.
/// In IPv6 the authentication header is an extension header, so it is never met as a protocol.
const TUNNELS_BELOW_64: u64 = 1 << 4 | 1 << 41 | 1 << 47 | 1 << 50 | 1 << 51;
/// RFC 3378.
const TUNNEL_ETHERIP: u8 = 97;
/// RFC 3931.
const TUNNEL_L2TP: u8 = 115;
const EXTENSION_HOP_BY_HOP: u8 = 0;
const EXTENSION_ROUTING: u8 = 43;
const EXTENSION_FRAGMENT: u8 = 44;
const EXTENSION_AUTHENTICATION: u8 = 51;
const EXTENSION_DESTINATION: u8 = 60;
const EXTENSION_MOBILITY: u8 = 135;
const EXTENSION_HIP: u8 = 139;
const EXTENSION_SHIM6: u8 = 140;

/// Version 4, a header of five words.
const IPV4_WITHOUT_OPTIONS: u8 = 0x45;
const IPV4_MORE_FRAGMENTS: u16 = 0x2000;
const IPV4_FRAGMENT_OFFSET: u16 = 0x1fff;

pub const FLAG_FIN: u8 = 0x01;
pub const FLAG_SYN: u8 = 0x02;
pub const FLAG_RST: u8 = 0x04;
pub const FLAG_PSH: u8 = 0x08;
pub const FLAG_ACK: u8 = 0x10;
pub const FLAG_URG: u8 = 0x20;

/// What the headers say.
pub struct Packet {
    /// Verdicts of class `Sanity` that speak against the packet, by [`Verdict::bit`].
    pub faults: u64,
    /// [`Verdict::Pass`], or the exemption or uninspected class found.
    pub kind: Verdict,
    /// Whether the addresses below were read.
    pub is_ip: bool,
    pub is_v4: bool,
    /// Source address as two words, the first byte lowest; IPv4 mapped into `::ffff:0:0/96`.
    pub source: [u64; 2],
    pub destination: [u64; 2],
    pub protocol: u8,
    /// TCP flags; 0 for other protocols.
    pub tcp_flags: u8,
    pub source_port: u16,
    pub destination_port: u16,
    /// Whether the ports and flags above were read.
    pub has_ports: bool,
    pub icmp: Icmp,
    /// Where the transport header stands.
    pub transport: usize,
    /// Link header and IP packet in bytes, without padding; 0 where the lengths were not read.
    pub bytes: u64,
}

impl Packet {
    /// Makes the verifier forget what it knows of the packet, by adding a 0 whose value it does not know.
    ///
    /// The parser ends in many ways, and in each the verifier knows some fields exactly. It would walk all that follows
    /// once for each of them; knowing nothing, it walks it once.
    #[inline(always)]
    pub fn forget(&mut self, zero: u64) {
        let byte = zero as u8;
        self.faults |= zero;
        // SAFETY: the values stay as they are, because `zero` is 0: the host writes nothing else.
        unsafe {
            self.kind = core::mem::transmute::<u32, Verdict>(self.kind as u32 | zero as u32);
            self.icmp = core::mem::transmute::<u8, Icmp>(self.icmp as u8 | byte);
            self.is_ip = core::mem::transmute::<u8, bool>(u8::from(self.is_ip) | byte);
            self.is_v4 = core::mem::transmute::<u8, bool>(u8::from(self.is_v4) | byte);
            self.has_ports = core::mem::transmute::<u8, bool>(u8::from(self.has_ports) | byte);
        }
        let [source_high, source_low] = self.source;
        let [destination_high, destination_low] = self.destination;
        self.source = [source_high | zero, source_low | zero];
        self.destination = [destination_high | zero, destination_low | zero];
        self.protocol |= byte;
        self.tcp_flags |= byte;
        self.source_port |= zero as u16;
        self.destination_port |= zero as u16;
        self.transport |= zero as usize;
        self.bytes |= zero;
    }
}

/// What kind of ICMP or ICMPv6 message a packet is.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Icmp {
    /// None, or neighbour discovery.
    No,
    EchoRequest,
    /// Errors, replies and all the rest; path-MTU messages too.
    Other,
}

/// The first buffer of a packet.
pub struct Frame<'a> {
    ctx: &'a XdpContext,
    start: usize,
    end: usize,
}

impl<'a> Frame<'a> {
    /// Reads where the packet starts and ends.
    ///
    /// The fields are 32 bits wide but the verifier makes pointers of them, provided that they are loaded straight
    /// into a 64-bit register. A compiler that loads, keeps and later widens them loses the pointer.
    #[inline(always)]
    pub fn of(ctx: &'a XdpContext) -> Self {
        let (start, end): (usize, usize);
        // SAFETY: both loads lie inside `struct xdp_md`, whose first two fields are `data` and `data_end`.
        unsafe {
            asm!(
                "{start} = *(u32 *)({ctx} + 0)",
                "{end} = *(u32 *)({ctx} + 4)",
                ctx = in(reg) ctx.ctx,
                start = out(reg) start,
                end = out(reg) end,
                options(nostack, preserves_flags, readonly, pure),
            );
        }
        Self { ctx, start, end }
    }

    /// `N` bytes at `offset`; `None` if the packet ends before.
    #[inline(always)]
    pub fn get<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let mut bytes = MaybeUninit::<[u8; N]>::uninit();
        // SAFETY: the kernel writes all N bytes to memory that is as long, or returns an error.
        unsafe { self.copy_to(offset, bytes.as_mut_ptr().cast(), N).then(|| bytes.assume_init()) }
    }

    /// Makes the packet `length` bytes long; false if the driver has no room.
    #[inline(always)]
    pub fn resize(&self, length: usize) -> bool {
        let delta = length as i32 - self.whole_bytes() as i32;
        // SAFETY: the context pointer is the one the kernel gave; no pointer into the packet is used afterwards.
        delta == 0 || unsafe { bpf_xdp_adjust_tail(self.ctx.ctx, delta) == 0 }
    }

    /// Copies `length` bytes at `offset` to `to`, which must be as long; false if the packet ends before.
    #[inline(always)]
    pub fn copy_to(&self, offset: usize, to: *mut u8, length: usize) -> bool {
        // SAFETY: callers have the room, which the verifier checks again.
        unsafe { bpf_xdp_load_bytes(self.ctx.ctx, offset as u32, to.cast(), length as u32) == 0 }
    }

    /// Overwrites the packet's first `length` bytes; false if the packet is shorter.
    #[inline(always)]
    pub fn overwrite(&self, from: *mut u8, length: u32) -> bool {
        // SAFETY: callers have as much, which the verifier checks again.
        unsafe { bpf_xdp_store_bytes(self.ctx.ctx, 0, from.cast(), length) == 0 }
    }

    /// The context.
    #[inline(always)]
    pub fn xdp(&self) -> &XdpContext {
        self.ctx
    }

    /// Length of the whole packet, all buffers, in bytes.
    #[inline(always)]
    pub fn whole_bytes(&self) -> usize {
        // SAFETY: the context pointer is the one the kernel gave.
        unsafe { bpf_xdp_get_buff_len(self.ctx.as_ptr().cast()) as usize }
    }

    /// Index of the interface that the packet arrived on.
    #[inline(always)]
    pub fn interface(&self) -> u32 {
        // SAFETY: as above; the verifier turns the read into the device's index.
        unsafe { (*self.ctx.ctx).ingress_ifindex }
    }
}

/// Bytes of a packet.
trait Bytes {
    /// Copies `N` bytes at `offset`; [`Verdict::BadLength`] if the packet ends before.
    fn get<const N: usize>(&self, offset: usize) -> Result<[u8; N], Ended>;
}

/// Reads from the first buffer, at offsets that the compiler knows.
struct Direct<'a>(&'a Frame<'a>);

impl Bytes for Direct<'_> {
    #[inline(always)]
    fn get<const N: usize>(&self, offset: usize) -> Result<[u8; N], Ended> {
        let at = self.0.start + offset;
        if at + N > self.0.end {
            return Copied(self.0).get(offset);
        }
        // SAFETY: the line above showed that all N bytes lie in the first buffer.
        Ok(unsafe { (at as *const [u8; N]).read_unaligned() })
    }
}

/// Reads by the kernel's help, from any offset and any buffer.
struct Copied<'a>(&'a Frame<'a>);

impl Bytes for Copied<'_> {
    #[inline(always)]
    fn get<const N: usize>(&self, offset: usize) -> Result<[u8; N], Ended> {
        self.0.get(offset).ok_or(Verdict::BadLength)
    }
}

/// A verdict that ends parsing.
type Ended = Verdict;

/// Reads every header the rules need.
#[inline(always)]
pub fn read(frame: &Frame<'_>) -> Packet {
    let mut packet = Packet {
        faults: 0,
        kind: Verdict::Pass,
        is_ip: false,
        is_v4: false,
        source: [0; 2],
        destination: [0; 2],
        protocol: 0,
        tcp_flags: 0,
        source_port: 0,
        destination_port: 0,
        has_ports: false,
        icmp: Icmp::No,
        transport: 0,
        bytes: 0,
    };
    if let Err(ended) = read_link(frame, &mut packet) {
        match ended {
            Verdict::BadLength | Verdict::BadFragment => packet.faults |= ended.bit(),
            ended => packet.kind = ended,
        }
    }
    packet
}

/// Takes the short way where headers stand at constant offsets, else the long one.
#[inline(always)]
fn read_link(frame: &Frame<'_>, packet: &mut Packet) -> Result<(), Ended> {
    let direct = Direct(frame);
    match u16::from_be_bytes(direct.get(12)?) {
        ETHERTYPE_IPV4 => {
            let header: [u8; 20] = direct.get(ETHERNET_BYTES)?;
            if header[0] == IPV4_WITHOUT_OPTIONS {
                return read_ipv4(&direct, frame, packet, ETHERNET_BYTES, header, 20);
            }
        }
        ETHERTYPE_IPV6 => {
            let header: [u8; 40] = direct.get(ETHERNET_BYTES)?;
            let start = read_ipv6(frame, packet, ETHERNET_BYTES, &header)?;
            if !is_extension(header[6]) {
                let chain = Chain { next: header[6], at: ETHERNET_BYTES + 40, is_first_fragment: false };
                return read_ipv6_transport(&direct, packet, &start, &chain);
            }
        }
        _ => {}
    }
    read_link_long(frame, packet)
}

/// Everything that is not plain: tags, IPv4 options, extension headers, other EtherTypes.
#[inline(always)]
fn read_link_long(frame: &Frame<'_>, packet: &mut Packet) -> Result<(), Ended> {
    let copied = Copied(frame);
    let mut ethertype = u16::from_be_bytes(copied.get(12)?);
    let mut offset = ETHERNET_BYTES;
    for _ in 0..MAX_VLAN_TAGS {
        if !is_vlan(ethertype) {
            break;
        }
        ethertype = u16::from_be_bytes(copied.get(offset + 2)?);
        offset += VLAN_BYTES;
    }
    match ethertype {
        ETHERTYPE_IPV4 => {
            let header: [u8; 20] = copied.get(offset)?;
            let header_bytes = usize::from(header[0] & 0x0f) << 2;
            read_ipv4(&copied, frame, packet, offset, header, header_bytes)
        }
        ETHERTYPE_IPV6 => {
            let header: [u8; 40] = copied.get(offset)?;
            let start = read_ipv6(frame, packet, offset, &header)?;
            let chain = read_extensions(&copied, packet, &start, header[6], offset + 40)?;
            read_ipv6_transport(&copied, packet, &start, &chain)
        }
        ETHERTYPE_ARP => Err(Verdict::Arp),
        ETHERTYPE_PPPOE_SESSION => Err(Verdict::Tunnel),
        _ if is_vlan(ethertype) => Err(Verdict::VlanDepth),
        _ => Err(Verdict::UnknownEthertype),
    }
}

#[inline(always)]
fn is_vlan(ethertype: u16) -> bool {
    ethertype == ETHERTYPE_VLAN || ethertype == ETHERTYPE_SERVICE_VLAN
}

/// Where the transport header stands and how much of it there may be.
struct Transport {
    offset: usize,
    /// Bytes from `offset` to the end of the IP packet.
    bytes: usize,
    is_first_fragment: bool,
    hop_limit: u8,
}

#[inline(always)]
fn read_ipv4(
    bytes: &impl Bytes,
    frame: &Frame<'_>,
    packet: &mut Packet,
    offset: usize,
    header: [u8; 20],
    header_bytes: usize,
) -> Result<(), Ended> {
    packet.is_ip = true;
    packet.is_v4 = true;
    packet.source = mapped([header[12], header[13], header[14], header[15]]);
    packet.destination = mapped([header[16], header[17], header[18], header[19]]);
    packet.protocol = header[9];
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if header[0] >> 4 != 4 || header_bytes < 20 || total < header_bytes {
        return Err(Verdict::BadLength);
    }
    check_total(frame, packet, offset + total)?;
    let fragment = u16::from_be_bytes([header[6], header[7]]);
    let fragment_offset = fragment & IPV4_FRAGMENT_OFFSET;
    if fragment_offset != 0 {
        return Err(later_fragment(packet.protocol, fragment_offset));
    }
    let transport = Transport {
        offset: offset + header_bytes,
        bytes: total - header_bytes,
        is_first_fragment: fragment & IPV4_MORE_FRAGMENTS != 0,
        hop_limit: header[8],
    };
    read_transport(bytes, packet, &transport, true)
}

/// What the fixed IPv6 header tells.
struct V6 {
    /// Where the packet ends.
    end: usize,
    hop_limit: u8,
}

/// The end of a chain of extension headers.
struct Chain {
    /// Number of the header that is no extension.
    next: u8,
    /// Where it stands.
    at: usize,
    is_first_fragment: bool,
}

#[inline(always)]
fn read_ipv6(frame: &Frame<'_>, packet: &mut Packet, offset: usize, header: &[u8; 40]) -> Result<V6, Ended> {
    packet.is_ip = true;
    packet.source = words(header, 8);
    packet.destination = words(header, 24);
    if header[0] >> 4 != 6 {
        return Err(Verdict::BadLength);
    }
    let payload = usize::from(u16::from_be_bytes([header[4], header[5]]));
    // Length zero with a hop-by-hop header announces a jumbogram, whose length stands in that header (RFC 2675).
    if payload == 0 && header[6] == EXTENSION_HOP_BY_HOP {
        return Err(Verdict::ExtensionHeaders);
    }
    let end = offset + 40 + payload;
    check_total(frame, packet, end)?;
    Ok(V6 { end, hop_limit: header[7] })
}

#[inline(always)]
fn read_extensions(
    bytes: &impl Bytes,
    packet: &mut Packet,
    start: &V6,
    first: u8,
    offset: usize,
) -> Result<Chain, Ended> {
    let mut chain = Chain { next: first, at: offset, is_first_fragment: false };
    for _ in 0..MAX_EXTENSION_HEADERS {
        let length = match chain.next {
            EXTENSION_FRAGMENT => {
                let [following, _, high, low] = bytes.get(chain.at)?;
                // Behind the packet's end stands padding, which must not pass for a later fragment.
                if chain.at + 8 > start.end {
                    return Err(Verdict::BadLength);
                }
                chain.next = following;
                let fragment = u16::from_be_bytes([high, low]);
                if fragment >> 3 != 0 {
                    packet.protocol = following;
                    return Err(later_fragment(following, fragment >> 3));
                }
                chain.is_first_fragment |= fragment & 1 != 0;
                8
            }
            number if is_extension(number) => {
                let [following, units] = bytes.get(chain.at)?;
                chain.next = following;
                // RFC 4302 counts the authentication header in words of four bytes, less two; all others are counted
                // in words of eight, less one.
                if number == EXTENSION_AUTHENTICATION {
                    (usize::from(units) + 2) << 2
                } else {
                    (usize::from(units) + 1) << 3
                }
            }
            _ => break,
        };
        chain.at += length;
        if chain.at > start.end {
            return Err(Verdict::BadLength);
        }
    }
    if is_extension(chain.next) {
        packet.protocol = chain.next;
        return Err(Verdict::ExtensionHeaders);
    }
    Ok(chain)
}

#[inline(always)]
fn read_ipv6_transport(
    bytes: &impl Bytes,
    packet: &mut Packet,
    start: &V6,
    chain: &Chain,
) -> Result<(), Ended> {
    packet.protocol = chain.next;
    let transport = Transport {
        offset: chain.at,
        bytes: start.end - chain.at,
        is_first_fragment: chain.is_first_fragment,
        hop_limit: start.hop_limit,
    };
    read_transport(bytes, packet, &transport, false)
}

#[inline(always)]
fn is_extension(next: u8) -> bool {
    matches!(
        next,
        EXTENSION_HOP_BY_HOP
            | EXTENSION_ROUTING
            | EXTENSION_FRAGMENT
            | EXTENSION_AUTHENTICATION
            | EXTENSION_DESTINATION
            | EXTENSION_MOBILITY
            | EXTENSION_HIP
            | EXTENSION_SHIM6
    )
}

/// A TCP fragment at offset 8 overwrites the flags that the first fragment showed (RFC 1858 section 4).
#[inline(always)]
fn later_fragment(protocol: u8, offset: u16) -> Ended {
    if protocol == PROTOCOL_TCP && offset == 1 { Verdict::BadFragment } else { Verdict::LaterFragment }
}

/// The IP packet must end inside the frame; beyond it only padding may follow.
#[inline(always)]
fn check_total(frame: &Frame<'_>, packet: &mut Packet, end: usize) -> Result<(), Ended> {
    if end > frame.whole_bytes() {
        return Err(Verdict::BadLength);
    }
    packet.bytes = end as u64;
    Ok(())
}

#[inline(always)]
fn read_transport(
    bytes: &impl Bytes,
    packet: &mut Packet,
    transport: &Transport,
    is_v4: bool,
) -> Result<(), Ended> {
    let short = if transport.is_first_fragment { Verdict::BadFragment } else { Verdict::BadLength };
    let holds = |needed: usize| transport.bytes >= needed;
    packet.transport = transport.offset;
    match packet.protocol {
        PROTOCOL_TCP => {
            if !holds(20) {
                return Err(short);
            }
            let header: [u8; 14] = bytes.get(transport.offset)?;
            packet.source_port = u16::from_be_bytes([header[0], header[1]]);
            packet.destination_port = u16::from_be_bytes([header[2], header[3]]);
            packet.tcp_flags = header[13];
            let header_bytes = usize::from(header[12] >> 4) << 2;
            if header_bytes < 20 {
                return Err(Verdict::BadLength);
            }
            if !holds(header_bytes) {
                return Err(short);
            }
            packet.has_ports = true;
            if packet.tcp_flags & (FLAG_SYN | FLAG_ACK) == FLAG_SYN {
                packet.kind = Verdict::Syn;
            }
            packet.faults |= flag_faults(packet.tcp_flags);
        }
        PROTOCOL_UDP => {
            if !holds(8) {
                return Err(short);
            }
            let header: [u8; 6] = bytes.get(transport.offset)?;
            packet.source_port = u16::from_be_bytes([header[0], header[1]]);
            packet.destination_port = u16::from_be_bytes([header[2], header[3]]);
            let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
            // A first fragment announces the whole datagram, of which it holds a part.
            let overruns = !transport.is_first_fragment && !holds(length);
            if length < 8 || overruns {
                return Err(Verdict::BadLength);
            }
            packet.has_ports = true;
            let (low, high) = if is_v4 { (67, 68) } else { (546, 547) };
            let is_dhcp = |port: u16| port == low || port == high;
            if is_dhcp(packet.source_port) && is_dhcp(packet.destination_port) {
                packet.kind = Verdict::Dhcp;
            }
        }
        PROTOCOL_ICMP if is_v4 => {
            if !holds(8) {
                return Err(short);
            }
            packet.icmp = Icmp::Other;
            match bytes.get(transport.offset)? {
                // Destination unreachable, fragmentation needed.
                [3, 4] => packet.kind = Verdict::PathMtu,
                [8, _] => packet.icmp = Icmp::EchoRequest,
                _ => {}
            }
        }
        PROTOCOL_ICMPV6 if !is_v4 => {
            if !holds(8) {
                return Err(short);
            }
            packet.icmp = Icmp::Other;
            match bytes.get(transport.offset)? {
                [128, _] => packet.icmp = Icmp::EchoRequest,
                // Packet too big.
                [2, _] => packet.kind = Verdict::PathMtu,
                // Router and neighbour messages are valid only if no router could have forwarded them.
                [133..=137, 0] if transport.hop_limit == 255 => packet.kind = Verdict::NeighbourDiscovery,
                _ => {}
            }
        }
        protocol if is_tunnel(protocol) => packet.kind = Verdict::Tunnel,
        _ => {}
    }
    Ok(())
}

#[inline(always)]
fn is_tunnel(protocol: u8) -> bool {
    // Seven numbers in one comparison each would be seven forks; below 64 they are one bit of a word.
    let below_64 = protocol < 64 && TUNNELS_BELOW_64 >> protocol & 1 != 0;
    below_64 || protocol == TUNNEL_ETHERIP || protocol == TUNNEL_L2TP
}

/// For each flag rule, the 64 values of the six flags that break it, one bit for each value.
///
/// A rule is then a shift and a mask. Comparing flag by flag would fork the verifier at every comparison, and everything
/// behind would be verified once for each combination.
const FLAG_RULES: [(Verdict, u64); 5] = [
    (Verdict::NullFlags, values(0x3f, 0)),
    (
        Verdict::Xmas,
        values(FLAG_FIN | FLAG_PSH | FLAG_URG | FLAG_ACK, FLAG_FIN | FLAG_PSH | FLAG_URG)
            | values(FLAG_FIN | FLAG_PSH | FLAG_URG | FLAG_SYN, FLAG_FIN | FLAG_PSH | FLAG_URG | FLAG_SYN),
    ),
    (Verdict::SynFin, values(FLAG_SYN | FLAG_FIN, FLAG_SYN | FLAG_FIN)),
    (Verdict::SynRst, values(FLAG_SYN | FLAG_RST, FLAG_SYN | FLAG_RST)),
    (Verdict::FinNoAck, values(FLAG_FIN | FLAG_ACK, FLAG_FIN)),
];

/// The values of the six flags that are `wanted` where `mask` looks.
const fn values(mask: u8, wanted: u8) -> u64 {
    let mut set = 0;
    let mut flags = 0;
    while flags < 64 {
        if flags & mask == wanted {
            set |= 1 << flags;
        }
        flags += 1;
    }
    set
}

/// Which rules the flags of a TCP segment break.
#[inline(always)]
fn flag_faults(flags: u8) -> u64 {
    let value = flags & 0x3f;
    let mut faults = 0;
    let mut rule = 0;
    while rule < FLAG_RULES.len() {
        let (verdict, set) = FLAG_RULES[rule];
        faults |= (set >> value & 1) << verdict.slot();
        rule += 1;
    }
    faults
}

/// An IPv4 address mapped into `::ffff:0:0/96`, as two words with the first byte lowest.
#[inline(always)]
fn mapped(address: [u8; 4]) -> [u64; 2] {
    [0, u64::from(u32::from_le_bytes(address)) << 32 | 0xffff_0000]
}

/// The IPv6 address at `offset` of the fixed header.
#[inline(always)]
fn words(header: &[u8; 40], offset: usize) -> [u64; 2] {
    let word = |at: usize| {
        u64::from_le_bytes([
            header[at],
            header[at + 1],
            header[at + 2],
            header[at + 3],
            header[at + 4],
            header[at + 5],
            header[at + 6],
            header[at + 7],
        ])
    };
    [word(offset), word(offset + 8)]
}
