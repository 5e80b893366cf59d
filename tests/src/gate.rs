//! What tests of the circuit gate share: tor's line, a listener that tells whether it woke, and what is left of
//! connections.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    num::{NonZeroU16, NonZeroU32},
    os::fd::AsFd as _,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use tunica_core::{limits::Mode, time::Monotime};
use tunicad::{
    shell::gate::{Ban, Desired},
    sys::monotonic_ns,
};

use crate::sys::defer_accept;

/// How long anything may take that should happen at once. Nothing is measured by it.
const PATIENCE: Duration = Duration::from_secs(10);

/// The line that tor writes before a stream of this circuit to the service's port 80.
pub fn line(circuit: u32) -> String {
    let (high, low) = (circuit >> 16, circuit & 0xffff);
    format!("PROXY TCP6 fc00:dead:beef:4dad::{high:x}:{low:x} ::1 {low} 80\r\n")
}

/// Bans of these circuits for an hour.
///
/// # Errors
/// When the clock does not answer.
pub fn desired(mode: Mode, generation: u32, circuits: &[u32]) -> Result<Desired> {
    let until = Monotime(monotonic_ns()?).after(Duration::from_secs(3600));
    let ban = |circuit: &u32| Some((NonZeroU32::new(*circuit)?, Ban { until, ban_id: 7 }));
    Ok(Desired { mode, generation, bans: circuits.iter().filter_map(ban).collect() })
}

/// A listener that accepts only when asked to.
#[derive(Debug)]
pub struct Service {
    listener: TcpListener,
    epoll: Epoll,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Service {
    /// Listens on a free port, with TCP_DEFER_ACCEPT if asked so.
    ///
    /// # Errors
    /// The system's.
    pub fn open(address: IpAddr, defers: bool) -> Result<Self> {
        let listener = TcpListener::bind((address, 0)).context("listening")?;
        listener.set_nonblocking(true)?;
        if defers {
            defer_accept(listener.as_fd(), 30).context("deferring accept")?;
        }
        let epoll = Epoll::new(EpollCreateFlags::empty())?;
        epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        let address = listener.local_addr()?;
        Ok(Self { listener, epoll, address })
    }

    /// Its port.
    ///
    /// # Errors
    /// When it has none.
    pub fn port(&self) -> Result<NonZeroU16> {
        NonZeroU16::new(self.address.port()).context("port 0")
    }

    /// Whether a connection waits for it or comes within `milliseconds`.
    ///
    /// # Errors
    /// The system's.
    pub fn is_woken(&self, milliseconds: u16) -> Result<bool> {
        let mut events = [EpollEvent::empty()];
        Ok(self.epoll.wait(&mut events, EpollTimeout::from(milliseconds))? > 0)
    }

    /// Takes a connection that waits or comes soon.
    ///
    /// # Errors
    /// If none comes.
    pub fn accept(&self) -> Result<TcpStream> {
        if !self.is_woken(u16::try_from(PATIENCE.as_millis())?)? {
            bail!("no connection came");
        }
        let (stream, _) = self.listener.accept()?;
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    }

    /// Whether the queue of connections to accept is empty.
    pub fn has_none(&self) -> bool {
        matches!(self.listener.accept(), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Connects as tor does and writes `bytes` at once.
    ///
    /// # Errors
    /// When the connection is not made.
    pub fn visit(&self, bytes: &[u8]) -> Result<TcpStream> {
        let mut client = TcpStream::connect_timeout(&self.address, PATIENCE).context("connecting")?;
        client.set_nodelay(true)?;
        client.set_read_timeout(Some(PATIENCE))?;
        client.write_all(bytes).context("writing the first bytes")?;
        Ok(client)
    }

    /// Connections to and from its port that the kernel still knows, one line of `/proc/net/tcp` each. Those in TIME_WAIT
    /// are left out: connections that were closed well leave it behind, and no reset does.
    ///
    /// # Errors
    /// When the tables cannot be read.
    pub fn left_over(&self) -> Result<Vec<String>> {
        let port = format!(":{:04X}", self.address.port());
        let mut left = Vec::new();
        for table in ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"] {
            // A kernel without IPv6 has no second table.
            let text = fs::read_to_string(table).unwrap_or_default();
            for row in text.lines().skip(1) {
                let mut columns = row.split_whitespace().skip(1);
                let (local, remote, state) = (columns.next(), columns.next(), columns.next());
                let is_of_port = [local, remote].iter().flatten().any(|end| end.ends_with(&port));
                // 0A is LISTEN, 06 TIME_WAIT.
                if is_of_port && !matches!(state, Some("0A" | "06")) {
                    left.push(row.trim().to_owned());
                }
            }
        }
        Ok(left)
    }
}

/// How a connection ended for its client, that writes nothing more.
///
/// # Errors
/// If it does not end, or gets data.
pub fn end_of(client: &mut TcpStream) -> Result<io::ErrorKind> {
    match client.read(&mut [0]) {
        Ok(0) => Ok(io::ErrorKind::UnexpectedEof),
        Ok(_) => bail!("the client received data"),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => bail!("the connection does not end"),
        Err(error) => Ok(error.kind()),
    }
}
