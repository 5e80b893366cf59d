//! The pages that people see. Nothing in them comes from elsewhere, and nothing of the visitor is in them but the path.
//!
//! They ask for no cookie: the circuit is who is asked.

use std::time::Duration;

use tunica_pow::Challenge;

use super::{PATH, Picture, picture};

/// A page, and what browsers may do with it.
pub struct Page {
    /// The HTML.
    pub html: String,
    /// The value of `Content-Security-Policy`.
    pub policy: String,
}

const SCRIPT: &str = include_str!("page.js");
const STYLE: &str = "body{font:1.1rem/1.5 sans-serif;max-width:34rem;margin:15vh auto 0;padding:0 1rem}\
                     progress{width:100%}img{display:block;margin:1rem 0;border:1px solid}\
                     input{font:inherit;padding:.3rem}";

/// A page that solves a puzzle by itself. `word` is unpredictable; `note` says what was wrong before.
pub fn puzzle(challenge: &Challenge, to: &str, note: Option<&str>, word: &str) -> Page {
    let bits = challenge.difficulty();
    let body = format!(
        "{note}<p id=\"state\">This service is busy. With scripts your browser would solve a puzzle now; without \
         them, <a href=\"{PATH}?see=picture&amp;to={query}\">read a picture instead</a>.</p>\
         <progress id=\"progress\" max=\"1\" hidden></progress>\
         <form id=\"answer\" method=\"post\" action=\"{PATH}\" data-bits=\"{bits}\">\
         <input type=\"hidden\" name=\"challenge\" value=\"{challenge}\">\
         <input type=\"hidden\" name=\"nonce\" value=\"\">\
         <input type=\"hidden\" name=\"to\" value=\"{to}\"></form>\
         <script nonce=\"{word}\">{SCRIPT}</script>",
        note = said(note),
        query = escaped(&encoded(to)),
        to = escaped(to),
    );
    page("", &body, word, true)
}

/// A page with a picture to be read.
pub fn picture(picture: &Picture, to: &str, note: Option<&str>, word: &str) -> Page {
    let body = format!(
        "{note}<p>This service is busy. Which characters do you see? Capitals or not is all the same.</p>\
         <form method=\"post\" action=\"{PATH}\">\
         <img alt=\"a picture of {count} characters\" width=\"{width}\" height=\"{height}\" src=\"data:image/png;base64,{image}\">\
         <input type=\"hidden\" name=\"picture\" value=\"{number}\">\
         <input type=\"hidden\" name=\"to\" value=\"{to}\">\
         <input name=\"text\" size=\"10\" maxlength=\"20\" autocomplete=\"off\" autocapitalize=\"characters\" \
         spellcheck=\"false\" aria-label=\"characters\" autofocus required> <button>Go on</button></form>\
         <p><a href=\"{PATH}?see=picture&amp;to={query}\">Another picture</a></p>",
        note = said(note),
        count = picture.characters.len(),
        width = picture::WIDTH,
        height = picture::HEIGHT,
        image = picture::base64(&picture::png(&picture::draw(&picture.characters, &picture.seed))),
        number = picture.captcha,
        query = escaped(&encoded(to)),
        to = escaped(to),
    );
    page("", &body, word, false)
}

/// The waiting room, which comes again by itself.
pub fn waiting(before: u32, left: Duration, to: &str, every: Duration, word: &str) -> Page {
    let refresh = format!(
        "<meta http-equiv=\"refresh\" content=\"{};url={PATH}?see=wait&amp;to={}\">",
        every.as_secs(),
        escaped(&encoded(to))
    );
    let body = format!(
        "<p>This service is busy, and you stand in line. Before you: {before}. It takes {} seconds at least.</p>\
         <p>This page comes again by itself; keep it open, or you lose your place.</p>",
        left.as_secs() + 1
    );
    page(&refresh, &body, word, false)
}

/// The waiting room is full.
pub fn full(word: &str) -> Page {
    page("", "<p>This service is busy, and the line is full. Please come again in a minute.</p>", word, false)
}

fn said(note: Option<&str>) -> String {
    note.map_or_else(String::new, |note| format!("<p><strong>{}</strong></p>", escaped(note)))
}

