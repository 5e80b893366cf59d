//! Which tor process answers, so that every daemon gives one process one number ([`TorGeneration`]).
//!
//! Tor counts its circuits from 1 again with each start. A process that is taken for another has its bans end early and its
//! open streams reset; another that is taken for it would have strangers banned. So a doubt makes another process.
//!
//! | known of before | says now | number |
//! |---|---|---|
//! | nothing | the tick of its start | that tick |
//! | nothing | no tick | the tick of the question: higher than any that was given in this boot |
//! | one process | [the same](Sighting) | the one that it has |
//! | one process | another, or a doubt | as for an unknown one, and higher than the one before |
//!
//! The kernel knows the start of a process to a tick, but tells it in `/proc/PID/stat` alone, which `hidepid` hides (Linux,
//! Documentation/filesystems/proc.rst), as the daemon's unit does. Nothing else would do for every tor: the number that pidfs
//! gives a process needs Linux 6.9 and a Unix socket, taskstats tells a time since the start that no two questions agree
//! on, a control socket's file comes and goes with tor's configuration, too, and a cookie is there only where it is asked for.
//! So what is known is kept for the next daemon ([`KnownTor::text`]), and tor's own word is compared with it.

use std::time::Duration;

use thiserror::Error;

use crate::id::TorGeneration;

/// How far two uptimes may be from the time between them: tor counts whole seconds of the wall clock as they begin, and may be
/// late with each. A process no older than that is never recognised by them.
pub const SLACK: Duration = Duration::from_secs(3);
/// How far its start, as its uptime tells it, may move before what is kept of a process is out of date: tor does not count
/// through leaps of the clock. Less than [`SLACK`] by what two uptimes are apart for being whole seconds.
const MOST_DRIFT: Duration = Duration::from_secs(1);
/// The first line of what is kept.
const HEADING: &str = "# Which tor process tunicad spoke to last, so that the next one knows it again. Void once the host has started anew.";

/// What is known of a tor process from one of its answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// Its pid, by tor's own word: in a container it is often the same after each start.
    pub pid: u32,
    /// Ticks from the host's boot to its start, where the kernel tells them.
    pub started_tick: Option<u64>,
    /// How long it has run, by tor's own word, in whole seconds.
    pub uptime: Duration,
    /// When it said so, since the host's boot, time of suspension included.
    pub asked_at: Duration,
}

/// A tor process and its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownTor {
    seen: Sighting,
    generation: TorGeneration,
}

/// Why a text is not what [`KnownTor::text`] writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum KnownTorTextError {
    /// A line is none of ours, or not in its place.
    #[error("line {line} is not `{form}`")]
    Line {
        /// Which, counted from 1.
        line: usize,
        /// What should stand there.
        form: &'static str,
    },
    /// There is more than there should be.
    #[error("there is a line {line}, and there should be none")]
    More {
        /// Which, counted from 1.
        line: usize,
    },
}

impl Sighting {
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
        self.is_settled() && self.uptime.saturating_add(between).abs_diff(later.uptime) <= SLACK
    }

    /// Whether it has run for long enough to be recognised by its uptime.
    const fn is_settled(&self) -> bool {
        self.uptime.as_nanos() > SLACK.as_nanos()
    }

    /// When it was started by its own word. Late rather than early.
    const fn start(&self) -> Duration {
        self.asked_at.saturating_sub(self.uptime)
    }
}

impl KnownTor {
    /// Tor was asked over a new connection. `known` is what was known of the tor before, whoever spoke to it.
    pub fn meet(known: Option<&Self>, seen: Sighting, ticks_a_second: u64) -> Self {
        // Never the start by tor's own word: with each question it is another, and may be lower than one before.
        let new = seen.started_tick.unwrap_or_else(|| ticks_of(seen.asked_at, ticks_a_second));
        match known {
            Some(Self { seen: before, generation }) if before.is(&seen) => {
                let started_tick = seen.started_tick.or(before.started_tick);
                Self { seen: Sighting { started_tick, ..seen }, generation: *generation }
            }
            Some(Self { seen: _, generation: TorGeneration(before) }) => {
                Self { seen, generation: TorGeneration(new.max(before.saturating_add(1))) }
            }
            None => Self { seen, generation: TorGeneration(new) },
        }
    }

    /// Tor was asked once more over the same connection, so it is the same process whatever it says. Returns whether what is
    /// kept for the next daemon is out of date.
    pub fn meet_again(&mut self, seen: Sighting) -> bool {
        let before = self.seen;
        if seen.pid != before.pid {
            return false;
        }
        let started_tick = seen.started_tick.or(before.started_tick);
        let is_out_of_date = seen.is_settled() != before.is_settled()
            || started_tick != before.started_tick
            || seen.start().abs_diff(before.start()) > MOST_DRIFT;
        if is_out_of_date {
            self.seen = Sighting { started_tick, ..seen };
        }
        is_out_of_date
    }

