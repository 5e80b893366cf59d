//! What the operator set about circuits, and the three profiles.

use std::{
    num::{NonZeroU8, NonZeroU16, NonZeroU32, NonZeroU64},
    ops::RangeInclusive,
    time::Duration,
};

use super::Budget;
use crate::{
    ban_ladder::Ladder,
    false_positives::relaxed,
    refusal::{Class, Refusal},
    shadow::Words,
};

/// The hint where only the end of another connection helps.
pub(super) const SOON: Duration = Duration::from_secs(1);

/// Everything of the configuration that decisions about circuits depend on. The configuration crate checks the ranges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CircuitSettings {
    /// New connections in any second, all circuits together.
    pub max_connections_per_second: NonZeroU32,
    /// Connections served at once, all circuits together.
    pub max_concurrent_connections: NonZeroU32,
    /// Connections accepted at once: those served, those that wait, and those that were given a puzzle.
    pub maxconn: NonZeroU32,
    /// How long a connection may wait; the front keeps this time, here it is the hint of `Retry-After`.
    pub queue_timeout: Duration,
    /// Connections that may be held in the tarpit; the oldest is reset to make room.
    pub most_tarpits: NonZeroU32,
    /// New connections of a circuit in any 60 s; `None`: off. See [`Self::MAX_PER_CIRCUIT`].
    pub max_per_circuit_per_minute: Option<NonZeroU8>,
    /// Open connections of a circuit.
    pub max_concurrent_per_circuit: NonZeroU16,
    /// The connection of a circuit within 10 s that is an offence, and all that follow; `None`: off.
    pub connections_per_10_seconds: Option<NonZeroU8>,
    /// Rates of HTTP requests of a circuit; `None` where connections carry none.
    pub requests: Option<RequestRates>,
    /// Bytes that a circuit may move, both directions together; `None`: off.
    pub bytes: Option<Budget>,
    /// CPU time of the front that it may cost, nanoseconds; `None`: off.
    pub cpu: Option<Budget>,
    /// The request of a VIP within 10 s that is denied, and all that follow, as far as [`Self::vip_rate`] does not allow more.
    pub vip_per_10_seconds: NonZeroU16,
    /// How many circuits may use one token at once.
    pub circuits_per_token: NonZeroU8,
    /// How long a token is good after it was handed out.
    pub token_life: Duration,
    /// Whether limits of token holders are relaxed by one step, see [`crate::false_positives`].
    pub relaxes_tokens: bool,
    /// Whether `tunica bypass` is on: limits refuse nobody, bans refuse nobody, and nothing is held against a circuit. What guards
    /// memory and places stays.
    pub is_bypassed: bool,
    /// Violations of a circuit before it is banned.
    pub ban_threshold: NonZeroU8,
    /// Length of the first ban, and the least of a later one.
    pub ban_duration: Duration,
    /// Lengths of later bans, from its second rung on.
    pub ladder: Ladder,
    /// The load from which on circuits that have not paid must solve a puzzle.
    pub pow_activation_threshold: Ratio,
    /// Leading zero bits, until the load level says otherwise.
    pub pow_difficulty: u8,
    /// Whether clients can be asked for a puzzle: always in HTTP, in TCP where `pow_tcp` says so.
    pub asks_puzzles: bool,
    /// Limits that refuse nobody and only count whom they would have refused.
    pub shadow: Words,
    /// The part of global rate and concurrency that is kept for circuits that paid. Where no puzzle is asked nobody
    /// can pay, and nothing is kept.
    pub paid_share: Ratio,
    /// Whether only GET, HEAD and the challenge's POST are allowed; the front applies it.
    pub restricts_methods: bool,
    /// How often circuits are examined.
    pub health_interval: Duration,
    /// A circuit past it is closed once it carries no connection.
    pub max_circuit_age: Duration,
    /// Likewise, of the average latency.
    pub max_circuit_latency: Duration,
    /// The age at which a circuit is cut even with connections; `None`: never.
    pub rotate_hard_after: Option<Duration>,
    /// Circuits that are remembered, all shards together.
    pub table_size: NonZeroU32,
    /// How long after its last use a circuit is remembered, and a violation after the last one.
    pub reputation_life: Duration,
}

