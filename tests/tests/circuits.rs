//! Circuits of a real Tor network through the daemon and the ingress: what the operator sees of them, and what his word does.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper that fails is a test that fails"
)]

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    num::NonZeroUsize,
    os::unix::net::{UnixListener, UnixStream},
};

use nix::sys::signal::Signal;
use serde_json::Value;
use tunica_api::{front::Digest, wire};
use tunica_pow::{Challenge, Nonce, solve};
use tunica_tests::{
    beside::Beside,
    fate::{self, Stage},
    ingress::{Backend, answers, free_address, get, header, open, read_answer},
    lab::{Lab, PAGES},
    testnet::{Backend as Behind, Profile, Service, ServiceOptions, shared},
};

fn rows(lab: &Lab) -> Vec<Value> {
    let answer = lab.json(&["circuits", "--limit", "100"]).unwrap();
    answer["digest"]["circuits"].as_array().cloned().unwrap_or_default()
}

/// The daemon measures this machine, which other tests load meanwhile; that is no attack.
fn stay_calm(lab: &Lab) {
    lab.must(&["threat", "set", "calm"]).unwrap();
}

fn metric(lab: &Lab, series: &str) -> f64 {
    lab.metric(series).unwrap().unwrap_or_else(|| panic!("no {series}"))
}

#[test]
fn streams_of_one_circuit_share_its_fate_and_another_circuit_does_not() {
    // The network comes up meanwhile.
    let network = std::thread::spawn(|| shared(Profile::Usual).unwrap());
    let mut lab = Lab::new("circuits").unwrap();
    let listen = free_address().unwrap();
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
    stay_calm(&lab);
    let ran = lab.tunica(&["circuits"]).unwrap();
    assert!(ran.code == Some(4) && ran.err.contains("tunica-front"), "{ran:?}");
    assert_eq!(metric(&lab, "tunica_front_up"), 0.0);
    // By these an alert tells an ingress that never started from none that is to be.
    assert_eq!(metric(&lab, "tunica_front_wanted"), 1.0);
    assert_eq!(metric(&lab, "tunica_haproxy_wanted"), 0.0);
    let _front = Beside::start(&lab).unwrap();
    lab.wait_for("the ingress", |lab| Ok(lab.metric("tunica_front_up")? == Some(1.0))).unwrap();

    let network = network.join().unwrap();
    let service = network.service(&ServiceOptions::new(80, Behind::Tcp(listen))).unwrap();
    let client = network.client().unwrap();
    let ((mut first, user), (mut other, _)) =
        (open(&client, &service).unwrap(), open(&client, &service).unwrap());
    let mut second = client.connect(service.onion(), 80, &user).unwrap();
    assert!(answers(&mut second));
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
    assert!(answers(&mut first));
    let said = lab.must(&["circuit", "ban", &circuit, "--for", "1h"]).unwrap();
    assert!(said.contains(&format!("tunica circuit unban {circuit}")), "{said}");
    lab.wait_for("the ban", |lab| Ok(lab.metric("tunica_circuits_banned")? == Some(1.0))).unwrap();
    assert!(!answers(&mut first) && !answers(&mut second), "both streams of the banned circuit must end");
    assert!(answers(&mut other), "the other circuit must not feel it");
    // tor keeps the circuit, so the user's next stream comes through it, too.
    let refused = client.connect(service.onion(), 80, &user).is_ok_and(|mut stream| answers(&mut stream));
    assert!(!refused, "a banned circuit was served");
    assert!(metric(&lab, "tunica_front_refused_total{refusal=\"banned\"}") >= 1.0);
    let shown = lab.must(&["circuits"]).unwrap();
    assert!(shown.contains("banned") && shown.contains("1 banned"), "{shown}");

    lab.must(&["circuit", "unban", &circuit]).unwrap();
    lab.wait_for("the ban's end", |lab| Ok(lab.metric("tunica_circuits_banned")? == Some(0.0))).unwrap();
    let mut again = client.connect(service.onion(), 80, &user).unwrap();
    assert!(answers(&mut again), "a lifted ban");
    lab.must(&["circuit", "promote", &circuit]).unwrap();
    lab.wait_for("the promotion", |lab| Ok(lab.metric("tunica_circuits_vip")? == Some(1.0))).unwrap();
    let said = lab.must(&["circuit", "unban", &circuit]).unwrap();
    assert!(said.contains("banned no longer") && said.contains("what else it is stays"), "{said}");
    let shown = lab.must(&["explain", "circuit", &circuit]).unwrap();
    assert!(shown.contains("an operator promoted it"), "{shown}");
    let said = lab.must(&["circuit", "demote", &circuit]).unwrap();
    assert!(said.contains("past the queue no longer") && said.contains("a ban stays"), "{said}");
    lab.wait_for("the demotion", |lab| Ok(lab.metric("tunica_circuits_vip")? == Some(0.0))).unwrap();

    // The daemon's death ends no stream and refuses none.
    let before = metric(&lab, "tunica_front_connections_total");
    lab.end(Signal::SIGKILL).unwrap();
    assert!(answers(&mut other) && answers(&mut again));
    let (mut meanwhile, _) = open(&client, &service).unwrap();
    lab.start().unwrap();
    lab.wait_for("the ingress", |lab| Ok(lab.metric("tunica_front_up")? == Some(1.0))).unwrap();
    assert!(answers(&mut other) && answers(&mut meanwhile));
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
    let listen = free_address().unwrap();
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
    let answered = |lab: &Lab| metric(lab, "tunica_tor_control_response_seconds_count");
    assert!(answered(&lab) >= 1.0, "tor has answered the login");
    let client = network.client().unwrap();
    let (mut stream, user) = open(&client, &service).unwrap();
    lab.wait_for("the circuit", |lab| Ok(rows(lab).iter().any(|row| row["open"] == 1))).unwrap();
    let circuit = rows(&lab).into_iter().find(|row| row["open"] == 1).unwrap()["circuit"].to_string();
    let is_there = |service: &Service, circuit: &str| {
        let known = service.control_address().connect().unwrap().information("circuit-status").unwrap();
        known.lines().any(|line| line.starts_with(&format!("{circuit} ")))
    };
    assert!(is_there(&service, &circuit));
    let before = answered(&lab);
    lab.must(&["circuit", "ban", &circuit, "--for", "1h"]).unwrap();
    lab.wait_for("the circuit's end", |_| Ok(!is_there(&service, &circuit))).unwrap();
    lab.wait_for("tor's answer", |lab| Ok(answered(lab) > before)).unwrap();
    assert!(!answers(&mut stream), "the client must see it");
    lab.wait_for("the count", |lab| {
        Ok(lab.metric("tunica_tor_circuits_closed_total{outcome=\"accepted\"}")? == Some(1.0))
    })
    .unwrap();
    // Introduced anew the same visitor has another circuit, of which nothing is known.
    let _again = fate::comes_back(&client, service.onion(), &user).unwrap();

    // Numbers begin again with the next tor process, so nothing may be held against them.
    lab.wait_for("the new circuit", |lab| Ok(rows(lab).iter().any(|row| row["open"] == 1))).unwrap();
    service.restart().unwrap();
    lab.wait_for("the new tor", |lab| {
        Ok(lab.metric("tunica_tor_control_up")? == Some(1.0)
            && lab.metric("tunica_circuits_tracked")? == Some(0.0))
    })
    .unwrap();
    assert_eq!(metric(&lab, "tunica_circuits_banned"), 0.0);
    let (mut stream, _) = open(&client, &service).unwrap();
    assert!(answers(&mut stream));
    // A tor that is gone is said, and tells nothing of those who are served.
    drop(service);
    lab.wait_for("the end of tor", |lab| Ok(lab.metric("tunica_tor_control_up")? == Some(0.0))).unwrap();
    assert_eq!(metric(&lab, "tunica_tor_control_wanted"), 1.0);
    let status = lab.json(&["status"]).unwrap();
    let warnings = status["warnings"].to_string();
    assert!(warnings.contains("circuits are neither watched nor closed"), "{warnings}");
}

