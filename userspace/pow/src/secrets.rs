//! The server's side: making challenges, and verifying what comes back.

use std::fmt;

use hmac::{KeyInit, Mac, SimpleHmac};
use sha3::Sha3_256;
use thiserror::Error;

use crate::{
    Challenge, Difficulty, Id, Nonce, UnixSeconds,
    challenge::{COVERED_BYTES, MAC_BYTES},
};

/// How long a secret is.
pub const SECRET_BYTES: usize = 32;

/// HMAC (FIPS 198-1) with SHA3-256: a standard construction with a proof, from a crate that also compares in constant
/// time. KMAC would save one permutation of four, but the crate of SHA3 has none, and no short code of our own is worth it.
pub(crate) type Hmac = SimpleHmac<Sha3_256>;

/// Keeps these MACs apart from any other use that a caller might make of the same secret.
const PURPOSE: &[u8; 16] = b"tunica challenge";

/// What challenges are made and recognised with: a secret, and the one before it.
///
/// Nothing else is kept of a challenge until it is redeemed. Secrets belong to one process: a second one that shared them
/// would have to share [`Redeemed`](crate::Redeemed) too, or each challenge would be good once for each of them. For the
/// same reason a new `Redeemed` needs new secrets.
#[derive(Clone)]
pub struct Secrets {
    current: Hmac,
    previous: Option<Hmac>,
}

/// What a challenge shall say.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// How many zero bits it asks for.
    pub difficulty: Difficulty,
    /// The first second in which it is no longer good; what lies beyond [`UnixSeconds::LAST`] becomes that.
    pub expires: UnixSeconds,
    /// Random bytes. Of two challenges with the same id and expiry only one can be redeemed.
    pub id: Id,
}

/// What a client brings.
#[derive(Clone, Copy)]
pub struct Answer<'a> {
    /// The challenge that it says it got.
    pub challenge: &'a Challenge,
    /// The solution that it says it found.
    pub nonce: Nonce,
    /// The circuit that it came on, as in [`Secrets::issue`].
    pub circuit: &'a [u8],
}

/// A challenge that was solved, still to be redeemed. Only [`Secrets::verify`] makes one.
#[must_use = "a solution that is not redeemed can be brought again"]
#[derive(Debug, PartialEq, Eq)]
pub struct Solved {
    pub(crate) expires: UnixSeconds,
    pub(crate) id: Id,
    pub(crate) difficulty: Difficulty,
}

/// Why an answer is not taken, in the order in which it is looked at: what is cheap comes first. What is no challenge at
/// all was refused before, as [`DecodeError`](crate::DecodeError).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum VerifyError {
    /// Too late.
    #[error("the challenge has expired: it must be solved within its time; ask for a new one")]
    Expired,
    /// The MAC is not ours for this circuit. Four causes look the same, because nothing of the circuit stands in the
    /// challenge: it was forged or damaged; another circuit got it; its secret was replaced twice since; another process
    /// made it.
    #[error("the challenge was not made by this server for this circuit: ask for a new one on this circuit")]
    Foreign,
    /// Easier than what is accepted now.
    #[error("the challenge asks for {asked} bits, and {least} are asked now: ask for a new one")]
    TooEasy {
        /// What the challenge asks for.
        asked: Difficulty,
        /// What is asked now.
        least: Difficulty,
    },
    /// The nonce does not solve it.
    #[error("the hash begins with {found} zero bits, and {asked} are asked: search on")]
    Unsolved {
        /// How many zero bits the hash begins with.
        found: u32,
        /// What the challenge asks for.
        asked: Difficulty,
    },
}

impl Secrets {
    /// Begins with `secret`, which must be random.
    pub fn new(secret: &[u8; SECRET_BYTES]) -> Self {
        Self { current: keyed(secret), previous: None }
    }

    /// From now on challenges are made with `secret`. Those made with the secret before stay good until they expire,
    /// unless another rotation comes first: rotate no more often than challenges expire.
    pub fn rotate(&mut self, secret: &[u8; SECRET_BYTES]) {
        self.previous = Some(std::mem::replace(&mut self.current, keyed(secret)));
    }

