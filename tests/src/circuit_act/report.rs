//! What the second part measured, as a table, as sentences, and as a chart.
//!
//! Every sentence is computed from the numbers; none is written beforehand.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use super::{Assault, Loads};
use crate::report::{grouped, percent};

mod chart;

pub use chart::svg;

/// What the attackers do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Act {
    /// Nothing: the reference.
    Quiet,
    /// Floods over few circuits, and circuits as fast as tor makes them.
    Attack,
}

impl Act {
    /// Every act, in the order in which they are played.
    pub const ALL: [Self; 2] = [Self::Quiet, Self::Attack];

    /// What the table calls it.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Quiet => "quiet",
            Self::Attack => "circuits and streams through tor",
        }
    }

    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Quiet => "quiet",
            Self::Attack => "attack",
        }
    }
}

/// How streams come to the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// From tor.
    Bare,
    /// From tor through Tunica with the limits of the profile `web`.
    Profile,
    /// From tor through Tunica with limits that fit the service.
    Sized,
}

impl Way {
    /// All of them, in the order of the table.
    pub const ALL: [Self; 3] = [Self::Bare, Self::Profile, Self::Sized];

    /// What the table calls it.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Bare => "tor alone",
            Self::Profile => "Tunica, profile `web`",
            Self::Sized => "Tunica, `web` sized to the service",
        }
    }

    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Profile => "profile",
            Self::Sized => "sized",
        }
    }

    /// Lines of `[circuits]` behind `profile = "web"`.
    pub(super) const fn tuning(self) -> &'static str {
        match self {
            Self::Bare | Self::Profile => "",
            Self::Sized => {
                "max_concurrent_connections = 30\n\
                 max_connections_per_second = 300\n\
                 connections_per_10_seconds = 20\n\
                 max_concurrent_per_circuit = 15\n"
            }
        }
    }
}

/// What is played, in this order. Without an attack the two ways through Tunica differ in nothing.
pub(super) const PLAN: [(Act, Way); 5] = [
    (Act::Quiet, Way::Bare),
    (Act::Quiet, Way::Sized),
    (Act::Attack, Way::Bare),
    (Act::Attack, Way::Profile),
    (Act::Attack, Way::Sized),
];

/// CPU time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cpu {
    /// Of the slow service.
    pub backend: Duration,
    /// Of the onion service's tor.
    pub tor: Duration,
    /// Of `tunica-front`.
    pub front: Duration,
    /// Of `tunicad`.
    pub daemon: Duration,
    /// Of all other tors: relays, clients of visitors and attackers.
    pub network: Duration,
}

impl Cpu {
    /// What was used since then.
    pub(super) fn since(&self, before: &Self) -> Self {
        Self {
            backend: self.backend.saturating_sub(before.backend),
            tor: self.tor.saturating_sub(before.tor),
            front: self.front.saturating_sub(before.front),
            daemon: self.daemon.saturating_sub(before.daemon),
            network: self.network.saturating_sub(before.network),
        }
    }
}

/// What Tunica counted in an act.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// By the ingress: connections and requests by the word of the refusal.
    pub refused: BTreeMap<String, u64>,
    /// By the gate, in the kernel.
    pub at_gate: u64,
    /// Circuits that are banned at the end and were not before; a ban outlives the act.
    pub banned: u64,
    /// Circuits that tor closed because they were banned.
    pub closed: u64,
}

impl Counts {
    /// From the daemon's time series before and after.
    pub(super) fn between(before: &BTreeMap<String, f64>, after: &BTreeMap<String, f64>) -> Self {
        // Counters are whole, and a gauge that fell is none of this act's.
        let grown = |name: &str| {
            (after.get(name).unwrap_or(&0.0) - before.get(name).unwrap_or(&0.0)).max(0.0).round() as u64
        };
        let word = |name: &str| {
            let rest = name.strip_prefix("tunica_front_refused_total{refusal=\"")?;
            Some((rest.strip_suffix("\"}")?.to_owned(), grown(name)))
        };
        Self {
            refused: after.keys().filter_map(|name| word(name)).filter(|(_, count)| *count > 0).collect(),
            at_gate: grown("tunica_gate_segments_total{outcome=\"refused\"}"),
            banned: grown("tunica_circuits_banned"),
            closed: grown("tunica_tor_circuits_closed_total{outcome=\"accepted\"}"),
        }
    }
}

