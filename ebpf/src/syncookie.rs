//! SYN cookies: a SYN to a port over its budget is answered here, and nothing is remembered of it.
//!
//! The cookie is the kernel's own (net/ipv4/syncookies.c), so the listener accepts it when it comes back, provided that
//! `net.ipv4.tcp_syncookies` is 2 and a SYN reached the listener not long ago: it accepts cookies for two minutes after
//! its last overflow, and with 2 each SYN counts as one. Hence the trickle.
//!
//! The cookie itself holds the segment size. Window scale and SACK travel in the low bits of the timestamp, as the kernel
//! puts them there (`cookie_init_timestamp`), where the policy says that the listener will find them.
//!
//! Frames with tags, IP options or extension headers go to the kernel, whose cookies do as well.

use aya_ebpf::{
    bindings::xdp_action,
    helpers::generated::{bpf_tcp_raw_gen_syncookie_ipv4, bpf_tcp_raw_gen_syncookie_ipv6},
};
use tunica_common::{
    layout::SCRATCH_WORDS,
    policy::{COOKIES_WITH_OPTIONS, Policy, PortState, keyed_hash, trickle_cell},
    verdict::Verdict,
};

use crate::{
    candidate, limit,
    packet::{self, Frame, PROTOCOL_TCP, Packet},
    shield::{self, Objection},
    sockets::{self, Socket},
    tables,
};

const ETHERNET_BYTES: usize = 14;
const IPV4_BYTES: usize = 20;
const IPV6_BYTES: usize = 40;
const TCP_BYTES: usize = 20;
/// MSS alone, or MSS, SACK-permitted, timestamps and window scale.
const OPTION_BYTES_SHORT: usize = 4;
const OPTION_BYTES_LONG: usize = 20;

/// Where the pieces of a packet lie in the scratch room, in bytes; each is aligned to eight.
const AT_IP: usize = 0;
const AT_TCP: usize = 40;
const AT_REPLY: usize = 112;
const AT_PLACES: usize = 208;
/// Says that an option is not there.
const NOWHERE: usize = 0xff;
/// Kinds of options are told apart by their low bits; a power of two.
const PLACES: usize = 32;

/// Low bits of a timestamp that hold options (`TSBITS` in net/ipv4/syncookies.c).
const TS_OPTION_BITS: u32 = 6;
const TS_SACK: u64 = 1 << 4;

/// Window that the answer offers, bytes: ten segments, which is what peers send at first (RFC 6928). The kernel's own
/// first segment corrects it.
const WINDOW: u16 = 14_600;

/// The largest answer, rounded up to whole words: Ethernet, IPv6, TCP and long options.
const REPLY_WORDS: usize = (ETHERNET_BYTES + IPV6_BYTES + TCP_BYTES + OPTION_BYTES_LONG).div_ceil(8);
const _: () = assert!(AT_REPLY + 8 * REPLY_WORDS <= AT_PLACES && AT_PLACES + PLACES <= 8 * SCRATCH_WORDS);

/// What the peer offers. No `Option`: the compiler would carry along what is in none, and the verifier refuses that.
#[derive(Clone, Copy)]
struct Offer {
    has_timestamp: bool,
    /// As it stands in the packet.
    timestamp: u32,
    /// [`NO_WINDOW_SCALE`] if there is none.
    window_scale: u8,
    sack: bool,
}

/// `TS_OPT_WSCALE_MASK` in net/ipv4/syncookies.c: the largest scale is 14.
const NO_WINDOW_SCALE: u8 = 0xf;

/// Decides about a SYN to a port that is over its budget.
///
/// A SYN that finds more than a listener belongs to the kernel: it may reopen a connection in `TIME_WAIT`, which knows
/// nothing of cookies. Where nobody listens, an answer would be a lie, and the kernel's resets are work for nobody;
/// unless the host translates addresses, since then somebody behind it may listen.
#[inline(always)]
pub fn judge(frame: &Frame<'_>) -> u32 {
    let Some(policy) = tables::policy() else { return xdp_action::XDP_PASS };
    candidate::leave(frame, policy, answer(frame, policy))
}

