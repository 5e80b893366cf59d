//! The file that keeps the keys of tokens over restarts: `token.keys` beside the ledger, for root alone.
//!
//! Keys that cannot be kept are used all the same: tokens are worth little, and last no longer than this daemon then.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use thiserror::Error;
use tunica_core::{
    time::WallTime,
    token_keys::{KeyTextError, TokenKey, TokenKeys},
};

use crate::{directory, sys};

const MODE: u32 = 0o600;
/// Two lines of keys and a heading have less.
const MOST_BYTES: u64 = 4_096;

/// Why keys are not as they should be.
#[derive(Debug, Error)]
pub enum TokenFileError {
    /// The file cannot be read.
    #[error(
        "the keys of tokens in {path} cannot be read ({source}): tokens that were handed out are not taken any more"
    )]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It does not say what it should.
    #[error(
        "{path}: {source}: new keys take their place, and tokens that were handed out are not taken any more"
    )]
    Text {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        source: KeyTextError,
    },
    /// Others could read it.
    #[error(
        "{path} could be read by others (mode {mode:o}), who could make tokens: new keys take the place of those in it, and \
         tokens that were handed out are not taken any more"
    )]
    Open {
        /// Which file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It cannot be written.
    #[error(
        "the keys of tokens cannot be kept in {path} ({source}): after the next start of tunicad no token is taken that is made \
         now, and what the file said before, if it is there, counts again; see to the directory and its space: it is tried again \
         every minute"
    )]
    Write {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Neither can it be written, nor what it said before removed.
    #[error(
        "{path} still holds keys that were revoked: it can neither be written ({source}) nor removed ({remove}). Until the next \
         start of tunicad no token of theirs is taken; after it all of them are good again. See to the directory and its space, \
         or remove the file: it is tried again every minute"
    )]
    Stays {
        /// Which file.
        path: PathBuf,
        /// What the system said to the new keys.
        source: io::Error,
        /// What it said to the removal.
        remove: io::Error,
    },
}

impl TokenFileError {
    /// Whether the file does not say what is used, so that it must be written again.
    pub const fn is_unkept(&self) -> bool {
        match self {
            Self::Write { .. } | Self::Stays { .. } => true,
            Self::Read { .. } | Self::Text { .. } | Self::Open { .. } => false,
        }
    }
}

/// A key that nobody can guess.
///
/// # Errors
/// The system's, if the kernel has no randomness to give.
pub fn draw() -> io::Result<TokenKey> {
    sys::random_bytes().map(TokenKey)
}

/// Reads the keys; `None`: there is no file yet.
///
/// # Errors
/// [`TokenFileError::Read`], [`TokenFileError::Text`] or [`TokenFileError::Open`].
pub fn read(path: &Path) -> Result<Option<TokenKeys>, TokenFileError> {
    let cannot = |source| TokenFileError::Read { path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(cannot(error)),
    };
    let mode = file.metadata().map_err(cannot)?.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(TokenFileError::Open { path: path.to_owned(), mode });
    }
    let mut text = String::new();
    file.take(MOST_BYTES).read_to_string(&mut text).map_err(cannot)?;
    let keys = TokenKeys::read(&text);
    keys.map(Some).map_err(|source| TokenFileError::Text { path: path.to_owned(), source })
}

/// Writes the keys under another name and renames it, so that a half-written file never has the name.
///
/// # Errors
/// [`TokenFileError::Write`].
pub fn write(path: &Path, keys: &TokenKeys) -> Result<(), TokenFileError> {
    attempt(path, keys).map_err(|source| TokenFileError::Write { path: path.to_owned(), source })
}

/// The same for keys that are to be the only ones: if they cannot be written, those of the file are removed, so that no start
/// brings them back.
///
/// # Errors
/// [`TokenFileError::Write`]: there is no file any more. [`TokenFileError::Stays`]: there is, with the keys of before.
pub fn replace(path: &Path, keys: &TokenKeys) -> Result<(), TokenFileError> {
    let Err(source) = attempt(path, keys) else { return Ok(()) };
    let path = path.to_owned();
    let removed = match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) => File::open(directory::of(&path)).and_then(|directory| directory.sync_all()),
        Err(_) => Ok(()),
    };
    Err(match removed {
        Ok(()) => TokenFileError::Write { path, source },
        Err(remove) => TokenFileError::Stays { path, source, remove },
    })
}

