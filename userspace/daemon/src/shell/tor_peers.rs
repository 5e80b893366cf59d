//! The far ends of tor's own connections, from the kernel's socket table.
//!
//! At the network card an onion service sees only the addresses of its guards. Banning one cuts the service off, so they enter
//! the never-ban set. Sockets are read over `sock_diag(7)`, by the uid that owns them.

use std::{collections::BTreeSet, io, net::IpAddr};

use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP},
    inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags},
};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

/// `TCP_LISTEN` in include/net/tcp_states.h.
const LISTEN: u8 = 10;

/// Remote addresses of established TCP connections that sockets of `uid` opened; without loopback.
///
/// A connection whose local port one of the same user's sockets listens on was opened by the other side: on a relay those are
/// strangers, so they are left out.
///
/// # Errors
/// The kernel's, over sock_diag.
pub fn read(uid: u32) -> io::Result<BTreeSet<IpAddr>> {
    let mut sockets = Vec::new();
    for (family, id) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
        let request = InetRequest {
            family,
            protocol: IPPROTO_TCP,
            extensions: ExtensionFlags::empty(),
            states: StateFlags::ESTABLISHED | StateFlags::LISTEN,
            socket_id: id,
        };
        crate::netlink::ask(NETLINK_SOCK_DIAG, SockDiagMessage::InetRequest(request), true, |answer| {
            if let SockDiagMessage::InetResponse(socket) = answer
                && socket.header.uid == uid
            {
                sockets.push(*socket);
            }
        })?;
    }
    Ok(outbound(&sockets))
}

fn outbound(sockets: &[InetResponse]) -> BTreeSet<IpAddr> {
    let listening: BTreeSet<u16> = sockets
        .iter()
        .filter(|socket| socket.header.state == LISTEN)
        .map(|socket| socket.header.socket_id.source_port)
        .collect();
    sockets
        .iter()
        .map(|socket| &socket.header)
        .filter(|header| header.state != LISTEN && !listening.contains(&header.socket_id.source_port))
        .map(|header| header.socket_id.destination_address.to_canonical())
        .filter(|address| !address.is_loopback())
        .collect()
}
