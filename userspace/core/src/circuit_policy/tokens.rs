//! VIP tokens in use: which circuits use each, and how much it was used lately, over all of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    num::NonZeroU16,
};

use thiserror::Error;

use super::{
    admission::{Denied, Ticket},
    revoked::Revoked,
    settings::SOON,
    window::{Ring, begin, span, tick, ticks},
};
use crate::{
    false_positives::{self, Holders},
    id::{CircuitId, TorGeneration},
    refusal::Refusal,
    time::Monotime,
};

/// Most circuits that may use one token at once, whatever is configured.
pub const MOST_CIRCUITS_PER_TOKEN: u8 = 8;
/// Most tokens in use at once. A token lives 30 min, so this is nine new ones a second.
pub const MOST_TOKENS: u32 = 16_384;

/// Over 10 s.
type TokenRing = Ring<u32, 6, 20>;
/// So long after its last use nothing is counted in the rings of a token: 12 s, a whole turn of them, in ticks.
const FORGOTTEN: u32 = 6 * 20;

/// What tells one token from another; the caller draws it from the verified token. It says nothing about a visitor.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenId(pub u128);

/// Why a token that somebody showed does not make its circuit a VIP. Nothing is refused for it: the circuit stays what it was.
/// In the order in which it is looked at; those before [`Self::Expired`] whoever read the token says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Error)]
pub enum TokenRefused {
    /// It is no token.
    #[error("what was shown is no token")]
    Malformed,
    /// The key is not known yet.
    #[error("the front has no key yet to check tokens by: it is told by tunicad, which does not answer")]
    Unchecked,
    /// Another key made it.
    #[error("the token was made with another key than this node's, or all tokens were revoked since")]
    Forged,
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
    /// It was revoked, because one of its circuits was banned or demoted.
    #[error("the token was revoked, because one of its circuits was banned or demoted")]
    Revoked,
    /// As many circuits use it as may.
    #[error("the token is in use by as many circuits as may use it at once")]
    InUse,
    /// [`MOST_TOKENS`] are in use, and each of them by a circuit or within the last 12 s.
    #[error("as many tokens are in use as can be counted")]
    TooMany,
}

impl TokenRefused {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Malformed,
        Self::Unchecked,
        Self::Forged,
        Self::Expired,
        Self::Revoked,
        Self::InUse,
        Self::TooMany,
    ];

    /// The word: in labels, rows and the header by which a client is told.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Unchecked => "unchecked",
            Self::Forged => "forged",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::InUse => "in_use",
            Self::TooMany => "too_many",
        }
    }

    /// The one of this word.
    pub fn named(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|refused| refused.label() == word)
    }
}

#[derive(Clone, Debug)]
pub(super) struct Tokens {
    most: u32,
    by_ticket: BTreeMap<Ticket, Token>,
    tickets: BTreeMap<TokenId, Ticket>,
    by_expiry: BTreeSet<(Monotime, Ticket)>,
    /// Those that no circuit uses, by the tick of their last use ([`Token::turned`]): what gives way to others.
    unused: BTreeSet<(u32, Ticket)>,
    last: u32,
    revoked: Revoked,
    holders: Holders,
}

#[derive(Clone, Debug)]
struct Token {
    id: TokenId,
    until: Monotime,
    circuits: Vec<CircuitId>,
    turned: u32,
    /// The minutes in which its holder was last seen and refused, counted from 1.
    seen_in: u32,
    refused_in: u32,
    /// Connections that came with it and are open, of all its circuits.
    open: u32,
    connections: TokenRing,
    requests: TokenRing,
}

impl Default for Tokens {
    fn default() -> Self {
        Self::new(MOST_TOKENS)
    }
}

impl Tokens {
    /// None is in use; at most `most` are at once.
    fn new(most: u32) -> Self {
        Self {
            most,
            by_ticket: BTreeMap::new(),
            tickets: BTreeMap::new(),
            by_expiry: BTreeSet::new(),
            unused: BTreeSet::new(),
            last: 0,
            revoked: Revoked::default(),
            holders: Holders::default(),
        }
    }

    pub(super) fn len(&self) -> u32 {
        self.by_ticket.len() as u32
    }

