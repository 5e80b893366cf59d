//! `bypass on`, `bypass off`.

use clap::Subcommand;
use tunica_api::request::Request;

/// See [`super::Verb::Bypass`].
#[derive(Debug, Subcommand)]
pub(crate) enum Bypass {
    /// Let every packet and circuit pass until `tunica bypass off`
    On {
        /// Why; `tunica status` shows it until the bypass ends
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
    /// Attach the shield again
    Off,
}

impl Bypass {
    /// The request to send.
    pub(crate) fn request(self) -> Request {
        match self {
            Self::On { reason } => Request::BypassOn { reason },
            Self::Off => Request::BypassOff {},
        }
    }
}
