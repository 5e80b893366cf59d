//! The daemon's shell for tor's control port, against real tor: every way to log in, circuits of real clients, tor's ends and
//! starts, and its relays' addresses.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, its helpers too"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{Read as _, Write as _},
    net::{Ipv6Addr, Shutdown, SocketAddr, TcpStream},
    num::NonZeroU32,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    sys::{
        signal::{Signal, kill},
        stat::Mode,
    },
    unistd::{Pid, mkfifo},
};
use tokio::sync::mpsc::error::TryRecvError;
use tunica_core::id::{CircuitId, TorGeneration};
use tunica_tests::testnet::{
    self, Authentication, Client, Control, ControlAddress as TestAddress, Network, Page, Profile, Service,
    ServiceOptions,
};
use tunicad::shell::tor_control::{
    self, CircuitChange, CircuitUse, CloseOutcome, LinkError, LoginError, Password, Proof, TorAct,
    TorCircuit, TorControlOptions, TorEnds, TorHeard, TorPeers,
};

/// How long anything may take. Nothing is measured by it.
const PATIENCE: Duration = Duration::from_secs(120);
/// Longer than any test.
const NEVER: Duration = Duration::from_secs(86_400);
/// Short, so that tests end.
const SOON: Duration = Duration::from_millis(200);

/// The shell on a runtime of its own, and the event loop's ends of its queues.
struct Shell {
    ends: Option<TorEnds>,
    thread: Option<JoinHandle<()>>,
    heard: Vec<String>,
}

impl Shell {
    fn start(options: TorControlOptions) -> Self {
        let (control, ends) = tor_control::link(options);
        let run = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(control.run());
        };
        Self { ends: Some(ends), thread: Some(thread::spawn(run)), heard: Vec::new() }
    }

    fn ends(&mut self) -> &mut TorEnds {
        self.ends.as_mut().unwrap()
    }

    /// The next that it says.
    fn next(&mut self, what: &str) -> TorHeard {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.ends().heard.try_recv() {
                Ok(heard) => {
                    self.heard.push(format!("{heard:?}"));
                    return heard;
                }
                Err(TryRecvError::Empty) => {
                    assert!(Instant::now() < deadline, "waited in vain for {what}: {:#?}", self.heard);
                    thread::sleep(Duration::from_millis(5));
                }
                Err(TryRecvError::Disconnected) => panic!("the shell ended: {:#?}", self.heard),
            }
        }
    }

    /// What `look` finds in the first fact in which it finds something; all before are stepped over.
    fn until<Found>(&mut self, what: &str, mut look: impl FnMut(&TorHeard) -> Option<Found>) -> Found {
        loop {
            let heard = self.next(what);
            if let Some(found) = look(&heard) {
                return found;
            }
        }
    }

    fn connected(&mut self) -> (TorGeneration, Option<u32>) {
        self.until("the connection", |heard| {
            let TorHeard::Connected { generation, pid, version } = heard else { return None };
            assert!(version.starts_with("0.4."), "{version}");
            Some((*generation, *pid))
        })
    }

    /// Why it is not connected, and said nothing before.
    fn gone_first(&mut self) -> LinkError {
        let TorHeard::Gone { why } = self.next("the failure") else { panic!("{:?}", self.heard) };
        why
    }

    fn gone(&mut self, what: &str, is_meant: impl Fn(&LinkError) -> bool) {
        self.until(what, |heard| matches!(heard, TorHeard::Gone { why } if is_meant(why)).then_some(()));
    }

    fn circuits(&mut self) -> (Vec<TorCircuit>, u64) {
        self.until("all circuits", |heard| {
            let TorHeard::Circuits { open, missed } = heard else { return None };
            Some((open.clone(), *missed))
        })
    }

    fn peers(&mut self) -> TorPeers {
        self.until("peers", |heard| {
            let TorHeard::Peers(peers) = heard else { return None };
            Some(peers.clone())
        })
    }

    /// The first change of this circuit that `is_meant`.
    fn change(&mut self, id: CircuitId, is_meant: impl Fn(&TorCircuit) -> bool) -> TorCircuit {
        self.until("a change of a circuit", |heard| {
            let TorHeard::Circuit(circuit) = heard else { return None };
            (circuit.id == id && is_meant(circuit)).then(|| circuit.clone())
        })
    }

    /// Closes a circuit and returns what came of it, and whether its end was heard before that.
    fn close(&mut self, id: CircuitId) -> (CloseOutcome, bool) {
        self.ends().acts.blocking_send(TorAct::Close(id)).unwrap();
        let mut has_ended = false;
        let outcome = self.until("the answer", |heard| {
            if let TorHeard::Circuit(circuit) = heard {
                has_ended |= circuit.id == id && matches!(circuit.change, CircuitChange::Ended { .. });
            }
            let TorHeard::Closed { circuit, outcome } = heard else { return None };
            assert_eq!(*circuit, id);
            Some(*outcome)
        });
        (outcome, has_ended)
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        self.ends = None;
        // It ends when nobody listens.
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || thread::panicking());
    }
}

