//! Private networks of the real tor: that they come up and what they promise to the tests that will use them, and the command
//! that gives a developer the same by hand.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, its helpers too")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, Ipv6Addr, TcpStream},
    os::unix::net::UnixListener,
    path::Path,
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tunica_tests::testnet::{
    self, Authentication, Backend, Client, Entry, Network, Page, Profile, ProofOfWork, Service,
    ServiceOptions,
};

/// How long anything may take. Nothing is measured by it.
const PATIENCE: Duration = Duration::from_secs(120);

/// Authorities, relays.
const NODES: usize = 8;

/// Asks for the page and returns the PROXY line that stood before the request.
fn proxy_line(mut stream: TcpStream, onion: &str) -> Option<String> {
    write!(stream, "GET / HTTP/1.1\r\nHost: {onion}\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    Some(answer.lines().find(|line| line.starts_with("PROXY ")).unwrap().to_owned())
}

/// The circuit of a PROXY line, which must be one that tor writes.
fn circuit_of(line: &str) -> u32 {
    let words: Vec<&str> = line.split(' ').collect();
    let ["PROXY", "TCP6", source, "::1", port, "80"] = words.as_slice() else { panic!("{line}") };
    let source = source.parse::<Ipv6Addr>().unwrap().to_bits();
    assert_eq!(source >> 32, 0xfc00_dead_beef_4dad_0000_0000, "{line}");
    let circuit = u32::try_from(source & 0xffff_ffff).unwrap();
    assert_eq!(port.parse::<u16>().unwrap(), u16::try_from(circuit & 0xffff).unwrap(), "{line}");
    circuit
}

/// A new circuit's user and number. Now and then one hangs in so small a network; then another one is taken.
fn fresh_circuit(client: &Client, service: &Service) -> (String, u32) {
    for _ in 0..4 {
        let (stream, user) = client.connect_afresh(service.onion(), 80).unwrap();
        if let Some(line) = proxy_line(stream, service.onion()) {
            return (user, circuit_of(&line));
        }
    }
    panic!("four circuits in a row broke");
}

fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// Remote addresses of the TCP sockets of these processes, from `/proc/net/tcp` and `tcp6`.
fn remote_addresses(pids: &[u32]) -> Vec<IpAddr> {
    let mut inodes = BTreeSet::new();
    for pid in pids {
        for file in fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten() {
            // A file may be closed while it is looked at.
            let Ok(target) = fs::read_link(file.path()) else { continue };
            let socket = target.to_str().and_then(|name| name.strip_prefix("socket:[")?.strip_suffix(']'));
            inodes.extend(socket.map(str::to_owned));
        }
    }
    let mut found = Vec::new();
    for (table, is_v6) in [("/proc/net/tcp", false), ("/proc/net/tcp6", true)] {
        for line in fs::read_to_string(table).unwrap().lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let [_, _, remote, _, _, _, _, _, _, inode, ..] = fields.as_slice() else { panic!("{line}") };
            if !inodes.contains(*inode) {
                continue;
            }
            let (digits, _) = remote.split_once(':').unwrap();
            // Words of 32 bits in the machine's order.
            let word = |digits: &[u8]| u32::from_str_radix(str::from_utf8(digits).unwrap(), 16).unwrap();
            let words: Vec<u8> =
                digits.as_bytes().chunks(8).flat_map(|digits| word(digits).to_ne_bytes()).collect();
            found.push(if is_v6 {
                IpAddr::from(<[u8; 16]>::try_from(words).unwrap())
            } else {
                IpAddr::from(<[u8; 4]>::try_from(words).unwrap())
            });
        }
    }
    found
}

