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
    path::Path,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
        mpsc::Sender,
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};

use crate::netns::{End, Namespace, join};
use place::{INTERFACE, Place, Plan, go_on};

pub use attackers::Assault;
pub use report::{AIM, Act, Cpu, Report, Row, Way, svg};
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

/// Lines of `[circuits]` beside the profile.
const TUNING: &str = "";

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
    say("Starting a private Tor network: three authorities, five relays, two onion services, three clients.".to_owned());
    let configuration = OnceLock::new();
    let place = Place::build(&Plan {
        namespace: setting.namespace,
        folder: setting.folder,
        pins: setting.pins,
        tunicad: setting.tunicad,
        interrupted: setting.interrupted,
        configuration: &configuration,
    })?;
    let mut report = Report::default();
    let pairs: Vec<_> = Act::ALL.into_iter().flat_map(|act| Way::ALL.map(|way| (act, way))).collect();
    for (number, (act, way)) in pairs.iter().copied().enumerate() {
        go_on(setting.interrupted)?;
        let head = format!("[{}/{}] {} · {}", number + 1, pairs.len(), act.title(), way.title());
        let row = perform(setting, &place, act, way, |text| {
            let _ = news.send(News::Progress(format!("{head} · {text}")));
        })?;
        say(format!(
            "{head}: {} of {} page loads succeeded, {} streams of attackers were opened",
            row.loads.milliseconds.len(),
            row.loads.attempts(),
            row.assault.opened,
        ));
        report.rows.push(row);
    }
    place.end()?;
    Ok(report)
}

fn perform(
    setting: &Setting<'_>,
    place: &Place<'_>,
    act: Act,
    way: Way,
    progress: impl Fn(String) + Sync,
) -> Result<Row> {
    place.wait_until_drained()?;
    let seconds = match act {
        Act::Quiet => setting.seconds.div_ceil(2),
        Act::Attack => setting.seconds,
    };
    let name = format!("{}-{}", act.word(), way.word());
    let counts = place.series()?;
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
        let (begun, cpu) = (Instant::now(), place.cpu(way)?);
        let visitors = scope.spawn(|| {
            visitors::browse(&door, &format!("v-{name}"), &is_closing, |loads| {
                progress(format!(
                    "{} of {} page loads succeed",
                    loads.milliseconds.len(),
                    loads.attempts()
                ));
            })
        });
        pause(setting, Duration::from_secs(seconds))?;
        is_closing.store(true, Ordering::Relaxed);
        let loads = visitors.join().map_err(|_| anyhow!("a visitor panicked"))??;
        let (window, cpu) = (begun.elapsed(), place.cpu(way)?.since(&cpu));
        is_over.store(true, Ordering::Relaxed);
        let assault = attackers.map(|attackers| attackers.join().map_err(|_| anyhow!("an attacker panicked"))?);
        let assault = assault.transpose()?.unwrap_or_default();
        pause(setting, COUNTS_LAG)?;
        let counts = report::Counts::between(&counts, &place.series().context("counting what was refused")?);
        Ok(Row { act, way, loads, window, assault, counts, cpu })
    })
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
