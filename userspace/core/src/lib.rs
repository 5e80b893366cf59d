//! Every decision of Tunica.
//!
//! This crate never does I/O, reads no clock, draws no random number and holds no `unsafe`: events, time and
//! randomness come in as arguments, and desired state, ledger commands and notices come out. What it may not use is
//! not in its `Cargo.toml`.
//!
//! [`coordinator::Coordinator`] is the only door; the other modules are what it decides with.
#![forbid(unsafe_code)]

pub mod anomaly;
pub mod armed;
pub mod attack_mode;
pub mod attempts;
pub mod ban_ladder;
pub mod candidate;
pub mod circuit_closing;
pub mod circuit_features;
pub mod circuit_naming;
pub mod circuit_orders;
pub mod circuit_policy;
pub mod circuit_registry;
pub mod coordinator;
pub mod defence;
pub mod desired;
pub mod evidence;
pub mod false_positives;
pub mod haproxy_table;
pub mod hosted_circuits;
pub mod id;
pub mod incident;
pub mod ledger;
pub mod limits;
pub mod load_level;
pub mod message;
pub mod never_ban;
pub mod newcomers;
pub mod notice;
pub mod puzzle_level;
pub mod reconcile;
pub mod refusal;
pub mod refusal_log;
pub mod reports;
pub mod restarts;
pub mod self_test;
pub mod shadow;
pub mod sources;
pub mod sybil;
pub mod syncookies;
pub mod time;
mod timetable;
pub mod token_keys;
pub mod tor_process;
pub mod tune;
mod violations;
pub mod waiting_room;
