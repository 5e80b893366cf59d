//! A crowd in front of the daemon and the ingress, with a real tor behind it: what visitors feel of the daemon's starts and ends.
//! It takes all that the machine has, so nothing else is tested beside it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper that fails is a test that fails"
)]

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use tunica_tests::{
    beside::Beside,
    ingress::{Backend, PATIENCE, free_address, get, header, open, read_answer},
    lab::Lab,
    testnet::{Backend as Behind, Profile, ServiceOptions, shared},
};

/// Visitors who ask again as soon as they were answered, until one of them is not served or this says that it is enough.
struct Crowd {
    is_over: AtomicBool,
    /// How often each was served.
    served: Vec<AtomicU64>,
    faults: Mutex<Vec<String>>,
}

impl Crowd {
    fn new(visitors: usize) -> Self {
        let served = (0..visitors).map(|_| AtomicU64::new(0)).collect();
        Self { is_over: AtomicBool::new(false), served, faults: Mutex::default() }
    }

    /// One visitor; `ask` returns the whole answer.
    fn visit(&self, number: usize, mut ask: impl FnMut() -> Result<Vec<u8>>) {
        while !self.is_over.load(Relaxed) {
            let fault = match ask() {
                Ok(answer) if answer.starts_with(b"HTTP/1.1 200") => {
                    self.served[number].fetch_add(1, Relaxed);
                    continue;
                }
                Ok(answer) => String::from_utf8_lossy(&answer).into_owned(),
                Err(error) => format!("{error:#}"),
            };
            let before = self.served[number].load(Relaxed);
            self.faults.lock().unwrap().push(format!("visitor {number} after {before} answers: {fault:?}"));
            return;
        }
    }

    /// Waits until each was served five times more.
    fn is_served_on(&self, lab: &mut Lab, when: &str) -> Result<()> {
        let before: Vec<u64> = self.served.iter().map(|count| count.load(Relaxed)).collect();
        lab.wait_for(&format!("five answers for each visitor {when}"), |_| {
            let faults = self.faults.lock().unwrap();
            ensure!(faults.is_empty(), "{when}: {faults:?}");
            Ok(self.served.iter().zip(&before).all(|(count, before)| count.load(Relaxed) >= before + 5))
        })
    }
}

/// Asks once more over a stream that is kept.
fn ask_again(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut answer = Vec::new();
    stream.write_all(get("/").as_bytes())?;
    read_answer(stream, &mut answer)?;
    Ok(answer)
}

