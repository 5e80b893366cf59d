//! Puzzles before the service: who is asked, what is taken for an answer, and what is not.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper that fails is a test that fails"
)]

#[path = "challenge/reader.rs"]
mod reader;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    num::NonZeroU32,
    process::Command,
    thread,
    time::Duration,
};

use tunica_api::front::{CircuitOrder, CircuitState, Orders};
use tunica_pow::{Challenge, Nonce};
use tunica_tests::{
    armed::program,
    browser::Browser,
    ingress::{self, Front, get, read_answer},
};

use self::reader::Reader;

const PATH: &str = "/.well-known/tunica/challenge";

/// Everybody is asked, and no other limit is in the way.
const ASKED: &str = "profile = \"web\"\nmax_connections_per_second = 10000\nmax_concurrent_per_circuit = 1000\n\
                     connections_per_10_seconds = 0\nrequests_per_10_seconds = 60000\n\
                     slow_requests_per_10_seconds = 60000\npow_activation_threshold = 0.0\n";

fn asked(more: &str) -> Front {
    Front::start("", &format!("{ASKED}{more}")).unwrap()
}

fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
}

/// The value of a header.
fn header<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    let head = answer.split("\r\n\r\n").next()?;
    head.lines().find_map(|line| {
        let (known, value) = line.split_once(':')?;
        known.eq_ignore_ascii_case(name).then_some(value.trim())
    })
}

fn challenge(answer: &str) -> String {
    header(answer, "tunica-challenge").unwrap_or_else(|| panic!("no challenge: {answer}")).to_owned()
}

/// What `tunica pow solve` finds.
fn solve(challenge: &str) -> String {
    let out = Command::new(program("tunica").unwrap()).args(["pow", "solve", challenge]).output().unwrap();
    assert!(out.status.success(), "{out:?}");
    String::from_utf8(out.stdout).unwrap().trim().to_owned()
}

/// A nonce that does not solve it.
fn unsolved(challenge: &str) -> String {
    let challenge: Challenge = challenge.parse().unwrap();
    (0..).map(Nonce).find(|nonce| !challenge.is_solved_by(*nonce)).unwrap().to_string()
}

fn with(path: &str, headers: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: example.onion\r\n{headers}\r\n")
}

fn solving(path: &str, challenge: &str, nonce: &str) -> String {
    with(path, &format!("Tunica-Solution: {challenge} {nonce}\r\n"))
}

fn page(path: &str) -> String {
    with(path, "Accept: text/html,application/xhtml+xml;q=0.9,*/*;q=0.8\r\n")
}

