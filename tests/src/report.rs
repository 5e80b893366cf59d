//! What the demo measured, as a table, as sentences, and as a chart.
//!
//! Every sentence is computed from the numbers; none is written beforehand.

use std::{fmt::Write as _, fs, thread, time::Duration};

use clap::ValueEnum;
use tunica_common::verdict::{Action, Verdict};

use crate::{
    armed::Packets,
    client::Visits,
    counters::{ProcessorTime, TICK},
};

pub(crate) mod chart;

pub use chart::svg;

/// What the attackers do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Act {
    /// Nothing: the reference.
    Quiet,
    /// SYNs from random, forged sources.
    Forged,
    /// SYNs from 64 sources.
    Fixed,
    /// XMAS, NULL and SYN+FIN segments to many ports.
    Scan,
    /// Completed handshakes from 64 real sources, closed at once.
    Connections,
    /// ACK segments from random, forged sources.
    Ack,
    /// SYNs and UDP datagrams to closed ports, from random, forged sources.
    Closed,
    /// ICMP echo requests from random, forged sources.
    Icmp,
    /// SYNs from random, forged sources over IPv6, as are the visitors.
    Forged6,
    /// ACK segments from random, forged sources over IPv6, as are the visitors.
    Ack6,
}

impl Act {
    /// Every act, in the order in which they are played.
    pub const ALL: [Self; 10] = [
        Self::Quiet,
        Self::Forged,
        Self::Fixed,
        Self::Scan,
        Self::Connections,
        Self::Ack,
        Self::Closed,
        Self::Icmp,
        Self::Forged6,
        Self::Ack6,
    ];

    /// What the table calls it.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Quiet => "quiet",
            Self::Forged => "forged-source SYN flood",
            Self::Fixed => "fixed-source SYN flood",
            Self::Scan => "scan",
            Self::Connections => "completed handshakes",
            Self::Ack => "forged-source ACK flood",
            Self::Closed => "closed ports",
            Self::Icmp => "ping flood",
            Self::Forged6 => "forged-source SYN flood, IPv6",
            Self::Ack6 => "forged-source ACK flood, IPv6",
        }
    }

    /// Whether attack and visitors come over IPv6.
    pub const fn is_v6(self) -> bool {
        match self {
            Self::Forged6 | Self::Ack6 => true,
            Self::Quiet
            | Self::Forged
            | Self::Fixed
            | Self::Scan
            | Self::Connections
            | Self::Ack
            | Self::Closed
            | Self::Icmp => false,
        }
    }

    /// Whether half-open connections could fill the service's queue, so that SYN cookies matter.
    pub const fn fills_queue(self) -> bool {
        match self {
            Self::Forged | Self::Fixed | Self::Forged6 => true,
            Self::Quiet
            | Self::Scan
            | Self::Connections
            | Self::Ack
            | Self::Closed
            | Self::Icmp
            | Self::Ack6 => false,
        }
    }
}

/// How the host defends itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Baseline {
    /// The kernel alone, `tcp_syncookies=0`.
    NoCookies,
    /// The kernel alone, `tcp_syncookies=1`.
    Debian,
    /// `tcp_syncookies=2`, and Tunica counts what it would drop and answer.
    Observe,
    /// `tcp_syncookies=2`, and Tunica drops and answers.
    Enforce,
}

impl Baseline {
    /// Every baseline, in the order of the table.
    pub const ALL: [Self; 4] = [Self::NoCookies, Self::Debian, Self::Observe, Self::Enforce];

    /// What the table calls it.
    pub const fn title(self) -> &'static str {
        match self {
            Self::NoCookies => "kernel without cookies",
            Self::Debian => "Debian's default",
            Self::Observe => "Tunica observing",
            Self::Enforce => "Tunica enforcing",
        }
    }

    /// The value of `net.ipv4.tcp_syncookies`: Tunica answers with cookies only where the listener accepts them, which it
    /// does with 2. The kernel then sends cookies for every SYN that reaches it, attack or not; observing shows what that
    /// does alone.
    pub const fn syncookies(self) -> &'static str {
        match self {
            Self::NoCookies => "0",
            Self::Debian => "1",
            Self::Observe | Self::Enforce => "2",
        }
    }

    /// `shield.mode`, where the daemon runs.
    pub const fn mode(self) -> Option<&'static str> {
        match self {
            Self::NoCookies | Self::Debian => None,
            Self::Observe => Some("observe"),
            Self::Enforce => Some("enforce"),
        }
    }
}

