//! The benchmark's own kernel programs, instruction by instruction (Documentation/bpf/standardization in the kernel's tree).
//!
//! They are so small that a compiler would only stand in the way of knowing what is measured.

use std::{
    net::Ipv4Addr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use anyhow::{Context, Result};
use tunica_tests::sys::bpf;

/// Where the IPv4 header begins, behind an Ethernet header without tags.
const IPV4: i16 = 14;
/// Where its checksum stands.
const CHECKSUM: i16 = IPV4 + 10;
/// Where its source address stands.
const SOURCE: i16 = IPV4 + 12;

const TAIL_CALL: i32 = 12;
const REDIRECT: i32 = 23;
const RANDOM: i32 = 7;

const XDP_ABORTED: i32 = 0;
pub(crate) const XDP_DROP: u32 = 1;
pub(crate) const XDP_PASS: u32 = 2;

/// Where random sources come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sources {
    /// All of 128.0.0.0/1.
    HalfTheInternet,
    /// This many addresses from the first one on.
    Block(Ipv4Addr, i32),
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
pub(crate) fn drop() -> Result<OwnedFd> {
    load(&[set(0, XDP_DROP.cast_signed()), EXIT], true)
}

/// Two instructions that let every packet pass.
pub(crate) fn pass() -> Result<OwnedFd> {
    load(&[set(0, XDP_PASS.cast_signed()), EXIT], true)
}

/// A program that writes a random source address into the packet and goes on with another, unmodified program.
#[derive(Debug)]
pub(crate) struct Wrapped {
    program: OwnedFd,
    /// Its entry is the other program; the kernel empties it when nobody holds it.
    _next: OwnedFd,
}

impl Wrapped {
    /// Wraps `next`. The kernel joins only programs that agree on whether they take packets of many buffers, so this
    /// finds out by trying.
    ///
    /// # Errors
    /// When the kernel refuses both ways.
    pub(crate) fn around(next: BorrowedFd<'_>, sources: Sources) -> Result<Self> {
        Self::with(next, sources, true).or_else(|_| Self::with(next, sources, false))
    }

    fn with(next: BorrowedFd<'_>, sources: Sources, frags: bool) -> Result<Self> {
        let array = bpf::program_array().context("making a program array")?;
        let mut code = vec![copy(6, 1)];
        code.extend(draw(sources));
        // r2 = data; give up at the end if the packet is too short for its source address.
        code.extend([load_word(2, 6, 0), load_word(3, 6, 4), copy(4, 2)]);
        code.push(instruction(0x07, 4, 0, 0, i32::from(SOURCE) + 4));
        code.push(instruction(0x2d, 4, 3, 7, 0));
        code.push(instruction(0x63, 2, 0, SOURCE, 0));
        code.push(copy(1, 6));
        code.extend([instruction(0x18, 2, 1, 0, array.as_raw_fd()), 0]);
        code.extend([set(3, 0), call(TAIL_CALL)]);
        code.extend([set(0, XDP_ABORTED), EXIT]);
        let program = load(&code, frags)?;
        bpf::set_program(array.as_fd(), next).context("putting a program behind the wrapper")?;
        Ok(Self { program, _next: array })
    }
}

impl AsFd for Wrapped {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.program.as_fd()
    }
}

/// A program that sends each packet it is run on out of an interface: as it is, or with a random source address.
///
/// `frame` is the packet, with correct checksums; of those of random sources only the IP header's is kept correct.
///
/// # Errors
/// When the kernel refuses it.
pub(crate) fn generator(interface: u32, sources: Option<Sources>, frame: &[u8]) -> Result<OwnedFd> {
    let mut code = vec![copy(6, 1)];
    if let Some(sources) = sources {
        code.extend(draw(sources));
        code.extend([load_word(2, 6, 0), load_word(3, 6, 4), copy(4, 2)]);
        code.push(instruction(0x07, 4, 0, 0, i32::from(SOURCE) + 4));
        code.push(instruction(0x2d, 4, 3, 16, 0));
        code.push(instruction(0x63, 2, 0, SOURCE, 0));
        // The one's-complement sum works in either byte order (RFC 1071, section 2), so it is done in the machine's.
        code.extend([copy(1, 0), instruction(0x57, 1, 0, 0, 0xffff), instruction(0x77, 0, 0, 0, 16)]);
        code.push(instruction(0x0f, 0, 1, 0, 0));
        code.push(instruction(0x07, 0, 0, 0, sum_without_source(frame)?));
        for _ in 0..2 {
            code.extend([copy(1, 0), instruction(0x77, 1, 0, 0, 16)]);
            code.extend([instruction(0x57, 0, 0, 0, 0xffff), instruction(0x0f, 0, 1, 0, 0)]);
        }
        code.push(instruction(0xa7, 0, 0, 0, 0xffff));
        code.push(instruction(0x6b, 2, 0, CHECKSUM, 0));
    }
    let interface = i32::try_from(interface).context("an interface's index")?;
    code.extend([set(1, interface), set(2, 0), call(REDIRECT), EXIT]);
    load(&code, false)
}

/// Leaves a random source address in r0, as it stands in a packet, and spoils r1 to r5.
fn draw(sources: Sources) -> Vec<u64> {
    let mut code = vec![call(RANDOM)];
    match sources {
        // The first byte in the packet is the lowest of the register on a little-endian machine.
        Sources::HalfTheInternet => code.push(instruction(0x47, 0, 0, 0, 0x80)),
        Sources::Block(first, count) => code.extend([
            // r0 = (r0 * count) >> 32, which is below `count`; then the address in network order.
            instruction(0xbc, 0, 0, 0, 0),
            instruction(0x27, 0, 0, 0, count),
            instruction(0x77, 0, 0, 0, 32),
            instruction(0x07, 0, 0, 0, first.to_bits().cast_signed()),
            instruction(0xdc, 0, 0, 0, 32),
        ]),
    }
    code
}

/// The sum of the header's 16-bit words but those of checksum and source, in the machine's byte order.
fn sum_without_source(frame: &[u8]) -> Result<i32> {
    let start = usize::from(IPV4.cast_unsigned());
    let header = frame.get(start..start + 20).context("a frame without an IPv4 header")?;
    let mut sum = 0;
    for (index, pair) in header.chunks_exact(2).enumerate() {
        if let ([one, other], false) = (pair, (5..8).contains(&index)) {
            sum += i32::from(u16::from_ne_bytes([*one, *other]));
        }
    }
    Ok(sum)
}

fn load(code: &[u64], frags: bool) -> Result<OwnedFd> {
    bpf::load_xdp(code, frags).context("loading a program of the benchmark")
}
