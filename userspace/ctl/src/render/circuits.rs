//! `circuits`.

use tunica_api::{
    front::{CircuitRow, Digest},
    view::Circuits,
};

use super::text::{Align, clean, count, duration, table, wrap};

/// How the ingress does, and its busiest circuits.
pub(super) fn circuits(view: &Circuits) -> String {
    let digest = &view.digest;
    let mut out = format!("{}\n\n", clean(&digest.statistics));
    for (name, text) in [
        ("served", served(digest)),
        ("carried", carried(digest)),
        ("refused", refused(digest)),
        ("backends", backends(digest)),
        ("shadow", shadow(digest)),
    ] {
        if text.is_empty() {
            continue;
        }
        out.push_str(&wrap(&format!("{name:<9}"), "         ", &text));
    }
    if view.age_seconds > 2 {
        out.push_str(&wrap("", "", &format!("The ingress has said nothing for {} s.", view.age_seconds)));
    }
    if digest.circuits.is_empty() {
        return out + "\nNo circuit is remembered.\n";
    }
    let row = |row: &CircuitRow| {
        [
            row.circuit.to_string(),
            state(row),
            duration(row.age_seconds),
            row.open.to_string(),
            count(row.connections_per_minute),
            count(row.requests),
            row.violations.to_string(),
            milliseconds(row.cpu_microseconds),
            count(row.bytes_in),
            count(row.bytes_out),
        ]
    };
    out.push('\n');
    out.push_str(&table(
        [
            ("CIRCUIT", Align::Right),
            ("STATE", Align::Left),
            ("AGE", Align::Left),
            ("OPEN", Align::Right),
            ("CONN/MIN", Align::Right),
            ("REQS", Align::Right),
            ("VIOL", Align::Right),
            ("CPU", Align::Right),
            ("IN", Align::Right),
            ("OUT", Align::Right),
        ],
        &digest.circuits.iter().map(row).collect::<Vec<_>>(),
    ));
    out
}

/// Rounded up: what was done is never nothing.
fn milliseconds(microseconds: u64) -> String {
    format!("{} ms", count(microseconds.div_ceil(1_000)))
}

fn state(row: &CircuitRow) -> String {
    match row.banned_seconds {
        Some(seconds) => format!("banned {}", duration(seconds)),
        None => row.state.clone(),
    }
}

fn served(digest: &Digest) -> String {
    format!(
        "{} of {} at once, {} waiting, {} tarpitted",
        count(digest.active),
        count(digest.most_active),
        count(digest.waiting),
        count(digest.tarpitted)
    )
}

fn carried(digest: &Digest) -> String {
    format!(
        "{} connections, {} requests, {} new circuits, {} bytes in, {} out",
        count(digest.connections),
        count(digest.requests),
        count(digest.new_circuits),
        count(digest.bytes_in),
        count(digest.bytes_out)
    )
}

fn refused(digest: &Digest) -> String {
    let mut rows: Vec<_> = digest.refused.iter().filter(|(_, total)| **total > 0).collect();
    rows.sort_by_key(|(_, total)| std::cmp::Reverse(**total));
    if rows.is_empty() {
        return "nothing".to_owned();
    }
    rows.iter().map(|(word, total)| format!("{word} {}", count(**total))).collect::<Vec<_>>().join(", ")
}

/// What would have been refused; empty where no limit is a shadow that met anybody.
fn shadow(digest: &Digest) -> String {
    let each = digest.would_refuse.iter().map(|(word, (all, vips))| {
        format!("{word} would have refused {} ({} of VIPs)", count(*all), count(*vips))
    });
    each.collect::<Vec<_>>().join(", ")
}

fn backends(digest: &Digest) -> String {
    let each = digest.backends.iter().map(|backend| {
        format!("{} {}", backend.place, if backend.is_well { "is well" } else { "DOES NOT ANSWER" })
    });
    each.collect::<Vec<_>>().join(", ")
}
