//! The frames of a test connection: SYN, the segment that brings the cookie back, reset.
//!
//! They are whole down to their checksums, because the network stack reads them.

use std::net::{IpAddr, SocketAddr};

const ETHERNET_BYTES: usize = 14;
const IPV4_BYTES: usize = 20;
const IPV6_BYTES: usize = 40;
const TCP_BYTES: usize = 20;
/// TCP's number in the IP header.
const TCP: u8 = 6;

const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// What every stack in use offers (RFC 9293, RFC 7323, RFC 2018): a segment size of 1 460, SACK, a timestamp, and a window
/// scale of 7.
const OFFER: [u8; 20] = [2, 4, 0x05, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7];

/// Where the answer to a SYN goes first: a locally administered address that is nobody's.
const FAR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// Room for any answer.
pub(super) const ANSWER_BYTES: usize = 128;

/// One connection. `Debug` is left out: it would show addresses.
#[derive(Clone, Copy)]
pub(super) struct Flow {
    /// The link-layer address of the interface.
    pub(super) mac: [u8; 6],
    /// Where the test claims to come from.
    pub(super) remote: SocketAddr,
    /// The listener's address, of the same family.
    pub(super) local: SocketAddr,
    /// Sequence number of the SYN.
    pub(super) sequence: u32,
}

/// What of a SYN-ACK its answer needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cookie {
    /// The sequence number, which is the cookie.
    number: u32,
    /// The timestamp, if there is one.
    timestamp: Option<u32>,
}

impl Flow {
    /// The SYN.
    pub(super) fn syn(&self) -> Vec<u8> {
        self.segment(SYN, self.sequence, 0, u16::MAX, &OFFER)
    }

    /// The segment that brings a cookie back. Its window is 0, so that a service which speaks first sends nothing.
    pub(super) fn ack(&self, cookie: Cookie) -> Vec<u8> {
        let mut options = Vec::new();
        if let Some(echo) = cookie.timestamp {
            options.extend([1, 1, 8, 10, 0, 0, 0, 2]);
            options.extend(echo.to_be_bytes());
        }
        self.segment(ACK, self.sequence.wrapping_add(1), cookie.number.wrapping_add(1), 0, &options)
    }

    /// What ends the connection that came of it. RFC 5961: it counts only with exactly the number that is expected.
    pub(super) fn reset(&self) -> Vec<u8> {
        self.segment(RST, self.sequence.wrapping_add(1), 0, 0, &[])
    }

    /// The cookie in the shield's answer to the SYN; `None` if it is no such answer.
    pub(super) fn cookie(&self, answer: &[u8]) -> Option<Cookie> {
        let ip_bytes = if self.local.is_ipv4() { IPV4_BYTES } else { IPV6_BYTES };
        let tcp = answer.get(ETHERNET_BYTES + ip_bytes..)?;
        let word = |at: usize| Some(u32::from_be_bytes(tcp.get(at..at + 4)?.try_into().ok()?));
        let is_answer = *tcp.get(13)? == SYN | ACK && word(8)? == self.sequence.wrapping_add(1);
        if !is_answer {
            return None;
        }
        let mut options = tcp.get(TCP_BYTES..usize::from(*tcp.get(12)? >> 4) * 4)?;
        let mut timestamp = None;
        while let [kind, rest @ ..] = options {
            let length = match (kind, rest) {
                (0, _) => break,
                (1, _) => 1,
                (_, [length, ..]) if *length >= 2 => usize::from(*length),
                (_, _) => return None,
            };
            if let (8, [10, a, b, c, d, ..]) = (kind, rest) {
                timestamp = Some(u32::from_be_bytes([*a, *b, *c, *d]));
            }
            options = options.get(length..)?;
        }
        Some(Cookie { number: word(4)?, timestamp })
    }

