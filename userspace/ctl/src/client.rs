//! One question and one answer over the daemon's Unix socket.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use thiserror::Error;
use tunica_api::{
    request::Request,
    view::Answer,
    wire::{self, MAX_ANSWER_BYTES, WireError},
};

use crate::exit::Exit;

/// How long the daemon may stay silent. Attaching to a card that restarts its queues takes the longest: seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the daemon answered.
pub(crate) struct Reply {
    /// The line as it came, without its newline.
    pub(crate) line: String,
    /// The same, read.
    pub(crate) answer: Answer,
}

/// Why there is no answer.
#[derive(Debug, Error)]
pub(crate) enum AskError {
    /// Nobody listens there.
    #[error(
        "tunicad is not running or listens elsewhere ({}: {source}): the shield stays as it was when the daemon \
         ended; start it with `systemctl start tunicad`, or name its socket with --socket",
        socket.display()
    )]
    Unreachable {
        /// Where it was looked for.
        socket: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The socket's permissions keep this user out.
    #[error(
        "this user may not speak to tunicad ({}: {source}): nothing was asked; run as root, or join the group that \
         [control] group names to use the verbs that only read, and `report`",
        socket.display()
    )]
    Forbidden {
        /// Whose permissions refuse.
        socket: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The path cannot be a socket's.
    #[error("{} cannot be the path of a Unix socket ({source}): give --socket a path of at most 107 bytes", socket.display())]
    BadPath {
        /// The path.
        socket: PathBuf,
        /// What the standard library said.
        source: io::Error,
    },
    /// The request could not be sent, or the answer did not come in time.
    #[error("the exchange with tunicad broke off ({source}): {consequence}; look at `journalctl -u tunicad`")]
    Broken {
        /// What the request may have done.
        consequence: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The daemon closed the connection early.
    #[error(
        "tunicad closed the connection before its answer was complete: {consequence}; look at `journalctl -u tunicad`"
    )]
    CutOff {
        /// What the request may have done.
        consequence: &'static str,
    },
    /// Longer than any answer may be.
    #[error("the answer is longer than {MAX_ANSWER_BYTES} bytes: it is ignored; is {} really tunicad's socket?", socket.display())]
    TooLong {
        /// Where it came from.
        socket: PathBuf,
    },
    /// The request could not be written as JSON.
    #[error("the request cannot be written ({0}): nothing was asked; please report this")]
    Unwritable(#[source] serde_json::Error),
    /// Not an answer of ours.
    #[error("tunicad's answer cannot be read: {0}")]
    Unreadable(#[source] WireError),
}

impl AskError {
    /// The exit status for it.
    pub(crate) const fn exit(&self) -> Exit {
        match self {
            Self::Unreachable { .. } => Exit::Unreachable,
            Self::Forbidden { .. } => Exit::Forbidden,
            Self::BadPath { .. } => Exit::Usage,
            Self::Broken { .. }
            | Self::CutOff { .. }
            | Self::TooLong { .. }
            | Self::Unwritable(_)
            | Self::Unreadable(_) => Exit::Failed,
        }
    }
}

/// Asks the daemon that listens on `socket`.
///
/// # Errors
/// [`AskError`] says whether the request may have taken effect all the same.
pub(crate) fn ask(socket: &Path, request: &Request) -> Result<Reply, AskError> {
    let line = wire::write_request(request).map_err(AskError::Unwritable)?;
    let stream = connect(socket)?;
    let consequence =
        if request.is_read_only() { "nothing was changed" } else { "whether the change was made is unknown" };
    let broken = |source: io::Error| {
        let silent = matches!(source.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
        let source = if silent {
            io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no answer within {} seconds", PATIENCE.as_secs()),
            )
        } else {
            source
        };
        AskError::Broken { consequence, source }
    };
    stream.set_read_timeout(Some(PATIENCE)).map_err(broken)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(broken)?;
    match (&stream).write_all(&line) {
        // A daemon that refuses without reading has closed its end; its reason still waits to be read.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        sent => sent.map_err(broken)?,
    }
    let limit = u64::try_from(MAX_ANSWER_BYTES).unwrap_or(u64::MAX).saturating_add(1);
    let mut line = Vec::new();
    BufReader::new(&stream).take(limit).read_until(b'\n', &mut line).map_err(broken)?;
    if line.len() > MAX_ANSWER_BYTES {
        return Err(AskError::TooLong { socket: socket.to_owned() });
    }
    if line.pop() != Some(b'\n') {
        return Err(AskError::CutOff { consequence });
    }
    read(line)
}

/// Reads an answer line without its newline.
///
/// # Errors
/// [`AskError::Unreadable`] only.
pub(crate) fn read(line: Vec<u8>) -> Result<Reply, AskError> {
    let answer = wire::read_answer(&line).map_err(AskError::Unreadable)?;
    // JSON that was read is UTF-8, so nothing is replaced.
    Ok(Reply { line: String::from_utf8_lossy(&line).into_owned(), answer })
}

fn connect(socket: &Path) -> Result<UnixStream, AskError> {
    UnixStream::connect(socket).map_err(|source| {
        let socket = socket.to_owned();
        if source.kind() == io::ErrorKind::PermissionDenied {
            AskError::Forbidden { socket, source }
        } else if source.kind() == io::ErrorKind::InvalidInput {
            AskError::BadPath { socket, source }
        } else {
            AskError::Unreachable { socket, source }
        }
    })
}

#[cfg(test)]
mod tests {
    use std::{os::unix::net::UnixListener, thread};

    use super::*;

    /// What a peer that sends `answer` and closes makes of a question.
    fn told(request: &Request, answer: &'static [u8]) -> Result<Reply, AskError> {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let peer = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            (&stream).write_all(answer).unwrap();
            line
        });
        let reply = ask(&socket, request);
        assert_eq!(wire::read_request(peer.join().unwrap().as_bytes()).unwrap(), *request);
        reply
    }

    #[test]
    fn an_answer_arrives_as_it_was_sent() {
        let reply =
            told(&Request::BanList {}, b"{\"schema\":1,\"kind\":\"bans\", \"bans\":[],\"new\":1}\n").unwrap();
        assert_eq!(reply.line, "{\"schema\":1,\"kind\":\"bans\", \"bans\":[],\"new\":1}");
        assert!(matches!(reply.answer, Answer::Bans(bans) if bans.bans.is_empty()));
    }

    #[test]
    fn broken_answers_say_what_became_of_the_request() {
        for (request, answer, part) in [
            (Request::Status {}, b"".as_slice(), "nothing was changed"),
            (
                Request::Reload(tunica_api::request::Reload::default()),
                b"".as_slice(),
                "whether the change was made is unknown",
            ),
            (Request::Status {}, b"{\"schema\":1,\"kind\":\"bans\",\"bans\":[]}".as_slice(), "complete"),
            (Request::Status {}, b"{\"schema\":9,\"kind\":\"new\"}\n".as_slice(), "has schema 9"),
            (Request::Status {}, b"HTTP/1.1 400 Bad Request\n".as_slice(), "byte 1 of line 1"),
        ] {
            let message = told(&request, answer).err().unwrap().to_string();
            assert!(message.contains(part), "{message}");
        }
    }
}
