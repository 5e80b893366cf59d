//! What attackers do to HTTP: requests that can be read in two ways, and many circuits that send slowly or far too much.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper that fails is a test that fails"
)]

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use tunica_tests::ingress::{Front, PATIENCE, get};

/// No rate of all circuits is in the way.
const OPEN: &str = "profile = \"web\"\nmax_connections_per_second = 10000\n";

/// What follows a request that somebody may take for another one.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";

/// Sends all of it and returns all that comes, whether an end or a reset follows.
fn say(front: &Front, circuit: u32, bytes: &[u8]) -> String {
    let mut stream = front.stream(circuit).unwrap();
    // A refusal may come before everything was said.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn statuses(answer: &str) -> Vec<u16> {
    answer.split("HTTP/1.1 ").skip(1).filter_map(|rest| rest.get(..3)?.parse().ok()).collect()
}

/// Fields of a POST to which chunks of nothing and another request follow. Whoever goes by the chunks, by the length or by
/// neither begins the next request elsewhere.
const FRAMINGS: [&str; 28] = [
    "Content-Length: 6\r\nContent-Length: 7\r\n",
    "Content-Length: 6, 7\r\n",
    "Content-Length: 6\r\nContent-Length: 6, 6\r\nContent-Length: 9\r\n",
    "Content-Length: +6\r\n",
    "Content-Length: -6\r\n",
    "Content-Length: 0x6\r\n",
    "Content-Length: 6 0\r\n",
    "Content-Length: 6;\r\n",
    "Content-Length: \u{b}6\r\n",
    "Content-Length: 18446744073709551622\r\n",
    "Content-Length:\r\n",
    "Content-Length : 6\r\n",
    "Transfer-Encoding : chunked\r\n",
    "Transfer-Encoding: xchunked\r\n",
    "Transfer-Encoding: chunked, identity\r\n",
    "Transfer-Encoding: chunked, gzip\r\n",
    "Transfer-Encoding: identity\r\nContent-Length: 6\r\n",
    "Transfer-Encoding: \"chunked\"\r\n",
    "Transfer-Encoding: chunked\u{b}\r\n",
    "Transfer-Encoding: chunk\r\n",
    "Transfer-Encoding: chunked;x=y\r\n",
    "Transfer-Encoding:\r\n chunked\r\n",
    "Content-Length:\r\n 6\r\n",
    "X: y\r\n Transfer-Encoding: chunked\r\n",
    " Transfer-Encoding: chunked\r\nContent-Length: 6\r\n",
    "X: y\rTransfer-Encoding: chunked\r\n",
    "X: y\0\r\nContent-Length: 6\r\n",
    ": 6\r\n",
];

/// Bodies in chunks that are none, each before another request.
const CHUNKS: [&str; 17] = [
    "",
    "zz\r\nabc\r\n0\r\n\r\n",
    "-3\r\nabc\r\n0\r\n\r\n",
    "+3\r\nabc\r\n0\r\n\r\n",
    "0x3\r\nabc\r\n0\r\n\r\n",
    "3 3\r\nabc\r\n0\r\n\r\n",
    "3\nabc\r\n0\r\n\r\n",
    "3\r\nabcd\r\n0\r\n\r\n",
    "3\r\nabc0\r\n\r\n",
    "3\r\nabc\n0\r\n\r\n",
    "10000000000000003\r\nabc\r\n0\r\n\r\n",
    "fffffffffffffffff\r\nabc\r\n0\r\n\r\n",
    "3;a=\nb\r\nabc\r\n0\r\n\r\n",
    "3;a=b\rc\r\nabc\r\n0\r\n\r\n",
    ";\r\nabc\r\n0\r\n\r\n",
    "\r\n3\r\nabc\r\n0\r\n\r\n",
    "3\r\nabc\r\n0\r\nTrailer : 1\r\n\r\n",
];

#[test]
fn no_framing_smuggles_a_request() {
    let front =
        Front::start("request_seconds = 2\nkeep_alive_seconds = 1\nclient_seconds = 2", OPEN).unwrap();
    let mut circuit = 0;
    let framings = FRAMINGS.iter().map(|fields| format!("{fields}\r\n0\r\n\r\n"));
    let chunks = CHUNKS.iter().map(|body| format!("Transfer-Encoding: chunked\r\n\r\n{body}"));
    for rest in framings.chain(chunks) {
        // Each is a violation of its circuit, and five would ban.
        circuit += 1;
        let before = front.backend.requests().len();
        let text = format!("POST /row HTTP/1.1\r\nHost: a\r\n{rest}{SMUGGLED}");
        let answered = statuses(&say(&front, circuit, text.as_bytes()));
        let seen = front.backend.requests();
        // Refused, or one request and no other: what was not understood is not a request either.
        assert!(
            !seen.iter().any(|request| request.starts_with("GET /smuggled")),
            "{rest:?} got through as {seen:?}, answered with {answered:?}"
        );
        assert!(seen.len() <= before + 1, "{rest:?}");
        assert!(answered.iter().filter(|status| **status == 200).count() <= seen.len() - before, "{rest:?}");
        assert!(answered.len() <= 1, "{rest:?} was answered with {answered:?}");
    }
}

