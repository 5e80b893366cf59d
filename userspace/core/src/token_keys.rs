//! The keys of tokens: which is used, which is still taken, and when the next one comes.
//!
//! | state | input | next |
//! |---|---|---|
//! | a key for less than [`TURN`] | time | the same |
//! | a key for [`TURN`] | [`TokenKeys::turn`] | a new one; the one before is taken for [`MOST_LIFE`] more |
//! | a key, and one before | [`MOST_LIFE`] since the turn | the key alone |
//! | any | [`TokenKeys::revoke_all`] | a new key alone |
//!
//! So every token is good until it expires, however long it may live, unless somebody revokes all of them.
//!
//! Keys are random bytes of the caller's. Their file is text, so that an operator can see what it is ([`TokenKeys::text`]).

use std::{fmt, time::Duration};

use thiserror::Error;

use crate::time::WallTime;

/// Longest life of a token.
pub const MOST_LIFE: Duration = Duration::from_secs(24 * 60 * 60);
/// How long a key is used. Who copies the file once cannot make tokens for ever.
pub const TURN: Duration = Duration::from_secs(24 * 60 * 60);
/// How long a key is.
pub const KEY_BYTES: usize = 32;

/// The first line of the file.
const HEADING: &str = "# tunicad's keys of VIP tokens. Whoever reads this can make tokens; `tunica token revoke --all` replaces it.";

/// A key. It prints nothing of itself.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TokenKey(pub [u8; KEY_BYTES]);

/// The machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenKeys {
    current: TokenKey,
    since: WallTime,
    /// The one before, and the first second in which it is not taken.
    previous: Option<(TokenKey, WallTime)>,
}

/// Why a text holds no keys. It names lines and never what stands in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum KeyTextError {
    /// A line is none of ours.
    #[error(
        "line {line} of the keys is not `current KEY SECOND` or `previous KEY SECOND` with 64 hexadecimal digits for the key"
    )]
    Line {
        /// Which, counted from 1.
        line: usize,
    },
    /// A word stands twice.
    #[error("line {line} of the keys says once more what stands above it")]
    Twice {
        /// Which, counted from 1.
        line: usize,
    },
    /// There is no key to use.
    #[error("the keys have no line that begins with `current`")]
    NoCurrent,
}

impl TokenKeys {
    /// One key, from now on.
    pub const fn new(key: TokenKey, now: WallTime) -> Self {
        Self { current: key, since: now, previous: None }
    }

    /// The key that tokens are made with.
    pub const fn current(&self) -> TokenKey {
        self.current
    }

    /// The key before, and the first second in which its tokens are not taken.
    pub const fn previous(&self) -> Option<(TokenKey, WallTime)> {
        self.previous
    }

    /// Whether the key was used for as long as it may be. Where the clock stepped back it is used for longer.
    pub fn is_due(&self, now: WallTime) -> bool {
        now.since(self.since) >= TURN
    }

    /// Makes tokens with `key` from now on.
    pub fn turn(&mut self, key: TokenKey, now: WallTime) {
        self.previous = Some((self.current, now.after(MOST_LIFE)));
        (self.current, self.since) = (key, now);
    }

    /// Makes tokens with `key` from now on, and takes none that was made before.
    pub const fn revoke_all(&mut self, key: TokenKey, now: WallTime) {
        (self.current, self.since, self.previous) = (key, now, None);
    }

    /// Forgets a key whose tokens have all expired. Returns whether there was one.
    pub fn advance(&mut self, now: WallTime) -> bool {
        let is_over = self.previous.is_some_and(|(_, until)| until <= now);
        if is_over {
            self.previous = None;
        }
        is_over
    }

    /// What the file says.
    pub fn text(&self) -> String {
        let line = |word: &str, key: TokenKey, second: WallTime| {
            format!("{word} {} {}\n", hex::encode(key.0), second.0)
        };
        let previous = self.previous.map_or_else(String::new, |(key, until)| line("previous", key, until));
        format!("{HEADING}\n{}{previous}", line("current", self.current, self.since))
    }

    /// Reads what [`Self::text`] wrote.
    ///
    /// # Errors
    /// [`KeyTextError`]: the first line that is wrong.
    pub fn read(text: &str) -> Result<Self, KeyTextError> {
        let (mut current, mut previous) = (None, None);
        for (line, words) in (1..).zip(text.lines()).filter(|(_, text)| !text.starts_with('#')) {
            let mut words = words.split(' ');
            let mut next = || words.next().ok_or(KeyTextError::Line { line });
            let slot = match next()? {
                "current" => &mut current,
                "previous" => &mut previous,
                _ => return Err(KeyTextError::Line { line }),
            };
            let key = key(next()?).ok_or(KeyTextError::Line { line })?;
            let second = next()?.parse().map_err(|_| KeyTextError::Line { line })?;
            if words.next().is_some() {
                return Err(KeyTextError::Line { line });
            }
            if slot.replace((key, WallTime(second))).is_some() {
                return Err(KeyTextError::Twice { line });
            }
        }
        let (current, since) = current.ok_or(KeyTextError::NoCurrent)?;
        Ok(Self { current, since, previous })
    }
}

