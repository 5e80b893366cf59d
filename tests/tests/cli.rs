//! `tunica` against the live daemon: what each verb does, says and exits with.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper that fails is a test that fails"
)]

use std::{
    fs,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use aya::programs::links::PinnedLink;
use tunica_tests::{
    disk::SmallDisk,
    frame::SYN,
    lab::{HOST_INTERFACE, Lab, null_segment, segment},
};

/// Group `nogroup` of Debian's base-passwd, which the lab's configuration names.
fn nogroup() -> u32 {
    nix::unistd::Group::from_name("nogroup").unwrap().expect("the group nogroup").gid.as_raw()
}

#[test]
fn bans_and_allow_entries_come_hold_and_go() {
    let mut lab = Lab::new("bans").unwrap();
    lab.configure("mode = \"enforce\"\nallow = [\"198.51.100.0/28\"]", "").unwrap();
    lab.count_in_stack("seen", "ip saddr 203.0.113.5").unwrap();
    lab.start().unwrap();
    let syn = segment([203, 0, 113, 5], SYN);

    // What would happen, then what happens.
    let dry = lab.json(&["ban", "add", "203.0.113.5", "--reason", "brute force", "--dry-run"]).unwrap();
    assert_eq!(dry["dry_run"], true);
    lab.send(&syn, 5).unwrap();
    assert_eq!(lab.in_stack("seen").unwrap(), 5, "a dry run must not ban");
    lab.must(&["ban", "add", "203.0.113.5", "--reason", "brute force"]).unwrap();
    lab.send(&syn, 5).unwrap();
    assert_eq!(lab.in_stack("seen").unwrap(), 5);
    let list = lab.json(&["ban", "list"]).unwrap();
    let ban = &list["bans"][0];
    assert_eq!(
        (ban["source"].as_str(), ban["rung"].as_u64(), ban["reason"].as_str()),
        (Some("203.0.113.5"), Some(1), Some("brute force"))
    );
    assert_eq!(ban["expires"].as_u64().unwrap() - ban["since"].as_u64().unwrap(), 300);

    // The ladder climbs; a length given by hand stands on no rung.
    lab.must(&["ban", "add", "203.0.113.5"]).unwrap();
    assert_eq!(lab.json(&["ban", "list"]).unwrap()["bans"][0]["rung"], 2);
    lab.must(&["ban", "add", "203.0.113.5", "--for", "2d"]).unwrap();
    assert_eq!(lab.json(&["ban", "list"]).unwrap()["bans"][0]["rung"], serde_json::Value::Null);

    // The allow list speaks for a banned source; the ban holds again without it.
    lab.must(&["allow", "add", "203.0.113.0/24", "--for", "1h", "--reason", "partner"]).unwrap();
    lab.send(&syn, 5).unwrap();
    assert_eq!(lab.in_stack("seen").unwrap(), 10);
    lab.must(&["allow", "remove", "203.0.113.0/24"]).unwrap();
    lab.send(&syn, 5).unwrap();
    assert_eq!(lab.in_stack("seen").unwrap(), 10);
    lab.must(&["ban", "remove", "203.0.113.5"]).unwrap();
    lab.send(&syn, 5).unwrap();
    assert_eq!(lab.in_stack("seen").unwrap(), 15);

    // Refusals change nothing, say why, and have an exit status each.
    for (arguments, code, part) in [
        (&["ban", "add", "198.51.100.3"][..], 3, "allow list"),
        (&["ban", "add", "10.77.0.1"], 3, "own address"),
        (&["ban", "add", "127.0.0.1"], 3, "loopback"),
        (&["ban", "add", "203.0.113.0/24"], 3, "add `--for 1h`"),
        (&["ban", "add", "203.0.113.5/24"], 2, "did you mean 203.0.113.0/24"),
        (&["ban", "add", "2001:db8::/80"], 2, "did you mean 2001:db8::/64"),
        (&["ban", "add", "203.0.113.5", "--for", "0s"], 2, ""),
        (&["ban", "remove", "203.0.113.77"], 4, "not banned"),
        (&["allow", "remove", "203.0.113.0/24"], 4, ""),
    ] {
        let ran = lab.tunica(arguments).unwrap();
        assert_eq!(ran.code, Some(code), "{arguments:?}: {ran:?}");
        assert!(ran.err.contains(part), "{arguments:?}: {ran:?}");
    }
    assert_eq!(lab.json(&["ban", "list"]).unwrap()["bans"].as_array().unwrap().len(), 0);
    let allows = lab.json(&["allow", "list"]).unwrap();
    assert_eq!(allows["entries"].as_array().unwrap().len(), 1);
    assert_eq!(allows["entries"][0]["origin"], "config");
}

#[test]
fn bans_survive_a_restart_and_a_damaged_ledger_is_kept_aside() {
    let mut lab = Lab::new("ledger").unwrap();
    lab.configure("mode = \"enforce\"", "").unwrap();
    lab.start().unwrap();
    lab.must(&["ban", "add", "203.0.113.5", "--for", "1h"]).unwrap();
    lab.must(&["allow", "add", "203.0.113.6"]).unwrap();
    lab.end(nix::sys::signal::Signal::SIGKILL).unwrap();
    lab.start().unwrap();
    assert_eq!(lab.json(&["ban", "list"]).unwrap()["bans"][0]["source"], "203.0.113.5");
    assert_eq!(lab.json(&["allow", "list"]).unwrap()["entries"][0]["prefix"], "203.0.113.6/32");
    lab.end(nix::sys::signal::Signal::SIGTERM).unwrap();
    fs::write(lab.path("ledger.redb"), b"not a ledger").unwrap();
    lab.start().unwrap();
    assert_eq!(lab.json(&["ban", "list"]).unwrap()["bans"].as_array().unwrap().len(), 0);
    let aside: Vec<_> = fs::read_dir(lab.path(""))
        .unwrap()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().contains("damaged"))
        .collect();
    assert_eq!(aside.len(), 1);
    assert_eq!(fs::read(aside[0].path()).unwrap(), b"not a ledger");
    let status = lab.json(&["status"]).unwrap();
    assert!(status["warnings"].to_string().contains("damaged"), "{status:#}");
    assert_eq!(lab.metric("tunica_ledger_damaged").unwrap(), Some(1.0));
}

