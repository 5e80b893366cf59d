//! The circuits of one shard: decisions, violations, bans, health.

use std::{num::NonZeroU32, time::Duration};

use super::{
    Action, Arrival, Decision, Hold, Lane, Ruling,
    admission::{Admitted, Ask, Denied, Place, Ticket, Want},
    record::{Home, Record},
    settings::{CircuitSettings, Ratio},
    statistics::ShardCounts,
    table::Table,
    window::{begin, span, tick, tick_from},
};
use crate::{
    id::{CircuitId, TorGeneration},
    refusal::{Class, Refusal, TcpAnswer},
    time::Monotime,
};

mod judge;

use judge::Finding;

/// Most circuits that one call of [`CircuitShard::advance`] looks at for each purpose, so that it holds the shard's lock
/// for a bounded time.
const SLICE: u32 = 1_024;
/// The span of the rule "connections in 10 s"; an offence after as much quiet is another one.
const OFFENCE: Duration = Duration::from_secs(10);
/// Requests that are denied within so long of a violation were under way already and are no further one.
const UNDER_WAY: Duration = Duration::from_secs(2);

/// What the load level machine says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// The load, against `pow_activation_threshold`.
    pub ratio: Ratio,
    /// Leading zero bits of a puzzle.
    pub difficulty: u8,
}

/// What a circuit used since the last report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes that the client sent.
    pub bytes_in: u64,
    /// Bytes that the client got.
    pub bytes_out: u64,
    /// CPU time of the front.
    pub cpu_nanoseconds: u64,
    /// A measured latency.
    pub latency: Option<Duration>,
}

/// What is known of one circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CircuitFacts {
    /// Its lane.
    pub lane: Lane,
    /// How long it stays banned; `None` where it is not.
    pub banned_for: Option<Duration>,
    /// The rung of its last ban; 0 without one.
    pub rung: u8,
    /// Violations that count.
    pub violations: u8,
    /// Whether it solved a puzzle, has a token in force or was promoted.
    pub has_paid: bool,
    /// Open connections, without those in the tarpit.
    pub open: u16,
    /// Connections admitted in the last 60 s.
    pub connections_per_minute: u32,
    /// Requests in the last 10 s.
    pub requests_per_10_seconds: u32,
    /// Since it was first seen here.
    pub age: Duration,
    /// Whether it was past its age or latency, with connections, when it was last examined.
    pub is_marked: bool,
    /// Everything it used so far, and its average latency.
    pub usage: Usage,
    /// All its requests.
    pub requests: u32,
}

/// What the front or the daemon must do about a circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// A ban began: reset its connections, and ask tor to close it.
    Ban {
        /// Which.
        circuit: CircuitId,
        /// For how long.
        length: Duration,
        /// For what; `None`: the operator's word.
        why: Option<Refusal>,
    },
    /// Ask tor to close it. Repeated at each examination for as long as the reason lasts.
    Close {
        /// Which.
        circuit: CircuitId,
        /// Why.
        why: Refusal,
    },
    /// Call [`super::Admission::release`].
    ReleaseToken {
        /// Which token.
        ticket: Ticket,
        /// Whose.
        circuit: CircuitId,
    },
    /// Its circuit was banned: call [`super::Admission::revoke`], and demote the circuits that it returns.
    RevokeToken {
        /// Which token.
        ticket: Ticket,
    },
}

/// The circuits of one shard, all of one tor process.
#[derive(Clone, Debug)]
pub struct CircuitShard {
    settings: CircuitSettings,
    generation: TorGeneration,
    load: Load,
    table: Table,
    capacity: u32,
    commands: Vec<Command>,
    /// When the next examination begins, or began.
    health_at: Monotime,
    /// The first slot that the examination has not looked at.
    health_slot: u32,
    /// Marked so far in this examination, and in the last whole one.
    marking: u32,
    marked: u32,
}

