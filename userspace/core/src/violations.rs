//! How often each source was proven to offend lately.
//!
//! Bounded in every direction: so many sources, so many times of each, and nothing older than the window. Only proof
//! gets in, so a stranger cannot push anybody out with forged addresses.

use std::collections::{BTreeMap, VecDeque};

use crate::{id::PacketSource, time::Monotime};

/// Most sources that are remembered; the one that offended longest ago goes first. As many as the kernel verifies.
const MOST_SOURCES: usize = tunica_common::policy::VERIFIED_SOURCES;

/// When each source offended.
#[derive(Clone, Debug, Default)]
pub(crate) struct Violations {
    times: BTreeMap<PacketSource, VecDeque<Monotime>>,
    /// Sources by their last offence.
    order: BTreeMap<(Monotime, PacketSource), ()>,
}

impl Violations {
    /// Notes an offence and returns how many there were in `window`, this one among them; never more than `threshold`,
    /// because more make no difference.
    pub(crate) fn note(
        &mut self,
        source: PacketSource,
        threshold: u32,
        window: std::time::Duration,
        now: Monotime,
    ) -> u32 {
        let times = self.times.entry(source).or_default();
        if let Some(last) = times.back() {
            self.order.remove(&(*last, source));
        }
        times.push_back(now);
        let most = usize::try_from(threshold).unwrap_or(usize::MAX).max(1);
        while times.len() > most || times.front().is_some_and(|first| now.since(*first) >= window) {
            times.pop_front();
        }
        let count = u32::try_from(times.len()).unwrap_or(u32::MAX);
        self.order.insert((now, source), ());
        // Whoever's last offence is too old to count is nobody's business any more.
        while let Some((&(last, oldest), ())) = self.order.first_key_value()
            && now.since(last) >= window
        {
            self.order.pop_first();
            self.times.remove(&oldest);
        }
        if self.times.len() > MOST_SOURCES
            && let Some(((_, oldest), ())) = self.order.pop_first()
        {
            self.times.remove(&oldest);
        }
        count
    }

    /// What [`Self::note`] would return.
    pub(crate) fn with_one_more(
        &self,
        source: PacketSource,
        threshold: u32,
        window: std::time::Duration,
        now: Monotime,
    ) -> u32 {
        let times = self.times.get(&source).into_iter().flatten();
        let before = times.filter(|at| now.since(**at) < window).count();
        u32::try_from(before + 1).unwrap_or(u32::MAX).min(threshold.max(1))
    }

    /// Forgets a source, which has been dealt with.
    pub(crate) fn forget(&mut self, source: PacketSource) {
        if let Some(times) = self.times.remove(&source)
            && let Some(last) = times.back()
        {
            self.order.remove(&(*last, source));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn source(number: u32) -> PacketSource {
        PacketSource::of(std::net::Ipv4Addr::from(number).into())
    }

    #[test]
    fn the_oldest_source_makes_room() {
        let mut violations = Violations::default();
        let window = Duration::from_secs(1_000_000);
        for number in 0..u32::try_from(MOST_SOURCES).unwrap() + 5 {
            violations.note(source(number), 5, window, Monotime(u64::from(number)));
        }
        assert_eq!((violations.times.len(), violations.order.len()), (MOST_SOURCES, MOST_SOURCES));
        assert_eq!(violations.note(source(0), 5, window, Monotime(1_000_000)), 1);
        let last = source(u32::try_from(MOST_SOURCES).unwrap() + 4);
        assert_eq!(violations.note(last, 5, window, Monotime(1_000_000)), 2);
    }

    proptest! {
        /// For all sequences of offences, the count is that of the window, up to the threshold, and of this source alone.
        #[test]
        fn counts_are_those_of_the_window(offences in prop::collection::vec((0u32..3, 0u64..20_000), 1..60), threshold in 1u32..6) {
            let window = Duration::from_secs(60);
            let (mut violations, mut now, mut seen) = (Violations::default(), Monotime(0), Vec::new());
            for (who, gap) in offences {
                now = now.after(Duration::from_millis(gap));
                seen.push((who, now));
                let expected = seen.iter().filter(|(other, at)| *other == who && now.since(*at) < window).count();
                let expected = u32::try_from(expected).unwrap().min(threshold);
                prop_assert_eq!(violations.with_one_more(source(who), threshold, window, now), expected);
                prop_assert_eq!(violations.note(source(who), threshold, window, now), expected);
                prop_assert!(violations.order.keys().all(|(last, _)| now.since(*last) < window));
                prop_assert_eq!(violations.times.len(), violations.order.len());
            }
        }
    }
}
