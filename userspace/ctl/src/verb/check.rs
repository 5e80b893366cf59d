//! `check`: what is wrong with a configuration file, by itself and on this machine.

use std::{
    io,
    path::{Path, PathBuf},
};

use clap::Args;
use serde::Serialize;
use tunica_api::{
    SCHEMA,
    view::{Finding, Level},
};
use tunica_config::{Attach, Config, Problem, Problems, ReadFileError};
use tunica_core::{
    limits::{CookieState, HostFacts},
    syncookies::{Fit, Severity},
};

use crate::{
    Failure, Global,
    exit::Exit,
    host::{Entry, Host},
    render, say, say_json,
};

/// See [`super::Verb::Check`].
#[derive(Debug, Args)]
pub(crate) struct Check {
    /// The file [default: the one that --config names]
    file: Option<PathBuf>,
    /// Compare it with this machine as well
    #[arg(long)]
    host: bool,
}

impl Check {
    /// Prints every problem, warning and finding; status 78 if the daemon could not work with the file (here).
    pub(super) fn run(self, global: &Global) -> Result<Exit, Failure> {
        let file = self.file.unwrap_or_else(|| global.config_or_default());
        match tunica_config::read_file(&file) {
            Ok(config) => {
                let findings = self.host.then(|| compare(&config, &Host::at("/")));
                accepted(global, &file, &config, findings.as_deref())
            }
            Err(ReadFileError::Problems(problems)) => rejected(global, &file, &problems),
            Err(ReadFileError::Open { path, source }) => Err(unreadable(&path, &source)),
        }
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    schema: u32,
    kind: &'static str,
    file: &'a Path,
    problems: Vec<Row<'a>>,
    warnings: Vec<String>,
    /// Absent where the file was not compared with the machine.
    host: Option<&'a [Finding]>,
}

/// One problem in [`Report`].
#[derive(Serialize)]
struct Row<'a> {
    line: usize,
    column: usize,
    key: Option<&'a str>,
    found: Option<&'a str>,
    consequence: &'a str,
    fix: &'a str,
}

impl<'a> Row<'a> {
    fn of(problem: &'a Problem) -> Self {
        Self {
            line: problem.line,
            column: problem.column,
            key: problem.key.as_deref(),
            found: problem.found.as_deref(),
            consequence: &problem.consequence,
            fix: &problem.fix,
        }
    }
}

fn unreadable(path: &Path, source: &io::Error) -> Failure {
    let path = path.display();
    if source.kind() == io::ErrorKind::NotFound {
        let message = format!(
            "{path} does not exist: nothing was checked; write it with `tunica init`, or name another file"
        );
        return Failure::new(Exit::NotFound, message);
    }
    let exit = if source.kind() == io::ErrorKind::PermissionDenied { Exit::Forbidden } else { Exit::Failed };
    Failure::new(
        exit,
        format!("{path} cannot be read ({source}): nothing was checked; run as root, or name another file"),
    )
}

fn accepted(
    global: &Global,
    file: &Path,
    config: &Config,
    findings: Option<&[Finding]>,
) -> Result<Exit, Failure> {
    let warnings = config.warnings();
    if global.json {
        say_json(&Report {
            schema: SCHEMA,
            kind: "check",
            file,
            problems: Vec::new(),
            warnings,
            host: findings,
        })?;
    } else {
        let mut text = format!("{}: valid\n", file.display());
        for warning in &warnings {
            text.push_str(&render::text::wrap("WARNING  ", "         ", warning));
        }
        if let Some(findings) = findings {
            text.push_str("\nOn this machine:\n");
            text.push_str(&render::findings(findings));
        }
        say(&text)?;
    }
    let fails = findings.unwrap_or_default().iter().any(|finding| finding.level == Level::Failure);
    Ok(if fails { Exit::BadConfig } else { Exit::Done })
}

fn rejected(global: &Global, file: &Path, problems: &Problems) -> Result<Exit, Failure> {
    if global.json {
        let problems = problems.as_slice().iter().map(Row::of).collect();
        say_json(&Report {
            schema: SCHEMA,
            kind: "check",
            file,
            problems,
            warnings: Vec::new(),
            host: None,
        })?;
    } else {
        let number = render::plural(problems.as_slice().len(), "problem");
        // One line each, however long, so that editors find `file:line:column`.
        say(&format!("{problems}\n{}: {number}; tunicad will not start with it\n", file.display()))?;
    }
    Ok(Exit::BadConfig)
}

