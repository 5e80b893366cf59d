//! The ingress and the daemon beside it under a flood of ten times the ingress' limits: whether what they hold stays the same.
//!
//! Two stands at the same time, one over HTTP with the profile `web`, one over TCP with `messenger`, each with its own `tunicad` and
//! `tunica-front` in a network namespace. `cargo xtask soak` runs it for long, a test for a minute.

use std::{
    collections::BTreeMap,
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};

use crate::{beside::Beside, lab::Lab};

pub use flood::Done;
pub use report::{Verdict, markdown, text};

mod flood;
mod report;

/// The part by which the second half's memory of a process may be above the first half's. The page that is written says why
/// that much.
pub const MOST_GROWTH: f64 = 0.05;

/// Rows, places and descriptors that the ingress may hold at a look, by what holds them.
const BOUNDS: [(&str, &str); 3] = [
    ("tunica_circuits_tracked", "tunica_circuits_capacity"),
    ("tunica_front_active", "tunica_front_active_max"),
    ("tunica_front_waiting", "tunica_front_waiting_max"),
];

/// Connections in the tarpit at most.
const MOST_TARPITTED: f64 = 1_000.0;

/// Descriptors that the ingress may hold: `maxconn` connections of clients, each perhaps with one to the backend and a pipe of two ends
/// each way, those in the tarpit, and its own.
const MOST_DESCRIPTORS: u64 = 500 * 6 + 1_000 + 200;

/// What the ingress speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// With the profile `web`.
    Http,
    /// With the profile `messenger`, and puzzles for clients that know the handshake.
    Tcp,
}

impl Protocol {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Http, Self::Tcp];

    /// As people say it.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Http => "HTTP",
            Self::Tcp => "TCP",
        }
    }

    const fn purpose(self) -> &'static str {
        match self {
            Self::Http => "soakhttp",
            Self::Tcp => "soaktcp",
        }
    }

    /// What differs from the defaults: puzzles that the flood's payers solve at once.
    const fn circuits(self) -> &'static str {
        match self {
            Self::Http => "profile = \"web\"\npow_difficulty = 8\npow_difficulty_max = 10\n",
            Self::Tcp => {
                "profile = \"messenger\"\npow_tcp = true\npow_difficulty = 8\npow_difficulty_max = 10\n"
            }
        }
    }

    const fn ingress(self) -> &'static str {
        match self {
            Self::Http => "",
            Self::Tcp => "protocol = \"tcp\"\n",
        }
    }
}

/// How long, and how closely.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// From the first connection to the last look.
    pub length: Duration,
    /// What is not judged: tables, pools and the allocator's own memory fill.
    pub warm_up: Duration,
    /// From one look to the next.
    pub every: Duration,
    /// `circuits.table_size`; `None`: the default.
    pub table_size: Option<u32>,
    /// What stands for a half.
    pub judged_by: Statistic,
}

/// What stands for all looks of a half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statistic {
    /// The one in the middle.
    Median,
    /// The lowest, for halves of a few looks: what leaks is not given back at any of them, and how many connections are open at
    /// one tells of the machine.
    Lowest,
}

impl Statistic {
    fn of(self, mut numbers: Vec<u64>) -> u64 {
        numbers.sort_unstable();
        let at = match self {
            Self::Median => numbers.len() / 2,
            Self::Lowest => 0,
        };
        numbers.get(at).copied().unwrap_or(0)
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Median => "median",
            Self::Lowest => "lowest",
        }
    }
}

/// What a process holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Resident memory (`VmRSS`), KiB.
    pub memory: u64,
    /// Open file descriptors.
    pub descriptors: u64,
    /// Threads.
    pub threads: u64,
}

/// A look at one stand.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// Since the flood began.
    pub at: Duration,
    /// `tunica-front`.
    pub front: Held,
    /// `tunicad`.
    pub daemon: Held,
    /// Every time series of the daemon's, as it stands in the text format.
    pub series: BTreeMap<String, f64>,
}

impl Look {
    /// The sum of a family's series.
    pub fn sum(&self, family: &str) -> f64 {
        let is_of = |name: &str| {
            name.strip_prefix(family).is_some_and(|rest| rest.is_empty() || rest.starts_with('{'))
        };
        self.series.iter().filter(|(name, _)| is_of(name)).map(|(_, value)| value).sum()
    }
}

/// What became of one stand.
#[derive(Clone, Debug)]
pub struct Course {
    /// Which.
    pub protocol: Protocol,
    /// In the order of time.
    pub looks: Vec<Look>,
    /// What the flood did.
    pub done: Done,
}

/// A stand that is flooded.
struct Stand {
    protocol: Protocol,
    // Dropped before the daemon, which would start to wait for it.
    front: Beside,
    lab: Lab,
    flood: JoinHandle<Result<Done>>,
    looks: Vec<Look>,
}

