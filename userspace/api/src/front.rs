//! What `tunica-front` and `tunicad` tell each other, over a Unix socket of the daemon's.
//!
//! The front connects, and sends a [`Digest`] each second. The daemon sends [`Orders`] when they change, and every few seconds: the whole of what
//! should be in force, never a step, so that nothing is lost when one of the two starts again. Each message is one line.
//! Numbers of circuits mean nothing outside this machine, and leave it nowhere.

use std::{collections::BTreeMap, fmt, num::NonZeroU32};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tunica_core::{
    circuit_features::{Features, PathClass},
    circuit_orders::MOST_CARRIED,
    circuit_policy::{Ratio, TokenId},
    load_level::FrontLoad,
    puzzle_level,
    token_keys::TokenKey,
};
#[cfg(doc)]
use tunica_core::{load_level::LEASE, refusal::Refusal};

/// A digest line, its newline included, may not be longer: 2 MiB, and all its rows together need less.
pub const MAX_DIGEST_BYTES: usize = 2 * 1024 * 1024;
/// An order line may not be longer: 16 MiB, some hundred bytes for each of 100 000 circuits and room to grow.
pub const MAX_ORDER_BYTES: usize = 16 * 1024 * 1024;
/// Most rows of [`Digest::circuits`].
pub const MOST_ROWS: usize = 1_000;
/// Most rows of [`Digest::newcomers`].
pub const MOST_NEWCOMERS: usize = 256;
/// Most bans of [`Digest::bans`].
pub const MOST_BANS: usize = MOST_CARRIED;
/// Most rungs of [`Digest::rungs`].
pub const MOST_RUNGS: usize = MOST_BANS / 2;
/// Most rows of [`Digest::closing`]; the others are told of once these have ended.
pub const MOST_CLOSING: usize = 1_024;
/// Most tokens of [`Digest::revoked`]; the others are told in the next seconds.
pub const MOST_NEWLY_REVOKED: usize = 256;

/// How the ingress does. Counters count since [`Digest::process`] began.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    /// Version of the front.
    pub version: String,
    /// Differs from one process of the front to the next.
    pub process: u64,
    /// What it goes by, as `tunica_config::front_mark` puts it into a number.
    #[serde(default)]
    pub configuration: u64,
    /// The tor process that [`Digest::circuits`] belong to; `None`: it was not told which.
    #[serde(default)]
    pub generation: Option<u64>,
    /// The last orders that it follows, see [`Orders::revision`]; 0: none yet.
    pub revision: u64,
    /// Open connections that are served.
    pub active: u64,
    /// How many may be.
    pub most_active: u64,
    /// Connections that were given a puzzle, and hold a place meanwhile.
    #[serde(default)]
    pub challenged: u64,
    /// Connections that wait for their turn.
    pub waiting: u64,
    /// How many may: `ingress.maxconn` without those that may be served.
    #[serde(default)]
    pub most_waiting: u64,
    /// How long the one that is served next has waited, milliseconds; 0 where nobody waits.
    #[serde(default)]
    pub first_wait_milliseconds: u64,
    /// How long one may wait, milliseconds.
    #[serde(default)]
    pub most_wait_milliseconds: u64,
    /// Connections that are held and get nothing.
    pub tarpitted: u64,
    /// Circuits that are remembered.
    pub tracked: u64,
    /// How many can be.
    pub most_tracked: u64,
    /// Circuits that are banned.
    pub banned: u64,
    /// Circuits that go past the queue, by token or by an operator's word.
    pub vips: u64,
    /// Circuits past `circuits.max_circuit_age_secs` or `max_circuit_latency_secs` that carry connections, as the last
    /// examination found.
    #[serde(default)]
    pub marked: u64,
    /// `Active: 42/200 | Rate: 12/50/s | Circuits: 156 tracked, 3 banned`.
    pub statistics: String,
    /// Connections that tor handed over.
    pub connections: u64,
    /// Requests over HTTP.
    pub requests: u64,
    /// Circuits that were seen for the first time.
    pub new_circuits: u64,
    /// Bytes from clients.
    pub bytes_in: u64,
    /// Bytes to clients.
    pub bytes_out: u64,
    /// Connections or requests that were refused, by the refusal's word.
    pub refused: BTreeMap<String, u64>,
    /// What limits that are shadows would have refused, by the refusal's word: all, and those of VIPs among them.
    #[serde(default)]
    pub would_refuse: BTreeMap<String, (u64, u64)>,
    /// Connections that ended in a fault of our own.
    pub panics: u64,
    /// The load that it holds to; absent: the limits as they are configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load: Option<LoadOrder>,
    /// What circuits were asked for before they were served.
    #[serde(default)]
    pub puzzles: Puzzles,
    /// What was handed out and shown so that circuits go past the queue.
    #[serde(default)]
    pub tokens: Tokens,
    /// Tokens that it revoked and that stand not in [`TokenOrder::revoked`] yet, at most [`MOST_NEWLY_REVOKED`]. For the daemon
    /// alone, which shows them to nobody.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub revoked: Vec<RevokedToken>,
    /// The onion service that the front hosts itself; absent: another process hosts it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arti: Option<Arti>,
    /// The backends, in the order of the configuration.
    pub backends: Vec<BackendHealth>,
    /// The busiest circuits, at most [`MOST_ROWS`].
    pub circuits: Vec<CircuitRow>,
    /// Circuits that are banned, at most [`MOST_BANS`], those whose bans end last.
    #[serde(default)]
    pub bans: Vec<Ban>,
    /// Those of [`Self::bans`] that are on a higher rung of the ladder than the first, at most [`MOST_RUNGS`], those whose bans end
    /// last. For the daemon alone, which tells the next front.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rungs: Vec<Rung>,
    /// Circuits that the policy has closed at tor, at most [`MOST_CLOSING`]: those with the lowest numbers, again and again until
    /// they have ended. They carried no connection a moment ago, unless they outlived `circuits.rotate_hard_after_secs`. For the
    /// daemon alone; none where the front hosts the service itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub closing: Vec<Closing>,
    /// Circuits that were closed for what is no ban, by the refusal's word: by the front where it hosts the service itself, and
    /// otherwise by tor, as `tunicad` counts.
    #[serde(default)]
    pub closed: BTreeMap<String, u64>,
    /// New circuits whose first seconds are over, at most [`MOST_NEWCOMERS`]; each is told of once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub newcomers: Vec<Newcomer>,
    /// New circuits that were not watched, for want of room.
    #[serde(default)]
    pub unwatched: u64,
}

