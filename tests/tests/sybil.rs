//! New circuits that are alike: what is told of a crowd, what follows from it, and what never does.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper that fails is a test that fails"
)]

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    net::{SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use serde_json::Value;
use tunica_core::{
    circuit_features::{Feature, MOST_WATCHED},
    newcomers::FEWEST_KNOWN,
};
use tunica_tests::{
    beside::Beside,
    ingress::{Backend, free_address, get, header, open, read_answer},
    lab::Lab,
    testnet::{Backend as Behind, Profile, ServiceOptions, shared},
};

/// Circuits of a crowd: more than twice the visitors of a minute.
const CROWD: u32 = 300;
/// The first circuit of a test: larger than any number that a sample may hold.
const FIRST_CIRCUIT: u32 = 1_000_001;

/// A daemon with an ingress before a backend, and visitors who keep coming.
struct Stage {
    lab: Lab,
    listen: SocketAddr,
    _front: Beside,
    _backend: Backend,
    next: Arc<AtomicU32>,
    is_over: Arc<AtomicBool>,
    visitors: Option<JoinHandle<()>>,
}

impl Stage {
    /// Learned what is usual here.
    fn set(purpose: &str) -> Self {
        let mut lab = Lab::new(purpose).unwrap();
        let listen = free_address().unwrap();
        let backend = Backend::start().unwrap();
        let text = format!(
            "[sybil]\nlearn_seconds = 1\nraises_level = \"moderate\"\nsamples = true\n\
             [ingress]\nenabled = true\nlisten = \"{listen}\"\nbackends = [\"{}\"]\nkeep_alive_seconds = 30\n\
             [circuits]\nprofile = \"web\"\nmax_connections_per_second = 1000\nshadow = [\"puzzle_required\"]",
            backend.address()
        );
        lab.configure("mode = \"observe\"", &text).unwrap();
        lab.start().unwrap();
        let front = Beside::start(&lab).unwrap();
        lab.wait_for("the ingress", |lab| Ok(lab.metric("tunica_front_up")? == Some(1.0))).unwrap();
        let (next, is_over) = (Arc::new(AtomicU32::new(FIRST_CIRCUIT)), Arc::new(AtomicBool::new(false)));
        let (ours, stop) = (Arc::clone(&next), Arc::clone(&is_over));
        let visitors = thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let circuit = ours.fetch_add(1, Ordering::Relaxed);
                // Some come for what the crowd will come for, too.
                let of = if circuit % 7 == 0 { ask } else { visit };
                thread::spawn(move || of(listen, circuit));
                thread::sleep(Duration::from_millis(500));
            }
        });
        let visitors = Some(visitors);
        let mut stage = Self { lab, listen, _front: front, _backend: backend, next, is_over, visitors };
        for known in (4..=FEWEST_KNOWN + 4).step_by(4) {
            stage.wait_for("what is usual", "tunica_circuits_known", known as f64);
        }
        stage
    }

    fn wait_for(&mut self, what: &str, series: &str, least: f64) {
        self.lab
            .wait_for(what, |lab| Ok(lab.metric(series)?.is_some_and(|value| value >= least)))
            .unwrap_or_else(|error| panic!("{error:#}\n{}", self.lab.must(&["circuits"]).unwrap()));
    }

    fn metric(&self, series: &str) -> f64 {
        metric_of(&self.lab, series)
    }

    /// So many new circuits at once; waits until all of them were told of.
    fn crowd(&mut self, of: impl Fn(SocketAddr, u32) + Copy + Send + 'static) {
        const SCORED: &str = "tunica_circuits_anomaly_score_count";
        let (listen, before) = (self.listen, self.metric(SCORED));
        let first = self.next.fetch_add(CROWD, Ordering::Relaxed);
        let parts: Vec<_> = (0..30)
            .map(|part| {
                thread::spawn(move || {
                    (first..first + CROWD)
                        .filter(|circuit| circuit % 30 == part)
                        .for_each(|circuit| of(listen, circuit));
                })
            })
            .collect();
        parts.into_iter().for_each(|part| part.join().unwrap());
        self.wait_for("the crowd to be told of", SCORED, before + f64::from(CROWD));
    }

    /// Nobody was refused, banned or cut off.
    fn nobody_was_refused(&self) {
        let text = self.lab.http("/metrics").unwrap().1;
        let refused: Vec<_> = text
            .lines()
            .filter(|line| line.starts_with("tunica_front_refused_total") && !line.ends_with(" 0"))
            .collect();
        assert!(refused.is_empty(), "{refused:?}");
        assert_eq!(self.metric("tunica_circuits_banned"), 0.0);
        assert_eq!(self.metric("tunica_circuits_unwatched_total"), 0.0);
    }

    /// What the daemon wrote down: a line each, without anything that names a circuit, a path or an address.
    fn samples(&self) -> Vec<Value> {
        let path = self.lab.path("circuits.jsonl");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        let text = fs::read_to_string(path).unwrap();
        let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        rows.iter().for_each(check_sample);
        rows
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(visitors) = self.visitors.take() {
            let _ = visitors.join();
        }
    }
}

