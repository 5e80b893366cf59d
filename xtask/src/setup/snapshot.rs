//! What setup must leave as it was: apt's sources, running services, kernel settings.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

/// Kernel settings that are readings or that the kernel itself moves, so that a difference means nothing.
const VOLATILE: &[&str] = &[
    "fs/aio-nr",
    "fs/dentry-state",
    "fs/file-nr",
    "fs/inode-nr",
    "fs/inode-state",
    "fs/quota/",
    "kernel/cap_last_cap",
    "kernel/hung_task_detect_count",
    "kernel/ns_last_pid",
    "kernel/perf_event_max_sample_rate",
    "kernel/pty/nr",
    "kernel/random/",
    "kernel/sched_domain/",
    "kernel/tainted",
    "net/netfilter/nf_conntrack_count",
];

/// How long a difference in running processes must last: programs of other people come and go at any moment.
const SETTLE: Duration = Duration::from_secs(5);

/// The machine's state that setup promises to leave alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Snapshot {
    apt_sources: BTreeMap<PathBuf, String>,
    services: BTreeSet<String>,
    settings: BTreeMap<String, String>,
}

impl Snapshot {
    /// Reads the machine's state.
    ///
    /// # Errors
    /// When `/etc/apt` or `/proc` cannot be read.
    pub(crate) fn take() -> Result<Self> {
        Ok(Self {
            apt_sources: hashes_of(Path::new("/etc/apt"))?,
            services: services(Path::new("/proc"))?,
            settings: settings(Path::new("/proc/sys"))?,
        })
    }

    /// Every difference between this state and a later one, as sentences.
    fn differences(&self, later: &Self) -> Vec<String> {
        let mut found = Vec::new();
        let files: BTreeSet<_> = self.apt_sources.keys().chain(later.apt_sources.keys()).collect();
        for file in files {
            if self.apt_sources.get(file) != later.apt_sources.get(file) {
                found.push(format!("apt's configuration changed: {}", file.display()));
            }
        }
        for service in later.services.difference(&self.services) {
            found.push(format!("a service was started: {service}"));
        }
        for service in self.services.difference(&later.services) {
            found.push(format!("a service was stopped: {service}"));
        }
        // A setting that only one side has belongs to an interface or module that came or went.
        for (name, was) in &self.settings {
            if let Some(is) = later.settings.get(name).filter(|is| *is != was) {
                found.push(format!("a kernel setting changed: {name} was {was:?} and is {is:?}"));
            }
        }
        found
    }

    /// Compares the machine with this earlier state.
    ///
    /// # Errors
    /// Names every difference that lasts.
    pub(crate) fn verify(&self) -> Result<()> {
        let mut differences = self.differences(&Self::take()?);
        if !differences.is_empty() {
            thread::sleep(SETTLE);
            let still = self.differences(&Self::take()?);
            differences.retain(|difference| still.contains(difference));
        }
        if !differences.is_empty() {
            bail!("setup promised to leave these as they were:\n  {}", differences.join("\n  "));
        }
        Ok(())
    }
}

/// The checksum of every file below `folder`; none where the folder does not exist.
fn hashes_of(folder: &Path) -> Result<BTreeMap<PathBuf, String>> {
    let mut hashes = BTreeMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        if !folder.is_dir() {
            continue;
        }
        let entries = fs::read_dir(&folder).with_context(|| format!("listing {}", folder.display()))?;
        for entry in entries {
            let path = entry.with_context(|| format!("listing {}", folder.display()))?.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                // A file that only root may read (credentials) stands in the list by its name.
                let hash = fs::read(&path).map(|bytes| hex(&Sha256::digest(bytes)));
                hashes.insert(path, hash.unwrap_or_default());
            }
        }
    }
    Ok(hashes)
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The programs of running services: those without a terminal whose parent is process 1.
///
/// What a terminal, a shell or a build started has another parent, so it is no service.
fn services(proc: &Path) -> Result<BTreeSet<String>> {
    let mut services = BTreeSet::new();
    for entry in fs::read_dir(proc).with_context(|| format!("listing {}", proc.display()))? {
        // A process may end while it is looked at; then it is no running service.
        let Ok(entry) = entry else { continue };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        if let Some(service) = service_of(&stat) {
            services.insert(service.to_owned());
        }
    }
    Ok(services)
}

