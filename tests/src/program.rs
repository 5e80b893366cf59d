//! Kernel programs of tests and benchmarks, instruction by instruction (Documentation/bpf/standardization in the kernel's
//! tree): they drop, pass, write packets, and send them.
//!
//! They are so small that a compiler would only stand in the way of knowing what is measured.

use std::{
    net::Ipv4Addr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

use anyhow::{Context, Result, bail};

use crate::{
    frame::{ICMP, ICMPV6, IPV4, IPV6, TCP, UDP},
    sys::bpf,
};

/// Where the IP header begins, behind an Ethernet header without tags.
const IP: usize = 14;
/// Where the source address stands in IPv4. In IPv6 the same place is inside the source's /64, so that whoever writes four
/// bytes there gives either family another source.
const SOURCE: usize = IP + 12;

const TAIL_CALL: i32 = 12;
const REDIRECT: i32 = 23;
const RANDOM: i32 = 7;

const XDP_ABORTED: i32 = 0;
/// What a program returns for a packet that is dropped (include/uapi/linux/bpf.h).
pub const XDP_DROP: u32 = 1;
/// What it returns for one that is passed.
pub const XDP_PASS: u32 = 2;
/// What it returns for one that is sent back.
pub const XDP_TX: u32 = 3;

/// How many sources [`Counter`] has.
pub const COUNTED: u64 = 1 << 30;

/// Where sources come from that are not in the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sources {
    /// All of 128.0.0.0/1, at random.
    HalfTheInternet,
    /// This many addresses from the first one on, at random.
    Block(Ipv4Addr, i32),
    /// All of 128.0.0.0/2 in turn, in an order that looks random; see [`Counter::sources`].
    EachAnother(RawFd),
}

/// Numbers the frames of all generators that use it, so that each has another source.
#[derive(Debug)]
pub struct Counter(OwnedFd);

impl Counter {
    /// A counter at 0.
    ///
    /// # Errors
    /// When the kernel has no memory for it.
    pub fn new() -> Result<Self> {
        bpf::counter().map(Self).context("making a counter")
    }

    /// Sources of which none comes twice in the first [`COUNTED`] frames: the frame's number times an odd number modulo a
    /// power of two, which is a permutation.
    pub fn sources(&self) -> Sources {
        Sources::EachAnother(self.0.as_raw_fd())
    }

    /// Frames numbered so far.
    ///
    /// # Errors
    /// The system call's.
    pub fn count(&self) -> Result<u64> {
        bpf::count(self.0.as_fd()).context("reading a counter")
    }
}

const fn instruction(code: u8, target: u8, source: u8, offset: i16, immediate: i32) -> u64 {
    code as u64
        | (target as u64) << 8
        | (source as u64) << 12
        | (offset.cast_unsigned() as u64) << 16
        | (immediate.cast_unsigned() as u64) << 32
}

const fn copy(target: u8, source: u8) -> u64 {
    instruction(0xbf, target, source, 0, 0)
}

const fn set(target: u8, value: i32) -> u64 {
    instruction(0xb7, target, 0, 0, value)
}

const fn load_word(target: u8, from: u8, offset: i16) -> u64 {
    instruction(0x61, target, from, offset, 0)
}

const fn call(helper: i32) -> u64 {
    instruction(0x85, 0, 0, 0, helper)
}

const EXIT: u64 = instruction(0x95, 0, 0, 0, 0);

/// Two instructions: the least that a program that drops can do.
///
/// # Errors
/// When the kernel refuses it.
pub fn drop() -> Result<OwnedFd> {
    load(&[set(0, XDP_DROP.cast_signed()), EXIT], true)
}

/// Two instructions that let every packet pass.
///
/// # Errors
/// When the kernel refuses it.
pub fn pass() -> Result<OwnedFd> {
    load(&[set(0, XDP_PASS.cast_signed()), EXIT], true)
}

/// A program that writes into the packet and goes on with another, unmodified program.
#[derive(Debug)]
pub struct Wrapped {
    program: OwnedFd,
    /// Its entry is the other program; the kernel empties it when nobody holds it.
    _next: OwnedFd,
}

