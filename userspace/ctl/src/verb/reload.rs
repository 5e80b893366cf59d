//! `reload`.

use clap::Args;
use tunica_api::request::{self, Request};

use crate::host::Host;

/// See [`super::Verb::Reload`].
#[derive(Debug, Args)]
pub(crate) struct Reload {
    /// Undo it after 120 s, or this long, unless confirmed
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "120")]
    confirm: Option<u64>,
}

impl Reload {
    /// The request to send from this host.
    pub(crate) fn request(self, host: &Host) -> Request {
        Request::Reload(request::Reload { confirm_seconds: self.confirm, session: host.ssh_local() })
    }
}
