//! Half a minute of random sources, and who still keeps a single source to its limit then.
//!
//! Measured is what a limit is for, with real connections over a second link: how many a second a source gets that tries
//! far too many, and how many of those are let in who come for the first time and want one each.

use std::{
    collections::{HashMap, VecDeque},
    fmt::Write as _,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener},
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, Shutdown, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, shutdown,
        socket, sockopt,
    },
};
use tunica_tests::{
    netns::{End, Namespace, join, mac_text},
    program,
};

use crate::{
    Pains,
    armed::{Armed, OWN, PORT, Rights},
    cookies::{ANYONE, DROP_ANSWERS, FORGED, listen},
    link::{Flood, INTERFACE, Link, attach, load_rules, syn},
    series::{Aim, Bound},
    tell,
    yardstick::say,
};

/// Frames of one call.
const FRAMES: u32 = 2_000_000;
const FRAMES_THROUGH_THE_STACK: u32 = 500_000;

/// How long the source that tries too much goes on, and the newcomers come.
const PROBED: Duration = Duration::from_secs(5);
/// Connections a second that it tries.
const TRIED: u32 = 1_000;
/// Newcomers a second, each from an address of its own.
const NEWCOMERS: u32 = 40;
/// How long each waits.
const PATIENCE: Duration = Duration::from_millis(500);

/// All limits compared here: connections a second of one source, and at once.
const LIMIT: (u32, u32) = (10, 20);

/// The host's interface towards the probes.
const PROBED_SIDE: &str = "probe0";
const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 5, 1];
const PROBE_MAC: [u8; 6] = [2, 0, 0, 0, 5, 2];

/// Where the probes come from (RFC 2544's block for benchmarks).
const PROBES: &str = "198.18.0.0/15";
/// The source that tries too much, before the flood and under it.
const GREEDY: [Ipv4Addr; 2] = [Ipv4Addr::new(198, 18, 0, 1), Ipv4Addr::new(198, 18, 0, 2)];
/// The first of the newcomers.
const FIRST_NEWCOMER: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 1);

/// What defends the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Guard {
    Shield,
    Meter,
    Hashlimit,
}

impl Guard {
    const ALL: [Self; 3] = [Self::Shield, Self::Meter, Self::Hashlimit];

    const fn title(self) -> &'static str {
        match self {
            Self::Shield => "shield, as shipped",
            Self::Meter => "nftables meter of 65 536, netdev ingress",
            Self::Hashlimit => "iptables hashlimit of 65 536, raw prerouting",
        }
    }

    const fn role(self) -> &'static str {
        match self {
            Self::Shield => "last-shield",
            Self::Meter => "last-meter",
            Self::Hashlimit => "last-hash",
        }
    }

    const fn frames(self) -> u32 {
        match self {
            Self::Shield => FRAMES,
            Self::Meter | Self::Hashlimit => FRAMES_THROUGH_THE_STACK,
        }
    }
}

/// A host with a service, attacked over one link and visited over another.
struct Post {
    link: Link,
    shield: Option<Box<Armed>>,
    visits: Visits,
    _attached: Vec<OwnedFd>,
}

/// Where visitors come from, and where they arrive.
struct Visits {
    probes: Namespace,
    door: Door,
}

