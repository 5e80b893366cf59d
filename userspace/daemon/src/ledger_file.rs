//! The ledger in one file on this machine.
//!
//! The file holds what [`tunica_core::ledger::apply`] makes of the commands: [`LedgerFile::commit`] runs them through
//! that function itself, on the facts they name, and writes the rows that changed. A commit is on the disk when it
//! returns. If one fails, the next opens the file again and first makes it equal to the ledger in memory, so a full
//! disk costs the commits of that time and no restart.
//!
//! A new file appears under its name only when it is complete. Nothing here ever deletes or overwrites a ledger: what
//! cannot be read is renamed.
//!
//! Every page is checked against its checksum before a fact is read. A crash cannot make the check fail; decay of the
//! medium can, and then redb reports most faults but panics at some, which ends the daemon before it changes a fact.

#[cfg(test)]
mod files;
pub mod rows;
#[cfg(test)]
mod torn;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use redb::{Builder, Database, DatabaseError};
use thiserror::Error;
use tunica_core::{
    ledger::{self, Command, Ledger, Rejection},
    time::WallTime,
};

use crate::directory;
use rows::LoadError;

/// Number of the file's schema. It grows when an older daemon would misread the file.
pub const SCHEMA: u32 = 1;
/// Only the daemon's user may read who is banned.
const MODE: u32 = 0o600;
/// How much of the file is kept in memory. The facts themselves are in memory anyway.
const CACHE_BYTES: usize = 8 * 1024 * 1024;
/// How many damaged ledgers of one second can be set aside.
const MOST_ASIDE: u32 = 100;

/// The open file; the only writer.
#[derive(Debug)]
pub struct LedgerFile {
    path: PathBuf,
    /// Absent after a failed commit, until the next one opens the file again.
    database: Option<Database>,
}

/// A ledger that was opened.
#[derive(Debug)]
pub struct Opened {
    /// Where commits go.
    pub file: LedgerFile,
    /// Every fact of the file.
    pub ledger: Ledger,
    /// Whether there was no file.
    pub is_first: bool,
    /// Set if the file was unreadable and a fresh one took its place.
    pub damaged: Option<Damaged>,
}

/// What became of an unreadable file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damaged {
    /// Its name now.
    pub moved_to: PathBuf,
    /// What is wrong with it, in a few words and without an address.
    pub reason: String,
}

/// Why there is no ledger.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The directory is missing or closed to the daemon.
    #[error(
        "the ledger's directory {} cannot be used ({source}): bans and allow entries would not survive a restart; \
         make it with `install -d -m 0700 {}` for the daemon's user, or name another path under [ledger]",
        directory.display(), directory.display()
    )]
    Directory {
        /// The directory.
        directory: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Another process has it open.
    #[error(
        "another process has the ledger {} open: two daemons would overwrite each other's facts; stop the other \
         tunicad, or name another path under [ledger]",
        path.display()
    )]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// A later version wrote it.
    #[error(
        "the ledger {} has schema {found}, this tunicad knows {SCHEMA}: its facts would be misread, so it is left as \
         it is; install the tunicad that wrote it, or move the file away to start without its bans",
        path.display()
    )]
    NewerSchema {
        /// The file.
        path: PathBuf,
        /// The number in the file.
        found: u32,
    },
    /// The file cannot be reached; that says nothing about what it holds.
    #[error(
        "cannot {doing} the ledger {} ({source}): bans and allow entries would not survive a restart; see to its \
         owner, its permissions and the disk, then start again",
        path.display()
    )]
    Unreachable {
        /// What was tried.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel or the database said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Why commands are not durable.
#[derive(Debug, Error)]
pub enum CommitError {
    /// A command does not apply; nothing was written.
    #[error("the ledger refuses a command: {0}")]
    Rejected(#[source] Rejection),
    /// The file could not be written.
    #[error(
        "cannot write the ledger {} ({source}); see to the disk's free space and health, the next change tries again",
        path.display()
    )]
    Storage {
        /// The file.
        path: PathBuf,
        /// What the database said.
        source: Box<redb::Error>,
    },
    /// The file could not be read back after an earlier failure.
    #[error(
        "the ledger {} was written incompletely and cannot be read back ({reason}); \
         restart tunicad, which sets the file aside and starts a fresh one",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong, in a few words.
        reason: String,
    },
}

/// Why an existing file is not opened.
enum ReadError {
    Damaged(String),
    Open(OpenError),
}

