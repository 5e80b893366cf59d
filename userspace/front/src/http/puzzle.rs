//! What is said over HTTP to circuits that must pay first, and what they answer.
//!
//! Programs are told by headers, and browsers, which accept `text/html`, by a page. Either may answer by a header on any
//! request, or by a form at [`PATH`].

use std::{sync::Arc, time::Duration};

use http_body_util::{Either, Full};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::Incoming,
    header::{self, HeaderName, HeaderValue},
};
use tunica_core::{circuit_policy::Action, refusal::Refusal, waiting_room::Standing};

use super::{Http, Refused, Said, because, body};
use crate::{
    challenge::{
        Kind, Outcome, PATH, REFRESH, Wrong, local_path,
        page::{self, Page},
    },
    circuits::{self, Stay},
};

/// The challenge's text: what a program must solve.
pub const CHALLENGE_HEADER: HeaderName = HeaderName::from_static("tunica-challenge");
/// How many zero bits it asks.
pub const DIFFICULTY_HEADER: HeaderName = HeaderName::from_static("tunica-difficulty");
/// Of a request: challenge and nonce, a space between.
pub const SOLUTION_HEADER: HeaderName = HeaderName::from_static("tunica-solution");
/// How many stand in line before the circuit; instead of a challenge.
pub const WAITING_HEADER: HeaderName = HeaderName::from_static("tunica-waiting-before");

/// When somebody who solves nothing may try again: by then the load may have fallen.
const AGAIN: Duration = Duration::from_secs(30);
/// Largest form that is read: three values, one of them a path.
const FORM_BYTES: u64 = 16 * 1024;

/// What is shown to a circuit that must pay.
enum Shown {
    Puzzle(Option<Wrong>),
    Picture(Option<Wrong>),
    Waits { before: u32, left: Duration },
    Full,
}

impl Http {
    /// A request to [`PATH`], which no backend gets.
    pub(super) async fn at_challenge_path(
        &self,
        request: Request<Incoming>,
        visit: &Arc<Stay>,
    ) -> Result<Said, Refused> {
        let ruling = visit.request();
        let is_asked = match ruling.action {
            Action::Serve | Action::Queue | Action::SlowLane => false,
            Action::Challenge => true,
            Action::Tarpit | Action::Deny | Action::Reset => {
                return Err(Some((ruling.word, circuits::retry_after(&ruling))));
            }
        };
        let (head, body) = request.into_parts();
        let query = head.uri.query().unwrap_or_default();
        if head.method == Method::POST {
            let form = body::form(body, &self.settings, FORM_BYTES).await;
            let form = form.map_err(|refusal| refusal.map(|refusal| (refusal, None)))?;
            let value = |name| page::field(&form, name).unwrap_or_default();
            let to = value("to");
            let to = local_path(&to);
            if !is_asked {
                return Ok(see_other(to));
            }
            let is_picture = page::field(&form, "picture").is_some();
            let outcome = if is_picture {
                visit.read(&value("picture"), &value("text"))
            } else {
                visit.redeem(&value("challenge"), &value("nonce"), Kind::Page)
            };
            return match outcome {
                Outcome::Paid => Ok(see_other(to)),
                Outcome::Waits { .. } => Ok(see_other(&format!("{PATH}?see=wait&to={}", page::encoded(to)))),
                Outcome::RoomFull => Ok(show(visit, &head.headers, to, &Shown::Full)),
                Outcome::Wrong(wrong) => {
                    visit.refused(word(wrong));
                    let shown =
                        if is_picture { Shown::Picture(Some(wrong)) } else { Shown::Puzzle(Some(wrong)) };
                    Ok(show(visit, &head.headers, to, &shown))
                }
                Outcome::Pause(left) => Err(Some((Refusal::PuzzleAttempts, Some(left)))),
            };
        }
        if !matches!(head.method, Method::GET | Method::HEAD) {
            return Err(because(Refusal::MethodDenied));
        }
        let to = page::field(query, "to").unwrap_or_default();
        let to = local_path(&to);
        if !is_asked {
            return Ok(see_other(to));
        }
        let shown = match (visit.standing(), page::field(query, "see").as_deref()) {
            (Standing::Enters, _) => return Ok(see_other(to)),
            (Standing::Waits { before, left }, _) => Shown::Waits { before, left },
            (Standing::Absent, Some("picture")) => Shown::Picture(None),
            (Standing::Absent, _) => Shown::Puzzle(None),
        };
        visit.refused(Refusal::PuzzleRequired);
        Ok(show(visit, &head.headers, to, &shown))
    }

