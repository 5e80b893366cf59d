//! What the operator set, as plain typed values, and the policy that the kernel reads.

use std::time::Duration;

use tunica_common::{
    gcra,
    policy::{
        MODE_ENFORCE, MODE_OBSERVE, MODE_OFF, Policy, STALE_KEEP_LIMITS, STALE_PASS, STALE_SANITY_ONLY,
    },
};

use crate::{ban_ladder::Ladder, id::Prefix};

/// Everything of the configuration that decisions depend on. The configuration crate has checked every range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Whether to drop.
    pub mode: Mode,
    /// Sanity rules in force, by [`tunica_common::verdict::Verdict::bit`].
    pub sanity_mask: u64,
    /// Uninspected classes that are dropped, by [`tunica_common::verdict::Verdict::bit`].
    pub uninspected_drop_mask: u64,
    /// What the kernel falls back to without a heartbeat.
    pub on_stale: OnStale,
    /// After how long without a heartbeat.
    pub stale_after: Duration,
    /// Least time between two sampled events of one verdict on one CPU.
    pub event_interval: Duration,
    /// The per-source SYN limit; `None` where it is switched off.
    pub syn: Option<gcra::Limit>,
    /// Lengths of bans.
    pub ladder: Ladder,
    /// The allow list of the configuration file. None of them [reaches into IPv4](Prefix::reaches_into_ipv4).
    pub config_allow: Vec<Prefix>,
    /// How many bans the kernel's table holds.
    pub ban_capacity: u32,
    /// How many rows the kernel's allow list holds.
    pub allow_capacity: u32,
    /// How long an address stays in the never-ban set after tor was last seen connected to it.
    pub tor_keep: Duration,
    /// Most lines of the drop log in any minute; `None` where it is switched off.
    pub log_lines_per_minute: Option<u32>,
}

/// Whether packets are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Every packet passes uninspected.
    Off,
    /// What `enforce` would drop is counted and passes.
    Observe,
    /// Drop.
    Enforce,
}

/// What the kernel does once the daemon has been silent for `stale_after`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnStale {
    /// Bans that rest on evidence lapse; limits and sanity rules stay.
    KeepLimits,
    /// Every ban and limit lapses; sanity rules stay.
    SanityOnly,
    /// Nothing is dropped.
    Pass,
}

impl Mode {
    /// Every mode.
    pub const ALL: [Self; 3] = [Self::Off, Self::Observe, Self::Enforce];

    /// The word in the configuration file.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Observe => "observe",
            Self::Enforce => "enforce",
        }
    }

    /// The mode with this label.
    pub fn from_label(label: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.label() == label)
    }

    /// The number in [`Policy::mode`].
    pub const fn number(self) -> u32 {
        match self {
            Self::Off => MODE_OFF,
            Self::Observe => MODE_OBSERVE,
            Self::Enforce => MODE_ENFORCE,
        }
    }
}

impl OnStale {
    /// Every fallback.
    pub const ALL: [Self; 3] = [Self::KeepLimits, Self::SanityOnly, Self::Pass];

    /// The word in the configuration file.
    pub const fn label(self) -> &'static str {
        match self {
            Self::KeepLimits => "keep-limits",
            Self::SanityOnly => "sanity-only",
            Self::Pass => "pass",
        }
    }

    /// The fallback with this label.
    pub fn from_label(label: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|fallback| fallback.label() == label)
    }

    /// The number in [`Policy::on_stale`].
    pub const fn number(self) -> u32 {
        match self {
            Self::KeepLimits => STALE_KEEP_LIMITS,
            Self::SanityOnly => STALE_SANITY_ONLY,
            Self::Pass => STALE_PASS,
        }
    }
}

/// The policy as the kernel reads it.
///
/// `generation` counts applied policies and `secret` is drawn anew at each load, both by the daemon; `own_filter`,
/// `bans_present` and `allow_present` follow from the tables, see [`crate::desired::Desired::policy`].
pub fn policy(
    settings: &Settings,
    generation: u32,
    secret: [u64; 2],
    own_filter: u64,
    bans_present: bool,
    allow_present: bool,
) -> Policy {
    Policy {
        secret,
        sanity_mask: settings.sanity_mask,
        uninspected_drop_mask: settings.uninspected_drop_mask,
        own_filter,
        stale_after_ns: nanoseconds(settings.stale_after),
        event_interval_ns: nanoseconds(settings.event_interval),
        generation,
        mode: settings.mode.number(),
        on_stale: settings.on_stale.number(),
        syn_cost_ticks: settings.syn.map_or(0, |limit| limit.cost_ticks),
        syn_tolerance_ticks: settings.syn.map_or(0, |limit| limit.tolerance_ticks),
        bans_present: u32::from(bans_present),
        allow_present: u32::from(allow_present),
        reserved: 0,
    }
}

