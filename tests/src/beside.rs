//! The ingress beside a lab's daemon, by the same configuration file.

use std::{
    fs,
    io::Write as _,
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
};

use anyhow::{Context as _, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{armed::program, lab::Lab, sys::end_with_parent};

/// The `tunica-front` that has Arti, which is built beside the others.
///
/// # Errors
/// Says how to build it.
pub fn arti_front() -> Result<PathBuf> {
    built("tunica-front", "arti")
}

/// The same with Arti's proof of work.
fn arti_pow_front() -> Result<PathBuf> {
    built("tunica-front-pow", "arti-pow")
}

fn built(name: &str, feature: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("finding this executable")?;
    let mut places = own.ancestors().skip(1).take(4).map(|folder| folder.join("arti/debug").join(name));
    places.find(|path| path.is_file()).with_context(|| {
        format!(
            "{name} is in no folder `arti/debug` above {}: it is `tunica-front`, built with `cargo build --package tunica-front \
             --features {feature} --target-dir target/arti`, under this name",
            own.display()
        )
    })
}

/// By the umask of tunica-front.service, and a group that is not the account's own, as there: Arti must not feel it.
fn as_the_unit_has_it(front: &Path) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", "umask 0007 && exec \"$0\" \"$@\""]).arg(front).gid(NOBODY);
    command
}

/// The group `nogroup` of Debian.
const NOBODY: u32 = 65_534;

/// A running `tunica-front`; it is killed when this is dropped.
#[derive(Debug)]
pub struct Beside {
    child: Child,
    log: PathBuf,
}

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

    /// On the lab's host, behind a socket that somebody else listens on, as systemd does.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start_behind(lab: &Lab, socket: OwnedFd) -> Result<Self> {
        let mut command = lab.host.command(Path::new("sh"));
        command.args(["-c", "exec 3<&0 </dev/null && exec \"$0\" --sockets 1 \"$@\""]);
        Self::run_with(lab, command.arg(program("tunica-front")?), socket.into())
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where the test itself is, with Arti: it hosts the onion service itself.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start_with_arti(lab: &Lab) -> Result<Self> {
        Self::run(lab, as_the_unit_has_it(&arti_front()?))
    }

    /// The same with Arti's proof of work.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start_with_pow(lab: &Lab) -> Result<Self> {
        Self::run(lab, as_the_unit_has_it(&arti_pow_front()?))
    }

    fn run(lab: &Lab, mut command: Command) -> Result<Self> {
        Self::run_with(lab, &mut command, Stdio::null())
    }

    fn run_with(lab: &Lab, command: &mut Command, input: Stdio) -> Result<Self> {
        // One may begin while another still writes.
        let log = fs::OpenOptions::new().create(true).append(true).open(lab.path("front.log"))?;
        command.arg("--config").arg(lab.path("tunica.toml")).stdin(input);
        command.stdout(log.try_clone()?).stderr(log);
        let child = end_with_parent(command).spawn().context("starting the ingress")?;
        Ok(Self { child, log: lab.path("front.log") })
    }
}

impl Beside {
    /// Sends it a signal.
    ///
    /// # Errors
    /// The kernel's.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.child.id())?), signal)?)
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// The kernel's.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            // Standard error is where a failing test is looked at; if it is closed nothing is lost.
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            let _ = writeln!(std::io::stderr(), "the ingress:\n{log}");
        }
    }
}
