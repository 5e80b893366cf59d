//! `cargo xtask generate`: files that are written from code, so that they cannot say anything else than the code.

use std::{fmt::Write as _, fs, path::Path, process::Command};

use anyhow::{Context, Result, bail};
use clap::Args;
use tunica_common::verdict::{Class, Verdict};
use tunica_core::refusal::{HttpAnswer, Refusal, TcpAnswer};
use tunica_nft::script;

use crate::{
    process,
    workspace::{self, Targets},
};

/// What `cargo xtask generate` is asked.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Fails where a file differs; writes nothing.
    #[arg(long)]
    check: bool,
}

/// A generated file: its path from the root, and what writes it, if need be by programs that are built with these targets.
type Generated = (&'static str, fn(Targets) -> Result<String>);

const FILES: &[Generated] = &[
    ("deploy/haproxy.cfg", rendered_haproxy),
    ("deploy/iptables-shield.sh", |_| Ok(script::iptables(&script::Options::default()))),
    ("deploy/tunica.toml", |_| Ok(tunica_config::example())),
    ("docs/reference/configuration.md", |_| Ok(tunica_config::reference_markdown())),
    ("docs/reference/messages.md", messages),
    ("docs/reference/metrics.md", |targets| asked_of("tunicad", &["reference", "metrics"], targets)),
    ("docs/reference/refusals.md", |_| Ok(refusals())),
    ("docs/reference/verdicts.md", |_| Ok(verdicts())),
];

/// Runs the command.
///
/// # Errors
/// When a file cannot be written, or, checking, names every file that differs.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if arguments.check {
        return check(Targets::Programs);
    }
    let root = workspace::root()?;
    for (path, text) in FILES {
        let file = root.join(path);
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        }
        fs::write(&file, text(Targets::Programs)?).with_context(|| format!("writing {path}"))?;
        println!("{path}");
    }
    Ok(())
}

/// Checks all of them by programs that are built with these targets.
///
/// # Errors
/// Names every file that differs.
pub(crate) fn check(targets: Targets) -> Result<()> {
    compare(&workspace::root()?, FILES, targets)
}

fn compare(root: &Path, files: &[Generated], targets: Targets) -> Result<()> {
    let mut differing = Vec::new();
    for (path, text) in files {
        if fs::read_to_string(root.join(path)).ok().as_deref() != Some(text(targets)?.as_str()) {
            differing.push(*path);
        }
    }
    if !differing.is_empty() {
        bail!("not as the code says: {}; run `cargo xtask generate`", differing.join(", "));
    }
    println!("{} generated files are as the code says.", files.len());
    Ok(())
}

/// What a program prints. It is run, not linked: xtask must stay quick to build.
fn asked_of(program: &str, arguments: &[&str], targets: Targets) -> Result<String> {
    let root = workspace::root()?;
    let mut cargo = process::command("cargo")?;
    cargo.args(targets.build()).arg("--message-format=json-render-diagnostics");
    let messages = process::capture(cargo.current_dir(&root)).context("building the programs")?;
    let program = workspace::program(&messages, program)
        .with_context(|| format!("`{program}` is no program of this workspace"))?;
    process::capture(Command::new(program).current_dir(&root).args(arguments))
}

/// The messages of both programs, as each lists its own.
fn messages(targets: Targets) -> Result<String> {
    Ok(format!(
        "# Log messages\n\n\
         Every line that `tunicad` and `tunica-front` write to their logs bears a `message_id` from this page, which never changes \
         meaning.\n\n\
         ## tunicad\n\n\
         Lines of one event or request share an `event_id`.\n\
         Addresses stand at the level `debug` alone, in the field `subject`.\n\n\
         {}\n\
         ## tunica-front\n\n\
         No client's address or circuit stands in them; the field `backend` is one of `ingress.backends`.\n\
         Lines of libraries, such as Arti's own, bear no id.\n\n\
         {}",
        asked_of("tunicad", &["reference", "messages"], targets)?,
        asked_of("tunica-front", &["--messages"], targets)?,
    ))
}

/// What `tunica render haproxy` makes of the example file, in which every key has its default.
fn rendered_haproxy(targets: Targets) -> Result<String> {
    asked_of("tunica", &["render", "haproxy", "--config", "deploy/tunica.toml"], targets)
}