impl Settings {
    /// One sentence for each way in which these settings differ from those `before`.
    pub(crate) fn changes_from(&self, before: &Self) -> Vec<String> {
        let gone = before.config_allow.iter().filter(|prefix| !self.config_allow.contains(prefix)).count();
        let come = self.config_allow.iter().filter(|prefix| !before.config_allow.contains(prefix)).count();
        let rows = [
            (self.mode != before.mode, format!("the mode is now `{}`", self.mode.label())),
            (self.sanity_mask != before.sanity_mask, "the sanity rules in force changed".into()),
            (
                self.uninspected_drop_mask != before.uninspected_drop_mask,
                "the uninspected classes that are dropped changed".into(),
            ),
            (
                (self.on_stale, self.stale_after) != (before.on_stale, before.stale_after),
                format!(
                    "without a heartbeat for {} s the kernel falls back to `{}`",
                    self.stale_after.as_secs(),
                    self.on_stale.label()
                ),
            ),
            (self.event_interval != before.event_interval, "the rate of sampled events changed".into()),
            (
                self.syn != before.syn,
                format!("the SYN limit {}", if self.syn.is_some() { "changed" } else { "is off" }),
            ),
            (self.ladder != before.ladder, "the ban ladder changed, for bans from now on".into()),
            (come + gone > 0, format!("allow list: {come} entries came, {gone} went")),
            (
                (self.ban_capacity, self.allow_capacity) != (before.ban_capacity, before.allow_capacity),
                format!("tables hold {} bans and {} allow entries", self.ban_capacity, self.allow_capacity),
            ),
            (
                self.tor_keep != before.tor_keep,
                format!("peers of tor stay protected for {} s", self.tor_keep.as_secs()),
            ),
            (
                self.log_lines_per_minute != before.log_lines_per_minute,
                format!("the drop log has at most {} lines a minute", self.log_lines_per_minute.unwrap_or(0)),
            ),
        ];
        rows.into_iter().filter(|(differs, _)| *differs).map(|(_, sentence)| sentence).collect()
    }
}

fn nanoseconds(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub(crate) mod tests {
    use tunica_common::verdict::{Class, Verdict};

    use super::*;

    /// The shipped defaults, enforcing, with small tables.
    pub(crate) fn settings() -> Settings {
        Settings {
            mode: Mode::Enforce,
            sanity_mask: Verdict::mask_of(Class::Sanity),
            uninspected_drop_mask: 0,
            on_stale: OnStale::KeepLimits,
            stale_after: Duration::from_secs(30),
            event_interval: Duration::from_millis(10),
            syn: gcra::Limit::new(10, 20),
            ladder: Ladder::new(
                [300, 1_800, 14_400, 86_400].map(Duration::from_secs).to_vec(),
                Duration::from_secs(86_400),
            )
            .unwrap(),
            config_allow: Vec::new(),
            ban_capacity: 8,
            allow_capacity: 8,
            tor_keep: Duration::from_secs(86_400),
            log_lines_per_minute: Some(5),
        }
    }

    #[test]
    fn labels_read_back() {
        for mode in Mode::ALL {
            assert_eq!(Mode::from_label(mode.label()), Some(mode));
        }
        for fallback in OnStale::ALL {
            assert_eq!(OnStale::from_label(fallback.label()), Some(fallback));
        }
        assert_eq!(Mode::from_label("Enforce"), None);
    }

    #[test]
    fn the_policy_says_what_was_set() {
        let with = policy(&settings(), 7, [1, 2], 5, true, false);
        assert_eq!((with.generation, with.secret, with.own_filter), (7, [1, 2], 5));
        assert_eq!((with.bans_present, with.allow_present), (1, 0));
        assert_eq!((with.mode, with.on_stale), (MODE_ENFORCE, STALE_KEEP_LIMITS));
        assert_eq!((with.stale_after_ns, with.event_interval_ns), (30_000_000_000, 10_000_000));
        assert_eq!((with.syn_cost_ticks, with.syn_tolerance_ticks), (1_526, 19 * 1_526));
        let without = policy(&Settings { syn: None, ..settings() }, 8, [1, 2], 0, false, true);
        assert_eq!((without.syn_cost_ticks, without.bans_present, without.allow_present), (0, 0, 1));
    }
}
