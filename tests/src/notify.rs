//! The end of sd_notify(3) that systemd holds: what a service says there.

use std::{
    io,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
};

use crate::ingress::PATIENCE;

/// A socket for `NOTIFY_SOCKET`.
#[derive(Debug)]
pub struct NotifySocket {
    folder: tempfile::TempDir,
    socket: UnixDatagram,
}

impl NotifySocket {
    /// Listens in a folder of its own.
    ///
    /// # Errors
    /// The kernel's.
    pub fn bind() -> io::Result<Self> {
        let folder = tempfile::tempdir()?;
        let socket = UnixDatagram::bind(place(folder.path()))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { folder, socket })
    }

    /// Its path.
    pub fn path(&self) -> PathBuf {
        place(self.folder.path())
    }

    /// The next message, which is waited for.
    ///
    /// # Errors
    /// If none comes.
    pub fn hear(&self) -> io::Result<String> {
        let mut bytes = [0; 512];
        let length = self.socket.recv(&mut bytes)?;
        Ok(String::from_utf8_lossy(bytes.get(..length).unwrap_or_default()).into_owned())
    }

    /// All messages that have come and were not read.
    ///
    /// # Errors
    /// The kernel's.
    pub fn so_far(&self) -> io::Result<Vec<String>> {
        self.socket.set_nonblocking(true)?;
        let mut messages = Vec::new();
        let end = loop {
            match self.hear() {
                Ok(message) => messages.push(message),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Ok(messages),
                Err(error) => break Err(error),
            }
        };
        self.socket.set_nonblocking(false)?;
        end
    }
}

fn place(folder: &Path) -> PathBuf {
    folder.join("notify")
}
