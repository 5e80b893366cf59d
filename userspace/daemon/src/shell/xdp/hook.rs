//! What the kernel says is attached to an interface's XDP hook: the truth behind every status.

use std::io;

use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkMessage, LinkXdp, XdpAttached},
};
use netlink_sys::protocols::NETLINK_ROUTE;

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Nothing is attached.
    None,
    /// In the driver, before a socket buffer exists.
    Native,
    /// In the network core, after one was made.
    Generic,
    /// In the network card.
    Offloaded,
    /// In more than one of these places.
    Multiple,
}

impl Mode {
    /// The word that `status` and the metric's label use.
    pub const fn label(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Offloaded => "offloaded",
            Self::Multiple => "multiple",
        }
    }
}

/// An interface's XDP hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// Index of the interface.
    pub interface: u32,
    /// How a program is attached.
    pub mode: Mode,
    /// Identity of that program.
    pub program_id: Option<u32>,
}

/// Reads the hook of the interface called `name`; `None` if there is no such interface.
///
/// # Errors
/// The kernel's, over rtnetlink.
pub fn read(name: &str) -> io::Result<Option<Hook>> {
    let Ok(interface) = nix::net::if_::if_nametoindex(name) else {
        return Ok(None);
    };
    let mut question = LinkMessage::default();
    question.header.index = interface;
    let mut hook = Hook { interface, mode: Mode::None, program_id: None };
    crate::netlink::ask(NETLINK_ROUTE, RouteNetlinkMessage::GetLink(question), false, |answer| {
        if let RouteNetlinkMessage::NewLink(link) = answer {
            for attribute in link.attributes {
                if let LinkAttribute::Xdp(parts) = attribute {
                    take(&mut hook, &parts);
                }
            }
        }
    })?;
    Ok(Some(hook))
}

fn take(hook: &mut Hook, parts: &[LinkXdp]) {
    for part in parts {
        match part {
            LinkXdp::Attached(XdpAttached::Driver) => hook.mode = Mode::Native,
            LinkXdp::Attached(XdpAttached::SocketBuffer) => hook.mode = Mode::Generic,
            LinkXdp::Attached(XdpAttached::Hardware) => hook.mode = Mode::Offloaded,
            LinkXdp::Attached(XdpAttached::Multiple) => hook.mode = Mode::Multiple,
            LinkXdp::ProgId(id) if *id != 0 => hook.program_id = Some(*id),
            _ => {}
        }
    }
}
