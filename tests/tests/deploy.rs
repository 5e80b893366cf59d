//! What `deploy/` ships, tried by the programs that will read it: the unit, the group, the alert rules and their runbooks.

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

/// Largest exposure that the unit may have, by `systemd-analyze security`.
const MOST_EXPOSURE: f64 = 2.0;

/// Headings of every runbook, in order.
const RUNBOOK_HEADINGS: [&str; 5] = ["## What it means", "## Meanwhile", "## Look", "## Do", "## Undo"];

fn root() -> Result<PathBuf> {
    Ok(Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the package has no parent folder")?.to_owned())
}

/// `program` from the tree's own tools, else from PATH.
fn tool(program: &str) -> Result<Command> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(root()?.join("target/tools/bin")).chain(env::split_paths(&path));
    let found = folders.map(|folder| folder.join(program)).find(|file| file.is_file());
    Ok(Command::new(found.with_context(|| {
        format!("`{program}` is neither in target/tools/bin nor on PATH; `cargo xtask setup` brings it")
    })?))
}

/// Runs `command` and returns everything it wrote.
fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{command:?} ended with {}:\n{said}", output.status);
    Ok(said)
}

fn unit() -> Result<PathBuf> {
    Ok(root()?.join("deploy/tunicad.service"))
}

/// The units of services.
const SERVICES: [&str; 2] = ["tunicad.service", "tunica-front.service"];

/// The lines of a unit's section that are settings.
fn settings<'a>(unit: &'a str, section: &str) -> Vec<&'a str> {
    let mut inside = false;
    let mut found = Vec::new();
    for line in unit.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if line.starts_with('[') {
            inside = line == section;
        } else if inside {
            found.push(line);
        }
    }
    found
}

#[test]
fn the_units_expose_little() -> Result<()> {
    for name in SERVICES {
        let mut analyze = tool("systemd-analyze")?;
        let unit = root()?.join("deploy").join(name);
        let report = run(analyze.args(["security", "--no-pager", "--offline=true"]).arg(unit))?;
        let overall =
            report.lines().find(|line| line.contains("Overall exposure level")).context("no overall line")?;
        let (_, behind) = overall.rsplit_once(": ").context("no colon in the overall line")?;
        let exposure: f64 = behind.split_whitespace().next().context("no figure")?.parse()?;
        ensure!(
            exposure <= MOST_EXPOSURE,
            "{name}: exposure {exposure}, at most {MOST_EXPOSURE} is allowed:\n{report}"
        );
    }
    Ok(())
}

#[test]
fn systemd_reads_the_units_without_complaint() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut copies = Vec::new();
    for name in SERVICES.into_iter().chain(["tunica-front.socket"]) {
        let copy = folder.path().join(name);
        let text = fs::read_to_string(root()?.join("deploy").join(name))?;
        // Nothing is installed here, so what the units start, and whom they name, is replaced by what is there.
        let mut text = text;
        for (installed, here) in [
            ("=/usr/bin/tunicad ", "=/bin/true "),
            ("=/usr/bin/tunica ", "=/bin/true "),
            ("=/usr/bin/tunica-front ", "=/bin/true "),
            ("=tunica-front\n", "=daemon\n"),
            ("=debian-tor\n", "=daemon\n"),
        ] {
            text = text.replace(installed, here);
        }
        fs::write(&copy, text)?;
        copies.push(copy);
    }
    for (drop_in, unit) in [
        ("tunica-front-arti.conf", "tunica-front.service.d"),
        ("tunica-front-arti-socket.conf", "tunica-front.socket.d"),
    ] {
        let beside = folder.path().join(unit);
        fs::create_dir(&beside)?;
        let text = fs::read_to_string(root()?.join("deploy").join(drop_in))?;
        fs::write(beside.join("arti.conf"), text.replace("=tunica\n", "=daemon\n"))?;
    }
    let mut analyze = tool("systemd-analyze")?;
    let said = run(analyze.args(["verify", "--man=no", "--recursive-errors=no"]).args(&copies))?;
    let complaints: Vec<&str> = said.lines().filter(|line| line.contains("tunica")).collect();
    ensure!(complaints.is_empty(), "{complaints:#?}");
    Ok(())
}

