//! The order of checks.
//!
//! 1. exempt: ARP, neighbour discovery and DHCP always pass, path-MTU messages under the ICMP ceiling
//! 2. sanity: stateless, the lowest-numbered fault names the verdict
//! 3. bans, of ranges and of sources
//! 4. by protocol: a SYN by its port and its source, another segment by its socket, UDP by its port, ICMP by its source
//! 5. what could not be looked into follows its policy
//! 6. pass
//!
//! What a ban or a per-source limit would drop is first looked up in the allow list. Every packet adds to exactly one
//! tally.

use aya_ebpf::{bindings::xdp_action, programs::XdpContext};
use tunica_common::{
    event::{Event, tally_slot},
    gcra::{Limit, Pace},
    keys::{AddressBytes, BAN_DYNAMIC, BanEntry, SourceKey, WIDTH_V4_HOST, WIDTH_V6_NET},
    policy::{
        CANDIDATE_BESIDE, COOKIES_OFF, JUMP_CANDIDATE, JUMP_COOKIE, JUMP_SEGMENT, MODE_ENFORCE, MODE_OFF,
        PORT_OPEN, PORT_WITHOUT_COOKIES, Policy, PortRule, STALE_PASS, STALE_SANITY_ONLY,
        ban_filter_position, keyed_hash, own_bit, port_key,
    },
    verdict::{Action, Class, Verdict},
};

use crate::{
    candidate, limit,
    packet::{self, FLAG_ACK, FLAG_SYN, Frame, Icmp, PROTOCOL_TCP, Packet},
    tables::{self, Sketch},
};

/// Decides about one packet and counts it. Returns an XDP action.
#[inline(always)]
pub fn judge(ctx: &XdpContext) -> u32 {
    let Some(policy) = tables::policy() else {
        return xdp_action::XDP_PASS;
    };
    if policy.mode == MODE_OFF {
        return pass(&Frame::of(ctx), policy, Verdict::Unarmed, 0);
    }
    if policy.candidate == CANDIDATE_BESIDE && !candidate::has_judged() {
        // It comes back here; if it is not there, the packet is judged by the policy in force alone.
        tables::jump(&Frame::of(ctx), JUMP_CANDIDATE);
    }
    // Not before: to some verifiers a jump that failed has moved the packet (Linux 6.12).
    let frame = &Frame::of(ctx);
    let mut packet = packet::read(frame);
    packet.forget(policy.zero);
    let action = match decide(frame, policy, &mut packet) {
        Decision::Pass => pass(frame, policy, packet.kind, packet.bytes),
        Decision::Refuse(objection) => refuse(frame, policy, &packet, &objection),
        Decision::Jump(program) => {
            tables::jump(frame, candidate::target(policy, program));
            pass(frame, policy, packet.kind, packet.bytes)
        }
    };
    candidate::leave(frame, policy, action)
}

/// What is to become of a packet.
enum Decision {
    Pass,
    Refuse(Objection),
    /// Another program decides; if it is not there, the packet passes.
    Jump(u32),
}

/// What speaks against a packet.
pub struct Objection {
    pub verdict: Verdict,
    /// The time by which the rule decided; `None` if it needed none. Reading the clock is a good part of a drop's cost.
    pub now: Option<u64>,
}

impl Decision {
    #[inline(always)]
    const fn refuse(verdict: Verdict, now: u64) -> Self {
        Self::Refuse(Objection { verdict, now: Some(now) })
    }
}

#[inline(always)]
fn decide(frame: &Frame<'_>, policy: &Policy, packet: &mut Packet) -> Decision {
    match packet.kind {
        Verdict::Arp | Verdict::NeighbourDiscovery | Verdict::Dhcp => return Decision::Pass,
        Verdict::PathMtu => return icmp_ceiling(policy),
        _ => {}
    }
    let faults = (packet.faults | address_faults(policy, packet)) & policy.sanity_mask;
    if faults != 0 {
        return Decision::Refuse(Objection { verdict: lowest(faults), now: None });
    }
    if packet.is_ip {
        let key = source_key(packet);
        let hash = keyed_hash(&key, policy.secret);
        if policy.bans_present | policy.nets_present != 0
            && let Some(objection) = ban_objection(policy, packet, &key, hash)
        {
            return Decision::Refuse(objection);
        }
        if packet.has_ports {
            let decision = if packet.protocol == PROTOCOL_TCP {
                if packet.tcp_flags & (FLAG_SYN | FLAG_ACK) == FLAG_SYN {
                    syn(frame, policy, packet, &key, hash)
                } else {
                    segment(policy, packet)
                }
            } else {
                udp(policy, packet)
            };
            return decision;
        }
        match packet.icmp {
            Icmp::EchoRequest => return echo(policy, hash),
            Icmp::Other => return icmp_ceiling(policy),
            Icmp::No => {}
        }
        if policy.lockdown != 0 && packet.kind as u32 == Verdict::Pass as u32 && is_for_us(policy, packet) {
            return Decision::Refuse(Objection { verdict: Verdict::PortClosed, now: None });
        }
    }
    if policy.uninspected_drop_mask & packet.kind.bit() != 0 {
        return Decision::Refuse(Objection { verdict: packet.kind, now: None });
    }
    Decision::Pass
}