impl Wrapped {
    /// Writes a source address, and nothing else, before `next`. The kernel joins only programs that agree on whether they
    /// take packets of many buffers, so this finds out by trying.
    ///
    /// # Errors
    /// When the kernel refuses both ways.
    pub fn around(next: BorrowedFd<'_>, sources: Sources) -> Result<Self> {
        Self::with(next, &writing_source(sources)?)
    }

    /// Writes the whole frame before `next`, which may have overwritten it, with a source of `sources` if there are any.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn renewing(next: BorrowedFd<'_>, sources: Option<Sources>, frame: &[u8]) -> Result<Self> {
        Self::with(next, &writing_frame(sources, frame, false)?)
    }

    fn with(next: BorrowedFd<'_>, writing: &Writing) -> Result<Self> {
        Self::linked(next, writing, true).or_else(|_| Self::linked(next, writing, false))
    }

    fn linked(next: BorrowedFd<'_>, writing: &Writing, frags: bool) -> Result<Self> {
        let array = bpf::program_array().context("making a program array")?;
        let mut end = vec![copy(1, 6)];
        end.extend([instruction(0x18, 2, 1, 0, array.as_raw_fd()), 0]);
        end.extend([set(3, 0), call(TAIL_CALL)]);
        let program = load(&writing.then(&end)?, frags)?;
        bpf::set_program(array.as_fd(), next).context("putting a program behind the wrapper")?;
        Ok(Self { program, _next: array })
    }
}

impl AsFd for Wrapped {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.program.as_fd()
    }
}

/// A program that sends `frame` out of an interface each time it is run, with a source of `sources` if there are any.
///
/// The receiver may write to the frames: each is written anew. All checksums come out right.
///
/// # Errors
/// When the kernel refuses it, or the frame is none that has a source and checksums here.
pub fn generator(interface: u32, sources: Option<Sources>, frame: &[u8]) -> Result<OwnedFd> {
    let interface = i32::try_from(interface).context("an interface's index")?;
    let end = [set(1, interface), set(2, 0), call(REDIRECT), EXIT];
    load(&writing_frame(sources, frame, true)?.then(&end)?, false)
}

/// Instructions that write into a packet.
struct Writing {
    /// Before the packet's end is looked at.
    before: Vec<u64>,
    /// Up to which byte it writes.
    end: usize,
    /// With r2 at the packet's beginning.
    body: Vec<u64>,
}

impl Writing {
    /// The whole program: it writes, does `end`, and returns; with r6 as the context.
    fn then(&self, end: &[u64]) -> Result<Vec<u64>> {
        let mut code = vec![copy(6, 1)];
        code.extend(&self.before);
        code.extend([load_word(2, 6, 0), load_word(3, 6, 4), copy(4, 2)]);
        code.push(instruction(0x07, 4, 0, 0, i32::try_from(self.end)?));
        // Too short a packet is nobody's.
        let over = i16::try_from(self.body.len() + end.len())?;
        code.push(instruction(0x2d, 4, 3, over, 0));
        code.extend(&self.body);
        code.extend(end);
        code.extend([set(0, XDP_ABORTED), EXIT]);
        Ok(code)
    }
}

fn writing_source(sources: Sources) -> Result<Writing> {
    Ok(Writing { before: draw(sources), end: SOURCE + 4, body: vec![store_source()?] })
}

fn store_source() -> Result<u64> {
    Ok(instruction(0x63, 2, 0, i16::try_from(SOURCE)?, 0))
}

