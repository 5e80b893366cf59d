//! The test of a port's cookies, with a real listener, a real firewall in the way, and without it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper that fails is a test that fails"
)]

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex, atomic::AtomicBool},
    thread,
    time::{Duration, Instant},
};

use anyhow::ensure;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket, sockopt,
};
use tunica_common::verdict::Verdict;
use tunica_core::self_test::{SOURCE_V4, SOURCE_V6};
use tunica_tests::{
    armed::{COUNTS_LAG, Daemon, Setup, install, program},
    client::{Visitors, Visits},
    flood::{Flood, Pattern},
    report::Act,
    stage::{ATTACK_SIDE, ATTACKERS_INTERFACE, CLIENT_SIDE, SERVICE, SERVICE_V6, Stage, VISITORS},
};

/// Forged SYNs a second: several times a port's budget, and few enough for the kernel's own cookies and for a firewall
/// that tracks each.
const RATE: u32 = 600;
/// How long anything may take that should happen within seconds.
const PATIENCE: Duration = Duration::from_secs(30);
/// A port whose service accepts nothing.
const FULL: u16 = 8_081;
/// A port with a listener for each family.
const TWO: u16 = 8_082;
/// What visitors wait for.
const ANSWER: &[u8] = b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nok\n";

const PASSED: &str = "tunica_cookie_self_tests_total{outcome=\"passed\"}";

static NEVER: AtomicBool = AtomicBool::new(false);

/// A firewall as many have it: what belongs to no connection it knows is dropped. With `nf_conntrack_tcp_loose` 0 that
/// is a segment whose SYN it never saw.
const FIREWALL: &str = "table inet strict {\n\
    chain input { type filter hook input priority 0; ct state invalid drop; }\n}\n";

/// A stage with a daemon's folder and pins, which go with it.
struct Scene {
    stage: Stage,
    folder: tempfile::TempDir,
    pins: PathBuf,
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.pins);
    }
}

/// How connections of the daemon's tests ended for the service: by what error, `None` for none.
type Ends = Arc<Mutex<Vec<(IpAddr, Option<io::ErrorKind>)>>>;

impl Scene {
    fn new(purpose: &str) -> Self {
        let stage = Stage::build(purpose).unwrap();
        stage.host.write_sysctl("net/ipv4/tcp_syncookies", "2").unwrap();
        // Options travel in timestamps; without them is the test of the metrics.
        stage.host.write_sysctl("net/ipv4/tcp_timestamps", "2").unwrap();
        let pins = Path::new("/sys/fs/bpf").join(format!("tunica-{purpose}-{}", std::process::id()));
        Self { stage, folder: tempfile::tempdir().unwrap(), pins }
    }