/// A shell for the Unix socket at `path`, which does nothing by itself.
fn at(path: &Path) -> TorControlOptions {
    let mut options = TorControlOptions::new(format!("unix:{}", path.display()).parse().unwrap());
    (options.peers_every, options.retry_least, options.retry_most) = (NEVER, SOON, SOON);
    options
}

fn service(network: &Network, page: &Page, control: Authentication) -> Service {
    let mut options = ServiceOptions::new(80, page.backend());
    options.control = control;
    network.service(&options).unwrap()
}

/// Asks for the page and returns the number of the circuit that the PROXY line before the request told.
fn circuit_of(mut stream: TcpStream, onion: &str) -> Option<NonZeroU32> {
    write!(stream, "GET / HTTP/1.1\r\nHost: {onion}\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let line = answer.lines().find(|line| line.starts_with("PROXY "))?;
    let source: Ipv6Addr = line.split(' ').nth(2)?.parse().unwrap();
    NonZeroU32::new(u32::try_from(source.to_bits() & 0xffff_ffff).unwrap())
}

/// A new circuit's user and number. Now and then one hangs in so small a network; then another one is taken.
fn fresh_circuit(client: &Client, service: &Service) -> (String, NonZeroU32) {
    for _ in 0..4 {
        let (stream, user) = client.connect_afresh(service.onion(), 80).unwrap();
        if let Some(number) = circuit_of(stream, service.onion()) {
            return (user, number);
        }
    }
    panic!("four circuits in a row broke");
}

fn signal(service: &Service, signal: Signal) {
    kill(Pid::from_raw(service.pid().unwrap().try_into().unwrap()), signal).unwrap();
}

/// Stands between the shell and tor's socket, and keeps what the shell says.
struct Tap {
    path: PathBuf,
    said: Arc<Mutex<Vec<u8>>>,
    _folder: tempfile::TempDir,
}

impl Tap {
    fn before(socket: PathBuf) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tap");
        let listener = UnixListener::bind(&path).unwrap();
        let said = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&said);
        thread::spawn(move || {
            for near in listener.incoming() {
                let mut near = near.unwrap();
                let mut far = UnixStream::connect(&socket).unwrap();
                let (mut answers, mut shell) = (far.try_clone().unwrap(), near.try_clone().unwrap());
                thread::spawn(move || {
                    let _ = std::io::copy(&mut answers, &mut shell);
                    let _ = shell.shutdown(Shutdown::Both);
                });
                let mut bytes = [0; 4_096];
                while let Ok(length @ 1..) = near.read(&mut bytes) {
                    kept.lock().unwrap().extend(&bytes[..length]);
                    far.write_all(&bytes[..length]).unwrap();
                }
                let _ = far.shutdown(Shutdown::Both);
            }
        });
        Self { path, said, _folder: folder }
    }

    /// What the shell said, a line each.
    fn said(&self) -> Vec<String> {
        let text = String::from_utf8(self.said.lock().unwrap().clone()).unwrap();
        text.lines().map(str::to_owned).collect()
    }
}