/// What a new circuit did in its first seconds: its number in its tor process, what its first request was for, and the numbers
/// of [`tunica_core::circuit_features`]. Short, because there may be hundreds each second.
pub type Newcomer = (NonZeroU32, PathClass, Features);

/// A circuit's number in its tor process, and when its ban ends, nanoseconds of `CLOCK_MONOTONIC`: short, because there may be
/// thousands each second.
pub type Ban = (NonZeroU32, u64);

/// A circuit's number in its tor process, and the rung of the ladder that its ban is on, counted from 1.
pub type Rung = (NonZeroU32, u8);

/// A circuit's number in its tor process, and the refusal's word for why it is to be closed: one of [`Refusal::CLOSES`].
pub type Closing = (NonZeroU32, String);

/// Puzzles, pictures and the waiting room. Counters count since [`Digest::process`] began.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Puzzles {
    /// How many were given out, by kind: see [`PUZZLE_KINDS`].
    pub issued: BTreeMap<String, u64>,
    /// How many were solved and redeemed, likewise.
    pub solved: BTreeMap<String, u64>,
    /// Answers that were not taken, by reason: see [`PUZZLE_FAILURES`].
    pub failed: BTreeMap<String, u64>,
    /// Circuits in the waiting room.
    pub waiting_room: u64,
    /// Circuits that it let in.
    pub let_in: u64,
}

/// Tokens. Counters count since [`Digest::process`] began.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokens {
    /// How many were handed out, by whose word: see [`TOKEN_GRANTS`].
    pub issued: BTreeMap<String, u64>,
    /// Connections on which one was shown and taken.
    pub accepted: u64,
    /// Connections on which one was shown and not taken, by reason: see
    /// [`TokenRefused`](tunica_core::circuit_policy::TokenRefused).
    pub refused: BTreeMap<String, u64>,
    /// How many were revoked by bans and demotions.
    pub revoked: u64,
    /// How many are in use.
    pub live: u64,
    /// Their holders, each counted once in each minute in which it was seen.
    #[serde(default)]
    pub holders: u64,
    /// Those of them that a limit of token holders refused, likewise.
    #[serde(default)]
    pub holders_refused: u64,
    /// Whether it knows the key; without it none is handed out or taken.
    pub has_key: bool,
}

/// The labels of [`Tokens::issued`].
pub const TOKEN_GRANTS: [&str; 2] = ["puzzle", "backend"];

/// A token that counts no longer although it has not expired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokedToken {
    /// What tells it from others; nobody can make a token of it.
    #[serde(serialize_with = "write_id", deserialize_with = "read_id")]
    pub id: TokenId,
    /// When it expires, nanoseconds of `CLOCK_MONOTONIC`.
    pub until: u64,
}

