//! What this machine is like, from files alone.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

/// Accounts under which distributions run tor, most common first.
const TOR_USERS: [&str; 3] = ["debian-tor", "tor", "_tor"];

/// How many processes above this one are asked for an SSH session.
const MOST_ANCESTORS: usize = 64;

/// A machine, seen through the files under a root directory.
#[derive(Debug)]
pub(crate) struct Host {
    root: PathBuf,
}

/// One mounted file system.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    /// Where.
    pub(crate) point: PathBuf,
    /// Which kind.
    pub(crate) kind: String,
    /// Whether nothing on it can be changed.
    pub(crate) is_read_only: bool,
}

/// What stands at a path.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// Nothing, or it cannot be seen.
    Missing,
    /// A directory with these permission bits.
    Directory {
        /// As chmod(1) writes them.
        mode: u32,
    },
    /// Anything else.
    Other,
}

impl Host {
    /// The machine whose file system hangs at `root`: `/` for this one.
    pub(crate) fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// `path`, which is absolute, under the root.
    fn path(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// The text of a file.
    ///
    /// # Errors
    /// Those of [`fs::read_to_string`].
    pub(crate) fn read(&self, path: &str) -> io::Result<String> {
        fs::read_to_string(self.path(Path::new(path)))
    }

    fn read_bytes(&self, path: &str) -> io::Result<Vec<u8>> {
        fs::read(self.path(Path::new(path)))
    }

    /// What stands at an absolute path.
    pub(crate) fn entry(&self, path: &Path) -> Entry {
        match fs::metadata(self.path(path)) {
            Ok(found) if found.is_dir() => Entry::Directory { mode: found.permissions().mode() & 0o7777 },
            Ok(_) => Entry::Other,
            Err(_) => Entry::Missing,
        }
    }

    /// Whether there is a network interface of that name.
    pub(crate) fn has_interface(&self, name: &str) -> bool {
        self.path(Path::new("/sys/class/net")).join(name).exists()
    }

    /// An interface's greatest packet in bytes, if the kernel says.
    pub(crate) fn mtu(&self, interface: &str) -> Option<u32> {
        self.read(&format!("/sys/class/net/{interface}/mtu")).ok()?.trim().parse().ok()
    }

    /// Whether `/etc/passwd` (`passwd`) or `/etc/group` (`group`) has an entry of that name.
    pub(crate) fn has_account(&self, database: &str, name: &str) -> bool {
        self.read(&format!("/etc/{database}"))
            .is_ok_and(|text| text.lines().any(|line| line.split(':').next() == Some(name)))
    }

    /// The account that tor most likely runs under, if there is one.
    pub(crate) fn tor_user(&self) -> Option<&'static str> {
        TOR_USERS.into_iter().find(|user| self.has_account("passwd", user))
    }

    /// The interface of the default route with the lowest metric, IPv4's before IPv6's.
    pub(crate) fn default_interface(&self) -> Option<String> {
        let v4 = self.read("/proc/net/route").unwrap_or_default();
        let v6 = self.read("/proc/net/ipv6_route").unwrap_or_default();
        lowest_metric(v4.lines().filter_map(default_route_v4))
            .or_else(|| lowest_metric(v6.lines().filter_map(default_route_v6)))
    }

    /// The interface by which packets go to `address`, by the main routing table.
    pub(crate) fn interface_towards(&self, address: IpAddr) -> Option<String> {
        let (table, route): (_, fn(&str) -> Option<Route>) = match address {
            IpAddr::V4(_) => ("/proc/net/route", route_v4),
            IpAddr::V6(_) => ("/proc/net/ipv6_route", route_v6),
        };
        let text = self.read(table).ok()?;
        let covering = text.lines().filter_map(route).filter(|route| {
            let bits = |address: IpAddr| match address {
                IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
                IpAddr::V6(v6) => v6.to_bits(),
            };
            let differing = bits(route.destination) ^ bits(address);
            differing.leading_zeros() >= route.length
        });
        let best = covering.max_by_key(|route| (route.length, std::cmp::Reverse(route.metric)))?;
        Some(best.interface)
    }

    /// Every mounted file system, in order of mounting.
    pub(crate) fn mounts(&self) -> Vec<Mount> {
        let text = self.read("/proc/mounts").unwrap_or_default();
        text.lines().filter_map(mount).collect()
    }

