//! An attack by real connections: every source completes its handshakes, closes at once, and begins again.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    sys::socket::{setsockopt, sockopt},
};

use crate::{client::connected, netns::Namespace};

/// How long a source waits for its handshake before it tries another.
const WAIT: Duration = Duration::from_millis(50);

/// The attack, ready to be started.
#[derive(Clone, Copy, Debug)]
pub struct Connections {
    /// How many sources.
    pub sources: u8,
    /// The first one's address; the others follow.
    pub first: Ipv4Addr,
    /// Handshakes a second and source, at most.
    pub rate: u32,
    /// The victim.
    pub service: SocketAddr,
}

/// Sources that connect until this is dropped.
pub struct Running {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<u64>>>,
}

impl fmt::Debug for Running {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Running").finish_non_exhaustive()
    }
}

impl Connections {
    /// The address of the source with this number, from 0 on.
    pub const fn address(&self, number: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.first.to_bits() + number)
    }

    /// Starts the sources in `namespace`, which has their addresses.
    ///
    /// # Errors
    /// When a thread cannot be started; what goes wrong on one, [`Running::stop`] says.
    pub fn start(self, namespace: &Namespace) -> Result<Running> {
        let mut running = Running { stop: Arc::default(), threads: Vec::with_capacity(self.sources.into()) };
        for number in 0..u32::from(self.sources) {
            let stop = Arc::clone(&running.stop);
            let source = move || self.connect_until(number, &stop);
            running.threads.push(namespace.spawn("source", source)?);
        }
        Ok(running)
    }

    fn connect_until(self, number: u32, stop: &AtomicBool) -> Result<u64> {
        let own = self.address(number).into();
        let interval = Duration::from_secs(1) / self.rate.max(1);
        // Sources begin one after the other, not all in one instant.
        thread::sleep(interval * number / u32::from(self.sources.max(1)));
        let mut completed = 0;
        while !stop.load(Ordering::Relaxed) {
            let begun = Instant::now();
            match connected(own, self.service, WAIT).context("a source's own socket failed")? {
                Ok(socket) => {
                    completed += 1;
                    // Closing resets the connection at once, so that neither side remembers it.
                    let at_once = libc::linger { l_onoff: 1, l_linger: 0 };
                    setsockopt(&socket, sockopt::Linger, &at_once).context("a source cannot close")?;
                }
                Err(error @ (Errno::EADDRNOTAVAIL | Errno::ENETUNREACH)) => {
                    return Err(error).context("a source cannot connect");
                }
                // Refused, reset or not answered in time.
                Err(_) => {}
            }
            thread::sleep(interval.saturating_sub(begun.elapsed()));
        }
        Ok(completed)
    }
}

impl Running {
    /// Ends the attack and returns how many handshakes were completed, as the sources saw it.
    ///
    /// # Errors
    /// When a source failed for a reason of its own, such as a missing address.
    pub fn stop(mut self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let mut completed = 0;
        for thread in self.threads.drain(..) {
            let Ok(count) = thread.join() else { bail!("a source's thread panicked") };
            completed += count?;
        }
        Ok(completed)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