fn writing_frame(sources: Option<Sources>, frame: &[u8], has_sums: bool) -> Result<Writing> {
    let mut body = Vec::new();
    for (index, piece) in frame.chunks(4).enumerate() {
        let at = i16::try_from(4 * index)?;
        match piece {
            [a, b, c, d] => body.push(instruction(0x62, 2, 0, at, i32::from_ne_bytes([*a, *b, *c, *d]))),
            piece => {
                for (place, byte) in (at..).zip(piece) {
                    body.push(instruction(0x72, 2, 0, place, i32::from(*byte)));
                }
            }
        }
    }
    let before = sources.map(draw).unwrap_or_default();
    if sources.is_some() {
        body.push(store_source()?);
        if has_sums {
            // The one's-complement sum works in either byte order (RFC 1071, section 2), so it is done in the machine's.
            body.extend([copy(7, 0), instruction(0x57, 7, 0, 0, 0xffff), instruction(0x77, 0, 0, 0, 16)]);
            body.push(instruction(0x0f, 7, 0, 0, 0));
        }
    }
    if has_sums {
        for sum in sums(frame, sources.is_some())? {
            // Without another source the sum is known already.
            body.push(if sources.is_some() && sum.covers_source { copy(0, 7) } else { set(0, 0) });
            body.push(instruction(0x07, 0, 0, 0, sum.rest));
            for _ in 0..2 {
                body.extend([copy(1, 0), instruction(0x77, 1, 0, 0, 16)]);
                body.extend([instruction(0x57, 0, 0, 0, 0xffff), instruction(0x0f, 0, 1, 0, 0)]);
            }
            body.push(instruction(0xa7, 0, 0, 0, 0xffff));
            body.push(instruction(0x6b, 2, 0, i16::try_from(sum.at)?, 0));
        }
    }
    Ok(Writing { before, end: frame.len(), body })
}

/// Leaves a source address in r0, as it stands in a packet, and spoils r1 to r5.
fn draw(sources: Sources) -> Vec<u64> {
    match sources {
        // The first byte in the packet is the lowest of the register on a little-endian machine.
        Sources::HalfTheInternet => vec![call(RANDOM), instruction(0x47, 0, 0, 0, 0x80)],
        Sources::Block(first, count) => vec![
            call(RANDOM),
            // r0 = (r0 * count) >> 32, which is below `count`; then the address in network order.
            instruction(0xbc, 0, 0, 0, 0),
            instruction(0x27, 0, 0, 0, count),
            instruction(0x77, 0, 0, 0, 32),
            instruction(0x07, 0, 0, 0, first.to_bits().cast_signed()),
            instruction(0xdc, 0, 0, 0, 32),
        ],
        Sources::EachAnother(counter) => vec![
            // r1 = where the counter is (BPF_PSEUDO_MAP_VALUE); r0 = its next number.
            instruction(0x18, 1, 2, 0, counter),
            0,
            instruction(0x79, 0, 1, 0, 0),
            instruction(0x07, 0, 0, 0, 1),
            instruction(0x7b, 1, 0, 0, 0),
            // In 32 bits: times an odd number, modulo 2^30, in 128.0.0.0/2, in network order.
            instruction(0x24, 0, 0, 0, 0x9e37_79b1_u32.cast_signed()),
            instruction(0x54, 0, 0, 0, 0x3fff_ffff),
            instruction(0x44, 0, 0, 0, 0x8000_0000_u32.cast_signed()),
            instruction(0xdc, 0, 0, 0, 32),
        ],
    }
}

/// A checksum of a frame.
struct Sum {
    /// Where it stands.
    at: usize,
    /// The sum of all that it covers but itself and, if another source is written, the source, in the machine's byte order.
    rest: i32,
    covers_source: bool,
}

/// The checksums of a frame of IPv4 without options or IPv6 without extension headers.
fn sums(frame: &[u8], is_source_written: bool) -> Result<Vec<Sum>> {
    let mut zeroed = frame.to_vec();
    let zero = |frame: &mut Vec<u8>, range: std::ops::Range<usize>| {
        frame.get_mut(range).map(|part| part.fill(0)).context("a frame that is too short")
    };
    let kind = frame.get(12..14).context("a frame without a header")?;
    let is_v4 = kind == IPV4.to_be_bytes();
    if !is_v4 && kind != IPV6.to_be_bytes() {
        bail!("a frame that is not IP");
    }
    let (header, protocol_at, addresses) = if is_v4 { (20, 23, 26..34) } else { (40, 20, 22..54) };
    let transport = IP + header;
    let protocol = *frame.get(protocol_at).context("a frame without an IP header")?;
    let at = transport
        + match protocol {
            TCP => 16,
            UDP => 6,
            ICMP | ICMPV6 => 2,
            other => bail!("protocol {other} has no checksum that is known here"),
        };
    if is_source_written {
        zero(&mut zeroed, SOURCE..SOURCE + 4)?;
    }
    if is_v4 {
        zero(&mut zeroed, 24..26)?;
    }
    zero(&mut zeroed, at..at + 2)?;
    let part = |range: std::ops::Range<usize>| zeroed.get(range).context("a frame that is too short");
    let mut found = Vec::new();
    if is_v4 {
        found.push(Sum { at: 24, rest: sum(part(IP..transport)?), covers_source: true });
    }
    // The frame may be longer than the packet, which its header tells.
    let length_at = if is_v4 { 16 } else { 18 };
    let &[high, low] = part(length_at..length_at + 2)? else { bail!("a length of two bytes") };
    let length = u16::from_be_bytes([high, low]).saturating_sub(if is_v4 { 20 } else { 0 });
    let segment = sum(part(transport..transport + usize::from(length))?);
    let pseudo = sum(part(addresses)?) + sum(&length.to_be_bytes()) + sum(&[0, protocol]);
    // Of the four, ICMP alone does not cover the addresses (RFC 792).
    let covers_source = protocol != ICMP;
    found.push(Sum { at, rest: segment + if covers_source { pseudo } else { 0 }, covers_source });
    Ok(found)
}

