//! Vectors of others for the hash and the MAC, and ours as the reference page shows them.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper that fails is a test that fails"
)]

use std::{num::NonZeroUsize, str::FromStr};

use hmac::{KeyInit as _, Mac as _, SimpleHmac};
use sha3::{Digest as _, Sha3_256};
use tunica_pow::{
    Answer, Challenge, Difficulty, Id, Nonce, Secrets, Terms, Token, TokenKeys, UnixSeconds, solve,
};

const PAGE: &str = include_str!("../../../docs/reference/pow.md");
const TOKENS: &str = include_str!("../../../docs/reference/tokens.md");

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.chars().map(|digit| digit.to_digit(16).unwrap() as u8).collect();
    assert!(digits.len().is_multiple_of(2), "{hex}");
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// The rows of the table of a page whose headings are these: what stands in their cells, without the marks around code.
fn rows<const N: usize>(page: &'static str, headings: [&str; N]) -> Vec<[&'static str; N]> {
    let cells = |line: &'static str| -> Vec<&'static str> {
        let inner = line.strip_prefix("| ").and_then(|line| line.strip_suffix(" |"));
        inner.unwrap_or_default().split(" | ").map(|cell| cell.trim_matches('`')).collect()
    };
    let mut lines = page.lines().skip_while(|line| cells(line) != headings);
    assert!(lines.next().is_some() && lines.next().is_some(), "no table of {headings:?}");
    let table = lines.take_while(|line| line.starts_with('|'));
    table.map(|line| cells(line).try_into().unwrap_or_else(|_| panic!("{line}"))).collect()
}

fn number<T: FromStr>(cell: &str) -> T {
    cell.parse().unwrap_or_else(|_| panic!("{cell}"))
}

/// NIST's examples for FIPS 202 (the empty message) and of its validation programme (`abc`).
#[test]
fn the_hash_is_that_of_fips_202() {
    for (message, hash) in [
        ("", "a7ffc6f8bf1ed76651c14756a061d662f580ff4de43b49fa82d80a4b80f8434a"),
        ("abc", "3a985da74fe225b2045c172d6bd390bd855f086e3e9d525b46bfe24511431532"),
    ] {
        assert_eq!(Sha3_256::digest(message).as_slice(), bytes(hash), "{message}");
    }
}

/// NIST's example for HMAC-SHA3-256 with a key shorter than a block.
#[test]
fn the_mac_is_that_of_fips_198() {
    let key: Vec<u8> = (0..32).collect();
    let mac = SimpleHmac::<Sha3_256>::new_from_slice(&key).unwrap();
    let mac = mac.chain_update("Sample message for keylen<blocklen").finalize();
    let expected = "4fe8e202c4f058e8dddc23d8c34e467343e23555e24fc2f025d598f558f67205";
    assert_eq!(mac.as_bytes().as_slice(), bytes(expected));
}

#[test]
fn the_page_says_what_the_code_does() {
    let given = rows(PAGE, ["vector", "secret", "circuit", "difficulty", "expiry", "id"]);
    let made = rows(PAGE, ["vector", "challenge", "nonce", "hash"]);
    assert_eq!((given.len(), made.len()), (5, 5));
    for ([vector, secret, circuit, difficulty, expiry, id], [same, text, nonce, hash]) in
        given.into_iter().zip(made)
    {
        assert_eq!(vector, same);
        let secrets = Secrets::new(&bytes(secret).try_into().unwrap());
        let circuit = if circuit == "empty" { Vec::new() } else { bytes(circuit) };
        let terms = Terms {
            difficulty: number(difficulty),
            expires: UnixSeconds(number(expiry)),
            id: Id(bytes(id).try_into().unwrap()),
        };
        let challenge = secrets.issue(&terms, &circuit);
        assert_eq!(challenge.to_string(), text, "vector {vector}");
        let nonce: Nonce = number(nonce);
        let message = [challenge.to_bytes().as_slice(), &bytes(&nonce.to_string())].concat();
        assert_eq!(Sha3_256::digest(message).as_slice(), bytes(hash), "vector {vector}");
        let answer = Answer { challenge: &text.parse().unwrap(), nonce, circuit: &circuit };
        assert!(secrets.verify(&answer, Difficulty::MIN, UnixSeconds(0)).is_ok(), "vector {vector}");
        // The hardest takes seconds in a debug build, and shows nothing that the others do not.
        if terms.difficulty <= Difficulty::PAGE_MAX {
            let search = solve(&challenge, Nonce(0), NonZeroUsize::MIN, &|_| false);
            assert_eq!(search.nonce, Some(nonce), "vector {vector}");
        }
    }
}

#[test]
fn the_page_names_every_level() {
    let levels = rows(PAGE, ["difficulty", "hashes in the mean", "for"]);
    let named: Vec<(Difficulty, u64)> =
        levels.iter().map(|[bits, hashes, _]| (number(bits), number(&hashes.replace(' ', "")))).collect();
    let all = [
        Difficulty::LIGHT,
        Difficulty::MODERATE,
        Difficulty::PAGE_MAX,
        Difficulty::HEAVY,
        Difficulty::UNDER_ATTACK,
    ];
    assert_eq!(named, all.map(|level| (level, level.mean_attempts())));
    assert_eq!([Difficulty::MIN, Difficulty::MAX], [Difficulty::LIGHT, Difficulty::UNDER_ATTACK]);
}

#[test]
fn the_page_names_every_field() {
    let fields = rows(PAGE, ["bytes", "what", "how"]);
    let lengths = fields.iter().map(|[range, ..]| {
        let (first, last) = range.split_once('–').unwrap_or((range, range));
        number::<usize>(last) - number::<usize>(first) + 1
    });
    assert_eq!(lengths.collect::<Vec<_>>(), [1, 1, 6, 16, 24]);
    let challenge: Challenge = rows(PAGE, ["vector", "challenge", "nonce", "hash"])[1][1].parse().unwrap();
    assert_eq!(challenge.to_bytes().len(), 48);
}

#[test]
fn the_page_of_tokens_says_what_the_code_does() {
    let rows = rows(TOKENS, ["key", "expiry", "id", "token"]);
    assert_eq!(rows.len(), 3);
    for [key, expiry, id, text] in rows {
        let keys = TokenKeys::new(&bytes(key).try_into().unwrap(), None);
        let token = keys.issue(UnixSeconds(number(expiry)), Id(bytes(id).try_into().unwrap()));
        assert_eq!(token.to_string(), text);
        assert_eq!(text.parse(), Ok(token));
        let genuine = keys.verify(&text.parse::<Token>().unwrap(), UnixSeconds(0)).unwrap();
        assert_eq!(genuine.id.0.as_slice(), bytes(id));
    }
}
