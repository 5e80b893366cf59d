//! Tokens: how a circuit earns one, what it is worth on others, and how it ends.

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
    num::{NonZeroU32, NonZeroUsize},
    thread,
    time::Duration,
};

use tunica_api::front::{CircuitOrder, CircuitState, LoadOrder, Orders, PreviousKey, TokenOrder};
use tunica_core::token_keys::TokenKey;
use tunica_pow::{Challenge, Id, Nonce, Token, TokenKeys, UnixSeconds, solve};
use tunica_tests::ingress::{Front, TOKEN_KEY, get, read_answer};

/// Everybody is asked, and whoever solves gets a token; no other limit is in the way.
const ASKED: &str = "profile = \"web\"\nmax_connections_per_second = 10000\nmax_concurrent_per_circuit = 1000\n\
                     connections_per_10_seconds = 0\npow_activation_threshold = 0.0\npow_difficulty = 8\n\
                     pow_grants = \"vip\"\n";

fn asked(more: &str) -> Front {
    ready(Front::start("", &format!("{ASKED}{more}")).unwrap())
}

/// Requests in 10 s, of anybody: nobody may ask for less for having paid.
fn most_requests(most: u16) -> String {
    ["slow_requests", "requests", "vip_requests"]
        .map(|key| format!("{key}_per_10_seconds = {most}\n"))
        .concat()
}

/// It knows its keys.
fn ready(mut front: Front) -> Front {
    front.wait_for("the keys of tokens", |front| Ok(front.digest().tokens.has_key)).unwrap();
    front
}

fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
}

/// The values of a header, each.
fn headers<'a>(answer: &'a str, name: &str) -> Vec<&'a str> {
    let head = answer.split("\r\n\r\n").next().unwrap_or_default();
    head.lines()
        .filter_map(|line| line.split_once(':').filter(|(known, _)| known.eq_ignore_ascii_case(name)))
        .map(|(_, value)| value.trim())
        .collect()
}

fn header<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    headers(answer, name).first().copied()
}

fn with(path: &str, lines: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: example.onion\r\n{lines}\r\n")
}

fn showing(token: &str) -> String {
    with("/", &format!("Tunica-Token: {token}\r\n"))
}

fn solution(challenge: &str) -> String {
    let challenge: Challenge = challenge.parse().unwrap();
    format!("{challenge} {}", solve(&challenge, Nonce(0), NonZeroUsize::MIN, &|_| false).nonce.unwrap())
}

/// What a program gets that solves what it is asked.
fn solved(front: &Front, circuit: u32, lines: &str) -> String {
    let asked = front.ask(circuit, &get("/")).unwrap();
    let solution = solution(header(&asked, "tunica-challenge").unwrap());
    front.ask(circuit, &with("/", &format!("Tunica-Solution: {solution}\r\n{lines}"))).unwrap()
}

fn earned(front: &Front, circuit: u32) -> String {
    header(&solved(front, circuit, ""), "tunica-token").expect("a token").to_owned()
}

/// A connection of a circuit that shows a token and stays, and how it was answered.
fn holding(front: &Front, circuit: u32, token: &str) -> (TcpStream, String) {
    let mut stream = front.stream(circuit).unwrap();
    stream.write_all(showing(token).as_bytes()).unwrap();
    let mut answer = Vec::new();
    read_answer(&mut stream, &mut answer).unwrap();
    (stream, String::from_utf8(answer).unwrap())
}

/// State and token of a circuit.
fn row(front: &mut Front, circuit: u32) -> (String, Option<String>) {
    let rows = front.next_digest().unwrap().circuits;
    let row = rows.into_iter().find(|row| row.circuit.get() == circuit).expect("a row");
    (row.state, row.token)
}

fn made_with(key: TokenKey, life: u64) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    TokenKeys::new(&key.0, None).issue(UnixSeconds(now + life), Id([7; 16])).to_string()
}

