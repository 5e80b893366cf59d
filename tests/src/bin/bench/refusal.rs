//! What it costs to refuse a stream of a banned circuit: by the gate, by the front, by HAProxy, and by nobody who looks.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    num::{NonZeroU16, NonZeroU32},
    os::{fd::AsFd as _, unix::net::UnixStream},
    path::Path,
    process::id,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::socket::{setsockopt, sockopt},
    time::{ClockId, clock_gettime},
};
use tunica_api::front::{CircuitOrder, CircuitState, Orders};
use tunica_common::gate::GateOutcome;
use tunica_core::limits::Mode;
use tunica_tests::{
    counters::{ProcessorTime, TICK},
    gate::desired,
    ingress::{free_address, header},
    netns::Namespace,
    sys::defer_accept,
};
use tunicad::{
    shell::{gate::Gate, xdp::pins::Pins},
    sys::monotonic_ns,
};

use crate::{
    Pains,
    load::{Protocol, serve},
    proxy::{Processors, Program, Proxy},
    series::{Aim, Bound, Series},
    tell,
};

/// Rounds that count; one more comes first and warms up.
const ROUNDS: usize = 7;
/// How long streams come in a round, and how long before that is listened to what else the machine does.
const STREAMS: Duration = Duration::from_secs(2);
const STREAMS_SHORT: Duration = Duration::from_millis(200);
/// The circuit that is banned.
const BANNED: u32 = 0x0001_029a;
/// How long anything may take that should happen at once.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the gate may cost of what the front costs: a third, as a row shows it.
const THIRD: f64 = 0.33;

/// Who refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Refuser {
    Gate,
    Front,
    Haproxy,
    /// A thread that resets whatever it accepts, unread.
    Blind,
    /// The kernel, since nobody listens: no handshake, and nothing is read.
    Nobody,
}

impl Refuser {
    const ALL: [Self; 5] = [Self::Gate, Self::Front, Self::Haproxy, Self::Blind, Self::Nobody];

    const fn title(self) -> &'static str {
        match self {
            Self::Gate => "circuit gate, before tunica-front",
            Self::Front => "tunica-front",
            Self::Haproxy => "HAProxy",
            Self::Blind => "a thread that resets whatever it accepts, unread",
            Self::Nobody => "the kernel, on a port where nobody listens",
        }
    }
}

/// Figures of one refuser, microseconds of processor time for each refusal.
#[derive(Debug, Default)]
struct Figures {
    /// Of client and listener together. What the kernel does for a stream on loopback it does on the account of one of
    /// them.
    both: Series,
    /// Of the process that listens.
    listener: Series,
    /// Of all processors, less what they did before the streams came.
    machine: Series,
    /// How often a thread of that process which takes connections woke up, for each refusal.
    wakes: Series,
}

/// The figures.
#[derive(Debug, Default)]
pub(crate) struct Refusal(BTreeMap<Refuser, Figures>);

/// What refuses, where it listens, and what process stands there.
struct Stage {
    target: SocketAddr,
    proxy: Option<Proxy>,
}

impl Stage {
    fn of(refuser: Refuser, service: SocketAddr, processors: Processors) -> Result<Self> {
        let proxy = |program| Proxy::start(program, Protocol::Http, service, processors);
        let behind = |proxy: Proxy| Self { target: proxy.listen, proxy: Some(proxy) };
        Ok(match refuser {
            // It knows of no ban: what reached it would be served.
            Refuser::Gate => behind(proxy(Program::Front)?),
            Refuser::Front => {
                let mut proxy = proxy(Program::Front)?;
                let circuit = CircuitOrder {
                    circuit: NonZeroU32::new(BANNED).context("circuit 0")?,
                    said: monotonic_ns()?,
                    state: CircuitState::Banned { until: u64::MAX },
                };
                let orders = Orders { revision: 1, circuits: vec![circuit], ..Orders::default() };
                proxy.front().context("no front")?.order(&orders)?;
                behind(proxy)
            }
            Refuser::Haproxy => {
                let proxy = proxy(Program::Haproxy)?;
                ban_at_haproxy(&proxy.control().context("HAProxy without a control socket")?)?;
                behind(proxy)
            }
            Refuser::Blind => {
                let listener = TcpListener::bind("127.0.0.1:0")?;
                // As the others have it: nobody wakes before the line is there.
                defer_accept(listener.as_fd(), i32::try_from(PATIENCE.as_secs())?)?;
                let target = listener.local_addr()?;
                processors.start(|| {
                    thread::Builder::new().name("blind".to_owned()).spawn(move || reset_all(&listener))?;
                    Ok(())
                })?;
                Self { target, proxy: None }
            }
            Refuser::Nobody => {
                let target = free_address()?;
                Self { target, proxy: None }
            }
        })
    }

