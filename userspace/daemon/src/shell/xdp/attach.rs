//! Attaching, replacing and detaching the program.
//!
//! The link is pinned, so the filter outlives the daemon. A daemon that starts finds the link by its pin and replaces the
//! program behind it, which the kernel does atomically: no packet passes unfiltered. Pins of links stand beside the pins
//! of the maps they belong to, one directory for each layout and size.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    pin::PinError,
    programs::{
        ProgramError, Xdp, XdpMode,
        links::{FdLink, LinkError, PinnedLink},
        loaded_programs,
        xdp::XdpLink,
    },
};
use thiserror::Error;

use super::{
    hook::{self, Hook, Mode},
    object::{self, LoadError},
};

/// Which modes the configuration allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// In the driver or not at all.
    Native,
    /// In the driver, else in the network core.
    NativeOrGeneric,
}

/// Why nothing was attached to an interface.
#[derive(Debug, Error)]
pub enum AttachError {
    /// No such interface.
    #[error("there is no interface {interface}; the host is not protected there; correct shield.interfaces")]
    NoInterface {
        /// Its name.
        interface: String,
    },
    /// Somebody else's program is there.
    #[error(
        "{owner} is attached to {interface} already; Tunica does not push it aside, so the host is not protected there; detach it (`ip link set dev {interface} xdp off`, or stop the service that owns it), then `tunica reload`"
    )]
    Occupied {
        /// The interface.
        interface: String,
        /// The program there, by name if the kernel tells it.
        owner: String,
    },
    /// The driver cannot do it and the configuration does not allow the slower way.
    #[error(
        "the driver of {interface} has no native XDP ({source}); the host is not protected there; set shield.attach = \"native-or-generic\" to accept the slower generic mode"
    )]
    NoNative {
        /// The interface.
        interface: String,
        /// What the kernel said.
        #[source]
        source: Box<ProgramError>,
    },
    /// Any other refusal.
    #[error("cannot attach to {interface}: {source}; the host is not protected there; see `tunica doctor`")]
    Refused {
        /// The interface.
        interface: String,
        /// What the kernel said.
        #[source]
        source: Box<ProgramError>,
    },
    /// The link could not be pinned, so it would end with the daemon.
    #[error("cannot pin the link of {interface} at {path}: {source}; detached again; check that shield.pin_path is on a bpffs", path = .path.display())]
    Pin {
        /// The interface.
        interface: String,
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: PinError,
    },
    /// The hook or a pin could not be read.
    #[error("cannot read what is attached to {interface}: {source}; nothing was changed there")]
    Read {
        /// The interface.
        interface: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The embedded object is broken.
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// A program attached to an interface by us.
#[derive(Debug)]
pub struct Attachment {
    interface: String,
    /// Keeps the link alive while the daemon runs even if somebody removes the pin.
    link: FdLink,
    pin: PathBuf,
}

impl Attachment {
    /// The interface's name.
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// Identity of the kernel's link object.
    pub fn link_id(&self) -> Option<u32> {
        self.link.info().ok().map(|info| info.id())
    }

    /// Whether the link would outlive the daemon.
    pub fn is_pinned(&self) -> bool {
        self.pin.exists()
    }

    /// Pins the link again after somebody removed the pin.
    ///
    /// # Errors
    /// [`AttachError::Pin`]; the program is then detached.
    pub fn pin_again(self) -> Result<Self, AttachError> {
        let link = pin_link(self.link, &self.pin, &self.interface)?;
        Ok(Self { link, ..self })
    }

    /// Detaches: the pin goes, then the last descriptor.
    ///
    /// # Errors
    /// The system's, if the pin cannot be removed; the program is then still attached.
    pub fn detach(self) -> io::Result<()> {
        match fs::remove_file(&self.pin) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// Where the link of `interface` is pinned inside a map directory. bpffs refuses dots in names, which VLAN interfaces have.
fn link_pin(directory: &Path, interface: &str) -> PathBuf {
    directory.join(format!("link-{}", interface.replace('%', "%25").replace('.', "%2e")))
}

/// Every directory of ours under `root`: this layout's and those that older versions left.
pub fn directories(root: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(root) else {
        return Vec::new();
    };
    let is_ours = |name: &str| {
        let mut parts = name.strip_prefix('v').unwrap_or_default().split('-');
        parts
            .next()
            .is_some_and(|hash| hash.len() == 16 && hash.bytes().all(|digit| digit.is_ascii_hexdigit()))
            && parts.all(|size| size.parse::<u32>().is_ok())
    };
    entries
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(is_ours))
        .map(|entry| entry.path())
        .collect()
}

/// Attaches the program of `ebpf` to `interface`, through the link that an earlier daemon left if there is one.
///
/// # Errors
/// See [`AttachError`]; the hook is then as it was.
pub fn attach(
    ebpf: &mut Ebpf,
    root: &Path,
    directory: &Path,
    interface: &str,
    wanted: Wanted,
) -> Result<Attachment, AttachError> {
    let read = |source| AttachError::Read { interface: interface.to_owned(), source };
    let hook = hook::read(interface)
        .map_err(read)?
        .ok_or_else(|| AttachError::NoInterface { interface: interface.to_owned() })?;
    let pin = link_pin(directory, interface);
    let old_pins: Vec<PathBuf> =
        directories(root).iter().map(|old| link_pin(old, interface)).filter(|old| old.exists()).collect();
    let existing = old_pins.iter().find_map(|old| ours(old, hook));
    let program = object::program(ebpf)?;
    let link = match existing {
        Some(link) => replace(program, link, interface)?,
        None if hook.mode != Mode::None => {
            return Err(AttachError::Occupied { interface: interface.to_owned(), owner: owner(hook) });
        }
        None => create(program, hook.interface, interface, wanted)?,
    };
    // The new pin stands before the old one goes, so that a crash in between leaves the link pinned.
    if existing_link_at(&pin, &link) {
        remove(old_pins.iter().filter(|old| **old != pin));
        return Ok(Attachment { interface: interface.to_owned(), link, pin });
    }
    remove(std::iter::once(&pin));
    let link = pin_link(link, &pin, interface)?;
    remove(old_pins.iter().filter(|old| **old != pin));
    Ok(Attachment { interface: interface.to_owned(), link, pin })
}

fn pin_link(link: FdLink, pin: &Path, interface: &str) -> Result<FdLink, AttachError> {
    link.pin(pin).map(FdLink::from).map_err(|source| AttachError::Pin {
        interface: interface.to_owned(),
        path: pin.to_owned(),
        source,
    })
}

/// The pinned link, if it is the one that holds the hook now. A link whose interface went away holds nothing.
fn ours(pin: &Path, hook: Hook) -> Option<FdLink> {
    let link = FdLink::from(PinnedLink::from_pin(pin).ok()?);
    let info = link.info().ok()?;
    (hook.program_id == Some(info.program_id())).then_some(link)
}

fn existing_link_at(pin: &Path, link: &FdLink) -> bool {
    let id = |link: &FdLink| link.info().map(|info| info.id());
    let pinned: Result<u32, LinkError> =
        PinnedLink::from_pin(pin).and_then(|pinned| id(&FdLink::from(pinned)));
    matches!((pinned, id(link)), (Ok(pinned), Ok(held)) if pinned == held)
}

fn remove<'a>(pins: impl Iterator<Item = &'a PathBuf>) {
    for pin in pins {
        if let Err(error) = fs::remove_file(pin)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(message_id = "stale_pin_left", path = %pin.display(), %error, "a stale pin could not be removed");
        }
    }
}

