//! Tor's circuits as its control port tells of them, to stand beside what the front says of the same numbers.
//!
//! Everything belongs to one tor process, and goes with it. While tor is not connected nothing is known; once it is again,
//! the list of circuits that comes first says which of those before are still there.
//!
//! # Memory
//!
//! At most [`MOST_CIRCUITS`] rows of at most 72 bytes with their number. A B-tree keeps every node but its root at least
//! 5/11 full, so a row costs at most 2.2 places and its share of the nodes: less than 8 MiB in all, and twice
//! that while a list takes the place of what was there. Tor's numbers ascend, and
//! where there are more circuits the highest numbers stay: those of a flood that is going on.

use std::{collections::BTreeMap, fmt, num::NonZeroU32, time::Duration};

use crate::{
    id::{CircuitId, TorGeneration},
    time::Monotime,
};

/// Most circuits that are remembered.
pub const MOST_CIRCUITS: usize = 32_768;

const _: () = assert!(size_of::<TorFacts>() + size_of::<NonZeroU32>() <= 72, "a row is larger than stated");

/// A relay's RSA identity, 20 bytes. `Debug` is scrubbed; `Display` is for the operator who asked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelayId([u8; 20]);

impl RelayId {
    /// The relay of this identity.
    pub const fn new(identity: [u8; 20]) -> Self {
        Self(identity)
    }
}

impl fmt::Debug for RelayId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("RelayId(scrubbed)")
    }
}

impl fmt::Display for RelayId {
    /// Forty capital hexadecimal digits, as tor writes a fingerprint, without `$`.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(out, "{byte:02X}"))
    }
}

/// What a circuit is for (control-spec, "Circuit status changed", `PURPOSE` and `HS_STATE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CircuitUse {
    /// A service meets a client.
    ServiceRendezvous {
        /// The client is there.
        is_joined: bool,
    },
    /// A service's introduction point.
    ServiceIntroduction {
        /// Clients can be introduced.
        is_established: bool,
    },
    /// Something else, or in advance for anything.
    Other,
}

/// What tor says has happened to a circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It is being built, or nothing is known of how far it is.
    Grows,
    /// All its hops are there.
    Built,
    /// It is for something else now, or further in what it is for.
    Repurposed,
    /// It has ended.
    Ended,
}

/// One word of tor's about one circuit. `Debug` shows neither circuit nor relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CircuitWord {
    /// Which circuit.
    pub circuit: CircuitId,
    /// What it is for now.
    pub used_for: CircuitUse,
    /// What happened.
    pub step: Step,
    /// The relay where service and client meet, once the circuit reaches it.
    pub rendezvous: Option<RelayId>,
    /// The effort of the puzzle that the client solved for tor; `None`: none.
    pub pow_effort: Option<u64>,
}

/// What is known of a circuit of tor's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TorFacts {
    /// What it is for.
    pub used_for: CircuitUse,
    /// Whether all its hops are there.
    pub is_built: bool,
    /// The relay where service and client meet; `None` until it is reached, and for any other circuit.
    pub rendezvous: Option<RelayId>,
    /// When its client came. `None` for one whose client was there before tor was connected, and for any other circuit: its
    /// number tells nothing, because tor takes circuits that it made in advance.
    pub joined: Option<Monotime>,
    /// The effort of the puzzle that its client solved for tor.
    pub pow_effort: Option<u64>,
}

impl TorFacts {
    /// One word for what it is for and how far it is.
    pub const fn state(&self) -> &'static str {
        match (self.used_for, self.is_built) {
            (CircuitUse::ServiceRendezvous { is_joined: true }, _) => "joined",
            (CircuitUse::ServiceRendezvous { is_joined: false }, true) => "meeting",
            (CircuitUse::ServiceRendezvous { is_joined: false }, false) => "building",
            (CircuitUse::ServiceIntroduction { .. }, _) => "introduction",
            (CircuitUse::Other, _) => "other",
        }
    }

    /// Whether it is one of a service's towards a client.
    pub const fn is_rendezvous(&self) -> bool {
        matches!(self.used_for, CircuitUse::ServiceRendezvous { .. })
    }

    /// How long its client has been there, where that is known.
    pub fn age(&self, now: Monotime) -> Option<Duration> {
        self.joined.map(|joined| now.since(joined))
    }
}

