//! `threat`, `threat set`, `threat clear`.

use clap::{
    Args, Subcommand,
    builder::{PossibleValuesParser, TypedValueParser as _},
};
use tunica_api::request::Request;
use tunica_core::load_level::Level;

use super::length::Span;

/// See [`super::Verb::Threat`].
#[derive(Debug, Args)]
pub(crate) struct Threat {
    #[command(subcommand)]
    verb: Option<ThreatVerb>,
}

#[derive(Debug, Subcommand)]
enum ThreatVerb {
    /// Set the load level, whatever is measured
    Set {
        /// calm, light, moderate, heavy or under_attack
        #[arg(
            value_parser = PossibleValuesParser::new(Level::ALL.map(Level::name)).try_map(level),
            hide_possible_values = true
        )]
        level: Level,
        /// How long: 30m, 2h, 1d [default: until `threat clear`]
        #[arg(long = "for", value_name = "SPAN")]
        span: Option<Span>,
        /// Say what would happen and change nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Let go of it: the measured level counts again
    Clear {
        /// Say what would happen and change nothing
        #[arg(long)]
        dry_run: bool,
    },
}

impl Threat {
    /// The request to send.
    pub(crate) fn request(self) -> Request {
        match self.verb {
            None => Request::Threat {},
            Some(ThreatVerb::Set { level, span, dry_run }) => {
                let seconds = match span {
                    Some(Span::Seconds(seconds)) => Some(seconds),
                    Some(Span::Forever) | None => None,
                };
                Request::ThreatSet { level, seconds, dry_run }
            }
            Some(ThreatVerb::Clear { dry_run }) => Request::ThreatClear { dry_run },
        }
    }
}

/// The names come from the levels, so each of them has one.
fn level(name: String) -> Result<Level, String> {
    Level::named(&name).ok_or_else(|| format!("there is no load level {name}"))
}