fn words(lines: &[String]) -> Vec<&str> {
    lines.iter().map(|line| line.split(' ').next().unwrap()).collect()
}

#[test]
fn the_cookie_is_proved_and_not_shown() {
    let network = testnet::shared(Profile::Usual).unwrap();
    let page = Page::start().unwrap();
    let service = service(&network, &page, Authentication::Cookie);
    let TestAddress { socket, cookie, .. } = service.control_address();

    // Tor names its cookie's file; or the options do. On TCP nobody vouches for the pid but the age of the process.
    let mut options = vec![at(&socket), at(&socket)];
    options[1].cookie_file = Some(cookie.clone());
    let port = service.control_port().unwrap();
    let mut on_tcp = at(&socket);
    on_tcp.address = port.to_string().parse().unwrap();
    options.push(on_tcp);
    let generations: BTreeSet<TorGeneration> = options
        .into_iter()
        .map(|options| {
            let mut shell = Shell::start(options);
            let (generation, pid) = shell.connected();
            assert_eq!(pid, Some(service.pid().unwrap()));
            assert!(!shell.circuits().0.is_empty());
            generation
        })
        .collect();
    // Where `/proc` shows tor, every daemon gives its process the same number, also without a record of the one before.
    assert_eq!(generations.len(), 1, "{generations:?}");

    // Tor offers to be shown the cookie as well.
    let tap = Tap::before(socket.clone());
    let (generation, pid) = Shell::start(at(&tap.path)).connected();
    assert_eq!((generations.first(), pid), (Some(&generation), Some(service.pid().unwrap())));
    let said = tap.said();
    assert_eq!(words(&said)[..3], ["PROTOCOLINFO", "AUTHCHALLENGE", "AUTHENTICATE"], "{said:?}");
    let hex: String = fs::read(&cookie).unwrap().iter().map(|byte| format!("{byte:02X}")).collect();
    assert!(!said.iter().any(|line| line.to_uppercase().contains(&hex)), "{said:?}");

    // A password is not given to a tor that wants a cookie, even if the cookie is wrong.
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("short"), [7; 31]).unwrap();
    fs::write(path("long"), [7; 33]).unwrap();
    fs::write(path("huge"), vec![7; 1_000_000]).unwrap();
    fs::write(path("other"), [7; 32]).unwrap();
    mkfifo(&path("pipe"), Mode::S_IRUSR).unwrap();
    fs::create_dir(path("folder")).unwrap();
    for (name, told) in [
        ("absent", "No such file or directory"),
        ("folder", "it is no regular file"),
        ("pipe", "it is no regular file"),
        ("short", "the file holds 31 bytes, and a cookie of tor's has 32"),
        ("long", "the file holds 33 bytes"),
        ("huge", "the file holds 1000000 bytes"),
        ("other", "does not know the cookie"),
    ] {
        let tap = Tap::before(socket.clone());
        let mut options = at(&tap.path);
        options.cookie_file = Some(path(name));
        options.password = Some(Password::new("a secret".to_owned()));
        assert!(!format!("{options:?}").contains("a secret"));
        let why = Shell::start(options).gone_first();
        assert!(matches!(why, LinkError::Login(_)), "{why:?}");
        assert!(why.to_string().contains(told), "{name}: {why}");
        assert!(!tap.said().iter().any(|line| line.starts_with("AUTHENTICATE")), "{name}: {:?}", tap.said());
    }
}