/// Why a circuit is not to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotClosable {
    /// Nobody can be asked.
    #[error("tor's control port is not connected, so nobody can close a circuit; `tunica status` says why")]
    NoTor,
    /// There is none, or it is not remembered.
    #[error("tor has no open circuit of this number; `tunica circuits` shows those that there are")]
    Unknown,
    /// It is tor's own.
    #[error(
        "this circuit is no rendezvous of the service with a client but one that tor needs itself (introduction point, \
         descriptor, spare)"
    )]
    TorsOwn,
}

/// Tor's circuits. See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CircuitRegistry {
    generation: Option<TorGeneration>,
    is_connected: bool,
    /// Whether the list of circuits has come since tor was connected.
    is_whole: bool,
    circuits: BTreeMap<NonZeroU32, TorFacts>,
    crowded_out: u64,
    /// The highest number that was not remembered since the last list: of those below, what is not here may exist.
    not_remembered: Option<NonZeroU32>,
}

impl CircuitRegistry {
    /// Tor is connected. Another process than before has other circuits.
    pub fn begin(&mut self, generation: TorGeneration) {
        if self.generation != Some(generation) {
            *self = Self { generation: Some(generation), ..Self::default() };
        }
        self.is_connected = true;
        self.is_whole = false;
    }

    /// Tor is not connected any more.
    pub const fn gone(&mut self) {
        self.is_connected = false;
        self.is_whole = false;
    }

    /// Every circuit there is; all others have ended. What the list shows as joined may have been so for long, so only those
    /// known from before keep the time of it.
    pub fn listed(&mut self, open: impl IntoIterator<Item = CircuitWord>) {
        let before = std::mem::take(&mut self.circuits);
        self.not_remembered = None;
        for word in open {
            let known = before.get(&word.circuit.number_for_this_node());
            self.keep(word, known.and_then(|known| known.joined));
        }
        self.is_whole = self.is_connected;
    }

    /// One circuit changed.
    pub fn heard(&mut self, word: CircuitWord, now: Monotime) {
        let known = self.circuits.get(&word.circuit.number_for_this_node());
        let was_joined = known.is_some_and(|known| is_joined(known.used_for));
        let joined = if was_joined { known.and_then(|known| known.joined) } else { Some(now) };
        self.keep(word, joined);
    }

    fn keep(&mut self, word: CircuitWord, joined: Option<Monotime>) {
        if self.generation != Some(word.circuit.generation()) {
            return;
        }
        let number = word.circuit.number_for_this_node();
        let known = self.circuits.remove(&number);
        let is_built = match word.step {
            Step::Ended => return,
            Step::Grows => false,
            Step::Built => true,
            // Tor says so only of circuits that are whole (`circuit_change_purpose` in circuituse.c).
            Step::Repurposed => known.is_none_or(|known| known.is_built) || is_joined(word.used_for),
        };
        let is_rendezvous = matches!(word.used_for, CircuitUse::ServiceRendezvous { .. });
        let facts = TorFacts {
            used_for: word.used_for,
            is_built,
            // A circuit keeps its last relay, and not every word names it.
            rendezvous: word
                .rendezvous
                .or_else(|| known.and_then(|known| known.rendezvous))
                .filter(|_| is_rendezvous),
            joined: joined.filter(|_| is_joined(word.used_for)),
            pow_effort: word.pow_effort.or_else(|| known.and_then(|known| known.pow_effort)),
        };
        self.circuits.insert(number, facts);
        if self.circuits.len() > MOST_CIRCUITS {
            let lowest = self.circuits.pop_first().map(|(number, _)| number);
            self.not_remembered = self.not_remembered.max(lowest);
            self.crowded_out = self.crowded_out.saturating_add(1);
        }
    }

    /// Whether tor is connected, so that what is not here does not exist.
    pub const fn is_connected(&self) -> bool {
        self.is_connected
    }

