//! Puzzles, pictures and the waiting room: what circuits are asked for before they are served, and what they answered.
//!
//! Nothing is kept of a puzzle or a picture until it is redeemed; what is kept afterwards is bounded ([`MOST_REDEEMED`],
//! [`MOST_IN_ROOM`], [`MOST_REMEMBERED`]). Secrets belong to the process: what was asked before it began is good no longer.
//!
//! What is read from clients and shown to them is in [`page`], [`picture`] and `crate::http`; this knows no socket, and its
//! clocks are arguments.

use std::{
    fs::File,
    io::{self, Read as _},
    num::{NonZeroU32, NonZeroUsize},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tunica_api::front::Puzzles as Counted;
use tunica_config::{Config, Grant};
use tunica_core::{
    attempts::Attempts,
    id::CircuitId,
    puzzle_level::Puzzles,
    time::Monotime,
    waiting_room::{RoomFull, RoomSettings, Standing, WaitingRoom},
};
use tunica_pow::{
    Answer, CHARACTERS, Captcha, CaptchaError, Challenge, Difficulty, Id, Nonce, Purpose, RedeemError,
    Redeemed, Secrets, Solved, UnixSeconds, VerifyError,
};

pub mod page;
pub mod picture;

/// Where solutions are brought to, and where pictures and the waiting room are. The backend gets nothing of it.
pub const PATH: &str = "/.well-known/tunica/challenge";
/// How often the page of the waiting room comes again: six connections a minute, where the strictest profile allows ten.
pub const REFRESH: Duration = Duration::from_secs(10);

/// Redeemed challenges that are remembered, at most 70 bytes each: 200 a second over the 300 s of a challenge's life.
pub const MOST_REDEEMED: usize = 65_536;
/// Circuits in the waiting room.
pub const MOST_IN_ROOM: usize = 4_096;
/// Circuits whose wrong answers are remembered.
pub const MOST_REMEMBERED: usize = 4_096;
/// How long a circuit may stay away from the waiting room: four refreshes, since pages come slowly over tor.
const PATIENCE: Duration = Duration::from_secs(45);
/// The wait of the first bit that a page does not ask; each further bit doubles it, as it doubles the work.
const WAIT: Duration = Duration::from_secs(5);
const MOST_WAIT: Duration = Duration::from_secs(60);

/// What is asked where a puzzle is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// What a program must solve.
    pub difficulty: Difficulty,
    /// What a page asks; never more than a program must solve.
    pub page_difficulty: Difficulty,
    /// Whether the page's puzzle does not suffice, so that it leads to the waiting room.
    pub page_waits: bool,
}

impl Terms {
    /// As the configuration has it, until the load level says otherwise. Bits outside 8 to 24 become the nearest.
    pub fn new(bits: u8, page_most: u8) -> Self {
        let difficulty = nearest(bits);
        let page_difficulty = difficulty.min(nearest(page_most));
        Self { difficulty, page_difficulty, page_waits: difficulty > page_difficulty }
    }

    /// Whether somebody who solved as much need not wait. What was asked before the level rose may be too little now: it is
    /// not lost, but leads to the waiting room.
    fn suffices(&self, solved: Difficulty) -> bool {
        solved >= if self.page_waits { self.difficulty } else { self.page_difficulty }
    }

    /// How long somebody waits who solved no more than that.
    fn wait(&self, solved: Difficulty) -> Duration {
        let missing = self.difficulty.bits().saturating_sub(solved.bits()).clamp(1, 5);
        (WAIT * (1 << (missing - 1))).min(MOST_WAIT)
    }
}

impl From<Puzzles> for Terms {
    fn from(puzzles: Puzzles) -> Self {
        let Puzzles { difficulty, page_difficulty, page_waits } = puzzles;
        Self { difficulty: nearest(difficulty), page_difficulty: nearest(page_difficulty), page_waits }
    }
}

fn nearest(bits: u8) -> Difficulty {
    Difficulty::new(bits).unwrap_or(if bits < Difficulty::MIN.bits() {
        Difficulty::MIN
    } else {
        Difficulty::MAX
    })
}

/// What the operator set.
#[derive(Clone, Copy, Debug)]
pub struct ChallengeSettings {
    /// What is asked at first.
    pub terms: Terms,
    /// How long a puzzle or a picture is good.
    pub life: Duration,
    /// Whether who paid goes past the queue.
    pub grants: Grant,
    /// Circuits that the waiting room lets in each second.
    pub per_second: NonZeroU32,
}

