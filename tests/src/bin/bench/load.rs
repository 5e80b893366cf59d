//! Both ends of what an ingress carries: visitors that send what tor sends, and the service behind. Both on epoll, with
//! as little work of their own as possible, since they share a processor.

use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use tunica_tests::ingress::header;

/// Body of an HTTP answer, bytes.
const BODY: usize = 1_024;
/// What a visitor asks and gets over TCP, bytes.
const TCP_QUESTION: usize = 256;
const TCP_ANSWER: usize = 16_384;
/// How often, before the connection ends.
const TCP_EXCHANGES: u32 = 8;
/// Connections that are open at once.
pub(crate) const VISITORS: usize = 64;
/// Circuits that take turns: less than every table holds.
const CIRCUITS: u32 = 50_000;
/// The longest that anything may take here.
const PATIENCE: Duration = Duration::from_secs(20);
/// Events of one wait, and bytes of one read.
const EVENTS: usize = 128;
const READ: usize = 65_536;
/// The number of the service's listener among its descriptors.
const LISTENER: u64 = u64::MAX;

/// What streams carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Protocol {
    Http,
    Tcp,
}

/// What visitors do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Work {
    /// Each asks over HTTP again and again over one connection.
    KeepAlive,
    /// Each request of HTTP has a connection of its own.
    OneRequest,
    /// A connection of TCP carries a few exchanges.
    Tcp,
}

impl Work {
    pub(crate) const ALL: [Self; 3] = [Self::KeepAlive, Self::OneRequest, Self::Tcp];

    pub(crate) const fn protocol(self) -> Protocol {
        match self {
            Self::KeepAlive | Self::OneRequest => Protocol::Http,
            Self::Tcp => Protocol::Tcp,
        }
    }

    /// How many exchanges a connection carries, if it has an end.
    const fn exchanges(self) -> Option<u32> {
        match self {
            Self::KeepAlive => None,
            Self::OneRequest => Some(1),
            Self::Tcp => Some(TCP_EXCHANGES),
        }
    }

    fn question(self) -> Vec<u8> {
        let get = |connection: &str| {
            format!(
                "GET /page HTTP/1.1\r\nHost: example.onion\r\nUser-Agent: bench\r\nAccept: */*\r\n{connection}\r\n"
            )
        };
        match self {
            Self::KeepAlive => get("").into_bytes(),
            Self::OneRequest => get("Connection: close\r\n").into_bytes(),
            Self::Tcp => vec![b'q'; TCP_QUESTION],
        }
    }
}

/// The service behind the ingress, on a thread that ends with this process.
///
/// # Errors
/// The kernel's.
pub(crate) fn serve(protocol: Protocol) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").context("listening as the service")?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
    let mut service = Service {
        listener,
        epoll,
        protocol,
        answer: match protocol {
            Protocol::Http => {
                format!("HTTP/1.1 200 OK\r\nContent-Length: {BODY}\r\n\r\n{}", "x".repeat(BODY)).into_bytes()
            }
            Protocol::Tcp => vec![b'a'; TCP_ANSWER],
        },
        guests: Vec::new(),
        free: Vec::new(),
    };
    thread::Builder::new().name("service".to_owned()).spawn(move || service.run())?;
    Ok(address)
}

struct Service {
    listener: TcpListener,
    epoll: Epoll,
    protocol: Protocol,
    answer: Vec<u8>,
    guests: Vec<Option<Guest>>,
    free: Vec<usize>,
}

struct Guest {
    stream: TcpStream,
    /// Of HTTP: how much of an empty line was read. Of TCP: how much of a question.
    read: usize,
    /// Bytes of answers that are still to be written.
    owed: usize,
    /// Whether the kernel tells when there is room to write.
    awaits_room: bool,
}

