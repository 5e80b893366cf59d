//! How loaded the service is, and what follows from it: puzzles, the front's limits, the kernel's port rules.
//!
//! Tor tells first: a flood of introductions costs tor's one thread before any stream reaches the front. Then the front's
//! queue and places, then the CPUs. Each input is a share of what it can bear, and may be absent: what is not known counts
//! neither as calm nor as loaded, and [`Desired::grounds`] says what a level rests on.
//!
//! From readings to the load:
//!
//! 1. A counter becomes a rate; one that fell, or another tor process, begins again and tells nothing for one reading.
//! 2. An input is known from three samples of the last 20 s on, and is their median (of the last five): one reading, however
//!    wrong, changes no level. Samples less than 900 ms apart are one.
//! 3. Inputs of one [`Kind`] are the highest of them; the load is the highest kind. Full load needs a witness: another kind at
//!    heavy load at least. A crowd of honest visitors fills the places and is heavy load; an attack also shows at tor.
//! 4. The pressure on the CPUs is such a witness, and by itself nothing: the host may have work of its own.
//!
//! From the load to the level, with `up` and `down` of [`LoadSettings`]:
//!
//! | state | input | next |
//! |---|---|---|
//! | any level | load at or above `up` of a higher one, and [`LoadSettings::rise_dwell`] since the last change | the highest such |
//! | above calm | load below its `down` for [`LoadSettings::fall_dwell`] without interruption | the one below |
//! | any | none of these | stays |
//!
//! So inputs that fall silent lead to calm by the same steps. Over the measured level lies the operator's word
//! ([`Event::Pin`]). With attack mode the level is heavy at least: then a pin to a lower level rests, because whoever asks for
//! attack mode asks for more defence than before. Both end as they came, at once: underneath, the measuring goes on.
//!
//! New circuits that are alike ([`crate::newcomers`]) raise the measured level by one, where the configuration says so, and no
//! further than it says ([`Event::Crowd`]): underneath, the measuring goes on without them.
//!
//! Memory is bounded by the number of inputs: five samples and one counter each.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    circuit_policy::{Load, Ratio},
    false_positives::{FalsePositives, Holders},
    id::TorGeneration,
    puzzle_level::{Pages, PuzzleLevel, Puzzles},
    time::Monotime,
};

mod lease;
mod meter;
mod settings;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod rows;
#[cfg(test)]
mod simulation;

pub use lease::{FrontLoad, LEASE, LoadLease};
use meter::{Counter, Samples};
pub use settings::LoadSettings;

/// How loaded the service is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// No puzzle is asked.
    Calm,
    /// A puzzle that costs nobody anything.
    Light,
    /// A puzzle that a person does not notice.
    Moderate,
    /// Puzzles of a second, less for each circuit, and closer port rules.
    Heavy,
    /// The hardest puzzles, and the least for each circuit.
    UnderAttack,
}

/// What tells of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Input {
    /// Tor's share of one core.
    TorCpu,
    /// Rendezvous circuits a second.
    Rendezvous,
    /// Rejected introductions a second.
    Rejections,
    /// The queue of Tor's own puzzle.
    PuzzleQueue,
    /// Connections in the front's queue.
    Queue,
    /// How long they wait.
    Wait,
    /// Connections being served.
    Connections,
    /// Connections that look at a puzzle, and would be served or wait if nobody were asked: without them a flood that solves
    /// none would be gone as soon as it is asked, and the level with it.
    Challenged,
    /// The share of time in which somebody waited for a CPU.
    CpuPressure,
}

/// Inputs that see the same thing, and so are no witnesses of each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Tor's process.
    Tor,
    /// What reaches tor from the network.
    Introductions,
    /// The front.
    Front,
    /// The host.
    Host,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Tor was looked at.
    Tor(TorReading),
    /// The front was looked at.
    Front(FrontReading),
    /// How long somebody waited for a CPU since the host's start: `total` of `some` in `/proc/pressure/cpu`.
    CpuStalled(Duration),
    /// What became of the pages' puzzles.
    Pages(Pages),
    /// How many token holders were there, and refused.
    Holders(Holders),
    /// The operator sets the level; takes the place of an earlier pin.
    Pin {
        /// To this one.
        level: Level,
        /// Until then; `None`: until [`Self::Unpin`].
        until: Option<Monotime>,
    },
    /// The operator lets go of it.
    Unpin,
    /// Attack mode began (`true`) or ended.
    AttackMode(bool),
    /// More new circuits are alike than usually (`Some`), or no longer: the measured level counts as one more, up to this one.
    Crowd(Option<Level>),
}

