//! A line's words: those by their place, and those by their key.

use super::{Expected, ParseError};

/// A line of words.
pub(super) struct Words<'a> {
    /// Words without a key, in their order.
    pub(super) placed: Vec<&'a str>,
    /// Keys and their values; a value in quotes still has them.
    keyed: Vec<(&'a str, &'a str)>,
    /// The line's number, for errors.
    line: usize,
}

impl<'a> Words<'a> {
    /// Cuts line number `line` at its blanks. A blank in quotes cuts nothing.
    pub(super) fn of(line: usize, text: &'a str) -> Result<Self, ParseError> {
        let mut words = Self { placed: Vec::new(), keyed: Vec::new(), line };
        let mut rest = text.trim_start_matches(' ');
        while !rest.is_empty() {
            let word = rest.split(' ').next().unwrap_or(rest);
            let key = word.split_once('=').map(|(key, _)| key).filter(|key| is_key(key));
            let value_at = key.map_or(0, |key| key.len() + 1);
            let value = rest.get(value_at..).unwrap_or_default();
            let length = match value.strip_prefix('"') {
                Some(inside) => 2 + quoted_length(inside).ok_or_else(|| words.lacks(Expected::Quote))?,
                None => value.find(' ').unwrap_or(value.len()),
            };
            let (value, tail) = value.split_at_checked(length).unwrap_or((value, ""));
            match key {
                Some(key) => words.keyed.push((key, value)),
                None => words.placed.push(value),
            }
            rest = tail.trim_start_matches(' ');
        }
        Ok(words)
    }

    /// The value of `key`.
    pub(super) fn get(&self, key: &str) -> Option<&'a str> {
        self.keyed.iter().find(|(known, _)| *known == key).map(|(_, value)| *value)
    }

    /// The word at a place, from 0.
    pub(super) fn at(&self, place: usize, expected: Expected) -> Result<&'a str, ParseError> {
        self.placed.get(place).copied().ok_or_else(|| self.lacks(expected))
    }

    /// A number by its key.
    pub(super) fn number(&self, key: &str) -> Result<Option<u64>, ParseError> {
        let number = |text: &str| text.parse().map_err(|_| self.lacks(Expected::Number));
        self.get(key).map(number).transpose()
    }

    pub(super) const fn lacks(&self, expected: Expected) -> ParseError {
        ParseError { line: self.line, expected }
    }
}

fn is_key(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Bytes before the quote that ends what `inside` begins with.
fn quoted_length(inside: &str) -> Option<usize> {
    let mut is_escaped = false;
    inside.bytes().position(|byte| {
        let ends = byte == b'"' && !is_escaped;
        is_escaped = byte == b'\\' && !is_escaped;
        ends
    })
}

/// What a text in quotes means: the escapes of C, octal ones included, since tor writes paths so.
///
/// Source: control-spec, "Notes on an escaping bug".
pub(super) fn unquote(text: &str) -> Option<Vec<u8>> {
    let inside = text.strip_prefix('"')?.strip_suffix('"')?;
    let mut bytes = inside.bytes().peekable();
    let mut meant = Vec::with_capacity(inside.len());
    while let Some(byte) = bytes.next() {
        if byte != b'\\' {
            meant.push(byte);
            continue;
        }
        let escaped = bytes.next()?;
        meant.push(match escaped {
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'0'..=b'7' => {
                let mut value = u16::from(escaped - b'0');
                for _ in 0..2 {
                    let Some(digit) = bytes.next_if(|byte| matches!(byte, b'0'..=b'7')) else { break };
                    value = value * 8 + u16::from(digit - b'0');
                }
                u8::try_from(value).ok()?
            }
            other => other,
        });
    }
    Some(meant)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_in_quotes_cut_nothing() {
        let words =
            Words::of(1, r#" NOTICE BOOTSTRAP TAG=done SUMMARY="All \" is = done"  X= $A=b "#).unwrap();
        assert_eq!(words.placed, ["NOTICE", "BOOTSTRAP", "$A=b"]);
        assert_eq!(words.get("SUMMARY"), Some(r#""All \" is = done""#));
        assert_eq!((words.get("X"), words.get("TAG"), words.get("Y")), (Some(""), Some("done"), None));
        let error = Words::of(7, r#"A="b"#).err();
        assert_eq!(error, Some(ParseError { line: 7, expected: Expected::Quote }));
    }

    #[test]
    fn escapes_mean_what_they_mean_in_c() {
        for (text, meant) in [
            (r#""""#, Some(&b""[..])),
            (r#""/var/lib/tor/a\"b\\c""#, Some(br#"/var/lib/tor/a"b\c"#)),
            (r#""\303\251\n\t\r\0012""#, Some(b"\xc3\xa9\n\t\r\x012")),
            (r#""\x""#, Some(b"x")),
            (r#""\777""#, None),
            (r#""\""#, None),
            (r#"plain"#, None),
            (r#"""#, None),
        ] {
            assert_eq!(unquote(text).as_deref(), meant, "{text}");
        }
    }
}
