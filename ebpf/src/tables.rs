//! All maps, and the only reads and writes of them.
//!
//! `unsafe` here dereferences pointers that a map look-up returned: array values live as long as the map; hash values
//! may be reused under a reader by the next insertion, so they are copied out at once.

use aya_ebpf::{
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray, RingBuf, lpm_trie::Key},
    helpers::generated::bpf_ktime_get_coarse_ns,
    macros::btf_map,
};
use tunica_common::{
    event::{DIFFERENCE_SLOTS, Event, PROOF_RING_BYTES, Proof, RING_BYTES, TALLY_SLOTS, Tally},
    keys::{AddressBytes, AllowEntry, BanEntry, SourceKey},
    layout::SCRATCH_WORDS,
    policy::{
        BAN_FILTER_WORDS, DEFAULT_ALLOW, DEFAULT_BANS, DEFAULT_NETS, HostState, JUMP_PROGRAMS, NET_CELLS,
        NetState, OWN_ADDRESSES, PORT_RULES, Policy, PortRule, PortState, RETURNED_ROWS, SKETCH_CELLS,
        SKETCH_ROWS, TRICKLE_CELLS, VERIFIED_SOURCES, Verified,
    },
};

use crate::packet::Frame;

#[btf_map]
static ACTIVE: Array<u32, 1> = Array::new();
#[btf_map]
static POLICIES: Array<Policy, 2> = Array::new();
#[btf_map]
static HEARTBEAT: Array<u64, 1> = Array::new();
#[btf_map]
static BANS: HashMap<SourceKey, BanEntry, DEFAULT_BANS> = HashMap::new();
#[btf_map]
static BAN_FILTER: Array<u64, BAN_FILTER_WORDS> = Array::new();
#[btf_map]
static ALLOW: LpmTrie<AddressBytes, AllowEntry, DEFAULT_ALLOW> = LpmTrie::new();
#[btf_map]
static OWN: HashMap<AddressBytes, u32, OWN_ADDRESSES> = HashMap::new();
#[btf_map]
static SYN_SKETCH: Array<u32, { SKETCH_ROWS * SKETCH_CELLS }> = Array::new();
#[btf_map]
static SEGMENT_SKETCH: Array<u32, { SKETCH_ROWS * SKETCH_CELLS }> = Array::new();
#[btf_map]
static ICMP_SKETCH: Array<u32, { SKETCH_ROWS * SKETCH_CELLS }> = Array::new();
#[btf_map]
static BANNED_NETS: LpmTrie<AddressBytes, BanEntry, DEFAULT_NETS> = LpmTrie::new();
#[btf_map]
static PORTS: HashMap<u32, PortRule, PORT_RULES> = HashMap::new();
#[btf_map]
static PORT_STATE: Array<PortState, 65_536> = Array::new();
#[btf_map]
static HOST_STATE: Array<HostState, 1> = Array::new();
#[btf_map]
static SEGMENT_GATE: PerCpuArray<u64, 1> = PerCpuArray::new();
#[btf_map]
static NET_STATE: Array<NetState, { 2 * NET_CELLS }> = Array::new();
#[btf_map]
static JUMPS: ProgramArray<JUMP_PROGRAMS> = ProgramArray::new();
#[btf_map]
static SCRATCH: PerCpuArray<[u64; SCRATCH_WORDS], 1> = PerCpuArray::new();
#[btf_map]
static RETURNED: Array<u64, RETURNED_ROWS> = Array::new();
#[btf_map]
static TRICKLES: Array<u64, TRICKLE_CELLS> = Array::new();
#[btf_map]
static VERIFIED: LruHashMap<SourceKey, Verified, VERIFIED_SOURCES> = LruHashMap::new();
#[btf_map]
static PROOFS: RingBuf<(), PROOF_RING_BYTES> = RingBuf::new();
#[btf_map]
static LOST_PROOFS: PerCpuArray<u64, 1> = PerCpuArray::new();
#[btf_map]
static JUDGED: PerCpuArray<[u64; 2], 1> = PerCpuArray::new();
#[btf_map]
static DIFFERENCES: PerCpuArray<Tally, DIFFERENCE_SLOTS> = PerCpuArray::new();
#[btf_map]
static TALLIES: PerCpuArray<Tally, TALLY_SLOTS> = PerCpuArray::new();
// No value type: libbpf refuses a ring buffer that declares a value size.
#[btf_map]
static EVENTS: RingBuf<(), RING_BYTES> = RingBuf::new();
#[btf_map]
static LOST_EVENTS: PerCpuArray<u64, 1> = PerCpuArray::new();

