//! What an operator should hear.
//!
//! A notice's name is its message id in logs and never changes meaning. Its sentence holds no address and no words of
//! an operator's, who may have typed one; [`Notice::subject`] gives the range concerned to whoever may see it, which
//! in logs is the debug level.

use std::{collections::VecDeque, fmt, time::Duration};

use tunica_common::verdict::Verdict;

use crate::{
    circuit_policy::Ratio,
    defence::Defence,
    id::{BanTarget, PacketSource, Prefix},
    limits::CookieState,
    load_level::{self, Word},
    never_ban::Protection,
    self_test,
    sybil::Alike,
    time::Monotime,
};

/// One thing that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A ban came into force or was replaced.
    BanSet {
        /// Whose.
        target: BanTarget,
        /// The ledger's number.
        id: u32,
        /// How long; `None` means until lifted.
        length: Option<Duration>,
        /// Rung of the ladder, counted from 1; `None` where the length was given by hand.
        rung: Option<u32>,
    },
    /// An operator lifted a ban.
    BanLifted {
        /// Whose.
        target: BanTarget,
        /// The ledger's number.
        id: u32,
    },
    /// A ban ended by itself.
    BanExpired {
        /// Whose.
        target: BanTarget,
        /// The ledger's number.
        id: u32,
    },
    /// A ban was lifted because it would now hit an address that must not be banned.
    BanWithdrawn {
        /// Whose.
        target: BanTarget,
        /// The ledger's number.
        id: u32,
        /// What protects it.
        protection: Protection,
    },
    /// A ban was asked for and refused.
    BanRefusedProtected {
        /// Whose.
        target: BanTarget,
        /// What protects it.
        protection: Protection,
    },
    /// A report was refused.
    ReportRefusedProtected {
        /// Whose.
        source: PacketSource,
        /// What protects it.
        protection: Protection,
    },
    /// An account has used up its budget of reports.
    ReporterOverBudget {
        /// The account's number.
        uid: u32,
    },
    /// An entry of the allow list came into force or was replaced.
    AllowSet {
        /// Which addresses.
        prefix: Prefix,
        /// The ledger's number.
        id: u32,
        /// How long; `None` means until removed.
        length: Option<Duration>,
    },
    /// An operator removed an entry of the allow list.
    AllowLifted {
        /// Which addresses.
        prefix: Prefix,
        /// The ledger's number.
        id: u32,
    },
    /// An entry of the allow list ended by itself.
    AllowExpired {
        /// Which addresses.
        prefix: Prefix,
        /// The ledger's number.
        id: u32,
    },
    /// The shield is to be detached.
    BypassOn,
    /// The shield is to be attached again.
    BypassOff,
    /// Attack mode lies over the configured settings, or its end was moved.
    AttackModeOn {
        /// How long.
        length: Duration,
    },
    /// Attack mode ended: the configured settings are in force.
    AttackModeOff {
        /// Whether it ended by itself.
        is_over: bool,
    },
    /// The load level in force changed.
    LoadLevel {
        /// From this; the same where another has the word now.
        before: load_level::Level,
        /// To this.
        level: load_level::Level,
        /// Who says so.
        word: Word,
    },
    /// New circuits are alike, more of them than usually.
    Crowd {
        /// How many; `None`: no longer.
        alike: Option<Alike>,
    },
    /// Limits of token holders relaxed by one step, or are as configured again.
    TokenLimits {
        /// Whether they relaxed.
        is_relaxed: bool,
    },
    /// A configuration is on trial.
    TrialBegun {
        /// How long.
        length: Duration,
    },
    /// The configuration on trial was confirmed, or another came after one that was undone.
    TrialEnded {
        /// Whether it was confirmed.
        is_confirmed: bool,
    },
    /// A configuration on trial was not confirmed: the one before is in force again.
    TrialUndone,
    /// Whether ports over their budget can answer with cookies has changed.
    Cookies {
        /// How it is now.
        state: CookieState,
    },
    /// A port went over its SYN budget, or fell below half of it again.
    PortArmed {
        /// Its number.
        port: u16,
        /// Whether it is over.
        is_armed: bool,
    },
    /// The test of a port's cookies took them from it, or passed after that.
    CookieTest {
        /// Its number.
        port: u16,
        /// How long it answers with no cookies; `None` where the test passed.
        without_cookies: Option<Duration>,
    },
    /// `net.ipv4.tcp_syncookies` is switched to 2, or was put back.
    Syncookies {
        /// Whether it is switched.
        is_switched: bool,
    },
    /// One dropped packet among many.
    DropSample {
        /// Who the packet claimed to come from.
        source: PacketSource,
        /// Why it was dropped.
        verdict: Verdict,
        /// Destination port; 0 where there is none.
        port: u16,
    },
    /// A defence speaks against packets, for the first time since it was quiet.
    DefenceTriggered {
        /// Which.
        defence: Defence,
    },
    /// An incident began, see [`crate::incident`].
    IncidentBegun {
        /// Its number.
        id: u32,
        /// Which defence spoke first.
        defence: Defence,
    },
    /// An incident is over.
    IncidentEnded {
        /// Its number.
        id: u32,
        /// From its first packet to its last.
        length: Duration,
        /// Most packets in a second that defences spoke against.
        peak: u64,
    },
    /// A defence has not spoken against a packet for [`crate::defence::QUIET_AFTER`].
    DefenceQuiet {
        /// Which.
        defence: Defence,
    },
}