/// A tor process at one moment, its counters as they stand. What could not be read is `None`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TorReading {
    /// Which process. Readings of an earlier one are passed over.
    pub generation: TorGeneration,
    /// CPU time since its start, user and system. Nearly all of it is that of the main thread, which no other core can
    /// relieve.
    pub cpu: Option<Duration>,
    /// `tor_hs_rdv_num_total`, all services together.
    pub rendezvous: Option<u64>,
    /// `tor_hs_intro_rejected_intro_req_count`, all services and reasons together.
    pub rejections: Option<u64>,
    /// `tor_hs_rdv_pow_pqueue_count`, all services together. One below zero, which tor tells after a reload, is not known.
    pub puzzle_queue: Option<i64>,
}

/// The front at one moment, and the limits that it holds to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrontReading {
    /// Connections being served.
    pub active: u32,
    /// `max_concurrent_connections`.
    pub most_active: u32,
    /// Connections that look at a puzzle.
    pub challenged: u32,
    /// Connections in the queue.
    pub queued: u32,
    /// Places in the queue: `maxconn` without `max_concurrent_connections`.
    pub most_queued: u32,
    /// How long the first of the queue has waited; zero where it is empty.
    pub wait: Duration,
    /// `queue_timeout`.
    pub most_wait: Duration,
}

/// What should be in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// The level in force.
    pub level: Level,
    /// Who says so.
    pub word: Word,
    /// What was measured, whoever has the word.
    pub measured: Level,
    /// For [`crate::circuit_policy::CircuitShard::set_load`]: the load as far as the level in force covers it, so that the
    /// shard's comparison with `pow_activation_threshold` changes with the level and at no other time.
    pub load: Load,
    /// Whether circuits that have not paid are asked for a puzzle, where they can be.
    pub asks_puzzles: bool,
    /// How hard it is.
    pub puzzles: Puzzles,
    /// The part of its limits that a circuit which has not paid may still use: connections and requests, never bans.
    pub front_share: Ratio,
    /// Whether the kernel's port rules tighten, as [`crate::attack_mode`] does it.
    pub tightens_ports: bool,
    /// Whether limits of token holders are relaxed by one step, see [`crate::false_positives`].
    pub relaxes_tokens: bool,
    /// Every input that is known.
    pub grounds: Vec<Ground>,
}

impl Desired {
    /// What of it the front holds to.
    pub const fn front(&self) -> FrontLoad {
        FrontLoad {
            ratio: self.load.ratio,
            asks_puzzles: self.asks_puzzles,
            puzzles: self.puzzles,
            share: self.front_share,
            relaxes_tokens: self.relaxes_tokens,
        }
    }
}

/// Who has the word about the level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// The inputs.
    Measured,
    /// Attack mode.
    AttackMode,
    /// The inputs, and new circuits that are alike.
    Crowd,
    /// The operator.
    Operator {
        /// Until then; `None`: until he lets go of it.
        until: Option<Monotime>,
    },
}

/// What one input says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ground {
    /// Which.
    pub input: Input,
    /// How much of what it can bear it bears.
    pub ratio: Ratio,
    /// Whether it keeps the measured level from falling by itself. At [`Level::Calm`] none does.
    pub holds_level: bool,
}

/// The machine.
#[derive(Clone, Debug)]
pub struct LoadLevel {
    settings: LoadSettings,
    samples: [(Input, Samples); Input::ALL.len()],
    generation: Option<TorGeneration>,
    cpu: Counter,
    rendezvous: Counter,
    rejections: Counter,
    stalled: Counter,
    level: Level,
    /// When the measured level changed last.
    changed: Option<Monotime>,
    /// Since when the load has been below the measured level's `down`.
    below_since: Option<Monotime>,
    pin: Option<(Level, Option<Monotime>)>,
    is_attack_mode: bool,
    /// Up to where new circuits that are alike raise the measured level.
    crowd: Option<Level>,
    puzzles: PuzzleLevel,
    false_positives: FalsePositives,
    /// The latest time that was told.
    now: Monotime,
}

/// A tenth less than all of a core is full load: tor's cells and circuits have one thread, and one that shares its core with
/// anything else never shows all of it.
const FULL_CPU: Ratio = Ratio::ALL.less(Ratio::TENTH);
/// Four fifths: where somebody waits for a CPU that long, every burst of tor's or the front's meets a queue.
const FULL_STALL: Ratio = FULL_CPU.less(Ratio::TENTH);

impl Level {
    /// Every level, lowest first.
    pub const ALL: [Self; 5] = [Self::Calm, Self::Light, Self::Moderate, Self::Heavy, Self::UnderAttack];

