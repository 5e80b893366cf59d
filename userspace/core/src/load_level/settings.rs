//! From which load on which level, and how fast.

use std::{num::NonZeroU32, ops::RangeInclusive, time::Duration};

use super::Level;
use crate::{circuit_policy::Ratio, false_positives::FalsePositiveSettings, puzzle_level::PuzzleSettings};

/// Everything of the configuration that the load level depends on. The configuration crate checks the ranges.
///
/// Limits of the front are not here: each reading of the front brings those that it holds to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadSettings {
    /// `pow_activation_threshold`: where light load begins, and puzzles with it. The other levels stand at equal
    /// distances between it and the full load.
    pub activation: Ratio,
    /// How far below its beginning a level ends.
    pub hysteresis: Ratio,
    /// The least time between any change and a rise.
    pub rise_dwell: Duration,
    /// How long the load must be below a level, without interruption, before it falls by one.
    pub fall_dwell: Duration,
    /// Rendezvous circuits in a second that are full load.
    pub most_rendezvous_per_second: NonZeroU32,
    /// Rejected introductions in a second that are full load.
    pub most_rejections_per_second: NonZeroU32,
    /// Introductions in the queue of Tor's own puzzle that are full load.
    pub most_puzzle_queue: NonZeroU32,
    /// How hard puzzles may be.
    pub puzzles: PuzzleSettings,
    /// How many token holders may be refused.
    pub false_positives: FalsePositiveSettings,
}

impl LoadSettings {
    /// Allowed `activation`, in ten-thousandths. At 0 puzzles are asked at any load, which is a choice; at 10 000 all levels
    /// are the highest.
    pub const ACTIVATION: RangeInclusive<u16> = 0..=10_000;
    /// Allowed `hysteresis`, in ten-thousandths. Less than a fiftieth is the noise of one connection more or less at 50
    /// places; more than a half would keep puzzles with a service that is as good as idle.
    pub const HYSTERESIS: RangeInclusive<u16> = 200..=5_000;
    /// Allowed `rise_dwell`, in seconds. A minute is as long as a level takes to fall.
    pub const RISE_DWELL_SECONDS: RangeInclusive<u64> = 1..=60;
    /// Allowed `fall_dwell`, in seconds. Shorter, and an attacker who pauses for some seconds meets no defence.
    pub const FALL_DWELL_SECONDS: RangeInclusive<u64> = 10..=3_600;
    /// Allowed rates and length of the queue.
    pub const MOST: RangeInclusive<u32> = 1..=100_000;

    /// The load at which a level begins.
    pub fn up(&self, level: Level) -> Ratio {
        let room = Ratio::ALL.less(self.activation).ten_thousandths();
        let thirds =
            |thirds: u16| Ratio::ALL.less(Ratio::share(u128::from(room) * u128::from(thirds), 30_000));
        match level {
            Level::Calm => Ratio::NONE,
            Level::Light => self.activation,
            Level::Moderate => thirds(2),
            Level::Heavy => thirds(1),
            Level::UnderAttack => Ratio::ALL,
        }
    }

    /// The load below which a level ends.
    pub fn down(&self, level: Level) -> Ratio {
        self.up(level).less(self.hysteresis)
    }
}

impl Default for LoadSettings {
    /// What each number rests on:
    ///
    /// * 0.75 is the defaults page's.
    /// * 0.15 is almost twice the distance between two levels (0.083), so that a load that swings over one boundary changes
    ///   nothing, and not so much that light load (to 0.60) holds at half of the places.
    /// * 5 s is as long as a connection may wait in the front's queue: a second rise is not decided before the first can show.
    /// * 60 s is how long every other defence of ours is quiet before it stands down ([`crate::defence::QUIET_AFTER`], cookies).
    /// * 50 a second is what our torrc lets through an introduction point, and the front's `max_connections_per_second`:
    ///   more rendezvous circuits than streams that may begin have no use. A rejected introduction costs tor the same
    ///   decryption as an accepted one.
    /// * 125 is what tor's queue gives out in 5 s at our torrc's 25 a second: who comes later waits longer than in our own.
    fn default() -> Self {
        let rate = NonZeroU32::MIN.saturating_add(49);
        Self {
            activation: Ratio::THREE_QUARTERS,
            hysteresis: Ratio::share(15, 100),
            rise_dwell: Duration::from_secs(5),
            fall_dwell: crate::defence::QUIET_AFTER,
            most_rendezvous_per_second: rate,
            most_rejections_per_second: rate,
            most_puzzle_queue: NonZeroU32::MIN.saturating_add(124),
            puzzles: PuzzleSettings::default(),
            false_positives: FalsePositiveSettings::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_stand_at_equal_distances_above_the_activation() {
        for (activation, ups, downs) in [
            (7_500, [0, 7_500, 8_334, 9_167, 10_000], [0, 6_000, 6_834, 7_667, 8_500]),
            (0, [0, 0, 3_334, 6_667, 10_000], [0, 0, 1_834, 5_167, 8_500]),
            (10_000, [0, 10_000, 10_000, 10_000, 10_000], [0, 8_500, 8_500, 8_500, 8_500]),
        ] {
            let settings =
                LoadSettings { activation: Ratio::share(activation, 10_000), ..LoadSettings::default() };
            assert_eq!(Level::ALL.map(|level| settings.up(level).ten_thousandths()), ups);
            assert_eq!(Level::ALL.map(|level| settings.down(level).ten_thousandths()), downs);
        }
    }

    #[test]
    fn defaults_lie_within_what_is_allowed() {
        let settings = LoadSettings::default();
        assert!(LoadSettings::ACTIVATION.contains(&settings.activation.ten_thousandths()));
        assert!(LoadSettings::HYSTERESIS.contains(&settings.hysteresis.ten_thousandths()));
        assert!(LoadSettings::RISE_DWELL_SECONDS.contains(&settings.rise_dwell.as_secs()));
        assert!(LoadSettings::FALL_DWELL_SECONDS.contains(&settings.fall_dwell.as_secs()));
        assert_eq!(settings.fall_dwell.as_secs(), 60);
        for most in [
            settings.most_rendezvous_per_second,
            settings.most_rejections_per_second,
            settings.most_puzzle_queue,
        ] {
            assert!(LoadSettings::MOST.contains(&most.get()));
        }
        assert_eq!(settings.most_rendezvous_per_second.get(), 50);
        assert_eq!(settings.most_rejections_per_second.get(), 50);
        assert_eq!(settings.most_puzzle_queue.get(), 125);
        let puzzles = settings.puzzles;
        for bits in [puzzles.min, puzzles.max, puzzles.page_max] {
            assert!(PuzzleSettings::DIFFICULTY.contains(&bits));
        }
    }
}