    /// Streams for so long, and what they cost.
    fn run(&self, length: Duration) -> Result<Cost> {
        let (begun, before) = (Instant::now(), busy()?);
        thread::sleep(length / 2);
        // Per second, of whatever else runs here.
        let noise = (busy()? - before).as_secs_f64() / begun.elapsed().as_secs_f64();
        let own = |proxy: &Proxy| Ok::<_, anyhow::Error>((proxy.spent()?, proxy.wakes()?));
        let at_first = self.proxy.as_ref().map(own).transpose()?;
        let (begun, before, here) = (Instant::now(), busy()?, spent_here()?);
        let line = header(BANNED);
        let mut streams: u32 = 0;
        while begun.elapsed() < length {
            refuse(self.target, line.as_bytes())?;
            streams += 1;
        }
        let (busy, spent, time) = (busy()? - before, spent_here()? - here, begun.elapsed());
        let at_last = self.proxy.as_ref().map(own).transpose()?;
        let each = f64::from(streams);
        let microseconds = |seconds: f64| seconds * 1e6 / each;
        let listener = at_first.zip(at_last).map(|(first, last)| {
            let spent = last.0.saturating_sub(first.0).as_secs_f64();
            (microseconds(spent), last.1.saturating_sub(first.1) as f64 / each)
        });
        let machine = microseconds(busy.as_secs_f64() - noise * time.as_secs_f64());
        let both = microseconds(spent.as_secs_f64()) + listener.map_or(0.0, |(spent, _)| spent);
        Ok(Cost { streams, both, listener, machine })
    }
}

struct Cost {
    streams: u32,
    both: f64,
    /// Time and wake-ups of the process that listens.
    listener: Option<(f64, f64)>,
    machine: f64,
}

/// A stream that must end without an answer.
fn refuse(target: SocketAddr, line: &[u8]) -> Result<()> {
    let mut client = match TcpStream::connect_timeout(&target, PATIENCE) {
        Ok(client) => client,
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Ok(()),
        Err(error) => return Err(error).context("connecting"),
    };
    client.set_read_timeout(Some(PATIENCE))?;
    // The reset may be there already.
    let written = client.write_all(line);
    match (written, client.read(&mut [0])) {
        (_, Ok(0)) => Ok(()),
        (_, Ok(_)) => bail!("a banned circuit was answered"),
        (Err(error), Err(_)) | (Ok(()), Err(error)) => {
            let is_reset = matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe);
            if is_reset { Ok(()) } else { Err(error).context("a banned circuit was not refused") }
        }
    }
}

/// Ends with this process.
fn reset_all(listener: &TcpListener) {
    let at_once = libc::linger { l_onoff: 1, l_linger: 0 };
    for stream in listener.incoming().flatten() {
        // Who has gone needs no reset.
        let _ = setsockopt(&stream, sockopt::Linger, &at_once);
    }
}

/// Sets what the configuration refuses, over the control socket (HAProxy's management guide, `set table`).
fn ban_at_haproxy(control: &Path) -> Result<()> {
    let (high, low) = (BANNED >> 16, BANNED & 0xffff);
    let mut line = UnixStream::connect(control).context("opening HAProxy's control socket")?;
    line.write_all(
        format!("set table circuits key fc00:dead:beef:4dad::{high:x}:{low:x} data.gpt0 2\n").as_bytes(),
    )?;
    let mut said = String::new();
    line.read_to_string(&mut said)?;
    ensure!(said.trim().is_empty(), "HAProxy does not ban: {}", said.trim());
    Ok(())
}

/// This process's processor time: the client's, and the listener's where that is a thread of it.
fn spent_here() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).context("asking for the process's time")?.into())
}

/// What all processors have worked since boot.
fn busy() -> Result<Duration> {
    Ok(TICK * u32::try_from(ProcessorTime::of_all()?.busy)?)
}

