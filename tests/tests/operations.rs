//! What an operator does in a bad hour, against the live daemon: attack mode, incidents, reloads on trial, tuning.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper that fails is a test that fails"
)]

use std::fs;

use nix::sys::signal::Signal;
use tunica_tests::{
    frame::SYN,
    lab::{Lab, null_segment, segment},
};

/// How many of ten such segments reach the network stack, which [`Lab::count_in_stack`] counts as `null`.
fn passing(lab: &Lab) -> u64 {
    let before = lab.in_stack("null").unwrap();
    lab.send(&null_segment(), 10).unwrap();
    lab.in_stack("null").unwrap() - before
}

fn mode_and_generation(lab: &Lab) -> (String, u64) {
    let status = lab.json(&["status"]).unwrap();
    (status["mode"].as_str().unwrap().to_owned(), status["generation"].as_u64().unwrap())
}

#[test]
fn attack_mode_drops_at_once_survives_a_kill_and_ends() {
    let mut lab = Lab::new("panic").unwrap();
    lab.configure("mode = \"observe\"", "").unwrap();
    lab.count_in_stack("null", "ip saddr 203.0.113.9").unwrap();
    lab.start().unwrap();
    assert_eq!(passing(&lab), 10);
    let (_, generation) = mode_and_generation(&lab);

    let said = lab.must(&["panic", "--dry-run"]).unwrap();
    for part in
        ["Nothing was changed", "`enforce` instead of `observe`", "5 connections a second instead of 10"]
    {
        assert!(said.contains(part), "no {part}: {said}");
    }
    assert_eq!((passing(&lab), mode_and_generation(&lab)), (10, ("observe".into(), generation)));

    let said = lab.must(&["panic", "--for", "10m"]).unwrap();
    assert!(said.contains("To undo: tunica panic off") && said.contains("after 600 s"), "{said}");
    assert_eq!((passing(&lab), mode_and_generation(&lab)), (0, ("enforce".into(), generation + 1)));
    assert_eq!(lab.metric("tunica_attack_mode_active").unwrap(), Some(1.0));
    assert!(lab.must(&["status"]).unwrap().contains("ATTACK MODE since"));
    assert!(lab.log().contains("attack_mode_on"), "{}", lab.log());

    lab.end(Signal::SIGKILL).unwrap();
    lab.start().unwrap();
    assert_eq!((passing(&lab), mode_and_generation(&lab).0), (0, "enforce".into()));
    let status = lab.json(&["status"]).unwrap();
    let attack_mode = &status["attack_mode"];
    let length = attack_mode["expires"].as_u64().unwrap() - attack_mode["since"].as_u64().unwrap();
    assert_eq!(length, 600);

    lab.must(&["panic", "off"]).unwrap();
    assert_eq!((passing(&lab), mode_and_generation(&lab).0), (10, "observe".into()));
    assert_eq!(lab.metric("tunica_attack_mode_active").unwrap(), Some(0.0));
    assert_eq!(lab.tunica(&["panic", "off"]).unwrap().code, Some(4));
    for (span, code) in [("59s", 3), ("2d", 3), ("forever", 2)] {
        assert_eq!(lab.tunica(&["panic", "--for", span]).unwrap().code, Some(code), "{span}");
    }
}

