//! Durable facts, and the only function that changes them.
//!
//! The daemon stores one row a fact, keyed as the maps here, with the fact's serde form as the value; `next_id` and
//! the bypass are rows of their own. That form is part of the file format: fields are added with a default, never
//! renamed. [`apply`] is deterministic and total, so that two machines which apply the same commands hold the same
//! facts. It reads no clock: whether a fact has expired is the coordinator's question, and its answer is a command.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    ban_ladder::Memory,
    evidence::Proven,
    id::{BanTarget, PacketSource, Prefix},
    incident::{self, Incident},
    load_level::Level,
    time::WallTime,
};

/// Every durable fact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// Bans that were set and not yet lifted.
    pub bans: BTreeMap<PacketSource, BanFact>,
    /// Bans of ranges that were set and not yet lifted; each range is wider than one source.
    #[serde(default)]
    pub nets: BTreeMap<Prefix, BanFact>,
    /// Entries of the allow list that operators made; the configuration file's are no facts.
    pub allows: BTreeMap<Prefix, AllowFact>,
    /// What the ban ladder remembers.
    pub memories: BTreeMap<PacketSource, Memory>,
    /// Set while the shield is bypassed.
    pub bypass: Option<BypassFact>,
    /// Set while attack mode lies over the configured settings.
    #[serde(default)]
    pub attack_mode: Option<AttackModeFact>,
    /// Set while an operator's word is the load level.
    #[serde(default)]
    pub level_pin: Option<LevelPinFact>,
    /// Set while a configuration is on trial, or after one was undone.
    #[serde(default)]
    pub trial: Option<TrialFact>,
    /// What `net.ipv4.tcp_syncookies` was before the daemon set it to 2; set while it is to be put back.
    pub syncookies_before: Option<u32>,
    /// The last attacks by number, at most [`incident::MOST`].
    #[serde(default)]
    pub incidents: BTreeMap<u32, Incident>,
    /// The number that the next ban or allow entry gets; from 1, because 0 means "no ledger fact" in kernel tables.
    pub next_id: u32,
}

/// A ban.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BanFact {
    /// The ledger's number.
    pub id: u32,
    /// Since when.
    pub since: WallTime,
    /// Until when; `None` means until lifted by hand.
    pub expires: Option<WallTime>,
    /// Rung of the ladder, counted from 1; `None` where the length was given by hand.
    pub rung: Option<u32>,
    /// Who banned.
    pub origin: BanOrigin,
    /// Why.
    pub reason: String,
}

/// Who banned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BanOrigin {
    /// `tunica ban add`.
    Operator,
    /// The kernel's word about completed handshakes.
    Evidence,
    /// Reports of an account that the configuration believes: `tunica report`.
    Report,
}

/// An entry of the allow list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllowFact {
    /// The ledger's number.
    pub id: u32,
    /// Since when.
    pub since: WallTime,
    /// Until when; `None` means until removed by hand.
    pub expires: Option<WallTime>,
    /// Who asked for it.
    pub origin: AllowOrigin,
    /// Why.
    pub reason: String,
}

/// Who asked for a durable entry of the allow list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AllowOrigin {
    /// `tunica allow add`.
    Operator,
}

/// Since when and why the shield is bypassed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BypassFact {
    /// Since when.
    pub since: WallTime,
    /// The operator's reason.
    pub reason: String,
}

/// Since when and until when attack mode holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttackModeFact {
    /// Since when.
    pub since: WallTime,
    /// Until when.
    pub expires: WallTime,
}

/// The load level that an operator set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LevelPinFact {
    /// To which level.
    pub level: Level,
    /// Since when.
    pub since: WallTime,
    /// Until when; `None` means until an operator lets go of it.
    pub expires: Option<WallTime>,
}

/// A configuration on trial, or one that was undone.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrialFact {
    /// Since when.
    pub since: WallTime,
    /// When the configuration before comes into force again unless the trial is confirmed.
    pub expires: WallTime,
    /// The configuration before: the text of its file. Empty if there was none, which makes this the trial of the first
    /// start: what is returned to is a host without the shield.
    pub before: String,
    /// Whether the configuration before is in force again.
    pub is_undone: bool,
}

impl TrialFact {
    /// Whether the configuration before is to be in force at `now`, by which a daemon that starts goes.
    fn is_over(&self, now: WallTime) -> bool {
        self.is_undone || self.expires <= now
    }

