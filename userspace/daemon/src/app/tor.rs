//! What tor says over its control port, and what it is told.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    num::NonZeroU32,
};

use tokio::sync::{mpsc, watch};
use tunica_api::{
    front::{Closing, MOST_CLOSING},
    view::{Answer, Done, RefusedCode},
};
use tunica_config::Place;
use tunica_core::{
    circuit_closing::CircuitClosing,
    circuit_registry::{CircuitRegistry, NotClosable},
    coordinator::Event,
    refusal::Refusal,
};
use tunica_onion::torrc::{Exposure, Listener, Torrc};

use super::App;
use crate::{
    shell::{
        load::TorProcess,
        tor_control::{CircuitChange, CloseOutcome, TorAct, TorCircuit, TorHeard},
    },
    views,
};

/// What is known of tor.
#[derive(Default)]
pub(super) struct Tor {
    acts: Option<mpsc::Sender<TorAct>>,
    /// The process that is connected.
    process: watch::Sender<Option<TorProcess>>,
    /// Those that are banned.
    closing: CircuitClosing,
    /// Those that the policy does not want any more, though nothing bans them.
    rotation: CircuitClosing,
    /// How many of these tor has closed, by the word for it.
    closed: BTreeMap<&'static str, u64>,
    registry: CircuitRegistry,
}

impl App {
    /// Where tor is told what to do.
    pub fn set_tor(&mut self, acts: mpsc::Sender<TorAct>) {
        self.tor.acts = Some(acts);
    }

    /// Where the tor process that is connected is told, for the shell that reads the load.
    pub fn tor_process(&self) -> watch::Receiver<Option<TorProcess>> {
        self.tor.process.subscribe()
    }

    /// Takes in what tor said.
    pub fn heard_tor(&mut self, heard: TorHeard) {
        match heard {
            TorHeard::Connected { generation, pid, .. } => {
                self.tor.process.send_replace(Some(TorProcess { generation, pid }));
                self.troubles.tor_control = None;
                self.metrics.set_tor_control(true);
                self.tor.closing.begin(generation);
                self.tor.rotation.begin(generation);
                self.tor.registry.begin(generation);
                self.begin_generation(generation);
            }
            TorHeard::Gone { why } => {
                self.tor.process.send_replace(None);
                self.metrics.set_tor_control(false);
                self.tor.registry.gone();
                self.troubles.tor_control = Some(why.to_string());
            }
            TorHeard::Peers(peers) => {
                let _ = self.step(Event::TorPeers(peers.hosts().into_iter().collect::<Vec<IpAddr>>()));
            }
            TorHeard::Circuit(circuit) => {
                let now = self.now().mono;
                if matches!(circuit.change, CircuitChange::Ended { .. }) {
                    self.remember_relay(circuit.id.number_for_this_node());
                }
                self.tor.registry.heard(circuit.word(), now);
                // A circuit that has ended gets no stream any more.
                if matches!(circuit.change, CircuitChange::Ended { .. }) {
                    self.forget_circuit(circuit.id);
                }
            }
            TorHeard::Circuits { open, .. } => {
                self.tor.registry.listed(open.iter().map(TorCircuit::word));
            }
            TorHeard::Services(torrc) => self.judge_services(&torrc),
            TorHeard::Closed { circuit, outcome } => {
                self.metrics.count_close(outcome);
                match outcome {
                    CloseOutcome::Accepted => {
                        if let Some(why) = self.tor.rotation.accepted(circuit) {
                            self.metrics.count_closed_circuit(why);
                            *self.tor.closed.entry(why.label()).or_default() += 1;
                        }
                    }
                    CloseOutcome::NoSuchCircuit | CloseOutcome::OtherTor => {}
                    CloseOutcome::NotConnected | CloseOutcome::Refused { .. } => {
                        self.tor.closing.failed(circuit);
                        self.tor.rotation.failed(circuit);
                    }
                }
            }
        }
    }

    /// Says what tor publishes and must not, and that it leaves the ingress out.
    fn judge_services(&mut self, torrc: &Torrc) {
        let (private, ingress) = (self.config.private_places(), self.config.ingress_places());
        let private: Vec<_> = private.iter().map(|(key, place)| (*key, listener(place))).collect();
        let ingress: Vec<_> = ingress.iter().map(listener).collect();
        let guarded: Vec<_> = self.config.guarded_places().iter().map(listener).collect();
        let exposures = torrc.exposures(&private, &ingress, &guarded);
        let told = exposures.iter().map(|exposure| match exposure {
            Exposure::Published { key, .. } => format!(
                "tor publishes {key} as an onion service, so whoever knows the onion address reaches what must stay on this host; \
                 remove that HiddenServicePort and reload tor"
            ),
            Exposure::PastIngress { .. } => format!(
                "by tor's configuration a HiddenServicePort leads to one of ingress.backends past the ingress, so no limit of \
                 [circuits] acts on whoever comes by it; lead it to {} and reload tor, unless that is meant",
                self.config.ingress_place()
            ),
            Exposure::NotIngress => "by tor's configuration no HiddenServicePort leads to ingress.listen or ingress.socket; unless a \
                                     controller made the service, the ingress gets no stream and no limit of [circuits] acts; \
                                     `tunica check --torrc` says what to write"
                .to_owned(),
            Exposure::NoCircuit { .. } => "a service leads to the ingress without telling circuits, so each of its streams is closed; \
                                           write `HiddenServiceExportCircuitID haproxy` below its HiddenServiceDir and reload tor"
                .to_owned(),
        });
        let told: BTreeSet<String> = told.collect();
        for text in told.difference(&self.troubles.published) {
            tracing::error!(message_id = "services_misled", "{text}");
        }
        self.troubles.published = told;
    }

