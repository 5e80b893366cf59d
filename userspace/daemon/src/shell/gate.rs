//! The circuit gate: a program on `lo` that refuses banned circuits before the listener wakes.
//!
//! It refuses only what it read whole in the first segment of a connection (`ebpf/src/circuit_gate.rs`). Whoever listens
//! still asks for each circuit, and needs `TCP_DEFER_ACCEPT` for the gate to spare it the wake-up.
//!
//! Program, link and maps are pinned beside the shield's: bans go on, and lapse by their expiry, while no daemon runs.

pub mod attach;
mod tables;

use std::{
    collections::BTreeMap,
    fmt, fs,
    num::{NonZeroU16, NonZeroU32},
    path::{Path, PathBuf},
    sync::Arc,
};

use aya::{Ebpf, EbpfError, EbpfLoader, programs::ProgramError, programs::SchedClassifier};
use thiserror::Error;
use tunica_common::gate::{GATE_LAYOUT_HASH, GATE_MAPS, GATE_PORTS, GateOutcome};
use tunica_core::{limits::Mode, time::Monotime};

use self::{
    attach::{AttachError, Attachment},
    tables::Tables,
};
use super::xdp::{
    object::{self, LoadError},
    pins::{self, Pins, PinsError},
    tables::TableError,
};

/// The object that `cargo xtask build-ebpf` wrote.
pub static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../ebpf/prebuilt/gate.o"));

/// The program's name in the object.
pub const PROGRAM: &str = "circuit_gate";

/// What the directories of the gate's pins begin with.
const DIRECTORY: &str = "gate-v";

/// A circuit's ban.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ban {
    /// When it ends.
    pub until: Monotime,
    /// The ledger's number of it; 0 where it is no ledger fact.
    pub ban_id: u32,
}

/// What should be in force. `Debug` tells no circuit.
#[derive(Clone, PartialEq, Eq)]
pub struct Desired {
    /// Whether banned circuits are refused, or only counted, or nothing is read.
    pub mode: Mode,
    /// Which tor process the circuits belong to. Tor numbers them from 1 after each start, so each start must have a
    /// number that none of the bans before it had, those before a restart of the daemon included.
    pub generation: u32,
    /// Banned circuits of that process.
    pub bans: BTreeMap<NonZeroU32, Ban>,
}

impl fmt::Debug for Desired {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mode, generation, bans } = self;
        out.debug_struct("Desired")
            .field("mode", mode)
            .field("generation", generation)
            .field("bans", &bans.len())
            .finish()
    }
}

/// What was put right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repairs {
    /// Rows of the table of bans.
    pub bans: u64,
    /// Settings.
    pub settings: u64,
    /// Programs attached again, links pinned again.
    pub link: u64,
}

/// How often each outcome was since the maps were made, summed over the CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals([u64; GateOutcome::ALL.len()]);

impl Totals {
    /// Segments with this outcome.
    pub fn of(&self, outcome: GateOutcome) -> u64 {
        GateOutcome::ALL.into_iter().zip(self.0).find(|(is, _)| *is == outcome).map_or(0, |(_, count)| count)
    }
}

/// Why there is no gate. In each case banned circuits are refused by whoever listens, at more cost.
#[derive(Debug, Error)]
pub enum GateError {
    /// More ports than the gate can watch.
    #[error(
        "the circuit gate watches at most {GATE_PORTS} ports, and {0} are given; nothing was changed; let tor connect to fewer ports"
    )]
    TooManyPorts(usize),
    /// The directory of the pins.
    #[error(transparent)]
    Pins(#[from] PinsError),
    /// Object or pinned maps.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The kernel refused the object.
    #[error(
        "the kernel refused the maps of the circuit gate; banned circuits reach the listener, which refuses them; the gate needs Linux 6.1 or later with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON; the kernel said: {source}"
    )]
    Object {
        /// What aya or the kernel said.
        #[source]
        source: Box<EbpfError>,
    },
    /// The verifier refused the program.
    #[error(
        "the kernel refused the circuit gate; banned circuits reach the listener, which refuses them; the gate needs Linux 6.1 or later with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON; the kernel said: {source}"
    )]
    Program {
        /// What the kernel said.
        #[source]
        source: Box<ProgramError>,
    },
    /// A map could not be read or written.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The program could not be attached.
    #[error(transparent)]
    Attach(#[from] AttachError),
}

/// Why not every ban is in force at the gate.
#[derive(Debug, Error)]
#[error(
    "{failed} of {edits} changes could not be written to the circuit gate; the first: {first}; the listener refuses those circuits; the next look tries again"
)]
pub struct FollowError {
    failed: usize,
    edits: usize,
    #[source]
    first: TableError,
}

/// The gate in the kernel.
pub struct Gate {
    ebpf: Ebpf,
    tables: Tables,
    attachment: Attachment,
    directory: PathBuf,
    /// Keeps other daemons away from the pins.
    _pins: Arc<Pins>,
}

impl Gate {
    /// Loads the program, takes over the maps that an earlier daemon left, and attaches to the `lo` of the caller's network
    /// namespace, through the link that an earlier daemon left if there is one: then no segment passes unjudged.
    ///
    /// Mode, generation and bans stay as an earlier daemon left them until [`Gate::follow`]; new maps begin in mode `off`.
    /// If an earlier version left maps of another layout, nothing is refused from here to [`Gate::follow`].
    ///
    /// # Errors
    /// See [`GateError`]; what an earlier daemon attached stays attached.
    pub fn open(pins: &Arc<Pins>, ports: &[NonZeroU16]) -> Result<Self, GateError> {
        let directory = pins.directory(&format!("{DIRECTORY}{GATE_LAYOUT_HASH:016x}"))?;
        let mut ebpf = load(Some(&directory))?;
        let mut tables = Tables::take(&mut ebpf)?;
        tables.set_ports(ports)?;
        let before = others(pins.root(), &directory);
        let attachment = Attachment::make(program(&mut ebpf)?, &directory, &before)?;
        sweep(&before);
        Ok(Self { ebpf, tables, attachment, directory, _pins: Arc::clone(pins) })
    }

