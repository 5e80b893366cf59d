//! Tokens over HTTP: where clients show them, how they are handed out, and what the backend sees of it: nothing.
//!
//! A browser has a cookie, a program a header. Either is taken out of the request before anybody else reads it.

use hyper::{
    HeaderMap,
    header::{self, HeaderName, HeaderValue},
};

use super::puzzle;
use crate::circuits::{
    Stay,
    tokens::{Granted, GrantedBy},
};

/// Of a request: the token. Of an answer: one to show from now on, for programs.
pub const TOKEN_HEADER: HeaderName = HeaderName::from_static("tunica-token");
/// Of an answer: why the token of the request was not taken, as
/// [`TokenRefused`](tunica_core::circuit_policy::TokenRefused) has it.
pub const REFUSED_HEADER: HeaderName = HeaderName::from_static("tunica-token-refused");
/// Of a backend's answer: what its client is to be.
pub const GRANT_HEADER: HeaderName = HeaderName::from_static("x-tunica-grant");
/// The only thing that a backend can make of its client.
const VIP: &[u8] = b"vip";
/// The name of the cookie. `__Host-` would need `Secure`, which browsers keep for HTTPS.
pub const COOKIE: &str = "tunica_token";

/// Takes every token out of a request. Returns the one that counts: that of the header, else the first cookie's.
pub(super) fn take(headers: &mut HeaderMap) -> Option<Vec<u8>> {
    let by_header = headers.remove(TOKEN_HEADER).map(|value| value.as_bytes().to_vec());
    if !headers.get_all(header::COOKIE).iter().any(|value| has_ours(value.as_bytes())) {
        return by_header;
    }
    let mut by_cookie = None;
    let lines: Vec<HeaderValue> = headers.get_all(header::COOKIE).iter().cloned().collect();
    headers.remove(header::COOKIE);
    for line in lines {
        let (token, rest) = without_ours(line.as_bytes());
        by_cookie = by_cookie.or(token);
        let rest = rest.map_or(Some(line), |rest| HeaderValue::from_bytes(&rest).ok());
        for rest in rest.into_iter().filter(|rest| !rest.is_empty()) {
            headers.append(header::COOKIE, rest);
        }
    }
    by_header.or(by_cookie)
}

/// A pair of a `Cookie` line (RFC 6265 section 5.4), and its value if the name is ours.
fn ours(pair: &[u8]) -> Option<&[u8]> {
    let at = pair.iter().position(|byte| *byte == b'=')?;
    let (name, value) = pair.split_at_checked(at)?;
    (name.trim_ascii() == COOKIE.as_bytes()).then(|| value.get(1..).unwrap_or_default().trim_ascii())
}

fn has_ours(line: &[u8]) -> bool {
    line.split(|byte| *byte == b';').any(|pair| ours(pair).is_some())
}

/// The first of our cookies in a line, and the line without any, where it has some: every other byte as it was, but for what
/// parted ours from its neighbours.
fn without_ours(line: &[u8]) -> (Option<Vec<u8>>, Option<Vec<u8>>) {
    let pairs = || line.split(|byte| *byte == b';');
    let Some(first) = pairs().find_map(ours) else { return (None, None) };
    let rest: Vec<&[u8]> = pairs().filter(|pair| ours(pair).is_none()).collect();
    let rest = rest.join(&b';');
    (Some(first.to_vec()), Some(rest.trim_ascii_start().to_vec()))
}

/// Takes out of a backend's answer what clients would take for ours. Returns whether the backend vouches for its client, where
/// it may (`may_grant`).
pub(super) fn cleanse(headers: &mut HeaderMap, may_grant: bool) -> bool {
    headers.remove(TOKEN_HEADER);
    headers.remove(REFUSED_HEADER);
    // Another's token would share its limits, and its end, with whoever is made to show it.
    let sets_ours =
        |value: &HeaderValue| value.as_bytes().split(|byte| *byte == b';').next().and_then(ours).is_some();
    if headers.get_all(header::SET_COOKIE).iter().any(sets_ours) {
        let others: Vec<_> =
            headers.get_all(header::SET_COOKIE).iter().filter(|value| !sets_ours(value)).cloned().collect();
        headers.remove(header::SET_COOKIE);
        headers.extend(others.into_iter().map(|value| (header::SET_COOKIE, value)));
    }
    may_grant && headers.remove(GRANT_HEADER).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(VIP))
}