#[test]
fn a_reload_is_all_or_nothing() {
    let mut lab = Lab::new("reload").unwrap();
    lab.configure("mode = \"observe\"", "").unwrap();
    lab.start().unwrap();
    let before = lab.json(&["status"]).unwrap();
    assert_eq!((before["mode"].as_str(), before["generation"].as_u64()), (Some("observe"), Some(1)));

    lab.configure("mode = \"enforce\"\nsyn = { burst = 0 }\nstale_after_secs = 9", "").unwrap();
    let ran = lab.tunica(&["reload"]).unwrap();
    assert_eq!(ran.code, Some(78), "{ran:?}");
    for part in ["shield.syn.burst", "stale_after_seconds", "stays in force"] {
        assert!(ran.err.contains(part), "no {part}: {ran:?}");
    }
    let after = lab.json(&["status"]).unwrap();
    assert_eq!((&after["mode"], &after["generation"]), (&before["mode"], &before["generation"]));

    // What only a start can change is refused whole, too.
    lab.configure("mode = \"enforce\"", "[http]\nlisten = \"127.0.0.1:9188\"").unwrap();
    let ran = lab.tunica(&["reload"]).unwrap();
    assert_eq!(ran.code, Some(78), "{ran:?}");
    assert!(ran.err.contains("http.listen"), "{ran:?}");
    assert_eq!(lab.json(&["status"]).unwrap()["mode"], "observe");

    lab.configure("mode = \"enforce\"", "").unwrap();
    let done = lab.json(&["reload"]).unwrap();
    assert!(done["changes"].to_string().contains("enforce"), "{done:#}");
    let after = lab.json(&["status"]).unwrap();
    assert_eq!((after["mode"].as_str(), after["generation"].as_u64()), (Some("enforce"), Some(2)));
    // The same by signal.
    lab.configure("mode = \"observe\"", "").unwrap();
    lab.signal(nix::sys::signal::Signal::SIGHUP).unwrap();
    lab.wait_for("the reload by signal", |lab| Ok(lab.json(&["status"])?["mode"] == "observe")).unwrap();
}