/// The oldest kernel with everything the shield uses: multi-buffer XDP came with 5.18, and 6.1 is the oldest release
/// with long support after it.
const LEAST_KERNEL: (u32, u32) = (6, 1);
/// What one buffer of a page holds besides XDP's headroom and the kernel's own trailer, in bytes. The shield takes
/// packets of several buffers, but a driver that cannot hand them over refuses native XDP above this MTU.
const ONE_BUFFER_BYTES: u32 = 3_498;
/// Made by systemd for the unit: `RuntimeDirectory=` and `StateDirectory=`.
const MADE_BY_SYSTEMD: [&str; 2] = ["/run/tunica", "/var/lib/tunica"];

/// What of the configuration does not fit the machine, worst first.
fn compare(config: &Config, host: &Host) -> Vec<Finding> {
    let mut findings = Vec::new();
    for interface in &config.shield.interfaces {
        findings.push(check_interface(interface, config.shield.attach, host));
    }
    findings.extend(config.tor.user.as_deref().map(|user| check_tor_user(user, host)));
    findings.extend(check_session(config, host));
    findings.push(check_group(&config.control.group, host));
    findings.push(check_pin_path(&config.shield.pin_path, host));
    findings.push(check_directory("ledger_directory", &config.ledger.path, host));
    findings.push(check_directory("socket_directory", &config.control.socket, host));
    findings.push(check_syncookies(config, host));
    findings.push(check_kernel(host));
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.level));
    findings
}

fn finding(check: &str, level: Level, found: impl Into<String>, advice: impl Into<String>) -> Finding {
    Finding { check: check.to_owned(), level, found: found.into(), advice: advice.into() }
}

fn check_interface(name: &str, attach: Attach, host: &Host) -> Finding {
    const CHECK: &str = "interface";
    if !host.has_interface(name) {
        return finding(
            CHECK,
            Level::Failure,
            format!("{name} does not exist"),
            "no packet of it would be filtered, and tunicad reports NOT ATTACHED; name one that `ip link` shows under \
             [shield] interfaces",
        );
    }
    match host.mtu(name) {
        Some(mtu) if mtu > ONE_BUFFER_BYTES && attach == Attach::Native => finding(
            CHECK,
            Level::Warning,
            format!("{name} exists, MTU {mtu}"),
            format!(
                "packets above {ONE_BUFFER_BYTES} bytes span several buffers, and some drivers then refuse native XDP; \
                 if tunicad reports so, lower the MTU or set attach = \"native-or-generic\" under [shield]"
            ),
        ),
        Some(mtu) => finding(CHECK, Level::Ok, format!("{name} exists, MTU {mtu}"), ""),
        None => finding(CHECK, Level::Ok, format!("{name} exists"), ""),
    }
}

/// What the configuration means for the SSH session that asks, if its packets come in by a protected interface.
fn check_session(config: &Config, host: &Host) -> Option<Finding> {
    const CHECK: &str = "session";
    let peer = host.ssh_peer()?;
    let carrier = host.interface_towards(peer)?;
    if !config.shield.interfaces.contains(&carrier) {
        return None;
    }
    if config.shield.allow.iter().any(|prefix| prefix.contains(peer)) {
        let found = format!("{carrier} carries your SSH session, and shield.allow names {peer}");
        return Some(finding(CHECK, Level::Ok, found, ""));
    }
    Some(finding(
        CHECK,
        Level::Warning,
        format!("{carrier} carries your SSH session, and shield.allow does not name {peer}"),
        "a ban or a limit could keep you from logging in again; add the address to allow under [shield], and bring \
         changes into force with `tunica reload --confirm`, which undoes them unless you confirm",
    ))
}

fn check_tor_user(user: &str, host: &Host) -> Finding {
    if host.has_account("passwd", user) {
        return finding("tor_user", Level::Ok, format!("{user} is in /etc/passwd"), "");
    }
    finding(
        "tor_user",
        Level::Failure,
        format!("{user} is not in /etc/passwd"),
        "tor's own peers would not be known, so a ban could cut off a guard; name the account that tor runs under as \
         [tor] user, or remove the line where no tor runs",
    )
}

fn check_group(group: &str, host: &Host) -> Finding {
    if host.has_account("group", group) {
        return finding("control_group", Level::Ok, format!("{group} is in /etc/group"), "");
    }
    finding(
        "control_group",
        Level::Warning,
        format!("{group} is not in /etc/group"),
        format!("only root can ask tunicad anything; make it with `groupadd --system {group}`"),
    )
}

