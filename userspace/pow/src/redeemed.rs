//! Which challenges were redeemed already.

use std::{collections::BTreeSet, num::NonZeroUsize};

use thiserror::Error;

use crate::{Difficulty, Id, Solved, UnixSeconds};

/// The challenges that were redeemed and have not expired: each is good once.
///
/// It never holds more than its capacity. When there is no room, it forgets those that expire next, and from then on
/// refuses whatever expires no later than they do ([`RedeemError::Crowded`]): a replay stays refused in every case, and so
/// is whoever takes longest to solve. Those who ask now and solve soon are served on. Refusing everybody until something
/// expires would let an attacker close the door for all by solving as many challenges as there is room for.
///
/// The same line keeps replays out when the clock steps: nothing that was forgotten because it had expired becomes good
/// again.
///
/// An entry takes 24 bytes of a B-tree whose nodes are at least half full: at most about 70 bytes each. It has no hashing
/// that a client could lead into collisions.
#[derive(Debug)]
pub struct Redeemed {
    capacity: NonZeroUsize,
    /// By expiry first, so that what expires next is the first.
    entries: BTreeSet<(UnixSeconds, Id)>,
    /// Whatever expires at this second or before may have been forgotten.
    forgotten: UnixSeconds,
}

/// Why a solved challenge is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RedeemError {
    /// Too late: it expired between verifying and redeeming.
    #[error("the challenge has expired: it must be solved within its time; ask for a new one")]
    Expired,
    /// It was redeemed before.
    #[error("the challenge was redeemed already, and each is good once: ask for a new one")]
    Replayed,
    /// It expires so soon that its redemption may have been forgotten, or that there is no room for it.
    #[error(
        "so many challenges were redeemed that this one can no longer be told from a replay: ask for a new one, and solve \
         it sooner"
    )]
    Crowded,
}

impl Redeemed {
    /// An empty memory for `capacity` challenges. It must be as many as are redeemed within one challenge's life, or
    /// challenges live shorter than they say.
    ///
    /// It goes with new [`Secrets`](crate::Secrets), because it knows nothing of what was redeemed before.
    pub const fn new(capacity: NonZeroUsize) -> Self {
        Self { capacity, entries: BTreeSet::new(), forgotten: UnixSeconds(0) }
    }

    /// Redeems `solved` at `now`, and returns what was paid.
    ///
    /// # Errors
    /// When it expired, was redeemed before, or may have been.
    pub fn redeem(&mut self, solved: Solved, now: UnixSeconds) -> Result<Difficulty, RedeemError> {
        let Solved { expires, id, difficulty } = solved;
        if expires <= now {
            return Err(RedeemError::Expired);
        }
        let entry = (expires, id);
        if self.entries.contains(&entry) {
            return Err(RedeemError::Replayed);
        }
        if expires <= self.forgotten {
            return Err(RedeemError::Crowded);
        }
        self.forget_until(now);
        if self.entries.len() >= self.capacity.get()
            && let Some((next, _)) = self.entries.first().copied()
        {
            if expires <= next {
                return Err(RedeemError::Crowded);
            }
            self.forget_until(next);
        }
        self.entries.insert(entry);
        Ok(difficulty)
    }

    /// How many it holds.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many it can hold.
    pub const fn capacity(&self) -> NonZeroUsize {
        self.capacity
    }

