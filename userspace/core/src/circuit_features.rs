//! What a new circuit does in its first ten seconds, in eleven numbers that say nothing of what it asked for.
//!
//! [`Watch`] counts for the front. It keeps no path, no header, no address and no moment of time: of each path only which of
//! [`PathClass::BUCKETS`] it falls into, by a hash whose secret the caller has. Numbers are kept on a scale of sixteenths of an
//! octave ([`sixteenths`]), so that what is told of a large number is its size alone.
//!
//! # Memory
//!
//! At most the number of rows that [`Watch::new`] is given, [`MOST_WATCHED`] in all shards of a front together, of at most 80 bytes
//! with their number. A B-tree keeps every node but its root at least 5/11 full, so a row costs at most 2.2 places, and 16 bytes
//! beside it: less than 1 MiB in all. A circuit that comes when every place is taken is counted ([`Watch::unwatched`]) and not
//! watched; places come free after [`SPAN`], so that in a flood those are watched who come just then.

use std::{
    collections::{BTreeMap, VecDeque},
    num::NonZeroU32,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{
    id::{CircuitId, TorGeneration},
    time::Monotime,
};

/// How long a circuit is watched, from its first stream on: as long as the windows of the ingress' own limits.
pub const SPAN: Duration = Duration::from_secs(10);
/// Most circuits that a front watches at once.
pub const MOST_WATCHED: u32 = 4_096;

const _: () = assert!(size_of::<Row>() + size_of::<NonZeroU32>() <= 80, "a row is larger than stated");

/// A number of [`Features`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Feature {
    /// Requests over HTTP.
    Requests,
    /// Streams, those that were refused among them.
    Streams,
    /// Most streams at once.
    AtOnce,
    /// The mean of the times between two requests, or between two streams where no request came, in milliseconds; 0: there was one.
    Gap,
    /// The standard deviation of these times on the scale of sixteenths of an octave: 0 is a metronome.
    GapSpread,
    /// From the first stream to the first request, in milliseconds; 0 where there was no request.
    FirstRequest,
    /// Bytes from the client.
    BytesIn,
    /// Bytes to the client.
    BytesOut,
    /// The share of arrivals that were refused or answered with an error, in 256ths.
    Faults,
    /// The share of requests that were neither GET nor HEAD, in 256ths.
    Writes,
    /// How many different classes of paths were asked for, of [`PathClass::BUCKETS`].
    Variety,
}

/// How many numbers there are.
pub const COUNT: usize = Feature::ALL.len();

impl Feature {
    /// Every one, in the order in which they are kept.
    pub const ALL: [Self; 11] = [
        Self::Requests,
        Self::Streams,
        Self::AtOnce,
        Self::Gap,
        Self::GapSpread,
        Self::FirstRequest,
        Self::BytesIn,
        Self::BytesOut,
        Self::Faults,
        Self::Writes,
        Self::Variety,
    ];

    /// The word in answers and in files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Streams => "streams",
            Self::AtOnce => "at_once",
            Self::Gap => "gap",
            Self::GapSpread => "gap_spread",
            Self::FirstRequest => "first_request",
            Self::BytesIn => "bytes_in",
            Self::BytesOut => "bytes_out",
            Self::Faults => "faults",
            Self::Writes => "writes",
            Self::Variety => "variety",
        }
    }
}

/// What a circuit did, one number for each of [`Feature::ALL`]: sixteenths of an octave, or 256ths where it is a share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Features(pub [u16; COUNT]);

impl Features {
    /// One of them.
    pub fn get(&self, feature: Feature) -> u16 {
        Feature::ALL.iter().zip(self.0).find(|(each, _)| **each == feature).map_or(0, |(_, value)| value)
    }
}

/// Which part of all paths the first request was for. `Debug` tells the number, which says nothing without the secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PathClass(u8);

impl PathClass {
    /// Into how many parts all paths are divided.
    pub const BUCKETS: u8 = 64;
    /// There was no request.
    pub const NONE: Self = Self(Self::BUCKETS);

    /// The class of a path with this hash, whose secret must be drawn anew by each process.
    pub const fn of_hash(hash: u64) -> Self {
        Self((hash % Self::BUCKETS as u64) as u8)
    }