/// By what the front makes and checks tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenOrder {
    /// The key that they are made with.
    #[serde(serialize_with = "write_key", deserialize_with = "read_key")]
    pub key: TokenKey,
    /// The one before, while its tokens are taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<PreviousKey>,
    /// Tokens that any front revoked, as far as they have not expired.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub revoked: Vec<RevokedToken>,
}

/// A key whose tokens are taken for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreviousKey {
    /// Which.
    #[serde(serialize_with = "write_key", deserialize_with = "read_key")]
    pub key: TokenKey,
    /// The first second in which they are not, since 1970.
    pub until: u64,
}

fn write_hex<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&hex::encode(bytes))
}

fn read_hex<'de, const LENGTH: usize, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<[u8; LENGTH], D::Error> {
    /// Says nothing of the text: it may be a key.
    struct Hex<const LENGTH: usize>;
    impl<const LENGTH: usize> serde::de::Visitor<'_> for Hex<LENGTH> {
        type Value = [u8; LENGTH];

        fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(out, "{LENGTH} bytes in hexadecimal digits")
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
            let mut bytes = [0; LENGTH];
            let read = hex::decode_to_slice(text, &mut bytes);
            read.map_err(|_| E::custom(format_args!("not {LENGTH} bytes in hexadecimal digits")))?;
            Ok(bytes)
        }
    }
    deserializer.deserialize_str(Hex::<LENGTH>)
}

fn write_key<S: Serializer>(key: &TokenKey, serializer: S) -> Result<S::Ok, S::Error> {
    write_hex(&key.0, serializer)
}

fn read_key<'de, D: Deserializer<'de>>(deserializer: D) -> Result<TokenKey, D::Error> {
    read_hex(deserializer).map(TokenKey)
}

fn write_id<S: Serializer>(id: &TokenId, serializer: S) -> Result<S::Ok, S::Error> {
    write_hex(&id.0.to_be_bytes(), serializer)
}

fn read_id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<TokenId, D::Error> {
    read_hex(deserializer).map(|bytes| TokenId(u128::from_be_bytes(bytes)))
}

/// The labels of [`Puzzles::issued`] and [`Puzzles::solved`].
pub const PUZZLE_KINDS: [&str; 4] = ["page", "program", "tcp", "picture"];
/// The labels of [`Puzzles::failed`].
pub const PUZZLE_FAILURES: [&str; 8] =
    ["malformed", "expired", "foreign", "unsolved", "too_easy", "replayed", "crowded", "misread"];

/// An onion service that the front hosts itself. Counters count since [`Digest::process`] began.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arti {
    /// One of [`ARTI_STATES`].
    pub state: String,
    /// Circuits of clients that are open.
    pub circuits: u64,
    /// Rendezvous that clients asked for.
    pub rendezvous: u64,
}

/// The words of [`Arti::state`]: `waiting` until another process gives the service up, `failed` until the next attempt, and
/// otherwise what Arti says of the service.
pub const ARTI_STATES: [&str; 9] = [
    "waiting",
    "failed",
    "shutdown",
    "bootstrapping",
    "degraded_reachable",
    "degraded_unreachable",
    "running",
    "recovering",
    "broken",
];

impl Arti {
    /// Whether clients are believed to reach the service.
    pub fn is_reachable(&self) -> bool {
        matches!(self.state.as_str(), "running" | "degraded_reachable")
    }
}

/// Whether a backend is well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendHealth {
    /// Where it listens, as in the configuration.
    pub place: String,
    /// Whether it answered its last health check.
    pub is_well: bool,
}

