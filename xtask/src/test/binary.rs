//! Test binaries as cargo built them, and the processes they become.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result};
use serde_json::Value;

use super::Sum;
use crate::{process, workspace::Targets};

/// Where the kernel's BPF objects of the tests are pinned.
const PINS: &str = "/sys/fs/bpf";

/// A test binary of this workspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Binary {
    /// The target's name: a file of `tests`, or the library or program whose unit tests these are.
    pub(super) name: String,
    /// The package's folder, where its tests run.
    folder: PathBuf,
    program: PathBuf,
}

impl Binary {
    /// Whether it belongs to the package in this folder.
    pub(super) fn is_of(&self, folder: &Path) -> bool {
        self.folder == folder
    }

    /// Starts it. It ends with the calling thread, also when that is killed; what it started ends with it.
    ///
    /// # Errors
    /// When its log cannot be made, or it does not start.
    pub(super) fn start(&self, arguments: &[&str], logs: &Path) -> Result<Process> {
        let file = self.program.file_name().context("a test binary without a name")?;
        let path = logs.join(file).with_extension("log");
        let log = fs::File::create(&path).with_context(|| format!("making {}", path.display()))?;
        let mut command = process::command("setpriv")?;
        command.args(["--pdeathsig", "KILL"]).arg(&self.program).args(arguments);
        // As cargo would run it.
        command.current_dir(&self.folder).env("CARGO_MANIFEST_DIR", &self.folder);
        command.stdin(Stdio::null()).stdout(log.try_clone().context("sharing a log")?).stderr(log);
        let child = command.spawn().with_context(|| format!("starting {}", self.program.display()))?;
        Ok(Process { name: self.name.clone(), child, log: path })
    }
}

/// The test binaries that cargo's messages (`--message-format=json-render-diagnostics`) tell of, in their order.
pub(super) fn all(messages: &str) -> Vec<Binary> {
    messages.lines().filter_map(told).collect()
}

fn told(line: &str) -> Option<Binary> {
    let message: Value = serde_json::from_str(line).ok()?;
    let is_test = message.get("profile")?.get("test")?.as_bool()?;
    let program = message.get("executable")?.as_str().filter(|_| is_test)?;
    let name = message.get("target")?.get("name")?.as_str()?;
    let manifest = Path::new(message.get("manifest_path")?.as_str()?);
    Some(Binary {
        name: name.to_owned(),
        folder: manifest.parent()?.to_path_buf(),
        program: PathBuf::from(program),
    })
}

/// Builds the test binaries that these arguments of `cargo test` choose.
///
/// # Errors
/// When they do not build.
pub(super) fn build(root: &Path, which: &[&str]) -> Result<Vec<Binary>> {
    built(root, &[&["test", "--no-run"], which].concat())
}

/// Builds all test binaries and programs.
///
/// # Errors
/// When they do not build.
pub(super) fn build_all(root: &Path) -> Result<Vec<Binary>> {
    built(root, Targets::All.build())
}

fn built(root: &Path, arguments: &[&str]) -> Result<Vec<Binary>> {
    let mut cargo = process::command("cargo")?;
    cargo.args(arguments).arg("--message-format=json-render-diagnostics");
    Ok(all(&process::capture(cargo.current_dir(root)).context("building the tests")?))
}

/// The folder of the logs of `kind`, empty.
///
/// # Errors
/// When it cannot be made.
pub(super) fn logs(root: &Path, kind: &str) -> Result<PathBuf> {
    let folder = root.join("target").join(kind);
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    Ok(folder)
}

/// A test binary that runs. Dropping this ends it, by its pid, and removes what it leaves behind.
pub(super) struct Process {
    pub(super) name: String,
    child: Child,
    pub(super) log: PathBuf,
}

/// How a test binary ended.
pub(super) struct Outcome {
    /// What it wrote.
    pub(super) said: String,
    /// Its closing lines, added up.
    pub(super) sum: Sum,
    /// Whether it ended well. One that was killed has no closing line.
    pub(super) is_good: bool,
}

impl Process {
    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When its log cannot be read.
    pub(super) fn finish(mut self) -> Result<Outcome> {
        let status = self.child.wait().with_context(|| format!("waiting for {}", self.name))?;
        let said = fs::read(&self.log).with_context(|| format!("reading {}", self.log.display()))?;
        let said = String::from_utf8_lossy(&said).into_owned();
        let mut sum = Sum::default();
        said.lines().for_each(|line| sum.add(line));
        Ok(Outcome { is_good: status.success() && sum.binaries == 1, said, sum })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // With a test process end its daemon, its tors and its browser; what they lived in stays.
            let _ = self.child.kill();
            let _ = self.child.wait();
            remove_remains(self.child.id());
        }
    }
}

/// Removes namespaces, pins and folders that a killed test process made; their names tell whose they are.
fn remove_remains(owner: u32) {
    let owned = |name: &str| {
        let mut words = name.split('-');
        words.next() == Some("tunica") && words.nth(1).is_some_and(|pid| pid == owner.to_string())
    };
    let names = |folder: &Path| -> Vec<String> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| owned(name)).collect()
    };
    for name in names(Path::new(PINS)) {
        let _ = fs::remove_dir_all(Path::new(PINS).join(name));
    }
    for name in names(Path::new("/run/netns")) {
        let _ = Command::new("ip").args(["netns", "delete", &name]).status();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_binaries_are_found_in_cargos_messages() {
        let artifact = |test: bool, name: &str, executable: Value| {
            serde_json::json!({
                "reason": "compiler-artifact", "manifest_path": "/r/tests/Cargo.toml",
                "target": { "kind": ["test"], "name": name }, "profile": { "test": test }, "executable": executable,
            })
            .to_string()
        };
        let messages = [
            artifact(false, "tool", "/r/target/tool".into()),
            artifact(true, "packets", "/r/target/packets-1".into()),
            artifact(true, "checked", Value::Null),
            "{\"reason\":\"build-finished\",\"success\":true}".to_owned(),
        ];
        let found = all(&messages.join("\n"));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].name, "packets");
        assert!(found[0].is_of(Path::new("/r/tests")));
        assert!(!found[0].is_of(Path::new("/r/tests/fuzz")));
    }

    #[test]
    fn one_that_fails_or_says_nothing_is_not_good() {
        let folder = tempfile::tempdir().unwrap();
        let shell = Binary {
            name: "shell".to_owned(),
            folder: folder.path().to_path_buf(),
            program: PathBuf::from("/bin/sh"),
        };
        let outcome = |script: &str| shell.start(&["-c", script], folder.path()).unwrap().finish().unwrap();
        let line = "echo 'test result: ok. 2 passed; 1 failed; 0 ignored'";
        let good = outcome(line);
        assert!(good.is_good);
        assert_eq!((good.sum.passed, good.sum.failed), (2, 1));
        assert!(!outcome(&format!("{line}; exit 1")).is_good);
        assert!(!outcome("true").is_good);
        let told = outcome(&format!("pwd; echo $CARGO_MANIFEST_DIR; {line}")).said;
        assert_eq!(told.matches(folder.path().to_str().unwrap()).count(), 2, "{told}");
    }
}
