//! What this host is: its addresses, accounts, and how fit it is for the shield.

mod interfaces;
mod sysctls;
mod translation;
pub mod vitals;
pub mod watch;

use std::{collections::BTreeSet, fs, io, net::IpAddr, path::Path, time::Duration};

use thiserror::Error;
use tunica_api::view::{Doctor, Finding, Level};
use tunica_config::Config;
use tunica_core::{
    incident::CpuTimes,
    limits::{CookieState, HostFacts},
    self_test,
};

use self::vitals::Vitals;
use super::xdp::{
    hook,
    pins::{self, PinsError},
};

/// Every address of every interface, loopback included.
///
/// # Errors
/// The system's.
pub fn addresses() -> io::Result<BTreeSet<IpAddr>> {
    let mut found = BTreeSet::new();
    for interface in nix::ifaddrs::getifaddrs()? {
        let Some(address) = interface.address else { continue };
        if let Some(v4) = address.as_sockaddr_in() {
            found.insert(IpAddr::V4(v4.ip()));
        } else if let Some(v6) = address.as_sockaddr_in6() {
            found.insert(IpAddr::V6(v6.ip()));
        }
    }
    Ok(found)
}

/// The interface that has this address.
pub fn interface_of(address: IpAddr) -> Option<String> {
    let has_it = |interface: &nix::ifaddrs::InterfaceAddress| {
        let found = interface.address.as_ref();
        let v4 = found.and_then(|found| found.as_sockaddr_in()).map(|found| IpAddr::V4(found.ip()));
        let v6 = found.and_then(|found| found.as_sockaddr_in6()).map(|found| IpAddr::V6(found.ip()));
        v4.or(v6) == Some(address.to_canonical())
    };
    nix::ifaddrs::getifaddrs().ok()?.find(has_it).map(|interface| interface.interface_name)
}

/// The uid of the account `name`, or `None` if there is none.
///
/// # Errors
/// The system's.
pub fn uid(name: &str) -> io::Result<Option<u32>> {
    Ok(nix::unistd::User::from_name(name)?.map(|user| user.uid.as_raw()))
}

/// Where the sysctl lies that the daemon may change.
const SYNCOOKIES: &str = "/proc/sys/net/ipv4/tcp_syncookies";

pub use {interfaces::hides_tags, translation::translates};

/// What of [`HostFacts`] takes longer to find out, so that it is asked for less often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlowFacts {
    translates: bool,
    hides_tags: bool,
}

impl SlowFacts {
    /// What is true now. If the host does not say whether it translates addresses, whether it forwards counts, without
    /// which few do.
    pub fn read(interfaces: &[String]) -> Self {
        let forwards = |path: &str| read_trimmed(path).is_some_and(|text| text != "0");
        Self {
            translates: translates().unwrap_or_else(|_| {
                forwards("/proc/sys/net/ipv4/ip_forward")
                    || forwards("/proc/sys/net/ipv6/conf/all/forwarding")
            }),
            hides_tags: hides_tags(interfaces),
        }
    }
}

/// What the host says of itself that the policy follows. What cannot be read counts as on an ordinary host.
pub fn facts(interfaces: &[String], has_cookie_program: bool, slow: SlowFacts) -> HostFacts {
    let SlowFacts { translates, hides_tags } = slow;
    let usual = HostFacts::default();
    let number = |path: &str| read_trimmed(path).and_then(|text| text.parse::<u32>().ok());
    let column = |path: &str, index: usize| {
        read_trimmed(path).and_then(|text| text.split_whitespace().nth(index)?.parse::<u32>().ok())
    };
    // Linux, net/ipv4/tcp_output.c, tcp_select_initial_window: the larger of the two bounds the window.
    let largest = [column("/proc/sys/net/ipv4/tcp_rmem", 2), number("/proc/sys/net/core/rmem_max")];
    let window_scale = match largest.into_iter().flatten().max() {
        Some(bytes) if bytes > 0 => bytes.ilog2().saturating_sub(15).min(14),
        Some(_) | None => usual.window_scale,
    };
    HostFacts {
        tcp_syncookies: number(SYNCOOKIES),
        tcp_timestamps: number("/proc/sys/net/ipv4/tcp_timestamps"),
        has_cookie_program,
        mtu: interfaces
            .iter()
            .filter_map(|name| hook::read(name).ok().flatten())
            .map(|hook| hook.mtu)
            .min()
            .unwrap_or(usual.mtu),
        window_scale,
        translates,
        hides_tags,
        ephemeral_low: column("/proc/sys/net/ipv4/ip_local_port_range", 0)
            .and_then(|low| u16::try_from(low).ok())
            .unwrap_or(usual.ephemeral_low),
        netns_cookie: crate::sys::netns_cookie().unwrap_or(usual.netns_cookie),
        cpus: aya::util::nr_cpus().ok().and_then(|cpus| u32::try_from(cpus).ok()).unwrap_or(usual.cpus),
    }
}