    pub(super) fn present(
        &mut self,
        id: TokenId,
        circuit: CircuitId,
        until: Monotime,
        most_circuits: u8,
        now: Monotime,
    ) -> Result<Ticket, TokenRefused> {
        self.forget_expired(now);
        if until <= now {
            return Err(TokenRefused::Expired);
        }
        if self.revoked.contains(id, until) {
            return Err(TokenRefused::Revoked);
        }
        if let Some(ticket) = self.tickets.get(&id).copied()
            && let Some(token) = self.by_ticket.get_mut(&ticket)
        {
            if token.circuits.contains(&circuit) {
                return Ok(ticket);
            }
            if token.circuits.len() >= usize::from(most_circuits.min(MOST_CIRCUITS_PER_TOKEN)) {
                return Err(TokenRefused::InUse);
            }
            self.unused.remove(&(token.turned, ticket));
            token.circuits.push(circuit);
            return Ok(ticket);
        }
        if self.len() >= self.most && !self.drop_unused(now) {
            return Err(TokenRefused::TooMany);
        }
        let number = self.last.checked_add(1).ok_or(TokenRefused::TooMany)?;
        let ticket = Ticket::new(number).ok_or(TokenRefused::TooMany)?;
        self.last = number;
        let (connections, requests) = (TokenRing::new(), TokenRing::new());
        let turned = tick(now);
        let (seen_in, refused_in) = (0, 0);
        let token = Token {
            id,
            until,
            circuits: vec![circuit],
            turned,
            seen_in,
            refused_in,
            open: 0,
            connections,
            requests,
        };
        self.by_ticket.insert(ticket, token);
        self.tickets.insert(id, ticket);
        self.by_expiry.insert((until, ticket));
        Ok(ticket)
    }

    pub(super) fn connect(&mut self, ticket: Ticket, limit: NonZeroU16, now: u32) -> Result<(), Denied> {
        count(self.turned(ticket, now)?, |token| &mut token.connections, limit)
    }

    /// Whether one connection more may come with it.
    pub(super) fn check_open(&self, ticket: Ticket, most: NonZeroU16) -> Result<(), Denied> {
        let open = self.by_ticket.get(&ticket).map_or(0, |token| token.open);
        let has_room = open < u32::from(most.get());
        if has_room { Ok(()) } else { Err(Denied { why: Refusal::TooManyOpen, retry_after: SOON }) }
    }

    /// A connection that came with a token is held.
    pub(super) fn opened(&mut self, ticket: Ticket) {
        if let Some(token) = self.by_ticket.get_mut(&ticket) {
            token.open = token.open.saturating_add(1);
        }
    }

    /// It is held no more.
    pub(super) fn closed(&mut self, ticket: Ticket) {
        if let Some(token) = self.by_ticket.get_mut(&ticket) {
            token.open = token.open.saturating_sub(1);
        }
    }

    pub(super) fn request(&mut self, ticket: Ticket, limit: NonZeroU16, now: u32) -> Result<(), Denied> {
        count(self.turned(ticket, now)?, |token| &mut token.requests, limit)
    }

    /// Its holder is there, once in each minute, and was refused, likewise.
    pub(super) fn note(&mut self, ticket: Ticket, is_refused: bool, now: u32) {
        let Some(token) = self.by_ticket.get_mut(&ticket) else { return };
        let minute = now / ticks(false_positives::WINDOW) + 1;
        if token.seen_in < minute {
            token.seen_in = minute;
            self.holders.seen = self.holders.seen.saturating_add(1);
        }
        if is_refused && token.refused_in < minute {
            token.refused_in = minute;
            self.holders.refused = self.holders.refused.saturating_add(1);
        }
    }

    pub(super) const fn holders(&self) -> Holders {
        self.holders
    }

    pub(super) fn release(&mut self, ticket: Ticket, circuit: CircuitId) {
        if let Some(token) = self.by_ticket.get_mut(&ticket) {
            token.circuits.retain(|other| *other != circuit);
            if token.circuits.is_empty() {
                self.unused.insert((token.turned, ticket));
            }
        }
    }

    /// Makes room: forgets the token that is unused for longest, if nothing would be different had it never been used. Returns
    /// whether there was one. Whoever shows it again uses it again.
    fn drop_unused(&mut self, now: Monotime) -> bool {
        let idle = self.unused.iter().take_while(|(used, _)| tick(now).saturating_sub(*used) >= FORGOTTEN);
        // A circuit that went on to another token may still hold connections that came with this one.
        let is_closed = |ticket: &Ticket| self.by_ticket.get(ticket).is_none_or(|token| token.open == 0);
        let longest = idle.map(|(_, ticket)| *ticket).find(is_closed);
        longest.is_some_and(|ticket| self.remove(ticket).is_some())
    }

    /// The circuits that use a token; none where nobody does.
    pub(super) fn users(&self, id: TokenId) -> Option<(Ticket, &[CircuitId])> {
        let ticket = *self.tickets.get(&id)?;
        Some((ticket, &self.by_ticket.get(&ticket)?.circuits))
    }

    pub(super) fn revoke(&mut self, ticket: Ticket, now: Monotime) -> Vec<CircuitId> {
        let Some(token) = self.remove(ticket) else { return Vec::new() };
        self.revoked.add(token.id, token.until, now);
        token.circuits
    }

