//! The ingress under test: the real `tunica-front` on loopback, a backend that writes down what it gets, and clients that
//! send what tor sends. The test stands where `tunicad` would: it reads the digests and gives the orders.

use std::{
    ffi::OsStr,
    fs,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tunica_api::{
    front::{Digest, Orders, TokenOrder},
    wire,
};
use tunica_core::token_keys::TokenKey;

use crate::{
    armed::program,
    sys::end_with_parent,
    testnet::{Client, Port, Service},
};

/// How long anything may take that should happen within seconds.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The key of tokens that each front is told of as soon as it speaks.
pub const TOKEN_KEY: TokenKey = TokenKey(*b"a key that no one but tests uses");

/// A running `tunica-front`.
pub struct Front {
    child: Child,
    folder: tempfile::TempDir,
    listen: SocketAddr,
    /// What the front said last.
    said: Arc<Mutex<Option<Digest>>>,
    line: Arc<Mutex<Option<UnixStream>>>,
    /// The backend.
    pub backend: Backend,
}

impl Front {
    /// Starts it with these lines of `[ingress]` and `[circuits]` beside those that name addresses.
    ///
    /// # Errors
    /// With the end of its log if it does not serve.
    pub fn start(ingress: &str, circuits: &str) -> Result<Self> {
        let backend = Backend::start()?;
        Self::start_before(&[backend.address], backend, ingress, circuits)
    }

    /// The same with these backends, of which [`Self::backend`] may be one.
    ///
    /// # Errors
    /// With the end of its log if it does not serve.
    pub fn start_before(
        backends: &[SocketAddr],
        backend: Backend,
        ingress: &str,
        circuits: &str,
    ) -> Result<Self> {
        Self::start_telling("debug", backends, backend, ingress, circuits)
    }

    /// The same with a log that tells no more than this level.
    ///
    /// # Errors
    /// With the end of its log if it does not serve.
    pub fn start_telling(
        level: &str,
        backends: &[SocketAddr],
        backend: Backend,
        ingress: &str,
        circuits: &str,
    ) -> Result<Self> {
        Self::start_in(&[], level, backends, backend, ingress, circuits)
    }

    /// The same as [`Self::start`], under whoever listens on this socket as systemd does (sd_notify(3)) and wants a sign of life
    /// within each `watchdog`.
    ///
    /// # Errors
    /// With the end of its log if it does not serve.
    pub fn start_under(socket: &Path, watchdog: Duration, ingress: &str, circuits: &str) -> Result<Self> {
        let backend = Backend::start()?;
        let microseconds = watchdog.as_micros().to_string();
        let environment = [("NOTIFY_SOCKET", socket.as_os_str()), ("WATCHDOG_USEC", microseconds.as_ref())];
        Self::start_in(&environment, "debug", &[backend.address], backend, ingress, circuits)
    }

    fn start_in(
        environment: &[(&str, &OsStr)],
        level: &str,
        backends: &[SocketAddr],
        backend: Backend,
        ingress: &str,
        circuits: &str,
    ) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let backends: Vec<_> = backends.iter().map(|each| format!("\"{each}\"")).collect();
        let listen = free_address()?;
        let socket = folder.path().join("tunicad.sock");
        let daemon = UnixListener::bind(folder.path().join("front.sock"))?;
        let often = if ingress.contains("health_every_seconds") { "" } else { "health_every_seconds = 1\n" };
        let text = format!(
            "[shield]\ninterfaces = [\"lo\"]\n[control]\nsocket = \"{}\"\n[log]\nlevel = \"{level}\"\n\
             [ingress]\nenabled = true\nlisten = \"{listen}\"\nbackends = [{}]\nsocket = \"{}\"\n\
             {often}{ingress}\n[circuits]\n{circuits}\n",
            socket.display(),
            backends.join(", "),
            folder.path().join("ingress.sock").display(),
        );
        let config = folder.path().join("tunica.toml");
        fs::write(&config, text)?;
        let log = fs::File::create(folder.path().join("front.log"))?;
        let mut command = Command::new(program("tunica-front")?);
        command.arg("--config").arg(config).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.envs(environment.iter().copied());
        end_with_parent(&mut command);
        let child = command.spawn()?;
        let (said, line) = (Arc::default(), Arc::default());
        let shared = (Arc::clone(&said), Arc::clone(&line));
        thread::spawn(move || listen_as_daemon(&daemon, &shared.0, &shared.1));
        let mut front = Self { child, folder, listen, said, line, backend };
        front.wait_for("the ingress to serve", |front| {
            if front.child.try_wait()?.is_some() {
                bail!("it ended: {}", front.log());
            }
            Ok(front.said.lock().unwrap_or_else(std::sync::PoisonError::into_inner).is_some())
        })?;
        Ok(front)
    }

    /// Where tor would connect to.
    pub const fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// The socket file beside it.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("ingress.sock")
    }

    /// The file that it reads.
    pub fn config(&self) -> PathBuf {
        self.folder.path().join("tunica.toml")
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("front.log")).unwrap_or_default()
    }

    /// What it said last.
    pub fn digest(&self) -> Digest {
        self.said.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone().unwrap_or_default()
    }

    /// What it says after at least one more second.
    ///
    /// # Errors
    /// If it says nothing.
    pub fn next_digest(&mut self) -> Result<Digest> {
        // The second from now on covers everything that happened before.
        for _ in 0..2 {
            *self.said.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = None;
            self.wait_for("a digest", |front| {
                Ok(front.said.lock().unwrap_or_else(std::sync::PoisonError::into_inner).is_some())
            })?;
        }
        Ok(self.digest())
    }

    /// How often a stream was refused by this word.
    ///
    /// # Errors
    /// If it says nothing.
    pub fn refused(&mut self, word: &str) -> Result<u64> {
        Ok(self.next_digest()?.refused.get(word).copied().unwrap_or(0))
    }

    /// Gives orders, and waits until they are followed.
    ///
    /// # Errors
    /// If they are not.
    pub fn order(&mut self, orders: &Orders) -> Result<()> {
        let message = wire::write_message(orders)?;
        {
            let mut line = self.line.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            line.as_mut().context("the front is not there")?.write_all(&message)?;
        }
        let revision = orders.revision;
        self.wait_for("the orders to be followed", |front| Ok(front.digest().revision == revision))
    }

    /// Breaks off as a daemon that was killed.
    pub fn leave_alone(&self) {
        if let Some(line) = self.line.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take() {
            // It is gone either way.
            let _ = line.shutdown(Shutdown::Both);
        }
    }

    /// Waits until something holds.
    ///
    /// # Errors
    /// If it does not within [`PATIENCE`].
    pub fn wait_for(&mut self, what: &str, mut holds: impl FnMut(&mut Self) -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self)? {
            ensure!(Instant::now() < deadline, "waited in vain for {what}: {}", self.log());
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// The kernel's.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.child.id())?), signal)?)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// If it does not end.
    pub fn ended(&mut self) -> Result<ExitStatus> {
        self.wait_for("its end", |front| Ok(front.child.try_wait()?.is_some()))?;
        Ok(self.child.wait()?)
    }

    /// A stream of a circuit, as tor hands it over.
    ///
    /// # Errors
    /// If nobody takes it.
    pub fn stream(&self, circuit: u32) -> Result<TcpStream> {
        let mut stream = TcpStream::connect(self.listen)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(header(circuit).as_bytes())?;
        Ok(stream)
    }

    /// The answer to a request over a stream of its own.
    ///
    /// # Errors
    /// If there is none.
    pub fn ask(&self, circuit: u32, request: &str) -> Result<String> {
        // A refusal may come before the request has been sent.
        let mut stream = self.stream(circuit)?;
        let _ = stream.write_all(request.as_bytes());
        let mut answer = Vec::new();
        read_answer(&mut stream, &mut answer)?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        // It has ended, or is ended now.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            // Standard error is where a failing test is looked at; if it is closed nothing is lost.
            let _ = writeln!(io::stderr(), "{}", self.log());
        }
    }
}

