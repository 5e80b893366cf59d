//! The onion service, hosted by this process with Arti, in the place of a tor process that connects to the ingress.
//!
//! A rendezvous request that Arti hands over is a circuit. Arti has no numbers for circuits, so each gets one of our own, from 1
//! on, as a tor process would give it; the generation is this process' own. A stream of it goes to a worker as one end of a pair
//! of connected sockets, and is judged there like any stream that a tor hands over. It keeps its place there until what is to go
//! out to the client has gone. Circuits that the policy bans, or that are to be closed, are closed here, which a client sees at
//! once.
//!
//! Arti has threads of its own. It accepts nothing; its connections to the Tor network are the only ones that this process makes,
//! besides those to backends and to the daemon.

mod plan;

use std::{
    convert::Infallible,
    fs::{File, TryLockError},
    io,
    mem::{self, ManuallyDrop},
    num::NonZeroU32,
    os::unix::net::UnixStream as StdUnixStream,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use arti_client::{ErrorKind, HasKind as _, TorClient};
use futures_util::StreamExt as _;
use thiserror::Error;
use tokio::{
    io::copy,
    net::UnixStream,
    runtime::{Builder, Runtime},
    sync::{Notify, mpsc, oneshot},
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};
use tor_cell::relaycell::msg::Connected;
use tor_hsservice::{RendRequest, RunningOnionService, StreamRequest, status::State};
use tor_proto::{client::stream::DataStream, stream::IncomingStreamRequest};
use tor_rtcompat::tokio::TokioRustlsRuntime;
use tunica_core::{
    hosted_circuits::{Entered, Places},
    id::TorGeneration,
    refusal::Refusal,
};
use tunica_onion::circuit::RawCircuit;

pub use plan::{Plan, PlanError};

use crate::{
    circuits::{self, Circuits, Closing},
    listener,
    outlet::send_on,
    roll_call::Member,
    worker::Introduced,
};

/// How long before what failed is tried again.
const PAUSE: Duration = Duration::from_secs(5);
/// How long until another look at whether the state directory is free: it is while another process takes this one's place.
const LOCK_PAUSE: Duration = Duration::from_millis(100);
/// How long until another attempt where what Arti holds in the state directory is not free yet.
const HELD_PAUSE: Duration = Duration::from_secs(1);
/// How often it is looked whether Arti still only begins, once it knows the network, and how many times in a row are too many: it
/// then takes seconds to be reachable.
const LOOK: Duration = Duration::from_secs(60);
const MOST_LOOKS: u32 = 10;
/// With its proof of work, be it switched on or not, Arti keeps until the process ends what it holds in the state directory, and
/// threads that sleep by the runtime's clock and panic where that stops before them (`pow/v1.rs`, tasks without an end).
const HOSTS_ONCE: bool = cfg!(feature = "arti-pow");
/// Streams that wait for a worker.
pub const WAITING: usize = 128;
/// Fewest circuits that are held, however few connections are; each may have any number of streams, or none.
const FEWEST_CIRCUITS: usize = 1_024;
/// How long a client may take to be met, and then to open its first stream: it asked for the circuit because it has use for it.
const FIRST: Duration = Duration::from_secs(30);
/// How long a stream waits for a place with its worker.
const PLACE: Duration = Duration::from_secs(1);
/// How long what was handed on has to go out before its circuit is closed.
const LINGER: Duration = Duration::from_millis(250);
/// How long Arti has to end at least once no worker serves any more.
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
    /// The state directory cannot be read, or has another key by now.
    #[error(transparent)]
    Key(Box<PlanError>),
    /// Arti does not begin.
    #[error("Arti cannot begin")]
    Client(#[source] Box<arti_client::Error>),
    /// Arti does not host the service.
    #[error("Arti cannot host the service")]
    Launch(#[source] Box<arti_client::Error>),
    /// What publishes the service, or meets its clients, has ended.
    #[error(
        "Arti has given the service up, and its lines before this one say why; see whether the disk is full"
    )]
    Broken,
    /// It never got beyond its beginning.
    #[error("Arti knows the network, and is no further for {} minutes", MOST_LOOKS)]
    Stuck,
}

