//! Tokens that count no longer although they have not expired.
//!
//! Memory is bounded ([`MOST_REVOKED`]). Where it is full the token that expires next is forgotten, and from then on none is
//! taken that expires no later than it: rather than trust one that was revoked, good ones are not trusted, the oldest first.
//! Their circuits are treated as any other's, and may earn new ones.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::tokens::TokenId;
use crate::{time::Monotime, token_keys::MOST_LIFE};

/// Most revoked tokens that are remembered, some 100 bytes each. Each was in use when it was revoked, and a token lives 30 min
/// by default: room for two a second.
pub const MOST_REVOKED: usize = 4_096;

/// The machine: until when each is remembered.
#[derive(Clone, Debug)]
pub struct Revoked {
    most: usize,
    until: BTreeMap<TokenId, Monotime>,
    by_expiry: BTreeSet<(Monotime, TokenId)>,
    /// None that expires so early is taken.
    floor: Monotime,
}

impl Default for Revoked {
    fn default() -> Self {
        Self::new(MOST_REVOKED)
    }
}

impl Revoked {
    /// Nothing is revoked. Of `most` tokens at most it is remembered.
    pub const fn new(most: usize) -> Self {
        Self { most, until: BTreeMap::new(), by_expiry: BTreeSet::new(), floor: Monotime(0) }
    }

    /// Remembers a token that expires at `until`; if it is known, until the later of both. Returns whether that is news.
    pub fn add(&mut self, token: TokenId, until: Monotime, now: Monotime) -> bool {
        self.forget_expired(now);
        if until <= now.max(self.floor) {
            return false;
        }
        match self.until.get(&token).copied() {
            Some(known) if known >= until => return false,
            Some(known) => {
                self.by_expiry.remove(&(known, token));
            }
            None => {}
        }
        self.until.insert(token, until);
        self.by_expiry.insert((until, token));
        while self.until.len() > self.most
            && let Some((first, token)) = self.by_expiry.pop_first()
        {
            self.until.remove(&token);
            self.floor = self.floor.max(first);
        }
        true
    }

    /// The same by the word of somebody who need not be trusted: no token lives for longer than [`MOST_LIFE`], and a second more where
    /// clocks are rounded. Otherwise a lie would fill the memory for ever, and raise the floor beyond every good token.
    pub fn hear(&mut self, token: TokenId, until: Monotime, now: Monotime) -> bool {
        let latest = now.after(MOST_LIFE + Duration::from_secs(1));
        self.add(token, until.min(latest), now)
    }

    /// Whether a token that expires at `until` must not be taken.
    pub fn contains(&self, token: TokenId, until: Monotime) -> bool {
        until <= self.floor || self.until.contains_key(&token)
    }

    /// All that are remembered, those that expire first before others.
    pub fn iter(&self) -> impl Iterator<Item = (TokenId, Monotime)> {
        self.by_expiry.iter().map(|(until, token)| (*token, *until))
    }

    /// How many are.
    pub fn len(&self) -> usize {
        self.until.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.until.is_empty()
    }

    /// Forgets those that have expired: nobody takes them any more.
    pub fn forget_expired(&mut self, now: Monotime) {
        while let Some((until, token)) = self.by_expiry.first().copied().filter(|(until, _)| *until <= now) {
            self.by_expiry.remove(&(until, token));
            self.until.remove(&token);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Monotime = Monotime(100);

    fn revoked(tokens: &[(u128, u64)], most: usize) -> Revoked {
        let mut revoked = Revoked::new(most);
        for (token, until) in tokens {
            revoked.add(TokenId(*token), Monotime(*until), NOW);
        }
        revoked
    }

    #[test]
    fn a_full_memory_trusts_nobody_who_expires_as_early_as_what_it_forgot() {
        let full = revoked(&[(1, 300), (2, 200), (3, 400)], 2);
        assert_eq!(full.len(), 2);
        for (token, until, is_revoked) in [
            (1, 300, true),
            (2, 200, true),
            (3, 400, true),
            // Was never revoked: the price.
            (4, 200, true),
            (4, 150, true),
            (4, 201, false),
        ] {
            assert_eq!(full.contains(TokenId(token), Monotime(until)), is_revoked, "{token} {until}");
        }
        // What is refused anyway needs no memory.
        let mut full = full;
        assert!(!full.add(TokenId(5), Monotime(200), NOW) && full.len() == 2);
    }

    #[test]
    fn what_has_expired_is_forgotten_and_what_is_known_is_no_news() {
        let mut two = revoked(&[(1, 300), (2, 400)], 9);
        assert!(!two.add(TokenId(1), Monotime(300), NOW) && !two.add(TokenId(1), Monotime(299), NOW));
        assert!(two.add(TokenId(1), Monotime(301), NOW), "the clocks differ by a second");
        assert_eq!(
            two.iter().collect::<Vec<_>>(),
            [(TokenId(1), Monotime(301)), (TokenId(2), Monotime(400))]
        );
        two.forget_expired(Monotime(301));
        assert_eq!(two.iter().collect::<Vec<_>>(), [(TokenId(2), Monotime(400))]);
        assert!(!two.add(TokenId(3), Monotime(301), Monotime(301)), "it has expired by itself");
        two.forget_expired(Monotime(400));
        assert!(two.is_empty());
    }

    #[test]
    fn who_lies_about_expiry_keeps_good_tokens_out_for_a_life_at_most() {
        let latest = NOW.after(MOST_LIFE + Duration::from_secs(1));
        let mut heard = Revoked::new(2);
        for token in 1..=5 {
            assert!(heard.hear(TokenId(token), Monotime(u64::MAX), NOW) || token > 3, "{token}");
        }
        assert!(heard.iter().all(|(_, until)| until == latest));
        assert!(heard.contains(TokenId(9), latest) && !heard.contains(TokenId(9), Monotime(latest.0 + 1)));
        heard.forget_expired(latest);
        assert!(heard.is_empty());
        // What is true is taken as it is.
        assert!(heard.hear(TokenId(7), Monotime(latest.0 + 5), latest));
        assert_eq!(heard.iter().collect::<Vec<_>>(), [(TokenId(7), Monotime(latest.0 + 5))]);
    }

    proptest! {
        /// For all tokens, expiries and sizes, one that was revoked is never taken before it expires, and memory is bounded.
        #[test]
        fn what_was_revoked_stays_so(
            most in 0usize..6,
            turns in prop::collection::vec((0u128..12, 1u64..40, 0u64..4), 0..80),
        ) {
            let (mut machine, mut now, mut all) = (Revoked::new(most), 0, Vec::new());
            for (token, life, wait) in turns {
                now += wait;
                machine.add(TokenId(token), Monotime(now + life), Monotime(now));
                all.push((token, now + life));
                prop_assert!(machine.len() <= most && machine.by_expiry.len() == machine.until.len());
                for (token, until) in all.iter().filter(|(_, until)| *until > now) {
                    prop_assert!(machine.contains(TokenId(*token), Monotime(*until)), "{token} {until}");
                }
                machine.forget_expired(Monotime(now));
                prop_assert!(machine.iter().all(|(_, until)| until.0 > now));
            }
        }
    }
}
