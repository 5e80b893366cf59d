//! When a program that has ended is started again: at once, unless it ends again and again.
//!
//! The bound is the one of our units (`StartLimitBurst=5` in `StartLimitIntervalSec=60`, systemd.unit(5)); but where systemd
//! gives up, the next start comes as soon as the bound allows: nobody may be there who would start it.

use std::time::Duration;

use crate::time::Monotime;

/// Most starts in any [`INTERVAL`].
pub const BURST: usize = 5;
/// See [`BURST`].
pub const INTERVAL: Duration = Duration::from_secs(60);

/// The latest starts of a program.
#[derive(Clone, Copy, Debug, Default)]
pub struct Restarts {
    /// When each was, in the order of a ring.
    starts: [Option<Monotime>; BURST],
    /// The place of the earliest.
    earliest: usize,
}

impl Restarts {
    /// It was started now.
    pub fn started(&mut self, now: Monotime) {
        if let Some(place) = self.starts.get_mut(self.earliest) {
            *place = Some(now);
        }
        self.earliest = (self.earliest + 1) % BURST;
    }

    /// How long to wait before the next start.
    pub fn wait(&self, now: Monotime) -> Duration {
        let earliest = self.starts.get(self.earliest).copied().flatten();
        earliest.map_or(Duration::ZERO, |earliest| earliest.after(INTERVAL).since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Monotime {
        Monotime(seconds * 1_000_000_000)
    }

    #[test]
    fn five_in_a_minute_are_at_once_and_the_sixth_waits() {
        let mut restarts = Restarts::default();
        for second in [100, 100, 101, 130, 159] {
            assert_eq!(restarts.wait(at(second)), Duration::ZERO);
            restarts.started(at(second));
        }
        assert_eq!(restarts.wait(at(159)), Duration::from_secs(1));
        assert_eq!(restarts.wait(at(160)), Duration::ZERO);
        restarts.started(at(160));
        // The second one of the first second.
        assert_eq!(restarts.wait(at(160)), Duration::ZERO);
        restarts.started(at(160));
        assert_eq!(restarts.wait(at(160)), Duration::from_secs(1));
        // Whoever has run for long is started at once, as often as that goes.
        assert_eq!(restarts.wait(at(1_000)), Duration::ZERO);
    }
}
