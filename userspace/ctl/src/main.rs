//! `tunica`: asks the daemon and shows what it answers; checks and writes configurations offline.
//!
//! Knows no socket but the daemon's, and decides nothing: what an answer means is said by the answer.
#![forbid(unsafe_code)]

mod client;
mod exit;
mod host;
mod render;
mod verb;

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::Parser;
use serde::Serialize;

use crate::{exit::Exit, verb::Verb};

/// Ask tunicad, and show what it answers
#[derive(Debug, Parser)]
#[command(name = "tunica", version, after_help = exit::help())]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

/// What every verb takes.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Options of every command")]
struct Global {
    /// Print one line of JSON with a schema number
    #[arg(long, global = true)]
    json: bool,
    /// Where tunicad listens
    #[arg(long, global = true, value_name = "PATH", default_value = "/run/tunica/tunicad.sock")]
    socket: PathBuf,
    /// Configuration file [default: /etc/tunica/tunica.toml]
    #[arg(long, global = true, value_name = "PATH")]
    config: Option<PathBuf>,
}

impl Global {
    /// The configuration file meant where no other is named.
    fn config_or_default(&self) -> PathBuf {
        self.config.clone().unwrap_or_else(|| PathBuf::from(tunica_config::DEFAULT_PATH))
    }
}

/// Why a verb did not do what it was asked.
struct Failure {
    exit: Exit,
    message: String,
}

impl Failure {
    fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into() }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.verb.run(&cli.global) {
        Ok(exit) => exit.into(),
        Err(Failure { exit, message }) => {
            note(&message);
            exit.into()
        }
    }
}

/// Prints what was asked for. A reader that went away (`tunica ban list | head`) is no failure.
fn say(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::new(
            Exit::Failed,
            format!(
                "standard output cannot be written ({error}): the answer is lost, what was asked is done"
            ),
        )),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Prints `report` as one line of JSON.
fn say_json(report: &impl Serialize) -> Result<(), Failure> {
    let line = serde_json::to_string(report).map_err(|error| {
        // Paths that are not UTF-8 have no form in JSON.
        Failure::new(Exit::Failed, format!("the report has no form in JSON ({error}); leave --json away"))
    })?;
    say(&format!("{line}\n"))
}

/// Prints a message beside the answer. Where standard error is closed there is nobody left to tell.
fn note(message: &str) {
    drop(writeln!(io::stderr().lock(), "tunica: {}", message.trim_end()));
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_help_fits_in_80_columns() {
        fn visit(command: &mut clap::Command) {
            let help = command.render_long_help().to_string() + &command.render_help().to_string();
            for line in help.lines() {
                assert!(line.chars().count() <= 80, "{}: {line}", command.get_name());
            }
            command.get_subcommands_mut().for_each(visit);
        }
        let mut command = Cli::command();
        command.build();
        visit(&mut command);
    }
}
