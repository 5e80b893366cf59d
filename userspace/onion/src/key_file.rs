//! The secret identity key of an onion service as C tor writes it: `hs_ed25519_secret_key`.
//!
//! Source: `crypto_write_tagged_contents_to_file` and `ed25519_seckey_write_to_file` in tor's `src/lib/crypt_ops/`: a tag of
//! 32 bytes, and the expanded key of RFC 8032 section 5.1.5, of which there is no way back to a seed.

use std::fmt;

use thiserror::Error;

/// Length of the file, bytes.
pub const FILE_BYTES: usize = TAG_BYTES + KEY_BYTES;

const TAG_BYTES: usize = 32;
const KEY_BYTES: usize = 64;
const SECRET: &[u8; TAG_BYTES] = b"== ed25519v1-secret: type0 ==\0\0\0";
const PUBLIC: &[u8] = b"== ed25519v1-public: ";

/// An expanded Ed25519 secret key: the scalar, and what nonces are made of. `Debug` prints nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub struct ExpandedKey([u8; KEY_BYTES]);

/// Why a file is no such key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum KeyFileError {
    /// It is the other half.
    #[error("this is a public key; name the file hs_ed25519_secret_key beside it")]
    Public,
    /// It begins otherwise.
    #[error(
        "it does not begin with `== ed25519v1-secret: type0 ==`, so it is no secret key that C tor wrote; name the file \
         hs_ed25519_secret_key in the service's HiddenServiceDir"
    )]
    Tag,
    /// It is cut off, or something was appended.
    #[error(
        "it has {found} bytes and must have {FILE_BYTES}; copy it once more from the service's HiddenServiceDir"
    )]
    Length {
        /// Bytes that were found.
        found: usize,
    },
    /// The scalar's fixed bits are not as RFC 8032 section 5.1.5 sets them.
    #[error("byte {byte} is none that an Ed25519 key can have, so the file is damaged; copy it once more")]
    Scalar {
        /// Counted from 0.
        byte: usize,
    },
}

impl ExpandedKey {
    /// Reads the whole file.
    ///
    /// # Errors
    /// [`KeyFileError`].
    pub fn read(file: &[u8]) -> Result<Self, KeyFileError> {
        if file.starts_with(PUBLIC) {
            return Err(KeyFileError::Public);
        }
        let key = file.strip_prefix(SECRET).ok_or(KeyFileError::Tag)?;
        let key: [u8; KEY_BYTES] = key.try_into().map_err(|_| KeyFileError::Length { found: file.len() })?;
        let [first, ..] = key;
        if first & 0b0000_0111 != 0 {
            return Err(KeyFileError::Scalar { byte: TAG_BYTES });
        }
        if key.get(31).is_none_or(|last| last & 0b1100_0000 != 0b0100_0000) {
            return Err(KeyFileError::Scalar { byte: TAG_BYTES + 31 });
        }
        Ok(Self(key))
    }

    /// Its bytes: 32 of the scalar, 32 of the prefix.
    pub const fn bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

impl fmt::Debug for ExpandedKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("ExpandedKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with a key that is nobody's.
    fn file() -> Vec<u8> {
        let mut file = SECRET.to_vec();
        file.extend((0..64).map(|byte| byte * 3));
        file[TAG_BYTES] = 0b1111_1000;
        file[TAG_BYTES + 31] = 0b0100_0001;
        file
    }

    #[test]
    fn files_are_read_or_refused() {
        let with = |byte: usize, value: u8| {
            let mut file = file();
            file[byte] = value;
            file
        };
        let mut public = b"== ed25519v1-public: type0 ==\0\0\0".to_vec();
        public.extend([7; 32]);
        let rows = [
            (Vec::new(), Err(KeyFileError::Tag)),
            (b"-----BEGIN OPENSSH PRIVATE KEY-----".to_vec(), Err(KeyFileError::Tag)),
            (public, Err(KeyFileError::Public)),
            (file()[..95].to_vec(), Err(KeyFileError::Length { found: 95 })),
            ([file(), vec![b'\n']].concat(), Err(KeyFileError::Length { found: 97 })),
            (with(31, 1), Err(KeyFileError::Tag)),
            (with(32, 0b1111_1001), Err(KeyFileError::Scalar { byte: 32 })),
            (with(63, 0b1100_0001), Err(KeyFileError::Scalar { byte: 63 })),
            (with(63, 0b0000_0001), Err(KeyFileError::Scalar { byte: 63 })),
            (file(), Ok(file()[TAG_BYTES..].to_vec())),
        ];
        for (number, (file, expected)) in rows.into_iter().enumerate() {
            assert_eq!(ExpandedKey::read(&file).map(|key| key.bytes().to_vec()), expected, "row {number}");
        }
        assert_eq!(format!("{:?}", ExpandedKey::read(&file())), "Ok(ExpandedKey(..))");
    }
}
