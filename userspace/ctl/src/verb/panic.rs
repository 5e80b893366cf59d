//! `panic`, `panic off`.

use clap::{Args, Subcommand};
use tunica_api::request::Request;

use super::length::Span;
use crate::{Failure, exit::Exit};

/// See [`super::Verb::Panic`].
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Panic {
    #[command(subcommand)]
    verb: Option<PanicVerb>,
    #[command(flatten)]
    on: On,
}

/// Lay stricter limits over the configured ones.
#[derive(Debug, Args)]
struct On {
    /// How long: 30m, 2h; a minute to a day
    #[arg(long = "for", value_name = "SPAN", default_value = "1h")]
    span: Span,
    /// Say what would happen and change nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Subcommand)]
enum PanicVerb {
    /// Return to the configured limits now
    Off {
        /// Say what would happen and change nothing
        #[arg(long)]
        dry_run: bool,
    },
}

impl Panic {
    /// The request to send.
    ///
    /// # Errors
    /// If it were to last for ever.
    pub(crate) fn request(self) -> Result<Request, Failure> {
        match (self.verb, self.on.span) {
            (Some(PanicVerb::Off { dry_run }), _) => Ok(Request::PanicOff { dry_run }),
            (None, Span::Seconds(seconds)) => Ok(Request::PanicOn { seconds, dry_run: self.on.dry_run }),
            (None, Span::Forever) => Err(Failure::new(
                Exit::Usage,
                "attack mode does not last for ever: nothing was changed; give --for at most 1d",
            )),
        }
    }
}
