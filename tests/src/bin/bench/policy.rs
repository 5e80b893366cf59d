//! What a decision about a circuit costs, and what a circuit takes of memory: the policy alone, without front, sockets or
//! locks.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    hint::black_box,
    num::{NonZeroU16, NonZeroU32},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::time::{ClockId, clock_gettime};
use tunica_core::{
    ban_ladder::Ladder,
    circuit_policy::{
        Admission, BYTES_PER_CIRCUIT, CircuitSettings, CircuitShard, Decision, Hold, RequestRates,
    },
    id::{CircuitId, TorGeneration},
    time::Monotime,
};
use tunica_tests::{report::grouped, sys::allocated_bytes};

use crate::{
    Pains,
    series::{Aim, Bound, Series},
    tell,
};

/// Rounds that count; one more comes first and warms up.
const ROUNDS: usize = 7;
/// Decisions of one kind in one round.
const DECISIONS: u32 = 1_000_000;
const DECISIONS_SHORT: u32 = 50_000;
/// Connections that are open together where only their beginning is timed.
const TOGETHER: u32 = 1_000;
/// Between two decisions, on the clock that the policy is told: a front that does a million of them a second.
const BETWEEN: Duration = Duration::from_micros(1);
/// What a decision is about; and all circuits belong to one tor process.
const GENERATION: TorGeneration = TorGeneration(1);

/// What is decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// A connection of a known circuit comes and is given a place.
    Connection,
    /// A connection of a known circuit comes, is given a place, and ends.
    Visit,
    /// The same, of a circuit never seen before: another leaves the table for it.
    Newcomer,
    /// A request over an open connection.
    Request,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Connection, Self::Request, Self::Visit, Self::Newcomer];

    const fn title(self) -> &'static str {
        match self {
            Self::Connection => "connection of a known circuit",
            Self::Visit => "connection of a known circuit, and its end",
            Self::Newcomer => "connection of a new circuit, which evicts another, and its end",
            Self::Request => "request of a known circuit",
        }
    }
}

/// How many circuits are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Crowd {
    HundredThousand,
    Million,
}

impl Crowd {
    const ALL: [Self; 2] = [Self::HundredThousand, Self::Million];

    const fn circuits(self) -> u32 {
        match self {
            Self::HundredThousand => 100_000,
            Self::Million => 1_000_000,
        }
    }
}

/// The figures.
#[derive(Debug, Default)]
pub(crate) struct Policy {
    /// Decisions a second of one core.
    rates: BTreeMap<(Crowd, Kind), Series>,
    /// Bytes that the allocator gave out for a full shard, a circuit.
    bytes: BTreeMap<Crowd, f64>,
}

/// A shard with all its circuits, and what all circuits share.
struct Table {
    shard: CircuitShard,
    admission: Admission,
    now: Monotime,
    /// The newest circuit.
    last: u32,
    /// Of [`Self::draw`].
    seed: u64,
    circuits: u32,
}

impl Table {
    /// One that is full. No connection is open.
    fn fill(circuits: u32) -> Result<Self> {
        let settings = settings(circuits)?;
        // A boot clock is never at zero where a front runs.
        let now = Monotime(0).after(Duration::from_secs(100));
        let mut table = Self {
            shard: CircuitShard::new(settings.clone(), NonZeroU32::MIN, GENERATION, now),
            admission: Admission::new(settings),
            now,
            last: 0,
            seed: 0x9e37_79b9_7f4a_7c15,
            circuits,
        };
        for _ in 0..circuits {
            table.last += 1;
            table.visit(table.last)?;
        }
        let known = table.shard.counts(now).tracked;
        ensure!(known == circuits, "the table knows {known} circuits instead of {circuits}");
        Ok(table)
    }

    /// A known circuit at random (xorshift64), so that the processor's cache helps no more than it does a front.
    fn draw(&mut self) -> u32 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        // The remainder is less than the number of circuits, which is a u32.
        self.last - u32::try_from(self.seed % u64::from(self.circuits)).unwrap_or(0)
    }

    fn connection(&mut self, number: u32) -> Result<Hold> {
        self.now = self.now.after(BETWEEN);
        let (admission, now) = (&mut self.admission, self.now);
        let arrival = self.shard.connect(circuit(number)?, now, |ask| admission.admit(ask, now));
        arrival.hold.context("a limit acted that was out of reach")
    }

    fn end(&mut self, hold: &Hold) {
        self.shard.close(hold, self.now);
        self.admission.close(hold.serial());
        black_box(self.admission.start_next());
    }

    fn visit(&mut self, number: u32) -> Result<()> {
        let hold = self.connection(number)?;
        self.end(&hold);
        Ok(())
    }

    fn request(&mut self, number: u32) -> Result<()> {
        self.now = self.now.after(BETWEEN);
        let (admission, now) = (&mut self.admission, self.now);
        let ruling = self.shard.request(circuit(number)?, now, |ticket| admission.request(ticket, now));
        ensure!(ruling.decision == Decision::Allow, "a limit acted that was out of reach");
        Ok(())
    }

    /// Decisions of this kind a second of this thread's own time.
    fn run(&mut self, kind: Kind, decisions: u32) -> Result<f64> {
        if kind == Kind::Connection {
            return self.connections(decisions);
        }
        let begun = spent()?;
        for _ in 0..decisions {
            match kind {
                Kind::Connection | Kind::Visit => {
                    let number = self.draw();
                    self.visit(number)?;
                }
                Kind::Request => {
                    let number = self.draw();
                    self.request(number)?;
                }
                Kind::Newcomer => {
                    self.last += 1;
                    self.visit(self.last)?;
                }
            }
        }
        Ok(f64::from(decisions) / (spent()? - begun).as_secs_f64())
    }

    /// As [`Self::run`]: many begin, which is timed, then all of them end, which is not.
    fn connections(&mut self, decisions: u32) -> Result<f64> {
        let mut timed = Duration::ZERO;
        let mut holds = Vec::with_capacity(TOGETHER as usize);
        for _ in 0..decisions / TOGETHER {
            let begun = spent()?;
            for _ in 0..TOGETHER {
                let number = self.draw();
                holds.push(self.connection(number)?);
            }
            timed += spent()? - begun;
            holds.drain(..).for_each(|hold| self.end(&hold));
        }
        Ok(f64::from(decisions) / timed.as_secs_f64())
    }
}

