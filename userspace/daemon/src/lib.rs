//! The daemon: acts on what `tunica-core` decides, one shell for each outside system.
//!
//! It decides nothing about policy: what should be in force comes from the coordinator, and the shells make it so. It reads no
//! byte that a client sent, beyond the headers that the kernel program samples.

pub mod app;
pub mod directory;
pub mod event_loop;
pub mod explain;
pub mod ledger_file;
pub mod metrics;
pub mod netlink;
pub mod settings;
pub mod shell;
pub mod sys;
pub mod telemetry;
pub mod views;
