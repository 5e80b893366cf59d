//! `circuits`.

use std::{collections::BTreeMap, num::NonZeroU32};

use tunica_api::{
    front::{CircuitRow, Digest, TOKEN_IN_FORCE},
    view::{Circuits, NewCircuits, TorCircuit},
};

use super::text::{Align, clean, count, duration, table, wrap};

/// How the ingress does, and its busiest circuits.
pub(super) fn circuits(view: &Circuits) -> String {
    let digest = &view.digest;
    let mut out = format!("{}\n\n", clean(&digest.statistics));
    if let Some(version) = &view.haproxy {
        return out + &of_haproxy(version, view);
    }
    for (name, text) in [
        ("served", served(digest)),
        ("carried", carried(digest)),
        ("refused", refused(digest)),
        ("closed", closed(digest)),
        ("puzzles", puzzles(digest)),
        ("tokens", tokens(digest)),
        ("backends", backends(digest)),
        ("shadow", shadow(digest)),
        ("new", view.new_circuits.as_ref().map_or_else(String::new, new_circuits)),
    ] {
        if text.is_empty() {
            continue;
        }
        out.push_str(&wrap(&format!("{name:<9}"), "         ", &text));
    }
    if view.age_seconds > 2 {
        out.push_str(&wrap("", "", &format!("The ingress has said nothing for {} s.", view.age_seconds)));
    }
    let Some(tor) = &view.tor else {
        out.push_str(&wrap(
            "tor      ",
            "         ",
            "not connected by its control port, so what it says of circuits is missing",
        ));
        return out + &without_tor(&digest.circuits);
    };
    let alone: Vec<_> = tor
        .iter()
        .filter(|circuit| digest.circuits.iter().all(|row| row.circuit != circuit.circuit))
        .collect();
    if digest.circuits.is_empty() && alone.is_empty() {
        return out + NONE;
    }
    let beside = digest
        .circuits
        .iter()
        .map(|row| cells(row.circuit, Some(row), tor.iter().find(|circuit| circuit.circuit == row.circuit)));
    let alone = alone.iter().map(|circuit| cells(circuit.circuit, None, Some(circuit)));
    out.push('\n');
    out.push_str(&table(
        [
            ("CIRCUIT", Align::Right),
            ("STATE", Align::Left),
            ("OPEN", Align::Right),
            ("REQS", Align::Right),
            ("VIOL", Align::Right),
            ("CPU", Align::Right),
            ("BYTES", Align::Right),
            ("TOR", Align::Left),
            ("RELAY", Align::Left),
        ],
        &beside.chain(alone).collect::<Vec<_>>(),
    ));
    out
}

const NONE: &str = "\nNo circuit is remembered.\n";

/// What ingress and tor say of one circuit.
fn cells(circuit: NonZeroU32, row: Option<&CircuitRow>, tor: Option<&TorCircuit>) -> [String; 9] {
    let of_row = |cell: fn(&CircuitRow) -> String| row.map_or_else(|| "-".to_owned(), cell);
    [
        circuit.to_string(),
        of_row(state),
        of_row(|row| row.open.to_string()),
        of_row(|row| count(row.requests)),
        of_row(|row| row.violations.to_string()),
        of_row(|row| milliseconds(row.cpu_microseconds)),
        of_row(|row| count(row.bytes_in.saturating_add(row.bytes_out))),
        tor.map_or_else(|| "ended".to_owned(), at_tor),
        // Enough to find it by; `--json` has the whole of it.
        tor.and_then(|tor| tor.rendezvous.as_ref())
            .map_or("-", |relay| relay.get(..6).unwrap_or(relay))
            .to_owned(),
    ]
}

fn without_tor(rows: &[CircuitRow]) -> String {
    if rows.is_empty() {
        return NONE.to_owned();
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
            count(row.bytes_in.saturating_add(row.bytes_out)),
        ]
    };
    let columns = [
        ("CIRCUIT", Align::Right),
        ("STATE", Align::Left),
        ("AGE", Align::Left),
        ("OPEN", Align::Right),
        ("CONN/MIN", Align::Right),
        ("REQS", Align::Right),
        ("VIOL", Align::Right),
        ("CPU", Align::Right),
        ("BYTES", Align::Right),
    ];
    format!("\n{}", table(columns, &rows.iter().map(row).collect::<Vec<_>>()))
}

/// How those that are new compare with those of calm times.
pub(super) fn new_circuits(view: &NewCircuits) -> String {
    let percent = |part: u16| format!("{} %", part / 100);
    let many = if view.too_many { "TOO MANY ALIKE: " } else { "" };
    let relay = if view.at_one_relay { " and meet the service at one relay" } else { "" };
    match (view.alike, view.usual) {
        (Some(alike), Some(usual)) => format!(
            "{many}{} of {} new circuits are alike{relay}, {} usually",
            percent(alike),
            count(view.compared.into()),
            percent(usual)
        ),
        _ if view.known < view.needed => format!(
            "{} of the {} circuits are known without which new ones are compared with nothing",
            count(view.known),
            count(view.needed)
        ),
        (Some(_) | None, Some(_) | None) => format!("{many}too few new circuits now to compare"),
    }
}