    /// Its number, from 0 to [`Self::BUCKETS`].
    pub const fn number(self) -> u8 {
        self.0
    }

    const fn bit(self) -> u64 {
        // A shift by as many places as there are is none at all.
        if self.0 < Self::BUCKETS { 1 << self.0 } else { 0 }
    }
}

/// A new circuit, after [`SPAN`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Glimpse {
    /// Which.
    pub circuit: CircuitId,
    /// What its first request was for.
    pub path: PathClass,
    /// What it did.
    pub features: Features,
}

/// A number on a scale on which doubling it adds 16: 16 · log2(`number` + 1), linear between powers of two. From 0 to 1 023.
pub const fn sixteenths(number: u64) -> u16 {
    // The largest number has no successor, and the same size.
    let above = number.saturating_add(1);
    let octave = above.ilog2();
    let part = if octave >= 4 { above >> (octave - 4) } else { above << (4 - octave) };
    // `part` lies from 16 to 31, `octave` from 0 to 63.
    (octave as u16) * 16 + (part as u16 - 16)
}

/// What is counted of one circuit.
#[derive(Clone, Copy, Debug)]
struct Row {
    began: Monotime,
    /// The classes of paths that were asked for, a bit each.
    classes: u64,
    bytes_in: u64,
    bytes_out: u64,
    /// Of the times between requests, in [`sixteenths`] of milliseconds; until the first of them, between streams.
    gap_sum: u32,
    gap_squares: u32,
    gaps: u16,
    /// Milliseconds after `began`; `None`: neither a request nor a stream came.
    last_arrival: Option<u16>,
    first_request: Option<u16>,
    streams: u16,
    requests: u16,
    writes: u16,
    faults: u16,
    open: u16,
    at_once: u16,
    path: PathClass,
}

impl Row {
    const fn new(began: Monotime) -> Self {
        Self {
            began,
            classes: 0,
            bytes_in: 0,
            bytes_out: 0,
            gap_sum: 0,
            gap_squares: 0,
            gaps: 0,
            last_arrival: None,
            first_request: None,
            streams: 0,
            requests: 0,
            writes: 0,
            faults: 0,
            open: 0,
            at_once: 0,
            path: PathClass::NONE,
        }
    }

    const fn arrivals(&self) -> u32 {
        self.streams as u32 + self.requests as u32
    }

    /// Milliseconds since it began.
    fn at(&self, now: Monotime) -> u16 {
        u16::try_from(now.since(self.began).as_millis()).unwrap_or(u16::MAX)
    }

    /// Another of those whose pace counts.
    fn arrive(&mut self, at: u16) {
        if let Some(last) = self.last_arrival {
            let gap = u32::from(sixteenths(at.saturating_sub(last).into()));
            self.gap_sum = self.gap_sum.saturating_add(gap);
            self.gap_squares = self.gap_squares.saturating_add(gap * gap);
            self.gaps = self.gaps.saturating_add(1);
        }
        self.last_arrival = Some(at);
    }

    fn features(&self) -> Features {
        let size = |number: u64| sixteenths(number);
        let share = |part: u16, whole: u32| {
            // No more than 256, so the cast is exact.
            (u64::from(part) * 256).checked_div(whole.into()).unwrap_or(0).min(256) as u16
        };
        let gaps = u32::from(self.gaps);
        let mean = self.gap_sum.checked_div(gaps).unwrap_or(0);
        let squares = self.gap_squares.checked_div(gaps).unwrap_or(0);
        let spread = squares.saturating_sub(mean * mean).isqrt();
        // Both are no more than the largest of `sixteenths`.
        let narrow = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
        let of = |feature: Feature| match feature {
            Feature::Requests => size(self.requests.into()),
            Feature::Streams => size(self.streams.into()),
            Feature::AtOnce => size(self.at_once.into()),
            Feature::Gap => narrow(mean),
            Feature::GapSpread => narrow(spread),
            Feature::FirstRequest => size(self.first_request.unwrap_or(0).into()),
            Feature::BytesIn => size(self.bytes_in),
            Feature::BytesOut => size(self.bytes_out),
            Feature::Faults => share(self.faults, self.arrivals()),
            Feature::Writes => share(self.writes, self.requests.into()),
            Feature::Variety => size(self.classes.count_ones().into()),
        };
        Features(Feature::ALL.map(of))
    }
}

