//! A tor process's control port, as far as tests need it: one command, one reply, and events between them.
//!
//! Source of the rules: control-spec.txt. This is no part of the product, which has a codec of its own.

use std::{
    collections::VecDeque,
    fs,
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// How long tor may take for one reply.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a control port asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Authentication {
    /// Nothing: whoever may open the socket may command.
    #[default]
    None,
    /// What stands in the file `control_auth_cookie`. tor then offers COOKIE and SAFECOOKIE.
    Cookie,
    /// This password.
    Password(String),
}

/// A connection to a control socket.
#[derive(Debug)]
pub struct Control {
    stream: BufReader<UnixStream>,
    /// A line of which not all has come.
    partial: Vec<u8>,
    events: VecDeque<String>,
}

/// One line of a reply.
struct Line {
    status: u16,
    is_last: bool,
    text: String,
}

impl Control {
    /// Connects and authenticates; `cookie` is where tor keeps its cookie.
    ///
    /// # Errors
    /// If nobody listens, or tor refuses.
    pub fn connect(socket: &Path, authentication: &Authentication, cookie: &Path) -> Result<Self> {
        let stream =
            UnixStream::connect(socket).with_context(|| format!("connecting to {}", socket.display()))?;
        let mut control =
            Self { stream: BufReader::new(stream), partial: Vec::new(), events: VecDeque::new() };
        let proof = match authentication {
            Authentication::None => String::new(),
            Authentication::Cookie => {
                let bytes = fs::read(cookie).with_context(|| format!("reading {}", cookie.display()))?;
                bytes.iter().map(|byte| format!("{byte:02x}")).collect()
            }
            Authentication::Password(password) => {
                format!("\"{}\"", password.replace('\\', "\\\\").replace('"', "\\\""))
            }
        };
        // The error names the command; the proof is no part of it.
        control.exchange("AUTHENTICATE", &format!("AUTHENTICATE {proof}"))?;
        Ok(control)
    }

    /// Sends a command of one line and returns the reply's lines without their status; lines of data stand where they came.
    ///
    /// # Errors
    /// With what tor said if it refuses.
    pub fn ask(&mut self, command: &str) -> Result<Vec<String>> {
        self.exchange(command, command)
    }

    /// The value of a key that GETINFO knows, whether it has one line or many.
    ///
    /// # Errors
    /// As [`Control::ask`].
    pub fn information(&mut self, key: &str) -> Result<String> {
        let lines = self.ask(&format!("GETINFO {key}"))?;
        let mut lines = lines.iter().map(String::as_str);
        let first = lines.next().and_then(|line| line.strip_prefix(key)?.strip_prefix('='));
        let first = first.with_context(|| format!("no `{key}=` in the reply"))?;
        // What follows the data is `OK`.
        let mut value: Vec<&str> = std::iter::once(first).chain(lines).collect();
        value.pop_if(|line| *line == "OK");
        Ok(value.join("\n").trim_start().to_owned())
    }

    /// The next event that was subscribed to, such as `CIRC 5 BUILT …`, or `None` if none comes until `deadline`. Of an
    /// event with data only the first line is kept.
    ///
    /// # Errors
    /// If tor ends.
    pub fn event(&mut self, deadline: Instant) -> Result<Option<String>> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            let Some(line) = self.line(deadline)? else { return Ok(None) };
            if line.status != 650 {
                bail!("tor sent `{} {}`, which answers nothing", line.status, line.text);
            }
            self.keep_event(line)?;
        }
    }

    fn exchange(&mut self, name: &str, command: &str) -> Result<Vec<String>> {
        self.stream
            .get_mut()
            .write_all(format!("{command}\r\n").as_bytes())
            .with_context(|| format!("sending {name}"))?;
        let deadline = Instant::now() + PATIENCE;
        let mut lines = Vec::new();
        loop {
            let line = self.line(deadline)?.with_context(|| format!("{name}: tor does not answer"))?;
            if line.status == 650 {
                self.keep_event(line)?;
                continue;
            }
            if line.status != 250 {
                bail!("{name}: tor answers {} {}", line.status, line.text);
            }
            let (is_last, mut text) = (line.is_last, line.text);
            if let Some(data) = text.strip_suffix('\n') {
                lines.push(data.to_owned());
                lines.extend(self.data(deadline)?);
                continue;
            }
            lines.push(std::mem::take(&mut text));
            if is_last {
                return Ok(lines);
            }
        }
    }

    /// Keeps the first line of an event and reads over the others.
    fn keep_event(&mut self, mut line: Line) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let first = line.text.trim_end().to_owned();
        loop {
            if line.text.ends_with('\n') {
                self.data(deadline)?;
            }
            if line.is_last {
                break;
            }
            line = self.line(deadline)?.context("an event without an end")?;
        }
        self.events.push_back(first);
        Ok(())
    }

    /// Lines up to the one that is a full stop.
    fn data(&mut self, deadline: Instant) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        loop {
            let line = self.raw_line(deadline)?.context("data without an end")?;
            if line == "." {
                return Ok(lines);
            }
            lines.push(line.strip_prefix("..").map_or(line.clone(), |rest| format!(".{rest}")));
        }
    }

    /// The next line, parsed; that of data ends in a line feed.
    fn line(&mut self, deadline: Instant) -> Result<Option<Line>> {
        let Some(raw) = self.raw_line(deadline)? else { return Ok(None) };
        let parsed = || {
            let status = raw.get(..3)?.parse().ok()?;
            let mark = raw.get(3..4)?;
            let end = if mark == "+" { "\n" } else { "" };
            Some(Line { status, is_last: mark == " ", text: format!("{}{end}", raw.get(4..)?) })
        };
        parsed().map(Some).with_context(|| format!("tor sent `{raw}`, which is no reply"))
    }

    fn raw_line(&mut self, deadline: Instant) -> Result<Option<String>> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream.get_ref().set_read_timeout(Some(left))?;
            match self.stream.read_until(b'\n', &mut self.partial) {
                Ok(_) if self.partial.ends_with(b"\n") => {
                    let line = String::from_utf8_lossy(&std::mem::take(&mut self.partial)).into_owned();
                    return Ok(Some(line.trim_end_matches(['\r', '\n']).to_owned()));
                }
                Ok(_) => bail!("tor closed its control socket"),
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(error) => return Err(error).context("reading a control socket"),
            }
        }
    }
}

/// Where a tor process is commanded, and what it asks for.
#[derive(Clone, Debug)]
pub struct ControlAddress {
    /// The Unix socket.
    pub socket: PathBuf,
    /// What it asks for.
    pub authentication: Authentication,
    /// Where tor keeps its cookie, if that is what it asks for.
    pub cookie: PathBuf,
}

impl ControlAddress {
    /// Connects and authenticates.
    ///
    /// # Errors
    /// As [`Control::connect`].
    pub fn connect(&self) -> Result<Control> {
        Control::connect(&self.socket, &self.authentication, &self.cookie)
    }
}
