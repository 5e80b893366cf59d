//! The far ends of tor's own connections, from the kernel's socket table.
//!
//! At the network card an onion service sees only the addresses of its guards. Banning one cuts the service off, so they enter
//! the never-ban set. Sockets are read over `sock_diag(7)`, by the uid that owns them.

use std::{collections::BTreeSet, io, net::IpAddr};

use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP},
    inet::{ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags},
};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

/// `TCP_SYN_SENT` in include/net/tcp_states.h.
const SYN_SENT: u8 = 2;
/// `TCP_LISTEN` in include/net/tcp_states.h.
const LISTEN: u8 = 10;

/// Remote addresses of TCP connections that sockets of `uid` opened or are opening; without loopback.
///
/// One that is being opened counts, because the answers of a guard that was banned are dropped: it would never be connected,
/// and so never protected from its ban. An established connection whose local port one of the same user's sockets listens on was opened by the other side: on a relay those are
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
            states: StateFlags::ESTABLISHED | StateFlags::SYN_SENT | StateFlags::LISTEN,
            socket_id: id,
        };
        crate::netlink::ask(NETLINK_SOCK_DIAG, SockDiagMessage::InetRequest(request), true, |answer| {
            if let SockDiagMessage::InetResponse(socket) = answer
                && socket.header.uid == uid
            {
                sockets.push(socket.header);
            }
        })?;
    }
    Ok(outbound(&sockets))
}

fn outbound(sockets: &[InetResponseHeader]) -> BTreeSet<IpAddr> {
    let listening: BTreeSet<u16> = sockets
        .iter()
        .filter(|socket| socket.state == LISTEN)
        .map(|socket| socket.socket_id.source_port)
        .collect();
    let is_outbound = |socket: &&InetResponseHeader| {
        socket.state == SYN_SENT
            || (socket.state != LISTEN && !listening.contains(&socket.socket_id.source_port))
    };
    sockets
        .iter()
        .filter(is_outbound)
        .map(|socket| socket.socket_id.destination_address.to_canonical())
        .filter(|address| !address.is_loopback())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `TCP_ESTABLISHED` in include/net/tcp_states.h.
    const ESTABLISHED: u8 = 1;

    fn socket(state: u8, port: u16, far: &str) -> InetResponseHeader {
        let mut socket_id = SocketId::new_v4();
        socket_id.source_port = port;
        socket_id.destination_address = far.parse().unwrap();
        InetResponseHeader {
            family: AF_INET,
            state,
            timer: None,
            socket_id,
            recv_queue: 0,
            send_queue: 0,
            uid: 1,
            inode: 0,
        }
    }

    #[test]
    fn far_ends_count_where_this_side_opened_or_opens_the_connection() {
        let rows = [
            socket(LISTEN, 9_001, "0.0.0.0"),
            socket(ESTABLISHED, 40_000, "192.0.2.1"),
            socket(ESTABLISHED, 40_001, "::ffff:192.0.2.2"),
            socket(SYN_SENT, 40_002, "192.0.2.3"),
            socket(SYN_SENT, 9_001, "192.0.2.4"),
            // A stranger who came in by the port of a relay, and tor's own clients.
            socket(ESTABLISHED, 9_001, "203.0.113.1"),
            socket(ESTABLISHED, 40_003, "127.0.0.1"),
            socket(SYN_SENT, 40_004, "::1"),
        ];
        let expected = ["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"];
        assert_eq!(outbound(&rows), expected.map(|address| address.parse().unwrap()).into());
        assert_eq!(outbound(&[]), BTreeSet::new());
    }
}
