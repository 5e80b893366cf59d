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
    /// [`MOST_TOKENS`] are in use.
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

#[derive(Clone, Debug, Default)]
pub(super) struct Tokens {
    by_ticket: BTreeMap<Ticket, Token>,
    tickets: BTreeMap<TokenId, Ticket>,
    by_expiry: BTreeSet<(Monotime, Ticket)>,
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
    connections: TokenRing,
    requests: TokenRing,
}

impl Tokens {
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
            token.circuits.push(circuit);
            return Ok(ticket);
        }
        if self.len() >= MOST_TOKENS {
            return Err(TokenRefused::TooMany);
        }
        let number = self.last.checked_add(1).ok_or(TokenRefused::TooMany)?;
        let ticket = Ticket::new(number).ok_or(TokenRefused::TooMany)?;
        self.last = number;
        let (connections, requests) = (TokenRing::new(), TokenRing::new());
        let turned = tick(now);
        let (seen_in, refused_in) = (0, 0);
        let token =
            Token { id, until, circuits: vec![circuit], turned, seen_in, refused_in, connections, requests };
        self.by_ticket.insert(ticket, token);
        self.tickets.insert(id, ticket);
        self.by_expiry.insert((until, ticket));
        Ok(ticket)
    }

    pub(super) fn connect(&mut self, ticket: Ticket, limit: NonZeroU16, now: u32) -> Result<(), Denied> {
        count(self.turned(ticket, now)?, |token| &mut token.connections, limit)
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
        }
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

    /// Forgets every token in use, because no key makes them good any more.
    pub(super) fn forget_all(&mut self) -> Vec<CircuitId> {
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
        Some(token)
    }

    pub(super) fn begin(&mut self, generation: TorGeneration) {
        for token in self.by_ticket.values_mut() {
            token.circuits.retain(|circuit| circuit.generation() >= generation);
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
