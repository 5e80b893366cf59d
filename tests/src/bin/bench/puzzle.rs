//! The puzzle: hashes a second of a client, answers a second of the server.

use std::{
    collections::BTreeMap, fmt::Write as _, hint::black_box, num::NonZeroUsize, thread, time::Instant,
};

use anyhow::{Context, Result, ensure};
use tunica_pow::{
    Answer, Challenge, Difficulty, Id, Nonce, Redeemed, Secrets, Terms, UnixSeconds, VerifyError, solve,
};

use crate::{Pains, policy::spent, series::Series, tell};

/// Rounds that count; one more comes first and warms up.
const ROUNDS: usize = 7;
/// Hashes of one search, and answers of one kind, in a round.
const HASHES: u64 = 2_000_000;
const HASHES_SHORT: u64 = 100_000;
const ANSWERS: u16 = 20_000;
const ANSWERS_SHORT: u16 = 500;
/// When answers come, and when challenges expire.
const NOW: UnixSeconds = UnixSeconds(1_000);
const LIFE_SECONDS: u64 = 60;
const CIRCUIT: &[u8] = b"generation 1, circuit 666";
const OTHER_CIRCUIT: &[u8] = b"generation 1, circuit 667";

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Task {
    /// A client searches with one thread.
    Search,
    /// A client searches with a thread for each processor.
    SearchWithAll,
    /// The server makes a challenge.
    Issue,
    /// The server takes a solution and remembers that it did.
    Redeem,
    /// The server finds that the nonce solves nothing.
    Unsolved,
    /// The server finds that the challenge is another circuit's.
    Foreign,
}

impl Task {
    const ALL: [Self; 6] =
        [Self::Search, Self::SearchWithAll, Self::Issue, Self::Redeem, Self::Unsolved, Self::Foreign];

    const fn title(self) -> &'static str {
        match self {
            Self::Search => "hashes of a search, one thread",
            Self::SearchWithAll => "hashes of a search, a thread for each processor",
            Self::Issue => "challenges made",
            Self::Redeem => "solutions verified and redeemed",
            Self::Unsolved => "answers refused: the nonce solves nothing",
            Self::Foreign => "answers refused: another circuit's challenge",
        }
    }
}

/// The figures, a second.
#[derive(Debug, Default)]
pub(crate) struct Puzzle(BTreeMap<Task, Series>);

/// Challenges with their solutions, made before anything is measured.
struct Solutions {
    secrets: Secrets,
    solved: Vec<(Challenge, Nonce)>,
    unsolved: Vec<(Challenge, Nonce)>,
}

impl Solutions {
    fn make(count: u16) -> Result<Self> {
        let secrets = Secrets::new(&[7; 32]);
        let one = NonZeroUsize::MIN;
        let (mut solved, mut unsolved) = (Vec::new(), Vec::new());
        for number in 0..count {
            let challenge = secrets.issue(&terms(number), CIRCUIT);
            let nonce =
                solve(&challenge, Nonce(0), one, &|_| false).nonce.context("a search found nothing")?;
            // The same challenge with a nonce that is wrong: searched too, since one in 256 would do.
            let wrong = (0..).map(Nonce).find(|nonce| !challenge.is_solved_by(*nonce));
            unsolved.push((challenge, wrong.context("every nonce solves")?));
            solved.push((challenge, nonce));
        }
        Ok(Self { secrets, solved, unsolved })
    }

