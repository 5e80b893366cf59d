//! Tokens: what a circuit that paid, or that a backend vouches for, is handed to show on its next circuits.
//!
//! Keys come from the daemon, which keeps them over any restart ([`tunica_core::token_keys`]). What is kept of a token is in
//! [`tunica_core::circuit_policy::Admission`], from when it is handed out, or shown, for as long as it lives or until its room is
//! needed: which circuits use it, and how much.
//!
//! A circuit uses a token for as long as it has an open connection. One without makes room for another, for circuits end
//! without a word, and a visitor must not be kept out by his own dead ones.

use std::{
    collections::BTreeSet,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use tunica_api::front::{
    MOST_NEWLY_REVOKED, RevokedToken, TOKEN_GRANTS, TOKEN_IN_FORCE, TokenOrder, Tokens as Counted,
};
use tunica_core::{
    circuit_policy::{Lane, Place, Ticket, TokenId, TokenRefused},
    id::CircuitId,
    time::Monotime,
};
use tunica_pow::{Token, TokenKeys, TokenVerifyError, UnixSeconds};

use super::{Circuits, Stay, Visit, lock};
use crate::challenge::Clock;

/// By whose word a token is handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrantedBy {
    /// The circuit solved a puzzle, or waited in the waiting room.
    Puzzle,
    /// A backend vouches for its client.
    Backend,
}

/// What is known of tokens beside what [`tunica_core::circuit_policy::Admission`] knows.
#[derive(Default)]
pub(super) struct Tokens {
    keys: Mutex<Option<(TokenOrder, TokenKeys)>>,
    /// Those that the daemon knows to be revoked.
    told: Mutex<BTreeSet<TokenId>>,
    issued: [AtomicU64; TOKEN_GRANTS.len()],
    accepted: AtomicU64,
    refused: [AtomicU64; TokenRefused::ALL.len()],
    revoked: AtomicU64,
}

/// What a connection showed last, and what came of it.
#[derive(Default)]
pub(super) struct Shown {
    text: Vec<u8>,
    outcome: Option<Outcome>,
    /// To be handed out with the next answer.
    granted: Option<Granted>,
}

/// A token that was made, and by whose word.
#[derive(Clone, Copy, Debug)]
pub struct Granted {
    /// To be told to the client alone.
    pub token: Token,
    /// How long it is good, seconds.
    pub seconds: u64,
    /// Why it was made.
    pub by: GrantedBy,
}

/// Until when it counts, or why it does not.
type Outcome = Result<Monotime, TokenRefused>;

/// How much of what a client shows is looked at: one byte more than a token has, so that what is longer is none.
const LONGEST: usize = tunica_pow::TEXT_CHARACTERS + 1;

impl Tokens {
    fn keys(&self) -> Option<TokenKeys> {
        lock(&self.keys).as_ref().map(|(_, keys)| keys.clone())
    }

    /// The token that `text` is, and until when it is good.
    fn check(&self, text: &[u8], clock: Clock) -> Result<(TokenId, Monotime), TokenRefused> {
        let text = std::str::from_utf8(text).map_err(|_| TokenRefused::Malformed)?;
        let token: Token = text.parse().map_err(|_| TokenRefused::Malformed)?;
        let keys = self.keys().ok_or(TokenRefused::Unchecked)?;
        let genuine = keys.verify(&token, clock.wall).map_err(|error| match error {
            TokenVerifyError::Expired => TokenRefused::Expired,
            TokenVerifyError::Forged => TokenRefused::Forged,
        })?;
        Ok((TokenId(u128::from_be_bytes(genuine.id.0)), ends(genuine.expires, clock)))
    }

    fn count_refused(&self, refused: TokenRefused) {
        let found = TokenRefused::ALL.iter().zip(&self.refused).find(|(each, _)| **each == refused);
        if let Some((_, count)) = found {
            count.fetch_add(1, Relaxed);
        }
    }

    /// Takes in the keys. True: none of those before is among them, so nothing that they made counts any more.
    fn turn(&self, order: &TokenOrder) -> bool {
        let mut keys = lock(&self.keys);
        let before = keys.as_ref().map(|(order, _)| (order.key, order.previous));
        let after = (order.key, order.previous);
        if before == Some(after) {
            return false;
        }
        let previous = order.previous.as_ref();
        let made = TokenKeys::new(
            &order.key.0,
            previous.map(|previous| (&previous.key.0, UnixSeconds(previous.until))),
        );
        *keys = Some((order.clone(), made));
        let is_kept = |key| key == order.key || order.previous.is_some_and(|previous| previous.key == key);
        before.is_some_and(|(key, _)| !is_kept(key))
    }
}

/// By the clock of the boot.
fn ends(expires: UnixSeconds, clock: Clock) -> Monotime {
    clock.mono.after(std::time::Duration::from_secs(expires.0.saturating_sub(clock.wall.0)))
}