#[test]
fn a_password_is_right_or_wrong_or_missing() {
    let network = testnet::shared(Profile::Usual).unwrap();
    let page = Page::start().unwrap();
    let password = "a \"good\" \\ password";
    let service = service(&network, &page, Authentication::Password(password.to_owned()));
    let on_tcp = service.control_port().unwrap().to_string().parse().unwrap();
    let mut options = TorControlOptions::new(on_tcp);
    (options.retry_least, options.retry_most) = (SOON, SOON);

    let mut right = options.clone();
    right.password = Some(Password::new(password.to_owned()));
    assert_eq!(Shell::start(right).connected().1, Some(service.pid().unwrap()));

    let mut wrong = options.clone();
    wrong.password = Some(Password::new("another".to_owned()));
    let mut shell = Shell::start(wrong);
    let why = shell.gone_first();
    let is_refused = |why: &LinkError| matches!(why, LinkError::Login(LoginError::Refused { proof: Proof::Password, source }) if source.status == 515);
    assert!(is_refused(&why), "{why:?}");
    assert!(!format!("{why:?} {why}").contains("another"), "{why:?}");
    // It is tried again, and said again only when the reason is another.
    thread::sleep(SOON * 10);
    assert!(matches!(shell.ends().heard.try_recv(), Err(TryRecvError::Empty)));

    assert!(matches!(Shell::start(options.clone()).gone_first(), LinkError::Login(LoginError::NoPassword)));
    options.password = Some(Password::new("two\nlines".to_owned()));
    assert!(matches!(Shell::start(options).gone_first(), LinkError::Unsendable(_)));
}

#[test]
fn a_tor_that_asks_for_nothing_is_refused_where_it_should_ask() {
    let network = testnet::shared(Profile::Usual).unwrap();
    let (_, address) = network.control_addresses().into_iter().next().unwrap();
    let mut shell = Shell::start(at(&address.socket));
    shell.connected();
    assert!(!shell.peers().addresses.is_empty());

    let mut options = at(&address.socket);
    options.password = Some(Password::new("a secret".to_owned()));
    assert!(matches!(Shell::start(options.clone()).gone_first(), LinkError::Login(LoginError::NotAskedFor)));
    (options.password, options.cookie_file) = (None, Some(address.cookie));
    assert!(matches!(Shell::start(options).gone_first(), LinkError::Login(LoginError::NotAskedFor)));
}

#[test]
fn circuits_of_clients_arrive_by_the_number_of_their_proxy_line_and_are_closed() {
    let network = testnet::shared(Profile::Usual).unwrap();
    let page = Page::start().unwrap();
    let service = service(&network, &page, Authentication::None);
    let client = network.client().unwrap();
    let mut shell = Shell::start(at(&service.control_address().socket));
    let (generation, _) = shell.connected();
    let (open, missed) = shell.circuits();
    assert_eq!(missed, 0);
    let is_introduction = |circuit: &&TorCircuit| {
        circuit.used_for == CircuitUse::ServiceIntroduction { is_established: true }
            && circuit.change == CircuitChange::Built
    };
    let introduction = open.iter().find(is_introduction).unwrap();
    assert_eq!(format!("{}.onion", introduction.service.unwrap()), service.onion());
    assert_eq!(introduction.rendezvous, None);

    let (user, number) = fresh_circuit(&client, &service);
    let id = CircuitId::new(generation, number);
    let is_joined =
        |circuit: &TorCircuit| circuit.used_for == CircuitUse::ServiceRendezvous { is_joined: true };
    let joined = shell.change(id, is_joined);
    assert_eq!(joined.change, CircuitChange::Repurposed);
    assert_eq!(format!("{}.onion", joined.service.unwrap()), service.onion());
    let relays: Vec<String> = network.fingerprints().unwrap().into_iter().map(|(_, relay)| relay).collect();
    assert!(relays.contains(&joined.rendezvous.unwrap().to_string()));
    assert!(joined.created_microseconds.is_some());

    // Another user's circuit is another one, and outlives the first.
    let (_, other) = fresh_circuit(&client, &service);
    assert_ne!(number, other);
    let mut stream = client.connect(service.onion(), 80, &user).unwrap();
    let (outcome, has_ended) = shell.close(id);
    assert_eq!(outcome, CloseOutcome::Accepted);
    if !has_ended {
        let ended = shell.change(id, |circuit| matches!(circuit.change, CircuitChange::Ended { .. }));
        let CircuitChange::Ended { was_built, reason, .. } = ended.change else { panic!() };
        assert_eq!((was_built, reason.as_deref()), (true, Some("REQUESTED")));
    }
    // The client's stream has ended with it.
    let mut nothing = [0];
    assert!(!matches!(stream.read(&mut nothing), Ok(1)));

    assert_eq!(shell.close(id).0, CloseOutcome::NoSuchCircuit);
    let strange = CircuitId::new(TorGeneration(generation.0 + 1), other);
    assert_eq!(shell.close(strange), (CloseOutcome::OtherTor, false));
    let other = CircuitId::new(generation, other);
    let mut later = Shell::start(at(&service.control_address().socket));
    assert!(later.circuits().0.iter().any(|circuit| circuit.id == other && is_joined(circuit)));
    assert_eq!(later.close(other).0, CloseOutcome::Accepted);
    shell.change(other, |circuit| matches!(circuit.change, CircuitChange::Ended { .. }));
}

