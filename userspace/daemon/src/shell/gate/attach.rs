//! Attaching the gate to `lo`, replacing and detaching it.
//!
//! From Linux 6.6 the program hangs on a TCX link, which is pinned. Before, it is a filter of `clsact`, which needs no pin:
//! it stays until somebody removes it. Either way a later daemon replaces the program in one step of the kernel's.
//!
//! Other programs on the hook stay: links of TCX are many, filters too, and the gate hands on every packet. With TCX it
//! stands first, since others may end the chain. Among filters the kernel gives it a place of its own, behind them.

use std::{
    io, mem,
    path::{Path, PathBuf},
};

use aya::{
    pin::PinError,
    programs::{
        LinkOrder, ProgramError, SchedClassifier, TcAttachType,
        links::{FdLink, LinkError, PinnedLink},
        tc::{
            self, NlOptions, SchedClassifierLink, SchedClassifierLinkId, TcAttachOptions, TcError, TcHandle,
        },
    },
};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcFilterBpfOption, TcMessage, TcOption},
};
use netlink_sys::protocols::NETLINK_ROUTE;
use thiserror::Error;

use super::{super::xdp::pins, PROGRAM};

/// The interface.
const INTERFACE: &str = "lo";
/// What the link's pin is called.
pub(super) const PIN: &str = "link-lo";
/// The ingress of `clsact`: `TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS)` in include/uapi/linux/pkt_sched.h.
const CLSACT_INGRESS: u32 = 0xffff_fff2;

