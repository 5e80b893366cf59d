//! The onion service, hosted by this process with Arti, in the place of a tor process that connects to the ingress.
//!
//! A rendezvous request that Arti hands over is a circuit. Arti has no numbers for circuits, so each gets one of our own, from 1
//! on, as a tor process would give it; the generation is this process' own. A stream of it goes to a worker as one end of a pair
//! of connected sockets, and is judged there like any stream that a tor hands over. Circuits that the policy bans, or that are to
//! be closed, are closed here, which a client sees at once.
//!
//! Arti has threads of its own. It listens nowhere; its connections to the Tor network are the only ones that this process makes,
//! besides those to backends and to the daemon.

mod plan;

use std::{
    collections::HashMap,
    fs::{File, TryLockError},
    io,
    num::NonZeroU32,
    os::unix::net::UnixStream as StdUnixStream,
    path::Path,
    sync::Arc,
    time::Duration,
};

use arti_client::TorClient;
use futures_util::StreamExt as _;
use safelog::DisplayRedacted as _;
use thiserror::Error;
use tokio::{
    io::{AsyncWriteExt, copy},
    net::UnixStream,
    runtime::{Builder, Runtime},
    sync::{Notify, mpsc},
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};
use tor_cell::relaycell::msg::Connected;
use tor_hsservice::{RendRequest, RunningOnionService, StreamRequest, status::State};
use tor_proto::{client::stream::DataStream, stream::IncomingStreamRequest};
use tor_rtcompat::tokio::TokioRustlsRuntime;
use tunica_core::{
    id::{CircuitId, TorGeneration},
    refusal::Refusal,
};
use tunica_onion::circuit::RawCircuit;

pub use plan::{Plan, PlanError};

use crate::{circuits::Circuits, listener, worker::Introduced};

/// How long before what failed is tried again.
const PAUSE: Duration = Duration::from_secs(5);
/// How long until another look at whether the state directory is free: it is while another process takes this one's place.
const LOCK_PAUSE: Duration = Duration::from_millis(100);
/// Streams that wait for a worker.
pub const WAITING: usize = 128;
/// Fewest circuits that are held, however few connections are; each may have any number of streams, or none.
const FEWEST_CIRCUITS: usize = 1_024;
/// How long what was handed on has to go out before its circuit is closed.
const LINGER: Duration = Duration::from_millis(250);
/// How long Arti has to end once no worker serves any more.
const END: Duration = Duration::from_secs(2);

