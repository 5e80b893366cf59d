//! The daemon's parts and how an event goes through them: shell → coordinator → ledger file → coordinator → shells.
//!
//! Nothing here decides about policy. Order matters: what the coordinator wants to keep is made durable first, taken into
//! memory second and shown to the kernel third, so that a crash at any point leaves a state that was decided.

use std::{
    cell::Cell,
    collections::BTreeSet,
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use tunica_api::{
    request::{self, Request},
    view::{Answer, Doctor, Refused, RefusedCode},
};
use tunica_common::{
    event::{self as kernel, tally_slot},
    verdict::{Action, Verdict},
};
use tunica_config::{Attach, Config, Fallback, front_mark};
use tunica_core::{
    coordinator::{self, AllowRequest, BanRequest, Coordinator, Event, Length, Outcome, Reply, TrialRequest},
    defence::Totals,
    evidence::{Forgeable, Handshake},
    id::PacketSource,
    ledger::{self, Command},
    limits::HostFacts,
    notice::Notice,
    reports::{Report, Reporter},
    self_test::{self, SelfTest},
    time::{Monotime, Now, WallTime},
};

use crate::{
    explain,
    ledger_file::{CommitError, LedgerFile},
    metrics::{HostChange, Metrics},
    settings,
    shell::{
        host::{self, vitals::Vitals},
        load::LoadPart,
        nft::{self, Nft},
        tor_peers,
        xdp::{Plan, Shield, armed::Armed, hook::Hook, probe::Probe, self_test::SelfTests, tables::Total},
    },
    telemetry::{self, Telemetry},
    views,
};

/// How often the real system is compared with what it should be.
pub const AUDIT_EVERY: Duration = Duration::from_secs(30);

mod candidate;
mod front;
mod gate;
mod haproxy;
mod load;
mod newcomers;
mod tokens;
mod tor;

/// Everything the event loop owns.
pub struct App {
    config_path: PathBuf,
    config: Config,
    /// What the configuration in force was read from.
    text: String,
    coordinator: Coordinator,
    shield: Shield,
    nft: Nft,
    probe: Probe,
    ledger: LedgerFile,
    metrics: Metrics,
    telemetry: Telemetry,
    started: WallTime,
    /// What the clocks said last.
    last: Cell<Now>,
    /// What is wrong outside of the configuration: one sentence each.
    troubles: Troubles,
    /// The configuration that is tried beside the one in force.
    candidate: Option<candidate::Tried>,
    /// The ingress.
    front: front::Front,
    tor: tor::Tor,
    /// What is kept of new circuits.
    judged: newcomers::Judged,
    tokens: tokens::AtTokens,
    gate: gate::AtGate,
    haproxy: haproxy::AtHaproxy,
    /// Ports that went over their budget.
    armed: Armed,
    self_tests: SelfTests,
    /// Events that were lost before this daemon started to read them.
    lost_before: u64,
    /// The configured interfaces when they were last looked at.
    places: Vec<Option<Hook>>,
    /// As they were when last looked at.
    slow_facts: host::SlowFacts,
    /// What of the host was not well when the log last spoke of it.
    concerns: Vec<&'static str>,
    /// How many sources that completed a handshake the kernel held when they were last counted.
    verified: u64,
}

/// How much of the kernel's tables an event can have changed. Comparing them whole costs time for each ban there is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Reach {
    Nothing,
    Bans(Vec<PacketSource>),
    Everything,
}

impl Reach {
    /// What the coordinator may have changed by itself, without a command.
    fn of(event: &Event) -> Self {
        match event {
            Event::Samples(_) | Event::Handshake(_) | Event::CpuTimes(_) => Self::Nothing,
            Event::Report(_) => Self::Nothing,
            Event::Totals(_) | Event::ArmedPorts(_) => Self::Nothing,
            // A miss may take the cookies from its port. Others come all the time.
            Event::SelfTested { outcome, .. } => match outcome {
                SelfTest::Missed => Self::Everything,
                SelfTest::Passed | SelfTest::Partly | SelfTest::Untested(_) => Self::Nothing,
            },
            // The policy follows the host; comparing it alone is cheap.
            Event::Host(_) => Self::Bans(Vec::new()),
            Event::Ban(_) | Event::Unban { .. } | Event::Allow(_) | Event::Disallow { .. } => Self::Nothing,
            Event::BypassOn { .. } | Event::BypassOff => Self::Nothing,
            Event::AttackModeOn { .. } | Event::AttackModeOff { .. } => Self::Nothing,
            Event::PinLevel { .. } | Event::UnpinLevel { .. } => Self::Nothing,
            // Those that change what is in force are seen by [`App::measured`].
            Event::TorLoad(_) | Event::FrontLoad(_) | Event::Pages(_) | Event::CpuStalled(_) => Self::Nothing,
            Event::Newcomers { .. } => Self::Nothing,
            Event::Holders(_) => Self::Nothing,
            Event::Confirmed => Self::Nothing,
            Event::TorPeers(_) | Event::OwnAddresses(_) => Self::Everything,
            Event::Reloaded(_) | Event::Tried(_) | Event::Undone(_) => Self::Everything,
        }
    }

    /// This, and what the commands changed.
    fn with(self, commands: &[Command]) -> Self {
        let is_policy = self != Self::Nothing;
        let mut sources = match self {
            Self::Everything => return Self::Everything,
            Self::Nothing => Vec::new(),
            Self::Bans(sources) => sources,
        };
        for command in commands {
            match command {
                Command::SetBan { source, .. } | Command::LiftBan { source } => sources.push(*source),
                Command::SetMemory { .. } | Command::ForgetMemory { .. } => {}
                Command::SetNetBan { .. } | Command::LiftNetBan { .. } => return Self::Everything,
                Command::SetAllow { .. } | Command::LiftAllow { .. } => return Self::Everything,
                Command::SetBypass { .. } | Command::ClearBypass => return Self::Everything,
                Command::SetAttackMode { .. } | Command::ClearAttackMode => return Self::Everything,
                Command::SetLevelPin { .. } | Command::ClearLevelPin => return Self::Everything,
                Command::SetSyncookies { .. } | Command::ClearSyncookies => {}
                Command::SetIncident { .. } => {}
                Command::SetTrial { .. } | Command::UndoTrial | Command::ClearTrial => {}
            }
        }
        if sources.is_empty() && !is_policy { Self::Nothing } else { Self::Bans(sources) }
    }
}

