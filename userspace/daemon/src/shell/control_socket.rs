//! The Unix socket that `tunica` speaks to: one request line and one answer line a connection.
//!
//! Root and the daemon's own user may ask for everything; whoever else the socket's permissions let in may read,
//! and report: which accounts are believed is not decided here.

use std::{
    fs, io,
    os::{
        fd::AsRawFd,
        unix::{
            fs::{FileTypeExt, MetadataExt, PermissionsExt, chown},
            net::UnixListener as StdListener,
        },
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::{
    sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr},
    unistd::{Group, geteuid},
};
use thiserror::Error;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::{Semaphore, mpsc, oneshot},
    time::{sleep, timeout},
};
use tracing::{Instrument, Span};
use tunica_api::{
    request::Request,
    view::{Answer, Refused, RefusedCode},
    wire::{self, MAX_ANSWER_BYTES, MAX_REQUEST_BYTES},
};
use tunica_config::Control;
use tunica_core::reports::Reporter;

use crate::{directory, metrics::ControlRequests, telemetry};

/// Most connections of root and the daemon's user at once; more of them wait in the kernel's queue.
const MOST_CONNECTIONS: usize = 64;
/// Most connections of everybody else that are listened to at once, so that those who only read cannot keep out those
/// who act.
const MOST_GUESTS: usize = 8;
/// Most connections of everybody else that wait for their turn; more are refused.
const MOST_WAITING: usize = 120;
/// How long a client may take to send its line.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the event loop may take for an answer.
const LOOP_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take to read the answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long to wait after a connection could not be taken, most likely because no descriptor is free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A request on its way to the event loop.
#[derive(Debug)]
pub struct ControlRequest {
    /// What is asked. The caller may ask it.
    pub request: Request,
    /// Who asks.
    pub caller: Reporter,
    /// Takes the answer. It is gone if the loop took too long.
    pub reply: oneshot::Sender<Answer>,
    /// To be entered while the request is carried out, so that its log lines share one `event_id`.
    pub span: Span,
}

/// Where the event loop takes requests from.
#[derive(Debug)]
pub struct ControlQueues {
    /// Requests that change something, which are root's and the daemon's user's, and come before everything that only
    /// asks.
    pub changes: mpsc::Receiver<ControlRequest>,
    /// Requests that everybody may make whom the socket's permissions let in: those that change nothing, and reports.
    pub reads: mpsc::Receiver<ControlRequest>,
}

/// Where [`serve`] puts requests.
#[derive(Clone, Debug)]
pub struct ControlSenders {
    changes: mpsc::Sender<ControlRequest>,
    reads: mpsc::Sender<ControlRequest>,
}

/// Both ends of the queues between the socket and the event loop.
pub fn queues() -> (ControlSenders, ControlQueues) {
    let (changes, changes_end) = mpsc::channel(MOST_CONNECTIONS);
    let (reads, reads_end) = mpsc::channel(MOST_CONNECTIONS);
    (ControlSenders { changes, reads }, ControlQueues { changes: changes_end, reads: reads_end })
}

impl ControlSenders {
    async fn send(&self, request: ControlRequest) -> Option<()> {
        let queue = if is_open(&request.request) { &self.reads } else { &self.changes };
        queue.send(request).await.ok()
    }
}

/// Why there is no control socket.
#[derive(Debug, Error)]
pub enum BindError {
    /// The directory is missing or closed to the daemon.
    #[error(
        "the directory {} of the control socket cannot be used ({source}): `tunica` could not reach the daemon; make \
         it with `install -d -m 0750 -g tunica {}`, or name another path for socket under [control]",
        directory.display(), directory.display()
    )]
    Directory {
        /// The directory.
        directory: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Another daemon listens there.
    #[error(
        "another tunicad listens on {}: two would undo each other's work; stop that one with `systemctl stop \
         tunicad`, or name another path for socket under [control]",
        socket.display()
    )]
    InUse {
        /// The socket.
        socket: PathBuf,
    },
    /// Something else has that name.
    #[error(
        "{} exists and is no socket: it is left alone, and `tunica` could not reach the daemon; move it away, or \
         name another path for socket under [control]",
        socket.display()
    )]
    NotASocket {
        /// The path.
        socket: PathBuf,
    },
    /// The socket cannot be made.
    #[error(
        "cannot {doing} the control socket {} ({source}): `tunica` could not reach the daemon; see to the \
         permissions of its directory",
        socket.display()
    )]
    Socket {
        /// What was tried.
        doing: &'static str,
        /// The socket.
        socket: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A listening socket that does not answer yet. Its file goes when it is dropped.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    // After the listener, so that nobody connects to a file whose socket is closed.
    _file: SocketFile,
}

/// The socket's file, removed when dropped if it is still the same one.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity_of(&self.path).is_ok_and(|identity| identity == self.identity) {
            // A file that stays is found to be stale by the next daemon.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity_of(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Listens on the configured path, in place of a socket on which nobody listens any more. Must be called on a tokio
