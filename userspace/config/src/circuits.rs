//! `[circuits]`: what one circuit may do, and all together.

use std::{
    num::{NonZeroU8, NonZeroU16, NonZeroU32, NonZeroU64},
    time::Duration,
};

use tunica_core::{
    ban_ladder::{Ladder, LadderError},
    circuit_policy::{Budget, CircuitSettings, Ratio, RequestRates},
    refusal::Refusal,
};

use crate::config::{Config, Grant, Profile, Protocol};

/// Bytes.
const MEBIBYTE: NonZeroU64 = NonZeroU64::new(1 << 20).unwrap();
/// Nanoseconds.
const MILLISECOND: NonZeroU64 = NonZeroU64::new(1_000_000).unwrap();

/// `[circuits]`: what one circuit may do, and all together. What is not set is as in the profile.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Circuits {
    /// `profile`; `gated` by default.
    pub profile: Profile,
    /// `max_connections_per_second`, all circuits together; 50 by default.
    pub max_connections_per_second: NonZeroU32,
    /// `max_concurrent_connections`, all circuits together; 200 by default.
    pub max_concurrent_connections: NonZeroU32,
    /// `max_per_circuit_per_minute`; the inner `None` is off.
    pub max_per_circuit_per_minute: Option<Option<NonZeroU32>>,
    /// `max_concurrent_per_circuit`.
    pub max_concurrent_per_circuit: Option<NonZeroU32>,
    /// `connections_per_10_seconds`: from so many on they are an offence; the inner `None` is off.
    pub connections_per_10_seconds: Option<Option<NonZeroU32>>,
    /// `slow_requests_per_10_seconds`: from so many on they go behind those of others.
    pub slow_requests_per_10_seconds: Option<NonZeroU32>,
    /// `requests_per_10_seconds`: from so many on they are denied.
    pub requests_per_10_seconds: Option<NonZeroU32>,
    /// `mebibytes_per_minute`; 1 024 MiB by default, `None` is off.
    pub mebibytes_per_minute: Option<NonZeroU32>,
    /// `cpu_milliseconds_per_minute`; 12 000 ms by default, `None` is off.
    pub cpu_per_minute: Option<NonZeroU32>,
    /// `vip_requests_per_10_seconds`; 200 by default.
    pub vip_requests_per_10_seconds: NonZeroU32,
    /// `ban_threshold`: violations; 5 by default.
    pub ban_threshold: NonZeroU32,
    /// `shadow`: limits that only count; none by default.
    pub shadow: Vec<Refusal>,
    /// `log_refusals`: whether the front logs what it refuses, by word and number; `false` by default.
    pub log_refusals: bool,
    /// `ban_duration_seconds`: the first ban; 300 s by default.
    pub ban_duration: Duration,
    /// `table_size`: circuits that are remembered; 100 000 by default.
    pub table_size: NonZeroU32,
    /// `keep_seconds`: how long after its last use; 1 800 s by default.
    pub keep: Duration,
    /// `circuit_health_interval_secs`; 120 s by default.
    pub health_interval: Duration,
    /// `max_circuit_age_secs`; 600 s by default.
    pub max_age: Duration,
    /// `max_circuit_latency_secs`; 10 s by default.
    pub max_latency: Duration,
    /// `rotate_hard_after_secs`; `None`, which is written 0, is never.
    pub rotate_hard_after: Option<Duration>,
    /// `pow_activation_threshold`; 0.75 by default.
    pub pow_activation_threshold: Ratio,
    /// `pow_difficulty`, leading zero bits; 16 by default.
    pub pow_difficulty: NonZeroU32,
    /// `pow_difficulty_min`, leading zero bits; 8 by default.
    pub pow_difficulty_min: NonZeroU32,
    /// `pow_difficulty_max`, leading zero bits and no less than the least; 24 by default.
    pub pow_difficulty_max: NonZeroU32,
    /// `pow_page_max`, leading zero bits; 17 by default.
    pub pow_page_max: NonZeroU32,
    /// `pow_expires_seconds`: how long a puzzle is good; 300 s by default.
    pub pow_expires: Duration,
    /// `pow_tcp`: whether TCP clients are asked; `false` by default.
    pub pow_tcp: bool,
    /// `pow_grants`: what a circuit is once it has solved one; `normal` by default.
    pub pow_grants: Grant,
    /// `token_life_seconds`; 1 800 s by default.
    pub token_life: Duration,
    /// `token_circuits`: how many may use one at once; 3 by default.
    pub token_circuits: NonZeroU32,
    /// `backend_grants`: whether backends may have tokens handed out; `false` by default.
    pub backend_grants: bool,
    /// `false_positive_budget`: token holders that may be refused in a minute; 0.05 by default.
    pub false_positive_budget: Ratio,
    /// `false_positive_least_holders`: without so many a minute says nothing; 20 by default.
    pub false_positive_least_holders: NonZeroU32,
    /// `paid_share`; 0.5 by default.
    pub paid_share: Ratio,
}