impl CircuitShard {
    /// One of `shards` equal parts, knowing nothing yet. Its share of `table_size` is rounded up.
    pub fn new(
        settings: CircuitSettings,
        shards: NonZeroU32,
        generation: TorGeneration,
        now: Monotime,
    ) -> Self {
        let capacity = settings.table_size.get().div_ceil(shards.get());
        let health_at = now.after(settings.health_interval);
        let load = Load { ratio: Ratio::NONE, difficulty: settings.pow_difficulty };
        Self {
            settings,
            generation,
            load,
            table: Table::new(capacity),
            capacity,
            commands: Vec::new(),
            health_at,
            health_slot: 0,
            marking: 0,
            marked: 0,
        }
    }

    /// Other limits from now on. The table keeps its size and bans in force their length.
    pub fn set_settings(&mut self, settings: CircuitSettings) {
        self.settings = settings;
    }

    /// Another load from now on.
    pub const fn set_load(&mut self, load: Load) {
        self.load = load;
    }

    /// Another tor process has begun: nothing of the old one's circuits is true any more. An older generation, or the
    /// same, changes nothing.
    pub fn begin(&mut self, generation: TorGeneration) {
        if generation > self.generation {
            self.generation = generation;
            self.table = Table::new(self.capacity);
            self.commands.clear();
            (self.health_slot, self.marking, self.marked) = (0, 0, 0);
        }
    }

    // Decisions.

    /// A new connection. `global` is called at most once, with what to ask [`super::Admission::admit`].
    pub fn connect(
        &mut self,
        circuit: CircuitId,
        now: Monotime,
        global: impl FnOnce(Ask) -> Result<Admitted, Denied>,
    ) -> Arrival {
        let Some((mut record, is_new)) = self.load_record(circuit, now) else {
            return refused(old_circuit());
        };
        if let Some(ruling) = banned(&record, now) {
            return refused(ruling);
        }
        if is_new && self.table.is_full() && self.table.longest_unused().is_none() && self.table.banned() == 0
        {
            return refused(self.ruling(&record, Refusal::TableFull, Duration::ZERO, now));
        }
        record.recent_connections.add(record.touched);
        let Finding { word, retry_after } = judge::connection(&record, &self.settings, self.load);
        let want = match word.tcp() {
            TcpAnswer::Served => Some(Want::Serve),
            TcpAnswer::Challenge => Some(Want::Challenge),
            TcpAnswer::Tarpit => Some(Want::Tarpit),
            TcpAnswer::Reset | TcpAnswer::Close => None,
        };
        // A violation may tip the circuit into a ban, which gives it no place.
        if self.offend(&mut record, word, now) {
            let ruling = banned(&record, now).unwrap_or_else(old_circuit);
            self.store(record);
            return refused(ruling);
        }
        let mut ruling = self.ruling(&record, word, retry_after, now);
        let Some(want) = want else {
            self.store_if_worth(record, is_new);
            return refused(ruling);
        };
        let ticket = record.ticket(record.touched);
        let is_paid = record.has_paid(record.touched);
        match global(Ask { want, lane: ruling.lane, is_paid, ticket }) {
            Ok(admitted) => {
                let is_open = admitted.place != Place::Tarpit;
                if is_open {
                    record.open = record.open.saturating_add(1);
                    record.minute.add(record.touched);
                }
                if admitted.place == Place::Waiting {
                    ruling.action = Action::Queue;
                }
                self.store(record);
                let hold = Hold { circuit, serial: admitted.serial, is_open };
                Arrival { ruling, hold: Some(hold), ends: admitted.ends }
            }
            Err(denied) => {
                let is_banned = self.offend(&mut record, denied.why, now);
                let ruling = self.ruling(&record, denied.why, denied.retry_after, now);
                let ruling = if is_banned { banned(&record, now).unwrap_or(ruling) } else { ruling };
                self.store_if_worth(record, is_new);
                refused(ruling)
            }
        }
    }

