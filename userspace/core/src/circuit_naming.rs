//! By what the front calls the circuits of the tor process that hands it streams, before it hears which process that is and after.
//!
//! A front takes streams before the daemon has spoken, and while no daemon runs. It cannot tell whose they are, and calls all of
//! them circuits of one process. The first word of that process only gives it a name: its circuits stay what they were, or each
//! start of a front would cost the visitors who came before that word their connections and what they paid. That another process
//! began is known where one name follows another, and then nothing of the circuits before is true any more.
//!
//! The name stays out of [`CircuitId`]s for that reason. What was counted, promised or asked of a circuit (its puzzle, its place in
//! line, its token, its word for the backends) goes by the id, and needs no change when the name comes.
//!
//! Whether tor began anew between the front's start and the first name cannot be told here. Streams of a process that ended are
//! closed by the kernel. What remains is what was counted of circuits of those numbers: it is held against those that have them now,
//! as it is as long as no daemon runs, and is forgotten as that of any circuit without a stream.

use std::num::NonZeroU32;

use crate::id::{CircuitId, TorGeneration};

/// Circuits of the process that hands over the streams, and its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CircuitNaming {
    generation: TorGeneration,
    name: Option<TorGeneration>,
}

/// What a word of the tor process means for the circuits that are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    /// It is the process that is known; or one before it, which has no streams any more.
    Known,
    /// The process that is known has a name now: nothing else changes.
    Named,
    /// Another process hands over the streams: what is known of circuits is to be forgotten.
    Begun,
}

impl Default for CircuitNaming {
    fn default() -> Self {
        Self::new()
    }
}

impl CircuitNaming {
    /// Some process, of which nobody has spoken yet.
    pub const fn new() -> Self {
        Self { generation: TorGeneration(0), name: None }
    }

    /// Streams come from the process of this name, as somebody says who may say so late.
    pub fn hear(&mut self, name: TorGeneration) -> Naming {
        match self.name {
            None => {
                self.name = Some(name);
                Naming::Named
            }
            Some(before) if before < name => {
                self.begin(name);
                Naming::Begun
            }
            Some(_) => Naming::Known,
        }
    }

    /// A process of this name has begun, as whoever began it says.
    pub const fn begin(&mut self, name: TorGeneration) {
        self.generation = name;
        self.name = Some(name);
    }

    /// The circuit that has this number in the process.
    pub const fn circuit(&self, number: NonZeroU32) -> CircuitId {
        CircuitId::new(self.generation, number)
    }

    /// What ids of its circuits carry: it changes with the process, and not with the name.
    pub const fn generation(&self) -> TorGeneration {
        self.generation
    }

    /// The process' name, once it is known.
    pub const fn name(&self) -> Option<TorGeneration> {
        self.name
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        ban_ladder::Ladder,
        circuit_policy::{CircuitSettings, CircuitShard},
        time::Monotime,
    };

    const SEVEN: NonZeroU32 = NonZeroU32::new(7).unwrap();
    const NOW: Monotime = Monotime(5_000_000_000);

    /// A shard that was told of circuit 7 before anybody said which tor process it is of.
    fn shard(naming: CircuitNaming) -> CircuitShard {
        let ladder = Ladder::new(vec![Duration::from_secs(300)], Duration::from_secs(86_400)).unwrap();
        let settings = CircuitSettings::web(ladder);
        let mut shard = CircuitShard::new(settings, NonZeroU32::MIN, naming.generation(), NOW);
        shard.pay(naming.circuit(SEVEN), NOW);
        shard
    }

    #[test]
    fn only_one_name_after_another_makes_other_circuits() {
        // What is heard, one after the other; what that means, what the process is called then, and whether circuit 7 is the one
        // that paid.
        for (heard, means, name, is_the_same) in [
            (vec![500], Naming::Named, 500, true),
            (vec![500, 500], Naming::Known, 500, true),
            (vec![500, 499], Naming::Known, 500, true),
            (vec![500, 501], Naming::Begun, 501, false),
            (vec![500, 501, 500], Naming::Known, 501, false),
            // Names begin anywhere: a tor that started within a tick of the boot has this one.
            (vec![0], Naming::Named, 0, true),
            (vec![0, 1], Naming::Begun, 1, false),
        ] {
            let mut naming = CircuitNaming::new();
            let mut shard = shard(naming);
            let mut last = None;
            for name in &heard {
                let said = naming.hear(TorGeneration(*name));
                if said == Naming::Begun {
                    shard.begin(naming.generation());
                }
                last = Some(said);
            }
            assert_eq!((last, naming.name()), (Some(means), Some(TorGeneration(name))), "{heard:?}");
            let facts = shard.look(naming.circuit(SEVEN), NOW);
            assert_eq!(facts.is_some_and(|facts| facts.has_paid), is_the_same, "{heard:?}");
        }
    }

    #[test]
    fn whoever_begins_a_process_needs_no_name_before() {
        let mut naming = CircuitNaming::new();
        let mut shard = shard(naming);
        naming.begin(TorGeneration(9));
        shard.begin(naming.generation());
        assert_eq!(naming.name(), Some(TorGeneration(9)));
        assert!(shard.look(naming.circuit(SEVEN), NOW).is_none());
        assert_eq!(naming.hear(TorGeneration(9)), Naming::Known);
    }

    proptest! {
        /// For all names in any order, ids change exactly with the process, never come again, and the name never goes back.
        #[test]
        fn ids_change_with_the_process_alone(names in prop::collection::vec(0u64..9, 0..30)) {
            let mut naming = CircuitNaming::new();
            for name in names.into_iter().map(TorGeneration) {
                let before = naming;
                let said = naming.hear(name);
                prop_assert_eq!(naming.generation() > before.generation(), said == Naming::Begun);
                prop_assert!(naming.generation() >= before.generation());
                prop_assert_eq!(before.name().is_none(), said == Naming::Named);
                prop_assert_eq!(naming.name(), before.name().max(Some(name)));
            }
        }
    }
}
