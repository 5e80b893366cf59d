//! Bans of ranges, and what `explain` says of ranges, networks that share a limit, and ports over their budget.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper that fails is a test that fails"
)]

use nix::sys::signal::Signal;
use serde_json::Value;
use tunica_tests::{
    flood::Pattern,
    frame::{SYN, TCP, tcp, v6},
    lab::{HOST, Lab, segment},
};

/// A SYN from 2001:db8:0:`net`::9.
fn syn_from_net(net: u16) -> Vec<u8> {
    let [high, low] = net.to_be_bytes();
    v6([0x20, 1, 0xd, 0xb8, 0, 0, high, low, 0, 0, 0, 0, 0, 0, 0, 9], TCP).frame(&tcp(SYN, 5))
}

fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    value.pointer(path).and_then(Value::as_str).unwrap_or_else(|| panic!("no text at {path} in {value:#}"))
}

fn undo(explained: &Value) -> Vec<&str> {
    explained["undo"].as_array().unwrap().iter().map(|line| line.as_str().unwrap()).collect()
}

#[test]
fn ranges_are_banned_explained_kept_and_lifted() {
    let mut lab = Lab::new("ranges").unwrap();
    lab.configure("mode = \"enforce\"\nallow = [\"198.51.100.7\"]", "").unwrap();
    lab.count_in_stack("inside", "ip saddr 203.0.113.0/24").unwrap();
    lab.count_in_stack("beside", "ip saddr 203.0.114.0/24").unwrap();
    lab.start().unwrap();
    let [inside, beside] = [segment([203, 0, 113, 200], SYN), segment([203, 0, 114, 1], SYN)];
    let add = ["ban", "add", "203.0.113.0/24", "--for", "1h", "--reason", "a rented network"];

    let dry = lab.json(&[&add[..], &["--dry-run"]].concat()).unwrap();
    assert_eq!((&dry["dry_run"], &dry["undo"]), (&true.into(), &"tunica ban remove 203.0.113.0/24".into()));
    lab.send(&inside, 3).unwrap();
    assert_eq!(lab.in_stack("inside").unwrap(), 3, "a dry run must not ban");
    lab.must(&add).unwrap();
    lab.must(&["ban", "add", "2001:db8:1:200::/56", "--for", "forever"]).unwrap();
    for frame in [&inside, &beside] {
        lab.send(frame, 3).unwrap();
    }
    assert_eq!((lab.in_stack("inside").unwrap(), lab.in_stack("beside").unwrap()), (3, 3));
    let held = [
        "tunica_bans_active{origin=\"operator\"}",
        "tunica_bans_set_total{origin=\"operator\"}",
        "tunica_table_used{table=\"cidrs\"}",
    ];
    assert_eq!(held.map(|series| lab.metric(series).unwrap()), [Some(2.0); 3]);
    assert_eq!(lab.metric("tunica_table_capacity{table=\"cidrs\"}").unwrap(), Some(16_384.0));

    // What explains a drop names the range, its ban and the way out.
    let explained = lab.json(&["explain", "203.0.113.200"]).unwrap();
    assert_eq!(text(&explained, "/outcomes/0/verdict"), "banned_net");
    assert_eq!(explained["ban"], Value::Null);
    let ban = &explained["range_bans"][0];
    assert_eq!((text(ban, "/source"), text(ban, "/reason")), ("203.0.113.0/24", "a rented network"));
    assert_eq!(ban["expires"].as_u64().unwrap() - ban["since"].as_u64().unwrap(), 3_600);
    assert_eq!(
        undo(&explained),
        [
            "lift the ban of the range: `tunica ban remove 203.0.113.0/24`",
            "or exempt the source: `tunica allow add 203.0.113.200/32`"
        ]
    );
    let shown = lab.must(&["explain", "203.0.113.200"]).unwrap();
    assert!(shown.contains(&format!("range    203.0.113.0/24 by ban {} since", ban["id"])), "{shown}");
    let v6 = lab.json(&["explain", "2001:db8:1:2ff::5"]).unwrap();
    assert_eq!(text(&v6, "/outcomes/0/verdict"), "banned_net");
    assert_eq!(text(&v6, "/range_bans/0/source"), "2001:db8:1:200::/56");
    assert_eq!(lab.json(&["explain", "2001:db8:1:300::5"]).unwrap()["range_bans"], Value::Array(vec![]));
    // A host of the range on the allow list passes.
    lab.must(&["allow", "add", "203.0.113.200", "--for", "1h"]).unwrap();
    lab.send(&inside, 3).unwrap();
    assert_eq!(lab.in_stack("inside").unwrap(), 6);
    lab.must(&["allow", "remove", "203.0.113.200"]).unwrap();

    // Refusals.
    for (arguments, code, part) in [
        (&["ban", "add", "203.0.112.0/24"][..], 3, "add `--for 1h`"),
        (&["ban", "add", "198.51.100.0/24", "--for", "1h"], 3, "`shield.allow`"),
        (&["ban", "add", "10.0.0.0/8", "--for", "1h"], 3, "own addresses"),
        (&["ban", "add", "0.0.0.0/0", "--for", "1h"], 3, "a good part of the internet"),
        (&["ban", "add", "::/19", "--for", "1h"], 3, "all of IPv4"),
        (&["ban", "remove", "203.0.113.0/25"], 4, "203.0.113.0/25 is not banned"),
    ] {
        let ran = lab.tunica(arguments).unwrap();
        assert_eq!(ran.code, Some(code), "{arguments:?}: {ran:?}");
        assert!(ran.err.contains(part), "{arguments:?}: {ran:?}");
    }
    let ran = lab.tunica_over_ssh("192.0.2.9", &["ban", "add", "192.0.2.0/24", "--for", "1h"]).unwrap();
    assert!(ran.code == Some(3) && ran.err.contains("where you are logged in from"), "{ran:?}");

    // A daemon that died keeps them.
    lab.end(Signal::SIGKILL).unwrap();
    lab.start().unwrap();
    let listed = |lab: &Lab| -> Vec<String> {
        let list = lab.json(&["ban", "list"]).unwrap();
        list["bans"].as_array().unwrap().iter().map(|ban| text(ban, "/source").to_owned()).collect()
    };
    assert_eq!(listed(&lab), ["203.0.113.0/24", "2001:db8:1:200::/56"]);
    lab.send(&inside, 3).unwrap();
    assert_eq!(lab.in_stack("inside").unwrap(), 6);

    // A ban ends by itself, another by hand.
    lab.must(&["ban", "add", "203.0.114.0/23", "--for", "2s"]).unwrap();
    lab.wait_for("the end of a ban", |lab| Ok(!listed(lab).contains(&"203.0.114.0/23".to_owned()))).unwrap();
    lab.send(&beside, 3).unwrap();
    assert_eq!(lab.in_stack("beside").unwrap(), 6);
    lab.must(&["ban", "remove", "203.0.113.0/24"]).unwrap();
    lab.send(&inside, 3).unwrap();
    assert_eq!(lab.in_stack("inside").unwrap(), 9);

    // What a new configuration protects is named by `diff` and lifted by `reload`.
    lab.configure("mode = \"enforce\"\nallow = [\"2001:db8:1:2aa::1\"]", "").unwrap();
    let differences = lab.json(&["diff"]).unwrap();
    assert_eq!(differences["lifted"], Value::Array(vec!["2001:db8:1:200::/56".into()]));
    lab.must(&["reload"]).unwrap();
    assert!(listed(&lab).is_empty());
    assert!(lab.log().contains("ban_withdrawn"), "{}", lab.log());
}