/// A SYN: the port must be open; a port over its budget answers with cookies and asks nothing of the source, which proves
/// itself later; else the source's limit, the port's own and the budget count it.
#[inline(always)]
fn syn(frame: &Frame<'_>, policy: &Policy, packet: &mut Packet, key: &SourceKey, hash: u64) -> Decision {
    // Plain values, because of an `Option` that is looked at again later the compiler keeps what was never written.
    let (flags, new_pace) = match rule(policy, packet) {
        Some(rule) => (rule.flags, rule.new_pace),
        None => (0, [0, 0]),
    };
    let budget = policy.budget_pace[0] != 0;
    let is_asked = budget || new_pace[0] != 0 || flags != 0;
    if policy.lockdown == 0 && policy.syn_cost_ticks == 0 && !is_asked {
        return Decision::Pass;
    }
    let now = tables::now();
    let Some(port) = tables::port(packet.destination_port) else { return Decision::Pass };
    let is_armed = budget && port.armed_until_ns > now;
    // Whose address it is costs a look-up, which a SYN that its source's limit refuses is spared where nothing else asks.
    let is_first = policy.lockdown != 0 || is_armed;
    let mut is_ours = is_first && is_for_us(policy, packet);
    if policy.lockdown != 0 && is_ours && flags & PORT_OPEN == 0 {
        return Decision::Refuse(Objection { verdict: Verdict::PortClosed, now: None });
    }
    if is_armed && is_ours && has_cookies(policy, flags) {
        return Decision::Jump(JUMP_COOKIE);
    }
    if policy.syn_cost_ticks != 0
        && let Some(verdict) = limit::new_connection(policy, key, hash, now)
    {
        return Decision::refuse(verdict, now);
    }
    if !is_first {
        is_ours = is_asked && is_for_us(policy, packet);
    }
    if !is_ours {
        return Decision::Pass;
    }
    if !limit::admit(&mut port.new_tat, now, new_pace) {
        return Decision::refuse(Verdict::PortRate, now);
    }
    if limit::admit(&mut port.budget_tat, now, policy.budget_pace) {
        return Decision::Pass;
    }
    if arm(policy, packet.destination_port, now) {
        // Tells the daemon which port it is.
        tables::send(&event(frame, policy, packet, Verdict::SynOverBudget, Action::Pass, now));
    }
    // If there is no such program, it is the kernel's own defence that answers.
    packet.kind = Verdict::SynOverBudget;
    Decision::Jump(JUMP_COOKIE)
}

/// Whether the port may answer with cookies.
#[inline(always)]
pub const fn has_cookies(policy: &Policy, port_flags: u32) -> bool {
    policy.cookies != COOKIES_OFF && port_flags & PORT_WITHOUT_COOKIES == 0
}

/// Makes a port answer with cookies from now on. Written at most once a second, because every CPU reads it. Returns whether
/// the port did not answer so before.
#[inline(always)]
pub fn arm(policy: &Policy, port: u16, now: u64) -> bool {
    let until = now + policy.armed_hold_ns;
    let mut is_new = false;
    if let Some(state) = tables::port(port) {
        is_new = state.armed_until_ns <= now;
        if is_new {
            state.armed_since_ns = now;
        }
        if state.armed_until_ns + 1_000_000_000 <= until {
            state.armed_until_ns = until;
        }
    }
    if let Some(host) = tables::host()
        && host.armed_until_ns + 1_000_000_000 <= until
    {
        host.armed_until_ns = until;
    }
    is_new
}