    /// Whether tor has said of all its circuits which there are, so that any other has ended, or was not remembered.
    pub const fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// Of circuits that are to be closed: those that tor can close, and those that it has not any more, or needs itself. Neither
    /// are those that may not have been remembered. `None` until it has said of all its circuits which there are.
    pub fn sort_out<T>(
        &self,
        unwanted: impl IntoIterator<Item = (NonZeroU32, T)>,
    ) -> Option<(BTreeMap<NonZeroU32, T>, Vec<NonZeroU32>)> {
        let (mut there, mut ended) = (BTreeMap::new(), Vec::new());
        for (circuit, what) in unwanted {
            match self.closable(circuit) {
                Ok(_) => drop(there.insert(circuit, what)),
                Err(NotClosable::Unknown) if Some(circuit) <= self.not_remembered => {}
                Err(_) => ended.push(circuit),
            }
        }
        self.is_whole.then_some((there, ended))
    }

    /// What tor says of a circuit; `None` also while tor is not connected.
    pub fn get(&self, circuit: NonZeroU32) -> Option<&TorFacts> {
        self.circuits.get(&circuit).filter(|_| self.is_connected)
    }

    /// All that tor has, the lowest number first; none while tor is not connected.
    pub fn circuits(&self) -> impl DoubleEndedIterator<Item = (NonZeroU32, &TorFacts)> {
        self.circuits.iter().filter(|_| self.is_connected).map(|(number, facts)| (*number, facts))
    }

    /// How many were not remembered, for want of room, since this tor process was first connected.
    pub const fn crowded_out(&self) -> u64 {
        self.crowded_out
    }

    /// The circuit to close for an operator.
    ///
    /// # Errors
    /// [`NotClosable`].
    pub fn closable(&self, circuit: NonZeroU32) -> Result<CircuitId, NotClosable> {
        let generation = self.generation.filter(|_| self.is_connected).ok_or(NotClosable::NoTor)?;
        let facts = self.get(circuit).ok_or(NotClosable::Unknown)?;
        if facts.is_rendezvous() {
            Ok(CircuitId::new(generation, circuit))
        } else {
            Err(NotClosable::TorsOwn)
        }
    }
}

