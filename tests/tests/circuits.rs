//! Circuits of a real Tor network through the daemon and the ingress: what the operator sees of them, and what his word does.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper that fails is a test that fails"
)]

use std::{
    io::Write as _,
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::net::UnixStream,
};

use nix::sys::signal::Signal;
use serde_json::Value;
use tunica_api::{front::Digest, wire};
use tunica_tests::{
    beside::Beside,
    ingress::{Backend, get, header, read_answer},
    lab::Lab,
    testnet::{Backend as Behind, Client, Profile, Service, ServiceOptions, shared},
};

/// A stream of a circuit that answers.
fn open(client: &Client, service: &Service) -> (TcpStream, String) {
    for _ in 0..4 {
        let (mut stream, user) = client.connect_afresh(service.onion(), 80).unwrap();
        if ask(&mut stream) {
            return (stream, user);
        }
    }
    panic!("no circuit carries a request");
}

fn ask(stream: &mut TcpStream) -> bool {
    let mut answer = Vec::new();
    stream.write_all(get("/").as_bytes()).is_ok()
        && read_answer(stream, &mut answer).is_ok()
        && answer.starts_with(b"HTTP/1.1 200")
}

fn rows(lab: &Lab) -> Vec<Value> {
    let answer = lab.json(&["circuits", "--limit", "100"]).unwrap();
    answer["digest"]["circuits"].as_array().cloned().unwrap_or_default()
}

fn metric(lab: &Lab, series: &str) -> f64 {
    lab.metric(series).unwrap().unwrap_or_else(|| panic!("no {series}"))
}