    /// An HTTP request. `token` is called at most once, to ask [`super::Admission::request`].
    pub fn request(
        &mut self,
        circuit: CircuitId,
        now: Monotime,
        token: impl FnOnce(Ticket) -> Result<(), Denied>,
    ) -> Ruling {
        let Some((mut record, is_new)) = self.load_record(circuit, now) else { return old_circuit() };
        if let Some(ruling) = banned(&record, now) {
            return ruling;
        }
        record.recent_requests.add(record.touched);
        record.requests = record.requests.saturating_add(1);
        let finding = match record.ticket(record.touched) {
            Some(ticket) => match token(ticket) {
                Ok(()) => Finding { word: Refusal::Served, retry_after: Duration::ZERO },
                Err(denied) => Finding { word: denied.why, retry_after: denied.retry_after },
            },
            None => judge::request(&record, &self.settings, self.load),
        };
        let is_banned = self.offend(&mut record, finding.word, now);
        let ruling = self.ruling(&record, finding.word, finding.retry_after, now);
        let ruling = if is_banned { banned(&record, now).unwrap_or(ruling) } else { ruling };
        self.store_if_worth(record, is_new);
        ruling
    }

    /// The front found a violation of its own, such as a header that trickles. Other words change nothing. Returns the
    /// ban's length where it led to one.
    pub fn violation(&mut self, circuit: CircuitId, why: Refusal, now: Monotime) -> Option<Duration> {
        let (mut record, is_new) = self.load_record(circuit, now)?;
        if record.is_banned(record.touched) {
            return None;
        }
        let is_banned = self.offend(&mut record, why, now);
        self.store_if_worth(record, is_new);
        is_banned.then(|| begin(record.banned_until).since(now))
    }

    /// A connection has ended.
    pub fn close(&mut self, hold: &Hold, now: Monotime) {
        if let Some(mut record) = self.known(hold.circuit, now).filter(|_| hold.is_open) {
            record.open = record.open.saturating_sub(1);
            self.store(record);
        }
    }

    /// What a circuit used since the last report.
    pub fn report(&mut self, circuit: CircuitId, usage: Usage, now: Monotime) {
        let Some(mut record) = self.known(circuit, now) else { return };
        record.bytes_in = record.bytes_in.saturating_add(usage.bytes_in);
        record.bytes_out = record.bytes_out.saturating_add(usage.bytes_out);
        record.cpu_nanoseconds = record.cpu_nanoseconds.saturating_add(usage.cpu_nanoseconds);
        usage.latency.into_iter().for_each(|sample| record.note_latency(sample));
        self.store(record);
    }

    // What a circuit is.

    /// It solved a puzzle. That lasts for as long as the circuit is remembered.
    pub fn pay(&mut self, circuit: CircuitId, now: Monotime) {
        self.change(circuit, now, |record| record.has_solved = true);
    }

    /// It showed a token, good until `until`, for which [`super::Admission::present`] gave the ticket.
    pub fn bind(&mut self, circuit: CircuitId, ticket: Ticket, until: Monotime, now: Monotime) {
        self.release_token(circuit, Some(ticket));
        self.change(circuit, now, |record| {
            record.ticket = ticket.number();
            record.ticket_until = tick_from(until);
        });
    }

    /// Operator: a VIP without a token, banned no longer.
    pub fn promote(&mut self, circuit: CircuitId, now: Monotime) {
        self.change(circuit, now, |record| {
            record.is_promoted = true;
            lift(record);
        });
    }

    /// Operator: a VIP no longer, with or without a token. A ban stays.
    pub fn demote(&mut self, circuit: CircuitId, now: Monotime) {
        self.release_token(circuit, None);
        if let Some(mut record) = self.known(circuit, now) {
            (record.is_promoted, record.ticket, record.ticket_until) = (false, 0, 0);
            self.store(record);
        }
    }

