//! What Tor, HAProxy and proxies say on the wire, read and written: pure functions of bytes. No sockets, no clocks, no
//! randomness, no tokio; a nonce is an argument, and bytes come in whatever pieces the caller has.
//!
//! - [`proxy_codec`]: the PROXY header before a stream's first byte, which names the stream's circuit.
//! - [`control_codec`]: Tor's control port, commands out, replies and events in.
//! - [`haproxy_codec`]: HAProxy's Runtime API, as far as its table of circuits needs it.
//! - [`haproxy_config`]: the configuration that goes with it.
//! - [`key_file`]: the secret key of a service, as C tor keeps it.
//! - [`tor_metrics`]: the answer of Tor's MetricsPort, as far as it tells of load.
//! - [`torrc`]: what Tor's configuration publishes, and the lines of a service that leads to the ingress.
//!
//! Each reader holds three promises for all bytes: it never panics, it asks for no more than a stated number of bytes,
//! and it comes to the same outcome whatever pieces the bytes arrive in.
//!
//! Nothing here prints a circuit, an onion address, a relay or an address of the network in `Debug` or in an error.
#![forbid(unsafe_code)]

pub mod circuit;
pub mod control_codec;
pub mod haproxy_codec;
pub mod haproxy_config;
pub mod key_file;
pub mod name;
pub mod proxy_codec;
pub mod tor_metrics;
pub mod torrc;