#[test]
fn streams_of_one_circuit_share_its_fate_and_another_circuit_does_not() {
    // The network comes up meanwhile.
    let network = std::thread::spawn(|| shared(Profile::Usual).unwrap());
    let mut lab = Lab::new("circuits").unwrap();
    let listen = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let backend = Backend::start().unwrap();
    lab.configure(
        "mode = \"observe\"",
        &format!(
            "[ingress]\nenabled = true\nlisten = \"{listen}\"\nbackends = [\"{}\"]\nkeep_alive_seconds = 120\n\
             [circuits]\nprofile = \"web\"",
            backend.address()
        ),
    )
    .unwrap();
    lab.start().unwrap();
    let ran = lab.tunica(&["circuits"]).unwrap();
    assert!(ran.code == Some(4) && ran.err.contains("tunica-front"), "{ran:?}");
    assert_eq!(metric(&lab, "tunica_front_up"), 0.0);
    let _front = Beside::start(&lab).unwrap();
    lab.wait_for("the ingress", |lab| Ok(lab.metric("tunica_front_up")? == Some(1.0))).unwrap();

    let network = network.join().unwrap();
    let service = network.service(&ServiceOptions::new(80, Behind::Tcp(listen))).unwrap();
    let client = network.client().unwrap();
    let ((mut first, user), (mut other, _)) = (open(&client, &service), open(&client, &service));
    let mut second = client.connect(service.onion(), 80, &user).unwrap();
    assert!(ask(&mut second));
    lab.wait_for("both circuits", |lab| {
        let rows = rows(lab);
        let open = |count: u64| rows.iter().any(|row| row["open"] == count);
        Ok(open(2) && open(1))
    })
    .unwrap();
    let with_two = rows(&lab).into_iter().find(|row| row["open"] == 2).expect("a circuit with two streams");
    let circuit = with_two["circuit"].as_u64().unwrap().to_string();
    // The number is tor's own.
    let known = service.control_address().connect().unwrap().information("circuit-status").unwrap();
    assert!(
        known
            .lines()
            .any(|line| line.starts_with(&format!("{circuit} BUILT")) && line.contains("HS_SERVICE_REND")),
        "{circuit} in {known}"
    );

    let dry = lab.json(&["circuit", "ban", &circuit, "--dry-run"]).unwrap();
    assert_eq!(dry["dry_run"], true);
    assert!(ask(&mut first));
    let said = lab.must(&["circuit", "ban", &circuit, "--for", "1h"]).unwrap();
    assert!(said.contains(&format!("tunica circuit unban {circuit}")), "{said}");
    lab.wait_for("the ban", |lab| Ok(lab.metric("tunica_circuits_banned")? == Some(1.0))).unwrap();
    assert!(!ask(&mut first) && !ask(&mut second), "both streams of the banned circuit must end");
    assert!(ask(&mut other), "the other circuit must not feel it");
    // tor keeps the circuit, so the user's next stream comes through it, too.
    let refused = client.connect(service.onion(), 80, &user).is_ok_and(|mut stream| ask(&mut stream));
    assert!(!refused, "a banned circuit was served");
    assert!(metric(&lab, "tunica_front_refused_total{refusal=\"banned\"}") >= 1.0);
    let shown = lab.must(&["circuits"]).unwrap();
    assert!(shown.contains("banned") && shown.contains("1 banned"), "{shown}");

    lab.must(&["circuit", "unban", &circuit]).unwrap();
    lab.wait_for("the ban's end", |lab| Ok(lab.metric("tunica_circuits_banned")? == Some(0.0))).unwrap();
    let mut again = client.connect(service.onion(), 80, &user).unwrap();
    assert!(ask(&mut again), "a lifted ban");
    lab.must(&["circuit", "promote", &circuit]).unwrap();
    lab.wait_for("the promotion", |lab| Ok(lab.metric("tunica_circuits_vip")? == Some(1.0))).unwrap();

    // The daemon's death ends no stream and refuses none.
    let before = metric(&lab, "tunica_front_connections_total");
    lab.end(Signal::SIGKILL).unwrap();
    assert!(ask(&mut other) && ask(&mut again));
    let (mut meanwhile, _) = open(&client, &service);
    lab.start().unwrap();
    lab.wait_for("the ingress", |lab| Ok(lab.metric("tunica_front_up")? == Some(1.0))).unwrap();
    assert!(ask(&mut other) && ask(&mut meanwhile));
    lab.wait_for("the counters", |lab| {
        Ok(lab.metric("tunica_front_connections_total")?.is_some_and(|now| now > before))
    })
    .unwrap();
    assert!(metric(&lab, "tunica_circuits_new_total") >= 3.0);
    assert!(metric(&lab, "tunica_front_bytes_total{direction=\"in\"}") > 0.0);
}

