//! Legitimate visitors, and the service they visit.
//!
//! The loop is closed: a visitor connects, sends one request, reads one answer, thinks, and begins again, so a service
//! that answers slowly is asked less often, as in life.

use std::{
    fmt,
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::sys::{
    socket::{
        AddressFamily, Backlog, Shutdown, SockFlag, SockType, SockaddrStorage, bind, connect, listen,
        setsockopt, shutdown, socket, sockopt,
    },
    time::TimeVal,
};

use crate::{flood::Random, netns::Namespace};

/// How long a visitor waits for connection and answer together.
pub const PATIENCE: Duration = Duration::from_millis(1500);

/// Connections that the kernel keeps for the service before it accepts them (listen(2)).
pub const BACKLOG: i32 = 512;

const WORKERS: usize = 4;
const REQUEST: &[u8] = b"GET / HTTP/1.0\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nok\n";

/// A service that answers every request with three bytes. It ends when it is dropped.
#[derive(Debug)]
pub struct Service {
    listener: Arc<TcpListener>,
    workers: Vec<JoinHandle<()>>,
}

impl Service {
    /// Starts the service in `namespace`.
    ///
    /// # Errors
    /// When it cannot listen at `address`.
    pub fn start(namespace: &Namespace, address: SocketAddr) -> Result<Self> {
        let listener =
            namespace.run(|| listen_at(address).with_context(|| format!("listening at {address}")))?;
        let listener = Arc::new(listener);
        let mut workers = Vec::new();
        for _ in 0..WORKERS {
            let listener = Arc::clone(&listener);
            let worker = thread::Builder::new().name("service".to_owned()).spawn(move || {
                // Accepting fails for good once the socket is shut down.
                while let Ok((stream, _)) = listener.accept() {
                    // A visitor who went away is the visitor's loss, and counted there.
                    let _ = answer(&stream);
                }
            });
            workers.push(worker.context("starting a thread of the service")?);
        }
        Ok(Self { listener, workers })
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // On Linux this wakes every thread that accepts, with EINVAL.
        let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

fn listen_at(address: SocketAddr) -> Result<TcpListener> {
    let listener = tcp_socket(address)?;
    setsockopt(&listener, sockopt::ReuseAddr, &true)?;
    bind(listener.as_raw_fd(), &SockaddrStorage::from(address))?;
    listen(&listener, Backlog::new(BACKLOG)?)?;
    Ok(TcpListener::from(listener))
}

/// A socket of the address's family.
fn tcp_socket(address: SocketAddr) -> nix::Result<OwnedFd> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
}

/// A connection from `own` to `service`, made within `wait`; not waiting at all is not possible.
///
/// # Errors
/// `Ok(Err)` when the service, or the way to it, refused; `Err` when not even the attempt was possible.
pub fn connected(
    own: IpAddr,
    service: SocketAddr,
    wait: Duration,
) -> nix::Result<Result<OwnedFd, nix::Error>> {
    let socket = tcp_socket(service)?;
    setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(own, 0)))?;
    // connect(2) waits as long as sending may (socket(7), SO_SNDTIMEO).
    let wait = i64::try_from(wait.as_micros().max(1)).unwrap_or(i64::MAX);
    setsockopt(&socket, sockopt::SendTimeout, &TimeVal::new(wait / 1_000_000, wait % 1_000_000))?;
    Ok(connect(socket.as_raw_fd(), &SockaddrStorage::from(service)).map(|()| socket))
}

fn answer(mut stream: &TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut request = [0; 256];
    let mut length = 0;
    while let Some(rest) = request.get_mut(length..) {
        let read = stream.read(rest)?;
        length += read;
        let seen = request.get(..length).unwrap_or_default();
        if read == 0 || seen.ends_with(b"\r\n\r\n") {
            break;
        }
    }
    stream.write_all(ANSWER)
}

/// Who visits.
#[derive(Clone, Copy, Debug)]
pub struct Visitors {
    /// How many, each with an address of its own.
    pub count: u8,
    /// The first one's address; the others follow, over IPv6 each in the next /64, by which the shield counts.
    pub first: IpAddr,
    /// The service, of the same family.
    pub service: SocketAddr,
    /// Shortest and longest pause between two visits, milliseconds.
    pub think_milliseconds: (u32, u32),
}

/// What the visitors met with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Visits {
    /// From the first SYN to the end of the answer, in microseconds, rising: one entry for each success.
    pub latencies_microseconds: Vec<u32>,
    /// Visits that got no answer in time, or were reset.
    pub failures: u64,
    /// Those of them that were reset.
    pub resets: u64,
}

impl Visits {
    /// Visits that got their answer.
    pub fn successes(&self) -> u64 {
        self.latencies_microseconds.len() as u64
    }

    /// Every visit.
    pub fn attempts(&self) -> u64 {
        self.successes() + self.failures
    }

    /// Part of the visits that got their answer, 0 to 1; `None` if nobody visited.
    pub fn success(&self) -> Option<f64> {
        (self.attempts() > 0).then(|| self.successes() as f64 / self.attempts() as f64)
    }

    /// The latency, in microseconds, that `percent` of the successes did not exceed (nearest rank).
    pub fn percentile(&self, percent: usize) -> Option<u32> {
        let rank = (self.latencies_microseconds.len() * percent).div_ceil(100);
        self.latencies_microseconds.get(rank.saturating_sub(1)).copied()
    }
}

/// Visitors on their way, who go home when this is dropped.
pub struct Running {
    stop: Arc<AtomicBool>,
    counts: Arc<Counts>,
    threads: Vec<JoinHandle<Result<Visits>>>,
}