/// An address of loopback with a port that was free a moment ago, for a program that takes no socket over.
///
/// # Errors
/// If no port is free.
pub fn free_address() -> Result<SocketAddr> {
    Ok(Port::take()?.address)
}

/// The line that tor writes before a stream of a circuit (`connection_edge.c`).
pub fn header(circuit: u32) -> String {
    let (high, low) = (circuit >> 16, circuit & 0xffff);
    format!("PROXY TCP6 fc00:dead:beef:4dad::{high:x}:{low:x} ::1 {low} 80\r\n")
}

/// Whether the kernel holds a client's connection to itself until bytes come (`TCP_DEFER_ACCEPT`, tcp(7)): to the client it is
/// established, and the listener has nothing to accept yet. To be called in the listener's network namespace.
///
/// # Errors
/// If the kernel knows no such connection.
pub fn is_deferred(client: &TcpStream) -> Result<bool> {
    // Ends of connections as `/proc/net/tcp` has them: the address as the kernel holds it, in the byte order of this machine.
    let text = |end: SocketAddr| match end.ip() {
        IpAddr::V4(address) => Ok(format!("{:08X}:{:04X}", u32::from_ne_bytes(address.octets()), end.port())),
        IpAddr::V6(_) => bail!("{end} is no address of IPv4"),
    };
    let (own, listener) = (text(client.local_addr()?)?, text(client.peer_addr()?)?);
    let table = fs::read_to_string("/proc/thread-self/net/tcp")?;
    let state = table.lines().skip(1).find_map(|row| {
        let mut columns = row.split_whitespace().skip(1);
        (columns.next()? == listener && columns.next()? == own).then(|| columns.next())?
    });
    // 01 is ESTABLISHED, 03 SYN_RECV (include/net/tcp_states.h).
    match state {
        Some("01") => Ok(false),
        Some("03") => Ok(true),
        other => bail!("{own} to {listener} is in the state {other:?}: {table}"),
    }
}