#[inline(always)]
fn answer(frame: &Frame<'_>, policy: &Policy) -> u32 {
    let now = tables::now();
    let mut packet = packet::read(frame);
    packet.forget(policy.zero);
    let Some(port) = tables::port(packet.destination_port) else { return xdp_action::XDP_PASS };
    let [cost, tolerance] = policy.budget_pace;
    // Keeps the port armed while more than half the budget comes in.
    if !limit::admit(&mut port.half_tat, now, [2 * cost, 2 * tolerance]) {
        let _ = shield::arm(policy, packet.destination_port, now);
    }
    match sockets::find(frame, &packet) {
        Socket::Own => return shield::pass(frame, policy, Verdict::Syn, packet.bytes),
        Socket::None if policy.translates != 0 => {
            // No cookie comes back from it, so it counts here.
            if let Some(verdict) = uncounted(policy, &packet, port, now) {
                return shield::refuse(frame, policy, &packet, &Objection { verdict, now: Some(now) });
            }
            return shield::pass(frame, policy, Verdict::SynOverBudget, packet.bytes);
        }
        Socket::None => {
            let objection = Objection { verdict: Verdict::NoListener, now: Some(now) };
            return shield::refuse(frame, policy, &packet, &objection);
        }
        Socket::Listener => {}
    }
    let flags = shield::rule(policy, &packet).map_or(0, |rule| rule.flags);
    if !shield::has_cookies(policy, flags) {
        return shield::pass(frame, policy, Verdict::SynOverBudget, packet.bytes);
    }
    if shield::is_waived(policy, Verdict::SynCookie, now) {
        return shield::pass(frame, policy, Verdict::Syn, packet.bytes);
    }
    // The kernel remembers for each listening socket by itself that SYNs came, and two may share a port.
    let [high, low] = packet.destination;
    let cell = trickle_cell(packet.destination_port, high, low);
    let Some(trickle) = tables::trickle(cell) else { return xdp_action::XDP_PASS };
    let Some(scratch) = tables::scratch() else { return xdp_action::XDP_PASS };
    let Some(start) = frame.get::<3>(12) else { return xdp_action::XDP_PASS };
    let room = Room { start: scratch.as_mut_ptr().cast(), zero: policy.zero as usize };
    let is_v4 = match start {
        [0x08, 0x00, 0x45] => true,
        [0x86, 0xdd, version] if version >> 4 == 6 => false,
        _ => return shield::pass(frame, policy, Verdict::SynOverBudget, packet.bytes),
    };
    if is_v4 {
        let is_read = room.load(frame, ETHERNET_BYTES, AT_IP, IPV4_BYTES)
            && room.load(frame, ETHERNET_BYTES + IPV4_BYTES, AT_TCP, TCP_BYTES);
        // More fragments are to come.
        let is_fragment = room.half(AT_IP + 6) & u16::to_be(0x3fff) != 0;
        if !is_read || is_fragment {
            return shield::pass(frame, policy, Verdict::SynOverBudget, packet.bytes);
        }
        answer_ip::<true>(frame, policy, &room, trickle, packet.bytes, now)
    } else {
        let is_read = room.load(frame, ETHERNET_BYTES, AT_IP, IPV6_BYTES)
            && room.load(frame, ETHERNET_BYTES + IPV6_BYTES, AT_TCP, TCP_BYTES);
        // Extension headers stand in between.
        if !is_read || room.byte(AT_IP + 6) != PROTOCOL_TCP {
            return shield::pass(frame, policy, Verdict::SynOverBudget, packet.bytes);
        }
        answer_ip::<false>(frame, policy, &room, trickle, packet.bytes, now)
    }
}

/// What speaks against a SYN that its source and its port have not counted, because the port answers with cookies. The one
/// that armed the port counts twice.
#[inline(always)]
fn uncounted(policy: &Policy, packet: &Packet, port: &mut PortState, now: u64) -> Option<Verdict> {
    let (flags, new_pace) = match shield::rule(policy, packet) {
        Some(rule) => (rule.flags, rule.new_pace),
        None => (0, [0, 0]),
    };
    if !shield::has_cookies(policy, flags) {
        return None;
    }
    let key = shield::source_key(packet);
    let hash = keyed_hash(&key, policy.secret);
    if policy.syn_cost_ticks != 0
        && let Some(verdict) = limit::new_connection(policy, &key, hash, now)
    {
        return Some(verdict);
    }
    (!limit::admit(&mut port.new_tat, now, new_pace)).then_some(Verdict::PortRate)
}

