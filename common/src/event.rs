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
