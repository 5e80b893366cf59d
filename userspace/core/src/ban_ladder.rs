//! How long the next ban of a source is.
//!
//! Each offence climbs one rung, up to the top; each `forgive_after` without one steps down, until the source is
//! forgotten. The ladder holds no state: the ledger keeps one [`Memory`] for each source that offended.
//!
//! Times are of the wall clock, because memories outlive a boot. Whatever that clock does, a ban's length is always
//! one of the configured rungs: a step back forgives nothing, a step forward at most forgives everything.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    evidence::{Offence, Proven},
    time::WallTime,
};

/// Lengths of bans, shortest first, and how fast a source is forgiven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ladder {
    rungs: Vec<Duration>,
    forgive_after: Duration,
}

/// Why a ladder is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum LadderError {
    /// There is no rung.
    #[error("the ban ladder has no rung; give at least one length")]
    NoRung,
    /// A length or `forgive_after` is under one second, the wall clock's resolution in the ledger.
    #[error("the ban ladder has a time under one second; give whole seconds")]
    UnderOneSecond,
    /// A rung is not longer than the one below it.
    #[error("the ban ladder does not rise; give each rung a longer time than the one before")]
    NotRising,
}

/// What the ledger remembers of a source that offended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// The rung of its last offence, counted from 1.
    pub rung: u32,
    /// When that was.
    pub last_offence: WallTime,
}

/// The ladder's answer to an offence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Climb {
    /// How long to ban.
    pub length: Duration,
    /// What to remember from now on.
    pub memory: Memory,
}

impl Ladder {
    /// The ladder of these lengths, shortest first.
    ///
    /// # Errors
    /// When there is no rung, the rungs do not rise, or a time is under one second.
    pub fn new(rungs: Vec<Duration>, forgive_after: Duration) -> Result<Self, LadderError> {
        let shortest = rungs.first().ok_or(LadderError::NoRung)?;
        if (*shortest).min(forgive_after) < Duration::from_secs(1) {
            return Err(LadderError::UnderOneSecond);
        }
        if !rungs.is_sorted_by(|lower, upper| lower < upper) {
            return Err(LadderError::NotRising);
        }
        Ok(Self { rungs, forgive_after })
    }

    /// How many rungs there are; at least 1.
    pub fn top(&self) -> u32 {
        u32::try_from(self.rungs.len()).unwrap_or(u32::MAX)
    }

    /// Lengths of bans, shortest first.
    pub fn rungs(&self) -> &[Duration] {
        &self.rungs
    }

    /// How long a source must behave to go down one rung.
    pub const fn forgive_after(&self) -> Duration {
        self.forgive_after
    }

    /// The next ban of a source of which `memory` is known.
    ///
    /// | proof | standing | rung of the next ban |
    /// |---|---|---|
    /// | any | 0: unknown or forgiven | 1 |
    /// | any | below the top | standing + 1 |
    /// | any | the top | the top |
    pub fn climb(&self, memory: Option<Memory>, offence: &Offence, now: WallTime) -> Climb {
        let standing = memory.map_or(0, |memory| self.standing(memory, now));
        let rung = match offence.proof() {
            Proven::Operator | Proven::Handshakes | Proven::Report { .. } => self.above(standing),
        };
        Climb { length: self.length(rung), memory: Memory { rung, last_offence: now } }
    }

    /// The rung of the next ban of whoever was banned on `rung` (0: never) `elapsed` ago, counted from 1, by the same
    /// table as [`Self::climb`].
    ///
    /// For circuits, whose memories live no longer than their tor and are dated by the boot's clock.
    pub fn climb_after(&self, rung: u32, elapsed: Duration) -> u32 {
        self.above(self.forgiven(rung, elapsed))
    }

    /// The rung on which a source stands at `now`, after forgiveness; 0 once it is forgotten. A rung above the top,
    /// left by a longer ladder, counts as the top.
    pub fn standing(&self, memory: Memory, now: WallTime) -> u32 {
        self.forgiven(memory.rung, now.since(memory.last_offence))
    }

    /// How long after `now` the memory says nothing any more; never longer than the whole way down, so that a wall
    /// clock far behind the last offence cannot keep a memory for ever.
    pub fn forgotten_in(&self, memory: Memory, now: WallTime) -> Duration {
        let whole = self.forgive_after.saturating_mul(memory.rung.min(self.top()));
        memory.last_offence.after(whole).since(now).min(whole)
    }

    fn forgiven(&self, rung: u32, elapsed: Duration) -> u32 {
        let steps = elapsed.as_secs() / self.forgive_after.as_secs().max(1);
        rung.min(self.top()).saturating_sub(u32::try_from(steps).unwrap_or(u32::MAX))
    }

    fn above(&self, standing: u32) -> u32 {
        standing.saturating_add(1).min(self.top())
    }