fn key(text: &str) -> Option<TokenKey> {
    let mut key = [0; KEY_BYTES];
    hex::decode_to_slice(text, &mut key).ok()?;
    Some(TokenKey(key))
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("TokenKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: u64 = 24 * 60 * 60;
    const fn at(second: u64) -> WallTime {
        WallTime(1_000_000 + second)
    }
    const fn numbered(number: u8) -> TokenKey {
        TokenKey([number; KEY_BYTES])
    }

    #[test]
    fn a_key_turns_daily_and_the_one_before_is_taken_for_a_life() {
        let mut keys = TokenKeys::new(numbered(1), at(0));
        assert!(!keys.is_due(at(DAY - 1)) && keys.is_due(at(DAY)));
        assert!(!keys.is_due(WallTime(0)), "a clock that stepped back makes no new key each second");
        keys.turn(numbered(2), at(DAY));
        assert_eq!((keys.current(), keys.previous()), (numbered(2), Some((numbered(1), at(2 * DAY)))));
        assert!(!keys.is_due(at(DAY)) && !keys.advance(at(2 * DAY - 1)));
        assert!(keys.advance(at(2 * DAY)) && !keys.advance(at(2 * DAY)));
        assert_eq!(keys, TokenKeys::new(numbered(2), at(DAY)));
        keys.turn(numbered(3), at(3 * DAY));
        keys.revoke_all(numbered(4), at(3 * DAY + 1));
        assert_eq!(keys, TokenKeys::new(numbered(4), at(3 * DAY + 1)));
    }

    #[test]
    fn what_is_no_file_of_keys_is_named_and_not_shown() {
        let key = "ab".repeat(32);
        for (text, error) in [
            (String::new(), KeyTextError::NoCurrent),
            (format!("# a comment\nprevious {key} 1\n"), KeyTextError::NoCurrent),
            (format!("current {key}\n"), KeyTextError::Line { line: 1 }),
            (format!("current {key} 1 2\n"), KeyTextError::Line { line: 1 }),
            (format!("current {key} x\n"), KeyTextError::Line { line: 1 }),
            (format!("current {key}0 1\n"), KeyTextError::Line { line: 1 }),
            (format!("current {} 1\n", "é".repeat(32)), KeyTextError::Line { line: 1 }),
            (format!("current +{} 1\n", "a".repeat(63)), KeyTextError::Line { line: 1 }),
            (format!("current {key} 1\nother {key} 1\n"), KeyTextError::Line { line: 2 }),
            (format!("current {key} 1\n\n"), KeyTextError::Line { line: 2 }),
            (format!("current {key} 1\ncurrent {key} 1\n"), KeyTextError::Twice { line: 2 }),
        ] {
            let found = TokenKeys::read(&text).unwrap_err();
            assert_eq!(found, error, "{text}");
            assert!(!found.to_string().contains("abab"));
        }
        assert_eq!(format!("{:?}", numbered(7)), "TokenKey(..)");
    }

    proptest! {
        /// For all keys, the file says what they are.
        #[test]
        fn keys_survive_their_file(
            current: [u8; KEY_BYTES],
            since: u64,
            previous in prop::option::of((any::<[u8; KEY_BYTES]>(), any::<u64>())),
        ) {
            let previous = previous.map(|(key, until)| (TokenKey(key), WallTime(until)));
            let keys = TokenKeys { current: TokenKey(current), since: WallTime(since), previous };
            prop_assert_eq!(TokenKeys::read(&keys.text()), Ok(keys));
        }

        /// For all turns and silences between them, a token that was made is taken until it expires.
        #[test]
        fn no_token_is_lost_by_a_turn(waits in prop::collection::vec(0u64..3 * DAY, 1..30), life in 1u64..=DAY) {
            let (mut keys, mut now, mut made) = (TokenKeys::new(numbered(0), at(0)), 0, Vec::new());
            for (number, wait) in (1..).zip(waits) {
                now += wait;
                if keys.is_due(at(now)) {
                    keys.turn(numbered(number), at(now));
                }
                keys.advance(at(now));
                made.push((keys.current(), now + life));
                let is_taken = |key| key == keys.current()
                    || keys.previous().is_some_and(|(previous, until)| previous == key && at(now) < until);
                prop_assert!(made.iter().filter(|(_, until)| now < *until).all(|(key, _)| is_taken(*key)));
            }
        }
    }
}
