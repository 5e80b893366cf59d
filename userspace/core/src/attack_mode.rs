//! Attack mode: stricter settings for a while, laid over the configured ones.
//!
//! What an operator would do by hand in an attack, in one step and undone by time: it drops where the configuration only
//! watches, and halves limits. It never touches allow list, bans, port rules or lockdown, so it cuts nobody off who can
//! connect now, and what the configuration switched off stays off.

use std::time::Duration;

use tunica_common::gcra::{Limit, Pace, TICK_NANOSECONDS};

use crate::limits::{IcmpLimits, Mode, NoSocketLimits, SECOND_NS, Settings};

/// Shortest attack mode.
pub const SHORTEST: Duration = Duration::from_secs(60);
/// Longest attack mode: a day. Limits that are right for longer belong into the configuration.
pub const LONGEST: Duration = Duration::from_secs(86_400);

/// The settings in force while attack mode lies over `configured`.
pub fn overlay(configured: &Settings) -> Settings {
    Settings { mode: Mode::Enforce, ..tightened(configured) }
}

/// The settings in force while the load level tightens `configured`: what [`overlay`] does, but for the mode. Whoever only
/// observes asked for no drops, and only his word may change that.
pub fn tightened(configured: &Settings) -> Settings {
    Settings {
        syn: configured.syn.map(halved),
        port_syn: configured.port_syn.map(halved_pace),
        no_socket: configured.no_socket.map(|limits| NoSocketLimits { host_per_second: 1, ..limits }),
        icmp: configured.icmp.map(|limits| IcmpLimits {
            per_source: halved(limits.per_source),
            host: halved_pace(limits.host),
            ceiling: limits.ceiling,
        }),
        ..configured.clone()
    }
}

/// One sentence for each thing that [`overlay`] changes, and for each that it would and cannot.
pub fn changes(configured: &Settings) -> Vec<String> {
    let over = overlay(configured);
    let mut changes = Vec::new();
    match configured.mode {
        Mode::Enforce => {}
        Mode::Observe => {
            changes
                .push("the mode is `enforce` instead of `observe`: what was only counted is dropped".into());
        }
        Mode::Off => {
            changes.push("the mode is `enforce` instead of `off`: packets are inspected and dropped".into());
        }
    }
    let switched_off = |key: &str| format!("{key} is switched off by the configuration and stays off");
    match (configured.syn, over.syn) {
        (Some(before), Some(after)) if before != after => changes.push(format!(
            "a source may open {} connections a second instead of {}, {} at once instead of {}",
            per_second(after),
            per_second(before),
            burst(after),
            burst(before)
        )),
        (None, _) => changes.push(switched_off("shield.syn")),
        (Some(_), _) => {}
    }
    match (configured.port_syn, over.port_syn) {
        (Some(before), Some(after)) if before != after => changes.push(format!(
            "a port is over its budget at {} SYNs a second instead of {}, {} at once instead of {}",
            pace_per_second(after),
            pace_per_second(before),
            pace_burst(after),
            pace_burst(before)
        )),
        (None, _) => changes.push(switched_off("shield.port_syn")),
        (Some(_), _) => {}
    }
    match configured.no_socket {
        Some(before) if before.host_per_second > 1 => changes.push(format!(
            "segments without a connection are judged above 1 a second on the host instead of {}",
            before.host_per_second
        )),
        None => changes.push(switched_off("shield.no_socket")),
        Some(_) => {}
    }
    match (configured.icmp, over.icmp) {
        (Some(before), Some(after)) if before != after => changes.push(format!(
            "a source may send {} echo requests at once instead of {}, and the host takes {} a second instead of {}",
            burst(after.per_source),
            burst(before.per_source),
            pace_per_second(after.host),
            pace_per_second(before.host)
        )),
        (None, _) => changes.push(switched_off("shield.icmp")),
        (Some(_), _) => {}
    }
    changes
}

/// Ticks that a packet costs at one a second, the slowest rate that the configuration knows.
const SLOWEST_COST: u32 = {
    match Limit::new(1, 1) {
        Some(limit) => limit.cost_ticks,
        None => 1,
    }
};

/// Half the rate, but not less than one a second, and half the burst, but not less than one.
fn halved(limit: Limit) -> Limit {
    let cost_ticks = limit.cost_ticks.saturating_mul(2).min(SLOWEST_COST).max(limit.cost_ticks);
    let at_once = (burst(limit) / 2).max(1);
    Limit { cost_ticks, tolerance_ticks: cost_ticks.saturating_mul(at_once - 1) }
}

