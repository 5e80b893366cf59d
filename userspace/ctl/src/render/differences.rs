//! `diff`: keys with their old and new values, and what else a reload would do.

use tunica_api::view::{Change, Differences};

use super::{
    findings::plural,
    text::{count, wrap},
};

/// Most lifted bans that are named.
const NAMED: usize = 20;

/// How the file differs from what is in force.
pub(super) fn differences(view: &Differences) -> String {
    if view.changes.is_empty() {
        return wrap("", "  ", &format!("{}: no key differs from what is in force.", view.file));
    }
    let keys = view.changes.len();
    let mut out = wrap("", "  ", &format!("{}: {} from what is in force.", view.file, differ(keys)));
    for change in &view.changes {
        out.push_str(&row(change));
    }
    if !view.lifted.is_empty() {
        let bans = view.lifted.len();
        let head = format!("The file protects what is banned; {} would be lifted:", plural(bans, "ban"));
        out.push_str(&wrap("", "  ", &head));
        for source in view.lifted.iter().take(NAMED) {
            out.push_str(&wrap("  ", "    ", &source.to_string()));
        }
        if let Some(more) = bans.checked_sub(NAMED).filter(|more| *more > 0) {
            let more = count(u64::try_from(more).unwrap_or(u64::MAX));
            out.push_str(&format!("  and {more} more; --json names them all\n"));
        }
    }
    if view.obstacles.is_empty() {
        out.push_str("Nothing was changed. `tunica reload` brings the file into force.\n");
    } else {
        out.push_str("Nothing was changed. `tunica reload` would refuse the file:\n");
        for obstacle in &view.obstacles {
            out.push_str(&wrap("  - ", "    ", obstacle));
        }
    }
    out
}

fn differ(keys: usize) -> String {
    if keys == 1 { "1 key differs".to_owned() } else { format!("{keys} keys differ") }
}

/// A key with its values.
pub(super) fn row(change: &Change) -> String {
    let restart = if change.needs_restart { " (needs a restart)" } else { "" };
    if change.added.is_empty() && change.removed.is_empty() {
        let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "not set".to_owned());
        let text = format!("{}: {} -> {}{restart}", change.key, shown(&change.old), shown(&change.new));
        return wrap("  ", "      ", &text);
    }
    let mut out = wrap("  ", "      ", &format!("{}:{restart}", change.key));
    for (sign, entries) in [("    - ", &change.removed), ("    + ", &change.added)] {
        for entry in entries {
            out.push_str(&wrap(sign, "      ", entry));
        }
    }
    out
}
