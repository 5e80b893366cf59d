//! The rules as the kernel program reads them.

use crate::{keys::SourceKey, shared::shared_struct};

/// How many VLAN tags the program looks behind (IEEE 802.1Q and 802.1ad).
pub const MAX_VLAN_TAGS: usize = 2;
/// How many IPv6 extension headers the program looks behind; the kernel's own senders never exceed four.
pub const MAX_EXTENSION_HEADERS: usize = 6;
/// Rows of the SYN sketch.
pub const SKETCH_ROWS: usize = 2;
/// Cells in a row of the SYN sketch; a power of two.
pub const SKETCH_CELLS: usize = 1 << SKETCH_CELL_BITS;
/// `SKETCH_CELLS` is two to this power.
pub const SKETCH_CELL_BITS: u32 = 16;
/// Rows of the ban table unless configured otherwise.
pub const DEFAULT_BANS: usize = 131_072;
/// Rows of the allow list unless configured otherwise.
pub const DEFAULT_ALLOW: usize = 16_384;
/// Rows of the table of banned ranges unless configured otherwise.
pub const DEFAULT_NETS: usize = 16_384;
/// Rows of the table of ports.
pub const PORT_RULES: usize = 2_048;
/// Rows that remember which connection last returned a cookie; a power of two.
pub const RETURNED_ROWS: usize = 65_536;
/// Clocks of [`Policy::trickle_pace`], one for each listener unless two share one; a power of two.
pub const TRICKLE_CELLS: usize = 1_024;
/// How many own addresses the own-source rule can hold.
pub const OWN_ADDRESSES: usize = 1_024;
/// Words of 64 bits in the ban filter.
pub const BAN_FILTER_WORDS: usize = 1 << (BAN_FILTER_BITS - 6);
/// The ban filter holds two to this power bits (128 KiB).
pub const BAN_FILTER_BITS: u32 = 20;

/// [`Policy::mode`]: every packet passes uninspected.
pub const MODE_OFF: u32 = 0;
/// [`Policy::mode`]: count what `enforce` would drop.
pub const MODE_OBSERVE: u32 = 1;
/// [`Policy::mode`]: drop.
pub const MODE_ENFORCE: u32 = 2;

/// [`Policy::on_stale`]: dynamic bans lapse; limits and sanity rules stay.
pub const STALE_KEEP_LIMITS: u32 = 0;
/// [`Policy::on_stale`]: every ban and limit lapses; sanity rules stay.
pub const STALE_SANITY_ONLY: u32 = 1;
/// [`Policy::on_stale`]: nothing is dropped.
pub const STALE_PASS: u32 = 2;

/// [`Policy::cookies`]: no SYN is answered; a port over its budget leaves it to the kernel.
pub const COOKIES_OFF: u32 = 0;
/// [`Policy::cookies`]: cookies carry the segment size alone.
pub const COOKIES_PLAIN: u32 = 1;
/// [`Policy::cookies`]: where the peer sends timestamps, window scaling and SACK travel in them. The listener reads
/// them only with `net.ipv4.tcp_timestamps = 2`, since otherwise it adds a secret offset to each peer's timestamps.
pub const COOKIES_WITH_OPTIONS: u32 = 2;

/// Index of a program in [`crate::layout::JUMPS`]: decides about SYNs to ports over their budget, and answers with cookies.
pub const JUMP_COOKIE: u32 = 0;
/// Index of a program in [`crate::layout::JUMPS`]: judges segments that are no SYN by their sockets.
pub const JUMP_SEGMENT: u32 = 1;
/// Index of a program in [`crate::layout::JUMPS`]: the shield itself, to which a candidate hands the packet on.
pub const JUMP_SHIELD: u32 = 2;
/// Index of a program in [`crate::layout::JUMPS`]: the shield that judges by the candidate policy.
pub const JUMP_CANDIDATE: u32 = 3;
/// The candidate's own programs for cookies and segments stand this much further.
pub const CANDIDATE_JUMPS: u32 = 4;
/// How many programs the shield jumps to.
pub const JUMP_PROGRAMS: usize = 6;