/// A kind of notice, as the reference lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// The stable message id.
    pub name: &'static str,
    /// How loud.
    pub level: Level,
    /// What it means and what to do about it: one sentence.
    pub meaning: &'static str,
}

/// How loud a notice is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Worth a line.
    Info,
    /// Worth a look.
    Warn,
}

macro_rules! kinds {
    ($( $name:ident, $id:literal, $level:ident, $meaning:literal; )+) => {
        impl Notice {
            /// Every kind of notice.
            pub const KINDS: &'static [Kind] = &[ $( Kind { name: $id, level: Level::$level, meaning: $meaning }, )+ ];

            /// The kind of this notice.
            pub const fn kind(&self) -> Kind {
                match self {
                    $( Self::$name { .. } => Kind { name: $id, level: Level::$level, meaning: $meaning }, )+
                }
            }
        }
    };
}

kinds! {
    BanSet, "ban_set", Info, "A ban came into force or was replaced; `tunica ban list` shows it.";
    BanLifted, "ban_lifted", Info, "An operator lifted a ban.";
    BanExpired, "ban_expired", Info, "A ban ended by itself.";
    BanWithdrawn, "ban_withdrawn", Warn,
        "A ban was lifted because it would now hit one of this host's addresses, a peer of tor, or the configuration's allow list.";
    BanRefusedProtected, "ban_refused_protected", Warn,
        "A ban was asked for and refused, because it would have hit a protected address.";
    ReportRefusedProtected, "report_refused_protected", Warn,
        "A report of a protected source was refused; the application may see a proxy, tor or this host itself instead of its visitor. At most 5 lines a minute, those of `reporter_over_budget` among them.";
    ReporterOverBudget, "reporter_over_budget", Warn,
        "An account has used up its budget in `evidence.reporters`, so its reports are refused; look at the application, or raise the budget.";
    AllowSet, "allow_set", Info, "An entry of the allow list came into force or was replaced; `tunica allow list` shows it.";
    AllowLifted, "allow_lifted", Info, "An operator removed an entry of the allow list.";
    AllowExpired, "allow_expired", Info, "An entry of the allow list ended by itself.";
    BypassOn, "bypass_on", Warn, "The shield inspects nothing until `tunica bypass off`.";
    BypassOff, "bypass_off", Warn, "The bypass ended; the shield is attached again.";
    AttackModeOn, "attack_mode_on", Warn,
        "`tunica panic` laid stricter settings over the configured ones; they end by themselves or with `tunica panic off`.";
    AttackModeOff, "attack_mode_off", Warn, "Attack mode ended; the configured settings are in force again.";
    LoadLevel, "load_level", Warn,
        "The load level changed, by what was measured or by `tunica threat set` or `tunica panic`; `tunica threat` shows what it rests on.";
    Crowd, "circuits_alike", Warn,
        "More of the new circuits behave alike than in calm times, or no longer; nobody is refused for it, and `sybil.raises_level` says what follows.";
    TokenLimits, "token_limits", Warn,
        "Limits of token holders relaxed by one step, because more of them were refused than `circuits.false_positive_budget` allows, or they are as configured again.";
    TrialBegun, "trial_begun", Warn,
        "A reload with `--confirm` put the configuration file on trial: unless `tunica confirm` comes in time, the configuration before is in force again.";
    TrialEnded, "trial_ended", Info,
        "The configuration in force is no longer on trial: `tunica confirm` came, or another reload after it was undone.";
    TrialUndone, "trial_undone", Warn,
        "Nobody confirmed the configuration on trial, so the one before is in force, also after a restart, until `tunica reload`.";
    Cookies, "cookies", Warn,
        "Whether ports over their SYN budget can answer with cookies has changed; `tunica status` says why not.";
    PortArmed, "port_armed", Warn,
        "A port went over its SYN budget, or fell below half of it again; while it is over, it answers with cookies where they can be had.";
    CookieTest, "cookie_test", Warn,
        "A port's listener took none of the daemon's test cookies, so the port answers with none for a while and the kernel's own defence has its SYNs; or the test passed after that. `tunica status` says what to do.";
    Syncookies, "syncookies", Warn,
        "The daemon switched `net.ipv4.tcp_syncookies` to 2 so that listeners accept cookies, or put it back; `shield.cookies.manage_syncookies` lets it.";
    DropSample, "drop_sample", Info,
        "One dropped packet among many; `shield.log.lines_per_minute` bounds these lines and `shield.log.enable_logging` ends them.";
    DefenceTriggered, "defence_triggered", Warn,
        "A defence speaks against packets, for the first time after at least 60 s; `tunica sources` shows whom it hits.";
    IncidentBegun, "incident_begun", Warn,
        "A defence speaks while all were quiet for 60 s: an incident, which `tunica incident list` shows.";
    IncidentEnded, "incident_ended", Warn,
        "No defence has spoken for 60 s, so the incident is over; `tunica incident show` tells what it was.";
    DefenceQuiet, "defence_quiet", Info, "A defence has spoken against no packet for 60 s.";
}

