//! Tests that wait for minutes and need next to no CPU time meanwhile: the full run starts them before everything else, does
//! the rest beside them, and asks for their outcome at the end.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};

use super::Sum;
use crate::{process, workspace};

/// Such a test: its binary, and its only test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Test {
    pub(super) binary: &'static str,
    pub(super) name: &'static str,
}

/// All of them, those that take longest first.
pub(super) const TESTS: [Test; 2] = [
    Test {
        binary: "aged",
        name: "a_service_stays_reachable_while_time_periods_and_shared_random_values_change",
    },
    Test { binary: "browse", name: "a_browser_that_clicks_for_five_minutes_is_refused_nothing" },
];

/// Where the kernel's BPF objects of the tests are pinned.
const PINS: &str = "/sys/fs/bpf";

/// The test processes. Dropping this ends those that run still, by their pids, and removes what they leave behind.
pub(super) struct Running {
    children: Vec<(Test, Child, PathBuf)>,
    started: Instant,
}

impl Running {
    /// Starts them. All test binaries are built before, as the later run needs them.
    ///
    /// # Errors
    /// When they do not build, or one of them is not there.
    pub(super) fn start(root: &Path) -> Result<Self> {
        let folder = root.join("target/long");
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        let mut build = process::command("cargo")?;
        build.args(["test", "--workspace", "--no-run", "--message-format=json-render-diagnostics"]);
        let messages = process::capture(build.current_dir(root)).context("building the tests")?;
        let mut running = Self { children: Vec::new(), started: Instant::now() };
        for test in TESTS {
            let program = workspace::executable(&messages, "test", test.binary)
                .with_context(|| format!("`{}` is no test binary of this workspace", test.binary))?;
            let path = folder.join(format!("{}.log", test.binary));
            let log = fs::File::create(&path).with_context(|| format!("making {}", path.display()))?;
            // It ends with this process, also when that is killed; what it started ends with it.
            let mut command = process::command("setpriv")?;
            command
                .args(["--pdeathsig", "KILL"])
                .arg(&program)
                .arg("--exact")
                .arg(test.name)
                .current_dir(root.join("tests"));
            command.stdin(Stdio::null()).stdout(log.try_clone().context("sharing a log")?).stderr(log);
            let child = command.spawn().with_context(|| format!("starting {}", program.display()))?;
            println!("{} runs beside everything else (pid {}, {})", test.binary, child.id(), path.display());
            running.children.push((test, child, path));
        }
        Ok(running)
    }

    /// Waits for their ends, shows what they said, and returns their closing lines, added up.
    ///
    /// # Errors
    /// Names those that failed.
    pub(super) fn finish(mut self) -> Result<Sum> {
        let mut sum = Sum::default();
        let mut failed = Vec::new();
        for (test, child, log) in &mut self.children {
            let status = child.wait().with_context(|| format!("waiting for {}", test.binary))?;
            let said = fs::read(&*log).with_context(|| format!("reading {}", log.display()))?;
            // Where this goes is where the failure is looked for; if it is closed the error still names the test.
            let _ = std::io::stdout().write_all(&said);
            let before = sum;
            String::from_utf8_lossy(&said).lines().for_each(|line| sum.add(line));
            if !status.success() || sum.passed != before.passed + 1 {
                failed.push(test.binary);
            }
        }
        println!("The last of them ended {} s after all were started.", self.started.elapsed().as_secs());
        if !failed.is_empty() {
            bail!("these failed, or did not run: {}", failed.join(", "));
        }
        Ok(sum)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for (_, child, _) in &mut self.children {
            if matches!(child.try_wait(), Ok(None)) {
                // With a test process end its daemon, its tors and its browser; what they lived in stays.
                let _ = child.kill();
                let _ = child.wait();
                remove_remains(child.id());
            }
        }
    }
}

/// Removes namespaces and pins that a killed test process made; their names tell whose they are.
fn remove_remains(owner: u32) {
    let owned = |name: &str| {
        let mut words = name.split('-');
        words.next() == Some("tunica") && words.nth(1).is_some_and(|pid| pid == owner.to_string())
    };
    let names = |folder: &str| -> Vec<String> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| owned(name)).collect()
    };
    for name in names(PINS) {
        let _ = fs::remove_dir_all(Path::new(PINS).join(name));
    }
    for name in names("/run/netns") {
        let _ = Command::new("ip").args(["netns", "delete", &name]).status();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_the_only_test_of_its_binary_and_slow() {
        let folder = workspace::root().unwrap().join("tests/tests");
        for test in TESTS {
            let text = fs::read_to_string(folder.join(format!("{}.rs", test.binary))).unwrap();
            assert_eq!(text.matches("#[test]").count(), 1, "{test:?}");
            assert!(text.contains(&format!("fn {}()", test.name)), "{test:?}");
            assert!(super::super::SLOW.contains(&test.binary), "{test:?}");
        }
    }
}
