//! HAProxy as the ingress: the real one, by the configuration that `tunica render haproxy` writes, beside the real daemon.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper that fails is a test that fails"
)]

use std::{
    env, fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::unix::{
        fs::{FileTypeExt as _, MetadataExt as _},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tunica_tests::{
    ingress::{Backend, PATIENCE, answers, free_address, get, header, open, read_answer},
    lab::Lab,
    netns::Namespace,
    sys::end_with_parent,
    testnet::{Backend as Behind, Profile, ServiceOptions, shared},
};

const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 10_000);

/// The real program: that of `cargo xtask setup`, or the host's.
fn haproxy() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = [root.join("target/tools/bin"), PathBuf::from("/usr/sbin")].into_iter();
    folders
        .chain(env::split_paths(&path))
        .map(|folder| folder.join("haproxy"))
        .find(|file| file.is_file())
        .expect("haproxy is missing: run `cargo xtask setup`")
}

/// A running HAProxy.
struct Proxy {
    child: Child,
    api: PathBuf,
}

impl Proxy {
    /// Writes the configuration by the lab's own and starts HAProxy, in the lab's host or beside the test.
    fn start(lab: &Lab, host: Option<&Namespace>, render: &[&str], arguments: &[&str]) -> Self {
        let proxy = Self::begin(lab, host, render, arguments);
        let deadline = Instant::now() + PATIENCE;
        while UnixStream::connect(&proxy.api).is_err() {
            assert!(Instant::now() < deadline, "{}", fs::read_to_string(lab.path("haproxy.log")).unwrap());
            thread::sleep(Duration::from_millis(20));
        }
        proxy
    }

    fn begin(lab: &Lab, host: Option<&Namespace>, render: &[&str], arguments: &[&str]) -> Self {
        let file = write_configuration(lab, render);
        let mut command = host.map_or_else(|| Command::new(haproxy()), |host| host.command(&haproxy()));
        let log = fs::OpenOptions::new().create(true).append(true).open(lab.path("haproxy.log")).unwrap();
        command.args(arguments).arg("-f").arg(file).stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        Self { child: end_with_parent(&mut command).spawn().unwrap(), api: lab.path("haproxy.sock") }
    }

