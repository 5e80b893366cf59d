//! Every decision of Tunica.
//!
//! This crate never does I/O, reads no clock, draws no random number and holds no `unsafe`: events, time and
//! randomness come in as arguments, and desired state, ledger commands and notices come out. What it may not use is
//! not in its `Cargo.toml`.
#![forbid(unsafe_code)]

pub mod id;
pub mod time;
