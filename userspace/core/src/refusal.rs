//! One word for each outcome of a stream.
//!
//! What [`tunica_common::verdict::Verdict`] is for packets, [`Refusal`] is for streams: the Prometheus label, what a test
//! asserts, what `tunica explain` says and what the client gets.

/// What group of rules an outcome belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Served.
    Pass,
    /// The circuit is banned.
    Ban,
    /// The circuit or token is over a limit of its own.
    Circuit,
    /// All circuits together are over a limit.
    Global,
    /// A puzzle is asked for, or was answered wrongly.
    Puzzle,
    /// The client does not speak the protocol, or asks for what the service does not offer.
    Protocol,
    /// The client is too slow.
    Slow,
    /// The service behind us fails.
    Backend,
    /// We end the stream for reasons of our own.
    Ours,
}

/// What an HTTP client gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HttpAnswer {
    /// The backend's answer.
    Served,
    /// A TCP reset.
    Reset,
    /// The connection is closed without a word.
    Close,
    /// A status code, and the connection is closed.
    Status(u16),
    /// A status code with `Retry-After`.
    RetryLater(u16),
    /// Nothing for long, then a reset.
    Tarpit,
    /// 503 with a puzzle.
    Challenge,
}

/// What a TCP client gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TcpAnswer {
    /// The backend's bytes.
    Served,
    /// A TCP reset.
    Reset,
    /// The connection is closed without a word.
    Close,
    /// Nothing for long, then a reset.
    Tarpit,
    /// A puzzle.
    Challenge,
}

impl TcpAnswer {
    /// Whether the client meets with a reset rather than an end.
    pub const fn is_reset(self) -> bool {
        match self {
            Self::Reset | Self::Tarpit => true,
            Self::Served | Self::Close | Self::Challenge => false,
        }
    }
}

/// Whether an outcome speaks against its circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Blame {
    /// Honest clients meet it too.
    None,
    /// One of the violations that `ban_threshold` counts.
    Violation,
}

macro_rules! refusals {
    ($( $(#[$doc:meta])* $name:ident = $label:literal, $class:ident, $http:expr, $tcp:ident, $blame:ident, $sentence:literal; )+) => {
        /// Every outcome of a stream.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Refusal { $( $(#[$doc])* $name, )+ }

        impl Refusal {
            /// Every outcome.
            pub const ALL: &'static [Self] = &[ $( Self::$name, )+ ];

            /// The value of the `refusal` label.
            pub const fn label(self) -> &'static str {
                match self { $( Self::$name => $label, )+ }
            }

            /// The group of rules this outcome belongs to.
            pub const fn class(self) -> Class {
                match self { $( Self::$name => Class::$class, )+ }
            }

            /// What an HTTP client gets.
            pub const fn http(self) -> HttpAnswer {
                use HttpAnswer::{Challenge, Close, Reset, RetryLater, Served, Status, Tarpit};
                match self { $( Self::$name => $http, )+ }
            }

            /// What a TCP client gets. Outcomes that only HTTP knows close.
            pub const fn tcp(self) -> TcpAnswer {
                match self { $( Self::$name => TcpAnswer::$tcp, )+ }
            }

            /// Whether it speaks against the circuit.
            pub const fn blame(self) -> Blame {
                match self { $( Self::$name => Blame::$blame, )+ }
            }

            /// What `tunica explain` prints: one sentence, no circuit in it.
            pub const fn sentence(self) -> &'static str {
                match self { $( Self::$name => $sentence, )+ }
            }
        }
    };
}