impl HostError {
    /// Whether another process, or an earlier attempt of this one, has not let go yet of what it holds.
    fn is_held(&self) -> bool {
        match self {
            Self::Client(error) | Self::Launch(error) => error.kind() == ErrorKind::LocalResourceAlreadyInUse,
            Self::Threads(_) | Self::Lock { .. } | Self::Key(_) | Self::Broken | Self::Stuck => false,
        }
    }
}

/// The service. Its threads end by [`Hosted::end`], or with the process: a process that fails waits for none of them.
#[derive(Debug)]
pub struct Hosted {
    runtime: ManuallyDrop<Runtime>,
    task: JoinHandle<()>,
}

impl Hosted {
    /// Begins to host the service that is planned. Streams go to the workers in turn. Returns at once; until the service can be
    /// reached it takes some seconds on the first start.
    ///
    /// `ended` is dropped when the service is hosted no more, and will not be again by this process. What hosts it answers as
    /// `member`, whether or not the Tor network is reached.
    ///
    /// # Errors
    /// [`HostError::Threads`]. All else is logged, and tried again.
    pub fn begin(
        plan: Plan,
        circuits: Arc<Circuits>,
        workers: Vec<mpsc::Sender<Introduced>>,
        member: Member,
        ended: impl Send + 'static,
    ) -> Result<Self, HostError> {
        // Someone else in this process may have done so; then that one serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        say(&circuits, "waiting");
        let (closer, closed) = mpsc::unbounded_channel();
        circuits.set_closer(closer);
        let runtime = Builder::new_multi_thread()
            .thread_name("arti")
            .enable_all()
            .build()
            .map_err(HostError::Threads)?;
        let arti = TokioRustlsRuntime::from(runtime.handle().clone());
        let most = plan.most_connections().saturating_mul(2).max(FEWEST_CIRCUITS);
        let open = Open(Arc::new(Mutex::new(Places::new(most))));
        let host = Host {
            plan,
            circuits,
            generation: None,
            workers,
            turn: 0,
            next: 0,
            most,
            is_full: false,
            open,
            closed,
            was_launched: false,
        };
        let task = runtime.spawn(async move {
            tokio::select! {
                () = host.run(arti, ended) => {}
                () = member.answer() => {}
            }
        });
        Ok(Self { runtime: ManuallyDrop::new(runtime), task })
    }

    /// Ends it once [`Circuits::drain`] was said: what is on its way goes out first, for as long as `patience`.
    pub fn end(self, patience: Duration) {
        let Self { runtime, task } = self;
        // What has not ended by then is cut.
        let _ = runtime.block_on(async { timeout(patience.max(END), task).await });
        if !HOSTS_ONCE {
            ManuallyDrop::into_inner(runtime).shutdown_timeout(END);
        }
    }
}

struct Host {
    plan: Plan,
    circuits: Arc<Circuits>,
    /// Drawn once the service is this process' for the first time: whoever hosts it later has a later one.
    generation: Option<TorGeneration>,
    workers: Vec<mpsc::Sender<Introduced>>,
    /// Which worker is next.
    turn: usize,
    /// The number of the last circuit.
    next: u32,
    /// Most circuits that are open.
    most: usize,
    /// Whether circuits had to go for others, and that was said.
    is_full: bool,
    open: Open,
    closed: mpsc::UnboundedReceiver<Closing>,
    /// Whether Arti has hosted the service in this process.
    was_launched: bool,
}

/// What has a circuit closed.
#[derive(Debug, Default)]
struct Closer {
    at_once: Notify,
    once_done: Notify,
    /// Whether it was told.
    is_told: AtomicBool,
}

/// The circuits that are open.
#[derive(Clone, Debug)]
struct Open(Arc<Mutex<Places<Arc<Closer>>>>);

