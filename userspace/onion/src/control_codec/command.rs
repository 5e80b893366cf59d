//! What tor is asked.

use std::{fmt, io::Write as _};

use thiserror::Error;

use super::Cookie;
use crate::{
    circuit::RawCircuit,
    name::{Fingerprint, Hex, OnionAddress},
};

/// A command. `Debug` shows no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// How to log in. Allowed before the login.
    ProtocolInfo,
    /// Asks tor to prove that it knows the cookie.
    AuthChallenge {
        /// Fresh random bytes.
        nonce: [u8; 32],
    },
    /// The login.
    Authenticate(Authentication<'a>),
    /// Which events to send from now on; all others end.
    SetEvents(&'a [EventKind]),
    /// Asks for facts by their keys; at least one, since tor answers none with a bare `250 OK`.
    GetInfo(&'a [&'a str]),
    /// Asks for settings by their names; at least one.
    GetConf(&'a [&'a str]),
    /// Closes a circuit, and with it all its streams.
    CloseCircuit {
        /// Which one.
        circuit: RawCircuit,
        /// Only if no stream uses it.
        if_unused: bool,
    },
    /// Sends a signal.
    Signal(Signal),
    /// Fetches a descriptor; it comes as an event.
    HsFetch {
        /// Whose.
        address: OnionAddress,
        /// Only from these directories; from those that are responsible if there is none.
        servers: &'a [Fingerprint],
    },
    /// Uploads a descriptor. The reply says that it was understood; what came of it comes as events.
    HsPost {
        /// Whose. Tor 0.4.9 never answers a command without it, so there is none without it.
        address: OnionAddress,
        /// To these directories. Tor's own choice is wrong for half of each period.
        servers: &'a [Fingerprint],
        /// Its text.
        descriptor: &'a str,
    },
    /// Ends the connection.
    Quit,
}

/// A login. `Debug` is scrubbed.
#[derive(Clone, PartialEq, Eq)]
pub enum Authentication<'a> {
    /// Without a proof.
    Null,
    /// By the password.
    Password(&'a str),
    /// By showing the cookie.
    Cookie(&'a Cookie),
    /// By the proof that [`Cookie::answer`] makes.
    SafeCookie([u8; 32]),
}

/// Which events tor can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// Circuits' states.
    Circuit,
    /// Circuits' purposes.
    CircuitMinor,
    /// Circuits' bytes.
    CircuitBandwidth,
    /// Connections to relays.
    Connection,
    /// Descriptors of onion services.
    Descriptor,
    /// Whether the network answers.
    NetworkLiveness,
    /// Tor's state as a whole.
    StatusGeneral,
    /// Tor's state as a client, its start among it.
    StatusClient,
}

/// A signal to tor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Reads the configuration again. It makes new puzzle seeds and zeroes tor's metrics.
    Reload,
    /// Uses fresh circuits from now on.
    NewIdentity,
}

/// An argument that cannot stand in a command. Nothing was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CommandError {
    /// A key or name with another byte than a visible one of ASCII, or none at all.
    #[error(
        "key {0} of GETINFO or GETCONF is empty or has a byte that is no visible ASCII; the command is not sent"
    )]
    Key(usize),
    /// `GETINFO` or `GETCONF` without a key.
    #[error("GETINFO and GETCONF need a key; the command is not sent")]
    NoKey,
    /// A password with a line end or a zero byte.
    #[error("byte {0} of the password is a line end or zero, which tor cannot take; the login is not sent")]
    Password(usize),
    /// A descriptor with a zero byte or a lone carriage return.
    #[error("byte {0} of the descriptor is zero or a lone carriage return; the descriptor is not sent")]
    Descriptor(usize),
}

