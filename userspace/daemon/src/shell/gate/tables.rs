//! The gate's maps.

use std::{
    collections::BTreeMap,
    num::{NonZeroU16, NonZeroU32},
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, Map, MapData, PerCpuArray},
};
use tunica_common::gate::{
    CIRCUIT_BANS, CircuitBan, CircuitKey, GATE_PORTS, GATE_SETTINGS, GATE_TALLIES, GateOutcome, GateSettings,
};

use super::{Desired, FollowError, GateError, Repairs, Totals};
use crate::shell::xdp::{object::LoadError, tables::TableError};

/// Typed handles on the maps, and what was written to them last.
pub(super) struct Tables {
    settings: Array<MapData, GateSettings>,
    bans: HashMap<MapData, CircuitKey, CircuitBan>,
    tallies: PerCpuArray<MapData, u64>,
    in_force: GateSettings,
    rows: BTreeMap<CircuitKey, CircuitBan>,
}

fn take<T: TryFrom<Map, Error = aya::maps::MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<T, LoadError> {
    ebpf.take_map(name)
        .ok_or(LoadError::Missing { what: "map", name })?
        .try_into()
        .map_err(|source| LoadError::Map { name, source })
}

impl Tables {
    /// Takes the maps out of a loaded object and reads what they hold.
    ///
    /// # Errors
    /// [`GateError::Load`] and [`GateError::Table`].
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, GateError> {
        let settings: Array<MapData, GateSettings> = take(ebpf, GATE_SETTINGS)?;
        let in_force = read_settings(&settings)?;
        let mut tables = Self {
            settings,
            bans: take(ebpf, CIRCUIT_BANS)?,
            tallies: take(ebpf, GATE_TALLIES)?,
            in_force,
            rows: BTreeMap::new(),
        };
        tables.read_back()?;
        Ok(tables)
    }

    /// Learns what the maps really hold.
    ///
    /// # Errors
    /// [`TableError`].
    pub(super) fn read_back(&mut self) -> Result<(), TableError> {
        self.in_force = read_settings(&self.settings)?;
        self.rows =
            self.bans.iter().collect::<Result<_, _>>().map_err(TableError::new("read", CIRCUIT_BANS))?;
        Ok(())
    }

    pub(super) fn set_ports(&mut self, ports: &[NonZeroU16]) -> Result<(), GateError> {
        if ports.len() > GATE_PORTS {
            return Err(GateError::TooManyPorts(ports.len()));
        }
        let mut row = [0; GATE_PORTS];
        for (place, port) in row.iter_mut().zip(ports) {
            *place = port.get();
        }
        Ok(self.write_settings(GateSettings { ports: row, ..self.in_force }).map(|_| ())?)
    }

    /// Whether anything was written.
    fn write_settings(&mut self, settings: GateSettings) -> Result<bool, TableError> {
        if settings == self.in_force {
            return Ok(false);
        }
        self.settings.set(0, settings, 0).map_err(TableError::new("write", GATE_SETTINGS))?;
        self.in_force = settings;
        Ok(true)
    }

    pub(super) fn follow(&mut self, desired: &Desired) -> Result<Repairs, FollowError> {
        let generation = desired.generation;
        let row = |(circuit, ban): (&NonZeroU32, &super::Ban)| {
            let key = CircuitKey { generation, circuit: circuit.get() };
            (key, CircuitBan { expires_ns: ban.until.0, ban_id: ban.ban_id, reserved: 0 })
        };
        let wanted: BTreeMap<CircuitKey, CircuitBan> = desired.bans.iter().map(row).collect();
        let mut repairs = Repairs::default();
        let mut failures = Vec::new();
        let mut edits = 1;
        // First of all the generation: it ends the bans of a tor that is gone, of whose numbers the next tor has the same.
        let settings = GateSettings { mode: desired.mode.number(), generation, ..self.in_force };
        match self.write_settings(settings) {
            Ok(changed) => repairs.settings = u64::from(changed),
            Err(error) => failures.push(error),
        }
        // Rows that go make room for those that come.
        let gone: Vec<CircuitKey> =
            self.rows.keys().filter(|key| !wanted.contains_key(key)).copied().collect();
        for key in gone {
            edits += 1;
            match self.bans.remove(&key) {
                Ok(()) | Err(aya::maps::MapError::KeyNotFound) => {
                    self.rows.remove(&key);
                    repairs.bans += 1;
                }
                Err(error) => failures.push(TableError::new("remove a row of", CIRCUIT_BANS)(error)),
            }
        }
        for (key, ban) in wanted {
            if self.rows.get(&key) == Some(&ban) {
                continue;
            }
            edits += 1;
            match self.bans.insert(key, ban, 0) {
                Ok(()) => {
                    self.rows.insert(key, ban);
                    repairs.bans += 1;
                }
                Err(error) => failures.push(TableError::new("write a row of", CIRCUIT_BANS)(error)),
            }
        }
        let failed = failures.len();
        match failures.into_iter().next() {
            None => Ok(repairs),
            Some(first) => Err(FollowError { failed, edits, first }),
        }
    }

    pub(super) fn totals(&self) -> Result<Totals, TableError> {
        let mut totals = Totals::default();
        for (outcome, total) in GateOutcome::ALL.into_iter().zip(&mut totals.0) {
            let counts =
                self.tallies.get(&(outcome as u32), 0).map_err(TableError::new("read", GATE_TALLIES))?;
            *total = counts.iter().fold(0, |sum: u64, count| sum.wrapping_add(*count));
        }
        Ok(totals)
    }
}

fn read_settings(settings: &Array<MapData, GateSettings>) -> Result<GateSettings, TableError> {
    settings.get(&0, 0).map_err(TableError::new("read", GATE_SETTINGS))
}