/// Like [`Lab::configure`], with the ledger on the lab's own disk, which must be mounted.
fn configure_on_disk(lab: &Lab, shield: &str) {
    lab.configure(shield, "").unwrap();
    let path = lab.path("tunica.toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("/ledger.redb", "/disk/ledger.redb")).unwrap();
}

/// Fills the disk, and the room that the ledger has left inside its file, with bans in 192.0.2.0/24. A ledger that
/// failed is closed until the next change, so the disk can then be made read-only and every change fails.
fn break_ledger(lab: &Lab, disk: &SmallDisk) {
    disk.fill().unwrap();
    let reason = "x".repeat(180);
    let is_refused = |host: u32| {
        let source = format!("192.0.2.{host}");
        let ran = lab.tunica(&["ban", "add", &source, "--for", "1h", "--reason", &reason]).unwrap();
        ran.code == Some(1) && ran.err.contains("the change was not made: cannot write the ledger")
    };
    assert!((1..=250).any(is_refused), "the ledger fitted on a full disk");
    disk.set_read_only(true).unwrap();
}

fn mend_ledger(disk: &SmallDisk) {
    disk.set_read_only(false).unwrap();
    disk.free().unwrap();
}

#[test]
fn a_reload_that_the_ledger_cannot_keep_changes_nothing() {
    let mut lab = Lab::new("reload-full").unwrap();
    let disk = SmallDisk::mount(&lab.path("disk")).unwrap();
    configure_on_disk(&lab, "mode = \"observe\"");
    lab.start().unwrap();
    lab.must(&["ban", "add", "203.0.113.5", "--for", "1h"]).unwrap();
    let pins = lab.pin_directory().unwrap();
    break_ledger(&lab, &disk);
    let warning = |lab: &Lab| lab.json(&["status"]).unwrap()["warnings"].to_string();
    assert!(warning(&lab).contains("cannot write the ledger"), "{}", warning(&lab));

    // Lifting the ban is part of the reload, and cannot be made durable.
    configure_on_disk(&lab, "mode = \"enforce\"\nallow = [\"203.0.113.0/24\"]\ntables = { bans = 2048 }");
    for _ in 0..2 {
        let ran = lab.tunica(&["reload"]).unwrap();
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert!(ran.err.contains("cannot write the ledger") && ran.err.contains("stays in force"), "{ran:?}");
        for _ in 0..2 {
            let status = lab.json(&["status"]).unwrap();
            assert_eq!((&status["mode"], &status["generation"]), (&"observe".into(), &1.into()));
        }
        assert_eq!(lab.json(&["allow", "list"]).unwrap()["entries"].as_array().unwrap().len(), 0);
        assert_eq!(lab.pin_directory().unwrap(), pins, "maps of the refused size were left behind");
    }

    mend_ledger(&disk);
    lab.must(&["reload"]).unwrap();
    assert_eq!(lab.json(&["status"]).unwrap()["mode"], "enforce");
    assert!(!lab.must(&["ban", "list"]).unwrap().contains("203.0.113.5"));
    assert_ne!(lab.pin_directory().unwrap(), pins);
    // The warning goes with its cause.
    assert!(!warning(&lab).contains("ledger"), "{}", warning(&lab));
}

#[test]
fn a_bypass_needs_no_disk() {
    let mut lab = Lab::new("bypass-full").unwrap();
    let disk = SmallDisk::mount(&lab.path("disk")).unwrap();
    configure_on_disk(&lab, "mode = \"enforce\"");
    lab.count_in_stack("seen", "ip saddr 203.0.113.5").unwrap();
    lab.start().unwrap();
    lab.must(&["ban", "add", "203.0.113.5", "--for", "1h"]).unwrap();
    break_ledger(&lab, &disk);

    let said = lab.must(&["bypass", "on", "--reason", "locked out"]).unwrap();
    assert!(said.contains("is detached") && said.contains("would end the bypass"), "{said}");
    lab.send(&segment([203, 0, 113, 5], SYN), 3).unwrap();
    assert_eq!(lab.in_stack("seen").unwrap(), 3);
    let ran = lab.tunica(&["status"]).unwrap();
    assert_eq!(ran.code, Some(7), "{ran:?}");
    assert!(ran.out.contains("BYPASSED"), "{ran:?}");
    assert!(lab.log().contains("would end the bypass"), "{}", lab.log());
    let said = lab.must(&["bypass", "off"]).unwrap();
    assert!(said.contains("is attached again") && said.contains("bring the bypass back"), "{said}");
    lab.send(&segment([203, 0, 113, 5], SYN), 3).unwrap();
    assert_eq!(lab.in_stack("seen").unwrap(), 3);

    lab.must(&["bypass", "on", "--reason", "locked out"]).unwrap();
    mend_ledger(&disk);
    // The next change that can be written makes the bypass durable with it.
    lab.must(&["ban", "add", "203.0.113.6", "--for", "1h"]).unwrap();
    lab.end(nix::sys::signal::Signal::SIGKILL).unwrap();
    lab.start().unwrap();
    assert_eq!(lab.json(&["status"]).unwrap()["bypass"]["reason"], "locked out");
}

#[test]
fn a_reload_adds_drops_and_renames_interfaces() {
    let mut lab = Lab::new("interfaces").unwrap();
    let on = |lab: &Lab, interfaces: &str, shield: &str| {
        lab.configure(&format!("mode = \"enforce\"\n{shield}"), "").unwrap();
        let path = lab.path("tunica.toml");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace(&format!("\"{HOST_INTERFACE}\""), interfaces)).unwrap();
    };
    let pinned = |lab: &Lab, name: &str| lab.pin_directory().unwrap().join(format!("link-{name}")).exists();
    let is_attached = |lab: &Lab, name: &str| {
        let shown = lab.run_in_host("ip", &["-d", "link", "show", name]).unwrap();
        shown.contains("prog/xdp")
    };
    let null = null_segment();
    lab.run_in_host("ip", &["link", "add", "h1", "type", "veth", "peer", "name", "h2"]).unwrap();
    lab.count_in_stack("null", "ip saddr 203.0.113.9").unwrap();
    on(&lab, "\"h0\"", "");
    lab.start().unwrap();

    // A new interface that cannot be attached to refuses the whole.
    let object = concat!(env!("CARGO_MANIFEST_DIR"), "/../ebpf/prebuilt/shield.o");
    let pin = format!("{}-other", lab.pins().display());
    lab.run_in_host("bpftool", &["prog", "load", object, &pin]).unwrap();
    let attached = lab.run_in_host("bpftool", &["net", "attach", "xdpdrv", "pinned", &pin, "dev", "h1"]);
    fs::remove_file(&pin).unwrap();
    attached.unwrap();
    for (interfaces, part) in [("\"h9\"", "no interface h9"), ("\"h1\"", "attached to h1 already")] {
        on(&lab, interfaces, "tables = { bans = 2048 }");
        let ran = lab.tunica(&["reload"]).unwrap();
        assert_eq!(ran.code, Some(78), "{ran:?}");
        assert!(ran.err.contains(part) && ran.err.contains("stays in force"), "{ran:?}");
        let status = lab.json(&["status"]).unwrap();
        assert_eq!(
            (&status["interfaces"][0]["name"], &status["interfaces"][0]["actual"]),
            (&"h0".into(), &"native".into())
        );
        assert!(pinned(&lab, "h0") && is_attached(&lab, "h0"));
    }
    lab.send(&null, 3).unwrap();
    assert_eq!(lab.in_stack("null").unwrap(), 0);
    lab.run_in_host("bpftool", &["net", "detach", "xdpdrv", "dev", "h1"]).unwrap();

    on(&lab, "\"h0\", \"h1\"", "");
    assert_eq!(lab.json(&["reload"]).unwrap()["changes"][0], "the shield is on h1");
    assert!(pinned(&lab, "h0") && pinned(&lab, "h1") && is_attached(&lab, "h1"));

    on(&lab, "\"h1\"", "");
    assert_eq!(lab.json(&["reload"]).unwrap()["changes"][0], "the shield is off h0");
    assert!(!pinned(&lab, "h0") && !is_attached(&lab, "h0") && is_attached(&lab, "h1"));
    lab.send(&null, 3).unwrap();
    assert_eq!(lab.in_stack("null").unwrap(), 3);

    // Another name, with tables of another size at the same time, while somebody else holds the link open.
    let held = PinnedLink::from_pin(lab.pin_directory().unwrap().join("link-h1")).unwrap();
    lab.run_in_host("ip", &["link", "set", "h1", "name", "h3"]).unwrap();
    on(&lab, "\"h3\"", "tables = { bans = 2048 }");
    let changes = lab.json(&["reload"]).unwrap()["changes"].to_string();
    assert!(changes.contains("off h1") && changes.contains("on h3"), "{changes}");
    assert!(!pinned(&lab, "h1") && pinned(&lab, "h3") && is_attached(&lab, "h3"));
    drop(held);
    assert_eq!(lab.json(&["explain", "192.0.2.7"]).unwrap()["in_truth"], serde_json::Value::Null);

    // At a start an interface that is not there is no reason to leave the others bare, and `explain` says so.
    lab.end(nix::sys::signal::Signal::SIGTERM).unwrap();
    on(&lab, "\"h3\", \"h9\"", "");
    lab.start().unwrap();
    let explained = lab.json(&["explain", "192.0.2.7"]).unwrap()["in_truth"].to_string();
    assert!(explained.contains("not attached on h9:"), "{explained}");
}