    /// The far end of the SSH session that this process belongs to, as far as environments tell, unless it is local.
    ///
    /// sudo(8) and su(1) drop the variables that sshd(8) sets, so the nearest process above that has them counts.
    pub(crate) fn ssh_peer(&self) -> Option<IpAddr> {
        self.ssh_session().and_then(|value| ssh_peer(&value))
    }

    /// This host's end of that session, which sshd(8) names in `SSH_CONNECTION` alone.
    pub(crate) fn ssh_local(&self) -> Option<IpAddr> {
        self.ssh_session().and_then(|value| ssh_local(&value))
    }

    fn ssh_session(&self) -> Option<String> {
        let mut process = "self".to_owned();
        for _ in 0..MOST_ANCESTORS {
            let environment = self.read_bytes(&format!("/proc/{process}/environ")).unwrap_or_default();
            if let Some(value) = ssh_variable(&environment) {
                return Some(value);
            }
            let status = self.read(&format!("/proc/{process}/status")).ok()?;
            process = status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().to_owned();
        }
        None
    }

    /// The file system that `path` lies on.
    pub(crate) fn mount_of(&self, path: &Path) -> Option<Mount> {
        // Of several mounts on one directory the last covers the others, and `max_by_key` returns the last.
        self.mounts()
            .into_iter()
            .filter(|mount| path.starts_with(&mount.point))
            .max_by_key(|mount| mount.point.components().count())
    }

    /// The running kernel's release as text and as major and minor number.
    pub(crate) fn kernel(&self) -> Option<(String, (u32, u32))> {
        let release = self.read("/proc/sys/kernel/osrelease").ok()?.trim().to_owned();
        let mut numbers = release.split(|c: char| !c.is_ascii_digit());
        let major = numbers.next()?.parse().ok()?;
        let minor = numbers.next()?.parse().ok()?;
        Some((release, (major, minor)))
    }
}

/// The value of `SSH_CONNECTION`, or else of `SSH_CLIENT`, in an environment as proc(5) shows it.
fn ssh_variable(environment: &[u8]) -> Option<String> {
    ["SSH_CONNECTION=", "SSH_CLIENT="].into_iter().find_map(|name| {
        let value =
            environment.split(|byte| *byte == 0).find_map(|entry| entry.strip_prefix(name.as_bytes()))?;
        Some(String::from_utf8_lossy(value).into_owned())
    })
}

/// The far end of an SSH session, the first word of `SSH_CONNECTION` and `SSH_CLIENT` (ssh(1), "ENVIRONMENT"), unless it
/// is local.
fn ssh_peer(value: &str) -> Option<IpAddr> {
    let address = value.split_whitespace().next()?;
    let (address, _zone) = address.split_once('%').unwrap_or((address, ""));
    let address = address.parse::<IpAddr>().ok()?.to_canonical();
    (!address.is_loopback()).then_some(address)
}

/// The near end of an SSH session, the third word of `SSH_CONNECTION`; that of `SSH_CLIENT` is a port.
fn ssh_local(value: &str) -> Option<IpAddr> {
    let address = value.split_whitespace().nth(2)?;
    let (address, _zone) = address.split_once('%').unwrap_or((address, ""));
    Some(address.parse::<IpAddr>().ok()?.to_canonical())
}

fn lowest_metric(routes: impl Iterator<Item = (u32, String)>) -> Option<String> {
    routes.min_by_key(|(metric, _)| *metric).map(|(_, interface)| interface)
}

/// `RTF_UP` of linux/route.h.
const ROUTE_IS_UP: u32 = 0x1;
/// `RTF_REJECT` of linux/route.h: an unreachable route.
const ROUTE_REJECTS: u32 = 0x200;

fn is_usable(flags: u32) -> bool {
    flags & ROUTE_IS_UP != 0 && flags & ROUTE_REJECTS == 0
}

/// Metric and interface, if the line of /proc/net/route is a default route
/// (`Iface Destination Gateway Flags RefCnt Use Metric Mask …`, the metric alone in decimal).
fn default_route_v4(line: &str) -> Option<(u32, String)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [interface, "00000000", _, flags, _, _, metric, "00000000", ..] = fields.as_slice() else {
        return None;
    };
    let flags = u32::from_str_radix(flags, 16).ok()?;
    is_usable(flags).then_some((metric.parse().ok()?, (*interface).to_owned()))
}