/// The program's name if this line of `/proc/PID/stat` (see `proc_pid_stat(5)`) is a service's.
fn service_of(stat: &str) -> Option<&str> {
    let (head, tail) = stat.rsplit_once(')')?;
    let (_, name) = head.split_once('(')?;
    let mut fields = tail.split_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?;
    let (_group, _session) = (fields.next()?, fields.next()?);
    let terminal = fields.next()?;
    (parent == "1" && terminal == "0" && state != "Z").then_some(name)
}

/// Every readable kernel setting below `root` that does not move by itself.
fn settings(root: &Path) -> Result<BTreeMap<String, String>> {
    let mut settings = BTreeMap::new();
    for part in ["fs", "kernel", "net", "vm"] {
        let mut folders = vec![root.join(part)];
        while let Some(folder) = folders.pop() {
            // An interface's folder may vanish while it is looked at.
            let Ok(entries) = fs::read_dir(&folder) else { continue };
            for path in entries.filter_map(|entry| entry.ok().map(|entry| entry.path())) {
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let name =
                    path.strip_prefix(root).context("a setting outside /proc/sys")?.display().to_string();
                if VOLATILE.iter().any(|volatile| name.starts_with(volatile)) {
                    continue;
                }
                if let Ok(value) = fs::read_to_string(&path) {
                    settings.insert(name, value.trim().to_owned());
                }
            }
        }
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot() -> Snapshot {
        Snapshot {
            apt_sources: [(PathBuf::from("/etc/apt/sources.list"), "aa".to_owned())].into(),
            services: ["cron".to_owned()].into(),
            settings: [
                ("net/ipv4/tcp_syncookies".to_owned(), "1".to_owned()),
                ("net/ipv4/conf/veth0/forwarding".to_owned(), "0".to_owned()),
            ]
            .into(),
        }
    }

    #[test]
    fn each_kind_of_difference_is_named() {
        let mut later = snapshot();
        later.apt_sources.insert(PathBuf::from("/etc/apt/sources.list.d/new.list"), "bb".to_owned());
        later.services = ["tor".to_owned()].into();
        later.settings.insert("net/ipv4/tcp_syncookies".to_owned(), "2".to_owned());
        assert_eq!(
            snapshot().differences(&later),
            [
                "apt's configuration changed: /etc/apt/sources.list.d/new.list",
                "a service was started: tor",
                "a service was stopped: cron",
                "a kernel setting changed: net/ipv4/tcp_syncookies was \"1\" and is \"2\"",
            ]
        );
    }

    #[test]
    fn a_changed_file_is_seen_and_an_interface_that_left_is_not() {
        let mut later = snapshot();
        later.apt_sources.insert(PathBuf::from("/etc/apt/sources.list"), "ab".to_owned());
        later.settings.remove("net/ipv4/conf/veth0/forwarding");
        assert_eq!(snapshot().differences(&later), ["apt's configuration changed: /etc/apt/sources.list"]);
    }

    #[test]
    fn a_service_has_process_1_as_parent_and_no_terminal() {
        assert_eq!(service_of("77 (tor) S 1 77 77 0 -1 4194560"), Some("tor"));
        assert_eq!(service_of("77 (a) (b) S 1 77 77 0 -1 4194560"), Some("a) (b"));
        assert_eq!(service_of("77 (bash) S 1 77 77 34816 -1 4194560"), None);
        assert_eq!(service_of("77 (cc1) R 76 77 77 0 -1 4194560"), None);
        assert_eq!(service_of("77 (gone) Z 1 77 77 0 -1 4194560"), None);
    }

    #[test]
    fn this_machine_can_be_read() {
        let snapshot = Snapshot::take().unwrap();
        assert!(snapshot.settings.contains_key("net/ipv4/tcp_syncookies"));
        assert!(snapshot.settings.keys().all(|name| !name.contains("random/")));
    }
}
