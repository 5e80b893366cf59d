//! The login: which proof tor takes, and giving it.
//!
//! Source: control-spec, "PROTOCOLINFO", "AUTHENTICATE", "AUTHCHALLENGE".

use std::{
    ffi::OsStr,
    fmt,
    fs::OpenOptions,
    io::{self, Read as _},
    os::unix::{ffi::OsStrExt, fs::OpenOptionsExt},
    path::{Path, PathBuf},
};

use thiserror::Error;
use tunica_onion::control_codec::{
    AuthChallenge, AuthMethod, Authentication, Command, Cookie, ForgedServer, NotACookie, ProtocolInfo,
    Refused,
};

use super::{
    LinkError, TorControlOptions,
    wire::{Wire, ignore},
};
use crate::sys;

/// Most bytes of a cookie's file that are read: one more than a cookie has.
const MOST_BYTES: u64 = 33;

/// How the daemon proves that it may command tor, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// Both sides prove that they know the cookie, tor first; nobody who listens in tor's place learns it.
    SafeCookie,
    /// The cookie is shown.
    Cookie,
    /// The password is shown.
    Password,
    /// None is asked for.
    Null,
}

/// Why the login failed. No message shows a secret.
#[derive(Debug, Error)]
pub enum LoginError {
    /// The file cannot be read.
    #[error(
        "the cookie's file {} cannot be read ({source}); let tunicad read it (`CookieAuthFileGroupReadable 1` in torrc), or name \
         the place where it is",
        path.display()
    )]
    CookieFile {
        /// Which.
        path: PathBuf,
        /// The system's word.
        #[source]
        source: io::Error,
    },
    /// The file is no cookie.
    #[error("{}: {source}", path.display())]
    NotACookie {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: NotACookie,
    },
    /// Tor has a cookie, and nobody says where.
    #[error("tor names no absolute path of its cookie; name the file")]
    NoCookieFile,
    /// Tor wants its cookie openly.
    #[error(
        "tor asks to be shown the cookie without proving that it knows it, and no file is named for that; is it tor that \
         listens there? Then name its cookie's file"
    )]
    OpenCookie,
    /// Tor wants a password, and none is configured.
    #[error(
        "tor asks for a password, and none is configured; give it, or set `CookieAuthentication 1` in torrc"
    )]
    NoPassword,
    /// A proof is configured that tor does not ask for.
    #[error(
        "tor asks for none of the proofs that are configured; is it tor that listens there? Then configure what its torrc asks \
         for"
    )]
    NotAskedFor,
    /// Tor asks only for what is unknown here.
    #[error("tor offers no way to log in that is known; set `CookieAuthentication 1` in torrc")]
    NoWay,
    /// What listens does not know the cookie.
    #[error("{0}; nothing was shown to it")]
    Forged(#[from] ForgedServer),
    /// No random numbers.
    #[error("no random numbers for the proof: {0}")]
    Random(#[source] io::Error),
    /// Tor does not take the proof.
    #[error("by {proof}: {source}")]
    Refused {
        /// Which.
        proof: Proof,
        /// How it refused.
        #[source]
        source: Refused,
    },
}

/// A proof and what it takes. `Debug` is left out: it would have nothing to show.
enum Way<'a> {
    SafeCookie(Cookie),
    Cookie(Cookie),
    Password(&'a str),
    Null,
}

/// Logs in.
///
/// # Errors
/// If tor does not let the daemon in; the connection is of no use any more.
pub(super) async fn login(wire: &mut Wire, options: &TorControlOptions) -> Result<(), LinkError> {
    let answer = wire.demand(&Command::ProtocolInfo, ignore).await?;
    let info = ProtocolInfo::parse(&answer)
        .map_err(|source| LinkError::Unreadable { command: "PROTOCOLINFO", source })?;
    let way = choose(&info, options)?;
    let proof = way.proof();
    let authentication = match &way {
        Way::SafeCookie(cookie) => {
            let nonce = sys::random_bytes().map_err(LoginError::Random)?;
            let answer = wire.demand(&Command::AuthChallenge { nonce }, ignore).await?;
            let challenge = AuthChallenge::parse(&answer)
                .map_err(|source| LinkError::Unreadable { command: "AUTHCHALLENGE", source })?;
            Authentication::SafeCookie(cookie.answer(&nonce, &challenge).map_err(LoginError::Forged)?)
        }
        Way::Cookie(cookie) => Authentication::Cookie(cookie),
        Way::Password(password) => Authentication::Password(password),
        Way::Null => Authentication::Null,
    };
    let answer = wire.ask(&Command::Authenticate(authentication), ignore).await?;
    let accepted = answer.accepted().map(drop);
    accepted.map_err(|source| LoginError::Refused { proof, source })?;
    tracing::debug!(message_id = "tor_control_login", "tor accepted the login by {proof}");
    Ok(())
}

/// The best way that tor offers and the options allow.
fn choose<'a>(info: &ProtocolInfo, options: &'a TorControlOptions) -> Result<Way<'a>, LoginError> {
    let offers = |method| info.methods.contains(&method);
    let mut problem = None;
    if offers(AuthMethod::SafeCookie) {
        match cookie(info, options) {
            Ok(cookie) => return Ok(Way::SafeCookie(cookie)),
            Err(error) => problem = Some(error),
        }
    } else if offers(AuthMethod::Cookie) {
        // Whoever listens there could name any file of 32 bytes and be shown it.
        let found = options.cookie_file.as_deref().ok_or(LoginError::OpenCookie).and_then(read);
        match found {
            Ok(cookie) => return Ok(Way::Cookie(cookie)),
            Err(error) => problem = Some(error),
        }
    }
    if offers(AuthMethod::HashedPassword) {
        match &options.password {
            Some(password) => return Ok(Way::Password(&password.0)),
            None => problem = problem.or(Some(LoginError::NoPassword)),
        }
    }
    if offers(AuthMethod::Null) {
        if options.password.is_none() && options.cookie_file.is_none() {
            return Ok(Way::Null);
        }
        problem = problem.or(Some(LoginError::NotAskedFor));
    }
    Err(problem.unwrap_or(LoginError::NoWay))
}

