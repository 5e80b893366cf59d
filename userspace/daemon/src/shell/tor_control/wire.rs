//! One connection to a control port: commands out, answers back, events in between.

use std::{fmt, io, time::Duration};

use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    time::{Instant, timeout},
};
use tunica_onion::control_codec::{
    Command, CommandError, DecodeError, Decoder, Limits, Message, ParseError, Refused,
};

use super::{ControlAddress, LoginError, Place};
use crate::metrics::TorResponses;

/// Bytes that are read at once.
const READ_BYTES: usize = 16 * 1024;

/// Why tor is not connected. No message shows a secret, an address of the network, or what tor said.
#[derive(Debug, Error)]
pub enum LinkError {
    /// Nobody listens.
    #[error(
        "tor's control port at {address} cannot be connected to ({source}): circuits are neither watched nor closed; is tor \
         running, with this ControlPort or ControlSocket, and may tunicad open it?"
    )]
    Connect {
        /// Where.
        address: ControlAddress,
        /// The system's word.
        #[source]
        source: io::Error,
    },
    /// Tor was not quick enough.
    #[error(
        "tor did not answer {command} within {after:?}: its control connection is given up, and circuits are neither watched \
         nor closed; is tor stopped, or the host overloaded?"
    )]
    Timeout {
        /// What was asked.
        command: &'static str,
        /// How long it had.
        after: Duration,
    },
    /// Tor closed the connection.
    #[error("tor closed its control connection: circuits are neither watched nor closed; did tor end?")]
    Ended,
    /// The connection broke.
    #[error("tor's control connection broke ({0}): circuits are neither watched nor closed; did tor end?")]
    Broken(#[source] io::Error),
    /// What came is not the protocol.
    #[error("the message at byte {byte} from tor: {source} Circuits are neither watched nor closed.")]
    NotTheProtocol {
        /// Where in the connection the message with the fault begins, from 1.
        byte: u64,
        /// What is wrong.
        #[source]
        source: DecodeError,
    },
    /// An answer came that nobody asked for.
    #[error(
        "tor sent an answer that nobody asked for: its control connection is given up, and circuits are neither watched nor \
         closed; is it tor that listens there?"
    )]
    Unasked,
    /// The answer does not say what it must.
    #[error("the answer to {command}: {source} Circuits are neither watched nor closed.")]
    Unreadable {
        /// What was asked.
        command: &'static str,
        /// What is wrong.
        #[source]
        source: ParseError,
    },
    /// Tor refuses.
    #[error("{command}: {source}: circuits are neither watched nor closed; is this tor 0.4.8 or later?")]
    Refused {
        /// What was asked.
        command: &'static str,
        /// How it refused.
        #[source]
        source: Refused,
    },
    /// An argument of ours that cannot be sent.
    #[error("{0}; circuits are neither watched nor closed")]
    Unsendable(#[from] CommandError),
    /// The login failed.
    #[error("the login to tor failed, so circuits are neither watched nor closed: {0}")]
    Login(#[from] LoginError),
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// See the module.
pub(super) struct Wire {
    stream: Box<dyn Stream>,
    decoder: Decoder,
    /// Bytes as they were read; those from `at` to `end` are not decoded.
    buffer: Vec<u8>,
    at: usize,
    end: usize,
    /// Bytes decoded since the beginning, and how many of them were whole messages.
    taken: u64,
    whole: u64,
    timeout: Duration,
    peer: Option<u32>,
    responses: Option<TorResponses>,
}

impl Wire {
    /// Connects. How long each command takes from then on is counted in `responses`.
    ///
    /// # Errors
    /// If nobody listens, or nothing comes of it within `patience`, which each command has from then on.
    pub(super) async fn connect(
        address: &ControlAddress,
        patience: Duration,
        responses: Option<TorResponses>,
    ) -> Result<Self, LinkError> {
        let connected = async {
            Ok::<(Box<dyn Stream>, _), io::Error>(match &address.0 {
                Place::Tcp(address) => (Box::new(TcpStream::connect(address).await?), None),
                Place::Unix(path) => {
                    let stream = UnixStream::connect(path).await?;
                    let peer = stream.peer_cred().ok().and_then(|peer| peer.pid());
                    (Box::new(stream), peer)
                }
            })
        };
        let connected = timeout(patience, connected).await;
        let connected =
            connected.map_err(|_| LinkError::Timeout { command: "the connection", after: patience })?;
        let (stream, peer) =
            connected.map_err(|source| LinkError::Connect { address: address.clone(), source })?;
        Ok(Self {
            stream,
            decoder: Decoder::new(Limits::default()),
            buffer: vec![0; READ_BYTES],
            at: 0,
            end: 0,
            taken: 0,
            whole: 0,
            timeout: patience,
            peer: peer.and_then(|pid| u32::try_from(pid).ok()),
            responses,
        })
    }

    /// The pid of whoever listens on the Unix socket, as this process would name it (unix(7), `SO_PEERCRED`).
    pub(super) const fn peer(&self) -> Option<u32> {
        self.peer
    }

    /// The next message. Nothing is lost if the wait is given up.
    ///
    /// # Errors
    /// If none can come any more.
    pub(super) async fn message(&mut self) -> Result<Message, LinkError> {
        loop {
            let unread = self.buffer.get(self.at..self.end).unwrap_or_default();
            let mut rest = unread;
            let decoded = self.decoder.decode(&mut rest);
            let taken = unread.len() - rest.len();
            self.at += taken;
            self.taken += taken as u64;
            let byte = self.whole + 1;
            if let Some(message) = decoded.map_err(|source| LinkError::NotTheProtocol { byte, source })? {
                self.whole = self.taken;
                return Ok(message);
            }
            let read = self.stream.read(&mut self.buffer).await.map_err(LinkError::Broken)?;
            if read == 0 {
                return Err(LinkError::Ended);
            }
            (self.at, self.end) = (0, read);
        }
    }

    /// Sends a command and waits for its answer, which may be a refusal; events that come before it go to `on_event`.
    ///
    /// # Errors
    /// If there is no answer. The connection cannot be used any more, since a late answer would be taken for another's.
    pub(super) async fn ask(
        &mut self,
        command: &Command<'_>,
        mut on_event: impl FnMut(&Message),
    ) -> Result<Message, LinkError> {
        let bytes = command.encode()?;
        let after = self.timeout;
        let exchange = async {
            self.stream.write_all(&bytes).await.map_err(LinkError::Broken)?;
            loop {
                let message = self.message().await?;
                if !message.is_event() {
                    return Ok(message);
                }
                on_event(&message);
            }
        };
        let began = Instant::now();
        let answered = timeout(after, exchange).await;
        // A connection that broke is no word about how tor answers.
        if !matches!(answered, Ok(Err(_)))
            && let Some(responses) = &self.responses
        {
            responses.observe(began.elapsed());
        }
        answered.map_err(|_| LinkError::Timeout { command: name_of(command), after })?
    }

    /// As [`Self::ask`], where a refusal is of no use.
    ///
    /// # Errors
    /// As [`Self::ask`], and if tor refuses.
    pub(super) async fn demand(
        &mut self,
        command: &Command<'_>,
        on_event: impl FnMut(&Message),
    ) -> Result<Message, LinkError> {
        let message = self.ask(command, on_event).await?;
        let accepted = message.accepted().map(drop);
        accepted.map_err(|source| LinkError::Refused { command: name_of(command), source })?;
        Ok(message)
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Wire({:?})", self.decoder)
    }
}

/// What to do with events before any is subscribed to.
pub(super) const fn ignore(_: &Message) {}

/// The command's first word.
const fn name_of(command: &Command<'_>) -> &'static str {
    match command {
        Command::ProtocolInfo => "PROTOCOLINFO",
        Command::AuthChallenge { .. } => "AUTHCHALLENGE",
        Command::Authenticate(_) => "AUTHENTICATE",
        Command::SetEvents(_) => "SETEVENTS",
        Command::GetInfo(_) => "GETINFO",
        Command::GetConf(_) => "GETCONF",
        Command::CloseCircuit { .. } => "CLOSECIRCUIT",
        Command::Signal(_) => "SIGNAL",
        Command::HsFetch { .. } => "HSFETCH",
        Command::HsPost { .. } => "HSPOST",
        Command::Quit => "QUIT",
    }
}
