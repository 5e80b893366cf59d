//! `circuits`, `circuit ban`, `circuit unban`, `circuit promote`, `circuit demote`.

use std::num::NonZeroU32;

use clap::{Args, Subcommand};
use tunica_api::request::{CircuitOrder, CircuitState, Request};
use tunica_core::circuit_orders::USUAL_BAN;

use super::length::Span;

/// See [`super::Verb::Circuits`].
#[derive(Debug, Args)]
pub(crate) struct Circuits {
    /// How many rows at most
    #[arg(long, value_name = "ROWS", default_value_t = 20)]
    limit: u32,
}

impl Circuits {
    /// The request to send.
    pub(crate) const fn request(self) -> Request {
        Request::CircuitList { limit: self.limit }
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
    /// Treat a circuit as any other again
    Demote {
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
            Self::Unban { which } | Self::Demote { which } => (which, CircuitState::Normal),
            Self::Promote { which } => (which, CircuitState::Vip),
        };
        Request::CircuitOrder(CircuitOrder { circuit, state, dry_run })
    }
}
