//! A worker: one thread that takes connections and carries each to its end.

use std::{
    io,
    os::{fd::OwnedFd, unix::net::UnixStream as StdUnixStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    net::UnixStream,
    sync::{mpsc, oneshot},
    task::spawn,
    time::{Instant, sleep},
};
use tunica_core::refusal::Refusal;
use tunica_onion::circuit::RawCircuit;

use crate::{listener::Listener, roll_call::Member, stream::Stream, welcome::Host};

/// How long to wait after a connection could not be taken, most likely because no descriptor is free.
const PAUSE: Duration = Duration::from_millis(50);
/// How long connections that are to end may take to say so.
const FAREWELL: Duration = Duration::from_secs(2);

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

/// A stream of a service that this process hosts, with the circuit that it came by.
#[derive(Debug)]
pub struct Introduced {
    /// Its circuit.
    pub circuit: RawCircuit,
    /// The end of it that is to be served.
    pub stream: StdUnixStream,
    /// Comes to its end once all that was to go out has gone to the client, or cannot. Whoever drops it gives up what has not.
    pub out: oneshot::Receiver<()>,
}

/// Where streams come from.
#[derive(Debug)]
pub enum Source<'s> {
    /// From another process over these sockets, each with a header that names its circuit.
    Sockets(&'s [OwnedFd]),
    /// From this process.
    Within(mpsc::Receiver<Introduced>),
}

struct Guest(Arc<Room>);

impl Drop for Guest {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Relaxed);
    }
}

/// Serves on this thread until [`crate::circuits::Circuits::drain`], and then until no connection is left, or until
/// `patience` is over. Answers as `member` from when it listens on.
///
/// # Errors
/// If a socket cannot be listened on.
pub fn run(
    source: Source<'_>,
    host: Host,
    room: &Arc<Room>,
    member: Member,
    patience: Duration,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let host = Arc::new(host);
        match source {
            Source::Sockets(sockets) => {
                for socket in sockets {
                    let listener = Listener::new(socket)?;
                    spawn(take(listener, Arc::clone(&host), Arc::clone(room)));
                }
            }
            Source::Within(streams) => {
                spawn(take_within(streams, Arc::clone(&host), Arc::clone(room)));
            }
        }
        // It takes its turns with the streams, on this thread.
        spawn(member.answer());
        host.circuits.drained().await;
        emptied(&host, room, patience).await;
        host.circuits.end_everything();
        emptied(&host, room, FAREWELL).await;
        Ok(())
    })
}

/// Waits until no connection is left, or until `patience` is over. One that was taken and has not said its circuit yet is a
/// guest of the room alone, one that was switched to another protocol is known to the circuits alone.
async fn emptied(host: &Host, room: &Room, patience: Duration) {
    let ends = Instant::now() + patience;
    while host.circuits.open() + room.held.load(Relaxed) > 0 && Instant::now() < ends {
        sleep(PAUSE).await;
    }
}

async fn take(listener: Listener, host: Arc<Host>, room: Arc<Room>) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = host.circuits.drained() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(stream) => match room.enter() {
                Some(guest) => {
                    let host = Arc::clone(&host);
                    spawn(async move {
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

async fn take_within(mut streams: mpsc::Receiver<Introduced>, host: Arc<Host>, room: Arc<Room>) {
    loop {
        let introduced = tokio::select! {
            biased;
            () = host.circuits.drained() => return,
            introduced = streams.recv() => introduced,
        };
        let Some(Introduced { circuit, stream, out }) = introduced else { return };
        let taken = stream.set_nonblocking(true).and_then(|()| UnixStream::from_std(stream));
        match (taken, room.enter()) {
            (Ok(stream), Some(guest)) => {
                let host = Arc::clone(&host);
                spawn(async move {
                    host.serve_circuit(circuit, Stream::Unix(stream), out).await;
                    drop(guest);
                });
            }
            (Ok(_) | Err(_), None) | (Err(_), Some(_)) => host.circuits.count(Refusal::OutOfResources),
        }
    }
}
