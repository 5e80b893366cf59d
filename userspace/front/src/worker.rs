//! A worker: one thread that takes connections and carries each to its end.

use std::{
    io,
    os::fd::OwnedFd,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    task::{LocalSet, spawn_local},
    time::sleep,
};
use tunica_core::refusal::Refusal;

use crate::{listener::Listener, welcome::Host};

/// How long to wait after a connection could not be taken, most likely because no descriptor is free.
const PAUSE: Duration = Duration::from_millis(50);

/// Connections that are held by all workers, whatever is done with them.
#[derive(Debug)]
pub struct Room {
    held: AtomicUsize,
    most: usize,
}

impl Room {
    /// Room for so many.
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { held: AtomicUsize::new(0), most })
    }

    fn enter(self: &Arc<Self>) -> Option<Guest> {
        let entered = Guest(Arc::clone(self));
        (self.held.fetch_add(1, Relaxed) < self.most).then_some(entered)
    }
}

struct Guest(Arc<Room>);

impl Drop for Guest {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Relaxed);
    }
}

/// Serves on this thread until [`crate::circuits::Circuits::drain`], and then until no connection is left, or until
/// `patience` is over.
///
/// # Errors
/// If a socket cannot be listened on.
pub fn run(sockets: &[OwnedFd], host: Host, room: &Arc<Room>, patience: Duration) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = LocalSet::new();
    local.block_on(&runtime, async {
        let host = Rc::new(host);
        for socket in sockets {
            let listener = Listener::new(socket)?;
            spawn_local(take(listener, Rc::clone(&host), Arc::clone(room)));
        }
        host.circuits.drained().await;
        let ends = tokio::time::Instant::now() + patience;
        while host.circuits.open() > 0 && tokio::time::Instant::now() < ends {
            sleep(PAUSE).await;
        }
        host.circuits.end_everything();
        // For what was just ended to be ended.
        sleep(PAUSE).await;
        Ok(())
    })
}

async fn take(listener: Listener, host: Rc<Host>, room: Arc<Room>) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = host.circuits.drained() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(stream) => match room.enter() {
                Some(guest) => {
                    let host = Rc::clone(&host);
                    spawn_local(async move {
                        host.welcome(stream).await;
                        drop(guest);
                    });
                }
                None => {
                    host.circuits.count(Refusal::OutOfResources);
                    stream.set_reset();
                }
            },
            Err(error) => {
                host.circuits.count(Refusal::OutOfResources);
                tracing::warn!(message_id = "accept_failed", %error, "a connection could not be taken");
                sleep(PAUSE).await;
            }
        }
    }
}
