//! The only door: events go in, and desired state, commands, notices and replies come out.
//!
//! The daemon hands every event to [`Coordinator::handle`], makes the commands of the outcome durable, and then calls
//! [`Coordinator::commit`] with them before the next event. Only `commit` changes the ledger in memory, so a ban is in
//! force only once it would survive a crash. In the same way only [`Coordinator::adopt`] changes the settings, so a
//! reload whose commands cannot be kept changes nothing. [`Coordinator::advance`] does what time alone makes due, and
//! [`Coordinator::next_deadline`] says when that is.
//!
//! ```text
//! event ──▶ handle ──▶ commands ──▶ ledger file ──▶ commit ──▶ ledger, desired state ──▶ reconcile::diff ──▶ kernel
//!              └────▶ notices, reply                   └─────▶ notices
//! ```

mod operator;
mod report;
#[cfg(test)]
mod simulation;

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use tunica_common::verdict::Action;

use crate::{
    armed::{ArmedPort, ArmedPorts},
    attack_mode,
    ban_ladder::{Ladder, Memory},
    defence::{Defence, DefenceState, Defences, Totals},
    desired::{self, Desired},
    evidence::{Forgeable, Handshake, Offence},
    false_positives::Holders,
    id::{BanTarget, PacketSource, Prefix},
    incident::{CpuTimes, Incident, Incidents, Spoken},
    ledger::{
        self, AllowFact, AttackModeFact, BanFact, BypassFact, Command, Ledger, LevelPinFact, Rejection,
        TrialFact,
    },
    limits::{CookieState, HostFacts, Mode, Settings},
    load_level::{self, Level, LoadLevel, Word},
    never_ban::{self, NeverBan, Protection},
    newcomers::{Newcomer, Newcomers},
    notice::{DropLog, Notice},
    puzzle_level::Pages,
    reports::{Report, Reports},
    self_test::{self, SelfTest, SelfTests, Standing},
    sources::TopSources,
    time::{Monotime, Now, WallTime},
    timetable::Timetable,
    tune::{self, Observation, Proposal},
    violations::Violations,
};

/// Every decision of `tunicad`, in memory.
#[derive(Debug)]
pub struct Coordinator {
    /// What the configuration says.
    configured: Settings,
    /// What is in force: the same, unless attack mode lies over it.
    settings: Settings,
    ledger: Ledger,
    in_force: InForce,
    never_ban: NeverBan,
    sources: TopSources,
    defences: Defences,
    armed: ArmedPorts,
    self_tests: SelfTests,
    violations: Violations,
    reports: Reports,
    incidents: Incidents,
    observation: Observation,
    drop_log: DropLog,
    refused_bans: u64,
    load: LoadLevel,
    newcomers: Newcomers,
    /// Whether it was told that too many new circuits are alike.
    told_crowd: bool,
    /// The level in force that was last told, and who had the word.
    told_level: (Level, Word),
    told_relief: bool,
    /// Whether stricter settings than the configured ones are in force.
    is_tightened: bool,
}

/// What happened outside.
#[derive(Clone, Debug)]
pub enum Event {
    /// An operator wants a source or a range banned.
    Ban(BanRequest),
    /// An operator wants a ban lifted.
    Unban {
        /// Whose.
        target: BanTarget,
        /// Only say what would change.
        dry_run: bool,
    },
    /// An operator wants a range on the allow list.
    Allow(AllowRequest),
    /// An operator wants a range off the allow list.
    Disallow {
        /// Which, exactly as it was added.
        prefix: Prefix,
        /// Only say what would change.
        dry_run: bool,
    },
    /// An operator wants the shield detached.
    BypassOn {
        /// Why, in the operator's words.
        reason: String,
    },
    /// An operator wants the shield attached again.
    BypassOff,
    /// An operator wants attack mode, or another end of it.
    AttackModeOn {
        /// How long from now, from [`attack_mode::SHORTEST`] to [`attack_mode::LONGEST`].
        length: Duration,
        /// Only say what would change.
        dry_run: bool,
    },
    /// An operator wants attack mode to end.
    AttackModeOff {
        /// Only say what would change.
        dry_run: bool,
    },
    /// An operator sets the load level, or sets it otherwise.
    PinLevel {
        /// To this one.
        level: Level,
        /// How long from now, in whole seconds from [`SHORTEST`] to [`LONGEST`]; `None`: until he lets go of it.
        length: Option<Duration>,
        /// Only say what would change.
        dry_run: bool,
    },
    /// An operator lets go of the load level.
    UnpinLevel {
        /// Only say what would change.
        dry_run: bool,
    },
    /// Tor was looked at.
    TorLoad(load_level::TorReading),
    /// The front was looked at.
    FrontLoad(load_level::FrontReading),
    /// What became of the pages' puzzles.
    Pages(Pages),
    /// The front's token holders.
    Holders(Holders),
    /// How long somebody waited for a CPU since the host's start.
    CpuStalled(Duration),
    /// New circuits whose first seconds are over.
    Newcomers {
        /// Which process of the front tells of them.
        process: u64,
        /// What each did.
        circuits: Vec<Newcomer>,
    },
    /// Sampled packets arrived.
    Samples(Vec<Forgeable>),
    /// A source completed a handshake too many.
    Handshake(Handshake),
    /// An application reports a source.
    Report(Report),
    /// The kernel's counters were read. The first reading is the base line, so read once before attaching.
    Totals(Box<Totals>),
    /// The host told how its CPUs spent their time; to be told before the counters of the same second.
    CpuTimes(CpuTimes),
    /// The far ends of tor's established outbound connections were read: all there are now.
    TorPeers(Vec<IpAddr>),
    /// The host's own addresses were read: all there are now.
    OwnAddresses(Vec<IpAddr>),
    /// The host was asked about itself.
    Host(HostFacts),
    /// The kernel was asked for the ports over their budget: all there are now.
    ArmedPorts(Vec<ArmedPort>),
    /// A port that [`Coordinator::self_tests_due`] named was tested.
    SelfTested {
        /// Its number.
        port: u16,
        /// What came of it.
        outcome: SelfTest,
    },
    /// A new configuration was read, found good, and its tables exist.
    Reloaded(Box<Settings>),
    /// The same, for a while: see [`TrialRequest`].
    Tried(Box<TrialRequest>),
    /// An operator keeps the configuration that is on trial.
    Confirmed,
    /// The configuration before the trial was read from the ledger's text, because [`Outcome::undoes_trial`] asked for it.
    Undone(Box<Settings>),
}