impl Service {
    /// Returns only when the kernel fails, which visitors will see.
    fn run(&mut self) -> Option<()> {
        let mut buffer = vec![0; READ];
        let mut events = [EpollEvent::empty(); EVENTS];
        loop {
            let count = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(count) => count,
                Err(nix::errno::Errno::EINTR) => continue,
                Err(_) => return None,
            };
            for event in events.get(..count)? {
                if event.data() == LISTENER {
                    self.accept().ok()?;
                    continue;
                }
                let number = usize::try_from(event.data()).ok()?;
                let Some(Some(guest)) = self.guests.get_mut(number) else { continue };
                if !guest.turn(self.protocol, &self.answer, &mut buffer) {
                    *self.guests.get_mut(number)? = None;
                    self.free.push(number);
                    continue;
                }
                if guest.awaits_room != (guest.owed > 0) {
                    guest.awaits_room = guest.owed > 0;
                    let wants = if guest.awaits_room { EpollFlags::EPOLLOUT } else { EpollFlags::EPOLLIN };
                    self.epoll.modify(&guest.stream, &mut EpollEvent::new(wants, event.data())).ok()?;
                }
            }
        }
    }

    fn accept(&mut self) -> Result<()> {
        loop {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                // Whoever broke off already.
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error.into()),
            };
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            let number = self.free.pop().unwrap_or(self.guests.len());
            self.epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, u64::try_from(number)?))?;
            let guest = Some(Guest { stream, read: 0, owed: 0, awaits_room: false });
            match self.guests.get_mut(number) {
                Some(place) => *place = guest,
                None => self.guests.push(guest),
            }
        }
    }
}

impl Guest {
    /// Reads what there is, and answers; false: it has gone.
    fn turn(&mut self, protocol: Protocol, answer: &[u8], buffer: &mut [u8]) -> bool {
        if self.owed == 0 {
            match self.stream.read(buffer) {
                Ok(0) => return false,
                Ok(read) => self.count(protocol, buffer.get(..read).unwrap_or_default(), answer.len()),
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
        }
        while self.owed > 0 {
            let done = (answer.len() - self.owed % answer.len()) % answer.len();
            match self.stream.write(answer.get(done..).unwrap_or_default()) {
                Ok(written) => self.owed = self.owed.saturating_sub(written),
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
        }
        true
    }

    fn count(&mut self, protocol: Protocol, bytes: &[u8], answer: usize) {
        match protocol {
            Protocol::Http => {
                const END: &[u8] = b"\r\n\r\n";
                for byte in bytes {
                    self.read = match END.get(self.read) {
                        Some(next) if next == byte => self.read + 1,
                        _ => usize::from(*byte == b'\r'),
                    };
                    if self.read == END.len() {
                        self.read = 0;
                        self.owed += answer;
                    }
                }
            }
            Protocol::Tcp => {
                let read = self.read + bytes.len();
                self.owed += read / TCP_QUESTION * answer;
                self.read = read % TCP_QUESTION;
            }
        }
    }
}

/// Visitors of an ingress.
pub(crate) struct Load {
    target: SocketAddr,
    work: Work,
    question: Vec<u8>,
    epoll: Epoll,
    visitors: Vec<Visitor>,
    last_circuit: u32,
}

struct Visitor {
    stream: TcpStream,
    /// When it asked.
    asked: Instant,
    /// What came of an answer: its head and what follows of HTTP, nothing of TCP.
    head: Vec<u8>,
    /// How much came of it, and how long it is; zero: not known yet.
    came: usize,
    length: usize,
    /// Answers that came over this connection.
    exchanges: u32,
}

/// What visitors saw.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// How long it was watched.
    pub(crate) time: Duration,
    /// Connections that were made.
    pub(crate) connections: u64,
    /// From question to the end of its answer, nanoseconds; where the question is the first of its connection, with the
    /// time that took. In order.
    pub(crate) latencies: Vec<u64>,
}

impl Seen {
    /// The latency that so many per cent of the exchanges stayed within.
    pub(crate) fn within(&self, per_cent: usize) -> Option<Duration> {
        let index = (self.latencies.len() * per_cent).div_ceil(100).saturating_sub(1);
        self.latencies.get(index).copied().map(Duration::from_nanos)
    }
}

impl Load {
    /// [`VISITORS`] of them, who begin at once.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn begin(target: SocketAddr, work: Work) -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let mut load =
            Self { target, work, question: work.question(), epoll, visitors: Vec::new(), last_circuit: 0 };
        for number in 0..VISITORS {
            let visitor = load.visit()?;
            load.watch(&visitor, number)?;
            load.visitors.push(visitor);
        }
        Ok(load)
    }

