//! Bulk TCP of one established connection, with and without the shield in its way.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::net::if_::if_nametoindex;
use serde_json::Value;
use tunica_tests::{
    netns::{End, Namespace, join},
    program,
    sys::{bpf, end_with_parent},
};

use crate::{
    Pains,
    armed::{Armed, Rights},
    series::{Aim, Bound, Series},
    tell,
    yardstick::say,
};

/// Rounds that count; one more comes first and warms up.
const ROUNDS: usize = 7;
/// Seconds of each transfer; the first is left out, in which the window grows.
const SECONDS: &str = "2";
const LEFT_OUT: &str = "1";
/// Sender on the first processor, receiver on the second: a program on veth runs on the sender's, and where the scheduler
/// puts the two would otherwise decide the rate.
const PROCESSORS: &str = "0,1";
/// How long the server may take until it listens.
const PATIENCE: Duration = Duration::from_secs(5);

const INTERFACE: &str = "eth0";
/// iperf3's port.
const PORT: &str = "5201";

/// What stands in the receiver's driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Guard {
    Nothing,
    BarePass,
    Shield,
}

impl Guard {
    const ALL: [Self; 3] = [Self::Nothing, Self::BarePass, Self::Shield];

    const fn title(self) -> &'static str {
        match self {
            Self::Nothing => "no program",
            Self::BarePass => "bare `XDP_PASS`, two instructions",
            Self::Shield => "shield, enforcing",
        }
    }

    const fn role(self) -> &'static str {
        match self {
            Self::Nothing => "plain",
            Self::BarePass => "pass",
            Self::Shield => "guarded",
        }
    }
}

/// Sender and receiver of one kind.
struct Pair {
    sender: Namespace,
    server: Child,
    address: String,
    shield: Option<Box<Armed>>,
    /// Keeps the program attached.
    _link: Option<OwnedFd>,
    _receiver: Namespace,
}

impl Pair {
    fn build(purpose: &str, guard: Guard, number: usize, object: &[u8]) -> Result<Self> {
        let receiver = Namespace::create(purpose, guard.role())?;
        let sender = Namespace::create(purpose, &format!("{}-sender", guard.role()))?;
        let (near, far) = (format!("10.79.{number}.2/24"), format!("10.79.{number}.1/24"));
        join(
            End { namespace: &sender, interface: INTERFACE, mac: [2, 0, 0, 0, 4, 2], address: &near },
            End { namespace: &receiver, interface: INTERFACE, mac: [2, 0, 0, 0, 4, 1], address: &far },
        )?;
        let (program, shield) = match guard {
            Guard::Nothing => (None, None),
            Guard::BarePass => (Some(program::pass()?), None),
            Guard::Shield => {
                let mut shield = Armed::load(object, Rights::Unit, std::iter::empty())?;
                // Then each segment of the connection is one whose socket is looked up.
                shield.own(far.trim_end_matches("/24").parse().context("the receiver's address")?)?;
                (Some(shield.program()?), Some(Box::new(shield)))
            }
        };
        let attach = |program: OwnedFd| {
            receiver.run(|| {
                let interface = if_nametoindex(INTERFACE).context("looking for the veth")?;
                bpf::attach_xdp(program.as_fd(), interface).context("attaching to a veth in native mode")
            })
        };
        let link = program.map(attach).transpose()?;
        let mut command = receiver.command(Path::new("iperf3"));
        command.args(["-s", "-p", PORT]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let server = end_with_parent(&mut command).spawn().context("starting `iperf3 -s`")?;
        let address = format!("10.79.{number}.1");
        let pair = Self { sender, server, address, shield, _link: link, _receiver: receiver };
        pair.wait_until_listening()?;
        Ok(pair)
    }

    fn wait_until_listening(&self) -> Result<()> {
        let begun = Instant::now();
        loop {
            let target = format!("{}:{PORT}", self.address).parse().context("the server's address")?;
            let attempt = self.sender.run(|| {
                Ok(std::net::TcpStream::connect_timeout(&target, Duration::from_millis(200)).is_ok())
            })?;
            if attempt {
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                bail!("`iperf3 -s` does not listen after {} s", PATIENCE.as_secs());
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Bits a second that arrived.
    fn transfer(&mut self) -> Result<f64> {
        if let Some(shield) = &mut self.shield {
            shield.tend()?;
        }
        let arguments =
            ["-c", &self.address, "-p", PORT, "-t", SECONDS, "-O", LEFT_OUT, "-A", PROCESSORS, "-J"];
        let told = say(self.sender.command(Path::new("iperf3")).args(arguments))?;
        let told: Value = serde_json::from_str(&told).context("reading what iperf3 told")?;
        let rate = told.pointer("/end/sum_received/bits_per_second").and_then(Value::as_f64);
        rate.context("iperf3 told no rate")
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// The figures, in bits a second.
#[derive(Debug, Default)]
pub(crate) struct Bulk(BTreeMap<Guard, Series>);

/// Measures all kinds in turn, round by round.
///
/// # Errors
/// When something cannot be set up or a transfer fails.
pub(crate) fn measure(purpose: &str, object: &[u8], pains: Pains) -> Result<Bulk> {
    let mut pairs = BTreeMap::new();
    for (number, guard) in Guard::ALL.into_iter().enumerate() {
        tell("building the links for bulk TCP");
        pairs.insert(guard, Pair::build(purpose, guard, number, object)?);
    }
    let mut bulk = Bulk::default();
    let rounds = pains.rounds(ROUNDS);
    for round in 0..=rounds {
        for (guard, pair) in &mut pairs {
            tell(&format!("bulk TCP, round {round} of {rounds}: {}", guard.title()));
            let rate = pair.transfer()?;
            if round > 0 {
                bulk.0.entry(*guard).or_default().push(rate);
            }
        }
    }
    Ok(bulk)
}

impl Bulk {
    fn of(&self, guard: Guard) -> Series {
        self.0.get(&guard).cloned().unwrap_or_default()
    }

    /// How many per cent are lost against `other`.
    fn loss(&self, other: Guard) -> f64 {
        (1.0 - self.of(Guard::Shield).ratio(&self.of(other))) * 100.0
    }

    /// A Markdown table of everything.
    pub(crate) fn table(&self) -> String {
        let mut text = "| receiver's driver | min | median | max | the shield loses against it |\n\
                        |---|--:|--:|--:|--:|\n"
            .to_owned();
        for guard in Guard::ALL {
            let series = self.of(guard);
            let giga = |rate: f64| rate / 1e9;
            let loss = match guard {
                Guard::Nothing | Guard::BarePass => format!("{:.1} %", self.loss(guard)),
                Guard::Shield => String::new(),
            };
            let _ = writeln!(
                text,
                "| {} | {:.2} | {:.2} | {:.2} | {loss} |",
                guard.title(),
                giga(series.least()),
                giga(series.median()),
                giga(series.most()),
            );
        }
        text
    }

    pub(crate) fn aims(&self) -> Vec<Aim> {
        let aim = |what, other| Aim { what, bound: Bound::AtMost(3.0), found: self.loss(other), unit: " %" };
        vec![
            aim("bulk TCP lost to the shield's own work (against bare `XDP_PASS`)", Guard::BarePass),
            aim("bulk TCP lost on veth in all (against no program)", Guard::Nothing),
        ]
    }
}
