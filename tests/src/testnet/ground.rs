//! The folder in which a network lives, the programs it is made of, and what becomes of both.

use std::{
    env, fs,
    io::{self, Write as _},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    process::{self, Child, Command, Output, Stdio},
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
        mpsc::{Sender, channel},
    },
    thread,
};

use anyhow::{Context, Result, bail, ensure};

use super::register::{self, Register};
use crate::{sys::end_with_parent, traces::remove_folder};

/// What names of networks' folders begin with, in the folder of temporary files.
const PREFIX: &str = "tunica-testnet-";

/// What the folder of a network that failed is renamed to, so that nobody takes it for rubbish.
const FAILED: &str = "tunica-testnet-failed-";

/// Longest path of a Unix socket: `sun_path` (unix(7)) has room for 107 bytes and its end.
const LONGEST_SOCKET: usize = 107;

/// The longest name of a socket below a network's folder.
const SOCKET_NAME: usize = "/service99/control".len();

/// See the module.
#[derive(Debug)]
pub(super) struct Ground {
    folder: PathBuf,
    register: Register,
    is_temporary: bool,
    is_kept: AtomicBool,
    tor: PathBuf,
    gencert: PathBuf,
}

impl Ground {
    /// A new folder among the temporary files, which is removed at the end unless something failed.
    ///
    /// # Errors
    /// If tor is missing, or the folder cannot be made.
    pub(super) fn temporary() -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        remove_remains(&env::temp_dir())?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = env::temp_dir().join(format!("{PREFIX}{}-{number}", process::id()));
        Self::new(folder, true)
    }

    /// A new folder of this name, which stays whatever happens.
    ///
    /// # Errors
    /// If tor is missing, or the folder cannot be made.
    pub(super) fn lasting(folder: &Path) -> Result<Self> {
        Self::new(folder.to_owned(), false)
    }

    fn new(folder: PathBuf, is_temporary: bool) -> Result<Self> {
        let (tor, gencert) = (tool("tor")?, tool("tor-gencert")?);
        let name = folder.to_str().with_context(|| format!("{} is no UTF-8", folder.display()))?;
        ensure!(
            name.len() + SOCKET_NAME <= LONGEST_SOCKET && !name.contains(char::is_whitespace),
            "a control socket in {name} would have too long a name, or one with blanks"
        );
        // tor refuses a folder that others may read.
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&folder)
            .with_context(|| format!("making {}", folder.display()))?;
        let register = Register::new(&folder);
        register.add("owner", process::id())?;
        let is_kept = AtomicBool::new(false);
        Ok(Self { folder, register, is_temporary, is_kept, tor, gencert })
    }

    /// A file or folder of the network.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A command for tor.
    pub(super) fn tor(&self) -> Command {
        Command::new(&self.tor)
    }

    /// A command for tor-gencert.
    pub(super) fn gencert(&self) -> Command {
        Command::new(&self.gencert)
    }

    /// Starts a program that ends with this process, however this process ends, and writes it into the register.
    ///
    /// # Errors
    /// If it cannot be started.
    pub(super) fn spawn(&self, name: &str, command: Command) -> Result<Child> {
        let mut child = spawn(command).with_context(|| format!("starting {name}"))?;
        if let Err(error) = self.register.add(name, child.id()) {
            let _ = child.kill();
            let _ = child.wait();
            return Err(error);
        }
        Ok(child)
    }

    /// Says that something failed, so that the logs are wanted.
    pub(super) fn keep(&self) {
        self.is_kept.store(true, Ordering::Relaxed);
    }

    fn end(&self) -> Result<()> {
        if !self.is_kept.load(Ordering::Relaxed) {
            return remove_folder(&self.folder);
        }
        let name = self.folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let kept = self.folder.with_file_name(name.replacen(PREFIX, FAILED, 1));
        fs::rename(&self.folder, &kept).with_context(|| format!("renaming {}", self.folder.display()))?;
        #[expect(clippy::print_stderr, reason = "the one who reads why the test failed wants to know it")]
        {
            eprintln!("The logs of the private Tor network are kept in {}", kept.display());
        }
        Ok(())
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        // Whoever drops it has ended all processes.
        if self.is_temporary {
            let _ = self.end();
        }
    }
}