impl ChallengeSettings {
    /// As the configuration has it. The waiting room lets in a quarter of what may connect in a second: the rest is for those
    /// who solve all that is asked.
    pub fn of(config: &Config) -> Self {
        let circuits = &config.circuits;
        let bits = |number: NonZeroU32| u8::try_from(number.get()).unwrap_or(u8::MAX);
        let quarter = circuits.max_connections_per_second.get() / 4;
        Self {
            terms: Terms::new(bits(circuits.pow_difficulty), bits(circuits.pow_page_max)),
            life: circuits.pow_expires,
            grants: circuits.pow_grants,
            per_second: NonZeroU32::new(quarter).unwrap_or(NonZeroU32::MIN),
        }
    }
}

/// Who was asked, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A browser, by a page.
    Page,
    /// A program, by headers.
    Program,
    /// A program, over TCP.
    Tcp,
    /// A person, by a picture.
    Picture,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Page, Self::Program, Self::Tcp, Self::Picture];

    /// The value of the `kind` label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Page => "page",
            Self::Program => "program",
            Self::Tcp => "tcp",
            Self::Picture => "picture",
        }
    }
}

/// Why an answer is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// It is no answer: no challenge, no nonce, no picture's number.
    Malformed,
    /// Too late.
    Expired,
    /// Made up, of another circuit, or of a process before this one.
    Foreign,
    /// The nonce does not solve it, although the challenge is ours: no honest solver sends that.
    Unsolved,
    /// It asks less than is asked now, and there is no waiting room for those who bring it.
    TooEasy,
    /// Redeemed before.
    Replayed,
    /// It can no longer be told from a replay.
    Crowded,
    /// The picture shows other characters.
    Misread,
}

impl Wrong {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Malformed,
        Self::Expired,
        Self::Foreign,
        Self::Unsolved,
        Self::TooEasy,
        Self::Replayed,
        Self::Crowded,
        Self::Misread,
    ];

    /// The value of the `reason` label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Expired => "expired",
            Self::Foreign => "foreign",
            Self::Unsolved => "unsolved",
            Self::TooEasy => "too_easy",
            Self::Replayed => "replayed",
            Self::Crowded => "crowded",
            Self::Misread => "misread",
        }
    }

    /// What a person is told.
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::Malformed => "The answer did not arrive whole.",
            Self::Expired => "The answer came too late.",
            Self::Foreign => "The answer belongs to another connection; Tor may have changed yours.",
            Self::Unsolved => "The answer is wrong.",
            Self::Replayed => "This answer was used already.",
            Self::TooEasy => "More is asked now.",
            Self::Crowded => "The answer came too late for this moment's load.",
            Self::Misread => "These were other characters.",
        }
    }

    /// Whether it counts as an attempt. Tor changes circuits, people are slow and click twice: none of that does.
    const fn is_attempt(self) -> bool {
        match self {
            Self::Malformed | Self::Unsolved | Self::Misread => true,
            Self::Expired | Self::Foreign | Self::TooEasy | Self::Replayed | Self::Crowded => false,
        }
    }
}

/// What becomes of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The circuit has paid.
    Paid,
    /// It stands in the waiting room.
    Waits {
        /// How many came before it.
        before: u32,
        /// Least time until it is let in.
        left: Duration,
    },
    /// It should wait, and the waiting room is full.
    RoomFull,
    /// The answer is not taken.
    Wrong(Wrong),
    /// The circuit gave too many wrong answers, and this one was not looked at.
    Pause(Duration),
}

/// Now, by the clock of the boot and by the wall's. A challenge's expiry is told to clients, who know the second alone.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// For what stays here.
    pub mono: Monotime,
    /// For what is told to clients.
    pub wall: UnixSeconds,
}

impl Clock {
    /// Both clocks now. Before 1970 nothing has expired.
    pub fn now() -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Self { mono: crate::circuits::now(), wall: UnixSeconds(wall) }
    }
}

/// All of it, shared by the workers.
pub struct Challenges {
    settings: ChallengeSettings,
    secrets: Secrets,
    /// What was derived so far, so that nothing is derived twice.
    drawn: AtomicU64,
    terms: Mutex<Terms>,
    redeemed: Mutex<Redeemed>,
    attempts: Mutex<Attempts>,
    room: Mutex<WaitingRoom>,
    issued: [AtomicU64; Kind::ALL.len()],
    solved: [AtomicU64; Kind::ALL.len()],
    failed: [AtomicU64; Wrong::ALL.len()],
    let_in: AtomicU64,
}

/// A picture to be shown.
pub struct Picture {
    /// What the form sends back with the characters.
    pub captcha: Captcha,
    /// What it shows.
    pub characters: [u8; CHARACTERS],
    /// By what it is distorted.
    pub seed: [u8; 32],
}

impl Challenges {
    /// With secrets of its own.
    ///
    /// # Errors
    /// If the kernel has no random bytes for them.
    pub fn new(settings: ChallengeSettings) -> io::Result<Self> {
        let mut secret = [0; 32];
        File::open("/dev/urandom")?.read_exact(&mut secret)?;
        Ok(Self::with_secret(settings, &secret, crate::circuits::now()))
    }

