//! Which defence is armed, and when each last spoke against a packet.
//!
//! Fed from the kernel's cumulative counters, never from samples.

use std::time::Duration;

use tunica_common::{
    event::{TALLY_SLOTS, tally_slot},
    verdict::{Action, Class, Verdict},
};

use crate::{
    limits::{Mode, Settings},
    notice::Notice,
    time::{Monotime, Now, WallTime},
};

/// A defence is quiet once it has not spoken against a packet for this long.
pub const QUIET_AFTER: Duration = Duration::from_secs(60);

/// A group of rules that can speak against a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defence {
    /// Packets that no honest sender makes.
    Sanity,
    /// Banned sources.
    Bans,
    /// Sources over the SYN limit.
    SynRate,
    /// Packets that cannot be looked into.
    Uninspected,
    /// Ports that are closed, or over their own rate.
    Ports,
    /// Segments that belong to no connection.
    NoSocket,
    /// ICMP over its rate.
    Icmp,
    /// SYNs answered with cookies.
    Cookies,
}

/// Packets by verdict and action since the maps were made, summed over CPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Totals([u64; TALLY_SLOTS]);

/// What is known of one defence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DefenceState {
    /// Since when it drops (or, observing, counts) packets; `None` while it does not.
    pub armed_since: Option<WallTime>,
    /// When it last spoke against a packet.
    pub last_trigger: Option<WallTime>,
    /// Packets dropped, or answered in the stack's place, since the maps were made.
    pub dropped_packets: u64,
    /// Packets with which `enforce` would have done so.
    pub would_drop_packets: u64,
}

/// Every defence.
#[derive(Clone, Debug)]
pub(crate) struct Defences {
    rows: [(Defence, Row); Defence::ALL.len()],
    seen: Option<Totals>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Row {
    state: DefenceState,
    /// When it last spoke, until it is quiet again.
    speaking: Option<Monotime>,
}

impl Defence {
    /// Every defence.
    pub const ALL: [Self; 8] = [
        Self::Sanity,
        Self::Bans,
        Self::SynRate,
        Self::Cookies,
        Self::NoSocket,
        Self::Icmp,
        Self::Ports,
        Self::Uninspected,
    ];

    /// The stable word in `tunica status` and in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sanity => "sanity",
            Self::Bans => "bans",
            Self::SynRate => "syn_rate",
            Self::Uninspected => "uninspected",
            Self::Ports => "ports",
            Self::NoSocket => "no_socket",
            Self::Icmp => "icmp",
            Self::Cookies => "cookies",
        }
    }

    /// The defence that a verdict of this class belongs to.
    pub const fn of(class: Class) -> Option<Self> {
        match class {
            Class::Pass => None,
            Class::Uninspected => Some(Self::Uninspected),
            Class::Sanity => Some(Self::Sanity),
            Class::Ban => Some(Self::Bans),
            Class::Limit => Some(Self::SynRate),
            Class::Port => Some(Self::Ports),
            Class::NoSocket => Some(Self::NoSocket),
            Class::Icmp => Some(Self::Icmp),
            Class::Cookie => Some(Self::Cookies),
        }
    }

    /// Whether the settings give it anything to drop.
    fn is_armed(self, settings: &Settings) -> bool {
        match self {
            Self::Sanity => settings.sanity_mask != 0,
            Self::Bans => true,
            Self::SynRate => settings.syn.is_some(),
            Self::Uninspected => settings.uninspected_drop_mask != 0,
            Self::Ports => settings.lockdown || settings.ports.values().any(|port| port.pace.is_some()),
            Self::NoSocket => settings.no_socket.is_some(),
            Self::Icmp => settings.icmp.is_some(),
            Self::Cookies => settings.port_syn.is_some() && settings.cookies.enabled,
        }
    }
}

impl Totals {
    /// The packets counted for `verdict` ending in `action`.
    pub fn get(&self, verdict: Verdict, action: Action) -> u64 {
        self.0.get(slot(verdict, action)).copied().unwrap_or_default()
    }

    /// Packets that a defence spoke against since `before`, by outcome; none that is zero.
    pub(crate) fn spoken_since(&self, before: &Self) -> Vec<(Verdict, Action, u64)> {
        let acts = [Action::Drop, Action::WouldDrop, Action::Answer, Action::WouldAnswer];
        let pairs = Verdict::ALL.iter().flat_map(|verdict| acts.map(|action| (*verdict, action)));
        pairs
            .filter(|(verdict, _)| Defence::of(verdict.class()).is_some())
            .map(|(verdict, action)| {
                let (before, after) = (before.get(verdict, action), self.get(verdict, action));
                // Counters that fell began again at zero with new maps.
                (verdict, action, after.checked_sub(before).unwrap_or(after))
            })
            .filter(|(_, _, packets)| *packets > 0)
            .collect()
    }

