//! What the daemon lives on: room on the ledger's disk, memory of its cgroup, and a clock that is right.
//!
//! Everything is read at the moment somebody asks. What cannot be known is said to be unknown, never taken to be well.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::sys::statvfs::statvfs;

use super::read_trimmed;

/// Events of `memory.events` that are counted (Linux, Documentation/admin-guide/cgroup-v2.rst).
pub const MEMORY_EVENTS: [&str; 4] = ["high", "max", "oom", "oom_kill"];

/// Below this share of free room the disk is low, as the alert TunicaDiskLow has it.
const LOW_DISK_RATIO: f64 = 0.1;
/// Above this share of its limit memory is low, as the alert TunicaMemoryLow has it.
const HIGH_MEMORY_RATIO: f64 = 0.9;
/// A clock that may be further off than this is not to be relied on, as the alert TunicaClockUnsynchronised has it.
const MOST_CLOCK_ERROR: Duration = Duration::from_secs(5);

/// Disk, memory and clock at one moment; `Err` holds why one is unknown.
#[derive(Clone, Debug, PartialEq)]
pub struct Vitals {
    /// The file system of the ledger.
    pub disk: Result<Disk, String>,
    /// The daemon's own cgroup.
    pub memory: Result<Memory, String>,
    /// The wall clock.
    pub clock: Result<Clock, String>,
}

/// Room on a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Bytes that an ordinary process may still write.
    pub free: u64,
    /// Bytes in all.
    pub whole: u64,
}

/// Memory of a cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Bytes in use, the kernel's for its maps included.
    pub current: u64,
    /// Most bytes; `None` where there is no limit.
    pub most: Option<u64>,
    /// How often each of [`MEMORY_EVENTS`] happened since the cgroup was made.
    pub events: [u64; MEMORY_EVENTS.len()],
}

/// How right the wall clock is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// Whether a time service keeps it in step.
    pub is_synchronised: bool,
    /// How far off it may be.
    pub most_error: Duration,
}

/// Something that ought to be known of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Concern {
    /// Of what: `disk`, `memory` or `clock`.
    pub about: &'static str,
    /// What is so, what follows, and what to do.
    pub text: String,
}

impl Disk {
    /// The free share, from 0 to 1.
    pub fn free_ratio(self) -> f64 {
        // Exact to 2^53 bytes, 8 PiB.
        if self.whole == 0 { 0.0 } else { self.free as f64 / self.whole as f64 }
    }
}

impl Memory {
    /// The used share of the limit, from 0 to 1; 0 where there is no limit.
    pub fn used_ratio(self) -> f64 {
        self.most.map_or(0.0, |most| self.current as f64 / most.max(1) as f64)
    }
}

impl Clock {
    /// Whether times that are written down can be relied on.
    pub fn is_reliable(self) -> bool {
        self.is_synchronised && self.most_error <= MOST_CLOCK_ERROR
    }
}

impl Vitals {
    /// As they are now; `ledger` is the ledger's path.
    pub fn read(ledger: &Path) -> Self {
        Self { disk: disk(ledger), memory: memory(Path::new("/proc/self")), clock: clock() }
    }

    /// What is not well, or not known.
    pub fn concerns(&self) -> Vec<Concern> {
        let concerns = [
            ("disk", self.disk_concern()),
            ("memory", self.memory_concern()),
            ("clock", self.clock_concern()),
        ];
        concerns.into_iter().filter_map(|(about, text)| Some(Concern { about, text: text? })).collect()
    }

    /// Why the disk is a concern.
    pub fn disk_concern(&self) -> Option<String> {
        match &self.disk {
            Ok(disk) if disk.free_ratio() >= LOW_DISK_RATIO => None,
            Ok(disk) => Some(format!(
                "disk: {} of the ledger's file system are free; once it is full no ban or allow entry can be kept; \
                 make room there",
                percent(disk.free_ratio())
            )),
            Err(why) => Some(format!(
                "disk: the ledger's file system cannot be looked at ({why}), so nothing warns before it is full; see to \
                 ledger.path"
            )),
        }
    }