/// [`Policy::candidate`]: there is none.
pub const CANDIDATE_NONE: u32 = 0;
/// [`Policy::candidate`]: this policy is in force, and another one is tried beside it on each packet before.
pub const CANDIDATE_BESIDE: u32 = 1;
/// [`Policy::candidate`]: this policy is tried. It decides nothing: what it would do is counted, and the packet handed on.
pub const CANDIDATE_SELF: u32 = 2;

shared_struct! {
    /// Everything the program consults besides tables. The host writes the slot that is not in force, then flips
    /// [`crate::layout::ACTIVE`], so a packet sees one policy or the other, never a mixture.
    ///
    /// A pair named `…_pace` is a [`crate::gcra::Pace`]: nanoseconds a packet costs, and the tolerance; cost 0 switches
    /// the limit off.
    pub struct Policy {
        /// Secret half of the sketch and filter hashes, drawn anew at each load.
        pub secret: [u64; 2],
        /// Sanity rules in force, by [`crate::verdict::Verdict::bit`].
        pub sanity_mask: u64,
        /// Uninspected classes that are dropped, by [`crate::verdict::Verdict::bit`].
        pub uninspected_drop_mask: u64,
        /// A bit for each value of [`own_bit`] that some own address has; 0 switches the own-source rule off.
        pub own_filter: u64,
        /// After how many nanoseconds without a heartbeat [`Policy::on_stale`] applies.
        pub stale_after_ns: u64,
        /// Least nanoseconds between two events of one verdict on one CPU.
        pub event_interval_ns: u64,
        /// SYNs to one port, beyond which the port answers with cookies.
        pub budget_pace: [u64; 2],
        /// How long a port goes on answering after its SYNs last exceeded half the budget, nanoseconds.
        pub armed_hold_ns: u64,
        /// SYNs that reach each listener of a port that answers with cookies, told apart by the address that they go to.
        pub trickle_pace: [u64; 2],
        /// Segments that are no SYN, on one CPU, below which their sockets are not looked up.
        pub segment_pace: [u64; 2],
        /// Segments of no connection to the host, all sources together.
        pub segment_host_pace: [u64; 2],
        /// Echo requests to the host.
        pub icmp_host_pace: [u64; 2],
        /// All other ICMP messages to the host but neighbour discovery.
        pub icmp_ceiling_pace: [u64; 2],
        /// Completed handshakes of one source; each beyond it is a proven violation.
        pub handshake_pace: [u64; 2],
        /// Which network namespace's handshakes count (`SO_NETNS_COOKIE`, socket(7)).
        pub netns_cookie: u64,
        /// Always 0, which the program's verifier cannot know: what it is added to, the verifier forgets.
        pub zero: u64,
        /// Counts applied policies; its low bits tag the sketch's cells.
        pub generation: u32,
        /// One of the `MODE_…` numbers.
        pub mode: u32,
        /// One of the `STALE_…` numbers.
        pub on_stale: u32,
        /// Ticks that one SYN costs ([`crate::gcra::Limit::cost_ticks`]); 0 switches the SYN limit off.
        pub syn_cost_ticks: u32,
        /// [`crate::gcra::Limit::tolerance_ticks`] of the SYN limit.
        pub syn_tolerance_ticks: u32,
        /// As for SYNs, of segments without a socket; 0 switches the look-up off.
        pub segment_cost_ticks: u32,
        /// [`crate::gcra::Limit::tolerance_ticks`] of segments without a socket.
        pub segment_tolerance_ticks: u32,
        /// As for SYNs, of echo requests; 0 switches every ICMP limit off.
        pub icmp_cost_ticks: u32,
        /// [`crate::gcra::Limit::tolerance_ticks`] of echo requests.
        pub icmp_tolerance_ticks: u32,
        /// How many exceeding networks make the next larger one share a limit; 0 switches that off.
        pub escalate_children: u32,
        /// 1 while the ban table holds anything; 0 spares the look-up.
        pub bans_present: u32,
        /// 1 while the table of banned ranges holds anything; 0 spares the look-up.
        pub nets_present: u32,
        /// 1 while the allow list holds anything; 0 spares the look-up.
        pub allow_present: u32,
        /// 1 while the table of ports holds anything; 0 spares the look-up.
        pub ports_present: u32,
        /// 1 if only listed ports are open.
        pub lockdown: u32,
        /// One of the `COOKIES_…` numbers.
        pub cookies: u32,
        /// First port of `net.ipv4.ip_local_port_range`: a locked-down host accepts UDP from it on where a socket waits.
        pub ephemeral_low: u32,
        /// Segment size that cookies offer to IPv4 peers, bytes.
        pub cookie_mss_v4: u32,
        /// Segment size that cookies offer to IPv6 peers, bytes.
        pub cookie_mss_v6: u32,
        /// Window scale that the listeners use (RFC 7323), 0 to 14.
        pub cookie_window_scale: u32,
        /// One of the `CANDIDATE_…` numbers.
        pub candidate: u32,
        /// 1 where the host translates addresses, so that a connection of somebody behind it has no socket here.
        pub translates: u32,
    }
    size = 280
}

