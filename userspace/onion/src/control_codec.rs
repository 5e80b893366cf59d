//! Tor's control port: commands out, replies and events in.
//!
//! Source: Tor's [control-spec](https://spec.torproject.org/control-spec/), and transcripts of tor 0.4.9.11, which the
//! tests read.
//!
//! - [`Decoder`] cuts the bytes that tor sends into [`Message`]s.
//! - [`Command`] writes what tor is asked; no argument can end its line and begin another command.
//! - [`ProtocolInfo`], [`AuthChallenge`] and [`Cookie`] are what a login needs.
//! - [`Event`], and [`circuits`], [`entry_guards`], [`connections`] and [`addresses`] for the answers to `GETINFO`, read
//!   what a message says. What tor adds in later versions (events, keywords, values) is stepped over or kept as
//!   `Other`, as the specification's section on forward compatibility demands.
//!
//! The codec is our own. `torut` 0.2.1, the library for this, is no codec but owns tokio's stream and reads it a byte
//! at a time, ends at a byte beyond ASCII, hands events on as unread lines, and stands on versions of `sha2`, `rand` and
//! `ed25519-dalek` from before 2022. Arti's crates speak another protocol.

use thiserror::Error;

mod command;
mod event;
mod login;
mod message;
mod status;
mod words;

pub use command::{Authentication, Command, CommandError, EventKind, Signal};
pub use event::{
    Circuit, CircuitChange, CircuitStatus, ConnectionStatus, ConnectionTarget, DescriptorAction, Event,
    HsState, Purpose, Relay, Severity, StatusSource,
};
pub use login::{AuthChallenge, AuthMethod, Cookie, ForgedServer, NotACookie, ProtocolInfo};
pub use message::{DecodeError, Decoder, Limits, Line, Message, MessageFault, Refused};
pub use status::{EntryGuard, addresses, circuits, connections, entry_guards};

/// A message of tor's that does not say what it should. It does not quote the message, which may name circuits,
/// addresses and relays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "line {line} of tor's message has no {expected}; the message is not used; is this tor 0.4.8 or later?"
)]
pub struct ParseError {
    /// The line within the message or its data, from 1.
    pub line: usize,
    /// What is missing or malformed.
    pub expected: Expected,
}

/// What a message should have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Expected {
    /// The word that says what the message is.
    #[error("word that says what it is")]
    Kind,
    /// A circuit's number, from 1.
    #[error("number of a circuit, from 1")]
    Circuit,
    /// What happened.
    #[error("status, action or change")]
    Status,
    /// `$FINGERPRINT~nickname`.
    #[error("relay as `$FINGERPRINT~nickname`")]
    Relay,
    /// The other end of a connection.
    #[error("relay or address that the connection leads to")]
    Target,
    /// A version 3 onion address.
    #[error("onion address")]
    OnionAddress,
    /// A number.
    #[error("number where one must stand")]
    Number,
    /// A time such as `2026-11-21T07:12:19.807877`.
    #[error("time in UTC such as 2026-11-21T07:12:19.807877")]
    Time,
    /// A text in quotes.
    #[error("end of a text in quotes")]
    Quote,
    /// How to log in.
    #[error("line `AUTH METHODS=…`")]
    AuthMethods,
    /// 32 bytes as hexadecimal digits.
    #[error("SERVERHASH and SERVERNONCE of 64 hexadecimal digits")]
    Challenge,
    /// A relay's entry in the consensus.
    #[error("line `r` with an address and a port")]
    RouterStatus,
}
