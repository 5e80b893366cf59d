//! Version 1: one line of text.

use std::{
    io::Write as _,
    net::{Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use super::{Endpoints, Fault, Header, Progress, ProxyError, Which};

/// The longest line, its end included: `UNKNOWN` with two addresses and ports.
///
/// Source: proxy-protocol.txt, section 2.1.
const MOST_BYTES: usize = 107;
/// The shortest line: `PROXY UNKNOWN` and its end.
pub(super) const LEAST_BYTES: usize = 15;
/// The shortest and the longest address of a family, in characters.
const V4_LENGTH: usize = "255.255.255.255".len();
const V6_LENGTH: usize = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".len();
const PORT_LENGTH: usize = "65535".len();

const BEGINNING: &[u8] = b"PROXY ";

/// Why reading stopped.
enum Stop {
    /// At the end of the bytes.
    End,
    Fault(ProxyError),
}

/// A line being read from left to right.
struct Line<'a> {
    /// At most the longest line.
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Line<'a> {
    fn next(&mut self) -> Result<u8, Stop> {
        let Some(byte) = self.bytes.get(self.at) else {
            let is_full = self.bytes.len() == MOST_BYTES;
            return Err(if is_full { fault(MOST_BYTES, Fault::LineTooLong) } else { Stop::End });
        };
        self.at += 1;
        Ok(*byte)
    }

    /// Reads a word byte by byte.
    fn word(&mut self, word: &[u8], fault_at: fn(u8) -> Fault) -> Result<(), Stop> {
        for expected in word {
            let at = self.at;
            let byte = self.next()?;
            if byte != *expected {
                return Err(fault(at, fault_at(byte)));
            }
        }
        Ok(())
    }

    /// Reads up to `end` what is at most `longest` bytes of a kind, and leaves `end` behind.
    fn field<T: FromStr>(
        &mut self,
        end: u8,
        longest: usize,
        is_part: fn(u8) -> bool,
        wrong: Fault,
    ) -> Result<T, Stop> {
        let start = self.at;
        loop {
            let at = self.at;
            let byte = self.next()?;
            if byte == end {
                let text = self.bytes.get(start..at).unwrap_or_default();
                let text = str::from_utf8(text).unwrap_or_default();
                return text.parse().map_err(|_| fault(start, wrong));
            }
            if byte == b'\n' || byte == b'\r' {
                return Err(fault(at, Fault::LineEnd));
            }
            if !is_part(byte) || at - start >= longest {
                return Err(fault(at, wrong));
            }
        }
    }

    fn address<A: FromStr>(&mut self, longest: usize, which: Which) -> Result<A, Stop> {
        let is_part = |byte: u8| byte.is_ascii_hexdigit() || byte == b'.' || byte == b':';
        self.field(b' ', longest, is_part, Fault::Address(which))
    }

    fn port(&mut self, end: u8, which: Which) -> Result<u16, Stop> {
        let start = self.at;
        let port = self.field(end, PORT_LENGTH, |byte| byte.is_ascii_digit(), Fault::Port(which))?;
        let has_leading_zero = self.bytes.get(start) == Some(&b'0') && self.at - start > "0 ".len();
        if has_leading_zero { Err(fault(start, Fault::Port(which))) } else { Ok(port) }
    }

    fn endpoints<A: FromStr>(&mut self, longest: usize) -> Result<Endpoints<A>, Stop> {
        let source = self.address(longest, Which::Source)?;
        let destination = self.address(longest, Which::Destination)?;
        let source_port = self.port(b' ', Which::Source)?;
        let destination_port = self.port(b'\r', Which::Destination)?;
        self.line_feed()?;
        Ok(Endpoints { source, source_port, destination, destination_port })
    }

    fn line_feed(&mut self) -> Result<(), Stop> {
        self.word(b"\n", |_| Fault::LineEnd)
    }

    /// What follows `UNKNOWN`: nothing, or a blank and whatever the sender likes, which must be ignored.
    fn ignored(&mut self) -> Result<(), Stop> {
        let at = self.at;
        match self.next()? {
            b'\r' => return self.line_feed(),
            b' ' => {}
            other => return Err(fault(at, Fault::Family(other))),
        }
        loop {
            let at = self.at;
            match self.next()? {
                b'\r' => return self.line_feed(),
                // A line end to some readers and none to others: the sender forges, or is broken.
                b'\n' => return Err(fault(at, Fault::LineEnd)),
                _ => {}
            }
        }
    }

    fn header(&mut self) -> Result<Header, Stop> {
        self.word(BEGINNING, Fault::Signature)?;
        let at = self.at;
        match self.next()? {
            b'T' => {
                self.word(b"CP", Fault::Family)?;
                let at = self.at;
                let family = self.next()?;
                if family != b'4' && family != b'6' {
                    return Err(fault(at, Fault::Family(family)));
                }
                self.word(b" ", Fault::Family)?;
                if family == b'4' {
                    self.endpoints::<Ipv4Addr>(V4_LENGTH).map(Header::Tcp4)
                } else {
                    self.endpoints::<Ipv6Addr>(V6_LENGTH).map(Header::Tcp6)
                }
            }
            b'U' => {
                self.word(b"NKNOWN", Fault::Family)?;
                self.ignored()?;
                Ok(Header::Unknown)
            }
            other => Err(fault(at, Fault::Family(other))),
        }
    }
}

fn fault(at: usize, fault: Fault) -> Stop {
    Stop::Fault(ProxyError { at, fault })
}

pub(super) fn decode(bytes: &[u8]) -> Result<Progress, ProxyError> {
    let bytes = bytes.get(..MOST_BYTES).unwrap_or(bytes);
    let mut line = Line { bytes, at: 0 };
    match line.header() {
        Ok(header) => Ok(Progress::Done { header, consumed: line.at }),
        Err(Stop::Fault(error)) => Err(error),
        Err(Stop::End) => {
            let missing = if bytes.ends_with(b"\r") { 1 } else { 2 };
            Ok(Progress::NeedMore { at_least: (bytes.len() + missing).clamp(LEAST_BYTES, MOST_BYTES) })
        }
    }
}

pub(super) fn encode(header: &Header, out: &mut Vec<u8>) {
    let written = match header {
        Header::Local | Header::Unknown => out.write_all(b"PROXY UNKNOWN\r\n"),
        Header::Tcp4(Endpoints { source, source_port, destination, destination_port }) => {
            write!(out, "PROXY TCP4 {source} {destination} {source_port} {destination_port}\r\n")
        }
        Header::Tcp6(Endpoints { source, source_port, destination, destination_port }) => {
            write!(out, "PROXY TCP6 {source} {destination} {source_port} {destination_port}\r\n")
        }
    };
    // Writing to memory cannot fail.
    debug_assert!(written.is_ok());
}
