//! `tunica-front` where systemd does not start it: its sockets, its process, and another process in its place.
//!
//! This daemon listens, and hands the sockets to the front, which runs by the account of `ingress.user` and so without any
//! capability. A front that ends is started again; meanwhile streams wait in the sockets' queues. Another configuration, or
//! another version, brings a second front with the same sockets; the first ends what it began once the second is there.
//!
//! The front outlives this daemon. The daemon that comes after it finds the front by its word on the front's socket, and takes
//! copies of the sockets from it (pidfd_getfd(2)), so that even a killed daemon costs nobody a stream.

use std::{
    fs, io,
    net::{SocketAddr, TcpListener},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            fs::{FileTypeExt, PermissionsExt},
            net::{UnixListener, UnixStream},
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::{
    sys::socket::{SockaddrStorage, getsockname, getsockopt, sockopt},
    unistd::{Group, User},
};
use rustix::{
    fs::{AtFlags, FileType, Gid, Mode, OFlags, chownat, fstat, open},
    process::{
        Pid, PidfdFlags, PidfdGetfdFlags, Signal, geteuid, pidfd_getfd, pidfd_open, pidfd_send_signal,
    },
};
use thiserror::Error;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};
use tunica_config::Config;
use tunica_core::{restarts::Restarts, time::Monotime};
use tunica_systemd::FIRST_SOCKET;

/// `EX_CONFIG` of sysexits.h: starting it again would not help.
const BAD_CONFIGURATION: i32 = 78;
/// How long a front of an earlier daemon has to tell that it is there. It looks for the daemon each second.
const ADOPTION: Duration = Duration::from_secs(5);
/// How long a front that is to take another's place has to tell that it is there. It begins to as soon as it serves.
const PATIENCE: Duration = Duration::from_secs(30);
/// Messages that wait for this shell.
const QUEUE: usize = 16;

/// What this shell is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrontAct {
    /// A front speaks to the daemon; its process, in this daemon's namespace.
    Here {
        /// Its number.
        pid: i32,
    },
    /// The configuration was read again: a front that gave up may try once more.
    Retry,
    /// Put another front in the place of the one that runs.
    Renew,
}

/// What this shell tells the event loop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FrontTold {
    /// The ingress runs, and is ours.
    Runs,
    /// It does not, or not as the configuration says: why, and what to do.
    Trouble(String),
}

/// What is needed to start a front.
#[derive(Clone, Debug)]
struct Options {
    program: PathBuf,
    config: PathBuf,
    /// Whether the front hosts the onion service itself: it is handed no streams, so there is nothing to listen on.
    hosts_itself: bool,
    listen: SocketAddr,
    socket: Option<PathBuf>,
    user: String,
    group: String,
    tor_user: Option<String>,
}

impl Options {
    /// How many sockets a front is handed.
    fn listening(&self) -> i32 {
        if self.hosts_itself { 0 } else { 1 + i32::from(self.socket.is_some()) }
    }
}

/// Why a front does not run.
#[derive(Debug, Error)]
enum StartError {
    /// A socket cannot be had.
    #[error(
        "cannot listen on {place} ({source}): tor could hand over no stream; see who has it with `ss -ltnxp`"
    )]
    Bind {
        /// Where.
        place: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The account does not exist.
    #[error(
        "there is no account {name}, by which the ingress would run; make it with `useradd --system {name}`, or name another \
         as ingress.user"
    )]
    NoAccount {
        /// Which.
        name: String,
    },
    /// The program cannot be started.
    #[error("{program} cannot be started ({source}); install it beside tunicad")]
    Spawn {
        /// Which.
        program: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The running front's sockets cannot be taken over.
    #[error(
        "the ingress that runs (process {pid}) was not started by this daemon, and its sockets cannot be taken over \
         ({source}); it serves on, but end it with `kill {pid}` before its next configuration or version"
    )]
    Adopt {
        /// Its process.
        pid: i32,
        /// What the kernel said, or what is wrong with them.
        source: io::Error,
    },
}

/// A front that runs.
#[derive(Debug)]
struct Running {
    pid: i32,
    handle: OwnedFd,
}

impl Running {
    /// Has it take no more streams and end those it has. One that has ended needs no word.
    fn end(&self) {
        let _ = pidfd_send_signal(&self.handle, Signal::TERM);
    }
}

