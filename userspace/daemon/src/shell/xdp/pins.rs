//! The directory of pins: whose it is, who may use it, and what in it is ours.
//!
//! A fresh bpffs lets every local user make directories, and the daemon removes pins as root. So it uses a directory only if
//! nobody else can have put anything into it, and follows no symbolic link there.

use std::{
    fs::{self, DirBuilder, File, Metadata, Permissions},
    io,
    os::{
        fd::AsFd as _,
        unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
};

use nix::unistd::geteuid;
use thiserror::Error;
use tunica_common::layout::MAPS;

use crate::{directory, sys};

/// What the pin of the program is called; it stands beside those of its maps.
pub const PROGRAM: &str = "program";

/// The sticky bit: in such a directory only an entry's owner may rename or remove it (inode(7)).
const STICKY: u32 = 0o1000;

/// Why the pins cannot be used.
#[derive(Debug, Error)]
pub enum PinsError {
    /// Somebody else could have put something there.
    #[error(
        "{path} {fault}: the pins could be exchanged or lead to another program's; nothing was loaded or changed; {fix}, then start tunicad again",
        path = .path.display()
    )]
    Unsafe {
        /// The pin directory, one inside it or one above it.
        path: PathBuf,
        /// What is wrong with it.
        fault: String,
        /// What to do about it.
        fix: String,
    },
    /// A second daemon.
    #[error(
        "another tunicad uses the pins in {path}: two daemons would take links and rows from each other; nothing was loaded or changed; stop that one, or give this one another shield.pin_path",
        path = .path.display()
    )]
    InUse {
        /// The pin directory.
        path: PathBuf,
    },
    /// The directory could not be made or read.
    #[error(
        "cannot use {path}: {source}; the shield cannot outlive the daemon without it; mount bpffs (`mount -t bpf -o mode=0700 bpf /sys/fs/bpf`) or set shield.pin_path",
        path = .path.display()
    )]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// The pin directory, claimed for as long as this value lives.
#[derive(Debug)]
pub struct Pins {
    root: PathBuf,
    /// Locked; the lock goes with the process, however it ends.
    _claim: File,
}

impl Pins {
    /// Makes `root` if it is missing, checks it, and claims it.
    ///
    /// # Errors
    /// See [`PinsError`]; nothing but missing directories was made then.
    pub fn claim(root: &Path) -> Result<Self, PinsError> {
        make(root)?;
        let failed = |source| PinsError::Directory { path: root.to_owned(), source };
        let metadata = fs::symlink_metadata(root).map_err(failed)?;
        // Whoever may open a directory may lock it, and so keep the daemon from starting.
        if metadata.mode() & 0o077 != 0 && metadata.uid() == geteuid().as_raw() {
            fs::set_permissions(root, Permissions::from_mode(0o700)).map_err(failed)?;
        }
        let claim = directory::claim(root).map_err(|source| {
            if source.kind() == io::ErrorKind::WouldBlock {
                PinsError::InUse { path: root.to_owned() }
            } else {
                failed(source)
            }
        })?;
        Ok(Self { root: root.to_owned(), _claim: claim })
    }

    /// Where the pins are.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory called `name` inside, made if it is missing, and checked.
    ///
    /// # Errors
    /// [`PinsError::Unsafe`] and [`PinsError::Directory`].
    pub fn directory(&self, name: &str) -> Result<PathBuf, PinsError> {
        let path = self.root.join(name);
        make(&path)?;
        Ok(path)
    }
}

/// Makes the directory and those above it where they are missing, for the daemon alone.
fn make(path: &Path) -> Result<(), PinsError> {
    // Before, so that nothing is made through a link; after, for what somebody made in between.
    check(path)?;
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| PinsError::Directory { path: path.to_owned(), source })?;
    check(path)
}

