//! What time does to circuits: bans end, the unused are forgotten, health is examined.

use std::{num::NonZeroU32, time::Duration};

use super::{
    super::{
        record::{CUT, MARKED, Record, SLOW},
        settings::CircuitSettings,
        window::{begin, tick},
    },
    CircuitShard, Command, lift, number,
};
use crate::{id::CircuitId, refusal::Refusal, time::Monotime};

/// Most circuits that one call of [`CircuitShard::advance`] looks at for each purpose, so that it holds the shard's lock
/// for a bounded time.
const SLICE: u32 = 1_024;
/// Circuits of one shard that are known at a time to be due for closing: five bytes each, in nodes of a B-tree that are at
/// least 5/11 full, so less than 64 KiB in all.
pub const MOST_DUE: usize = 4_096;

impl CircuitShard {
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
            let Some(unused) = self.table.longest_unused().copied() else { break };
            if self.forget_at(&unused) > now {
                break;
            }
            self.table.remove(unused.number).into_iter().for_each(|record| self.released(&record));
        }
        if self.health_at <= now {
            self.examine(now);
        }
        self.take_commands()
    }

    /// When [`Self::advance`] has something to do.
    pub fn next_deadline(&self) -> Monotime {
        let unban = self.table.first_ban().map(|record| begin(record.banned_until));
        let forget = self.table.firsts().map(|record| self.forget_at(record));
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

    pub(super) fn forget_at(&self, record: &Record) -> Monotime {
        begin(record.touched).after(self.settings.reputation_life)
    }

    /// Circuits that are to be closed at tor, the oldest first, and for what: they carry no connection, or outlived
    /// [`CircuitSettings::rotate_hard_after`]. At most [`MOST_DUE`] are known at a time; of others the next examination
    /// tells.
    pub fn closing(&mut self) -> impl Iterator<Item = (CircuitId, Refusal)> {
        self.look_over_closing();
        self.closing.iter().filter_map(|(number, why)| Some((self.id(*number)?, *why)))
    }

    /// Tor has no such circuit. It is forgotten, unless it is banned, or carries connections that do not know yet.
    pub fn ended(&mut self, circuit: CircuitId) {
        let record = self.table.get(number(circuit));
        if record.is_some_and(|record| record.open == 0 && record.banned_until == 0) {
            self.forget(circuit);
        }
    }

    /// Who carries connections again, is banned or is forgotten is not closed for its age.
    fn look_over_closing(&mut self) {
        let Self { closing, table, .. } = self;
        closing.retain(|number, why| table.get(*number).is_some_and(|record| is_closed_for(record, *why)));
    }

    fn examine(&mut self, now: Monotime) {
        if self.health_slot == 0 {
            self.look_over_closing();
        }
        let Self { settings, generation, table, commands, marking, closing, .. } = self;
        let (records, has_more) = table.slice_mut(self.health_slot, SLICE);
        for record in records {
            record.set(MARKED, false);
            let Some(why) = unwanted(record, settings, now) else { continue };
            // A ban has closed it already.
            let Some(number) = NonZeroU32::new(record.number).filter(|_| record.banned_until == 0) else {
                continue;
            };
            let is_hard = why == Refusal::CircuitRotated;
            // Where nobody can close it, its later connections are left alone.
            let is_cut = is_hard && record.has(CUT);
            if record.open > 0 && (!is_hard || is_cut) {
                record.set(MARKED, true);
                record.set(SLOW, why == Refusal::CircuitSlow);
                *marking += 1;
            }
            if !is_closed_for(record, why) {
                continue;
            }
            record.set(CUT, is_hard);
            let is_known = closing.get(&record.number) == Some(&why);
            if is_known || closing.len() < MOST_DUE {
                closing.insert(record.number, why);
            }
            let is_new = if is_hard { !is_cut } else { !is_known };
            if is_new {
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
}

/// Why the circuit should not live on.
fn unwanted(record: &Record, settings: &CircuitSettings, now: Monotime) -> Option<Refusal> {
    let age = now.since(begin(record.first_seen));
    let latency = Duration::from_micros(record.latency_microseconds.into());
    if settings.rotate_hard_after.is_some_and(|limit| age > limit) {
        Some(Refusal::CircuitRotated)
    } else if age > settings.max_circuit_age {
        Some(Refusal::CircuitAged)
    } else if latency > settings.max_circuit_latency {
        Some(Refusal::CircuitSlow)
    } else {
        None
    }
}

/// Whether a circuit that should not live on for this reason may be closed now.
fn is_closed_for(record: &Record, why: Refusal) -> bool {
    record.banned_until == 0 && (record.open == 0 || why == Refusal::CircuitRotated)
}
