//! What the counters and samples showed since the limits last changed, and what limits follow from it.
//!
//! Counters are exact and know no source; samples know sources and are few, and in a flood forged. So a proposal rests on
//! how refusals are spread over time: ordinary use comes again in many minutes, an attack in few. Nothing is proposed
//! that the kernel did not show, and nothing is put in force.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tunica_common::verdict::{Action, Verdict};

use crate::{
    attack_mode::{burst, pace_burst, pace_per_second, per_second},
    defence::Totals,
    id::PacketSource,
    limits::Settings,
    time::{Monotime, Now, WallTime},
};

/// Least time of observation that a proposal rests on, unless it is asked for all the same.
pub const LEAST: Duration = Duration::from_secs(3_600);
/// Least time without an excess after which a lower budget is proposed: a day has its quiet and its busy hours.
pub const LEAST_TO_LOWER: Duration = Duration::from_secs(86_400);
/// Most sources that are told apart.
pub const MOST_SOURCES: usize = 256;
/// Most ports over their budget that are named.
const MOST_PORTS: usize = 64;
/// Shortest time between two readings of which a rate is told.
const SHORTEST_WINDOW: Duration = Duration::from_millis(900);

/// Packets of some verdicts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// How many.
    pub packets: u64,
    /// Most in a second, as an average between two readings about a second apart.
    pub peak_per_second: u64,
    /// In how many different minutes.
    pub minutes: u64,
}

/// What was seen since the limits last changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// For how many whole minutes.
    pub minutes: u64,
    /// SYNs, whatever became of them.
    pub syns: Group,
    /// SYNs over the limit of their source or its network.
    pub syn_rate: Group,
    /// SYNs to ports over their budget.
    pub over_budget: Group,
    /// Segments without a connection, over their limit.
    pub no_socket: Group,
    /// Echo requests over the limit of their source.
    pub icmp_source: Group,
    /// Echo requests over the limit of the host.
    pub icmp_host: Group,
    /// Sources whose SYNs were over the limit in samples; [`MOST_SOURCES`] means that many or more.
    pub sources: usize,
    /// Ports that were over their budget, at most 64.
    pub ports: Vec<u16>,
}

/// What is proposed for one key of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// Its full name.
    pub key: &'static str,
    /// Its value in force; `None` where the part is switched off.
    pub present: Option<u64>,
    /// Its value to be; `None` where it should stay.
    pub proposed: Option<u64>,
    /// What was seen: one clause.
    pub seen: String,
    /// Why that value: one sentence.
    pub why: String,
}

/// Which group of [`Seen`] a verdict counts for.
type Pick = fn(&mut Seen) -> &mut Group;

const GROUPS: [(&[Verdict], Pick); 6] = [
    (
        &[
            Verdict::Syn,
            Verdict::SynRate,
            Verdict::SynRateNet,
            Verdict::SynTrickle,
            Verdict::SynOverBudget,
            Verdict::SynCookie,
        ],
        |seen| &mut seen.syns,
    ),
    (&[Verdict::SynRate, Verdict::SynRateNet], |seen| &mut seen.syn_rate),
    (&[Verdict::SynTrickle, Verdict::SynOverBudget, Verdict::SynCookie], |seen| &mut seen.over_budget),
    (&[Verdict::NoSocket], |seen| &mut seen.no_socket),
    (&[Verdict::IcmpRate], |seen| &mut seen.icmp_source),
    (&[Verdict::IcmpHostRate], |seen| &mut seen.icmp_host),
];

/// Gathers [`Seen`], in bounded memory.
#[derive(Clone, Debug)]
pub(crate) struct Observation {
    since: Now,
    seen: Seen,
    last: Option<Totals>,
    /// Packets since the last rates were told, for each group.
    window: [u64; GROUPS.len()],
    window_since: Monotime,
    /// The minute in which a group was last seen, counted from `since`, plus one.
    minutes: [u64; GROUPS.len()],
    sources: BTreeSet<PacketSource>,
}

impl Observation {
    pub(crate) fn new(now: Now) -> Self {
        Self {
            since: now,
            seen: Seen::default(),
            last: None,
            window: Default::default(),
            window_since: now.mono,
            minutes: Default::default(),
            sources: BTreeSet::new(),
        }
    }

    /// Since when.
    pub(crate) fn since(&self) -> WallTime {
        self.since.wall
    }

