//! `cargo xtask deny`: licences, sources and kinds of dependencies, against `deny.toml`.
//!
//! A step of its own and not of `cargo xtask test`: what it says changes only with a lock file, and its program takes
//! minutes to build where it is missing. What it says of licences, bans and sources follows from the tree alone; what
//! `--advisories` says does not, and needs RustSec's database from GitHub.

use std::path::Path;

use anyhow::{Context, Result};
use clap::Args;

use crate::{process, workspace};

/// The last version that builds with the pinned Rust.
const CARGO_DENY: &str = "0.20.2";

/// What `cargo xtask deny` is asked.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Also looks for known vulnerabilities and withdrawn or abandoned crates, in a database that it fetches first.
    #[arg(long)]
    advisories: bool,
}

/// Runs the command. Installs its program where that is missing.
///
/// # Errors
/// When a dependency is not as `deny.toml` wants it, or the database of advisories cannot be fetched.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let root = workspace::root()?;
    if !has_cargo_deny()? {
        let mut cargo = process::command("cargo")?;
        // Not optimised: that would take longer than all its runs do.
        cargo.args(["install", "--debug", "cargo-deny", "--version", CARGO_DENY, "--locked"]);
        process::run(cargo.current_dir(&root))?;
    }
    let advisories: &[&str] = if arguments.advisories { &["advisories"] } else { &[] };
    for workspace in workspace::LOCKED {
        check(&root, workspace, advisories).with_context(|| {
            format!("the dependencies of {workspace}/Cargo.lock are not as deny.toml wants them")
        })?;
    }
    if !arguments.advisories {
        println!(
            "Known vulnerabilities were not looked for: `cargo xtask deny --advisories` does, with the network."
        );
    }
    Ok(())
}

fn check(root: &Path, workspace: &str, advisories: &[&str]) -> Result<()> {
    let mut deny = process::command("cargo-deny")?;
    deny.arg("--locked").arg("--config").arg(root.join("deny.toml"));
    deny.args(["check", "--hide-inclusion-graph", "bans", "licenses", "sources"]).args(advisories);
    process::run(deny.current_dir(root.join(workspace)))
}

fn has_cargo_deny() -> Result<bool> {
    if process::find("cargo-deny")?.is_none() {
        return Ok(false);
    }
    let version = process::capture(process::command("cargo-deny")?.arg("--version")).unwrap_or_default();
    Ok(version.split_whitespace().any(|word| word == CARGO_DENY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_lock_file_is_looked_at() {
        let root = workspace::root().unwrap();
        let files = workspace::files(&root).unwrap();
        let mut locked: Vec<String> = files
            .iter()
            .filter(|file| file.ends_with("Cargo.lock"))
            .map(|file| file.parent().unwrap().display().to_string())
            .map(|folder| if folder.is_empty() { ".".to_owned() } else { folder })
            .collect();
        locked.sort();
        assert_eq!(locked, workspace::LOCKED);
    }
}
