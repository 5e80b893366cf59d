//! The demo's second part: attackers open circuits and streams through real tor, while visitors browse a slow service.
//!
//! Everything is in one network namespace: a private Tor network ([`crate::testnet`]), a service that is slow on purpose
//! (`slow_backend`), two onion services before it, and tors of visitors and attackers. tor hands the streams of one onion service
//! straight to the slow service, those of the other to `tunica-front`, with `tunicad` beside it, which has the gate refuse
//! the circuits that are banned, and tor close them.
//!
//! [`play`] must be called on a thread inside the namespace: whatever it starts is there, too, and is found there by whoever
//! cleans up.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::Sender,
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};

use crate::{
    netns::{End, Namespace, join},
    traces::remove_folder,
};
use place::{Guard, INTERFACE, Place, go_on};

pub use attackers::Assault;
pub use report::{Act, Counts, Cpu, Report, Row, Way, svg};
pub use visitors::Loads;

mod attackers;
mod place;
mod report;
mod visitors;
mod web;

/// Threads of the slow service, each of which serves one connection at a time.
pub const WORKERS: usize = 20;
/// CPU time of a page.
pub const PAGE_CPU: Duration = Duration::from_millis(20);
/// Connections that wait for a worker in the kernel: Apache's `ListenBackLog`, and nginx's.
pub const BACKLOG: i32 = 511;

/// How long an attack runs before it is measured.
const LEAD: Duration = Duration::from_secs(5);

/// How old the daemon's counters may be: the ingress tells them once a second, and the daemon reads the gate's as often.
const COUNTS_LAG: Duration = Duration::from_millis(2_500);

/// What is to be played.
#[derive(Clone, Copy, Debug)]
pub struct Setting<'a> {
    /// Where; [`furnish`] it before.
    pub namespace: &'a Namespace,
    /// An existing folder, not below a long path: sockets are in it.
    pub folder: &'a Path,
    /// `shield.pin_path`.
    pub pins: &'a Path,
    /// The program.
    pub tunicad: &'a Path,
    /// How long visitors click in an act with an attack; half as long without.
    pub seconds: u64,
    /// Ends it early.
    pub interrupted: &'a AtomicBool,
}

/// What is told meanwhile.
#[derive(Clone, Debug)]
pub enum News {
    /// Something has happened.
    Line(String),
    /// How an act goes, in place of what was said of it before.
    Progress(String),
}

/// Gives the namespace the interface that the daemon attaches to.
///
/// # Errors
/// With what `ip` said.
pub fn furnish(namespace: &Namespace) -> Result<()> {
    join(
        End { namespace, interface: INTERFACE, mac: [2, 0, 0, 0, 3, 1], address: "10.77.3.1/24" },
        End { namespace, interface: "wire0", mac: [2, 0, 0, 0, 3, 2], address: "10.77.3.2/24" },
    )
}

/// Plays every act.
///
/// # Errors
/// What could not be started, or was interrupted.
pub fn play(setting: &Setting<'_>, news: &Sender<News>) -> Result<Report> {
    let say = |text: String| {
        // Who asked may have gone.
        let _ = news.send(News::Line(text));
    };
    say("Starting a private Tor network: three authorities, five relays, two onion services, three clients."
        .to_owned());
    let place = Place::build(setting.folder, setting.interrupted)?;
    let mut report = Report::default();
    let plan = report::PLAN;
    for (number, (act, way)) in plan.iter().copied().enumerate() {
        go_on(setting.interrupted)?;
        let title = way.title().replace('`', "");
        let head = format!("[{}/{}] {} · {title}", number + 1, plan.len(), act.title());
        place.wait_until_drained(setting.interrupted)?;
        let configuration = place.configuration(way);
        let guard = match way {
            Way::Bare => None,
            Way::Profile | Way::Sized => Some(Guard::start(setting, &configuration)?),
        };
        let row = perform(setting, &place, guard.as_ref(), (act, way), |text| {
            let _ = news.send(News::Progress(format!("{head} · {text}")));
        })?;
        say(format!(
            "{head}: {} of {} page loads succeeded, {} streams of attackers were opened",
            row.loads.milliseconds.len(),
            row.loads.attempts(),
            row.assault.opened,
        ));
        report.rows.push(row);
        if let Some(guard) = guard {
            guard.end()?;
            // Pins outlive the daemon; the next one begins with an empty gate.
            remove_folder(setting.pins)?;
        }
    }
    Ok(report)
}