/// One act under one baseline.
#[derive(Clone, Debug)]
pub struct Row {
    /// The act.
    pub act: Act,
    /// The baseline.
    pub baseline: Baseline,
    /// What the visitors met with.
    pub visits: Visits,
    /// How long the visitors went out.
    pub window: Duration,
    /// Attack packets that reached the host in that time.
    pub arrived: u64,
    /// Time in soft interrupts in that time, all processors, in units of [`TICK`].
    pub softirq_ticks: u64,
    /// Attack packets that reached the host in the whole act, before and after the window too.
    pub sent: u64,
    /// What Tunica said about all packets of the whole act, where it ran.
    pub packets: Option<Packets>,
}

/// Time in soft interrupts for 100 000 attack packets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cost {
    /// Milliseconds, and one standard deviation of how they were sampled.
    Measured {
        /// Milliseconds for 100 000 packets.
        milliseconds: f64,
        /// One standard deviation.
        deviation: f64,
    },
    /// Less than three standard deviations away from the quiet act.
    NotSeparable,
}

impl Row {
    /// Visits a second that got their answer.
    pub fn requests_per_second(&self) -> f64 {
        self.visits.successes() as f64 / self.window.as_secs_f64()
    }

    /// Attack packets a second that arrived.
    pub fn arrived_per_second(&self) -> f64 {
        self.arrived as f64 / self.window.as_secs_f64()
    }

    /// Part of the attack, 0 to 1, that Tunica met with this verdict and action; `None` where it did not run.
    pub fn share(&self, verdict: Verdict, action: Action) -> Option<f64> {
        let packets = self.packets.as_ref()?;
        let count = packets.get(&(verdict, action.label())).copied().unwrap_or(0);
        (self.sent > 0).then(|| count as f64 / self.sent as f64)
    }

    /// Part of the attack, 0 to 1, that Tunica met with this action, whatever the verdict.
    pub fn share_of_action(&self, action: Action) -> Option<f64> {
        Verdict::ALL.iter().map(|verdict| self.share(*verdict, action)).sum()
    }

    /// What 100 000 attack packets cost; `quiet` is the quiet act under the same baseline. `None` without attack.
    pub fn cost(&self, quiet: &Self) -> Option<Cost> {
        if self.arrived == 0 {
            return None;
        }
        let scale = self.window.as_secs_f64() / quiet.window.as_secs_f64();
        let (own, reference) = (self.softirq_ticks as f64, quiet.softirq_ticks as f64);
        // The kernel samples at its tick, so each figure is a count with the deviation of a count, its root.
        let ticks = own - reference * scale;
        let deviation = (own + reference * scale * scale).sqrt();
        if ticks < 3.0 * deviation {
            return Some(Cost::NotSeparable);
        }
        let milliseconds = TICK.as_secs_f64() * 1000.0 / (self.arrived as f64 / 100_000.0);
        Some(Cost::Measured { milliseconds: ticks * milliseconds, deviation: deviation * milliseconds })
    }

    /// Everything that Tunica dropped or answered, or would have, most frequent first.
    fn spoken(&self) -> Vec<(Verdict, &'static str, u64)> {
        let mut spoken: Vec<_> = self
            .packets
            .iter()
            .flatten()
            .filter(|((_, action), count)| *action != Action::Pass.label() && **count > 0)
            .map(|((verdict, action), count)| (*verdict, *action, *count))
            .collect();
        spoken.sort_by_key(|(_, _, count)| std::cmp::Reverse(*count));
        spoken
    }

    fn verdict_cell(&self) -> String {
        if self.packets.is_none() {
            return "–".to_owned();
        }
        // The foremost, and others that are worth a digit.
        let is_shown = |(place, (_, _, count)): &(usize, (Verdict, &'static str, u64))| {
            *place == 0 || self.sent == 0 || *count * 1000 >= self.sent
        };
        let words: Vec<String> = self
            .spoken()
            .into_iter()
            .enumerate()
            .filter(is_shown)
            .map(|(_, spoken)| spoken)
            .map(|(verdict, action, count)| {
                let action = action.replace('_', " ");
                if self.sent == 0 {
                    return format!("{} {action} {count}", verdict.label());
                }
                format!("{} {action} {:.1} %", verdict.label(), 100.0 * count as f64 / self.sent as f64)
            })
            .collect();
        if words.is_empty() { "all passed".to_owned() } else { words.join(", ") }
    }
}

/// Everything the demo measured.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Rows in the order in which they were measured.
    pub rows: Vec<Row>,
}

