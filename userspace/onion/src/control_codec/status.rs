//! Answers to `GETINFO`, a line for each thing.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use super::{
    Circuit, CircuitStatus, ConnectionStatus, ConnectionTarget, Expected, ParseError, Relay, event,
    words::Words,
};

/// A guard that tor has chosen. `Debug` is scrubbed.
#[derive(Clone, PartialEq, Eq)]
pub struct EntryGuard {
    /// Which relay.
    pub relay: Relay,
    /// In tor's word: `up`, `never-connected`, `down`, `unusable`, `unlisted`.
    pub status: String,
}

/// Reads the value of `GETINFO entry-guards`. Their addresses stand in the value of `ns/id/$FINGERPRINT`, which
/// [`addresses`] reads.
///
/// # Errors
/// At a line that names no relay.
pub fn entry_guards(value: &str) -> Result<Vec<EntryGuard>, ParseError> {
    each_line(value, |words| {
        let relay = Relay::parse(words, words.at(0, Expected::Relay)?)?;
        Ok(EntryGuard { relay, status: words.at(1, Expected::Status)?.to_owned() })
    })
}

/// Reads the value of `GETINFO orconn-status`.
///
/// # Errors
/// At a line without a state, or with half a relay.
pub fn connections(value: &str) -> Result<Vec<(ConnectionTarget, ConnectionStatus)>, ParseError> {
    each_line(value, event::connection)
}

/// Reads the value of `GETINFO circuit-status`.
///
/// # Errors
/// At a line that describes no circuit.
pub fn circuits(value: &str) -> Result<Vec<(Circuit, CircuitStatus)>, ParseError> {
    each_line(value, |words| {
        Circuit::parse(words).map(|(circuit, status)| (circuit, CircuitStatus::of(status)))
    })
}

/// Reads the addresses of relays from the value of `GETINFO ns/id/$FINGERPRINT`: of each relay the one of line `r`, and
/// those of its lines `a`, which are of IPv6.
///
/// # Errors
/// At such a line without an address.
pub fn addresses(value: &str) -> Result<Vec<SocketAddr>, ParseError> {
    let found = each_line(value, |words| {
        let lacks = || words.lacks(Expected::RouterStatus);
        match words.placed.first() {
            // Nickname, identity, digest, date, time, address, port, port of the directory. An identity in base64 has no
            // padding, so no word of them looks like a key.
            Some(&"r") => {
                let address: IpAddr = words.at(6, Expected::RouterStatus)?.parse().map_err(|_| lacks())?;
                let port = words.at(7, Expected::RouterStatus)?.parse().map_err(|_| lacks())?;
                Ok(Some(SocketAddr::new(address, port)))
            }
            Some(&"a") => words.at(1, Expected::RouterStatus)?.parse().map(Some).map_err(|_| lacks()),
            Some(_) | None => Ok(None),
        }
    });
    Ok(found?.into_iter().flatten().collect())
}

/// What `read` makes of each line that is not empty.
fn each_line<T>(value: &str, read: fn(&Words<'_>) -> Result<T, ParseError>) -> Result<Vec<T>, ParseError> {
    let lines = value.lines().zip(1..).filter(|(line, _)| !line.is_empty());
    lines.map(|(line, number)| read(&Words::of(number, line)?)).collect()
}

impl fmt::Debug for EntryGuard {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "EntryGuard(scrubbed, {})", self.status)
    }
}
