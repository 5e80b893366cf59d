//! What operators ask for, as plans: commands, sentences, and the way back. Nothing here changes state.

use std::{fmt::Display, time::Duration};

use thiserror::Error;

use super::{
    AllowRequest, BanRequest, Coordinator, LONGEST, LONGEST_TRIAL, Length, MOST_REASON_CHARACTERS,
    MOST_TRIAL_BYTES, Outcome, RefusedCode, Reply, SHORTEST, SHORTEST_TRIAL, WIDEST_V4, WIDEST_V6, lift,
};
use crate::{
    attack_mode,
    ban_ladder::Climb,
    evidence::Offence,
    id::{BanTarget, PacketSource, Prefix},
    ledger::{AllowFact, AllowOrigin, AttackModeFact, BanFact, BanOrigin, BypassFact, Command, LevelPinFact},
    limits::{Mode, Settings},
    load_level::Level,
    never_ban::Protection,
    notice::span,
    reports::MOST_SERVICE_BYTES,
    time::{Now, WallTime},
};

/// What would be done.
pub(super) struct Plan {
    pub(super) commands: Vec<Command>,
    changes: Vec<String>,
    undo: Option<String>,
}

impl Plan {
    /// One that changes no durable fact.
    pub(super) fn of(change: String) -> Self {
        Self { commands: Vec::new(), changes: vec![change], undo: None }
    }
}