    /// The text of the configuration that a daemon which starts at `now` has to begin with instead of its file.
    pub fn returns_to(&self, now: WallTime) -> Option<&str> {
        (self.is_over(now) && !self.is_of_first_start()).then_some(&self.before)
    }

    /// Whether the first start is on trial, before which there was no configuration.
    pub const fn is_of_first_start(&self) -> bool {
        self.before.is_empty()
    }
}

impl std::fmt::Debug for TrialFact {
    /// Without the text, which names addresses.
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { since, expires, before, is_undone } = self;
        let bytes = before.len();
        write!(
            out,
            "TrialFact {{ since: {since}, expires: {expires}, before: {bytes} bytes, is_undone: {is_undone} }}"
        )
    }
}

/// A change of the ledger. `Set…` replaces what stands under the same key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Command {
    /// Ban a source.
    SetBan {
        /// Whom.
        source: PacketSource,
        /// The ban; its number must be unused.
        fact: BanFact,
    },
    /// End a ban.
    LiftBan {
        /// Whose.
        source: PacketSource,
    },
    /// Ban a range.
    SetNetBan {
        /// Which addresses.
        prefix: Prefix,
        /// The ban; its number must be unused, and it stands on no rung.
        fact: BanFact,
    },
    /// End a ban of a range.
    LiftNetBan {
        /// Which, exactly as it was set.
        prefix: Prefix,
    },
    /// Put a range on the allow list.
    SetAllow {
        /// Which addresses.
        prefix: Prefix,
        /// The entry; its number must be unused.
        fact: AllowFact,
    },
    /// Take a range off the allow list.
    LiftAllow {
        /// Which, exactly as it was set.
        prefix: Prefix,
    },
    /// Remember an offence.
    SetMemory {
        /// Whose.
        source: PacketSource,
        /// What to remember.
        memory: Memory,
    },
    /// Forget a source's offences.
    ForgetMemory {
        /// Whose.
        source: PacketSource,
    },
    /// Begin a bypass.
    SetBypass {
        /// Since when and why.
        fact: BypassFact,
    },
    /// End the bypass.
    ClearBypass,
    /// Begin attack mode, or move its end.
    SetAttackMode {
        /// Since when and until when.
        fact: AttackModeFact,
    },
    /// End attack mode.
    ClearAttackMode,
    /// Set the load level, or set it otherwise.
    SetLevelPin {
        /// Which, and until when.
        fact: LevelPinFact,
    },
    /// Let go of it.
    ClearLevelPin,
    /// Put a configuration on trial, or renew the trial.
    SetTrial {
        /// Until when, and what before.
        fact: TrialFact,
    },
    /// The configuration before the trial is in force again.
    UndoTrial,
    /// The configuration in force is no longer on trial: it was confirmed, or another came after one that was undone.
    ClearTrial,
    /// Keep what is known of an attack. The oldest goes once there are more than [`incident::MOST`].
    SetIncident {
        /// Its number: one that is there, or a higher one than all that are.
        id: u32,
        /// What is known.
        incident: Incident,
    },
    /// Remember what `net.ipv4.tcp_syncookies` is, before it is set to 2.
    SetSyncookies {
        /// What it is.
        before: u32,
    },
    /// Forget it, because it was put back.
    ClearSyncookies,
}

/// Why a command does not apply. The ledger is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Rejection {
    /// The fact's number was given out before, or is 0.
    #[error("number {id} is taken; the ledger gives out {next} next")]
    IdTaken {
        /// The number in the command.
        id: u32,
        /// The ledger's next number.
        next: u32,
    },
    /// The last number was given out.
    #[error("the ledger has given out every number there is")]
    IdsExhausted,
    /// The source or range is not banned.
    #[error("there is no such ban")]
    NoSuchBan,
    /// The allow list has no such entry.
    #[error("there is no such entry on the allow list")]
    NoSuchAllow,
    /// Nothing is remembered of the source.
    #[error("there is no such memory")]
    NoSuchMemory,
    /// A bypass is already in force.
    #[error("the shield is already bypassed")]
    AlreadyBypassed,
    /// No bypass is in force.
    #[error("the shield is not bypassed")]
    NotBypassed,
    /// Attack mode is not in force.
    #[error("attack mode is not in force")]
    NoAttackMode,
    /// No operator has set the load level.
    #[error("the load level is not set by hand")]
    NoLevelPin,
    /// No configuration is on trial.
    #[error("no configuration is on trial")]
    NoTrial,
    /// The incident's number was given out before and its incident is gone.
    #[error("incident {0} is older than those that are kept")]
    OldIncident(u32),
    /// An earlier value of the sysctl is remembered, or none is.
    #[error("what tcp_syncookies was is already remembered, or already forgotten")]
    Syncookies,
}

