//! `pow solve`, `pow verify`, `pow bench`: puzzles by hand; needs no daemon.

use std::{
    num::{NonZeroU32, NonZeroUsize},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use clap::{Args, Subcommand};
use serde::Serialize;
use tunica_api::SCHEMA;
use tunica_core::time::WallTime;
use tunica_pow::{Challenge, Difficulty, Id, Nonce, Secrets, Terms, UnixSeconds, solve};

use super::length::Span;
use crate::{
    Failure, Global,
    exit::Exit,
    note, render,
    render::text::{Align, count, table},
    say, say_json,
};

/// See [`super::Verb::Pow`].
#[derive(Debug, Subcommand)]
pub(crate) enum Pow {
    /// Find the nonce that solves a challenge
    Solve(Solve),
    /// Say whether a nonce solves a challenge; only the server can say more
    Verify(Verify),
    /// Measure how fast this machine solves challenges
    Bench(Bench),
}

/// See [`Pow::Solve`].
#[derive(Debug, Args)]
pub(crate) struct Solve {
    /// 64 characters, as the server gave them
    challenge: Challenge,
    /// Threads, 1 to 1024 [default: one for each processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: Option<u32>,
    /// How long to search: 30s, 5m, 2h or 1d
    #[arg(long, value_name = "SPAN", default_value = "forever")]
    timeout: Span,
}

/// See [`Pow::Verify`].
#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// 64 characters, as the server gave them
    challenge: Challenge,
    /// 16 hexadecimal digits
    nonce: Nonce,
    /// The least bits it must ask for, 8 to 24 [default: any]
    #[arg(long, value_name = "N")]
    difficulty: Option<Difficulty>,
}

/// See [`Pow::Bench`].
#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// How long to measure, in all, 1 to 3600
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
}

impl Pow {
    /// Does it.
    pub(super) fn run(self, global: &Global) -> Result<Exit, Failure> {
        match self {
            Self::Solve(verb) => verb.run(global),
            Self::Verify(verb) => verb.run(global),
            Self::Bench(verb) => verb.run(global),
        }
    }
}