/// Addresses that tor names in a line of its log.
fn addresses_in(line: &str) -> Vec<IpAddr> {
    let words = line.split(|character: char| !(character.is_ascii_hexdigit() || ".:".contains(character)));
    let parse = |word: &str| {
        let word = word.trim_end_matches(['.', ':']);
        let address = word.rsplit_once(':').map_or(word, |(address, _)| address);
        // Without a dot it may be a time of day.
        let found = word.parse().or_else(|_| address.parse()).ok();
        // 0.4.9.11 is tor's version; nobody connects to that network (RFC 1122, section 3.2.1.3).
        found.filter(|_| (word.contains('.') || word.contains("::")) && !word.starts_with("0."))
    };
    words.filter_map(parse).collect()
}

#[test]
fn a_service_is_reached_through_ten_circuits_and_a_user_stays_on_one() {
    let network = testnet::shared(Profile::Usual).unwrap();
    let page = Page::start().unwrap();
    let service = network.service(&ServiceOptions::new(80, page.backend())).unwrap();
    let client = network.client().unwrap();

    let circuits: BTreeMap<String, u32> = (0..10).map(|_| fresh_circuit(&client, &service)).collect();
    let distinct: BTreeSet<&u32> = circuits.values().collect();
    assert_eq!((circuits.len(), distinct.len()), (10, 10), "{circuits:?}");

    // Both streams of one user are open at the same time.
    let (user, circuit) = fresh_circuit(&client, &service);
    let [one, other] = [(), ()].map(|()| client.connect(service.onion(), 80, &user).unwrap());
    for stream in [other, one] {
        assert_eq!(circuit_of(&proxy_line(stream, service.onion()).unwrap()), circuit);
    }
    assert!(!circuits.values().any(|known| *known == circuit));

    // The number is the control port's: the circuit's end is the client's.
    let mut control = service.control_address().connect().unwrap();
    let mut open = client.connect(service.onion(), 80, &user).unwrap();
    control.ask(&format!("CLOSECIRCUIT {circuit}")).unwrap();
    let mut nothing = [0];
    assert!(!matches!(open.read(&mut nothing), Ok(1)));

    // After all this traffic: nobody looks beyond this machine.
    let processes: Vec<Entry> = network
        .processes()
        .unwrap()
        .into_iter()
        .filter(|entry| entry.name != "owner" && entry.is_alive())
        .collect();
    assert!(processes.len() >= NODES + 2, "{processes:?}");
    let pids: Vec<u32> = processes.iter().map(|entry| entry.pid).collect();
    let remote = remote_addresses(&pids);
    assert!(remote.iter().filter(|address| is_loopback(**address)).count() > NODES, "{remote:?}");
    // A listener's is unspecified.
    assert!(remote.iter().all(|address| is_loopback(*address) || address.is_unspecified()), "{remote:?}");
    let mut named = 0;
    for process in &processes {
        let log = fs::read_to_string(network.folder().join(&process.name).join("notice.log")).unwrap();
        for line in log.lines() {
            let addresses = addresses_in(line);
            assert!(addresses.iter().copied().all(is_loopback), "{}: {line}", process.name);
            named += addresses.len();
        }
    }
    assert!(named > 0, "no log names any address, so this looks at the wrong thing");
}

#[test]
fn addresses_are_found_in_lines_of_a_log() {
    let line = "Nov 21 07:28:01.411 [warn] Tor 0.4.9.11 tried 192.0.2.7:443, [2001:db8::5]:80 and 127.0.0.1.";
    let found: Vec<String> = addresses_in(line).iter().map(IpAddr::to_string).collect();
    assert_eq!(found, ["192.0.2.7", "2001:db8::5", "127.0.0.1"]);
}