fn metric_of(lab: &Lab, series: &str) -> f64 {
    lab.metric(series).unwrap().unwrap_or_else(|| panic!("no {series}"))
}

/// Only these keys, each with a value that can name nobody.
fn check_sample(row: &Value) {
    let keys: BTreeSet<_> = row.as_object().unwrap().keys().map(String::as_str).collect();
    let expected = ["alike", "circuit", "features", "hour", "level", "path_class", "relay_class", "score"];
    assert_eq!(keys, expected.into(), "{row}");
    let hour = row["hour"].as_str().unwrap();
    assert!(hour.len() == 20 && hour.ends_with(":00:00Z"), "{row}");
    let word = row["circuit"].as_str().unwrap();
    assert!(word.len() == 16 && word.bytes().all(|byte| byte.is_ascii_hexdigit()), "{row}");
    assert!(["calm", "light", "moderate", "heavy", "under_attack"].contains(&row["level"].as_str().unwrap()));
    assert!(row["path_class"].as_u64().unwrap() <= 64);
    assert!(row["relay_class"].is_null() || row["relay_class"].as_u64().unwrap() <= u16::MAX.into());
    assert!(row["score"].is_null() || row["score"].as_f64().unwrap() <= 20.0);
    let features = row["features"].as_object().unwrap();
    let names: BTreeSet<_> = features.keys().map(String::as_str).collect();
    assert_eq!(names, Feature::ALL.iter().map(|feature| feature.name()).collect());
    assert!(features.values().all(|value| value.as_u64().unwrap() < 1_024), "{row}");
}

/// Somebody who reads: another page each, so many things on it, and more or less patience. By the circuit's number, so that each
/// run is the same.
fn visit(listen: SocketAddr, circuit: u32) {
    let odd = circuit.wrapping_mul(2_654_435_761) >> 8;
    let (things, pause) = (odd % 5, Duration::from_millis(20 << (odd % 6)));
    let Ok(mut stream) = TcpStream::connect(listen) else { return };
    stream.write_all(header(circuit).as_bytes()).unwrap();
    for thing in 0..=things {
        stream.write_all(get(&format!("/page/{circuit}/{thing}")).as_bytes()).unwrap();
        if read_answer(&mut stream, &mut Vec::new()).is_err() {
            return;
        }
        thread::sleep(pause);
    }
}

/// A tool that asks for one page and goes.
fn ask(listen: SocketAddr, circuit: u32) {
    let mut stream = TcpStream::connect(listen).unwrap();
    stream.write_all(format!("{}{}", header(circuit), get("/login")).as_bytes()).unwrap();
    let mut answer = Vec::new();
    read_answer(&mut stream, &mut answer).unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200"));
}

