//! `report`.

use clap::Args;
use tunica_api::request::{self, Request};
use tunica_core::id::PacketSource;

/// See [`super::Verb::Report`].
#[derive(Debug, Args)]
pub(crate) struct Report {
    /// The host that misbehaved (IPv6: its /64 is meant)
    source: PacketSource,
    /// What it did; kept with the ban
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Towards which service
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// Say what would happen and change nothing
    #[arg(long)]
    dry_run: bool,
}

impl Report {
    /// The request to send.
    pub(crate) fn request(self) -> Request {
        let Self { source, reason, service, dry_run } = self;
        Request::Report(request::Report { source, reason, service, dry_run })
    }
}