#[test]
fn a_descriptor_is_with_two_of_eight_directories() {
    let network = testnet::shared(Profile::Usual).unwrap();
    let consensus = network.consensus().unwrap();
    let parameters = consensus.lines().find(|line| line.starts_with("params ")).unwrap();
    for wanted in ["hsdir_interval=120", "hsdir_n_replicas=2", "hsdir_spread_fetch=1", "hsdir_spread_store=1"]
    {
        assert!(parameters.split(' ').any(|parameter| parameter == wanted), "{parameters}");
    }
    let flags: Vec<&str> = consensus.lines().filter(|line| line.starts_with("s ")).collect();
    assert_eq!(flags.len(), NODES);
    assert!(flags.iter().all(|flags| flags.split(' ').any(|flag| flag == "HSDir")), "{flags:?}");

    let page = Page::start().unwrap();
    let service = network.service(&ServiceOptions::new(80, page.backend())).unwrap();
    let mut directories: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for upload in service.uploads() {
        directories.entry(&upload.descriptor).or_default().insert(&upload.directory);
    }
    assert_eq!(directories.values().map(BTreeSet::len).collect::<Vec<_>>(), [2, 2], "{directories:?}");

    // Whom a client asks: two have it, and they are two that took it.
    let client = network.client().unwrap();
    let mut holders = BTreeSet::new();
    for (_, fingerprint) in network.fingerprints().unwrap() {
        if client.finds_at(service.onion(), &fingerprint).unwrap() {
            holders.insert(fingerprint);
        }
    }
    let took =
        |descriptor: &BTreeSet<&str>| descriptor.iter().copied().eq(holders.iter().map(String::as_str));
    assert!(directories.values().any(took), "{holders:?} hold it of {directories:?}");
}

#[test]
fn a_service_is_what_its_options_say() {
    let network = testnet::shared(Profile::Usual).unwrap();
    let socket = network.folder().join("backend");
    let listener = UnixListener::bind(&socket).unwrap();
    let mut options = ServiceOptions::new(80, Backend::Unix(socket));
    options.proof_of_work = Some(ProofOfWork { rate_per_second: 25, burst: 50 });
    options.control = Authentication::Password("a \"good\" \\ password".to_owned());
    options.is_circuit_exported = false;
    let mut service = network.service(&options).unwrap();

    let mut stranger = service.control_address();
    stranger.authentication = Authentication::Password("another".to_owned());
    let refusal = stranger.connect().unwrap_err().to_string();
    assert!(refusal.contains("515") && !refusal.contains("another"), "{refusal}");
    let mut control = service.control_address().connect().unwrap();
    let port = control.information("net/listeners/control").unwrap();
    assert!(port.contains(&service.control_port().unwrap().to_string()), "{port}");
    let onion = service.onion().to_owned();
    let descriptor = control
        .information(&format!("hs/service/desc/id/{}", onion.strip_suffix(".onion").unwrap()))
        .unwrap();
    assert!(descriptor.starts_with("hs-descriptor 3"), "{descriptor}");

    // tor keeps the connection open after its answer.
    let mut metrics = TcpStream::connect(service.metrics_port()).unwrap();
    metrics.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(metrics, "GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut lines = BufReader::new(metrics).lines();
    assert!(lines.any(|line| line.unwrap().starts_with("tor_hs_pow_suggested_effort{")));

    // Another process with the same keys and ports.
    let (pid, metrics_port) = (service.pid().unwrap(), service.metrics_port());
    service.restart().unwrap();
    assert_eq!((service.onion(), service.metrics_port()), (onion.as_str(), metrics_port));
    assert_ne!(service.pid().unwrap(), pid);

    // The first bytes are the client's where no circuit is exported.
    let client = network.client().unwrap();
    let echo = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut first = [0; 5];
        stream.read_exact(&mut first).unwrap();
        stream.write_all(&first).unwrap();
        first
    });
    let (mut stream, _) = client.connect_afresh(&onion, 80).unwrap();
    stream.write_all(b"hello").unwrap();
    let mut back = [0; 5];
    stream.read_exact(&mut back).unwrap();
    assert_eq!((back, echo.join().unwrap()), (*b"hello", *b"hello"));
}

