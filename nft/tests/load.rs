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
    num::NonZeroU16,
    process::{Command, Stdio},
    time::Duration,
};

use tunica_common::{
    gcra::{self, Limit, Pace},
    keys::{ALLOW_BY_CONFIG, AllowEntry, BanEntry},
    verdict::{Action, Class, Verdict},
};
use tunica_core::{
    ban_ladder::Ladder,
    desired::Tables,
    id::{PacketSource, Prefix},
    limits::{
        CookieSettings, IcmpLimits, Mode, NoSocketLimits, OnStale, Port, PortSettings, SECOND_NS, Settings,
        Transport,
    },
    load_level::LoadSettings,
    newcomers::NewcomerSettings,
    time::Monotime,
};
use tunica_nft::{Difference, Elements, Listing, Plan, SOCKS_PACE, edit, elements, removal};

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
        reporters: Default::default(),
        report_window: Duration::from_secs(3_600),
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
        load: LoadSettings::default(),
        newcomers: NewcomerSettings::default(),
    }
}

/// The shipped defaults.
fn defaults(mode: Mode) -> Settings {
    let pace = |count, burst| gcra::pace(count, SECOND_NS, burst).unwrap();
    Settings {
        port_syn: Some(pace(100, 300)),
        no_socket: Some(NoSocketLimits { host_per_second: 1_000, per_source: Limit::new(100, 100).unwrap() }),
        icmp: Some(IcmpLimits {
            per_source: Limit::new(1, 4).unwrap(),
            host: pace(100, 100),
            ceiling: pace(1_000, 1_000),
        }),
        ..settings(mode)
    }
}

/// Every kind of rule.
fn strict(mode: Mode) -> Settings {
    let port = |transport, number: u16| Port { transport, number: number.try_into().unwrap() };
    let limited = |is_open, per_ten_seconds| PortSettings {
        is_open,
        pace: gcra::pace(per_ten_seconds, 10 * SECOND_NS, per_ten_seconds),
    };
    Settings {
        lockdown: true,
        uninspected_drop_mask: Verdict::mask_of(Class::Uninspected),
        ports: BTreeMap::from([
            (port(Transport::Tcp, 22), limited(true, 3)),
            (port(Transport::Udp, 53), limited(true, 200)),
            (port(Transport::Udp, 500), PortSettings { is_open: true, pace: None }),
        ]),
        ..defaults(mode)
    }
}

fn tables() -> Tables {
    let mut tables = Tables::default();
    let ban = |expires_ns| BanEntry { expires_ns, ban_id: 1, flags: 0 };
    let soon = 300 * SECOND_NS - 1;
    for (source, expires_ns) in [("192.0.2.7", soon), ("192.0.2.8", u64::MAX), ("2001:db8:2:3::/64", soon)] {
        tables.bans.insert(source.parse::<PacketSource>().unwrap().key(), ban(expires_ns));
    }
    for (range, expires_ns) in [
        ("198.18.0.0/15", soon),
        ("198.18.7.0/24", u64::MAX),
        ("198.18.9.0/24", soon),
        ("2001:db8:f::/48", u64::MAX),
        ("203.0.113.0/25", 1),
    ] {
        tables.nets.insert(range.parse::<Prefix>().unwrap().kernel_key(), ban(expires_ns));
    }
    for range in ["198.51.100.0/24", "198.51.100.7/32", "203.0.113.9/32", "2001:db8:1::/48"] {
        let entry = AllowEntry { origin: ALLOW_BY_CONFIG, allow_id: 0 };
        tables.allow.insert(range.parse::<Prefix>().unwrap().kernel_key(), entry);
    }
    tables
}

/// The time at which every table of these tests is made.
const NOW: Monotime = Monotime(1_000);

/// Tor's SOCKS port.
const LOOPBACK: [(NonZeroU16, Pace); 1] = [(NonZeroU16::new(9_050).unwrap(), SOCKS_PACE)];

fn interfaces() -> Vec<String> {
    ["eth0", "eth1"].map(str::to_owned).into()
}

fn plan<'a>(interfaces: &'a [String], settings: &'a Settings) -> Plan<'a> {
    Plan {
        interfaces,
        settings,
        ephemeral_low: 32_768,
        translates: false,
        drop_invalid: true,
        loopback: &LOOPBACK,
    }
}