#[test]
fn an_attack_becomes_an_incident_that_a_kill_does_not_lose() {
    let mut lab = Lab::new("incident").unwrap();
    lab.configure("mode = \"enforce\"", "").unwrap();
    lab.start().unwrap();
    assert!(lab.must(&["incident", "list"]).unwrap().contains("No defence has spoken"));
    assert_eq!(lab.tunica(&["incident", "show", "1"]).unwrap().code, Some(4));
    assert_eq!(lab.metric("tunica_incidents_total{kind=\"sanity\"}").unwrap(), Some(0.0));

    lab.send(&null_segment(), 30).unwrap();
    let incident = |lab: &Lab| lab.json(&["incident", "show", "1"]).unwrap();
    lab.wait_for("the incident", |lab| Ok(incident(lab)["dropped_packets"] == 30)).unwrap();
    let first = incident(&lab);
    assert_eq!((&first["end"], &first["defences"][0]), (&serde_json::Value::Null, &"sanity".into()));
    assert_eq!(
        first["rows"],
        serde_json::json!([{"verdict": "null_flags", "action": "drop", "packets": 30}])
    );
    // All within one reading of the counters, or two.
    assert!((5..=30).contains(&first["peak_packets_per_second"].as_u64().unwrap()), "{first:#}");
    assert!(first["softirq"]["average_percent"].as_f64().is_some_and(|share| share <= 100.0), "{first:#}");
    assert!(!first.to_string().contains("203.0.113"), "{first:#}");
    assert_eq!(lab.metric("tunica_incidents_total{kind=\"sanity\"}").unwrap(), Some(1.0));
    assert_eq!(lab.metric("tunica_incident_active").unwrap(), Some(1.0));
    assert!(lab.log().contains("incident_begun"), "{}", lab.log());

    // It is the same incident for the next daemon, and goes on there.
    lab.end(Signal::SIGKILL).unwrap();
    lab.start().unwrap();
    assert_eq!(lab.metric("tunica_incident_active").unwrap(), Some(1.0));
    lab.send(&null_segment(), 7).unwrap();
    lab.wait_for("more of the incident", |lab| Ok(incident(lab)["dropped_packets"] == 37)).unwrap();
    assert_eq!(incident(&lab)["start"], first["start"]);
    assert_eq!(lab.json(&["incident", "list"]).unwrap()["incidents"].as_array().unwrap().len(), 1);
    assert!(lab.must(&["incident", "list"]).unwrap().contains("sanity"));
    assert!(lab.must(&["incident", "show", "1"]).unwrap().contains("37 dropped"));
}