    /// The same by the word of somebody who knows the id. Returns whether it is news, too.
    pub(super) fn learn_revoked(
        &mut self,
        id: TokenId,
        until: Monotime,
        now: Monotime,
    ) -> (bool, Vec<CircuitId>) {
        let is_news = self.revoked.add(id, until, now);
        let token = self.tickets.get(&id).copied().and_then(|ticket| self.remove(ticket));
        (is_news, token.map_or_else(Vec::new, |token| token.circuits))
    }

    pub(super) fn revoked(&self) -> impl Iterator<Item = (TokenId, Monotime)> {
        self.revoked.iter()
    }

    /// Forgets every token, in use or revoked, because no key makes them good any more.
    pub(super) fn forget_all(&mut self) -> Vec<CircuitId> {
        self.revoked = Revoked::default();
        let tickets: Vec<_> = self.by_ticket.keys().copied().collect();
        tickets
            .into_iter()
            .filter_map(|ticket| self.remove(ticket))
            .flat_map(|token| token.circuits)
            .collect()
    }

    fn remove(&mut self, ticket: Ticket) -> Option<Token> {
        let token = self.by_ticket.remove(&ticket)?;
        self.tickets.remove(&token.id);
        self.by_expiry.remove(&(token.until, ticket));
        self.unused.remove(&(token.turned, ticket));
        Some(token)
    }

    pub(super) fn begin(&mut self, generation: TorGeneration) {
        for (ticket, token) in &mut self.by_ticket {
            token.circuits.retain(|circuit| circuit.generation() >= generation);
            if token.circuits.is_empty() {
                self.unused.insert((token.turned, *ticket));
            }
        }
    }

    pub(super) fn forget_expired(&mut self, now: Monotime) {
        while let Some((_, ticket)) = self.by_expiry.first().copied().filter(|(until, _)| *until <= now) {
            self.remove(ticket);
        }
        self.revoked.forget_expired(now);
    }

    pub(super) fn next_expiry(&self) -> Option<Monotime> {
        self.by_expiry.first().map(|(until, _)| *until)
    }

    fn turned(&mut self, ticket: Ticket, now: u32) -> Result<&mut Token, Denied> {
        let gone = Denied { why: Refusal::TokenGone, retry_after: span(10) };
        let token = self.by_ticket.get_mut(&ticket).ok_or(gone)?;
        let now = now.max(token.turned);
        token.connections.turn(token.turned, now);
        token.requests.turn(token.turned, now);
        if self.unused.remove(&(token.turned, ticket)) {
            self.unused.insert((now, ticket));
        }
        token.turned = now;
        Ok(token)
    }
}

/// Counts one more; the one that makes `limit`, and each that follows, is denied. Those denied count too, as in HAProxy.
fn count(
    token: &mut Token,
    ring: impl Fn(&mut Token) -> &mut TokenRing,
    limit: NonZeroU16,
) -> Result<(), Denied> {
    let now = token.turned;
    let ring = ring(token);
    ring.add(now);
    let limit = u32::from(limit.get());
    if ring.sum() < limit {
        return Ok(());
    }
    // The next one counts as well, so it needs room for itself.
    let free = ring.below_from(limit.saturating_sub(1).max(1), now);
    Err(Denied { why: Refusal::VipRate, retry_after: begin(free).since(begin(now)) })
}

impl fmt::Debug for TokenId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("TokenId(scrubbed)")
    }
}

#[cfg(test)]
mod tests {
    use std::{num::NonZeroU32, time::Duration};

    use proptest::prelude::*;

    use super::*;

    const START: Monotime = Monotime(1_000_000_000_000);

    fn circuit(number: u32) -> CircuitId {
        CircuitId::new(TorGeneration(1), NonZeroU32::new(number).unwrap())
    }

    fn at(milliseconds: u64) -> Monotime {
        START.after(Duration::from_millis(milliseconds))
    }

    #[test]
    fn tokens_that_nobody_uses_give_way_once_nothing_of_them_counts() {
        let mut tokens = Tokens::new(2);
        let limit = NonZeroU16::MAX;
        let until = at(1_800_000);
        let show = |tokens: &mut Tokens, token, number, after| {
            tokens.present(TokenId(token), circuit(number), until, 3, at(after))
        };
        let first = show(&mut tokens, 1, 1, 0).unwrap();
        let second = show(&mut tokens, 2, 2, 0).unwrap();
        tokens.release(first, circuit(1));
        tokens.release(second, circuit(2));
        // Who counted last goes last, also where the count came after the circuit had left.
        assert_eq!(tokens.request(first, limit, tick(at(1_000))), Ok(()));
        assert_eq!(show(&mut tokens, 3, 3, 11_900), Err(TokenRefused::TooMany));
        let third = show(&mut tokens, 3, 3, 12_000).unwrap();
        assert_eq!(tokens.users(TokenId(2)), None);
        assert_eq!(show(&mut tokens, 4, 4, 12_900), Err(TokenRefused::TooMany));
        // In use again, so it stays; the other is used by a circuit, however quiet it is.
        assert_eq!(show(&mut tokens, 1, 1, 12_950), Ok(first));
        assert_eq!(show(&mut tokens, 4, 4, 900_000), Err(TokenRefused::TooMany));
        // Circuits of a tor that is gone use nothing.
        tokens.begin(TorGeneration(2));
        assert!(show(&mut tokens, 4, 4, 900_000).is_ok());
        assert_eq!((tokens.users(TokenId(1)), tokens.len()), (None, 2));
        assert_eq!(tokens.users(TokenId(3)), Some((third, &[][..])));
        // What gave way is as good as before, and as bad if it was revoked.
        tokens.learn_revoked(TokenId(2), until, at(900_000));
        assert_eq!(show(&mut tokens, 2, 2, 990_000), Err(TokenRefused::Revoked));
        assert!(show(&mut tokens, 1, 1, 990_000).is_ok());
    }