refusals! {
    /// Nothing speaks against it.
    Served = "served", Pass, Served, Served, None, "nothing in the policy speaks against this stream";
    /// Served behind the others.
    SlowLane = "slow_lane", Pass, Served, Served, None, "the circuit sends many requests, so this one is served after those of quieter circuits";

    /// In the ban list.
    Banned = "banned", Ban, Reset, Reset, None, "the circuit is banned";

    /// `connections_per_10_seconds`.
    ConnectionRate = "connection_rate", Circuit, Tarpit, Tarpit, Violation, "the circuit opened too many connections within 10 s";
    /// `max_per_circuit_per_minute`.
    CircuitRate = "circuit_rate", Circuit, RetryLater(429), Close, Violation, "the circuit opened as many connections as it may within 60 s";
    /// `max_concurrent_per_circuit`.
    TooManyOpen = "too_many_open", Circuit, RetryLater(429), Close, Violation, "the circuit holds as many open connections as it may";
    /// The deny rate of requests of a circuit.
    RequestRate = "request_rate", Circuit, RetryLater(429), Close, Violation, "the circuit sent too many requests within 10 s";
    /// The part of a circuit's limits that the load level leaves to one which has not paid.
    UnderLoad = "under_load", Circuit, RetryLater(429), Close, None, "the load is high, so less is left to each circuit that has not paid, and this one has used it";
    /// The rate of a VIP, by token or by the operator's word.
    VipRate = "vip_rate", Circuit, RetryLater(429), Close, Violation, "even a VIP may not ask for so much within 10 s";
    /// The token no longer counts, but its circuit has not been told.
    TokenGone = "token_gone", Circuit, RetryLater(429), Close, None, "the circuit's token was revoked or has expired a moment ago";
    /// Bytes of a circuit are bounded.
    ByteBudget = "byte_budget", Circuit, RetryLater(429), Close, Violation, "the circuit moved more bytes than it may";
    /// CPU time of a circuit is bounded.
    CpuBudget = "cpu_budget", Circuit, RetryLater(429), Close, Violation, "the circuit cost more of the front's CPU time than it may";
    /// `max_circuit_age_secs`, without connections: of a circuit, not of a stream.
    CircuitAged = "circuit_aged", Circuit, Close, Close, None, "the circuit is old and carries no connection, so it was closed";
    /// `max_circuit_latency_secs`, likewise.
    CircuitSlow = "circuit_slow", Circuit, Close, Close, None, "the circuit is slow and carries no connection, so it was closed";
    /// `rotate_hard_after_secs`.
    CircuitRotated = "circuit_rotated", Circuit, Close, Close, None, "the circuit outlived `rotate_hard_after_secs` and was closed with its connections";

    /// `max_connections_per_second`.
    GlobalRate = "global_rate", Global, RetryLater(503), Close, None, "all circuits together opened as many connections as they may within one second";
    /// `maxconn`.
    Capacity = "capacity", Global, RetryLater(503), Close, None, "as many connections are open and waiting as the front may hold";
    /// A circuit that paid took the place.
    Displaced = "displaced", Global, RetryLater(503), Close, None, "the front was full, and a circuit that paid took this place";
    /// `timeout queue`.
    QueueTimeout = "queue_timeout", Global, RetryLater(503), Close, None, "the connection waited in the queue for as long as it may";
    /// The circuit table holds only circuits with open connections.
    TableFull = "table_full", Global, RetryLater(503), Close, None, "the circuit table is full of circuits with open connections";
    /// More than 1 000 connections in the tarpit.
    TarpitFull = "tarpit_full", Global, Reset, Reset, None, "the tarpit was full, and this was its oldest connection";

    /// The load is high and the circuit has not paid.
    PuzzleRequired = "puzzle_required", Puzzle, Challenge, Challenge, None, "the load is high, so the circuit must solve a puzzle first";
    /// At `pow_activation_threshold = 0.0`: every circuit must pay, and the client cannot be asked.
    PuzzleImpossible = "puzzle_impossible", Puzzle, RetryLater(503), Close, None, "every circuit must pay here, this one has not, and puzzles are not asked";
    /// A solution that does not verify.
    PuzzleWrong = "puzzle_wrong", Puzzle, Challenge, Close, None, "the puzzle's solution is wrong, expired, spent or of another circuit";
    /// A nonce of our own challenge that does not solve it.
    PuzzleUnsolved = "puzzle_unsolved", Puzzle, Challenge, Close, Violation, "the solution does not solve the puzzle, which no honest solver sends";
    /// The waiting room has no place.
    WaitingRoomFull = "waiting_room_full", Puzzle, RetryLater(503), Close, None, "the load is high, and the waiting room is full";
    /// Nothing came of the handshake.
    PuzzleSlow = "puzzle_slow", Puzzle, Close, Close, None, "no solution came over TCP while the front waited for it";
    /// The limit of attempts.
    PuzzleAttempts = "puzzle_attempts", Puzzle, RetryLater(429), Close, Violation, "the circuit gave too many wrong solutions";

    /// No PROXY header, or another than Tor's.
    NotACircuit = "not_a_circuit", Protocol, Close, Close, None, "the connection does not begin with a PROXY header that names a circuit";
    /// A circuit of a tor process that has ended.
    OldCircuit = "old_circuit", Protocol, Reset, Reset, None, "the circuit belongs to a tor process that has ended";
    /// Not HTTP/1.1.
    Malformed = "malformed", Protocol, Status(400), Close, Violation, "the request is not valid HTTP/1.1";
    /// Request smuggling.
    AmbiguousLength = "ambiguous_length", Protocol, Status(400), Close, Violation, "the request's length can be read in two ways, as in request smuggling";
    /// The preface of HTTP/2 (RFC 9113 section 3.4): a program that was told to begin with it. Any other version of HTTP is malformed.
    VersionUnsupported = "version_unsupported", Protocol, Status(505), Close, None, "the client begins in HTTP/2, and the front speaks HTTP/1.1 alone";
    /// The method rules.
    MethodDenied = "method_denied", Protocol, Status(405), Close, None, "the method is not allowed here";
    /// Request line and header lines together over their limit, in bytes or lines.
    HeaderTooLarge = "header_too_large", Protocol, Status(431), Close, Violation, "the request's line and header are larger than the limit";
    /// Body over its limit.
    BodyTooLarge = "body_too_large", Protocol, Status(413), Close, None, "the request's body is larger than the limit";
    /// `Expect` with anything but `100-continue`.
    ExpectationFailed = "expectation_failed", Protocol, Status(417), Close, None, "the request expects what the front does not know";

    /// The PROXY header did not come in time.
    ProxyTimeout = "proxy_timeout", Slow, Close, Close, None, "the PROXY header did not arrive in time";
    /// Not one byte of a request: what a browser's spare connection looks like.
    NoRequest = "no_request", Slow, Close, Close, None, "the connection was opened and nothing was sent";
    /// Headers that trickle.
    SlowHeaders = "slow_headers", Slow, Status(408), Close, Violation, "the request's header arrived too slowly";
    /// A body that trickles.
    SlowBody = "slow_body", Slow, Status(408), Close, Violation, "the request's body arrived too slowly";
    /// A client that does not read.
    SlowReader = "slow_reader", Slow, Close, Close, Violation, "the client read the answer too slowly";
    /// Silence in both directions.
    Idle = "idle", Slow, Close, Close, None, "nothing moved on the connection for as long as it may rest";

    /// The health check fails.
    BackendDown = "backend_down", Backend, RetryLater(503), Close, None, "no backend answers";
    /// `timeout connect`.
    BackendConnectTimeout = "backend_connect_timeout", Backend, RetryLater(503), Close, None, "the backend did not accept the connection in time";
    /// `timeout server`.
    BackendTimeout = "backend_timeout", Backend, Status(504), Close, None, "the backend did not answer in time";
    /// An answer that is not HTTP, or a connection that broke.
    BackendBroken = "backend_broken", Backend, Status(502), Close, None, "the backend's answer broke off or is not valid HTTP";

    /// The front is going down.
    Draining = "draining", Ours, RetryLater(503), Close, None, "the front is shutting down";
    /// No descriptor or memory for another connection.
    OutOfResources = "out_of_resources", Ours, Close, Close, None, "the front has no descriptor or memory for another connection";
    /// A panic, which ends one connection.
    Fault = "fault", Ours, Reset, Reset, None, "a fault of ours ended the connection";
}

