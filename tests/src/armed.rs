//! The real daemon in a namespace: configured, started, asked, stopped.

use std::{
    collections::BTreeMap,
    fmt, fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddrV4, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tunica_common::verdict::{Action, Verdict};

use crate::{lab::BUSY, netns::Namespace, sys::end_with_parent};

/// Where the daemon's metrics are, inside the namespace.
const HTTP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9187);

/// How long the daemon may take to become ready, and to stop.
const PATIENCE: Duration = Duration::from_secs(60);

/// How old the daemon's packet counts may be: it reads the kernel's once a second.
pub const COUNTS_LAG: Duration = Duration::from_millis(1200);

/// How a daemon is to run.
#[derive(Clone, Copy, Debug)]
pub struct Setup<'a> {
    /// Where.
    pub namespace: &'a Namespace,
    /// The program `tunicad`.
    pub program: &'a Path,
    /// An existing folder for configuration, ledger, socket and log.
    pub folder: &'a Path,
    /// `shield.pin_path`.
    pub pins: &'a Path,
    /// `shield.interfaces`.
    pub interfaces: &'a [&'a str],
    /// `shield.mode`.
    pub mode: &'a str,
    /// Whole sections for the end of the configuration.
    pub more: &'a str,
}

/// Packets by outcome.
pub type Packets = BTreeMap<(Verdict, &'static str), u64>;

/// A daemon that runs, and is killed when it is dropped.
pub struct Daemon<'a> {
    setup: Setup<'a>,
    child: Child,
    log: PathBuf,
}

impl fmt::Debug for Daemon<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Daemon").field("pid", &self.child.id()).finish_non_exhaustive()
    }
}

impl<'a> Daemon<'a> {
    /// Starts the daemon and waits until it says that it is ready; gives up when `interrupted` turns true.
    ///
    /// # Errors
    /// When it cannot be started, ends, or is not ready in time; the last lines of its log are in the message.
    pub fn start(setup: Setup<'a>, interrupted: &AtomicBool) -> Result<Self> {
        let configuration = setup.folder.join("tunica.toml");
        let quoted: Vec<String> = setup.interfaces.iter().map(|name| format!("\"{name}\"")).collect();
        let text = format!(
            "[shield]\ninterfaces = [{}]\nmode = \"{}\"\npin_path = \"{}\"\n\n[ledger]\npath = \"{}\"\n\n\
             [control]\nsocket = \"{}\"\ngroup = \"root\"\n\n[http]\nlisten = \"{HTTP}\"\n\n{}\n",
            quoted.join(", "),
            setup.mode,
            setup.pins.display(),
            setup.folder.join("ledger.redb").display(),
            setup.folder.join("tunicad.sock").display(),
            setup.more,
        );
        fs::write(&configuration, text).with_context(|| format!("writing {}", configuration.display()))?;
        let log = setup.folder.join("tunicad.log");
        let output = fs::File::create(&log).with_context(|| format!("making {}", log.display()))?;
        let errors = output.try_clone().context("sharing the daemon's log")?;
        let mut command = setup.namespace.command(setup.program);
        command.arg("--config").arg(&configuration).stdin(Stdio::null()).stdout(output).stderr(errors);
        let child = end_with_parent(&mut command).spawn().context("starting tunicad")?;
        let mut daemon = Self { setup, child, log };
        daemon.wait_until_ready(interrupted)?;
        Ok(daemon)
    }

