//! The ingress against HAProxy and nginx that do the same work, each alone on a processor.

use std::{collections::BTreeMap, fmt::Write as _, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use tunica_tests::{netns::Namespace, report::grouped, sys::allow_files};

use crate::{
    Pains,
    load::{Load, Protocol, VISITORS, Work, hold, is_open, serve},
    proxy::{Processors, Program, Proxy},
    series::{Aim, Bound, Series},
    tell,
};

/// Rounds that count; one more comes first and warms up.
const ROUNDS: usize = 5;
/// How long each is loaded in a round, and before that for caches and pools of connections to fill.
const LOADED: Duration = Duration::from_secs(3);
const LOADED_SHORT: Duration = Duration::from_millis(300);
const BEFORE: Duration = Duration::from_millis(300);
/// Idle connections at which memory is looked at.
const IDLE: u32 = 10_000;
const IDLE_SHORT: u32 = 300;
/// Descriptors that a process needs beside those of its idle connections.
const BESIDE: u64 = 512;
/// For what a program does once connections are idle, such as giving buffers back.
const SETTLES: Duration = Duration::from_secs(2);

/// Figures of a program at one kind of work.
#[derive(Debug, Default)]
struct Figures {
    /// Exchanges a second, and connections.
    rate: Series,
    connections: Series,
    /// Microseconds.
    half: Series,
    most: Series,
    /// Processor time of an exchange, microseconds.
    cost: Series,
}

/// The figures.
#[derive(Debug, Default)]
pub(crate) struct Ingress {
    loads: BTreeMap<(Work, Program), Figures>,
    /// Bytes without connections, and with the idle ones.
    memory: BTreeMap<Program, [u64; 2]>,
    idle: u32,
}

impl Work {
    const fn title(self) -> &'static str {
        match self {
            Self::KeepAlive => "HTTP, connections kept",
            Self::OneRequest => "HTTP, a connection for each request",
            Self::Tcp => "TCP, 8 × 16 KiB a connection",
        }
    }
}

/// Measures all programs in turn, round by round, in a network namespace.
///
/// # Errors
/// When a program is missing, or a limit acts.
pub(crate) fn measure(purpose: &str, pains: Pains) -> Result<Ingress> {
    let namespace = Namespace::create(purpose, "ingress")?;
    // Connections end faster than the usual range of ports comes back.
    namespace.write_sysctl("net/ipv4/ip_local_port_range", "10240 65535")?;
    namespace.run(|| {
        let processors = Processors::choose()?;
        processors.stay_beside()?;
        let mut ingress = Ingress::default();
        let service = |protocol| serve(protocol).map(|address| (protocol, address));
        let services: BTreeMap<_, _> =
            [service(Protocol::Http)?, service(Protocol::Tcp)?].into_iter().collect();
        let mut proxies = BTreeMap::new();
        for program in Program::ALL {
            for (protocol, service) in &services {
                let proxy = Proxy::start(program, *protocol, *service, processors)?;
                proxies.insert((program, *protocol), proxy);
            }
        }
        let loaded = match pains {
            Pains::Whole => LOADED,
            Pains::Short => LOADED_SHORT,
        };
        let rounds = pains.rounds(ROUNDS);
        for round in 0..=rounds {
            for work in Work::ALL {
                for program in Program::ALL {
                    tell(&format!(
                        "ingress, round {round} of {rounds}: {}, {}",
                        work.title(),
                        program.title()
                    ));
                    let proxy = proxies.get(&(program, work.protocol())).context("no such program")?;
                    let figures = ingress.loads.entry((work, program)).or_default();
                    figures
                        .take(proxy, work, loaded, round > 0)
                        .with_context(|| format!("{} at this work: {}", program.title(), work.title()))?;
                }
            }
        }
        // Fresh processes: what a load left behind in pools and arenas is none of an idle connection's.
        drop(proxies);
        ingress.idle = match pains {
            Pains::Whole => IDLE,
            Pains::Short => IDLE_SHORT,
        };
        let files = allow_files().context("raising the limit of open files")?;
        ensure!(
            files >= u64::from(ingress.idle) + BESIDE,
            "{files} files may be open, and {} idle connections need more: raise the hard limit (ulimit -Hn)",
            ingress.idle
        );
        for program in Program::ALL {
            tell(&format!("ingress, memory of idle connections: {}", program.title()));
            let service = services.get(&Protocol::Http).context("no service")?;
            let proxy = Proxy::start(program, Protocol::Http, *service, processors)?;
            let figures = memory(&proxy, ingress.idle)
                .with_context(|| format!("{} with {} idle connections", program.title(), ingress.idle))?;
            ingress.memory.insert(program, figures);
        }
        Ok(ingress)
    })
}

fn memory(proxy: &Proxy, idle: u32) -> Result<[u64; 2]> {
    // What is loaded with the first connection is there already.
    drop(hold(proxy.listen, 1)?);
    let before = proxy.resident()?;
    let held = hold(proxy.listen, idle)?;
    thread::sleep(SETTLES);
    let with = proxy.resident()?;
    ensure!(held.iter().all(is_open), "an idle connection was ended");
    Ok([before, with])
}

