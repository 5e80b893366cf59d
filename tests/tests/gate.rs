//! The circuit gate in the real kernel: real listeners, real clients that write what tor writes, each test on the `lo` of
//! a network namespace of its own.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test ends by panicking")]

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpStream},
    num::{NonZeroU16, NonZeroU32},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use aya::{
    maps::{HashMap, Map, MapData},
    programs::{TestRun, TestRunOptions, links::PinnedLink},
};
use tunica_common::gate::{CIRCUIT_BANS, CircuitBan, CircuitKey, GATE_BANS, GATE_PORTS, GateOutcome};
use tunica_core::{limits::Mode, time::Monotime};
use tunica_tests::{
    frame::{
        ACK, IPV4, IPV6, PSH, RST, SYN, TCP, UDP, ethernet, extension, fragment, tagged, tcp, udp, v4, v6,
    },
    gate::{Service, desired, end_of, line},
    netns::Namespace,
};
use tunicad::{
    shell::{
        gate::{Ban, Desired, Gate, GateError, Totals},
        xdp::pins::Pins,
    },
    sys::monotonic_ns,
};

const V4_HOME: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6_HOME: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);
const HOMES: [IpAddr; 2] = [V4_HOME, V6_HOME];

/// A circuit that is banned, as are one above 65535 and one whose low half is 0.
const BANNED: u32 = 0x29a;
const BANNED_HIGH: u32 = 0x0001_2345;
const BANNED_ROUND: u32 = 0x0002_0000;
const ALL_BANNED: [u32; 3] = [BANNED, BANNED_HIGH, BANNED_ROUND];
const ALLOWED: u32 = 0x29b;

/// A namespace with both families on its `lo`, and a directory of pins.
struct Place {
    namespace: Namespace,
    root: PathBuf,
}

impl Place {
    fn new(purpose: &str) -> Result<Self> {
        ensure!(nix::unistd::geteuid().is_root(), "this test needs root: run the tests as root");
        let namespace = Namespace::create(&format!("gate-{purpose}"), "host")?;
        for scope in ["all", "default", "lo"] {
            namespace.write_sysctl(&format!("net/ipv6/conf/{scope}/disable_ipv6"), "0")?;
        }
        let root = PathBuf::from(format!("/sys/fs/bpf/tunica-gate-{purpose}-{}", std::process::id()));
        Ok(Self { namespace, root })
    }

