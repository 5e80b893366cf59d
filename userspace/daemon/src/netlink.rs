//! One question to the kernel over netlink, and all its answers (RFC 3549).

use std::io;

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable,
};
use netlink_sys::{Socket, SocketAddr};

/// How much of the kernel's answer is read at once; a dump's parts are at most 32 KiB.
const RECEIVE_BYTES: usize = 64 * 1024;
/// How long the kernel may take for a part of its answer.
const TIMEOUT_SECONDS: i64 = 5;

/// Asks `question` of netlink family `protocol` and calls `each` for every message of the answer.
///
/// With `dump` the kernel is asked for everything that matches, else for one object.
///
/// # Errors
/// The system's error, the kernel's error message, or `InvalidData` if the answer cannot be read.
pub fn ask<M>(protocol: isize, question: M, dump: bool, mut each: impl FnMut(M)) -> io::Result<()>
where
    M: NetlinkSerializable + NetlinkDeserializable,
{
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    crate::sys::set_receive_timeout(&socket, TIMEOUT_SECONDS)?;

    let mut header = NetlinkHeader::default();
    header.flags = if dump { NLM_F_REQUEST | NLM_F_DUMP } else { NLM_F_REQUEST };
    header.sequence_number = 1;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(question));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;

    let unreadable =
        |error: netlink_packet_core::DecodeError| io::Error::new(io::ErrorKind::InvalidData, error);
    loop {
        let mut received = Vec::with_capacity(RECEIVE_BYTES);
        socket.recv(&mut received, 0)?;
        let mut rest = received.as_slice();
        while !rest.is_empty() {
            let reply = NetlinkMessage::<M>::deserialize(rest).map_err(unreadable)?;
            // Messages are padded to four bytes (NLMSG_ALIGN).
            let length = (reply.header.length as usize).next_multiple_of(4).min(rest.len());
            rest = rest.get(length.max(1)..).unwrap_or_default();
            match reply.payload {
                NetlinkPayload::InnerMessage(message) => {
                    each(message);
                    if !dump {
                        return Ok(());
                    }
                }
                NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::Error(error) => match error.code {
                    None => return Ok(()),
                    Some(_) => return Err(error.to_io()),
                },
                NetlinkPayload::Noop => {}
                NetlinkPayload::Overrun(_) => {
                    return Err(io::Error::other("the kernel had to drop a part of its answer"));
                }
                _ => {}
            }
        }
    }
}