impl Post {
    fn build(
        purpose: &str,
        guard: Guard,
        number: usize,
        generators: &Namespace,
        object: &[u8],
    ) -> Result<Self> {
        let link = Link::build(purpose, guard.role(), number, generators)?;
        let probes = Namespace::create(purpose, &format!("{}-probes", guard.role()))?;
        let (near, far) = (format!("10.80.{number}.1"), format!("10.80.{number}.2"));
        let host = &link.namespace;
        join(
            End { namespace: host, interface: PROBED_SIDE, mac: HOST_MAC, address: &format!("{near}/24") },
            End { namespace: &probes, interface: INTERFACE, mac: PROBE_MAC, address: &format!("{far}/24") },
        )?;
        for (namespace, interface, address, mac) in
            [(host, PROBED_SIDE, &far, PROBE_MAC), (&probes, INTERFACE, &near, HOST_MAC)]
        {
            let mac = mac_text(mac);
            let fixed = ["neighbour", "add", address, "lladdr", &mac, "dev", interface, "nud", "permanent"];
            namespace.ip(&fixed)?;
        }
        host.write_sysctl(&format!("net/ipv4/conf/{PROBED_SIDE}/rp_filter"), "0")?;
        host.ip(&["route", "add", PROBES, "via", &far])?;
        // Each address of the block is the probes' own.
        probes.ip(&["route", "add", "local", PROBES, "dev", "lo"])?;
        probes.ip(&["route", "add", &format!("{OWN}/32"), "via", &near])?;
        let mut attached = Vec::new();
        let mut shield = None;
        match guard {
            Guard::Shield => {
                let mut armed = Armed::load(object, Rights::Unit, std::iter::empty())?;
                let program = armed.program()?;
                // A veth drops what a program sends back unless its peer has one, too.
                attached.push(attach(&probes, &program::pass()?, INTERFACE)?);
                attached.push(attach(generators, &program::pass()?, &link.entrance)?);
                for interface in [INTERFACE, PROBED_SIDE] {
                    attached.push(link.attach(&program, interface)?);
                }
                shield = Some(Box::new(armed));
            }
            Guard::Meter => load_rules(host, &meter())?,
            Guard::Hashlimit => {
                let (rate, burst) = LIMIT;
                let rule = format!(
                    "-t raw -A PREROUTING -p tcp --syn -m hashlimit --hashlimit-name lasting --hashlimit-mode srcip \
                     --hashlimit-above {rate}/second --hashlimit-burst {burst} --hashlimit-htable-size 65536 \
                     --hashlimit-htable-max 65536 -j DROP"
                );
                say(host.command(Path::new("iptables")).args(rule.split_whitespace()))?;
            }
        }
        let visits = Visits { probes, door: Door::open(listen(&link)?)? };
        Ok(Self { link, shield, visits, _attached: attached })
    }
}

impl Visits {
    /// Connections a second that one source gets.
    fn greed(&self, source: Ipv4Addr) -> Result<f64> {
        let tried = self.probes.run(|| knock(source, 1, TRIED))?;
        ensure!(tried > TRIED, "the probe tried no more than {tried} connections");
        Ok(f64::from(self.door.counts(source, 1).0) / PROBED.as_secs_f64())
    }

    /// Of those who come for the first time, how many are let in, from 0 to 1.
    fn welcome(&self) -> Result<f64> {
        let tried = self.probes.run(|| knock(FIRST_NEWCOMER, u32::MAX, NEWCOMERS))?;
        ensure!(tried > NEWCOMERS, "only {tried} newcomers came");
        Ok(f64::from(self.door.counts(FIRST_NEWCOMER, tried).1) / f64::from(tried))
    }
}

fn meter() -> String {
    let (rate, burst) = LIMIT;
    format!(
        "table netdev bench {{\n\
         set sources {{ type ipv4_addr; flags dynamic; size 65536; timeout 60s; }}\n\
         chain guard {{ type filter hook ingress devices = {{ \"{INTERFACE}\", \"{PROBED_SIDE}\" }} priority 0; policy accept;\n\
         tcp flags & (syn | ack) == syn update @sources {{ ip saddr limit rate over {rate}/second burst {burst} packets }} \
         counter drop\n}}\n}}\n"
    )
}

