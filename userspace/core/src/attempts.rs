//! How often a circuit may be wrong about a puzzle before it must pause.
//!
//! Memory is bounded: where as many circuits are remembered as may be, the one whose first error is the longest ago is
//! forgotten. Who has so many circuits needs no second attempt on any of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroUsize,
    time::Duration,
};

use crate::{id::CircuitId, time::Monotime};

/// Wrong answers that a circuit may give within [`WINDOW`]. People misread a picture once or twice.
pub const MOST_WRONG: u8 = 5;
/// After this time, counted from the first wrong answer, none is held against the circuit.
pub const WINDOW: Duration = Duration::from_secs(60);

/// The machine.
#[derive(Clone, Debug)]
pub struct Attempts {
    capacity: NonZeroUsize,
    circuits: BTreeMap<CircuitId, Wrong>,
    by_age: BTreeSet<(Monotime, CircuitId)>,
}

#[derive(Clone, Copy, Debug)]
struct Wrong {
    since: Monotime,
    count: u8,
}

impl Attempts {
    /// Nobody was wrong yet.
    pub const fn new(capacity: NonZeroUsize) -> Self {
        Self { capacity, circuits: BTreeMap::new(), by_age: BTreeSet::new() }
    }

    /// A circuit gave a wrong answer.
    pub fn wrong(&mut self, circuit: CircuitId, now: Monotime) {
        self.forget_old(now);
        if let Some(wrong) = self.circuits.get_mut(&circuit) {
            wrong.count = wrong.count.saturating_add(1);
            return;
        }
        if self.circuits.len() >= self.capacity.get()
            && let Some((_, oldest)) = self.by_age.pop_first()
        {
            self.circuits.remove(&oldest);
        }
        self.circuits.insert(circuit, Wrong { since: now, count: 1 });
        self.by_age.insert((now, circuit));
    }

    /// How long the circuit must pause, if it must.
    pub fn pause(&mut self, circuit: CircuitId, now: Monotime) -> Option<Duration> {
        self.forget_old(now);
        let wrong = self.circuits.get(&circuit).filter(|wrong| wrong.count >= MOST_WRONG)?;
        Some(wrong.since.after(WINDOW).since(now))
    }

    /// Circuits that are remembered.
    pub fn len(&self) -> usize {
        self.circuits.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.circuits.is_empty()
    }

    fn forget_old(&mut self, now: Monotime) {
        while let Some((since, circuit)) = self.by_age.first().copied() {
            if since.after(WINDOW) > now {
                break;
            }
            self.by_age.pop_first();
            self.circuits.remove(&circuit);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use proptest::prelude::*;

    use super::*;
    use crate::id::TorGeneration;

    fn at(seconds: u64) -> Monotime {
        Monotime(seconds * 1_000_000_000)
    }

    fn circuit(number: u32) -> CircuitId {
        CircuitId::new(TorGeneration(1), NonZeroU32::new(number).unwrap())
    }

    #[test]
    fn the_fifth_wrong_answer_is_the_last_for_a_while() {
        let mut attempts = Attempts::new(NonZeroUsize::new(2).unwrap());
        for second in 10..14 {
            attempts.wrong(circuit(1), at(second));
            assert_eq!(attempts.pause(circuit(1), at(second)), None);
        }
        attempts.wrong(circuit(1), at(14));
        assert_eq!(attempts.pause(circuit(1), at(20)), Some(Duration::from_secs(50)));
        assert_eq!(attempts.pause(circuit(2), at(20)), None);
        assert_eq!(attempts.pause(circuit(1), at(70)), None);
        assert!(attempts.is_empty());
    }

    proptest! {
        /// For all answers, no more circuits are remembered than may be, and a circuit pauses only after five wrong answers
        /// within the window.
        #[test]
        fn memory_is_bounded(
            capacity in 1usize..5,
            steps in prop::collection::vec((1u32..8, 0u64..20), 0..200),
        ) {
            let mut attempts = Attempts::new(NonZeroUsize::new(capacity).unwrap());
            let (mut second, mut given) = (0, Vec::new());
            for (number, wait) in steps {
                second += wait;
                attempts.wrong(circuit(number), at(second));
                given.push((number, second));
                prop_assert!(attempts.len() <= capacity && attempts.by_age.len() == attempts.len());
                let recent = given.iter().filter(|(other, when)| *other == number && when + 60 > second).count();
                if attempts.pause(circuit(number), at(second)).is_some() {
                    prop_assert!(recent >= usize::from(MOST_WRONG));
                }
            }
        }
    }
}