    /// Operator: banned from now on, for `length` or as the ladder says. Returns the length; `None` where the circuit is
    /// of another tor process.
    pub fn ban(&mut self, circuit: CircuitId, length: Option<Duration>, now: Monotime) -> Option<Duration> {
        let (mut record, _) = self.load_record(circuit, now)?;
        let length = self.begin_ban(&mut record, length, None, now);
        self.store(record);
        Some(length)
    }

    /// Operator: banned no longer. Its rung stays. Returns whether it was.
    pub fn unban(&mut self, circuit: CircuitId, now: Monotime) -> bool {
        let Some(mut record) = self.known(circuit, now) else { return false };
        let was_banned = record.is_banned(record.touched);
        lift(&mut record);
        self.store(record);
        was_banned
    }

    /// Tor has closed the circuit. It gives no number twice, so nothing need be remembered.
    pub fn forget(&mut self, circuit: CircuitId) {
        if circuit.generation() == self.generation
            && let Some(record) = self.table.remove(number(circuit))
        {
            self.released(&record);
        }
    }

    // Views.

    /// What is known of a circuit.
    pub fn look(&self, circuit: CircuitId, now: Monotime) -> Option<CircuitFacts> {
        let mut record =
            *self.table.get(number(circuit)).filter(|_| circuit.generation() == self.generation)?;
        record.turn(tick(now), self.settings.reputation_life);
        Some(CircuitFacts {
            lane: judge::lane(&record),
            banned_for: record.is_banned(record.touched).then(|| begin(record.banned_until).since(now)),
            rung: record.rung,
            violations: record.violations,
            has_paid: record.has_paid(record.touched),
            open: record.open,
            connections_per_minute: record.minute.sum(),
            requests_per_10_seconds: record.recent_requests.sum(),
            age: now.since(begin(record.first_seen)),
            is_marked: record.is_marked,
            usage: Usage {
                bytes_in: record.bytes_in,
                bytes_out: record.bytes_out,
                cpu_nanoseconds: record.cpu_nanoseconds,
                latency: (record.latency_microseconds > 0)
                    .then(|| Duration::from_micros(record.latency_microseconds.into())),
            },
            requests: record.requests,
        })
    }

    /// Every ban and when it ends, in no order: what gate, HAProxy and tor should have in force.
    pub fn bans(&self) -> impl Iterator<Item = (CircuitId, Monotime)> {
        self.table.bans().filter_map(|record| Some((self.id(record.number)?, begin(record.banned_until))))
    }

    /// How many circuits there are.
    pub fn counts(&self) -> ShardCounts {
        ShardCounts { tracked: self.table.len(), banned: self.table.banned(), marked: self.marked }
    }

    // Time.

    /// Ends bans, forgets circuits, examines their health, each for a bounded number of circuits: [`Self::next_deadline`]
    /// is in the past while more is to be done. Returns everything to be done since the last call.
    pub fn advance(&mut self, now: Monotime) -> Vec<Command> {
        let at = tick(now);
        for _ in 0..SLICE {
            let Some(mut record) = self.table.first_ban().copied().filter(|record| !record.is_banned(at))
            else {
                break;
            };
            record.turn(at, self.settings.reputation_life);
            lift(&mut record);
            self.store(record);
        }
        for _ in 0..SLICE {
            let unused = self.table.longest_unused();
            let Some(number) =
                unused.filter(|record| self.forget_at(record) <= now).map(|record| record.number)
            else {
                break;
            };
            self.table.remove(number).into_iter().for_each(|record| self.released(&record));
        }
        if self.health_at <= now {
            self.examine(now);
        }
        self.take_commands()
    }

    /// When [`Self::advance`] has something to do.
    pub fn next_deadline(&self) -> Monotime {
        let unban = self.table.first_ban().map(|record| begin(record.banned_until));
        let forget = self.table.longest_unused().map(|record| self.forget_at(record));
        unban.into_iter().chain(forget).fold(self.health_at, Monotime::min)
    }

    /// What is to be done since the last call. Whoever calls decisions for long without [`Self::advance`] asks here.
    pub fn take_commands(&mut self) -> Vec<Command> {
        std::mem::take(&mut self.commands)
    }

