//! `candidate load`, `status`, `promote`, `drop`.

use std::{
    fs, io,
    io::{Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, chown},
    path::{Path, PathBuf},
};

use clap::Subcommand;
use tunica_api::{
    request::{self, Request},
    view::{Answer, Promotion},
    wire::MAX_REQUEST_BYTES,
};

use super::{reload::Reload, show};
use crate::{
    Failure, Global,
    client::{self, AskError},
    exit::Exit,
    host::Host,
    note,
};

/// The largest file that is sent: JSON writes some characters with two bytes, and the request has a head.
const MAX_FILE_BYTES: usize = MAX_REQUEST_BYTES / 2;

/// See [`super::Verb::Candidate`].
#[derive(Debug, Subcommand)]
pub(crate) enum Candidate {
    /// Try this configuration file beside the one in force
    Load {
        /// The file; `-` reads standard input
        file: PathBuf,
    },
    /// Show which packets it would treat otherwise
    Status,
    /// Write it over the configuration file, and reload
    Promote(Reload),
    /// End the trial
    Drop,
}

impl Candidate {
    /// Does it.
    ///
    /// # Errors
    /// If a file cannot be read or written, or the daemon does not answer.
    pub(super) fn run(self, global: &Global) -> Result<Exit, Failure> {
        match self {
            Self::Load { file } => super::ask(global, &Request::CandidateLoad(read(&file)?)),
            Self::Status => super::ask(global, &Request::CandidateStatus {}),
            Self::Promote(reload) => promote(global, reload),
            Self::Drop => super::ask(global, &Request::CandidateDrop {}),
        }
    }
}

fn read(file: &Path) -> Result<request::CandidateLoad, Failure> {
    let name = file.display().to_string();
    let failed = |error: io::Error| {
        let exit = if error.kind() == io::ErrorKind::NotFound { Exit::NotFound } else { exit_of(&error) };
        Failure::new(exit, format!("cannot read {name}: {error}; no candidate was loaded"))
    };
    let source: Box<dyn io::Read> = if file == Path::new("-") {
        Box::new(io::stdin().lock())
    } else {
        Box::new(fs::File::open(file).map_err(failed)?)
    };
    let mut text = String::new();
    source.take(MAX_FILE_BYTES as u64 + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() > MAX_FILE_BYTES {
        let message = format!(
            "{name} has more than {MAX_FILE_BYTES} bytes, the most that is sent to tunicad; no candidate was loaded; \
             leave comments out, or put the file in place and use `tunica reload --confirm`"
        );
        return Err(Failure::new(Exit::Refused, message));
    }
    Ok(request::CandidateLoad { name, text })
}

/// The exit status of a file that cannot be used.
fn exit_of(error: &io::Error) -> Exit {
    if error.kind() == io::ErrorKind::PermissionDenied { Exit::Forbidden } else { Exit::Failed }
}

/// Exchanges the configuration file and has it read. If the daemon refuses it, the file is as before.
fn promote(global: &Global, reload: Reload) -> Result<Exit, Failure> {
    let reply = client::ask(&global.socket, &Request::CandidatePromote {})?;
    let Answer::Promotion(promotion) = &reply.answer else { return show(global, &reply) };
    // A link stays one, and what it leads to is exchanged.
    let target = fs::canonicalize(&promotion.file).unwrap_or_else(|_| PathBuf::from(&promotion.file));
    let file = target.as_path();
    let kept = exchange(file, promotion)?;
    let put_back = || {
        fs::rename(&kept, file).and_then(|()| sync(file)).map_err(|error| {
            Failure::new(
                Exit::Failed,
                format!(
                    "{} holds the candidate and cannot be put back: {error}; it was not reloaded; the file before is {}",
                    file.display(),
                    kept.display()
                ),
            )
        })
    };
    let reply = match client::ask(&global.socket, &reload.request(&Host::at("/"))) {
        Ok(reply) => reply,
        Err(error @ AskError::Unreachable { .. }) => {
            put_back()?;
            return Err(error.into());
        }
        Err(error) => {
            note(&format!(
                "{} holds the candidate, and whether it is in force is not known: see `tunica diff`; the file before is {}",
                file.display(),
                kept.display()
            ));
            return Err(error.into());
        }
    };
    if let Answer::Refused(_) = reply.answer {
        put_back()?;
        note(&format!("{} is as before, and the candidate is tried on", file.display()));
    } else {
        note(&format!("{} holds the candidate; the file before is {}", file.display(), kept.display()));
    }
    show(global, &reply)
}

/// Puts the candidate in place of the configuration file, durable and whole, with the same owner and mode. Returns where
/// the file before was kept.
fn exchange(file: &Path, promotion: &Promotion) -> Result<PathBuf, Failure> {
    let failed = |error: io::Error| {
        let exit =
            if error.kind() == io::ErrorKind::PermissionDenied { Exit::Forbidden } else { Exit::Failed };
        Failure::new(exit, format!("cannot write {}: {error}; nothing was changed", file.display()))
    };
    let metadata = fs::metadata(file).map_err(failed)?;
    if fs::read_to_string(file).map_err(failed)? != promotion.before {
        let message = format!(
            "{} was changed since it came into force, and a promotion would lose that; nothing was changed; look at \
             `tunica diff`, then reload the file or put it back",
            file.display()
        );
        return Err(Failure::new(Exit::Refused, message));
    }
    let directory = file.parent().unwrap_or(Path::new("/"));
    let mut fresh =
        tempfile::Builder::new().prefix(".tunica-promote-").tempfile_in(directory).map_err(failed)?;
    fresh.write_all(promotion.after.as_bytes()).map_err(failed)?;
    fresh.as_file().set_permissions(metadata.permissions()).map_err(failed)?;
    chown(fresh.path(), Some(metadata.uid()), Some(metadata.gid())).map_err(failed)?;
    fresh.as_file().sync_all().map_err(failed)?;
    let mut kept = file.as_os_str().to_owned();
    kept.push(".before");
    let kept = PathBuf::from(kept);
    // A second name for the file before, so that the first never names nothing.
    match fs::remove_file(&kept) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        Ok(()) | Err(_) => {}
    }
    fs::hard_link(file, &kept).map_err(failed)?;
    fresh.persist(file).map_err(|error| failed(error.error))?;
    sync(file).map_err(failed)?;
    Ok(kept)
}

/// A name is durable once its directory is.
fn sync(file: &Path) -> io::Result<()> {
    fs::File::open(file.parent().unwrap_or(Path::new("/")))?.sync_all()
}
