//! The puzzle over TCP: a line with a challenge, a line with its solution, a line that says so, and then the stream.
//! In place of a solution the client may show a token, and with a solution it may ask for one.
//!
//! `docs/reference/pow.md` has it for those who write clients.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};
use tunica_core::refusal::Refusal;

use crate::{
    challenge::{Kind, Outcome, Wrong},
    circuits::Stay,
    stream::Stream,
};

/// What a line of the front begins with; the number is the version.
pub const GREETING: &str = "TUNICA 1 ";
/// What says that the stream begins behind its line. A token follows where one was asked for and is given.
pub const ACCEPTED: &str = "OK";
/// What a client's line begins with that shows a token.
pub const TOKEN: &str = "TOKEN ";
/// What says that a token was not taken, and why; the client may still solve the puzzle.
pub const REFUSED: &str = "REFUSED ";
/// The third word of a solution by which a client asks for a token.
const WANTED: &str = "token";
/// Longest answer: challenge, nonce and the wish for a token, spaces between, and an end of line that may be two bytes.
const LONGEST: usize = 64 + 1 + 16 + 1 + WANTED.len() + 2;

/// Asks a client and waits for its answer; returns the line to send once its connection is settled, and what it sent beyond its
/// answer.
///
/// # Errors
/// The word for why nothing came of it.
pub async fn ask(
    stream: &mut Stream,
    first: Bytes,
    stay: &Arc<Stay>,
    patience: Duration,
) -> Result<(String, Bytes), Refusal> {
    stay.refused(Refusal::PuzzleRequired);
    let line = format!("{GREETING}{}\n", stay.puzzle(Kind::Tcp));
    let exchange = async {
        stream.write_all(line.as_bytes()).await.map_err(|_| Refusal::PuzzleSlow)?;
        let (answer, rest) = read_line(stream, first).await?;
        let Some(token) = answer.strip_prefix(TOKEN) else { return Ok((Some(answer), rest)) };
        let Some(not_taken) = stay.present(token.as_bytes()) else { return Ok((None, rest)) };
        let line = format!("{REFUSED}{}\n", not_taken.label());
        stream.write_all(line.as_bytes()).await.map_err(|_| Refusal::PuzzleSlow)?;
        read_line(stream, rest).await.map(|(answer, rest)| (Some(answer), rest))
    };
    let (answer, rest) = timeout(patience, exchange).await.map_err(|_| Refusal::PuzzleSlow)??;
    let Some(answer) = answer else { return Ok((format!("{ACCEPTED}\n"), rest)) };
    let (challenge, nonce) = answer.split_once(' ').unwrap_or_default();
    let (nonce, wish) = nonce.split_once(' ').unwrap_or((nonce, ""));
    match stay.redeem(challenge, nonce, Kind::Tcp) {
        Outcome::Paid => {
            let token = stay.take_token().filter(|_| wish == WANTED);
            let token = token.map_or_else(String::new, |granted| format!(" {}", granted.token));
            Ok((format!("{ACCEPTED}{token}\n"), rest))
        }
        // There is no waiting room over TCP, so this does not come about.
        Outcome::Waits { .. } | Outcome::RoomFull => Err(Refusal::PuzzleWrong),
        Outcome::Wrong(Wrong::Unsolved) => Err(Refusal::PuzzleUnsolved),
        Outcome::Wrong(
            Wrong::Malformed
            | Wrong::Expired
            | Wrong::Foreign
            | Wrong::TooEasy
            | Wrong::Replayed
            | Wrong::Crowded
            | Wrong::Misread,
        ) => Err(Refusal::PuzzleWrong),
        Outcome::Pause(_) => Err(Refusal::PuzzleAttempts),
    }
}

/// A line without its end, and what was read beyond it. What is too long for an answer, or no text, is none.
async fn read_line(stream: &mut Stream, first: Bytes) -> Result<(String, Bytes), Refusal> {
    let mut bytes = BytesMut::from(first);
    loop {
        if let Some(end) = bytes.iter().take(LONGEST).position(|byte| *byte == b'\n') {
            let line = bytes.split_to(end);
            let rest = bytes.split_off(1).freeze();
            let text = String::from_utf8_lossy(&line);
            return Ok((text.trim_end_matches('\r').to_owned(), rest));
        }
        if bytes.len() >= LONGEST {
            return Ok((String::new(), Bytes::new()));
        }
        match stream.read_buf(&mut bytes).await {
            // It has gone to solve the puzzle, or does not know what one is.
            Ok(0) | Err(_) => return Err(Refusal::PuzzleSlow),
            Ok(_) => {}
        }
    }
}
