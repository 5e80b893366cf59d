//! Violations, and the bans that they lead to.

use std::time::Duration;

use super::{
    super::{
        admission::Ticket,
        record::{BY_OPERATOR, PROMOTED, Record, TARPITTED},
        window::{begin, span, tick_from},
    },
    CircuitShard, Command, lift,
};
use crate::{id::CircuitId, refusal::Refusal, time::Monotime};

/// The span of the rule "connections in 10 s"; an offence after as much quiet is another one.
const OFFENCE: Duration = Duration::from_secs(10);
/// Requests that are denied within so long of a violation were under way already and are no further one.
const UNDER_WAY: Duration = Duration::from_secs(2);

/// Whether a limit meets many requests, or reports, of one burst.
const fn is_asked_in_bursts(why: Refusal) -> bool {
    matches!(why, Refusal::RequestRate | Refusal::VipRate | Refusal::ByteBudget | Refusal::CpuBudget)
}

impl CircuitShard {
    /// The front found a violation of its own, such as a header that trickles. Other words are only
    /// remembered as the last. Returns the
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

    /// Operator: banned from now on, for `length` or as the ladder says, and promoted no longer. Returns the length; `None` where
    /// the circuit is of another tor process. In a table full of circuits with open connections a new one is closed but not remembered.
    pub fn ban(&mut self, circuit: CircuitId, length: Option<Duration>, now: Monotime) -> Option<Duration> {
        let (mut record, _) = self.load_record(circuit, now)?;
        record.set(PROMOTED, false);
        let length = self.begin_ban(&mut record, length, None, now);
        self.store(record);
        Some(length)
    }

    /// A front before this one had banned the circuit on this rung of the ladder, counted from 1: its next ban is on the one above.
    /// Nothing where it is not remembered, or stands higher.
    pub fn remember_rung(&mut self, circuit: CircuitId, rung: u8, now: Monotime) {
        if let Some(mut record) = self.known(circuit, now) {
            record.rung = record.rung.max(rung);
            self.store(record);
        }
    }

    /// Operator: banned no longer. Its rung stays, and so does all else. Returns whether it was.
    pub fn unban(&mut self, circuit: CircuitId, now: Monotime) -> bool {
        let Some(mut record) = self.known(circuit, now) else { return false };
        let was_banned = record.is_banned(record.touched);
        lift(&mut record);
        self.store(record);
        was_banned
    }

    /// Counts a violation, if it is one. Returns whether the circuit is banned for it.
    pub(super) fn offend(&mut self, record: &mut Record, why: Refusal, now: Monotime) -> bool {
        record.note(why);
        if !why.is_violation() || self.settings.is_bypassed {
            return false;
        }
        let quiet = span(record.touched.saturating_sub(record.last_violation));
        let is_under_way = record.violations > 0 && quiet < UNDER_WAY;
        if is_asked_in_bursts(why) && is_under_way {
            return false;
        }
        let is_tarpit = why == Refusal::ConnectionRate;
        let is_repeat = is_tarpit && record.has(TARPITTED) && quiet >= OFFENCE;
        record.set(TARPITTED, is_tarpit || record.has(TARPITTED));
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
        let length = length.unwrap_or(by_ladder);
        record.rung = u8::try_from(rung).unwrap_or(u8::MAX);
        record.last_ban = record.touched;
        // At least to the end of this tick, also with no length.
        record.banned_until = tick_from(now.after(length)).max(record.touched.saturating_add(1));
        record.violations = 0;
        record.set(BY_OPERATOR, why.is_none());
        if let Some(circuit) = self.id(record.number) {
            self.commands.push(Command::Ban { circuit, length, why });
        }
        if let Some(ticket) = Ticket::new(record.ticket) {
            self.commands.push(Command::RevokeToken { ticket });
            (record.ticket, record.ticket_until) = (0, 0);
        }
        length
    }
}
