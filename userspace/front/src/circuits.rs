//! The circuits behind the connections: what the policy says of each, whose turn it is, and who must go.
//!
//! The decisions are [`tunica_core::circuit_policy`]'s. Here are its locks, the connections that wait for their turn, and
//! the words that end others. Locks are taken in one order, shard before admission before connections, and never held over
//! an `await`. What new circuits do is counted behind locks of its own, which are held with no other.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    hash::{BuildHasher, RandomState},
    num::NonZeroU32,
    ops::Deref,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use hyper::header::HeaderValue;
use nix::time::{ClockId, clock_gettime};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use tunica_api::front::{
    self, CircuitOrder, CircuitRow, CircuitState, Digest, LoadOrder, MOST_BANS, MOST_CLOSING, MOST_NEWCOMERS,
    MOST_ROWS, MOST_RUNGS, Newcomer, Orders,
};
use tunica_config::Grant;
use tunica_core::{
    circuit_features::{MOST_WATCHED, PathClass, Watch},
    circuit_naming::{CircuitNaming, Naming},
    circuit_policy::{
        Action, Admission, CircuitSettings, CircuitShard, Command, Decision, Hold, Lane, Place, Ruling,
        Serial, Statistics, TokenRefused, Usage,
    },
    id::{CircuitId, TorGeneration},
    load_level::{FrontLoad, LEASE, LoadLease},
    refusal::Refusal,
    time::Monotime,
    waiting_room::Standing,
};
use tunica_pow::Challenge;

use crate::{
    challenge::{Challenges, Clock, Kind, Outcome, Picture},
    pulse::Pulse,
};

pub mod tokens;

use tokens::{GrantedBy, Shown, Tokens};

/// Everything that is known of circuits, shared by the workers.
pub struct Circuits {
    settings: CircuitSettings,
    challenges: Challenges,
    tokens: Tokens,
    shards: Vec<Mutex<CircuitShard>>,
    /// What those that are new do, in the same parts.
    watches: Vec<Mutex<Watch>>,
    admission: Mutex<Admission>,
    visits: Mutex<HashMap<Serial, Arc<Visit>>>,
    /// Makes words and numbers of circuits that say nothing of them outside this process.
    hasher: RandomState,
    naming: Mutex<CircuitNaming>,
    load: Mutex<HeldLoad>,
    /// Who can close circuits in this process: where Arti hosts the service. Any other tor is told by the daemon, which reads
    /// of them in the digest.
    closer: OnceLock<mpsc::UnboundedSender<Closing>>,
    /// The service that this process hosts.
    arti: Mutex<Option<front::Arti>>,
    totals: Totals,
    drain: watch::Sender<bool>,
}

/// What is held to of the load.
#[derive(Debug, Default)]
struct HeldLoad {
    lease: LoadLease,
    /// What the shards know of it.
    known: Option<FrontLoad>,
    /// Whether limits and bans refuse nobody, by the operator's word. It does not lapse.
    is_bypassed: bool,
}

/// Counters since this process began.
#[derive(Debug)]
struct Totals {
    connections: AtomicU64,
    requests: AtomicU64,
    new_circuits: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    panics: AtomicU64,
    /// In the order of [`Refusal::ALL`].
    refused: Vec<AtomicU64>,
    /// Circuits closed in this process, in the order of [`Refusal::CLOSES`].
    closed: [AtomicU64; Refusal::CLOSES.len()],
}

/// A connection with a place: it is served, waits, or is held in the tarpit.
pub struct Visit {
    hold: Hold,
    /// Its number by the secret of this process, and the same as the backend reads it.
    hash: u64,
    word: HeaderValue,
    pulse: Arc<Pulse>,
    fate: watch::Sender<Fate>,
    reported: Mutex<(u64, u64, u64)>,
    shown: Mutex<Shown>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Waits,
    Served,
    Ends(Refusal),
}

/// A connection with a place, which is given back when the last of these is dropped.
pub struct Stay {
    circuits: Arc<Circuits>,
    visit: Arc<Visit>,
}

/// A circuit that is to be closed in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closing {
    /// Which.
    pub circuit: CircuitId,
    /// Why: with all that is open for [`Refusal::Banned`] and [`Refusal::CircuitRotated`], and where an operator said so (`None`);
    /// else once what was begun has gone out.
    pub why: Option<Refusal>,
}

/// What becomes of a new connection.
pub enum Welcome {
    /// It is served now.
    Serve(Arc<Stay>),
    /// It waits for [`Stay::turn`].
    Wait(Arc<Stay>),
    /// It is given a puzzle; once its circuit has paid, [`Stay::settle`] has it served.
    Challenge(Arc<Stay>),
    /// It is held until [`Visit::cut`], or for as long as a tarpit holds.
    Tarpit(Arc<Stay>),
    /// It gets what the word says.
    Refuse(Ruling),
}

/// Now, on the clock of the boot.
pub fn now() -> Monotime {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from);
    Monotime(time.map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)))
}

/// When a client may come again.
pub fn retry_after(ruling: &Ruling) -> Option<Duration> {
    match ruling.decision {
        Decision::RateLimited { retry_after } | Decision::CapacityExceeded { retry_after } => {
            Some(retry_after)
        }
        Decision::Banned { remaining } => Some(remaining),
        Decision::Allow | Decision::RequirePow { .. } => None,
    }
}

