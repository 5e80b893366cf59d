//! Which tor process answers: circuits are counted from 1 again by each.
//!
//! A process is known by its pid and the time of its start, which the kernel knows to a tick. That needs `/proc`, and a pid
//! that means the same here as in tor's own namespace. Where either is missing, tor's own word on how long it has run decides,
//! and a doubt counts as another process: then a ban of a circuit ends early, where otherwise it would hit a stranger.

use std::{fs, time::Duration};

use nix::{
    time::{ClockId, clock_gettime},
    unistd::{SysconfVar, sysconf},
};
use tunica_core::id::TorGeneration;
use tunica_onion::control_codec::{Command, Expected, ParseError};

use super::{
    LinkError,
    wire::{Wire, ignore},
};

/// Longest version that is kept, in bytes.
const VERSION_BYTES: usize = 64;
/// How far tor's uptime may be behind the age that the kernel knows: tor begins to count late, and stops when it is stopped.
const MOST_BEHIND: Duration = Duration::from_secs(30);
/// How far it may be ahead: tor counts whole seconds of the wall clock as they begin.
const MOST_AHEAD: Duration = Duration::from_secs(2);
/// How far two of tor's uptimes may be from the time between them. A process younger than that is never recognised by them.
const SLACK: Duration = Duration::from_secs(3);

/// What tor says of itself.
pub(super) struct Answer {
    pub(super) version: String,
    pub(super) process: Process,
}

/// One tor process, as far as it can be told from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Process {
    /// By tor's own word.
    pid: u32,
    /// Whether that pid means the same here.
    is_local: bool,
    /// Ticks from the host's boot to its start, if that pid is known to mean the same here.
    started_tick: Option<u64>,
    /// By tor's own word.
    uptime: Duration,
    /// When it said so, since the host's boot.
    asked_at: Duration,
}

/// Numbers the processes.
#[derive(Debug, Default)]
pub(super) struct Generations {
    last: Option<(Process, TorGeneration)>,
}

/// Asks tor which process it is.
///
/// # Errors
/// If it does not say.
pub(super) async fn ask(wire: &mut Wire) -> Result<Answer, LinkError> {
    let command = Command::GetInfo(&["version", "process/pid", "uptime"]);
    let answer = wire.demand(&command, ignore).await?;
    let asked_at = since_boot();
    let number = |line, key| {
        let value = answer.values(key).next().and_then(|value| value.parse::<u64>().ok());
        let source = ParseError { line, expected: Expected::Number };
        value.ok_or(LinkError::Unreadable { command: "GETINFO", source })
    };
    let source = ParseError { line: 2, expected: Expected::Number };
    let pid = u32::try_from(number(2, "process/pid")?)
        .map_err(|_| LinkError::Unreadable { command: "GETINFO", source })?;
    let uptime = Duration::from_secs(number(3, "uptime")?);
    let version = answer.values("version").next().unwrap_or_default();
    let is_sign = |sign: &char| sign.is_ascii_graphic() || *sign == ' ';
    let version = version.chars().filter(is_sign).take(VERSION_BYTES).collect();
    let found = fs::read_to_string(format!("/proc/{pid}/stat")).ok().and_then(|stat| start_of(&stat));
    // Over a Unix socket the kernel knows it, also where `/proc` hides the processes of other accounts.
    let is_peer = wire.peer() == Some(pid);
    let started_tick = found.filter(|tick| is_peer || is_age(*tick, ticks_a_second(), uptime, asked_at));
    let is_local = is_peer || started_tick.is_some();
    Ok(Answer { version, process: Process { pid, is_local, started_tick, uptime, asked_at } })
}

impl Process {
    /// The pid, if it is one of this machine as this process sees it.
    pub(super) fn local_pid(&self) -> Option<u32> {
        self.is_local.then_some(self.pid)
    }

    /// Whether `later`, which was asked later, is the same process. Only where that is sure.
    fn is(&self, later: &Self) -> bool {
        if self.pid != later.pid {
            return false;
        }
        if let (Some(one), Some(other)) = (self.started_tick, later.started_tick) {
            return one == other;
        }
        // One that was started after the first answer has run no longer than the time since then.
        let between = later.asked_at.saturating_sub(self.asked_at);
        self.uptime > SLACK && later.uptime + SLACK >= self.uptime + between
    }

    /// When it was started, in ticks since the host's boot. By tor's own word it is late rather than early.
    fn start(&self, ticks_a_second: u64) -> u64 {
        let start = self.asked_at.saturating_sub(self.uptime);
        self.started_tick.unwrap_or_else(|| ticks_of(start, ticks_a_second))
    }
}

impl Generations {
    /// The generation of a process: its start in ticks since the host's boot, so that it is the same for the next daemon.
    pub(super) fn of(&mut self, process: Process) -> TorGeneration {
        let generation = match self.last {
            Some((last, generation)) if last.is(&process) => generation,
            Some((_, TorGeneration(last))) => {
                TorGeneration(process.start(ticks_a_second()).max(last.saturating_add(1)))
            }
            None => TorGeneration(process.start(ticks_a_second())),
        };
        self.last = Some((process, generation));
        generation
    }
}

/// The field `starttime` of `/proc/PID/stat`, the 22nd (proc_pid_stat(5)). The second is a name in brackets, which may hold
/// anything.
fn start_of(stat: &str) -> Option<u64> {
    let (_, behind_name) = stat.rsplit_once(')')?;
    behind_name.split_whitespace().nth(19)?.parse().ok()
}

