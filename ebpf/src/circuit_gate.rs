//! The circuit gate: a TC program on `lo` that ends connections of banned circuits before anybody reads them.
//!
//! Tor begins each stream of an onion service by a PROXY line that names the circuit. The gate reads that line in the
//! first segment of a connection to one of its ports. If the circuit is banned, both ends get a RST: tor, so that it gives
//! the stream up at once, and the listener, so that it forgets the connection.
//!
//! It refuses only what it read whole: the line as tor writes it, in one segment, at the beginning of a connection.
//! Everything else passes, and whoever listens must judge it. It never ends the chain of programs on its hook.
//!
//! This is an object of its own. The shield's loads without it, on hosts without tor too.
#![no_std]
#![no_main]
// Two loads from the context are written in assembly, which is unstable for this target.
#![feature(asm_experimental_arch)]

use core::arch::asm;

use aya_ebpf::{
    EbpfContext,
    bindings::{
        BPF_F_CURRENT_NETNS, TC_ACT_UNSPEC, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2,
    },
    btf_maps::{Array, HashMap, PerCpuArray},
    helpers::generated::{
        bpf_clone_redirect, bpf_ktime_get_coarse_ns, bpf_sk_lookup_tcp, bpf_sk_release, bpf_skb_change_tail,
        bpf_skb_load_bytes, bpf_skb_store_bytes, bpf_tcp_sock,
    },
    macros::{btf_map, classifier},
    programs::TcContext,
};
use tunica_common::{
    gate::{CircuitBan, CircuitKey, GATE_BANS, GateOutcome, GateSettings},
    policy::{MODE_ENFORCE, MODE_OFF},
};

#[btf_map]
static GATE_SETTINGS: Array<GateSettings, 1> = Array::new();
#[btf_map]
static CIRCUIT_BANS: HashMap<CircuitKey, CircuitBan, GATE_BANS> = HashMap::new();
#[btf_map]
static GATE_TALLIES: PerCpuArray<u64, { GateOutcome::ALL.len() }> = PerCpuArray::new();

/// Entry point. `TC_ACT_UNSPEC` hands the packet to the next program, in TCX (`TCX_NEXT`) as in clsact.
#[classifier]
pub fn circuit_gate(ctx: TcContext) -> i32 {
    if let Some(outcome) = judge(&ctx) {
        count(outcome);
    }
    TC_ACT_UNSPEC
}

/// `None` for what the gate has nothing to do with.
#[inline(always)]
fn judge(ctx: &TcContext) -> Option<GateOutcome> {
    let settings = GATE_SETTINGS.get(0)?;
    if settings.mode == MODE_OFF {
        return None;
    }
    let segment = Segment::of(ctx)?;
    if !settings.ports.contains(&u16::from_be(segment.port)) {
        return None;
    }
    let data = segment.data()?;
    if !segment.is_first() {
        return Some(GateOutcome::NotFirst);
    }
    let circuit = match read_line(data) {
        Line::Tor(circuit) => circuit,
        Line::Split => return Some(GateOutcome::Split),
        Line::Other => return Some(GateOutcome::NoHeader),
    };
    if !is_banned(&CircuitKey { generation: settings.generation, circuit }) {
        return Some(GateOutcome::NotBanned);
    }
    if settings.mode != MODE_ENFORCE {
        return Some(GateOutcome::WouldRefuse);
    }
    Some(if segment.reset() { GateOutcome::Refused } else { GateOutcome::Unanswered })
}

#[inline(always)]
fn is_banned(key: &CircuitKey) -> bool {
    // SAFETY: the value is read at once; a row that is reused meanwhile belongs to another ban of the same table, which at
    // worst ends a ban a moment too early or too late.
    match unsafe { CIRCUIT_BANS.get(key) } {
        // SAFETY: the helper takes no argument and only reads the clock.
        Some(ban) => ban.expires_ns > unsafe { bpf_ktime_get_coarse_ns() },
        None => false,
    }
}

#[inline(always)]
fn count(outcome: GateOutcome) {
    if let Some(tally) = GATE_TALLIES.get_ptr_mut(outcome as u32) {
        // SAFETY: eight aligned bytes that this CPU alone writes; an interrupted addition loses a count at worst.
        unsafe { *tally += 1 };
    }
}