/// A request for a path.
pub fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: example.onion\r\n\r\n")
}

fn listen_as_daemon(
    daemon: &UnixListener,
    said: &Mutex<Option<Digest>>,
    line: &Mutex<Option<UnixStream>>,
) -> Option<()> {
    loop {
        let (mut stream, _) = daemon.accept().ok()?;
        let tokens = Some(TokenOrder { key: TOKEN_KEY, previous: None, revoked: Vec::new() });
        stream.write_all(&wire::write_message(&Orders { tokens, ..Orders::default() }).ok()?).ok()?;
        *line.lock().ok()? = stream.try_clone().ok();
        let mut read = BufReader::new(stream);
        let mut text = Vec::new();
        while read.read_until(b'\n', &mut text).is_ok_and(|read| read > 0) {
            let digest = wire::read_message::<Digest>(&text);
            text.clear();
            *said.lock().ok()? = digest.ok();
        }
    }
}

/// Reads one answer of HTTP/1.1, head and body, as its `Content-Length` says; to the end where it says nothing.
///
/// # Errors
/// The kernel's; a connection that is reset among them.
pub fn read_answer(stream: &mut impl io::Read, answer: &mut Vec<u8>) -> io::Result<()> {
    let mut byte = [0];
    while !answer.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte)? == 0 {
            return Ok(());
        }
        answer.extend(byte);
    }
    let head = String::from_utf8_lossy(answer).to_ascii_lowercase();
    let length =
        head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<u64>().ok());
    match length {
        Some(length) => stream.take(length).read_to_end(answer).map(|_| ()),
        None => stream.read_to_end(answer).map(|_| ()),
    }
}

/// Whether a request over this stream is served.
pub fn answers(stream: &mut TcpStream) -> bool {
    let mut answer = Vec::new();
    stream.write_all(get("/").as_bytes()).is_ok()
        && read_answer(stream, &mut answer).is_ok()
        && answer.starts_with(b"HTTP/1.1 200")
}

/// A stream of a fresh circuit that is served, and the SOCKS user whose circuit it is.
///
/// # Errors
/// If none of four is: circuits of a small network fail now and then.
pub fn open(client: &Client, service: &Service) -> Result<(TcpStream, String)> {
    for _ in 0..4 {
        let (mut stream, user) = client.connect_afresh(service.onion(), 80)?;
        if answers(&mut stream) {
            return Ok((stream, user));
        }
    }
    bail!("no circuit carries a request");
}

