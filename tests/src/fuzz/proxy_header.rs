//! The PROXY header: [`tunica_onion::proxy_codec`].

use std::net::IpAddr;

use tunica_onion::proxy_codec::{
    Header, MOST_BYTES, Progress, ProxyError, circuit_of, decode, encode_v1, encode_v2,
};

/// Good headers of every kind, and some that are nearly so.
pub fn seeds() -> Vec<Vec<u8>> {
    let lines = [
        "PROXY TCP6 fc00:dead:beef:4dad::0:29a ::1 666 80\r\nGET / HTTP/1.1\r\n\r\n",
        "PROXY TCP6 fc00:dead:beef:4dad::1:0 ::1 0 65535\r\nPROXY TCP6 ::1 ::1 1 1\r\n",
        "PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n",
        "PROXY UNKNOWN ffff:: ::ffff:192.0.2.1 1 1\r\n",
        "PROPFIND / HTTP/1.1\r\n",
    ];
    let signature = b"\r\n\r\n\0\r\nQUIT\n";
    let four = [192, 0, 2, 7, 192, 0, 2, 8, 0xdc, 0x04, 0x01, 0xbb];
    let checksum = [&[4, 0, 1, 0][..], &[3, 0, 4, 0, 0, 0, 0]].concat();
    let binary = [
        (0x21, 0x11, four.to_vec()),
        (0x21, 0x11, [&four[..], &checksum].concat()),
        (0x21, 0x21, vec![0xfc; 36]),
        (0x21, 0x31, vec![0; 220]),
        (0x20, 0x00, vec![]),
    ];
    let binary = binary.into_iter().map(|(command, transport, block)| {
        let length = u16::try_from(block.len()).unwrap().to_be_bytes();
        [&signature[..], &[command, transport], &length, &block].concat()
    });
    lines.into_iter().map(|line| line.as_bytes().to_vec()).chain(binary).collect()
}

/// For all bytes, reading them byte by byte comes to the same as reading them at once, within [`MOST_BYTES`], and asks
/// for no more than that. What is read is written and read the same in both versions. Nothing printed controls a
/// terminal.
pub fn check(bytes: &[u8]) {
    let whole = decode(bytes);
    let mut asked = 0;
    for length in 0..=bytes.len() {
        let part = decode(bytes.get(..length).unwrap());
        if let Ok(Progress::NeedMore { at_least }) = part {
            assert!(length < at_least && at_least <= MOST_BYTES, "{at_least} after {length}");
            asked = asked.max(at_least);
            assert!(length < bytes.len() || part == whole);
            continue;
        }
        assert_eq!(part, whole, "after {length} bytes");
        assert!(length <= MOST_BYTES);
        match part {
            Ok(Progress::Done { header, consumed }) => {
                assert_eq!(consumed, length);
                assert!(asked <= consumed, "{asked} bytes were asked for");
                is_sound(&header);
            }
            Ok(Progress::NeedMore { .. }) => {}
            Err(error) => is_useful(&error, length),
        }
        return;
    }
}

fn is_sound(header: &Header) {
    let in_text = if *header == Header::Local { Header::Unknown } else { *header };
    for (encode, expected) in [(encode_v1 as fn(&Header, &mut Vec<u8>), in_text), (encode_v2, *header)] {
        let mut written = Vec::new();
        encode(header, &mut written);
        assert_eq!(decode(&written), Ok(Progress::Done { header: expected, consumed: written.len() }));
    }
    if let Ok(circuit) = circuit_of(header) {
        let Header::Tcp6(endpoints) = header else { panic!("a circuit without an IPv6 address") };
        assert_eq!(IpAddr::from(endpoints.source), IpAddr::from(circuit.address()));
    }
    assert!(!format!("{header:?}").contains(['.', ':']), "a header prints its addresses");
}

fn is_useful(error: &ProxyError, read: usize) {
    assert!(error.at < read.max(MOST_BYTES));
    let shown = error.to_string();
    assert!(shown.is_ascii() && !shown.chars().any(char::is_control), "would control a terminal: {shown:?}");
}
