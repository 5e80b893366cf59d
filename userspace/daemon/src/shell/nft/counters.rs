//! The counters of our table of nftables, asked of the kernel itself.
//!
//! `nft list counters` reads every element of every set first, which with a full table of bans takes a third of a second;
//! this is one question over netlink, cheap enough for every second (linux/netfilter/nf_tables.h, `NFT_MSG_GETOBJ`).

use std::io;

use netlink_packet_core::{
    DecodeError, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable, NlasIterator,
};
use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::shell::xdp::tables::Total;

/// `NFNL_SUBSYS_NFTABLES`, shifted as message types have it.
const NFTABLES: u16 = 10 << 8;
/// `NFT_MSG_GETOBJ` of `enum nf_tables_msg_types`.
const GET_OBJECT: u16 = NFTABLES | 19;
/// `NFPROTO_INET`, version `NFNETLINK_V0`, no resource: `struct nfgenmsg`.
const FAMILY_INET: [u8; 4] = [1, 0, 0, 0];
/// `NFTA_OBJ_TABLE`, `NFTA_OBJ_NAME`, `NFTA_OBJ_TYPE`, `NFTA_OBJ_DATA`.
const TABLE: u16 = 1;
const NAME: u16 = 2;
const TYPE: u16 = 3;
const DATA: u16 = 4;
/// `NFT_OBJECT_COUNTER`.
const COUNTER: u32 = 1;
/// `NFTA_COUNTER_BYTES`, `NFTA_COUNTER_PACKETS`.
const BYTES: u16 = 1;
const PACKETS: u16 = 2;

/// Every counter of the table `inet` `table`, with its name; none if there is no such table.
///
/// # Errors
/// The kernel's, over netlink.
pub(super) fn read(table: &str) -> io::Result<Vec<(String, Total)>> {
    let mut counters = Vec::new();
    let question = Message::Question { table: table.to_owned() };
    crate::netlink::ask(NETLINK_NETFILTER, question, true, |message| {
        if let Message::Counter { table: of, name, total } = message
            && of == table
        {
            counters.push((name, total));
        }
    })?;
    Ok(counters)
}

#[derive(Debug)]
enum Message {
    Question { table: String },
    Counter { table: String, name: String, total: Total },
}

/// An attribute: length, kind, value, and padding to four bytes.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    // Names of tables are far shorter than what 16 bits can tell.
    let length = u16::try_from(value.len().saturating_add(4)).unwrap_or(u16::MAX);
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

impl Message {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Question { table } => {
                let name = [table.as_bytes(), &[0]].concat();
                [&FAMILY_INET[..], &attribute(TABLE, &name), &attribute(TYPE, &COUNTER.to_be_bytes())]
                    .concat()
            }
            // Only the kernel says this.
            Self::Counter { .. } => Vec::new(),
        }
    }
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        GET_OBJECT
    }

    fn buffer_len(&self) -> usize {
        self.bytes().len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.bytes());
    }
}

impl NetlinkDeserializable for Message {
    type Error = DecodeError;

    fn deserialize(_header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        let (mut table, mut name, mut total) = (String::new(), String::new(), Total::default());
        let text = |value: &[u8]| String::from_utf8_lossy(value).trim_end_matches('\0').to_owned();
        let number = |value: &[u8]| value.try_into().map_or(0, u64::from_be_bytes);
        for attribute in NlasIterator::new(payload.get(FAMILY_INET.len()..).unwrap_or_default()) {
            let attribute = attribute?;
            match attribute.kind() {
                TABLE => table = text(attribute.value()),
                NAME => name = text(attribute.value()),
                DATA => {
                    for figure in NlasIterator::new(attribute.value()) {
                        let figure = figure?;
                        match figure.kind() {
                            BYTES => total.bytes = number(figure.value()),
                            PACKETS => total.packets = number(figure.value()),
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(Self::Counter { table, name, total })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_read_from_its_attributes() {
        let figures = [
            attribute(BYTES, &540_u64.to_be_bytes()),
            attribute(PACKETS, &9_u64.to_be_bytes()),
            attribute(99, &[1]),
        ]
        .concat();
        let payload = [
            FAMILY_INET.to_vec(),
            attribute(TABLE, b"tunica\0"),
            attribute(NAME, b"xmas\0"),
            attribute(TYPE, &COUNTER.to_be_bytes()),
            // Nested attributes are marked so (NLA_F_NESTED).
            attribute(DATA | 0x8000, &figures),
        ]
        .concat();
        let read = Message::deserialize(&NetlinkHeader::default(), &payload).unwrap();
        let Message::Counter { table, name, total } = read else { panic!("{read:?}") };
        assert_eq!((table.as_str(), name.as_str()), ("tunica", "xmas"));
        assert_eq!(total, Total { packets: 9, bytes: 540 });
        for cut in 0..payload.len() {
            // Whatever comes of a part, it is no panic.
            let _ = Message::deserialize(&NetlinkHeader::default(), &payload[..cut]);
        }
    }

    #[test]
    fn the_question_is_padded_to_words() {
        let question = Message::Question { table: "tunica".to_owned() };
        let mut bytes = vec![0; question.buffer_len()];
        question.serialize(&mut bytes);
        assert_eq!((bytes.len(), bytes.len() % 4), (4 + 12 + 8, 0));
    }
}
