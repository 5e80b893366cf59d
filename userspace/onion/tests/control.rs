//! The control port: what tor 0.4.9.11 was seen to say, what it must not be able to do, and what must hold for all.
//!
//! The transcripts are recorded; addresses of the network and folders were replaced. Their lines end in LF alone.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "a helper that fails is a test that fails"
)]

use std::{array, iter, num::NonZeroU32};

use proptest::prelude::*;
use tunica_onion::{
    circuit::RawCircuit,
    control_codec::{
        AuthChallenge, AuthMethod, Authentication, Circuit, CircuitChange, CircuitStatus, Command,
        CommandError, ConnectionStatus, ConnectionTarget, Cookie, DecodeError, Decoder, DescriptorAction,
        Event, EventKind, Expected, ForgedServer, HsState, Limits, Line, Message, MessageFault, NotACookie,
        ParseError, ProtocolInfo, Purpose, Severity, Signal, StatusSource, addresses, circuits, connections,
        entry_guards,
    },
    name::{Fingerprint, OnionAddress},
};

const SESSION: &str = include_str!("transcripts/tor_session.txt");
const EVENTS: &str = include_str!("transcripts/tor_events.txt");
const SERVICE: &str = "mv3fmgayozp25qoj7hvciro7wldo3ij6wrnfzu6sifhrl37ltftjk5qd";
const RELAY: &str = "6ED15B2C138E3F75658A7A586AC87F8AEBDE65F5";
/// The cookie of the tor that was recorded.
const COOKIE: &str = "f90d74bf0b6c3b3a611e52fdb772e20beec3480cf6abe5eaa9d86669886d2ff8";

const SMALL: Limits = Limits { line_bytes: 16, message_bytes: 40 };

/// All messages in `bytes`, and the error behind them, read in pieces of `piece` bytes.
fn decoded(limits: Limits, bytes: &[u8], piece: usize) -> (Vec<Message>, Option<DecodeError>) {
    let mut decoder = Decoder::new(limits);
    let mut messages = Vec::new();
    for mut input in bytes.chunks(piece.max(1)) {
        loop {
            match decoder.decode(&mut input) {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(decoder.decode(&mut input), Err(error), "an error stays");
                    return (messages, Some(error));
                }
            }
        }
        assert!(input.is_empty());
    }
    (messages, None)
}

/// The same, and the pieces do not matter.
fn read(limits: Limits, bytes: &[u8]) -> (Vec<Message>, Option<DecodeError>) {
    let whole = decoded(limits, bytes, bytes.len());
    for piece in [1, 2, 3, 7] {
        assert_eq!(decoded(limits, bytes, piece), whole, "in pieces of {piece}");
    }
    whole
}

fn messages(text: &str) -> Vec<Message> {
    let (messages, error) = read(Limits::default(), text.replace('\n', "\r\n").as_bytes());
    assert_eq!(error, None);
    messages
}

/// The one message of a text.
fn message(text: &str) -> Message {
    let [message] = messages(text).try_into().unwrap();
    message
}

/// The recorded reply to a command, the last one if it was sent more than once.
fn reply(command: &str) -> Message {
    let blocks = SESSION.split("\n> ").map(|block| block.trim_start_matches("> "));
    let found = blocks.filter_map(|block| block.split_once('\n').filter(|(sent, _)| *sent == command)).last();
    let (_, text) = found.unwrap_or_else(|| panic!("{command} is not in the transcript"));
    message(&format!("{}\n", text.trim_end_matches('\n')))
}

fn event(text: &str) -> Result<Event, ParseError> {
    let message = message(&format!("650 {text}\n"));
    assert!(message.is_event());
    Event::parse(&message)
}

fn number(circuit: u32) -> RawCircuit {
    RawCircuit::new(NonZeroU32::new(circuit).unwrap())
}

fn sent(command: &Command<'_>) -> String {
    String::from_utf8(command.encode().unwrap()).unwrap()
}