#[test]
fn a_full_table_of_ranges_refuses_and_a_larger_one_takes_more() {
    let mut lab = Lab::new("cidrs").unwrap();
    lab.configure("mode = \"enforce\"\ntables = { cidrs = 64 }", "").unwrap();
    lab.start().unwrap();
    for third in 0..64 {
        lab.must(&["ban", "add", &format!("203.0.{third}.0/24"), "--for", "1h"]).unwrap();
    }
    let more = ["ban", "add", "203.0.64.0/24", "--for", "1h"];
    let ran = lab.tunica(&more).unwrap();
    assert!(ran.code == Some(3) && ran.err.contains("raise `shield.tables.cidrs`"), "{ran:?}");
    assert_eq!(lab.metric("tunica_table_used{table=\"cidrs\"}").unwrap(), Some(64.0));
    assert_eq!(lab.metric("tunica_bans_refused_total{reason=\"full\"}").unwrap(), Some(1.0));
    lab.configure("mode = \"enforce\"\ntables = { cidrs = 65 }", "").unwrap();
    lab.must(&["reload"]).unwrap();
    lab.must(&more).unwrap();
    for host in ["203.0.0.9", "203.0.64.9"] {
        let explained = lab.json(&["explain", host]).unwrap();
        assert_eq!(text(&explained, "/outcomes/0/verdict"), "banned_net", "{explained:#}");
    }
}

