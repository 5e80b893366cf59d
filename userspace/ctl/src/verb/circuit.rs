//! `circuits`, `circuit ban`, `circuit unban`, `circuit promote`, `circuit demote`, `circuit close`.

use std::num::NonZeroU32;

use clap::{Args, Subcommand, ValueEnum};
use tunica_api::request::{CircuitOrder, CircuitSort, CircuitState, Request};
use tunica_core::circuit_orders::USUAL_BAN;

use super::length::Span;

/// See [`super::Verb::Circuits`].
#[derive(Debug, Args)]
pub(crate) struct Circuits {
    /// How many rows at most
    #[arg(long, value_name = "ROWS", default_value_t = 20)]
    limit: u32,
    /// First come busy, age, bytes or violations
    #[arg(
        long,
        value_enum,
        value_name = "WORD",
        default_value_t = Sort::Busy,
        hide_possible_values = true
    )]
    sort: Sort,
}

/// What comes first.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Sort {
    /// Most open connections, then most requests
    Busy,
    /// Seen first
    Age,
    /// Most bytes
    Bytes,
    /// Banned, then most violations
    Violations,
}

impl Circuits {
    /// The request to send.
    pub(crate) const fn request(self) -> Request {
        let sort = match self.sort {
            Sort::Busy => CircuitSort::Busy,
            Sort::Age => CircuitSort::Age,
            Sort::Bytes => CircuitSort::Bytes,
            Sort::Violations => CircuitSort::Violations,
        };
        Request::CircuitList { limit: self.limit, sort }
    }
}

/// See [`super::Verb::Circuit`].
#[derive(Debug, Subcommand)]
pub(crate) enum Circuit {
    /// Refuse each stream of a circuit for a while
    Ban {
        #[command(flatten)]
        which: Which,
        /// 30s, 5m, 2h, 1d or forever [default: 5m]
        #[arg(long = "for", value_name = "SPAN")]
        span: Option<Span>,
    },
    /// Lift a circuit's ban, whoever set it
    Unban {
        #[command(flatten)]
        which: Which,
    },
    /// Let a circuit go past the queue
    Promote {
        #[command(flatten)]
        which: Which,
    },
    /// Let a circuit go past the queue no longer, and revoke its token
    Demote {
        #[command(flatten)]
        which: Which,
    },
    /// Have tor end a circuit with all its streams, without a ban
    Close {
        #[command(flatten)]
        which: Which,
    },
}

/// Which circuit.
#[derive(Debug, Args)]
pub(crate) struct Which {
    /// Its number, as `tunica circuits` shows it
    circuit: NonZeroU32,
    /// Say what would happen and change nothing
    #[arg(long)]
    dry_run: bool,
}

impl Circuit {
    /// The request to send.
    pub(crate) fn request(self) -> Request {
        let (Which { circuit, dry_run }, state) = match self {
            Self::Ban { which, span } => {
                let seconds = match span {
                    Some(Span::Seconds(seconds)) => seconds,
                    // No circuit lives so long.
                    Some(Span::Forever) => u64::from(u32::MAX),
                    None => USUAL_BAN.as_secs(),
                };
                (which, CircuitState::Banned { seconds })
            }
            Self::Unban { which } => (which, CircuitState::Unbanned),
            Self::Demote { which } => (which, CircuitState::Demoted),
            Self::Promote { which } => (which, CircuitState::Vip),
            Self::Close { which: Which { circuit, dry_run } } => {
                return Request::CircuitClose { circuit, dry_run };
            }
        };
        Request::CircuitOrder(CircuitOrder { circuit, state, dry_run })
    }
}
