//! Another process in this one's place, with the same sockets: for another configuration or another version, while streams go
//! on. The next one serves before this one takes nothing more, so no stream waits for the end of another.

use std::{
    env,
    io::{self, Write as _},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use thiserror::Error;
use tokio::{io::AsyncReadExt as _, net::unix::pipe::Receiver, time::timeout};

/// The line that a successor writes to its standard output, on which nothing else is said, once each of its workers listens.
const SERVES: &[u8] = b"serves\n";
/// How long it may take until then. What may take long, such as Arti's way into the Tor network, comes after it.
const PATIENCE: Duration = Duration::from_secs(60);

/// A process that serves from the same sockets.
#[derive(Debug)]
pub struct Successor {
    /// Its number.
    pub pid: u32,
}

/// Why there is none; whoever asked for it serves on.
#[derive(Debug, Error)]
pub enum SuccessionError {
    /// It cannot be started.
    #[error("it cannot be started ({0})")]
    Start(#[source] io::Error),
    /// It ended before it served.
    #[error("it ended with {0}; its log says why")]
    Ended(ExitStatus),
    /// It did not say that it serves in time.
    #[error("it did not serve within {} s, and was ended", PATIENCE.as_secs())]
    Silent,
}

/// What is to be started.
#[derive(Debug)]
pub struct Succession {
    program: PathBuf,
    config: PathBuf,
}

impl Succession {
    /// The program by the name that this process was started by, which after an update is the new one.
    ///
    /// # Errors
    /// If this process' own program cannot be found out.
    pub fn new(config: &Path) -> io::Result<Self> {
        let named = env::args_os().next().map(PathBuf::from).filter(|program| program.is_absolute());
        let program = named.map_or_else(env::current_exe, Ok)?;
        Ok(Self { program, config: config.to_owned() })
    }

    /// Starts a process that shares `sockets`, and returns once it serves.
    ///
    /// # Errors
    /// [`SuccessionError`]; then there is no other process.
    pub async fn begin(&self, sockets: &[OwnedFd]) -> Result<Successor, SuccessionError> {
        let mut child = self.start(sockets)?;
        let said = match child.stdout.take() {
            Some(stdout) => timeout(PATIENCE, is_said(stdout.into())).await,
            None => Ok(Ok(false)),
        };
        let is_silent = said.is_err();
        if let Ok(Ok(true)) = said {
            // It outlives this process, and then is systemd's, or whoever else waits for those that nobody waits for.
            return Ok(Successor { pid: child.id() });
        }
        // It has ended, or is ended now.
        let _ = child.kill();
        let status = child.wait().map_err(SuccessionError::Start)?;
        Err(if is_silent { SuccessionError::Silent } else { SuccessionError::Ended(status) })
    }

    fn start(&self, sockets: &[OwnedFd]) -> Result<Child, SuccessionError> {
        let mut command = Command::new(&self.program);
        command.arg("--config").arg(&self.config);
        command.arg("--sockets").arg(sockets.len().to_string()).arg("--succeeds");
        // What systemd says of this process is not true of that one.
        for variable in ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID"] {
            command.env_remove(variable);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        tunica_systemd::hand_over(&mut command, sockets).map_err(SuccessionError::Start)?;
        command.spawn().map_err(SuccessionError::Start)
    }
}

async fn is_said(stdout: OwnedFd) -> io::Result<bool> {
    let mut said = [0; SERVES.len()];
    match Receiver::from_owned_fd(stdout)?.read_exact(&mut said).await {
        Ok(_) => Ok(said == SERVES),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Tells the process that started this one that this one serves.
///
/// # Errors
/// The kernel's: that one has ended.
pub fn say_that_it_serves() -> io::Result<()> {
    let mut stdout = io::stdout();
    stdout.write_all(SERVES)?;
    stdout.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn succession(program: &str) -> Succession {
        Succession { program: program.into(), config: PathBuf::new() }
    }

    #[tokio::test]
    async fn who_ends_or_says_something_else_is_no_successor() {
        let missing = succession("/nonexistent/front").begin(&[]).await;
        assert!(matches!(missing, Err(SuccessionError::Start(_))), "{missing:?}");
        let silent = succession("/bin/true").begin(&[]).await;
        assert!(matches!(silent, Err(SuccessionError::Ended(_))), "{silent:?}");
        // It repeats its arguments.
        let other = succession("/bin/echo").begin(&[]).await;
        assert!(matches!(other, Err(SuccessionError::Ended(_))), "{other:?}");
    }
}