/// See [`Event::Ban`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BanRequest {
    /// Whom.
    pub target: BanTarget,
    /// How long; [`Length::Ladder`] is refused for a range.
    pub length: Length,
    /// Why, in the operator's words: at most [`MOST_REASON_CHARACTERS`].
    pub reason: String,
    /// Where the operator is logged in from, which the ban must not cut off; `None` if at the console or if told not to
    /// mind.
    pub operator: Option<PacketSource>,
    /// Only say what would change.
    pub dry_run: bool,
}

/// See [`Event::Allow`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowRequest {
    /// Which addresses.
    pub prefix: Prefix,
    /// How long; [`Length::Ladder`] is refused.
    pub length: Length,
    /// Why, in the operator's words: at most [`MOST_REASON_CHARACTERS`].
    pub reason: String,
    /// Only say what would change.
    pub dry_run: bool,
}

/// See [`Event::Tried`].
#[derive(Clone, PartialEq, Eq)]
pub struct TrialRequest {
    /// The new settings.
    pub settings: Settings,
    /// How long the operator has to confirm them, from [`SHORTEST_TRIAL`] to [`LONGEST_TRIAL`].
    pub length: Duration,
    /// The text of the configuration in force, which comes back if nobody does.
    pub before: String,
}

impl std::fmt::Debug for TrialRequest {
    /// Without the text, which names addresses.
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "TrialRequest {{ length: {:?} }}", self.length)
    }
}

/// How long a ban or an allow entry holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// The next rung of the ban ladder.
    Ladder,
    /// This long, in whole seconds from [`SHORTEST`] to [`LONGEST`].
    For(Duration),
    /// Until lifted by hand.
    Forever,
}

/// Longest reason that the ledger keeps.
pub const MOST_REASON_CHARACTERS: usize = 200;
/// Shortest length of a ban or an allow entry.
pub const SHORTEST: Duration = Duration::from_secs(1);
/// Longest length of a ban or an allow entry that is not for ever: ten years of 365 days.
pub const LONGEST: Duration = Duration::from_secs(10 * 365 * 86_400);
/// Shortest prefix of a banned IPv4 range: the largest block that a registry gets (a 256th of all addresses).
pub const WIDEST_V4: u8 = 8;
/// Shortest prefix of a banned IPv6 range: among the largest blocks that one network was ever given.
pub const WIDEST_V6: u8 = 19;

/// Shortest trial: time to try another login.
pub const SHORTEST_TRIAL: Duration = Duration::from_secs(10);
/// Longest trial.
pub const LONGEST_TRIAL: Duration = Duration::from_secs(3_600);
/// Longest text of a configuration that the ledger keeps, in bytes.
pub const MOST_TRIAL_BYTES: usize = 256 * 1024;

/// What is to be done about an event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// To be made durable, all or none, and then handed to [`Coordinator::commit`].
    pub commands: Vec<Command>,
    /// To be handed to [`Coordinator::adopt`] once the commands are durable, and before they are committed.
    pub settings: Option<Box<Settings>>,
    /// To be told at once.
    pub notices: Vec<Notice>,
    /// Whether the configuration before the trial is to be read from the ledger's text, put in force as far as the daemon
    /// itself goes by it, and handed in as [`Event::Undone`]. Comes again until that happened.
    pub undoes_trial: bool,
    /// The answer, where an operator asked; it is true once the commands are committed.
    pub reply: Option<Reply>,
}

/// The answer to an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Done, or with `dry_run` found possible.
    Done {
        /// One sentence a change.
        changes: Vec<String>,
        /// The command line that undoes it, where there is one.
        undo: Option<String>,
        /// Whether nothing was changed.
        dry_run: bool,
    },
    /// Not done; nothing was changed.
    Refused {
        /// Stable word for scripts.
        code: RefusedCode,
        /// One sentence: what, its consequence, and what to do.
        message: String,
    },
}

/// Stable words for refusals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedCode {
    /// The source or range must not be banned.
    Protected,
    /// Nothing there to remove.
    NotFound,
    /// A table is full.
    Full,
    /// A value is out of range, or the request makes no sense now.
    Invalid,
    /// The configuration does not name the account as a reporter.
    Forbidden,
    /// The account has used up its budget of reports.
    OverBudget,
}

