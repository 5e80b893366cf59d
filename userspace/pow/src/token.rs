//! A token: what a client shows on any circuit to say that it paid, or that somebody vouched for it.
//!
//! | bytes | what | how |
//! |---|---|---|
//! | 0 | version | `0x81`: no challenge begins so |
//! | 1 | what it grants | 1: the lane of VIPs |
//! | 2–7 | expiry: the first second in which it is no longer good | seconds since 1970, big-endian |
//! | 8–23 | id | random |
//! | 24–47 | MAC | the first 24 bytes of HMAC-SHA3-256 |
//!
//! It names nobody: no circuit, no visitor, no reason. Whoever holds it may use it.

use std::{array, fmt, str::FromStr};

use hmac::Mac as _;
use thiserror::Error;

use crate::{
    Id, SECRET_BYTES, TEXT_CHARACTERS, TOKEN_BYTES, UnixSeconds,
    challenge::{COVERED_BYTES, MAC_BYTES},
    secrets::{Hmac, keyed},
    text::{self, Fault},
};

/// The only version of tokens. Challenges have the version 1, so neither is ever read as the other.
const VERSION: u8 = 0x81;
/// All that a token can grant.
const VIP: u8 = 1;
/// Keeps these MACs apart from any other use that a caller might make of the same key.
const PURPOSE: &[u8; 16] = b"tunica token    ";

/// A token as a server made it, or as somebody claims that it did: only [`TokenKeys::verify`] tells.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Token {
    expires: UnixSeconds,
    id: Id,
    mac: [u8; MAC_BYTES],
}

/// A token that was made with our keys and is in its time. Only [`TokenKeys::verify`] makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Genuine {
    /// Tells it from all others.
    pub id: Id,
    /// The first second in which it is no longer good.
    pub expires: UnixSeconds,
}

/// What tokens are made and recognised with: a key, and the one before it until a second.
#[derive(Clone)]
pub struct TokenKeys {
    current: Hmac,
    previous: Option<(Hmac, UnixSeconds)>,
}

/// Why a token is not taken, in the order in which it is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TokenVerifyError {
    /// Its time is over.
    #[error(
        "the token has expired: its circuit is treated as any other; solve a puzzle for a new one when asked"
    )]
    Expired,
    /// The MAC is not ours. It was forged or damaged, another node made it, or all tokens were revoked: these look the same.
    #[error(
        "the token was not made with this server's key: its circuit is treated as any other; get one from this service"
    )]
    Forged,
}

/// Why a text or its bytes are no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TokenDecodeError {
    /// It is too short or too long.
    #[error(
        "a token has {TEXT_CHARACTERS} characters, this text has {found}: it counts for nothing; show all of it"
    )]
    Length {
        /// How many it has.
        found: usize,
    },
    /// One of its characters is not in the alphabet.
    #[error(
        "character {position} of the token is {found:?}: it counts for nothing; a token consists of A-Z, a-z, 0-9, - and _"
    )]
    Character {
        /// Which one, counted from 1.
        position: usize,
        /// What it is.
        found: char,
    },
    /// Its first byte is of another version, or of something that is no token.
    #[error(
        "byte 0 of the token is {found}, and only {VERSION} is known here: it counts for nothing; get a new one"
    )]
    Version {
        /// What it says.
        found: u8,
    },
    /// Its second byte grants what no token of ours grants.
    #[error(
        "byte 1 of the token is {found}, and only {VIP} is known here: it counts for nothing; get a new one"
    )]
    Grant {
        /// What it says.
        found: u8,
    },
}

impl Token {
    /// The first second in which it is no longer good.
    pub const fn expires(&self) -> UnixSeconds {
        self.expires
    }

    /// The bytes before the MAC.
    fn covered_bytes(&self) -> [u8; COVERED_BYTES] {
        let [_, _, expires @ ..] = self.expires.0.to_be_bytes();
        let mut bytes = [VERSION, VIP].into_iter().chain(expires).chain(self.id.0);
        array::from_fn(|_| bytes.next().unwrap_or_default())
    }

    /// Its bytes.
    pub fn to_bytes(&self) -> [u8; TOKEN_BYTES] {
        let mut bytes = self.covered_bytes().into_iter().chain(self.mac);
        array::from_fn(|_| bytes.next().unwrap_or_default())
    }

    /// Reads its bytes.
    ///
    /// # Errors
    /// When version or grant is not known.
    pub fn from_bytes(bytes: &[u8; TOKEN_BYTES]) -> Result<Self, TokenDecodeError> {
        let [version, grant, rest @ ..] = *bytes;
        if version != VERSION {
            return Err(TokenDecodeError::Version { found: version });
        }
        if grant != VIP {
            return Err(TokenDecodeError::Grant { found: grant });
        }
        let mut rest = rest.into_iter();
        let mut next = |_| rest.next().unwrap_or_default();
        let [a, b, c, d, e, f] = array::from_fn(&mut next);
        Ok(Self {
            expires: UnixSeconds(u64::from_be_bytes([0, 0, a, b, c, d, e, f])),
            id: Id(array::from_fn(&mut next)),
            mac: array::from_fn(&mut next),
        })
    }
}

