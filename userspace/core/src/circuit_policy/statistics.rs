//! The line that tells how the circuits are.

use std::{fmt, iter::Sum};

use super::{Admission, CircuitSettings};
use crate::time::Monotime;

/// Numbers of one shard, or of several together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardCounts {
    /// Circuits remembered.
    pub tracked: u32,
    /// Circuits banned.
    pub banned: u32,
    /// Circuits that go past the queue, by token or by the operator's word; none of them is banned.
    pub vips: u32,
    /// Circuits past their age or latency that carry connections, as the last examination found.
    pub marked: u32,
}

/// What the line says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statistics {
    /// Connections being served.
    pub active: u32,
    /// Most of them.
    pub most_active: u32,
    /// New connections in the last second.
    pub rate: u32,
    /// Most of them.
    pub most_rate: u32,
    /// All shards together.
    pub circuits: ShardCounts,
}

impl Statistics {
    /// The numbers at `now`.
    pub fn of(
        settings: &CircuitSettings,
        admission: &mut Admission,
        shards: impl IntoIterator<Item = ShardCounts>,
        now: Monotime,
    ) -> Self {
        Self {
            active: admission.served(),
            most_active: settings.max_concurrent_connections.get(),
            rate: admission.rate(now),
            most_rate: settings.max_connections_per_second.get(),
            circuits: shards.into_iter().sum(),
        }
    }
}

impl Sum for ShardCounts {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), |sum, next| Self {
            tracked: sum.tracked.saturating_add(next.tracked),
            banned: sum.banned.saturating_add(next.banned),
            vips: sum.vips.saturating_add(next.vips),
            marked: sum.marked.saturating_add(next.marked),
        })
    }
}

impl fmt::Display for Statistics {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { active, most_active, rate, most_rate, circuits } = self;
        write!(out, "Active: {active}/{most_active} | Rate: {rate}/{most_rate}/s | ")?;
        write!(out, "Circuits: {} tracked, {} banned", circuits.tracked, circuits.banned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_exact() {
        let shard = |tracked, banned| ShardCounts { tracked, banned, vips: 5, marked: 9 };
        let line = Statistics {
            active: 42,
            most_active: 200,
            rate: 12,
            most_rate: 50,
            circuits: [shard(100, 1), shard(56, 2)].into_iter().sum(),
        };
        assert_eq!(line.to_string(), "Active: 42/200 | Rate: 12/50/s | Circuits: 156 tracked, 3 banned");
    }
}