    /// Takes in the counters; the first ones are the base line.
    pub(crate) fn count(&mut self, totals: &Totals, now: Monotime) {
        let Some(last) = self.last.replace(totals.clone()) else {
            self.window_since = now;
            return;
        };
        let minute = now.since(self.since.mono).as_secs() / 60 + 1;
        let elapsed = now.since(self.window_since);
        let is_long_enough = elapsed >= SHORTEST_WINDOW;
        for (index, (verdicts, pick)) in GROUPS.iter().enumerate() {
            let new = |verdict: Verdict, action| {
                let (before, after) = (last.get(verdict, action), totals.get(verdict, action));
                // Counters that fell began again at zero with new maps.
                after.checked_sub(before).unwrap_or(after)
            };
            let packets: u64 = verdicts
                .iter()
                .flat_map(|verdict| Action::ALL.map(|action| new(*verdict, action)))
                .fold(0, u64::saturating_add);
            let group = pick(&mut self.seen);
            let (Some(window), Some(seen_in)) = (self.window.get_mut(index), self.minutes.get_mut(index))
            else {
                continue;
            };
            *window = window.saturating_add(packets);
            group.packets = group.packets.saturating_add(packets);
            if packets > 0 && *seen_in != minute {
                *seen_in = minute;
                group.minutes += 1;
            }
            if is_long_enough {
                let milliseconds = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
                let rate = window.saturating_mul(1_000) / milliseconds;
                group.peak_per_second = group.peak_per_second.max(rate);
                *window = 0;
            }
        }
        if is_long_enough {
            self.window_since = now;
        }
    }

    /// Passes over what came since the last reading.
    pub(crate) fn skip(&mut self, totals: &Totals, now: Monotime) {
        (self.last, self.window, self.window_since) = (Some(totals.clone()), Default::default(), now);
    }

    /// Takes in one sample.
    pub(crate) fn sample(&mut self, source: PacketSource, verdict: Verdict) {
        let is_refusal = matches!(verdict, Verdict::SynRate | Verdict::SynRateNet);
        if is_refusal && self.sources.len() < MOST_SOURCES {
            self.sources.insert(source);
        }
    }

    /// Takes in a port over its budget.
    pub(crate) fn armed(&mut self, port: u16) {
        if self.seen.ports.len() < MOST_PORTS && !self.seen.ports.contains(&port) {
            self.seen.ports.push(port);
        }
    }

    /// What was seen until now.
    pub(crate) fn seen(&self, now: Monotime) -> Seen {
        let minutes = now.since(self.since.mono).as_secs() / 60;
        Seen { minutes, sources: self.sources.len(), ..self.seen.clone() }
    }
}

/// How the refusals of a group are spread over time.
enum Spread {
    /// There were none.
    None,
    /// In fewer than a twentieth of all minutes.
    Rare,
    /// In more, and in at least three.
    Steady,
}

fn spread(group: Group, minutes: u64) -> Spread {
    if group.packets == 0 {
        Spread::None
    } else if group.minutes >= 3 && group.minutes.saturating_mul(20) >= minutes {
        Spread::Steady
    } else {
        Spread::Rare
    }
}

/// What follows from what was seen under `settings`, key by key.
pub fn propose(seen: &Seen, settings: &Settings) -> Vec<Proposal> {
    let mut rows = Vec::new();
    let syn = settings.syn;
    let of_sources = match seen.sources {
        0 => "no source was sampled".to_owned(),
        MOST_SOURCES.. => format!("{MOST_SOURCES} sources or more in samples, which a flood forges"),
        sources => format!("{sources} sources in samples"),
    };
    let what = refused("SYNs", seen.syn_rate, seen.minutes) + "; " + &of_sources;
    for (key, present, most) in [
        ("shield.syn.per_source_per_second", syn.map(per_second), 1_000),
        ("shield.syn.burst", syn.map(|limit| u64::from(burst(limit))), 10_000),
    ] {
        rows.push(by_spread(key, present, most, seen.syn_rate, seen.minutes, &what));
    }

    let budget = settings.port_syn.map(pace_per_second);
    let ports: Vec<String> = seen.ports.iter().map(u16::to_string).collect();
    let what = format!(
        "all ports together had at most {} SYNs a second; {}{}",
        seen.syns.peak_per_second,
        if ports.is_empty() { "no port was over its budget" } else { "over their budget: " },
        ports.join(", ")
    );
    let (proposed, why) = port_budget(budget, seen);
    let at_once = settings.port_syn.map(pace_burst);
    rows.push(Proposal {
        key: "shield.port_syn.per_second",
        present: budget,
        proposed,
        seen: what.clone(),
        why,
    });
    let (proposed, why) = match proposed {
        Some(per_second) => (Some(per_second.saturating_mul(3)), "three seconds of the budget at once"),
        None => (None, "it goes with `per_second`"),
    };
    let proposed = proposed.filter(|proposed| at_once != Some(*proposed));
    rows.push(Proposal {
        key: "shield.port_syn.burst",
        present: at_once,
        proposed,
        seen: what,
        why: why.to_owned(),
    });

    let what = refused("segments", seen.no_socket, seen.minutes);
    let no_socket = settings.no_socket;
    rows.push(Proposal {
        key: "shield.no_socket.host_per_second",
        present: no_socket.map(|limits| u64::from(limits.host_per_second)),
        proposed: None,
        seen: "segments that pass are not counted apart".to_owned(),
        why: "nothing that is counted speaks for another value".to_owned(),
    });
    let present = no_socket.map(|limits| per_second(limits.per_source));
    let key = "shield.no_socket.per_source_per_second";
    rows.push(by_spread(key, present, 1_000, seen.no_socket, seen.minutes, &what));

    let icmp = settings.icmp;
    let what = refused("echo requests", seen.icmp_source, seen.minutes);
    for (key, present) in [
        ("shield.icmp.per_source_per_second", icmp.map(|limits| per_second(limits.per_source))),
        ("shield.icmp.burst", icmp.map(|limits| u64::from(burst(limits.per_source)))),
    ] {
        rows.push(by_spread(key, present, 1_000, seen.icmp_source, seen.minutes, &what));
    }
    let what = refused("echo requests", seen.icmp_host, seen.minutes);
    let present = icmp.map(|limits| pace_per_second(limits.host));
    rows.push(by_spread(
        "shield.icmp.host_per_second",
        present,
        1_000_000,
        seen.icmp_host,
        seen.minutes,
        &what,
    ));
    rows
}

