//! The circuits of one shard: decisions, violations, bans, health.

use std::{collections::BTreeMap, num::NonZeroU32, time::Duration};

use super::{
    Action, Arrival, Decision, Hold, Lane, Ruling,
    admission::{Admitted, Ask, Denied, Place, Ticket, Want},
    record::{Home, PROMOTED, Record, SOLVED},
    settings::{CircuitSettings, Ratio},
    table::Table,
    window::{begin, tick, tick_from},
};
use crate::{
    id::{CircuitId, TorGeneration},
    refusal::{Class, Refusal, TcpAnswer},
    shadow::Shadows,
    time::Monotime,
};

mod bans;
mod judge;
mod upkeep;
mod view;

use judge::Finding;
pub use upkeep::MOST_DUE;
pub use view::CircuitFacts;

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
    /// Cut its connections where `why` is [`Refusal::CircuitRotated`], and else it carries none. Whoever hosts the service in this
    /// process closes it; any other tor is told as [`CircuitShard::closing`] says. Said once, and once more where it carried
    /// connections meanwhile.
    Close {
        /// Which.
        circuit: CircuitId,
        /// Why.
        why: Refusal,
    },
    /// Call [`super::Admission::release`], unless [`CircuitShard::uses`] says that the circuit took up the token again, and let nobody
    /// come between the two.
    ReleaseToken {
        /// Which token.
        ticket: Ticket,
        /// Whose.
        circuit: CircuitId,
    },
    /// Its circuit holds as many open connections as it may: call [`super::Admission::note_refused`].
    HolderRefused {
        /// Which token.
        ticket: Ticket,
    },
    /// Its circuit was banned or demoted: call [`super::Admission::revoke`], and [`CircuitShard::unbind`] for the circuits that
    /// it returns.
    RevokeToken {
        /// Which token.
        ticket: Ticket,
    },
}