/// As the daemon's unit has it: without the capability to look into other processes (CAP_NET_ADMIN, CAP_PERFMON and CAP_BPF are
/// left) and with a group of its own, in a `/proc` that hides the others (`ProtectProc=invisible`) but from the group of root.
const AS_THE_UNIT: [&str; 7] = [
    "unshare",
    "--mount",
    "--propagation",
    "private",
    "sh",
    "-c",
    "mount -t proc -o hidepid=invisible proc /proc && exec setpriv --regid 65534 --clear-groups \
     --bounding-set=-all,+net_admin,+cap_38,+cap_39 --inh-caps=-all,+net_admin,+cap_38,+cap_39 --no-new-privs \"$0\" \"$@\"",
];

/// Which tor process each daemon so far took its tor for.
fn generations(lab: &Lab) -> Vec<u64> {
    let log = lab.log();
    let lines = log.lines().filter(|line| line.contains("tor_control_connected"));
    lines.filter_map(|line| line.split("generation=").nth(1)?.trim().parse().ok()).collect()
}

#[test]
fn what_is_known_of_circuits_outlives_daemons_that_cannot_see_tor_s_process() {
    let network = shared(Profile::Usual).unwrap();
    let mut lab = Lab::new("hidden").unwrap();
    let listen = free_address().unwrap();
    let backend = Backend::start().unwrap();
    let mut service = network.service(&ServiceOptions::new(80, Behind::Tcp(listen))).unwrap();
    lab.configure(
        "mode = \"observe\"",
        &format!(
            "[tor]\ncontrol = \"unix:{}\"\n[ingress]\nenabled = true\nlisten = \"{listen}\"\nbackends = [\"{}\"]\n\
             keep_alive_seconds = 300\n[circuits]\nprofile = \"web\"",
            service.control_address().socket.display(),
            backend.address()
        ),
    )
    .unwrap();
    let stat = format!("/proc/{}/stat", service.pid().unwrap());
    let sees_tor = |wrapper: &[&str]| {
        let (first, rest) = wrapper.split_first().unwrap();
        std::process::Command::new(first).args(rest).args(["cat", &stat]).output().unwrap().status.success()
    };
    assert!(sees_tor(&["env"]) && !sees_tor(&AS_THE_UNIT));

    // The ingress follows the daemon that runs now, and which tor process that one takes its tor for.
    let followed = |lab: &mut Lab, starts: usize| {
        lab.wait_for("the daemon's tor", |lab| Ok(generations(lab).len() >= starts)).unwrap();
        let generation = *generations(lab).last().unwrap();
        lab.wait_for("the ingress", |lab| {
            let answer = lab.json(&["circuits"])?;
            Ok(answer["digest"]["generation"].as_u64() == Some(generation))
        })
        .unwrap_or_else(|error| panic!("{error:#}\n{:#}", lab.json(&["circuits"]).unwrap()));
        generation
    };
    lab.start_through(&AS_THE_UNIT).unwrap();
    let mut front = Beside::start(&lab).unwrap();
    let first = followed(&mut lab, 1);

    // Numbers that tor itself does not come to.
    let (good, bad) = (4_000_000_001, 4_000_000_002);
    let stream = |circuit: u32| {
        let mut stream = TcpStream::connect(listen).unwrap();
        stream.write_all(header(circuit).as_bytes()).unwrap();
        stream
    };
    let (mut kept, mut banned) = (stream(good), stream(bad));
    assert!(answers(&mut kept) && answers(&mut banned));
    lab.must(&["circuit", "ban", &bad.to_string(), "--for", "1h"]).unwrap();
    lab.wait_for("the ban", |lab| Ok(lab.metric("tunica_circuits_banned")? == Some(1.0))).unwrap();
    assert!(!answers(&mut stream(bad)));

    for (starts, signal) in [(2, Signal::SIGTERM), (3, Signal::SIGKILL), (4, Signal::SIGTERM)] {
        lab.end(signal).unwrap();
        lab.start_through(&AS_THE_UNIT).unwrap();
        assert_eq!(followed(&mut lab, starts), first, "the same tor process");
        assert!(answers(&mut kept), "an open connection is served on");
        assert!(!answers(&mut stream(bad)), "the ban stands");
        lab.wait_for("the ban", |lab| {
            Ok(rows(lab).iter().any(|row| row["circuit"] == bad && !row["banned_seconds"].is_null()))
        })
        .unwrap();
    }
    // Nor does it depend on the ingress.
    lab.end(Signal::SIGTERM).unwrap();
    drop(front);
    front = Beside::start(&lab).unwrap();
    lab.start_through(&AS_THE_UNIT).unwrap();
    assert_eq!(followed(&mut lab, 5), first);
    let mut kept = stream(good);
    assert!(answers(&mut kept));

    // Another process is another one, also if nobody looked on.
    lab.end(Signal::SIGTERM).unwrap();
    service.restart().unwrap();
    lab.start_through(&AS_THE_UNIT).unwrap();
    let second = followed(&mut lab, 6);
    assert!(second > first);
    assert!(!answers(&mut kept), "that stream was of the tor that has ended");
    service.restart().unwrap();
    assert!(followed(&mut lab, 7) > second);
    assert!(answers(&mut stream(bad)), "whoever has the number now has done nothing yet");
    drop(front);
}

#[test]
fn circuits_of_c_tor_share_the_fate_of_those_of_a_hosted_service() {
    let network = shared(Profile::Usual).unwrap();
    let mut lab = Lab::new("fate").unwrap();
    let listen = free_address().unwrap();
    let backend = Backend::start().unwrap();
    let service = network.service(&ServiceOptions::new(80, Behind::Tcp(listen))).unwrap();
    lab.configure(
        "mode = \"observe\"",
        &format!(
            "[tor]\ncontrol = \"unix:{}\"\n[ingress]\nenabled = true\nlisten = \"{listen}\"\nbackends = [\"{}\"]\n\
             keep_alive_seconds = 120\n[circuits]\n{}",
            service.control_address().socket.display(),
            backend.address(),
            fate::CIRCUITS,
        ),
    )
    .unwrap();
    lab.start().unwrap();
    stay_calm(&lab);
    let _front = Beside::start(&lab).unwrap();
    for series in ["tunica_front_up", "tunica_tor_control_up"] {
        lab.wait_for(series, |lab| Ok(lab.metric(series)? == Some(1.0))).unwrap();
    }
    let client = network.client().unwrap();
    let mut stage = Stage { lab: &mut lab, client: &client, onion: service.onion(), backend: &backend };
    fate::hold(&mut stage).unwrap();
}

