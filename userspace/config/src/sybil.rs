//! `[sybil]`: how new circuits are compared, and what follows from it.

use std::{num::NonZeroU32, time::Duration};

use tunica_core::{circuit_policy::Ratio, load_level::Level, newcomers::NewcomerSettings};

use crate::config::{Config, Raise};

/// `[sybil]`: how new circuits are compared with those of calm times, and what follows from it. Never a ban, and never a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sybil {
    /// `alike_percent`: by how much the share of new circuits that are alike must exceed the usual one; 50 by default.
    pub alike_percent: NonZeroU32,
    /// `learn_seconds`: the least time between two circuits that are learned; 10 s by default.
    pub learn: Duration,
    /// `raises_level`: up to where a crowd that is alike raises the load level, by one; `off` by default.
    pub raises_level: Raise,
    /// `samples`: whether each new circuit has a line in the file beside the ledger; `false` by default.
    pub samples: bool,
}

impl Config {
    /// What new circuits are compared by.
    pub fn newcomer_settings(&self) -> NewcomerSettings {
        NewcomerSettings {
            alike_share: Ratio::share(self.sybil.alike_percent.get().into(), 100),
            learn_every: self.sybil.learn,
            raises_to: match self.sybil.raises_level {
                Raise::Off => Level::Calm,
                Raise::Light => Level::Light,
                Raise::Moderate => Level::Moderate,
            },
        }
    }
}
