//! The program that counts completed handshakes, and what it proves.
//!
//! It hangs on the root of the control groups of version 2, because only there does the kernel tell of every connection
//! that is established. Its link lives as long as this daemon: without one, nobody would read the proofs.

use std::{fs, io, path::PathBuf};

use aya::{
    Ebpf,
    maps::{MapData, RingBuf},
    programs::{CgroupAttachMode, ProgramError, SockOps},
};
use thiserror::Error;
use tunica_common::layout::PROOFS;

use super::object;

/// The program's name in the object.
const PROGRAM: &str = "handshake";

/// Why handshakes prove nothing.
#[derive(Debug, Error)]
pub enum HandshakesError {
    /// No such hierarchy.
    #[error(
        "no control group hierarchy of version 2 is mounted, so completed connections prove nothing; mount one, or set evidence.handshakes = false"
    )]
    NoHierarchy,
    /// Its root could not be opened.
    #[error("the control groups at {path} cannot be opened, so completed connections prove nothing: {source}", path = .path.display())]
    Open {
        /// Where it is mounted.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The kernel refused to load or attach the program.
    #[error("the kernel refused to count handshakes, so completed connections prove nothing: {}", with_causes(.0))]
    Program(#[from] ProgramError),
    /// The object is not the one this daemon was built with.
    #[error("the kernel object has no {0}; reinstall tunicad")]
    Missing(&'static str),
}

/// Loads the program and attaches it.
///
/// # Errors
/// See [`HandshakesError`]; the shield does without it.
pub fn attach(ebpf: &mut Ebpf) -> Result<(), HandshakesError> {
    let program: &mut SockOps = ebpf
        .program_mut(PROGRAM)
        .and_then(|program| program.try_into().ok())
        .ok_or(HandshakesError::Missing(PROGRAM))?;
    let path = hierarchy().ok_or(HandshakesError::NoHierarchy)?;
    let root = fs::File::open(&path).map_err(|source| HandshakesError::Open { path, source })?;
    object::unless_interrupted(|| program.load())?;
    // A link stands beside others by its nature; the flags of the older way to attach are refused (bpf_link_create).
    program.attach(root, CgroupAttachMode::Single)?;
    Ok(())
}

/// The proofs' ring buffer, once.
pub fn take_proofs(ebpf: &mut Ebpf) -> Option<RingBuf<MapData>> {
    ebpf.take_map(PROOFS).and_then(|map| map.try_into().ok())
}

/// Where the control groups of version 2 are mounted.
fn hierarchy() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let mut words = line.split(' ');
        let (_, place, kind) = (words.next()?, words.next()?, words.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(place))
    })
}

/// An error with what caused it.
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
