//! Which circuits of a service that this process hosts are open, and which goes where there is no room for another.
//!
//! A circuit without a stream costs its client nothing, so whoever opens many could hold all places. A visitor uses a circuit as
//! soon as it is there, and comes back to it for the next page. So those that never had a stream, and those that have none any
//! more, give way apart, each in the order in which that began: the former while they hold more than half of the places, else the
//! latter. Neither kind can push out the other.

use std::{
    collections::{BTreeMap, HashMap},
    num::NonZeroU32,
    time::Duration,
};

use crate::time::Monotime;

/// Circuits that are open, each with what closes it.
#[derive(Debug)]
pub struct Places<T> {
    most: usize,
    held: HashMap<NonZeroU32, Place<T>>,
    /// Those that never had a stream, by when they came.
    fresh: BTreeMap<u64, NonZeroU32>,
    /// Those that have no stream any more, by when that began.
    left: BTreeMap<u64, NonZeroU32>,
    /// Counts what begins to be without a stream.
    moment: u64,
}

#[derive(Debug)]
struct Place<T> {
    closer: T,
    streams: usize,
    /// Its key in [`Places::fresh`] or [`Places::left`], as long as it has no stream.
    bare_at: u64,
}

/// What becomes of a circuit that is new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entered<T> {
    /// It has a place that was free.
    Free,
    /// It has the place of another, which is to be closed with this.
    InPlaceOf(T),
    /// It has none: all others have streams.
    Full,
}

impl<T> Places<T> {
    /// Room for so many circuits.
    pub fn new(most: usize) -> Self {
        Self { most, held: HashMap::new(), fresh: BTreeMap::new(), left: BTreeMap::new(), moment: 0 }
    }

    /// A circuit of this number is new. It has no stream yet.
    pub fn enter(&mut self, number: NonZeroU32, closer: T) -> Entered<T> {
        // Numbers come again after four thousand millions.
        if self.held.contains_key(&number) {
            return Entered::Full;
        }
        let mut entered = Entered::Free;
        if self.held.len() >= self.most {
            let Some(longest) = self.first_to_go() else { return Entered::Full };
            if let Some(place) = self.held.remove(&longest) {
                entered = Entered::InPlaceOf(place.closer);
            }
        }
        let bare_at = self.next_moment();
        self.fresh.insert(bare_at, number);
        self.held.insert(number, Place { closer, streams: 0, bare_at });
        entered
    }

    fn next_moment(&mut self) -> u64 {
        self.moment = self.moment.wrapping_add(1);
        self.moment
    }

    /// Takes the one out that gives way.
    fn first_to_go(&mut self) -> Option<NonZeroU32> {
        let are_many_fresh = self.fresh.len() > self.most / 2;
        let lists = if are_many_fresh {
            [&mut self.fresh, &mut self.left]
        } else {
            [&mut self.left, &mut self.fresh]
        };
        lists.into_iter().find_map(|list| list.pop_first()).map(|(_, number)| number)
    }

    fn is_bare_no_more(&mut self, bare_at: u64) {
        // No moment comes twice, so it is in one of them at most.
        self.fresh.remove(&bare_at);
        self.left.remove(&bare_at);
    }

    /// A stream of the circuit has begun.
    pub fn stream_began(&mut self, number: NonZeroU32) {
        if let Some(place) = self.held.get_mut(&number) {
            place.streams = place.streams.saturating_add(1);
            let bare_at = place.bare_at;
            self.is_bare_no_more(bare_at);
        }
    }

    /// A stream of the circuit that had begun has ended, with all that was to go out.
    pub fn stream_ended(&mut self, number: NonZeroU32) {
        let Some(place) = self.held.get_mut(&number) else { return };
        let had_some = place.streams > 0;
        place.streams = place.streams.saturating_sub(1);
        if had_some && place.streams == 0 {
            let bare_at = self.next_moment();
            self.left.insert(bare_at, number);
            if let Some(place) = self.held.get_mut(&number) {
                place.bare_at = bare_at;
            }
        }
    }

    /// The circuit has ended. One whose place was given to another has left already.
    pub fn leave(&mut self, number: NonZeroU32) {
        if let Some(place) = self.held.remove(&number) {
            self.is_bare_no_more(place.bare_at);
        }
    }

    /// What closes the circuit, if it is open.
    pub fn closer(&self, number: NonZeroU32) -> Option<&T> {
        self.held.get(&number).map(|place| &place.closer)
    }

    /// Circuits that have a place.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether none has.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }
}

/// How fast clients are met where those that paid most come first: a token bucket, as C tor's `HiddenServicePoWQueueRate` and
/// `HiddenServicePoWQueueBurst` (`hs_circuit.c`). Only where others wait does an order mean anything, and only then does Arti ask
/// for more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intake {
    /// From one to the next.
    interval: Duration,
    /// How far ahead of its interval one may come.
    ahead: Duration,
    /// When the next one would come if all had kept their interval (the virtual scheduling algorithm, ITU-T I.371).
    due: Monotime,
}

