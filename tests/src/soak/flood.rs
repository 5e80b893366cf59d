//! The flood: streams as tor hands them over, ten times as many as the limits allow.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tunica_pow::{Challenge, Nonce, solve};

use super::Protocol;
use crate::ingress::{get, header};

/// Where the ingress listens: the default.
const INGRESS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 10_000);

/// Fresh circuits a second, each with one connection: ten times `max_connections_per_second`, which is 50.
pub(super) const FRESH_PER_SECOND: u32 = 500;
/// Connections a second of one circuit that comes again: ten times `connections_per_10_seconds` of `web`, and more of the limits of
/// `messenger`.
pub(super) const RECURRING_PER_SECOND: u32 = 100;
/// Requests a second over one connection of such a circuit: ten times `requests_per_10_seconds` of `web`, which is 600.
pub(super) const REQUESTS_PER_SECOND: u32 = 600;
/// Connections a second of such a circuit that never say all: held for the 10 s of `request_seconds` they are ten times
/// `max_concurrent_per_circuit` of `web`, which is 32.
pub(super) const SLOW_PER_SECOND: u32 = 32;
/// Fresh circuits a second that solve the puzzle that they are asked.
pub(super) const PAYERS_PER_SECOND: u32 = 5;
/// Circuits that come again, and how long each one's turn is: a ban is not over yet when its circuit's turn comes again, and the
/// turn after that finds it on the next rung or free.
const RECURRING: u32 = 20;
const TURN_SECONDS: u64 = 10;

/// How long the service takes for its page, so that those who are served fill the places, others wait, and the rest must pay.
pub(super) const SERVICE: Duration = Duration::from_secs(4);
/// What it has at once: that is what many requests of one circuit ask for.
const AT_ONCE: &str = "/at-once";

/// From one handful of connections to the next.
const TICK: Duration = Duration::from_millis(20);
const TICKS_PER_SECOND: u32 = 50;

/// Connections of the flood at a time; where that is reached it waits, and says how often.
const MOST_OPEN: usize = 6_000;

/// How long one connection of the flood lasts at most.
const PATIENCE: Duration = Duration::from_secs(40);

/// What the flood did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// How long it lasted, seconds.
    pub seconds: u64,
    /// Connections that were made.
    pub opened: u64,
    /// Requests over kept connections.
    pub requests: u64,
    /// Connections that found no place in the flood itself, or none to the ingress.
    pub missed: u64,
    /// Puzzles that were solved and taken.
    pub paid: u64,
}

#[derive(Default)]
struct Counts {
    opened: AtomicU64,
    requests: AtomicU64,
    missed: AtomicU64,
    paid: AtomicU64,
}

/// A stream that the flood opens.
#[derive(Clone, Copy)]
enum Stream {
    /// Asks once.
    Once,
    /// Never says all.
    Slow,
    /// Solves what it is asked.
    Payer,
}

/// Starts a slow service, on a thread of its own that ends with the process.
pub(super) fn start_backend() -> Result<SocketAddr> {
    let listener =
        std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listening for the service")?;
    let address = listener.local_addr()?;
    listener.set_nonblocking(true)?;
    let runtime = runtime()?;
    thread::spawn(move || {
        runtime.block_on(async move {
            let Ok(listener) = TcpListener::from_std(listener) else { return };
            while let Ok((stream, _)) = listener.accept().await {
                // Who breaks off gets no answer.
                tokio::spawn(async move { drop(serve(stream).await) });
            }
        });
    });
    Ok(address)
}

async fn serve(stream: TcpStream) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let (mut line, mut is_slow) = (String::new(), false);
    while stream.read_line(&mut line).await? > 0 {
        is_slow |= line.starts_with("GET / ");
        if line == "\r\n" {
            if std::mem::take(&mut is_slow) {
                sleep(SERVICE).await;
            }
            stream.get_mut().write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwell\n").await?;
        }
        line.clear();
    }
    Ok(())
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("a runtime for the soak")
}

/// Floods until `is_over`.
///
/// # Errors
/// If there is no runtime.
pub(super) fn flood(protocol: Protocol, is_over: &AtomicBool) -> Result<Done> {
    let counts = Arc::new(Counts::default());
    let begun = Instant::now();
    runtime()?.block_on(async {
        let places = Arc::new(Semaphore::new(MOST_OPEN));
        let requests = match protocol {
            Protocol::Http => Some(tokio::spawn(ask_on_and_on(Arc::clone(&counts), begun))),
            Protocol::Tcp => None,
        };
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        // Numbers of circuits that come once are beyond those that come again.
        let (mut tick, mut fresh) = (0, 1_000_000);
        while !is_over.load(Ordering::Relaxed) {
            ticks.tick().await;
            tick += 1;
            let turn = turn(begun);
            let open = |circuit: u32, stream: Stream| {
                let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                    counts.missed.fetch_add(1, Ordering::Relaxed);
                    return;
                };
                let counts = Arc::clone(&counts);
                tokio::spawn(async move {
                    let _place = place;
                    // A refusal is what is wanted; so is a connection that the ingress ends.
                    let _ = timeout(PATIENCE, live(protocol, circuit, stream, &counts)).await;
                });
            };
            for _ in 0..due(FRESH_PER_SECOND, tick) {
                fresh += 1;
                open(fresh, Stream::Once);
            }
            for _ in 0..due(PAYERS_PER_SECOND, tick) {
                fresh += 1;
                open(fresh, Stream::Payer);
            }
            for _ in 0..due(RECURRING_PER_SECOND, tick) {
                open(1 + turn, Stream::Once);
            }
            for _ in 0..due(SLOW_PER_SECOND, tick) {
                open(1_001 + turn, Stream::Slow);
            }
        }
        if let Some(requests) = requests {
            requests.abort();
        }
    });
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    Ok(Done {
        seconds: begun.elapsed().as_secs(),
        opened: read(&counts.opened),
        requests: read(&counts.requests),
        missed: read(&counts.missed),
        paid: read(&counts.paid),
    })
}

