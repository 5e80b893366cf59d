//! How hard a challenge is.

use std::{fmt, str::FromStr};

use thiserror::Error;

/// How many zero bits a hash must begin with: 8 to 24. Each bit more doubles the work.
///
/// Below 8 bits asking costs the server as much as solving costs the client; above 24 an honest client with one core
/// would search for half a minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Difficulty(u8);

impl Difficulty {
    /// The easiest that is ever asked.
    pub const MIN: Self = Self(8);
    /// The hardest that is ever asked.
    pub const MAX: Self = Self(24);
    /// Under light load.
    pub const LIGHT: Self = Self(8);
    /// Under moderate load.
    pub const MODERATE: Self = Self(16);
    /// Under heavy load.
    pub const HEAVY: Self = Self(20);
    /// Under attack.
    pub const UNDER_ATTACK: Self = Self(24);
    /// The hardest that a page asks of a browser: seconds on a phone (`pow_page_max`).
    pub const PAGE_MAX: Self = Self(17);

    /// The difficulty of `bits`, if that is between [`Self::MIN`] and [`Self::MAX`].
    pub const fn new(bits: u8) -> Option<Self> {
        if bits < Self::MIN.0 || bits > Self::MAX.0 { None } else { Some(Self(bits)) }
    }

    /// The number of zero bits.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// How many nonces are tried until one fits, in the mean.
    pub const fn mean_attempts(self) -> u64 {
        1 << self.0
    }
}

impl fmt::Display for Difficulty {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

/// Why a text is no difficulty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a difficulty is a number of bits from {} to {}", Difficulty::MIN, Difficulty::MAX)]
pub struct DifficultyError;

impl FromStr for Difficulty {
    type Err = DifficultyError;

    /// Reads a number of bits in decimal digits.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // `u8::from_str` would also take a plus sign.
        if !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(DifficultyError);
        }
        text.parse().ok().and_then(Self::new).ok_or(DifficultyError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn difficulties_read() {
        for (text, bits) in [
            ("8", Some(8)),
            ("24", Some(24)),
            ("017", Some(17)),
            ("7", None),
            ("25", None),
            ("256", None),
            ("+8", None),
            ("", None),
        ] {
            assert_eq!(text.parse().map(Difficulty::bits).ok(), bits, "{text}");
        }
    }
}
