//! The demo itself, played short: its table, its promises, and what it leaves behind however it ends.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, its helpers too")]

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tunica_tests::{armed, traces::Traces};

/// Demos measure, so one plays at a time.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Demo {
    child: Child,
    lines: BufReader<ChildStdout>,
    /// Where its complaints go: those that a test provokes are not the test's own.
    complaints: PathBuf,
}

impl Demo {
    fn start(out: &Path, arguments: &[&str]) -> Self {
        armed::program("tunicad").unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_demo"));
        let complaints = out.join("stderr");
        command.args(arguments).arg("--out").arg(out);
        command.stdout(Stdio::piped()).stderr(File::create(&complaints).unwrap());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines, complaints }
    }

    /// Waits until something is there that stays unless it is removed.
    fn wait_for(&self, what: &str, is_there: impl Fn(&Traces) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(300);
        while !is_there(&self.traces()) {
            assert!(
                Instant::now() < deadline,
                "no {what}: {:?} {}",
                self.traces().found(),
                self.complaints()
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn traces(&self) -> Traces {
        Traces::of("demo", self.child.id())
    }

    /// Reads the output up to the line that begins with `words`.
    fn read_to(&mut self, words: &str) {
        loop {
            let mut line = String::new();
            let read = self.lines.read_line(&mut line).unwrap();
            assert!(read > 0, "the demo ended before `{words}`: {}", self.complaints());
            if line.starts_with(words) {
                return;
            }
        }
    }

    fn send(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    fn complaints(&self) -> String {
        fs::read_to_string(&self.complaints).unwrap()
    }

    /// The rest of its output, its complaints after it, and how it ended.
    fn finish(mut self) -> (String, ExitStatus) {
        let mut rest: Vec<String> = self.lines.by_ref().lines().map(Result::unwrap).collect();
        let status = self.child.wait().unwrap();
        rest.push(self.complaints());
        (rest.join("\n"), status)
    }
}

/// The table's rows: cells by act and baseline.
fn rows(page: &str) -> BTreeMap<(String, String), Vec<String>> {
    let rows = page.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| act "));
    let cells = rows.map(|row| row.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()));
    cells.map(|mut cells| ((cells.next().unwrap(), cells.next().unwrap()), cells.collect())).collect()
}

fn percent(cell: &str) -> f64 {
    cell.strip_suffix(" %").unwrap_or_else(|| panic!("`{cell}` is no share")).parse().unwrap()
}

#[test]
fn a_fixed_source_flood_is_answered_and_the_visitors_are_served() {
    let _turn = alone();
    let out = tempfile::tempdir().unwrap();
    let demo =
        Demo::start(out.path(), &["--seconds", "2", "--acts", "fixed", "--baselines", "debian,enforce"]);
    let traces = demo.traces();
    let (output, status) = demo.finish();
    assert!(status.success(), "{status}:\n{output}");

    let page = fs::read_to_string(out.path().join("demo.md")).unwrap();
    let rows = rows(&page);
    let expected = [
        ("fixed-source SYN flood", "Debian's default"),
        ("fixed-source SYN flood", "Tunica enforcing"),
        ("quiet", "Debian's default"),
        ("quiet", "Tunica enforcing"),
    ];
    assert_eq!(
        rows.keys().map(|(act, baseline)| (act.as_str(), baseline.as_str())).collect::<Vec<_>>(),
        expected
    );
    for cells in rows.values() {
        assert!(percent(&cells[0]) >= 99.0, "{page}");
        assert!(cells[4].parse::<f64>().unwrap() > 50.0, "visits a second: {page}");
    }
    let enforced = &rows[&("fixed-source SYN flood".to_owned(), "Tunica enforcing".to_owned())];
    let arrived: f64 = enforced[5].replace(' ', "").parse().unwrap();
    assert!(arrived > 20_000.0, "the flood was no flood: {page}");
    let answered = share(&enforced[7], "syn_cookie answer").unwrap_or_else(|| panic!("{page}"));
    assert!(answered > 90.0, "{page}");
    let quiet = &rows[&("quiet".to_owned(), "Tunica enforcing".to_owned())];
    assert_eq!(quiet[7], "all passed", "{page}");
    // The flood's percentiles stand beside the quiet act's, which has nothing to stand beside.
    assert_eq!((enforced[3].split(", ").count(), quiet[3].as_str()), (2, "–"), "{page}");

    let image = fs::read_to_string(out.path().join("demo.svg")).unwrap();
    assert!(image.contains("Tunica enforcing") && image.ends_with("</svg>\n"));
    assert!(output.contains("Cleaned up"), "{output}");
    assert_eq!(traces.found().unwrap(), [""; 0]);
}

/// The share of a verdict with its action, such as `syn_rate drop`, in a cell of verdicts.
fn share(cell: &str, verdict: &str) -> Option<f64> {
    cell.split(", ").find_map(|words| words.strip_prefix(verdict).map(|words| percent(words.trim())))
}

#[test]
fn every_act_is_enforced_and_the_visitors_are_served() {
    let _turn = alone();
    let out = tempfile::tempdir().unwrap();
    let (output, status) = Demo::start(out.path(), &["--seconds", "2", "--baselines", "enforce"]).finish();
    let page = fs::read_to_string(out.path().join("demo.md")).unwrap_or_default();
    assert!(status.success(), "{status}:\n{output}");
    assert!(output.contains("The aim is met") && page.contains("The aim is met"), "{output}");

    let rows = rows(&page);
    assert_eq!(rows.len(), 10, "{page}");
    for cells in rows.values() {
        assert!(percent(&cells[0]) >= 99.0, "{page}");
    }
    // What acts on an attack, and on how much of it at least, percent.
    let acted = [
        ("forged-source SYN flood", "syn_cookie answer", 90.0),
        ("fixed-source SYN flood", "syn_cookie answer", 90.0),
        ("scan", "xmas drop", 33.0),
        // Sources that really connect too often prove it, and are banned before long.
        ("completed handshakes", "banned drop", 10.0),
        ("forged-source ACK flood", "no_socket drop", 80.0),
        ("forged-source ACK flood, IPv6", "no_socket drop", 80.0),
        ("closed ports", "no_listener drop", 35.0),
        ("ping flood", "icmp_host_rate drop", 90.0),
        ("forged-source SYN flood, IPv6", "syn_cookie answer", 90.0),
    ];
    for (act, verdict, least) in acted {
        let cells = &rows[&(act.to_owned(), "Tunica enforcing".to_owned())];
        let share = share(&cells[7], verdict).unwrap_or_else(|| panic!("{act} lacks {verdict}: {page}"));
        assert!(share >= least, "{act}: {verdict} {share} %: {page}");
    }
}

#[test]
fn an_interrupt_in_the_middle_leaves_nothing_behind() {
    let _turn = alone();
    let out = tempfile::tempdir().unwrap();
    let mut demo = Demo::start(out.path(), &["--seconds", "2", "--acts", "fixed", "--baselines", "enforce"]);
    let traces = demo.traces();
    demo.read_to("[ 1/2]");
    // The next act starts its own daemon.
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let found = traces.found().unwrap().join(", ");
        if found.contains("process ") && found.contains("/sys/fs/bpf/") {
            break;
        }
        assert!(Instant::now() < deadline, "no daemon runs: {found}");
        thread::sleep(Duration::from_millis(20));
    }
    demo.send(Signal::SIGINT);
    let (output, status) = demo.finish();
    assert_eq!(status.code(), Some(130), "{output}");
    assert!(output.contains("Cleaned up"), "{output}");
    assert_eq!(traces.found().unwrap(), [""; 0]);
}

#[test]
fn a_panic_leaves_nothing_behind() {
    let _turn = alone();
    let out = tempfile::tempdir().unwrap();
    let mut demo =
        Demo::start(out.path(), &["--seconds", "1", "--acts", "quiet", "--baselines", "enforce,debian"]);
    let traces = demo.traces();
    demo.read_to("[ 1/2]");
    // Nobody reads its output any more, and printing to a closed pipe panics.
    let Demo { mut child, lines, complaints } = demo;
    drop(lines);
    assert_eq!(child.wait().unwrap().code(), Some(101));
    let complaints = fs::read_to_string(complaints).unwrap();
    assert!(complaints.contains("failed printing to stdout"), "{complaints}");
    assert_eq!(traces.found().unwrap(), [""; 0]);
}

#[test]
fn the_next_demo_removes_what_a_killed_one_left() {
    let _turn = alone();
    let out = tempfile::tempdir().unwrap();
    let short = ["--seconds", "1", "--acts", "quiet", "--baselines"];
    let mut killed = Demo::start(out.path(), &[&short[..], &["enforce"]].concat());
    let traces = killed.traces();
    killed.read_to("Tunica's demo");
    let deadline = Instant::now() + Duration::from_secs(30);
    while !traces.pins().exists() {
        assert!(Instant::now() < deadline, "the daemon pins nothing");
        thread::sleep(Duration::from_millis(20));
    }
    killed.send(Signal::SIGKILL);
    killed.child.wait().unwrap();
    assert_ne!(traces.found().unwrap(), [""; 0]);

    let (output, status) = Demo::start(out.path(), &[&short[..], &["debian"]].concat()).finish();
    assert!(status.success(), "{status}:\n{output}");
    assert!(output.contains("Removing what the demo of process"), "{output}");
    assert_eq!(traces.found().unwrap(), [""; 0]);
}

/// Whether a process of the private network runs, one of attackers' or visitors' included.
fn has_tor(traces: &Traces) -> bool {
    let folder = traces.folder().display().to_string();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|process| fs::read(process.path().join("cmdline")).ok())
        .any(|line| line.starts_with(b"/") && String::from_utf8_lossy(&line).contains(&folder))
}