fn page(head: &str, body: &str, word: &str, has_script: bool) -> Page {
    let script = if has_script { format!("script-src 'nonce-{word}'; ") } else { String::new() };
    Page {
        html: format!(
            "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width\"><meta name=\"robots\" content=\"noindex\">{head}\
             <title>One moment, please</title><style nonce=\"{word}\">{STYLE}</style></head><body>{body}</body></html>\n"
        ),
        policy: format!(
            "default-src 'none'; {script}style-src 'nonce-{word}'; img-src data:; form-action 'self'; \
             base-uri 'none'; frame-ancestors 'none'"
        ),
    }
}

/// As text or in quotes within HTML.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            _ => escaped.push(character),
        }
    }
    escaped
}

/// As a value in a query (RFC 3986 section 2.1): all but letters, digits and four signs in percent form.
pub fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'/') {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// The fields of a form or a query (`application/x-www-form-urlencoded`, WHATWG URL section 5.1); the first of each name.
pub fn field(form: &str, name: &str) -> Option<String> {
    let pairs = form.split('&').filter_map(|pair| pair.split_once('='));
    let (_, value) = pairs.into_iter().find(|(known, _)| *known == name)?;
    let mut bytes = value.bytes();
    let mut decoded = Vec::with_capacity(value.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || bytes.next().and_then(|byte| char::from(byte).to_digit(16));
                let (high, low) = (digit()?, digit()?);
                u8::try_from(high << 4 | low).ok()?
            }
            _ => byte,
        });
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use tunica_pow::{Difficulty, Id, Secrets, Terms, UnixSeconds};

    use super::*;

    fn challenge() -> Challenge {
        let terms = Terms { difficulty: Difficulty::MIN, expires: UnixSeconds(9), id: Id([3; 16]) };
        Secrets::new(&[1; 32]).issue(&terms, b"")
    }

    #[test]
    fn nothing_that_a_visitor_sends_becomes_markup() {
        let evil = "/\"><script>alert(1)</script>'&";
        let page = puzzle(&challenge(), evil, Some("<b>"), "word").html;
        assert!(
            page.contains("value=\"/&quot;&gt;&lt;script&gt;alert(1)&lt;/script&gt;&#39;&amp;\""),
            "{page}"
        );
        assert!(page.contains("to=/%22%3E%3Cscript%3E") && page.contains("&lt;b&gt;"), "{page}");
        assert_eq!(page.matches("<script").count(), 1);
        let waits = waiting(3, Duration::from_secs(4), evil, Duration::from_secs(5), "word").html;
        assert!(!waits.contains("<script") && waits.contains("content=\"5;url=/.well-known"), "{waits}");
    }

    #[test]
    fn pages_load_nothing_and_run_only_their_own_script() {
        let page = puzzle(&challenge(), "/", None, "word");
        assert!(page.policy.starts_with("default-src 'none'; script-src 'nonce-word'; "), "{}", page.policy);
        for outside in ["http:", "https:", "//", "src=\"", "@import", "url("] {
            // What begins with two slashes in the script is a comment.
            let html = page.html.replace("\n//", "\n").replace("  //", "  ");
            assert!(!html.contains(outside), "{outside}");
        }
        assert!(!SCRIPT.contains("</"), "the script would end early");
        assert!(!full("word").policy.contains("script-src"));
    }

    #[test]
    fn fields_are_read_as_browsers_write_them() {
        let form = "a=1&b=x+y%2Fz&c=&a=2&d=%c3%A9&e=%f&g=%ff&h";
        for (name, value) in [
            ("a", Some("1")),
            ("b", Some("x y/z")),
            ("c", Some("")),
            ("d", Some("\u{e9}")),
            ("e", None),
            ("g", None),
            ("h", None),
            ("i", None),
        ] {
            assert_eq!(field(form, name).as_deref(), value, "{name}");
        }
        for text in ["", "/a?b=c&d=%e#f", "\u{e9} +"] {
            assert_eq!(field(&format!("to={}", encoded(text)), "to").as_deref(), Some(text));
        }
    }

    #[test]
    fn the_puzzle_of_a_page_is_the_one_that_programs_solve() {
        let challenge = challenge();
        let html = puzzle(&challenge, "/", None, "word").html;
        let after = html.split("name=\"challenge\" value=\"").nth(1).unwrap();
        let shown: Challenge = after.split('"').next().unwrap().parse().unwrap();
        assert!(
            tunica_pow::solve(&shown, tunica_pow::Nonce(0), NonZeroUsize::MIN, &|_| false).nonce.is_some()
        );
        assert_eq!(shown, challenge);
    }
}