    fn with_secret(settings: ChallengeSettings, secret: &[u8; 32], now: Monotime) -> Self {
        let size = |number: usize| NonZeroUsize::new(number).unwrap_or(NonZeroUsize::MIN);
        let room =
            RoomSettings { most: size(MOST_IN_ROOM), per_second: settings.per_second, patience: PATIENCE };
        Self {
            terms: Mutex::new(settings.terms),
            settings,
            secrets: Secrets::new(secret),
            drawn: AtomicU64::new(0),
            redeemed: Mutex::new(Redeemed::new(size(MOST_REDEEMED))),
            attempts: Mutex::new(Attempts::new(size(MOST_REMEMBERED))),
            room: Mutex::new(WaitingRoom::new(room, now)),
            issued: Default::default(),
            solved: Default::default(),
            failed: Default::default(),
            let_in: AtomicU64::new(0),
        }
    }

    /// Other terms from now on; `None`: as configured. What was asked before is taken until it expires, and
    /// where it is easier than what is asked now leads to the waiting room; over TCP, which has none, it is too easy.
    pub fn set_terms(&self, terms: Option<Terms>) {
        *lock(&self.terms) = terms.unwrap_or(self.settings.terms);
    }

    /// What is asked now.
    pub fn terms(&self) -> Terms {
        *lock(&self.terms)
    }

    /// What a circuit is once it has paid.
    pub const fn grants(&self) -> Grant {
        self.settings.grants
    }

    fn draw(&self, purpose: Purpose) -> [u8; 32] {
        self.secrets.derive(purpose, &self.drawn.fetch_add(1, Relaxed).to_be_bytes())
    }

    /// What tells a token from all others, and says nothing else.
    pub fn token_id(&self) -> Id {
        self.id()
    }

    fn id(&self) -> Id {
        let (id, _) = self
            .draw(Purpose::Id)
            .split_first_chunk()
            .map_or(([0; 16], [].as_slice()), |(id, rest)| (*id, rest));
        Id(id)
    }

    fn expiry(&self, now: UnixSeconds) -> UnixSeconds {
        now.after(self.settings.life.as_secs())
    }

    /// A word that nobody can foretell, for the script of a page.
    pub fn page_word(&self) -> String {
        hex::encode(&self.draw(Purpose::Page)[..16])
    }

    /// A puzzle for a circuit. It keeps its difficulty when the level changes.
    pub fn issue(&self, circuit: CircuitId, kind: Kind, now: Clock) -> Challenge {
        let terms = self.terms();
        let difficulty = match kind {
            Kind::Page | Kind::Picture => terms.page_difficulty,
            Kind::Program | Kind::Tcp => terms.difficulty,
        };
        count(&self.issued, &Kind::ALL, &kind);
        let terms = tunica_pow::Terms { difficulty, expires: self.expiry(now.wall), id: self.id() };
        self.secrets.issue(&terms, &bytes_of(circuit))
    }

    /// A picture for a circuit.
    pub fn picture(&self, circuit: CircuitId, now: Clock) -> Picture {
        count(&self.issued, &Kind::ALL, &Kind::Picture);
        let captcha = Captcha { expires: self.expiry(now.wall), id: self.id() };
        let characters = self.secrets.characters(&captcha, &bytes_of(circuit));
        Picture { captcha, characters, seed: self.draw(Purpose::Distortion) }
    }

    /// A circuit says that it solved a puzzle.
    pub fn redeem(
        &self,
        circuit: CircuitId,
        challenge: &str,
        nonce: &str,
        kind: Kind,
        now: Clock,
    ) -> Outcome {
        self.answer(circuit, kind, now, || {
            let challenge: Challenge = challenge.parse().map_err(|_| Wrong::Malformed)?;
            let nonce: Nonce = nonce.parse().map_err(|_| Wrong::Malformed)?;
            let circuit = bytes_of(circuit);
            let answer = Answer { challenge: &challenge, nonce, circuit: &circuit };
            let at_least = match kind {
                // What is too easy by now leads to the waiting room.
                Kind::Page | Kind::Program | Kind::Picture => Difficulty::MIN,
                Kind::Tcp => self.terms().difficulty,
            };
            self.secrets.verify(&answer, at_least, now.wall).map_err(|error| match error {
                VerifyError::Expired => Wrong::Expired,
                VerifyError::Foreign => Wrong::Foreign,
                VerifyError::TooEasy { .. } => Wrong::TooEasy,
                VerifyError::Unsolved { .. } => Wrong::Unsolved,
            })
        })
    }

