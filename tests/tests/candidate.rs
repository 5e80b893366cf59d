//! A candidate beside the configuration in force: it sees every packet, counts how it differs, and decides nothing.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper that fails is a test that fails"
)]

use std::{collections::BTreeMap, fs};

use nix::sys::signal::Signal;
use serde_json::Value;
use tunica_tests::{
    flood::Pattern,
    frame::{SYN, TCP, UDP, tcp, udp, v4},
    lab::{HOST, Lab, null_segment},
};

fn from_test_net(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut ip = v4([203, 0, 113, 9], protocol);
    ip.destination = HOST.octets();
    ip.frame(payload)
}

/// The lab's configuration with other lines of `[shield]`, as a file of its own.
fn write_candidate(lab: &Lab, shield: &str) -> String {
    let in_force = fs::read_to_string(lab.path("tunica.toml")).unwrap();
    let text = in_force.replacen("mode = \"enforce\"", shield, 1);
    assert!(text.contains(shield), "{text}");
    let path = lab.path("candidate.toml");
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Packets by verdict of one list of differences.
fn packets(rows: &Value) -> BTreeMap<String, u64> {
    let row = |row: &Value| (row["verdict"].as_str().unwrap().to_owned(), row["packets"].as_u64().unwrap());
    rows.as_array().unwrap().iter().map(row).collect()
}

fn rows<const N: usize>(rows: [(&str, u64); N]) -> BTreeMap<String, u64> {
    rows.into_iter().map(|(verdict, packets)| (verdict.to_owned(), packets)).collect()
}

/// A text without its line breaks, which fall where the lab's paths have them.
fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// All packets that the shield in force has judged.
fn judged(lab: &Lab) -> u64 {
    let counters = lab.json(&["top", "--once", "--json"]).unwrap();
    counters["rows"].as_array().unwrap().iter().map(|row| row["packets"].as_u64().unwrap()).sum()
}

#[test]
fn differences_are_counted_and_nothing_is_decided() {
    let mut lab = Lab::new("candidate").unwrap();
    lab.configure("mode = \"enforce\"", "").unwrap();
    lab.count_in_stack("attack", "ip saddr 203.0.113.9").unwrap();
    lab.start().unwrap();
    assert_eq!(lab.tunica(&["candidate", "status"]).unwrap().code, Some(4));

    // More lenient in one rule, stricter in two.
    let file = write_candidate(
        &lab,
        "mode = \"enforce\"\nlockdown = true\nsanity = { off = [\"null_flags\"] }\n\
         syn = { per_source_per_second = 1, burst = 2 }\nports = { open = [\"443/tcp\"] }",
    );
    let said = words(&lab.must(&["candidate", "load", &file]).unwrap());
    assert!(said.contains("5 of its keys") && said.contains("tunica candidate drop"), "{said}");

    let (syn, closed) = (from_test_net(TCP, &tcp(SYN, 5)), from_test_net(UDP, &udp(5_000, 9_999, 20, 0)));
    lab.send(&null_segment(), 10).unwrap();
    lab.send(&syn, 7).unwrap();
    lab.send(&closed, 3).unwrap();
    lab.wait_for("all packets", |lab| Ok(lab.in_stack("attack")? >= 10)).unwrap();
    // What is in force decides: segments without flags are dropped, all else passes.
    assert_eq!(lab.in_stack("attack").unwrap(), 10);

    let status = lab.json(&["candidate", "status"]).unwrap();
    assert_eq!(packets(&status["passes"]), rows([("null_flags", 10)]), "{status:#}");
    assert_eq!(packets(&status["refuses"]), rows([("port_closed", 3), ("syn_rate", 5)]), "{status:#}");
    assert_eq!(status["untried"], serde_json::json!([]));
    let keys: Vec<_> = status["changes"].as_array().unwrap().iter().map(|row| &row["key"]).collect();
    assert_eq!(
        keys,
        [
            "shield.lockdown",
            "shield.syn.per_source_per_second",
            "shield.syn.burst",
            "shield.ports.open",
            "shield.sanity.off"
        ]
    );
    let text = words(&lab.must(&["candidate", "status"]).unwrap());
    assert!(
        text.contains("Would be refused, and pass now:") && text.contains("It decides nothing"),
        "{text}"
    );
    let line = words(&lab.tunica(&["status"]).unwrap().out);
    assert!(line.contains("CANDIDATE") && line.contains("would refuse 8 packets"), "{line}");

    // Each counts by itself: what a candidate saw is what the shield in force saw meanwhile.
    lab.must(&["candidate", "load", &file]).unwrap();
    let before = judged(&lab);
    lab.send(&null_segment(), 100).unwrap();
    lab.wait_for("the same count", |lab| {
        let status = lab.json(&["candidate", "status"])?;
        let seen: u64 =
            status["counters"].as_array().unwrap().iter().map(|row| row["packets"].as_u64().unwrap()).sum();
        // A frame of the kernel's own may come in between loading and reading.
        Ok(seen >= 100 && seen.abs_diff(judged(lab) - before) <= 5)
    })
    .unwrap();

    lab.must(&["candidate", "drop"]).unwrap();
    let before = lab.in_stack("attack").unwrap();
    lab.send(&null_segment(), 10).unwrap();
    assert_eq!(lab.in_stack("attack").unwrap(), before);
    assert_eq!(lab.tunica(&["candidate", "drop"]).unwrap().code, Some(4));
    assert!(lab.log().contains("candidate_loaded") && lab.log().contains("candidate_dropped"));
}

/// For all packets of a flood: the same rules find the same.
#[test]
fn a_candidate_with_the_same_rules_agrees() {
    let mut lab = Lab::new("same").unwrap();
    lab.configure("mode = \"enforce\"\nsyn = { enabled = false }\nport_syn = { enabled = false }", "")
        .unwrap();
    lab.start().unwrap();
    let file = write_candidate(&lab, "mode = \"observe\"");
    let said = words(&lab.must(&["candidate", "load", &file]).unwrap());
    assert!(said.contains("not tried, in force with a promotion only: shield.mode"), "{said}");
    let flood = lab.flood(Pattern::ForgedSyn, 20_000, 443).unwrap();
    lab.wait_for("the flood", |_| Ok(flood.sent() > 40_000)).unwrap();
    lab.send(&null_segment(), 50).unwrap();
    flood.stop().unwrap();
    let status = lab.json(&["candidate", "status"]).unwrap();
    assert_eq!(status["passes"], serde_json::json!([]), "{status:#}");
    assert_eq!(status["refuses"], serde_json::json!([]), "{status:#}");
    let seen: u64 =
        status["counters"].as_array().unwrap().iter().map(|row| row["packets"].as_u64().unwrap()).sum();
    assert!(seen > 40_000, "{status:#}");
}

#[test]
fn no_packet_passes_unfiltered_while_candidates_come_and_go() {
    let mut lab = Lab::new("tried").unwrap();
    lab.configure("mode = \"enforce\"", "").unwrap();
    lab.count_in_stack("attack", "ip saddr 198.51.100.1").unwrap();
    lab.start().unwrap();
    lab.must(&["ban", "add", "198.51.100.1", "--for", "1h", "--reason", "test"]).unwrap();
    let attack = lab.flood(Pattern::FixedSyn { sources: 1 }, 5_000, 443).unwrap();
    let file = write_candidate(&lab, "mode = \"enforce\"\nsyn = { enabled = false }");
    for _ in 0..5 {
        lab.must(&["candidate", "load", &file]).unwrap();
        lab.must(&["candidate", "load", &file]).unwrap();
        lab.must(&["candidate", "drop"]).unwrap();
    }

    // The candidate outlives its daemon in the kernel, and still decides nothing; the next daemon ends it.
    lab.must(&["candidate", "load", &file]).unwrap();
    lab.end(Signal::SIGKILL).unwrap();
    let before = attack.sent();
    lab.wait_for("more attack", |_| Ok(attack.sent() > before + 5_000)).unwrap();
    lab.start().unwrap();
    assert_eq!(lab.tunica(&["candidate", "status"]).unwrap().code, Some(4));
    assert_eq!(lab.metric("tunica_candidate_loaded").unwrap(), Some(0.0));

    // So does a reload, also one that makes other tables.
    for tables in [1_024, 2_048] {
        lab.must(&["candidate", "load", &file]).unwrap();
        lab.configure(&format!("mode = \"enforce\"\ntables = {{ bans = {tables} }}"), "").unwrap();
        lab.must(&["reload"]).unwrap();
        assert_eq!(lab.tunica(&["candidate", "status"]).unwrap().code, Some(4));
    }
    let sent = attack.stop().unwrap();
    assert!(sent > 10_000, "only {sent} packets");
    assert_eq!(lab.in_stack("attack").unwrap(), 0, "of {sent} packets");
}

#[test]
fn a_promotion_replaces_the_file_whole_or_not_at_all() {
    let mut lab = Lab::new("promote").unwrap();
    lab.configure("mode = \"enforce\"", "").unwrap();
    lab.start().unwrap();
    let config = lab.path("tunica.toml");
    let in_force = fs::read_to_string(&config).unwrap();
    let kept = lab.path("tunica.toml.before");
    assert_eq!(lab.tunica(&["candidate", "promote"]).unwrap().code, Some(4));

    // Files that cannot be tried name the key and load nothing.
    for (shield, code, part) in [
        ("mode = \"enforce\"\nlockdwon = true", 78, "lockdown"),
        ("mode = \"enforce\"\nsyn = { burst = 0 }", 78, "shield.syn.burst"),
    ] {
        let refused = lab.tunica(&["candidate", "load", &write_candidate(&lab, shield)]).unwrap();
        assert_eq!(refused.code, Some(code), "{refused:?}");
        assert!(refused.err.contains(part) && refused.err.contains("no candidate was loaded"), "{refused:?}");
    }
    let absent = lab.tunica(&["candidate", "load", "/nowhere/candidate.toml"]).unwrap();
    assert_eq!(absent.code, Some(4), "{absent:?}");
    assert_eq!(lab.tunica(&["candidate", "status"]).unwrap().code, Some(4));

    // A reload that is refused: there is no such interface. The file is as before, and the candidate is tried on.
    let file = write_candidate(&lab, "mode = \"enforce\"\nsyn = { burst = 30 }");
    let text = fs::read_to_string(&file).unwrap().replace("\"h0\"", "\"h0\", \"h1\"");
    fs::write(&file, text).unwrap();
    lab.must(&["candidate", "load", &file]).unwrap();
    let refused = lab.tunica(&["candidate", "promote"]).unwrap();
    assert_eq!(refused.code, Some(78), "{refused:?}");
    assert!(refused.err.contains("h1") && refused.err.contains("is as before"), "{refused:?}");
    assert_eq!(fs::read_to_string(&config).unwrap(), in_force);
    assert!(!kept.exists());
    lab.must(&["candidate", "status"]).unwrap();

    // A file that somebody edited meanwhile is not overwritten.
    let file = write_candidate(&lab, "mode = \"enforce\"\nsyn = { burst = 30 }");
    lab.must(&["candidate", "load", &file]).unwrap();
    fs::write(&config, format!("# edited\n{in_force}")).unwrap();
    let refused = lab.tunica(&["candidate", "promote"]).unwrap();
    assert_eq!(refused.code, Some(3), "{refused:?}");
    assert!(fs::read_to_string(&config).unwrap().starts_with("# edited"));
    fs::write(&config, &in_force).unwrap();

    let promoted = lab.tunica(&["candidate", "promote"]).unwrap();
    assert_eq!(promoted.code, Some(0), "{promoted:?}");
    assert_eq!(fs::read_to_string(&config).unwrap(), fs::read_to_string(&file).unwrap());
    assert_eq!(fs::read_to_string(&kept).unwrap(), in_force);
    assert!(lab.must(&["diff"]).unwrap().contains("no key differs"));
    assert_eq!(lab.tunica(&["candidate", "status"]).unwrap().code, Some(4));

    // On trial: what nobody confirms is undone, as after any reload.
    let file = write_candidate(&lab, "mode = \"enforce\"");
    let text = fs::read_to_string(&file).unwrap().replace("burst = 30", "burst = 40");
    fs::write(&file, text).unwrap();
    lab.must(&["candidate", "load", &file]).unwrap();
    let promoted = words(&lab.must(&["candidate", "promote", "--confirm", "600"]).unwrap());
    assert!(promoted.contains("tunica confirm"), "{promoted}");
    lab.must(&["confirm"]).unwrap();
    assert!(fs::read_to_string(&kept).unwrap().contains("burst = 30"));
}
