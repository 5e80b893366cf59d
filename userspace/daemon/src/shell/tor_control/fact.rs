//! A circuit, as far as anybody decides by it: of a fixed size, whatever tor writes.

pub use tunica_core::circuit_registry::CircuitUse;
use tunica_core::{
    circuit_registry::{CircuitWord, RelayId, Step},
    id::{CircuitId, TorGeneration},
};
use tunica_onion::{
    control_codec::{Circuit, CircuitStatus, HsState, Purpose},
    name::{Fingerprint, OnionAddress},
};

/// Longest reason that is kept, in bytes; tor's longest has 20.
const REASON_BYTES: usize = 32;

/// A circuit as it is now. `Debug` shows neither circuit nor relay nor service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TorCircuit {
    /// Which one. Its number is that of the PROXY header of its streams.
    pub id: CircuitId,
    /// What it is for.
    pub used_for: CircuitUse,
    /// What happened to it.
    pub change: CircuitChange,
    /// Which onion service it belongs to.
    pub service: Option<OnionAddress>,
    /// The relay at which service and client meet.
    pub rendezvous: Option<Fingerprint>,
    /// When tor made it, in microseconds since 1970 in UTC. A rendezvous circuit may have been made in advance, so it may be
    /// older than its client's visit.
    pub created_microseconds: Option<u64>,
    /// The effort of the puzzle that its client solved; tor says nothing where that is 0.
    pub pow_effort: Option<u64>,
}

/// What happened to a circuit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CircuitChange {
    /// It has a number, or one hop more.
    Grows,
    /// All its hops are there.
    Built,
    /// It is for something else now, or further in what it is for.
    Repurposed,
    /// It has ended. Its number is never given again by this tor.
    Ended {
        /// Whether it was built before.
        was_built: bool,
        /// Why, in tor's word, such as `REQUESTED` or `TIMEOUT`.
        reason: Option<String>,
        /// Why the other side ended it, in tor's word.
        remote_reason: Option<String>,
    },
    /// A state that is unknown here.
    Unknown,
}

impl CircuitChange {
    /// The change that an event or a line of `circuit-status` tells.
    pub(super) fn of(status: &CircuitStatus, reason: Option<String>, remote_reason: Option<String>) -> Self {
        let ended = |was_built, reason, remote_reason| Self::Ended {
            was_built,
            reason: kept(reason),
            remote_reason: kept(remote_reason),
        };
        match status {
            CircuitStatus::Launched | CircuitStatus::Extended | CircuitStatus::GuardWait => Self::Grows,
            CircuitStatus::Built => Self::Built,
            CircuitStatus::Failed => ended(false, reason, remote_reason),
            CircuitStatus::Closed => ended(true, reason, remote_reason),
            CircuitStatus::Other(_) => Self::Unknown,
        }
    }
}

impl TorCircuit {
    /// What tor says of a circuit of its process `generation`.
    pub(super) fn of(generation: TorGeneration, circuit: &Circuit, change: CircuitChange) -> Self {
        let used_for = used_for(circuit);
        // Before it is built, or joined, the last relay of the path is one on the way.
        let is_whole = match used_for {
            CircuitUse::ServiceRendezvous { is_joined } => is_joined || change == CircuitChange::Built,
            CircuitUse::ServiceIntroduction { .. } | CircuitUse::Other => false,
        };
        let last = circuit.path.last().map(|relay| relay.fingerprint);
        Self {
            id: CircuitId::new(generation, circuit.id.number()),
            used_for,
            change,
            service: circuit.rend_query,
            rendezvous: last.filter(|_| is_whole),
            created_microseconds: circuit.created_microseconds,
            pow_effort: circuit.pow_effort,
        }
    }

    /// As the registry keeps it.
    pub fn word(&self) -> CircuitWord {
        CircuitWord {
            circuit: self.id,
            used_for: self.used_for,
            step: match self.change {
                CircuitChange::Grows | CircuitChange::Unknown => Step::Grows,
                CircuitChange::Built => Step::Built,
                CircuitChange::Repurposed => Step::Repurposed,
                CircuitChange::Ended { .. } => Step::Ended,
            },
            rendezvous: self.rendezvous.map(|relay| RelayId::new(relay.bytes())),
            pow_effort: self.pow_effort,
        }
    }
}

fn used_for(circuit: &Circuit) -> CircuitUse {
    match circuit.purpose {
        Some(Purpose::HsServiceRend) => {
            CircuitUse::ServiceRendezvous { is_joined: circuit.hs_state == Some(HsState::ServiceRendJoined) }
        }
        Some(Purpose::HsServiceIntro) => CircuitUse::ServiceIntroduction {
            is_established: circuit.hs_state == Some(HsState::ServiceIntroEstablished),
        },
        None
        | Some(
            Purpose::General
            | Purpose::HsClientHsdir
            | Purpose::HsClientIntro
            | Purpose::HsClientRend
            | Purpose::HsServiceHsdir
            | Purpose::HsVanguards
            | Purpose::PathBiasTesting
            | Purpose::Testing
            | Purpose::Controller
            | Purpose::MeasureTimeout
            | Purpose::CircuitPadding
            | Purpose::ConfluxLinked
            | Purpose::ConfluxUnlinked
            | Purpose::Other(_),
        ) => CircuitUse::Other,
    }
}

/// A reason, if it looks like one of tor's.
fn kept(reason: Option<String>) -> Option<String> {
    let is_word = |text: &String| {
        text.len() <= REASON_BYTES
            && text.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_')
    };
    reason.filter(is_word)
}