impl Coordinator {
    /// A coordinator that takes up the facts of `ledger`.
    pub fn new(settings: Settings, ledger: Ledger, now: Now) -> Self {
        let mut in_force = InForce::default();
        for (source, fact) in &ledger.bans {
            in_force.set_ban(*source, fact, now);
        }
        for (prefix, fact) in &ledger.nets {
            in_force.set_net(*prefix, fact, now);
        }
        for (prefix, fact) in &ledger.allows {
            in_force.set_allow(*prefix, fact, now);
        }
        for (source, memory) in &ledger.memories {
            in_force.set_memory(*source, *memory, &settings.ladder, now);
        }
        in_force.set_attack_mode(ledger.attack_mode, now);
        in_force.set_level_pin(ledger.level_pin, now);
        in_force.set_trial(ledger.trial.as_ref(), now);
        let mut load = LoadLevel::new(settings.load);
        if let Some(fact) = &ledger.level_pin {
            load.handle(pin(fact, in_force.level_pin_ends), now.mono);
        }
        let mut coordinator = Self {
            never_ban: NeverBan::new(settings.tor_keep),
            sources: TopSources::new(now.wall),
            defences: Defences::new(&settings, ledger.bypass.is_some(), now.wall),
            armed: ArmedPorts::default(),
            self_tests: SelfTests::default(),
            violations: Violations::default(),
            reports: Reports::default(),
            incidents: Incidents::new(&ledger.incidents, now),
            observation: Observation::new(now),
            drop_log: DropLog::default(),
            refused_bans: 0,
            load,
            newcomers: Newcomers::new(settings.newcomers),
            told_crowd: false,
            told_level: (Level::Calm, Word::Measured),
            told_relief: false,
            is_tightened: false,
            configured: settings.clone(),
            settings,
            ledger,
            in_force,
        };
        coordinator.settle(now);
        coordinator.refresh(now);
        // What an earlier daemon told is not told again.
        let _ = coordinator.follow_level(now);
        coordinator
    }

    /// Decides about one event. The ledger and the bans in force stay as they are until [`Self::commit`].
    pub fn handle(&mut self, event: Event, now: Now) -> Outcome {
        match event {
            Event::Ban(request) => {
                let plan = self.plan_ban(&request, now);
                let mut outcome = operator::answer(&plan, request.dry_run);
                if let (Err(refusal), false) = (&plan, request.dry_run)
                    && let Some(protection) = refusal.protection()
                {
                    self.refused_bans += 1;
                    outcome.notices.push(Notice::BanRefusedProtected { target: request.target, protection });
                }
                outcome
            }
            Event::Unban { target, dry_run } => operator::answer(&self.plan_unban(target, now), dry_run),
            Event::Allow(request) => operator::answer(&self.plan_allow(&request, now), request.dry_run),
            Event::Disallow { prefix, dry_run } => {
                operator::answer(&self.plan_disallow(prefix, now), dry_run)
            }
            Event::BypassOn { reason } => operator::answer(&self.plan_bypass_on(reason, now), false),
            Event::BypassOff => operator::answer(&self.plan_bypass_off(), false),
            Event::AttackModeOn { length, dry_run } => {
                operator::answer(&self.plan_attack_mode_on(length, now), dry_run)
            }
            Event::AttackModeOff { dry_run } => operator::answer(&self.plan_attack_mode_off(), dry_run),
            Event::PinLevel { level, length, dry_run } => {
                operator::answer(&self.plan_level_pin(level, length, now), dry_run)
            }
            Event::UnpinLevel { dry_run } => operator::answer(&self.plan_level_unpin(), dry_run),
            Event::TorLoad(reading) => self.measure(load_level::Event::Tor(reading), now),
            Event::FrontLoad(reading) => self.measure(load_level::Event::Front(reading), now),
            Event::Pages(pages) => self.measure(load_level::Event::Pages(pages), now),
            Event::Holders(holders) => self.measure(load_level::Event::Holders(holders), now),
            Event::CpuStalled(stalled) => self.measure(load_level::Event::CpuStalled(stalled), now),
            Event::Newcomers { process, circuits } => {
                let desired = self.load.desired();
                let is_calm = desired.measured == Level::Calm && desired.level == Level::Calm;
                self.newcomers.tell(process, &circuits, is_calm, now.mono);
                Outcome { notices: self.follow_crowd(now), ..Outcome::default() }
            }
            Event::Samples(samples) => {
                let notices = samples.iter().filter_map(|sample| self.sampled(sample, now)).collect();
                Outcome { notices, ..Outcome::default() }
            }
            Event::Handshake(handshake) => self.too_many_handshakes(handshake, now),
            Event::Report(report) => self.reported(&report, now),
            Event::Totals(totals) => Outcome { notices: self.count(*totals, now), ..Outcome::default() },
            Event::CpuTimes(times) => {
                self.incidents.load(times);
                Outcome::default()
            }
            Event::TorPeers(peers) => {
                if self.never_ban.saw_peers(&peers, now) {
                    self.refresh(now);
                }
                self.advance(now)
            }
            Event::OwnAddresses(own) => {
                self.never_ban.set_own(&own);
                self.refresh(now);
                self.advance(now)
            }
            Event::Host(facts) => {
                let before = self.cookies();
                self.in_force.desired.host = facts;
                let after = self.cookies();
                let notices =
                    if before == after { Vec::new() } else { vec![Notice::Cookies { state: after }] };
                Outcome { notices, commands: self.syncookies_command(), ..Outcome::default() }
            }
            Event::ArmedPorts(ports) => {
                let notices = self.armed.saw(&ports);
                self.incidents.armed(ports.iter().map(|port| port.port));
                ports.iter().for_each(|port| self.observation.armed(port.port));
                self.self_tests.saw(&ports, now.mono);
                Outcome { notices, commands: self.syncookies_command(), ..Outcome::default() }
            }
            Event::SelfTested { port, outcome } => {
                let notice = self.self_tests.tested(port, outcome, now.mono);
                if notice.is_some() {
                    self.refresh(now);
                }
                Outcome { notices: notice.into_iter().collect(), ..Outcome::default() }
            }
            Event::Reloaded(settings) => self.plan_reload(settings),
            Event::Tried(request) => self.plan_trial(*request, now),
            Event::Confirmed => operator::answer(&self.plan_confirm(now), false),
            Event::Undone(settings) => self.plan_undo(settings),
        }
    }