    fn watch(&self, visitor: &Visitor, number: usize) -> Result<()> {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, u64::try_from(number)?);
        Ok(self.epoll.add(&visitor.stream, event)?)
    }

    /// A new connection of a circuit that has none, with its first question.
    fn visit(&mut self) -> Result<Visitor> {
        self.last_circuit = self.last_circuit % CIRCUITS + 1;
        let asked = Instant::now();
        let mut first = header(self.last_circuit).into_bytes();
        first.extend(&self.question);
        // On loopback the handshake is over when connect(2) returns, and the bytes fit into an empty buffer.
        let mut stream = TcpStream::connect_timeout(&self.target, PATIENCE).context("connecting")?;
        stream.set_nodelay(true)?;
        stream.write_all(&first).context("asking")?;
        stream.set_nonblocking(true)?;
        Ok(Visitor { stream, asked, head: Vec::new(), came: 0, length: 0, exchanges: 0 })
    }

    /// Lets them go on for so long.
    ///
    /// # Errors
    /// When one is refused: then limits act, and the figures mean something else.
    pub(crate) fn run(&mut self, length: Duration) -> Result<Seen> {
        let begun = Instant::now();
        let ends = begun + length;
        let mut seen = Seen::default();
        let mut events = [EpollEvent::empty(); EVENTS];
        let mut buffer = vec![0; READ];
        let mut last = begun;
        loop {
            let now = Instant::now();
            if now >= ends {
                break;
            }
            ensure!(now - last < PATIENCE, "no visitor got an answer for {} s", PATIENCE.as_secs());
            let count = match self.epoll.wait(&mut events, EpollTimeout::try_from(ends - now)?) {
                Ok(count) => count,
                Err(nix::errno::Errno::EINTR) => 0,
                Err(error) => return Err(error).context("waiting for answers"),
            };
            for event in events.iter().take(count) {
                let number = usize::try_from(event.data())?;
                let Some(visitor) = self.visitors.get_mut(number) else { bail!("nobody's event") };
                match visitor.turn(self.work, &self.question, &mut buffer)? {
                    Turn::Waits => {}
                    Turn::Answered(latency) => {
                        seen.latencies.push(u64::try_from(latency.as_nanos())?);
                        last = Instant::now();
                        if self.work == Work::Tcp && visitor.exchanges == TCP_EXCHANGES {
                            self.replace(number, &mut seen)?;
                        }
                    }
                    Turn::Ended => self.replace(number, &mut seen)?,
                }
            }
        }
        seen.time = begun.elapsed();
        seen.latencies.sort_unstable();
        Ok(seen)
    }

    fn replace(&mut self, number: usize, seen: &mut Seen) -> Result<()> {
        let next = self.visit()?;
        self.watch(&next, number)?;
        // Closing the old one takes it out of the epoll.
        *self.visitors.get_mut(number).context("nobody's connection")? = next;
        seen.connections += 1;
        Ok(())
    }
}

enum Turn {
    Waits,
    Answered(Duration),
    /// The other side closed the connection, after its last answer.
    Ended,
}

impl Visitor {
    fn turn(&mut self, work: Work, question: &[u8], buffer: &mut [u8]) -> Result<Turn> {
        let is_over = work.exchanges().is_some_and(|exchanges| self.exchanges == exchanges);
        let read = match self.stream.read(buffer) {
            Ok(0) if is_over => return Ok(Turn::Ended),
            Ok(0) => bail!("a connection ended before its answer was whole"),
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Turn::Waits),
            Err(error) => return Err(error).context("a visitor was refused"),
        };
        ensure!(!is_over, "more came than was asked for");
        self.came += read;
        if self.length == 0 {
            self.length = match work.protocol() {
                Protocol::Tcp => TCP_ANSWER,
                Protocol::Http => {
                    self.head.extend(buffer.get(..read).unwrap_or_default());
                    length_of(&self.head)?
                }
            };
        }
        if self.length == 0 || self.came < self.length {
            return Ok(Turn::Waits);
        }
        ensure!(self.came == self.length, "an answer is longer than it says");
        let latency = self.asked.elapsed();
        self.exchanges += 1;
        (self.came, self.length) = (0, 0);
        self.head.clear();
        if work.exchanges().is_none_or(|exchanges| self.exchanges < exchanges) {
            self.asked = Instant::now();
            self.stream.write_all(question).context("asking again")?;
        }
        Ok(Turn::Answered(latency))
    }
}

