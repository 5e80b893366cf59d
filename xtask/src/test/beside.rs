//! Parts of the full run in a process of their own, beside the rest of it.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Stdio},
};

use anyhow::{Context, Result, bail};
use clap::ValueEnum as _;

use super::{Part, binary};
use crate::process;

/// Parts that run. Dropping this waits for them: what cargo started cannot be ended from here, and would go on.
pub(super) struct Parts {
    child: Child,
    log: PathBuf,
}

impl Parts {
    /// Starts them, one after the other.
    ///
    /// # Errors
    /// When their log cannot be made, or they do not start.
    pub(super) fn start(root: &Path, parts: &[Part]) -> Result<Self> {
        let path = binary::logs(root, "beside")?.join("parts.log");
        let log = fs::File::create(&path).with_context(|| format!("making {}", path.display()))?;
        let mut command = process::command_at(process::own_program()?)?;
        command.arg("test").current_dir(root);
        for name in parts.iter().filter_map(Part::to_possible_value) {
            command.args(["--part", name.get_name()]);
        }
        command.stdin(Stdio::null()).stdout(log.try_clone().context("sharing a log")?).stderr(log);
        let child = command.spawn().context("starting this program once more")?;
        println!("Begun beside this: the kernel programs and the ingress with Arti ({})", path.display());
        Ok(Self { child, log: path })
    }

    /// Waits for their end, and shows what they said.
    ///
    /// # Errors
    /// When one of them failed.
    pub(super) fn finish(mut self) -> Result<()> {
        let status = self.child.wait().context("waiting for them")?;
        let said = fs::read(&self.log).with_context(|| format!("reading {}", self.log.display()))?;
        // Where this goes is where the failure is looked for; if it is closed the error still names the part.
        let _ = std::io::stdout().write_all(&said);
        if !status.success() {
            let said = String::from_utf8_lossy(&said);
            bail!("{}", said.lines().next_back().unwrap_or("they ended without a word"));
        }
        Ok(())
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        let _ = self.child.wait();
    }
}
