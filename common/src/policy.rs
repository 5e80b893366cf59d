//! The rules as the kernel program reads them.

use crate::{
    keys::{SourceKey, WIDTH_V4_HOST},
    shared::shared_struct,
};

/// How many VLAN tags the program looks behind (IEEE 802.1Q and 802.1ad).
pub const MAX_VLAN_TAGS: usize = 2;
/// How many IPv6 extension headers the program looks behind; the kernel's own senders never exceed four.
pub const MAX_EXTENSION_HEADERS: usize = 6;
/// Rows of the SYN sketch.
pub const SKETCH_ROWS: usize = 2;
/// Cells in a row of the SYN sketch; a power of two.
pub const SKETCH_CELLS: usize = 1 << SKETCH_CELL_BITS;
/// `SKETCH_CELLS` is two to this power.
pub const SKETCH_CELL_BITS: u32 = 16;
/// Rows of the ban table unless configured otherwise.
pub const DEFAULT_BANS: usize = 131_072;
/// Rows of the allow list unless configured otherwise.
pub const DEFAULT_ALLOW: usize = 16_384;
/// How many own addresses the own-source rule can hold.
pub const OWN_ADDRESSES: usize = 1_024;
/// Words of 64 bits in the ban filter.
pub const BAN_FILTER_WORDS: usize = 1 << (BAN_FILTER_BITS - 6);
/// The ban filter holds two to this power bits (128 KiB).
pub const BAN_FILTER_BITS: u32 = 20;

/// [`Policy::mode`]: every packet passes uninspected.
pub const MODE_OFF: u32 = 0;
/// [`Policy::mode`]: count what `enforce` would drop.
pub const MODE_OBSERVE: u32 = 1;
/// [`Policy::mode`]: drop.
pub const MODE_ENFORCE: u32 = 2;

/// [`Policy::on_stale`]: dynamic bans lapse; limits and sanity rules stay.
pub const STALE_KEEP_LIMITS: u32 = 0;
/// [`Policy::on_stale`]: every ban and limit lapses; sanity rules stay.
pub const STALE_SANITY_ONLY: u32 = 1;
/// [`Policy::on_stale`]: nothing is dropped.
pub const STALE_PASS: u32 = 2;

shared_struct! {
    /// Everything the program consults besides tables. The host writes the slot that is not in force, then flips
    /// [`crate::layout::ACTIVE`], so a packet sees one policy or the other, never a mixture.
    pub struct Policy {
        /// Secret half of the sketch and filter hashes, drawn anew at each load.
        pub secret: [u64; 2],
        /// Sanity rules in force, by [`crate::verdict::Verdict::bit`].
        pub sanity_mask: u64,
        /// Uninspected classes that are dropped, by [`crate::verdict::Verdict::bit`].
        pub uninspected_drop_mask: u64,
        /// A bit for each value of [`own_bit`] that some own address has; 0 switches the own-source rule off.
        pub own_filter: u64,
        /// After how many nanoseconds without a heartbeat [`Policy::on_stale`] applies.
        pub stale_after_ns: u64,
        /// Least nanoseconds between two events of one verdict on one CPU.
        pub event_interval_ns: u64,
        /// Counts applied policies; its low bits tag the sketch's cells.
        pub generation: u32,
        /// One of the `MODE_…` numbers.
        pub mode: u32,
        /// One of the `STALE_…` numbers.
        pub on_stale: u32,
        /// Ticks that one SYN costs ([`crate::gcra::Limit::cost_ticks`]); 0 switches the SYN limit off.
        pub syn_cost_ticks: u32,
        /// [`crate::gcra::Limit::tolerance_ticks`] of the SYN limit.
        pub syn_tolerance_ticks: u32,
        /// 1 while the ban table holds anything; 0 spares the look-up.
        pub bans_present: u32,
        /// 1 while the allow list holds anything; 0 spares the look-up.
        pub allow_present: u32,
        /// Always 0.
        pub reserved: u32,
    }
    size = 88
}

/// The bit that `address` has in [`Policy::own_filter`].
#[inline(always)]
pub const fn own_bit(high: u64, low: u64) -> u64 {
    1 << ((high ^ low).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58)
}

/// Keyed hash of a source: two multiply-xorshift rounds with a secret word before each.
///
/// Not a pseudo-random function: it keeps someone who does not know the secret from aiming at a stranger's cells,
/// at a third of SipHash's cost. See the decision record on the sketch.
#[inline(always)]
pub const fn keyed_hash(key: &SourceKey, secret: [u64; 2]) -> u64 {
    let [first, second] = secret;
    let family = if key.width == WIDTH_V4_HOST { first } else { first.rotate_left(32) };
    let mut word = (key.word() ^ family).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word ^= word >> 32;
    word = word.wrapping_add(second).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 29)
}

/// The cell of `hash` in row 0 and in row 1 of the SYN sketch.
#[inline(always)]
pub const fn sketch_cells(hash: u64) -> [u32; SKETCH_ROWS] {
    let mask = SKETCH_CELLS as u64 - 1;
    [(hash & mask) as u32, (SKETCH_CELLS as u64 + (hash >> 16 & mask)) as u32]
}

/// The word and the bit of `hash` in the ban filter. It uses hash bits that the sketch does not.
#[inline(always)]
pub const fn ban_filter_position(hash: u64) -> (u32, u64) {
    let bit = hash >> (64 - BAN_FILTER_BITS);
    ((bit >> 6) as u32, 1 << (bit & 63))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_do_not_share_cells() {
        let v4 = SourceKey::v4([198, 51, 100, 7]);
        let v6 = SourceKey::v6([198, 51, 100, 7, 0, 0, 0, 0]);
        assert_ne!(keyed_hash(&v4, [1, 2]), keyed_hash(&v6, [1, 2]));
    }

    #[test]
    fn neighbours_spread_over_the_sketch() {
        let mut seen = [false; SKETCH_CELLS];
        let mut used = 0;
        for low in 0..=u16::MAX {
            let [c, d] = low.to_be_bytes();
            let hash =
                keyed_hash(&SourceKey::v4([10, 0, c, d]), [0x1234_5678_9abc_def0, 0x0fed_cba9_8765_4321]);
            let [first, _] = sketch_cells(hash);
            used += usize::from(!core::mem::replace(&mut seen[first as usize], true));
        }
        // A random function fills 1 - 1/e = 63.2 % of as many cells as it has inputs.
        assert!((40_500..42_400).contains(&used), "{used} of 65536 cells used");
    }
}