/// Requests of a circuit within 10 s. The request that makes the number is judged by it, as HAProxy's `ge` does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestRates {
    /// From this one on they go to the slow lane.
    pub slow: NonZeroU16,
    /// From this one on they are denied.
    pub deny: NonZeroU16,
}

/// A part of a whole, in ten-thousandths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ratio(u16);

impl Ratio {
    const WHOLE: u16 = 10_000;
    /// Half.
    pub const HALF: Self = Self(Self::WHOLE / 2);
    /// Three quarters.
    pub const THREE_QUARTERS: Self = Self(Self::WHOLE / 4 * 3);
    /// A tenth.
    pub const TENTH: Self = Self(Self::WHOLE / 10);
    /// A twentieth.
    pub const TWENTIETH: Self = Self(Self::WHOLE / 20);
    /// The least part that is something.
    pub const LEAST: Self = Self(1);
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// All of it.
    pub const ALL: Self = Self(Self::WHOLE);

    /// The ratio nearest to `part`; `None` outside 0.0 to 1.0.
    pub fn new(part: f64) -> Option<Self> {
        // The cast is exact: the value lies between 0 and 10 000.
        (0.0..=1.0).contains(&part).then(|| Self((part * f64::from(Self::WHOLE)).round() as u16))
    }

    /// How much of `whole` `part` is, rounded down, and no more than all of it. Something is all of nothing.
    pub fn share(part: u128, whole: u128) -> Self {
        match part.saturating_mul(u128::from(Self::WHOLE)).checked_div(whole) {
            // The cast is exact: no more than 10 000.
            Some(share) => Self(share.min(u128::from(Self::WHOLE)) as u16),
            None if part == 0 => Self::NONE,
            None => Self::ALL,
        }
    }

    /// Less by `other`, and no less than nothing.
    pub const fn less(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// Ten-thousandths of the whole: 0 to 10 000.
    pub const fn ten_thousandths(self) -> u16 {
        self.0
    }

    /// This part of `whole`, rounded down.
    pub fn of(self, whole: u32) -> u32 {
        // No more than `whole`, because the ratio is no more than one.
        (u64::from(whole) * u64::from(self.0) / u64::from(Self::WHOLE)) as u32
    }
}

impl CircuitSettings {
    /// Allowed `max_per_circuit_per_minute` besides 0 (off), and `connections_per_10_seconds` likewise. The first
    /// connection cannot be an offence, and a sub-bucket is one byte; whoever allows more in a minute has no use for
    /// this limit beside the one over 10 s.
    pub const MAX_PER_CIRCUIT: RangeInclusive<u8> = 2..=255;
    /// Allowed rates of requests: a sub-bucket is two bytes.
    pub const REQUESTS: RangeInclusive<u16> = 2..=60_000;
    /// Allowed `table_size`.
    pub const TABLE_SIZE: RangeInclusive<u32> = 1_024..=4_194_304;
    /// Allowed `circuits_per_token`.
    pub const CIRCUITS_PER_TOKEN: RangeInclusive<u8> = 1..=super::MOST_CIRCUITS_PER_TOKEN;
    /// Allowed `pow_difficulty`, leading zero bits.
    pub const POW_DIFFICULTY: RangeInclusive<u8> = 8..=24;

    /// The request of a VIP within 10 s that is denied, and all that follow: [`Self::vip_per_10_seconds`], and no less than what
    /// any other circuit may ask for. Otherwise who paid would be worse off than who did not.
    pub fn vip_rate(&self) -> NonZeroU16 {
        let limit = self.vip_per_10_seconds;
        self.requests.map_or(limit, |rates| limit.max(rates.deny))
    }