#[test]
fn a_token_is_earned_on_one_circuit_and_counts_on_others() {
    let mut front = asked("");
    let answer = solved(&front, 1, "");
    assert_eq!(status(&answer), 200, "{answer}");
    let token = header(&answer, "tunica-token").unwrap().to_owned();
    assert!(token.parse::<Token>().is_ok(), "{token}");
    let cookie = header(&answer, "set-cookie").unwrap();
    assert_eq!(
        cookie.replace(&token, "T"),
        "tunica_token=T; Path=/; Max-Age=1800; HttpOnly; SameSite=Strict"
    );
    // No second token for what is paid, and none of it at the service.
    let again = front.ask(1, &get("/")).unwrap();
    assert!(status(&again) == 200 && headers(&again, "set-cookie").is_empty(), "{again}");
    // Another circuit with the header, and one with the cookie among others.
    assert_eq!(status(&front.ask(2, &showing(&token)).unwrap()), 200);
    let cookies = format!("Cookie: a=\"1; 2\"; tunica_token={token};b=2;  c\r\n");
    let answer = front.ask(3, &with("/cookies", &cookies)).unwrap();
    assert_eq!(status(&answer), 200, "{answer}");
    let seen = front.backend.requests();
    assert!(seen.iter().all(|request| !request.to_ascii_lowercase().contains("tunica")), "{seen:?}");
    let cookie = seen.iter().find(|request| request.starts_with("GET /cookies ")).unwrap();
    assert!(cookie.to_ascii_lowercase().contains("cookie: a=\"1; 2\";b=2;  c\r\n"), "{cookie}");
    assert!(seen.iter().all(|request| !request.contains(&token)));
    // Who shows none must pay, and a browser's page gets the cookie alone.
    assert_eq!(status(&front.ask(4, &get("/")).unwrap()), 503);
    let answer = solved(&front, 5, "Accept: text/html\r\n");
    assert!(header(&answer, "set-cookie").is_some() && header(&answer, "tunica-token").is_none(), "{answer}");
    let (_held, _) = holding(&front, 2, &token);
    assert_eq!(row(&mut front, 2), ("vip".to_owned(), Some("in_force".to_owned())));
    let tokens = front.next_digest().unwrap().tokens;
    assert_eq!((tokens.issued["puzzle"], tokens.accepted, tokens.live), (2, 3, 2));
    assert!(tokens.refused.values().all(|count| *count == 0), "{tokens:?}");
    assert!(!front.log().contains(&token), "a token in the log");
}

