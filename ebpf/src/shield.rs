//! The order of checks.
//!
//! 1. exempt: ARP, neighbour discovery, path-MTU, DHCP always pass
//! 2. sanity: stateless, the lowest-numbered fault names the verdict
//! 3. bans, 4. the per-source SYN limit: what they would drop is first looked up in the allow list
//! 5. what could not be looked into follows its policy
//! 6. pass
//!
//! Every packet adds to exactly one tally.

use aya_ebpf::bindings::xdp_action;
use tunica_common::{
    event::{Event, tally_slot},
    keys::{AddressBytes, BAN_DYNAMIC, SourceKey, WIDTH_V4_HOST, WIDTH_V6_NET},
    policy::{
        MODE_ENFORCE, MODE_OFF, Policy, STALE_PASS, STALE_SANITY_ONLY, ban_filter_position, keyed_hash,
        own_bit,
    },
    verdict::{Action, Verdict},
};

use crate::{
    limit,
    packet::{self, FLAG_ACK, FLAG_SYN, Frame, Packet},
    tables,
};

/// Decides about one packet and counts it. Returns an XDP action.
#[inline(always)]
pub fn judge(frame: &Frame<'_>) -> u32 {
    let Some(policy) = tables::policy() else {
        return xdp_action::XDP_PASS;
    };
    if policy.mode == MODE_OFF {
        return pass(frame, Verdict::Unarmed, 0);
    }
    let packet = packet::read(frame);
    match objection(policy, &packet) {
        Some(objection) => refuse(frame, policy, &packet, &objection),
        None => pass(frame, packet.kind, packet.bytes),
    }
}

/// What speaks against a packet.
struct Objection {
    verdict: Verdict,
    /// The time by which the rule decided; `None` if it needed none. Reading the clock is a good part of a drop's cost.
    now: Option<u64>,
}

/// The first rule that speaks against the packet.
#[inline(always)]
fn objection(policy: &Policy, packet: &Packet) -> Option<Objection> {
    let is_exempt =
        matches!(packet.kind, Verdict::Arp | Verdict::NeighbourDiscovery | Verdict::PathMtu | Verdict::Dhcp);
    if is_exempt {
        return None;
    }
    let faults = (packet.faults | address_faults(policy, packet)) & policy.sanity_mask;
    if faults != 0 {
        return Some(Objection { verdict: lowest(faults), now: None });
    }
    if packet.is_ip {
        let key = source_key(packet);
        let is_syn = packet.tcp_flags & (FLAG_SYN | FLAG_ACK) == FLAG_SYN && policy.syn_cost_ticks != 0;
        if is_syn || policy.bans_present != 0 {
            let hash = keyed_hash(&key, policy.secret);
            if policy.bans_present != 0
                && let Some(now) = banned_at(policy, &key, hash)
            {
                return Some(Objection { verdict: Verdict::Banned, now: Some(now) });
            }
            if is_syn {
                let now = tables::now();
                if !limit::syn_conforms(hash, policy, now) {
                    return Some(Objection { verdict: Verdict::SynRate, now: Some(now) });
                }
            }
        }
    }
    if policy.uninspected_drop_mask & packet.kind.bit() != 0 {
        return Some(Objection { verdict: packet.kind, now: None });
    }
    None
}

/// Faults that stand in the addresses. The filter spares most packets the look-up of own addresses.
#[inline(always)]
fn address_faults(policy: &Policy, packet: &Packet) -> u64 {
    let mut faults = 0;
    if packet.is_ip {
        if packet.source == packet.destination {
            faults |= Verdict::Land.bit();
        }
        let [high, low] = packet.source;
        if policy.own_filter & own_bit(high, low) != 0 && tables::is_own(&address(packet.source)) {
            faults |= Verdict::OwnSource.bit();
        }
    }
    faults
}

/// The time now, if the source is banned at it.
#[inline(always)]
fn banned_at(policy: &Policy, key: &SourceKey, hash: u64) -> Option<u64> {
    let (word, bit) = ban_filter_position(hash);
    if !tables::may_be_banned(word, bit) {
        return None;
    }
    let ban = tables::ban(key)?;
    let now = tables::now();
    let lapses = ban.flags & BAN_DYNAMIC != 0 && tables::is_stale(policy, now);
    (now < ban.expires_ns && !lapses).then_some(now)
}

