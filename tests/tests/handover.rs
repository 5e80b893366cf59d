//! nftables stands in for the program, and hands back, under traffic.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper that fails is a test that fails"
)]

use std::{
    net::Ipv6Addr,
    os::fd::AsRawFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use nix::{
    net::if_::if_nametoindex,
    sys::{
        signal::Signal,
        socket::{MsgFlags, send},
    },
};
use tunica_tests::{
    frame::{FIN, PSH, TCP, UDP, URG, tcp, udp, v4, v6},
    lab::{CLIENT, CLIENT_INTERFACE, CLIENT_MAC, HOST, HOST_MAC, Lab},
    sys::packet_socket,
};

/// Christmas-tree segments that were dropped.
const DROPPED: &str = "tunica_shield_packets_total{action=\"drop\",verdict=\"xmas\"}";

/// A Christmas-tree segment from the client to the host, with a right IP checksum.
fn xmas() -> Vec<u8> {
    let mut frame = v4(CLIENT.octets(), TCP).frame(&tcp(FIN | PSH | URG, 5));
    frame[..6].copy_from_slice(&HOST_MAC);
    frame[6..12].copy_from_slice(&CLIENT_MAC);
    frame[30..34].copy_from_slice(&HOST.octets());
    let sum: u32 =
        frame[14..34].chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let sum = !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap();
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// Segments that every policy drops, without a pause, until it is dropped.
struct Traffic {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<thread::JoinHandle<anyhow::Result<()>>>,
}

impl Traffic {
    fn start(lab: &Lab) -> Self {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (until, count) = (Arc::clone(&stop), Arc::clone(&sent));
        let thread = lab.client.spawn("traffic", move || {
            let socket = packet_socket(if_nametoindex(CLIENT_INTERFACE)?)?;
            let frame = xmas();
            while !until.load(Ordering::Relaxed) {
                send(socket.as_raw_fd(), &frame, MsgFlags::empty())?;
                count.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_micros(100));
            }
            Ok(())
        });
        Self { stop, sent, thread: Some(thread.unwrap()) }
    }

    /// Waits until as many more were sent.
    fn flow(&self, more: u64) {
        let target = self.sent.load(Ordering::Relaxed) + more;
        while self.sent.load(Ordering::Relaxed) < target {
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn end(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap().unwrap();
        self.sent.load(Ordering::Relaxed)
    }
}

/// Counts segments that neither the program nor nftables dropped.
fn count_leaks(lab: &Lab) {
    lab.run_in_host(
        "nft",
        &["add table inet lab; add counter inet lab leaked; \
           add chain inet lab behind { type filter hook prerouting priority -100; }; \
           add rule inet lab behind tcp flags & (fin | psh | urg | ack) == fin | psh | urg counter name leaked"],
    )
    .unwrap();
}

fn actual(lab: &Lab) -> String {
    let status = lab.json(&["status"]).unwrap();
    status["answer"]["interfaces"][0]["actual"]
        .as_str()
        .or_else(|| status["interfaces"][0]["actual"].as_str())
        .unwrap_or_else(|| panic!("{status}"))
        .to_owned()
}

fn tables(lab: &Lab) -> String {
    lab.run_in_host("nft", &["list", "tables"]).unwrap()
}

fn listed(lab: &Lab) -> String {
    lab.run_in_host("nft", &["list", "table", "inet", "tunica"]).unwrap()
}

/// The configuration with this way of attachment.
fn configure(lab: &Lab, attach: &str) {
    lab.configure(&format!("mode = \"enforce\"\nattach = \"{attach}\""), "").unwrap();
}

#[test]
fn both_ways_under_traffic_no_packet_is_unfiltered() {
    let mut lab = Lab::new("handover").unwrap();
    configure(&lab, "native");
    lab.start().unwrap();
    assert_eq!(actual(&lab), "native");
    assert!(!tables(&lab).contains("tunica"), "{}", tables(&lab));
    count_leaks(&lab);
    let traffic = Traffic::start(&lab);
    traffic.flow(200);
    let mut counted = 0.0;
    let mut is_rising = |lab: &Lab| {
        let now = lab.metric(DROPPED).unwrap().unwrap();
        assert!(now >= counted, "{now} after {counted}");
        counted = now;
    };
    for _ in 0..5 {
        configure(&lab, "nftables");
        lab.must(&["reload"]).unwrap();
        assert_eq!(actual(&lab), "nftables");
        is_rising(&lab);
        traffic.flow(200);
        is_rising(&lab);
        configure(&lab, "native");
        lab.must(&["reload"]).unwrap();
        assert_eq!(actual(&lab), "native");
        assert!(!tables(&lab).contains("tunica"), "{}", tables(&lab));
        is_rising(&lab);
        traffic.flow(200);
    }
    // Each of them was counted, by the one or by the other. What came last is counted within a second.
    let so_far = traffic.end();
    lab.wait_for("all counts", |lab| Ok(lab.metric(DROPPED)?.is_some_and(|now| now >= so_far as f64)))
        .unwrap();
    assert_eq!(lab.metric(DROPPED).unwrap(), Some(so_far as f64));
    let traffic = Traffic::start(&lab);
    // The table stays when the daemon stops, as the program does, and the next daemon takes it up.
    configure(&lab, "nftables");
    lab.must(&["reload"]).unwrap();
    lab.end(Signal::SIGTERM).unwrap();
    assert!(listed(&lab).contains("counter name \"xmas\""));
    traffic.flow(200);
    lab.start().unwrap();
    assert_eq!(actual(&lab), "nftables");
    traffic.flow(200);
    let sent = traffic.end();
    assert!(so_far > 2_200 && sent > 400, "{so_far} and {sent} sent");
    assert_eq!(
        lab.run_in_host("nft", &["list", "counter", "inet", "lab", "leaked"])
            .unwrap()
            .matches("packets 0 ")
            .count(),
        1
    );
    let series = "tunica_shield_attached{actual=\"nftables\",interface=\"h0\",requested=\"nftables\"}";
    assert_eq!(lab.metric(series).unwrap(), Some(1.0));
    assert_eq!(lab.tunica(&["status"]).unwrap().code, Some(0));
}

#[test]
fn where_the_hook_is_taken_nftables_stands_in_until_it_is_free() {
    let mut lab = Lab::new("standin").unwrap();
    // Another shield of ours, which drops nothing, is a stranger to this daemon.
    let mut other = Lab::new("stranger").unwrap();
    other.configure("mode = \"observe\"", "").unwrap();
    other.start().unwrap();
    let pin = other.pin_directory().unwrap().join("program");
    other.end(Signal::SIGTERM).unwrap();
    lab.run_in_host("ip", &["link", "set", "h0", "xdpdrv", "pinned", pin.to_str().unwrap()]).unwrap();
    configure(&lab, "native");
    lab.start().unwrap();
    assert_eq!(actual(&lab), "nftables");
    let status = lab.tunica(&["status"]).unwrap();
    assert_eq!(status.code, Some(7), "{status:?}");
    assert!(status.out.contains("h0 has nftables instead of native"), "{}", status.out);
    let series = "tunica_shield_attached{actual=\"nftables\",interface=\"h0\",requested=\"native\"}";
    assert_eq!(lab.metric(series).unwrap(), Some(0.0));

    let explained = lab.must(&["explain", "203.0.113.9"]).unwrap();
    assert!(explained.contains("not attached on h0: nftables stands in there"), "{explained}");

    // Bans come and go as elements: the table and its counts stay.
    count_leaks(&lab);
    let mut frame = xmas();
    // The lab sums it up itself.
    frame[24..26].fill(0);
    lab.send(&frame, 7).unwrap();
    lab.must(&["ban", "add", "203.0.113.5", "--for", "1h"]).unwrap();
    lab.must(&["ban", "add", "203.0.113.6", "--for", "forever"]).unwrap();
    let table = listed(&lab);
    assert!(table.contains("203.0.113.5 timeout 1h") && table.contains("203.0.113.6"), "{table}");
    assert!(table.contains("packets 7 "), "not counted, or the table was made anew:\n{table}");
    lab.must(&["ban", "remove", "203.0.113.6"]).unwrap();
    assert!(!listed(&lab).contains("203.0.113.6"));

    // What somebody changes is changed back within an audit.
    lab.run_in_host("nft", &["insert rule inet tunica judge accept"]).unwrap();
    lab.wait_for("the repaired table", |lab| Ok(!listed(lab).contains("chain judge {\n\t\taccept"))).unwrap();
    lab.wait_for("the count of repairs", |lab| {
        Ok(lab.metric("tunica_reconcile_edits_total{table=\"nft\"}")?.is_some_and(|count| count >= 1.0))
    })
    .unwrap();
    assert!(lab.log().contains("rule list of chain judge was changed"), "{}", lab.log());

    // A bypass removes it.
    lab.must(&["bypass", "on", "--reason", "test"]).unwrap();
    assert!(!tables(&lab).contains("tunica"));
    lab.must(&["bypass", "off"]).unwrap();
    assert_eq!(actual(&lab), "nftables");

    // The hook is free: the program comes, the table goes.
    let traffic = Traffic::start(&lab);
    lab.run_in_host("ip", &["link", "set", "h0", "xdpdrv", "off"]).unwrap();
    lab.wait_for("the attached program", |lab| Ok(actual(lab) == "native")).unwrap();
    traffic.flow(200);
    assert!(!tables(&lab).contains("tunica"));
    traffic.end();
    let leaked = lab.run_in_host("nft", &["list", "counter", "inet", "lab", "leaked"]).unwrap();
    // Between its insertion and its repair the foreign rule let nothing of this through: nothing was sent then.
    assert!(leaked.contains("packets 0 "), "{leaked}");
    drop(other);
}

#[test]
fn without_a_fallback_nothing_is_touched() {
    let mut lab = Lab::new("nofallback").unwrap();
    lab.run_in_host("nft", &["add table inet tunica"]).unwrap();
    lab.configure("mode = \"enforce\"\nfallback = \"none\"", "").unwrap();
    lab.start().unwrap();
    assert_eq!(actual(&lab), "native");
    assert!(tables(&lab).contains("tunica"), "somebody else's table of this name is not ours to remove");
}

/// CAP_NET_ADMIN, 12, is all that nft needs; the program takes CAP_PERFMON, 38, and CAP_BPF, 39.
#[test]
fn the_unit_s_capabilities_suffice_for_nft() {
    let mut lab = Lab::new("nftcaps").unwrap();
    configure(&lab, "nftables");
    let granted = "-all,+net_admin,+cap_38,+cap_39";
    let (bounding, inherited) = (format!("--bounding-set={granted}"), format!("--inh-caps={granted}"));
    lab.start_through(&["setpriv", &bounding, &inherited, "--no-new-privs"]).unwrap();
    assert_eq!(actual(&lab), "nftables");
    assert!(listed(&lab).contains("goto judge"));
}

#[test]
fn what_nftables_counts_shows_like_what_the_program_counts() {
    let mut lab = Lab::new("nftcounts").unwrap();
    configure(&lab, "nftables");
    lab.start().unwrap();
    let mut frame = xmas();
    // The lab sums it up itself.
    frame[24..26].fill(0);
    lab.send(&frame, 7).unwrap();
    let becomes = |lab: &mut Lab, series: &str, value: f64| {
        lab.wait_for(&format!("{series} = {value}"), |lab| Ok(lab.metric(series)? == Some(value))).unwrap();
    };
    becomes(&mut lab, DROPPED, 7.0);
    // nftables counts neither the link header nor what pads a frame.
    becomes(&mut lab, &DROPPED.replace("packets", "bytes"), 7.0 * 40.0);
    let shown = |lab: &Lab, action: &str| {
        let top = lab.json(&["top", "--once", "--interval", "0.2"]).unwrap();
        let rows = top["rows"].as_array().unwrap().clone();
        let row = rows.into_iter().find(|row| row["verdict"] == "xmas" && row["action"] == action).unwrap();
        let status = lab.json(&["status"]).unwrap();
        let sanity = status["defences"].as_array().unwrap()[0].clone();
        assert_eq!(sanity["name"], "sanity");
        (
            row["packets"].clone(),
            sanity[if action == "drop" { "dropped_packets" } else { "would_drop_packets" }].clone(),
        )
    };
    assert_eq!(shown(&lab, "drop"), (7.into(), 7.into()));
    // It is an incident like any other.
    becomes(&mut lab, "tunica_incidents_total{kind=\"sanity\"}", 1.0);

    // A new table begins at zero, and the counts go on. Observing, the same packets pass.
    lab.configure("mode = \"observe\"\nattach = \"nftables\"", "").unwrap();
    lab.must(&["reload"]).unwrap();
    lab.send(&frame, 9).unwrap();
    let would = DROPPED.replace("\"drop\"", "\"would_drop\"");
    becomes(&mut lab, &would, 9.0);
    assert_eq!(lab.metric(DROPPED).unwrap(), Some(7.0));
    assert_eq!(shown(&lab, "would_drop"), (9.into(), 9.into()));
    configure(&lab, "nftables");
    lab.must(&["reload"]).unwrap();
    lab.send(&frame, 2).unwrap();
    becomes(&mut lab, DROPPED, 9.0);
    // Somebody who sets a counter back takes nothing away.
    lab.run_in_host("nft", &["reset", "counter", "inet", "tunica", "xmas"]).unwrap();
    lab.send(&frame, 1).unwrap();
    becomes(&mut lab, DROPPED, 10.0);
}

#[test]
fn bans_of_ranges_hold_in_nftables() {
    let mut lab = Lab::new("nftranges").unwrap();
    configure(&lab, "nftables");
    lab.start().unwrap();
    lab.host.write_sysctl("net/ipv6/conf/h0/disable_ipv6", "0").unwrap();
    // Behind the table, before the stack.
    lab.run_in_host(
        "nft",
        &["add table inet lab; add counter inet lab passed; \
           add chain inet lab behind { type filter hook prerouting priority -100; }; \
           add rule inet lab behind udp dport 9 counter name passed"],
    )
    .unwrap();
    let from_v4 = |last: u8| {
        let mut ip = v4([203, 0, 113, last], UDP);
        ip.destination = HOST.octets();
        ip.frame(&udp(1_024, 9, 8, 0))
    };
    let from_v6 = |net: u16| {
        let ip = v6(Ipv6Addr::new(0x2001, 0xdb8, 1, net, 0, 0, 0, 5).octets(), UDP);
        ip.frame(&udp(1_024, 9, 8, 0))
    };
    let passing = |lab: &Lab, frame: &[u8]| {
        let before = lab.in_stack("passed").unwrap();
        lab.send(frame, 5).unwrap();
        lab.in_stack("passed").unwrap() - before
    };
    assert_eq!([passing(&lab, &from_v4(9)), passing(&lab, &from_v6(0x2ff))], [5, 5]);
    lab.must(&["ban", "add", "203.0.113.0/24", "--for", "1h"]).unwrap();
    lab.must(&["ban", "add", "2001:db8:1:200::/56", "--for", "1h"]).unwrap();
    assert_eq!([passing(&lab, &from_v4(9)), passing(&lab, &from_v6(0x2ff))], [0, 0]);
    assert_eq!(passing(&lab, &from_v6(0x300)), 5, "beside the range");
    let series = "tunica_shield_packets_total{action=\"drop\",verdict=\"banned_net\"}";
    lab.wait_for("their count", |lab| Ok(lab.metric(series)? == Some(10.0))).unwrap();

    // One host of it is allowed, and is not any more.
    lab.must(&["allow", "add", "203.0.113.9", "--for", "1h"]).unwrap();
    assert_eq!([passing(&lab, &from_v4(9)), passing(&lab, &from_v4(10))], [5, 0]);
    lab.must(&["allow", "remove", "203.0.113.9"]).unwrap();
    assert_eq!(passing(&lab, &from_v4(9)), 0);

    // The next daemon bans them again; lifted and ended, they pass.
    lab.end(Signal::SIGKILL).unwrap();
    assert_eq!(passing(&lab, &from_v4(9)), 0);
    lab.start().unwrap();
    assert_eq!([passing(&lab, &from_v4(9)), passing(&lab, &from_v6(0x2ff))], [0, 0]);
    lab.must(&["ban", "remove", "203.0.113.0/24"]).unwrap();
    assert_eq!([passing(&lab, &from_v4(9)), passing(&lab, &from_v6(0x2ff))], [5, 0]);
    lab.must(&["ban", "add", "203.0.113.0/24", "--for", "2s"]).unwrap();
    assert_eq!(passing(&lab, &from_v4(9)), 0);
    lab.wait_for("the end of a ban", |lab| Ok(passing(lab, &from_v4(9)) == 5)).unwrap();
}
