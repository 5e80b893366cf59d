//! A directory claimed for a moment, so that two daemons which start at once do not undo each other's work in it.

use std::{
    fs::{File, TryLockError},
    io,
    path::Path,
};

/// Claims `directory` until the returned file is dropped or the process ends, however it ends.
///
/// # Errors
/// `WouldBlock` while somebody else holds the claim, `NotADirectory`; else the system's.
pub fn claim(directory: &Path) -> io::Result<File> {
    let file = File::open(directory)?;
    if !file.metadata()?.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// The directory that `path` lies in; `.` for a bare name.
pub fn of(path: &Path) -> &Path {
    match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        Some(_) | None => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_holds_until_it_is_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let first = claim(directory.path()).unwrap();
        assert_eq!(claim(directory.path()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(first);
        claim(directory.path()).unwrap();
        assert_eq!(claim(&directory.path().join("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
