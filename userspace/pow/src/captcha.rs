//! The question of a picture, for those whose browser runs no scripts: which characters does it show?
//!
//! As of a challenge, nothing is kept of it until it is redeemed. The characters are the first of an HMAC over its id, its
//! expiry and the circuit, so the answer itself is what proves that the question is ours: whoever makes up an id knows no
//! characters for it. Drawing them is left to the caller.

use std::{array, fmt, str::FromStr};

use thiserror::Error;

use crate::{Id, Purpose, Secrets, Solved, UnixSeconds, challenge::ID_BYTES, difficulty::Difficulty};

/// Characters that people do not take for another one: without 0, 1, 2, 5, 6, 8, B, D, G, I, O, Q, S and Z.
pub const LETTERS: &[u8; 22] = b"3479ACEFHJKLMNPRTUVWXY";
/// How many a picture shows: 22^6, or 113 million, possible answers.
pub const CHARACTERS: usize = 6;

/// A question. As text it is 44 hexadecimal digits: expiry (12) and id (32).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Captcha {
    /// The first second in which it is no longer good.
    pub expires: UnixSeconds,
    /// Random bytes.
    pub id: Id,
}

/// Why an answer is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CaptchaError {
    /// Too late.
    #[error("the picture has expired: ask for a new one")]
    Expired,
    /// Other characters, or a picture that another circuit or another process was shown.
    #[error("the picture showed other characters to this circuit")]
    Wrong,
    /// The text is no question of ours.
    #[error("a picture's number has 44 hexadecimal digits")]
    Text,
}

impl Captcha {
    fn message(&self, circuit: &[u8]) -> Vec<u8> {
        let expires = self.expires.0.to_be_bytes();
        [&expires[..], &self.id.0, circuit].concat()
    }
}

impl Secrets {
    /// The characters that the picture for `circuit` shows, of [`LETTERS`].
    pub fn characters(&self, captcha: &Captcha, circuit: &[u8]) -> [u8; CHARACTERS] {
        let bytes = self.derive(Purpose::Characters, &captcha.message(circuit));
        let mut bytes = bytes.as_chunks::<4>().0.iter();
        array::from_fn(|_| {
            // Four bytes for each: no character is more frequent than another by more than one in 10^8.
            let number = bytes.next().map_or(0, |bytes| u32::from_be_bytes(*bytes)) as usize;
            LETTERS.get(number % LETTERS.len()).copied().unwrap_or(b'A')
        })
    }

    /// Whether `text` is what the picture showed to `circuit`, in capitals or not, spaces apart.
    ///
    /// # Errors
    /// The first objection, in the order of [`CaptchaError`].
    pub fn read(
        &self,
        captcha: &Captcha,
        text: &str,
        circuit: &[u8],
        now: UnixSeconds,
    ) -> Result<Solved, CaptchaError> {
        if captcha.expires <= now {
            return Err(CaptchaError::Expired);
        }
        let given =
            text.bytes().filter(|byte| !byte.is_ascii_whitespace()).map(|byte| byte.to_ascii_uppercase());
        if !given.eq(self.characters(captcha, circuit)) {
            return Err(CaptchaError::Wrong);
        }
        let Captcha { expires, id } = *captcha;
        Ok(Solved { expires, id, difficulty: Difficulty::MIN })
    }
}

impl fmt::Display for Captcha {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:012x}", self.expires.min(UnixSeconds::LAST).0)?;
        self.id.0.iter().try_for_each(|byte| write!(out, "{byte:02x}"))
    }
}

impl fmt::Debug for Captcha {
    /// Without the id, which would tell visitors apart in a log.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Captcha").field("expires", &self.expires).finish_non_exhaustive()
    }
}

impl FromStr for Captcha {
    type Err = CaptchaError;

