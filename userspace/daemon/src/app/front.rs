//! `circuits` and `circuit`: what the ingress says, and what it is told.

use std::{collections::BTreeMap, num::NonZeroU32, time::Duration};

use tokio::sync::{mpsc, watch};
use tunica_api::{
    front::{CircuitOrder as Wire, CircuitState as WireState, Digest, LoadOrder, Orders},
    request::{self, CircuitState},
    view::{self, Answer, Done, RefusedCode},
};
use tunica_core::{
    circuit_orders::{CircuitOrder, CircuitOrders},
    id::{CircuitId, TorGeneration},
    time::Monotime,
};

use super::App;
use crate::{
    shell::{
        front::Heard,
        front_process::{FrontAct, FrontTold},
    },
    views,
};

/// What is known of the front.
pub(super) struct Front {
    /// What it last said, and when.
    last: Option<(Box<Digest>, Monotime)>,
    /// Which process of the front told of these bans. They outlive it: the next one is told of them.
    bans: (u64, BTreeMap<NonZeroU32, Monotime>),
    orders: CircuitOrders,
    sender: watch::Sender<Orders>,
    /// The shell that starts the front, where this daemon does.
    acts: Option<mpsc::Sender<FrontAct>>,
    /// Whether a front of another version was replaced once already.
    was_renewed: bool,
}

impl Default for Front {
    fn default() -> Self {
        Self {
            last: None,
            bans: Default::default(),
            orders: CircuitOrders::default(),
            sender: watch::Sender::new(Orders::default()),
            acts: None,
            was_renewed: false,
        }
    }
}

impl Front {
    /// What it was told of the load.
    pub(super) fn told(&self) -> Option<LoadOrder> {
        self.sender.borrow().load
    }

    /// What it holds to of the load.
    pub(super) fn held(&self) -> Option<LoadOrder> {
        self.last.as_ref().and_then(|(digest, _)| digest.load)
    }
}

impl App {
    /// Where the front's orders are, for its shell.
    pub fn orders(&self) -> watch::Receiver<Orders> {
        self.front.sender.subscribe()
    }

    /// Where the front's process is started.
    pub fn set_front(&mut self, acts: mpsc::Sender<FrontAct>) {
        self.front.acts = Some(acts);
    }

    /// Takes in how the front's process is.
    pub fn told_of_front(&mut self, told: FrontTold) {
        self.troubles.front_process = match told {
            FrontTold::Runs => None,
            FrontTold::Trouble(text) => {
                tracing::warn!(message_id = "front_trouble", "{text}");
                Some(text)
            }
        };
    }

    /// Has a front with the present configuration take the place of the one that runs, where this daemon starts it.
    pub(super) fn renew_front(&self) {
        self.tell_process(FrontAct::Renew);
    }

    fn tell_process(&self, act: FrontAct) {
        if let Some(acts) = &self.front.acts
            && acts.try_send(act).is_err()
        {
            tracing::warn!(message_id = "front_trouble", "the ingress' process cannot be told of {act:?}");
        }
    }

    /// Takes in what the front said.
    pub fn heard(&mut self, heard: Heard) {
        match heard {
            Heard::Here { pid } => {
                if let Some(pid) = pid {
                    self.tell_process(FrontAct::Here { pid });
                }
            }
            Heard::Digest(digest) => {
                if self.front.last.is_none() {
                    tracing::info!(
                        message_id = "front_here",
                        version = digest.version,
                        "the ingress reports to this daemon"
                    );
                }
                if digest.version != env!("CARGO_PKG_VERSION") && !self.front.was_renewed {
                    // It is of an earlier daemon. Once: what is installed may be of that version, too.
                    self.front.was_renewed = true;
                    self.renew_front();
                }
                self.metrics.set_front(Some(&digest));
                self.read_front_load(&digest);
                self.front.orders.followed(digest.revision);
                let bans = digest.bans.iter().map(|(circuit, until)| (*circuit, Monotime(*until))).collect();
                let (before, lost) = std::mem::replace(&mut self.front.bans, (digest.process, bans));
                let process = digest.process;
                self.front.last = Some((digest, self.now().mono));
                if before != process {
                    let now = self.now();
                    self.change_orders(|orders| orders.carry(lost, now));
                }
                self.follow_bans();
            }
            Heard::Gone => {
                self.front.last = None;
                self.metrics.set_front(None);
            }
        }
    }

    /// Another tor process hands over the streams, or it is known now which.
    pub(super) fn begin_generation(&mut self, generation: TorGeneration) {
        // Whoever stands behind a number now has done nothing yet.
        if self.front.orders.generation().is_some_and(|before| before != generation) {
            self.front.bans.1.clear();
        }
        self.change_orders(|orders| orders.begin(generation));
    }