#[test]
fn another_tor_process_is_another_generation_and_a_stopped_one_is_the_same() {
    let network = testnet::shared(Profile::Usual).unwrap();
    let page = Page::start().unwrap();
    let mut service = service(&network, &page, Authentication::None);
    let client = network.client().unwrap();
    let mut options = at(&service.control_address().socket);
    (options.peers_every, options.command_timeout) = (SOON, Duration::from_secs(5));
    let mut shell = Shell::start(options);
    let (first, pid) = shell.connected();
    assert_eq!(pid, Some(service.pid().unwrap()));
    shell.peers();

    // A tor that does not go on is noticed by the next question, for peers or for its services.
    signal(&service, Signal::SIGSTOP);
    let is_late = |why: &LinkError| matches!(why, LinkError::Timeout { command: "GETINFO" | "GETCONF", .. });
    shell.gone("the timeout", is_late);
    // Tor's kernel takes connections all the same.
    shell.gone("the silence", |why| matches!(why, LinkError::Timeout { command: "PROTOCOLINFO", .. }));
    let circuit = CircuitId::new(first, NonZeroU32::MIN);
    assert_eq!(shell.close(circuit).0, CloseOutcome::NotConnected);
    signal(&service, Signal::SIGCONT);
    assert_eq!(shell.connected().0, first);
    assert_eq!(shell.circuits().1, 0);

    // Restarted at once.
    service.restart().unwrap();
    shell.gone("tor's end", |why| matches!(why, LinkError::Ended | LinkError::Broken(_)));
    let (second, pid) = shell.connected();
    assert!(second > first);
    assert_eq!(pid, Some(service.pid().unwrap()));
    assert_eq!(shell.close(circuit).0, CloseOutcome::OtherTor);

    // Gone for a while.
    signal(&service, Signal::SIGKILL);
    shell.gone("tor's end", |why| matches!(why, LinkError::Ended | LinkError::Broken(_)));
    shell.gone("the refusal", |why| matches!(why, LinkError::Connect { .. }));
    service.restart().unwrap();
    let (third, _) = shell.connected();
    assert!(third > second);
    // What is heard after all that is of the new process.
    let (_, number) = fresh_circuit(&client, &service);
    shell.change(CircuitId::new(third, number), |_| true);
}

/// Where relays take connections, by their fingerprints, as tor's own answers tell.
fn addresses_of(control: &mut Control) -> BTreeMap<String, SocketAddr> {
    let all = control.information("ns/all").unwrap();
    let base64 = all.lines().filter_map(|line| line.strip_prefix("r "));
    base64
        .map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            let address = SocketAddr::new(words[5].parse().unwrap(), words[6].parse().unwrap());
            (words[0].to_owned(), address)
        })
        .collect()
}

/// Addresses of tor's guards and of the relays it is connected to, by the names of the network's relays.
fn peers_of(control: &mut Control) -> BTreeSet<SocketAddr> {
    let addresses = addresses_of(control);
    let text = format!(
        "{}\n{}",
        control.information("entry-guards").unwrap(),
        control.information("orconn-status").unwrap()
    );
    let named = text.lines().filter_map(|line| line.split(' ').next()?.split_once('~'));
    named.map(|(_, name)| addresses[name]).collect()
}

