//! Network namespaces with names that say whose they are: `tunica-PURPOSE-PID-ROLE`.
//!
//! Whatever is left behind by a process that died can be found by its pid and removed, so nothing here depends on
//! destructors having run. Commands run through `nsenter --net=`, because `ip netns exec` mounts a new `/sys`, in which
//! bpffs is missing.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    sched::{CloneFlags, setns},
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, waitpid},
    },
    unistd::Pid,
};

/// Where `ip netns` keeps namespaces (ip-netns(8)).
const FOLDER: &str = "/run/netns";

/// How long processes in a namespace have to end after SIGTERM, and again after SIGKILL.
const PATIENCE: Duration = Duration::from_secs(5);

/// A network namespace, removed on drop. Copies of the handle are names only.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes the namespace `tunica-PURPOSE-PID-ROLE` of this process, with loopback up and IPv6 off.
    ///
    /// IPv6 is off because its router solicitations would be counted among the packets of a test.
    ///
    /// # Errors
    /// Says which command failed.
    pub fn create(purpose: &str, role: &str) -> Result<Self> {
        let name = format!("{}{role}", prefix(purpose, std::process::id()));
        run(Command::new("ip").args(["netns", "add", &name]))?;
        let namespace = Self { name };
        for scope in ["all", "default"] {
            namespace.write_sysctl(&format!("net/ipv6/conf/{scope}/disable_ipv6"), "1")?;
        }
        namespace.ip(&["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// The name, as `ip netns` shows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that holds the namespace.
    pub fn path(&self) -> PathBuf {
        Path::new(FOLDER).join(&self.name)
    }

    /// A command that runs `program` inside.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }

    /// Runs `ip -n NAME …`.
    ///
    /// # Errors
    /// With what the command said.
    pub fn ip(&self, arguments: &[&str]) -> Result<()> {
        run(Command::new("ip").args(["-n", &self.name]).args(arguments))
    }

    /// Runs `act` inside, on a thread of its own, and waits for it.
    ///
    /// # Errors
    /// Those of entering the namespace and of `act`.
    pub fn run<T: Send>(&self, act: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let path = self.path();
        thread::scope(|scope| {
            let thread = scope.spawn(move || {
                enter(&path)?;
                act()
            });
            match thread.join() {
                Ok(result) => result,
                Err(_) => bail!("a thread in namespace {} panicked", self.name),
            }
        })
    }

    /// Starts a thread that does `act` inside.
    ///
    /// # Errors
    /// When no thread can be started. Failure to enter the namespace is the thread's result.
    pub fn spawn<T: Send + 'static>(
        &self,
        name: &str,
        act: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<thread::JoinHandle<Result<T>>> {
        let path = self.path();
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                enter(&path)?;
                act()
            })
            .with_context(|| format!("starting the thread {name}"))
    }

    /// Writes a sysctl of this namespace; `key` is a path below `/proc/sys`, such as `net/ipv4/tcp_syncookies`.
    ///
    /// # Errors
    /// Names the key.
    pub fn write_sysctl(&self, key: &str, value: &str) -> Result<()> {
        self.run(|| {
            fs::write(Path::new("/proc/sys").join(key), value)
                .with_context(|| format!("writing {key}={value}"))
        })
    }

    /// Reads a sysctl of this namespace.
    ///
    /// # Errors
    /// Names the key.
    pub fn read_sysctl(&self, key: &str) -> Result<String> {
        self.run(|| {
            let text = fs::read_to_string(Path::new("/proc/sys").join(key));
            Ok(text.with_context(|| format!("reading {key}"))?.trim().to_owned())
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Whoever made the namespace checks that it is gone and reports it there.
        let _ = remove(&self.name);
    }
}

/// One end of a veth pair.
#[derive(Clone, Copy, Debug)]
pub struct End<'a> {
    /// Where the end is.
    pub namespace: &'a Namespace,
    /// The interface's name there.
    pub interface: &'a str,
    /// Its link-layer address.
    pub mac: [u8; 6],
    /// Its address with prefix length, such as `10.0.0.1/24`.
    pub address: &'a str,
}

/// Joins two namespaces by a veth pair and sets both ends up.
///
/// # Errors
/// With what the failing command said.
pub fn join(one: End<'_>, other: End<'_>) -> Result<()> {
    let (mac, peer_mac) = (mac_text(one.mac), mac_text(other.mac));
    let peer = other.namespace.name();
    one.namespace.ip(&[
        "link",
        "add",
        one.interface,
        "address",
        &mac,
        "type",
        "veth",
        "peer",
        "name",
        other.interface,
        "address",
        &peer_mac,
        "netns",
        peer,
    ])?;
    for end in [one, other] {
        end.namespace.ip(&["address", "add", end.address, "dev", end.interface])?;
        end.namespace.ip(&["link", "set", end.interface, "up"])?;
    }
    Ok(())
}

/// A link-layer address as `ip` writes it.
pub fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Names of the namespaces that process `owner` made for `purpose`.
///
/// # Errors
/// When the folder of namespaces cannot be read; that it is missing only means that there are none.
pub fn of(purpose: &str, owner: u32) -> Result<Vec<String>> {
    let prefix = prefix(purpose, owner);
    Ok(names()?.into_iter().filter(|name| name.starts_with(&prefix)).collect())
}

/// Pids of processes that made namespaces for `purpose` and are dead.
///
/// # Errors
/// As [`of`].
pub fn dead_owners(purpose: &str) -> Result<BTreeSet<u32>> {
    let prefix = format!("tunica-{purpose}-");
    let owner = |name: &String| name.strip_prefix(&prefix)?.split('-').next()?.parse::<u32>().ok();
    Ok(names()?.iter().filter_map(owner).filter(|pid| !is_alive(*pid)).collect())
}

/// Whether a process has this pid.
pub fn is_alive(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

/// Ends the processes in the namespace and removes it.
///
/// # Errors
/// When a process does not end, or with what `ip` said.
pub fn remove(name: &str) -> Result<()> {
    end_processes(name)?;
    if Path::new(FOLDER).join(name).exists() {
        run(Command::new("ip").args(["netns", "delete", name]))?;
    }
    Ok(())
}

/// Pids of the processes whose main thread is in the namespace.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn processes(name: &str) -> Result<Vec<i32>> {
    // A namespace is known by device and inode of its file (namespaces(7)).
    let Ok(namespace) = fs::metadata(Path::new(FOLDER).join(name)) else {
        return Ok(Vec::new());
    };
    let mut inside = Vec::new();
    for entry in fs::read_dir("/proc").context("reading /proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|text| text.parse().ok()) else {
            continue;
        };
        let is_inside = fs::metadata(entry.path().join("ns/net"))
            .is_ok_and(|own| own.dev() == namespace.dev() && own.ino() == namespace.ino());
        if is_inside {
            inside.push(pid);
        }
    }
    Ok(inside)
}