    /// Takes durable commands into memory. To be called with the commands of one outcome, after they were made
    /// durable and before the next event.
    ///
    /// # Errors
    /// At the first command that does not apply. The commands before it hold; memory and file then disagree, which
    /// only a fresh start from the file heals.
    pub fn commit(&mut self, commands: &[Command], now: Now) -> Result<Vec<Notice>, Rejection> {
        let mut notices = Vec::new();
        let mut result = Ok(());
        for command in commands {
            let notice = self.notice_of(command, now);
            result = ledger::apply(&mut self.ledger, command);
            if result.is_err() {
                break;
            }
            self.in_force.follow(command, &self.settings.ladder, now);
            if let Command::SetBan { source, .. } = command {
                self.reports.forget(*source);
            }
            if let Command::SetIncident { id, .. } = command {
                self.incidents.kept(*id);
            }
            if let Command::SetLevelPin { fact } = command {
                self.load.handle(pin(fact, self.in_force.level_pin_ends), now.mono);
            }
            if matches!(command, Command::ClearLevelPin) {
                self.load.handle(load_level::Event::Unpin, now.mono);
            }
            notices.extend(notice);
        }
        let needs_no_refresh = |command: &Command| match command {
            Command::SetBan { .. } | Command::LiftBan { .. } => true,
            Command::SetMemory { .. } | Command::ForgetMemory { .. } => true,
            Command::SetNetBan { .. } | Command::LiftNetBan { .. } => false,
            Command::SetAllow { .. } | Command::LiftAllow { .. } => false,
            Command::SetBypass { .. } | Command::ClearBypass => false,
            Command::SetAttackMode { .. } | Command::ClearAttackMode => false,
            Command::SetLevelPin { .. } | Command::ClearLevelPin => false,
            Command::SetSyncookies { .. } | Command::ClearSyncookies => true,
            Command::SetIncident { .. } => true,
            Command::SetTrial { .. } | Command::UndoTrial | Command::ClearTrial => true,
        };
        if !commands.iter().all(needs_no_refresh) {
            self.settle(now);
            self.refresh(now);
        }
        notices.extend(self.follow_level(now));
        result.map(|()| notices)
    }

    /// Does what time alone makes due: what has expired, what has become protected, what has become quiet. Looks at
    /// the whole state each time, so that commands which could not be made durable come again.
    pub fn advance(&mut self, now: Now) -> Outcome {
        if self.never_ban.age_out(now.mono) {
            self.refresh(now);
        }
        if self.self_tests.advance(now.mono) {
            self.refresh(now);
        }
        let is_attack_over = self.in_force.attack_mode_ends.is_some_and(|at| at <= now.mono);
        if is_attack_over {
            // Whether or not its end can be made durable.
            self.settle(now);
            self.refresh(now);
        }
        self.load.advance(now.mono);
        self.newcomers.advance(now.mono);
        let is_pin_over = self.in_force.level_pin_ends.is_some_and(|at| at <= now.mono);
        let ended = self.in_force.ban_ends.due(now.mono).map(BanTarget::Source);
        let mut bans: Vec<BanTarget> =
            ended.chain(self.in_force.net_ends.due(now.mono).map(BanTarget::Range)).collect();
        bans.extend(self.protected_bans(&self.settings.config_allow));
        let mut commands = lifts(bans);
        commands.extend(self.in_force.allow_ends.due(now.mono).map(|prefix| Command::LiftAllow { prefix }));
        commands.extend(self.in_force.forgets.due(now.mono).map(|source| Command::ForgetMemory { source }));
        commands.extend(is_attack_over.then_some(Command::ClearAttackMode));
        commands.extend(is_pin_over.then_some(Command::ClearLevelPin));
        let mut notices = self.defences.advance(now.mono);
        notices.extend(self.follow_crowd(now));
        notices.extend(self.follow_level(now));
        notices.extend(self.incidents.advance(now.mono));
        commands.extend(self.incidents.commands());
        let over =
            self.ledger.trial.as_ref().filter(|_| self.in_force.trial_ends.is_some_and(|at| at <= now.mono));
        let undoes_trial = over.is_some_and(|trial| !trial.is_of_first_start());
        if let Some(trial) = over.filter(|trial| trial.is_of_first_start()) {
            commands.push(Command::UndoTrial);
            let reason = format!("nobody confirmed the first start, on trial since {}", trial.since);
            let fact = BypassFact { since: now.wall, reason };
            commands.extend(self.ledger.bypass.is_none().then_some(Command::SetBypass { fact }));
        }
        Outcome { commands, notices, undoes_trial, ..Outcome::default() }
    }

    /// Bans that hit what must not be banned where the configuration allows `config_allow`; some more than once.
    fn protected_bans(&self, config_allow: &[Prefix]) -> Vec<BanTarget> {
        let Ledger { bans, nets, .. } = &self.ledger;
        let mut found = Vec::new();
        for range in never_ban::firm_ranges(&self.never_ban, config_allow) {
            found.extend(bans.range(range.sources()).map(|(source, _)| BanTarget::Source(*source)));
            // Looks at every length of prefix, for each of tor's peers.
            if !nets.is_empty() {
                found.extend(range.overlapping(nets).map(BanTarget::Range));
            }
        }
        found
    }

    /// When [`Self::advance`] is to be called next; in the past while commands of an earlier call are not committed.
    pub fn next_deadline(&self) -> Option<Monotime> {
        let deadlines = [
            self.in_force.ban_ends.first().map(|(at, _)| at),
            self.in_force.net_ends.first().map(|(at, _)| at),
            self.in_force.allow_ends.first().map(|(at, _)| at),
            self.in_force.forgets.first().map(|(at, _)| at),
            self.in_force.attack_mode_ends,
            self.in_force.level_pin_ends,
            self.load.next_deadline(),
            self.newcomers.next_deadline(),
            self.in_force.trial_ends,
            self.never_ban.next_deadline(),
            self.defences.next_deadline(),
            self.incidents.next_deadline(),
            self.self_tests.next_deadline(),
        ];
        deadlines.into_iter().flatten().min()
    }

    /// What should be in force in the kernel.
    pub fn desired(&self) -> &Desired {
        &self.in_force.desired
    }

    /// Every durable fact.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The settings in force.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The settings that the configuration asks for, which attack mode may lie over.
    pub fn configured(&self) -> &Settings {
        &self.configured
    }

