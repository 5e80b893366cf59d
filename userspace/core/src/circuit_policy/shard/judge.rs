//! The limits of one circuit, judged without being acted on.
//!
//! Each function looks at a record in which the stream in question is already counted as an attempt, and changes nothing.
//! `acts` is asked of each limit that speaks against the stream; one that does not act is passed over.

use std::{num::NonZeroU8, time::Duration};

use super::{
    super::{Lane, record::Record, settings::CircuitSettings, window::span},
    Load,
};
use crate::refusal::Refusal;

/// What speaks against a stream, or how it is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) word: Refusal,
    /// When to try again, where the finding knows.
    pub(super) retry_after: Duration,
}

/// The hint where only the end of another connection helps.
const SOON: Duration = Duration::from_secs(1);

/// A new connection of a circuit that is not banned.
pub(super) fn connection(
    record: &Record,
    settings: &CircuitSettings,
    load: Load,
    mut acts: impl FnMut(Refusal) -> bool,
) -> Finding {
    let now = record.touched;
    if record.open >= settings.max_concurrent_per_circuit.get() && acts(Refusal::TooManyOpen) {
        return Finding { word: Refusal::TooManyOpen, retry_after: SOON };
    }
    // A VIP is judged by its open connections and its token's rate alone.
    if record.is_vip(now) {
        return served();
    }
    if let Some(limit) = limit(settings.connections_per_10_seconds)
        && record.recent_connections.sum() >= limit
        && acts(Refusal::ConnectionRate)
    {
        // The next attempt counts as well, so it needs room for itself.
        let free = record.recent_connections.below_from((limit - 1).max(1), now);
        return Finding { word: Refusal::ConnectionRate, retry_after: span(free.saturating_sub(now)) };
    }
    if let Some(limit) = limit(settings.max_per_circuit_per_minute)
        && record.minute.sum() >= limit
        && acts(Refusal::CircuitRate)
    {
        let free = record.minute.below_from(limit, now);
        return Finding { word: Refusal::CircuitRate, retry_after: span(free.saturating_sub(now)) };
    }
    puzzle(record, settings, load).filter(|finding| acts(finding.word)).unwrap_or_else(served)
}

/// A request of a circuit that is neither banned nor has a token.
pub(super) fn request(
    record: &Record,
    settings: &CircuitSettings,
    load: Load,
    mut acts: impl FnMut(Refusal) -> bool,
) -> Finding {
    let now = record.touched;
    let count = record.recent_requests.sum();
    let over = |limit: u32, word| {
        let free = record.recent_requests.below_from((limit - 1).max(1), now);
        (count >= limit).then(|| Finding { word, retry_after: span(free.saturating_sub(now)) })
    };
    if record.is_vip(now) {
        let limit = settings.vip_per_10_seconds.get();
        let over = over(u32::from(limit), Refusal::VipRate);
        return over.filter(|finding| acts(finding.word)).unwrap_or_else(served);
    }
    let Some(rates) = settings.requests else { return served() };
    let denied = over(u32::from(rates.deny.get()), Refusal::RequestRate).filter(|finding| acts(finding.word));
    let asked = || puzzle(record, settings, load);
    denied
        .or_else(|| asked().filter(|finding| acts(finding.word)))
        .or_else(|| over(u32::from(rates.slow.get()), Refusal::SlowLane).filter(|finding| acts(finding.word)))
        .unwrap_or_else(served)
}

/// The queue of a circuit's streams.
pub(super) fn lane(record: &Record) -> Lane {
    if record.is_vip(record.touched) {
        Lane::Vip
    } else if record.violations > 0 {
        Lane::Suspect
    } else {
        Lane::Normal
    }
}

fn puzzle(record: &Record, settings: &CircuitSettings, load: Load) -> Option<Finding> {
    let is_asked = load.ratio >= settings.pow_activation_threshold && !record.has_paid(record.touched);
    let word = if settings.asks_puzzles { Refusal::PuzzleRequired } else { Refusal::PuzzleImpossible };
    is_asked.then_some(Finding { word, retry_after: settings.queue_timeout })
}

const fn served() -> Finding {
    Finding { word: Refusal::Served, retry_after: Duration::ZERO }
}

fn limit(limit: Option<NonZeroU8>) -> Option<u32> {
    limit.map(|limit| u32::from(limit.get()))
}
