//! What a circuit may do.
//!
//! Two machines decide, neither of which does I/O:
//!
//! * [`CircuitShard`] knows circuits. The front keeps several, each behind its own lock; a circuit belongs to exactly one
//!   ([`crate::id::CircuitId::shard`]).
//! * [`Admission`] knows what all circuits share: rate, places, queue, tarpit, tokens. There is one, behind its own lock,
//!   which is taken within a shard's and only when the shard has nothing against the stream.
//!
//! The order of a decision: banned; VIP; the circuit's own limits; the puzzle; what all circuits share. The limits of a
//! circuit are judged without being acted on (`shard/judge.rs`) and then acted on (`shard.rs`). What is refused never
//! counts towards the global rate, and only what is admitted counts towards the 60 s of its circuit.
//!
//! One connection's life:
//!
//! ```text
//! arrival = shard.connect(circuit, now, |ask| admission.admit(ask, now))
//!   arrival.ends: another connection that must end now, with its word
//!   arrival.hold: the place, when there is one: serve, wait for start_next() to name it, show the puzzle, or tarpit
//! for each HTTP request: ruling = shard.request(circuit, now, |ticket| admission.request(ticket, now))
//! a solution verified:   shard.pay(circuit, now); admission.paid(hold.serial(), lane, shard.ticket(circuit, now), now)
//! now and then:          shard.report(circuit, usage, now)
//! at the end:            shard.close(&hold, now); admission.close(hold.serial()); while let Some(next) = admission.start_next() {…}
//! at next_deadline():    for command in shard.advance(now) {…}; admission.advance(now)
//! ```
//!
//! Where numbers are at once a limit and a threshold: a rate written "≥ N" judges the event that makes N (as HAProxy's
//! `ge` does); a number of things that may be open is the number that may be open.

use std::{fmt, time::Duration};

use crate::{
    id::CircuitId,
    refusal::{HttpAnswer, Refusal, TcpAnswer},
};

mod admission;
mod budget;
mod record;
mod revoked;
mod settings;
mod shard;
mod statistics;
mod table;
mod tokens;
mod window;

#[cfg(test)]
mod browser;
#[cfg(test)]
mod model;
#[cfg(test)]
mod rows;

pub use admission::{Admission, Admitted, Ask, Denied, Place, Serial, Ticket, Want};
pub use budget::Budget;
pub use revoked::{MOST_REVOKED, Revoked};
pub use settings::{CircuitSettings, Ratio, RequestRates};
pub use shard::{CircuitFacts, CircuitShard, Command, Load, MOST_DUE, Usage};
pub use statistics::{ShardCounts, Statistics};
pub use table::BYTES_PER_CIRCUIT;
pub use tokens::{MOST_CIRCUITS_PER_TOKEN, MOST_TOKENS, TokenId, TokenRefused};

/// What was decided about a connection or a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is served, at once or after its turn in the queue.
    Allow,
    /// The client must solve a puzzle first. The challenge itself is made and attached by the caller, who holds the
    /// secret: it needs nothing of this machine but the circuit and the difficulty.
    RequirePow {
        /// Leading zero bits.
        difficulty: u8,
    },
    /// A rate is exceeded.
    RateLimited {
        /// When to try again.
        retry_after: Duration,
    },
    /// The circuit is banned.
    Banned {
        /// For how long.
        remaining: Duration,
    },
    /// There is no place.
    CapacityExceeded {
        /// When to try again.
        retry_after: Duration,
    },
}

/// Which queue a stream belongs to; earlier ones are served first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Shows a token, or promoted by the operator.
    Vip,
    /// Nothing speaks against it.
    Normal,
    /// It offended lately, or sends many requests.
    Suspect,
}

/// What is done with a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Served.
    Serve,
    /// Waits for a place.
    Queue,
    /// Served after the others.
    SlowLane,
    /// Given a puzzle.
    Challenge,
    /// Held without an answer.
    Tarpit,
    /// Refused as [`Refusal::http`] or [`Refusal::tcp`] say.
    Deny,
    /// Reset at once.
    Reset,
}

/// A decision with its word, lane and action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ruling {
    /// The decision.
    pub decision: Decision,
    /// Its word.
    pub word: Refusal,
    /// The lane.
    pub lane: Lane,
    /// What is to be done.
    pub action: Action,
}

/// What happens to a new connection.
#[derive(Debug, PartialEq, Eq)]
pub struct Arrival {
    /// The decision.
    pub ruling: Ruling,
    /// The connection's place; `None` where it is refused.
    pub hold: Option<Hold>,
    /// Another connection that must end now to make room, and the word for it. Its place is given back already.
    pub ends: Option<(Serial, Refusal)>,
}

/// The place of one connection. There is one for each, so that it is counted once; [`CircuitShard::close`] and
/// [`Admission::close`] take note of its end.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct Hold {
    circuit: CircuitId,
    serial: Serial,
    /// Whether it counts as one of its circuit's open connections: one in the tarpit does not.
    is_open: bool,
}

impl Ruling {
    const fn new(decision: Decision, word: Refusal, lane: Lane) -> Self {
        let action = match (word.http(), word.tcp()) {
            (HttpAnswer::Served, _) if matches!(word, Refusal::SlowLane) => Action::SlowLane,
            (HttpAnswer::Served, _) | (_, TcpAnswer::Served) => Action::Serve,
            (HttpAnswer::Challenge, _) => Action::Challenge,
            (HttpAnswer::Tarpit, _) => Action::Tarpit,
            (HttpAnswer::Reset, _) => Action::Reset,
            (HttpAnswer::Close | HttpAnswer::Status(_) | HttpAnswer::RetryLater(_), _) => Action::Deny,
        };
        Self { decision, word, lane, action }
    }
}

impl Hold {
    /// The circuit that the connection came through.
    pub const fn circuit(&self) -> CircuitId {
        self.circuit
    }

    /// The connection's number in [`Admission`].
    pub const fn serial(&self) -> Serial {
        self.serial
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Vip => "vip",
            Self::Normal => "normal",
            Self::Suspect => "suspect",
        })
    }
}
