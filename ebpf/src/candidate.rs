//! A policy on trial: it judges each packet before the policy in force does, and decides nothing.
//!
//! The candidate is a second load of this object with limits, clocks and tallies of its own; bans, allow list, own
//! addresses and heartbeat are the same maps. Its policy says `observe`, so it changes no packet. Whatever it would do, it
//! leaves a word about it on this CPU and hands the packet to the shield in force, which compares.

use tunica_common::{
    event::{Difference, difference_slot, judged, read_judged},
    policy::{CANDIDATE_BESIDE, CANDIDATE_JUMPS, CANDIDATE_NONE, CANDIDATE_SELF, JUMP_SHIELD, Policy},
    verdict::Verdict,
};

use crate::{packet::Frame, tables};

/// Whether the candidate has judged the packet that the shield is about to look at, and hands it on.
#[inline(always)]
pub fn has_judged() -> bool {
    let Some(words) = tables::judged() else { return true };
    let [said, current] = words;
    *current = *said;
    *said = 0;
    *current != 0
}

/// Where a program stands that this policy's shield jumps to.
#[inline(always)]
pub const fn target(policy: &Policy, program: u32) -> u32 {
    const _: () = assert!(
        (CANDIDATE_NONE | CANDIDATE_BESIDE) & CANDIDATE_SELF == 0 && CANDIDATE_SELF << 1 == CANDIDATE_JUMPS
    );
    // Without a branch, because the verifier would walk both ways to each jump.
    program.wrapping_add((policy.candidate & CANDIDATE_SELF) << 1)
}

/// The end of a program: what the candidate judged goes on to the shield in force, whatever came of it.
#[inline(always)]
pub fn leave(frame: &Frame<'_>, policy: &Policy, action: u32) -> u32 {
    if policy.candidate == CANDIDATE_SELF {
        tables::jump(frame, JUMP_SHIELD);
    }
    action
}

/// Notes what the candidate says of a packet, or counts how it differs from what the policy in force says.
#[inline(always)]
pub fn compare(policy: &Policy, verdict: Verdict, is_refused: bool, bytes: u64) {
    if policy.candidate == CANDIDATE_NONE {
        return;
    }
    let Some([said, current]) = tables::judged() else { return };
    if policy.candidate == CANDIDATE_SELF {
        *said = judged(verdict, is_refused);
        return;
    }
    let word = *current;
    *current = 0;
    let (theirs, would_refuse) = read_judged(word);
    if word == 0 || would_refuse == is_refused {
        return;
    }
    let slot = if would_refuse {
        difference_slot(Difference::Refuses, theirs)
    } else {
        difference_slot(Difference::Passes, verdict.slot())
    };
    if let Some(tally) = tables::difference(slot) {
        tally.packets += 1;
        tally.bytes += bytes;
    }
}