/// One circuit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CircuitRow {
    /// Its number in its tor process.
    pub circuit: NonZeroU32,
    /// `normal`, `vip`, `suspect` or `banned`.
    pub state: String,
    /// Seconds since it was first seen.
    pub age_seconds: u64,
    /// Its open connections.
    pub open: u64,
    /// Connections in the last 60 s.
    pub connections_per_minute: u64,
    /// Requests since it was first seen.
    pub requests: u64,
    /// How long the backend takes, milliseconds: to answer a request over HTTP, to take a connection over TCP; a moving average.
    /// Absent: nothing was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_milliseconds: Option<u64>,
    /// `circuit_aged` or `circuit_slow`: it is closed for that once it carries no connection. Absent: nothing speaks against it,
    /// as the last examination found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub marked: Option<String>,
    /// Bytes from the client.
    pub bytes_in: u64,
    /// Bytes to the client.
    pub bytes_out: u64,
    /// How long the ingress has worked for its connections, microseconds of one core. Connections to backends, which circuits
    /// share, count for none.
    #[serde(default)]
    pub cpu_microseconds: u64,
    /// Violations that count towards a ban.
    pub violations: u32,
    /// Seconds until its ban ends; absent: it is not banned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub banned_seconds: Option<u64>,
    /// Whether an operator's word began that ban.
    #[serde(default)]
    pub banned_by_operator: bool,
    /// Whether it solved a puzzle, has a token in force or was promoted.
    #[serde(default)]
    pub paid: bool,
    /// `in_force`: it has a token in force. Else why the one that it shows on a connection is not taken, as
    /// [`TokenRefused`](tunica_core::circuit_policy::TokenRefused) has it; absent: it shows none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Its bans so far, fewer by those that were forgiven: the rung of the ladder that the last one was on.
    #[serde(default)]
    pub rung: u32,
    /// Attempts to connect in the last 10 s.
    #[serde(default)]
    pub connections_per_10_seconds: u64,
    /// Requests in the last 10 s.
    #[serde(default)]
    pub requests_per_10_seconds: u64,
    /// The word of its last stream or request that was refused for another reason than a ban; absent: none is remembered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_refusal: Option<String>,
    /// How unusual its first seconds were, in hundredths, as `tunicad` finds it; absent: that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<u16>,
}

/// What operators said that is in force. A circuit that is not named stays what it is: the front knows circuits, and a daemon
/// that has started again does not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orders {
    /// Grows with each change.
    pub revision: u64,
    /// Which tor process hands over the streams; `None`: not known, so whichever it was before. With a later one everything that
    /// is known of circuits is forgotten.
    pub generation: Option<u64>,
    /// What operators said of circuits.
    pub circuits: Vec<CircuitOrder>,
    /// The load. It holds until the daemon has said nothing for [`LEASE`], and goes into no revision, because it is said again
    /// and again; absent: the limits as they are configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load: Option<LoadOrder>,
    /// By what it makes and checks tokens; goes into no revision either. Absent: as it heard last, and nothing without that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<TokenOrder>,
    /// Circuits of [`Digest::closing`] that tor does not have any more, or never had for a client; goes into no revision either.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ended: Vec<NonZeroU32>,
    /// Those of [`Self::circuits`] that an earlier front banned on a higher rung of the ladder than the first: the next ban of each
    /// is on the one above.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rungs: Vec<Rung>,
    /// Whether limits and bans refuse nobody, by the operator's word (`tunica bypass on`). Goes into no revision, as the load, and
    /// does not lapse.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub bypass: bool,
}

/// [`CircuitRow::token`] of a circuit with a token in force.
pub const TOKEN_IN_FORCE: &str = "in_force";

/// What of the load level the front holds to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadOrder {
    /// The load, in ten-thousandths of what can be borne.
    pub ratio: u16,
    /// Whether circuits that have not paid are asked for a puzzle, where they can be.
    pub asks_puzzles: bool,
    /// Leading zero bits that a program must find.
    pub puzzle_difficulty: u8,
    /// Leading zero bits that a page asks for.
    pub page_difficulty: u8,
    /// Whether the page's puzzle does not suffice, so that the page leads to the waiting room.
    pub page_waits: bool,
    /// The part of its limits that a circuit which has not paid may use, in ten-thousandths.
    pub share: u16,
    /// Whether limits of token holders are relaxed by one step.
    #[serde(default)]
    pub relaxes_tokens: bool,
}

impl From<FrontLoad> for LoadOrder {
    fn from(load: FrontLoad) -> Self {
        let FrontLoad { ratio, asks_puzzles, puzzles, share, relaxes_tokens } = load;
        Self {
            ratio: ratio.ten_thousandths(),
            asks_puzzles,
            puzzle_difficulty: puzzles.difficulty,
            page_difficulty: puzzles.page_difficulty,
            page_waits: puzzles.page_waits,
            share: share.ten_thousandths(),
            relaxes_tokens,
        }
    }
}

impl From<LoadOrder> for FrontLoad {
    /// More than all of it is all of it.
    fn from(order: LoadOrder) -> Self {
        let ratio = |ten_thousandths: u16| Ratio::share(ten_thousandths.into(), 10_000);
        Self {
            ratio: ratio(order.ratio),
            asks_puzzles: order.asks_puzzles,
            puzzles: puzzle_level::Puzzles {
                difficulty: order.puzzle_difficulty,
                page_difficulty: order.page_difficulty,
                page_waits: order.page_waits,
            },
            share: ratio(order.share),
            relaxes_tokens: order.relaxes_tokens,
        }
    }
}