    /// The word on the command line, in labels and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Calm => "calm",
            Self::Light => "light",
            Self::Moderate => "moderate",
            Self::Heavy => "heavy",
            Self::UnderAttack => "under_attack",
        }
    }

    /// What follows from it, as a clause.
    pub const fn demands(self) -> &'static str {
        match self {
            Self::Calm => "no puzzles, and the limits as they are configured",
            Self::Light => "puzzles that cost nobody anything, where puzzles are asked",
            Self::Moderate => "puzzles that a person does not notice, where puzzles are asked",
            Self::Heavy => {
                "puzzles of a second, where puzzles are asked, three quarters of its limits for a circuit that has not paid, and \
                 half the rates at ports"
            }
            Self::UnderAttack => {
                "the hardest puzzles, where puzzles are asked, half of its limits for a circuit that has not paid, and half the \
                 rates at ports"
            }
        }
    }

    /// The level of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.name() == name)
    }

    const fn lower(self) -> Self {
        match self {
            Self::Calm | Self::Light => Self::Calm,
            Self::Moderate => Self::Light,
            Self::Heavy => Self::Moderate,
            Self::UnderAttack => Self::Heavy,
        }
    }

    const fn higher(self) -> Option<Self> {
        match self {
            Self::Calm => Some(Self::Light),
            Self::Light => Some(Self::Moderate),
            Self::Moderate => Some(Self::Heavy),
            Self::Heavy => Some(Self::UnderAttack),
            Self::UnderAttack => None,
        }
    }

    /// The part of its limits that is left to a circuit which has not paid. Never less than a half: at the `web` profile's
    /// 600 requests in 10 s, an ordinary browser (60 resources a page, a click every 4 s) stays below 300.
    const fn front_share(self) -> Ratio {
        match self {
            Self::Calm | Self::Light | Self::Moderate => Ratio::ALL,
            Self::Heavy => Ratio::THREE_QUARTERS,
            Self::UnderAttack => Ratio::HALF,
        }
    }

    const fn tightens_ports(self) -> bool {
        match self {
            Self::Calm | Self::Light | Self::Moderate => false,
            Self::Heavy | Self::UnderAttack => true,
        }
    }
}

impl Input {
    /// Every input, the most telling first.
    pub const ALL: [Self; 9] = [
        Self::TorCpu,
        Self::Rendezvous,
        Self::Rejections,
        Self::PuzzleQueue,
        Self::Queue,
        Self::Wait,
        Self::Connections,
        Self::Challenged,
        Self::CpuPressure,
    ];

    /// The word in labels and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TorCpu => "tor_cpu",
            Self::Rendezvous => "rendezvous",
            Self::Rejections => "rejections",
            Self::PuzzleQueue => "puzzle_queue",
            Self::Queue => "queue",
            Self::Wait => "wait",
            Self::Connections => "connections",
            Self::Challenged => "challenged",
            Self::CpuPressure => "cpu_pressure",
        }
    }

    /// What it sees.
    pub const fn kind(self) -> Kind {
        match self {
            Self::TorCpu => Kind::Tor,
            Self::Rendezvous | Self::Rejections | Self::PuzzleQueue => Kind::Introductions,
            Self::Queue | Self::Wait | Self::Connections | Self::Challenged => Kind::Front,
            Self::CpuPressure => Kind::Host,
        }
    }
}

impl LoadLevel {
    /// Knows nothing yet, and so is calm.
    pub fn new(settings: LoadSettings) -> Self {
        Self {
            settings,
            samples: Input::ALL.map(|input| (input, Samples::default())),
            generation: None,
            cpu: Counter::default(),
            rendezvous: Counter::default(),
            rejections: Counter::default(),
            stalled: Counter::default(),
            level: Level::Calm,
            changed: None,
            below_since: None,
            pin: None,
            is_attack_mode: false,
            crowd: None,
            puzzles: PuzzleLevel::new(settings.puzzles),
            false_positives: FalsePositives::new(settings.false_positives),
            now: Monotime::default(),
        }
    }

    /// Other limits from now on. Samples that are known were measured against the old ones until they age out.
    pub fn set_settings(&mut self, settings: LoadSettings, now: Monotime) {
        self.advance(now);
        self.puzzles.set_settings(settings.puzzles);
        self.false_positives.set_settings(settings.false_positives);
        self.settings = settings;
        self.step();
    }

