//! Segments that are no SYN, and answers over UDP, judged by the sockets of this host.
//!
//! Established means that the kernel finds a socket of that connection; there is no table of connections here. What finds
//! a listener may return a cookie, which proves its source. Everything else belongs to no connection and is limited by
//! source, which costs an honest peer nothing: its segments find their socket first.

use aya_ebpf::{
    EbpfContext,
    bindings::{
        bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2,
    },
    helpers::generated::{
        bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp, bpf_tcp_raw_check_syncookie_ipv4,
        bpf_tcp_raw_check_syncookie_ipv6,
    },
};
use tunica_common::{
    gcra::Limit,
    policy::{Policy, keyed_hash},
    verdict::Verdict,
};

use crate::{
    limit,
    packet::{self, FLAG_ACK, FLAG_RST, FLAG_SYN, Frame, PROTOCOL_UDP, Packet},
    shield::{self, Objection},
    tables::{self, Sketch},
};

/// `TCP_LISTEN` in include/net/tcp_states.h.
const TCP_LISTEN: u32 = 10;
/// `BPF_F_CURRENT_NETNS`: the network namespace of the interface.
const CURRENT_NETNS: u64 = u64::MAX;

/// Which socket a packet finds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Socket {
    None,
    Listener,
    /// Of this very connection, in whatever state; for UDP: of this port.
    Own,
}

/// Decides about one packet that the shield handed over.
#[inline(always)]
pub fn judge(frame: &Frame<'_>) -> u32 {
    let Some(policy) = tables::policy() else {
        return aya_ebpf::bindings::xdp_action::XDP_PASS;
    };
    let mut packet = packet::read(frame);
    packet.forget(policy.zero);
    match objection(frame, policy, &mut packet) {
        Some(objection) => shield::refuse(frame, policy, &packet, &objection),
        None => shield::pass(frame, packet.kind, packet.bytes),
    }
}

#[inline(always)]
fn objection(frame: &Frame<'_>, policy: &Policy, packet: &mut Packet) -> Option<Objection> {
    if !packet.has_ports || !shield::is_for_us(policy, packet) {
        return None;
    }
    let is_udp = packet.protocol == PROTOCOL_UDP;
    let socket = socket_of(frame, packet, is_udp);
    if socket == Socket::Own {
        return None;
    }
    if is_udp {
        return Some(Objection { verdict: Verdict::PortClosed, now: None });
    }
    let now = tables::now();
    let key = shield::source_key(packet);
    let hash = keyed_hash(&key, policy.secret);
    let may_return_cookie = packet.tcp_flags & (FLAG_ACK | FLAG_SYN | FLAG_RST) == FLAG_ACK;
    if socket == Socket::Listener && may_return_cookie && is_cookie(frame, packet) {
        packet.kind = Verdict::CookieAck;
        return returned(policy, packet, now, &key, hash);
    }
    let limit =
        Limit { cost_ticks: policy.segment_cost_ticks, tolerance_ticks: policy.segment_tolerance_ticks };
    if limit::conforms_in(Sketch::Segment, limit, hash, policy, now) {
        return None;
    }
    Some(Objection { verdict: Verdict::NoSocket, now: Some(now) })
}

/// A good cookie completes a handshake whose SYN was not counted: its source and its port count it now.
#[inline(always)]
fn returned(
    policy: &Policy,
    packet: &Packet,
    now: u64,
    key: &tunica_common::keys::SourceKey,
    hash: u64,
) -> Option<Objection> {
    let port = tables::port(packet.destination_port)?;
    if port.armed_until_ns <= now {
        return None;
    }
    port.cookies_returned += 1;
    if policy.syn_cost_ticks != 0
        && let Some(verdict) = limit::new_connection(policy, key, hash, now)
    {
        return Some(Objection { verdict, now: Some(now) });
    }
    let rule = shield::rule(policy, packet)?;
    (!limit::admit(&mut port.new_tat, now, rule.new_pace))
        .then_some(Objection { verdict: Verdict::PortRate, now: Some(now) })
}

#[inline(always)]
fn socket_of(frame: &Frame<'_>, packet: &Packet, is_udp: bool) -> Socket {
    let (source_port, destination_port) = (packet.source_port.to_be(), packet.destination_port.to_be());
    let [source_high, source_low] = packet.source;
    let [destination_high, destination_low] = packet.destination;
    if packet.is_v4 {
        let mut tuple = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 {
            saddr: (source_low >> 32) as u32,
            daddr: (destination_low >> 32) as u32,
            sport: source_port,
            dport: destination_port,
        };
        look_up(frame, (&raw mut tuple).cast(), size_of_val(&tuple) as u32, is_udp)
    } else {
        let mut tuple = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 {
            saddr: halves(source_high, source_low),
            daddr: halves(destination_high, destination_low),
            sport: source_port,
            dport: destination_port,
        };
        look_up(frame, (&raw mut tuple).cast(), size_of_val(&tuple) as u32, is_udp)
    }
}

#[inline(always)]
const fn halves(high: u64, low: u64) -> [u32; 4] {
    [high as u32, (high >> 32) as u32, low as u32, (low >> 32) as u32]
}

#[inline(always)]
fn look_up(frame: &Frame<'_>, tuple: *mut bpf_sock_tuple, bytes: u32, is_udp: bool) -> Socket {
    let ctx = frame.xdp().as_ptr();
    // SAFETY: the tuple is `bytes` long, as the verifier checks; a socket found is released once, before it is forgotten.
    unsafe {
        if is_udp {
            let socket = bpf_sk_lookup_udp(ctx, tuple, bytes, CURRENT_NETNS, 0);
            if socket.is_null() {
                return Socket::None;
            }
            bpf_sk_release(socket.cast());
            return Socket::Own;
        }
        let socket = bpf_skc_lookup_tcp(ctx, tuple, bytes, CURRENT_NETNS, 0);
        if socket.is_null() {
            return Socket::None;
        }
        let state = (*socket).state;
        bpf_sk_release(socket.cast());
        if state == TCP_LISTEN { Socket::Listener } else { Socket::Own }
    }
}

/// Whether the segment acknowledges a SYN cookie of this host, made here or by the kernel.
#[inline(always)]
fn is_cookie(frame: &Frame<'_>, packet: &Packet) -> bool {
    let Some(mut tcp) = frame.get::<20>(packet.transport) else { return false };
    let [source_high, source_low] = packet.source;
    let [destination_high, destination_low] = packet.destination;
    // The helpers read nothing of the IP header but the addresses.
    if packet.is_v4 {
        let mut ip = [0x45, 0, 0, (source_low >> 32) as u32, (destination_low >> 32) as u32];
        // SAFETY: both headers are as long as the helper reads, which the verifier checks.
        unsafe { bpf_tcp_raw_check_syncookie_ipv4(ip.as_mut_ptr().cast(), tcp.as_mut_ptr().cast()) == 0 }
    } else {
        let mut ip = [0x60, source_high, source_low, destination_high, destination_low];
        // SAFETY: as above.
        unsafe { bpf_tcp_raw_check_syncookie_ipv6(ip.as_mut_ptr().cast(), tcp.as_mut_ptr().cast()) == 0 }
    }
}
