//! What time does to circuits: bans end, the unused are forgotten, health is examined.

use std::{num::NonZeroU32, time::Duration};

use super::{
    super::{
        record::{MARKED, Record},
        window::{begin, tick},
    },
    CircuitShard, Command, lift,
};
use crate::{id::CircuitId, refusal::Refusal, time::Monotime};

/// Most circuits that one call of [`CircuitShard::advance`] looks at for each purpose, so that it holds the shard's lock
/// for a bounded time.
const SLICE: u32 = 1_024;
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

    fn forget_at(&self, record: &Record) -> Monotime {
        begin(record.touched).after(self.settings.reputation_life)
    }

    fn examine(&mut self, now: Monotime) {
        let Self { settings, generation, table, commands, marking, .. } = self;
        let (records, has_more) = table.slice_mut(self.health_slot, SLICE);
        for record in records {
            record.set(MARKED, false);
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
                record.set(MARKED, true);
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
}