/// As `Retry-After` has it (RFC 9110 section 10.2.3): whole seconds, rounded up, because nobody is to come too early, and at
/// least one.
pub fn whole_seconds(wait: Duration) -> u64 {
    wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0)).max(1)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic ends one connection; what it left is as consistent as any decision, since records are written whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Visit {
    /// What its circuit is for the backends, see [`crate::http::CIRCUIT_HEADER`].
    pub const fn word(&self) -> &HeaderValue {
        &self.word
    }

    /// The same as a number.
    pub const fn hash(&self) -> u64 {
        self.hash
    }

    /// What it is doing.
    pub const fn pulse(&self) -> &Arc<Pulse> {
        &self.pulse
    }

    /// Returns when the connection must end, with the word for it.
    pub async fn cut(&self) -> Refusal {
        let mut fate = self.fate.subscribe();
        loop {
            if let Fate::Ends(refusal) = *fate.borrow_and_update() {
                return refusal;
            }
            if fate.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// The word for it, once the connection must end. It costs less than [`Self::cut`], and wakes nobody.
    pub fn must_end(&self) -> Option<Refusal> {
        match *self.fate.borrow() {
            Fate::Ends(refusal) => Some(refusal),
            Fate::Waits | Fate::Served => None,
        }
    }

    /// Its turn has come, unless it must end.
    fn serve(&self) {
        self.fate.send_if_modified(|fate| {
            let waits = *fate == Fate::Waits;
            if waits {
                *fate = Fate::Served;
            }
            waits
        });
    }

    /// It lets others go before, unless it must end.
    fn wait(&self) {
        self.fate.send_if_modified(|fate| {
            let is_served = *fate == Fate::Served;
            if is_served {
                *fate = Fate::Waits;
            }
            is_served
        });
    }

    fn end(&self, refusal: Refusal) {
        self.fate.send_replace(Fate::Ends(refusal));
    }

    fn usage(&self, latency: Option<Duration>) -> Usage {
        let (bytes_in, bytes_out) = self.pulse.bytes();
        let worked = self.pulse.worked_nanoseconds();
        let mut reported = lock(&self.reported);
        let usage = Usage {
            bytes_in: bytes_in.saturating_sub(reported.0),
            bytes_out: bytes_out.saturating_sub(reported.1),
            cpu_nanoseconds: worked.saturating_sub(reported.2),
            latency,
        };
        *reported = (bytes_in, bytes_out, worked);
        usage
    }
}

impl Stay {
    /// Waits for the connection's turn; else it must end, with this word.
    ///
    /// # Errors
    /// Why it may not be served.
    pub async fn turn(&self) -> Result<(), Refusal> {
        self.circuits.turn(&self.visit).await
    }

    /// A request of a connection that is served. In the slow lane it lets those that wait go before: see [`Self::settle`].
    pub fn request(&self) -> Ruling {
        self.circuits.request(&self.visit)
    }

    /// Returns once a connection may be served that was given a puzzle, or that let others go before; at once if neither is so.
    ///
    /// # Errors
    /// Why it may not be served.
    pub async fn settle(&self) -> Result<(), Refusal> {
        self.circuits.settle(&self.visit).await
    }

    /// A puzzle for its circuit.
    pub fn puzzle(&self, kind: Kind) -> Challenge {
        self.circuits.challenges.issue(self.visit.hold.circuit(), kind, Clock::now())
    }

    /// A picture for its circuit.
    pub fn picture(&self) -> Picture {
        self.circuits.challenges.picture(self.visit.hold.circuit(), Clock::now())
    }

    /// An unpredictable word for a page.
    pub fn page_word(&self) -> String {
        self.circuits.challenges.page_word()
    }

    /// The client says that it solved a puzzle. If it did, its circuit has paid.
    pub fn redeem(&self, challenge: &str, nonce: &str, kind: Kind) -> Outcome {
        let circuit = self.visit.hold.circuit();
        self.paying(self.circuits.challenges.redeem(circuit, challenge, nonce, kind, Clock::now()))
    }

    /// The client says what a picture showed. If it is right, its circuit has paid.
    pub fn read(&self, picture: &str, text: &str) -> Outcome {
        let circuit = self.visit.hold.circuit();
        self.paying(self.circuits.challenges.read(circuit, picture, text, Clock::now()))
    }

    /// Where its circuit stands in the waiting room. Once it is let in it has paid.
    pub fn standing(&self) -> Standing {
        let standing = self.circuits.challenges.standing(self.visit.hold.circuit(), Clock::now());
        if standing == Standing::Enters {
            self.circuits.pay(&self.visit);
        }
        standing
    }

    fn paying(&self, outcome: Outcome) -> Outcome {
        if outcome == Outcome::Paid {
            self.circuits.pay(&self.visit);
        }
        outcome
    }

    /// The backend has answered, or over TCP has taken the connection, after so long.
    pub fn answered(&self, latency: Duration) {
        self.circuits.report(&self.visit, Some(latency));
    }

    /// Counts a refusal, and holds it against the circuit where it is its doing.
    pub fn refused(&self, refusal: Refusal) {
        self.circuits.refused(&self.visit, refusal);
    }

    /// A request for `path` has come, one that changes something (`is_write`) or one that only asks. Of the path one of
    /// [`PathClass::BUCKETS`] classes is kept, and nothing where the circuit is not new.
    pub fn asks_for(&self, path: &str, is_write: bool) {
        let class = PathClass::of_hash(self.circuits.hasher.hash_one(path));
        self.circuits.watch(self.visit.hold.circuit(), |watch, circuit, now| {
            watch.request(circuit, class, is_write, now);
        });
    }

    /// The backend answered with an error.
    pub fn failed(&self) {
        self.circuits.watch(self.visit.hold.circuit(), Watch::fault);
    }

    /// See [`Circuits::retry_after`].
    pub fn retry_after(&self, refusal: Refusal) -> Duration {
        self.circuits.retry_after(refusal)
    }

    /// Returns once the front ends.
    pub async fn drained(&self) {
        self.circuits.drained().await;
    }
}

impl Deref for Stay {
    type Target = Visit;

    fn deref(&self) -> &Visit {
        &self.visit
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.circuits.panicked();
        }
        self.circuits.leave(&self.visit);
    }
}

impl Circuits {
    /// Nothing is known yet. `shards` is best the number of workers.
    pub fn new(settings: CircuitSettings, challenges: Challenges, shards: NonZeroU32) -> Arc<Self> {
        let naming = CircuitNaming::new();
        let generation = naming.generation();
        let shard = |_| Mutex::new(CircuitShard::new(settings.clone(), shards, generation, now()));
        let zeros = |count: usize| (0..count).map(|_| AtomicU64::new(0)).collect();
        let most = MOST_WATCHED / shards;
        Arc::new(Self {
            shards: (0..shards.get()).map(shard).collect(),
            watches: (0..shards.get()).map(|_| Mutex::new(Watch::new(most, generation))).collect(),
            admission: Mutex::new(Admission::new(FrontLoad::of_admission(
                FrontLoad::of_shard(None, &settings).0,
                &settings,
            ))),
            settings,
            challenges,
            tokens: Tokens::default(),
            visits: Mutex::default(),
            hasher: RandomState::new(),
            naming: Mutex::new(naming),
            load: Mutex::default(),
            closer: OnceLock::new(),
            arti: Mutex::default(),
            drain: watch::Sender::new(false),
            totals: Totals {
                connections: AtomicU64::new(0),
                requests: AtomicU64::new(0),
                new_circuits: AtomicU64::new(0),
                bytes_in: AtomicU64::new(0),
                bytes_out: AtomicU64::new(0),
                panics: AtomicU64::new(0),
                refused: zeros(Refusal::ALL.len()),
                closed: Default::default(),
            },
        })
    }

    /// The circuit of this number in the tor process that hands over the streams.
    pub fn circuit(&self, number: NonZeroU32) -> CircuitId {
        lock(&self.naming).circuit(number)
    }

    /// Streams come from another tor process of this name from now on: what is known of circuits before is forgotten.
    pub fn begin(&self, name: TorGeneration) {
        let generation = {
            let mut naming = lock(&self.naming);
            naming.begin(name);
            naming.generation()
        };
        self.forget_before(generation);
    }

    /// Streams come from the tor process of this name. Returns what that means: of [`Naming::Begun`] alone anything is forgotten.
    fn hear_name(&self, name: TorGeneration) -> Naming {
        let (naming, generation) = {
            let mut naming = lock(&self.naming);
            (naming.hear(name), naming.generation())
        };
        match naming {
            Naming::Begun => self.forget_before(generation),
            Naming::Known | Naming::Named => {}
        }
        naming
    }

    fn forget_before(&self, generation: TorGeneration) {
        for shard in &self.shards {
            lock(shard).begin(generation);
        }
        for watch in &self.watches {
            lock(watch).begin(generation);
        }
        lock(&self.admission).begin(generation);
    }

    /// Has whoever holds the other end told of circuits that are banned, or that are to be closed. Only the first counts.
    pub fn set_closer(&self, closer: mpsc::UnboundedSender<Closing>) {
        let _ = self.closer.set(closer);
    }

    /// Notes how the service is that this process hosts.
    pub fn note_arti(&self, note: impl FnOnce(&mut front::Arti)) {
        note(lock(&self.arti).get_or_insert_default());
    }

    fn close(&self, circuit: CircuitId, why: Option<Refusal>) {
        if let Some(closer) = self.closer.get() {
            // Whoever has gone has closed them all.
            let _ = closer.send(Closing { circuit, why });
        }
    }

    /// A circuit is closed in this process. Counts it where no ban closes it.
    pub fn closed(&self, why: Refusal) {
        let position = Refusal::CLOSES.iter().position(|each| *each == why);
        if let Some(total) = position.and_then(|position| self.totals.closed.get(position)) {
            total.fetch_add(1, Relaxed);
        }
    }

    /// There is no such circuit any more.
    pub fn ended(&self, circuit: CircuitId) {
        let commands = self.shard(circuit).map(|mut shard| {
            shard.ended(circuit);
            shard.take_commands()
        });
        self.obey(commands.unwrap_or_default());
    }

    fn shard(&self, circuit: CircuitId) -> Option<MutexGuard<'_, CircuitShard>> {
        let count = u32::try_from(self.shards.len()).ok().and_then(NonZeroU32::new)?;
        Some(lock(self.shards.get(circuit.shard(count) as usize)?))
    }

    /// Has what a circuit does counted, where it is new.
    fn watch(&self, circuit: CircuitId, count: impl FnOnce(&mut Watch, CircuitId, Monotime)) {
        let shards = u32::try_from(self.watches.len()).ok().and_then(NonZeroU32::new);
        let place = shards.and_then(|shards| self.watches.get(circuit.shard(shards) as usize));
        if let Some(watch) = place {
            count(&mut lock(watch), circuit, now());
        }
    }

    /// A new connection.
    pub fn connect(self: &Arc<Self>, circuit: CircuitId, pulse: Arc<Pulse>) -> Welcome {
        let now = now();
        self.totals.connections.fetch_add(1, Relaxed);
        let nobody = Ruling {
            decision: Decision::CapacityExceeded { retry_after: self.retry_after(Refusal::OutOfResources) },
            word: Refusal::OutOfResources,
            lane: Lane::Suspect,
            action: Action::Deny,
        };
        let Some(mut shard) = self.shard(circuit) else { return Welcome::Refuse(nobody) };
        let is_new = shard.look(circuit, now).is_none();
        let mut place = None;
        let arrival = shard.connect(circuit, now, |ask| {
            let admitted = lock(&self.admission).admit(ask, now);
            place = admitted.as_ref().ok().map(|admitted| admitted.place);
            admitted
        });
        let commands = shard.take_commands();
        drop(shard);
        if is_new {
            self.totals.new_circuits.fetch_add(1, Relaxed);
        }
        let is_held = arrival.hold.is_some();
        self.watch(circuit, |watch, circuit, now| {
            watch.stream(circuit, is_new, is_held, now);
            if !is_held {
                watch.fault(circuit, now);
            }
        });
        if let Some((serial, refusal)) = arrival.ends
            && let Some(visit) = lock(&self.visits).get(&serial)
        {
            visit.end(refusal);
        }
        self.obey(commands);
        let (Some(hold), Some(place)) = (arrival.hold, place) else {
            self.count(arrival.ruling.word);
            return Welcome::Refuse(arrival.ruling);
        };
        let serial = hold.serial();
        let hash = self.hasher.hash_one((circuit.generation().0, circuit.number_for_this_node()));
        let word = HeaderValue::from_str(&format!("{hash:016x}"));
        let fate = if place == Place::Served { Fate::Served } else { Fate::Waits };
        let visit = Arc::new(Visit {
            hold,
            hash,
            word: word.unwrap_or_else(|_| HeaderValue::from_static("0")),
            pulse,
            fate: watch::Sender::new(fate),
            reported: Mutex::default(),
            shown: Mutex::default(),
        });
        lock(&self.visits).insert(serial, Arc::clone(&visit));
        self.catch_up(&visit, now);
        let stay = Arc::new(Stay { circuits: Arc::clone(self), visit });
        match place {
            Place::Served => Welcome::Serve(stay),
            Place::Waiting => Welcome::Wait(stay),
            Place::Tarpit => {
                self.count(arrival.ruling.word);
                Welcome::Tarpit(stay)
            }
            Place::Challenged => Welcome::Challenge(stay),
        }
    }

    /// What happened to the connection after its place was given and before others could find it.
    fn catch_up(&self, visit: &Visit, now: Monotime) {
        let circuit = visit.hold.circuit();
        let is_banned = |shard: MutexGuard<'_, CircuitShard>| {
            shard.look(circuit, now).is_some_and(|facts| facts.banned_for.is_some())
        };
        if self.shard(circuit).is_some_and(is_banned) && !self.is_bypassed() {
            visit.end(Refusal::Banned);
        }
        match lock(&self.admission).place(visit.hold.serial()) {
            Some(Place::Served) => visit.serve(),
            Some(Place::Waiting | Place::Challenged | Place::Tarpit) => {}
            None => visit.end(Refusal::Displaced),
        }
    }

    async fn turn(&self, visit: &Visit) -> Result<(), Refusal> {
        let mut fate = visit.fate.subscribe();
        let decided = timeout(self.settings.queue_timeout, fate.wait_for(|fate| *fate != Fate::Waits)).await;
        match decided.map(|fate| fate.map(|fate| *fate)) {
            Ok(Ok(Fate::Served)) => Ok(()),
            Ok(Ok(Fate::Ends(refusal))) => Err(refusal),
            Ok(Ok(Fate::Waits) | Err(_)) | Err(_) => Err(Refusal::QueueTimeout),
        }
    }

    /// The circuit has paid, and so has this connection.
    fn pay(&self, visit: &Visit) {
        let (circuit, now) = (visit.hold.circuit(), now());
        if let Some(mut shard) = self.shard(circuit) {
            // Banned while it solved: what it paid lifts no ban.
            if shard.look(circuit, now).is_some_and(|facts| facts.banned_for.is_some()) {
                return;
            }
            let is_granted = || self.grant(visit, GrantedBy::Puzzle, Clock::now());
            match self.challenges.grants() {
                Grant::Normal => shard.pay(circuit, now),
                // Its token is what it has paid: it can be revoked, and expires.
                Grant::Vip => {
                    drop(shard);
                    if is_granted() {
                        return;
                    }
                    if let Some(mut shard) = self.shard(circuit) {
                        shard.pay(circuit, now);
                    }
                }
            }
        }
        self.has_paid(circuit, Lane::Normal);
    }

    async fn settle(&self, visit: &Visit) -> Result<(), Refusal> {
        let (circuit, serial) = (visit.hold.circuit(), visit.hold.serial());
        if *visit.fate.borrow() == Fate::Served {
            return Ok(());
        }
        let (facts, ticket) = self.shard(circuit).map_or((None, None), |shard| {
            let now = now();
            (shard.look(circuit, now), shard.ticket(circuit, now))
        });
        let (has_paid, lane) = facts.map_or((false, Lane::Suspect), |facts| (facts.has_paid, facts.lane));
        let place = {
            let mut admission = lock(&self.admission);
            match admission.place(serial) {
                Some(Place::Challenged) if has_paid => admission.paid(serial, lane, ticket, now()),
                Some(Place::Challenged) => admission.excused(serial, lane, now()),
                place @ (Some(Place::Served | Place::Waiting | Place::Tarpit) | None) => place,
            }
        };
        match place {
            Some(Place::Served) => visit.serve(),
            Some(Place::Waiting) => {}
            Some(Place::Challenged | Place::Tarpit) | None => return Err(Refusal::Displaced),
        }
        self.turn(visit).await
    }

    fn request(&self, visit: &Visit) -> Ruling {
        self.totals.requests.fetch_add(1, Relaxed);
        let (ruling, commands) = {
            let circuit = visit.hold.circuit();
            let now = now();
            let Some(mut shard) = self.shard(circuit) else {
                return Ruling {
                    decision: Decision::Allow,
                    word: Refusal::Served,
                    lane: Lane::Normal,
                    action: Action::Serve,
                };
            };
            let ruling = shard.request(circuit, now, |ticket| lock(&self.admission).request(ticket, now));
            (ruling, shard.take_commands())
        };
        self.obey(commands);
        if ruling.action == Action::SlowLane {
            self.count(Refusal::SlowLane);
            let mut admission = lock(&self.admission);
            if admission.step_aside(visit.hold.serial(), now()) {
                visit.wait();
                self.start_those_whose_turn_it_is(&mut admission);
            }
        }
        ruling
    }

    fn report(&self, visit: &Visit, latency: Option<Duration>) {
        let usage = visit.usage(latency);
        self.totals.bytes_in.fetch_add(usage.bytes_in, Relaxed);
        self.totals.bytes_out.fetch_add(usage.bytes_out, Relaxed);
        let commands = self.shard(visit.hold.circuit()).map(|mut shard| {
            shard.report(visit.hold.circuit(), usage, now());
            shard.take_commands()
        });
        self.obey(commands.unwrap_or_default());
        self.watch(visit.hold.circuit(), |watch, circuit, _| {
            watch.used(circuit, usage.bytes_in, usage.bytes_out);
        });
    }

    /// The connection has ended; whoever waited longest takes its place.
    fn leave(&self, visit: &Visit) {
        self.report(visit, None);
        if lock(&self.visits).remove(&visit.hold.serial()).is_none() {
            return;
        }
        if let Some(mut shard) = self.shard(visit.hold.circuit()) {
            shard.close(&visit.hold, now());
        }
        self.watch(visit.hold.circuit(), Watch::closed);
        let mut admission = lock(&self.admission);
        admission.close(visit.hold.serial());
        self.start_those_whose_turn_it_is(&mut admission);
    }

    fn start_those_whose_turn_it_is(&self, admission: &mut Admission) {
        loop {
            while let Some(next) = admission.start_next() {
                if let Some(next) = lock(&self.visits).get(&next) {
                    next.serve();
                }
            }
            let Some(last) = admission.give_way(now()) else { return };
            if let Some(last) = lock(&self.visits).get(&last) {
                last.end(Refusal::Displaced);
            }
        }
    }

    fn refused(&self, visit: &Visit, refusal: Refusal) {
        self.count(refusal);
        let circuit = visit.hold.circuit();
        self.watch(circuit, Watch::fault);
        let commands = self.shard(circuit).map(|mut shard| {
            // What the policy itself refused it has counted already.
            if !is_of_policy(refusal) {
                shard.violation(circuit, refusal, now());
            }
            shard.take_commands()
        });
        self.obey(commands.unwrap_or_default());
    }

    /// When a client may come again that was refused without a decision.
    pub fn retry_after(&self, refusal: Refusal) -> Duration {
        self.settings.retry_after(refusal)
    }

    /// Counts a refusal of a stream of no known circuit.
    pub fn count(&self, refusal: Refusal) {
        let position = Refusal::ALL.iter().position(|each| *each == refusal);
        if let Some(total) = position.and_then(|position| self.totals.refused.get(position)) {
            total.fetch_add(1, Relaxed);
        }
    }

    /// How often each word was given, since this process began.
    pub fn refused_so_far(&self) -> impl Iterator<Item = (Refusal, u64)> + '_ {
        Refusal::ALL.iter().zip(&self.totals.refused).map(|(refusal, total)| (*refusal, total.load(Relaxed)))
    }

    fn panicked(&self) {
        self.totals.panics.fetch_add(1, Relaxed);
        self.count(Refusal::Fault);
    }

    /// What is due now and then.
    pub fn advance(&self) {
        let now = now();
        for shard in &self.shards {
            let commands = {
                let mut shard = lock(shard);
                shard.advance(now)
            };
            self.obey(commands);
        }
        {
            let mut admission = lock(&self.admission);
            admission.advance(now);
            // Who did not pay may have been served for long enough by now.
            self.start_those_whose_turn_it_is(&mut admission);
        }
        self.challenges.advance(now);
        self.change_load(|held| held.lease.advance(now));
    }

    /// Holds to what the daemon says of the load.
    pub fn hear_load(&self, load: Option<LoadOrder>) {
        self.change_load(|held| held.lease.hear(load.map(FrontLoad::from), now()));
    }

    /// Whether limits and bans refuse nobody from now on.
    pub fn hear_bypass(&self, is_bypassed: bool) {
        let was_bypassed = self.is_bypassed();
        self.change_load(|held| held.is_bypassed = is_bypassed);
        if was_bypassed && !is_bypassed {
            // Bans that came meanwhile act from now on, on what is open as well.
            let now = now();
            let in_force = |shard: &Mutex<CircuitShard>| {
                let shard = lock(shard);
                let bans = shard.bans().filter(|(_, ban)| ban.until > now);
                bans.map(|(circuit, _)| circuit).collect::<Vec<_>>()
            };
            let banned: HashSet<_> = self.shards.iter().flat_map(in_force).collect();
            for visit in lock(&self.visits).values().filter(|visit| banned.contains(&visit.hold.circuit())) {
                visit.end(Refusal::Banned);
            }
            banned.into_iter().for_each(|circuit| self.close(circuit, Some(Refusal::Banned)));
        }
    }

    fn is_bypassed(&self) -> bool {
        lock(&self.load).is_bypassed
    }

    fn change_load(&self, change: impl FnOnce(&mut HeldLoad)) {
        let mut held = lock(&self.load);
        let was_bypassed = held.is_bypassed;
        change(&mut held);
        let desired = held.lease.desired();
        if desired == held.known && held.is_bypassed == was_bypassed {
            return;
        }
        if desired.is_none() && held.known.is_some() {
            tracing::warn!(
                message_id = "load_lapsed",
                "nothing was heard of the load for {} s; the limits are as they are configured",
                LEASE.as_secs()
            );
        }
        let acting = desired.filter(|_| !held.is_bypassed);
        let (load, share) = FrontLoad::of_shard(acting, &self.settings);
        let relaxes_tokens = desired.is_some_and(|held| held.relaxes_tokens);
        let is_bypassed = held.is_bypassed;
        let settings = CircuitSettings { relaxes_tokens, is_bypassed, ..self.settings.clone() };
        let has_changed = held.known.is_some_and(|known| known.relaxes_tokens) != relaxes_tokens
            || is_bypassed != was_bypassed;
        for shard in &self.shards {
            let mut shard = lock(shard);
            if has_changed {
                shard.set_settings(settings.clone());
            }
            shard.set_load(load);
            shard.set_share(share);
        }
        self.challenges.set_terms(acting.map(|held| held.puzzles.into()));
        let mut admission = lock(&self.admission);
        admission.set_settings(FrontLoad::of_admission(load, &settings));
        self.start_those_whose_turn_it_is(&mut admission);
        held.known = desired;
    }

    fn obey(&self, commands: Vec<Command>) {
        for command in commands {
            match command {
                // It is remembered, and acts once the bypass is over.
                Command::Ban { .. } if self.is_bypassed() => {}
                Command::Ban { circuit, .. } => {
                    self.end_all(circuit, Refusal::Banned);
                    self.close(circuit, Some(Refusal::Banned));
                }
                Command::Close { circuit, why } => {
                    if why == Refusal::CircuitRotated {
                        self.end_all(circuit, why);
                    }
                    self.close(circuit, Some(why));
                }
                Command::ReleaseToken { ticket, circuit } => self.release(ticket, circuit),
                Command::RevokeToken { ticket } => self.revoke(ticket),
                Command::HolderRefused { ticket } => lock(&self.admission).note_refused(ticket, now()),
            }
        }
    }

    fn end_all(&self, circuit: CircuitId, refusal: Refusal) {
        for visit in lock(&self.visits).values().filter(|visit| visit.hold.circuit() == circuit) {
            visit.end(refusal);
        }
    }

    /// Does what the daemon says, in place of what it said before. False: it was not for this process, and nothing was done.
    pub fn follow(&self, before: &Orders, orders: &Orders) -> bool {
        let said_of = orders.generation.map(TorGeneration);
        let own = lock(&self.naming).name();
        let mut heard: HashMap<_, _> =
            before.circuits.iter().map(|order| (order.circuit, order.said)).collect();
        if self.closer.get().is_some() {
            // The circuits are this process' own. Others are those of the one before it or after it, whose numbers are the same.
            if said_of.is_some() && said_of != own {
                return false;
            }
        } else if let Some(name) = said_of {
            match self.hear_name(name) {
                // What was done is forgotten with the rest, and is to be done to those that have the numbers now.
                Naming::Begun => heard.clear(),
                Naming::Known | Naming::Named => {}
            }
        }
        let rungs: HashMap<_, _> = orders.rungs.iter().copied().collect();
        let is_new = |order: &&CircuitOrder| heard.get(&order.circuit) != Some(&order.said);
        for order in orders.circuits.iter().filter(is_new) {
            let circuit = self.circuit(order.circuit);
            let Some(mut shard) = self.shard(circuit) else { continue };
            let now = now();
            match order.state {
                CircuitState::Banned { until } => {
                    shard.ban(circuit, Some(Monotime(until).since(now)), now);
                    if let Some(rung) = rungs.get(&order.circuit) {
                        shard.remember_rung(circuit, *rung, now);
                    }
                }
                CircuitState::Vip => shard.promote(circuit, now),
                CircuitState::Unbanned => {
                    shard.unban(circuit, now);
                }
                CircuitState::Demoted => shard.demote(circuit, now),
                CircuitState::Closed => self.close(circuit, None),
            }
            let commands = shard.take_commands();
            drop(shard);
            self.obey(commands);
        }
        // Numbers are those of the tor process that they were said of.
        if said_of.is_some() && said_of == lock(&self.naming).name() {
            orders.ended.iter().for_each(|number| self.ended(self.circuit(*number)));
        }
        true
    }

    /// How the circuits are. What the front is and what its backends do, the caller adds.
    pub fn digest(&self) -> Digest {
        let now = now();
        let naming = *lock(&self.naming);
        let generation = naming.generation();
        let visits: Vec<Arc<Visit>> = lock(&self.visits).values().cloned().collect();
        let mut open = BTreeMap::new();
        for visit in &visits {
            self.report(visit, None);
            let not_taken = open.entry(visit.hold.circuit()).or_default();
            *not_taken = visit.token_not_taken().or(*not_taken);
        }
        let counts: Vec<_> = self.shards.iter().map(|shard| lock(shard).counts(now)).collect();
        let mut would_refuse: BTreeMap<String, (u64, u64)> = BTreeMap::new();
        let shadows: Vec<_> =
            self.shards.iter().flat_map(|shard| lock(shard).would_refuse().collect::<Vec<_>>()).collect();
        for (word, count) in shadows.into_iter().chain(lock(&self.admission).would_refuse()) {
            let sum = would_refuse.entry(word.label().to_owned()).or_default();
            *sum = (sum.0.saturating_add(count.all), sum.1.saturating_add(count.vips));
        }
        let mut bans: Vec<_> =
            self.shards.iter().flat_map(|shard| lock(shard).bans().collect::<Vec<_>>()).collect();
        bans.retain(|(circuit, _)| circuit.generation() == generation);
        bans.sort_unstable_by_key(|(_, ban)| std::cmp::Reverse(ban.until));
        bans.truncate(MOST_BANS);
        let banned = bans.iter().map(|(circuit, _)| circuit).take(MOST_ROWS);
        let closing = self.closing(generation);
        let (tokens, revoked) = self.tokens_counted();
        let mut rows: Vec<CircuitRow> = open
            .iter()
            .map(|(circuit, not_taken)| (circuit, *not_taken))
            .chain(banned.filter(|circuit| !open.contains_key(circuit)).map(|circuit| (circuit, None)))
            .filter(|(circuit, _)| circuit.generation() == generation)
            .filter_map(|(circuit, not_taken)| self.row(*circuit, not_taken, now))
            .collect();
        rows.sort_by_key(|row| std::cmp::Reverse((row.open, row.requests)));
        rows.truncate(MOST_ROWS);
        let (newcomers, unwatched) = self.newcomers(generation, now);
        let totals = &self.totals;
        // Never under the lock of the places, which a change of the load takes second.
        let load = lock(&self.load).known.map(LoadOrder::from);
        let mut admission = lock(&self.admission);
        let statistics = Statistics::of(&self.settings, &mut admission, counts, now);
        Digest {
            generation: naming.name().map(|name| name.0),
            active: admission.served().into(),
            most_active: self.settings.max_concurrent_connections.get().into(),
            challenged: admission.challenged().into(),
            waiting: admission.waiting().into(),
            most_waiting: self
                .settings
                .maxconn
                .get()
                .saturating_sub(self.settings.max_concurrent_connections.get())
                .into(),
            first_wait_milliseconds: milliseconds(admission.first_wait(now).unwrap_or_default()),
            most_wait_milliseconds: milliseconds(self.settings.queue_timeout),
            load,
            tarpitted: admission.tarpitted().into(),
            tracked: statistics.circuits.tracked.into(),
            most_tracked: self.settings.table_size.get().into(),
            banned: statistics.circuits.banned.into(),
            vips: statistics.circuits.vips.into(),
            statistics: statistics.to_string(),
            connections: totals.connections.load(Relaxed),
            requests: totals.requests.load(Relaxed),
            new_circuits: totals.new_circuits.load(Relaxed),
            bytes_in: totals.bytes_in.load(Relaxed),
            bytes_out: totals.bytes_out.load(Relaxed),
            panics: totals.panics.load(Relaxed),
            marked: statistics.circuits.marked.into(),
            closing,
            closed: Refusal::CLOSES
                .iter()
                .zip(&totals.closed)
                .map(|(why, total)| (why.label().to_owned(), total.load(Relaxed)))
                .collect(),
            refused: self
                .refused_so_far()
                .map(|(refusal, total)| (refusal.label().to_owned(), total))
                .collect(),
            would_refuse,
            puzzles: self.challenges.counted(),
            tokens,
            revoked,
            arti: lock(&self.arti).clone(),
            circuits: rows,
            rungs: bans
                .iter()
                .filter(|(_, ban)| ban.rung > 1)
                .take(MOST_RUNGS)
                .map(|(circuit, ban)| (circuit.number_for_this_node(), ban.rung))
                .collect(),
            bans: bans
                .into_iter()
                .map(|(circuit, ban)| (circuit.number_for_this_node(), ban.until.0))
                .collect(),
            newcomers,
            unwatched,
            ..Digest::default()
        }
    }

    /// Circuits of this tor process that another process is to close.
    fn closing(&self, generation: TorGeneration) -> Vec<front::Closing> {
        if self.closer.get().is_some() {
            return Vec::new();
        }
        let due = self.shards.iter().flat_map(|shard| lock(shard).closing().collect::<Vec<_>>());
        let mut due: Vec<_> = due.filter(|(circuit, _)| circuit.generation() == generation).collect();
        due.sort_unstable_by_key(|(circuit, _)| circuit.number_for_this_node());
        due.truncate(MOST_CLOSING);
        due.iter().map(|(circuit, why)| (circuit.number_for_this_node(), why.label().to_owned())).collect()
    }

    /// Circuits of this tor process whose first seconds are over and that were not told of before; and how many never are.
    fn newcomers(&self, generation: TorGeneration, now: Monotime) -> (Vec<Newcomer>, u64) {
        let (mut newcomers, mut unwatched) = (Vec::new(), 0);
        for watch in &self.watches {
            let mut watch = lock(watch);
            let room = MOST_NEWCOMERS.saturating_sub(newcomers.len());
            let over = watch.take(room, now).into_iter();
            let present = over.filter(|glimpse| glimpse.circuit.generation() == generation);
            newcomers.extend(
                present
                    .map(|glimpse| (glimpse.circuit.number_for_this_node(), glimpse.path, glimpse.features)),
            );
            unwatched += watch.unwatched();
        }
        (newcomers, unwatched)
    }

    fn row(&self, circuit: CircuitId, not_taken: Option<TokenRefused>, now: Monotime) -> Option<CircuitRow> {
        let facts = self.shard(circuit)?.look(circuit, now)?;
        let state = match (facts.banned_for, facts.lane) {
            (Some(_), _) => "banned",
            (None, Lane::Vip) => "vip",
            (None, Lane::Normal) => "normal",
            (None, Lane::Suspect) => "suspect",
        };
        Some(CircuitRow {
            circuit: circuit.number_for_this_node(),
            state: state.to_owned(),
            age_seconds: facts.age.as_secs(),
            open: facts.open.into(),
            connections_per_minute: facts.connections_per_minute.into(),
            requests: facts.requests.into(),
            latency_milliseconds: facts.usage.latency.map(milliseconds),
            marked: facts.marked.map(|why| why.label().to_owned()),
            bytes_in: facts.usage.bytes_in,
            bytes_out: facts.usage.bytes_out,
            cpu_microseconds: facts.usage.cpu_nanoseconds / 1_000,
            violations: facts.violations.into(),
            banned_seconds: facts.banned_for.map(|left| left.as_secs() + 1),
            banned_by_operator: facts.is_banned_by_operator,
            paid: facts.has_paid,
            token: tokens::word(facts.has_token, not_taken),
            rung: facts.rung.into(),
            connections_per_10_seconds: facts.connections_per_10_seconds.into(),
            requests_per_10_seconds: facts.requests_per_10_seconds.into(),
            last_refusal: facts.last_refusal.map(|refusal| refusal.label().to_owned()),
            score: None,
        })
    }

    /// Connections are to end once what was begun is done.
    pub fn drain(&self) {
        self.drain.send_replace(true);
    }

    /// Returns once they are.
    pub async fn drained(&self) {
        let mut drain = self.drain.subscribe();
        if drain.wait_for(|drain| *drain).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Ends all that is open.
    pub fn end_everything(&self) {
        for visit in lock(&self.visits).values() {
            visit.end(Refusal::Draining);
        }
    }

    /// Connections that have not ended.
    pub fn open(&self) -> usize {
        lock(&self.visits).len()
    }
}