const ETHERNET_BYTES: usize = 14;
const IPV4_BYTES: usize = 20;
const IPV6_BYTES: usize = 40;
const TCP_BYTES: usize = 20;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const PROTOCOL_TCP: u8 = 6;
/// Version 4, a header of five words.
const IPV4_WITHOUT_OPTIONS: u8 = 0x45;
/// The bit for more fragments, and the offset.
const IPV4_FRAGMENT: u16 = 0x3fff;
const FLAG_SYN: u8 = 0x02;
const FLAG_RST: u8 = 0x04;
const FLAG_ACK: u8 = 0x10;

/// A TCP segment over IP without options and extension headers. Addresses and ports as they stand in the packet; IPv4
/// addresses in the first word.
struct Segment<'a> {
    ctx: &'a TcContext,
    is_v4: bool,
    source: [u32; 4],
    destination: [u32; 4],
    source_port: u16,
    port: u16,
    sequence: u32,
    acknowledged: u32,
    /// Where the data begins, counted from the frame's first byte.
    data_at: u32,
    flags: u8,
}

impl<'a> Segment<'a> {
    /// Reads the headers. On `lo` they always lie in the packet's first buffer.
    #[inline(always)]
    fn of(ctx: &'a TcContext) -> Option<Self> {
        let (start, end): (usize, usize);
        // SAFETY: both loads lie inside `struct __sk_buff`: `data` and `data_end`. Loaded straight into 64-bit registers,
        // because a compiler that loads, keeps and later widens them loses the pointer for the verifier.
        unsafe {
            asm!(
                "{start} = *(u32 *)({ctx} + 76)",
                "{end} = *(u32 *)({ctx} + 80)",
                ctx = in(reg) ctx.skb.skb,
                start = out(reg) start,
                end = out(reg) end,
                options(nostack, preserves_flags, readonly, pure),
            );
        }
        let protocol = ctx.skb.protocol();
        let frame = Frame { start };
        if protocol == u32::from(ETHERTYPE_IPV4.to_be()) {
            if start + ETHERNET_BYTES + IPV4_BYTES + TCP_BYTES > end {
                return None;
            }
            let is_plain = frame.byte(14) == IPV4_WITHOUT_OPTIONS
                && frame.byte(23) == PROTOCOL_TCP
                && frame.half(20) & IPV4_FRAGMENT.to_be() == 0;
            if !is_plain {
                return None;
            }
            let (source, destination) = ([frame.word(26), 0, 0, 0], [frame.word(30), 0, 0, 0]);
            Some(frame.segment::<{ ETHERNET_BYTES + IPV4_BYTES }>(ctx, true, source, destination))
        } else if protocol == u32::from(ETHERTYPE_IPV6.to_be()) {
            if start + ETHERNET_BYTES + IPV6_BYTES + TCP_BYTES > end {
                return None;
            }
            if frame.byte(14) >> 4 != 6 || frame.byte(20) != PROTOCOL_TCP {
                return None;
            }
            let source = [frame.word(22), frame.word(26), frame.word(30), frame.word(34)];
            let destination = [frame.word(38), frame.word(42), frame.word(46), frame.word(50)];
            Some(frame.segment::<{ ETHERNET_BYTES + IPV6_BYTES }>(ctx, false, source, destination))
        } else {
            None
        }
    }

