//! Which tor process was spoken to last, kept for the next daemon: `tor.process` beside the ledger.
//!
//! What cannot be kept is known to this daemon all the same; the next one takes tor for another process then.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use thiserror::Error;
use tunica_core::{
    id::TorGeneration,
    tor_process::{KnownTor, KnownTorTextError, Sighting},
};

use super::process::ticks_a_second;

/// A number of this start of the host (Linux, drivers/char/random.c, `proc_do_uuid`).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const MODE: u32 = 0o600;
/// A record has less.
const MOST_BYTES: u64 = 4_096;

/// What is known of the tor that was spoken to last, by this daemon or one before.
#[derive(Debug)]
pub(super) struct Memory {
    /// Where it is kept.
    path: Option<PathBuf>,
    known: Option<KnownTor>,
    /// Whether the file was read, or need not be.
    is_open: bool,
    /// Whether the file does not say what is known.
    is_unkept: bool,
    /// What was said last of what is amiss.
    amiss: Option<String>,
}

/// Why what is known of tor's process is not kept.
#[derive(Debug, Error)]
enum MemoryError {
    /// It cannot be told which start of the host this is.
    #[error(
        "{BOOT_ID} cannot be read ({0}): the next tunicad takes tor for another process, so bans of its circuits and their open \
         streams end then; let the daemon read it"
    )]
    Boot(#[source] io::Error),
    /// The file cannot be read.
    #[error(
        "{} cannot be read ({source}): tor is taken for another process than the one before, so bans of its circuits and their \
         open streams end; it is written anew",
        path.display()
    )]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It does not say what it should.
    #[error(
        "{}: {source}: tor is taken for another process than the one before, so bans of its circuits and their open streams end; \
         it is written anew",
        path.display()
    )]
    Text {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: KnownTorTextError,
    },
    /// It cannot be written.
    #[error(
        "{} cannot be written ({source}): the next tunicad takes tor for another process, so bans of its circuits and their open \
         streams end then; see to the directory and its space: it is tried again with every question to tor",
        path.display()
    )]
    Write {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl Memory {
    /// Nothing is known yet. Without `path` nothing is kept either.
    pub(super) const fn new(path: Option<PathBuf>) -> Self {
        Self { path, known: None, is_open: false, is_unkept: false, amiss: None }
    }

    /// Tor was asked over a new connection. Returns its number.
    pub(super) fn meet(&mut self, seen: Sighting) -> TorGeneration {
        if !std::mem::replace(&mut self.is_open, true) {
            let read = self.path.as_deref().map_or(Ok(None), read);
            self.known = read.unwrap_or_else(|amiss| {
                self.tell(&amiss);
                None
            });
        }
        let known = KnownTor::meet(self.known.as_ref(), seen, ticks_a_second());
        self.known = Some(known);
        self.keep();
        known.generation()
    }

    /// Tor was asked once more over the same connection.
    pub(super) fn meet_again(&mut self, seen: Sighting) {
        let is_out_of_date = self.known.as_mut().is_some_and(|known| known.meet_again(seen));
        if is_out_of_date || self.is_unkept {
            self.keep();
        }
    }

    /// Whether the next daemon would recognise tor without the kernel's word.
    pub(super) fn is_settled(&self) -> bool {
        self.known.as_ref().is_some_and(KnownTor::is_settled)
    }

    fn keep(&mut self) {
        let (Some(path), Some(known)) = (&self.path, &self.known) else { return };
        let kept = write(path, known);
        self.is_unkept = kept.is_err();
        match kept {
            Ok(()) => self.amiss = None,
            Err(amiss) => self.tell(&amiss),
        }
    }

    /// The log has what is news.
    fn tell(&mut self, amiss: &MemoryError) {
        let amiss = amiss.to_string();
        if self.amiss.as_ref() != Some(&amiss) {
            tracing::warn!(message_id = "tor_process_unkept", "{amiss}");
            self.amiss = Some(amiss);
        }
    }
}

fn boot() -> Result<String, MemoryError> {
    let boot = fs::read_to_string(BOOT_ID).map_err(MemoryError::Boot)?;
    Ok(boot.trim().to_owned())
}

fn read(path: &Path) -> Result<Option<KnownTor>, MemoryError> {
    let cannot = |source| MemoryError::Read { path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(cannot(error)),
    };
    let mut text = String::new();
    file.take(MOST_BYTES).read_to_string(&mut text).map_err(cannot)?;
    let known = KnownTor::read(&text, &boot()?);
    known.map_err(|source| MemoryError::Text { path: path.to_owned(), source })
}

/// Writes it under another name and renames that, so that a half-written file never has the name. It need not outlive the
/// host, so nothing waits for the disk.
fn write(path: &Path, known: &KnownTor) -> Result<(), MemoryError> {
    let text = known.text(&boot()?);
    let unfinished = path.with_extension("process.new");
    let attempt = || {
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(MODE).open(&unfinished)?;
        file.write_all(text.as_bytes())?;
        fs::rename(&unfinished, path)
    };
    attempt().map_err(|source| MemoryError::Write { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Asked at that second, after it had run for 100 s less.
    fn seen(pid: u32, second: u64) -> Sighting {
        let seconds = Duration::from_secs;
        Sighting { pid, started_tick: None, uptime: seconds(second - 100), asked_at: seconds(second) }
    }

    #[test]
    fn one_daemon_knows_the_tor_of_the_one_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tor.process");
        // What a crash leaves.
        fs::write(folder.path().join("tor.process.new"), "half").unwrap();
        let new = || Memory::new(Some(path.clone()));
        let first = new().meet(seen(7, 200));
        assert_eq!(new().meet(seen(7, 300)), first);
        let second = new().meet(seen(8, 400));
        assert!(second > first);
        assert_eq!(new().meet(seen(8, 500)), second);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        // Without a file each is on its own.
        let mut alone = Memory::new(None);
        assert_eq!(alone.meet(seen(8, 500)), TorGeneration(500 * ticks_a_second()));
        assert_eq!(alone.meet(seen(8, 600)), TorGeneration(500 * ticks_a_second()));
    }

    #[test]
    fn what_was_kept_before_the_host_started_anew_is_void() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tor.process");
        let before = Memory::new(Some(path.clone())).meet(seen(7, 200));
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace(&boot().unwrap(), "another")).unwrap();
        let mut memory = Memory::new(Some(path));
        assert_ne!(memory.meet(seen(7, 300)), before);
        assert!(memory.amiss.is_none());
    }

    #[test]
    fn what_cannot_be_read_or_kept_is_said_and_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("none/tor.process");
        let mut memory = Memory::new(Some(path.clone()));
        let generation = memory.meet(seen(7, 200));
        assert!(memory.amiss.as_ref().unwrap().contains("cannot be written"), "{memory:?}");
        assert_eq!(memory.meet(seen(7, 201)), generation);
        fs::create_dir(path.parent().unwrap()).unwrap();
        memory.meet_again(seen(7, 202));
        assert!(memory.amiss.is_none());
        assert_eq!(Memory::new(Some(path.clone())).meet(seen(7, 203)), generation);

        for (damaged, told) in
            [(b"boot\n".as_slice(), "line 1 is not `boot ID`"), (&[0xff], "cannot be read")]
        {
            fs::write(&path, damaged).unwrap();
            let read = read(&path).unwrap_err().to_string();
            assert!(read.contains(told) && read.contains("bans of its circuits"), "{read}");
            let after = Memory::new(Some(path.clone())).meet(seen(7, 204));
            assert!(after > generation);
            assert_eq!(Memory::new(Some(path.clone())).meet(seen(7, 205)), after);
        }
    }
}