#[test]
fn a_reload_that_nobody_confirms_is_undone() {
    let mut lab = Lab::new("trial").unwrap();
    let observe = "mode = \"observe\"\ntables = { bans = 2048 }";
    lab.configure(observe, "").unwrap();
    lab.count_in_stack("null", "ip saddr 203.0.113.9").unwrap();
    lab.run_in_host("ip", &["link", "add", "h1", "type", "veth", "peer", "name", "h2"]).unwrap();
    lab.start().unwrap();
    let on = |lab: &Lab, name: &str| {
        lab.run_in_host("ip", &["-d", "link", "show", name]).unwrap().contains("prog/xdp")
    };
    let trial = |lab: &Lab| lab.json(&["status"]).unwrap()["trial"].clone();
    // Mode, tables and interfaces at once.
    let enforce = |lab: &Lab| {
        lab.configure("mode = \"enforce\"\ntables = { bans = 4096 }", "").unwrap();
        let path = lab.path("tunica.toml");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("[\"h0\"]", "[\"h0\", \"h1\"]")).unwrap();
    };
    enforce(&lab);
    assert_eq!(lab.tunica(&["confirm"]).unwrap().code, Some(4));
    for seconds in ["9", "3601"] {
        let ran = lab.tunica(&["reload", "--confirm", seconds]).unwrap();
        assert!(ran.code == Some(3) && ran.err.contains("stays in force"), "{ran:?}");
    }
    assert_eq!((passing(&lab), on(&lab, "h1"), trial(&lab)), (10, false, serde_json::Value::Null));

    // Confirmed, it stays. A shell over SSH is told which of the new interfaces carries it.
    lab.run_in_host("ip", &["address", "add", "192.0.2.1/24", "dev", "h1"]).unwrap();
    let said = lab.tunica_over_ssh("198.51.100.7", &["reload", "--confirm"]).unwrap();
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.out.contains("unless `tunica confirm` comes within 120 s"), "{said:?}");
    assert!(!said.out.contains("carries your SSH session"), "{said:?}");
    assert_eq!((passing(&lab), on(&lab, "h1")), (0, true));
    assert!(trial(&lab)["seconds_left"].as_u64().is_some_and(|left| left <= 120));
    assert_eq!(lab.metric("tunica_config_trial_active").unwrap(), Some(1.0));
    assert!(lab.must(&["status"]).unwrap().contains("ON TRIAL"));
    lab.must(&["confirm"]).unwrap();
    assert_eq!((trial(&lab), passing(&lab)), (serde_json::Value::Null, 0));
    lab.configure(observe, "").unwrap();
    lab.must(&["reload"]).unwrap();

    // Not confirmed: undone by a daemon that was killed in between and came back in time.
    enforce(&lab);
    lab.must(&["reload", "--confirm", "12"]).unwrap();
    assert_eq!((passing(&lab), on(&lab, "h1")), (0, true));
    lab.end(Signal::SIGKILL).unwrap();
    lab.start().unwrap();
    assert_eq!(trial(&lab)["undone"], false);
    // A bypass works meanwhile.
    lab.must(&["bypass", "on", "--reason", "locked out"]).unwrap();
    assert_eq!(passing(&lab), 10);
    lab.must(&["bypass", "off"]).unwrap();
    lab.wait_for("the end of the trial", |lab| Ok(trial(lab)["undone"] == true)).unwrap();
    let undone = |lab: &Lab| {
        assert_eq!((passing(lab), on(lab, "h1"), mode_and_generation(lab).0), (10, false, "observe".into()));
        assert_eq!(lab.metric("tunica_config_undone").unwrap(), Some(1.0));
        let status = lab.tunica(&["status"]).unwrap();
        assert!(status.code == Some(7) && status.out.contains("UNDONE"), "{status:?}");
        assert!(lab.pin_directory().unwrap().to_string_lossy().contains("2048"), "{:?}", lab.pin_directory());
    };
    undone(&lab);
    assert!(lab.log().contains("trial_undone"), "{}", lab.log());
    assert_eq!(lab.tunica(&["confirm"]).unwrap().code, Some(3));
    assert_eq!(lab.tunica(&["diff"]).unwrap().code, Some(8));
    // The events of the tables that came back are read.
    let events = "tunica_events_received_total";
    let before = lab.metric(events).unwrap();
    lab.wait_for("events", |lab| {
        lab.send(&null_segment(), 1)?;
        Ok(lab.metric(events)? > before)
    })
    .unwrap();

    // The file still says otherwise, and the next daemon does not follow it.
    lab.end(Signal::SIGKILL).unwrap();
    lab.start().unwrap();
    undone(&lab);
    assert!(lab.log().contains("config_undone"), "{}", lab.log());
    let said = lab.must(&["reload"]).unwrap();
    assert!(said.contains("nothing undoes this by itself"), "{said}");
    assert_eq!((trial(&lab), passing(&lab), on(&lab, "h1")), (serde_json::Value::Null, 0, true));
    assert_eq!(lab.metric("tunica_config_undone").unwrap(), Some(0.0));
}

#[test]
fn a_daemon_that_starts_after_the_trial_begins_with_what_was_before() {
    let mut lab = Lab::new("trial-late").unwrap();
    lab.configure("mode = \"observe\"", "").unwrap();
    lab.count_in_stack("null", "ip saddr 203.0.113.9").unwrap();
    lab.start().unwrap();
    lab.configure("mode = \"enforce\"\nallow = [\"198.51.100.7\"]", "").unwrap();
    lab.must(&["reload", "--confirm", "10"]).unwrap();
    lab.end(Signal::SIGKILL).unwrap();
    // The pinned program goes on meanwhile.
    assert_eq!(passing(&lab), 0);
    std::thread::sleep(std::time::Duration::from_secs(11));
    lab.start().unwrap();
    assert_eq!((passing(&lab), mode_and_generation(&lab).0), (10, "observe".into()));
    assert_eq!(lab.json(&["status"]).unwrap()["trial"]["undone"], true);
    assert!(lab.log().contains("config_undone"), "{}", lab.log());
    assert_eq!(lab.http("/ready").unwrap().0, 503);
}

