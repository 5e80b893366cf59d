//! Tor's control port, for one tor: what its circuits do, which relays it speaks to, and the ends of circuits that the event
//! loop asks for.
//!
//! [`link`] makes a task, [`TorControl::run`], and the event loop's ends of two queues, [`TorEnds`]. The task connects, logs
//! in, subscribes, and connects again whenever tor has gone; it decides nothing. It tells, in this order:
//!
//! 1. [`TorHeard::Gone`] as long as tor cannot be reached, once for each reason.
//! 2. [`TorHeard::Connected`], with the generation: the same as before if it is the same tor process, else a higher one. It is
//!    the same for the next daemon, too, if there is a [`TorControlOptions::process_file`].
//! 3. [`TorHeard::Circuits`], every circuit there is. What is not in the list has ended.
//! 4. [`TorHeard::Circuit`], each change. A change may repeat what the list said already, because tor writes answers before
//!    events that wait.
//! 5. [`TorHeard::Services`] and [`TorHeard::Peers`], after the connection, whenever a connection of tor's changes, and every
//!    [`TorControlOptions::peers_every`].
//!
//! Whatever tor sends, memory is bounded: messages by the codec's [`Limits`](tunica_onion::control_codec::Limits), and
//! what the event loop has not taken by [`TorControlOptions::most_waiting`]. Beyond that changes are dropped and counted, and
//! once the loop has caught up tor is asked for the whole list again.
//!
//! Every command has [`TorControlOptions::command_timeout`]; a tor that answers later is left, because later answers could be
//! taken for those of other commands. The question for peers is the sign of life.

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use thiserror::Error;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tracing::Instrument;
use tunica_core::id::{CircuitId, TorGeneration};
use tunica_onion::torrc::Torrc;

use crate::{metrics::TorResponses, telemetry};

mod fact;
mod login;
mod memory;
mod outbox;
mod peers;
mod process;
mod session;
mod wire;

pub use fact::{CircuitChange, CircuitUse, TorCircuit};
pub use login::{LoginError, Proof};
pub use peers::TorPeers;
pub use wire::LinkError;

use memory::Memory;
use outbox::Outbox;
use session::{Over, Session};

/// Places of each of the two queues.
const QUEUE: usize = 64;

/// Where tor takes commands. Only places on this machine, because commands and passwords are not encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlAddress(Place);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// Why a text is no address of a control port.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AddressError {
    /// Neither of the two forms.
    #[error("`{0}` is no control port; write 127.0.0.1:9051, [::1]:9051 or unix:/run/tor/control")]
    Form(String),
    /// An address that others can reach.
    #[error(
        "`{0}` is not on loopback, and whoever listens on the way could read passwords and close circuits; give a \
         loopback address or unix:/path"
    )]
    NotLoopback(SocketAddr),
}

impl FromStr for ControlAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let form = || AddressError::Form(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            let is_path = Path::new(path).is_absolute();
            return is_path.then(|| Self(Place::Unix(path.into()))).ok_or_else(form);
        }
        let address: SocketAddr = text.parse().map_err(|_| form())?;
        let is_loopback = address.ip().to_canonical().is_loopback();
        is_loopback.then_some(Self(Place::Tcp(address))).ok_or(AddressError::NotLoopback(address))
    }
}

impl fmt::Display for ControlAddress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Place::Tcp(address) => address.fmt(out),
            Place::Unix(path) => write!(out, "unix:{}", path.display()),
        }
    }
}

/// A password of the control port. `Debug` is scrubbed.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

impl Password {
    /// This one.
    pub const fn new(password: String) -> Self {
        Self(password)
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Password(scrubbed)")
    }
}

/// How to reach one tor.
#[derive(Clone, Debug)]
pub struct TorControlOptions {
    /// Where it takes commands.
    pub address: ControlAddress,
    /// Its cookie's file; where tor says that it is, if absent. A cookie is shown openly only from a file named here, since
    /// whoever listens in tor's place could name a file of somebody else.
    pub cookie_file: Option<PathBuf>,
    /// Its password. With this or `cookie_file` a tor that asks for neither is refused.
    pub password: Option<Password>,
    /// Where it is kept which tor process this was, so that the next daemon gives it the same [`TorGeneration`]; nowhere, if
    /// absent. Then only the kernel's word makes it the same, which `/proc` may hide.
    pub process_file: Option<PathBuf>,
    /// How long connecting, and each command, may take.
    pub command_timeout: Duration,
    /// How often peers are asked for when nothing changes.
    pub peers_every: Duration,
    /// How long to wait before the second attempt to connect; each further wait is twice as long.
    pub retry_least: Duration,
    /// The longest wait between two attempts.
    pub retry_most: Duration,
    /// How many facts may wait for the event loop before changes of circuits are dropped.
    pub most_waiting: usize,
}

impl TorControlOptions {
    /// The tor at this address, and the usual patience.
    pub const fn new(address: ControlAddress) -> Self {
        Self {
            address,
            cookie_file: None,
            password: None,
            process_file: None,
            command_timeout: Duration::from_secs(10),
            peers_every: Duration::from_secs(30),
            retry_least: Duration::from_secs(1),
            retry_most: Duration::from_secs(30),
            most_waiting: 4_096,
        }
    }
}