/// Why nothing is done.
#[derive(Debug, Error)]
pub(super) enum Refusal {
    #[error("{who} cannot be banned: {protection}; {}", .protection.advice())]
    Protected { who: BanTarget, protection: Protection },
    #[error("{0} is not banned, so there is nothing to lift; `tunica ban list` shows every ban")]
    NotBanned(BanTarget),
    #[error(
        "{0} is a range, to which the ban ladder gives no length, so nothing was banned; add `--for 1h`, another span, or `--for forever`"
    )]
    RangeNeedsLength(Prefix),
    #[error(
        "{0} is more than a ban may hit, since it would shut out a good part of the internet; name ranges of at least /{WIDEST_V4} (IPv4) or /{WIDEST_V6} (IPv6)"
    )]
    TooWide(Prefix),
    #[error(
        "{0} holds all of IPv4 in mapped form, so banning it would shut out IPv4 too; name the ranges that the traffic really comes from"
    )]
    BanReachesIntoIpv4(Prefix),
    #[error(
        "no operator's entry on the allow list is {0}, so there is nothing to remove; `tunica allow list` shows every entry"
    )]
    NotAllowed(Prefix),
    #[error(
        "{0} comes from the configuration file, so it stays; take it out of `shield.allow` and run `tunica reload`"
    )]
    AllowedByConfig(Prefix),
    #[error(
        "{0} is the far end of one of tor's own connections, so it stays; it goes once tor has not used it for `tor.keep_seconds`"
    )]
    AllowedByTor(Prefix),
    #[error(
        "the ban table is full with {0} bans, so another would not be in force; lift one or raise `shield.tables.bans`"
    )]
    BansFull(u32),
    #[error(
        "the table of banned ranges is full with {0}, so another would not be in force; lift one or raise `shield.tables.cidrs`"
    )]
    NetsFull(u32),
    #[error(
        "the allow list is full with {0} entries, so another would not be in force; remove one or raise `shield.tables.allow`"
    )]
    AllowsFull(u32),
    #[error("the ledger has given out every number there is, so it takes no new fact; begin a new ledger")]
    IdsExhausted,
    #[error(
        "the reason has {0} characters, so the ledger would not keep it; write at most {MOST_REASON_CHARACTERS}"
    )]
    LongReason(usize),
    #[error(
        "the reason holds a control character, which could disturb a terminal that shows it; write one line of plain text"
    )]
    ControlCharacter,
    #[error("{} s is no length that can be kept, so nothing was set; give 1 to {} s, which is ten years", .0.as_secs_f64(), LONGEST.as_secs())]
    BadLength(Duration),
    #[error(
        "the ban ladder gives no length to an allow entry, so nothing was set; name a length or allow for ever"
    )]
    NoLadderHere,
    #[error(
        "{0} holds all of IPv4 in mapped form, so allowing it would open IPv4 too; name 2000::/3 to allow all public IPv6"
    )]
    ReachesIntoIpv4(Prefix),
    #[error("the shield has been bypassed since {0}, so there is nothing to do; `tunica bypass off` ends it")]
    AlreadyBypassed(WallTime),
    #[error(
        "the shield is not bypassed, so there is nothing to end; `tunica status` shows whether it is attached"
    )]
    NotBypassed,
    #[error(
        "{} s is no length of attack mode, so nothing was changed; give {} to {} s, and put limits that are right for longer into the configuration",
        .0.as_secs(), attack_mode::SHORTEST.as_secs(), attack_mode::LONGEST.as_secs()
    )]
    BadAttackModeLength(Duration),
    #[error(
        "{} s is no length of a trial; give {} to {} s",
        .0.as_secs(), SHORTEST_TRIAL.as_secs(), LONGEST_TRIAL.as_secs()
    )]
    BadTrialLength(Duration),
    #[error(
        "the configuration in force has {0} bytes, too many to be kept beside a trial; write at most {MOST_TRIAL_BYTES}, or reload without a trial"
    )]
    LongConfiguration(usize),
    #[error(
        "no configuration is on trial, so there is nothing to confirm; `tunica reload --confirm` begins a trial"
    )]
    NoTrial,
    #[error(
        "the trial was over at {0}, so the configuration before is in force; `tunica reload` brings the file into force"
    )]
    TrialOver(WallTime),
    #[error(
        "uid {0} is no reporter, so the report does not count; name its account in `reporters` under [evidence] and run `tunica reload`"
    )]
    NotAReporter(u32),
    #[error(
        "uid {0} has used up its budget of reports, so this one does not count; report single offences, or raise the budget in `evidence.reporters`"
    )]
    OverBudget(u32),
    #[error(
        "the service has no name that can be kept, so the report does not count; write 1 to {MOST_SERVICE_BYTES} letters, digits, `.`, `_` or `-`"
    )]
    BadService,
    #[error(
        "the load level is not set by hand, so there is nothing to let go of; `tunica threat` shows what it is"
    )]
    NoLevelPin,
    #[error("attack mode is not in force, so there is nothing to end; `tunica status` shows what is")]
    NoAttackMode,
}

impl Refusal {
    pub(super) const fn code(&self) -> RefusedCode {
        match self {
            Self::Protected { .. } => RefusedCode::Protected,
            Self::NotBanned(_)
            | Self::NotAllowed(_)
            | Self::AllowedByConfig(_)
            | Self::AllowedByTor(_)
            | Self::NotBypassed
            | Self::NoAttackMode
            | Self::NoLevelPin
            | Self::NoTrial => RefusedCode::NotFound,
            Self::BansFull(_) | Self::NetsFull(_) | Self::AllowsFull(_) | Self::IdsExhausted => {
                RefusedCode::Full
            }
            Self::NotAReporter(_) => RefusedCode::Forbidden,
            Self::OverBudget(_) => RefusedCode::OverBudget,
            Self::LongReason(_)
            | Self::ControlCharacter
            | Self::BadLength(_)
            | Self::NoLadderHere
            | Self::RangeNeedsLength(_)
            | Self::TooWide(_)
            | Self::BanReachesIntoIpv4(_)
            | Self::BadAttackModeLength(_)
            | Self::BadTrialLength(_)
            | Self::LongConfiguration(_)
            | Self::TrialOver(_)
            | Self::BadService
            | Self::ReachesIntoIpv4(_)
            | Self::AlreadyBypassed(_) => RefusedCode::Invalid,
        }
    }

