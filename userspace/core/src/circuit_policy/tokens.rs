//! VIP tokens in use: which circuits use each, and how much it was used lately, over all of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    num::NonZeroU16,
};

use thiserror::Error;

use super::{
    admission::{Denied, Ticket},
    window::{Ring, begin, span, tick},
};
use crate::{
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

/// Why a token that verified does not make its circuit a VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TokenRefused {
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
    /// As many circuits use it as may.
    #[error("the token is in use by as many circuits as may use it at once")]
    InUse,
    /// [`MOST_TOKENS`] are in use.
    #[error("as many tokens are in use as can be counted")]
    TooMany,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Tokens {
    by_ticket: BTreeMap<Ticket, Token>,
    tickets: BTreeMap<TokenId, Ticket>,
    by_expiry: BTreeSet<(Monotime, Ticket)>,
    last: u32,
}

#[derive(Clone, Debug)]
struct Token {
    id: TokenId,
    until: Monotime,
    circuits: Vec<CircuitId>,
    turned: u32,
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
        let token = Token { id, until, circuits: vec![circuit], turned: tick(now), connections, requests };
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

    pub(super) fn release(&mut self, ticket: Ticket, circuit: CircuitId) {
        if let Some(token) = self.by_ticket.get_mut(&ticket) {
            token.circuits.retain(|other| *other != circuit);
        }
    }

    pub(super) fn revoke(&mut self, ticket: Ticket) -> Vec<CircuitId> {
        let Some(token) = self.by_ticket.remove(&ticket) else { return Vec::new() };
        self.tickets.remove(&token.id);
        self.by_expiry.remove(&(token.until, ticket));
        token.circuits
    }

    pub(super) fn begin(&mut self, generation: TorGeneration) {
        for token in self.by_ticket.values_mut() {
            token.circuits.retain(|circuit| circuit.generation() >= generation);
        }
    }

    pub(super) fn forget_expired(&mut self, now: Monotime) {
        while let Some((_, ticket)) = self.by_expiry.first().copied().filter(|(until, _)| *until <= now) {
            self.revoke(ticket);
        }
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
