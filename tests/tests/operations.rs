//! What an operator does in a bad hour, against the live daemon: attack mode, incidents, reloads on trial, tuning.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper that fails is a test that fails"
)]

use nix::sys::signal::Signal;
use tunica_tests::{
    frame::{TCP, tcp, v4},
    lab::{HOST, Lab},
};

/// A segment without flags from TEST-NET-3 to the host, which the sanity rules refuse.
fn null_segment() -> Vec<u8> {
    let mut ip = v4([203, 0, 113, 9], TCP);
    ip.destination = HOST.octets();
    ip.frame(&tcp(0, 5))
}

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
    assert_eq!(lab.metric("tunica_incidents_total").unwrap(), Some(0.0));

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
    assert_eq!(lab.metric("tunica_incidents_total").unwrap(), Some(1.0));
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
