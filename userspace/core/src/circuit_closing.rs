//! Which circuits tor is to close, each once: those that are banned, and those that the policy does not want any more.
//!
//! A ban at the ingress refuses the streams of a circuit, and the circuit stays: its client goes on to send. Closed at tor, it
//! has to be introduced, to solve tor's puzzle where there is one, and to be built again.

use std::{collections::BTreeMap, num::NonZeroU32};

use crate::{
    id::{CircuitId, TorGeneration},
    refusal::Refusal,
};

/// What tor was asked for already.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CircuitClosing {
    generation: Option<TorGeneration>,
    asked: BTreeMap<NonZeroU32, Asked>,
}

/// What for, and whether tor said that it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Asked {
    why: Refusal,
    is_accepted: bool,
}

impl CircuitClosing {
    /// Another tor process hands over the streams: the numbers mean other circuits.
    pub fn begin(&mut self, generation: TorGeneration) {
        if self.generation != Some(generation) {
            *self = Self { generation: Some(generation), asked: BTreeMap::new() };
        }
    }

    /// Of those that are to be closed now, the ones that tor was not asked to close yet. None while it is not known which tor
    /// process hands over the streams.
    pub fn due(&mut self, wanted: BTreeMap<NonZeroU32, Refusal>) -> Vec<CircuitId> {
        let Some(generation) = self.generation else { return Vec::new() };
        let before = std::mem::take(&mut self.asked);
        let is_new = |number: &&NonZeroU32| !before.contains_key(*number);
        let new = wanted.keys().filter(is_new).map(|number| CircuitId::new(generation, *number)).collect();
        let asked = |(number, why)| {
            let known = before.get(&number).copied();
            (number, known.unwrap_or(Asked { why, is_accepted: false }))
        };
        self.asked = wanted.into_iter().map(asked).collect();
        new
    }

    /// Tor could not be asked; it is tried again as long as the circuit is to be closed.
    pub fn failed(&mut self, circuit: CircuitId) {
        if self.generation == Some(circuit.generation()) {
            self.asked.remove(&circuit.number_for_this_node());
        }
    }

    /// Tor closes the circuit. Returns for what, the first time, if it was asked to by this.
    pub fn accepted(&mut self, circuit: CircuitId) -> Option<Refusal> {
        let asked = self.asked.get_mut(&circuit.number_for_this_node());
        let asked =
            asked.filter(|asked| self.generation == Some(circuit.generation()) && !asked.is_accepted)?;
        asked.is_accepted = true;
        Some(asked.why)
    }

    /// For what tor was asked to close the circuit; `None`: it was not.
    pub fn why(&self, circuit: NonZeroU32) -> Option<Refusal> {
        self.asked.get(&circuit).map(|asked| asked.why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(number: u32) -> NonZeroU32 {
        NonZeroU32::new(number).unwrap()
    }

    fn circuit(generation: u64) -> CircuitId {
        CircuitId::new(TorGeneration(generation), number(7))
    }

    fn due(closing: &mut CircuitClosing, banned: &[u32]) -> Vec<u32> {
        let banned = banned.iter().map(|of| (number(*of), Refusal::Banned)).collect();
        closing.due(banned).iter().map(|circuit| circuit.number_for_this_node().get()).collect()
    }

    #[test]
    fn each_banned_circuit_is_closed_once_and_again_after_another_ban() {
        let mut closing = CircuitClosing::default();
        assert_eq!(due(&mut closing, &[1, 2]), [0; 0], "which tor is not known");
        closing.begin(TorGeneration(5));
        assert_eq!(due(&mut closing, &[1, 2]), [1, 2]);
        assert_eq!(due(&mut closing, &[1, 2, 3]), [3]);
        assert_eq!(due(&mut closing, &[2]), [0; 0]);
        assert_eq!(due(&mut closing, &[1, 2]), [1]);
    }

    #[test]
    fn what_could_not_be_asked_is_asked_again() {
        let mut closing = CircuitClosing::default();
        closing.begin(TorGeneration(5));
        assert_eq!(due(&mut closing, &[7]), [7]);
        closing.failed(circuit(4));
        assert_eq!(due(&mut closing, &[7]), [0; 0], "of another tor process");
        closing.failed(circuit(5));
        assert_eq!(due(&mut closing, &[7]), [7]);
    }

    #[test]
    fn another_tor_process_has_other_circuits() {
        let mut closing = CircuitClosing::default();
        closing.begin(TorGeneration(5));
        assert_eq!(due(&mut closing, &[7]), [7]);
        closing.begin(TorGeneration(5));
        assert_eq!(due(&mut closing, &[7]), [0; 0]);
        closing.begin(TorGeneration(6));
        assert_eq!(due(&mut closing, &[7]), [7]);
    }

    #[test]
    fn what_tor_accepts_counts_once_and_by_what_it_was_asked_for() {
        let mut closing = CircuitClosing::default();
        closing.begin(TorGeneration(5));
        assert_eq!(closing.accepted(circuit(5)), None, "an operator asked");
        for (why, is_asked) in [(Refusal::CircuitSlow, true), (Refusal::CircuitAged, false)] {
            let asked = closing.due([(number(7), why)].into());
            assert_eq!(asked.len(), usize::from(is_asked));
            assert_eq!(closing.why(number(7)), Some(Refusal::CircuitSlow));
        }
        assert_eq!(closing.accepted(circuit(4)), None, "of another tor process");
        assert_eq!(closing.accepted(circuit(5)), Some(Refusal::CircuitSlow));
        assert_eq!(closing.accepted(circuit(5)), None);
        // It carries a stream again, and later none.
        assert_eq!(due(&mut closing, &[]), [0; 0]);
        assert_eq!(closing.why(number(7)), None);
        assert_eq!(due(&mut closing, &[7]), [7]);
        assert_eq!(closing.accepted(circuit(5)), Some(Refusal::Banned));
    }
}