    fn daemon(&self) -> Daemon<'_> {
        // With the capabilities that the unit leaves it, and no others: CAP_NET_ADMIN, CAP_PERFMON and CAP_BPF.
        let wrapper = self.folder.path().join("bounded");
        let real = program("tunicad").unwrap();
        let script = "#!/bin/sh\nexec setpriv --bounding-set -all,+cap_12,+cap_38,+cap_39";
        let text = self.folder.path().join("bounded.sh");
        fs::write(&text, format!("{script} {} \"$@\"\n", real.display())).unwrap();
        install(&text, &wrapper).unwrap();
        let program = Box::leak(Box::new(wrapper));
        let setup = Setup {
            namespace: &self.stage.host,
            program,
            folder: self.folder.path(),
            pins: &self.pins,
            interfaces: &[ATTACK_SIDE, CLIENT_SIDE],
            mode: "enforce",
            // One connection too many would be banned at once.
            more: "[evidence]\nconnections_per_second = 20\nban_threshold = 1\n",
        };
        Daemon::start(setup, &NEVER).unwrap()
    }

    /// A service that speaks first.
    fn serve(&self, address: SocketAddr) -> Ends {
        let ends = Ends::default();
        let told = Arc::clone(&ends);
        let listener = self.stage.host.run(|| Ok(TcpListener::bind(address)?)).unwrap();
        thread::spawn(move || {
            while let Ok((stream, peer)) = listener.accept() {
                let told = Arc::clone(&told);
                thread::spawn(move || {
                    let end = answer(stream);
                    let peer = peer.ip().to_canonical();
                    if is_test(peer) {
                        told.lock().unwrap().push((peer, end.err().map(|error| error.kind())));
                    }
                });
            }
        });
        ends
    }

    fn tunica(&self, arguments: &[&str]) -> String {
        let mut command = std::process::Command::new(program("tunica").unwrap());
        command.args(arguments).arg("--socket").arg(self.folder.path().join("tunicad.sock"));
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    }

    fn json(&self, arguments: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.tunica(&[&["--json"], arguments].concat())).unwrap()
    }

    fn nft(&self, arguments: &[&str], input: &str) -> String {
        let mut command = self.stage.host.command(Path::new("nft"));
        let mut child = command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "nft {arguments:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What the daemon says of a port that is over its budget.
    fn port(&self, port: u16) -> serde_json::Value {
        let status = self.json(&["status"]);
        let ports = status["cookies"]["ports"].as_array().unwrap();
        ports.iter().find(|row| row["port"] == port).cloned().unwrap_or_default()
    }

    /// All rows of a table of the shield.
    fn dump(&self, table: &str) -> anyhow::Result<serde_json::Value> {
        let set = fs::read_dir(&self.pins)?.next().unwrap()?.path();
        let mut bpftool = std::process::Command::new("bpftool");
        let output = bpftool.args(["-j", "map", "dump", "pinned"]).arg(set.join(table)).output()?;
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    fn flood(&self, port: u16) -> Flood {
        let flood = Stage::attack(Act::Forged).unwrap();
        let victim = SocketAddr::new(SERVICE.ip(), port);
        Flood { pattern: Pattern::ForgedSyn, rate: RATE, victim, ..flood }
    }

    /// Some seconds of visits, none of which may fail, and what the shield did with packets meanwhile.
    fn all_are_served(
        &self,
        daemon: &Daemon<'_>,
    ) -> anyhow::Result<(Visits, impl Fn(Verdict, &'static str) -> u64 + use<>)> {
        let before = daemon.packets()?;
        let visitors = Visitors { count: 5, ..VISITORS }.start(&self.stage.client)?;
        thread::sleep(Duration::from_secs(4));
        let visits = visitors.stop()?;
        let (all, failed) = (visits.attempts(), visits.failures);
        ensure!(all > 20 && failed == 0, "{failed} of {all} visits failed");
        thread::sleep(COUNTS_LAG);
        let after = daemon.packets()?;
        Ok((visits, move |verdict, action| after[&(verdict, action)] - before[&(verdict, action)]))
    }

    /// Sockets of the host that belong to a test, but those that are over.
    fn left_over(&self) -> Vec<String> {
        self.stage
            .host
            .run(|| {
                let mut lines = Vec::new();
                for file in ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"] {
                    lines.extend(fs::read_to_string(file)?.lines().map(str::to_owned));
                }
                // 192.0.2.253 and 2001:db8:ffff:ffff::fd as these files write them; 07 is TCP_CLOSE.
                let is_test = |line: &String| line.contains("FD0200C0:") || line.contains("B80D0120FFFFFFFF");
                lines.retain(is_test);
                lines.retain(|line| line.split_whitespace().nth(3) != Some("07"));
                Ok(lines)
            })
            .unwrap()
    }
}

/// Answers before it is asked, and reads to the end of the question.
fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(ANSWER)?;
    let (mut request, mut length) = ([0; 256], 0);
    while !request[..length].ends_with(b"\r\n\r\n") {
        match stream.read(&mut request[length..])? {
            0 => break,
            read => length += read,
        }
    }
    Ok(())
}

fn is_test(address: IpAddr) -> bool {
    address == SOURCE_V4 || address == SOURCE_V6
}

fn metric(daemon: &Daemon<'_>, series: &str) -> f64 {
    let text = daemon.get("/metrics").unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok());
    value.unwrap_or_else(|| panic!("no {series}"))
}

fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "no {what}");
        thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_port_whose_cookies_are_refused_answers_with_none_until_that_is_mended() -> anyhow::Result<()> {
    let scene = Scene::new("selftest");
    let ends = scene.serve((Ipv6Addr::UNSPECIFIED, SERVICE.port()).into());
    // What the host itself sends to the tests' sources.
    scene.nft(
        &["-f", "-"],
        &format!(
            "table inet watch {{ chain output {{ type filter hook output priority 0;\n\
             ip daddr {SOURCE_V4} counter\nip6 daddr {SOURCE_V6} counter\n}}\n}}\n"
        ),
    );
    scene.nft(&["-f", "-"], FIREWALL);
    scene.stage.host.write_sysctl("net/netfilter/nf_conntrack_tcp_loose", "0")?;
    let daemon = scene.daemon();
    let flood = scene.flood(SERVICE.port()).start(&scene.stage.attackers, ATTACKERS_INTERFACE)?;

    // The firewall drops every cookie that comes back, so visitors wait in vain until the test takes them away.
    wait_for("refusal", || metric(&daemon, "tunica_ports_without_cookies") == 1.0);
    ensure!(metric(&daemon, "tunica_cookie_self_tests_total{outcome=\"missed\"}") == 3.0);
    ensure!(metric(&daemon, PASSED) == 0.0);
    thread::sleep(COUNTS_LAG);
    let (_, grown) = scene.all_are_served(&daemon)?;
    ensure!(grown(Verdict::SynCookie, "answer") == 0, "it answered with cookies");
    ensure!(grown(Verdict::SynOverBudget, "pass") > 1_000, "the flood did not reach the kernel");
    // Everything says so.
    let port = scene.port(SERVICE.port());
    ensure!(port["self_test"]["outcome"] == "missed", "{port}");
    ensure!(port["self_test"]["seconds_without_cookies"].as_u64() > Some(500), "{port}");
    let sentence = format!("port {} answers with no cookies for", SERVICE.port());
    let status = scene.tunica(&["status"]).split_whitespace().collect::<Vec<_>>().join(" ");
    ensure!(status.contains("WITHOUT COOKIES for"), "{status}");
    let findings = scene.json(&["doctor"])["findings"].clone();
    let finding = findings.as_array().and_then(|all| all.iter().find(|it| it["check"] == "cookies").cloned());
    let finding = finding.unwrap_or_default();
    ensure!(finding["level"] == "warning", "{findings}");
    ensure!(finding["found"].as_str().is_some_and(|text| text.contains(&sentence)), "{findings}");
    let explained = scene.json(&["explain", "198.51.100.9", "--port", &SERVICE.port().to_string()]);
    ensure!(explained["over_budget"]["answers"] == false, "{explained}");
    ensure!(explained["over_budget"]["sentence"].to_string().contains(&sentence), "{explained}");
    let log = fs::read_to_string(scene.folder.path().join("tunicad.log"))?;
    ensure!(log.contains("cookie_test") && log.contains(&sentence), "{log}");
    ensure!(ends.lock().unwrap().is_empty(), "the service saw {:?}", ends.lock().unwrap());

    // Mended, and said so by a reload: the port is tested at once, over both families, and serves by cookies.
    scene.nft(&["delete", "table", "inet", "strict"], "");
    scene.tunica(&["reload"]);
    ensure!(metric(&daemon, "tunica_ports_without_cookies") == 0.0);
    wait_for("test that passes", || metric(&daemon, PASSED) == 1.0);
    thread::sleep(COUNTS_LAG);
    let (visits, grown) = scene.all_are_served(&daemon)?;
    ensure!(grown(Verdict::SynCookie, "answer") > 1_000, "it answered with no cookies");
    ensure!(grown(Verdict::CookieAck, "pass") * 10 > visits.successes() * 9);
    let port = scene.port(SERVICE.port());
    ensure!(port["self_test"]["outcome"] == "passed", "{port}");
    ensure!(port["self_test"]["seconds_without_cookies"].is_null(), "{port}");
    // The service saw one connection of each family, given up by its client, although it spoke first. Nothing was sent
    // to where they claimed to come from, nothing of them is left, and they are no evidence.
    let mut seen = ends.lock().unwrap().clone();
    seen.sort_unstable_by_key(|(peer, _)| *peer);
    let reset = Some(io::ErrorKind::ConnectionReset);
    ensure!(seen == [(SOURCE_V4.into(), reset), (SOURCE_V6.into(), reset)], "{seen:?}");
    let away = scene.nft(&["list", "table", "inet", "watch"], "");
    ensure!(away.matches("packets 0 ").count() == 2, "{away}");
    ensure!(scene.left_over().is_empty(), "{:?}", scene.left_over());
    let rows = scene.dump("VERIFIED")?;
    ensure!(rows.as_array().map(Vec::len) == Some(5), "{rows}");
    ensure!(scene.json(&["ban", "list"])["bans"].as_array().is_some_and(Vec::is_empty));
    flood.stop()?;

    // A service that accepts nothing is no firewall.
    let address = SocketAddr::new(SERVICE.ip(), FULL);
    let full = scene.stage.host.run(|| Ok(TcpListener::bind(address)?))?;
    listen(&full, Backlog::new(1)?)?;
    let waiting = scene
        .stage
        .client
        .run(|| Ok([(); 2].map(|()| TcpStream::connect_timeout(&address, Duration::from_secs(2)))))?;
    ensure!(waiting.iter().all(Result::is_ok), "{waiting:?}");
    let untested = |port: u16, clause: &str| {
        let row = scene.port(port);
        row["self_test"]["outcome"] == "untested"
            && row["self_test"]["clause"].as_str().is_some_and(|text| text.contains(clause))
    };
    let flood = scene.flood(FULL).start(&scene.stage.attackers, ATTACKERS_INTERFACE)?;
    wait_for("full queue", || untested(FULL, "queue is full"));
    flood.stop()?;
    // A listener beside the one that is flooded: no SYN has reached it, which says nothing against the other. Whoever comes
    // to it is let through until it takes cookies too, so all are served.
    let _two = scene.stage.host.run(|| {
        let v6 = socket(AddressFamily::Inet6, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&v6, sockopt::Ipv6V6Only, &true)?;
        let all = SocketAddr::from((Ipv6Addr::UNSPECIFIED, TWO));
        bind(v6.as_raw_fd(), &SockaddrStorage::from(all))?;
        listen(&v6, Backlog::new(16)?)?;
        Ok((v6, TcpListener::bind((SERVICE.ip(), TWO))?))
    })?;
    let flood = scene.flood(TWO).start(&scene.stage.attackers, ATTACKERS_INTERFACE)?;
    wait_for("other listener", || scene.port(TWO)["self_test"]["outcome"] == "passed");
    for number in 0..8 {
        let beside = SocketAddr::new(SERVICE_V6.ip(), TWO);
        let visit =
            scene.stage.client.run(|| Ok(TcpStream::connect_timeout(&beside, Duration::from_secs(5))))?;
        let greeted = visit.and_then(|mut visit| {
            // A connection whose cookie was refused is reset as soon as it says something.
            visit.set_read_timeout(Some(Duration::from_millis(300)))?;
            visit.write_all(b"hello")?;
            visit.read(&mut [0; 1])
        });
        ensure!(
            greeted.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock),
            "visit {number} of the listener beside: {greeted:?}"
        );
    }
    flood.stop()?;
    // The SYNs of a test stamp no listener, so they must not look as if they had.
    thread::sleep(COUNTS_LAG);
    let (clocks, passed) = (scene.dump("TRICKLES")?, metric(&daemon, PASSED));
    scene.tunica(&["reload"]);
    wait_for("test after the flood", || metric(&daemon, PASSED) > passed);
    ensure!(scene.dump("TRICKLES")? == clocks, "the tests moved the clock of the trickle");
    // A host that would answer elsewhere is not tested.
    scene.stage.host.ip(&["route", "del", "default"])?;
    scene.stage.host.ip(&["-6", "route", "del", "default"])?;
    scene.tunica(&["reload"]);
    wait_for("missing route", || untested(SERVICE.port(), "no route back"));
    ensure!(metric(&daemon, "tunica_ports_without_cookies") == 0.0);
    ensure!(metric(&daemon, "tunica_cookie_self_tests_total{outcome=\"missed\"}") == 3.0);
    daemon.stop()
}

