//! What the kernel program and the host must agree on, byte for byte.
//!
//! Map keys and values, map names and shapes, the one list of packet outcomes, and the limiter's arithmetic.
//! This crate knows no policy: rates, modes and lengths arrive in [`policy::Policy`], filled in by the host.
//! It never allocates, never does I/O, and knows nobody but `zerocopy`.
#![no_std]

pub mod event;
pub mod gate;
pub mod gcra;
pub mod keys;
pub mod layout;
#[cfg(feature = "aya")]
pub mod pod;
pub mod policy;
mod shared;
pub mod verdict;