/// Carries out `command`.
///
/// # Errors
/// When the command names what is not there, or what may be there only once; the ledger is then as it was.
pub fn apply(ledger: &mut Ledger, command: &Command) -> Result<(), Rejection> {
    match command {
        Command::SetBan { source, fact } => {
            ledger.next_id = id_after(ledger.next_id, fact.id)?;
            ledger.bans.insert(*source, fact.clone());
        }
        Command::LiftBan { source } => {
            ledger.bans.remove(source).ok_or(Rejection::NoSuchBan)?;
        }
        Command::SetNetBan { prefix, fact } => {
            ledger.next_id = id_after(ledger.next_id, fact.id)?;
            ledger.nets.insert(*prefix, fact.clone());
        }
        Command::LiftNetBan { prefix } => {
            ledger.nets.remove(prefix).ok_or(Rejection::NoSuchBan)?;
        }
        Command::SetAllow { prefix, fact } => {
            ledger.next_id = id_after(ledger.next_id, fact.id)?;
            ledger.allows.insert(*prefix, fact.clone());
        }
        Command::LiftAllow { prefix } => {
            ledger.allows.remove(prefix).ok_or(Rejection::NoSuchAllow)?;
        }
        Command::SetMemory { source, memory } => {
            ledger.memories.insert(*source, *memory);
        }
        Command::ForgetMemory { source } => {
            ledger.memories.remove(source).ok_or(Rejection::NoSuchMemory)?;
        }
        Command::SetBypass { fact } => {
            if ledger.bypass.is_some() {
                return Err(Rejection::AlreadyBypassed);
            }
            ledger.bypass = Some(fact.clone());
        }
        Command::ClearBypass => {
            ledger.bypass.take().ok_or(Rejection::NotBypassed)?;
        }
        Command::SetAttackMode { fact } => {
            ledger.attack_mode = Some(*fact);
        }
        Command::ClearAttackMode => {
            ledger.attack_mode.take().ok_or(Rejection::NoAttackMode)?;
        }
        Command::SetLevelPin { fact } => {
            ledger.level_pin = Some(*fact);
        }
        Command::ClearLevelPin => {
            ledger.level_pin.take().ok_or(Rejection::NoLevelPin)?;
        }
        Command::SetTrial { fact } => {
            ledger.trial = Some(fact.clone());
        }
        Command::UndoTrial => {
            ledger.trial.as_mut().ok_or(Rejection::NoTrial)?.is_undone = true;
        }
        Command::ClearTrial => {
            ledger.trial.take().ok_or(Rejection::NoTrial)?;
        }
        Command::SetIncident { id, incident } => {
            let newest = ledger.incidents.last_key_value().map(|(newest, _)| *newest);
            if !ledger.incidents.contains_key(id) && newest.is_some_and(|newest| *id <= newest) {
                return Err(Rejection::OldIncident(*id));
            }
            ledger.incidents.insert(*id, incident.clone());
            incident::trim(&mut ledger.incidents);
        }
        Command::SetSyncookies { before } => {
            if ledger.syncookies_before.is_some() {
                return Err(Rejection::Syncookies);
            }
            ledger.syncookies_before = Some(*before);
        }
        Command::ClearSyncookies => {
            ledger.syncookies_before.take().ok_or(Rejection::Syncookies)?;
        }
    }
    Ok(())
}

/// The next number once `id` is given out.
fn id_after(next: u32, id: u32) -> Result<u32, Rejection> {
    if id == 0 || id < next {
        return Err(Rejection::IdTaken { id, next });
    }
    id.checked_add(1).ok_or(Rejection::IdsExhausted)
}

impl Ledger {
    /// Every ban, of sources and then of ranges.
    pub fn all_bans(&self) -> impl Iterator<Item = (BanTarget, &BanFact)> {
        let sources = self.bans.iter().map(|(source, fact)| (BanTarget::Source(*source), fact));
        sources.chain(self.nets.iter().map(|(prefix, fact)| (BanTarget::Range(*prefix), fact)))
    }

    /// The ban of this target, exactly as it was set.
    pub fn ban_of(&self, target: BanTarget) -> Option<&BanFact> {
        match target {
            BanTarget::Source(source) => self.bans.get(&source),
            BanTarget::Range(prefix) => self.nets.get(&prefix),
        }
    }

