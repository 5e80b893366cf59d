//! What Tor calls things: onion services and relays. `Debug` of both is scrubbed; `Display` is for the wire and for the
//! operator who asked.

use std::{fmt, str::FromStr};

use thiserror::Error;

/// Letters and digits of a version 3 onion address, without `.onion`.
const ADDRESS_LENGTH: usize = 56;
/// Bytes of a relay's identity: a SHA-1 digest.
const FINGERPRINT_BYTES: usize = 20;

/// A version 3 onion address without `.onion`, which is the form the control port takes (it refuses the longer one).
///
/// Its letters are checked, not its checksum: tor does that.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OnionAddress([u8; ADDRESS_LENGTH]);

/// A relay's RSA identity.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint([u8; FINGERPRINT_BYTES]);

/// A text that names no onion service or no relay. It does not say which text: that may be a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NotAName {
    /// No version 3 onion address.
    #[error("an onion address has {ADDRESS_LENGTH} letters a–z and digits 2–7, with or without `.onion`")]
    OnionAddress,
    /// No fingerprint.
    #[error("a relay's fingerprint has 40 hexadecimal digits, with or without a `$` before them")]
    Fingerprint,
}

impl FromStr for OnionAddress {
    type Err = NotAName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let letters = text.strip_suffix(".onion").unwrap_or(text).as_bytes();
        let mut address: [u8; ADDRESS_LENGTH] = letters.try_into().map_err(|_| NotAName::OnionAddress)?;
        address.make_ascii_lowercase();
        let is_base32 = address.iter().all(|letter| matches!(letter, b'a'..=b'z' | b'2'..=b'7'));
        is_base32.then_some(Self(address)).ok_or(NotAName::OnionAddress)
    }
}

impl FromStr for Fingerprint {
    type Err = NotAName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        from_hex(text.strip_prefix('$').unwrap_or(text)).map(Self).ok_or(NotAName::Fingerprint)
    }
}

impl Fingerprint {
    /// The digest itself, 20 bytes.
    pub const fn bytes(self) -> [u8; FINGERPRINT_BYTES] {
        self.0
    }
}

impl fmt::Display for OnionAddress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|letter| write!(out, "{}", char::from(*letter)))
    }
}

impl fmt::Display for Fingerprint {
    /// Forty capital hexadecimal digits, without `$`.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", Hex(&self.0))
    }
}

impl fmt::Debug for OnionAddress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("OnionAddress(scrubbed)")
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Fingerprint(scrubbed)")
    }
}

/// Prints bytes as capital hexadecimal digits.
pub(crate) struct Hex<'a>(pub(crate) &'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(out, "{byte:02X}"))
    }
}

/// The bytes that exactly `2 * N` hexadecimal digits stand for.
pub(crate) fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    let mut bytes = [0; N];
    if pairs.len() != N {
        return None;
    }
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        let digit = |letter: &u8| char::from(*letter).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        *byte = digit(high)? << 4 | digit(low)?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: &str = "tunica2tunica3tunica4tunica5tunica6tunica7tunica2tunicad";
    const RELAY: &str = "00112233445566778899AABBCCDDEEFF00112233";

    #[test]
    fn onion_addresses_are_read_with_and_without_their_ending() {
        let address: OnionAddress = ADDRESS.parse().unwrap();
        assert_eq!(address.to_string(), ADDRESS);
        assert_eq!(format!("{ADDRESS}.onion").parse(), Ok(address));
        assert_eq!(ADDRESS.to_uppercase().parse(), Ok(address));
        for bad in [
            "",
            "UNKNOWN",
            ADDRESS.trim_start_matches('t'),
            &ADDRESS.replace('t', "1"),
            &ADDRESS.replace("tu", "é"),
        ] {
            assert_eq!(bad.parse::<OnionAddress>(), Err(NotAName::OnionAddress), "{bad}");
        }
        assert_eq!(format!("{address:?}"), "OnionAddress(scrubbed)");
    }

    #[test]
    fn fingerprints_are_read_with_and_without_their_sign() {
        let relay: Fingerprint = RELAY.parse().unwrap();
        assert_eq!(relay.to_string(), RELAY);
        assert_eq!(format!("${}", RELAY.to_lowercase()).parse(), Ok(relay));
        for bad in ["", "$", RELAY.trim_end_matches('3'), &format!("{RELAY}0"), &RELAY.replace('A', "G")] {
            assert_eq!(bad.parse::<Fingerprint>(), Err(NotAName::Fingerprint), "{bad}");
        }
        assert_eq!(format!("{relay:?}"), "Fingerprint(scrubbed)");
    }
}
