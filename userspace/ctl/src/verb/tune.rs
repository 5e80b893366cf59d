//! `tune`.

use clap::Args;
use tunica_api::{request::Request, view::Answer};

use crate::{Failure, Global, client, exit::Exit, say};

/// See [`super::Verb::Tune`].
#[derive(Debug, Args)]
pub(crate) struct Tune {
    /// Propose even from less than an hour
    #[arg(long)]
    force: bool,
    /// Print only lines for the configuration file
    #[arg(long)]
    toml: bool,
}

impl Tune {
    /// Asks, and shows all or the lines alone.
    pub(super) fn run(self, global: &Global) -> Result<Exit, Failure> {
        let reply = client::ask(&global.socket, &Request::Tune { force: self.force })?;
        if let (Answer::Tuning(tuning), true, false) = (&reply.answer, self.toml, global.json) {
            say(&tuning.toml)?;
            return Ok(Exit::Done);
        }
        super::show(global, &reply)
    }
}
