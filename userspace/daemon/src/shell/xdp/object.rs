//! The kernel program's object file: embedded, checked, loaded.

use std::{
    io,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{MapError, MapInfo, MapType, ProgramArray},
    programs::{ProgramError, Xdp},
};
use sha2::{Digest, Sha256};
use thiserror::Error;
use tunica_common::{
    layout::{
        ALLOW, BAN_FILTER, BANNED_NETS, BANS, DIFFERENCES, EVENTS, HEARTBEAT, JUDGED, JUMPS, LAYOUT_HASH,
        MAPS, MapKind, MapShape, OWN, PROOFS, SCRATCH, VERIFIED,
    },
    policy::{CANDIDATE_JUMPS, JUMP_CANDIDATE, JUMP_COOKIE, JUMP_SEGMENT, JUMP_SHIELD},
};

/// The object that `cargo xtask build-ebpf` wrote.
pub static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../ebpf/prebuilt/shield.o"));

/// What `sha256sum` said of the objects when they were built.
const RECORDED: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../ebpf/prebuilt/SHA256SUMS"));

/// `BPF_F_NO_PREALLOC` in include/uapi/linux/bpf.h.
const BPF_F_NO_PREALLOC: u32 = 1;

/// The program's name in the object.
pub const PROGRAM: &str = "shield";
/// Programs that the shield jumps to, by name and index. It does without those that the kernel refuses.
const JUMP_TARGETS: [(&str, u32); 2] = [(COOKIE, JUMP_COOKIE), (SEGMENT, JUMP_SEGMENT)];
/// Answers SYNs with cookies.
pub const COOKIE: &str = "cookie";
/// Judges segments by their sockets.
pub const SEGMENT: &str = "segment";

/// How many rows the tables have whose size the configuration sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Rows of the ban table.
    pub bans: u32,
    /// Rows of the table of banned ranges.
    pub nets: u32,
    /// Rows of the allow list.
    pub allow: u32,
}

impl Sizes {
    /// Rows of the map of this shape.
    pub fn entries(self, shape: &MapShape) -> u32 {
        match shape.name {
            BANS => self.bans,
            BANNED_NETS => self.nets,
            ALLOW => self.allow,
            _ => shape.entries,
        }
    }

    /// Name of the directory that holds maps of this layout and these sizes.
    pub fn directory(self) -> String {
        format!("v{LAYOUT_HASH:016x}-{}-{}-{}", self.bans, self.nets, self.allow)
    }
}

/// Why the program could not be loaded.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The embedded object is not the one whose checksum was recorded.
    #[error(
        "the embedded kernel object has SHA-256 {found}, but {recorded} was recorded when it was built; nothing was loaded; reinstall tunicad"
    )]
    Checksum {
        /// Of the embedded bytes.
        found: String,
        /// Of the manifest.
        recorded: String,
    },
    /// A pinned map is not what this version declares.
    #[error("pinned map {path} is not ours: {difference}; nothing was changed; if no other program owns it, remove it and start again", path = .path.display())]
    ForeignMap {
        /// Where it is pinned.
        path: PathBuf,
        /// What differs.
        difference: String,
    },
    /// A map could not be read or made.
    #[error("map {name}: {source}")]
    Map {
        /// Its name.
        name: &'static str,
        /// What the kernel said.
        #[source]
        source: MapError,
    },
    /// The kernel refused the object. What is needed comes first: what the kernel says may be long.
    #[error(
        "the kernel refused the object; the shield needs Linux 6.1 or later with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON (see `tunica doctor`); the kernel said: {source}"
    )]
    Object {
        /// What aya or the kernel said.
        #[source]
        source: Box<EbpfError>,
    },
    /// The verifier refused the program. Here too what is needed comes first.
    #[error(
        "the kernel refused the program; the shield needs Linux 6.1 or later with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON (see `tunica doctor`); the kernel said: {source}"
    )]
    Program {
        /// What the kernel said.
        #[source]
        source: Box<ProgramError>,
    },
    /// The program could not be run.
    #[error("the kernel did not run the program: {source}")]
    Run {
        /// What the kernel said.
        #[source]
        source: Box<ProgramError>,
    },
    /// The object lacks something, so it is not the one this daemon was built with.
    #[error("the kernel object has no {what} named {name}; reinstall tunicad")]
    Missing {
        /// `map` or `program`.
        what: &'static str,
        /// Its name.
        name: &'static str,
    },
}

/// SHA-256 of the embedded object, in hexadecimal.
pub fn object_sha256() -> String {
    sha256(OBJECT)
}

/// The checksum recorded at build time.
pub fn recorded_sha256() -> &'static str {
    recorded("shield.o")
}

