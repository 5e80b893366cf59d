//! A challenge and its text.

use std::{array, fmt, str::FromStr};

use thiserror::Error;

use crate::{
    Difficulty, Nonce,
    text::{self, Fault},
};

/// The only version of challenges.
const VERSION: u8 = 1;
/// How long an id is.
pub const ID_BYTES: usize = 16;
/// How long a MAC is: the left part of HMAC-SHA3-256. Forging one by trial takes 2^191 tries in the mean.
pub(crate) const MAC_BYTES: usize = 24;
/// How much of a challenge the MAC covers: all that stands before it.
pub(crate) const COVERED_BYTES: usize = 24;
/// How long a challenge is in bytes. Divisible by 3, so that its text has neither padding nor unused bits, and each
/// challenge has exactly one text.
pub const TOKEN_BYTES: usize = COVERED_BYTES + MAC_BYTES;
/// How long a challenge is as text.
pub const TEXT_CHARACTERS: usize = TOKEN_BYTES / 3 * 4;

/// Random bytes that tell a challenge from all others, and say nothing else.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub [u8; ID_BYTES]);

impl fmt::Debug for Id {
    /// Nothing of it, because in a log it would tell visitors apart.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Id(..)")
    }
}

/// Seconds since 1970-01-01 00:00:00 UTC by the server's wall clock.
///
/// A wall clock, so that a client can see whether solving is still worth its while, and because the age of a boot would
/// tell which services share a host. It may step: see [`Redeemed`](crate::Redeemed).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixSeconds(pub u64);

impl UnixSeconds {
    /// The latest second that fits into a challenge: 48 bits.
    pub const LAST: Self = Self((1 << 48) - 1);

    /// This instant moved on by `seconds`; stays at the end of time instead of wrapping.
    pub const fn after(self, seconds: u64) -> Self {
        Self(self.0.saturating_add(seconds))
    }
}

/// A puzzle as a server made it, or as somebody claims that it did: only [`Secrets::verify`](crate::Secrets::verify) tells.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Challenge {
    pub(crate) difficulty: Difficulty,
    pub(crate) expires: UnixSeconds,
    pub(crate) id: Id,
    pub(crate) mac: [u8; MAC_BYTES],
}

impl Challenge {
    /// How many zero bits it asks for.
    pub const fn difficulty(&self) -> Difficulty {
        self.difficulty
    }

    /// The first second in which it is no longer good.
    pub const fn expires(&self) -> UnixSeconds {
        self.expires
    }

    /// Whether it is no longer good.
    pub fn is_expired(&self, now: UnixSeconds) -> bool {
        self.expires <= now
    }

    /// How many zero bits the hash of this challenge and `nonce` begins with.
    pub fn zero_bits(&self, nonce: Nonce) -> u32 {
        nonce.zero_bits(&self.to_bytes())
    }

    /// Whether `nonce` solves it. That is all that a client can know: it says nothing about MAC, circuit and replay.
    pub fn is_solved_by(&self, nonce: Nonce) -> bool {
        self.zero_bits(nonce) >= u32::from(self.difficulty.bits())
    }

    /// The bytes before the MAC: version, difficulty, expiry (big-endian), id.
    pub(crate) fn covered_bytes(&self) -> [u8; COVERED_BYTES] {
        let [_, _, expires @ ..] = self.expires.0.to_be_bytes();
        let mut bytes = [VERSION, self.difficulty.bits()].into_iter().chain(expires).chain(self.id.0);
        array::from_fn(|_| bytes.next().unwrap_or_default())
    }

    /// Its bytes, which are what is hashed.
    pub fn to_bytes(&self) -> [u8; TOKEN_BYTES] {
        let mut bytes = self.covered_bytes().into_iter().chain(self.mac);
        array::from_fn(|_| bytes.next().unwrap_or_default())
    }

    /// Reads its bytes.
    ///
    /// # Errors
    /// When the version is not known or the difficulty is not between 8 and 24.
    pub fn from_bytes(bytes: &[u8; TOKEN_BYTES]) -> Result<Self, DecodeError> {
        let [version, bits, rest @ ..] = *bytes;
        if version != VERSION {
            return Err(DecodeError::Version { found: version });
        }
        let difficulty = Difficulty::new(bits).ok_or(DecodeError::Difficulty { found: bits })?;
        let mut rest = rest.into_iter();
        let mut next = |_| rest.next().unwrap_or_default();
        let [a, b, c, d, e, f] = array::from_fn(&mut next);
        Ok(Self {
            difficulty,
            expires: UnixSeconds(u64::from_be_bytes([0, 0, a, b, c, d, e, f])),
            id: Id(array::from_fn(&mut next)),
            mac: array::from_fn(&mut next),
        })
    }
}

impl fmt::Debug for Challenge {
    /// Without the MAC, which would tell visitors apart in a log as the id would.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { difficulty, expires, id, mac: _ } = self;
        out.debug_struct("Challenge")
            .field("difficulty", difficulty)
            .field("expires", expires)
            .field("id", id)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Challenge {
    /// Its text: base64 of RFC 4648, section 5, always [`TEXT_CHARACTERS`] long.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(&text::written(&self.to_bytes()))
    }
}