    fn pins(&self) -> Result<Arc<Pins>> {
        Ok(Arc::new(Pins::claim(&self.root)?))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// Does `act` on a thread in a namespace of its own.
fn inside(purpose: &str, act: impl FnOnce(&Place) -> Result<()> + Send) {
    let place = Place::new(purpose).unwrap();
    place.namespace.run(|| act(&place)).unwrap();
}

/// A gate that watches these services, with [`ALL_BANNED`] banned.
fn gate_for(pins: &Arc<Pins>, services: &[&Service], mode: Mode) -> Result<Gate> {
    let ports: Vec<NonZeroU16> = services.iter().map(|service| service.port()).collect::<Result<_>>()?;
    let mut gate = Gate::open(pins, &ports)?;
    gate.follow(&desired(mode, 1, &ALL_BANNED)?)?;
    Ok(gate)
}

/// What was counted since `before`: outcomes with how often each was.
fn since(gate: &Gate, before: Totals) -> Result<Vec<(GateOutcome, u64)>> {
    let now = gate.totals()?;
    let grown = |outcome: GateOutcome| (outcome, now.of(outcome) - before.of(outcome));
    Ok(GateOutcome::ALL.into_iter().map(grown).filter(|(_, count)| *count > 0).collect())
}

/// Visits with `bytes`, which must be refused.
fn must_refuse(service: &Service, bytes: &[u8]) -> Result<()> {
    let mut client = service.visit(bytes)?;
    let end = end_of(&mut client)?;
    ensure!(end == io::ErrorKind::ConnectionReset, "the client saw {end}");
    // Although the client still holds its socket.
    ensure!(service.left_over()?.is_empty(), "left over: {:?}", service.left_over()?);
    Ok(())
}

/// Visits with `bytes`, which must arrive, and an answer come back.
fn must_pass(service: &Service, bytes: &[u8]) -> Result<()> {
    let client = service.visit(bytes)?;
    must_converse(client, service, bytes)
}

fn must_converse(mut client: TcpStream, service: &Service, bytes: &[u8]) -> Result<()> {
    let mut server = service.accept()?;
    let mut got = vec![0; bytes.len()];
    server.read_exact(&mut got).context("the listener's end")?;
    ensure!(got == bytes, "other bytes arrived");
    server.write_all(b"answer").context("answering")?;
    let mut answer = [0; 6];
    client.read_exact(&mut answer).context("the client's end")?;
    Ok(())
}

#[test]
fn a_banned_circuit_is_refused_before_the_listener_wakes() {
    inside("refuse", |place| {
        let pins = place.pins()?;
        for home in HOMES {
            let service = Service::open(home, true)?;
            let gate = gate_for(&pins, &[&service], Mode::Enforce)?;
            // What is left of a connection shows: one without data yet is a request in SYN_RECV, for which nobody wakes.
            let mut waiting = service.visit(b"")?;
            ensure!(service.left_over()?.len() == 2 && !service.is_woken(0)?, "{:?}", service.left_over()?);
            waiting.write_all(line(ALLOWED).as_bytes())?;
            must_converse(waiting, &service, line(ALLOWED).as_bytes())?;
            let before = gate.totals()?;
            for circuit in ALL_BANNED {
                for more in ["", "GET / HTTP/1.1\r\n\r\n"] {
                    must_refuse(&service, format!("{}{more}", line(circuit)).as_bytes())?;
                }
            }
            ensure!(!service.is_woken(200)?, "the listener woke on {home}");
            ensure!(service.has_none(), "a connection waits on {home}");
            ensure!(since(&gate, before)? == [(GateOutcome::Refused, 6)], "{:?}", gate.totals()?);
            must_pass(&service, line(ALLOWED).as_bytes())?;
        }
        Ok(())
    });
}

/// Tor's client may write and close at once: the FIN travels with the line.
#[test]
fn a_client_that_is_gone_already_is_refused_too() {
    inside("gone", |place| {
        let pins = place.pins()?;
        let service = Service::open(V4_HOME, true)?;
        let gate = gate_for(&pins, &[&service], Mode::Enforce)?;
        let before = gate.totals()?;
        for _ in 0..20 {
            drop(service.visit(line(BANNED).as_bytes())?);
        }
        ensure!(!service.is_woken(200)? && service.has_none(), "the listener woke");
        ensure!(since(&gate, before)? == [(GateOutcome::Refused, 20)], "{:?}", gate.totals()?);
        ensure!(service.left_over()?.is_empty(), "left over: {:?}", service.left_over()?);
        Ok(())
    });
}

/// Without TCP_DEFER_ACCEPT the listener has the connection before the line comes: it wakes, and finds it dead and empty.
#[test]
fn without_deferred_accept_the_listener_gets_a_dead_connection_without_a_byte() {
    inside("nodefer", |place| {
        let pins = place.pins()?;
        for home in HOMES {
            let service = Service::open(home, false)?;
            let gate = gate_for(&pins, &[&service], Mode::Enforce)?;
            let before = gate.totals()?;
            must_refuse(&service, format!("{}GET /", line(BANNED)).as_bytes())?;
            let mut server = service.accept()?;
            let end = server.read(&mut [0]).err().context("the listener got data")?;
            ensure!(end.kind() == io::ErrorKind::ConnectionReset, "{end}");
            ensure!(service.has_none() && service.left_over()?.is_empty(), "more is left");
            // One that the listener accepted before the line came.
            let mut client = service.visit(b"")?;
            let mut server = service.accept()?;
            client.write_all(line(BANNED).as_bytes())?;
            ensure!(end_of(&mut client)? == io::ErrorKind::ConnectionReset, "the client");
            ensure!(end_of(&mut server)? == io::ErrorKind::ConnectionReset, "the listener's end");
            ensure!(since(&gate, before)? == [(GateOutcome::Refused, 2)], "{:?}", gate.totals()?);
            must_pass(&service, line(ALLOWED).as_bytes())?;
        }
        Ok(())
    });
}

/// The first bytes of a connection, and what becomes of them.
fn rows() -> Vec<(String, Vec<u8>, GateOutcome)> {
    use GateOutcome::{NoHeader, NotBanned, Split, WouldRefuse};
    let from = |address: &str| format!("PROXY TCP6 {address} ::1 666 80\r\n");
    let tor = line(BANNED);
    let mut rows: Vec<(String, Vec<u8>, GateOutcome)> = [
        (line(BANNED), WouldRefuse),
        (line(BANNED_HIGH), WouldRefuse),
        (line(BANNED_ROUND), WouldRefuse),
        (line(ALLOWED), NotBanned),
        (line(1), NotBanned),
        (line(u32::MAX), NotBanned),
        // The high half alone is another circuit.
        (line(BANNED_HIGH & 0xffff), NotBanned),
        (line(BANNED << 16), NotBanned),
        (line(BANNED) + "GET / HTTP/1.1\r\n\r\n", WouldRefuse),
        (line(BANNED) + &line(ALLOWED), WouldRefuse),
        (line(ALLOWED) + &line(BANNED), NotBanned),
        // As HAProxy writes it.
        (from("fc00:dead:beef:4dad::29a"), WouldRefuse),
        (from("fc00:dead:beef:4dad::1:2345"), WouldRefuse),
        (from("fc00:dead:beef:4dad::2:0"), WouldRefuse),
        // Any port will do, and the port tells nothing.
        (tor.replace(" 666 80", " 0 0"), WouldRefuse),
        (tor.replace(" 666 80", " 65535 65535"), WouldRefuse),
        // Tor writes none of these, so they are none of the gate's business.
        (from("fc00:dead:beef:4dad::0:0"), NoHeader),
        (from("fc00:dead:beef:4dad::0"), NoHeader),
        (from("fc00:dead:beef:4dad::"), NoHeader),
        (from("fc00:dead:beef:4dad::0:029a"), NoHeader),
        (from("fc00:dead:beef:4dad::00:29a"), NoHeader),
        (from("fc00:dead:beef:4dad::0:29A"), NoHeader),
        (from("fc00:dead:beef:4dad::0:10000"), NoHeader),
        (from("fc00:dead:beef:4dad::0:0:29a"), NoHeader),
        (from("fc00:dead:beef:4dad:0:0:0:29a"), NoHeader),
        (from("fc00:dead:beef:4dad::1:0:29a"), NoHeader),
        (from("fc00:dead:beef:4dad::0.0.2.154"), NoHeader),
        (from("fc00:dead:beef:4dae::0:29a"), NoHeader),
        (from("::29a"), NoHeader),
        (tor.replace("PROXY", "proxy"), NoHeader),
        (tor.replace("TCP6", "TCP4"), NoHeader),
        (tor.replace("PROXY ", "PROXY  "), NoHeader),
        (tor.replace(" ::1", " ::2"), NoHeader),
        (tor.replace(" ::1", "  ::1"), NoHeader),
        (tor.replace(" 666 ", " 0666 "), NoHeader),
        (tor.replace(" 666 ", " 65536 "), NoHeader),
        (tor.replace(" 666 ", " 666666 "), NoHeader),
        (tor.replace(" 666 ", " -1 "), NoHeader),
        (tor.replace(" 666 ", "  "), NoHeader),
        (tor.replace(" 80\r", " 080\r"), NoHeader),
        (tor.replace(" 80\r", " 80 \r"), NoHeader),
        (tor.replace('\r', ""), NoHeader),
        (tor.replace("\r\n", "\r\r\n"), NoHeader),
        (format!("\r\n{tor}"), NoHeader),
        (format!(" {tor}"), NoHeader),
        ("PROXY UNKNOWN\r\n".to_owned(), NoHeader),
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), NoHeader),
        ("Q".to_owned(), NoHeader),
        ("PROXY TCP6 fc00:dead:beef:4dad:x".to_owned(), NoHeader),
    ]
    .into_iter()
    .map(|(text, outcome)| (text.escape_default().to_string(), text.into_bytes(), outcome))
    .collect();
    // A zero is taken for the end, and passes like any other.
    rows.push(("a zero".to_owned(), tor.replace("666", "6\x006").into_bytes(), Split));
    rows.push(("version 2".to_owned(), b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24".to_vec(), NoHeader));
    for length in 1..tor.len() {
        rows.push((format!("split behind byte {length}"), tor.as_bytes()[..length].to_vec(), Split));
    }
    rows
}

#[test]
fn every_row_of_first_bytes_ends_as_written_and_observing_harms_none() {
    inside("rows", |place| {
        let pins = place.pins()?;
        for home in HOMES {
            let service = Service::open(home, true)?;
            let gate = gate_for(&pins, &[&service], Mode::Observe)?;
            for (name, bytes, outcome) in rows() {
                let before = gate.totals()?;
                must_pass(&service, &bytes).with_context(|| format!("{name} on {home}"))?;
                let counted = since(&gate, before)?;
                ensure!(counted == [(outcome, 1)], "{name} on {home}: {counted:?}, not {outcome:?}");
            }
        }
        Ok(())
    });
}

#[test]
fn a_split_line_reaches_the_listener_whole() {
    inside("split", |place| {
        let pins = place.pins()?;
        let bytes = format!("{}hello", line(BANNED));
        for home in HOMES {
            let service = Service::open(home, true)?;
            let gate = gate_for(&pins, &[&service], Mode::Enforce)?;
            for at in 1..line(BANNED).len() {
                let before = gate.totals()?;
                let (first, rest) = bytes.as_bytes().split_at(at);
                let mut client = service.visit(first)?;
                client.write_all(rest)?;
                must_converse(client, &service, bytes.as_bytes()).with_context(|| format!("at {at}"))?;
                let counted = since(&gate, before)?;
                ensure!(
                    counted == [(GateOutcome::NotFirst, 1), (GateOutcome::Split, 1)],
                    "at {at} on {home}: {counted:?}"
                );
            }
            let mut client = service.visit(b"")?;
            for byte in bytes.as_bytes() {
                client.write_all(&[*byte])?;
            }
            must_converse(client, &service, bytes.as_bytes())?;
        }
        Ok(())
    });
}

#[test]
fn a_line_later_in_a_stream_does_nothing() {
    inside("later", |place| {
        let pins = place.pins()?;
        for home in HOMES {
            let service = Service::open(home, true)?;
            let gate = gate_for(&pins, &[&service], Mode::Enforce)?;
            for first in [line(ALLOWED), "x".to_owned(), "POST / HTTP/1.1\r\n\r\n".to_owned()] {
                let before = gate.totals()?;
                let mut client = service.visit(first.as_bytes())?;
                let mut server = service.accept()?;
                let mut sent = first.clone();
                // Each in a segment of its own: what went before is acknowledged, or is not.
                for is_read in [true, false, false] {
                    if is_read {
                        let mut got = vec![0; sent.len()];
                        server.read_exact(&mut got)?;
                        ensure!(got == sent.as_bytes(), "other bytes arrived");
                        sent.clear();
                    }
                    client.write_all(line(BANNED).as_bytes())?;
                    sent.push_str(&line(BANNED));
                }
                let mut got = vec![0; sent.len()];
                server.read_exact(&mut got)?;
                ensure!(got == sent.as_bytes(), "other bytes arrived");
                let counted = since(&gate, before)?;
                ensure!(counted.contains(&(GateOutcome::NotFirst, 3)), "{first:?}: {counted:?}");
                ensure!(counted.iter().all(|(outcome, _)| *outcome != GateOutcome::Refused), "{counted:?}");
            }
        }
        Ok(())
    });
}

#[test]
fn a_large_first_segment_is_judged_whole_or_arrives_whole() {
    inside("large", |place| {
        let pins = place.pins()?;
        // One write that the kernel sends in segments far above the MTU of `lo`, as its GSO allows.
        let body: Vec<u8> = (0..400_000u32).map(|index| (index % 251) as u8).collect();
        for home in HOMES {
            let service = Service::open(home, true)?;
            let gate = gate_for(&pins, &[&service], Mode::Enforce)?;
            let with = |circuit| [line(circuit).as_bytes(), &body].concat();
            let before = gate.totals()?;
            // The whole does not fit into the socket's buffers, so the write itself may end in a reset.
            let mut client = service.visit(b"")?;
            let written = client.write_all(&with(BANNED));
            let end = written.err().map_or_else(|| end_of(&mut client), |error| Ok(error.kind()))?;
            ensure!(
                matches!(end, io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe),
                "the client saw {end}"
            );
            ensure!(!service.is_woken(200)? && service.has_none(), "the listener woke");
            ensure!(service.left_over()?.is_empty(), "left over: {:?}", service.left_over()?);
            // Segments that were sent before the reset came find no connection.
            let counted: Vec<_> = since(&gate, before)?
                .into_iter()
                .filter(|(outcome, _)| *outcome != GateOutcome::NotFirst)
                .collect();
            ensure!(counted == [(GateOutcome::Refused, 1)], "{counted:?}");

            let bytes = with(ALLOWED);
            thread::scope(|scope| {
                let (service, bytes) = (&service, &bytes);
                let namespace = &place.namespace;
                let client = scope.spawn(move || namespace.run(|| service.visit(bytes)));
                let mut got = vec![0; bytes.len()];
                service.accept()?.read_exact(&mut got)?;
                ensure!(got == *bytes, "other bytes arrived");
                client.join().map_err(|_| anyhow::anyhow!("the client panicked"))??;
                Ok(())
            })?;
        }
        Ok(())
    });
}

/// What the host sends to its own address of another interface goes over `lo` as well. What its NAT redirects there, the
/// gate leaves to the listener.
#[test]
fn own_addresses_are_watched_and_redirected_connections_are_not() {
    inside("own", |place| {
        let pins = place.pins()?;
        place.namespace.ip(&["address", "add", "192.0.2.1/32", "dev", "lo"])?;
        let service = Service::open("192.0.2.1".parse()?, true)?;
        let gate = gate_for(&pins, &[&service], Mode::Enforce)?;
        must_refuse(&service, line(BANNED).as_bytes())?;
        nft(&format!(
            "add table ip moved; add chain ip moved out {{ type nat hook output priority -100; }}; \
             add rule ip moved out ip daddr 192.0.2.1 tcp dport 80 dnat to 192.0.2.1:{}",
            service.address.port()
        ))?;
        let before = gate.totals()?;
        let mut client = TcpStream::connect(("192.0.2.1", 80))?;
        client.set_read_timeout(Some(Duration::from_secs(10)))?;
        client.write_all(line(BANNED).as_bytes())?;
        must_converse(client, &service, line(BANNED).as_bytes())?;
        ensure!(since(&gate, before)? == [(GateOutcome::NotFirst, 1)], "{:?}", gate.totals()?);
        Ok(())
    });
}

/// The first segment is lost behind the gate, and its circuit banned before it is sent again.
#[test]
fn a_first_segment_sent_again_is_judged_again() {
    inside("again", |place| {
        let pins = place.pins()?;
        for home in HOMES {
            let service = Service::open(home, true)?;
            let mut gate = gate_for(&pins, &[&service], Mode::Enforce)?;
            nft(&format!(
                "add table inet lossy; add chain inet lossy seen {{ type filter hook prerouting priority -400; }}; \
                 add rule inet lossy seen tcp dport {} tcp flags & psh == psh drop",
                service.address.port()
            ))?;
            let before = gate.totals()?;
            let mut client = service.visit(line(ALLOWED).as_bytes())?;
            ensure!(since(&gate, before)?.contains(&(GateOutcome::NotBanned, 1)), "{:?}", gate.totals()?);
            gate.follow(&desired(Mode::Enforce, 1, &[ALLOWED])?)?;
            nft("delete table inet lossy")?;
            ensure!(end_of(&mut client)? == io::ErrorKind::ConnectionReset, "the client");
            ensure!(!service.is_woken(100)? && service.has_none(), "the listener woke");
            ensure!(since(&gate, before)?.contains(&(GateOutcome::Refused, 1)), "{:?}", gate.totals()?);
        }
        Ok(())
    });
}

#[test]
fn a_ban_ends_by_itself() {
    inside("expiry", |place| {
        let pins = place.pins()?;
        let service = Service::open(V4_HOME, true)?;
        let mut gate = gate_for(&pins, &[&service], Mode::Enforce)?;
        let until = Monotime(monotonic_ns()?).after(Duration::from_millis(700));
        let bans = [(NonZeroU32::new(BANNED).context("0")?, Ban { until, ban_id: 1 })].into();
        gate.follow(&Desired { mode: Mode::Enforce, generation: 1, bans })?;
        must_refuse(&service, line(BANNED).as_bytes())?;
        // The kernel's coarse clock lags by a tick.
        thread::sleep(Duration::from_millis(750));
        must_pass(&service, line(BANNED).as_bytes())
    });
}

#[test]
fn another_tor_process_has_other_circuits() {
    inside("generation", |place| {
        let pins = place.pins()?;
        let service = Service::open(V6_HOME, true)?;
        let mut gate = gate_for(&pins, &[&service], Mode::Enforce)?;
        must_refuse(&service, line(BANNED).as_bytes())?;
        let repairs = gate.follow(&desired(Mode::Enforce, 2, &[ALLOWED])?)?;
        ensure!((repairs.bans, repairs.settings) == (4, 1), "{repairs:?}");
        must_pass(&service, line(BANNED).as_bytes())?;
        must_refuse(&service, line(ALLOWED).as_bytes())
    });
}

#[test]
fn other_ports_and_mode_off_are_left_alone() {
    inside("ports", |place| {
        let pins = place.pins()?;
        let [watched, other] = [Service::open(V4_HOME, true)?, Service::open(V4_HOME, true)?];
        let mut gate = gate_for(&pins, &[&watched], Mode::Enforce)?;
        let before = gate.totals()?;
        must_pass(&other, line(BANNED).as_bytes())?;
        ensure!(since(&gate, before)?.is_empty(), "{:?}", gate.totals()?);
        gate.set_ports(&[other.port()?])?;
        must_refuse(&other, line(BANNED).as_bytes())?;
        must_pass(&watched, line(BANNED).as_bytes())?;
        gate.follow(&desired(Mode::Off, 1, &ALL_BANNED)?)?;
        let before = gate.totals()?;
        must_pass(&other, line(BANNED).as_bytes())?;
        ensure!(since(&gate, before)?.is_empty(), "{:?}", gate.totals()?);
        let many: Vec<NonZeroU16> = (1..=GATE_PORTS as u16 + 1).filter_map(NonZeroU16::new).collect();
        let refused = gate.set_ports(&many);
        ensure!(matches!(refused, Err(GateError::TooManyPorts(17))), "{refused:?}");
        gate.set_ports(&many[1..])?;
        Ok(())
    });
}

#[test]
fn bans_outlive_a_killed_loader_and_the_next_one_takes_over() {
    inside("killed", |place| {
        let service = Service::open(V4_HOME, true)?;
        let mut child = Command::new(env!("CARGO_BIN_EXE_gate_holder"))
            .arg(&place.root)
            .args([service.address.port(), BANNED as u16].map(|number| number.to_string()))
            .stdout(Stdio::piped())
            .spawn()?;
        let mut ready = String::new();
        BufReader::new(child.stdout.take().context("no output")?).read_line(&mut ready)?;
        ensure!(ready == "ready\n", "the holder said {ready:?}");
        must_refuse(&service, line(BANNED).as_bytes())?;
        child.kill()?;
        child.wait()?;
        must_refuse(&service, line(BANNED).as_bytes())?;
        must_pass(&service, line(ALLOWED).as_bytes())?;

        let pins = place.pins()?;
        let mut gate = Gate::open(&pins, &[service.port()?])?;
        // Before anything is decided, what was decided stays.
        must_refuse(&service, line(BANNED).as_bytes())?;
        ensure!(gate.totals()?.of(GateOutcome::Refused) == 3, "{:?}", gate.totals()?);
        gate.follow(&desired(Mode::Enforce, 1, &[])?)?;
        must_pass(&service, line(BANNED).as_bytes())
    });
}

#[test]
fn no_connection_is_let_through_while_the_program_is_replaced() {
    inside("replace", |place| {
        let pins = place.pins()?;
        let service = Service::open(V4_HOME, true)?;
        let mut gate = gate_for(&pins, &[&service], Mode::Enforce)?;
        let link = gate.attachment().link_id();
        let before = gate.totals()?;
        let is_over = AtomicBool::new(false);
        let refused = thread::scope(|scope| -> Result<u64> {
            let (service, is_over) = (&service, &is_over);
            let attack = scope.spawn(move || -> Result<u64> {
                let mut refused = 0;
                while !is_over.load(Ordering::Relaxed) {
                    let mut client = service.visit(line(BANNED).as_bytes())?;
                    ensure!(end_of(&mut client)? == io::ErrorKind::ConnectionReset, "not refused");
                    refused += 1;
                }
                Ok(refused)
            });
            let mut ids = Vec::new();
            let replaced = (|| -> Result<()> {
                for _ in 0..20 {
                    gate = Gate::open(&pins, &[service.port()?])?;
                    ids.push(gate.program()?.info()?.id());
                    ensure!(gate.attachment().link_id() == link, "another link");
                }
                Ok(())
            })();
            is_over.store(true, Ordering::Relaxed);
            let refused = attack.join().map_err(|_| anyhow::anyhow!("the attacker panicked"))??;
            replaced?;
            ids.dedup();
            ensure!(ids.len() == 20, "the program was not replaced: {ids:?}");
            Ok(refused)
        })?;
        ensure!(refused > 0 && !service.is_woken(100)? && service.has_none(), "let through");
        ensure!(
            since(&gate, before)? == [(GateOutcome::Refused, refused)],
            "{refused}: {:?}",
            gate.totals()?
        );
        Ok(())
    });
}

#[test]
fn what_somebody_undid_is_put_right() {
    inside("audit", |place| {
        let pins = place.pins()?;
        let service = Service::open(V4_HOME, true)?;
        let mut gate = gate_for(&pins, &[&service], Mode::Enforce)?;
        let wanted = desired(Mode::Enforce, 1, &ALL_BANNED)?;
        gate.follow(&wanted)?;
        ensure!(gate.audit(&wanted)? == tunicad::shell::gate::Repairs::default(), "repaired what is whole");
        let pin = gate.directory().join("link-lo");

        let mut rows = rows_of(&gate)?;
        rows.remove(&CircuitKey { generation: 1, circuit: BANNED })?;
        rows.insert(
            CircuitKey { generation: 1, circuit: 9 },
            CircuitBan { expires_ns: u64::MAX, ban_id: 0, reserved: 0 },
            0,
        )?;
        must_pass(&service, line(BANNED).as_bytes())?;
        let repairs = gate.audit(&wanted)?;
        ensure!((repairs.bans, repairs.link) == (2, 0), "{repairs:?}");
        must_refuse(&service, line(BANNED).as_bytes())?;
        must_pass(&service, line(9).as_bytes())?;

        fs::remove_file(&pin)?;
        must_refuse(&service, line(BANNED).as_bytes())?;
        ensure!(gate.audit(&wanted)?.link == 1 && pin.exists(), "the pin");

        let said = bpftool(&["link", "detach", "pinned", path(&pin)?])?;
        must_pass(&service, line(BANNED).as_bytes()).with_context(|| said)?;
        ensure!(gate.audit(&wanted)?.link == 1, "the link");
        must_refuse(&service, line(BANNED).as_bytes())?;
        ensure!(gate.audit(&wanted)?.link == 0, "the link is whole again");

        // A later daemon finds a link that holds nothing.
        bpftool(&["link", "detach", "pinned", path(&pin)?])?;
        drop(gate);
        let gate = Gate::open(&pins, &[service.port()?])?;
        must_refuse(&service, line(BANNED).as_bytes())?;

        let directory = gate.directory().to_owned();
        let _held_by_others = PinnedLink::from_pin(&pin)?;
        gate.detach()?;
        ensure!(!directory.exists(), "pins are left");
        must_pass(&service, line(BANNED).as_bytes())
    });
}

/// A gate of another layout hands over its link, and its pins go.
#[test]
fn an_earlier_layout_hands_over_its_link() {
    inside("layout", |place| {
        let pins = place.pins()?;
        let service = Service::open(V4_HOME, true)?;
        let gate = gate_for(&pins, &[&service], Mode::Enforce)?;
        let (link, directory) = (gate.attachment().link_id(), gate.directory().to_owned());
        drop(gate);
        let old = place.root.join("gate-v0123456789abcdef");
        fs::create_dir(&old)?;
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            fs::rename(entry.path(), old.join(entry.file_name()))?;
        }
        let gate = gate_for(&pins, &[&service], Mode::Enforce)?;
        ensure!(gate.attachment().link_id() == link && !old.exists(), "the link was not taken over");
        must_refuse(&service, line(BANNED).as_bytes())
    });
}

#[test]
fn a_full_table_is_told_and_the_rest_holds() {
    inside("full", |place| {
        let pins = place.pins()?;
        let service = Service::open(V4_HOME, true)?;
        let mut gate = Gate::open(&pins, &[service.port()?])?;
        let circuits: Vec<u32> = (1..=GATE_BANS as u32 + 5).collect();
        let error =
            gate.follow(&desired(Mode::Enforce, 1, &circuits)?).err().context("no error")?.to_string();
        ensure!(error.starts_with("5 of ") && error.contains("the listener refuses"), "{error}");
        must_refuse(&service, line(1).as_bytes())?;
        must_refuse(&service, line(GATE_BANS as u32).as_bytes())?;
        must_pass(&service, line(GATE_BANS as u32 + 1).as_bytes())?;
        gate.follow(&desired(Mode::Enforce, 1, &circuits[5..])?)?;
        must_refuse(&service, line(GATE_BANS as u32 + 5).as_bytes())
    });
}

#[test]
fn bpftool_prints_the_fields_and_loads_the_object() {
    inside("bpftool", |place| {
        let pins = place.pins()?;
        let service = Service::open(V4_HOME, true)?;
        let gate = gate_for(&pins, &[&service], Mode::Enforce)?;
        must_refuse(&service, line(BANNED).as_bytes())?;
        let dump = |map: &str| bpftool(&["map", "dump", "pinned", path(&gate.directory().join(map))?]);
        let settings = dump("GATE_SETTINGS")?;
        let port = format!("\"ports\": [{},0", service.address.port());
        for part in ["\"mode\": 2", "\"generation\": 1", &port] {
            ensure!(settings.contains(part), "no {part} in {settings}");
        }
        let bans = dump(CIRCUIT_BANS)?;
        for part in ["\"circuit\": 666", "\"expires_ns\": ", "\"ban_id\": 7"] {
            ensure!(bans.contains(part), "no {part} in {bans}");
        }
        let object = concat!(env!("CARGO_MANIFEST_DIR"), "/../ebpf/prebuilt/gate.o");
        let pin = place.root.join("by-bpftool");
        bpftool(&["prog", "load", object, path(&pin)?])?;
        let shown = bpftool(&["prog", "show", "pinned", path(&pin)?])?;
        ensure!(shown.contains("name circuit_gate"), "{shown}");
        Ok(())
    });
}

/// Frames that no socket sends, run through the program alone: it changes none and counts none but the whole one.
#[test]
fn frames_that_are_no_plain_segment_pass_unread() {
    inside("frames", |place| {
        let pins = place.pins()?;
        let service = Service::open(V4_HOME, true)?;
        let mut gate = Gate::open(&pins, &[NonZeroU16::new(PORT).context("0")?])?;
        gate.follow(&desired(Mode::Enforce, 1, &ALL_BANNED)?)?;
        drop(service);
        let data = line(BANNED).into_bytes();
        let segment = |flags: u8| {
            let mut bytes = tcp(flags, 5);
            bytes[2..4].copy_from_slice(&PORT.to_be_bytes());
            bytes.extend(&data);
            bytes
        };
        let of_v4 = |bytes: &[u8]| v4([127, 0, 0, 1], TCP).frame(bytes);
        let of_v6 = |bytes: &[u8]| v6([0; 16], TCP).frame(bytes);
        let whole = [of_v4(&segment(ACK | PSH)), of_v6(&segment(ACK | PSH))];
        let good = segment(ACK | PSH);
        let (mut with_options, mut later, mut first) =
            (v4([127, 0, 0, 1], TCP), v4([127, 0, 0, 1], TCP), v4([127, 0, 0, 1], TCP));
        with_options.options = 4;
        later.fragment = 3;
        first.more = true;
        let behind = |header: Vec<u8>, next: u8| v6([0; 16], next).frame(&[header, good.clone()].concat());
        let mut odd = vec![
            ethernet(IPV4, &[]),
            ethernet(IPV6, &[0x60; 7]),
            ethernet(0x0806, &[0; 28]),
            tagged(&[0x8100], IPV4, &v4([127, 0, 0, 1], TCP).packet(&good)),
            // Another family in the frame than its header says.
            ethernet(IPV4, &v6([0; 16], TCP).packet(&good)),
            ethernet(IPV6, &v4([127, 0, 0, 1], TCP).packet(&good)),
            v4([127, 0, 0, 1], UDP).frame(&udp(PORT, PORT, 64, 0)),
            v6([0; 16], UDP).frame(&udp(PORT, PORT, 64, 0)),
            with_options.frame(&good),
            later.frame(&good),
            first.frame(&good),
            behind(extension(TCP, 0), 0),
            behind(fragment(TCP, 0, true), 44),
            of_v4(&segment(0)),
            of_v4(&segment(SYN)),
            of_v6(&segment(SYN | ACK)),
            of_v4(&segment(ACK | RST)),
            of_v6(&segment(ACK | RST)),
        ];
        for frame in &whole {
            // Every shorter frame of more than the link header; those that keep a byte of data count.
            odd.extend((14..frame.len() - data.len() + 1).map(|length| frame[..length].to_vec()));
        }
        for (frame, counted) in odd.iter().map(|frame| (frame, 0)).chain(whole.iter().map(|frame| (frame, 1)))
        {
            let before = gate.totals()?;
            let mut out = vec![0; frame.len() + 256];
            let options =
                TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::new() };
            let ran = match gate.program()?.test_run(options) {
                Ok(ran) => ran,
                // The kernel itself builds no packet of so few bytes.
                Err(error) if frame.len() < 54 => {
                    let text = format!("{error:?}");
                    ensure!(text.contains("InvalidInput"), "{text}");
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            ensure!(ran.return_value == u32::MAX, "not TC_ACT_UNSPEC but {}", ran.return_value);
            out.truncate(ran.data_size_out as usize);
            ensure!(out == *frame, "a frame was changed");
            // No socket of this namespace sent it, so it is nobody's first segment.
            let expected = if counted == 1 { vec![(GateOutcome::NotFirst, 1)] } else { Vec::new() };
            ensure!(since(&gate, before)? == expected, "{frame:02x?}: {:?}", since(&gate, before)?);
        }
        Ok(())
    });
}

/// The port in frames.
const PORT: u16 = 8080;

fn rows_of(gate: &Gate) -> Result<HashMap<MapData, CircuitKey, CircuitBan>> {
    let map = MapData::from_pin(gate.directory().join(CIRCUIT_BANS))?;
    Ok(HashMap::try_from(Map::HashMap(map))?)
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is no text")
}

fn nft(commands: &str) -> Result<()> {
    let output = Command::new("nft").arg(commands).output().context("this test needs nft")?;
    ensure!(output.status.success(), "nft: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn bpftool(arguments: &[&str]) -> Result<String> {
    let output = Command::new("bpftool").args(arguments).output().context("this test needs bpftool")?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "bpftool {arguments:?} failed: {err}{out}");
    Ok(out.into_owned())
}
