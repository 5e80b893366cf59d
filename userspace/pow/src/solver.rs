//! The client's side: the search for a nonce.

use std::{
    num::NonZeroUsize,
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use crate::{Challenge, Nonce};

/// How many nonces a thread tries before it looks around: about a millisecond.
const BATCH: u64 = 1024;

/// What a search came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Search {
    /// The solution; `None` if the search was stopped before there was one.
    pub nonce: Option<Nonce>,
    /// How many nonces were tried, by all threads.
    pub attempts: u64,
}

/// Searches for the first nonce from `first` on that solves `challenge`, with `threads` threads, of which the caller's is
/// one. Where the system gives fewer, it goes on with those.
///
/// Every millisecond or so each thread calls `stop` with the number of nonces tried so far, and ends if it says true: that
/// is where a caller shows progress and looks at its clock. A search that is not stopped finds the same nonce whatever the
/// number of threads; with one thread the number of attempts is the same, too.
pub fn solve(
    challenge: &Challenge,
    first: Nonce,
    threads: NonZeroUsize,
    stop: &(impl Fn(u64) -> bool + Sync),
) -> Search {
    let token = challenge.to_bytes();
    let asked = u32::from(challenge.difficulty().bits());
    // All three count from `first`. Batches are handed out in order, so whoever finds a solution knows that every nonce
    // before its batch is tried already or being tried by a thread that will end its batch.
    let (next, attempts, best) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(u64::MAX));
    let nonce_at = |offset: u64| Nonce(first.0.wrapping_add(offset));
    let search = || {
        while !stop(attempts.load(Ordering::Relaxed)) {
            let start = next.fetch_add(BATCH, Ordering::Relaxed);
            if start >= best.load(Ordering::Relaxed) {
                return;
            }
            let found = (start..start.saturating_add(BATCH))
                .find(|offset| nonce_at(*offset).zero_bits(&token) >= asked);
            let Some(offset) = found else {
                attempts.fetch_add(BATCH, Ordering::Relaxed);
                continue;
            };
            attempts.fetch_add(offset - start + 1, Ordering::Relaxed);
            best.fetch_min(offset, Ordering::Relaxed);
            return;
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads.get() {
            if thread::Builder::new().spawn_scoped(scope, search).is_err() {
                break;
            }
        }
        search();
    });
    let best = best.into_inner();
    Search { nonce: (best != u64::MAX).then(|| nonce_at(best)), attempts: attempts.into_inner() }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::{Difficulty, Id, Secrets, Terms, UnixSeconds};
    use proptest::prelude::*;

    fn challenge(bits: u8, id: u8) -> Challenge {
        let difficulty = Difficulty::new(bits).unwrap();
        Secrets::new(&[3; 32]).issue(&Terms { difficulty, expires: UnixSeconds(60), id: Id([id; 16]) }, b"")
    }

    fn threads(number: usize) -> NonZeroUsize {
        NonZeroUsize::new(number).unwrap()
    }

    #[test]
    fn a_search_that_is_stopped_at_once_tries_nothing() {
        for number in 1..4 {
            let search = solve(&challenge(8, 0), Nonce(0), threads(number), &|_| true);
            assert_eq!(search, Search { nonce: None, attempts: 0 });
        }
    }

    #[test]
    fn progress_is_told_and_stopping_is_heeded() {
        let asked = AtomicUsize::new(0);
        let search = solve(&challenge(24, 0), Nonce(0), threads(1), &|attempts| {
            assert_eq!(attempts, asked.fetch_add(1, Ordering::Relaxed) as u64 * BATCH);
            attempts >= 3 * BATCH
        });
        assert_eq!(search, Search { nonce: None, attempts: 3 * BATCH });
    }

    #[test]
    fn the_numbers_after_the_last_begin_at_zero() {
        let challenge = challenge(8, 1);
        let search = solve(&challenge, Nonce(u64::MAX), threads(1), &|_| false);
        let nonce = search.nonce.unwrap();
        assert!(challenge.is_solved_by(nonce));
        assert_eq!(nonce.0, search.attempts - 2);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// For all challenges, first nonces and numbers of threads, what is found solves the challenge, and no nonce
        /// between the first and it does.
        #[test]
        fn the_first_solution_is_found(id: u8, bits in 8u8..=10, first: u64, number in 1usize..5) {
            let challenge = challenge(bits, id);
            let search = solve(&challenge, Nonce(first), threads(number), &|_| false);
            let nonce = search.nonce.unwrap();
            prop_assert!(challenge.is_solved_by(nonce));
            let offset = nonce.0.wrapping_sub(first);
            prop_assert!((0..offset).all(|before| !challenge.is_solved_by(Nonce(first.wrapping_add(before)))));
            prop_assert!(search.attempts > offset);
            prop_assert!(number > 1 || search.attempts == offset + 1);
        }
    }
}