/// Whether an embedded object has the checksum that was recorded for this file.
///
/// # Errors
/// [`LoadError::Checksum`].
pub(in crate::shell) fn check_sum(object: &[u8], file: &str) -> Result<(), LoadError> {
    let (found, recorded) = (sha256(object), recorded(file));
    if found == recorded {
        return Ok(());
    }
    Err(LoadError::Checksum { found, recorded: recorded.to_owned() })
}

fn recorded(file: &str) -> &'static str {
    RECORDED
        .lines()
        .filter_map(|line| line.split_once("  "))
        .find(|(_, of)| *of == file)
        .map_or("", |(sum, _)| sum)
}

fn sha256(object: &[u8]) -> String {
    hex::encode(Sha256::digest(object))
}

/// Maps that a candidate shares with the shield in force: facts rather than rules, and what the two tell each other.
const SHARED: [&str; 11] =
    [HEARTBEAT, BANS, BAN_FILTER, BANNED_NETS, ALLOW, OWN, JUMPS, JUDGED, DIFFERENCES, VERIFIED, SCRATCH];
/// The smallest ring buffer there is: a page.
const LEAST_RING_BYTES: u32 = 4_096;

/// Loads the object, its maps pinned in the directory `pins` (reused if already there and of the same shape) or, with `None`,
/// private to this process.
///
/// # Errors
/// See [`LoadError`]; nothing is attached yet, so a failure leaves the host as it was.
pub fn load(sizes: Sizes, pins: Option<&Path>) -> Result<Ebpf, LoadError> {
    let mut ebpf = load_maps(sizes, &mut EbpfLoader::new(), pins, |_| true)?;
    load_target(&mut ebpf, PROGRAM, JUMP_SHIELD)?;
    load_jump_targets(&mut ebpf, 0);
    Ok(ebpf)
}

/// Loads the object once more beside the one whose maps are pinned in `pins`, for a candidate: it shares what is no rule,
/// and has limits, clocks and counters of its own. Nothing jumps to it until a policy says so.
///
/// # Errors
/// See [`LoadError`]; the shield in force is as it was.
pub fn load_candidate(sizes: Sizes, pins: &Path) -> Result<Ebpf, LoadError> {
    let mut loader = EbpfLoader::new();
    // Nobody reads these.
    loader.map_max_entries(EVENTS, LEAST_RING_BYTES).map_max_entries(PROOFS, LEAST_RING_BYTES);
    let mut ebpf = load_maps(sizes, &mut loader, Some(pins), |name| SHARED.contains(&name))?;
    load_target(&mut ebpf, PROGRAM, JUMP_CANDIDATE)?;
    load_jump_targets(&mut ebpf, CANDIDATE_JUMPS);
    Ok(ebpf)
}

/// Makes the maps, or opens those that are pinned, of which `is_pinned` says so.
fn load_maps(
    sizes: Sizes,
    loader: &mut EbpfLoader<'_>,
    pins: Option<&Path>,
    is_pinned: fn(&str) -> bool,
) -> Result<Ebpf, LoadError> {
    check_sum(OBJECT, "shield.o")?;
    loader
        .map_max_entries(BANS, sizes.bans)
        .map_max_entries(BANNED_NETS, sizes.nets)
        .map_max_entries(ALLOW, sizes.allow);
    if let Some(pins) = pins {
        for shape in MAPS.iter().filter(|shape| is_pinned(shape.name)) {
            let path = pins.join(shape.name);
            // aya opens whatever is pinned there, so the shape is compared before.
            if path.exists() {
                check_shape(shape, sizes.entries(shape), &path)?;
            }
            loader.map_pin_path(shape.name, path);
        }
    }
    loader.load(OBJECT).map_err(|source| LoadError::Object { source: Box::new(source) })
}

fn load_jump_targets(ebpf: &mut Ebpf, base: u32) {
    for (name, index) in JUMP_TARGETS {
        if let Err(error) = load_target(ebpf, name, base + index) {
            tracing::warn!(message_id = "program_refused", program = name, "{error}");
        }
    }
}

/// Loads a program that is jumped to. The map of jumps then holds it, as long as somebody holds that.
fn load_target(ebpf: &mut Ebpf, name: &'static str, index: u32) -> Result<(), LoadError> {
    let program = named(ebpf, name)?;
    let refused = |source| LoadError::Program { source: Box::new(source) };
    unless_interrupted(|| program.load()).map_err(refused)?;
    let fd = program.fd().map_err(refused)?.try_clone().map_err(|source| refused(source.into()))?;
    let map = ebpf.map_mut(JUMPS).ok_or(LoadError::Missing { what: "map", name: JUMPS })?;
    ProgramArray::try_from(map)
        .and_then(|mut jumps| jumps.set(index, &fd, 0))
        .map_err(|source| LoadError::Map { name: JUMPS, source })
}

