//! What clients bring to be served: challenges and nonces, as text.
//!
//! The first byte of an input tells what the rest is: `t` a text, `r` redemptions, anything else what a challenge, its circuit
//! and changes to it are drawn from.

use std::{array, collections::HashSet, num::NonZeroUsize, sync::LazyLock};

use arbitrary::{Result, Unstructured};
use tunica_pow::{
    Answer, Challenge, Difficulty, Id, Nonce, RedeemError, Redeemed, SECRET_BYTES, Secrets, TEXT_CHARACTERS,
    TOKEN_BYTES, Terms, UnixSeconds, VerifyError, solve,
};

/// Unknown to whoever writes the inputs; the targets' own challenges are made with others.
const SERVER: [u8; SECRET_BYTES] = *b"no input is made with the secret";
const NOW: UnixSeconds = UnixSeconds(1_000_000);

/// Texts that are challenges and nonces, sound and damaged, and bytes to draw from.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for (bits, expires) in [(8, NOW.after(60)), (24, UnixSeconds::LAST), (16, UnixSeconds(1))] {
        let terms = Terms { difficulty: Difficulty::new(bits).unwrap(), expires, id: Id([bits; 16]) };
        let text = Secrets::new(&[1; SECRET_BYTES]).issue(&terms, b"circuit").to_string();
        seeds.extend([format!("t{text}"), format!("t{text} {}", Nonce(u64::MAX)), format!("t{text}=")]);
    }
    seeds.push(format!("t{}", Nonce(0x0123_4567_89ab_cdef)));
    let mut seeds: Vec<Vec<u8>> = seeds.into_iter().map(String::into_bytes).collect();
    // The easiest, good until second 1, and then zeros: brought in time, to be taken.
    seeds.push([&[0; 3][..], &[1], &[0; 80]].concat());
    for seed in 0..8u8 {
        let drawn = (0..160u8).map(|at| at.wrapping_mul(29).wrapping_add(seed.wrapping_mul(71)));
        seeds.push(drawn.clone().collect());
        seeds.push([b'r'].into_iter().chain(drawn).collect());
    }
    seeds
}

/// For all bytes, a text is read or refused and never taken as ours; what is ours is taken once, as it was issued, and not
/// otherwise; and nothing is redeemed twice.
pub fn check(bytes: &[u8]) {
    let mut rest = bytes;
    match super::take_byte(&mut rest) {
        b't' => a_text_is_read(&String::from_utf8_lossy(rest)),
        b'r' => nothing_is_redeemed_twice(rest),
        _ => {
            // Drawing ends early only where the bytes run out.
            let _ = what_is_issued_is_taken(&mut Unstructured::new(rest));
        }
    }
}

fn a_text_is_read(text: &str) {
    let mut words = text.split(' ');
    let (first, second) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    for word in [first, second] {
        match word.parse::<Nonce>() {
            Ok(nonce) => assert_eq!(nonce.to_string(), word),
            Err(error) => says_something(&error.to_string()),
        }
    }
    let challenge = match first.parse::<Challenge>() {
        Ok(challenge) => challenge,
        Err(error) => return says_something(&error.to_string()),
    };
    assert_eq!(challenge.to_string(), first, "a second text");
    assert_eq!(first.len(), TEXT_CHARACTERS);
    assert_eq!(Challenge::from_bytes(&challenge.to_bytes()), Ok(challenge));
    let nonce = second.parse().unwrap_or(Nonce(0));
    for circuit in [&b""[..], b"circuit", second.as_bytes()] {
        let answer = Answer { challenge: &challenge, nonce, circuit };
        let error = Secrets::new(&SERVER).verify(&answer, Difficulty::MIN, NOW).unwrap_err();
        let is_late = challenge.expires() <= NOW;
        assert_eq!(error, if is_late { VerifyError::Expired } else { VerifyError::Foreign });
    }
}

/// A message must have no control characters, whatever stands in the input.
fn says_something(message: &str) {
    assert!(!message.is_empty() && !message.chars().any(char::is_control), "{message:?}");
}

