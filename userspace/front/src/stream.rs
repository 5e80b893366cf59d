//! A connection of either kind, TCP or Unix, with the few system calls that tokio does not offer.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
    pin::Pin,
    task::{Context, Poll},
};

use nix::sys::socket::{MsgFlags, Shutdown, recv, send, shutdown};
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

    /// Reads what is there, at most as much as fits.
    ///
    /// # Errors
    /// The kernel's; `WouldBlock` if there is nothing.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(recv(self.as_fd().as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT)?)
    }

    /// Sends what there is room for.
    ///
    /// # Errors
    /// The kernel's; `WouldBlock` if there is none.
    pub fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        Ok(send(self.as_fd().as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL)?)
    }

    /// Sends what there is room for, which may be nothing.
    ///
    /// # Errors
    /// The kernel's.
    pub fn send_now(&self, bytes: &[u8]) -> io::Result<usize> {
        match self.try_when(Interest::WRITABLE, || self.send(bytes)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            outcome => outcome,
        }
    }

    /// Notes that all was read that was there, so that the next [`Self::when`] waits for more instead of asking in vain. Only for
    /// who just read less than there was room for, with nothing awaited since. What comes now is an event of its own, because
    /// the runtime has edge-triggered ones (epoll(7)); tokio's own reads go by the same rule.
    pub fn was_emptied(&self) {
        let _ = self.try_when(Interest::READABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
    }

    fn try_when<T>(&self, ready: Interest, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        match self {
            Self::Tcp(stream) => stream.try_io(ready, act),
            Self::Unix(stream) => stream.try_io(ready, act),
        }
    }

    /// Says to the other end that nothing more comes.
    ///
    /// # Errors
    /// The kernel's.
    pub fn finish(&self) -> io::Result<()> {
        Ok(shutdown(self.as_fd().as_raw_fd(), Shutdown::Write)?)
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