impl Notice {
    /// The stable message id.
    pub const fn name(&self) -> &'static str {
        self.kind().name
    }

    /// How loud.
    pub const fn level(&self) -> Level {
        self.kind().level
    }

    /// The addresses concerned, for the debug level alone.
    pub fn subject(&self) -> Option<Prefix> {
        match self {
            Self::BanSet { target, .. }
            | Self::BanLifted { target, .. }
            | Self::BanExpired { target, .. }
            | Self::BanWithdrawn { target, .. }
            | Self::BanRefusedProtected { target, .. } => Some(target.prefix()),
            Self::DropSample { source, .. } | Self::ReportRefusedProtected { source, .. } => {
                Some(source.prefix())
            }
            Self::AllowSet { prefix, .. }
            | Self::AllowLifted { prefix, .. }
            | Self::AllowExpired { prefix, .. } => Some(*prefix),
            Self::BypassOn
            | Self::BypassOff
            | Self::ReporterOverBudget { .. }
            | Self::AttackModeOn { .. }
            | Self::LoadLevel { .. }
            | Self::Crowd { .. }
            | Self::TokenLimits { .. }
            | Self::TrialBegun { .. }
            | Self::TrialEnded { .. }
            | Self::TrialUndone
            | Self::AttackModeOff { .. }
            | Self::Cookies { .. }
            | Self::PortArmed { .. }
            | Self::CookieTest { .. }
            | Self::Syncookies { .. }
            | Self::DefenceTriggered { .. }
            | Self::IncidentBegun { .. }
            | Self::IncidentEnded { .. }
            | Self::DefenceQuiet { .. } => None,
        }
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BanSet { id, length, rung: None, .. } => write!(out, "ban {id} set {}", span(*length)),
            Self::BanSet { id, length, rung: Some(rung), .. } => {
                write!(out, "ban {id} set {}, rung {rung} of the ladder", span(*length))
            }
            Self::BanLifted { id, .. } => write!(out, "ban {id} lifted"),
            Self::BanExpired { id, .. } => write!(out, "ban {id} expired"),
            Self::BanWithdrawn { id, protection, .. } => {
                write!(out, "ban {id} lifted, because what it hits must not be banned: {protection}")
            }
            Self::BanRefusedProtected { protection, .. } => write!(out, "ban refused: {protection}"),
            Self::ReportRefusedProtected { protection, .. } => write!(out, "report refused: {protection}"),
            Self::ReporterOverBudget { uid } => {
                write!(out, "reports refused: uid {uid} has used up its budget")
            }
            Self::AllowSet { id, length, .. } => write!(out, "allow entry {id} set {}", span(*length)),
            Self::AllowLifted { id, .. } => write!(out, "allow entry {id} removed"),
            Self::AllowExpired { id, .. } => write!(out, "allow entry {id} expired"),
            Self::BypassOn => out.write_str("the shield is bypassed: nothing is inspected"),
            Self::BypassOff => out.write_str("the bypass ended"),
            Self::TrialBegun { length } => {
                write!(out, "the configuration is on trial {}", span(Some(*length)))
            }
            Self::TrialEnded { is_confirmed: true } => out.write_str("the configuration on trial was confirmed"),
            Self::TrialEnded { is_confirmed: false } => {
                out.write_str("a reload followed the configuration that was undone")
            }
            Self::TrialUndone => out.write_str(
                "the configuration on trial was not confirmed; the one before is in force until `tunica reload`",
            ),
            Self::LoadLevel { before, level, word } => {
                let by = match word {
                    Word::Measured => "as measured",
                    Word::AttackMode => "by attack mode",
                    Word::Crowd => "because new circuits are alike",
                    Word::Operator { .. } => "by an operator's word",
                };
                write!(out, "the load level is {} now, {by}; it was {}", level.name(), before.name())
            }
            Self::Crowd { alike: Some(alike) } => {
                let percent = |ratio: Ratio| ratio.ten_thousandths() / 100;
                write!(
                    out,
                    "{} % of {} new circuits are alike{}, {} % usually",
                    percent(alike.share),
                    alike.circuits,
                    if alike.is_one_relay { " and meet the service at one relay" } else { "" },
                    percent(alike.usual),
                )
            }
            Self::Crowd { alike: None } => out.write_str("new circuits are not more alike than usually any more"),
            Self::TokenLimits { is_relaxed: true } => out.write_str(
                "more token holders were refused than the budget allows; their limits are half as high again",
            ),
            Self::TokenLimits { is_relaxed: false } => {
                out.write_str("the limits of token holders are as configured again")
            }
            Self::AttackModeOn { length } => write!(out, "attack mode is in force {}", span(Some(*length))),
            Self::AttackModeOff { is_over: true } => out.write_str("attack mode ended by itself"),
            Self::AttackModeOff { is_over: false } => out.write_str("an operator ended attack mode"),
            Self::Cookies { state } => match state.advice() {
                Some(advice) => out.write_str(&advice),
                None => write!(out, "answers with cookies: {}", state.label()),
            },
            Self::PortArmed { port, is_armed: true } => write!(out, "port {port} is over its SYN budget"),
            Self::PortArmed { port, is_armed: false } => {
                write!(out, "port {port} is below half its SYN budget again")
            }
            Self::CookieTest { port, without_cookies: Some(length) } => {
                write!(out, "{}", self_test::advice(*port, *length))
            }
            Self::CookieTest { port, without_cookies: None } => {
                write!(out, "port {port} answers with cookies again, and its listener takes them")
            }
            Self::Syncookies { is_switched: true } => {
                out.write_str("net.ipv4.tcp_syncookies is switched to 2 until no port is over its SYN budget")
            }
            Self::Syncookies { is_switched: false } => {
                out.write_str("net.ipv4.tcp_syncookies is what it was before")
            }
            Self::DropSample { verdict, port, .. } => {
                write!(out, "SHIELD_DOS_DROP: verdict={} port={port}", verdict.label())
            }
            Self::DefenceTriggered { defence } => {
                write!(out, "defence {} speaks against packets", defence.name())
            }
            Self::IncidentBegun { id, defence } => {
                write!(out, "incident {id} began with defence {}", defence.name())
            }
            Self::IncidentEnded { id, length, peak } => write!(
                out,
                "incident {id} is over; it lasted {} s, with up to {peak} packets a second",
                length.as_secs()
            ),
            Self::DefenceQuiet { defence } => write!(out, "defence {} is quiet", defence.name()),
        }
    }
}

