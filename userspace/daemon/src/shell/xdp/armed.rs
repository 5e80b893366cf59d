//! Which ports are over their budget.
//!
//! The kernel keeps a row for each of the 65 536 ports, too many to read every second. It tells of each port that it arms
//! by an event; where events may have been lost, all rows are read once.

use std::collections::BTreeSet;

use tunica_common::{event::Event, verdict::Verdict};
use tunica_core::{armed::ArmedPort, time::Monotime};

use super::tables::{TableError, Tables};

/// Ports that may be over their budget.
#[derive(Debug, Default)]
pub struct Armed {
    ports: BTreeSet<u16>,
}

impl Armed {
    /// Takes in what the kernel told.
    pub fn note(&mut self, events: &[Event]) {
        let armed = events.iter().filter(|event| event.verdict == Verdict::SynOverBudget.slot());
        self.ports.extend(armed.map(|event| event.destination_port));
    }

    /// The ports that are over their budget at `now`.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn read(&mut self, tables: &Tables, now: Monotime) -> Result<Vec<ArmedPort>, TableError> {
        if tables.host_state()?.armed_until_ns <= now.0 {
            self.ports.clear();
            return Ok(Vec::new());
        }
        let armed = armed_of(tables, self.ports.iter().copied(), now)?;
        let armed = if armed.is_empty() { armed_of(tables, 0..=u16::MAX, now)? } else { armed };
        self.ports = armed.iter().map(|port| port.port).collect();
        Ok(armed)
    }
}

fn armed_of(
    tables: &Tables,
    ports: impl Iterator<Item = u16>,
    now: Monotime,
) -> Result<Vec<ArmedPort>, TableError> {
    let mut armed = Vec::new();
    for port in ports {
        let state = tables.port_state(port)?;
        if state.armed_until_ns > now.0 {
            armed.push(ArmedPort {
                port,
                since: Monotime(state.armed_since_ns),
                until: Monotime(state.armed_until_ns),
                cookies_returned: state.cookies_returned,
            });
        }
    }
    Ok(armed)
}