/// Why the service cannot be hosted.
#[derive(Debug, Error)]
pub enum HostError {
    /// No threads, for example.
    #[error("Arti's threads cannot be started")]
    Threads(#[source] io::Error),
    /// The lock of the state directory cannot be had.
    #[error(
        "{path} cannot be locked, so two processes could host the service at once; see who may write there"
    )]
    Lock {
        /// The lock.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Arti does not begin.
    #[error("Arti cannot begin")]
    Client(#[source] Box<arti_client::Error>),
    /// Arti does not host the service.
    #[error("Arti cannot host the service")]
    Launch(#[source] Box<arti_client::Error>),
}

/// The service, as long as this lives.
#[derive(Debug)]
pub struct Hosted {
    runtime: Runtime,
    task: JoinHandle<()>,
}

impl Hosted {
    /// Begins to host the service that is planned. Streams go to the workers in turn. Returns at once; until the service can be
    /// reached it takes some seconds on the first start.
    ///
    /// `ended` is dropped when the service is hosted no more.
    ///
    /// # Errors
    /// [`HostError::Threads`]. All else is logged, and tried again.
    pub fn begin(
        plan: Plan,
        circuits: Arc<Circuits>,
        generation: TorGeneration,
        workers: Vec<mpsc::Sender<Introduced>>,
        ended: impl Send + 'static,
    ) -> Result<Self, HostError> {
        // Someone else in this process may have done so; then that one serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        circuits.begin(generation);
        say(&circuits, "waiting");
        let (closer, closed) = mpsc::unbounded_channel();
        circuits.set_closer(closer);
        let runtime = Builder::new_multi_thread()
            .thread_name("arti")
            .enable_all()
            .build()
            .map_err(HostError::Threads)?;
        let arti = TokioRustlsRuntime::from(runtime.handle().clone());
        let host =
            Host { plan, circuits, generation, workers, turn: 0, next: 0, open: HashMap::new(), closed };
        let task = runtime.spawn(async move {
            let _held_until_the_end = ended;
            host.run(arti).await;
        });
        Ok(Self { runtime, task })
    }

    /// Ends it once [`Circuits::drain`] was said: what is on its way goes out first, but not for long.
    pub fn end(self) {
        let Self { runtime, task } = self;
        // What has not ended by then is cut.
        let _ = runtime.block_on(async { timeout(END, task).await });
        runtime.shutdown_timeout(END);
    }
}

struct Host {
    plan: Plan,
    circuits: Arc<Circuits>,
    generation: TorGeneration,
    workers: Vec<mpsc::Sender<Introduced>>,
    /// Which worker is next.
    turn: usize,
    /// The number of the last circuit.
    next: u32,
    /// Circuits that are open, and what has them closed.
    open: HashMap<NonZeroU32, Arc<Notify>>,
    closed: mpsc::UnboundedReceiver<CircuitId>,
}

impl Host {
    async fn run(mut self, runtime: TokioRustlsRuntime) {
        let circuits = Arc::clone(&self.circuits);
        let mut tasks = JoinSet::new();
        loop {
            let hosted = tokio::select! {
                biased;
                () = circuits.drained() => break,
                hosted = self.host(&runtime, &mut tasks) => hosted,
            };
            if let Err(error) = hosted {
                say(&circuits, "failed");
                let error = anyhow::Error::from(error);
                tracing::error!(
                    message_id = "arti_failed",
                    "the onion service is not hosted: {error:#}; it is tried again every {} s",
                    PAUSE.as_secs()
                );
            }
            tokio::select! {
                biased;
                () = circuits.drained() => break,
                () = sleep(PAUSE) => {}
            }
        }
        // The service and its lock are given up: from here on another process can host it. What was begun goes on.
        while !tasks.is_empty() {
            self.attend(&mut tasks).await;
        }
    }

    /// Hosts the service until it ends by itself.
    async fn host(
        &mut self,
        runtime: &TokioRustlsRuntime,
        tasks: &mut JoinSet<NonZeroU32>,
    ) -> Result<(), HostError> {
        let _lock = lock(&self.plan.lock_file()).await?;
        let config = self.plan.client().clone();
        let client =
            TorClient::with_runtime(runtime.clone()).config(config).create_unbootstrapped_async().await;
        let client = client.map_err(|error| HostError::Client(Box::new(error)))?;
        let config = self.plan.service().clone();
        let launched = match self.plan.identity() {
            Some(key) if !self.plan.has_key() => client
                .launch_onion_service_with_hsid(config, key)
                .map(|launched| launched.map(|(service, requests)| (service, requests.boxed()))),
            Some(_) | None => client
                .launch_onion_service(config)
                .map(|launched| launched.map(|(service, requests)| (service, requests.boxed()))),
        };
        let launched = launched.map_err(|error| HostError::Launch(Box::new(error)))?;
        // It is enabled, so there is one.
        let Some((service, mut requests)) = launched else { return Ok(()) };
        self.plan.note_key();
        if let Some(address) = service.onion_address() {
            tracing::debug!(message_id = "arti_address", address = %address.display_unredacted(), "the service's address");
        }
        let circuits = Arc::clone(&self.circuits);
        let watch = watch(&service, &circuits);
        let bootstrap = async {
            while let Err(error) = client.bootstrap().await {
                let error = anyhow::Error::from(error);
                tracing::warn!(message_id = "arti_bootstrap", "the Tor network is not reached: {error:#}");
                sleep(PAUSE).await;
            }
            std::future::pending::<()>().await;
        };
        tokio::pin!(watch, bootstrap);
        loop {
            tokio::select! {
                request = requests.next() => match request {
                    Some(request) => self.take(request, tasks),
                    None => return Ok(()),
                },
                () = self.attend(tasks) => {}
                () = &mut watch => {}
                () = &mut bootstrap => {}
            }
        }
    }

    /// Whatever comes first of what concerns circuits that are there: one is to be closed, or one has ended.
    async fn attend(&mut self, tasks: &mut JoinSet<NonZeroU32>) {
        tokio::select! {
            Some(circuit) = self.closed.recv() => {
                if circuit.generation() == self.generation
                    && let Some(close) = self.open.get(&circuit.number_for_this_node())
                {
                    close.notify_one();
                }
            }
            Some(ended) = tasks.join_next(), if !tasks.is_empty() => {
                // One whose task broke off is found when its number comes again.
                if let Ok(number) = ended {
                    self.open.remove(&number);
                    self.count_open();
                }
            }
            else => std::future::pending().await,
        }
    }

    fn count_open(&self) {
        let open = u64::try_from(self.open.len()).unwrap_or(u64::MAX);
        self.circuits.note_arti(|arti| arti.circuits = open);
    }

    /// A client asks for a circuit.
    fn take(&mut self, request: RendRequest, tasks: &mut JoinSet<NonZeroU32>) {
        self.circuits.note_arti(|arti| arti.rendezvous = arti.rendezvous.saturating_add(1));
        if tasks.len() >= self.plan.most_connections().saturating_mul(2).max(FEWEST_CIRCUITS) {
            self.circuits.count(Refusal::OutOfResources);
            return;
        }
        self.next = self.next.wrapping_add(1).max(1);
        let number = NonZeroU32::new(self.next).unwrap_or(NonZeroU32::MIN);
        let close = Arc::new(Notify::new());
        self.open.insert(number, Arc::clone(&close));
        self.count_open();
        self.turn = self.turn.wrapping_add(1) % self.workers.len().max(1);
        let circuit = Circuit {
            number,
            ports: self.plan.ports(),
            idle: self.plan.idle(),
            circuits: Arc::clone(&self.circuits),
            worker: self.workers.get(self.turn).cloned(),
        };
        tasks.spawn(async move {
            tokio::select! {
                () = circuit.carry(request) => {}
                // All that holds the circuit is dropped with this, and so it is closed.
                () = close.notified() => {}
            }
            number
        });
    }
}

/// One circuit of a client.
struct Circuit {
    number: NonZeroU32,
    ports: Arc<[u16]>,
    /// How long it may be without a stream.
    idle: Duration,
    circuits: Arc<Circuits>,
    worker: Option<mpsc::Sender<Introduced>>,
}

impl Circuit {
    /// Meets the client, and takes its streams until it has gone.
    async fn carry(self, request: RendRequest) {
        let mut requests = match request.accept().await {
            Ok(requests) => requests,
            Err(error) => {
                let error = anyhow::Error::from(error);
                tracing::debug!(message_id = "arti_rendezvous", "a client was not met: {error:#}");
                return;
            }
        };
        let mut streams = JoinSet::new();
        let mut is_draining = false;
        loop {
            tokio::select! {
                request = requests.next() => match request {
                    Some(request) => self.open(request, &mut streams).await,
                    None => break,
                },
                Some(_) = streams.join_next(), if !streams.is_empty() => {}
                () = sleep(self.idle), if streams.is_empty() && !is_draining => return,
                () = sleep(LINGER), if streams.is_empty() && is_draining => return,
                () = self.circuits.drained(), if !is_draining => is_draining = true,
            }
        }
        // The circuit has gone: its streams end, each once what came of it was handed on.
        while streams.join_next().await.is_some() {}
    }

    async fn open(&self, request: StreamRequest, streams: &mut JoinSet<()>) {
        let port = if let IncomingStreamRequest::Begin(begin) = request.request() { begin.port() } else { 0 };
        if !self.ports.contains(&port) {
            // As C tor does (HiddenServiceAllowUnknownPorts 0), so that the two cannot be told apart.
            let _ = request.shutdown_circuit();
            return;
        }
        let Some((place, near, far)) = self.place() else {
            self.circuits.count(Refusal::OutOfResources);
            let end =
                tor_cell::relaycell::msg::End::new_with_reason(tor_cell::relaycell::msg::EndReason::DONE);
            // Who has gone needs no answer.
            let _ = request.reject(end).await;
            return;
        };
        match request.accept(Connected::new_empty()).await {
            Ok(stream) => {
                place.send(Introduced { circuit: RawCircuit::new(self.number), stream: far });
                streams.spawn(pass(stream, near));
            }
            Err(error) => {
                let error = anyhow::Error::from(error);
                tracing::debug!(message_id = "arti_stream", "a stream broke off: {error:#}");
            }
        }
    }

    /// A place with the worker, and both ends of what leads there.
    fn place(&self) -> Option<(mpsc::Permit<'_, Introduced>, UnixStream, StdUnixStream)> {
        let place = self.worker.as_ref()?.try_reserve().ok()?;
        let (near, far) = pair().ok()?;
        Some((place, near, far))
    }
}

fn pair() -> io::Result<(UnixStream, StdUnixStream)> {
    let (near, far) = StdUnixStream::pair()?;
    listener::bound(&near)?;
    listener::bound(&far)?;
    near.set_nonblocking(true)?;
    Ok((UnixStream::from_std(near)?, far))
}

/// Carries bytes between a client and its worker until either has no more: a stream of Tor ends as a whole.
async fn pass(stream: DataStream, near: UnixStream) {
    let (mut from_client, mut to_client) = stream.split();
    let (mut from_worker, mut to_worker) = near.into_split();
    tokio::select! {
        // What was handed on stays readable for the worker.
        _ = copy(&mut from_client, &mut to_worker) => {}
        _ = copy(&mut from_worker, &mut to_client) => {
            // Who has gone needs no end.
            let _ = to_client.shutdown().await;
        }
    }
}

/// Waits until no other process holds the lock.
async fn lock(path: &Path) -> Result<File, HostError> {
    let failed = |source| HostError::Lock { path: path.display().to_string(), source };
    let file = File::create(path).map_err(failed)?;
    let mut is_waiting = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        if !is_waiting {
            is_waiting = true;
            tracing::info!(
                message_id = "arti_waits",
                "another process hosts the onion service; this one does once that one gives it up"
            );
        }
        sleep(LOCK_PAUSE).await;
    }
}

/// Arti's words for how a service is, and ours.
const STATES: [(State, &str); 7] = [
    (State::Shutdown, "shutdown"),
    (State::Bootstrapping, "bootstrapping"),
    (State::DegradedReachable, "degraded_reachable"),
    (State::DegradedUnreachable, "degraded_unreachable"),
    (State::Running, "running"),
    (State::Recovering, "recovering"),
    (State::Broken, "broken"),
];

fn say(circuits: &Circuits, state: &str) {
    circuits.note_arti(|arti| state.clone_into(&mut arti.state));
}

/// Says how the service is whenever that changes. Never returns.
async fn watch(service: &RunningOnionService, circuits: &Circuits) {
    let mut events = service.status_events();
    let mut last = None;
    while let Some(status) = events.next().await {
        let state = status.state();
        if last.replace(state) != Some(state) {
            let word = STATES.iter().find(|(known, _)| *known == state).map_or("broken", |(_, word)| *word);
            say(circuits, word);
            tracing::info!(message_id = "arti_state", "the onion service: {word}");
        }
    }
    std::future::pending::<()>().await;
}