    /// The banned ranges that hold the whole of `range`, longest first as the kernel looks them up.
    pub fn nets_around(&self, range: Prefix) -> impl Iterator<Item = (Prefix, &BanFact)> {
        range.around().filter_map(|prefix| Some((prefix, self.nets.get(&prefix)?)))
    }
}

impl Default for Ledger {
    /// A ledger without facts.
    fn default() -> Self {
        Self {
            bans: BTreeMap::new(),
            nets: BTreeMap::new(),
            allows: BTreeMap::new(),
            memories: BTreeMap::new(),
            bypass: None,
            attack_mode: None,
            level_pin: None,
            trial: None,
            syncookies_before: None,
            incidents: BTreeMap::new(),
            next_id: 1,
        }
    }
}

impl BanOrigin {
    /// The word in listings.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Evidence => "evidence",
            Self::Report => "report",
        }
    }

    /// Every origin.
    pub const ALL: [Self; 3] = [Self::Operator, Self::Evidence, Self::Report];

    /// The origin of a ban that rests on this proof.
    pub const fn of(proof: Proven) -> Self {
        match proof {
            Proven::Operator => Self::Operator,
            Proven::Handshakes => Self::Evidence,
            Proven::Report { .. } => Self::Report,
        }
    }
}

impl AllowOrigin {
    /// The word in listings.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Operator => "operator",
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn source(host: u8) -> PacketSource {
        PacketSource::of([198, 51, 100, host].into())
    }

    fn ban(id: u32) -> BanFact {
        let (since, expires) = (WallTime(10), Some(WallTime(310)));
        BanFact { id, since, expires, rung: Some(1), origin: BanOrigin::Operator, reason: "scan".into() }
    }

    fn allow(id: u32) -> AllowFact {
        AllowFact {
            id,
            since: WallTime(10),
            expires: None,
            origin: AllowOrigin::Operator,
            reason: "office".into(),
        }
    }

    fn net(host: u8) -> Prefix {
        format!("203.0.{host}.0/24").parse().unwrap()
    }

    fn trial(end: u64) -> TrialFact {
        TrialFact {
            since: WallTime(1),
            expires: WallTime(end),
            before: "198.51.100.7".into(),
            is_undone: false,
        }
    }

    #[test]
    fn a_trial_is_over_by_time_or_once_undone_and_shows_no_text() {
        let fact = trial(5);
        assert!(!fact.is_over(WallTime(4)) && fact.is_over(WallTime(5)));
        assert!(!format!("{fact:?}").contains("198.51"));
        assert!(TrialFact { is_undone: true, ..fact }.is_over(WallTime(0)));
    }

    fn incident(start: u64) -> Incident {
        Incident {
            start: WallTime(start),
            last: WallTime(start),
            is_over: true,
            defences: vec!["syn_rate".into()],
            peak_packets_per_second: 7,
            rows: Vec::new(),
            ports: vec![443],
            softirq: None,
        }
    }

    #[test]
    fn the_oldest_incident_goes() {
        let mut ledger = Ledger::default();
        for id in 1..=150 {
            apply(&mut ledger, &Command::SetIncident { id, incident: incident(0) }).unwrap();
        }
        assert!(ledger.incidents.keys().copied().eq(51..=150));
    }

    fn attack_mode(end: u64) -> AttackModeFact {
        AttackModeFact { since: WallTime(1), expires: WallTime(end) }
    }

    fn level_pin(level: usize) -> LevelPinFact {
        LevelPinFact { level: Level::ALL[level], since: WallTime(1), expires: None }
    }

