//! `check`: what is wrong with a configuration file, by itself and on this machine.

use std::{
    cmp::Reverse,
    fs, io,
    path::{Path, PathBuf},
};

use clap::Args;
use serde::Serialize;
use tunica_api::{
    SCHEMA,
    view::{Finding, Level},
};
use tunica_config::{Attach, Config, Place, Problem, Problems, ReadFileError};
use tunica_core::{
    limits::{CookieState, HostFacts},
    syncookies::{Fit, Severity},
};
use tunica_onion::torrc::{Exposure, Listener, Torrc};

use crate::{
    Failure, Global,
    exit::Exit,
    host::{Entry, Host},
    render, say, say_json,
};

/// Where tor's configuration is on Debian and most other systems.
const USUAL_TORRC: &str = "/etc/tor/torrc";

/// See [`super::Verb::Check`].
#[derive(Debug, Args)]
pub(crate) struct Check {
    /// The file [default: the one that --config names]
    file: Option<PathBuf>,
    /// Compare it with this machine and its torrc as well
    #[arg(long)]
    host: bool,
    /// Compare it with what this torrc publishes as well
    #[arg(long, value_name = "FILE")]
    torrc: Option<PathBuf>,
}

impl Check {
    /// Prints every problem, warning and finding; status 78 if the daemon could not work with the file (here).
    pub(super) fn run(self, global: &Global) -> Result<Exit, Failure> {
        let file = self.file.unwrap_or_else(|| global.config_or_default());
        match tunica_config::read_file(&file) {
            Ok(config) => {
                let mut findings = self.host.then(|| compare(&config, &Host::at("/")));
                if let Some(path) = &self.torrc {
                    let text = fs::read(path).map_err(|source| torrc_unreadable(path, &source))?;
                    let published = check_torrc(&config, path, &String::from_utf8_lossy(&text));
                    findings.get_or_insert_default().extend(published);
                } else if let Some(findings) = &mut findings {
                    findings.extend(check_usual_torrc(&config, Path::new(USUAL_TORRC)));
                }
                if let Some(findings) = &mut findings {
                    findings.sort_by_key(|finding| Reverse(finding.level));
                }
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

fn torrc_unreadable(path: &Path, source: &io::Error) -> Failure {
    let exit = if source.kind() == io::ErrorKind::NotFound {
        Exit::NotFound
    } else if source.kind() == io::ErrorKind::PermissionDenied {
        Exit::Forbidden
    } else {
        Exit::Failed
    };
    let message = format!(
        "{} cannot be read ({source}): what tor publishes was not compared; name the file that your tor reads, and run as root \
         where others may not read it",
        path.display()
    );
    Failure::new(exit, message)
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

/// As [`check_torrc`], of a file that nobody named: it may be missing, and all else is said where it cannot be read.
fn check_usual_torrc(config: &Config, path: &Path) -> Vec<Finding> {
    match fs::read(path) {
        Ok(text) => check_torrc(config, path, &String::from_utf8_lossy(&text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => vec![finding(
            "torrc",
            Level::Warning,
            format!("{} cannot be read ({error})", path.display()),
            "what tor publishes was not compared; run as root, or name the file that your tor reads with --torrc",
        )],
    }
}

/// What services of tor's publish of this configuration's listeners.
fn check_torrc(config: &Config, path: &Path, text: &str) -> Vec<Finding> {
    const CHECK: &str = "torrc";
    let path = path.display();
    let torrc = Torrc::parse(text);
    let mut findings = Vec::new();
    for problem in &torrc.problems {
        findings.push(finding(
            CHECK,
            Level::Failure,
            format!("{path}: line {}: {}", problem.line, problem.fault),
            "tor refuses the line or it \
            is not understood here, so what it publishes is not known; correct it and check again",
        ));
    }
    for line in &torrc.includes {
        findings.push(finding(
            CHECK,
            Level::Warning,
            format!("{path}: line {line} takes in other files"),
            "what these publish was not compared; check each of them with --torrc",
        ));
    }
    let (private, ingress) = (config.private_places(), config.ingress_places());
    let private: Vec<_> = private.iter().map(|(key, place)| (*key, listener(place))).collect();
    let ingress: Vec<_> = ingress.iter().map(listener).collect();
    let guarded: Vec<_> = config.guarded_places().iter().map(listener).collect();
    for exposure in torrc.exposures(&private, &ingress, &guarded) {
        findings.push(match exposure {
            Exposure::Published { key, line } => finding(
                CHECK,
                Level::Failure,
                format!("{path}: line {line} publishes {key} as an onion service"),
                format!(
                    "whoever knows the onion address could reach what must stay on this host; remove the line, or give {key} \
                     another place"
                ),
            ),
            Exposure::PastIngress { line } => finding(
                CHECK,
                Level::Warning,
                format!("{path}: line {line} leads to one of ingress.backends past the ingress"),
                format!(
                    "no limit of [circuits] acts on whoever comes by that service; lead it to {}, unless that is meant",
                    config.ingress_place()
                ),
            ),
            Exposure::NotIngress => finding(
                CHECK,
                Level::Warning,
                format!("{path}: no HiddenServicePort leads to ingress.listen or ingress.socket"),
                format!(
                    "the ingress would get no stream, and no limit of [circuits] would act; write \
                     `HiddenServicePort 80 {}` for the service that it stands before",
                    config.ingress_place()
                ),
            ),
            Exposure::NoCircuit { line } => finding(
                CHECK,
                Level::Warning,
                format!("{path}: line {line} leads to the ingress, and its service tells no circuit"),
                "each of its streams would be closed unanswered; write `HiddenServiceExportCircuitID haproxy` below its \
                 HiddenServiceDir",
            ),
        });
    }
    if findings.is_empty() {
        let found = format!(
            "{path}: {} published, none of them ours to keep",
            render::plural(torrc.ports.len(), "port")
        );
        findings.push(finding(CHECK, Level::Ok, found, ""));
    }
    findings
}

fn listener(place: &Place) -> Listener<'_> {
    match place {
        Place::Tcp(address) => Listener::Tcp(*address),
        Place::Unix(path) => Listener::Unix(path),
    }
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
        let mut findings = compare(&tunica_config::read(config, "test").unwrap(), &Host::at(root.path()));
        findings.sort_by_key(|finding| Reverse(finding.level));
        findings
    }

    #[test]
    fn what_a_torrc_publishes_is_judged() {
        let config = format!(
            "{CONFIG}control = \"127.0.0.1:9051\"\n[ingress]\nenabled = true\nsocket = \"/srv/ingress.sock\"\n"
        );
        let service = "HiddenServiceDir /var/lib/tor/shop\nHiddenServiceExportCircuitID haproxy\n";
        let good = format!("{service}HiddenServicePort 80 127.0.0.1:10000\n");
        let without_ingress = CONFIG.to_owned();
        let metrics_off = format!("{config}[http]\nenabled = false\n");
        let config = format!("{config}backends = [\"127.0.0.1:8080\"]\n")
            .replace("[tor]", "[tor]\nmetrics = \"127.0.0.1:9035\"");
        let haproxy = format!(
            "{CONFIG}[ingress]\nbackends = [\"127.0.0.1:8080\"]\n[haproxy]\nsocket = \"/run/haproxy/tunica.sock\"\n"
        );
        let unix_control = config.replace("127.0.0.1:9051", "unix:/run/tor/control");
        let published = |port: &str| format!("{good}HiddenServicePort {port}\n");
        for (config, text, expected) in [
            (&config, good.clone(), (Level::Ok, "1 port published")),
            (
                &config,
                format!("{service}HiddenServicePort 80 unix:/run/tunica-front/ingress.sock"),
                (Level::Ok, "1 port"),
            ),
            (&config, format!("{service}HiddenServicePort 80 unix:/srv/ingress.sock"), (Level::Ok, "1 port")),
            (&config, published("9187"), (Level::Failure, "line 4 publishes http.listen")),
            (&config, published("80 localhost:9187"), (Level::Failure, "http.listen")),
            (&metrics_off, published("9187"), (Level::Ok, "2 ports")),
            (&config, published("80 127.0.0.1:9035"), (Level::Failure, "publishes tor.metrics")),
            (
                &config,
                published("80 127.0.0.1:8080"),
                (Level::Warning, "line 4 leads to one of ingress.backends"),
            ),
            (
                &haproxy,
                published("80 unix:/run/haproxy/tunica.sock"),
                (Level::Failure, "publishes haproxy.socket"),
            ),
            (&haproxy, good.clone(), (Level::Ok, "1 port published")),
            (&haproxy, service.to_owned(), (Level::Warning, "no HiddenServicePort leads to ingress.listen")),
            (
                &haproxy,
                format!("{service}HiddenServicePort 80 unix:/run/tunica-front/ingress.sock"),
                (Level::Warning, "no HiddenServicePort leads to ingress.listen"),
            ),
            (
                &haproxy,
                good.replace("ID haproxy", "ID none"),
                (Level::Warning, "line 3 leads to the ingress, and its service tells no circuit"),
            ),
            (&haproxy, published("80 9000"), (Level::Failure, "publishes HAProxy's statistics")),
            (&haproxy, published("80 127.0.0.1:8080"), (Level::Warning, "past the ingress")),
            (&config, published("80 9000"), (Level::Ok, "2 ports")),
            (&config, published("80 127.0.0.1:9051"), (Level::Failure, "publishes tor.control")),
            (&unix_control, published("80 unix:/run/tor/control"), (Level::Failure, "publishes tor.control")),
            (
                &config,
                published("80 unix:/run/tunica/tunicad.sock"),
                (Level::Failure, "publishes control.socket"),
            ),
            (
                &config,
                published("80 unix:/run/tunica/front.sock"),
                (Level::Failure, "the socket of tunica-front"),
            ),
            (
                &config,
                published("0"),
                (Level::Failure, "line 4: HiddenServicePort does not begin with a port"),
            ),
            (&config, service.to_owned(), (Level::Warning, "no HiddenServicePort leads to ingress.listen")),
            (&without_ingress, service.to_owned(), (Level::Ok, "0 ports published")),
            (&config, good.replace("haproxy", "none"), (Level::Warning, "line 3 leads to the ingress")),
            (
                &config,
                format!("{good}%include /etc/tor/torrc.d"),
                (Level::Warning, "line 4 takes in other files"),
            ),
        ] {
            let findings = check_torrc(
                &tunica_config::read(config, "test").unwrap(),
                Path::new("/etc/tor/torrc"),
                &text,
            );
            let [found] = findings.as_slice() else { panic!("{text}: {findings:?}") };
            assert_eq!(found.level, expected.0, "{text}");
            assert!(
                found.found.contains(expected.1) && found.found.starts_with("/etc/tor/torrc"),
                "{}",
                found.found
            );
            assert_eq!(found.advice.is_empty(), found.level == Level::Ok);
        }
        // Where the socket is, which no other process reaches, tor is led there.
        for (config, place) in [(&config, "80 unix:/srv/ingress.sock`"), (&haproxy, "80 127.0.0.1:10000`")] {
            let config = tunica_config::read(config, "test").unwrap();
            let findings = check_torrc(&config, Path::new("/etc/tor/torrc"), service);
            assert!(findings[0].advice.contains(place), "{findings:?}");
        }
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

    #[test]
    fn a_torrc_that_nobody_named_is_no_reason_to_say_nothing() {
        let root = tempfile::tempdir().unwrap();
        let config = tunica_config::read(CONFIG, "test").unwrap();
        let torrc = root.path().join("torrc");
        assert!(check_usual_torrc(&config, &torrc).is_empty());
        // Whoever runs this, root too, cannot read it.
        fs::create_dir(&torrc).unwrap();
        let findings = check_usual_torrc(&config, &torrc);
        let [only] = findings.as_slice() else { panic!("{findings:?}") };
        assert_eq!((only.check.as_str(), only.level), ("torrc", Level::Warning));
        assert!(only.found.contains(&format!("{} cannot be read", torrc.display())), "{only:?}");
        assert!(only.advice.contains("was not compared") && only.advice.contains("--torrc"), "{only:?}");
    }
}
