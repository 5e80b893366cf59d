//! All reads of packet bytes.
//!
//! Sources: IEEE 802.3 and 802.1Q (Ethernet, VLAN), RFC 791 (IPv4), RFC 8200 (IPv6), RFC 9293 (TCP), RFC 768 (UDP),
//! RFC 792 and RFC 4443 (ICMP). `unsafe` here reads packet bytes; [`bytes`] checks every one against the end of
//! the buffer first, as the verifier demands again.

use core::arch::asm;

use aya_ebpf::{EbpfContext, helpers::generated::bpf_xdp_get_buff_len, programs::XdpContext};
use tunica_common::{
    policy::{MAX_EXTENSION_HEADERS, MAX_VLAN_TAGS},
    verdict::Verdict,
};

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_SERVICE_VLAN: u16 = 0x88a8;
const ETHERNET_BYTES: usize = 14;
const VLAN_BYTES: usize = 4;

const PROTOCOL_ICMP: u8 = 1;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;
const PROTOCOL_ICMPV6: u8 = 58;
const EXTENSION_HOP_BY_HOP: u8 = 0;
const EXTENSION_ROUTING: u8 = 43;
const EXTENSION_FRAGMENT: u8 = 44;
const EXTENSION_AUTHENTICATION: u8 = 51;
const EXTENSION_DESTINATION: u8 = 60;
const EXTENSION_MOBILITY: u8 = 135;
const EXTENSION_HIP: u8 = 139;
const EXTENSION_SHIM6: u8 = 140;

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
    /// Frame length in bytes; of a multi-buffer packet, as far as the IP header tells.
    pub bytes: u64,
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

    /// Length of the first buffer in bytes.
    #[inline(always)]
    pub fn linear_bytes(&self) -> usize {
        self.end - self.start
    }

    /// Length of the whole packet, all buffers, in bytes.
    #[inline(always)]
    fn whole_bytes(&self) -> usize {
        // SAFETY: the context pointer is the one the kernel gave.
        unsafe { bpf_xdp_get_buff_len(self.ctx.as_ptr().cast()) as usize }
    }

    /// Index of the interface that the packet arrived on.
    #[inline(always)]
    pub fn interface(&self) -> u32 {
        // SAFETY: as above; the verifier turns the read into the device's index.
        unsafe { (*self.ctx.ctx).ingress_ifindex }
    }

    /// Copies `N` bytes at `offset`, or tells why they are not there.
    #[inline(always)]
    fn bytes<const N: usize>(&self, offset: usize) -> Result<[u8; N], Ended> {
        // The verifier wants every variable offset bounded; six extension headers of 2 KiB each stay below 16 KiB.
        let at = self.start + (offset & 0x3fff);
        if at + N > self.end {
            return Err(self.beyond());
        }
        // SAFETY: the line above showed that all N bytes lie in the packet.
        Ok(unsafe { (at as *const [u8; N]).read_unaligned() })
    }

    /// What it means that bytes were not in the first buffer: cut off, or merely out of sight.
    #[inline(always)]
    fn beyond(&self) -> Ended {
        if self.whole_bytes() > self.linear_bytes() { Verdict::NonLinear } else { Verdict::BadLength }
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
        bytes: frame.linear_bytes() as u64,
    };
    if let Err(ended) = read_ethernet(frame, &mut packet) {
        match ended {
            Verdict::BadLength | Verdict::BadFragment => packet.faults |= ended.bit(),
            ended => packet.kind = ended,
        }
    }
    packet
}

