//! A client: a tor of its own with a SOCKS port.

use std::{
    net::{SocketAddr, TcpStream},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{
    control::{Authentication, ControlAddress},
    ground::Ground,
    node::{self, Node, PATIENCE},
    ports::Port,
    socks,
};

/// How long one connect may take. Now and then one hangs in so small a network, because its rendezvous circuit fails.
const CONNECT: Duration = Duration::from_secs(15);

/// How often another circuit is tried.
const ATTEMPTS: u32 = 6;

/// A client. Dropping it ends its tor.
#[derive(Debug)]
pub struct Client {
    node: Node,
    socks: Port,
    users: AtomicU32,
}

impl Client {
    /// Starts tor and waits for its first circuit.
    ///
    /// # Errors
    /// If that does not come; the end of tor's log is in the message.
    pub(super) fn start(ground: &Arc<Ground>, name: String, authorities: &str) -> Result<Self> {
        let mut node = Node::new(ground, name, Authentication::None)?;
        let mut socks = Port::take()?;
        node.configure(&format!("{authorities}SocksPort {}\n", socks.address))?;
        node.start([&mut socks])?;
        node::wait_for_bootstrap(&mut node)?;
        Ok(Self { node, socks, users: AtomicU32::new(0) })
    }

    /// The SOCKS port.
    pub fn socks_port(&self) -> SocketAddr {
        self.socks.address
    }

    /// The control socket.
    pub fn control_address(&self) -> ControlAddress {
        self.node.control_address()
    }

    /// Opens a stream to an onion service. Streams of one `user` share a circuit as long as that lives; those of another user
    /// never do. The stream's timeouts are 15 s.
    ///
    /// # Errors
    /// If tor refuses, or there is no stream after 15 s, which happens now and then in so small a network: see
    /// [`Client::connect_afresh`].
    pub fn connect(&self, onion: &str, port: u16, user: &str) -> Result<TcpStream> {
        socks::connect(self.socks.address, user, onion, port, CONNECT)
    }

    /// Forgets what this client knows of circuits and descriptors. tor does so at most once within 10 s, and later if asked again
    /// before.
    ///
    /// # Errors
    /// If tor refuses.
    pub fn forget(&self) -> Result<()> {
        self.control_address().connect()?.ask("SIGNAL NEWNYM").map(drop)
    }

    /// Has tor write to this file, from now on and in detail, what it does with onion services.
    ///
    /// # Errors
    /// If tor refuses.
    pub fn tell_of_services(&self, log: &Path) -> Result<()> {
        let telling = format!("SETCONF Log=\"[rend]debug file {}\"", log.display());
        self.control_address().connect()?.ask(&telling).map(drop)
    }

    /// Whether this directory, by its fingerprint, gives out the present descriptor of a service.
    ///
    /// # Errors
    /// If tor tells of neither, or of another reason than that the directory has none.
    pub fn finds_at(&self, onion: &str, directory: &str) -> Result<bool> {
        let name = onion.strip_suffix(".onion").unwrap_or(onion);
        let mut control = self.control_address().connect()?;
        control.ask("SETEVENTS HS_DESC")?;
        control.ask(&format!("HSFETCH {name} SERVER=${directory}"))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let event = control.event(deadline)?.context("tor tells nothing of the descriptor")?;
            match event.split(' ').nth(1) {
                _ if !event.contains(directory) => {}
                Some("RECEIVED") => return Ok(true),
                Some("FAILED") if event.contains("REASON=NOT_FOUND") => return Ok(false),
                Some("FAILED") => bail!("{event}"),
                _ => {}
            }
        }
    }

    /// Opens a stream on a new circuit and returns it with the circuit's user; tries again, each time as another user, if tor
    /// hangs.
    ///
    /// # Errors
    /// The last attempt's.
    pub fn connect_afresh(&self, onion: &str, port: u16) -> Result<(TcpStream, String)> {
        let mut last = None;
        for _ in 0..ATTEMPTS {
            let user = format!("afresh{}", self.users.fetch_add(1, Ordering::Relaxed));
            match self.connect(onion, port, &user) {
                Ok(stream) => return Ok((stream, user)),
                Err(error) => last = Some(error),
            }
        }
        let last = last.map_or_else(String::new, |error| format!("{error:#}"));
        None.with_context(|| {
            format!("no stream in {ATTEMPTS} attempts, each on a circuit of its own: {last}")
        })
    }
}
