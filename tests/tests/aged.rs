//! A Tor network that is old enough for two shared random values, and a service behind the ingress in it, while these values
//! and the time periods of onion services change.
//!
//! That takes some twenty minutes, nearly all of which are waited: `cargo xtask test` starts this before everything else.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper that fails is a test that fails"
)]

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use tunica_tests::{
    beside::Beside,
    ingress::{self, answers, open},
    lab::Lab,
    testnet::{Backend, Control, Network, Place, Profile, ServiceOptions, SharedRandoms, Upload, Uploads},
};

/// How long the network may take to age. Nothing is measured by it: it needs 16 to 24 min on any machine.
const PATIENCE: Duration = Duration::from_secs(45 * 60);

/// From one visit to the next: a client forgets what it knows at most every 10 s.
const BETWEEN: Duration = Duration::from_secs(12);

/// Notes what the service tells, for a while.
fn follow(events: &mut Control, uploads: &mut Uploads) {
    let end = Instant::now() + BETWEEN;
    while let Some(event) = events.event(end).unwrap() {
        uploads.note(&event);
    }
}

/// Directories that took the descriptor of this period, placed by this random value.
fn holders(places: &[(Upload, Place)], period: u64, random: &[u8]) -> BTreeSet<String> {
    let of_period = places.iter().filter(|(_, place)| place.period == period);
    let placed: Vec<_> = of_period.filter(|(_, place)| place.random.as_deref() == Some(random)).collect();
    let descriptors: BTreeSet<_> = placed.iter().map(|(upload, _)| &upload.descriptor).collect();
    assert_eq!(descriptors.len(), 1, "a period has one descriptor: {placed:?}");
    placed.iter().map(|(upload, _)| upload.directory.clone()).collect()
}

#[test]
fn a_service_stays_reachable_while_time_periods_and_shared_random_values_change() {
    let mut lab = Lab::new("aged").unwrap();
    let network = lab.host.run(|| Network::start(Profile::Rotation)).unwrap();
    let backend = lab.host.run(ingress::Backend::start).unwrap();
    let door = Backend::Tcp("127.0.0.1:10000".parse().unwrap());
    let service = lab.host.run(|| network.service(&ServiceOptions::new(80, door))).unwrap();
    let mut events = service.control_address().connect().unwrap();
    events.ask("SETEVENTS HS_DESC").unwrap();
    let mut uploads = Uploads::default();
    uploads.done.extend_from_slice(service.uploads());
    let client = lab.host.run(|| network.client()).unwrap();
    lab.configure(
        "mode = \"enforce\"",
        &format!(
            "[tor]\ncontrol = \"unix:{}\"\n[ingress]\nenabled = true\nbackends = [\"{}\"]\n[circuits]\nprofile = \"web\"",
            service.control_address().socket.display(),
            backend.address()
        ),
    )
    .unwrap();
    lab.start().unwrap();
    // Whatever else keeps this machine busy is no attack on the service.
    lab.must(&["threat", "set", "calm"]).unwrap();
    let _front = Beside::start_on_host(&lab).unwrap();
    for series in ["tunica_front_up", "tunica_tor_control_up"] {
        lab.wait_for(series, |lab| Ok(lab.metric(series)? == Some(1.0))).unwrap();
    }
    let visit = || {
        // Descriptors, too, so that it asks the directories as one who comes for the first time.
        client.forget().unwrap();
        lab.host.run(|| open(&client, &service)).map(|(mut stream, _)| answers(&mut stream))
    };
    assert!(visit().unwrap());

    // The first value that all authorities had a part in.
    let deadline = Instant::now() + PATIENCE;
    let is_made =
        |randoms: &SharedRandoms| randoms.current.as_ref().is_some_and(|random| random.reveals == 3);
    let first = loop {
        follow(&mut events, &mut uploads);
        let randoms = network.shared_randoms().unwrap();
        if is_made(&randoms) {
            break randoms.current.unwrap();
        }
        assert!(Instant::now() < deadline, "{randoms:?}");
    };

    // From here to the next value, with a change of time periods in between, every visit succeeds.
    let begun = Profile::Rotation.time_period().unwrap();
    let mut visits = 0;
    let (randoms, published) = loop {
        assert!(visit().unwrap(), "visit {visits}");
        visits += 1;
        follow(&mut events, &mut uploads);
        let randoms = network.shared_randoms().unwrap();
        let period = Profile::Rotation.time_period().unwrap();
        let is_aged = randoms.previous.as_ref() == Some(&first) && is_made(&randoms) && period > begun;
        // The descriptor of the next period follows the new value.
        let values: Vec<Vec<u8>> = [&randoms.previous, &randoms.current]
            .into_iter()
            .flatten()
            .map(|each| each.value.clone())
            .collect();
        let place = |upload: &Upload| network.place_of(upload, Profile::Rotation, &values).ok();
        let places: Vec<_> =
            uploads.done.iter().filter_map(|upload| Some((upload.clone(), place(upload)?))).collect();
        let newest = places.iter().filter(|(_, place)| place.random.as_ref() == values.last());
        if is_aged && newest.count() >= 2 {
            break (randoms, places);
        }
        assert!(Instant::now() < deadline, "{randoms:?}, {uploads:?}");
    };
    assert!(visit().unwrap(), "after both changes");

    // The network has aged: two values that all authorities made.
    let [previous, current] = randoms.made().expect("two values");
    assert_eq!((previous.reveals, current.reveals), (3, 3));
    assert_ne!(previous.value, current.value);
    // The present period's descriptor follows the previous value, the next one's the current; two of eight directories have each.
    let present = Profile::Rotation.time_period().unwrap();
    let (of_present, of_next) =
        (holders(&published, present, &previous.value), holders(&published, present + 1, &current.value));
    assert_eq!((of_present.len(), of_next.len()), (2, 2), "{published:?}");
    let consensus = network.consensus().unwrap();
    let parameters = consensus.lines().find(|line| line.starts_with("params ")).unwrap();
    for parameter in ["hsdir_n_replicas=2", "hsdir_spread_store=1", "hsdir_spread_fetch=1"] {
        assert!(parameters.split(' ').any(|word| word == parameter), "{parameters}");
    }
    // Those two and no others give it out.
    let fingerprints = network.fingerprints().unwrap();
    let given: BTreeSet<String> = fingerprints
        .into_iter()
        .map(|(_, fingerprint)| fingerprint)
        .filter(|fingerprint| client.finds_at(service.onion(), fingerprint).unwrap())
        .collect();
    assert_eq!(given, of_present, "the present period is {present}");

    // To the ingress each visitor was one like any other.
    for (series, wanted) in
        [("tunica_front_up", 1.0), ("tunica_tor_control_up", 1.0), ("tunica_circuits_banned", 0.0)]
    {
        assert_eq!(lab.metric(series).unwrap(), Some(wanted), "{series}");
    }
    assert!(backend.requests().len() > visits, "{visits}");
}