/// Whose turn it is of the circuits that come again.
fn turn(begun: Instant) -> u32 {
    u32::try_from(begun.elapsed().as_secs() / TURN_SECONDS % u64::from(RECURRING)).unwrap_or(0)
}

/// How many of so many a second fall to this tick.
fn due(per_second: u32, tick: u32) -> u32 {
    let until = |tick: u32| u64::from(per_second) * u64::from(tick) / u64::from(TICKS_PER_SECOND);
    u32::try_from(until(tick) - until(tick - 1)).unwrap_or(0)
}

async fn connect(circuit: u32, counts: &Counts) -> io::Result<TcpStream> {
    let connected = TcpStream::connect(SocketAddr::V4(INGRESS)).await;
    let mut stream = connected.inspect_err(|_| {
        counts.missed.fetch_add(1, Ordering::Relaxed);
    })?;
    counts.opened.fetch_add(1, Ordering::Relaxed);
    stream.write_all(header(circuit).as_bytes()).await?;
    Ok(stream)
}

/// The life of one connection.
async fn live(protocol: Protocol, circuit: u32, kind: Stream, counts: &Counts) -> io::Result<()> {
    let mut stream = BufReader::new(connect(circuit, counts).await?);
    match kind {
        Stream::Once => {
            stream.get_mut().write_all(get("/").as_bytes()).await?;
            read_head(&mut stream).await.map(drop)
        }
        Stream::Slow => {
            stream.get_mut().write_all(b"GET / HTTP/1.1\r\nX: ").await?;
            stream.read_to_end(&mut Vec::new()).await.map(drop)
        }
        Stream::Payer => pay(protocol, &mut stream, counts).await,
    }
}

async fn pay(protocol: Protocol, stream: &mut BufReader<TcpStream>, counts: &Counts) -> io::Result<()> {
    match protocol {
        Protocol::Http => {
            stream.get_mut().write_all(get("/").as_bytes()).await?;
            let head = read_head(stream).await?;
            let asked = head.lines().find_map(|line| line.strip_prefix("tunica-challenge: "));
            let Some(answer) = asked.and_then(solution) else { return Ok(()) };
            let request = format!("GET / HTTP/1.1\r\nHost: a\r\nTunica-Solution: {answer}\r\n\r\n");
            stream.get_mut().write_all(request.as_bytes()).await?;
            if read_head(stream).await?.starts_with("HTTP/1.1 200") {
                counts.paid.fetch_add(1, Ordering::Relaxed);
            }
        }
        Protocol::Tcp => {
            let mut line = String::new();
            stream.read_line(&mut line).await?;
            let asked = line.trim_end().strip_prefix("TUNICA 1 ");
            let Some(answer) = asked.and_then(solution) else { return Ok(()) };
            stream.get_mut().write_all(format!("{answer}\r\n").as_bytes()).await?;
            line.clear();
            stream.read_line(&mut line).await?;
            if line == "OK\n" {
                counts.paid.fetch_add(1, Ordering::Relaxed);
                stream.get_mut().write_all(get("/").as_bytes()).await?;
                read_head(stream).await?;
            }
        }
    }
    Ok(())
}

/// A challenge with the nonce that solves it.
fn solution(asked: &str) -> Option<String> {
    let challenge: Challenge = asked.trim().parse().ok()?;
    let nonce = solve(&challenge, Nonce(0), NonZeroUsize::MIN, &|_| false).nonce?;
    Some(format!("{challenge} {nonce}"))
}

/// Reads an answer, and returns its head; empty at the connection's end.
async fn read_head(stream: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).await? == 0 {
            return Ok(head);
        }
    }
    let lower = head.to_ascii_lowercase();
    let length = lower.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok());
    let mut body = Vec::new();
    stream.take(length.unwrap_or(0)).read_to_end(&mut body).await?;
    Ok(head)
}

/// One connection after the other, each with as many requests as it takes.
async fn ask_on_and_on(counts: Arc<Counts>, begun: Instant) {
    loop {
        let circuit = 2_001 + turn(begun);
        // It ends when it is refused.
        let _ = timeout(Duration::from_secs(TURN_SECONDS), ask_many(circuit, &counts)).await;
        sleep(Duration::from_millis(100)).await;
    }
}

async fn ask_many(circuit: u32, counts: &Counts) -> io::Result<()> {
    let mut stream = BufReader::new(connect(circuit, counts).await?);
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        for _ in 0..REQUESTS_PER_SECOND / TICKS_PER_SECOND {
            stream.get_mut().write_all(get(AT_ONCE).as_bytes()).await?;
            counts.requests.fetch_add(1, Ordering::Relaxed);
            if read_head(&mut stream).await?.is_empty() {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_second_has_its_share() {
        for rate in [5, 32, 500] {
            for second in 0..3 {
                let ticks = 1 + second * TICKS_PER_SECOND..=(second + 1) * TICKS_PER_SECOND;
                assert_eq!(ticks.map(|tick| due(rate, tick)).sum::<u32>(), rate);
            }
        }
    }
}