/// A process that has ended: `None` if it was no child of ours.
type Ended = (i32, Option<std::process::ExitStatus>);

/// See the module.
pub struct FrontProcess {
    options: Options,
    acts: mpsc::Receiver<FrontAct>,
    told: mpsc::Sender<FrontTold>,
    ended: (mpsc::Sender<Ended>, mpsc::Receiver<Ended>),
    sockets: Vec<OwnedFd>,
    /// The one that serves.
    current: Option<Running>,
    /// The one that is to take its place, and until when it may.
    next: Option<(Running, Instant)>,
    restarts: Restarts,
    /// Whether another start is of no use until the configuration changes.
    is_hopeless: bool,
}

/// Makes the shell, and the ends by which it hears and tells.
pub fn link(
    config: &Config,
    path: &Path,
) -> (FrontProcess, mpsc::Sender<FrontAct>, mpsc::Receiver<FrontTold>) {
    let (acts_sender, acts) = mpsc::channel(QUEUE);
    let (told, told_receiver) = mpsc::channel(QUEUE);
    let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join("tunica-front")));
    let options = Options {
        program: beside.unwrap_or_else(|| PathBuf::from("tunica-front")),
        config: path.to_owned(),
        hosts_itself: config.arti.enabled,
        listen: config.ingress.listen,
        socket: config.ingress.socket.clone(),
        user: config.ingress.user.clone(),
        group: config.control.group.clone(),
        tor_user: config.tor.user.clone(),
    };
    let shell = FrontProcess {
        options,
        acts,
        told,
        ended: mpsc::channel(QUEUE),
        sockets: Vec::new(),
        current: None,
        next: None,
        restarts: Restarts::default(),
        is_hopeless: false,
    };
    (shell, acts_sender, told_receiver)
}

impl FrontProcess {
    /// Keeps a front running until the event loop is gone.
    pub async fn run(mut self) {
        if self.options.hosts_itself {
            // No socket that is taken tells of a front of an earlier daemon.
            self.adopted().await;
        } else if let Err(error) = self.open() {
            // Most likely a front of an earlier daemon, which will tell.
            tracing::debug!(message_id = "front_socket_busy", %error, "the ingress' sockets are taken");
            if !self.adopted().await {
                self.tell(FrontTold::Trouble(error.to_string())).await;
            }
        }
        loop {
            let wait = self.restarts.wait(now());
            let is_due = self.current.is_none() && self.can_start() && !self.is_hopeless;
            let patience = self.next.as_ref().map(|(_, until)| *until);
            tokio::select! {
                act = self.acts.recv() => match act {
                    Some(act) => self.act(act).await,
                    None => return,
                },
                Some((pid, status)) = self.ended.1.recv() => self.take_note(pid, status).await,
                // Whoever had the port may have gone.
                () = sleep(ADOPTION), if self.current.is_none() && !self.can_start() => {
                    // What is wrong was told.
                    let _ = self.open();
                }
                () = sleep_until(patience.unwrap_or_else(Instant::now)), if patience.is_some() => {
                    self.give_up_next();
                    let text = format!(
                        "the ingress with the new configuration did not report within {} s and was ended, and the one before \
                         serves on; its log says why",
                        PATIENCE.as_secs()
                    );
                    self.tell(FrontTold::Trouble(text)).await;
                }
                () = sleep(wait), if is_due => match self.start() {
                    Ok(running) => {
                        self.current = Some(running);
                        self.tell(FrontTold::Runs).await;
                    }
                    Err(error) => {
                        self.restarts.started(now());
                        self.tell(FrontTold::Trouble(error.to_string())).await;
                    }
                },
            }
        }
    }

    async fn tell(&self, told: FrontTold) {
        // The event loop ends after this task.
        let _ = self.told.send(told).await;
    }

    /// Waits for a front of an earlier daemon to tell that it is there.
    async fn adopted(&mut self) -> bool {
        let mut deadline = Box::pin(sleep(ADOPTION));
        while self.current.is_none() {
            tokio::select! {
                act = self.acts.recv() => match act {
                    Some(act) => self.act(act).await,
                    None => return false,
                },
                () = &mut deadline => {
                    // It may have ended in the meantime.
                    return self.open().is_ok();
                }
            }
        }
        true
    }