impl Command<'_> {
    /// The command's bytes, its end included.
    ///
    /// # Errors
    /// When an argument cannot stand in a command.
    pub fn encode(&self) -> Result<Vec<u8>, CommandError> {
        let mut out = Vec::new();
        match self {
            Self::ProtocolInfo => out.extend(b"PROTOCOLINFO 1"),
            Self::AuthChallenge { nonce } => {
                put(&mut out, format_args!("AUTHCHALLENGE SAFECOOKIE {}", Hex(nonce)))
            }
            Self::Authenticate(Authentication::Null) => out.extend(b"AUTHENTICATE"),
            Self::Authenticate(Authentication::Password(password)) => {
                out.extend(b"AUTHENTICATE ");
                put_quoted(&mut out, password)?;
            }
            Self::Authenticate(Authentication::Cookie(cookie)) => {
                put(&mut out, format_args!("AUTHENTICATE {}", Hex(cookie.bytes())));
            }
            Self::Authenticate(Authentication::SafeCookie(proof)) => {
                put(&mut out, format_args!("AUTHENTICATE {}", Hex(proof)));
            }
            Self::SetEvents(kinds) => {
                out.extend(b"SETEVENTS");
                kinds.iter().for_each(|kind| put(&mut out, format_args!(" {}", kind.word())));
            }
            Self::GetInfo(keys) => put_keys(&mut out, "GETINFO", keys)?,
            Self::GetConf(keys) => put_keys(&mut out, "GETCONF", keys)?,
            Self::CloseCircuit { circuit, if_unused } => {
                put(&mut out, format_args!("CLOSECIRCUIT {}", circuit.number()));
                if *if_unused {
                    out.extend(b" IfUnused");
                }
            }
            Self::Signal(signal) => put(&mut out, format_args!("SIGNAL {}", signal.word())),
            Self::HsFetch { address, servers } => {
                put(&mut out, format_args!("HSFETCH {address}"));
                put_servers(&mut out, servers);
            }
            Self::HsPost { address, servers, descriptor } => {
                out.extend(b"+HSPOST");
                put_servers(&mut out, servers);
                put(&mut out, format_args!(" HSADDRESS={address}\r\n"));
                put_data(&mut out, descriptor)?;
            }
            Self::Quit => out.extend(b"QUIT"),
        }
        out.extend(b"\r\n");
        Ok(out)
    }
}

impl EventKind {
    const fn word(self) -> &'static str {
        match self {
            Self::Circuit => "CIRC",
            Self::CircuitMinor => "CIRC_MINOR",
            Self::CircuitBandwidth => "CIRC_BW",
            Self::Connection => "ORCONN",
            Self::Descriptor => "HS_DESC",
            Self::NetworkLiveness => "NETWORK_LIVENESS",
            Self::StatusGeneral => "STATUS_GENERAL",
            Self::StatusClient => "STATUS_CLIENT",
        }
    }
}

impl Signal {
    const fn word(self) -> &'static str {
        match self {
            Self::Reload => "RELOAD",
            Self::NewIdentity => "NEWNYM",
        }
    }
}

fn put(out: &mut Vec<u8>, text: fmt::Arguments<'_>) {
    let written = out.write_fmt(text);
    // Writing to memory cannot fail.
    debug_assert!(written.is_ok());
}

fn put_keys(out: &mut Vec<u8>, command: &str, keys: &[&str]) -> Result<(), CommandError> {
    if keys.is_empty() {
        return Err(CommandError::NoKey);
    }
    out.extend(command.bytes());
    for (at, key) in keys.iter().enumerate() {
        if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(CommandError::Key(at));
        }
        put(out, format_args!(" {key}"));
    }
    Ok(())
}

fn put_servers(out: &mut Vec<u8>, servers: &[Fingerprint]) {
    servers.iter().for_each(|server| put(out, format_args!(" SERVER={server}")));
}

/// Source: control-spec, "General-use tokens": `QuotedString`.
fn put_quoted(out: &mut Vec<u8>, text: &str) -> Result<(), CommandError> {
    if let Some(at) = text.bytes().position(|byte| matches!(byte, b'\r' | b'\n' | 0)) {
        return Err(CommandError::Password(at));
    }
    out.push(b'"');
    for byte in text.bytes() {
        if matches!(byte, b'"' | b'\\') {
            out.push(b'\\');
        }
        out.push(byte);
    }
    out.push(b'"');
    Ok(())
}

/// Lines with one more full stop before those that begin with one, and a full stop at their end.
fn put_data(out: &mut Vec<u8>, data: &str) -> Result<(), CommandError> {
    let bytes = data.as_bytes();
    let mut before = None;
    for (at, byte) in data.bytes().enumerate() {
        if byte == 0 || (byte == b'\r' && bytes.get(at + 1) != Some(&b'\n')) {
            return Err(CommandError::Descriptor(at));
        }
        if byte == b'.' && matches!(before, None | Some(b'\n')) {
            out.push(b'.');
        }
        if byte == b'\n' && before != Some(b'\r') {
            out.push(b'\r');
        }
        out.push(byte);
        before = Some(byte);
    }
    if !matches!(before, None | Some(b'\n')) {
        out.extend(b"\r\n");
    }
    out.push(b'.');
    Ok(())
}

impl fmt::Debug for Authentication<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Null => "Null",
            Self::Password(_) => "Password(scrubbed)",
            Self::Cookie(_) => "Cookie(scrubbed)",
            Self::SafeCookie(_) => "SafeCookie(scrubbed)",
        })
    }
}