fn post(body: &str) -> String {
    format!(
        "POST {PATH} HTTP/1.1\r\nHost: example.onion\r\nAccept: text/html\r\n\
         Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// The value of a hidden field of a page.
fn hidden(page: &str, name: &str) -> String {
    let after = page.split(&format!("name=\"{name}\" value=\"")).nth(1);
    after.and_then(|after| after.split('"').next()).unwrap_or_else(|| panic!("no {name}: {page}")).to_owned()
}

#[test]
fn a_program_is_asked_solves_and_is_served() {
    let mut front = asked("pow_difficulty = 12");
    let answer = front.ask(1, &get("/a")).unwrap();
    assert_eq!(status(&answer), 503, "{answer}");
    for (name, value) in [
        ("tunica-difficulty", "12"),
        ("cache-control", "no-store"),
        ("retry-after", "30"),
        ("content-length", "0"),
    ] {
        assert_eq!(header(&answer, name), Some(value), "{name}: {answer}");
    }
    assert!(front.backend.requests().is_empty(), "the service felt it");
    let challenge = challenge(&answer);
    let nonce = solve(&challenge);
    let answer = front.ask(1, &solving("/a", &challenge, &nonce)).unwrap();
    assert_eq!(status(&answer), 200, "{answer}");
    // The circuit has paid: no puzzle, and nothing of it at the service.
    assert_eq!(status(&front.ask(1, &get("/b")).unwrap()), 200);
    let seen = front.backend.requests();
    assert!(seen.len() == 2 && !seen[0].to_ascii_lowercase().contains("tunica"), "{seen:?}");
    // Another circuit has not.
    assert_eq!(status(&front.ask(2, &get("/")).unwrap()), 503);
    let digest = front.next_digest().unwrap();
    assert_eq!((digest.puzzles.issued["program"], digest.puzzles.solved["program"]), (2, 1));
    assert_eq!(digest.refused["puzzle_required"], 2);
}

#[test]
fn wrong_answers_are_not_taken() {
    let mut front =
        asked("pow_difficulty = 10\npow_page_max = 9\npow_expires_seconds = 5\nban_threshold = 3");
    let ask = |circuit, request: &str| front.ask(circuit, request).unwrap();
    let given = |circuit| challenge(&ask(circuit, &get("/")));
    let late = (given(9), std::time::Instant::now());
    let (text, other) = (given(1), given(2));
    let (nonce, of_other) = (solve(&text), solve(&other));
    let mut forged: Vec<char> = text.chars().collect();
    forged[63] = if forged[63] == 'A' { 'B' } else { 'A' };
    let forged: String = forged.into_iter().collect();
    // One byte says how hard it is: who changes it has another challenge.
    let easier = format!("AQg{}", text.chars().skip(3).collect::<String>());
    let of_easier = solve(&easier);
    for (what, challenge, nonce) in [
        ("another circuit's", &other, &of_other),
        ("forged", &forged, &nonce),
        ("made easier", &easier, &of_easier),
        ("no nonce", &text, &"0".to_owned()),
        ("no challenge", &"AAAA".to_owned(), &nonce),
    ] {
        let answer = ask(1, &solving("/", challenge, nonce));
        assert!(status(&answer) == 503 && header(&answer, "tunica-challenge").is_some(), "{what}: {answer}");
    }
    assert_eq!(status(&ask(1, &solving("/", &text, &nonce))), 200, "errors do not spoil what is right");
    // What was redeemed is redeemed, on whatever circuit; and the first has paid.
    assert_eq!(status(&ask(2, &solving("/", &text, &nonce))), 503);
    thread::sleep(Duration::from_secs(6).saturating_sub(late.1.elapsed()));
    assert_eq!(status(&ask(9, &solving("/", &late.0, &solve(&late.0)))), 503);
    // A nonce that does not solve a challenge of ours is a lie: three of them ban here.
    for _ in 0..3 {
        let text = given(3);
        let _ = front.ask(3, &solving("/", &text, &unsolved(&text)));
    }
    assert!(!front.ask(3, &get("/")).is_ok_and(|answer| status(&answer) != 0), "it is banned");
    let digest = front.next_digest().unwrap();
    let failed = &digest.puzzles.failed;
    assert_eq!(
        (failed["foreign"], failed["malformed"], failed["expired"], failed["unsolved"]),
        (4, 2, 1, 3),
        "{failed:?}"
    );
    assert_eq!((digest.refused["puzzle_wrong"], digest.refused["puzzle_unsolved"]), (7, 3));
    assert!(front.backend.requests().len() == 1);
}

#[test]
fn a_solution_is_good_once_and_may_make_a_vip() {
    let mut front = asked("pow_difficulty = 8\npow_grants = \"vip\"");
    front.wait_for("the keys of tokens", |front| Ok(front.digest().tokens.has_key)).unwrap();
    let text = challenge(&front.ask(1, &get("/")).unwrap());
    let nonce = solve(&text);
    let mut stream = front.stream(1).unwrap();
    stream.write_all(solving("/slow/5000", &text, &nonce).as_bytes()).unwrap();
    let state = |front: &mut Front| {
        let rows = front.next_digest().unwrap().circuits;
        rows.iter().find(|row| row.circuit.get() == 1).map(|row| (row.state.clone(), row.paid))
    };
    assert_eq!(state(&mut front), Some(("vip".to_owned(), true)));
    // Demoted, the circuit has paid no more, and cannot pay with the same coin.
    let circuit = CircuitOrder { circuit: NonZeroU32::MIN, said: 1, state: CircuitState::Demoted };
    front
        .order(&Orders { revision: 1, generation: Some(4), circuits: vec![circuit], ..Orders::default() })
        .unwrap();
    assert_eq!(status(&front.ask(1, &get("/")).unwrap()), 503);
    let answer = front.ask(1, &solving("/", &text, &nonce)).unwrap();
    assert_eq!(status(&answer), 503, "{answer}");
    let form = post(&format!("challenge={text}&nonce={nonce}&to=%2F"));
    let answer = front.ask(1, &form).unwrap();
    assert!(status(&answer) == 503 && answer.contains("This answer was used already."), "{answer}");
    assert_eq!(front.next_digest().unwrap().puzzles.failed["replayed"], 2);
    // Another tor process numbers its circuits anew, and nothing is known of them.
    front
        .order(&Orders { revision: 2, generation: Some(5), circuits: Vec::new(), ..Orders::default() })
        .unwrap();
    let answer = front.ask(1, &solving("/", &text, &nonce)).unwrap();
    assert_eq!(status(&answer), 503, "{answer}");
    assert_eq!(front.next_digest().unwrap().puzzles.failed["foreign"], 1);
}

#[test]
fn a_form_leads_back_to_where_the_visitor_was_and_nowhere_else() {
    // Only GET and HEAD pass, and this POST.
    let gated = format!("{ASKED}pow_difficulty = 8").replace("web", "gated");
    let mut front = Front::start("", &format!("{gated}\nmax_per_circuit_per_minute = 0")).unwrap();
    let answer = front.ask(1, &page("/shop?item=1&a=%3C")).unwrap();
    assert_eq!(status(&answer), 503);
    let policy = header(&answer, "content-security-policy").unwrap().to_owned();
    assert!(
        policy.starts_with("default-src 'none'; script-src 'nonce-") && !policy.contains("unsafe"),
        "{policy}"
    );
    assert_eq!(header(&answer, "referrer-policy"), Some("no-referrer"));
    assert!(header(&answer, "set-cookie").is_none(), "the circuit is who is asked");
    let words: Vec<String> = (0..2)
        .map(|_| header(&front.ask(1, &page("/")).unwrap(), "content-security-policy").unwrap().to_owned())
        .collect();
    assert!(words[0] != words[1] && words[0] != policy, "the word of a page is good for no other");
    assert_eq!(hidden(&answer, "to"), "/shop?item=1&amp;a=%3C");
    let mut number = 10;
    for (to, location) in [
        ("%2Fshop%3Fitem%3D1", "/shop?item=1"),
        ("%2F%2Fevil.example%2F", "/"),
        ("%2F%5Cevil.example", "/"),
        ("https%3A%2F%2Fevil.example", "/"),
        ("%2F%0D%0ASet-Cookie%3A+a", "/"),
        ("%2F%09%2Fevil.example", "/"),
        ("", "/"),
    ] {
        number += 1;
        let text = hidden(&front.ask(number, &page("/")).unwrap(), "challenge");
        let answer =
            front.ask(number, &post(&format!("challenge={text}&nonce={}&to={to}", solve(&text)))).unwrap();
        assert_eq!((status(&answer), header(&answer, "location")), (303, Some(location)), "{to}: {answer}");
        assert!(header(&answer, "set-cookie").is_none());
        // Who has paid already is led back as well, without another puzzle.
        let again = front.ask(number, &post(&format!("to={to}"))).unwrap();
        assert_eq!(header(&again, "location"), Some(location), "{to}");
        assert_eq!(status(&front.ask(number, &get(location)).unwrap()), 200);
    }
    // A form that is too large, and methods that pass nowhere.
    let large = post(&format!("challenge={}", "a".repeat(20_000)));
    assert_eq!(status(&front.ask(2, &large).unwrap()), 413);
    for (method, path) in [("POST", "/other"), ("PUT", PATH), ("DELETE", PATH)] {
        let request = format!("{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(status(&front.ask(2, &request).unwrap()), 405, "{method} {path}");
    }
    assert!(front.backend.requests().iter().all(|request| !request.contains(PATH)), "the service got it");
    let puzzles = front.next_digest().unwrap().puzzles;
    assert_eq!((puzzles.issued["page"], puzzles.solved["page"]), (10, 7));
}

#[test]
fn one_connection_asks_solves_and_is_served() {
    let front = asked("pow_difficulty = 8");
    let mut stream = front.stream(1).unwrap();
    let mut say = |request: &str| {
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        read_answer(&mut stream, &mut answer).unwrap();
        String::from_utf8(answer).unwrap()
    };
    let text = challenge(&say(&get("/")));
    let nonce = solve(&text);
    // Another connection that was given a puzzle before its circuit paid.
    let mut other = front.stream(1).unwrap();
    let mut answer = Vec::new();
    other.write_all(get("/other").as_bytes()).unwrap();
    read_answer(&mut other, &mut answer).unwrap();
    assert_eq!(status(&say(&solving("/", &text, &nonce))), 200);
    assert_eq!(status(&say(&get("/"))), 200);
    answer.clear();
    other.write_all(get("/other").as_bytes()).unwrap();
    read_answer(&mut other, &mut answer).unwrap();
    assert_eq!(status(&String::from_utf8(answer).unwrap()), 200, "its circuit has paid");
}

#[test]
fn a_page_asks_no_more_than_it_may_and_leads_to_the_waiting_room() {
    // Four connections a second: one circuit a second is let in.
    let circuits = ASKED.replace("10000", "4");
    let more = "pow_difficulty = 11\npow_page_max = 9\npaid_share = 0.0";
    let mut front = Front::start("", &format!("{circuits}{more}")).unwrap();
    let answer = front.ask(1, &page("/shop")).unwrap();
    assert_eq!(header(&answer, "tunica-difficulty"), Some("11"));
    let (easy, hard) = (hidden(&answer, "challenge"), challenge(&answer));
    let bits = |text: &str| text.parse::<Challenge>().unwrap().difficulty().bits();
    assert_eq!((bits(&easy), bits(&hard)), (9, 11));
    let solved = post(&format!("challenge={easy}&nonce={}&to=%2Fshop", solve(&easy)));
    let answer = front.ask(1, &solved).unwrap();
    let room = format!("{PATH}?see=wait&to=/shop");
    assert_eq!((status(&answer), header(&answer, "location")), (303, Some(room.as_str())));
    let answer = front.ask(1, &page(&room)).unwrap();
    let refresh = format!("<meta http-equiv=\"refresh\" content=\"10;url={}\">", room.replace('&', "&amp;"));
    assert!(status(&answer) == 503 && answer.contains(&refresh) && !answer.contains("<script"), "{answer}");
    assert_eq!(front.next_digest().unwrap().puzzles.waiting_room, 1);
    // Elsewhere it is told the same, and a second answer moves nobody forward.
    let answer = front.ask(1, &get("/")).unwrap();
    assert_eq!((status(&answer), header(&answer, "tunica-waiting-before")), (503, Some("0")));
    assert!(status(&front.ask(1, &solved).unwrap()) == 503, "it is redeemed");
    // A program that solves all that is asked waits for nothing; it is another circuit.
    let text = challenge(&front.ask(2, &get("/")).unwrap());
    assert_eq!(status(&front.ask(2, &solving("/", &text, &solve(&text))).unwrap()), 200);
    // Two bits less are ten seconds.
    front
        .wait_for("its turn", |front| {
            thread::sleep(Duration::from_secs(1));
            let answer = front.ask(1, &page(&room))?;
            Ok(header(&answer, "location") == Some("/shop"))
        })
        .unwrap();
    assert_eq!(status(&front.ask(1, &page("/shop")).unwrap()), 200);
    let digest = front.next_digest().unwrap();
    assert_eq!((digest.puzzles.waiting_room, digest.puzzles.let_in), (0, 1));
    assert_eq!((digest.puzzles.solved["page"], digest.puzzles.solved["program"]), (1, 1));
}

#[test]
fn without_scripts_there_is_a_picture_and_few_tries() {
    let mut front = asked("pow_difficulty = 8\nban_threshold = 2");
    // The link is there without scripts.
    let link = format!("{PATH}?see=picture&amp;to=/a");
    let answer = front.ask(1, &page("/a")).unwrap();
    assert!(answer.contains(&format!("href=\"{link}\"")), "{answer}");
    let answer = front.ask(1, &page(&link.replace("&amp;", "&"))).unwrap();
    assert!(
        status(&answer) == 503 && !answer.contains("<script") && answer.contains("iVBORw0KGgo"),
        "{answer}"
    );
    assert_eq!(hidden(&answer, "to"), "/a");
    let policy = header(&answer, "content-security-policy").unwrap();
    assert!(policy.contains("img-src data:") && !policy.contains("script-src"), "{policy}");
    assert_ne!(
        hidden(&answer, "picture"),
        hidden(&front.ask(1, &page(&format!("{PATH}?see=picture"))).unwrap(), "picture")
    );
    for _ in 0..5 {
        let picture = hidden(&front.ask(1, &page(&format!("{PATH}?see=picture"))).unwrap(), "picture");
        // 22^6 texts are possible, and this is none: it has no O.
        let answer = front.ask(1, &post(&format!("picture={picture}&text=OOOOOO&to=%2Fa"))).unwrap();
        assert!(status(&answer) == 503 && answer.contains("These were other characters."), "{answer}");
        assert!(answer.contains("iVBORw0KGgo") && hidden(&answer, "picture") != picture, "a new one");
    }
    let answer = front.ask(1, &post("picture=00&text=AAAAAA")).unwrap();
    assert_eq!(status(&answer), 429, "{answer}");
    assert!(header(&answer, "retry-after").is_some_and(|seconds| seconds.parse::<u32>().unwrap() <= 60));
    let _ = front.ask(1, &post("picture=00&text=AAAAAA"));
    assert!(!front.ask(1, &get("/")).is_ok_and(|answer| status(&answer) != 0), "who goes on is banned");
    let digest = front.next_digest().unwrap();
    assert_eq!((digest.puzzles.failed["misread"], digest.refused["puzzle_attempts"]), (5, 2));
    assert_eq!(digest.banned, 1);
}

#[test]
fn whoever_reads_a_picture_is_served() {
    let mut front = asked("pow_difficulty = 8");
    let reader = Reader::learn();
    // Each from a circuit of its own, so that none has too many tries.
    let paid = (1..=400).find(|number| {
        let answer = front.ask(*number, &page(&format!("{PATH}?see=picture&to=/a"))).unwrap();
        let image = answer.split("data:image/png;base64,").nth(1).and_then(|rest| rest.split('"').next());
        let ink = reader::pixels(&reader::from_base64(image.unwrap()));
        let Some(text) = reader.read(&ink) else { return false };
        // As people type.
        let text = text.to_lowercase();
        let form = post(&format!("picture={}&text={text}&to=%2Fa", hidden(&answer, "picture")));
        let answer = front.ask(*number, &form).unwrap();
        if status(&answer) == 303 {
            assert_eq!(header(&answer, "location"), Some("/a"), "{answer}");
            return true;
        }
        assert!(answer.contains("These were other characters."), "{answer}");
        assert!(front.backend.requests().is_empty(), "{answer}");
        false
    });
    let paid = paid.expect("one of 400 pictures is legible");
    assert_eq!(status(&front.ask(paid, &get("/a")).unwrap()), 200);
    assert_eq!(status(&front.ask(1_000, &get("/a")).unwrap()), 503, "another circuit");
    let puzzles = front.next_digest().unwrap().puzzles;
    assert_eq!(puzzles.solved["picture"], 1);
    assert_eq!(front.backend.requests().len(), 1);
}

#[test]
fn whoever_gives_way_to_the_next_is_told_to_come_again() {
    let circuits = format!("{ASKED}max_concurrent_connections = 2");
    let ingress = "maxconn = 2\nkeep_alive_seconds = 60\nqueue_seconds = 7";
    let mut front = Front::start(ingress, &circuits).unwrap();
    let is_open = |front: &mut Front, count| {
        front.wait_for("the connections", |front| Ok(front.digest().challenged == count)).unwrap();
    };
    let told = |mut stream: TcpStream| {
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        String::from_utf8(answer).unwrap()
    };
    // Nothing was asked yet: what comes now is answered.
    let silent = front.stream(1).unwrap();
    is_open(&mut front, 1);
    let mut asked = front.stream(2).unwrap();
    asked.write_all(get("/").as_bytes()).unwrap();
    read_answer(&mut asked, &mut Vec::new()).unwrap();
    let third = front.stream(3).unwrap();
    let answer = told(silent);
    assert_eq!((status(&answer), header(&answer, "retry-after")), (503, Some("7")), "{answer}");
    assert_eq!(header(&answer, "tunica-challenge"), None, "{answer}");
    // Between two requests: a browser that finds it closed asks again over another.
    let _fourth = front.stream(4).unwrap();
    assert_eq!(told(asked), "");
    assert_eq!(front.refused("displaced").unwrap(), 2);
    drop(third);
}

/// A place that browsers can connect to: what comes goes to the front as streams of one circuit, as tor has it.
fn bridge(front: &Front, circuit: u32) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (place, to) = (listener.local_addr().unwrap(), front.listen());
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let Ok(mut stream) = TcpStream::connect(to) else { return };
            let _ = stream.write_all(ingress::header(circuit).as_bytes());
            for (mut from, mut to) in
                [(client.try_clone().unwrap(), stream.try_clone().unwrap()), (stream, client)]
            {
                // Whichever side ends, the other is told.
                thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Write);
                });
            }
        }
    });
    place
}