#[test]
fn the_front_has_no_capability_no_share_of_the_cpu_and_is_watched() -> Result<()> {
    let text = fs::read_to_string(root()?.join("deploy/tunica-front.service"))?;
    let settings = settings(&text, "[Service]");
    for line in [
        "Type=notify",
        "ExecReload=/bin/kill -HUP $MAINPID",
        "WatchdogSec=30",
        "CapabilityBoundingSet=",
        "AmbientCapabilities=",
        "User=tunica-front",
        "Restart=always",
        "RestartSec=5",
    ] {
        ensure!(settings.contains(&line), "{line} is missing");
    }
    ensure!(
        !settings.iter().any(|line| line.starts_with("CPUQuota=")),
        "a quota starves the ingress under attack"
    );
    // Sockets are held by systemd, and tor's account alone reaches the file.
    let socket = fs::read_to_string(root()?.join("deploy/tunica-front.socket"))?;
    // Connections without a byte are kept from the front as long as the front itself would wait for a request.
    let config = tunica_config::read("[shield]\ninterfaces = [\"eth0\"]", "the defaults")?;
    let defers = format!("DeferAcceptSec={}", config.ingress.request.as_secs());
    for line in ["ListenStream=127.0.0.1:10000", "SocketMode=0660", "NoDelay=yes", &defers] {
        ensure!(crate::settings(&socket, "[Socket]").contains(&line), "{line} is missing");
    }
    Ok(())
}

/// Where there is no C tor there is no group of its account either.
#[test]
fn without_c_tor_the_socket_belongs_to_a_group_that_is_made() -> Result<()> {
    let drop_in = fs::read_to_string(root()?.join("deploy/tunica-front-arti-socket.conf"))?;
    ensure!(settings(&drop_in, "[Socket]") == ["SocketGroup=tunica"], "{drop_in}");
    let made = fs::read_to_string(root()?.join("deploy/sysusers.d/tunica.conf"))?;
    let makes = |line: &str| line.split_whitespace().take(2).eq(["g", "tunica"]);
    ensure!(made.lines().any(makes), "{made}");
    Ok(())
}

/// What the next boot starts, once the guide's `systemctl enable` was typed.
#[test]
fn what_the_guide_enables_comes_back_after_a_reboot() -> Result<()> {
    let guide = fs::read_to_string(root()?.join("docs/guide.md"))?;
    let typed = guide.lines().filter_map(|line| line.trim().strip_prefix("systemctl enable --now "));
    let typed: BTreeSet<&str> = typed.collect();
    ensure!(typed == BTreeSet::from(["tunica-front", "tunicad"]), "the guide enables {typed:?}");
    let scratch = tempfile::tempdir()?;
    let units = scratch.path().join("usr/lib/systemd/system");
    fs::create_dir_all(&units)?;
    for name in SERVICES.into_iter().chain(["tunica-front.socket"]) {
        fs::copy(root()?.join("deploy").join(name), units.join(name))?;
    }
    let mut enable = tool("systemctl")?;
    run(enable.arg("--root").arg(scratch.path()).arg("enable").args(typed))?;
    for link in [
        "multi-user.target.wants/tunicad.service",
        "multi-user.target.wants/tunica-front.service",
        "sockets.target.wants/tunica-front.socket",
    ] {
        let path = scratch.path().join("etc/systemd/system").join(link);
        ensure!(path.symlink_metadata().is_ok_and(|found| found.is_symlink()), "{link} is not made");
    }
    Ok(())
}

#[test]
fn the_unit_says_what_was_decided() -> Result<()> {
    let text = fs::read_to_string(unit()?)?;
    for (section, wanted) in [
        ("[Unit]", &["StartLimitBurst=5", "StartLimitIntervalSec=60"][..]),
        (
            "[Service]",
            &[
                "Type=notify",
                "WatchdogSec=30",
                "Restart=always",
                "RestartSec=5",
                "MemoryMax=512M",
                "CPUQuota=80%",
                "NoNewPrivileges=yes",
                "ProtectSystem=strict",
                "PrivateTmp=yes",
                "CapabilityBoundingSet=CAP_BPF CAP_NET_ADMIN CAP_PERFMON",
            ][..],
        ),
    ] {
        let settings = settings(&text, section);
        for line in wanted {
            let (key, _) = line.split_once('=').context("no setting")?;
            let given: Vec<&&str> =
                settings.iter().filter(|setting| setting.starts_with(&format!("{key}="))).collect();
            ensure!(given == [line], "{section} {key}: found {given:?}, {line} was decided");
        }
    }
    Ok(())
}

/// `ProtectClock=` refuses the whole of `@clock`, reading included, whatever `SystemCallFilter=` allows (systemd.exec(5)).
#[test]
fn the_unit_lets_the_daemon_ask_for_the_clock_and_not_set_it() -> Result<()> {
    let text = fs::read_to_string(unit()?)?;
    let settings = settings(&text, "[Service]");
    let allowed = settings.iter().filter_map(|line| line.strip_prefix("SystemCallFilter="));
    let allowed: Vec<&str> =
        allowed.filter(|list| !list.starts_with('~')).flat_map(str::split_whitespace).collect();
    for call in ["adjtimex", "clock_adjtime"] {
        ensure!(allowed.contains(&call), "{call} is not among {allowed:?}");
    }
    ensure!(!settings.contains(&"ProtectClock=yes"), "ProtectClock=yes forbids what was allowed");
    let bounds = settings.iter().find(|line| line.starts_with("CapabilityBoundingSet="));
    ensure!(bounds.is_some_and(|line| !line.contains("CAP_SYS_TIME")), "{bounds:?}");
    Ok(())
}

