//! `init`: a minimal configuration for this machine, commented, that only observes.

use std::{
    fs,
    io::{self, BufRead, IsTerminal, Write},
    net::IpAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use clap::Args;
use serde::Serialize;
use thiserror::Error;
use tunica_api::SCHEMA;
use tunica_core::id::Prefix;

use crate::{Failure, Global, exit::Exit, host::Host, render::text::wrap, say, say_json};

/// See [`super::Verb::Init`].
#[derive(Debug, Args)]
pub(crate) struct Init {
    /// What to protect, repeatable [default: by route]
    #[arg(long = "interface", value_name = "IF", value_parser = plain_word)]
    interfaces: Vec<String>,
    /// Tor's account [default: from /etc/passwd]
    #[arg(long, value_name = "USER", value_parser = plain_word)]
    tor_user: Option<String>,
    /// Never banned, repeatable [default: your SSH peer]
    #[arg(long = "allow", value_name = "CIDR")]
    allow: Vec<Prefix>,
    /// Put the first start on trial: 120 s, or so many
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "120")]
    confirm: Option<u32>,
    /// Where to write, - for stdout [default: as --config]
    #[arg(long, value_name = "PATH")]
    output: Option<PathBuf>,
    /// Replace a file that exists
    #[arg(long)]
    force: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    schema: u32,
    kind: &'static str,
    file: &'a Path,
    #[serde(flatten)]
    answers: &'a Answers,
    warnings: &'a [String],
}

/// What the file is to say.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Answers {
    interfaces: Vec<String>,
    tor_user: Option<String>,
    allow: Vec<Prefix>,
    confirm: Option<u32>,
}

impl Init {
    /// Asks where a flag is missing and somebody sits at the terminal, then writes.
    pub(super) fn run(self, global: &Global) -> Result<Exit, Failure> {
        let output = self.output.clone().unwrap_or_else(|| global.config_or_default());
        let to_stdout = output.as_os_str() == "-";
        if to_stdout && global.json {
            return Err(Failure::new(
                Exit::Usage,
                "--json and --output - both want standard output: nothing was written; give one of them",
            ));
        }
        if !to_stdout && !self.force && output.exists() {
            return Err(WriteError::Exists { path: output }.into());
        }
        let host = Host::at("/");
        let proposed = propose(&self, &host, host.ssh_peer());
        let answers = if io::stdin().is_terminal() {
            question(&self, proposed, &mut io::stdin().lock(), &mut io::stderr().lock())
                .map_err(|error| Failure::new(Exit::Failed, format!("{error}: nothing was written")))?
        } else {
            proposed
        };
        if answers.interfaces.is_empty() {
            return Err(Failure::new(
                Exit::Usage,
                "no default route names an interface: nothing was written; name it with --interface",
            ));
        }

        let text = compose(&answers);
        let origin = if to_stdout { "the new file".to_owned() } else { output.display().to_string() };
        let config = tunica_config::read(&text, &origin).map_err(|problems| {
            Failure::new(
                Exit::BadConfig,
                format!("these answers make no valid configuration, nothing was written:\n{problems}"),
            )
        })?;
        if to_stdout {
            say(&text)?;
            return Ok(Exit::Done);
        }
        write(&output, &text, self.force)?;
        let mut warnings = config.warnings();
        warnings.extend(cut_off(&answers, &host));
        report(global, &output, &answers, &warnings)
    }
}

/// What to mind if the operator is logged in by an interface that is to be protected.
fn cut_off(answers: &Answers, host: &Host) -> Option<String> {
    let peer = host.ssh_peer()?;
    let carrier = host.interface_towards(peer).filter(|carrier| answers.interfaces.contains(carrier))?;
    let is_allowed = answers.allow.iter().any(|prefix| prefix.contains(peer));
    let allow =
        if is_allowed { "" } else { "; --allow does not name its far end, so a ban could cut it off" };
    let first = match answers.confirm {
        Some(seconds) => format!("; run `tunica confirm` within {seconds} s of the first start"),
        None => {
            "; `tunica init --force --confirm` has the first start undone unless you confirm it".to_owned()
        }
    };
    Some(format!(
        "{carrier} carries your SSH session{allow}. Some cards restart when the shield is attached, which takes \
         seconds{first}; bring later changes into force with `tunica reload --confirm`"
    ))
}

