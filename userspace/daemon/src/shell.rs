//! One shell for each outside system: it turns what happened outside into events, and desired state into acts.

pub mod control_socket;
pub mod front;
pub mod front_process;
pub mod gate;
pub mod haproxy;
pub mod host;
pub mod http;
pub mod listeners;
pub mod load;
pub mod nft;
pub mod samples;
pub mod token_file;
pub mod tor_control;
pub mod tor_peers;
pub mod xdp;