#[test]
fn a_ban_closes_the_circuit_at_tor_and_ends_with_the_tor_process() {
    let network = shared(Profile::Usual).unwrap();
    let mut lab = Lab::new("torcontrol").unwrap();
    let listen = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let backend = Backend::start().unwrap();
    let mut service = network.service(&ServiceOptions::new(80, Behind::Tcp(listen))).unwrap();
    lab.configure(
        "mode = \"observe\"",
        &format!(
            "[tor]\ncontrol = \"unix:{}\"\n[ingress]\nenabled = true\nlisten = \"{listen}\"\nbackends = [\"{}\"]\n\
             keep_alive_seconds = 120\n[circuits]\nprofile = \"web\"",
            service.control_address().socket.display(),
            backend.address()
        ),
    )
    .unwrap();
    lab.start().unwrap();
    let _front = Beside::start(&lab).unwrap();
    for series in ["tunica_front_up", "tunica_tor_control_up"] {
        lab.wait_for(series, |lab| Ok(lab.metric(series)? == Some(1.0))).unwrap();
    }
    let client = network.client().unwrap();
    let (mut stream, user) = open(&client, &service);
    lab.wait_for("the circuit", |lab| Ok(rows(lab).iter().any(|row| row["open"] == 1))).unwrap();
    let circuit = rows(&lab).into_iter().find(|row| row["open"] == 1).unwrap()["circuit"].to_string();
    let is_there = |service: &Service, circuit: &str| {
        let known = service.control_address().connect().unwrap().information("circuit-status").unwrap();
        known.lines().any(|line| line.starts_with(&format!("{circuit} ")))
    };
    assert!(is_there(&service, &circuit));
    lab.must(&["circuit", "ban", &circuit, "--for", "1h"]).unwrap();
    lab.wait_for("the circuit's end", |_| Ok(!is_there(&service, &circuit))).unwrap();
    assert!(!ask(&mut stream), "the client must see it");
    lab.wait_for("the count", |lab| {
        Ok(lab.metric("tunica_tor_circuits_closed_total{outcome=\"accepted\"}")? == Some(1.0))
    })
    .unwrap();
    // Introduced anew the same visitor has another circuit, of which nothing is known.
    let mut again = None;
    for _ in 0..4 {
        again = client
            .connect(service.onion(), 80, &user)
            .ok()
            .filter(|stream| ask(&mut stream.try_clone().unwrap()));
        if again.is_some() {
            break;
        }
    }
    assert!(again.is_some(), "a new circuit of the same visitor");

    // Numbers begin again with the next tor process, so nothing may be held against them.
    lab.wait_for("the new circuit", |lab| Ok(rows(lab).iter().any(|row| row["open"] == 1))).unwrap();
    service.restart().unwrap();
    lab.wait_for("the new tor", |lab| {
        Ok(lab.metric("tunica_tor_control_up")? == Some(1.0)
            && lab.metric("tunica_circuits_tracked")? == Some(0.0))
    })
    .unwrap();
    assert_eq!(metric(&lab, "tunica_circuits_banned"), 0.0);
    let (mut stream, _) = open(&client, &service);
    assert!(ask(&mut stream));
    // A tor that is gone is said, and tells nothing of those who are served.
    drop(service);
    lab.wait_for("the end of tor", |lab| Ok(lab.metric("tunica_tor_control_up")? == Some(0.0))).unwrap();
    let status = lab.json(&["status"]).unwrap();
    let warnings = status["warnings"].to_string();
    assert!(warnings.contains("circuits are neither watched nor closed"), "{warnings}");
}

