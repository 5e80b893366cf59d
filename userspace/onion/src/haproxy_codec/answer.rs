//! Where an answer ends.

use std::{fmt, mem};

use thiserror::Error;

/// What ends an answer after [`super::Command::Prompt`]: its empty line, and the prompt.
const PROMPT: &[u8] = b"\n> ";

/// An answer longer than the limit. The connection must be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("HAProxy's answer is longer than {limit_bytes} bytes; it is not used, and the connection is closed")]
pub struct AnswerTooLong {
    /// The limit.
    pub limit_bytes: usize,
}

/// Cuts what HAProxy sends into answers, whatever pieces it comes in.
///
/// After [`super::Command::Prompt`] an answer ends in an empty line and a prompt. Without it HAProxy answers once and
/// closes the connection, and [`Self::end`] is the answer.
#[derive(Clone, PartialEq, Eq)]
pub struct AnswerDecoder {
    limit_bytes: usize,
    bytes: Vec<u8>,
    has_failed: bool,
}

impl AnswerDecoder {
    /// At the beginning of a connection. An answer of more than `limit_bytes` is an error.
    pub const fn new(limit_bytes: usize) -> Self {
        Self { limit_bytes, bytes: Vec::new(), has_failed: false }
    }

    /// Takes bytes from the front of `input` up to the end of an answer, or all of them if none ends there. To be called
    /// again until it returns `None`. An answer comes with its empty line, without the prompt.
    ///
    /// # Errors
    /// When an answer is too long. Every later call returns the same error.
    pub fn decode(&mut self, input: &mut &[u8]) -> Result<Option<String>, AnswerTooLong> {
        while let Some((byte, rest)) = input.split_first() {
            if self.has_failed || self.bytes.len() == self.limit_bytes + "> ".len() {
                self.has_failed = true;
                return Err(AnswerTooLong { limit_bytes: self.limit_bytes });
            }
            *input = rest;
            self.bytes.push(*byte);
            let body = if *byte == b' ' { self.bytes.strip_suffix(PROMPT) } else { None };
            if body.is_some_and(|body| body.is_empty() || body.ends_with(b"\n")) {
                self.bytes.truncate(self.bytes.len() - "> ".len());
                return Ok(Some(text_of(&mem::take(&mut self.bytes))));
            }
        }
        Ok(None)
    }

    /// What came after the last prompt, once HAProxy has closed the connection.
    pub fn end(self) -> String {
        text_of(&self.bytes)
    }
}

fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl fmt::Debug for AnswerDecoder {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "AnswerDecoder({} bytes scrubbed)", self.bytes.len())
    }
}
