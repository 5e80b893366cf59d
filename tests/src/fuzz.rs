//! What must hold for all inputs from outside, whatever their bytes.
//!
//! Each target is a function of bytes that panics where a property does not hold. The fuzzer (`tests/fuzz`, started by
//! `cargo xtask fuzz`) searches for such bytes; `tests/tests/fuzz.rs` replays in every run the inputs from which the
//! fuzzer starts, and those that once made it stop.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a panic is how a target says what does not hold")]

pub mod config;
pub mod control_port;
pub mod control_socket;
pub mod haproxy_api;
pub mod host_parser;
pub mod ledger;
pub mod pow_challenge;
pub mod pow_token;
pub mod proxy_header;
pub mod tor_metrics;
pub mod torrc;

/// Something that reads bytes from outside.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name on the command line; its program is `tests/fuzz/src/bin/NAME.rs`.
    pub name: &'static str,
    /// Panics if the properties do not hold for these bytes.
    pub check: fn(&[u8]),
    /// Inputs to start from, made by the code that writes what the target reads.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// Every target.
pub const TARGETS: [Target; 11] = [
    Target { name: "host-parser", check: host_parser::check, seeds: host_parser::seeds },
    Target { name: "config", check: config::check, seeds: config::seeds },
    Target { name: "control-socket", check: control_socket::check, seeds: control_socket::seeds },
    Target { name: "ledger", check: ledger::check, seeds: ledger::seeds },
    Target { name: "proxy-header", check: proxy_header::check, seeds: proxy_header::seeds },
    Target { name: "control-port", check: control_port::check, seeds: control_port::seeds },
    Target { name: "haproxy-api", check: haproxy_api::check, seeds: haproxy_api::seeds },
    Target { name: "pow-challenge", check: pow_challenge::check, seeds: pow_challenge::seeds },
    Target { name: "pow-token", check: pow_token::check, seeds: pow_token::seeds },
    Target { name: "tor-metrics", check: tor_metrics::check, seeds: tor_metrics::seeds },
    Target { name: "torrc", check: torrc::check, seeds: torrc::seeds },
];

impl Target {
    /// The target of this name.
    pub fn named(name: &str) -> Option<Self> {
        TARGETS.into_iter().find(|target| target.name == name)
    }
}

/// Takes the next byte from `bytes`; 0 once there is none.
fn take_byte(bytes: &mut &[u8]) -> u8 {
    let Some((first, rest)) = bytes.split_first() else { return 0 };
    *bytes = rest;
    *first
}
