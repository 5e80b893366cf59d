//! The real daemon on a real wire: attach, restart, upgrade, silence, capabilities, and what `tunica` says of it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper that fails is a test that fails"
)]

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown, symlink},
    path::{Path, PathBuf},
    process::Stdio,
};

use nix::sys::signal::Signal;
use tunica_tests::{
    armed::program,
    flood::Pattern,
    lab::{HOST_INTERFACE, Lab, null_segment},
};

/// SYNs from 198.51.100.1 alone, which [`null_segment`]'s source is not.
fn steady(lab: &Lab) -> tunica_tests::flood::Running {
    lab.flood(Pattern::FixedSyn { sources: 1 }, 5_000, 443).unwrap()
}

fn link_and_program(lab: &Lab) -> (u64, u64) {
    let status = lab.json(&["status"]).unwrap();
    let interface = &status["interfaces"][0];
    assert_eq!(interface["actual"], "native", "{status:#}");
    (interface["link_id"].as_u64().unwrap(), interface["program_id"].as_u64().unwrap())
}

/// Attack packets go on all the while; those that reach the stack are counted there, by nftables.
#[test]
fn no_packet_passes_unfiltered_through_restart_kill_and_upgrade() {
    let mut lab = Lab::new("restart").unwrap();
    lab.configure("mode = \"enforce\"", "").unwrap();
    lab.count_in_stack("attack", "ip saddr 198.51.100.1").unwrap();
    lab.start().unwrap();
    lab.must(&["ban", "add", "198.51.100.1", "--for", "1h", "--reason", "test"]).unwrap();
    let (link, mut program) = link_and_program(&lab);
    let attack = steady(&lab);
    let dropped = "tunica_shield_packets_total{action=\"drop\",verdict=\"banned\"}";
    lab.wait_for("the first drops", |lab| Ok(lab.metric(dropped)?.unwrap_or(0.0) > 1_000.0)).unwrap();

    for (what, signal) in [("a restart", Signal::SIGTERM), ("a kill", Signal::SIGKILL)] {
        let before = attack.sent();
        lab.end(signal).unwrap();
        // While no daemon runs, the pinned program filters on.
        lab.wait_for("more attack", |_| Ok(attack.sent() > before + 5_000)).unwrap();
        lab.start().unwrap();
        let (same_link, next_program) = link_and_program(&lab);
        assert_eq!(link, same_link, "{what} made another link");
        assert_ne!(program, next_program, "{what} did not replace the program");
        program = next_program;
    }

    // An upgrade whose tables have another shape: new maps, filled before the link moves to them.
    let old = lab.pin_directory().unwrap();
    lab.configure("mode = \"enforce\"\ntables = { bans = 2048 }", "").unwrap();
    lab.must(&["reload"]).unwrap();
    assert_eq!(link_and_program(&lab).0, link);
    assert_ne!(lab.pin_directory().unwrap(), old, "the old maps were swept");
    lab.configure("mode = \"enforce\"\ntables = { bans = 4096 }", "").unwrap();
    lab.end(Signal::SIGKILL).unwrap();
    lab.start().unwrap();
    assert_eq!(link_and_program(&lab).0, link);

    let before = attack.sent();
    lab.wait_for("more attack", |_| Ok(attack.sent() > before + 5_000)).unwrap();
    let sent = attack.stop().unwrap();
    assert!(sent > 20_000, "only {sent} packets");
    assert_eq!(lab.in_stack("attack").unwrap(), 0, "of {sent} packets");
}

#[test]
fn without_a_heartbeat_the_policy_for_silence_applies_and_ends_with_it() {
    let mut lab = Lab::new("silence").unwrap();
    lab.configure("mode = \"enforce\"\non_stale = \"pass\"\nstale_after_seconds = 5", "").unwrap();
    lab.count_in_stack("null", "ip saddr 203.0.113.9").unwrap();
    lab.start().unwrap();
    lab.send(&null_segment(), 10).unwrap();
    assert_eq!(lab.in_stack("null").unwrap(), 0);
    lab.signal(Signal::SIGSTOP).unwrap();
    lab.wait_for("the heartbeat to be missed", |lab| {
        lab.send(&null_segment(), 1)?;
        Ok(lab.in_stack("null")? > 0)
    })
    .unwrap();
    lab.signal(Signal::SIGCONT).unwrap();
    lab.wait_for("the heartbeat to be seen", |lab| {
        let before = lab.in_stack("null")?;
        lab.send(&null_segment(), 1)?;
        Ok(lab.in_stack("null")? == before)
    })
    .unwrap();
}

