//! Where things lie in this tree, and what it pins.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::process;

/// Each folder with a lock file of its own.
pub(crate) const LOCKED: [&str; 3] = [".", "ebpf", "tests/fuzz"];

/// The repository's root folder.
///
/// # Errors
/// When the program was not started by cargo, which names the package's folder in the environment.
pub(crate) fn root() -> Result<PathBuf> {
    let package = env::var_os("CARGO_MANIFEST_DIR").context("start this program as `cargo xtask`")?;
    let root = Path::new(&package).parent().context("the folder of xtask has no parent")?;
    Ok(root.to_path_buf())
}

/// Where `setup` puts programs whose packages would start a service: not on the machine, only in this tree.
pub(crate) fn tools_bin(root: &Path) -> PathBuf {
    root.join("target/tools/bin")
}

/// The Rust release that `rust-toolchain.toml` pins, such as `1.95.0`.
///
/// # Errors
/// When the file is missing or names no channel.
pub(crate) fn pinned_rust(root: &Path) -> Result<String> {
    let path = root.join("rust-toolchain.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let table: toml::Table = text.parse().with_context(|| format!("reading {}", path.display()))?;
    let channel = table.get("toolchain").and_then(|toolchain| toolchain.get("channel"));
    Ok(channel.and_then(toml::Value::as_str).context("rust-toolchain.toml names no channel")?.to_owned())
}

/// The folder of the pinned Rust toolchain.
///
/// # Errors
/// When `rustc` does not run.
pub(crate) fn sysroot(root: &Path) -> Result<PathBuf> {
    let mut rustc = process::command("rustc")?;
    Ok(PathBuf::from(process::capture(rustc.args(["--print", "sysroot"]).current_dir(root))?.trim()))
}

/// Whether the toolchain at `sysroot` has the standard library's source, which the kernel target is built from.
pub(crate) fn has_rust_src(sysroot: &Path) -> bool {
    let library = rust_src(sysroot);
    library.join("Cargo.lock").is_file() && library.join("core/src/lib.rs").is_file()
}

/// Where cargo looks for the standard library's source.
pub(crate) fn rust_src(sysroot: &Path) -> PathBuf {
    sysroot.join("lib/rustlib/src/rust/library")
}

/// What is built of all packages. With other targets, or alone, a package gets other features of what it depends on, and cargo
/// builds all that again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Targets {
    /// The programs alone.
    Programs,
    /// The programs and all that is tested.
    All,
}

impl Targets {
    /// The arguments of `cargo` that build them.
    pub(crate) const fn build(self) -> &'static [&'static str] {
        match self {
            Self::Programs => &["build", "--workspace", "--bins"],
            Self::All => &["build", "--workspace", "--lib", "--bins", "--examples", "--tests"],
        }
    }
}

/// Paths, relative to the root, of every file that git tracks or would track, in order.
///
/// # Errors
/// When git is missing or `root` is not a git working tree.
pub(crate) fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut git = process::command("git")?;
    git.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]).current_dir(root);
    let listed = process::capture(&mut git)?;
    let mut files: Vec<PathBuf> = listed.split_terminator('\0').map(PathBuf::from).collect();
    // A file deleted but not yet committed is still listed.
    files.retain(|file| root.join(file).is_file());
    files.sort();
    files.dedup();
    Ok(files)
}

/// A program of the workspace, as the messages of `cargo build --message-format=json-render-diagnostics` tell it. Its unit tests
/// are another one of that name.
pub(crate) fn program(messages: &str, name: &str) -> Option<PathBuf> {
    messages.lines().find_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        let target = message.get("target")?;
        let is_program = target.get("kind")?.as_array()?.iter().any(|kind| kind == "bin");
        let is_test = message.get("profile")?.get("test")?.as_bool()?;
        let path = message.get("executable")?.as_str()?;
        (is_program && !is_test && target["name"] == name).then(|| PathBuf::from(path))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_in_cargos_messages() {
        let built = |kind: &str, is_test: bool, path: &str| {
            serde_json::json!({
                "reason": "compiler-artifact", "target": { "kind": [kind], "name": "tunicad" },
                "profile": { "test": is_test }, "executable": path,
            })
        };
        let messages = [
            built("bin", true, "/deps/tunicad-1"),
            built("test", true, "/deps/tunicad-2"),
            built("bin", false, "/x"),
        ];
        let messages =
            messages.map(|message| message.to_string()).join("\n") + "\n{\"reason\":\"build-finished\"}\n";
        assert_eq!(program(&messages, "tunicad"), Some(PathBuf::from("/x")));
        assert_eq!(program(&messages, "other"), None);
    }
}