fn check_pin_path(path: &Path, host: &Host) -> Finding {
    const CHECK: &str = "pin_path";
    match host.mount_of(path) {
        Some(mount) if mount.kind == "bpf" && mount.is_read_only => finding(
            CHECK,
            Level::Failure,
            format!("{} is a read-only bpf file system", mount.point.display()),
            format!("the shield could not be pinned there; `mount -o remount,rw {}`", mount.point.display()),
        ),
        Some(mount) if mount.kind == "bpf" => finding(
            CHECK,
            Level::Ok,
            format!("{} lies on the bpf file system {}", path.display(), mount.point.display()),
            "",
        ),
        Some(_) | None => finding(
            CHECK,
            Level::Failure,
            format!("{} lies on no bpf file system", path.display()),
            "the shield could not outlive tunicad, so tunicad will not start; `mount -t bpf -o mode=0700 bpf /sys/fs/bpf`, or set \
             [shield] pin_path to where it is mounted",
        ),
    }
}

fn check_directory(check: &str, file: &Path, host: &Host) -> Finding {
    let directory = file.parent().unwrap_or(Path::new("/"));
    let name = directory.display();
    let is_read_only = host.mount_of(directory).is_some_and(|mount| mount.is_read_only);
    match host.entry(directory) {
        Entry::Directory { mode } if is_read_only || mode & 0o222 == 0 => finding(
            check,
            Level::Failure,
            format!(
                "{name} cannot be written to (mode {mode:04o}{})",
                if is_read_only { ", mounted read-only" } else { "" }
            ),
            "tunicad will not start; make it writable for tunicad's user, or name another path",
        ),
        Entry::Directory { mode } => finding(check, Level::Ok, format!("{name} exists, mode {mode:04o}"), ""),
        Entry::Other => finding(
            check,
            Level::Failure,
            format!("{name} is no directory"),
            "tunicad will not start; remove it, or name another path",
        ),
        Entry::Missing if MADE_BY_SYSTEMD.iter().any(|made| directory == Path::new(made)) => {
            finding(check, Level::Ok, format!("{name} does not exist yet; tunicad.service makes it"), "")
        }
        Entry::Missing => finding(
            check,
            Level::Failure,
            format!("{name} does not exist"),
            format!("tunicad will not start; make it with `install -d -m 0750 {name}` for tunicad's user"),
        ),
    }
}

/// As `tunica doctor` judges it, which asks the daemon.
fn check_syncookies(config: &Config, host: &Host) -> Finding {
    let read = |name: &str| {
        let text = host.read(&format!("/proc/sys/net/ipv4/{name}")).ok()?;
        text.trim().parse::<u32>().ok()
    };
    let found = read("tcp_syncookies");
    let facts = HostFacts {
        tcp_syncookies: found,
        tcp_timestamps: read("tcp_timestamps"),
        // Whether the kernel takes the cookie program shows only when it is loaded.
        has_cookie_program: true,
        ..HostFacts::default()
    };
    let cookies = config.settings().ok().map(|settings| CookieState::of(&settings, &facts));
    let fit = Fit::of(found.map(u64::from), cookies);
    let level = match fit.severity() {
        Severity::Failure => Level::Failure,
        Severity::Warning => Level::Warning,
        Severity::Well => Level::Ok,
    };
    let value = found.map_or_else(|| "cannot be read".to_owned(), |value| format!("is {value}"));
    finding("syncookies", level, format!("net.ipv4.tcp_syncookies {value}{}", fit.clause()), fit.advice())
}