impl Open {
    fn places(&self) -> MutexGuard<'_, Places<Arc<Closer>>> {
        // No step of it panics between what belongs together.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, circuits: &Circuits) {
        let open = u64::try_from(self.places().len()).unwrap_or(u64::MAX);
        circuits.note_arti(|arti| arti.circuits = open);
    }
}

/// A circuit's place among those that are open, as long as its task lives.
struct Seat {
    number: NonZeroU32,
    open: Open,
    circuits: Arc<Circuits>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.open.places().leave(self.number);
        self.open.say(&self.circuits);
        self.circuits.ended(self.circuits.circuit(self.number));
    }
}

impl Host {
    async fn run(mut self, runtime: TokioRustlsRuntime, ended: impl Send + 'static) {
        let circuits = Arc::clone(&self.circuits);
        let mut tasks = JoinSet::new();
        'hosting: loop {
            let Err(error) = tokio::select! {
                biased;
                () = circuits.drained() => break,
                hosted = self.host(&runtime, &mut tasks) => hosted,
            };
            let is_held = error.is_held();
            say(&circuits, if is_held { "waiting" } else { "failed" });
            let error = anyhow::Error::from(error);
            if is_held {
                tracing::debug!(message_id = "arti_waits", "{error:#}");
            } else if HOSTS_ONCE && self.was_launched {
                tracing::error!(
                    message_id = "arti_failed",
                    "the onion service is not hosted: {error:#}; this process ends, because only another one can host it again"
                );
                break;
            } else {
                tracing::error!(
                    message_id = "arti_failed",
                    "the onion service is not hosted: {error:#}; it is tried again every {} s",
                    PAUSE.as_secs()
                );
            }
            let pause = sleep(if is_held { HELD_PAUSE } else { PAUSE });
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    biased;
                    () = circuits.drained() => break 'hosting,
                    () = &mut pause => break,
                    // Circuits that are there outlive what met them.
                    () = self.attend(&mut tasks) => {}
                }
            }
        }
        drop(ended);
        // The service and its lock are given up: from here on another process can host it. What was begun goes on.
        while !tasks.is_empty() {
            self.attend(&mut tasks).await;
        }
    }

    /// Hosts the service until that fails.
    async fn host(
        &mut self,
        runtime: &TokioRustlsRuntime,
        tasks: &mut JoinSet<()>,
    ) -> Result<Infallible, HostError> {
        let _lock = lock(&self.plan.lock_file()).await?;
        // Whoever had it before may have made or taken over a key, and so may an attempt of this process that failed.
        self.plan.learn_key().map_err(|error| HostError::Key(Box::new(error)))?;
        if self.generation.is_none() {
            let generation = TorGeneration(circuits::now().0);
            self.circuits.begin(generation);
            self.generation = Some(generation);
        }
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
        let Some((service, mut requests)) = launched else { return Err(HostError::Broken) };
        self.was_launched = true;
        let circuits = Arc::clone(&self.circuits);
        let mut intake = self.plan.intake();
        let watch = watch(&service, &circuits);
        let bootstrap = async {
            while let Err(error) = client.bootstrap().await {
                let error = anyhow::Error::from(error);
                tracing::warn!(message_id = "arti_bootstrap", "the Tor network is not reached: {error:#}");
                sleep(PAUSE).await;
            }
            let mut looks = 0;
            while looks < MOST_LOOKS {
                sleep(LOOK).await;
                looks = if service.status().state() == State::Bootstrapping { looks + 1 } else { 0 };
            }
            HostError::Stuck
        };
        tokio::pin!(watch, bootstrap);
        loop {
            let wait = intake.as_ref().map_or(Duration::ZERO, |intake| intake.wait(circuits::now()));
            tokio::select! {
                request = requests.next(), if wait.is_zero() => match request {
                    Some(request) => {
                        if let Some(intake) = &mut intake {
                            intake.take(circuits::now());
                        }
                        self.take(request, tasks);
                    }
                    None => return Err(HostError::Broken),
                },
                () = sleep(wait), if !wait.is_zero() => {}
                () = self.attend(tasks) => {}
                error = &mut watch => return Err(error),
                error = &mut bootstrap => return Err(error),
            }
        }
    }

    /// Whatever comes first of what concerns circuits that are there: one is to be closed, or one has ended.
    async fn attend(&mut self, tasks: &mut JoinSet<()>) {
        tokio::select! {
            Some(Closing { circuit, why }) = self.closed.recv() => {
                if Some(circuit.generation()) == self.generation {
                    let closer = self.open.places().closer(circuit.number_for_this_node()).map(Arc::clone);
                    match closer {
                        Some(closer) => {
                            let is_at_once = matches!(why, None | Some(Refusal::Banned | Refusal::CircuitRotated));
                            if is_at_once { closer.at_once.notify_one() } else { closer.once_done.notify_one() }
                            if !closer.is_told.swap(true, Relaxed)
                                && let Some(why) = why
                            {
                                self.circuits.closed(why);
                            }
                        }
                        None => self.circuits.ended(circuit),
                    }
                }
            }
            Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
            else => std::future::pending().await,
        }
    }

    /// A client asks for a circuit.
    fn take(&mut self, request: RendRequest, tasks: &mut JoinSet<()>) {
        self.circuits.note_arti(|arti| arti.rendezvous = arti.rendezvous.saturating_add(1));
        self.next = self.next.wrapping_add(1).max(1);
        let number = NonZeroU32::new(self.next).unwrap_or(NonZeroU32::MIN);
        let closer = Arc::new(Closer::default());
        let entered = self.open.places().enter(number, Arc::clone(&closer));
        match entered {
            Entered::Free => {
                // Said again once there was room for a while.
                self.is_full &= self.open.places().len() > self.most / 2;
            }
            Entered::InPlaceOf(other) => {
                other.at_once.notify_one();
                self.say_full();
            }
            Entered::Full => {
                self.say_full();
                return;
            }
        }
        self.open.say(&self.circuits);
        self.turn = self.turn.wrapping_add(1) % self.workers.len().max(1);
        let circuit = Circuit {
            seat: Seat { number, open: self.open.clone(), circuits: Arc::clone(&self.circuits) },
            ports: self.plan.ports(),
            idle: self.plan.idle(),
            patience: self.plan.patience(),
            circuits: Arc::clone(&self.circuits),
            worker: self.workers.get(self.turn).cloned(),
        };
        tasks.spawn(async move {
            tokio::select! {
                () = circuit.carry(request, &closer.once_done) => {}
                // All that holds the circuit is dropped with this, and so it is closed.
                () = closer.at_once.notified() => {}
            }
        });
    }

    fn say_full(&mut self) {
        self.circuits.count(Refusal::OutOfResources);
        if !mem::replace(&mut self.is_full, true) {
            tracing::warn!(
                message_id = "arti_full",
                "{} circuits are open, and no more are held: each that comes now takes the place of the one that has been without \
                 a stream longest, or finds none; lower arti.intro_per_second if this goes on, or raise ingress.maxconn if these are visitors",
                self.most
            );
        }
    }
}

