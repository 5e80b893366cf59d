//! In the place of [`arti`](crate::arti) where this program was built without it: says so, and hosts nothing.

use std::{sync::Arc, time::Duration};

use thiserror::Error;
use tokio::sync::mpsc;
use tunica_config::Config;

use crate::{circuits::Circuits, roll_call::Member, worker::Introduced};

/// Streams that wait for a worker.
pub const WAITING: usize = 1;

/// This program cannot host an onion service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "arti.enabled is true, and this tunica-front was built without the feature arti: nobody would host the onion service; build it \
     with `cargo build --release --package tunica-front --features arti`, or set arti.enabled to false and have a tor process \
     connect to ingress.listen"
)]
pub struct NotBuilt;

/// What is to be hosted; there is none.
#[derive(Debug)]
pub enum Plan {}

impl Plan {
    /// Refuses.
    ///
    /// # Errors
    /// Always.
    pub const fn new(_: &Config) -> Result<Self, NotBuilt> {
        Err(NotBuilt)
    }

    /// The onion address in full.
    ///
    /// # Errors
    /// None: there is no plan to ask.
    pub const fn onion_address(&self) -> Result<String, NotBuilt> {
        match *self {}
    }
}

/// The service; there is none.
#[derive(Debug)]
pub enum Hosted {}

impl Hosted {
    /// Hosts what is planned.
    ///
    /// # Errors
    /// None: there is no plan to begin with.
    pub fn begin(
        plan: Plan,
        _: Arc<Circuits>,
        _: Vec<mpsc::Sender<Introduced>>,
        _: Member,
        _: impl Send + 'static,
    ) -> Result<Self, NotBuilt> {
        match plan {}
    }

    /// Ends it.
    pub const fn end(self, _: Duration) {
        match self {}
    }
}