fn check_kernel(host: &Host) -> Finding {
    const CHECK: &str = "kernel";
    let (major, minor) = LEAST_KERNEL;
    match host.kernel() {
        Some((release, version)) if version >= LEAST_KERNEL => finding(CHECK, Level::Ok, release, ""),
        Some((release, _)) => finding(
            CHECK,
            Level::Failure,
            format!("{release} is older than {major}.{minor}"),
            format!("the shield may not load; run Linux {major}.{minor} or later"),
        ),
        None => finding(
            CHECK,
            Level::Warning,
            "the kernel's release cannot be read",
            format!("Linux {major}.{minor} or later is needed; look at `uname -r`"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    /// A machine that the default configuration fits.
    const FITTING: [(&str, &str); 7] = [
        ("sys/class/net/eth0/mtu", "1500\n"),
        ("etc/passwd", "root:x:0:0::/root:/bin/sh\ndebian-tor:x:107:113::/var/lib/tor:/bin/false\n"),
        ("etc/group", "root:x:0:\ntunica:x:990:admin\n"),
        ("proc/mounts", "/dev/vda1 / ext4 rw 0 0\nbpf /sys/fs/bpf bpf rw 0 0\n"),
        ("proc/sys/net/ipv4/tcp_syncookies", "2\n"),
        ("proc/sys/kernel/osrelease", "6.12.4-amd64\n"),
        ("var/lib/tunica/ledger.redb", ""),
    ];
    const CONFIG: &str = "[shield]\ninterfaces = [\"eth0\"]\n[tor]\nuser = \"debian-tor\"\n";

    /// What is said about a machine with [`FITTING`]'s files, these replacing or adding to them.
    fn compared(config: &str, files: &[(&str, &str)]) -> Vec<Finding> {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in FITTING.iter().chain(files) {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let ledger = root.path().join("var/lib/tunica");
        fs::set_permissions(ledger, fs::Permissions::from_mode(0o750)).unwrap();
        compare(&tunica_config::read(config, "test").unwrap(), &Host::at(root.path()))
    }

    #[test]
    fn a_fitting_machine_is_all_well() {
        let findings = compared(CONFIG, &[]);
        assert_eq!(findings.len(), 8);
        for finding in findings {
            assert_eq!((finding.level, finding.advice.as_str()), (Level::Ok, ""), "{}", finding.found);
        }
    }

    /// A configuration, files, and the one finding that is not well.
    type Misfit<'a> = (&'a str, &'a [(&'a str, &'a str)], Option<(&'a str, Level)>);

    #[test]
    fn each_misfit_is_found_alone() {
        let eth9 = CONFIG.replace("eth0", "eth9");
        let other_user = CONFIG.replace("debian-tor", "tor");
        let ledger = format!("{CONFIG}[ledger]\npath = \"/srv/tunica/ledger.redb\"\n");
        let generic = CONFIG.replace("]\n[tor]", "]\nattach = \"native-or-generic\"\n[tor]");
        let jumbo = [("sys/class/net/eth0/mtu", "9000\n")];
        let route = "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n";
        let session = [
            ("proc/net/route", route),
            ("proc/self/environ", "SSH_CONNECTION=198.51.100.7 50022 192.0.2.1 22\0"),
        ];
        let allowing = CONFIG.replace("]\n[tor]", "]\nallow = [\"198.51.100.0/24\"]\n[tor]");
        let elsewhere = [session[1], ("proc/net/route", &*route.replace("eth0", "eth1"))];
        let managed = format!("{CONFIG}[shield.cookies]\nmanage_syncookies = true\n");
        let rows: [Misfit<'_>; 19] = [
            (CONFIG, &session, Some(("session", Level::Warning))),
            (&allowing, &session, None),
            (CONFIG, &elsewhere, None),
            (&eth9, &[], Some(("interface", Level::Failure))),
            (CONFIG, &jumbo, Some(("interface", Level::Warning))),
            (&generic, &jumbo, None),
            (&other_user, &[], Some(("tor_user", Level::Failure))),
            (CONFIG, &[("etc/group", "root:x:0:\n")], Some(("control_group", Level::Warning))),
            (CONFIG, &[("proc/mounts", "/dev/vda1 / ext4 rw 0 0\n")], Some(("pin_path", Level::Failure))),
            (CONFIG, &[("proc/mounts", "bpf /sys/fs/bpf bpf ro 0 0\n")], Some(("pin_path", Level::Failure))),
            (&ledger, &[], Some(("ledger_directory", Level::Failure))),
            (&ledger, &[("srv/tunica", "")], Some(("ledger_directory", Level::Failure))),
            (
                CONFIG,
                &[("proc/mounts", "a / ext4 rw 0 0\nbpf /sys/fs/bpf bpf rw 0 0\nb /var ext4 ro 0 0\n")],
                Some(("ledger_directory", Level::Failure)),
            ),
            (CONFIG, &[("proc/sys/net/ipv4/tcp_syncookies", "0\n")], Some(("syncookies", Level::Failure))),
            (CONFIG, &[("proc/sys/net/ipv4/tcp_syncookies", "1\n")], Some(("syncookies", Level::Warning))),
            (&managed, &[("proc/sys/net/ipv4/tcp_syncookies", "1\n")], None),
            (CONFIG, &[("proc/sys/net/ipv4/tcp_syncookies", "?\n")], Some(("syncookies", Level::Warning))),
            (CONFIG, &[("proc/sys/kernel/osrelease", "5.15.0\n")], Some(("kernel", Level::Failure))),
            (CONFIG, &[("proc/sys/kernel/osrelease", "?\n")], Some(("kernel", Level::Warning))),
        ];
        for (config, files, expected) in rows {
            let findings = compared(config, files);
            let bad: Vec<_> = findings.iter().filter(|finding| finding.level != Level::Ok).collect();
            let seen: Vec<_> = bad.iter().map(|finding| (finding.check.as_str(), finding.level)).collect();
            assert_eq!(seen, Vec::from_iter(expected), "{files:?}");
            assert!(bad.iter().all(|finding| !finding.advice.is_empty()));
            assert_eq!(
                findings.first().map(|finding| finding.level),
                expected.map(|(_, level)| level).or(Some(Level::Ok))
            );
        }
    }
}