#[test]
fn a_control_socket_with_a_cookie_offers_both_ways_to_prove_it() {
    let network = testnet::shared(Profile::Usual).unwrap();
    let page = Page::start().unwrap();
    let mut options = ServiceOptions::new(80, page.backend());
    options.control = Authentication::Cookie;
    let service = network.service(&options).unwrap();
    let mut stranger = service.control_address();
    stranger.authentication = Authentication::None;
    assert!(stranger.connect().unwrap_err().to_string().contains("515"));
    let mut control = service.control_address().connect().unwrap();
    let offer = control.ask("PROTOCOLINFO 1").unwrap().join("\n");
    assert!(offer.contains("METHODS=COOKIE,SAFECOOKIE "), "{offer}");
    assert!(offer.contains(service.control_address().cookie.to_str().unwrap()), "{offer}");
}

#[test]
fn the_rotation_network_has_time_periods_of_eight_minutes() {
    let network = Network::start(Profile::Rotation).unwrap();
    let consensus = network.consensus().unwrap();
    let parameters = consensus.lines().find(|line| line.starts_with("params ")).unwrap();
    assert!(parameters.split(' ').any(|parameter| parameter == "hsdir_interval=8"), "{parameters}");
    let times: Vec<&str> = ["valid-after ", "fresh-until "]
        .map(|name| consensus.lines().find_map(|line| line.strip_prefix(name)).unwrap())
        .to_vec();
    let seconds = |time: &str| time.rsplit(':').next().unwrap().parse::<u32>().unwrap();
    assert_eq!((60 + seconds(times[1]) - seconds(times[0])) % 60, 20, "{times:?}");

    let page = Page::start().unwrap();
    let service = network.service(&ServiceOptions::new(80, page.backend())).unwrap();
    // At a boundary even a young network agrees on a shared random value.
    let randoms = network.shared_randoms().unwrap();
    let randoms: Vec<Vec<u8>> =
        [randoms.previous, randoms.current].into_iter().flatten().map(|random| random.value).collect();
    let place = |upload| network.place_of(upload, Profile::Rotation, &randoms).unwrap();
    let periods: BTreeSet<u64> = service.uploads().iter().map(|upload| place(upload).period).collect();
    // The descriptors are of neighbouring periods.
    let [one, other] = Vec::from_iter(periods).try_into().unwrap();
    assert_eq!(one + 1, other);
}

/// The command that a developer gives, on a folder of the test's own.
fn by_hand(verb: &str, folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_testnet"));
    command.arg(verb).arg("--folder").arg(folder);
    command
}

fn run(verb: &str, folder: &Path) -> Output {
    by_hand(verb, folder).stdin(Stdio::null()).output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Ends the network when a test fails half-way.
struct Down<'a>(&'a Path);

impl Drop for Down<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            let _ = testnet::end(&testnet::entries(self.0).unwrap_or_default());
        }
    }
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_developer_gets_the_same_by_hand() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("net");
    let _down = Down(&folder);
    let absent = run("status", &folder);
    assert!(!absent.status.success() && text(&absent).contains("not up"), "{}", text(&absent));

    let up = run("up", &folder);
    assert!(up.status.success(), "{}", text(&up));
    let found: Value = serde_json::from_str(&fs::read_to_string(folder.join("up.json")).unwrap()).unwrap();
    let (onion, socks) = (found["onion"].as_str().unwrap(), found["socks"].as_str().unwrap());
    let line = format!("curl --socks5-hostname {socks} http://{onion}/");
    assert!(text(&up).contains(&line), "{}", text(&up));
    for control in ["service_control", "client_control"] {
        let path = found[control].as_str().unwrap();
        assert!(text(&up).contains(path) && Path::new(path).exists(), "{}", text(&up));
    }
    let answered = (0..6).any(|attempt| {
        let patience = Duration::from_secs(15);
        let stream = testnet::connect(socks.parse().unwrap(), &format!("{attempt}"), onion, 80, patience);
        stream.ok().and_then(|stream| proxy_line(stream, onion)).is_some_and(|line| circuit_of(&line) > 0)
    });
    assert!(answered, "six circuits in a row broke");

    // A node that was started again has an entry for each start.
    let all = testnet::entries(&folder).unwrap();
    let last: BTreeMap<String, Entry> = all.iter().map(|entry| (entry.name.clone(), entry.clone())).collect();
    let entries: Vec<Entry> = last.into_values().collect();
    assert_eq!(entries.len(), 1 + NODES + 2, "{all:?}");
    let again = run("up", &folder);
    assert!(
        again.status.success() && text(&again).starts_with("The network is already up."),
        "{}",
        text(&again)
    );
    assert!(text(&again).contains(&line), "{}", text(&again));
    assert_eq!(testnet::entries(&folder).unwrap(), all);
    let status = run("status", &folder);
    assert!(status.status.success(), "{}", text(&status));
    assert_eq!(text(&status).matches(" lives (pid ").count(), entries.len(), "{}", text(&status));

    // One that died is named, and the others are not.
    let relay = entries.iter().find(|entry| entry.name == "relay3").unwrap();
    kill(Pid::from_raw(relay.pid.try_into().unwrap()), Signal::SIGKILL).unwrap();
    wait_until("the relay's end", || !relay.is_alive());
    let status = run("status", &folder);
    assert!(
        !status.status.success() && text(&status).contains("not all processes live: relay3\n"),
        "{}",
        text(&status)
    );

    let down = run("down", &folder);
    assert!(down.status.success(), "{}", text(&down));
    assert!(!all.iter().any(Entry::is_alive) && !folder.exists());
    let again = run("down", &folder);
    assert!(again.status.success() && text(&again).contains("was not up"), "{}", text(&again));
}