    async fn act(&mut self, act: FrontAct) {
        match act {
            FrontAct::Here { pid } if self.is_next(pid) => {
                let next = self.next.take().map(|(next, _)| next);
                let before = std::mem::replace(&mut self.current, next);
                if let Some(before) = before {
                    before.end();
                }
                self.tell(FrontTold::Runs).await;
            }
            FrontAct::Here { pid } if self.current.is_none() => match self.adopt(pid) {
                Ok(running) => {
                    tracing::info!(
                        message_id = "front_adopted",
                        "the ingress of an earlier daemon serves on"
                    );
                    self.current = Some(running);
                    self.tell(FrontTold::Runs).await;
                }
                Err(error) => self.tell(FrontTold::Trouble(error.to_string())).await,
            },
            FrontAct::Here { .. } => {}
            FrontAct::Retry => self.is_hopeless = false,
            FrontAct::Renew => {
                self.is_hopeless = false;
                // One that is on its way may have read the configuration before.
                self.give_up_next();
                if self.current.is_some() && self.can_start() {
                    match self.start() {
                        Ok(running) => self.next = Some((running, Instant::now() + PATIENCE)),
                        Err(error) => self.tell(FrontTold::Trouble(error.to_string())).await,
                    }
                }
            }
        }
    }

    /// Whether it has all that a front is given.
    const fn can_start(&self) -> bool {
        self.options.hosts_itself || !self.sockets.is_empty()
    }

    fn is_next(&self, pid: i32) -> bool {
        self.next.as_ref().is_some_and(|(next, _)| next.pid == pid)
    }

    /// Ends the one that is on its way, which ends what it began.
    fn give_up_next(&mut self) {
        if let Some((next, _)) = self.next.take() {
            next.end();
        }
    }

    /// A process has ended. One that was replaced says nothing by it.
    async fn take_note(&mut self, pid: i32, status: Option<std::process::ExitStatus>) {
        let how = status.map_or_else(|| "ended".to_owned(), |status| format!("ended with {status}"));
        let is_hopeless = status.and_then(|status| status.code()) == Some(BAD_CONFIGURATION);
        if self.is_next(pid) {
            self.next = None;
            self.tell(FrontTold::Trouble(format!(
                "the ingress with the new configuration {how}, and the one before serves on; its log says why"
            )))
            .await;
        } else if self.current.as_ref().is_some_and(|current| current.pid == pid) {
            self.current = None;
            self.is_hopeless = is_hopeless;
            let then = if is_hopeless {
                "it is not started again before the next `tunica reload`"
            } else {
                "it is started again"
            };
            tracing::error!(message_id = "front_ended", "the ingress {how}; {then}");
            self.tell(FrontTold::Trouble(format!("the ingress {how}; {then}"))).await;
        }
    }