/// Checks that nobody but root and the daemon's user can have put anything into `path` or exchange it: it and every
/// directory above it, as far as they exist.
///
/// # Errors
/// [`PinsError::Unsafe`] and [`PinsError::Directory`].
pub fn check(path: &Path) -> Result<(), PinsError> {
    for part in path.ancestors() {
        match fs::symlink_metadata(part) {
            Ok(metadata) => fault(part, &metadata, part != path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(PinsError::Directory { path: part.to_owned(), source }),
        }
    }
    Ok(())
}

fn fault(path: &Path, metadata: &Metadata, is_above: bool) -> Result<(), PinsError> {
    let name = path.display();
    let refuse = |fault: String, fix: String| Err(PinsError::Unsafe { path: path.to_owned(), fault, fix });
    if metadata.is_symlink() {
        return refuse(
            "is a symbolic link".to_owned(),
            "remove it, or name the directory that it leads to in shield.pin_path".to_owned(),
        );
    }
    if !metadata.is_dir() {
        return refuse("is no directory".to_owned(), "correct shield.pin_path".to_owned());
    }
    let owner = metadata.uid();
    if owner != 0 && owner != geteuid().as_raw() {
        return refuse(
            format!("belongs to uid {owner}"),
            format!("see what is in it (`ls -lR {name}`), remove what is not yours, `chown root: {name}`"),
        );
    }
    let mode = metadata.mode();
    let is_guarded = is_above && mode & STICKY != 0;
    if mode & 0o022 != 0 && !is_guarded {
        return refuse(
            format!("has mode {:04o}, so others than its owner may write to it", mode & 0o7777),
            format!("see what is in it (`ls -lR {name}`), remove what is not yours, `chmod go-w {name}`"),
        );
    }
    Ok(())
}

/// Where the link of `interface` is pinned inside a map directory. bpffs refuses dots in names, which VLAN interfaces have.
pub fn link(directory: &Path, interface: &str) -> PathBuf {
    directory.join(format!("link-{}", interface.replace('%', "%25").replace('.', "%2e")))
}

/// Every directory of ours under `root`: this layout's and those that older versions left. Links and directories that
/// others can write to are left out, whatever they are called.
pub fn directories(root: &Path) -> Vec<PathBuf> {
    let is_ours = |name: &str| {
        let mut parts = name.strip_prefix('v').unwrap_or_default().split('-');
        parts
            .next()
            .is_some_and(|hash| hash.len() == 16 && hash.bytes().all(|digit| digit.is_ascii_hexdigit()))
            && parts.all(|size| size.parse::<u32>().is_ok())
    };
    entries(root)
        .into_iter()
        .filter(|(name, path)| {
            is_ours(name)
                && fs::symlink_metadata(path).is_ok_and(|metadata| fault(path, &metadata, false).is_ok())
        })
        .map(|(_, path)| path)
        .collect()
}

/// Names and paths in a directory; none if it cannot be read.
pub(in crate::shell) fn entries(directory: &Path) -> Vec<(String, PathBuf)> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
        .collect()
}

/// Pins of links to `interface` in pin directories beside `root`: what an earlier shield.pin_path, or another tunicad, may
/// have left.
pub fn links_elsewhere(root: &Path, interface: &str) -> Vec<PathBuf> {
    let Some(parent) = root.parent() else { return Vec::new() };
    entries(parent)
        .iter()
        .filter(|(_, other)| other != root && check(other).is_ok())
        .flat_map(|(_, other)| directories(other))
        .map(|directory| link(&directory, interface))
        .filter(|pin| pin.exists())
        .collect()
}

fn is_link(name: &str) -> bool {
    name.starts_with("link-")
}

/// Removes pins that are no longer needed.
pub fn remove<'a>(pins: impl IntoIterator<Item = &'a PathBuf>) {
    for pin in pins {
        if let Err(error) = fs::remove_file(pin)
            && error.kind() != io::ErrorKind::NotFound
        {
            warn_left(pin, &error);
        }
    }
}

fn warn_left(path: &Path, error: &io::Error) {
    tracing::warn!(message_id = "stale_pin_left", path = %path.display(), %error, "a stale pin could not be removed");
}

/// Removes the pin of a link, and takes its program off its hook before this returns. Without the second, that would wait for
/// everybody who holds the link open, such as a child of ours that does not run its own program yet.
///
/// # Errors
/// The system's, if the pin cannot be removed or the kernel does not detach.
pub(in crate::shell) fn detach(pin: &Path) -> io::Result<()> {
    // What cannot be opened may still be removed, and then ends with its last holder.
    let link = sys::open_link(pin);
    match fs::remove_file(pin) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => link.map_or(Ok(()), |link| sys::detach_link(link.as_fd())),
    }
}

/// Removes our link pins of every interface that is not in `keep`, and detaches them.
pub fn detach_others(root: &Path, keep: &[String]) {
    let kept: Vec<PathBuf> = keep.iter().map(|name| link(Path::new(""), name)).collect();
    for directory in directories(root) {
        let pins: Vec<PathBuf> = entries(&directory)
            .into_iter()
            .filter(|(name, _)| is_link(name) && !kept.iter().any(|kept| kept.as_os_str() == name.as_str()))
            .map(|(_, path)| path)
            .collect();
        for pin in &pins {
            tracing::warn!(message_id = "shield_detached", pin = %pin.display(), "the shield is detached");
            if let Err(error) = detach(pin) {
                warn_left(pin, &error);
            }
        }
    }
}

