//! Rows of what becomes of answers. Clocks are numbers here, so nothing waits.

use tunica_core::id::TorGeneration;
use tunica_pow::solve;

use super::*;

fn settings(bits: u8, page_most: u8) -> ChallengeSettings {
    ChallengeSettings {
        terms: Terms::new(bits, page_most),
        life: Duration::from_secs(60),
        grants: Grant::Normal,
        per_second: NonZeroU32::MIN,
    }
}

fn challenges(bits: u8, page_most: u8) -> Challenges {
    Challenges::with_secret(settings(bits, page_most), &[7; 32], Monotime(0))
}

fn circuit(number: u32) -> CircuitId {
    CircuitId::new(TorGeneration(1), NonZeroU32::new(number).unwrap())
}

fn at(seconds: u64) -> Clock {
    Clock { mono: Monotime(seconds * 1_000_000_000), wall: UnixSeconds(1_000 + seconds) }
}

fn solution(challenge: &Challenge) -> String {
    solve(challenge, Nonce(0), NonZeroUsize::MIN, &|_| false).nonce.unwrap().to_string()
}

fn wrong_nonce(challenge: &Challenge) -> String {
    (0..).map(Nonce).find(|nonce| !challenge.is_solved_by(*nonce)).unwrap().to_string()
}

#[test]
fn what_becomes_of_an_answer() {
    let (here, elsewhere) =
        (challenges(8, 17), Challenges::with_secret(settings(8, 17), &[8; 32], Monotime(0)));
    let ours = here.issue(circuit(1), Kind::Program, at(0));
    let (text, good, bad) = (ours.to_string(), solution(&ours), wrong_nonce(&ours));
    let redeem = |challenges: &Challenges, number, text: &str, nonce: &str, second| {
        challenges.redeem(circuit(number), text, nonce, Kind::Program, at(second))
    };
    let mut forged = ours.to_bytes();
    forged[47] ^= 1;
    let forged = Challenge::from_bytes(&forged).unwrap().to_string();
    for (row, (outcome, expected)) in [
        (redeem(&here, 1, &text, &good, 60), Wrong::Expired),
        (redeem(&here, 2, &text, &good, 0), Wrong::Foreign),
        (redeem(&elsewhere, 1, &text, &good, 0), Wrong::Foreign),
        (redeem(&here, 1, &forged, &good, 0), Wrong::Foreign),
        (redeem(&here, 1, &text, &bad, 0), Wrong::Unsolved),
        (redeem(&here, 1, &text, "", 0), Wrong::Malformed),
        (redeem(&here, 1, "", &good, 0), Wrong::Malformed),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(outcome, Outcome::Wrong(expected), "row {row}");
    }
    assert_eq!(redeem(&here, 1, &text, &good, 59), Outcome::Paid);
    assert_eq!(redeem(&here, 1, &text, &good, 59), Outcome::Wrong(Wrong::Replayed));
    let counted = here.counted();
    assert_eq!((counted.issued["program"], counted.solved["program"]), (1, 1));
    for (reason, times) in
        [("expired", 1), ("foreign", 2), ("unsolved", 1), ("malformed", 2), ("replayed", 1), ("misread", 0)]
    {
        assert_eq!(counted.failed[reason], times, "{reason}");
    }
}

#[test]
fn a_circuit_of_another_tor_process_is_another_circuit() {
    let here = challenges(8, 17);
    let ours = here.issue(circuit(1), Kind::Program, at(0));
    let later = CircuitId::new(TorGeneration(2), NonZeroU32::MIN);
    let outcome = here.redeem(later, &ours.to_string(), &solution(&ours), Kind::Program, at(0));
    assert_eq!(outcome, Outcome::Wrong(Wrong::Foreign));
}

#[test]
fn what_was_asked_before_the_level_rose_leads_to_the_waiting_room() {
    let here = challenges(8, 17);
    let early = here.issue(circuit(1), Kind::Program, at(0));
    let page = here.issue(circuit(2), Kind::Page, at(0));
    here.set_terms(Some(Terms::new(10, 9)));
    // The page asks one bit too little, and what was asked before two.
    let later_page = here.issue(circuit(3), Kind::Page, at(0));
    let later = here.issue(circuit(4), Kind::Program, at(0));
    let seconds = |number: u32, challenge: &Challenge, kind| {
        let (text, nonce) = (challenge.to_string(), solution(challenge));
        match here.redeem(circuit(number), &text, &nonce, kind, at(1)) {
            Outcome::Waits { left, .. } => Some(left.as_secs()),
            Outcome::Paid => None,
            other @ (Outcome::RoomFull | Outcome::Wrong(_) | Outcome::Pause(_)) => panic!("{other:?}"),
        }
    };
    assert_eq!(seconds(1, &early, Kind::Program), Some(10));
    assert_eq!(seconds(2, &page, Kind::Page), Some(10));
    assert_eq!(seconds(3, &later_page, Kind::Page), Some(5));
    assert_eq!(seconds(4, &later, Kind::Program), None);
    assert_eq!(here.counted().waiting_room, 3);
    // Over TCP there is no such room.
    let easy = here.redeem(circuit(6), &early.to_string(), &solution(&early), Kind::Tcp, at(1));
    assert_eq!(easy, Outcome::Wrong(Wrong::Foreign), "it is of another circuit in the first place");
    let outcome = here.redeem(circuit(3), &later_page.to_string(), &solution(&later_page), Kind::Tcp, at(1));
    assert_eq!(outcome, Outcome::Wrong(Wrong::TooEasy));
    // When the level falls, what was asked before is more than enough.
    let hard = here.issue(circuit(5), Kind::Program, at(1));
    here.set_terms(Some(Terms::new(8, 17)));
    assert_eq!(seconds(5, &hard, Kind::Program), None);
    for number in 1..=3 {
        assert_eq!(here.standing(circuit(number), at(20)), Standing::Enters);
    }
    assert_eq!((here.counted().waiting_room, here.counted().let_in), (0, 3));
}

