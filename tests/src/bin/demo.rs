//! The demo, in network namespaces of this machine: a host under attack, with and without Tunica, and then an onion service
//! under attack through a private network of the real tor.
//!
//! `cargo xtask demo` builds and starts it. It needs root, changes nothing outside its own namespaces, and removes
//! whatever it made, also after an error, a panic or Ctrl-C.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "its output is for the person at the terminal")]

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::{self, IsTerminal as _, Write as _},
    panic,
    path::{Path, PathBuf},
    process::{self, ExitCode},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::Parser;
use nix::{
    sys::signal::{SigSet, Signal},
    unistd::geteuid,
};
use tunica_tests::{
    armed::{self, COUNTS_LAG, Daemon, Packets, Setup},
    circuit_act::{self, News, Setting},
    client::{PATIENCE, Service},
    counters::{ProcessorTime, received, wait_until_drained},
    netns::{self, Namespace},
    report::{Act, Baseline, Report, Row, machine, stolen, svg},
    stage::{ATTACK_SIDE, Attack, CLIENT_SIDE, CONNECTIONS, Stage, VISITORS},
    sys::allow_files,
    testnet,
    traces::{Traces, remove_folder},
};

const PURPOSE: &str = "demo";

/// How long an attack runs before the visitors come, so that queues are as full as it can fill them.
const LEAD: Duration = Duration::from_millis(500);

/// How long the second part may take to end after its processes have.
const FAREWELL: Duration = Duration::from_secs(5);

/// How often the progress line is renewed.
const BLINK: Duration = Duration::from_millis(250);

/// Where the kernel keeps the network's sysctls that the self-check compares.
const SYSCTLS: [&str; 3] = ["/proc/sys/net/core", "/proc/sys/net/ipv4", "/proc/sys/net/ipv6"];

/// The heading of the page's first part.
const FIRST: &str = "# Demo: a host under attack, with and without Tunica";

/// The heading of its second part.
const SECOND: &str = "# Second part: an onion service under attack through tor, with and without Tunica";

/// Set by Ctrl-C and its kin.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// A host under attack, and an onion service under attack through tor, with and without Tunica. Both parts are played unless
/// acts or baselines of the first one are named.
#[derive(Parser)]
#[command(name = "demo", bin_name = "cargo xtask demo")]
struct Arguments {
    /// How long each act lasts, in seconds.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Which acts, separated by commas; the quiet one is always played, since the others are measured against it.
    /// Without this option all of them.
    #[arg(long, value_enum, value_delimiter = ',')]
    acts: Option<Vec<Act>>,
    /// Which baselines, separated by commas. Without this option all of them, but the kernel without cookies only in the
    /// quiet act and in SYN floods, where cookies matter.
    #[arg(long, value_enum, value_delimiter = ',')]
    baselines: Option<Vec<Baseline>>,
    /// Only the first part: floods of packets.
    #[arg(long, conflicts_with = "circuits")]
    packets: bool,
    /// Only the second part: circuits and streams through a private Tor network.
    #[arg(long, conflicts_with_all = ["acts", "baselines", "seconds"])]
    circuits: bool,
    /// How long visitors click in an act of the second part with an attack, in seconds; half as long without.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(5..=600))]
    circuit_seconds: u64,
    /// Where `demo.md`, `demo.svg` and `demo-circuits.svg` are written.
    #[arg(long, default_value = "target/demo")]
    out: PathBuf,
    /// Write them to `docs` as well.
    #[arg(long)]
    write_docs: bool,
}

impl Arguments {
    /// Whether the first part is played.
    const fn plays_packets(&self) -> bool {
        !self.circuits
    }

    /// Whether the second part is played: not where acts or baselines of the first one are named.
    const fn plays_circuits(&self) -> bool {
        !self.packets && self.acts.is_none() && self.baselines.is_none()
    }