#[test]
fn a_bypass_detaches_at_once_survives_a_restart_and_ends() {
    let mut lab = Lab::new("bypass").unwrap();
    lab.configure("mode = \"enforce\"", "").unwrap();
    lab.count_in_stack("seen", "ip saddr 203.0.113.5").unwrap();
    lab.start().unwrap();
    lab.must(&["ban", "add", "203.0.113.5", "--for", "1h"]).unwrap();
    let link = lab.pin_directory().unwrap().join(format!("link-{HOST_INTERFACE}"));
    let _held_by_others = PinnedLink::from_pin(link).unwrap();
    lab.must(&["bypass", "on", "--reason", "a customer cannot connect"]).unwrap();
    lab.send(&segment([203, 0, 113, 5], SYN), 3).unwrap();
    assert_eq!(lab.in_stack("seen").unwrap(), 3);
    let ran = lab.tunica(&["status"]).unwrap();
    assert_eq!(ran.code, Some(7), "{ran:?}");
    assert!(ran.out.contains("BYPASSED") && ran.out.contains("a customer cannot connect"), "{ran:?}");
    assert_eq!(lab.http("/ready").unwrap().0, 503);
    let explained = lab.must(&["explain", "203.0.113.5"]).unwrap();
    assert!(explained.starts_with("in truth bypassed since "), "{explained}");
    lab.end(nix::sys::signal::Signal::SIGTERM).unwrap();
    lab.start().unwrap();
    assert_eq!(lab.json(&["status"]).unwrap()["interfaces"][0]["actual"], "none");
    lab.must(&["bypass", "off"]).unwrap();
    lab.send(&segment([203, 0, 113, 5], SYN), 3).unwrap();
    assert_eq!(lab.in_stack("seen").unwrap(), 3);
    assert_eq!(lab.tunica(&["status"]).unwrap().code, Some(0));
}