/// As [`halved`].
fn halved_pace(pace: Pace) -> Pace {
    let [before, _] = pace;
    let cost = before.saturating_mul(2).min(SECOND_NS).max(before);
    let at_once = (pace_burst(pace) / 2).max(1);
    [cost, cost.saturating_mul(at_once - 1)]
}

/// Packets a second, rounded.
pub(crate) fn per_second(limit: Limit) -> u64 {
    let cost = u64::from(limit.cost_ticks.max(1)) * TICK_NANOSECONDS;
    (SECOND_NS + cost / 2) / cost
}

/// Packets at once.
pub(crate) fn burst(limit: Limit) -> u32 {
    limit.tolerance_ticks / limit.cost_ticks.max(1) + 1
}

/// Packets a second, rounded.
pub(crate) fn pace_per_second([cost, _]: Pace) -> u64 {
    let cost = cost.max(1);
    (SECOND_NS + cost / 2) / cost
}

/// Packets at once.
pub(crate) fn pace_burst([cost, tolerance]: Pace) -> u64 {
    tolerance / cost.max(1) + 1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tunica_common::gcra;

    use super::*;
    use crate::limits::tests::settings;

    #[test]
    fn load_tightens_as_attack_mode_does_and_leaves_the_mode() {
        for mode in [Mode::Off, Mode::Observe, Mode::Enforce] {
            let configured = Settings { mode, ..settings() };
            let tightened = tightened(&configured);
            assert_eq!(tightened.mode, mode);
            assert_ne!(tightened.syn, configured.syn);
            assert_eq!(Settings { mode: Mode::Enforce, ..tightened }, overlay(&configured));
        }
    }

    #[test]
    fn every_change_has_its_sentence() {
        let observing = Settings { mode: Mode::Observe, ..settings() };
        let over = overlay(&observing);
        assert_eq!(over.mode, Mode::Enforce);
        assert_eq!(over.syn.map(|limit| (per_second(limit), burst(limit))), Some((5, 10)));
        assert_eq!(over.port_syn, gcra::pace(50, SECOND_NS, 150));
        assert_eq!(over.no_socket.unwrap().host_per_second, 1);
        assert_eq!(over.icmp.unwrap().ceiling, settings().icmp.unwrap().ceiling);
        assert_eq!(
            changes(&observing),
            [
                "the mode is `enforce` instead of `observe`: what was only counted is dropped",
                "a source may open 5 connections a second instead of 10, 10 at once instead of 20",
                "a port is over its budget at 50 SYNs a second instead of 100, 150 at once instead of 300",
                "segments without a connection are judged above 1 a second on the host instead of 1000",
                "a source may send 2 echo requests at once instead of 4, and the host takes 50 a second instead of 100",
            ]
        );
        // The floor, reached by halving what is already strict.
        let strictest = (0..12).fold(settings(), |settings, _| overlay(&settings));
        assert_eq!(strictest.syn.map(|limit| (per_second(limit), burst(limit))), Some((1, 1)));
        assert_eq!(changes(&strictest), Vec::<String>::new());
        let bare = Settings { syn: None, port_syn: None, no_socket: None, icmp: None, ..settings() };
        assert_eq!(overlay(&bare), bare);
        assert_eq!(changes(&bare).len(), 4);
        assert!(
            changes(&bare)
                .iter()
                .all(|change| change.ends_with("switched off by the configuration and stays off"))
        );
    }

    proptest! {
        /// For all limits, attack mode admits no more than before, and something.
        #[test]
        fn nothing_is_loosened(rate in 1u32..=1_000, at_once in 1u32..=200, packets in 1u32..=100_000) {
            let limit = Limit::new(rate, at_once).unwrap();
            let after = halved(limit);
            prop_assert!(after.cost_ticks >= limit.cost_ticks && burst(after) <= burst(limit) && burst(after) >= 1);
            prop_assert!(per_second(after) >= 1);
            let pace = gcra::pace(packets, SECOND_NS, at_once).unwrap();
            let after = halved_pace(pace);
            prop_assert!(after[0] >= pace[0] && pace_burst(after) <= pace_burst(pace) && pace_per_second(after) >= 1);
        }
    }
}
