//! What tor says over its control port, and what it is told.

use std::net::IpAddr;

use tokio::sync::{mpsc, watch};
use tunica_core::{circuit_closing::CircuitClosing, coordinator::Event};

use super::App;
use crate::shell::{
    load::TorProcess,
    tor_control::{CircuitChange, CloseOutcome, TorAct, TorHeard},
};

/// What is known of tor.
#[derive(Default)]
pub(super) struct Tor {
    acts: Option<mpsc::Sender<TorAct>>,
    /// The process that is connected.
    process: watch::Sender<Option<TorProcess>>,
    closing: CircuitClosing,
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
                self.begin_generation(generation);
            }
            TorHeard::Gone { why } => {
                self.tor.process.send_replace(None);
                self.metrics.set_tor_control(false);
                self.troubles.tor_control = Some(why.to_string());
            }
            TorHeard::Peers(peers) => {
                let _ = self.step(Event::TorPeers(peers.hosts().into_iter().collect::<Vec<IpAddr>>()));
            }
            // A circuit that has ended gets no stream any more.
            TorHeard::Circuit(circuit) if matches!(circuit.change, CircuitChange::Ended { .. }) => {
                self.forget_circuit(circuit.id);
            }
            TorHeard::Circuit(_) | TorHeard::Circuits { .. } => {}
            TorHeard::Closed { circuit, outcome } => {
                self.metrics.count_close(outcome);
                match outcome {
                    CloseOutcome::Accepted | CloseOutcome::NoSuchCircuit | CloseOutcome::OtherTor => {}
                    CloseOutcome::NotConnected | CloseOutcome::Refused { .. } => {
                        self.tor.closing.failed(circuit);
                    }
                }
            }
        }
    }

    /// Has tor close the circuits that are banned, by the ingress or by an operator.
    pub(super) fn close_banned(&mut self) {
        let Some(acts) = self.tor.acts.clone() else { return };
        let banned = self.banned_circuits().into_keys().collect();
        for circuit in self.tor.closing.due(banned) {
            if acts.try_send(TorAct::Close(circuit)).is_err() {
                self.tor.closing.failed(circuit);
            }
        }
    }
}