/// Who reads the headers of the answer, as far as the request says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reader {
    /// A browser, for its visitor: it accepts pages.
    Visitor,
    /// A script of a page may: the request has what browsers add to those of scripts (`Origin` of the Fetch standard, headers of
    /// Fetch Metadata), or a cookie, so somebody keeps cookies there.
    Script,
    /// A program.
    Program,
}

/// Whoever sent a request with these headers; ask before [`take`].
pub(super) fn reader(headers: &HeaderMap) -> Reader {
    let is_of_script = |name: &HeaderName| {
        *name == header::COOKIE || *name == header::ORIGIN || name.as_str().starts_with("sec-fetch-")
    };
    if puzzle::accepts_pages(headers) {
        Reader::Visitor
    } else if headers.keys().any(is_of_script) {
        Reader::Script
    } else {
        Reader::Program
    }
}

/// Whether a token is told by a header besides the cookie, which scripts cannot read. Who solves a puzzle earned the token
/// itself; a backend's is for the visitor, whom a script may not rob.
const fn tells(reader: Reader, by: GrantedBy) -> bool {
    match (reader, by) {
        (Reader::Program, GrantedBy::Puzzle | GrantedBy::Backend) | (Reader::Script, GrantedBy::Puzzle) => {
            true
        }
        (Reader::Visitor, GrantedBy::Puzzle | GrantedBy::Backend) | (Reader::Script, GrantedBy::Backend) => {
            false
        }
    }
}