    /// Sets the packets counted for `verdict` ending in `action`.
    pub fn set(&mut self, verdict: Verdict, action: Action, packets: u64) {
        if let Some(total) = self.0.get_mut(slot(verdict, action)) {
            *total = packets;
        }
    }
}

fn slot(verdict: Verdict, action: Action) -> usize {
    tally_slot(verdict, action) as usize
}

impl Default for Totals {
    fn default() -> Self {
        Self([0; TALLY_SLOTS])
    }
}

impl Defences {
    pub(crate) fn new(settings: &Settings, is_bypassed: bool, now: WallTime) -> Self {
        let mut defences = Self { rows: Defence::ALL.map(|defence| (defence, Row::default())), seen: None };
        defences.arm(settings, is_bypassed, now);
        defences
    }

    /// Takes in what is switched on now.
    pub(crate) fn arm(&mut self, settings: &Settings, is_bypassed: bool, now: WallTime) {
        for (defence, row) in &mut self.rows {
            let is_armed = !is_bypassed && settings.mode != Mode::Off && defence.is_armed(settings);
            row.state.armed_since = is_armed.then(|| row.state.armed_since.unwrap_or(now));
        }
    }

    /// Takes in the counters. The first ones only set the base line: pinned maps outlive the daemon.
    ///
    /// | state | input | next | notice |
    /// |---|---|---|---|
    /// | quiet | count rose | speaking | triggered |
    /// | speaking | count rose | speaking from now | – |
    /// | speaking | [`QUIET_AFTER`] without a rise | quiet | quiet |
    /// | either | else | the same | – |
    pub(crate) fn count(&mut self, totals: Totals, now: Now) -> Vec<Notice> {
        let mut notices = self.advance(now.mono);
        for (defence, row) in &mut self.rows {
            let sum = |totals: &Totals, action| {
                let own =
                    Verdict::ALL.iter().filter(|verdict| Defence::of(verdict.class()) == Some(*defence));
                own.map(|verdict| totals.get(*verdict, action)).sum::<u64>()
            };
            let acted = |totals: &Totals| {
                [
                    sum(totals, Action::Drop) + sum(totals, Action::Answer),
                    sum(totals, Action::WouldDrop) + sum(totals, Action::WouldAnswer),
                ]
            };
            [row.state.dropped_packets, row.state.would_drop_packets] = acted(&totals);
            let has_risen = self.seen.as_ref().is_some_and(|seen| {
                acted(seen).into_iter().zip(acted(&totals)).any(|(before, after)| {
                    // Counters that fell began again at zero with new maps.
                    after > before || (after < before && after > 0)
                })
            });
            match (row.speaking, has_risen) {
                (None, true) => {
                    row.speaking = Some(now.mono);
                    row.state.last_trigger = Some(now.wall);
                    notices.push(Notice::DefenceTriggered { defence: *defence });
                }
                (Some(_), true) => {
                    row.speaking = Some(now.mono);
                    row.state.last_trigger = Some(now.wall);
                }
                (None | Some(_), false) => {}
            }
        }
        self.seen = Some(totals);
        notices
    }

    /// Says which defences have become quiet.
    pub(crate) fn advance(&mut self, now: Monotime) -> Vec<Notice> {
        let mut notices = Vec::new();
        for (defence, row) in &mut self.rows {
            if row.speaking.is_some_and(|last| last.after(QUIET_AFTER) <= now) {
                row.speaking = None;
                notices.push(Notice::DefenceQuiet { defence: *defence });
            }
        }
        notices
    }

    /// The last reading of the counters.
    pub(crate) fn seen(&self) -> Option<&Totals> {
        self.seen.as_ref()
    }

    pub(crate) fn next_deadline(&self) -> Option<Monotime> {
        self.rows.iter().filter_map(|(_, row)| row.speaking.map(|last| last.after(QUIET_AFTER))).min()
    }

