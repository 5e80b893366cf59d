//! What is remembered of one circuit.

use std::time::Duration;

use super::{
    admission::Ticket,
    budget::Debt,
    window::{Ring, ticks},
};
use crate::refusal::{Class, Refusal};

/// New connections of a circuit, over 60 s.
pub(super) type MinuteRing = Ring<u8, 11, 60>;
/// Attempts of a circuit to connect, over 10 s.
pub(super) type ConnectRing = Ring<u8, 6, 20>;
/// Requests of a circuit, over 10 s.
pub(super) type RequestRing = Ring<u16, 6, 20>;

/// A sign of [`Record::signs`]: past its age or latency, with connections, when it was last examined.
pub(super) const MARKED: u8 = 1;
/// Another: its last ban was an operator's word.
pub(super) const BY_OPERATOR: u8 = 2;
/// Another, which is the table's alone: it stands in no list.
pub(super) const APART: u8 = 4;
/// Another, beside [`MARKED`]: for its latency.
pub(super) const SLOW: u8 = 8;
/// Another: its connections were cut for its age.
pub(super) const CUT: u8 = 16;

/// Another: it solved a puzzle.
pub(super) const SOLVED: u8 = 32;
/// Another: it is a VIP by an operator's word.
pub(super) const PROMOTED: u8 = 64;
/// Another: it was tarpitted since its violations began.
pub(super) const TARPITTED: u8 = 128;

/// One circuit. Plain data without links, so that a decision works on a copy and writes it back, or does not. Three halves of a
/// cache line, and aligned to one half, so that none lies in more than two lines.
#[derive(Clone, Copy, Debug)]
#[repr(align(32))]
pub(super) struct Record {
    pub(super) bytes_in: Total,
    pub(super) bytes_out: Total,
    pub(super) cpu_nanoseconds: Total,
    /// The circuit's number; 0 in a free slot.
    pub(super) number: u32,
    /// The tick of the last use, to which the rings are turned.
    pub(super) touched: u32,
    pub(super) first_seen: u32,
    /// The first tick after the ban; 0 without one.
    pub(super) banned_until: u32,
    pub(super) last_ban: u32,
    pub(super) last_violation: u32,
    /// Number of the token's [`Ticket`]; 0 without one.
    pub(super) ticket: u32,
    /// The first tick at which the token has expired.
    pub(super) ticket_until: u32,
    pub(super) requests: u32,
    /// Moving average; 0 until something was measured.
    pub(super) latency_microseconds: u32,
    pub(super) recent_requests: RequestRing,
    pub(super) open: u16,
    pub(super) minute: MinuteRing,
    pub(super) recent_connections: ConnectRing,
    pub(super) violations: u8,
    /// The rung of the last ban, counted from 1; 0 without one.
    pub(super) rung: u8,
    pub(super) bytes: Debt,
    pub(super) cpu: Debt,
    /// Some of [`MARKED`], [`BY_OPERATOR`], [`APART`], [`SLOW`], [`CUT`], [`SOLVED`], [`PROMOTED`] and [`TARPITTED`].
    pub(super) signs: u8,
    /// What was last refused: 1 and its place in [`Refusal::ALL`]; 0: nothing.
    pub(super) refusal: u8,
}

const _: () = assert!(size_of::<Record>() == 96, "a record in three cache lines costs a decision the third");
const _: () = assert!(Refusal::ALL.len() < u8::MAX as usize, "a record has one byte for the last word");

/// What a circuit has used in all its life, in 48 bits: of bytes 256 TiB, of nanoseconds three days. It stays at its maximum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Total {
    low: u16,
    middle: u16,
    high: u16,
}

impl Total {
    const MAX: u64 = (1 << 48) - 1;

    pub(super) const fn get(self) -> u64 {
        (self.high as u64) << 32 | (self.middle as u64) << 16 | self.low as u64
    }

    pub(super) fn add(&mut self, more: u64) {
        let sum = self.get().saturating_add(more).min(Self::MAX);
        // Each keeps the bits of its place.
        *self = Self { low: sum as u16, middle: (sum >> 16) as u16, high: (sum >> 32) as u16 };
    }
}

/// Where a record stands when room is needed: earlier ones go first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Home {
    /// Nothing speaks for or against the circuit.
    Passing,
    /// It paid, or offended.
    Known,
    Banned,
}

/// Ticks within which uses of a circuit count as one for the order of evictions. A circuit in use then moves in its list every
/// 10 s, and all other decisions about it touch nothing but its record.
pub(super) const EPOCH: u32 = 100;