/// How often a program is handed to the kernel that says EAGAIN: as often as libbpf does it.
const ATTEMPTS: usize = 5;

/// Loads a program; once more if a signal came meanwhile, at which the kernel gives up verifying with EAGAIN (`do_check` in
/// kernel/bpf/verifier.c).
///
/// # Errors
/// Those of `load`.
pub(in crate::shell) fn unless_interrupted(
    load: impl FnMut() -> Result<(), ProgramError>,
) -> Result<(), ProgramError> {
    again(
        load,
        |error| matches!(error, ProgramError::LoadError { io_error, .. } if io_error.kind() == io::ErrorKind::WouldBlock),
    )
}

/// Does it once more as long as `is_passing` says so of its error, [`ATTEMPTS`] times at most.
fn again<Error>(
    mut act: impl FnMut() -> Result<(), Error>,
    is_passing: impl Fn(&Error) -> bool,
) -> Result<(), Error> {
    for _ in 1..ATTEMPTS {
        match act() {
            Err(error) if is_passing(&error) => {}
            result => return result,
        }
    }
    act()
}

/// Whether the kernel took the program of this name.
pub fn is_loaded(ebpf: &mut Ebpf, name: &'static str) -> bool {
    named(ebpf, name).is_ok_and(|program| program.fd().is_ok())
}

/// The shield in a loaded object.
///
/// # Errors
/// [`LoadError::Missing`].
pub fn program(ebpf: &mut Ebpf) -> Result<&mut Xdp, LoadError> {
    named(ebpf, PROGRAM)
}

fn named<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Xdp, LoadError> {
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(LoadError::Missing { what: "XDP program", name })
}

/// Whether what is pinned at `path` is the map of this shape, with as many entries.
///
/// # Errors
/// [`LoadError::ForeignMap`], or [`LoadError::Map`] if the kernel does not tell.
pub(in crate::shell) fn check_shape(shape: &MapShape, entries: u32, path: &Path) -> Result<(), LoadError> {
    let foreign = |difference: String| LoadError::ForeignMap { path: path.to_owned(), difference };
    let info = MapInfo::from_pin(path).map_err(|source| LoadError::Map { name: shape.name, source })?;
    let wanted = match shape.kind {
        MapKind::Hash => MapType::Hash,
        MapKind::Array => MapType::Array,
        MapKind::PerCpuArray => MapType::PerCpuArray,
        MapKind::LpmTrie => MapType::LpmTrie,
        MapKind::RingBuf => MapType::RingBuf,
        MapKind::ProgramArray => MapType::ProgramArray,
        MapKind::LruHash => MapType::LruHash,
    };
    let kind = info.map_type().map_err(|source| LoadError::Map { name: shape.name, source })?;
    if kind != wanted {
        return Err(foreign(format!("it is a {kind:?} where a {wanted:?} belongs")));
    }
    for (what, is, should) in [
        ("key bytes", info.key_size(), shape.key_bytes),
        ("value bytes", info.value_size(), shape.value_bytes),
        ("entries", info.max_entries(), entries),
        ("for its flags", info.map_flags(), flags(shape.kind)),
    ] {
        if is != should {
            return Err(foreign(format!("it has {is} {what}, ours has {should}")));
        }
    }
    Ok(())
}

/// The flags that the object declares for a map of this kind. Others change who may write to it or how much it holds.
const fn flags(kind: MapKind) -> u32 {
    match kind {
        // The kernel makes no other trie.
        MapKind::LpmTrie => BPF_F_NO_PREALLOC,
        MapKind::Hash
        | MapKind::Array
        | MapKind::PerCpuArray
        | MapKind::RingBuf
        | MapKind::ProgramArray
        | MapKind::LruHash => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of a program that the kernel refuses with these errors in turn, and how often it was asked.
    fn asked(errors: &[i32]) -> (bool, usize) {
        let mut count = 0;
        let act = || {
            count += 1;
            errors.get(count - 1).map_or(Ok(()), |errno| Err(*errno))
        };
        let result = again(act, |errno| *errno == libc::EAGAIN);
        (result.is_ok(), count)
    }

    #[test]
    fn a_signal_is_no_reason_to_do_without_a_program() {
        assert_eq!(asked(&[]), (true, 1));
        assert_eq!(asked(&[libc::EAGAIN; 4]), (true, 5));
        assert_eq!(asked(&[libc::EAGAIN; 5]), (false, 5));
        assert_eq!(asked(&[libc::EAGAIN, libc::EINVAL]), (false, 2));
    }
}