fn at_tor(tor: &TorCircuit) -> String {
    match tor.joined_seconds {
        Some(seconds) => format!("{} {}", tor.state, duration(seconds)),
        None => tor.state.clone(),
    }
}

/// Rounded up: what was done is never nothing.
fn milliseconds(microseconds: u64) -> String {
    format!("{} ms", count(microseconds.div_ceil(1_000)))
}

/// What HAProxy's table tells, which is less.
fn of_haproxy(version: &str, view: &Circuits) -> String {
    let mut out = wrap(
        "",
        "",
        &format!(
            "HAProxy {}, its table read {} ago: circuits with open connections, banned ones and VIPs.",
            clean(version),
            duration(view.age_seconds)
        ),
    );
    if view.digest.circuits.is_empty() {
        return out + "\nThere is none of these.\n";
    }
    let row = |row: &CircuitRow| {
        [
            row.circuit.to_string(),
            state(row),
            row.open.to_string(),
            count(row.connections_per_10_seconds),
            count(row.requests_per_10_seconds),
            row.violations.to_string(),
        ]
    };
    out.push('\n');
    out.push_str(&table(
        [
            ("CIRCUIT", Align::Right),
            ("STATE", Align::Left),
            ("OPEN", Align::Right),
            ("CONN/10S", Align::Right),
            ("REQS/10S", Align::Right),
            ("VIOL", Align::Right),
        ],
        &view.digest.circuits.iter().map(row).collect::<Vec<_>>(),
    ));
    out
}

fn state(row: &CircuitRow) -> String {
    let state = match (row.banned_seconds, row.paid) {
        (Some(seconds), _) => return format!("ban {}", duration(seconds)),
        // Whoever goes past the queue has paid.
        (None, true) if row.token.as_deref() == Some(TOKEN_IN_FORCE) => format!("{}, token", row.state),
        (None, true) if row.state != "vip" => format!("{}, paid", row.state),
        (None, _) => row.state.clone(),
    };
    // In the line there is room for one word beside the other.
    let beside = |mark: &str| format!("{}, {mark}", state.strip_prefix("normal, ").unwrap_or(&state));
    match row.marked.as_deref() {
        Some("circuit_aged") => beside("old"),
        Some("circuit_slow") => beside("slow"),
        Some(_) | None => state,
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

/// What was closed though nothing banned it, and what is to be; empty where neither is.
fn closed(digest: &Digest) -> String {
    let closed = digest.closed.iter().filter(|(_, total)| **total > 0);
    let mut parts: Vec<_> = closed.map(|(word, total)| format!("{word} {}", count(*total))).collect();
    if digest.marked > 0 {
        let circuits = if digest.marked == 1 { "circuit is" } else { "circuits are" };
        parts.push(format!("{} {circuits} marked to be, once no connection is left", count(digest.marked)));
    }
    parts.join(", ")
}

/// What would have been refused; empty where no limit is a shadow that met anybody.
fn shadow(digest: &Digest) -> String {
    let each = digest.would_refuse.iter().map(|(word, (all, vips))| {
        format!("{word} would have refused {} ({} of VIPs)", count(*all), count(*vips))
    });
    each.collect::<Vec<_>>().join(", ")
}

fn puzzles(digest: &Digest) -> String {
    let puzzles = &digest.puzzles;
    let sum = |counts: &BTreeMap<String, u64>| count(counts.values().sum());
    if puzzles.issued.values().all(|count| *count == 0) {
        return "none".to_owned();
    }
    let picture = |counts: &BTreeMap<String, u64>| count(counts.get("picture").copied().unwrap_or(0));
    format!(
        "{} issued ({} pictures), {} solved ({} pictures), {} wrong answers, {} in the waiting room",
        sum(&puzzles.issued),
        picture(&puzzles.issued),
        sum(&puzzles.solved),
        picture(&puzzles.solved),
        sum(&puzzles.failed),
        count(puzzles.waiting_room)
    )
}

/// Empty where there never was any.
fn tokens(digest: &Digest) -> String {
    let tokens = &digest.tokens;
    let sum = |counts: &BTreeMap<String, u64>| counts.values().sum::<u64>();
    let (issued, refused) = (sum(&tokens.issued), sum(&tokens.refused));
    if issued + tokens.accepted + refused == 0 {
        return String::new();
    }
    let mut reasons: Vec<_> = tokens.refused.iter().filter(|(_, total)| **total > 0).collect();
    reasons.sort_by_key(|(_, total)| std::cmp::Reverse(**total));
    let reasons = reasons.iter().map(|(word, total)| format!("{word} {}", count(**total)));
    let reasons = reasons.collect::<Vec<_>>().join(", ");
    let reasons = if reasons.is_empty() { reasons } else { format!(" ({reasons})") };
    format!(
        "{} in use, {} issued, {} shown and taken, {} not taken{reasons}, {} revoked",
        count(tokens.live),
        count(issued),
        count(tokens.accepted),
        count(refused),
        count(tokens.revoked)
    )
}

fn backends(digest: &Digest) -> String {
    let each = digest.backends.iter().map(|backend| {
        format!("{} {}", backend.place, if backend.is_well { "is well" } else { "DOES NOT ANSWER" })
    });
    each.collect::<Vec<_>>().join(", ")
}