/// The circuits of one shard that are new. See the module.
#[derive(Clone, Debug)]
pub struct Watch {
    generation: TorGeneration,
    most: usize,
    rows: BTreeMap<NonZeroU32, Row>,
    /// Those of `rows`, the first to be told first. Each is watched equally long.
    order: VecDeque<(NonZeroU32, Monotime)>,
    unwatched: u64,
}

impl Watch {
    /// Watches so many circuits at once.
    pub fn new(most: u32, generation: TorGeneration) -> Self {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        Self { generation, most, rows: BTreeMap::new(), order: VecDeque::new(), unwatched: 0 }
    }

    /// Another tor process has begun: nothing of the circuits before is told any more. An older one changes nothing.
    pub fn begin(&mut self, generation: TorGeneration) {
        if generation > self.generation {
            self.generation = generation;
            self.rows.clear();
            self.order.clear();
        }
    }

    /// A stream has come. `is_new`: it is the first of its circuit. `is_held`: it was not refused, so that [`Self::closed`] follows.
    pub fn stream(&mut self, circuit: CircuitId, is_new: bool, is_held: bool, now: Monotime) {
        self.begin(circuit.generation());
        if circuit.generation() != self.generation {
            return;
        }
        let number = circuit.number_for_this_node();
        if is_new && !self.rows.contains_key(&number) {
            self.watch(number, now);
        }
        self.change(circuit, now, |row| {
            // Once there are requests their pace says more: how long a request takes from its stream on is the network's doing.
            if row.requests == 0 {
                row.arrive(row.at(now));
            }
            row.streams = row.streams.saturating_add(1);
            row.open = row.open.saturating_add(u16::from(is_held));
            row.at_once = row.at_once.max(row.open);
        });
    }

    /// A stream has ended.
    pub fn closed(&mut self, circuit: CircuitId, now: Monotime) {
        self.change(circuit, now, |row| row.open = row.open.saturating_sub(1));
    }

    /// A request has come.
    pub fn request(&mut self, circuit: CircuitId, path: PathClass, is_write: bool, now: Monotime) {
        self.change(circuit, now, |row| {
            let at = row.at(now);
            if row.first_request.is_none() {
                (row.gap_sum, row.gap_squares, row.gaps, row.last_arrival) = (0, 0, 0, None);
                row.first_request = Some(at);
                row.path = path;
            }
            row.arrive(at);
            row.requests = row.requests.saturating_add(1);
            row.writes = row.writes.saturating_add(u16::from(is_write));
            row.classes |= path.bit();
        });
    }

    /// A stream or request was refused, or answered with an error.
    pub fn fault(&mut self, circuit: CircuitId, now: Monotime) {
        self.change(circuit, now, |row| row.faults = row.faults.saturating_add(1));
    }

    /// It used so much more. What is reported late counts as well, until the circuit is told of.
    pub fn used(&mut self, circuit: CircuitId, bytes_in: u64, bytes_out: u64) {
        if let Some(row) = self.row(circuit) {
            row.bytes_in = row.bytes_in.saturating_add(bytes_in);
            row.bytes_out = row.bytes_out.saturating_add(bytes_out);
        }
    }

    /// Those whose time is over, at most so many; each once.
    pub fn take(&mut self, most: usize, now: Monotime) -> Vec<Glimpse> {
        let mut taken = Vec::new();
        while taken.len() < most
            && let Some(glimpse) = self.take_first(now)
        {
            taken.push(glimpse);
        }
        taken
    }

    /// How many new circuits were not watched, for want of room or because nobody took what was known of them in time.
    pub const fn unwatched(&self) -> u64 {
        self.unwatched
    }