/// Standing problems that `status` and `/ready` show.
#[derive(Default)]
struct Troubles {
    damaged: Option<String>,
    ledger: Option<String>,
    tables: Option<String>,
    tor: Option<String>,
    tor_control: Option<String>,
    /// What tor publishes and should not, or should and does not.
    published: BTreeSet<String>,
    load: [Option<String>; LoadPart::ALL.len()],
    gate: Option<String>,
    front_process: Option<String>,
    front_configuration: Option<String>,
    token_keys: Option<String>,
    haproxy: Option<String>,
    samples: Option<String>,
    heartbeat: Option<String>,
    counters: Option<String>,
    verified: Option<String>,
    sysctl: Option<String>,
    deaf: Option<String>,
    trial: Option<String>,
    reporters: Option<String>,
    nft: Option<String>,
}

impl Troubles {
    fn list(&self) -> Vec<String> {
        let all = [
            &self.damaged,
            &self.ledger,
            &self.tables,
            &self.tor,
            &self.tor_control,
            &self.gate,
            &self.front_process,
            &self.front_configuration,
            &self.token_keys,
            &self.haproxy,
            &self.samples,
            &self.heartbeat,
            &self.counters,
            &self.verified,
            &self.sysctl,
            &self.deaf,
            &self.trial,
            &self.reporters,
            &self.nft,
        ];
        all.into_iter().chain(&self.load).flatten().chain(&self.published).cloned().collect()
    }
}

/// What the clocks say. One that does not answer, or a wall clock before 1970, stands still as it was `last`.
fn read_clocks(last: Now, mono: io::Result<u64>, wall: SystemTime) -> Now {
    Now {
        mono: mono.map_or(last.mono, Monotime),
        wall: wall.duration_since(UNIX_EPOCH).map_or(last.wall, |wall| WallTime(wall.as_secs())),
    }
}