impl Record {
    pub(super) fn new(number: u32, now: u32) -> Self {
        Self {
            bytes_in: Total::default(),
            bytes_out: Total::default(),
            cpu_nanoseconds: Total::default(),
            number,
            touched: now,
            first_seen: now,
            banned_until: 0,
            last_ban: 0,
            last_violation: 0,
            ticket: 0,
            ticket_until: 0,
            requests: 0,
            latency_microseconds: 0,
            recent_requests: RequestRing::new(),
            open: 0,
            minute: MinuteRing::new(),
            recent_connections: ConnectRing::new(),
            violations: 0,
            rung: 0,
            bytes: Debt::default(),
            cpu: Debt::default(),
            signs: 0,
            refusal: 0,
        }
    }

    /// The word of the last stream or request that was refused.
    pub(super) fn last_refusal(&self) -> Option<Refusal> {
        Refusal::ALL.get(usize::from(self.refusal).checked_sub(1)?).copied()
    }

    /// Takes note of an outcome; what was served changes nothing, nor does what follows from a ban.
    pub(super) fn note(&mut self, word: Refusal) {
        match word.class() {
            Class::Pass | Class::Ban => {}
            Class::Circuit | Class::Global | Class::Puzzle | Class::Protocol => self.keep(word),
            Class::Slow | Class::Backend | Class::Ours => self.keep(word),
        }
    }

    fn keep(&mut self, word: Refusal) {
        let place = Refusal::ALL.iter().position(|each| *each == word).unwrap_or(0);
        // There are fewer words than a byte has values, which the line below the type sees to.
        self.refusal = u8::try_from(place + 1).unwrap_or(0);
    }

    /// Moves on to `now`: windows slide, and violations older than `life` are forgotten.
    pub(super) fn turn(&mut self, now: u32, life: Duration) {
        self.minute.turn(self.touched, now);
        self.recent_connections.turn(self.touched, now);
        self.recent_requests.turn(self.touched, now);
        self.bytes.turn(self.touched, now);
        self.cpu.turn(self.touched, now);
        self.touched = self.touched.max(now);
        if self.touched.saturating_sub(self.last_violation) >= ticks(life) {
            self.violations = 0;
            self.set(TARPITTED, false);
        }
    }

    pub(super) const fn has(&self, sign: u8) -> bool {
        self.signs & sign != 0
    }

    pub(super) const fn set(&mut self, sign: u8, is_so: bool) {
        self.signs = if is_so { self.signs | sign } else { self.signs & !sign };
    }

    pub(super) const fn is_banned(&self, now: u32) -> bool {
        now < self.banned_until
    }

    /// In both directions.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes_in.get().saturating_add(self.bytes_out.get())
    }

    /// The token in force.
    pub(super) fn ticket(&self, now: u32) -> Option<Ticket> {
        if now < self.ticket_until { Ticket::new(self.ticket) } else { None }
    }

    /// Forgets the token, if a stream was refused (`why`) because it counts no longer: from now on the circuit is as any other.
    pub(super) fn lose_token(&mut self, why: Refusal) {
        if why == Refusal::TokenGone {
            (self.ticket, self.ticket_until) = (0, 0);
        }
    }

    pub(super) fn is_vip(&self, now: u32) -> bool {
        self.has(PROMOTED) || self.ticket(now).is_some()
    }

    /// The first tick at which it goes past the queue no more, as far as the time decides; 0 where it does not. For counting: a
    /// ban that is over counts until it is lifted.
    pub(super) const fn vip_until(&self) -> u32 {
        if self.number == 0 || self.banned_until > 0 {
            0
        } else if self.has(PROMOTED) {
            u32::MAX
        } else if self.ticket != 0 {
            self.ticket_until
        } else {
            0
        }
    }

    pub(super) fn has_paid(&self, now: u32) -> bool {
        self.has(SOLVED) || self.is_vip(now)
    }

    /// Independent of the time, so that it changes only when the record is written.
    pub(super) const fn home(&self) -> Home {
        let is_known = self.has(SOLVED) || self.has(PROMOTED) || self.ticket != 0;
        if self.banned_until > 0 {
            Home::Banned
        } else if is_known || self.violations > 0 || self.rung > 0 {
            Home::Known
        } else {
            Home::Passing
        }
    }

    /// Whether it is never evicted: it carries connections, and is not banned.
    pub(super) const fn is_held(&self) -> bool {
        self.open > 0 && self.banned_until == 0
    }

    /// Its turn among those of its home; the lowest is evicted first.
    pub(super) const fn turn_to_go(&self) -> u32 {
        match self.home() {
            Home::Passing | Home::Known => self.touched / EPOCH,
            Home::Banned => self.banned_until,
        }
    }

    /// Takes a latency into the moving average, with weight 1/8.
    pub(super) fn note_latency(&mut self, sample: Duration) {
        let sample = u32::try_from(sample.as_micros()).unwrap_or(u32::MAX).max(1);
        self.latency_microseconds = match self.latency_microseconds {
            0 => sample,
            // No more than the larger of the two, so the cast is exact.
            before => ((u64::from(before) * 7 + u64::from(sample)) / 8) as u32,
        };
    }
}