/// Tries connections for [`PROBED`], so many a second, from so many addresses in turn. Returns how many it tried.
fn knock(first: Ipv4Addr, sources: u32, per_second: u32) -> Result<u32> {
    let service = SockaddrStorage::from(SocketAddr::from(SocketAddrV4::new(OWN, PORT)));
    let begun = Instant::now();
    let mut open: VecDeque<(Instant, OwnedFd)> = VecDeque::new();
    let mut tried = 0;
    while begun.elapsed() < PROBED {
        while open.front().is_some_and(|(since, _)| since.elapsed() > PATIENCE) {
            open.pop_front();
        }
        // A pause of this thread is not caught up, which would be a burst.
        if f64::from(tried) < begun.elapsed().as_secs_f64() * f64::from(per_second) {
            let own = Ipv4Addr::from_bits(first.to_bits() + tried % sources);
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
            setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
            // Closing resets the connection at once, so that neither side remembers it.
            setsockopt(&socket, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
            let own = SockaddrStorage::from(SocketAddr::from(SocketAddrV4::new(own, 0)));
            bind(socket.as_raw_fd(), &own).context("a probe's address")?;
            match connect(socket.as_raw_fd(), &service) {
                Ok(()) | Err(Errno::EINPROGRESS) => {}
                Err(error) => return Err(error).context("a probe cannot connect"),
            }
            open.push_back((Instant::now(), socket));
            tried += 1;
        } else {
            thread::sleep(Duration::from_micros(200));
        }
    }
    // Those who came last have their time, too.
    thread::sleep(PATIENCE);
    Ok(tried)
}

/// Accepts every connection, closes it, and counts by source.
struct Door {
    listener: Arc<TcpListener>,
    counts: Arc<Mutex<HashMap<Ipv4Addr, u32>>>,
    thread: Option<JoinHandle<()>>,
}

impl Door {
    fn open(listener: TcpListener) -> Result<Self> {
        let (listener, counts) = (Arc::new(listener), Arc::<Mutex<HashMap<Ipv4Addr, u32>>>::default());
        let (accepts, counted) = (Arc::clone(&listener), Arc::clone(&counts));
        let accept = move || {
            // Accepting fails for good once the socket is shut down.
            while let Ok((_, peer)) = accepts.accept() {
                if let SocketAddr::V4(peer) = peer {
                    *counted.lock().unwrap_or_else(PoisonError::into_inner).entry(*peer.ip()).or_default() +=
                        1;
                }
            }
        };
        let thread = thread::Builder::new().name("door".to_owned()).spawn(accept)?;
        Ok(Self { listener, counts, thread: Some(thread) })
    }

    /// Connections from so many addresses, and how many of those had one.
    fn counts(&self, first: Ipv4Addr, sources: u32) -> (u32, u32) {
        let range = first.to_bits()..first.to_bits().saturating_add(sources);
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let of_these = counts.iter().filter(|(address, _)| range.contains(&address.to_bits()));
        of_these.fold((0, 0), |(all, distinct), (_, count)| (all + count, distinct + 1))
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        // On Linux this wakes the thread that accepts, with EINVAL.
        let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What was found of one guard.
#[derive(Clone, Copy, Debug)]
struct Found {
    /// SYNs a second that it decided about.
    rate: f64,
    /// How many all in all.
    arrived: u64,
    /// Connections a second of the source that tries too much, before and under the flood.
    greed: [f64; 2],
    /// Newcomers that were let in, from 0 to 1.
    welcome: f64,
}

impl Found {
    /// The most that a source may get that is held to [`LIMIT`], with as much again for what is lost and counted late.
    fn is_limited(greed: f64) -> bool {
        greed <= 2.0 * allowed()
    }

    fn verdict(&self) -> &'static str {
        let [_, greed] = self.greed;
        match (Self::is_limited(greed), self.welcome >= 0.95) {
            (true, true) => "yes",
            (true, false) => "no: it refuses strangers, whatever they want",
            (false, _) => "no: it lets everybody pass",
        }
    }
}

/// Connections a second that [`LIMIT`] allows while it is probed.
fn allowed() -> f64 {
    let (rate, burst) = LIMIT;
    f64::from(rate) + f64::from(burst) / PROBED.as_secs_f64()
}

/// What was found of all.
#[derive(Debug)]
pub(crate) struct Lasting {
    seconds: u64,
    found: Vec<(Guard, Found)>,
}

/// Measures one after the other.
///
/// # Errors
/// When something cannot be set up, or a source is not even limited before the flood.
pub(crate) fn measure(purpose: &str, object: &[u8], pains: Pains) -> Result<Lasting> {
    let seconds = match pains {
        Pains::Whole => 30,
        Pains::Short => 10,
    };
    let generators = Namespace::create(purpose, "lasting")?;
    load_rules(&generators, DROP_ANSWERS)?;
    let mut lasting = Lasting { seconds, found: Vec::new() };
    for (number, guard) in Guard::ALL.into_iter().enumerate() {
        tell(&format!("random sources for {seconds} s: {}", guard.title()));
        let mut post = Post::build(purpose, guard, number, &generators, object)?;
        let found = endure(guard, &mut post, &generators, Duration::from_secs(seconds));
        lasting.found.push((guard, found.with_context(|| guard.title())?));
    }
    Ok(lasting)
}

fn endure(guard: Guard, post: &mut Post, generators: &Namespace, time: Duration) -> Result<Found> {
    let Post { link, shield, visits, .. } = post;
    let (link, visits) = (&*link, &*visits);
    let mut tend = || shield.as_mut().map_or(Ok(()), |shield| shield.tend());
    tend()?;
    let before = visits.greed(GREEDY[0])?;
    ensure!(Found::is_limited(before), "without a flood a source gets {before:.0} connections a second");
    let begun = Instant::now();
    let flood = || -> Result<Vec<Flood>> {
        let mut floods = Vec::new();
        while begun.elapsed() < time {
            floods.push(link.flood(generators, Some(FORGED), &syn(ANYONE), guard.frames())?);
        }
        Ok(floods)
    };
    // The probes end shortly before the flood does.
    let until = time.saturating_sub(PROBED + PATIENCE + Duration::from_secs(1));
    let (floods, greed, welcome) = thread::scope(|scope| -> Result<(Vec<Flood>, f64, f64)> {
        let flood = scope.spawn(flood);
        while begun.elapsed() < until && !flood.is_finished() {
            tend()?;
            thread::sleep(Duration::from_millis(200));
        }
        let greed = scope.spawn(|| visits.greed(GREEDY[1]));
        let welcome = scope.spawn(|| visits.welcome());
        let (Ok(greed), Ok(welcome), Ok(floods)) = (greed.join(), welcome.join(), flood.join()) else {
            bail!("a thread panicked")
        };
        Ok((floods?, greed?, welcome?))
    })?;
    let arrived = floods.iter().map(|flood| flood.arrived).sum::<u64>();
    let seconds: f64 = floods.iter().map(|flood| flood.seconds).sum();
    Ok(Found { rate: arrived as f64 / seconds, arrived, greed: [before, greed], welcome })
}

impl Lasting {
    fn of(&self, guard: Guard) -> Option<Found> {
        self.found.iter().find(|(found, _)| *found == guard).map(|(_, found)| *found)
    }

    /// A Markdown table of everything.
    pub(crate) fn table(&self) -> String {
        let mut text = format!(
            "A flood of {} s from 2^30 sources at random. One source tries {TRIED} connections a second, where {:.0} are \
             allowed in {} s; newcomers want one each.\n\n\
             | receiver | SYNs decided, millions a second | millions in all | × shield | one source's connections a second, before | \
             at the end | newcomers let in | still limits |\n|---|--:|--:|--:|--:|--:|--:|---|\n",
            self.seconds,
            allowed() * PROBED.as_secs_f64(),
            PROBED.as_secs(),
        );
        let shield = self.of(Guard::Shield).map_or(f64::NAN, |found| found.rate);
        for (guard, found) in &self.found {
            let [before, after] = found.greed;
            let _ = writeln!(
                text,
                "| {} | {:.2} | {:.1} | {:.2} | {before:.1} | {after:.1} | {:.1} % | {} |",
                guard.title(),
                found.rate / 1e6,
                found.arrived as f64 / 1e6,
                found.rate / shield,
                found.welcome * 100.0,
                found.verdict(),
            );
        }
        text
    }

    pub(crate) fn aims(&self) -> Vec<Aim> {
        let number = |guard, of: fn(Found) -> f64| self.of(guard).map_or(f64::NAN, of);
        let ratio = number(Guard::Shield, |found| found.rate) / number(Guard::Meter, |found| found.rate);
        vec![
            Aim {
                what: "SYNs/s decided, random sources for half a minute, to nftables' meter",
                bound: Bound::AtLeast(2.0),
                found: ratio,
                unit: "×",
            },
            Aim {
                what: "connections/s of one source that tries 1 000, at the end of it",
                bound: Bound::AtMost(2.0 * allowed()),
                found: number(Guard::Shield, |found| found.greed[1]),
                unit: "/s",
            },
            Aim {
                what: "newcomers let in meanwhile",
                bound: Bound::AtLeast(95.0),
                found: number(Guard::Shield, |found| found.welcome * 100.0),
                unit: " %",
            },
        ]
    }
}