/// Removes folders of networks whose owner was ended by a signal, so that it could not do so itself.
fn remove_remains(among: &Path) -> Result<()> {
    for entry in fs::read_dir(among).with_context(|| format!("reading {}", among.display()))?.flatten() {
        let name = entry.file_name();
        let name = name.to_str().unwrap_or_default();
        if !name.starts_with(PREFIX) || name.starts_with(FAILED) {
            continue;
        }
        // One that is just being made has no entry yet; another user's cannot be read.
        let Ok(processes) = register::entries(&entry.path()) else { continue };
        if !processes.is_empty() && !processes.iter().any(register::Entry::is_alive) {
            remove_folder(&entry.path())?;
        }
    }
    Ok(())
}

/// Where `program` is: in the tree's own tools, else on PATH.
fn tool(program: &str) -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the package has no parent folder")?;
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(root.join("target/tools/bin")).chain(env::split_paths(&path));
    folders.map(|folder| folder.join(program)).find(|file| file.is_file()).with_context(|| {
        format!(
            "`{program}` (Debian package `tor`) is neither in target/tools/bin nor on PATH: run `cargo xtask setup`"
        )
    })
}

/// Whether the real tor takes this file without a warning (`tor --verify-config`). Folders of services must be there.
///
/// # Errors
/// With what tor says against it.
pub fn verify_torrc(path: &Path) -> Result<()> {
    let mut tor = Command::new(tool("tor")?);
    tor.args(["--verify-config", "--hush", "--defaults-torrc", "/dev/null", "-f"]).arg(path);
    let output = tor.output().context("starting tor")?;
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    // Who runs the tests is not the file's fault.
    let against: Vec<_> =
        said.lines().filter(|line| !line.is_empty() && !line.contains("running Tor as root")).collect();
    ensure!(
        output.status.success() && against.is_empty(),
        "tor does not take it ({}): {}",
        output.status,
        against.join("; ")
    );
    Ok(())
}

/// Runs a program to its end with this input. It ends with this process, however this process ends.
///
/// # Errors
/// If it cannot be started, or fails; what it said is in the message.
pub(super) fn run(mut command: Command, input: &[u8]) -> Result<Output> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let what = format!("{command:?}");
    let mut child = spawn(command).with_context(|| format!("starting {what}"))?;
    child.stdin.take().context("no standard input")?.write_all(input).or_else(|error| {
        // A program that reads nothing may end before.
        if error.kind() == io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error) }
    })?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let said =
            String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        bail!("{what}: {}: {}", output.status, said.trim());
    }
    Ok(output)
}

/// Whether programs may be started; held while one is.
static IS_OPEN: Mutex<bool> = Mutex::new(true);

/// From now on no network of this process starts a program: who ends them all can be sure that none is added.
pub fn start_nothing_more() {
    *IS_OPEN.lock().unwrap_or_else(PoisonError::into_inner) = false;
}

/// Starts the program from a thread that lives as long as this process: the kernel ends a child together with the *thread*
/// that started it, and a test's thread may end before the network does.
fn spawn(command: Command) -> io::Result<Child> {
    type Request = (Command, Sender<io::Result<Child>>);
    static STARTER: OnceLock<Sender<Request>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (requests, inbox) = channel::<Request>();
        let start = move || {
            for (mut command, answer) in inbox {
                let is_open = IS_OPEN.lock().unwrap_or_else(PoisonError::into_inner);
                let child = if *is_open {
                    end_with_parent(&mut command).spawn()
                } else {
                    Err(io::Error::other("the network is being ended"))
                };
                // Whoever asked waits for the answer.
                let _ = answer.send(child);
            }
        };
        // If there is no thread, nobody holds the other end, and sending fails.
        let _ = thread::Builder::new().name("starter".to_owned()).spawn(start);
        requests
    });
    let (answer, inbox) = channel();
    starter.send((command, answer)).map_err(io::Error::other)?;
    inbox.recv().map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remains_of_the_dead_are_removed_and_the_living_and_the_kept_stay() {
        let among = tempfile::tempdir().unwrap();
        let folder = |name: &str, processes: &str| {
            let folder = among.path().join(name);
            fs::create_dir(&folder).unwrap();
            if !processes.is_empty() {
                fs::write(folder.join("processes"), processes).unwrap();
            }
            folder
        };
        // Process 1 did not start at tick 1, before which the kernel was not up.
        let dead = folder("tunica-testnet-1-0", "owner 1 1\n");
        let beginning = folder("tunica-testnet-1-1", "");
        let failed = folder("tunica-testnet-failed-1-2", "owner 1 1\n");
        let living = folder("tunica-testnet-1-3", "");
        Register::new(&living).add("owner", process::id()).unwrap();

        remove_remains(among.path()).unwrap();
        assert!(!dead.exists());
        assert!(beginning.exists() && failed.exists() && living.exists());
    }
}