    fn command() -> impl Strategy<Value = Command> {
        let host = 0u8..4;
        prop_oneof![
            (host.clone(), 0u32..40)
                .prop_map(|(host, id)| Command::SetNetBan { prefix: net(host), fact: ban(id) }),
            host.clone().prop_map(|host| Command::LiftNetBan { prefix: net(host) }),
            (host.clone(), 0u32..40)
                .prop_map(|(host, id)| Command::SetBan { source: source(host), fact: ban(id) }),
            host.clone().prop_map(|host| Command::LiftBan { source: source(host) }),
            (host.clone(), 0u32..40)
                .prop_map(|(host, id)| Command::SetAllow { prefix: source(host).prefix(), fact: allow(id) }),
            host.clone().prop_map(|host| Command::LiftAllow { prefix: source(host).prefix() }),
            (host.clone(), 1u32..5).prop_map(|(host, rung)| {
                Command::SetMemory {
                    source: source(host),
                    memory: Memory { rung, last_offence: WallTime(5) },
                }
            }),
            host.prop_map(|host| Command::ForgetMemory { source: source(host) }),
            Just(Command::SetBypass { fact: BypassFact { since: WallTime(7), reason: "test".into() } }),
            Just(Command::ClearBypass),
            (1u64..9).prop_map(|end| Command::SetAttackMode { fact: attack_mode(end) }),
            Just(Command::ClearAttackMode),
            (0usize..5).prop_map(|level| Command::SetLevelPin { fact: level_pin(level) }),
            Just(Command::ClearLevelPin),
            (1u64..9).prop_map(|end| Command::SetTrial { fact: trial(end) }),
            Just(Command::UndoTrial),
            Just(Command::ClearTrial),
            (0u32..200).prop_map(|id| Command::SetIncident { id, incident: incident(id.into()) }),
            (0u32..3).prop_map(|before| Command::SetSyncookies { before }),
            Just(Command::ClearSyncookies),
        ]
    }

    #[test]
    fn commands_that_do_not_apply_are_named() {
        let (who, whom) = (source(7), source(7).prefix());
        let bypass = Command::SetBypass { fact: BypassFact { since: WallTime(1), reason: String::new() } };
        // Commands that apply, then one that does not.
        for (before, last, rejection) in [
            (vec![], Command::SetBan { source: who, fact: ban(0) }, Rejection::IdTaken { id: 0, next: 1 }),
            (
                vec![Command::SetBan { source: who, fact: ban(4) }],
                Command::SetAllow { prefix: whom, fact: allow(4) },
                Rejection::IdTaken { id: 4, next: 5 },
            ),
            (vec![], Command::SetBan { source: who, fact: ban(u32::MAX) }, Rejection::IdsExhausted),
            (vec![], Command::LiftBan { source: who }, Rejection::NoSuchBan),
            (vec![], Command::LiftNetBan { prefix: whom }, Rejection::NoSuchBan),
            (
                vec![Command::SetBan { source: who, fact: ban(4) }],
                Command::SetNetBan { prefix: net(1), fact: ban(4) },
                Rejection::IdTaken { id: 4, next: 5 },
            ),
            (vec![], Command::LiftAllow { prefix: whom }, Rejection::NoSuchAllow),
            (vec![], Command::ForgetMemory { source: who }, Rejection::NoSuchMemory),
            (vec![bypass.clone()], bypass, Rejection::AlreadyBypassed),
            (vec![], Command::ClearBypass, Rejection::NotBypassed),
            (vec![], Command::ClearAttackMode, Rejection::NoAttackMode),
            (vec![], Command::ClearLevelPin, Rejection::NoLevelPin),
            (vec![], Command::UndoTrial, Rejection::NoTrial),
            (vec![], Command::ClearTrial, Rejection::NoTrial),
            (
                vec![Command::SetSyncookies { before: 1 }],
                Command::SetSyncookies { before: 2 },
                Rejection::Syncookies,
            ),
            (vec![], Command::ClearSyncookies, Rejection::Syncookies),
            (
                vec![Command::SetIncident { id: 4, incident: incident(1) }],
                Command::SetIncident { id: 3, incident: incident(1) },
                Rejection::OldIncident(3),
            ),
        ] {
            let mut ledger = Ledger::default();
            for command in before {
                assert_eq!(apply(&mut ledger, &command), Ok(()));
            }
            assert_eq!(apply(&mut ledger, &last), Err(rejection), "{last:?}");
        }
    }

    proptest! {
        /// For all sequences of commands, a rejected one changes nothing, numbers only rise and none stands twice.
        #[test]
        fn rejections_change_nothing(commands in prop::collection::vec(command(), 0..80)) {
            let mut ledger = Ledger::default();
            for command in commands {
                let before = ledger.clone();
                match apply(&mut ledger, &command) {
                    Err(_) => prop_assert_eq!(&ledger, &before),
                    Ok(()) => prop_assert!(ledger.next_id >= before.next_id),
                }
                let mut ids: Vec<u32> = ledger.all_bans().map(|(_, fact)| fact.id).collect();
                ids.extend(ledger.allows.values().map(|fact| fact.id));
                ids.sort_unstable();
                prop_assert!(ids.is_sorted_by(|lower, upper| lower < upper), "{:?}", ids);
                prop_assert!(ids.iter().all(|id| *id < ledger.next_id));
            }
        }
    }
}
