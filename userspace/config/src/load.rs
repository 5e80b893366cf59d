//! `[load]`: what makes a load level.

use std::{num::NonZeroU32, time::Duration};

use tunica_core::{
    false_positives::FalsePositiveSettings, load_level::LoadSettings, puzzle_level::PuzzleSettings,
};

use crate::config::Config;

/// `[load]`: what makes a load level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Load {
    /// `rise_seconds`: the least time between a change and a rise; 5 s by default.
    pub rise: Duration,
    /// `fall_seconds`: how long the load must be below a level before it falls by one; 60 s by default.
    pub fall: Duration,
    /// `rendezvous_per_second` that are full load; 50 by default.
    pub rendezvous_per_second: NonZeroU32,
    /// `rejections_per_second` of introductions that are full load; 50 by default.
    pub rejections_per_second: NonZeroU32,
    /// `puzzle_queue`: introductions in the queue of Tor's own puzzle that are full load; 125 by default.
    pub puzzle_queue: NonZeroU32,
}

impl Config {
    /// What the load level is decided by.
    pub fn load_settings(&self) -> LoadSettings {
        // The rules of the keys bound every number, so nothing is cut.
        let bits = |number: NonZeroU32| u8::try_from(number.get()).unwrap_or(u8::MAX);
        LoadSettings {
            rise_dwell: self.load.rise,
            fall_dwell: self.load.fall,
            most_rendezvous_per_second: self.load.rendezvous_per_second,
            most_rejections_per_second: self.load.rejections_per_second,
            most_puzzle_queue: self.load.puzzle_queue,
            activation: self.circuits.pow_activation_threshold,
            puzzles: PuzzleSettings {
                min: bits(self.circuits.pow_difficulty_min),
                max: bits(self.circuits.pow_difficulty_max),
                page_max: bits(self.circuits.pow_page_max),
            },
            false_positives: FalsePositiveSettings {
                budget: self.circuits.false_positive_budget,
                fewest: self.circuits.false_positive_least_holders,
            },
            ..LoadSettings::default()
        }
    }
}