impl Visit {
    /// Why the token that it shows is not taken, if it shows one that is not.
    pub(super) fn token_not_taken(&self) -> Option<TokenRefused> {
        lock(&self.shown).outcome.and_then(Result::err)
    }
}

impl Stay {
    /// The client shows a token. If it is not taken the circuit stays what it was, and this says why. `None`: it is taken, or
    /// the circuit is banned, and no token speaks against that.
    pub fn present(&self, text: &[u8]) -> Option<TokenRefused> {
        self.circuits.present(&self.visit, text, Clock::now())
    }

    /// A backend vouches for the client: its circuit goes past the queue, and it gets a token with the answer, unless the circuit
    /// uses one already. Otherwise each answer would be another allowance of requests, and its ban would cost the last alone.
    pub fn vouch(&self) {
        self.circuits.grant(&self.visit, GrantedBy::Backend, Clock::now());
    }

    /// What was handed out since this was last asked.
    pub fn take_token(&self) -> Option<Granted> {
        let granted = lock(&self.visit.shown).granted.take()?;
        let seconds = granted.token.expires().0.saturating_sub(Clock::now().wall.0);
        Some(Granted { seconds, ..granted })
    }
}

impl Circuits {
    fn present(&self, visit: &Visit, text: &[u8], clock: Clock) -> Option<TokenRefused> {
        let text = text.get(..text.len().min(LONGEST)).unwrap_or_default();
        let before = {
            let shown = lock(&visit.shown);
            (shown.text == text).then_some(shown.outcome).flatten()
        };
        // What was taken is taken until it expires or is revoked: then the circuit knows, and what the client shows is told
        // from a fresh one by whoever reads it.
        if let Some(Ok(until)) = before
            && clock.mono < until
            && self.has_token(visit.hold.circuit(), clock.mono)
        {
            return None;
        }
        let outcome = match self.tokens.check(text, clock) {
            Ok((token, until)) => self.bind(visit.hold.circuit(), token, until, clock.mono)?.map(|()| until),
            Err(refused) => Err(refused),
        };
        // Each connection counts once for what comes of its token, however many requests show it.
        if before != Some(outcome) {
            match outcome {
                Ok(_) => drop(self.tokens.accepted.fetch_add(1, Relaxed)),
                Err(refused) => self.tokens.count_refused(refused),
            }
        }
        {
            let mut shown = lock(&visit.shown);
            shown.text = text.to_vec();
            shown.outcome = Some(outcome);
        }
        if outcome.is_ok() {
            self.has_paid(visit.hold.circuit(), Lane::Vip);
        }
        outcome.err()
    }

    fn has_token(&self, circuit: CircuitId, now: Monotime) -> bool {
        self.shard(circuit).and_then(|shard| shard.look(circuit, now)).is_some_and(|facts| facts.has_token)
    }

    /// Hands out a token, which the circuit uses from now on. False: there is no key, no room for it, or the circuit has one in
    /// force and nobody paid for another.
    pub(super) fn grant(&self, visit: &Visit, by: GrantedBy, clock: Clock) -> bool {
        let Some(keys) = self.tokens.keys() else { return false };
        let id = self.challenges.token_id();
        let expires = clock.wall.after(self.settings.token_life.as_secs());
        let (token, id) = (keys.issue(expires, id), TokenId(u128::from_be_bytes(id.0)));
        let until = ends(token.expires(), clock);
        let (place, takes_over) = match by {
            GrantedBy::Puzzle => (0, true),
            GrantedBy::Backend => (1, false),
        };
        if self.try_to_bind(visit.hold.circuit(), id, until, takes_over, clock.mono) != Some(Ok(())) {
            return false;
        }
        if let Some(count) = self.tokens.issued.get(place) {
            count.fetch_add(1, Relaxed);
        }
        let seconds = self.settings.token_life.as_secs();
        lock(&visit.shown).granted = Some(Granted { token, seconds, by });
        self.has_paid(visit.hold.circuit(), Lane::Vip);
        true
    }

    /// The circuit uses a token. `None`: it is banned.
    fn bind(
        &self,
        circuit: CircuitId,
        token: TokenId,
        until: Monotime,
        now: Monotime,
    ) -> Option<Result<(), TokenRefused>> {
        let bound = self.try_to_bind(circuit, token, until, true, now)?;
        if bound != Err(TokenRefused::InUse) {
            return Some(bound);
        }
        let users = lock(&self.admission).token_users(token).map(|(ticket, users)| (ticket, users.to_vec()));
        let (ticket, users) = users?;
        let yields = |user: &CircuitId| {
            let Some(mut shard) = self.shard(*user) else { return false };
            let yields = shard.yields(*user, ticket, now);
            if yields {
                lock(&self.admission).release(ticket, *user);
            }
            yields
        };
        if !users.iter().any(yields) {
            return Some(bound);
        }
        self.try_to_bind(circuit, token, until, true, now)
    }