#[test]
fn circuits_that_live_for_too_long_or_are_slow_are_closed_at_tor() {
    let network = shared(Profile::Usual).unwrap();
    let mut lab = Lab::new("rotation").unwrap();
    let listen = free_address().unwrap();
    let backend = Backend::start().unwrap();
    let service = network.service(&ServiceOptions::new(80, Behind::Tcp(listen))).unwrap();
    let configure = |lab: &Lab, circuits: &str| {
        lab.configure(
            "mode = \"observe\"",
            &format!(
                "[tor]\ncontrol = \"unix:{}\"\n[ingress]\nenabled = true\nlisten = \"{listen}\"\nbackends = [\"{}\"]\n\
                 keep_alive_seconds = 120\n[circuits]\n{circuits}",
                service.control_address().socket.display(),
                backend.address(),
            ),
        )
        .unwrap();
    };
    let is_ready = |lab: &mut Lab| {
        for series in ["tunica_front_up", "tunica_tor_control_up"] {
            lab.wait_for(series, |lab| Ok(lab.metric(series)? == Some(1.0))).unwrap();
        }
    };
    let closed = |word: &str| format!("tunica_circuits_closed_total{{refusal=\"{word}\"}}");
    configure(&lab, fate::ROTATION);
    lab.start().unwrap();
    stay_calm(&lab);
    let front = Beside::start(&lab).unwrap();
    is_ready(&mut lab);
    let client = network.client().unwrap();
    let mut stage = Stage { lab: &mut lab, client: &client, onion: service.onion(), backend: &backend };
    let circuit = fate::rotate(&mut stage).unwrap();
    assert!(!has_circuit(&service, &circuit), "tor has closed it");
    // So it does with the visitor's next one, and what has ended at tor is forgotten here.
    lab.wait_for("the ingress to forget them", |lab| Ok(lab.metric("tunica_circuits_tracked")? == Some(0.0)))
        .unwrap();
    // More of them where a stream of the visitor's next one had hung.
    let aged = metric(&lab, &closed("circuit_aged"));
    let accepted = metric(&lab, "tunica_tor_circuits_closed_total{outcome=\"accepted\"}");
    assert!(aged >= 2.0 && aged == accepted, "{aged}, {accepted}: each was asked for once");

    // Another front and another daemon: age is no reason any more, but for who outlives it by far.
    drop(front);
    lab.end(Signal::SIGTERM).unwrap();
    configure(
        &lab,
        "profile = \"web\"\ncircuit_health_interval_secs = 1\nmax_circuit_age_secs = 3600\n\
         max_circuit_latency_secs = 1\nrotate_hard_after_secs = 60",
    );
    lab.start().unwrap();
    let _front = Beside::start(&lab).unwrap();
    is_ready(&mut lab);
    let (mut long, user) = open(&client, &service).unwrap();
    lab.wait_for("the circuit", |lab| Ok(rows(lab).iter().any(|row| row["open"] == 1))).unwrap();
    let circuit = rows(&lab).into_iter().find(|row| row["open"] == 1).unwrap()["circuit"].to_string();
    // A circuit whose requests take long.
    let slow = (0..4).find_map(|_| {
        let (mut stream, _) = client.connect_afresh(service.onion(), 80).ok()?;
        stream.write_all(get("/slow/2000").as_bytes()).ok()?;
        let mut answer = Vec::new();
        read_answer(&mut stream, &mut answer).ok()?;
        answer.starts_with(b"HTTP/1.1 200").then_some(stream)
    });
    let slow = slow.expect("no circuit carries a request");
    lab.wait_for("the mark", |lab| {
        Ok(rows(lab).iter().any(|row| {
            row["marked"] == "circuit_slow" && row["latency_milliseconds"].as_u64() >= Some(2_000)
        }))
    })
    .unwrap();
    assert!(lab.must(&["circuits"]).unwrap().contains("normal, slow"));
    drop(slow);
    lab.wait_for("the end of the slow circuit", |lab| Ok(lab.metric(&closed("circuit_slow"))? == Some(1.0)))
        .unwrap();
    assert!(answers(&mut long) && has_circuit(&service, &circuit), "the other is neither slow nor old");

    // It ends with its stream in the end, and the visitor sees it. That takes longer than anything else is waited for.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(150);
    while has_circuit(&service, &circuit) {
        assert!(std::time::Instant::now() < deadline, "{}", lab.must(&["circuits"]).unwrap());
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    assert!(!answers(&mut long), "a circuit that outlived rotate_hard_after_secs");
    lab.wait_for("the count", |lab| {
        Ok(lab.metric(&closed("circuit_rotated"))? == Some(1.0)
            && lab.metric("tunica_front_refused_total{refusal=\"circuit_rotated\"}")? == Some(1.0))
    })
    .unwrap();
    let mut stage = Stage { lab: &mut lab, client: &client, onion: service.onion(), backend: &backend };
    let mut again = stage.comes_back(&user, &circuit).unwrap();
    assert!(answers(&mut again), "the visitor's next circuit");
    assert_eq!(metric(&lab, &closed("circuit_rotated")), 1.0);
    assert_eq!(metric(&lab, &closed("circuit_aged")), 0.0);
}

/// What tor itself says of its circuits: a line each.
fn circuit_status(service: &Service) -> String {
    service.control_address().connect().unwrap().information("circuit-status").unwrap()
}

fn has_circuit(service: &Service, circuit: &str) -> bool {
    circuit_status(service).lines().any(|line| line.starts_with(&format!("{circuit} ")))
}

fn is_circuit(row: &Value, circuit: &str) -> bool {
    row["circuit"].as_u64() == circuit.parse().ok()
}

/// What the daemon says that tor says of a circuit.
fn at_tor(lab: &Lab, circuit: &str) -> Option<Value> {
    let answer = lab.json(&["circuits", "--limit", "1000"]).unwrap();
    let tor = answer["tor"].as_array().cloned().unwrap_or_default();
    tor.into_iter().find(|row| is_circuit(row, circuit))
}

#[test]
fn circuits_are_joined_with_what_tor_says_explained_and_closed() {
    let network = shared(Profile::Usual).unwrap();
    let mut lab = Lab::new("registry").unwrap();
    let listen = free_address().unwrap();
    let backend = Backend::start().unwrap();
    // The second port is what nobody should do: it publishes the daemon's pages.
    let ports = vec![(80, Behind::Tcp(listen)), (9_187, Behind::Tcp(PAGES.into()))];
    let options = ServiceOptions { ports, ..ServiceOptions::new(80, Behind::Tcp(listen)) };
    let mut service = network.service(&options).unwrap();
    let configuration = |control: &str| {
        format!(
            "{control}\n[ingress]\nenabled = true\nlisten = \"{listen}\"\nbackends = [\"{}\"]\n\
             keep_alive_seconds = 120\n[circuits]\nprofile = \"web\"",
            backend.address()
        )
    };
    lab.configure("mode = \"observe\"", &configuration("")).unwrap();
    lab.start().unwrap();
    let ran = lab.tunica(&["circuit", "close", "7"]).unwrap();
    assert!(ran.code == Some(4) && ran.err.contains("control under [tor]"), "{ran:?}");
    lab.end(Signal::SIGTERM).unwrap();
    let socket = service.control_address().socket;
    lab.configure(
        "mode = \"observe\"",
        &configuration(&format!("[tor]\ncontrol = \"unix:{}\"", socket.display())),
    )
    .unwrap();
    lab.start().unwrap();
    let _front = Beside::start(&lab);
    for series in ["tunica_front_up", "tunica_tor_control_up"] {
        lab.wait_for(series, |lab| Ok(lab.metric(series)? == Some(1.0))).unwrap();
    }
    let client = network.client().unwrap();
    let (mut first, user) = open(&client, &service).unwrap();
    let mut second = client.connect(service.onion(), 80, &user).unwrap();
    assert!(answers(&mut second));

    lab.wait_for("what tor publishes", |lab| {
        let warnings = lab.json(&["status"])?["warnings"].to_string();
        assert!(
            !warnings.contains("no HiddenServicePort leads") && !warnings.contains("without telling"),
            "{warnings}"
        );
        Ok(warnings.contains("tor publishes http.listen as an onion service"))
    })
    .unwrap();

    // Two streams of one circuit are one row, on either side.
    lab.wait_for("the circuit", |lab| Ok(rows(lab).iter().any(|row| row["open"] == 2))).unwrap();
    let circuit = rows(&lab).into_iter().find(|row| row["open"] == 2).unwrap()["circuit"].to_string();
    assert_eq!(rows(&lab).iter().filter(|row| is_circuit(row, &circuit)).count(), 1);
    let facts = at_tor(&lab, &circuit).expect("tor knows it");
    assert_eq!(facts["state"], "joined");
    assert!(facts["joined_seconds"].is_u64(), "its client was seen to come: {facts}");
    let relay = facts["rendezvous"].as_str().unwrap().to_owned();
    let status = circuit_status(&service);
    let line = status.lines().find(|line| line.starts_with(&format!("{circuit} "))).unwrap();
    let last = line.split(' ').nth(2).unwrap().rsplit(',').next().unwrap();
    assert!(last.starts_with(&format!("${relay}")), "{relay} in {line}");
    let shown = lab.must(&["circuits", "--sort", "bytes"]).unwrap();
    assert!(shown.contains("joined") && shown.contains(relay.get(..6).unwrap()), "{shown}");

    // Asking changes nothing.
    let before = rows(&lab);
    let text = lab.must(&["explain", "circuit", &circuit]).unwrap();
    assert!(text.contains("2 of 32 open connections") && text.contains(&relay), "{text}");
    let explained = lab.json(&["explain", "circuit", &circuit]).unwrap();
    assert_eq!((&explained["row"]["open"], &explained["ban"]), (&2.into(), &Value::Null), "{explained}");
    assert!(answers(&mut first) && answers(&mut second));
    let state = |rows: &[Value]| {
        let of = |row: &Value| [row["circuit"].clone(), row["state"].clone(), row["violations"].clone()];
        rows.iter().map(of).collect::<Vec<_>>()
    };
    assert_eq!(state(&before), state(&rows(&lab)));
    let ran = lab.tunica(&["explain", "circuit", "4000000000"]).unwrap();
    assert!(ran.code == Some(4) && ran.err.contains("nothing is known"), "{ran:?}");

    // What is not the service's towards a client is tor's own.
    let own =
        status.lines().find(|line| line.contains("HS_SERVICE_INTRO")).unwrap().split(' ').next().unwrap();
    let ran = lab.tunica(&["circuit", "close", own]).unwrap();
    assert!(ran.code == Some(3) && ran.err.contains("tor needs itself"), "{ran:?}");
    let ran = lab.tunica(&["circuit", "close", "4000000000"]).unwrap();
    assert!(ran.code == Some(4) && ran.err.contains("no open circuit"), "{ran:?}");
    let ran = lab.tunica(&["circuit", "ban", own]).unwrap();
    assert!(ran.code == Some(3) && ran.err.contains("tor needs itself"), "{ran:?}");
    // Nor where a process of this host has it banned, which names its number to the ingress.
    for _ in 0..20 {
        let mut forged = TcpStream::connect(listen).unwrap();
        let number: u32 = own.parse().unwrap();
        if forged.write_all(format!("{}nonsense\r\n\r\n", header(number)).as_bytes()).is_ok() {
            let _ = forged.read_to_end(&mut Vec::new());
        }
    }
    lab.wait_for("the forged ban", |lab| Ok(lab.metric("tunica_circuits_banned")? == Some(1.0))).unwrap();
    lab.wait_for("its gate", |lab| Ok(lab.json(&["explain", "circuit", own])?["ban"] != Value::Null))
        .unwrap();
    lab.must(&["circuit", "unban", own]).unwrap();
    lab.wait_for("its end", |lab| Ok(lab.metric("tunica_circuits_banned")? == Some(0.0))).unwrap();
    assert!(has_circuit(&service, own));
    let dry = lab.json(&["circuit", "close", &circuit, "--dry-run"]).unwrap();
    assert_eq!(dry["dry_run"], true);
    assert!(answers(&mut first) && has_circuit(&service, &circuit));

    // Closed at tor, both streams end at the client; nobody is banned, and the same visitor comes again.
    lab.must(&["circuit", "close", &circuit]).unwrap();
    lab.wait_for("the circuit's end", |_| Ok(!has_circuit(&service, &circuit))).unwrap();
    assert!(!answers(&mut first) && !answers(&mut second));
    let accepted = "tunica_tor_circuits_closed_total{outcome=\"accepted\"}";
    lab.wait_for("the count", |lab| Ok(lab.metric(accepted)? == Some(1.0))).unwrap();
    lab.wait_for("the registry", |lab| Ok(at_tor(lab, &circuit).is_none())).unwrap();
    assert_eq!(metric(&lab, "tunica_circuits_banned"), 0.0);
    let (mut again, _) = open(&client, &service).unwrap();
    assert!(answers(&mut again));
    lab.wait_for("the next circuit", |lab| Ok(rows(lab).iter().any(|row| row["open"] == 1))).unwrap();
    let next = rows(&lab).into_iter().find(|row| row["open"] == 1).unwrap()["circuit"].to_string();
    assert_ne!(next, circuit);

    // A ban by an operator, closed at tor and still in force here.
    lab.must(&["circuit", "ban", &next, "--for", "1h"]).unwrap();
    lab.wait_for("the circuit's end", |_| Ok(!has_circuit(&service, &next))).unwrap();
    lab.wait_for("the ban", |lab| Ok(lab.metric("tunica_circuits_banned")? == Some(1.0))).unwrap();
    lab.wait_for("the explanation", |lab| {
        let said = lab.json(&["explain", "circuit", &next])?;
        Ok(said["ban"]["origin"] == "operator" && said["tor"].to_string().contains("it has ended"))
    })
    .unwrap();
    let text = lab.must(&["explain", "circuit", &next]).unwrap();
    assert!(text.contains("by an operator") && text.contains(&format!("circuit unban {next}")), "{text}");

    // Another tor process: nothing of the one before is said of its circuits.
    service.restart().unwrap();
    lab.wait_for("the new tor", |lab| {
        let answer = lab.json(&["circuits"])?;
        Ok(lab.metric("tunica_tor_control_up")? == Some(1.0)
            && answer["tor"].as_array().is_some_and(Vec::is_empty)
            && answer["digest"]["circuits"].as_array().is_some_and(Vec::is_empty))
    })
    .unwrap();
    let ran = lab.tunica(&["explain", "circuit", &next]).unwrap();
    let said = ran.out + &ran.err;
    assert!(!said.contains("banned for"), "{said}");

    // Neither services nor relays nor clients stand in the metrics or the logs.
    let (_, metrics) = lab.http("/metrics").unwrap();
    let logs = lab.log() + &fs::read_to_string(lab.path("front.log")).unwrap();
    for secret in [service.onion(), service.onion().trim_end_matches(".onion"), &relay, "fc00:dead"] {
        assert!(!metrics.contains(secret) && !logs.contains(secret), "{secret}");
    }
    assert_eq!(addresses(&metrics), Vec::<String>::new());
}

/// Every word of a text that is an IP address, with or without a port or a prefix length.
fn addresses(text: &str) -> Vec<String> {
    let is_address = |word: &str| {
        let host = word.split('/').next().unwrap_or(word);
        let is_v6 = host.contains(':') && host.parse::<std::net::IpAddr>().is_ok();
        let is_v4 = host.contains('.') && host.parse::<std::net::Ipv4Addr>().is_ok();
        is_v6 || is_v4 || host.parse::<SocketAddr>().is_ok()
    };
    let words = text.split(|letter: char| !(letter.is_ascii_alphanumeric() || "[]:./".contains(letter)));
    words.filter(|word| is_address(word)).map(str::to_owned).collect()
}

#[test]
fn numbers_of_circuits_stay_on_the_node() {
    // Far above what counts here, so that they cannot stand somewhere by chance.
    const CIRCUITS: [u32; 3] = [0xbeef_7a31, 0xbeef_7a32, 0xbeef_7a33];
    let mut lab = Lab::new("numbers").unwrap();
    let listen = free_address().unwrap();
    let backend = Backend::start().unwrap();
    lab.configure(
        "mode = \"observe\"",
        &format!(
            "[ingress]\nenabled = true\nlisten = \"{listen}\"\nbackends = [\"{}\"]\n[circuits]\n\
             profile = \"gated\"\nban_threshold = 2",
            backend.address()
        ),
    )
    .unwrap();
    lab.start().unwrap();
    let _front = Beside::start(&lab);
    lab.wait_for("the ingress", |lab| Ok(lab.metric("tunica_front_up")? == Some(1.0))).unwrap();
    let visit = |circuit: u32| {
        let mut stream = TcpStream::connect(listen).unwrap();
        let _ = stream.write_all(format!("{}{}", header(circuit), get("/")).as_bytes());
        let _ = read_answer(&mut stream, &mut Vec::new());
        stream
    };
    // One is served, one bans itself, one is banned by hand.
    let _served = visit(CIRCUITS[0]);
    let _flood: Vec<_> = (0..14)
        .map(|_| {
            let mut stream = TcpStream::connect(listen).unwrap();
            let _ = stream.write_all(header(CIRCUITS[1]).as_bytes());
            stream
        })
        .collect();
    let by_hand = CIRCUITS[2].to_string();
    lab.must(&["circuit", "ban", &by_hand]).unwrap();
    lab.wait_for("both bans", |lab| Ok(lab.metric("tunica_circuits_banned")? == Some(2.0))).unwrap();
    drop(visit(CIRCUITS[2]));
    for verb in [&["explain", "circuit", &by_hand][..], &["circuit", "promote", &by_hand], &["circuits"]] {
        lab.must(verb).unwrap();
    }
    let said = lab.tunica(&["circuit", "close", &by_hand]).unwrap();
    assert_eq!(said.code, Some(4), "{said:?}");
    // The operator sees the numbers, or the search below would prove nothing.
    assert!(CIRCUITS.iter().all(|circuit| rows(&lab).iter().any(|row| row["circuit"] == *circuit)));
    let (_, metrics) = lab.http("/metrics").unwrap();
    let front_log = fs::read_to_string(lab.path("front.log")).unwrap();
    let ledger = fs::read(lab.path("ledger.redb")).unwrap();
    let incidents = lab.json(&["incident", "list"]).unwrap().to_string();
    let status = lab.json(&["status"]).unwrap().to_string();
    let ledger = String::from_utf8_lossy(&ledger).into_owned();
    for circuit in CIRCUITS {
        let low = circuit & 0xffff;
        for form in
            [circuit.to_string(), format!("{circuit:x}"), format!("beef:{low:x}"), format!("::{low:x}")]
        {
            for (place, text) in [
                ("the metrics", &metrics),
                ("tunicad's log", &lab.log()),
                ("tunica-front's log", &front_log),
                ("incidents", &incidents),
                ("status", &status),
                ("the ledger", &ledger),
            ] {
                assert!(!text.contains(&form), "{form} in {place}");
            }
        }
    }
    // The backend has its series, and not by its address.
    assert!(metrics.contains("tunica_front_backend_up{backend=\"1\"} 1"), "{metrics}");
    assert_eq!(addresses(&metrics), Vec::<String>::new());
    assert_eq!(addresses("a{b=\"127.0.0.1:10001\"} 1\n[2001:db8::1]:80 10.0.0.0/8").len(), 3);
}

#[test]
fn every_metric_of_the_ingress_moves_by_its_cause() {
    let mut lab = Lab::new("ingressmetrics").unwrap();
    let listen = free_address().unwrap();
    let backend = Backend::start().unwrap();
    lab.configure(
        "mode = \"observe\"",
        &format!(
            "[ingress]\nenabled = true\nlisten = \"{listen}\"\nbackends = [\"{}\"]\nhealth_every_seconds = 1\n\
             queue_seconds = 30\n[circuits]\nprofile = \"gated\"\nmax_concurrent_connections = 2\n\
             table_size = 1024\npow_activation_threshold = 1.0\nshadow = [\"slow_lane\", \"vip_rate\"]\nvip_requests_per_10_seconds = 20\n\
             requests_per_10_seconds = 30\npaid_share = 0.0",
            backend.address()
        ),
    )
    .unwrap();
    lab.start().unwrap();
    stay_calm(&lab);
    let front = Beside::start(&lab).unwrap();
    let becomes = |lab: &mut Lab, series: &str, wanted: f64| {
        let what = format!("{series} {wanted}");
        lab.wait_for(&what, |lab| Ok(lab.metric(series)? == Some(wanted)))
            .unwrap_or_else(|error| panic!("{error:#}\n{}", lab.must(&["circuits"]).unwrap()));
    };
    becomes(&mut lab, "tunica_front_up", 1.0);
    becomes(&mut lab, "tunica_front_active_max", 2.0);
    becomes(&mut lab, "tunica_circuits_capacity", 1_024.0);
    let backend_up = "tunica_front_backend_up{backend=\"1\"}";
    becomes(&mut lab, backend_up, 1.0);
    backend.set_well(false);
    becomes(&mut lab, backend_up, 0.0);
    backend.set_well(true);
    becomes(&mut lab, backend_up, 1.0);
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
    let flood: Vec<_> = (0..12).map(|_| stream(9, "/")).collect();
    lab.wait_for("the tarpit", |lab| {
        Ok(lab.metric("tunica_front_tarpitted")?.is_some_and(|held| held >= 1.0))
    })
    .unwrap();
    // Those of it that were served sit on both places, and others would wait for them in vain.
    drop(flood);
    lab.must(&["circuit", "promote", "1"]).unwrap();
    let _vip = stream(1, "/slow/4000");
    // Twenty requests within 10 s would go behind others', thirty are too many, which would be so even for a VIP.
    for (circuit, whose, requests) in [(11, "anybody", 24), (1, "vip", 34)] {
        let word = if whose == "vip" { "vip_rate" } else { "slow_lane" };
        let series = format!("tunica_front_would_refuse_total{{refusal=\"{word}\",whose=\"{whose}\"}}");
        // Again where all this was so slow that they came within more than the 10 s.
        let mut asked: Option<std::time::Instant> = None;
        lab.wait_for("the shadow", |lab| {
            if asked.is_none_or(|asked| asked.elapsed() > std::time::Duration::from_secs(12)) {
                let mut stream = stream(circuit, "/");
                for _ in 0..requests {
                    read_answer(&mut stream, &mut Vec::new())?;
                    stream.write_all(get("/").as_bytes())?;
                }
                asked = Some(std::time::Instant::now());
            }
            Ok(lab.metric(&series)?.is_some_and(|count| count >= 1.0))
        })
        .unwrap();
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
fn every_metric_of_puzzles_moves_by_its_cause() {
    let mut lab = Lab::new("puzzlemetrics").unwrap();
    let listen = free_address().unwrap();
    let backend = Backend::start().unwrap();
    lab.configure(
        "mode = \"observe\"",
        &format!(
            "[ingress]\nenabled = true\nlisten = \"{listen}\"\nbackends = [\"{}\"]\nkeep_alive_seconds = 60\n\
             [circuits]\nprofile = \"web\"\npow_activation_threshold = 0.0\npow_difficulty_min = 9\npow_difficulty_max = 9\npow_page_max = 8",
            backend.address()
        ),
    )
    .unwrap();
    lab.start().unwrap();
    stay_calm(&lab);
    let _front = Beside::start(&lab);
    let becomes = |lab: &mut Lab, series: &str, wanted: f64| {
        let what = format!("{series} {wanted}");
        lab.wait_for(&what, |lab| Ok(lab.metric(series)? == Some(wanted)))
            .unwrap_or_else(|error| panic!("{error:#}\n{}", lab.must(&["circuits"]).unwrap()));
    };
    becomes(&mut lab, "tunica_front_up", 1.0);
    let ask = |stream: &mut TcpStream, more: &str| {
        let request = format!("GET / HTTP/1.1\r\nHost: a\r\n{more}\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        read_answer(stream, &mut answer).unwrap();
        String::from_utf8(answer).unwrap()
    };
    let stream = |circuit: u32| {
        let mut stream = TcpStream::connect(listen).unwrap();
        stream.write_all(header(circuit).as_bytes()).unwrap();
        stream
    };
    let solution = |text: &str| {
        let challenge: Challenge = text.parse().unwrap();
        let nonce = solve(&challenge, Nonce(0), NonZeroUsize::MIN, &|_| false).nonce.unwrap();
        format!("Tunica-Solution: {challenge} {nonce}\r\n")
    };
    let mut paying = stream(1);
    let answer = ask(&mut paying, "");
    let text = answer.split("tunica-challenge: ").nth(1).unwrap().split('\r').next().unwrap().to_owned();
    assert!(ask(&mut paying, "Tunica-Solution: 1 2\r\n").starts_with("HTTP/1.1 503"));
    assert!(ask(&mut paying, &solution(&text)).starts_with("HTTP/1.1 200"));
    becomes(&mut lab, "tunica_front_puzzles_issued_total{kind=\"program\"}", 2.0);
    becomes(&mut lab, "tunica_front_puzzles_failed_total{reason=\"malformed\"}", 1.0);
    becomes(&mut lab, "tunica_front_puzzles_solved_total{kind=\"program\"}", 1.0);
    let shown = lab.must(&["circuits"]).unwrap();
    assert!(shown.contains("normal, paid") && shown.contains("2 issued"), "{shown}");
    // What a page asks is one bit less here, so it leads to the waiting room.
    let mut waiting = stream(2);
    let answer = ask(&mut waiting, "Accept: text/html\r\n");
    let text =
        answer.split("name=\"challenge\" value=\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    assert!(ask(&mut waiting, &solution(&text)).contains("tunica-waiting-before: 0"));
    becomes(&mut lab, "tunica_front_puzzles_issued_total{kind=\"page\"}", 1.0);
    becomes(&mut lab, "tunica_front_waiting_room", 1.0);
    lab.wait_for("its turn", |_| Ok(ask(&mut waiting, "").starts_with("HTTP/1.1 200"))).unwrap();
    becomes(&mut lab, "tunica_front_waiting_room_let_in_total", 1.0);
    becomes(&mut lab, "tunica_front_waiting_room", 0.0);
}

#[test]
fn tokens_outlive_front_and_daemon_and_each_of_their_metrics_moves_by_its_cause() {
    let mut lab = Lab::new("tokens").unwrap();
    let listen = free_address().unwrap();
    let backend = Backend::start().unwrap();
    lab.configure(
        "mode = \"observe\"",
        &format!(
            "[ingress]\nenabled = true\nlisten = \"{listen}\"\nbackends = [\"{}\"]\nkeep_alive_seconds = 60\n\
             [circuits]\nprofile = \"web\"\npow_activation_threshold = 0.0\npow_difficulty_min = 8\npow_difficulty_max = 8\n\
             pow_grants = \"vip\"\ntoken_circuits = 1",
            backend.address()
        ),
    )
    .unwrap();
    lab.start().unwrap();
    stay_calm(&lab);
    let front = Beside::start(&lab).unwrap();
    let becomes = |lab: &mut Lab, series: &str, wanted: f64| {
        let what = format!("{series} {wanted}");
        lab.wait_for(&what, |lab| Ok(lab.metric(series)? == Some(wanted)))
            .unwrap_or_else(|error| panic!("{error:#}\n{}", lab.must(&["circuits"]).unwrap()));
    };
    let is_ready = |lab: &mut Lab| {
        lab.wait_for("the keys", |lab| {
            let answer = lab.tunica(&["circuits", "--json"])?.out;
            Ok(answer.contains("\"has_key\":true"))
        })
        .unwrap();
    };
    is_ready(&mut lab);
    let ask = |circuit: u32, lines: &str| {
        let mut stream = TcpStream::connect(listen).unwrap();
        stream.write_all(header(circuit).as_bytes()).unwrap();
        stream.write_all(format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n").as_bytes()).unwrap();
        let mut answer = Vec::new();
        read_answer(&mut stream, &mut answer).unwrap();
        (stream, String::from_utf8(answer).unwrap())
    };
    let value = |answer: &str, name: &str| {
        let after = answer.split(&format!("{name}: ")).nth(1);
        after.and_then(|after| after.split('\r').next()).unwrap_or_else(|| panic!("{answer}")).to_owned()
    };
    let (_, answer) = ask(1, "");
    let challenge: Challenge = value(&answer, "tunica-challenge").parse().unwrap();
    let nonce = solve(&challenge, Nonce(0), NonZeroUsize::MIN, &|_| false).nonce.unwrap();
    let (held, answer) = ask(1, &format!("Tunica-Solution: {challenge} {nonce}\r\n"));
    let token = value(&answer, "tunica-token");
    let show = |circuit: u32, token: &str| ask(circuit, &format!("Tunica-Token: {token}\r\n"));
    becomes(&mut lab, "tunica_front_tokens_issued_total{by=\"puzzle\"}", 1.0);
    becomes(&mut lab, "tunica_front_tokens", 1.0);
    let explained = lab.must(&["explain", "circuit", "1"]).unwrap();
    assert!(explained.contains("vip: it shows a token"), "{explained}");
    // One circuit at once here.
    let (fourth, answer) = show(2, &token);
    assert_eq!(value(&answer, "tunica-token-refused"), "in_use");
    becomes(&mut lab, "tunica_front_tokens_refused_total{reason=\"in_use\"}", 1.0);
    let explained = lab.must(&["explain", "circuit", "2"]).unwrap();
    assert!(explained.contains("the token is in use by as many"), "{explained}");
    drop((held, fourth));

    // Another front, and then another daemon as well.
    drop(front);
    let front = Beside::start(&lab).unwrap();
    lab.wait_for("the ingress", |_| Ok(TcpStream::connect(listen).is_ok())).unwrap();
    is_ready(&mut lab);
    assert!(show(3, &token).1.starts_with("HTTP/1.1 200"));
    becomes(&mut lab, "tunica_front_tokens_accepted_total", 1.0);
    drop(front);
    lab.end(Signal::SIGKILL).unwrap();
    lab.start().unwrap();
    let _front = Beside::start(&lab).unwrap();
    lab.wait_for("the ingress", |_| Ok(TcpStream::connect(listen).is_ok())).unwrap();
    is_ready(&mut lab);
    assert!(show(4, &token).1.starts_with("HTTP/1.1 200"));

    // One for somebody who is known, by the daemon's keys.
    let config = lab.path("tunica.toml").display().to_string();
    let issued = lab.json(&["--config", &config, "token", "issue", "--for", "1h"]).unwrap();
    let issued = issued["token"].as_str().unwrap().to_owned();
    let (known, answer) = show(5, &issued);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    becomes(&mut lab, "tunica_front_tokens", 2.0);
    lab.must(&["circuit", "ban", "5"]).unwrap();
    becomes(&mut lab, "tunica_front_tokens_revoked_total", 1.0);
    drop(known);
    // What was revoked stays so for the front after this one, of which no circuit is banned for that.
    lab.must(&["circuit", "unban", "5"]).unwrap();
    drop(_front);
    let _front = Beside::start(&lab).unwrap();
    lab.wait_for("the ingress", |_| Ok(TcpStream::connect(listen).is_ok())).unwrap();
    is_ready(&mut lab);
    assert_eq!(value(&show(6, &issued).1, "tunica-token-refused"), "revoked");
    becomes(&mut lab, "tunica_front_tokens_refused_total{reason=\"revoked\"}", 1.0);

    let (_held, answer) = show(7, &token);
    assert!(answer.starts_with("HTTP/1.1 200"));
    let said = lab.must(&["token", "revoke", "--all", "--dry-run"]).unwrap();
    assert!(said.contains("every VIP token") && show(7, &token).1.starts_with("HTTP/1.1 200"), "{said}");
    lab.must(&["token", "revoke", "--all"]).unwrap();
    becomes(&mut lab, "tunica_front_tokens", 0.0);
    assert_eq!(value(&show(7, &token).1, "tunica-token-refused"), "forged");
    // Keys that were revoked do not come back where others cannot be written, or it is said that they do.
    let (keys, unfinished) = (lab.path("token.keys"), lab.path("token.keys.new"));
    // As it is wrapped at its columns.
    let unwrapped = |said: &str| said.split_whitespace().collect::<Vec<_>>().join(" ");
    fs::create_dir(&unfinished).unwrap();
    let said = lab.must(&["token", "revoke", "--all"]).unwrap();
    assert!(unwrapped(&said).contains("cannot be kept") && !keys.exists(), "{said}");
    fs::create_dir(&keys).unwrap();
    let failed = lab.tunica(&["token", "revoke", "--all"]).unwrap();
    let said = unwrapped(&format!("{} {}", failed.out, failed.err));
    assert!(failed.code != Some(0) && said.contains("all of them are good again"), "{failed:?}");
    fs::remove_dir(&keys).unwrap();
    fs::remove_dir(&unfinished).unwrap();
    lab.must(&["token", "revoke", "--all"]).unwrap();
    assert!(fs::read_to_string(&keys).unwrap().contains("current "));
    // Nothing of tokens is told to anybody who may ask, or written down.
    for text in [
        lab.tunica(&["circuits", "--json"]).unwrap().out,
        fs::read_to_string(lab.path("front.log")).unwrap(),
        lab.log(),
    ] {
        assert!(![&token, &issued].into_iter().any(|token| text.contains(token.as_str())), "{text}");
        assert!(!text.contains("\"revoked\":["), "{text}");
    }
}

#[test]
fn limits_of_token_holders_relax_once_too_many_of_them_were_refused() {
    let mut lab = Lab::new("falsepositives").unwrap();
    let listen = free_address().unwrap();
    let backend = Backend::start().unwrap();
    lab.configure(
        "mode = \"observe\"",
        &format!(
            "[ingress]\nenabled = true\nlisten = \"{listen}\"\nbackends = [\"{}\"]\n[circuits]\nprofile = \"web\"\n\
             slow_requests_per_10_seconds = 5\nrequests_per_10_seconds = 5\nvip_requests_per_10_seconds = 5\nban_threshold = 255\nfalse_positive_budget = 0.4\n\
             false_positive_least_holders = 2",
            backend.address()
        ),
    )
    .unwrap();
    lab.start().unwrap();
    stay_calm(&lab);
    let _front = Beside::start(&lab).unwrap();
    lab.wait_for("the keys", |lab| Ok(lab.tunica(&["circuits", "--json"])?.out.contains("\"has_key\":true")))
        .unwrap();
    let config = lab.path("tunica.toml").display().to_string();
    let issue = || {
        let issued = lab.json(&["--config", &config, "token", "issue"]).unwrap();
        issued["token"].as_str().unwrap().to_owned()
    };
    let (greedy, modest) = (issue(), issue());
    let ask = |circuit: u32, token: &str| {
        let mut stream = TcpStream::connect(listen).unwrap();
        stream.write_all(header(circuit).as_bytes()).unwrap();
        let request = format!("GET / HTTP/1.1\r\nHost: a\r\nTunica-Token: {token}\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        read_answer(&mut stream, &mut answer).unwrap();
        String::from_utf8(answer).unwrap().starts_with("HTTP/1.1 200")
    };
    assert_eq!(metric(&lab, "tunica_front_tokens_relaxed"), 0.0);
    // One of two, each minute, until a whole window was counted. Two minutes are sure to hold one.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(150);
    while metric(&lab, "tunica_front_tokens_relaxed") < 1.0 {
        assert!(std::time::Instant::now() < deadline, "{}", lab.must(&["circuits"]).unwrap());
        let served = (0..6).filter(|_| ask(1, &greedy)).count();
        assert!(served < 6 && ask(2, &modest));
        std::thread::sleep(std::time::Duration::from_secs(5));
    }
    assert!(metric(&lab, "tunica_front_token_holders_total{outcome=\"seen\"}") >= 2.0);
    assert!(metric(&lab, "tunica_front_token_holders_total{outcome=\"refused\"}") >= 1.0);
    // As it is wrapped at its columns.
    let says = |lab: &Lab, verb: &str, text: &str| {
        let said = lab.must(&[verb]).unwrap();
        said.split_whitespace().collect::<Vec<_>>().join(" ").contains(text)
    };
    assert!(says(&lab, "status", "limits of token holders relaxed by one step"));
    lab.wait_for("the front", |lab| {
        Ok(says(lab, "threat", "half as much again for token holders, no puzzles"))
    })
    .unwrap();
    assert!(lab.log().contains("message_id=\"token_limits\""), "{}", lab.log());
    // Above moderate load at once not.
    lab.must(&["threat", "set", "heavy"]).unwrap();
    lab.wait_for("strict limits", |lab| Ok(lab.metric("tunica_front_tokens_relaxed")? == Some(0.0))).unwrap();
    assert!(!says(&lab, "threat", "half as much again"));
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
    for series in ["tunica_front_up", "tunica_gate_wanted", "tunica_gate_attached"] {
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
    // Also not by a connection that came without a byte: it has none to accept.
    for word in ["banned", "not_a_circuit", "proxy_timeout"] {
        let count = metric(&lab, &format!("tunica_front_refused_total{{refusal=\"{word}\"}}"));
        assert_eq!(count, 0.0, "the ingress was woken: {word}");
    }
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
    // Bypassed, neither refuses anybody, whatever comes; what was banned is banned again afterwards.
    lab.must(&["bypass", "on", "--reason", "a test"]).unwrap();
    lab.wait_for("the bypass", |lab| Ok(is_served(lab, 7, 1) && is_served(lab, 8, 1))).unwrap();
    let text = lab.must(&["explain", "circuit", "7"]).unwrap();
    assert!(text.contains("tunica bypass off"), "{text}");
    let violations = metric(&lab, "tunica_front_refused_total{refusal=\"connection_rate\"}");
    assert!((0..150).all(|_| is_served(&lab, 9, 1)), "beyond the limit of connections");
    assert_eq!(metric(&lab, "tunica_front_refused_total{refusal=\"connection_rate\"}"), violations);
    lab.must(&["circuit", "ban", "9"]).unwrap();
    lab.wait_for("another ban", |lab| Ok(lab.metric("tunica_circuits_banned")? == Some(3.0))).unwrap();
    assert!(is_served(&lab, 9, 1));
    lab.must(&["bypass", "off"]).unwrap();
    lab.wait_for("its end", |lab| Ok([7, 8, 9].iter().all(|circuit| !is_served(lab, *circuit, 1)))).unwrap();
    // Without an ingress nothing of it stays, also not what another daemon attached.
    let is_pinned = |lab: &Lab| {
        let mut entries = fs::read_dir(lab.pins()).unwrap().flatten();
        entries.any(|entry| entry.file_name().to_string_lossy().starts_with("gate-v"))
    };
    assert!(is_pinned(&lab));
    lab.end(Signal::SIGKILL).unwrap();
    assert!(is_pinned(&lab));
    lab.configure("mode = \"observe\"", "").unwrap();
    lab.start().unwrap();
    lab.wait_for("the gate to go", |lab| Ok(!is_pinned(lab))).unwrap();
    for series in
        ["tunica_gate_wanted", "tunica_gate_attached", "tunica_tor_control_wanted", "tunica_front_wanted"]
    {
        assert_eq!(metric(&lab, series), 0.0, "{series}");
    }
    assert!(lab.log().contains("gate_detached"), "{}", lab.log());
}

#[test]
fn a_gate_that_cannot_be_attached_again_is_not_said_to_be_there() {
    let mut lab = Lab::new("ungated").unwrap();
    lab.host.ip(&["link", "set", "lo", "up"]).unwrap();
    lab.configure(
        "mode = \"observe\"",
        "[ingress]\nenabled = true\nbackends = [\"127.0.0.1:10001\"]\n[circuits]\nprofile = \"web\"",
    )
    .unwrap();
    lab.start().unwrap();
    assert_eq!(metric(&lab, "tunica_gate_attached"), 1.0);
    let directory = |lab: &Lab| {
        let mut entries = fs::read_dir(lab.pins()).unwrap().flatten().map(|entry| entry.path());
        entries.find(|path| path.to_string_lossy().contains("/gate-v"))
    };
    // What bpftool says of the link that is pinned there.
    let link = |lab: &Lab| {
        let pin = directory(lab).unwrap().join("link-lo");
        let said = lab.run_in_host("bpftool", &["-j", "link", "show", "pinned", pin.to_str().unwrap()]);
        serde_json::from_str::<Value>(&said.unwrap()).unwrap()["id"].to_string()
    };
    let before = link(&lab);
    // The pin goes, and the directory in which another would lie: so the link goes as well, and none can be made.
    fs::remove_dir_all(directory(&lab).unwrap()).unwrap();
    lab.wait_for("the metric", |lab| Ok(lab.metric("tunica_gate_attached")? == Some(0.0))).unwrap();
    assert_eq!(metric(&lab, "tunica_gate_wanted"), 1.0);
    assert!(lab.run_in_host("bpftool", &["link", "show", "id", &before]).is_err(), "it is still attached");
    let status = lab.json(&["status"]).unwrap();
    assert!(status["warnings"].to_string().contains("circuit gate"), "{status:#}");
    // The next audit makes all of it anew.
    lab.wait_for("the gate", |lab| Ok(lab.metric("tunica_gate_attached")? == Some(1.0))).unwrap();
    assert_ne!(link(&lab), before);
    let status = lab.json(&["status"]).unwrap();
    assert!(!status["warnings"].to_string().contains("circuit gate"), "{status:#}");
}

/// Of an ingress that has not come yet the alerts know by what is configured.
#[test]
fn what_is_to_stand_before_the_service_is_said_from_the_start() {
    let mut lab = Lab::new("wanted").unwrap();
    lab.host.ip(&["link", "set", "lo", "up"]).unwrap();
    for (more, front, haproxy) in [
        ("", 0.0, 0.0),
        (
            "[ingress]\nenabled = true\nbackends = [\"127.0.0.1:10001\"]\n[circuits]\nprofile = \"web\"",
            1.0,
            0.0,
        ),
        ("[haproxy]\nsocket = \"/nowhere/haproxy.sock\"\n[circuits]\nprofile = \"web\"", 0.0, 1.0),
    ] {
        lab.configure("mode = \"observe\"", more).unwrap();
        lab.start().unwrap();
        for (series, value) in [
            ("tunica_front_wanted", front),
            ("tunica_front_up", 0.0),
            ("tunica_haproxy_wanted", haproxy),
            ("tunica_haproxy_up", 0.0),
        ] {
            assert_eq!(metric(&lab, series), value, "{series} with\n{more}");
        }
        lab.end(Signal::SIGTERM).unwrap();
    }
}

/// As behind a tunica-front.socket of which a drop-in took the port away (docs/guide.md).
#[test]
fn behind_the_socket_file_alone_the_ingress_opens_no_port() {
    let mut lab = Lab::new("portless").unwrap();
    lab.host.ip(&["link", "set", "lo", "up"]).unwrap();
    let backend = lab.host.run(Backend::start).unwrap();
    let file = lab.path("ingress.sock");
    let ingress =
        format!("enabled = true\nsocket = \"{}\"\nbackends = [\"{}\"]", file.display(), backend.address());
    lab.configure("mode = \"observe\"", &format!("[ingress]\n{ingress}\n[circuits]\nprofile = \"web\""))
        .unwrap();
    lab.start().unwrap();
    let connects = |lab: &Lab| {
        let port = SocketAddr::from(([127, 0, 0, 1], 10_000));
        lab.host.run(|| Ok(TcpStream::connect(port)?)).is_ok()
    };
    let front = Beside::start_behind(&lab, UnixListener::bind(&file).unwrap().into()).unwrap();
    lab.wait_for("the ingress", |lab| Ok(lab.metric("tunica_front_up")? == Some(1.0))).unwrap();
    let backend_up = "tunica_front_backend_up{backend=\"1\"}";
    lab.wait_for("the backend", |lab| Ok(lab.metric(backend_up)? == Some(1.0))).unwrap();
    let mut stream = UnixStream::connect(&file).unwrap();
    stream.write_all(format!("{}{}", header(7), get("/")).as_bytes()).unwrap();
    let mut answer = Vec::new();
    read_answer(&mut stream, &mut answer).unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    assert!(!connects(&lab));
    // Without a socket that is handed over it opens both.
    drop(front);
    fs::remove_file(&file).unwrap();
    let _front = Beside::start_on_host(&lab).unwrap();
    lab.wait_for("the port", |lab| Ok(connects(lab))).unwrap();
    assert!(UnixStream::connect(&file).is_ok());
}
