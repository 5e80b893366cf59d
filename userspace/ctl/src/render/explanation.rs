//! `explain`.

use tunica_api::view::{Ban, Explanation};

use super::text::{count, duration, wrap};

/// What was tried, how it fared, why, and what would change it.
pub(super) fn explanation(view: &Explanation) -> String {
    let mut out = view.in_truth.iter().map(|text| wrap("in truth ", "         ", text)).collect::<String>();
    out.push_str(&wrap("source   ", "         ", &view.source.to_string()));
    out.push_str(&wrap("probe    ", "         ", &view.probe));
    out.push_str(&wrap(
        "judge    ",
        "         ",
        &format!("program {}, policy generation {}, mode {}", view.program_id, view.generation, view.mode),
    ));
    out.push_str(&wrap("ban      ", "         ", &ban(view)));
    for ban in &view.range_bans {
        let text = format!("{} by ban {} {}", ban.source, ban.id, holds(ban));
        out.push_str(&wrap("range    ", "         ", &text));
    }
    out.push_str(&wrap("allow    ", "         ", &allow(view)));
    if let Some(network) = &view.network {
        out.push_str(&wrap("network  ", "         ", &network.sentence));
    }
    if let Some(port) = &view.over_budget {
        out.push_str(&wrap("budget   ", "         ", &port.sentence));
    }
    for (row, (cell, debt)) in view.bucket.cells.iter().zip(&view.bucket.debt_milliseconds).enumerate() {
        out.push_str(&wrap(
            if row == 0 { "bucket   " } else { "         " },
            "         ",
            &format!("row {row}, cell {cell}: {} ms of debt before the probe", count(*debt)),
        ));
    }
    out.push_str(&wrap(
        "limit    ",
        "         ",
        &format!("a SYN is refused beyond {} ms of debt in every row", count(view.bucket.limit_milliseconds)),
    ));

    out.push_str("\noutcome\n");
    let mut first = 1u32;
    for outcome in &view.outcomes {
        let last = first.saturating_add(outcome.count).saturating_sub(1);
        let packets =
            if outcome.count == 1 { format!("packet {first}") } else { format!("packets {first} to {last}") };
        out.push_str(&wrap(
            "  ",
            "  ",
            &format!("{packets}: {}, verdict {}", outcome.action, outcome.verdict),
        ));
        out.push_str(&wrap("    ", "    ", &outcome.sentence));
        first = last.saturating_add(1);
    }
    if !view.undo.is_empty() {
        out.push_str("\nto change it\n");
        for undo in &view.undo {
            out.push_str(&wrap("  - ", "    ", undo));
        }
    }
    out
}

fn ban(view: &Explanation) -> String {
    view.ban.as_ref().map_or_else(|| "none".to_owned(), holds)
}

/// Since when, until when, by whom and why.
fn holds(ban: &Ban) -> String {
    let mut text = format!("since {}", ban.since);
    match ban.expires {
        Some(expires) => {
            text.push_str(&format!(" until {expires} ({})", duration(expires.since(ban.since).as_secs())));
        }
        None => text.push_str(" forever"),
    }
    if let Some(rung) = ban.rung {
        text.push_str(&format!(", rung {rung} of the ladder"));
    }
    because(text, &ban.origin, &ban.reason)
}

fn allow(view: &Explanation) -> String {
    let Some(allow) = &view.allow else { return "none".to_owned() };
    let mut text = allow.prefix.to_string();
    if let Some(since) = allow.since {
        text.push_str(&format!(" since {since}"));
    }
    match allow.expires {
        Some(expires) => text.push_str(&format!(" until {expires}")),
        None => text.push_str(" forever"),
    }
    because(text, &allow.origin, &allow.reason)
}

fn because(text: String, origin: &str, reason: &str) -> String {
    if reason.is_empty() { format!("{text}, by {origin}") } else { format!("{text}, by {origin}: {reason}") }
}