#[test]
fn circuits_that_attack_are_banned_and_more_visitors_are_served_than_without() {
    let _turn = alone();
    let out = tempfile::tempdir().unwrap();
    let demo = Demo::start(out.path(), &["--circuits", "--circuit-seconds", "12"]);
    let traces = demo.traces();
    let (output, status) = demo.finish();
    // Shares are measured: whether they reach the aim depends on what else this machine does.
    assert!(status.success() || output.contains("error: The aim is missed"), "{status}: {output}");
    assert_eq!(traces.found().unwrap(), [""; 0]);
    assert!(!has_tor(&traces));

    let page = fs::read_to_string(out.path().join("demo.md")).unwrap();
    let rows = rows(&page);
    let row = |act: &str, way: &str| &rows[&(act.to_owned(), way.to_owned())];
    let (attack, sized) = ("circuits and streams through tor", "Tunica, `web` sized to the service");
    assert_eq!(rows.len(), 5, "{page}");
    // Nobody who browses breaks a limit.
    let quiet = row("quiet", sized);
    assert_eq!(quiet[5], "nothing", "{page}");
    assert_eq!(quiet[3].split(", ").nth(1), Some("0"), "{page}");
    assert!(percent(&row("quiet", "tor alone")[0]) > 0.0 && percent(&quiet[0]) > 0.0, "{page}");

    let (bare, guarded) = (row(attack, "tor alone"), row(attack, sized));
    assert!(percent(&guarded[0]) > percent(&bare[0]), "{page}");
    for cells in [bare, guarded] {
        let streams = cells[4].split(", ").next().unwrap();
        assert!(streams.parse::<f64>().unwrap() > 0.0, "the attack was none: {page}");
    }
    assert!(guarded[5].contains("`too_many_open` ") && guarded[5].contains("`banned` "), "{page}");
    let circuits: Vec<u64> = guarded[6].split(", ").map(|count| count.parse().unwrap()).collect();
    assert!(circuits.iter().all(|count| *count > 0), "banned, closed: {page}");

    let image = fs::read_to_string(out.path().join("demo-circuits.svg")).unwrap();
    assert!(image.contains("sized to the service") && image.ends_with("</svg>\n"));
}