#[test]
fn peers_are_the_addresses_of_guards_and_connected_relays() {
    let network = testnet::shared(Profile::Usual).unwrap();
    let client = network.client().unwrap();
    let mut options = at(&client.control_address().socket);
    options.peers_every = SOON;
    let mut shell = Shell::start(options);
    let mut control = client.control_address().connect().unwrap();
    let deadline = Instant::now() + PATIENCE;
    // Connections come and go while it is looked at.
    let peers = loop {
        let (peers, expected) = (shell.peers(), peers_of(&mut control));
        if peers.addresses == expected && !expected.is_empty() {
            break peers;
        }
        assert!(Instant::now() < deadline, "{:?} {expected:?}", peers.addresses);
    };
    assert_eq!(peers.unresolved, 0);
    assert!(peers.hosts().iter().all(|host| host.is_loopback()));
    assert!(!format!("{peers:?}").contains("127.0.0.1"), "{peers:?}");

    // Clients who connect to a relay have no identity there: they are counted, and their addresses are not taken.
    let all: BTreeSet<SocketAddr> = addresses_of(&mut control).into_values().collect();
    let mut relays: Vec<Shell> =
        network.control_addresses().iter().map(|(_, address)| Shell::start(at(&address.socket))).collect();
    let strangers: u32 = relays
        .iter_mut()
        .map(|relay| {
            let peers = relay.peers();
            assert!(peers.addresses.is_subset(&all), "{:?}", peers.addresses);
            peers.unresolved
        })
        .sum();
    assert!(strangers > 0);

    // A connection that comes is a reason to look again.
    let _another = network.client().unwrap();
    let is_new = |relay: &mut Shell| matches!(relay.ends().heard.try_recv(), Ok(TorHeard::Peers(_)));
    while !relays.iter_mut().any(is_new) {
        assert!(Instant::now() < deadline + PATIENCE);
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_slow_event_loop_is_told_everything_in_the_end() {
    let network = testnet::shared(Profile::Usual).unwrap();
    let page = Page::start().unwrap();
    let service = service(&network, &page, Authentication::None);
    let client = network.client().unwrap();
    let mut options = at(&service.control_address().socket);
    options.most_waiting = 3;
    let mut shell = Shell::start(options);
    let (generation, _) = shell.connected();
    shell.circuits();

    // Nobody takes anything, while more happens than there are places for.
    let mut control = service.control_address().connect().unwrap();
    control.ask("SETEVENTS CIRC CIRC_MINOR").unwrap();
    let mut happened = 0;
    let mut circuits = Vec::new();
    while happened < 150 {
        circuits.push(CircuitId::new(generation, fresh_circuit(&client, &service).1));
        while control.event(Instant::now() + SOON).unwrap().is_some() {
            happened += 1;
        }
    }
    let mut taken = 0;
    let (open, missed) = shell.until("the list", |heard| {
        taken += 1;
        let TorHeard::Circuits { open, missed } = heard else { return None };
        Some((open.clone(), *missed))
    });
    // 64 in the queue, 3 behind it, and what the shell itself had to say.
    assert!(taken <= 64 + 3 + 4, "{taken} facts were kept");
    assert!(missed > 0 && missed + taken >= 150, "{missed} missed, {taken} taken");
    let rendezvous: BTreeSet<CircuitId> = open
        .iter()
        .filter(|circuit| circuit.used_for == CircuitUse::ServiceRendezvous { is_joined: true })
        .map(|circuit| circuit.id)
        .collect();
    assert!(circuits.iter().all(|circuit| rendezvous.contains(circuit)), "{} are open", rendezvous.len());

    // From there on changes come again.
    let (_, number) = fresh_circuit(&client, &service);
    shell.change(CircuitId::new(generation, number), |circuit| {
        circuit.used_for == CircuitUse::ServiceRendezvous { is_joined: true }
    });
}
