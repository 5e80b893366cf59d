//! `explain`.

use std::net::IpAddr;

use clap::Args;
use tunica_api::request::{self, Request};

/// See [`super::Verb::Explain`].
#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// An address of the source
    #[arg(value_name = "IP")]
    address: IpAddr,
    /// Port that the SYNs go to [default: 443]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// How many SYNs are tried in a row [1 to 1000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    packets: Option<u32>,
}

impl Explain {
    /// The request to send.
    pub(crate) fn request(self) -> Request {
        let Self { address, port, packets } = self;
        Request::Explain(request::Explain { address, port, packets })
    }
}
