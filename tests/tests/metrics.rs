//! Every exported metric, driven from its cause.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper that fails is a test that fails"
)]

use std::{
    collections::BTreeSet,
    fs,
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Stdio,
    thread,
    time::Duration,
};

use nix::sys::signal::Signal;
use tunica_tests::{
    disk::SmallDisk,
    flood::Pattern,
    lab::{CLIENT, HOST, Lab, null_segment},
    sys::clock,
};
use tunicad::metrics::METRICS;

/// Remembers which metrics were seen to move.
struct Watch {
    lab: Lab,
    seen: BTreeSet<&'static str>,
}

impl Watch {
    fn value(&self, series: &str) -> f64 {
        self.lab.metric(series).unwrap().unwrap_or(0.0)
    }

    /// The name of the metric in `METRICS`, so that a misspelt one cannot pass.
    fn note(&mut self, series: &str) {
        let name = series.split('{').next().unwrap();
        let metric = METRICS.iter().find(|metric| metric.name == name);
        self.seen.insert(metric.unwrap_or_else(|| panic!("{name} is in no table")).name);
    }

    /// Waits until the series has this value.
    fn becomes(&mut self, series: &str, value: f64) {
        self.note(series);
        self.lab
            .wait_for(&format!("{series} = {value}"), |lab| Ok(lab.metric(series)? == Some(value)))
            .unwrap();
    }

    /// Waits until the series is above this value.
    fn exceeds(&mut self, series: &str, value: f64) {
        self.note(series);
        self.lab
            .wait_for(&format!("{series} > {value}"), |lab| {
                Ok(lab.metric(series)?.is_some_and(|now| now > value))
            })
            .unwrap();
    }
}

/// What the daemon finds where its cgroup is: files written as the kernel writes them, since no test may bring the machine
/// it runs on, or its own daemon, to the end of memory.
struct Cgroup {
    /// Where cgroup v2 is mounted.
    mount: String,
    /// What the daemon sees there.
    tree: PathBuf,
    /// The daemon's own place in it.
    own: PathBuf,
}

impl Cgroup {
    fn new(lab: &Lab) -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mount =
            mounts.lines().find(|line| line.contains(" - cgroup2 ")).expect("cgroup v2 is not mounted");
        let mount = mount.split(' ').nth(4).unwrap().to_owned();
        let cgroup = fs::read_to_string("/proc/self/cgroup").unwrap();
        let path = cgroup.lines().find_map(|line| line.strip_prefix("0::/")).unwrap();
        let tree = lab.path("cgroup");
        let own = tree.join(path);
        fs::create_dir_all(&own).unwrap();
        Self { mount, tree, own }
    }

    /// Starts what follows with `tree` in the place of the mount, in a mount namespace of its own.
    fn wrapper(&self) -> [&str; 7] {
        const SCRIPT: &str = "mount --bind \"$0\" \"$1\" && shift && exec \"$@\"";
        ["unshare", "--mount", "sh", "-c", SCRIPT, self.tree.to_str().unwrap(), &self.mount]
    }

    fn tell(&self, current: u64, most: &str, max_events: u64) {
        let events = format!("low 0\nhigh 0\nmax {max_events}\noom 0\noom_kill 0\noom_group_kill 0\n");
        for (name, text) in
            [("current", format!("{current}\n")), ("max", format!("{most}\n")), ("events", events)]
        {
            fs::write(self.own.join(format!("memory.{name}")), text).unwrap();
        }
    }
}