    /// The request of a token within 10 s, or its connection, that is denied.
    pub fn token_per_10_seconds(&self) -> NonZeroU16 {
        let limit = self.vip_rate();
        if self.relaxes_tokens { relaxed(limit) } else { limit }
    }

    /// The limits that refuse nobody now.
    pub fn shadows(&self) -> Words {
        if self.is_bypassed { Words::of_all_limits() } else { self.shadow }
    }

    /// Open connections of a circuit, if it has a token.
    pub fn max_concurrent_with_token(&self) -> NonZeroU16 {
        let limit = self.max_concurrent_per_circuit;
        if self.relaxes_tokens { relaxed(limit) } else { limit }
    }

    /// When to come again after a word of which nothing that is counted tells: for want of room once those that wait have had
    /// their turn or gone, and otherwise soon.
    pub const fn retry_after(&self, word: Refusal) -> Duration {
        match word.class() {
            Class::Global => self.queue_timeout,
            Class::Pass | Class::Ban | Class::Circuit | Class::Puzzle => SOON,
            Class::Protocol | Class::Slow | Class::Backend | Class::Ours => SOON,
        }
    }

    /// TCP: the circuit table. Plain clients cannot answer a puzzle.
    pub fn messenger(ladder: Ladder) -> Self {
        Self {
            max_connections_per_second: number32(50),
            max_concurrent_connections: number32(200),
            maxconn: number32(500),
            queue_timeout: Duration::from_secs(5),
            most_tarpits: number32(1_000),
            max_per_circuit_per_minute: NonZeroU8::new(10),
            max_concurrent_per_circuit: number16(15),
            connections_per_10_seconds: None,
            requests: None,
            bytes: budget(1 << 30),
            cpu: budget(12_000_000_000),
            vip_per_10_seconds: number16(200),
            circuits_per_token: number8(3),
            token_life: Duration::from_secs(30 * 60),
            relaxes_tokens: false,
            is_bypassed: false,
            ban_threshold: number8(5),
            ban_duration: Duration::from_secs(300),
            ladder,
            pow_activation_threshold: Ratio::THREE_QUARTERS,
            pow_difficulty: 16,
            asks_puzzles: false,
            shadow: Words::default(),
            paid_share: Ratio::HALF,
            restricts_methods: false,
            health_interval: Duration::from_secs(120),
            max_circuit_age: Duration::from_secs(600),
            max_circuit_latency: Duration::from_secs(10),
            rotate_hard_after: None,
            table_size: number32(100_000),
            reputation_life: Duration::from_secs(30 * 60),
        }
    }

    /// HTTP behind a challenge: the ingress table as it stands.
    pub fn gated(ladder: Ladder) -> Self {
        Self {
            connections_per_10_seconds: NonZeroU8::new(10),
            requests: Some(RequestRates { slow: number16(20), deny: number16(50) }),
            asks_puzzles: true,
            restricts_methods: true,
            ..Self::messenger(ladder)
        }
    }

    /// Open HTTP: one circuit carries all tabs of a browser.
    ///
    /// A browser opens 6 to 8 connections a click and a click every 4 s makes 24 in 10 s, which the ingress table's 10
    /// would refuse; four times as many are an offence.
    pub fn web(ladder: Ladder) -> Self {
        Self {
            max_per_circuit_per_minute: None,
            max_concurrent_per_circuit: number16(32),
            connections_per_10_seconds: NonZeroU8::new(100),
            requests: Some(RequestRates { slow: number16(200), deny: number16(600) }),
            restricts_methods: false,
            ..Self::gated(ladder)
        }
    }

