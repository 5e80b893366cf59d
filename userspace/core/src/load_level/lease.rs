//! What the front was told of the load, and for how long that holds.
//!
//! | state | input | next |
//! |---|---|---|
//! | configured limits | [`LoadLease::hear`] a load | that load |
//! | a load | [`LoadLease::hear`] | what was heard |
//! | a load | nothing heard for [`LEASE`] | configured limits |

use std::time::Duration;

use super::Ratio;
use crate::{
    circuit_policy::{CircuitSettings, Load},
    puzzle_level::Puzzles,
    refusal::Refusal,
    time::Monotime,
};

/// How long the front holds to a load that nobody repeats: as long as the kernel waits for the daemon's heartbeat by default
/// (`shield.stale_after_seconds`). The daemon repeats itself several times within it.
pub const LEASE: Duration = Duration::from_secs(30);

/// What of the load level the front holds to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrontLoad {
    /// The load, against `pow_activation_threshold`.
    pub ratio: Ratio,
    /// Whether circuits that have not paid are asked for a puzzle, where they can be.
    pub asks_puzzles: bool,
    /// How hard it is.
    pub puzzles: Puzzles,
    /// The part of its limits that a circuit which has not paid may still use.
    pub share: Ratio,
    /// Whether limits of token holders are relaxed by one step.
    pub relaxes_tokens: bool,
}

/// The machine; the front keeps one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadLease {
    told: Option<(FrontLoad, Monotime)>,
}

impl LoadLease {
    /// Nothing was told yet.
    pub const fn new() -> Self {
        Self { told: None }
    }

    /// The daemon speaks; `None`: it says nothing of the load, and the configured limits hold.
    pub fn hear(&mut self, load: Option<FrontLoad>, now: Monotime) {
        self.told = load.map(|load| (load, now.after(LEASE)));
    }

    /// Does what time alone made due.
    pub fn advance(&mut self, now: Monotime) {
        if self.next_deadline().is_some_and(|until| until <= now) {
            self.told = None;
        }
    }

    /// When [`Self::advance`] has something to do.
    pub fn next_deadline(&self) -> Option<Monotime> {
        self.told.map(|(_, until)| until)
    }

    /// What is held to; `None`: the configured limits.
    pub fn desired(&self) -> Option<FrontLoad> {
        self.told.map(|(load, _)| load)
    }
}

impl FrontLoad {
    /// What a shard with these settings is to be told, for [`CircuitShard::set_load`] and [`CircuitShard::set_share`], while
    /// `held` is held to. Where no circuit can pay, because no puzzle is handed out, the ratio is held back: with it every
    /// circuit would be refused from light load on, and the service's visitors first.
    ///
    /// [`CircuitShard::set_load`]: crate::circuit_policy::CircuitShard::set_load
    /// [`CircuitShard::set_share`]: crate::circuit_policy::CircuitShard::set_share
    pub fn of_shard(held: Option<Self>, settings: &CircuitSettings) -> (Load, Ratio) {
        let configured = Load { ratio: Ratio::NONE, difficulty: settings.pow_difficulty };
        held.map_or((configured, Ratio::ALL), |held| {
            let ratio = if settings.asks_puzzles && held.asks_puzzles { held.ratio } else { Ratio::NONE };
            (Load { ratio, difficulty: held.puzzles.difficulty }, held.share)
        })
    }

