//! `allow list`, `allow add`, `allow remove`.

use clap::{Args, Subcommand};
use tunica_api::request::{AllowAdd, Length, Request};
use tunica_core::id::Prefix;

use super::length::Span;

/// See [`super::Verb::Allow`].
#[derive(Debug, Subcommand)]
pub(crate) enum Allow {
    /// Show the whole allow list
    List,
    /// Protect a range from bans and per-source limits
    Add(Add),
    /// Take a range off the list
    Remove(Remove),
}

/// Protect a range.
#[derive(Debug, Args)]
pub(crate) struct Add {
    /// An address, or a range such as 192.0.2.0/24
    prefix: Prefix,
    /// 30s, 5m, 2h, 1d or forever [default: forever]
    #[arg(long = "for", value_name = "SPAN")]
    span: Option<Span>,
    /// Why; kept with the entry
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    reason: String,
    /// Say what would happen and change nothing
    #[arg(long)]
    dry_run: bool,
}

/// Take a range off the list.
#[derive(Debug, Args)]
pub(crate) struct Remove {
    /// The range, as `tunica allow list` shows it
    prefix: Prefix,
    /// Say what would happen and change nothing
    #[arg(long)]
    dry_run: bool,
}

impl Allow {
    /// The request to send.
    pub(crate) fn request(self) -> Request {
        match self {
            Self::List => Request::AllowList {},
            Self::Add(Add { prefix, span, reason, dry_run }) => Request::AllowAdd(AllowAdd {
                prefix,
                length: span.map_or(Length::Forever, Length::from),
                reason,
                dry_run,
            }),
            Self::Remove(Remove { prefix, dry_run }) => Request::AllowRemove { prefix, dry_run },
        }
    }
}
