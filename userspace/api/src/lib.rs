//! What `tunica` asks and `tunicad` answers, and what `tunica-front` and `tunicad` tell each other.
//!
//! One request a connection: the client writes one JSON object and a newline, the daemon answers with one JSON object
//! and a newline and closes. Both carry [`SCHEMA`]; a reader accepts the numbers it knows and refuses others by name.
//! This crate decides nothing.
#![forbid(unsafe_code)]

pub mod front;
pub mod request;
pub mod view;
pub mod wire;

/// Number of the schema in this crate. It grows when a field changes its meaning or goes; new fields do not count.
pub const SCHEMA: u32 = 1;