    /// Takes in what happened.
    pub fn handle(&mut self, event: Event, now: Monotime) {
        self.advance(now);
        match event {
            Event::Tor(reading) => self.tor(&reading),
            Event::Front(reading) => self.front(&reading),
            Event::CpuStalled(stalled) => {
                let ratio = busy(&mut self.stalled, stalled, FULL_STALL, self.now);
                self.sample(Input::CpuPressure, ratio);
            }
            Event::Pages(pages) => {
                let (level, _) = self.in_force();
                self.puzzles.count(pages, level, self.now);
            }
            Event::Holders(holders) => {
                let (level, _) = self.in_force();
                self.false_positives.count(holders, level, self.now);
            }
            Event::Pin { level, until } => self.pin = Some((level, until)),
            Event::Unpin => self.pin = None,
            Event::AttackMode(is_on) => self.is_attack_mode = is_on,
            Event::Crowd(most) => self.crowd = most,
        }
        self.step();
    }

    /// Does what time alone made due, in its order, however late it is asked. A time before the latest is taken for it.
    pub fn advance(&mut self, now: Monotime) {
        let now = now.max(self.now);
        while let Some(due) = self.next_deadline().filter(|due| *due <= now) {
            self.now = due;
            self.step();
        }
        self.now = now;
    }

    /// When [`Self::advance`] has something to do.
    pub fn next_deadline(&self) -> Option<Monotime> {
        let expiries = self.samples.iter().filter_map(|(_, samples)| samples.next_expiry());
        let pin = self.pin.and_then(|(_, until)| until);
        let change = match self.wish() {
            Wish::Rise(_) => self.changed.map(|changed| changed.after(self.settings.rise_dwell)),
            Wish::Fall => self.below_since.map(|since| since.after(self.settings.fall_dwell)),
            Wish::Stay => None,
        };
        expiries.chain(pin).chain(change).min()
    }

    /// What should be in force.
    pub fn desired(&self) -> Desired {
        let (level, word) = self.in_force();
        let puzzles = self.puzzles.desired(level);
        let ratio = self.covered(level);
        Desired {
            level,
            word,
            measured: self.level,
            load: Load { ratio, difficulty: puzzles.difficulty },
            asks_puzzles: ratio >= self.settings.activation,
            puzzles,
            front_share: level.front_share(),
            tightens_ports: level.tightens_ports(),
            relaxes_tokens: self.false_positives.desired(level),
            grounds: self.grounds(),
        }
    }

    fn tor(&mut self, reading: &TorReading) {
        if self.generation.is_some_and(|generation| reading.generation < generation) {
            return;
        }
        if self.generation != Some(reading.generation) {
            // What the earlier process did says nothing of this one.
            self.generation = Some(reading.generation);
            (self.cpu, self.rendezvous, self.rejections) = Default::default();
            for (input, samples) in &mut self.samples {
                if matches!(input.kind(), Kind::Tor | Kind::Introductions) {
                    samples.clear();
                }
            }
        }
        let (now, settings) = (self.now, self.settings);
        let cpu = reading.cpu.and_then(|cpu| busy(&mut self.cpu, cpu, FULL_CPU, now));
        self.sample(Input::TorCpu, cpu);
        let most = settings.most_rendezvous_per_second.get();
        let rate = reading.rendezvous.and_then(|count| rate(&mut self.rendezvous, count, most, now));
        self.sample(Input::Rendezvous, rate);
        let most = settings.most_rejections_per_second.get();
        let rate = reading.rejections.and_then(|count| self::rate(&mut self.rejections, count, most, now));
        self.sample(Input::Rejections, rate);
        let waiting = reading.puzzle_queue.and_then(|count| u64::try_from(count).ok());
        let most = settings.most_puzzle_queue.get();
        self.sample(Input::PuzzleQueue, waiting.map(|count| Ratio::share(count.into(), most.into())));
    }

    fn front(&mut self, reading: &FrontReading) {
        let FrontReading { active, most_active, challenged, queued, most_queued, wait, most_wait } = *reading;
        self.sample(Input::Queue, Some(Ratio::share(queued.into(), most_queued.into())));
        self.sample(Input::Wait, Some(Ratio::share(wait.as_nanos(), most_wait.as_nanos())));
        self.sample(Input::Connections, Some(Ratio::share(active.into(), most_active.into())));
        self.sample(Input::Challenged, Some(Ratio::share(challenged.into(), most_active.into())));
    }

    fn sample(&mut self, input: Input, ratio: Option<Ratio>) {
        let Some(ratio) = ratio else { return };
        for (_, samples) in self.samples.iter_mut().filter(|(of, _)| *of == input) {
            samples.add(ratio, self.now);
        }
    }