#[inline(always)]
fn answer_ip<const V4: bool>(
    frame: &Frame<'_>,
    policy: &Policy,
    room: &Room,
    trickle: &mut u64,
    bytes: u64,
    now: u64,
) -> u32 {
    let ip_bytes = if V4 { IPV4_BYTES } else { IPV6_BYTES };
    if policy.trickle_pace[0] != 0 && limit::admit(trickle, now, policy.trickle_pace) {
        return shield::pass(frame, policy, Verdict::SynTrickle, bytes);
    }
    let header_bytes = usize::from(room.byte(AT_TCP + 12) >> 4) << 2;
    if header_bytes < TCP_BYTES {
        return shield::pass(frame, policy, Verdict::SynOverBudget, bytes);
    }
    // At most 40. The mask says so to the verifier, and the 0 keeps the compiler from removing it: it knows better already.
    let option_bytes = ((header_bytes - TCP_BYTES) | policy.zero as usize) & 0x3f;
    // The same for "at least one": not every verifier remembers a comparison with 0.
    let at_least_one = ((option_bytes.wrapping_sub(1) | policy.zero as usize) & 0x3f) + 1;
    if option_bytes > 0
        && !room.load(frame, ETHERNET_BYTES + ip_bytes + TCP_BYTES, AT_TCP + TCP_BYTES, at_least_one)
    {
        return shield::pass(frame, policy, Verdict::SynOverBudget, bytes);
    }
    if !shield::answers(policy, Verdict::SynCookie, bytes) {
        return xdp_action::XDP_PASS;
    }
    // SAFETY: the headers lie in the scratch room at these offsets, which the verifier checks.
    let made = unsafe {
        let (ip, tcp) = (room.start.add(AT_IP), room.start.add(AT_TCP));
        if V4 {
            bpf_tcp_raw_gen_syncookie_ipv4(ip.cast(), tcp.cast(), (option_bytes + TCP_BYTES) as u32)
        } else {
            bpf_tcp_raw_gen_syncookie_ipv6(ip.cast(), tcp.cast(), (option_bytes + TCP_BYTES) as u32)
        }
    };
    if made < 0 {
        return xdp_action::XDP_DROP;
    }
    let mut offer = read_options(room, option_bytes);
    offer.has_timestamp &= policy.cookies == COOKIES_WITH_OPTIONS;
    let Some(ethernet) = frame.get::<14>(0) else { return xdp_action::XDP_DROP };
    write_reply::<V4>(policy, room, made as u32, offer, now, &ethernet);
    let length = (ETHERNET_BYTES
        + ip_bytes
        + TCP_BYTES
        + if offer.has_timestamp { OPTION_BYTES_LONG } else { OPTION_BYTES_SHORT }) as u32;
    if !frame.resize(length as usize) || !room.store(frame, length) {
        return xdp_action::XDP_DROP;
    }
    xdp_action::XDP_TX
}

/// Reads the options that a cookie can carry (RFC 7323, RFC 2018).
///
/// The walk notes where each kind stands, and only afterwards looks at those that matter: a fork for each kind in each
/// step would make the verifier walk every combination.
#[inline(always)]
fn read_options(room: &Room, option_bytes: usize) -> Offer {
    room.clear_places();
    let mut at = 0;
    // Twelve cover every stack in use: they send five, and fill with single bytes.
    for _ in 0..12 {
        if at >= option_bytes {
            break;
        }
        let kind = room.option(at);
        let length = if kind <= 1 { 1 } else { usize::from(room.option(at + 1)) };
        if length == 0 || kind == 0 {
            break;
        }
        room.note(kind, at);
        at += length;
        if at > option_bytes {
            room.note(kind, NOWHERE);
            break;
        }
    }
    let (scale, sack, timestamp) = (room.place(3), room.place(4), room.place(8));
    let is_at = |at: usize, kind: u8, length: u8| room.option(at) == kind && room.option(at + 1) == length;
    let has_scale = scale != NOWHERE && is_at(scale, 3, 3);
    // RFC 7323 section 2.3: a larger shift counts as 14.
    let shift = room.option(scale + 2);
    let shift = if shift > 14 { 14 } else { shift };
    Offer {
        window_scale: if has_scale { shift } else { NO_WINDOW_SCALE },
        sack: sack != NOWHERE && is_at(sack, 4, 2),
        has_timestamp: timestamp != NOWHERE && is_at(timestamp, 8, 10),
        timestamp: u32::from_le_bytes([
            room.option(timestamp + 2),
            room.option(timestamp + 3),
            room.option(timestamp + 4),
            room.option(timestamp + 5),
        ]),
    }
}

