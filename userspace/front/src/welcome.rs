//! A connection from its first byte to its end.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::oneshot,
    time::timeout,
};
use tunica_core::refusal::{HttpAnswer, Refusal, TcpAnswer};
use tunica_onion::circuit::RawCircuit;

use crate::{
    backend::Backends,
    circuits::{self, Circuits, Stay, Welcome},
    http::Http,
    listener::{self, IntroError},
    pulse::{self, Pulse},
    stream::Stream,
    tcp,
};

/// How long a connection is held in the tarpit.
const TARPIT: Duration = Duration::from_secs(10);
/// How long, and how much, of what a refused client still sends is read, so that it gets to read its answer.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 64 * 1024;

/// What streams carry.
pub enum Carrier {
    /// HTTP/1.1.
    Http(Box<Http>),
    /// Anything.
    Tcp {
        /// Where to.
        backends: Arc<Backends>,
        /// For a connection to a backend.
        connect: Duration,
        /// How long nothing may come from either side.
        idle: Duration,
    },
}

/// What a worker needs for a connection.
pub struct Host {
    /// Circuits, shared by the workers.
    pub circuits: Arc<Circuits>,
    /// What streams carry.
    pub carrier: Carrier,
    /// For the PROXY header.
    pub intro: Duration,
}

impl Host {
    /// Serves or refuses one connection.
    pub async fn welcome(self: Arc<Self>, mut stream: Stream) {
        let (number, first) = match listener::introduce(&mut stream, self.intro).await {
            Ok(introduced) => introduced,
            Err(error) => {
                self.circuits.count(match error {
                    IntroError::Slow => Refusal::ProxyTimeout,
                    IntroError::Broken | IntroError::Header(_) | IntroError::Circuit(_) => {
                        Refusal::NotACircuit
                    }
                });
                tracing::debug!(message_id = "stream_unknown", %error, "a stream belongs to no circuit");
                return;
            }
        };
        drop(self.admit(number, stream, first).await);
    }

