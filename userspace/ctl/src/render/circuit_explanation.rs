//! `explain circuit`.

use tunica_api::view::{CircuitExplanation, CircuitLimit, UnusualCircuit};

use super::text::{count, duration, wrap};

/// What a circuit is, its limits, and who does what with it.
pub(super) fn circuit_explanation(view: &CircuitExplanation) -> String {
    let mut out = wrap("circuit    ", "           ", &format!("{}: {}", view.circuit, view.summary));
    if let Some(ban) = &view.ban {
        let by = match ban.origin.as_str() {
            "operator" => "an operator",
            "haproxy" => "HAProxy",
            _ => "the ingress",
        };
        let text = format!("for {} more, set by {by}", duration(ban.seconds_left));
        out.push_str(&wrap("ban        ", "           ", &text));
    }
    if let Some(row) = &view.row {
        let latency = row
            .latency_milliseconds
            .map_or_else(String::new, |mean| format!("; the backend takes {} ms for it", count(mean)));
        let text = format!(
            "{} old, {} requests, {} bytes in, {} out{latency}",
            duration(row.age_seconds),
            count(row.requests),
            count(row.bytes_in),
            count(row.bytes_out)
        );
        out.push_str(&wrap("carried    ", "           ", &text));
    }
    out.push_str(&wrap("violations ", "           ", &view.violations));
    if let Some(last) = &view.last_refusal {
        let text = format!("{}: {}", last.refusal, last.sentence);
        out.push_str(&wrap("refused    ", "           ", &text));
    }
    if let Some(unusual) = &view.unusual {
        out.push_str(&wrap("unusual    ", "           ", &unusual_in(unusual)));
    }
    for (name, text) in [("gate", &view.gate), ("ingress", &view.ingress), ("tor", &view.tor)] {
        out.push_str(&wrap(&format!("{name:<11}"), "           ", text));
    }
    out.push_str("\nlimits\n");
    for limit in &view.limits {
        out.push_str(&wrap("  ", "    ", &counted(limit)));
    }
    if !view.undo.is_empty() {
        out.push_str("\nto change it\n");
        for undo in &view.undo {
            out.push_str(&wrap("  - ", "    ", undo));
        }
    }
    out
}

fn unusual_in(unusual: &UnusualCircuit) -> String {
    let far = match unusual.furthest.as_slice() {
        [] => "as most are".to_owned(),
        far => format!("most in {}", far.join(", ")),
    };
    let word = unusual
        .word
        .as_ref()
        .map_or_else(String::new, |word| format!("; its word in circuits.jsonl is {word}"));
    format!(
        "{}.{} in its first 10 s, {far}; nothing follows from it{word}",
        unusual.score / 100,
        unusual.score % 100 / 10
    )
}

fn counted(limit: &CircuitLimit) -> String {
    let used = limit.used.map_or_else(|| "?".to_owned(), count);
    format!("{used} of {} {} ({}): {}", count(limit.limit), limit.what, limit.key, limit.then)
}