#[test]
fn a_browser_solves_the_page_by_itself_and_without_scripts_it_stands_in_line() {
    let mut front = asked("pow_difficulty = 12\npow_page_max = 12");
    let asked_for = |front: &Front, path: &str| {
        front.backend.requests().iter().any(|request| request.starts_with(&format!("GET {path} ")))
    };
    let place = bridge(&front, 1);
    let browser = Browser::open(&format!("http://{place}/shop?item=1&a=b"), true).unwrap();
    front.wait_for("the browser", |front| Ok(asked_for(front, "/shop?item=1&a=b"))).unwrap();
    drop(browser);
    let puzzles = front.next_digest().unwrap().puzzles;
    assert_eq!((puzzles.solved["page"], puzzles.failed.values().sum::<u64>()), (1, 0), "{puzzles:?}");
    drop(front);

    // Without scripts the page waits for its visitor; the waiting room comes again by itself.
    let mut front = asked("pow_difficulty = 9\npow_page_max = 8");
    let answer = front.ask(2, &page("/shop")).unwrap();
    let text = hidden(&answer, "challenge");
    let form = post(&format!("challenge={text}&nonce={}&to=%2Fshop", solve(&text)));
    assert_eq!(status(&front.ask(2, &form).unwrap()), 303);
    let (asking, waiting) = (bridge(&front, 3), bridge(&front, 2));
    let _asks = Browser::open(&format!("http://{asking}/other"), false).unwrap();
    let _waits = Browser::open(&format!("http://{waiting}{PATH}?see=wait&to=%2Fshop"), false).unwrap();
    front.wait_for("its turn", |front| Ok(asked_for(front, "/shop"))).unwrap();
    let puzzles = front.next_digest().unwrap().puzzles;
    assert!(puzzles.issued["page"] >= 2 && puzzles.solved["page"] == 1, "{puzzles:?}");
    assert!(!asked_for(&front, "/other"), "a page without scripts solves nothing");
}

