//! One tor process: its folder, its configuration, its start, its end and its log.

use std::{
    fs,
    os::unix::fs::DirBuilderExt as _,
    path::PathBuf,
    process::{Child, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    control::{Authentication, Control, ControlAddress},
    ground::{Ground, run},
    ports::Port,
};

/// How long anything of a network may take. Nothing is measured by it.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);

/// How long tor may take to end when it was asked to; then it is killed.
const FAREWELL: Duration = Duration::from_secs(10);

/// Lines of a log that an error shows.
const LAST_LINES: usize = 12;

/// See the module.
#[derive(Debug)]
pub(super) struct Node {
    /// Its name, which is its folder's as well.
    pub(super) name: String,
    pub(super) ground: Arc<Ground>,
    authentication: Authentication,
    child: Option<Child>,
}

impl Node {
    /// Makes the folder. Nothing runs yet.
    ///
    /// # Errors
    /// If the folder cannot be made.
    pub(super) fn new(ground: &Arc<Ground>, name: String, authentication: Authentication) -> Result<Self> {
        let node = Self { name, ground: Arc::clone(ground), authentication, child: None };
        for folder in [node.path(""), node.path("data"), node.path("data/keys")] {
            fs::DirBuilder::new()
                .mode(0o700)
                .create(&folder)
                .with_context(|| format!("making {}", folder.display()))?;
        }
        Ok(node)
    }

    /// A file or folder of the node.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.ground.path(&self.name).join(name)
    }

    /// Where it is commanded.
    pub(super) fn control_address(&self) -> ControlAddress {
        ControlAddress {
            socket: self.path("control"),
            authentication: self.authentication.clone(),
            cookie: self.path("data/control_auth_cookie"),
        }
    }

    /// The lines of `torrc` that every node has.
    ///
    /// # Errors
    /// If tor does not hash the password.
    fn common_lines(&self) -> Result<String> {
        let authentication = match &self.authentication {
            Authentication::None => "CookieAuthentication 0".to_owned(),
            Authentication::Cookie => "CookieAuthentication 1".to_owned(),
            Authentication::Password(password) => {
                let mut tor = self.ground.tor();
                tor.args(["--quiet", "--hash-password", password]);
                let output = run(tor, b"").context("hashing the password")?;
                let hash = String::from_utf8_lossy(&output.stdout).trim().to_owned();
                ensure!(!hash.is_empty(), "tor's hash of the password is empty");
                format!("CookieAuthentication 0\nHashedControlPassword {hash}")
            }
        };
        // The kernel sends nothing from 127.0.0.1 to another machine: that is what OutboundBindAddress is for here.
        Ok(format!(
            "TestingTorNetwork 1\n\
             PathsNeededToBuildCircuits 0.67\n\
             UseDefaultFallbackDirs 0\n\
             Address 127.0.0.1\n\
             AddressDisableIPv6 1\n\
             OutboundBindAddress 127.0.0.1\n\
             DataDirectory {data}\n\
             ControlSocket {control}\n\
             {authentication}\n\
             Log notice file {log}\n\
             LogTimeGranularity 1\n\
             SafeLogging 0\n\
             ProtocolWarnings 1\n\
             ShutdownWaitLength 1\n\
             __OwningControllerProcess {owner}\n",
            data = self.path("data").display(),
            control = self.path("control").display(),
            log = self.path("notice.log").display(),
            owner = std::process::id(),
        ))
    }

    /// Writes `torrc`: the lines that every node has, and these.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(super) fn configure(&self, lines: &str) -> Result<()> {
        let path = self.path("torrc");
        fs::write(&path, self.common_lines()? + lines).with_context(|| format!("writing {}", path.display()))
    }

    /// Starts the process, which takes the ports over.
    ///
    /// # Errors
    /// If it cannot be started.
    pub(super) fn start<'a>(&mut self, ports: impl IntoIterator<Item = &'a mut Port>) -> Result<()> {
        let mut log = fs::OpenOptions::new();
        let log = log.create(true).append(true).open(self.path("output.log"))?;
        let mut command = self.ground.tor();
        // Debian's own defaults are those of its service.
        command.args(["--hush", "--defaults-torrc", "/dev/null", "-f"]).arg(self.path("torrc"));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        ports.into_iter().for_each(Port::release);
        self.child = Some(self.ground.spawn(&self.name, command)?);
        Ok(())
    }

    /// The pid, while a process runs.
    pub(super) fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Connects to the control socket as soon as tor listens there.
    ///
    /// # Errors
    /// If tor ends before, or does not listen; the end of its log is in the message.
    pub(super) fn control(&mut self) -> Result<Control> {
        let address = self.control_address();
        self.wait("its control socket", |_| Ok(address.connect().ok()))
    }

    /// Waits until `look` finds what it looks for.
    ///
    /// # Errors
    /// The last error of `look` if nothing is found, or that tor ended; the end of its log is in the message.
    pub(super) fn wait<Found>(
        &mut self,
        what: &str,
        mut look: impl FnMut(&Self) -> Result<Option<Found>>,
    ) -> Result<Found> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let looked = look(self);
            if let Ok(Some(found)) = looked {
                return Ok(found);
            }
            let ended = self.child.as_mut().map_or(Ok(None), Child::try_wait)?;
            let problem = match (ended, self.child.is_some()) {
                (Some(status), _) => format!("its tor ended with {status}"),
                (None, false) => "its tor was not started".to_owned(),
                (None, true) if Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(100));
                    continue;
                }
                (None, true) => "that did not come".to_owned(),
            };
            let error = looked.err().map(|error| format!(": {error:#}")).unwrap_or_default();
            return Err(self.failure(&format!("waiting for {what}: {problem}{error}")));
        }
    }

    /// An error that names the node and shows the end of its log; the network's logs will be kept.
    pub(super) fn failure(&self, problem: &str) -> anyhow::Error {
        self.ground.keep();
        let mut log = fs::read_to_string(self.path("output.log")).unwrap_or_default();
        log.push_str(&fs::read_to_string(self.path("notice.log")).unwrap_or_default());
        let lines: Vec<&str> = log.lines().collect();
        let last = lines.get(lines.len().saturating_sub(LAST_LINES)..).unwrap_or_default().join("\n  ");
        anyhow::anyhow!("{} of the private Tor network: {problem}; its log ends:\n  {last}", self.name)
    }

    /// Asks the process to end; [`Node::end`] waits for it.
    pub(super) fn ask_to_end(&self) {
        // A child that was not waited for keeps its pid.
        if let Some(pid) = self.pid().and_then(|pid| i32::try_from(pid).ok()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
    }

    /// Ends the process.
    pub(super) fn end(&mut self) {
        self.ask_to_end();
        let Some(mut child) = self.child.take() else { return };
        let deadline = Instant::now() + FAREWELL;
        while matches!(child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                let _ = child.kill();
                let _ = child.wait();
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if thread::panicking() {
            self.ground.keep();
        }
        self.end();
    }
}

/// Waits until tor can build circuits of its own.
///
/// # Errors
/// If that does not come; the end of its log is in the message.
pub(super) fn wait_for_bootstrap(node: &mut Node) -> Result<Control> {
    let mut control = node.control()?;
    node.wait("a client's first circuit", |_| {
        let phase = control.information("status/bootstrap-phase")?;
        Ok(phase.contains("PROGRESS=100").then_some(()))
    })?;
    Ok(control)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_does_not_start_is_named_with_its_log_which_is_kept() {
        let ground = Arc::new(Ground::temporary().unwrap());
        let folder = ground.path("");
        let mut node = Node::new(&ground, "odd".to_owned(), Authentication::None).unwrap();
        node.configure("NoSuchOption 1\n").unwrap();
        node.start([]).unwrap();
        let error = node.control().unwrap_err().to_string();
        assert!(
            error.starts_with("odd of the private Tor network: waiting for its control socket: "),
            "{error}"
        );
        assert!(error.contains("its tor ended with exit status: 1"), "{error}");
        assert!(error.contains("Unknown option 'NoSuchOption'"), "{error}");

        drop((node, ground));
        let kept = folder.to_str().unwrap().replacen("testnet-", "testnet-failed-", 1);
        assert!(!folder.exists());
        let log = fs::read_to_string(PathBuf::from(&kept).join("odd/output.log")).unwrap();
        assert!(log.contains("NoSuchOption"), "{log}");
        fs::remove_dir_all(kept).unwrap();
    }
}
