//! Version 2: sixteen bytes, addresses, fields (TLVs).

use std::net::{Ipv4Addr, Ipv6Addr};

use crc::{CRC_32_ISCSI, Crc};

use super::{Endpoints, Fault, Header, MOST_BYTES, Progress, ProxyError};

/// Source: proxy-protocol.txt, section 2.2.
pub(super) const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, command, family and transport, length of the rest.
const FIXED_BYTES: usize = 16;

const LOCAL: u8 = 0x20;
const PROXY: u8 = 0x21;

const UNSPECIFIED: u8 = 0x00;
const TCP4: u8 = 0x11;
const UDP4: u8 = 0x12;
const TCP6: u8 = 0x21;
const UDP6: u8 = 0x22;
const UNIX_STREAM: u8 = 0x31;
const UNIX_DATAGRAM: u8 = 0x32;

const V4_BYTES: u16 = 12;
const V6_BYTES: u16 = 36;
const UNIX_BYTES: u16 = 216;

/// `PP2_TYPE_CRC32C`: the checksum of the whole header with these four bytes zero.
const CHECKSUM_FIELD: u8 = 0x03;
static CRC32C: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

pub(super) fn decode(bytes: &[u8]) -> Result<Progress, ProxyError> {
    let fault = |at, fault| Err(ProxyError { at, fault });
    for (at, (byte, expected)) in bytes.iter().zip(&SIGNATURE).enumerate() {
        if byte != expected {
            return fault(at, Fault::Signature(*byte));
        }
    }
    let command = bytes.get(12).copied();
    match command {
        None | Some(LOCAL | PROXY) => {}
        Some(other) => return fault(12, Fault::Command(other)),
    }
    let is_local = command == Some(LOCAL);
    let transport = bytes.get(13).copied();
    let addresses = match transport {
        // What a local header says of addresses must not be read.
        None => 0,
        Some(_) if is_local => 0,
        Some(UNSPECIFIED) => 0,
        Some(TCP4 | UDP4) => V4_BYTES,
        Some(TCP6 | UDP6) => V6_BYTES,
        Some(UNIX_STREAM | UNIX_DATAGRAM) => UNIX_BYTES,
        Some(other) => return fault(13, Fault::Transport(other)),
    };
    let Some((fixed, rest)) = bytes.split_first_chunk::<FIXED_BYTES>() else {
        return Ok(Progress::NeedMore { at_least: FIXED_BYTES });
    };
    let [.., high, low] = *fixed;
    let length = u16::from_be_bytes([high, low]);
    if length < addresses {
        return fault(14, Fault::TooShort { length, addresses });
    }
    let consumed = FIXED_BYTES + usize::from(length);
    if consumed > MOST_BYTES {
        return fault(14, Fault::TooLong { length });
    }
    let Some(block) = rest.get(..usize::from(length)) else {
        return Ok(Progress::NeedMore { at_least: consumed });
    };
    let header = match transport {
        Some(TCP4) if !is_local => four(block).map(Header::Tcp4),
        Some(TCP6) if !is_local => six(block).map(Header::Tcp6),
        _ => None,
    };
    let header = header.unwrap_or(if is_local { Header::Local } else { Header::Unknown });
    // Without a family nobody says where its addresses end and its fields begin.
    if addresses > 0 {
        let whole = bytes.get(..consumed).unwrap_or(bytes);
        check_fields(whole, FIXED_BYTES + usize::from(addresses))?;
    }
    Ok(Progress::Done { header, consumed })
}

fn four(block: &[u8]) -> Option<Endpoints<Ipv4Addr>> {
    let (source, rest) = block.split_first_chunk::<4>()?;
    let (destination, rest) = rest.split_first_chunk::<4>()?;
    Some(endpoints((*source).into(), (*destination).into(), rest.first_chunk()?))
}

fn six(block: &[u8]) -> Option<Endpoints<Ipv6Addr>> {
    let (source, rest) = block.split_first_chunk::<16>()?;
    let (destination, rest) = rest.split_first_chunk::<16>()?;
    Some(endpoints((*source).into(), (*destination).into(), rest.first_chunk()?))
}

fn endpoints<A>(source: A, destination: A, [a, b, c, d]: &[u8; 4]) -> Endpoints<A> {
    Endpoints {
        source,
        source_port: u16::from_be_bytes([*a, *b]),
        destination,
        destination_port: u16::from_be_bytes([*c, *d]),
    }
}

/// Steps over the fields of a whole header from byte `at` on, and compares the checksum if there is one.
fn check_fields(whole: &[u8], mut at: usize) -> Result<(), ProxyError> {
    let mut checksum = None;
    while let Some(field) = whole.get(at..).filter(|rest| !rest.is_empty()) {
        let value = field.split_first_chunk::<3>().and_then(|([kind, high, low], rest)| {
            Some((*kind, rest.get(..usize::from(u16::from_be_bytes([*high, *low])))?))
        });
        let Some((kind, value)) = value else { return Err(ProxyError { at, fault: Fault::Field }) };
        if kind == CHECKSUM_FIELD {
            let stated = value.try_into().ok().map(u32::from_be_bytes);
            if stated.is_none_or(|stated| checksum.replace((at, stated)).is_some()) {
                return Err(ProxyError { at, fault: Fault::Checksum });
            }
        }
        at += 3 + value.len();
    }
    let Some((at, stated)) = checksum else { return Ok(()) };
    let (before, after) = (whole.get(..at + 3), whole.get(at + 7..));
    let mut digest = CRC32C.digest();
    for part in [before.unwrap_or_default(), &[0; 4], after.unwrap_or_default()] {
        digest.update(part);
    }
    if digest.finalize() == stated { Ok(()) } else { Err(ProxyError { at, fault: Fault::Checksum }) }
}

pub(super) fn encode(header: &Header, out: &mut Vec<u8>) {
    let (command, transport, length) = match header {
        Header::Local => (LOCAL, UNSPECIFIED, 0),
        Header::Unknown => (PROXY, UNSPECIFIED, 0),
        Header::Tcp4(_) => (PROXY, TCP4, V4_BYTES),
        Header::Tcp6(_) => (PROXY, TCP6, V6_BYTES),
    };
    out.extend(SIGNATURE);
    out.extend([command, transport]);
    out.extend(length.to_be_bytes());
    let ports = match header {
        Header::Local | Header::Unknown => return,
        Header::Tcp4(Endpoints { source, source_port, destination, destination_port }) => {
            out.extend(source.octets());
            out.extend(destination.octets());
            [source_port, destination_port]
        }
        Header::Tcp6(Endpoints { source, source_port, destination, destination_port }) => {
            out.extend(source.octets());
            out.extend(destination.octets());
            [source_port, destination_port]
        }
    };
    out.extend(ports.into_iter().flat_map(|port| port.to_be_bytes()));
}