    /// Makes a challenge for `circuit`: bytes of any length that tell the circuit from all others, and from those that
    /// another tor process numbers the same. They enter the MAC and nothing else.
    pub fn issue(&self, terms: &Terms, circuit: &[u8]) -> Challenge {
        let Terms { difficulty, expires, id } = *terms;
        let expires = expires.min(UnixSeconds::LAST);
        let mut challenge = Challenge { difficulty, expires, id, mac: [0; MAC_BYTES] };
        let full = over(&self.current, &challenge.covered_bytes(), circuit).finalize();
        for (to, from) in challenge.mac.iter_mut().zip(full.as_bytes()) {
            *to = *from;
        }
        challenge
    }

    /// Whether `answer` is good at `now`, before its replay is looked for.
    ///
    /// A challenge keeps the difficulty with which it was made: a client must not lose its work because the level rose
    /// while it searched. `at_least` is the easiest challenge that is taken all the same. Give [`Difficulty::MIN`] to take
    /// each until it expires, or the level in force to take none that is easier.
    ///
    /// # Errors
    /// The first objection, in the order of [`VerifyError`].
    pub fn verify(
        &self,
        answer: &Answer<'_>,
        at_least: Difficulty,
        now: UnixSeconds,
    ) -> Result<Solved, VerifyError> {
        let Answer { challenge, nonce, circuit } = *answer;
        if challenge.is_expired(now) {
            return Err(VerifyError::Expired);
        }
        let covered = challenge.covered_bytes();
        let is_made_with =
            |key: &Hmac| over(key, &covered, circuit).verify_truncated_left(&challenge.mac).is_ok();
        if !is_made_with(&self.current) && !self.previous.as_ref().is_some_and(is_made_with) {
            return Err(VerifyError::Foreign);
        }
        let Challenge { difficulty, expires, id, mac: _ } = *challenge;
        if difficulty < at_least {
            return Err(VerifyError::TooEasy { asked: difficulty, least: at_least });
        }
        let found = challenge.zero_bits(nonce);
        if found < u32::from(difficulty.bits()) {
            return Err(VerifyError::Unsolved { found, asked: difficulty });
        }
        Ok(Solved { expires, id, difficulty })
    }
}

/// What bytes are derived for besides challenges, see [`Secrets::derive`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Ids of challenges and of pictures.
    Id,
    /// What lets a page run its own script and no other.
    Page,
    /// The characters of a picture.
    Characters,
    /// How a picture distorts them.
    Distortion,
}

impl Purpose {
    /// As long as [`PURPOSE`], and different from it and from each other.
    const fn label(self) -> &'static [u8; 16] {
        match self {
            Self::Id => b"tunica id       ",
            Self::Page => b"tunica page     ",
            Self::Characters => b"tunica letters  ",
            Self::Distortion => b"tunica picture  ",
        }
    }
}

impl Secrets {
    /// Bytes that nobody can tell without the secret: HMAC-SHA3-256 over the purpose and `message`. After
    /// [`Self::rotate`] they are others.
    pub fn derive(&self, purpose: Purpose, message: &[u8]) -> [u8; SECRET_BYTES] {
        let full = self.current.clone().chain_update(purpose.label()).chain_update(message).finalize();
        let mut bytes = [0; SECRET_BYTES];
        for (to, from) in bytes.iter_mut().zip(full.as_bytes()) {
            *to = *from;
        }
        bytes
    }
}

impl fmt::Debug for Answer<'_> {
    /// Without the circuit.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { challenge, nonce: _, circuit: _ } = self;
        out.debug_struct("Answer").field("challenge", challenge).finish_non_exhaustive()
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Secrets").finish_non_exhaustive()
    }
}

pub(crate) fn keyed(secret: &[u8; SECRET_BYTES]) -> Hmac {
    // HMAC fills a short key with zeros up to a block (FIPS 198-1, section 4).
    let mut key = hmac::digest::Key::<Hmac>::default();
    for (to, from) in key.iter_mut().zip(secret) {
        *to = *from;
    }
    Hmac::new(&key)
}

