//! Legitimate visitors: each with a circuit of its own, a click now and then, and little patience.

use std::{
    cell::RefCell,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use super::web::{self, Door, Miss};
use crate::flood::Random;

/// Visitors at a time.
pub(super) const COUNT: u32 = 20;
/// Shortest and longest pause between the end of one page load and the next, milliseconds.
pub(super) const THINK_MILLISECONDS: (u32, u32) = (3_000, 5_000);
/// Pages that one visitor loads; then another one comes, on a circuit of its own.
pub(super) const CLICKS: u32 = 6;
/// What belongs to a page.
pub(super) const RESOURCES: usize = 5;
/// Streams over which one load gets them, as a browser does.
pub(super) const STREAMS: usize = 3;
/// How long a visitor waits for a page with everything that belongs to it.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// What the visitors met with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loads {
    /// From the click to the last byte, milliseconds, rising: one entry for each success.
    pub milliseconds: Vec<u32>,
    /// Loads that took too long.
    pub late: u64,
    /// Loads of which a part was answered with another status than 200.
    pub refused: u64,
    /// Loads of which a part broke off.
    pub broken: u64,
    /// Loads of which tor opened a stream not at all.
    pub unreached: u64,
}

impl Loads {
    /// Loads that failed.
    pub const fn failures(&self) -> u64 {
        self.late + self.refused + self.broken + self.unreached
    }

    /// Every load.
    pub const fn attempts(&self) -> u64 {
        self.milliseconds.len() as u64 + self.failures()
    }

    /// Part of the loads that succeeded, 0 to 1; `None` if nobody clicked.
    pub fn success(&self) -> Option<f64> {
        (self.attempts() > 0).then(|| self.milliseconds.len() as f64 / self.attempts() as f64)
    }

    /// The time, in milliseconds, that `percent` of the successes did not exceed (nearest rank).
    pub fn percentile(&self, percent: usize) -> Option<u32> {
        let rank = (self.milliseconds.len() * percent).div_ceil(100);
        self.milliseconds.get(rank.saturating_sub(1)).copied()
    }

    fn add(&mut self, outcome: Result<Duration, Option<Miss>>) {
        match outcome {
            Ok(time) => self.milliseconds.push(u32::try_from(time.as_millis()).unwrap_or(u32::MAX)),
            Err(None) => self.late += 1,
            Err(Some(Miss::Refused)) => self.refused += 1,
            Err(Some(Miss::Broken)) => self.broken += 1,
            Err(Some(Miss::Unreached)) => self.unreached += 1,
        }
    }
}

/// Lets visitors click until `is_over`; loads that have begun are counted, whatever becomes of them. `name` keeps the circuits of
/// one act apart from those of others, `so_far` is told of each load.
///
/// # Errors
/// If there is no runtime.
pub(super) fn browse(
    door: &Door,
    name: &str,
    is_over: &AtomicBool,
    so_far: impl Fn(&Loads),
) -> Result<Loads> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("a runtime for visitors")?;
    let loads = RefCell::new(Loads::default());
    runtime.block_on(async {
        let mut visitors = Vec::new();
        for number in 0..COUNT {
            let mut random = Random(u64::from(number) + 1);
            let (loads, so_far) = (&loads, &so_far);
            visitors.push(async move {
                // They do not all come at once.
                sleep(Duration::from_millis(random.below(THINK_MILLISECONDS.1))).await;
                let mut circuit = 0;
                let mut clicks = 0;
                while !is_over.load(Ordering::Relaxed) {
                    if clicks == CLICKS {
                        (circuit, clicks) = (circuit + 1, 0);
                    }
                    clicks += 1;
                    let outcome = load(door, &format!("{name}-{number}-{circuit}")).await;
                    if outcome.is_err() {
                        // As "New circuit for this site" in a browser's menu.
                        clicks = CLICKS;
                    }
                    loads.borrow_mut().add(outcome);
                    so_far(&loads.borrow());
                    let (shortest, longest) = THINK_MILLISECONDS;
                    let think = u64::from(shortest) + random.below(longest - shortest);
                    let next = Instant::now() + Duration::from_millis(think);
                    while Instant::now() < next && !is_over.load(Ordering::Relaxed) {
                        sleep(Duration::from_millis(50)).await;
                    }
                }
            });
        }
        all(visitors).await;
    });
    let mut loads = loads.into_inner();
    loads.milliseconds.sort_unstable();
    Ok(loads)
}

/// Waits for all of them, on this thread.
async fn all(each: Vec<impl Future<Output = ()>>) {
    let mut each: Vec<_> = each.into_iter().map(Box::pin).collect();
    std::future::poll_fn(|context| {
        each.retain_mut(|one| one.as_mut().poll(context).is_pending());
        if each.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

/// One page with everything that belongs to it. `None` in the error: it took too long.
async fn load(door: &Door, user: &str) -> Result<Duration, Option<Miss>> {
    let begun = Instant::now();
    match timeout(PATIENCE, fetch(door, user)).await {
        Ok(Ok(())) => Ok(begun.elapsed()),
        Ok(Err(miss)) => Err(Some(miss)),
        Err(_) => Err(None),
    }
}

async fn fetch(door: &Door, user: &str) -> Result<(), Miss> {
    let mut first = web::open(door, user).await?;
    let is_kept = web::get(&mut first, door, "/").await?;
    let mut kept = is_kept.then_some(first);
    let mut streams = JoinSet::new();
    for number in 0..STREAMS {
        let (door, user, mut stream) = (door.clone(), user.to_owned(), kept.take());
        streams.spawn(async move {
            for resource in (number..RESOURCES).step_by(STREAMS) {
                let mut open = match stream.take() {
                    Some(open) => open,
                    None => web::open(&door, &user).await?,
                };
                let is_kept = web::get(&mut open, &door, &format!("/resource/{resource}")).await?;
                stream = is_kept.then_some(open);
            }
            Ok(())
        });
    }
    while let Some(fetched) = streams.join_next().await {
        // No task of these is aborted, and a panic ends the demo.
        fetched.unwrap_or(Err(Miss::Broken))?;
    }
    Ok(())
}