    /// A circuit says what a picture showed.
    pub fn read(&self, circuit: CircuitId, captcha: &str, text: &str, now: Clock) -> Outcome {
        self.answer(circuit, Kind::Picture, now, || {
            let wrong = |error| match error {
                CaptchaError::Expired => Wrong::Expired,
                CaptchaError::Wrong => Wrong::Misread,
                CaptchaError::Text => Wrong::Malformed,
            };
            let captcha: Captcha = captcha.parse().map_err(wrong)?;
            self.secrets.read(&captcha, text, &bytes_of(circuit), now.wall).map_err(wrong)
        })
    }

    fn answer(
        &self,
        circuit: CircuitId,
        kind: Kind,
        now: Clock,
        verify: impl FnOnce() -> Result<Solved, Wrong>,
    ) -> Outcome {
        if let Some(left) = lock(&self.attempts).pause(circuit, now.mono) {
            return Outcome::Pause(left);
        }
        let redeemed = verify().and_then(|solved| {
            lock(&self.redeemed).redeem(solved, now.wall).map_err(|error| match error {
                RedeemError::Expired => Wrong::Expired,
                RedeemError::Replayed => Wrong::Replayed,
                RedeemError::Crowded => Wrong::Crowded,
            })
        });
        let difficulty = match redeemed {
            Ok(difficulty) => difficulty,
            Err(wrong) => {
                if wrong.is_attempt() {
                    lock(&self.attempts).wrong(circuit, now.mono);
                }
                count(&self.failed, &Wrong::ALL, &wrong);
                return Outcome::Wrong(wrong);
            }
        };
        count(&self.solved, &Kind::ALL, &kind);
        let terms = self.terms();
        // Who reads a picture has done as much as a page asks.
        let difficulty = if kind == Kind::Picture { terms.page_difficulty } else { difficulty };
        if terms.suffices(difficulty) {
            return Outcome::Paid;
        }
        let mut room = lock(&self.room);
        match room.enter(circuit, terms.wait(difficulty), now.mono) {
            Ok(()) => match room.ask(circuit, now.mono) {
                Standing::Waits { before, left } => Outcome::Waits { before, left },
                Standing::Enters | Standing::Absent => Outcome::Paid,
            },
            Err(RoomFull) => Outcome::RoomFull,
        }
    }

    /// Where a circuit stands in the waiting room. [`Standing::Enters`] is said once: then it has paid.
    pub fn standing(&self, circuit: CircuitId, now: Clock) -> Standing {
        let standing = lock(&self.room).ask(circuit, now.mono);
        if standing == Standing::Enters {
            self.let_in.fetch_add(1, Relaxed);
        }
        standing
    }

    /// What is due now and then.
    pub fn advance(&self, now: Monotime) {
        lock(&self.room).advance(now);
    }

    /// How many there were.
    pub fn counted(&self) -> Counted {
        let by_kind = |counts: &[AtomicU64]| {
            Kind::ALL
                .iter()
                .zip(counts)
                .map(|(kind, count)| (kind.label().to_owned(), count.load(Relaxed)))
                .collect()
        };
        Counted {
            issued: by_kind(&self.issued),
            solved: by_kind(&self.solved),
            failed: Wrong::ALL
                .iter()
                .zip(&self.failed)
                .map(|(wrong, count)| (wrong.label().to_owned(), count.load(Relaxed)))
                .collect(),
            waiting_room: lock(&self.room).len() as u64,
            let_in: self.let_in.load(Relaxed),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each is whole between any two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn count<T: PartialEq>(counts: &[AtomicU64], all: &[T], one: &T) {
    let found = all.iter().zip(counts).find(|(each, _)| *each == one);
    if let Some((_, count)) = found {
        count.fetch_add(1, Relaxed);
    }
}

/// What tells a circuit from all others, and from those that another tor process numbers the same.
fn bytes_of(circuit: CircuitId) -> [u8; 12] {
    let mut bytes = circuit.generation().0.to_be_bytes().into_iter();
    let number = circuit.number_for_this_node().get().to_be_bytes();
    let mut number = number.into_iter();
    std::array::from_fn(|_| bytes.next().or_else(|| number.next()).unwrap_or(0))
}

/// A path of this service where a visitor may be sent to, or `/`. Nothing that a browser could read as another host:
/// `//host` and `/\host` are taken for one, and so is what remains after it drops tabs and line ends (WHATWG URL, "basic URL
/// parser").
pub fn local_path(to: &str) -> &str {
    const LONGEST: usize = 2_048;
    let is_plain = to.len() <= LONGEST && to.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\');
    let is_local = to.starts_with('/') && !to.starts_with("//");
    // To come back here would be a circle.
    if is_plain && is_local && !to.starts_with(PATH) { to } else { "/" }
}

#[cfg(test)]
mod tests;
