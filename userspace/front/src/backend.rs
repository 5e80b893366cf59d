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
    time::{sleep, timeout},
};

use tunica_config::Place;

use crate::stream::Stream;

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
        (0..count).map(|step| first.wrapping_add(step) % count).find(|number| self.is_well(*number))
    }

    /// Where the backend of this number listens.
    pub fn place(&self, number: usize) -> Option<&Place> {
        Some(&self.each.get(number)?.place)
    }

    fn is_well(&self, number: usize) -> bool {
        self.each.get(number).is_some_and(|backend| backend.is_well.load(Relaxed))
    }

    /// Which are well, in the order of the configuration.
    pub fn health(&self) -> Vec<(&Place, bool)> {
        self.each.iter().map(|backend| (&backend.place, backend.is_well.load(Relaxed))).collect()
    }

    /// Asks every backend for `path` again and again, or, without one, only whether it takes connections. Never returns.
    pub async fn watch(self: Arc<Self>, path: Option<String>, every: Duration, patience: Duration) {
        loop {
            for backend in &self.each {
                let outcome = timeout(patience, check(&backend.place, path.as_deref(), patience)).await;
                let is_well = matches!(outcome, Ok(Ok(true)));
                if backend.is_well.swap(is_well, Relaxed) != is_well {
                    if is_well {
                        tracing::info!(message_id = "backend_up", backend = %backend.place, "a backend is back");
                    } else {
                        tracing::error!(
                            message_id = "backend_down",
                            backend = %backend.place,
                            "a backend does not answer its health check; nothing is sent there"
                        );
                    }
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
pub struct Link(TokioIo<Stream>);

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
            let place = number.and_then(|number| this.backends.place(number));
            let place = place.ok_or(io::ErrorKind::NotFound)?;
            Ok(Link(TokioIo::new(connect(place, this.patience).await?)))
        })
    }
}

impl Connection for Link {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl rt::Read for Link {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_read(context, buffer)
    }
}

impl rt::Write for Link {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_shutdown(context)
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
    fn a_circuit_keeps_its_backend_while_that_is_well() {
        let backends = three(true);
        assert!((0..6).all(|_| backends.choose(77) == Some(2)));
        backends.each[2].is_well.store(false, Relaxed);
        assert!((0..6).all(|_| backends.choose(77) == Some(0)));
        assert_eq!(backends.choose(78), Some(0));
    }
}