#[test]
fn a_recorded_login_succeeds_and_a_forged_one_does_not() {
    let info = ProtocolInfo::parse(&reply("PROTOCOLINFO 1")).unwrap();
    assert_eq!(info.methods, [AuthMethod::Cookie, AuthMethod::SafeCookie, AuthMethod::HashedPassword]);
    assert_eq!(info.cookie_file.as_deref(), Some(&b"/var/lib/tor/control_auth_cookie"[..]));
    assert_eq!(info.version.as_deref(), Some("0.4.9.11"));

    let nonce = array::from_fn(|at| u8::try_from(at).unwrap());
    let ask = sent(&Command::AuthChallenge { nonce });
    let challenge = AuthChallenge::parse(&reply(ask.trim_end())).unwrap();
    let byte = |at: usize| u8::from_str_radix(&COOKIE[2 * at..2 * at + 2], 16).unwrap();
    let cookie = Cookie::new(&(0..32).map(byte).collect::<Vec<u8>>()).unwrap();
    let proof = cookie.answer(&nonce, &challenge).unwrap();
    let login = sent(&Command::Authenticate(Authentication::SafeCookie(proof)));
    assert!(reply(login.trim_end()).accepted().is_ok(), "tor took another proof");

    assert_eq!(cookie.answer(&[0; 32], &challenge), Err(ForgedServer));
    let other = Cookie::new(&[7; 32]).unwrap();
    assert_eq!(other.answer(&nonce, &challenge), Err(ForgedServer));
    assert_eq!(Cookie::new(&[0; 31]), Err(NotACookie(31)));
    assert_eq!(format!("{cookie:?} {challenge:?}"), "Cookie(scrubbed) AuthChallenge(scrubbed)");
}

#[test]
fn logins_that_cannot_be_read_are_errors() {
    for (text, expected) in [
        ("250-PROTOCOLINFO 1\n250 OK\n", Expected::AuthMethods),
        ("250-AUTH METHODS=COOKIE COOKIEFILE=bare\n250 OK\n", Expected::Quote),
        ("250-AUTH METHODS=COOKIE COOKIEFILE=\"open\n250 OK\n", Expected::Quote),
    ] {
        let error = ProtocolInfo::parse(&message(text)).unwrap_err();
        assert_eq!(error, ParseError { line: 1, expected }, "{text}");
    }
    let info = "250-AUTH METHODS=NULL,LATER COOKIEFILE=\"/a\\303\\251 \\\"b\\\"\"\n250-LATER x\n250 OK\n";
    let info = ProtocolInfo::parse(&message(info)).unwrap();
    assert_eq!(info.methods, [AuthMethod::Null]);
    assert_eq!(info.cookie_file.as_deref(), Some("/aé \"b\"".as_bytes()));
    for text in ["250 AUTHCHALLENGE\n", "250 AUTHCHALLENGE SERVERHASH=00 SERVERNONCE=00\n", "250 OK\n"] {
        let error = AuthChallenge::parse(&message(text)).unwrap_err();
        assert_eq!(error.expected, Expected::Challenge, "{text}");
    }
}