/// The host's address is that of a bridge, and the shield on its port, or on the bridge itself, in generic mode.
#[test]
fn a_bridge_is_no_hindrance() -> anyhow::Result<()> {
    let scene = Scene::new("selfbridge");
    let host = &scene.stage.host;
    let steps = [
        "link add br0 type bridge",
        "link set br0 address 02:00:00:00:02:01 up",
        "link set attack0 master br0",
        "address del 10.77.2.1/24 dev attack0",
        "address add 10.77.2.1/24 dev br0",
        "route add default via 10.77.2.2",
        "neighbour add 10.77.2.2 lladdr 02:00:00:00:02:02 dev br0 nud permanent",
    ];
    for step in steps {
        host.ip(&step.split(' ').collect::<Vec<_>>())?;
    }
    host.write_sysctl("net/ipv4/conf/br0/rp_filter", "0")?;
    let ends = scene.serve(SERVICE);
    let daemon = scene.daemon();
    let flood = scene.flood(SERVICE.port()).start(&scene.stage.attackers, ATTACKERS_INTERFACE)?;
    wait_for("test through a port of the bridge", || metric(&daemon, PASSED) == 1.0);
    let file = scene.folder.path().join("tunica.toml");
    let text = fs::read_to_string(&file)?;
    fs::write(
        &file,
        text.replace("\"attack0\"", "\"br0\"").replace("mode =", "attach = \"native-or-generic\"\nmode ="),
    )?;
    scene.tunica(&["reload"]);
    let interface = scene.json(&["status"])["interfaces"][0].clone();
    ensure!((&interface["name"], &interface["actual"]) == (&"br0".into(), &"generic".into()), "{interface}");
    wait_for("test through the bridge", || metric(&daemon, PASSED) == 2.0);
    ensure!(metric(&daemon, "tunica_cookie_self_tests_total{outcome=\"missed\"}") == 0.0);
    flood.stop()?;
    let reset = Some(io::ErrorKind::ConnectionReset);
    ensure!(*ends.lock().unwrap() == [(SOURCE_V4.into(), reset); 2], "{:?}", ends.lock().unwrap());
    daemon.stop()
}