/// Why a text or its bytes are no challenge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// It is too short or too long.
    #[error(
        "a challenge has {TEXT_CHARACTERS} characters, this text has {found}: nothing was tried; copy all of it"
    )]
    Length {
        /// How many it has.
        found: usize,
    },
    /// One of its characters is not in the alphabet.
    #[error(
        "character {position} of the challenge is {found:?}: nothing was tried; a challenge consists of A-Z, a-z, 0-9, - and _"
    )]
    Character {
        /// Which one, counted from 1.
        position: usize,
        /// What it is.
        found: char,
    },
    /// Its first byte is of another version.
    #[error(
        "byte 0 of the challenge says version {found}, and only {VERSION} is known here: nothing was tried; use a solver of \
         the server's version"
    )]
    Version {
        /// What it says.
        found: u8,
    },
    /// Its second byte asks for what no server of ours asks.
    #[error(
        "byte 1 of the challenge asks for {found} bits, and only {} to {} are ever asked: nothing was tried; ask the server for \
         a new challenge",
        Difficulty::MIN,
        Difficulty::MAX
    )]
    Difficulty {
        /// What it asks for.
        found: u8,
    },
}

impl FromStr for Challenge {
    type Err = DecodeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = text::read(text).map_err(|fault| match fault {
            Fault::Length(found) => DecodeError::Length { found },
            Fault::Character(position, found) => DecodeError::Character { position, found },
        })?;
        Self::from_bytes(&bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Challenge {
        Challenge {
            difficulty: Difficulty::MODERATE,
            expires: UnixSeconds(0x0102_0304_0506),
            id: Id(array::from_fn(|at| 0x10 + at as u8)),
            mac: array::from_fn(|at| 0xe0 + at as u8),
        }
    }

    #[test]
    fn the_layout_is_as_documented() {
        let bytes = sample().to_bytes();
        assert_eq!(bytes[..8], [1, 16, 1, 2, 3, 4, 5, 6]);
        assert_eq!(bytes[8..24], array::from_fn::<u8, 16, _>(|at| 0x10 + at as u8));
        assert_eq!(bytes[24..], array::from_fn::<u8, 24, _>(|at| 0xe0 + at as u8));
    }

    #[test]
    fn what_is_no_challenge_is_named() {
        let text = sample().to_string();
        let cut = |range: std::ops::Range<usize>| text.get(range).unwrap();
        let with = |at: usize, byte: u8| {
            let mut bytes = sample().to_bytes();
            bytes[at] = byte;
            Challenge::from_bytes(&bytes)
        };
        for (result, error) in [
            ("".parse(), DecodeError::Length { found: 0 }),
            (cut(1..64).parse(), DecodeError::Length { found: 63 }),
            (format!("{text}=").parse(), DecodeError::Length { found: 65 }),
            (format!("{}+", cut(0..63)).parse(), DecodeError::Character { position: 64, found: '+' }),
            (format!("/{}", cut(1..64)).parse(), DecodeError::Character { position: 1, found: '/' }),
            (
                format!("A\u{e9}{}", cut(2..64)).parse(),
                DecodeError::Character { position: 2, found: '\u{e9}' },
            ),
            // Of the right length in bytes but not in characters.
            (format!("\u{e9}{}", cut(2..64)).parse(), DecodeError::Length { found: 63 }),
            (with(0, 0), DecodeError::Version { found: 0 }),
            (with(0, 2), DecodeError::Version { found: 2 }),
            (with(1, 7), DecodeError::Difficulty { found: 7 }),
            (with(1, 25), DecodeError::Difficulty { found: 25 }),
        ] {
            assert_eq!(result, Err(error));
        }
    }

    #[test]
    fn debug_shows_no_id_and_no_mac() {
        let shown = format!("{:?}", sample());
        assert_eq!(
            shown,
            "Challenge { difficulty: Difficulty(16), expires: UnixSeconds(1108152157446), id: Id(..), .. }"
        );
    }

    proptest! {
        /// For all bytes that are a challenge, writing and reading its text gives the same bytes.
        #[test]
        fn a_challenge_survives_its_text(mut bytes: [u8; TOKEN_BYTES], bits in 8u8..=24) {
            bytes[0] = VERSION;
            bytes[1] = bits;
            let challenge = Challenge::from_bytes(&bytes).unwrap();
            prop_assert_eq!(challenge.to_bytes(), bytes);
            let text = challenge.to_string();
            prop_assert_eq!(text.len(), TEXT_CHARACTERS);
            prop_assert_eq!(text.parse(), Ok(challenge));
        }

        /// For all texts of the alphabet that are read, the text is the one that is written: there is no second one.
        #[test]
        fn a_challenge_has_one_text(rest in "[A-Za-z0-9_-]{61}", start in prop::sample::select(vec!["ARA", "AQg", "ARj"])) {
            let text = format!("{start}{rest}");
            if let Ok(challenge) = text.parse::<Challenge>() {
                prop_assert_eq!(challenge.to_string(), text);
            }
        }

        /// For all texts, reading a challenge does not panic.
        #[test]
        fn any_text_is_read_or_refused(text: String) {
            if let Ok(challenge) = text.parse::<Challenge>() {
                prop_assert_eq!(challenge.to_string(), text);
            }
        }
    }
}
