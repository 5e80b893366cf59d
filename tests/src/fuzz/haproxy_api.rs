//! HAProxy's Runtime API: [`tunica_onion::haproxy_codec`].
//!
//! The first byte of an input tells in pieces of how many bytes the rest arrives.

use tunica_onion::haproxy_codec::{AnswerDecoder, AnswerTooLong, Command, Info, Table, TableName, changed};

const SESSION: &str = include_str!("../../../userspace/onion/tests/transcripts/haproxy_session.txt");

/// Small enough to be reached.
const LIMIT_BYTES: usize = 2_000;

/// What HAProxy was seen to answer, each alone and all behind prompts.
pub fn seeds() -> Vec<Vec<u8>> {
    let answers = SESSION.split("> ").filter_map(|block| block.split_once('\n')).map(|(_, answer)| answer);
    let mut all = vec![b"\x07".to_vec()];
    for answer in answers {
        let answer = format!("{}\n\n> ", answer.trim_end());
        all.iter_mut().take(1).for_each(|all| all.extend(answer.bytes()));
        all.push([b"\x07", answer.as_bytes()].concat());
    }
    all
}

/// For all bytes, answers do not depend on the pieces and are bounded. A table is written and read the same, or is an
/// error at a line of the answer. For all texts that name a table, a command is one line.
pub fn check(bytes: &[u8]) {
    let mut rest = bytes;
    let piece = usize::from(super::take_byte(&mut rest)).max(1);
    let whole = decoded(rest, rest.len());
    assert_eq!(decoded(rest, piece), whole, "in pieces of {piece}");
    for answer in &whole.0 {
        is_read(answer);
    }
    let text = String::from_utf8_lossy(rest);
    is_read(&text);
    // Any input may be a table's rows.
    is_read(&format!("# table: t, type: ipv6, size:10, used:1\n{text}\n\n"));
    if let Ok(name) = TableName::new(&text) {
        let line = Command::ShowTable { table: &name, tag: None }.encode();
        let line = line.strip_suffix('\n').unwrap();
        assert!(!line.contains(['\n', ';', '\\', '"', '\'', '#']), "{line}");
    }
}

/// All answers, the last without a prompt, and the error behind them.
fn decoded(bytes: &[u8], piece: usize) -> (Vec<String>, Option<AnswerTooLong>) {
    let mut decoder = AnswerDecoder::new(LIMIT_BYTES);
    let mut answers = Vec::new();
    for mut input in bytes.chunks(piece.max(1)) {
        loop {
            match decoder.decode(&mut input) {
                Ok(Some(answer)) => answers.push(answer),
                Ok(None) => break,
                Err(error) => return (answers, Some(error)),
            }
        }
        assert!(input.is_empty(), "bytes were left");
    }
    answers.push(decoder.end());
    // A byte that is no UTF-8 becomes three; a prompt may have begun.
    assert!(answers.iter().all(|answer| answer.len() <= 3 * (LIMIT_BYTES + 2)));
    (answers, None)
}

fn is_read(answer: &str) {
    match Table::parse(answer) {
        Ok(table) => assert_eq!(Table::parse(&written(&table)).as_ref(), Ok(&table)),
        Err(error) => {
            let shown = error.to_string();
            assert!((1..=answer.lines().count().max(1)).contains(&error.line), "{shown}");
            assert!(!shown.chars().any(char::is_control), "{shown:?}");
        }
    }
    Info::parse(answer).ok();
    assert_eq!(changed(answer).is_ok(), answer.bytes().all(|byte| byte == b'\n'));
}

fn written(table: &Table) -> String {
    let Table { name, capacity, used, rows } = table;
    let mut text = format!("# table: {name}, type: ipv6, size:{capacity}, used:{used}\n");
    for row in rows {
        let tag = row.tag.map(|tag| format!(" gpt0={tag}")).unwrap_or_default();
        let tag = [
            ("conn_cur", row.open),
            ("conn_rate(1)", row.connections),
            ("http_req_rate(1)", row.requests),
            ("gpc0", row.violations),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some(format!(" {name}={}", value?)))
        .fold(tag, |text, field| text + &field);
        text += &format!("0x1: key={} use={} exp={}{tag}\n", row.key, row.streams, row.expires_milliseconds);
    }
    text + "\n"
}