/// By this host's clock; before 1970 nothing has expired.
fn now() -> UnixSeconds {
    UnixSeconds(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

fn expiry(challenge: &Challenge) -> WallTime {
    WallTime(challenge.expires().0)
}

/// What `solve --json` prints.
#[derive(Serialize)]
struct Solution {
    schema: u32,
    kind: &'static str,
    nonce: String,
    attempts: u64,
    seconds: f64,
}

impl Solve {
    fn run(&self, global: &Global) -> Result<Exit, Failure> {
        let Self { challenge, threads, timeout } = self;
        let was_expired = challenge.is_expired(now());
        if was_expired {
            say_expired(challenge);
        }
        let threads =
            threads.and_then(|number| NonZeroUsize::new(number as usize)).unwrap_or_else(processors);
        let started = Instant::now();
        let limit = match timeout {
            Span::Seconds(seconds) => Duration::from_secs(*seconds),
            Span::Forever => Duration::MAX,
        };
        let search = solve(challenge, Nonce(0), threads, &|_| started.elapsed() >= limit);
        let Some(nonce) = search.nonce else {
            return Err(Failure::new(
                Exit::Failed,
                format!(
                    "no nonce in {} s after {} hashes: the challenge is not solved; {} bits take {} in the mean, so give \
                     --timeout more time",
                    limit.as_secs(),
                    count(search.attempts),
                    challenge.difficulty(),
                    count(challenge.difficulty().mean_attempts())
                ),
            ));
        };
        if !was_expired && challenge.is_expired(now()) {
            say_expired(challenge);
        }
        if global.json {
            say_json(&Solution {
                schema: SCHEMA,
                kind: "pow_solve",
                nonce: nonce.to_string(),
                attempts: search.attempts,
                seconds: started.elapsed().as_secs_f64(),
            })?;
        } else {
            say(&format!("{nonce}\n"))?;
        }
        Ok(Exit::Done)
    }
}

fn say_expired(challenge: &Challenge) {
    note(&format!(
        "the challenge expired at {} by this host's clock: the server will refuse the nonce; ask for a new challenge",
        expiry(challenge)
    ));
}

/// Why a nonce is not valid, as far as can be told without the server's secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Objection {
    Expired,
    TooEasy,
    Unsolved,
}

/// What `verify --json` prints.
#[derive(Serialize)]
struct Verdict {
    schema: u32,
    kind: &'static str,
    valid: bool,
    difficulty: u8,
    zero_bits: u32,
    expires: u64,
    problems: Vec<Objection>,
    unchecked: [&'static str; 3],
}

impl Verify {
    fn run(&self, global: &Global) -> Result<Exit, Failure> {
        let Self { challenge, nonce, difficulty } = self;
        let asked = challenge.difficulty();
        let zero_bits = challenge.zero_bits(*nonce);
        let mut problems = Vec::new();
        if challenge.is_expired(now()) {
            problems.push(Objection::Expired);
        }
        let least = difficulty.unwrap_or(Difficulty::MIN);
        if asked < least {
            problems.push(Objection::TooEasy);
        }
        if !challenge.is_solved_by(*nonce) {
            problems.push(Objection::Unsolved);
        }
        let exit = if problems.is_empty() { Exit::Done } else { Exit::Refused };
        if global.json {
            say_json(&Verdict {
                schema: SCHEMA,
                kind: "pow_verify",
                valid: problems.is_empty(),
                difficulty: asked.bits(),
                zero_bits,
                expires: challenge.expires().0,
                problems,
                unchecked: ["mac", "circuit", "replay"],
            })?;
            return Ok(exit);
        }
        let mut text = String::new();
        if problems.is_empty() {
            text.push_str(&format!(
                "valid: the hash begins with {}, and {asked} are asked; the challenge expires at {}\n",
                render::plural(zero_bits as usize, "zero bit"),
                expiry(challenge)
            ));
        }
        for problem in problems {
            text.push_str(&match problem {
                Objection::Expired => format!(
                    "not valid: the challenge expired at {} by this host's clock; ask the server for a new one\n",
                    expiry(challenge)
                ),
                Objection::TooEasy => format!(
                    "not valid: byte 1 of the challenge asks for {asked} bits, and --difficulty for {least}; ask the server for a \
                     new one\n"
                ),
                Objection::Unsolved => format!(
                    "not valid: the hash begins with {}, and {asked} are asked; find another nonce with `tunica pow solve`\n",
                    render::plural(zero_bits as usize, "zero bit"),
                ),
            });
        }
        text.push_str("Not checked: MAC, circuit and replay, which only the server can check.\n");
        say(&text)?;
        Ok(exit)
    }
}

/// What `bench --json` prints.
#[derive(Serialize)]
struct Measured {
    schema: u32,
    kind: &'static str,
    rates: Vec<Rate>,
    solves: Vec<Solves>,
}

#[derive(Serialize)]
struct Rate {
    threads: NonZeroUsize,
    hashes_per_second: u64,
}

#[derive(Serialize)]
struct Solves {
    bits: u8,
    threads: NonZeroUsize,
    mean_seconds: f64,
    solves: u32,
    /// Whether there were too few of them to take their mean.
    from_rate: bool,
}

/// The levels of load.
const LEVELS: [Difficulty; 4] =
    [Difficulty::LIGHT, Difficulty::MODERATE, Difficulty::HEAVY, Difficulty::UNDER_ATTACK];
/// Times of solutions scatter as much as they are long: a mean of this many is off by a third, of fewer by more.
const ENOUGH_SOLVES: u32 = 10;

impl Bench {
    fn run(&self, global: &Global) -> Result<Exit, Failure> {
        let mut numbers = vec![NonZeroUsize::MIN, processors()];
        numbers.dedup();
        let cells = numbers.len().saturating_mul(LEVELS.len());
        let span = Duration::from_secs(self.seconds.into()).div_f64(cells as f64);

        let (mut rates, mut solves) = (Vec::new(), Vec::new());
        for threads in numbers {
            let runs = LEVELS.map(|difficulty| (difficulty, Run::of(difficulty, threads, span)));
            // The hardest searches are hardly ever interrupted by a new one, so they show the rate.
            let rate = runs.last().map_or(0.0, |(_, run)| run.attempts as f64 / run.seconds);
            rates.push(Rate { threads, hashes_per_second: rate as u64 });
            solves.extend(runs.iter().map(|(difficulty, run)| {
                let counted = NonZeroU32::new(run.solves).filter(|solves| solves.get() >= ENOUGH_SOLVES);
                Solves {
                    bits: difficulty.bits(),
                    threads,
                    mean_seconds: match counted {
                        Some(solves) => run.seconds / f64::from(solves.get()),
                        None => difficulty.mean_attempts() as f64 / rate,
                    },
                    solves: run.solves,
                    from_rate: counted.is_none(),
                }
            }));
        }
        let measured = Measured { schema: SCHEMA, kind: "pow_bench", rates, solves };
        if global.json {
            say_json(&measured)?
        } else {
            say(&measured.text())?
        }
        Ok(Exit::Done)
    }
}

/// One difficulty, solved again and again.
struct Run {
    attempts: u64,
    solves: u32,
    seconds: f64,
}

impl Run {
    fn of(difficulty: Difficulty, threads: NonZeroUsize, span: Duration) -> Self {
        let secrets = Secrets::new(&[0; 32]);
        let started = Instant::now();
        let (mut attempts, mut solves) = (0u64, 0u32);
        while started.elapsed() < span {
            let mut id = [0; 16];
            for (to, from) in id.iter_mut().zip(solves.to_be_bytes()) {
                *to = from;
            }
            let challenge = secrets.issue(&Terms { difficulty, expires: UnixSeconds::LAST, id: Id(id) }, b"");
            let search = solve(&challenge, Nonce(0), threads, &|_| started.elapsed() >= span);
            attempts = attempts.saturating_add(search.attempts);
            solves = solves.saturating_add(u32::from(search.nonce.is_some()));
        }
        Self { attempts, solves, seconds: started.elapsed().as_secs_f64() }
    }
}

impl Measured {
    fn text(&self) -> String {
        let rates = self.rates.iter().map(|rate| {
            format!(
                "{}: {} hashes/s\n",
                render::plural(rate.threads.get(), "thread"),
                count(rate.hashes_per_second)
            )
        });
        let rows: Vec<[String; 4]> = self
            .solves
            .iter()
            .map(|row| {
                let from = if row.from_rate {
                    "hash rate".to_owned()
                } else {
                    format!("{} solves", count(row.solves.into()))
                };
                [row.bits.to_string(), row.threads.to_string(), time(row.mean_seconds), from]
            })
            .collect();
        let columns = [
            ("BITS", Align::Right),
            ("THREADS", Align::Right),
            ("MEAN TIME", Align::Right),
            ("FROM", Align::Left),
        ];
        format!("{}\n{}", rates.collect::<String>(), table(columns, &rows))
    }
}

/// Seconds, or below one of them milliseconds.
fn time(seconds: f64) -> String {
    if seconds < 0.01 {
        format!("{:.2} ms", seconds * 1_000.0)
    } else if seconds < 1.0 {
        format!("{:.0} ms", seconds * 1_000.0)
    } else {
        format!("{seconds:.1} s")
    }
}

/// How many threads run at once here; one, where the system does not tell.
fn processors() -> NonZeroUsize {
    thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_well() {
        for (seconds, text) in [(0.000_25, "0.25 ms"), (0.0512, "51 ms"), (1.04, "1.0 s"), (15.0, "15.0 s")] {
            assert_eq!(time(seconds), text);
        }
    }

    #[test]
    fn a_measurement_reads_well() {
        let rate = |threads, hashes_per_second| Rate {
            threads: NonZeroUsize::new(threads).unwrap(),
            hashes_per_second,
        };
        let solves = |bits, threads, mean_seconds, solves| Solves {
            bits,
            threads: NonZeroUsize::new(threads).unwrap(),
            mean_seconds,
            solves,
            from_rate: solves < ENOUGH_SOLVES,
        };
        let measured = Measured {
            schema: SCHEMA,
            kind: "pow_bench",
            rates: vec![rate(1, 1_100_000), rate(16, 15_432_100)],
            solves: vec![solves(8, 1, 0.000_233, 4_292), solves(24, 16, 1.087, 1)],
        };
        assert_eq!(
            measured.text(),
            "1 thread: 1 100 000 hashes/s\n\
             16 threads: 15 432 100 hashes/s\n\
             \n\
             BITS  THREADS  MEAN TIME  FROM\n\
             \x20  8        1    0.23 ms  4 292 solves\n\
             \x20 24       16      1.1 s  hash rate\n"
        );
    }
}