    #[test]
    fn a_token_with_an_open_connection_gives_way_to_none() {
        let mut tokens = Tokens::new(1);
        let (until, most) = (at(1_800_000), NonZeroU16::MIN);
        let first = tokens.present(TokenId(1), circuit(1), until, 3, at(0)).unwrap();
        tokens.opened(first);
        // Its circuit went on to another token.
        tokens.release(first, circuit(1));
        let later = at(60_000);
        assert_eq!(tokens.present(TokenId(2), circuit(2), until, 3, later), Err(TokenRefused::TooMany));
        assert_eq!(tokens.present(TokenId(1), circuit(3), until, 3, later), Ok(first));
        assert!(tokens.check_open(first, most).is_err());
        tokens.release(first, circuit(3));
        tokens.closed(first);
        assert!(tokens.present(TokenId(2), circuit(2), until, 3, later).is_ok());
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Show(u128, u32),
        Release(u128, u32),
        Use(u128),
        Revoke(u128),
        Begin(u64),
        Wait(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0u128..8, 1u32..6).prop_map(|(token, number)| Step::Show(token, number)),
            4 => (0u128..8, 1u32..6).prop_map(|(token, number)| Step::Release(token, number)),
            3 => (0u128..8).prop_map(Step::Use),
            1 => (0u128..8).prop_map(Step::Revoke),
            1 => (1u64..3).prop_map(Step::Begin),
            4 => (0u64..8_000).prop_map(Step::Wait),
        ]
    }

    proptest! {
        /// For all sequences, memory is bounded, exactly those that no circuit uses may give way, one that is refused room finds
        /// each of the others in use or used lately, and no use is forgotten while it counts.
        #[test]
        fn only_what_nobody_uses_gives_way(steps in prop::collection::vec(step(), 1..120)) {
            const MOST: u32 = 3;
            let (mut tokens, mut after, mut uses) = (Tokens::new(MOST), 0, BTreeMap::new());
            for step in steps {
                let now = at(after);
                let ticket = |tokens: &Tokens, token| tokens.tickets.get(&TokenId(token)).copied();
                match step {
                    Step::Show(token, number) => {
                        let shown = tokens.present(TokenId(token), circuit(number), at(after + 2_000_000), 3, now);
                        if shown == Err(TokenRefused::TooMany) {
                            prop_assert!(tokens.by_ticket.values().all(|token| !token.circuits.is_empty()
                                || tick(now) - token.turned < FORGOTTEN));
                        }
                    }
                    Step::Release(token, number) => {
                        ticket(&tokens, token).into_iter().for_each(|ticket| tokens.release(ticket, circuit(number)));
                    }
                    Step::Use(token) => {
                        if let Some(ticket) = ticket(&tokens, token) {
                            prop_assert_eq!(tokens.request(ticket, NonZeroU16::MAX, tick(now)), Ok(()));
                            uses.insert(ticket, (after, token));
                        }
                    }
                    Step::Revoke(token) => {
                        tokens.learn_revoked(TokenId(token), at(after + 2_000_000), now);
                    }
                    Step::Begin(generation) => tokens.begin(TorGeneration(generation)),
                    Step::Wait(wait) => after += wait,
                }
                prop_assert!(tokens.len() <= MOST);
                let unused: BTreeSet<_> = tokens.by_ticket.iter()
                    .filter(|(_, token)| token.circuits.is_empty())
                    .map(|(ticket, token)| (token.turned, *ticket))
                    .collect();
                prop_assert_eq!(&unused, &tokens.unused);
                for (ticket, (_, token)) in uses.iter().filter(|(_, (used, _))| after - used < 10_000) {
                    let is_over = tokens.revoked.contains(TokenId(*token), at(after + 2_000_000));
                    prop_assert!(is_over || tokens.by_ticket.contains_key(ticket), "{token}");
                }
            }
        }
    }
}