    /// Listens as the configuration says.
    fn open(&mut self) -> Result<(), StartError> {
        let options = &self.options;
        if options.hosts_itself {
            return Ok(());
        }
        let failed = |place: String| |source| StartError::Bind { place, source };
        let listener = TcpListener::bind(options.listen).map_err(failed(options.listen.to_string()))?;
        let mut sockets = vec![OwnedFd::from(listener)];
        if let Some(path) = &options.socket {
            sockets.push(bind_unix(path, options).map_err(failed(path.display().to_string()))?);
        }
        for socket in &sockets {
            nix::fcntl::fcntl(socket, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))
                .map_err(|error| failed("the sockets".to_owned())(error.into()))?;
        }
        self.sockets = sockets;
        Ok(())
    }

    /// Takes copies of the sockets of a front that an earlier daemon started.
    fn adopt(&mut self, pid: i32) -> Result<Running, StartError> {
        let failed = |source| StartError::Adopt { pid, source };
        let handle = handle_of(pid).map_err(failed)?;
        let mut sockets = Vec::new();
        for number in 0..self.options.listening() {
            let socket = pidfd_getfd(&handle, FIRST_SOCKET + number, PidfdGetfdFlags::empty());
            let socket = socket.map_err(|error| failed(error.into()))?;
            if !is_listening(&socket, &self.options, number == 0).map_err(failed)? {
                return Err(failed(io::Error::other("they are not those of the configuration")));
            }
            sockets.push(socket);
        }
        self.sockets = sockets;
        let running = Running { pid, handle };
        self.watch(&running, None).map_err(failed)?;
        Ok(running)
    }

    fn start(&mut self) -> Result<Running, StartError> {
        let options = &self.options;
        let failed = |source| StartError::Spawn { program: options.program.display().to_string(), source };
        let user = User::from_name(&options.user).ok().flatten();
        let user = user.ok_or_else(|| StartError::NoAccount { name: options.user.clone() })?;
        // The group of the control socket, which is also the front's.
        let group = Group::from_name(&options.group).ok().flatten().map_or(user.gid, |group| group.gid);
        let mut command = Command::new(&options.program);
        command.arg("--config").arg(&options.config);
        command.arg("--sockets").arg(self.sockets.len().to_string());
        // A group of its own: what interrupts the daemon at a terminal is not meant for it.
        command.stdin(Stdio::null()).current_dir("/").process_group(0);
        // Else it would tell systemd that this daemon is ready, lives and ends.
        for variable in tunica_systemd::VARIABLES {
            command.env_remove(variable);
        }
        if nix::unistd::geteuid().is_root() {
            command.uid(user.uid.as_raw()).gid(group.as_raw());
        }
        tunica_systemd::hand_over(&mut command, &self.sockets).map_err(failed)?;
        let child = command.spawn().map_err(failed)?;
        self.restarts.started(now());
        let pid = i32::try_from(child.id()).map_err(|error| failed(io::Error::other(error)))?;
        let running = Running { pid, handle: handle_of(pid).map_err(failed)? };
        self.watch(&running, Some(child)).map_err(failed)?;
        Ok(running)
    }

    /// Tells when it ends.
    fn watch(&self, running: &Running, child: Option<Child>) -> io::Result<()> {
        let (pid, ended) = (running.pid, self.ended.0.clone());
        let handle = crate::sys::watch_process(running.handle.try_clone()?)?;
        tokio::spawn(async move {
            // Readable once it has ended (pidfd_open(2)).
            let is_known = handle.readable().await.is_ok();
            let status = child.filter(|_| is_known).and_then(|mut child| child.wait().ok());
            let _ = ended.send((pid, status)).await;
        });
        Ok(())
    }
}

fn handle_of(pid: i32) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::NotFound)?;
    Ok(pidfd_open(pid, PidfdFlags::NONBLOCK)?)
}

fn now() -> Monotime {
    // Linux gives no error.
    crate::sys::monotonic_ns().map_or(Monotime(0), Monotime)
}

/// Whether a socket is the one that tor connects to by the configuration.
fn is_listening(socket: &OwnedFd, options: &Options, is_tcp: bool) -> io::Result<bool> {
    if !getsockopt(socket, sockopt::AcceptConn)? {
        return Ok(false);
    }
    let name: SockaddrStorage = getsockname(std::os::fd::AsRawFd::as_raw_fd(&socket.as_fd()))?;
    Ok(if is_tcp {
        name == SockaddrStorage::from(options.listen)
    } else {
        name.as_unix_addr().and_then(|address| address.path()) == options.socket.as_deref()
    })
}

/// A socket of an earlier process, which nobody listens on any more, is replaced.
fn bind_unix(path: &Path, options: &Options) -> io::Result<OwnedFd> {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    if is_socket
        && let Err(error) = UnixStream::connect(path)
        && error.kind() == io::ErrorKind::ConnectionRefused
    {
        fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    // Whoever may write in the directory may have put another file there by now: what changes is what was looked at.
    let file = open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let found = fstat(&file)?;
    if FileType::from_raw_mode(found.st_mode) != FileType::Socket || found.st_uid != geteuid().as_raw() {
        return Err(io::Error::other("another file took its place"));
    }
    // chmod(2) takes no descriptor without rights to the content, but its name here.
    let name = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    fs::set_permissions(name, fs::Permissions::from_mode(0o660))?;
    // tor connects by its own account.
    let tor = options.tor_user.as_deref().and_then(|name| User::from_name(name).ok().flatten());
    if let Some(tor) = tor {
        chownat(&file, "", None, Some(Gid::from_raw(tor.gid.as_raw())), AtFlags::EMPTY_PATH)?;
    }
    Ok(listener.into())
}
