//! Tests that wait for minutes and need little CPU time meanwhile: the full run starts them as soon as it has what they need,
//! does the rest beside them, and asks for their outcome at the end.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result, bail};

use super::{
    Sum,
    binary::{self, Binary, Process},
};

/// Such a test: its binary, and its only test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Test {
    pub(super) binary: &'static str,
    pub(super) name: &'static str,
}

/// Those that need nothing but the test binaries and programs.
pub(super) const FIRST: &[Test] = &[
    Test {
        binary: "aged",
        name: "a_service_stays_reachable_while_time_periods_and_shared_random_values_change",
    },
    Test { binary: "browse", name: "a_browser_that_clicks_for_five_minutes_is_refused_nothing" },
];

/// Those that need the ingress with Arti as well.
pub(super) const WITH_ARTI: &[Test] =
    &[Test { binary: "effort", name: "arti_asks_for_more_while_clients_who_paid_wait" }];

/// Whether a binary is one of these.
pub(super) fn is_one(binary: &Binary) -> bool {
    FIRST.iter().chain(WITH_ARTI).any(|test| test.binary == binary.name)
}

/// The processes of these tests. Dropping this ends those that run still.
pub(super) struct Running {
    processes: Vec<Process>,
    logs: PathBuf,
    began: Instant,
}

impl Running {
    /// None yet.
    ///
    /// # Errors
    /// When the folder of their logs cannot be made.
    pub(super) fn none(root: &Path) -> Result<Self> {
        Ok(Self { processes: Vec::new(), logs: binary::logs(root, "long")?, began: Instant::now() })
    }

    /// Starts some.
    ///
    /// # Errors
    /// When one of them is not among the binaries.
    pub(super) fn start(&mut self, binaries: &[Binary], tests: &[Test]) -> Result<()> {
        for test in tests {
            let binary = binaries
                .iter()
                .find(|binary| binary.name == test.binary)
                .with_context(|| format!("`{}` is no test binary of this workspace", test.binary))?;
            let process = binary.start(&["--exact", test.name], &self.logs)?;
            println!(
                "{} runs beside everything else (pid {}, {})",
                test.binary,
                process.id(),
                process.log.display()
            );
            self.processes.push(process);
        }
        Ok(())
    }

    /// Waits for their ends, shows what they said, and returns their closing lines, added up.
    ///
    /// # Errors
    /// Names those that failed.
    pub(super) fn finish(self) -> Result<Sum> {
        let mut sum = Sum::default();
        let mut failed = Vec::new();
        for process in self.processes {
            let name = process.name.clone();
            let outcome = process.finish()?;
            println!("{}", outcome.said);
            sum = sum.and(outcome.sum);
            if !outcome.is_good || outcome.sum.passed != 1 {
                failed.push(name);
            }
        }
        println!("The last of them ended {} s after the first began.", self.began.elapsed().as_secs());
        if !failed.is_empty() {
            bail!("these failed, or did not run: {}", failed.join(", "));
        }
        Ok(sum)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::workspace;

    #[test]
    fn each_is_the_only_test_of_its_binary_and_slow() {
        let folder = workspace::root().unwrap().join("tests/tests");
        for test in FIRST.iter().chain(WITH_ARTI) {
            let text = fs::read_to_string(folder.join(format!("{}.rs", test.binary))).unwrap();
            assert_eq!(text.matches("#[test]").count(), 1, "{test:?}");
            assert!(text.contains(&format!("fn {}()", test.name)), "{test:?}");
            assert!(super::super::SLOW.contains(&test.binary), "{test:?}");
        }
    }
}