fn report(global: &Global, output: &Path, answers: &Answers, warnings: &[String]) -> Result<Exit, Failure> {
    if global.json {
        say_json(&Report { schema: SCHEMA, kind: "init", file: output, answers, warnings })?;
        return Ok(Exit::Done);
    }
    let allow = answers.allow.iter().map(ToString::to_string).collect::<Vec<_>>();
    let mut text = format!("Wrote {}\n", output.display());
    for (name, value) in [
        ("interfaces", answers.interfaces.join(", ")),
        ("mode", "observe".to_owned()),
        ("allow", if allow.is_empty() { "nobody".to_owned() } else { allow.join(", ") }),
        ("tor user", answers.tor_user.clone().unwrap_or_else(|| "none".to_owned())),
    ] {
        text.push_str(&wrap(&format!("  {name:<12}"), "              ", &value));
    }
    for warning in warnings {
        text.push_str(&wrap("WARNING  ", "         ", warning));
    }
    text.push_str("Next: `tunica check --host`, then `systemctl start tunicad`.\n");
    say(&text)?;
    Ok(Exit::Done)
}

/// Flags where given, else what the machine suggests.
fn propose(flags: &Init, host: &Host, ssh_peer: Option<IpAddr>) -> Answers {
    let mut interfaces = flags.interfaces.clone();
    if interfaces.is_empty() {
        interfaces.extend(host.default_interface());
    }
    let mut allow = flags.allow.clone();
    if allow.is_empty() {
        allow.extend(ssh_peer.map(Prefix::host));
    }
    let tor_user = flags.tor_user.clone().or_else(|| host.tor_user().map(str::to_owned));
    Answers { interfaces, tor_user, allow, confirm: flags.confirm }
}

/// Asks for each answer whose flag is missing; an empty line accepts what is proposed.
fn question(
    flags: &Init,
    proposed: Answers,
    input: &mut impl BufRead,
    output: &mut impl Write,
) -> io::Result<Answers> {
    let Answers { mut interfaces, mut tor_user, mut allow, confirm } = proposed;
    if flags.interfaces.is_empty() {
        interfaces = ask(input, output, "Interfaces to protect", &interfaces.join(", "), |text| {
            words(text).map(plain_word).collect()
        })?;
    }
    if flags.tor_user.is_none() {
        let proposal = tor_user.unwrap_or_else(|| "none".to_owned());
        tor_user = ask(input, output, "Account that tor runs under, or none", &proposal, |text| {
            if text == "none" { Ok(None) } else { plain_word(text).map(Some) }
        })?;
    }
    if flags.allow.is_empty() {
        let proposal = allow.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let proposal = if proposal.is_empty() { "none".to_owned() } else { proposal };
        allow = ask(input, output, "Ranges never banned or limited, or none", &proposal, |text| {
            if text == "none" {
                return Ok(Vec::new());
            }
            words(text).map(|word| word.parse::<Prefix>().map_err(|error| error.to_string())).collect()
        })?;
    }
    Ok(Answers { interfaces, tor_user, allow, confirm })
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split([',', ' ']).filter(|word| !word.is_empty())
}

/// One question, asked again until its answer can be read.
fn ask<T>(
    input: &mut impl BufRead,
    output: &mut impl Write,
    question: &str,
    proposal: &str,
    read: impl Fn(&str) -> Result<T, String>,
) -> io::Result<T> {
    loop {
        write!(output, "{question} [{proposal}]: ")?;
        output.flush()?;
        let mut line = String::new();
        if input.read_line(&mut line)? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the answers ended early"));
        }
        let answer = line.trim();
        match read(if answer.is_empty() { proposal } else { answer }) {
            Ok(value) => return Ok(value),
            Err(fault) => writeln!(output, "{fault}")?,
        }
    }
}

/// A name that stands in a TOML string as it is. Whether it is a valid one, the configuration says.
fn plain_word(text: &str) -> Result<String, String> {
    if text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\') {
        Ok(text.to_owned())
    } else {
        Err("only visible ASCII characters other than `\"` and `\\` can stand in a name".to_owned())
    }
}

fn quoted(words: impl IntoIterator<Item = impl ToString>) -> String {
    words.into_iter().map(|word| format!("\"{}\"", word.to_string())).collect::<Vec<_>>().join(", ")
}