fn perform(
    setting: &Setting<'_>,
    place: &Place,
    guard: Option<&Guard<'_>>,
    (act, way): (Act, Way),
    progress: impl Fn(String) + Sync,
) -> Result<Row> {
    let seconds = match act {
        Act::Quiet => setting.seconds.div_ceil(2),
        Act::Attack => setting.seconds,
    };
    let name = format!("{}-{}", act.word(), way.word());
    let series = || guard.map_or_else(|| Ok(BTreeMap::default()), Guard::series);
    let counts = series()?;
    // Visitors leave first; attackers go on until the last of them has.
    let (is_closing, is_over) = (AtomicBool::new(false), AtomicBool::new(false));
    let (doors, door) = (place.attackers_doors(way), place.visitors_door(way));
    thread::scope(|scope| {
        // Whatever happens here, the threads must end.
        let _stop = (Set(&is_closing), Set(&is_over));
        let attackers = match act {
            Act::Quiet => None,
            Act::Attack => Some(scope.spawn(|| attackers::attack(&doors, &format!("a-{name}"), &is_over))),
        };
        if attackers.is_some() {
            pause(setting, LEAD)?;
        }
        let (begun, cpu) = (Instant::now(), place.cpu(way, guard)?);
        let visitors = scope.spawn(|| {
            visitors::browse(&door, &format!("v-{name}"), &is_closing, |loads| {
                progress(format!("{} of {} page loads succeed", loads.milliseconds.len(), loads.attempts()));
            })
        });
        pause(setting, Duration::from_secs(seconds))?;
        is_closing.store(true, Ordering::Relaxed);
        let loads = visitors.join().map_err(|_| anyhow!("a visitor panicked"))??;
        let (window, cpu) = (begun.elapsed(), place.cpu(way, guard)?.since(&cpu));
        is_over.store(true, Ordering::Relaxed);
        let assault =
            attackers.map(|attackers| attackers.join().map_err(|_| anyhow!("an attacker panicked"))?);
        let assault = assault.transpose()?.unwrap_or_default();
        if guard.is_some() {
            pause(setting, COUNTS_LAG)?;
        }
        let counts = Counts::between(&counts, &series().context("counting what was refused")?);
        Ok(Row { act, way, loads, window, assault, counts, cpu })
    })
}

/// What was done, and what the figures cannot tell.
pub fn reading(seconds: u64) -> String {
    let (shortest, longest) = visitors::THINK_MILLISECONDS;
    let tuning = Way::Sized.tuning().trim_end().replace('\n', "`, `");
    format!(
        "- Everything is real: a private network of the real tor with three authorities and five relays, a tor for each of two \
         onion services, one for all visitors, {} for attackers, the real `tunicad` and `tunica-front`. Nothing leaves the \
         machine.\n\
         - The service has {WORKERS} workers, each of which answers one request of a connection and closes it. A page costs {} ms \
         of CPU time, what belongs to it next to none. {BACKLOG} connections wait in the kernel. The service keeps to one \
         core, so it can make {} pages a second at most. It burns that CPU time, it does not sleep; it is kept to one core because \
         the others must carry the whole Tor network, which in life runs elsewhere.\n\
         - {} visitors at a time click {} times each on a circuit of their own, {shortest} to {longest} ms after the page \
         before; then another visitor comes with another circuit, as after a load that fails. A load is the page and {} \
         resources, over up to {} streams, kept open where the server keeps them; it fails if anything of it is refused or breaks \
         off, or if it takes longer than {} s. What a circuit takes to be built is a part of it. Visitors click for {seconds} s \
         with an attack and for half as long without.\n\
         - {} attackers ask for the page over {} streams a second, each on a circuit of its own, which tor makes anew when it was \
         closed; {} more take another circuit for each page, as fast as tor makes them. The attack begins {} s before the \
         visitors come and ends after them. The service makes a page also for those who have given up.\n\
         - Tunica runs with the profile `web`, the packet filter enforcing, the circuit gate enforcing and tor's control port. \
         The load level is pinned by `tunica threat set calm`, so no puzzle is asked, and what limits and bans do alone is \
         seen. Sized to the service means: `{tuning}`. Little more connections at once than the service has workers, \
         so that the queue is the ingress's, which a banned circuit leaves at once; a global rate that fresh circuits do not fill \
         before they are banned; and for each circuit what visitors need, with room: these open {} connections within 10 s at \
         most, and {} at once. Every other setting is at its default, among them a ban after 5 violations, for 300 s.\n\
         - Why the profile alone does not suffice here: it lets a circuit open 100 connections within 10 s, since it does not \
         know what a page costs. Until they are banned, a few circuits fill the 50 connections a second that all circuits \
         share, and visitors are refused with `global_rate`.\n\
         - What limits of circuits cannot do: whoever opens many circuits and asks little of each keeps every limit. tor makes \
         such an attacker pay in circuits; more than that takes a puzzle.\n\
         - Refusals are those of the whole act, those of visitors among them. The gate learns of a ban with the ingress's next \
         report, up to a second later, and tor closes the circuit then; so the ingress itself refuses most of what was under way.\n\
         - CPU is that of user and kernel time of each process while visitors were there, as a share of one core. Network, \
         attackers, visitors, service and Tunica share the machine, so times are longer than they would be apart; no figure is a \
         measure of tor's speed.\n",
        place::ATTACKERS,
        PAGE_CPU.as_millis(),
        1_000 / PAGE_CPU.as_millis(),
        visitors::COUNT,
        visitors::CLICKS,
        visitors::RESOURCES,
        visitors::STREAMS,
        visitors::PATIENCE.as_secs(),
        attackers::FLOODERS,
        attackers::FLOOD_PER_SECOND,
        attackers::OPENERS,
        LEAD.as_secs(),
        visitors::STREAMS as u32 * 10_000_u32.div_ceil(shortest),
        visitors::STREAMS,
    )
}

/// Sets a flag at its end.
struct Set<'a>(&'a AtomicBool);

impl Drop for Set<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn pause(setting: &Setting<'_>, time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    loop {
        go_on(setting.interrupted)?;
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        thread::sleep(left.min(Duration::from_millis(50)));
    }
}
