//! Frames, built header by header. Checksums are left zero, since the shield reads none.

/// A TCP FIN flag, as in byte 13 of the header.
pub const FIN: u8 = 0x01;
/// SYN.
pub const SYN: u8 = 0x02;
/// RST.
pub const RST: u8 = 0x04;
/// PSH.
pub const PSH: u8 = 0x08;
/// ACK.
pub const ACK: u8 = 0x10;
/// URG.
pub const URG: u8 = 0x20;

/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;
/// EtherType of an 802.1Q tag.
pub const VLAN: u16 = 0x8100;
/// EtherType of an 802.1ad tag.
pub const SERVICE_VLAN: u16 = 0x88a8;

/// IP protocol numbers.
pub const ICMP: u8 = 1;
/// TCP.
pub const TCP: u8 = 6;
/// UDP.
pub const UDP: u8 = 17;
/// ICMPv6.
pub const ICMPV6: u8 = 58;

/// An Ethernet frame around `payload`.
pub fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

/// `payload` behind tags of the given EtherTypes, outermost first; the last tag announces `ethertype`.
pub fn tagged(tags: &[u16], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut inner = payload.to_vec();
    let mut announced = ethertype;
    for tag in tags.iter().rev() {
        let mut outer = vec![0, 7];
        outer.extend(announced.to_be_bytes());
        outer.append(&mut inner);
        inner = outer;
        announced = *tag;
    }
    ethernet(announced, &inner)
}

/// What an IPv4 header says beyond addresses and protocol.
#[derive(Clone, Copy, Debug)]
pub struct V4 {
    /// Source.
    pub source: [u8; 4],
    /// Destination.
    pub destination: [u8; 4],
    /// Protocol number.
    pub protocol: u8,
    /// Bytes of options, a multiple of four.
    pub options: usize,
    /// Fragment offset in units of eight bytes.
    pub fragment: u16,
    /// More fragments follow.
    pub more: bool,
    /// Added to the true total length.
    pub length_error: i32,
}

/// A plain IPv4 header.
pub const fn v4(source: [u8; 4], protocol: u8) -> V4 {
    V4 {
        source,
        destination: [192, 0, 2, 1],
        protocol,
        options: 0,
        fragment: 0,
        more: false,
        length_error: 0,
    }
}

impl V4 {
    /// The IP packet with this payload.
    pub fn packet(self, payload: &[u8]) -> Vec<u8> {
        let header = 20 + self.options;
        let total = i32::try_from(header + payload.len()).unwrap_or(i32::MAX) + self.length_error;
        let fragment = self.fragment | if self.more { 0x2000 } else { 0 };
        let mut packet = vec![0x40 | u8::try_from(header / 4).unwrap_or(15), 0];
        packet.extend(u16::try_from(total).unwrap_or(u16::MAX).to_be_bytes());
        packet.extend([0, 1]);
        packet.extend(fragment.to_be_bytes());
        packet.extend([64, self.protocol, 0, 0]);
        packet.extend(self.source);
        packet.extend(self.destination);
        packet.extend(vec![1; self.options]);
        packet.extend(payload);
        packet
    }

    /// The whole frame.
    pub fn frame(self, payload: &[u8]) -> Vec<u8> {
        ethernet(IPV4, &self.packet(payload))
    }
}

/// What an IPv6 header says.
#[derive(Clone, Copy, Debug)]
pub struct V6 {
    /// Source.
    pub source: [u8; 16],
    /// Destination.
    pub destination: [u8; 16],
    /// The first next-header number.
    pub next: u8,
    /// Hop limit.
    pub hops: u8,
    /// Added to the true payload length.
    pub length_error: i32,
}

/// A plain IPv6 header.
pub const fn v6(source: [u8; 16], next: u8) -> V6 {
    let destination = [0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    V6 { source, destination, next, hops: 64, length_error: 0 }
}

impl V6 {
    /// The IP packet with this payload.
    pub fn packet(self, payload: &[u8]) -> Vec<u8> {
        let length = i32::try_from(payload.len()).unwrap_or(i32::MAX) + self.length_error;
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend(u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes());
        packet.extend([self.next, self.hops]);
        packet.extend(self.source);
        packet.extend(self.destination);
        packet.extend(payload);
        packet
    }

    /// The whole frame.
    pub fn frame(self, payload: &[u8]) -> Vec<u8> {
        ethernet(IPV6, &self.packet(payload))
    }
}

/// An IPv6 extension header of `8 * (units + 1)` bytes.
pub fn extension(next: u8, units: u8) -> Vec<u8> {
    let mut header = vec![0; 8 * (usize::from(units) + 1)];
    if let [first, second, ..] = header.as_mut_slice() {
        (*first, *second) = (next, units);
    }
    header
}

/// An IPv6 fragment header; `offset` in units of eight bytes.
pub fn fragment(next: u8, offset: u16, more: bool) -> Vec<u8> {
    let mut header = vec![next, 0];
    header.extend((offset << 3 | u16::from(more)).to_be_bytes());
    header.extend([0, 0, 0, 9]);
    header
}

/// A TCP header of `words` 32-bit words and as many bytes, with these flags.
pub fn tcp(flags: u8, words: u8) -> Vec<u8> {
    let mut header =
        vec![0x9c, 0x40, 0x01, 0xbb, 0, 0, 0, 1, 0, 0, 0, 0, words << 4, flags, 0xff, 0xff, 0, 0, 0, 0];
    header.resize(usize::from(words.max(5)) * 4, 1);
    header
}

/// A UDP datagram with `bytes` of data whose length field is wrong by `length_error`.
pub fn udp(source: u16, destination: u16, bytes: usize, length_error: i32) -> Vec<u8> {
    let length = i32::try_from(8 + bytes).unwrap_or(i32::MAX) + length_error;
    let mut datagram = Vec::new();
    datagram.extend(source.to_be_bytes());
    datagram.extend(destination.to_be_bytes());
    datagram.extend(u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(vec![0; bytes]);
    datagram
}

/// An ICMP or ICMPv6 message of eight bytes and `more`.
pub fn icmp(kind: u8, code: u8, more: usize) -> Vec<u8> {
    let mut message = vec![kind, code, 0, 0, 0, 0, 0, 0];
    message.extend(vec![0; more]);
    message
}
