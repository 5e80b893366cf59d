//! What tor says of its own process, and what the kernel does.
//!
//! Which process that is `tunica_core::tor_process` decides. The kernel's word needs `/proc`, and a pid that means the same here
//! as in tor's own namespace.

use std::{fs, time::Duration};

use nix::{
    time::{ClockId, clock_gettime},
    unistd::{SysconfVar, sysconf},
};
use tunica_core::tor_process::Sighting;
use tunica_onion::control_codec::{Command, Expected, Message, ParseError};

use super::{LinkError, wire::Wire};

/// Longest version that is kept, in bytes.
const VERSION_BYTES: usize = 64;
/// How far tor's uptime may be behind the age that the kernel knows: tor begins to count late, and stops when it is stopped.
const MOST_BEHIND: Duration = Duration::from_secs(30);
/// How far it may be ahead: tor counts whole seconds of the wall clock as they begin.
const MOST_AHEAD: Duration = Duration::from_secs(2);

/// What tor says of itself.
pub(super) struct Answer {
    pub(super) version: String,
    pub(super) seen: Sighting,
    /// The pid, if it is one of this machine as this process sees it.
    pub(super) local_pid: Option<u32>,
}

/// Asks tor which process it is; events that come before the answer go to `on_event`.
///
/// # Errors
/// If it does not say.
pub(super) async fn ask(wire: &mut Wire, on_event: impl FnMut(&Message)) -> Result<Answer, LinkError> {
    let command = Command::GetInfo(&["version", "process/pid", "uptime"]);
    let answer = wire.demand(&command, on_event).await?;
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
    let local_pid = (is_peer || started_tick.is_some()).then_some(pid);
    Ok(Answer { version, seen: Sighting { pid, started_tick, uptime, asked_at }, local_pid })
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
    uptime <= age + MOST_AHEAD && age <= uptime.saturating_add(MOST_BEHIND)
}

/// The clock that `starttime` counts in (Linux, fs/proc/array.c, `do_task_stat`: `start_boottime`).
fn since_boot() -> Duration {
    // Linux gives no error for this clock.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
}

/// Ticks that `starttime` counts a second in.
pub(super) fn ticks_a_second() -> u64 {
    // 100 on every architecture that the shield runs on.
    let told = sysconf(SysconfVar::CLK_TCK).ok().flatten();
    told.and_then(|ticks| u64::try_from(ticks).ok()).filter(|ticks| *ticks > 0).unwrap_or(100)
}

#[cfg(test)]
mod tests {
    use super::*;

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
            // Whatever it says.
            (seconds(u64::MAX), seconds(100), false),
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
