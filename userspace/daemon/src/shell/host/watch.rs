//! Hears from the kernel that addresses or interfaces of this host changed (rtnetlink(7), multicast groups).
//!
//! What a message says is not read: messages can be lost, and the state they speak of is soon another. They only say that
//! it is time to look, and whoever looks reads everything anew. Looks are spaced, so that an interface that flaps keeps
//! nothing else waiting.

use std::{io, time::Duration};

use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use tokio::{
    io::unix::AsyncFd,
    time::{Instant, sleep_until},
};

/// `RTNLGRP_LINK`, `RTNLGRP_IPV4_IFADDR`, `RTNLGRP_IPV6_IFADDR` in include/uapi/linux/rtnetlink.h.
const GROUPS: [u32; 3] = [1, 5, 9];
/// How long after a first message its followers are waited for: a change seldom comes alone.
const SETTLE: Duration = Duration::from_millis(50);
/// Least time between two looks.
const LEAST_APART: Duration = Duration::from_millis(500);
/// Most messages thrown away before other work gets its turn.
const MOST_MESSAGES: usize = 1_024;

/// A socket on which the kernel speaks of every change.
pub struct Watch {
    socket: AsyncFd<Socket>,
    /// When the change that was heard of is due to be looked at.
    due: Option<Instant>,
    /// No look before this.
    not_before: Instant,
}

impl Watch {
    /// Listens from now on. The first change is due at once, because there may have been one before.
    ///
    /// # Errors
    /// The system's, if there is no such socket to be had.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.set_non_blocking(true)?;
        socket.bind_auto()?;
        for group in GROUPS {
            socket.add_membership(group)?;
        }
        let now = Instant::now();
        Ok(Self { socket: crate::sys::watch_socket(socket)?, due: Some(now), not_before: now })
    }

    /// Waits until something changed and it is time to look. It may be dropped at any moment and called again.
    ///
    /// # Errors
    /// If the socket cannot be waited for.
    pub async fn changed(&mut self) -> io::Result<()> {
        let due = match self.due {
            Some(due) => due,
            None => {
                self.hear().await?;
                *self.due.insert((Instant::now() + SETTLE).max(self.not_before))
            }
        };
        sleep_until(due).await;
        // What is said from now on speaks of a change that the look may miss.
        self.forget();
        self.due = None;
        self.not_before = Instant::now() + LEAST_APART;
        Ok(())
    }

    /// Waits for a message and leaves it where it is.
    async fn hear(&self) -> io::Result<()> {
        loop {
            let mut ready = self.socket.readable().await?;
            // An error is as good: ENOBUFS says that messages were lost.
            if ready.try_io(|socket| receive(socket.get_ref(), libc::MSG_PEEK)).is_ok() {
                return Ok(());
            }
        }
    }

    /// Throws away what was said so far.
    fn forget(&self) {
        for _ in 0..MOST_MESSAGES {
            let received = receive(self.socket.get_ref(), 0);
            if received.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
                break;
            }
        }
    }
}

/// Takes one message, of which only the beginning is kept.
fn receive(socket: &Socket, flags: libc::c_int) -> io::Result<()> {
    let mut beginning = Vec::with_capacity(16);
    socket.recv(&mut beginning, flags).map(|_| ())
}