/// One circuit of a client.
struct Circuit {
    seat: Seat,
    ports: Arc<[u16]>,
    /// How long it may be without a stream.
    idle: Duration,
    /// How long its client may take nothing of what goes out.
    patience: Duration,
    circuits: Arc<Circuits>,
    worker: Option<mpsc::Sender<Introduced>>,
}

impl Circuit {
    /// Meets the client, and takes its streams until it has gone.
    async fn carry(self, request: RendRequest, once_done: &Notify) {
        let met = tokio::select! {
            met = timeout(FIRST, request.accept()) => met,
            () = self.circuits.drained() => return,
        };
        let mut requests = match met {
            Ok(Ok(requests)) => requests,
            Ok(Err(error)) => {
                let error = anyhow::Error::from(error);
                tracing::debug!(message_id = "arti_rendezvous", "a client was not met: {error:#}");
                return;
            }
            Err(_) => {
                tracing::debug!(message_id = "arti_rendezvous", "a client was not met in time");
                return;
            }
        };
        let mut streams = JoinSet::new();
        let mut is_leaving = false;
        let mut idle = FIRST.min(self.idle);
        loop {
            tokio::select! {
                // Once it only waits for its end no stream comes in: its client asks again by another circuit.
                request = requests.next(), if !(is_leaving && streams.is_empty()) => match request {
                    Some(request) => {
                        if self.open(request, &mut streams).await {
                            self.seat.open.places().stream_began(self.seat.number);
                            idle = self.idle;
                        }
                    }
                    None => break,
                },
                Some(_) = streams.join_next(), if !streams.is_empty() => {
                    self.seat.open.places().stream_ended(self.seat.number);
                }
                () = sleep(idle), if streams.is_empty() && !is_leaving => return,
                () = sleep(LINGER), if streams.is_empty() && is_leaving => return,
                () = self.circuits.drained(), if !is_leaving => is_leaving = true,
                () = once_done.notified(), if !is_leaving => is_leaving = true,
            }
        }
        // The circuit has gone: its streams end, each once what came of it was handed on.
        while streams.join_next().await.is_some() {}
    }