fn refusals() -> String {
    let mut page = String::from(
        "# Refusals\n\n\
         <!-- Written by `cargo xtask generate`; edit `userspace/core/src/refusal.rs`. -->\n\n\
         One word for each outcome of a stream.\n\
         It is the `refusal` label of `tunica_front_refused_total`, and what `tunica circuits` counts.\n\
         `circuit_aged` and `circuit_slow` meet no stream: they are what circuits are closed for, and the label of \
         `tunica_circuits_closed_total`.\n\
         A violation counts towards `circuits.ban_threshold`.\n\n\
         Over HTTP a status is the answer to the request that is refused.\n\
         Where the whole connection is to end, as by `displaced` and `draining`, a request that is under way is told, and so is \
         a connection on which none has come yet; one that waits between two requests is closed, and an answer that has begun \
         has one second more before a reset.\n\
         A stream that was switched to WebSocket ends as one over TCP.\n\n\
         No status speaks of a request line that is too long, of another version of HTTP than the preface of HTTP/2, or of an \
         upgrade.\n\
         hyper reads request line and header lines as one head with one limit (`ingress.header_bytes`, 431), and says of any other \
         version only that the request is malformed (400).\n\
         An upgrade to anything but WebSocket is left out of what the backend gets, and the request served as it is (RFC 9110 \
         section 7.8).\n\n\
         | refusal | meaning | over HTTP | over TCP | violation |\n|---|---|---|---|---|\n",
    );
    for refusal in Refusal::ALL {
        let http = match refusal.http() {
            HttpAnswer::Served => "served".to_owned(),
            HttpAnswer::Reset => "reset".to_owned(),
            HttpAnswer::Close => "closed".to_owned(),
            HttpAnswer::Status(status) => status.to_string(),
            HttpAnswer::RetryLater(status) => format!("{status}, `Retry-After`"),
            HttpAnswer::Tarpit => "tarpit".to_owned(),
            HttpAnswer::Challenge => "503, a puzzle".to_owned(),
        };
        let tcp = match refusal.tcp() {
            TcpAnswer::Served => "served",
            TcpAnswer::Reset => "reset",
            TcpAnswer::Close => "closed",
            TcpAnswer::Tarpit => "tarpit",
            TcpAnswer::Challenge => "a puzzle",
        };
        let violation = if refusal.is_violation() { "yes" } else { "" };
        page.push_str(&format!(
            "| `{}` | {} | {http} | {tcp} | {violation} |\n",
            refusal.label(),
            refusal.sentence()
        ));
    }
    page
}

fn verdicts() -> String {
    let mut page = String::from(
        "# Verdicts\n\n\
         <!-- Written by `cargo xtask generate`; edit `common/src/verdict.rs`. -->\n\n\
         One word for each outcome of a packet.\n\
         It is the `verdict` label of metrics, the word that configuration files use, and what `tunica explain` \
         names.\n\
         In `observe` mode what would be dropped passes, and its `action` label is `would_drop`; what would be answered \
         passes as `would_answer`.\n",
    );
    for class in Class::ALL {
        let (title, rule) = match class {
            Class::Pass => ("Passed", "Inspected, or exempt from inspection by design."),
            Class::Uninspected => (
                "Could not be looked into",
                "Passed and counted, unless `shield.uninspected.drop` names the verdict.",
            ),
            Class::Sanity => (
                "Insane",
                "No honest sender makes such a packet. Dropped, unless `shield.sanity.off` names the verdict; \
                 the allow list does not matter.",
            ),
            Class::Ban => ("Banned", "Dropped, unless the allow list names the source."),
            Class::Limit => ("Over its limit", "Dropped, unless the allow list names the source."),
            Class::Port => ("Against a port's rule", "Dropped; the allow list does not matter."),
            Class::NoSocket => (
                "Of no connection",
                "Dropped; the allow list does not matter, because segments of connections find their socket first.",
            ),
            Class::Icmp => (
                "ICMP over its rate",
                "Dropped; the allow list protects from `icmp_rate` alone, because the other two count the whole host.",
            ),
            Class::Cookie => (
                "Answered",
                "The `action` is `answer`: the peer gets a SYN-ACK whose number is a cookie, and the network stack sees nothing.",
            ),
        };
        // Writing to a string cannot fail.
        let _ = write!(page, "\n## {title}\n\n{rule}\n\n| verdict | slot | meaning |\n|---|---|---|\n");
        for verdict in Verdict::ALL.iter().filter(|verdict| verdict.class() == class) {
            let (label, slot, sentence) = (verdict.label(), verdict.slot(), verdict.sentence());
            let _ = writeln!(page, "| `{label}` | {slot} | {sentence} |");
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    #[test]
    fn every_verdict_has_one_row() {
        let page = verdicts();
        for verdict in Verdict::ALL {
            assert_eq!(page.matches(&format!("\n| `{}` | ", verdict.label())).count(), 1, "{verdict:?}");
        }
    }

    #[test]
    fn drift_names_the_file_and_the_command() {
        let root = TempDir::new().unwrap();
        fs::write(root.path().join("same"), "text").unwrap();
        fs::write(root.path().join("other"), "old").unwrap();
        let text: fn(Targets) -> Result<String> = |_| Ok("text".to_owned());
        compare(root.path(), &[("same", text)], Targets::Programs).unwrap();
        let files = [("same", text), ("other", text), ("absent", text)];
        let error = compare(root.path(), &files, Targets::Programs).unwrap_err().to_string();
        assert_eq!(error, "not as the code says: other, absent; run `cargo xtask generate`");
    }
}
