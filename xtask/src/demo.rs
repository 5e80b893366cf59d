//! `cargo xtask demo`: installs what is missing, builds the programs and plays the demo.

use std::{env, os::unix::process::CommandExt as _, path::Path, process::Command};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{process, setup, workspace};

/// What `cargo xtask demo` is asked; see `cargo xtask demo -- --help`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Handed to the demo.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// Runs the command. It returns only if it fails: the demo takes this program's place, so that Ctrl-C ends one program
/// and the terminal comes back when that has cleaned up.
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
    process::run(build.args(["--package", "tunica-tests"]).current_dir(&root))?;
    // This program is `xtask` in a profile's folder of the target folder, wherever the developer has put that.
    let own = env::current_exe().context("finding this executable")?;
    let target = own.parent().and_then(Path::parent).context("this executable is in no target folder")?;
    let demo = target.join("release/demo");
    let error = Command::new(&demo).args(&arguments.rest).current_dir(&root).exec();
    Err(error).with_context(|| format!("starting {}", demo.display()))
}