#[test]
fn a_crowd_that_is_alike_is_told_of_raises_the_level_by_one_and_refuses_nobody() {
    let mut stage = Stage::set("sybil");
    assert_eq!(stage.metric("tunica_circuits_alike"), 0.0);
    stage.crowd(ask);
    stage.wait_for("the crowd", "tunica_circuits_alike", 1.0);
    assert!(stage.metric("tunica_circuits_alike_usual_ratio") > 0.0);
    assert!(
        stage.metric("tunica_circuits_alike_ratio") > 0.5 + stage.metric("tunica_circuits_alike_usual_ratio")
    );
    let threat = stage.lab.json(&["threat"]).unwrap();
    let word = [&threat["level"], &threat["word"], &threat["measured"]];
    assert_eq!(word, ["light", "new_circuits", "calm"], "one level more, although two would be allowed");
    for verb in ["status", "circuits"] {
        let shown = stage.lab.must(&[verb]).unwrap();
        assert!(shown.contains("TOO MANY ALIKE"), "{shown}");
    }
    // Nothing is learned of them, and nobody is turned away: neither they nor visitors.
    let known = stage.metric("tunica_circuits_known");
    stage.crowd(visit);
    assert_eq!(stage.metric("tunica_circuits_known"), known);
    stage.nobody_was_refused();
    let log = stage.lab.log();
    assert!(log.contains("circuits_alike") && log.contains("new circuits are alike"), "{log}");

    let samples = stage.samples();
    assert!(samples.len() >= 2 * CROWD as usize, "{}", samples.len());
    let words: BTreeSet<_> = samples.iter().map(|row| row["circuit"].as_str().unwrap()).collect();
    assert_eq!(words.len(), samples.len(), "a circuit is told of once");
    assert!(samples.iter().any(|row| row["alike"] == true && row["level"] == "light"));
    let everything = format!("{log}{}", stage.lab.http("/metrics").unwrap().1);
    for secret in ["/login", "/page", "fc00:", &FIRST_CIRCUIT.to_string()] {
        assert!(!everything.contains(secret), "{secret}");
    }
}

#[test]
fn a_crowd_of_the_same_size_that_is_mixed_changes_nothing() {
    let mut stage = Stage::set("mixed");
    stage.crowd(visit);
    assert_eq!(stage.metric("tunica_circuits_alike"), 0.0);
    let shown = stage.lab.must(&["circuits"]).unwrap();
    assert!(shown.contains("are alike") && !shown.contains("TOO MANY"), "{shown}");
    for level in ["light", "moderate", "heavy", "under_attack"] {
        assert_eq!(stage.metric(&format!("tunica_load_changes_total{{level=\"{level}\"}}")), 0.0, "{level}");
    }
    assert!(!stage.lab.log().contains("circuits_alike"));
    stage.nobody_was_refused();
    assert!(stage.samples().len() >= CROWD as usize);

    // A file that cannot be written is said, and is no longer once it can.
    let (file, path) = (stage.lab.path("circuits.jsonl"), stage.lab.path("tunica.toml"));
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    stage.wait_for("the failure", "tunica_circuits_samples_total{outcome=\"failed\"}", 1.0);
    let warnings = stage.lab.json(&["status"]).unwrap()["warnings"].to_string();
    assert!(warnings.contains("samples of new circuits cannot be written"), "{warnings}");
    fs::remove_dir(&file).unwrap();
    stage.wait_for("a line", "tunica_circuits_samples_total{outcome=\"written\"}", f64::from(CROWD) + 1.0);
    stage.lab.wait_for("the file", |_| Ok(file.is_file())).unwrap();
    let warnings = stage.lab.json(&["status"]).unwrap()["warnings"].to_string();
    assert!(!warnings.contains("samples of new circuits"), "{warnings}");
    // Switched off, it is written no more, and what was written stays.
    let text = fs::read_to_string(&path).unwrap().replace("samples = true", "samples = false");
    fs::write(&path, text).unwrap();
    stage.lab.must(&["reload"]).unwrap();
    let lines = fs::read_to_string(&file).unwrap().lines().count();
    let scored = stage.metric("tunica_circuits_anomaly_score_count");
    stage.wait_for("more circuits", "tunica_circuits_anomaly_score_count", scored + 4.0);
    assert_eq!(fs::read_to_string(&file).unwrap().lines().count(), lines);
}

