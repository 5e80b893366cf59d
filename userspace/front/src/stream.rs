//! A connection of either kind, TCP or Unix, with the few system calls that tokio does not offer.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::{TcpStream, UnixStream},
};

/// A connection that tor or a backend is at the other end of.
#[derive(Debug)]
pub enum Stream {
    /// Over loopback or to another host.
    Tcp(TcpStream),
    /// Through a socket file.
    Unix(UnixStream),
}

impl Stream {
    /// Runs `act` whenever the socket is ready in this way, until it does not say `WouldBlock`.
    ///
    /// # Errors
    /// What `act` returns.
    pub async fn when<T>(&self, ready: Interest, act: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        match self {
            Self::Tcp(stream) => stream.async_io(ready, act).await,
            Self::Unix(stream) => stream.async_io(ready, act).await,
        }
    }

    /// Says to the other end that nothing more comes.
    ///
    /// # Errors
    /// The kernel's.
    pub fn finish(&self) -> io::Result<()> {
        use nix::sys::socket::{Shutdown, shutdown};
        Ok(shutdown(std::os::fd::AsRawFd::as_raw_fd(&self.as_fd()), Shutdown::Write)?)
    }

    /// Has the other end meet with a reset instead of an end when this is dropped. A Unix socket knows none, so it only
    /// closes.
    pub fn set_reset(&self) {
        if let Self::Tcp(stream) = self {
            // What cannot be set leaves an ordinary end.
            let _ = stream.set_zero_linger();
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Sockets have nothing to flush.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