impl Stand {
    fn start(protocol: Protocol, plan: &Plan, is_over: &Arc<AtomicBool>) -> Result<Self> {
        let mut lab = Lab::new(protocol.purpose())?;
        let backend = lab.host.run(flood::start_backend)?;
        let size = plan.table_size.map_or_else(String::new, |size| format!("table_size = {size}\n"));
        lab.configure(
            "mode = \"enforce\"",
            &format!(
                "[ingress]\nenabled = true\nbackends = [\"{backend}\"]\n{}\n[circuits]\n{}{size}",
                protocol.ingress(),
                protocol.circuits(),
            ),
        )?;
        lab.start()?;
        let front = Beside::start_on_host(&lab)?;
        for series in ["tunica_front_up", "tunica_gate_attached"] {
            lab.wait_for(series, |lab| Ok(lab.metric(series)? == Some(1.0)))?;
        }
        let is_over = Arc::clone(is_over);
        let flood = lab.host.spawn("flood", move || flood::flood(protocol, &is_over))?;
        Ok(Self { protocol, front, lab, flood, looks: Vec::new() })
    }

    fn look(&mut self, begun: Instant) -> Result<()> {
        let (status, text) = self.lab.http("/metrics")?;
        if status != 200 {
            bail!("the daemon's metrics: {status}");
        }
        let daemon = u32::try_from(self.lab.pid()?.as_raw()).context("the daemon's pid")?;
        let series = text.lines().filter(|line| !line.starts_with('#'));
        let series = series.filter_map(|line| line.rsplit_once(' '));
        self.looks.push(Look {
            at: begun.elapsed(),
            front: held(self.front.pid())?,
            daemon: held(daemon)?,
            series: series.filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?))).collect(),
        });
        Ok(())
    }

    fn end(self) -> Result<Course> {
        let done = self.flood.join().map_err(|_| anyhow!("the flood panicked"))??;
        Ok(Course { protocol: self.protocol, looks: self.looks, done })
    }
}

/// Floods both stands and looks at them.
///
/// # Errors
/// What could not be started, or read; that it was interrupted.
pub fn run(
    plan: &Plan,
    interrupted: &AtomicBool,
    mut say: impl FnMut(&Look, Protocol),
) -> Result<Vec<Course>> {
    let is_over = Arc::new(AtomicBool::new(false));
    // Whatever happens here, the floods must end.
    let _end = Over(Arc::clone(&is_over));
    let mut stands = Vec::new();
    for protocol in Protocol::ALL {
        stands.push(Stand::start(protocol, plan, &is_over)?);
    }
    let begun = Instant::now();
    let mut next = plan.every;
    while next <= plan.length {
        while begun.elapsed() < next {
            if interrupted.load(Ordering::Relaxed) {
                bail!("interrupted");
            }
            thread::sleep(next.saturating_sub(begun.elapsed()).min(Duration::from_millis(100)));
        }
        next += plan.every;
        for stand in &mut stands {
            stand.look(begun).with_context(|| format!("looking at {}", stand.protocol.title()))?;
            if let Some(look) = stand.looks.last() {
                say(look, stand.protocol);
            }
        }
    }
    is_over.store(true, Ordering::Relaxed);
    stands.into_iter().map(Stand::end).collect()
}

/// Whether memory stayed flat, and tables and descriptors within their bounds at every look.
///
/// # Errors
/// Names what did not.
pub fn judge(courses: &[Course], plan: &Plan, most: f64) -> Result<()> {
    let mut failures = report::failures(courses, plan, most);
    for course in courses {
        for look in &course.looks {
            let whose = format!("{} after {} s", course.protocol.title(), look.at.as_secs());
            for (held, bound) in BOUNDS {
                let (held_now, most) = (look.sum(held), look.sum(bound));
                if held_now > most {
                    failures.push(format!("{whose}: {held} is {held_now}, above {bound}, {most}"));
                }
            }
            let tarpitted = look.sum("tunica_front_tarpitted");
            if tarpitted > MOST_TARPITTED {
                failures.push(format!("{whose}: {tarpitted} in the tarpit"));
            }
            if look.front.descriptors > MOST_DESCRIPTORS {
                failures.push(format!("{whose}: {} descriptors", look.front.descriptors));
            }
        }
    }
    if !failures.is_empty() {
        bail!("{}", failures.join("; "));
    }
    Ok(())
}

/// Ends the floods when it is dropped.
struct Over(Arc<AtomicBool>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What a process holds now (proc_pid_status(5)).
fn held(pid: u32) -> Result<Held> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("reading a process' status")?;
    let number = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok())
    };
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).context("reading a process' descriptors")?;
    Ok(Held {
        memory: number("VmRSS").context("a process without VmRSS")?,
        descriptors: descriptors.count() as u64,
        threads: number("Threads").context("a process without Threads")?,
    })
}
