//! An ordinary browser against the `web` defaults, on one circuit and one virtual clock.

use std::{collections::BTreeMap, time::Duration};

use proptest::prelude::*;

use super::{
    Action, CircuitSettings, Hold, TokenId,
    rows::{Front, circuit, ladder},
};
use crate::{refusal::Refusal, time::Monotime};

const MILLISECOND: u64 = 1_000_000;

/// How a browser loads pages.
#[derive(Clone, Copy, Debug)]
struct Browser {
    /// Parallel connections; browsers open 6 to 8.
    connections: usize,
    /// From a click to the next, ms.
    click: u64,
    /// From one request to the next, ms.
    pace: u64,
    /// Where in a second the first click falls, ms.
    phase: u64,
    /// Whether it shows a token.
    is_vip: bool,
}

/// Loads a page with 60 resources on each click for 5 min, and sends the login form on every third. Returns every
/// outcome and how often it came.
fn browse(browser: Browser) -> BTreeMap<Refusal, u32> {
    let mut front = Front::new(&CircuitSettings::web(ladder()));
    if browser.is_vip {
        let until = front.now.after(Duration::from_secs(1_800));
        let ticket = front.admission.present(TokenId(7), circuit(1), until, front.now).unwrap();
        front.shard.bind(circuit(1), ticket, until, front.now);
    }
    let mut outcomes = BTreeMap::new();
    let mut holds: Vec<(u64, Hold)> = Vec::new();
    let start = front.now.0 + browser.phase * MILLISECOND;
    for click in 0..300_000 / browser.click {
        // The page, its resources, and the form with the page that answers it.
        let requests = 61 + if click % 3 == 0 { 2 } else { 0 };
        for request in 0..requests {
            let at = start + (click * browser.click + request * browser.pace) * MILLISECOND;
            front.now = Monotime(at);
            // The front closes a connection 2 s after its last request.
            let (kept, idle): (Vec<_>, Vec<_>) =
                holds.into_iter().partition(|(used, _)| at - used < 2_000 * MILLISECOND);
            holds = kept;
            idle.iter().for_each(|(_, hold)| front.close(hold));
            // The page comes first; its resources ask for all connections at once.
            let wanted = if request == 0 { 1 } else { browser.connections };
            while holds.len() < wanted {
                let arrival = front.arrive(circuit(1));
                *outcomes.entry(arrival.ruling.word).or_default() += 1;
                assert_eq!(arrival.ruling.action, Action::Serve);
                holds.push((at, arrival.hold.unwrap()));
            }
            *outcomes.entry(front.request(1).word).or_default() += 1;
            let turn = request as usize % holds.len();
            holds[turn].0 = at;
        }
        front.shard.advance(front.now);
    }
    outcomes
}

#[test]
fn a_browser_is_never_refused_and_never_slowed() {
    for connections in 6..=8 {
        for is_vip in [false, true] {
            let outcomes = browse(Browser { connections, click: 4_000, pace: 20, phase: 0, is_vip });
            assert_eq!(outcomes.keys().collect::<Vec<_>>(), [&Refusal::Served]);
            // Every connection of every click is a new one: the keep-alive time is over before the next.
            let expected = 75 * (61 + connections as u32) + 25 * 2;
            assert_eq!(outcomes[&Refusal::Served], expected);
        }
    }
}

#[test]
fn the_simulation_can_fail() {
    // A click every 2 s is no ordinary browser: slowed, still not refused.
    let busy = Browser { connections: 8, click: 2_000, pace: 10, phase: 0, is_vip: false };
    let outcomes = browse(busy);
    assert_eq!(outcomes.keys().collect::<Vec<_>>(), [&Refusal::Served, &Refusal::SlowLane]);
    // A token makes nobody worse off.
    let outcomes = browse(Browser { is_vip: true, ..busy });
    assert_eq!(outcomes.keys().collect::<Vec<_>>(), [&Refusal::Served]);
}

proptest! {
    /// For all moments of the first click, paces and numbers of connections of a browser, nothing is refused or slowed.
    #[test]
    fn at_any_pace(connections in 6usize..=8, pace in 1u64..60, phase in 0u64..12_000, is_vip: bool) {
        let outcomes = browse(Browser { connections, click: 4_000, pace, phase, is_vip });
        prop_assert_eq!(outcomes.into_keys().collect::<Vec<_>>(), [Refusal::Served]);
    }
}