impl TokenKeys {
    /// Makes tokens with `current`, which must be random, and takes those of `previous` until the second beside it.
    pub fn new(current: &[u8; SECRET_BYTES], previous: Option<(&[u8; SECRET_BYTES], UnixSeconds)>) -> Self {
        Self { current: keyed(current), previous: previous.map(|(key, until)| (keyed(key), until)) }
    }

    /// Makes a token. `id` must be random: whoever sees one must not be able to tell anything from it. What lies beyond
    /// [`UnixSeconds::LAST`] expires then.
    pub fn issue(&self, expires: UnixSeconds, id: Id) -> Token {
        let mut token = Token { expires: expires.min(UnixSeconds::LAST), id, mac: [0; MAC_BYTES] };
        let full = over(&self.current, &token).finalize();
        for (to, from) in token.mac.iter_mut().zip(full.as_bytes()) {
            *to = *from;
        }
        token
    }

    /// Whether `token` is good at `now`, before anybody asks whether it was revoked. MACs are compared in constant time.
    ///
    /// # Errors
    /// The first objection, in the order of [`TokenVerifyError`].
    pub fn verify(&self, token: &Token, now: UnixSeconds) -> Result<Genuine, TokenVerifyError> {
        let Token { expires, id, mac } = *token;
        if expires <= now {
            return Err(TokenVerifyError::Expired);
        }
        let is_made_with = |key: &Hmac| over(key, token).verify_truncated_left(&mac).is_ok();
        let previous = self.previous.as_ref().filter(|(_, until)| now < *until);
        if is_made_with(&self.current) || previous.is_some_and(|(key, _)| is_made_with(key)) {
            return Ok(Genuine { id, expires });
        }
        Err(TokenVerifyError::Forged)
    }
}

fn over(key: &Hmac, token: &Token) -> Hmac {
    key.clone().chain_update(PURPOSE).chain_update(token.covered_bytes())
}

impl fmt::Debug for TokenKeys {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("TokenKeys").finish_non_exhaustive()
    }
}

impl fmt::Debug for Token {
    /// The expiry alone: whoever reads a log must be able neither to use it nor to tell visitors apart.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Token").field("expires", &self.expires).finish_non_exhaustive()
    }
}

impl fmt::Display for Token {
    /// Its text: base64 of RFC 4648, section 5, always [`TEXT_CHARACTERS`] long. For its holder, never for a log.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(&text::written(&self.to_bytes()))
    }
}

impl FromStr for Token {
    type Err = TokenDecodeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = text::read(text).map_err(|fault| match fault {
            Fault::Length(found) => TokenDecodeError::Length { found },
            Fault::Character(position, found) => TokenDecodeError::Character { position, found },
        })?;
        Self::from_bytes(&bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Challenge, Difficulty, Secrets, Terms};

    const NOW: UnixSeconds = UnixSeconds(1_000);

    fn keys() -> TokenKeys {
        TokenKeys::new(&[1; 32], None)
    }

    #[test]
    fn the_layout_is_as_documented() {
        let token = keys().issue(UnixSeconds(0x0102_0304_0506), Id(array::from_fn(|at| 0x10 + at as u8)));
        let bytes = token.to_bytes();
        assert_eq!(bytes[..8], [0x81, 1, 1, 2, 3, 4, 5, 6]);
        assert_eq!(bytes[8..24], array::from_fn::<u8, 16, _>(|at| 0x10 + at as u8));
        // HMAC-SHA3-256 as Python's hmac and hashlib compute it.
        assert_eq!(token.to_string(), "gQEBAgMEBQYQERITFBUWFxgZGhscHR4f3-dvkc4QIJrCFr0ZLc6yuNO2J8FEumTs");
        assert_eq!(UnixSeconds(0x0102_0304_0506), token.expires());
    }

    /// Which key made it, when it is shown, and what is said of it: the keys are 1, and 2 until second 1 100.
    #[test]
    fn the_first_objection_counts() {
        let keys = TokenKeys::new(&[1; 32], Some((&[2; 32], UnixSeconds(1_100))));
        let [late, forged] = [Some(TokenVerifyError::Expired), Some(TokenVerifyError::Forged)];
        for (row, (key, expires, now, outcome)) in [
            (1, 1_001, 1_000, None),
            (1, 1_000, 1_000, late),
            (1, 5_000, 4_999, None),
            (1, 5_000, 5_000, late),
            (2, 2_000, 1_099, None),
            (2, 2_000, 1_100, forged),
            (2, 1_050, 1_050, late),
            (3, 2_000, 1_000, forged),
            (3, 900, 1_000, late),
        ]
        .into_iter()
        .enumerate()
        {
            let token = TokenKeys::new(&[key; 32], None).issue(UnixSeconds(expires), Id([7; 16]));
            let result = keys.verify(&token, UnixSeconds(now));
            assert_eq!(result.err(), outcome, "row {row}");
            if let Ok(genuine) = result {
                assert_eq!(genuine, Genuine { id: Id([7; 16]), expires: UnixSeconds(expires) });
            }
        }
    }