#[test]
fn the_group_is_made() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    fs::create_dir(scratch.path().join("etc"))?;
    let mut root_option = std::ffi::OsString::from("--root=");
    root_option.push(scratch.path());
    // With --root the file must lie inside, so it is named on standard input.
    let file = fs::File::open(root()?.join("deploy/sysusers.d/tunica.conf"))?;
    run(tool("systemd-sysusers")?.arg(root_option).arg("-").stdin(file))?;
    let groups = fs::read_to_string(scratch.path().join("etc/group"))?;
    ensure!(
        groups.lines().any(|line| line.starts_with("tunica:") && line.ends_with(":tunica-front")),
        "no group tunica with tunica-front in:\n{groups}"
    );
    let accounts = fs::read_to_string(scratch.path().join("etc/passwd"))?;
    ensure!(accounts.lines().any(|line| line.starts_with("tunica-front:")), "no account in:\n{accounts}");
    Ok(())
}

#[test]
fn alert_rules_fire_stay_quiet_and_end() -> Result<()> {
    let folder = root()?.join("deploy/prometheus");
    for arguments in [
        &["check", "config", "scrape.yml"][..],
        &["check", "rules", "tunica.rules.yml"],
        &["test", "rules", "tunica.rules.test.yml", "tunica.rules.days.test.yml"],
    ] {
        run(tool("promtool")?.args(arguments).current_dir(&folder))?;
    }
    Ok(())
}

/// One alert of the rule file, as its lines.
struct Alert<'a> {
    name: &'a str,
    lines: Vec<&'a str>,
}

fn alerts(rules: &str) -> Vec<Alert<'_>> {
    let mut found: Vec<Alert<'_>> = Vec::new();
    for line in rules.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("- alert: ") {
            found.push(Alert { name, lines: Vec::new() });
        } else if let Some(alert) = found.last_mut() {
            alert.lines.push(line);
        }
    }
    found
}

impl Alert<'_> {
    fn value(&self, key: &str) -> Result<&str> {
        let value = self.lines.iter().find_map(|line| line.strip_prefix(key)?.strip_prefix(": "));
        value.with_context(|| format!("{} has no {key}", self.name))
    }
}

#[test]
fn every_alert_has_its_words_its_cases_and_its_runbook() -> Result<()> {
    let root = root()?;
    let rules = fs::read_to_string(root.join("deploy/prometheus/tunica.rules.yml"))?;
    // First the cases that last for hours, then those of days; an alert may have one of each.
    let cases = fs::read_to_string(root.join("deploy/prometheus/tunica.rules.test.yml"))?
        + &fs::read_to_string(root.join("deploy/prometheus/tunica.rules.days.test.yml"))?;
    let alerts = alerts(&rules);
    ensure!(alerts.len() == rules.matches("alert:").count() && !alerts.is_empty(), "the rules were misread");
    for alert in &alerts {
        let severity = alert.value("severity")?;
        ensure!(["warning", "critical"].contains(&severity), "{}: severity {severity}", alert.name);
        for key in ["expr", "summary", "description"] {
            alert.value(key)?;
        }
        let runbook = alert.value("runbook_url")?;
        ensure!(runbook == format!("docs/runbooks/{}.md", alert.name), "{}: runbook {runbook}", alert.name);

        let case = cases.split("\n  - name: ").find(|case| case.lines().next() == Some(alert.name));
        let case = case.with_context(|| format!("no case is named {}", alert.name))?;
        let mut expected: Vec<bool> =
            case.split("exp_alerts:").skip(1).map(|rest| !rest.starts_with(" []")).collect();
        // It may be looked at more than once while it fires.
        expected.dedup();
        ensure!(expected == [false, true, false], "{}: fires {expected:?}", alert.name);
    }

    let names: BTreeSet<&str> = alerts.iter().map(|alert| alert.name).collect();
    for entry in fs::read_dir(root.join("docs/runbooks"))? {
        let path = entry?.path();
        let name = path.file_stem().and_then(|stem| stem.to_str()).context("a runbook without a name")?;
        ensure!(names.contains(name), "{} belongs to no alert", path.display());
    }
    for name in names {
        let path = root.join(format!("docs/runbooks/{name}.md"));
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let headings: Vec<&str> = text.lines().filter(|line| line.starts_with("## ")).collect();
        if headings != RUNBOOK_HEADINGS {
            bail!("{}: the headings are {headings:?}", path.display());
        }
    }
    Ok(())
}