    /// A circuit uses a token no longer, unless it took it up again meanwhile: that takes both locks as well.
    pub(super) fn release(&self, ticket: Ticket, circuit: CircuitId) {
        if let Some(shard) = self.shard(circuit)
            && !shard.uses(circuit, ticket, super::now())
        {
            lock(&self.admission).release(ticket, circuit);
        }
    }

    /// `None`: the circuit is banned, or has a token in force that this one may not take over from.
    fn try_to_bind(
        &self,
        circuit: CircuitId,
        token: TokenId,
        until: Monotime,
        takes_over: bool,
        now: Monotime,
    ) -> Option<Result<(), TokenRefused>> {
        let mut shard = self.shard(circuit)?;
        let facts = shard.look(circuit, now);
        if facts.is_some_and(|facts| facts.banned_for.is_some() || (facts.has_token && !takes_over)) {
            return None;
        }
        let presented = lock(&self.admission).present(token, circuit, until, now);
        let bound = presented.map(|ticket| shard.bind(circuit, ticket, until, now));
        let commands = shard.take_commands();
        drop(shard);
        self.obey(commands);
        Some(bound)
    }

    /// A circuit has paid, and with it all its connections that are served or wait. One that looks at a puzzle is moved when it is
    /// to be served: until then it needs no place.
    pub(super) fn has_paid(&self, circuit: CircuitId, lane: Lane) {
        let now = super::now();
        let ticket = self.shard(circuit).and_then(|shard| shard.ticket(circuit, now));
        let visits: Vec<_> =
            lock(&self.visits).values().filter(|visit| visit.hold.circuit() == circuit).cloned().collect();
        let mut admission = lock(&self.admission);
        for visit in visits {
            let serial = visit.hold.serial();
            if matches!(admission.place(serial), Some(Place::Served | Place::Waiting))
                && admission.paid(serial, lane, ticket, now) == Some(Place::Served)
            {
                visit.serve();
            }
        }
        // Those who did not pay have more of their part.
        self.start_those_whose_turn_it_is(&mut admission);
    }

    /// A circuit was banned or demoted: its token counts nowhere any more.
    pub(super) fn revoke(&self, ticket: Ticket) {
        let now = super::now();
        let circuits = lock(&self.admission).revoke(ticket, now);
        self.tokens.revoked.fetch_add(1, Relaxed);
        self.unbind(circuits, now);
    }

    fn unbind(&self, circuits: Vec<CircuitId>, now: Monotime) {
        for circuit in circuits {
            if let Some(mut shard) = self.shard(circuit) {
                shard.unbind(circuit, now);
            }
        }
    }

    /// Holds to what the daemon says of tokens; what it says nothing of stays.
    pub fn hear_tokens(&self, order: Option<&TokenOrder>) {
        let Some(order) = order else { return };
        let now = super::now();
        if self.tokens.turn(order) {
            let circuits = lock(&self.admission).forget_tokens();
            self.unbind(circuits, now);
        }
        for RevokedToken { id, until } in &order.revoked {
            let (_, circuits) = lock(&self.admission).learn_revoked(*id, Monotime(*until), now);
            self.unbind(circuits, now);
        }
        *lock(&self.tokens.told) = order.revoked.iter().map(|revoked| revoked.id).collect();
    }

    /// How many there were, and those revoked that the daemon does not know.
    pub(super) fn tokens_counted(&self) -> (Counted, Vec<RevokedToken>) {
        let tokens = &self.tokens;
        let admission = lock(&self.admission);
        let told = lock(&tokens.told);
        let revoked = admission
            .revoked()
            .filter(|(id, _)| !told.contains(id))
            .take(MOST_NEWLY_REVOKED)
            .map(|(id, until)| RevokedToken { id, until: until.0 });
        let counted = Counted {
            issued: TOKEN_GRANTS
                .iter()
                .zip(&tokens.issued)
                .map(|(by, count)| ((*by).to_owned(), count.load(Relaxed)))
                .collect(),
            accepted: tokens.accepted.load(Relaxed),
            refused: TokenRefused::ALL
                .iter()
                .zip(&tokens.refused)
                .map(|(refused, count)| (refused.label().to_owned(), count.load(Relaxed)))
                .collect(),
            revoked: tokens.revoked.load(Relaxed),
            live: admission.tokens().into(),
            holders: admission.holders().seen,
            holders_refused: admission.holders().refused,
            has_key: lock(&tokens.keys).is_some(),
        };
        (counted, revoked.collect())
    }
}

/// What a row says of its circuit's token.
pub(super) fn word(has_token: bool, not_taken: Option<TokenRefused>) -> Option<String> {
    let word = if has_token { Some(TOKEN_IN_FORCE) } else { not_taken.map(TokenRefused::label) };
    word.map(str::to_owned)
}
