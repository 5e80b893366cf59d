//! New circuits beside those of calm times: how many of them are alike ([`crate::sybil`]), and how unusual each is
//! ([`crate::anomaly`]). What comes of it bans nobody and refuses nothing: it is shown, and where the configuration says so it raises
//! the load level by one.
//!
//! # What is usual
//!
//! [`Newcomers`] keeps the last [`MOST_KNOWN`] circuits that it learned, and compares with them. It learns while nothing speaks of an
//! attack, and even then one circuit in each [`NewcomerSettings::learn_every`] and no more, however many come. So whoever sends a
//! crowd to make its behaviour usual is bound to that pace: of n circuits that are known, those learned in a time t are at most
//! t / `learn_every` + 1 (a property test holds it so), and a median moves beyond what honest circuits did only once more than half
//! of all are his. By default that is 10 s for each, so 85 minutes of undisturbed calm with a full memory, and less soon after a
//! start: with the [`FEWEST_KNOWN`] without which nothing is said, about three minutes.
//!
//! Path classes are divided by a secret of the front's, so with another process of the front everything is learned anew.
//!
//! # Memory
//!
//! [`MOST_KNOWN`] rows of 32 bytes, and [`crate::sybil::MOST_RECENT`] of 16: less than 64 KiB.

use std::{collections::VecDeque, time::Duration};

use crate::{
    anomaly::{Score, Usual},
    circuit_features::{Feature, Features, PathClass, sixteenths},
    circuit_policy::Ratio,
    load_level::Level,
    sybil::{Alike, Cell, Sybil, SybilSettings},
    time::Monotime,
};

/// Most circuits that are known.
pub const MOST_KNOWN: usize = 1_024;
/// As long as fewer are known, nothing is said of new ones.
pub const FEWEST_KNOWN: usize = 32;

const _: () = assert!(size_of::<Known>() <= 32, "a row is larger than stated");

/// Everything of the configuration that new circuits are judged by. The configuration crate checks the ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewcomerSettings {
    /// How much larger than usual the share of circuits that are alike must be.
    pub alike_share: Ratio,
    /// The least time between two circuits that are learned.
    pub learn_every: Duration,
    /// Up to which load level a crowd of circuits that are alike raises the measured one, by one; [`Level::Calm`]: it does not.
    pub raises_to: Level,
}

impl NewcomerSettings {
    /// Allowed `alike_share`, in ten-thousandths. With the fewest circuits that are compared, the shares of two samples of the same
    /// visitors differ by less than 0.3 in all but one of a hundred cases; above 0.9 visitors that stay would hide any crowd.
    pub const ALIKE_SHARE: std::ops::RangeInclusive<u16> = 3_000..=9_000;
    /// Allowed `learn_every`, in seconds.
    pub const LEARN_SECONDS: std::ops::RangeInclusive<u64> = 1..=3_600;
}

impl Default for NewcomerSettings {
    /// Half of all, and the level stays: visitors who follow a link from one page are alike, too.
    fn default() -> Self {
        Self { alike_share: Ratio::HALF, learn_every: Duration::from_secs(10), raises_to: Level::Calm }
    }
}

/// A circuit that was new and has been watched for [`crate::circuit_features::SPAN`]. Who it is does not matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Newcomer {
    /// What its first request was for.
    pub path: PathClass,
    /// The relay where it meets the service, as a number that says nothing outside this daemon; `None`: not known.
    pub relay: Option<u16>,
    /// What it did.
    pub features: Features,
}

/// What was learned of one circuit.
#[derive(Clone, Copy, Debug)]
struct Known {
    cell: Cell,
    features: Features,
}

/// The machine.
#[derive(Clone, Debug)]
pub struct Newcomers {
    settings: NewcomerSettings,
    /// Which process of the front divided the paths.
    process: Option<u64>,
    known: VecDeque<Known>,
    learned_at: Option<Monotime>,
    usual: Option<Usual>,
    sybil: Sybil,
}

