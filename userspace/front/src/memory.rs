//! Memory that connections have left behind.
//!
//! glibc's allocator keeps what was freed unless it lies at the very end of a heap, where long-lived things lie as well. So each
//! crowd, or each second in which more connections than ever stood open, would stay in the process for good.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use crate::sys;

/// How long a crowd's memory may stay. Looking for it takes milliseconds after a large one, on the thread that carries no
/// streams (docs/adr/0012-front.md).
const EVERY: Duration = Duration::from_secs(10);

/// Gives back what is free, again and again. Never returns.
pub async fn give_back() {
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        sys::give_back_free_pages();
    }
}
