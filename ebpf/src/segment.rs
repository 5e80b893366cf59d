//! Segments that are no SYN, and answers over UDP, judged by the sockets of this host.
//!
//! Established means that the kernel finds a socket of that connection; there is no table of connections here. What finds
//! a listener may return a cookie, which proves its source. Everything else belongs to no connection and is limited by
//! source, and all sources together, which costs an honest peer nothing: its segments find their socket first.
//!
//! On a host that translates addresses, what belongs to somebody behind it looks like that too. There nothing is refused
//! for want of a socket.

use tunica_common::{
    event::Proof,
    gcra::Limit,
    keys::SourceKey,
    policy::{Policy, keyed_hash},
    verdict::Verdict,
};

use crate::{
    candidate, limit,
    packet::{self, FLAG_ACK, FLAG_RST, FLAG_SYN, Frame, PROTOCOL_UDP, Packet},
    shield::{self, Objection},
    sockets::{self, Socket},
    tables::{self, Sketch},
};

/// Decides about one packet that the shield handed over.
#[inline(always)]
pub fn judge(frame: &Frame<'_>) -> u32 {
    let Some(policy) = tables::policy() else {
        return aya_ebpf::bindings::xdp_action::XDP_PASS;
    };
    let mut packet = packet::read(frame);
    packet.forget(policy.zero);
    let action = match objection(frame, policy, &mut packet) {
        Some(objection) => shield::refuse(frame, policy, &packet, &objection),
        None => shield::pass(frame, policy, packet.kind, packet.bytes),
    };
    candidate::leave(frame, policy, action)
}

#[inline(always)]
fn objection(frame: &Frame<'_>, policy: &Policy, packet: &mut Packet) -> Option<Objection> {
    if !packet.has_ports || !shield::is_for_us(policy, packet) {
        return None;
    }
    let socket = sockets::find(frame, packet);
    if socket == Socket::Own {
        return None;
    }
    if packet.protocol == PROTOCOL_UDP {
        if policy.translates != 0 {
            return None;
        }
        return Some(Objection { verdict: Verdict::PortClosed, now: None });
    }
    let now = tables::now();
    let key = shield::source_key(packet);
    let hash = keyed_hash(&key, policy.secret);
    let may_return_cookie = packet.tcp_flags & (FLAG_ACK | FLAG_SYN | FLAG_RST) == FLAG_ACK;
    if socket == Socket::Listener && may_return_cookie && sockets::returns_cookie(frame, packet) {
        packet.kind = Verdict::CookieAck;
        let flags = shield::rule(policy, packet).map_or(0, |rule| rule.flags);
        if !shield::has_cookies(policy, flags) {
            // The kernel made this cookie, for a SYN that was counted.
            return None;
        }
        return returned_once(policy, packet, now, &key, hash);
    }
    if policy.translates != 0 {
        // It may be of somebody's behind this host, whose socket is elsewhere.
        return None;
    }
    let limit =
        Limit { cost_ticks: policy.segment_cost_ticks, tolerance_ticks: policy.segment_tolerance_ticks };
    if limit::conforms_in(Sketch::Segment, limit, hash, policy, now)
        && let Some(host) = tables::host()
        && limit::admit(&mut host.segment_tat, now, policy.segment_host_pace)
    {
        return None;
    }
    Some(Objection { verdict: Verdict::NoSocket, now: Some(now) })
}

/// What speaks against a connection whose cookie came back. Several of its segments may come until the first has made a
/// socket, and all of them share the answer that the first one got. Two connections that share a row and alternate count
/// more often.
#[inline(always)]
fn returned_once(
    policy: &Policy,
    packet: &Packet,
    now: u64,
    key: &SourceKey,
    hash: u64,
) -> Option<Objection> {
    /// The low bit of a row says that the connection was refused.
    const REFUSED: u64 = 1;
    let [secret, _] = policy.secret;
    let ports = u64::from(packet.source_port) << 16 | u64::from(packet.destination_port);
    let [high, low] = packet.source;
    // The whole source, which for IPv6 is more than what it counts by.
    let mark =
        (hash ^ ports.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ low.rotate_left(17) ^ high ^ secret) & !REFUSED;
    let last = tables::returned(mark)?;
    if *last & !REFUSED == mark {
        let is_refused = *last & REFUSED != 0;
        return is_refused.then_some(Objection { verdict: Verdict::SynRate, now: Some(now) });
    }
    let objection = returned(policy, packet, now, key, hash);
    *last = mark;
    if let Some(objection) = &objection {
        *last = mark | REFUSED;
        if objection.verdict.slot() != Verdict::PortRate.slot() {
            // The cookie proves who it is that wants too much.
            tables::prove(&Proof {
                time_ns: now,
                source: shield::address(packet.source),
                violations: 0,
                port: u32::from(packet.destination_port),
                reserved: 0,
            });
        }
    }
    objection
}

/// A good cookie completes a handshake whose SYN was not counted: its source and its port count it now.
#[inline(always)]
fn returned(policy: &Policy, packet: &Packet, now: u64, key: &SourceKey, hash: u64) -> Option<Objection> {
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
