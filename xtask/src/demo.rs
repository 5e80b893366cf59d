//! `cargo xtask demo`: installs what is missing, builds the programs and plays the demo.

use anyhow::{Result, bail};
use clap::Args;

use crate::{process, setup, workspace};

/// What `cargo xtask demo` is asked; see `cargo xtask demo -- --help`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Handed to the demo.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// Runs the command. It returns only if it fails: the demo takes this program's place.
///
/// # Errors
/// When a program is missing or does not build.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let root = workspace::root()?;
    if !process::is_root() {
        bail!("the demo needs root, because it makes network namespaces and loads a kernel program");
    }
    setup::ensure(false)?;
    let mut build = process::command("cargo")?;
    build.args(["build", "--release", "--bins", "--package", "tunicad", "--package", "tunica-ctl"]);
    build.args(["--package", "tunica-front", "--package", "tunica-tests"]);
    process::run(build.current_dir(&root))?;
    process::hand_over(&root, "release", "demo", &arguments.rest)
}