    /// Serves or refuses one stream of a circuit that is known without a header. It has its place until what was to go out has
    /// gone, see [`Introduced::out`](crate::worker::Introduced::out): beyond the stream there is more that waits for the client.
    pub async fn serve_circuit(
        self: Arc<Self>,
        circuit: RawCircuit,
        stream: Stream,
        out: oneshot::Receiver<()>,
    ) {
        let stay = self.admit(circuit, stream, Bytes::new()).await;
        let cut = async {
            match &stay {
                Some(stay) => stay.cut().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // Nothing is ever said, it only ends.
            _ = out => {}
            _ = cut => {}
        }
    }

    /// The place of whoever was served is returned, and still held.
    async fn admit(&self, number: RawCircuit, stream: Stream, first: Bytes) -> Option<Arc<Stay>> {
        let circuit = self.circuits.circuit(number.number());
        match self.circuits.connect(circuit, Pulse::begin()) {
            Welcome::Serve(stay) => return Some(self.meter(stream, first, stay).await),
            Welcome::Wait(stay) => match stay.turn().await {
                Ok(()) => return Some(self.meter(stream, first, stay).await),
                Err(refusal) => {
                    stay.refused(refusal);
                    drop(stay);
                    self.refuse(stream, refusal, None).await;
                }
            },
            Welcome::Challenge(stay) => return self.challenge(stream, first, stay).await,
            Welcome::Tarpit(stay) => {
                // Whoever is held longest goes first where the tarpit is full.
                if let Ok(refusal) = timeout(TARPIT, stay.cut()).await {
                    stay.refused(refusal);
                }
                stream.set_reset();
            }
            Welcome::Refuse(ruling) => {
                self.refuse(stream, ruling.word, circuits::retry_after(&ruling)).await;
            }
        }
        None
    }

    async fn meter(&self, stream: Stream, first: Bytes, stay: Arc<Stay>) -> Arc<Stay> {
        // Held until its last turn has been counted.
        let counted = Arc::clone(&stay);
        pulse::metered(counted.pulse(), self.serve(stream, first, stay)).await;
        counted
    }

    async fn serve(&self, stream: Stream, first: Bytes, stay: Arc<Stay>) {
        match &self.carrier {
            Carrier::Http(http) => http.serve(stream, first, stay).await,
            Carrier::Tcp { backends, connect, idle } => {
                let Some(number) = backends.choose(stay.hash()) else {
                    return stay.refused(Refusal::BackendDown);
                };
                let asked = Instant::now();
                let mut backend = match backends.connect(number, *connect).await {
                    Ok((_, backend)) => backend,
                    Err(error) if error.kind() == std::io::ErrorKind::TimedOut => {
                        return stay.refused(Refusal::BackendConnectTimeout);
                    }
                    Err(_) => return stay.refused(Refusal::BackendDown),
                };
                stay.answered(asked.elapsed());
                let carried = tcp::carry(&stream, &mut backend, &first, *idle, stay.pulse());
                let refusal = tokio::select! {
                    end = carried => match end {
                        tcp::End::Finished | tcp::End::Broken => return,
                        tcp::End::Idle => Refusal::Idle,
                    },
                    refusal = stay.cut() => {
                        if refusal.tcp().is_reset() {
                            stream.set_reset();
                        }
                        refusal
                    }
                };
                stay.refused(refusal);
            }
        }
    }

    /// Over HTTP each request is asked by itself; over TCP the connection is, before a byte of it goes on.
    async fn challenge(&self, mut stream: Stream, first: Bytes, stay: Arc<Stay>) -> Option<Arc<Stay>> {
        let idle = match &self.carrier {
            Carrier::Http(_) => return Some(self.meter(stream, first, stay).await),
            Carrier::Tcp { idle, .. } => *idle,
        };
        let solved = async {
            let (said, rest) = tcp::handshake::ask(&mut stream, first, &stay, idle).await?;
            stay.settle().await?;
            // Who has gone is found out as soon as something is sent.
            let _ = stream.write_all(said.as_bytes()).await;
            Ok(rest)
        };
        let outcome = tokio::select! {
            outcome = solved => outcome,
            refusal = stay.cut() => Err(refusal),
        };
        match outcome {
            Ok(rest) => Some(self.meter(stream, rest, stay).await),
            Err(refusal) => {
                stay.refused(refusal);
                drop(stay);
                self.refuse(stream, refusal, None).await;
                None
            }
        }
    }

    /// Lets a client know that it is refused, as far as the word says.
    async fn refuse(&self, mut stream: Stream, refusal: Refusal, retry: Option<Duration>) {
        let again = || Some(retry.unwrap_or_else(|| self.circuits.retry_after(refusal)));
        match &self.carrier {
            Carrier::Http(_) => match refusal.http() {
                HttpAnswer::Status(status) => answer(&mut stream, status, None).await,
                HttpAnswer::RetryLater(status) => answer(&mut stream, status, again()).await,
                HttpAnswer::Challenge => answer(&mut stream, 503, again()).await,
                HttpAnswer::Reset | HttpAnswer::Tarpit => stream.set_reset(),
                HttpAnswer::Close | HttpAnswer::Served => {}
            },
            Carrier::Tcp { .. } => match refusal.tcp() {
                TcpAnswer::Reset | TcpAnswer::Tarpit => stream.set_reset(),
                TcpAnswer::Close | TcpAnswer::Challenge | TcpAnswer::Served => {}
            },
        }
    }
}

/// Answers a request that was not read, or not to its end.
pub(crate) async fn answer(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    status: u16,
    retry: Option<Duration>,
) {
    let reason = hyper::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
    let mut text = format!("HTTP/1.1 {status} {}\r\n", reason.unwrap_or("Refused"));
    if let Some(retry) = retry {
        text.push_str(&format!("Retry-After: {}\r\n", circuits::whole_seconds(retry)));
    }
    text.push_str("Content-Length: 0\r\nConnection: close\r\n\r\n");
    let polite = async {
        stream.write_all(text.as_bytes()).await?;
        stream.shutdown().await?;
        // What is unread when the socket closes makes a reset of the end, and the answer may be lost with it.
        let (mut unread, mut bytes) = (vec![0; 4_096], 0);
        while bytes < LINGER_BYTES {
            match stream.read(&mut unread).await? {
                0 => break,
                read => bytes += read,
            }
        }
        Ok::<_, std::io::Error>(())
    };
    // Who has gone needs no answer.
    let _ = timeout(LINGER, polite).await;
}
