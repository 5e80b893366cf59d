//! How 48 bytes are written: base64 with the alphabet of RFC 4648, section 5, which URLs, headers and pages take as it is.

use crate::challenge::{TEXT_CHARACTERS, TOKEN_BYTES};

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// What is wrong with a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// How many characters it has.
    Length(usize),
    /// Which character, counted from 1, is not in the alphabet.
    Character(usize, char),
}

/// Always [`TEXT_CHARACTERS`] long. Each text stands for other bytes.
pub(crate) fn written(bytes: &[u8; TOKEN_BYTES]) -> String {
    let mut text = String::with_capacity(TEXT_CHARACTERS);
    for [a, b, c] in bytes.as_chunks().0 {
        let bits = u32::from_be_bytes([0, *a, *b, *c]);
        text.extend([18, 12, 6, 0].map(|shift| character(bits >> shift & 63)));
    }
    text
}

/// The bytes of a text.
pub(crate) fn read(text: &str) -> Result<[u8; TOKEN_BYTES], Fault> {
    let found = text.chars().count();
    if found != TEXT_CHARACTERS {
        return Err(Fault::Length(found));
    }
    let mut bytes = [0; TOKEN_BYTES];
    let mut characters = (1..).zip(text.chars());
    for group in bytes.as_chunks_mut::<3>().0 {
        let mut bits = 0;
        for (position, found) in characters.by_ref().take(4) {
            bits = bits << 6 | value(found).ok_or(Fault::Character(position, found))?;
        }
        let [_, a, b, c] = bits.to_be_bytes();
        *group = [a, b, c];
    }
    Ok(bytes)
}

/// The character that stands for six bits.
fn character(bits: u32) -> char {
    // Six bits always have one.
    usize::try_from(bits).ok().and_then(|index| ALPHABET.get(index)).map_or('A', |byte| char::from(*byte))
}

/// The six bits that a character stands for, if it does.
fn value(character: char) -> Option<u32> {
    let byte = u8::try_from(character).ok()?;
    Some(match byte {
        b'A'..=b'Z' => u32::from(byte - b'A'),
        b'a'..=b'z' => u32::from(byte - b'a') + 26,
        b'0'..=b'9' => u32::from(byte - b'0') + 52,
        b'-' => 62,
        b'_' => 63,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_character_stands_for_its_six_bits() {
        for bits in 0..64 {
            assert_eq!(value(character(bits)), Some(bits));
        }
        assert_eq!((0..=u8::MAX).filter(|byte| value(char::from(*byte)).is_some()).count(), 64);
    }
}
