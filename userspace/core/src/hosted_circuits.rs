//! Which circuits of a service that this process hosts are open, and which goes where there is no room for another.
//!
//! A circuit without a stream costs its client nothing, so whoever opens many could hold all places. The one that has been without
//! longest goes first: a visitor uses a circuit as soon as it is there.

use std::{
    collections::{BTreeMap, HashMap},
    num::NonZeroU32,
};

/// Circuits that are open, each with what closes it.
#[derive(Debug)]
pub struct Places<T> {
    most: usize,
    held: HashMap<NonZeroU32, Place<T>>,
    /// Those without a stream, by when that began.
    bare: BTreeMap<u64, NonZeroU32>,
    /// Counts what begins to be without a stream.
    moment: u64,
}

#[derive(Debug)]
struct Place<T> {
    closer: T,
    streams: usize,
    /// Its key in [`Places::bare`], as long as it has no stream.
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
        Self { most, held: HashMap::new(), bare: BTreeMap::new(), moment: 0 }
    }

    /// A circuit of this number is new. It has no stream yet.
    pub fn enter(&mut self, number: NonZeroU32, closer: T) -> Entered<T> {
        // Numbers come again after four thousand millions.
        if self.held.contains_key(&number) {
            return Entered::Full;
        }
        let mut entered = Entered::Free;
        if self.held.len() >= self.most {
            let Some((_, longest)) = self.bare.pop_first() else { return Entered::Full };
            if let Some(place) = self.held.remove(&longest) {
                entered = Entered::InPlaceOf(place.closer);
            }
        }
        let bare_at = self.begin_bare(number);
        self.held.insert(number, Place { closer, streams: 0, bare_at });
        entered
    }

    fn begin_bare(&mut self, number: NonZeroU32) -> u64 {
        self.moment = self.moment.wrapping_add(1);
        self.bare.insert(self.moment, number);
        self.moment
    }

    /// A stream of the circuit has begun.
    pub fn stream_began(&mut self, number: NonZeroU32) {
        if let Some(place) = self.held.get_mut(&number) {
            place.streams = place.streams.saturating_add(1);
            self.bare.remove(&place.bare_at);
        }
    }

    /// A stream of the circuit that had begun has ended, with all that was to go out.
    pub fn stream_ended(&mut self, number: NonZeroU32) {
        let Some(place) = self.held.get_mut(&number) else { return };
        let had_some = place.streams > 0;
        place.streams = place.streams.saturating_sub(1);
        if had_some && place.streams == 0 {
            let bare_at = self.begin_bare(number);
            if let Some(place) = self.held.get_mut(&number) {
                place.bare_at = bare_at;
            }
        }
    }

    /// The circuit has ended. One whose place was given to another has left already.
    pub fn leave(&mut self, number: NonZeroU32) {
        if let Some(place) = self.held.remove(&number) {
            self.bare.remove(&place.bare_at);
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

#[cfg(test)]
mod tests {
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
        // Without a stream since it ended, not since it came.
        places.stream_ended(number(1));
        assert_eq!(places.enter(number(5), 5), Entered::InPlaceOf(3));
        assert_eq!(places.enter(number(6), 6), Entered::InPlaceOf(4));
        assert_eq!(places.enter(number(7), 7), Entered::InPlaceOf(1));
        assert_eq!((places.len(), places.closer(number(1)), places.closer(number(7))), (3, None, Some(&7)));
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