/// One act by one way.
#[derive(Clone, Debug)]
pub struct Row {
    /// The act.
    pub act: Act,
    /// The way.
    pub way: Way,
    /// What the visitors met with.
    pub loads: Loads,
    /// How long they were there.
    pub window: Duration,
    /// What the attackers did, before that time too.
    pub assault: Assault,
    /// What Tunica counted.
    pub counts: Counts,
    /// What it cost in that time.
    pub cpu: Cpu,
}

/// Everything that was measured.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Rows in the order in which they were measured.
    pub rows: Vec<Row>,
}

/// Part of the page loads, 0 to 1, that must succeed under attack with limits that fit the service.
const AIM: f64 = 0.95;
/// Part of the page loads, 0 to 1, that may succeed without Tunica; an attack that leaves more is none.
const ATTACK_LEAVES: f64 = 0.5;

const HEADINGS: [&str; 10] = [
    "act",
    "before the service",
    "page loads that succeed",
    "p50 ms",
    "p99 ms",
    "failed: late, refused, broken",
    "attackers: streams/s, pages/s",
    "refused, by the ingress unless it says the gate",
    "circuits banned, closed at tor",
    "CPU, % of a core: service, its tor, tunica-front, tunicad, rest of the network",
];

impl Row {
    /// Streams that tor opened for attackers, a second.
    fn streams_per_second(&self) -> f64 {
        per_second(self.assault.opened, self.assault.time)
    }

    /// Pages that attackers got, a second.
    fn pages_per_second(&self) -> f64 {
        per_second(self.assault.served, self.assault.time)
    }

    /// Words of refusals and how often each was said, most frequent first.
    fn words(&self) -> Vec<(String, u64)> {
        let gate = (self.counts.at_gate > 0).then(|| ("banned at the gate".to_owned(), self.counts.at_gate));
        let spoken = self.counts.refused.iter().map(|(word, count)| (format!("`{word}`"), *count));
        let mut words: Vec<_> = spoken.chain(gate).collect();
        words.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        words
    }

    fn cells(&self) -> [String; 10] {
        let number = |value: Option<u32>| value.map_or_else(dash, |value| grouped(value.into()));
        let loads = &self.loads;
        let (attack, circuits) = match self.act {
            Act::Quiet => (dash(), dash()),
            Act::Attack => (
                format!("{:.0}, {:.1}", self.streams_per_second(), self.pages_per_second()),
                format!("{}, {}", grouped(self.counts.banned), grouped(self.counts.closed)),
            ),
        };
        let words: Vec<_> =
            self.words().iter().map(|(word, count)| format!("{word} {}", grouped(*count))).collect();
        let refused = match self.way {
            Way::Bare => dash(),
            Way::Profile | Way::Sized if words.is_empty() => "nothing".to_owned(),
            Way::Profile | Way::Sized => words.join(", "),
        };
        let share = |time: Duration| format!("{:.0}", 100.0 * time.as_secs_f64() / self.window.as_secs_f64());
        let ours = |time: Duration| if self.way == Way::Bare { dash() } else { share(time) };
        [
            self.act.title().to_owned(),
            self.way.title().to_owned(),
            percent(loads.success()),
            number(loads.percentile(50)),
            number(loads.percentile(99)),
            format!("{}, {}, {}", loads.late, loads.refused, loads.broken + loads.unreached),
            attack,
            refused,
            if self.way == Way::Bare { dash() } else { circuits },
            [
                share(self.cpu.backend),
                share(self.cpu.tor),
                ours(self.cpu.front),
                ours(self.cpu.daemon),
                share(self.cpu.network),
            ]
            .join(", "),
        ]
    }
}

fn dash() -> String {
    "–".to_owned()
}

fn per_second(count: u64, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { count as f64 / time.as_secs_f64() }
}

impl Report {
    /// The row of this act and way.
    pub fn row(&self, act: Act, way: Way) -> Option<&Row> {
        self.rows.iter().find(|row| row.act == act && row.way == way)
    }

    /// Part of the page loads, 0 to 1, that succeeded under attack this way. Where nobody clicked, nobody was served.
    fn kept(&self, way: Way) -> Option<f64> {
        Some(self.row(Act::Attack, way)?.loads.success().unwrap_or(0.0))
    }

