//! `candidate status`.

use tunica_api::view::{Candidate, Counter, Difference};

use super::{
    differences,
    text::{Align, count, table, wrap},
};

/// What the candidate is, and which packets it would treat otherwise.
pub(super) fn candidate(view: &Candidate) -> String {
    let mut out = wrap("", "  ", &format!("{}, tried since {}. It decides nothing.", view.name, view.since));
    if view.changes.is_empty() {
        out.push_str("No key differs from what is in force.\n");
    }
    for change in &view.changes {
        out.push_str(&differences::row(change));
    }
    if !view.untried.is_empty() {
        out.push_str(&wrap(
            "",
            "  ",
            &format!("Not tried, in force with a promotion only: {}.", view.untried.join(", ")),
        ));
    }
    let seen: u64 = view.counters.iter().map(|row| row.packets).sum();
    out.push_str(&format!("\nIt judged {} packets.\n", count(seen)));
    if view.refuses.is_empty() && view.passes.is_empty() {
        out.push_str("It agrees with what is in force on each of them.\n");
        return out;
    }
    for (head, rows) in [
        ("Would be refused, and pass now:", &view.refuses),
        ("Would pass, and are refused now:", &view.passes),
    ] {
        if !rows.is_empty() {
            out.push_str(&format!("\n{head}\n"));
            out.push_str(&difference_table(rows));
        }
    }
    out.push_str("\nAll that it counted:\n");
    out.push_str(&table(
        [
            ("VERDICT", Align::Left),
            ("ACTION", Align::Left),
            ("PACKETS", Align::Right),
            ("BYTES", Align::Right),
        ],
        &view.counters.iter().map(counter).collect::<Vec<_>>(),
    ));
    out
}

fn difference_table(rows: &[Difference]) -> String {
    let row = |row: &Difference| [row.verdict.clone(), count(row.packets), count(row.bytes)];
    table(
        [("VERDICT", Align::Left), ("PACKETS", Align::Right), ("BYTES", Align::Right)],
        &rows.iter().map(row).collect::<Vec<_>>(),
    )
}

fn counter(row: &Counter) -> [String; 4] {
    [row.verdict.clone(), row.action.clone(), count(row.packets), count(row.bytes)]
}
