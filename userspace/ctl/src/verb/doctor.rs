//! `doctor`: the daemon's findings, or those of `tunicad preflight` where no daemon runs.

use std::{env, path::PathBuf, process::Command};

use tunica_api::{request::Request, view::Answer};

use super::show;
use crate::{
    Failure, Global,
    client::{self, AskError},
    exit::Exit,
    note,
};

/// Asks the daemon, else its preflight.
pub(super) fn run(global: &Global) -> Result<Exit, Failure> {
    match client::ask(&global.socket, &Request::Doctor {}) {
        Ok(reply) => show(global, &reply),
        Err(unreachable @ AskError::Unreachable { .. }) => {
            let line = preflight(global, &unreachable)?;
            note(&format!("{unreachable}. The findings are those of `tunicad preflight`."));
            let reply = client::read(line)?;
            match reply.answer {
                Answer::Doctor(_) => show(global, &reply),
                Answer::Status(_)
                | Answer::Counters(_)
                | Answer::Candidate(_)
                | Answer::Circuits(_)
                | Answer::CircuitExplanation(_)
                | Answer::Threat(_)
                | Answer::Promotion(_)
                | Answer::Differences(_)
                | Answer::Bans(_)
                | Answer::Allows(_)
                | Answer::Done(_)
                | Answer::Sources(_)
                | Answer::Explanation(_)
                | Answer::Tuning(_)
                | Answer::Incidents(_)
                | Answer::Incident(_)
                | Answer::Refused(_) => {
                    show(global, &reply)?;
                    Err(Failure::new(
                        Exit::Failed,
                        "`tunicad preflight` gave no findings: use `tunica` and `tunicad` of one version",
                    ))
                }
            }
        }
        Err(other) => Err(other.into()),
    }
}

/// The line that `tunicad preflight --json` prints.
fn preflight(global: &Global, unreachable: &AskError) -> Result<Vec<u8>, Failure> {
    let program = daemon_program();
    let mut command = Command::new(&program);
    command.args(["preflight", "--json"]);
    if let Some(config) = &global.config {
        command.arg("--config").arg(config);
    }
    let output = command.output().map_err(|error| {
        Failure::new(
            Exit::Unreachable,
            format!(
                "{unreachable}. Its preflight cannot be run either ({}: {error}): nothing was examined; install \
                 tunicad beside tunica or on PATH",
                program.display()
            ),
        )
    })?;
    // A preflight with failures among its findings may well say so in its exit status; what it printed decides.
    let line = output.stdout.split(|byte| *byte == b'\n').find(|line| !line.is_empty());
    line.map(<[u8]>::to_vec).ok_or_else(|| {
        Failure::new(
            Exit::Failed,
            format!(
                "`{} preflight --json` ended with {} and no findings: {}",
                program.display(),
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            ),
        )
    })
}

/// `tunicad` beside this executable, else whichever PATH finds.
fn daemon_program() -> PathBuf {
    env::current_exe()
        .ok()
        .map(|own| own.with_file_name("tunicad"))
        .filter(|sibling| sibling.is_file())
        .unwrap_or_else(|| PathBuf::from("tunicad"))
}
