//! What speaks against a source, in two kinds that never convert.
//!
//! [`Forgeable`] evidence is a packet: anyone can write any source into it, so it may feed counters, the drop log and
//! the list of frequent sources, and nothing else. [`Proven`] evidence has somebody's word behind it that a stranger
//! cannot fake. Only proof makes an [`Offence`], and only an offence moves the ban ladder; there is deliberately no
//! conversion, no common trait and no public constructor that would let a packet become one.

use tunica_common::verdict::{Action, Verdict};

use crate::id::PacketSource;

/// A sampled packet that was dropped, or would have been. Flags, ports and addresses are never proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forgeable {
    /// Who the packet claims to come from.
    pub source: PacketSource,
    /// What was found against it.
    pub verdict: Verdict,
    /// What was done with it.
    pub action: Action,
    /// Destination port; 0 where there is none.
    pub destination_port: u16,
}

/// A handshake that a source completed although it had completed too many already: the kernel's own word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handshake {
    /// The peer of the connection.
    pub source: PacketSource,
    /// The port it connected to.
    pub port: u16,
}

/// Why a source is known to be to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proven {
    /// An operator named it, over a socket that only operators can write to.
    Operator,
    /// The kernel saw it complete handshakes beyond its pace. Nobody completes one with a forged address.
    Handshakes,
    /// An account that the configuration believes reported it, by the kernel's word about the account.
    Report {
        /// The account's number.
        uid: u32,
    },
}

/// A proven offence: the only input of the ban ladder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offence {
    source: PacketSource,
    proof: Proven,
    reason: String,
}

impl Offence {
    /// What an operator holds against `source`. The coordinator alone makes it, from an operator's request.
    pub(crate) const fn by_operator(source: PacketSource, reason: String) -> Self {
        Self { source, proof: Proven::Operator, reason }
    }

    /// What the kernel proved of `source`. The coordinator alone makes it, from completed handshakes.
    pub(crate) const fn by_handshakes(source: PacketSource, reason: String) -> Self {
        Self { source, proof: Proven::Handshakes, reason }
    }

    /// What an application says of `source`. The coordinator alone makes it, from the reports of accounts that are believed.
    pub(crate) const fn by_report(source: PacketSource, uid: u32, reason: String) -> Self {
        Self { source, proof: Proven::Report { uid }, reason }
    }

    /// Who offended.
    pub const fn source(&self) -> PacketSource {
        self.source
    }

    /// How it is known.
    pub const fn proof(&self) -> Proven {
        self.proof
    }

    /// What the offence was, in words.
    pub fn reason(&self) -> &str {
        &self.reason
    }
}

#[cfg(test)]
mod tests {
    use std::{net::IpAddr, time::Duration};

    use proptest::prelude::*;

    use super::*;
    use crate::{
        coordinator::{Coordinator, Event},
        ledger::Ledger,
        limits::tests::settings,
        time::{Now, WallTime},
    };

    fn sample() -> impl Strategy<Value = Forgeable> {
        let verdict = prop::sample::select(Verdict::ALL);
        let action = prop::sample::select(&Action::ALL[..]);
        (0u8..6, verdict, action, any::<u16>()).prop_map(|(host, verdict, action, destination_port)| {
            Forgeable {
                source: PacketSource::of(IpAddr::from([198, 51, 100, host])),
                verdict,
                action,
                destination_port,
            }
        })
    }

    proptest! {
        /// For all sequences of events made of forgeable samples alone, no durable fact and no ban comes out.
        #[test]
        fn packets_never_ban(rounds in prop::collection::vec((prop::collection::vec(sample(), 0..40), 0u64..4_000), 1..40)) {
            let mut now = Now { wall: WallTime(1_700_000_000), ..Now::default() };
            let mut coordinator = Coordinator::new(settings(), Ledger::default(), now);
            for (samples, seconds) in rounds {
                now.mono = now.mono.after(Duration::from_secs(seconds));
                now.wall = now.wall.after(Duration::from_secs(seconds));
                let mut outcome = coordinator.handle(Event::Samples(samples), now);
                outcome.commands.extend(coordinator.advance(now).commands);
                prop_assert!(outcome.commands.is_empty());
                prop_assert!(coordinator.desired().tables.bans.is_empty());
                prop_assert_eq!(coordinator.ledger(), &Ledger::default());
            }
        }
    }

    #[test]
    fn proof_bans_by_the_ladder_and_spares_the_protected() {
        let mut now = Now { wall: WallTime(1_700_000_000), ..Now::default() };
        let mut coordinator = Coordinator::new(settings(), Ledger::default(), now);
        let [guilty, peer] = [7, 9].map(|host| PacketSource::of(IpAddr::from([198, 51, 100, host])));
        coordinator.handle(Event::TorPeers(vec![IpAddr::from([198, 51, 100, 9])]), now);
        let offend = |coordinator: &mut Coordinator, source, now| {
            let outcome = coordinator.handle(Event::Handshake(Handshake { source, port: 443 }), now);
            coordinator.commit(&outcome.commands, now).unwrap();
            outcome
        };
        for round in 1..=2u32 {
            for count in 1..=5 {
                now.mono = now.mono.after(Duration::from_secs(1));
                now.wall = now.wall.after(Duration::from_secs(1));
                let outcome = offend(&mut coordinator, guilty, now);
                assert_eq!(outcome.commands.is_empty(), count < 5, "violation {count} of round {round}");
                assert!(offend(&mut coordinator, peer, now).commands.is_empty());
            }
            let fact = &coordinator.ledger().bans[&guilty];
            assert_eq!((fact.rung, fact.origin), (Some(round), crate::ledger::BanOrigin::Evidence));
            if round == 2 {
                break;
            }
            // The ban runs out, the ladder remembers.
            now.mono = now.mono.after(Duration::from_secs(4_000));
            now.wall = now.wall.after(Duration::from_secs(4_000));
            let over = coordinator.advance(now);
            coordinator.commit(&over.commands, now).unwrap();
        }
        assert_eq!(coordinator.desired().tables.bans[&guilty.key()].flags, tunica_common::keys::BAN_DYNAMIC);
        assert!(!coordinator.ledger().bans.contains_key(&peer) && coordinator.refused_bans() >= 2);
    }
}