/// Part of the visits, 0 to 1, that must succeed in every act with Tunica enforcing.
pub const AIM: f64 = 0.99;

const HEADINGS: [&str; 10] = [
    "act",
    "baseline",
    "legitimate success",
    "p50 µs",
    "p99 µs",
    "× quiet",
    "requests/s",
    "attack packets/s",
    "softirq ms per 100 000",
    "Tunica's verdict on the attack",
];

/// Success of two rows is the same if it differs by no more than this, 0 to 1.
const SAME_SUCCESS: f64 = 0.01;

/// A tail latency is the same if the greater one is no more than this many times the other, or if they differ by less
/// than [`UNNOTICED_MICROSECONDS`].
const SAME_LATENCY: f64 = 1.5;

/// A difference that no visitor notices, and that a tick of the scheduler makes.
const UNNOTICED_MICROSECONDS: u32 = 4_000;

impl Report {
    /// The row of this act and baseline.
    pub fn row(&self, act: Act, baseline: Baseline) -> Option<&Row> {
        self.rows.iter().find(|row| row.act == act && row.baseline == baseline)
    }

    /// What the attack of this act cost under this baseline.
    pub fn cost(&self, act: Act, baseline: Baseline) -> Option<Cost> {
        self.row(act, baseline)?.cost(self.row(Act::Quiet, baseline)?)
    }

    /// Acts in which Tunica, enforcing, kept fewer visitors than [`AIM`], with the part that it kept.
    pub fn missed(&self) -> Vec<(Act, f64)> {
        let enforced = self.rows.iter().filter(|row| row.baseline == Baseline::Enforce);
        // Where nobody came, nobody was served.
        let parts = enforced.map(|row| (row.act, row.visits.success().unwrap_or(0.0)));
        parts.filter(|(_, part)| *part < AIM).collect()
    }

    /// Whether the aim was met, as a sentence; nothing if Tunica was not played enforcing.
    pub fn verdict(&self) -> Option<String> {
        let played = self.rows.iter().filter(|row| row.baseline == Baseline::Enforce).count();
        let missed: Vec<String> = self
            .missed()
            .into_iter()
            .map(|(act, part)| format!("{} ({})", act.title(), percent(Some(part))))
            .collect();
        let aim =
            format!("at least {:.0} % of visits succeed in every act with Tunica enforcing", 100.0 * AIM);
        match (played, missed.is_empty()) {
            (0, _) => None,
            (_, true) => Some(format!("The aim is met: {aim}.")),
            (_, false) => Some(format!("The aim is missed ({aim}): {}.", missed.join(", "))),
        }
    }

    /// p50 and p99 of the visits as multiples of the quiet act's under the same baseline.
    fn slowdown(&self, row: &Row) -> String {
        let quiet = self.row(Act::Quiet, row.baseline).filter(|_| row.act != Act::Quiet);
        let ratio = |percentile| {
            let (own, reference) =
                (row.visits.percentile(percentile)?, quiet?.visits.percentile(percentile)?);
            Some(format!("{:.1}", f64::from(own) / f64::from(reference.max(1))))
        };
        match (ratio(50), ratio(99)) {
            (Some(half), Some(most)) => format!("{half}, {most}"),
            _ => "–".to_owned(),
        }
    }

    /// Rows of the table, grouped by act.
    fn cells(&self) -> Vec<[String; 10]> {
        let mut ordered: Vec<&Row> = self.rows.iter().collect();
        ordered.sort_by_key(|row| (row.act, row.baseline));
        let number = |value: Option<u32>| value.map_or_else(|| "–".to_owned(), |value| grouped(value.into()));
        ordered
            .into_iter()
            .map(|row| {
                let cost = match self.cost(row.act, row.baseline) {
                    None => "–".to_owned(),
                    Some(Cost::NotSeparable) => "not separable".to_owned(),
                    Some(Cost::Measured { milliseconds, deviation }) => {
                        format!("{milliseconds:.0} ± {deviation:.0}")
                    }
                };
                [
                    row.act.title().to_owned(),
                    row.baseline.title().to_owned(),
                    percent(row.visits.success()),
                    number(row.visits.percentile(50)),
                    number(row.visits.percentile(99)),
                    self.slowdown(row),
                    format!("{:.0}", row.requests_per_second()),
                    grouped(row.arrived_per_second().round() as u64),
                    cost,
                    row.verdict_cell(),
                ]
            })
            .collect()
    }

