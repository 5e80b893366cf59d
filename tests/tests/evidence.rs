//! Bans that nobody asked for: what the kernel proves by completed handshakes, and that nothing else proves anything.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper that fails is a test that fails"
)]

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd as _, AsRawFd},
    thread,
    time::Duration,
};

use aya::maps::MapData;
use nix::sys::{
    signal::Signal,
    socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt},
};
use tunica_tests::{
    flood::{Pattern, Random},
    lab::{CLIENT, CLIENT_INTERFACE, HOST, Lab},
    rows::rows,
};
use tunicad::sys::count_rows;

/// Connects from this address and closes. The listener need not accept.
fn visit(from: Ipv4Addr, port: u16) -> bool {
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    setsockopt(&socket, sockopt::IpBindAddressNoPort, &true).unwrap();
    let [a, b, c, d] = from.octets();
    bind(socket.as_raw_fd(), &SockaddrIn::new(a, b, c, d, 0)).unwrap();
    let [e, f, g, h] = HOST.octets();
    connect(socket.as_raw_fd(), &SockaddrIn::new(e, f, g, h, port)).is_ok()
}

/// Accepts and closes, for ever.
fn serve(lab: &Lab, port: u16) {
    let listener = lab.host.run(|| Ok(TcpListener::bind((HOST, port))?)).unwrap();
    thread::spawn(move || while listener.accept().is_ok() {});
}

fn rows_of(lab: &Lab, map: &str) -> Vec<serde_json::Value> {
    let pin = lab.pin_directory().unwrap().join(map);
    let text = lab.run_in_host("bpftool", &["-j", "map", "dump", "pinned", pin.to_str().unwrap()]).unwrap();
    serde_json::from_str::<serde_json::Value>(&text).unwrap().as_array().unwrap().clone()
}

#[test]
fn whoever_connects_too_often_is_banned_and_nobody_else() {
    let mut lab = Lab::new("evidence").unwrap();
    // The SYN limit leaves room for more than the evidence allows.
    lab.configure(
        "mode = \"enforce\"\nsyn = { per_source_per_second = 1000, burst = 1000 }\nport_syn = { enabled = false }",
        "[evidence]\nconnections_per_second = 1\nburst = 10\nban_threshold = 3\n",
    )
    .unwrap();
    for host in [3, 4, 5] {
        lab.client.ip(&["address", "add", &format!("10.77.0.{host}/24"), "dev", CLIENT_INTERFACE]).unwrap();
    }
    lab.start().unwrap();
    assert!(!lab.log().contains("prove nothing"), "{}", lab.log());
    serve(&lab, 8_080);
    let visits = |lab: &Lab, host: u8, times: usize| -> usize {
        let from = Ipv4Addr::new(10, 77, 0, host);
        lab.client.run(|| Ok((0..times).filter(|_| visit(from, 8_080)).count())).unwrap()
    };
    // Ten at once are allowed, and two violations are not yet three.
    assert_eq!(visits(&lab, 3, 12), 12);
    assert_eq!(visits(&lab, 4, 5), 5);
    thread::sleep(Duration::from_millis(500));
    assert_eq!(lab.json(&["ban", "list"]).unwrap()["bans"].as_array().unwrap().len(), 0);
    assert_eq!(visits(&lab, 5, 13), 13);
    lab.wait_for(
        "the ban",
        |lab| Ok(lab.json(&["ban", "list"])?["bans"].as_array().map(Vec::len) == Some(1)),
    )
    .unwrap();
    let ban = lab.json(&["ban", "list"]).unwrap()["bans"][0].clone();
    assert_eq!((ban["source"].as_str(), ban["origin"].as_str()), (Some("10.77.0.5"), Some("evidence")));
    assert_eq!(
        ban["expires"].as_u64().unwrap() - ban["since"].as_u64().unwrap(),
        300,
        "the ladder's first rung"
    );
    assert!(
        ban["reason"].as_str().unwrap().contains("3 connections too many, the last to port 8080"),
        "{ban}"
    );
    assert_eq!(lab.metric("tunica_bans_active{origin=\"evidence\"}").unwrap(), Some(1.0));
    // Exact rows, for those who really connected.
    let verified = rows_of(&lab, "VERIFIED");
    assert_eq!(verified.len(), 3, "{verified:?}");
    // They are counted by the audit.
    lab.wait_for("their count", |lab| Ok(lab.metric("tunica_table_used{table=\"verified\"}")? == Some(3.0)))
        .unwrap();
    assert_eq!(lab.metric("tunica_table_capacity{table=\"verified\"}").unwrap(), Some(65_536.0));
    // Without its daemon the ban lapses, because it rests on evidence; an operator's would not.
    let explained = lab.json(&["explain", "10.77.0.5"]).unwrap();
    assert_eq!(explained["outcomes"][0]["verdict"], "banned");
    assert_eq!(rows_of(&lab, "BANS")[0]["formatted"]["value"]["flags"], 1);
    // Somebody on the allow list is never banned, whatever is proven.
    lab.must(&["allow", "add", "10.77.0.4", "--for", "1h"]).unwrap();
    assert_eq!(visits(&lab, 4, 20), 20);
    lab.wait_for("the refusal", |lab| {
        Ok(lab.json(&["status"])?["never_ban"]["refused_bans"].as_u64() >= Some(1))
    })
    .unwrap();
    let refused = "tunica_bans_refused_total{reason=\"protected\"}";
    assert!(lab.metric(refused).unwrap() >= Some(1.0));
    assert_eq!(lab.json(&["ban", "list"]).unwrap()["bans"].as_array().unwrap().len(), 1);
    lab.end(Signal::SIGTERM).unwrap();
}

