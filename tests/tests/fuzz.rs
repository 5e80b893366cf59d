//! The fuzzer's targets, without the fuzzer: for the inputs from which it starts, and for those that once made it stop.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a helper that fails is a test that fails")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use tunica_tests::fuzz::{TARGETS, Target};

fn folder(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn replay(name: &str) {
    let Target { check, seeds, .. } = Target::named(name).unwrap();
    let seeds = seeds();
    assert!(!seeds.is_empty());
    for seed in &seeds {
        check(seed);
        // Cut anywhere, the same must hold.
        for end in (1..seed.len()).step_by(seed.len() / 8 + 1) {
            check(seed.get(..end).unwrap());
        }
    }
    let findings = folder("fuzz/findings").join(name);
    if findings.is_dir() {
        for entry in fs::read_dir(findings).unwrap() {
            let path = entry.unwrap().path();
            check(&fs::read(path).unwrap());
        }
    }
}

#[test]
fn host_parser() {
    replay("host-parser");
}

#[test]
fn config() {
    replay("config");
}

#[test]
fn control_socket() {
    replay("control-socket");
}

#[test]
fn ledger() {
    replay("ledger");
}

#[test]
fn proxy_header() {
    replay("proxy-header");
}

#[test]
fn control_port() {
    replay("control-port");
}

#[test]
fn haproxy_api() {
    replay("haproxy-api");
}

#[test]
fn pow_challenge() {
    replay("pow-challenge");
}

#[test]
fn pow_token() {
    replay("pow-token");
}

#[test]
fn tor_metrics() {
    replay("tor-metrics");
}

#[test]
fn torrc() {
    replay("torrc");
}

#[test]
fn every_target_has_a_program_and_a_test() {
    let mut programs: Vec<String> = fs::read_dir(folder("fuzz/src/bin"))
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    programs.sort();
    let mut names = TARGETS.map(|target| target.name);
    names.sort_unstable();
    assert_eq!(programs, names);
    let tested = [
        "config",
        "control-port",
        "control-socket",
        "haproxy-api",
        "host-parser",
        "ledger",
        "pow-challenge",
        "pow-token",
        "proxy-header",
        "tor-metrics",
        "torrc",
    ];
    assert_eq!(names, tested, "a target without a test");
}
