//! Bytes from tor, cut into messages.

use std::{fmt, mem};

use thiserror::Error;

/// How much one message may take. Tor's are far shorter; the bounds keep a mistaken peer from filling the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest line, its end included, in bytes.
    pub line_bytes: usize,
    /// Longest message, all its lines and data with their ends, in bytes.
    pub message_bytes: usize,
}

impl Default for Limits {
    /// 32 KiB a line: a path of 4 096 bytes, each of them escaped as four, fits twice. 16 MiB a message:
    /// `circuit-status` of 50 000 circuits fits.
    fn default() -> Self {
        Self { line_bytes: 32 * 1024, message_bytes: 16 * 1024 * 1024 }
    }
}

/// A reply, or an event that nobody asked for at this moment. `Debug` shows no text: it may name circuits, addresses and
/// relays.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    /// The three digits of its last line, which decide.
    pub status: u16,
    /// Its lines; at least one.
    pub lines: Vec<Line>,
}

/// A line of a message, and the data that follow it. Bytes that are not UTF-8 are replaced.
#[derive(Clone, PartialEq, Eq)]
pub struct Line {
    /// What stands behind the status.
    pub text: String,
    /// What stands between a line with `+` and the full stop that ends it; every line of it ends in `\n`.
    pub data: Option<String>,
}

/// Tor's answer is a refusal. Its text is not quoted: it repeats arguments, circuits among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("tor refuses with {status}: {}", meaning(*.status))]
pub struct Refused {
    /// The status of its last line.
    pub status: u16,
}

/// Bytes that are no control protocol. The connection must be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("line {line} from the control port {fault}; the connection is closed; is it tor that listens there?")]
pub struct DecodeError {
    /// Lines from the connection's beginning, from 1.
    pub line: u64,
    /// What is wrong.
    pub fault: MessageFault,
}

/// What is wrong with bytes from the control port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MessageFault {
    /// A line longer than the limit.
    #[error("is longer than {0} bytes")]
    LineTooLong(usize),
    /// A message longer than the limit.
    #[error("makes the message longer than {0} bytes")]
    MessageTooLong(usize),
    /// A line feed without a carriage return before it.
    #[error("does not end in CR and LF together")]
    LineEnd,
    /// No three digits with a blank, `-` or `+` behind them.
    #[error("does not begin with a status of three digits")]
    Status,
    /// Reply and event in one message.
    #[error("mixes a reply and an event")]
    Mixed,
}

/// Cuts what tor sends into messages, whatever pieces it comes in. `Debug` shows none of it.
pub struct Decoder {
    limits: Limits,
    /// Lines seen since the beginning, the one being read included.
    line: u64,
    /// The beginning of a line whose end has not come.
    partial: Vec<u8>,
    /// Of the message that has not ended.
    lines: Vec<Line>,
    is_event: Option<bool>,
    taken: usize,
    /// The data block that has not ended.
    data: Option<Vec<u8>>,
    failed: Option<DecodeError>,
}

impl Decoder {
    /// At the beginning of a connection.
    pub const fn new(limits: Limits) -> Self {
        Self {
            limits,
            line: 1,
            partial: Vec::new(),
            lines: Vec::new(),
            is_event: None,
            taken: 0,
            data: None,
            failed: None,
        }
    }

