//! The generic cell rate algorithm (ITU-T I.371, annex A) in one 32-bit cell.
//!
//! A cell holds the *theoretical arrival time* (TAT) of the next conforming packet. A packet conforms while the TAT
//! is at most the burst tolerance ahead of the clock; each conforming packet moves the TAT on by the cost of one
//! packet. There is nothing to refill, so nothing rounds away.
//!
//! Bits 4..32 hold the TAT in ticks of [`TICK_NANOSECONDS`], bits 0..4 the policy generation that wrote the cell.
//! A cell of another generation counts as unused: a changed limit never judges by debts of the old one.
//! Twenty-eight bits of ticks wrap after 4.9 hours; a cell untouched for that long can look up to one burst
//! tolerance in debt, which costs its source at most one burst, once.

/// Length of a tick. The kernel's coarse clock moves every 1 to 10 ms, so finer ticks serve the rate's rounding only.
pub const TICK_NANOSECONDS: u64 = 1 << TICK_SHIFT;
/// `nanoseconds >> TICK_SHIFT` is ticks.
pub const TICK_SHIFT: u32 = 16;
/// How many low bits of a cell hold the generation.
pub const GENERATION_BITS: u32 = 4;
/// The TAT's bits, after the generation is shifted out.
pub const TAT_MASK: u32 = u32::MAX >> GENERATION_BITS;
/// Largest burst tolerance, in ticks: a quarter of the TAT's range (1.2 hours), so that past and future cannot be confused.
pub const MAX_TOLERANCE_TICKS: u32 = TAT_MASK / 4;

/// A rate and a burst in the units a cell works in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Ticks that one packet costs; at least 1.
    pub cost_ticks: u32,
    /// How far the TAT may run ahead of the clock, in ticks: burst minus one packet, times the cost.
    pub tolerance_ticks: u32,
}

impl Limit {
    /// The limit that admits `burst` packets at once and `per_second` of them in the long run.
    ///
    /// Returns `None` when either is zero, when one packet would cost less than 15 ticks (more than 1 000 a second,
    /// where rounding to whole ticks would exceed 3.5 %), or when the tolerance exceeds [`MAX_TOLERANCE_TICKS`].
    pub const fn new(per_second: u32, burst: u32) -> Option<Self> {
        if per_second == 0 || per_second > 1_000 || burst == 0 {
            return None;
        }
        let per_second = per_second as u64;
        // Rounded to nearest: 10/s costs 1 525.88 ticks and becomes 1 526.
        let cost = (1_000_000_000 + per_second * TICK_NANOSECONDS / 2) / (per_second * TICK_NANOSECONDS);
        let tolerance = cost * (burst as u64 - 1);
        if tolerance > MAX_TOLERANCE_TICKS as u64 {
            return None;
        }
        Some(Self { cost_ticks: cost as u32, tolerance_ticks: tolerance as u32 })
    }
}

/// `nanoseconds` of a monotonic clock as the tick number that cells compare with.
#[inline(always)]
pub const fn ticks(nanoseconds: u64) -> u32 {
    (nanoseconds >> TICK_SHIFT) as u32 & TAT_MASK
}

/// How many ticks `cell` is ahead of `now`: 0 for an idle cell, a cell of another generation, or one whose distance
/// no conforming sequence can produce (it wrapped).
#[inline(always)]
pub const fn debt(cell: u32, now: u32, generation: u32, limit: Limit) -> u32 {
    let ahead = (cell >> GENERATION_BITS).wrapping_sub(now) & TAT_MASK;
    let same = (cell ^ generation) & ((1 << GENERATION_BITS) - 1) == 0;
    if same && ahead <= limit.tolerance_ticks + limit.cost_ticks { ahead } else { 0 }
}

/// Whether a packet conforms at a cell with this `debt`.
#[inline(always)]
pub const fn conforms(debt: u32, limit: Limit) -> bool {
    debt <= limit.tolerance_ticks
}

/// The cell after a conforming packet was charged to `debt`.
#[inline(always)]
pub const fn charged(debt: u32, now: u32, generation: u32, limit: Limit) -> u32 {
    let tat = now.wrapping_add(debt).wrapping_add(limit.cost_ticks) & TAT_MASK;
    (tat << GENERATION_BITS) | (generation & ((1 << GENERATION_BITS) - 1))
}

