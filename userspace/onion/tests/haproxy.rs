//! The Runtime API: what HAProxy 2.6.12 was seen to say, and what must hold for all.
//!
//! The transcript is recorded. Behind `> ` stands the command; its answer ends in an empty line.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "a helper that fails is a test that fails"
)]

use std::{net::Ipv6Addr, num::NonZeroU32};

use proptest::prelude::*;
use tunica_onion::{
    circuit::{NotACircuit, RawCircuit},
    haproxy_codec::{
        AnswerDecoder, AnswerTooLong, Command, Info, InfoLacks, MARK, NotATableName, Refused, Table,
        TableError, TableFault, TableName, changed, mark,
    },
};

const SESSION: &str = include_str!("transcripts/haproxy_session.txt");

fn table(name: &str) -> TableName {
    TableName::new(name).unwrap()
}

fn circuit(number: u32) -> RawCircuit {
    RawCircuit::new(NonZeroU32::new(number).unwrap())
}

/// Every recorded command and its answer.
fn recorded() -> impl Iterator<Item = (&'static str, String)> {
    SESSION.split("> ").skip(1).map(|block| {
        let (command, answer) = block.split_once('\n').unwrap();
        let answer = answer.trim_end_matches('\n');
        (command, if answer.is_empty() { "\n".to_owned() } else { format!("{answer}\n\n") })
    })
}

/// The recorded answers to a command, in their order.
fn answers(command: &Command<'_>) -> Vec<String> {
    let sent = command.encode();
    recorded().filter(|(recorded, _)| *recorded == sent.trim_end()).map(|(_, answer)| answer).collect()
}

#[test]
fn rows_are_set_read_back_and_removed() {
    let circuits = table("st_circ");
    let ban = Command::SetTag { table: &circuits, circuit: circuit(0x29a), tag: 2 };
    let all = Command::ShowTable { table: &circuits, tag: None };
    let banned = Command::ShowTable { table: &circuits, tag: Some(2) };
    let clear = Command::Clear { table: &circuits, circuit: circuit(0x29a) };

    let before = Table::parse(&answers(&all)[0]).unwrap();
    assert_eq!((before.name.as_str(), before.capacity, before.used), ("st_circ", 102_400, 4));
    assert!(before.rows.iter().all(|row| row.tag == Some(0) && row.streams == 0));
    assert_eq!(
        before.rows[0].circuit(),
        Err(NotACircuit::OtherNetwork),
        "it was tracked before its header was read"
    );
    assert_eq!(before.rows[0].expires_milliseconds, 1_799_901);

    assert_eq!(changed(&answers(&ban)[0]), Ok(()));
    let after = Table::parse(&answers(&all)[1]).unwrap();
    let tag = |row: &tunica_onion::haproxy_codec::Row| Some((row.circuit().ok()?.number().get(), row.tag?));
    let tags: Vec<_> = after.rows.iter().filter_map(tag).collect();
    assert_eq!(tags, [(7, 0), (0x2b, 1), (0x29a, 2), (0x1_0001, 0)]);
    let only = Table::parse(&answers(&banned)[0]).unwrap();
    assert_eq!((only.used, only.rows.len(), only.rows[0].circuit()), (5, 1, Ok(circuit(0x29a))));
    assert_eq!(changed(&answers(&clear)[0]), Ok(()));
    assert_eq!(Table::parse(&answers(&banned)[1]).unwrap().rows, []);
    assert!(!format!("{after:?}").contains("29a"));
}

#[test]
fn refusals_are_told_apart() {
    let (nope, none, new, v4) = (table("nope"), table("st_none"), table("st_new"), table("st_v4"));
    let circuits = table("st_circ");
    let set = |table| Command::SetTag { table, circuit: circuit(0x29a), tag: 2 };
    let show = |table, tag| Command::ShowTable { table, tag };
    let refused = |answer: &String| match Table::parse(answer) {
        Err(TableError { fault: TableFault::Refused(refused), line }) => (line, refused),
        other => panic!("{answer}: {other:?}"),
    };
    assert_eq!(changed(&answers(&set(&nope))[0]), Err(Refused::NoSuchTable));
    assert_eq!(refused(&answers(&show(&nope, None))[0]), (1, Refused::NoSuchTable));
    assert_eq!(changed(&answers(&set(&none))[0]), Err(Refused::NoTag));
    assert_eq!(refused(&answers(&show(&none, Some(2)))[0]), (1, Refused::NoTag));
    assert_eq!(changed(&answers(&set(&new))[0]), Err(Refused::NoTag), "gpt(3) is not gpt0");
    assert_eq!(changed(&answers(&set(&circuits))[1]), Err(Refused::Permission), "level user");
    assert_eq!(changed(&answers(&set(&circuits))[2]), Ok(()), "level operator");
    assert_eq!(refused(answers(&show(&circuits, None)).last().unwrap()), (2, Refused::Permission));
    assert_eq!(changed("Invalid key\n\n"), Err(Refused::InvalidKey));
    assert_eq!(changed("Unknown data type\n\n"), Err(Refused::NoTag));
    assert_eq!(changed("Something new\n\n"), Err(Refused::Other));
    // A table for IPv4 takes the command and means another key: only its type tells.
    assert_eq!(changed(&answers(&set(&v4))[0]), Ok(()));
    let error = Table::parse(&answers(&show(&v4, None))[0]).unwrap_err();
    assert_eq!(error, TableError { line: 1, fault: TableFault::Type });
    // What is not stored is absent.
    let rows = Table::parse(&answers(&show(&none, None))[0]).unwrap().rows;
    assert_eq!((rows[0].tag, rows[0].expires_milliseconds), (None, 0));
}