    /// The table for a terminal.
    pub fn text(&self) -> String {
        let cells = self.cells();
        let width = |column: usize| {
            let texts = cells.iter().filter_map(|row| row.get(column));
            texts
                .map(|text| text.chars().count())
                .chain(HEADINGS.get(column).map(|text| text.chars().count()))
                .max()
        };
        let widths: Vec<usize> = (0..HEADINGS.len()).filter_map(width).collect();
        let line = |texts: &[String]| {
            let mut line = String::new();
            for (column, (text, width)) in texts.iter().zip(&widths).enumerate() {
                let space = " ".repeat(width.saturating_sub(text.chars().count()));
                // Words stand left, numbers right.
                let _ = match column {
                    0 | 1 | 9 => write!(line, "{text}{space}  "),
                    _ => write!(line, "{space}{text}  "),
                };
            }
            line.trim_end().to_owned()
        };
        let mut text = line(&HEADINGS.map(str::to_owned));
        let mut act = String::new();
        for row in &cells {
            let [title, ..] = row;
            if *title != act {
                text.push('\n');
                act.clone_from(title);
            }
            text.push('\n');
            text.push_str(&line(row));
        }
        text.push('\n');
        text
    }

    /// The table in Markdown.
    pub fn markdown(&self) -> String {
        let mut text = format!("| {} |\n|---|---|--:|--:|--:|--:|--:|--:|--:|---|\n", HEADINGS.join(" | "));
        for row in self.cells() {
            let _ = writeln!(text, "| {} |", row.join(" | "));
        }
        text
    }

    /// For each act that was played: its title, and what the numbers say.
    pub fn notes(&self) -> Vec<(&'static str, Vec<String>)> {
        Act::ALL
            .into_iter()
            .filter(|act| self.rows.iter().any(|row| row.act == *act))
            .map(|act| (act.title(), self.notes_on(act)))
            .filter(|(_, notes)| !notes.is_empty())
            .collect()
    }

    fn notes_on(&self, act: Act) -> Vec<String> {
        let mut notes = Vec::new();
        let [none, debian, observe, enforce] = Baseline::ALL.map(|baseline| self.row(act, baseline));
        if let (Some(none), Some(debian)) = (none, debian)
            && act != Act::Quiet
        {
            notes.push(on_cookies(none, debian));
        }
        if let (Some(debian), Some(enforce)) = (debian, enforce) {
            notes.push(on_success(act, debian, enforce));
            notes.extend(on_latency(debian, enforce));
        }
        let costs = (self.cost(act, Baseline::Debian), self.cost(act, Baseline::Enforce));
        if let (Some(debian), Some(enforce)) = costs {
            notes.push(on_cost(debian, enforce));
        }
        if act == Act::Quiet {
            return notes;
        }
        let shares =
            |row: &Row, drop, answer| Some((row.share_of_action(drop)?, row.share_of_action(answer)?));
        if let Some((dropped, answered)) = enforce.and_then(|row| shares(row, Action::Drop, Action::Answer)) {
            let (drops, answers) = (percent(Some(dropped)), percent(Some(answered)));
            notes.push(match dropped + answered {
                _ if answered > 0.9 => {
                    format!("Tunica answers {answers} of the attack with cookies before the network stack sees it.")
                }
                _ if dropped > 0.9 => format!("Tunica drops {drops} of the attack before the network stack sees it."),
                stopped if stopped < 0.05 => format!(
                    "Tunica drops {drops} and answers {answers} of the attack: no limit of it is exceeded, so the kernel \
                     carries this act."
                ),
                _ => format!("Tunica drops {drops} and answers {answers} of the attack; the rest reaches the network stack."),
            });
        }
        if let Some(row) = observe
            && let Some((would_drop, would_answer)) = shares(row, Action::WouldDrop, Action::WouldAnswer)
        {
            let (dropped, answered) =
                (row.share_of_action(Action::Drop), row.share_of_action(Action::Answer));
            notes.push(format!(
                "Observing, Tunica drops {} and answers {}, and counts {} that it would have dropped and {} that it would \
                 have answered.",
                percent(dropped),
                percent(answered),
                percent(Some(would_drop)),
                percent(Some(would_answer))
            ));
        }
        notes
    }
}