    /// How many of a task's kind a second.
    fn run(&self, task: Task, hashes: u64) -> Result<f64> {
        let one = NonZeroUsize::MIN;
        match task {
            Task::Search => search(one, hashes),
            Task::SearchWithAll => search(thread::available_parallelism().unwrap_or(one), hashes),
            Task::Issue => {
                let begun = spent()?;
                for number in 0..u16::try_from(self.solved.len())? {
                    black_box(self.secrets.issue(&terms(number), CIRCUIT));
                }
                Ok(self.solved.len() as f64 / (spent()? - begun).as_secs_f64())
            }
            Task::Redeem => {
                let capacity = NonZeroUsize::new(self.solved.len()).context("no solution")?;
                let mut redeemed = Redeemed::new(capacity);
                self.answer(&self.solved, CIRCUIT, |answered| {
                    redeemed.redeem(answered?, NOW)?;
                    Ok(())
                })
            }
            Task::Unsolved => self.answer(&self.unsolved, CIRCUIT, |answered| {
                ensure!(matches!(answered, Err(VerifyError::Unsolved { .. })), "a wrong nonce was taken");
                Ok(())
            }),
            Task::Foreign => self.answer(&self.solved, OTHER_CIRCUIT, |answered| {
                ensure!(answered == Err(VerifyError::Foreign), "another circuit's challenge was taken");
                Ok(())
            }),
        }
    }

    fn answer(
        &self,
        answers: &[(Challenge, Nonce)],
        circuit: &[u8],
        mut see: impl FnMut(Result<tunica_pow::Solved, VerifyError>) -> Result<()>,
    ) -> Result<f64> {
        let begun = spent()?;
        for (challenge, nonce) in answers {
            let answer = Answer { challenge, nonce: *nonce, circuit };
            see(self.secrets.verify(&answer, Difficulty::MIN, NOW))?;
        }
        Ok(answers.len() as f64 / (spent()? - begun).as_secs_f64())
    }
}

fn terms(number: u16) -> Terms {
    let mut id = [0; 16];
    if let Some(low) = id.last_chunk_mut() {
        *low = number.to_be_bytes();
    }
    Terms { difficulty: Difficulty::MIN, expires: NOW.after(LIFE_SECONDS), id: Id(id) }
}

/// Hashes a second of wall time, since threads share no clock of their own. The search goes on behind solutions.
fn search(threads: NonZeroUsize, hashes: u64) -> Result<f64> {
    let hardest = Terms { difficulty: Difficulty::MAX, ..terms(0) };
    let challenge = Secrets::new(&[8; 32]).issue(&hardest, CIRCUIT);
    let (mut next, mut attempts) = (Nonce(0), 0);
    let begun = Instant::now();
    while attempts < hashes {
        let left = hashes - attempts;
        let search = solve(&challenge, next, threads, &|tried| tried >= left);
        ensure!(search.attempts > 0, "a search tried nothing");
        attempts += search.attempts;
        next = Nonce(next.0.wrapping_add(search.attempts));
    }
    Ok(attempts as f64 / begun.elapsed().as_secs_f64())
}

/// Measures all tasks in turn, round by round.
///
/// # Errors
/// When the puzzle decides otherwise than it must.
pub(crate) fn measure(pains: Pains) -> Result<Puzzle> {
    let (hashes, answers) = match pains {
        Pains::Whole => (HASHES, ANSWERS),
        Pains::Short => (HASHES_SHORT, ANSWERS_SHORT),
    };
    tell("solving puzzles to verify");
    let solutions = Solutions::make(answers)?;
    let mut puzzle = Puzzle::default();
    let rounds = pains.rounds(ROUNDS);
    for round in 0..=rounds {
        tell(&format!("puzzles, round {round} of {rounds}"));
        for task in Task::ALL {
            let rate = solutions.run(task, hashes)?;
            if round > 0 {
                puzzle.0.entry(task).or_default().push(rate);
            }
        }
    }
    Ok(puzzle)
}

impl Puzzle {
    /// A Markdown table of everything.
    pub(crate) fn table(&self) -> String {
        let mut text = "| what | min | median | max |\n|---|--:|--:|--:|\n".to_owned();
        for task in Task::ALL {
            let series = self.0.get(&task).cloned().unwrap_or_default();
            let thousands = |rate: f64| rate / 1e3;
            let _ = writeln!(
                text,
                "| {} | {:.0} | {:.0} | {:.0} |",
                task.title(),
                thousands(series.least()),
                thousands(series.median()),
                thousands(series.most()),
            );
        }
        text
    }
}