/// As HAProxy 2.6.12 was seen to answer.
#[test]
fn what_a_row_counts_and_whose_circuits_a_table_holds_are_read() {
    let circuits = table("tunica_circuits");
    let heading = "# table: tunica_circuits, type: ipv6, size:100000, used:1\n";
    let counts = "gpc0=3 conn_rate(10000)=12 conn_cur=2 http_req_rate(10000)=7 gpc1=0 gpc1_rate(60000)=0";
    let answer = format!("{heading}0x7f1: key=fc00:dead:beef:4dad::9 use=3 exp=1799499 gpt0=0 {counts}\n\n");
    let row = &Table::parse(&answer).unwrap().rows[0];
    let counts = (row.violations, row.connections, row.open, row.requests);
    assert_eq!(counts, (Some(3), Some(12), Some(2), Some(7)));

    assert_eq!(mark("\n"), Ok(None), "a key without a row");
    let marked = format!("{heading}0x7f1: key=100::1 use=0 exp=1800000 gpt0=77 gpc0=0\n\n");
    assert_eq!(mark(&marked), Ok(Some(77)));
    assert_eq!(mark(&answer), Ok(None), "a circuit is no mark");
    let refused = TableError { line: 1, fault: TableFault::Refused(Refused::NoSuchTable) };
    assert_eq!(mark("No such table\n\n"), Err(refused));
    assert_eq!(Table::parse(&marked).unwrap().rows[0].circuit(), Err(NotACircuit::OtherNetwork));

    for (command, line) in [
        (
            Command::Reset { table: &circuits, circuit: circuit(9) },
            "set table tunica_circuits key fc00:dead:beef:4dad::9 data.gpt0 0 data.gpc0 0\n".to_owned(),
        ),
        (Command::ClearAll { table: &circuits }, "clear table tunica_circuits\n".to_owned()),
        (
            Command::SetMark { table: &circuits, mark: 77 },
            format!("set table tunica_circuits key {MARK} data.gpt0 77\n"),
        ),
        (Command::ShowMark { table: &circuits }, "show table tunica_circuits key 100::1\n".to_owned()),
        (
            Command::ShowOpen { table: &circuits },
            "show table tunica_circuits data.conn_cur gt 0\n".to_owned(),
        ),
    ] {
        assert_eq!(command.encode(), line);
    }
}

#[test]
fn half_a_table_is_an_error() {
    let whole = answers(&Command::ShowTable { table: &table("st_circ"), tag: None })[1].clone();
    assert!(Table::parse(&whole).is_ok());
    for length in 0..whole.len() {
        assert!(Table::parse(&whole[..length]).is_err(), "{length} bytes pass for a table");
    }
    let heading = "# table: t, type: ipv6, size:10, used:1\n";
    for (answer, line, fault) in [
        ("# table: t, type: ipv6, size:10\n\n".to_owned(), 1, TableFault::Heading),
        ("# table: t, type: ipv6, size:-1, used:1\n\n".to_owned(), 1, TableFault::Heading),
        ("# table: , type: ipv6, size:1, used:1\n\n".to_owned(), 1, TableFault::Heading),
        ("# table: t, type: string, size:1, used:1\n\n".to_owned(), 1, TableFault::Type),
        (format!("{heading}0x1: key=::1 use=0\n"), 2, TableFault::Truncated),
        (format!("{heading}0x1 key=::1\n\n"), 2, TableFault::Key),
        (format!("{heading}0x1: use=0 key=::1\n\n"), 2, TableFault::Key),
        (format!("{heading}0x1: key=192.0.2.1\n\n"), 2, TableFault::Key),
        (format!("{heading}\n0x1: key=::1\n\n"), 2, TableFault::Key),
        (format!("{heading}0x1: key=::1 use=0\n0x2: key=::2 use\n\n"), 3, TableFault::Field),
        (format!("{heading}0x1: key=::1  use=0\n\n"), 2, TableFault::Field),
        (format!("{heading}0x1: key=::1 gpt0=4294967296\n\n"), 2, TableFault::Field),
        (format!("{heading}0x1: key=::1 exp=soon\n\n"), 2, TableFault::Field),
    ] {
        assert_eq!(Table::parse(&answer), Err(TableError { line, fault }), "{answer}");
    }
    let later = format!("{heading}0x1: key=::1 use=1 exp=5 shard=3 gpt0=7 later(10)=x\n\n");
    assert_eq!(Table::parse(&later).unwrap().rows[0].tag, Some(7));
}