fn attempt(path: &Path, keys: &TokenKeys) -> io::Result<()> {
    let unfinished = path.with_extension("keys.new");
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(&unfinished)?;
    file.write_all(keys.text().as_bytes())?;
    file.sync_all()?;
    fs::rename(&unfinished, path)?;
    File::open(directory::of(path))?.sync_all()
}

/// The keys of the file, or new ones, and what is amiss.
///
/// # Errors
/// The system's, if the kernel has no randomness to give: then there are no tokens.
pub fn open(path: &Path, now: WallTime) -> io::Result<(TokenKeys, Option<TokenFileError>)> {
    let found = match read(path) {
        Ok(Some(keys)) => return Ok((keys, None)),
        Ok(None) => None,
        Err(error) => Some(error),
    };
    let keys = TokenKeys::new(draw()?, now);
    Ok(match write(path, &keys) {
        Ok(()) => (keys, found),
        Err(error) => (keys, Some(error)),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const NOW: WallTime = WallTime(1_800_000_000);

    #[test]
    fn keys_outlive_their_daemon_and_are_for_root_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token.keys");
        // What a crash leaves.
        fs::write(folder.path().join("token.keys.new"), "half").unwrap();
        let (keys, amiss) = open(&path, NOW).unwrap();
        assert!(amiss.is_none());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        let (mut again, amiss) = open(&path, WallTime(0)).unwrap();
        assert!(amiss.is_none() && again == keys);
        again.turn(draw().unwrap(), NOW);
        write(&path, &again).unwrap();
        assert_eq!(read(&path).unwrap(), Some(again));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn keys_that_others_could_read_or_that_are_damaged_are_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token.keys");
        let (keys, _) = open(&path, NOW).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let (others, amiss) = open(&path, NOW).unwrap();
        assert!(
            others != keys && matches!(amiss, Some(TokenFileError::Open { mode: 0o640, .. })),
            "{amiss:?}"
        );
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        for text in ["", "current abc 1\n", "\u{0}"] {
            fs::write(&path, text).unwrap();
            let (_, amiss) = open(&path, NOW).unwrap();
            assert!(matches!(amiss, Some(TokenFileError::Text { .. })), "{amiss:?}");
            assert!(read(&path).unwrap().is_some());
        }
        fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(matches!(open(&path, NOW).unwrap().1, Some(TokenFileError::Read { .. })));
    }

    #[test]
    fn keys_that_cannot_be_kept_are_used_and_said_to_be_lost() {
        let folder = tempfile::tempdir().unwrap();
        let (_, amiss) = open(&folder.path().join("none/token.keys"), NOW).unwrap();
        let amiss = amiss.unwrap();
        assert!(matches!(amiss, TokenFileError::Write { .. }) && amiss.is_unkept(), "{amiss}");
        assert!(amiss.to_string().contains("after the next start"));
    }

    #[test]
    fn keys_that_were_revoked_are_gone_or_said_to_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token.keys");
        let (mut keys, _) = open(&path, NOW).unwrap();
        keys.revoke_all(draw().unwrap(), NOW);
        replace(&path, &keys).unwrap();
        assert_eq!(read(&path).unwrap(), Some(keys.clone()));
        // Where nothing new can be written: a directory has the name of what is unfinished.
        let unfinished = folder.path().join("token.keys.new");
        fs::create_dir(&unfinished).unwrap();
        keys.revoke_all(draw().unwrap(), NOW);
        let amiss = replace(&path, &keys).unwrap_err();
        assert!(matches!(amiss, TokenFileError::Write { .. }) && amiss.is_unkept(), "{amiss}");
        assert_eq!(read(&path).unwrap(), None, "no start brings the old ones back");
        // Where nothing can be removed either: a directory has the file's own name.
        fs::create_dir(&path).unwrap();
        let amiss = replace(&path, &keys).unwrap_err();
        assert!(matches!(amiss, TokenFileError::Stays { .. }) && amiss.is_unkept(), "{amiss}");
        let text = amiss.to_string();
        assert!(text.contains(&path.display().to_string()) && text.contains("good again"), "{text}");
        fs::remove_dir(&path).unwrap();
        fs::remove_dir(&unfinished).unwrap();
        replace(&path, &keys).unwrap();
        assert_eq!(read(&path).unwrap(), Some(keys));
    }
}