    fn from_str(text: &str) -> Result<Self, CaptchaError> {
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() != 12 + 2 * ID_BYTES || !text.bytes().all(is_hex) {
            return Err(CaptchaError::Text);
        }
        let number = |from: usize, to: usize| {
            text.get(from..to).and_then(|digits| u64::from_str_radix(digits, 16).ok()).unwrap_or_default()
        };
        let mut at = 12;
        let id = array::from_fn(|_| {
            at += 2;
            // Two digits are one byte.
            number(at - 2, at) as u8
        });
        Ok(Self { expires: UnixSeconds(number(0, 12)), id: Id(id) })
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use proptest::prelude::*;

    use super::*;
    use crate::{RedeemError, Redeemed};

    const NOW: UnixSeconds = UnixSeconds(1_000);

    fn captcha(id: u8) -> Captcha {
        Captcha { expires: NOW.after(60), id: Id([id; 16]) }
    }

    #[test]
    fn what_becomes_of_an_answer() {
        let (secrets, other) = (Secrets::new(&[1; 32]), Secrets::new(&[2; 32]));
        let shown = secrets.characters(&captcha(1), b"here");
        let text = String::from_utf8(shown.to_vec()).unwrap();
        let lower = format!(" {}\n", text.to_ascii_lowercase());
        let longer = format!("{text}A");
        let later = Captcha { expires: NOW.after(61), ..captcha(1) };
        let wrong = Some(CaptchaError::Wrong);
        for (row, (secrets, captcha, text, circuit, after, outcome)) in [
            (&secrets, captcha(1), text.as_str(), &b"here"[..], 59, None),
            (&secrets, captcha(1), lower.as_str(), b"here", 59, None),
            (&secrets, captcha(1), text.as_str(), b"here", 60, Some(CaptchaError::Expired)),
            (&secrets, captcha(1), text.as_str(), b"there", 0, wrong),
            (&secrets, captcha(2), text.as_str(), b"here", 0, wrong),
            (&secrets, later, text.as_str(), b"here", 0, wrong),
            (&secrets, captcha(1), "", b"here", 0, wrong),
            (&secrets, captcha(1), longer.as_str(), b"here", 0, wrong),
            (&other, captcha(1), text.as_str(), b"here", 0, wrong),
        ]
        .into_iter()
        .enumerate()
        {
            let result = secrets.read(&captcha, text, circuit, NOW.after(after));
            assert_eq!(result.err(), outcome, "row {row}");
        }
    }

    #[test]
    fn a_picture_is_good_once() {
        let secrets = Secrets::new(&[1; 32]);
        let text = String::from_utf8(secrets.characters(&captcha(1), b"").to_vec()).unwrap();
        let mut redeemed = Redeemed::new(NonZeroUsize::MIN);
        let mut read = || redeemed.redeem(secrets.read(&captcha(1), &text, b"", NOW).unwrap(), NOW);
        assert!(read().is_ok());
        assert_eq!(read(), Err(RedeemError::Replayed));
    }

    #[test]
    fn every_character_comes_about_as_often() {
        let secrets = Secrets::new(&[9; 32]);
        let mut counts = [0_u32; 256];
        for id in 0..2_000_u16 {
            let mut bytes = [0; 16];
            bytes[..2].copy_from_slice(&id.to_be_bytes());
            let captcha = Captcha { expires: NOW, id: Id(bytes) };
            for character in secrets.characters(&captcha, b"") {
                counts[usize::from(character)] += 1;
            }
        }
        // 12 000 / 22 = 545; six standard deviations are 137.
        for letter in LETTERS {
            let count = counts[usize::from(*letter)];
            assert!((408..=682).contains(&count), "{count} of {letter}");
        }
        assert_eq!(counts.iter().sum::<u32>(), 12_000);
    }

    proptest! {
        /// For all texts, reading a question gives one whose text is the same, or refuses it.
        #[test]
        fn a_question_has_one_text(text in "[0-9a-fA-F]{43,45}|.*") {
            if let Ok(captcha) = text.parse::<Captcha>() {
                prop_assert_eq!(captcha.to_string(), text);
            }
        }
    }
}