    /// The part of `whole` that circuits which have not paid may use.
    pub(super) fn unpaid_part(&self, whole: NonZeroU32) -> u32 {
        let kept = if self.asks_puzzles { self.paid_share.of(whole.get()) } else { 0 };
        whole.get() - kept
    }
}

fn budget(a_minute: u64) -> Option<Budget> {
    NonZeroU64::new(a_minute).map(Budget::a_minute)
}

// Zero would be read as one; no caller gives it.
fn number8(number: u8) -> NonZeroU8 {
    NonZeroU8::new(number).unwrap_or(NonZeroU8::MIN)
}

fn number16(number: u16) -> NonZeroU16 {
    NonZeroU16::new(number).unwrap_or(NonZeroU16::MIN)
}

fn number32(number: u32) -> NonZeroU32 {
    NonZeroU32::new(number).unwrap_or(NonZeroU32::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ladder() -> Ladder {
        Ladder::new(vec![Duration::from_secs(300)], Duration::from_secs(86_400)).unwrap()
    }

    #[test]
    fn profiles_differ_as_documented() {
        // Per minute, open, connections and requests (slow, deny) in 10 s, puzzles, methods.
        let row = |settings: CircuitSettings| {
            (
                settings.max_per_circuit_per_minute.map_or(0, NonZeroU8::get),
                settings.max_concurrent_per_circuit.get(),
                settings.connections_per_10_seconds.map_or(0, NonZeroU8::get),
                settings.requests.map(|rates| (rates.slow.get(), rates.deny.get())),
                settings.asks_puzzles,
                settings.restricts_methods,
            )
        };
        assert_eq!(row(CircuitSettings::messenger(ladder())), (10, 15, 0, None, false, false));
        assert_eq!(row(CircuitSettings::gated(ladder())), (10, 15, 10, Some((20, 50)), true, true));
        assert_eq!(row(CircuitSettings::web(ladder())), (0, 32, 100, Some((200, 600)), true, false));
    }

    #[test]
    fn who_paid_may_ask_for_no_less_than_who_did_not() {
        let tokens = |settings: CircuitSettings| {
            let relaxed = CircuitSettings { relaxes_tokens: true, ..settings.clone() };
            [settings.vip_rate(), settings.token_per_10_seconds(), relaxed.token_per_10_seconds()]
                .map(NonZeroU16::get)
        };
        assert_eq!(tokens(CircuitSettings::messenger(ladder())), [200, 200, 300]);
        assert_eq!(tokens(CircuitSettings::gated(ladder())), [200, 200, 300]);
        assert_eq!(tokens(CircuitSettings::web(ladder())), [600, 600, 900]);
    }

    #[test]
    fn ratios_round_and_stay_within_the_whole() {
        for (part, whole, expected) in
            [(0.5, 50, 25), (0.5, 1, 0), (0.0, 200, 0), (1.0, u32::MAX, u32::MAX), (0.75, 10, 7)]
        {
            assert_eq!(Ratio::new(part).unwrap().of(whole), expected);
        }
        assert_eq!((Ratio::new(0.75), Ratio::new(0.5)), (Some(Ratio::THREE_QUARTERS), Some(Ratio::HALF)));
        for wrong in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            assert_eq!(Ratio::new(wrong), None);
        }
    }

    #[test]
    fn shares_stay_within_the_whole() {
        for (part, whole, expected) in [
            (0, 3, 0),
            (1, 3, 3_333),
            (3, 3, 10_000),
            (4, 3, 10_000),
            (u128::MAX, 1, 10_000),
            (0, 0, 0),
            (1, 0, 10_000),
        ] {
            assert_eq!(Ratio::share(part, whole).ten_thousandths(), expected, "{part} of {whole}");
        }
        assert_eq!(Ratio::ALL.less(Ratio::HALF), Ratio::HALF);
        assert_eq!(Ratio::HALF.less(Ratio::ALL), Ratio::NONE);
    }

    #[test]
    fn a_share_is_kept_where_somebody_can_pay() {
        let whole = number32(200);
        assert_eq!(CircuitSettings::web(ladder()).unpaid_part(whole), 100);
        assert_eq!(CircuitSettings::messenger(ladder()).unpaid_part(whole), 200);
    }
}