/// Adds to an answer what was handed out meanwhile: a cookie, and for some a header as well ([`tells`]).
pub(super) fn hand_out(headers: &mut HeaderMap, visit: &Stay, reader: Reader) {
    let Some(Granted { token, seconds, by }) = visit.take_token() else { return };
    let cookie = format!("{COOKIE}={token}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict");
    let mut parts = vec![(header::SET_COOKIE, cookie)];
    if tells(reader, by) {
        parts.push((TOKEN_HEADER, token.to_string()));
    }
    for (name, value) in parts {
        if let Ok(mut value) = HeaderValue::from_str(&value) {
            value.set_sensitive(true);
            headers.append(name, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(lines: &[(&'static str, &[u8])]) -> HeaderMap {
        lines
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_bytes(value).unwrap()))
            .collect()
    }

    fn cookies(headers: &HeaderMap) -> Vec<&[u8]> {
        headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect()
    }

    #[test]
    fn our_cookie_is_taken_and_others_stay_as_they_are() {
        for (lines, token, left) in [
            (&["tunica_token=T"][..], Some("T"), &[][..]),
            (&["tunica_token=T; a=1"], Some("T"), &["a=1"]),
            (&["a=1; tunica_token=T"], Some("T"), &["a=1"]),
            (&["a=1; tunica_token=T; b=2"], Some("T"), &["a=1; b=2"]),
            (&["a=1;tunica_token=T;b=2"], Some("T"), &["a=1;b=2"]),
            (&["a=1; tunica_token = T ; b=2"], Some("T"), &["a=1; b=2"]),
            (&["tunica_token=T; tunica_token=U; b=2"], Some("T"), &["b=2"]),
            (&["tunica_token="], Some(""), &[]),
            (&["a=1", "tunica_token=T", "b=\"x; y\"; c"], Some("T"), &["a=1", "b=\"x; y\"; c"]),
            // Others, whatever they look like.
            (&["a=1;  b=tunica_token=T; ;\tc"], None, &["a=1;  b=tunica_token=T; ;\tc"]),
            (
                &["Tunica_Token=T; tunica_token; xtunica_token=T"],
                None,
                &["Tunica_Token=T; tunica_token; xtunica_token=T"],
            ),
            (&[""], None, &[""]),
            (&[], None, &[]),
        ] {
            let lines: Vec<_> = lines.iter().map(|line| ("cookie", line.as_bytes())).collect();
            let mut headers = request(&lines);
            assert_eq!(take(&mut headers).as_deref(), token.map(str::as_bytes), "{lines:?}");
            let left: Vec<_> = left.iter().map(|line| line.as_bytes()).collect();
            assert_eq!(cookies(&headers), left, "{lines:?}");
        }
    }

    #[test]
    fn a_backends_token_is_told_to_no_script() {
        for (lines, reader, by_puzzle, by_backend) in [
            (&[][..], Reader::Program, true, true),
            (&[("accept", "*/*")], Reader::Program, true, true),
            (&[("accept", "text/html"), ("origin", "http://a.onion")], Reader::Visitor, false, false),
            (&[("cookie", "s=1")], Reader::Script, true, false),
            (&[("cookie", "tunica_token=T")], Reader::Script, true, false),
            (&[("origin", "null")], Reader::Script, true, false),
            (&[("sec-fetch-mode", "cors"), ("accept", "*/*")], Reader::Script, true, false),
            (&[("sec-fetch-dest", "empty")], Reader::Script, true, false),
        ] {
            let lines: Vec<_> = lines.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
            let found = super::reader(&request(&lines));
            assert_eq!(found, reader, "{lines:?}");
            let told = [GrantedBy::Puzzle, GrantedBy::Backend].map(|by| tells(found, by));
            assert_eq!(told, [by_puzzle, by_backend], "{lines:?}");
        }
    }

    #[test]
    fn the_header_counts_before_the_cookie_and_neither_stays() {
        let mut headers = request(&[
            ("tunica-token", b"H"),
            ("cookie", b"tunica_token=C"),
            ("tunica-token", b"I"),
            ("host", b"a"),
        ]);
        assert_eq!(take(&mut headers).as_deref(), Some(&b"H"[..]));
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["host"]);
    }

    #[test]
    fn a_backend_hands_out_nothing_in_our_name_but_may_vouch() {
        let answer = || {
            request(&[
                ("set-cookie", b"a=1; Path=/"),
                ("set-cookie", b"tunica_token=X; Path=/"),
                ("set-cookie", b"b=tunica_token=2"),
                ("tunica-token", b"X"),
                ("tunica-token-refused", b"X"),
                ("x-tunica-grant", b"VIP"),
            ])
        };
        let mut headers = answer();
        assert!(cleanse(&mut headers, true));
        let left: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        assert_eq!(left, [("set-cookie", &b"a=1; Path=/"[..]), ("set-cookie", b"b=tunica_token=2")]);
        assert!(!cleanse(&mut headers, true));
        // Where it may not, the header is one as any other.
        let mut headers = answer();
        assert!(!cleanse(&mut headers, false) && headers.contains_key(GRANT_HEADER));
        let mut other = request(&[("x-tunica-grant", b"root")]);
        assert!(!cleanse(&mut other, true) && other.is_empty());
    }

    proptest! {
        /// For all lines of cookies, none of ours is left, and a line without ours is not touched.
        #[test]
        fn none_of_ours_is_left(pairs in prop::collection::vec(
            prop_oneof![Just(" tunica_token=T".to_owned()), Just("tunica_token =U".to_owned()), "[ -:<-~]{0,8}"], 0..6,
        )) {
            let line = pairs.join(";");
            let mut headers = request(&[("cookie", line.as_bytes())]);
            let had = has_ours(line.as_bytes());
            prop_assert_eq!(take(&mut headers).is_some(), had);
            prop_assert!(cookies(&headers).iter().all(|line| !has_ours(line)));
            if !had {
                prop_assert_eq!(cookies(&headers), [line.as_bytes()]);
            }
            let others: Vec<_> = pairs.iter().filter(|pair| ours(pair.as_bytes()).is_none()).cloned().collect();
            let left = cookies(&headers).join(&b';');
            let expected = others.join(";");
            prop_assert_eq!(left.trim_ascii(), expected.as_bytes().trim_ascii());
        }
    }
}