/// The circuits of one shard, all of one tor process.
#[derive(Clone, Debug)]
pub struct CircuitShard {
    settings: CircuitSettings,
    shadows: Shadows,
    generation: TorGeneration,
    load: Load,
    /// The part of its limits that a circuit which has not paid may use.
    share: Ratio,
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
    /// What examinations found due for closing, by number. See [`Self::closing`].
    closing: BTreeMap<u32, Refusal>,
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
            shadows: Shadows::new(settings.shadows()),
            settings,
            generation,
            load,
            share: Ratio::ALL,
            table: Table::new(capacity),
            capacity,
            commands: Vec::new(),
            health_at,
            health_slot: 0,
            marking: 0,
            marked: 0,
            closing: BTreeMap::new(),
        }
    }

    /// Other limits from now on. The table keeps its size and bans in force their length.
    pub fn set_settings(&mut self, settings: CircuitSettings) {
        self.shadows.set_words(settings.shadows());
        self.settings = settings;
    }

    /// Another load from now on.
    pub const fn set_load(&mut self, load: Load) {
        self.load = load;
    }

    /// The part of its limits that a circuit which has not paid may use from now on: [`Ratio::ALL`] unless the load level says
    /// otherwise. Beyond it a stream is refused by [`Refusal::UnderLoad`], which is no violation.
    pub const fn set_share(&mut self, share: Ratio) {
        self.share = share;
    }

    /// Another tor process has begun: nothing of the old one's circuits is true any more. An older generation, or the
    /// same, changes nothing.
    pub fn begin(&mut self, generation: TorGeneration) {
        if generation > self.generation {
            self.generation = generation;
            self.table = Table::new(self.capacity);
            self.commands.clear();
            (self.health_slot, self.marking, self.marked) = (0, 0, 0);
            self.closing.clear();
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
        if let Some(ruling) = self.banned(&record, now) {
            return refused(ruling);
        }
        if is_new && self.table.is_full() && self.table.longest_unused().is_none() && self.table.banned() == 0
        {
            let retry_after = self.settings.retry_after(Refusal::TableFull);
            return refused(self.ruling(&record, Refusal::TableFull, retry_after, now));
        }
        record.recent_connections.add(record.touched);
        let is_vip = record.is_vip(record.touched);
        let acts = |word| self.shadows.acts(word, is_vip);
        let Finding { word, retry_after } =
            judge::connection(&record, &self.settings, self.load, self.share, acts);
        if word == Refusal::TooManyOpen
            && let Some(ticket) = record.ticket(record.touched)
        {
            self.commands.push(Command::HolderRefused { ticket });
        }
        let want = match word.tcp() {
            TcpAnswer::Served => Some(Want::Serve),
            TcpAnswer::Challenge => Some(Want::Challenge),
            TcpAnswer::Tarpit => Some(Want::Tarpit),
            TcpAnswer::Reset | TcpAnswer::Close => None,
        };
        // A violation may tip the circuit into a ban, which gives it no place.
        if self.offend(&mut record, word, now) {
            let ruling = self.banned(&record, now).unwrap_or_else(old_circuit);
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
                record.lose_token(denied.why);
                let is_banned = self.offend(&mut record, denied.why, now);
                let ruling = self.ruling(&record, denied.why, denied.retry_after, now);
                let ruling = if is_banned { self.banned(&record, now).unwrap_or(ruling) } else { ruling };
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
        if let Some(ruling) = self.banned(&record, now) {
            return ruling;
        }
        record.recent_requests.add(record.touched);
        record.requests = record.requests.saturating_add(1);
        let finding = match record.ticket(record.touched) {
            Some(ticket) => match token(ticket).inspect_err(|denied| record.lose_token(denied.why)) {
                Err(denied) if self.shadows.acts(denied.why, true) => {
                    Finding { word: denied.why, retry_after: denied.retry_after }
                }
                Ok(()) | Err(_) => {
                    let acts = |word| self.shadows.acts(word, true);
                    let used_up = judge::used_up(&record, &self.settings, acts);
                    used_up.unwrap_or(Finding { word: Refusal::Served, retry_after: Duration::ZERO })
                }
            },
            None => {
                let is_vip = record.is_vip(record.touched);
                let acts = |word| self.shadows.acts(word, is_vip);
                judge::request(&record, &self.settings, self.load, self.share, acts)
            }
        };
        let is_banned = self.offend(&mut record, finding.word, now);
        let ruling = self.ruling(&record, finding.word, finding.retry_after, now);
        let ruling = if is_banned { self.banned(&record, now).unwrap_or(ruling) } else { ruling };
        self.store_if_worth(record, is_new);
        ruling
    }

    /// A connection has ended.
    pub fn close(&mut self, hold: &Hold, now: Monotime) {
        if let Some(mut record) = self.known(hold.circuit, now).filter(|_| hold.is_open) {
            record.open = record.open.saturating_sub(1);
            self.store(record);
        }
    }

    /// What a circuit used since the last report. One that goes on beyond twice a budget is banned in the end: commands may
    /// come of it.
    pub fn report(&mut self, circuit: CircuitId, usage: Usage, now: Monotime) {
        let Some(mut record) = self.known(circuit, now) else { return };
        let (bytes, cpu) = (record.bytes(), record.cpu_nanoseconds.get());
        record.bytes_in.add(usage.bytes_in);
        record.bytes_out.add(usage.bytes_out);
        record.cpu_nanoseconds.add(usage.cpu_nanoseconds);
        // What a circuit uses that an operator promoted is not held against it once it is no VIP any more.
        let (bytes_now, is_judged) = (record.bytes(), !record.has(PROMOTED));
        if let Some(budget) = self.settings.bytes.filter(|_| is_judged) {
            record.bytes.add(budget, bytes, bytes_now);
        }
        if let Some(budget) = self.settings.cpu.filter(|_| is_judged) {
            record.cpu.add(budget, cpu, record.cpu_nanoseconds.get());
        }
        usage.latency.into_iter().for_each(|sample| record.note_latency(sample));
        // What is refused to new connections does not end those that are open; a ban does. Who has stopped offends no more.
        let over = judge::usage(&record, usage, &self.settings).filter(|_| !record.is_banned(record.touched));
        let is_vip = record.is_vip(record.touched);
        if let Some(word) = over.filter(|word| self.shadows.acts(*word, is_vip)) {
            self.offend(&mut record, word, now);
        }
        self.store(record);
    }

    // What a circuit is.

    /// It solved a puzzle. That lasts for as long as the circuit is remembered.
    pub fn pay(&mut self, circuit: CircuitId, now: Monotime) {
        self.change(circuit, now, |record| record.set(SOLVED, true));
    }

    /// It showed a token, good until `until`, for which [`super::Admission::present`] gave the ticket.
    pub fn bind(&mut self, circuit: CircuitId, ticket: Ticket, until: Monotime, now: Monotime) {
        self.release_token(circuit, ticket);
        self.change(circuit, now, |record| {
            record.ticket = ticket.number();
            record.ticket_until = tick_from(until);
        });
    }

    /// Operator: a VIP without a token, banned no longer.
    pub fn promote(&mut self, circuit: CircuitId, now: Monotime) {
        self.change(circuit, now, |record| {
            record.set(PROMOTED, true);
            lift(record);
        });
    }

    /// Operator: a VIP no longer, with or without a token. A ban stays. A token is revoked: otherwise the next request that shows
    /// it would make the circuit a VIP again.
    pub fn demote(&mut self, circuit: CircuitId, now: Monotime) {
        if let Some(mut record) = self.known(circuit, now) {
            if let Some(ticket) = Ticket::new(record.ticket) {
                self.commands.push(Command::RevokeToken { ticket });
            }
            (record.ticket, record.ticket_until) = (0, 0);
            record.set(PROMOTED, false);
            self.store(record);
        }
    }

    /// Whether it uses this token, in force or not.
    pub fn uses(&self, circuit: CircuitId, ticket: Ticket, now: Monotime) -> bool {
        self.known(circuit, now).is_some_and(|record| Ticket::new(record.ticket) == Some(ticket))
    }

    /// The token that a circuit uses.
    pub fn ticket(&self, circuit: CircuitId, now: Monotime) -> Option<Ticket> {
        let record = self.known(circuit, now)?;
        record.ticket(record.touched)
    }

    /// Another circuit wants its place at a token. Returns whether it uses the token no longer, because it carries no connection,
    /// or did not use it: then the caller, who lets nobody else come between, calls [`super::Admission::release`].
    pub fn yields(&mut self, circuit: CircuitId, ticket: Ticket, now: Monotime) -> bool {
        let Some(mut record) = self.known(circuit, now) else { return true };
        if Ticket::new(record.ticket) != Some(ticket) {
            return true;
        }
        if record.open > 0 {
            return false;
        }
        (record.ticket, record.ticket_until) = (0, 0);
        self.store(record);
        true
    }

    /// Its token counts no longer. What else it is stays.
    pub fn unbind(&mut self, circuit: CircuitId, now: Monotime) {
        if let Some(mut record) = self.known(circuit, now) {
            (record.ticket, record.ticket_until) = (0, 0);
            self.store(record);
        }
    }

    /// Tor has closed the circuit. It gives no number twice, so nothing need be remembered.
    pub fn forget(&mut self, circuit: CircuitId) {
        if circuit.generation() == self.generation
            && let Some(record) = self.table.remove(number(circuit))
        {
            self.released(&record);
        }
    }

    /// What a ban makes of a stream.
    fn banned(&self, record: &Record, now: Monotime) -> Option<Ruling> {
        let remaining = begin(record.banned_until).since(now);
        let decision = Decision::Banned { remaining };
        let acts = record.is_banned(record.touched) && !self.settings.is_bypassed;
        acts.then(|| Ruling::new(decision, Refusal::Banned, Lane::Suspect))
    }

    // The table.

    /// A copy of the circuit's record, moved on to `now`, and whether it is new; `None` for another tor process.
    fn load_record(&mut self, circuit: CircuitId, now: Monotime) -> Option<(Record, bool)> {
        self.begin(circuit.generation());
        if circuit.generation() != self.generation {
            return None;
        }
        if let Some(record) = self.known(circuit, now) {
            return Some((record, false));
        }
        self.forget(circuit);
        Some((Record::new(number(circuit), tick(now)), true))
    }

    fn known(&self, circuit: CircuitId, now: Monotime) -> Option<Record> {
        let mut record =
            *self.table.get(number(circuit)).filter(|_| circuit.generation() == self.generation)?;
        // Forgotten by now, only that others of its epoch stand before it.
        if !record.is_held() && record.banned_until == 0 && self.forget_at(&record) <= now {
            return None;
        }
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

    /// Gives back another token than this.
    fn release_token(&mut self, circuit: CircuitId, but: Ticket) {
        let record = self.table.get(number(circuit)).filter(|_| circuit.generation() == self.generation);
        if let Some(record) = record.copied().filter(|record| Ticket::new(record.ticket) != Some(but)) {
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
            Class::Global if word != Refusal::GlobalRate => Decision::CapacityExceeded { retry_after },
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
