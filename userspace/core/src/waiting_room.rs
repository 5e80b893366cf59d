//! Where a circuit waits that did some of the work that the load asks for, and cannot do all of it: a browser, which is
//! never asked for more than `pow_page_max`, or a person who read a picture.
//!
//! It comes again every few seconds and is told its place. It is let in once it has waited for as long as it was told, and
//! its turn has come: so many are let in each second, those who came first before the others. Who stays away loses the place.
//!
//! The room is bounded ([`RoomSettings::most`]), and a circuit stands in it once. A full room takes nobody, rather than sending
//! away those who have waited.

use std::{
    collections::BTreeMap,
    num::{NonZeroU32, NonZeroUsize},
    time::Duration,
};

use crate::{id::CircuitId, time::Monotime};

/// Bounds of the room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoomSettings {
    /// Circuits in it.
    pub most: NonZeroUsize,
    /// Circuits that are let in each second.
    pub per_second: NonZeroU32,
    /// How long a circuit may stay away before it loses its place.
    pub patience: Duration,
}

/// Where a circuit stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Not in the room.
    Absent,
    /// It waits.
    Waits {
        /// How many came before it and are still there.
        before: u32,
        /// Least time until it may be let in.
        left: Duration,
    },
    /// It is let in, and stands in the room no longer.
    Enters,
}

/// The room takes nobody now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoomFull;

/// Nanoseconds in a second.
const SECOND: u64 = 1_000_000_000;
/// How many seconds' worth of turns may be saved up while nobody asks.
const SAVED_SECONDS: u64 = 10;

/// The machine.
#[derive(Clone, Debug)]
pub struct WaitingRoom {
    settings: RoomSettings,
    /// By the number that each got when it came; lower ones came first.
    guests: BTreeMap<u64, Guest>,
    numbers: BTreeMap<CircuitId, u64>,
    next: u64,
    /// Turns that can be given, in nanoseconds of [`RoomSettings::per_second`]'s share of a second.
    saved: u64,
    filled_at: Monotime,
}

#[derive(Clone, Copy, Debug)]
struct Guest {
    circuit: CircuitId,
    ready: Monotime,
    seen: Monotime,
}

impl WaitingRoom {
    /// An empty room.
    pub fn new(settings: RoomSettings, now: Monotime) -> Self {
        let (guests, numbers) = (BTreeMap::new(), BTreeMap::new());
        Self { settings, guests, numbers, next: 0, saved: 0, filled_at: now }
    }

    /// `circuit` comes in and is to wait for `wait` at least. If it is there already it keeps its place, and waits no longer
    /// than it would have.
    ///
    /// # Errors
    /// The room is full.
    pub fn enter(&mut self, circuit: CircuitId, wait: Duration, now: Monotime) -> Result<(), RoomFull> {
        let ready = now.after(wait);
        if let Some(guest) = self.numbers.get(&circuit).and_then(|number| self.guests.get_mut(number)) {
            (guest.ready, guest.seen) = (guest.ready.min(ready), now);
            return Ok(());
        }
        if self.guests.len() >= self.settings.most.get() {
            self.advance(now);
        }
        if self.guests.len() >= self.settings.most.get() {
            return Err(RoomFull);
        }
        if self.guests.is_empty() {
            // Turns that nobody could take are not saved up for the first who come.
            (self.saved, self.filled_at) = (0, now);
        }
        self.guests.insert(self.next, Guest { circuit, ready, seen: now });
        self.numbers.insert(circuit, self.next);
        self.next += 1;
        Ok(())
    }

    /// `circuit` asks for its turn.
    pub fn ask(&mut self, circuit: CircuitId, now: Monotime) -> Standing {
        let Some(number) = self.numbers.get(&circuit).copied() else { return Standing::Absent };
        self.fill(now);
        let before = self.guests.range(..number).count();
        let turn = SECOND / u64::from(self.settings.per_second.get());
        let turns = self.saved / turn.max(1);
        let Some(guest) = self.guests.get_mut(&number) else { return Standing::Absent };
        guest.seen = now;
        let left = guest.ready.since(now);
        // Those before it may take the turns that are left for them first.
        if left.is_zero() && u64::try_from(before).is_ok_and(|before| before < turns) {
            self.saved -= turn;
            self.remove(number);
            return Standing::Enters;
        }
        let turns_missing = u64::try_from(before).unwrap_or(u64::MAX).saturating_add(1).saturating_sub(turns);
        let until_turn = Duration::from_nanos(turns_missing.saturating_mul(turn));
        Standing::Waits { before: u32::try_from(before).unwrap_or(u32::MAX), left: left.max(until_turn) }
    }

    /// Circuits in the room.
    pub fn len(&self) -> usize {
        self.guests.len()
    }

    /// Whether nobody is in it.
    pub fn is_empty(&self) -> bool {
        self.guests.is_empty()
    }

    /// Those who stayed away lose their places.
    pub fn advance(&mut self, now: Monotime) {
        let patience = self.settings.patience;
        let away = |guest: &Guest| now.since(guest.seen) > patience;
        let gone: Vec<u64> =
            self.guests.iter().filter(|(_, guest)| away(guest)).map(|(number, _)| *number).collect();
        for number in gone {
            self.remove(number);
        }
    }

