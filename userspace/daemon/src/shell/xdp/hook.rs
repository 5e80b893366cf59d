//! What the kernel says is attached to an interface's XDP hook: the truth behind every status.

use std::io;

use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkFlags, LinkMessage, LinkXdp, XdpAttached},
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

/// An interface's XDP hook, and what of the interface bears on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// Index of the interface.
    pub interface: u32,
    /// How a program is attached.
    pub mode: Mode,
    /// Identity of that program.
    pub program_id: Option<u32>,
    /// Largest packet of the interface in bytes, link header excluded.
    pub mtu: u32,
    /// Receive queues that the driver allocated; it may use fewer.
    pub receive_queues: u32,
    /// Whether it is set up.
    pub is_up: bool,
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
    let mut hook =
        Hook { interface, mode: Mode::None, program_id: None, mtu: 0, receive_queues: 0, is_up: false };
    crate::netlink::ask(NETLINK_ROUTE, RouteNetlinkMessage::GetLink(question), false, |answer| {
        if let RouteNetlinkMessage::NewLink(link) = answer {
            hook.is_up = link.header.flags.contains(LinkFlags::Up);
            for attribute in link.attributes {
                if let LinkAttribute::Xdp(parts) = &attribute {
                    take(&mut hook, parts);
                } else if let LinkAttribute::Mtu(mtu) = attribute {
                    hook.mtu = mtu;
                } else if let LinkAttribute::NumRxQueues(queues) = attribute {
                    hook.receive_queues = queues;
                }
            }
        }
    })?;
    Ok(Some(hook))
}

fn take(hook: &mut Hook, parts: &[LinkXdp]) {
    for part in parts {
        if let LinkXdp::Attached(place) = part {
            hook.mode = mode(place);
        } else if let LinkXdp::ProgId(id @ 1..) = part {
            hook.program_id = Some(*id);
        }
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the library may learn more places; for us they hold no program"
)]
const fn mode(place: &XdpAttached) -> Mode {
    match place {
        XdpAttached::Driver => Mode::Native,
        XdpAttached::SocketBuffer => Mode::Generic,
        XdpAttached::Hardware => Mode::Offloaded,
        XdpAttached::Multiple => Mode::Multiple,
        _ => Mode::None,
    }
}
