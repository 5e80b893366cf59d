//! What tor tells without being asked.

use std::{fmt, net::SocketAddr, num::NonZeroU32};

use super::{Expected, Message, ParseError, words::Words};
use crate::{
    circuit::RawCircuit,
    name::{Fingerprint, OnionAddress},
};

/// An event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A circuit's state changed (`CIRC`).
    Circuit {
        /// The circuit as it is now.
        circuit: Circuit,
        /// Its state.
        status: CircuitStatus,
        /// Why it failed or closed, in tor's word, such as `REQUESTED` or `TIMEOUT`.
        reason: Option<String>,
        /// Why the other side closed it.
        remote_reason: Option<String>,
    },
    /// A circuit got another purpose (`CIRC_MINOR`). A rendezvous circuit that a client has joined is announced so.
    CircuitMinor {
        /// The circuit as it is now.
        circuit: Circuit,
        /// What changed.
        change: CircuitChange,
        /// Its purpose before.
        old_purpose: Option<Purpose>,
        /// Its state as an onion service's circuit before.
        old_hs_state: Option<HsState>,
    },
    /// A circuit's bytes since the event before (`CIRC_BW`).
    CircuitBandwidth {
        /// Which circuit.
        circuit: RawCircuit,
        /// Bytes of cells received.
        read_bytes: u64,
        /// Bytes of cells sent.
        written_bytes: u64,
        /// Bytes received for streams and control messages.
        delivered_read_bytes: u64,
        /// Bytes sent for streams and control messages.
        delivered_written_bytes: u64,
    },
    /// A connection to a relay changed (`ORCONN`).
    Connection {
        /// With whom.
        target: ConnectionTarget,
        /// Its state.
        status: ConnectionStatus,
    },
    /// Something happened to a descriptor of an onion service (`HS_DESC`).
    Descriptor {
        /// What.
        action: DescriptorAction,
        /// Whose; absent where tor does not say.
        address: Option<OnionAddress>,
        /// At which directory; absent where none is concerned.
        directory: Option<Relay>,
        /// Why it failed, in tor's word, such as `UPLOAD_REJECTED`.
        reason: Option<String>,
    },
    /// Whether the network answers (`NETWORK_LIVENESS`).
    NetworkLiveness {
        /// It does.
        is_up: bool,
    },
    /// Tor's own state (`STATUS_GENERAL`, `STATUS_CLIENT`, `STATUS_SERVER`).
    Status {
        /// As what.
        source: StatusSource,
        /// How bad it is.
        severity: Severity,
        /// What happened, in tor's word, such as `BOOTSTRAP` or `CLOCK_SKEW`.
        action: String,
        /// With `BOOTSTRAP`: how far, in percent.
        progress_percent: Option<u64>,
    },
    /// An event that is unknown here.
    Other {
        /// Its name.
        name: String,
    },
}

/// A circuit, as `CIRC`, `CIRC_MINOR` and `GETINFO circuit-status` describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Circuit {
    /// Its number, the same as in the PROXY header of its streams.
    pub id: RawCircuit,
    /// Its relays so far, the guard first. For a rendezvous circuit of a service that is built, the last is the
    /// rendezvous point.
    pub path: Vec<Relay>,
    /// How it is built, in tor's words, such as `IS_INTERNAL`.
    pub build_flags: Vec<String>,
    /// What for.
    pub purpose: Option<Purpose>,
    /// Its state as a circuit of an onion service or of its client.
    pub hs_state: Option<HsState>,
    /// Which onion service it belongs to.
    pub rend_query: Option<OnionAddress>,
    /// When it was made, in microseconds since 1970 in UTC.
    pub created_microseconds: Option<u64>,
    /// The effort of the puzzle that its client solved. Tor says nothing where that is 0.
    pub pow_effort: Option<u64>,
}

/// A relay in a path. `Debug` is scrubbed.
#[derive(Clone, PartialEq, Eq)]
pub struct Relay {
    /// Its identity.
    pub fingerprint: Fingerprint,
    /// What its operator calls it, if tor knows.
    pub nickname: Option<String>,
}

/// The other end of a connection. `Debug` shows neither relay nor address.
#[derive(Clone, PartialEq, Eq)]
pub enum ConnectionTarget {
    /// A relay.
    Relay(Relay),
    /// An address whose relay is not known yet, or that is none.
    Address(SocketAddr),
    /// Neither, for example because tor hides addresses.
    Hidden,
}

/// As what tor tells of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusSource {
    /// As a whole.
    General,
    /// As a client.
    Client,
    /// As a relay.
    Server,
}

