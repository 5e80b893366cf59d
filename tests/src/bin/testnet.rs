//! A private Tor network for a developer, by hand: it stays up until it is taken down.
//!
//! `cargo xtask testnet` builds and starts it. It needs no privileges, and nothing of it leaves this machine. `up` leaves a
//! keeper behind, a process that owns all others: when it ends, they end.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "its output is for the person at the terminal")]

use std::{
    collections::BTreeMap,
    env,
    fs::{self, File, TryLockError},
    io::{self, BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    thread,
};

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, ValueEnum};
use nix::{
    sys::{prctl, signal::Signal},
    unistd::{dup2_stdout, setsid},
};
use serde_json::{Value, json};
use tunica_tests::{
    testnet::{self, Backend, Entry, Network, Page, Profile, ServiceOptions},
    traces::remove_folder,
};

/// The file in the network's folder that says how to reach the service; it is there once everything is up.
const UP: &str = "up.json";

/// The service's virtual port.
const PORT: u16 = 80;

/// A private Tor network on this machine, with an onion service and a SOCKS port.
#[derive(Parser)]
#[command(name = "testnet", bin_name = "cargo xtask testnet")]
enum Arguments {
    /// Starts the network, a service and a client, and returns when they are up.
    Up {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        behind: Behind,
    },
    /// Says how to reach the service, and of each process whether it lives; fails if one does not.
    Status {
        #[command(flatten)]
        place: Place,
    },
    /// Ends all processes and removes all files.
    Down {
        #[command(flatten)]
        place: Place,
    },
    /// What `up` leaves behind.
    #[command(hide = true)]
    Keep {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        behind: Behind,
    },
}

/// Which network.
#[derive(Args, Clone)]
struct Place {
    /// What the network is for. `rotation` votes every 20 s, so that time periods last 8 min; it needs 16 to 24 min until it has
    /// two shared random values.
    #[arg(long, value_enum, default_value_t = Kind::Usual)]
    profile: Kind,
    /// Where it keeps its files, rather than in a folder of this profile below the target folder.
    #[arg(long)]
    folder: Option<PathBuf>,
}

/// What stands behind the service.
#[derive(Args, Clone)]
struct Behind {
    /// `127.0.0.1:8080` or `unix:/path`, rather than a small page that shows the PROXY line.
    #[arg(long, value_name = "ADDRESS")]
    backend: Option<Backend>,
    /// Whether each stream to `--backend` begins with a PROXY line that tells the circuit.
    #[arg(long, requires = "backend")]
    proxy_line: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    Usual,
    Rotation,
}

impl Kind {
    const fn profile(self) -> Profile {
        match self {
            Self::Usual => Profile::Usual,
            Self::Rotation => Profile::Rotation,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Usual => "usual",
            Self::Rotation => "rotation",
        }
    }
}

impl Place {
    /// The folder, absolute.
    fn folder(&self) -> Result<PathBuf> {
        if let Some(folder) = &self.folder {
            return std::path::absolute(folder).context("finding this folder");
        }
        let own = env::current_exe().context("finding this executable")?;
        let target = own.ancestors().nth(2).context("this executable is in no target folder")?;
        Ok(target.join("testnet").join(self.profile.name()))
    }
}