/// Metric and interface, if the line of /proc/net/ipv6_route is a default route
/// (`destination length source length gateway metric references use flags interface`, all in hexadecimal).
fn default_route_v6(line: &str) -> Option<(u32, String)> {
    const ANY: &str = "00000000000000000000000000000000";
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [destination, "00", _, _, _, metric, _, _, flags, interface] = fields.as_slice() else {
        return None;
    };
    let flags = u32::from_str_radix(flags, 16).ok()?;
    let is_default = *destination == ANY && *interface != "lo" && is_usable(flags);
    is_default.then_some((u32::from_str_radix(metric, 16).ok()?, (*interface).to_owned()))
}

/// A usable route.
struct Route {
    destination: IpAddr,
    /// Bits of the prefix.
    length: u32,
    metric: u32,
    interface: String,
}

/// A line of /proc/net/route, see [`default_route_v4`]; addresses are in the host's byte order.
fn route_v4(line: &str) -> Option<Route> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [interface, destination, _, flags, _, _, metric, mask, ..] = fields.as_slice() else { return None };
    let address = |hex: &str| Some(Ipv4Addr::from(u32::from_str_radix(hex, 16).ok()?.to_ne_bytes()));
    is_usable(u32::from_str_radix(flags, 16).ok()?).then_some(Route {
        destination: address(destination)?.into(),
        length: address(mask)?.to_bits().leading_ones(),
        metric: metric.parse().ok()?,
        interface: (*interface).to_owned(),
    })
}

/// A line of /proc/net/ipv6_route, see [`default_route_v6`].
fn route_v6(line: &str) -> Option<Route> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [destination, length, _, _, _, metric, _, _, flags, interface] = fields.as_slice() else {
        return None;
    };
    let hex = |text: &str| u32::from_str_radix(text, 16).ok();
    is_usable(hex(flags)?).then_some(Route {
        destination: Ipv6Addr::from(u128::from_str_radix(destination, 16).ok()?).into(),
        length: hex(length)?,
        metric: hex(metric)?,
        interface: (*interface).to_owned(),
    })
}