impl LedgerFile {
    /// Opens the ledger at `path`, or makes one. A file that cannot be read is moved to
    /// `<path>.damaged-<now in seconds>`, and a fresh one takes its place.
    ///
    /// Blocks while the whole file is checked.
    ///
    /// # Errors
    /// [`OpenError`]; the file is then as it was.
    pub fn open(path: &Path, now: WallTime) -> Result<Opened, OpenError> {
        let directory = directory::of(path);
        let claim = directory::claim(directory).map_err(|source| {
            if source.kind() == io::ErrorKind::WouldBlock {
                OpenError::InUse { path: path.to_owned() }
            } else {
                OpenError::Directory { directory: directory.to_owned(), source }
            }
        })?;
        let is_there = path.try_exists().map_err(|source| cannot("look at", path, source))?;
        let damaged = if is_there {
            match read(path) {
                Ok((database, ledger)) => {
                    let file = Self { path: path.to_owned(), database: Some(database) };
                    return Ok(Opened { file, ledger, is_first: false, damaged: None });
                }
                Err(ReadError::Open(error)) => return Err(error),
                Err(ReadError::Damaged(reason)) => {
                    let moved_to = set_aside(path, now)?;
                    tracing::error!(
                        message_id = "ledger_damaged",
                        moved_to = %moved_to.display(),
                        reason,
                        "the ledger could not be read and was set aside; a fresh one takes its place"
                    );
                    Some(Damaged { moved_to, reason })
                }
            }
        } else {
            None
        };
        let database = create(path)?;
        // The names are on the disk before anything relies on them.
        claim.sync_all().map_err(|source| cannot("make durable the name of", path, source))?;
        let file = Self { path: path.to_owned(), database: Some(database) };
        Ok(Opened { file, ledger: Ledger::default(), is_first: !is_there, damaged })
    }

    /// Makes `commands` durable, all or none. `ledger` is the ledger in memory, to which they were not yet applied.
    ///
    /// Blocks until the disk has them.
    ///
    /// # Errors
    /// [`CommitError`]; the commands must then not be applied to the ledger in memory.
    pub fn commit(&mut self, ledger: &Ledger, commands: &[Command]) -> Result<(), CommitError> {
        if commands.is_empty() {
            return Ok(());
        }
        let before = part_named_by(commands, ledger);
        let mut after = before.clone();
        for command in commands {
            ledger::apply(&mut after, command).map_err(CommitError::Rejected)?;
        }
        let database = match self.database.take() {
            Some(database) => database,
            None => self.reopen(ledger)?,
        };
        rows::write_difference(&database, &before, &after).map_err(|source| self.storage(source))?;
        self.database = Some(database);
        Ok(())
    }

    /// Opens the file after a commit failed, and makes it say what `ledger` says: that commit may be in it or not.
    fn reopen(&self, ledger: &Ledger) -> Result<Database, CommitError> {
        let mut database = builder().open(&self.path).map_err(|error| self.storage(error.into()))?;
        let found = check(&mut database).map_err(|error| match error {
            LoadError::Storage(source) => self.storage(source),
            LoadError::Damaged(reason) => CommitError::Damaged { path: self.path.clone(), reason },
            LoadError::NewerSchema(found) => {
                CommitError::Damaged { path: self.path.clone(), reason: format!("schema {found}") }
            }
        })?;
        rows::write_difference(&database, &found, ledger).map_err(|source| self.storage(source))?;
        Ok(database)
    }

    fn storage(&self, source: redb::Error) -> CommitError {
        CommitError::Storage { path: self.path.clone(), source: Box::new(source) }
    }
}

