//! What tests, demo and benchmarks share: frames, an independent reference of the shield, a loaded shield to run
//! frames through.
//!
//! Nothing here is a mock: programs run in the real kernel, and what is missing is named and fails.

pub mod armed;
pub mod beside;
pub mod browser;
pub mod circuit_act;
pub mod client;
pub mod connections;
pub mod counters;
pub mod disk;
pub mod fate;
pub mod flood;
pub mod frame;
pub mod fuzz;
pub mod gate;
pub mod hosted;
pub mod ingress;
pub mod lab;
pub mod netns;
pub mod notify;
pub mod program;
pub mod reference;
pub mod report;
pub mod rows;
pub mod shield;
pub mod site;
pub mod soak;
pub mod stage;
pub mod sys;
pub mod testnet;
pub mod traces;
pub mod veth;
