//! Attackers, who speak through real tor as everybody else: floods over few circuits, and circuits as fast as tor makes them.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tokio::{
    task::{LocalSet, spawn_local},
    time::{MissedTickBehavior, interval, sleep, timeout},
};

use super::web::{self, Door, Miss};

/// Circuits over which pages are asked for as fast as [`FLOOD_PER_SECOND`] says, each by one SOCKS user.
pub(super) const FLOODERS: usize = 4;
/// Streams a second of each of them: six times what the profile `web` allows a circuit within 10 s, and those that are still
/// open count beside.
pub(super) const FLOOD_PER_SECOND: u32 = 60;
/// Streams that a flooder has under way at most.
const MOST_UNDER_WAY: usize = 400;
/// Attackers who take another circuit for each page, as fast as tor makes them.
pub(super) const OPENERS: usize = 6;
/// How long an attacker waits for anything.
const PATIENCE: Duration = Duration::from_secs(15);

/// What the attackers did, and what came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Assault {
    /// Streams that tor was asked for.
    pub asked: u64,
    /// Those that tor opened.
    pub opened: u64,
    /// Pages that were served.
    pub served: u64,
    /// Answers that refused.
    pub refused: u64,
    /// Streams that broke off without an answer.
    pub broken: u64,
    /// SOCKS users that were used, each a circuit of its own; tor makes another one for a user whose circuit was closed.
    pub users: u64,
    /// From the first to the last of it.
    pub time: Duration,
}

/// Attacks until `is_over`; what is under way then is broken off. `name` keeps the circuits of one act apart.
///
/// # Errors
/// If there is no runtime.
pub(super) fn attack(doors: &[Door], name: &str, is_over: &AtomicBool) -> Result<Assault> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("a runtime for attackers")?;
    let sum = Rc::new(RefCell::new(Assault::default()));
    let all = LocalSet::new();
    let begun = Instant::now();
    for number in 0..FLOODERS + OPENERS {
        let Some(door) = doors.get(number % doors.len().max(1)).cloned() else { continue };
        let (sum, name) = (Rc::clone(&sum), format!("{name}-{number}"));
        if number < FLOODERS {
            all.spawn_local(flood(door, name, sum));
        } else {
            all.spawn_local(open_circuits(door, name, sum));
        }
    }
    all.block_on(&runtime, async {
        while !is_over.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(50)).await;
        }
    });
    drop(all);
    Ok(Assault { time: begun.elapsed(), ..sum.take() })
}

/// One circuit, many streams.
async fn flood(door: Door, user: String, sum: Rc<RefCell<Assault>>) {
    sum.borrow_mut().users += 1;
    let under_way = Rc::new(Cell::new(0));
    let mut ticks = interval(Duration::from_secs(1) / FLOOD_PER_SECOND);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        if under_way.get() >= MOST_UNDER_WAY {
            continue;
        }
        under_way.set(under_way.get() + 1);
        let (door, user, sum, under_way) =
            (door.clone(), user.clone(), Rc::clone(&sum), Rc::clone(&under_way));
        spawn_local(async move {
            ask(&door, &user, &sum).await;
            under_way.set(under_way.get() - 1);
        });
    }
}

/// One stream on each circuit, and on to the next one.
async fn open_circuits(door: Door, name: String, sum: Rc<RefCell<Assault>>) {
    for number in 0_u64.. {
        sum.borrow_mut().users += 1;
        ask(&door, &format!("{name}-{number}"), &sum).await;
    }
}

/// Asks for the page that costs.
async fn ask(door: &Door, user: &str, sum: &RefCell<Assault>) {
    sum.borrow_mut().asked += 1;
    let Ok(Ok(mut stream)) = timeout(PATIENCE, web::open(door, user)).await else { return };
    sum.borrow_mut().opened += 1;
    let outcome = timeout(PATIENCE, web::get(&mut stream, door, "/")).await;
    let mut sum = sum.borrow_mut();
    match outcome {
        Ok(Ok(_)) => sum.served += 1,
        Ok(Err(Miss::Refused)) => sum.refused += 1,
        Ok(Err(Miss::Broken | Miss::Unreached)) => sum.broken += 1,
        Err(_) => {}
    }
}
