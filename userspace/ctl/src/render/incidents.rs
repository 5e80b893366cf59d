//! `incident list`, `incident show`.

use tunica_api::view::{Incident, Incidents, Softirq};

use super::text::{Align, count, duration, table, wrap};

/// The last attacks.
pub(super) fn incidents(view: &Incidents) -> String {
    if view.incidents.is_empty() {
        return "No defence has spoken against a packet yet.\n".to_owned();
    }
    let row = |incident: &Incident| {
        [
            incident.id.to_string(),
            incident.start.to_string(),
            length(incident),
            count(incident.peak_packets_per_second),
            count(incident.dropped_packets.saturating_add(incident.answered_packets)),
            count(incident.would_drop_packets.saturating_add(incident.would_answer_packets)),
            incident.defences.join(", "),
        ]
    };
    table(
        [
            ("ID", Align::Right),
            ("START", Align::Left),
            ("LENGTH", Align::Left),
            ("PEAK/S", Align::Right),
            ("ACTED", Align::Right),
            ("WOULD ACT", Align::Right),
            ("DEFENCES", Align::Left),
        ],
        &view.incidents.iter().map(row).collect::<Vec<_>>(),
    )
}

/// One attack.
pub(super) fn incident(view: &Incident) -> String {
    let mut out = match view.end {
        Some(end) => {
            format!("Incident {} lasted {}, from {} to {end}.\n", view.id, length(view), view.start)
        }
        None => format!("Incident {} GOES ON since {}, {}.\n", view.id, view.start, length(view)),
    };
    out.push('\n');
    for (name, text) in [
        ("defences", view.defences.join(", ")),
        ("peak", format!("{} packets a second", count(view.peak_packets_per_second))),
        ("acted", acted(view)),
        ("ports", ports(view)),
        ("cpu", view.softirq.as_ref().map_or_else(|| "not known".to_owned(), cpu)),
    ] {
        out.push_str(&wrap(&format!("{name:<11}"), "           ", &text));
    }
    if view.rows.is_empty() {
        return out;
    }
    let row = |row: &tunica_api::view::Spoken| [row.verdict.clone(), row.action.clone(), count(row.packets)];
    out.push('\n');
    out.push_str(&table(
        [("VERDICT", Align::Left), ("ACTION", Align::Left), ("PACKETS", Align::Right)],
        &view.rows.iter().map(row).collect::<Vec<_>>(),
    ));
    out
}

fn length(view: &Incident) -> String {
    duration(view.last.since(view.start).as_secs())
}

fn acted(view: &Incident) -> String {
    let parts: Vec<String> = [
        (view.dropped_packets, "dropped"),
        (view.answered_packets, "answered with cookies"),
        (view.would_drop_packets, "would have been dropped, had the mode been enforce"),
        (view.would_answer_packets, "would have been answered, had the mode been enforce"),
    ]
    .into_iter()
    .filter(|(packets, _)| *packets > 0)
    .map(|(packets, what)| format!("{} {what}", count(packets)))
    .collect();
    if parts.is_empty() { "nothing yet".to_owned() } else { parts.join("; ") }
}

fn ports(view: &Incident) -> String {
    if view.ports_over_budget.is_empty() {
        return "none was over its SYN budget".to_owned();
    }
    let ports: Vec<String> = view.ports_over_budget.iter().map(u16::to_string).collect();
    format!("{} over their SYN budget", ports.join(", "))
}

fn cpu(load: &Softirq) -> String {
    let before = load.before_percent.map_or_else(
        || "nothing read before".to_owned(),
        |before| format!("{before:.1} % in the minute before"),
    );
    format!(
        "software interrupts took {:.1} % of all CPUs on average and {:.1} % at most; {before}",
        load.average_percent, load.peak_percent
    )
}
