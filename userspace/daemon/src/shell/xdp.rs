//! The kernel: program, maps, link.

pub mod attach;
pub mod hook;
pub mod object;
pub mod probe;
pub mod tables;