    /// What tor says of its circuits.
    pub(super) const fn registry(&self) -> &CircuitRegistry {
        &self.tor.registry
    }

    /// Has tor close a circuit for an operator, once.
    pub(super) fn close_circuit(&mut self, circuit: NonZeroU32, dry_run: bool) -> Answer {
        let Some(acts) = &self.tor.acts else {
            if self.config.arti.enabled {
                return self.close_hosted(circuit, dry_run);
            }
            let message = "tunicad has no control port of tor, so it cannot close circuits; set control under [tor] and \
                           restart tunicad, or refuse its streams with `tunica circuit ban`";
            return views::refused(RefusedCode::NotFound, message);
        };
        let id = match self.tor.registry.closable(circuit) {
            Ok(id) => id,
            Err(why) => {
                let code = match why {
                    NotClosable::NoTor => RefusedCode::Failed,
                    NotClosable::Unknown => RefusedCode::NotFound,
                    NotClosable::TorsOwn => RefusedCode::Protected,
                };
                return views::refused(code, format!("circuit {circuit}: {why}"));
            }
        };
        if !dry_run && acts.try_send(TorAct::Close(id)).is_err() {
            let message =
                format!("circuit {circuit}: tor has not taken what it was asked for before; ask again");
            return views::refused(RefusedCode::Failed, message);
        }
        let changes = vec![format!(
            "circuit {circuit}: tor is asked to close it, and its streams end; it is not banned, so its client may come back \
             by a new circuit"
        )];
        Answer::Done(Done { dry_run, changes, undo: None })
    }

    /// Has tor close the circuits that are banned, by the ingress or by an operator, as far as tor has said what they are. Not its
    /// own: they carry no stream, so whoever had one banned only named its number, as any process can that reaches the ingress
    /// over TCP.
    pub(super) fn close_banned(&mut self) {
        let Some(acts) = self.tor.acts.clone() else { return };
        let banned = self.banned_circuits().into_keys().filter(|_| !self.is_bypassed());
        let banned = banned.map(|circuit| (circuit, Refusal::Banned));
        let Some((there, _)) = self.tor.registry.sort_out(banned) else { return };
        for circuit in self.tor.closing.due(there) {
            if acts.try_send(TorAct::Close(circuit)).is_err() {
                self.tor.closing.failed(circuit);
            }
        }
    }

    /// Has tor close the circuits that the ingress says have lived for too long, or are too slow. Returns those that tor does not
    /// have, or needs itself. What is asked for is what the ingress said just now: a circuit that carries a stream by then is
    /// not among it.
    pub(super) fn close_unwanted(&mut self, unwanted: &[Closing]) -> Vec<NonZeroU32> {
        let Some(acts) = self.tor.acts.clone() else { return Vec::new() };
        // A word that is unknown is of another version than this daemon.
        let named = unwanted.iter().take(MOST_CLOSING);
        let named = named.filter_map(|(circuit, why)| Some((*circuit, Refusal::named(why)?)));
        let Some((there, ended)) = self.tor.registry.sort_out(named) else { return Vec::new() };
        for circuit in self.tor.rotation.due(there) {
            if acts.try_send(TorAct::Close(circuit)).is_err() {
                self.tor.rotation.failed(circuit);
            }
        }
        ended
    }

    /// Whether tor needs a circuit itself.
    pub(super) fn is_tors_own(&self, circuit: NonZeroU32) -> bool {
        self.tor.registry.closable(circuit) == Err(NotClosable::TorsOwn)
    }

    /// For what tor was asked to close a circuit that is not banned.
    pub(super) fn unwanted_for(&self, circuit: NonZeroU32) -> Option<Refusal> {
        self.tor.rotation.why(circuit)
    }

    /// How many circuits tor has closed that were not banned, by the word for it.
    pub(super) const fn closed_circuits(&self) -> &BTreeMap<&'static str, u64> {
        &self.tor.closed
    }
}

fn listener(place: &Place) -> Listener<'_> {
    match place {
        Place::Tcp(address) => Listener::Tcp(*address),
        Place::Unix(path) => Listener::Unix(path),
    }
}