/// The circuit comes last: what stands before it has one length, so no two inputs are the same bytes.
fn over(key: &Hmac, covered: &[u8; COVERED_BYTES], circuit: &[u8]) -> Hmac {
    key.clone().chain_update(PURPOSE).chain_update(covered).chain_update(circuit)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;
    use crate::{Search, TOKEN_BYTES, solve};
    use proptest::prelude::*;

    const NOW: UnixSeconds = UnixSeconds(1_000);
    const CIRCUIT: &[u8] = b"circuit 666";

    fn terms(bits: u8) -> Terms {
        Terms { difficulty: Difficulty::new(bits).unwrap(), expires: NOW.after(60), id: Id([9; 16]) }
    }

    fn solution(challenge: &Challenge) -> Nonce {
        let Search { nonce, attempts: _ } = solve(challenge, Nonce(0), NonZeroUsize::MIN, &|_| false);
        nonce.unwrap()
    }

    /// A nonce that just does not solve it, and how many zero bits it gives.
    fn failure(challenge: &Challenge) -> (Nonce, u32) {
        let found = u32::from(challenge.difficulty().bits()) - 1;
        (0..)
            .map(|number| (Nonce(number), found))
            .find(|(nonce, _)| challenge.zero_bits(*nonce) == found)
            .unwrap()
    }

    #[test]
    fn the_first_objection_counts() {
        let secrets = Secrets::new(&[1; 32]);
        let challenge = secrets.issue(&terms(9), CIRCUIT);
        let (good, (bad, found)) = (solution(&challenge), failure(&challenge));
        let hard = Difficulty::new(10).unwrap();
        let asked = challenge.difficulty();
        let [late, foreign] = [VerifyError::Expired, VerifyError::Foreign];
        let easy = VerifyError::TooEasy { asked, least: hard };
        let unsolved = VerifyError::Unsolved { found, asked };
        // Whether it is in time, its circuit, the least difficulty, the nonce, the outcome.
        for (row, (in_time, circuit, least, nonce, outcome)) in [
            (true, CIRCUIT, asked, good, None),
            (true, CIRCUIT, asked, bad, Some(unsolved)),
            (true, CIRCUIT, hard, good, Some(easy)),
            (true, CIRCUIT, hard, bad, Some(easy)),
            (true, b"circuit 667", asked, good, Some(foreign)),
            (true, b"circuit 66", asked, good, Some(foreign)),
            (true, b"", asked, good, Some(foreign)),
            (true, b"circuit 667", hard, bad, Some(foreign)),
            (false, CIRCUIT, asked, good, Some(late)),
            (false, b"circuit 667", hard, bad, Some(late)),
        ]
        .into_iter()
        .enumerate()
        {
            let now = if in_time { NOW.after(59) } else { NOW.after(60) };
            let result = secrets.verify(&Answer { challenge: &challenge, nonce, circuit }, least, now);
            assert_eq!(result.err(), outcome, "row {row}");
        }
    }

    /// The level rises or falls while a client searches.
    #[test]
    fn a_level_change_follows_what_the_caller_accepts() {
        let secrets = Secrets::new(&[1; 32]);
        for (asked, level, at_least, is_taken) in [
            // Taken until it expires, whatever the level has become.
            (8, 12, 8, true),
            (12, 8, 8, true),
            // Only what the level asks for now, or more.
            (8, 12, 12, false),
            (8, 9, 9, false),
            (9, 8, 8, true),
            (9, 9, 9, true),
        ] {
            let challenge = secrets.issue(&terms(asked), CIRCUIT);
            let answer = Answer { challenge: &challenge, nonce: solution(&challenge), circuit: CIRCUIT };
            let result = secrets.verify(&answer, Difficulty::new(at_least).unwrap(), NOW);
            assert_eq!(result.is_ok(), is_taken, "asked {asked}, level {level}, at least {at_least}");
        }
    }

    #[test]
    fn a_secret_is_good_until_the_second_rotation() {
        let mut secrets = Secrets::new(&[1; 32]);
        let challenge = secrets.issue(&terms(8), CIRCUIT);
        let nonce = solution(&challenge);
        let answer = Answer { challenge: &challenge, nonce, circuit: CIRCUIT };
        for (secret, outcome) in [(2, None), (3, Some(VerifyError::Foreign)), (1, None)] {
            secrets.rotate(&[secret; 32]);
            assert_eq!(secrets.verify(&answer, Difficulty::MIN, NOW).err(), outcome, "secret {secret}");
            assert_eq!(challenge == secrets.issue(&terms(8), CIRCUIT), secret == 1);
        }
    }

    #[test]
    fn derived_bytes_differ_by_secret_purpose_and_message() {
        let (one, other) = (Secrets::new(&[1; 32]), Secrets::new(&[2; 32]));
        let purposes = [Purpose::Id, Purpose::Page, Purpose::Characters, Purpose::Distortion];
        let mut all = std::collections::HashSet::new();
        for (secrets, purpose, message) in [&one, &other]
            .into_iter()
            .flat_map(|secrets| purposes.map(|purpose| (secrets, purpose)))
            .flat_map(|(secrets, purpose)| [b"a", b"b"].map(|message| (secrets, purpose, message)))
        {
            let bytes = secrets.derive(purpose, message);
            assert_eq!(bytes, secrets.derive(purpose, message));
            assert!(all.insert(bytes), "{purpose:?}");
        }
        assert!(purposes.iter().all(|purpose| purpose.label() != PURPOSE));
    }

    #[test]
    fn a_circuit_does_not_show() {
        let secrets = Secrets::new(&[1; 32]);
        let one = secrets.issue(&terms(8), CIRCUIT).to_bytes();
        let other = secrets.issue(&terms(8), b"another circuit, with a longer name").to_bytes();
        assert_eq!(one[..24], other[..24]);
        assert_ne!(one[24..], other[24..]);
    }

    #[test]
    fn an_expiry_beyond_the_end_of_time_becomes_the_last_second() {
        let secrets = Secrets::new(&[1; 32]);
        let challenge = secrets.issue(&Terms { expires: UnixSeconds(u64::MAX), ..terms(8) }, CIRCUIT);
        assert_eq!(challenge.expires(), UnixSeconds::LAST);
        assert_eq!(challenge.to_string().parse(), Ok(challenge));
        let answer = Answer { challenge: &challenge, nonce: solution(&challenge), circuit: CIRCUIT };
        assert!(secrets.verify(&answer, Difficulty::MIN, NOW).is_ok());
    }

    #[test]
    fn debug_shows_no_secret_and_no_visitor() {
        let secrets = Secrets::new(&[77; 32]);
        assert_eq!(format!("{secrets:?}"), "Secrets { .. }");
        let challenge = secrets.issue(&terms(8), CIRCUIT);
        let answer = Answer { challenge: &challenge, nonce: solution(&challenge), circuit: CIRCUIT };
        let solved = secrets.verify(&answer, Difficulty::MIN, NOW);
        assert_eq!(
            format!("{answer:?} {solved:?}"),
            "Answer { challenge: Challenge { difficulty: Difficulty(8), expires: UnixSeconds(1060), id: Id(..), .. }, .. } \
             Ok(Solved { expires: UnixSeconds(1060), id: Id(..), difficulty: Difficulty(8) })"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// For all secrets, circuits, ids and expiries, what a client solves is taken, and with any bit of it changed it is
        /// not taken as anything else.
        #[test]
        fn a_changed_bit_is_never_taken(
            secret: [u8; SECRET_BYTES],
            circuit in prop::collection::vec(any::<u8>(), 0..200),
            id: [u8; 16],
            expires in 1u64..=UnixSeconds::LAST.0,
            bit in 0..TOKEN_BYTES * 8,
        ) {
            let secrets = Secrets::new(&secret);
            let (expires, id) = (UnixSeconds(expires), Id(id));
            let challenge = secrets.issue(&Terms { difficulty: Difficulty::MIN, expires, id }, &circuit);
            let answer = Answer { challenge: &challenge, nonce: solution(&challenge), circuit: &circuit };
            let now = UnixSeconds(0);
            let solved = secrets.verify(&answer, Difficulty::MIN, now);
            prop_assert_eq!(solved, Ok(Solved { expires, id, difficulty: Difficulty::MIN }));

            let mut bytes = challenge.to_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            if let Ok(changed) = Challenge::from_bytes(&bytes) {
                let answer = Answer { challenge: &changed, nonce: solution(&challenge), circuit: &circuit };
                let error = secrets.verify(&answer, Difficulty::MIN, now).unwrap_err();
                prop_assert!(matches!(error, VerifyError::Foreign | VerifyError::Expired), "{error}");
            }
        }
    }
}