#[inline(always)]
fn read_ethernet(frame: &Frame<'_>, packet: &mut Packet) -> Result<(), Ended> {
    let mut ethertype = u16::from_be_bytes(frame.bytes(12)?);
    let mut offset = ETHERNET_BYTES;
    for _ in 0..MAX_VLAN_TAGS {
        if !is_vlan(ethertype) {
            break;
        }
        ethertype = u16::from_be_bytes(frame.bytes(offset + 2)?);
        offset += VLAN_BYTES;
    }
    match ethertype {
        ETHERTYPE_IPV4 => read_ipv4(frame, packet, offset),
        ETHERTYPE_IPV6 => read_ipv6(frame, packet, offset),
        ETHERTYPE_ARP => Err(Verdict::Arp),
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
    /// Bytes from `offset` to the end of the IP packet; 0 if unknown (a jumbogram, RFC 2675).
    bytes: usize,
    is_first_fragment: bool,
    hop_limit: u8,
}

#[inline(always)]
fn read_ipv4(frame: &Frame<'_>, packet: &mut Packet, offset: usize) -> Result<(), Ended> {
    let header: [u8; 20] = frame.bytes(offset)?;
    packet.is_ip = true;
    packet.is_v4 = true;
    packet.source = mapped([header[12], header[13], header[14], header[15]]);
    packet.destination = mapped([header[16], header[17], header[18], header[19]]);
    packet.protocol = header[9];
    let header_bytes = usize::from(header[0] & 0x0f) << 2;
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
    // A first fragment that holds no transport byte at all hides its header like any other that is too short.
    read_transport(frame, packet, &transport, true)
}

#[inline(always)]
fn read_ipv6(frame: &Frame<'_>, packet: &mut Packet, offset: usize) -> Result<(), Ended> {
    let header: [u8; 40] = frame.bytes(offset)?;
    packet.is_ip = true;
    packet.source = words(&header, 8);
    packet.destination = words(&header, 24);
    let payload = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let mut next = header[6];
    if header[0] >> 4 != 6 {
        return Err(Verdict::BadLength);
    }
    // Length zero with a hop-by-hop header announces a jumbogram, whose length stands in that header.
    let is_jumbo = payload == 0 && next == EXTENSION_HOP_BY_HOP;
    let end = offset + 40 + payload;
    if !is_jumbo {
        check_total(frame, packet, end)?;
    }
    let mut at = offset + 40;
    let mut is_first_fragment = false;
    for _ in 0..MAX_EXTENSION_HEADERS {
        let length = match next {
            EXTENSION_HOP_BY_HOP
            | EXTENSION_ROUTING
            | EXTENSION_DESTINATION
            | EXTENSION_MOBILITY
            | EXTENSION_HIP
            | EXTENSION_SHIM6 => {
                let [following, units] = frame.bytes(at)?;
                next = following;
                (usize::from(units) + 1) << 3
            }
            EXTENSION_AUTHENTICATION => {
                let [following, units] = frame.bytes(at)?;
                next = following;
                (usize::from(units) + 2) << 2
            }
            EXTENSION_FRAGMENT => {
                let [following, _, high, low] = frame.bytes(at)?;
                next = following;
                let fragment = u16::from_be_bytes([high, low]);
                if fragment >> 3 != 0 {
                    packet.protocol = next;
                    return Err(later_fragment(next, fragment >> 3));
                }
                is_first_fragment |= fragment & 1 != 0;
                8
            }
            _ => break,
        };
        at += length;
        if !is_jumbo && at > end {
            return Err(Verdict::BadLength);
        }
    }
    packet.protocol = next;
    if is_extension(next) {
        return Err(Verdict::ExtensionHeaders);
    }
    let bytes = if is_jumbo { 0 } else { end - at };
    // A header chain of length `end - at == 0` would read as "unknown"; only "no next header" may end so.
    if !is_jumbo && bytes == 0 && has_header(next, false) {
        return Err(if is_first_fragment { Verdict::BadFragment } else { Verdict::BadLength });
    }
    let transport = Transport { offset: at, bytes, is_first_fragment, hop_limit: header[7] };
    read_transport(frame, packet, &transport, false)
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

/// Whether the rules read a header of this protocol.
#[inline(always)]
fn has_header(protocol: u8, is_v4: bool) -> bool {
    protocol == PROTOCOL_TCP
        || protocol == PROTOCOL_UDP
        || protocol == if is_v4 { PROTOCOL_ICMP } else { PROTOCOL_ICMPV6 }
}

/// A TCP fragment at offset 8 overwrites the flags that the first fragment showed (RFC 1858 section 4).
#[inline(always)]
fn later_fragment(protocol: u8, offset: u16) -> Ended {
    if protocol == PROTOCOL_TCP && offset == 1 { Verdict::BadFragment } else { Verdict::LaterFragment }
}

/// The IP packet must end inside the frame; beyond it only padding may follow.
#[inline(always)]
fn check_total(frame: &Frame<'_>, packet: &mut Packet, end: usize) -> Result<(), Ended> {
    if end > frame.linear_bytes() {
        if end > frame.whole_bytes() {
            return Err(Verdict::BadLength);
        }
        packet.bytes = end as u64;
    }
    Ok(())
}

#[inline(always)]
fn read_transport(
    frame: &Frame<'_>,
    packet: &mut Packet,
    transport: &Transport,
    is_v4: bool,
) -> Result<(), Ended> {
    let short = if transport.is_first_fragment { Verdict::BadFragment } else { Verdict::BadLength };
    let known = is_v4 || transport.bytes != 0;
    let holds = |needed: usize| !known || transport.bytes >= needed;
    match packet.protocol {
        PROTOCOL_TCP => {
            if !holds(20) {
                return Err(short);
            }
            let header: [u8; 14] = frame.bytes(transport.offset)?;
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
            packet.faults |= flag_faults(packet.tcp_flags);
        }
        PROTOCOL_UDP => {
            if !holds(8) {
                return Err(short);
            }
            let header: [u8; 6] = frame.bytes(transport.offset)?;
            packet.source_port = u16::from_be_bytes([header[0], header[1]]);
            packet.destination_port = u16::from_be_bytes([header[2], header[3]]);
            let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
            // A first fragment announces the whole datagram, of which it holds a part. A jumbogram announces 0.
            if known && (length < 8 || (!transport.is_first_fragment && !holds(length))) {
                return Err(Verdict::BadLength);
            }
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
            // Destination unreachable, fragmentation needed.
            if let [3, 4] = frame.bytes(transport.offset)? {
                packet.kind = Verdict::PathMtu;
            }
        }
        PROTOCOL_ICMPV6 if !is_v4 => {
            if !holds(8) {
                return Err(short);
            }
            match frame.bytes(transport.offset)? {
                // Packet too big.
                [2, _] => packet.kind = Verdict::PathMtu,
                // Router and neighbour messages are valid only if no router could have forwarded them.
                [133..=137, 0] if transport.hop_limit == 255 => packet.kind = Verdict::NeighbourDiscovery,
                _ => {}
            }
        }
        _ => {}
    }
    Ok(())
}

/// Which rules the flags of a TCP segment break.
#[inline(always)]
fn flag_faults(flags: u8) -> u64 {
    let has = |wanted: u8| flags & wanted == wanted;
    let lacks_ack = flags & FLAG_ACK == 0;
    let mut faults = 0;
    if flags & (FLAG_FIN | FLAG_SYN | FLAG_RST | FLAG_PSH | FLAG_ACK | FLAG_URG) == 0 {
        faults |= Verdict::NullFlags.bit();
    }
    if has(FLAG_FIN | FLAG_PSH | FLAG_URG) && (lacks_ack || has(FLAG_SYN)) {
        faults |= Verdict::Xmas.bit();
    }
    if has(FLAG_SYN | FLAG_FIN) {
        faults |= Verdict::SynFin.bit();
    }
    if has(FLAG_SYN | FLAG_RST) {
        faults |= Verdict::SynRst.bit();
    }
    if has(FLAG_FIN) && lacks_ack {
        faults |= Verdict::FinNoAck.bit();
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
