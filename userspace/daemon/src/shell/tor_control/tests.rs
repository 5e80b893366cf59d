//! What a real tor cannot be made to say. All else is tested on real tor, in `tests/tests/tor_control.rs`.

use std::{
    fs,
    num::NonZeroU32,
    process,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::UnixListener,
    sync::Mutex,
    task::JoinHandle,
    time::timeout,
};
use tunica_onion::control_codec::MessageFault;

use super::*;
use crate::metrics::Metrics;

/// How long anything may take. Nothing is measured by it.
const PATIENCE: Duration = Duration::from_secs(30);

/// Somebody who listens in tor's place.
struct Fake {
    options: TorControlOptions,
    /// What the shell said, a line each.
    said: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
    folder: tempfile::TempDir,
}

impl Fake {
    /// Answers each line by what `answer` makes of it; `None` is what a modest tor says.
    fn new(answer: impl Fn(&str) -> Option<String> + Send + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control");
        let listener = UnixListener::bind(&path).unwrap();
        let said = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&said);
        let task = tokio::spawn(async move {
            loop {
                let (mut reader, mut writer) = listener.accept().await.unwrap().0.into_split();
                let mut lines = BufReader::new(&mut reader).lines();
                while let Ok(Some(line)) = lines.next_line().await {
                    let answer = answer(&line).unwrap_or_else(|| modest(&line));
                    kept.lock().await.push(line);
                    // The shell leaves in the middle of what is too long for it.
                    let _ = writer.write_all(answer.as_bytes()).await;
                }
            }
        });
        let mut options = TorControlOptions::new(format!("unix:{}", path.display()).parse().unwrap());
        options.retry_least = Duration::from_millis(10);
        Self { options, said, task, folder }
    }

    fn start(&self) -> (TorEnds, JoinHandle<()>) {
        let (control, ends) = link(self.options.clone());
        (ends, tokio::spawn(control.run()))
    }

    /// The first reason why it is not connected.
    async fn gone(&self) -> LinkError {
        let (mut ends, task) = self.start();
        loop {
            if let TorHeard::Gone { why } = next(&mut ends).await {
                drop(ends);
                timeout(PATIENCE, task).await.unwrap().unwrap();
                return why;
            }
        }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn next(ends: &mut TorEnds) -> TorHeard {
    timeout(PATIENCE, ends.heard.recv()).await.unwrap().unwrap()
}

fn modest(line: &str) -> String {
    let (pid, command) = (process::id(), line.split(' ').next().unwrap());
    match (command, line) {
        ("PROTOCOLINFO", _) => offer("NULL", ""),
        (_, "GETINFO version process/pid uptime") => {
            format!("250-version=0.4.9.11\r\n250-process/pid={pid}\r\n250-uptime=1\r\n250 OK\r\n")
        }
        (_, "GETINFO circuit-status") => "250-circuit-status=\r\n250 OK\r\n".to_owned(),
        (_, "GETINFO entry-guards orconn-status") => {
            "250-entry-guards=\r\n250-orconn-status=\r\n250 OK\r\n".to_owned()
        }
        ("GETINFO", _) => "552 Unrecognized key\r\n".to_owned(),
        _ => "250 OK\r\n".to_owned(),
    }
}

fn offer(methods: &str, file: &str) -> String {
    format!(
        "250-PROTOCOLINFO 1\r\n250-AUTH METHODS={methods}{file}\r\n250-VERSION Tor=\"0.4.9.11\"\r\n250 OK\r\n"
    )
}

#[test]
fn addresses_are_on_this_machine() {
    for text in ["127.0.0.1:9051", "[::1]:9051", "unix:/run/tor/control"] {
        assert_eq!(text.parse::<ControlAddress>().unwrap().to_string(), text);
    }
    for text in ["", "9051", "localhost:9051", "127.0.0.1", "unix:tor/control", "unix:", "/run/tor/control"] {
        assert_eq!(text.parse::<ControlAddress>(), Err(AddressError::Form(text.to_owned())), "{text}");
    }
    for text in ["192.0.2.1:9051", "0.0.0.0:9051", "[2001:db8::1]:9051"] {
        let error = AddressError::NotLoopback(text.parse().unwrap());
        assert_eq!(text.parse::<ControlAddress>(), Err(error), "{text}");
    }
}

#[tokio::test]
async fn what_is_no_control_protocol_is_left_at_the_byte_and_tried_again() {
    let start = offer("NULL", "");
    let second = start.len() as u64 + 1;
    for (bytes, byte, fault) in [
        ("HTTP/1.1 400 Bad Request\r\n".to_owned(), 1, MessageFault::Status),
        (format!("{start}250 OK\n"), second, MessageFault::LineEnd),
        (format!("{start}250-one\r\n650 CIRC 1 CLOSED\r\n"), second, MessageFault::Mixed),
        ("2".repeat(100_000), 1, MessageFault::LineTooLong(32 << 10)),
        (format!("250+x=\r\n{}", "many\r\n".repeat(4_000_000)), 1, MessageFault::MessageTooLong(16 << 20)),
    ] {
        let mut fake = Fake::new(move |line| line.starts_with("PROTOCOLINFO").then(|| bytes.clone()));
        fake.options.command_timeout = PATIENCE;
        let why = fake.gone().await;
        let LinkError::NotTheProtocol { byte: told, source } = &why else { panic!("{why:?}") };
        assert_eq!((source.fault, *told), (fault, byte), "{why}");
        assert!(why.to_string().contains("neither watched nor closed"), "{why}");
    }
}

#[tokio::test]
async fn after_a_fault_it_is_tried_again() {
    let attempts = AtomicU32::new(0);
    let fake = Fake::new(move |line| {
        let is_first = line.starts_with("PROTOCOLINFO") && attempts.fetch_add(1, Ordering::Relaxed) == 0;
        is_first.then(|| "HTTP/1.1 400 Bad Request\r\n".to_owned())
    });
    let (mut ends, _task) = fake.start();
    assert!(matches!(next(&mut ends).await, TorHeard::Gone { .. }));
    assert!(matches!(next(&mut ends).await, TorHeard::Connected { .. }));
}

#[tokio::test]
async fn a_process_that_only_tor_vouches_for_is_known_by_its_uptime() {
    let attempts = AtomicU32::new(0);
    // Process 1 is another one here, as where tor runs in a container. No answer but the first ones is any good.
    let fake = Fake::new(move |line| match line {
        "GETINFO version process/pid uptime" => {
            let uptime = if attempts.fetch_add(1, Ordering::Relaxed) < 2 { 1_000_000_000 } else { 0 };
            Some(format!("250-version=0\r\n250-process/pid=1\r\n250-uptime={uptime}\r\n250 OK\r\n"))
        }
        "GETINFO circuit-status" => Some("250 OK\r\n".to_owned()),
        _ => None,
    });
    let (mut ends, _task) = fake.start();
    let mut generations = Vec::new();
    while generations.len() < 3 {
        if let TorHeard::Connected { generation, pid, .. } = next(&mut ends).await {
            assert_eq!(pid, None);
            generations.push(generation);
        }
    }
    assert_eq!(generations[0], generations[1]);
    assert!(generations[2] > generations[1]);
}

#[tokio::test]
async fn a_young_process_is_asked_once_more_so_that_the_next_daemon_knows_it() {
    // As young as it says at first, nobody would recognise it; a second later it is older than that.
    let asked = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&asked);
    let mut fake = Fake::new(move |line| {
        (line == "GETINFO version process/pid uptime").then(|| {
            let uptime = if count.fetch_add(1, Ordering::Relaxed) == 0 { 1 } else { 100 };
            format!("250-version=0\r\n250-process/pid=1\r\n250-uptime={uptime}\r\n250 OK\r\n")
        })
    });
    fake.options.peers_every = Duration::from_millis(50);
    let path = fake.folder.path().join("tor.process");
    fake.options.process_file = Some(path.clone());
    let mut generations = Vec::new();
    for _ in 0..2 {
        let (mut ends, task) = fake.start();
        let TorHeard::Connected { generation, .. } = next(&mut ends).await else { panic!() };
        generations.push(generation);
        let kept = async {
            while !fs::read_to_string(&path).unwrap().contains("process 1 100 ") {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, kept).await.unwrap();
        drop(ends);
        timeout(PATIENCE, task).await.unwrap().unwrap();
    }
    assert_eq!(generations[0], generations[1]);
}

#[tokio::test]
async fn a_circuit_that_cannot_be_closed_is_answered_too() {
    let mut fake = Fake::new(|line| match line {
        "CLOSECIRCUIT 1" => Some("551 Internal error\r\n".to_owned()),
        // No answer.
        "CLOSECIRCUIT 2" => Some(String::new()),
        _ => None,
    });
    fake.options.command_timeout = Duration::from_secs(2);
    let metrics = Metrics::new("0").unwrap();
    let counted = |part: &str| -> f64 {
        let text = metrics.render().unwrap();
        let start = format!("tunica_tor_control_response_seconds_{part} ");
        text.lines().find_map(|line| line.strip_prefix(&start)).unwrap().parse().unwrap()
    };
    assert_eq!(counted("count"), 0.0);
    let (control, mut ends) = link(fake.options.clone());
    let _task = tokio::spawn(control.counting(metrics.tor_responses()).run());
    let TorHeard::Connected { generation, .. } = next(&mut ends).await else { panic!() };
    for (number, expected) in [(1, CloseOutcome::Refused { status: 551 }), (2, CloseOutcome::NotConnected)] {
        let asked = CircuitId::new(generation, NonZeroU32::new(number).unwrap());
        ends.acts.send(TorAct::Close(asked)).await.unwrap();
        loop {
            if let TorHeard::Closed { circuit, outcome } = next(&mut ends).await {
                assert_eq!((circuit, outcome), (asked, expected));
                break;
            }
        }
    }
    let TorHeard::Gone { why } = next(&mut ends).await else { panic!() };
    assert!(matches!(why, LinkError::Timeout { command: "CLOSECIRCUIT", .. }), "{why:?}");
    // Every command counts, and one without an answer with all the time it had.
    let commands =
        ["PROTOCOLINFO", "AUTHENTICATE", "GETINFO", "SETEVENTS", "GETINFO", "CLOSECIRCUIT", "CLOSECIRCUIT"];
    let is_counted = counted("count") >= commands.len() as f64 && counted("sum") >= 2.0;
    assert!(is_counted, "{}", metrics.render().unwrap());
    // The same process is connected again.
    let TorHeard::Connected { generation: again, .. } = next(&mut ends).await else { panic!() };
    assert_eq!(again, generation);
}

#[tokio::test]
async fn a_password_stands_in_for_a_cookie_that_cannot_be_read() {
    let mut fake = Fake::new(|line| {
        let file = " COOKIEFILE=\"/absent\"";
        line.starts_with("PROTOCOLINFO").then(|| offer("COOKIE,SAFECOOKIE,HASHEDPASSWORD", file))
    });
    assert!(matches!(fake.gone().await, LinkError::Login(LoginError::CookieFile { .. })));
    fake.options.password = Some(Password::new("a \"good\" one".to_owned()));
    let (mut ends, _task) = fake.start();
    assert!(matches!(next(&mut ends).await, TorHeard::Connected { .. }));
    let login = "AUTHENTICATE \"a \\\"good\\\" one\"";
    assert!(fake.said.lock().await.iter().any(|line| line == login));
}

#[tokio::test]
async fn a_cookie_is_shown_openly_only_from_a_file_that_the_options_name() {
    let elsewhere = tempfile::tempdir().unwrap();
    let secret = elsewhere.path().join("secret");
    fs::write(&secret, [0xa5; 32]).unwrap();
    let told = format!(" COOKIEFILE=\"{}\"", secret.display());
    let mut fake = Fake::new(move |line| line.starts_with("PROTOCOLINFO").then(|| offer("COOKIE", &told)));
    let why = fake.gone().await;
    assert!(matches!(why, LinkError::Login(LoginError::OpenCookie)), "{why:?}");
    assert!(fake.said.lock().await.iter().all(|line| line == "PROTOCOLINFO 1"));

    let cookie = fake.folder.path().join("cookie");
    fs::write(&cookie, [0x5a; 32]).unwrap();
    fake.options.cookie_file = Some(cookie);
    let (mut ends, _task) = fake.start();
    assert!(matches!(next(&mut ends).await, TorHeard::Connected { .. }));
    let shown = format!("AUTHENTICATE {}", "5A".repeat(32));
    assert!(fake.said.lock().await.contains(&shown));
}

#[tokio::test]
async fn a_forged_tor_is_shown_nothing() {
    let fake = Fake::new(|line| {
        let challenge = format!("250 AUTHCHALLENGE SERVERHASH={0} SERVERNONCE={0}\r\n", "00".repeat(32));
        match line.split(' ').next()? {
            "PROTOCOLINFO" => Some(offer("COOKIE,SAFECOOKIE,HASHEDPASSWORD,NULL", " COOKIEFILE=\"/absent\"")),
            "AUTHCHALLENGE" => Some(challenge),
            _ => None,
        }
    });
    let cookie = fake.folder.path().join("cookie");
    fs::write(&cookie, [0x5a; 32]).unwrap();
    let mut fake = fake;
    fake.options.cookie_file = Some(cookie);
    fake.options.password = Some(Password::new("a secret".to_owned()));
    let why = fake.gone().await;
    assert!(matches!(why, LinkError::Login(LoginError::Forged(_))), "{why:?}");
    let said = fake.said.lock().await;
    assert!(!said.iter().any(|line| line.starts_with("AUTHENTICATE")), "{said:?}");
    // Each challenge is a fresh one.
    let mut challenges: Vec<&String> = said.iter().filter(|line| line.starts_with("AUTHCH")).collect();
    let asked = challenges.len();
    challenges.sort();
    challenges.dedup();
    assert_eq!(challenges.len(), asked);
}

#[tokio::test]
async fn ways_to_log_in_that_are_unknown_are_named_as_such() {
    for (answer, told) in [
        (offer("QUANTUM", ""), "tor offers no way to log in that is known"),
        (offer("SAFECOOKIE", ""), "tor names no absolute path of its cookie"),
        (offer("SAFECOOKIE", " COOKIEFILE=\"cookie\""), "tor names no absolute path of its cookie"),
        ("250 OK\r\n".to_owned(), "AUTH METHODS"),
        ("510 Unrecognized command\r\n".to_owned(), "PROTOCOLINFO: tor refuses with 510"),
    ] {
        let why = Fake::new(move |_| Some(answer.clone())).gone().await;
        assert!(why.to_string().contains(told), "{why}");
    }
}

#[tokio::test]
async fn an_answer_that_is_missing_or_not_asked_for_ends_the_connection() {
    type Row = (&'static str, &'static str, fn(&LinkError) -> bool);
    let is_unreadable = |why: &LinkError| matches!(why, LinkError::Unreadable { command: "GETINFO", .. });
    const PROCESS: &str = "GETINFO version process/pid uptime";
    const PEERS: &str = "GETINFO entry-guards orconn-status";
    let rows: [Row; 8] = [
        ("GETINFO circuit-status", "250 OK\r\n", is_unreadable),
        ("GETINFO circuit-status", "250-circuit-status=x\r\n250 OK\r\n", is_unreadable),
        (PROCESS, "250-process/pid=x\r\n250-uptime=1\r\n250 OK\r\n", is_unreadable),
        (PROCESS, "552 Unrecognized key\r\n", |why| {
            matches!(why, LinkError::Refused { command: "GETINFO", .. })
        }),
        ("SETEVENTS CIRC CIRC_MINOR ORCONN", "552 Unrecognized event\r\n", |why| {
            matches!(why, LinkError::Refused { command: "SETEVENTS", .. })
        }),
        (PEERS, "250-entry-guards=\r\n250 OK\r\n", is_unreadable),
        (PEERS, "250-entry-guards=relay up\r\n250-orconn-status=\r\n250 OK\r\n", is_unreadable),
        // An answer more than questions.
        (PEERS, "250-entry-guards=\r\n250-orconn-status=\r\n250 OK\r\n250 OK\r\n", |why| {
            matches!(why, LinkError::Unasked)
        }),
    ];
    for (line, answer, is_meant) in rows {
        let fake = Fake::new(move |said| (said == line).then(|| answer.to_owned()));
        let why = fake.gone().await;
        assert!(is_meant(&why), "{line}: {why:?}");
        assert!(why.to_string().contains("neither watched nor closed"), "{why}");
    }
}

#[tokio::test]
async fn events_that_cannot_be_read_are_made_up_for_by_a_list() {
    let fake = Fake::new(|line| {
        (line == "GETINFO entry-guards orconn-status").then(|| {
            // Unknown events and states are no faults.
            modest(line)
                + "650 CIRC 7 BUILT PURPOSE=HS_SERVICE_REND HS_STATE=HSSR_CONNECTING\r\n\
                   650 CIRC 7 PONDERING PURPOSE=HS_SERVICE_THINK\r\n\
                   650 FORECAST rain\r\n\
                   650 CIRC x BUILT\r\n\
                   650 CIRC 7 CLOSED REASON=not,tor's REMOTE_REASON=FINISHED\r\n"
        })
    });
    let (mut ends, _task) = fake.start();
    let TorHeard::Connected { generation, .. } = next(&mut ends).await else { panic!() };
    let TorHeard::Circuits { missed: 0, .. } = next(&mut ends).await else { panic!() };
    let mut heard = Vec::new();
    while heard.len() < 4 {
        match next(&mut ends).await {
            // Before or after the events.
            TorHeard::Peers(peers) => assert_eq!(peers, TorPeers::default()),
            TorHeard::Services(torrc) => assert_eq!(torrc, Torrc::default()),
            TorHeard::Circuit(circuit) => {
                assert_eq!(circuit.id.generation(), generation);
                assert_eq!(circuit.id.number_for_this_node().get(), 7);
                heard.push(Some((circuit.used_for, circuit.change)));
            }
            TorHeard::Circuits { open, missed } => {
                // The one that cannot be read, and the one behind it.
                assert_eq!((open.len(), missed), (0, 2));
                heard.push(None);
                break;
            }
            other @ (TorHeard::Connected { .. } | TorHeard::Closed { .. } | TorHeard::Gone { .. }) => {
                panic!("{other:?}")
            }
        }
    }
    let rendezvous = CircuitUse::ServiceRendezvous { is_joined: false };
    let expected =
        [Some((rendezvous, CircuitChange::Built)), Some((CircuitUse::Other, CircuitChange::Unknown)), None];
    assert_eq!(heard, expected);
}

#[tokio::test]
async fn peers_without_an_address_are_counted() {
    let relay = |number: usize| format!("${number:040X}~relay{number}");
    let guards: String = (0..600).map(|number| format!("{} up\r\n", relay(number))).collect();
    let connections = format!("{} CONNECTED\r\n192.0.2.9:443 CONNECTED\r\n[scrubbed] LAUNCHED\r\n", relay(0));
    let listed =
        format!("250+entry-guards=\r\n{guards}.\r\n250+orconn-status=\r\n{connections}.\r\n250 OK\r\n");
    let mut fake = Fake::new(move |line| {
        if line == "GETINFO entry-guards orconn-status" {
            return Some(listed.clone());
        }
        let key = line.strip_prefix("GETINFO ").filter(|key| key.starts_with("ns/id/"))?;
        let number = usize::from_str_radix(key.strip_prefix("ns/id/$")?, 16).unwrap();
        // Some stand in no consensus, and of some it is not readable.
        let value = match number % 4 {
            0 => return None,
            1 => "r name identity digest 2038-01-01 00:00:00 nowhere 9001 0\r\n".to_owned(),
            _ => format!(
                "r name identity digest 2038-01-01 00:00:00 192.0.2.{} 9001 0\r\na [2001:db8::{number:x}]:9001\r\n",
                number % 128
            ),
        };
        Some(format!("250+{key}=\r\n{value}.\r\n250 OK\r\n"))
    });
    fake.options.command_timeout = PATIENCE;
    let (mut ends, _task) = fake.start();
    let peers = loop {
        if let TorHeard::Peers(peers) = next(&mut ends).await {
            break peers;
        }
    };
    // Half of 512 have an address of each kind; of the other half nothing is known, nor of the 88 others and the two that
    // are no relays.
    assert_eq!((peers.addresses.len(), peers.unresolved), (64 + 256, 256 + 88 + 2));
    assert_eq!(peers.hosts().len(), 64 + 256);
    let stranger: std::net::IpAddr = "192.0.2.9".parse().unwrap();
    assert!(!peers.hosts().contains(&stranger));
}