#[test]
fn no_name_begins_another_command() {
    for bad in ["", "a b", "a;show info", "a\nshow info", "a\0", "é", "a\\", "a\"", &"x".repeat(65)] {
        assert_eq!(TableName::new(bad), Err(NotATableName), "{bad:?}");
    }
    let name = table("fe-1_tor.onion:80");
    let command = Command::SetTag { table: &name, circuit: circuit(u32::MAX), tag: u32::MAX };
    assert_eq!(
        command.encode(),
        "set table fe-1_tor.onion:80 key fc00:dead:beef:4dad::ffff:ffff data.gpt0 4294967295\n"
    );
    assert!(!format!("{command:?}").contains("ffff"));
}

#[test]
fn a_process_is_recognised() {
    let answer = answers(&Command::ShowInfo).remove(0);
    let info = Info::parse(&answer).unwrap();
    assert_eq!((info.version.as_str(), info.uptime_seconds), ("2.6.12-1+deb12u4", 1));
    assert!(answer.contains(&format!("\nPid: {}\n", info.pid)));
    assert_eq!(Info::parse("Version: 1\nPid: x\n"), Err(InfoLacks("Pid")));
    assert_eq!(Info::parse("Permission denied\n\n"), Err(InfoLacks("Version")));
}

type Answers = (Vec<String>, String);

/// All answers in `bytes` and what is left behind the last prompt, or the error behind those answers.
fn decoded(limit: usize, bytes: &[u8], piece: usize) -> Result<Answers, (Vec<String>, AnswerTooLong)> {
    let mut decoder = AnswerDecoder::new(limit);
    let mut answers = Vec::new();
    for mut input in bytes.chunks(piece.max(1)) {
        loop {
            match decoder.decode(&mut input) {
                Ok(Some(answer)) => answers.push(answer),
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(decoder.decode(&mut input), Err(error), "an error stays");
                    return Err((answers, error));
                }
            }
        }
        assert!(input.is_empty());
    }
    Ok((answers, decoder.end()))
}

#[test]
fn answers_end_in_a_prompt_or_with_the_connection() {
    // As recorded after `prompt`.
    let bytes =
        b"\n> # table: t, type: ipv6, size:10, used:1\n0x1: key=::1 use=0\n\n> \n> No such table\n\n> \n";
    let expected =
        ["\n", "# table: t, type: ipv6, size:10, used:1\n0x1: key=::1 use=0\n\n", "\n", "No such table\n\n"];
    for piece in [1, 2, 5, bytes.len()] {
        let (answers, end) = decoded(100, bytes, piece).unwrap();
        assert_eq!(answers, expected);
        assert_eq!(end, "\n");
    }
    for (_, answer) in recorded() {
        let bytes = format!("{answer}> ");
        assert_eq!(decoded(10_000, bytes.as_bytes(), 3), Ok((vec![answer.clone()], String::new())));
        assert_eq!(decoded(10_000, answer.as_bytes(), 3), Ok((Vec::new(), answer)));
    }
}

#[test]
fn an_answer_is_bounded() {
    let too_long = AnswerTooLong { limit_bytes: 8 };
    for piece in [1, 3, 100] {
        assert_eq!(decoded(8, b"\n> 1234567\n\n> ", piece), Err((vec!["\n".to_owned()], too_long)));
        assert_eq!(decoded(8, &b"x".repeat(100), piece), Err((Vec::new(), too_long)));
        let (answers, _) = decoded(8, &b"123456\n\n> ".repeat(9), piece).unwrap();
        assert_eq!(answers.len(), 9, "the longest that fits, again and again");
    }
}

proptest! {
    /// For all bytes, the pieces do not matter, and no answer makes a reader panic.
    #[test]
    fn pieces_do_not_matter(
        bytes in proptest::collection::vec(proptest::sample::select(b"\n> #0x:=,ab1".to_vec()), 0..60)
    ) {
        let whole = decoded(20, &bytes, bytes.len());
        for piece in [1, 2, 7] {
            prop_assert_eq!(&decoded(20, &bytes, piece), &whole);
        }
        let text = String::from_utf8_lossy(&bytes);
        let _read = (Table::parse(&text), Info::parse(&text), changed(&text));
    }

    /// For all rows, they are read as HAProxy writes them.
    #[test]
    fn rows_are_read_as_they_are_written(
        rows in proptest::collection::vec(any::<(u128, u32, u64, u64)>(), 0..20)
    ) {
        let mut answer = format!("# table: t, type: ipv6, size:100, used:{}\n", rows.len());
        for (key, tag, streams, expires) in &rows {
            let key = Ipv6Addr::from(*key);
            answer += &format!("0x7f00: key={key} use={streams} exp={expires} gpt0={tag} conn_rate(10)=1\n");
        }
        let table = Table::parse(&(answer + "\n")).unwrap();
        let read = table.rows.iter();
        let read = read.map(|row| (row.key.into(), row.tag.unwrap(), row.streams, row.expires_milliseconds));
        prop_assert_eq!(read.collect::<Vec<(u128, u32, u64, u64)>>(), rows);
    }
}
