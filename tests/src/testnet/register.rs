//! Which processes belong to a network: a line for each, by name, pid and the moment at which it started.
//!
//! A pid alone may have gone to somebody else's process; with the start time it names one process for as long as the machine
//! runs (proc_pid_stat(5), field 22).

use std::{
    fs,
    io::{self, Write as _},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::sys;

/// The file, in the network's folder.
const FILE: &str = "processes";

/// How long a process may take to end when it was asked to.
const PATIENCE: Duration = Duration::from_secs(20);

/// A process of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name in the network, such as `relay3`; one that was started again has several entries.
    pub name: String,
    /// Its pid.
    pub pid: u32,
    /// When it started, in the kernel's ticks since boot.
    start: u64,
}

impl Entry {
    fn of(name: &str, pid: u32) -> Result<Self> {
        let start = start_of(pid).with_context(|| format!("{name} (pid {pid}) has ended already"))?;
        Ok(Self { name: name.to_owned(), pid, start })
    }

    /// Whether this very process still runs.
    pub fn is_alive(&self) -> bool {
        start_of(self.pid) == Some(self.start)
    }

    /// Sends the process a signal; it is no error if it has ended.
    fn signal(&self, signal: Signal) -> Result<()> {
        let send = || -> io::Result<()> {
            let process = sys::open_process(self.pid)?;
            // Looked at after opening: what is open now cannot become another process.
            if self.is_alive() { sys::signal_process(process.as_fd(), signal) } else { Ok(()) }
        };
        match send() {
            Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
                Err(error).with_context(|| format!("sending {signal} to {} (pid {})", self.name, self.pid))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// When the process started, or `None` if it has ended.
fn start_of(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
    // The name in parentheses may hold blanks and parentheses.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// See the module.
#[derive(Debug)]
pub(super) struct Register {
    path: PathBuf,
}

impl Register {
    /// The register in `folder`.
    pub(super) fn new(folder: &Path) -> Self {
        Self { path: folder.join(FILE) }
    }

    /// Adds a process that runs.
    ///
    /// # Errors
    /// If it has ended, or the file cannot be written.
    pub(super) fn add(&self, name: &str, pid: u32) -> Result<()> {
        let entry = Entry::of(name, pid)?;
        let mut file = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.path)
            .with_context(|| format!("opening {}", self.path.display()))?;
        // One write, so that whoever reads meanwhile sees whole lines.
        file.write_all(format!("{} {} {}\n", entry.name, entry.pid, entry.start).as_bytes())
            .with_context(|| format!("writing {}", self.path.display()))
    }
}

/// All processes that ever belonged to the network in `folder`, in the order in which they were started; none if there is no
/// register.
///
/// # Errors
/// If the register cannot be read, or holds something else.
pub fn entries(folder: &Path) -> Result<Vec<Entry>> {
    let path = folder.join(FILE);
    let text = match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => read.with_context(|| format!("reading {}", path.display()))?,
    };
    let parse = |line: &str| {
        let mut words = line.split(' ');
        let (name, pid, start) = (words.next()?, words.next()?, words.next()?);
        Some(Entry { name: name.to_owned(), pid: pid.parse().ok()?, start: start.parse().ok()? })
    };
    text.lines().map(|line| parse(line).with_context(|| format!("{}: {line}", path.display()))).collect()
}

/// Ends these processes, and no other: asks them to end, and kills those that do not.
///
/// # Errors
/// Names those that do not end.
pub fn end(entries: &[Entry]) -> Result<()> {
    let alive = || entries.iter().filter(|entry| entry.is_alive());
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        for entry in alive() {
            entry.signal(signal)?;
        }
        let deadline = Instant::now() + PATIENCE;
        while alive().next().is_some() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
        }
    }
    let left: Vec<String> = alive().map(|entry| format!("{} (pid {})", entry.name, entry.pid)).collect();
    if !left.is_empty() {
        bail!("these processes do not end: {}", left.join(", "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_pid_that_went_to_another_process_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        Register::new(folder.path()).add("sleeper", child.id()).unwrap();
        let [entry] = entries(folder.path()).unwrap().try_into().unwrap();
        assert!(entry.is_alive());

        let other = Entry { start: entry.start + 1, ..entry.clone() };
        assert!(!other.is_alive());
        other.signal(Signal::SIGKILL).unwrap();
        end(&[other]).unwrap();
        assert!(entry.is_alive() && child.try_wait().unwrap().is_none());

        entry.signal(Signal::SIGKILL).unwrap();
        child.wait().unwrap();
        assert!(!entry.is_alive());
        end(&[entry]).unwrap();
    }

    #[test]
    fn a_folder_without_a_register_has_no_processes() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(entries(folder.path()).unwrap(), []);
    }
}