impl Figures {
    fn take(&mut self, proxy: &Proxy, work: Work, loaded: Duration, counts: bool) -> Result<()> {
        let mut load = Load::begin(proxy.listen, work)?;
        load.run(BEFORE)?;
        let before = proxy.spent()?;
        let seen = load.run(loaded)?;
        let spent = proxy.spent()?.saturating_sub(before);
        if !counts {
            return Ok(());
        }
        let exchanges = seen.latencies.len() as f64;
        let seconds = seen.time.as_secs_f64();
        self.rate.push(exchanges / seconds);
        self.connections.push(seen.connections as f64 / seconds);
        let within = |per_cent| seen.within(per_cent).map(|time| time.as_secs_f64() * 1e6);
        self.half.push(within(50).context("no exchange")?);
        self.most.push(within(99).context("no exchange")?);
        self.cost.push(spent.as_secs_f64() * 1e6 / exchanges);
        Ok(())
    }

    /// Exchanges for each second of the program's own processor time.
    fn worth(&self) -> Series {
        self.cost.with(&self.cost, |cost, _| 1e6 / cost)
    }
}

impl Ingress {
    fn figures(&self, work: Work, program: Program) -> Result<&Figures, std::fmt::Error> {
        self.loads.get(&(work, program)).ok_or(std::fmt::Error)
    }

    /// Markdown tables of everything.
    pub(crate) fn table(&self) -> String {
        let mut text = String::new();
        // What was not measured has no table.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, text: &mut String) -> std::fmt::Result {
        writeln!(
            text,
            "{VISITORS} visitors, each of a circuit of its own. The program has one processor, visitors and service share the \
             other."
        )?;
        for work in Work::ALL {
            let (what, also) = match work {
                Work::KeepAlive | Work::OneRequest => ("requests/s", ""),
                Work::Tcp => ("exchanges/s", " connections/s |"),
            };
            let line = if also.is_empty() { "" } else { "--:|" };
            writeln!(
                text,
                "\n**{}**\n\n| program | {what}, min | median | max | × HAProxy |{also} p50 µs | p99 µs | its CPU µs each | \
                 {what} of its own CPU | × HAProxy |\n|---|--:|--:|--:|--:|{line}--:|--:|--:|--:|--:|",
                work.title()
            )?;
            let haproxy = self.figures(work, Program::Haproxy)?;
            for program in Program::ALL {
                let figures = self.figures(work, program)?;
                let count = |number: f64| grouped(number.max(0.0).round() as u64);
                let connections = match work {
                    Work::KeepAlive | Work::OneRequest => String::new(),
                    Work::Tcp => format!(" {} |", count(figures.connections.median())),
                };
                writeln!(
                    text,
                    "| {} | {} | {} | {} | {:.2} |{connections} {} | {} | {:.1} | {} | {:.2} |",
                    program.title(),
                    count(figures.rate.least()),
                    count(figures.rate.median()),
                    count(figures.rate.most()),
                    figures.rate.ratio(&haproxy.rate),
                    count(figures.half.median()),
                    count(figures.most.median()),
                    figures.cost.median(),
                    count(figures.worth().median()),
                    figures.worth().ratio(&haproxy.worth()),
                )?;
            }
        }
        writeln!(
            text,
            "\n| program | MiB in memory without connections | with {} idle | KiB an idle connection |\n|---|--:|--:|--:|",
            grouped(self.idle.into())
        )?;
        for (program, [before, with]) in &self.memory {
            let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            let each = with.saturating_sub(*before) as f64 / 1024.0 / f64::from(self.idle);
            writeln!(text, "| {} | {:.1} | {:.1} | {each:.1} |", program.title(), mib(*before), mib(*with))?;
        }
        Ok(())
    }

    pub(crate) fn aims(&self) -> Vec<Aim> {
        let aim = |what, work, least, of: fn(&Figures) -> Series| {
            let series = |program| self.loads.get(&(work, program)).map(of).unwrap_or_default();
            let found = series(Program::Front).ratio(&series(Program::Haproxy));
            Aim { what, bound: Bound::AtLeast(least), found, unit: "×" }
        };
        let rate = |figures: &Figures| figures.rate.clone();
        vec![
            aim("HTTP requests/s over kept connections, to HAProxy", Work::KeepAlive, 0.8, rate),
            aim("the same for a second of its own processor time", Work::KeepAlive, 0.8, Figures::worth),
            aim("HTTP requests/s, a connection each, to HAProxy", Work::OneRequest, 0.8, rate),
            aim("the same for a second of its own processor time", Work::OneRequest, 0.8, Figures::worth),
            aim("exchanges/s of spliced TCP, to HAProxy", Work::Tcp, 1.0, rate),
            aim("the same for a second of its own processor time", Work::Tcp, 1.0, Figures::worth),
        ]
    }
}