fn on_cookies(none: &Row, debian: &Row) -> String {
    let (without, with) = (none.visits.success().unwrap_or(0.0), debian.visits.success().unwrap_or(0.0));
    let numbers =
        format!("{} without SYN cookies, {} with them", percent(Some(without)), percent(Some(with)));
    if with - without > SAME_SUCCESS {
        format!("The kernel's SYN cookies decide whether the service is there: success {numbers}.")
    } else {
        format!("The service does not need SYN cookies here: success {numbers}.")
    }
}

fn on_success(act: Act, debian: &Row, enforce: &Row) -> String {
    let (theirs, ours) = (debian.visits.success().unwrap_or(0.0), enforce.visits.success().unwrap_or(0.0));
    let numbers = format!("success {} and {}", percent(Some(theirs)), percent(Some(ours)));
    if ours - theirs > SAME_SUCCESS {
        format!("Tunica enforcing keeps more visitors than Debian's default: {numbers}.")
    } else if theirs - ours > SAME_SUCCESS {
        format!("Tunica enforcing keeps fewer visitors than Debian's default: {numbers}.")
    } else if act == Act::Quiet {
        format!("Without attack Tunica refuses no visitor that Debian's default serves: {numbers}.")
    } else {
        format!("Debian's default does as well for the visitors: {numbers}.")
    }
}

fn on_latency(debian: &Row, enforce: &Row) -> Option<String> {
    let (theirs, ours) = (debian.visits.percentile(99)?, enforce.visits.percentile(99)?);
    let ratio = f64::from(ours.max(1)) / f64::from(theirs.max(1));
    let is_same = ours.abs_diff(theirs) < UNNOTICED_MICROSECONDS;
    let (word, times) = match ratio {
        ratio if !is_same && ratio > SAME_LATENCY => {
            ("slower with Tunica enforcing", format!(", {ratio:.1} times as long"))
        }
        ratio if !is_same && ratio < 1.0 / SAME_LATENCY => {
            ("faster with Tunica enforcing", format!(", {:.1} times faster", 1.0 / ratio))
        }
        _ => ("much the same", String::new()),
    };
    Some(format!(
        "The slowest visits are {word}: p99 {} µs under Debian's default, {} µs under Tunica{times}.",
        grouped(theirs.into()),
        grouped(ours.into())
    ))
}

fn on_cost(debian: Cost, enforce: Cost) -> String {
    match (debian, enforce) {
        (
            Cost::Measured { milliseconds: theirs, deviation: their_deviation },
            Cost::Measured { milliseconds: ours, deviation: our_deviation },
        ) => {
            let noise = 3.0 * their_deviation.hypot(our_deviation);
            let numbers = format!(
                "{theirs:.0} ms of softirq time for 100 000 packets under Debian's default, {ours:.0} ms under Tunica"
            );
            if theirs - ours > noise {
                format!("Tunica spends less: {numbers}, {:.1} times less.", theirs / ours)
            } else if ours - theirs > noise {
                format!("Tunica spends more: {numbers}, {:.1} times more.", ours / theirs)
            } else {
                format!("This machine cannot tell the two costs apart: {numbers}.")
            }
        }
        (Cost::Measured { milliseconds, .. }, Cost::NotSeparable) => format!(
            "Tunica spends less: {milliseconds:.0} ms of softirq time for 100 000 packets under Debian's default, no more \
             than noise under Tunica."
        ),
        (Cost::NotSeparable, Cost::Measured { milliseconds, .. }) => format!(
            "Tunica spends more: {milliseconds:.0} ms of softirq time for 100 000 packets, no more than noise under \
             Debian's default."
        ),
        (Cost::NotSeparable, Cost::NotSeparable) => {
            "The softirq time of this attack cannot be separated from noise on this machine.".to_owned()
        }
    }
}

/// The machine's kind, without its name.
pub fn machine() -> String {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease");
    let information = read("/proc/cpuinfo");
    let model = information
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unnamed", |(_, model)| model);
    let build = if cfg!(debug_assertions) { ", programs not optimised" } else { "" };
    format!("{cores} cores ({model}), Linux {}{build}", kernel.trim())
}

/// What stands behind [`machine`] where others had at least a hundredth of the processor time that it asked for meanwhile.
pub fn stolen(before: &ProcessorTime, after: &ProcessorTime) -> String {
    match after.percent_stolen_since(before) {
        0 => String::new(),
        percent => format!(
            ", while a hypervisor gave {percent} % of the processor time that the machine asked for to others, which \
             slows some visits"
        ),
    }
}

pub(crate) fn percent(part: Option<f64>) -> String {
    part.map_or_else(|| "–".to_owned(), |part| format!("{:.1} %", 100.0 * part))
}

