//! The configuration file.
//!
//! [`read`] turns text into a [`Config`], which exists only validated, or into [`Problems`]: every fault of the file at
//! once, each with its place, its consequence and what to write instead. One table, [`REFERENCE`], holds each key's
//! range and default; validation, the reference page and the example file all come from it, so they cannot disagree.
//!
//! Apart from [`read_file`], which reads the one file it is given, this crate never does I/O. It asks the host nothing:
//! whether an interface or user exists is for the daemon to find out.
#![forbid(unsafe_code)]

mod arti;
mod changes;
mod circuits;
mod config;
mod ingress;
mod keys;
mod load;
mod nearest;
mod problem;
mod read;
mod reference;
mod rule;
mod sybil;

pub use arti::Arti;
pub use changes::{Change, Written, changes, front_mark};
pub use circuits::Circuits;
pub use config::{
    Attach, Bans, Config, Control, DropLog, Events, Fallback, GateMode, Grant, HAPROXY_STATISTICS, Http,
    Ledger, Log, LogFormat, LogLevel, Mode, OnStale, Profile, Protocol, Raise, Sanity, Shield, Syn, Tables,
    Tor, Uninspected, UnknownWord,
};
pub use ingress::{Haproxy, Ingress, Place};
pub use keys::{KeyDoc, REFERENCE};
pub use load::Load;
pub use problem::{Problem, Problems};
pub use read::{ReadFileError, read, read_file, read_file_and_text};
pub use reference::{example, reference_markdown};
pub use sybil::Sybil;

/// Where the file is unless the command line says otherwise.
pub const DEFAULT_PATH: &str = "/etc/tunica/tunica.toml";