/// Measures all refusers in turn, round by round, in a network namespace.
///
/// # Errors
/// When one does not refuse, or another than the one that is measured does.
pub(crate) fn measure(purpose: &str, pains: Pains) -> Result<Refusal> {
    let namespace = Namespace::create(purpose, "refusal")?;
    namespace.run(|| {
        let processors = Processors::choose()?;
        processors.stay_beside()?;
        let service = serve(Protocol::Http)?;
        let mut stages = BTreeMap::new();
        for refuser in Refuser::ALL {
            stages.insert(refuser, Stage::of(refuser, service, processors)?);
        }
        let root = format!("/sys/fs/bpf/tunica-{purpose}-{}", id());
        let pins = Arc::new(Pins::claim(Path::new(&root))?);
        let length = match pains {
            Pains::Whole => STREAMS,
            Pains::Short => STREAMS_SHORT,
        };
        let mut refusal = Refusal::default();
        let rounds = pains.rounds(ROUNDS);
        for round in 0..=rounds {
            for (refuser, stage) in &stages {
                tell(&format!("refusals, round {round} of {rounds}: {}", refuser.title()));
                let cost = match refuser {
                    Refuser::Gate => behind_gate(stage, &pins, length)?,
                    Refuser::Front | Refuser::Haproxy | Refuser::Blind | Refuser::Nobody => {
                        stage.run(length).with_context(|| refuser.title())?
                    }
                };
                if round == 0 {
                    continue;
                }
                let figures = refusal.0.entry(*refuser).or_default();
                figures.both.push(cost.both);
                figures.machine.push(cost.machine);
                if let Some((listener, wakes)) = cost.listener {
                    figures.listener.push(listener);
                    figures.wakes.push(wakes);
                }
            }
        }
        Ok(refusal)
    })
}

/// With a gate on `lo`, which leaves it afterwards: the others' segments would pass through it too.
fn behind_gate(stage: &Stage, pins: &Arc<Pins>, length: Duration) -> Result<Cost> {
    let port = NonZeroU16::new(stage.target.port()).context("port 0")?;
    let mut gate = Gate::open(pins, &[port]).context("opening the circuit gate")?;
    gate.follow(&desired(Mode::Enforce, 1, &[BANNED])?)?;
    let before = gate.totals()?.of(GateOutcome::Refused);
    let cost = stage.run(length)?;
    let refused = gate.totals()?.of(GateOutcome::Refused) - before;
    ensure!(
        refused == u64::from(cost.streams),
        "the gate refused {refused} of {} streams: the rest went another way",
        cost.streams
    );
    gate.detach()?;
    Ok(cost)
}

impl Refusal {
    fn of(&self, refuser: Refuser, what: fn(&Figures) -> &Series) -> Series {
        self.0.get(&refuser).map(what).cloned().unwrap_or_default()
    }

    /// A Markdown table of everything.
    pub(crate) fn table(&self) -> String {
        let mut text = "| refused by | CPU µs of client and listener, min | median | max | × tunica-front | of the listener \
                        alone | of the whole machine | wake-ups of the listener |\n\
                        |---|--:|--:|--:|--:|--:|--:|--:|\n"
            .to_owned();
        let front = self.of(Refuser::Front, |figures| &figures.both);
        for refuser in Refuser::ALL {
            let both = self.of(refuser, |figures| &figures.both);
            let shown = |series: &Series, digits: usize| {
                let median = series.median();
                if median.is_nan() { "–".to_owned() } else { format!("{median:.digits$}") }
            };
            let _ = writeln!(
                text,
                "| {} | {:.1} | {:.1} | {:.1} | {:.2} | {} | {} | {} |",
                refuser.title(),
                both.least(),
                both.median(),
                both.most(),
                both.ratio(&front),
                shown(&self.of(refuser, |figures| &figures.listener), 1),
                shown(&self.of(refuser, |figures| &figures.machine), 1),
                shown(&self.of(refuser, |figures| &figures.wakes), 3),
            );
        }
        text
    }

    pub(crate) fn aims(&self) -> Vec<Aim> {
        let both = |refuser| self.of(refuser, |figures: &Figures| &figures.both);
        vec![
            Aim {
                what: "wake-ups of the listener for each refusal by the gate, in the worst round",
                bound: Bound::AtMost(0.0),
                found: self.of(Refuser::Gate, |figures| &figures.wakes).most(),
                unit: "",
            },
            Aim {
                what: "CPU of a refusal by the gate, the client's included, to one by the front",
                bound: Bound::AtMost(THIRD),
                found: both(Refuser::Gate).ratio(&both(Refuser::Front)),
                unit: "×",
            },
        ]
    }
}