    /// How loaded the service is, and what follows from it.
    pub fn load_level(&self) -> load_level::Desired {
        self.load.desired()
    }

    /// New circuits beside those of calm times.
    pub const fn newcomers(&self) -> &Newcomers {
        &self.newcomers
    }

    /// Whether stricter settings than the configured ones are in force, by attack mode or by the load.
    pub const fn is_tightened(&self) -> bool {
        self.is_tightened
    }

    /// Every defence and its state.
    pub fn defences(&self) -> [(Defence, DefenceState); Defence::ALL.len()] {
        self.defences.states()
    }

    /// The last attacks by number, an open one as far as it is known.
    pub fn incidents(&self) -> BTreeMap<u32, Incident> {
        self.incidents.all(&self.ledger.incidents)
    }

    /// Whether an incident is open.
    pub fn is_under_attack(&self) -> bool {
        self.open_incident().is_some()
    }

    /// The incident that is open, with its number.
    pub fn open_incident(&self) -> Option<(u32, &Incident)> {
        self.incidents.open()
    }

    /// What limits follow from what was seen since they last changed, and since when that is.
    ///
    /// # Errors
    /// Why nothing is proposed, unless `despite` asks for it all the same: [`tune::LEAST`] has not passed, or nothing is
    /// inspected.
    pub fn tune(&self, despite: bool, now: Now) -> Result<(WallTime, u64, Vec<Proposal>), String> {
        let (since, seen) = (self.observation.since(), self.observation.seen(now.mono));
        let least = tune::LEAST.as_secs() / 60;
        if self.configured.mode == Mode::Off {
            return Err(
                "the mode is `off`, so nothing is counted; set `observe`, and ask again after a day".into()
            );
        }
        if seen.minutes < least && !despite {
            return Err(format!(
                "the limits have been observed for {} minutes only, since {since}, which says little; wait for {least}, \
                 better for days of your own traffic, or give --force",
                seen.minutes
            ));
        }
        Ok((since, seen.minutes, tune::propose(&seen, &self.configured)))
    }

    /// How long the operator still has to confirm the configuration on trial; `None` where none is.
    pub fn trial_left(&self, now: Now) -> Option<Duration> {
        self.in_force.trial_ends.map(|at| at.since(now.mono))
    }

    /// Whether ports over their budget can answer with cookies.
    pub fn cookies(&self) -> CookieState {
        CookieState::of(&self.settings, &self.in_force.desired.host)
    }

    /// The ports over their budget, by number.
    pub fn armed_ports(&self) -> impl Iterator<Item = &ArmedPort> {
        self.armed.iter()
    }

    /// The ports whose cookies are to be tested now, until [`Event::SelfTested`] tells of each.
    pub fn self_tests_due(&self, now: Monotime) -> Vec<u16> {
        let answers = match self.cookies() {
            CookieState::Ready { .. } => self.settings.mode == Mode::Enforce,
            CookieState::Waiting
            | CookieState::Disabled
            | CookieState::NoBudget
            | CookieState::NoProgram
            | CookieState::HiddenTags
            | CookieState::Sysctl { .. } => false,
        };
        if answers { self.self_tests.due(now) } else { Vec::new() }
    }

    /// What the tests of a port's cookies say; `None` if it is not tested.
    pub fn self_test(&self, port: u16) -> Option<&Standing> {
        self.self_tests.get(port)
    }

    /// The ports that answer with no cookies because their listener takes none, and until when.
    pub fn without_cookies(&self) -> impl Iterator<Item = (u16, Monotime)> {
        self.self_tests.without_cookies()
    }

    /// What `net.ipv4.tcp_syncookies` is to be set to; `None`: it is left alone.
    pub fn syncookies_wanted(&self) -> Option<u32> {
        self.armed.syncookies_wanted(&self.settings, &self.in_force.desired.host, &self.ledger)
    }

    fn syncookies_command(&self) -> Vec<Command> {
        let host = &self.in_force.desired.host;
        self.armed.syncookies_command(&self.settings, host, &self.ledger).into_iter().collect()
    }

    /// What the host told about itself and tor.
    pub fn never_ban(&self) -> &NeverBan {
        &self.never_ban
    }

    /// The sources seen most often in samples.
    pub fn sources(&self) -> &TopSources {
        &self.sources
    }

    /// How many bans were refused because they would have hit a protected address, since the daemon started.
    pub fn refused_bans(&self) -> u64 {
        self.refused_bans
    }

    /// The rule that forbids to ban `range`, if one does.
    pub fn protection(&self, range: Prefix, now: Monotime) -> Option<Protection> {
        self.never_ban.protects(range, now, &self.ledger.allows, &self.settings.config_allow)
    }

    /// Proof against a source; enough of it bans.
    fn too_many_handshakes(&mut self, handshake: Handshake, now: Now) -> Outcome {
        let (source, settings) = (handshake.source, &self.settings);
        if self_test::is_source(source) {
            return Outcome::default();
        }
        let threshold = settings.ban_threshold;
        let count = self.violations.note(source, threshold, settings.violation_window, now.mono);
        if count < threshold || self.ledger.bans.contains_key(&source) {
            return Outcome::default();
        }
        let reason = format!("{count} connections too many, the last to port {}", handshake.port);
        let outcome = self.ban_for(&Offence::by_handshakes(source, reason), now);
        self.violations.forget(source);
        outcome
    }

    /// The ban that a proven offence earns, by the ladder; the reply says why not, if so.
    fn ban_for(&mut self, offence: &Offence, now: Now) -> Outcome {
        match self.plan_offence(offence, now) {
            Ok(plan) => Outcome { commands: plan.commands, ..Outcome::default() },
            Err(refusal) => {
                let protection = refusal.protection();
                let mut outcome = operator::answer(&Err(refusal), false);
                if let Some(protection) = protection {
                    self.refused_bans += 1;
                    let target = BanTarget::Source(offence.source());
                    outcome.notices.push(Notice::BanRefusedProtected { target, protection });
                }
                outcome
            }
        }
    }

