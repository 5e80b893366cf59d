//! Limits.
//!
//! Per-source limits are count-min sketches whose cells are GCRA clocks. A source conforms if either of its two cells says
//! so, hence collisions can only make the limit stricter for sources that share *both* cells with busy ones. Updates are
//! conservative (Estan and Varghese 2002): a conforming packet moves each cell only as far as the smaller one says. A
//! refused packet moves nothing.
//!
//! IPv6 networks: an owner of many /64 is caught by counting how many of them exceed their limit. From
//! [`Policy::escalate_children`] on, all of their /56 shares one limit; the same again makes a /48 of /56.

use tunica_common::{
    gcra::{Limit, Pace, charged, conforms, debt, paced, ticks},
    keys::SourceKey,
    policy::{NET_HOLD_NS, Policy, keyed_hash, net_cell, sketch_cells},
    verdict::Verdict,
};

use crate::tables::{self, Sketch};

/// Charges one packet to the source with this keyed hash; true if it conforms.
#[inline(always)]
pub fn conforms_in(sketch: Sketch, limit: Limit, hash: u64, policy: &Policy, now: u64) -> bool {
    let [first, second] = sketch_cells(hash);
    let (Some(first), Some(second)) = (tables::cell(sketch, first), tables::cell(sketch, second)) else {
        return true;
    };
    let now = ticks(now);
    let first_debt = debt(*first, now, policy.generation, limit);
    let second_debt = debt(*second, now, policy.generation, limit);
    let smaller = if first_debt < second_debt { first_debt } else { second_debt };
    if !conforms(smaller, limit) {
        return false;
    }
    let next = charged(smaller, now, policy.generation, limit);
    let next_debt = smaller + limit.cost_ticks;
    if first_debt < next_debt {
        *first = next;
    }
    if second_debt < next_debt {
        *second = next;
    }
    true
}

/// Charges one packet to a clock of 64 bits; true if it conforms. A pace of cost 0 admits everything.
#[inline(always)]
pub fn admit(tat: &mut u64, now: u64, pace: Pace) -> bool {
    if pace[0] == 0 {
        return true;
    }
    match paced(*tat, now, pace) {
        Some(next) => {
            *tat = next;
            true
        }
        None => false,
    }
}

/// The limit of new connections.
#[inline(always)]
pub fn syn_limit(policy: &Policy) -> Limit {
    Limit { cost_ticks: policy.syn_cost_ticks, tolerance_ticks: policy.syn_tolerance_ticks }
}

/// Charges a new connection to its source; the verdict if it does not conform.
#[inline(always)]
pub fn new_connection(policy: &Policy, key: &SourceKey, hash: u64, now: u64) -> Option<Verdict> {
    let limit = syn_limit(policy);
    if key.width != 64 || policy.escalate_children == 0 {
        return (!conforms_in(Sketch::Syn, limit, hash, policy, now)).then_some(Verdict::SynRate);
    }
    new_connection_v6(policy, key.word(), hash, limit, now)
}

#[inline(always)]
fn new_connection_v6(policy: &Policy, word: u64, hash: u64, limit: Limit, now: u64) -> Option<Verdict> {
    // The first byte of an address is the lowest of the word: bytes 0..6 are a /48, 0..7 a /56.
    let (wide, narrow) = (word & 0x0000_ffff_ffff_ffff, word & 0x00ff_ffff_ffff_ffff);
    let (mut counted, mut level) = (hash, 0);
    if is_shared(wide, true, policy, now) {
        (counted, level) =
            (keyed_hash(&SourceKey { prefix: wide.to_le_bytes(), width: 48 }, policy.secret), 2);
    } else if is_shared(narrow, false, policy, now) {
        (counted, level) =
            (keyed_hash(&SourceKey { prefix: narrow.to_le_bytes(), width: 56 }, policy.secret), 1);
    }
    if conforms_in(Sketch::Syn, limit, counted, policy, now) {
        return None;
    }
    if level == 0 {
        note_child(narrow, (word >> 56) as u8, false, policy, now);
        return Some(Verdict::SynRate);
    }
    if level == 1 {
        note_child(wide, (word >> 48) as u8, true, policy, now);
        // The /56 stays shared while it exceeds its limit.
        renew(narrow, false, policy, now);
    } else {
        renew(wide, true, policy, now);
    }
    Some(Verdict::SynRateNet)
}

#[inline(always)]
fn is_shared(prefix: u64, is_wide: bool, policy: &Policy, now: u64) -> bool {
    match tables::net(net_cell(prefix, is_wide, policy.secret)) {
        Some(net) => net.prefix == prefix && net.shared_until_ns > now,
        None => false,
    }
}

#[inline(always)]
fn renew(prefix: u64, is_wide: bool, policy: &Policy, now: u64) {
    if let Some(net) = tables::net(net_cell(prefix, is_wide, policy.secret))
        && net.prefix == prefix
    {
        net.shared_until_ns = now + NET_HOLD_NS;
    }
}

/// Notes that a child of a network exceeds its limit, and makes the network share one if enough did.
#[inline(always)]
fn note_child(prefix: u64, child: u8, is_wide: bool, policy: &Policy, now: u64) {
    let Some(net) = tables::net(net_cell(prefix, is_wide, policy.secret)) else { return };
    let is_over = now.saturating_sub(net.since_ns) > NET_HOLD_NS;
    if net.prefix != prefix || is_over {
        // A cell that counts for another network goes on doing so until it is quiet.
        if net.prefix != prefix && !is_over {
            return;
        }
        net.prefix = prefix;
        net.shared_until_ns = 0;
        net.since_ns = now;
        tables::clear(&mut net.children);
    }
    let bit = 1u64 << (child & 63);
    let [first, second, third, fourth] = &mut net.children;
    match child >> 6 {
        0 => *first |= bit,
        1 => *second |= bit,
        2 => *third |= bit,
        _ => *fourth |= bit,
    }
    let count = ones(*first) + ones(*second) + ones(*third) + ones(*fourth);
    if count >= policy.escalate_children {
        net.shared_until_ns = now + NET_HOLD_NS;
    }
}

/// Bits set (Warren, Hacker's Delight, section 5-1). The target has no instruction for it.
#[inline(always)]
const fn ones(word: u64) -> u32 {
    let pairs = word - ((word >> 1) & 0x5555_5555_5555_5555);
    let nibbles = (pairs & 0x3333_3333_3333_3333) + ((pairs >> 2) & 0x3333_3333_3333_3333);
    let bytes = (nibbles + (nibbles >> 4)) & 0x0f0f_0f0f_0f0f_0f0f;
    (bytes.wrapping_mul(0x0101_0101_0101_0101) >> 56) as u32
}