impl Newcomers {
    /// Knows nothing yet.
    pub fn new(settings: NewcomerSettings) -> Self {
        Self {
            settings,
            process: None,
            known: VecDeque::new(),
            learned_at: None,
            usual: None,
            sybil: Sybil::new(SybilSettings { share: settings.alike_share }),
        }
    }

    /// Other settings from now on; what is known stays.
    pub fn set_settings(&mut self, settings: NewcomerSettings) {
        self.settings = settings;
        self.sybil.set_settings(SybilSettings { share: settings.alike_share });
    }

    /// Circuits whose first seconds are over, told by this process of the front. `is_calm`: nothing speaks of an attack.
    pub fn tell(&mut self, process: u64, newcomers: &[Newcomer], is_calm: bool, now: Monotime) {
        if self.process != Some(process) {
            *self = Self { process: Some(process), ..Self::new(self.settings) };
        }
        for newcomer in newcomers {
            self.sybil.saw(newcomer.cell(), now);
        }
        self.judge(now);
        if is_calm && !self.sybil.is_raised() {
            self.learn(newcomers, now);
        }
    }

    /// Does what time alone makes due.
    pub fn advance(&mut self, now: Monotime) {
        if self.next_deadline().is_some_and(|due| due <= now) {
            self.judge(now);
        }
    }

    /// When [`Self::advance`] has something to do.
    pub fn next_deadline(&self) -> Option<Monotime> {
        self.sybil.next_deadline()
    }

    /// How unusual what a circuit did is; `None` until enough is known.
    pub fn score(&self, features: &Features) -> Option<Score> {
        self.usual.as_ref().map(|usual| usual.score(features))
    }

    /// In what it lies furthest from what is usual, see [`Usual::furthest`].
    pub fn furthest(&self, features: &Features) -> Vec<Feature> {
        self.usual.as_ref().map_or_else(Vec::new, |usual| usual.furthest(features))
    }

    /// The largest crowd of new circuits that are alike; `None` where too few are new or known.
    pub const fn alike(&self) -> Option<&Alike> {
        self.sybil.alike()
    }

    /// Whether more new circuits are alike than are usually.
    pub const fn is_raised(&self) -> bool {
        self.sybil.is_raised()
    }

    /// Up to which level the measured one is to be raised by one now.
    pub fn raises_to(&self) -> Option<Level> {
        Some(self.settings.raises_to).filter(|level| self.is_raised() && *level > Level::Calm)
    }

    /// How many circuits are known.
    pub fn known(&self) -> usize {
        self.known.len()
    }

    fn judge(&mut self, now: Monotime) {
        let usual = (self.known.len() >= FEWEST_KNOWN).then_some(self.known.iter().map(|known| known.cell));
        self.sybil.judge(usual, now);
    }

    /// One of them, if it is time: in a crowd the first, whoever it is.
    fn learn(&mut self, newcomers: &[Newcomer], now: Monotime) {
        let Some(newcomer) = newcomers.first() else { return };
        if self.learned_at.is_some_and(|at| now.since(at) < self.settings.learn_every) {
            return;
        }
        self.learned_at = Some(now);
        if self.known.len() == MOST_KNOWN {
            self.known.pop_front();
        }
        self.known.push_back(Known { cell: newcomer.cell(), features: newcomer.features });
        if self.known.len() >= FEWEST_KNOWN {
            self.usual = Usual::of(self.known.iter().map(|known| &known.features));
        }
    }
}