fn replace(program: &mut Xdp, link: FdLink, interface: &str) -> Result<FdLink, AttachError> {
    let refused = |source| AttachError::Refused { interface: interface.to_owned(), source: Box::new(source) };
    let link = XdpLink::try_from(link).map_err(|error| AttachError::Read {
        interface: interface.to_owned(),
        source: io::Error::other(error),
    })?;
    let id = program.attach_to_link(link).map_err(refused)?;
    let link = program.take_link(id).map_err(refused)?;
    link.try_into().map_err(|error: LinkError| AttachError::Read {
        interface: interface.to_owned(),
        source: io::Error::other(error),
    })
}

fn create(program: &mut Xdp, index: u32, interface: &str, wanted: Wanted) -> Result<FdLink, AttachError> {
    let named = || interface.to_owned();
    let id = match (program.attach_to_if_index(index, XdpMode::Driver), wanted) {
        (Ok(id), Wanted::Native | Wanted::NativeOrGeneric) => id,
        (Err(source), Wanted::Native) if lacks_native(&source) => {
            return Err(AttachError::NoNative { interface: named(), source: Box::new(source) });
        }
        (Err(source), Wanted::NativeOrGeneric) if lacks_native(&source) => program
            .attach_to_if_index(index, XdpMode::Skb)
            .map_err(|source| AttachError::Refused { interface: named(), source: Box::new(source) })?,
        (Err(source), Wanted::Native | Wanted::NativeOrGeneric) => {
            return Err(AttachError::Refused { interface: named(), source: Box::new(source) });
        }
    };
    let link = program
        .take_link(id)
        .map_err(|source| AttachError::Refused { interface: named(), source: Box::new(source) })?;
    // Only links made over netlink cannot become descriptors; Linux 5.9 and later makes none.
    link.try_into()
        .map_err(|error: LinkError| AttachError::Read { interface: named(), source: io::Error::other(error) })
}