    /// What protects the source or range, if that is why.
    pub(super) const fn protection(&self) -> Option<Protection> {
        if let Self::Protected { protection, .. } = self { Some(*protection) } else { None }
    }
}

/// The outcome of a plan. A dry run says the same and does nothing.
pub(super) fn answer(plan: &Result<Plan, Refusal>, dry_run: bool) -> Outcome {
    let (commands, reply) = match plan {
        Ok(Plan { commands, changes, undo }) => {
            let commands = if dry_run { Vec::new() } else { commands.clone() };
            (commands, Reply::Done { changes: changes.clone(), undo: undo.clone(), dry_run })
        }
        Err(refusal) => (Vec::new(), Reply::Refused { code: refusal.code(), message: refusal.to_string() }),
    };
    Outcome { commands, reply: Some(reply), ..Outcome::default() }
}

impl Coordinator {
    pub(super) fn plan_ban(&self, request: &BanRequest, now: Now) -> Result<Plan, Refusal> {
        let target = request.target;
        check_reason(&request.reason)?;
        if let BanTarget::Range(prefix) = target {
            check_range(prefix)?;
        }
        let mut commands = Vec::new();
        let (length, rung, origin) = match (request.length, target) {
            (Length::Ladder, BanTarget::Source(source)) => {
                let offence = Offence::by_operator(source, request.reason.clone());
                let climb = self.climb(&offence, &mut commands, now);
                (Some(climb.length), Some(climb.memory.rung), BanOrigin::of(offence.proof()))
            }
            (Length::Ladder, BanTarget::Range(prefix)) => return Err(Refusal::RangeNeedsLength(prefix)),
            (Length::For(length), _) => (Some(check_length(length)?), None, BanOrigin::Operator),
            (Length::Forever, _) => (None, None, BanOrigin::Operator),
        };
        let is_operators = |from: PacketSource| from.prefix().overlaps(target.prefix());
        let operator = request.operator.is_some_and(is_operators).then_some(Protection::Operator);
        if let Some(protection) = self.protection(target.prefix(), now.mono).or(operator) {
            return Err(Refusal::Protected { who: target, protection });
        }
        let before = self.ledger.ban_of(target);
        if before.is_none() {
            self.check_room(target)?;
        }
        let expires = length.map(|length| now.wall.after(length));
        let (id, since, reason) = (self.fresh_id()?, now.wall, request.reason.clone());
        let fact = BanFact { id, since, expires, rung, origin, reason };
        let mut changes = self.sentences(target, &fact);
        commands.push(match target {
            BanTarget::Source(source) => Command::SetBan { source, fact },
            BanTarget::Range(prefix) => Command::SetNetBan { prefix, fact },
        });
        if let Some(before) = before {
            changes.push(format!("it replaces ban {}{}", before.id, until(before.expires)));
        }
        changes.extend(self.caveat());
        let undo = before.map_or_else(
            || format!("tunica ban remove {target}"),
            |before| undo_line("ban", target, before.expires, &before.reason, now.wall),
        );
        Ok(Plan { commands, changes, undo: Some(undo) })
    }

    /// Whom a ban hits and for how long.
    fn sentences(&self, target: BanTarget, fact: &BanFact) -> Vec<String> {
        let length = fact.expires.map(|expires| expires.since(fact.since));
        let top = self.settings.ladder.top();
        let rung = fact.rung.map(|rung| format!("that is rung {rung} of the {top} of the ban ladder"));
        let whom = format!("{target} is banned {}{}", span(length), until(fact.expires));
        std::iter::once(whom).chain(rung).collect()
    }

