//! Requests.

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};
use tunica_core::{
    id::{BanTarget, PacketSource, Prefix},
    load_level::Level,
};

/// Everything that can be asked of the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// The state of every defence.
    Status {},
    /// Every counter of packets, and when it was read.
    Counters {},
    /// What the configuration file would change if it were read again.
    Diff {},
    /// Every ban in force.
    BanList {},
    /// Ban a source or a range.
    BanAdd(BanAdd),
    /// Lift a ban.
    BanRemove {
        /// Whose, exactly as it was added.
        source: BanTarget,
        /// Say what would happen and change nothing.
        #[serde(default)]
        dry_run: bool,
    },
    /// Count an offence against a source; enough of them ban it.
    Report(Report),
    /// The whole allow list, with who asked for each entry.
    AllowList {},
    /// Protect a range from bans and per-source limits.
    AllowAdd(AllowAdd),
    /// Take a range off the allow list.
    AllowRemove {
        /// The range, exactly as it was added.
        prefix: Prefix,
        /// Say what would happen and change nothing.
        #[serde(default)]
        dry_run: bool,
    },
    /// Sources seen most often in sampled events.
    Sources {
        /// How many rows at most.
        limit: u32,
    },
    /// What the live program does with a packet of this source, and why.
    Explain(Explain),
    /// Read the configuration file again; all or nothing.
    Reload(Reload),
    /// Keep the configuration that is on trial.
    Confirm {},
    /// Detach the shield until told otherwise.
    BypassOn {
        /// Kept in the ledger and shown by `status`.
        reason: String,
    },
    /// Attach the shield again.
    BypassOff {},
    /// Lay stricter settings over the configured ones for a while.
    PanicOn {
        /// How long from now; the daemon refuses less than a minute and more than a day.
        seconds: u64,
        /// Say what would happen and change nothing.
        #[serde(default)]
        dry_run: bool,
    },
    /// End that early.
    PanicOff {
        /// Say what would happen and change nothing.
        #[serde(default)]
        dry_run: bool,
    },
    /// What limits follow from what was seen.
    Tune {
        /// Even from less than an hour.
        #[serde(default)]
        force: bool,
    },
    /// The last attacks.
    IncidentList {},
    /// One attack.
    IncidentShow {
        /// Its number.
        id: u32,
    },
    /// Try another configuration beside the one in force.
    CandidateLoad(CandidateLoad),
    /// What the candidate would do otherwise.
    CandidateStatus {},
    /// Hand out the candidate's text, to be written to the configuration file.
    CandidatePromote {},
    /// End the candidate's trial.
    CandidateDrop {},
    /// How the ingress does, and its busiest circuits.
    CircuitList {
        /// How many rows at most.
        limit: u32,
        /// Which come first.
        #[serde(default)]
        sort: CircuitSort,
    },
    /// Say what a circuit is to be.
    CircuitOrder(CircuitOrder),
    /// Have tor end a circuit with all its streams, once; its client may come back by another.
    CircuitClose {
        /// Its number, as `tunica circuits` shows it.
        circuit: NonZeroU32,
        /// Say what would happen and change nothing.
        #[serde(default)]
        dry_run: bool,
    },
    /// What is done with a circuit's streams, and why.
    CircuitExplain {
        /// Its number, as `tunica circuits` shows it.
        circuit: NonZeroU32,
    },
    /// How loaded the service is, and what follows from it.
    Threat {},
    /// Set the load level, whatever is measured.
    ThreatSet {
        /// To this one.
        level: Level,
        /// How long from now; absent: until it is cleared.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        seconds: Option<u64>,
        /// Say what would happen and change nothing.
        #[serde(default)]
        dry_run: bool,
    },
    /// Let go of the load level, so that the measured one counts.
    ThreatClear {
        /// Say what would happen and change nothing.
        #[serde(default)]
        dry_run: bool,
    },
    /// Make every VIP token worthless that was handed out.
    TokenRevokeAll {
        /// Say what would happen and change nothing.
        #[serde(default)]
        dry_run: bool,
    },
    /// What this host can do for the shield.
    Doctor {},
}

/// Which circuits come first; of equals the busier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CircuitSort {
    /// Those with most open connections, then those with most requests.
    #[default]
    Busy,
    /// Those that were seen first.
    Age,
    /// Those that carried most bytes.
    Bytes,
    /// Those with most violations, the banned before all.
    Violations,
}

/// Say what a circuit is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CircuitOrder {
    /// Its number, as `tunica circuits` shows it.
    pub circuit: NonZeroU32,
    /// What it is to be.
    pub state: CircuitState,
    /// Say what would happen and change nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// What a circuit is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CircuitState {
    /// Each of its streams is refused.
    Banned {
        /// For how long, seconds.
        seconds: u64,
    },
    /// It goes past the queue.
    Vip,
    /// It is banned no longer, whoever banned it; what else it is stays.
    Unbanned,
    /// It goes past the queue no longer, and its token counts nowhere; a ban stays.
    Demoted,
}

