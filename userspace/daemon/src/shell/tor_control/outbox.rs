//! What the event loop has not taken yet, in its order and bounded.

use std::collections::VecDeque;

use tokio::sync::mpsc::{Sender, error::TrySendError};

use super::{TorHeard, fact::TorCircuit, session::Over};

/// See the module. Only changes of circuits are dropped; everything else is rare, or replaced by what is newer.
#[derive(Debug)]
pub(super) struct Outbox {
    sender: Sender<TorHeard>,
    waiting: VecDeque<TorHeard>,
    most_waiting: usize,
    /// Changes that were dropped since the last list of circuits; all later ones are dropped, too, until there is one.
    missed: u64,
}

impl Outbox {
    pub(super) const fn new(sender: Sender<TorHeard>, most_waiting: usize) -> Self {
        Self { sender, waiting: VecDeque::new(), most_waiting, missed: 0 }
    }

    /// Tells something that must not be lost.
    pub(super) fn tell(&mut self, heard: TorHeard) {
        // Who is late needs the newest alone.
        match heard {
            TorHeard::Peers(_) => self.waiting.retain(|waiting| !matches!(waiting, TorHeard::Peers(_))),
            TorHeard::Services(_) => self.waiting.retain(|waiting| !matches!(waiting, TorHeard::Services(_))),
            TorHeard::Connected { .. } | TorHeard::Circuits { .. } | TorHeard::Circuit(_) => {}
            TorHeard::Closed { .. } | TorHeard::Gone { .. } => {}
        }
        self.push(heard);
    }

    /// Tells a change of a circuit, or drops it.
    pub(super) fn tell_change(&mut self, circuit: TorCircuit) {
        if self.missed > 0 || !self.has_room() {
            self.miss();
        } else {
            self.push(TorHeard::Circuit(circuit));
        }
    }

    /// Tells all circuits there are: what was dropped is made up for.
    pub(super) fn tell_all(&mut self, open: Vec<TorCircuit>) {
        let missed = std::mem::take(&mut self.missed);
        self.push(TorHeard::Circuits { open, missed });
    }

    /// A change was lost.
    pub(super) const fn miss(&mut self) {
        self.missed = self.missed.saturating_add(1);
    }

    /// Changes that were dropped since the last list.
    pub(super) const fn missed(&self) -> u64 {
        self.missed
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn has_room(&self) -> bool {
        self.waiting.len() < self.most_waiting
    }

    /// Waits for a place in the queue and fills it. Nothing is lost if the wait is given up.
    pub(super) async fn pass_on(&mut self) -> Over {
        match self.sender.reserve().await {
            Ok(place) => {
                if let Some(heard) = self.waiting.pop_front() {
                    place.send(heard);
                }
                Over::No
            }
            Err(_) => Over::Yes,
        }
    }

    /// Waits until the event loop has everything.
    pub(super) async fn empty(&mut self) -> Over {
        while !self.waiting.is_empty() {
            if self.pass_on().await == Over::Yes {
                return Over::Yes;
            }
        }
        Over::No
    }

    fn push(&mut self, heard: TorHeard) {
        self.waiting.push_back(heard);
        while let Some(first) = self.waiting.pop_front() {
            match self.sender.try_send(first) {
                Ok(()) => {}
                Err(TrySendError::Full(first)) => {
                    self.waiting.push_front(first);
                    return;
                }
                // Whoever waits for a place next sees that the event loop has gone.
                Err(TrySendError::Closed(_)) => return,
            }
        }
    }
}
