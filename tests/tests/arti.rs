//! The onion service that the ingress hosts itself, with Arti, on a private network of the real tor.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper that fails is a test that fails"
)]

use std::{fs, io::Write as _, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tunica_api::front::ARTI_STATES;
use tunica_tests::{
    armed::program,
    beside::{Beside, arti_front},
    fate::{self, Stage},
    hosted::{address, configure},
    ingress::{Backend, answers, get, read_answer},
    lab::Lab,
    notify::NotifySocket,
    sys::end_with_parent,
    testnet::{Client, Profile, shared},
};

/// `EX_CONFIG` of sysexits.h.
const BAD_CONFIGURATION: Option<i32> = Some(78);
/// A client's secret key for restricted discovery (x25519, the bytes 1 to 32), as the control port takes it, and the public key
/// that goes with it, as the service takes it.
const CLIENT_KEY: &str = "AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA=";
const CLIENT_AUTH: &str = "descriptor:x25519:A6RXZPAUECJ4RN2V3QNRB2DMWQTDOSWRNKUFH3IL37ALFODNDR6A\n";

/// Starts the daemon and a front that hosts the service, and says its address.
fn hosted(lab: &mut Lab) -> (String, Beside) {
    lab.start().unwrap();
    let onion = address(lab).unwrap();
    let front = Beside::start_with_arti(lab).unwrap();
    lab.wait_for("the ingress", |lab| Ok(lab.metric("tunica_front_up")? == Some(1.0))).unwrap();
    (onion, front)
}

/// Waits until a client is served.
fn reached(lab: &mut Lab, client: &Client, onion: &str) {
    lab.wait_for("the service", |_| Ok(fate::open(client, onion).is_ok())).unwrap();
}

/// Waits until the daemon knows open circuits of the process that hosts the service.
fn circuits_known(lab: &mut Lab) {
    let known = |lab: &Lab| {
        // While one of two has just gone from the daemon there may be no answer.
        let Ok(answer) = lab.json(&["circuits"]) else { return Ok(false) };
        let rows = answer.pointer("/digest/circuits").and_then(Value::as_array).map(Vec::as_slice);
        Ok(rows.unwrap_or_default().iter().any(|row| row["open"].as_u64() > Some(0)))
    };
    lab.wait_for("the circuits of whoever hosts the service", |lab| known(lab)).unwrap();
}

/// That the front ends when it is told to, and nobody who reads its log hears of a fault.
fn ends_without_a_panic(lab: &mut Lab, front: &mut Beside) {
    front.signal(Signal::SIGTERM).unwrap();
    lab.wait_for("the front's end", |_| Ok(front.ended()?.is_some())).unwrap();
    let said = fs::read_to_string(lab.path("front.log")).unwrap();
    assert!(front.ended().unwrap().is_some_and(|ended| ended.success()), "{said}");
    assert!(!said.contains("panicked"), "{said}");
}

/// That the front ends at once, and says this.
fn refused(lab: &Lab, program: &Path, says: &[&str]) {
    let mut command = Command::new(program);
    let ran = command.arg("--config").arg(lab.path("tunica.toml")).output().unwrap();
    let text = String::from_utf8(ran.stderr).unwrap();
    assert_eq!(ran.status.code(), BAD_CONFIGURATION, "{text}");
    for part in says {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[test]
fn circuits_of_a_hosted_service_share_the_fate_of_those_of_c_tor() {
    // The network comes up meanwhile.
    let network = std::thread::spawn(|| shared(Profile::Usual).unwrap());
    let mut lab = Lab::new("arti").unwrap();
    let backend = Backend::start().unwrap();
    let network = network.join().unwrap();
    configure(&lab, &network, &backend, "", fate::CIRCUITS).unwrap();
    let (onion, _front) = hosted(&mut lab);
    let client = network.client().unwrap();
    reached(&mut lab, &client, &onion);
    fate::hold(&mut Stage { lab: &mut lab, client: &client, onion: &onion, backend: &backend }).unwrap();

    let (mut stream, _) = fate::open(&client, &onion).unwrap();
    let known = |lab: &Lab, series: &str| lab.metric(series).map(Option::unwrap_or_default);
    lab.wait_for("the open circuit", |lab| Ok(known(lab, "tunica_front_arti_circuits")? >= 1.0)).unwrap();
    assert!(known(&lab, "tunica_front_arti_rendezvous_total").unwrap() >= 5.0);
    let states: Vec<_> = ARTI_STATES
        .iter()
        .filter(|state| known(&lab, &format!("tunica_front_arti_state{{state=\"{state}\"}}")).unwrap() == 1.0)
        .collect();
    assert!(states.len() == 1 && !["waiting", "failed", "shutdown"].contains(states[0]), "{states:?}");
    assert!(answers(&mut stream));
    let log = fs::read_to_string(lab.path("front.log")).unwrap();
    let name = onion.trim_end_matches(".onion");
    assert!(onion.len() == 62 && !log.contains(name) && !lab.log().contains(name), "{log}");
}

#[test]
fn circuits_of_a_hosted_service_are_closed_for_their_age_as_those_of_c_tor() {
    let network = shared(Profile::Usual).unwrap();
    let mut lab = Lab::new("artirotation").unwrap();
    let backend = Backend::start().unwrap();
    configure(&lab, &network, &backend, "", fate::ROTATION).unwrap();
    let (onion, _front) = hosted(&mut lab);
    let client = network.client().unwrap();
    reached(&mut lab, &client, &onion);
    // What it was reached by is forgotten with its end.
    lab.wait_for("the end of its circuits", |lab| {
        Ok(lab.metric("tunica_circuits_tracked")? == Some(0.0)
            && lab.metric("tunica_front_arti_circuits")? == Some(0.0))
    })
    .unwrap();
    fate::rotate(&mut Stage { lab: &mut lab, client: &client, onion: &onion, backend: &backend }).unwrap();
}

#[test]
fn the_key_of_c_tor_keeps_its_address_and_one_process_at_a_time_hosts_it() {
    let network = shared(Profile::Usual).unwrap();
    let mut lab = Lab::new("artikey").unwrap();
    let backend = Backend::start().unwrap();
    let (keys, onion) = network.unpublished_keys().unwrap();
    let key = lab.path("hs_ed25519_secret_key");
    fs::copy(keys.join("hs_ed25519_secret_key"), &key).unwrap();
    let line = format!("key_file = \"{}\"", key.display());
    configure(&lab, &network, &backend, &line, "profile = \"web\"").unwrap();
    let with_arti = arti_front().unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    refused(&lab, &with_arti, &["mode 0644", "chmod 600"]);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(address(&lab).unwrap(), onion);
    // It is said before the process that hosts the service ends for this one.
    let open = lab.path("arti/left by a restore");
    fs::write(&open, "").unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o666)).unwrap();
    refused(&lab, &with_arti, &["arti.state_dir", "nobody else may be able to write"]);
    fs::remove_file(&open).unwrap();

    lab.start().unwrap();
    let first = Beside::start_with_arti(&lab).unwrap();
    lab.wait_for("the ingress", |lab| Ok(lab.metric("tunica_front_up")? == Some(1.0))).unwrap();
    let client = network.client().unwrap();
    reached(&mut lab, &client, &onion);
    let (mut stream, _) = fate::open(&client, &onion).unwrap();

    // A second process waits for the first to give the service up, and takes its place.
    let second = Beside::start_with_arti(&lab).unwrap();
    let says = |lab: &mut Lab, words: &str| {
        lab.wait_for(words, |lab| Ok(fs::read_to_string(lab.path("front.log"))?.contains(words))).unwrap();
    };
    says(&mut lab, "another process hosts the onion service");
    let waiting = "tunica_front_arti_state{state=\"waiting\"}";
    lab.wait_for("word of the one that waits", |lab| Ok(lab.metric(waiting)? == Some(1.0))).unwrap();
    // It has no circuits yet, and takes those of the first from nobody.
    circuits_known(&mut lab);
    assert!(answers(&mut stream));
    let begun = std::thread::spawn(move || {
        let mut answer = Vec::new();
        stream.write_all(get("/slow/3000").as_bytes()).unwrap();
        read_answer(&mut stream, &mut answer).unwrap();
        String::from_utf8(answer).unwrap()
    });
    lab.wait_for("the request", |_| Ok(backend.requests().iter().any(|asked| asked.contains("/slow"))))
        .unwrap();
    first.signal(Signal::SIGTERM).unwrap();
    says(&mut lab, "the ingress takes no more streams");
    assert!(begun.join().unwrap().starts_with("HTTP/1.1 200"), "what was begun must end");
    let another = network.client().unwrap();
    reached(&mut lab, &another, &onion);
    let (mut stream, _) = fate::open(&another, &onion).unwrap();
    circuits_known(&mut lab);
    assert!(answers(&mut stream));
    drop((first, second));

    // What it took over stays, and no other key takes its place.
    assert_eq!(address(&lab).unwrap(), onion);
    let (other, _) = network.unpublished_keys().unwrap();
    fs::copy(other.join("hs_ed25519_secret_key"), &key).unwrap();
    refused(&lab, &with_arti, &["another onion address", "remove arti.key_file"]);
    fs::copy(other.join("hs_ed25519_public_key"), &key).unwrap();
    refused(&lab, &with_arti, &["this is a public key", "hs_ed25519_secret_key"]);
    configure(&lab, &network, &backend, "", "profile = \"web\"").unwrap();
    assert_eq!(address(&lab).unwrap(), onion);
}

#[test]
fn only_clients_with_a_key_find_a_service_that_has_some_and_a_circuit_has_its_streams() {
    let network = shared(Profile::Usual).unwrap();
    let mut lab = Lab::new("artiauth").unwrap();
    let backend = Backend::start().unwrap();
    let clients = lab.path("clients");
    let lines = format!("clients_dir = \"{}\"\nmax_streams_per_circuit = 3", clients.display());
    configure(&lab, &network, &backend, &lines, "profile = \"web\"").unwrap();
    let with_arti = arti_front().unwrap();
    refused(&lab, &with_arti, &["arti.clients_dir", "cannot be read"]);
    fs::create_dir(&clients).unwrap();
    refused(&lab, &with_arti, &["nobody could find the service"]);
    fs::write(clients.join("An old friend.auth"), "descriptor:x25519:A6RXZPAU\n").unwrap();
    refused(&lab, &with_arti, &["An old friend.auth is no key of a client"]);
    fs::write(clients.join("An old friend.auth"), CLIENT_AUTH).unwrap();
    let onion = address(&lab).unwrap();
    lab.start().unwrap();
    let _front = Beside::start_with_arti(&lab).unwrap();
    lab.wait_for("the ingress", |lab| Ok(lab.metric("tunica_front_up")? == Some(1.0))).unwrap();

    let (friend, stranger) = (network.client().unwrap(), network.client().unwrap());
    let name = onion.trim_end_matches(".onion");
    let add = format!("ONION_CLIENT_AUTH_ADD {name} x25519:{CLIENT_KEY}");
    friend.control_address().connect().unwrap().ask(&add).unwrap();
    reached(&mut lab, &friend, &onion);
    for attempt in 0..3 {
        let reached = stranger.connect(&onion, 80, &format!("stranger{attempt}"));
        assert!(reached.is_err(), "a client without a key reached the service");
    }
    // With the key the same client does: it is the key that it lacked.
    // tor says so at once (control-spec, 252), for which this client has no word.
    let said = stranger.control_address().connect().unwrap().ask(&add).unwrap_err().to_string();
    assert!(said.contains("252 Registered client and decrypted desc"), "{said}");
    reached(&mut lab, &stranger, &onion);

    let (first, user) = fate::open(&friend, &onion).unwrap();
    let (mut other, _) = fate::open(&friend, &onion).unwrap();
    let again = || friend.connect(&onion, 80, &user);
    let mut streams = [first, again().unwrap(), again().unwrap()];
    assert!(streams.iter_mut().all(answers), "three streams are within the bound");
    // It comes by the same circuit, which is closed for it, or by the next one.
    let _ = again();
    assert!(!streams.iter_mut().any(answers), "the circuit must be closed with all its streams");
    assert!(answers(&mut other), "another circuit must not feel it");

    // A port that the service does not have costs the circuit as well, as it does with C tor.
    let (mut stream, user) = fate::open(&friend, &onion).unwrap();
    assert!(friend.connect(&onion, 81, &user).is_err());
    assert!(!answers(&mut stream));
    assert!(answers(&mut other));
}

#[test]
fn a_service_with_arti_s_proof_of_work_says_so_in_its_descriptor_and_serves() {
    let network = shared(Profile::Usual).unwrap();
    let mut lab = Lab::new("artipow").unwrap();
    let backend = Backend::start().unwrap();
    configure(&lab, &network, &backend, "", "profile = \"web\"").unwrap();
    let onion = address(&lab).unwrap();
    configure(&lab, &network, &backend, "pow = true", "profile = \"web\"").unwrap();
    lab.start().unwrap();
    let mut front = Beside::start_with_pow(&lab).unwrap();
    let client = network.client().unwrap();
    let log = lab.path("client.log");
    client.tell_of_services(&log).unwrap();
    reached(&mut lab, &client, &onion);
    // The words of C tor's client, before it solves what the descriptor asks for (`hs_client.c`).
    let told = fs::read_to_string(&log).unwrap();
    assert!(told.contains("PoW params present in descriptor"), "{told}");
    ends_without_a_panic(&mut lab, &mut front);
    // It has its threads for puzzles also where nobody is asked for any.
    configure(&lab, &network, &backend, "", "profile = \"web\"").unwrap();
    let mut front = Beside::start_with_pow(&lab).unwrap();
    client.forget().unwrap();
    reached(&mut lab, &client, &onion);
    ends_without_a_panic(&mut lab, &mut front);
}

#[test]
fn systemd_hears_that_it_lives_whether_or_not_the_network_is_reached() {
    let lab = Lab::new("artinotify").unwrap();
    let systemd = NotifySocket::bind().unwrap();
    let lines = format!(
        "[ingress]\nenabled = true\nuser = \"root\"\n[arti]\nenabled = true\nstate_dir = \"{}\"",
        lab.path("arti").display()
    );
    lab.configure("", &lines).unwrap();
    // No packet leaves that namespace.
    let mut command = lab.host.command(&arti_front().unwrap());
    command.arg("--config").arg(lab.path("tunica.toml"));
    command.env("NOTIFY_SOCKET", systemd.path()).env("WATCHDOG_USEC", "400000");
    let mut front = end_with_parent(&mut command).spawn().unwrap();
    assert_eq!(systemd.hear().unwrap(), "READY=1");
    for _ in 0..5 {
        assert_eq!(systemd.hear().unwrap(), "WATCHDOG=1");
    }
    kill(Pid::from_raw(i32::try_from(front.id()).unwrap()), Signal::SIGTERM).unwrap();
    let last = loop {
        let message = systemd.hear().unwrap();
        if message != "WATCHDOG=1" {
            break message;
        }
    };
    assert_eq!(last, "STOPPING=1");
    assert!(front.wait().unwrap().success());
}

#[test]
fn what_a_front_was_built_without_it_says() {
    let lab = Lab::new("artinone").unwrap();
    let lines = |arti: &str| {
        format!(
            "[ingress]\nenabled = true\n[arti]\nenabled = true\nstate_dir = \"{}\"\n{arti}",
            lab.path("arti").display()
        )
    };
    lab.configure("", &lines("")).unwrap();
    refused(&lab, &program("tunica-front").unwrap(), &["built without the feature arti", "--features arti"]);
    lab.configure("", &lines("pow = true")).unwrap();
    refused(&lab, &arti_front().unwrap(), &["arti.pow is true", "arti-pow", "LGPL"]);
    lab.configure("", &lines(&format!("network_file = \"{}\"", lab.path("none").display()))).unwrap();
    refused(&lab, &arti_front().unwrap(), &["arti.network_file", "cannot be read"]);
    fs::write(lab.path("none"), "tor_network = 7").unwrap();
    refused(&lab, &arti_front().unwrap(), &["arti.network_file", "is not understood"]);
}
