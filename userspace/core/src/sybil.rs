//! Circuits that behave alike: one hand behind many of them, or many hands with one tool.
//!
//! Each new circuit falls into a [`Cell`]: how fast its requests (or streams) follow each other, to an octave; which class of path it
//! asked for first; and the relay where it meets the service. Of the last minute's circuits the share in one cell is compared with
//! the same cell's share in calm times. A cell counts twice, once with and once without its relay: clients as they come choose
//! relays of their own, and a tool that saves circuits uses one for many visitors' worth of them.
//!
//! | state | input | next |
//! |---|---|---|
//! | usual | at least [`FEWEST`] circuits in [`WINDOW`], and a cell whose share exceeds its usual one by [`SybilSettings::share`] | raised |
//! | raised | no cell that exceeds it by half of that, or too few circuits, for [`QUIET`] without interruption | usual |
//! | any | neither | stays |
//!
//! Honest visitors can be alike, too: whoever follows a link from one page asks for one path. That is why nobody is refused
//! by this, and why by default nothing follows from it but a line in the log, a metric and an alert.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use crate::{circuit_features::PathClass, circuit_policy::Ratio, time::Monotime};

/// How long a circuit counts as new, after its first seconds were told of.
pub const WINDOW: Duration = Duration::from_secs(60);
/// Fewer new circuits in it say nothing.
pub const FEWEST: usize = 30;
/// Most new circuits that are kept; the newest.
pub const MOST_RECENT: usize = 1_024;
/// How long it must be over before it is over.
pub const QUIET: Duration = crate::defence::QUIET_AFTER;

const _: () = assert!(size_of::<(Monotime, Cell)>() <= 16, "a row is larger than stated");

/// From which share on circuits are too many alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SybilSettings {
    /// How much larger than usual a cell's share must be.
    pub share: Ratio,
}

/// What circuits are compared by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cell {
    /// The mean time between its requests, or streams without any, in octaves of milliseconds; 0: there was one, or they came at
    /// once.
    pub timing: u8,
    /// What it asked for first.
    pub path: PathClass,
    /// Where it meets the service; `None`: not known, or not asked about.
    pub relay: Option<u16>,
}

/// The crowd that exceeds its usual share by most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alike {
    /// How many circuits were compared.
    pub circuits: u32,
    /// The share that is alike.
    pub share: Ratio,
    /// The share of their like in calm times.
    pub usual: Ratio,
    /// Whether at least three quarters of them meet the service at one relay.
    pub is_one_relay: bool,
}

impl Alike {
    /// By how much its share is larger than usual.
    pub const fn excess(&self) -> Ratio {
        self.share.less(self.usual)
    }
}

/// The machine. See the module.
#[derive(Clone, Debug)]
pub struct Sybil {
    settings: SybilSettings,
    recent: VecDeque<(Monotime, Cell)>,
    alike: Option<Alike>,
    is_raised: bool,
    /// Since when what raised it is over.
    quiet_since: Option<Monotime>,
}

impl Sybil {
    /// Has seen nothing yet.
    pub const fn new(settings: SybilSettings) -> Self {
        Self { settings, recent: VecDeque::new(), alike: None, is_raised: false, quiet_since: None }
    }

    /// Another share from now on.
    pub const fn set_settings(&mut self, settings: SybilSettings) {
        self.settings = settings;
    }

    /// A circuit is new. It counts with the next [`Self::judge`].
    pub fn saw(&mut self, cell: Cell, now: Monotime) {
        if self.recent.len() == MOST_RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back((now, cell));
    }

    /// Compares those that are new now with `usual`, the cells of calm times; `None`: too few are known.
    pub fn judge(&mut self, usual: Option<impl Iterator<Item = Cell>>, now: Monotime) {
        while self.recent.front().is_some_and(|(at, _)| at.after(WINDOW) <= now) {
            self.recent.pop_front();
        }
        self.alike = usual.and_then(|usual| self.crowd(usual));
        let excess = self.alike.map_or(Ratio::NONE, |alike| alike.excess());
        let share = self.settings.share;
        let least = if self.is_raised { Ratio::HALF.of(share.ten_thousandths().into()) } else { 0 };
        match self.is_raised {
            false => self.is_raised = self.alike.is_some() && excess >= share,
            true if u32::from(excess.ten_thousandths()) >= least && self.alike.is_some() => {
                self.quiet_since = None;
            }
            true => {
                let since = *self.quiet_since.get_or_insert(now);
                if since.after(QUIET) <= now {
                    (self.is_raised, self.quiet_since) = (false, None);
                }
            }
        }
    }