#[test]
fn an_interrupt_while_the_tor_network_starts_leaves_nothing_behind() {
    let _turn = alone();
    let out = tempfile::tempdir().unwrap();
    let demo = Demo::start(out.path(), &["--circuits"]);
    let traces = demo.traces();
    demo.wait_for("tor", has_tor);
    demo.send(Signal::SIGINT);
    let (output, status) = demo.finish();
    assert_eq!(status.code(), Some(130), "{output}");
    assert!(output.contains("Cleaned up"), "{output}");
    assert_eq!(traces.found().unwrap(), [""; 0]);
    assert!(!has_tor(&traces));
}

#[test]
fn an_interrupt_amid_circuits_leaves_nothing_behind() {
    let _turn = alone();
    let out = tempfile::tempdir().unwrap();
    let mut demo = Demo::start(out.path(), &["--circuits", "--circuit-seconds", "5"]);
    let traces = demo.traces();
    demo.read_to("[1/5]");
    demo.wait_for("daemon", |traces| traces.pins().exists());
    demo.send(Signal::SIGINT);
    let (output, status) = demo.finish();
    assert_eq!(status.code(), Some(130), "{output}");
    assert_eq!(traces.found().unwrap(), [""; 0]);
    assert!(!has_tor(&traces));
}

#[test]
fn a_panic_amid_circuits_leaves_nothing_behind() {
    let _turn = alone();
    let out = tempfile::tempdir().unwrap();
    let mut demo = Demo::start(out.path(), &["--circuits", "--circuit-seconds", "5"]);
    let traces = demo.traces();
    demo.read_to("Starting a private Tor network");
    // Nobody reads its output any more, and printing to a closed pipe panics.
    let Demo { mut child, lines, complaints } = demo;
    drop(lines);
    assert_eq!(child.wait().unwrap().code(), Some(101));
    let complaints = fs::read_to_string(complaints).unwrap();
    assert!(complaints.contains("failed printing to stdout"), "{complaints}");
    assert_eq!(traces.found().unwrap(), [""; 0]);
    assert!(!has_tor(&traces));
}

