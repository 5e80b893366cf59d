//! Shapes of the maps, and a hash of them.
//!
//! Pinned maps outlive the daemon, so a newer daemon may find maps of another shape. Every struct that crosses the
//! border is declared through `shared_struct!`, which records its field names and types as text; together with the
//! map table below they make [`LAYOUT_HASH`], which stands in the pin path. Maps of another layout are never opened.

use crate::{event, keys, policy};

/// What kind of map the kernel is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapKind {
    /// `BPF_MAP_TYPE_HASH`, preallocated.
    Hash,
    /// `BPF_MAP_TYPE_ARRAY`.
    Array,
    /// `BPF_MAP_TYPE_PERCPU_ARRAY`.
    PerCpuArray,
    /// `BPF_MAP_TYPE_LPM_TRIE`.
    LpmTrie,
    /// `BPF_MAP_TYPE_RINGBUF`.
    RingBuf,
    /// `BPF_MAP_TYPE_PROG_ARRAY`.
    ProgramArray,
    /// `BPF_MAP_TYPE_LRU_HASH`.
    LruHash,
}

/// One map: what the kernel program declares and what a pinned map must be before it is reused.
#[derive(Clone, Copy, Debug)]
pub struct MapShape {
    /// The name in the object file and in the pin directory.
    pub name: &'static str,
    /// The kind of map.
    pub kind: MapKind,
    /// Key size in bytes; 0 for a ring buffer.
    pub key_bytes: u32,
    /// Value size in bytes; 0 for a ring buffer.
    pub value_bytes: u32,
    /// Entries that the object declares; ring buffers: bytes. Configuration may ask for other sizes of
    /// [`BANS`], [`BANNED_NETS`] and [`ALLOW`].
    pub entries: u32,
}

/// Which of the two [`POLICIES`] is in force: one `u32`.
pub const ACTIVE: &str = "ACTIVE";
/// Two policies, one in force and one being written.
pub const POLICIES: &str = "POLICIES";
/// The daemon's last sign of life: one `u64`, nanoseconds of `CLOCK_MONOTONIC`.
pub const HEARTBEAT: &str = "HEARTBEAT";
/// Banned sources.
pub const BANS: &str = "BANS";
/// A bit for every value of a 20-bit hash of a banned source; clear means "not banned" without a look-up.
pub const BAN_FILTER: &str = "BAN_FILTER";
/// Prefixes that no ban and no per-source limit touches.
pub const ALLOW: &str = "ALLOW";
/// The host's own addresses.
pub const OWN: &str = "OWN";
/// The per-source SYN sketch: [`policy::SKETCH_ROWS`] rows of [`policy::SKETCH_CELLS`] cells.
pub const SYN_SKETCH: &str = "SYN_SKETCH";
/// What was done with each packet, by verdict and action, on each CPU.
pub const TALLIES: &str = "TALLIES";
/// Sampled events, and how many found the buffer full.
pub const EVENTS: &str = "EVENTS";
/// Events lost because [`EVENTS`] was full, on each CPU.
pub const LOST_EVENTS: &str = "LOST_EVENTS";

/// Banned ranges.
pub const BANNED_NETS: &str = "BANNED_NETS";
/// What operators said of ports, by [`policy::port_key`].
pub const PORTS: &str = "PORTS";
/// What the program remembers of each port, by port number.
pub const PORT_STATE: &str = "PORT_STATE";
/// What the program remembers of the host.
pub const HOST_STATE: &str = "HOST_STATE";
/// Clock of [`policy::Policy::segment_pace`], on each CPU.
pub const SEGMENT_GATE: &str = "SEGMENT_GATE";
/// The per-source sketch of segments without a socket, shaped as [`SYN_SKETCH`].
pub const SEGMENT_SKETCH: &str = "SEGMENT_SKETCH";
/// The per-source sketch of echo requests, shaped as [`SYN_SKETCH`].
pub const ICMP_SKETCH: &str = "ICMP_SKETCH";
/// IPv6 networks whose children exceed the SYN limit: [`policy::NET_CELLS`] of /56, then as many of /48.
pub const NET_STATE: &str = "NET_STATE";
/// Connections whose cookie came back not long ago, so that each counts once.
pub const RETURNED: &str = "RETURNED";
/// Clocks of [`policy::Policy::trickle_pace`], by [`policy::trickle_cell`].
pub const TRICKLES: &str = "TRICKLES";
/// Sources that completed a handshake.
pub const VERIFIED: &str = "VERIFIED";
/// Handshakes that were too many.
pub const PROOFS: &str = "PROOFS";
/// Proofs lost because [`PROOFS`] was full, on each CPU.
pub const LOST_PROOFS: &str = "LOST_PROOFS";
/// The programs that the shield jumps to.
pub const JUMPS: &str = "JUMPS";
/// Room to rebuild a packet in, on each CPU.
pub const SCRATCH: &str = "SCRATCH";
/// What the candidate policy said of a packet: two words on each CPU, see [`crate::event::judged`].
pub const JUDGED: &str = "JUDGED";
/// Packets on which candidate and policy in force differ, on each CPU, see [`crate::event::difference_slot`].
pub const DIFFERENCES: &str = "DIFFERENCES";
/// Words of [`SCRATCH`].
pub const SCRATCH_WORDS: usize = 32;

/// A map of this kind whose keys and values are of these types.
const fn shape<K, V>(name: &'static str, kind: MapKind, entries: usize) -> MapShape {
    let (key_bytes, value_bytes) = (size_of::<K>() as u32, size_of::<V>() as u32);
    MapShape { name, kind, key_bytes, value_bytes, entries: entries as u32 }
}

