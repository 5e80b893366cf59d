//! The ingress as the daemon starts it, on hosts without systemd.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper that fails is a test that fails"
)]

use std::{
    fs,
    io::Write as _,
    net::{SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tunica_tests::{
    armed::program,
    beside::arti_front,
    ingress::{Backend, PATIENCE, get, header, is_deferred, read_answer},
    lab::Lab,
    notify::NotifySocket,
};

/// The account `nobody` of Debian.
const NOBODY: u32 = 65_534;
const LISTEN: ([u8; 4], u16) = ([127, 0, 0, 1], 10_000);

/// A lab whose daemon starts the ingress, which outlives it and ends with this.
struct Ground {
    lab: Lab,
    backend: Backend,
}

impl Ground {
    fn new(purpose: &str) -> Self {
        program("tunica-front").unwrap();
        let lab = Lab::new(purpose).unwrap();
        lab.host.ip(&["link", "set", "lo", "up"]).unwrap();
        // The ingress has an account of its own, and reads the configuration and finds the daemon by it.
        fs::set_permissions(lab.path("."), fs::Permissions::from_mode(0o711)).unwrap();
        let backend = lab.host.run(Backend::start).unwrap();
        let ground = Self { lab, backend };
        ground.configure("nobody", "");
        ground
    }

    fn configure(&self, user: &str, ingress: &str) {
        self.configure_with(user, ingress, "");
    }

    fn configure_with(&self, user: &str, ingress: &str, circuits: &str) {
        let text = format!(
            "[ingress]\nenabled = true\nstart_front = true\nuser = \"{user}\"\nbackends = [\"{}\"]\n{ingress}\n\
             [circuits]\nprofile = \"web\"\nmax_connections_per_second = 10000\nconnections_per_10_seconds = 0\n{circuits}",
            self.backend.address()
        );
        self.lab.configure("mode = \"observe\"", &text).unwrap();
    }

    fn serves(&mut self) {
        self.lab.wait_for("the ingress", |lab| Ok(lab.metric("tunica_front_up")? == Some(1.0))).unwrap();
    }

    /// Processes of the ingress that were started with this lab's configuration.
    fn fronts(&self) -> Vec<i32> {
        let config = self.lab.path("tunica.toml").display().to_string();
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(|pid| {
            let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let mut words = line.split('\0');
            words.next().is_some_and(|word| word.ends_with("/tunica-front"))
                && words.any(|word| word == config)
        })
        .collect()
    }

    fn wait_for_most_active(&mut self, most: f64) {
        self.lab
            .wait_for("the new limit", |lab| Ok(lab.metric("tunica_front_active_max")? == Some(most)))
            .unwrap();
    }

    /// Waits until whatever was replaced has ended.
    fn wait_for_one_front(&self) {
        let deadline = std::time::Instant::now() + PATIENCE;
        while self.fronts().len() != 1 {
            assert!(std::time::Instant::now() < deadline, "{:?}", self.fronts());
            thread::yield_now();
        }
    }

    fn front(&self) -> i32 {
        let fronts = self.fronts();
        assert_eq!(fronts.len(), 1, "{fronts:?}");
        fronts[0]
    }

    fn stream(&self, circuit: u32) -> TcpStream {
        self.lab
            .host
            .run(|| {
                let mut stream = TcpStream::connect(SocketAddr::from(LISTEN))?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.write_all(header(circuit).as_bytes())?;
                Ok(stream)
            })
            .unwrap()
    }

    fn asks(&self, circuit: u32, path: &str) -> String {
        answer(self.stream(circuit), path)
    }

    /// Most connections at once that the ingress allows.
    fn most_active(&self) -> Option<f64> {
        self.lab.metric("tunica_front_active_max").unwrap()
    }

    /// Those of `tunica status` but for what its configuration lacks: tor.
    fn warnings(&self) -> String {
        let status = self.lab.json(&["status"]).unwrap();
        let warnings = status["warnings"].as_array().unwrap().iter().map(ToString::to_string);
        warnings.filter(|warning| !warning.contains("tor.control is not set")).collect()
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        // Otherwise the daemon starts another.
        let _ = self.lab.end(Signal::SIGKILL);
        for pid in self.fronts() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

fn answer(mut stream: TcpStream, path: &str) -> String {
    let mut answer = Vec::new();
    let asked = stream.write_all(get(path).as_bytes());
    match asked.and_then(|()| read_answer(&mut stream, &mut answer)) {
        Ok(()) => String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned(),
        Err(error) => error.to_string(),
    }
}

const SERVED: &str = "HTTP/1.1 200 OK";

#[test]
fn it_runs_without_rights_and_whoever_comes_while_it_starts_again_waits() {
    let mut ground = Ground::new("frontstart");
    ground.lab.start().unwrap();
    ground.serves();
    assert_eq!(ground.asks(7, "/"), SERVED);
    // The daemon made the socket, and the front has the kernel wait for the first bytes of each connection.
    let waits = ground.lab.host.run(|| is_deferred(&TcpStream::connect(SocketAddr::from(LISTEN))?)).unwrap();
    assert!(waits, "it wakes up for nothing");
    let before = ground.front();
    let status = fs::read_to_string(format!("/proc/{before}/status")).unwrap();
    let field =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap().uid.to_string();
    assert!(field("Uid:").split_whitespace().all(|uid| uid == nobody), "{status}");
    assert_eq!((field("CapEff:").trim_start_matches('0'), field("NoNewPrivs:").as_str()), ("", "1"));
    assert_eq!(field("Groups:"), "");

    kill(Pid::from_raw(before), Signal::SIGKILL).unwrap();
    // The socket is held outside of it.
    assert_eq!(ground.asks(8, "/"), SERVED);
    assert_ne!(ground.front(), before);
    ground.serves();
    assert!(!ground.warnings().contains("started again"), "{}", ground.warnings());
}

#[test]
fn it_outlives_the_daemon_and_the_next_one_has_its_sockets() {
    let mut ground = Ground::new("frontadopt");
    ground.configure("nobody", &format!("socket = \"{}\"", ground.lab.path("ingress.sock").display()));
    // Where no account but root may make a file; the daemon makes this one.
    ground.lab.start().unwrap();
    ground.serves();
    let front = ground.front();
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        ground.lab.end(signal).unwrap();
        assert_eq!(ground.asks(7, "/"), SERVED, "without the daemon");
        ground.lab.start().unwrap();
        ground.serves();
        assert_eq!(ground.front(), front, "the one that ran goes on");
    }
    assert!(!ground.warnings().contains("ingress"), "{}", ground.warnings());
    kill(Pid::from_raw(front), Signal::SIGKILL).unwrap();
    assert_eq!(ground.asks(8, "/"), SERVED, "the next front has the same sockets");
    assert_ne!(ground.front(), front);
    let unix = std::os::unix::net::UnixStream::connect(ground.lab.path("ingress.sock"));
    unix.unwrap().write_all(header(9).as_bytes()).unwrap();
}

#[test]
fn a_ban_that_outlives_the_front_keeps_its_rung() {
    let mut ground = Ground::new("frontrung");
    let limits = "requests_per_10_seconds = 3\nslow_requests_per_10_seconds = 2\nban_threshold = 1";
    ground.configure_with("nobody", "", limits);
    ground.lab.start().unwrap();
    ground.serves();
    let is_banned_on = |ground: &mut Ground, rung: u64| {
        ground
            .lab
            .wait_for(&format!("the ban on rung {rung}"), |lab| {
                let answer = lab.json(&["circuits"])?;
                let rows = answer["digest"]["circuits"].as_array().cloned().unwrap_or_default();
                Ok(rows
                    .iter()
                    .any(|row| row["circuit"] == 7 && row["state"] == "banned" && row["rung"] == rung))
            })
            .unwrap();
    };
    let offends = |ground: &mut Ground, rung: u64| {
        // What counted before the last ban counts still, and a refused stream costs nothing.
        (0..6).for_each(|_| drop(ground.asks(7, "/")));
        is_banned_on(ground, rung);
    };
    let is_forgiven = |ground: &mut Ground| {
        ground.lab.must(&["circuit", "unban", "7"]).unwrap();
        ground
            .lab
            .wait_for("the end of the ban", |lab| Ok(lab.metric("tunica_circuits_banned")? == Some(0.0)))
            .unwrap();
    };
    offends(&mut ground, 1);
    is_forgiven(&mut ground);
    offends(&mut ground, 2);
    for _ in 0..2 {
        let before = ground.front();
        kill(Pid::from_raw(before), Signal::SIGKILL).unwrap();
        // Of another circuit: whoever comes meanwhile waits.
        assert_eq!(ground.asks(8, "/"), SERVED);
        assert_ne!(ground.front(), before);
        is_banned_on(&mut ground, 2);
    }
    is_forgiven(&mut ground);
    offends(&mut ground, 3);
}

#[test]
fn another_configuration_refuses_nobody_and_a_faulty_one_changes_nothing() {
    let mut ground = Ground::new("frontrenew");
    ground.lab.start().unwrap();
    ground.serves();
    let before = ground.front();
    let slow = ground.stream(5);
    let (stop, answers) = (AtomicBool::new(false), std::sync::Mutex::new(Vec::new()));
    thread::scope(|scope| {
        let begun = scope.spawn(|| answer(slow, "/slow/4000"));
        let visitor = scope.spawn(|| {
            for number in 1_000.. {
                if stop.load(Relaxed) {
                    return;
                }
                answers.lock().unwrap().push(ground.asks(number, "/"));
            }
        });
        while ground.backend.requests().iter().all(|request| !request.contains("/slow/")) {
            thread::yield_now();
        }
        ground.configure("nobody", "keep_alive_seconds = 3");
        ground.lab.must(&["reload"]).unwrap();
        let deadline = std::time::Instant::now() + PATIENCE;
        // The one before ends once it has answered.
        while ground.fronts().contains(&before) {
            assert!(std::time::Instant::now() < deadline, "{:?}", ground.fronts());
            thread::yield_now();
        }
        assert_eq!(begun.join().unwrap(), SERVED, "what was begun is ended");
        let seen = answers.lock().unwrap().len();
        while answers.lock().unwrap().len() < seen + 10 {
            thread::yield_now();
        }
        stop.store(true, Relaxed);
        visitor.join().unwrap();
    });
    let answers = answers.into_inner().unwrap();
    assert!(answers.iter().all(|answer| answer == SERVED), "{answers:?}");
    ground.serves();
    let renewed = ground.front();
    assert_ne!(renewed, before);

    // Nothing of it can be told before it is tried: the page is read by the ingress.
    ground.configure("nobody", "maintenance_page = \"/nonexistent/page.html\"");
    ground.lab.must(&["reload"]).unwrap();
    ground
        .lab
        .wait_for("the warning", |lab| {
            Ok(lab.json(&["status"])?["warnings"].to_string().contains("the one before serves on"))
        })
        .unwrap();
    assert_eq!((ground.front(), ground.asks(9, "/")), (renewed, SERVED.to_owned()));
    ground.configure("nobody", "");
    ground.lab.must(&["reload"]).unwrap();
    let renewed_again = |ground: &Ground| ground.fronts().iter().any(|pid| *pid != renewed);
    let deadline = std::time::Instant::now() + PATIENCE;
    while !renewed_again(&ground) || ground.warnings().contains("serves on") {
        assert!(std::time::Instant::now() < deadline, "{}", ground.warnings());
    }
}

#[test]
fn the_last_configuration_counts_whoever_brings_it() {
    let mut ground = Ground::new("frontlast");
    ground.configure_with("nobody", "", "max_concurrent_connections = 150");
    ground.lab.start().unwrap();
    ground.serves();
    assert_eq!(ground.most_active(), Some(150.0));
    let first = ground.front();
    // The file changes while no daemon runs. The next one takes the front that serves, and replaces it.
    ground.lab.end(Signal::SIGKILL).unwrap();
    ground.configure_with("nobody", "", "max_concurrent_connections = 160");
    ground.lab.start().unwrap();
    ground.wait_for_most_active(160.0);
    ground.wait_for_one_front();
    let second = ground.front();
    assert_ne!(second, first);
    // Two changes in a row: the second comes while the front of the first is on its way.
    for most in [170, 180] {
        ground.configure_with("nobody", "", &format!("max_concurrent_connections = {most}"));
        ground.lab.must(&["reload"]).unwrap();
    }
    ground.wait_for_most_active(180.0);
    ground.wait_for_one_front();
    assert_ne!(ground.front(), second);
    assert_eq!(ground.asks(7, "/"), SERVED);
    assert!(!ground.warnings().contains("ingress"), "{}", ground.warnings());
}

#[test]
fn one_that_never_reports_is_ended_and_the_one_before_serves_on() {
    let mut ground = Ground::new("fronthangs");
    ground.lab.start().unwrap();
    ground.serves();
    let before = ground.front();
    // It opens this to read it, and nobody ever writes.
    let page = ground.lab.path("page.html");
    nix::unistd::mkfifo(&page, nix::sys::stat::Mode::from_bits_truncate(0o644)).unwrap();
    ground.configure("nobody", &format!("maintenance_page = \"{}\"", page.display()));
    ground.lab.must(&["reload"]).unwrap();
    assert_eq!(ground.asks(8, "/"), SERVED);
    ground
        .lab
        .wait_for("the warning", |lab| {
            Ok(lab.json(&["status"])?["warnings"].to_string().contains("did not report within 30 s"))
        })
        .unwrap();
    ground.wait_for_one_front();
    assert_eq!((ground.front(), ground.asks(9, "/")), (before, SERVED.to_owned()));
}

#[test]
fn it_does_not_speak_to_systemd_in_the_daemons_place() {
    let mut ground = Ground::new("frontnotify");
    let systemd = NotifySocket::bind().unwrap();
    let socket = format!("NOTIFY_SOCKET={}", systemd.path().display());
    ground.lab.start_through(&["env", &socket, "WATCHDOG_USEC=60000000"]).unwrap();
    ground.serves();
    assert_eq!(systemd.hear().unwrap(), "READY=1");
    let environment = |pid: i32| fs::read_to_string(format!("/proc/{pid}/environ")).unwrap();
    assert!(environment(ground.lab.pid().unwrap().as_raw()).contains(&socket));
    let front = environment(ground.front());
    assert!(!front.contains("NOTIFY_SOCKET=") && !front.contains("WATCHDOG_USEC="), "{front}");
    // Who would reload it by itself is told whose it is.
    kill(Pid::from_raw(ground.front()), Signal::SIGHUP).unwrap();
    let is_told = |lab: &mut Lab| Ok(lab.log().contains("front_reload_refused"));
    ground.lab.wait_for("the warning", is_told).unwrap();
    assert_eq!(ground.fronts(), [ground.front()]);
    // Nor does it as one of two: the first ends, which is no end of the daemon.
    let before = ground.front();
    ground.configure("nobody", "keep_alive_seconds = 3");
    ground.lab.must(&["reload"]).unwrap();
    let deadline = std::time::Instant::now() + PATIENCE;
    while ground.fronts().contains(&before) || ground.fronts().is_empty() {
        assert!(std::time::Instant::now() < deadline, "{:?}", ground.fronts());
        thread::yield_now();
    }
    let said = systemd.so_far().unwrap();
    assert!(said.iter().all(|message| message == "WATCHDOG=1"), "{said:?}");
    ground.lab.end(Signal::SIGTERM).unwrap();
    let said = systemd.so_far().unwrap();
    assert_eq!(said.last().map(String::as_str), Some("STOPPING=1"), "{said:?}");
}

#[test]
fn an_account_that_is_missing_is_said_and_so_is_a_port_that_is_taken() {
    let mut ground = Ground::new("frontlacks");
    ground.configure("no-such-account", "");
    ground.lab.start().unwrap();
    ground
        .lab
        .wait_for("the warning", |lab| {
            Ok(lab.json(&["status"])?["warnings"].to_string().contains("useradd --system no-such-account"))
        })
        .unwrap();
    ground.lab.end(Signal::SIGKILL).unwrap();
    let _taken = ground.lab.host.run(|| Ok(std::net::TcpListener::bind(SocketAddr::from(LISTEN))?)).unwrap();
    ground.configure("nobody", "");
    ground.lab.start().unwrap();
    ground
        .lab
        .wait_for("the warning", |lab| {
            Ok(lab.json(&["status"])?["warnings"].to_string().contains("cannot listen on 127.0.0.1:10000"))
        })
        .unwrap();
    assert_eq!(ground.fronts(), [0; 0]);
}

#[test]
fn one_that_hosts_the_service_needs_no_port_outlives_the_daemon_and_gives_its_place_to_the_next() {
    let mut ground = Ground::new("frontarti");
    ground.lab.install_with(&arti_front().unwrap()).unwrap();
    let state = ground.lab.path("arti");
    fs::create_dir(&state).unwrap();
    nix::unistd::chown(&state, Some(NOBODY.into()), None).unwrap();
    fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).unwrap();
    let configure = |ground: &Ground, most: u32| {
        let text = format!(
            "[ingress]\nenabled = true\nstart_front = true\nuser = \"nobody\"\nbackends = [\"{}\"]\n\
             [arti]\nenabled = true\nstate_dir = \"{}\"\n[circuits]\nmax_concurrent_connections = {most}",
            ground.backend.address(),
            state.display()
        );
        ground.lab.configure("mode = \"observe\"", &text).unwrap();
    };
    configure(&ground, 150);
    // Whoever has the port has nothing to do with it.
    let taken = ground.lab.host.run(|| Ok(std::net::TcpListener::bind(SocketAddr::from(LISTEN))?)).unwrap();
    ground.lab.start().unwrap();
    // No network is there to be reached: it hosts the service, and nobody finds it.
    let hosts = |lab: &mut Lab| {
        let is_not = |state: &str| {
            lab.metric(&format!("tunica_front_arti_state{{state=\"{state}\"}}"))
                .map(|found| found == Some(0.0))
        };
        Ok(is_not("waiting")? && is_not("failed")?)
    };
    ground.lab.wait_for("the service", hosts).unwrap();
    let first = ground.front();
    assert!(!ground.warnings().contains("listen"), "{}", ground.warnings());

    ground.lab.end(Signal::SIGKILL).unwrap();
    ground.lab.start().unwrap();
    ground.serves();
    assert_eq!(ground.front(), first, "the next daemon finds the front of the one before");

    configure(&ground, 160);
    ground.lab.must(&["reload"]).unwrap();
    ground.wait_for_most_active(160.0);
    ground.wait_for_one_front();
    assert_ne!(ground.front(), first);
    ground.lab.wait_for("the service with the next process", hosts).unwrap();
    drop(taken);
}
