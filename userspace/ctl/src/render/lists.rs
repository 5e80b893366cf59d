//! `ban list`, `allow list`, `sources`.

use tunica_api::view::{Allow, Allows, Ban, Bans, Counter, Counters, Source, Sources};
use tunica_core::time::WallTime;

use super::text::{Align, count, duration, table, wrap};

/// Counters that are not zero.
pub(super) fn counters(view: &Counters) -> String {
    let rows: Vec<_> = view.rows.iter().filter(|row| row.packets > 0).collect();
    if rows.is_empty() {
        return "No packet was counted.\n".to_owned();
    }
    let row =
        |row: &&Counter| [row.verdict.clone(), row.action.clone(), count(row.packets), count(row.bytes)];
    table(
        [
            ("VERDICT", Align::Left),
            ("ACTION", Align::Left),
            ("PACKETS", Align::Right),
            ("BYTES", Align::Right),
        ],
        &rows.iter().map(row).collect::<Vec<_>>(),
    )
}

/// Bans in force.
pub(super) fn bans(view: &Bans) -> String {
    if view.bans.is_empty() {
        return "No ban is in force.\n".to_owned();
    }
    let row = |ban: &Ban| {
        [
            ban.source.to_string(),
            until(ban.expires),
            ban.expires.map_or_else(String::new, |expires| duration(expires.since(ban.since).as_secs())),
            ban.rung.map_or_else(|| "-".to_owned(), |rung| rung.to_string()),
            ban.origin.clone(),
            ban.reason.clone(),
        ]
    };
    table(
        [
            ("SOURCE", Align::Left),
            ("UNTIL", Align::Left),
            ("LENGTH", Align::Left),
            ("RUNG", Align::Right),
            ("BY", Align::Left),
            ("REASON", Align::Left),
        ],
        &view.bans.iter().map(row).collect::<Vec<_>>(),
    )
}

/// The allow list.
pub(super) fn allows(view: &Allows) -> String {
    if view.entries.is_empty() {
        return "The allow list is empty.\n".to_owned();
    }
    let row = |entry: &Allow| {
        [entry.prefix.to_string(), until(entry.expires), entry.origin.clone(), entry.reason.clone()]
    };
    table(
        [("RANGE", Align::Left), ("UNTIL", Align::Left), ("BY", Align::Left), ("REASON", Align::Left)],
        &view.entries.iter().map(row).collect::<Vec<_>>(),
    )
}

/// Until when something holds.
fn until(expires: Option<WallTime>) -> String {
    expires.map_or_else(|| "forever".to_owned(), |expires| expires.to_string())
}

/// Sources in sampled events.
pub(super) fn sources(view: &Sources) -> String {
    let mut out = wrap(
        "",
        "",
        &format!(
            "{} sampled events since {}, {} lost. A flood's sources may be forged.",
            count(view.sampled_events),
            view.since,
            count(view.lost_events)
        ),
    );
    if view.sources.is_empty() {
        out.push_str("No source was sampled.\n");
        return out;
    }
    let row = |source: &Source| {
        [
            source.source.to_string(),
            count(source.events),
            source.last_seen.to_string(),
            format!("{} {}{}", source.verdict, source.action, if source.banned { ", banned" } else { "" }),
        ]
    };
    out.push_str(&table(
        [
            ("SOURCE", Align::Left),
            ("EVENTS <=", Align::Right),
            ("LAST SEEN", Align::Left),
            ("LAST VERDICT", Align::Left),
        ],
        &view.sources.iter().map(row).collect::<Vec<_>>(),
    ));
    out
}