    /// Whether an earlier daemon left a gate, of whichever layout.
    pub fn was_left(pins: &Pins) -> bool {
        // No directory has this path, so all are others.
        !others(pins.root(), Path::new("")).is_empty()
    }

    /// Exchanges the ports that are watched.
    ///
    /// # Errors
    /// [`GateError::TooManyPorts`] and [`GateError::Table`]; the ports then stay.
    pub fn set_ports(&mut self, ports: &[NonZeroU16]) -> Result<(), GateError> {
        self.tables.set_ports(ports)
    }

    /// Writes what differs between the last state written and `desired`. With another generation all bans of the one
    /// before go out of force at once.
    ///
    /// # Errors
    /// [`FollowError`] after everything that could be written was.
    pub fn follow(&mut self, desired: &Desired) -> Result<Repairs, FollowError> {
        self.tables.follow(desired)
    }

    /// Reads maps and link back and puts right what differs from `desired`: rows that somebody removed, a program that
    /// somebody detached, also where the rows cannot be put right.
    ///
    /// # Errors
    /// [`GateError`], or [`GateError::Table`] with the first row that could not be written. [`Attachment::is_attached`]
    /// says what is still attached; a gate that is not is best opened anew.
    pub fn audit(&mut self, desired: &Desired) -> Result<Repairs, GateError> {
        let read = self.tables.read_back();
        let written = read.and_then(|()| self.tables.follow(desired).map_err(|error| error.first));
        let link = self.attachment.repair(program(&mut self.ebpf)?)?;
        Ok(Repairs { link: u64::from(link), ..written? })
    }

    /// How often each outcome was.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn totals(&self) -> Result<Totals, TableError> {
        self.tables.totals()
    }

    /// How the program is attached.
    pub const fn attachment(&self) -> &Attachment {
        &self.attachment
    }

    /// The program, to ask the kernel about it.
    ///
    /// # Errors
    /// [`LoadError::Missing`].
    pub fn program(&mut self) -> Result<&mut SchedClassifier, LoadError> {
        program(&mut self.ebpf)
    }

    /// The directory of the pins.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Detaches at once and forgets bans and counts. Below Linux 6.6 the queueing discipline `clsact` stays on `lo`; it does
    /// nothing, and others may use it.
    ///
    /// # Errors
    /// [`AttachError::Detach`]; the gate is then still attached.
    pub fn detach(self) -> Result<(), AttachError> {
        self.attachment.detach()?;
        sweep(&[self.directory]);
        Ok(())
    }
}

/// Loads the object, its maps pinned in the directory `pins` (reused if already there and of the same shape) or, with `None`,
/// private to this process. Attaches nothing.
///
/// # Errors
/// [`GateError::Load`], [`GateError::Object`] and [`GateError::Program`].
pub fn load(pins: Option<&Path>) -> Result<Ebpf, GateError> {
    object::check_sum(OBJECT, "gate.o")?;
    let mut loader = EbpfLoader::new();
    if let Some(pins) = pins {
        for shape in &GATE_MAPS {
            let path = pins.join(shape.name);
            // aya opens whatever is pinned there, so the shape is compared before.
            if path.exists() {
                object::check_shape(shape, shape.entries, &path)?;
            }
            loader.map_pin_path(shape.name, path);
        }
    }
    let mut ebpf = loader.load(OBJECT).map_err(|source| GateError::Object { source: Box::new(source) })?;
    let program = program(&mut ebpf)?;
    object::unless_interrupted(|| program.load())
        .map_err(|source| GateError::Program { source: Box::new(source) })?;
    Ok(ebpf)
}

/// The gate in a loaded object.
///
/// # Errors
/// [`LoadError::Missing`].
pub fn program(ebpf: &mut Ebpf) -> Result<&mut SchedClassifier, LoadError> {
    ebpf.program_mut(PROGRAM)
        .and_then(|program| program.try_into().ok())
        .ok_or(LoadError::Missing { what: "TC program", name: PROGRAM })
}

/// Directories of gates of other layouts.
fn others(root: &Path, own: &Path) -> Vec<PathBuf> {
    let is_ours = |name: &str| {
        name.strip_prefix(DIRECTORY)
            .is_some_and(|hash| hash.len() == 16 && hash.bytes().all(|digit| digit.is_ascii_hexdigit()))
    };
    pins::entries(root)
        .into_iter()
        .filter(|(name, path)| is_ours(name) && path != own && pins::check(path).is_ok())
        .map(|(_, path)| path)
        .collect()
}

/// Removes what the daemon pinned in these directories, and those of them that are empty then.
fn sweep(directories: &[PathBuf]) {
    for directory in directories {
        let ours = |name: &str| GATE_MAPS.iter().any(|shape| shape.name == name);
        let pinned: Vec<PathBuf> = pins::entries(directory)
            .into_iter()
            .filter(|(name, _)| ours(name) || *name == attach::PIN)
            .map(|(_, path)| path)
            .collect();
        pins::remove(&pinned);
        // What others pinned there stays, and the directory with it.
        let _ = fs::remove_dir(directory);
    }
}