/// `device point kind options …`, with blanks in octal (getmntent(3)).
fn mount(line: &str) -> Option<Mount> {
    let mut fields = line.split(' ').skip(1);
    let point = fields.next()?.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\");
    let kind = fields.next()?.to_owned();
    let is_read_only = fields.next()?.split(',').any(|option| option == "ro");
    Some(Mount { point: PathBuf::from(point), kind, is_read_only })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine with just these files.
    fn host(files: &[(&str, &str)]) -> (tempfile::TempDir, Host) {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let host = Host::at(root.path());
        (root, host)
    }

    #[test]
    fn the_default_route_names_the_interface() {
        let head = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";
        let any = "0".repeat(32);
        let v6 = format!(
            "{any} 00 {any} 00 {any} ffffffff 00000001 00000000 00200200       lo\n\
             {any} 00 {any} 00 fe800000000000000000000000000001 00000400 00000003 00000000 00450003     ens4\n"
        );
        for (v4, v6, interface) in [
            ("", "", None),
            ("eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n", "", None),
            ("eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n", v6.as_str(), Some("eth0")),
            (
                "wlan0\t00000000\t010200C0\t0003\t0\t0\t600\t00000000\t0\t0\t0\n\
                 eth1\t00000000\t010200C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n",
                "",
                Some("eth1"),
            ),
            ("*\t00000000\t00000000\t0200\t0\t0\t0\t00000000\t0\t0\t0\n", v6.as_str(), Some("ens4")),
        ] {
            let v4 = format!("{head}{v4}");
            let (_root, host) = host(&[("proc/net/route", &v4), ("proc/net/ipv6_route", v6)]);
            assert_eq!(host.default_interface().as_deref(), interface);
        }
    }

    #[test]
    fn the_longest_route_leads_to_an_address() {
        let v4 = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                  eth0\t00000000\t010200C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
                  eth1\t00000000\t010200C0\t0003\t0\t0\t50\t00000000\t0\t0\t0\n\
                  eth2\t006433C6\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
                  eth3\t0064 33C6\n\
                  *\t076433C6\t00000000\t0205\t0\t0\t0\tFFFFFFFF\t0\t0\t0\n";
        let (any, lan) = ("0".repeat(32), "20010db8000000000000000000000000");
        let v6 = format!(
            "{any} 00 {any} 00 fe800000000000000000000000000001 00000400 3 0 00000003     ens4\n\
             {lan} 20 {any} 00 {any} 00000100 1 0 00000001     ens5\n"
        );
        let (_root, host) = host(&[("proc/net/route", v4), ("proc/net/ipv6_route", &v6)]);
        for (address, interface) in [
            ("203.0.113.9", "eth1"),
            ("198.51.100.7", "eth2"),
            ("198.51.101.7", "eth1"),
            ("2001:db8::9", "ens5"),
            ("2001:db9::9", "ens4"),
        ] {
            let found = host.interface_towards(address.parse().unwrap());
            assert_eq!(found.as_deref(), Some(interface), "{address}");
        }
    }

    #[test]
    fn the_deepest_and_latest_mount_counts() {
        let mounts = "/dev/vda1 / ext4 rw 0 0\n\
                      tmpfs /run\\040x tmpfs rw 0 0\n\
                      sysfs /sys sysfs rw,nosuid 0 0\n\
                      none /sys/fs/bpf tmpfs rw 0 0\n\
                      bpf /sys/fs/bpf bpf ro,nosuid 0 0\n";
        let (_root, host) = host(&[("proc/mounts", mounts)]);
        for (path, point, kind, is_read_only) in [
            ("/sys/fs/bpf/tunica", "/sys/fs/bpf", "bpf", true),
            ("/sys/fs/bpfx", "/sys", "sysfs", false),
            ("/run x/tunica", "/run x", "tmpfs", false),
            ("/var/lib", "/", "ext4", false),
        ] {
            let mount = Mount { point: PathBuf::from(point), kind: kind.to_owned(), is_read_only };
            assert_eq!(host.mount_of(Path::new(path)), Some(mount));
        }
    }

    #[test]
    fn accounts_and_kernel_are_read() {
        let (_root, host) = host(&[
            ("etc/passwd", "root:x:0:0::/root:/bin/sh\n_tor:x:107:113::/var/lib/tor:/bin/false\n"),
            ("proc/sys/kernel/osrelease", "6.1.0-37-amd64\n"),
        ]);
        assert_eq!(host.tor_user(), Some("_tor"));
        assert!(!host.has_account("passwd", "tor"));
        assert!(!host.has_account("group", "root"));
        assert_eq!(host.kernel(), Some(("6.1.0-37-amd64".to_owned(), (6, 1))));
    }

    #[test]
    fn the_session_is_found_behind_sudo() {
        let status = |parent: u32| format!("Name:\tx\nPPid:\t{parent}\nTracerPid:\t0\n");
        let (own, shell, daemon) = (status(20), status(1), status(0));
        let there = "HOME=/root\0XSSH_CLIENT=no\0SSH_CLIENT=198.51.100.7 50022 22\0";
        for (own_environment, shell_environment, peer) in [
            ("SUDO_USER=x\0", there, Some("198.51.100.7")),
            ("SSH_CLIENT=no\0SSH_CONNECTION=198.51.100.9 1 192.0.2.1 22\0", there, Some("198.51.100.9")),
            ("SSH_CONNECTION=127.0.0.1 1 127.0.0.1 22\0", there, None),
            ("", "HOME=/root\0", None),
        ] {
            let (_root, host) = host(&[
                ("proc/self/status", &own),
                ("proc/self/environ", own_environment),
                ("proc/20/status", &shell),
                ("proc/20/environ", shell_environment),
                ("proc/1/status", &daemon),
            ]);
            assert_eq!(host.ssh_peer(), peer.map(|peer| peer.parse().unwrap()), "{own_environment:?}");
        }
    }

    #[test]
    fn both_ends_of_the_session_are_read() {
        for (value, peer, local) in [
            ("198.51.100.7 50022 192.0.2.1 22", Some("198.51.100.7"), Some("192.0.2.1")),
            ("::ffff:198.51.100.7 50022 ::ffff:192.0.2.1 22", Some("198.51.100.7"), Some("192.0.2.1")),
            ("fe80::1%eth0 50022 fe80::2%eth0 22", Some("fe80::1"), Some("fe80::2")),
            ("127.0.0.1 50022 127.0.0.1 22", None, Some("127.0.0.1")),
            // As SSH_CLIENT has it.
            ("198.51.100.7 50022 22", Some("198.51.100.7"), None),
            ("", None, None),
        ] {
            let [peer, local] = [peer, local].map(|address| address.map(|text| text.parse().unwrap()));
            assert_eq!((ssh_peer(value), ssh_local(value)), (peer, local), "{value}");
        }
    }
}
