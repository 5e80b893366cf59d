//! The real `nft` reads the table, in a network namespace of its own, and leaves its neighbours alone.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper that fails is a test that fails"
)]

use std::{
    collections::BTreeMap,
    io::Write,
    process::{Command, Stdio},
    time::Duration,
};

use tunica_common::{
    gcra::Limit,
    verdict::{Class, Verdict},
};
use tunica_core::{
    ban_ladder::Ladder,
    limits::{CookieSettings, Mode, OnStale, Settings},
};
use tunica_nft::{Ban, SynLimit, not_covered, ruleset};

fn settings(mode: Mode) -> Settings {
    Settings {
        mode,
        sanity_mask: Verdict::mask_of(Class::Sanity),
        uninspected_drop_mask: 0,
        on_stale: OnStale::KeepLimits,
        stale_after: Duration::from_secs(30),
        event_interval: Duration::from_millis(10),
        syn: Limit::new(10, 20),
        escalate_after: 8,
        port_syn: None,
        cookies: CookieSettings {
            enabled: false,
            manage_syncookies: false,
            trickle: [0; 2],
            hold: Duration::from_secs(60),
        },
        no_socket: None,
        icmp: None,
        handshakes: None,
        ban_threshold: 5,
        violation_window: Duration::from_secs(60),
        lockdown: false,
        ports: BTreeMap::new(),
        net_capacity: 64,
        ladder: Ladder::new(vec![Duration::from_secs(300)], Duration::from_secs(86_400)).unwrap(),
        config_allow: Vec::new(),
        ban_capacity: 4_096,
        allow_capacity: 64,
        tor_keep: Duration::from_secs(86_400),
        log_lines_per_minute: Some(5),
    }
}

fn render(mode: Mode) -> String {
    let allow: Vec<_> =
        ["198.51.100.0/24", "203.0.113.9", "2001:db8:1::/48"].map(|text| text.parse().unwrap()).into();
    let bans = [
        Ban { source: "192.0.2.7".parse().unwrap(), seconds: Some(300) },
        Ban { source: "192.0.2.8".parse().unwrap(), seconds: None },
        Ban { source: "2001:db8:2:3::/64".parse().unwrap(), seconds: Some(300) },
    ];
    let syn = Some(SynLimit { per_second: 10, burst: 20 });
    let interfaces = ["eth0".to_owned(), "eth1".to_owned()];
    serde_json::to_string(&ruleset(&interfaces, &settings(mode), syn, &allow, &bans)).unwrap()
}

/// Runs a shell script in a fresh network namespace with `input` on its standard input; returns what it prints.
fn in_namespace(script: &str, input: &str) -> String {
    let mut child = Command::new("unshare")
        .args(["--net", "sh", "-ec", script])
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("this test needs `unshare` of util-linux");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "this test needs root and `nft` (package nftables); it said: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn enforcing_drops_and_counts_every_covered_verdict() {
    let listed = in_namespace("nft -j -f -; nft list table inet tunica", &render(Mode::Enforce));
    let missing: Vec<_> = not_covered().collect();
    for verdict in Verdict::ALL {
        let is_rule = listed.contains(&format!("counter name \"{}\" drop", verdict.label()));
        let should = verdict.class() != Class::Pass && !missing.contains(verdict);
        assert_eq!(is_rule, should, "{verdict:?}\n{listed}");
    }
    for part in [
        "198.51.100.0/24",
        "203.0.113.9",
        "192.0.2.7 timeout 5m",
        "192.0.2.8",
        "2001:db8:2:3::/64",
        "limit rate over 10/second burst 20 packets",
    ] {
        assert!(listed.contains(part), "no `{part}` in\n{listed}");
    }
}

#[test]
fn observing_counts_and_drops_nothing() {
    let listed = in_namespace("nft -j -f -; nft list table inet tunica", &render(Mode::Observe));
    assert!(listed.contains("counter name \"syn_rate\" accept"), "{listed}");
    assert!(!listed.contains("drop"), "{listed}");
}

#[test]
fn switched_off_leaves_an_empty_table() {
    let listed = in_namespace("nft -j -f -; nft list table inet tunica", &render(Mode::Off));
    assert_eq!(listed.split_whitespace().collect::<String>(), "tableinettunica{}");
}

#[test]
fn applying_twice_replaces_our_table_and_leaves_others_byte_identical() {
    let script = "
        nft add table ip filter
        nft add chain ip filter DOCKER-USER
        nft add rule ip filter DOCKER-USER counter return
        nft add table inet firewalld
        nft 'add chain inet firewalld filter_INPUT { type filter hook input priority 10; }'
        nft -s list table ip filter; nft -s list table inet firewalld; echo =====
        cat > /dev/shm/tunica-nft-test.$$; for again in 1 2; do nft -j -f /dev/shm/tunica-nft-test.$$; done
        rm /dev/shm/tunica-nft-test.$$
        nft -s list table ip filter; nft -s list table inet firewalld; echo =====
        nft list tables; nft list table inet tunica | grep -c 'counter name'";
    let printed = in_namespace(script, &render(Mode::Enforce));
    let parts: Vec<&str> = printed.split("=====\n").collect();
    let [before, after, tables] = parts.as_slice() else { panic!("{printed}") };
    assert_eq!(before, after);
    // Five flag verdicts of which one has two rules, own source, two families of bans and of the SYN limit.
    assert_eq!(tables.lines().last(), Some("11"), "{tables}");
    assert_eq!(tables.lines().filter(|line| line.starts_with("table")).count(), 3, "{tables}");
}
