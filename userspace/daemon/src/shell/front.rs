//! The socket that `tunica-front` speaks to, beside the control socket.
//!
//! One front at a time: a new one, as at an upgrade, takes the place of the one before. What it sends is believed only from
//! root, the daemon's own user and the account of `ingress.user`: others who may use the control socket may read, not pose
//! as the front.

use std::{io, path::PathBuf, time::Duration};

use nix::unistd::geteuid;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
    sync::{mpsc, watch},
    time::{Instant, interval, sleep, timeout, timeout_at},
};
use tunica_api::{
    front::{Digest, MAX_DIGEST_BYTES, Orders},
    wire,
};
use tunica_config::Config;

use super::control_socket::{self, BindError, ControlSocket};

/// How long the front may be silent; it sends each second.
pub const SILENCE: Duration = Duration::from_secs(10);
/// How often the front hears its orders again, so that it knows that the daemon lives: several times in
/// [`tunica_core::load_level::LEASE`].
const REPEAT: Duration = Duration::from_secs(10);
/// How long the front may take to read its orders.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait after a connection could not be taken.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the shell tells the event loop.
#[derive(Debug)]
pub enum Heard {
    /// A front has connected; its process, where the kernel says it.
    Here {
        /// Its number.
        pid: Option<i32>,
    },
    /// How the ingress does.
    Digest(Box<Digest>),
    /// The front has gone, or does not speak as it should.
    Gone,
}

/// A socket that does not answer yet, and the account that is believed.
#[derive(Debug)]
pub struct FrontSocket {
    socket: ControlSocket,
    user: String,
}

/// Listens beside the control socket, see [`Config::front_socket`]. Must be called on a tokio runtime.
///
/// # Errors
/// [`BindError`].
pub fn bind(config: &Config) -> Result<FrontSocket, BindError> {
    let path: PathBuf = config.front_socket();
    let socket = control_socket::listen(&path, &config.control.group)?;
    Ok(FrontSocket { socket, user: config.ingress.user.clone() })
}

/// Serves until it is dropped.
pub async fn serve(socket: FrontSocket, heard: mpsc::Sender<Heard>, orders: watch::Receiver<Orders>) {
    let mut current: Option<tokio::task::JoinHandle<()>> = None;
    loop {
        match socket.socket.accept().await {
            Ok(stream) if is_believed(&stream, &socket.user) => {
                if let Some(before) = current.take() {
                    before.abort();
                }
                let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
                let _ = heard.send(Heard::Here { pid }).await;
                let (heard, orders) = (heard.clone(), orders.clone());
                current = Some(tokio::spawn(async move {
                    if let Err(error) = converse(stream, &heard, orders).await {
                        tracing::warn!(message_id = "front_lost", %error, "the ingress does not speak any more");
                    }
                    // The event loop ends after this task.
                    let _ = heard.send(Heard::Gone).await;
                }));
            }
            Ok(_) => tracing::warn!(
                message_id = "front_refused",
                "somebody else than ingress.user ({}) spoke to the daemon as the ingress; nothing was read",
                socket.user
            ),
            Err(error) => {
                tracing::warn!(message_id = "control_failed", %error, "a control connection could not be taken");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn is_believed(stream: &UnixStream, user: &str) -> bool {
    let Ok(peer) = stream.peer_cred().map(|peer| peer.uid()) else { return false };
    let named = || super::host::uid(user).ok().flatten() == Some(peer);
    peer == 0 || peer == geteuid().as_raw() || named()
}

async fn converse(
    stream: UnixStream,
    heard: &mpsc::Sender<Heard>,
    mut orders: watch::Receiver<Orders>,
) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    // The first are sent at once, whatever was sent to a front before.
    orders.mark_changed();
    let mut repeat = interval(REPEAT);
    let mut silent_at = Instant::now() + SILENCE;
    let mut line = Vec::new();
    loop {
        tokio::select! {
            changed = orders.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                send(&mut write, &mut orders).await?;
                repeat.reset();
            }
            _ = repeat.tick() => send(&mut write, &mut orders).await?,
            // What was read of a line stays in `line` if an order comes between.
            outcome = timeout_at(silent_at, next(&mut read, &mut line)) => {
                if !outcome.map_err(|_| io::Error::other(format!("it said nothing for {} s", SILENCE.as_secs())))?? {
                    return Ok(());
                }
                let digest = wire::read_message(&line).map_err(io::Error::other)?;
                line.clear();
                silent_at = Instant::now() + SILENCE;
                if heard.send(Heard::Digest(Box::new(digest))).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
}

async fn send(
    write: &mut (impl AsyncWriteExt + Unpin),
    orders: &mut watch::Receiver<Orders>,
) -> io::Result<()> {
    let message = wire::write_message(&*orders.borrow_and_update()).map_err(io::Error::other)?;
    timeout(WRITE_TIMEOUT, write.write_all(&message)).await.map_err(|_| io::ErrorKind::TimedOut)?
}

/// Reads to the end of a line; false: there is none.
async fn next(read: &mut (impl AsyncBufReadExt + Unpin), line: &mut Vec<u8>) -> io::Result<bool> {
    let room = (MAX_DIGEST_BYTES + 1).saturating_sub(line.len()) as u64;
    read.take(room).read_until(b'\n', line).await?;
    if line.len() > MAX_DIGEST_BYTES {
        return Err(io::Error::other(format!("a message has at most {MAX_DIGEST_BYTES} bytes")));
    }
    Ok(line.ends_with(b"\n"))
}
