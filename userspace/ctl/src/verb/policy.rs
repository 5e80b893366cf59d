//! `render`: the configured policy in another program's words; needs no daemon.

use clap::{Args, Subcommand};
use tunica_config::ReadFileError;
use tunica_core::{limits::HostFacts, time::Monotime};
use tunica_nft::{DIFFERENCES, Plan, allowing};

use crate::{Failure, Global, exit::Exit, note, say};

/// See [`super::Verb::Render`].
#[derive(Debug, Args)]
pub(crate) struct Render {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// JSON for `nft -j -f -`; names no table but our own, `inet tunica`
    Nft,
}

impl Render {
    /// Prints the objects on standard output and what they do otherwise than the shield on standard error.
    ///
    /// Bans and the operator's allow entries are in the daemon's ledger and not in the file, so they are left out.
    pub(super) fn run(self, global: &Global) -> Result<Exit, Failure> {
        let What::Nft = self.what;
        let config = match tunica_config::read_file(&global.config_or_default()) {
            Ok(config) => config,
            Err(ReadFileError::Problems(problems)) => {
                return Err(Failure::new(Exit::BadConfig, problems.to_string()));
            }
            Err(error @ ReadFileError::Open { .. }) => {
                return Err(Failure::new(Exit::NotFound, error.to_string()));
            }
        };
        let settings = config.settings().map_err(|error| Failure::new(Exit::BadConfig, error.to_string()))?;
        let plan = Plan {
            interfaces: &config.shield.interfaces,
            settings: &settings,
            ephemeral_low: HostFacts::default().ephemeral_low,
            drop_invalid: config.shield.nft.drop_invalid,
            socks_port: None,
        };
        let objects = plan.transaction(&allowing(&settings.config_allow), Monotime(0));
        let text = serde_json::to_string_pretty(&objects)
            .map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
        say(&format!("{text}\n"))?;
        for difference in DIFFERENCES {
            note(&format!("differs from the shield: {difference}\n"));
        }
        Ok(Exit::Done)
    }
}
