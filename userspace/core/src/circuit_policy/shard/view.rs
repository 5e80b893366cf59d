//! What an operator sees of circuits.

use std::time::Duration;

use super::{
    super::{
        Lane,
        record::{BY_OPERATOR, MARKED, Record, SLOW},
        statistics::ShardCounts,
        window::{begin, tick},
    },
    CircuitShard, Usage, judge, number,
};
use crate::{circuit_orders::ToldBan, id::CircuitId, refusal::Refusal, shadow::WouldRefuse, time::Monotime};

/// What is known of one circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CircuitFacts {
    /// Its lane.
    pub lane: Lane,
    /// How long it stays banned; `None` where it is not.
    pub banned_for: Option<Duration>,
    /// Whether an operator's word began the ban that is in force; otherwise its own violations did.
    pub is_banned_by_operator: bool,
    /// The word of its last stream or request that was refused for another reason than a ban, where that is remembered.
    pub last_refusal: Option<Refusal>,
    /// The rung of its last ban; 0 without one.
    pub rung: u8,
    /// Violations that count.
    pub violations: u8,
    /// Whether it solved a puzzle, has a token in force or was promoted.
    pub has_paid: bool,
    /// Whether it has a token in force.
    pub has_token: bool,
    /// Open connections, without those in the tarpit.
    pub open: u16,
    /// Connections admitted in the last 60 s.
    pub connections_per_minute: u32,
    /// Attempts to connect in the last 10 s.
    pub connections_per_10_seconds: u32,
    /// Requests in the last 10 s.
    pub requests_per_10_seconds: u32,
    /// Since it was first seen here.
    pub age: Duration,
    /// Past what it was, with connections, when it was last examined: [`Refusal::CircuitAged`] or [`Refusal::CircuitSlow`].
    pub marked: Option<Refusal>,
    /// Everything it used so far, and its average latency.
    pub usage: Usage,
    /// All its requests.
    pub requests: u32,
}

impl CircuitShard {
    /// What is known of a circuit.
    pub fn look(&self, circuit: CircuitId, now: Monotime) -> Option<CircuitFacts> {
        let mut record =
            *self.table.get(number(circuit)).filter(|_| circuit.generation() == self.generation)?;
        record.turn(tick(now), self.settings.reputation_life);
        let (aged, slow) = (Refusal::CircuitAged, Refusal::CircuitSlow);
        Some(CircuitFacts {
            lane: judge::lane(&record),
            banned_for: record.is_banned(record.touched).then(|| begin(record.banned_until).since(now)),
            is_banned_by_operator: record.has(BY_OPERATOR) && record.is_banned(record.touched),
            last_refusal: record.last_refusal(),
            rung: record.rung,
            violations: record.violations,
            has_paid: record.has_paid(record.touched),
            has_token: record.ticket(record.touched).is_some(),
            open: record.open,
            connections_per_minute: record.minute.sum(),
            connections_per_10_seconds: record.recent_connections.sum(),
            requests_per_10_seconds: record.recent_requests.sum(),
            age: now.since(begin(record.first_seen)),
            marked: record.has(MARKED).then_some(if record.has(SLOW) { slow } else { aged }),
            usage: Usage {
                bytes_in: record.bytes_in.get(),
                bytes_out: record.bytes_out.get(),
                cpu_nanoseconds: record.cpu_nanoseconds.get(),
                latency: (record.latency_microseconds > 0)
                    .then(|| Duration::from_micros(record.latency_microseconds.into())),
            },
            requests: record.requests,
        })
    }

    /// Every ban and when it ends, in no order: what gate, HAProxy and tor should have in force.
    pub fn bans(&self) -> impl Iterator<Item = (CircuitId, ToldBan)> {
        let ban = |record: &Record| ToldBan { until: begin(record.banned_until), rung: record.rung };
        self.table.bans().filter_map(move |record| Some((self.id(record.number)?, ban(record))))
    }

    /// What limits that are shadows would have refused here, see [`crate::circuit_policy::CircuitSettings::shadow`].
    pub fn would_refuse(&self) -> impl Iterator<Item = (Refusal, WouldRefuse)> {
        self.shadows.counts()
    }

    /// How many circuits there are.
    pub fn counts(&self, now: Monotime) -> ShardCounts {
        ShardCounts {
            tracked: self.table.len(),
            banned: self.table.banned(),
            vips: self.table.vips(tick(now)),
            marked: self.marked,
        }
    }
}
