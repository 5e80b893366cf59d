//! `cargo xtask testnet`: a private Tor network for a developer, kept up until it is taken down.

use anyhow::Result;
use clap::Args;

use crate::{process, workspace};

/// What `cargo xtask testnet` is asked; see `cargo xtask testnet -- --help`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// `up`, `status` or `down`, and their options.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// Runs the command. It returns only if it fails: another program takes this one's place.
///
/// # Errors
/// When a program is missing or does not build.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let root = workspace::root()?;
    // Neither root nor anything else that the tests need is needed here.
    process::need("tor")?;
    process::need("tor-gencert")?;
    let mut build = process::command("cargo")?;
    build.args(["build", "--quiet", "--package", "tunica-tests", "--bin", "testnet"]);
    process::run(build.current_dir(&root))?;
    process::hand_over(&root, "debug", "testnet", &arguments.rest)
}
