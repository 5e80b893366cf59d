//! `sources`.

use clap::Args;
use tunica_api::request::Request;

/// See [`super::Verb::Sources`].
#[derive(Debug, Args)]
pub(crate) struct Sources {
    /// How many rows at most
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
}

impl Sources {
    /// The request to send.
    pub(crate) fn request(self) -> Request {
        Request::Sources { limit: self.limit }
    }
}