    fn wait_until_ready(&mut self, interrupted: &AtomicBool) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().context("waiting for tunicad")? {
                bail!("tunicad ended ({status}) before it was ready:\n{}", self.last_words());
            }
            if self.get("/ready").is_ok() {
                return Ok(());
            }
            if interrupted.load(Ordering::Relaxed) {
                bail!("interrupted");
            }
            if Instant::now() > deadline {
                bail!("tunicad is not ready after {} s:\n{}", PATIENCE.as_secs(), self.last_words());
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The end of the daemon's log.
    fn last_words(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines.get(lines.len().saturating_sub(20)..).unwrap_or_default().join("\n")
    }

    /// The body that the daemon's HTTP server gives for `path`, asked for again while its event loop is busy.
    ///
    /// # Errors
    /// When nothing answers, or with another status than 200.
    pub fn get(&self, path: &str) -> Result<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (status, body) = self.get_once(path)?;
            if status.contains(" 200 ") {
                return Ok(body);
            }
            if !body.contains(BUSY) || Instant::now() > deadline {
                bail!("{path}: {status}");
            }
        }
    }

    /// Status line and body.
    fn get_once(&self, path: &str) -> Result<(String, String)> {
        let answer = self.setup.namespace.run(|| {
            let mut stream = TcpStream::connect_timeout(&HTTP.into(), Duration::from_secs(2))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            write!(stream, "GET {path} HTTP/1.1\r\nHost: {HTTP}\r\nConnection: close\r\n\r\n")?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer)?;
            Ok(String::from_utf8(answer)?)
        })?;
        let (head, body) =
            answer.split_once("\r\n\r\n").context("the daemon's answer has no end of its head")?;
        Ok((head.lines().next().unwrap_or_default().to_owned(), body.to_owned()))
    }

    /// `tunica_shield_packets_total`, by verdict and action, up to [`COUNTS_LAG`] old.
    ///
    /// # Errors
    /// When the metrics cannot be read, or lack the family.
    pub fn packets(&self) -> Result<Packets> {
        let packets = packets_of(&self.get("/metrics").context("reading the daemon's metrics")?);
        if packets.is_empty() {
            bail!("the daemon's metrics lack tunica_shield_packets_total");
        }
        Ok(packets)
    }

    /// Stops the daemon as systemd would, and waits for its end. Pins and whatever they hold stay.
    ///
    /// # Errors
    /// When it does not end in time or reports a failure.
    pub fn stop(mut self) -> Result<()> {
        let pid = i32::try_from(self.child.id()).context("the daemon's pid")?;
        kill(Pid::from_raw(pid), Signal::SIGTERM).context("stopping tunicad")?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().context("waiting for tunicad")? {
                if status.success() {
                    return Ok(());
                }
                bail!("tunicad ended with {status}:\n{}", self.last_words());
            }
            if Instant::now() > deadline {
                bail!("tunicad does not stop:\n{}", self.last_words());
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        // Both fail if it has ended already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn packets_of(metrics: &str) -> Packets {
    let mut packets = Packets::new();
    for line in metrics.lines() {
        let Some((labels, value)) =
            line.strip_prefix("tunica_shield_packets_total{").and_then(|rest| rest.rsplit_once("} "))
        else {
            continue;
        };
        let label = |name: &str| {
            labels.split(',').find_map(|pair| pair.strip_prefix(name)?.strip_prefix("=\"")?.strip_suffix('"'))
        };
        let verdict = label("verdict").and_then(Verdict::from_label);
        let action =
            label("action").and_then(|text| Action::ALL.into_iter().find(|action| action.label() == text));
        if let (Some(verdict), Some(action), Ok(count)) = (verdict, action, value.trim().parse()) {
            packets.insert((verdict, action.label()), count);
        }
    }
    packets
}

/// The program `name` in the folder of this executable, or in the one above, where cargo puts tests.
///
/// # Errors
/// Says how to build it.
pub fn program(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("finding this executable")?;
    let beside = own.ancestors().skip(1).take(2).map(|folder| folder.join(name)).find(|path| path.is_file());
    beside.with_context(|| {
        format!("`{name}` is not beside {}: build it with `cargo build --package {name}`", own.display())
    })
}

/// Copies a program for every account to run. `install` (coreutils) writes it: a child that another test starts meanwhile would
/// inherit this process's descriptor until it runs its own program, and what is open for writing is not run (ETXTBSY,
/// execve(2)).
///
/// # Errors
/// With what `install` said.
pub fn install(from: &Path, to: &Path) -> Result<()> {
    let output = Command::new("install").args(["-m", "755"]).args([from, to]).output();
    let output = output.context("this needs `install`")?;
    ensure!(
        output.status.success(),
        "copying {} to {}: {}",
        from.display(),
        to.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packet_counts_are_read_whatever_the_order_of_labels() {
        let text = "# HELP tunica_shield_packets_total Packets.\n\
                    tunica_shield_packets_total{action=\"drop\",verdict=\"syn_rate\"} 7\n\
                    tunica_shield_packets_total{verdict=\"pass\",action=\"pass\"} 9\n\
                    tunica_shield_bytes_total{verdict=\"pass\",action=\"pass\"} 99\n";
        let packets = packets_of(text);
        assert_eq!(packets.len(), 2);
        assert_eq!(packets[&(Verdict::SynRate, "drop")], 7);
        assert_eq!(packets[&(Verdict::Pass, "pass")], 9);
    }
}