    /// The segment's data, if it has any and could carry the first bytes of a connection.
    #[inline(always)]
    fn data(&self) -> Option<Data<'a>> {
        if self.flags & (FLAG_SYN | FLAG_RST | FLAG_ACK) != FLAG_ACK {
            return None;
        }
        let length = self.ctx.len();
        if length <= self.data_at {
            return None;
        }
        Some(Data { ctx: self.ctx, at: self.data_at, length: length - self.data_at })
    }

    /// Whether the segment begins right behind the SYN, by what its sender's own socket says.
    ///
    /// On `lo` that socket is in the same namespace. The receiver's knows less: with TCP_DEFER_ACCEPT there is none yet.
    /// `bytes_acked` counts the SYN too (`tcp_snd_una_update` in net/ipv4/tcp_input.c).
    #[inline(always)]
    fn is_first(&self) -> bool {
        // What comes from the listener finds the sender, so source and destination are exchanged.
        if self.is_v4 {
            let [source, ..] = self.source;
            let [destination, ..] = self.destination;
            let mut tuple = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 {
                saddr: destination,
                daddr: source,
                sport: self.port,
                dport: self.source_port,
            };
            self.is_unacknowledged((&raw mut tuple).cast(), size_of_val(&tuple) as u32)
        } else {
            let mut tuple = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 {
                saddr: self.destination,
                daddr: self.source,
                sport: self.port,
                dport: self.source_port,
            };
            self.is_unacknowledged((&raw mut tuple).cast(), size_of_val(&tuple) as u32)
        }
    }

    #[inline(always)]
    fn is_unacknowledged(&self, tuple: *mut bpf_sock_tuple, bytes: u32) -> bool {
        // SAFETY: the tuple is `bytes` long, as the verifier checks; a socket found is released once, after its last use.
        unsafe {
            let socket = bpf_sk_lookup_tcp(self.ctx.as_ptr(), tuple, bytes, BPF_F_CURRENT_NETNS as u64, 0);
            if socket.is_null() {
                return false;
            }
            let tcp = bpf_tcp_sock(socket);
            let is_first =
                !tcp.is_null() && (*tcp).bytes_acked <= 1 && (*tcp).snd_una == u32::from_be(self.sequence);
            bpf_sk_release(socket.cast());
            is_first
        }
    }

    /// Answers the sender with a RST, and makes a RST for the listener of the segment itself. Both look as if the other
    /// end had sent them, with the sequence numbers that each end expects. `false` if the kernel had no memory for it:
    /// the segment is then whole, or without its data, which the sender repeats.
    ///
    /// The answer leaves through `lo` again, as any packet does: put back at the ingress it would lose its route, and a
    /// packet from 127.0.0.1 without one is refused.
    #[inline(always)]
    fn reset(&self) -> bool {
        let skb = self.ctx.skb.skb;
        let headers = if self.is_v4 { IPV4_BYTES + TCP_BYTES } else { IPV6_BYTES + TCP_BYTES };
        // SAFETY: the helper checks the packet's bounds by itself; no pointer into it is used again.
        if unsafe { bpf_skb_change_tail(skb, (ETHERNET_BYTES + headers) as u32, 0) } != 0 {
            return false;
        }
        let to_sender = Reset {
            source: self.destination,
            destination: self.source,
            ports: [self.port, self.source_port],
            sequence: self.acknowledged,
            acknowledged: self.sequence,
        };
        if !self.overwrite(&to_sender) {
            return false;
        }
        // SAFETY: reads a field of the context, then lets the kernel copy the packet. If it has no memory for that, the
        // sender repeats the segment and is judged again.
        unsafe { bpf_clone_redirect(skb, (*skb).ifindex, 0) };
        self.overwrite(&Reset {
            source: self.source,
            destination: self.destination,
            ports: [self.source_port, self.port],
            sequence: self.sequence,
            acknowledged: self.acknowledged,
        });
        true
    }

    #[inline(always)]
    fn overwrite(&self, reset: &Reset) -> bool {
        if self.is_v4 { self.store(&reset.v4()) } else { self.store(&reset.v6()) }
    }

    #[inline(always)]
    fn store<const WORDS: usize>(&self, headers: &[u32; WORDS]) -> bool {
        // SAFETY: the pointer and the length describe `headers`; the helper checks the packet's bounds.
        unsafe {
            bpf_skb_store_bytes(
                self.ctx.skb.skb.cast(),
                ETHERNET_BYTES as u32,
                headers.as_ptr().cast(),
                size_of_val(headers) as u32,
                0,
            ) == 0
        }
    }
}

/// The packet's first buffer. Every offset is a constant below what [`Segment::of`] compared with its end.
struct Frame {
    start: usize,
}

impl Frame {
    #[inline(always)]
    fn byte(&self, at: usize) -> u8 {
        // SAFETY: see the type.
        unsafe { *((self.start + at) as *const u8) }
    }

    #[inline(always)]
    fn half(&self, at: usize) -> u16 {
        // SAFETY: see the type. The headers behind 14 bytes of Ethernet are aligned: the kernel lays them out so.
        unsafe { *((self.start + at) as *const u16) }
    }

    #[inline(always)]
    fn word(&self, at: usize) -> u32 {
        // SAFETY: as above.
        unsafe { *((self.start + at) as *const u32) }
    }

