//! Finding and running programs.

use std::{
    env,
    ffi::OsString,
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use anyhow::{Context, Result, bail};

use crate::{setup::packages, workspace};

/// Folders in which programs are looked for: `PATH`, then the places that an ordinary user's `PATH` often lacks.
///
/// # Errors
/// When the tree's root is unknown.
pub(crate) fn search_path() -> Result<Vec<PathBuf>> {
    let mut folders: Vec<PathBuf> = env::split_paths(&env::var_os("PATH").unwrap_or_default())
        .filter(|folder| folder.is_absolute())
        .collect();
    for folder in [
        cargo_home()?.join("bin"),
        PathBuf::from("/usr/sbin"),
        PathBuf::from("/sbin"),
        workspace::tools_bin(&workspace::root()?),
    ] {
        if !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    Ok(folders)
}

/// Cargo's home folder: `CARGO_HOME`, else `.cargo` in the user's home.
///
/// # Errors
/// When neither `CARGO_HOME` nor `HOME` is set.
pub(crate) fn cargo_home() -> Result<PathBuf> {
    if let Some(home) = env::var_os("CARGO_HOME") {
        return Ok(PathBuf::from(home));
    }
    Ok(Path::new(&env::var_os("HOME").context("neither CARGO_HOME nor HOME is set")?).join(".cargo"))
}

/// The program's path, or `None` where it is not installed.
///
/// # Errors
/// When the folders to look in are unknown.
pub(crate) fn find(program: &str) -> Result<Option<PathBuf>> {
    Ok(search_path()?.into_iter().map(|folder| folder.join(program)).find(|path| is_executable(path)))
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

/// The program's path.
///
/// # Errors
/// Names the program, and the package that brings it, where it is not installed.
pub(crate) fn need(program: &str) -> Result<PathBuf> {
    match find(program)? {
        Some(path) => Ok(path),
        None => match packages::package_of(program) {
            Some(package) => {
                bail!("`{program}` is missing (Debian package `{package}`): run `cargo xtask setup`")
            }
            None => bail!("`{program}` is missing"),
        },
    }
}

/// A command for `program`, with every folder of [`search_path`] on its `PATH`.
///
/// # Errors
/// As [`need`].
pub(crate) fn command(program: &str) -> Result<Command> {
    command_at(&need(program)?)
}

/// A command for the program at this path, with every folder of [`search_path`] on its `PATH`.
///
/// # Errors
/// When the folders to look in are unknown.
pub(crate) fn command_at(program: &Path) -> Result<Command> {
    let mut command = Command::new(program);
    let path: OsString = env::join_paths(search_path()?).context("a folder on PATH contains a colon")?;
    command.env("PATH", path);
    Ok(command)
}

/// Shows the command and runs it with this terminal's input and output.
///
/// # Errors
/// When it cannot be started or fails; the command line is named.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let line = line_of(command);
    println!("$ {line}");
    let status = command.status().with_context(|| format!("starting `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed: {status}");
    }
    Ok(())
}

/// Runs the command quietly and returns its standard output.
///
/// # Errors
/// When it cannot be started, fails, or prints something else than UTF-8; the command line and its last words are
/// named.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    let line = line_of(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("starting `{line}`"))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        bail!("`{line}` failed: {}: {}", output.status, words.trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{line}` printed no UTF-8"))
}

static OWN: OnceLock<PathBuf> = OnceLock::new();

/// Keeps in mind where this program stands. Later the kernel may only know that its file was deleted, since cargo puts a newly
/// linked file in the place of the one that runs.
pub(crate) fn note_own_program() {
    if let Ok(own) = env::current_exe() {
        // It is called once.
        let _ = OWN.set(own);
    }
}

/// Where this program stands, or one that was built in its place.
///
/// # Errors
/// When the kernel did not say.
pub(crate) fn own_program() -> Result<&'static Path> {
    OWN.get().map(PathBuf::as_path).context("finding this executable")
}

/// Lets a program that cargo built into this folder of the target folder (`debug`, `release`) take this program's place, so
/// that Ctrl-C ends one program and the terminal comes back when that has cleaned up. It starts in the tree's root and
/// returns only if it fails.
///
/// # Errors
/// When it cannot be started.
pub(crate) fn hand_over(root: &Path, folder: &str, program: &str, arguments: &[String]) -> Result<()> {
    // This program is `xtask` in a profile's folder of the target folder, wherever the developer has put that.
    let own = own_program()?;
    let target = own.parent().and_then(Path::parent).context("this executable is in no target folder")?;
    let program = target.join(folder).join(program);
    let mut command = Command::new(&program);
    let path: OsString = env::join_paths(search_path()?).context("a folder on PATH contains a colon")?;
    let error = command.args(arguments).env("PATH", path).current_dir(root).exec();
    Err(error).with_context(|| format!("starting {}", program.display()))
}

fn line_of(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let mut line = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}

/// Whether this process runs as root.
pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_named() {
        let error = need("no-such-program-of-tunica").unwrap_err().to_string();
        assert!(error.contains("`no-such-program-of-tunica` is missing"), "{error}");
    }

    #[test]
    fn a_failing_command_is_named_with_its_last_words() {
        let mut command = command("sh").unwrap();
        let error = capture(command.args(["-c", "echo went wrong >&2; exit 3"])).unwrap_err().to_string();
        assert!(error.starts_with("`sh -c") && error.contains("went wrong"), "{error}");
    }

    #[test]
    fn administrators_folders_are_searched() {
        assert!(search_path().unwrap().contains(&PathBuf::from("/usr/sbin")));
    }
}