    /// How many are watched now.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    fn take_first(&mut self, now: Monotime) -> Option<Glimpse> {
        let (number, _) = self.order.front().filter(|(_, began)| is_over(*began, now)).copied()?;
        self.order.pop_front();
        let row = self.rows.remove(&number)?;
        let circuit = CircuitId::new(self.generation, number);
        Some(Glimpse { circuit, path: row.path, features: row.features() })
    }

    fn watch(&mut self, number: NonZeroU32, now: Monotime) {
        if self.rows.len() >= self.most {
            // One way or the other a circuit is not told of: the one that nobody asked for in time makes room.
            self.unwatched = self.unwatched.saturating_add(1);
            if self.take_first(now).is_none() {
                return;
            }
        }
        self.rows.insert(number, Row::new(now));
        self.order.push_back((number, now));
    }

    fn row(&mut self, circuit: CircuitId) -> Option<&mut Row> {
        let is_present = circuit.generation() == self.generation;
        self.rows.get_mut(&circuit.number_for_this_node()).filter(|_| is_present)
    }

    fn change(&mut self, circuit: CircuitId, now: Monotime, change: impl FnOnce(&mut Row)) {
        if let Some(row) = self.row(circuit).filter(|row| !is_over(row.began, now)) {
            change(row);
        }
    }
}