    /// What is played of the first part, in this order.
    fn plan(&self) -> Vec<(Baseline, Act)> {
        let is_whole = self.acts.is_none() && self.baselines.is_none();
        let is_named = |act: &Act| self.acts.as_ref().is_none_or(|acts| acts.contains(act));
        let baselines = Baseline::ALL
            .into_iter()
            .filter(|baseline| self.baselines.as_ref().is_none_or(|named| named.contains(baseline)));
        let pairs = baselines.flat_map(|baseline| Act::ALL.map(|act| (baseline, act)));
        pairs
            .filter(|(_, act)| *act == Act::Quiet || is_named(act))
            .filter(|(baseline, act)| {
                let is_telling = *act == Act::Quiet || act.fills_queue();
                !is_whole || *baseline != Baseline::NoCookies || is_telling
            })
            .collect()
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if !geteuid().is_root() {
        eprintln!(
            "error: the demo needs root, because it makes network namespaces and loads a kernel program"
        );
        return ExitCode::FAILURE;
    }
    let traces = Traces::own(PURPOSE);
    let before = sysctls();
    let played = listen_for_signals().and_then(|()| {
        clean_up_on_panic(traces);
        play(&arguments, traces)
    });
    let cleaned = traces.remove().and_then(|()| check_afterwards(traces, &before));
    let interrupted = INTERRUPTED.load(Ordering::Relaxed);
    let mut failed = false;
    for problem in [played.err().filter(|_| !interrupted), cleaned.err()].into_iter().flatten() {
        eprintln!("error: {problem:#}");
        failed = true;
    }
    if !failed {
        println!(
            "Cleaned up: namespaces, processes, pins and files of the demo are gone; sysctls are as before."
        );
    }
    match (failed, interrupted) {
        (true, _) => ExitCode::FAILURE,
        // The shell's number for a program that SIGINT ended.
        (false, true) => ExitCode::from(130),
        (false, false) => ExitCode::SUCCESS,
    }
}

/// Turns SIGINT, SIGTERM and SIGHUP into [`INTERRUPTED`]. Threads that are started later leave them to this one.
fn listen_for_signals() -> Result<()> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    signals.thread_block().context("blocking signals")?;
    let wait = move || {
        while signals.wait().is_ok() {
            INTERRUPTED.store(true, Ordering::Relaxed);
            eprintln!("\ninterrupted: cleaning up, which takes a moment");
        }
    };
    thread::Builder::new().name("signals".to_owned()).spawn(wait).context("starting a thread for signals")?;
    Ok(())
}

/// A panic aborts a release build before any destructor runs, so its hook cleans up.
fn clean_up_on_panic(traces: Traces) {
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |information| {
        report(information);
        testnet::start_nothing_more();
        if let Err(error) = traces.remove() {
            eprintln!("error: {error:#}");
        }
        process::exit(101);
    }));
}

fn go_on() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    Ok(())
}

/// Sleeps, unless interrupted.
fn pause(time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    loop {
        go_on()?;
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        thread::sleep(left.min(Duration::from_millis(50)));
    }
}

fn play(arguments: &Arguments, traces: Traces) -> Result<()> {
    for dead in Traces::of_the_dead(PURPOSE)? {
        println!("Removing what the demo of process {} left behind.", dead.pid());
        dead.remove()?;
    }
    let folder = traces.folder();
    fs::create_dir(&folder).with_context(|| format!("making {}", folder.display()))?;
    let machine = machine();
    // Who misses an aim in the first part plays the second one all the same.
    let packets = if arguments.plays_packets() { play_packets(arguments, traces, &machine) } else { Ok(()) };
    if INTERRUPTED.load(Ordering::Relaxed) || !arguments.plays_circuits() {
        return packets;
    }
    let circuits = play_circuits(arguments, traces, &machine);
    packets.and(circuits)
}