    /// The TCP header stands at `AT`.
    #[inline(always)]
    fn segment<'a, const AT: usize>(
        &self,
        ctx: &'a TcContext,
        is_v4: bool,
        source: [u32; 4],
        destination: [u32; 4],
    ) -> Segment<'a> {
        Segment {
            ctx,
            is_v4,
            source,
            destination,
            source_port: self.half(AT),
            port: self.half(AT + 2),
            sequence: self.word(AT + 4),
            acknowledged: self.word(AT + 8),
            data_at: AT as u32 + u32::from(self.byte(AT + 12) >> 4) * 4,
            flags: self.byte(AT + 13),
        }
    }
}

/// A RST without data; every field as it stands in the packet.
struct Reset {
    source: [u32; 4],
    destination: [u32; 4],
    /// Source and destination.
    ports: [u16; 2],
    sequence: u32,
    acknowledged: u32,
}

impl Reset {
    /// Five words of TCP header, flags RST and ACK. The checksum stays 0: packets on `lo` go without
    /// (`CHECKSUM_PARTIAL`), and nobody checks it.
    #[inline(always)]
    fn tcp(&self) -> [u32; 5] {
        let [source, destination] = self.ports;
        [
            u32::from(source) | u32::from(destination) << 16,
            self.sequence,
            self.acknowledged,
            u32::from_le_bytes([5 << 4, FLAG_RST | FLAG_ACK, 0, 0]),
            0,
        ]
    }

    #[inline(always)]
    fn v4(&self) -> [u32; 10] {
        let [source, ..] = self.source;
        let [destination, ..] = self.destination;
        // Version, header length and total length; do not fragment; 64 hops, TCP.
        let fixed = [
            u32::from_le_bytes([IPV4_WITHOUT_OPTIONS, 0, 0, (IPV4_BYTES + TCP_BYTES) as u8]),
            u32::from_le_bytes([0, 0, 0x40, 0]),
            u32::from_le_bytes([64, PROTOCOL_TCP, 0, 0]),
        ];
        let mut sum = 0;
        let [first, second, third] = fixed;
        for word in [first, second, third, source, destination] {
            sum += (word & 0xffff) + (word >> 16);
        }
        let once = (sum & 0xffff) + (sum >> 16);
        let checksum = !((once & 0xffff) + (once >> 16)) << 16;
        let [a, b, c, d, e] = self.tcp();
        [first, second, third | checksum, source, destination, a, b, c, d, e]
    }

    #[inline(always)]
    fn v6(&self) -> [u32; 15] {
        let [s, t, u, v] = self.source;
        let [w, x, y, z] = self.destination;
        let [a, b, c, d, e] = self.tcp();
        let first = u32::from_le_bytes([6 << 4, 0, 0, 0]);
        // Length, TCP, 64 hops.
        let second = u32::from_le_bytes([0, TCP_BYTES as u8, PROTOCOL_TCP, 64]);
        [first, second, s, t, u, v, w, x, y, z, a, b, c, d, e]
    }
}

/// What the first bytes of a connection are.
enum Line {
    /// The line that tor writes for this circuit.
    Tor(u32),
    /// The beginning of one.
    Split,
    Other,
}

/// The data of a segment.
struct Data<'a> {
    ctx: &'a TcContext,
    at: u32,
    /// At least 1.
    length: u32,
}

/// Bytes that are looked at: more than the longest line of tor, which has 59.
const LOOKED_AT: usize = 64;

/// What every line begins with, eight bytes a word.
const BEGINNING: [u64; 4] = [
    u64::from_le_bytes(*b"PROXY TC"),
    u64::from_le_bytes(*b"P6 fc00:"),
    u64::from_le_bytes(*b"dead:bee"),
    u64::from_le_bytes(*b"f:4dad::"),
];

