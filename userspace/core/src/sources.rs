//! The sources seen most often in sampled packets, in bounded memory.
//!
//! Space-saving: A. Metwally, D. Agrawal, A. El Abbadi, "Efficient Computation of Frequent and Top-k Elements in Data
//! Streams", ICDT 2005. A newcomer to a full table takes the row of the least frequent source and its count, which
//! is remembered as the possible error. The list informs; it never bans.

use std::collections::{BTreeMap, BTreeSet};

use tunica_common::verdict::{Action, Verdict};

use crate::{evidence::Forgeable, id::PacketSource, time::WallTime};

/// How many sources are kept. A source that sent more than one in this many samples is always among them.
pub const ROWS: usize = 1_024;

/// Sources in sampled packets.
#[derive(Clone, Debug)]
pub struct TopSources {
    rows: BTreeMap<PacketSource, Row>,
    by_count: BTreeSet<(u64, PacketSource)>,
    most_rows: usize,
    since: WallTime,
    samples: u64,
}

/// What is known of one source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Sampled packets, an upper bound.
    pub count: u64,
    /// By how much `count` may be too high.
    pub overestimate: u64,
    /// What was found against the latest one.
    pub verdict: Verdict,
    /// What was done with the latest one.
    pub action: Action,
    /// When the latest one was.
    pub last_seen: WallTime,
}

impl TopSources {
    /// An empty list, gathered from `since` on.
    pub fn new(since: WallTime) -> Self {
        Self::bounded(ROWS, since)
    }

    fn bounded(most_rows: usize, since: WallTime) -> Self {
        Self { rows: BTreeMap::new(), by_count: BTreeSet::new(), most_rows, since, samples: 0 }
    }

    /// Counts one sample.
    pub(crate) fn observe(&mut self, sample: &Forgeable, now: WallTime) {
        self.samples += 1;
        let known = self.rows.get(&sample.source).map(|row| (row.count, row.overestimate));
        if let Some((count, _)) = known {
            self.by_count.remove(&(count, sample.source));
        }
        let (count, overestimate) = known.unwrap_or_else(|| self.vacated());
        let (verdict, action) = (sample.verdict, sample.action);
        let row = Row { count: count + 1, overestimate, verdict, action, last_seen: now };
        self.by_count.insert((row.count, sample.source));
        self.rows.insert(sample.source, row);
    }

    /// Count and possible error of a row for a newcomer.
    fn vacated(&mut self) -> (u64, u64) {
        if self.rows.len() < self.most_rows {
            return (0, 0);
        }
        let Some((least, loser)) = self.by_count.pop_first() else { return (0, 0) };
        self.rows.remove(&loser);
        (least, least)
    }

    /// The sources, most frequent first.
    pub fn rows(&self) -> impl Iterator<Item = (PacketSource, Row)> {
        self.by_count.iter().rev().filter_map(|(_, source)| self.rows.get(source).map(|row| (*source, *row)))
    }

    /// Since when samples are gathered.
    pub fn since(&self) -> WallTime {
        self.since
    }

    /// How many samples were counted.
    pub fn samples(&self) -> u64 {
        self.samples
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn sample(host: u8) -> Forgeable {
        let source = PacketSource::of([198, 51, 100, host].into());
        Forgeable { source, verdict: Verdict::SynRate, action: Action::Drop, destination_port: 443 }
    }

    #[test]
    fn the_latest_sample_is_remembered() {
        let mut top = TopSources::new(WallTime(1));
        top.observe(&sample(1), WallTime(2));
        top.observe(
            &Forgeable { verdict: Verdict::Xmas, action: Action::WouldDrop, ..sample(1) },
            WallTime(3),
        );
        let (verdict, action) = (Verdict::Xmas, Action::WouldDrop);
        let row = Row { count: 2, overestimate: 0, verdict, action, last_seen: WallTime(3) };
        assert_eq!(top.rows().collect::<Vec<_>>(), [(sample(1).source, row)]);
    }

    proptest! {
        /// For all streams, counts are upper bounds, their errors are stated, memory is bounded, and whoever sent
        /// more than one in `rows` of the samples is listed.
        #[test]
        fn frequent_sources_are_found(hosts in prop::collection::vec(0u8..40, 0..400), rows in 1usize..12) {
            let mut top = TopSources::bounded(rows, WallTime(0));
            let mut truth: HashMap<PacketSource, u64> = HashMap::new();
            for host in &hosts {
                top.observe(&sample(*host), WallTime(9));
                *truth.entry(sample(*host).source).or_default() += 1;
            }
            let listed: HashMap<_, _> = top.rows().collect();
            prop_assert!(listed.len() <= rows);
            prop_assert_eq!(listed.values().map(|row| row.count).sum::<u64>(), hosts.len() as u64);
            prop_assert!(top.rows().map(|(_, row)| row.count).is_sorted_by(|more, less| more >= less));
            for (source, row) in &listed {
                prop_assert!(row.count - row.overestimate <= truth[source] && truth[source] <= row.count);
            }
            for (source, count) in truth {
                prop_assert!(count * rows as u64 <= hosts.len() as u64 || listed.contains_key(&source));
            }
        }
    }
}
