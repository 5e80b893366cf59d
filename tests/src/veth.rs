//! A veth pair without `ip`, for a machine that has no programs.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::net::if_::if_nametoindex;

/// Makes the pair in this thread's namespace and sets both ends up (rtnetlink(7)).
///
/// # Errors
/// The kernel's; EOPNOTSUPP where it has no veth driver.
pub fn create(one: &str, other: &str) -> io::Result<()> {
    let named = |name: &str| {
        let mut link = LinkMessage::default();
        link.attributes.push(LinkAttribute::IfName(name.to_owned()));
        link
    };
    let mut pair = named(one);
    let peer = InfoData::Veth(InfoVeth::Peer(named(other)));
    pair.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(peer)]));
    request(RouteNetlinkMessage::NewLink(pair), NLM_F_CREATE | NLM_F_EXCL)?;
    // An end cannot be set up before it has its peer.
    for name in [one, other] {
        set_up(name)?;
    }
    Ok(())
}

/// Sets an interface of this thread's namespace up.
///
/// # Errors
/// The kernel's.
pub fn set_up(name: &str) -> io::Result<()> {
    let mut link = LinkMessage::default();
    link.header.index = if_nametoindex(name)?;
    (link.header.flags, link.header.change_mask) = (LinkFlags::Up, LinkFlags::Up);
    request(RouteNetlinkMessage::SetLink(link), 0)
}

fn request(question: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(question));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);

    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&bytes, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer).map_err(io::Error::other)?;
    // The answer to a change is an error number, which is zero if it was made.
    let NetlinkPayload::Error(error) = answer.payload else {
        return Err(io::Error::other(format!("the kernel answered {:?}", answer.payload)));
    };
    if error.code.is_none() { Ok(()) } else { Err(error.to_io()) }
}
