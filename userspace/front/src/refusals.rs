//! The log of what is refused: a line for each word, at most once a second.

use std::{future::pending, time::Duration};

use tokio::time::{MissedTickBehavior, interval};
use tunica_core::refusal_log::RefusalLog;

use crate::circuits::Circuits;

const EVERY: Duration = Duration::from_secs(1);

/// Logs what is refused from now on; nothing where there is no log. Never returns.
pub async fn tell(circuits: &Circuits, log: Option<&mut RefusalLog>) {
    let Some(log) = log else { return pending().await };
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        say(circuits, log);
    }
}

/// Logs what was refused since it was logged last.
pub fn say(circuits: &Circuits, log: &mut RefusalLog) {
    for (refusal, count) in log.advance(circuits.refused_so_far()) {
        tracing::info!(
            message_id = "streams_refused",
            refusal = refusal.label(),
            count,
            "refused: {}",
            refusal.sentence()
        );
    }
}