    /// Fails if the table has no row for another ban.
    fn check_room(&self, target: BanTarget) -> Result<(), Refusal> {
        let Settings { ban_capacity, net_capacity, .. } = self.settings;
        match target {
            BanTarget::Source(_) if is_full(self.ledger.bans.len(), ban_capacity) => {
                Err(Refusal::BansFull(ban_capacity))
            }
            BanTarget::Range(_) if is_full(self.ledger.nets.len(), net_capacity) => {
                Err(Refusal::NetsFull(net_capacity))
            }
            BanTarget::Source(_) | BanTarget::Range(_) => Ok(()),
        }
    }

    /// The ban that an offence earns without an operator's request.
    pub(super) fn plan_offence(&self, offence: &Offence, now: Now) -> Result<Plan, Refusal> {
        let source = offence.source();
        let target = BanTarget::Source(source);
        if let Some(protection) = self.protection(target.prefix(), now.mono) {
            return Err(Refusal::Protected { who: target, protection });
        }
        if self.ledger.ban_of(target).is_none() {
            self.check_room(target)?;
        }
        let mut commands = Vec::new();
        let climb = self.climb(offence, &mut commands, now);
        let fact = BanFact {
            id: self.fresh_id()?,
            since: now.wall,
            expires: Some(now.wall.after(climb.length)),
            rung: Some(climb.memory.rung),
            origin: BanOrigin::of(offence.proof()),
            reason: offence.reason().to_owned(),
        };
        let mut changes = self.sentences(target, &fact);
        changes.extend(self.caveat());
        commands.push(Command::SetBan { source, fact });
        Ok(Plan { commands, changes, undo: Some(format!("tunica ban remove {target}")) })
    }

    /// The next rung of the ladder for an offence, and the commands that remember it.
    fn climb(&self, offence: &Offence, commands: &mut Vec<Command>, now: Now) -> Climb {
        let source = offence.source();
        let memory = self.ledger.memories.get(&source).copied();
        let climb = self.settings.ladder.climb(memory, offence, now.wall);
        commands.extend(self.room_for_memory(source));
        commands.push(Command::SetMemory { source, memory: climb.memory });
        climb
    }

    pub(super) fn plan_unban(&self, target: BanTarget, now: Now) -> Result<Plan, Refusal> {
        let fact = self.ledger.ban_of(target).ok_or(Refusal::NotBanned(target))?;
        let mut changes = vec![format!("ban {} of {target} is lifted", fact.id)];
        if let BanTarget::Source(source) = target {
            let standing = |memory| self.settings.ladder.standing(memory, now.wall);
            let rung = self.ledger.memories.get(&source).map_or(0, |memory| standing(*memory));
            if rung > 0 {
                changes.push(format!("the ban ladder still remembers the source on rung {rung}"));
            }
        }
        let others = self.ledger.nets_around(target.prefix());
        let others = others.filter(|(prefix, _)| BanTarget::Range(*prefix) != target);
        changes.extend(others.map(|(prefix, other)| format!("ban {} of {prefix} still hits it", other.id)));
        let undo = undo_line("ban", target, fact.expires, &fact.reason, now.wall);
        Ok(Plan { commands: vec![lift(target)], changes, undo: Some(undo) })
    }

    /// How many bans hit some address of `prefix`.
    fn bans_in(&self, prefix: Prefix) -> usize {
        self.ledger.bans.range(prefix.sources()).count() + prefix.overlapping(&self.ledger.nets).count()
    }

