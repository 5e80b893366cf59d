//! An onion service on a tor of its own.

use std::{
    fmt::{self, Write as _},
    fs,
    net::SocketAddr,
    path::PathBuf,
    str::FromStr,
    sync::Arc,
    time::Instant,
};

use anyhow::{Context, Result};

use super::{
    control::{Authentication, Control, ControlAddress},
    ground::Ground,
    node::{self, Node, PATIENCE},
    ports::Port,
    relay::REPLICAS,
};

/// Descriptors that a service keeps published: of this time period and of a neighbouring one (rend-spec-v3, section 2.2.1).
const DESCRIPTORS: usize = 2;

/// Where tor connects to for a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// A listener on TCP.
    Tcp(SocketAddr),
    /// A listener on a Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl FromStr for Backend {
    type Err = String;

    /// `127.0.0.1:8080`, `[::1]:8080` or `unix:/path`; nothing that is not on this machine.
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = PathBuf::from(path);
            return if path.is_absolute() {
                Ok(Self::Unix(path))
            } else {
                Err("the path is relative".to_owned())
            };
        }
        let address: SocketAddr =
            text.parse().map_err(|_| "neither `ADDRESS:PORT` nor `unix:/path`".to_owned())?;
        if !address.ip().is_loopback() {
            return Err("the network stays on this machine: give a loopback address".to_owned());
        }
        Ok(Self::Tcp(address))
    }
}

/// tor's own puzzle, which a client solves before it is introduced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProofOfWork {
    /// `HiddenServicePoWQueueRate`: introductions a second.
    pub rate_per_second: u32,
    /// `HiddenServicePoWQueueBurst`: not below the rate.
    pub burst: u32,
}

/// What a service is like.
#[derive(Clone, Debug)]
pub struct ServiceOptions {
    /// Virtual ports and where their streams go.
    pub ports: Vec<(u16, Backend)>,
    /// Whether each stream begins with a PROXY line that tells the circuit (`HiddenServiceExportCircuitID haproxy`).
    pub is_circuit_exported: bool,
    /// tor's own puzzle, if any.
    pub proof_of_work: Option<ProofOfWork>,
    /// What the control socket asks for. Where it asks for something there is a control port on TCP as well.
    pub control: Authentication,
    /// More lines of `torrc`, behind the service's `HiddenServiceDir`.
    pub lines: Vec<String>,
}

impl ServiceOptions {
    /// A service with one virtual port: circuits are exported, there is no puzzle, the control socket asks for nothing.
    pub fn new(port: u16, backend: Backend) -> Self {
        Self {
            ports: vec![(port, backend)],
            is_circuit_exported: true,
            proof_of_work: None,
            control: Authentication::None,
            lines: Vec::new(),
        }
    }
}

/// A descriptor that a directory took from the service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upload {
    /// Which descriptor: its blinded key as tor writes it, another one in each time period.
    pub descriptor: String,
    /// The directory's fingerprint: 40 hexadecimal digits.
    pub directory: String,
    /// The directory's place on the hash ring in that time period, in hexadecimal digits.
    pub index: String,
}

/// What a service's events `HS_DESC` tell of its uploads.
#[derive(Clone, Debug, Default)]
pub struct Uploads {
    under_way: Vec<Upload>,
    /// Those that a directory took, in the order in which that was told, each once.
    pub done: Vec<Upload>,
}

impl Uploads {
    /// Takes note of an event; any other is none.
    pub fn note(&mut self, event: &str) {
        // control-spec.txt, section 4.1.25:
        // HS_DESC UPLOAD address auth $FINGERPRINT~name blinded-key HSDIR_INDEX=index
        let words: Vec<&str> = event.split(' ').collect();
        let ["HS_DESC", action, _, _, directory, rest @ ..] = words.as_slice() else { return };
        let directory = directory.trim_start_matches('$').split(['~', '=']).next().unwrap_or_default();
        if *action == "UPLOAD" {
            let [descriptor, index] = rest else { return };
            self.under_way.push(Upload {
                descriptor: (*descriptor).to_owned(),
                directory: directory.to_owned(),
                index: index.trim_start_matches("HSDIR_INDEX=").to_owned(),
            });
        } else if let Some(at) = self.under_way.iter().position(|upload| upload.directory == directory) {
            let upload = self.under_way.remove(at);
            if *action == "UPLOADED" && !self.done.contains(&upload) {
                self.done.push(upload);
            }
        }
    }
}

/// An onion service. Dropping it ends its tor.
#[derive(Debug)]
pub struct Service {
    node: Node,
    onion: String,
    metrics: Port,
    control_port: Option<Port>,
    uploads: Vec<Upload>,
}