    /// Why memory is a concern.
    pub fn memory_concern(&self) -> Option<String> {
        match &self.memory {
            Ok(memory) if memory.used_ratio() <= HIGH_MEMORY_RATIO => None,
            Ok(memory) => Some(format!(
                "memory: tunicad uses {} of what its cgroup may; at the limit the kernel ends it, while the shield stays \
                 attached; raise MemoryMax= with `systemctl edit tunicad`, or make shield.tables smaller",
                percent(memory.used_ratio())
            )),
            Err(why) => Some(format!(
                "memory: {why}, so nothing warns before tunicad runs out of memory; run it by its systemd unit on a host \
                 with cgroup v2"
            )),
        }
    }

    /// Why the clock is a concern.
    pub fn clock_concern(&self) -> Option<String> {
        match &self.clock {
            Ok(clock) if clock.is_reliable() => None,
            Ok(clock) if clock.is_synchronised => Some(format!(
                "clock: it may be {:.1} s off; times of bans and in the log are as wrong; see to the time service",
                clock.most_error.as_secs_f64()
            )),
            Ok(_) => Some(
                "clock: nothing keeps it synchronised, so times of bans and in the log may be wrong; start a time service \
                 such as systemd-timesyncd or chrony"
                    .to_owned(),
            ),
            Err(why) => Some(format!(
                "clock: whether it is synchronised is not known ({why}); times of bans and in the log may be wrong; see \
                 that adjtimex(2) is allowed"
            )),
        }
    }
}

fn percent(ratio: f64) -> String {
    format!("{:.0} %", ratio * 100.0)
}

fn disk(ledger: &Path) -> Result<Disk, String> {
    let mut error = String::new();
    // Before the first start neither the file nor its directory need be there.
    for place in ledger.ancestors() {
        match statvfs(place) {
            Ok(found) => {
                let bytes = |blocks: u64| blocks.saturating_mul(found.fragment_size());
                return Ok(Disk { free: bytes(found.blocks_available()), whole: bytes(found.blocks()) });
            }
            Err(errno) => error = io::Error::from(errno).to_string(),
        }
    }
    Err(error)
}

fn clock() -> Result<Clock, String> {
    let clock = crate::sys::clock().map_err(|error| error.to_string())?;
    Ok(Clock {
        is_synchronised: clock.is_synchronised,
        most_error: Duration::from_micros(clock.most_error_microseconds),
    })
}

/// Memory of the cgroup of the process that `process` describes, a directory such as `/proc/self`.
fn memory(process: &Path) -> Result<Memory, String> {
    let read = |name: &str| {
        fs::read_to_string(process.join(name))
            .map_err(|error| format!("{name} of /proc cannot be read ({error})"))
    };
    let directory = cgroup_directory(&read("cgroup")?, &read("mountinfo")?)
        .ok_or("tunicad runs in no cgroup of version 2")?;
    let number = |name: &str| read_trimmed(directory.join(name));
    let current = number("memory.current")
        .and_then(|text| text.parse().ok())
        .ok_or("the cgroup of tunicad does not count its memory")?;
    // The word is `max` where there is no limit.
    let most = number("memory.max").and_then(|text| text.parse().ok());
    Ok(Memory { current, most, events: events(&number("memory.events").unwrap_or_default()) })
}

/// The counters of a `memory.events`; those that are missing are 0.
fn events(text: &str) -> [u64; MEMORY_EVENTS.len()] {
    MEMORY_EVENTS.map(|event| {
        let line = text.lines().find_map(|line| line.strip_prefix(event)?.strip_prefix(' '));
        line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
    })
}