impl Newcomer {
    /// What it is compared with others by.
    pub fn cell(&self) -> Cell {
        // An octave each: tools keep their pace within one, people do not. One request has no pace, and is of the first.
        let gap = self.features.get(Feature::Gap) / sixteenths(1);
        Cell { timing: u8::try_from(gap).unwrap_or(u8::MAX), path: self.path, relay: self.relay }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::circuit_features::COUNT;

    fn at(seconds: u64) -> Monotime {
        Monotime(seconds * 1_000_000_000)
    }

    /// A visitor of some page through some relay.
    fn visitor(turn: u64) -> Newcomer {
        let relay = Some((turn % 97) as u16);
        Newcomer { path: PathClass::of_hash(turn), relay, features: Features([(turn % 200) as u16; COUNT]) }
    }

    /// One of many circuits of one tool.
    fn bot() -> Newcomer {
        Newcomer { path: PathClass::of_hash(7), relay: Some(500), features: Features([900; COUNT]) }
    }

    fn learned(count: u64) -> (Newcomers, u64) {
        let mut machine = Newcomers::new(NewcomerSettings::default());
        (0..count).for_each(|turn| machine.tell(1, &[visitor(turn)], true, at(turn * 10)));
        (machine, count * 10)
    }

    #[test]
    fn nothing_is_said_until_enough_is_known() {
        let (machine, _) = learned(FEWEST_KNOWN as u64 - 1);
        assert_eq!(machine.score(&bot().features), None);
        let (mut machine, second) = learned(FEWEST_KNOWN as u64);
        assert!(machine.score(&bot().features) > machine.score(&visitor(20).features));
        machine.tell(1, &[bot(); 40], true, at(second + 1));
        assert!(machine.is_raised());
        // Another process of the front divides paths otherwise.
        machine.tell(2, &[bot(); 40], true, at(second + 2));
        assert_eq!((machine.is_raised(), machine.alike(), machine.known()), (false, None, 1));
    }

    #[test]
    fn nothing_is_learned_of_a_crowd_nor_while_something_speaks_of_an_attack() {
        let (mut machine, second) = learned(40);
        for (turn, is_calm, known) in [(1, false, 40), (2, true, 40), (3, true, 40)] {
            // From the first of these on it is raised.
            machine.tell(1, &[bot(); 40], is_calm, at(second + 20 * turn));
            assert_eq!((machine.known(), machine.is_raised()), (known, true));
        }
    }

    #[test]
    fn it_raises_the_level_only_where_it_is_told_to() {
        let mut settings = NewcomerSettings::default();
        for (raises_to, expected) in [(Level::Calm, None), (Level::Moderate, Some(Level::Moderate))] {
            settings.raises_to = raises_to;
            let (mut machine, second) = learned(40);
            machine.set_settings(settings);
            assert_eq!(machine.raises_to(), None);
            machine.tell(1, &[bot(); 40], true, at(second));
            assert_eq!(machine.raises_to(), expected);
        }
    }

    #[test]
    fn a_crowd_is_over_without_another_word() {
        let (mut machine, second) = learned(40);
        machine.tell(1, &[bot(); 40], true, at(second));
        let mut turns = 0;
        while let Some(due) = machine.next_deadline() {
            machine.advance(due);
            turns += 1;
            assert!(turns < 100, "it comes to rest");
        }
        assert!(!machine.is_raised());
    }

    proptest! {
        /// For all crowds that come while all is calm, however large and however often, those that are learned in a time t are
        /// at most t / `learn_every` + 1, and no more are known than may be.
        #[test]
        fn a_crowd_is_learned_no_faster_than_stated(
            turns in prop::collection::vec((0u64..40_000, 0usize..29), 1..200),
            learn_seconds in 1u64..60,
        ) {
            let learn_every = Duration::from_secs(learn_seconds);
            let mut machine = Newcomers::new(NewcomerSettings { learn_every, ..NewcomerSettings::default() });
            let mut milliseconds = 0;
            for (pause, circuits) in turns {
                milliseconds += pause;
                machine.tell(1, &vec![bot(); circuits], true, Monotime(milliseconds * 1_000_000));
                let most = milliseconds / 1_000 / learn_seconds + 1;
                prop_assert!(machine.known() as u64 <= most && machine.known() <= MOST_KNOWN);
            }
        }
    }
}