/// Writes the SYN-ACK into the scratch room.
#[inline(always)]
fn write_reply<const V4: bool>(
    policy: &Policy,
    room: &Room,
    cookie: u32,
    offer: Offer,
    now: u64,
    ethernet: &[u8; 14],
) {
    let reply = |at: usize, half: u16| room.set_half(AT_REPLY + at, half);
    let pair = |first: u8, second: u8| u16::from_le_bytes([first, second]);
    let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] = *ethernet;
    for (at, half) in [
        (0, pair(s0, s1)),
        (2, pair(s2, s3)),
        (4, pair(s4, s5)),
        (6, pair(d0, d1)),
        (8, pair(d2, d3)),
        (10, pair(d4, d5)),
        (12, pair(t0, t1)),
    ] {
        reply(at, half);
    }
    let ip_bytes = if V4 { IPV4_BYTES } else { IPV6_BYTES };
    let tcp = ETHERNET_BYTES + ip_bytes;
    let option_bytes = if offer.has_timestamp { OPTION_BYTES_LONG } else { OPTION_BYTES_SHORT };
    let tcp_bytes = (TCP_BYTES + option_bytes) as u16;
    let ip = ETHERNET_BYTES;
    // The pseudo-header (RFC 9293 section 3.1, RFC 8200 section 8.1): addresses below, protocol and length here.
    let mut sum = u64::from(u16::to_be(6)) + u64::from(tcp_bytes.to_be());
    if V4 {
        let halves =
            [pair(0x45, 0), (tcp_bytes + IPV4_BYTES as u16).to_be(), 0, pair(0x40, 0), pair(64, 6), 0];
        let mut header_sum = 0u64;
        let mut index = 0;
        while index < halves.len() {
            reply(ip + 2 * index, halves[index]);
            header_sum += u64::from(halves[index]);
            index += 1;
        }
        let mut addresses = 0u64;
        index = 0;
        while index < 2 {
            let (source, destination) =
                (room.half(AT_IP + 12 + 2 * index), room.half(AT_IP + 16 + 2 * index));
            reply(ip + 12 + 2 * index, destination);
            reply(ip + 16 + 2 * index, source);
            addresses += u64::from(source) + u64::from(destination);
            index += 1;
        }
        reply(ip + 10, folded(header_sum + addresses));
        sum += addresses;
    } else {
        let halves = [pair(0x60, 0), 0, tcp_bytes.to_be(), pair(6, 64)];
        let mut index = 0;
        while index < halves.len() {
            reply(ip + 2 * index, halves[index]);
            index += 1;
        }
        index = 0;
        while index < 8 {
            let (source, destination) = (room.half(AT_IP + 8 + 2 * index), room.half(AT_IP + 24 + 2 * index));
            reply(ip + 8 + 2 * index, destination);
            reply(ip + 24 + 2 * index, source);
            sum += u64::from(source) + u64::from(destination);
            index += 1;
        }
    }
    let [c0, c1, c2, c3] = cookie.to_be_bytes();
    let sequence = u32::from_be_bytes([
        room.byte(AT_TCP + 4),
        room.byte(AT_TCP + 5),
        room.byte(AT_TCP + 6),
        room.byte(AT_TCP + 7),
    ]);
    let [q0, q1, q2, q3] = sequence.wrapping_add(1).to_be_bytes();
    let mss = if V4 { policy.cookie_mss_v4 } else { policy.cookie_mss_v6 } as u16;
    let header = [
        room.half(AT_TCP + 2),
        room.half(AT_TCP),
        pair(c0, c1),
        pair(c2, c3),
        pair(q0, q1),
        pair(q2, q3),
        pair((tcp_bytes as u8) << 2, 0x12),
        WINDOW.to_be(),
        0,
        0,
        pair(2, 4),
        mss.to_be(),
    ];
    let mut index = 0;
    while index < header.len() {
        reply(tcp + 2 * index, header[index]);
        sum += u64::from(header[index]);
        index += 1;
    }
    if offer.has_timestamp {
        let [v0, v1, v2, v3] = timestamp(offer, now).to_be_bytes();
        let [e0, e1, e2, e3] = offer.timestamp.to_le_bytes();
        let [k0, k1] = if offer.sack { [4, 2] } else { [1, 1] };
        let scale = (policy.cookie_window_scale & 0xf) as u8;
        let (w0, w1) = if offer.window_scale != NO_WINDOW_SCALE {
            (pair(1, 3), pair(3, scale))
        } else {
            (pair(1, 1), pair(1, 1))
        };
        let options =
            [pair(k0, k1), pair(8, 10), pair(v0, v1), pair(v2, v3), pair(e0, e1), pair(e2, e3), w0, w1];
        index = 0;
        while index < options.len() {
            reply(tcp + TCP_BYTES + OPTION_BYTES_SHORT + 2 * index, options[index]);
            sum += u64::from(options[index]);
            index += 1;
        }
    }
    reply(tcp + 16, folded(sum));
}