/// A client of the handshake, as `docs/reference/pow.md` has it.
struct Handshake {
    stream: TcpStream,
    challenge: String,
}

impl Handshake {
    fn begin(front: &Front, circuit: u32, first: &str) -> Self {
        let mut stream = front.stream(circuit).unwrap();
        stream.write_all(first.as_bytes()).unwrap();
        let line = line(&mut stream);
        let challenge = line.strip_prefix("TUNICA 1 ").unwrap_or_else(|| panic!("{line}")).to_owned();
        Self { stream, challenge }
    }

    /// What comes back for a line and what follows it, to the end of the connection.
    fn end(mut self, text: &str) -> String {
        let _ = self.stream.write_all(text.as_bytes());
        let mut rest = Vec::new();
        let _ = self.stream.read_to_end(&mut rest);
        String::from_utf8(rest).unwrap()
    }
}

/// A line without its end.
fn line(stream: &mut TcpStream) -> String {
    let (mut text, mut byte) = (Vec::new(), [0]);
    while stream.read(&mut byte).unwrap() == 1 && byte != *b"\n" {
        text.extend(byte);
    }
    String::from_utf8(text).unwrap()
}

fn tcp(more: &str) -> Front {
    let circuits = ASKED.replace("web", "messenger");
    let circuits = circuits.lines().filter(|line| !line.contains("requests_")).collect::<Vec<_>>().join("\n");
    Front::start(
        "protocol = \"tcp\"\nclient_seconds = 2",
        &format!("{circuits}\nmax_per_circuit_per_minute = 0\n{more}"),
    )
    .unwrap()
}