/// runtime.
///
/// Members of the configured group may connect if the file can be given to that group; else only the daemon's user
/// may, and a line in the log says so.
///
/// # Errors
/// [`BindError`]; what had that name before is then as it was.
pub fn bind(control: &Control) -> Result<ControlSocket, BindError> {
    listen(&control.socket, &control.group)
}

/// [`bind`], on another path.
///
/// # Errors
/// [`BindError`].
pub(super) fn listen(path: &Path, group: &str) -> Result<ControlSocket, BindError> {
    let socket = || path.to_owned();
    let failed =
        |doing| move |source: io::Error| BindError::Socket { doing, socket: path.to_owned(), source };
    let directory = directory::of(path);
    let _claim = directory::claim(directory).map_err(|source| {
        if source.kind() == io::ErrorKind::WouldBlock {
            BindError::InUse { socket: socket() }
        } else {
            BindError::Directory { directory: directory.to_owned(), source }
        }
    })?;
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("look at")(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(BindError::NotASocket { socket: socket() });
        }
        Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => return Err(BindError::InUse { socket: socket() }),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(path).map_err(failed("remove the stale"))?;
            }
            Err(error) => return Err(failed("look who listens on")(error)),
        },
    }
    let listener = bind_closed(path).map_err(failed("make"))?;
    let file = SocketFile { path: socket(), identity: identity_of(path).map_err(failed("look at"))? };
    if let Err(reason) = open_to_group(path, group) {
        tracing::warn!(
            message_id = "control_socket_closed_to_group",
            "only root and the daemon's user may use the control socket: {reason}; make the group with `groupadd \
             --system {group}`, run tunicad with it, or name another group under [control]"
        );
    }
    let listener = UnixListener::from_std(listener).map_err(failed("listen on"))?;
    Ok(ControlSocket { listener, _file: file })
}

impl ControlSocket {
    /// The next connection.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) async fn accept(&self) -> io::Result<UnixStream> {
        Ok(self.listener.accept().await?.0)
    }
}

/// Binds so that from its first moment only the daemon's user may connect.
fn bind_closed(path: &Path) -> io::Result<StdListener> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = nix::sys::socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    // The file gets the mode of the socket's own inode, less the umask (net/unix/af_unix.c, unix_bind_bsd).
    nix::sys::stat::fchmod(&socket, nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR)?;
    nix::sys::socket::bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    nix::sys::socket::listen(&socket, Backlog::new(128)?)?;
    Ok(StdListener::from(socket))
}

/// Lets members of `group` connect, or says why they cannot.
fn open_to_group(path: &Path, group: &str) -> Result<(), String> {
    let gid = match Group::from_name(group) {
        Ok(Some(found)) => found.gid.as_raw(),
        Ok(None) => return Err(format!("there is no group {group}")),
        Err(error) => return Err(format!("the group {group} cannot be looked up ({error})")),
    };
    let cannot = |error: io::Error| format!("its file cannot be given to the group {group} ({error})");
    if fs::symlink_metadata(path).map_err(cannot)?.gid() != gid {
        chown(path, None, Some(gid)).map_err(cannot)?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o660)).map_err(cannot)
}