impl Config {
    /// Whether circuits are to be closed at another age or latency than nobody asked for.
    pub(crate) fn asks_for_rotation(&self) -> bool {
        self.circuit_settings().is_ok_and(|asked| {
            let usual = CircuitSettings::messenger(asked.ladder.clone());
            asked.max_circuit_age != usual.max_circuit_age
                || asked.max_circuit_latency != usual.max_circuit_latency
                || asked.rotate_hard_after != usual.rotate_hard_after
        })
    }

    /// What the front decides about circuits by.
    ///
    /// # Errors
    /// [`LadderError`], which a validated ladder gives no cause for.
    pub fn circuit_settings(&self) -> Result<CircuitSettings, LadderError> {
        let circuits = &self.circuits;
        let ladder = Ladder::new(self.bans.ladder.clone(), self.bans.forgive_after)?;
        let of_profile = match circuits.profile {
            Profile::Messenger => CircuitSettings::messenger(ladder),
            Profile::Gated => CircuitSettings::gated(ladder),
            Profile::Web => CircuitSettings::web(ladder),
        };
        // The rules of the keys bound every number, so nothing is cut.
        let byte = |number: NonZeroU32| NonZeroU8::try_from(number).unwrap_or(NonZeroU8::MAX);
        let word = |number: NonZeroU32| NonZeroU16::try_from(number).unwrap_or(NonZeroU16::MAX);
        let budget =
            |number: NonZeroU32, unit| Budget::a_minute(NonZeroU64::from(number).saturating_mul(unit));
        let requests = of_profile.requests.map(|rates| RequestRates {
            slow: circuits.slow_requests_per_10_seconds.map_or(rates.slow, word),
            deny: circuits.requests_per_10_seconds.map_or(rates.deny, word),
        });
        Ok(CircuitSettings {
            max_connections_per_second: circuits.max_connections_per_second,
            max_concurrent_connections: circuits.max_concurrent_connections,
            maxconn: self.ingress.maxconn,
            queue_timeout: self.ingress.queue,
            max_per_circuit_per_minute: circuits
                .max_per_circuit_per_minute
                .map_or(of_profile.max_per_circuit_per_minute, |limit| limit.map(byte)),
            max_concurrent_per_circuit: circuits
                .max_concurrent_per_circuit
                .map_or(of_profile.max_concurrent_per_circuit, word),
            connections_per_10_seconds: circuits
                .connections_per_10_seconds
                .map_or(of_profile.connections_per_10_seconds, |limit| limit.map(byte)),
            requests,
            bytes: circuits.mebibytes_per_minute.map(|limit| budget(limit, MEBIBYTE)),
            cpu: circuits.cpu_per_minute.map(|limit| budget(limit, MILLISECOND)),
            vip_per_10_seconds: word(circuits.vip_requests_per_10_seconds),
            circuits_per_token: byte(circuits.token_circuits),
            token_life: circuits.token_life,
            ban_threshold: byte(circuits.ban_threshold),
            ban_duration: circuits.ban_duration,
            shadow: circuits.shadow.iter().copied().collect(),
            pow_activation_threshold: circuits.pow_activation_threshold,
            pow_difficulty: byte(circuits.pow_difficulty).get(),
            // What streams carry decides, whatever the profile: without HTTP there is no page.
            asks_puzzles: match self.ingress.protocol {
                Protocol::Http => true,
                Protocol::Tcp => circuits.pow_tcp,
            },
            paid_share: circuits.paid_share,
            health_interval: circuits.health_interval,
            max_circuit_age: circuits.max_age,
            max_circuit_latency: circuits.max_latency,
            rotate_hard_after: circuits.rotate_hard_after,
            table_size: circuits.table_size,
            reputation_life: circuits.keep,
            ..of_profile
        })
    }
}