#[test]
fn more_circuits_than_can_be_watched_are_counted() {
    let mut lab = Lab::new("unwatched").unwrap();
    let listen = free_address().unwrap();
    let backend = Backend::start().unwrap();
    lab.configure(
        "mode = \"observe\"",
        &format!("[ingress]\nenabled = true\nlisten = \"{listen}\"\nbackends = [\"{}\"]", backend.address()),
    )
    .unwrap();
    lab.start().unwrap();
    let _front = Beside::start(&lab).unwrap();
    lab.wait_for("the ingress", |lab| Ok(lab.metric("tunica_front_up")? == Some(1.0))).unwrap();
    let mut circuits = FIRST_CIRCUIT..;
    // Most of them are refused, and each is new.
    lab.wait_for("circuits that are not watched", |lab| {
        for circuit in circuits.by_ref().take(1_000) {
            let _ = TcpStream::connect(listen)?.write_all(header(circuit).as_bytes());
        }
        Ok(lab.metric("tunica_circuits_unwatched_total")?.is_some_and(|unwatched| unwatched >= 1.0))
    })
    .unwrap();
    assert!(metric_of(&lab, "tunica_circuits_new_total") > f64::from(MOST_WATCHED));
    assert!(!lab.path("circuits.jsonl").exists(), "nobody asked for samples");
}

#[test]
fn through_tor_the_relay_counts_and_is_not_told() {
    let network = shared(Profile::Usual).unwrap();
    let mut lab = Lab::new("sybiltor").unwrap();
    let listen = free_address().unwrap();
    let backend = Backend::start().unwrap();
    let service = network.service(&ServiceOptions::new(80, Behind::Tcp(listen))).unwrap();
    lab.configure(
        "mode = \"observe\"",
        &format!(
            "[tor]\ncontrol = \"unix:{}\"\n[sybil]\nsamples = true\n\
             [ingress]\nenabled = true\nlisten = \"{listen}\"\nbackends = [\"{}\"]\n[circuits]\nprofile = \"web\"",
            service.control_address().socket.display(),
            backend.address()
        ),
    )
    .unwrap();
    lab.start().unwrap();
    let _front = Beside::start(&lab).unwrap();
    lab.wait_for("the ingress", |lab| Ok(lab.metric("tunica_front_up")? == Some(1.0))).unwrap();
    lab.wait_for("tor", |lab| Ok(lab.metric("tunica_tor_control_up")? == Some(1.0))).unwrap();
    let client = network.client().unwrap();
    let (stays, _) = open(&client, &service).unwrap();
    drop(open(&client, &service).unwrap());
    // One circuit ends before it is told of: where it met the service is known all the same.
    let told = lab.json(&["circuits"]).unwrap();
    let circuits: Vec<_> =
        told["tor"].as_array().unwrap().iter().map(|row| row["circuit"].to_string()).collect();
    let relays: Vec<_> = told["tor"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|row| row["rendezvous"].as_str())
        .map(str::to_owned)
        .collect();
    let last = circuits.iter().max_by_key(|circuit| circuit.parse::<u64>().unwrap()).unwrap();
    lab.must(&["circuit", "close", last]).unwrap();
    lab.wait_for("both samples", |lab| {
        let text = fs::read_to_string(lab.path("circuits.jsonl")).unwrap_or_default();
        Ok(text.lines().count() >= 2)
    })
    .unwrap();
    drop(stays);
    let text = fs::read_to_string(lab.path("circuits.jsonl")).unwrap();
    for line in text.lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        check_sample(&row);
        assert!(row["relay_class"].is_u64(), "{row}");
    }
    assert!(
        !relays.is_empty()
            && relays.iter().all(|relay| relay.get(..8).is_some_and(|start| !text.contains(start)))
    );
}