impl Refusal {
    /// What circuits are closed for that no ban closes.
    pub const CLOSES: [Self; 3] = [Self::CircuitAged, Self::CircuitSlow, Self::CircuitRotated];

    /// The outcome of this [`Self::label`].
    pub fn named(label: &str) -> Option<Self> {
        Self::ALL.iter().find(|refusal| refusal.label() == label).copied()
    }

    /// Whether it counts towards `ban_threshold`.
    pub const fn is_violation(self) -> bool {
        matches!(self.blame(), Blame::Violation)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn labels_and_sentences_are_unique_and_in_style() {
        let labels: BTreeSet<_> = Refusal::ALL.iter().map(|refusal| refusal.label()).collect();
        let sentences: BTreeSet<_> = Refusal::ALL.iter().map(|refusal| refusal.sentence()).collect();
        assert_eq!((labels.len(), sentences.len()), (Refusal::ALL.len(), Refusal::ALL.len()));
        for label in labels {
            assert!(label.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{label}");
        }
        for sentence in sentences {
            assert!(!sentence.ends_with('.') && sentence.starts_with(char::is_lowercase), "{sentence}");
        }
    }

    #[test]
    fn answers_agree_with_classes() {
        for refusal in Refusal::ALL {
            let is_pass = refusal.class() == Class::Pass;
            assert_eq!(refusal.http() == HttpAnswer::Served, is_pass, "{refusal:?}");
            assert_eq!(refusal.tcp() == TcpAnswer::Served, is_pass, "{refusal:?}");
            assert_eq!(
                refusal.http() == HttpAnswer::Tarpit,
                refusal.tcp() == TcpAnswer::Tarpit,
                "{refusal:?}"
            );
            match refusal.class() {
                // What is not the client's doing must never ban it.
                Class::Pass | Class::Ban | Class::Global | Class::Backend | Class::Ours => {
                    assert_eq!(refusal.blame(), Blame::None, "{refusal:?}");
                }
                Class::Circuit | Class::Puzzle | Class::Protocol | Class::Slow => {}
            }
            match refusal.http() {
                HttpAnswer::Status(status) | HttpAnswer::RetryLater(status) => {
                    assert!((400..600).contains(&status), "{refusal:?}");
                    // Retry-After belongs to 429 and 503 (RFC 6585 section 4, RFC 9110 section 10.2.3).
                    let retries = matches!(refusal.http(), HttpAnswer::RetryLater(_));
                    assert_eq!(retries, matches!(status, 429 | 503), "{refusal:?}");
                }
                HttpAnswer::Served | HttpAnswer::Reset | HttpAnswer::Close => {}
                HttpAnswer::Tarpit | HttpAnswer::Challenge => {}
            }
        }
    }
}