    /// Whether [`Self::take_commands`] has anything.
    pub const fn has_commands(&self) -> bool {
        !self.commands.is_empty()
    }

    fn forget_at(&self, record: &Record) -> Monotime {
        begin(record.touched).after(self.settings.reputation_life)
    }

    fn examine(&mut self, now: Monotime) {
        let Self { settings, generation, table, commands, marking, .. } = self;
        let (records, has_more) = table.slice_mut(self.health_slot, SLICE);
        for record in records {
            record.is_marked = false;
            let age = now.since(begin(record.first_seen));
            let latency = Duration::from_micros(record.latency_microseconds.into());
            let must_rotate = settings.rotate_hard_after.is_some_and(|limit| age > limit);
            let why = if must_rotate {
                Refusal::CircuitRotated
            } else if age > settings.max_circuit_age {
                Refusal::CircuitAged
            } else if latency > settings.max_circuit_latency {
                Refusal::CircuitSlow
            } else {
                continue;
            };
            // A ban has closed it already.
            if record.banned_until > 0 {
                continue;
            }
            if record.open > 0 && !must_rotate {
                record.is_marked = true;
                *marking += 1;
            } else if let Some(number) = NonZeroU32::new(record.number) {
                commands.push(Command::Close { circuit: CircuitId::new(*generation, number), why });
            }
        }
        if has_more {
            self.health_slot += SLICE;
        } else {
            self.marked = std::mem::take(&mut self.marking);
            self.health_slot = 0;
            self.health_at = now.after(self.settings.health_interval);
        }
    }

    // Violations and bans.

    /// Counts a violation, if it is one. Returns whether the circuit is banned for it.
    fn offend(&mut self, record: &mut Record, why: Refusal, now: Monotime) -> bool {
        if !why.is_violation() {
            return false;
        }
        let quiet = span(record.touched.saturating_sub(record.last_violation));
        let is_under_way = record.violations > 0 && quiet < UNDER_WAY;
        if matches!(why, Refusal::RequestRate | Refusal::VipRate) && is_under_way {
            return false;
        }
        let is_tarpit = why == Refusal::ConnectionRate;
        let is_repeat = is_tarpit && record.was_tarpitted && quiet >= OFFENCE;
        record.was_tarpitted |= is_tarpit;
        record.violations = record.violations.saturating_add(1);
        record.last_violation = record.touched;
        if is_repeat || record.violations >= self.settings.ban_threshold.get() {
            self.begin_ban(record, None, Some(why), now);
            return true;
        }
        false
    }

    fn begin_ban(
        &mut self,
        record: &mut Record,
        length: Option<Duration>,
        why: Option<Refusal>,
        now: Monotime,
    ) -> Duration {
        let elapsed = span(record.touched.saturating_sub(record.last_ban));
        let rung = self.settings.ladder.climb_after(record.rung.into(), elapsed);
        let later = self.settings.ladder.length(rung).max(self.settings.ban_duration);
        let by_ladder = if rung <= 1 { self.settings.ban_duration } else { later };
        // Under one tick there is no ban.
        let length = length.unwrap_or(by_ladder).max(span(1));
        record.rung = u8::try_from(rung).unwrap_or(u8::MAX);
        record.last_ban = record.touched;
        record.banned_until = tick_from(now.after(length)).max(record.touched.saturating_add(1));
        record.violations = 0;
        if let Some(circuit) = self.id(record.number) {
            self.commands.push(Command::Ban { circuit, length, why });
        }
        if let Some(ticket) = Ticket::new(record.ticket) {
            self.commands.push(Command::RevokeToken { ticket });
            (record.ticket, record.ticket_until) = (0, 0);
        }
        length
    }

    // The table.

