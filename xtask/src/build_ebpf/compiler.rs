//! Stands between cargo and the compiler while the kernel program is built.
//!
//! Cargo gives each crate a `-C metadata` value that ends up in symbol names. For a crate outside the workspace, as
//! `common` is to `ebpf`, cargo hashes the crate's absolute path into it, and the program depends on it. So crates of
//! this tree get a value made from name and version instead.

use std::{
    env,
    ffi::{OsStr, OsString},
    path::Path,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result};

/// Set to the tree's root in the environment of a build: this program then acts as `RUSTC_WRAPPER`.
pub(crate) const TREE: &str = "TUNICA_XTASK_COMPILES_TREE";

/// Runs the compiler as cargo asked, with a fixed metadata value for crates of `tree`.
///
/// # Errors
/// When the compiler cannot be started.
pub(crate) fn run(tree: &OsStr) -> Result<ExitCode> {
    let mut arguments = env::args_os().skip(1);
    let rustc = arguments.next().context("cargo named no compiler")?;
    let arguments: Vec<OsString> = match package_in(Path::new(tree)) {
        Some(package) => with_metadata(arguments, &package),
        None => arguments.collect(),
    };
    let status = Command::new(&rustc).args(arguments).status().context("starting the compiler")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Name and version of the package that cargo compiles now, if it belongs to the tree.
fn package_in(tree: &Path) -> Option<String> {
    let folder = env::var_os("CARGO_MANIFEST_DIR")?;
    let package = format!("{}-{}", env::var("CARGO_PKG_NAME").ok()?, env::var("CARGO_PKG_VERSION").ok()?);
    Path::new(&folder).starts_with(tree).then_some(package)
}

/// The arguments with `metadata=…`, wherever it stands, replaced.
fn with_metadata(arguments: impl Iterator<Item = OsString>, package: &str) -> Vec<OsString> {
    let replace = |argument: OsString| match argument.to_str() {
        Some(text) if text.starts_with("metadata=") => format!("metadata={package}").into(),
        Some(_) | None => argument,
    };
    arguments.map(replace).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_metadata_is_replaced() {
        let given =
            ["--crate-name", "x", "-C", "metadata=0123", "-C", "extra-filename=-0123"].map(OsString::from);
        assert_eq!(
            with_metadata(given.into_iter(), "x-1.0.0"),
            ["--crate-name", "x", "-C", "metadata=x-1.0.0", "-C", "extra-filename=-0123"]
        );
    }
}