    fn segment(&self, flags: u8, sequence: u32, acknowledged: u32, window: u16, options: &[u8]) -> Vec<u8> {
        let mut tcp = Vec::new();
        tcp.extend(self.remote.port().to_be_bytes());
        tcp.extend(self.local.port().to_be_bytes());
        tcp.extend(sequence.to_be_bytes());
        tcp.extend(acknowledged.to_be_bytes());
        // The header's length in words of four bytes; options are whole words.
        let words = u8::try_from((TCP_BYTES + options.len()) / 4).unwrap_or(u8::MAX);
        tcp.extend([words << 4, flags]);
        tcp.extend(window.to_be_bytes());
        tcp.extend([0; 4]);
        tcp.extend(options);
        let length = u16::try_from(tcp.len()).unwrap_or(u16::MAX);
        let mut frame = Vec::new();
        frame.extend(self.mac);
        frame.extend(FAR_MAC);
        let addresses = [octets(self.remote.ip()), octets(self.local.ip())].concat();
        let sum = checksum(&[&addresses, &[0, TCP], &length.to_be_bytes(), &tcp]);
        if let Some(place) = tcp.get_mut(16..18) {
            place.copy_from_slice(&sum);
        }
        if self.local.is_ipv4() {
            frame.extend([0x08, 0x00]);
            let mut ip = vec![0x45, 0];
            ip.extend(length.saturating_add(20).to_be_bytes());
            ip.extend([0, 0, 0x40, 0, 64, TCP, 0, 0]);
            ip.extend(addresses);
            let sum = checksum(&[&ip]);
            if let Some(place) = ip.get_mut(10..12) {
                place.copy_from_slice(&sum);
            }
            frame.extend(ip);
        } else {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(length.to_be_bytes());
            frame.extend([TCP, 64]);
            frame.extend(addresses);
        }
        frame.extend(tcp);
        frame
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// The Internet checksum (RFC 1071) of parts of an even length each.
fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let halves = parts.iter().flat_map(|part| part.chunks_exact(2));
    let sum: u32 = halves
        .filter_map(|half| <[u8; 2]>::try_from(half).ok())
        .map(|half| u32::from(u16::from_be_bytes(half)))
        .sum();
    let once = (sum & 0xffff) + (sum >> 16);
    let twice = (once & 0xffff) + (once >> 16);
    (!u16::try_from(twice).unwrap_or(u16::MAX)).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flows() -> [Flow; 2] {
        ["192.0.2.253:5 198.51.100.7:443", "[2001:db8::1]:5 [2001:db8::2]:443"].map(|text| {
            let (remote, local) = text.split_once(' ').unwrap();
            let (remote, local) = (remote.parse().unwrap(), local.parse().unwrap());
            Flow { mac: [2, 0, 0, 0, 9, 9], remote, local, sequence: u32::MAX }
        })
    }

    /// The answer that the shield would make: the SYN turned round.
    fn answer(flow: &Flow, flags: u8, acknowledged: u32, options: &[u8]) -> Vec<u8> {
        let back = Flow { remote: flow.local, local: flow.remote, ..*flow };
        back.segment(flags, 77, acknowledged, 9, options)
    }

    #[test]
    fn checksums_are_right() {
        for flow in flows() {
            for frame in [flow.syn(), flow.ack(Cookie { number: 7, timestamp: Some(8) }), flow.reset()] {
                let ip_bytes = if flow.local.is_ipv4() { IPV4_BYTES } else { IPV6_BYTES };
                let (ip, tcp) = frame[ETHERNET_BYTES..].split_at(ip_bytes);
                if flow.local.is_ipv4() {
                    assert_eq!(checksum(&[ip]), [0, 0]);
                    assert_eq!(usize::from(ip[3]), frame.len() - ETHERNET_BYTES);
                }
                let addresses = if flow.local.is_ipv4() { &ip[12..] } else { &ip[8..] };
                let length = u16::try_from(tcp.len()).unwrap().to_be_bytes();
                assert_eq!(checksum(&[addresses, &[0, TCP], &length, tcp]), [0, 0]);
                assert_eq!(usize::from(tcp[12] >> 4) * 4, tcp.len());
            }
        }
    }

    #[test]
    fn cookies_are_read_and_nothing_else() {
        let timestamp = [1, 1, 8, 10, 0, 0, 1, 2, 0, 0, 0, 0];
        for flow in flows() {
            // Flags, acknowledged, options, cookie's timestamp.
            for (flags, acknowledged, options, expected) in [
                (SYN | ACK, 0, &[2, 4, 5, 0xb4][..], Some(None)),
                (SYN | ACK, 0, &timestamp[..], Some(Some(0x102))),
                (SYN | ACK, 0, &[1, 1, 0, 0][..], Some(None)),
                (SYN | ACK, 1, &timestamp[..], None),
                (SYN, 0, &timestamp[..], None),
                (RST | ACK, 0, &[][..], None),
                // Options that end too early, or nowhere.
                (SYN | ACK, 0, &[8, 0, 0, 0][..], None),
                (SYN | ACK, 0, &[1, 1, 1, 8][..], None),
                (SYN | ACK, 0, &[1, 1, 8, 10][..], None),
            ] {
                let frame = answer(&flow, flags, acknowledged, options);
                let expected = expected.map(|timestamp| Cookie { number: 77, timestamp });
                assert_eq!(flow.cookie(&frame), expected, "{flags} {acknowledged} {options:?}");
                for length in 0..frame.len() {
                    assert!(flow.cookie(&frame[..length]).is_none_or(|cookie| Some(cookie) == expected));
                }
            }
        }
    }
}
