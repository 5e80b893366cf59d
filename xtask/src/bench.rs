//! `cargo xtask bench`: installs what is missing, builds the benchmark and runs it.

use anyhow::{Result, bail};
use clap::Args;

use crate::{process, setup, workspace};

/// What `cargo xtask bench` is asked; see `cargo xtask bench -- --help`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Handed to the benchmark.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// Runs the command. It returns only if it fails: the benchmark takes this program's place.
///
/// # Errors
/// When a program is missing or does not build.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let root = workspace::root()?;
    if !process::is_root() {
        bail!("the benchmark needs root, because it makes network namespaces and loads kernel programs");
    }
    setup::ensure(false)?;
    let mut build = process::command("cargo")?;
    build.args(["build", "--release", "--package", "tunica-tests", "--bin", "bench"]);
    build.args(["--package", "tunica-front", "--bin", "tunica-front"]);
    process::run(build.current_dir(&root))?;
    process::hand_over(&root, "release", "bench", &arguments.rest)
}