    /// A circuit has ended at tor.
    pub(super) fn forget_circuit(&mut self, circuit: CircuitId) {
        if self.front.orders.generation() == Some(circuit.generation()) {
            self.front.bans.1.remove(&circuit.number_for_this_node());
            self.change_orders(|orders| orders.forget(circuit.number_for_this_node()));
        }
    }

    /// Every circuit that is banned, and until when.
    pub(super) fn banned_circuits(&self) -> BTreeMap<NonZeroU32, Monotime> {
        let now = self.now().mono;
        let by_front = self.front.bans.1.iter().map(|(circuit, until)| (*circuit, *until));
        self.front.orders.banned(by_front.filter(|(_, until)| *until > now))
    }

    /// Bans act at the gate and at tor, too.
    fn follow_bans(&mut self) {
        self.close_banned();
        self.follow_gate();
    }

    /// What operators said of circuits.
    pub(super) const fn circuit_orders(&self) -> &CircuitOrders {
        &self.front.orders
    }

    fn change_orders(&mut self, change: impl FnOnce(&mut CircuitOrders)) {
        let before = self.front.orders.revision();
        change(&mut self.front.orders);
        if self.front.orders.revision() != before {
            self.send_orders();
            self.follow_bans();
        }
    }

    /// Lifts what is over.
    pub(super) fn advance_orders(&mut self) {
        let now = self.now();
        self.change_orders(|orders| orders.advance(now));
    }

    pub(super) fn send_orders(&self) {
        let orders = &self.front.orders;
        let state = |order| match order {
            CircuitOrder::Banned { until } => WireState::Banned { until: until.0 },
            CircuitOrder::Vip => WireState::Vip,
            CircuitOrder::Normal => WireState::Normal,
        };
        let circuits = orders.desired().map(|(circuit, order, said)| Wire {
            circuit,
            said: said.0,
            state: state(order),
        });
        self.front.sender.send_replace(Orders {
            revision: orders.revision(),
            generation: orders.generation().map(|generation| generation.0),
            circuits: circuits.collect(),
            load: Some(self.coordinator.load_level().front().into()),
        });
    }

    /// How the ingress does, with its `limit` busiest circuits.
    pub(super) fn circuits(&self, limit: u32) -> Answer {
        let Some((digest, since)) = &self.front.last else { return self.no_front() };
        let mut digest = Digest::clone(digest);
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        digest.circuits.truncate(limit);
        digest.bans.truncate(limit);
        let age_seconds = self.now().mono.since(*since).as_secs();
        Answer::Circuits(Box::new(view::Circuits { digest, age_seconds }))
    }

    fn no_front(&self) -> Answer {
        let why = if self.config.ingress.enabled {
            "tunica-front does not run or does not reach this daemon; look at `systemctl status tunica-front`"
        } else {
            "the ingress is not configured; set `enabled = true` under [ingress] and start tunica-front"
        };
        views::refused(RefusedCode::NotFound, why.to_owned())
    }

    /// Has the front treat a circuit otherwise.
    pub(super) fn order_circuit(&mut self, request: request::CircuitOrder) -> Answer {
        let request::CircuitOrder { circuit, state, dry_run } = request;
        let Some((digest, _)) = &self.front.last else { return self.no_front() };
        let is_known = digest.circuits.iter().any(|row| row.circuit == circuit);
        let mut said = vec![match state {
            CircuitState::Banned { seconds } => {
                format!(
                    "circuit {circuit}: each of its streams is refused for {seconds} s, and those that are open are reset"
                )
            }
            CircuitState::Vip => format!("circuit {circuit}: it goes past the queue until it ends"),
            CircuitState::Normal => format!("circuit {circuit}: what was found out about it is forgotten"),
        }];
        if !is_known {
            said.push(
                "it is not among the busiest circuits, so whether there is one of this number is not known"
                    .to_owned(),
            );
        }
        if !dry_run
            && let Err(error) = self.front.orders.set(circuit, order(state, self.now().mono), self.now())
        {
            return views::refused(RefusedCode::Failed, error.to_string());
        }
        if !dry_run {
            self.send_orders();
            self.follow_bans();
        }
        Answer::Done(Done { dry_run, changes: said, undo: undo(circuit, state) })
    }
}

fn order(state: CircuitState, now: Monotime) -> CircuitOrder {
    match state {
        CircuitState::Banned { seconds } => {
            CircuitOrder::Banned { until: now.after(Duration::from_secs(seconds)) }
        }
        CircuitState::Vip => CircuitOrder::Vip,
        CircuitState::Normal => CircuitOrder::Normal,
    }
}

fn undo(circuit: NonZeroU32, state: CircuitState) -> Option<String> {
    match state {
        CircuitState::Banned { .. } => Some(format!("tunica circuit unban {circuit}")),
        CircuitState::Vip => Some(format!("tunica circuit demote {circuit}")),
        CircuitState::Normal => None,
    }
}
