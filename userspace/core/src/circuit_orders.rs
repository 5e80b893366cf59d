//! What operators said of circuits, for the front to follow.
//!
//! Circuits end with their tor process, so nothing here is durable, and all of it goes with a new generation.

use std::{collections::BTreeMap, num::NonZeroU32, time::Duration};

use crate::{
    id::TorGeneration,
    time::{Monotime, Now},
};

/// Most circuits that operators may have said something of; see [`OrderError::Full`].
pub const MOST_ORDERS: usize = 10_000;
/// The length of a ban without one: the first rung of the ladder for circuits.
pub const USUAL_BAN: Duration = Duration::from_secs(300);

/// What a circuit is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CircuitOrder {
    /// Each of its streams is refused until then.
    Banned {
        /// When that ends.
        until: Monotime,
    },
    /// It goes past the queue.
    Vip,
    /// As any other: what the front found out about it is forgotten.
    Normal,
}

/// Why an order was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// There are too many.
    #[error(
        "{MOST_ORDERS} circuits have orders already: nothing was changed; lift some with `tunica circuit unban`, or set limits \
         under [circuits] that do the work"
    )]
    Full,
}

/// The orders in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CircuitOrders {
    generation: u64,
    revision: u64,
    orders: BTreeMap<NonZeroU32, CircuitOrder>,
}

impl CircuitOrders {
    /// Says what a circuit of the present generation is to be, in place of what was said before.
    ///
    /// # Errors
    /// [`OrderError`]; nothing is changed then.
    pub fn set(&mut self, circuit: NonZeroU32, order: CircuitOrder) -> Result<(), OrderError> {
        if self.orders.len() >= MOST_ORDERS && !self.orders.contains_key(&circuit) {
            return Err(OrderError::Full);
        }
        if self.orders.insert(circuit, order) != Some(order) {
            self.revision += 1;
        }
        Ok(())
    }

    /// Another tor process hands over the streams.
    pub fn begin(&mut self, generation: TorGeneration) {
        if self.generation != generation.0 {
            self.generation = generation.0;
            self.orders.clear();
            self.revision += 1;
        }
    }

    /// Forgets bans that are over.
    pub fn advance(&mut self, now: Now) {
        let before = self.orders.len();
        self.orders.retain(|_, order| !matches!(order, CircuitOrder::Banned { until } if *until <= now.mono));
        if self.orders.len() != before {
            self.revision += 1;
        }
    }

    /// When [`Self::advance`] has something to do.
    pub fn next_deadline(&self) -> Option<Monotime> {
        let ends = self.orders.values().filter_map(|order| match order {
            CircuitOrder::Banned { until } => Some(*until),
            CircuitOrder::Vip | CircuitOrder::Normal => None,
        });
        ends.min()
    }

    /// Grows with each change.
    pub const fn revision(&self) -> u64 {
        self.revision
    }

    /// The tor process that is meant.
    pub const fn generation(&self) -> TorGeneration {
        TorGeneration(self.generation)
    }

    /// What was said of a circuit.
    pub fn get(&self, circuit: NonZeroU32) -> Option<CircuitOrder> {
        self.orders.get(&circuit).copied()
    }

    /// Everything that should be in force, by circuit.
    pub fn desired(&self) -> impl Iterator<Item = (NonZeroU32, CircuitOrder)> {
        self.orders.iter().map(|(circuit, order)| (*circuit, *order))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::WallTime;

    fn at(seconds: u64) -> Now {
        Now { mono: Monotime(seconds * 1_000_000_000), wall: WallTime(1_000_000 + seconds) }
    }

    fn circuit(number: u32) -> NonZeroU32 {
        NonZeroU32::new(number).unwrap()
    }

    #[test]
    fn a_ban_ends_and_every_change_has_a_number() {
        let mut orders = CircuitOrders::default();
        let ban = CircuitOrder::Banned { until: at(10).mono };
        orders.set(circuit(7), ban).unwrap();
        orders.set(circuit(7), ban).unwrap();
        orders.set(circuit(8), CircuitOrder::Vip).unwrap();
        assert_eq!((orders.revision(), orders.next_deadline()), (2, Some(at(10).mono)));
        orders.advance(at(9));
        assert_eq!((orders.revision(), orders.get(circuit(7))), (2, Some(ban)));
        orders.advance(at(10));
        assert_eq!((orders.revision(), orders.get(circuit(7)), orders.next_deadline()), (3, None, None));
        assert_eq!(orders.desired().collect::<Vec<_>>(), [(circuit(8), CircuitOrder::Vip)]);
    }

    #[test]
    fn nothing_is_carried_over_to_another_tor_process() {
        let mut orders = CircuitOrders::default();
        orders.set(circuit(7), CircuitOrder::Vip).unwrap();
        orders.begin(TorGeneration(0));
        assert_eq!((orders.revision(), orders.get(circuit(7))), (1, Some(CircuitOrder::Vip)));
        orders.begin(TorGeneration(1));
        assert_eq!(
            (orders.revision(), orders.get(circuit(7)), orders.generation()),
            (2, None, TorGeneration(1))
        );
    }

    #[test]
    fn there_is_room_for_so_many_and_those_that_are_there_can_change() {
        let mut orders = CircuitOrders::default();
        for number in 1..=u32::try_from(MOST_ORDERS).unwrap() {
            orders.set(circuit(number), CircuitOrder::Vip).unwrap();
        }
        assert_eq!(orders.set(circuit(4_000_000), CircuitOrder::Vip), Err(OrderError::Full));
        assert_eq!(orders.set(circuit(1), CircuitOrder::Normal), Ok(()));
    }
}