fn refused(what: &str, group: Group, minutes: u64) -> String {
    match group.packets {
        0 => format!("no {what} over it"),
        packets => format!(
            "{packets} {what} over it, in {} of {minutes} minutes, up to {} a second",
            group.minutes, group.peak_per_second
        ),
    }
}

/// Twice the present value where refusals are steady.
fn by_spread(
    key: &'static str,
    present: Option<u64>,
    most: u64,
    group: Group,
    minutes: u64,
    what: &str,
) -> Proposal {
    let doubled = present.map(|present| present.saturating_mul(2).min(most));
    let (proposed, why) = match (present, spread(group, minutes)) {
        (None, _) => (None, "switched off by the configuration"),
        (Some(_), Spread::None) => (None, "it hit nobody, and how much lower it could be is not counted"),
        (Some(_), Spread::Rare) => {
            (None, "refusals in so few minutes look like an attack; `tunica incident list` shows it")
        }
        (Some(_), Spread::Steady) => (
            doubled.filter(|doubled| present != Some(*doubled)),
            "refusals in so many minutes look like ordinary use; if few sources are to blame, allow them instead",
        ),
    };
    Proposal { key, present, proposed, seen: what.to_owned(), why: why.to_owned() }
}

/// The budget follows the peak of all ports together, which no single port exceeds.
fn port_budget(present: Option<u64>, seen: &Seen) -> (Option<u64>, String) {
    let Some(present) = present else { return (None, "switched off by the configuration".to_owned()) };
    let peak = seen.syns.peak_per_second;
    match spread(seen.over_budget, seen.minutes) {
        Spread::Steady => {
            let proposed = peak.saturating_mul(2).clamp(present, 1_000_000);
            let why = "ports are over it in so many minutes that it looks like ordinary use; twice the peak";
            (Some(proposed).filter(|proposed| *proposed != present), why.to_owned())
        }
        Spread::Rare => {
            (None, "excesses in so few minutes look like an attack, for which it is there".to_owned())
        }
        Spread::None => {
            let proposed = peak.saturating_mul(4).max(20);
            let is_long = seen.minutes >= LEAST_TO_LOWER.as_secs() / 60;
            if is_long && proposed < present {
                return (
                    Some(proposed),
                    "four times the peak of a day or more: cookies are there earlier".to_owned(),
                );
            }
            (None, "no port needed more, and a day of observation at least is needed to lower it".to_owned())
        }
    }
}