    /// Takes bytes from the front of `input` up to the end of a message, or all of them if none ends there. To be called
    /// again until it returns `None`. It holds at most [`Limits::message_bytes`] and one line more, as long as the bytes
    /// are UTF-8; each that is not takes three.
    ///
    /// # Errors
    /// When the bytes are no control protocol, or a message is too long. Every later call returns the same error.
    pub fn decode(&mut self, input: &mut &[u8]) -> Result<Option<Message>, DecodeError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let outcome = self.next(input).map_err(|fault| DecodeError { line: self.line, fault });
        self.failed = outcome.as_ref().err().copied();
        outcome
    }

    fn next(&mut self, input: &mut &[u8]) -> Result<Option<Message>, MessageFault> {
        while let Some(length) = input.iter().position(|byte| *byte == b'\n').map(|at| at + 1) {
            let (piece, rest) = input.split_at_checked(length).unwrap_or((input, &[]));
            *input = rest;
            let partial = mem::take(&mut self.partial);
            let whole = if partial.is_empty() { piece } else { &[&partial, piece].concat() };
            if let Some(message) = self.take_line(whole)? {
                return Ok(Some(message));
            }
        }
        if self.partial.len() + input.len() > self.limits.line_bytes {
            return Err(MessageFault::LineTooLong(self.limits.line_bytes));
        }
        self.partial.extend_from_slice(mem::take(input));
        Ok(None)
    }

    /// Takes a line with its end.
    fn take_line(&mut self, whole: &[u8]) -> Result<Option<Message>, MessageFault> {
        if whole.len() > self.limits.line_bytes {
            return Err(MessageFault::LineTooLong(self.limits.line_bytes));
        }
        self.taken += whole.len();
        if self.taken > self.limits.message_bytes {
            return Err(MessageFault::MessageTooLong(self.limits.message_bytes));
        }
        let bytes = whole.strip_suffix(b"\r\n").ok_or(MessageFault::LineEnd)?;
        let message = match self.data.take() {
            Some(mut data) if bytes != b"." => {
                data.extend_from_slice(bytes.strip_prefix(b".").unwrap_or(bytes));
                data.push(b'\n');
                self.data = Some(data);
                None
            }
            Some(data) => {
                if let Some(line) = self.lines.last_mut() {
                    line.data = Some(text_of(&data));
                }
                None
            }
            None => self.take_reply_line(bytes)?,
        };
        self.line += 1;
        Ok(message)
    }

    fn take_reply_line(&mut self, bytes: &[u8]) -> Result<Option<Message>, MessageFault> {
        let ([a, b, c, divider], text) = bytes.split_first_chunk::<4>().ok_or(MessageFault::Status)?;
        let mut status = 0;
        for digit in [a, b, c] {
            let digit = char::from(*digit).to_digit(10).and_then(|digit| u16::try_from(digit).ok());
            status = status * 10 + digit.ok_or(MessageFault::Status)?;
        }
        let is_event = is_event(status);
        if *self.is_event.get_or_insert(is_event) != is_event {
            return Err(MessageFault::Mixed);
        }
        self.lines.push(Line { text: text_of(text), data: None });
        match divider {
            b'-' => Ok(None),
            b'+' => {
                self.data = Some(Vec::new());
                Ok(None)
            }
            b' ' => {
                self.is_event = None;
                self.taken = 0;
                Ok(Some(Message { status, lines: mem::take(&mut self.lines) }))
            }
            _ => Err(MessageFault::Status),
        }
    }
}

impl Message {
    /// Whether nobody asked for it.
    pub const fn is_event(&self) -> bool {
        is_event(self.status)
    }

    /// What the message says, if it is no refusal.
    ///
    /// # Errors
    /// When tor refuses.
    pub fn accepted(&self) -> Result<&Self, Refused> {
        if (200..300).contains(&self.status) { Ok(self) } else { Err(Refused { status: self.status }) }
    }

    /// The values that `GETINFO` or `GETCONF` gave for `key`: `key=value`, or data behind `key=`.
    pub fn values(&self, key: &str) -> impl Iterator<Item = &str> {
        self.lines.iter().filter_map(move |line| {
            let value = line.text.strip_prefix(key)?.strip_prefix('=')?;
            Some(line.data.as_deref().unwrap_or(value))
        })
    }

    /// Every `key=value` of the answer, in tor's order, which is that of its configuration where `GETCONF` asked for it.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.lines.iter().filter_map(|line| {
            let (key, value) = line.text.split_once('=')?;
            Some((key, line.data.as_deref().unwrap_or(value)))
        })
    }
}

const fn is_event(status: u16) -> bool {
    status / 100 == 6
}

fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Source: control-spec, "Status codes".
const fn meaning(status: u16) -> &'static str {
    match status {
        451 => "resources are exhausted",
        500 => "the syntax is wrong",
        510 => "the command is unknown to it",
        511 => "the command is not implemented",
        512 => "an argument's syntax is wrong",
        513 => "an argument is unknown to it",
        514 => "a login must come first",
        515 => "the login is wrong; the cookie file or password is not this tor's",
        551 => "an internal error",
        552 => "what was asked for does not exist, or no longer",
        553 => "the configuration is invalid",
        554 => "the descriptor is invalid",
        555 => "what was asked for is not managed by this connection",
        _ => "no reason that is known here",
    }
}

impl fmt::Debug for Decoder {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Decoder(at line {}, failed: {:?})", self.line, self.failed)
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Message({}, {} lines scrubbed)", self.status, self.lines.len())
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Line(scrubbed)")
    }
}