#[test]
fn a_page_and_the_waiting_room_give_a_cookie() {
    let front = asked("");
    let page = front.ask(1, &with("/shop", "Accept: text/html\r\n")).unwrap();
    assert!(headers(&page, "set-cookie").is_empty(), "nothing is earned yet");
    let text = page.split("name=\"challenge\" value=\"").nth(1).unwrap().split('"').next().unwrap();
    let solution = solution(text);
    let (challenge, nonce) = solution.split_once(' ').unwrap();
    let body = format!("challenge={challenge}&nonce={nonce}&to=%2Fshop");
    let answer = front
        .ask(
            1,
            &format!(
                "POST /.well-known/tunica/challenge HTTP/1.1\r\nHost: a\r\nAccept: text/html\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            ),
        )
        .unwrap();
    assert_eq!((status(&answer), header(&answer, "location")), (303, Some("/shop")), "{answer}");
    let cookie = header(&answer, "set-cookie").unwrap().split(';').next().unwrap();
    assert_eq!(status(&front.ask(2, &with("/shop", &format!("Cookie: {cookie}\r\n"))).unwrap()), 200);
}

#[test]
fn a_fourth_circuit_at_once_is_served_as_any_other() {
    let mut front = asked("");
    let token = earned(&front, 1);
    let mut held: Vec<_> = (1..=3).map(|circuit| holding(&front, circuit, &token)).collect();
    assert!(held.iter().all(|(_, answer)| status(answer) == 200));
    // It is asked as if it showed none, and told why; with a solution it is served.
    let (mut fourth, answer) = holding(&front, 4, &token);
    assert_eq!((status(&answer), header(&answer, "tunica-token-refused")), (503, Some("in_use")), "{answer}");
    let solution = solution(header(&answer, "tunica-challenge").unwrap());
    let with_solution = with("/", &format!("Tunica-Token: {token}\r\nTunica-Solution: {solution}\r\n"));
    assert_eq!(row(&mut front, 4), ("normal".to_owned(), Some("in_use".to_owned())));
    fourth.write_all(showing(&token).as_bytes()).unwrap();
    let mut again = Vec::new();
    read_answer(&mut fourth, &mut again).unwrap();
    let tokens = front.next_digest().unwrap().tokens;
    assert_eq!((tokens.refused["in_use"], tokens.live), (1, 1), "a connection counts once");
    assert_eq!(status(&front.ask(4, &with_solution).unwrap()), 200);
    // A circuit without a connection makes room.
    drop(held.pop());
    front
        .wait_for("the end of the third", |front| Ok(status(&front.ask(5, &showing(&token))?) == 200))
        .unwrap();
}

#[test]
fn limits_count_for_a_token_over_all_its_circuits() {
    let mut front = asked(&format!("{}ban_threshold = 255", most_requests(9)));
    let token = earned(&front, 1);
    let mut streams: Vec<_> = (1..=3).map(|circuit| holding(&front, circuit, &token).0).collect();
    let mut refused = 0;
    for turn in 0..12 {
        let stream = &mut streams[turn % 3];
        let mut answer = Vec::new();
        if stream.write_all(get("/").as_bytes()).is_ok() && read_answer(stream, &mut answer).is_ok() {
            refused += u32::from(status(&String::from_utf8(answer).unwrap()) == 429);
        }
    }
    assert!(refused >= 1, "twelve requests and more are over nine, by whatever circuit");
    assert!(front.refused("vip_rate").unwrap() >= 1);
}

#[test]
fn limits_of_holders_relax_by_one_step_and_no_others() {
    let circuits = "ban_threshold = 255\nmax_concurrent_per_circuit = 4";
    let circuits = format!("profile = \"web\"\n{}{circuits}", most_requests(10));
    let mut front = ready(Front::start("", &circuits).unwrap());
    let load = |relaxes_tokens| LoadOrder {
        ratio: 0,
        asks_puzzles: false,
        puzzle_difficulty: 8,
        page_difficulty: 8,
        page_waits: false,
        share: 10_000,
        relaxes_tokens,
    };
    // How many requests and connections of a circuit that shows this, or an operator promoted, are served.
    let served = |front: &mut Front, circuit: u32, lines: &str| {
        let mut stream = front.stream(circuit).unwrap();
        let mut served = 0;
        loop {
            stream.write_all(with("/", lines).as_bytes()).unwrap();
            let mut answer = Vec::new();
            read_answer(&mut stream, &mut answer).unwrap();
            match status(&String::from_utf8(answer).unwrap()) {
                200 => served += 1,
                429 => break,
                other => panic!("{other}"),
            }
        }
        drop(stream);
        served
    };
    for (revision, (is_relaxed, token_requests)) in (1..).zip([(false, 9), (true, 14), (false, 9)]) {
        let circuit = 10 * revision as u32;
        let promoted = CircuitOrder {
            circuit: NonZeroU32::new(circuit).unwrap(),
            said: revision,
            state: CircuitState::Vip,
        };
        let orders =
            Orders { revision, circuits: vec![promoted], load: Some(load(is_relaxed)), ..Orders::default() };
        front.order(&orders).unwrap();
        front.wait_for("the load", |front| Ok(front.digest().load == Some(load(is_relaxed)))).unwrap();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let keys = TokenKeys::new(&TOKEN_KEY.0, None);
        let token = keys.issue(UnixSeconds(now + 600), Id([revision as u8; 16]));
        let lines = format!("Tunica-Token: {token}\r\n");
        assert_eq!(served(&mut front, circuit + 1, &lines), token_requests, "relaxed: {is_relaxed}");
        assert_eq!(served(&mut front, circuit, ""), 9, "no token");
        let tokens = front.next_digest().unwrap().tokens;
        assert!(tokens.holders >= revision && tokens.holders_refused >= revision, "{tokens:?}");
    }
}

#[test]
fn an_expired_token_makes_nobody_a_vip() {
    let mut front = asked("token_life_seconds = 5");
    let token = earned(&front, 1);
    assert_eq!(status(&front.ask(2, &showing(&token)).unwrap()), 200);
    // Its circuits are demoted, and asked to pay again.
    front
        .wait_for("its end", |front| {
            thread::sleep(Duration::from_millis(200));
            // Each by the second in which it was told of the token.
            Ok(status(&front.ask(1, &get("/"))?) == 503 && status(&front.ask(2, &get("/"))?) == 503)
        })
        .unwrap();
    let answer = front.ask(2, &showing(&token)).unwrap();
    assert_eq!(
        (status(&answer), header(&answer, "tunica-token-refused")),
        (503, Some("expired")),
        "{answer}"
    );
    let tokens = front.next_digest().unwrap().tokens;
    assert_eq!((tokens.refused["expired"], tokens.live), (1, 0));
}

#[test]
fn what_is_no_token_of_ours_is_told_from_one() {
    let mut front = asked("");
    let token = earned(&front, 1);
    let mut damaged: Vec<char> = token.chars().collect();
    damaged[63] = if damaged[63] == 'A' { 'B' } else { 'A' };
    let damaged: String = damaged.into_iter().collect();
    let other = made_with(TokenKey([1; 32]), 600);
    let long = format!("{token}{token}");
    for (circuit, text, word) in [
        (2, "x", "malformed"),
        (3, long.as_str(), "malformed"),
        (4, damaged.as_str(), "forged"),
        (5, other.as_str(), "forged"),
        (6, &made_with(TOKEN_KEY, 0), "expired"),
        (7, "\u{e9}", "malformed"),
    ] {
        let answer = front.ask(circuit, &showing(text)).unwrap();
        assert_eq!(
            (status(&answer), header(&answer, "tunica-token-refused")),
            (503, Some(word)),
            "{text}: {answer}"
        );
    }
    let tokens = front.next_digest().unwrap().tokens;
    let refused = |word: &str| tokens.refused[word];
    assert_eq!((refused("malformed"), refused("forged"), refused("expired")), (3, 2, 1));
    // What is wrong with a token is no offence, and keeps nobody out.
    assert_eq!((front.digest().banned, status(&solved(&front, 2, ""))), (0, 200));
}

#[test]
fn a_ban_of_one_circuit_revokes_the_token_of_all() {
    let mut front = asked("");
    let token = earned(&front, 1);
    let (_second, answer) = holding(&front, 2, &token);
    assert_eq!(status(&answer), 200);
    let until = u64::MAX / 2;
    let ban = CircuitOrder { circuit: NonZeroU32::MIN, said: 1, state: CircuitState::Banned { until } };
    front.order(&Orders { revision: 1, circuits: vec![ban.clone()], ..Orders::default() }).unwrap();
    assert_eq!(status(&front.ask(2, &get("/")).unwrap()), 503, "the other circuit is as any other");
    for circuit in [2, 3] {
        let answer = front.ask(circuit, &showing(&token)).unwrap();
        assert_eq!(
            (status(&answer), header(&answer, "tunica-token-refused")),
            (503, Some("revoked")),
            "{answer}"
        );
    }
    let digest = front.next_digest().unwrap();
    assert_eq!((digest.tokens.revoked, digest.tokens.live, digest.revoked.len()), (1, 0, 1));
    // The daemon remembers it, and tells the next front, where no circuit is banned.
    let tokens = TokenOrder { key: TOKEN_KEY, previous: None, revoked: digest.revoked };
    let orders =
        Orders { revision: 2, circuits: vec![ban], tokens: Some(tokens.clone()), ..Orders::default() };
    front.order(&orders).unwrap();
    assert!(front.next_digest().unwrap().revoked.is_empty(), "what is known is not told again");
    drop(front);
    let mut next = asked("");
    next.order(&Orders { revision: 1, tokens: Some(tokens), ..Orders::default() }).unwrap();
    assert_eq!(header(&next.ask(9, &showing(&token)).unwrap(), "tunica-token-refused"), Some("revoked"));
}

/// What a circuit does by itself: more than even a VIP may.
#[test]
fn abuse_ends_in_a_ban_and_costs_the_token() {
    let mut front = asked(&format!("{}ban_threshold = 1", most_requests(3)));
    let token = earned(&front, 1);
    for _ in 0..6 {
        // The last ones are reset.
        let _ = front.ask(1, &showing(&token));
    }
    front.wait_for("its ban", |front| Ok(front.digest().banned == 1)).unwrap();
    let answer = front.ask(2, &showing(&token)).unwrap();
    assert_eq!(header(&answer, "tunica-token-refused"), Some("revoked"), "{answer}");
}

#[test]
fn an_operator_who_demotes_a_circuit_is_not_outdone_by_its_token() {
    let mut front = asked("");
    let token = earned(&front, 1);
    let demoted = CircuitOrder { circuit: NonZeroU32::MIN, said: 1, state: CircuitState::Demoted };
    front.order(&Orders { revision: 1, circuits: vec![demoted], ..Orders::default() }).unwrap();
    let answer = front.ask(1, &showing(&token)).unwrap();
    assert_eq!(
        (status(&answer), header(&answer, "tunica-token-refused")),
        (503, Some("revoked")),
        "{answer}"
    );
}

#[test]
fn the_end_of_a_ban_costs_no_token_and_a_demotion_ends_no_ban() {
    let mut front = asked("");
    let token = earned(&front, 1);
    let order = |front: &mut Front, revision: u64, circuits: &[(u32, CircuitState)]| {
        let circuits = circuits.iter().map(|(number, state)| CircuitOrder {
            circuit: NonZeroU32::new(*number).unwrap(),
            said: revision,
            state: *state,
        });
        front.order(&Orders { revision, circuits: circuits.collect(), ..Orders::default() }).unwrap();
    };
    let is_reset = |front: &Front| front.ask(3, &get("/")).map_or(0, |answer| status(&answer)) == 0;
    let ban = CircuitState::Banned { until: u64::MAX / 2 };
    order(&mut front, 1, &[(1, CircuitState::Unbanned), (3, ban)]);
    for circuit in [1, 2] {
        assert_eq!(status(&front.ask(circuit, &showing(&token)).unwrap()), 200, "{circuit}");
    }
    assert!(is_reset(&front), "it is banned");
    order(&mut front, 2, &[(3, CircuitState::Demoted)]);
    assert!(is_reset(&front), "it is still banned");
    let digest = front.next_digest().unwrap();
    assert_eq!((digest.banned, digest.tokens.revoked, digest.tokens.live), (1, 0, 1));
    order(&mut front, 3, &[(3, CircuitState::Unbanned)]);
    assert_eq!(status(&front.ask(3, &get("/")).unwrap()), 503, "as any other, it must pay");
    assert_eq!(front.next_digest().unwrap().banned, 0);
}

#[test]
fn tokens_outlive_the_front_and_end_with_their_keys() {
    let before = asked("");
    let token = earned(&before, 1);
    // Another front beside it, as in a handover, and after it.
    let mut front = asked("");
    assert_eq!(status(&before.ask(2, &showing(&token)).unwrap()), 200);
    drop(before);
    let (_held, answer) = holding(&front, 1, &token);
    assert_eq!(status(&answer), 200, "{answer}");
    // The key turns: what was made before is taken for a while.
    let far = u64::from(u32::MAX);
    let turned = |key, previous: Option<TokenKey>| Orders {
        revision: 1,
        tokens: Some(TokenOrder {
            key: TokenKey([key; 32]),
            previous: previous.map(|key| PreviousKey { key, until: far }),
            revoked: Vec::new(),
        }),
        ..Orders::default()
    };
    front.order(&turned(1, Some(TOKEN_KEY))).unwrap();
    assert_eq!(status(&front.ask(1, &get("/")).unwrap()), 200, "it is in use");
    assert_eq!(status(&front.ask(2, &showing(&token)).unwrap()), 200);
    assert_eq!(status(&front.ask(3, &showing(&made_with(TokenKey([1; 32]), 60))).unwrap()), 200);
    // Revoked, all of them: also where they are in use.
    front.order(&Orders { revision: 2, ..turned(2, None) }).unwrap();
    for circuit in [1, 2, 3] {
        let answer = front.ask(circuit, &get("/")).unwrap();
        assert_eq!(status(&answer), 503, "{circuit}: {answer}");
    }
    assert_eq!(header(&front.ask(1, &showing(&token)).unwrap(), "tunica-token-refused"), Some("forged"));
    assert_eq!(front.next_digest().unwrap().tokens.live, 0);
    assert_eq!(
        status(&front.ask(4, &showing(&earned(&front, 5))).unwrap()),
        200,
        "others are made meanwhile"
    );
}

#[test]
fn a_backend_may_vouch_where_it_is_believed() {
    let vouching = |circuits: &str| {
        let backend = tunica_tests::ingress::Backend::start().unwrap();
        backend.say(
            "X-Tunica-Grant: vip\r\nTunica-Token: forged\r\nSet-Cookie: tunica_token=x\r\nSet-Cookie: s=1",
        );
        let circuits = format!("profile = \"web\"\npow_difficulty = 8\n{circuits}");
        ready(Front::start_before(&[backend.address()], backend, "", &circuits).unwrap())
    };
    let mut front = vouching("backend_grants = true");
    let answer = front.ask(1, &with("/login", "Accept: text/html\r\n")).unwrap();
    assert!(
        header(&answer, "x-tunica-grant").is_none() && header(&answer, "tunica-token").is_none(),
        "{answer}"
    );
    let [session, cookie] = headers(&answer, "set-cookie")[..] else { panic!("{answer}") };
    assert_eq!(session, "s=1");
    let token = cookie.strip_prefix("tunica_token=").unwrap().split(';').next().unwrap();
    assert!(token.parse::<Token>().is_ok(), "{cookie}");
    let (_held, _) = holding(&front, 2, token);
    assert_eq!(row(&mut front, 2).0, "vip");
    let digest = front.next_digest().unwrap();
    assert_eq!((digest.tokens.issued["backend"], digest.tokens.issued["puzzle"]), (1, 0));
    // Whose circuit has a token gets no other, however often the backend vouches for it.
    let again = front.ask(1, &get("/login")).unwrap();
    assert_eq!(
        (headers(&again, "set-cookie"), header(&again, "tunica-token")),
        (vec!["s=1"], None),
        "{again}"
    );
    // What a script of a page could have asked for says nothing that it could read; a program is told.
    for (circuit, line, is_told) in [
        (3, "Cookie: s=1\r\n", false),
        (4, "Origin: http://example.onion\r\n", false),
        (5, "Sec-Fetch-Mode: cors\r\n", false),
        (6, "", true),
    ] {
        let answer = front.ask(circuit, &with("/login", line)).unwrap();
        assert_eq!(headers(&answer, "set-cookie").len(), 2, "{answer}");
        assert_eq!(header(&answer, "tunica-token").is_some(), is_told, "{line}: {answer}");
    }
    let tokens = front.next_digest().unwrap().tokens;
    assert_eq!((tokens.issued["backend"], tokens.live), (5, 5));
    drop(front);
    let front = vouching("");
    let answer = front.ask(1, &get("/login")).unwrap();
    assert_eq!(headers(&answer, "set-cookie"), ["s=1"], "{answer}");
    assert_eq!(header(&answer, "x-tunica-grant"), Some("vip"), "a header as any other");
}

/// A line without its end.
fn line(stream: &mut TcpStream) -> String {
    let (mut text, mut byte) = (Vec::new(), [0]);
    while stream.read(&mut byte).unwrap() == 1 && byte != *b"\n" {
        text.extend(byte);
    }
    String::from_utf8(text).unwrap()
}

#[test]
fn over_tcp_a_line_asks_for_a_token_and_a_line_shows_it() {
    let circuits =
        format!("{}pow_tcp = true\nmax_per_circuit_per_minute = 0", ASKED.replace("web", "messenger"));
    let front = ready(Front::start("protocol = \"tcp\"\nclient_seconds = 5", &circuits).unwrap());
    let request = "GET /raw HTTP/1.1\r\nConnection: close\r\n\r\n";
    let begin = |circuit: u32| {
        let mut stream = front.stream(circuit).unwrap();
        let greeting = line(&mut stream);
        let challenge = greeting.strip_prefix("TUNICA 1 ").unwrap().to_owned();
        (stream, challenge)
    };
    let serves = |stream: &mut TcpStream| {
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        read_answer(stream, &mut answer).unwrap();
        String::from_utf8(answer).unwrap().ends_with(request)
    };
    // Who does not ask for one is answered as ever.
    let (mut plain, challenge) = begin(1);
    plain.write_all(format!("{}\n", solution(&challenge)).as_bytes()).unwrap();
    assert_eq!(line(&mut plain), "OK");
    assert!(serves(&mut plain));
    let (mut client, challenge) = begin(2);
    client.write_all(format!("{} token\r\n", solution(&challenge)).as_bytes()).unwrap();
    let answer = line(&mut client);
    let token = answer.strip_prefix("OK ").unwrap_or_else(|| panic!("{answer}")).to_owned();
    assert!(token.parse::<Token>().is_ok() && serves(&mut client));
    // On another circuit, with the stream behind it.
    let (mut other, _) = begin(3);
    other.write_all(format!("TOKEN {token}\n{request}").as_bytes()).unwrap();
    assert_eq!(line(&mut other), "OK");
    let mut answer = Vec::new();
    read_answer(&mut other, &mut answer).unwrap();
    assert!(String::from_utf8(answer).unwrap().ends_with(request), "not a byte is lost");
    // Its circuit is not asked again.
    assert!(serves(&mut front.stream(3).unwrap()));
    // One that is not taken ends nothing: the puzzle is still to be solved.
    let (mut third, challenge) = begin(4);
    third.write_all(format!("TOKEN {}\n", made_with(TokenKey([1; 32]), 60)).as_bytes()).unwrap();
    assert_eq!(line(&mut third), "REFUSED forged");
    third.write_all(format!("{}\n{request}", solution(&challenge)).as_bytes()).unwrap();
    assert_eq!(line(&mut third), "OK");
}