    /// Brings the state to `self.now`.
    fn step(&mut self) {
        let now = self.now;
        for (_, samples) in &mut self.samples {
            samples.expire(now);
        }
        if self.pin.and_then(|(_, until)| until).is_some_and(|until| until <= now) {
            self.pin = None;
        }
        match self.wish() {
            Wish::Rise(level) => {
                self.below_since = None;
                if self.changed.is_none_or(|changed| changed.after(self.settings.rise_dwell) <= now) {
                    self.level = level;
                    self.changed = Some(now);
                }
            }
            Wish::Fall => {
                let since = *self.below_since.get_or_insert(now);
                if since.after(self.settings.fall_dwell) <= now {
                    self.level = self.level.lower();
                    self.changed = Some(now);
                    // The next step down has its own time.
                    self.below_since = matches!(self.wish(), Wish::Fall).then_some(now);
                }
            }
            Wish::Stay => self.below_since = None,
        }
        self.false_positives.follow(self.in_force().0);
    }

    /// What the load asks of the measured level, whatever the time.
    fn wish(&self) -> Wish {
        let load = self.load();
        let mut levels = Level::ALL.into_iter().rev();
        match levels.find(|level| load >= self.settings.up(*level)) {
            Some(level) if level > self.level => Wish::Rise(level),
            _ if load < self.settings.down(self.level) => Wish::Fall,
            Some(_) | None => Wish::Stay,
        }
    }

    /// The load: 3. and 4. of the module's rules.
    fn load(&self) -> Ratio {
        let of = |kind| {
            let known = self.samples.iter().filter(|(input, _)| input.kind() == kind);
            known.filter_map(|(_, samples)| samples.median()).max().unwrap_or(Ratio::NONE)
        };
        let mut kinds = [of(Kind::Tor), of(Kind::Introductions), of(Kind::Front)];
        kinds.sort_unstable();
        let [_, second, highest] = kinds;
        let witness = second.max(of(Kind::Host));
        if witness >= self.settings.up(Level::Heavy) { highest } else { highest.min(below(Ratio::ALL)) }
    }

    fn grounds(&self) -> Vec<Ground> {
        let down = self.settings.down(self.level);
        let ground = |(input, samples): &(Input, Samples)| {
            let ratio = samples.median()?;
            let holds_level = self.level > Level::Calm && input.kind() != Kind::Host && ratio >= down;
            Some(Ground { input: *input, ratio, holds_level })
        };
        self.samples.iter().filter_map(ground).collect()
    }

    fn in_force(&self) -> (Level, Word) {
        let raised = self.raised();
        match self.pin {
            Some((level, until)) if level >= Level::Heavy || !self.is_attack_mode => {
                (level, Word::Operator { until })
            }
            Some(_) | None if self.is_attack_mode && raised < Level::Heavy => {
                (Level::Heavy, Word::AttackMode)
            }
            Some(_) | None if raised > self.level => (raised, Word::Crowd),
            Some(_) | None => (self.level, Word::Measured),
        }
    }

    /// The measured level, or the one above it where a crowd raises it so far.
    fn raised(&self) -> Level {
        let higher = self.level.higher().filter(|higher| self.crowd.is_some_and(|most| *higher <= most));
        higher.unwrap_or(self.level)
    }

    /// The load, brought into the level's own range.
    fn covered(&self, level: Level) -> Ratio {
        let most = level.higher().map_or(Ratio::ALL, |higher| below(self.settings.up(higher)));
        // Not `clamp`, which panics where levels are not apart.
        self.load().min(most).max(self.settings.up(level))
    }
}

/// What the load asks for.
enum Wish {
    Rise(Level),
    Fall,
    Stay,
}

/// The next lower ratio.
const fn below(ratio: Ratio) -> Ratio {
    ratio.less(Ratio::LEAST)
}

/// A counter of time spent, as a part of the time that is `full`.
fn busy(counter: &mut Counter, spent: Duration, full: Ratio, now: Monotime) -> Option<Ratio> {
    let (spent, elapsed) = counter.grew(u64::try_from(spent.as_nanos()).unwrap_or(u64::MAX), now)?;
    let whole = u128::from(Ratio::ALL.ten_thousandths());
    Some(Ratio::share(u128::from(spent) * whole, elapsed.as_nanos() * u128::from(full.ten_thousandths())))
}

/// A counter of events, as a part of `most` in a second.
fn rate(counter: &mut Counter, count: u64, most: u32, now: Monotime) -> Option<Ratio> {
    let (grew, elapsed) = counter.grew(count, now)?;
    Some(Ratio::share(u128::from(grew) * 1_000_000_000, elapsed.as_nanos() * u128::from(most)))
}