/// The loopback driver has no native XDP, so it shows what happens where a card has none.
#[test]
fn generic_mode_only_where_it_is_allowed_and_never_in_silence() {
    let mut lab = Lab::new("generic").unwrap();
    let on_loopback = |lab: &Lab, attach: &str| {
        let shield = format!("mode = \"observe\"\nattach = \"{attach}\"\nfallback = \"none\"");
        lab.configure(&shield, "").unwrap();
        let path = lab.path("tunica.toml");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace(HOST_INTERFACE, "lo")).unwrap();
    };
    on_loopback(&lab, "native");
    lab.start().unwrap();
    let interface = lab.json(&["status"]).unwrap()["interfaces"][0].clone();
    assert_eq!((&interface["requested"], &interface["actual"]), (&"native".into(), &"none".into()));
    assert!(interface["problem"].as_str().unwrap().contains("has no native XDP"), "{interface:#}");
    on_loopback(&lab, "native-or-generic");
    lab.must(&["reload"]).unwrap();
    let interface = lab.json(&["status"]).unwrap()["interfaces"][0].clone();
    assert_eq!(
        (&interface["requested"], &interface["actual"]),
        (&"native-or-generic".into(), &"generic".into())
    );
    // Asking for native again says what is true, and does not open a gap by itself.
    on_loopback(&lab, "native");
    lab.must(&["reload"]).unwrap();
    let interface = lab.json(&["status"]).unwrap()["interfaces"][0].clone();
    assert_eq!((&interface["requested"], &interface["actual"]), (&"native".into(), &"generic".into()));
    assert!(interface["problem"].as_str().unwrap().contains("generic mode"), "{interface:#}");
    assert_eq!(lab.tunica(&["status"]).unwrap().code, Some(7));
    assert_eq!(
        lab.metric("tunica_shield_attached{actual=\"generic\",interface=\"lo\",requested=\"native\"}")
            .unwrap(),
        Some(0.0)
    );
}

/// xdp-filter stands behind libxdp's dispatcher, or where the kernel lacks what that needs, by itself.
fn names_the_other(text: &str) -> bool {
    text.contains("xdp_dispatcher") || text.contains("xdpfilt")
}

#[test]
fn another_program_on_the_hook_is_refused_by_name_and_left_alone() {
    let mut lab = Lab::new("occupied").unwrap();
    lab.configure("mode = \"enforce\"", "").unwrap();
    let made_pins = !Path::new("/sys/fs/bpf/xdp").exists() && !Path::new("/sys/fs/bpf/xdp-filter").exists();
    lab.run_in_host("xdp-filter", &["load", "--mode", "native", HOST_INTERFACE]).unwrap();
    lab.start().unwrap();
    let status = lab.json(&["status"]).unwrap();
    let problem = status["interfaces"][0]["problem"].as_str().unwrap().to_owned();
    let ready = lab.http("/ready").unwrap();
    let ran = lab.tunica(&["status"]).unwrap();
    let link = lab.run_in_host("ip", &["-d", "link", "show", HOST_INTERFACE]).unwrap();
    lab.run_in_host("xdp-filter", &["unload", HOST_INTERFACE]).unwrap();
    if made_pins {
        // Left behind by xdp-tools after the last unload.
        let _ = fs::remove_dir_all("/sys/fs/bpf/xdp");
        let _ = fs::remove_dir_all("/sys/fs/bpf/xdp-filter");
    }
    assert!(names_the_other(&problem) && problem.contains("does not push it aside"), "{problem}");
    assert!(problem.contains("remove the pin of its link") && !problem.contains("Tunica's own"), "{problem}");
    assert_eq!(ready.0, 503, "{ready:?}");
    assert!(names_the_other(&ready.1), "{ready:?}");
    assert_eq!(ran.code, Some(7), "{ran:?}");
    assert!(link.contains("prog/xdp"), "xdp-filter was pushed aside: {link}");
    // Once the hook is free, a reload attaches.
    lab.wait_for("the hook to be free", |lab| {
        lab.must(&["reload"])?;
        Ok(lab.json(&["status"])?["interfaces"][0]["actual"] == "native")
    })
    .unwrap();
    link_and_program(&lab);
    assert_eq!(lab.http("/ready").unwrap().0, 200);
}