/// The sum of 16-bit words in the machine's byte order, an odd byte filled with zero.
fn sum(bytes: &[u8]) -> i32 {
    let word = |pair: &[u8]| match pair {
        [one, other] => u16::from_ne_bytes([*one, *other]),
        [one] => u16::from_ne_bytes([*one, 0]),
        _ => 0,
    };
    bytes.chunks(2).map(|pair| i32::from(word(pair))).sum()
}

fn load(code: &[u64], frags: bool) -> Result<OwnedFd> {
    bpf::load_xdp(code, frags).context("loading a program of the tests")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        flood::checksum,
        frame::{SYN, icmp, tcp, udp, v4, v6},
    };

    /// The checksum that a generator writes, given the source that it drew.
    fn written(sum: &Sum, source: [u8; 4]) -> [u8; 2] {
        let source = if sum.covers_source { super::sum(&source) } else { 0 };
        let mut sum = (sum.rest + source).cast_unsigned();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::to_ne_bytes(!u16::try_from(sum).unwrap())
    }

    #[test]
    fn checksums_come_out_right_whatever_the_source() {
        const SIX: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];
        let drawn = [198, 51, 100, 7];
        for (protocol, payload) in [
            (TCP, tcp(SYN, 5)),
            (UDP, udp(40_000, 53, 17, 0)),
            (ICMP, icmp(8, 0, 56)),
            (ICMPV6, icmp(128, 0, 56)),
        ] {
            for mut frame in [v4([9; 4], protocol).frame(&payload), v6(SIX, protocol).frame(&payload)] {
                // Bytes behind the packet, as a short frame has them, belong to no checksum.
                frame.extend([7; 3]);
                let sums = sums(&frame, true).unwrap();
                frame.splice(SOURCE..SOURCE + 4, drawn);
                for sum in &sums {
                    frame.splice(sum.at..sum.at + 2, written(sum, drawn));
                }
                let is_v4 = frame[12] == 8;
                let transport = if is_v4 { 34 } else { 54 };
                let mut segment = frame[transport..frame.len() - 3].to_vec();
                let length = u16::try_from(segment.len()).unwrap().to_be_bytes();
                segment.resize(segment.len().next_multiple_of(2), 0);
                let addresses = if is_v4 { &frame[26..34] } else { &frame[22..54] };
                let pseudo = [addresses, &length, &[0, protocol]].concat();
                let pseudo = if protocol == ICMP { &[] } else { &pseudo[..] };
                assert_eq!(checksum(&[pseudo, &segment]), [0, 0], "{protocol}, IPv4: {is_v4}");
                if is_v4 {
                    assert_eq!(checksum(&[&frame[14..34]]), [0, 0]);
                }
            }
        }
    }

    #[test]
    fn no_source_of_a_counter_comes_twice() {
        // What `draw` lets the kernel compute.
        let source = |number: u32| number.wrapping_mul(0x9e37_79b1) & 0x3fff_ffff | 0x8000_0000;
        let sources: std::collections::BTreeSet<u32> = (1..=100_000).map(source).collect();
        assert_eq!(sources.len(), 100_000);
        // An odd number has an inverse modulo a power of two, so that no two numbers below it share a product.
        assert_eq!(0x9e37_79b1_u32 % 2, 1);
    }
}