#[test]
fn every_metric_moves_by_its_cause() {
    let mut lab = Lab::new("metrics").unwrap();
    let small = SmallDisk::mount(&lab.path("disk")).unwrap();
    let shield = |mode: &str| format!("mode = \"{mode}\"\nevents = {{ per_second = 10000 }}");
    let configure = |lab: &Lab, mode: &str| {
        lab.configure(
            &shield(mode),
            "[tor]\nuser = \"nobody\"\nscan_every_seconds = 1\nmetrics = \"127.0.0.1:1\"",
        )
        .unwrap();
        let path = lab.path("tunica.toml");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("/ledger.redb", "/disk/ledger.redb")).unwrap();
    };
    configure(&lab, "observe");
    let cgroup = Cgroup::new(&lab);
    cgroup.tell(3 << 20, "4194304", 0);
    lab.start_through(&cgroup.wrapper()).unwrap();
    let mut watch = Watch { lab, seen: BTreeSet::new() };
    // Declared after the lab, so that it is unmounted before the lab's folder goes.
    let disk = small;

    let info = watch.lab.http("/metrics").unwrap().1;
    assert!(info.contains(&format!("version=\"{}\"", env!("CARGO_PKG_VERSION"))), "{info}");
    watch.note("tunica_build_info");

    // Observe, then enforce: the same segment is counted under another action, and the generation grows.
    let null = null_segment();
    watch.becomes("tunica_shield_mode{mode=\"observe\"}", 1.0);
    watch.lab.send(&null, 5).unwrap();
    watch.becomes("tunica_shield_packets_total{action=\"would_drop\",verdict=\"null_flags\"}", 5.0);
    watch.becomes("tunica_incidents_total{kind=\"sanity\"}", 1.0);
    watch.becomes("tunica_incident_active", 1.0);
    let generation = watch.value("tunica_shield_policy_generation");
    configure(&watch.lab, "enforce");
    watch.lab.must(&["reload"]).unwrap();
    watch.becomes("tunica_config_reloads_total{result=\"ok\"}", 1.0);
    watch.becomes("tunica_shield_mode{mode=\"enforce\"}", 1.0);
    watch.becomes("tunica_shield_mode{mode=\"observe\"}", 0.0);
    watch.exceeds("tunica_shield_policy_generation", generation);
    watch.lab.send(&null, 5).unwrap();
    watch.becomes("tunica_shield_packets_total{action=\"drop\",verdict=\"null_flags\"}", 5.0);
    watch.becomes("tunica_shield_bytes_total{action=\"drop\",verdict=\"null_flags\"}", 5.0 * 54.0);
    // The clock that spaces events moves every few milliseconds, so a burst gives one or two.
    watch.exceeds("tunica_events_received_total", 1.0);
    fs::write(watch.lab.path("tunica.toml"), "[shield]\n").unwrap();
    watch.lab.tunica(&["reload"]).unwrap();
    watch.becomes("tunica_config_reloads_total{result=\"refused\"}", 1.0);
    configure(&watch.lab, "enforce");

    // Attachment, bypass.
    watch.becomes("tunica_shield_attached{actual=\"native\",interface=\"h0\",requested=\"native\"}", 1.0);
    watch.becomes("tunica_shield_program_matches", 1.0);
    watch.lab.must(&["bypass", "on", "--reason", "test"]).unwrap();
    watch.becomes("tunica_shield_bypassed", 1.0);
    watch.becomes("tunica_shield_attached{actual=\"none\",interface=\"h0\",requested=\"native\"}", 0.0);
    watch.becomes("tunica_shield_program_matches", 0.0);
    watch.lab.must(&["bypass", "off"]).unwrap();
    watch.becomes("tunica_shield_bypassed", 0.0);

    // The host's clock is as it is; tests that share it must not change it.
    let (is_synchronised, bound) = clock().unwrap();
    watch.becomes("tunica_clock_synchronised", f64::from(u8::from(is_synchronised)));
    watch.exceeds("tunica_clock_error_bound_seconds", -0.5);
    // Beyond it the kernel calls a clock unsynchronised, and counts no further (NTP_PHASE_LIMIT).
    assert!((0.0..=16.0).contains(&bound) && watch.value("tunica_clock_error_bound_seconds") <= 16.0);

    // Memory, as the kernel tells of it.
    watch.becomes("tunica_memory_current_bytes", f64::from(3 << 20));
    watch.becomes("tunica_memory_max_bytes", f64::from(4 << 20));
    assert!(!watch.lab.must(&["status"]).unwrap().contains("memory:"), "75 % is well");
    cgroup.tell(4 << 20, "4194304", 2);
    watch.becomes("tunica_memory_current_bytes", f64::from(4 << 20));
    watch.becomes("tunica_memory_events_total{event=\"max\"}", 2.0);
    let status = watch.lab.json(&["status"]).unwrap()["warnings"].to_string();
    assert!(status.contains("100 % of what its cgroup may"), "{status}");
    cgroup.tell(4 << 20, "max", 2);
    watch.becomes("tunica_memory_max_bytes", f64::INFINITY);

    // The host gets another address, and its interface another MTU.
    watch.lab.host.ip(&["address", "add", "10.99.0.1/32", "dev", "lo"]).unwrap();
    watch.exceeds("tunica_host_changes_total{what=\"addresses\"}", 0.0);
    watch.lab.host.ip(&["link", "set", "h0", "mtu", "1400"]).unwrap();
    watch.exceeds("tunica_host_changes_total{what=\"interfaces\"}", 0.0);
    watch.lab.must(&["reload", "--confirm", "10"]).unwrap();
    watch.becomes("tunica_config_trial_active", 1.0);
    watch.becomes("tunica_config_undone", 1.0);
    watch.becomes("tunica_config_trial_active", 0.0);
    watch.lab.must(&["reload"]).unwrap();
    watch.becomes("tunica_config_undone", 0.0);
    // The load: of the host alone, because there is no tor and no ingress, and tor's metrics cannot be read.
    watch.exceeds("tunica_load_reading_failures_total{part=\"tor_metrics\"}", 0.0);
    watch.exceeds("tunica_load_ratio{input=\"cpu_pressure\"}", -0.5);
    watch.becomes("tunica_load_level{level=\"calm\"}", 1.0);
    watch.lab.must(&["threat", "set", "moderate"]).unwrap();
    watch.becomes("tunica_load_level{level=\"moderate\"}", 1.0);
    watch.becomes("tunica_load_level{level=\"calm\"}", 0.0);
    watch.becomes("tunica_load_measured{level=\"calm\"}", 1.0);
    watch.becomes("tunica_load_changes_total{level=\"moderate\"}", 1.0);
    watch.becomes("tunica_load_pinned", 1.0);
    watch.lab.must(&["threat", "clear"]).unwrap();
    watch.becomes("tunica_load_pinned", 0.0);
    watch.lab.must(&["panic"]).unwrap();
    watch.becomes("tunica_load_level{level=\"heavy\"}", 1.0);
    watch.becomes("tunica_attack_mode_active", 1.0);
    watch.exceeds("tunica_attack_mode_left_seconds", 3_000.0);
    watch.lab.must(&["panic", "off"]).unwrap();
    watch.becomes("tunica_attack_mode_active", 0.0);
    watch.becomes("tunica_attack_mode_left_seconds", 0.0);

    // A candidate that finds nothing wrong with what is dropped.
    let file = fs::read_to_string(watch.lab.path("tunica.toml")).unwrap();
    let lenient = file.replacen("mode =", "sanity = { off = [\"null_flags\"] }\nmode =", 1);
    fs::write(watch.lab.path("candidate.toml"), lenient).unwrap();
    let candidate = watch.lab.path("candidate.toml");
    watch.lab.must(&["candidate", "load", candidate.to_str().unwrap()]).unwrap();
    watch.becomes("tunica_candidate_loaded", 1.0);
    watch.lab.send(&null, 5).unwrap();
    watch.becomes("tunica_candidate_differences_total{difference=\"passes\",verdict=\"null_flags\"}", 5.0);
    watch.lab.must(&["candidate", "drop"]).unwrap();
    watch.becomes("tunica_candidate_loaded", 0.0);

    // Bans, refusals, tables, ledger.
    let commits = watch.value("tunica_ledger_commits_total");
    watch.lab.must(&["ban", "add", "203.0.113.5", "--for", "1h"]).unwrap();
    watch.becomes("tunica_bans_set_total{origin=\"operator\"}", 1.0);
    watch.becomes("tunica_bans_active{origin=\"operator\"}", 1.0);
    watch.becomes("tunica_table_used{table=\"bans\"}", 1.0);
    watch.becomes("tunica_table_capacity{table=\"bans\"}", 131_072.0);
    watch.exceeds("tunica_ledger_commits_total", commits);
    watch.lab.tunica(&["ban", "add", "127.0.0.1"]).unwrap();
    watch.becomes("tunica_bans_refused_total{reason=\"protected\"}", 1.0);
    for (source, result) in [("203.0.113.77", "accepted"), ("127.0.0.1", "refused_protected")] {
        watch.lab.tunica(&["report", source, "--reason", "test"]).unwrap();
        watch.becomes(&format!("tunica_reports_total{{result=\"{result}\"}}"), 1.0);
    }
    watch.exceeds("tunica_control_requests_total{result=\"ok\",verb=\"ban_add\"}", 0.0);
    watch.exceeds("tunica_control_requests_total{result=\"refused\",verb=\"ban_add\"}", 0.0);
    watch.exceeds("tunica_http_requests_total{path=\"/metrics\",status=\"200\"}", 1.0);

    // A row that somebody removes behind our back comes back.
    let pins = watch.lab.pin_directory().unwrap();
    let map = pins.join("BANS");
    let key = "0xcb 0x00 0x71 0x05 0 0 0 0 32 0 0 0";
    let mut arguments = vec!["map", "delete", "pinned", map.to_str().unwrap(), "key"];
    arguments.extend(key.split(' '));
    watch.lab.run_in_host("bpftool", &arguments).unwrap();
    watch.becomes("tunica_reconcile_edits_total{table=\"bans\"}", 1.0);

    // Tor's connections: a process of tor's user is connected to the client's host.
    watch.exceeds("tunica_never_ban_age_seconds", -0.5);
    let listener = watch.lab.client.run(|| Ok(TcpListener::bind((CLIENT, 9_001))?)).unwrap();
    // The shell hands its open connection on to the program that takes its place.
    let script = "exec 3<>/dev/tcp/10.77.0.2/9001; exec sleep 600";
    let mut tor = watch
        .lab
        .host
        .command(Path::new("setpriv"))
        .args(["--reuid", "nobody", "--regid", "nogroup", "--clear-groups", "/bin/bash", "-c", script])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    watch.becomes("tunica_never_ban_tor_peers", 1.0);
    let ran = watch.lab.tunica(&["ban", "add", "10.77.0.2"]).unwrap();
    assert_eq!(ran.code, Some(3), "{ran:?}");
    assert!(ran.err.contains("tor"), "{ran:?}");
    assert_eq!(watch.lab.json(&["explain", "10.77.0.2"]).unwrap()["allow"]["origin"], "tor");
    tor.kill().unwrap();
    tor.wait().unwrap();
    drop(listener);

    // A daemon that cannot keep up: the heartbeat ages and events are lost.
    // Four verdicts, each spoken about at most once a clock tick, until the ring buffer of 256 KiB is full.
    let floods = [Pattern::FixedSyn { sources: 64 }, Pattern::Scan];
    watch.lab.signal(Signal::SIGSTOP).unwrap();
    let attacks = floods.map(|pattern| watch.lab.flood(pattern, 30_000, 443).unwrap());
    watch.lab.wait_for("the attack", |_| Ok(attacks.iter().all(|attack| attack.sent() > 300_000))).unwrap();
    for attack in attacks {
        attack.stop().unwrap();
    }
    watch.lab.signal(Signal::SIGCONT).unwrap();
    watch.exceeds("tunica_events_lost_total", 0.0);
    watch.exceeds("tunica_heartbeat_age_seconds", 0.0);

    // A burst of one at one a second, and more sources than the sketch has cells.
    let path = watch.lab.path("tunica.toml");
    let text = fs::read_to_string(&path).unwrap();
    let strict = "syn = { per_source_per_second = 1, burst = 1 }\nstale_after_seconds = 40\npin_path";
    fs::write(&path, text.replacen("pin_path", strict, 1)).unwrap();
    watch.lab.must(&["reload"]).unwrap();
    watch.becomes("tunica_heartbeat_stale_after_seconds", 40.0);
    assert_eq!(watch.value("tunica_syn_sketch_busy_ratio"), 0.0);
    let attack = watch.lab.flood(Pattern::ForgedSyn, 100_000, 443).unwrap();
    watch.exceeds("tunica_syn_sketch_busy_ratio", 0.2);
    watch.becomes("tunica_ports_over_budget", 1.0);
    watch.becomes("tunica_cookies_state{state=\"sysctl\"}", 1.0);
    watch.lab.host.write_sysctl("net/ipv4/tcp_syncookies", "2").unwrap();
    watch.becomes("tunica_cookies_state{state=\"ready\"}", 1.0);
    fs::write(&path, text).unwrap();
    // A listener takes the cookies of the daemon's tests; behind a firewall that drops them it does not.
    watch.lab.host.ip(&["route", "add", "default", "via", &CLIENT.to_string()]).unwrap();
    let listener = watch.lab.host.run(|| Ok(TcpListener::bind((HOST, 443))?)).unwrap();
    watch.lab.must(&["reload"]).unwrap();
    watch.exceeds("tunica_cookie_self_tests_total{outcome=\"passed\"}", 0.0);
    watch.becomes("tunica_ports_without_cookies", 0.0);
    let rule = "add table inet strict; add chain inet strict in { type filter hook input priority 0; }; \
                add rule inet strict in ip saddr 192.0.2.253 drop";
    watch.lab.run_in_host("nft", &[rule]).unwrap();
    watch.lab.must(&["reload"]).unwrap();
    watch.becomes("tunica_cookie_self_tests_total{outcome=\"missed\"}", 3.0);
    watch.becomes("tunica_ports_without_cookies", 1.0);
    watch.lab.run_in_host("nft", &["delete", "table", "inet", "strict"]).unwrap();
    drop(listener);
    attack.stop().unwrap();

    // A full disk: it is seen, nothing is banned, nothing else breaks, and it heals.
    watch.exceeds("tunica_ledger_disk_free_bytes", 0.0);
    watch.exceeds("tunica_ledger_disk_free_ratio", 0.1);
    disk.fill().unwrap();
    watch.becomes("tunica_ledger_disk_free_bytes", 0.0);
    watch.becomes("tunica_ledger_disk_free_ratio", 0.0);
    let status = watch.lab.json(&["status"]).unwrap()["warnings"].to_string();
    assert!(status.contains("0 % of the ledger's file system are free"), "{status}");
    let mut refused = 0;
    for host in 1..=200 {
        let ran = watch
            .lab
            .tunica(&["ban", "add", &format!("192.0.2.{host}"), "--for", "1h", "--reason", &"x".repeat(180)])
            .unwrap();
        refused += i32::from(ran.code == Some(1));
        if refused > 0 {
            assert!(
                ran.err.contains("cannot write the ledger") && ran.err.contains("was not made"),
                "{ran:?}"
            );
            break;
        }
    }
    assert_eq!(refused, 1, "the ledger fitted on a full disk");
    watch.exceeds("tunica_ledger_failures_total", 0.0);
    disk.free().unwrap();
    watch.lab.must(&["ban", "add", "192.0.2.250", "--for", "1h"]).unwrap();

    // A frozen map cannot be written.
    watch.lab.run_in_host("bpftool", &["map", "freeze", "pinned", map.to_str().unwrap()]).unwrap();
    watch.lab.tunica(&["ban", "add", "192.0.2.251", "--for", "1h"]).unwrap();
    watch.exceeds("tunica_reconcile_failures_total", 0.0);
    let heartbeat = pins.join("HEARTBEAT");
    watch.lab.run_in_host("bpftool", &["map", "freeze", "pinned", heartbeat.to_str().unwrap()]).unwrap();
    watch
        .lab
        .wait_for("the warning of a heart that cannot beat", |lab| {
            Ok(lab.json(&["status"])?["warnings"].to_string().contains("HEARTBEAT"))
        })
        .unwrap();

    watch.lab.end(Signal::SIGTERM).unwrap();
    fs::remove_dir_all(watch.lab.pins()).unwrap();
    fs::write(watch.lab.path("disk/ledger.redb"), b"not a ledger").unwrap();
    let text = fs::read_to_string(&path).unwrap().replacen("mode =", "allow = [\"10.77.0.2\"]\nmode =", 1);
    fs::write(&path, text + "\n[evidence]\nconnections_per_second = 1\nburst = 1\n").unwrap();
    watch.lab.start().unwrap();
    watch.becomes("tunica_ledger_damaged", 1.0);

    // More connections too many than the kernel's buffer holds, while the daemon does not read it.
    let listener = watch.lab.host.run(|| Ok(TcpListener::bind((HOST, 8_080))?)).unwrap();
    thread::spawn(move || while listener.accept().is_ok() {});
    watch.lab.signal(Signal::SIGSTOP).unwrap();
    let connect = || TcpStream::connect_timeout(&(HOST, 8_080).into(), Duration::from_secs(5));
    let connected = watch.lab.client.run(|| Ok((0..2_000).filter(|_| connect().is_ok()).count())).unwrap();
    assert!(connected > 1_500, "only {connected} connections");
    watch.lab.signal(Signal::SIGCONT).unwrap();
    watch.exceeds("tunica_proofs_lost_total", 0.0);

    // Those of the ingress move in tests/circuits.rs, tests/arti.rs, tests/sybil.rs and tests/haproxy.rs.
    let is_of_ingress = |name: &&str| {
        ["tunica_front_", "tunica_circuits_", "tunica_gate_", "tunica_tor_", "tunica_haproxy_"]
            .iter()
            .any(|start| name.starts_with(start))
    };
    let missing: Vec<&str> = METRICS
        .iter()
        .map(|metric| metric.name)
        .filter(|name| !is_of_ingress(name) && !watch.seen.contains(name))
        .collect();
    assert!(missing.is_empty(), "no cause was tried for {missing:?}");
}
