//! Tor's control port: [`tunica_onion::control_codec`].
//!
//! The first byte of an input tells in pieces of how many bytes the rest arrives.

use tunica_onion::{
    control_codec::{
        AuthChallenge, Authentication, Command, DecodeError, Decoder, Event, Limits, Message, ParseError,
        ProtocolInfo, addresses, circuits, connections, entry_guards,
    },
    name::OnionAddress,
};

const SESSION: &str = include_str!("../../../userspace/onion/tests/transcripts/tor_session.txt");
const EVENTS: &str = include_str!("../../../userspace/onion/tests/transcripts/tor_events.txt");

/// Small enough to be reached.
const SMALL: Limits = Limits { line_bytes: 200, message_bytes: 600 };

/// Whose descriptors are written.
const SERVICE: &str = "mv3fmgayozp25qoj7hvciro7wldo3ij6wrnfzu6sifhrl37ltftjk5qd";

/// What tor was seen to say: replies, events of each kind, and several in a row.
pub fn seeds() -> Vec<Vec<u8>> {
    let replies = SESSION.split("> ").filter_map(|block| block.split_once('\n')).map(|(_, reply)| reply);
    let rows: Vec<&str> = EVENTS.lines().collect();
    let events = rows.iter().step_by(3).copied();
    let several = rows.chunks(8).take(3).map(|rows| rows.join("\n"));
    let texts = replies.chain(events).map(str::to_owned).chain(several);
    let stream = |text: String| format!("\u{7}{}\r\n", text.trim_end().replace('\n', "\r\n")).into_bytes();
    texts.map(stream).collect()
}

/// For all bytes, messages do not depend on the pieces, are bounded, and are written and read the same; what they say
/// is read, or is an error at one of their lines. For all texts, a command is one line, or a descriptor that reads back.
pub fn check(bytes: &[u8]) {
    let mut rest = bytes;
    let piece = usize::from(super::take_byte(&mut rest)).max(1);
    for limits in [SMALL, Limits::default()] {
        let (messages, error) = decoded(limits, rest, rest.len());
        assert_eq!(decoded(limits, rest, piece), (messages.clone(), error), "in pieces of {piece}");
        for message in &messages {
            is_bounded(limits, message);
            is_read(message);
        }
        let written: Vec<u8> = messages.iter().flat_map(written).collect();
        assert_eq!(decoded(Limits::default(), &written, piece), (messages, None));
        if let Some(error) = error {
            assert!((1..=rest.len() as u64 + 1).contains(&error.line), "{error}");
        }
    }
    let text = String::from_utf8_lossy(rest);
    commands_are_whole(&text);
    for error in list_errors(&text).into_iter().flatten() {
        assert!((1..=text.lines().count()).contains(&error.line), "{error}");
    }
}

/// All messages, and the error behind them.
fn decoded(limits: Limits, bytes: &[u8], piece: usize) -> (Vec<Message>, Option<DecodeError>) {
    let mut decoder = Decoder::new(limits);
    let mut messages = Vec::new();
    for mut input in bytes.chunks(piece.max(1)) {
        loop {
            match decoder.decode(&mut input) {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(error) => return (messages, Some(error)),
            }
        }
        assert!(input.is_empty(), "bytes were left");
    }
    (messages, None)
}

fn is_bounded(limits: Limits, message: &Message) {
    // A byte that is no UTF-8 becomes three.
    let bytes = |text: &str| text.len();
    let data = |line: &tunica_onion::control_codec::Line| line.data.as_deref().map_or(0, bytes);
    assert!(!message.lines.is_empty());
    assert!(message.lines.iter().all(|line| bytes(&line.text) <= 3 * limits.line_bytes));
    let all: usize = message.lines.iter().map(|line| bytes(&line.text) + data(line)).sum();
    assert!(all <= 3 * limits.message_bytes, "{all}");
}

fn is_read(message: &Message) {
    let read = [
        Event::parse(message).map(|event| format!("{event:?}")),
        ProtocolInfo::parse(message).map(|info| format!("{info:?}")),
        AuthChallenge::parse(message).map(|challenge| format!("{challenge:?}")),
    ];
    for outcome in read {
        match outcome {
            Ok(printed) => assert!(!printed.chars().any(char::is_control), "{printed:?}"),
            Err(error) => assert!((1..=message.lines.len()).contains(&error.line), "{error}"),
        }
    }
}

/// What each reader of lists has against the text.
fn list_errors(text: &str) -> [Option<ParseError>; 4] {
    [circuits(text).err(), connections(text).err(), entry_guards(text).err(), addresses(text).err()]
}

fn written(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (at, line) in message.lines.iter().enumerate() {
        let divider = match (&line.data, at + 1 == message.lines.len()) {
            (Some(_), _) => '+',
            (None, true) => ' ',
            (None, false) => '-',
        };
        bytes.extend(format!("{:03}{divider}{}\r\n", message.status, line.text).into_bytes());
        let Some(data) = &line.data else { continue };
        for data in data.split_terminator('\n') {
            let stuffing = if data.starts_with('.') { "." } else { "" };
            bytes.extend(format!("{stuffing}{data}\r\n").into_bytes());
        }
        bytes.extend(b".\r\n");
    }
    bytes
}

fn commands_are_whole(text: &str) {
    for command in [
        Command::Authenticate(Authentication::Password(text)),
        Command::GetInfo(&[text]),
        Command::GetConf(&[text, text]),
    ] {
        let Ok(bytes) = command.encode() else { continue };
        let line = bytes.strip_suffix(b"\r\n").unwrap();
        assert!(!line.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)), "more than one line");
    }
    let address: OnionAddress = SERVICE.parse().unwrap();
    let Ok(bytes) = (Command::HsPost { address, servers: &[], descriptor: text }).encode() else { return };
    // As tor reads it: a line, and data up to a full stop.
    let stream = [&b"250"[..], &bytes, b"250 OK\r\n"].concat();
    let (messages, error) = decoded(Limits::default(), &stream, stream.len());
    assert_eq!((messages.len(), error), (1, None));
    let mut expected = text.replace("\r\n", "\n");
    if !expected.is_empty() && !expected.ends_with('\n') {
        expected.push('\n');
    }
    let line = messages.first().and_then(|message| message.lines.first()).unwrap();
    assert_eq!(line.data.as_deref(), Some(expected.as_str()));
}