/// Reads `PROXY TCP6 fc00:dead:beef:4dad::HIGH:LOW ::1 PORT PORT` and the line's end, or the same with the circuit's number
/// in its short form, `::LOW`.
///
/// Source: `export_hs_client_circuit_id` in tor's src/core/or/connection_edge.c, which writes `:%x:%x` behind the prefix
/// that ends in one colon. HAProxy writes the short form. The low half of the number stands where the source's port
/// belongs; nothing rests on it.
#[inline(always)]
fn read_line(data: Data<'_>) -> Line {
    let mut bytes = [0u64; LOOKED_AT / 8];
    if !data.copy(&mut bytes) {
        return Line::Other;
    }
    let [first, second, third, fourth, rest @ ..] = bytes;
    let mut missed = false;
    let mut index = 0;
    for word in [first, second, third, fourth] {
        // Behind the data's end stand zeros: only what came is compared.
        let came = data.length.saturating_sub(index);
        let mask = if came >= 8 { u64::MAX } else { (1 << (came * 8)) - 1 };
        missed |= (word ^ BEGINNING[(index / 8) as usize]) & mask != 0;
        index += 8;
    }
    if missed {
        return Line::Other;
    }
    let mut text = Text(rest);
    match text.line() {
        Ok(circuit) => Line::Tor(circuit),
        Err(Stop::End) => Line::Split,
        Err(Stop::Fault) => Line::Other,
    }
}

impl Data<'_> {
    /// Copies the data's first bytes, which may lie in any buffer of the packet.
    #[inline(always)]
    fn copy(&self, to: &mut [u64; LOOKED_AT / 8]) -> bool {
        let mut last = u64::from(self.length.min(LOOKED_AT as u32)) - 1;
        // SAFETY: one instruction that changes nothing. The compiler would leave it out; by it the verifier knows that
        // neither too many bytes are copied nor none at all.
        unsafe {
            asm!("{last} &= 63", last = inlateout(reg) last, options(nomem, nostack, pure));
        }
        let length = last as u32 + 1;
        // SAFETY: `to` has as many bytes as are copied at most; the verifier checks it.
        let failed =
            unsafe { bpf_skb_load_bytes(self.ctx.skb.skb.cast(), self.at, to.as_mut_ptr().cast(), length) };
        failed == 0
    }
}

/// Why a line was not read to its end.
enum Stop {
    /// The bytes end, or a zero stands among them, which comes to the same: it passes.
    End,
    Fault,
}

/// Bytes that are taken from the front, the first one lowest; zeros follow. Shifting them spares the verifier an index
/// into memory that depends on what was read.
struct Text([u64; 4]);

impl Text {
    #[inline(always)]
    fn next(&mut self) -> u8 {
        let [a, b, c, d] = self.0;
        self.0 = [a >> 8 | b << 56, b >> 8 | c << 56, c >> 8 | d << 56, d >> 8];
        a as u8
    }

    #[inline(always)]
    fn expect(&mut self, expected: u8) -> Result<(), Stop> {
        match self.next() {
            0 => Err(Stop::End),
            byte if byte == expected => Ok(()),
            _ => Err(Stop::Fault),
        }
    }

    #[inline(always)]
    fn line(&mut self) -> Result<u32, Stop> {
        let (mut circuit, end) = self.number::<16, 4>()?;
        if end == b':' {
            let (low, end) = self.number::<16, 4>()?;
            circuit = circuit << 16 | low;
            if end != b' ' {
                return Err(Stop::Fault);
            }
        } else if end != b' ' {
            return Err(Stop::Fault);
        }
        if circuit == 0 {
            return Err(Stop::Fault);
        }
        for byte in *b"::1 " {
            self.expect(byte)?;
        }
        for end in *b" \r" {
            let (port, byte) = self.number::<10, 5>()?;
            if byte != end || port > 0xffff {
                return Err(Stop::Fault);
            }
        }
        self.expect(b'\n')?;
        Ok(circuit)
    }

    /// A number in lower-case digits without leading zeros, at most `MOST` of them, and the byte behind it.
    #[inline(always)]
    fn number<const BASE: u32, const MOST: usize>(&mut self) -> Result<(u32, u8), Stop> {
        let mut number = 0;
        let mut digits = 0;
        while digits <= MOST {
            let byte = self.next();
            let digit = match byte {
                0 => return Err(Stop::End),
                b'0'..=b'9' => byte - b'0',
                b'a'..=b'f' if BASE == 16 => byte - b'a' + 10,
                _ if digits > 0 => return Ok((number, byte)),
                _ => return Err(Stop::Fault),
            };
            if digits > 0 && number == 0 {
                return Err(Stop::Fault);
            }
            number = number * BASE + u32::from(digit);
            digits += 1;
        }
        Err(Stop::Fault)
    }
}

/// The kernel lets only GPL-compatible programs call some helpers.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