impl Request {
    /// Whether the request changes nothing, so that members of the control group may make it.
    pub const fn is_read_only(&self) -> bool {
        match self {
            Self::Status {}
            | Self::Counters {}
            | Self::Diff {}
            | Self::BanList {}
            | Self::AllowList {}
            | Self::Sources { .. }
            | Self::Explain(_)
            | Self::Tune { .. }
            | Self::IncidentList {}
            | Self::IncidentShow { .. }
            | Self::CandidateStatus {}
            | Self::CircuitList { .. }
            | Self::CircuitExplain { .. }
            | Self::Threat {}
            | Self::Doctor {} => true,
            Self::BanAdd(_)
            | Self::BanRemove { .. }
            | Self::Report(_)
            | Self::AllowAdd(_)
            | Self::AllowRemove { .. }
            | Self::Reload(_)
            | Self::Confirm {}
            | Self::CircuitOrder(_)
            | Self::CircuitClose { .. }
            | Self::ThreatSet { .. }
            | Self::ThreatClear { .. }
            | Self::TokenRevokeAll { .. }
            | Self::CandidateLoad(_)
            | Self::CandidatePromote {}
            | Self::CandidateDrop {}
            | Self::BypassOn { .. }
            | Self::BypassOff {}
            | Self::PanicOn { .. }
            | Self::PanicOff { .. } => false,
        }
    }

    /// Whether whoever reaches the socket may make the request, because the answer depends on who asks: the daemon believes
    /// the accounts that its configuration names.
    pub const fn is_report(&self) -> bool {
        matches!(self, Self::Report(_))
    }

    /// The verb as it stands on the wire and in log messages.
    pub const fn verb(&self) -> &'static str {
        match self {
            Self::Status {} => "status",
            Self::Counters {} => "counters",
            Self::Diff {} => "diff",
            Self::BanList {} => "ban_list",
            Self::BanAdd(_) => "ban_add",
            Self::BanRemove { .. } => "ban_remove",
            Self::Report(_) => "report",
            Self::AllowList {} => "allow_list",
            Self::AllowAdd(_) => "allow_add",
            Self::AllowRemove { .. } => "allow_remove",
            Self::Sources { .. } => "sources",
            Self::Explain(_) => "explain",
            Self::Reload(_) => "reload",
            Self::Confirm {} => "confirm",
            Self::BypassOn { .. } => "bypass_on",
            Self::BypassOff {} => "bypass_off",
            Self::PanicOn { .. } => "panic_on",
            Self::PanicOff { .. } => "panic_off",
            Self::Tune { .. } => "tune",
            Self::IncidentList {} => "incident_list",
            Self::IncidentShow { .. } => "incident_show",
            Self::CircuitList { .. } => "circuit_list",
            Self::CircuitOrder(_) => "circuit_order",
            Self::CircuitClose { .. } => "circuit_close",
            Self::CircuitExplain { .. } => "circuit_explain",
            Self::Threat {} => "threat",
            Self::ThreatSet { .. } => "threat_set",
            Self::ThreatClear { .. } => "threat_clear",
            Self::TokenRevokeAll { .. } => "token_revoke_all",
            Self::CandidateLoad(_) => "candidate_load",
            Self::CandidateStatus {} => "candidate_status",
            Self::CandidatePromote {} => "candidate_promote",
            Self::CandidateDrop {} => "candidate_drop",
            Self::Doctor {} => "doctor",
        }
    }
}

/// How long a ban or an allow entry holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Length {
    /// The next rung of the ban ladder (bans of single sources only).
    Ladder,
    /// This many seconds.
    Seconds(u64),
    /// Until lifted by hand.
    Forever,
}

/// See [`Request::BanAdd`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BanAdd {
    /// Whom: a source, or a range.
    pub source: BanTarget,
    /// How long; [`Length::Ladder`] is refused for a range.
    pub length: Length,
    /// Why, in the operator's words: at most 200 characters, kept in the ledger.
    pub reason: String,
    /// Where the caller is logged in from: a ban that hits it is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator: Option<PacketSource>,
    /// Say what would happen and change nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// See [`Request::Report`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// Whom; never a range.
    pub source: PacketSource,
    /// What it did: at most 200 characters, kept in the ledger if the source is banned.
    pub reason: String,
    /// Towards which service: at most 32 letters, digits, `.`, `_` and `-`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Say what would happen and change nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// See [`Request::AllowAdd`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AllowAdd {
    /// Which addresses.
    pub prefix: Prefix,
    /// How long; [`Length::Ladder`] is refused.
    pub length: Length,
    /// Why, in the operator's words: at most 200 characters, kept in the ledger.
    pub reason: String,
    /// Say what would happen and change nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// See [`Request::Reload`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reload {
    /// Put the file on trial: unless [`Request::Confirm`] comes within this many seconds, the configuration before is in
    /// force again. 10 to 3 600; absent: no trial.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm_seconds: Option<u64>,
    /// This host's end of the session that the caller is logged in by, so that the answer can name its interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<std::net::IpAddr>,
}

/// See [`Request::CandidateLoad`].
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CandidateLoad {
    /// What the operator calls it: the path of its file.
    pub name: String,
    /// A whole configuration file.
    pub text: String,
}

impl std::fmt::Debug for CandidateLoad {
    /// Without the text, in which addresses may stand.
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "CandidateLoad {{ name: {:?}, bytes: {} }}", self.name, self.text.len())
    }
}

/// See [`Request::Explain`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Explain {
    /// An address of the source asked about.
    pub address: std::net::IpAddr,
    /// Destination port of the TCP SYN that is tried; 443 if not given.
    #[serde(default)]
    pub port: Option<u16>,
    /// How many SYNs are tried one after another on the clone, to show where the limit begins; 1 to 1 000.
    #[serde(default)]
    pub packets: Option<u32>,
}