    pub(crate) fn states(&self) -> [(Defence, DefenceState); Defence::ALL.len()] {
        self.rows.map(|(defence, row)| (defence, row.state))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::tests::settings;

    #[test]
    fn defences_speak_and_fall_quiet() {
        let mut defences = Defences::new(&settings(), false, WallTime(0));
        let triggered = |defence| Notice::DefenceTriggered { defence };
        let quiet = |defence| Notice::DefenceQuiet { defence };
        // Seconds, SYN-rate drops so far, Christmas trees that would be dropped so far, what is heard.
        for (seconds, syn_rate, xmas, expected) in [
            (0, 100, 0, vec![]),
            (10, 100, 0, vec![]),
            (20, 101, 0, vec![triggered(Defence::SynRate)]),
            (70, 150, 1, vec![triggered(Defence::Sanity)]),
            (100, 150, 2, vec![]),
            (130, 150, 2, vec![quiet(Defence::SynRate)]),
            (159, 150, 2, vec![]),
            (160, 150, 2, vec![quiet(Defence::Sanity)]),
            (161, 0, 0, vec![]),
            (162, 9, 0, vec![triggered(Defence::SynRate)]),
            (230, 9, 0, vec![quiet(Defence::SynRate)]),
            (231, 1, 0, vec![triggered(Defence::SynRate)]),
            (300, 2, 0, vec![quiet(Defence::SynRate), triggered(Defence::SynRate)]),
        ] {
            let mut totals = Totals::default();
            totals.set(Verdict::SynRate, Action::Drop, syn_rate);
            totals.set(Verdict::SynRate, Action::Pass, 1_000 * seconds);
            totals.set(Verdict::Xmas, Action::WouldDrop, xmas);
            let now = Now { mono: Monotime(seconds * 1_000_000_000), wall: WallTime(5_000 + seconds) };
            assert_eq!(defences.count(totals, now), expected, "at {seconds} s");
        }
        let state = |wanted| defences.states().into_iter().find(|(defence, _)| *defence == wanted).unwrap().1;
        assert_eq!(state(Defence::SynRate).last_trigger, Some(WallTime(5_300)));
        assert_eq!(state(Defence::SynRate).dropped_packets, 2);
        assert_eq!(state(Defence::Sanity).last_trigger, Some(WallTime(5_100)));
        assert_eq!(
            state(Defence::Bans),
            DefenceState { armed_since: Some(WallTime(0)), ..DefenceState::default() }
        );
    }

    #[test]
    fn an_answer_is_an_act() {
        let mut defences = Defences::new(&settings(), false, WallTime(0));
        for (seconds, answers, expected) in
            [(0, 5, vec![]), (1, 9, vec![Notice::DefenceTriggered { defence: Defence::Cookies }])]
        {
            let mut totals = Totals::default();
            totals.set(Verdict::SynCookie, Action::Answer, answers);
            totals.set(Verdict::CookieAck, Action::Pass, answers);
            let now = Now { mono: Monotime(seconds * 1_000_000_000), wall: WallTime(seconds) };
            assert_eq!(defences.count(totals, now), expected);
        }
        let cookies =
            defences.states().into_iter().find(|(defence, _)| *defence == Defence::Cookies).unwrap().1;
        assert_eq!((cookies.dropped_packets, cookies.would_drop_packets), (9, 0));
    }

    #[test]
    fn settings_arm_defences() {
        let mut defences = Defences::new(&settings(), false, WallTime(1));
        let since = |defences: &Defences, wanted| {
            defences
                .states()
                .into_iter()
                .find(|(defence, _)| *defence == wanted)
                .unwrap()
                .1
                .armed_since
                .map(|at| at.0)
        };
        let quiet =
            |defences: &Defences| Defence::ALL.iter().all(|defence| since(defences, *defence).is_none());
        use Defence::{Bans, Cookies, Icmp, NoSocket, Ports, Sanity, SynRate, Uninspected};
        for defence in [Sanity, Bans, SynRate, Cookies, NoSocket, Icmp] {
            assert_eq!(since(&defences, defence), Some(1), "{defence:?}");
        }
        assert_eq!((since(&defences, Ports), since(&defences, Uninspected)), (None, None));
        let other = Settings {
            uninspected_drop_mask: 128,
            syn: None,
            icmp: None,
            no_socket: None,
            port_syn: None,
            lockdown: true,
            ..settings()
        };
        defences.arm(&other, false, WallTime(2));
        for defence in [SynRate, Cookies, NoSocket, Icmp] {
            assert_eq!(since(&defences, defence), None, "{defence:?}");
        }
        assert_eq!((since(&defences, Ports), since(&defences, Uninspected)), (Some(2), Some(2)));
        assert_eq!(since(&defences, Sanity), Some(1));
        defences.arm(&settings(), true, WallTime(3));
        assert!(quiet(&defences));
        defences.arm(&Settings { mode: Mode::Observe, ..settings() }, false, WallTime(4));
        assert_eq!((since(&defences, Sanity), since(&defences, Cookies)), (Some(4), Some(4)));
        defences.arm(&Settings { mode: Mode::Off, ..settings() }, false, WallTime(5));
        assert!(quiet(&defences));
    }
}