    fn count(&mut self, totals: Totals, now: Now) -> Vec<Notice> {
        // Attack mode and a heavy load refuse what the configuration does not.
        if self.in_force.attack_mode_ends.is_none() && !self.is_tightened {
            self.observation.count(&totals, now.mono);
        } else {
            self.observation.skip(&totals, now.mono);
        }
        let packets = self.defences.seen().map(|seen| totals.spoken_since(seen)).unwrap_or_default();
        let mut notices = self.defences.count(totals, now);
        let has_spoken = |defence: &Defence| {
            packets.iter().any(|(verdict, _, _)| Defence::of(verdict.class()) == Some(*defence))
        };
        let defences = Defence::ALL.into_iter().filter(has_spoken).collect();
        let newest = self.ledger.incidents.last_key_value().map(|(id, _)| *id);
        notices.extend(self.incidents.count(&Spoken { packets, defences }, newest, now));
        notices
    }

    fn sampled(&mut self, sample: &Forgeable, now: Now) -> Option<Notice> {
        self.sources.observe(sample, now.wall);
        self.observation.sample(sample.source, sample.verdict);
        let is_drop = match sample.action {
            Action::Drop => true,
            // Observing, nothing is dropped, and a line that says so would be false.
            Action::WouldDrop | Action::Pass | Action::Answer | Action::WouldAnswer => false,
        };
        let is_said = is_drop && self.drop_log.admits(self.settings.log_lines_per_minute, now.mono);
        let (source, verdict, port) = (sample.source, sample.verdict, sample.destination_port);
        is_said.then_some(Notice::DropSample { source, verdict, port })
    }

    /// What the settings need in the ledger, and what they change. Whatever else they make due comes with the next
    /// [`Self::advance`].
    fn plan_settings(&self, settings: &Settings) -> (Vec<Command>, Vec<String>) {
        let mut changes = settings.changes_from(&self.configured);
        let commands = lifts(self.protected_bans(&settings.config_allow));
        if !commands.is_empty() {
            changes.push(format!("bans lifted because they must not be: {}", commands.len()));
        }
        if let Some(fact) = &self.ledger.attack_mode {
            changes.push(format!("attack mode goes on over them, until {}", fact.expires));
        }
        (commands, changes)
    }

    fn plan_reload(&self, settings: Box<Settings>) -> Outcome {
        let (mut commands, mut changes) = self.plan_settings(&settings);
        match &self.ledger.trial {
            Some(trial) if !trial.is_undone => changes.push(format!(
                "the trial goes on: unless `tunica confirm` comes before {}, {}",
                trial.expires,
                if trial.is_of_first_start() {
                    "the shield is bypassed"
                } else {
                    "the configuration before it is in force again"
                }
            )),
            trial => {
                commands.extend(trial.as_ref().map(|_| Command::ClearTrial));
                let hazards = settings.hazards_from(&self.configured);
                if !hazards.is_empty() {
                    changes.push(format!(
                        "nothing undoes this by itself, although {}; `tunica reload --confirm` would",
                        hazards.join(" and ")
                    ));
                }
            }
        }
        reloaded(settings, commands, changes)
    }

    /// As [`Self::plan_reload`], for a while.
    fn plan_trial(&self, request: TrialRequest, now: Now) -> Outcome {
        let TrialRequest { settings, length, before } = request;
        if let Err(refusal) = operator::check_trial(length, &before) {
            return operator::answer(&Err(refusal), false);
        }
        let (mut commands, mut changes) = self.plan_settings(&settings);
        // What was never confirmed does not become what is returned to.
        let unconfirmed =
            self.ledger.trial.as_ref().filter(|trial| !(trial.is_of_first_start() && trial.is_undone));
        let before = unconfirmed.map_or(before, |trial| trial.before.clone());
        let expires = now.wall.after(length);
        let fact = TrialFact { since: now.wall, expires, before, is_undone: false };
        let otherwise = if fact.is_of_first_start() {
            "the shield is bypassed"
        } else {
            "the configuration before is in force again"
        };
        changes.push(format!("unless `tunica confirm` comes within {} s, {otherwise}", length.as_secs()));
        commands.push(Command::SetTrial { fact });
        reloaded(Box::new(settings), commands, changes)
    }

    /// Back to the configuration before the trial.
    fn plan_undo(&self, settings: Box<Settings>) -> Outcome {
        let (mut commands, changes) = self.plan_settings(&settings);
        commands.extend(self.ledger.trial.as_ref().map(|_| Command::UndoTrial));
        reloaded(settings, commands, changes)
    }

    /// Puts the settings of an outcome in force, once its commands are durable and before they are committed.
    pub fn adopt(&mut self, settings: Settings, now: Now) {
        self.never_ban.set_keep(settings.tor_keep);
        if settings != self.configured {
            self.observation = Observation::new(now);
        }
        self.configured = settings;
        self.load.set_settings(self.configured.load, now.mono);
        self.newcomers.set_settings(self.configured.newcomers);
        self.load.handle(load_level::Event::Crowd(self.newcomers.raises_to()), now.mono);
        // Whoever mended what the tests found need not wait.
        self.self_tests.forget();
        self.settle(now);
        for (source, memory) in &self.ledger.memories {
            self.in_force.set_memory(*source, *memory, &self.settings.ladder, now);
        }
        self.refresh(now);
    }

    /// Recomputes the settings in force.
    fn settle(&mut self, now: Now) {
        let is_attack_mode = self.in_force.attack_mode_ends.is_some_and(|at| now.mono < at);
        self.load.handle(load_level::Event::AttackMode(is_attack_mode), now.mono);
        self.is_tightened = self.load.desired().tightens_ports;
        self.settings = match (is_attack_mode, self.is_tightened) {
            (true, _) => attack_mode::overlay(&self.configured),
            (false, true) => attack_mode::tightened(&self.configured),
            (false, false) => self.configured.clone(),
        };
    }

