//! What an input said lately, and what a counter grew by.

use std::{collections::VecDeque, time::Duration};

use crate::{circuit_policy::Ratio, time::Monotime};

/// Samples of an input that are kept.
pub(super) const KEPT: usize = 5;
/// Samples without which an input is not known. With three the median is the one that the others agree with.
pub(super) const FEWEST: usize = 3;
/// How long a sample counts. Three of them must come within it.
pub(super) const LIFE: Duration = Duration::from_secs(20);
/// The least time between two samples of one input: whatever comes sooner is passed over. Readings in a burst are no more
/// than one, and a rate needs a while; a shell that reads every second comes a little early now and then.
pub(super) const SPACING: Duration = Duration::from_millis(900);

/// The last samples of one input, oldest first.
#[derive(Clone, Debug, Default)]
pub(super) struct Samples(VecDeque<(Monotime, Ratio)>);

impl Samples {
    pub(super) fn add(&mut self, ratio: Ratio, now: Monotime) {
        if self.0.back().is_some_and(|(last, _)| now.since(*last) < SPACING) {
            return;
        }
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back((now, ratio));
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Forgets what is too old.
    pub(super) fn expire(&mut self, now: Monotime) {
        while self.next_expiry().is_some_and(|at| at <= now) {
            self.0.pop_front();
        }
    }

    pub(super) fn next_expiry(&self) -> Option<Monotime> {
        self.0.front().map(|(at, _)| at.after(LIFE))
    }

    /// The median, which no single sample decides; of an even number the lower one, so that a rise needs the majority.
    pub(super) fn median(&self) -> Option<Ratio> {
        if self.0.len() < FEWEST {
            return None;
        }
        let mut sorted: Vec<Ratio> = self.0.iter().map(|(_, ratio)| *ratio).collect();
        sorted.sort_unstable();
        sorted.get((sorted.len() - 1) / 2).copied()
    }
}

/// A counter that grows, and begins again at zero without a word: with another process, and in tor's case at each reload
/// of its configuration.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counter(Option<(Monotime, u64)>);

impl Counter {
    /// What it grew by and in which time; nothing where that is not known. A counter that fell has begun again: what it
    /// counted before and since is not known either. Nor is what happened over a long silence of any worth now.
    pub(super) fn grew(&mut self, value: u64, now: Monotime) -> Option<(u64, Duration)> {
        let growth = self.0.and_then(|(since, before)| Some((value.checked_sub(before)?, now.since(since))));
        match growth {
            Some((_, elapsed)) if elapsed < SPACING => None,
            Some((_, elapsed)) if elapsed > LIFE => {
                self.0 = Some((now, value));
                None
            }
            Some(_) | None => {
                self.0 = Some((now, value));
                growth
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(milliseconds: u64) -> Monotime {
        Monotime(milliseconds * 1_000_000)
    }

    fn median(samples: &[u128]) -> Option<u16> {
        let mut kept = Samples::default();
        for (turn, sample) in (0..).zip(samples) {
            kept.add(Ratio::share(*sample, 10_000), at(1_000 * turn));
        }
        kept.median().map(Ratio::ten_thousandths)
    }

    #[test]
    fn the_median_is_that_of_the_last_five() {
        for (samples, expected) in [
            (&[][..], None),
            (&[9, 9], None),
            (&[1, 2, 3], Some(2)),
            (&[4, 1, 2, 3], Some(2)),
            (&[5, 1, 4, 2, 3], Some(3)),
            (&[0, 0, 5, 5, 5, 1, 1], Some(5)),
            (&[0, 0, 5, 5, 5, 1, 1, 1], Some(1)),
        ] {
            assert_eq!(median(samples), expected, "{samples:?}");
        }
    }

    #[test]
    fn samples_are_apart_and_age_out() {
        let mut samples = Samples::default();
        // Milliseconds, and whether the sample is taken.
        for (time, taken) in [(0, true), (899, false), (900, true), (1_700, false), (1_800, true)] {
            let before = samples.0.len();
            samples.add(Ratio::ALL, at(time));
            assert_eq!(samples.0.len() > before, taken, "{time}");
        }
        assert_eq!(samples.next_expiry(), Some(at(20_000)));
        samples.expire(at(19_999));
        assert_eq!(samples.median(), Some(Ratio::ALL));
        samples.expire(at(20_000));
        assert_eq!((samples.median(), samples.next_expiry()), (None, Some(at(20_900))));
        samples.clear();
        assert_eq!(samples.next_expiry(), None);
    }

    #[test]
    fn a_counter_tells_what_it_grew_by() {
        let mut counter = Counter::default();
        for (time, value, grew) in [
            (0, 100, None),   // nothing to compare with
            (899, 150, None), // too early, and not lost
            (1_000, 160, Some((60, 1_000))),
            (1_900, 160, Some((0, 900))),
            (3_000, 160, Some((0, 1_100))),
            (4_000, 0, None), // it began again
            (5_000, 30, Some((30, 1_000))),
            (5_100, 10, None), // again, a moment later
            (6_100, 25, Some((15, 1_000))),
            (26_100, 65, Some((40, 20_000))),
            (46_101, 99, None), // too long ago
            (47_101, 100, Some((1, 1_000))),
        ] {
            let expected = grew.map(|(by, milliseconds)| (by, Duration::from_millis(milliseconds)));
            assert_eq!(counter.grew(value, at(time)), expected, "{time}");
        }
    }

    proptest! {
        /// For all counters that begin again at any time, what they are seen to grow by is no more than what they
        /// counted, and never below zero.
        #[test]
        fn a_reset_is_never_growth(
            turns in prop::collection::vec((0u64..1_000, any::<bool>(), 1u64..3_000), 1..100),
        ) {
            let mut counter = Counter::default();
            let (mut value, mut time, mut counted, mut seen) = (5_000_000u64, 0, 0, 0);
            counter.grew(value, at(time));
            for (count, begins_again, milliseconds) in turns {
                value = if begins_again { count } else { value + count };
                counted += count;
                time += milliseconds;
                seen += counter.grew(value, at(time)).map_or(0, |(by, _)| by);
                prop_assert!(seen <= counted);
            }
        }
    }
}