#[test]
fn over_tcp_a_line_asks_and_a_line_answers() {
    let mut front = tcp("pow_tcp = true\npow_difficulty = 10\nban_threshold = 2");
    let request = "GET /raw HTTP/1.1\r\nConnection: close\r\n\r\n";
    let echo = |stream: &mut TcpStream| {
        let mut answer = Vec::new();
        read_answer(stream, &mut answer).unwrap();
        String::from_utf8(answer).unwrap()
    };
    // In one piece, with the stream behind it.
    let mut client = Handshake::begin(&front, 1, "");
    let nonce = solve(&client.challenge);
    let answer = format!("{} {nonce}\r\n{request}", client.challenge);
    client.stream.write_all(answer.as_bytes()).unwrap();
    assert_eq!(line(&mut client.stream), "OK");
    assert!(echo(&mut client.stream).ends_with(request), "not a byte is lost");
    // The circuit has paid, so the next stream is the service's from its first byte.
    let mut stream = front.stream(1).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    assert!(echo(&mut stream).starts_with("HTTP/1.1 200"));
    // Who needs longer than the front waits solves first, and connects again: any challenge of its circuit will do.
    let slow = Handshake::begin(&front, 2, "");
    let (text, nonce) = (slow.challenge.clone(), solve(&slow.challenge));
    assert_eq!(slow.end(""), "", "the front waited in vain");
    let mut client = Handshake::begin(&front, 2, &format!("{text} {nonce}\n"));
    assert_eq!(line(&mut client.stream), "OK");
    client.stream.write_all(request.as_bytes()).unwrap();
    assert!(echo(&mut client.stream).ends_with(request));
    // Another circuit's, and what is no answer at all.
    let client = Handshake::begin(&front, 3, "");
    assert_eq!(client.end(&format!("{text} {nonce}\n")), "");
    let long = "x".repeat(1_000);
    for text in [request, "\n", long.as_str(), "\u{e9}\n"] {
        assert_eq!(Handshake::begin(&front, 3, "").end(text), "", "{text}");
    }
    // A nonce that does not solve it counts as a violation: the second bans.
    for _ in 0..2 {
        let client = Handshake::begin(&front, 4, "");
        let answer = format!("{} {}\n", client.challenge, unsolved(&client.challenge));
        assert_eq!(client.end(&answer), "");
    }
    front.wait_for("its ban", |front| Ok(front.digest().banned == 1)).unwrap();
    let digest = front.next_digest().unwrap();
    let refused = |word: &str| digest.refused[word];
    assert_eq!(
        (refused("puzzle_slow"), refused("puzzle_unsolved"), refused("puzzle_wrong")),
        (1, 2, 5),
        "{:?}",
        digest.refused
    );
    assert_eq!((digest.puzzles.solved["tcp"], digest.puzzles.failed["foreign"]), (2, 1));
    assert_eq!(front.backend.requests().len(), 3);
}