fn milliseconds(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// Whether the word is one that [`CircuitShard::connect`] and [`CircuitShard::request`] give and count themselves.
fn is_of_policy(refusal: Refusal) -> bool {
    use tunica_core::refusal::Class;
    matches!(refusal.class(), Class::Circuit | Class::Global | Class::Ban)
}

#[cfg(test)]
mod tests {
    use tunica_core::{
        ban_ladder::Ladder,
        circuit_policy::{Ask, Want},
    };

    use super::*;
    use crate::challenge::{ChallengeSettings, Terms};

    fn circuits() -> Arc<Circuits> {
        let ladder = Ladder::new(vec![Duration::from_secs(300)], Duration::from_secs(86_400)).unwrap();
        let settings = CircuitSettings { asks_puzzles: false, ..CircuitSettings::web(ladder) };
        Circuits::new(settings, challenges(), NonZeroU32::new(2).unwrap())
    }

    fn challenges() -> Challenges {
        Challenges::new(ChallengeSettings {
            terms: Terms::new(8, 17),
            life: Duration::from_secs(60),
            grants: Grant::Normal,
            per_second: NonZeroU32::MIN,
        })
        .unwrap()
    }

    const fn heavy() -> LoadOrder {
        LoadOrder {
            ratio: 10_000,
            asks_puzzles: true,
            puzzle_difficulty: 24,
            page_difficulty: 17,
            page_waits: true,
            share: 5_000,
            relaxes_tokens: false,
        }
    }

    fn serve(circuits: &Arc<Circuits>, number: u32) -> Arc<Stay> {
        let circuit = circuits.circuit(NonZeroU32::new(number).unwrap());
        match circuits.connect(circuit, Pulse::begin()) {
            Welcome::Serve(stay) => stay,
            Welcome::Wait(_) | Welcome::Challenge(_) | Welcome::Tarpit(_) | Welcome::Refuse(_) => {
                panic!("not served")
            }
        }
    }

    #[tokio::test]
    async fn a_panic_ends_one_connection_is_counted_and_gives_its_place_back() {
        let circuits = circuits();
        let other = serve(&circuits, 2);
        let stay = serve(&circuits, 1);
        assert_eq!(circuits.digest().active, 2);
        let ended = tokio::spawn(async move {
            let _held = stay;
            panic!("a fault");
        });
        assert!(ended.await.is_err());
        let digest = circuits.digest();
        assert_eq!((digest.active, digest.panics, digest.refused["fault"]), (1, 1, 1));
        drop(other);
        assert_eq!((circuits.digest().active, circuits.open()), (0, 0));
    }

    #[tokio::test]
    async fn a_place_that_is_given_back_goes_to_whoever_waits() {
        let circuits = circuits();
        let most = circuits.settings.max_concurrent_connections.get();
        // No more than fifty in one second: a circuit each, of another second each.
        let settings = CircuitSettings {
            max_connections_per_second: NonZeroU32::new(1_000).unwrap(),
            ..circuits.settings.clone()
        };
        let circuits = Circuits::new(settings, challenges(), NonZeroU32::MIN);
        let mut served: Vec<_> = (1..=most).map(|number| serve(&circuits, number)).collect();
        let circuit = circuits.circuit(NonZeroU32::new(9_999).unwrap());
        let Welcome::Wait(waits) = circuits.connect(circuit, Pulse::begin()) else { panic!("must wait") };
        assert_eq!(circuits.digest().waiting, 1);
        drop(served.pop());
        assert_eq!(waits.turn().await, Ok(()));
        assert_eq!(circuits.digest().waiting, 0);
    }

    #[tokio::test]
    async fn a_load_leaves_less_to_a_circuit_until_it_is_over() {
        let circuits = circuits();
        let heavy = heavy();
        // Of the 32 that may be open half are left, and nobody is asked for a puzzle that he cannot be given.
        circuits.hear_load(Some(heavy));
        let mut stays: Vec<_> = (0..16).map(|_| serve(&circuits, 1)).collect();
        let circuit = circuits.circuit(NonZeroU32::MIN);
        let Welcome::Refuse(ruling) = circuits.connect(circuit, Pulse::begin()) else {
            panic!("must be refused")
        };
        assert_eq!(ruling.word, Refusal::UnderLoad);
        let digest = circuits.digest();
        assert_eq!((digest.load, digest.refused["under_load"]), (Some(heavy), 1));
        assert_eq!((digest.most_waiting, digest.first_wait_milliseconds), (300, 0));
        assert_eq!(digest.most_wait_milliseconds, 5_000);
        circuits.hear_load(None);
        stays.push(serve(&circuits, 1));
        assert_eq!(circuits.digest().load, None);
    }

    #[test]
    fn nobody_comes_again_too_early() {
        let whole = |milliseconds| whole_seconds(Duration::from_millis(milliseconds));
        assert_eq!([0, 1, 1_000, 4_999, 5_000, 5_001].map(whole), [1, 1, 1, 5, 5, 6]);
        let circuits = circuits();
        // Words of the queue come without a decision.
        for word in [Refusal::Capacity, Refusal::QueueTimeout, Refusal::Displaced, Refusal::TableFull] {
            assert_eq!(circuits.retry_after(word), Duration::from_secs(5), "{word:?}");
        }
        let full = Ruling {
            decision: Decision::CapacityExceeded { retry_after: Duration::from_secs(5) },
            word: Refusal::Capacity,
            lane: Lane::Normal,
            action: Action::Deny,
        };
        assert_eq!(retry_after(&full), Some(Duration::from_secs(5)));
    }

    #[test]
    fn vips_are_counted_beyond_the_rows() {
        let circuits = circuits();
        let count = u32::try_from(MOST_ROWS).unwrap() + 7;
        let promoted = (1..=count).filter_map(NonZeroU32::new).map(|circuit| CircuitOrder {
            circuit,
            said: 1,
            state: CircuitState::Vip,
        });
        let orders = Orders { circuits: promoted.collect(), ..Orders::default() };
        assert!(circuits.follow(&Orders::default(), &orders));
        // None of them has an open connection.
        let digest = circuits.digest();
        assert_eq!((digest.vips, digest.circuits.len()), (u64::from(count), 0));
    }

    #[tokio::test]
    async fn who_looks_at_a_puzzle_is_told_of_and_is_neither_served_nor_waits() {
        let settings = CircuitSettings { asks_puzzles: true, ..circuits().settings.clone() };
        let circuits = Circuits::new(settings, challenges(), NonZeroU32::MIN);
        circuits.hear_load(Some(heavy()));
        let Welcome::Challenge(stay) = circuits.connect(circuits.circuit(NonZeroU32::MIN), Pulse::begin())
        else {
            panic!("must pay")
        };
        let digest = circuits.digest();
        assert_eq!((digest.challenged, digest.active, digest.waiting), (1, 0, 0));
        drop(stay);
        assert_eq!(circuits.digest().challenged, 0);
    }

    #[tokio::test]
    async fn what_a_circuit_pays_is_for_its_other_connections_as_well() {
        let settings = CircuitSettings { asks_puzzles: true, ..circuits().settings.clone() };
        let settings = CircuitSettings {
            max_concurrent_connections: NonZeroU32::new(4).unwrap(),
            max_concurrent_per_circuit: 4.try_into().unwrap(),
            ..settings
        };
        let circuits = Circuits::new(settings, challenges(), NonZeroU32::MIN);
        // Four places, filled before the load rose; the first circuit has two of them.
        let stays = [1, 1, 2, 3].map(|number| serve(&circuits, number));
        let first = circuits.circuit(NonZeroU32::MIN);
        let wait = |number| match circuits.connect(circuits.circuit(number), Pulse::begin()) {
            Welcome::Wait(stay) => stay,
            Welcome::Serve(_) | Welcome::Challenge(_) | Welcome::Tarpit(_) | Welcome::Refuse(_) => {
                panic!("must wait")
            }
        };
        let (waits, other) = (wait(NonZeroU32::MIN), wait(NonZeroU32::new(4).unwrap()));
        circuits.hear_load(Some(heavy()));
        circuits.pay(&stays[0].visit);
        assert!(circuits.shard(first).unwrap().look(first, now()).unwrap().has_paid);
        // Of four places two are for those who did not pay, and two of these are held: whoever paid goes first.
        drop(stays);
        assert_eq!((waits.turn().await, other.turn().await), (Ok(()), Ok(())));
        let mut admission = lock(&circuits.admission);
        assert_eq!(admission.give_way(now()), None);
        let place = admission
            .admit(Ask { want: Want::Serve, lane: Lane::Normal, is_paid: false, ticket: None }, now());
        // The one that waited counts as paid: one more fits into the part of those who did not.
        assert_eq!(place.unwrap().place, Place::Served);
    }

    #[test]
    fn bans_of_a_bypass_end_open_streams_once_it_is_over() {
        let circuits = circuits();
        let (closer, mut closed) = mpsc::unbounded_channel();
        circuits.set_closer(closer);
        circuits.begin(TorGeneration(7));
        circuits.hear_bypass(true);
        let (banned, other) = (serve(&circuits, 1), serve(&circuits, 2));
        let circuit = NonZeroU32::MIN;
        let orders = Orders {
            generation: Some(7),
            circuits: vec![CircuitOrder {
                circuit,
                said: 1,
                state: CircuitState::Banned { until: u64::MAX },
            }],
            ..Orders::default()
        };
        assert!(circuits.follow(&Orders::default(), &orders));
        assert!(closed.try_recv().is_err(), "nobody is refused meanwhile");
        assert_eq!(*banned.visit.fate.borrow(), Fate::Served);
        circuits.hear_bypass(false);
        assert_eq!(*banned.visit.fate.borrow(), Fate::Ends(Refusal::Banned));
        let why = Some(Refusal::Banned);
        assert_eq!(closed.try_recv(), Ok(Closing { circuit: circuits.circuit(circuit), why }));
        assert_eq!(*other.visit.fate.borrow(), Fate::Served);
        assert!(closed.try_recv().is_err());
    }

    #[test]
    fn whoever_hosts_the_service_follows_orders_of_its_own_circuits_alone() {
        let circuits = circuits();
        let (closer, mut closed) = mpsc::unbounded_channel();
        circuits.set_closer(closer);
        let (one, two) = (NonZeroU32::MIN, NonZeroU32::new(2).unwrap());
        let ban = |generation, circuit, said| Orders {
            generation,
            circuits: vec![CircuitOrder { circuit, said, state: CircuitState::Banned { until: u64::MAX } }],
            ..Orders::default()
        };
        let is_banned = |number| circuits.digest().bans.iter().any(|(circuit, _)| *circuit == number);
        let nothing = Orders::default();
        // It waits for another to give the service up, and has no circuit yet: it says of none whose it is.
        assert!(!circuits.follow(&nothing, &ban(Some(5), one, 1)));
        assert_eq!((circuits.digest().generation, is_banned(one)), (None, false));

        circuits.begin(TorGeneration(7));
        assert!(circuits.follow(&nothing, &ban(Some(7), one, 1)));
        let circuit = circuits.circuit(one);
        assert_eq!(closed.try_recv(), Ok(Closing { circuit, why: Some(Refusal::Banned) }));
        assert!(is_banned(one));
        // Of a process that came later, and of one before: its own bans stay, and nothing of theirs is done.
        for other in [9, 5] {
            assert!(!circuits.follow(&nothing, &ban(Some(other), two, 2)));
            assert_eq!(
                (circuits.digest().generation, is_banned(one), is_banned(two)),
                (Some(7), true, false)
            );
        }
        // The daemon has begun anew, and does not know yet.
        assert!(circuits.follow(&nothing, &ban(None, two, 2)) && is_banned(two));
    }

    #[test]
    fn a_name_changes_nothing_and_another_process_is_told_everything_anew() {
        let circuits = circuits();
        let one = NonZeroU32::MIN;
        let ban = |generation, said, until| Orders {
            generation,
            circuits: vec![CircuitOrder { circuit: one, said, state: CircuitState::Banned { until } }],
            rungs: vec![(one, 3)],
            ..Orders::default()
        };
        let state = || {
            let digest = circuits.digest();
            (digest.generation, digest.bans.len(), digest.rungs)
        };
        // The daemon has begun anew as well, and does not know of which process it speaks.
        let unnamed = ban(None, 1, u64::MAX);
        let word = serve(&circuits, 2).word().clone();
        assert!(circuits.follow(&Orders::default(), &unnamed));
        assert_eq!(state(), (None, 1, vec![(one, 3)]));
        let named = Orders { generation: Some(7), circuits: Vec::new(), ..unnamed.clone() };
        assert!(circuits.follow(&unnamed, &named));
        assert_eq!(state(), (Some(7), 1, vec![(one, 3)]));
        assert_eq!(*serve(&circuits, 2).word(), word);
        // The same words are of other circuits now, and are followed again.
        let again = Orders { generation: Some(8), ..unnamed.clone() };
        assert!(circuits.follow(&unnamed, &again));
        assert_eq!(state(), (Some(8), 1, vec![(one, 3)]));
        // One before it has no streams: its name is not taken.
        assert!(circuits.follow(&again, &Orders { generation: Some(7), ..again.clone() }));
        assert_eq!(state(), (Some(8), 1, vec![(one, 3)]));
        assert_ne!(*serve(&circuits, 2).word(), word);
    }

    #[test]
    fn words_of_circuits_say_nothing_and_differ() {
        let circuits = circuits();
        let (one, same, other) = (serve(&circuits, 1), serve(&circuits, 1), serve(&circuits, 2));
        assert_eq!(one.word(), same.word());
        assert_ne!(one.word(), other.word());
        assert_eq!(one.word().len(), 16);
        let another_process = self::circuits();
        assert_ne!(one.word(), serve(&another_process, 1).word());
    }
}