/// "for 300 s", or "until lifted".
pub(crate) fn span(length: Option<Duration>) -> String {
    length.map_or_else(|| "until lifted".into(), |length| format!("for {} s", length.as_secs()))
}

/// Lets so many lines through in any minute, and no more: it keeps the time of each.
#[derive(Clone, Debug, Default)]
pub(crate) struct DropLog {
    lines: VecDeque<Monotime>,
}

impl DropLog {
    /// Whether a line may be written now; if so, it counts.
    pub(crate) fn admits(&mut self, per_minute: Option<u32>, now: Monotime) -> bool {
        let most = usize::try_from(per_minute.unwrap_or(0)).unwrap_or(usize::MAX);
        while self.lines.front().is_some_and(|line| now.since(*line) >= Duration::from_secs(60)) {
            self.lines.pop_front();
        }
        let is_admitted = self.lines.len() < most;
        if is_admitted {
            self.lines.push_back(now);
        }
        is_admitted
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::never_ban::AllowedBy;

    fn every_notice() -> Vec<Notice> {
        let source = PacketSource::of([198, 51, 100, 7].into());
        let (prefix, target, id) = (source.prefix(), BanTarget::Source(source), 7);
        let protection = Protection::Allowed { prefix, by: AllowedBy::Operator };
        let length = Some(Duration::from_secs(300));
        vec![
            Notice::BanSet { target, id, length, rung: Some(1) },
            Notice::BanLifted { target, id },
            Notice::BanExpired { target, id },
            Notice::BanWithdrawn { target, id, protection },
            Notice::BanRefusedProtected { target, protection },
            Notice::ReportRefusedProtected { source, protection },
            Notice::ReporterOverBudget { uid: 8 },
            Notice::AllowSet { prefix, id, length: None },
            Notice::AllowLifted { prefix, id },
            Notice::AllowExpired { prefix, id },
            Notice::BypassOn,
            Notice::BypassOff,
            Notice::AttackModeOn { length: Duration::from_secs(60) },
            Notice::AttackModeOff { is_over: true },
            Notice::LoadLevel {
                before: load_level::Level::Calm,
                level: load_level::Level::Heavy,
                word: Word::AttackMode,
            },
            Notice::Crowd {
                alike: Some(Alike {
                    circuits: 40,
                    share: Ratio::THREE_QUARTERS,
                    usual: Ratio::TENTH,
                    is_one_relay: true,
                }),
            },
            Notice::TokenLimits { is_relaxed: true },
            Notice::TrialBegun { length: Duration::from_secs(120) },
            Notice::TrialEnded { is_confirmed: true },
            Notice::TrialUndone,
            Notice::Cookies { state: CookieState::NoProgram },
            Notice::PortArmed { port: 443, is_armed: true },
            Notice::CookieTest { port: 443, without_cookies: length },
            Notice::Syncookies { is_switched: true },
            Notice::DropSample { source, verdict: Verdict::SynRate, port: 443 },
            Notice::DefenceTriggered { defence: Defence::Sanity },
            Notice::DefenceQuiet { defence: Defence::Sanity },
            Notice::IncidentBegun { id, defence: Defence::Sanity },
            Notice::IncidentEnded { id, length: Duration::from_secs(9), peak: 5 },
        ]
    }

    #[test]
    fn names_are_unique_and_no_notice_shows_an_address() {
        let notices = every_notice();
        let names: BTreeSet<_> = notices.iter().map(Notice::name).collect();
        assert_eq!(names.len(), Notice::KINDS.len());
        let range = BanTarget::Range("203.0.113.0/24".parse().unwrap());
        assert_eq!(Notice::BanLifted { target: range, id: 1 }.subject(), Some(range.prefix()));
        for notice in notices {
            let shown = format!("{notice} {notice:?}");
            assert!(!shown.contains("198.51"), "{shown}");
            assert!(notice.kind().meaning.ends_with('.'));
        }
    }

    #[test]
    fn the_drop_log_keeps_its_form() {
        let source = PacketSource::of([198, 51, 100, 7].into());
        let line = Notice::DropSample { source, verdict: Verdict::SynRate, port: 443 };
        assert_eq!(line.to_string(), "SHIELD_DOS_DROP: verdict=syn_rate port=443");
        assert!(!DropLog::default().admits(None, Monotime(5)));
    }

    proptest! {
        /// For all arrival patterns, no minute holds more lines than were set, and a line is withheld only then.
        #[test]
        fn no_minute_is_over_full(gaps in prop::collection::vec(0u64..40_000, 1..100), most in 1u32..8) {
            let (mut log, mut now, mut lines) = (DropLog::default(), Monotime(0), Vec::new());
            for gap in gaps {
                now = now.after(Duration::from_millis(gap));
                let recent = lines.iter().filter(|line| now.since(**line) < Duration::from_secs(60)).count();
                let is_admitted = log.admits(Some(most), now);
                prop_assert_eq!(is_admitted, recent < most as usize);
                if is_admitted {
                    lines.push(now);
                }
            }
        }
    }
}