/// A number with its thousands apart.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(act: Act, baseline: Baseline, latencies: Vec<u32>, failures: u64, ticks: u64) -> Row {
        let arrived = if act == Act::Quiet { 0 } else { 600_000 };
        Row {
            act,
            baseline,
            visits: Visits { latencies_microseconds: latencies, failures, resets: 0 },
            window: Duration::from_secs(6),
            arrived,
            softirq_ticks: ticks,
            sent: arrived + 60_000 * u64::from(arrived > 0),
            packets: baseline.mode().map(|mode| {
                let action = if mode == "enforce" { "drop" } else { "would_drop" };
                let dropped = if act == Act::Fixed { 653_400 } else { 0 };
                Packets::from([((Verdict::SynRate, action), dropped), ((Verdict::Pass, "pass"), 900)])
            }),
        }
    }

    fn report() -> Report {
        let mut rows = Vec::new();
        for baseline in Baseline::ALL {
            rows.push(row(Act::Quiet, baseline, vec![200; 700], 0, 4));
            let (latencies, failures) = match baseline {
                Baseline::NoCookies => (Vec::new(), 80),
                Baseline::Debian | Baseline::Observe | Baseline::Enforce => (vec![300; 700], 0),
            };
            let ticks = if baseline == Baseline::Enforce { 40 } else { 120 };
            rows.push(row(Act::Fixed, baseline, latencies, failures, ticks));
        }
        Report { rows }
    }

    #[test]
    fn time_that_others_had_is_told_from_a_hundredth_on() {
        let at = |busy, stolen| ProcessorTime { busy, softirq: 0, stolen };
        assert!(stolen(&at(200, 10), &at(290, 30)).contains(" gave 18 % "));
        assert_eq!(stolen(&at(200, 10), &at(1_200, 11)), "");
    }

    #[test]
    fn the_table_has_a_row_for_each_act_and_baseline() {
        let report = report();
        assert_eq!(report.markdown().lines().count(), 2 + 8);
        assert!(report.markdown().contains(
            "| fixed-source SYN flood | Tunica enforcing | 100.0 % | 300 | 300 | 1.5, 1.5 | 117 | 100 000 | 60 ± 11 | syn_rate drop 99.0 % |"
        ));
        assert!(report.markdown().contains("| kernel without cookies | 0.0 % | – | – | – | 0 | 100 000 |"));
        assert!(report.text().contains("Tunica observing"));
    }

    #[test]
    fn sentences_follow_from_the_numbers() {
        let mut report = report();
        let notes = |report: &Report| report.notes_on(Act::Fixed).join("\n");
        let text = notes(&report);
        assert!(text.contains("SYN cookies decide whether the service is there: success 0.0 %"), "{text}");
        assert!(text.contains("Debian's default does as well for the visitors"), "{text}");
        assert!(text.contains("Tunica spends less: 193 ms"), "{text}");
        assert!(text.contains("drops 99.0 % of the attack before the network stack"), "{text}");
        assert!(
            text.contains("Observing, Tunica drops 0.0 % and answers 0.0 %, and counts 99.0 %"),
            "{text}"
        );
        let last = report.rows.last_mut().unwrap();
        last.softirq_ticks = 360;
        last.visits.failures = 700;
        let text = notes(&report);
        assert!(
            text.contains("keeps fewer visitors than Debian's default: success 100.0 % and 50.0 %"),
            "{text}"
        );
        assert!(text.contains("Tunica spends more"), "{text}");
    }

    #[test]
    fn a_missed_aim_is_named() {
        let mut report = report();
        assert!(report.missed().is_empty());
        assert!(report.verdict().unwrap().contains("is met"));
        report.rows.last_mut().unwrap().visits.failures = 8;
        assert_eq!(report.missed().len(), 1);
        let text = report.verdict().unwrap();
        assert!(text.contains("missed") && text.contains("fixed-source SYN flood (98.9 %)"), "{text}");
        assert_eq!(Report::default().verdict(), None);
    }

    #[test]
    fn a_cost_within_noise_is_not_a_number() {
        let quiet = row(Act::Quiet, Baseline::Debian, Vec::new(), 0, 100);
        let attack = row(Act::Scan, Baseline::Debian, Vec::new(), 0, 110);
        assert_eq!(attack.cost(&quiet), Some(Cost::NotSeparable));
        assert_eq!(quiet.cost(&quiet), None);
    }

    #[test]
    fn thousands_stand_apart() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1 000", "1 234 567"]);
    }
}