    pub(super) fn plan_allow(&self, request: &AllowRequest, now: Now) -> Result<Plan, Refusal> {
        let prefix = request.prefix;
        check_reason(&request.reason)?;
        let length = match request.length {
            Length::Ladder => return Err(Refusal::NoLadderHere),
            Length::For(length) => Some(check_length(length)?),
            Length::Forever => None,
        };
        if prefix.reaches_into_ipv4() {
            return Err(Refusal::ReachesIntoIpv4(prefix));
        }
        let before = self.ledger.allows.get(&prefix);
        let config = &self.settings.config_allow;
        let others = self.ledger.allows.keys().filter(|known| !config.contains(known)).count();
        let is_new = before.is_none() && !config.contains(&prefix);
        if is_new && is_full(config.len() + others, self.settings.allow_capacity) {
            return Err(Refusal::AllowsFull(self.settings.allow_capacity));
        }
        let expires = length.map(|length| now.wall.after(length));
        let (id, since, reason) = (self.fresh_id()?, now.wall, request.reason.clone());
        let fact = AllowFact { id, since, expires, origin: AllowOrigin::Operator, reason };

        let mut changes = vec![format!("{prefix} is on the allow list {}{}", span(length), until(expires))];
        if let Some(before) = before {
            changes.push(format!("it replaces entry {}{}", before.id, until(before.expires)));
        }
        if config.contains(&prefix) {
            changes.push("the configuration file allows the same range, and goes on doing so".into());
        }
        let bans = self.bans_in(prefix);
        if bans > 0 {
            changes.push(format!("bans without effect there while the entry holds: {bans}"));
        }
        let undo = before.map_or_else(
            || format!("tunica allow remove {prefix}"),
            |before| undo_line("allow", prefix, before.expires, &before.reason, now.wall),
        );
        Ok(Plan { commands: vec![Command::SetAllow { prefix, fact }], changes, undo: Some(undo) })
    }

    pub(super) fn plan_disallow(&self, prefix: Prefix, now: Now) -> Result<Plan, Refusal> {
        let Some(fact) = self.ledger.allows.get(&prefix) else {
            let is_peer = self.never_ban.peers().any(|peer| Prefix::host(peer) == prefix);
            return Err(match self.settings.config_allow.contains(&prefix) {
                true => Refusal::AllowedByConfig(prefix),
                false if is_peer => Refusal::AllowedByTor(prefix),
                false => Refusal::NotAllowed(prefix),
            });
        };
        let mut changes = vec![format!("entry {} for {prefix} is off the allow list", fact.id)];
        let bans = self.bans_in(prefix);
        if bans > 0 {
            changes.push(format!("bans that take effect there again: {bans}"));
        }
        let undo = undo_line("allow", prefix, fact.expires, &fact.reason, now.wall);
        Ok(Plan { commands: vec![Command::LiftAllow { prefix }], changes, undo: Some(undo) })
    }

    pub(super) fn plan_bypass_on(&self, reason: String, now: Now) -> Result<Plan, Refusal> {
        check_reason(&reason)?;
        if let Some(bypass) = &self.ledger.bypass {
            return Err(Refusal::AlreadyBypassed(bypass.since));
        }
        Ok(Plan {
            commands: vec![Command::SetBypass { fact: BypassFact { since: now.wall, reason } }],
            changes: vec![
                "the shield is detached; no packet is inspected and no circuit refused until the bypass ends"
                    .into(),
            ],
            undo: Some("tunica bypass off".into()),
        })
    }

    pub(super) fn plan_bypass_off(&self) -> Result<Plan, Refusal> {
        let bypass = self.ledger.bypass.as_ref().ok_or(Refusal::NotBypassed)?;
        let mut commands = vec![Command::ClearBypass];
        // Nobody confirmed the first start, and now the shield is wanted.
        let undone = self.ledger.trial.as_ref().filter(|trial| trial.is_undone && trial.is_of_first_start());
        commands.extend(undone.map(|_| Command::ClearTrial));
        Ok(Plan {
            commands,
            changes: vec!["the shield is attached again".into()],
            undo: Some(format!("tunica bypass on --reason {}", quoted(&bypass.reason))),
        })
    }

