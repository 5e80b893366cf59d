//! The per-source SYN limit: a count-min sketch whose cells are GCRA clocks.
//!
//! A source conforms if either of its two cells says so, hence collisions can only make the limit stricter for sources
//! that share *both* cells with busy ones. Updates are conservative (Estan and Varghese 2002): a conforming SYN moves each
//! cell only as far as the smaller one says. A refused SYN moves nothing.

use tunica_common::{
    gcra::{Limit, charged, conforms, debt, ticks},
    policy::{Policy, sketch_cells},
};

use crate::tables;

/// Charges one SYN to the source with this keyed hash; true if it conforms.
#[inline(always)]
pub fn syn_conforms(hash: u64, policy: &Policy, now: u64) -> bool {
    let limit = Limit { cost_ticks: policy.syn_cost_ticks, tolerance_ticks: policy.syn_tolerance_ticks };
    let [first, second] = sketch_cells(hash);
    let (Some(first), Some(second)) = (tables::cell(first), tables::cell(second)) else {
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