fn cookie(info: &ProtocolInfo, options: &TorControlOptions) -> Result<Cookie, LoginError> {
    let told = info.cookie_file.as_deref().map(|path| Path::new(OsStr::from_bytes(path)));
    let told = told.filter(|path| path.is_absolute());
    read(options.cookie_file.as_deref().or(told).ok_or(LoginError::NoCookieFile)?)
}

fn read(path: &Path) -> Result<Cookie, LoginError> {
    let failed = |source| LoginError::CookieFile { path: path.to_owned(), source };
    // Whoever names the file may name a pipe, which opening would wait for.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path);
    let file = file.map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(failed(io::Error::other("it is no regular file")));
    }
    let mut content = Vec::new();
    file.take(MOST_BYTES).read_to_end(&mut content).map_err(failed)?;
    Cookie::new(&content).map_err(|source| {
        // Of a longer file its length says more than the bytes read.
        let length = usize::try_from(metadata.len()).unwrap_or(usize::MAX);
        LoginError::NotACookie { path: path.to_owned(), source: NotACookie(source.0.max(length)) }
    })
}

impl Way<'_> {
    const fn proof(&self) -> Proof {
        match self {
            Self::SafeCookie(_) => Proof::SafeCookie,
            Self::Cookie(_) => Proof::Cookie,
            Self::Password(_) => Proof::Password,
            Self::Null => Proof::Null,
        }
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::SafeCookie => "SAFECOOKIE",
            Self::Cookie => "COOKIE",
            Self::Password => "password",
            Self::Null => "no proof",
        })
    }
}
