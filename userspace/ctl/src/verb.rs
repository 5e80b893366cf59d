//! The verbs: one file each.

mod allow;
mod ban;
mod bypass;
mod candidate;
mod check;
mod circuit;
mod confirm;
mod diff;
mod doctor;
mod explain;
mod haproxy;
mod incident;
mod init;
mod length;
mod panic;
mod policy;
mod pow;
mod reload;
mod report;
mod sources;
pub(crate) mod status;
mod threat;
mod token;
mod top;
mod torrc;
mod tune;

use clap::Subcommand;
use tunica_api::{request::Request, view::Answer};

use crate::{
    Failure, Global,
    client::{self, AskError, Reply},
    exit::{self, Exit},
    host::Host,
    note, render, say,
};

/// What can be asked for.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Show whether the host is protected, and by what
    Status,
    /// Watch verdicts, sources, bans and defences live
    Top(top::Top),
    /// List, add or lift bans
    #[command(subcommand)]
    Ban(ban::Ban),
    /// List, add or remove ranges that are never banned or rate-limited
    #[command(subcommand)]
    Allow(allow::Allow),
    /// Report a source that misbehaved; enough reports ban it
    Report(report::Report),
    /// Show the sources seen most often in sampled events
    Sources(sources::Sources),
    /// Say why packets of a source, or streams of a circuit, pass or not
    Explain(explain::Explain),
    /// Validate a configuration file; needs no daemon
    Check(check::Check),
    /// Write a minimal configuration that only observes; needs no daemon
    Init(init::Init),
    /// Print the policy in another program's words; needs no daemon
    Render(policy::Render),
    /// Show what `reload` would change, and change nothing
    Diff,
    /// Make tunicad read its configuration again; all or nothing
    Reload(reload::Reload),
    /// Keep the configuration that `reload --confirm` put on trial
    Confirm,
    /// Try another configuration on every packet, with no effect on it
    #[command(subcommand)]
    Candidate(candidate::Candidate),
    /// Detach the shield for a while, or attach it again
    #[command(subcommand)]
    Bypass(bypass::Bypass),
    /// Attack mode: stricter limits than configured, for a while
    Panic(panic::Panic),
    /// Show how loaded the service is, or set the load level
    Threat(threat::Threat),
    /// Propose limits from what was seen, and change nothing
    Tune(tune::Tune),
    /// Show the last attacks: when, what acted, what it cost
    #[command(subcommand)]
    Incident(incident::Incident),
    /// Show how the ingress does, and its busiest circuits
    Circuits(circuit::Circuits),
    /// Ban, promote, demote or close a circuit
    #[command(subcommand)]
    Circuit(circuit::Circuit),
    /// Issue a VIP token, or revoke all of them
    #[command(subcommand)]
    Token(token::Token),
    /// Solve, check and time puzzles; needs no daemon
    #[command(subcommand)]
    Pow(pow::Pow),
    /// Say what this host can do for the shield; needs no daemon
    Doctor,
}

impl Verb {
    /// Does it.
    ///
    /// # Errors
    /// With a message for the operator and the exit status; the daemon's refusals are not among them.
    pub(crate) fn run(self, global: &Global) -> Result<Exit, Failure> {
        match self {
            Self::Status => ask(global, &status::request()),
            Self::Top(verb) => verb.run(global),
            Self::Ban(verb) => ask(global, &verb.request(&Host::at("/"))),
            Self::Allow(verb) => ask(global, &verb.request()),
            Self::Report(verb) => ask(global, &verb.request()),
            Self::Sources(verb) => ask(global, &verb.request()),
            Self::Explain(verb) => ask(global, &verb.request()?),
            Self::Check(verb) => verb.run(global),
            Self::Init(verb) => verb.run(global),
            Self::Render(verb) => verb.run(global),
            Self::Diff => ask(global, &diff::request()),
            Self::Reload(verb) => ask(global, &verb.request(&Host::at("/"))),
            Self::Confirm => ask(global, &confirm::request()),
            Self::Candidate(verb) => verb.run(global),
            Self::Bypass(verb) => ask(global, &verb.request()),
            Self::Panic(verb) => ask(global, &verb.request()?),
            Self::Threat(verb) => ask(global, &verb.request()),
            Self::Tune(verb) => verb.run(global),
            Self::Incident(verb) => ask(global, &verb.request()),
            Self::Circuits(verb) => ask(global, &verb.request()),
            Self::Circuit(verb) => ask(global, &verb.request()),
            Self::Token(verb) => verb.run(global),
            Self::Pow(verb) => verb.run(global),
            Self::Doctor => doctor::run(global),
        }
    }
}

impl From<AskError> for Failure {
    fn from(error: AskError) -> Self {
        Self::new(error.exit(), error.to_string())
    }
}

fn ask(global: &Global, request: &Request) -> Result<Exit, Failure> {
    show(global, &client::ask(&global.socket, request)?)
}

fn show(global: &Global, reply: &Reply) -> Result<Exit, Failure> {
    if global.json {
        say(&format!("{}\n", reply.line))?;
    } else if let Answer::Refused(_) = reply.answer {
        note(&render::answer(&reply.answer));
    } else {
        say(&render::answer(&reply.answer))?;
    }
    Ok(exit::of(&reply.answer))
}
