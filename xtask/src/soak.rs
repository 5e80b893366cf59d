//! `cargo xtask soak`: installs what is missing, builds the programs and floods them for long.

use anyhow::{Result, bail};
use clap::Args;

use crate::{process, setup, workspace};

/// What `cargo xtask soak` is asked; see `cargo xtask soak -- --help`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Handed to the soak.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// Runs the command. It returns only if it fails: the soak takes this program's place.
///
/// # Errors
/// When a program is missing or does not build.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let root = workspace::root()?;
    if !process::is_root() {
        bail!("the soak needs root, because it makes network namespaces and loads kernel programs");
    }
    setup::ensure(false)?;
    let mut build = process::command("cargo")?;
    build.args(["build", "--release", "--bins", "--package", "tunicad", "--package", "tunica-front"]);
    build.args(["--package", "tunica-tests"]);
    process::run(build.current_dir(&root))?;
    process::hand_over(&root, "release", "soak", &arguments.rest)
}