/// For all packet sequences in which the sender never learns our sequence number, no source is banned and no exact state
/// is made. Half a minute of forged SYNs and of every frame of the table with random addresses and numbers stands for all.
#[test]
fn a_sender_who_hears_nothing_proves_nothing() {
    let mut lab = Lab::new("unheard").unwrap();
    lab.configure(
        "mode = \"enforce\"",
        "[evidence]\nconnections_per_second = 1\nburst = 1\nban_threshold = 1\n",
    )
    .unwrap();
    lab.host.write_sysctl("net/ipv4/tcp_syncookies", "2").unwrap();
    // Answers to forged addresses go nowhere.
    lab.host.ip(&["route", "add", "default", "via", &CLIENT.to_string()]).unwrap();
    lab.start().unwrap();
    serve(&lab, 443);
    let running = lab.flood(Pattern::ForgedSyn, 5_000, 443).unwrap();
    let mut random = Random(7);
    for row in rows().into_iter().filter(|row| row.frame.len() <= 96 && row.frame.len() > 40) {
        for _ in 0..4 {
            let mut frame = row.frame.clone();
            let is_v4 = frame[12..14] == [8, 0];
            if is_v4 {
                frame[30..34].copy_from_slice(&HOST.octets());
            }
            // Sources below 2^24 hosts of one network, ports of the service, random numbers.
            let at = if is_v4 { 27 } else { 24 };
            frame[at..at + 3].copy_from_slice(&random.number().to_be_bytes()[1..]);
            if is_v4 && frame.len() >= 54 {
                frame[38..46].copy_from_slice(
                    &[random.number().to_be_bytes(), random.number().to_be_bytes()].concat(),
                );
            }
            lab.send(&frame, 1).unwrap();
        }
    }
    assert!(running.stop().unwrap() > 1_000);
    thread::sleep(Duration::from_secs(1));
    assert_eq!(rows_of(&lab, "VERIFIED").len(), 0);
    assert_eq!(lab.json(&["ban", "list"]).unwrap()["bans"].as_array().unwrap().len(), 0);
    // One that hears does.
    let address = SocketAddr::from((HOST, 443));
    drop(lab.client.run(|| Ok(TcpStream::connect(address)?)).unwrap());
    lab.wait_for("a verified source", |lab| Ok(rows_of(lab, "VERIFIED").len() == 1)).unwrap();
}

#[test]
fn without_control_groups_of_version_2_the_daemon_says_so_and_goes_on() {
    let mut lab = Lab::new("nogroups").unwrap();
    lab.configure("mode = \"enforce\"", "").unwrap();
    // A mount namespace of its own hides whatever this machine has mounted.
    let hide = "for place in $(awk '$3 == \"cgroup2\" { print $2 }' /proc/self/mounts); do umount -l \"$place\"; done; exec \"$0\" \"$@\"";
    lab.start_through(&["unshare", "--mount", "--propagation", "private", "sh", "-c", hide]).unwrap();
    let status = lab.json(&["status"]).unwrap();
    assert!(status["warnings"].to_string().contains("no control group hierarchy of version 2"), "{status:#}");
}

/// Rows of a map of LRU kind are counted over several calls, none twice and none left out, and a map that somebody fills
/// beyond its capacity is full and no more.
#[test]
fn rows_are_counted_without_reading_them_one_by_one() {
    let lab = Lab::new("rows").unwrap();
    let pin = lab.pins().with_file_name(format!("{}-rows", lab.pins().file_name().unwrap().display()));
    let path = pin.to_str().unwrap();
    let bpftool = |arguments: &[&str]| lab.run_in_host("bpftool", arguments).unwrap();
    let create = [
        "map", "create", path, "type", "lru_hash", "key", "4", "value", "8", "entries", "16384", "name",
        "rows",
    ];
    bpftool(&create);
    let count = || {
        let map = MapData::from_pin(path).unwrap();
        count_rows(map.fd().as_fd(), 4, 8, 1 << 20).unwrap()
    };
    assert_eq!(count(), 0);
    let mut filled = 0;
    for rows in [1, 4_095, 4_097, 10_000, 40_000] {
        let update = |key: u32| {
            let bytes = key.to_ne_bytes().map(|byte| byte.to_string()).join(" ");
            format!("map update pinned {path} key {bytes} value 0 0 0 0 0 0 0 0\n")
        };
        let batch = lab.path("batch");
        fs::write(&batch, (filled..rows).map(update).collect::<String>()).unwrap();
        bpftool(&["batch", "file", batch.to_str().unwrap()]);
        filled = rows;
        let counted = count();
        if rows <= 10_000 {
            assert_eq!(counted, u64::from(rows));
        } else {
            // Free rows wait on each CPU's own list.
            assert!((12_000..=16_384).contains(&counted), "{counted}");
        }
    }
    fs::remove_file(&pin).unwrap();
}