/// The facts that `commands` name: all that [`ledger::apply`] looks at for them.
fn part_named_by(commands: &[Command], ledger: &Ledger) -> Ledger {
    fn copy<K: Ord + Copy, V: Clone>(key: K, from: &BTreeMap<K, V>, to: &mut BTreeMap<K, V>) {
        if let Some(fact) = from.get(&key) {
            to.insert(key, fact.clone());
        }
    }
    let mut part = Ledger {
        bypass: ledger.bypass.clone(),
        attack_mode: ledger.attack_mode,
        level_pin: ledger.level_pin,
        trial: ledger.trial.clone(),
        syncookies_before: ledger.syncookies_before,
        next_id: ledger.next_id,
        ..Ledger::default()
    };
    for command in commands {
        match command {
            Command::SetBan { source, .. } | Command::LiftBan { source } => {
                copy(*source, &ledger.bans, &mut part.bans);
            }
            Command::SetNetBan { prefix, .. } | Command::LiftNetBan { prefix } => {
                copy(*prefix, &ledger.nets, &mut part.nets);
            }
            Command::SetAllow { prefix, .. } | Command::LiftAllow { prefix } => {
                copy(*prefix, &ledger.allows, &mut part.allows);
            }
            Command::SetMemory { source, .. } | Command::ForgetMemory { source } => {
                copy(*source, &ledger.memories, &mut part.memories);
            }
            Command::SetBypass { .. } | Command::ClearBypass => {}
            Command::SetAttackMode { .. } | Command::ClearAttackMode => {}
            Command::SetLevelPin { .. } | Command::ClearLevelPin => {}
            Command::SetTrial { .. } | Command::UndoTrial | Command::ClearTrial => {}
            // Whether an older one goes depends on all of them.
            Command::SetIncident { .. } => part.incidents.clone_from(&ledger.incidents),
            Command::SetSyncookies { .. } | Command::ClearSyncookies => {}
        }
    }
    part
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

/// Checks every page against its checksum, then reads every fact.
fn check(database: &mut Database) -> Result<Ledger, LoadError> {
    // `false` means that only the list of free pages was wrong, and is right now.
    database.check_integrity()?;
    rows::load(database)
}

/// Opens the file at `path` and reads every fact.
fn read(path: &Path) -> Result<(Database, Ledger), ReadError> {
    let in_use = || ReadError::Open(OpenError::InUse { path: path.to_owned() });
    let refused = |error: LoadError| match error {
        LoadError::Damaged(reason) => ReadError::Damaged(reason),
        LoadError::NewerSchema(found) => {
            ReadError::Open(OpenError::NewerSchema { path: path.to_owned(), found })
        }
        LoadError::Storage(source) => ReadError::Open(cannot("read", path, source)),
    };
    let file = File::open(path).map_err(|source| ReadError::Open(cannot("open", path, source)))?;
    let metadata = file.metadata().map_err(|source| ReadError::Open(cannot("look at", path, source)))?;
    if metadata.len() == 0 {
        return Err(ReadError::Damaged("the file is empty".to_owned()));
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        fs::set_permissions(path, fs::Permissions::from_mode(MODE))
            .map_err(|source| ReadError::Open(cannot("close to other users", path, source)))?;
    }
    drop(file);
    // Opening for writing changes the file. What a later version closed in good order is not to be changed at all.
    match builder().open_read_only(path) {
        Ok(database) => rows::check_schema(&database).map_err(refused)?,
        // It was not closed in good order.
        Err(DatabaseError::RepairAborted) => {}
        Err(DatabaseError::DatabaseAlreadyOpen) => return Err(in_use()),
        Err(error) => return Err(refused(error.into())),
    }
    let mut database = match builder().open(path) {
        Ok(database) => database,
        Err(DatabaseError::DatabaseAlreadyOpen) => return Err(in_use()),
        Err(error) => return Err(refused(error.into())),
    };
    let ledger = check(&mut database).map_err(refused)?;
    Ok((database, ledger))
}

/// Makes an empty ledger under another name and renames it, so that a half-made one never has the ledger's name.
fn create(path: &Path) -> Result<Database, OpenError> {
    let unfinished = with_suffix(path, ".new");
    if let Err(error) = fs::remove_file(&unfinished)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(cannot("replace the unfinished", path, error));
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(MODE)
        .open(&unfinished)
        .map_err(|source| OpenError::Directory { directory: directory::of(path).to_owned(), source })?;
    let database = builder().create_file(file).map_err(|source| cannot("create", path, source))?;
    rows::initialise(&database).map_err(|source| cannot("create", path, source))?;
    fs::rename(&unfinished, path).map_err(|source| cannot("create", path, source))?;
    Ok(database)
}

/// Gives the file a name that no other file has. The caller holds the claim on the directory.
fn set_aside(path: &Path, now: WallTime) -> Result<PathBuf, OpenError> {
    let first = format!(".damaged-{}", now.0);
    let others = (2..=MOST_ASIDE).map(|number| format!(".damaged-{}-{number}", now.0));
    for suffix in std::iter::once(first).chain(others) {
        let aside = with_suffix(path, &suffix);
        if fs::symlink_metadata(&aside).is_ok() {
            continue;
        }
        return match fs::rename(path, &aside) {
            Ok(()) => Ok(aside),
            Err(source) => Err(cannot("set aside the damaged", path, source)),
        };
    }
    Err(cannot("set aside the damaged", path, io::Error::from(io::ErrorKind::AlreadyExists)))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

fn cannot(
    doing: &'static str,
    path: &Path,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> OpenError {
    OpenError::Unreachable { doing, path: path.to_owned(), source: source.into() }
}