fn what_is_issued_is_taken(drawn: &mut Unstructured<'_>) -> Result<()> {
    // Hard ones are not solved here: the first objection to a wrong nonce is as good a sign that all before it held.
    let difficulty = Difficulty::new(drawn.int_in_range(8..=24)?).unwrap();
    let at_least = Difficulty::new(drawn.int_in_range(8..=24)?).unwrap();
    let (expires, now) = (UnixSeconds(drawn.arbitrary()?), UnixSeconds(drawn.arbitrary()?));
    let (id, nonce) = (Id(drawn.arbitrary()?), Nonce(drawn.arbitrary()?));
    let rotations = drawn.int_in_range(0..=2)?;
    let (flipped, other) = (drawn.choose_index(TOKEN_BYTES * 8)?, drawn.arbitrary::<Vec<u8>>()?);
    let circuit = drawn.bytes(drawn.len())?;

    let mut secrets = Secrets::new(&SERVER);
    let challenge = secrets.issue(&Terms { difficulty, expires, id }, circuit);
    for rotation in 0..rotations {
        secrets.rotate(&[rotation; SECRET_BYTES]);
    }
    let read: Challenge = challenge.to_string().parse().unwrap();
    assert_eq!(read, challenge, "the text says something else");
    assert_eq!((read.difficulty(), read.expires()), (difficulty, expires.min(UnixSeconds::LAST)));

    let nonce = match difficulty == Difficulty::MIN {
        true => solve(&read, nonce, NonZeroUsize::MIN, &|_| false).nonce.unwrap(),
        false => nonce,
    };
    let objection = if read.expires() <= now {
        Some(VerifyError::Expired)
    } else if rotations > 1 {
        Some(VerifyError::Foreign)
    } else if difficulty < at_least {
        Some(VerifyError::TooEasy { asked: difficulty, least: at_least })
    } else if !read.is_solved_by(nonce) {
        Some(VerifyError::Unsolved { found: read.zero_bits(nonce), asked: difficulty })
    } else {
        None
    };
    let result = secrets.verify(&Answer { challenge: &read, nonce, circuit }, at_least, now);
    assert_eq!(result.as_ref().err().copied(), objection);
    if let Ok(solved) = result {
        let mut redeemed = Redeemed::new(NonZeroUsize::MIN);
        assert_eq!(redeemed.redeem(solved, now), Ok(difficulty));
        let again = secrets.verify(&Answer { challenge: &read, nonce, circuit }, at_least, now).unwrap();
        assert_eq!(redeemed.redeem(again, now), Err(RedeemError::Replayed));
    }

    let is_refused = |challenge: &Challenge, circuit: &[u8]| {
        let error = secrets.verify(&Answer { challenge, nonce, circuit }, Difficulty::MIN, now).unwrap_err();
        let is_late = challenge.expires() <= now;
        assert_eq!(error, if is_late { VerifyError::Expired } else { VerifyError::Foreign });
    };
    if other != circuit {
        is_refused(&read, &other);
    }
    let mut bytes = read.to_bytes();
    *bytes.get_mut(flipped / 8).unwrap() ^= 1 << (flipped % 8);
    if let Ok(changed) = Challenge::from_bytes(&bytes) {
        is_refused(&changed, circuit);
    }
    Ok(())
}

/// Solved once, because solving would take most of a search's time: by expiry and then by id, few of each so that they meet.
static CHALLENGES: LazyLock<[[(Challenge, Nonce); 4]; 32]> = LazyLock::new(|| {
    array::from_fn(|expires| {
        array::from_fn(|id| {
            let expires = UnixSeconds(expires as u64);
            let terms = Terms { difficulty: Difficulty::MIN, expires, id: Id([id as u8; 16]) };
            let challenge = Secrets::new(&SERVER).issue(&terms, b"circuit");
            let nonce = solve(&challenge, Nonce(0), NonZeroUsize::MIN, &|_| false).nonce.unwrap();
            (challenge, nonce)
        })
    })
});

/// Each step is three bytes: expiry, id, clock.
fn nothing_is_redeemed_twice(bytes: &[u8]) {
    let mut rest = bytes;
    let capacity = NonZeroUsize::MIN.saturating_add(usize::from(super::take_byte(&mut rest) % 8));
    let secrets = Secrets::new(&SERVER);
    let (mut redeemed, mut taken) = (Redeemed::new(capacity), HashSet::new());
    for [expires, id, now] in rest.as_chunks().0 {
        let (expires, id, now) = (expires % 32, id % 4, UnixSeconds(u64::from(now % 32)));
        let (challenge, nonce) = CHALLENGES.get(usize::from(expires)).unwrap().get(usize::from(id)).unwrap();
        // Verified before any clock stepped, so that redeeming alone stands against the replay.
        let answer = Answer { challenge, nonce: *nonce, circuit: b"circuit" };
        let Ok(solved) = secrets.verify(&answer, Difficulty::MIN, UnixSeconds(0)) else {
            assert_eq!(expires, 0);
            continue;
        };
        let is_late = challenge.is_expired(now);
        match redeemed.redeem(solved, now) {
            Ok(paid) => {
                assert_eq!(paid, Difficulty::MIN);
                assert!(!is_late, "taken after its time");
                assert!(taken.insert((expires, id)), "redeemed twice");
            }
            Err(RedeemError::Expired) => assert!(is_late),
            Err(RedeemError::Replayed) => assert!(taken.contains(&(expires, id)), "refused as known"),
            Err(RedeemError::Crowded) => {
                assert!(taken.iter().any(|(other, _)| *other >= expires), "nothing was forgotten");
            }
        }
        assert!(redeemed.len() <= capacity.get(), "it grew");
    }
}
