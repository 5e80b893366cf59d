//! The ingress: what stands on the port that tor connects to.
//!
//! It has no capability, no ledger, no master key and no map of the kernel's; it decides nothing about circuits by itself:
//! [`tunica_core::circuit_policy`] does. While the daemon is away it goes on with the orders it had.
#![deny(unsafe_code)]

#[cfg(feature = "arti")]
pub mod arti;
pub mod backend;
pub mod challenge;
pub mod circuits;
pub mod http;
pub mod link;
pub mod listener;
pub mod memory;
pub mod messages;
pub mod outlet;
pub mod pulse;
pub mod refusals;
pub mod roll_call;
pub mod stream;
pub mod successor;
mod sys;
pub mod tcp;
pub mod welcome;
#[cfg(not(feature = "arti"))]
pub mod without_arti;
pub mod worker;

pub use sys::handed_over;
#[cfg(not(feature = "arti"))]
pub use without_arti as arti;
