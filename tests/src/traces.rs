//! What a run leaves on the machine, and its removal: namespaces, pins, a folder, all named after a process.
//!
//! Everything is found by name, so a run can be cleaned up by itself, by its panic hook, or by the next run.

use std::{collections::BTreeSet, env, fs, io, path::PathBuf, process};

use anyhow::{Context, Result, bail};

use crate::netns;

/// Where the kernel's BPF file system is mounted.
const BPFFS: &str = "/sys/fs/bpf";

/// The traces of one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traces {
    purpose: &'static str,
    pid: u32,
}

impl Traces {
    /// Those of this process.
    pub fn own(purpose: &'static str) -> Self {
        Self { purpose, pid: process::id() }
    }

    /// Those of another process.
    pub const fn of(purpose: &'static str, pid: u32) -> Self {
        Self { purpose, pid }
    }

    /// Those of every process that worked for `purpose` and is dead.
    ///
    /// # Errors
    /// When a folder cannot be read.
    pub fn of_the_dead(purpose: &'static str) -> Result<Vec<Self>> {
        let mut pids: BTreeSet<u32> = netns::dead_owners(purpose)?;
        let prefix = format!("tunica-{purpose}-");
        for folder in [PathBuf::from(BPFFS), env::temp_dir()] {
            let entries = match fs::read_dir(&folder) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error).with_context(|| format!("reading {}", folder.display())),
            };
            let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
            pids.extend(names.filter_map(|name| name.strip_prefix(&prefix)?.parse::<u32>().ok()));
        }
        Ok(pids.into_iter().filter(|pid| !netns::is_alive(*pid)).map(|pid| Self { purpose, pid }).collect())
    }

    /// The process.
    pub const fn pid(self) -> u32 {
        self.pid
    }

    /// Where the process pins programs and maps.
    pub fn pins(self) -> PathBuf {
        PathBuf::from(BPFFS).join(format!("tunica-{}-{}", self.purpose, self.pid))
    }

    /// Where the process keeps files.
    pub fn folder(self) -> PathBuf {
        env::temp_dir().join(format!("tunica-{}-{}", self.purpose, self.pid))
    }

    /// Ends the processes in the namespaces, then removes pins, namespaces and folder. Goes on after a failure.
    ///
    /// # Errors
    /// Everything that went wrong.
    pub fn remove(self) -> Result<()> {
        let mut problems = Vec::new();
        match netns::of(self.purpose, self.pid) {
            Ok(names) => problems.extend(names.iter().filter_map(|name| netns::remove(name).err())),
            Err(error) => problems.push(error),
        }
        for path in [self.pins(), self.folder()] {
            problems.extend(remove_folder(&path).err());
        }
        if problems.is_empty() {
            return Ok(());
        }
        let problems: Vec<String> = problems.iter().map(|problem| format!("{problem:#}")).collect();
        bail!("cleaning up: {}", problems.join("; "))
    }

    /// What of it is on the machine now.
    ///
    /// # Errors
    /// When that cannot be found out.
    pub fn found(self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for name in netns::of(self.purpose, self.pid)? {
            for pid in netns::processes(&name)? {
                found.push(format!("process {pid} in {name}"));
            }
            found.push(format!("namespace {name}"));
        }
        for path in [self.pins(), self.folder()] {
            if path.exists() {
                found.push(path.display().to_string());
            }
        }
        Ok(found)
    }
}

/// Removes a folder and what is in it; it is no error if there is none.
///
/// # Errors
/// Names the folder.
pub fn remove_folder(path: &std::path::Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("removing {}", path.display())),
    }
}
