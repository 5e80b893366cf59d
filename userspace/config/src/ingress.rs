//! `[ingress]`: what stands on the port that tor connects to.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    path::PathBuf,
    time::Duration,
};

use crate::config::{GateMode, Protocol};

/// `[ingress]`: what stands on the port that tor connects to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ingress {
    /// `enabled`; `false` by default.
    pub enabled: bool,
    /// `start_front`: whether the daemon starts `tunica-front`; `false` by default.
    pub start_front: bool,
    /// `user`: the account that `tunica-front` runs as; `tunica-front` by default.
    pub user: String,
    /// `listen`: loopback address; 127.0.0.1:10000 by default.
    pub listen: SocketAddr,
    /// `socket`: a Unix socket beside it, absolute; unset: none.
    pub socket: Option<PathBuf>,
    /// `gate`; `enforce` by default.
    pub gate: GateMode,
    /// `protocol`; `http` by default.
    pub protocol: Protocol,
    /// `backends`: 1 to 64; 127.0.0.1:10001 by default.
    pub backends: Vec<Place>,
    /// `sticky`: whether a circuit keeps its backend; `false` by default.
    pub sticky: bool,
    /// `health_path`: what a health check asks for; `/health` by default.
    pub health_path: String,
    /// `health_every_seconds`; 5 s by default.
    pub health_every: Duration,
    /// `maintenance_page`: an HTML file; unset: a page of our own.
    pub maintenance_page: Option<PathBuf>,
    /// `maxconn`: connections that are accepted at once; 500 by default.
    pub maxconn: NonZeroU32,
    /// `queue_seconds`: longest wait for a turn; 5 s by default.
    pub queue: Duration,
    /// `connect_seconds`: for a connection to a backend; 5 s by default.
    pub connect: Duration,
    /// `client_seconds`: for a client's next bytes; 30 s by default.
    pub client: Duration,
    /// `server_seconds`: for a backend's answer; 30 s by default.
    pub server: Duration,
    /// `request_seconds`: for the whole head of a request; 10 s by default.
    pub request: Duration,
    /// `keep_alive_seconds`: between requests; 2 s by default.
    pub keep_alive: Duration,
    /// `header_bytes`: largest head of a request; 16 384 by default.
    pub header_bytes: NonZeroU32,
    /// `body_bytes`: largest body of a request; 10 485 760 by default.
    pub body_bytes: NonZeroU32,
    /// `body_bytes_per_second`: slowest body of a request; 512 by default.
    pub body_bytes_per_second: NonZeroU32,
    /// `post_path`: the only path that may be posted to; `/verify-captcha` by default.
    pub post_path: String,
}

/// `[haproxy]`: HAProxy in the place of `tunica-front`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Haproxy {
    /// `socket`: its Runtime API, absolute; unset: HAProxy is not used.
    pub socket: Option<PathBuf>,
    /// `table`: the name of its table of circuits; `tunica_circuits` by default.
    pub table: String,
}

/// Where a backend listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// A numeric address on loopback or in a private network, and a port.
    Tcp(SocketAddr),
    /// A Unix socket, absolute.
    Unix(PathBuf),
}

impl fmt::Display for Place {
    /// As in a configuration file.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(out, "{address}"),
            Self::Unix(path) => write!(out, "unix:{}", path.display()),
        }
    }
}

/// Whether nothing sent there crosses the internet: loopback, and the private networks of RFC 1918, RFC 4193 and link-local
/// addresses.
pub(crate) fn is_private(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_private() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}