/// A segment that is no SYN: below a rate nobody asks whose it is. To a port that answers with cookies, it may be one that
/// comes back.
#[inline(always)]
fn segment(policy: &Policy, packet: &Packet) -> Decision {
    if policy.segment_cost_ticks == 0 {
        return Decision::Pass;
    }
    let now = tables::now();
    let (Some(host), Some(gate)) = (tables::host(), tables::segment_gate()) else { return Decision::Pass };
    if host.armed_until_ns > now
        && let Some(port) = tables::port(packet.destination_port)
        && port.armed_until_ns > now
    {
        return Decision::Jump(JUMP_SEGMENT);
    }
    if limit::admit(gate, now, policy.segment_pace) { Decision::Pass } else { Decision::Jump(JUMP_SEGMENT) }
}

/// UDP: the port must be open, and may have a rate.
#[inline(always)]
fn udp(policy: &Policy, packet: &Packet) -> Decision {
    let rule = rule(policy, packet);
    if policy.lockdown == 0 && rule.is_none() || !is_for_us(policy, packet) {
        return Decision::Pass;
    }
    match rule {
        Some(rule) if policy.lockdown == 0 || rule.flags & PORT_OPEN != 0 => {
            let now = tables::now();
            let Some(port) = tables::port(packet.destination_port) else { return Decision::Pass };
            under(&mut port.udp_tat, rule.udp_pace, Verdict::UdpRate, now)
        }
        // Answers to what the host asked come back to a port from which it asked.
        _ if u32::from(packet.destination_port) >= policy.ephemeral_low => Decision::Jump(JUMP_SEGMENT),
        _ => Decision::Refuse(Objection { verdict: Verdict::PortClosed, now: None }),
    }
}

/// An echo request: its source's limit, then the host's.
#[inline(always)]
fn echo(policy: &Policy, hash: u64) -> Decision {
    if policy.icmp_cost_ticks == 0 {
        return Decision::Pass;
    }
    let now = tables::now();
    let limit = Limit { cost_ticks: policy.icmp_cost_ticks, tolerance_ticks: policy.icmp_tolerance_ticks };
    if !limit::conforms_in(Sketch::Icmp, limit, hash, policy, now) {
        return Decision::refuse(Verdict::IcmpRate, now);
    }
    let Some(host) = tables::host() else { return Decision::Pass };
    under(&mut host.icmp_host_tat, policy.icmp_host_pace, Verdict::IcmpHostRate, now)
}

#[inline(always)]
fn icmp_ceiling(policy: &Policy) -> Decision {
    if policy.icmp_cost_ticks == 0 {
        return Decision::Pass;
    }
    let now = tables::now();
    let Some(host) = tables::host() else { return Decision::Pass };
    under(&mut host.icmp_ceiling_tat, policy.icmp_ceiling_pace, Verdict::IcmpCeiling, now)
}

/// Passes what conforms to a pace.
#[inline(always)]
fn under(tat: &mut u64, pace: Pace, verdict: Verdict, now: u64) -> Decision {
    if limit::admit(tat, now, pace) { Decision::Pass } else { Decision::refuse(verdict, now) }
}

/// What an operator said of the packet's port.
#[inline(always)]
pub fn rule(policy: &Policy, packet: &Packet) -> Option<&'static PortRule> {
    if policy.ports_present == 0 {
        return None;
    }
    tables::port_rule(port_key(packet.protocol, packet.destination_port))
}

