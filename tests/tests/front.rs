//! The ingress: what it takes for a circuit, what it lets through, what it refuses and how.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper that fails is a test that fails"
)]

use std::{
    io::{self, Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    num::NonZeroU32,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::Signal,
};
use tunica_api::front::{CircuitOrder, CircuitState, Digest, Orders};
use tunica_tests::{
    ingress::{Backend, Front, PATIENCE, free_address, get, header, is_deferred, read_answer},
    notify::NotifySocket,
    sys::{allow_files, hold_thread, open_process, signal_process},
};

/// No limit of a circuit is in the way.
const OPEN: &str = "profile = \"web\"\nmax_connections_per_second = 10000\nmax_concurrent_per_circuit = 1000\n\
                    connections_per_10_seconds = 0\nrequests_per_10_seconds = 60000\nslow_requests_per_10_seconds = 60000";

fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
}

/// The status, and the seconds after which the client may come again.
fn hint(answer: &str) -> (u16, Option<u64>) {
    let lower = answer.to_ascii_lowercase();
    let again = lower.lines().find_map(|line| line.strip_prefix("retry-after: "));
    (status(answer), again.map(|seconds| seconds.trim().parse().unwrap()))
}

/// How a connection on which nothing more is sent ends: by its bytes, or by a reset.
fn end(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).map(|_| bytes)
}

fn is_reset(end: &io::Result<Vec<u8>>) -> bool {
    end.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset)
}

fn circuit(number: u32, said: u64, state: CircuitState) -> CircuitOrder {
    CircuitOrder { circuit: NonZeroU32::new(number).unwrap(), said, state }
}

/// A ban that outlasts every test.
const BANNED: CircuitState = CircuitState::Banned { until: u64::MAX };