/// The policy in force. `None` only if the maps are not what this program declares.
#[inline(always)]
pub fn policy() -> Option<&'static Policy> {
    let active = *ACTIVE.get(0)?;
    POLICIES.get(active & 1)
}

/// Nanoseconds of `CLOCK_MONOTONIC` at the last timer tick: 1 to 10 ms old, at a fifth of the exact clock's cost.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: the helper takes no argument and only reads the clock.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// Whether the daemon has been silent for longer than the policy bears.
#[inline(always)]
pub fn is_stale(policy: &Policy, now: u64) -> bool {
    match HEARTBEAT.get(0) {
        Some(beat) => now.saturating_sub(*beat) > policy.stale_after_ns,
        None => true,
    }
}

/// The ban table's row of `key`.
#[inline(always)]
pub fn ban(key: &SourceKey) -> Option<BanEntry> {
    // SAFETY: copied before anything else can run; a row reused in between belongs to another ban of the same
    // table, which at worst ends this packet's verdict one ban too early or too late.
    unsafe { BANS.get(key).copied() }
}

/// Whether the ban filter leaves it open that a source with this position is banned.
#[inline(always)]
pub fn may_be_banned(word: u32, bit: u64) -> bool {
    match BAN_FILTER.get(word) {
        Some(bits) => bits & bit != 0,
        None => true,
    }
}

/// Whether the allow list covers `address`.
#[inline(always)]
pub fn is_allowed(address: AddressBytes) -> bool {
    ALLOW.get(&Key::new(128, address)).is_some()
}

/// Whether `address` is one of the host's own.
#[inline(always)]
pub fn is_own(address: &AddressBytes) -> bool {
    OWN.get_ptr(address).is_some()
}

/// The ban of the longest banned range that covers `address`.
#[inline(always)]
pub fn net_ban(address: AddressBytes) -> Option<BanEntry> {
    BANNED_NETS.get(&Key::new(128, address)).copied()
}

/// Which sketch a cell belongs to.
#[derive(Clone, Copy)]
pub enum Sketch {
    Syn,
    Segment,
    Icmp,
}

/// A cell of a sketch. Two CPUs may lose each other's update, which admits one packet too many.
#[inline(always)]
pub fn cell(sketch: Sketch, index: u32) -> Option<&'static mut u32> {
    let cell = match sketch {
        Sketch::Syn => SYN_SKETCH.get_ptr_mut(index),
        Sketch::Segment => SEGMENT_SKETCH.get_ptr_mut(index),
        Sketch::Icmp => ICMP_SKETCH.get_ptr_mut(index),
    };
    // SAFETY: the value is four aligned bytes of an array map; it is read once and written once per packet.
    cell.map(|cell| unsafe { &mut *cell })
}

/// What an operator said of the port with this key.
#[inline(always)]
pub fn port_rule(key: u32) -> Option<&'static PortRule> {
    // SAFETY: a row reused while it is read belongs to another port, which at worst costs this packet's verdict. A copy
    // would be carried along where there is none, and the verifier refuses to read what was never written.
    unsafe { PORTS.get(&key) }
}

/// What is remembered of a port. CPUs may lose each other's updates, which admits a packet too many.
#[inline(always)]
pub fn port(port: u16) -> Option<&'static mut PortState> {
    // SAFETY: aligned words of an array map, each read once and written once per packet.
    PORT_STATE.get_ptr_mut(u32::from(port)).map(|state| unsafe { &mut *state })
}

/// The clock of the trickle to one listener.
#[inline(always)]
pub fn trickle(cell: u32) -> Option<&'static mut u64> {
    // SAFETY: as for `port`.
    TRICKLES.get_ptr_mut(cell).map(|clock| unsafe { &mut *clock })
}

/// What is remembered of the host.
#[inline(always)]
pub fn host() -> Option<&'static mut HostState> {
    // SAFETY: as for `port`.
    HOST_STATE.get_ptr_mut(0).map(|state| unsafe { &mut *state })
}