/// Nanoseconds that one packet costs, and how far the clock may run ahead: a rate and a burst for counters of which there
/// are few enough to spend 64 bits on each. A cost of 0 admits everything.
pub type Pace = [u64; 2];

/// The pace that admits `burst` packets at once and `packets` in `span_ns` nanoseconds in the long run.
///
/// Returns `None` where one of them is 0, the cost would be less than a nanosecond, or the tolerance exceeds a day.
pub const fn pace(packets: u32, span_ns: u64, burst: u32) -> Option<Pace> {
    if packets == 0 || burst == 0 || span_ns < packets as u64 {
        return None;
    }
    let cost = span_ns / packets as u64;
    match cost.checked_mul(burst as u64 - 1) {
        Some(tolerance) if tolerance <= 86_400_000_000_000 => Some([cost, tolerance]),
        _ => None,
    }
}

/// The clock after one more packet at `now`, or `None` if the packet does not conform.
///
/// A clock further ahead than any conforming sequence can set it comes from an earlier, slower pace and counts as idle.
#[inline(always)]
pub const fn paced(tat: u64, now: u64, [cost, tolerance]: Pace) -> Option<u64> {
    let ahead = tat.saturating_sub(now);
    if ahead > tolerance + cost {
        return Some(now + cost);
    }
    if ahead > tolerance { None } else { Some(now + ahead + cost) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn admit(cell: &mut u32, now: u32, limit: Limit) -> bool {
        let owed = debt(*cell, now, 3, limit);
        if conforms(owed, limit) {
            *cell = charged(owed, now, 3, limit);
            return true;
        }
        false
    }

    #[test]
    fn limits_out_of_range_are_refused() {
        for (rate, burst) in [(0, 1), (1, 0), (1_001, 1), (1, 2_000_000)] {
            assert_eq!(Limit::new(rate, burst), None, "{rate}/s burst {burst}");
        }
    }

    #[test]
    fn a_changed_generation_forgets_the_debt() {
        let limit = Limit::new(1, 20).unwrap();
        let cell = charged(limit.tolerance_ticks, 1_000, 3, limit);
        assert!(!conforms(debt(cell, 1_000, 3, limit), limit));
        assert_eq!(debt(cell, 1_000, 4, limit), 0);
    }

    proptest! {
        /// For all limits and start times, an idle source gets exactly its burst at once, and not one packet more.
        #[test]
        fn burst_is_exact(rate in 1u32..=1_000, burst in 1u32..=200, start in 0..=TAT_MASK) {
            let limit = Limit::new(rate, burst).unwrap();
            let mut cell = 0;
            // A zero cell is of generation 0 here, so it counts as idle for generation 3.
            let admitted = (0..burst + 50).filter(|_| admit(&mut cell, start, limit)).count();
            prop_assert_eq!(admitted as u32, burst);
        }

        /// For all paces and arrival patterns, a burst is exact and the long-run rate holds.
        #[test]
        fn paces_hold(packets in 1u32..10_000, burst in 1u32..100, gaps in prop::collection::vec(0u64..40_000_000, 1..300)) {
            let pace = pace(packets, 10_000_000_000, burst).unwrap();
            let (start, mut tat) = (5_000_000_000, 0);
            let at_once = (0..burst + 9).filter(|_| paced(tat, start, pace).inspect(|next| tat = *next).is_some()).count();
            prop_assert_eq!(at_once as u32, burst);
            let (mut now, mut admitted) = (start, u64::from(burst));
            for gap in gaps {
                now += gap;
                admitted += u64::from(paced(tat, now, pace).inspect(|next| tat = *next).is_some());
            }
            prop_assert!(admitted <= u64::from(burst) + (now - start) / pace[0] + 1);
        }

        /// For all arrival patterns, no more than burst plus rate times time is admitted (3.5 % for rounding).
        #[test]
        fn long_run_rate_holds(rate in 1u32..=1_000, burst in 1u32..=50, gaps in prop::collection::vec(0u32..20_000, 1..400)) {
            let limit = Limit::new(rate, burst).unwrap();
            let (mut cell, mut now, mut elapsed, mut admitted) = (0, 77, 0u64, 0u64);
            for gap in gaps {
                now = (now + gap) & TAT_MASK;
                elapsed += u64::from(gap);
                admitted += u64::from(admit(&mut cell, now, limit));
            }
            let bound = u64::from(burst) + elapsed / u64::from(limit.cost_ticks);
            prop_assert!(admitted <= bound, "{admitted} > {bound}");
        }
    }
}
