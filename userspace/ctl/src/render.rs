//! Answers as text for people: pure functions of what was answered.

mod candidate;
mod circuit_explanation;
mod circuits;
mod differences;
mod explanation;
mod findings;
mod incidents;
mod lists;
pub(crate) mod status;
pub(crate) mod text;
mod threat;
mod tuning;

use tunica_api::view::{Answer, Done, Refused};

pub(crate) use findings::{findings, plural};

use text::wrap;

/// An answer in at most 80 columns.
pub(crate) fn answer(answer: &Answer) -> String {
    match answer {
        Answer::Status(view) => status::status(view),
        Answer::Counters(view) => lists::counters(view),
        Answer::Differences(view) => differences::differences(view),
        Answer::Bans(view) => lists::bans(view),
        Answer::Allows(view) => lists::allows(view),
        Answer::Done(view) => done(view),
        Answer::Sources(view) => lists::sources(view),
        Answer::Explanation(view) => explanation::explanation(view),
        Answer::Tuning(view) => tuning::tuning(view),
        Answer::Incidents(view) => incidents::incidents(view),
        Answer::Incident(view) => incidents::incident(view),
        Answer::Candidate(view) => candidate::candidate(view),
        Answer::Promotion(view) => format!("{} is to be written\n", text::clean(&view.file)),
        Answer::Circuits(view) => circuits::circuits(view),
        Answer::CircuitExplanation(view) => circuit_explanation::circuit_explanation(view),
        Answer::Threat(view) => threat::threat(view),
        Answer::Doctor(view) => findings(&view.findings),
        Answer::Refused(view) => refused(view),
    }
}

fn done(done: &Done) -> String {
    let mut out = String::new();
    if done.dry_run {
        out.push_str("Nothing was changed (--dry-run). Without it:\n");
    }
    for change in &done.changes {
        out.push_str(&if done.dry_run { wrap("  - ", "    ", change) } else { wrap("", "  ", change) });
    }
    if done.changes.is_empty() {
        out.push_str(if done.dry_run { "  nothing to change\n" } else { "Nothing had to be changed.\n" });
    }
    if let Some(undo) = &done.undo {
        out.push_str(&wrap("To undo: ", "    ", undo));
    }
    out
}

/// On one line, so that it can be searched for in logs of scripts.
fn refused(refused: &Refused) -> String {
    text::clean(&refused.message)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use tunica_api::wire;

    use super::*;
    use crate::exit;

    /// Every `tests/answers/NAME.json` renders to `NAME.txt`, whose last line names the exit status.
    #[test]
    fn answers_render_as_recorded() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/answers");
        let mut rows: Vec<_> = fs::read_dir(&directory)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
            .collect();
        rows.sort();
        assert!(rows.len() >= 15, "rows are missing from {}", directory.display());
        let mut faults = Vec::new();
        for row in rows {
            let view = wire::read_answer(&fs::read(&row).unwrap())
                .unwrap_or_else(|error| panic!("{}: {error}", row.display()));
            let shown = answer(&view);
            let rendered = format!("{}\n[exit status {}]\n", shown.trim_end(), exit::of(&view) as u8);
            for line in shown.lines().filter(|line| line.chars().count() > text::COLUMNS) {
                if !matches!(view, Answer::Refused(_)) {
                    faults.push(format!("{}: wider than 80 columns: {line}", row.display()));
                }
            }
            if fs::read_to_string(row.with_extension("txt")).unwrap_or_default() != rendered {
                faults.push(format!("{} renders as\n{rendered}", row.display()));
            }
        }
        assert!(faults.is_empty(), "{}", faults.join("\n"));
    }
}