pub(crate) const fn array<V>(name: &'static str, entries: usize) -> MapShape {
    shape::<u32, V>(name, MapKind::Array, entries)
}

pub(crate) const fn per_cpu_array<V>(name: &'static str, entries: usize) -> MapShape {
    shape::<u32, V>(name, MapKind::PerCpuArray, entries)
}

pub(crate) const fn hash<K, V>(name: &'static str, entries: usize) -> MapShape {
    shape::<K, V>(name, MapKind::Hash, entries)
}

/// A trie over addresses: a key is its length in bits, then the address.
const fn ranges<V>(name: &'static str, entries: usize) -> MapShape {
    let shape = shape::<keys::AddressBytes, V>(name, MapKind::LpmTrie, entries);
    MapShape { key_bytes: 4 + shape.key_bytes, ..shape }
}

const fn ring(name: &'static str, bytes: usize) -> MapShape {
    shape::<(), ()>(name, MapKind::RingBuf, bytes)
}

const fn sketch(name: &'static str) -> MapShape {
    array::<u32>(name, policy::SKETCH_ROWS * policy::SKETCH_CELLS)
}

/// Every map of the shield.
pub const MAPS: [MapShape; 28] = [
    array::<u32>(ACTIVE, 1),
    array::<policy::Policy>(POLICIES, 2),
    array::<u64>(HEARTBEAT, 1),
    hash::<keys::SourceKey, keys::BanEntry>(BANS, policy::DEFAULT_BANS),
    array::<u64>(BAN_FILTER, policy::BAN_FILTER_WORDS),
    ranges::<keys::AllowEntry>(ALLOW, policy::DEFAULT_ALLOW),
    hash::<keys::AddressBytes, u32>(OWN, policy::OWN_ADDRESSES),
    sketch(SYN_SKETCH),
    sketch(SEGMENT_SKETCH),
    sketch(ICMP_SKETCH),
    ranges::<keys::BanEntry>(BANNED_NETS, policy::DEFAULT_NETS),
    hash::<u32, policy::PortRule>(PORTS, policy::PORT_RULES),
    array::<policy::PortState>(PORT_STATE, 65_536),
    array::<policy::HostState>(HOST_STATE, 1),
    per_cpu_array::<u64>(SEGMENT_GATE, 1),
    array::<policy::NetState>(NET_STATE, 2 * policy::NET_CELLS),
    array::<u64>(RETURNED, policy::RETURNED_ROWS),
    array::<u64>(TRICKLES, policy::TRICKLE_CELLS),
    shape::<keys::SourceKey, policy::Verified>(VERIFIED, MapKind::LruHash, policy::VERIFIED_SOURCES),
    ring(PROOFS, event::PROOF_RING_BYTES),
    per_cpu_array::<u64>(LOST_PROOFS, 1),
    shape::<u32, u32>(JUMPS, MapKind::ProgramArray, policy::JUMP_PROGRAMS),
    per_cpu_array::<[u64; SCRATCH_WORDS]>(SCRATCH, 1),
    per_cpu_array::<event::Tally>(TALLIES, event::TALLY_SLOTS),
    per_cpu_array::<[u64; 2]>(JUDGED, 1),
    per_cpu_array::<event::Tally>(DIFFERENCES, event::DIFFERENCE_SLOTS),
    ring(EVENTS, event::RING_BYTES),
    per_cpu_array::<u64>(LOST_EVENTS, 1),
];

pub(crate) const fn fold(mut hash: u64, bytes: &[u8]) -> u64 {
    // FNV-1a (draft-eastlake-fnv): not against adversaries, only against mistakes.
    let mut index = 0;
    while index < bytes.len() {
        #[expect(clippy::indexing_slicing, reason = "the loop's bound is the length")]
        let byte = bytes[index];
        hash = (hash ^ byte as u64).wrapping_mul(0x0000_0100_0000_01b3);
        index += 1;
    }
    hash
}

const fn layout_hash() -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325;
    let structs = [
        keys::SourceKey::LAYOUT,
        keys::BanEntry::LAYOUT,
        keys::AllowEntry::LAYOUT,
        policy::Policy::LAYOUT,
        policy::PortRule::LAYOUT,
        policy::PortState::LAYOUT,
        policy::HostState::LAYOUT,
        policy::NetState::LAYOUT,
        policy::Verified::LAYOUT,
        event::Proof::LAYOUT,
        event::Tally::LAYOUT,
        event::Event::LAYOUT,
    ];
    let mut index = 0;
    while index < structs.len() {
        #[expect(clippy::indexing_slicing, reason = "the loop's bound is the length")]
        let text = structs[index];
        hash = fold(hash, text.as_bytes());
        index += 1;
    }
    index = 0;
    while index < MAPS.len() {
        #[expect(clippy::indexing_slicing, reason = "the loop's bound is the length")]
        let shape = MAPS[index];
        hash = fold(hash, shape.name.as_bytes());
        hash = fold(hash, &[shape.kind as u8]);
        hash = fold(hash, &shape.key_bytes.to_le_bytes());
        hash = fold(hash, &shape.value_bytes.to_le_bytes());
        index += 1;
    }
    // The meaning of the counter slots is part of the layout too.
    let mut slot = 0;
    while slot < crate::verdict::Verdict::COUNT as u32 {
        if let Some(verdict) = crate::verdict::Verdict::from_slot(slot) {
            hash = fold(hash, verdict.label().as_bytes());
        }
        slot += 1;
    }
    hash
}

/// Hash of every name, field and size that kernel and host share; 16 hexadecimal digits of it stand in the pin path.
///
/// Table sizes are left out: maps of another size are found by comparing with [`MAPS`] and the configuration.
pub const LAYOUT_HASH: u64 = layout_hash();