    pub(super) fn plan_attack_mode_on(&self, length: Duration, now: Now) -> Result<Plan, Refusal> {
        if !(attack_mode::SHORTEST..=attack_mode::LONGEST).contains(&length) {
            return Err(Refusal::BadAttackModeLength(length));
        }
        let before = self.ledger.attack_mode;
        let expires = now.wall.after(length);
        let since = before.map_or(now.wall, |fact| fact.since);
        let fact = AttackModeFact { since, expires };
        let mut changes = attack_mode::changes(&self.configured);
        changes.push("allow list, bans, port rules and lockdown stay as they are".into());
        changes.push(format!("the load level is heavy at least: {}", Level::Heavy.demands()));
        if let Some(pin) = self.ledger.level_pin.filter(|pin| pin.level < Level::Heavy) {
            changes.push(format!(
                "the load level {}, which was set by hand, rests until then",
                pin.level.name()
            ));
        }
        changes.push(match before {
            None => format!("this ends by itself after {} s, at {expires}", length.as_secs()),
            Some(before) => {
                format!("this is in force already, and now ends at {expires} instead of {}", before.expires)
            }
        });
        if self.ledger.bypass.is_some() {
            changes.push("the shield is bypassed, so nothing is dropped until `tunica bypass off`".into());
        }
        let commands = vec![Command::SetAttackMode { fact }];
        Ok(Plan { commands, changes, undo: Some("tunica panic off".into()) })
    }

    pub(super) fn plan_attack_mode_off(&self) -> Result<Plan, Refusal> {
        let fact = self.ledger.attack_mode.ok_or(Refusal::NoAttackMode)?;
        let mode = self.configured.mode.label();
        Ok(Plan {
            commands: vec![Command::ClearAttackMode],
            changes: vec![format!(
                "attack mode, in force since {}, ended; the configured settings are in force, mode `{mode}`",
                fact.since
            )],
            undo: Some("tunica panic".into()),
        })
    }

    pub(super) fn plan_level_pin(
        &self,
        level: Level,
        length: Option<Duration>,
        now: Now,
    ) -> Result<Plan, Refusal> {
        let length = length.map(check_length).transpose()?;
        let expires = length.map(|length| now.wall.after(length));
        let fact = LevelPinFact { level, since: now.wall, expires };
        let measured = self.load.desired().measured.name();
        let mut changes = vec![format!(
            "the load level is {}, and not the measured {measured}: {}",
            level.name(),
            level.demands()
        )];
        changes.push(match (length, expires) {
            (Some(length), Some(expires)) => {
                format!("this ends by itself after {} s, at {expires}", length.as_secs())
            }
            (Some(_) | None, _) => "this holds until `tunica threat clear`, also over restarts".into(),
        });
        let before = self.ledger.level_pin;
        if let Some(before) = before {
            changes.push(format!(
                "it replaces {}, set by hand{}",
                before.level.name(),
                until(before.expires)
            ));
        }
        if let Some(attack) = self.ledger.attack_mode.filter(|_| level < Level::Heavy) {
            changes.push(format!(
                "with attack mode the level is heavy at least, so this begins when that ends, at {}",
                attack.expires
            ));
        }
        Ok(Plan {
            commands: vec![Command::SetLevelPin { fact }],
            changes,
            undo: Some(
                before.map_or_else(|| "tunica threat clear".into(), |before| set_line(&before, now.wall)),
            ),
        })
    }

    pub(super) fn plan_level_unpin(&self) -> Result<Plan, Refusal> {
        let fact = self.ledger.level_pin.ok_or(Refusal::NoLevelPin)?;
        let measured = self.load.desired().measured.name();
        Ok(Plan {
            commands: vec![Command::ClearLevelPin],
            changes: vec![format!(
                "the load level {}, set by hand since {}, ended; the measured one counts again, now {measured}",
                fact.level.name(),
                fact.since
            )],
            undo: Some(format!("tunica threat set {}", fact.level.name())),
        })
    }

    pub(super) fn plan_confirm(&self, now: Now) -> Result<Plan, Refusal> {
        let fact = self.ledger.trial.as_ref().ok_or(Refusal::NoTrial)?;
        if fact.is_undone || self.in_force.trial_ends.is_none_or(|at| at <= now.mono) {
            return Err(Refusal::TrialOver(fact.expires));
        }
        Ok(Plan {
            commands: vec![Command::ClearTrial],
            changes: vec!["the configuration on trial stays in force".into()],
            undo: None,
        })
    }