    /// The length of a ban on this rung, counted from 1; the top's beyond it.
    pub fn length(&self, rung: u32) -> Duration {
        let index = usize::try_from(rung.saturating_sub(1)).unwrap_or(usize::MAX);
        self.rungs.get(index).or(self.rungs.last()).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::id::PacketSource;

    const DAY: u64 = 86_400;

    fn ladder() -> Ladder {
        Ladder::new([300, 1_800, 14_400, DAY].map(Duration::from_secs).to_vec(), Duration::from_secs(DAY))
            .unwrap()
    }

    fn offence() -> Offence {
        Offence::by_operator(PacketSource::of([192, 0, 2, 7].into()), String::new())
    }

    #[test]
    fn offences_climb_and_time_forgives() {
        // Rung remembered, seconds since then, rung and seconds of the next ban.
        for (rung, elapsed, next, length) in [
            (None, 0, 1, 300),
            (Some(1), 0, 2, 1_800),
            (Some(1), DAY - 1, 2, 1_800),
            (Some(1), DAY, 1, 300),
            (Some(2), DAY, 2, 1_800),
            (Some(2), 2 * DAY, 1, 300),
            (Some(3), 10, 4, DAY),
            (Some(4), 10, 4, DAY),
            (Some(4), DAY, 4, DAY),
            (Some(4), 2 * DAY, 3, 14_400),
            (Some(4), 100 * DAY, 1, 300),
            (Some(9), 0, 4, DAY),
            (Some(9), 3 * DAY, 2, 1_800),
            (Some(0), 0, 1, 300),
        ] {
            let (last_offence, now) = (WallTime(1_000 * DAY), WallTime(1_000 * DAY + elapsed));
            let memory = rung.map(|rung| Memory { rung, last_offence });
            let climb = ladder().climb(memory, &offence(), now);
            let expected = Climb {
                length: Duration::from_secs(length),
                memory: Memory { rung: next, last_offence: now },
            };
            assert_eq!(climb, expected, "rung {rung:?} after {elapsed} s");
            let after = ladder().climb_after(rung.unwrap_or(0), Duration::from_secs(elapsed));
            assert_eq!(after, next, "rung {rung:?} after {elapsed} s");
        }
    }

    #[test]
    fn faulty_ladders_are_refused() {
        for (rungs, forgive, error) in [
            (vec![], 60, LadderError::NoRung),
            (vec![0, 5], 60, LadderError::UnderOneSecond),
            (vec![5], 0, LadderError::UnderOneSecond),
            (vec![5, 5], 60, LadderError::NotRising),
            (vec![9, 5], 60, LadderError::NotRising),
        ] {
            let rungs = rungs.into_iter().map(Duration::from_secs).collect();
            assert_eq!(Ladder::new(rungs, Duration::from_secs(forgive)), Err(error));
        }
    }

    proptest! {
        /// For all memories and clocks, a ban's length is one of the rungs and the new memory dates from now.
        #[test]
        fn lengths_are_rungs(rung: u32, last_offence: u64, now: u64) {
            let memory = Memory { rung, last_offence: WallTime(last_offence) };
            let climb = ladder().climb(Some(memory), &offence(), WallTime(now));
            prop_assert!(ladder().rungs().contains(&climb.length));
            prop_assert_eq!(climb.memory.last_offence, WallTime(now));
            prop_assert!((1..=4).contains(&climb.memory.rung));
        }

        /// For all memories, waiting longer never makes the next ban longer, and a clock that stepped back judges
        /// like one that stood still.
        #[test]
        fn waiting_never_hurts(rung in 0u32..10, last in DAY..1_000 * DAY, sooner in 0..20 * DAY, wait in 0..20 * DAY, back in 0..DAY) {
            let memory = Memory { rung, last_offence: WallTime(last) };
            let at = |now| ladder().climb(Some(memory), &offence(), WallTime(now)).length;
            prop_assert!(at(last + sooner) >= at(last + sooner + wait));
            prop_assert_eq!(at(last - back), at(last));
        }

        /// For all memories, a source stands on no rung exactly from the moment on at which it is to be forgotten.
        #[test]
        fn forgotten_when_forgiven(rung in 1u32..10, last in 0..1_000 * DAY, elapsed in 0..10 * DAY) {
            let (memory, now) = (Memory { rung, last_offence: WallTime(last) }, WallTime(last + elapsed));
            let forgotten = ladder().forgotten_in(memory, now);
            prop_assert_eq!(ladder().standing(memory, now) == 0, forgotten.is_zero());
            prop_assert_eq!(ladder().standing(memory, now.after(forgotten)), 0);
            prop_assert!(ladder().forgotten_in(memory, WallTime(0)) <= Duration::from_secs(4 * DAY));
        }
    }
}