#[test]
fn a_killed_owner_leaves_no_process_and_what_it_left_is_removed() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("net");
    let _down = Down(&folder);
    let mut keeper = by_hand("keep", &folder).stdout(Stdio::piped()).spawn().unwrap();
    let entries = all_started(&folder, &mut keeper);
    assert!(entries.iter().all(Entry::is_alive), "{entries:?}");

    keeper.kill().unwrap();
    keeper.wait().unwrap();
    wait_until("the end of all processes", || !entries.iter().any(Entry::is_alive));
    let status = run("status", &folder);
    assert!(!status.status.success() && text(&status).contains("keeper"), "{}", text(&status));
    assert_eq!(text(&status).matches(" is gone (was pid ").count(), entries.len(), "{}", text(&status));
    let down = run("down", &folder);
    assert!(down.status.success() && text(&down).contains("0 processes ended"), "{}", text(&down));
    assert!(!folder.exists());
}

#[test]
fn a_command_that_is_interrupted_while_it_brings_a_network_up_leaves_none() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("net");
    let _down = Down(&folder);
    let mut up = by_hand("up", &folder).stdout(Stdio::piped()).spawn().unwrap();
    let entries = all_started(&folder, &mut up);
    // Not SIGINT, which a shell has its background jobs ignore, and their children with them.
    kill(Pid::from_raw(up.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    up.wait().unwrap();
    wait_until("the end of all processes", || !entries.iter().any(Entry::is_alive));
    assert!(run("down", &folder).status.success());
}

/// Waits until authorities and relays were started; they are not up yet.
fn all_started(folder: &Path, starter: &mut Child) -> Vec<Entry> {
    let mut first = String::new();
    BufReader::new(starter.stdout.as_mut().unwrap()).read_line(&mut first).unwrap();
    assert!(first.starts_with("Starting"), "{first}");
    wait_until("all nodes", || testnet::entries(folder).unwrap().len() == 1 + NODES);
    testnet::entries(folder).unwrap()
}

#[test]
fn a_folder_of_something_else_is_left_alone() {
    let parent = tempfile::tempdir().unwrap();
    // A lock lies beside it.
    let folder = parent.path().join("other");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("precious"), "text").unwrap();
    for verb in ["up", "down"] {
        let refused = run(verb, &folder);
        assert!(!refused.status.success(), "{}", text(&refused));
        assert!(text(&refused).contains("is not the folder of a network"), "{}", text(&refused));
    }
    assert!(folder.join("precious").exists());
}