/// What an operator said of a circuit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CircuitOrder {
    /// Its number in its tor process.
    pub circuit: NonZeroU32,
    /// When it was said, nanoseconds of `CLOCK_MONOTONIC`. What was said before, and comes once more, changes nothing.
    pub said: u64,
    /// What it is to be.
    pub state: CircuitState,
}

/// What a circuit is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CircuitState {
    /// Each of its streams is refused.
    Banned {
        /// Until then, nanoseconds of `CLOCK_MONOTONIC`: both processes are of one machine.
        until: u64,
    },
    /// It goes past the queue.
    Vip,
    /// It is banned no longer; what else it is stays.
    Unbanned,
    /// It goes past the queue no longer, and its token counts nowhere; a ban stays.
    Demoted,
    /// It ends with its streams. For a front that hosts the service, since no other can.
    Closed,
}

#[cfg(test)]
mod tests {
    use tunica_core::{circuit_features::COUNT, refusal::Refusal};

    use super::*;
    use crate::wire;

    #[test]
    fn the_largest_digest_fits_into_its_line() {
        let circuit = NonZeroU32::MAX;
        let longest = Refusal::ALL.iter().map(|word| word.label()).max_by_key(|label| label.len()).unwrap();
        let row = CircuitRow {
            circuit,
            state: "suspect".to_owned(),
            age_seconds: u64::MAX,
            open: u64::MAX,
            connections_per_minute: u64::MAX,
            requests: u64::MAX,
            latency_milliseconds: Some(u64::MAX),
            marked: Some(longest.to_owned()),
            bytes_in: u64::MAX,
            bytes_out: u64::MAX,
            cpu_microseconds: u64::MAX,
            violations: u32::MAX,
            banned_seconds: Some(u64::MAX),
            banned_by_operator: false,
            paid: false,
            rung: u32::MAX,
            connections_per_10_seconds: u64::MAX,
            requests_per_10_seconds: u64::MAX,
            last_refusal: Some(longest.to_owned()),
            token: Some("malformed".to_owned()),
            score: Some(u16::MAX),
        };
        let revoked = RevokedToken { id: TokenId(u128::MAX), until: u64::MAX };
        let digest = Digest {
            revoked: vec![revoked; MOST_NEWLY_REVOKED],
            circuits: vec![row; MOST_ROWS],
            bans: vec![(circuit, u64::MAX); MOST_BANS],
            rungs: vec![(circuit, u8::MAX); MOST_RUNGS],
            closing: vec![(circuit, longest.to_owned()); MOST_CLOSING],
            newcomers: vec![(circuit, PathClass::NONE, Features([u16::MAX; COUNT])); MOST_NEWCOMERS],
            refused: Refusal::ALL.iter().map(|word| (word.label().to_owned(), u64::MAX)).collect(),
            ..Digest::default()
        };
        let line = wire::write_message(&digest).unwrap();
        // What is not of a bounded number here has a quarter of the line.
        assert!(line.len() < MAX_DIGEST_BYTES / 4 * 3, "{}", line.len());
    }

    fn order() -> TokenOrder {
        TokenOrder {
            key: TokenKey([0xab; 32]),
            previous: Some(PreviousKey { key: TokenKey([0x0c; 32]), until: 7 }),
            revoked: vec![RevokedToken { id: TokenId(1), until: 9 }],
        }
    }

    #[test]
    fn keys_of_tokens_pass_the_line_and_print_nowhere() {
        let orders = Orders { tokens: Some(order()), ..Orders::default() };
        let line = wire::write_message(&orders).unwrap();
        assert!(String::from_utf8_lossy(&line).contains(&"ab".repeat(32)));
        assert_eq!(wire::read_message::<Orders>(&line).unwrap(), orders);
        let printed = format!("{orders:?}");
        assert!(
            !printed.contains("ab, ") && !printed.contains("171") && printed.contains("TokenKey(..)"),
            "{printed}"
        );
        assert!(printed.contains("TokenId(scrubbed)"), "{printed}");
    }

    #[test]
    fn a_damaged_key_is_refused_and_not_repeated() {
        let line = wire::write_message(&Orders { tokens: Some(order()), ..Orders::default() }).unwrap();
        let text = String::from_utf8(line).unwrap();
        for key in ["ab".repeat(31), "ab".repeat(33), format!("{}zz", "ab".repeat(31)), "\u{e9}".repeat(32)] {
            let damaged = text.replace(&"ab".repeat(32), &key);
            let error = wire::read_message::<Orders>(damaged.as_bytes()).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("abab"), "{error:?}");
        }
    }
}