    /// Whether the aim was met: the attack takes half of the page loads where nothing is before the service, and with Tunica
    /// nearly all succeed.
    pub fn is_met(&self) -> bool {
        self.kept(Way::Bare).is_some_and(|part| part <= ATTACK_LEAVES)
            && self.kept(Way::Sized).is_some_and(|part| part >= AIM)
    }

    /// The same as a sentence.
    pub fn verdict(&self) -> String {
        let word = if self.is_met() { "met" } else { "missed" };
        format!(
            "The aim is {word}: under attack at least {:.0} % of page loads succeed with Tunica sized to the service ({}), \
             where at most {:.0} % do with tor alone ({}).",
            100.0 * AIM,
            percent(self.kept(Way::Sized)),
            100.0 * ATTACK_LEAVES,
            percent(self.kept(Way::Bare)),
        )
    }

    /// The table for a terminal: a few lines for each row, since it is wide.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for row in &self.rows {
            let cells = row.cells();
            let mut named = HEADINGS.iter().zip(&cells);
            let head: Vec<&str> = named.by_ref().take(2).map(|(_, cell)| cell.as_str()).collect();
            let _ = writeln!(text, "{}", head.join(" · ").replace('`', ""));
            for (heading, cell) in named.filter(|(_, cell)| *cell != "–") {
                let _ = writeln!(text, "    {heading}: {}", cell.replace('`', ""));
            }
        }
        text
    }

    /// The table in Markdown.
    pub fn markdown(&self) -> String {
        let mut text = format!("| {} |\n|---|---|--:|--:|--:|--:|--:|---|--:|--:|\n", HEADINGS.join(" | "));
        for row in &self.rows {
            let _ = writeln!(text, "| {} |", row.cells().join(" | "));
        }
        text
    }

    /// What the numbers say: a title and sentences for each act.
    pub fn notes(&self) -> Vec<(&'static str, Vec<String>)> {
        let notes = Act::ALL.map(|act| {
            let sentences = match act {
                Act::Quiet => self.on_quiet(),
                Act::Attack => Way::ALL.into_iter().filter_map(|way| self.on_attack(way)).collect(),
            };
            (act.title(), sentences)
        });
        notes.into_iter().filter(|(_, sentences)| !sentences.is_empty()).collect()
    }

    fn on_quiet(&self) -> Vec<String> {
        let rows = (self.row(Act::Quiet, Way::Bare), self.row(Act::Quiet, Way::Sized));
        let (Some(bare), Some(sized)) = rows else { return Vec::new() };
        let refused: u64 = sized.words().iter().map(|(_, count)| count).sum();
        let mut notes = vec![format!(
            "Without attack {} of page loads succeed with tor alone and {} with Tunica, which refuses {} of what visitors ask \
             for.",
            percent(bare.loads.success()),
            percent(sized.loads.success()),
            if refused == 0 { "nothing".to_owned() } else { grouped(refused) },
        )];
        if let (Some(theirs), Some(ours)) = (bare.loads.percentile(50), sized.loads.percentile(50)) {
            notes.push(format!("Half of the pages are there within {theirs} ms and {ours} ms."));
        }
        notes
    }

    fn on_attack(&self, way: Way) -> Option<String> {
        let row = self.row(Act::Attack, way)?;
        let title = way.title();
        let kept = percent(row.loads.success());
        let pages = format!("{:.1} pages a second", row.pages_per_second());
        let cost = 100.0 * row.cpu.backend.as_secs_f64() / row.window.as_secs_f64();
        let served = format!("attackers get {pages}, and the service uses {cost:.0} % of its core");
        Some(match way {
            Way::Bare => format!("With {title} {kept} of page loads succeed: {served}."),
            Way::Profile | Way::Sized => {
                let most = row.words().into_iter().next();
                let most = most.map_or_else(
                    || "nothing is refused".to_owned(),
                    |(word, count)| format!("{word} is the most frequent refusal, {} times", grouped(count)),
                );
                let visitors = match row.loads.refused {
                    0 => "no visitor is refused".to_owned(),
                    refused => format!("{} page loads are refused", grouped(refused)),
                };
                format!(
                    "With {title} {kept} succeed: {served}; {most}; {visitors}; {} circuits are banned, and tor closes {}.",
                    grouped(row.counts.banned),
                    grouped(row.counts.closed),
                )
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(act: Act, way: Way, good: usize, refused: u64) -> Row {
        Row {
            act,
            way,
            loads: Loads { milliseconds: vec![700; good], refused, ..Loads::default() },
            window: Duration::from_secs(30),
            assault: match act {
                Act::Quiet => Assault::default(),
                Act::Attack => {
                    Assault { opened: 4_500, served: 90, time: Duration::from_secs(45), ..Assault::default() }
                }
            },
            counts: match (act, way) {
                (Act::Attack, Way::Profile | Way::Sized) => Counts {
                    refused: [("banned".to_owned(), 2_000), ("too_many_open".to_owned(), 3_000)].into(),
                    at_gate: 70,
                    banned: 40,
                    closed: 39,
                },
                (Act::Quiet, _) | (Act::Attack, Way::Bare) => Counts::default(),
            },
            cpu: Cpu { backend: Duration::from_secs(15), ..Cpu::default() },
        }
    }

    fn report(bare: usize, sized: usize) -> Report {
        let rows = PLAN.map(|(act, way)| match (act, way) {
            (Act::Quiet, _) => row(act, way, 100, 0),
            (Act::Attack, Way::Bare) => row(act, way, bare, 100 - bare as u64),
            (Act::Attack, Way::Profile) => row(act, way, 60, 40),
            (Act::Attack, Way::Sized) => row(act, way, sized, 100 - sized as u64),
        });
        Report { rows: rows.into() }
    }

    #[test]
    fn the_table_has_a_row_for_each_act_and_way() {
        let text = report(10, 99).markdown();
        assert_eq!(text.lines().count(), 2 + PLAN.len());
        assert!(
            text.contains(
                "| circuits and streams through tor | Tunica, `web` sized to the service | 99.0 % | 700 | 700 | 0, 1, 0 | 100, 2.0 | \
                 `too_many_open` 3 000, `banned` 2 000, banned at the gate 70 | 40, 39 | 50, 0, 0, 0, 0 |"
            ),
            "{text}"
        );
        assert!(
            text.contains(
                "| quiet | tor alone | 100.0 % | 700 | 700 | 0, 0, 0 | – | – | – | 50, 0, –, –, 0 |"
            )
        );
        assert!(text.contains("| nothing | – |"), "{text}");
    }

    #[test]
    fn the_aim_needs_an_attack_and_a_defence() {
        for (bare, sized, is_met) in [(10, 99, true), (50, 95, true), (51, 99, false), (10, 94, false)] {
            let report = report(bare, sized);
            assert_eq!(report.is_met(), is_met, "{bare} {sized}");
            assert_eq!(report.verdict().contains("The aim is met"), is_met);
        }
        assert!(!Report::default().is_met());
    }

    #[test]
    fn sentences_follow_from_the_numbers() {
        let notes = report(10, 100).notes();
        let text: Vec<String> = notes.into_iter().flat_map(|(_, sentences)| sentences).collect();
        let text = text.join("\n");
        assert!(text.contains("refuses nothing of what visitors ask for"), "{text}");
        assert!(
            text.contains("With tor alone 10.0 % of page loads succeed: attackers get 2.0 pages"),
            "{text}"
        );
        assert!(text.contains("40 page loads are refused"), "{text}");
        assert!(text.contains("no visitor is refused; 40 circuits are banned, and tor closes 39"), "{text}");
        assert_eq!(Report::default().notes(), []);
    }

    #[test]
    fn counts_are_what_grew() {
        let series = |refused: f64, gate: f64| {
            BTreeMap::from([
                ("tunica_front_refused_total{refusal=\"banned\"}".to_owned(), refused),
                ("tunica_front_refused_total{refusal=\"capacity\"}".to_owned(), 3.0),
                ("tunica_gate_segments_total{outcome=\"refused\"}".to_owned(), gate),
            ])
        };
        let counts = Counts::between(&series(2.0, 1.0), &series(9.0, 5.0));
        assert_eq!(counts.refused, [("banned".to_owned(), 7)].into());
        assert_eq!((counts.at_gate, counts.banned, counts.closed), (4, 0, 0));
    }
}
