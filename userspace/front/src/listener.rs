//! The ports that tor connects to, and the first bytes of each stream: whose circuit it is.

use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            fs::{FileTypeExt, PermissionsExt},
            net::UnixListener as StdUnixListener,
        },
    },
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, getsockname, getsockopt, listen,
    setsockopt, socket, sockopt,
};
use thiserror::Error;
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, UnixListener},
    time::timeout,
};
use tunica_config::Ingress;
use tunica_onion::{
    circuit::RawCircuit,
    proxy_codec::{self, MOST_BYTES, Progress},
};

use crate::stream::Stream;

/// Connections that wait in the kernel; `net.core.somaxconn` may make it fewer.
const BACKLOG: i32 = 4_096;

/// Bytes of each direction that the kernel holds, which doubles this for its own needs (socket(7)).
const BUFFER: usize = 64 * 1024;

/// What tor connects to.
#[derive(Debug)]
pub enum Listener {
    /// A loopback port.
    Tcp(TcpListener),
    /// A socket file.
    Unix(UnixListener),
}

/// Why nobody can connect.
#[derive(Debug, Error)]
pub enum ListenError {
    /// A port or file cannot be listened on.
    #[error(
        "cannot listen on {place} ({source}): tor could hand over no stream; see who has it with `ss -ltnxp`, or name another \
         under [ingress]"
    )]
    Bind {
        /// Where.
        place: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// What was handed over is no listening stream socket.
    #[error(
        "file descriptor {number} that was handed over is of no use ({source}): tor could hand over no stream; look at \
         tunica-front.socket"
    )]
    HandedOver {
        /// Which, from 3.
        number: i32,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The sockets that were handed over, or else those that the configuration names. Each may be shared by several threads,
/// see [`Listener::new`].
///
/// # Errors
/// [`ListenError`].
pub fn sockets(ingress: &Ingress, handed_over: Vec<OwnedFd>) -> Result<Vec<OwnedFd>, ListenError> {
    if !handed_over.is_empty() {
        for (number, socket) in (3..).zip(&handed_over) {
            let failed = |source: io::Error| ListenError::HandedOver { number, source };
            let listens = getsockopt(socket, sockopt::AcceptConn).map_err(|error| failed(error.into()))?;
            if !listens {
                return Err(failed(io::Error::other("it does not listen")));
            }
            // As if it had been made here.
            listen(socket, Backlog::new(BACKLOG).map_err(|error| failed(error.into()))?)
                .map_err(|error| failed(error.into()))?;
            let name: SockaddrStorage =
                getsockname(std::os::fd::AsRawFd::as_raw_fd(socket)).map_err(|error| failed(error.into()))?;
            if name.as_unix_addr().is_none() {
                crate::sys::defer_accept(socket.as_fd(), ingress.request).map_err(failed)?;
            }
        }
        return Ok(handed_over);
    }
    let failed = |place: String| |source| ListenError::Bind { place, source };
    let mut sockets = vec![bind_tcp(ingress).map_err(failed(ingress.listen.to_string()))?];
    if let Some(path) = &ingress.socket {
        sockets.push(bind_unix(path).map_err(failed(path.display().to_string()))?);
    }
    Ok(sockets)
}

fn bind_tcp(ingress: &Ingress) -> io::Result<OwnedFd> {
    let family = if ingress.listen.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(family, SockType::Stream, flags, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    // The PROXY header comes at once: no use to wake up before it is there.
    crate::sys::defer_accept(socket.as_fd(), ingress.request)?;
    bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &SockaddrStorage::from(ingress.listen))?;
    listen(&socket, Backlog::new(BACKLOG)?)?;
    Ok(socket)
}

/// A socket of an earlier process, which nobody listens on any more, is replaced.
fn bind_unix(path: &Path) -> io::Result<OwnedFd> {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    if is_socket
        && let Err(error) = std::os::unix::net::UnixStream::connect(path)
        && error.kind() == io::ErrorKind::ConnectionRefused
    {
        std::fs::remove_file(path)?;
    }
    let listener = StdUnixListener::bind(path)?;
    // The group is for tor's account.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    listener.set_nonblocking(true)?;
    Ok(listener.into())
}

impl Listener {
    /// A listener of its own for a thread, on the same socket. Must be called on a tokio runtime.
    ///
    /// # Errors
    /// The kernel's; also if the socket is of another kind.
    pub fn new(socket: &OwnedFd) -> io::Result<Self> {
        let own = socket.try_clone()?;
        let name: SockaddrStorage = getsockname(std::os::fd::AsRawFd::as_raw_fd(&own))?;
        if name.as_unix_addr().is_some() {
            let listener = StdUnixListener::from(own);
            listener.set_nonblocking(true)?;
            return Ok(Self::Unix(UnixListener::from_std(listener)?));
        }
        // Connections have these from the socket they come by (net/ipv4/tcp_minisocks.c, tcp_create_openreq_child).
        setsockopt(&own, sockopt::TcpNoDelay, &true)?;
        bound(&own)?;
        let listener = std::net::TcpListener::from(own);
        listener.set_nonblocking(true)?;
        Ok(Self::Tcp(TcpListener::from_std(listener)?))
    }

    /// The next connection.
    ///
    /// # Errors
    /// The kernel's, for example that no file descriptor is free.
    pub async fn accept(&self) -> io::Result<Stream> {
        Ok(match self {
            Self::Tcp(listener) => Stream::Tcp(listener.accept().await?.0),
            Self::Unix(listener) => {
                let stream = listener.accept().await?.0;
                bound(&stream)?;
                Stream::Unix(stream)
            }
        })
    }
}

/// Bounds what the kernel holds of a connection. Left to itself it would take megabytes from a service for a client that reads
/// slowly, and the client would seem to take nothing for as long as it reads those.
///
/// # Errors
/// The kernel's.
pub(crate) fn bound(socket: &impl AsFd) -> io::Result<()> {
    setsockopt(socket, sockopt::SndBuf, &BUFFER)?;
    setsockopt(socket, sockopt::RcvBuf, &BUFFER)?;
    Ok(())
}

/// Why a stream belongs to no circuit.
#[derive(Debug, Error)]
pub enum IntroError {
    /// It broke off before its header was there.
    #[error("the connection ended within the PROXY header")]
    Broken,
    /// The header took too long.
    #[error("the PROXY header did not come in time")]
    Slow,
    /// It is none.
    #[error(transparent)]
    Header(#[from] proxy_codec::ProxyError),
    /// It names no circuit.
    #[error(transparent)]
    Circuit(#[from] tunica_onion::circuit::NotACircuit),
}

/// Reads the PROXY header; returns the circuit it names, and what was read beyond it.
///
/// # Errors
/// [`IntroError`]; the stream must be closed unanswered.
pub async fn introduce(stream: &mut Stream, patience: Duration) -> Result<(RawCircuit, Bytes), IntroError> {
    timeout(patience, read_header(stream)).await.map_err(|_| IntroError::Slow)?
}

async fn read_header(stream: &mut Stream) -> Result<(RawCircuit, Bytes), IntroError> {
    // Room for a whole request behind the header, which as a rule is in the same segment.
    let mut bytes = BytesMut::with_capacity(2 * MOST_BYTES);
    loop {
        if stream.read_buf(&mut bytes).await.map_err(|_| IntroError::Broken)? == 0 {
            return Err(IntroError::Broken);
        }
        if let Progress::Done { header, consumed } = proxy_codec::decode(&bytes)? {
            let circuit = proxy_codec::circuit_of(&header)?;
            return Ok((circuit, bytes.split_off(consumed).freeze()));
        }
        bytes.reserve(MOST_BYTES);
    }
}

/// The path of each socket file that was made here, to be removed at the end.
pub fn socket_files(ingress: &Ingress, was_handed_over: bool) -> Option<PathBuf> {
    ingress.socket.clone().filter(|_| !was_handed_over)
}
