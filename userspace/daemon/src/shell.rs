//! One shell for each outside system: it turns what happened outside into events, and desired state into acts.

pub mod xdp;
