//! `explain`, `explain circuit`.

use std::{net::IpAddr, num::NonZeroU32};

use clap::{Args, Subcommand};
use tunica_api::request::{self, Request};

use crate::{Failure, exit::Exit};

/// See [`super::Verb::Explain`].
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Explain {
    #[command(subcommand)]
    verb: Option<ExplainVerb>,
    #[command(flatten)]
    source: Option<Source>,
}

#[derive(Debug, Subcommand)]
enum ExplainVerb {
    /// Say what is done with a circuit's streams, and why
    Circuit {
        /// Its number, as `tunica circuits` shows it
        circuit: NonZeroU32,
    },
}

/// Whose packets are tried.
#[derive(Debug, Args)]
struct Source {
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
    ///
    /// # Errors
    /// If nothing is named.
    pub(crate) fn request(self) -> Result<Request, Failure> {
        match (self.verb, self.source) {
            (Some(ExplainVerb::Circuit { circuit }), _) => Ok(Request::CircuitExplain { circuit }),
            (None, Some(Source { address, port, packets })) => {
                Ok(Request::Explain(request::Explain { address, port, packets }))
            }
            (None, None) => Err(Failure::new(
                Exit::Usage,
                "nothing was explained; name an address, or a circuit as in `tunica explain circuit 33`",
            )),
        }
    }
}
