//! What the exit status means.

use tunica_api::view::{Answer, Level, RefusedCode};

use crate::verb::status;

/// Every exit status of `tunica`. The numbers are stable; scripts rely on them.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done as asked.
    Done = 0,
    /// The daemon, or this program, tried and failed.
    Failed = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// The daemon refused: the source is protected, a table is full, a budget is used up, a value is invalid.
    Refused = 3,
    /// What was named is not there.
    NotFound = 4,
    /// The caller lacks the permission.
    Forbidden = 5,
    /// Nobody answers on the daemon's socket.
    Unreachable = 6,
    /// The answer shows that the host is not protected as configured.
    Attention = 7,
    /// The configuration file differs from what is in force.
    Differs = 8,
    /// The configuration has problems: `EX_CONFIG` of BSD's sysexits.h.
    BadConfig = 78,
}

impl Exit {
    const ALL: [Self; 10] = [
        Self::Done,
        Self::Failed,
        Self::Usage,
        Self::Refused,
        Self::NotFound,
        Self::Forbidden,
        Self::Unreachable,
        Self::Attention,
        Self::Differs,
        Self::BadConfig,
    ];

    const fn meaning(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "tunicad, or this program, failed at it",
            Self::Usage => "the command line makes no sense",
            Self::Refused => "refused: protected, table full, over budget, or value invalid",
            Self::NotFound => "what was named is not there",
            Self::Forbidden => "not permitted",
            Self::Unreachable => "tunicad does not answer",
            Self::Attention => "status or doctor: the host is not protected as configured",
            Self::Differs => "diff: the file differs from what is in force",
            Self::BadConfig => "the configuration has problems (check, diff, init, reload)",
        }
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// The section of `--help` that lists every exit status.
pub(crate) fn help() -> String {
    let mut text = "Exit status:".to_owned();
    for exit in Exit::ALL {
        text.push_str(&format!("\n  {:>2}  {}", exit as u8, exit.meaning()));
    }
    text
}

/// The exit status that follows from an answer.
pub(crate) fn of(answer: &Answer) -> Exit {
    match answer {
        Answer::Status(view) if status::needs_attention(view) => Exit::Attention,
        Answer::Doctor(doctor) if doctor.findings.iter().any(|finding| finding.level == Level::Failure) => {
            Exit::Attention
        }
        Answer::Differences(view) if !view.changes.is_empty() => Exit::Differs,
        Answer::Status(_)
        | Answer::Counters(_)
        | Answer::Differences(_)
        | Answer::Doctor(_)
        | Answer::Bans(_)
        | Answer::Allows(_)
        | Answer::Done(_)
        | Answer::Sources(_)
        | Answer::Explanation(_)
        | Answer::Tuning(_)
        | Answer::Incidents(_)
        | Answer::Incident(_)
        | Answer::Candidate(_)
        | Answer::Circuits(_)
        | Answer::CircuitExplanation(_)
        | Answer::Threat(_)
        | Answer::Promotion(_) => Exit::Done,
        Answer::Refused(refused) => match refused.code {
            RefusedCode::Protected | RefusedCode::Full | RefusedCode::Invalid | RefusedCode::OverBudget => {
                Exit::Refused
            }
            RefusedCode::NotFound => Exit::NotFound,
            RefusedCode::Forbidden => Exit::Forbidden,
            RefusedCode::BadConfig => Exit::BadConfig,
            RefusedCode::Failed => Exit::Failed,
        },
    }
}
