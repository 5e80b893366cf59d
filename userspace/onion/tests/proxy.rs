//! The PROXY header: rows of good and bad ones, and what must hold for all.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper that fails is a test that fails"
)]

use std::net::{Ipv4Addr, Ipv6Addr};

use crc::{CRC_32_ISCSI, Crc};
use proptest::prelude::*;
use tunica_onion::{
    circuit::NotACircuit,
    proxy_codec::{
        Endpoints, Fault, Header, MOST_BYTES, Progress, ProxyError, Which, circuit_of, decode, encode_v1,
        encode_v2,
    },
};

type Outcome = Result<Progress, ProxyError>;

/// What reading byte by byte comes to, and how many bytes it took.
fn in_pieces(bytes: &[u8]) -> (Outcome, usize) {
    for length in 0..=bytes.len() {
        let outcome = decode(&bytes[..length]);
        match outcome {
            Ok(Progress::NeedMore { at_least }) => assert!(at_least > length && at_least <= MOST_BYTES),
            Ok(Progress::Done { .. }) | Err(_) => return (outcome, length),
        }
    }
    (decode(bytes), bytes.len())
}

/// Reads, and sees that the pieces do not matter.
fn read(bytes: &[u8]) -> Outcome {
    let outcome = decode(bytes);
    let (pieces, taken) = in_pieces(bytes);
    assert_eq!(pieces, outcome, "{}", bytes.escape_ascii());
    match outcome {
        Ok(Progress::Done { consumed, .. }) => assert_eq!(consumed, taken),
        Ok(Progress::NeedMore { .. }) => {}
        Err(error) => {
            assert!(error.at <= taken && taken <= MOST_BYTES);
            let shown = error.to_string();
            assert!(shown.is_ascii() && !shown.contains(char::is_control), "{shown}");
        }
    }
    outcome
}

/// Reads what must be a whole header.
fn whole(bytes: &[u8]) -> Header {
    match read(bytes) {
        Ok(Progress::Done { header, consumed }) if consumed == bytes.len() => header,
        other => panic!("{}: {other:?}", bytes.escape_ascii()),
    }
}

fn fault(bytes: &[u8]) -> (usize, Fault) {
    let error = read(bytes).unwrap_err();
    (error.at, error.fault)
}

/// The circuit's number in a header.
fn circuit(bytes: &[u8]) -> Result<u32, NotACircuit> {
    circuit_of(&whole(bytes)).map(|circuit| circuit.number().get())
}

#[test]
fn what_tor_writes_names_a_circuit() {
    for (line, number) in [
        // As recorded from tor 0.4.9.11.
        ("PROXY TCP6 fc00:dead:beef:4dad::0:24 ::1 36 80\r\n", Ok(0x24)),
        ("PROXY TCP6 fc00:dead:beef:4dad::0:29a ::1 666 80\r\n", Ok(0x29a)),
        ("PROXY TCP6 fc00:dead:beef:4dad::29a ::1 666 80\r\n", Ok(0x29a)),
        ("PROXY TCP6 FC00:DEAD:BEEF:4DAD::29A ::1 666 80\r\n", Ok(0x29a)),
        // Above 65535, where the source port may be 0.
        ("PROXY TCP6 fc00:dead:beef:4dad::1:0 ::1 0 443\r\n", Ok(0x1_0000)),
        ("PROXY TCP6 fc00:dead:beef:4dad::ffff:ffff ::1 65535 65535\r\n", Ok(u32::MAX)),
        // The source port proves nothing.
        ("PROXY TCP6 fc00:dead:beef:4dad::0:29a ::1 1 80\r\n", Ok(0x29a)),
        ("PROXY TCP6 fc00:dead:beef:4dad::0:0 ::1 0 80\r\n", Err(NotACircuit::Zero)),
        ("PROXY TCP6 fc00:dead:beef:4dad:1::29a ::1 666 80\r\n", Err(NotACircuit::MiddleBits)),
        ("PROXY TCP6 2001:db8::29a ::1 666 80\r\n", Err(NotACircuit::OtherNetwork)),
        ("PROXY TCP4 192.0.2.7 192.0.2.8 56324 443\r\n", Err(NotACircuit::Ipv4)),
        ("PROXY UNKNOWN\r\n", Err(NotACircuit::NoAddress)),
        ("PROXY UNKNOWN fc00:dead:beef:4dad::29a ::1 666 80\r\n", Err(NotACircuit::NoAddress)),
    ] {
        assert_eq!(circuit(line.as_bytes()), number, "{line}");
    }
}