#[test]
fn the_group_may_read_and_only_root_may_change() {
    let mut lab = Lab::new("group").unwrap();
    lab.configure("mode = \"observe\"", "").unwrap();
    lab.start().unwrap();
    for verb in [
        &["status"][..],
        &["top", "--once", "--interval", "0.2"],
        &["diff"],
        &["ban", "list"],
        &["allow", "list"],
        &["sources"],
        &["explain", "192.0.2.7"],
    ] {
        let ran = lab.tunica_as(nogroup(), verb).unwrap();
        assert_eq!(ran.code, Some(0), "{verb:?}: {ran:?}");
    }
    for verb in [&["ban", "add", "203.0.113.5"][..], &["reload"], &["bypass", "off"]] {
        let ran = lab.tunica_as(nogroup(), verb).unwrap();
        assert_eq!(ran.code, Some(5), "{verb:?}: {ran:?}");
        assert!(ran.err.contains("only root"), "{verb:?}: {ran:?}");
    }
    // Strangers cannot even open the socket.
    let ran = lab.tunica_as(12_345, &["status"]).unwrap();
    assert_eq!(ran.code, Some(5), "{ran:?}");
    assert_eq!(lab.json(&["ban", "list"]).unwrap()["bans"].as_array().unwrap().len(), 0);
}