#[test]
fn commands_are_written_as_tor_takes_them() {
    let address: OnionAddress = SERVICE.parse().unwrap();
    let server: Fingerprint = RELAY.parse().unwrap();
    let cookie = Cookie::new(&[0xab; 32]).unwrap();
    let hex = "AB".repeat(32);
    let all_events = [
        EventKind::Circuit,
        EventKind::CircuitMinor,
        EventKind::CircuitBandwidth,
        EventKind::Connection,
        EventKind::Descriptor,
        EventKind::NetworkLiveness,
        EventKind::StatusGeneral,
        EventKind::StatusClient,
    ];
    let event_names = "CIRC CIRC_MINOR CIRC_BW ORCONN HS_DESC NETWORK_LIVENESS STATUS_GENERAL STATUS_CLIENT";
    for (command, expected) in [
        (Command::ProtocolInfo, "PROTOCOLINFO 1".to_owned()),
        (Command::AuthChallenge { nonce: [0xab; 32] }, format!("AUTHCHALLENGE SAFECOOKIE {hex}")),
        (Command::Authenticate(Authentication::Null), "AUTHENTICATE".to_owned()),
        (
            Command::Authenticate(Authentication::Password(r#"a"b\c é; d"#)),
            r#"AUTHENTICATE "a\"b\\c é; d""#.to_owned(),
        ),
        (Command::Authenticate(Authentication::Cookie(&cookie)), format!("AUTHENTICATE {hex}")),
        (Command::Authenticate(Authentication::SafeCookie([0xab; 32])), format!("AUTHENTICATE {hex}")),
        (Command::SetEvents(&[]), "SETEVENTS".to_owned()),
        (Command::SetEvents(&all_events), format!("SETEVENTS {event_names}")),
        (Command::GetInfo(&["version", "process/pid"]), "GETINFO version process/pid".to_owned()),
        (Command::GetConf(&["SocksPort"]), "GETCONF SocksPort".to_owned()),
        (Command::CloseCircuit { circuit: number(39), if_unused: false }, "CLOSECIRCUIT 39".to_owned()),
        (
            Command::CloseCircuit { circuit: number(u32::MAX), if_unused: true },
            "CLOSECIRCUIT 4294967295 IfUnused".to_owned(),
        ),
        (Command::Signal(Signal::Reload), "SIGNAL RELOAD".to_owned()),
        (Command::Signal(Signal::NewIdentity), "SIGNAL NEWNYM".to_owned()),
        (Command::HsFetch { address, servers: &[] }, format!("HSFETCH {SERVICE}")),
        (Command::HsFetch { address, servers: &[server] }, format!("HSFETCH {SERVICE} SERVER={RELAY}")),
        (
            Command::HsPost { address, servers: &[server], descriptor: "hs-descriptor 3\n.dot\n..\r\n\nend" },
            format!(
                "+HSPOST SERVER={RELAY} HSADDRESS={SERVICE}\r\nhs-descriptor 3\r\n..dot\r\n...\r\n\r\nend\r\n."
            ),
        ),
        (
            Command::HsPost { address, servers: &[], descriptor: "" },
            format!("+HSPOST HSADDRESS={SERVICE}\r\n."),
        ),
        (Command::Quit, "QUIT".to_owned()),
    ] {
        assert_eq!(sent(&command), expected + "\r\n");
    }
}

#[test]
fn no_argument_begins_another_command() {
    let address: OnionAddress = SERVICE.parse().unwrap();
    let password = |password| Command::Authenticate(Authentication::Password(password));
    let post = |descriptor| Command::HsPost { address, servers: &[], descriptor };
    for (command, expected) in [
        (password("a\r\nQUIT"), CommandError::Password(1)),
        (password("a\nQUIT"), CommandError::Password(1)),
        (password("\0"), CommandError::Password(0)),
        (Command::GetInfo(&["version", "a\r\nSIGNAL HALT"]), CommandError::Key(1)),
        (Command::GetInfo(&["version pid"]), CommandError::Key(0)),
        (Command::GetInfo(&["é"]), CommandError::Key(0)),
        (Command::GetInfo(&[""]), CommandError::Key(0)),
        (Command::GetConf(&[]), CommandError::NoKey),
        (post("a\rb"), CommandError::Descriptor(1)),
        (post("a\r"), CommandError::Descriptor(1)),
        (post("a\0"), CommandError::Descriptor(1)),
    ] {
        assert_eq!(command.encode(), Err(expected), "{command:?}");
    }
    assert!(!format!("{:?}", password("secret")).contains("secret"));
}

#[test]
fn recorded_replies_give_their_values() {
    let facts = reply("GETINFO version process/pid");
    assert_eq!(facts.values("version").collect::<Vec<_>>(), ["0.4.9.11"]);
    assert_eq!(facts.values("process/pid").collect::<Vec<_>>(), ["28005"]);
    assert_eq!(facts.values("process").count(), 0);
    // The last line of an answer to GETCONF has a value too.
    let settings = reply("GETCONF SocksPort CookieAuthentication");
    assert_eq!(settings.values("CookieAuthentication").last(), Some("1"));
    for (command, status) in [
        ("GETINFO nope", Err(552)),
        ("CLOSECIRCUIT 99999", Err(552)),
        ("BOGUS", Err(510)),
        (&format!("HSFETCH {SERVICE}.onion"), Err(513)),
        (&format!("HSFETCH {SERVICE}"), Ok(())),
        ("CLOSECIRCUIT 1 IfUnused", Ok(())),
        ("QUIT", Ok(())),
    ] {
        let outcome = reply(command).accepted().map(|_| ()).map_err(|refused| refused.status);
        assert_eq!(outcome, status, "{command}");
    }
    let refused = reply("CLOSECIRCUIT 99999").accepted().unwrap_err().to_string();
    assert!(!refused.contains("99999") && refused.contains("552"), "{refused}");
}

#[test]
fn recorded_lists_are_read() {
    let guards = reply("GETINFO entry-guards");
    let guards = entry_guards(guards.values("entry-guards").next().unwrap()).unwrap();
    assert_eq!(guards.len(), 8);
    assert_eq!(guards.iter().filter(|guard| guard.status == "up").count(), 2);
    assert_eq!(guards[0].relay.fingerprint.to_string(), RELAY);
    assert_eq!(guards[0].relay.nickname.as_deref(), Some("a2"));

    let connected = reply("GETINFO orconn-status");
    let connected = connections(connected.values("orconn-status").next().unwrap()).unwrap();
    assert_eq!(connected.len(), 3);
    assert!(connected.iter().all(|(target, status)| {
        matches!(target, ConnectionTarget::Relay(_)) && *status == ConnectionStatus::Connected
    }));

    let answer = reply("GETINFO circuit-status");
    let circuits = circuits(answer.values("circuit-status").next().unwrap()).unwrap();
    let (circuit, status) = &circuits[0];
    assert_eq!((circuit.id.number().get(), status), (36, &CircuitStatus::Built));
    let hops = circuit.path.iter().filter_map(|hop| hop.nickname.as_deref());
    assert_eq!(hops.collect::<Vec<_>>(), ["a2", "r0", "a1", "a0"]);
    assert_eq!(circuit.build_flags, ["IS_INTERNAL", "NEED_CAPACITY"]);
    assert_eq!(circuit.purpose, Some(Purpose::HsServiceRend));
    assert_eq!(circuit.hs_state, Some(HsState::ServiceRendJoined));
    assert_eq!(circuit.rend_query, Some(SERVICE.parse().unwrap()));
    // 2026-11-21T07:12:18.687743
    assert_eq!(circuit.created_microseconds, Some(1_795_245_138_687_743));
    assert_eq!(circuit.pow_effort, None);
    assert!(circuits.iter().any(|(circuit, _)| circuit.purpose == Some(Purpose::ConfluxLinked)));
    let printed = format!("{circuits:?}{guards:?}{connected:?}{answer:?}");
    assert!(!printed.contains("6ED1") && !printed.contains(SERVICE), "{printed}");

    let relays = ["$4D733090069E41B387A9AFA30E4FEA9207096665", "$EBC76BC443FBC06E6FEF0A0EAB7E5CD9F7E145D4"];
    let found = reply(&format!("GETINFO ns/id/{} ns/id/{}", relays[0], relays[1]));
    for (relay, address) in relays.iter().zip(["192.0.2.3:9001", "192.0.2.6:9001"]) {
        let value = found.values(&format!("ns/id/{relay}")).next().unwrap();
        assert_eq!(addresses(value), Ok(vec![address.parse().unwrap()]));
    }
    let both = "r x AAAA BBBB 2038-01-01 00:00:00 192.0.2.1 443 0\na [2001:db8::1]:9001\ns Fast\n";
    assert_eq!(addresses(both).unwrap().len(), 2);
}

#[test]
fn lists_may_be_empty_and_name_no_relay() {
    assert_eq!(circuits(""), Ok(Vec::new()));
    assert_eq!(entry_guards(""), Ok(Vec::new()));
    let rows = "192.0.2.1:9001 NEW\n2001:db8::1:9001 NEW\n[2001:db8::1]:9001 NEW\n[scrubbed] LATER\n";
    let targets = connections(rows).unwrap();
    let address = |text: &str| ConnectionTarget::Address(text.parse().unwrap());
    let expected = [
        (address("192.0.2.1:9001"), ConnectionStatus::New),
        (address("[2001:db8::1]:9001"), ConnectionStatus::New),
        (address("[2001:db8::1]:9001"), ConnectionStatus::New),
        (ConnectionTarget::Hidden, ConnectionStatus::Other("LATER".to_owned())),
    ];
    assert_eq!(targets, expected);
    assert!(!format!("{targets:?}").contains("192"));
    for (line, error) in [
        (entry_guards("$00 up").map(|_| ()), Expected::Relay),
        (entry_guards("name up").map(|_| ()), Expected::Relay),
        (connections("$00~x CONNECTED").map(|_| ()), Expected::Relay),
        (connections("192.0.2.1:9001").map(|_| ()), Expected::Status),
        (circuits("0 BUILT").map(|_| ()), Expected::Circuit),
        (circuits("4294967296 BUILT").map(|_| ()), Expected::Circuit),
        (circuits("7").map(|_| ()), Expected::Status),
        (addresses("r x AAAA BBBB 2038-01-01 00:00:00 192.0.2.1").map(|_| ()), Expected::RouterStatus),
        (addresses("a 2001:db8::1").map(|_| ()), Expected::RouterStatus),
    ] {
        assert_eq!(line, Err(ParseError { line: 1, expected: error }));
    }
    assert_eq!(circuits("1 BUILT\nx BUILT"), Err(ParseError { line: 2, expected: Expected::Circuit }));
}

#[test]
fn recorded_events_are_read() {
    let events: Vec<Event> = messages(EVENTS).iter().map(|message| Event::parse(message).unwrap()).collect();
    assert!(!events.iter().any(|event| matches!(event, Event::Other { .. })));
    // A client's visit, until `CLOSECIRCUIT` ended it.
    let state = |word: String, circuit: &Circuit| {
        (circuit.id == number(39)).then(|| format!("{word} {:?} {}", circuit.hs_state, circuit.path.len()))
    };
    let life: Vec<String> = events
        .iter()
        .filter_map(|event| {
            if let Event::Circuit { circuit, status, .. } = event {
                state(format!("{status:?}"), circuit)
            } else if let Event::CircuitMinor { circuit, change, .. } = event {
                state(format!("{change:?}"), circuit)
            } else {
                None
            }
        })
        .collect();
    let expected = [
        "Launched Some(ServiceRendConnecting) 0",
        "Extended Some(ServiceRendConnecting) 1",
        "Extended Some(ServiceRendConnecting) 2",
        "Extended Some(ServiceRendConnecting) 3",
        "Extended Some(ServiceRendConnecting) 4",
        "Built Some(ServiceRendConnecting) 4",
        "PurposeChanged Some(ServiceRendJoined) 4",
        "Closed Some(ServiceRendJoined) 4",
    ];
    assert_eq!(life, expected);
    let kinds: [fn(&Event) -> bool; 8] = [
        |event| matches!(event, Event::Circuit { reason: Some(reason), .. } if reason == "REQUESTED"),
        |event| matches!(event, Event::CircuitBandwidth { read_bytes: 1_527, written_bytes: 2_036, .. }),
        |event| matches!(event, Event::CircuitMinor { change: CircuitChange::Cannibalized, .. }),
        |event| matches!(event, Event::Circuit { status: CircuitStatus::Failed, .. }),
        |event| matches!(event, Event::Connection { status: ConnectionStatus::Connected, .. }),
        |event| matches!(event, Event::Descriptor { action: DescriptorAction::Created, directory: None, .. }),
        |event| {
            matches!(event, Event::Descriptor { action: DescriptorAction::Uploaded, directory: Some(_), .. })
        },
        |event| matches!(event, Event::Status { progress_percent: Some(100), .. }),
    ];
    for (at, kind) in kinds.iter().enumerate() {
        assert!(events.iter().any(kind), "kind {at}");
    }
    let printed = format!("{events:?}");
    assert!(!printed.contains("6ED1") && !printed.contains(SERVICE));
}

#[test]
fn what_is_unknown_is_kept_or_stepped_over() {
    assert_eq!(event("LATER a b=c"), Ok(Event::Other { name: "LATER".to_owned() }));
    let Ok(Event::Circuit { circuit, status, reason, remote_reason }) = event(&format!(
        "CIRC 7 LATER ${RELAY}=a2 later PURPOSE=LATER HS_STATE=LATER X= SOCKS_USERNAME=\"a \\\" b\" \
         HS_POW=v1,70000 REASON=TORPROTOCOL REMOTE_REASON=LATER"
    )) else {
        panic!("no CIRC")
    };
    assert_eq!(status, CircuitStatus::Other("LATER".to_owned()));
    assert_eq!(circuit.purpose, Some(Purpose::Other("LATER".to_owned())));
    assert_eq!(circuit.hs_state, Some(HsState::Other("LATER".to_owned())));
    assert_eq!(circuit.pow_effort, Some(70_000));
    assert_eq!((reason.as_deref(), remote_reason.as_deref()), (Some("TORPROTOCOL"), Some("LATER")));
    assert_eq!(event("NETWORK_LIVENESS DOWN later"), Ok(Event::NetworkLiveness { is_up: false }));
    assert_eq!(
        event("STATUS_GENERAL WARN CLOCK_SKEW MIN_SKEW=-3600 SOURCE=DIRSERV"),
        Ok(Event::Status {
            source: StatusSource::General,
            severity: Severity::Warn,
            action: "CLOCK_SKEW".to_owned(),
            progress_percent: None
        })
    );
    let failed = format!("HS_DESC FAILED {SERVICE} NO_AUTH ${RELAY} x REASON=UPLOAD_REJECTED");
    let Ok(Event::Descriptor { action, reason, .. }) = event(&failed) else { panic!("no HS_DESC") };
    assert_eq!((action, reason.as_deref()), (DescriptorAction::Failed, Some("UPLOAD_REJECTED")));
    // An event of several lines, or with data, is the event of its first line.
    let long = message("650-CIRC 7 BUILT\n650-EXTRAMAGIC=99\n650 ANONYMITY=high\n");
    assert!(matches!(Event::parse(&long), Ok(Event::Circuit { .. })));
    let data = message("650+HS_DESC_CONTENT a b c\n..x\n.\n650 OK\n");
    assert_eq!(data.lines[0].data.as_deref(), Some(".x\n"));
    assert!(matches!(Event::parse(&data), Ok(Event::Other { .. })));
}

#[test]
fn half_an_event_is_an_error() {
    for (text, expected) in [
        ("", Expected::Kind),
        ("CIRC", Expected::Circuit),
        ("CIRC 0 BUILT", Expected::Circuit),
        ("CIRC 7", Expected::Status),
        ("CIRC 7 BUILT name", Expected::Relay),
        ("CIRC 7 BUILT TIME_CREATED=now", Expected::Time),
        ("CIRC 7 BUILT REND_QUERY=x", Expected::OnionAddress),
        ("CIRC 7 BUILT X=\"", Expected::Quote),
        ("CIRC_BW READ=1 WRITTEN=1", Expected::Circuit),
        ("CIRC_BW ID=7 READ=1", Expected::Number),
        ("CIRC_BW ID=7 READ=-1 WRITTEN=1", Expected::Number),
        ("ORCONN", Expected::Target),
        ("HS_DESC FAILED", Expected::OnionAddress),
        ("HS_DESC FAILED x NO_AUTH UNKNOWN", Expected::OnionAddress),
        ("NETWORK_LIVENESS", Expected::Status),
        ("STATUS_CLIENT NOTICE", Expected::Status),
    ] {
        assert_eq!(event(text), Err(ParseError { line: 1, expected }), "{text}");
    }
}

#[test]
fn what_is_no_control_protocol_is_refused() {
    use MessageFault::{LineEnd, LineTooLong, MessageTooLong, Mixed, Status};
    for (text, line, fault) in [
        ("250 OK\n", 1, LineEnd),
        ("250 OK\r\n250 \n", 2, LineEnd),
        ("HTTP/1.1 200\r\n", 1, Status),
        ("25 OK\r\n", 1, Status),
        ("250\r\n", 1, Status),
        ("250*OK\r\n", 1, Status),
        ("2é0 OK\r\n", 1, Status),
        ("250-a\r\n650 b\r\n", 2, Mixed),
        ("650-a\r\n250 b\r\n", 2, Mixed),
        ("250-0123456789abc", 1, LineTooLong(16)),
        ("250-0123456789a\r\n", 1, LineTooLong(16)),
        ("250+a\r\n0123456789abcdefg", 2, LineTooLong(16)),
        ("250-012345678\r\n250-012345678\r\n250-0123456\r\n", 3, MessageTooLong(40)),
        ("250+a\r\n0123456789abcd\r\n0123456789abcd\r\n.\r\n", 4, MessageTooLong(40)),
    ] {
        let (messages, error) = read(SMALL, text.as_bytes());
        assert_eq!(error, Some(DecodeError { line, fault }), "{text:?}");
        assert_eq!(messages.len(), usize::from(text.starts_with("250 OK\r")));
    }
    let (messages, error) = read(SMALL, b"250-0123456789\r\n250 01234567890\r");
    assert_eq!((messages.len(), error), (0, None), "lines of the longest kind");
    let (messages, error) = read(SMALL, &b"250 0123456789\r\n".repeat(100));
    assert_eq!((messages.len(), error), (100, None), "the limit is a message's, not the connection's");
}

/// A message's bytes.
fn written(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (at, line) in message.lines.iter().enumerate() {
        let divider = match (&line.data, at + 1 == message.lines.len()) {
            (Some(_), _) => '+',
            (None, true) => ' ',
            (None, false) => '-',
        };
        bytes.extend(format!("{:03}{divider}{}\r\n", message.status, line.text).into_bytes());
        for data in line.data.iter().flat_map(|data| data.split_terminator('\n')) {
            let stuffing = if data.starts_with('.') { "." } else { "" };
            bytes.extend(format!("{stuffing}{data}\r\n").into_bytes());
        }
        bytes.extend(line.data.iter().flat_map(|_| *b".\r\n"));
    }
    bytes
}

fn any_message() -> impl Strategy<Value = Message> {
    let data = proptest::option::of(proptest::collection::vec("[ -~.]{0,9}", 0..4));
    let lines = proptest::collection::vec(("[ -~é]{0,20}", data), 0..5);
    (0u16..1000, lines, "[ -~]{0,20}").prop_map(|(status, lines, last)| {
        let line = |(text, data): (String, Option<Vec<String>>)| Line {
            text,
            data: data.map(|lines| lines.into_iter().flat_map(|line| [line, "\n".to_owned()]).collect()),
        };
        let last = Line { text: last, data: None };
        Message { status, lines: lines.into_iter().map(line).chain(iter::once(last)).collect() }
    })
}

proptest! {
    /// For all messages, one after the other, they are read as they were written, in whatever pieces.
    #[test]
    fn messages_are_read_as_they_were_written(messages in proptest::collection::vec(any_message(), 0..5)) {
        let bytes: Vec<u8> = messages.iter().flat_map(written).collect();
        prop_assert_eq!(read(Limits::default(), &bytes), (messages, None));
    }

    /// For all bytes, the pieces do not matter, and what an event or a login says is read without a panic.
    #[test]
    fn pieces_do_not_matter(start in 0usize..3, rest in any::<Vec<u8>>(), damage in any::<(u8, u8)>()) {
        let starts = [&b"250+a\r\n..\r\n.\r\n250 OK\r\n"[..], b"650 CIRC 7 BUILT $", b""];
        let mut bytes = [starts[start], &rest].concat();
        if let Some(byte) = bytes.get_mut(usize::from(damage.0)) {
            *byte = damage.1;
        }
        for limits in [SMALL, Limits::default()] {
            for message in read(limits, &bytes).0 {
                let _logins = (ProtocolInfo::parse(&message), AuthChallenge::parse(&message));
                Event::parse(&message).ok();
            }
        }
    }

    /// For all passwords, the command is one line, and what tor reads in it is the password.
    #[test]
    fn passwords_are_quoted(password in any::<String>()) {
        let command = Command::Authenticate(Authentication::Password(&password));
        let Ok(bytes) = command.encode() else {
            prop_assert!(password.contains(['\r', '\n', '\0']));
            return Ok(());
        };
        let line = String::from_utf8(bytes).unwrap();
        let quoted = line.strip_prefix("AUTHENTICATE \"").unwrap().strip_suffix("\"\r\n").unwrap();
        prop_assert!(!quoted.contains(['\r', '\n']));
        let mut letters = quoted.chars();
        let meant: String = iter::from_fn(|| match letters.next()? {
            '\\' => letters.next(),
            '"' => panic!("the quotes end early"),
            other => Some(other),
        })
        .collect();
        prop_assert_eq!(meant, password);
    }
}
