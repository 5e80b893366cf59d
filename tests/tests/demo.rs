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
