//! How hard a puzzle is at a load level, and how much a page may ask.
//!
//! A page of the challenge may ask a little less while the load is moderate and people give up: of the puzzles that pages
//! showed, few were solved. It never does above moderate load. There most of those who do not solve are attackers, who
//! never try, and a relief would be their reward. For the same reason the relief is small at any load: whoever fetches
//! puzzles and drops them can bring it about.
//!
//! | load level | a window's share of solved puzzles | relief |
//! |---|---|---|
//! | moderate | under a half | one bit more, to [`MOST_RELIEF_BITS`] |
//! | moderate | a half to three quarters | stays |
//! | moderate | three quarters or more | one bit less |
//! | any other | – | none |

use std::{ops::RangeInclusive, time::Duration};

use crate::{load_level::Level, time::Monotime};

/// The longest time over which [`Pages`] are compared is about twice this: counts must come at least as often.
pub const WINDOW: Duration = Duration::from_secs(60);
/// Puzzles in a window without which it says nothing: a twentieth more or less is then no more than chance.
pub const FEWEST_ISSUED: u64 = 50;
/// Most bits by which a page asks less: a quarter of the work. What an attacker can gain by it stays as small.
pub const MOST_RELIEF_BITS: u8 = 2;

/// How hard puzzles may be. The configuration crate checks the ranges, and that `min` is not above the other two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PuzzleSettings {
    /// `pow_difficulty_min`, leading zero bits.
    pub min: u8,
    /// `pow_difficulty_max`, leading zero bits.
    pub max: u8,
    /// `pow_page_max`, leading zero bits: what a page asks at most. 17 bits are seconds on a phone.
    pub page_max: u8,
}

/// What is asked where a puzzle is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Puzzles {
    /// Leading zero bits that a program must find.
    pub difficulty: u8,
    /// Leading zero bits that a page asks for; never more than a program must find.
    pub page_difficulty: u8,
    /// Whether the page's puzzle does not suffice, so that the page leads to the waiting room.
    pub page_waits: bool,
}

/// Puzzles of pages since the front began to count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pages {
    /// Shown.
    pub issued: u64,
    /// Solved and redeemed.
    pub redeemed: u64,
}

/// The machine. It knows no deadline: without counts it has nothing to judge.
#[derive(Clone, Debug)]
pub struct PuzzleLevel {
    settings: PuzzleSettings,
    relief_bits: u8,
    /// The counts at the window's beginning.
    window: Option<(Pages, Monotime)>,
}

impl PuzzleSettings {
    /// Allowed difficulties: what [`crate::circuit_policy::CircuitSettings::POW_DIFFICULTY`] allows.
    pub const DIFFICULTY: RangeInclusive<u8> = crate::circuit_policy::CircuitSettings::POW_DIFFICULTY;

    /// Leading zero bits at a level.
    pub fn difficulty(&self, level: Level) -> u8 {
        let bits = match level {
            // Asked only where puzzles are asked at any load.
            Level::Calm | Level::Light => 8,
            Level::Moderate => 16,
            Level::Heavy => 20,
            Level::UnderAttack => 24,
        };
        // Not `clamp`, which panics where `min` is above `max`.
        bits.max(self.min).min(self.max)
    }
}

impl Default for PuzzleSettings {
    fn default() -> Self {
        Self { min: 8, max: 24, page_max: 17 }
    }
}

impl PuzzleLevel {
    /// Without relief.
    pub const fn new(settings: PuzzleSettings) -> Self {
        Self { settings, relief_bits: 0, window: None }
    }

    /// Other bounds from now on.
    pub const fn set_settings(&mut self, settings: PuzzleSettings) {
        self.settings = settings;
    }

    /// Takes in the front's counts, while `level` is in force. Counts that fell are a new front's: the window begins again.
    pub fn count(&mut self, pages: Pages, level: Level, now: Monotime) {
        if level != Level::Moderate {
            self.relief_bits = 0;
            self.window = None;
            return;
        }
        let Some((before, since)) = self.window else {
            self.window = Some((pages, now));
            return;
        };
        let [issued, redeemed] =
            [pages.issued.checked_sub(before.issued), pages.redeemed.checked_sub(before.redeemed)];
        let (Some(issued), Some(redeemed)) = (issued, redeemed) else {
            self.window = Some((pages, now));
            return;
        };
        let elapsed = now.since(since);
        if elapsed < WINDOW {
            return;
        }
        self.window = Some((pages, now));
        if elapsed > 2 * WINDOW || issued < FEWEST_ISSUED {
            return;
        }
        // Puzzles shown before the window may be solved in it.
        let solved = u128::from(redeemed) * 4;
        if solved < u128::from(issued) * 2 {
            self.relief_bits = (self.relief_bits + 1).min(MOST_RELIEF_BITS);
        } else if solved >= u128::from(issued) * 3 {
            self.relief_bits = self.relief_bits.saturating_sub(1);
        }
    }