/// Defines an enum of tor's words. A word that is unknown here is kept, as the specification demands.
macro_rules! words {
    ($(#[$about:meta])* $name:ident { $($variant:ident = $word:literal: $meaning:literal,)* }) => {
        $(#[$about])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum $name {
            $(#[doc = concat!("`", $word, "`: ", $meaning)] $variant,)*
            /// A word that is unknown here. It is no longer than a line may be.
            Other(String),
        }

        impl $name {
            pub(super) fn of(word: &str) -> Self {
                match word {
                    $($word => Self::$variant,)*
                    other => Self::Other(other.to_owned()),
                }
            }
        }
    };
}

words! {
    /// A circuit's state.
    CircuitStatus {
        Launched = "LAUNCHED": "it has a number.",
        Built = "BUILT": "all its hops are there.",
        GuardWait = "GUARD_WAIT": "it waits whether a better guard answers.",
        Extended = "EXTENDED": "it has one hop more.",
        Failed = "FAILED": "it closed before it was built.",
        Closed = "CLOSED": "it closed after it was built.",
    }
}

words! {
    /// What a circuit is for.
    Purpose {
        General = "GENERAL": "streams, or directories.",
        HsClientHsdir = "HS_CLIENT_HSDIR": "a client fetches a descriptor.",
        HsClientIntro = "HS_CLIENT_INTRO": "a client introduces itself.",
        HsClientRend = "HS_CLIENT_REND": "a client waits for a service.",
        HsServiceHsdir = "HS_SERVICE_HSDIR": "a service uploads its descriptor.",
        HsServiceIntro = "HS_SERVICE_INTRO": "a service's introduction point.",
        HsServiceRend = "HS_SERVICE_REND": "a service meets a client.",
        HsVanguards = "HS_VANGUARDS": "made in advance for onion services; it may become another.",
        PathBiasTesting = "PATH_BIAS_TESTING": "probes whether a guard drops circuits.",
        Testing = "TESTING": "tests this relay.",
        Controller = "CONTROLLER": "made by a controller.",
        MeasureTimeout = "MEASURE_TIMEOUT": "kept only to learn how long building takes.",
        CircuitPadding = "CIRCUIT_PADDING": "kept open only to hide its end.",
        ConfluxLinked = "CONFLUX_LINKED": "one of several that carry streams together.",
        ConfluxUnlinked = "CONFLUX_UNLINKED": "to become one of several.",
    }
}

words! {
    /// How far a circuit of an onion service is.
    HsState {
        ClientIntroConnecting = "HSCI_CONNECTING": "client, towards the introduction point.",
        ClientIntroSent = "HSCI_INTRO_SENT": "client, introduced, no answer yet.",
        ClientIntroDone = "HSCI_DONE": "client, introduced, answered.",
        ClientRendConnecting = "HSCR_CONNECTING": "client, towards the rendezvous point.",
        ClientRendWaiting = "HSCR_ESTABLISHED_IDLE": "client, waits at the rendezvous point.",
        ClientRendIntroduced = "HSCR_ESTABLISHED_WAITING": "client, introduced, waits for the service.",
        ClientRendJoined = "HSCR_JOINED": "client, met the service.",
        ServiceIntroConnecting = "HSSI_CONNECTING": "service, towards the introduction point.",
        ServiceIntroEstablished = "HSSI_ESTABLISHED": "service, can be introduced to.",
        ServiceRendConnecting = "HSSR_CONNECTING": "service, towards the rendezvous point.",
        ServiceRendJoined = "HSSR_JOINED": "service, met the client.",
    }
}

words! {
    /// What changed about a circuit.
    CircuitChange {
        PurposeChanged = "PURPOSE_CHANGED": "its purpose or its state as an onion service's circuit.",
        Cannibalized = "CANNIBALIZED": "it was made for something else.",
    }
}

words! {
    /// A connection's state.
    ConnectionStatus {
        New = "NEW": "came from outside.",
        Launched = "LAUNCHED": "is being made.",
        Connected = "CONNECTED": "stands.",
        Failed = "FAILED": "could not be made.",
        Closed = "CLOSED": "ended.",
    }
}

words! {
    /// What happened to a descriptor.
    DescriptorAction {
        Requested = "REQUESTED": "a directory was asked for it.",
        Received = "RECEIVED": "a directory gave it.",
        Created = "CREATED": "this tor built a new one.",
        Upload = "UPLOAD": "it is being sent to a directory.",
        Uploaded = "UPLOADED": "the directory took it.",
        Ignore = "IGNORE": "it was fetched, and a better one is known.",
        Failed = "FAILED": "fetching or uploading failed.",
    }
}

words! {
    /// How bad a state is.
    Severity {
        Notice = "NOTICE": "worth knowing.",
        Warn = "WARN": "worth acting on.",
        Error = "ERR": "tor cannot go on.",
    }
}

impl Event {
    /// Reads an event; the caller has seen by [`Message::is_event`] that it is one.
    ///
    /// # Errors
    /// When an event that is known here lacks what it should have. One that is unknown is no error.
    pub fn parse(message: &Message) -> Result<Self, ParseError> {
        let text = message.lines.first().map_or("", |line| line.text.as_str());
        let (name, rest) = text.split_once(' ').unwrap_or((text, ""));
        let words = Words::of(1, rest)?;
        match name {
            "" => Err(words.lacks(Expected::Kind)),
            "CIRC" => {
                let owned = |key| words.get(key).map(str::to_owned);
                let (circuit, status) = Circuit::parse(&words)?;
                let status = CircuitStatus::of(status);
                Ok(Self::Circuit {
                    circuit,
                    status,
                    reason: owned("REASON"),
                    remote_reason: owned("REMOTE_REASON"),
                })
            }
            "CIRC_MINOR" => {
                let (circuit, change) = Circuit::parse(&words)?;
                Ok(Self::CircuitMinor {
                    circuit,
                    change: CircuitChange::of(change),
                    old_purpose: words.get("OLD_PURPOSE").map(Purpose::of),
                    old_hs_state: words.get("OLD_HS_STATE").map(HsState::of),
                })
            }
            "CIRC_BW" => {
                let number = |key| words.number(key).map(Option::unwrap_or_default);
                let id = words.get("ID").and_then(circuit_id);
                let needed = |key| words.number(key)?.ok_or_else(|| words.lacks(Expected::Number));
                Ok(Self::CircuitBandwidth {
                    circuit: id.ok_or_else(|| words.lacks(Expected::Circuit))?,
                    read_bytes: needed("READ")?,
                    written_bytes: needed("WRITTEN")?,
                    delivered_read_bytes: number("DELIVERED_READ")?,
                    delivered_written_bytes: number("DELIVERED_WRITTEN")?,
                })
            }
            "ORCONN" => {
                let (target, status) = connection(&words)?;
                Ok(Self::Connection { target, status })
            }
            "HS_DESC" => descriptor(&words),
            "NETWORK_LIVENESS" => match words.at(0, Expected::Status)? {
                "UP" => Ok(Self::NetworkLiveness { is_up: true }),
                "DOWN" => Ok(Self::NetworkLiveness { is_up: false }),
                _ => Err(words.lacks(Expected::Status)),
            },
            "STATUS_GENERAL" => status(StatusSource::General, &words),
            "STATUS_CLIENT" => status(StatusSource::Client, &words),
            "STATUS_SERVER" => status(StatusSource::Server, &words),
            other => Ok(Self::Other { name: other.to_owned() }),
        }
    }
}

impl Circuit {
    /// A circuit, and the word behind its number.
    pub(super) fn parse<'a>(words: &Words<'a>) -> Result<(Self, &'a str), ParseError> {
        let id = circuit_id(words.at(0, Expected::Circuit)?).ok_or_else(|| words.lacks(Expected::Circuit))?;
        let status = words.at(1, Expected::Status)?;
        let path = match words.placed.get(2) {
            None => Vec::new(),
            Some(path) => path.split(',').map(|hop| Relay::parse(words, hop)).collect::<Result<_, _>>()?,
        };
        let flags = words.get("BUILD_FLAGS").unwrap_or_default();
        let address = |text: &str| text.parse().map_err(|_| words.lacks(Expected::OnionAddress));
        let time = |text| microseconds(text).ok_or_else(|| words.lacks(Expected::Time));
        // `v1,123`: the kind of puzzle and the effort.
        let effort = |text: &str| text.split_once(',').and_then(|(_, effort)| effort.parse().ok());
        let circuit = Self {
            id,
            path,
            build_flags: flags.split(',').filter(|flag| !flag.is_empty()).map(str::to_owned).collect(),
            purpose: words.get("PURPOSE").map(Purpose::of),
            hs_state: words.get("HS_STATE").map(HsState::of),
            rend_query: words.get("REND_QUERY").map(address).transpose()?,
            created_microseconds: words.get("TIME_CREATED").map(time).transpose()?,
            pow_effort: words.get("HS_POW").and_then(effort),
        };
        Ok((circuit, status))
    }
}

impl Relay {
    /// Reads `$FINGERPRINT`, `$FINGERPRINT~nickname` or `$FINGERPRINT=nickname`.
    pub(super) fn parse(words: &Words<'_>, text: &str) -> Result<Self, ParseError> {
        let (fingerprint, nickname) = match text.split_once(['~', '=']) {
            Some((fingerprint, nickname)) => (fingerprint, Some(nickname.to_owned())),
            None => (text, None),
        };
        let fingerprint =
            Some(fingerprint).filter(|text| text.starts_with('$')).and_then(|text| text.parse().ok());
        Ok(Self { fingerprint: fingerprint.ok_or_else(|| words.lacks(Expected::Relay))?, nickname })
    }
}

/// The other end of a connection and its state, as `ORCONN` and `GETINFO orconn-status` have them.
pub(super) fn connection(words: &Words<'_>) -> Result<(ConnectionTarget, ConnectionStatus), ParseError> {
    let text = words.at(0, Expected::Target)?;
    let target = if text.starts_with('$') {
        ConnectionTarget::Relay(Relay::parse(words, text)?)
    } else {
        address(text).map_or(ConnectionTarget::Hidden, ConnectionTarget::Address)
    };
    Ok((target, ConnectionStatus::of(words.at(1, Expected::Status)?)))
}

/// An address and a port; around an IPv6 address tor leaves the brackets out at times.
fn address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.rsplit_once(':')?;
    let bare = address.strip_prefix('[').and_then(|inside| inside.strip_suffix(']')).unwrap_or(address);
    Some(SocketAddr::new(bare.parse().ok()?, port.parse().ok()?))
}