#[test]
fn over_tcp_nobody_is_asked_who_cannot_answer() {
    let mut front = tcp("pow_tcp = false");
    let mut stream = front.stream(1).unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty());
    let digest = front.next_digest().unwrap();
    assert_eq!((digest.refused["puzzle_impossible"], digest.puzzles.issued["tcp"]), (1, 0));
}

#[test]
fn what_was_asked_before_the_tor_process_had_a_name_is_good_after_it() {
    for grants in ["normal", "vip"] {
        let mut front = asked(&format!("pow_difficulty = 8\npow_grants = \"{grants}\""));
        let given = |front: &Front, circuit| challenge(&front.ask(circuit, &get("/")).unwrap());
        let (text, other, paid) = (given(&front, 1), given(&front, 2), given(&front, 3));
        assert_eq!(status(&front.ask(3, &solving("/", &paid, &solve(&paid))).unwrap()), 200);
        // A connection that is asked, and is kept.
        let mut kept = front.stream(1).unwrap();
        let mut say = |request: &str| {
            let mut answer = Vec::new();
            kept.write_all(request.as_bytes()).unwrap();
            read_answer(&mut kept, &mut answer).unwrap();
            status(&String::from_utf8(answer).unwrap())
        };
        assert_eq!(say(&get("/")), 503);
        front.order(&Orders { revision: 1, generation: Some(500), ..Orders::default() }).unwrap();
        assert_eq!(say(&solving("/", &text, &solve(&text))), 200, "{grants}");
        assert_eq!(say(&get("/")), 200);
        assert_eq!(status(&front.ask(3, &get("/")).unwrap()), 200, "who has paid has paid");
        // It is another circuit's all the same, and good once.
        let replayed = solving("/", &paid, &solve(&paid));
        let (foreign, twice) = (solving("/", &other, &solve(&other)), replayed);
        assert_eq!(
            [front.ask(4, &foreign).unwrap(), front.ask(3, &twice).unwrap()].map(|it| status(&it)),
            [503, 200]
        );
        let answer = front.ask(2, &solving("/", &other, &solve(&other))).unwrap();
        assert_eq!(status(&answer), 200, "{answer}");
        let digest = front.next_digest().unwrap();
        assert_eq!((digest.puzzles.solved["program"], digest.puzzles.failed["foreign"]), (3, 1), "{grants}");
        assert_eq!(digest.refused["old_circuit"], 0);
        // What circuits of that process had is nobody's once there is another.
        let text = given(&front, 5);
        front.order(&Orders { revision: 2, generation: Some(501), ..Orders::default() }).unwrap();
        assert_eq!(status(&front.ask(5, &solving("/", &text, &solve(&text))).unwrap()), 503);
        assert_eq!(status(&front.ask(3, &get("/")).unwrap()), 503);
        assert_eq!(front.next_digest().unwrap().puzzles.failed["foreign"], 2);
    }
}