/// Where the cgroup of version 2 is seen that `/proc/PID/cgroup` names, by `/proc/PID/mountinfo` (cgroups(7), proc(5)).
fn cgroup_directory(cgroup: &str, mounts: &str) -> Option<PathBuf> {
    let path = cgroup.lines().find_map(|line| line.strip_prefix("0::"))?;
    mounts.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        // What is mounted may be a part of the tree, as in a container.
        let below = Path::new(path).strip_prefix(root).ok()?;
        kind.starts_with("cgroup2 ").then(|| Path::new(point).join(below))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw\n\
                          31 22 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn the_cgroup_is_found_where_it_is_mounted() {
        let hybrid = "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let part = "41 31 0:38 /docker/1 /sys/fs/cgroup ro - cgroup2 cgroup ro\n";
        let first = "41 31 0:38 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        for (cgroup, mounts, expected) in [
            (
                "0::/system.slice/tunicad.service\n",
                MOUNTS,
                Some("/sys/fs/cgroup/system.slice/tunicad.service"),
            ),
            ("4:memory:/x\n0::/x\n", hybrid, Some("/sys/fs/cgroup/unified/x")),
            ("0::/docker/1/sub\n", part, Some("/sys/fs/cgroup/sub")),
            ("0::/\n", MOUNTS, Some("/sys/fs/cgroup")),
            ("4:memory:/x\n", first, None),
            ("4:memory:/x\n0::/x\n", first, None),
            ("0::/elsewhere\n", part, None),
            ("", MOUNTS, None),
        ] {
            assert_eq!(cgroup_directory(cgroup, mounts), expected.map(PathBuf::from), "{cgroup:?}");
        }
    }

    #[test]
    fn memory_is_read_as_the_kernel_writes_it() {
        let root = tempfile::tempdir().unwrap();
        let (process, group) = (root.path().join("proc"), root.path().join("group"));
        fs::create_dir(&process).unwrap();
        fs::create_dir(&group).unwrap();
        fs::write(process.join("cgroup"), "0::/\n").unwrap();
        let mounts = format!("31 22 0:26 / {} rw - cgroup2 cgroup2 rw\n", group.display());
        fs::write(process.join("mountinfo"), mounts).unwrap();
        // The root cgroup, or one without the controller.
        assert!(memory(&process).unwrap_err().contains("does not count"));
        fs::write(group.join("memory.current"), "1048576\n").unwrap();
        fs::write(group.join("memory.max"), "max\n").unwrap();
        assert_eq!(memory(&process), Ok(Memory { current: 1 << 20, most: None, events: [0; 4] }));
        fs::write(group.join("memory.max"), "536870912\n").unwrap();
        let text = "low 9\nhigh 1\nmax 2\noom 3\noom_kill 4\noom_group_kill 5\n";
        fs::write(group.join("memory.events"), text).unwrap();
        let found = memory(&process).unwrap();
        assert_eq!((found.most, found.events), (Some(512 << 20), [1, 2, 3, 4]));
        fs::remove_file(process.join("cgroup")).unwrap();
        assert!(memory(&process).unwrap_err().contains("cannot be read"));
    }

    #[test]
    fn a_ledger_that_is_not_there_yet_has_a_disk() {
        let root = tempfile::tempdir().unwrap();
        let disk = disk(&root.path().join("not/yet/ledger.redb")).unwrap();
        assert!(disk.whole >= disk.free && disk.whole > 0, "{disk:?}");
    }

    #[test]
    fn what_is_not_well_or_not_known_is_said_once() {
        let well = Vitals {
            disk: Ok(Disk { free: 50, whole: 100 }),
            memory: Ok(Memory { current: 90, most: Some(100), events: [0; 4] }),
            clock: Ok(Clock { is_synchronised: true, most_error: Duration::from_secs(5) }),
        };
        assert_eq!(well.concerns(), []);
        let unlimited =
            Vitals { memory: Ok(Memory { current: 90, most: None, events: [0; 4] }), ..well.clone() };
        assert_eq!(unlimited.concerns(), []);
        let clock = |is_synchronised, seconds| {
            Ok(Clock { is_synchronised, most_error: Duration::from_secs(seconds) })
        };
        let unknown = || "unknown".to_owned();
        for (about, says, ill) in [
            ("disk", "9 %", Vitals { disk: Ok(Disk { free: 9, whole: 100 }), ..well.clone() }),
            ("disk", "0 %", Vitals { disk: Ok(Disk { free: 0, whole: 0 }), ..well.clone() }),
            ("disk", "unknown", Vitals { disk: Err(unknown()), ..well.clone() }),
            (
                "memory",
                "91 %",
                Vitals {
                    memory: Ok(Memory { current: 91, most: Some(100), events: [0; 4] }),
                    ..well.clone()
                },
            ),
            ("memory", "unknown", Vitals { memory: Err(unknown()), ..well.clone() }),
            ("clock", "nothing keeps it", Vitals { clock: clock(false, 0), ..well.clone() }),
            ("clock", "6.0 s off", Vitals { clock: clock(true, 6), ..well.clone() }),
            ("clock", "unknown", Vitals { clock: Err(unknown()), ..well.clone() }),
        ] {
            let concerns = ill.concerns();
            let [concern] = concerns.as_slice() else { panic!("{about}: {concerns:?}") };
            assert!(concern.about == about && concern.text.contains(says), "{concern:?}");
        }
    }
}