/// Whether a process that was started at `tick` can be the tor that says it has run for `uptime`.
fn is_age(tick: u64, ticks_a_second: u64, uptime: Duration, asked_at: Duration) -> bool {
    let age = asked_at.saturating_sub(Duration::from_secs(tick / ticks_a_second));
    uptime <= age + MOST_AHEAD && age <= uptime + MOST_BEHIND
}

fn ticks_of(span: Duration, ticks_a_second: u64) -> u64 {
    let ticks = span.as_millis() * u128::from(ticks_a_second) / 1_000;
    u64::try_from(ticks).unwrap_or(u64::MAX)
}

/// The clock that `starttime` counts in (Linux, fs/proc/array.c, `do_task_stat`: `start_boottime`).
fn since_boot() -> Duration {
    // Linux gives no error for this clock.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
}

fn ticks_a_second() -> u64 {
    // 100 on every architecture that the shield runs on.
    let told = sysconf(SysconfVar::CLK_TCK).ok().flatten();
    told.and_then(|ticks| u64::try_from(ticks).ok()).filter(|ticks| *ticks > 0).unwrap_or(100)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: u32, started_tick: Option<u64>, uptime: u64, asked_at: u64) -> Process {
        let seconds = Duration::from_secs;
        let is_local = started_tick.is_some();
        Process { pid, is_local, started_tick, uptime: seconds(uptime), asked_at: seconds(asked_at) }
    }

    #[test]
    fn a_process_is_recognised_where_that_is_sure() {
        for (one, later, is_same) in [
            // The kernel's word.
            (process(7, Some(100), 50, 1_000), process(7, Some(100), 60, 1_010), true),
            (process(7, Some(100), 50, 1_000), process(7, Some(101), 60, 1_010), false),
            (process(7, Some(100), 50, 1_000), process(8, Some(100), 60, 1_010), false),
            // A tor that was stopped for long has lost count; the kernel has not.
            (process(7, Some(100), 50, 1_000), process(7, Some(100), 50, 5_000), true),
            // Tor's own word, where one or both of the kernel's are missing.
            (process(7, None, 50, 1_000), process(7, None, 60, 1_010), true),
            (process(7, Some(100), 50, 1_000), process(7, None, 59, 1_010), true),
            (process(7, None, 50, 1_000), process(8, None, 60, 1_010), false),
            (process(7, None, 50, 1_000), process(7, None, 2, 1_010), false),
            // Restarted right after the first answer, and asked much later.
            (process(7, None, 50, 1_000), process(7, None, 4_999, 6_000), false),
            (process(7, None, 3, 1_000), process(7, None, 5_000, 6_000), false),
            (process(7, None, 50, 1_000), process(7, None, 50, 5_000), false),
        ] {
            assert_eq!(one.is(&later), is_same, "{one:?} {later:?}");
        }
    }

    #[test]
    fn a_generation_stays_with_the_process_and_grows_with_the_next() {
        let mut generations = Generations::default();
        let first = generations.of(process(7, Some(100_000), 50, 1_050));
        assert_eq!(first, TorGeneration(100_000));
        assert_eq!(generations.of(process(7, Some(100_000), 60, 1_060)), first);
        let second = generations.of(process(7, Some(106_500), 0, 1_065));
        assert_eq!(second, TorGeneration(106_500));
        // Of the same tick: the number grows all the same.
        let third = generations.of(process(9, Some(106_500), 0, 1_065));
        assert_eq!(third, TorGeneration(106_501));
        // By tor's own word, and with a clock that is behind.
        let fourth = generations.of(process(9, None, 400, 1_070));
        assert_eq!(fourth, TorGeneration(106_502));
        assert_eq!(generations.of(process(9, None, 410, 1_080)), fourth);
        assert!(generations.of(process(9, None, 1, 1_090)) > fourth);
        // Another daemon gives the same number to the same process.
        assert_eq!(Generations::default().of(process(7, Some(100_000), 99, 1_099)), first);
    }

    #[test]
    fn a_start_is_believed_only_if_tor_is_that_old() {
        let seconds = Duration::from_secs;
        // Started 10 s after boot.
        for (uptime, asked_at, is_believed) in [
            (seconds(90), seconds(100), true),
            (seconds(91), seconds(101), true),
            (seconds(60), seconds(100), true),
            (seconds(59), seconds(100), false),
            // By the wall clock's seconds.
            (seconds(92), seconds(100), true),
            (seconds(93), seconds(100), false),
            (seconds(0), seconds(100), false),
        ] {
            assert_eq!(is_age(1_000, 100, uptime, asked_at), is_believed, "{uptime:?} {asked_at:?}");
        }
    }

    #[test]
    fn the_start_of_a_process_is_read_whatever_its_name() {
        let own = fs::read_to_string("/proc/self/stat").unwrap();
        let start = start_of(&own).unwrap();
        let renamed = own.replacen('(', "(a) 1 2 (", 1);
        assert_eq!(start_of(&renamed), Some(start));
        let age = since_boot().saturating_sub(Duration::from_secs(start / ticks_a_second()));
        assert!(age < since_boot());
        assert_eq!(start_of("1 (tor) S 1"), None);
        assert_eq!(start_of(""), None);
    }
}