    /// The largest crowd at the last [`Self::judge`]; `None`: too few were new or known.
    pub const fn alike(&self) -> Option<&Alike> {
        self.alike.as_ref()
    }

    /// Whether too many are alike.
    pub const fn is_raised(&self) -> bool {
        self.is_raised
    }

    /// When the last one is new no longer, or what raised it has been over for long enough. While circuits come they are judged
    /// without being waited for.
    pub fn next_deadline(&self) -> Option<Monotime> {
        let last = self.recent.back().map(|(at, _)| at.after(WINDOW));
        let quiet = self.quiet_since.filter(|_| self.is_raised).map(|since| since.after(QUIET));
        last.into_iter().chain(quiet).min()
    }

    fn crowd(&self, usual: impl Iterator<Item = Cell>) -> Option<Alike> {
        if self.recent.len() < FEWEST {
            return None;
        }
        let now = count(self.recent.iter().map(|(_, cell)| *cell));
        let mut known = 0;
        let before = count(usual.inspect(|_| known += 1));
        let share = |part: u32, whole: usize| Ratio::share(part.into(), whole as u128);
        let crowd = |(cell, circuits): (&Cell, &u32)| Alike {
            circuits: u32::try_from(self.recent.len()).unwrap_or(u32::MAX),
            share: share(*circuits, self.recent.len()),
            usual: share(before.get(cell).copied().unwrap_or(0), known),
            is_one_relay: cell.relay.is_some() || at_one_relay(&now, *cell) * 4 >= circuits * 3,
        };
        now.iter().map(crowd).max_by_key(|crowd| (crowd.excess(), crowd.share, crowd.is_one_relay))
    }
}

/// How many of a cell without its relay come by the same one: the most of any.
fn at_one_relay(counts: &BTreeMap<Cell, u32>, cell: Cell) -> u32 {
    let (first, last) = (Cell { relay: Some(0), ..cell }, Cell { relay: Some(u16::MAX), ..cell });
    counts.range(first..=last).map(|(_, count)| *count).max().unwrap_or(0)
}