/// The values proposed, as lines of a configuration file; empty where nothing is to be changed.
pub fn toml(proposals: &[Proposal]) -> String {
    let mut sections: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for Proposal { key, proposed, .. } in proposals {
        if let (Some((section, name)), Some(value)) = (key.rsplit_once('.'), proposed) {
            sections.entry(section).or_default().push(format!("{name} = {value}\n"));
        }
    }
    let sections = sections.iter().map(|(section, lines)| format!("[{section}]\n{}", lines.concat()));
    sections.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::tests::settings;

    fn group(packets: u64, peak_per_second: u64, minutes: u64) -> Group {
        Group { packets, peak_per_second, minutes }
    }

    #[test]
    fn proposals_follow_what_was_seen() {
        const DAY: u64 = 1_440;
        let quiet = Seen { minutes: DAY, syns: group(9_000, 40, 900), ..Seen::default() };
        let none: &[(&str, u64)] = &[];
        for (what, seen, expected) in [
            ("a busy day within its limits", quiet.clone(), none),
            (
                "a quiet day",
                Seen { syns: group(900, 3, 90), ..quiet.clone() },
                &[("shield.port_syn.per_second", 20), ("shield.port_syn.burst", 60)],
            ),
            ("a quiet hour is no day", Seen { minutes: 60, syns: group(90, 3, 9), ..Seen::default() }, none),
            (
                "an attack of ten minutes",
                Seen { syn_rate: group(900_000, 9_000, 10), sources: 256, ..quiet.clone() },
                none,
            ),
            (
                "sources that exceed it all day",
                Seen { syn_rate: group(900, 5, 300), sources: 4, ..quiet.clone() },
                &[("shield.syn.per_source_per_second", 20), ("shield.syn.burst", 40)],
            ),
            (
                "a port that is always over its budget",
                Seen {
                    syns: group(90_000_000, 400, DAY),
                    over_budget: group(9_000_000, 300, 1_000),
                    ports: vec![443],
                    ..quiet.clone()
                },
                &[("shield.port_syn.per_second", 800), ("shield.port_syn.burst", 2_400)],
            ),
            ("one flood of it", Seen { over_budget: group(90_000, 90_000, 1), ..quiet.clone() }, none),
            (
                "segments without a connection",
                Seen { no_socket: group(500, 9, 72), ..quiet.clone() },
                &[("shield.no_socket.per_source_per_second", 200)],
            ),
            (
                "monitoring that pings",
                Seen { icmp_source: group(5_000, 9, DAY), icmp_host: group(9, 1, 2), ..quiet.clone() },
                &[("shield.icmp.per_source_per_second", 2), ("shield.icmp.burst", 8)],
            ),
            (
                "two minutes of three are no pattern",
                Seen { minutes: 3, icmp_host: group(9, 1, 2), ..Seen::default() },
                none,
            ),
        ] {
            let proposals = propose(&seen, &settings());
            assert_eq!(proposals.len(), 9);
            let changed: Vec<(&str, u64)> =
                proposals.iter().filter_map(|row| Some((row.key, row.proposed?))).collect();
            assert_eq!(changed, expected, "{what}");
            for row in proposals {
                assert!(row.present.is_some() && !row.seen.is_empty() && !row.why.is_empty(), "{row:?}");
            }
        }
        let off = Settings { syn: None, port_syn: None, no_socket: None, icmp: None, ..settings() };
        let loud =
            Seen { minutes: 60, syn_rate: group(9, 9, 60), over_budget: group(9, 9, 60), ..Seen::default() };
        assert!(propose(&loud, &off).iter().all(|row| (row.present, row.proposed) == (None, None)));
    }

    #[test]
    fn the_snippet_holds_what_changes() {
        let steady = group(90, 5, 60);
        let seen = Seen { minutes: 60, syn_rate: steady, icmp_host: steady, ..Seen::default() };
        assert_eq!(
            toml(&propose(&seen, &settings())),
            "[shield.icmp]\nhost_per_second = 200\n\n[shield.syn]\nper_source_per_second = 20\nburst = 40\n"
        );
        assert_eq!(toml(&propose(&Seen::default(), &settings())), "");
    }

    #[test]
    fn counters_and_samples_are_gathered_in_bounds() {
        let at = |seconds: u64| Monotime(seconds * 1_000_000_000);
        let mut observation = Observation::new(Now { mono: at(0), wall: WallTime(7) });
        let mut totals = Totals::default();
        totals.set(Verdict::Syn, Action::Pass, 1_000_000);
        observation.count(&totals, at(0));
        // Seconds, SYNs that passed and that would not have, so far.
        for (seconds, passed, refused) in
            [(1, 10, 0), (2, 510, 5), (3, 520, 5), (61, 521, 6), (62, 522, 9), (200, 522, 9)]
        {
            totals.set(Verdict::Syn, Action::Pass, 1_000_000 + passed);
            totals.set(Verdict::SynRate, Action::WouldDrop, refused);
            observation.count(&totals, at(seconds));
        }
        // Maps made anew count from zero.
        let mut anew = Totals::default();
        anew.set(Verdict::SynRate, Action::Drop, 2);
        observation.count(&anew, at(201));
        for number in 0..1_000u32 {
            let source = PacketSource::of(number.to_be_bytes().into());
            observation.sample(source, Verdict::SynRate);
            observation.sample(source, Verdict::Land);
            observation.armed(u16::try_from(number).unwrap());
        }
        let seen = observation.seen(at(201));
        assert_eq!((seen.minutes, seen.sources, seen.ports.len()), (3, MOST_SOURCES, 64));
        assert_eq!(seen.syns, group(533, 505, 3));
        assert_eq!(seen.syn_rate, group(11, 5, 3));
        assert_eq!(seen.no_socket, Group::default());
    }
}
