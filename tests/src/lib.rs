//! What tests, demo and benchmarks share: frames, an independent reference of the shield, a loaded shield to run
//! frames through.
//!
//! Nothing here is a mock: programs run in the real kernel, and what is missing is named and fails.

pub mod frame;
pub mod reference;
pub mod rows;
pub mod shield;