#[test]
fn a_stream_without_a_circuit_is_closed_and_nothing_of_it_reaches_the_backend() {
    let mut front = Front::start("", OPEN).unwrap();
    let bad = [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
        format!("PROXY TCP4 127.0.0.1 127.0.0.1 1 80\r\n{}", get("/v4")),
        format!("PROXY UNKNOWN\r\n{}", get("/unknown")),
        format!("PROXY TCP6 fc00:dead:beef:4dad::0:0 ::1 0 80\r\n{}", get("/zero")),
        format!("PROXY TCP6 fc00:dead:beef:4dae::0:7 ::1 7 80\r\n{}", get("/network")),
        format!("PROXY TCP6 fc00:dead:beef:4dad:1::7 ::1 7 80\r\n{}", get("/middle")),
        format!("proxy TCP6 fc00:dead:beef:4dad::0:7 ::1 7 80\r\n{}", get("/case")),
        format!("PROXY TCP6 {} ::1 7 80\r\n{}", "f".repeat(120), get("/long")),
        "PROXY TCP6 fc00:dead:beef:4dad::0:7 ::1 7 80".to_owned(),
    ];
    for text in &bad {
        let mut stream = TcpStream::connect(front.listen()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let bytes = end(&mut stream);
        assert!(bytes.as_ref().map_or(true, Vec::is_empty), "{text:?} was answered with {bytes:?}");
    }
    assert_eq!(front.backend.requests(), Vec::<String>::new());
    assert_eq!(front.refused("not_a_circuit").unwrap(), bad.len() as u64);
    // The forms that name one, whole and byte by byte, beyond 65535, and a second header, which is data.
    for text in [header(666), "PROXY TCP6 fc00:dead:beef:4dad::29a ::1 0 80\r\n".to_owned(), header(70_000)] {
        let mut stream = TcpStream::connect(front.listen()).unwrap();
        stream.set_nodelay(true).unwrap();
        for byte in format!("{text}{}", get("/good")).bytes() {
            stream.write_all(&[byte]).unwrap();
        }
        let mut answer = Vec::new();
        read_answer(&mut stream, &mut answer).unwrap();
        assert_eq!(status(&String::from_utf8(answer).unwrap()), 200, "{text:?}");
    }
    let answer = front.ask(5, &format!("{}{}", header(6), get("/second"))).unwrap();
    assert_eq!(status(&answer), 400);
    let digest = front.next_digest().unwrap();
    assert_eq!((digest.connections, digest.new_circuits), (4, 3), "{digest:?}");
}

#[test]
fn a_connection_without_a_byte_stays_with_the_kernel() {
    // For longer than the test lasts.
    let mut front = Front::start("request_seconds = 60", OPEN).unwrap();
    let silent: Vec<TcpStream> = (0..3).map(|_| TcpStream::connect(front.listen()).unwrap()).collect();
    // Whoever came later is served, so the front would have taken these as well.
    assert_eq!(status(&front.ask(7, &get("/")).unwrap()), 200);
    for each in &silent {
        assert!(is_deferred(each).unwrap());
    }
    let mut late = TcpStream::connect(front.listen()).unwrap();
    assert!(is_deferred(&late).unwrap());
    late.set_read_timeout(Some(PATIENCE)).unwrap();
    late.write_all(format!("{}{}", header(8), get("/")).as_bytes()).unwrap();
    let mut answer = Vec::new();
    read_answer(&mut late, &mut answer).unwrap();
    assert_eq!(status(&String::from_utf8(answer).unwrap()), 200);
    assert!(!is_deferred(&late).unwrap(), "its first bytes hand it over");
    let digest = front.next_digest().unwrap();
    let count = |word: &str| digest.refused.get(word).copied().unwrap_or(0);
    assert_eq!((digest.connections, count("not_a_circuit"), count("proxy_timeout")), (2, 0, 0), "{digest:?}");
    // An end is handed over like a byte.
    drop(silent);
    assert_eq!(front.refused("not_a_circuit").unwrap(), 3);
}

#[test]
fn the_backend_is_told_the_circuit_by_a_word_of_ours_alone() {
    let front = Front::start("", OPEN).unwrap();
    let forged = "GET /a HTTP/1.1\r\nHost: a\r\nX-Onion-Circuit: forged\r\nx-onion-circuit: twice\r\n\
                  Connection: keep-alive, X-Secret\r\nX-Secret: 1\r\nTE: trailers\r\n\r\n";
    for number in [7, 7, 8] {
        assert_eq!(status(&front.ask(number, forged).unwrap()), 200);
    }
    let words: Vec<String> = front
        .backend
        .requests()
        .iter()
        .map(|request| {
            let lower = request.to_ascii_lowercase();
            assert!(
                !lower.contains("x-secret") && !lower.contains("forged") && !lower.contains("\r\nte:"),
                "{request}"
            );
            let words: Vec<_> =
                lower.lines().filter_map(|line| line.strip_prefix("x-onion-circuit: ")).collect();
            assert_eq!(words.len(), 1, "{request}");
            words[0].to_owned()
        })
        .collect();
    assert!(words[0] == words[1] && words[0] != words[2] && words[0].len() == 16, "{words:?}");
}

#[test]
fn what_can_be_read_in_two_ways_is_refused() {
    let front = Front::start("", OPEN).unwrap();
    let mut number = 920;
    for (text, expected) in [
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcd", 400),
        ("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n folded\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nX\0: 1\r\n\r\n", 400),
        ("CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET / HTTP/3.0\r\nHost: a\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nExpect: more\r\nContent-Length: 0\r\n\r\n", 417),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n", 413),
    ] {
        // Each is a violation, and five would ban.
        number += 1;
        let answer = front.ask(number, text).unwrap();
        assert_eq!(status(&answer), expected, "{text:?}: {answer}");
    }
    assert_eq!(front.backend.requests(), Vec::<String>::new());
    // What has one meaning passes, and is one request for the backend too.
    let whole = "POST /chunks HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\
                 3;name=value\r\nabc\r\n5\r\nGET /\r\n0\r\nTrailer: 1\r\n\r\n";
    assert_eq!(status(&front.ask(901, whole).unwrap()), 200);
    let seen = front.backend.requests();
    assert!(seen.len() == 1 && seen[0].ends_with("\r\n\r\nabcGET /"), "{seen:?}");
    // Both lengths: the chunks count (RFC 9112 section 6.3), the backend hears of no other, and the stream ends, so that what
    // the other length would have made of the rest is never read.
    let both = "POST /both HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n\
                0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut stream = front.stream(903).unwrap();
    stream.write_all(both.as_bytes()).unwrap();
    let mut answer = Vec::new();
    // Of what was not read comes a reset in the place of an end.
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8(answer).unwrap();
    assert_eq!((status(&answer), answer.matches("HTTP/1.1 200").count()), (200, 1), "{answer}");
    let seen = front.backend.requests();
    assert!(seen.len() == 2 && !seen[1].to_ascii_lowercase().contains("content-length"), "{seen:?}");
    // Chunks that are none break off, and the backend is not left with half a request that looks whole.
    let broken =
        "POST /broken HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n";
    assert!(status(&front.ask(902, broken).unwrap()) != 200);
    assert_eq!(front.backend.requests().len(), 2);
}

#[test]
fn pipelined_requests_and_upgrades_and_continuations_pass() {
    let front = Front::start("", OPEN).unwrap();
    let mut stream = front.stream(3).unwrap();
    stream.write_all(format!("{}{}", get("/one"), get("/two")).as_bytes()).unwrap();
    for path in ["/one", "/two"] {
        let mut answer = Vec::new();
        read_answer(&mut stream, &mut answer).unwrap();
        assert!(String::from_utf8(answer).unwrap().contains(&format!("GET {path} ")));
    }
    let mut stream = front.stream(3).unwrap();
    stream
        .write_all(b"POST /e HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        .unwrap();
    let mut interim = [0; 25];
    stream.read_exact(&mut interim).unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"abc").unwrap();
    let mut answer = Vec::new();
    read_answer(&mut stream, &mut answer).unwrap();
    assert!(answer.ends_with(b"\r\n\r\nabc"));
    let mut stream = switched(&front, 3);
    for word in [b"ping", b"pong"] {
        echo(&mut stream, word).unwrap();
    }
    drop(stream);
    let big = front.ask(4, &get("/big")).unwrap();
    assert_eq!(big.split("\r\n\r\n").nth(1).map(str::len), Some(1 << 20));
}

/// A stream of a circuit that has become a WebSocket, as far as the front looks into it.
fn switched(front: &Front, number: u32) -> TcpStream {
    let mut stream = front.stream(number).unwrap();
    stream
        .write_all(b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        .unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.extend(byte);
    }
    assert_eq!(status(&String::from_utf8(head).unwrap()), 101);
    stream
}

/// Sends it, and reads as much again; it must be the same.
fn echo(stream: &mut TcpStream, sent: &[u8]) -> io::Result<()> {
    stream.write_all(sent)?;
    let mut got = vec![0; sent.len()];
    stream.read_exact(&mut got)?;
    assert!(got == sent, "another text came back");
    Ok(())
}

#[test]
fn a_ban_resets_a_stream_that_was_switched() {
    let mut front = Front::start("", OPEN).unwrap();
    let (mut banned, mut other) = (switched(&front, 41), switched(&front, 42));
    echo(&mut banned, b"ping").unwrap();
    let ban = circuit(41, 1, BANNED);
    front.order(&Orders { revision: 1, generation: None, circuits: vec![ban], ..Orders::default() }).unwrap();
    assert!(is_reset(&end(&mut banned)));
    echo(&mut other, b"ping").unwrap();
    assert_eq!(front.refused("banned").unwrap(), 1);
    front.wait_for("its end", |front| Ok(front.digest().active == 1)).unwrap();
}

#[test]
fn a_stream_that_was_switched_ends_when_nothing_moves_for_as_long_as_it_may_rest() {
    // Not by the times of requests.
    let ingress = "client_seconds = 3\nkeep_alive_seconds = 1\nrequest_seconds = 1\nserver_seconds = 1";
    let mut front = Front::start(ingress, OPEN).unwrap();
    let mut stream = switched(&front, 43);
    // Longer than it may rest, and it never does.
    for _ in 0..10 {
        echo(&mut stream, b"ping").unwrap();
        thread::sleep(Duration::from_millis(500));
    }
    assert_eq!(front.digest().refused["idle"], 0);
    echo(&mut stream, b"last").unwrap();
    assert_eq!(end(&mut stream).unwrap(), b"", "an end, no reset");
    // Circuits that have a stream are told of.
    let _open = switched(&front, 43);
    // The first word of it counts: it may rest no longer than the next two digests can take.
    front
        .wait_for("its row", |front| {
            let digest = front.digest();
            let row = digest.circuits.iter().find(|row| row.circuit.get() == 43);
            let found = row.map(|row| (digest.refused.get("idle").copied(), row.violations, row.open));
            Ok(found == Some((Some(1), 0, 1)))
        })
        .unwrap();
}

#[test]
fn what_a_stream_that_was_switched_moves_is_counted_while_it_is_open_and_bounded() {
    let circuits = format!("{OPEN}\nmebibytes_per_minute = 1\nban_threshold = 2");
    let mut front = Front::start("", &circuits).unwrap();
    let row = |front: &Front, number: u32| {
        front.digest().circuits.into_iter().find(|row| row.circuit.get() == number).unwrap()
    };
    let piece = [b'x'; 50_000];
    let mut modest = switched(&front, 44);
    for _ in 0..4 {
        echo(&mut modest, &piece).unwrap();
    }
    front.next_digest().unwrap();
    let counted = row(&front, 44);
    // What was asked and said at first is beside it.
    for bytes in [counted.bytes_in, counted.bytes_out] {
        assert!((200_000..201_000).contains(&bytes), "{counted:?}");
    }
    assert_eq!((counted.open, counted.requests, counted.violations), (1, 1, 0), "{counted:?}");
    let mut greedy = switched(&front, 45);
    while echo(&mut greedy, &piece).is_ok() {
        thread::sleep(Duration::from_millis(50));
    }
    assert!(is_reset(&end(&mut greedy)) || end(&mut greedy).is_ok_and(|rest| rest.is_empty()));
    front.wait_for("the ban", |front| Ok(front.digest().banned == 1)).unwrap();
    let counted = row(&front, 45);
    assert!(counted.state == "banned" && counted.bytes_in + counted.bytes_out > 2 << 20, "{counted:?}");
    echo(&mut modest, b"ping").unwrap();
}

#[test]
fn a_stream_that_was_switched_goes_on_while_the_front_drains_and_ends_with_it() {
    let mut front = Front::start("server_seconds = 3", &format!("{OPEN}\nlog_refusals = true")).unwrap();
    let mut stream = switched(&front, 46);
    front.signal(Signal::SIGTERM).unwrap();
    front.wait_for("its last words", |front| Ok(front.log().contains("front_stopping"))).unwrap();
    echo(&mut stream, b"ping").unwrap();
    assert_eq!(end(&mut stream).unwrap(), b"", "an end, no reset");
    assert!(front.ended().unwrap().success());
    let log = front.log();
    assert!(log.contains("message_id=\"streams_refused\" refusal=\"draining\" count=1"), "{log}");
}

#[test]
fn whoever_has_no_answer_when_the_front_ends_is_told_to_come_again() {
    // Longer than the front waits for its streams.
    let times = "server_seconds = 2\nclient_seconds = 60\nrequest_seconds = 60\nkeep_alive_seconds = 60";
    let mut front = Front::start(times, &format!("{OPEN}\nlog_refusals = true")).unwrap();
    let send = |number: u32, text: &str| {
        let mut stream = front.stream(number).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        stream
    };
    let mut between = send(51, &get("/"));
    read_answer(&mut between, &mut Vec::new()).unwrap();
    let (mut silent, mut half) = (send(52, ""), send(53, "GET / HTTP/1.1\r\nHost: "));
    let mut asked = send(54, &get("/slow/30000"));
    // More than is taken of it meanwhile.
    let mut begun = send(55, &get("/bytes/40000000"));
    begun.read_exact(&mut [0; 41]).unwrap();
    front
        .wait_for("the requests", |front| {
            Ok(front.backend.requests().len() == 3 && front.digest().active == 5)
        })
        .unwrap();
    front.signal(Signal::SIGTERM).unwrap();
    // It is not in the middle of anything.
    assert_eq!(end(&mut between).unwrap(), b"");
    for (what, stream) in [("nothing", &mut silent), ("half a head", &mut half), ("a request", &mut asked)] {
        let answer = String::from_utf8(end(stream).unwrap()).unwrap();
        assert_eq!(hint(&answer), (503, Some(1)), "{what}: {answer}");
        assert!(answer.to_ascii_lowercase().contains("\r\nconnection: close\r\n"), "{what}: {answer}");
    }
    assert!(front.ended().unwrap().success());
    let cut = end(&mut begun);
    assert!(
        is_reset(&cut),
        "half an answer must not look like a whole one: {:?}",
        cut.map(|rest| rest.len())
    );
    let log = front.log();
    let counts = log.lines().filter_map(|line| line.split("refusal=\"draining\" count=").nth(1));
    assert_eq!(counts.map(|count| count.trim().parse::<u32>().unwrap()).sum::<u32>(), 4, "{log}");
}

#[test]
fn a_program_that_begins_in_another_version_is_told_so() {
    let mut front = Front::start("", OPEN).unwrap();
    // RFC 9113 section 3.4, with the empty SETTINGS that follow.
    let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    for _ in 0..6 {
        assert_eq!(status(&front.ask(56, preface).unwrap()), 505);
    }
    // Circuits that have a stream are told of.
    let _open = switched(&front, 56);
    let digest = front.next_digest().unwrap();
    let row = digest.circuits.iter().find(|row| row.circuit.get() == 56).unwrap();
    assert_eq!((digest.refused["version_unsupported"], row.violations), (6, 0), "it is no attack");
    assert_eq!(digest.refused["malformed"], 0);
}

#[test]
fn the_slow_are_cut_off_with_the_word_for_it() {
    let mut front = Front::start(
        "request_seconds = 1\nkeep_alive_seconds = 1\nclient_seconds = 1\nbody_bytes_per_second = 1000",
        OPEN,
    )
    .unwrap();
    let slow = |text: &str| {
        let mut stream = front.stream(11).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        status(&String::from_utf8(answer).unwrap())
    };
    assert_eq!(slow("GET / HTTP/1.1\r\nHost: a\r\nX: "), 408, "a head that does not end");
    assert_eq!(
        slow("POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc"),
        408,
        "a body that does not end"
    );
    assert_eq!(slow(""), 0, "nothing at all");
    // Between requests, without a word.
    let mut stream = front.stream(12).unwrap();
    stream.write_all(get("/then-nothing").as_bytes()).unwrap();
    let answer = end(&mut stream).unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200"));
    // A header that stops half-way.
    let mut stream = TcpStream::connect(front.listen()).unwrap();
    stream.write_all(b"PROXY TCP6 fc00").unwrap();
    assert_eq!(end(&mut stream).unwrap(), b"");
    // A client that does not read.
    let mut idle = front.stream(13).unwrap();
    for _ in 0..20 {
        idle.write_all(get("/big").as_bytes()).unwrap();
    }
    for word in ["slow_headers", "slow_body", "no_request", "proxy_timeout", "slow_reader"] {
        front
            .wait_for(word, |front| Ok(front.digest().refused.get(word).copied() == Some(1)))
            .unwrap_or_else(|error| panic!("{word}: {error:#}"));
    }
}

#[test]
fn methods_and_sizes_are_bounded_as_the_profile_says() {
    let mut front = Front::start("header_bytes = 2048\nbody_bytes = 10", "profile = \"gated\"").unwrap();
    let post = |path: &str, length: usize| {
        format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{}", "x".repeat(length))
    };
    for (number, (text, expected)) in [
        (get("/"), 200),
        (post("/verify-captcha", 10), 200),
        (post("/verify-captcha", 11), 413),
        (post("/", 1), 405),
        ("DELETE / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), 405),
        (format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(3_000)), 431),
        (format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "a".repeat(3_000)), 431),
        (format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: 1\r\n".repeat(150)), 431),
        (
            "POST /verify-captcha HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nb\r\n01234567890\r\n0\r\n\r\n"
                .to_owned(),
            413,
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let answer = front.ask(20 + u32::try_from(number).unwrap(), &text).unwrap();
        assert_eq!(status(&answer), expected, "{}: {answer}", text.lines().next().unwrap());
    }
    assert_eq!(front.refused("method_denied").unwrap(), 2);
}

#[test]
fn a_circuit_over_its_limits_is_refused_then_banned_and_another_is_not() {
    let mut front =
        Front::start("", "profile = \"web\"\nrequests_per_10_seconds = 6\nban_threshold = 3").unwrap();
    let mut statuses = Vec::new();
    let mut end_of_it = Ok(Vec::new());
    for _ in 0..12 {
        let mut stream = front.stream(31).unwrap();
        stream.write_all(get("/").as_bytes()).unwrap();
        let mut answer = Vec::new();
        match read_answer(&mut stream, &mut answer) {
            Ok(()) => {
                let answer = String::from_utf8(answer).unwrap();
                if status(&answer) == 429 {
                    assert!(answer.to_ascii_lowercase().contains("\r\nretry-after: "), "{answer}");
                }
                statuses.push(status(&answer));
            }
            Err(error) => {
                end_of_it = Err(error);
                break;
            }
        }
        // Requests that are under way when the first is refused are no further violation.
        if statuses.last() == Some(&429) {
            thread::sleep(Duration::from_millis(2_100));
        }
    }
    assert!(is_reset(&end_of_it), "{statuses:?} {end_of_it:?}");
    assert_eq!(statuses[..6], [200, 200, 200, 200, 200, 429], "{statuses:?}");
    assert_eq!(status(&front.ask(32, &get("/")).unwrap()), 200, "another circuit");
    let digest = front.next_digest().unwrap();
    assert_eq!(digest.banned, 1);
    let row = digest.circuits.iter().find(|row| row.circuit.get() == 31).unwrap();
    assert!(row.state == "banned" && row.banned_seconds.is_some_and(|left| left > 250), "{row:?}");
    assert!(digest.statistics.contains("Circuits: 2 tracked, 1 banned"), "{}", digest.statistics);
    assert!(digest.refused["request_rate"] >= 2 && digest.refused["banned"] >= 1, "{:?}", digest.refused);
}

#[test]
fn refusals_are_logged_by_word_and_number_where_that_is_asked_for() {
    let limits = "profile = \"web\"\nrequests_per_10_seconds = 3\nban_threshold = 9";
    for (key, is_logged) in [("log_refusals = true", true), ("", false)] {
        let backend = Backend::start().unwrap();
        let at = [backend.address()];
        let mut front = Front::start_telling("info", &at, backend, "", &format!("{limits}\n{key}")).unwrap();
        let asked: Vec<u16> = (0..2).map(|_| status(&front.ask(305_419_896, &get("/")).unwrap())).collect();
        assert_eq!(asked, [200, 200]);
        for _ in 0..3 {
            assert_eq!(status(&front.ask(305_419_896, &get("/")).unwrap()), 429);
        }
        let of_no_circuit = |front: &Front| {
            let mut foreign = TcpStream::connect(front.listen()).unwrap();
            foreign.write_all(get("/").as_bytes()).unwrap();
            // It is closed, or reset because of what was not read.
            let _ = end(&mut foreign);
        };
        of_no_circuit(&front);
        assert_eq!(front.refused("request_rate").unwrap(), 3);
        assert_eq!(front.refused("not_a_circuit").unwrap(), 1);
        // What the last second refused is told at the end.
        of_no_circuit(&front);
        front.signal(Signal::SIGTERM).unwrap();
        front.ended().unwrap();
        let log = front.log();
        let said = |word: &str| -> u64 {
            let word = format!("message_id=\"streams_refused\" refusal=\"{word}\" count=");
            let counts = log.lines().filter_map(|line| line.split(&word).nth(1)?.trim().parse::<u64>().ok());
            counts.sum()
        };
        let expected = if is_logged { (3, 2) } else { (0, 0) };
        assert_eq!((said("request_rate"), said("not_a_circuit")), expected, "{log}");
        assert_eq!(log.contains("streams_refused"), is_logged, "{log}");
        for identity in ["305419896", "1234:5678", "12345678", "fc00:dead"] {
            assert!(!log.contains(identity), "{log}");
        }
    }
}

#[test]
fn orders_act_on_open_streams_and_end_with_the_tor_process() {
    let mut front = Front::start("keep_alive_seconds = 60", OPEN).unwrap();
    let hold = |front: &Front, number: u32| {
        let mut stream = front.stream(number).unwrap();
        stream.write_all(get("/").as_bytes()).unwrap();
        read_answer(&mut stream, &mut Vec::new()).unwrap();
        stream
    };
    let (mut banned, mut other) = (hold(&front, 41), hold(&front, 42));
    let ban = circuit(41, 1, BANNED);
    front
        .order(&Orders { revision: 1, generation: None, circuits: vec![ban.clone()], ..Orders::default() })
        .unwrap();
    assert!(is_reset(&end(&mut banned)), "the open stream");
    assert!(is_reset(&end(&mut front.stream(41).unwrap())), "a new stream");
    other.write_all(get("/still").as_bytes()).unwrap();
    read_answer(&mut other, &mut Vec::new()).unwrap();
    // The same orders once more change nothing; the word that lifts it does.
    let promoted = circuit(42, 2, CircuitState::Vip);
    front
        .order(&Orders { revision: 2, generation: None, circuits: vec![ban, promoted], ..Orders::default() })
        .unwrap();
    let rows = front.next_digest().unwrap().circuits;
    let state = |number: u32| {
        rows.iter().find(|row| row.circuit.get() == number).map(|row| row.state.clone()).unwrap_or_default()
    };
    assert_eq!((state(41), state(42)), ("banned".to_owned(), "vip".to_owned()));
    let unbanned = circuit(41, 3, CircuitState::Unbanned);
    front
        .order(&Orders { revision: 3, generation: None, circuits: vec![unbanned], ..Orders::default() })
        .unwrap();
    assert_eq!(status(&front.ask(41, &get("/")).unwrap()), 200);
    let ban = circuit(43, 4, BANNED);
    front.order(&Orders { revision: 4, generation: None, circuits: vec![ban], ..Orders::default() }).unwrap();
    assert!(is_reset(&end(&mut front.stream(43).unwrap())));
    // That it is known which tor process it is says nothing new of its circuits.
    let named = |revision, generation| Orders { revision, generation, ..Orders::default() };
    front.order(&named(5, Some(1))).unwrap();
    assert!(is_reset(&end(&mut front.stream(43).unwrap())));
    // Another tor process gives the same number to somebody else.
    front.order(&named(6, Some(2))).unwrap();
    assert_eq!(status(&front.ask(43, &get("/")).unwrap()), 200);
}

#[test]
fn to_hear_which_tor_process_it_is_costs_no_visitor_anything() {
    let mut front = Front::start("keep_alive_seconds = 60", OPEN).unwrap();
    let ask = |stream: &mut TcpStream| {
        let mut answer = Vec::new();
        let asked = stream.write_all(get("/").as_bytes());
        asked
            .and_then(|()| read_answer(stream, &mut answer))
            .map(|()| status(&String::from_utf8_lossy(&answer)))
    };
    let mut kept: Vec<_> = (1..=20).map(|number| front.stream(number).unwrap()).collect();
    for stream in &mut kept {
        assert_eq!(ask(stream).unwrap(), 200);
    }
    // It has begun before the word comes, and its answer goes out after it.
    let mut begun = front.stream(21).unwrap();
    begun.write_all(get("/slow/3000").as_bytes()).unwrap();
    front
        .wait_for("the request", |front| Ok(front.backend.requests().iter().any(|it| it.contains("/slow/"))))
        .unwrap();
    let promoted = circuit(7, 1, CircuitState::Vip);
    let orders = Orders { revision: 1, circuits: vec![promoted], ..Orders::default() };
    front.order(&orders).unwrap();
    assert_eq!(front.next_digest().unwrap().generation, None);
    front.order(&Orders { revision: 2, generation: Some(500), ..orders.clone() }).unwrap();

    let mut answer = Vec::new();
    read_answer(&mut begun, &mut answer).unwrap();
    assert_eq!(status(&String::from_utf8(answer).unwrap()), 200);
    kept.push(begun);
    for (number, stream) in (1..).zip(&mut kept) {
        assert_eq!(ask(stream).unwrap(), 200, "circuit {number}");
    }
    assert_eq!(status(&front.ask(7, &get("/")).unwrap()), 200);
    let digest = front.next_digest().unwrap();
    assert_eq!((digest.generation, digest.tracked, digest.active), (Some(500), 21, 21));
    assert!(digest.refused.values().all(|count| *count == 0), "{:?}", digest.refused);
    let row = digest.circuits.iter().find(|row| row.circuit.get() == 7).unwrap();
    assert_eq!((row.state.as_str(), row.requests), ("vip", 3), "what was known of it is known");
    // To a backend it is the same visitor.
    let words: std::collections::BTreeSet<_> = front
        .backend
        .requests()
        .iter()
        .filter_map(|request| {
            request
                .to_ascii_lowercase()
                .lines()
                .find_map(|line| Some(line.strip_prefix("x-onion-circuit: ")?.to_owned()))
        })
        .collect();
    assert_eq!(words.len(), 21);

    // An earlier process has no streams any more; a later one has all of them.
    front.order(&Orders { revision: 3, generation: Some(499), ..Orders::default() }).unwrap();
    assert!(kept.iter_mut().all(|stream| ask(stream).is_ok_and(|status| status == 200)));
    let banned = circuit(9, 4, BANNED);
    let orders = Orders { revision: 4, generation: Some(501), circuits: vec![banned], ..Orders::default() };
    front.order(&orders).unwrap();
    assert!(kept.iter_mut().all(|stream| ask(stream).is_err()));
    assert!(is_reset(&end(&mut front.stream(9).unwrap())), "what is said of the new ones is done");
    let digest = front.next_digest().unwrap();
    assert_eq!((digest.generation, digest.refused["old_circuit"], digest.vips), (Some(501), 21, 0));
}

#[test]
fn those_beyond_the_places_wait_and_those_beyond_the_queue_are_refused() {
    let circuits = "profile = \"web\"\nmax_concurrent_connections = 4\nmax_connections_per_second = 1000\npaid_share = 0.0";
    let mut front =
        Front::start("maxconn = 8\nqueue_seconds = 20\nkeep_alive_seconds = 1", circuits).unwrap();
    let outcomes: Vec<_> = thread::scope(|scope| {
        let front = &front;
        let ask = |number: u32| scope.spawn(move || hint(&front.ask(number, &get("/slow/1000")).unwrap()));
        let asked: Vec<_> = (100..112).map(ask).collect();
        asked.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    let count = |found: (u16, Option<u64>)| outcomes.iter().filter(|outcome| **outcome == found).count();
    assert_eq!((count((200, None)), count((503, Some(20)))), (8, 4), "{outcomes:?}");
    assert_eq!(front.refused("capacity").unwrap(), 4);
    // Nobody has a turn in time.
    let mut front = Front::start("maxconn = 8\nqueue_seconds = 2", circuits).unwrap();
    let outcomes: Vec<_> = thread::scope(|scope| {
        let front = &front;
        let ask = |number: u32| scope.spawn(move || hint(&front.ask(number, &get("/slow/4000")).unwrap()));
        let asked: Vec<_> = (100..106).map(ask).collect();
        asked.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    let count = |found: (u16, Option<u64>)| outcomes.iter().filter(|outcome| **outcome == found).count();
    assert_eq!((count((200, None)), count((503, Some(2)))), (4, 2), "{outcomes:?}");
    assert_eq!(front.refused("queue_timeout").unwrap(), 2);
}

#[test]
fn who_asks_much_gives_up_its_place_to_those_who_wait() {
    let circuits = "profile = \"web\"\nmax_concurrent_connections = 1\npaid_share = 0.0\nslow_requests_per_10_seconds = 3";
    let mut front =
        Front::start("queue_seconds = 20\nkeep_alive_seconds = 20\nclient_seconds = 30", circuits).unwrap();
    let mut busy = front.stream(1).unwrap();
    let ask = |busy: &mut TcpStream| {
        let mut answer = Vec::new();
        busy.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        read_answer(busy, &mut answer).unwrap();
        status(&String::from_utf8(answer).unwrap())
    };
    assert_eq!([0; 3].map(|_| ask(&mut busy)), [200; 3]);
    thread::scope(|scope| {
        let mut other = front.stream(2).unwrap();
        other.write_all(get("/").as_bytes()).unwrap();
        front.wait_for("the one that waits", |front| Ok(front.next_digest()?.waiting == 1)).unwrap();
        let other = scope.spawn(move || {
            let mut answer = Vec::new();
            read_answer(&mut other, &mut answer).unwrap();
            status(&String::from_utf8(answer).unwrap())
        });
        // It holds the only place, and would hold it for as long as the other one has patience.
        assert_eq!(ask(&mut busy), 200);
        assert_eq!(other.join().unwrap(), 200);
    });
    assert!(front.refused("slow_lane").unwrap() >= 1);
    assert_eq!(front.refused("queue_timeout").unwrap(), 0);
}

#[test]
fn six_hundred_at_once_fill_five_hundred_places() {
    let circuits = "profile = \"web\"\nmax_connections_per_second = 10000";
    let mut front =
        Front::start("queue_seconds = 60\nserver_seconds = 60\nclient_seconds = 60", circuits).unwrap();
    let asked: Vec<TcpStream> = (0..600)
        .map(|number| {
            let mut stream = front.stream(1_000 + number).unwrap();
            // Who is refused may be told before everything was said.
            let _ = stream.write_all(get("/slow/2000").as_bytes());
            stream
        })
        .collect();
    let outcomes: Vec<u16> = asked
        .into_iter()
        .map(|mut stream| {
            let mut answer = Vec::new();
            read_answer(&mut stream, &mut answer).unwrap();
            status(&String::from_utf8_lossy(&answer))
        })
        .collect();
    let count = |status: u16| outcomes.iter().filter(|outcome| **outcome == status).count();
    assert_eq!((count(200), count(503)), (500, 100), "{outcomes:?}");
    assert_eq!(front.refused("capacity").unwrap(), 100);
    assert_eq!(front.backend.requests().len(), 500);
}

#[test]
fn a_backend_that_takes_no_connection_costs_nobody_an_answer() {
    // Nobody listens there any more.
    let dead = free_address().unwrap();
    for sticky in [false, true] {
        let backend = Backend::start().unwrap();
        let places = [dead, backend.address()];
        // The one check that comes before the end of the test does not decide alone.
        let ingress = format!("health_every_seconds = 3600\nsticky = {sticky}");
        let mut front = Front::start_before(&places, backend, &ingress, OPEN).unwrap();
        for number in 0..40 {
            assert_eq!(status(&front.ask(300 + number, &get("/")).unwrap()), 200, "{number}");
        }
        let digest = front.next_digest().unwrap();
        assert_eq!(digest.backends.iter().map(|each| each.is_well).collect::<Vec<_>>(), [true, true]);
        assert_eq!(front.backend.requests().len(), 40);
        assert_eq!(front.refused("backend_down").unwrap(), 0);
    }
}

#[test]
fn a_sticky_circuit_keeps_its_backend_and_others_take_turns() {
    for sticky in [false, true] {
        let (backend, other) = (Backend::start().unwrap(), Backend::start().unwrap());
        let places = [backend.address(), other.address()];
        let front = Front::start_before(&places, backend, &format!("sticky = {sticky}"), OPEN).unwrap();
        let asked = || [front.backend.requests().len(), other.requests().len()];
        let mut circuits_of = [0; 2];
        for circuit in 1..=20 {
            let before = asked();
            for _ in 0..3 {
                assert_eq!(status(&front.ask(circuit, &get("/")).unwrap()), 200);
            }
            let now = asked();
            let got = [now[0] - before[0], now[1] - before[1]];
            assert_eq!(sticky, got == [3, 0] || got == [0, 3], "circuit {circuit}: {got:?}");
            circuits_of[usize::from(got[0] == 0)] += 1;
        }
        // By the hash of the circuit: a million times less likely than once that all are of one backend.
        assert!(!sticky || circuits_of[0] > 0 && circuits_of[1] > 0, "{circuits_of:?}");
    }
}

#[test]
fn one_failed_check_is_none() {
    let mut front = Front::start("health_every_seconds = 2", OPEN).unwrap();
    let checks = |front: &Front| front.backend.checks();
    let is_well = |digest: &Digest| digest.backends.iter().all(|each| each.is_well);
    front.wait_for("a check", |front| Ok(checks(front) > 0)).unwrap();
    front.backend.set_well(false);
    let (before, mut seen) = (checks(&front), Vec::new());
    // What is said while the first that failed is the last.
    front
        .wait_for("another check", |front| {
            let said = front.digest();
            let now = checks(front);
            if now == before + 1 {
                seen.push(is_well(&said));
            }
            Ok(now > before + 1)
        })
        .unwrap();
    assert!(seen.iter().all(|is_well| *is_well) && !seen.is_empty(), "{seen:?}");
    front.wait_for("the second to count", |front| Ok(!is_well(&front.digest()))).unwrap();
}

#[test]
fn what_a_circuit_costs_is_counted_for_it() {
    let mut front = Front::start("keep_alive_seconds = 60", OPEN).unwrap();
    let visit = |number: u32, requests: usize| {
        let mut stream = front.stream(number).unwrap();
        for _ in 0..requests {
            stream.write_all(get("/").as_bytes()).unwrap();
            read_answer(&mut stream, &mut Vec::new()).unwrap();
        }
        stream
    };
    let open = [visit(400, 100), visit(401, 1)];
    let rows = front.next_digest().unwrap().circuits;
    let cost = |number: u32| rows.iter().find(|row| row.circuit.get() == number).unwrap().cpu_microseconds;
    assert!(cost(400) > cost(401) && cost(401) > 0, "{rows:?}");
    drop(open);
}

#[test]
fn what_a_circuit_may_use_up_is_bounded() {
    // Bytes: two of these and the requests for them are more than what it may move in a minute.
    let mut front =
        Front::start("keep_alive_seconds = 60", &format!("{OPEN}\nmebibytes_per_minute = 1")).unwrap();
    let big = get("/bytes/600000");
    for (served, expected) in [(0, 200), (1, 200), (2, 429)] {
        // What a connection moved is known once it has ended.
        front.wait_for("the bytes", |front| Ok(front.digest().bytes_out >= served * 600_000)).unwrap();
        assert_eq!(status(&front.ask(410, &big).unwrap()), expected);
    }
    assert_eq!(status(&front.ask(411, &get("/")).unwrap()), 200, "another circuit");
    assert!(front.refused("byte_budget").unwrap() >= 1);
    // CPU time: requests of one circuit until they have cost what it may.
    let circuits = format!("{OPEN}\ncpu_milliseconds_per_minute = 10");
    let mut front = Front::start("keep_alive_seconds = 60", &circuits).unwrap();
    let mut answers = Vec::new();
    while answers.last() != Some(&429) && answers.len() < 20_000 {
        answers.push(status(&front.ask(420, &get("/")).unwrap()));
    }
    assert_eq!((answers.first(), answers.last()), (Some(&200), Some(&429)), "{} requests", answers.len());
    assert_eq!(status(&front.ask(421, &get("/")).unwrap()), 200, "another circuit");
    assert!(front.refused("cpu_budget").unwrap() >= 1);
}

#[test]
fn one_stream_that_moves_far_more_than_the_circuit_may_ends_in_a_ban() {
    let circuits = "profile = \"messenger\"\nmebibytes_per_minute = 1\nban_threshold = 2";
    let mut front = Front::start("protocol = \"tcp\"", circuits).unwrap();
    let mut stream = front.stream(430).unwrap();
    // As the backend of HTTP sends it; the ingress does not look into it.
    let mut end_of_it = Ok(());
    while end_of_it.is_ok() {
        end_of_it = stream
            .write_all(get("/bytes/300000").as_bytes())
            .and_then(|()| read_answer(&mut stream, &mut Vec::new()));
        thread::sleep(Duration::from_millis(200));
    }
    front.wait_for("the ban", |front| Ok(front.digest().banned == 1)).unwrap();
    let row = front.digest().circuits.iter().find(|row| row.circuit.get() == 430).cloned().unwrap();
    assert!(row.bytes_in + row.bytes_out > 2 << 20, "{row:?}");
}

#[test]
fn a_dead_backend_gives_way_to_a_page_and_comes_back() {
    let mut front = Front::start("health_every_seconds = 2", OPEN).unwrap();
    front.backend.set_well(false);
    front
        .wait_for("the health check", |front| Ok(front.digest().backends.iter().all(|each| !each.is_well)))
        .unwrap();
    let answer = front.ask(50, &get("/")).unwrap();
    // Two checks have to find it well.
    assert!(hint(&answer) == (503, Some(4)) && answer.contains("maintenance"), "{answer}");
    front.backend.set_well(true);
    front
        .wait_for("the health check", |front| Ok(front.digest().backends.iter().all(|each| each.is_well)))
        .unwrap();
    assert_eq!(status(&front.ask(50, &get("/")).unwrap()), 200);
    assert_eq!(front.refused("backend_down").unwrap(), 1);
}

#[test]
fn bytes_go_both_ways_over_tcp_and_over_a_socket_file() {
    let mut front = Front::start("protocol = \"tcp\"", OPEN).unwrap();
    let text = get("/raw");
    let mut stream = front.stream(60).unwrap();
    stream.write_all(text.as_bytes()).unwrap();
    let mut answer = Vec::new();
    read_answer(&mut stream, &mut answer).unwrap();
    let row = |front: &Front| front.digest().circuits.into_iter().find(|row| row.circuit.get() == 60);
    // What can be known of a circuit over TCP: how long the backend takes to take its connections.
    front
        .wait_for("the latency", |front| Ok(row(front).is_some_and(|row| row.latency_milliseconds.is_some())))
        .unwrap();
    // Not a byte is added or left out.
    assert_eq!(
        String::from_utf8(answer).unwrap(),
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len())
    );
    // An echo, megabytes long, in both directions at once, and then the end of one direction alone.
    let sent: Vec<u8> =
        (0..8_000_000_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut stream = front.stream(61).unwrap();
    stream.write_all(b"GET /ws HTTP/1.1\r\n\r\n").unwrap();
    let mut head = [0; 72];
    stream.read_exact(&mut head).unwrap();
    let (mut write, bytes) = (stream.try_clone().unwrap(), sent.clone());
    let writer = thread::spawn(move || {
        write.write_all(&bytes).unwrap();
        write.shutdown(Shutdown::Write).unwrap();
    });
    let received = end(&mut stream).unwrap();
    writer.join().unwrap();
    assert!(received == sent, "{} bytes of {}", received.len(), sent.len());
    let mut stream = UnixStream::connect(front.socket()).unwrap();
    stream.write_all(format!("{}{text}", header(62)).as_bytes()).unwrap();
    let mut answer = Vec::new();
    read_answer(&mut stream, &mut answer).unwrap();
    assert!(answer.ends_with(text.as_bytes()));
    let digest = front.next_digest().unwrap();
    assert!(digest.bytes_in > 8_000_000 && digest.bytes_out > 8_000_000, "{digest:?}");
}

#[test]
fn it_serves_on_without_the_daemon_and_ends_what_it_began() {
    let mut front = Front::start("", OPEN).unwrap();
    let ban = circuit(70, 5, BANNED);
    front.order(&Orders { revision: 1, generation: None, circuits: vec![ban], ..Orders::default() }).unwrap();
    front.leave_alone();
    for number in 71..75 {
        assert_eq!(status(&front.ask(number, &get("/")).unwrap()), 200);
    }
    assert!(is_reset(&end(&mut front.stream(70).unwrap())), "its last orders hold");
    let mut stream = front.stream(75).unwrap();
    stream.write_all(get("/slow/1500").as_bytes()).unwrap();
    front
        .wait_for("the request", |front| Ok(front.backend.requests().iter().any(|it| it.contains("/slow/"))))
        .unwrap();
    front.signal(Signal::SIGTERM).unwrap();
    let mut answer = Vec::new();
    read_answer(&mut stream, &mut answer).unwrap();
    assert_eq!(status(&String::from_utf8(answer).unwrap()), 200, "what was begun ends as it should");
    assert!(front.ended().unwrap().success());
}

#[test]
fn slow_clients_and_silent_backends_get_what_is_theirs() {
    let mut front = Front::start(
        "client_seconds = 2\nserver_seconds = 2\nkeep_alive_seconds = 1\nrequest_seconds = 1",
        OPEN,
    )
    .unwrap();
    // Far more than the kernel would hold if it were let.
    let length = 12 << 20;
    let mut stream = front.stream(90).unwrap();
    stream.write_all(get(&format!("/bytes/{length}")).as_bytes()).unwrap();
    let (mut received, mut piece) = (0, vec![0; 128 << 10]);
    loop {
        match stream.read(&mut piece).unwrap() {
            0 => break,
            bytes => received += bytes,
        }
        thread::sleep(Duration::from_millis(60));
    }
    assert!(received > length, "{received} of {length} bytes");
    // A body that keeps coming for longer than a backend may be silent.
    let mut stream = front.stream(91).unwrap();
    stream.write_all(b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 8192\r\n\r\n").unwrap();
    for _ in 0..8 {
        stream.write_all(&[b'x'; 1_024]).unwrap();
        thread::sleep(Duration::from_millis(500));
    }
    let mut answer = Vec::new();
    read_answer(&mut stream, &mut answer).unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    // A backend that begins to answer and stops.
    let mut stream = front.stream(92).unwrap();
    stream.write_all(get("/silent").as_bytes()).unwrap();
    let _ = end(&mut stream);
    let refused = front.next_digest().unwrap().refused;
    assert_eq!(
        (refused["slow_reader"], refused["slow_body"], refused["backend_timeout"]),
        (0, 0, 1),
        "{refused:?}"
    );
}

#[test]
fn whoever_waited_is_served_before_the_front_ends() {
    let mut front = Front::start(
        "queue_seconds = 20",
        "profile = \"web\"\nmax_concurrent_connections = 1\nmax_connections_per_second = 1000",
    )
    .unwrap();
    let streams: Vec<TcpStream> = (1..=4)
        .map(|number| {
            let mut stream = front.stream(number).unwrap();
            stream.write_all(b"GET /slow/3000 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
            stream
        })
        .collect();
    front.wait_for("the queue", |front| Ok(front.digest().waiting == 3)).unwrap();
    front.signal(Signal::SIGTERM).unwrap();
    for mut stream in streams {
        let mut answer = Vec::new();
        read_answer(&mut stream, &mut answer).unwrap();
        assert_eq!(status(&String::from_utf8(answer).unwrap()), 200);
    }
    assert!(front.ended().unwrap().success());
}

#[test]
fn clients_pose_neither_as_a_proxy_nor_switch_to_what_nobody_judges() {
    let front = Front::start("", OPEN).unwrap();
    let text = "GET /a HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings, host\r\nUpgrade: h2c\r\n\
                HTTP2-Settings: AAMAAABkAAQAAP__\r\nX_Onion_Circuit: forged\r\nX-Forwarded-For: 127.0.0.1\r\n\
                Proxy: http://evil.example\r\n\r\n";
    let answer = front.ask(95, text).unwrap();
    assert_eq!(status(&answer), 200, "{answer}");
    assert!(!answer.to_ascii_lowercase().contains("\r\ndate:"), "the host's clock: {answer}");
    let seen = front.backend.requests()[0].to_ascii_lowercase();
    for word in ["h2c", "http2-settings", "forged", "x-forwarded-for", "evil"] {
        assert!(!seen.contains(word), "{word} in {seen}");
    }
    assert!(seen.contains("host: a"), "{seen}");
    assert_eq!(status(&front.ask(96, "GET / HTTP/1.1\r\n\r\n").unwrap()), 400, "no host");
}

#[test]
fn what_is_said_again_counts_again_and_a_ban_that_is_sent_again_is_the_same_ban() {
    let mut front =
        Front::start("", "profile = \"web\"\nrequests_per_10_seconds = 2\nban_threshold = 1").unwrap();
    let unbanned = |said| circuit(41, said, CircuitState::Unbanned);
    let is_served = |front: &Front| front.ask(41, &get("/")).is_ok_and(|answer| status(&answer) == 200);
    for revision in 1..=2 {
        front
            .order(&Orders {
                revision,
                generation: None,
                circuits: vec![unbanned(revision)],
                ..Orders::default()
            })
            .unwrap();
        assert!(is_served(&front));
        // The second request within 10 s is one too many, and one violation bans.
        front.wait_for("its ban", |front| Ok(!is_served(front) && front.next_digest()?.banned == 1)).unwrap();
        thread::sleep(Duration::from_secs(10));
    }
    front
        .order(&Orders { revision: 3, generation: None, circuits: vec![unbanned(2)], ..Orders::default() })
        .unwrap();
    assert!(!is_served(&front), "said before");
    front
        .order(&Orders { revision: 4, generation: None, circuits: vec![unbanned(4)], ..Orders::default() })
        .unwrap();
    assert!(is_served(&front));
    // Sent three times beside others, an operator's ban is one ban.
    let ban = circuit(42, 5, BANNED);
    for revision in 5..=7 {
        let other = circuit(50 + u32::try_from(revision).unwrap(), revision, CircuitState::Vip);
        front
            .order(&Orders {
                revision,
                generation: None,
                circuits: vec![ban.clone(), other],
                ..Orders::default()
            })
            .unwrap();
    }
    let rows = front.next_digest().unwrap().circuits;
    assert_eq!(
        rows.iter().filter(|row| row.circuit.get() == 42 && row.state == "banned").count(),
        1,
        "{rows:?}"
    );
}

/// How soon systemd wants another sign of life in these tests.
const WATCHDOG: Duration = Duration::from_millis(400);

#[test]
fn systemd_hears_that_it_serves_that_it_lives_and_that_it_ends() {
    let systemd = NotifySocket::bind().unwrap();
    let mut front = Front::start_under(&systemd.path(), WATCHDOG, "", OPEN).unwrap();
    assert_eq!(systemd.hear().unwrap(), "READY=1");
    assert_eq!(status(&front.ask(7, &get("/")).unwrap()), 200);
    for _ in 0..3 {
        assert_eq!(systemd.hear().unwrap(), "WATCHDOG=1");
    }
    let mut slow = front.stream(8).unwrap();
    slow.write_all(get("/slow/3000").as_bytes()).unwrap();
    front.wait_for("the request", |front| Ok(front.backend.requests().len() == 2)).unwrap();
    systemd.so_far().unwrap();
    front.signal(Signal::SIGTERM).unwrap();
    let last = loop {
        let message = systemd.hear().unwrap();
        if message != "WATCHDOG=1" {
            break message;
        }
    };
    assert_eq!(last, "STOPPING=1");
    // It is said before what was begun has ended.
    slow.set_nonblocking(true).unwrap();
    assert_eq!(slow.peek(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    slow.set_nonblocking(false).unwrap();
    let mut answer = Vec::new();
    read_answer(&mut slow, &mut answer).unwrap();
    assert_eq!(status(&String::from_utf8_lossy(&answer)), 200);
    assert!(front.ended().unwrap().success());
    assert_eq!(systemd.so_far().unwrap(), [""; 0]);
}

/// A process that is no child of this one, and is ended with the test.
struct Stranger(OwnedFd);

impl Stranger {
    /// Waits for its end, after which the kernel lets this be read (pidfd_open(2)).
    fn ended(&self) {
        let patience = PollTimeout::try_from(PATIENCE).unwrap();
        assert_eq!(
            poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], patience),
            Ok(1),
            "it does not end"
        );
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        // It has ended, or ends now.
        let _ = signal_process(self.0.as_fd(), Signal::SIGKILL);
    }
}

/// The next message but signs of life.
fn word(systemd: &NotifySocket) -> String {
    loop {
        let message = systemd.hear().unwrap();
        if message != "WATCHDOG=1" {
            return message;
        }
    }
}

/// Who is the service's main process once a reload has been asked for.
fn succession(systemd: &NotifySocket) -> (u32, Stranger) {
    assert!(word(systemd).starts_with("RELOADING=1\nMONOTONIC_USEC="));
    let said = word(systemd);
    let next = said.strip_prefix("MAINPID=").and_then(|rest| rest.strip_suffix("\nREADY=1"));
    let pid = next.unwrap_or_else(|| panic!("{said}")).parse().unwrap();
    (pid, Stranger(open_process(pid).unwrap()))
}

#[test]
fn after_a_reload_another_process_serves_while_what_was_begun_goes_on() {
    let systemd = NotifySocket::bind().unwrap();
    let mut front = Front::start_under(&systemd.path(), Duration::from_secs(60), "", OPEN).unwrap();
    assert_eq!(word(&systemd), "READY=1");
    let long = format!("GET / HTTP/1.1\r\nHost: a\r\nX-Long: {}\r\n\r\n", "a".repeat(9_000));
    assert_eq!(status(&front.ask(5, &long).unwrap()), 200);
    let mut open = switched(&front, 3);
    echo(&mut open, b"ping").unwrap();

    // One that cannot serve changes nothing.
    let text = std::fs::read_to_string(front.config()).unwrap();
    std::fs::write(front.config(), format!("{text}[nonsense]\n")).unwrap();
    front.signal(Signal::SIGHUP).unwrap();
    assert!(word(&systemd).starts_with("RELOADING=1"));
    assert_eq!(word(&systemd), "READY=1");
    let log = front.log();
    assert!(log.contains("front_reload_failed") && log.contains("nonsense"), "{log}");
    assert_eq!(status(&front.ask(5, &long).unwrap()), 200);

    // Another one serves by another configuration while the first still has a stream.
    let other = text.replace("[circuits]", "header_bytes = 8192\n[circuits]");
    std::fs::write(front.config(), other).unwrap();
    front.signal(Signal::SIGHUP).unwrap();
    let (second, successor) = succession(&systemd);
    front.wait_for("the other one", |front| Ok(status(&front.ask(5, &long)?) == 431)).unwrap();
    echo(&mut open, b"pong").unwrap();
    assert_eq!(status(&front.ask(6, &get("/")).unwrap()), 200);
    drop(open);
    assert!(front.ended().unwrap().success());
    // What the first one made is left to the second.
    assert!(front.socket().exists());
    front.next_digest().unwrap();
    assert_eq!(status(&front.ask(6, &get("/")).unwrap()), 200);

    // And so on.
    signal_process(successor.0.as_fd(), Signal::SIGHUP).unwrap();
    let (third, last) = succession(&systemd);
    assert_ne!(second, third);
    successor.ended();
    assert_eq!(status(&front.ask(6, &get("/")).unwrap()), 200);
    signal_process(last.0.as_fd(), Signal::SIGTERM).unwrap();
    assert_eq!(word(&systemd), "STOPPING=1");
    last.ended();
    assert!(TcpStream::connect(front.listen()).is_err());
}

#[test]
fn who_was_taken_and_had_not_said_a_circuit_yet_is_served_by_the_process_that_was_replaced() {
    let systemd = NotifySocket::bind().unwrap();
    let mut front = Front::start_under(&systemd.path(), Duration::from_secs(60), "", OPEN).unwrap();
    assert_eq!(word(&systemd), "READY=1");
    let line = header(7);
    let (begun, rest) = line.split_at(20);
    let mut stream = TcpStream::connect(front.listen()).unwrap();
    stream.write_all(begun.as_bytes()).unwrap();
    // The queue is served in order, so the one before this was taken when this is answered.
    assert_eq!(status(&front.ask(5, &get("/")).unwrap()), 200);
    front.signal(Signal::SIGHUP).unwrap();
    let (_, successor) = succession(&systemd);
    stream.write_all(format!("{rest}{}", get("/")).as_bytes()).unwrap();
    let mut answer = Vec::new();
    read_answer(&mut stream, &mut answer).unwrap();
    assert_eq!(status(&String::from_utf8(answer).unwrap()), 200);
    drop(stream);
    assert!(front.ended().unwrap().success());
    signal_process(successor.0.as_fd(), Signal::SIGTERM).unwrap();
    successor.ended();
}

#[test]
fn a_worker_that_hangs_ends_the_signs_of_life_though_all_others_go_on() {
    let systemd = NotifySocket::bind().unwrap();
    let mut front = Front::start_under(&systemd.path(), WATCHDOG, "", OPEN).unwrap();
    assert_eq!(systemd.hear().unwrap(), "READY=1");
    assert_eq!(systemd.hear().unwrap(), "WATCHDOG=1");
    let threads = std::fs::read_dir(format!("/proc/{}/task", front.pid())).unwrap();
    let threads = threads.map(|thread| thread.unwrap());
    let is_worker = |folder: &std::fs::DirEntry| {
        std::fs::read_to_string(folder.path().join("comm")).unwrap().trim() == "worker0"
    };
    let worker = threads.into_iter().find(is_worker).unwrap().file_name();
    let held = hold_thread(worker.to_str().unwrap().parse().unwrap()).unwrap();
    // One that was on its way may come.
    front.next_digest().unwrap();
    systemd.so_far().unwrap();
    // The process goes on telling how it does, for longer than it may be silent here.
    front.next_digest().unwrap();
    assert_eq!(systemd.so_far().unwrap(), [""; 0]);
    drop(held);
    assert_eq!(systemd.hear().unwrap(), "WATCHDOG=1");
    assert_eq!(status(&front.ask(7, &get("/")).unwrap()), 200);
}

#[test]
fn whoever_cannot_serve_never_says_that_it_does() {
    let systemd = NotifySocket::bind().unwrap();
    let page = "maintenance_page = \"/nonexistent/page.html\"";
    let failed = Front::start_under(&systemd.path(), WATCHDOG, page, OPEN).err().unwrap().to_string();
    assert!(failed.contains("/nonexistent/page.html"), "{failed}");
    assert_eq!(systemd.so_far().unwrap(), [""; 0]);
}

/// Bytes of memory that the process holds.
fn resident(front: &Front) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", front.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1_024
}

/// What a connection takes in this process, as the unit counts it for `MemoryMax=`.
const MOST_BYTES_EACH: u64 = 192 * 1_024;

#[test]
fn what_a_busy_connection_takes_is_bounded() {
    const MANY: u32 = 190;
    let head = format!("GET / HTTP/1.1\r\nHost: a\r\nX-Long: {}", "a".repeat(14_000));
    let body =
        format!("POST /e HTTP/1.1\r\nHost: a\r\nContent-Length: 900000\r\n\r\n{}", "a".repeat(100_000));
    let rows = [
        // An answer of a mebibyte that nobody reads.
        ("http", get("/big")),
        // A head without an end, and a body that goes on.
        ("http", head),
        ("http", body),
        ("tcp", get("/big")),
    ];
    let measure = |protocol: &str, sent: &str| {
        let ingress = format!("protocol = \"{protocol}\"\nrequest_seconds = 60\nclient_seconds = 60");
        let mut front = Front::start(&ingress, OPEN).unwrap();
        // What is set up with the first is none of a connection's.
        drop(front.stream(1).unwrap());
        front.next_digest().unwrap();
        let before = resident(&front);
        let mut streams = Vec::new();
        for number in 0..MANY {
            let mut stream = front.stream(1_000 + number).unwrap();
            stream.set_nonblocking(true).unwrap();
            // As much as is taken.
            let _ = stream.write_all(sent.as_bytes());
            streams.push(stream);
        }
        front.wait_for("all connections", |front| Ok(front.digest().active == u64::from(MANY))).unwrap();
        front.next_digest().unwrap();
        let most = resident(&front).saturating_sub(before) / u64::from(MANY);
        assert_eq!(front.digest().active, u64::from(MANY), "they are still there");
        assert!(most < MOST_BYTES_EACH, "{protocol}: {most} bytes for each: {:.40}", sent);
    };
    thread::scope(|scope| {
        for (protocol, sent) in &rows {
            scope.spawn(|| measure(protocol, sent));
        }
    });
}

/// Each file descriptor and the most memory that an idle connection takes are counted by the kernel.
#[test]
fn ten_thousand_idle_connections_are_held_and_cost_little() {
    let files = allow_files().unwrap();
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let place = holder.local_addr().unwrap();
    let held = Arc::new(Mutex::new(Vec::new()));
    let holds = Arc::clone(&held);
    thread::spawn(move || {
        holder.incoming().map_while(Result::ok).for_each(|each| holds.lock().unwrap().push(each))
    });
    // In TCP mode each has another connection behind it, which this process holds too.
    for (protocol, most, most_bytes) in [("http", 10_000, 32_000), ("tcp", 4_000, 16_000)] {
        assert!(files > u64::from(most) * 2 - 1_000, "{files} open files are allowed: raise `ulimit -Hn`");
        let backend = Backend::start().unwrap();
        let places = if protocol == "http" { [backend.address()] } else { [place] };
        let ingress =
            format!("maxconn = {most}\nrequest_seconds = 60\nclient_seconds = 60\nprotocol = \"{protocol}\"");
        let circuits = format!(
            "profile = \"web\"\nmax_concurrent_connections = {most}\nmax_connections_per_second = 100000\npaid_share = 0.0"
        );
        let mut front = Front::start_before(&places, backend, &ingress, &circuits).unwrap();
        let before = resident(&front);
        let streams: Vec<TcpStream> = (0..most).map(|number| front.stream(1_000 + number).unwrap()).collect();
        front.wait_for("all connections", |front| Ok(front.digest().active == u64::from(most))).unwrap();
        let grown = resident(&front) - before;
        let each = grown / u64::from(most);
        assert!(each < most_bytes, "{each} bytes of memory for each connection");
        assert_eq!(front.digest().circuits.len(), 1_000);
        // One more has no place, and those that have one still have it.
        let more = front.ask(900, &get("/")).unwrap();
        assert!(if protocol == "http" { status(&more) == 503 } else { more.is_empty() }, "{more}");
        assert_eq!(front.refused("capacity").unwrap(), 1);
        if protocol == "http" {
            let mut stream = streams.last().unwrap();
            stream.write_all(get("/").as_bytes()).unwrap();
            let mut answer = Vec::new();
            read_answer(&mut stream, &mut answer).unwrap();
            assert_eq!(status(&String::from_utf8_lossy(&answer)), 200);
        }
        drop(streams);
        held.lock().unwrap().clear();
        front.wait_for("their end", |front| Ok(front.digest().active == 0)).unwrap();
        // What they have left behind is the kernel's again.
        front.wait_for("their memory", |front| Ok(resident(front) < before + grown / 4)).unwrap();
    }
}