#[test]
fn status_sources_and_doctor_tell_what_is() {
    let mut lab = Lab::new("status").unwrap();
    lab.configure("mode = \"enforce\"", "[tor]\nuser = \"nobody\"").unwrap();
    lab.host.write_sysctl("net/ipv4/tcp_syncookies", "2").unwrap();
    lab.start().unwrap();
    let quiet = lab.json(&["status"]).unwrap();
    assert_eq!(quiet["schema"], 1);
    let defence = |status: &serde_json::Value, name: &str| {
        status["defences"].as_array().unwrap().iter().find(|row| row["name"] == name).unwrap().clone()
    };
    assert_eq!(defence(&quiet, "syn_rate")["armed"], true);
    assert_eq!(defence(&quiet, "syn_rate")["last_trigger"], serde_json::Value::Null);
    assert!(defence(&quiet, "syn_rate")["active_since"].is_u64());
    assert_eq!(defence(&quiet, "uninspected")["armed"], false);
    assert_eq!(quiet["program"]["matches"], true);
    // What the machine of the test is like is not the daemon's fault.
    let is_of_host = |warning: &serde_json::Value| {
        ["disk: ", "memory: ", "clock: "].iter().any(|about| warning.as_str().unwrap().starts_with(about))
    };
    assert!(quiet["warnings"].as_array().unwrap().iter().all(is_of_host), "{quiet:#}");

    lab.send(&segment([203, 0, 113, 5], SYN), 200).unwrap();
    lab.wait_for("the counters", |lab| {
        Ok(defence(&lab.json(&["status"])?, "syn_rate")["dropped_packets"].as_u64() >= Some(150))
    })
    .unwrap();
    assert!(defence(&lab.json(&["status"]).unwrap(), "syn_rate")["last_trigger"].is_u64());
    let human = lab.must(&["status"]).unwrap();
    assert!(human.lines().next().unwrap().contains("enforcing on h0 (native)"), "{human}");
    let sources = lab.json(&["sources"]).unwrap();
    assert_eq!(sources["sources"][0]["source"], "203.0.113.5");
    assert_eq!(sources["sources"][0]["verdict"], "syn_rate");
    assert_eq!(sources["sources"][0]["banned"], false);
    // Nothing that identifies a client is in the log above debug.
    assert!(lab.log().contains("SHIELD_DOS_DROP: verdict=syn_rate port=443"), "{}", lab.log());
    assert!(!lab.log().contains("203.0.113.5"), "{}", lab.log());

    let doctor = lab.json(&["doctor"]).unwrap();
    let findings = doctor["findings"].as_array().unwrap();
    for check in [
        "kernel",
        "capabilities",
        "bpffs",
        "pins",
        "syncookies",
        "forwarding",
        "tor",
        "driver.h0",
        "hook.h0",
        "queues.h0",
        "mtu.h0",
        "offloads.h0",
        "link.h0",
        "place.h0",
        "vlan.h0",
        "timestamps",
        "conntrack",
        "disk",
        "memory",
        "clock",
    ] {
        assert!(findings.iter().any(|finding| finding["check"] == check), "no {check} in {doctor:#}");
    }
}