    fn ask(&self, command: &str) -> String {
        ask_api(&self.api, command).unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    fn table(&self) -> String {
        self.ask("show table tunica_circuits")
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // A master ends its workers, which SIGKILL would leave behind.
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline && self.child.try_wait().is_ok_and(|status| status.is_none()) {
            thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Every limit that may be tried.
const SHADOWS: &str = "shadow = [\"slow_lane\", \"connection_rate\", \"circuit_rate\", \"too_many_open\", \"request_rate\", \
                       \"vip_rate\", \"byte_budget\", \"cpu_budget\", \"global_rate\", \"puzzle_required\"]";

fn write_configuration(lab: &Lab, render: &[&str]) -> PathBuf {
    let config = lab.path("tunica.toml");
    let arguments = ["--config", config.to_str().unwrap(), "render", "haproxy", "--user", "nobody"];
    let text = lab.must(&[&arguments[..], &["--group", "nogroup"], render].concat()).unwrap();
    let file = lab.path("haproxy.cfg");
    fs::write(&file, text).unwrap();
    file
}

fn ask_api(socket: &Path, command: &str) -> Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    writeln!(stream, "{command}")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn configure(lab: &Lab, listen: SocketAddr, backend: SocketAddr, ingress: &str, circuits: &str, more: &str) {
    let text = format!(
        "[ingress]\nlisten = \"{listen}\"\nbackends = [\"{backend}\"]\nhealth_every_seconds = 1\n{ingress}\n\
         [circuits]\n{circuits}\n[haproxy]\nsocket = \"{}\"\n{more}",
        lab.path("haproxy.sock").display()
    );
    lab.configure("mode = \"observe\"", &text).unwrap();
}

/// What a stream of a circuit gets: the answer, or `reset`, `closed`.
fn answer(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    match read_answer(stream, &mut answer) {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => "reset".to_owned(),
        Err(error) => panic!("{error}"),
        Ok(()) if answer.is_empty() => "closed".to_owned(),
        Ok(()) => String::from_utf8_lossy(&answer).into_owned(),
    }
}

fn stream(circuit: u32, request: &str) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(LISTEN)?;
    stream.write_all(format!("{}{request}", header(circuit)).as_bytes())?;
    Ok(stream)
}

fn asked(lab: &Lab, circuit: u32, request: &str) -> String {
    lab.host.run(|| Ok(answer(&mut stream(circuit, request)?))).unwrap()
}

fn is_served(lab: &Lab, circuit: u32) -> bool {
    asked(lab, circuit, &get("/")).starts_with("HTTP/1.1 200")
}

fn on_loopback(purpose: &str) -> (Lab, Backend) {
    let lab = Lab::new(purpose).unwrap();
    lab.host.ip(&["link", "set", "lo", "up"]).unwrap();
    let backend = lab.host.run(Backend::start).unwrap();
    (lab, backend)
}

fn wait(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

fn metric(lab: &Lab, series: &str) -> f64 {
    lab.metric(series).unwrap().unwrap_or_else(|| panic!("no {series}"))
}

#[test]
fn the_rendered_configuration_loads_whatever_it_is_made_of() {
    let (lab, backend) = on_loopback("haproxyloads");
    let page = lab.path("maintenance.html");
    fs::write(&page, "<p>later</p>").unwrap();
    let socket = lab.path("ingress.sock");
    for (ingress, circuits, render) in [
        (String::new(), "", &[][..]),
        (String::new(), "profile = \"web\"", &["--chroot", "/var/empty"]),
        ("protocol = \"tcp\"".to_owned(), "profile = \"messenger\"", &[]),
        (
            "protocol = \"tcp\"".to_owned(),
            "connections_per_10_seconds = 0\nmax_per_circuit_per_minute = 0",
            &[],
        ),
        (
            format!(
                "sticky = true\nheader_bytes = 65536\nmaintenance_page = \"{}\"\nsocket = \"{}\"\nhealth_path = \"/a?b=%20\\\"#$x\"",
                page.display(),
                socket.display()
            ),
            "profile = \"gated\"",
            &["--peer", "a=127.0.0.1:10002", "--peer", "b=127.0.0.1:10003", "--stats", "[::1]:9001"],
        ),
        (String::new(), SHADOWS, &[]),
        ("protocol = \"tcp\"".to_owned(), SHADOWS, &[]),
    ] {
        configure(&lab, LISTEN, backend.address(), &ingress, circuits, "");
        let file = write_configuration(&lab, render);
        let output = Command::new(haproxy()).arg("-c").arg("-f").arg(&file).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            output.status.success(),
            "{ingress} {circuits}: {said}\n{}",
            fs::read_to_string(&file).unwrap()
        );
        assert!(!said.contains("WARNING") && !said.contains("ALERT"), "{said}");
    }
    // What would mean something else to HAProxy, or leave this machine, is refused.
    for (ingress, render, named) in [
        ("health_path = \"/it's\"", &[][..], "ingress.health_path"),
        ("socket = \"/run/a b\"", &[], "ingress.socket"),
        ("", &["--peer", "a=192.0.2.1:10002"], "must not leave this one"),
        ("", &["--stats", "0.0.0.0:9000"], "give a loopback address"),
        ("", &["--peer", "a=somewhere"], "numeric"),
    ] {
        configure(&lab, LISTEN, backend.address(), ingress, "", "");
        let config = lab.path("tunica.toml");
        let ran = lab
            .tunica(&[&["--config", config.to_str().unwrap(), "render", "haproxy"], render].concat())
            .unwrap();
        assert!(ran.code != Some(0) && ran.out.is_empty() && ran.err.contains(named), "{ran:?}");
    }
    // The example is what the default configuration makes.
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let example = root.join("deploy/tunica.toml");
    let made = lab.must(&["--config", example.to_str().unwrap(), "render", "haproxy"]).unwrap();
    let shipped = fs::read_to_string(root.join("deploy/haproxy.cfg")).unwrap();
    assert_eq!(made, shipped, "run `cargo xtask generate`");
}

/// What HAProxy does not do is told where it matters, and nowhere else.
#[test]
fn what_the_configuration_asks_for_in_vain_is_told() {
    let (lab, backend) = on_loopback("haproxytold");
    let config = lab.path("tunica.toml");
    let told = |ingress: &str, circuits: &str, more: &str| {
        configure(&lab, LISTEN, backend.address(), ingress, circuits, more);
        let ran = lab.tunica(&["--config", config.to_str().unwrap(), "render", "haproxy"]).unwrap();
        assert_eq!(ran.code, Some(0), "{ran:?}");
        ran.err
    };
    let always = [
        "puzzle",
        "paid_share",
        "waiting room",
        "token",
        "`tunica threat set` and `tunica panic`",
        "max_circuit_",
        "rotate_hard_after_secs",
        "[sybil]",
        "bans.ladder",
        "one failed health check",
    ];
    let sometimes = [
        "circuits.shadow",
        "would_refuse",
        "neither judged nor counted",
        "mebibytes_per_minute",
        "cpu_milliseconds_per_minute",
        "slow or malformed heads",
        "log_refusals",
        "body_bytes",
        "answered with 400",
        "tor.control",
        "shared out among the backends",
    ];
    let spare = "mebibytes_per_minute = 0\ncpu_milliseconds_per_minute = 0";
    let rows: [(&str, String, &str, &[&str]); 4] = [
        ("protocol = \"tcp\"", spare.to_owned(), "[tor]\ncontrol = \"127.0.0.1:9051\"", &[]),
        (
            "",
            "mebibytes_per_minute = 0".to_owned(),
            "",
            &[
                "cpu_milliseconds_per_minute",
                "slow or malformed heads",
                "body_bytes",
                "answered with 400",
                "tor.control",
            ],
        ),
        (
            "protocol = \"tcp\"",
            format!("{spare}\nlog_refusals = true\nshadow = [\"circuit_rate\"]"),
            "[tor]\ncontrol = \"127.0.0.1:9051\"",
            &["circuits.shadow", "would_refuse", "log_refusals"],
        ),
        (
            "protocol = \"tcp\"",
            format!("{spare}\nshadow = [\"request_rate\", \"byte_budget\"]"),
            "",
            &["circuits.shadow", "neither judged nor counted", "tor.control"],
        ),
    ];
    for (ingress, circuits, more, expected) in rows {
        let told = told(ingress, &circuits, more);
        for words in always {
            assert!(told.contains(words), "{words}: {told}");
        }
        for words in sometimes {
            assert_eq!(told.contains(words), expected.contains(&words), "{words}: {told}");
        }
    }
}

/// Whoever forges a PROXY line must be kept out of the file, and tor must not.
#[test]
fn tor_reaches_it_by_its_file_and_nobody_else() {
    let (lab, backend) = on_loopback("haproxyfile");
    let socket = lab.path("ingress.sock");
    let ingress = format!("socket = \"{}\"", socket.display());
    configure(&lab, LISTEN, backend.address(), &ingress, "profile = \"web\"", "[tor]\nuser = \"daemon\"");
    let jail = lab.path("jail");
    fs::create_dir(&jail).unwrap();
    let proxy = Proxy::start(&lab, Some(&lab.host), &["--chroot", jail.to_str().unwrap()], &["-db"]);
    // It answers a little before it goes there.
    let deadline = Instant::now() + PATIENCE;
    while fs::read_link(format!("/proc/{}/root", proxy.child.id())).unwrap() != jail {
        assert!(Instant::now() < deadline, "{}", fs::read_to_string(lab.path("haproxy.log")).unwrap());
        thread::sleep(Duration::from_millis(20));
    }
    let found = fs::metadata(&socket).unwrap();
    let tor = nix::unistd::User::from_name("daemon").unwrap().unwrap();
    assert_eq!((found.uid(), found.mode() & 0o777), (tor.uid.as_raw(), 0o660));
    let mut stream = UnixStream::connect(&socket).unwrap();
    stream.write_all(format!("{}{}", header(7), get("/")).as_bytes()).unwrap();
    let mut answer = Vec::new();
    read_answer(&mut stream, &mut answer).unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
}

#[test]
fn a_sticky_circuit_keeps_its_backend() {
    let (lab, backend) = on_loopback("haproxysticky");
    let other = lab.host.run(Backend::start).unwrap();
    let ingress = format!(
        "[ingress]\nlisten = \"{LISTEN}\"\nbackends = [\"{}\", \"{}\"]\nsticky = true\n\
         [circuits]\nprofile = \"web\"\nmax_connections_per_second = 1000\n[haproxy]\nsocket = \"{}\"\n",
        backend.address(),
        other.address(),
        lab.path("haproxy.sock").display()
    );
    lab.configure("mode = \"observe\"", &ingress).unwrap();
    let _proxy = Proxy::start(&lab, Some(&lab.host), &[], &["-db"]);
    let asked = || [backend.requests().len(), other.requests().len()];
    let mut circuits_of = [0; 2];
    for circuit in 1..=20 {
        let before = asked();
        for _ in 0..3 {
            let answer = self::asked(&lab, circuit, &get("/"));
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
        let now = asked();
        let got = [now[0] - before[0], now[1] - before[1]];
        assert!(got == [3, 0] || got == [0, 3], "circuit {circuit}: {got:?}");
        circuits_of[usize::from(got[0] == 0)] += 1;
    }
    // By the hash of the circuit: a million times less likely than once that all are of one backend.
    assert!(circuits_of[0] > 0 && circuits_of[1] > 0, "{circuits_of:?}");
}

#[test]
fn a_limit_in_shadow_refuses_and_bans_nobody_and_the_log_names_it() {
    let (lab, backend) = on_loopback("haproxyshadow");
    let limits = "requests_per_10_seconds = 5\nslow_requests_per_10_seconds = 4\nmax_per_circuit_per_minute = 3\n\
                  connections_per_10_seconds = 9\nban_threshold = 1\nmax_connections_per_second = 1000";
    let asked = |circuit: u32| {
        lab.host
            .run(|| {
                // Many requests through one connection, and as many connections.
                let mut one = stream(circuit, &get("/").repeat(12))?;
                let mut got: Vec<_> = (0..12).map(|_| answer(&mut one)).collect();
                for _ in 0..6 {
                    got.push(answer(&mut stream(circuit, &get("/"))?));
                }
                Ok(got)
            })
            .unwrap()
    };
    let is_served = |answer: &String| answer.starts_with("HTTP/1.1 200");
    let shadow = format!("shadow = [\"request_rate\", \"circuit_rate\"]\n{limits}");
    configure(&lab, LISTEN, backend.address(), "", &shadow, "");
    let proxy = Proxy::start(&lab, Some(&lab.host), &[], &["-db"]);
    let got = asked(5);
    assert!(got.iter().all(is_served), "{got:?}");
    let table = proxy.table();
    assert!(table.contains("4dad::5 ") && table.contains("gpt0=0 gpc0=0 "), "no violation, no ban: {table}");
    let log = proxy.ask("show events tunica_log");
    let said = |words: &str| log.lines().filter(|line| line.contains(words)).count();
    assert_eq!(said(" would_refuse=- "), 4, "{log}");
    assert_eq!((said(" would_refuse=request_rate "), said(" would_refuse=circuit_rate ")), (10, 4), "{log}");
    // Limits that are no shadows act.
    let last = || lab.host.run(|| Ok(answer(&mut stream(5, &get("/"))?))).unwrap();
    assert!(is_served(&last()), "the eighth connection");
    assert_eq!(last(), "reset", "connection_rate, and a ban");
    drop(proxy);

    configure(&lab, LISTEN, backend.address(), "", limits, "");
    let proxy = Proxy::start(&lab, Some(&lab.host), &[], &["-db"]);
    let got = asked(5);
    assert_eq!(got.iter().position(|answer| !is_served(answer)), Some(4), "{got:?}");
    assert!(proxy.table().contains("gpt0=2 "), "{}", proxy.table());
    assert!(!proxy.ask("show events tunica_log").contains("would_refuse"));
    drop(proxy);

    // The rate of all, which is judged before any request: the first connection is the only one of its second, or not.
    let one_a_second = "shadow = [\"global_rate\"]\nprofile = \"web\"\nmax_connections_per_second = 1";
    configure(&lab, LISTEN, backend.address(), "", one_a_second, "");
    let proxy = Proxy::start(&lab, Some(&lab.host), &[], &["-db"]);
    let named = || proxy.ask("show events tunica_log").matches(" would_refuse=global_rate ").count();
    assert!(self::is_served(&lab, 6) && named() == 0);
    wait("a connection too many", || {
        assert!((0..3).all(|_| self::is_served(&lab, 6)), "it refuses nobody");
        named() > 0
    });
}

/// The checklist: PROXY header, table, tracking, ban, VIP, timeouts, health, socket, log, permissions.
#[test]
fn haproxy_does_what_the_front_does() {
    let (lab, backend) = on_loopback("haproxylist");
    configure(
        &lab,
        LISTEN,
        backend.address(),
        "request_seconds = 1",
        "max_connections_per_second = 1000",
        "",
    );
    let proxy = Proxy::start(&lab, Some(&lab.host), &[], &["-db"]);

    // Header: who is no circuit is not read.
    let foreign = |line: &str| {
        let text = format!("{line}{}", get("/"));
        lab.host
            .run(|| {
                let mut stream = TcpStream::connect(LISTEN)?;
                stream.write_all(text.as_bytes())?;
                Ok(answer(&mut stream))
            })
            .unwrap()
    };
    for line in ["PROXY TCP6 ::1 ::1 1 80\r\n", "PROXY TCP4 127.0.0.1 127.0.0.1 1 80\r\n", ""] {
        let got = foreign(line);
        assert!(matches!(got.as_str(), "reset" | "closed"), "{line:?}: {got}");
    }
    assert!(backend.requests().is_empty());

    // Table and tracking: two circuits are two rows.
    assert!(is_served(&lab, 5) && is_served(&lab, 0x1_0005) && is_served(&lab, 5));
    let table = proxy.table();
    assert!(table.starts_with("# table: tunica_circuits, type: ipv6, size:100000, used:2"), "{table}");
    let row = |circuit: &str| {
        let key = format!("key=fc00:dead:beef:4dad::{circuit} ");
        proxy.table().lines().find(|line| line.contains(&key)).unwrap_or_default().to_owned()
    };
    assert!(row("5").contains("conn_rate(10000)=2") && row("1:5").contains("conn_rate(10000)=1"), "{table}");

    // What the backend hears of a circuit: a word, and nothing that the client says of itself.
    let forged = "GET / HTTP/1.1\r\nHost: a\r\nX-Onion-Circuit: f\r\nx_onion_circuit: f\r\nX-Forwarded-For: f\r\n\
                  Tunica-Token: f\r\ntunica_solution: f\r\nUpgrade: h2c\r\n\r\n";
    let word = |circuit| {
        let got = asked(&lab, circuit, forged);
        assert!(!got.contains(": f\r\n") && !got.contains("h2c"), "{got}");
        let mut words =
            got.lines().filter_map(|line| line.strip_prefix("x-onion-circuit: ").map(str::to_owned));
        let word = words.next().unwrap();
        assert!(
            word.len() == 16 && word.bytes().all(|byte| byte.is_ascii_hexdigit()) && words.next().is_none()
        );
        word
    };
    assert_eq!(word(6), word(6));
    assert_ne!(word(6), word(7));
    // Nor does a client hear what is meant for tunica-front.
    backend.say("X-Tunica-Grant: vip");
    let got = asked(&lab, 6, &get("/"));
    assert!(got.starts_with("HTTP/1.1 200") && !got.to_lowercase().contains("grant"), "{got}");
    backend.say("X-Said: nothing");

    // Ban, and whoever is not banned.
    assert_eq!(proxy.ask("set table tunica_circuits key fc00:dead:beef:4dad::8 data.gpt0 2"), "\n");
    assert_eq!(asked(&lab, 8, &get("/")), "reset");
    assert!(is_served(&lab, 9));

    // The tenth connection within 10 s is held; five violations are a ban. A VIP is free of that.
    for _ in 0..9 {
        assert!(is_served(&lab, 20));
    }
    let held = lab.host.run(|| (0..4).map(|_| stream(20, &get("/"))).collect::<Result<Vec<_>>>()).unwrap();
    // Keys are shown as addresses, and so in hexadecimal.
    wait("violations", || row("14").contains("gpc0=4"));
    assert!(row("14").contains("gpt0=0"), "{}", row("14"));
    assert_eq!(asked(&lab, 20, &get("/")), "reset", "the fifth violation is a ban");
    assert!(row("14").contains("gpt0=2"));
    for mut stream in held {
        let got = answer(&mut stream);
        assert!(got.starts_with("HTTP/1.1 429") && got.to_lowercase().contains("retry-after: 10"), "{got}");
    }
    proxy.ask("set table tunica_circuits key fc00:dead:beef:4dad::15 data.gpt0 1");
    for _ in 0..20 {
        assert!(is_served(&lab, 21), "a VIP");
    }

    // Requests: 50 in 10 s are denied, the method rules hold, and at most 15 connections are open.
    let many = get("/").repeat(60);
    let got = lab
        .host
        .run(|| {
            let mut stream = stream(22, &many)?;
            Ok((0..50).map(|_| answer(&mut stream)).collect::<Vec<_>>())
        })
        .unwrap();
    let denied = got.iter().position(|answer| answer.starts_with("HTTP/1.1 429"));
    assert_eq!(denied, Some(49), "{got:?}");
    for (request, status) in [
        ("DELETE / HTTP/1.1\r\nHost: a\r\n\r\n", "405"),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", "405"),
        ("POST /verify-captcha HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", "200"),
        ("POST /verify-captcha HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n", "413"),
        ("nonsense\r\n\r\n", "400"),
        // Another version, whose requests no limit of connections would count (RFC 9113, section 3.4).
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0", "400"),
        // Timeouts: a head that does not end.
        ("GET / HTTP/1.1\r\nHost: a\r\n", "408"),
    ] {
        let got = asked(&lab, 23, request);
        assert!(got.starts_with(&format!("HTTP/1.1 {status}")), "{request:?}: {got}");
    }

    // Health: one failed check is none, the second brings the maintenance page, and then back.
    let health = || {
        let all = proxy.ask("show stat tunica_service 4 -1");
        let row = all.lines().find(|line| line.starts_with("tunica_service,backend1,")).unwrap_or_default();
        row.split(',').nth(17).unwrap_or_default().to_owned()
    };
    wait("a check", || health() == "UP");
    let before = backend.checks();
    backend.set_well(false);
    wait("two failed checks", || {
        let (is_up, checks) = (health().starts_with("UP"), backend.checks());
        assert!(is_up || checks >= before + 2, "down after {} checks", checks - before);
        !is_up
    });
    wait("the maintenance page", || {
        let got = asked(&lab, 24, &get("/"));
        proxy.ask("clear table tunica_circuits key fc00:dead:beef:4dad::18");
        got.starts_with("HTTP/1.1 503")
            && got.contains("Maintenance")
            && got.to_lowercase().contains("retry-after")
    });
    backend.set_well(true);
    wait("the backend", || {
        proxy.ask("clear table tunica_circuits key fc00:dead:beef:4dad::18");
        is_served(&lab, 24)
    });

    // Log: in memory, with the circuit, and nothing of what was asked for.
    let log = proxy.ask("show events tunica_log");
    assert!(log.contains("circuit=fc00:dead:beef:4dad::5 state=0 status=200"), "{log}");
    assert!(!log.contains("captcha") && !log.contains("GET"), "{log}");

    // The statistics page speaks to loopback names only, and of no circuit.
    let page = |host: &str, path: &str| {
        lab.host
            .run(|| {
                let mut stream = TcpStream::connect("127.0.0.1:9000")?;
                write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
                Ok(answer(&mut stream))
            })
            .unwrap()
    };
    let shown = page("127.0.0.1:9000", "/stats");
    assert!(shown.starts_with("HTTP/1.1 200") && shown.contains("tunica_service") && !shown.contains("fc00"));
    assert!(shown.to_lowercase().contains("\r\nrefresh: 5\r\n"), "{shown}");
    let node = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert!(shown.contains(&format!(" on {}", node.trim())), "the node: {shown}");
    assert!(shown.contains("balancing: roundrobin"), "legends: {shown}");
    let moved = page("localhost", "/");
    assert!(
        moved.starts_with("HTTP/1.1 302") && moved.to_lowercase().contains("location: /stats"),
        "{moved}"
    );
    for path in ["/", "/stats"] {
        assert!(page("example.com", path).starts_with("HTTP/1.1 403"));
    }

    // Socket and permissions.
    let socket = fs::metadata(&proxy.api).unwrap();
    assert!(socket.file_type().is_socket());
    // Whoever may use it bans and promotes, so it is root's, though HAProxy is not.
    assert_eq!((socket.mode() & 0o777, socket.uid()), (0o600, 0));
    let status = fs::read_to_string(format!("/proc/{}/status", proxy.child.id())).unwrap();
    assert!(status.contains("\nUid:\t65534\t65534\t65534\t65534\n"), "{status}");
    assert!(
        proxy.ask("disable frontend tunica_ingress").contains("Permission denied"),
        "no more than an operator"
    );
}

#[test]
fn of_600_requests_at_once_500_are_taken_and_no_vip_is_refused() {
    let (lab, backend) = on_loopback("haproxymany");
    let circuits = "profile = \"web\"\nmax_connections_per_second = 10000\nmax_concurrent_connections = 100";
    configure(&lab, LISTEN, backend.address(), "queue_seconds = 60\nserver_seconds = 60", circuits, "");
    let proxy = Proxy::start(&lab, Some(&lab.host), &[], &["-db"]);
    proxy.ask("set table tunica_circuits key fc00:dead:beef:4dad::ffff data.gpt0 1");
    let streams = lab
        .host
        .run(|| {
            // As many as are served at once stay so until all others have come.
            let path = |number: u32| if number < 100 { "/slow/6000" } else { "/slow/50" };
            (0..600).map(|number| stream(1 + number / 20, &get(path(number)))).collect::<Result<Vec<_>>>()
        })
        .unwrap();
    // The VIP comes last and waits behind nobody but those who are served.
    assert!(is_served(&lab, 0xffff));
    let got: Vec<String> = streams.into_iter().map(|mut stream| answer(&mut stream)).collect();
    let count = |start: &str| got.iter().filter(|answer| answer.starts_with(start)).count();
    let (served, refused) = (count("HTTP/1.1 200"), count("HTTP/1.1 503"));
    assert_eq!(served + refused, 600);
    // The VIP may have come before the last of them, and have one of the 500 places. HAProxy's threads look how many there are
    // before they count one more, so two may look at once.
    assert!((499..=510).contains(&served), "{served} served, {refused} refused");
}

/// How long a circuit of the flood is kept. At its usual pace they would fill the frontend together, were it open to them; and
/// those whom the rate lets in do not take every place at the backend, however long the flood goes on.
const KEPT: Duration = Duration::from_secs(5);

/// A flood of circuits that never end their heads, by far more than the rate of all lets in.
fn flood(lab: &Lab, is_over: &Arc<AtomicBool>) -> thread::JoinHandle<Result<()>> {
    let is_over = Arc::clone(is_over);
    lab.host
        .spawn("a flood", move || {
            let mut held = Vec::new();
            for circuit in 0x10_0000.. {
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
                // Those that are reset may be so at once.
                if let Ok(stream) = stream(circuit, "GET / HTTP/1.1\r\nHost: a\r\n") {
                    stream.set_nonblocking(true)?;
                    held.push((Instant::now(), stream));
                }
                if circuit % 100 == 0 {
                    let is_open = |stream: &TcpStream| {
                        stream.peek(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
                    };
                    held.retain(|(since, stream)| since.elapsed() < KEPT && is_open(stream));
                }
                thread::sleep(Duration::from_millis(1));
            }
            Ok(())
        })
        .unwrap()
}

#[test]
fn in_a_flood_vips_get_in_and_as_many_others_as_the_rate_lets_in() {
    let (lab, backend) = on_loopback("haproxyflood");
    for protocol in ["http", "tcp"] {
        let circuits = "profile = \"web\"\nmax_connections_per_second = 20\nmax_concurrent_connections = 200";
        // Of the flood's heads none comes to its end by itself while this goes on.
        let ingress = format!("protocol = \"{protocol}\"\nrequest_seconds = 60\nmaxconn = 300");
        configure(&lab, LISTEN, backend.address(), &ingress, circuits, "");
        let proxy = Proxy::start(&lab, Some(&lab.host), &[], &["-db"]);
        let statistic = |name: &str| -> u64 {
            let all = proxy.ask("show stat tunica_ingress 1 -1");
            let mut lines = all.lines().map(|line| line.trim_start_matches("# ").split(','));
            let column = lines.next().unwrap().position(|column| column == name).unwrap();
            lines.next().unwrap().nth(column).unwrap().parse().unwrap()
        };
        proxy.ask("set table tunica_circuits key fc00:dead:beef:4dad::ffff data.gpt0 1");
        let is_over = Arc::new(AtomicBool::new(false));
        let flood = flood(&lab, &is_over);
        // Enough have come to fill the frontend, were it open to them.
        wait("the flood", || {
            assert!(!flood.is_finished(), "it broke off");
            statistic("conn_tot") >= 2_500
        });
        for _ in 0..5 {
            assert!(is_served(&lab, 0xffff), "{protocol}: a VIP");
        }
        let (mut circuit, mut served) = (0x1000, 0);
        wait("others to be served", || {
            for _ in 0..20 {
                circuit += 1;
                // To be reset may come before everything is written.
                let got =
                    lab.host.run(|| Ok(stream(circuit, &get("/")).map(|mut stream| answer(&mut stream))));
                served += u32::from(got.unwrap().is_ok_and(|got| got.starts_with("HTTP/1.1 200")));
            }
            served >= 10
        });
        let all = proxy.ask("show table tunica_all");
        let rate = all.split("conn_rate(1000)=").nth(1).and_then(|rest| rest.trim().parse::<u32>().ok());
        // The flood alone is many times that. VIPs count, too, and several threads may look at once.
        assert!(rate.is_some_and(|rate| (1..=40).contains(&rate)), "{protocol}: {all}");
        // 1 300 have room. The flood took its share of the rate besides what was held before it was reset.
        assert!(statistic("smax") < 1_300, "{protocol}: {} at once", statistic("smax"));
        assert!(!flood.is_finished(), "{protocol}: it broke off");
        is_over.store(true, Ordering::Relaxed);
        flood.join().unwrap().unwrap();
    }
}

#[test]
fn the_tables_mark_does_not_run_down_and_without_it_nothing_is_forgotten() {
    let network = shared(Profile::Usual).unwrap();
    let mut lab = Lab::new("haproxymark").unwrap();
    let (listen, stats) = (free_address().unwrap(), free_address().unwrap().to_string());
    let backend = Backend::start().unwrap();
    let service = network.service(&ServiceOptions::new(80, Behind::Tcp(listen))).unwrap();
    let tor = format!("[tor]\ncontrol = \"unix:{}\"", service.control_address().socket.display());
    configure(&lab, listen, backend.address(), "", "profile = \"web\"", &tor);
    let proxy = Proxy::start(&lab, None, &["--stats", &stats], &["-db"]);
    lab.start().unwrap();
    let row = |key: &str| proxy.ask(&format!("show table tunica_circuits key {key}"));
    let left = || {
        let row = row("100::1");
        row.split(" exp=").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok())
    };
    lab.wait_for("the mark", |_| Ok(left().is_some())).unwrap();
    // It would only ever fall.
    let three_visits = || {
        for _ in 0..3 {
            let mut least = left().unwrap();
            wait("a visit that writes it again", || {
                let now = left().unwrap();
                let is_more = now > least;
                least = now;
                is_more
            });
        }
    };
    three_visits();
    let emptied = |lab: &Lab| metric(lab, "tunica_haproxy_edits_total{edit=\"clear\"}");
    assert_eq!(emptied(&lab), 1.0, "at the start it was not known whose the rows were");

    // As where its row made room: violations, and a find that nobody has read, stay.
    proxy.ask("set table tunica_circuits key fc00:dead:beef:4dad::7fff data.gpc0 3");
    proxy.ask("set table tunica_circuits key fc00:dead:beef:4dad::7ffe data.gpt0 2");
    for circuit in ["7001", "7002"] {
        proxy.ask("clear table tunica_circuits key 100::1");
        assert_eq!(left(), None);
        // The table is read after an edit, and so before the mark is back.
        lab.must(&["circuit", "promote", circuit]).unwrap();
        lab.wait_for("the mark", |_| Ok(left().is_some())).unwrap();
        three_visits();
        assert!(row("fc00:dead:beef:4dad::7fff").contains("gpc0=3"), "{}", proxy.table());
        assert!(row("fc00:dead:beef:4dad::7ffe").contains("gpt0=2"), "{}", proxy.table());
        assert_eq!(emptied(&lab), 1.0, "nothing was emptied");
    }
    lab.wait_for("the find", |lab| Ok(metric(lab, "tunica_haproxy_circuits{state=\"banned\"}") == 1.0))
        .unwrap();
}

#[test]
fn the_daemon_keeps_the_table_as_it_should_be() {
    let (mut lab, backend) = on_loopback("haproxydaemon");
    configure(&lab, LISTEN, backend.address(), "gate = \"off\"", "max_connections_per_second = 1000", "");
    lab.start().unwrap();
    assert_eq!(metric(&lab, "tunica_haproxy_up"), 0.0);
    lab.wait_for("the failure", |lab| Ok(metric(lab, "tunica_haproxy_failures_total") >= 1.0)).unwrap();
    let ran = lab.tunica(&["circuits"]).unwrap();
    assert!(ran.code == Some(4) && ran.err.contains("HAProxy does not answer"), "{ran:?}");
    assert!(lab.json(&["status"]).unwrap()["warnings"].to_string().contains("HAProxy's socket"));

    let mut proxy = Proxy::start(&lab, Some(&lab.host), &[], &["-db"]);
    lab.wait_for("HAProxy", |lab| Ok(metric(lab, "tunica_haproxy_up") == 1.0)).unwrap();
    assert!(!lab.json(&["status"]).unwrap()["warnings"].to_string().contains("HAProxy's socket"));
    assert!(is_served(&lab, 7) && is_served(&lab, 8));

    // By the operator's word.
    lab.must(&["circuit", "ban", "7", "--for", "1h"]).unwrap();
    lab.must(&["circuit", "promote", "9"]).unwrap();
    lab.wait_for("the ban", |lab| {
        Ok(metric(lab, "tunica_haproxy_circuits{state=\"banned\"}") == 1.0
            && metric(lab, "tunica_haproxy_circuits{state=\"vip\"}") == 1.0)
    })
    .unwrap();
    assert_eq!(asked(&lab, 7, &get("/")), "reset");
    assert!(is_served(&lab, 8), "another circuit");
    let shown = lab.must(&["circuits"]).unwrap();
    assert!(shown.contains("HAProxy 2.") && shown.contains("ban 59") && shown.contains("vip"), "{shown}");
    assert!(shown.contains("/200 | Rate: ") && shown.contains(", 1 banned"), "{shown}");

    lab.must(&["circuit", "demote", "9"]).unwrap();
    lab.wait_for("the end of it", |lab| Ok(metric(lab, "tunica_haproxy_circuits{state=\"vip\"}") == 0.0))
        .unwrap();
    assert!(!proxy.table().contains("gpt0=1"), "{}", proxy.table());

    // HAProxy's own find is known here, and may be lifted.
    for _ in 0..14 {
        drop(lab.host.run(|| stream(11, &get("/"))).unwrap());
    }
    wait("the fifth violation", || {
        proxy.table().contains("::b use=0") && proxy.table().contains("gpt0=2 gpc0=5")
    });
    // Killed and restarted, its table begins empty, and holds again what it should.
    lab.wait_for("the find", |lab| Ok(metric(lab, "tunica_haproxy_circuits{state=\"banned\"}") == 2.0))
        .unwrap();
    lab.must(&["circuit", "promote", "12"]).unwrap();
    lab.wait_for("the VIP", |_| Ok(proxy.table().contains("gpt0=1"))).unwrap();
    proxy.signal(Signal::SIGKILL);
    proxy.child.wait().unwrap();
    lab.wait_for("its end", |lab| Ok(metric(lab, "tunica_haproxy_up") == 0.0)).unwrap();
    drop(proxy);
    let proxy = Proxy::start(&lab, Some(&lab.host), &[], &["-db"]);
    lab.wait_for("the bans", |_| Ok(proxy.table().matches("gpt0=2").count() == 2)).unwrap();
    assert_eq!((asked(&lab, 7, &get("/")).as_str(), asked(&lab, 11, &get("/")).as_str()), ("reset", "reset"));
    assert!(proxy.table().contains("gpt0=1"), "{}", proxy.table());

    // Another daemon finds what the table says.
    lab.end(Signal::SIGKILL).unwrap();
    assert_eq!(asked(&lab, 7, &get("/")), "reset");
    lab.start().unwrap();
    lab.wait_for("what was found", |lab| Ok(metric(lab, "tunica_haproxy_circuits{state=\"banned\"}") == 2.0))
        .unwrap();
    for circuit in ["7", "11"] {
        lab.must(&["circuit", "unban", circuit]).unwrap();
    }
    lab.wait_for("the end of the bans", |lab| {
        Ok(metric(lab, "tunica_haproxy_circuits{state=\"banned\"}") == 0.0)
    })
    .unwrap();
    assert!(is_served(&lab, 7));
    assert!(metric(&lab, "tunica_haproxy_edits_total{edit=\"reset\"}") >= 2.0);

    // A table that is not HAProxy's is said.
    configure(&lab, LISTEN, backend.address(), "gate = \"off\"", "", "table = \"another\"");
    lab.end(Signal::SIGTERM).unwrap();
    lab.start().unwrap();
    lab.wait_for("the warning", |lab| {
        Ok(lab.json(&["status"])?["warnings"].to_string().contains("no such table"))
    })
    .unwrap();
}

#[test]
fn a_reload_refuses_nobody_and_the_table_goes_on() {
    let (mut lab, backend) = on_loopback("haproxyreload");
    configure(
        &lab,
        LISTEN,
        backend.address(),
        "gate = \"off\"",
        "profile = \"web\"\nmax_connections_per_second = 10000",
        "",
    );
    lab.start().unwrap();
    let proxy = Proxy::start(&lab, Some(&lab.host), &["--peer", "own=127.0.0.1:10002"], &["-W"]);
    lab.wait_for("HAProxy", |lab| Ok(metric(lab, "tunica_haproxy_up") == 1.0)).unwrap();
    lab.must(&["circuit", "ban", "7", "--for", "1h"]).unwrap();
    lab.wait_for("the ban", |_| Ok(proxy.table().contains("gpt0=2"))).unwrap();
    assert!(is_served(&lab, 8));
    let pid_of = |info: &str| info.lines().find_map(|line| line.strip_prefix("Pid: ").map(str::to_owned));
    let before = pid_of(&proxy.ask("show info"));

    let (is_over, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let visitors = {
        let (is_over, served) = (Arc::clone(&is_over), Arc::clone(&served));
        lab.host
            .spawn("visitors", move || {
                let mut circuit = 1_000;
                while !is_over.load(Ordering::Relaxed) {
                    circuit += 1;
                    let got = stream(circuit, &get("/")).map(|mut stream| answer(&mut stream))?;
                    anyhow::ensure!(got.starts_with("HTTP/1.1 200"), "{got}");
                    served.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            })
            .unwrap()
    };
    // Its own table of the start, which a process without one before it waits for.
    wait("the peers", || proxy.ask("show peers").contains("resync_timeout=<PAST>"));
    // One that is open over the reload.
    let mut open = lab.host.run(|| stream(9, &get("/slow/3000"))).unwrap();
    wait("visitors", || served.load(Ordering::Relaxed) > 50);
    proxy.signal(Signal::SIGUSR2);
    wait("the next process", || {
        ask_api(&proxy.api, "show info").is_ok_and(|info| pid_of(&info).is_some() && pid_of(&info) != before)
    });
    let then = served.load(Ordering::Relaxed);
    // One who was refused has broken off, and says so below.
    wait("visitors", || served.load(Ordering::Relaxed) > then + 50 || visitors.is_finished());
    is_over.store(true, Ordering::Relaxed);
    let visited = visitors.join().unwrap();
    assert!(visited.is_ok(), "{visited:?}\n{}", fs::read_to_string(lab.path("haproxy.log")).unwrap());
    assert!(answer(&mut open).starts_with("HTTP/1.1 200"), "a stream was cut");
    let is_kept = |table: &str| table.contains("gpt0=2") && table.contains("4dad::8 ");
    let deadline = Instant::now() + PATIENCE;
    while !is_kept(&proxy.table()) {
        let log = fs::read_to_string(lab.path("haproxy.log")).unwrap();
        assert!(Instant::now() < deadline, "{}\n{}\n{log}", proxy.table(), proxy.ask("show peers"));
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(asked(&lab, 7, &get("/")), "reset");
}

#[test]
fn on_real_circuits_a_ban_hits_one_and_ends_with_the_tor_process() {
    let network = shared(Profile::Usual).unwrap();
    let mut lab = Lab::new("haproxytor").unwrap();
    let (listen, stats) = (free_address().unwrap(), free_address().unwrap().to_string());
    let backend = Backend::start().unwrap();
    let mut service = network.service(&ServiceOptions::new(80, Behind::Tcp(listen))).unwrap();
    let tor = format!("[tor]\ncontrol = \"unix:{}\"", service.control_address().socket.display());
    configure(&lab, listen, backend.address(), "keep_alive_seconds = 120", "profile = \"web\"", &tor);
    let proxy = Proxy::start(&lab, None, &["--stats", &stats], &["-db"]);
    lab.start().unwrap();
    for series in ["tunica_haproxy_up", "tunica_tor_control_up"] {
        lab.wait_for(series, |lab| Ok(lab.metric(series)? == Some(1.0))).unwrap();
    }
    let client = network.client().unwrap();
    let ((mut stream, _), (mut other, _)) =
        (open(&client, &service).unwrap(), open(&client, &service).unwrap());
    let circuits: Vec<u32> = proxy
        .table()
        .lines()
        .filter_map(|line| u32::from_str_radix(line.split("4dad::").nth(1)?.split(' ').next()?, 16).ok())
        .collect();
    assert!(circuits.len() >= 2, "two circuits are two rows: {}", proxy.table());
    // Which of them is whose shows once one is banned.
    let banned = circuits[0].to_string();
    lab.must(&["circuit", "ban", &banned, "--for", "1h"]).unwrap();
    lab.wait_for("the circuit's end", |_| {
        let known = service.control_address().connect()?.information("circuit-status")?;
        Ok(!known.lines().any(|line| line.starts_with(&format!("{banned} "))))
    })
    .unwrap();
    let alive = [answers(&mut stream), answers(&mut other)];
    assert!(alive.contains(&true), "the other circuit must not feel it");

    // A circuit that tor has closed needs no ban any more. One that it does not know keeps its own, until numbers begin again
    // with the next tor process.
    lab.must(&["circuit", "ban", "4000000", "--for", "1h"]).unwrap();
    wait("the row", || proxy.table().contains("gpt0=2 "));
    service.restart().unwrap();
    lab.wait_for("the new tor", |lab| {
        Ok(metric(lab, "tunica_haproxy_edits_total{edit=\"clear\"}") >= 2.0
            && !proxy.table().contains("gpt0=2 "))
    })
    .unwrap();
    let (mut stream, _) = open(&client, &service).unwrap();
    assert!(answers(&mut stream));
}
