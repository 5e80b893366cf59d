//! The relays that tor speaks to, or would: their addresses may never be banned.

use std::{
    collections::{BTreeSet, VecDeque},
    fmt,
    net::{IpAddr, SocketAddr},
};

use tunica_onion::{
    control_codec::{
        Command, ConnectionTarget, Expected, Message, ParseError, addresses, connections, entry_guards,
    },
    name::Fingerprint,
};

use super::{LinkError, wire::Wire};

/// Most relays that are looked up for one list. A tor that is no relay itself knows some dozens.
const MOST_RELAYS: usize = 512;

/// Addresses of tor's guards, and of the relays it is connected to. `Debug` is scrubbed.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct TorPeers {
    /// Where these relays take connections, by the consensus that tor has.
    pub addresses: BTreeSet<SocketAddr>,
    /// Peers whose address is not known: relays that stand in no consensus, such as bridges; peers without an identity, who
    /// on a relay may be anybody; and those beyond the first 512. None is guessed.
    pub unresolved: u32,
}

impl TorPeers {
    /// The addresses without their ports.
    pub fn hosts(&self) -> BTreeSet<IpAddr> {
        self.addresses.iter().map(|address| address.ip().to_canonical()).collect()
    }
}

/// A list that is being made, one question at a time, so that nothing else waits for it.
#[derive(Default)]
pub(super) struct Inquiry {
    relays: VecDeque<Fingerprint>,
    found: TorPeers,
}

impl Inquiry {
    /// Asks for the peers.
    ///
    /// # Errors
    /// If tor does not answer, or not what it should.
    pub(super) async fn begin(wire: &mut Wire, on_event: impl FnMut(&Message)) -> Result<Self, LinkError> {
        const KEYS: [&str; 2] = ["entry-guards", "orconn-status"];
        let answer = wire.demand(&Command::GetInfo(&KEYS), on_event).await?;
        Self::of(&answer).map_err(|source| LinkError::Unreadable { command: "GETINFO", source })
    }

    fn of(answer: &Message) -> Result<Self, ParseError> {
        let value =
            |line, key| answer.values(key).next().ok_or(ParseError { line, expected: Expected::Relay });
        let guards = entry_guards(value(1, "entry-guards")?)?;
        let connections = connections(value(2, "orconn-status")?)?;
        let mut inquiry = Self::default();
        let targets = connections.into_iter().map(|(target, _)| match target {
            ConnectionTarget::Relay(relay) => Some(relay.fingerprint),
            ConnectionTarget::Address(_) | ConnectionTarget::Hidden => None,
        });
        let mut known = BTreeSet::new();
        for relay in guards.into_iter().map(|guard| Some(guard.relay.fingerprint)).chain(targets) {
            match relay {
                Some(relay) if known.contains(&relay) => {}
                Some(relay) if known.len() < MOST_RELAYS => {
                    known.insert(relay);
                    inquiry.relays.push_back(relay);
                }
                Some(_) | None => inquiry.found.unresolved = inquiry.found.unresolved.saturating_add(1),
            }
        }
        Ok(inquiry)
    }

    /// Looks up one relay; `true` when there is none left.
    ///
    /// # Errors
    /// If tor does not answer.
    pub(super) async fn go_on(
        &mut self,
        wire: &mut Wire,
        on_event: impl FnMut(&Message),
    ) -> Result<bool, LinkError> {
        let Some(relay) = self.relays.front() else { return Ok(true) };
        let key = format!("ns/id/${relay}");
        let answer = wire.ask(&Command::GetInfo(&[&key]), on_event).await?;
        self.relays.pop_front();
        let value = answer.accepted().ok().and_then(|answer| answer.values(&key).next());
        let found = value.and_then(|value| addresses(value).ok()).unwrap_or_default();
        if found.is_empty() {
            self.found.unresolved = self.found.unresolved.saturating_add(1);
        }
        self.found.addresses.extend(found);
        Ok(self.relays.is_empty())
    }

    /// What was found.
    pub(super) fn end(self) -> TorPeers {
        self.found
    }
}

impl fmt::Debug for TorPeers {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "TorPeers({} scrubbed, {} unresolved)", self.addresses.len(), self.unresolved)
    }
}