#[test]
fn the_next_demo_removes_the_tor_network_of_a_killed_one() {
    let _turn = alone();
    let out = tempfile::tempdir().unwrap();
    let mut killed = Demo::start(out.path(), &["--circuits"]);
    let traces = killed.traces();
    killed.wait_for("tor", has_tor);
    killed.send(Signal::SIGKILL);
    killed.child.wait().unwrap();
    assert_ne!(traces.found().unwrap(), [""; 0]);

    let short = ["--seconds", "1", "--acts", "quiet", "--baselines", "debian"];
    let (output, status) = Demo::start(out.path(), &short).finish();
    assert!(status.success(), "{status}:\n{output}");
    assert!(output.contains("Removing what the demo of process"), "{output}");
    assert_eq!(traces.found().unwrap(), [""; 0]);
    assert!(!has_tor(&traces));
}

#[test]
fn each_part_of_the_page_stays_while_the_other_is_written() {
    let _turn = alone();
    let out = tempfile::tempdir().unwrap();
    let page = out.path().join("demo.md");
    let second = "# Second part: an onion service under attack through tor, with and without Tunica";
    fs::write(&page, format!("# Demo\n\nOld.\n\n{second}\n\nMeasured before.\n")).unwrap();
    let short = ["--seconds", "1", "--acts", "quiet", "--baselines", "debian"];
    let (output, status) = Demo::start(out.path(), &short).finish();
    assert!(status.success(), "{status}:\n{output}");
    let text = fs::read_to_string(&page).unwrap();
    assert!(text.contains("| quiet | Debian's default |") && !text.contains("Old."), "{text}");
    assert!(text.ends_with(&format!("\n\n{second}\n\nMeasured before.\n")), "{text}");
}