/// Ends the processes in the namespace, which stays.
///
/// # Errors
/// When one does not end.
pub fn end_processes(name: &str) -> Result<()> {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        for pid in processes(name)? {
            match kill(Pid::from_raw(pid), signal) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => return Err(error).with_context(|| format!("ending process {pid} in {name}")),
            }
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = processes(name)?;
            if left.is_empty() {
                return Ok(());
            }
            for pid in left {
                // Only a child of ours can be waited for; of any other the kernel takes care.
                let _ = waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG));
            }
            if Instant::now() > deadline {
                break;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
    bail!("processes {:?} in namespace {name} do not end", processes(name)?)
}

fn prefix(purpose: &str, owner: u32) -> String {
    format!("tunica-{purpose}-{owner}-")
}

fn names() -> Result<Vec<String>> {
    if !Path::new(FOLDER).exists() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(FOLDER).with_context(|| format!("reading {FOLDER}"))?;
    Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
}

fn enter(path: &Path) -> Result<()> {
    let file = fs::File::open(path).with_context(|| format!("opening {}", path.display()))?;
    setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("entering {}", path.display()))
}

fn run(command: &mut Command) -> Result<()> {
    let line = format!("{command:?}").replace('"', "");
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("starting `{line}`"))?;
    if !output.status.success() {
        bail!("`{line}` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