    /// What [`Admission::set_settings`] is to be told under this load: a part is kept for circuits that paid only while
    /// circuits are asked to. At any other time nobody could take those places, and visitors would wait beside them.
    ///
    /// [`Admission::set_settings`]: crate::circuit_policy::Admission::set_settings
    pub fn of_admission(load: Load, settings: &CircuitSettings) -> CircuitSettings {
        let is_shadow = settings.shadows().contains(Refusal::PuzzleRequired);
        let is_asked = load.ratio >= settings.pow_activation_threshold && !is_shadow;
        let paid_share = if is_asked { settings.paid_share } else { Ratio::NONE };
        CircuitSettings { paid_share, ..settings.clone() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        ban_ladder::Ladder,
        load_level::{Event, Level, LoadLevel, LoadSettings},
    };

    fn load(level: Level) -> FrontLoad {
        let mut machine = LoadLevel::new(LoadSettings::default());
        machine.handle(Event::Pin { level, until: None }, Monotime(1));
        machine.desired().front()
    }

    const fn at(milliseconds: u64) -> Monotime {
        Monotime(milliseconds * 1_000_000)
    }

    #[test]
    fn a_share_is_kept_for_those_who_paid_while_circuits_are_asked_to() {
        let ladder = Ladder::new(vec![Duration::from_secs(300)], Duration::from_secs(86_400)).unwrap();
        let web = CircuitSettings::web(ladder);
        let kept = |ratio: Ratio, settings: &CircuitSettings| {
            FrontLoad::of_admission(Load { ratio, difficulty: 16 }, settings).paid_share
        };
        assert_eq!(kept(Ratio::NONE, &web), Ratio::NONE);
        assert_eq!(kept(Ratio::THREE_QUARTERS.less(Ratio::LEAST), &web), Ratio::NONE);
        assert_eq!(kept(Ratio::THREE_QUARTERS, &web), Ratio::HALF);
        let always = CircuitSettings { pow_activation_threshold: Ratio::NONE, ..web.clone() };
        assert_eq!(kept(Ratio::NONE, &always), Ratio::HALF);
        let bypassed = CircuitSettings { is_bypassed: true, ..always };
        assert_eq!(kept(Ratio::NONE, &bypassed), Ratio::NONE, "nobody is asked");
        let shadow = [Refusal::PuzzleRequired].into_iter().collect();
        assert_eq!(kept(Ratio::ALL, &CircuitSettings { shadow, ..web }), Ratio::NONE, "nobody is asked");
    }

    #[test]
    fn a_load_holds_until_nobody_repeats_it() {
        let mut lease = LoadLease::new();
        assert_eq!((lease.desired(), lease.next_deadline()), (None, None));
        lease.hear(Some(load(Level::Heavy)), at(0));
        lease.advance(at(29_999));
        assert_eq!(lease.desired(), Some(load(Level::Heavy)));
        lease.hear(Some(load(Level::UnderAttack)), at(29_999));
        assert_eq!(lease.next_deadline(), Some(at(59_999)));
        lease.advance(at(59_998));
        assert_eq!(lease.desired(), Some(load(Level::UnderAttack)));
        lease.advance(at(59_999));
        assert_eq!((lease.desired(), lease.next_deadline()), (None, None));
        // A daemon that knows of no load, such as an older one.
        lease.hear(Some(load(Level::Heavy)), at(70_000));
        lease.hear(None, at(70_001));
        assert_eq!(lease.desired(), None);
    }

    #[test]
    fn the_ratio_acts_only_where_somebody_can_pay() {
        let ladder = Ladder::new(vec![Duration::from_secs(300)], Duration::from_secs(86_400)).unwrap();
        let (web, messenger) = (CircuitSettings::web(ladder.clone()), CircuitSettings::messenger(ladder));
        for (settings, level, ratio, difficulty, share) in [
            (&web, None, 0, 16, Ratio::ALL),
            (&web, Some(Level::Calm), 0, 8, Ratio::ALL),
            (&web, Some(Level::Heavy), 9_167, 20, Ratio::THREE_QUARTERS),
            (&messenger, Some(Level::Heavy), 0, 20, Ratio::THREE_QUARTERS),
        ] {
            let told = FrontLoad::of_shard(level.map(load), settings);
            let expected = Load { ratio: Ratio::share(ratio, 10_000), difficulty };
            assert_eq!(told, (expected, share), "{level:?}");
        }
    }

    proptest! {
        /// For all words of the daemon and silences, what is held to was heard last, and less than a lease ago.
        #[test]
        fn silence_ends_a_load(turns in prop::collection::vec((0u64..40_000, prop::option::of(0usize..5)), 1..50)) {
            let (mut lease, mut now, mut last) = (LoadLease::new(), 0, None);
            for (milliseconds, heard) in turns {
                now += milliseconds;
                lease.advance(at(now));
                let expected = last.filter(|(_, since)| now - since < 30_000).map(|(level, _)| load(level));
                prop_assert_eq!(lease.desired(), expected);
                let level = heard.map(|level| Level::ALL[level]);
                lease.hear(level.map(load), at(now));
                last = level.map(|level| (level, now));
            }
        }
    }
}