#[test]
fn an_innocent_net_inside_a_network_that_shares_a_limit_is_named() {
    let mut lab = Lab::new("shared").unwrap();
    lab.configure("mode = \"enforce\"\nsyn = { per_source_per_second = 1, burst = 20 }", "").unwrap();
    lab.start().unwrap();
    let innocent = "2001:db8:0:1ff::7";
    assert_eq!(lab.json(&["explain", innocent]).unwrap()["network"], Value::Null);

    // Eight neighbours and two more, since two networks may have one cell. Then all ten exceed the limit that they share.
    for net in (0x100..0x10a).chain(0x100..0x10a) {
        lab.send(&syn_from_net(net), 40).unwrap();
    }
    let explained = lab.json(&["explain", innocent, "--packets", "40"]).unwrap();
    let network = &explained["network"];
    assert_eq!(
        (text(network, "/prefix"), text(network, "/part")),
        ("2001:db8:0:100::/56", "2001:db8:0:1ff::/64")
    );
    assert_eq!(
        (&network["exceeded"], &network["part_exceeded"]),
        (&8.into(), &false.into()),
        "{explained:#}"
    );
    let sentence = text(network, "/sentence");
    assert!(sentence.starts_with("2001:db8:0:100::/56 shares one SYN limit until "), "{sentence}");
    assert!(
        sentence.ends_with(
            "8 of its /64 exceeded theirs; 2001:db8:0:1ff::/64 is none of them, and is limited with them"
        ),
        "{sentence}"
    );
    let last = explained["outcomes"].as_array().unwrap().last().unwrap();
    assert_eq!(text(last, "/verdict"), "syn_rate_net");
    let exempt = "exempt the source from limits: `tunica allow add 2001:db8:0:1ff::/64`";
    assert!(undo(&explained).contains(&exempt), "{explained:#}");
    let debt = explained["bucket"]["debt_milliseconds"][0].as_u64().unwrap();
    assert!(debt > 0, "the network's debt counts, and not the source's own: {explained:#}");
    let shown = lab.must(&["explain", innocent]).unwrap();
    assert!(shown.contains("network  2001:db8:0:100::/56 shares one SYN limit"), "{shown}");

    // Of those that did it, and of those outside, other things are said.
    let guilty = lab.json(&["explain", "2001:db8:0:100::7"]).unwrap();
    assert!(text(&guilty, "/network/sentence").ends_with("2001:db8:0:100::/64 is one of them"), "{guilty:#}");
    assert_eq!(lab.json(&["explain", "2001:db8:0:200::7"]).unwrap()["network"], Value::Null);

    // The way out that was named is one.
    lab.must(&["allow", "add", "2001:db8:0:1ff::/64"]).unwrap();
    let excused = lab.json(&["explain", innocent, "--packets", "40"]).unwrap();
    let last = excused["outcomes"].as_array().unwrap().last().unwrap();
    assert_eq!(text(last, "/verdict"), "allowed");
    assert!(
        text(&excused, "/network/sentence").ends_with("the allow list excuses 2001:db8:0:1ff::/64"),
        "{excused:#}"
    );
    assert!(!undo(&excused).contains(&exempt), "{excused:#}");

    // Ten such networks of one /48, each beyond the limit that it shares.
    for high in 0..10u16 {
        for net in (0..10).chain([0; 3]) {
            lab.send(&syn_from_net(0x2000 + (high << 8) + net), 40).unwrap();
        }
    }
    let explained = lab.json(&["explain", "2001:db8:0:ff00::7"]).unwrap();
    let network = &explained["network"];
    assert_eq!((text(network, "/prefix"), text(network, "/part")), ("2001:db8::/48", "2001:db8:0:ff00::/56"));
    assert!(network["exceeded"].as_u64().unwrap() >= 8, "{explained:#}");
    assert!(text(network, "/sentence").contains("of its /56 exceeded theirs"), "{explained:#}");
}