const fn is_joined(used_for: CircuitUse) -> bool {
    matches!(used_for, CircuitUse::ServiceRendezvous { is_joined: true })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const WAITING: CircuitUse = CircuitUse::ServiceRendezvous { is_joined: false };
    const JOINED: CircuitUse = CircuitUse::ServiceRendezvous { is_joined: true };
    const RELAY: RelayId = RelayId::new([0xab; 20]);

    fn number(number: u32) -> NonZeroU32 {
        NonZeroU32::new(number).unwrap()
    }

    fn at(seconds: u64) -> Monotime {
        Monotime(seconds * 1_000_000_000)
    }

    fn word(generation: u64, circuit: u32, used_for: CircuitUse, step: Step) -> CircuitWord {
        let circuit = CircuitId::new(TorGeneration(generation), number(circuit));
        let is_whole = step == Step::Built || used_for == JOINED;
        CircuitWord { circuit, used_for, step, rendezvous: is_whole.then_some(RELAY), pow_effort: None }
    }

    fn begun() -> CircuitRegistry {
        let mut registry = CircuitRegistry::default();
        registry.begin(TorGeneration(4));
        registry
    }

    #[test]
    fn the_life_of_a_rendezvous() {
        for steps in [
            // Made for its client.
            vec![(WAITING, Step::Grows, "building"), (WAITING, Step::Grows, "building")],
            // Made in advance, long before, and taken.
            vec![(CircuitUse::Other, Step::Grows, "other"), (CircuitUse::Other, Step::Built, "other")],
        ] {
            let mut registry = begun();
            for (seconds, (used_for, step, state)) in (1..).zip(steps) {
                registry.heard(word(4, 33, used_for, step), at(seconds));
                let facts = registry.get(number(33)).unwrap();
                assert_eq!((facts.state(), facts.rendezvous, facts.joined), (state, None, None));
            }
            registry.heard(word(4, 33, WAITING, Step::Built), at(10));
            let facts = registry.get(number(33)).unwrap();
            assert_eq!((facts.state(), facts.rendezvous, facts.joined), ("meeting", Some(RELAY), None));
            let come = CircuitWord { pow_effort: Some(7), ..word(4, 33, JOINED, Step::Repurposed) };
            registry.heard(come, at(20));
            // Said twice.
            registry.heard(word(4, 33, JOINED, Step::Repurposed), at(25));
            let facts = registry.get(number(33)).unwrap();
            assert_eq!((facts.state(), facts.rendezvous, facts.pow_effort), ("joined", Some(RELAY), Some(7)));
            assert_eq!(facts.age(at(50)), Some(Duration::from_secs(30)), "since its client came");
            registry.heard(word(4, 33, JOINED, Step::Ended), at(60));
            assert_eq!(registry.get(number(33)), None);
        }
    }

    #[test]
    fn what_was_there_before_has_no_known_age() {
        let mut registry = begun();
        registry.listed([word(4, 33, JOINED, Step::Built)]);
        assert_eq!(registry.get(number(33)).unwrap().age(at(9)), None);
        // Tor writes answers before events that wait.
        registry.heard(word(4, 33, JOINED, Step::Repurposed), at(10));
        assert_eq!(registry.get(number(33)).unwrap().age(at(11)), None);
        registry.heard(word(4, 34, WAITING, Step::Built), at(12));
        registry.heard(word(4, 34, JOINED, Step::Repurposed), at(13));
        registry.listed([word(4, 34, JOINED, Step::Built), word(4, 35, JOINED, Step::Built)]);
        let ages = [33, 34, 35].map(|circuit| registry.get(number(circuit)).map(|facts| facts.age(at(20))));
        assert_eq!(ages, [None, Some(Some(Duration::from_secs(7))), Some(None)]);
    }

    #[test]
    fn what_is_not_there_has_ended_once_the_list_has_come() {
        let mut registry = begun();
        assert!(!registry.is_whole(), "connected, and no list yet");
        registry.heard(word(4, 33, JOINED, Step::Repurposed), at(1));
        assert!(!registry.is_whole());
        let sorted = |registry: &CircuitRegistry| registry.sort_out([33, 34].map(|of| (number(of), ())));
        assert_eq!(sorted(&registry), None);
        registry.listed([word(4, 33, JOINED, Step::Repurposed)]);
        assert_eq!(sorted(&registry), Some(([(number(33), ())].into(), vec![number(34)])));
        registry.listed([]);
        assert!(registry.is_whole());
        // The same tor process, or another, after the connection was lost.
        for generation in [4, 5] {
            registry.gone();
            assert!(!registry.is_whole());
            registry.begin(TorGeneration(generation));
            assert!(!registry.is_whole());
            registry.listed([]);
            assert!(registry.is_whole());
        }
    }

    #[test]
    fn a_circuit_that_serves_something_else_now_meets_nobody() {
        let mut registry = begun();
        registry.heard(word(4, 33, JOINED, Step::Repurposed), at(1));
        registry.heard(word(4, 33, CircuitUse::Other, Step::Repurposed), at(2));
        let facts = registry.get(number(33)).unwrap();
        assert_eq!((facts.state(), facts.rendezvous, facts.joined), ("other", None, None));
    }

    #[test]
    fn what_may_be_closed() {
        let established = CircuitUse::ServiceIntroduction { is_established: true };
        let mut registry = CircuitRegistry::default();
        assert_eq!(registry.closable(number(1)), Err(NotClosable::NoTor));
        registry.begin(TorGeneration(4));
        for (circuit, used_for) in [(1, CircuitUse::Other), (2, established), (3, WAITING), (4, JOINED)] {
            registry.heard(word(4, circuit, used_for, Step::Built), at(1));
        }
        let may = [1, 2, 3, 4, 5].map(|circuit| registry.closable(number(circuit)).err());
        let own = Some(NotClosable::TorsOwn);
        assert_eq!(may, [own, own, None, None, Some(NotClosable::Unknown)]);
        assert_eq!(registry.closable(number(4)).unwrap(), CircuitId::new(TorGeneration(4), number(4)));
        registry.gone();
        assert_eq!(registry.closable(number(4)), Err(NotClosable::NoTor));
    }

    #[test]
    fn nothing_is_carried_over_to_another_tor_process() {
        let mut registry = begun();
        registry.heard(word(4, 33, JOINED, Step::Repurposed), at(1));
        registry.gone();
        assert_eq!((registry.get(number(33)), registry.circuits().count()), (None, 0));
        registry.begin(TorGeneration(4));
        assert!(registry.get(number(33)).is_some(), "the same process");
        registry.gone();
        registry.begin(TorGeneration(5));
        assert_eq!(registry.circuits().count(), 0);
        registry.heard(word(4, 33, JOINED, Step::Repurposed), at(2));
        registry.listed([word(4, 34, JOINED, Step::Built)]);
        assert_eq!(registry.circuits().count(), 0, "late words of the process before");
    }

    #[test]
    fn there_is_room_for_so_many_and_the_newest_stay() {
        let mut registry = begun();
        let most = u32::try_from(MOST_CIRCUITS).unwrap();
        for circuit in 1..=most + 10 {
            registry.heard(word(4, circuit, JOINED, Step::Repurposed), at(1));
        }
        assert_eq!((registry.circuits().count(), registry.crowded_out()), (MOST_CIRCUITS, 10));
        assert_eq!(registry.circuits().next().unwrap().0, number(11));
        // One that was crowded out pushes nobody out when tor speaks of it again.
        registry.heard(word(4, 3, JOINED, Step::Repurposed), at(2));
        assert_eq!(registry.circuits().next().unwrap().0, number(11));
        registry.listed((1..=2 * most).map(|circuit| word(4, circuit, JOINED, Step::Built)));
        assert_eq!(registry.circuits().count(), MOST_CIRCUITS);
        // Nobody says of one that was crowded out that it has ended.
        let unwanted = [most, most + 1, 2 * most + 1].map(|circuit| (number(circuit), ()));
        let ended = vec![number(2 * most + 1)];
        assert_eq!(registry.sort_out(unwanted), Some(([(number(most + 1), ())].into(), ended)));
        registry.listed([]);
        assert_eq!(registry.sort_out([(number(most), ())]), Some(([].into(), vec![number(most)])));
        // The bound of the module's page: every node but the root holds at least 5 of its 11 rows.
        let node = 11 * (size_of::<TorFacts>() + size_of::<NonZeroU32>()) + 12 * size_of::<usize>() + 16;
        assert!(MOST_CIRCUITS.div_ceil(5) * node < 8 << 20, "{node}");
    }

    #[test]
    fn debug_shows_neither_circuit_nor_relay() {
        let mut registry = begun();
        registry.heard(word(4, 33_333, JOINED, Step::Repurposed), at(1));
        let text = format!("{:?} {:?}", word(4, 33_333, JOINED, Step::Built), registry.get(number(33_333)));
        assert!(!text.contains("33333") && !text.contains("171") && !text.contains("AB"), "{text}");
        assert_eq!(RELAY.to_string(), "AB".repeat(20));
    }

    proptest! {
        /// For all sequences of words, what is held is what has not ended since it was last spoken of, and each has an age
        /// only if its client was seen to come.
        #[test]
        fn holds_what_is_open(words in prop::collection::vec((1u32..12, 0usize..4, 0u8..3), 1..120)) {
            let (mut registry, mut open) = (begun(), BTreeSet::new());
            for (seconds, (circuit, step, used_for)) in (1..).zip(words) {
                let step = [Step::Grows, Step::Built, Step::Repurposed, Step::Ended][step];
                let used_for = [CircuitUse::Other, WAITING, JOINED][usize::from(used_for)];
                registry.heard(word(4, circuit, used_for, step), at(seconds));
                if step == Step::Ended { open.remove(&circuit); } else { open.insert(circuit); }
                let held: BTreeSet<u32> = registry.circuits().map(|(number, _)| number.get()).collect();
                prop_assert_eq!(&held, &open);
                for (_, facts) in registry.circuits() {
                    prop_assert_eq!(facts.joined.is_some(), facts.used_for == JOINED);
                    prop_assert!(facts.joined.is_none_or(|joined| joined <= at(seconds)));
                    prop_assert!(facts.rendezvous.is_none() || facts.is_rendezvous());
                }
            }
        }
    }
}
