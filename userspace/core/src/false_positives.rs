//! The budget of false positives: how many of those who showed that they mean no harm may be refused before limits give way.
//!
//! Whoever holds a token has paid, or somebody vouches for him. If many such holders run into the limits of token holders, the
//! limits are wrong and not they: then these limits relax by one step ([`relaxed`]), and no further. A holder counts once in
//! each minute in which he is seen, however often he is refused, so that one who hammers is one of many.
//!
//! What it never does: it relaxes nothing for circuits without a token; it lifts no ban and forgives no violation; and above
//! moderate load it ends, because there what an attacker can gain by it is worth most.
//!
//! | state | input | next |
//! |---|---|---|
//! | strict | a window with [`FalsePositiveSettings::fewest`] holders or more, over the budget | relaxed |
//! | relaxed | a window with as many, at half the budget or over it | relaxed, and its quiet begins anew |
//! | relaxed | [`QUIET`] without such a window | strict |
//! | any | load above moderate | strict, and the window begins anew |
//! | any | counts that fell: another front | as it was, and the window begins anew |
//!
//! Half the budget, and the quiet, are the hysteresis: relaxed limits refuse fewer, and would otherwise end at once what they
//! brought about.

use std::{num::NonZeroU16, num::NonZeroU32, time::Duration};

use crate::{circuit_policy::Ratio, load_level::Level, time::Monotime};

/// How long holders are counted before their share is judged. As long as one counts once.
pub const WINDOW: Duration = Duration::from_secs(60);
/// How long relaxed limits stay after the last window that asks for them.
pub const QUIET: Duration = Duration::from_secs(600);

/// Bounds. The configuration crate checks the ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FalsePositiveSettings {
    /// `false_positive_budget`: the part of the holders seen in a window that may be refused. All of it: limits never relax.
    pub budget: Ratio,
    /// `false_positive_least_holders`: holders without which a window says nothing.
    pub fewest: NonZeroU32,
}

/// Token holders since the front began to count, each once in each minute in which it was seen, or refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holders {
    /// Asked for something.
    pub seen: u64,
    /// Were refused by a limit of token holders.
    pub refused: u64,
}

/// The machine. It knows no deadline: without counts there is nobody for whom a limit could relax.
#[derive(Clone, Debug)]
pub struct FalsePositives {
    settings: FalsePositiveSettings,
    /// Since when no window has asked for relaxed limits; `None`: they are strict.
    relaxed_since: Option<Monotime>,
    /// The counts at the window's beginning.
    window: Option<(Holders, Monotime)>,
}

/// A limit of token holders, relaxed by one step: half as much again.
pub fn relaxed(limit: NonZeroU16) -> NonZeroU16 {
    limit.saturating_add(limit.get() / 2)
}

impl Default for FalsePositiveSettings {
    /// One of twenty, and at least two: a single holder relaxes nothing.
    fn default() -> Self {
        Self { budget: Ratio::TWENTIETH, fewest: NonZeroU32::MIN.saturating_add(19) }
    }
}

impl FalsePositives {
    /// Strict.
    pub const fn new(settings: FalsePositiveSettings) -> Self {
        Self { settings, relaxed_since: None, window: None }
    }

    /// Other bounds from now on.
    pub const fn set_settings(&mut self, settings: FalsePositiveSettings) {
        self.settings = settings;
    }

    /// The load level in force: above moderate load limits are strict.
    pub fn follow(&mut self, level: Level) {
        if level > Level::Moderate {
            (self.relaxed_since, self.window) = (None, None);
        }
    }

    /// Takes in the front's counts, while `level` is in force.
    pub fn count(&mut self, holders: Holders, level: Level, now: Monotime) {
        self.follow(level);
        if level > Level::Moderate {
            return;
        }
        if self.relaxed_since.is_some_and(|since| since.after(QUIET) <= now) {
            self.relaxed_since = None;
        }
        let Some((before, since)) = self.window else {
            self.window = Some((holders, now));
            return;
        };
        let [seen, refused] =
            [holders.seen.checked_sub(before.seen), holders.refused.checked_sub(before.refused)];
        let (Some(seen), Some(refused)) = (seen, refused) else {
            self.window = Some((holders, now));
            return;
        };
        let elapsed = now.since(since);
        if elapsed < WINDOW {
            return;
        }
        self.window = Some((holders, now));
        // A front that was silent for long counted minutes of which nobody knows when they were.
        if elapsed > 2 * WINDOW || seen < u64::from(self.settings.fewest.get()) {
            return;
        }
        let share = u128::from(refused) * 2 * u128::from(Ratio::ALL.ten_thousandths());
        let budget = u128::from(seen) * u128::from(self.settings.budget.ten_thousandths());
        let is_over = share > 2 * budget;
        let is_near = self.relaxed_since.is_some() && refused > 0 && share >= budget;
        if self.settings.budget < Ratio::ALL && (is_over || is_near) {
            self.relaxed_since = Some(now);
        }
    }