shared_struct! {
    /// What an operator said of one port.
    pub struct PortRule {
        /// New connections, as a [`crate::gcra::Pace`]; cost 0: unlimited.
        pub new_pace: [u64; 2],
        /// UDP packets, as a [`crate::gcra::Pace`]; cost 0: unlimited.
        pub udp_pace: [u64; 2],
        /// [`PORT_OPEN`] and [`PORT_WITHOUT_COOKIES`].
        pub flags: u32,
        /// Always 0.
        pub reserved: u32,
    }
    size = 40
}

/// [`PortRule::flags`]: open while the host is locked down.
pub const PORT_OPEN: u32 = 1;
/// [`PortRule::flags`]: never answered with cookies.
pub const PORT_WITHOUT_COOKIES: u32 = 2;

/// The key of a port in [`crate::layout::PORTS`].
#[inline(always)]
pub const fn port_key(protocol: u8, port: u16) -> u32 {
    (protocol as u32) << 16 | port as u32
}

shared_struct! {
    /// What the program remembers of one TCP or UDP port; all times in nanoseconds of `CLOCK_MONOTONIC`.
    pub struct PortState {
        /// The port answers with cookies until then.
        pub armed_until_ns: u64,
        /// Since when it does.
        pub armed_since_ns: u64,
        /// Clock of [`Policy::budget_pace`].
        pub budget_tat: u64,
        /// Clock of half the budget, which decides when the port is quiet again.
        pub half_tat: u64,
        /// Clock of [`PortRule::new_pace`].
        pub new_tat: u64,
        /// Clock of [`PortRule::udp_pace`].
        pub udp_tat: u64,
        /// Good cookies that came back.
        pub cookies_returned: u64,
    }
    size = 56
}

shared_struct! {
    /// What the program remembers of the host; all times in nanoseconds of `CLOCK_MONOTONIC`.
    pub struct HostState {
        /// Some port answers with cookies until then.
        pub armed_until_ns: u64,
        /// Clock of [`Policy::icmp_host_pace`].
        pub icmp_host_tat: u64,
        /// Clock of [`Policy::icmp_ceiling_pace`].
        pub icmp_ceiling_tat: u64,
        /// Clock of [`Policy::segment_host_pace`].
        pub segment_tat: u64,
    }
    size = 32
}

shared_struct! {
    /// What is known of a source that completed a handshake, so that its address is its own. Times are nanoseconds of
    /// `CLOCK_MONOTONIC`.
    pub struct Verified {
        /// Clock of [`Policy::handshake_pace`].
        pub tat: u64,
        /// When its first handshake completed, since the row was made.
        pub since_ns: u64,
        /// When its last one did.
        pub last_ns: u64,
        /// How many did.
        pub handshakes: u64,
        /// How many of them were too many.
        pub violations: u64,
    }
    size = 40
}

/// Rows of the table of verified sources. The least recently used goes first, and only handshakes use one.
pub const VERIFIED_SOURCES: usize = 65_536;

