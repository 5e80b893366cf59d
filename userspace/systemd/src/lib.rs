//! What systemd wants to hear of a service of `Type=notify` or `notify-reload` (sd_notify(3)), and sockets handed over as it does.
//!
//! Without `NOTIFY_SOCKET` in the environment every message is dropped.
#![forbid(unsafe_code)]

use std::{
    env,
    ffi::OsStr,
    io,
    os::{
        fd::{OwnedFd, RawFd},
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
    process::{self, Command},
    time::Duration,
};

use command_fds::{CommandFdExt as _, FdMapping};
use nix::time::{ClockId, clock_gettime};
use thiserror::Error;

/// By these systemd says where and how often it wants to hear of the service. A service that starts another process takes them
/// out of its environment, or that process would speak for it.
pub const VARIABLES: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"];

/// The first descriptor that is handed over, behind the three of every process (sd_listen_fds(3)).
pub const FIRST_SOCKET: RawFd = 3;

/// Has a process that is about to be started find these sockets at its descriptors from [`FIRST_SOCKET`] on, in this order.
///
/// # Errors
/// The kernel's, if a descriptor cannot be copied.
pub fn hand_over(command: &mut Command, sockets: &[OwnedFd]) -> io::Result<()> {
    let mappings = (FIRST_SOCKET..).zip(sockets).map(|(child_fd, socket)| {
        let parent_fd = socket.try_clone()?;
        Ok(FdMapping { parent_fd, child_fd })
    });
    let mappings = mappings.collect::<io::Result<Vec<_>>>()?;
    command.fd_mappings(mappings).map_err(io::Error::other)?;
    Ok(())
}

/// The line to systemd.
#[derive(Debug, Default)]
pub struct Systemd {
    socket: Option<UnixDatagram>,
    watchdog: Option<Duration>,
}

/// Why systemd cannot be told.
#[derive(Debug, Error)]
#[error(
    "NOTIFY_SOCKET cannot be used ({0}): systemd would never hear that the service is ready; start it by its unit, or unset NOTIFY_SOCKET"
)]
pub struct ConnectError(#[source] io::Error);

impl Systemd {
    /// Connects as the environment says: `NOTIFY_SOCKET`, and `WATCHDOG_USEC` unless `WATCHDOG_PID` is another
    /// process.
    ///
    /// # Errors
    /// If `NOTIFY_SOCKET` is set and nobody listens there.
    pub fn from_environment() -> Result<Self, ConnectError> {
        let is_for_another = env::var("WATCHDOG_PID").is_ok_and(|pid| pid != process::id().to_string());
        let period = if is_for_another { None } else { env::var("WATCHDOG_USEC").ok() };
        Self::new(env::var_os("NOTIFY_SOCKET").as_deref(), period.as_deref())
    }

    /// Connects to `socket`, a path or, behind an `@`, an abstract name.
    fn new(socket: Option<&OsStr>, watchdog_usec: Option<&str>) -> Result<Self, ConnectError> {
        let socket = socket.map(connect).transpose().map_err(ConnectError)?;
        let microseconds = watchdog_usec.and_then(|period| period.parse().ok()).filter(|period| *period > 0);
        Ok(Self { socket, watchdog: microseconds.map(Duration::from_micros) })
    }

    /// How often [`Self::feed_watchdog`] is to be called: at half of the time after which systemd kills the service.
    /// `None` if it does not watch.
    pub fn watchdog_every(&self) -> Option<Duration> {
        self.watchdog.map(|period| period / 2)
    }

    /// The service has started, or has finished a reload.
    pub fn ready(&self) {
        self.tell("READY=1");
    }

    /// One sentence for `systemctl status`.
    pub fn status(&self, sentence: &str) {
        // A newline would end the sentence and begin an assignment.
        self.tell(&format!("STATUS={}", sentence.replace('\n', " ")));
    }

    /// A reload begins; [`Self::ready`] ends it.
    pub fn reloading(&self) {
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={}", monotonic_microseconds()));
    }

    /// The service takes nothing more and is about to end; from here on systemd asks for no sign of life, and waits for the end.
    pub fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    /// This process has started another one in its place, which serves: from here on that one is the service's main process, and
    /// a reload that began has ended. With `NotifyAccess=main` only the main process may say so.
    pub fn succeeded_by(&self, pid: u32) {
        self.tell(&format!("MAINPID={pid}\nREADY=1"));
    }

    /// A sign of life. Only what has just made progress may give it, so that a loop which hangs is noticed.
    pub fn feed_watchdog(&self) {
        if self.watchdog.is_some() {
            self.tell("WATCHDOG=1");
        }
    }

    fn tell(&self, message: &str) {
        if let Some(socket) = &self.socket {
            // Nothing depends on it here, and systemd acts by itself if it hears nothing.
            let _ = socket.send(message.as_bytes());
        }
    }
}

fn monotonic_microseconds() -> u128 {
    // Linux gives no error for this clock; without it systemd would only ignore the message.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default().as_micros()
}

fn connect(name: &OsStr) -> io::Result<UnixDatagram> {
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    // The loop must not wait for a systemd that does not read.
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(listener: &UnixDatagram) -> String {
        let mut bytes = [0; 512];
        let length = listener.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    }

    fn say_everything(systemd: &Systemd, listener: &UnixDatagram) {
        systemd.ready();
        assert_eq!(heard(listener), "READY=1");
        systemd.status("attached to eth0\nREADY=1");
        assert_eq!(heard(listener), "STATUS=attached to eth0 READY=1");
        let before = monotonic_microseconds();
        systemd.reloading();
        let message = heard(listener);
        let microseconds: u128 =
            message.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap().parse().unwrap();
        assert!((before..=monotonic_microseconds()).contains(&microseconds));
        systemd.feed_watchdog();
        systemd.stopping();
        assert_eq!(heard(listener), "WATCHDOG=1");
        assert_eq!(heard(listener), "STOPPING=1");
    }

    #[test]
    fn a_socket_by_path_or_abstract_name_hears_everything() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let listener = UnixDatagram::bind(&path).unwrap();
        let systemd = Systemd::new(Some(path.as_os_str()), Some("30000000")).unwrap();
        assert_eq!(systemd.watchdog_every(), Some(Duration::from_secs(15)));
        say_everything(&systemd, &listener);

        let name = format!("tunica-test-{}", process::id());
        let listener = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let systemd = Systemd::new(Some(OsStr::new(&format!("@{name}"))), Some("2000000")).unwrap();
        say_everything(&systemd, &listener);
    }

    #[test]
    fn without_a_watchdog_there_is_no_sign_of_life() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let listener = UnixDatagram::bind(&path).unwrap();
        for period in [None, Some("0"), Some("soon")] {
            let systemd = Systemd::new(Some(path.as_os_str()), period).unwrap();
            systemd.feed_watchdog();
            systemd.stopping();
            assert_eq!(heard(&listener), "STOPPING=1");
            assert_eq!(systemd.watchdog_every(), None);
        }
    }

    #[test]
    fn without_a_socket_nothing_is_said_and_a_dead_one_is_named() {
        let systemd = Systemd::new(None, Some("30000000")).unwrap();
        systemd.ready();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let message = Systemd::new(Some(path.as_os_str()), None).unwrap_err().to_string();
        assert!(message.contains("unset NOTIFY_SOCKET"), "{message}");
    }

    #[test]
    fn a_systemd_that_does_not_read_does_not_block_the_loop() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let _listener = UnixDatagram::bind(&path).unwrap();
        let systemd = Systemd::new(Some(path.as_os_str()), Some("1000000")).unwrap();
        for _ in 0..10_000 {
            systemd.feed_watchdog();
        }
    }
}