/// Why the gate is not attached as it should be.
#[derive(Debug, Error)]
pub enum AttachError {
    /// The kernel refused.
    #[error(
        "cannot attach the circuit gate to lo: {source}; banned circuits reach the listener, which refuses them; the daemon needs CAP_NET_ADMIN in the namespace of this lo"
    )]
    Refused {
        /// What the kernel said.
        #[source]
        source: Box<ProgramError>,
    },
    /// A kernel without TCX, and without what was before it.
    #[error(
        "this kernel has neither TCX (Linux 6.6) nor the modules sch_ingress and cls_bpf, so the circuit gate cannot be attached to lo; banned circuits reach the listener, which refuses them; load the modules (`modprobe -a sch_ingress cls_bpf`): {source}"
    )]
    NoHook {
        /// What the kernel said.
        #[source]
        source: Box<ProgramError>,
    },
    /// What is attached could not be read.
    #[error("cannot read what is attached to lo: {source}; the circuit gate was not changed")]
    Read {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The link could not be pinned, so it would end with the daemon.
    #[error(
        "cannot pin the link of the circuit gate at {path}: {source}; detached again, so banned circuits reach the listener, which refuses them; check that shield.pin_path is on a bpffs",
        path = .path.display()
    )]
    Pin {
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: PinError,
    },
    /// The link's pin or the filter could not be removed.
    #[error(
        "cannot detach the circuit gate from lo: {source}; it goes on refusing banned circuits; `tc filter del dev lo ingress` or removing its pin ({path}) detaches it by hand",
        path = .path.display()
    )]
    Detach {
        /// Where the link is pinned, if it is.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

fn refused(source: impl Into<ProgramError>) -> AttachError {
    AttachError::Refused { source: Box::new(source.into()) }
}

/// What the program hangs on.
#[derive(Debug)]
enum Hold {
    /// A link of TCX, kept open in case somebody removes its pin.
    Link(FdLink),
    /// A filter of `clsact`.
    Filter,
    /// Nothing, or nothing that is known of, since attaching again failed.
    Nothing,
}

/// The gate on `lo`.
#[derive(Debug)]
pub struct Attachment {
    hold: Hold,
    pin: PathBuf,
}

impl Attachment {
    /// Attaches, through a link pinned in `directory` or in one of `before` if there is one. Pins in `before` stay.
    pub(super) fn make(
        program: &mut SchedClassifier,
        directory: &Path,
        before: &[PathBuf],
    ) -> Result<Self, AttachError> {
        let pin = directory.join(PIN);
        for old in before.iter().map(|old| old.join(PIN)).chain([pin.clone()]).rev() {
            let Ok(link) = PinnedLink::from_pin(&old) else { continue };
            let Some(link) = replace(program, FdLink::from(link))? else {
                // Its interface went away, or somebody detached it.
                pins::remove([&old]);
                continue;
            };
            let link = if old == pin { link } else { pinned(link, &pin)? };
            return Ok(Self { hold: Hold::Link(link), pin });
        }
        Ok(Self { hold: hold(program, &pin)?, pin })
    }

    /// Whether the program was attached when that was last looked at.
    pub const fn is_attached(&self) -> bool {
        match self.hold {
            Hold::Link(_) | Hold::Filter => true,
            Hold::Nothing => false,
        }
    }

    /// The word for how the program is attached: `tcx`, `clsact` or `none`.
    pub const fn label(&self) -> &'static str {
        match self.hold {
            Hold::Link(_) => "tcx",
            Hold::Filter => "clsact",
            Hold::Nothing => "none",
        }
    }

    /// Identity of the kernel's link; filters have none.
    pub fn link_id(&self) -> Option<u32> {
        match &self.hold {
            Hold::Link(link) => link.info().ok().map(|info| info.id()),
            Hold::Filter | Hold::Nothing => None,
        }
    }

    /// Attaches or pins again if somebody undid that; whether it was so.
    pub(super) fn repair(&mut self, program: &mut SchedClassifier) -> Result<bool, AttachError> {
        match mem::replace(&mut self.hold, Hold::Nothing) {
            Hold::Link(link) => {
                let is_pinned = self.pin.exists();
                if let Some(link) = replace(program, link)? {
                    self.hold = Hold::Link(if is_pinned { link } else { pinned(link, &self.pin)? });
                    return Ok(!is_pinned);
                }
                pins::remove([&self.pin]);
            }
            Hold::Filter => {
                let own = program.info().map_err(refused)?.id();
                if find()?.is_some_and(|found| found.program_id == Some(own)) {
                    self.hold = Hold::Filter;
                    return Ok(false);
                }
            }
            Hold::Nothing => {}
        }
        self.hold = hold(program, &self.pin)?;
        Ok(true)
    }

    pub(super) fn detach(self) -> Result<(), AttachError> {
        let failed = |source| AttachError::Detach { path: self.pin.clone(), source };
        match self.hold {
            Hold::Nothing => Ok(()),
            Hold::Link(_) => pins::detach(&self.pin).map_err(failed),
            Hold::Filter => match tc::qdisc_detach_program(INTERFACE, TcAttachType::Ingress, PROGRAM) {
                Err(TcError::IoError(error)) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                Err(error) => Err(failed(io::Error::other(error))),
                Ok(()) => Ok(()),
            },
        }
    }
}

/// Attaches where nothing of ours is attached, or a filter of ours.
fn hold(program: &mut SchedClassifier, pin: &Path) -> Result<Hold, AttachError> {
    match create(program)? {
        Some(link) => Ok(Hold::Link(pinned(link, pin)?)),
        None => filter(program).map(|()| Hold::Filter),
    }
}

/// Puts the program behind the link; `None` if the link holds nothing any more.
fn replace(program: &mut SchedClassifier, link: FdLink) -> Result<Option<FdLink>, AttachError> {
    let link = SchedClassifierLink::try_from(link)
        .map_err(|error| AttachError::Read { source: io::Error::other(error) })?;
    match program.attach_to_link(link) {
        Ok(id) => taken(program, id).map(Some),
        // `tcx_link_update` in kernel/bpf/tcx.c.
        Err(error) if errno(&error) == Some(libc::ENOLINK) => Ok(None),
        Err(error) => Err(refused(error)),
    }
}

/// Makes a link before all others; `None` if this kernel has none of TCX.
fn create(program: &mut SchedClassifier) -> Result<Option<FdLink>, AttachError> {
    let order = TcAttachOptions::TcxOrder(LinkOrder::first());
    match program.attach_with_options(INTERFACE, TcAttachType::Ingress, order) {
        Ok(id) => taken(program, id).map(Some),
        Err(error) if errno(&error) == Some(libc::EINVAL) => Ok(None),
        Err(error) => Err(refused(error)),
    }
}

