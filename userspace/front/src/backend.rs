//! The services behind the ingress: which there are, which are well, and connections to them.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use hyper::{Uri, rt};
use hyper_util::{
    client::legacy::connect::{Connected, Connection},
    rt::TokioIo,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    task::JoinSet,
    time::{sleep, timeout},
};

use tunica_config::Place;

use crate::stream::Stream;

/// Health checks in a row that say otherwise before a backend counts as ill, or as well again: one that answers now and then
/// gets no visitors between.
const CHECKS_TO_CHANGE: u32 = 2;
/// Longest hint to visitors of a service that is down: the one of the configuration for HAProxy.
const MOST_AGAIN: Duration = Duration::from_secs(60);

/// When visitors may come again while no backend is well, with a health check each `every`: before that, one that answers again
/// would not count as well.
pub fn again(every: Duration) -> Duration {
    every.saturating_mul(CHECKS_TO_CHANGE).min(MOST_AGAIN)
}

/// A new connection to a backend.
///
/// # Errors
/// The kernel's, or `TimedOut`.
pub async fn connect(place: &Place, patience: Duration) -> io::Result<Stream> {
    let connecting = async {
        Ok(match place {
            Place::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                crate::listener::bound(&stream)?;
                Stream::Tcp(stream)
            }
            Place::Unix(path) => Stream::Unix(UnixStream::connect(path).await?),
        })
    };
    timeout(patience, connecting).await.map_err(|_| io::ErrorKind::TimedOut)?
}

/// All backends, shared by the workers.
#[derive(Debug)]
pub struct Backends {
    each: Vec<Backend>,
    next: AtomicUsize,
    is_sticky: bool,
}

#[derive(Debug)]
struct Backend {
    place: Place,
    is_well: AtomicBool,
}

impl Backends {
    /// All count as well until a check says otherwise. `is_sticky`: a circuit keeps its backend while that is well.
    pub fn new(places: impl IntoIterator<Item = Place>, is_sticky: bool) -> Arc<Self> {
        let well = |place| Backend { place, is_well: AtomicBool::new(true) };
        Arc::new(Self { each: places.into_iter().map(well).collect(), next: AtomicUsize::new(0), is_sticky })
    }

    /// The backend for a circuit of this hash, by number; `None` if none is well.
    pub fn choose(&self, circuit: u64) -> Option<usize> {
        let count = self.each.len();
        let first = if self.is_sticky {
            usize::try_from(circuit % u64::try_from(count).ok()?).ok()?
        } else {
            self.next.fetch_add(1, Relaxed)
        };
        self.from(first).map(|(number, _)| number).next()
    }

