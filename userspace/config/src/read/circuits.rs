//! `[circuits]`.

use toml::de::DeTable;

use super::{Reader, seconds};
use crate::{circuits::Circuits, keys};

impl Reader<'_> {
    pub(super) fn circuits(&mut self, root: &DeTable<'_>) -> Option<Circuits> {
        let profile = self.value(root, &keys::PROFILE);
        let max_connections_per_second = self.value(root, &keys::ALL_PER_SECOND);
        let max_concurrent_connections = self.value(root, &keys::ALL_AT_ONCE);
        let max_per_circuit_per_minute = self.optional(root, &keys::PER_MINUTE);
        let max_concurrent_per_circuit = self.optional(root, &keys::AT_ONCE);
        let connections_per_10_seconds = self.optional(root, &keys::CONNECTIONS_PER_10);
        let slow_requests_per_10_seconds = self.optional(root, &keys::SLOW_PER_10);
        let requests_per_10_seconds = self.optional(root, &keys::REQUESTS_PER_10);
        let mebibytes_per_minute = self.value(root, &keys::MEBIBYTES_PER_MINUTE);
        let cpu_per_minute = self.value(root, &keys::CPU_PER_MINUTE);
        let vip_requests_per_10_seconds = self.value(root, &keys::VIP_PER_10);
        let ban_threshold = self.value(root, &keys::CIRCUIT_BAN_THRESHOLD);
        let shadow = self.value(root, &keys::SHADOW);
        let log_refusals = self.value(root, &keys::LOG_REFUSALS);
        let ban_duration = self.value(root, &keys::CIRCUIT_BAN);
        let table_size = self.value(root, &keys::CIRCUIT_TABLE);
        let keep = self.value(root, &keys::CIRCUIT_KEEP);
        let health_interval = self.value(root, &keys::CIRCUIT_HEALTH);
        let max_age = self.value(root, &keys::CIRCUIT_AGE);
        let max_latency = self.value(root, &keys::CIRCUIT_LATENCY);
        let rotate_hard_after = self.value(root, &keys::ROTATE_HARD);
        let pow_activation_threshold = self.value(root, &keys::POW_THRESHOLD);
        let pow_difficulty = self.value(root, &keys::POW_DIFFICULTY);
        let pow_difficulty_min = self.value(root, &keys::POW_MIN);
        let pow_difficulty_max = self.value(root, &keys::POW_MAX);
        let pow_page_max = self.value(root, &keys::POW_PAGE_MAX);
        let pow_expires = self.value(root, &keys::POW_EXPIRES);
        let pow_tcp = self.value(root, &keys::POW_TCP);
        let pow_grants = self.value(root, &keys::POW_GRANTS);
        let token_life = self.value(root, &keys::TOKEN_LIFE);
        let token_circuits = self.value(root, &keys::TOKEN_CIRCUITS);
        let backend_grants = self.value(root, &keys::BACKEND_GRANTS);
        let false_positive_budget = self.value(root, &keys::FALSE_POSITIVES);
        let false_positive_least_holders = self.value(root, &keys::LEAST_HOLDERS);
        let paid_share = self.value(root, &keys::PAID_SHARE);
        if let (Some(least), Some(most)) = (&pow_difficulty_min, &pow_difficulty_max)
            && least.value > most.value
        {
            self.report_together(
                &keys::POW_MIN,
                least,
                &keys::POW_MAX,
                most,
                format!("the least difficulty ({}) is above the most ({})", least.value, most.value),
                "make the least no more than the most".to_owned(),
            );
            return None;
        }
        Some(Circuits {
            profile: profile?.value,
            max_connections_per_second: max_connections_per_second?.value,
            max_concurrent_connections: max_concurrent_connections?.value,
            max_per_circuit_per_minute: max_per_circuit_per_minute?,
            max_concurrent_per_circuit: max_concurrent_per_circuit?,
            connections_per_10_seconds: connections_per_10_seconds?,
            slow_requests_per_10_seconds: slow_requests_per_10_seconds?,
            requests_per_10_seconds: requests_per_10_seconds?,
            mebibytes_per_minute: mebibytes_per_minute?.value,
            cpu_per_minute: cpu_per_minute?.value,
            vip_requests_per_10_seconds: vip_requests_per_10_seconds?.value,
            ban_threshold: ban_threshold?.value,
            shadow: shadow?.value,
            log_refusals: log_refusals?.value,
            ban_duration: seconds(ban_duration?.value),
            table_size: table_size?.value,
            keep: seconds(keep?.value),
            health_interval: seconds(health_interval?.value),
            max_age: seconds(max_age?.value),
            max_latency: seconds(max_latency?.value),
            rotate_hard_after: rotate_hard_after?.value.map(seconds),
            pow_activation_threshold: pow_activation_threshold?.value,
            pow_difficulty: pow_difficulty?.value,
            pow_difficulty_min: pow_difficulty_min?.value,
            pow_difficulty_max: pow_difficulty_max?.value,
            pow_page_max: pow_page_max?.value,
            pow_expires: seconds(pow_expires?.value),
            pow_tcp: pow_tcp?.value,
            pow_grants: pow_grants?.value,
            token_life: seconds(token_life?.value),
            token_circuits: token_circuits?.value,
            backend_grants: backend_grants?.value,
            false_positive_budget: false_positive_budget?.value,
            false_positive_least_holders: false_positive_least_holders?.value,
            paid_share: paid_share?.value,
        })
    }
}
