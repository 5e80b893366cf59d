//! `token issue`, `token revoke --all`.

use std::{
    fs,
    io::{self, Read as _},
    time::{SystemTime, UNIX_EPOCH},
};

use clap::{Args, Subcommand};
use serde::Serialize;
use tunica_api::{SCHEMA, request::Request};
use tunica_core::{
    time::WallTime,
    token_keys::{self, KEY_BYTES},
};
use tunica_pow::{ID_BYTES, Id, TokenKeys, UnixSeconds};

use super::length::Span;
use crate::{Failure, Global, exit::Exit, note, say, say_json};

/// See [`super::Verb::Token`].
#[derive(Debug, Subcommand)]
pub(crate) enum Token {
    /// Make a token for somebody you know; needs root and no daemon
    Issue(Issue),
    /// Make every token worthless that was handed out
    Revoke(Revoke),
}

/// See [`Token::Issue`].
#[derive(Debug, Args)]
pub(crate) struct Issue {
    /// How long: 30m, 2h, at most 1d [default: as the front's own]
    #[arg(long = "for", value_name = "SPAN")]
    span: Option<Span>,
}

/// See [`Token::Revoke`].
#[derive(Debug, Args)]
pub(crate) struct Revoke {
    /// Every token; a single one ends with a ban of its circuit
    #[arg(long, required = true)]
    all: bool,
    /// Say what would happen and change nothing
    #[arg(long)]
    dry_run: bool,
}

impl Token {
    /// Does it.
    pub(super) fn run(self, global: &Global) -> Result<Exit, Failure> {
        match self {
            Self::Issue(verb) => verb.run(global),
            Self::Revoke(Revoke { all: _, dry_run }) => {
                super::ask(global, &Request::TokenRevokeAll { dry_run })
            }
        }
    }
}

/// What `issue --json` prints.
#[derive(Serialize)]
struct Issued {
    schema: u32,
    kind: &'static str,
    token: String,
    expires: WallTime,
}

impl Issue {
    fn run(&self, global: &Global) -> Result<Exit, Failure> {
        let config = super::policy::read(global)?;
        let seconds = match self.span {
            None => config.circuits.token_life.as_secs(),
            Some(Span::Seconds(seconds)) if seconds <= token_keys::MOST_LIFE.as_secs() => seconds,
            Some(Span::Seconds(_) | Span::Forever) => {
                let why =
                    "a token is good for a day at most, because its key turns daily; give --for 1d or less";
                return Err(Failure::new(Exit::Usage, why.to_owned()));
            }
        };
        let path = config.token_keys();
        let unreadable = |error: String, exit| {
            let why = format!(
                "the keys of tokens in {} cannot be read ({error}): no token was made; run this as root, on the host where tunicad \
                 runs with ingress.enabled = true",
                path.display()
            );
            Failure::new(exit, why)
        };
        let text = fs::read_to_string(&path).map_err(|error| {
            let kind = error.kind();
            let exit = if kind == io::ErrorKind::PermissionDenied {
                Exit::Forbidden
            } else if kind == io::ErrorKind::NotFound {
                Exit::NotFound
            } else {
                Exit::Failed
            };
            unreadable(error.to_string(), exit)
        })?;
        let keys = token_keys::TokenKeys::read(&text)
            .map_err(|error| unreadable(error.to_string(), Exit::Failed))?;
        let mut id = [0; ID_BYTES];
        fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut id)).map_err(|error| {
            Failure::new(Exit::Failed, format!("there are no random bytes ({error}): no token was made"))
        })?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let key: [u8; KEY_BYTES] = keys.current().0;
        let token = TokenKeys::new(&key, None).issue(UnixSeconds(now).after(seconds), Id(id));
        let expires = WallTime(token.expires().0);
        if global.json {
            say_json(&Issued { schema: SCHEMA, kind: "token", token: token.to_string(), expires })?;
        } else {
            say(&format!("{token}\n"))?;
            note(&format!(
                "good until {expires}; whoever has it may use it: as the header `Tunica-Token`, as the cookie `tunica_token`, or \
                 over TCP\n"
            ));
        }
        Ok(Exit::Done)
    }
}
