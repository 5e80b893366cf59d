//! The PROXY header that stands before a stream's first byte: version 1, which is text and what tor writes, and
//! version 2, which is binary.
//!
//! Source: HAProxy's [proxy-protocol.txt](https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt).
//!
//! The parser is our own. `proxy-header` 0.1.3 skips the sixth byte unread, takes `UNKNOWNX` for `UNKNOWN` and `+80`
//! for 80, checks no checksum, and asks for up to 64 KiB; `ppp` 2.3.0 reports some prefixes of a good header as invalid
//! and takes `+80`. Neither says how many bytes it needs. Whoever stands behind this header is banned or served by it,
//! so it is read strictly, byte by byte from left to right: the first byte that cannot belong to a header ends the
//! reading, and the outcome does not depend on how the bytes were split.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use thiserror::Error;

use crate::circuit::{NotACircuit, RawCircuit};

mod binary;
mod text;

/// No header is longer, in bytes. A longer version 2 header is refused.
///
/// Source: proxy-protocol.txt, section 2: both forms "fit in the smallest TCP segment that any TCP/IP host is required
/// to support", which is 576 - 40 bytes. Version 1 ends after 107.
pub const MOST_BYTES: usize = 536;

/// Who stands behind a stream, as the header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// The proxy speaks for itself, for example in a health check (version 2, `LOCAL`). Whatever else the header says
    /// is not read, as the specification demands.
    Local,
    /// The proxy does not tell (`UNKNOWN`, `AF_UNSPEC`), or tells of something else than TCP: a Unix socket, a datagram.
    Unknown,
    /// A TCP connection over IPv4.
    Tcp4(Endpoints<Ipv4Addr>),
    /// A TCP connection over IPv6. Tor's headers are of this kind.
    Tcp6(Endpoints<Ipv6Addr>),
}

/// Both ends of a connection. `Debug` is scrubbed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Endpoints<A> {
    /// Who connected. From tor: the circuit.
    pub source: A,
    /// Its port. From tor: the low 16 bits of the circuit's number, so 0 is possible, and nothing may rest on it.
    pub source_port: u16,
    /// Whom it connected to. From tor: `::1`.
    pub destination: A,
    /// Its port. From tor: the onion service's virtual port.
    pub destination_port: u16,
}

/// How far a header was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The bytes so far begin a header, and its end is missing.
    NeedMore {
        /// Every header that begins so has at least this many bytes, counted from its beginning. More than the caller
        /// gave, and at most [`MOST_BYTES`].
        at_least: usize,
    },
    /// The header is complete.
    Done {
        /// What it says.
        header: Header,
        /// Its length in bytes. What follows is the stream, even if it looks like another header.
        consumed: usize,
    },
}

/// Bytes that begin no PROXY header. The connection must be closed without an answer.
///
/// `Display` shows no byte of an address or port, since they name a circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "byte {at} of the PROXY header: {fault}; the connection is closed; only tor with \
     `HiddenServiceExportCircuitID haproxy`, or a proxy that sends PROXY headers, may connect here"
)]
pub struct ProxyError {
    /// Where the fault was noticed: bytes before it. Never beyond [`MOST_BYTES`].
    pub at: usize,
    /// What is wrong.
    pub fault: Fault,
}

/// What is wrong with a PROXY header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Fault {
    /// Neither `PROXY ` nor the twelve bytes of version 2, for example because the client speaks HTTP.
    #[error("{} stands where neither version of the header has it", shown(*.0))]
    Signature(u8),
    /// Version 1 with something else than `TCP4`, `TCP6` or `UNKNOWN`.
    #[error("{} belongs to none of TCP4, TCP6 and UNKNOWN", shown(*.0))]
    Family(u8),
    /// Version 1 with no address of its family, written as the specification says.
    #[error("no {0} address of this family stands here")]
    Address(Which),
    /// Version 1 with no port from 0 to 65535 in digits without a leading zero.
    #[error("no {0} port stands here, a number from 0 to 65535 without leading zeros")]
    Port(Which),
    /// Version 1 that does not end in a carriage return and a line feed together.
    #[error("the line does not end in CR and LF together")]
    LineEnd,
    /// Version 1 without an end within 107 bytes.
    #[error("the line is longer than 107 bytes")]
    LineTooLong,
    /// Version 2 with another version, or a command that is neither `LOCAL` nor `PROXY`.
    #[error("{0:#04x} is no command of version 2 (0x20 LOCAL, 0x21 PROXY)")]
    Command(u8),
    /// Version 2 with a family or transport that does not exist.
    #[error("{0:#04x} is no family and transport of version 2")]
    Transport(u8),
    /// Version 2 that is shorter than its family's addresses.
    #[error("{length} bytes are announced, and the addresses take {addresses}")]
    TooShort {
        /// Bytes announced after the first 16.
        length: u16,
        /// What the family needs.
        addresses: u16,
    },
    /// Version 2 that is longer than [`MOST_BYTES`].
    #[error("{length} bytes are announced, and the whole header may have {MOST_BYTES}")]
    TooLong {
        /// Bytes announced after the first 16.
        length: u16,
    },
    /// Version 2 with a field (TLV) that ends beyond the header.
    #[error("a field ends beyond the header")]
    Field,
    /// Version 2 with a checksum that is not of 4 bytes, that stands there twice or that is wrong.
    #[error("the checksum (CRC32c) is wrong")]
    Checksum,
}

/// One of the two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Who connected.
    Source,
    /// Whom it connected to.
    Destination,
}

/// Reads a header from the beginning of a stream.
///
/// The same bytes in whatever pieces come to the same end: an error stays the same error, and `NeedMore` becomes one of
/// the others within [`MOST_BYTES`]. It allocates nothing.
///
/// # Errors
/// At the first byte after which no header is possible.
pub fn decode(bytes: &[u8]) -> Result<Progress, ProxyError> {
    match bytes.first() {
        None => Ok(Progress::NeedMore { at_least: text::LEAST_BYTES }),
        Some(&first) if Some(&first) == binary::SIGNATURE.first() => binary::decode(bytes),
        Some(_) => text::decode(bytes),
    }
}

/// The circuit that a header names.
///
/// # Errors
/// When it names none. Where circuits are required the stream must then be refused.
pub fn circuit_of(header: &Header) -> Result<RawCircuit, NotACircuit> {
    match header {
        Header::Local | Header::Unknown => Err(NotACircuit::NoAddress),
        Header::Tcp4(_) => Err(NotACircuit::Ipv4),
        Header::Tcp6(Endpoints { source, .. }) => RawCircuit::of(IpAddr::V6(*source)),
    }
}

/// Appends the header in version 1. It has no word for [`Header::Local`], which becomes `UNKNOWN`.
pub fn encode_v1(header: &Header, out: &mut Vec<u8>) {
    text::encode(header, out);
}

/// Appends the header in version 2, without fields.
pub fn encode_v2(header: &Header, out: &mut Vec<u8>) {
    binary::encode(header, out);
}

impl<A> fmt::Debug for Endpoints<A> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Endpoints(scrubbed)")
    }
}

impl fmt::Display for Which {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Source => "source",
            Self::Destination => "destination",
        })
    }
}

/// A byte that a client chose, as no terminal obeys it.
fn shown(byte: u8) -> String {
    format!("`{}`", byte.escape_ascii())
}