#[test]
fn every_metric_of_the_ingress_moves_by_its_cause() {
    let mut lab = Lab::new("ingressmetrics").unwrap();
    let listen = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let backend = Backend::start().unwrap();
    lab.configure(
        "mode = \"observe\"",
        &format!(
            "[ingress]\nenabled = true\nlisten = \"{listen}\"\nbackends = [\"{}\"]\nhealth_every_seconds = 1\n\
             queue_seconds = 30\n[circuits]\nprofile = \"gated\"\nmax_concurrent_connections = 2\n\
             table_size = 1024\nshadow = [\"slow_lane\", \"vip_rate\"]\nvip_requests_per_10_seconds = 20",
            backend.address()
        ),
    )
    .unwrap();
    lab.start().unwrap();
    let front = Beside::start(&lab).unwrap();
    let becomes = |lab: &mut Lab, series: &str, wanted: f64| {
        let what = format!("{series} {wanted}");
        lab.wait_for(&what, |lab| Ok(lab.metric(series)? == Some(wanted)))
            .unwrap_or_else(|error| panic!("{error:#}\n{}", lab.must(&["circuits"]).unwrap()));
    };
    becomes(&mut lab, "tunica_front_up", 1.0);
    becomes(&mut lab, "tunica_front_active_max", 2.0);
    becomes(&mut lab, "tunica_circuits_capacity", 1_024.0);
    let backend_up = format!("tunica_front_backend_up{{backend=\"{}\"}}", backend.address());
    becomes(&mut lab, &backend_up, 1.0);
    backend.set_well(false);
    becomes(&mut lab, &backend_up, 0.0);
    backend.set_well(true);
    becomes(&mut lab, &backend_up, 1.0);
    let stream = |circuit: u32, path: &str| {
        let mut stream = TcpStream::connect(listen).unwrap();
        stream.write_all(format!("{}{}", header(circuit), get(path)).as_bytes()).unwrap();
        stream
    };
    let served: Vec<_> = (1..=3).map(|circuit| stream(circuit, "/slow/4000")).collect();
    becomes(&mut lab, "tunica_front_active", 2.0);
    becomes(&mut lab, "tunica_front_waiting", 1.0);
    becomes(&mut lab, "tunica_front_waiting_max", 498.0);
    lab.wait_for("the wait", |lab| {
        Ok(lab.metric("tunica_front_wait_seconds")?.is_some_and(|wait| wait > 0.0))
    })
    .unwrap();
    becomes(&mut lab, "tunica_circuits_tracked", 3.0);
    becomes(&mut lab, "tunica_circuits_new_total", 3.0);
    becomes(&mut lab, "tunica_front_connections_total", 3.0);
    becomes(&mut lab, "tunica_front_requests_total", 3.0);
    for mut stream in served {
        read_answer(&mut stream, &mut Vec::new()).unwrap();
    }
    // The tenth connection within 10 s is an offence.
    let _flood: Vec<_> = (0..12).map(|_| stream(9, "/")).collect();
    lab.wait_for("the tarpit", |lab| {
        Ok(lab.metric("tunica_front_tarpitted")?.is_some_and(|held| held >= 1.0))
    })
    .unwrap();
    lab.must(&["circuit", "promote", "1"]).unwrap();
    let _vip = stream(1, "/slow/4000");
    // Twenty requests within 10 s would go behind others', and would be too many even for a VIP.
    for (circuit, whose) in [(11, "anybody"), (1, "vip")] {
        let mut stream = stream(circuit, "/");
        for _ in 0..25 {
            read_answer(&mut stream, &mut Vec::new()).unwrap();
            stream.write_all(get("/").as_bytes()).unwrap();
        }
        let word = if whose == "vip" { "vip_rate" } else { "slow_lane" };
        let series = format!("tunica_front_would_refuse_total{{refusal=\"{word}\",whose=\"{whose}\"}}");
        lab.wait_for("the shadow", |lab| Ok(lab.metric(&series)?.is_some_and(|count| count >= 5.0))).unwrap();
    }
    assert!(lab.must(&["circuits"]).unwrap().contains("slow_lane would have refused"));
    becomes(&mut lab, "tunica_circuits_vip", 1.0);
    lab.must(&["circuit", "ban", "2"]).unwrap();
    becomes(&mut lab, "tunica_circuits_banned", 1.0);
    drop(stream(2, "/"));
    becomes(&mut lab, "tunica_front_refused_total{refusal=\"banned\"}", 1.0);
    for direction in ["in", "out"] {
        assert!(metric(&lab, &format!("tunica_front_bytes_total{{direction=\"{direction}\"}}")) > 0.0);
    }
    // What the front itself found out outlives it, in the next one.
    let offends = |circuit: u32| -> Vec<_> { (0..40).map(|_| stream(circuit, "/")).collect() };
    let _held = offends(10);
    becomes(&mut lab, "tunica_circuits_banned", 2.0);
    drop(front);
    becomes(&mut lab, "tunica_front_up", 0.0);
    let front = Beside::start(&lab);
    becomes(&mut lab, "tunica_circuits_banned", 2.0);
    let refused = metric(&lab, "tunica_front_refused_total{refusal=\"banned\"}");
    drop(stream(10, "/"));
    becomes(&mut lab, "tunica_front_refused_total{refusal=\"banned\"}", refused + 1.0);
    drop(front);
    becomes(&mut lab, "tunica_front_up", 0.0);
    // A fault of the front itself cannot be had from outside; what the daemon makes of one, told by somebody it believes.
    let mut line = UnixStream::connect(lab.path("front.sock")).unwrap();
    let digest = Digest { process: 1, panics: 2, ..Digest::default() };
    line.write_all(&wire::write_message(&digest).unwrap()).unwrap();
    becomes(&mut lab, "tunica_front_panics_total", 2.0);
}

