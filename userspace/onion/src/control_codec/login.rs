//! What a login needs: the methods that tor takes, and the proof that both sides know the cookie.

use std::fmt;

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use thiserror::Error;

use super::{
    Expected, Message, ParseError,
    words::{Words, unquote},
};
use crate::name::from_hex;

/// Source: control-spec, "AUTHCHALLENGE".
const SERVER_KEY: &[u8] = b"Tor safe cookie authentication server-to-controller hash";
const CLIENT_KEY: &[u8] = b"Tor safe cookie authentication controller-to-server hash";

/// How tor lets a controller in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthMethod {
    /// Without a proof.
    Null,
    /// By a password.
    HashedPassword,
    /// By showing the cookie.
    Cookie,
    /// By proving to know the cookie, after tor has proved it.
    SafeCookie,
}

/// Tor's answer to `PROTOCOLINFO`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProtocolInfo {
    /// Methods that tor takes. Those that are unknown here are left out.
    pub methods: Vec<AuthMethod>,
    /// The cookie's file, as bytes of a path, if tor has a cookie.
    pub cookie_file: Option<Vec<u8>>,
    /// Tor's version, such as `0.4.9.11`.
    pub version: Option<String>,
}

/// Tor's answer to `AUTHCHALLENGE SAFECOOKIE`. `Debug` is scrubbed.
#[derive(Clone, PartialEq, Eq)]
pub struct AuthChallenge {
    server_hash: [u8; 32],
    server_nonce: [u8; 32],
}

/// The content of tor's cookie file. `Debug` is scrubbed.
#[derive(Clone, PartialEq, Eq)]
pub struct Cookie([u8; 32]);

/// A cookie file that holds something else than 32 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "the file holds {0} bytes, and a cookie of tor's has 32; it is not sent; is it tor's `CookieAuthFile`?"
)]
pub struct NotACookie(pub usize);

/// Who answered does not know the cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "what answers on the control port does not know the cookie, so it is not the tor whose cookie this is"
)]
pub struct ForgedServer;

impl ProtocolInfo {
    /// Reads a reply.
    ///
    /// # Errors
    /// When it does not say how to log in.
    pub fn parse(message: &Message) -> Result<Self, ParseError> {
        let mut info = Self { methods: Vec::new(), cookie_file: None, version: None };
        let mut names = None;
        for (line, number) in message.lines.iter().zip(1..) {
            let words = Words::of(number, &line.text)?;
            match words.placed.first() {
                Some(&"AUTH") => {
                    names = words.get("METHODS");
                    let unquoted = |text| unquote(text).ok_or_else(|| words.lacks(Expected::Quote));
                    info.cookie_file = words.get("COOKIEFILE").map(unquoted).transpose()?;
                }
                Some(&"VERSION") => {
                    let version = words.get("Tor").and_then(unquote);
                    info.version = version.and_then(|version| String::from_utf8(version).ok());
                }
                Some(_) | None => {}
            }
        }
        let names = names.ok_or(ParseError { line: 1, expected: Expected::AuthMethods })?;
        info.methods = names.split(',').filter_map(AuthMethod::of).collect();
        Ok(info)
    }
}

impl AuthMethod {
    fn of(name: &str) -> Option<Self> {
        Some(match name {
            "NULL" => Self::Null,
            "HASHEDPASSWORD" => Self::HashedPassword,
            "COOKIE" => Self::Cookie,
            "SAFECOOKIE" => Self::SafeCookie,
            _ => return None,
        })
    }
}

impl AuthChallenge {
    /// Reads a reply.
    ///
    /// # Errors
    /// When it does not have both values.
    pub fn parse(message: &Message) -> Result<Self, ParseError> {
        let text = message.lines.first().map_or("", |line| line.text.as_str());
        let words = Words::of(1, text)?;
        let bytes = |key| words.get(key).and_then(from_hex).ok_or_else(|| words.lacks(Expected::Challenge));
        Ok(Self { server_hash: bytes("SERVERHASH")?, server_nonce: bytes("SERVERNONCE")? })
    }
}

impl Cookie {
    /// The cookie that a file holds.
    ///
    /// # Errors
    /// When it has another length. Tor's specification forbids to send such a file's content: somebody may want to read
    /// a file of ours by calling it a cookie.
    pub fn new(content: &[u8]) -> Result<Self, NotACookie> {
        content.try_into().map(Self).map_err(|_| NotACookie(content.len()))
    }

    /// What to send after a challenge, as [`super::Authentication::SafeCookie`]. `nonce` is what was sent with
    /// `AUTHCHALLENGE`, fresh random bytes each time.
    ///
    /// # Errors
    /// When tor's side of the proof is wrong. It is compared in constant time, and nothing is computed that could be
    /// sent.
    pub fn answer(&self, nonce: &[u8; 32], challenge: &AuthChallenge) -> Result<[u8; 32], ForgedServer> {
        let server = self.proof(SERVER_KEY, nonce, challenge);
        server.verify_slice(&challenge.server_hash).map_err(|_| ForgedServer)?;
        Ok(self.proof(CLIENT_KEY, nonce, challenge).finalize().into_bytes().into())
    }

    pub(super) const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    fn proof(&self, key: &[u8], nonce: &[u8; 32], challenge: &AuthChallenge) -> Hmac<Sha256> {
        // Keys are shorter than a block of SHA-256, so this is the padding that HMAC does itself.
        let mut block = [0; 64];
        for (byte, part) in block.iter_mut().zip(key) {
            *byte = *part;
        }
        Hmac::new(&block.into()).chain_update(self.0).chain_update(nonce).chain_update(challenge.server_nonce)
    }
}

impl fmt::Debug for AuthChallenge {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("AuthChallenge(scrubbed)")
    }
}

impl fmt::Debug for Cookie {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Cookie(scrubbed)")
    }
}
