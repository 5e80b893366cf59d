//! Counters and sampled events.

use crate::{
    keys::AddressBytes,
    shared::shared_struct,
    verdict::{Action, Verdict},
};

/// Size of the ring buffer: 256 KiB hold 4 096 events; a power of two and a multiple of the page size.
pub const RING_BYTES: usize = 256 * 1024;
/// One tally for every verdict and action.
pub const TALLY_SLOTS: usize = Verdict::COUNT * Action::ALL.len();

/// The slot of [`crate::layout::TALLIES`] that counts `verdict` ending in `action`.
#[inline(always)]
pub const fn tally_slot(verdict: Verdict, action: Action) -> u32 {
    verdict.slot() * Action::ALL.len() as u32 + action as u32
}

/// How a candidate policy may differ from the one in force on a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// It would refuse what passes or is answered now.
    Refuses = 0,
    /// It would pass or answer what is refused now.
    Passes = 1,
}

impl Difference {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Refuses, Self::Passes];

    /// The word in metrics and answers.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Refuses => "refuses",
            Self::Passes => "passes",
        }
    }
}

/// One tally for every difference and the verdict of the policy that refuses.
pub const DIFFERENCE_SLOTS: usize = Verdict::COUNT * Difference::ALL.len();

/// The slot of [`crate::layout::DIFFERENCES`] for a packet that one of the two policies refuses by this verdict.
#[inline(always)]
pub const fn difference_slot(difference: Difference, verdict_slot: u32) -> u32 {
    difference as u32 * Verdict::COUNT as u32 + verdict_slot
}

/// A word of [`crate::layout::JUDGED`]: what a policy said of a packet. Never 0.
#[inline(always)]
pub const fn judged(verdict: Verdict, is_refused: bool) -> u64 {
    1 << 32 | (is_refused as u64) << 16 | verdict.slot() as u64
}

/// The slot of the verdict in such a word, and whether it refuses.
#[inline(always)]
pub const fn read_judged(word: u64) -> (u32, bool) {
    (word as u32 & 0xffff, word >> 16 & 1 != 0)
}

shared_struct! {
    /// What one CPU counted for one verdict and action.
    pub struct Tally {
        /// Packets.
        pub packets: u64,
        /// Bytes of those packets, link header included; padding too only where the lengths could not be read.
        pub bytes: u64,
        /// No event of this slot is sent before this time, nanoseconds of `CLOCK_MONOTONIC`.
        pub next_event_ns: u64,
    }
    size = 24
}

shared_struct! {
    /// One sampled packet that was dropped, or would have been.
    pub struct Event {
        /// When, nanoseconds of `CLOCK_MONOTONIC` (coarse).
        pub time_ns: u64,
        /// Source address as the packet claimed it.
        pub source: AddressBytes,
        /// Number of the [`Verdict`].
        pub verdict: u32,
        /// Number of the [`Action`].
        pub action: u32,
        /// Generation of the policy that judged.
        pub generation: u32,
        /// Index of the interface it arrived on.
        pub interface: u32,
        /// Source port, host order; 0 where there is none.
        pub source_port: u16,
        /// Destination port, host order; 0 where there is none.
        pub destination_port: u16,
        /// IP protocol number; 0 where the packet is not IP.
        pub protocol: u8,
        /// TCP flags as in byte 13 of the header; 0 for other protocols.
        pub tcp_flags: u8,
        /// Always 0.
        pub reserved: [u8; 2],
    }
    size = 48
}

/// Size of the ring buffer of proofs: 64 KiB hold 1 024.
pub const PROOF_RING_BYTES: usize = 64 * 1024;

shared_struct! {
    /// A source completed a handshake beyond its pace, or returned a good cookie beyond its limit. The kernel's word:
    /// nobody does either with a forged address.
    pub struct Proof {
        /// When, nanoseconds of `CLOCK_MONOTONIC` (coarse).
        pub time_ns: u64,
        /// The peer of the connection.
        pub source: AddressBytes,
        /// How many handshakes of it were too many, this one among them; 0 if a cookie is the proof.
        pub violations: u64,
        /// The port it connected to, host order.
        pub port: u32,
        /// Always 0.
        pub reserved: u32,
    }
    size = 40
}