#[test]
fn version_1_is_read() {
    let endpoints = Endpoints {
        source: Ipv4Addr::new(192, 0, 2, 7),
        source_port: 56324,
        destination: Ipv4Addr::new(198, 51, 100, 1),
        destination_port: 0,
    };
    assert_eq!(whole(b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 0\r\n"), Header::Tcp4(endpoints));
    let line = "PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff \
                ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n";
    assert!(matches!(whole(line.as_bytes()), Header::Tcp6(_)));
    for rest in ["", " ", "  x", " \0\u{7f}é", &format!(" {}", "x".repeat(91))] {
        assert_eq!(whole(format!("PROXY UNKNOWN{rest}\r\n").as_bytes()), Header::Unknown, "{rest}");
    }
}

#[test]
fn version_1_is_read_strictly() {
    let (source, destination) = (Which::Source, Which::Destination);
    for (text, at, expected) in [
        ("GET / HTTP/1.1\r\n", 0, Fault::Signature(b'G')),
        ("PROPFIND / HTTP/1.1\r\n", 3, Fault::Signature(b'P')),
        ("proxy TCP4 192.0.2.7 192.0.2.8 1 2\r\n", 0, Fault::Signature(b'p')),
        ("PROXY\0TCP4 192.0.2.7 192.0.2.8 1 2\r\n", 5, Fault::Signature(0)),
        ("PROXY  TCP4 192.0.2.7 192.0.2.8 1 2\r\n", 6, Fault::Family(b' ')),
        ("PROXY tcp4 192.0.2.7 192.0.2.8 1 2\r\n", 6, Fault::Family(b't')),
        ("PROXY TCP5 192.0.2.7 192.0.2.8 1 2\r\n", 9, Fault::Family(b'5')),
        ("PROXY UDP4 192.0.2.7 192.0.2.8 1 2\r\n", 7, Fault::Family(b'D')),
        ("PROXY UNKNOWNX\r\n", 13, Fault::Family(b'X')),
        ("PROXY TCP4\t192.0.2.7 192.0.2.8 1 2\r\n", 10, Fault::Family(b'\t')),
        ("PROXY TCP4  192.0.2.7 192.0.2.8 1 2\r\n", 11, Fault::Address(source)),
        ("PROXY TCP4 192.0.2.7  192.0.2.8 1 2\r\n", 21, Fault::Address(destination)),
        ("PROXY TCP4 192.0.2.07 192.0.2.8 1 2\r\n", 11, Fault::Address(source)),
        ("PROXY TCP4 192.0.2.256 192.0.2.8 1 2\r\n", 11, Fault::Address(source)),
        ("PROXY TCP4 1921.0.2.1.00000 192.0.2.8 1 2\r\n", 26, Fault::Address(source)),
        ("PROXY TCP4 ::1 ::1 1 2\r\n", 11, Fault::Address(source)),
        ("PROXY TCP6 192.0.2.7 192.0.2.8 1 2\r\n", 11, Fault::Address(source)),
        ("PROXY TCP6 ::1%lo ::1 1 2\r\n", 14, Fault::Address(source)),
        ("PROXY TCP6 [::1] ::1 1 2\r\n", 11, Fault::Address(source)),
        ("PROXY TCP6 ::1 :: 01 2\r\n", 18, Fault::Port(source)),
        ("PROXY TCP6 ::1 :: 00 2\r\n", 18, Fault::Port(source)),
        ("PROXY TCP6 ::1 :: 1 02\r\n", 20, Fault::Port(destination)),
        ("PROXY TCP6 ::1 :: 65536 2\r\n", 18, Fault::Port(source)),
        ("PROXY TCP6 ::1 :: 1 655350\r\n", 25, Fault::Port(destination)),
        ("PROXY TCP6 ::1 :: +1 2\r\n", 18, Fault::Port(source)),
        ("PROXY TCP6 ::1 :: -1 2\r\n", 18, Fault::Port(source)),
        ("PROXY TCP6 ::1 ::  2\r\n", 18, Fault::Port(source)),
        ("PROXY TCP6 ::1 :: 1  2\r\n", 20, Fault::Port(destination)),
        ("PROXY TCP6 ::1 :: 1 \r\n", 20, Fault::Port(destination)),
        ("PROXY TCP6 ::1 :: 1 2 \r\n", 21, Fault::Port(destination)),
        ("PROXY TCP6 ::1 :: 1\r\n", 19, Fault::LineEnd),
        ("PROXY TCP6 ::1 ::\r\n", 17, Fault::LineEnd),
        ("PROXY TCP6 ::1 :: 1 2\n", 21, Fault::LineEnd),
        ("PROXY TCP6 ::1 :: 1 2\rx", 22, Fault::LineEnd),
        ("PROXY TCP6 ::1 :: 1 2\r\r\n", 22, Fault::LineEnd),
        ("PROXY UNKNOWN\n", 13, Fault::Family(b'\n')),
        ("PROXY UNKNOWN x\nGET / HTTP/1.1\r\n", 15, Fault::LineEnd),
        ("PROXY UNKNOWN x\ry\r\n", 16, Fault::LineEnd),
    ] {
        assert_eq!(fault(text.as_bytes()), (at, expected), "{text:?}");
    }
    for extra in [92, 93, 1_000] {
        let text = format!("PROXY UNKNOWN {}\r\n", "x".repeat(extra));
        assert_eq!(fault(text.as_bytes()), (107, Fault::LineTooLong), "{extra}");
    }
}

/// A version 2 header.
fn binary(command: u8, transport: u8, block: &[u8]) -> Vec<u8> {
    let length = u16::try_from(block.len()).unwrap().to_be_bytes();
    [&b"\r\n\r\n\0\r\nQUIT\n"[..], &[command, transport], &length, block].concat()
}

fn field(kind: u8, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len()).unwrap().to_be_bytes();
    [&[kind], &length[..], value].concat()
}

const FOUR: [u8; 12] = [192, 0, 2, 7, 192, 0, 2, 8, 0xdc, 0x04, 0x01, 0xbb];

fn six() -> Vec<u8> {
    let source: Ipv6Addr = "fc00:dead:beef:4dad::29a".parse().unwrap();
    [&source.octets()[..], &Ipv6Addr::LOCALHOST.octets(), &[2, 0x9a, 0, 80]].concat()
}

#[test]
fn version_2_is_read() {
    let four = Header::Tcp4(Endpoints {
        source: Ipv4Addr::new(192, 0, 2, 7),
        source_port: 56324,
        destination: Ipv4Addr::new(192, 0, 2, 8),
        destination_port: 443,
    });
    assert_eq!(whole(&binary(0x21, 0x11, &FOUR)), four);
    assert_eq!(circuit(&binary(0x21, 0x21, &six())), Ok(0x29a));
    // A Unix socket, datagrams, no family.
    for (transport, block) in [
        (0x31, &[0; 216][..]),
        (0x32, &[0; 216]),
        (0x12, &FOUR),
        (0x22, &six()),
        (0x00, &[]),
        (0x00, &[1, 2, 3]),
    ] {
        assert_eq!(whole(&binary(0x21, transport, block)), Header::Unknown, "{transport:#x}");
    }
    // The proxy itself: what it says of addresses is stepped over, whatever it is.
    for (transport, block) in [(0x00, &[][..]), (0x11, &FOUR), (0x11, &[1]), (0xff, &[1, 2, 3])] {
        assert_eq!(whole(&binary(0x20, transport, block)), Header::Local, "{transport:#x}");
    }
}

#[test]
fn version_2_is_read_strictly() {
    for (bytes, at, expected) in [
        (b"\r\n\r\n\0\r\nQUIT\r".to_vec(), 11, Fault::Signature(b'\r')),
        (b"\r\nGET".to_vec(), 2, Fault::Signature(b'G')),
        (binary(0x11, 0x11, &FOUR), 12, Fault::Command(0x11)),
        (binary(0x31, 0x11, &FOUR), 12, Fault::Command(0x31)),
        (binary(0x22, 0x11, &FOUR), 12, Fault::Command(0x22)),
        (binary(0x21, 0x13, &FOUR), 13, Fault::Transport(0x13)),
        (binary(0x21, 0x01, &FOUR), 13, Fault::Transport(0x01)),
        (binary(0x21, 0x41, &FOUR), 13, Fault::Transport(0x41)),
        (binary(0x21, 0x11, &FOUR[..11]), 14, Fault::TooShort { length: 11, addresses: 12 }),
        (binary(0x21, 0x21, &FOUR), 14, Fault::TooShort { length: 12, addresses: 36 }),
        (binary(0x21, 0x31, &[0; 215]), 14, Fault::TooShort { length: 215, addresses: 216 }),
        (binary(0x21, 0x11, &[0; 521]), 14, Fault::TooLong { length: 521 }),
        (binary(0x20, 0x00, &[0; 65_535]), 14, Fault::TooLong { length: 65_535 }),
    ] {
        assert_eq!(fault(&bytes), (at, expected), "{}", bytes.escape_ascii());
    }
    assert_eq!(whole(&binary(0x21, 0x00, &[0; 520])), Header::Unknown, "the longest");
}

#[test]
fn fields_are_stepped_over_and_their_checksum_is_compared() {
    let noop = field(0x04, b"padding");
    let zero = field(0x03, &[0; 4]);
    let bytes = binary(0x21, 0x21, &[six(), noop.clone(), zero, field(0xea, b"")].concat());
    let at = 16 + 36 + noop.len();
    let mut good = bytes.clone();
    let checksum = Crc::<u32>::new(&CRC_32_ISCSI).checksum(&bytes);
    good[at + 3..at + 7].copy_from_slice(&checksum.to_be_bytes());
    assert_eq!(circuit(&good), Ok(0x29a));
    // The kind of the field with the checksum apart: another kind has none.
    for wrong in (16..good.len()).filter(|byte| *byte != at) {
        let mut bad = good.clone();
        bad[wrong] ^= 0x10;
        assert!(read(&bad).is_err(), "byte {wrong} may differ");
    }
    for (fields, at, expected) in [
        (field(0x03, &[0; 3]), 28, Fault::Checksum),
        (field(0x03, &[0; 5]), 28, Fault::Checksum),
        ([field(0x03, &[0; 4]), field(0x03, &[0; 4])].concat(), 35, Fault::Checksum),
        (field(0x03, &[0; 4]), 28, Fault::Checksum),
        (vec![0x04], 28, Fault::Field),
        (vec![0x04, 0], 28, Fault::Field),
        (vec![0x04, 0, 1], 28, Fault::Field),
        (vec![0x04, 0xff, 0xff, 0, 0], 28, Fault::Field),
    ] {
        let bytes = binary(0x21, 0x11, &[&FOUR[..], &fields].concat());
        assert_eq!(fault(&bytes), (at, expected), "{fields:?}");
    }
}

#[test]
fn what_is_cut_off_asks_for_more() {
    for bytes in [
        b"PROXY TCP6 fc00:dead:beef:4dad::0:29a ::1 666 80\r\n".to_vec(),
        b"PROXY TCP4 192.0.2.7 192.0.2.8 1 2\r\n".to_vec(),
        b"PROXY UNKNOWN and more\r\n".to_vec(),
        binary(0x21, 0x21, &six()),
        binary(0x20, 0x00, &[]),
    ] {
        for length in 0..bytes.len() {
            let outcome = read(&bytes[..length]);
            let Ok(Progress::NeedMore { at_least }) = outcome else { panic!("{length}: {outcome:?}") };
            assert!(length < at_least && at_least <= bytes.len(), "{length}: {at_least}");
        }
    }
}

#[test]
fn what_follows_belongs_to_the_stream() {
    let header = b"PROXY TCP6 fc00:dead:beef:4dad::0:29a ::1 666 80\r\n";
    let forged = b"PROXY TCP6 fc00:dead:beef:4dad::0:1 ::1 1 80\r\n";
    let forged_binary = binary(0x21, 0x21, &six());
    for rest in [&forged[..], &forged_binary, b"GET / HTTP/1.1\r\n\r\n", b"\n", b"\r\n", b"\0"] {
        assert_eq!(read(&[header, rest].concat()), decode(header));
        let binary = binary(0x21, 0x11, &FOUR);
        assert_eq!(read(&[&binary, rest].concat()), decode(&binary));
    }
}

#[test]
fn nothing_printed_names_a_client() {
    let line = b"PROXY TCP6 fc00:dead:beef:4dad::0:29a 192.0.2.7 666 80\r\n";
    let shown = read(line).unwrap_err().to_string();
    assert!(
        !shown.contains("29a") && shown.starts_with("byte 38 of the PROXY header: no destination"),
        "{shown}"
    );
    let header = whole(b"PROXY TCP6 fc00:dead:beef:4dad::0:29a ::1 666 80\r\n");
    let shown = format!("{header:?} {:?}", circuit_of(&header));
    assert!(!shown.contains("29a") && !shown.contains("666"), "{shown}");
    let shown = read(b"\x1b[2J").unwrap_err().to_string();
    assert!(shown.contains(r"`\x1b` stands where"), "{shown}");
}

fn any_header() -> impl Strategy<Value = Header> {
    let four = any::<([u8; 4], u16, [u8; 4], u16)>().prop_map(|(source, source_port, destination, port)| {
        let (source, destination) = (source.into(), destination.into());
        Header::Tcp4(Endpoints { source, source_port, destination, destination_port: port })
    });
    let six = any::<([u16; 8], u16, [u8; 16], u16)>().prop_map(|(source, source_port, destination, port)| {
        let (source, destination) = (source.into(), destination.into());
        Header::Tcp6(Endpoints { source, source_port, destination, destination_port: port })
    });
    prop_oneof![Just(Header::Local), Just(Header::Unknown), four, six]
}

proptest! {
    /// For all headers, both versions are read as they were written, whatever follows them.
    #[test]
    fn headers_are_read_as_they_were_written(header in any_header(), rest in any::<Vec<u8>>()) {
        let in_text = if header == Header::Local { Header::Unknown } else { header };
        for (encode, expected) in
            [(encode_v1 as fn(&Header, &mut Vec<u8>), in_text), (encode_v2, header)]
        {
            let mut bytes = Vec::new();
            encode(&header, &mut bytes);
            let consumed = bytes.len();
            bytes.extend(&rest);
            prop_assert_eq!(read(&bytes), Ok(Progress::Done { header: expected, consumed }));
        }
    }

    /// For all bytes, also those that a header might begin with, the pieces in which they come do not matter.
    #[test]
    fn pieces_do_not_matter(start in 0usize..4, damage in any::<(u8, u8)>(), rest in any::<Vec<u8>>()) {
        let starts = [
            b"PROXY TCP6 fc00:dead:beef:4dad::0:29a ::1 666 80\r\n".to_vec(),
            b"PROXY UNKNOWN ".to_vec(),
            binary(0x21, 0x11, &[&FOUR[..], &field(0x03, &[0; 4])].concat()),
            Vec::new(),
        ];
        let mut bytes = [&starts[start][..], &rest].concat();
        if let Some(byte) = bytes.get_mut(usize::from(damage.0)) {
            *byte = damage.1;
        }
        // It compares the outcomes itself.
        read(&bytes).ok();
    }
}