#[test]
fn a_page_asks_no_more_than_it_may() {
    for (bits, most, page, waits) in
        [(16, 17, 16, false), (17, 17, 17, false), (18, 17, 17, true), (24, 8, 8, true)]
    {
        let terms = Terms::new(bits, most);
        assert_eq!((terms.page_difficulty.bits(), terms.page_waits), (page, waits), "{bits} {most}");
        let here = challenges(bits, most);
        assert_eq!(here.issue(circuit(1), Kind::Page, at(0)).difficulty().bits(), page);
        assert_eq!(here.issue(circuit(1), Kind::Program, at(0)).difficulty().bits(), bits);
    }
}

#[test]
fn a_picture_is_read_once_by_its_circuit_and_wrong_answers_end() {
    let here = challenges(8, 17);
    let picture = here.picture(circuit(1), at(0));
    let (number, text) =
        (picture.captcha.to_string(), String::from_utf8(picture.characters.to_vec()).unwrap());
    assert_eq!(here.read(circuit(2), &number, &text, at(0)), Outcome::Wrong(Wrong::Misread));
    assert_eq!(here.read(circuit(1), &number, &text, at(0)), Outcome::Paid);
    assert_eq!(here.read(circuit(1), &number, &text, at(0)), Outcome::Wrong(Wrong::Replayed));
    assert_eq!(here.read(circuit(1), "x", &text, at(0)), Outcome::Wrong(Wrong::Malformed));
    for _ in 0..4 {
        assert_eq!(here.read(circuit(1), &number, "AAAAA", at(1)), Outcome::Wrong(Wrong::Misread));
    }
    // Not even the right one is looked at.
    let next = here.picture(circuit(1), at(1));
    let text = String::from_utf8(next.characters.to_vec()).unwrap();
    let read = |second| here.read(circuit(1), &next.captcha.to_string(), &text, at(second));
    assert_eq!(read(2), Outcome::Pause(Duration::from_secs(58)));
    let puzzle = here.issue(circuit(1), Kind::Page, at(2));
    let outcome = here.redeem(circuit(1), &puzzle.to_string(), &solution(&puzzle), Kind::Page, at(2));
    assert_eq!(outcome, Outcome::Pause(Duration::from_secs(58)));
    assert_eq!(read(60), Outcome::Paid);
    // A picture where more is asked than a page may ask leads to the waiting room as well.
    let busy = challenges(20, 17);
    let picture = busy.picture(circuit(1), at(0));
    let text = String::from_utf8(picture.characters.to_vec()).unwrap();
    let outcome = busy.read(circuit(1), &picture.captcha.to_string(), &text, at(0));
    assert_eq!(outcome, Outcome::Waits { before: 0, left: Duration::from_secs(20) });
}

#[test]
fn the_room_takes_no_more_than_it_holds() {
    let here = challenges(9, 8);
    let outcomes = (1..=u32::try_from(MOST_IN_ROOM).unwrap() + 1).map(|number| {
        let picture = here.picture(circuit(number), at(0));
        let text = String::from_utf8(picture.characters.to_vec()).unwrap();
        here.read(circuit(number), &picture.captcha.to_string(), &text, at(0))
    });
    let outcomes: Vec<_> = outcomes.collect();
    assert_eq!(outcomes.last(), Some(&Outcome::RoomFull));
    assert_eq!(here.counted().waiting_room, MOST_IN_ROOM as u64);
    here.advance(at(46).mono);
    assert_eq!(here.counted().waiting_room, 0);
}

#[test]
fn nobody_is_sent_elsewhere() {
    for (to, expected) in [
        ("/", "/"),
        ("/a/b?c=d&e=//f", "/a/b?c=d&e=//f"),
        ("/a//b", "/a//b"),
        ("", "/"),
        ("a", "/"),
        ("//evil.example", "/"),
        ("///evil.example", "/"),
        ("/\\evil.example", "/"),
        ("\\\\evil.example", "/"),
        ("/a\\b", "/"),
        ("/\t/evil.example", "/"),
        ("/\n/evil.example", "/"),
        ("/a\r\nSet-Cookie: b", "/"),
        (" //evil.example", "/"),
        ("https://evil.example/", "/"),
        ("javascript:alert(1)", "/"),
        ("/\u{e9}", "/"),
        (PATH, "/"),
        ("/.well-known/tunica/challenge?see=wait", "/"),
    ] {
        assert_eq!(local_path(to), expected, "{to:?}");
    }
    let [longest, longer] = [2_047, 2_048].map(|length| format!("/{}", "a".repeat(length)));
    assert_eq!((local_path(&longest), local_path(&longer)), (longest.as_str(), "/"));
}

#[test]
fn the_daemon_knows_every_label() {
    use tunica_api::front::{PUZZLE_FAILURES, PUZZLE_KINDS};
    assert_eq!(Kind::ALL.map(Kind::label), PUZZLE_KINDS);
    assert_eq!(Wrong::ALL.map(Wrong::label), PUZZLE_FAILURES);
}