fn errno(error: &ProgramError) -> Option<i32> {
    if let ProgramError::SyscallError(error) = error { error.io_error.raw_os_error() } else { None }
}

fn taken(program: &mut SchedClassifier, id: SchedClassifierLinkId) -> Result<FdLink, AttachError> {
    let link = program.take_link(id).map_err(refused)?;
    FdLink::try_from(link).map_err(|error: LinkError| AttachError::Read { source: io::Error::other(error) })
}

fn pinned(link: FdLink, pin: &Path) -> Result<FdLink, AttachError> {
    link.pin(pin).map(FdLink::from).map_err(|source| AttachError::Pin { path: pin.to_owned(), source })
}

/// Attaches as a filter of `clsact`, in the place of an earlier daemon's if there is one.
fn filter(program: &mut SchedClassifier) -> Result<(), AttachError> {
    let id = match find()? {
        Some(Filter { priority, handle, .. }) => {
            let link =
                SchedClassifierLink::attached(INTERFACE, TcAttachType::Ingress, priority, handle, None)
                    .map_err(|source| AttachError::Read { source })?;
            program.attach_to_link(link).map_err(refused)?
        }
        None => {
            match tc::qdisc_add_clsact(INTERFACE) {
                Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {}
                Err(error) => return Err(no_filter(error.into())),
                Ok(()) => {}
            }
            let place = TcAttachOptions::Netlink(NlOptions::default());
            program.attach_with_options(INTERFACE, TcAttachType::Ingress, place).map_err(no_filter)?
        }
    };
    // Dropped, it would detach: the filter must outlive the daemon.
    mem::forget(program.take_link(id).map_err(refused)?);
    Ok(())
}

/// The kernel loads the modules by itself where it may, and knows no such kind where it may not or has none.
fn no_filter(error: ProgramError) -> AttachError {
    if let ProgramError::TcError(TcError::NetlinkError(said)) = &error
        && said.raw_os_error() == Some(libc::ENOENT)
    {
        return AttachError::NoHook { source: Box::new(error) };
    }
    refused(error)
}

/// Our filter, by its name.
struct Filter {
    priority: u16,
    handle: TcHandle,
    program_id: Option<u32>,
}

fn find() -> Result<Option<Filter>, AttachError> {
    let read = |source| AttachError::Read { source };
    let index = nix::net::if_::if_nametoindex(INTERFACE).map_err(|errno| read(errno.into()))?;
    let mut question = TcMessage::default();
    question.header.index = i32::try_from(index).map_err(|error| read(io::Error::other(error)))?;
    question.header.parent = CLSACT_INGRESS.into();
    let mut found = None;
    let take = |answer| {
        if let RouteNetlinkMessage::NewTrafficFilter(filter) = answer
            && let Some(filter) = ours(&filter)
        {
            found = Some(filter);
        }
    };
    crate::netlink::ask(NETLINK_ROUTE, RouteNetlinkMessage::GetTrafficFilter(question), true, take)
        .map_err(read)?;
    Ok(found)
}

fn ours(message: &TcMessage) -> Option<Filter> {
    let (mut is_named, mut program_id) = (false, None);
    for attribute in &message.attributes {
        let TcAttribute::Options(options) = attribute else { continue };
        for option in options {
            if let TcOption::Bpf(TcFilterBpfOption::ProgName(name)) = option {
                is_named = name == PROGRAM;
            } else if let TcOption::Bpf(TcFilterBpfOption::ProgId(id)) = option {
                program_id = Some(*id);
            }
        }
    }
    // The upper half of `tcm_info` is the priority.
    let priority = u16::try_from(message.header.info >> 16).ok()?;
    let handle = u32::from(message.header.handle);
    let handle = TcHandle::new(u16::try_from(handle >> 16).ok()?, u16::try_from(handle & 0xffff).ok()?);
    is_named.then_some(Filter { priority, handle, program_id })
}