/// The second part.
fn play_circuits(arguments: &Arguments, traces: Traces, machine: &str) -> Result<()> {
    let before = ProcessorTime::of_all()?;
    let tunicad = armed::program("tunicad")?;
    let (folder, pins) = (traces.folder(), traces.pins());
    allow_files().context("raising the limit of open files")?;
    let namespace = Arc::new(Namespace::create(PURPOSE, "onion")?);
    circuit_act::furnish(&namespace)?;
    let (news, inbox) = mpsc::channel();
    let seconds = arguments.circuit_seconds;
    let inside = Arc::clone(&namespace);
    let player = namespace.spawn("circuits", move || {
        let setting = Setting {
            namespace: &inside,
            folder: &folder,
            pins: &pins,
            tunicad: &tunicad,
            seconds,
            interrupted: &INTERRUPTED,
        };
        circuit_act::play(&setting, &news)
    })?;
    let is_terminal = io::stdout().is_terminal();
    let line_start = if is_terminal { "\r\x1b[K" } else { "" };
    loop {
        match inbox.recv_timeout(BLINK) {
            Ok(News::Line(line)) => println!("{line_start}{line}"),
            Ok(News::Progress(line)) if is_terminal => {
                print!("{line_start}{line}");
                // A terminal that went away is no reason to stop.
                let _ = io::stdout().flush();
            }
            Ok(News::Progress(_)) => {}
            Err(RecvTimeoutError::Timeout) if INTERRUPTED.load(Ordering::Relaxed) => {
                // Whoever waits for a process sees its end, and cannot start the next one.
                testnet::start_nothing_more();
                let deadline = Instant::now() + FAREWELL;
                while !player.is_finished() && Instant::now() < deadline {
                    netns::end_processes(namespace.name())?;
                    thread::sleep(Duration::from_millis(20));
                }
                // A thread that still waits for something else ends with this process.
                netns::remove(namespace.name())?;
                bail!("interrupted");
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let Ok(report) = player.join() else { bail!("the second part panicked") };
    let report = report?;
    drop(namespace);
    tell_circuits(&report, machine, before, arguments)
}

/// The first part.
fn play_packets(arguments: &Arguments, traces: Traces, machine: &str) -> Result<()> {
    let before = ProcessorTime::of_all()?;
    let plan = arguments.plan();
    let needs_daemon = plan.iter().any(|(baseline, _)| baseline.mode().is_some());
    let program = needs_daemon.then(|| armed::program("tunicad")).transpose()?;
    let (folder, pins) = (traces.folder(), traces.pins());
    println!("Tunica's demo on {machine}: {} acts of {} s.", plan.len(), arguments.seconds);

    let stage = Stage::build(PURPOSE)?;
    let mut progress = Progress::new(plan.len(), arguments.seconds);
    let mut report = Report::default();
    for (baseline, act) in plan {
        go_on()?;
        stage.host.write_sysctl("net/ipv4/tcp_syncookies", baseline.syncookies())?;
        let daemon = match (baseline.mode(), &program) {
            (None, _) | (_, None) => None,
            (Some(mode), Some(program)) => {
                let setup = Setup {
                    namespace: &stage.host,
                    program,
                    folder: &folder,
                    pins: &pins,
                    interfaces: &[ATTACK_SIDE, CLIENT_SIDE],
                    mode,
                    more: "",
                };
                Some(Daemon::start(setup, &INTERRUPTED)?)
            }
        };
        report.rows.push(perform(act, baseline, &stage, daemon.as_ref(), arguments.seconds, &mut progress)?);
        if let Some(daemon) = daemon {
            daemon.stop()?;
            // The filter outlives the daemon by its pins, so these go: a port still answers with cookies a minute after
            // a flood, and every act begins with a host that knows of no attack.
            remove_folder(&pins)?;
        }
    }
    drop(stage);
    tell(&report, machine, before, arguments)
}

fn perform(
    act: Act,
    baseline: Baseline,
    stage: &Stage,
    daemon: Option<&Daemon<'_>>,
    seconds: u64,
    progress: &mut Progress,
) -> Result<Row> {
    let host = &stage.host;
    wait_until_drained(host, ATTACK_SIDE)?;
    // A new listener each time: it has no half-open connection and remembers no overflow.
    let visitors = Stage::visitors(act);
    let service = Service::start(host, visitors.service)?;
    let packets = daemon.map(Daemon::packets).transpose()?;
    let before = received(host, ATTACK_SIDE)?;
    let attack = stage.start_attack(act)?;
    pause(LEAD)?;
    let visitors = visitors.start(&stage.client)?;
    let (begun, first) = (Instant::now(), received(host, ATTACK_SIDE)?);
    let ticks = ProcessorTime::of_all()?.softirq;
    let mut seen = (begun, first);
    progress.begin();
    while begun.elapsed() < Duration::from_secs(seconds) {
        pause(BLINK)?;
        let now = (Instant::now(), received(host, ATTACK_SIDE)?);
        let rate = (now.1 - seen.1) as f64 / now.0.duration_since(seen.0).as_secs_f64();
        progress.show(act, baseline, begun.elapsed(), visitors.so_far(), rate);
        seen = now;
    }
    let softirq_ticks = ProcessorTime::of_all()?.softirq - ticks;
    let (window, arrived) = (begun.elapsed(), received(host, ATTACK_SIDE)? - first);
    // The attack goes on while the last visitors wait.
    let visits = visitors.stop()?;
    attack.map(Attack::stop).transpose()?;
    drop(service);
    wait_until_drained(host, ATTACK_SIDE)?;
    let sent = if act == Act::Quiet { 0 } else { received(host, ATTACK_SIDE)? - before };
    if daemon.is_some() {
        pause(COUNTS_LAG)?;
    }
    let packets = match (packets, daemon) {
        (Some(before), Some(daemon)) => Some(difference(&daemon.packets()?, &before)),
        (Some(_) | None, _) => None,
    };
    let arrived = if act == Act::Quiet { 0 } else { arrived };
    let row = Row { act, baseline, visits, window, arrived, softirq_ticks, sent, packets };
    progress.end(&row);
    Ok(row)
}

fn difference(after: &Packets, before: &Packets) -> Packets {
    let since = |(outcome, count): (&_, &u64)| {
        (*outcome, count.saturating_sub(before.get(outcome).copied().unwrap_or(0)))
    };
    after.iter().map(since).collect()
}

/// The line that shows how far the demo is.
struct Progress {
    is_terminal: bool,
    number: usize,
    total: usize,
    seconds: u64,
}

impl Progress {
    fn new(total: usize, seconds: u64) -> Self {
        Self { is_terminal: io::stdout().is_terminal(), number: 0, total, seconds }
    }

    fn begin(&mut self) {
        self.number += 1;
    }

    fn head(&self, act: Act, baseline: Baseline) -> String {
        format!("[{:>2}/{}] {} · {}", self.number, self.total, act.title(), baseline.title())
    }

    fn show(&self, act: Act, baseline: Baseline, elapsed: Duration, (good, bad): (u64, u64), rate: f64) {
        if !self.is_terminal {
            return;
        }
        let success = if good + bad == 0 {
            "no visit ended yet".to_owned()
        } else {
            format!("{:.1} % of {} visits succeed", 100.0 * good as f64 / (good + bad) as f64, good + bad)
        };
        let elapsed = elapsed.as_secs_f64().min(self.seconds as f64);
        print!(
            "\r\x1b[K{} · {elapsed:.1}/{} s · {success} · {rate:.0} packets/s",
            self.head(act, baseline),
            self.seconds
        );
        // A terminal that went away is no reason to stop.
        let _ = io::stdout().flush();
    }

    fn end(&self, row: &Row) {
        let line_start = if self.is_terminal { "\r\x1b[K" } else { "" };
        println!(
            "{line_start}{}: {} of {} visits succeeded, {:.0} attack packets/s arrived",
            self.head(row.act, row.baseline),
            row.visits.successes(),
            row.visits.attempts(),
            row.arrived_per_second(),
        );
    }
}

/// Prints the first part's report and writes its files.
fn tell(report: &Report, machine: &str, before: ProcessorTime, arguments: &Arguments) -> Result<()> {
    let stolen = stolen(&before, &ProcessorTime::of_all()?);
    println!("\n{}", report.text());
    let notes = listed(report.notes());
    println!("{}\n{}", notes.replace("**", ""), reading(arguments.seconds));
    let verdict = report.verdict();

    let page = format!(
        "{FIRST}\n\n\
         Written by `cargo xtask demo --seconds {}` on {machine}{stolen}.\n\n\
         ![success of legitimate visits and softirq time, by act and baseline](demo.svg)\n\n{}\n\
         ## What the numbers say\n\n{}{notes}\n## How to read them\n\n{}",
        arguments.seconds,
        report.markdown(),
        verdict.as_ref().map(|verdict| format!("{verdict}\n\n")).unwrap_or_default(),
        reading(arguments.seconds),
    );
    let image = svg(report, machine);
    publish(arguments, ("demo.svg", &image), |other| match other.find(SECOND) {
        Some(place) => format!("{page}\n{}", other.get(place..).unwrap_or_default()),
        None => page.clone(),
    })?;
    match verdict {
        Some(missed) if !report.missed().is_empty() => bail!("{missed}"),
        Some(met) => println!("{met}"),
        None => {}
    }
    Ok(())
}

/// Prints the second part's report and writes its files.
fn tell_circuits(
    report: &circuit_act::Report,
    machine: &str,
    before: ProcessorTime,
    arguments: &Arguments,
) -> Result<()> {
    let stolen = stolen(&before, &ProcessorTime::of_all()?);
    let notes = listed(report.notes());
    let reading = circuit_act::reading(arguments.circuit_seconds);
    println!("\n{}\n{}\n{}", report.text(), notes.replace("**", ""), reading.replace('`', ""));
    let page = format!(
        "{SECOND}\n\n\
         Written by `cargo xtask demo --circuits --circuit-seconds {}` on {machine}{stolen}.\n\n\
         ![legitimate page loads that succeed, and how long they take](demo-circuits.svg)\n\n{}\n\
         ## What the numbers of circuits say\n\n{}\n\n{notes}\n## How to read the numbers of circuits\n\n{reading}",
        arguments.circuit_seconds,
        report.markdown(),
        report.verdict(),
    );
    let image = circuit_act::svg(report, machine);
    publish(arguments, ("demo-circuits.svg", &image), |other| {
        let first = other.split(SECOND).next().unwrap_or_default().trim_end();
        if first.is_empty() { page.clone() } else { format!("{first}\n\n{page}") }
    })?;
    if !report.is_met() {
        bail!("{}", report.verdict());
    }
    println!("{}", report.verdict());
    Ok(())
}

/// Sentences below their titles.
fn listed(notes: Vec<(&'static str, Vec<String>)>) -> String {
    let mut list = String::new();
    for (title, sentences) in notes {
        let _ = writeln!(list, "- **{title}**: {}", sentences.join(" "));
    }
    list
}

/// Writes a part's image and the page, of which the other part stays as it is: `join` makes the page of what stands there.
fn publish(arguments: &Arguments, (name, image): (&str, &str), join: impl Fn(&str) -> String) -> Result<()> {
    let docs = arguments.write_docs.then(|| PathBuf::from("docs"));
    for folder in [Some(arguments.out.clone()), docs].into_iter().flatten() {
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        let page = folder.join("demo.md");
        let written = match fs::read_to_string(&page) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            read => read.with_context(|| format!("reading {}", page.display()))?,
        };
        write(&page, &join(&written))?;
        write(&folder.join(name), image)?;
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    println!("Wrote {}.", path.display());
    Ok(())
}

/// What was done, and what the figures cannot tell.
fn reading(seconds: u64) -> String {
    let (shortest, longest) = VISITORS.think_milliseconds;
    format!(
        "- Baselines: the kernel alone with `net.ipv4.tcp_syncookies=0`; the kernel alone with 1, as Debian sets it; \
         Tunica in mode `observe`; Tunica in mode `enforce`, every other setting of Tunica at its default, and started anew \
         for each act.\n\
         - With Tunica the sysctl is 2, because only then the listener accepts the cookies that Tunica sends. The kernel \
         then sends cookies for every SYN that reaches it, attack or not. Observing, Tunica touches nothing, so that row \
         against Debian's default shows what the sysctl and the counting do, and enforcing against observing what \
         dropping and answering do. Where the sysctl stays 1, Tunica sends no cookies, and the kernel's defend the port.\n\
         - Unless acts or baselines are named, the kernel without cookies plays only the quiet act and the SYN floods.\n\
         - Attackers forge a random source for each packet, except in the fixed-source flood (64 sources), the scan (16) \
         and the completed handshakes: there {} sources really connect, up to {} times a second each, and reset the \
         connection at once. Closed ports get SYNs and UDP datagrams in turn, on 16 ports.\n\
         - {} visitors, each with its own address, connect, ask once, read one answer, close, and think for {shortest} to \
         {longest} ms, for {seconds} s an act; a visit fails after {} ms. The service's backlog is {}. p50 and p99 are of \
         visits that succeeded, connection and answer together; × quiet says what multiples they are of the quiet act's \
         under the same baseline. In the acts over IPv6 the visitors come over IPv6, too, each from a /64 of its own.\n\
         - Attack packets/s are those that reached the host's interface; of completed handshakes, all their segments. Shares \
         of the verdicts are of all such packets; verdicts below 0.1 % are left out if another stands there. Visitors' SYNs that are answered count with the attack's.\n\
         - The attackers' packets are socket buffers made by a packet socket on the same machine, and a veth pair hands \
         them to the host on the processor that sends them: generator and receiver share the cores. Here XDP cannot \
         save the making of a socket buffer, as it does on a network card, and the pair copies every such packet for it \
         first, which a card does not: these figures are no measure of its speed.\n\
         - Softirq time is `/proc/stat`'s for all processors minus that of the quiet act under the same baseline, with one \
         standard deviation of its sampling. It holds the host's receiving and answering, and the attackers' \
         receiving of the answers. Other work on the machine during the demo adds to it.\n",
        CONNECTIONS.sources,
        CONNECTIONS.rate,
        VISITORS.count,
        PATIENCE.as_millis(),
        tunica_tests::client::BACKLOG,
    )
}

/// The machine's own sysctls of the network.
fn sysctls() -> BTreeMap<PathBuf, String> {
    let files = SYSCTLS.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
    files.filter_map(|entry| Some((entry.path(), fs::read_to_string(entry.path()).ok()?))).collect()
}

/// The self-check: nothing that the demo made is left, and the machine's sysctls are as before.
fn check_afterwards(traces: Traces, before: &BTreeMap<PathBuf, String>) -> Result<()> {
    let left = traces.found()?;
    if !left.is_empty() {
        bail!("left behind: {}", left.join(", "));
    }
    let after = sysctls();
    let changed: Vec<String> = before
        .iter()
        .filter(|(path, value)| after.get(*path) != Some(value))
        .map(|(path, value)| format!("{} was {}", path.display(), value.trim()))
        .collect();
    if !changed.is_empty() {
        bail!("sysctls of this machine changed during the demo: {}", changed.join(", "));
    }
    Ok(())
}
