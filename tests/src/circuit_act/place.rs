//! Where the part is played: in one namespace the network, the service twice, and before one of them the real programs.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{
    Setting,
    report::{Cpu, Way},
    web::{Door, PORT},
};
use crate::{
    armed::{Daemon, Setup, program},
    sys::end_with_parent,
    testnet::{Backend, Client, Network, Profile, Service, ServiceOptions},
};

/// Where the service listens.
const BACKEND: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 10_001));
/// Where the ingress listens: the default.
const INGRESS: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 10_000));
/// Tors of attackers.
pub(super) const ATTACKERS: usize = 2;
/// The interface that stands for the network card. Nothing comes through it: tor's connections are on loopback here.
pub(super) const INTERFACE: &str = "card0";
/// How long a program may take to be ready, and the service to work off what waits for it.
const PATIENCE: Duration = Duration::from_secs(60);

/// A child that is killed when it is dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // Both fail if it has ended already, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The network and what is in it all the time. Dropping it ends all of it. It must be made on a thread inside the namespace.
pub(super) struct Place {
    backend: Killed,
    bare: Service,
    guarded: Service,
    visitors: Client,
    attackers: Vec<Client>,
    network: Network,
}

impl Place {
    /// Starts everything and waits until it is ready.
    pub(super) fn build(folder: &Path, interrupted: &AtomicBool) -> Result<Self> {
        let network = Network::start_in(&folder.join("net"), Profile::Usual)?;
        go_on(interrupted)?;
        let backend = start_backend()?;
        let straight =
            ServiceOptions { is_circuit_exported: false, ..ServiceOptions::new(PORT, Backend::Tcp(BACKEND)) };
        let bare = network.service(&straight)?;
        go_on(interrupted)?;
        let guarded = network.service(&ServiceOptions::new(PORT, Backend::Tcp(INGRESS)))?;
        go_on(interrupted)?;
        let visitors = network.client()?;
        let attackers = (0..ATTACKERS).map(|_| network.client()).collect::<Result<_>>()?;
        go_on(interrupted)?;
        Ok(Self { backend, bare, guarded, visitors, attackers, network })
    }

    /// What the demo sets for Tunica beside the defaults.
    pub(super) fn configuration(&self, way: Way) -> String {
        let control = self.guarded.control_address().socket;
        format!(
            "[tor]\ncontrol = \"unix:{}\"\n\n[ingress]\nenabled = true\nlisten = \"{INGRESS}\"\n\
             backends = [\"{BACKEND}\"]\n\n[circuits]\nprofile = \"web\"\n{}",
            control.display(),
            way.tuning(),
        )
    }

    /// The visitors' way to the service.
    pub(super) fn visitors_door(&self, way: Way) -> Door {
        self.door(&self.visitors, way)
    }

    /// The attackers' ways.
    pub(super) fn attackers_doors(&self, way: Way) -> Vec<Door> {
        self.attackers.iter().map(|client| self.door(client, way)).collect()
    }

    fn door(&self, client: &Client, way: Way) -> Door {
        Door { socks: client.socks_port(), onion: self.service(way).onion().to_owned() }
    }

    const fn service(&self, way: Way) -> &Service {
        match way {
            Way::Bare => &self.bare,
            Way::Profile | Way::Sized => &self.guarded,
        }
    }

    /// CPU time that was used until now by those who serve this way, and by the network.
    pub(super) fn cpu(&self, way: Way, guard: Option<&Guard<'_>>) -> Result<Cpu> {
        let tor = self.service(way).pid()?;
        let mut network = Duration::ZERO;
        let own = std::process::id();
        for entry in self.network.processes()? {
            // One that has ended uses nothing any more.
            if entry.pid != own && entry.pid != tor && entry.is_alive() {
                network += cpu_of(entry.pid)?;
            }
        }
        Ok(Cpu {
            backend: cpu_of(self.backend.0.id())?,
            tor: cpu_of(tor)?,
            front: guard.map_or(Ok(Duration::ZERO), |guard| cpu_of(guard.front.0.id()))?,
            daemon: guard.map_or(Ok(Duration::ZERO), |guard| cpu_of(guard.daemon.pid()))?,
            network,
        })
    }

    /// Waits until the service answers at once again: an act begins with a queue that is empty.
    pub(super) fn wait_until_drained(&self, interrupted: &AtomicBool) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            go_on(interrupted)?;
            let begun = Instant::now();
            let answers =
                TcpStream::connect_timeout(&BACKEND, Duration::from_secs(5)).and_then(|mut stream| {
                    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
                    stream.write_all(b"GET /health HTTP/1.1\r\n\r\n")?;
                    BufReader::new(stream).read_line(&mut String::new())
                });
            if answers.is_ok_and(|read| read > 0) && begun.elapsed() < Duration::from_millis(250) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("the service does not work off what waits for it");
            }
            thread::sleep(Duration::from_millis(100));
        }
    }
}