impl App {
    /// Opens ledger and kernel, takes up what an earlier daemon left, and attaches.
    ///
    /// # Errors
    /// If the ledger or the kernel's objects cannot be had. An interface that cannot be attached to is no such error: it
    /// shows in `status`, in `/ready` and in the metrics, and is tried again at each audit.
    pub fn start(
        config_path: &Path,
        mut config: Config,
        mut text: String,
        telemetry: Telemetry,
    ) -> anyhow::Result<Self> {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH);
        let wall = wall.context("the wall clock is set before 1970; correct it")?.as_secs();
        let mono = crate::sys::monotonic_ns().context("the kernel's monotonic clock does not answer")?;
        let now = Now { mono: Monotime(mono), wall: WallTime(wall) };
        let mut opened = LedgerFile::open(&config.ledger.path, now.wall)?;
        if let Some(length) = config.shield.first_attach_confirm.filter(|_| opened.is_first) {
            // Before anything else can fail: the next start is no first one, and must keep the promise.
            let command = coordinator::first_trial(length, now);
            opened.file.commit(&opened.ledger, std::slice::from_ref(&command))?;
            ledger::apply(&mut opened.ledger, &command)?;
            tracing::warn!(
                message_id = "first_start_on_trial",
                "unless `tunica confirm` comes within {} s, the shield is bypassed",
                length.as_secs()
            );
        }
        let metrics = Metrics::new(&crate::shell::xdp::object::object_sha256())?;
        let mut troubles = Troubles::default();
        if let Some(damaged) = opened.damaged {
            troubles.damaged = Some(format!(
                "the ledger was damaged and moved to {}; bans and allow-list entries made before are not in force",
                damaged.moved_to.display()
            ));
            metrics.set_ledger_damaged();
        }
        let trial = opened.ledger.trial.as_ref();
        if let Some((trial, before)) = trial.and_then(|trial| Some((trial, trial.returns_to(now.wall)?))) {
            tracing::error!(
                message_id = "config_undone",
                "nobody confirmed the configuration file, on trial since {}; the configuration before it is in force",
                trial.since
            );
            (config, troubles.trial) = settings::before_trial(before, &config);
            before.clone_into(&mut text);
            telemetry.set_level(config.log.level);
        }
        let mut shield = Shield::open(settings::plan(&config))?;
        let (settings, strangers) = settings::of(&config)?;
        troubles.reporters = strangers;
        let coordinator = Coordinator::new(settings, opened.ledger, now);
        let slow_facts = host::SlowFacts::read(&config.shield.interfaces);
        let lost_before = shield.tables().lost_events().unwrap_or(0);
        shield.tables_mut().beat(now.mono.0)?;
        let mut app = Self {
            config_path: config_path.to_owned(),
            config,
            text,
            coordinator,
            shield,
            nft: Nft::default(),
            probe: Probe::default(),
            ledger: opened.file,
            metrics,
            telemetry,
            started: now.wall,
            last: Cell::new(now),
            troubles,
            candidate: None,
            front: front::Front::default(),
            tor: tor::Tor::default(),
            judged: newcomers::Judged::default(),
            tokens: tokens::AtTokens::default(),
            gate: gate::AtGate::default(),
            haproxy: haproxy::AtHaproxy::default(),
            armed: Armed::default(),
            self_tests: SelfTests::new(mono as u32),
            lost_before,
            places: Vec::new(),
            slow_facts,
            concerns: Vec::new(),
            verified: 0,
        };
        // None of them can change while the daemon runs.
        app.metrics.set_tor_control_wanted(app.config.tor.control.is_some());
        app.metrics.set_ingresses_wanted(app.config.ingress.enabled, app.is_haproxy_configured());
        app.open_tokens();
        app.open_gate();
        app.follow_gate();
        app.follow_bypass();
        app.read_totals();
        app.count_verified();
        app.read_host();
        app.read_own_addresses();
        app.read_tor_peers();
        app.sync(Reach::Everything);
        app.places = app.shield.places();
        // A trial that ended while no daemon ran.
        app.advance();
        app.follow();
        tracing::info!(
            message_id = "policy_in_force",
            mode = app.coordinator.settings().mode.label(),
            "the policy is in force"
        );
        for warning in app.warnings() {
            tracing::warn!(message_id = "configuration_warning", "{warning}");
        }
        app.tell_concerns();
        Ok(app)
    }

    /// The configuration in force.
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// The shield, to take its events.
    pub const fn shield_mut(&mut self) -> &mut Shield {
        &mut self.shield
    }

    /// The metrics.
    pub const fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    fn now(&self) -> Now {
        let now = read_clocks(self.last.get(), crate::sys::monotonic_ns(), SystemTime::now());
        self.last.set(now);
        now
    }

    /// Puts one event through the coordinator and carries out what comes of it.
    fn step(&mut self, event: Event) -> Result<Option<Reply>, String> {
        let now = self.now();
        let reach = Reach::of(&event);
        let outcome = self.coordinator.handle(event, now);
        self.carry_out(outcome, reach, now)
    }

    fn carry_out(&mut self, outcome: Outcome, reach: Reach, now: Now) -> Result<Option<Reply>, String> {
        if let Err(error) = self.keep(&outcome.commands) {
            // What the event itself changed is in memory already: it is told, and the kernel must not lag behind it.
            self.tell(&outcome.notices);
            self.sync(reach);
            return Err(self.ledger_trouble(format!("the change was not made: {error}")));
        }
        self.take_in(outcome, reach, now)
    }

    /// Makes commands durable.
    fn keep(&mut self, commands: &[Command]) -> Result<(), CommitError> {
        if commands.is_empty() {
            return Ok(());
        }
        match self.ledger.commit(self.coordinator.ledger(), commands) {
            Ok(()) => {
                self.metrics.count_commit(commands);
                self.troubles.ledger = None;
                Ok(())
            }
            Err(error) => {
                self.metrics.count_ledger_failure();
                Err(error)
            }
        }
    }

    /// Takes what was decided into memory, tells it, and shows it to the kernel.
    fn take_in(&mut self, outcome: Outcome, reach: Reach, now: Now) -> Result<Option<Reply>, String> {
        let mut notices = outcome.notices;
        if let Some(settings) = outcome.settings {
            self.coordinator.adopt(*settings, now);
        }
        match self.coordinator.commit(&outcome.commands, now) {
            Ok(more) => notices.extend(more),
            Err(rejection) => {
                let text = format!("memory and ledger disagree ({rejection}); restart tunicad");
                return Err(self.ledger_trouble(text));
            }
        }
        self.tell(&notices);
        self.sync(reach.with(&outcome.commands));
        self.follow_load();
        self.follow_bypass();
        Ok(outcome.reply)
    }

    fn tell(&self, notices: &[Notice]) {
        for notice in notices {
            telemetry::log_notice(notice);
            if let Notice::IncidentBegun { defence, .. } = notice {
                self.metrics.count_incident(*defence);
            }
            if let Notice::LoadLevel { before, level, .. } = notice
                && before != level
            {
                self.metrics.count_load_change(*level);
            }
        }
    }

    fn ledger_trouble(&mut self, text: String) -> String {
        // What is tried again every second is told once.
        if self.troubles.ledger.as_ref() != Some(&text) {
            tracing::error!(message_id = "ledger_failed", "{text}");
        }
        self.troubles.ledger = Some(text.clone());
        text
    }

    /// Writes what was decided to the kernel.
    fn sync(&mut self, reach: Reach) {
        let (desired, settings) = (self.coordinator.desired(), self.coordinator.settings());
        let result = match reach {
            Reach::Nothing => return,
            Reach::Bans(sources) => self.shield.sync_bans(&sources, desired, settings),
            Reach::Everything => self.shield.sync(desired, settings),
        };
        self.note_sync(result.map(|_| ()));
        if !self.nft.interfaces().is_empty() {
            self.stand_in();
        }
    }

    /// Attaches or detaches as it was decided, and has nftables stand in where that is so configured. What comes is in
    /// force before what goes is taken away. Returns how many links had to be made.
    fn follow(&mut self) -> u64 {
        let is_nft_wanted = self.config.shield.attach == Attach::Nftables;
        if is_nft_wanted {
            self.stand_in();
        }
        let is_nft_there = is_nft_wanted && !self.nft.interfaces().is_empty();
        let changes = self.shield.follow(self.coordinator.desired().attached && !is_nft_there);
        self.stand_in();
        changes
    }

    /// Puts the table of nftables in force for the interfaces that need it, or removes it.
    fn stand_in(&mut self) {
        let shield = &self.config.shield;
        let is_nft_wanted = shield.attach == Attach::Nftables;
        if !is_nft_wanted && shield.fallback == Fallback::None && self.nft.interfaces().is_empty() {
            return;
        }
        let desired = self.coordinator.desired();
        let needs = |name: &str| match (desired.attached, shield.attach, shield.fallback) {
            (false, ..) => false,
            (true, Attach::Nftables, _) => true,
            (true, Attach::Native | Attach::NativeOrGeneric, Fallback::None) => false,
            (true, Attach::Native | Attach::NativeOrGeneric, Fallback::Nftables) => !self.shield.is_on(name),
        };
        let interfaces: Vec<String> = shield.interfaces.iter().filter(|name| needs(name)).cloned().collect();
        let wish = (!interfaces.is_empty()).then(|| nft::Wish {
            interfaces,
            settings: self.coordinator.settings().clone(),
            ephemeral_low: desired.host.ephemeral_low,
            translates: desired.host.translates,
            drop_invalid: shield.nft.drop_invalid,
        });
        let result = self.nft.follow(wish, desired, self.now().mono);
        self.note_nft(result);
    }

    fn note_nft(&mut self, result: Result<(), nft::NftError>) {
        let text = result.err().map(|error| format!("nftables cannot stand in: {error}"));
        if let Some(text) = text.as_ref().filter(|text| self.troubles.nft.as_ref() != Some(text)) {
            self.metrics.count_reconcile_failure();
            tracing::error!(message_id = "nft_failed", "{text}");
        }
        self.troubles.nft = text;
        self.shield.set_stand_ins(self.nft.interfaces());
    }

    fn note_sync(&mut self, result: Result<(), crate::shell::xdp::SyncError>) {
        match result {
            Ok(()) => self.troubles.tables = None,
            Err(error) => {
                self.metrics.count_reconcile_failure();
                tracing::error!(message_id = "reconcile_failed", "{error}");
                self.troubles.tables = Some(error.to_string());
            }
        }
    }

    /// Reads what the host says of itself, which ports are over their budget, and does what follows for the one sysctl that
    /// the daemon may change.
    fn read_host(&mut self) {
        let facts = host::facts(&self.config.shield.interfaces, self.shield.has_cookies(), self.slow_facts);
        if facts != self.coordinator.desired().host {
            let _ = self.step(Event::Host(facts));
        }
        let now = self.now();
        match self.armed.read(self.shield.tables(), now.mono) {
            Ok(ports) => {
                // Also that there is none: a test of cookies ends with its port.
                let _ = self.step(Event::ArmedPorts(ports));
            }
            Err(error) => self.troubles.counters = Some(error.to_string()),
        }
        let Some(wanted) = self.coordinator.syncookies_wanted() else {
            self.troubles.sysctl = None;
            return;
        };
        if facts.tcp_syncookies != Some(wanted) {
            match host::set_syncookies(wanted) {
                Ok(()) => self.read_host_again(facts, wanted),
                Err(error) => self.troubles.sysctl = Some(error.to_string()),
            }
        }
    }

    /// What was just changed counts at once.
    fn read_host_again(&mut self, facts: HostFacts, syncookies: u32) {
        self.troubles.sysctl = None;
        let _ = self.step(Event::Host(HostFacts { tcp_syncookies: Some(syncookies), ..facts }));
    }

    /// A sign of life for the kernel, and what time alone makes due. Called every second.
    pub fn tick(&mut self) {
        self.advance_orders();
        self.advance_tokens();
        self.count_gate();
        let now = self.now();
        self.troubles.heartbeat =
            self.shield.tables_mut().beat(now.mono.0).err().map(|error| error.to_string());
        if let Some(times) = host::cpu_times() {
            let _ = self.step(Event::CpuTimes(times));
        }
        self.read_totals();
        self.read_host();
        self.test_cookies();
        self.advance();
    }

    /// Tests the cookies of the ports that are due.
    fn test_cookies(&mut self) {
        let now = self.now().mono;
        let due = self.coordinator.self_tests_due(now);
        if due.is_empty() && self.self_tests.is_idle() {
            return;
        }
        let own = self.coordinator.never_ban().own();
        for (port, outcome) in self.self_tests.advance(&mut self.shield, &due, own, now) {
            self.metrics.count_self_test(outcome);
            let _ = self.step(Event::SelfTested { port, outcome });
        }
    }

    /// Does what is due.
    pub fn advance(&mut self) {
        let now = self.now();
        if self.coordinator.next_deadline().is_some_and(|due| due <= now.mono) {
            let mut outcome = self.coordinator.advance(now);
            let undoes_trial = outcome.undoes_trial;
            let was_attached = self.coordinator.desired().attached;
            if outcome.commands.iter().any(|command| matches!(command, Command::UndoTrial)) {
                // The first start's trial ends whether or not that can be made durable.
                self.keep_if_possible(&mut outcome, "end the trial of the first start once more");
                let _ = self.take_in(outcome, Reach::Everything, now);
            } else {
                // A ledger that cannot be written was reported; the commands come again.
                let _ = self.carry_out(outcome, Reach::Everything, now);
            }
            if was_attached != self.coordinator.desired().attached {
                self.follow();
            }
            if undoes_trial {
                self.undo_trial();
            }
        }
    }

    /// Compares the kernel with what it should hold, repairs it, and reads the host's addresses anew.
    pub fn audit(&mut self) {
        self.slow_facts = host::SlowFacts::read(&self.config.shield.interfaces);
        self.read_host();
        self.read_own_addresses();
        let mut result = self.shield.audit(self.coordinator.desired(), self.coordinator.settings());
        let link = self.follow();
        let mut differences = Vec::new();
        let audited = self.nft.audit(self.now().mono).map(|found| differences = found);
        if !self.nft.interfaces().is_empty() {
            self.note_nft(audited);
        }
        if let Ok(repairs) = &mut result {
            (repairs.link, repairs.nft) = (link, differences.len() as u64);
        }
        if let Ok(repairs) = result
            && repairs.total() > 0
        {
            self.metrics.count_repairs(repairs);
            let in_nftables: Vec<String> = differences.iter().map(ToString::to_string).collect();
            tracing::warn!(
                message_id = "drift_repaired",
                ?repairs,
                in_nftables = in_nftables.join("; "),
                "the kernel's state had drifted and was repaired"
            );
        }
        self.note_sync(result.map(|_| ()));
        self.audit_gate();
        self.count_verified();
        self.tell_concerns();
    }

    /// Counts the sources that completed a handshake. Not for every scrape: it reads the whole table.
    fn count_verified(&mut self) {
        match self.shield.tables().count_verified() {
            Ok(rows) => (self.verified, self.troubles.verified) = (rows, None),
            Err(error) => self.troubles.verified = Some(error.to_string()),
        }
    }

    /// Looks again at what the kernel said had changed: the host's addresses and the configured interfaces.
    pub fn host_changed(&mut self) {
        match host::addresses() {
            // Writing the tables costs time for each row there is, so it is not done for nothing.
            Ok(own) if own == *self.coordinator.never_ban().own() => {}
            Ok(own) => {
                self.metrics.count_host_change(HostChange::Addresses);
                tracing::info!(
                    message_id = "own_addresses_changed",
                    addresses = own.len(),
                    "the host's addresses changed"
                );
                let _ = self.step(Event::OwnAddresses(own.into_iter().collect()));
            }
            Err(error) => own_addresses_unread(&error),
        }
        // Taken before the shield follows: what changes meanwhile is told again, and found to differ.
        let places = self.shield.places();
        if places == self.places && !self.shield.has_lost() {
            return;
        }
        self.places = places;
        self.metrics.count_host_change(HostChange::Interfaces);
        tracing::info!(message_id = "interfaces_changed", "an interface of the configuration changed");
        self.follow();
        self.read_host();
    }

    /// The kernel's messages cannot be heard; the audit finds changes later.
    pub fn is_deaf(&mut self, error: &io::Error) {
        let text = format!(
            "the kernel's messages about addresses and interfaces cannot be heard ({error}), so changes are found by the \
             audit every {} s; see that AF_NETLINK is allowed and restart tunicad",
            AUDIT_EVERY.as_secs()
        );
        tracing::warn!(message_id = "host_watch_failed", "{text}");
        self.troubles.deaf = Some(text);
    }

    fn read_totals(&mut self) {
        let totals = match self.shield.tables().totals() {
            Ok(totals) => totals,
            Err(error) => {
                self.troubles.counters = Some(error.to_string());
                return;
            }
        };
        self.troubles.counters = self.nft.count().err().map(|error| explained(&error));
        for (verdict, action, new) in self.nft.take_new() {
            self.metrics.count_beside_shield(verdict, action, new.packets, new.bytes);
        }
        let mut all = totals.clone();
        self.nft.add_to(&mut all);
        let mut counted = Totals::default();
        for verdict in Verdict::ALL {
            for action in Action::ALL {
                let of = |totals: &[Total]| {
                    totals.get(tally_slot(*verdict, action) as usize).copied().unwrap_or_default()
                };
                let total = of(&totals);
                counted.set(*verdict, action, of(&all).packets);
                self.metrics.set_shield_total(*verdict, action, total.packets, total.bytes);
            }
        }
        // Nothing durable comes of counters.
        let _ = self.step(Event::Totals(Box::new(counted)));
    }

    fn read_own_addresses(&mut self) {
        match host::addresses() {
            Ok(own) => {
                let _ = self.step(Event::OwnAddresses(own.into_iter().collect()));
            }
            Err(error) => own_addresses_unread(&error),
        }
    }

    /// Reads tor's own connections into the never-ban set.
    pub fn read_tor_peers(&mut self) {
        let users = self.config.tor_users();
        if users.is_empty() {
            return;
        }
        let peers = users.into_iter().map(|user| match host::uid(user) {
            Ok(Some(uid)) => {
                tor_peers::read(uid).map_err(|error| format!("tor's connections cannot be read: {error}"))
            }
            Ok(None) => Err(format!(
                "there is no account {user}, which tor.user or ingress.user names; tor's guards are not protected from bans"
            )),
            Err(error) => Err(format!(
                "account {user} cannot be looked up: {error}; tor's guards are not protected from bans"
            )),
        });
        match peers.collect::<Result<Vec<_>, _>>() {
            Ok(peers) => {
                self.troubles.tor = None;
                let peers: BTreeSet<IpAddr> = peers.into_iter().flatten().collect();
                let _ = self.step(Event::TorPeers(peers.into_iter().collect()));
            }
            Err(text) => {
                if self.troubles.tor.as_ref() != Some(&text) {
                    tracing::warn!(message_id = "tor_peers_read_failed", "{text}");
                }
                self.troubles.tor = Some(text);
            }
        }
    }

    /// Takes sampled events from the kernel.
    pub fn sampled(&mut self, events: &[kernel::Event]) {
        self.metrics.count_events(events.len() as u64);
        self.armed.note(events);
        let samples = events.iter().filter_map(sample).collect();
        let _ = self.step(Event::Samples(samples));
    }

    /// Takes proofs from the kernel.
    pub fn proved(&mut self, proofs: &[kernel::Proof]) {
        for proof in proofs {
            let handshake = Handshake {
                source: PacketSource::of(std::net::Ipv6Addr::from(proof.source).into()),
                port: u16::try_from(proof.port).unwrap_or(0),
            };
            // A ledger that cannot be written was reported; the source will offend again.
            if let Ok(Some(reply)) = self.step(Event::Handshake(handshake)) {
                self.metrics.count_ban_reply(&reply);
            }
        }
    }

    /// Answers one request of `caller`, who may make it.
    pub fn answer(&mut self, request: Request, caller: Reporter) -> Answer {
        match request {
            Request::Status {} => self.status(),
            Request::Counters {} => self.counters(),
            Request::Diff {} => self.diff(),
            Request::BanList {} => Answer::Bans(views::bans(&self.coordinator)),
            Request::AllowList {} => Answer::Allows(views::allows(&self.coordinator)),
            Request::Sources { limit } => {
                let lost = self.shield.tables().lost_events().unwrap_or(0).saturating_sub(self.lost_before);
                Answer::Sources(views::sources(&self.coordinator, lost, limit))
            }
            Request::Explain(request) => {
                let now = self.now();
                match explain::explain(&request, &self.coordinator, &self.shield, &mut self.probe, now) {
                    Ok(explanation) => Answer::Explanation(Box::new(explanation)),
                    Err(error) => views::refused(RefusedCode::Failed, error.to_string()),
                }
            }
            Request::Tune { force } => match self.coordinator.tune(force, self.now()) {
                Ok((since, minutes, proposals)) => Answer::Tuning(views::tuning(since, minutes, proposals)),
                Err(message) => views::refused(RefusedCode::Invalid, message),
            },
            Request::IncidentList {} => Answer::Incidents(views::incidents(&self.coordinator)),
            Request::IncidentShow { id } => match self.coordinator.incidents().get(&id) {
                Some(known) => Answer::Incident(Box::new(views::incident(id, known))),
                None => views::refused(
                    RefusedCode::NotFound,
                    format!("there is no incident {id}; `tunica incident list` shows those that are kept"),
                ),
            },
            Request::CandidateLoad(request) => self.load_candidate(request),
            Request::CandidateStatus {} => self.candidate_status(),
            Request::CandidatePromote {} => self.candidate_promotion(),
            Request::CandidateDrop {} => self.drop_candidate(),
            Request::CircuitList { limit, sort } => self.circuits(limit, sort),
            Request::CircuitOrder(request) => self.order_circuit(request),
            Request::CircuitClose { circuit, dry_run } => self.close_circuit(circuit, dry_run),
            Request::CircuitExplain { circuit } => self.explain_circuit(circuit),
            Request::TokenRevokeAll { dry_run } => self.revoke_all_tokens(dry_run),
            Request::Threat {} => self.threat(),
            Request::ThreatSet { level, seconds, dry_run } => {
                let length = seconds.map(Duration::from_secs);
                self.decide_though_unkept(
                    Event::PinLevel { level, length, dry_run },
                    "let go of the load level",
                )
            }
            Request::ThreatClear { dry_run } => {
                self.decide_though_unkept(Event::UnpinLevel { dry_run }, "set the load level again")
            }
            Request::Doctor {} => Answer::Doctor(self.doctor()),
            Request::BanAdd(ban) => self.ban(ban),
            Request::Report(report) => self.report(report, caller),
            Request::BanRemove { source, dry_run } => self.decide(Event::Unban { target: source, dry_run }),
            Request::AllowAdd(allow) => {
                let request = AllowRequest {
                    prefix: allow.prefix,
                    length: length(allow.length),
                    reason: allow.reason,
                    dry_run: allow.dry_run,
                };
                self.decide(Event::Allow(request))
            }
            Request::AllowRemove { prefix, dry_run } => self.decide(Event::Disallow { prefix, dry_run }),
            Request::BypassOn { reason } => self.bypass(Event::BypassOn { reason }),
            Request::BypassOff {} => self.bypass(Event::BypassOff),
            Request::PanicOn { seconds, dry_run } => {
                let length = Duration::from_secs(seconds);
                self.decide_though_unkept(Event::AttackModeOn { length, dry_run }, "end attack mode")
            }
            Request::PanicOff { dry_run } => {
                self.decide_though_unkept(Event::AttackModeOff { dry_run }, "bring attack mode back")
            }
            Request::Reload(request) => self.reload(request),
            Request::Confirm {} => self.decide(Event::Confirmed),
        }
    }

    /// What the host can do, and what tests of the cookies found.
    fn doctor(&self) -> Doctor {
        let now = self.now().mono;
        host::examine(
            &self.config,
            self.coordinator.without_cookies().map(|(port, until)| (port, until.since(now))),
            self.troubles.load.iter().flatten().cloned().collect(),
        )
    }

    fn ban(&mut self, ban: request::BanAdd) -> Answer {
        let request = BanRequest {
            target: ban.source,
            length: length(ban.length),
            reason: ban.reason,
            operator: ban.operator,
            dry_run: ban.dry_run,
        };
        match self.step(Event::Ban(request)) {
            Ok(Some(reply)) => {
                self.metrics.count_ban_reply(&reply);
                views::reply(reply)
            }
            Ok(None) => no_answer(),
            Err(text) => views::refused(RefusedCode::Failed, text),
        }
    }

    fn report(&mut self, report: request::Report, reporter: Reporter) -> Answer {
        let request::Report { source, reason, service, dry_run } = report;
        let result = self.step(Event::Report(Report { source, reporter, reason, service, dry_run }));
        if !dry_run {
            self.metrics.count_report(result.as_ref().ok().and_then(Option::as_ref));
        }
        answer_of(result)
    }

    fn decide(&mut self, event: Event) -> Answer {
        answer_of(self.step(event))
    }

    /// Unlike other changes a bypass begins and ends even if that cannot be made durable: a full disk must lock nobody
    /// out. It begins before the ledger is written, because a sick disk may take its time.
    fn bypass(&mut self, event: Event) -> Answer {
        let now = self.now();
        let reach = Reach::of(&event);
        let mut outcome = self.coordinator.handle(event, now);
        let begins = outcome.commands.iter().any(|command| matches!(command, Command::SetBypass { .. }));
        if begins {
            self.shield.follow(false);
            let removed = self.nft.remove();
            self.note_nft(removed);
        }
        let then = if begins { "end the bypass" } else { "bring the bypass back" };
        self.keep_if_possible(&mut outcome, then);
        let result = self.take_in(outcome, reach, now);
        self.follow();
        answer_of(result)
    }

    /// What is done even if it cannot be made durable: a full disk is part of many attacks.
    fn decide_though_unkept(&mut self, event: Event, restart_would: &str) -> Answer {
        let now = self.now();
        let reach = Reach::of(&event);
        let mut outcome = self.coordinator.handle(event, now);
        self.keep_if_possible(&mut outcome, restart_would);
        answer_of(self.take_in(outcome, reach, now))
    }

    /// Makes an outcome durable, or has its answer say what a restart would do because it is not.
    fn keep_if_possible(&mut self, outcome: &mut Outcome, restart_would: &str) {
        if let Err(error) = self.keep(&outcome.commands) {
            let text = self.ledger_trouble(format!("a restart of tunicad would {restart_would}: {error}"));
            if let Some(Reply::Done { changes, .. }) = &mut outcome.reply {
                changes.push(text);
            }
        }
    }

    fn status(&self) -> Answer {
        let mut warnings = self.warnings();
        warnings.extend(self.vitals().concerns().into_iter().map(|concern| concern.text));
        let around = views::Surroundings {
            config: &self.config,
            started: self.started,
            warnings,
            verified: self.verified,
        };
        let mut status = views::status(&self.coordinator, &self.shield, &around, self.now());
        status.load = Some(load::line(&self.coordinator.load_level()));
        status.new_circuits = self.new_circuits();
        status.candidate = self.candidate.as_ref().map(|tried| tried.line(&self.shield));
        Answer::Status(Box::new(status))
    }

    fn counters(&self) -> Answer {
        match self.shield.tables().totals() {
            Ok(mut totals) => {
                self.nft.add_to(&mut totals);
                Answer::Counters(views::counters(&totals, self.shield.directory(), self.started, self.now()))
            }
            Err(error) => views::refused(RefusedCode::Failed, error.to_string()),
        }
    }

    /// Reads the configuration file and says what a reload would do with it.
    fn diff(&mut self) -> Answer {
        let read = tunica_config::read_file(&self.config_path).map_err(|error| error.to_string());
        let found = read.and_then(|config| {
            let (settings, _) = settings::of(&config).map_err(|error| error.to_string())?;
            Ok((config, settings))
        });
        let (config, settings) = match found {
            Ok(found) => found,
            Err(message) => return views::refused(RefusedCode::BadConfig, message),
        };
        let fixed = settings::fixed_keys_changed(&self.config, &config);
        let mut obstacles: Vec<String> = settings::restart_needed(&fixed).into_iter().collect();
        let come = only_in(&config.shield.interfaces, &self.shield.plan().interfaces);
        obstacles.extend(come.iter().filter_map(|name| self.shield.admit(name).err()).map(|e| e.to_string()));
        // An outcome that is neither kept nor taken in changes nothing.
        let now = self.now();
        let outcome = self.coordinator.handle(Event::Reloaded(Box::new(settings)), now);
        let changes = tunica_config::changes(&self.config, &config);
        Answer::Differences(views::differences(
            &self.config_path,
            changes,
            &fixed,
            &outcome.commands,
            obstacles,
        ))
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = self.config.warnings();
        warnings.extend(self.undone());
        warnings.extend(self.troubles.list());
        warnings.extend(self.front.trouble_of_arti());
        warnings.extend(self.coordinator.cookies().advice());
        let now = self.now().mono;
        let refused = self.coordinator.without_cookies();
        warnings.extend(refused.map(|(port, until)| self_test::advice(port, until.since(now))));
        if self.coordinator.settings().handshakes.is_some() {
            warnings.extend(self.shield.without_handshakes().map(str::to_owned));
        }
        warnings
    }

    fn vitals(&self) -> Vitals {
        Vitals::read(&self.config.ledger.path)
    }

    /// Says what of the host is not well and was well when last looked at; the figures in it may change without a word.
    fn tell_concerns(&mut self) {
        let concerns = self.vitals().concerns();
        for concern in concerns.iter().filter(|concern| !self.concerns.contains(&concern.about)) {
            tracing::warn!(message_id = "host_concern", about = concern.about, "{}", concern.text);
        }
        self.concerns = concerns.into_iter().map(|concern| concern.about).collect();
    }

    /// That the configuration file is not in force, if it was undone.
    fn undone(&self) -> Option<String> {
        let trial = self.coordinator.ledger().trial.as_ref().filter(|trial| trial.is_undone)?;
        // Of the first start the bypass speaks.
        (!trial.is_of_first_start()).then(|| format!(
            "the configuration file is not in force: nobody confirmed its trial before {}; `tunica diff` shows what it \
             says, `tunica reload --confirm` tries it again",
            trial.expires
        ))
    }

    /// Reads the configuration file again. Either all of it comes into force or none.
    pub fn reload(&mut self, request: request::Reload) -> Answer {
        let result = self.try_reload(request);
        self.metrics.count_reload(result.is_ok());
        match result {
            Ok(answer) => {
                tracing::info!(
                    message_id = "config_reloaded",
                    "the configuration was read again and is in force"
                );
                answer
            }
            Err(Refused { code, message }) => {
                // The problems of a file have a line each.
                let then = if message.contains('\n') { "\n" } else { "; " };
                let message = format!("{message}{then}the configuration before stays in force");
                tracing::error!(message_id = "config_refused", "{message}");
                views::refused(code, message)
            }
        }
    }

    fn try_reload(&mut self, request: request::Reload) -> Result<Answer, Refused> {
        let bad = |message: String| Refused { code: RefusedCode::BadConfig, message };
        let failed = |message: String| Refused { code: RefusedCode::Failed, message };
        let read = tunica_config::read_file_and_text(&self.config_path);
        let (config, text) = read.map_err(|error| bad(error.to_string()))?;
        let fixed = settings::fixed_keys_changed(&self.config, &config);
        if let Some(message) = settings::restart_needed(&fixed) {
            return Err(bad(message));
        }
        let (settings, strangers) = settings::of(&config).map_err(|error| bad(error.to_string()))?;
        let plan = settings::plan(&config);
        let come = only_in(&plan.interfaces, &self.shield.plan().interfaces);
        let gone = only_in(&self.shield.plan().interfaces, &plan.interfaces);
        for name in &come {
            self.shield.admit(name).map_err(|error| bad(error.to_string()))?;
        }
        let fresh = self.open_beside(&plan).map_err(failed)?;
        let event = match request.confirm_seconds {
            None => Event::Reloaded(Box::new(settings)),
            Some(seconds) => Event::Tried(Box::new(TrialRequest {
                settings,
                length: Duration::from_secs(seconds),
                before: self.text.clone(),
            })),
        };
        let reply = self.step(event).map_err(|text| {
            self.shield.sweep();
            failed(text)
        })?;
        let answer = answer_of(Ok(reply));
        if let Answer::Refused(refused) = answer {
            self.shield.sweep();
            return Err(refused);
        }
        self.adopt(config, text, plan, fresh);
        self.troubles.trial = None;
        self.troubles.reporters = strangers;
        let answer = self.with_interfaces(answer, &come, &gone);
        Ok(self.with_session(answer, &come, request))
    }

    /// Maps of the size that `plan` asks for, if those in use have another.
    fn open_beside(&self, plan: &Plan) -> Result<Option<Shield>, String> {
        if plan.sizes == self.shield.plan().sizes {
            return Ok(None);
        }
        self.shield.open_beside(plan.clone()).map(Some).map_err(|error| {
            self.shield.sweep();
            error.to_string()
        })
    }

    /// Goes over to a configuration whose settings are in force. Maps of another size are filled first, then the link moves
    /// to the program that reads them.
    fn adopt(&mut self, config: Config, text: String, plan: Plan, fresh: Option<Shield>) {
        // It was compared with what goes now.
        self.end_candidate("another configuration came into force");
        self.shield.release(&plan.interfaces);
        if let Some(mut fresh) = fresh {
            let _ = fresh.tables_mut().beat(self.now().mono.0);
            let synced = fresh.sync(self.coordinator.desired(), self.coordinator.settings()).map(|_| ());
            self.shield = fresh;
            self.nft.forget_totals();
            self.armed = Armed::default();
            self.lost_before = self.shield.tables().lost_events().unwrap_or(0);
            self.note_sync(synced);
            self.count_verified();
        } else {
            self.shield.set_plan(plan);
        }
        self.telemetry.set_level(config.log.level);
        let renews = front_mark(&self.config) != front_mark(&config);
        (self.config, self.text) = (config, text);
        if renews {
            self.renew_front();
        } else {
            self.retry_front();
        }
        self.places = self.shield.places();
        self.follow();
        self.read_tor_peers();
    }

    /// Brings back the configuration before the trial. Whatever cannot be had now is left out: the limits count most.
    fn undo_trial(&mut self) {
        let Some(trial) = self.coordinator.ledger().trial.clone() else { return };
        let (mut config, trouble) = settings::before_trial(&trial.before, &self.config);
        self.troubles.trial = trouble;
        let mut plan = settings::plan(&config);
        let fresh = self.open_beside(&plan).unwrap_or_else(|error| {
            config.shield.tables = self.config.shield.tables.clone();
            plan = settings::plan(&config);
            self.troubles.trial = Some(format!("the tables keep the size that they had on trial: {error}"));
            None
        });
        let settings = match settings::of(&config) {
            Ok((settings, strangers)) => {
                self.troubles.reporters = strangers;
                settings
            }
            Err(error) => {
                self.troubles.trial = Some(error.to_string());
                return;
            }
        };
        let now = self.now();
        let mut outcome = self.coordinator.handle(Event::Undone(Box::new(settings)), now);
        self.keep_if_possible(&mut outcome, "undo the trial once more");
        let _ = self.take_in(outcome, Reach::Everything, now);
        self.adopt(config, trial.before, plan, fresh);
    }

    /// The answer, with a sentence if the session that the caller is logged in by comes in by an interface that is new.
    fn with_session(&self, answer: Answer, come: &[String], request: request::Reload) -> Answer {
        let Answer::Done(mut done) = answer else { return answer };
        let carrier = request.session.and_then(host::interface_of).filter(|name| come.contains(name));
        done.changes.extend(carrier.map(|name| match request.confirm_seconds {
            Some(_) => format!("{name} carries your SSH session: confirm from another one"),
            None => format!(
                "{name} carries your SSH session, and nothing undoes this by itself; `tunica reload --confirm` would"
            ),
        }));
        Answer::Done(done)
    }

    /// The answer, with a sentence for each interface that came or went.
    fn with_interfaces(&self, answer: Answer, come: &[String], gone: &[String]) -> Answer {
        let Answer::Done(mut done) = answer else { return answer };
        let is_bypassed = self.coordinator.ledger().bypass.is_some();
        done.changes.extend(gone.iter().map(|name| format!("the shield is off {name}")));
        let states = self.shield.interfaces();
        done.changes.extend(states.into_iter().filter(|state| come.contains(&state.name)).map(
            |state| match (state.is_ours, state.problem) {
                (true, None) => format!("the shield is on {}", state.name),
                (_, Some(problem)) => format!("{}: {problem}", state.name),
                (false, None) if is_bypassed => {
                    format!("the shield goes on {} once the bypass ends", state.name)
                }
                (false, None) => format!("{}: not attached", state.name),
            },
        ));
        Answer::Done(done)
    }

    /// Why the shield does not do what the configuration asks; empty if it does.
    pub fn unready(&self) -> Vec<String> {
        let mut reasons: Vec<String> = Vec::new();
        if let Some(bypass) = &self.coordinator.ledger().bypass {
            reasons.push(format!("bypassed since {}: {}", bypass.since, bypass.reason));
        } else {
            let wanted = self.shield.plan().wanted;
            for state in self.shield.interfaces() {
                if !views::is_as_requested(&state, wanted) {
                    let why = state.problem.clone().unwrap_or_else(|| "not attached".to_owned());
                    let then = if state.by_nftables { "; nftables stands in" } else { "" };
                    reasons.push(format!("{}: {why}{then}", state.name));
                }
            }
        }
        reasons.extend(self.undone());
        reasons.extend(self.troubles.tables.clone());
        reasons
    }

    /// The metrics as text, gauges read at this moment.
    pub fn metrics_text(&mut self) -> String {
        let now = self.now();
        let interfaces = self.shield.interfaces();
        let wanted = self.shield.plan().wanted;
        let metrics = &self.metrics;
        metrics.set_mode(self.coordinator.settings().mode);
        metrics.set_interfaces(interfaces.iter().map(|state| {
            let is_good = views::is_as_requested(state, wanted);
            (state.name.as_str(), views::requested(wanted), views::actual(state), is_good)
        }));
        metrics.set_program_matches(views::program_matches(&interfaces));
        metrics.set_generation(self.shield.tables().policy().map_or(0, |policy| policy.generation));
        metrics.set_bypassed(self.coordinator.ledger().bypass.is_some());
        let trial = self.coordinator.ledger().trial.as_ref();
        metrics.set_trial(
            trial.is_some_and(|trial| !trial.is_undone),
            trial.is_some_and(|trial| trial.is_undone && !trial.is_of_first_start()),
        );
        metrics.set_under_attack(self.coordinator.is_under_attack());
        let attack_mode = self.coordinator.ledger().attack_mode;
        metrics.set_attack_mode(attack_mode.map(|fact| fact.expires.since(now.wall)));
        metrics.set_load(&self.coordinator.load_level(), self.coordinator.ledger().level_pin.is_some());
        metrics.set_newcomers(self.coordinator.newcomers());
        metrics
            .set_candidate(self.candidate.is_some(), &self.shield.tables().differences().unwrap_or_default());
        for table in views::tables(&self.coordinator, self.verified) {
            metrics.set_table(&table.name, table.used, table.capacity);
        }
        let beat = Monotime(self.shield.tables().last_beat().unwrap_or(0));
        metrics.set_heartbeat_age(now.mono.since(beat));
        metrics.set_heartbeat_stale_after(self.coordinator.settings().stale_after);
        metrics.set_sketch_busy(self.shield.tables().sketch_busy(now.mono.0).unwrap_or(0.0));
        metrics.set_cookies(self.coordinator.cookies(), self.coordinator.armed_ports().count());
        metrics.set_without_cookies(self.coordinator.without_cookies().count());
        metrics.set_events_lost(self.shield.tables().lost_events().unwrap_or(0));
        metrics.set_proofs_lost(self.shield.tables().lost_proofs().unwrap_or(0));
        metrics.set_bans_active(self.coordinator.ledger().all_bans().map(|(_, ban)| ban.origin));
        let never_ban = self.coordinator.never_ban();
        let age = self.config.tor_users().first().map(|_| {
            never_ban.tor_last_read().map_or(now.wall.since(self.started), |read| now.wall.since(read))
        });
        metrics.set_never_ban(never_ban.peer_count() as u64, age);
        metrics.set_vitals(&self.vitals());
        metrics.render().unwrap_or_else(|error| {
            tracing::error!(message_id = "metrics_failed", %error, "the metrics have no text form");
            String::new()
        })
    }
}