#[test]
fn what_was_asked_before_a_restart_is_good_no_longer() {
    let before = asked("pow_difficulty = 8");
    let text = challenge(&before.ask(1, &get("/")).unwrap());
    drop(before);
    let mut after = asked("pow_difficulty = 8");
    let answer = after.ask(1, &solving("/", &text, &solve(&text))).unwrap();
    assert_eq!(status(&answer), 503);
    let text = challenge(&answer);
    assert_eq!(status(&after.ask(1, &solving("/", &text, &solve(&text))).unwrap()), 200);
    assert_eq!(after.next_digest().unwrap().puzzles.failed["foreign"], 1);
}

#[test]
fn ten_thousand_puzzles_that_nobody_solves_take_no_memory() {
    let mut front = asked("pow_difficulty = 8\ntable_size = 1024");
    let resident = |front: &Front| {
        let status = fs::read_to_string(format!("/proc/{}/status", front.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let fetch = |front: &mut Front, numbers: std::ops::Range<u32>| {
        for circuit in numbers {
            let mut stream: TcpStream = front.stream(circuit).unwrap();
            for _ in 0..10 {
                stream.write_all(page("/").as_bytes()).unwrap();
                read_answer(&mut stream, &mut Vec::new()).unwrap();
            }
        }
        front.next_digest().unwrap().puzzles.issued["page"]
    };
    // The tables have their full size before.
    let issued = fetch(&mut front, 1..2_001);
    let before = resident(&front);
    assert_eq!(fetch(&mut front, 2_001..3_001) - issued, 10_000);
    // 100 bytes of each would be a megabyte.
    let grown = resident(&front).saturating_sub(before);
    assert!(grown < 1_000, "{grown} kB more");
}