/// The connection that last returned a cookie in the row of this mark.
#[inline(always)]
pub fn returned(mark: u64) -> Option<&'static mut u64> {
    let row = (mark >> 40) as u32 & (RETURNED_ROWS as u32 - 1);
    // SAFETY: as for `port`.
    RETURNED.get_ptr_mut(row).map(|last| unsafe { &mut *last })
}

/// This CPU's clock of segments that are let through unjudged.
#[inline(always)]
pub fn segment_gate() -> Option<&'static mut u64> {
    // SAFETY: as for `tally`.
    SEGMENT_GATE.get_ptr_mut(0).map(|gate| unsafe { &mut *gate })
}

/// A cell of the table of networks.
#[inline(always)]
pub fn net(index: u32) -> Option<&'static mut NetState> {
    // SAFETY: as for `port`.
    NET_STATE.get_ptr_mut(index).map(|state| unsafe { &mut *state })
}

/// Sets four words to 0.
#[inline(always)]
pub fn clear(words: &mut [u64; 4]) {
    for word in words {
        // SAFETY: a plain store; volatile, because the compiler would make a call of four of them.
        unsafe { core::ptr::from_mut(word).write_volatile(0) };
    }
}

/// This CPU's room to rebuild a packet in.
#[inline(always)]
pub fn scratch() -> Option<&'static mut [u64; SCRATCH_WORDS]> {
    // SAFETY: as for `tally`.
    SCRATCH.get_ptr_mut(0).map(|scratch| unsafe { &mut *scratch })
}

/// Goes on in another program. Returns only if that is not there.
#[inline(always)]
pub fn jump(frame: &Frame<'_>, program: u32) {
    // SAFETY: nothing here has anything to clean up.
    unsafe { JUMPS.tail_call(frame.xdp(), program) }
}

/// This CPU's tally in `slot`.
#[inline(always)]
pub fn tally(slot: u32) -> Option<&'static mut Tally> {
    // SAFETY: the slot belongs to this CPU, and XDP programs do not interrupt each other on one CPU.
    TALLIES.get_ptr_mut(slot).map(|tally| unsafe { &mut *tally })
}

/// What the candidate said: first of the packet that it hands on, then of the one being judged; 0 where it said nothing.
#[inline(always)]
pub fn judged() -> Option<&'static mut [u64; 2]> {
    // SAFETY: as for `tally`.
    JUDGED.get_ptr_mut(0).map(|words| unsafe { &mut *words })
}

/// This CPU's tally of a difference between candidate and policy in force.
#[inline(always)]
pub fn difference(slot: u32) -> Option<&'static mut Tally> {
    // SAFETY: as for `tally`.
    DIFFERENCES.get_ptr_mut(slot).map(|tally| unsafe { &mut *tally })
}

/// Hands an event to the daemon, or counts it as lost.
#[inline(always)]
pub fn send(event: &Event) {
    if EVENTS.output_untyped::<Event>(event, 0).is_err()
        && let Some(lost) = LOST_EVENTS.get_ptr_mut(0)
    {
        // SAFETY: as for `tally`.
        unsafe { *lost += 1 };
    }
}

/// What is known of a source that completed a handshake before.
#[inline(always)]
pub fn verified(key: &SourceKey) -> Option<&'static mut Verified> {
    // SAFETY: aligned words; a row reused while it is written belongs to a source that just completed a handshake, which
    // then counts as one too many at worst.
    VERIFIED.get_ptr_mut(key).map(|row| unsafe { &mut *row })
}

/// Begins to remember a source that completed a handshake.
#[inline(always)]
pub fn verify(key: &SourceKey, row: &Verified) {
    // A full table makes room by itself; if memory is short, the next handshake tries again.
    let _ = VERIFIED.insert(key, row, 0);
}

/// Hands a proof to the daemon, or counts it as lost.
#[inline(always)]
pub fn prove(proof: &Proof) {
    if PROOFS.output_untyped::<Proof>(proof, 0).is_err()
        && let Some(lost) = LOST_PROOFS.get_ptr_mut(0)
    {
        // SAFETY: as for `tally`; a socket's callback may be interrupted by another one, which loses a count at worst.
        unsafe { *lost += 1 };
    }
}
