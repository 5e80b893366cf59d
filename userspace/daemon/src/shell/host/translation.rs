//! Whether this host translates addresses (NAT).
//!
//! A connection that is translated on its way through belongs to a socket elsewhere, though its packets are addressed to
//! this host. The kernel program sees them before they are translated, so it must not refuse them for want of a socket.

use std::{fs, io, path::Path, sync::LazyLock};

use netlink_packet_core::{
    DecodeError, NetlinkDeserializable, NetlinkHeader, NetlinkPayload, NetlinkSerializable,
};
use netlink_sys::protocols::NETLINK_NETFILTER;

/// `NFNL_SUBSYS_NFTABLES` in include/uapi/linux/netfilter/nfnetlink.h, in the upper byte of a message's type.
const SUBSYSTEM: u16 = 10 << 8;
/// `NFT_MSG_GETCHAIN` in include/uapi/linux/netfilter/nf_tables.h.
const GET_CHAIN: u16 = 4;
/// `NFTA_CHAIN_TYPE`: the type of a base chain, a string that ends in a zero byte.
const CHAIN_TYPE: u16 = 7;
/// Bits of an attribute's type that are no flags (`NLA_TYPE_MASK`).
const TYPE_MASK: u16 = 0x3fff;
/// `struct nfgenmsg`: family, version, and a number of the subsystem's own.
const HEAD_BYTES: usize = 4;

/// Tables that iptables made without nftables, one name a line, for both families.
const LEGACY: [&str; 2] = ["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"];

/// Whether there is a chain or a table that translates addresses, of nftables or of iptables. Its rules are not read: who
/// made it may add one at any time.
///
/// # Errors
/// The kernel's, over netlink.
pub fn translates() -> io::Result<bool> {
    // Readable by root alone, and not there where no such table is.
    let mut unread = None;
    for path in LEGACY {
        match fs::read_to_string(path) {
            Ok(names) if names_nat(&names) => return Ok(true),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => unread = Some(error),
        }
    }
    match translates_by_nftables()? {
        true => Ok(true),
        false => unread.map_or(Ok(false), Err),
    }
}

fn translates_by_nftables() -> io::Result<bool> {
    if !(*MAY_ASK || Path::new("/sys/module/nf_tables").is_dir()) {
        return Ok(false);
    }
    let mut found = false;
    let asked = crate::netlink::ask(NETLINK_NETFILTER, Chain::default(), true, |chain: Chain| {
        found |= chain.is_nat;
    });
    match asked {
        // A kernel without nftables has no such chain.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        asked => asked.map(|()| found),
    }
}

fn names_nat(names: &str) -> bool {
    names.lines().any(|name| name == "nat")
}

/// Whether a question makes the kernel load no module: nftables is built in, or there is nothing to load.
static MAY_ASK: LazyLock<bool> = LazyLock::new(|| {
    let release = super::read_trimmed("/proc/sys/kernel/osrelease").unwrap_or_default();
    let modules = Path::new("/lib/modules").join(release);
    let is_built_in = fs::read_to_string(modules.join("modules.builtin"))
        .is_ok_and(|names| names.lines().any(|name| name.ends_with("/nf_tables.ko")));
    is_built_in || !modules.is_dir()
});

/// A question for all chains of nftables, or one of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Chain {
    is_nat: bool,
}

impl NetlinkSerializable for Chain {
    fn message_type(&self) -> u16 {
        SUBSYSTEM | GET_CHAIN
    }

    fn buffer_len(&self) -> usize {
        HEAD_BYTES
    }

    /// Every family, version 0.
    fn serialize(&self, buffer: &mut [u8]) {
        buffer.fill(0);
    }
}

impl NetlinkDeserializable for Chain {
    type Error = DecodeError;

    fn deserialize(_header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Self::Error> {
        let attributes = payload.get(HEAD_BYTES..).unwrap_or_default();
        Ok(Self { is_nat: attribute(attributes, CHAIN_TYPE).is_some_and(|kind| kind == b"nat\0") })
    }
}

impl From<Chain> for NetlinkPayload<Chain> {
    fn from(chain: Chain) -> Self {
        Self::InnerMessage(chain)
    }
}

/// The first attribute of this type: a head of two numbers in host order, length and type, and padding to four bytes.
fn attribute(mut rest: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let (head, _) = rest.split_first_chunk::<4>()?;
        let [a, b, c, d] = *head;
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = rest.get(4..length)?;
        if u16::from_ne_bytes([c, d]) & TYPE_MASK == wanted {
            return Some(value);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![2, 0, 0, 7];
        for (kind, value) in attributes {
            bytes.extend((value.len() as u16 + 4).to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(*value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    }

    #[test]
    fn chains_are_told_by_their_type() {
        let read = |bytes: &[u8]| Chain::deserialize(&NetlinkHeader::default(), bytes).unwrap().is_nat;
        let name = (3, &b"prerouting\0"[..]);
        for (attributes, is_nat) in [
            (vec![name, (CHAIN_TYPE, &b"nat\0"[..])], true),
            (vec![(0x8000 | 4, &[0; 5][..]), (CHAIN_TYPE, b"nat\0"), name], true),
            (vec![name, (CHAIN_TYPE, b"filter\0")], false),
            (vec![(3, b"nat\0")], false),
            (vec![name], false),
            (vec![], false),
        ] {
            let bytes = chain(&attributes);
            assert_eq!(read(&bytes), is_nat, "{attributes:?}");
            // Cut off anywhere, it is no other chain.
            for end in 0..bytes.len() {
                assert!(is_nat || !read(&bytes[..end]));
            }
        }
        // A length that leads nowhere.
        assert!(!read(&[2, 0, 0, 7, 0, 0, 0, 0]));
    }

    #[test]
    fn legacy_tables_are_told_by_name() {
        for (names, expected) in
            [("filter\nnat\n", true), ("filter\nmangle\n", false), ("", false), ("natty\n", false)]
        {
            assert_eq!(names_nat(names), expected, "{names}");
        }
    }
}