/// What the event loop hears.
#[derive(Debug)]
pub enum TorHeard {
    /// Tor is reached and the login done.
    Connected {
        /// Which tor process: higher than any before, unless it is the process of the connection before.
        generation: TorGeneration,
        /// Its version, such as `0.4.9.11`.
        version: String,
        /// Its pid, if that is known to be one of this machine as the daemon sees it.
        pid: Option<u32>,
    },
    /// Every circuit of the tor that is connected. All others have ended.
    Circuits {
        /// Those there are, in no order.
        open: Vec<TorCircuit>,
        /// Changes that were dropped since the list before: the loop was too slow, or they could not be read.
        missed: u64,
    },
    /// One circuit changed.
    Circuit(TorCircuit),
    /// Relays that tor speaks to or would.
    Peers(TorPeers),
    /// What its onion services publish. Services that controllers made are not among it.
    Services(Torrc),
    /// What came of [`TorAct::Close`].
    Closed {
        /// Which circuit.
        circuit: CircuitId,
        /// What came of it.
        outcome: CloseOutcome,
    },
    /// Tor cannot be reached: since now, or still and for another reason. Nothing is known of its circuits.
    Gone {
        /// Why.
        why: LinkError,
    },
}

/// What the event loop asks for.
#[derive(Debug)]
pub enum TorAct {
    /// Closes a circuit with all its streams (`CLOSECIRCUIT`). [`TorHeard::Closed`] answers it.
    Close(CircuitId),
}

/// What came of closing a circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseOutcome {
    /// Tor closes it; its end comes as a [`TorHeard::Circuit`].
    Accepted,
    /// Tor knows no such circuit, most likely because it has ended.
    NoSuchCircuit,
    /// It belongs to another tor process than the one that is connected; nothing was asked.
    OtherTor,
    /// Tor is not connected, or did not answer.
    NotConnected,
    /// Tor refuses.
    Refused {
        /// With this status.
        status: u16,
    },
}

/// The event loop's ends of the queues. [`TorControl::run`] ends when they are dropped.
#[derive(Debug)]
pub struct TorEnds {
    /// What tor does.
    pub heard: mpsc::Receiver<TorHeard>,
    /// What it shall do. A full queue means that tor is slow: what was not taken is to be asked for again later.
    pub acts: mpsc::Sender<TorAct>,
}

/// The task's side.
#[derive(Debug)]
pub struct TorControl {
    options: TorControlOptions,
    outbox: Outbox,
    acts: mpsc::Receiver<TorAct>,
    memory: Memory,
    responses: Option<TorResponses>,
    /// The reason that was told last, while tor is not connected.
    gone: Option<String>,
}

/// A task for one tor, and the event loop's ends.
pub fn link(options: TorControlOptions) -> (TorControl, TorEnds) {
    let (sender, heard) = mpsc::channel(QUEUE);
    let (acts, acts_end) = mpsc::channel(QUEUE);
    let outbox = Outbox::new(sender, options.most_waiting);
    let memory = Memory::new(options.process_file.clone());
    let control = TorControl { options, outbox, acts: acts_end, memory, responses: None, gone: None };
    (control, TorEnds { heard, acts })
}

impl TorControl {
    /// Counts how long tor takes to answer.
    #[must_use]
    pub fn counting(self, responses: TorResponses) -> Self {
        Self { responses: Some(responses), ..self }
    }

    /// Runs until the event loop has dropped its ends. Must be called on a tokio runtime with a clock.
    pub async fn run(mut self) {
        let mut pause = self.options.retry_least;
        // What is left from one connection is taken before the next begins, or facts could pile up.
        while self.outbox.empty().await == Over::No {
            let span = telemetry::event_span("tor_control");
            let why = match self.connect(&mut pause).instrument(span.clone()).await {
                Ok(()) => return,
                Err(why) => why,
            };
            span.in_scope(|| self.tell_gone(why));
            if self.rest(pause).await == Over::Yes {
                return;
            }
            pause = (pause * 2).min(self.options.retry_most);
        }
    }

    /// One connection, from its beginning to its end. `Ok` says that the event loop has gone.
    async fn connect(&mut self, pause: &mut Duration) -> Result<(), LinkError> {
        let Self { options, outbox, acts, memory, responses, gone } = self;
        let mut wire =
            wire::Wire::connect(&options.address, options.command_timeout, responses.clone()).await?;
        login::login(&mut wire, options).await?;
        let process::Answer { version, seen, local_pid: pid } = process::ask(&mut wire, wire::ignore).await?;
        let generation = memory.meet(seen);
        tracing::info!(
            message_id = "tor_control_connected",
            version,
            generation = generation.0,
            "tor's control port at {} is connected",
            options.address
        );
        *gone = None;
        *pause = options.retry_least;
        outbox.tell(TorHeard::Connected { generation, version, pid });
        Session::new(wire, generation, memory, outbox, acts, options).run().await
    }

    fn tell_gone(&mut self, why: LinkError) {
        let text = why.to_string();
        if self.gone.as_ref() != Some(&text) {
            tracing::warn!(message_id = "tor_control_lost", "{text}");
            self.gone = Some(text);
            self.outbox.tell(TorHeard::Gone { why });
        }
    }

    /// Waits; whoever wants something of tor hears that it is not there.
    async fn rest(&mut self, pause: Duration) -> Over {
        let end = Instant::now() + pause;
        loop {
            tokio::select! {
                () = sleep_until(end) => return Over::No,
                over = self.outbox.pass_on(), if !self.outbox.is_empty() => {
                    if over == Over::Yes {
                        return over;
                    }
                }
                act = self.acts.recv(), if self.outbox.has_room() => match act {
                    None => return Over::Yes,
                    Some(TorAct::Close(circuit)) => {
                        self.outbox.tell(TorHeard::Closed { circuit, outcome: CloseOutcome::NotConnected });
                    }
                },
            }
        }
    }
}

#[cfg(test)]
mod tests;