#[test]
fn the_gate_refuses_banned_circuits_before_the_ingress_wakes() {
    let mut lab = Lab::new("gated").unwrap();
    lab.host.ip(&["link", "set", "lo", "up"]).unwrap();
    let listen = SocketAddr::from(([127, 0, 0, 1], 10_000));
    let backend = lab.host.run(Backend::start).unwrap();
    let configuration = |gate: &str| {
        format!(
            "[ingress]\nenabled = true\nlisten = \"{listen}\"\nbackends = [\"{}\"]\ngate = \"{gate}\"\n\
             [circuits]\nprofile = \"web\"",
            backend.address()
        )
    };
    lab.configure("mode = \"observe\"", &configuration("enforce")).unwrap();
    lab.start().unwrap();
    let _front = Beside::start_on_host(&lab).unwrap();
    for series in ["tunica_front_up", "tunica_gate_attached"] {
        lab.wait_for(series, |lab| Ok(lab.metric(series)? == Some(1.0))).unwrap();
    }
    let outcome = |lab: &Lab, outcome: &str| {
        metric(lab, &format!("tunica_gate_segments_total{{outcome=\"{outcome}\"}}"))
    };
    let is_served = |lab: &Lab, circuit: u32, pieces: usize| {
        lab.host
            .run(|| {
                let mut stream = TcpStream::connect(listen)?;
                stream.set_nodelay(true)?;
                let text = format!("{}{}", header(circuit), get("/"));
                for piece in text.as_bytes().chunks(text.len().div_ceil(pieces)) {
                    // It may be refused meanwhile.
                    if stream.write_all(piece).is_err() {
                        return Ok(false);
                    }
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
                let mut answer = Vec::new();
                Ok(read_answer(&mut stream, &mut answer).is_ok() && answer.starts_with(b"HTTP/1.1 200"))
            })
            .unwrap()
    };
    assert!(is_served(&lab, 7, 1) && is_served(&lab, 8, 1));
    lab.must(&["circuit", "ban", "7", "--for", "1h"]).unwrap();
    lab.wait_for("the ban", |lab| Ok(lab.metric("tunica_circuits_banned")? == Some(1.0))).unwrap();
    let connections = metric(&lab, "tunica_front_connections_total");
    assert!(!is_served(&lab, 7, 1));
    lab.wait_for("the count", |lab| Ok(outcome(lab, "refused") == 1.0)).unwrap();
    assert!(is_served(&lab, 8, 1), "another circuit");
    lab.wait_for("the other circuit", |lab| Ok(outcome(lab, "not_banned") == 3.0)).unwrap();
    lab.wait_for("the ingress", |lab| {
        Ok(lab.metric("tunica_front_connections_total")? == Some(connections + 1.0))
    })
    .unwrap();
    assert_eq!(metric(&lab, "tunica_front_refused_total{refusal=\"banned\"}"), 0.0, "the ingress was asked");
    // What the gate cannot read whole the ingress reads.
    assert!(!is_served(&lab, 7, 10));
    lab.wait_for("the ingress", |lab| {
        Ok(lab.metric("tunica_front_refused_total{refusal=\"banned\"}")? == Some(1.0)
            && outcome(lab, "split") >= 1.0)
    })
    .unwrap();
    // It needs no daemon.
    lab.end(Signal::SIGKILL).unwrap();
    assert!(!is_served(&lab, 7, 1) && is_served(&lab, 8, 1));
    // Observing, the ingress refuses.
    lab.configure("mode = \"observe\"", &configuration("observe")).unwrap();
    lab.start().unwrap();
    lab.wait_for("the ingress", |lab| Ok(lab.metric("tunica_front_up")? == Some(1.0))).unwrap();
    lab.must(&["circuit", "ban", "8"]).unwrap();
    lab.wait_for("the ban", |lab| Ok(lab.metric("tunica_circuits_banned")? == Some(2.0))).unwrap();
    assert!(!is_served(&lab, 8, 1));
    lab.wait_for("the count", |lab| Ok(outcome(lab, "would_refuse") == 1.0)).unwrap();
}