    /// Whether limits of token holders are relaxed by one step at this level.
    pub fn desired(&self, level: Level) -> bool {
        self.relaxed_since.is_some() && level <= Level::Moderate
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> Monotime {
        Monotime(seconds * 1_000_000_000)
    }

    /// Counts after each step, the level, and whether limits are relaxed after it.
    #[test]
    fn limits_relax_while_holders_are_refused_and_the_load_is_moderate() {
        use Level::{Calm, Heavy, Light, Moderate};
        let mut machine = FalsePositives::new(FalsePositiveSettings::default());
        for (second, seen, refused, level, is_relaxed) in [
            (0, 1_000, 900, Calm, false),      // the beginning: what came before says nothing
            (59, 1_100, 1_000, Calm, false),   // the window is not over
            (60, 1_019, 919, Calm, false),     // 19 are too few
            (120, 1_039, 920, Light, false),   // 1 of 20 is the budget, and not over it
            (180, 1_059, 922, Moderate, true), // 2 of 20
            (240, 1_099, 923, Moderate, true), // 1 of 40 is half the budget: its quiet begins anew
            (300, 1_199, 924, Calm, true),     // 1 of 100
            (839, 1_199, 924, Calm, true),     // 599 s
            (840, 1_199, 924, Calm, false),    // 600 s of quiet
            (900, 1_299, 925, Calm, false),    // 1 of 100: strict stays strict
            (960, 1_399, 928, Calm, false),    // 3 of 100, at half the budget
            (1_020, 1_499, 934, Calm, true),   // 6 of 100
            (1_021, 1_499, 934, Heavy, false), // above moderate it ends at once
            (1_022, 1_499, 934, Moderate, false), // and must be earned again
            (1_082, 1_599, 1_034, Moderate, true),
            (1_203, 1_799, 1_234, Moderate, true), // more than two windows: says nothing
            (1_263, 10, 0, Moderate, true),        // another front
            (1_323, 110, 0, Moderate, true),       // nobody was refused
            (1_681, 110, 0, Moderate, true),
            (1_682, 110, 0, Moderate, false), // 600 s since 1 082
        ] {
            machine.count(Holders { seen, refused }, level, at(second));
            assert_eq!(machine.desired(level), is_relaxed, "{second}");
            assert!(!machine.desired(Heavy) && !machine.desired(Level::UnderAttack));
        }
    }

    #[test]
    fn a_budget_of_all_never_relaxes_and_none_relaxes_for_one() {
        for (budget, expected) in [(Ratio::ALL, false), (Ratio::NONE, true)] {
            let settings = FalsePositiveSettings { budget, ..FalsePositiveSettings::default() };
            let mut machine = FalsePositives::new(settings);
            machine.count(Holders::default(), Level::Calm, at(0));
            machine.count(Holders { seen: 20, refused: 1 }, Level::Calm, at(60));
            assert_eq!(machine.desired(Level::Calm), expected);
        }
        // Everybody is refused: all of the budget is still not exceeded.
        let all = FalsePositiveSettings { budget: Ratio::ALL, ..FalsePositiveSettings::default() };
        let mut machine = FalsePositives::new(all);
        machine.count(Holders::default(), Level::Calm, at(0));
        machine.count(Holders { seen: 20, refused: 20 }, Level::Calm, at(60));
        assert!(!machine.desired(Level::Calm));
    }

    #[test]
    fn one_step_is_half_as_much_again() {
        for (limit, expected) in [(1, 1), (2, 3), (15, 22), (200, 300), (60_000, u16::MAX)] {
            let limit = NonZeroU16::new(limit).unwrap();
            assert_eq!(relaxed(limit).get(), expected);
        }
    }

    proptest! {
        /// For all bounds, counts and levels, limits are relaxed only at moderate load or below, and only after a window, no
        /// longer ago than the quiet, with enough holders of whom at least half the budget were refused; and the first of
        /// them was over the budget.
        #[test]
        fn limits_relax_for_a_reason(
            budget in 0u16..=10_000,
            fewest in 1u32..30,
            steps in prop::collection::vec((0u64..60, 0u64..60, 0usize..5, 1u64..150), 0..60),
        ) {
            let budget = Ratio::share(budget.into(), 10_000);
            let settings = FalsePositiveSettings { budget, fewest: NonZeroU32::new(fewest).unwrap() };
            let mut machine = FalsePositives::new(settings);
            let (mut holders, mut now) = (Holders::default(), 0);
            // The last window with a reason, by a slower reckoning.
            let (mut window, mut reason): (Option<(Holders, u64)>, Option<u64>) = (None, None);
            for (seen, refused, level, wait) in steps {
                now += wait;
                let was_relaxed = machine.desired(Level::Calm);
                holders = Holders { seen: holders.seen + seen, refused: holders.refused + refused.min(seen) };
                let level = Level::ALL[level];
                machine.count(holders, level, at(now));
                if level > Level::Moderate {
                    prop_assert!(!machine.desired(level) && !machine.desired(Level::Calm));
                    (window, reason) = (None, None);
                    continue;
                }
                match window {
                    Some((before, since)) if now - since >= 60 => {
                        let all = (holders.seen - before.seen) as f64;
                        let part = (holders.refused - before.refused) as f64;
                        let share = f64::from(budget.ten_thousandths()) / 10_000.0;
                        let least = if was_relaxed && reason.is_some_and(|reason| now - reason < 600) { 0.5 } else { 1.0 };
                        let counts = now - since <= 120 && all >= f64::from(fewest) && part > 0.0;
                        if counts && part >= all * share * least - 1e-6 && budget < Ratio::ALL {
                            reason = Some(now);
                        }
                        window = Some((holders, now));
                    }
                    Some(_) => {}
                    None => window = Some((holders, now)),
                }
                if machine.desired(level) {
                    prop_assert!(reason.is_some_and(|reason| now - reason < 600), "{now} {reason:?}");
                }
            }
        }
    }
}
