//! The load level in the running programs: what it is made of, what follows from it, and what ends it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper that fails is a test that fails"
)]

use std::{
    io::{self, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use nix::sys::signal::Signal;
use serde_json::Value;
use tunica_core::load_level::Level;
use tunica_tests::{
    beside::Beside,
    ingress::{Backend, free_address, get, header, read_answer},
    lab::Lab,
    testnet::{Backend as Behind, Profile, ServiceOptions, shared},
};

/// A daemon with an ingress, whose circuits may hold so many connections.
struct Stage {
    lab: Lab,
    listen: SocketAddr,
    _front: Beside,
    _backend: Backend,
    next_circuit: u32,
}

const MOST_OPEN: usize = 8;

impl Stage {
    fn set(purpose: &str, more: &str) -> Self {
        let mut lab = Lab::new(purpose).unwrap();
        let listen = free_address().unwrap();
        let backend = Backend::start().unwrap();
        let text = format!(
            "{more}\n[ingress]\nenabled = true\nlisten = \"{listen}\"\nbackends = [\"{}\"]\nkeep_alive_seconds = 120\n\
             [circuits]\nprofile = \"web\"\nmax_concurrent_per_circuit = {MOST_OPEN}\nshadow = [\"puzzle_required\"]",
            backend.address()
        );
        lab.configure("mode = \"observe\"", &text).unwrap();
        lab.start().unwrap();
        let front = Beside::start(&lab).unwrap();
        lab.wait_for("the ingress", |lab| Ok(lab.metric("tunica_front_up")? == Some(1.0))).unwrap();
        Self { lab, listen, _front: front, _backend: backend, next_circuit: 1 }
    }

    fn threat(&self) -> Value {
        self.lab.json(&["threat"]).unwrap()
    }

    /// Waits until the ingress holds to this share of its limits.
    fn wait_for_share(&mut self, share: u64) {
        let what = format!("a share of {share}");
        self.lab
            .wait_for(&what, |lab| Ok(lab.json(&["threat"])?["held"]["share"].as_u64() == Some(share)))
            .unwrap();
    }

    /// How many connections a circuit of which nothing is known may have open at once.
    fn most_open(&mut self) -> usize {
        let circuit = self.next_circuit;
        self.next_circuit += 1;
        let listen = self.listen;
        std::iter::from_fn(|| one(listen, circuit)).collect::<Vec<_>>().len()
    }

    /// How many SYNs of a stranger pass at once.
    fn burst(&self) -> u64 {
        let told = self.lab.json(&["explain", "203.0.113.77", "--packets", "40"]).unwrap();
        assert_eq!(told["outcomes"][0]["action"], "pass", "{told:#}");
        told["outcomes"][0]["count"].as_u64().unwrap()
    }

    fn metric(&self, series: &str) -> f64 {
        self.lab.metric(series).unwrap().unwrap_or_else(|| panic!("no {series}"))
    }
}

#[test]
fn an_operators_level_leaves_less_to_circuits_and_ports_and_ends_as_it_came() {
    let mut stage = Stage::set("threat", "");
    stage.wait_for_share(10_000);
    assert_eq!(stage.most_open(), MOST_OPEN);
    let burst = stage.burst();
    let calm = stage.threat();
    assert_eq!((&calm["level"], &calm["word"]), (&Value::from("calm"), &Value::from("measured")));

    // A rehearsal changes nothing.
    let dry = stage.lab.json(&["threat", "set", "under_attack", "--dry-run"]).unwrap();
    assert_eq!(dry["dry_run"], true);
    assert_eq!(stage.threat()["level"], "calm");
    let said = stage.lab.must(&["threat", "set", "under_attack", "--for", "1h"]).unwrap();
    assert!(said.contains("tunica threat clear"), "{said}");
    stage.wait_for_share(5_000);
    assert_eq!(stage.most_open(), MOST_OPEN / 2);
    stage
        .lab
        .wait_for("the refusal", |lab| {
            let refused = lab.metric("tunica_front_refused_total{refusal=\"under_load\"}")?;
            Ok(refused.is_some_and(|refused| refused >= 1.0))
        })
        .unwrap();
    assert_eq!(stage.metric("tunica_load_level{level=\"under_attack\"}"), 1.0);
    assert_eq!(stage.metric("tunica_load_pinned"), 1.0);
    assert_eq!(stage.metric("tunica_load_changes_total{level=\"under_attack\"}"), 1.0);
    // Ports have half their rates, and who only observes drops nothing.
    assert!(stage.burst() <= burst / 2 + 2, "{} of {burst}", stage.burst());
    let status = stage.lab.json(&["status"]).unwrap();
    assert_eq!((&status["mode"], &status["load"]["level"]), (&"observe".into(), &"under_attack".into()));
    let shown = stage.lab.must(&["threat"]).unwrap();
    assert!(shown.contains("set by hand") && shown.contains("half the configured rates"), "{shown}");

    // It is as durable as a ban.
    stage.lab.end(Signal::SIGKILL).unwrap();
    stage.lab.start().unwrap();
    stage.wait_for_share(5_000);
    assert_eq!(stage.most_open(), MOST_OPEN / 2);
    stage.lab.must(&["threat", "clear"]).unwrap();
    stage.wait_for_share(10_000);
    assert_eq!(stage.most_open(), MOST_OPEN);
    assert!(stage.burst() >= burst - 2);
    let ran = stage.lab.tunica(&["threat", "clear"]).unwrap();
    assert_eq!(ran.code, Some(4), "{ran:?}");

    // Attack mode is above a lower level that was set by hand, and leaves it as it was.
    stage.lab.must(&["threat", "set", "calm"]).unwrap();
    let said = stage.lab.must(&["panic"]).unwrap();
    assert!(said.contains("rests"), "{said}");
    stage.wait_for_share(7_500);
    let heavy = stage.threat();
    assert_eq!((&heavy["level"], &heavy["word"]), (&"heavy".into(), &"attack_mode".into()));
    stage.lab.must(&["panic", "off"]).unwrap();
    stage.wait_for_share(10_000);
    let word = stage.threat();
    assert_eq!((&word["level"], &word["word"]), (&"calm".into(), &"operator".into()));
}

#[test]
fn without_a_daemon_the_ingress_returns_to_its_own_limits() {
    let mut stage = Stage::set("lease", "");
    stage.lab.must(&["threat", "set", "under_attack"]).unwrap();
    stage.wait_for_share(5_000);
    assert_eq!(stage.most_open(), MOST_OPEN / 2);
    stage.lab.end(Signal::SIGKILL).unwrap();
    assert_eq!(stage.most_open(), MOST_OPEN / 2, "at first it goes on with its last orders");
    let mut circuit = stage.next_circuit;
    let (listen, mut most) = (stage.listen, 0);
    stage
        .lab
        .wait_for("the configured limits", |_| {
            let open: Vec<_> = (0..=MOST_OPEN / 2).map_while(|_| one(listen, circuit)).collect();
            circuit += 1;
            most = open.len();
            Ok(most > MOST_OPEN / 2)
        })
        .unwrap_or_else(|error| panic!("{most} were served: {error:#}"));
    stage.next_circuit = circuit;
    // A daemon that comes back says it again, because the level is still set.
    stage.lab.start().unwrap();
    stage.wait_for_share(5_000);
    assert_eq!(stage.most_open(), MOST_OPEN / 2);
}

/// Lets what runs in the lab's host reach an address of the test's own network by the same address, for as long as the test
/// runs.
fn lend(lab: &Lab, address: SocketAddr) {
    lab.host.ip(&["link", "set", "lo", "up"]).unwrap();
    let listener = lab.host.run(|| Ok(TcpListener::bind(address)?)).unwrap();
    thread::spawn(move || {
        for mut near in listener.incoming().flatten() {
            // Who finds nobody is closed, as he would be there.
            let Ok(mut far) = TcpStream::connect(address) else { continue };
            let (mut near_again, mut far_again) = (near.try_clone().unwrap(), far.try_clone().unwrap());
            thread::spawn(move || {
                let _ = io::copy(&mut near_again, &mut far_again);
                let _ = far_again.shutdown(Shutdown::Write);
            });
            thread::spawn(move || {
                let _ = io::copy(&mut far, &mut near);
                let _ = near.shutdown(Shutdown::Both);
            });
        }
    });
}

fn level(threat: &Value) -> usize {
    let measured = threat["measured"].as_str().unwrap();
    Level::ALL.iter().position(|level| level.name() == measured).unwrap()
}

#[test]
fn a_flood_through_tor_raises_the_level_which_falls_again_and_a_new_tor_does_not() {
    let network = shared(Profile::Usual).unwrap();
    let mut lab = Lab::new("torload").unwrap();
    let listen = free_address().unwrap();
    let backend = Backend::start().unwrap();
    let mut service = network.service(&ServiceOptions::new(80, Behind::Tcp(listen))).unwrap();
    lend(&lab, service.metrics_port());
    lab.configure(
        "mode = \"observe\"",
        &format!(
            "[tor]\ncontrol = \"unix:{}\"\nmetrics = \"{}\"\n\
             [load]\nrise_seconds = 1\nfall_seconds = 10\nrendezvous_per_second = 1\n\
             [ingress]\nenabled = true\nlisten = \"{listen}\"\nbackends = [\"{}\"]\n[circuits]\nprofile = \"web\"",
            service.control_address().socket.display(),
            service.metrics_port(),
            backend.address()
        ),
    )
    .unwrap();
    lab.start().unwrap();
    let _front = Beside::start(&lab).unwrap();
    let everything_is_known = |lab: &mut Lab| {
        lab.wait_for("all inputs", |lab| {
            let known = lab.json(&["threat"])?["grounds"].to_string();
            Ok([
                "tor_cpu",
                "rendezvous",
                "rejections",
                "queue",
                "wait",
                "connections",
                "challenged",
                "cpu_pressure",
            ]
            .iter()
            .all(|input| known.contains(&format!("\"{input}\""))))
        })
        .unwrap_or_else(|error| panic!("{error:#}\n{:#}", lab.json(&["threat"]).unwrap()));
    };
    everything_is_known(&mut lab);
    assert!(lab.metric("tunica_load_ratio{input=\"tor_cpu\"}").unwrap().is_some());

    // Another tor process counts from zero, and is no load for that.
    service.restart().unwrap();
    lab.wait_for("the new tor", |lab| {
        let known = lab.json(&["threat"])?["unknown"].to_string();
        Ok(known.contains("tor_cpu") || lab.log().matches("tor_control_connected").count() >= 2)
    })
    .unwrap();
    everything_is_known(&mut lab);
    for level in Level::ALL {
        let changes = format!("tunica_load_changes_total{{level=\"{}\"}}", level.name());
        assert_eq!(lab.metric(&changes).unwrap(), Some(0.0), "{changes}");
    }

    // Visitors who come with a circuit each, more than this service is said to bear.
    let is_over = Arc::new(AtomicBool::new(false));
    let client = Arc::new(network.client().unwrap());
    let flood: Vec<_> = (0..6)
        .map(|_| {
            let (client, is_over, onion) =
                (Arc::clone(&client), Arc::clone(&is_over), service.onion().to_owned());
            thread::spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    // Some come to nothing, which is the point of it.
                    drop(client.connect_afresh(&onion, 80));
                }
            })
        })
        .collect();
    lab.wait_for("a higher level", |lab| Ok(level(&lab.json(&["threat"])?) >= 1))
        .unwrap_or_else(|error| panic!("{error:#}\n{:#}", lab.json(&["threat"]).unwrap()));
    let threat = lab.json(&["threat"]).unwrap();
    let holds = |threat: &Value, input: &str| {
        let grounds = threat["grounds"].as_array().unwrap();
        grounds.iter().any(|ground| ground["input"] == input && ground["holds_level"] == true)
    };
    assert!(holds(&threat, "rendezvous"), "{threat:#}");
    assert!(lab.log().contains("load_level"), "{}", lab.log());
    is_over.store(true, Ordering::Relaxed);
    flood.into_iter().for_each(|visitor| visitor.join().unwrap());
    for level in (0..Level::ALL.len() - 1).rev() {
        let what = format!("a level of at most {level}");
        lab.wait_for(&what, |lab| Ok(self::level(&lab.json(&["threat"])?) <= level))
            .unwrap_or_else(|error| panic!("{error:#}\n{:#}", lab.json(&["threat"]).unwrap()));
    }

    // What cannot be read is said, and the level does without it.
    drop(service);
    lab.wait_for("the failures", |lab| {
        let failures = lab.metric("tunica_load_reading_failures_total{part=\"tor_metrics\"}")?;
        Ok(failures.is_some_and(|failures| failures >= 1.0))
    })
    .unwrap();
    let warnings = lab.json(&["status"]).unwrap()["warnings"].to_string();
    assert!(warnings.contains("the load level does without tor's introductions"), "{warnings}");
    let doctor = lab.json(&["doctor"]).unwrap();
    let findings = doctor["findings"].as_array().unwrap();
    let finding = findings.iter().find(|finding| finding["check"] == "load").unwrap();
    assert_eq!(finding["level"], "warning", "{finding:#}");
}

/// A connection of the circuit that was served.
fn one(listen: SocketAddr, circuit: u32) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(listen).unwrap();
    stream.write_all(format!("{}{}", header(circuit), get("/")).as_bytes()).unwrap();
    let mut answer = Vec::new();
    read_answer(&mut stream, &mut answer).ok()?;
    answer.starts_with(b"HTTP/1.1 200").then_some(stream)
}