/// How many are in each cell, with and without its relay.
fn count(cells: impl Iterator<Item = Cell>) -> BTreeMap<Cell, u32> {
    let mut counts = BTreeMap::new();
    for cell in cells {
        *counts.entry(Cell { relay: None, ..cell }).or_default() += 1;
        if cell.relay.is_some() {
            *counts.entry(cell).or_default() += 1;
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> Monotime {
        Monotime(seconds * 1_000_000_000)
    }

    fn cell(timing: u8, path: u64, relay: Option<u16>) -> Cell {
        Cell { timing, path: PathClass::of_hash(path), relay }
    }

    /// Visitors: each asks for another path, through another relay.
    fn mixed(count: u64) -> Vec<Cell> {
        (0..count).map(|turn| cell((turn % 11) as u8, turn, Some((turn % 97) as u16))).collect()
    }

    /// A service whose visitors all come to the first page in much the same way.
    fn front_page(count: u64) -> Vec<Cell> {
        (0..count).map(|turn| cell(9, 1, Some((turn % 97) as u16))).collect()
    }

    fn machine() -> Sybil {
        Sybil::new(SybilSettings { share: Ratio::HALF })
    }

    fn judged(recent: &[Cell], usual: &[Cell]) -> Sybil {
        let mut machine = machine();
        recent.iter().for_each(|cell| machine.saw(*cell, at(1)));
        machine.judge(Some(usual.iter().copied()), at(1));
        machine
    }

    #[test]
    fn who_is_alike() {
        let tool = vec![cell(4, 33, Some(5)); 60];
        let many_relays: Vec<_> = (0..60).map(|turn| cell(4, 33, Some(turn * 7))).collect();
        let one_relay_and_some: Vec<_> = (0..60).map(|turn| cell(4, 33, Some(turn % 5 / 4))).collect();
        let unknown_relays = vec![cell(4, 33, None); 60];
        let same_as_visitors = vec![cell(9, 1, Some(5)); 60];
        let half: Vec<_> = tool[..29].iter().chain(&mixed(31)).copied().collect();
        let most: Vec<_> = tool[..40].iter().chain(&mixed(20)).copied().collect();
        // New circuits, those of calm times, whether it is raised, and then whether they meet at one relay.
        for (row, recent, usual, raised, one_relay) in [
            ("visitors", mixed(60), mixed(200), false, false),
            ("visitors of a front page", front_page(60), front_page(200), false, false),
            ("one tool, one relay", tool.clone(), mixed(200), true, true),
            ("one tool, for the most part one relay", one_relay_and_some, mixed(200), true, true),
            ("one tool, its own relays", many_relays, mixed(200), true, false),
            ("no control port", unknown_relays, mixed(200), true, false),
            (
                "a tool that comes as the visitors do, by one relay",
                same_as_visitors,
                front_page(200),
                true,
                true,
            ),
            ("a crowd beside more visitors", half, mixed(200), false, true),
            ("a crowd beside half as many", most, mixed(200), true, true),
            ("too few to say", tool[..29].to_vec(), mixed(200), false, false),
            ("a link that all follow is alike as well", front_page(60), mixed(200), true, false),
        ] {
            let machine = judged(&recent, &usual);
            assert_eq!(machine.is_raised(), raised, "{row}: {:?}", machine.alike());
            assert!(!raised || machine.alike().is_some_and(|alike| alike.is_one_relay == one_relay), "{row}");
        }
        let machine = judged(&tool, &mixed(200));
        let expected = Alike { circuits: 60, share: Ratio::ALL, usual: Ratio::NONE, is_one_relay: true };
        assert_eq!(machine.alike(), Some(&expected));
    }

    #[test]
    fn without_calm_times_nothing_is_said() {
        let mut machine = machine();
        (0..60).for_each(|_| machine.saw(cell(4, 33, None), at(1)));
        machine.judge(None::<std::iter::Empty<Cell>>, at(1));
        assert_eq!((machine.alike(), machine.is_raised()), (None, false));
    }

    #[test]
    fn it_is_over_a_minute_after_the_crowd() {
        let (usual, mut machine) = (mixed(200), judged(&vec![cell(4, 33, None); 60], &mixed(200)));
        let mut judge = |seconds, came: &[Cell]| {
            came.iter().for_each(|cell| machine.saw(*cell, at(seconds)));
            machine.judge(Some(usual.iter().copied()), at(seconds));
            machine.is_raised()
        };
        assert!(judge(60, &[]), "they are new still");
        assert!(judge(61, &[]), "nobody is new any more; now it begins to be over");
        assert!(judge(120, &[]));
        // A crowd that is half as large is no reason to begin, and one to stay.
        let crowd: Vec<_> = mixed(40).into_iter().chain(vec![cell(4, 33, None); 20]).collect();
        assert!(judge(120, &crowd));
        assert!(judge(179, &[]));
        assert!(judge(180, &[]) && judge(239, &[]));
        assert!(!judge(240, &[]));
        assert!(!judge(241, &crowd));
        assert_eq!(machine.next_deadline(), Some(at(301)));
    }

    proptest! {
        /// For all crowds, one that grows has no smaller share, and no share of visitors who come as ever is in excess.
        #[test]
        fn a_larger_crowd_exceeds_by_more(visitors in 30u64..200, crowd in 0usize..200) {
            let with = |crowd: usize| {
                let mut recent = mixed(visitors);
                recent.extend(vec![cell(4, 33, Some(200)); crowd]);
                judged(&recent, &mixed(400)).alike().map(Alike::excess)
            };
            prop_assert!(with(crowd + 1) >= with(crowd));
            prop_assert!(with(0) < Some(Ratio::HALF));
        }

        /// For all sequences, no more circuits are kept than may be, and it is raised only where a crowd was judged.
        #[test]
        fn memory_is_bounded(turns in prop::collection::vec((0u64..90, 0u64..4, 0usize..400), 1..20)) {
            let (mut machine, mut second, usual) = (machine(), 0, mixed(64));
            for (seconds, path, circuits) in turns {
                second += seconds;
                (0..circuits).for_each(|_| machine.saw(cell(3, path, None), at(second)));
                machine.judge(Some(usual.iter().copied()), at(second));
                prop_assert!(machine.recent.len() <= MOST_RECENT);
                prop_assert!(machine.alike().is_none_or(|alike| alike.circuits as usize >= FEWEST));
                prop_assert!(machine.next_deadline().is_none_or(|due| due > at(second)));
            }
        }
    }
}