impl Intake {
    /// So many a second, and so many at once.
    pub fn new(a_second: NonZeroU32, at_once: NonZeroU32) -> Self {
        let interval = Duration::from_secs(1) / a_second.get();
        Self { interval, ahead: interval * (at_once.get() - 1), due: Monotime(0) }
    }

    /// How long until one more may be taken; zero: now.
    pub fn wait(&self, now: Monotime) -> Duration {
        self.due.since(now.after(self.ahead))
    }

    /// One was taken.
    pub fn take(&mut self, now: Monotime) {
        self.due = self.due.max(now).after(self.interval);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn number(number: u32) -> NonZeroU32 {
        NonZeroU32::new(number).unwrap()
    }

    fn full() -> Places<u32> {
        let mut places = Places::new(3);
        for each in 1..=3 {
            assert_eq!(places.enter(number(each), each), Entered::Free);
        }
        places
    }

    #[test]
    fn the_circuit_that_was_without_a_stream_longest_gives_its_place_up() {
        let mut places = full();
        places.stream_began(number(1));
        assert_eq!(places.enter(number(4), 4), Entered::InPlaceOf(2));
        assert_eq!(places.enter(number(5), 5), Entered::InPlaceOf(3));
        places.stream_began(number(5));
        // Without a stream since it ended, not since it came.
        places.stream_ended(number(5));
        places.stream_ended(number(1));
        assert_eq!(places.enter(number(6), 6), Entered::InPlaceOf(5));
        assert_eq!((places.len(), places.closer(number(5)), places.closer(number(6))), (3, None, Some(&6)));
    }

    #[test]
    fn neither_those_that_never_had_a_stream_nor_those_that_had_push_the_others_out() {
        let mut places = Places::new(8);
        for each in 1..=4 {
            places.enter(number(each), each);
            places.stream_began(number(each));
            places.stream_ended(number(each));
        }
        // A flood of circuits without a stream.
        for each in 5..1_000 {
            places.enter(number(each), each);
        }
        let visitors = (1..=4).filter(|each| places.closer(number(*each)).is_some()).count();
        assert_eq!((visitors, places.len()), (3, 8));
        // One of circuits that each have had one.
        for each in 1_000..2_000 {
            places.enter(number(each), each);
            places.stream_began(number(each));
            places.stream_ended(number(each));
        }
        places.enter(number(2_000), 2_000);
        assert_eq!((places.len(), places.closer(number(2_000))), (8, Some(&2_000)));
    }

    proptest! {
        /// For all arrivals, in no span more than its share and the burst are taken, and after a rest one is taken at once.
        #[test]
        fn no_more_is_taken_than_the_rate_allows(
            a_second in 1u32..200,
            at_once in 1u32..100,
            arrivals in prop::collection::vec(0u64..200_000_000, 1..300),
        ) {
            let [rate, burst] = [a_second, at_once].map(|number| NonZeroU32::new(number).unwrap());
            let (mut intake, mut now, mut taken) = (Intake::new(rate, burst), Monotime(1 << 40), Vec::new());
            for pause in arrivals {
                now = now.after(Duration::from_nanos(pause));
                let wait = intake.wait(now);
                prop_assert!(wait <= Duration::from_secs(1) / a_second);
                if wait.is_zero() {
                    intake.take(now);
                    taken.push(now);
                }
            }
            for (first, begun) in taken.iter().enumerate() {
                for (last, ended) in taken.iter().enumerate().skip(first) {
                    let share = ended.since(*begun).as_secs_f64() * f64::from(a_second) + f64::from(at_once);
                    // Nanoseconds are rounded down.
                    prop_assert!((last - first + 1) as f64 <= share + 0.01);
                }
            }
            prop_assert!(intake.wait(now.after(Duration::from_secs(100))).is_zero());
        }
    }

    #[test]
    fn one_with_streams_keeps_its_place_until_the_last_ends() {
        let mut places = full();
        for each in 1..=3 {
            places.stream_began(number(each));
            places.stream_began(number(each));
        }
        places.stream_ended(number(2));
        assert_eq!(places.enter(number(4), 4), Entered::Full);
        places.stream_ended(number(2));
        // One that had ended before changes nothing.
        places.stream_ended(number(2));
        assert_eq!(places.enter(number(4), 4), Entered::InPlaceOf(2));
        assert_eq!((places.enter(number(4), 5), places.closer(number(4))), (Entered::Full, Some(&4)));
    }

    #[test]
    fn what_has_left_takes_no_place_and_no_other_with_it() {
        let mut places = full();
        assert_eq!(places.enter(number(4), 4), Entered::InPlaceOf(1));
        // The task of the first ends only now.
        places.stream_began(number(1));
        places.stream_ended(number(1));
        places.leave(number(1));
        assert_eq!(places.len(), 3);
        for each in 2..=4 {
            places.leave(number(each));
        }
        assert!(places.is_empty());
        assert_eq!(places.enter(number(5), 5), Entered::Free);
    }
}
