//! `tune`.

use tunica_api::view::{Proposal, Tuning};

use super::text::{count, duration, wrap};

/// Every key with what was seen and what follows.
pub(super) fn tuning(view: &Tuning) -> String {
    let mut out = wrap(
        "",
        "",
        &format!(
            "Observed for {}, since {}. Counters are exact and know no source; samples know sources, which a flood \
             forges.",
            duration(view.minutes.saturating_mul(60)),
            view.since
        ),
    );
    for proposal in &view.proposals {
        out.push('\n');
        out.push_str(&wrap("", "  ", &headline(proposal)));
        out.push_str(&wrap("  seen  ", "        ", &proposal.seen));
        out.push_str(&wrap("  why   ", "        ", &proposal.why));
    }
    out.push('\n');
    if view.toml.is_empty() {
        out.push_str("Nothing speaks for other limits.\n");
    } else {
        out.push_str(
            "`tunica tune --toml` prints the lines for the configuration file. Nothing was\nchanged.\n",
        );
    }
    out
}

fn headline(proposal: &Proposal) -> String {
    match (proposal.present, proposal.proposed) {
        (None, _) => format!("{} is switched off", proposal.key),
        (Some(present), None) => format!("{} stays {}", proposal.key, count(present)),
        (Some(present), Some(proposed)) => {
            format!("{} {} -> {}", proposal.key, count(present), count(proposed))
        }
    }
}