    /// Makes room where as many sources are remembered as can be banned: the one that would be forgotten first goes.
    fn room_for_memory(&self, source: PacketSource) -> Option<Command> {
        let is_known = self.ledger.memories.contains_key(&source);
        let needs_room = !is_known && is_full(self.ledger.memories.len(), self.settings.ban_capacity);
        let (_, source) = self.in_force.forgets.first().filter(|_| needs_room)?;
        Some(Command::ForgetMemory { source })
    }

    fn fresh_id(&self) -> Result<u32, Refusal> {
        if self.ledger.next_id == u32::MAX { Err(Refusal::IdsExhausted) } else { Ok(self.ledger.next_id) }
    }

    /// Why a new ban drops nothing yet, if so.
    fn caveat(&self) -> Option<String> {
        match (&self.ledger.bypass, self.settings.mode) {
            (Some(_), _) => {
                Some("the shield is bypassed, so nothing is dropped until `tunica bypass off`".into())
            }
            (None, Mode::Off) => Some("the mode is `off`, so nothing is dropped".into()),
            (None, Mode::Observe) => {
                Some("the mode is `observe`, so its packets are counted and pass".into())
            }
            (None, Mode::Enforce) => None,
        }
    }
}

pub(super) fn check_reason(reason: &str) -> Result<(), Refusal> {
    let characters = reason.chars().count();
    if characters > MOST_REASON_CHARACTERS {
        return Err(Refusal::LongReason(characters));
    }
    if reason.chars().any(char::is_control) {
        return Err(Refusal::ControlCharacter);
    }
    Ok(())
}

fn check_range(prefix: Prefix) -> Result<(), Refusal> {
    if prefix.reaches_into_ipv4() {
        return Err(Refusal::BanReachesIntoIpv4(prefix));
    }
    let widest = if prefix.address().is_ipv4() { WIDEST_V4 } else { WIDEST_V6 };
    if prefix.length() < widest { Err(Refusal::TooWide(prefix)) } else { Ok(()) }
}

pub(super) fn check_trial(length: Duration, before: &str) -> Result<(), Refusal> {
    if !(SHORTEST_TRIAL..=LONGEST_TRIAL).contains(&length) {
        return Err(Refusal::BadTrialLength(length));
    }
    if before.len() > MOST_TRIAL_BYTES {
        return Err(Refusal::LongConfiguration(before.len()));
    }
    Ok(())
}

fn check_length(length: Duration) -> Result<Duration, Refusal> {
    if (SHORTEST..=LONGEST).contains(&length) { Ok(length) } else { Err(Refusal::BadLength(length)) }
}

/// The command line that sets a load level as it was.
fn set_line(fact: &LevelPinFact, now: WallTime) -> String {
    let length = fact.expires.map(|expires| format!(" --for {}s", expires.since(now).as_secs().max(1)));
    format!("tunica threat set {}{}", fact.level.name(), length.unwrap_or_default())
}

fn is_full(rows: usize, capacity: u32) -> bool {
    rows >= usize::try_from(capacity).unwrap_or(usize::MAX)
}

/// ", until …", or nothing where only a hand ends it.
pub(super) fn until(expires: Option<WallTime>) -> String {
    expires.map_or_else(String::new, |expires| format!(", until {expires}"))
}

/// The command line that brings a fact back for the time it had left.
fn undo_line(
    noun: &str,
    range: impl Display,
    expires: Option<WallTime>,
    reason: &str,
    now: WallTime,
) -> String {
    let length = match expires {
        None => "forever".into(),
        Some(expires) => format!("{}s", expires.since(now).as_secs().max(1)),
    };
    format!("tunica {noun} add {range} --for {length} --reason {}", quoted(reason))
}

/// A word for a POSIX shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}