#[test]
fn a_first_start_that_nobody_confirms_is_taken_away_again() {
    let mut lab = Lab::new("first").unwrap();
    lab.configure("mode = \"enforce\"\nfirst_attach_confirm_seconds = 10", "").unwrap();
    lab.count_in_stack("null", "ip saddr 203.0.113.9").unwrap();
    lab.start().unwrap();
    assert_eq!(passing(&lab), 0);
    let status = lab.tunica(&["status"]).unwrap();
    assert!(status.out.contains("ON TRIAL") && status.out.contains("bypassed"), "{status:?}");
    // A daemon that dies meanwhile keeps the promise.
    lab.end(Signal::SIGKILL).unwrap();
    assert_eq!(passing(&lab), 0);
    lab.start().unwrap();
    lab.wait_for("the bypass", |lab| Ok(lab.metric("tunica_shield_bypassed")? == Some(1.0))).unwrap();
    let away = |lab: &Lab| {
        assert_eq!(passing(lab), 10);
        let status = lab.tunica(&["status"]).unwrap();
        assert!(
            status.code == Some(7) && status.out.contains("nobody confirmed the first start"),
            "{status:?}"
        );
        assert_eq!(lab.metric("tunica_config_undone").unwrap(), Some(0.0));
    };
    away(&lab);
    lab.end(Signal::SIGKILL).unwrap();
    lab.start().unwrap();
    away(&lab);
    lab.must(&["bypass", "off"]).unwrap();
    assert_eq!((passing(&lab), lab.tunica(&["status"]).unwrap().code), (0, Some(0)));
    // The next start is not the first.
    lab.end(Signal::SIGTERM).unwrap();
    lab.start().unwrap();
    assert_eq!(lab.json(&["status"]).unwrap()["trial"], serde_json::Value::Null);
}

#[test]
fn a_reload_names_the_interface_that_carries_the_session() {
    let mut lab = Lab::new("carrier").unwrap();
    let file = lab.path("tunica.toml");
    lab.configure("mode = \"observe\"", "").unwrap();
    let text = fs::read_to_string(&file).unwrap();
    lab.run_in_host("ip", &["link", "add", "h1", "type", "veth", "peer", "name", "h2"]).unwrap();
    fs::write(&file, text.replace("[\"h0\"]", "[\"h1\"]")).unwrap();
    lab.start().unwrap();
    fs::write(&file, &text).unwrap();
    let ran = lab.tunica_over_ssh("198.51.100.7", &["reload"]).unwrap();
    assert!(ran.out.contains("h0 carries your SSH session, and nothing undoes this"), "{ran:?}");
    let ran = lab.tunica_over_ssh("198.51.100.7", &["reload"]).unwrap();
    assert!(!ran.out.contains("carries your SSH session"), "{ran:?}");
}

#[test]
fn tune_tells_what_it_saw_and_changes_nothing() {
    let mut lab = Lab::new("tune").unwrap();
    lab.configure("mode = \"observe\"", "").unwrap();
    lab.start().unwrap();
    let ran = lab.tunica(&["tune"]).unwrap();
    assert!(ran.code == Some(3) && ran.err.contains("--force"), "{ran:?}");
    let syn = segment([203, 0, 113, 5], SYN);
    lab.send(&syn, 60).unwrap();
    let row = |lab: &Lab| {
        let tuning = lab.json(&["tune", "--force"]).unwrap();
        let rows = tuning["proposals"].as_array().unwrap().clone();
        rows.into_iter().find(|row| row["key"] == "shield.syn.burst").unwrap()
    };
    lab.wait_for("what was seen", |lab| {
        Ok(row(lab)["seen"].as_str().unwrap().contains("SYNs over it, in 1 of"))
    })
    .unwrap();
    lab.wait_for("a sample", |lab| Ok(row(lab)["seen"].as_str().unwrap().contains("1 sources in samples")))
        .unwrap();
    // One minute is no pattern.
    assert_eq!((&row(&lab)["present"], &row(&lab)["proposed"]), (&20.into(), &serde_json::Value::Null));
    assert_eq!(lab.must(&["tune", "--force", "--toml"]).unwrap(), "");
    assert!(lab.must(&["tune", "--force"]).unwrap().contains("shield.syn.burst stays 20"));
    assert_eq!(mode_and_generation(&lab), ("observe".into(), 1));
    // Other settings, another observation.
    lab.configure("mode = \"observe\"\nsyn = { burst = 30 }", "").unwrap();
    lab.must(&["reload"]).unwrap();
    assert!(row(&lab)["seen"].as_str().unwrap().starts_with("no SYNs over it"));
}