    /// Its number.
    pub const fn generation(&self) -> TorGeneration {
        self.generation
    }

    /// Whether it has run for long enough to be recognised by the next daemon without the kernel's word.
    pub const fn is_settled(&self) -> bool {
        self.seen.is_settled()
    }

    /// What is kept for the next daemon. `boot` names this start of the host, in one word (`/proc/sys/kernel/random/boot_id`).
    pub fn text(&self, boot: &str) -> String {
        let Sighting { pid, started_tick, uptime, asked_at } = self.seen;
        let tick = started_tick.map_or_else(|| "-".to_owned(), |tick| tick.to_string());
        let (uptime, asked_at) = (uptime.as_secs(), asked_at.as_millis());
        let generation = self.generation.0;
        format!("{HEADING}\nboot {boot}\nprocess {pid} {uptime} {asked_at} {tick}\ngeneration {generation}\n")
    }

    /// Reads what [`Self::text`] wrote; `None`: in another start of the host, so that nothing of it holds.
    ///
    /// # Errors
    /// [`KnownTorTextError`]: the first line that is wrong.
    pub fn read(text: &str, boot: &str) -> Result<Option<Self>, KnownTorTextError> {
        let mut lines = (1..).zip(text.lines()).filter(|(_, text)| !text.starts_with('#'));
        let mut next = |form: &'static str| {
            let (line, text) = lines.next().unwrap_or((text.lines().count() + 1, ""));
            let wrong = KnownTorTextError::Line { line, form };
            let (word, rest) = text.split_once(' ').ok_or(wrong)?;
            (form.split(' ').next() == Some(word)).then_some((rest, wrong)).ok_or(wrong)
        };
        let (of, _) = next("boot ID")?;
        let (process, wrong) = next("process PID SECONDS MILLISECONDS TICK")?;
        let words: Vec<&str> = process.split(' ').collect();
        let &[pid, uptime, asked_at, tick] = words.as_slice() else { return Err(wrong) };
        let number = |text: &str| text.parse::<u64>().map_err(|_| wrong);
        let seen = Sighting {
            pid: pid.parse().map_err(|_| wrong)?,
            started_tick: if tick == "-" { None } else { Some(number(tick)?) },
            uptime: Duration::from_secs(number(uptime)?),
            asked_at: Duration::from_millis(number(asked_at)?),
        };
        let (generation, wrong) = next("generation NUMBER")?;
        let generation = TorGeneration(generation.parse().map_err(|_| wrong)?);
        if let Some((line, _)) = lines.next() {
            return Err(KnownTorTextError::More { line });
        }
        Ok((of == boot).then_some(Self { seen, generation }))
    }
}