    /// What is asked at a level.
    pub fn desired(&self, level: Level) -> Puzzles {
        let difficulty = self.settings.difficulty(level);
        let relief = if level == Level::Moderate { self.relief_bits } else { 0 };
        let most = difficulty.min(self.settings.page_max);
        let page_difficulty = most.saturating_sub(relief).max(self.settings.min.min(most));
        Puzzles { difficulty, page_difficulty, page_waits: difficulty > self.settings.page_max }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> Monotime {
        Monotime(seconds * 1_000_000_000)
    }

    #[test]
    fn each_level_has_its_difficulty() {
        let settings = PuzzleSettings::default();
        let narrow = PuzzleSettings { min: 10, max: 18, page_max: 12 };
        for (level, bits, page, waits, narrow_bits, narrow_page, narrow_waits) in [
            (Level::Calm, 8, 8, false, 10, 10, false),
            (Level::Light, 8, 8, false, 10, 10, false),
            (Level::Moderate, 16, 16, false, 16, 12, true),
            (Level::Heavy, 20, 17, true, 18, 12, true),
            (Level::UnderAttack, 24, 17, true, 18, 12, true),
        ] {
            for (settings, difficulty, page_difficulty, page_waits) in
                [(settings, bits, page, waits), (narrow, narrow_bits, narrow_page, narrow_waits)]
            {
                let puzzles = PuzzleLevel::new(settings).desired(level);
                assert_eq!(puzzles, Puzzles { difficulty, page_difficulty, page_waits }, "{level:?}");
            }
        }
    }

    #[test]
    fn a_page_that_may_ask_all_of_it_does_not_wait() {
        let machine = PuzzleLevel::new(PuzzleSettings { page_max: 16, ..PuzzleSettings::default() });
        let expected = Puzzles { difficulty: 16, page_difficulty: 16, page_waits: false };
        assert_eq!(machine.desired(Level::Moderate), expected);
    }

    /// Counts after each step, the level, and the bits of a page at moderate load after it.
    #[test]
    fn a_page_asks_less_while_people_give_up_and_the_load_is_moderate() {
        use Level::{Heavy, Light, Moderate};
        let mut machine = PuzzleLevel::new(PuzzleSettings::default());
        for (second, issued, redeemed, level, bits) in [
            (0, 1_000, 900, Moderate, 16),     // the beginning: what came before says nothing
            (59, 1_049, 900, Moderate, 16),    // the window is not over
            (60, 1_049, 900, Moderate, 16),    // 49 are too few
            (120, 1_099, 924, Moderate, 15),   // 24 of 50
            (180, 1_149, 949, Moderate, 15),   // 25 of 50
            (240, 1_199, 949, Moderate, 14),   // none
            (300, 1_249, 949, Moderate, 14),   // the most
            (360, 1_299, 986, Moderate, 14),   // 37 of 50
            (420, 1_349, 1_024, Moderate, 15), // 38 of 50
            (541, 1_449, 1_024, Moderate, 15), // more than two windows
            (601, 10, 0, Moderate, 15),        // another front
            (661, 60, 70, Moderate, 16),       // solved more than were shown
            (721, 110, 120, Moderate, 16),
            (781, 210, 120, Moderate, 15),
            (782, 210, 120, Light, 16), // any other level ends it
            (800, 210, 120, Moderate, 16),
            (841, 310, 120, Moderate, 16), // 41 s since it is moderate again
            (860, 310, 120, Moderate, 15),
            (861, 310, 120, Heavy, 16),
        ] {
            machine.count(Pages { issued, redeemed }, level, at(second));
            assert_eq!(machine.desired(Moderate).page_difficulty, bits, "{second}");
            assert_eq!(machine.desired(Moderate).difficulty, 16);
            assert_eq!(machine.desired(Heavy).page_difficulty, 17, "never above moderate load");
        }
        // Only redeemed ones fell: another front as well.
        machine.count(Pages { issued: 310, redeemed: 120 }, Moderate, at(900));
        machine.count(Pages { issued: 410, redeemed: 119 }, Moderate, at(960));
        assert_eq!(machine.desired(Moderate).page_difficulty, 16);
    }

    proptest! {
        /// For all bounds and counts, a page asks no less than the least, no more than a program or the page's most, and no
        /// more than two bits less than without relief.
        #[test]
        fn a_page_stays_within_bounds(
            min in 8u8..=24,
            room in 0u8..=16,
            page_room in 0u8..=16,
            counts in prop::collection::vec((0u64..200, 0u64..200, 0usize..5), 0..40),
        ) {
            let settings = PuzzleSettings { min, max: (min + room).min(24), page_max: (min + page_room).min(24) };
            let plain = PuzzleLevel::new(settings);
            let mut machine = PuzzleLevel::new(settings);
            let mut pages = Pages::default();
            for (turn, (issued, redeemed, level)) in counts.into_iter().enumerate() {
                pages = Pages { issued: pages.issued + issued, redeemed: pages.redeemed + redeemed };
                machine.count(pages, Level::ALL[level], at(60 * turn as u64));
                for level in Level::ALL {
                    let puzzles = machine.desired(level);
                    let without = plain.desired(level);
                    prop_assert!(puzzles.page_difficulty >= settings.min);
                    prop_assert!(puzzles.page_difficulty <= puzzles.difficulty.min(settings.page_max));
                    prop_assert!(puzzles.page_difficulty + MOST_RELIEF_BITS >= without.page_difficulty);
                    prop_assert_eq!(puzzles.difficulty, without.difficulty);
                }
            }
        }
    }
}