/// Sets `net.ipv4.tcp_syncookies`, which CAP_NET_ADMIN allows.
///
/// # Errors
/// The system's, with what follows and how to mend it.
pub fn set_syncookies(value: u32) -> Result<(), SysctlError> {
    fs::write(SYNCOOKIES, value.to_string()).map_err(|source| SysctlError { value, source })
}

/// Why the sysctl was not set.
#[derive(Debug, Error)]
#[error(
    "net.ipv4.tcp_syncookies cannot be set to {value}: {source}; without 2 no port answers with cookies, and once it is 2 it \
     is to be put back; let tunicad write {SYNCOOKIES}, or set it by hand"
)]
pub struct SysctlError {
    value: u32,
    #[source]
    source: io::Error,
}

/// How all CPUs together spent their time, in ticks since boot; `None` where the kernel does not say.
pub fn cpu_times() -> Option<CpuTimes> {
    cpu_times_of(&fs::read_to_string("/proc/stat").ok()?)
}

/// The first line of /proc/stat (proc(5)): user, nice, system, idle, iowait, irq, softirq, steal, and guests, which user
/// time holds already.
fn cpu_times_of(text: &str) -> Option<CpuTimes> {
    let fields = text.lines().next()?.strip_prefix("cpu ")?.split_whitespace().take(8);
    let ticks: Vec<u64> = fields.map(str::parse).collect::<Result<_, _>>().ok()?;
    Some(CpuTimes { softirq: *ticks.get(6)?, all: ticks.iter().sum() })
}

/// Looks at everything the shield depends on. Changes nothing.
///
/// `without_cookies`: ports whose listeners were found to take none, and for how long they answer with none.
pub fn examine(
    config: &Config,
    without_cookies: impl Iterator<Item = (u16, Duration)>,
    load_troubles: Vec<String>,
) -> Doctor {
    let shield = &config.shield;
    // Whether the kernel takes the cookie program shows only when it is loaded; a daemon that failed at it says so.
    let slow = SlowFacts::read(&shield.interfaces);
    let cookies = config
        .settings()
        .ok()
        .map(|settings| CookieState::of(&settings, &facts(&shield.interfaces, true, slow)));
    let mut findings = vec![
        kernel(),
        capabilities(),
        bpffs(&shield.pin_path),
        pin_directory(&shield.pin_path),
        tor(&config.tor_users()),
        load(config, load_troubles),
        translation(translates()),
    ];
    findings.extend(sysctls::examine(Path::new("/proc/sys/net"), cookies));
    findings.extend(examine_vitals(&Vitals::read(&config.ledger.path)));
    findings.extend(interfaces::examine(&shield.interfaces, cookies));
    findings.extend(without_cookies.map(|(port, left)| {
        let text = self_test::advice(port, left);
        let (found, advice) = text.split_once("; ").unwrap_or((&text, &text));
        finding("cookies", Level::Warning, found, advice)
    }));
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.level));
    Doctor { findings }
}

/// Disk, memory and clock: what is not well is a warning, since the shield does not end by it.
fn examine_vitals(vitals: &Vitals) -> [Finding; 3] {
    let of = |check: &str, concern: Option<String>, well: &str| match concern {
        None => finding(check, Level::Ok, well, ""),
        Some(text) => {
            // `disk: what is so; what to do`, or with what follows in between.
            let text = text.strip_prefix(check).and_then(|text| text.strip_prefix(": ")).unwrap_or(&text);
            let (found, advice) = text.split_once("; ").unwrap_or((text, text));
            finding(check, Level::Warning, found, advice)
        }
    };
    [
        of("disk", vitals.disk_concern(), "the ledger's file system has room"),
        of("memory", vitals.memory_concern(), "tunicad is within the limit of its cgroup, if there is one"),
        of("clock", vitals.clock_concern(), "the clock is synchronised"),
    ]
}

fn translation(found: io::Result<bool>) -> Finding {
    match found {
        Ok(false) => finding("translation", Level::Ok, "this host translates no addresses", ""),
        Ok(true) => finding(
            "translation",
            Level::Warning,
            "this host translates addresses (a chain or table of type nat)",
            "connections of containers and others behind it have no socket here, so nothing is refused for want of one: \
             segments without a connection, and SYNs to ports over their budget where nobody listens, go to the kernel; \
             where nothing behind this host is reached through it, remove the chains of type nat",
        ),
        Err(error) => finding(
            "translation",
            Level::Warning,
            format!("whether this host translates addresses is not known: {error}"),
            "it is taken for one that does if it forwards; let tunicad ask over AF_NETLINK",
        ),
    }
}

fn finding(check: &str, level: Level, found: impl Into<String>, advice: &str) -> Finding {
    let advice = if level == Level::Ok { String::new() } else { advice.to_owned() };
    Finding { check: check.to_owned(), level, found: found.into(), advice }
}

fn ok_if(good: bool, otherwise: Level) -> Level {
    if good { Level::Ok } else { otherwise }
}