#[test]
fn doctor_answers_without_a_daemon() {
    let lab = Lab::new("preflight").unwrap();
    lab.configure("mode = \"observe\"", "[tor]\nuser = \"nobody\"").unwrap();
    let file = lab.path("tunica.toml");
    // `tunica` finds no socket and runs the `tunicad` beside it, here in this machine's own namespace.
    let doctor = lab.json(&["--config", file.to_str().unwrap(), "doctor"]).unwrap();
    let findings = doctor["findings"].as_array().unwrap();
    let level = |check: &str| {
        let finding = findings.iter().find(|finding| finding["check"] == check);
        finding.unwrap_or_else(|| panic!("no {check} in {doctor:#}"))["level"].as_str().unwrap().to_owned()
    };
    assert_eq!(level("kernel"), "ok");
    assert_eq!(level("capabilities"), "ok");
    assert_eq!(level("bpffs"), "ok");
    assert_eq!(level("pins"), "ok");
    assert_eq!(level("tor"), "ok");
    // The lab's interface is not in this namespace.
    assert_eq!(level("interface.h0"), "failure");
    let ran = lab.tunica(&["--config", file.to_str().unwrap(), "doctor"]).unwrap();
    assert_eq!(ran.code, Some(7), "{ran:?}");
}

#[test]
fn a_frame_of_top_shows_counts_that_move() {
    let mut lab = Lab::new("top").unwrap();
    lab.configure("mode = \"enforce\"", "").unwrap();
    lab.start().unwrap();
    lab.must(&["ban", "add", "203.0.113.77", "--for", "1h", "--reason", "scan"]).unwrap();
    let row = |report: &serde_json::Value| {
        let rows = report["rows"].as_array().unwrap();
        rows.iter().find(|row| row["verdict"] == "syn_rate" && row["action"] == "drop").unwrap().clone()
    };
    let syn = segment([203, 0, 113, 5], SYN);
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let (frame, report) = thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                lab.send(&syn, 20).unwrap();
                sent.fetch_add(20, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(5));
            }
        });
        let frame = lab.must(&["top", "--once"]);
        let report = lab.json(&["top", "--once", "--interval", "0.5"]);
        stop.store(true, Ordering::Relaxed);
        (frame.unwrap(), report.unwrap())
    });

    assert!(frame.lines().all(|line| line.chars().count() <= 80) && frame.lines().count() <= 24, "{frame}");
    let line = frame.lines().find(|line| line.starts_with("syn_rate ")).expect(&frame);
    let mut words = line.split_whitespace().skip(1);
    assert_eq!(words.next(), Some("drop"), "{frame}");
    assert!(words.next().unwrap().parse::<f64>().unwrap() > 0.0, "{frame}");
    for part in
        ["enforcing", "h0 native", "DEFENCE", "armed", "203.0.113.5", "203.0.113.77", " warnings: tor.user"]
    {
        assert!(frame.contains(part), "no {part}:\n{frame}");
    }
    let moving = row(&report);
    assert_eq!(
        (&report["schema"], &report["kind"], &report["mode"]),
        (&1.into(), &"top".into(), &"enforce".into())
    );
    assert!(moving["packets_per_second"].as_f64().unwrap() > 0.0, "{moving}");
    assert!(moving["packets"].as_u64().unwrap() <= sent.load(Ordering::Relaxed), "{moving}");

    // Without traffic the counts stand still.
    let still = row(&lab.json(&["top", "--once", "--interval", "0.5"]).unwrap());
    assert_eq!(still["packets_per_second"], 0.0);
    let passed = lab.json(&["top", "--once", "--interval", "0.2"]).unwrap();
    assert_eq!(row(&passed)["packets"], still["packets"]);
    assert!(still["packets"].as_u64().unwrap() <= sent.load(Ordering::Relaxed));

    // Tables of another size in between: no rate at all, rather than a wrong one.
    let asked = |lab: &Lab| {
        let series = "tunica_control_requests_total{result=\"ok\",verb=\"counters\"}";
        lab.metric(series).unwrap().unwrap_or(0.0)
    };
    let before = asked(&lab);
    let renewed = thread::scope(|scope| {
        let shown = scope.spawn(|| lab.json(&["top", "--once", "--interval", "8"]));
        while asked(&lab) == before {
            thread::sleep(Duration::from_millis(20));
        }
        lab.configure("mode = \"enforce\"\ntables = { bans = 2048 }", "").unwrap();
        lab.must(&["reload"]).unwrap();
        shown.join().unwrap().unwrap()
    });
    for row in renewed["rows"].as_array().unwrap() {
        assert_eq!(row["packets_per_second"], serde_json::Value::Null, "{row}");
    }
}