/// Whether the packet is addressed to this host, rather than forwarded, or sent to a group.
#[inline(always)]
pub fn is_for_us(policy: &Policy, packet: &Packet) -> bool {
    let [high, low] = packet.destination;
    policy.own_filter & own_bit(high, low) != 0 && tables::is_own(&address(packet.destination))
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

/// The ban that speaks against the packet.
#[inline(always)]
fn ban_objection(policy: &Policy, packet: &Packet, key: &SourceKey, hash: u64) -> Option<Objection> {
    if policy.bans_present != 0 {
        let (word, bit) = ban_filter_position(hash);
        if tables::may_be_banned(word, bit)
            && let Some(ban) = tables::ban(key)
            && let Some(now) = in_force(policy, &ban)
        {
            return Some(Objection { verdict: Verdict::Banned, now: Some(now) });
        }
    }
    if policy.nets_present != 0
        && let Some(ban) = tables::net_ban(address(packet.source))
        && let Some(now) = in_force(policy, &ban)
    {
        return Some(Objection { verdict: Verdict::BannedNet, now: Some(now) });
    }
    None
}

/// The time now, if the ban holds at it.
#[inline(always)]
fn in_force(policy: &Policy, ban: &BanEntry) -> Option<u64> {
    let now = tables::now();
    let lapses = ban.flags & BAN_DYNAMIC != 0 && tables::is_stale(policy, now);
    (now < ban.expires_ns && !lapses).then_some(now)
}

/// What the packet's source counts by.
#[inline(always)]
pub fn source_key(packet: &Packet) -> SourceKey {
    let [high, low] = packet.source;
    if packet.is_v4 {
        SourceKey { prefix: (low >> 32).to_le_bytes(), width: WIDTH_V4_HOST }
    } else {
        SourceKey { prefix: high.to_le_bytes(), width: WIDTH_V6_NET }
    }
}

/// An address as the tables hold it.
#[inline(always)]
pub fn address([high, low]: [u64; 2]) -> AddressBytes {
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
pub fn pass(frame: &Frame<'_>, policy: &Policy, verdict: Verdict, bytes: u64) -> u32 {
    let bytes = length(frame, bytes);
    if let Some(tally) = tables::tally(tally_slot(verdict, Action::Pass)) {
        tally.packets += 1;
        tally.bytes += bytes;
    }
    candidate::compare(policy, verdict, false, bytes);
    xdp_action::XDP_PASS
}

/// `bytes`, or where the headers did not tell, what the kernel says.
#[inline(always)]
fn length(frame: &Frame<'_>, bytes: u64) -> u64 {
    if bytes == 0 { frame.whole_bytes() as u64 } else { bytes }
}

/// What the daemon is told of a packet.
#[inline(always)]
fn event(
    frame: &Frame<'_>,
    policy: &Policy,
    packet: &Packet,
    verdict: Verdict,
    action: Action,
    now: u64,
) -> Event {
    Event {
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
    }
}

/// Verdicts from which the allow list protects.
const BY_SOURCE: u64 = Verdict::Banned.bit()
    | Verdict::BannedNet.bit()
    | Verdict::SynRate.bit()
    | Verdict::SynRateNet.bit()
    | Verdict::IcmpRate.bit();
/// Verdicts that stay while the daemon is silent and the policy is `sanity-only`.
const STATELESS: u64 = Verdict::mask_of(Class::Sanity) | Verdict::mask_of(Class::Uninspected);

/// Whether the daemon is silent and the policy waives this verdict then.
#[inline(always)]
pub fn is_waived(policy: &Policy, verdict: Verdict, now: u64) -> bool {
    let may_be = policy.on_stale == STALE_PASS
        || (policy.on_stale == STALE_SANITY_ONLY && STATELESS & verdict.bit() == 0);
    may_be && tables::is_stale(policy, now)
}

/// Counts a packet that is answered, or would be if the policy enforced. Returns whether it is.
#[inline(always)]
pub fn answers(policy: &Policy, verdict: Verdict, bytes: u64) -> bool {
    let action = if policy.mode == MODE_ENFORCE { Action::Answer } else { Action::WouldAnswer };
    if let Some(tally) = tables::tally(tally_slot(verdict, action)) {
        tally.packets += 1;
        tally.bytes += bytes;
    }
    candidate::compare(policy, verdict, false, bytes);
    policy.mode == MODE_ENFORCE
}

/// Drops the packet, or counts that it would have been dropped, and now and then tells the daemon; unless the daemon
/// is silent and the policy waives the rule, or the allow list names the source.
#[inline(always)]
pub fn refuse(frame: &Frame<'_>, policy: &Policy, packet: &Packet, objection: &Objection) -> u32 {
    let verdict = objection.verdict;
    let now = match objection.now {
        Some(now) => now,
        None => tables::now(),
    };
    if is_waived(policy, verdict, now) {
        return pass(frame, policy, packet.kind, packet.bytes);
    }
    let by_source = BY_SOURCE & verdict.bit() != 0;
    if by_source && policy.allow_present != 0 && tables::is_allowed(address(packet.source)) {
        return pass(frame, policy, Verdict::Allowed, packet.bytes);
    }
    let action = if policy.mode == MODE_ENFORCE { Action::Drop } else { Action::WouldDrop };
    if let Some(tally) = tables::tally(tally_slot(verdict, action)) {
        tally.packets += 1;
        tally.bytes += length(frame, packet.bytes);
        if now >= tally.next_event_ns {
            tally.next_event_ns = now + policy.event_interval_ns;
            tables::send(&event(frame, policy, packet, verdict, action, now));
            #[cfg(feature = "log")]
            aya_log_ebpf::debug!(
                frame.xdp(),
                "verdict={} action={} port={}",
                verdict.slot(),
                action as u32,
                packet.destination_port
            );
        }
    }
    candidate::compare(policy, verdict, true, packet.bytes);
    match action {
        Action::Drop => xdp_action::XDP_DROP,
        _ => xdp_action::XDP_PASS,
    }
}