fn read_trimmed(path: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn kernel() -> Finding {
    let release = read_trimmed("/proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown".to_owned());
    let mut numbers =
        release.split(|sign: char| !sign.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let has_btf = Path::new("/sys/kernel/btf/vmlinux").exists();
    let level = ok_if(version >= (6, 1), Level::Failure);
    finding(
        "kernel",
        level,
        format!("Linux {release}, {} BTF", if has_btf { "with" } else { "without" }),
        "the shield is built for and tested on Linux 6.1 and later; older kernels refuse it; upgrade the kernel",
    )
}

fn capabilities() -> Finding {
    // Numbers from include/uapi/linux/capability.h.
    const NEEDED: [(u32, &str); 3] = [(12, "CAP_NET_ADMIN"), (38, "CAP_PERFMON"), (39, "CAP_BPF")];
    let effective = read_trimmed("/proc/self/status")
        .and_then(|status| {
            let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?.trim().to_owned();
            u64::from_str_radix(&line, 16).ok()
        })
        .unwrap_or(0);
    let has = |bit: u32| effective >> bit & 1 == 1;
    let missing: Vec<&str> = NEEDED.iter().filter(|(bit, _)| !has(*bit)).map(|(_, name)| *name).collect();
    if !missing.is_empty() {
        return finding(
            "capabilities",
            Level::Failure,
            format!("{} missing", missing.join(" and ")),
            "without them nothing can be loaded or attached; run as root, or start tunicad by its systemd unit",
        );
    }
    finding("capabilities", Level::Ok, "CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON are there", "")
}

fn bpffs(root: &Path) -> Finding {
    let mounts = read_trimmed("/proc/self/mounts").unwrap_or_default();
    let covers = mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(1);
        let (place, kind) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        kind == "bpf" && root.starts_with(place)
    });
    finding(
        "bpffs",
        ok_if(covers, Level::Failure),
        format!("{} is {}on a bpffs", root.display(), if covers { "" } else { "not " }),
        "the shield cannot be pinned, so it would end with the daemon; `mount -t bpf -o mode=0700 bpf /sys/fs/bpf`",
    )
}

fn pin_directory(root: &Path) -> Finding {
    match pins::check(root) {
        Ok(()) => {
            let found = format!("only root can put anything into {}", root.display());
            finding("pins", Level::Ok, found, "")
        }
        Err(PinsError::Unsafe { path, fault, fix }) => {
            let advice = format!("tunicad does not start, because others could exchange its pins; {fix}");
            finding("pins", Level::Failure, format!("{} {fault}", path.display()), &advice)
        }
        Err(error @ (PinsError::InUse { .. } | PinsError::Directory { .. })) => finding(
            "pins",
            Level::Warning,
            error.to_string(),
            "whether others could exchange the pins is not known; look as root",
        ),
    }
}

fn tor(users: &[&str]) -> Finding {
    let of = |name: &&str| match uid(name) {
        Ok(Some(uid)) => (Level::Ok, format!("tor runs as {name} (uid {uid})")),
        Ok(None) => (Level::Failure, format!("there is no account {name}")),
        Err(error) => (Level::Failure, format!("account {name} cannot be looked up: {error}")),
    };
    let worst = users.iter().map(of).max_by_key(|(level, _)| *level);
    let (level, found) = worst.unwrap_or((Level::Warning, "tor.user is not configured".to_owned()));
    finding(
        "tor",
        level,
        found,
        "guards cannot be told from strangers, so a ban could hit one; set tor.user to the account that tor runs as",
    )
}

/// What tells of load, and what of it was not read.
fn load(config: &Config, mut troubles: Vec<String>) -> Finding {
    if troubles.is_empty() {
        troubles.extend(super::load::pressure().err().map(|error| error.to_string()));
    }
    if config.ingress.enabled && !config.arti.enabled {
        let keys = [
            ("tor.control", config.tor.control.is_none(), "tor's CPU time"),
            ("tor.metrics", config.tor.metrics.is_none(), "tor's introductions and rendezvous"),
        ];
        let unset = keys.into_iter().filter(|(_, is_unset, _)| *is_unset);
        troubles.extend(unset.map(|(key, _, what)| format!("{key} is not set, so {what} are not known")));
    }
    let (level, found) = if troubles.is_empty() {
        (Level::Ok, "what tells of load is read".to_owned())
    } else {
        (Level::Warning, troubles.join("; "))
    };
    finding(
        "load",
        level,
        found,
        "the load level goes by what is left and may rise late; set tor.control and tor.metrics, see that tor serves them, and \
         boot with psi=1 where the kernel tells no pressure",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_times_are_read() {
        for (text, expected) in [
            ("cpu  10 20 30 40 50 60 70 80 1000 1000\ncpu0 1 2\n", Some((70, 360))),
            ("cpu  10 20 30 40 50 60 70\n", Some((70, 280))),
            ("cpu  10 20 30\n", None),
            ("cpu  10 x 30 40 50 60 70 80\n", None),
            ("", None),
        ] {
            let expected = expected.map(|(softirq, all)| CpuTimes { softirq, all });
            assert_eq!(cpu_times_of(text), expected, "{text}");
        }
        assert!(cpu_times().is_some_and(|times| times.all > times.softirq));
    }
}