#[derive(Default)]
struct Counts {
    successes: AtomicU64,
    failures: AtomicU64,
}

impl fmt::Debug for Running {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Running").field("so_far", &self.so_far()).finish_non_exhaustive()
    }
}

impl Visitors {
    /// Sends the visitors out from `namespace`.
    ///
    /// # Errors
    /// When a thread cannot be started; what goes wrong on one, [`Running::stop`] says.
    pub fn start(self, namespace: &Namespace) -> Result<Running> {
        let mut running = Running {
            stop: Arc::default(),
            counts: Arc::default(),
            threads: Vec::with_capacity(self.count.into()),
        };
        for number in 0..u32::from(self.count) {
            let (stop, counts) = (Arc::clone(&running.stop), Arc::clone(&running.counts));
            let address = self.address(number);
            let visitor = move || self.visit_until(address, &stop, &counts, Random(u64::from(number) << 32));
            running.threads.push(namespace.spawn("visitor", visitor)?);
        }
        Ok(running)
    }

    /// The address of the visitor with this number, from 0 on.
    pub fn address(&self, number: u32) -> IpAddr {
        match self.first {
            IpAddr::V4(first) => Ipv4Addr::from_bits(first.to_bits() + number).into(),
            IpAddr::V6(first) => Ipv6Addr::from_bits(first.to_bits() + (u128::from(number) << 64)).into(),
        }
    }

    fn visit_until(
        self,
        own: IpAddr,
        stop: &AtomicBool,
        counts: &Counts,
        mut random: Random,
    ) -> Result<Visits> {
        let mut visits = Visits::default();
        let (shortest, longest) = self.think_milliseconds;
        let mut think = || {
            let more = random.below(longest.saturating_sub(shortest).saturating_add(1));
            thread::sleep(Duration::from_millis(u64::from(shortest) + more));
        };
        think();
        while !stop.load(Ordering::Relaxed) {
            let begun = Instant::now();
            match visit(own, self.service, begun + PATIENCE) {
                Ok(()) => {
                    let took = u32::try_from(begun.elapsed().as_micros()).unwrap_or(u32::MAX);
                    visits.latencies_microseconds.push(took);
                    counts.successes.fetch_add(1, Ordering::Relaxed);
                }
                Err(failure @ (Failure::Service | Failure::Reset)) => {
                    visits.failures += 1;
                    visits.resets += u64::from(matches!(failure, Failure::Reset));
                    counts.failures.fetch_add(1, Ordering::Relaxed);
                }
                Err(Failure::Own(error)) => return Err(error).context("a visitor's own socket failed"),
            }
            think();
        }
        Ok(visits)
    }
}

impl Running {
    /// Successes and failures so far.
    pub fn so_far(&self) -> (u64, u64) {
        (self.counts.successes.load(Ordering::Relaxed), self.counts.failures.load(Ordering::Relaxed))
    }

    /// Calls the visitors home, waits for those who still wait, and tells what all of them met with.
    ///
    /// # Errors
    /// When a visitor failed for a reason of its own, such as a missing address.
    pub fn stop(mut self) -> Result<Visits> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Visits::default();
        for thread in self.threads.drain(..) {
            let Ok(visits) = thread.join() else { bail!("a visitor's thread panicked") };
            let visits = visits?;
            all.latencies_microseconds.extend(visits.latencies_microseconds);
            all.failures += visits.failures;
            all.resets += visits.resets;
        }
        all.latencies_microseconds.sort_unstable();
        Ok(all)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Why a visit failed.
enum Failure {
    /// The service did not answer, not in time, or not rightly.
    Service,
    /// The service, or its host, reset the connection.
    Reset,
    /// The visitor could not even try.
    Own(nix::Error),
}

fn visit(own: IpAddr, service: SocketAddr, deadline: Instant) -> Result<(), Failure> {
    let socket = connected(own, service, time_left(deadline)?)
        .map_err(Failure::Own)?
        .map_err(|error| failed(&error.into()))?;
    let mut stream = TcpStream::from(socket);
    stream.write_all(REQUEST).map_err(|error| failed(&error))?;
    let mut answer = [0; 64];
    let mut length = 0;
    while let Some(rest) = answer.get_mut(length..) {
        stream.set_read_timeout(Some(time_left(deadline)?)).map_err(|_| Failure::Service)?;
        match stream.read(rest) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) => return Err(failed(&error)),
        }
    }
    if answer.get(..length) == Some(ANSWER) { Ok(()) } else { Err(Failure::Service) }
}

fn failed(error: &io::Error) -> Failure {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset};
    let is_reset = matches!(error.kind(), ConnectionReset | ConnectionRefused | BrokenPipe);
    if is_reset { Failure::Reset } else { Failure::Service }
}

/// A timeout of zero would mean none at all, so nothing left is a failure.
fn time_left(deadline: Instant) -> Result<Duration, Failure> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left < Duration::from_micros(1) { Err(Failure::Service) } else { Ok(left) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let visits = Visits { latencies_microseconds: (1..=200).collect(), failures: 50, resets: 0 };
        assert_eq!(visits.percentile(50), Some(100));
        assert_eq!(visits.percentile(99), Some(198));
        assert_eq!(visits.success(), Some(0.8));
        let one = Visits { latencies_microseconds: vec![7], failures: 0, resets: 0 };
        assert_eq!((one.percentile(50), one.percentile(99)), (Some(7), Some(7)));
        assert_eq!(Visits::default().percentile(50), None);
        assert_eq!(Visits::default().success(), None);
    }
}
