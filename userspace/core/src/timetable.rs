//! Keys with a time each, in the order of time.

use std::collections::{BTreeMap, BTreeSet};

use crate::time::Monotime;

/// One time for each key. Finding the earliest costs no walk over all of them.
#[derive(Clone, Debug)]
pub(crate) struct Timetable<K> {
    at: BTreeMap<K, Monotime>,
    order: BTreeSet<(Monotime, K)>,
}

impl<K> Default for Timetable<K> {
    fn default() -> Self {
        Self { at: BTreeMap::new(), order: BTreeSet::new() }
    }
}

impl<K: Ord + Copy> Timetable<K> {
    /// Gives `key` this time, or with `None` takes it out. Returns whether the key is new here.
    pub(crate) fn set(&mut self, key: K, at: Option<Monotime>) -> bool {
        let before = match at {
            Some(at) => self.at.insert(key, at),
            None => self.at.remove(&key),
        };
        if let Some(before) = before {
            self.order.remove(&(before, key));
        }
        if let Some(at) = at {
            self.order.insert((at, key));
        }
        before.is_none()
    }

    /// The time of `key`.
    pub(crate) fn get(&self, key: K) -> Option<Monotime> {
        self.at.get(&key).copied()
    }

    /// The earliest entry.
    pub(crate) fn first(&self) -> Option<(Monotime, K)> {
        self.order.first().copied()
    }

    /// Every key whose time is `now` or earlier, earliest first.
    pub(crate) fn due(&self, now: Monotime) -> impl Iterator<Item = K> {
        self.order.iter().take_while(move |(at, _)| *at <= now).map(|(_, key)| *key)
    }

    /// Every key, in its own order.
    pub(crate) fn keys(&self) -> impl Iterator<Item = K> {
        self.at.keys().copied()
    }

    /// How many keys there are.
    pub(crate) fn len(&self) -> usize {
        self.at.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// For all sequences of changes, both halves hold the same entries, and `due` finds exactly the past ones.
        #[test]
        fn halves_agree(changes in prop::collection::vec((0u8..8, prop::option::of(0u64..50)), 0..60), now in 0u64..50) {
            let mut table = Timetable::default();
            for (key, at) in changes {
                table.set(key, at.map(Monotime));
            }
            let mut pairs: Vec<_> = table.keys().map(|key| (table.get(key).unwrap(), key)).collect();
            pairs.sort_unstable();
            prop_assert_eq!(&pairs, &table.order.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(table.first(), pairs.first().copied());
            let past: Vec<u8> = pairs.iter().filter(|(at, _)| at.0 <= now).map(|(_, key)| *key).collect();
            prop_assert_eq!(table.due(Monotime(now)).collect::<Vec<_>>(), past);
        }
    }
}