/// The two programs before the service. Dropping it kills them.
pub(super) struct Guard<'a> {
    daemon: Daemon<'a>,
    front: Killed,
}

impl<'a> Guard<'a> {
    /// Starts both with this configuration and waits until they protect.
    pub(super) fn start(setting: &Setting<'a>, configuration: &'a str) -> Result<Self> {
        let setup = Setup {
            namespace: setting.namespace,
            program: setting.tunicad,
            folder: setting.folder,
            pins: setting.pins,
            interfaces: &[INTERFACE],
            mode: "enforce",
            more: configuration,
        };
        let daemon = Daemon::start(setup, setting.interrupted)?;
        let guard = Self { daemon, front: start_front(setting.folder)? };
        guard.wait_until_ready(setting.interrupted)?;
        pin_level(setting.folder)?;
        Ok(guard)
    }

    fn wait_until_ready(&self, interrupted: &AtomicBool) -> Result<()> {
        let wanted = [
            "tunica_front_up",
            "tunica_tor_control_up",
            "tunica_gate_attached",
            "tunica_front_backend_up{backend=\"1\"}",
        ];
        let deadline = Instant::now() + PATIENCE;
        loop {
            go_on(interrupted)?;
            let series = self.series()?;
            let missing: Vec<_> = wanted.iter().filter(|name| series.get(**name) != Some(&1.0)).collect();
            if missing.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("the ingress is not ready: {missing:?} is not 1");
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Every time series of the daemon's that has a value, as it stands in the text format.
    pub(super) fn series(&self) -> Result<BTreeMap<String, f64>> {
        Ok(series_of(&self.daemon.get("/metrics").context("reading the daemon's metrics")?))
    }

    /// Ends both, the daemon as systemd would.
    pub(super) fn end(self) -> Result<()> {
        self.daemon.stop()
    }
}

/// Fails once this is set.
pub(super) fn go_on(interrupted: &AtomicBool) -> Result<()> {
    if interrupted.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    Ok(())
}

/// Pins the load level, as an operator does: visitors here solve no puzzles, and what limits and bans do alone is the question.
fn pin_level(folder: &Path) -> Result<()> {
    let mut command = Command::new(program("tunica")?);
    command.args(["threat", "set", "calm"]).arg("--socket").arg(folder.join("tunicad.sock"));
    let output = command.stdin(Stdio::null()).output().context("starting tunica")?;
    if !output.status.success() {
        bail!("tunica does not pin the load level: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

fn start_backend() -> Result<Killed> {
    let mut command = Command::new(program("slow_backend")?);
    command.arg(BACKEND.to_string()).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = Killed(end_with_parent(&mut command).spawn().context("starting the service")?);
    let output = child.0.stdout.take().context("the service's output")?;
    let mut word = String::new();
    BufReader::new(output).read_line(&mut word).context("reading the service's output")?;
    if word.trim() != "ready" {
        bail!("the service does not listen at {BACKEND}");
    }
    Ok(child)
}

fn start_front(folder: &Path) -> Result<Killed> {
    let path = folder.join("front.log");
    let log = fs::File::create(&path).with_context(|| format!("making {}", path.display()))?;
    let mut command = Command::new(program("tunica-front")?);
    command.arg("--config").arg(folder.join("tunica.toml"));
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    Ok(Killed(end_with_parent(&mut command).spawn().context("starting tunica-front")?))
}

fn series_of(text: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let pairs = lines.filter_map(|line| line.rsplit_once(' '));
    pairs.filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?))).collect()
}

/// CPU time of a process that runs, in user and kernel (proc_pid_stat(5), fields 14 and 15).
fn cpu_of(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("reading a process's CPU time")?;
    cpu_in(&stat).context("a process's stat is not as proc_pid_stat(5) describes it")
}

fn cpu_in(stat: &str) -> Option<Duration> {
    // The name in parentheses may hold blanks and parentheses.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let ticks: u32 = fields.next()?.parse::<u32>().ok()? + fields.next()?.parse::<u32>().ok()?;
    Some(crate::counters::TICK * ticks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_read_whatever_the_name() {
        let stat = "7 (a (b) c) S 1 2 3 4 5 6 7 8 9 10 130 70 0 0 20 0 1 0 99";
        assert_eq!(cpu_in(stat), Some(Duration::from_secs(2)));
        assert_eq!(cpu_in("7 (a)"), None);
    }

    #[test]
    fn series_keep_their_labels() {
        let series = series_of("# HELP a b\na 1\nb{c=\"d e\"} 2.5\n");
        assert_eq!(series, [("a".to_owned(), 1.0), ("b{c=\"d e\"}".to_owned(), 2.5)].into());
    }
}
