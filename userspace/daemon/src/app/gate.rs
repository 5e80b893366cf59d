//! The circuit gate: banned circuits are refused in the kernel, before the ingress wakes up for them.

use std::num::NonZeroU16;

use tunica_config::GateMode;
use tunica_core::limits::Mode;

use super::App;
use crate::shell::gate::{Ban, Desired, Gate};

/// The gate, where an ingress is configured.
#[derive(Default)]
pub(super) struct AtGate {
    /// Attached, as far as is known.
    gate: Option<Gate>,
}

impl App {
    /// Attaches the gate, if there is to be one and there is none, and takes away one that is not to be; tried again at each
    /// audit.
    pub(super) fn open_gate(&mut self) {
        let ingress = &self.config.ingress;
        let port = NonZeroU16::new(ingress.listen.port());
        // Streams that Arti hands over within the front pass no interface.
        let has_ingress = (ingress.enabled && !self.config.arti.enabled) || self.is_haproxy_configured();
        let (true, Some(port)) = (has_ingress && ingress.gate != GateMode::Off, port) else {
            self.remove_gate();
            return;
        };
        if self.gate.gate.is_some() {
            return;
        }
        match Gate::open(self.shield.pins(), &[port]) {
            Ok(gate) => {
                tracing::info!(message_id = "gate_attached", "the circuit gate is attached to lo");
                self.gate.gate = Some(gate);
                self.troubles.gate = None;
            }
            Err(error) => self.note_gate(format!("the circuit gate is not attached: {error}")),
        }
        self.show_gate();
    }

    fn show_gate(&self) {
        self.metrics.set_gate(true, self.gate.gate.is_some());
    }

    /// Detaches the gate, also one that an earlier daemon left.
    fn remove_gate(&mut self) {
        let pins = self.shield.pins();
        let gate = match self.gate.gate.take() {
            Some(gate) => Ok(gate),
            None if Gate::was_left(pins) => Gate::open(pins, &[]),
            None => return self.metrics.set_gate(false, false),
        };
        let detached = gate.map(Gate::detach);
        self.metrics.set_gate(false, !matches!(detached, Ok(Ok(()))));
        match detached {
            Ok(Ok(())) => {
                tracing::info!(message_id = "gate_detached", "the circuit gate is detached from lo");
                self.troubles.gate = None;
            }
            Ok(Err(error)) => self.note_gate(format!("the circuit gate is not detached: {error}")),
            Err(error) => {
                self.note_gate(format!("the circuit gate of an earlier daemon stays on lo: {error}"))
            }
        }
    }

    fn note_gate(&mut self, text: String) {
        if self.troubles.gate.as_ref() != Some(&text) {
            tracing::warn!(message_id = "gate_failed", "{text}");
        }
        self.troubles.gate = Some(text);
    }

    /// Has the gate refuse the circuits that are banned now.
    pub(super) fn follow_gate(&mut self) {
        let desired = self.at_gate();
        let Some(gate) = &mut self.gate.gate else { return };
        match gate.follow(&desired) {
            Ok(_) => self.troubles.gate = None,
            Err(error) => self.note_gate(error.to_string()),
        }
    }

    /// Compares the gate with what it should be, and repairs it. One that cannot be attached again is given up, so that the
    /// next audit makes all of it anew, its pins included.
    pub(super) fn audit_gate(&mut self) {
        self.open_gate();
        let desired = self.at_gate();
        let Some(gate) = &mut self.gate.gate else { return };
        let audited = gate.audit(&desired);
        if !gate.attachment().is_attached() {
            self.gate.gate = None;
        }
        self.show_gate();
        match audited {
            Ok(_) => self.troubles.gate = None,
            Err(error) => self.note_gate(error.to_string()),
        }
    }

    /// Shows what the gate has counted.
    pub(super) fn count_gate(&mut self) {
        let Some(gate) = &self.gate.gate else { return };
        match gate.totals() {
            Ok(totals) => self.metrics.set_gate_totals(&totals),
            Err(error) => self.note_gate(error.to_string()),
        }
    }

    /// What the gate does with banned circuits; `None` while it is not attached.
    pub(super) fn gate_mode(&self) -> Option<Mode> {
        self.gate.gate.as_ref().map(|_| self.at_gate().mode)
    }

    fn at_gate(&self) -> Desired {
        let bans =
            self.banned_circuits().into_iter().map(|(circuit, until)| (circuit, Ban { until, ban_id: 0 }));
        let mode = match self.config.ingress.gate {
            _ if self.is_bypassed() => Mode::Off,
            GateMode::Off => Mode::Off,
            GateMode::Observe => Mode::Observe,
            GateMode::Enforce => Mode::Enforce,
        };
        // Starts of tor are some ticks apart, so the low half tells two of them apart for 497 days.
        let generation = self.circuit_orders().generation().map_or(0, |generation| generation.0 as u32);
        Desired { mode, generation, bans: bans.collect() }
    }
}