shared_struct! {
    /// An IPv6 network (/56 or /48) some of whose children exceed the SYN limit.
    pub struct NetState {
        /// The network's bits, the first byte lowest, children's bits zero; all zero: unused.
        pub prefix: u64,
        /// Until when the network shares one limit, nanoseconds of `CLOCK_MONOTONIC`; 0: it does not.
        pub shared_until_ns: u64,
        /// When the first of `children` was noted.
        pub since_ns: u64,
        /// A bit for each of the 256 children that exceeded its limit since then.
        pub children: [u64; 4],
    }
    size = 56
}

/// How long children are gathered, and how long a network shares one limit after a child last exceeded it: 60 s.
pub const NET_HOLD_NS: u64 = 60_000_000_000;
/// Cells of the table of networks, for each of the two widths; a power of two.
pub const NET_CELLS: usize = 8_192;

/// The bit that `address` has in [`Policy::own_filter`].
#[inline(always)]
pub const fn own_bit(high: u64, low: u64) -> u64 {
    1 << ((high ^ low).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58)
}

/// Keyed hash of a source: two multiply-xorshift rounds with a secret word before each.
///
/// Not a pseudo-random function: it keeps someone who does not know the secret from aiming at a stranger's cells,
/// at a third of SipHash's cost. See the decision record on the sketch.
#[inline(always)]
pub const fn keyed_hash(key: &SourceKey, secret: [u64; 2]) -> u64 {
    let [first, second] = secret;
    let family = first.rotate_left(key.width);
    let mut word = (key.word() ^ family).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word ^= word >> 32;
    word = word.wrapping_add(second).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 29)
}

/// The cell of `hash` in row 0 and in row 1 of the SYN sketch.
#[inline(always)]
pub const fn sketch_cells(hash: u64) -> [u32; SKETCH_ROWS] {
    let mask = SKETCH_CELLS as u64 - 1;
    [(hash & mask) as u32, (SKETCH_CELLS as u64 + (hash >> 16 & mask)) as u32]
}

/// The cell of a /56 or, with `wide`, of a /48 in the table of networks.
#[inline(always)]
pub const fn net_cell(prefix: u64, is_wide: bool, secret: [u64; 2]) -> u32 {
    let [first, second] = secret;
    let word = (prefix ^ second).wrapping_mul(0xbf58_476d_1ce4_e5b9) ^ first;
    let cell = (word >> 40) & (NET_CELLS as u64 - 1);
    if is_wide { (NET_CELLS as u64 + cell) as u32 } else { cell as u32 }
}

/// The clock of the trickle to `port` of an own address, whose two words are as in [`own_bit`].
#[inline(always)]
pub const fn trickle_cell(port: u16, high: u64, low: u64) -> u32 {
    let word = (high ^ low.rotate_left(17) ^ port as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (word >> 40) as u32 & (TRICKLE_CELLS as u32 - 1)
}

/// The word and the bit of `hash` in the ban filter. It uses hash bits that the sketch does not.
#[inline(always)]
pub const fn ban_filter_position(hash: u64) -> (u32, u64) {
    let bit = hash >> (64 - BAN_FILTER_BITS);
    ((bit >> 6) as u32, 1 << (bit & 63))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_do_not_share_cells() {
        let v4 = SourceKey::v4([198, 51, 100, 7]);
        let v6 = SourceKey::v6([198, 51, 100, 7, 0, 0, 0, 0]);
        assert_ne!(keyed_hash(&v4, [1, 2]), keyed_hash(&v6, [1, 2]));
    }

    #[test]
    fn neighbours_spread_over_the_sketch() {
        let mut seen = [false; SKETCH_CELLS];
        let mut used = 0;
        for low in 0..=u16::MAX {
            let [c, d] = low.to_be_bytes();
            let hash =
                keyed_hash(&SourceKey::v4([10, 0, c, d]), [0x1234_5678_9abc_def0, 0x0fed_cba9_8765_4321]);
            let [first, _] = sketch_cells(hash);
            used += usize::from(!core::mem::replace(&mut seen[first as usize], true));
        }
        // A random function fills 1 - 1/e = 63.2 % of as many cells as it has inputs.
        assert!((40_500..42_400).contains(&used), "{used} of 65536 cells used");
    }
}