fn is_over(began: Monotime, now: Monotime) -> bool {
    now.since(began) >= SPAN
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn circuit(number: u32) -> CircuitId {
        CircuitId::new(TorGeneration(1), NonZeroU32::new(number).unwrap())
    }

    fn at(milliseconds: u64) -> Monotime {
        Monotime(5_000_000_000 + milliseconds * 1_000_000)
    }

    fn watch(most: u32) -> Watch {
        Watch::new(most, TorGeneration(1))
    }

    #[test]
    fn sizes_are_sixteenths_of_an_octave() {
        for (number, expected) in [
            (0, 0),
            (1, 16),
            (2, 24),
            (3, 32),
            (7, 48),
            (9, 52),
            (1_023, 160),
            (1_535, 168),
            (u64::MAX, 63 * 16 + 15),
        ] {
            assert_eq!(sixteenths(number), expected, "{number}");
        }
    }

    #[test]
    fn what_a_circuit_did_is_told_once_and_after_its_time() {
        let mut watch = watch(8);
        let (one, class) = (circuit(7), PathClass::of_hash(64 * 5 + 9));
        watch.stream(one, true, true, at(0));
        watch.request(one, class, false, at(500));
        watch.stream(one, false, true, at(1_000));
        watch.request(one, PathClass::of_hash(3), true, at(1_500));
        watch.used(one, 1_023, 0);
        watch.closed(one, at(1_600));
        watch.stream(one, false, false, at(2_000));
        watch.fault(one, at(2_000));
        assert_eq!(watch.take(9, at(9_999)), []);
        // Too late to count, but for bytes that are told late.
        watch.request(one, class, false, at(10_000));
        watch.used(one, 0, 1_535);
        let told = watch.take(9, at(10_000));
        let expected = [
            (Feature::Requests, sixteenths(2)),
            (Feature::Streams, sixteenths(3)),
            (Feature::AtOnce, sixteenths(2)),
            (Feature::Gap, sixteenths(1_000)),
            (Feature::GapSpread, 0),
            (Feature::FirstRequest, sixteenths(500)),
            (Feature::BytesIn, 160),
            (Feature::BytesOut, 168),
            (Feature::Faults, 256 / 5),
            (Feature::Writes, 128),
            (Feature::Variety, sixteenths(2)),
        ];
        let [glimpse] = told[..] else { panic!("{told:?}") };
        assert_eq!((glimpse.circuit, glimpse.path.number()), (one, 9));
        for (feature, value) in expected {
            assert_eq!(glimpse.features.get(feature), value, "{feature:?}");
        }
        assert_eq!((watch.take(9, at(60_000)), watch.unwatched()), (Vec::new(), 0));
        // It is not new any more.
        watch.stream(one, false, true, at(60_000));
        assert!(watch.is_empty());
    }

    #[test]
    fn a_circuit_without_a_request_has_no_class_and_no_gap() {
        let mut watch = watch(8);
        watch.stream(circuit(1), true, false, at(0));
        watch.stream(circuit(2), true, true, at(0));
        // The pace of streams counts where there is no request: 1 023 and 3 ms.
        watch.stream(circuit(2), false, true, at(1_023));
        watch.stream(circuit(2), false, true, at(1_026));
        let told = watch.take(2, at(10_000));
        assert!(told.iter().all(|glimpse| glimpse.path == PathClass::NONE));
        let numbers = |place: usize| {
            [Feature::Streams, Feature::Gap, Feature::GapSpread]
                .map(|feature| told[place].features.get(feature))
        };
        assert_eq!((numbers(0), numbers(1)), ([16, 0, 0], [32, (160 + 32) / 2, (160 - 32) / 2]));
    }

    #[test]
    fn who_comes_when_all_places_are_taken_is_counted() {
        let mut watch = watch(2);
        for number in 1..=3 {
            watch.stream(circuit(number), true, true, at(number.into()));
        }
        assert_eq!((watch.len(), watch.unwatched()), (2, 1));
        // The first could have been told of; the fourth takes its place.
        watch.stream(circuit(4), true, true, at(10_001));
        assert_eq!((watch.len(), watch.unwatched()), (2, 2));
        let told: Vec<_> = watch.take(9, at(60_000)).into_iter().map(|glimpse| glimpse.circuit).collect();
        assert_eq!(told, [circuit(2), circuit(4)]);
    }

    #[test]
    fn circuits_of_another_tor_process_are_not_told_of() {
        let mut watch = watch(8);
        watch.stream(circuit(1), true, true, at(0));
        let other = CircuitId::new(TorGeneration(2), NonZeroU32::new(1).unwrap());
        watch.stream(other, true, true, at(1));
        watch.stream(circuit(2), true, true, at(2));
        let told: Vec<_> = watch.take(9, at(60_000)).into_iter().map(|glimpse| glimpse.circuit).collect();
        assert_eq!(told, [other]);
    }

    proptest! {
        /// For all pairs of numbers, the larger one has no smaller size, and doubling adds sixteen.
        #[test]
        fn sizes_are_in_order(one in any::<u64>(), other in any::<u64>(), small in 0u64..u64::MAX / 4) {
            prop_assert_eq!(sixteenths(one.min(other)).max(sixteenths(one.max(other))), sixteenths(one.max(other)));
            prop_assert_eq!(sixteenths(2 * small + 1), sixteenths(small) + 16);
        }

        /// For all sequences of events, no more circuits are watched than may be, each is told of at most once, and every share
        /// stays a share.
        #[test]
        fn memory_and_shares_are_bounded(
            events in prop::collection::vec((1u32..40, 0u8..6, 0u64..3_000, any::<u64>()), 1..300),
        ) {
            let mut watch = watch(6);
            let (mut time, mut told) = (0, Vec::new());
            let mut seen = std::collections::BTreeSet::new();
            for (number, what, passes, hash) in events {
                time += passes;
                let (one, now) = (circuit(number), at(time));
                match what {
                    0 | 1 => watch.stream(one, seen.insert(number), hash % 2 == 0, now),
                    2 => watch.request(one, PathClass::of_hash(hash), hash % 3 == 0, now),
                    3 => watch.closed(one, now),
                    4 => { watch.used(one, hash, hash); watch.fault(one, now); }
                    _ => told.extend(watch.take(2, now)),
                }
                prop_assert!(watch.len() <= 6 && watch.order.len() == watch.rows.len());
            }
            told.extend(watch.take(99, at(time + 10_000)));
            let mut circuits: Vec<_> = told.iter().map(|glimpse| glimpse.circuit).collect();
            circuits.sort_unstable();
            circuits.dedup();
            prop_assert_eq!(circuits.len(), told.len());
            prop_assert_eq!(told.len() as u64 + watch.unwatched(), seen.len() as u64);
            for glimpse in told {
                prop_assert!(glimpse.features.get(Feature::Faults) <= 256);
                prop_assert!(glimpse.features.get(Feature::Writes) <= 256);
                prop_assert!(glimpse.features.get(Feature::Variety) <= sixteenths(64));
            }
        }
    }
}