#[inline(always)]
fn source_key(packet: &Packet) -> SourceKey {
    let [high, low] = packet.source;
    if packet.is_v4 {
        SourceKey { prefix: (low >> 32).to_le_bytes(), width: WIDTH_V4_HOST }
    } else {
        SourceKey { prefix: high.to_le_bytes(), width: WIDTH_V6_NET }
    }
}

#[inline(always)]
fn address([high, low]: [u64; 2]) -> AddressBytes {
    let [a, b, c, d, e, f, g, h] = high.to_le_bytes();
    let [i, j, k, l, m, n, o, p] = low.to_le_bytes();
    [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
}

/// The verdict of the lowest bit set; `faults` is never 0 and holds sanity bits only.
#[inline(always)]
fn lowest(faults: u64) -> Verdict {
    const ORDER: [Verdict; 9] = [
        Verdict::BadLength,
        Verdict::BadFragment,
        Verdict::Xmas,
        Verdict::NullFlags,
        Verdict::SynFin,
        Verdict::SynRst,
        Verdict::FinNoAck,
        Verdict::Land,
        Verdict::OwnSource,
    ];
    let mut found = Verdict::OwnSource;
    let mut index = ORDER.len();
    while index > 0 {
        index -= 1;
        if faults & ORDER[index].bit() != 0 {
            found = ORDER[index];
        }
    }
    found
}

/// Counts a packet that passes.
#[inline(always)]
fn pass(frame: &Frame<'_>, verdict: Verdict, bytes: u64) -> u32 {
    if let Some(tally) = tables::tally(tally_slot(verdict, Action::Pass)) {
        tally.packets += 1;
        tally.bytes += length(frame, bytes);
    }
    xdp_action::XDP_PASS
}

/// `bytes`, or where the headers did not tell, what the kernel says.
#[inline(always)]
fn length(frame: &Frame<'_>, bytes: u64) -> u64 {
    if bytes == 0 { frame.whole_bytes() as u64 } else { bytes }
}

/// Drops the packet, or counts that it would have been dropped, and now and then tells the daemon; unless the daemon
/// is silent and the policy waives the rule, or the allow list names the source.
#[inline(always)]
fn refuse(frame: &Frame<'_>, policy: &Policy, packet: &Packet, objection: &Objection) -> u32 {
    let verdict = objection.verdict;
    let now = match objection.now {
        Some(now) => now,
        None => tables::now(),
    };
    let by_source = matches!(verdict, Verdict::Banned | Verdict::SynRate);
    let is_waived = policy.on_stale == STALE_PASS || (policy.on_stale == STALE_SANITY_ONLY && by_source);
    if is_waived && tables::is_stale(policy, now) {
        return pass(frame, packet.kind, packet.bytes);
    }
    if by_source && policy.allow_present != 0 && tables::is_allowed(address(packet.source)) {
        return pass(frame, Verdict::Allowed, packet.bytes);
    }
    let action = if policy.mode == MODE_ENFORCE { Action::Drop } else { Action::WouldDrop };
    if let Some(tally) = tables::tally(tally_slot(verdict, action)) {
        tally.packets += 1;
        tally.bytes += length(frame, packet.bytes);
        if now >= tally.next_event_ns {
            tally.next_event_ns = now + policy.event_interval_ns;
            tables::send(&Event {
                time_ns: now,
                source: address(packet.source),
                verdict: verdict.slot(),
                action: action as u32,
                generation: policy.generation,
                interface: frame.interface(),
                source_port: packet.source_port,
                destination_port: packet.destination_port,
                protocol: packet.protocol,
                tcp_flags: packet.tcp_flags,
                reserved: [0; 2],
            });
            #[cfg(feature = "log")]
            aya_log_ebpf::debug!(
                frame.context(),
                "verdict={} action={} port={}",
                verdict.slot(),
                action as u32,
                packet.destination_port
            );
        }
    }
    match action {
        Action::Drop => xdp_action::XDP_DROP,
        Action::Pass | Action::WouldDrop => xdp_action::XDP_PASS,
    }
}
