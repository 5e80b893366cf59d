//! Test binaries in lanes: the system's tests mostly wait, for tor and for time limits, so several at a time leave each
//! enough of two processors.

use std::{
    collections::VecDeque,
    path::Path,
    sync::{Mutex, PoisonError},
    thread,
};

use anyhow::{Result, bail};

use super::{
    Sum,
    binary::{self, Binary, Outcome},
};

/// Runs the binaries, `lanes` at a time, in their order; shows what each said once it ends, and all closing lines at the end.
/// A failure ends nothing but its own binary.
///
/// # Errors
/// Names the binaries that failed.
pub(super) fn run(root: &Path, binaries: Vec<Binary>, lanes: usize) -> Result<Sum> {
    let logs = binary::logs(root, "lanes")?;
    let waiting = Mutex::new(VecDeque::from(binaries));
    let ended = Mutex::new(Vec::new());
    let lane = || -> Result<()> {
        loop {
            let Some(next) = held(&waiting).pop_front() else { return Ok(()) };
            let process = next.start(&[], &logs)?;
            println!("{} begins ({})", next.name, process.log.display());
            let outcome = process.finish()?;
            // One binary's words stay together.
            let mut ended = held(&ended);
            println!("\n{}:\n{}", next.name, outcome.said);
            ended.push((next.name, outcome));
        }
    };
    thread::scope(|scope| {
        let running: Vec<_> = (0..lanes).map(|_| scope.spawn(lane)).collect();
        let results: Vec<Result<()>> = running
            .into_iter()
            .map(|lane| lane.join().unwrap_or_else(|_| bail!("a lane of the tests panicked")))
            .collect();
        results.into_iter().collect::<Result<()>>()
    })?;
    sum(&ended.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn held<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Shows all closing lines, and adds them up.
fn sum(ended: &[(String, Outcome)]) -> Result<Sum> {
    let mut sum = Sum::default();
    println!("\nThe runner's closing lines:");
    for (name, outcome) in ended {
        let closing = outcome.said.lines().find(|line| line.starts_with("test result: "));
        println!("  {name}: {}", closing.unwrap_or("it ended without one"));
        sum = sum.and(outcome.sum);
    }
    let failed: Vec<&str> =
        ended.iter().filter(|(_, outcome)| !outcome.is_good).map(|(name, _)| name.as_str()).collect();
    if !failed.is_empty() {
        bail!("{} ({} passed, {} failed)", failed.join(", "), sum.passed, sum.failed);
    }
    Ok(sum)
}
