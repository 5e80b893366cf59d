//! The ingress beside a lab's daemon, by the same configuration file.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result};

use crate::{armed::program, lab::Lab, sys::end_with_parent};

/// A running `tunica-front`; it is killed when this is dropped.
#[derive(Debug)]
pub struct Beside(Child);

impl Beside {
    /// Where the test itself is, as is the private Tor network.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(lab: &Lab) -> Result<Self> {
        Self::run(lab, Command::new(program("tunica-front")?))
    }

    /// On the lab's host, as is the daemon.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start_on_host(lab: &Lab) -> Result<Self> {
        let program = program("tunica-front")?;
        Self::run(lab, lab.host.command(Path::new(&program)))
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    fn run(lab: &Lab, mut command: Command) -> Result<Self> {
        let log = fs::File::create(lab.path("front.log"))?;
        command.arg("--config").arg(lab.path("tunica.toml")).stdin(Stdio::null());
        command.stdout(log.try_clone()?).stderr(log);
        Ok(Self(end_with_parent(&mut command).spawn().context("starting the ingress")?))
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