    fn remove(&mut self, number: u64) {
        if let Some(guest) = self.guests.remove(&number) {
            self.numbers.remove(&guest.circuit);
        }
    }

    fn fill(&mut self, now: Monotime) {
        let elapsed = u64::try_from(now.since(self.filled_at).as_nanos()).unwrap_or(u64::MAX);
        self.saved = self.saved.saturating_add(elapsed).min(SAVED_SECONDS * SECOND);
        self.filled_at = self.filled_at.max(now);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::id::TorGeneration;

    fn at(seconds: u64) -> Monotime {
        Monotime(seconds * SECOND)
    }

    fn circuit(number: u32) -> CircuitId {
        CircuitId::new(TorGeneration(1), NonZeroU32::new(number).unwrap())
    }

    fn room(most: usize, per_second: u32) -> WaitingRoom {
        let settings = RoomSettings {
            most: NonZeroUsize::new(most).unwrap(),
            per_second: NonZeroU32::new(per_second).unwrap(),
            patience: Duration::from_secs(30),
        };
        WaitingRoom::new(settings, at(0))
    }

    fn waits(before: u32, seconds: u64) -> Standing {
        Standing::Waits { before, left: Duration::from_secs(seconds) }
    }

    const TEN: Duration = Duration::from_secs(10);

    #[test]
    fn each_waits_for_its_time_and_its_turn() {
        let mut room = room(4, 1);
        assert_eq!(room.ask(circuit(1), at(100)), Standing::Absent);
        for number in 1..=3 {
            room.enter(circuit(number), TEN, at(100)).unwrap();
        }
        // Second, circuit, what it is told.
        for (second, number, standing) in [
            (100, 1, waits(0, 10)),
            (101, 1, waits(0, 9)),
            (102, 3, waits(2, 8)),
            // Ten turns are saved up by now: enough for the two before it as well.
            (110, 3, Standing::Enters),
            (110, 2, Standing::Enters),
            (110, 1, Standing::Enters),
            (110, 1, Standing::Absent),
        ] {
            assert_eq!(room.ask(circuit(number), at(second)), standing, "{second} {number}");
        }
    }

    #[test]
    fn so_many_are_let_in_each_second_and_the_first_come_first() {
        let mut room = room(100, 2);
        for number in 1..=60 {
            room.enter(circuit(number), TEN, at(0)).unwrap();
        }
        let mut entered = Vec::new();
        for second in 10..40 {
            for number in 1..=60 {
                match room.ask(circuit(number), at(second)) {
                    Standing::Enters => entered.push(number),
                    Standing::Waits { .. } | Standing::Absent => {}
                }
            }
            let expected = (20 + 2 * (second - 10)).min(60);
            assert_eq!(entered.len() as u64, expected, "{second}");
        }
        assert_eq!(entered, (1..=60).collect::<Vec<_>>());
    }

    #[test]
    fn who_stays_away_loses_the_place_and_who_comes_twice_keeps_it() {
        let mut room = room(2, 1);
        room.enter(circuit(1), TEN, at(0)).unwrap();
        room.enter(circuit(2), TEN, at(0)).unwrap();
        assert_eq!(room.enter(circuit(3), TEN, at(29)), Err(RoomFull));
        // A longer wait is not added to the one that it was told.
        room.enter(circuit(2), Duration::from_secs(60), at(29)).unwrap();
        assert_eq!(room.enter(circuit(3), TEN, at(31)), Ok(()));
        assert_eq!(room.ask(circuit(1), at(31)), Standing::Absent);
        assert_eq!(room.ask(circuit(2), at(31)), Standing::Enters);
        assert_eq!(room.len(), 1);
    }

    proptest! {
        /// For all comings and goings, the room is never fuller than it may be, lets in nobody twice or too early, and no
        /// more than its pace allows.
        #[test]
        fn the_room_keeps_its_bounds(
            most in 1usize..6,
            per_second in 1u32..4,
            steps in prop::collection::vec((1u32..9, 0u64..4, any::<bool>()), 0..200),
        ) {
            let mut room = room(most, per_second);
            let mut inside: BTreeMap<u32, Monotime> = BTreeMap::new();
            let (mut second, mut entered) = (0, 0_u64);
            for (number, wait, comes) in steps {
                second += wait;
                let now = at(second);
                if comes {
                    let was_inside = inside.contains_key(&number);
                    if room.enter(circuit(number), TEN, now).is_ok() && !was_inside {
                        inside.insert(number, now.after(TEN));
                    }
                } else if room.ask(circuit(number), now) == Standing::Enters {
                    entered += 1;
                    prop_assert!(inside.remove(&number).is_some_and(|ready| ready <= now));
                }
                let there: BTreeSet<u32> =
                    room.guests.values().map(|guest| guest.circuit.number_for_this_node().get()).collect();
                inside.retain(|number, _| there.contains(number));
                prop_assert!(room.len() <= most && room.numbers.len() == room.len());
                prop_assert!(entered <= (second + SAVED_SECONDS) * u64::from(per_second));
            }
        }
    }
}
