//! `incident list`, `incident show`.

use clap::Subcommand;
use tunica_api::request::Request;

/// See [`super::Verb::Incident`].
#[derive(Debug, Subcommand)]
pub(crate) enum Incident {
    /// Show the last 100 attacks, the newest first
    List,
    /// Show one attack
    Show {
        /// Its number, as `tunica incident list` shows it
        id: u32,
    },
}

impl Incident {
    /// The request to send.
    pub(crate) fn request(self) -> Request {
        match self {
            Self::List => Request::IncidentList {},
            Self::Show { id } => Request::IncidentShow { id },
        }
    }
}
