//! What the circuit gate and the host must agree on. It is an object of its own, with maps of its own.

use crate::{
    layout::{MapShape, array, fold, hash, per_cpu_array},
    shared::shared_struct,
};

/// How many ports the gate can watch.
pub const GATE_PORTS: usize = 16;
/// How many circuits can be banned at the gate at the same time.
pub const GATE_BANS: usize = 65_536;

shared_struct! {
    /// What the gate goes by. The host overwrites it in place; a segment that is judged meanwhile may see some old fields
    /// and some new ones. That refuses nobody whom neither the old nor the new settings refuse, since a refusal takes a
    /// port, a mode and a row of this generation together, and no row is of two generations.
    pub struct GateSettings {
        /// [`crate::policy::MODE_OFF`], [`crate::policy::MODE_OBSERVE`] or [`crate::policy::MODE_ENFORCE`].
        pub mode: u32,
        /// Which tor process numbers the circuits. Rows of another one do nothing.
        pub generation: u32,
        /// The ports that tor connects to, host order; 0 stands where there is none.
        pub ports: [u16; GATE_PORTS],
    }
    size = 40
}

shared_struct! {
    /// A circuit of one tor process.
    #[derive(Hash, PartialOrd, Ord)]
    pub struct CircuitKey {
        /// [`GateSettings::generation`] when the circuit was banned.
        pub generation: u32,
        /// The number that tor gave it; never 0.
        pub circuit: u32,
    }
    size = 8
}

shared_struct! {
    /// A banned circuit.
    pub struct CircuitBan {
        /// When the ban ends, nanoseconds of `CLOCK_MONOTONIC`. It lapses by itself, whether or not a daemon runs.
        pub expires_ns: u64,
        /// The ledger's number of this ban; 0 where it is no ledger fact.
        pub ban_id: u32,
        /// Always 0.
        pub reserved: u32,
    }
    size = 16
}

/// What became of a segment that carries data to one of the gate's ports. Others are not counted.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GateOutcome {
    /// Passed: it does not carry the first bytes of a connection.
    NotFirst = 0,
    /// Passed: the first bytes are not a PROXY line as tor writes it.
    NoHeader = 1,
    /// Passed: the first bytes begin such a line and do not end it. Whoever listens must look.
    Split = 2,
    /// Passed: the circuit is not banned.
    NotBanned = 3,
    /// Both ends got a RST.
    Refused = 4,
    /// Passed because the gate observes; `enforce` would have refused it.
    WouldRefuse = 5,
    /// Passed although the circuit is banned: the kernel had no memory to make a RST of it.
    Unanswered = 6,
}

impl GateOutcome {
    /// Every outcome, in slot order.
    pub const ALL: [Self; 7] = [
        Self::NotFirst,
        Self::NoHeader,
        Self::Split,
        Self::NotBanned,
        Self::Refused,
        Self::WouldRefuse,
        Self::Unanswered,
    ];

    /// The word in metrics and answers.
    pub const fn label(self) -> &'static str {
        match self {
            Self::NotFirst => "not_first",
            Self::NoHeader => "no_header",
            Self::Split => "split",
            Self::NotBanned => "not_banned",
            Self::Refused => "refused",
            Self::WouldRefuse => "would_refuse",
            Self::Unanswered => "unanswered",
        }
    }
}

/// What the gate goes by: one [`GateSettings`].
pub const GATE_SETTINGS: &str = "GATE_SETTINGS";
/// Banned circuits.
pub const CIRCUIT_BANS: &str = "CIRCUIT_BANS";
/// How often each [`GateOutcome`] was, on each CPU.
pub const GATE_TALLIES: &str = "GATE_TALLIES";

/// Every map of the gate.
pub const GATE_MAPS: [MapShape; 3] = [
    array::<GateSettings>(GATE_SETTINGS, 1),
    hash::<CircuitKey, CircuitBan>(CIRCUIT_BANS, GATE_BANS),
    per_cpu_array::<u64>(GATE_TALLIES, GateOutcome::ALL.len()),
];

/// Hash of every name, field and size that gate and host share; 16 hexadecimal digits of it stand in the pin path.
pub const GATE_LAYOUT_HASH: u64 = {
    let mut hash = fold(0xcbf2_9ce4_8422_2325, GateSettings::LAYOUT.as_bytes());
    hash = fold(hash, CircuitKey::LAYOUT.as_bytes());
    hash = fold(hash, CircuitBan::LAYOUT.as_bytes());
    let mut index = 0;
    while index < GATE_MAPS.len() {
        #[expect(clippy::indexing_slicing, reason = "the loop's bound is the length")]
        let shape = GATE_MAPS[index];
        hash = fold(hash, shape.name.as_bytes());
        hash = fold(hash, &[shape.kind as u8]);
        hash = fold(hash, &shape.key_bytes.to_le_bytes());
        hash = fold(hash, &shape.value_bytes.to_le_bytes());
        hash = fold(hash, &shape.entries.to_le_bytes());
        index += 1;
    }
    index = 0;
    while index < GateOutcome::ALL.len() {
        #[expect(clippy::indexing_slicing, reason = "the loop's bound is the length")]
        let outcome = GateOutcome::ALL[index];
        hash = fold(hash, outcome.label().as_bytes());
        index += 1;
    }
    hash
};
