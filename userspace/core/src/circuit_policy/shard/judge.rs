//! The limits of one circuit, judged without being acted on.
//!
//! Each function looks at a record in which the stream in question is already counted as an attempt, and changes nothing.
//! `acts` is asked of each limit that speaks against the stream; one that does not act is passed over.

use std::{num::NonZeroU8, time::Duration};

use super::{
    super::{
        Lane,
        budget::{Budget, Debt},
        record::{PROMOTED, Record},
        settings::{CircuitSettings, Ratio, SOON},
        window::span,
    },
    Load, Usage,
};
use crate::refusal::Refusal;

/// What speaks against a stream, or how it is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) word: Refusal,
    /// When to try again, where the finding knows.
    pub(super) retry_after: Duration,
}

/// A new connection of a circuit that is not banned.
pub(super) fn connection(
    record: &Record,
    settings: &CircuitSettings,
    load: Load,
    share: Ratio,
    mut acts: impl FnMut(Refusal) -> bool,
) -> Finding {
    let now = record.touched;
    if record.open >= settings.max_concurrent_per_circuit.get()
        && (record.ticket(now).is_none() || record.open >= settings.max_concurrent_with_token().get())
        && acts(Refusal::TooManyOpen)
    {
        return Finding { word: Refusal::TooManyOpen, retry_after: SOON };
    }
    if let Some(spent) = used_up(record, settings, &mut acts) {
        return spent;
    }
    // Besides, a VIP is judged by its open connections and its token's rate alone.
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
    puzzle(record, settings, load)
        .filter(|finding| acts(finding.word))
        .or_else(|| connection_over_share(record, settings, share, acts))
        .unwrap_or_else(served)
}

/// A request of a circuit that is neither banned nor has a token.
pub(super) fn request(
    record: &Record,
    settings: &CircuitSettings,
    load: Load,
    share: Ratio,
    mut acts: impl FnMut(Refusal) -> bool,
) -> Finding {
    let now = record.touched;
    if let Some(spent) = used_up(record, settings, &mut acts) {
        return spent;
    }
    let count = record.recent_requests.sum();
    let over = |limit: u32, word| {
        (count >= limit).then(|| {
            let free = record.recent_requests.below_from((limit - 1).max(1), now);
            Finding { word, retry_after: span(free.saturating_sub(now)) }
        })
    };
    if record.is_vip(now) {
        let limit = settings.vip_rate().get();
        let over = over(u32::from(limit), Refusal::VipRate);
        return over.filter(|finding| acts(finding.word)).unwrap_or_else(served);
    }
    let Some(rates) = settings.requests else { return served() };
    let deny = u32::from(rates.deny.get());
    let denied = over(deny, Refusal::RequestRate).filter(|finding| acts(finding.word));
    let asked = || puzzle(record, settings, load);
    let over_share = || over(left(deny, record, share, 2)?, Refusal::UnderLoad);
    denied
        .or_else(|| asked().filter(|finding| acts(finding.word)))
        // What is over all of the limit was asked for already.
        .or_else(|| over_share().filter(|_| count < deny && acts(Refusal::RequestRate)))
        .or_else(|| over(u32::from(rates.slow.get()), Refusal::SlowLane).filter(|finding| acts(finding.word)))
        .unwrap_or_else(served)
}

/// What a circuit has used up, where that acts.
pub(super) fn used_up(
    record: &Record,
    settings: &CircuitSettings,
    acts: impl FnOnce(Refusal) -> bool,
) -> Option<Finding> {
    spent(record, settings).filter(|finding| acts(finding.word))
}

/// What a circuit has used up. Nothing is held against one that an operator promoted.
fn spent(record: &Record, settings: &CircuitSettings) -> Option<Finding> {
    if record.has(PROMOTED) {
        return None;
    }
    let spent = |debt: Debt, budget: Option<Budget>, word| {
        let wait = Duration::from_secs(debt.seconds_left().into());
        budget.filter(|_| debt.is_spent()).map(|_| Finding { word, retry_after: wait })
    };
    spent(record.bytes, settings.bytes, Refusal::ByteBudget)
        .or_else(|| spent(record.cpu, settings.cpu, Refusal::CpuBudget))
}

/// What a circuit's open connections go on using beyond twice a budget. New ones were refused long before.
pub(super) fn usage(record: &Record, usage: Usage, settings: &CircuitSettings) -> Option<Refusal> {
    if record.has(PROMOTED) {
        return None;
    }
    let over = |debt: Debt, budget: Option<Budget>| budget.is_some() && debt.is_spent_twice();
    let moves = usage.bytes_in > 0 || usage.bytes_out > 0;
    if moves && over(record.bytes, settings.bytes) {
        Some(Refusal::ByteBudget)
    } else if usage.cpu_nanoseconds > 0 && over(record.cpu, settings.cpu) {
        Some(Refusal::CpuBudget)
    } else {
        None
    }
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

/// A new connection that the circuit's own limits allow, and their share under load does not. Rates are judged as their limits
/// are: by the event that makes the number. So none is below two, or nothing at all would be served. The share of a limit acts
/// where the limit does; what is over all of it was asked for already.
fn connection_over_share(
    record: &Record,
    settings: &CircuitSettings,
    share: Ratio,
    mut acts: impl FnMut(Refusal) -> bool,
) -> Option<Finding> {
    let now = record.touched;
    let refused = |retry_after| Some(Finding { word: Refusal::UnderLoad, retry_after });
    let over = |count: u32, limit: u32, least| {
        left(limit, record, share, least).filter(|most| (*most..limit).contains(&count))
    };
    let open = settings.max_concurrent_per_circuit.get();
    if over(record.open.into(), open.into(), 1).is_some() && acts(Refusal::TooManyOpen) {
        return refused(SOON);
    }
    if let Some(limit) = limit(settings.connections_per_10_seconds)
        && let Some(most) = over(record.recent_connections.sum(), limit, 2)
        && acts(Refusal::ConnectionRate)
    {
        let free = record.recent_connections.below_from((most - 1).max(1), now);
        return refused(span(free.saturating_sub(now)));
    }
    if let Some(limit) = limit(settings.max_per_circuit_per_minute)
        && let Some(most) = over(record.minute.sum(), limit, 1)
        && acts(Refusal::CircuitRate)
    {
        return refused(span(record.minute.below_from(most, now).saturating_sub(now)));
    }
    None
}

/// What is left of a limit, and no less than `least`; `None` where all of it is.
fn left(limit: u32, record: &Record, share: Ratio, least: u32) -> Option<u32> {
    let is_less = share < Ratio::ALL && !record.has_paid(record.touched);
    is_less.then(|| share.of(limit).max(least))
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
