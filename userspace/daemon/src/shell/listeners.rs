//! On which addresses this host listens, from the kernel's socket table, over `sock_diag(7)`.

use std::{collections::BTreeSet, io, net::IpAddr};

use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP},
    inet::{ExtensionFlags, InetRequest, SocketId, StateFlags},
};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

/// The addresses to which TCP listeners on `port` are bound; unspecified ones stand for all.
///
/// # Errors
/// The kernel's, over sock_diag.
pub fn on(port: u16) -> io::Result<BTreeSet<IpAddr>> {
    let mut addresses = BTreeSet::new();
    for (family, id) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
        let request = InetRequest {
            family,
            protocol: IPPROTO_TCP,
            extensions: ExtensionFlags::empty(),
            states: StateFlags::LISTEN,
            socket_id: id,
        };
        crate::netlink::ask(NETLINK_SOCK_DIAG, SockDiagMessage::InetRequest(request), true, |answer| {
            if let SockDiagMessage::InetResponse(socket) = answer
                && socket.header.socket_id.source_port == port
            {
                addresses.insert(socket.header.socket_id.source_address.to_canonical());
            }
        })?;
    }
    Ok(addresses)
}