fn lacks_native(error: &ProgramError) -> bool {
    matches!(error, ProgramError::SyscallError(error) if error.io_error.raw_os_error() == Some(libc::EOPNOTSUPP))
}

/// The program on a hook, as precisely as this process may know it: naming a program by its identity needs CAP_SYS_ADMIN.
pub fn owner(hook: Hook) -> String {
    let Some(id) = hook.program_id else {
        return "an XDP program of unknown identity".to_owned();
    };
    let name = loaded_programs()
        .flatten()
        .find(|program| program.id() == id)
        .and_then(|program| program.name_as_str().map(str::to_owned));
    match name {
        Some(name) if !name.is_empty() => format!("XDP program `{name}` (id {id})"),
        _ => format!("XDP program {id} (`bpftool prog show id {id}` names it)"),
    }
}

/// Removes our link pins of every interface that is not in `keep`, which detaches them.
pub fn detach_others(root: &Path, keep: &[String]) {
    let kept: Vec<PathBuf> = keep.iter().map(|name| link_pin(Path::new(""), name)).collect();
    for directory in directories(root) {
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        let pins: Vec<PathBuf> = entries
            .flatten()
            .filter(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with("link-")))
            .filter(|entry| !kept.iter().any(|kept| kept.as_os_str() == entry.file_name()))
            .map(|entry| entry.path())
            .collect();
        for pin in &pins {
            tracing::warn!(message_id = "shield_detached", pin = %pin.display(), "the shield is detached");
        }
        remove(pins.iter());
    }
}

/// Removes map directories of other layouts or sizes that hold no link any more.
pub fn sweep(root: &Path, keep: &Path) {
    for directory in directories(root).iter().filter(|directory| *directory != keep) {
        let Ok(entries) = fs::read_dir(directory) else { continue };
        let pins: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        let holds_link = pins.iter().any(|pin| {
            pin.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("link-"))
        });
        if holds_link {
            continue;
        }
        remove(pins.iter());
        if let Err(error) = fs::remove_dir(directory) {
            tracing::warn!(message_id = "stale_pin_left", path = %directory.display(), %error, "a stale pin could not be removed");
        }
    }
}
