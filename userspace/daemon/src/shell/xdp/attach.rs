//! Attaching, replacing and detaching the program.
//!
//! The link is pinned, so the filter outlives the daemon. A daemon that starts finds the link by its pin and replaces the
//! program behind it, which the kernel does atomically: no packet passes unfiltered. Pins of links stand beside the pins
//! of the maps they belong to, one directory for each layout and size.

use std::{
    fmt::Write as _,
    io,
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
    pins,
};

/// Which modes the configuration allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// In the driver or not at all.
    Native,
    /// In the driver, else in the network core.
    NativeOrGeneric,
    /// Not at all, as long as nftables stands in; in the driver where that cannot be had.
    Nftables,
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
        "{owner} is attached to {interface} already; Tunica does not push it aside, so the host is not protected there; {remedy}, then `tunica reload`"
    )]
    Occupied {
        /// The interface.
        interface: String,
        /// The program there, by name if the kernel tells it.
        owner: String,
        /// How to free the interface, as far as can be known.
        remedy: String,
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

    /// Detaches, and removes the pin.
    ///
    /// # Errors
    /// The system's, if the pin cannot be removed or the kernel does not detach; the program may then be attached still.
    pub fn detach(self) -> io::Result<()> {
        pins::detach(&self.pin)
    }
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
    let pin = pins::link(directory, interface);
    let old_pins: Vec<PathBuf> = pins::directories(root)
        .iter()
        .map(|old| pins::link(old, interface))
        .filter(|old| old.exists())
        .collect();
    let existing = old_pins.iter().find_map(|old| ours(old, hook));
    let program = object::program(ebpf)?;
    let link = match existing {
        Some(link) => replace(program, link, interface)?,
        None if hook.mode != Mode::None => {
            return Err(occupied(hook, root, interface));
        }
        None => create(program, hook.interface, interface, wanted)?,
    };
    // The new pin stands before the old one goes, so that a crash in between leaves the link pinned.
    if existing_link_at(&pin, &link) {
        pins::remove(old_pins.iter().filter(|old| **old != pin));
        return Ok(Attachment { interface: interface.to_owned(), link, pin });
    }
    pins::remove([&pin]);
    let link = pin_link(link, &pin, interface)?;
    pins::remove(old_pins.iter().filter(|old| **old != pin));
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
        (Ok(id), Wanted::Native | Wanted::NativeOrGeneric | Wanted::Nftables) => id,
        (Err(source), Wanted::Native | Wanted::Nftables) if lacks_native(&source) => {
            return Err(AttachError::NoNative { interface: named(), source: Box::new(source) });
        }
        (Err(source), Wanted::NativeOrGeneric) if lacks_native(&source) => program
            .attach_to_if_index(index, XdpMode::Skb)
            .map_err(|source| AttachError::Refused { interface: named(), source: Box::new(source) })?,
        (Err(source), Wanted::Native | Wanted::NativeOrGeneric | Wanted::Nftables) => {
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

/// The refusal to push aside what is on a hook, with all that can be known of it.
pub fn occupied(hook: Hook, root: &Path, interface: &str) -> AttachError {
    let name = hook.program_id.and_then(name_of);
    let owner = match (hook.program_id, &name) {
        (Some(id), Some(name)) => format!("XDP program `{name}` (id {id})"),
        (Some(id), None) => format!("XDP program {id} (`bpftool prog show id {id}` names it)"),
        (None, _) => "an XDP program of unknown identity".to_owned(),
    };
    let remedy = remedy(hook, name.as_deref(), root, interface);
    AttachError::Occupied { interface: interface.to_owned(), owner, remedy }
}

/// A program's name, if this process may know it: finding a program by its identity needs CAP_SYS_ADMIN.
fn name_of(id: u32) -> Option<String> {
    loaded_programs()
        .flatten()
        .find(|program| program.id() == id)
        .and_then(|program| program.name_as_str().map(str::to_owned))
        .filter(|name| !name.is_empty())
}

/// How to free a hook. Whether a link holds it, and whose, is told to CAP_SYS_ADMIN alone, unless its pin can be opened.
fn remedy(hook: Hook, name: Option<&str>, root: &Path, interface: &str) -> String {
    let mut unread = None;
    for pin in pins::links_elsewhere(root, interface) {
        match PinnedLink::from_pin(&pin).and_then(|link| FdLink::from(link).info()) {
            Ok(info) if Some(info.program_id()) == hook.program_id => {
                return format!(
                    "it is Tunica's own, pinned under an earlier shield.pin_path or by another tunicad; stop that tunicad if it runs and remove the pin (`rm {}`)",
                    pin.display()
                );
            }
            Ok(_) => {}
            Err(_) => unread = Some(pin),
        }
    }
    let mut remedy = format!(
        "stop the service that owns it, or remove the pin of its link (`bpftool -f link show` names it); `ip link set dev {interface} xdp off` detaches only what was attached without a link"
    );
    let own = "it may be Tunica's own under an earlier shield.pin_path: remove those pins first";
    // Writing to a String cannot fail.
    let _ = match unread {
        Some(pin) => write!(remedy, "; {own} (`rm {}`)", pin.display()),
        None if name.is_none_or(|name| name == object::PROGRAM) => write!(remedy, "; {own}"),
        None => Ok(()),
    };
    remedy
}