    /// Forgets what expires at `end` or before, and remembers that it did.
    fn forget_until(&mut self, end: UnixSeconds) {
        while let Some((expires, _)) = self.entries.first().filter(|(expires, _)| *expires <= end).copied() {
            // It only grows: nothing is inserted that expires at `forgotten` or before.
            self.forgotten = expires;
            self.entries.pop_first();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use proptest::prelude::*;

    fn solved(expires: u64, id: u8) -> Solved {
        Solved { expires: UnixSeconds(expires), id: Id([id; 16]), difficulty: Difficulty::MODERATE }
    }

    fn memory(capacity: usize) -> Redeemed {
        Redeemed::new(NonZeroUsize::new(capacity).unwrap())
    }

    #[test]
    fn what_becomes_of_each() {
        use RedeemError::{Crowded, Expired, Replayed};
        let mut redeemed = memory(2);
        // Expiry, id, clock, outcome, how many are held afterwards.
        for (row, (expires, id, now, outcome, held)) in [
            (100, 1, 0, Ok(()), 1),
            (100, 1, 0, Err(Replayed), 1),
            (100, 1, 99, Err(Replayed), 1),
            (100, 1, 100, Err(Expired), 1),
            (100, 2, 0, Ok(()), 2),
            // Full, and this one would be the first to be forgotten.
            (100, 3, 0, Err(Crowded), 2),
            (99, 3, 0, Err(Crowded), 2),
            // It expires later: both of 100 are forgotten, and nothing of that age is taken any more.
            (101, 3, 0, Ok(()), 1),
            (100, 1, 0, Err(Crowded), 1),
            (100, 4, 0, Err(Crowded), 1),
            (102, 5, 0, Ok(()), 2),
            // Room because one has expired.
            (103, 6, 101, Ok(()), 2),
            // The clock steps back: what was forgotten stays refused, what is held stays known.
            (101, 3, 0, Err(Crowded), 2),
            (102, 5, 0, Err(Replayed), 2),
            // What has expired takes no room, also while there is enough.
            (200, 7, 103, Ok(()), 1),
        ]
        .into_iter()
        .enumerate()
        {
            let outcome_here = redeemed.redeem(solved(expires, id), UnixSeconds(now));
            assert_eq!(outcome_here.map(|_| ()), outcome, "row {row}");
            assert_eq!(redeemed.len(), held, "row {row}");
        }
    }

    #[test]
    fn what_is_paid_is_what_was_asked() {
        assert_eq!(memory(1).redeem(solved(1, 1), UnixSeconds(0)), Ok(Difficulty::MODERATE));
    }

    proptest! {
        /// For all sizes, redemptions and clocks, also clocks that step back, no challenge is redeemed twice and the memory
        /// does not grow beyond its capacity.
        #[test]
        fn nothing_is_redeemed_twice(
            capacity in 1usize..6,
            steps in prop::collection::vec((0u64..30, 0u8..4, 0u64..30), 0..200),
        ) {
            let mut redeemed = memory(capacity);
            let mut taken = HashSet::new();
            for (expires, id, now) in steps {
                let outcome = redeemed.redeem(solved(expires, id), UnixSeconds(now));
                if outcome.is_ok() {
                    prop_assert!(taken.insert((expires, id)), "{expires} {id} twice");
                    prop_assert!(expires > now);
                }
                prop_assert!(redeemed.len() <= capacity);
            }
        }

        /// For all redemptions by a clock that does not step back, in a memory with room for those of one life, each
        /// challenge is taken exactly once while it is good.
        #[test]
        fn with_room_everybody_is_served(
            steps in prop::collection::vec((0u64..3, 1u64..10, 0u8..4), 0..200),
        ) {
            let mut redeemed = memory(200);
            let mut taken = HashSet::new();
            let mut now = 0;
            for (wait, life, id) in steps {
                now += wait;
                let outcome = redeemed.redeem(solved(now + life, id), UnixSeconds(now));
                prop_assert_eq!(outcome.is_ok(), taken.insert((now + life, id)));
            }
        }

        /// For all floods, whoever asks now and solves at once is taken, as long as the flood redeems fewer challenges of one
        /// expiry than there is room for.
        #[test]
        fn a_flood_does_not_close_the_door(per_second in 1usize..4, seconds in 1u64..100) {
            let mut redeemed = memory(4);
            for second in 0..seconds {
                for id in 0..per_second {
                    let outcome = redeemed.redeem(solved(second + 60, id as u8), UnixSeconds(second));
                    prop_assert_eq!(outcome, Ok(Difficulty::MODERATE));
                }
                let honest = redeemed.redeem(solved(second + 60, 0xff), UnixSeconds(second));
                prop_assert_eq!(honest, Ok(Difficulty::MODERATE));
            }
        }
    }
}