#[test]
fn a_port_over_its_budget_is_explained() {
    let mut lab = Lab::new("budget").unwrap();
    lab.host.write_sysctl("net/ipv4/tcp_syncookies", "2").unwrap();
    lab.configure("mode = \"enforce\"", "[shield.port_syn]\nper_second = 10\nburst = 10").unwrap();
    lab.start().unwrap();
    let _listener = lab.host.run(|| Ok(std::net::TcpListener::bind("[::]:443")?)).unwrap();
    assert_eq!(lab.json(&["explain", "192.0.2.7"]).unwrap()["over_budget"], Value::Null);
    let attack = lab.flood(Pattern::ForgedSyn, 2_000, 443).unwrap();
    lab.wait_for("the attack", |_| Ok(attack.sent() > 500)).unwrap();
    attack.stop().unwrap();
    let explained = lab.json(&["explain", "192.0.2.7"]).unwrap();
    assert_eq!(text(&explained, "/outcomes/0/verdict"), "syn_cookie", "{explained:#}");
    let port = &explained["over_budget"];
    assert_eq!((&port["port"], &port["answers"]), (&443.into(), &true.into()));
    assert!(text(port, "/sentence").contains("it answers SYNs with cookies"), "{port:#}");
    assert_eq!(lab.json(&["explain", "192.0.2.7", "--port", "80"]).unwrap()["over_budget"], Value::Null);

    // A listener on one address is found as well; where there is none, that is said.
    let listener = lab.host.run(|| Ok(std::net::TcpListener::bind((HOST, 8_443))?)).unwrap();
    let attack = lab.flood(Pattern::ForgedSyn, 2_000, 8_443).unwrap();
    lab.wait_for("the attack", |_| Ok(attack.sent() > 500)).unwrap();
    attack.stop().unwrap();
    let asked = ["explain", "192.0.2.7", "--port", "8443"];
    let explained = lab.json(&asked).unwrap();
    assert_eq!(text(&explained, "/outcomes/0/verdict"), "syn_cookie", "{explained:#}");
    assert!(text(&explained, "/probe").contains("to port 8443 of 10.77.0.1"), "{explained:#}");
    drop(listener);
    let explained = lab.json(&asked).unwrap();
    assert_eq!(text(&explained, "/outcomes/0/verdict"), "no_listener", "{explained:#}");
    assert_eq!(undo(&explained), ["start the service that should listen there"]);

    // Where no cookie can be had, that is said with the reason.
    lab.host.write_sysctl("net/ipv4/tcp_syncookies", "1").unwrap();
    lab.wait_for("cookies to end", |lab| {
        Ok(lab.json(&["explain", "192.0.2.7"])?["over_budget"]["answers"] == false)
    })
    .unwrap();
    let shown = lab.must(&["explain", "192.0.2.7"]).unwrap();
    let shown = shown.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(shown.contains("budget port 443 has been over its SYN budget since"), "{shown}");
    assert!(shown.contains("it answers with no cookies: net.ipv4.tcp_syncookies is 1"), "{shown}");
}
