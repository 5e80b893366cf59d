//! What changes on the host while the real daemon runs: addresses, interfaces, and several of them at once.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper that fails is a test that fails"
)]

use std::{
    fs,
    os::fd::AsFd as _,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use nix::{net::if_::if_nametoindex, sys::signal::Signal};
use tunica_tests::{
    frame::{ACK, SYN, TCP, tcp, v4},
    lab::{CLIENT_INTERFACE, CLIENT_MAC, HOST, HOST_INTERFACE, HOST_MAC, Lab, segment},
    netns::{self, End},
    sys::{packet_socket, send_frames},
};

/// The daemon looks at everything again that often (`AUDIT_EVERY`). What comes much faster, it was told.
const AUDIT: Duration = Duration::from_secs(30);
const OWN_SOURCE: &str = "tunica_shield_packets_total{action=\"drop\",verdict=\"own_source\"}";
const NULL_FLAGS: &str = "tunica_shield_packets_total{action=\"drop\",verdict=\"null_flags\"}";
const ADDRESSES: &str = "tunica_host_changes_total{what=\"addresses\"}";
const INTERFACES: &str = "tunica_host_changes_total{what=\"interfaces\"}";

fn count(lab: &Lab, series: &str) -> f64 {
    lab.metric(series).unwrap().unwrap_or(0.0)
}

/// The row of `status` for an interface.
fn interface(lab: &Lab, name: &str) -> serde_json::Value {
    let status = lab.json(&["status"]).unwrap();
    let rows = status["interfaces"].as_array().unwrap();
    rows.iter().find(|row| row["name"] == name).unwrap_or_else(|| panic!("no {name} in {status:#}")).clone()
}

/// How many segments of ten from this source are refused as coming from the host itself.
fn refused(lab: &Lab, source: [u8; 4]) -> f64 {
    let (refused, others) = (count(lab, OWN_SOURCE), count(lab, NULL_FLAGS));
    lab.send(&segment(source, ACK), 10).unwrap();
    // The wire keeps order: once these are counted, the ten are.
    lab.send(&segment([203, 0, 113, 9], 0), 10).unwrap();
    let deadline = Instant::now() + AUDIT;
    while count(lab, NULL_FLAGS) < others + 10.0 {
        assert!(Instant::now() < deadline, "the packets are not counted");
    }
    count(lab, OWN_SOURCE) - refused
}

#[test]
fn an_address_is_the_host_s_own_as_soon_as_it_has_it() {
    let mut lab = Lab::new("own").unwrap();
    lab.configure("mode = \"enforce\"", "").unwrap();
    lab.host.write_sysctl("net/ipv6/conf/h0/disable_ipv6", "0").unwrap();
    lab.start().unwrap();
    let own = |lab: &Lab| lab.json(&["status"]).unwrap()["never_ban"]["own_addresses"].as_u64().unwrap();
    let leased = [10, 77, 0, 9];
    assert_eq!(refused(&lab, leased), 0.0);

    // More changes than there can be audits in this time.
    let started = Instant::now();
    for _ in 0..2 {
        for (verb, expected) in [("add", 10.0), ("delete", 0.0)] {
            let changes = count(&lab, ADDRESSES);
            lab.host.ip(&["address", verb, "10.77.0.9/24", "dev", HOST_INTERFACE]).unwrap();
            lab.wait_for("the daemon to hear", |lab| Ok(count(lab, ADDRESSES) > changes)).unwrap();
            assert_eq!(refused(&lab, leased), expected, "{verb}");
        }
    }
    assert!(started.elapsed() < 2 * AUDIT, "four changes took {:?}", started.elapsed());

    // IPv6, and an interface that the configuration does not name.
    let before = own(&lab);
    for (address, interface) in [("2001:db8::9/64", HOST_INTERFACE), ("10.99.0.1/32", "lo")] {
        lab.host.ip(&["address", "add", address, "dev", interface]).unwrap();
    }
    lab.wait_for("both addresses", |lab| Ok(own(lab) >= before + 2)).unwrap();
}

/// Messages that did not fit into the daemon's socket for addresses and interfaces (/proc/net/netlink: `sk Eth Pid Groups
/// Rmem Wmem Dump Locks Drops Inode`).
fn lost(lab: &Lab) -> u64 {
    // Groups 1, 5 and 9 as bits.
    const GROUPS: &str = "00000111";
    let table = lab.host.run(|| Ok(fs::read_to_string("/proc/thread-self/net/netlink")?)).unwrap();
    let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let row = rows.into_iter().find(|row| row.get(3) == Some(&GROUPS)).expect(&table);
    row[8].parse().unwrap()
}

#[test]
fn addresses_that_flap_starve_nothing() {
    let mut lab = Lab::new("flap").unwrap();
    lab.configure("mode = \"enforce\"", "").unwrap();
    lab.start().unwrap();
    // Some thousand changes, several times what the socket's buffer holds.
    let mut batch = String::new();
    for _ in 0..4_000 {
        batch.push_str("address add 10.77.0.9/24 dev h0\naddress delete 10.77.0.9/24 dev h0\n");
    }
    batch.push_str("address add 10.77.0.8/24 dev h0\n");
    fs::write(lab.path("flap"), batch).unwrap();
    let (before, started) = (count(&lab, ADDRESSES), Instant::now());
    let mut flapping = lab.host.command(Path::new("ip")).arg("-batch").arg(lab.path("flap")).spawn().unwrap();
    let mut answers = 0;
    while flapping.try_wait().unwrap().is_none() {
        lab.must(&["status"]).unwrap();
        answers += 1;
    }
    assert!(flapping.wait().unwrap().success());
    assert!(answers > 0, "the changes were over before the daemon could be asked");
    assert!(lost(&lab) > 0, "no message was lost, so nothing shows what becomes of those that are");
    let looks = count(&lab, ADDRESSES) - before;
    // Two a second, and one at each end.
    assert!(looks <= started.elapsed().as_secs_f64() * 2.0 + 2.0, "{looks} looks in {:?}", started.elapsed());
    // The last change counts.
    let deadline = Instant::now() + AUDIT / 2;
    while refused(&lab, [10, 77, 0, 8]) < 10.0 {
        assert!(Instant::now() < deadline, "the last address is not guarded");
    }
    assert_eq!(refused(&lab, [10, 77, 0, 9]), 0.0);
    assert!(count(&lab, "tunica_heartbeat_age_seconds") < 30.0);
}

fn join(lab: &Lab, interface: &str, peer: &str, number: u8) {
    netns::join(
        End {
            namespace: &lab.host,
            interface,
            mac: [HOST_MAC[0], 0, 0, number, HOST_MAC[4], HOST_MAC[5]],
            address: &format!("10.78.{number}.1/24"),
        },
        End {
            namespace: &lab.client,
            interface: peer,
            mac: [CLIENT_MAC[0], 0, 0, number, CLIENT_MAC[4], CLIENT_MAC[5]],
            address: &format!("10.78.{number}.2/24"),
        },
    )
    .unwrap();
}

/// Waits until `status` says so of the interface, and returns what it says.
fn becomes(lab: &mut Lab, name: &str, actual: &str) -> serde_json::Value {
    lab.wait_for(&format!("{name} to be {actual}"), |lab| Ok(interface(lab, name)["actual"] == actual))
        .unwrap();
    interface(lab, name)
}

#[test]
fn an_interface_that_comes_and_goes_is_followed() {
    let mut lab = Lab::new("come").unwrap();
    lab.configure("mode = \"enforce\"", "").unwrap();
    lab.start().unwrap();
    let started = Instant::now();
    let first = becomes(&mut lab, HOST_INTERFACE, "native");

    // More changes than there can be audits in this time.
    let mut link = first["link_id"].clone();
    for number in 1..=3 {
        lab.host.ip(&["link", "delete", HOST_INTERFACE]).unwrap();
        let gone = becomes(&mut lab, HOST_INTERFACE, "none");
        lab.wait_for("the reason", |lab| {
            Ok(interface(lab, HOST_INTERFACE)["problem"].to_string().contains("no interface h0"))
        })
        .unwrap();
        assert_eq!(gone["program_id"], serde_json::Value::Null, "{gone:#}");
        assert_eq!(lab.http("/ready").unwrap().0, 503);
        join(&lab, HOST_INTERFACE, CLIENT_INTERFACE, number);
        let back = becomes(&mut lab, HOST_INTERFACE, "native");
        assert_ne!(back["link_id"], link, "a link to an interface that is gone");
        assert_eq!(back["problem"], serde_json::Value::Null, "{back:#}");
        link = back["link_id"].clone();
    }

    // Another name: the configured one is bare, whatever is on the other.
    lab.host.ip(&["link", "set", HOST_INTERFACE, "down"]).unwrap();
    lab.host.ip(&["link", "set", HOST_INTERFACE, "name", "h9"]).unwrap();
    becomes(&mut lab, HOST_INTERFACE, "none");
    lab.host.ip(&["link", "set", "h9", "name", HOST_INTERFACE]).unwrap();
    lab.host.ip(&["link", "set", HOST_INTERFACE, "up"]).unwrap();
    // The link was there all the time; the daemon takes it up again.
    lab.wait_for("the same link", |lab| Ok(interface(lab, HOST_INTERFACE)["link_id"] == link)).unwrap();
    assert_eq!(interface(&lab, HOST_INTERFACE)["actual"], "native");
    assert!(started.elapsed() < 4 * AUDIT, "took {:?}", started.elapsed());

    // Looks are half a second apart: what is taken back before the next one was never seen. So the last change goes first.
    thread::sleep(Duration::from_millis(1_500));

    // Down, up and another MTU change nothing of the attachment, and are heard of.
    for change in [&["down"][..], &["up"], &["mtu", "1280"]] {
        let changes = count(&lab, INTERFACES);
        lab.host.ip(&[&["link", "set", HOST_INTERFACE][..], change].concat()).unwrap();
        lab.wait_for("the daemon to hear", |lab| Ok(count(lab, INTERFACES) > changes)).unwrap();
        assert_eq!(interface(&lab, HOST_INTERFACE)["link_id"], link, "{change:?}");
    }
    lab.host.ip(&["address", "add", "10.77.0.1/24", "dev", HOST_INTERFACE]).unwrap();
    let before = count(&lab, NULL_FLAGS);
    lab.send(&segment([203, 0, 113, 9], 0), 10).unwrap();
    lab.wait_for("the drops", |lab| Ok(count(lab, NULL_FLAGS) >= before + 10.0)).unwrap();
    assert_eq!(count(&lab, "tunica_reconcile_edits_total{table=\"link\"}"), 0.0, "nobody tampered");
}

#[test]
fn of_two_interfaces_one_may_fail_and_both_count_together() {
    let mut lab = Lab::new("two").unwrap();
    lab.configure("mode = \"enforce\"", "").unwrap();
    let path = lab.path("tunica.toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("[\"h0\"]", "[\"h0\", \"h1\"]")).unwrap();
    lab.start().unwrap();
    assert_eq!(interface(&lab, "h0")["actual"], "native");
    let bare = interface(&lab, "h1");
    assert_eq!(bare["actual"], "none");
    assert!(bare["problem"].as_str().unwrap().contains("there is no interface h1"), "{bare:#}");
    let human = lab.tunica(&["status"]).unwrap();
    assert_eq!(human.code, Some(7), "{human:?}");
    let headline = human.out.lines().next().unwrap();
    assert!(headline.contains("h0 (native)") && human.out.contains("h1 has no shield"), "{human:?}");
    let (code, why) = lab.http("/ready").unwrap();
    assert!(code == 503 && why.contains("h1") && !why.contains("h0:"), "{code} {why}");
    let attached = |name: &str, actual: &str| {
        format!("tunica_shield_attached{{actual=\"{actual}\",interface=\"{name}\",requested=\"native\"}}")
    };
    assert_eq!(lab.metric(&attached("h0", "native")).unwrap(), Some(1.0));
    assert_eq!(lab.metric(&attached("h1", "none")).unwrap(), Some(0.0));

    // The other one comes later.
    join(&lab, "h1", "c1", 1);
    becomes(&mut lab, "h1", "native");
    assert_eq!(interface(&lab, "h0")["program_id"], interface(&lab, "h1")["program_id"]);
    assert_eq!(lab.http("/ready").unwrap().0, 200);
    assert_eq!(lab.tunica(&["status"]).unwrap().code, Some(0));

    let before = count(&lab, NULL_FLAGS);
    let mut bytes = [0; 60];
    for (to, from) in bytes.iter_mut().zip(segment([203, 0, 113, 9], 0)) {
        *to = from;
    }
    lab.client
        .run(|| {
            for interface in [CLIENT_INTERFACE, "c1"] {
                let socket = packet_socket(if_nametoindex(interface)?)?;
                for _ in 0..7 {
                    send_frames(socket.as_fd(), &[bytes])?;
                }
            }
            Ok(())
        })
        .unwrap();
    lab.wait_for("both counts", |lab| Ok(count(lab, NULL_FLAGS) == before + 14.0)).unwrap();

    // A ban holds on both, and one that goes leaves the other as it was.
    let link = interface(&lab, "h0")["link_id"].clone();
    lab.host.ip(&["link", "delete", "h1"]).unwrap();
    becomes(&mut lab, "h1", "none");
    assert_eq!(interface(&lab, "h0")["link_id"], link);
    lab.end(Signal::SIGTERM).unwrap();
}

/// What `doctor` says of a host that forwards: bans and limits of sources hold, rules of ports and sockets do not.
#[test]
fn of_forwarded_packets_the_source_is_judged_and_the_port_is_not() {
    const BEHIND: [u8; 4] = [10, 78, 1, 2];
    let mut lab = Lab::new("forward").unwrap();
    lab.configure("mode = \"enforce\"\nlockdown = true\nports = { open = [\"22/tcp\"] }", "").unwrap();
    lab.host.write_sysctl("net/ipv4/ip_forward", "1").unwrap();
    join(&lab, "h1", "c1", 1);
    lab.count_in_stack("behind", "ip daddr 10.78.1.2").unwrap();
    lab.start().unwrap();
    lab.must(&["ban", "add", "203.0.113.5", "--for", "1h"]).unwrap();
    let to = |destination: [u8; 4], source: [u8; 4], flags: u8| {
        let mut ip = v4(source, TCP);
        ip.destination = destination;
        ip.frame(&tcp(flags, 5))
    };
    let drops = |lab: &Lab, verdict: &str| {
        count(lab, &format!("tunica_shield_packets_total{{action=\"drop\",verdict=\"{verdict}\"}}"))
    };
    // To the host the port is closed, to what lies behind it is not.
    lab.send(&to(HOST.octets(), [203, 0, 113, 7], SYN), 3).unwrap();
    lab.wait_for("the closed port", |lab| Ok(drops(lab, "port_closed") == 3.0)).unwrap();
    lab.send(&to(BEHIND, [203, 0, 113, 7], SYN), 3).unwrap();
    lab.wait_for("what passes through", |lab| Ok(lab.in_stack("behind")? == 3)).unwrap();
    // The source is judged wherever it goes.
    lab.send(&to(BEHIND, [203, 0, 113, 5], SYN), 3).unwrap();
    lab.wait_for("the ban", |lab| Ok(drops(lab, "banned") == 3.0)).unwrap();
    lab.send(&to(BEHIND, [203, 0, 113, 9], 0), 3).unwrap();
    lab.wait_for("the sanity rule", |lab| Ok(drops(lab, "null_flags") == 3.0)).unwrap();
    lab.send(&to(BEHIND, [203, 0, 113, 8], SYN), 200).unwrap();
    lab.wait_for("the limit", |lab| Ok(drops(lab, "syn_rate") >= 150.0)).unwrap();
    assert_eq!(drops(&lab, "port_closed"), 3.0);
    let (level, found) = finding(&lab, "forwarding");
    assert!(level == "warning" && found.contains("IPv4"), "{level} {found}");
}

/// What `tunica doctor` says of `check`: its level, and what was found.
fn finding(lab: &Lab, check: &str) -> (String, String) {
    let doctor = lab.json(&["doctor"]).unwrap();
    let findings = doctor["findings"].as_array().unwrap();
    let finding = findings.iter().find(|finding| finding["check"] == check);
    let finding = finding.unwrap_or_else(|| panic!("no {check} in {doctor:#}"));
    // Whatever is not well comes with what to do.
    assert_eq!(finding["level"] == "ok", finding["advice"] == "", "{finding:#}");
    let text = |key: &str| finding[key].as_str().unwrap().to_owned();
    (text("level"), text("found"))
}

#[test]
fn doctor_sees_the_host_as_it_is() {
    let mut lab = Lab::new("doctor").unwrap();
    let cookies = |lab: &Lab, manage: bool| {
        lab.configure(&format!("mode = \"enforce\"\ncookies = {{ manage_syncookies = {manage} }}"), "")
            .unwrap();
        let path = lab.path("tunica.toml");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("[\"h0\"]", "[\"h0\", \"h1\"]")).unwrap();
    };
    cookies(&lab, false);
    join(&lab, "h1", "c1", 1);
    lab.start().unwrap();

    for (sysctl, value, manage, check, level) in [
        ("net/ipv4/tcp_syncookies", "0", false, "syncookies", "failure"),
        ("net/ipv4/tcp_syncookies", "1", false, "syncookies", "warning"),
        ("net/ipv4/tcp_syncookies", "1", true, "syncookies", "ok"),
        ("net/ipv4/tcp_syncookies", "2", false, "syncookies", "ok"),
        ("net/ipv4/tcp_timestamps", "0", false, "timestamps", "warning"),
        ("net/ipv4/tcp_timestamps", "2", false, "timestamps", "ok"),
        ("net/ipv4/ip_forward", "1", false, "forwarding", "warning"),
        ("net/ipv4/ip_forward", "0", false, "forwarding", "ok"),
        ("net/ipv6/conf/all/forwarding", "1", false, "forwarding", "warning"),
    ] {
        cookies(&lab, manage);
        lab.must(&["reload"]).unwrap();
        lab.host.write_sysctl(sysctl, value).unwrap();
        let found = finding(&lab, check);
        assert_eq!(found.0, level, "{sysctl} = {value}: {found:?}");
    }
    lab.host.write_sysctl("net/ipv4/tcp_syncookies", "0").unwrap();
    assert_eq!(lab.tunica(&["doctor"]).unwrap().code, Some(7));
    lab.host.write_sysctl("net/ipv4/tcp_syncookies", "2").unwrap();

    // Of each interface by its name.
    lab.host.ip(&["link", "set", "h1", "mtu", "9000"]).unwrap();
    lab.host.ip(&["link", "set", "h1", "down"]).unwrap();
    for (check, level, part) in [
        ("mtu.h0", "ok", "MTU 1500"),
        ("mtu.h1", "warning", "MTU 9000"),
        ("link.h0", "ok", "set up"),
        ("link.h1", "warning", "set down"),
        ("hook.h0", "ok", "in native mode"),
        ("hook.h1", "ok", "in native mode"),
        ("driver.h0", "ok", "veth"),
        ("offloads.h0", "ok", "is off"),
        ("place.h0", "ok", "stands for itself"),
        ("vlan.h0", "ok", "carries no VLAN"),
    ] {
        let found = finding(&lab, check);
        assert!(found.0 == level && found.1.contains(part), "{check}: {found:?}");
    }
    lab.host.ip(&["link", "delete", "h1"]).unwrap();
    assert_eq!(finding(&lab, "interface.h1").0, "failure");
    assert!(finding(&lab, "queues.h0").1.contains("receive queues for"));
}
