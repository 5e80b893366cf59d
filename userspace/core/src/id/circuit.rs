//! Who a stream came from.
//!
//! Every client of an onion service arrives through the host's own guards, so the circuit is all that tells clients
//! apart. There is deliberately no conversion between a [`CircuitId`] and a [`super::PacketSource`].

use std::{fmt, num::NonZeroU32};

/// Which tor process: a number that the owner gives, a higher one with each start of tor.
///
/// Tor numbers its circuits from 1 again with each start, so a circuit's number says nothing without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TorGeneration(pub u64);

/// A circuit of one tor process. One process never gives a number twice.
///
/// `Debug` is scrubbed and there is no `Display`: raw circuit numbers never leave the node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CircuitId {
    generation: TorGeneration,
    number: NonZeroU32,
}

impl CircuitId {
    /// Circuit `number` of the tor process `generation`. Zero is no circuit: tor writes it where it knows of none.
    pub const fn new(generation: TorGeneration, number: NonZeroU32) -> Self {
        Self { generation, number }
    }

    /// The tor process that the circuit belongs to.
    pub const fn generation(self) -> TorGeneration {
        self.generation
    }

    /// The number that tor gave: for this node's tor, gate, backend and operator alone. It belongs in no log, no metric
    /// and no message to another node.
    pub const fn number_for_this_node(self) -> NonZeroU32 {
        self.number
    }

    /// Which of `shards` equal parts the circuit belongs to. Tor counts upwards, so the parts fill evenly.
    pub const fn shard(self, shards: NonZeroU32) -> u32 {
        self.number.get() % shards.get()
    }
}

impl fmt::Debug for CircuitId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("CircuitId(scrubbed)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn circuit(generation: u64, number: u32) -> CircuitId {
        CircuitId::new(TorGeneration(generation), NonZeroU32::new(number).unwrap())
    }

    #[test]
    fn generations_part_equal_numbers() {
        assert_ne!(circuit(1, 33), circuit(2, 33));
        assert_eq!(circuit(1, 33).number_for_this_node().get(), 33);
        assert_eq!(circuit(7, 33).generation(), TorGeneration(7));
    }

    #[test]
    fn debug_shows_no_number() {
        assert!(!format!("{:?}", circuit(12, 345)).contains(char::is_numeric));
    }

    #[test]
    fn numbers_in_a_row_fill_all_shards_evenly() {
        let shards = NonZeroU32::new(4).unwrap();
        let mut filled = [0; 4];
        (1..=40).for_each(|number| filled[circuit(1, number).shard(shards) as usize] += 1);
        assert_eq!(filled, [10; 4]);
    }
}