    /// False: there is no stream.
    async fn open(&self, request: StreamRequest, streams: &mut JoinSet<()>) -> bool {
        let port = if let IncomingStreamRequest::Begin(begin) = request.request() { begin.port() } else { 0 };
        if !self.ports.contains(&port) {
            // As C tor does (HiddenServiceAllowUnknownPorts 0), so that the two cannot be told apart.
            let _ = request.shutdown_circuit();
            return false;
        }
        let Some((place, near, far)) = self.place().await else {
            self.circuits.count(Refusal::OutOfResources);
            let end =
                tor_cell::relaycell::msg::End::new_with_reason(tor_cell::relaycell::msg::EndReason::DONE);
            // Who has gone needs no answer.
            let _ = request.reject(end).await;
            return false;
        };
        match request.accept(Connected::new_empty()).await {
            Ok(stream) => {
                let (sent, out) = oneshot::channel();
                place.send(Introduced { circuit: RawCircuit::new(self.seat.number), stream: far, out });
                streams.spawn(pass(stream, near, self.patience, sent));
                true
            }
            Err(error) => {
                let error = anyhow::Error::from(error);
                tracing::debug!(message_id = "arti_stream", "a stream broke off: {error:#}");
                false
            }
        }
    }

    /// A place with the worker, and both ends of what leads there.
    async fn place(&self) -> Option<(mpsc::Permit<'_, Introduced>, UnixStream, StdUnixStream)> {
        // The policy is to say who is served; a worker that is behind for a moment does not.
        let place = timeout(PLACE, self.worker.as_ref()?.reserve()).await.ok()?.ok()?;
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

/// Carries bytes between a client and its worker until either has no more: a stream of Tor ends as a whole. What goes out is given
/// up when the client takes nothing for `patience`, or when nobody waits for `sent` any more, which ends with this.
async fn pass(stream: DataStream, near: UnixStream, patience: Duration, mut sent: oneshot::Sender<()>) {
    let (mut from_client, mut to_client) = stream.split();
    let (from_worker, mut to_worker) = near.into_split();
    tokio::select! {
        // What was handed on stays readable for the worker.
        _ = copy(&mut from_client, &mut to_worker) => {}
        // Who has gone needs no end.
        _ = send_on(&from_worker, &mut to_client, patience) => {}
        () = sent.closed() => {}
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

/// Says how the service is whenever that changes. Returns when it is given up.
async fn watch(service: &RunningOnionService, circuits: &Circuits) -> HostError {
    let mut events = service.status_events();
    let mut last = None;
    while let Some(status) = events.next().await {
        let state = status.state();
        if last.replace(state) != Some(state) {
            let word = STATES.iter().find(|(known, _)| *known == state).map_or("broken", |(_, word)| *word);
            say(circuits, word);
            tracing::info!(message_id = "arti_state", "the onion service: {word}");
            // It begins with `Shutdown`.
            if state == State::Broken {
                break;
            }
        }
    }
    HostError::Broken
}
