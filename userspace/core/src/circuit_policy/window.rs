//! Counting over a sliding window in a few bytes.
//!
//! Time is cut into sub-buckets, and a ring holds the counts of the last `N` of them, the current one included. The
//! ring therefore covers at least `N − 1` and at most `N` whole sub-buckets: with `N = window / sub-bucket + 1` nothing
//! within the window is missed, and nothing counts for longer than the window and one sub-bucket.

use std::time::Duration;

use crate::time::Monotime;

/// Unit of times in a circuit's record: 32 bits of it last 13 years of uptime, and then stand still.
const TICK: Duration = Duration::from_millis(100);
const TICK_NANOSECONDS: u64 = 100_000_000;
const TICKS_A_SECOND: u64 = 10;

/// The tick that `now` lies in.
pub(super) fn tick(now: Monotime) -> u32 {
    u32::try_from(now.0 / TICK_NANOSECONDS).unwrap_or(u32::MAX)
}

/// The first tick that begins at `at` or later.
pub(super) fn tick_from(at: Monotime) -> u32 {
    u32::try_from(at.0.div_ceil(TICK_NANOSECONDS)).unwrap_or(u32::MAX)
}

/// When `tick` begins.
pub(super) const fn begin(tick: u32) -> Monotime {
    Monotime(tick as u64 * TICK_NANOSECONDS)
}

/// Ticks that `span` fills, rounded up.
pub(super) fn ticks(span: Duration) -> u32 {
    // In 64 bits: this is asked for each decision.
    let parts = u64::from(span.subsec_nanos()).div_ceil(TICK_NANOSECONDS);
    u32::try_from(span.as_secs().saturating_mul(TICKS_A_SECOND).saturating_add(parts)).unwrap_or(u32::MAX)
}

/// Ticks as a span.
pub(super) fn span(ticks: u32) -> Duration {
    TICK * ticks
}

/// Counts of the last `N` sub-buckets of `WIDTH` ticks. A count stays at its type's maximum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ring<T, const N: usize, const WIDTH: u32>([T; N]);

impl<T: Copy + Default + Into<u32> + TryFrom<u32>, const N: usize, const WIDTH: u32> Ring<T, N, WIDTH> {
    pub(super) fn new() -> Self {
        Self([T::default(); N])
    }

    /// Moves on from tick `before`, when it was last moved, to `now`, forgetting what is too old.
    pub(super) fn turn(&mut self, before: u32, now: u32) {
        let (before, now) = (before / WIDTH, now / WIDTH);
        // More than `N` steps would clear the same counts again.
        for step in 1..=now.saturating_sub(before).min(N as u32) {
            if let Some(count) = self.bucket(before.wrapping_add(step)) {
                *count = T::default();
            }
        }
    }

    /// Counts one more in tick `now`, to which the ring has been turned.
    pub(super) fn add(&mut self, now: u32) {
        if let Some(count) = self.bucket(now / WIDTH) {
            *count = T::try_from((*count).into().saturating_add(1)).unwrap_or(*count);
        }
    }

    /// How many are counted.
    pub(super) fn sum(&self) -> u32 {
        self.0.iter().fold(0, |sum: u32, count| sum.saturating_add((*count).into()))
    }

    /// The tick from which on fewer than `limit` are counted, if nothing is added: `now` where it is so already; for a
    /// limit of zero, which is never met, the end of the window.
    pub(super) fn below_from(&self, limit: u32, now: u32) -> u32 {
        let mut left = self.sum();
        let bucket = now / WIDTH;
        let mut steps = 0;
        while left >= limit && steps < N as u32 {
            steps += 1;
            // The oldest is the one that the next step will reuse.
            let oldest = self.0.get(bucket.wrapping_add(steps) as usize % N);
            left = left.saturating_sub(oldest.map_or(0, |count| (*count).into()));
        }
        if steps == 0 { now } else { bucket.saturating_add(steps).saturating_mul(WIDTH) }
    }

    fn bucket(&mut self, number: u32) -> Option<&mut T> {
        self.0.get_mut(number as usize % N)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Minute = Ring<u8, 11, 60>;
    const WINDOW: u32 = 600;

    #[test]
    fn ticks_round_as_named() {
        assert_eq!((tick(Monotime(199_999_999)), tick_from(Monotime(100_000_001))), (1, 2));
        assert_eq!((tick(begin(7)), tick_from(begin(7))), (7, 7));
        assert_eq!((ticks(Duration::from_millis(101)), span(3)), (2, Duration::from_millis(300)));
        assert_eq!((tick(Monotime(u64::MAX)), ticks(Duration::MAX)), (u32::MAX, u32::MAX));
    }

    proptest! {
        /// For all sequences, in no 60 s are more than the limit admitted, a refusal means that the limit was reached
        /// within 60 s and one sub-bucket, and the tick that a refusal names is the first at which one is admitted.
        #[test]
        fn strict_and_forgiving(gaps in prop::collection::vec(0u32..200, 1..200), limit in 1u32..12, start in 0u32..10_000) {
            let (mut ring, mut now, mut admitted) = (Minute::new(), start, Vec::new());
            for gap in gaps {
                ring.turn(now, now + gap);
                now += gap;
                let lately = |span: u32| admitted.iter().filter(|at| now - **at < span).count() as u32;
                if ring.sum() < limit {
                    prop_assert!(lately(WINDOW) < limit);
                    prop_assert_eq!(ring.below_from(limit, now), now);
                    ring.add(now);
                    admitted.push(now);
                } else {
                    prop_assert!(lately(WINDOW + 60) >= limit);
                    let free = ring.below_from(limit, now);
                    prop_assert!(free > now && free <= now + WINDOW + 60);
                    for (at, is_free) in [(free - 1, false), (free, true)] {
                        let mut later = ring;
                        later.turn(now, at);
                        prop_assert_eq!(later.sum() < limit, is_free);
                    }
                }
            }
        }
    }

    #[test]
    fn counts_stop_at_their_type() {
        let mut ring = Minute::new();
        (0..300).for_each(|_| ring.add(5));
        assert_eq!(ring.sum(), 255);
        ring.turn(5, u32::MAX);
        assert_eq!(ring.sum(), 0);
        // A clock that steps back forgets nothing.
        ring.add(u32::MAX);
        ring.turn(u32::MAX, 0);
        assert_eq!(ring.sum(), 1);
    }
}
