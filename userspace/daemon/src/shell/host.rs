//! What this host is: its addresses, accounts, and how fit it is for the shield.

use std::{collections::BTreeSet, fs, io, net::IpAddr, path::Path};

use thiserror::Error;
use tunica_api::view::{Doctor, Finding, Level};
use tunica_core::{incident::CpuTimes, limits::HostFacts};

use super::xdp::{
    hook::{self, Hook, Mode},
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

/// What the host says of itself that the policy follows. What cannot be read counts as on an ordinary host.
pub fn facts(interfaces: &[String], has_cookie_program: bool) -> HostFacts {
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
        cookies_fail: false,
        mtu: interfaces
            .iter()
            .filter_map(|name| hook::read(name).ok().flatten())
            .map(|hook| hook.mtu)
            .min()
            .unwrap_or(usual.mtu),
        window_scale,
        ephemeral_low: column("/proc/sys/net/ipv4/ip_local_port_range", 0)
            .and_then(|low| u16::try_from(low).ok())
            .unwrap_or(usual.ephemeral_low),
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

/// Drivers whose native XDP the kernel's documentation or the driver's source states.
const NATIVE_DRIVERS: &[&str] = &[
    "atlantic",
    "bnxt_en",
    "bonding",
    "cpsw",
    "dpaa2-eth",
    "ena",
    "enetc",
    "fec",
    "gve",
    "hv_netvsc",
    "i40e",
    "iavf",
    "ice",
    "idpf",
    "igb",
    "igc",
    "ixgbe",
    "ixgbevf",
    "lan966x",
    "mana",
    "mlx4_en",
    "mlx5_core",
    "mvneta",
    "mvpp2",
    "netsec",
    "nfp",
    "octeontx2",
    "qede",
    "sfc",
    "stmmac",
    "thunderx",
    "tsnep",
    "tun",
    "veth",
    "virtio_net",
    "vmxnet3",
    "xen-netfront",
];

/// Largest MTU whose frames fit one page with headroom and tail; beyond it a driver needs multi-buffer XDP.
const ONE_PAGE_MTU: u32 = 3_498;

/// Looks at everything the shield depends on. Changes nothing.
pub fn examine(interfaces: &[String], pin_root: &Path, tor_user: Option<&str>) -> Doctor {
    let mut findings = vec![
        kernel(),
        capabilities(),
        bpffs(pin_root),
        pin_directory(pin_root),
        cookies(),
        forwarding(),
        tor(tor_user),
    ];
    for interface in interfaces {
        findings.extend(examine_interface(interface));
    }
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.level));
    Doctor { findings }
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

fn cookies() -> Finding {
    let value = read_trimmed("/proc/sys/net/ipv4/tcp_syncookies").unwrap_or_else(|| "unknown".to_owned());
    finding(
        "syncookies",
        ok_if(value == "1" || value == "2", Level::Failure),
        format!("net.ipv4.tcp_syncookies = {value}"),
        "a SYN flood from forged sources fills the listen queue whatever a per-source limit does; `sysctl -w net.ipv4.tcp_syncookies=1`",
    )
}

fn forwarding() -> Finding {
    let forwards = read_trimmed("/proc/sys/net/ipv4/ip_forward").is_some_and(|value| value == "1");
    finding(
        "forwarding",
        ok_if(!forwards, Level::Warning),
        if forwards { "this host forwards IPv4" } else { "this host does not forward IPv4" },
        "limits and bans also judge packets that are only passing through (containers, virtual machines); allow their networks or limit other interfaces",
    )
}

fn tor(user: Option<&str>) -> Finding {
    let (level, found) = match user {
        None => (Level::Warning, "tor.user is not configured".to_owned()),
        Some(name) => match uid(name) {
            Ok(Some(uid)) => (Level::Ok, format!("tor runs as {name} (uid {uid})")),
            Ok(None) => (Level::Failure, format!("there is no account {name}")),
            Err(error) => (Level::Failure, format!("account {name} cannot be looked up: {error}")),
        },
    };
    finding(
        "tor",
        level,
        found,
        "guards cannot be told from strangers, so a ban could hit one; set tor.user to the account that tor runs as",
    )
}

fn examine_interface(name: &str) -> Vec<Finding> {
    match hook::read(name) {
        Ok(Some(hook)) => {
            vec![driver(name), occupancy(name, hook), queues(name, hook), mtu(name, hook), offloads(name)]
        }
        Ok(None) => vec![finding(
            &format!("interface.{name}"),
            Level::Failure,
            "there is no such interface",
            "the host is not protected there; correct shield.interfaces",
        )],
        Err(error) => vec![finding(
            &format!("interface.{name}"),
            Level::Warning,
            format!("the kernel does not tell about it: {error}"),
            "nothing can be said of it; see that AF_NETLINK is allowed",
        )],
    }
}

fn driver(name: &str) -> Finding {
    let driver = crate::sys::driver(name).ok().flatten();
    let (level, found) = match &driver {
        Some(driver) if NATIVE_DRIVERS.contains(&driver.as_str()) => {
            (Level::Ok, format!("driver {driver}, which has native XDP"))
        }
        Some(driver) => (Level::Warning, format!("driver {driver}, not known to have native XDP")),
        None => (Level::Warning, "the driver does not tell its name".to_owned()),
    };
    finding(
        &format!("driver.{name}"),
        level,
        found,
        "attaching may fail; shield.attach = \"native-or-generic\" accepts the slower generic mode",
    )
}

fn occupancy(name: &str, hook: Hook) -> Finding {
    let (level, found) = match (hook.mode, hook.program_id) {
        (Mode::None, _) => (Level::Ok, "free".to_owned()),
        (mode, Some(id)) => (
            Level::Ok,
            format!(
                "program {id} is attached in {} mode (`bpftool prog show id {id}` names it)",
                mode.label()
            ),
        ),
        (mode, None) => (Level::Warning, format!("a program is attached in {} mode", mode.label())),
    };
    finding(&format!("hook.{name}"), level, found, "`ip -d link show` shows what is attached")
}

fn queues(name: &str, hook: Hook) -> Finding {
    // sysfs counts the queues in use; where it shows another network namespace, the driver's own number must do.
    let in_use = fs::read_dir(Path::new("/sys/class/net").join(name).join("queues")).map(|entries| {
        entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with("rx-")).count()
    });
    let count = in_use.unwrap_or(usize::try_from(hook.receive_queues).unwrap_or(usize::MAX));
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    finding(
        &format!("queues.{name}"),
        ok_if(count >= cpus || count == 0, Level::Warning),
        format!("{count} receive queues for {cpus} CPUs"),
        "a flood is handled by fewer CPUs than there are; `ethtool -L` sets the number of channels",
    )
}

fn mtu(name: &str, hook: Hook) -> Finding {
    finding(
        &format!("mtu.{name}"),
        ok_if(hook.mtu <= ONE_PAGE_MTU, Level::Warning),
        format!("MTU {}", hook.mtu),
        "frames above one page need a driver with multi-buffer XDP; if attaching fails, lower the MTU to 3498 or less",
    )
}

fn offloads(name: &str) -> Finding {
    let (level, found) = match crate::sys::large_receive_offload(name) {
        Ok(Some(false)) => (Level::Ok, "large receive offload is off".to_owned()),
        Ok(Some(true)) => (Level::Failure, "large receive offload is on".to_owned()),
        Ok(None) => (Level::Ok, "the driver has no large receive offload to ask about".to_owned()),
        Err(error) => (Level::Warning, format!("offloads cannot be read: {error}")),
    };
    finding(
        &format!("offloads.{name}"),
        level,
        found,
        "drivers refuse native XDP while it is on; `ethtool -K INTERFACE lro off`",
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