/// A service behind the ingress. `/health` is well unless [`Backend::set_well`] says otherwise, `/slow/N` takes N
/// milliseconds, `/big` sends a megabyte, `/bytes/N` sends N bytes, `/silent` begins an answer and falls silent, `/ws` becomes an
/// echo; all else is answered with what was asked.
pub struct Backend {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    requests: Vec<String>,
    is_ill: bool,
    says: String,
    connections: u64,
    checks: u64,
}

impl Backend {
    /// Starts one on a free port.
    ///
    /// # Errors
    /// The kernel's.
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(io::Result::ok) {
                let state = Arc::clone(&shared);
                // Who breaks off gets no answer.
                thread::spawn(move || {
                    let _ = serve(stream, &state);
                });
            }
        });
        Ok(Self { address, state })
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Head and body of each request but health checks, in the order in which they came.
    pub fn requests(&self) -> Vec<String> {
        self.lock().requests.clone()
    }

    /// Connections that were made, those of health checks included.
    pub fn connections(&self) -> u64 {
        self.lock().connections
    }

    /// Health checks that were answered.
    pub fn checks(&self) -> u64 {
        self.lock().checks
    }

    /// What its health check says.
    pub fn set_well(&self, is_well: bool) {
        self.lock().is_ill = !is_well;
    }

    /// Header lines of each of its answers from now on, without the end of the last.
    pub fn say(&self, lines: &str) {
        self.lock().says = format!("{lines}\r\n");
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn serve(stream: TcpStream, state: &Mutex<State>) -> Option<()> {
    state.lock().ok()?.connections += 1;
    let mut write = stream.try_clone().ok()?;
    let mut read = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if read.read_line(&mut head).ok()? == 0 {
                return None;
            }
        }
        let lower = head.to_ascii_lowercase();
        let of = |name: &str| lower.lines().find_map(|line| line.strip_prefix(name).map(str::trim));
        let mut body = Vec::new();
        if of("transfer-encoding:") == Some("chunked") {
            loop {
                let mut size = String::new();
                read.read_line(&mut size).ok()?;
                let size = usize::from_str_radix(size.trim().split(';').next()?, 16).ok()?;
                let mut chunk = vec![0; size + 2];
                read.read_exact(&mut chunk).ok()?;
                body.extend(chunk.get(..size)?);
                if size == 0 {
                    break;
                }
            }
        } else if let Some(length) = of("content-length:").and_then(|length| length.parse::<u64>().ok()) {
            read.by_ref().take(length).read_to_end(&mut body).ok()?;
        }
        let path = head.split(' ').nth(1)?.to_owned();
        let asked = format!("{head}{}", String::from_utf8_lossy(&body));
        if path != "/health" {
            state.lock().ok()?.requests.push(asked.clone());
        }
        if let Some(milliseconds) = path.strip_prefix("/slow/") {
            thread::sleep(Duration::from_millis(milliseconds.parse().ok()?));
        }
        if path == "/ws" {
            write
                .write_all(
                    b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n",
                )
                .ok()?;
            io::copy(&mut read, &mut write).ok()?;
            return None;
        }
        let (status, says) = {
            let mut state = state.lock().ok()?;
            let is_check = path == "/health";
            state.checks += u64::from(is_check);
            (if is_check && state.is_ill { "500 Ill" } else { "200 OK" }, state.says.clone())
        };
        if path == "/silent" {
            write.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc").ok()?;
            thread::sleep(PATIENCE);
        }
        let bytes = path.strip_prefix("/bytes/").and_then(|bytes| bytes.parse().ok());
        let answer = match bytes.or((path == "/big").then_some(1 << 20)) {
            Some(bytes) => "x".repeat(bytes),
            None => asked,
        };
        let text = format!("HTTP/1.1 {status}\r\n{says}Content-Length: {}\r\n\r\n{answer}", answer.len());
        write.write_all(text.as_bytes()).ok()?;
    }
}