fn ticks_of(span: Duration, ticks_a_second: u64) -> u64 {
    let ticks = span.as_millis() * u128::from(ticks_a_second) / 1_000;
    u64::try_from(ticks).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Seconds.
    fn seen(pid: u32, started_tick: Option<u64>, uptime: u64, asked_at: u64) -> Sighting {
        let seconds = Duration::from_secs;
        Sighting { pid, started_tick, uptime: seconds(uptime), asked_at: seconds(asked_at) }
    }

    /// As control port and file tell it: seconds, and milliseconds since the host's boot.
    fn sighting(pid: u32, started_tick: Option<u64>, uptime: u64, asked_at: u64) -> Sighting {
        let uptime = Duration::from_secs(uptime);
        Sighting { pid, started_tick, uptime, asked_at: Duration::from_millis(asked_at) }
    }

    fn first(seen: Sighting) -> KnownTor {
        KnownTor::meet(None, seen, 100)
    }

    #[test]
    fn a_process_is_recognised_where_that_is_sure() {
        for (one, later, is_same) in [
            // The kernel's word.
            (seen(7, Some(100), 50, 1_000), seen(7, Some(100), 60, 1_010), true),
            (seen(7, Some(100), 50, 1_000), seen(7, Some(101), 60, 1_010), false),
            (seen(7, Some(100), 50, 1_000), seen(8, Some(100), 60, 1_010), false),
            // A tor that was stopped for long has lost count; the kernel has not.
            (seen(7, Some(100), 50, 1_000), seen(7, Some(100), 50, 5_000), true),
            // Tor's own word, where one or both of the kernel's are missing.
            (seen(7, None, 50, 1_000), seen(7, None, 60, 1_010), true),
            (seen(7, None, 50, 1_000), seen(7, None, 57, 1_010), true),
            (seen(7, None, 50, 1_000), seen(7, None, 63, 1_010), true),
            (seen(7, Some(100), 50, 1_000), seen(7, None, 59, 1_010), true),
            (seen(7, None, 50, 1_000), seen(7, Some(100), 59, 1_010), true),
            (seen(7, None, 50, 1_000), seen(8, None, 60, 1_010), false),
            (seen(7, None, 50, 1_000), seen(7, None, 56, 1_010), false),
            (seen(7, None, 50, 1_000), seen(7, None, 2, 1_010), false),
            // Another container's, which is older.
            (seen(1, None, 50, 1_000), seen(1, None, 64, 1_010), false),
            (seen(1, None, 50, 1_000), seen(1, None, 5_000, 1_010), false),
            // Restarted right after the first answer, and asked much later.
            (seen(7, None, 50, 1_000), seen(7, None, 4_999, 6_000), false),
            (seen(7, None, 4, 1_000), seen(7, None, 5_000, 6_000), false),
            // That one may have been restarted: it was too young.
            (seen(7, None, 3, 1_000), seen(7, None, 5_003, 6_000), false),
            (seen(7, None, 4, 1_000), seen(7, None, 5_004, 6_000), true),
            // It was stopped, and has lost count.
            (seen(7, None, 50, 1_000), seen(7, None, 50, 5_000), false),
        ] {
            let known = first(one);
            let next = KnownTor::meet(Some(&known), later, 100);
            let case = format!("{one:?} {later:?}");
            assert_eq!(next.generation() == known.generation(), is_same, "{case}");
            assert!(next.generation() >= known.generation(), "{case}");
        }
    }

    #[test]
    fn the_number_of_a_new_process_grows() {
        let known = first(seen(7, Some(100_000), 50, 1_050));
        assert_eq!(known.generation(), TorGeneration(100_000));
        // Without the kernel's word: that of the question.
        assert_eq!(first(seen(7, None, 50, 1_050)).generation(), TorGeneration(105_000));
        let mut last = known;
        for (next, expected) in [
            (seen(7, Some(106_500), 0, 1_065), 106_500),
            // Of the same tick: the number grows all the same.
            (seen(9, Some(106_500), 0, 1_065), 106_501),
            // The clock was set back, or what is kept is another's.
            (seen(9, None, 400, 100), 106_502),
            (seen(9, None, 1, 1_090), 109_000),
        ] {
            last = KnownTor::meet(Some(&last), next, 100);
            assert_eq!(last.generation(), TorGeneration(expected), "{next:?}");
        }
    }

    #[test]
    fn the_kernel_s_word_is_kept_while_it_is_hidden() {
        let known = first(seen(7, Some(100_000), 50, 1_050));
        let hidden = KnownTor::meet(Some(&known), seen(7, None, 60, 1_060), 100);
        // Tor was stopped meanwhile.
        let shown = KnownTor::meet(Some(&hidden), seen(7, Some(100_000), 60, 5_000), 100);
        assert_eq!(shown.generation(), known.generation());
    }

    #[test]
    fn over_one_connection_it_is_the_same_process_and_kept_as_it_is_now() {
        // Seen first, then over the same connection, whether that is worth keeping, and then by the next daemon: whether it is
        // the same.
        for (one, again, is_news, later, is_same) in [
            // It was too young to be recognised.
            (seen(7, None, 1, 1_000), seen(7, None, 6, 1_005), true, seen(7, None, 106, 1_105), true),
            (seen(7, None, 1, 1_000), seen(7, None, 3, 1_002), false, seen(7, None, 106, 1_105), false),
            // It does not count through leaps of the clock.
            (seen(7, None, 50, 1_000), seen(7, None, 52, 5_000), true, seen(7, None, 62, 5_010), true),
            (seen(7, None, 50, 1_000), seen(7, None, 99, 1_030), true, seen(7, None, 109, 1_040), true),
            // Whole seconds.
            (seen(7, None, 50, 1_000), seen(7, None, 79, 1_030), false, seen(7, None, 89, 1_040), true),
            // The kernel's word came later.
            (
                seen(7, None, 50, 1_000),
                seen(7, Some(95_000), 80, 1_030),
                true,
                seen(7, Some(95_000), 80, 5_000),
                true,
            ),
            // That is no answer of this connection's tor.
            (seen(7, None, 1, 1_000), seen(8, None, 6, 1_005), false, seen(8, None, 106, 1_105), false),
        ] {
            let case = format!("{one:?} {again:?} {later:?}");
            let mut known = first(one);
            assert_eq!(known.meet_again(again), is_news, "{case}");
            assert_eq!(known.generation(), first(one).generation(), "{case}");
            let next = KnownTor::meet(Some(&known), later, 100);
            assert_eq!(next.generation() == known.generation(), is_same, "{case}");
        }
    }

    #[test]
    fn what_is_no_record_is_named() {
        const BOOT: &str = "boot ID";
        const PROCESS: &str = "process PID SECONDS MILLISECONDS TICK";
        const GENERATION: &str = "generation NUMBER";
        let line = |line, form| Err(KnownTorTextError::Line { line, form });
        for (text, expected) in [
            ("", line(1, BOOT)),
            ("# a comment\n", line(2, BOOT)),
            ("boot\n", line(1, BOOT)),
            ("process 1 2 3 4\n", line(1, BOOT)),
            ("boot b\n", line(2, PROCESS)),
            ("boot b\nprocess 1 2 3\n", line(2, PROCESS)),
            ("boot b\nprocess 1 2 3 -4\n", line(2, PROCESS)),
            ("boot b\nprocess 4294967296 2 3 -\n", line(2, PROCESS)),
            ("boot b\nprocess 1 2 3 4 5\n", line(2, PROCESS)),
            ("boot b\nprocess 1 2 3 -\n", line(3, GENERATION)),
            ("boot b\nprocess 1 2 3 -\ngeneration x\n", line(3, GENERATION)),
            (
                "boot b\nprocess 1 2 3 -\ngeneration 5\ngeneration 6\n",
                Err(KnownTorTextError::More { line: 4 }),
            ),
            ("boot another\nprocess 1 2 3 -\ngeneration 5\n", Ok(None)),
        ] {
            assert_eq!(KnownTor::read(text, "b"), expected, "{text:?}");
        }
    }

    proptest! {
        /// For all processes: what one daemon keeps, the next reads, and none after another start of the host.
        #[test]
        fn what_is_kept_is_read_again(
            pid: u32, started_tick: Option<u64>, uptime: u64, asked_at: u64
        ) {
            let known = first(sighting(pid, started_tick, uptime, asked_at));
            let text = known.text("a");
            prop_assert_eq!(KnownTor::read(&text, "a"), Ok(Some(known)));
            prop_assert_eq!(KnownTor::read(&text, "b"), Ok(None));
        }

        /// For all that a control port and a file may say: the number of a process never falls.
        #[test]
        fn no_number_is_too_large(
            // One pid in two, or nothing else would be compared.
            before in (0..2_u32, any::<Option<u64>>(), any::<u64>(), any::<u64>()),
            after in (0..2_u32, any::<Option<u64>>(), any::<u64>(), any::<u64>()),
            generation: u64,
            ticks_a_second in 1..1_000_000_u64,
        ) {
            let of = |(pid, tick, uptime, asked_at)| sighting(pid, tick, uptime, asked_at);
            let known = KnownTor { seen: of(before), generation: TorGeneration(generation) };
            let next = KnownTor::meet(Some(&known), of(after), ticks_a_second);
            prop_assert!(next.generation() >= known.generation());
            let mut again = known;
            again.meet_again(of(after));
            prop_assert_eq!(again.generation(), known.generation());
        }

        /// For all moments and delays: daemons that ask the same process after one another, and may not look into `/proc`,
        /// give it one number, and another process that takes its pid gets a higher one, however soon it is asked.
        #[test]
        fn one_process_has_one_number(
            start in 0..10_000_000_u64,
            asked in proptest::collection::vec((5_000..1_000_000_u64, 0..1_000_u64), 1..8),
            gone_for in 0..100_000_u64,
        ) {
            let mut now = start;
            let mut known: Option<KnownTor> = None;
            // Milliseconds. Tor is late with a second by less than one.
            let ask = |start: u64, now: u64, late: u64| Sighting {
                pid: 1,
                started_tick: None,
                uptime: Duration::from_secs((now - start).saturating_sub(late) / 1_000),
                asked_at: Duration::from_millis(now),
            };
            for (pause, late) in asked {
                now += pause;
                let next = KnownTor::meet(known.as_ref(), ask(start, now, late), 100);
                prop_assert!(known.is_none_or(|known| known.generation() == next.generation()));
                known = Some(next);
            }
            let again = now + 1;
            let other = KnownTor::meet(known.as_ref(), ask(again, again + gone_for, 0), 100);
            prop_assert!(known.is_some_and(|known| known.generation() < other.generation()));
        }
    }
}