/// Serves until it is dropped.
pub async fn serve(socket: ControlSocket, requests: ControlSenders, counts: ControlRequests) {
    let seats = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let guest_seats = Arc::new(Semaphore::new(MOST_GUESTS));
    let places = Arc::new(Semaphore::new(MOST_GUESTS + MOST_WAITING));
    loop {
        match socket.listener.accept().await {
            Ok((stream, _)) => {
                let peer = stream.peer_cred().ok().map(|peer| peer.uid());
                let is_guest = !may_change(peer, geteuid().as_raw());
                let held = if is_guest {
                    Arc::clone(&places).try_acquire_owned().ok()
                } else {
                    // Whoever waits here keeps everybody waiting, which root may.
                    Arc::clone(&seats).acquire_owned().await.ok()
                };
                let Some(held) = held else {
                    turn_away(&stream, &counts);
                    continue;
                };
                let (requests, counts) = (requests.clone(), counts.clone());
                let guest_seats = Arc::clone(&guest_seats);
                let span = telemetry::event_span("control");
                let conversation = async move {
                    // The semaphore is never closed.
                    let seat = if is_guest { guest_seats.acquire_owned().await.ok() } else { None };
                    converse(stream, peer, requests, counts).await;
                    drop((seat, held));
                };
                tokio::spawn(conversation.instrument(span));
            }
            Err(error) => {
                tracing::warn!(message_id = "control_failed", %error, "a control connection could not be taken");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Refuses whoever is one too many, without listening.
fn turn_away(stream: &UnixStream, counts: &ControlRequests) {
    let message = format!(
        "{} requests wait before this one: nothing was changed; ask again later, or as root",
        MOST_GUESTS + MOST_WAITING
    );
    let answer = refused(RefusedCode::Failed, message);
    counts.count(None, &answer);
    if let Some(line) = write(&answer) {
        // The line fits the empty buffer of a new connection; whoever has gone needs none.
        let _ = stream.try_write(&line);
    }
}

async fn converse(
    mut stream: UnixStream,
    peer: Option<u32>,
    requests: ControlSenders,
    counts: ControlRequests,
) {
    let Some(line) = read_line(&mut stream).await else {
        return;
    };
    let (verb, answer) = match line
        .and_then(|line| wire::read_request(&line).map_err(|error| error.to_string()))
    {
        Err(message) => (None, refused(RefusedCode::Invalid, message)),
        Ok(request) => {
            let verb = request.verb();
            let own = geteuid().as_raw();
            let answer = if may(peer, own, &request) {
                // No account has the number -1 (POSIX, chown).
                let caller = Reporter { uid: peer.unwrap_or(u32::MAX), is_operator: may_change(peer, own) };
                ask(request, caller, &requests).await
            } else {
                let message = format!(
                    "`{verb}` changes something, which only root and the daemon's user may: nothing was changed; run \
                     it with sudo"
                );
                refused(RefusedCode::Forbidden, message)
            };
            (Some(verb), answer)
        }
    };
    counts.count(verb, &answer);
    if let Some(line) = write(&answer) {
        // A client that does not wait for its answer gets none.
        let _ = timeout(WRITE_TIMEOUT, stream.write_all(&line)).await;
    }
}

/// Whether user `peer` may ask this of a daemon of user `own`.
fn may(peer: Option<u32>, own: u32, request: &Request) -> bool {
    is_open(request) || may_change(peer, own)
}

/// Whether everybody may ask this whom the socket's permissions let in.
const fn is_open(request: &Request) -> bool {
    request.is_read_only() || request.is_report()
}

/// Whether user `peer` may change something in a daemon of user `own`.
fn may_change(peer: Option<u32>, own: u32) -> bool {
    peer.is_some_and(|peer| peer == 0 || peer == own)
}

/// Reads one line, its newline included: `Err` says what is wrong with it, `None` that the client went away without a
/// byte. At most [`MAX_REQUEST_BYTES`] are taken, within 5 seconds. Must be called on a tokio runtime with a clock.
pub async fn read_line(stream: &mut (impl AsyncRead + Unpin)) -> Option<Result<Vec<u8>, String>> {
    let mut line = Vec::new();
    // One byte more than may be, to see that there is more.
    let mut limited = BufReader::new(stream).take(MAX_REQUEST_BYTES as u64 + 1);
    match timeout(READ_TIMEOUT, limited.read_until(b'\n', &mut line)).await {
        Err(_) => Some(Err(format!(
            "byte {}: the line did not end within {} seconds; nothing was changed; end it with a newline",
            line.len() + 1,
            READ_TIMEOUT.as_secs()
        ))),
        Ok(Err(_)) | Ok(Ok(0)) => None,
        Ok(Ok(_)) if line.len() > MAX_REQUEST_BYTES => Some(Err(format!(
            "byte {}: a request has at most {MAX_REQUEST_BYTES} bytes; nothing was changed",
            MAX_REQUEST_BYTES + 1
        ))),
        Ok(Ok(_)) => Some(Ok(line)),
    }
}

async fn ask(request: Request, caller: Reporter, requests: &ControlSenders) -> Answer {
    let is_read_only = request.is_read_only();
    let (reply, answer) = oneshot::channel();
    let outcome = timeout(LOOP_TIMEOUT, async {
        requests.send(ControlRequest { request, caller, reply, span: Span::current() }).await?;
        answer.await.ok()
    });
    if let Ok(Some(answer)) = outcome.await {
        return answer;
    }
    let consequence =
        if is_read_only { "nothing was changed" } else { "whether the change was made is unknown" };
    let message = format!(
        "the event loop does not answer: {consequence}; look at `tunica status` and `journalctl -u tunicad`"
    );
    refused(RefusedCode::Failed, message)
}

/// The answer as a line; one that is too long or cannot be written gives way to a refusal that says so.
fn write(answer: &Answer) -> Option<Vec<u8>> {
    let problem = match wire::write_answer(answer) {
        Ok(line) if line.len() <= MAX_ANSWER_BYTES => return Some(line),
        Ok(line) => format!("the answer would have {} bytes and may have {MAX_ANSWER_BYTES}", line.len()),
        Err(error) => format!("the answer cannot be written ({error})"),
    };
    wire::write_answer(&refused(RefusedCode::Failed, problem)).ok()
}

fn refused(code: RefusedCode, message: String) -> Answer {
    if let RefusedCode::Invalid | RefusedCode::Forbidden = code {
        tracing::info!(message_id = "control_request_refused", ?code, "a control request was refused");
    }
    Answer::Refused(Refused { code, message })
}

#[cfg(test)]
mod tests;
