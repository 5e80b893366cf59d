//! What is wrong with a file, said so that its author can mend it.

use std::fmt;

use thiserror::Error;

/// One fault.
///
/// Prints as one line, `tunica.toml:7:12: shield.syn.burst = 0: no source could ever connect; give a whole number from 1
/// to 10000`.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub struct Problem {
    /// The file as its reader named it.
    pub origin: String,
    /// Line of the fault; the first is 1.
    pub line: usize,
    /// Column of the fault in characters; the first is 1.
    pub column: usize,
    /// The key's full name, or a section's in brackets. `None` where the text is no TOML and has no keys yet.
    pub key: Option<String>,
    /// What stands there, shortened. `None` where something is missing.
    pub found: Option<String>,
    /// What would follow from it.
    pub consequence: String,
    /// What to write instead.
    pub fix: String,
}

/// Every fault of a file, in the order of their places; at least one.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub struct Problems(Vec<Problem>);

impl Problems {
    pub(crate) fn new(mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| (problem.line, problem.column));
        Self(problems)
    }

    /// The faults, in the order of their places.
    pub fn as_slice(&self) -> &[Problem] {
        &self.0
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}:{}: ", self.origin, self.line, self.column)?;
        match (&self.key, &self.found) {
            (Some(key), Some(found)) => write!(out, "{key} = {found}: ")?,
            (Some(text), None) | (None, Some(text)) => write!(out, "{text}: ")?,
            (None, None) => {}
        }
        write!(out, "{}; {}", self.consequence, self.fix)
    }
}

impl fmt::Display for Problems {
    /// One line for each fault.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                out.write_str("\n")?;
            }
            problem.fmt(out)?;
        }
        Ok(())
    }
}
