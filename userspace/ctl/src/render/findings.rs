//! `doctor` and `check --host`.

use tunica_api::view::{Finding, Level};

use super::text::wrap;

/// Findings in their order, then how many there are of each kind.
pub(crate) fn findings(findings: &[Finding]) -> String {
    let mut out = String::new();
    for finding in findings {
        let level = match finding.level {
            Level::Ok => "ok",
            Level::Warning => "WARNING",
            Level::Failure => "FAILURE",
        };
        out.push_str(&wrap(
            &format!("{level:<9}"),
            "         ",
            &format!("{}: {}", finding.check, finding.found),
        ));
        if !finding.advice.is_empty() {
            out.push_str(&wrap("         ", "         ", &finding.advice));
        }
    }
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    out.push_str(&format!(
        "{}, {}, {} ok\n",
        plural(count(Level::Failure), "failure"),
        plural(count(Level::Warning), "warning"),
        count(Level::Ok)
    ));
    out
}

/// `1 failure`, `2 failures`.
pub(crate) fn plural(number: usize, word: &str) -> String {
    if number == 1 { format!("1 {word}") } else { format!("{number} {word}s") }
}