/// The file's text.
fn compose(answers: &Answers) -> String {
    let tor = match &answers.tor_user {
        Some(user) => format!("user = \"{user}\""),
        None => "# user = \"debian-tor\"".to_owned(),
    };
    let confirm = answers.confirm.map_or_else(String::new, |seconds| {
        format!(
            "\n# The first start is on trial: without `tunica confirm` the shield is detached\n\
             # after so many seconds.\nfirst_attach_confirm_seconds = {seconds}\n"
        )
    });
    format!(
        r#"# Configuration of tunicad. Every key left out has its default.
# After a change: `tunica check --host`, then `tunica reload`.

[shield]
# Where packets from outside arrive.
interfaces = [{interfaces}]

# "observe" counts what "enforce" would drop, and drops nothing. Look at
# `tunica status` and `tunica sources` for some days of your own traffic before
# you change it.
mode = "observe"
{confirm}
# Never banned or rate-limited: the addresses you administer this host from.
allow = [{allow}]

[tor]
# The account that tor runs under. The far ends of its connections, the guards,
# are never banned: every client of an onion service arrives through them.
{tor}
"#,
        interfaces = quoted(&answers.interfaces),
        allow = quoted(&answers.allow),
    )
}

/// Why the file was not written.
#[derive(Debug, Error)]
enum WriteError {
    /// There is a file already.
    #[error("{} exists: nothing was written; give --force to replace it, or another path with --output", path.display())]
    Exists {
        /// Which.
        path: PathBuf,
    },
    /// The file system refused.
    #[error("{} cannot be written ({source}): nothing was changed; run as root, or give another path with --output", path.display())]
    Failed {
        /// Which.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

impl From<WriteError> for Failure {
    fn from(error: WriteError) -> Self {
        let exit = match &error {
            WriteError::Exists { .. } => Exit::Refused,
            WriteError::Failed { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Exit::Forbidden
            }
            WriteError::Failed { .. } => Exit::Failed,
        };
        Self::new(exit, error.to_string())
    }
}

/// Writes the whole file or nothing, readable by all (mode 0644).
fn write(path: &Path, text: &str, force: bool) -> Result<(), WriteError> {
    let failed = |source: io::Error| {
        // Somebody may have made the file since it was looked for.
        if source.kind() == io::ErrorKind::AlreadyExists {
            WriteError::Exists { path: path.to_owned() }
        } else {
            WriteError::Failed { path: path.to_owned(), source }
        }
    };
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(directory).map_err(failed)?;
    let mut file = tempfile::Builder::new().prefix(".tunica-init-").tempfile_in(directory).map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    file.as_file().set_permissions(fs::Permissions::from_mode(0o644)).map_err(failed)?;
    file.as_file().sync_all().map_err(failed)?;
    let persisted = if force { file.persist(path) } else { file.persist_noclobber(path) };
    persisted.map_err(|error| failed(error.error))?;
    // The new name is durable once its directory is.
    fs::File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags() -> Init {
        Init {
            interfaces: Vec::new(),
            tor_user: None,
            allow: Vec::new(),
            confirm: None,
            output: None,
            force: false,
        }
    }

    fn machine() -> (tempfile::TempDir, Host) {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("proc/net")).unwrap();
        fs::create_dir_all(root.path().join("etc")).unwrap();
        let route = "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n";
        fs::write(root.path().join("proc/net/route"), route).unwrap();
        fs::write(root.path().join("etc/passwd"), "debian-tor:x:107:113::/var/lib/tor:/bin/false\n").unwrap();
        let host = Host::at(root.path());
        (root, host)
    }

    #[test]
    fn the_machine_proposes_and_flags_decide() {
        let (_root, host) = machine();
        let ssh = Some("198.51.100.7".parse().unwrap());
        let proposed = propose(&flags(), &host, ssh);
        assert_eq!(proposed.interfaces, ["eth0"]);
        assert_eq!(proposed.tor_user.as_deref(), Some("debian-tor"));
        assert_eq!(proposed.allow, ["198.51.100.7/32".parse().unwrap()]);

        let given = Init {
            interfaces: vec!["eth1".to_owned()],
            tor_user: Some("tor".to_owned()),
            allow: vec!["203.0.113.0/24".parse().unwrap()],
            ..flags()
        };
        let proposed = propose(&given, &host, ssh);
        assert_eq!(proposed.interfaces, ["eth1"]);
        assert_eq!(proposed.tor_user.as_deref(), Some("tor"));
        assert_eq!(proposed.allow, given.allow);
    }

    #[test]
    fn who_is_logged_in_by_a_protected_interface_is_told() {
        let (root, host) = machine();
        let answers = |interface: &str, allow: &[&str]| Answers {
            interfaces: vec![interface.to_owned()],
            tor_user: None,
            allow: allow.iter().map(|prefix| prefix.parse().unwrap()).collect(),
            confirm: None,
        };
        assert_eq!(cut_off(&answers("eth0", &[]), &host), None);
        fs::create_dir_all(root.path().join("proc/self")).unwrap();
        let environment = "SSH_CONNECTION=198.51.100.7 50022 192.0.2.1 22\0";
        fs::write(root.path().join("proc/self/environ"), environment).unwrap();
        for (interface, allow, parts) in [
            ("eth1", &[][..], None),
            ("eth0", &[], Some(["eth0 carries your SSH session; --allow does not name", "--confirm"])),
            ("eth0", &["198.51.100.7"], Some(["eth0 carries your SSH session. Some", "--confirm"])),
        ] {
            let told = cut_off(&answers(interface, allow), &host);
            assert_eq!(told.is_some(), parts.is_some(), "{told:?}");
            assert!(parts.iter().flatten().all(|part| told.as_ref().unwrap().contains(part)), "{told:?}");
        }
    }

    #[test]
    fn questions_accept_correct_and_repeat() {
        let (_root, host) = machine();
        for (typed, expected, questions) in [
            ("\n\n\n", Some(("eth0", Some("debian-tor"), 0)), 3),
            ("eth1\nnone\n192.0.2.7, 2001:db8::/48\n", Some(("eth1", None, 2)), 3),
            ("\n\nnowhere\nnone\n", Some(("eth0", Some("debian-tor"), 0)), 4),
            ("a\"b\neth2\n\n\n", Some(("eth2", Some("debian-tor"), 0)), 4),
            ("\n", None, 2),
        ] {
            let mut shown = Vec::new();
            let proposed = propose(&flags(), &host, None);
            let answers = question(&flags(), proposed, &mut typed.as_bytes(), &mut shown);
            let seen = answers.as_ref().map(|answers| {
                (answers.interfaces[0].as_str(), answers.tor_user.as_deref(), answers.allow.len())
            });
            assert_eq!(seen.ok(), expected, "{typed:?}");
            let shown = String::from_utf8(shown).unwrap();
            assert_eq!(shown.matches("]: ").count(), questions, "{shown}");
        }
    }

    #[test]
    fn what_is_composed_is_valid_and_as_answered() {
        let answers = Answers {
            interfaces: vec!["eth0".to_owned(), "eth1.7".to_owned()],
            tor_user: Some("_tor".to_owned()),
            allow: vec!["192.0.2.7".parse().unwrap(), "2001:db8::/48".parse().unwrap()],
            confirm: Some(90),
        };
        let config = tunica_config::read(&compose(&answers), "test").unwrap();
        assert_eq!(config.shield.interfaces, answers.interfaces);
        assert_eq!(config.shield.allow, answers.allow);
        assert_eq!(config.tor.user, answers.tor_user);
        assert_eq!(config.shield.first_attach_confirm.map(|length| length.as_secs()), Some(90));
        assert_eq!(config.shield.mode, tunica_config::Mode::Observe);

        let bare = Answers { tor_user: None, allow: Vec::new(), confirm: None, ..answers };
        let config = tunica_config::read(&compose(&bare), "test").unwrap();
        assert_eq!((config.tor.user, config.shield.allow.len()), (None, 0));
    }

    #[test]
    fn a_file_is_replaced_only_by_force_and_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("made/tunica.toml");
        write(&path, "one", false).unwrap();
        assert!(matches!(write(&path, "two", false), Err(WriteError::Exists { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "one");
        write(&path, "two", true).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o644);
        let left = fs::read_dir(path.parent().unwrap()).unwrap().count();
        assert_eq!(left, 1, "a temporary file was left behind");
    }
}