/// An error with what it comes from.
fn explained(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

fn own_addresses_unread(error: &io::Error) {
    tracing::warn!(message_id = "own_addresses_unread", %error, "the host's addresses cannot be read");
}

fn only_in(these: &[String], those: &[String]) -> Vec<String> {
    these.iter().filter(|name| !those.contains(name)).cloned().collect()
}

fn answer_of(result: Result<Option<Reply>, String>) -> Answer {
    match result {
        Ok(Some(reply)) => views::reply(reply),
        Ok(None) => no_answer(),
        Err(text) => views::refused(RefusedCode::Failed, text),
    }
}

fn no_answer() -> Answer {
    views::refused(RefusedCode::Failed, "the coordinator gave no answer; this is a fault of tunicad")
}

fn length(length: request::Length) -> Length {
    match length {
        request::Length::Ladder => Length::Ladder,
        request::Length::Seconds(seconds) => Length::For(Duration::from_secs(seconds)),
        request::Length::Forever => Length::Forever,
    }
}

/// A kernel event as evidence of the forgeable kind; `None` for numbers that this version does not know.
fn sample(event: &kernel::Event) -> Option<Forgeable> {
    let address = std::net::Ipv6Addr::from(event.source);
    Some(Forgeable {
        source: PacketSource::of(address.into()),
        verdict: Verdict::from_slot(event.verdict)?,
        action: Action::from_slot(event.action)?,
        destination_port: event.destination_port,
    })
}

/// What this host can do for the shield, asked by `tunicad preflight`.
pub fn doctor(config: &Config) -> Doctor {
    host::examine(config, std::iter::empty(), Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_fails_stands_still_and_the_other_goes_on() {
        let last = Now { mono: Monotime(7), wall: WallTime(70) };
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let before = UNIX_EPOCH - Duration::from_secs(1);
        let fault = || Err(io::Error::from(io::ErrorKind::Unsupported));
        for (mono, wall, expected) in [
            (Ok(8), at(71), (8, 71)),
            (Ok(8), before, (8, 70)),
            (fault(), at(71), (7, 71)),
            (fault(), before, (7, 70)),
        ] {
            let now = read_clocks(last, mono, wall);
            assert_eq!((now.mono.0, now.wall.0), expected);
        }
    }
}
