//! What clients show to go past the queue, and what the daemon reads of its own file of keys.
//!
//! The first byte of an input tells what the rest is: `t` a token's text, `k` a file of keys, anything else what a token and
//! changes to it are drawn from.

use arbitrary::{Result, Unstructured};
use tunica_core::{
    time::WallTime,
    token_keys::{self, TokenKey},
};
use tunica_pow::{
    Challenge, Genuine, Id, SECRET_BYTES, TEXT_CHARACTERS, TOKEN_BYTES, Token, TokenKeys, TokenVerifyError,
    UnixSeconds,
};

/// Unknown to whoever writes the inputs; the seeds' own tokens are made with another.
const SERVER: [u8; SECRET_BYTES] = *b"no input is made with this key..";
const NOW: UnixSeconds = UnixSeconds(1_000_000);

/// Tokens and files, sound and damaged, and bytes to draw from.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for expires in [NOW.after(60), UnixSeconds::LAST, UnixSeconds(1)] {
        let text = TokenKeys::new(&[1; SECRET_BYTES], None).issue(expires, Id([7; 16])).to_string();
        seeds.extend([format!("t{text}"), format!("t{text}=")]);
    }
    let mut keys = token_keys::TokenKeys::new(TokenKey([1; SECRET_BYTES]), WallTime(1));
    seeds.push(format!("k{}", keys.text()));
    keys.turn(TokenKey([2; SECRET_BYTES]), WallTime(2));
    seeds.extend([format!("k{}", keys.text()), format!("k{}current", keys.text())]);
    let mut seeds: Vec<Vec<u8>> = seeds.into_iter().map(String::into_bytes).collect();
    for seed in 0..8u8 {
        seeds.push((0..200u8).map(|at| at.wrapping_mul(29).wrapping_add(seed.wrapping_mul(71))).collect());
    }
    seeds
}

/// For all bytes, a text is read or refused and never taken as ours; what is ours is taken as it was issued, while it lives, and
/// not otherwise; and keys are read as they were written.
pub fn check(bytes: &[u8]) {
    let mut rest = bytes;
    match super::take_byte(&mut rest) {
        b't' => a_text_is_read(&String::from_utf8_lossy(rest)),
        b'k' => keys_are_read(&String::from_utf8_lossy(rest)),
        _ => {
            // Drawing ends early only where the bytes run out.
            let _ = what_is_issued_is_taken(&mut Unstructured::new(rest));
        }
    }
}

/// A message must have no control characters, whatever stands in the input.
fn says_something(message: &str) {
    assert!(!message.is_empty() && !message.chars().any(char::is_control), "{message:?}");
}

fn a_text_is_read(text: &str) {
    let token = match text.parse::<Token>() {
        Ok(token) => token,
        Err(error) => return says_something(&error.to_string()),
    };
    assert_eq!(token.to_string(), text, "a second text");
    assert_eq!(text.len(), TEXT_CHARACTERS);
    assert_eq!(Token::from_bytes(&token.to_bytes()), Ok(token));
    assert!(text.parse::<Challenge>().is_err(), "a challenge as well");
    let error = TokenKeys::new(&SERVER, None).verify(&token, NOW).unwrap_err();
    let is_late = token.expires() <= NOW;
    assert_eq!(error, if is_late { TokenVerifyError::Expired } else { TokenVerifyError::Forged });
    assert!(!format!("{token:?}").contains(text));
}

fn keys_are_read(text: &str) {
    match token_keys::TokenKeys::read(text) {
        Ok(keys) => {
            assert_eq!(token_keys::TokenKeys::read(&keys.text()), Ok(keys.clone()));
            assert!(keys.text().len() < 4_096, "more than the daemon reads");
        }
        Err(error) => says_something(&error.to_string()),
    }
}

fn what_is_issued_is_taken(drawn: &mut Unstructured<'_>) -> Result<()> {
    let (expires, now) = (UnixSeconds(drawn.arbitrary()?), UnixSeconds(drawn.arbitrary()?));
    let (id, until) = (Id(drawn.arbitrary()?), UnixSeconds(drawn.arbitrary()?));
    let (is_turned, flipped) = (drawn.arbitrary()?, drawn.choose_index(TOKEN_BYTES * 8)?);
    let token = TokenKeys::new(&SERVER, None).issue(expires, id);
    let read: Token = token.to_string().parse().unwrap();
    assert_eq!(read, token, "the text says something else");
    let expires = expires.min(UnixSeconds::LAST);
    let keys = match is_turned {
        true => TokenKeys::new(&[1; SECRET_BYTES], Some((&SERVER, until))),
        false => TokenKeys::new(&SERVER, None),
    };
    let expected = if expires <= now {
        Err(TokenVerifyError::Expired)
    } else if is_turned && until <= now {
        Err(TokenVerifyError::Forged)
    } else {
        Ok(Genuine { id, expires })
    };
    assert_eq!(keys.verify(&read, now), expected);
    let mut bytes = read.to_bytes();
    *bytes.get_mut(flipped / 8).unwrap() ^= 1 << (flipped % 8);
    if let Ok(changed) = Token::from_bytes(&bytes) {
        assert!(keys.verify(&changed, now).is_err(), "a changed bit");
    }
    Ok(())
}
