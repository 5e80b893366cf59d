//! `--for`.

use std::str::FromStr;

use thiserror::Error;
use tunica_api::request::Length;

/// A span given on the command line: a whole number and its unit, or `forever`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Span {
    /// This many seconds, at least one.
    Seconds(u64),
    /// Until lifted by hand.
    Forever,
}

/// Why a text is no span.
#[derive(Debug, PartialEq, Eq, Error)]
#[error("write a whole number above 0 with its unit (30s, 5m, 2h, 1d), or `forever`")]
pub(crate) struct ParseSpanError;

impl FromStr for Span {
    type Err = ParseSpanError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "forever" {
            return Ok(Self::Forever);
        }
        let (number, seconds_each) = [("s", 1), ("m", 60), ("h", 3_600), ("d", 86_400)]
            .into_iter()
            .find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?, seconds)))
            .ok_or(ParseSpanError)?;
        // `u64::from_str` would also take a plus sign.
        if !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(ParseSpanError);
        }
        let seconds = number.parse::<u64>().ok().and_then(|number| number.checked_mul(seconds_each));
        seconds.filter(|seconds| *seconds > 0).map(Self::Seconds).ok_or(ParseSpanError)
    }
}

impl From<Span> for Length {
    fn from(span: Span) -> Self {
        match span {
            Span::Seconds(seconds) => Self::Seconds(seconds),
            Span::Forever => Self::Forever,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_read() {
        for (text, span) in [
            ("30s", Ok(Span::Seconds(30))),
            ("5m", Ok(Span::Seconds(300))),
            ("2h", Ok(Span::Seconds(7_200))),
            ("1d", Ok(Span::Seconds(86_400))),
            ("forever", Ok(Span::Forever)),
            ("0s", Err(ParseSpanError)),
            ("5", Err(ParseSpanError)),
            ("+5m", Err(ParseSpanError)),
            ("-5m", Err(ParseSpanError)),
            ("m", Err(ParseSpanError)),
            ("1.5h", Err(ParseSpanError)),
            ("999999999999999999d", Err(ParseSpanError)),
        ] {
            assert_eq!(text.parse(), span, "{text}");
        }
    }
}
