//! What a client looks for.

use std::{fmt, str::FromStr};

use sha3::{Digest, Sha3_256};
use thiserror::Error;

use crate::challenge::TOKEN_BYTES;

/// Eight bytes that solve a challenge. As a number they are big-endian; as text they are 16 digits, 0–9 and a–f.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nonce(pub u64);

impl Nonce {
    /// How many zero bits SHA3-256(`token` ‖ nonce) begins with. The first bit is the highest one of the first byte.
    pub(crate) fn zero_bits(self, token: &[u8; TOKEN_BYTES]) -> u32 {
        let hash = Sha3_256::new().chain_update(token).chain_update(self.0.to_be_bytes()).finalize();
        let mut bits = 0;
        for byte in hash {
            bits += byte.leading_zeros();
            if byte != 0 {
                break;
            }
        }
        bits
    }
}

impl fmt::Display for Nonce {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:016x}", self.0)
    }
}

/// Why a text is no nonce.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NonceError {
    /// It is too short or too long.
    #[error("a nonce has 16 characters, this one has {found}: nothing was tried; copy all of it")]
    Length {
        /// How many it has.
        found: usize,
    },
    /// One of its characters is no lower-case hexadecimal digit.
    #[error(
        "character {position} of the nonce is {found:?}: nothing was tried; a nonce consists of the digits 0-9 and a-f"
    )]
    Character {
        /// Which one, counted from 1.
        position: usize,
        /// What it is.
        found: char,
    },
}

impl FromStr for Nonce {
    type Err = NonceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = text.chars().count();
        if found != 16 {
            return Err(NonceError::Length { found });
        }
        let mut number = 0;
        for (position, found) in (1..).zip(text.chars()) {
            let digit = found.to_digit(16).filter(|_| !found.is_ascii_uppercase());
            number = number << 4 | u64::from(digit.ok_or(NonceError::Character { position, found })?);
        }
        Ok(Self(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nonces_read() {
        for (text, nonce) in [
            ("0000000000000000", Ok(Nonce(0))),
            ("0123456789abcdef", Ok(Nonce(0x0123_4567_89ab_cdef))),
            ("0123456789ABCDEF", Err(NonceError::Character { position: 11, found: 'A' })),
            ("000000000000000 ", Err(NonceError::Character { position: 16, found: ' ' })),
            ("+000000000000000", Err(NonceError::Character { position: 1, found: '+' })),
            ("0000000000000é00", Err(NonceError::Character { position: 14, found: 'é' })),
            ("", Err(NonceError::Length { found: 0 })),
            ("00000000000000000", Err(NonceError::Length { found: 17 })),
        ] {
            assert_eq!(text.parse(), nonce, "{text}");
        }
    }

    /// The zero bits, counted in the hash as a row of digits.
    fn counted(token: &[u8; TOKEN_BYTES], nonce: Nonce) -> u32 {
        let message = [token.as_slice(), &nonce.0.to_be_bytes()].concat();
        let digits: String = Sha3_256::digest(message).iter().map(|byte| format!("{byte:08b}")).collect();
        digits.chars().take_while(|digit| *digit == '0').count() as u32
    }

    proptest! {
        /// For all challenges and nonces, zero bits are those that a row of digits begins with.
        #[test]
        fn zero_bits_are_counted_from_the_first(seed: u8, start: u64) {
            let token = [seed; TOKEN_BYTES];
            for nonce in (start..start.saturating_add(64)).map(Nonce) {
                prop_assert_eq!(nonce.zero_bits(&token), counted(&token, nonce));
            }
        }

        /// For all nonces, what is printed is read as the same, and no other text of that length in another case is.
        #[test]
        fn a_nonce_has_one_text(number: u64) {
            let text = Nonce(number).to_string();
            prop_assert_eq!(text.parse(), Ok(Nonce(number)));
            let upper = text.to_uppercase();
            prop_assert!(upper == text || upper.parse::<Nonce>().is_err());
        }

        /// For all texts, reading a nonce does not panic.
        #[test]
        fn any_text_is_read_or_refused(text: String) {
            if let Ok(nonce) = text.parse::<Nonce>() {
                prop_assert_eq!(nonce.to_string(), text);
            }
        }
    }
}