    /// A request of a circuit that must pay. `Ok(None)`: it has paid by this very request.
    pub(super) fn must_pay<B>(&self, request: &Request<B>, visit: &Stay) -> Result<Option<Said>, Refused> {
        let headers = request.headers();
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        // What another method asked for is not asked for again by a redirection.
        let to = if matches!(*request.method(), Method::GET | Method::HEAD) { local_path(path) } else { "/" };
        let shown = match headers.get(SOLUTION_HEADER) {
            Some(solution) => {
                let (challenge, nonce) =
                    solution.to_str().ok().and_then(|text| text.trim().split_once(' ')).unwrap_or_default();
                match visit.redeem(challenge, nonce.trim(), Kind::Program) {
                    Outcome::Paid => return Ok(None),
                    Outcome::Waits { before, left } => Shown::Waits { before, left },
                    Outcome::RoomFull => Shown::Full,
                    Outcome::Wrong(wrong) => {
                        visit.refused(word(wrong));
                        return Ok(Some(show(visit, headers, to, &Shown::Puzzle(Some(wrong)))));
                    }
                    Outcome::Pause(left) => return Err(Some((Refusal::PuzzleAttempts, Some(left)))),
                }
            }
            None => match visit.standing() {
                Standing::Enters => return Ok(None),
                Standing::Waits { before, left } => Shown::Waits { before, left },
                Standing::Absent => Shown::Puzzle(None),
            },
        };
        visit.refused(match shown {
            Shown::Full => Refusal::WaitingRoomFull,
            Shown::Puzzle(_) | Shown::Picture(_) | Shown::Waits { .. } => Refusal::PuzzleRequired,
        });
        Ok(Some(show(visit, headers, to, &shown)))
    }
}

const fn word(wrong: Wrong) -> Refusal {
    match wrong {
        Wrong::Unsolved => Refusal::PuzzleUnsolved,
        Wrong::Malformed
        | Wrong::Expired
        | Wrong::Foreign
        | Wrong::TooEasy
        | Wrong::Replayed
        | Wrong::Crowded
        | Wrong::Misread => Refusal::PuzzleWrong,
    }
}

fn see_other(to: &str) -> Said {
    let mut said = Response::new(Either::Right(Full::default()));
    *said.status_mut() = StatusCode::SEE_OTHER;
    let headers = said.headers_mut();
    // What is no header value was no local path.
    headers.insert(header::LOCATION, to.parse().unwrap_or(HeaderValue::from_static("/")));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    said
}

pub(super) fn accepts_pages(headers: &HeaderMap) -> bool {
    let mut accepts = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepts.any(|value| value.to_ascii_lowercase().contains("text/html"))
}

/// 503 with what the circuit needs to go on. Who accepts no page gets the headers alone.
fn show(visit: &Stay, asked: &HeaderMap, to: &str, shown: &Shown) -> Said {
    let mut said = Response::new(Either::Right(Full::default()));
    *said.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    let is_page = accepts_pages(asked);
    let word = visit.page_word();
    let headers = said.headers_mut();
    let (again, page) = match shown {
        Shown::Puzzle(wrong) => {
            let challenge = visit.puzzle(Kind::Program);
            let bits = challenge.difficulty().bits();
            headers.extend(challenge.to_string().parse().ok().map(|text| (CHALLENGE_HEADER, text)));
            headers.insert(DIFFICULTY_HEADER, u16::from(bits).into());
            let note = wrong.map(Wrong::sentence);
            (AGAIN, is_page.then(|| page::puzzle(&visit.puzzle(Kind::Page), to, note, &word)))
        }
        Shown::Picture(wrong) => {
            (AGAIN, Some(page::picture(&visit.picture(), to, wrong.map(Wrong::sentence), &word)))
        }
        Shown::Waits { before, left } => {
            headers.insert(WAITING_HEADER, (*before).into());
            let again = REFRESH.min(*left);
            (again, is_page.then(|| page::waiting(*before, *left, to, REFRESH, &word)))
        }
        Shown::Full => (AGAIN * 2, is_page.then(|| page::full(&word))),
    };
    headers.insert(header::RETRY_AFTER, circuits::whole_seconds(again).into());
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(Page { html, policy }) = page {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
        headers.extend(policy.parse().ok().map(|policy| (header::CONTENT_SECURITY_POLICY, policy)));
        headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        *said.body_mut() = Either::Right(Full::new(html.into()));
    }
    said
}
