//! A host that translates addresses: connections of those behind it have no socket on it, and are let be.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a helper that fails is a test that fails"
)]

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result};
use tunica_tests::{
    frame::ACK,
    lab::{CLIENT, HOST, Lab, segment},
    netns::{self, End, Namespace},
};

/// Behind the host.
const BEHIND: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 2);
/// Many thousand segments, where some tens are refused without a connection.
const BYTES: usize = 8 << 20;
const TIMEOUT: Duration = Duration::from_secs(20);

/// Every segment is judged, and five a second pass without a connection.
const STRICT: &str = "mode = \"enforce\"\nno_socket = { host_per_second = 1, per_source_per_second = 5 }";

/// A listener inside that takes one connection and reads it to its end. Returns how many bytes came.
fn sink(namespace: &Namespace, address: SocketAddrV4) -> std::thread::JoinHandle<Result<usize>> {
    let (ready, is_ready) = std::sync::mpsc::channel();
    let thread = namespace
        .spawn("sink", move || {
            let listener = TcpListener::bind(address)?;
            ready.send(()).context("nobody waits")?;
            let (mut stream, _) = listener.accept()?;
            stream.set_read_timeout(Some(TIMEOUT))?;
            let mut all = Vec::new();
            stream.read_to_end(&mut all)?;
            Ok(all.len())
        })
        .unwrap();
    is_ready.recv_timeout(TIMEOUT).unwrap();
    thread
}

/// Sends [`BYTES`] from inside to `address`.
fn upload(namespace: &Namespace, address: SocketAddrV4) -> Result<()> {
    namespace.run(|| {
        let mut stream = TcpStream::connect_timeout(&address.into(), TIMEOUT)?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        stream.write_all(&vec![7; BYTES])?;
        Ok(())
    })
}

/// ACK segments that belong to nothing, of which the host says how many it refused.
fn refused(lab: &Lab) -> f64 {
    lab.send(&segment([203, 0, 113, 9], ACK), 60).unwrap();
    // Counters are read once a second.
    std::thread::sleep(Duration::from_millis(2_500));
    lab.metric("tunica_shield_packets_total{action=\"drop\",verdict=\"no_socket\"}").unwrap().unwrap_or(0.0)
}

#[test]
fn what_belongs_to_somebody_behind_is_not_refused() {
    let mut lab = Lab::new("nat").unwrap();
    let behind = Namespace::create("nat", "behind").unwrap();
    netns::join(
        End { namespace: &lab.host, interface: "h1", mac: [2, 0, 0, 0, 88, 1], address: "10.88.0.1/24" },
        End { namespace: &behind, interface: "b0", mac: [2, 0, 0, 0, 88, 2], address: "10.88.0.2/24" },
    )
    .unwrap();
    behind.ip(&["route", "add", "default", "via", "10.88.0.1"]).unwrap();
    lab.host.write_sysctl("net/ipv4/ip_forward", "1").unwrap();
    for rule in [
        "add table ip others",
        "add chain ip others in { type nat hook prerouting priority dstnat; }",
        "add rule ip others in iifname h0 tcp dport 8080 dnat to 10.88.0.2:80",
        "add chain ip others out { type nat hook postrouting priority srcnat; }",
        "add rule ip others out oifname h0 masquerade",
    ] {
        lab.run_in_host("nft", &[rule]).unwrap();
    }
    lab.configure(STRICT, "").unwrap();
    lab.start().unwrap();

    // A published port: the segments are addressed to the host, and the socket is behind it.
    let inside = sink(&behind, SocketAddrV4::new(BEHIND, 80));
    upload(&lab.client, SocketAddrV4::new(HOST, 8_080)).unwrap();
    assert_eq!(inside.join().unwrap().unwrap(), BYTES);

    // Somebody behind asks, and the answers come to the host's address.
    let outside = sink(&lab.client, SocketAddrV4::new(CLIENT, 80));
    upload(&behind, SocketAddrV4::new(CLIENT, 80)).unwrap();
    assert_eq!(outside.join().unwrap().unwrap(), BYTES);

    assert!(refused(&lab).abs() < 0.5, "nothing is refused for want of a socket");
    let doctor = lab.tunica(&["doctor"]).unwrap().out;
    assert!(doctor.contains("this host translates addresses"), "{doctor}");
}

#[test]
fn a_host_without_translation_refuses() {
    let mut lab = Lab::new("nonat").unwrap();
    lab.host.write_sysctl("net/ipv4/ip_forward", "1").unwrap();
    lab.run_in_host("nft", &["add table ip others"]).unwrap();
    lab.run_in_host("nft", &["add chain ip others in { type filter hook input priority 0; }"]).unwrap();
    lab.configure(STRICT, "").unwrap();
    lab.start().unwrap();
    assert!(refused(&lab) > 30.0);
    let doctor = lab.tunica(&["doctor"]).unwrap().out;
    assert!(!doctor.contains("this host translates addresses"), "{doctor}");

    // Its own connections stand.
    let inside = sink(&lab.host, SocketAddrV4::new(HOST, 80));
    upload(&lab.client, SocketAddrV4::new(HOST, 80)).unwrap();
    assert_eq!(inside.join().unwrap().unwrap(), BYTES);

    // Once it translates, the next look finds it, and nothing more is refused.
    lab.run_in_host("nft", &["add chain ip others nat { type nat hook prerouting priority dstnat; }"])
        .unwrap();
    lab.wait_for("the look", |lab| {
        let before = refused(lab);
        Ok((refused(lab) - before).abs() < 0.5)
    })
    .unwrap();
}
