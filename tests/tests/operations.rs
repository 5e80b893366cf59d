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