/// Another program's map, pinned under the name of one of ours; gone with this value.
struct Stranger(PathBuf);

impl Stranger {
    fn new(lab: &Lab) -> Self {
        let directory = PathBuf::from(format!("{}-stranger", lab.pins().display()));
        fs::create_dir(&directory).unwrap();
        let stranger = Self(directory);
        let pin = stranger.pin();
        let make = ["map", "create", pin.to_str().unwrap(), "type", "array", "key", "4", "value", "4"];
        lab.run_in_host("bpftool", &[&make[..], &["entries", "1", "name", "stranger"]].concat()).unwrap();
        stranger
    }

    fn pin(&self) -> PathBuf {
        self.0.join("BANS")
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Why a daemon with the lab's configuration does not start.
fn refusal(lab: &Lab, file: &str) -> String {
    let (daemon, file) = (program("tunicad").unwrap(), lab.path(file));
    let arguments = ["20", daemon.to_str().unwrap(), "--config", file.to_str().unwrap()];
    lab.run_in_host("timeout", &arguments).unwrap_err().to_string()
}

/// What any local user can do on a bpffs that is open to all.
#[test]
fn pins_that_others_can_reach_are_refused_and_what_they_lead_to_survives() {
    let mut lab = Lab::new("pins").unwrap();
    lab.configure("mode = \"enforce\"", "").unwrap();
    let stranger = Stranger::new(&lab);
    let root = lab.pins().to_owned();
    let old = root.join("v0123456789abcdef-1-1");

    // A root that somebody else made, with a link to the stranger's pins.
    fs::create_dir(&root).unwrap();
    symlink(&stranger.0, &old).unwrap();
    chown(&root, Some(65_534), Some(65_534)).unwrap();
    let text = refusal(&lab, "tunica.toml");
    assert!(text.contains("belongs to uid 65534") && text.contains("nothing was loaded"), "{text}");
    chown(&root, Some(0), Some(0)).unwrap();
    fs::set_permissions(&root, fs::Permissions::from_mode(0o777)).unwrap();
    let text = refusal(&lab, "tunica.toml");
    assert!(text.contains("mode 0777"), "{text}");
    assert!(stranger.pin().exists() && fs::read_dir(&root).unwrap().count() == 1);

    // A root that is a link itself.
    fs::remove_dir_all(&root).unwrap();
    symlink(&stranger.0, &root).unwrap();
    let text = refusal(&lab, "tunica.toml");
    assert!(text.contains("is a symbolic link"), "{text}");
    assert_eq!(fs::read_dir(&stranger.0).unwrap().count(), 1);

    // In a root of our own a link is no directory of ours: not entered, and not swept.
    fs::remove_file(&root).unwrap();
    fs::create_dir(&root).unwrap();
    symlink(&stranger.0, &old).unwrap();
    lab.start().unwrap();
    link_and_program(&lab);
    assert_eq!(fs::metadata(&root).unwrap().permissions().mode() & 0o777, 0o700);
    assert!(old.is_symlink() && stranger.pin().exists());
    fs::remove_file(&old).unwrap();

    // Nor is a link followed that stands where this version's directory belongs.
    let ours = lab.pin_directory().unwrap();
    lab.end(Signal::SIGTERM).unwrap();
    fs::remove_dir_all(&ours).unwrap();
    symlink(&stranger.0, &ours).unwrap();
    let text = refusal(&lab, "tunica.toml");
    assert!(text.contains("is a symbolic link"), "{text}");
    assert!(stranger.pin().exists());

    // A map with the right name and sizes but other flags is not ours either.
    fs::remove_file(&ours).unwrap();
    fs::create_dir(&ours).unwrap();
    let pin = ours.join("HEARTBEAT");
    let make = ["map", "create", pin.to_str().unwrap(), "type", "array", "key", "4", "value", "8"];
    lab.run_in_host("bpftool", &[&make[..], &["entries", "1", "name", "x", "flags", "0x400"]].concat())
        .unwrap();
    let text = refusal(&lab, "tunica.toml");
    assert!(text.contains("it has 1024 for its flags, ours has 0"), "{text}");
    assert!(pin.exists());
}

#[test]
fn a_second_daemon_may_not_share_the_pins() {
    let mut lab = Lab::new("twice").unwrap();
    lab.configure("mode = \"enforce\"", "").unwrap();
    lab.start().unwrap();
    let before = link_and_program(&lab);
    let text = fs::read_to_string(lab.path("tunica.toml")).unwrap();
    let text = text.replace("ledger.redb", "other/ledger.redb").replace("tunicad.sock", "other/tunicad.sock");
    fs::write(lab.path("other.toml"), format!("{text}\n[http]\nenabled = false\n")).unwrap();
    fs::create_dir(lab.path("other")).unwrap();
    let text = refusal(&lab, "other.toml");
    assert!(text.contains("another tunicad uses the pins"), "{text}");
    assert_eq!(link_and_program(&lab), before);
    // The claim outlives a change of sizes, and ends with the daemon.
    lab.configure("mode = \"enforce\"\ntables = { bans = 2048 }", "").unwrap();
    lab.must(&["reload"]).unwrap();
    let text = refusal(&lab, "other.toml");
    assert!(text.contains("another tunicad uses the pins"), "{text}");
    lab.end(Signal::SIGKILL).unwrap();
    lab.start().unwrap();
    link_and_program(&lab);
}

#[test]
fn our_own_program_under_an_earlier_pin_path_is_recognised() {
    let mut lab = Lab::new("moved").unwrap();
    lab.configure("mode = \"enforce\"", "").unwrap();
    lab.start().unwrap();
    let (link, old) = (link_and_program(&lab).0, lab.pin_directory().unwrap().join("link-h0"));
    lab.end(Signal::SIGTERM).unwrap();
    let file = lab.path("tunica.toml");
    let moved = format!("{}-moved", lab.pins().display());
    let text = fs::read_to_string(&file).unwrap().replace(lab.pins().to_str().unwrap(), &moved);
    fs::write(&file, text).unwrap();
    lab.start().unwrap();
    let problem = lab.json(&["status"]).unwrap()["interfaces"][0]["problem"].as_str().unwrap().to_owned();
    fs::remove_file(&old).unwrap();
    // The kernel frees a link some time after its last pin is gone.
    lab.wait_for("the hook to be free", |lab| {
        lab.must(&["reload"])?;
        Ok(lab.json(&["status"])?["interfaces"][0]["actual"] == "native")
    })
    .unwrap();
    let new = link_and_program(&lab).0;
    lab.end(Signal::SIGTERM).unwrap();
    fs::remove_dir_all(&moved).unwrap();
    assert!(problem.contains("it is Tunica's own"), "{problem}");
    assert!(problem.contains(&format!("`rm {}`", old.display())), "{problem}");
    assert_ne!(link, new);
}

/// A guard that was banned can never be connected to, because its answers are dropped.
#[test]
fn a_guard_that_tor_cannot_reach_yet_is_protected() {
    let mut lab = Lab::new("guard").unwrap();
    lab.configure("mode = \"enforce\"", "[tor]\nuser = \"nobody\"\nscan_every_seconds = 1").unwrap();
    lab.start().unwrap();
    lab.must(&["ban", "add", "10.77.0.99", "--for", "1h"]).unwrap();
    // The frames reach the client, which is not 10.77.0.99 and does not answer.
    lab.run_in_host(
        "ip",
        &["neigh", "add", "10.77.0.99", "lladdr", "02:00:00:00:4d:02", "dev", HOST_INTERFACE],
    )
    .unwrap();
    let connect = "exec 3<>/dev/tcp/10.77.0.99/9001";
    let mut tor = lab
        .host
        .command(Path::new("setpriv"))
        .args(["--reuid", "nobody", "--regid", "nogroup", "--clear-groups", "/bin/bash", "-c", connect])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    lab.wait_for("the guard to be protected", |lab| {
        Ok(lab.metric("tunica_never_ban_tor_peers")? == Some(1.0))
    })
    .unwrap();
    let bans = lab.json(&["ban", "list"]).unwrap();
    let ran = lab.tunica(&["ban", "add", "10.77.0.99"]).unwrap();
    tor.kill().unwrap();
    tor.wait().unwrap();
    assert!(!bans.to_string().contains("10.77.0.99"), "{bans:#}");
    assert_eq!(ran.code, Some(3), "{ran:?}");
}

/// CAP_NET_ADMIN is 12, CAP_PERFMON 38, CAP_BPF 39: the unit grants all three, and the first and last suffice.
#[test]
fn the_unit_s_capabilities_suffice_and_with_less_the_refusal_names_them() {
    let mut lab = Lab::new("caps").unwrap();
    lab.configure("mode = \"enforce\"", "[tor]\nuser = \"nobody\"").unwrap();
    lab.count_in_stack("null", "ip saddr 203.0.113.9").unwrap();
    let unit = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/tunicad.service")).unwrap();
    assert!(unit.contains("\nCapabilityBoundingSet=CAP_BPF CAP_NET_ADMIN CAP_PERFMON\n"));
    let start = |lab: &mut Lab, granted: &str| {
        let (bounding, inherited) = (format!("--bounding-set={granted}"), format!("--inh-caps={granted}"));
        lab.start_through(&["setpriv", &bounding, &inherited, "--no-new-privs"])
    };
    // The second time it finds the pins of the first and takes them over.
    for _ in 0..2 {
        start(&mut lab, "-all,+net_admin,+cap_38,+cap_39").unwrap();
        let status = fs::read_to_string(format!("/proc/{}/status", lab.pid().unwrap())).unwrap();
        let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:\t")).unwrap();
        assert_eq!(u64::from_str_radix(effective, 16).unwrap(), 1u64 << 12 | 1 << 38 | 1 << 39);
        link_and_program(&lab);
        lab.send(&null_segment(), 10).unwrap();
        assert_eq!(lab.in_stack("null").unwrap(), 0);
        lab.must(&["explain", "203.0.113.9"]).unwrap();
        lab.must(&["ban", "add", "203.0.113.9"]).unwrap();
        let doctor = lab.json(&["doctor"]).unwrap();
        let findings = doctor["findings"].as_array().unwrap();
        let capabilities = findings.iter().find(|finding| finding["check"] == "capabilities").unwrap();
        assert_eq!(capabilities["level"], "ok", "{doctor:#}");
        assert!(!lab.log().contains("program_refused"), "{}", lab.log());
        lab.end(Signal::SIGTERM).unwrap();
    }
    let refusal = start(&mut lab, "-all,+net_admin,+cap_39").unwrap_err().to_string();
    assert!(refusal.contains("CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"), "{refusal}");
    // What the daemon before attached goes on.
    lab.send(&null_segment(), 10).unwrap();
    assert_eq!(lab.in_stack("null").unwrap(), 0);
}

#[test]
fn bpftool_loads_the_object_and_dumps_maps_with_field_names() {
    let mut lab = Lab::new("bpftool").unwrap();
    lab.configure("mode = \"observe\"", "").unwrap();
    lab.start().unwrap();
    lab.must(&["ban", "add", "192.0.2.7", "--for", "1h"]).unwrap();
    let pins = lab.pin_directory().unwrap();
    let dump = |map: &str| {
        lab.run_in_host("bpftool", &["map", "dump", "pinned", pins.join(map).to_str().unwrap()]).unwrap()
    };
    let bans = dump("BANS");
    for part in ["\"prefix\": [192,0,2,7,0,0,0,0", "\"width\": 32", "\"expires_ns\": ", "\"ban_id\": 1"] {
        assert!(bans.contains(part), "no {part} in {bans}");
    }
    assert!(dump("POLICIES").contains("\"stale_after_ns\": 30000000000"), "{}", dump("POLICIES"));
    assert!(dump("TALLIES").contains("\"packets\": "), "{}", dump("TALLIES"));
    let object = concat!(env!("CARGO_MANIFEST_DIR"), "/../ebpf/prebuilt/shield.o");
    let pin = lab.pins().join("by-bpftool");
    lab.run_in_host("bpftool", &["prog", "loadall", object, pin.to_str().unwrap()]).unwrap();
    let shield = pin.join("shield");
    let shown = lab.run_in_host("bpftool", &["prog", "show", "pinned", shield.to_str().unwrap()]).unwrap();
    fs::remove_dir_all(&pin).unwrap();
    let status = lab.json(&["status"]).unwrap();
    let tag = status["program"]["attached_tag"].as_str().unwrap();
    assert!(shown.contains(&format!("tag {tag}")), "{tag} is not the tag of {shown}");
    assert_eq!(status["program"]["matches"], true);
}

#[test]
fn explain_names_the_rule_and_leaves_the_live_state_unchanged() {
    let mut lab = Lab::new("explain").unwrap();
    lab.configure(
        "mode = \"enforce\"\nallow = [\"198.51.100.0/28\"]\nsyn = { per_source_per_second = 1, burst = 3 }",
        "",
    )
    .unwrap();
    lab.start().unwrap();
    // A quiet wire: nothing but the probe could change a map.
    lab.run_in_host("ip", &["link", "set", HOST_INTERFACE, "arp", "off"]).unwrap();
    lab.must(&["ban", "add", "203.0.113.5", "--for", "1h", "--reason", "brute force"]).unwrap();
    let pins = lab.pin_directory().unwrap();
    let snapshot = || -> Vec<String> {
        ["ACTIVE", "POLICIES", "BANS", "BAN_FILTER", "ALLOW", "OWN", "SYN_SKETCH", "TALLIES", "LOST_EVENTS"]
            .map(|map| {
                lab.run_in_host("bpftool", &["-j", "map", "dump", "pinned", pins.join(map).to_str().unwrap()])
                    .unwrap()
            })
            .to_vec()
    };
    let before = snapshot();
    let explain = |arguments: &[&str]| lab.json(&[&["explain"], arguments].concat()).unwrap();

    let banned = explain(&["203.0.113.5"]);
    assert_eq!(banned["outcomes"][0]["verdict"], "banned");
    assert_eq!(banned["ban"]["reason"], "brute force");
    assert!(banned["undo"][0].as_str().unwrap().contains("tunica ban remove 203.0.113.5"), "{banned:#}");

    let limited = explain(&["203.0.113.6", "--packets", "5"]);
    let runs: Vec<(u64, &str, &str)> = limited["outcomes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|run| {
            (
                run["count"].as_u64().unwrap(),
                run["verdict"].as_str().unwrap(),
                run["action"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(runs, [(3, "syn", "pass"), (2, "syn_rate", "drop")]);
    assert_eq!(limited["bucket"]["cells"].as_array().unwrap().len(), 2);

    let allowed = explain(&["198.51.100.3", "--packets", "5"]);
    assert_eq!(allowed["outcomes"][1]["verdict"], "allowed");
    assert_eq!(allowed["allow"]["origin"], "config");

    let own = explain(&["10.77.0.1"]);
    assert_eq!(own["outcomes"][0]["verdict"], "own_source");

    let v6 = explain(&["2001:db8::7"]);
    assert_eq!(v6["source"], "2001:db8::/64");
    assert_eq!(v6["generation"], banned["generation"]);

    assert_eq!(before, snapshot(), "the probe changed a live map");
}