#[test]
fn diff_says_what_a_reload_would_change_and_changes_nothing() {
    let mut lab = Lab::new("diff").unwrap();
    lab.configure("mode = \"observe\"\nallow = [\"198.51.100.0/24\"]", "").unwrap();
    lab.start().unwrap();
    lab.must(&["ban", "add", "203.0.113.5", "--for", "1h"]).unwrap();
    lab.must(&["ban", "add", "203.0.112.5", "--for", "1h"]).unwrap();
    let said = lab.must(&["diff"]).unwrap();
    assert!(said.contains("no key differs"), "{said}");
    // Another way to write the same.
    lab.configure("allow = [\"198.51.100.0/24\"]\nsyn = { burst = 0x14 }", "[http]\nenabled = true").unwrap();
    assert_eq!(lab.json(&["diff"]).unwrap()["changes"].as_array().unwrap().len(), 0);

    lab.configure("mode = \"enforce\"\nallow = [\"203.0.113.0/24\"]", "[tor]\nuser = \"nobody\"").unwrap();
    let state = |lab: &Lab| {
        let status = lab.json(&["status"]).unwrap();
        let lists = [&["ban", "list"], &["allow", "list"]].map(|verb| lab.json(verb).unwrap());
        (status["mode"].clone(), status["generation"].clone(), lists)
    };
    let before = state(&lab);
    let ran = lab.tunica(&["diff"]).unwrap();
    assert_eq!(ran.code, Some(8), "{ran:?}");
    for part in [
        "3 keys differ",
        "shield.mode: \"observe\" -> \"enforce\"",
        "- \"198.51.100.0/24\"",
        "+ \"203.0.113.0/24\"",
        "tor.user: not set -> \"nobody\"",
        "1 ban would be lifted",
        "`tunica reload` brings the file into force",
    ] {
        assert!(ran.out.contains(part), "no {part}: {ran:?}");
    }
    let diff = lab.json(&["diff"]).unwrap();
    assert_eq!(diff["lifted"], serde_json::json!(["203.0.113.5"]));
    assert_eq!(state(&lab), before);

    // What only a start can change, and an interface that is not there.
    lab.configure("", "[http]\nlisten = \"127.0.0.1:9188\"").unwrap();
    let path = lab.path("tunica.toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("[\"h0\"]", "[\"h0\", \"h9\"]")).unwrap();
    let diff = lab.json(&["diff"]).unwrap();
    let needs_restart: Vec<_> = diff["changes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|change| (change["key"].as_str().unwrap(), change["needs_restart"].as_bool().unwrap()))
        .collect();
    assert_eq!(needs_restart, [("shield.interfaces", false), ("shield.allow", false), ("http.listen", true)]);
    let obstacles = diff["obstacles"].to_string();
    assert!(obstacles.contains("http.listen") && obstacles.contains("no interface h9"), "{obstacles}");
    // A reload says the same.
    assert!(lab.tunica(&["reload"]).unwrap().err.contains("http.listen can only change at a start"));

    lab.configure("mode = \"enforced\"", "").unwrap();
    let ran = lab.tunica(&["diff"]).unwrap();
    assert_eq!(ran.code, Some(78), "{ran:?}");
    assert!(ran.err.contains("shield.mode = \"enforced\""), "{ran:?}");
    assert_eq!(state(&lab), before);

    // What was foretold comes true, and then nothing differs.
    lab.configure("mode = \"enforce\"\nallow = [\"203.0.113.0/24\"]", "[tor]\nuser = \"nobody\"").unwrap();
    lab.must(&["reload"]).unwrap();
    let list = lab.must(&["ban", "list"]).unwrap();
    assert!(!list.contains("203.0.113.5") && list.contains("203.0.112.5"), "{list}");
    assert_eq!(lab.tunica(&["diff"]).unwrap().code, Some(0));
}