/// Asks over a stream that ends with the answer, and has it end as it should.
fn ask_once(mut stream: TcpStream) -> Result<Vec<u8>> {
    let mut answer = Vec::new();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: example.onion\r\nConnection: close\r\n\r\n")?;
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

#[test]
fn a_crowd_feels_neither_the_first_word_of_the_daemon_nor_its_death_nor_its_next_starts() {
    const KEPT: usize = 10;
    const NEW: usize = 10;
    const KEPT_OF_TOR: usize = 4;
    const NEW_OF_TOR: usize = 2;
    let network = shared(Profile::Usual).unwrap();
    let mut lab = Lab::new("crowd").unwrap();
    let listen = free_address().unwrap();
    let backend = Backend::start().unwrap();
    let service = network.service(&ServiceOptions::new(80, Behind::Tcp(listen))).unwrap();
    lab.configure(
        "mode = \"observe\"",
        &format!(
            "[tor]\ncontrol = \"unix:{}\"\n[ingress]\nenabled = true\nlisten = \"{listen}\"\nbackends = [\"{}\"]\n\
             keep_alive_seconds = 120\n[circuits]\nprofile = \"web\"\nmax_connections_per_second = 10000\n\
             max_concurrent_per_circuit = 1000\nconnections_per_10_seconds = 0\nrequests_per_10_seconds = 60000\n\
             slow_requests_per_10_seconds = 60000\nmebibytes_per_minute = 0\ncpu_milliseconds_per_minute = 0\n\
             shadow = [\"puzzle_required\"]",
            service.control_address().socket.display(),
            backend.address()
        ),
    )
    .unwrap();
    // The ingress takes streams before any daemon has spoken, as it does after each start.
    let _front = Beside::start(&lab).unwrap();
    let stream = |number: u32| -> Result<TcpStream> {
        let mut stream = TcpStream::connect(listen)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(header(number).as_bytes())?;
        Ok(stream)
    };
    lab.wait_for("the ingress", |_| Ok(stream(1).is_ok())).unwrap();
    let client = network.client().unwrap();
    let mut of_tor: Vec<_> = (0..KEPT_OF_TOR).map(|_| open(&client, &service).unwrap()).collect();
    let users: Vec<String> = of_tor.iter().map(|(_, user)| user.clone()).collect();
    // Numbers that tor does not reach; of those that are kept two share each circuit.
    let mut kept: Vec<_> = (0..KEPT as u32).map(|visitor| stream(1_000_000 + visitor / 2).unwrap()).collect();
    let crowd = Crowd::new(KEPT + NEW + KEPT_OF_TOR + NEW_OF_TOR);
    let (crowd, stream, client, service) = (&crowd, &stream, &client, &service);
    let names_tor = |lab: &Lab| Ok(lab.json(&["circuits"])?["digest"]["generation"].is_u64());
    thread::scope(|scope| {
        let mut number = 0..;
        for kept in &mut kept {
            let number = number.next().unwrap();
            scope.spawn(move || crowd.visit(number, || ask_again(kept)));
        }
        for (kept, _) in &mut of_tor {
            let number = number.next().unwrap();
            scope.spawn(move || crowd.visit(number, || ask_again(kept)));
        }
        for visitor in 0..NEW as u32 {
            let number = number.next().unwrap();
            // Circuits that are there already, and ever new ones.
            let mut circuits = (0..).map(move |turn| match turn % 2 {
                0 => 1_000_000 + visitor,
                _ => 2_000_000 + visitor * 100_000 + turn,
            });
            scope.spawn(move || crowd.visit(number, || ask_once(stream(circuits.next().unwrap_or(1))?)));
        }
        for user in &users[..NEW_OF_TOR] {
            let number = number.next().unwrap();
            scope.spawn(move || {
                crowd.visit(number, || ask_once(client.connect(service.onion(), 80, user)?))
            });
        }
        let seen = (|| {
            crowd.is_served_on(&mut lab, "before any daemon has spoken")?;
            for start in ["the first start", "the second start", "the third start"] {
                lab.start()?;
                crowd.is_served_on(&mut lab, &format!("after {start} of the daemon"))?;
                for series in ["tunica_front_up", "tunica_tor_control_up"] {
                    lab.wait_for(series, |lab| Ok(lab.metric(series)? == Some(1.0)))?;
                }
                lab.wait_for("the name of the tor process", |lab| names_tor(lab))?;
                crowd.is_served_on(&mut lab, &format!("once tor was known after {start}"))?;
                lab.end(Signal::SIGKILL)?;
                crowd.is_served_on(&mut lab, &format!("without the daemon after {start}"))?;
            }
            Ok::<_, anyhow::Error>(())
        })();
        crowd.is_over.store(true, Relaxed);
        seen.unwrap();
    });
    assert_eq!(*crowd.faults.lock().unwrap(), Vec::<String>::new());
    lab.start().unwrap();
    lab.wait_for("the ingress", |lab| Ok(lab.metric("tunica_front_up")? == Some(1.0))).unwrap();
    let refused = lab.json(&["circuits"]).unwrap()["digest"]["refused"].clone();
    let refused: Vec<_> = refused.as_object().unwrap().iter().filter(|(_, count)| **count != 0).collect();
    assert!(refused.is_empty(), "{refused:?}");
}
