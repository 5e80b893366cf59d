//! The effort that Arti's proof of work asks for, at an ingress that meets one client a second while more of them come.
//!
//! Arti looks at it every 300 s, so this waits for minutes: `cargo xtask test` runs it beside everything else.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper that fails is a test that fails"
)]

use std::{
    fs,
    path::Path,
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use serde_json::{Value, json};
use tunica_tests::{
    beside::Beside,
    fate,
    hosted::{address, configure},
    ingress::Backend,
    lab::Lab,
    testnet::{Client, Network, Profile},
};

/// From one client of the crowd to the next: two a second, where one is met.
const BETWEEN: Duration = Duration::from_millis(500);

/// How long a visitor waits before the next look: tor forgets what it knows at most every 10 s.
const AGAIN: Duration = Duration::from_secs(12);

/// How long the effort may take to rise: it is looked at after 300 s, and then goes out with the next descriptor.
const PATIENCE: Duration = Duration::from_secs(540);

/// Where Arti keeps the effort that it asked for last, below its state directory.
const MEMORY: &str = "arti/state/hss/tunica/pow_manager.json";

/// The efforts that descriptors asked this client for, by the words of C tor (`hs_client.c`).
fn asked_for(log: &Path) -> Vec<u32> {
    let told = fs::read_to_string(log).unwrap();
    // tor may be about to write the rest of the last line.
    let whole = told.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let efforts = whole.lines().filter_map(|line| line.split_once("suggested_effort="));
    efforts.map(|(_, effort)| effort.trim().parse().unwrap()).collect()
}

/// Has Arti begin with effort 1, as after an attack whose clients paid. From 0 it does not rise, however many wait: it counts
/// only clients that sent a proof, and where none is asked for C tor's clients send none.
fn begin_with_one(lab: &Lab) {
    let memory = lab.path(MEMORY);
    let text = fs::read_to_string(&memory).unwrap();
    let mut state: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(state["suggested_effort"], 0, "{text}");
    state["suggested_effort"] = json!(1);
    fs::write(&memory, state.to_string()).unwrap();
}

/// Does something while others ask for the service at a steady pace, each time through another circuit.
fn beside<T>(others: &Client, onion: &str, act: impl FnOnce() -> T) -> T {
    let (stop, stopped) = mpsc::channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            thread::scope(|crowd| {
                let mut number = 0;
                // Also when `act` panicked.
                while stopped.recv_timeout(BETWEEN) == Err(RecvTimeoutError::Timeout) {
                    number += 1;
                    // Most are not met within the 15 s that a client waits.
                    crowd.spawn(move || drop(others.connect(onion, 80, &format!("other{number}"))));
                }
            });
        });
        let done = act();
        drop(stop);
        done
    })
}

/// What descriptors ask a visitor for, once that is another effort than 1 or the patience has ended.
fn rises(visitor: &Client, onion: &str, log: &Path) -> Result<Option<u32>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        // So that the next visit takes the descriptor anew; whether it is met is not asked here.
        visitor.forget()?;
        drop(visitor.connect(onion, 80, "visitor"));
        let effort = asked_for(log).last().copied();
        if effort.is_some_and(|effort| effort != 1) || Instant::now() > deadline {
            return Ok(effort);
        }
        thread::sleep(AGAIN);
    }
}

#[test]
fn arti_asks_for_more_while_clients_who_paid_wait() {
    let network = Network::start(Profile::Usual).unwrap();
    let mut lab = Lab::new("effort").unwrap();
    let backend = Backend::start().unwrap();
    let arti = "pow = true\npow_queue_rate = 1\npow_queue_burst = 1";
    configure(&lab, &network, &backend, "", "profile = \"web\"").unwrap();
    let onion = address(&lab).unwrap();
    configure(&lab, &network, &backend, arti, "profile = \"web\"").unwrap();
    lab.start().unwrap();
    // Before the 300 s begin, most of which must be the crowd's.
    let (visitor, others) = (network.client().unwrap(), network.client().unwrap());
    let log = lab.path("visitor.log");
    visitor.tell_of_services(&log).unwrap();
    let front = Beside::start_with_pow(&lab).unwrap();
    // Before the first descriptor.
    lab.wait_for("Arti's memory of its puzzles", |lab| Ok(lab.path(MEMORY).exists())).unwrap();
    drop(front);
    begin_with_one(&lab);
    let _front = Beside::start_with_pow(&lab).unwrap();

    lab.wait_for("the service", |_| Ok(fate::open(&visitor, &onion).is_ok())).unwrap();
    // It was served for a proof, then.
    assert_eq!(asked_for(&log).last(), Some(&1));

    let more = beside(&others, &onion, || rises(&visitor, &onion, &log)).unwrap();
    assert!(more > Some(1), "{more:?} is asked for, after 1, while clients wait");
}
