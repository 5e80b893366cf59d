//! `ban list`, `ban add`, `ban remove`.

use clap::{Args, Subcommand};
use tunica_api::request::{BanAdd, Length, Request};
use tunica_core::id::{BanTarget, PacketSource};

use super::length::Span;
use crate::host::Host;

/// See [`super::Verb::Ban`].
#[derive(Debug, Subcommand)]
pub(crate) enum Ban {
    /// Show every ban in force
    List,
    /// Ban a source or a range
    Add(Add),
    /// Lift a ban
    Remove(Remove),
}

/// Ban a source or a range.
#[derive(Debug, Args)]
pub(crate) struct Add {
    /// A host (IPv6: its /64 is meant), or with --for a range: 192.0.2.0/24
    source: BanTarget,
    /// 30s, 5m, 2h, 1d or forever [default: by the ban ladder]
    #[arg(long = "for", value_name = "SPAN")]
    span: Option<Span>,
    /// Why; kept with the ban
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    reason: String,
    /// Say what would happen and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Ban it even if this SSH session comes from there
    #[arg(long)]
    even_me: bool,
}

/// Lift a ban.
#[derive(Debug, Args)]
pub(crate) struct Remove {
    /// The source or range, as `tunica ban list` shows it
    source: BanTarget,
    /// Say what would happen and change nothing
    #[arg(long)]
    dry_run: bool,
}

impl Ban {
    /// The request to send from this host.
    pub(crate) fn request(self, host: &Host) -> Request {
        match self {
            Self::List => Request::BanList {},
            Self::Add(Add { source, span, reason, dry_run, even_me }) => Request::BanAdd(BanAdd {
                source,
                length: span.map_or(Length::Ladder, Length::from),
                reason,
                operator: if even_me { None } else { host.ssh_peer().map(PacketSource::of) },
                dry_run,
            }),
            Self::Remove(Remove { source, dry_run }) => Request::BanRemove { source, dry_run },
        }
    }
}