fn descriptor(words: &Words<'_>) -> Result<Event, ParseError> {
    let known =
        |place, expected| words.at(place, expected).map(|text| Some(text).filter(|text| *text != "UNKNOWN"));
    let address = known(1, Expected::OnionAddress)?.map(str::parse).transpose();
    let directory = known(3, Expected::Relay)?.map(|text| Relay::parse(words, text)).transpose()?;
    Ok(Event::Descriptor {
        action: DescriptorAction::of(words.at(0, Expected::Status)?),
        address: address.map_err(|_| words.lacks(Expected::OnionAddress))?,
        directory,
        reason: words.get("REASON").map(str::to_owned),
    })
}

fn status(source: StatusSource, words: &Words<'_>) -> Result<Event, ParseError> {
    Ok(Event::Status {
        source,
        severity: Severity::of(words.at(0, Expected::Status)?),
        action: words.at(1, Expected::Status)?.to_owned(),
        progress_percent: words.number("PROGRESS")?,
    })
}

fn circuit_id(text: &str) -> Option<RawCircuit> {
    text.parse::<NonZeroU32>().ok().map(RawCircuit::new)
}

/// Microseconds from 1970 to a time such as `2026-11-21T07:12:19.807877`; `None` before 1970 and for no time.
fn microseconds(text: &str) -> Option<u64> {
    let (date, time) = text.split_once('T')?;
    let mut date = date.splitn(3, '-').map(digits);
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let mut time = time.splitn(3, ':').map(digits);
    let (hour, minute, second) = (time.next()??, time.next()??, time.next()??);
    let is_time = (1970..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        // A leap second.
        && second <= 60
        && fraction.len() <= 6;
    if !is_time {
        return None;
    }
    // Days by the civil calendar, counted in years that begin in March, so that a leap day is the last of its year.
    let (shifted_year, shifted_month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days_before_year = 365 * shifted_year + shifted_year / 4 - shifted_year / 100 + shifted_year / 400;
    let days = days_before_year + (153 * shifted_month + 2) / 5 + day - 1;
    /// From the first of March of year 0 to 1970.
    const DAYS_TO_1970: u64 = 719_468;
    let seconds = ((days - DAYS_TO_1970) * 24 + hour) * 3_600 + minute * 60 + second;
    let scale = (fraction.len()..6).fold(1, |scale, _| scale * 10);
    Some(seconds * 1_000_000 + digits(fraction)? * scale)
}

fn digits(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

impl fmt::Debug for Relay {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Relay(scrubbed)")
    }
}

impl fmt::Debug for ConnectionTarget {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Relay(_) => "Relay(scrubbed)",
            Self::Address(_) => "Address(scrubbed)",
            Self::Hidden => "Hidden",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_microseconds_since_1970() {
        for (text, expected) in [
            ("1970-01-01T00:00:00", Some(0)),
            ("1970-01-01T00:00:00.000001", Some(1)),
            ("2000-02-29T12:00:00.5", Some(951_825_600_500_000)),
            ("2026-11-21T07:12:19.807877", Some(1_795_245_139_807_877)),
            ("2026-12-31T23:59:60", Some(1_798_761_600_000_000)),
            ("1969-12-31T23:59:59", None),
            ("2026-13-01T00:00:00", None),
            ("2026-11-21T24:00:00", None),
            ("2026-11-21T00:60:00", None),
            ("2026-11-21T00:00:00.1234567", None),
            ("2026-11-21 00:00:00", None),
            ("2026-11-+1T00:00:00", None),
            ("99999999999999999999-01-01T00:00:00", None),
            ("T", None),
        ] {
            assert_eq!(microseconds(text), expected, "{text}");
        }
    }
}