#[test]
fn what_is_well_framed_is_one_request_after_the_other() {
    let front =
        Front::start("request_seconds = 2\nkeep_alive_seconds = 1\nclient_seconds = 2", OPEN).unwrap();
    let last = "GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    for (number, (rest, body)) in [
        ("Content-Length: 3\r\n\r\nabc", "abc"),
        // The same length said again is one length (RFC 9110, section 8.6).
        ("Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc", "abc"),
        ("Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", "abc"),
        ("Transfer-Encoding: Chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", "abc"),
        ("Transfer-Encoding: chunked\r\n\r\n03;name=value;other=\"x\"\r\nabc\r\n00\r\n\r\n", "abc"),
        ("Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nTrailer: 1\r\n\r\n", "abc"),
        (
            "Transfer-Encoding: chunked\r\n\r\n21\r\nGET /inside HTTP/1.1\r\nHost: a\r\n\r\n\r\n0\r\n\r\n",
            "GET /inside HTTP/1.1\r\nHost: a",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let before = front.backend.requests().len();
        let text = format!("POST /row HTTP/1.1\r\nHost: a\r\n{rest}{last}");
        let answered = statuses(&say(&front, 1 + u32::try_from(number).unwrap(), text.as_bytes()));
        let seen = front.backend.requests().split_off(before);
        assert_eq!(
            answered.iter().filter(|status| **status == 200).count(),
            2,
            "{rest:?}: {answered:?}, {seen:?}"
        );
        assert_eq!(seen.len(), 2, "{rest:?}: {seen:?}");
        assert!(
            seen[0].starts_with("POST /row ") && seen[0].contains(&format!("\r\n\r\n{body}")),
            "{seen:?}"
        );
        assert!(seen[1].starts_with("GET /last "), "{seen:?}");
    }
}

/// A head of `count` fields, each with `length` bytes.
fn head_of(count: usize, length: usize) -> Vec<u8> {
    let fields: String = (0..count).map(|number| format!("X-{number}: {}\r\n", "y".repeat(length))).collect();
    format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n").into_bytes()
}

/// 300 streams, each of a circuit of its own, with this beginning.
fn begun(front: &Front, first: &[u8]) -> Vec<TcpStream> {
    let open = |number: u32| {
        let mut stream = front.stream(number).unwrap();
        let _ = stream.write_all(first);
        stream
    };
    (10_000..10_300).map(open).collect()
}

#[test]
fn slow_heads_slow_bodies_and_floods_of_fields_of_many_circuits_keep_nobody_out() {
    let mut front = Front::start(
        "request_seconds = 2\nclient_seconds = 3\nkeep_alive_seconds = 1\nqueue_seconds = 30",
        &format!("{OPEN}max_concurrent_connections = 100\n"),
    )
    .unwrap();
    for (first, drip, word) in [
        (&b"GET / HTTP/1.1\r\nHost: a\r\nX: "[..], &b"y"[..], "slow_headers"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n", b"X: y\r\n", "slow_headers"),
        (b"POST /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n", b"y", "slow_body"),
        (b"POST /slow HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\ny\r\n", "slow_body"),
    ] {
        let refused = front.refused(word).unwrap();
        let streams = begun(&front, first);
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                // Each lets a few bytes a second fall, for as long as it is let.
                let mut streams = streams;
                while !is_over.load(Ordering::Relaxed) {
                    streams.retain_mut(|stream| stream.write_all(drip).is_ok());
                    thread::sleep(Duration::from_millis(200));
                }
            });
            // All places are taken, and more wait: the visitor's turn comes when those are cut off.
            let answer = front.ask(1, &get("/visitor"));
            let is_served = answer.as_ref().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"));
            let cut = front.wait_for(word, |front| {
                Ok(front.digest().refused.get(word).copied().unwrap_or(0) >= refused + 300)
            });
            is_over.store(true, Ordering::Relaxed);
            assert!(is_served, "{word}: {answer:?}");
            cut.unwrap();
        });
    }
    // Fields without number or end, as fast as they go.
    let refused = front.refused("header_too_large").unwrap();
    let large = [head_of(500, 10), head_of(1, 200_000), head_of(20, 5_000)];
    for (number, head) in (20_000..20_090).zip(large.iter().cycle()) {
        assert_eq!(statuses(&say(&front, number, head)), [431]);
    }
    assert_eq!(front.refused("header_too_large").unwrap(), refused + 90);
    assert!(front.ask(1, &get("/visitor")).unwrap().starts_with("HTTP/1.1 200"));
    let mut stream = front.stream(2).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(tunica_tests::ingress::answers(&mut stream));
    let seen = front.backend.requests();
    assert!(!seen.iter().any(|request| request.contains("y\r\n")), "half a request reached the service");
}