    fn measure(&mut self, event: load_level::Event, now: Now) -> Outcome {
        self.load.handle(event, now.mono);
        Outcome { notices: self.follow_level(now).collect(), ..Outcome::default() }
    }

    /// Has the load level follow what new circuits say, and tells when they begin or end to be alike.
    fn follow_crowd(&mut self, now: Now) -> Vec<Notice> {
        self.load.handle(load_level::Event::Crowd(self.newcomers.raises_to()), now.mono);
        let is_raised = self.newcomers.is_raised();
        let was_told = std::mem::replace(&mut self.told_crowd, is_raised);
        let alike = self.newcomers.alike().copied().filter(|_| is_raised);
        let crowd = (is_raised != was_told).then_some(Notice::Crowd { alike });
        crowd.into_iter().chain(self.follow_level(now)).collect()
    }

    /// Has the port rules follow the load level, and tells of a level that is new, and of limits that relaxed or are strict again.
    fn follow_level(&mut self, now: Now) -> impl Iterator<Item = Notice> + use<> {
        let desired = self.load.desired();
        if desired.tightens_ports != self.is_tightened {
            self.settle(now);
            self.refresh(now);
        }
        let (level, word) = (desired.level, desired.word);
        let before = std::mem::replace(&mut self.told_level, (level, word));
        let is_relaxed = desired.relaxes_tokens;
        let was_relaxed = std::mem::replace(&mut self.told_relief, is_relaxed);
        let level = (before != (level, word)).then_some(Notice::LoadLevel { before: before.0, level, word });
        level.into_iter().chain((is_relaxed != was_relaxed).then_some(Notice::TokenLimits { is_relaxed }))
    }

    /// Recomputes everything in force but the bans of sources, which are too many.
    fn refresh(&mut self, now: Now) {
        let is_bypassed = self.ledger.bypass.is_some();
        let desired = &mut self.in_force.desired;
        desired.attached = !is_bypassed;
        desired.tables.ports = desired::port_table(&self.settings, self.self_tests.without_cookies());
        desired.tables.nets = desired::net_table(&self.ledger.nets, &self.in_force.net_ends);
        desired.tables.own = desired::own_table(self.never_ban.own().iter());
        desired.tables.allow = desired::allow_table(
            &self.settings.config_allow,
            &self.ledger.allows,
            self.never_ban.peers(),
            self.settings.allow_capacity,
        );
        self.defences.arm(&self.settings, is_bypassed, now.wall);
    }

    /// What an operator should hear of `command` once it is applied; read from the state before.
    fn notice_of(&self, command: &Command, now: Now) -> Option<Notice> {
        match command {
            Command::SetBan { source, fact } => Some(ban_set(BanTarget::Source(*source), fact)),
            Command::SetNetBan { prefix, fact } => Some(ban_set(BanTarget::Range(*prefix), fact)),
            Command::LiftBan { source } => self.ban_ended(BanTarget::Source(*source), now),
            Command::LiftNetBan { prefix } => self.ban_ended(BanTarget::Range(*prefix), now),
            Command::SetAllow { prefix, fact } => {
                let length = fact.expires.map(|expires| expires.since(fact.since));
                Some(Notice::AllowSet { prefix: *prefix, id: fact.id, length })
            }
            Command::LiftAllow { prefix } => {
                let (prefix, id) = (*prefix, self.ledger.allows.get(prefix)?.id);
                let is_over = self.in_force.allow_ends.get(prefix).is_some_and(|at| at <= now.mono);
                Some(if is_over {
                    Notice::AllowExpired { prefix, id }
                } else {
                    Notice::AllowLifted { prefix, id }
                })
            }
            Command::SetMemory { .. } | Command::ForgetMemory { .. } => None,
            Command::SetBypass { .. } => Some(Notice::BypassOn),
            Command::ClearBypass => Some(Notice::BypassOff),
            Command::SetAttackMode { fact } => {
                Some(Notice::AttackModeOn { length: fact.expires.since(now.wall) })
            }
            Command::SetTrial { fact } => Some(Notice::TrialBegun { length: fact.expires.since(fact.since) }),
            Command::UndoTrial => {
                let trial = self.ledger.trial.as_ref();
                // Of the first start it is said that the shield is bypassed.
                (!trial.is_some_and(TrialFact::is_of_first_start)).then_some(Notice::TrialUndone)
            }
            Command::ClearTrial => {
                let trial = self.ledger.trial.as_ref()?;
                let is_confirmed = !trial.is_undone;
                (is_confirmed || !trial.is_of_first_start()).then_some(Notice::TrialEnded { is_confirmed })
            }
            Command::ClearAttackMode => {
                let is_over = self.in_force.attack_mode_ends.is_some_and(|at| at <= now.mono);
                Some(Notice::AttackModeOff { is_over })
            }
            // What comes of it is told by `follow_level`.
            Command::SetLevelPin { .. } | Command::ClearLevelPin => None,
            Command::SetIncident { .. } => None,
            Command::SetSyncookies { .. } => Some(Notice::Syncookies { is_switched: true }),
            Command::ClearSyncookies => Some(Notice::Syncookies { is_switched: false }),
        }
    }

    /// Why a ban is lifted.
    fn ban_ended(&self, target: BanTarget, now: Now) -> Option<Notice> {
        let id = self.ledger.ban_of(target)?.id;
        let ends = match target {
            BanTarget::Source(source) => self.in_force.ban_ends.get(source),
            BanTarget::Range(prefix) => self.in_force.net_ends.get(prefix),
        };
        let is_over = ends.is_some_and(|at| at <= now.mono);
        let config = &self.settings.config_allow;
        let protection = self.never_ban.protects(target.prefix(), now.mono, &BTreeMap::new(), config);
        Some(match protection {
            _ if is_over => Notice::BanExpired { target, id },
            Some(protection) => Notice::BanWithdrawn { target, id, protection },
            None => Notice::BanLifted { target, id },
        })
    }
}