/// Removes map directories of other layouts or sizes that hold no link any more. What the daemon did not pin stays, and
/// its directory with it.
pub fn sweep(root: &Path, keep: &Path) {
    for directory in directories(root).iter().filter(|directory| *directory != keep) {
        let entries = entries(directory);
        if entries.iter().any(|(name, _)| is_link(name)) {
            continue;
        }
        remove(entries.iter().filter(|(name, _)| is_swept(name)).map(|(_, path)| path));
        match fs::remove_dir(directory) {
            Err(error) if error.kind() != io::ErrorKind::DirectoryNotEmpty => warn_left(directory, &error),
            Ok(()) | Err(_) => {}
        }
    }
}

fn is_swept(name: &str) -> bool {
    name == PROGRAM || MAPS.iter().any(|shape| shape.name == name)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A folder whose ancestors are `/tmp` or the like: sticky, or root's alone.
    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    fn why(result: Result<impl std::fmt::Debug, PinsError>) -> String {
        match result.unwrap_err() {
            PinsError::Unsafe { fault, .. } => fault,
            other @ (PinsError::InUse { .. } | PinsError::Directory { .. }) => panic!("{other}"),
        }
    }

    #[test]
    fn what_is_made_is_for_its_owner_alone() {
        let folder = folder();
        let root = folder.path().join("above/tunica");
        let pins = Pins::claim(&root).unwrap();
        let directory = pins.directory("v0123456789abcdef-1-1").unwrap();
        for path in [&folder.path().join("above"), &root, &directory] {
            assert_eq!(fs::metadata(path).unwrap().mode() & 0o777, 0o700, "{}", path.display());
        }
        assert_eq!(directories(&root), [directory]);
    }

    #[test]
    fn a_second_claim_waits_for_the_first_to_end() {
        let folder = folder();
        let root = folder.path().join("tunica");
        let first = Pins::claim(&root).unwrap();
        assert!(matches!(Pins::claim(&root), Err(PinsError::InUse { .. })));
        drop(first);
        fs::set_permissions(&root, Permissions::from_mode(0o755)).unwrap();
        Pins::claim(&root).unwrap();
        assert_eq!(fs::metadata(&root).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn links_files_and_what_others_can_write_to_are_refused() {
        let folder = folder();
        let (root, other) = (folder.path().join("tunica"), folder.path().join("other"));
        fs::create_dir(&other).unwrap();
        symlink(&other, &root).unwrap();
        assert_eq!(why(Pins::claim(&root)), "is a symbolic link");
        assert_eq!(why(Pins::claim(&root.join("below"))), "is a symbolic link");
        assert!(!other.join("below").exists());
        fs::remove_file(&root).unwrap();
        fs::write(&root, "").unwrap();
        assert_eq!(why(Pins::claim(&root)), "is no directory");
        fs::remove_file(&root).unwrap();
        for mode in [0o720, 0o702, 0o1777] {
            fs::create_dir(&root).unwrap();
            fs::set_permissions(&root, Permissions::from_mode(mode)).unwrap();
            assert!(why(Pins::claim(&root)).starts_with("has mode"), "{mode:o}");
            // Above the pins the sticky bit is enough.
            assert_eq!(Pins::claim(&root.join("below")).is_ok(), mode == 0o1777, "{mode:o}");
            fs::remove_dir_all(&root).unwrap();
        }
        let pins = Pins::claim(&root).unwrap();
        symlink(&other, root.join("v0123456789abcdef-1-1")).unwrap();
        assert_eq!(why(pins.directory("v0123456789abcdef-1-1")), "is a symbolic link");
        assert_eq!(directories(&root), Vec::<PathBuf>::new());
    }

    #[test]
    fn a_sweep_takes_only_what_the_daemon_pins() {
        let folder = folder();
        let pins = Pins::claim(&folder.path().join("tunica")).unwrap();
        let [kept, linked, swept, shared] =
            ["1", "2", "3", "4"].map(|size| pins.directory(&format!("v0123456789abcdef-{size}-1")).unwrap());
        for directory in [&kept, &linked, &swept, &shared] {
            for name in MAPS.iter().map(|shape| shape.name).chain([PROGRAM]) {
                fs::write(directory.join(name), "").unwrap();
            }
        }
        fs::write(link(&linked, "eth0"), "").unwrap();
        fs::write(shared.join("stranger"), "").unwrap();
        sweep(&pins.root, &kept);
        assert_eq!(entries(&kept).len(), MAPS.len() + 1);
        assert_eq!(entries(&linked).len(), MAPS.len() + 2);
        assert!(!swept.exists());
        assert_eq!(entries(&shared), [("stranger".to_owned(), shared.join("stranger"))]);
        detach_others(&pins.root, &["eth0".to_owned()]);
        assert!(link(&linked, "eth0").exists());
        detach_others(&pins.root, &[]);
        assert!(!link(&linked, "eth0").exists());
    }
}