/// The timestamp that carries options, as the listener reads it: milliseconds, the low bits replaced, not in the future.
#[inline(always)]
fn timestamp(offer: Offer, now: u64) -> u32 {
    let milliseconds = now / 1_000_000;
    let sack = if offer.sack { TS_SACK } else { 0 };
    let low = (1 << TS_OPTION_BITS) - 1;
    let carrying = (milliseconds & !low) | u64::from(offer.window_scale) | sack;
    (if carrying > milliseconds { carrying.wrapping_sub(low + 1) } else { carrying }) as u32
}

/// The Internet checksum of a sum of halves (RFC 1071).
#[inline(always)]
const fn folded(sum: u64) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    let twice = (once & 0xffff) + (once >> 16);
    !(((twice & 0xffff) + (twice >> 16)) as u16)
}

/// The scratch room as bytes. Offsets are constants, or masked so that they stay inside: the verifier checks each one.
struct Room {
    start: *mut u8,
    /// [`Policy::zero`]: what it is added to, the compiler cannot prove small, so that a mask stays.
    zero: usize,
}

impl Room {
    #[inline(always)]
    fn byte(&self, at: usize) -> u8 {
        // SAFETY: see the type.
        unsafe { *self.start.add(at) }
    }

    #[inline(always)]
    fn half(&self, at: usize) -> u16 {
        // SAFETY: see the type; every caller's offset is even.
        unsafe { *self.start.add(at).cast() }
    }

    #[inline(always)]
    fn set_half(&self, at: usize, half: u16) {
        // SAFETY: as above.
        unsafe { *self.start.add(at).cast() = half }
    }

    /// The byte at `at` of the TCP options.
    #[inline(always)]
    fn option(&self, at: usize) -> u8 {
        self.byte(AT_TCP + TCP_BYTES + ((at | self.zero) & 0x3f))
    }

    #[inline(always)]
    fn clear_places(&self) {
        let mut index = 0;
        while index < PLACES / 8 {
            // SAFETY: see the type. Volatile, because the compiler would make a call of four plain stores.
            unsafe { self.start.add(AT_PLACES).cast::<u64>().add(index).write_volatile(0) };
            index += 1;
        }
    }

    /// Notes where an option of this kind begins; [`NOWHERE`] forgets it.
    #[inline(always)]
    fn note(&self, kind: u8, at: usize) {
        // SAFETY: see the type.
        unsafe { *self.start.add(AT_PLACES + (usize::from(kind) & (PLACES - 1))) = at.wrapping_add(1) as u8 }
    }

    /// Where an option of this kind, or of one with the same low bits, begins; or [`NOWHERE`].
    #[inline(always)]
    fn place(&self, kind: u8) -> usize {
        usize::from(self.byte(AT_PLACES + (usize::from(kind) & (PLACES - 1)))).wrapping_sub(1) & NOWHERE
    }

    /// Copies `length` bytes of the packet, at least one, to `to`.
    #[inline(always)]
    fn load(&self, frame: &Frame<'_>, from: usize, to: usize, length: usize) -> bool {
        // SAFETY: see the type.
        let to = unsafe { self.start.add(to) };
        frame.copy_to(from, to, length)
    }

    /// Overwrites the packet's first `length` bytes with the reply.
    #[inline(always)]
    fn store(&self, frame: &Frame<'_>, length: u32) -> bool {
        // SAFETY: see the type.
        let from = unsafe { self.start.add(AT_REPLY) };
        frame.overwrite(from, length)
    }
}
