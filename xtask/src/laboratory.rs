//! `cargo xtask bench`, `demo` and `soak`: each installs what is missing, builds the programs it runs, and lets one of them take
//! this program's place.

use anyhow::{Result, bail};
use clap::Args;

use crate::{process, setup, workspace};

/// What the program is asked; see `cargo xtask bench -- --help`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Handed to the program.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// A program that lays its own networks and needs the real programs beside it.
pub(crate) struct Laboratory {
    /// A binary of `tunica-tests`.
    program: &'static str,
    /// What cargo builds besides it.
    packages: &'static [&'static str],
}

pub(crate) const BENCH: Laboratory = Laboratory { program: "bench", packages: &["tunica-front"] };
pub(crate) const DEMO: Laboratory =
    Laboratory { program: "demo", packages: &["tunicad", "tunica-ctl", "tunica-front"] };
pub(crate) const SOAK: Laboratory = Laboratory { program: "soak", packages: &["tunicad", "tunica-front"] };

impl Laboratory {
    /// Runs it. This returns only if it fails: the other takes this program's place.
    ///
    /// # Errors
    /// When a program is missing or does not build.
    pub(crate) fn run(&self, arguments: &Arguments) -> Result<()> {
        let root = workspace::root()?;
        if !process::is_root() {
            let program = self.program;
            bail!("the {program} needs root, because it makes network namespaces and loads kernel programs");
        }
        setup::ensure(false)?;
        let mut build = process::command("cargo")?;
        build.args(["build", "--release", "--bins", "--package", "tunica-tests"]);
        build.args(self.packages.iter().flat_map(|package| ["--package", *package]));
        process::run(build.current_dir(&root))?;
        process::hand_over(&root, "release", self.program, &arguments.rest)
    }
}
