//! The puzzle that a client solves before it is served: challenges, their verifier, their memory of replays, and a solver.
//!
//! A server makes a [`Challenge`] with its [`Secrets`] and keeps nothing of it. A client finds a [`Nonce`] with [`solve`].
//! The server verifies both ([`Secrets::verify`]), which gives a [`Solved`] that no other code can make, and redeems that
//! once ([`Redeemed::redeem`]). What the bytes are stands in `docs/reference/pow.md`, with test vectors.
//!
//! ```
//! use std::num::NonZeroUsize;
//! use tunica_pow::{Answer, Difficulty, Id, Nonce, RedeemError, Redeemed, Secrets, Terms, UnixSeconds, solve};
//!
//! // On the server. Secret and id are random bytes of the caller's.
//! let (secrets, mut redeemed) = (Secrets::new(&[7; 32]), Redeemed::new(NonZeroUsize::MIN));
//! let now = UnixSeconds(1_800_000_000);
//! let terms = Terms { difficulty: Difficulty::LIGHT, expires: now.after(120), id: Id([1; 16]) };
//! let challenge = secrets.issue(&terms, b"circuit 23");
//!
//! // On the client, which has the text alone.
//! let received = challenge.to_string().parse()?;
//! let nonce = solve(&received, Nonce(0), NonZeroUsize::MIN, &|_| false).nonce.ok_or("stopped")?;
//!
//! // On the server again.
//! let answer = Answer { challenge: &received, nonce, circuit: b"circuit 23" };
//! let solved = secrets.verify(&answer, Difficulty::MIN, now)?;
//! assert_eq!(redeemed.redeem(solved, now), Ok(Difficulty::LIGHT));
//! let solved = secrets.verify(&answer, Difficulty::MIN, now)?;
//! assert_eq!(redeemed.redeem(solved, now), Err(RedeemError::Replayed));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Deliberately absent: sockets, clocks and randomness. Time, secrets, ids and the first nonce are arguments. Threads are
//! started by [`solve`] alone, and end before it returns.
#![forbid(unsafe_code)]

mod captcha;
mod challenge;
mod difficulty;
mod nonce;
mod redeemed;
mod secrets;
mod solver;
mod text;
mod token;

pub use captcha::{CHARACTERS, Captcha, CaptchaError, LETTERS};
pub use challenge::{Challenge, DecodeError, ID_BYTES, Id, TEXT_CHARACTERS, TOKEN_BYTES, UnixSeconds};
pub use difficulty::{Difficulty, DifficultyError};
pub use nonce::{Nonce, NonceError};
pub use redeemed::{RedeemError, Redeemed};
pub use secrets::{Answer, Purpose, SECRET_BYTES, Secrets, Solved, Terms, VerifyError};
pub use solver::{Search, solve};
pub use token::{Genuine, Token, TokenDecodeError, TokenKeys, TokenVerifyError};