/// How long an HTTP answer is, head and body; zero while its head is not whole.
fn length_of(answer: &[u8]) -> Result<usize> {
    let Some(head) = answer.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(0) };
    ensure!(
        answer.starts_with(b"HTTP/1.1 200"),
        "a visitor was refused: {}",
        String::from_utf8_lossy(answer.split(|byte| *byte == b'\r').next().unwrap_or_default())
    );
    Ok(head + 4 + BODY)
}

/// Opens so many connections, each of another circuit, each of which has had an answer over HTTP, and holds them.
///
/// # Errors
/// When one is refused.
pub(crate) fn hold(target: SocketAddr, count: u32) -> Result<Vec<TcpStream>> {
    let question = Work::KeepAlive.question();
    let mut buffer = vec![0; READ];
    (1..=count)
        .map(|circuit| {
            let mut stream = TcpStream::connect_timeout(&target, PATIENCE).context("connecting")?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(&[header(circuit).as_bytes(), &question].concat()).context("asking")?;
            let mut answer = Vec::new();
            loop {
                let read = stream.read(&mut buffer).context("waiting for an answer")?;
                ensure!(read > 0, "connection {circuit} ended before its answer was whole");
                answer.extend(buffer.get(..read).unwrap_or_default());
                let length = length_of(&answer)?;
                if length > 0 && answer.len() >= length {
                    return Ok(stream);
                }
            }
        })
        .collect()
}

/// Whether a connection is still there, and nothing came over it.
pub(crate) fn is_open(stream: &TcpStream) -> bool {
    let silent = |error: &io::Error| error.kind() == ErrorKind::WouldBlock;
    stream.set_nonblocking(true).is_ok() && stream.peek(&mut [0]).as_ref().is_err_and(silent)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest() -> (TcpStream, Guest) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let stream = listener.accept().unwrap().0;
        (client, Guest { stream, read: 0, owed: 0, awaits_room: false })
    }

    #[test]
    fn questions_are_counted_however_they_are_cut() {
        for (protocol, question) in [
            (Protocol::Http, &b"GET / HTTP/1.1\r\nHost: a\r\n\r\r\n\r\n"[..]),
            (Protocol::Tcp, &[0; TCP_QUESTION]),
        ] {
            let twice = [question, question].concat();
            for cut in 0..twice.len() {
                let (_client, mut guest) = guest();
                guest.count(protocol, &twice[..cut], 10);
                guest.count(protocol, &twice[cut..], 10);
                assert_eq!((guest.owed, guest.read), (20, 0), "cut at {cut}");
            }
        }
    }

    #[test]
    fn lengths_are_known_with_the_head_and_refusals_are_none() {
        assert_eq!(length_of(b"HTTP/1.1 200 OK\r\n\r").unwrap(), 0);
        assert_eq!(length_of(b"HTTP/1.1 200 OK\r\n\r\nxx").unwrap(), 19 + BODY);
        assert!(length_of(b"HTTP/1.1 429 Too Many\r\n\r\n").is_err());
    }

    #[test]
    fn percentiles_are_of_the_exchanges_in_order() {
        let seen = Seen { latencies: (1..=200).collect(), ..Seen::default() };
        let within = |per_cent| seen.within(per_cent).map(|time| time.as_nanos());
        assert_eq!((within(50), within(99), within(100)), (Some(100), Some(198), Some(200)));
        assert_eq!(Seen::default().within(50), None);
    }

    #[test]
    fn visitors_are_answered_by_the_service_itself() {
        // Without an ingress nobody takes the PROXY line off: to HTTP it is one line more before the request.
        let target = serve(Protocol::Http).unwrap();
        let mut load = Load::begin(target, Work::KeepAlive).unwrap();
        let mut seen = Seen::default();
        while seen.latencies.is_empty() {
            seen = load.run(Duration::from_millis(20)).unwrap();
        }
        assert_eq!(seen.connections, 0);
        let held = hold(target, 3).unwrap();
        assert!(held.iter().all(is_open));
    }
}