fn render(settings: &Settings) -> String {
    let interfaces = interfaces();
    let objects = plan(&interfaces, settings).transaction(&elements(&tables(), NOW), NOW);
    serde_json::to_string(&objects).unwrap()
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

const LOAD: &str = "nft -j -f -; nft list table inet tunica";

/// Verdicts with which a packet can end in the table.
const COVERED: &[Verdict] = &[
    Verdict::Pass,
    Verdict::NeighbourDiscovery,
    Verdict::PathMtu,
    Verdict::Dhcp,
    Verdict::Allowed,
    Verdict::Syn,
    Verdict::SynOverBudget,
];
const REFUSED: &[Verdict] = &[
    Verdict::ExtensionHeaders,
    Verdict::LaterFragment,
    Verdict::Tunnel,
    Verdict::BadLength,
    Verdict::BadFragment,
    Verdict::Xmas,
    Verdict::NullFlags,
    Verdict::SynFin,
    Verdict::SynRst,
    Verdict::FinNoAck,
    Verdict::OwnSource,
    Verdict::Banned,
    Verdict::SynRate,
    Verdict::BannedNet,
    Verdict::PortClosed,
    Verdict::PortRate,
    Verdict::UdpRate,
    Verdict::NoSocket,
    Verdict::NoListener,
    Verdict::IcmpRate,
    Verdict::IcmpHostRate,
    Verdict::IcmpCeiling,
];

#[test]
fn enforcing_drops_and_counts_every_covered_verdict() {
    let listed = in_namespace(LOAD, &render(&strict(Mode::Enforce)));
    for verdict in Verdict::ALL {
        let ends = |how: &str| listed.contains(&format!("counter name \"{}\" {how}", verdict.label()));
        let expected = (COVERED.contains(verdict), REFUSED.contains(verdict));
        assert_eq!((ends("accept"), ends("goto refused")), expected, "{verdict:?}\n{listed}");
    }
    for part in [
        "198.51.100.0/24, 203.0.113.9 }",
        "192.0.2.7 timeout 5m",
        "192.0.2.8",
        "2001:db8:2:3:: timeout 5m",
        "elements = { 198.18.0.0/15 timeout 5m",
        "2001:db8:f::/48 }",
        "ip saddr timeout 4s limit rate over 10/second burst 20 packets",
        "tcp dport timeout 5s limit rate over 100/second burst 300 packets",
        "iifname \"lo\" tcp flags syn / syn,ack tcp dport 9050 limit rate over 2/second burst 20 packets",
        "tcp dport 22 limit rate over 18/minute burst 3 packets",
        "udp dport 53 limit rate over 20/second burst 200 packets",
        "tcp dport != 22",
        "udp dport { 53, 500 }",
        "udp dport 32768-65535 socket wildcard { 0, 1 }",
        "socket transparent { 0, 1 } counter name \"syn_over_budget\" accept",
        "limit rate 1000/second burst 1000 packets counter name \"pass\" accept",
        "ct state invalid counter name \"ct_invalid\" drop",
        "limit rate 5/minute log prefix \"SHIELD_DOS_DROP: \" level debug",
    ] {
        assert!(listed.contains(part), "no `{part}` in\n{listed}");
    }
    for absent in ["198.18.7.0", "198.51.100.7", "203.0.113.0"] {
        assert!(!listed.contains(absent), "`{absent}` in\n{listed}");
    }
}

#[test]
fn observing_counts_and_drops_nothing() {
    let listed = in_namespace(LOAD, &render(&strict(Mode::Observe)));
    assert!(listed.contains("counter name \"syn_rate\" goto refused"), "{listed}");
    assert!(!listed.contains(" drop"), "{listed}");
}

#[test]
fn what_is_switched_off_has_no_rule() {
    let bare = Settings { sanity_mask: 0, syn: None, log_lines_per_minute: None, ..settings(Mode::Enforce) };
    let interfaces = interfaces();
    let plan = Plan { drop_invalid: false, loopback: &[], ..plan(&interfaces, &bare) };
    let objects = plan.transaction(&Elements::new(), NOW);
    let listed = in_namespace(LOAD, &serde_json::to_string(&objects).unwrap());
    for absent in ["limit rate", "meter", "ct state", "log prefix", "9050", "elements", "xmas", "fib"] {
        assert!(!listed.contains(absent), "`{absent}` in\n{listed}");
    }
}

#[test]
fn switched_off_leaves_an_empty_table() {
    let listed = in_namespace(LOAD, &render(&settings(Mode::Off)));
    assert_eq!(listed.split_whitespace().collect::<String>(), "tableinettunica{}");
}

/// Tables as docker, ufw and firewalld make them: their families, chains, priorities, sets and maps.
const NEIGHBOURS: &str = r#"
table ip nat {
    chain DOCKER { iifname "docker0" counter return; iifname != "docker0" tcp dport 8080 counter dnat to 172.17.0.2:80; }
    chain PREROUTING { type nat hook prerouting priority dstnat; policy accept; fib daddr type local counter jump DOCKER; }
    chain POSTROUTING { type nat hook postrouting priority srcnat; policy accept; oifname != "docker0" ip saddr 172.17.0.0/16 counter masquerade; }
}
table ip filter {
    chain DOCKER-USER { counter return; }
    chain ufw-before-input { ct state related,established counter accept; iifname "lo" counter accept; }
    chain ufw-user-input { tcp dport 22 counter accept; tcp dport 443 counter accept; }
    chain ufw-user-limit { limit rate 3/minute counter log prefix "[UFW LIMIT BLOCK] "; counter reject; }
    chain INPUT { type filter hook input priority filter; policy drop; counter jump ufw-before-input; counter jump ufw-user-input; }
    chain FORWARD { type filter hook forward priority filter; policy drop; counter jump DOCKER-USER; }
}
table ip6 filter {
    chain ufw6-user-input { tcp dport 22 counter accept; }
    chain INPUT { type filter hook input priority filter; policy drop; counter jump ufw6-user-input; }
}
table inet firewalld {
    set trusted { type ipv4_addr; flags interval; elements = { 10.0.0.0/8, 192.168.7.1 }; }
    map zones { type ifname : verdict; elements = { "eth0" : goto filter_IN_public }; }
    chain raw_PREROUTING { type filter hook prerouting priority raw + 10; policy accept; icmpv6 type nd-neighbor-solicit accept; }
    chain filter_IN_public { tcp dport 22 ct state new,untracked accept; }
    chain filter_INPUT { type filter hook input priority filter + 10; policy accept; ct state established,related accept; iifname vmap @zones; ip saddr @trusted accept; reject with icmpx admin-prohibited; }
}
"#;

#[test]
fn neighbours_stay_byte_identical_through_apply_update_and_removal() {
    let interfaces = interfaces();
    let settings = strict(Mode::Enforce);
    let (before, after) = (elements(&tables(), NOW), elements(&Tables::default(), NOW));
    let json = |objects: &_| serde_json::to_string(objects).unwrap();
    let steps = [
        json(&plan(&interfaces, &settings).transaction(&before, NOW)),
        json(&plan(&interfaces, &settings).transaction(&before, NOW)),
        json(&edit(&before, &after, NOW).unwrap()),
        json(&edit(&after, &before, NOW).unwrap()),
        json(&plan(&interfaces, &defaults(Mode::Observe)).transaction(&after, NOW)),
        json(&removal()),
        json(&removal()),
    ];
    let folder = std::env::temp_dir().join(format!("tunica-nft-test-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("neighbours"), NEIGHBOURS).unwrap();
    // Without our own table, whatever stands there must stay: counters, handles and all.
    let mut script = format!(
        "cd {}; others() {{ nft -a list ruleset | sed '/^table inet tunica /,/^}}/d'; }}; nft -f neighbours; others; ",
        folder.display()
    );
    for (step, text) in steps.iter().enumerate() {
        std::fs::write(folder.join(step.to_string()), text).unwrap();
        script += &format!("echo =====; nft -j -f {step}; others; ");
    }
    script += "echo =====; nft list tables";
    let printed = in_namespace(&script, "");
    std::fs::remove_dir_all(&folder).unwrap();
    let mut parts: Vec<&str> = printed.split("=====\n").collect();
    let tables = parts.pop().unwrap();
    assert_eq!(parts.len(), steps.len() + 1);
    assert!(parts[0].contains("DOCKER-USER") && parts[0].contains("filter_IN_public"), "{}", parts[0]);
    for (step, part) in parts.iter().enumerate() {
        assert_eq!(*part, parts[0], "after step {step}");
    }
    assert_eq!(tables, "table ip nat\ntable ip filter\ntable ip6 filter\ntable inet firewalld\n");
}

#[test]
fn a_table_read_again_says_what_was_edited() {
    let wanted = elements(&tables(), NOW);
    let settings = strict(Mode::Enforce);
    let read = |script: &str| {
        let script = format!("nft -j -f -; {script}; nft -j list table inet tunica");
        Listing::read(&in_namespace(&script, &render(&settings))).unwrap()
    };
    let applied = read(":");
    for (edit, expected) in [
        (":", &[][..]),
        // Handles and counts are no edits.
        ("nft reset counters table inet tunica >/dev/null; ping -c1 -W1 127.0.0.1 >/dev/null || :", &[]),
        ("nft delete element inet tunica bans4 { 192.0.2.8 }", &["1 element of set bans4 is gone"]),
        (
            "nft add element inet tunica allow4 { 10.0.0.0/8, 192.0.2.1 }",
            &["2 elements of set allow4 are not ours"],
        ),
        ("nft flush set inet tunica nets6", &["1 element of set nets6 is gone"]),
        ("nft insert rule inet tunica judge accept", &["rule list of chain judge was changed"]),
        ("nft add counter inet tunica mine", &["counter mine is not ours"]),
        ("nft flush chain inet tunica refused", &["rule list of chain refused is gone"]),
        ("nft add chain inet tunica extra", &["chain extra is not ours"]),
    ] {
        let found = read(edit);
        let differences: Vec<String> =
            found.differences(&applied, &wanted, NOW).iter().map(ToString::to_string).collect();
        assert_eq!(differences, expected, "{edit}");
    }
    let flushed = Listing::read("{\"nftables\": [{\"metainfo\": {}}]}").unwrap();
    assert!(!flushed.differences(&applied, &wanted, NOW).iter().all(Difference::is_of_elements));
    assert!(Listing::read("Error: No such file or directory").is_err());
}

#[test]
fn edits_repair_what_was_edited() {
    let wanted = elements(&tables(), NOW);
    let interfaces = interfaces();
    let settings = strict(Mode::Enforce);
    let objects = plan(&interfaces, &settings).transaction(&wanted, NOW);
    let spoil = "nft -j -f -; nft flush set inet tunica bans4; nft add element inet tunica nets4 { 10.0.0.0/8 }; \
                 nft delete element inet tunica allow6 { 2001:db8:1::/48 }; nft -j list table inet tunica";
    let json = serde_json::to_string(&objects).unwrap();
    let spoiled = Listing::read(&in_namespace(spoil, &json)).unwrap();
    let repair = edit(&spoiled.elements(&wanted), &wanted, NOW).unwrap();
    let file = std::env::temp_dir().join(format!("tunica-nft-repair-{}", std::process::id()));
    std::fs::write(&file, serde_json::to_string(&repair).unwrap()).unwrap();
    let mend = format!(
        "{}; nft -j -f {}; nft -j list table inet tunica",
        spoil.replace("; nft -j list table inet tunica", ""),
        file.display()
    );
    let mended = Listing::read(&in_namespace(&mend, &json)).unwrap();
    std::fs::remove_file(&file).unwrap();
    assert_eq!(mended.differences(&mended, &wanted, NOW), []);
    assert_eq!(edit(&mended.elements(&wanted), &wanted, NOW), None);
}

#[test]
fn counters_say_what_became_of_their_packets() {
    let told = |settings: Settings| {
        let interfaces = ["h0".to_owned()];
        let plan = Plan {
            interfaces: &interfaces,
            settings: &settings,
            ephemeral_low: 32_768,
            translates: false,
            drop_invalid: true,
            loopback: &[],
        };
        let actions = plan.actions();
        [
            Verdict::Syn,
            Verdict::SynOverBudget,
            Verdict::NoListener,
            Verdict::Xmas,
            Verdict::Tunnel,
            Verdict::Banned,
        ]
        .map(|verdict| actions.get(&verdict).copied())
    };
    let [pass, drop, would] = [Action::Pass, Action::Drop, Action::WouldDrop].map(Some);
    assert_eq!(told(defaults(Mode::Enforce)), [pass, pass, drop, drop, pass, drop]);
    assert_eq!(told(strict(Mode::Enforce)), [pass, pass, drop, drop, drop, drop]);
    assert_eq!(told(strict(Mode::Observe)), [pass, pass, would, would, would, would]);
    // Without a budget there is nothing to be over.
    assert_eq!(told(settings(Mode::Enforce)), [pass, None, None, drop, pass, drop]);
    assert_eq!(told(strict(Mode::Off)), [None; 6]);
}