impl Service {
    /// Starts tor and waits until the service is published.
    ///
    /// # Errors
    /// If that does not come; the end of tor's log is in the message.
    pub(super) fn start(
        ground: &Arc<Ground>,
        name: String,
        authorities: &str,
        options: &ServiceOptions,
    ) -> Result<Self> {
        let node = Node::new(ground, name, options.control.clone())?;
        let metrics = Port::take()?;
        let control_port = match options.control {
            Authentication::None => None,
            Authentication::Cookie | Authentication::Password(_) => Some(Port::take()?),
        };
        let mut lines = format!(
            "{authorities}SocksPort 0\nMetricsPort {}\nMetricsPortPolicy accept 127.0.0.1\n",
            metrics.address
        );
        if let Some(port) = &control_port {
            let _ = writeln!(lines, "ControlPort {}", port.address);
        }
        let _ = writeln!(lines, "HiddenServiceDir {}", node.path("onion").display());
        for (port, backend) in &options.ports {
            let _ = writeln!(lines, "HiddenServicePort {port} {backend}");
        }
        if options.is_circuit_exported {
            lines.push_str("HiddenServiceExportCircuitID haproxy\n");
        }
        if let Some(ProofOfWork { rate_per_second, burst }) = options.proof_of_work {
            let _ = writeln!(
                lines,
                "HiddenServicePoWDefensesEnabled 1\n\
                 HiddenServicePoWQueueRate {rate_per_second}\n\
                 HiddenServicePoWQueueBurst {burst}"
            );
        }
        for line in &options.lines {
            let _ = writeln!(lines, "{line}");
        }
        node.configure(&lines)?;
        let mut service = Self { node, onion: String::new(), metrics, control_port, uploads: Vec::new() };
        service.begin()?;
        Ok(service)
    }

    /// Starts tor and waits until the service is published.
    fn begin(&mut self) -> Result<()> {
        self.node.start(std::iter::once(&mut self.metrics).chain(&mut self.control_port))?;
        let mut events = self.node.control()?;
        events.ask("SETEVENTS HS_DESC")?;
        node::wait_for_bootstrap(&mut self.node)?;
        let published = self.wait_until_published(&mut events);
        published.map_err(|error| self.node.failure(&format!("publishing the service: {error:#}")))?;
        let path = self.node.path("onion/hostname");
        let name = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        name.trim().clone_into(&mut self.onion);
        Ok(())
    }

    /// Follows tor's uploads until every descriptor is with every directory that a client may ask.
    fn wait_until_published(&mut self, events: &mut Control) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let mut uploads = Uploads::default();
        while !is_published(&uploads.done) {
            let event = events
                .event(deadline)?
                .with_context(|| format!("it did not come; {} uploads succeeded", uploads.done.len()))?;
            uploads.note(&event);
        }
        self.uploads = uploads.done;
        Ok(())
    }

    /// The onion address with `.onion`.
    pub fn onion(&self) -> &str {
        &self.onion
    }

    /// Which directories took which descriptor when the service was last started.
    pub fn uploads(&self) -> &[Upload] {
        &self.uploads
    }

    /// The pid of its tor.
    ///
    /// # Errors
    /// If it does not run, because a restart failed.
    pub fn pid(&self) -> Result<u32> {
        self.node.pid().context("the service's tor does not run")
    }

    /// The control socket.
    pub fn control_address(&self) -> ControlAddress {
        self.node.control_address()
    }

    /// The control port on TCP, which there is only if it asks for something.
    pub fn control_port(&self) -> Option<SocketAddr> {
        self.control_port.as_ref().map(|port| port.address)
    }

    /// Where tor exports its metrics, at `/metrics`.
    pub fn metrics_port(&self) -> SocketAddr {
        self.metrics.address
    }

    /// The folder with the service's keys (`HiddenServiceDir`).
    pub fn key_folder(&self) -> PathBuf {
        self.node.path("onion")
    }

    /// Ends the tor process and starts another one with the same keys, options and ports; waits until the service is
    /// published again.
    ///
    /// # Errors
    /// As when it was started first.
    pub fn restart(&mut self) -> Result<()> {
        self.node.end();
        self.begin()
    }
}

fn is_published(uploads: &[Upload]) -> bool {
    let replicas = |descriptor: &str| uploads.iter().filter(|upload| upload.descriptor == descriptor).count();
    let complete = uploads.iter().filter(|upload| replicas(&upload.descriptor) >= REPLICAS).count();
    complete >= DESCRIPTORS * REPLICAS
}