fn main() -> ExitCode {
    let done = match Arguments::parse() {
        Arguments::Up { place, behind } => up(&place, &behind),
        Arguments::Status { place } => status(&place),
        Arguments::Down { place } => down(&place),
        Arguments::Keep { place, behind } => keep(&place, &behind),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn up(place: &Place, behind: &Behind) -> Result<()> {
    let folder = place.folder()?;
    let _turn = turn(&folder)?;
    let entries = testnet::entries(&folder)?;
    if is_kept(&entries) {
        println!("The network is already up.\n");
        return show(&folder);
    }
    clear(&folder, &entries)?;

    let log = beside(&folder, "log");
    let mut keeper = Command::new(env::current_exe().context("finding this executable")?);
    keeper.args(["keep", "--profile", place.profile.name(), "--folder"]).arg(&folder);
    if let Some(backend) = &behind.backend {
        keeper.arg("--backend").arg(backend.to_string());
    }
    if behind.proxy_line {
        keeper.arg("--proxy-line");
    }
    let errors = File::create(&log).with_context(|| format!("making {}", log.display()))?;
    keeper.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors);
    let mut keeper = keeper.spawn().context("starting the keeper")?;
    // The keeper closes its output when everything is up, or by ending.
    let progress = keeper.stdout.take().context("the keeper has no output")?;
    for line in BufReader::new(progress).lines() {
        println!("{}", line.context("reading the keeper's output")?);
    }
    if !folder.join(UP).exists() {
        let status = keeper.wait().context("waiting for the keeper")?;
        let said = fs::read_to_string(&log).unwrap_or_default();
        bail!("the network did not come up ({status}):\n{said}\nIts logs are in {}", folder.display());
    }
    println!();
    show(&folder)
}

/// Prints how to reach the service.
fn show(folder: &Path) -> Result<()> {
    let path = folder.join(UP);
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let up: Value = serde_json::from_str(&text).with_context(|| format!("reading {}", path.display()))?;
    let get = |key: &str| up.get(key).and_then(Value::as_str).unwrap_or_default();
    println!("profile          {}", get("profile"));
    println!("onion service    {}", get("onion"));
    println!("behind it        {}", get("behind"));
    println!("SOCKS port       {}", get("socks"));
    println!("control sockets  {} (the service's tor)", get("service_control"));
    println!("                 {} (the client's tor)", get("client_control"));
    println!("metrics          http://{}/metrics (the service's tor)", get("metrics"));
    println!("files            {}", folder.display());
    println!("\nTry:\n  curl --socks5-hostname {} http://{}/", get("socks"), get("onion"));
    println!("Another user has another circuit:");
    println!("  curl --socks5-hostname alice:x@{} http://{}/", get("socks"), get("onion"));
    Ok(())
}

fn status(place: &Place) -> Result<()> {
    let folder = place.folder()?;
    let entries = testnet::entries(&folder)?;
    if entries.is_empty() {
        bail!("the network is not up");
    }
    if folder.join(UP).exists() {
        show(&folder)?;
    } else {
        println!("The network is not up yet, or did not come up.");
    }
    println!();
    // A process that was started again stands in the list several times: the last one counts.
    let last: BTreeMap<&str, &Entry> = entries.iter().map(|entry| (entry.name.as_str(), entry)).collect();
    let mut gone = Vec::new();
    for (name, entry) in last {
        let name = if name == "owner" { "keeper" } else { name };
        if entry.is_alive() {
            println!("{name:16} lives (pid {})", entry.pid);
        } else {
            println!("{name:16} is gone (was pid {})", entry.pid);
            gone.push(name);
        }
    }
    if !gone.is_empty() {
        bail!("not all processes live: {}", gone.join(", "));
    }
    Ok(())
}

fn down(place: &Place) -> Result<()> {
    let folder = place.folder()?;
    let _turn = turn(&folder)?;
    let entries = testnet::entries(&folder)?;
    let living = entries.iter().filter(|entry| entry.is_alive()).count();
    let existed = folder.exists();
    clear(&folder, &entries)?;
    if existed {
        println!("The network is down: {living} processes ended, {} removed.", folder.display());
    } else {
        println!("The network was not up.");
    }
    Ok(())
}

/// Waits until no other `up` or `down` works on this network.
fn turn(folder: &Path) -> Result<File> {
    let parent = folder.parent().context("a folder without a parent")?;
    fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
    let path = beside(folder, "lock");
    let lock = File::create(&path).with_context(|| format!("making {}", path.display()))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            println!("Waiting for another command that brings this network up or down.");
            lock.lock().with_context(|| format!("locking {}", path.display()))?;
        }
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("locking {}", path.display()));
        }
    }
    Ok(lock)
}

/// A file next to the network's folder.
fn beside(folder: &Path, extension: &str) -> PathBuf {
    let mut name = folder.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(extension);
    folder.with_file_name(name)
}

fn is_kept(entries: &[Entry]) -> bool {
    entries.first().is_some_and(Entry::is_alive)
}

/// Ends these processes and removes the folder, if it is a network's.
fn clear(folder: &Path, entries: &[Entry]) -> Result<()> {
    if entries.is_empty() && fs::read_dir(folder).is_ok_and(|mut files| files.next().is_some()) {
        bail!("{} is not the folder of a network", folder.display());
    }
    testnet::end(entries)?;
    remove_folder(folder)
}

/// Owns the network until a signal ends this process, and with it all others.
fn keep(place: &Place, behind: &Behind) -> Result<()> {
    // Closing the terminal shall not end it; ending `up` shall, as long as that waits.
    setsid().context("leaving the terminal")?;
    prctl::set_pdeathsig(Signal::SIGTERM).context("tying this process to its parent")?;
    let folder = place.folder()?;

    report("Starting three authorities and five relays; that takes up to 40 s.")?;
    let network = Network::start_in(&folder, place.profile.profile())?;
    report("The network is up. Starting an onion service and a client.")?;
    let page = Page::start()?;
    let mut options = ServiceOptions::new(PORT, page.backend());
    if let Some(backend) = &behind.backend {
        options.ports = vec![(PORT, backend.clone())];
        options.is_circuit_exported = behind.proxy_line;
    }
    let service = network.service(&options)?;
    let client = network.client()?;

    let what = behind.backend.as_ref().map_or("a small page".to_owned(), Backend::to_string);
    let proxy = if options.is_circuit_exported { "with" } else { "without" };
    let up = json!({
        "profile": place.profile.name(),
        "onion": service.onion(),
        "behind": format!("{what}, {proxy} a PROXY line"),
        "socks": client.socks_port().to_string(),
        "service_control": service.control_address().socket,
        "client_control": client.control_address().socket,
        "metrics": service.metrics_port().to_string(),
    });
    // Renamed into place: whoever finds it finds it whole.
    let partial = folder.join("up.partial");
    fs::write(&partial, up.to_string()).with_context(|| format!("writing {}", partial.display()))?;
    prctl::set_pdeathsig(None).context("leaving the parent")?;
    fs::rename(&partial, folder.join(UP)).context("renaming")?;
    let nowhere = File::options().write(true).open("/dev/null").context("opening /dev/null")?;
    dup2_stdout(&nowhere).context("closing the output")?;
    loop {
        thread::park();
    }
}

/// A line for the person at the terminal. Nobody reads it if `up` was interrupted.
fn report(line: &str) -> Result<()> {
    writeln!(io::stdout(), "{line}").context("reporting to `up`")
}
