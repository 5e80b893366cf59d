//! A candidate: settings that are tried beside those in force, on the same packets, and decide nothing.
//!
//! The kernel program runs twice for each packet then, first by the candidate's policy and with limits of its own. Bans,
//! allow list and own addresses are facts rather than rules, so both look at the same.

use std::collections::BTreeMap;

use tunica_common::policy::{CANDIDATE_SELF, MODE_OBSERVE, Policy, PortRule};

use crate::{
    desired::Desired,
    limits::{HostFacts, Settings},
};

/// The candidate's policy.
///
/// It observes, whatever mode the settings ask for, because only the policy in force acts; and it sends no events. Where the
/// daemon would switch `net.ipv4.tcp_syncookies` for these settings, they are judged as if it had.
pub fn policy(settings: &Settings, desired: &Desired, generation: u32, secret: [u64; 2]) -> Policy {
    let is_managed = settings.cookies.manage_syncookies && desired.host.tcp_syncookies == Some(1);
    let tcp_syncookies = if is_managed { Some(2) } else { desired.host.tcp_syncookies };
    let host = HostFacts { tcp_syncookies, ..desired.host };
    Policy {
        mode: MODE_OBSERVE,
        // More than a century: the first event of each verdict finds a ring that nobody reads.
        event_interval_ns: u64::MAX / 4,
        candidate: CANDIDATE_SELF,
        ..desired.policy_of(&host, settings, generation, secret)
    }
}

/// What settings say of ports, as the kernel's table holds it.
pub fn ports(settings: &Settings) -> BTreeMap<u32, PortRule> {
    settings.ports.iter().map(|(port, settings)| (port.key(), settings.rule(port.transport))).collect()
}

/// Whether the candidate tries the configuration key of this name: the program reads its value from the policy or from the
/// table of ports. Other keys come into force with the candidate's promotion only.
pub fn tries(key: &str) -> bool {
    const TRIED: [&str; 11] = [
        "shield.syn.",
        "shield.port_syn.",
        "shield.cookies.",
        "shield.no_socket.",
        "shield.icmp.",
        "shield.ports",
        "shield.sanity.",
        "shield.uninspected.",
        "shield.lockdown",
        "shield.on_stale",
        "shield.stale_after_seconds",
    ];
    TRIED.iter().any(|tried| key.starts_with(tried))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::tests::settings;

    #[test]
    fn a_candidate_never_acts_and_never_tells() {
        let desired = Desired::default();
        let policy = policy(&settings(), &desired, 7, [1, 2]);
        assert_eq!((policy.mode, policy.candidate), (MODE_OBSERVE, CANDIDATE_SELF));
        assert!(policy.event_interval_ns > 100 * 365 * 86_400 * 1_000_000_000);
        assert!(policy.event_interval_ns < u64::MAX / 2, "added to the clock, it must not wrap");
    }

    #[test]
    fn what_the_daemon_would_switch_counts_as_switched() {
        let mut settings = settings();
        settings.cookies.enabled = true;
        let rows = [(true, 1, true), (false, 1, false), (true, 2, true), (false, 2, true), (true, 0, false)];
        for (manages, syncookies, answers) in rows {
            settings.cookies.manage_syncookies = manages;
            let host = HostFacts {
                tcp_syncookies: Some(syncookies),
                has_cookie_program: true,
                ..HostFacts::default()
            };
            let desired = Desired { host, ..Desired::default() };
            let policy = policy(&settings, &desired, 7, [1, 2]);
            assert_eq!(policy.cookies != 0, answers, "{manages} {syncookies}");
        }
    }
}