fn ban_set(target: BanTarget, fact: &BanFact) -> Notice {
    let length = fact.expires.map(|expires| expires.since(fact.since));
    Notice::BanSet { target, id: fact.id, length, rung: fact.rung }
}

/// The command that lifts each of these bans, once.
fn lifts(mut bans: Vec<BanTarget>) -> Vec<Command> {
    bans.sort_unstable();
    bans.dedup();
    bans.into_iter().map(lift).collect()
}

/// The command that lifts a ban.
const fn lift(target: BanTarget) -> Command {
    match target {
        BanTarget::Source(source) => Command::LiftBan { source },
        BanTarget::Range(prefix) => Command::LiftNetBan { prefix },
    }
}

/// An operator's word about the load level, as its machine takes it.
const fn pin(fact: &LevelPinFact, until: Option<Monotime>) -> load_level::Event {
    load_level::Event::Pin { level: fact.level, until }
}

/// Puts the very first start on trial. What was not there before can only be taken away again. `length` is as in
/// [`TrialRequest::length`].
pub fn first_trial(length: Duration, now: Now) -> Command {
    let expires = now.wall.after(length);
    Command::SetTrial {
        fact: TrialFact { since: now.wall, expires, before: String::new(), is_undone: false },
    }
}

fn reloaded(settings: Box<Settings>, commands: Vec<Command>, changes: Vec<String>) -> Outcome {
    let reply = Some(Reply::Done { changes, undo: None, dry_run: false });
    Outcome { commands, settings: Some(settings), reply, ..Outcome::default() }
}

/// What follows from the ledger: the desired state, and when each fact ends by the boot's clock.
#[derive(Debug, Default)]
struct InForce {
    desired: Desired,
    ban_ends: Timetable<PacketSource>,
    net_ends: Timetable<Prefix>,
    allow_ends: Timetable<Prefix>,
    /// When each memory of the ladder says nothing any more.
    forgets: Timetable<PacketSource>,
    /// When attack mode ends; `None` while it is not in force.
    attack_mode_ends: Option<Monotime>,
    /// When the load level that an operator set ends; `None` while none is set, or for ever.
    level_pin_ends: Option<Monotime>,
    /// When the configuration before the trial is due; `None` while none is on trial.
    trial_ends: Option<Monotime>,
}

impl InForce {
    fn follow(&mut self, command: &Command, ladder: &Ladder, now: Now) {
        match command {
            Command::SetBan { source, fact } => self.set_ban(*source, fact, now),
            Command::LiftBan { source } => {
                self.ban_ends.set(*source, None);
                self.desired.tables.bans.remove(&source.key());
            }
            Command::SetNetBan { prefix, fact } => self.set_net(*prefix, fact, now),
            Command::LiftNetBan { prefix } => {
                self.net_ends.set(*prefix, None);
            }
            Command::SetAllow { prefix, fact } => self.set_allow(*prefix, fact, now),
            Command::LiftAllow { prefix } => {
                self.allow_ends.set(*prefix, None);
            }
            Command::SetMemory { source, memory } => self.set_memory(*source, *memory, ladder, now),
            Command::ForgetMemory { source } => {
                self.forgets.set(*source, None);
            }
            Command::SetBypass { .. } | Command::ClearBypass => {}
            Command::SetAttackMode { fact } => self.set_attack_mode(Some(*fact), now),
            Command::ClearAttackMode => self.set_attack_mode(None, now),
            Command::SetLevelPin { fact } => self.set_level_pin(Some(*fact), now),
            Command::ClearLevelPin => self.set_level_pin(None, now),
            Command::SetSyncookies { .. } | Command::ClearSyncookies => {}
            Command::SetIncident { .. } => {}
            Command::SetTrial { fact } => self.set_trial(Some(fact), now),
            Command::UndoTrial | Command::ClearTrial => self.set_trial(None, now),
        }
    }

    fn set_ban(&mut self, source: PacketSource, fact: &BanFact, now: Now) {
        let ends = desired::ends_at(fact.since, fact.expires, now);
        self.ban_ends.set(source, ends);
        self.desired.tables.bans.insert(source.key(), desired::ban_entry(fact, ends));
    }

    /// The rows follow with the next refresh, because those of ranges inside depend on it too.
    fn set_net(&mut self, prefix: Prefix, fact: &BanFact, now: Now) {
        self.net_ends.set(prefix, desired::ends_at(fact.since, fact.expires, now));
    }

    fn set_allow(&mut self, prefix: Prefix, fact: &AllowFact, now: Now) {
        self.allow_ends.set(prefix, desired::ends_at(fact.since, fact.expires, now));
    }

    fn set_attack_mode(&mut self, fact: Option<AttackModeFact>, now: Now) {
        self.attack_mode_ends = fact.and_then(|fact| desired::ends_at(fact.since, Some(fact.expires), now));
    }

    fn set_level_pin(&mut self, fact: Option<LevelPinFact>, now: Now) {
        self.level_pin_ends = fact.and_then(|fact| desired::ends_at(fact.since, fact.expires, now));
    }

    fn set_trial(&mut self, fact: Option<&TrialFact>, now: Now) {
        let running = fact.filter(|fact| !fact.is_undone);
        self.trial_ends = running.and_then(|fact| desired::ends_at(fact.since, Some(fact.expires), now));
    }

    fn set_memory(&mut self, source: PacketSource, memory: Memory, ladder: &Ladder, now: Now) {
        self.forgets.set(source, Some(now.mono.after(ladder.forgotten_in(memory, now.wall))));
    }
}
