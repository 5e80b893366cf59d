//! What is logged of refusals: a word and how many, and nothing of whose streams they were.
//!
//! The machine has no clock: how often its shell asks is how often a word is said at most.

use std::collections::BTreeMap;

use crate::refusal::{Class, Refusal};

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RefusalLog {
    said: BTreeMap<Refusal, u64>,
}

impl RefusalLog {
    /// What was refused since this was asked last, of all that was refused since the process began (`totals`, each word once).
    /// What was served, in whatever lane, is no refusal.
    pub fn advance(&mut self, totals: impl IntoIterator<Item = (Refusal, u64)>) -> Vec<(Refusal, u64)> {
        let mut news = Vec::new();
        for (refusal, total) in totals.into_iter().filter(|(refusal, _)| refusal.class() != Class::Pass) {
            let before = self.said.insert(refusal, total).unwrap_or(0);
            let count = total.saturating_sub(before);
            if count > 0 {
                news.push((refusal, count));
            }
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_what_is_new_and_refused_is_said() {
        let mut log = RefusalLog::default();
        let totals =
            |rate, banned| [(Refusal::SlowLane, 9), (Refusal::CircuitRate, rate), (Refusal::Banned, banned)];
        assert_eq!(log.advance(totals(0, 0)), []);
        assert_eq!(log.advance(totals(3, 0)), [(Refusal::CircuitRate, 3)]);
        assert_eq!(log.advance(totals(3, 0)), []);
        assert_eq!(log.advance(totals(4, 2)), [(Refusal::CircuitRate, 1), (Refusal::Banned, 2)]);
    }

    proptest! {
        /// For all refusals, however often it is asked between them: each is said once.
        #[test]
        fn each_refusal_is_said_once(steps in proptest::collection::vec(
            proptest::sample::subsequence(Refusal::ALL, 0..=Refusal::ALL.len()), 0..20,
        )) {
            let mut log = RefusalLog::default();
            let (mut totals, mut said) = (BTreeMap::<Refusal, u64>::new(), BTreeMap::<Refusal, u64>::new());
            for step in steps {
                for refusal in step {
                    *totals.entry(refusal).or_default() += 1;
                }
                for (refusal, count) in log.advance(totals.clone()) {
                    *said.entry(refusal).or_default() += count;
                }
            }
            totals.retain(|refusal, _| refusal.class() != Class::Pass);
            prop_assert_eq!(said, totals);
        }
    }
}