/// The profile with most rules, and every limit out of reach.
fn settings(circuits: u32) -> Result<CircuitSettings> {
    let day = Duration::from_secs(86_400);
    let web = CircuitSettings::web(Ladder::new(vec![Duration::from_secs(300)], day)?);
    let most = NonZeroU32::MAX;
    let requests = NonZeroU16::new(*CircuitSettings::REQUESTS.end()).context("no request allowed")?;
    Ok(CircuitSettings {
        max_connections_per_second: most,
        max_concurrent_connections: most,
        maxconn: most,
        max_concurrent_per_circuit: requests,
        connections_per_10_seconds: None,
        requests: Some(RequestRates { slow: requests, deny: requests }),
        table_size: NonZeroU32::new(circuits).context("no circuit")?,
        ..web
    })
}

fn circuit(number: u32) -> Result<CircuitId> {
    Ok(CircuitId::new(GENERATION, NonZeroU32::new(number).context("circuit 0")?))
}

/// This thread's processor time.
pub(crate) fn spent() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).context("asking for the thread's time")?.into())
}

/// Measures all kinds with both crowds in turn, round by round.
///
/// # Errors
/// When a limit acts, which would make another figure of it.
pub(crate) fn measure(pains: Pains) -> Result<Policy> {
    let mut policy = Policy::default();
    let mut tables = BTreeMap::new();
    for crowd in Crowd::ALL {
        let circuits = crowd.circuits();
        tell(&format!("filling a table with {} circuits", grouped(circuits.into())));
        let before = allocated_bytes();
        let table = Table::fill(circuits)?;
        let bytes = allocated_bytes().saturating_sub(before);
        policy.bytes.insert(crowd, bytes as f64 / f64::from(circuits));
        tables.insert(crowd, table);
    }
    let decisions = match pains {
        Pains::Whole => DECISIONS,
        Pains::Short => DECISIONS_SHORT,
    };
    let rounds = pains.rounds(ROUNDS);
    for round in 0..=rounds {
        tell(&format!("decisions, round {round} of {rounds}"));
        for (crowd, table) in &mut tables {
            for kind in Kind::ALL {
                let rate = table.run(kind, decisions)?;
                if round > 0 {
                    policy.rates.entry((*crowd, kind)).or_default().push(rate);
                }
            }
        }
    }
    Ok(policy)
}

impl Policy {
    fn rate(&self, crowd: Crowd, kind: Kind) -> Series {
        self.rates.get(&(crowd, kind)).cloned().unwrap_or_default()
    }

    /// Markdown tables of everything.
    pub(crate) fn table(&self) -> String {
        let mut text =
            "| circuits | decision | min | median | max | ns each |\n|--:|---|--:|--:|--:|--:|\n".to_owned();
        let millions = |rate: f64| rate / 1e6;
        for crowd in Crowd::ALL {
            for kind in Kind::ALL {
                let rate = self.rate(crowd, kind);
                let _ = writeln!(
                    text,
                    "| {} | {} | {:.2} | {:.2} | {:.2} | {:.0} |",
                    grouped(crowd.circuits().into()),
                    kind.title(),
                    millions(rate.least()),
                    millions(rate.median()),
                    millions(rate.most()),
                    1e9 / rate.median(),
                );
            }
        }
        text.push_str(
            "\n| circuits | bytes of a circuit by its record and links | allocated, of a circuit |\n|--:|--:|--:|\n",
        );
        for crowd in Crowd::ALL {
            let bytes = self.bytes.get(&crowd).copied().unwrap_or(f64::NAN);
            let circuits = grouped(crowd.circuits().into());
            let _ = writeln!(text, "| {circuits} | {BYTES_PER_CIRCUIT} | {bytes:.1} |");
        }
        text
    }

    pub(crate) fn aims(&self) -> Vec<Aim> {
        let rate = |what, crowd, kind| Aim {
            what,
            bound: Bound::AtLeast(2.0),
            found: self.rate(crowd, kind).median() / 1e6,
            unit: " million/s",
        };
        let bytes = |what, crowd| Aim {
            what,
            bound: Bound::AtMost(128.0),
            found: self.bytes.get(&crowd).copied().unwrap_or(f64::NAN),
            unit: " B",
        };
        let (few, many) = (Crowd::HundredThousand, Crowd::Million);
        vec![
            rate("decisions on connections a core, 100 000 circuits", few, Kind::Connection),
            rate("decisions on connections a core, 1 000 000 circuits", many, Kind::Connection),
            rate("decisions on requests a core, 100 000 circuits", few, Kind::Request),
            rate("decisions on requests a core, 1 000 000 circuits", many, Kind::Request),
            bytes("memory of a tracked circuit, 100 000 circuits", few),
            bytes("memory of a tracked circuit, 1 000 000 circuits", many),
        ]
    }
}