    #[test]
    fn what_is_no_token_is_named() {
        let text = keys().issue(NOW, Id([9; 16])).to_string();
        let cut = |range: std::ops::Range<usize>| text.get(range).unwrap();
        let with = |at: usize, byte: u8| {
            let mut bytes = keys().issue(NOW, Id([9; 16])).to_bytes();
            bytes[at] = byte;
            Token::from_bytes(&bytes)
        };
        for (result, error) in [
            ("".parse(), TokenDecodeError::Length { found: 0 }),
            (cut(1..64).parse(), TokenDecodeError::Length { found: 63 }),
            (format!("{text}=").parse(), TokenDecodeError::Length { found: 65 }),
            (format!("{}+", cut(0..63)).parse(), TokenDecodeError::Character { position: 64, found: '+' }),
            (
                format!("\u{e9}{}", cut(1..64)).parse(),
                TokenDecodeError::Character { position: 1, found: '\u{e9}' },
            ),
            (with(0, 1), TokenDecodeError::Version { found: 1 }),
            (with(1, 0), TokenDecodeError::Grant { found: 0 }),
            (with(1, 2), TokenDecodeError::Grant { found: 2 }),
        ] {
            assert_eq!(result, Err(error));
            assert!(!error.to_string().chars().any(char::is_control));
        }
    }

    /// A challenge made with the same key is no token, and the other way round.
    #[test]
    fn a_challenge_is_never_a_token() {
        let terms = Terms { difficulty: Difficulty::MIN, expires: NOW, id: Id([9; 16]) };
        let challenge = Secrets::new(&[1; 32]).issue(&terms, b"");
        assert!(Token::from_bytes(&challenge.to_bytes()).is_err());
        let token = keys().issue(NOW, Id([9; 16]));
        assert!(Challenge::from_bytes(&token.to_bytes()).is_err());
        assert_ne!(challenge.to_bytes()[24..], token.to_bytes()[24..]);
    }

    #[test]
    fn debug_shows_no_key_and_nothing_to_use() {
        let token = keys().issue(NOW, Id([77; 16]));
        let genuine = keys().verify(&token, UnixSeconds(0)).unwrap();
        assert_eq!(
            format!("{:?} {token:?} {genuine:?}", keys()),
            "TokenKeys { .. } Token { expires: UnixSeconds(1000), .. } \
             Genuine { id: Id(..), expires: UnixSeconds(1000) }"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        /// For all keys, ids, expiries and moments, a token is taken exactly while it has not expired; with any bit of it
        /// changed, or by any other key, it is not taken at all.
        #[test]
        fn a_token_is_taken_as_it_was_made_and_not_otherwise(
            key: [u8; SECRET_BYTES],
            other: [u8; SECRET_BYTES],
            id: [u8; 16],
            expires: u64,
            now: u64,
            bit in 0..TOKEN_BYTES * 8,
        ) {
            prop_assume!(key != other);
            let keys = TokenKeys::new(&key, None);
            let token = keys.issue(UnixSeconds(expires), Id(id));
            let expires = UnixSeconds(expires).min(UnixSeconds::LAST);
            prop_assert_eq!(token.to_string().len(), TEXT_CHARACTERS);
            prop_assert_eq!(token.to_string().parse(), Ok(token));
            let expected = if expires <= UnixSeconds(now) {
                Err(TokenVerifyError::Expired)
            } else {
                Ok(Genuine { id: Id(id), expires })
            };
            prop_assert_eq!(keys.verify(&token, UnixSeconds(now)), expected);
            let stranger = TokenKeys::new(&other, None);
            prop_assert!(stranger.verify(&token, UnixSeconds(now)).is_err());
            // A key before is as good until its second, and not in it.
            for (until, is_taken) in [(now.saturating_add(1), expected.is_ok() && now < u64::MAX), (now, false)] {
                let rotated = TokenKeys::new(&other, Some((&key, UnixSeconds(until))));
                prop_assert_eq!(rotated.verify(&token, UnixSeconds(now)).is_ok(), is_taken);
            }
            let mut bytes = token.to_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            if let Ok(changed) = Token::from_bytes(&bytes) {
                prop_assert!(keys.verify(&changed, UnixSeconds(0)).is_err());
            }
        }

        /// For all texts, reading a token does not panic, and what is read has no second text.
        #[test]
        fn any_text_is_read_or_refused(text in "gQ[A-Z][A-Za-z0-9_-]{61}|.*") {
            if let Ok(token) = text.parse::<Token>() {
                prop_assert_eq!(token.to_string(), text);
                prop_assert!(keys().verify(&token, NOW).is_err());
            }
        }
    }
}