    /// A copy of the circuit's record, moved on to `now`, and whether it is new; `None` for another tor process.
    fn load_record(&mut self, circuit: CircuitId, now: Monotime) -> Option<(Record, bool)> {
        self.begin(circuit.generation());
        if circuit.generation() != self.generation {
            return None;
        }
        Some(match self.known(circuit, now) {
            Some(record) => (record, false),
            None => (Record::new(number(circuit), tick(now)), true),
        })
    }

    fn known(&self, circuit: CircuitId, now: Monotime) -> Option<Record> {
        let mut record =
            *self.table.get(number(circuit)).filter(|_| circuit.generation() == self.generation)?;
        record.turn(tick(now), self.settings.reputation_life);
        if !record.is_banned(record.touched) {
            lift(&mut record);
        }
        Some(record)
    }

    fn change(&mut self, circuit: CircuitId, now: Monotime, change: impl FnOnce(&mut Record)) {
        if let Some((mut record, _)) = self.load_record(circuit, now) {
            change(&mut record);
            self.store(record);
        }
    }

    /// Writes a record; a new one may push out another. Where only circuits with connections are left to push out,
    /// nothing is remembered of the new one.
    fn store(&mut self, record: Record) {
        if let Ok(Some(evicted)) = self.table.put(record) {
            self.released(&evicted);
        }
    }

    /// As [`Self::store`], but a refused newcomer without a violation pushes nobody out.
    fn store_if_worth(&mut self, record: Record, is_new: bool) {
        if !is_new || !self.table.is_full() || record.home() > Home::Passing {
            self.store(record);
        }
    }

    fn release_token(&mut self, circuit: CircuitId, but: Option<Ticket>) {
        let record = self.table.get(number(circuit)).filter(|_| circuit.generation() == self.generation);
        if let Some(record) = record.copied().filter(|record| Ticket::new(record.ticket) != but) {
            self.released(&record);
        }
    }

    fn released(&mut self, record: &Record) {
        if let (Some(ticket), Some(circuit)) = (Ticket::new(record.ticket), self.id(record.number)) {
            self.commands.push(Command::ReleaseToken { ticket, circuit });
        }
    }

    fn id(&self, number: u32) -> Option<CircuitId> {
        NonZeroU32::new(number).map(|number| CircuitId::new(self.generation, number))
    }

    fn ruling(&self, record: &Record, word: Refusal, retry_after: Duration, now: Monotime) -> Ruling {
        let decision = match word.class() {
            Class::Pass => Decision::Allow,
            Class::Ban => Decision::Banned { remaining: begin(record.banned_until).since(now) },
            Class::Puzzle if word == Refusal::PuzzleRequired => {
                Decision::RequirePow { difficulty: self.load.difficulty }
            }
            Class::Global if word != Refusal::GlobalRate => Decision::CapacityExceeded,
            Class::Circuit | Class::Global | Class::Puzzle | Class::Protocol => {
                Decision::RateLimited { retry_after }
            }
            Class::Slow | Class::Backend | Class::Ours => Decision::RateLimited { retry_after },
        };
        let lane = judge::lane(record);
        let lane = if word == Refusal::SlowLane { Lane::Suspect } else { lane };
        Ruling::new(decision, word, lane)
    }
}

fn refused(ruling: Ruling) -> Arrival {
    Arrival { ruling, hold: None, ends: None }
}

fn banned(record: &Record, now: Monotime) -> Option<Ruling> {
    let remaining = begin(record.banned_until).since(now);
    let decision = Decision::Banned { remaining };
    record.is_banned(record.touched).then(|| Ruling::new(decision, Refusal::Banned, Lane::Suspect))
}

/// Nothing will ever come of it: its tor process is gone.
const fn old_circuit() -> Ruling {
    Ruling::new(Decision::RateLimited { retry_after: Duration::ZERO }, Refusal::OldCircuit, Lane::Suspect)
}

const fn lift(record: &mut Record) {
    record.banned_until = 0;
}

const fn number(circuit: CircuitId) -> u32 {
    circuit.number_for_this_node().get()
}