    /// A new connection to the backend of this number; where that takes none, to one that does, of those that are well.
    /// Returns also whose it is.
    ///
    /// # Errors
    /// The last that was tried: the kernel's, or `TimedOut`, after which no other is tried.
    pub async fn connect(&self, number: usize, patience: Duration) -> io::Result<(usize, Stream)> {
        let mut last = io::ErrorKind::NotFound.into();
        for (number, backend) in self.from(number) {
            match connect(&backend.place, patience).await {
                Ok(stream) => return Ok((number, stream)),
                Err(error) if error.kind() == io::ErrorKind::TimedOut => return Err(error),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Those that are well, from this number on.
    fn from(&self, first: usize) -> impl Iterator<Item = (usize, &Backend)> {
        let numbers = (0..self.each.len()).map(move |step| first.wrapping_add(step) % self.each.len());
        numbers.filter_map(|number| {
            let backend = self.each.get(number)?;
            backend.is_well.load(Relaxed).then_some((number, backend))
        })
    }

    /// Which are well, in the order of the configuration.
    pub fn health(&self) -> Vec<(&Place, bool)> {
        self.each.iter().map(|backend| (&backend.place, backend.is_well.load(Relaxed))).collect()
    }

    /// Asks every backend for `path` again and again, or, without one, only whether it takes connections; each by itself, so
    /// that one that is silent delays no other's. Never returns.
    pub async fn watch(self: Arc<Self>, path: Option<String>, every: Duration, patience: Duration) {
        let mut watches = JoinSet::new();
        for number in 0..self.each.len() {
            let (this, path) = (Arc::clone(&self), path.clone());
            watches.spawn(async move {
                if let Some(backend) = this.each.get(number) {
                    backend.watch(path.as_deref(), every, patience).await;
                }
            });
        }
        watches.join_all().await;
    }
}

impl Backend {
    async fn watch(&self, path: Option<&str>, every: Duration, patience: Duration) {
        let mut otherwise = 0;
        loop {
            let outcome = timeout(patience, check(&self.place, path, patience)).await;
            let is_well = matches!(outcome, Ok(Ok(true)));
            otherwise = if is_well == self.is_well.load(Relaxed) { 0 } else { otherwise + 1 };
            if otherwise == CHECKS_TO_CHANGE {
                otherwise = 0;
                self.is_well.store(is_well, Relaxed);
                if is_well {
                    tracing::info!(message_id = "backend_up", backend = %self.place, "a backend is back");
                } else {
                    tracing::error!(
                        message_id = "backend_down",
                        backend = %self.place,
                        "a backend does not answer its health check; nothing is sent there"
                    );
                }
            }
            sleep(every).await;
        }
    }
}

/// Whether the backend answers with a status from 200 to 399.
async fn check(place: &Place, path: Option<&str>, patience: Duration) -> io::Result<bool> {
    let mut stream = connect(place, patience).await?;
    let Some(path) = path else { return Ok(true) };
    let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    // "HTTP/1.1 200"
    let mut status = [0; 12];
    stream.read_exact(&mut status).await?;
    Ok(status.starts_with(b"HTTP/1.") && matches!(status.get(8..10), Some(b" 2" | b" 3")))
}

/// Makes connections for the HTTP client; the authority of a URI is a backend's number.
#[derive(Clone, Debug)]
pub struct Connector {
    /// The backends.
    pub backends: Arc<Backends>,
    /// How long a connection may take.
    pub patience: Duration,
}

/// A connection of the HTTP client.
#[derive(Debug)]
pub struct Link {
    stream: TokioIo<Stream>,
    /// Whether it leads to another backend than the one that was asked for, which takes no connections.
    is_substitute: bool,
}

impl tower_service::Service<Uri> for Connector {
    type Response = Link;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Link>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let number = uri.host().and_then(|host| host.strip_prefix('b')?.parse().ok());
            let number = number.ok_or(io::ErrorKind::NotFound)?;
            let (whose, stream) = this.backends.connect(number, this.patience).await?;
            Ok(Link { stream: TokioIo::new(stream), is_substitute: whose != number })
        })
    }
}

impl Connection for Link {
    fn connected(&self) -> Connected {
        let connected = Connected::new();
        if self.is_substitute {
            // For this one request: others who ask for that backend are better asked again.
            connected.poison();
        }
        connected
    }
}

impl rt::Read for Link {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(context, buffer)
    }
}

impl rt::Write for Link {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three(is_sticky: bool) -> Arc<Backends> {
        let places = ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"];
        Backends::new(places.map(|place| Place::Tcp(place.parse().unwrap())), is_sticky)
    }

    #[test]
    fn backends_take_turns_and_those_that_are_ill_are_left_out() {
        let backends = three(false);
        let chosen: Vec<_> = (0..6).filter_map(|_| backends.choose(77)).collect();
        assert_eq!(chosen, [0, 1, 2, 0, 1, 2]);
        backends.each[1].is_well.store(false, Relaxed);
        assert!((0..6).filter_map(|_| backends.choose(77)).all(|number| number != 1));
        backends.each.iter().for_each(|backend| backend.is_well.store(false, Relaxed));
        assert_eq!(backends.choose(77), None);
    }

    #[test]
    fn visitors_come_again_when_a_backend_can_count_as_well() {
        let again = |every| again(Duration::from_secs(every)).as_secs();
        assert_eq!([1, 5, 30, 3_600].map(again), [2, 10, 60, 60]);
    }

    #[test]
    fn a_circuit_keeps_its_backend_while_that_is_well() {
        let backends = three(true);
        assert!((0..6).all(|_| backends.choose(77) == Some(2)));
        backends.each[2].is_well.store(false, Relaxed);
        assert!((0..6).all(|_| backends.choose(77) == Some(0)));
        assert_eq!(backends.choose(78), Some(0));
    }
}
