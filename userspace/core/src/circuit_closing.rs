//! Which circuits tor is to close: those that are banned, each once.
//!
//! A ban at the ingress refuses the streams of a circuit, and the circuit stays: its client goes on to send. Closed at tor, it
//! has to be introduced, to solve tor's puzzle where there is one, and to be built again.

use std::{collections::BTreeSet, num::NonZeroU32};

use crate::id::{CircuitId, TorGeneration};

/// What tor was asked for already.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CircuitClosing {
    generation: Option<TorGeneration>,
    asked: BTreeSet<NonZeroU32>,
}

impl CircuitClosing {
    /// Another tor process hands over the streams: the numbers mean other circuits.
    pub fn begin(&mut self, generation: TorGeneration) {
        if self.generation != Some(generation) {
            *self = Self { generation: Some(generation), asked: BTreeSet::new() };
        }
    }

    /// Of those that are banned now, the ones that tor was not asked to close yet. None while it is not known which tor
    /// process hands over the streams.
    pub fn due(&mut self, banned: BTreeSet<NonZeroU32>) -> Vec<CircuitId> {
        let Some(generation) = self.generation else { return Vec::new() };
        let new = banned.difference(&self.asked).map(|number| CircuitId::new(generation, *number)).collect();
        self.asked = banned;
        new
    }

    /// Tor could not be asked; it is tried again as long as the ban lasts.
    pub fn failed(&mut self, circuit: CircuitId) {
        if self.generation == Some(circuit.generation()) {
            self.asked.remove(&circuit.number_for_this_node());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(numbers: &[u32]) -> BTreeSet<NonZeroU32> {
        numbers.iter().filter_map(|number| NonZeroU32::new(*number)).collect()
    }

    fn due(closing: &mut CircuitClosing, banned: &[u32]) -> Vec<u32> {
        closing.due(numbers(banned)).iter().map(|circuit| circuit.number_for_this_node().get()).collect()
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
        let circuit = |generation| CircuitId::new(TorGeneration(generation), NonZeroU32::new(7).unwrap());
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
}
