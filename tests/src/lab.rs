//! Two hosts and a wire: `host`, protected by the real daemon, and `client`, from which packets come.
//!
//! Everything is made for one test and removed with it: namespaces, pins, processes by pid, files.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddrV4, TcpStream},
    os::{fd::AsFd, unix::fs::PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    net::if_::if_nametoindex,
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    armed::{install, program},
    flood::{Flood, Pattern, Running},
    frame::{TCP, tcp, v4},
    netns::{self, End, Namespace},
    sys::{end_with_parent, packet_socket, send_frames},
};

/// A TCP segment with these flags from `source` to the host.
pub fn segment(source: [u8; 4], flags: u8) -> Vec<u8> {
    let mut ip = v4(source, TCP);
    ip.destination = HOST.octets();
    ip.frame(&tcp(flags, 5))
}

/// A segment without flags from TEST-NET-3 to the host, which the sanity rules refuse.
pub fn null_segment() -> Vec<u8> {
    segment([203, 0, 113, 9], 0)
}

/// The host's interface.
pub const HOST_INTERFACE: &str = "h0";
/// The client's interface.
pub const CLIENT_INTERFACE: &str = "c0";
/// The host's address.
pub const HOST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The client's address.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
/// The host's link-layer address.
pub const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 77, 1];
/// The client's link-layer address.
pub const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 77, 2];
/// Where the daemon's pages are, inside the host's namespace.
pub const PAGES: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9187);

/// How long anything may take that should happen at once. Nothing is measured by it.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the daemon's pages say when its event loop was busy for two seconds, which a slow disk and a full machine can do.
pub(crate) const BUSY: &str = "the event loop does not answer";

/// What a command printed and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// Exit status; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

/// See the module.
#[derive(Debug)]
pub struct Lab {
    /// The protected host.
    pub host: Namespace,
    /// Where packets come from.
    pub client: Namespace,
    folder: tempfile::TempDir,
    pins: PathBuf,
    /// Another daemon than the one beside this executable.
    daemon: Option<PathBuf>,
    child: Option<Child>,
}

impl Lab {
    /// Makes namespaces, wire and folder. `purpose` keeps tests that run at the same time apart.
    ///
    /// # Errors
    /// If this is not root, or what the failing command said.
    pub fn new(purpose: &str) -> Result<Self> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "network namespaces and BPF need root: run the tests as root"
        );
        let host = Namespace::create(purpose, "host")?;
        let client = Namespace::create(purpose, "client")?;
        netns::join(
            End { namespace: &host, interface: HOST_INTERFACE, mac: HOST_MAC, address: "10.77.0.1/24" },
            End { namespace: &client, interface: CLIENT_INTERFACE, mac: CLIENT_MAC, address: "10.77.0.2/24" },
        )?;
        let pins = PathBuf::from(format!("/sys/fs/bpf/tunica-{purpose}-{}", std::process::id()));
        let folder = tempfile::Builder::new().prefix("tunica-lab-").tempdir().context("making a folder")?;
        Ok(Self { host, client, folder, pins, daemon: None, child: None })
    }

    /// Has the daemon start this front: both lie beside each other in a folder of the lab.
    ///
    /// # Errors
    /// If they cannot be put there.
    pub fn install_with(&mut self, front: &Path) -> Result<()> {
        let folder = self.path("bin");
        fs::create_dir(&folder)?;
        install(front, &folder.join("tunica-front"))?;
        let daemon = folder.join("tunicad");
        install(&program("tunicad")?, &daemon)?;
        self.daemon = Some(daemon);
        Ok(())
    }

    /// A file or folder of the lab.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Where the daemon pins.
    pub fn pins(&self) -> &Path {
        &self.pins
    }

    /// The one directory of pins, once the daemon made it.
    ///
    /// # Errors
    /// If there is none, or more than one.
    pub fn pin_directory(&self) -> Result<PathBuf> {
        let found: Vec<PathBuf> = fs::read_dir(&self.pins)?.flatten().map(|entry| entry.path()).collect();
        let [directory] = found.as_slice() else { bail!("{} directories of pins: {found:?}", found.len()) };
        Ok(directory.clone())
    }

    /// Writes the configuration: `shield` are lines of `[shield]`, `more` whatever follows.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn configure(&self, shield: &str, more: &str) -> Result<()> {
        let text = format!(
            "[shield]\ninterfaces = [\"{HOST_INTERFACE}\"]\npin_path = \"{}\"\n{shield}\n\n[ledger]\npath = \"{}\"\n\n\
             [control]\nsocket = \"{}\"\ngroup = \"nogroup\"\n\n{more}\n",
            self.pins.display(),
            self.path("ledger.redb").display(),
            self.path("tunicad.sock").display(),
        );
        fs::write(self.path("tunica.toml"), text).context("writing the configuration")
    }

    /// Starts the daemon, through `wrapper` if that is not empty, and waits until its pages answer.
    ///
    /// # Errors
    /// If it ends before that; its log is in the message.
    pub fn start_through(&mut self, wrapper: &[&str]) -> Result<()> {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.path("tunicad.log"))?;
        let daemon = self.daemon.clone().map_or_else(|| program("tunicad"), Ok)?;
        let first = wrapper.first().map_or(daemon.as_path(), |program| Path::new(*program));
        let mut command = self.host.command(first);
        command.args(wrapper.get(1..).unwrap_or_default());
        if !wrapper.is_empty() {
            command.arg(&daemon);
        }
        command.arg("--config").arg(self.path("tunica.toml"));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.child = Some(end_with_parent(&mut command).spawn().context("starting tunicad")?);
        self.wait_for("the daemon's pages", |lab| {
            if let Some(status) = lab.ended()? {
                bail!("tunicad ended with {status}:\n{}", lab.log());
            }
            Ok(lab.http("/health").is_ok())
        })
    }

    /// Starts the daemon and waits until its pages answer.
    ///
    /// # Errors
    /// See [`Lab::start_through`].
    pub fn start(&mut self) -> Result<()> {
        self.start_through(&[])
    }

    fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.as_mut().map_or(Ok(None), |child| Ok(child.try_wait()?))
    }

    /// The daemon's pid.
    ///
    /// # Errors
    /// If no daemon runs.
    pub fn pid(&self) -> Result<Pid> {
        let child = self.child.as_ref().context("no daemon runs")?;
        Ok(Pid::from_raw(i32::try_from(child.id())?))
    }

    /// Sends the daemon a signal.
    ///
    /// # Errors
    /// If no daemon runs.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.pid()?, signal).with_context(|| format!("sending {signal}"))
    }

    /// Sends the daemon a signal that ends it, and waits for its end.
    ///
    /// # Errors
    /// If it does not end.
    pub fn end(&mut self, signal: Signal) -> Result<ExitStatus> {
        self.signal(signal)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.ended()? {
                self.child = None;
                return Ok(status);
            }
            ensure!(Instant::now() < deadline, "tunicad does not end on {signal}:\n{}", self.log());
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// The daemon's log so far, of all its starts.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("tunicad.log")).unwrap_or_default()
    }

    /// Waits until `is_so`, or fails by the name of what was waited for.
    ///
    /// # Errors
    /// Those of `is_so`, or that it did not come.
    pub fn wait_for(&mut self, what: &str, mut is_so: impl FnMut(&mut Self) -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !is_so(self)? {
            ensure!(
                Instant::now() < deadline,
                "waited in vain for {what}; the daemon's log:\n{}",
                self.log()
            );
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Runs `tunica` with these arguments, as root.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn tunica(&self, arguments: &[&str]) -> Result<Ran> {
        let mut command = Command::new(program("tunica")?);
        self.finish(command.args(arguments))
    }

    /// Runs `tunica` as root in an SSH session from `peer`, of which only the shell above knows, as under sudo.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn tunica_over_ssh(&self, peer: &str, arguments: &[&str]) -> Result<Ran> {
        let mut command = Command::new("sh");
        command.args(["-c", "env -u SSH_CONNECTION -u SSH_CLIENT \"$@\"; exit $?", "sh"]);
        command.arg(program("tunica")?).args(arguments);
        command.env("SSH_CONNECTION", format!("{peer} 50022 {HOST} 22"));
        self.finish(&mut command)
    }

    /// Runs `tunica` as user `nobody` with group `gid` alone.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn tunica_as(&self, gid: u32, arguments: &[&str]) -> Result<Ran> {
        self.tunica_by(65_534, gid, arguments)
    }

    /// Runs `tunica` as user `uid` with group `gid` alone.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn tunica_by(&self, uid: u32, gid: u32, arguments: &[&str]) -> Result<Ran> {
        // The folders of the build and of the test are root's alone on some machines, so the program is copied.
        let lab = self.folder.path().file_name().unwrap_or_default();
        let copy = Path::new("/dev/shm").join(lab);
        install(&program("tunica")?, &copy)?;
        fs::set_permissions(self.folder.path(), fs::Permissions::from_mode(0o755))?;
        let mut command = Command::new("setpriv");
        let (uid, gid) = (uid.to_string(), gid.to_string());
        command.args(["--reuid", &uid, "--regid", &gid, "--clear-groups"]).arg(&copy);
        let ran = self.finish(command.args(arguments));
        let _ = fs::remove_file(&copy);
        ran
    }

    fn finish(&self, command: &mut Command) -> Result<Ran> {
        let output = command
            .arg("--socket")
            .arg(self.path("tunicad.sock"))
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("starting {command:?}"))?;
        Ok(Ran {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs `tunica` and demands that it succeed.
    ///
    /// # Errors
    /// With what it printed, if it does not.
    pub fn must(&self, arguments: &[&str]) -> Result<String> {
        let ran = self.tunica(arguments)?;
        ensure!(ran.code == Some(0), "tunica {arguments:?}: {ran:?}\nthe daemon's log:\n{}", self.log());
        Ok(ran.out)
    }

    /// Runs `tunica --json` and reads the answer.
    ///
    /// # Errors
    /// If the answer is no JSON.
    pub fn json(&self, arguments: &[&str]) -> Result<serde_json::Value> {
        let mut all = vec!["--json"];
        all.extend(arguments);
        let ran = self.tunica(&all)?;
        serde_json::from_str(&ran.out).with_context(|| format!("{ran:?}"))
    }

    /// Status and body that the daemon's pages give for `path`, asked for again while its event loop is busy.
    ///
    /// # Errors
    /// If nothing answers.
    pub fn http(&self, path: &str) -> Result<(u16, String)> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (status, body) = self.http_once(path)?;
            if !(status == 503 && body.contains(BUSY)) || Instant::now() > deadline {
                return Ok((status, body));
            }
        }
    }

    fn http_once(&self, path: &str) -> Result<(u16, String)> {
        self.host.run(|| {
            let mut stream = TcpStream::connect_timeout(&PAGES.into(), Duration::from_secs(2))?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            write!(stream, "GET {path} HTTP/1.1\r\nHost: {PAGES}\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            let (head, body) = answer.split_once("\r\n\r\n").context("an answer without a body")?;
            let status = head.split(' ').nth(1).context("an answer without a status")?;
            Ok((status.parse()?, body.to_owned()))
        })
    }

    /// The value of one time series, named as in the text format: `name` or `name{label="value",…}`; `None` if it is not
    /// exported.
    ///
    /// # Errors
    /// If the daemon's pages do not answer.
    pub fn metric(&self, series: &str) -> Result<Option<f64>> {
        let (status, text) = self.http("/metrics")?;
        ensure!(status == 200, "the metrics: {status} {text}");
        Ok(text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.trim().parse().ok()))
    }

    /// Starts an attack of `rate` packets a second from the client on a port of the host.
    ///
    /// # Errors
    /// When its thread cannot be started.
    pub fn flood(&self, pattern: Pattern, rate: u32, port: u16) -> Result<Running> {
        let (macs, victim) = ((CLIENT_MAC, HOST_MAC), (HOST, port).into());
        Flood { pattern, rate, macs, victim, seed: 7 }.start(&self.client, CLIENT_INTERFACE)
    }

    /// Sends frames from the client, one after another.
    ///
    /// # Errors
    /// If the socket refuses them.
    pub fn send(&self, frame: &[u8], times: usize) -> Result<()> {
        // Ethernet's shortest frame; what is longer is padded to the other length.
        if frame.len() <= 60 {
            self.send_padded::<60>(frame, times)
        } else {
            self.send_padded::<96>(frame, times)
        }
    }

    fn send_padded<const BYTES: usize>(&self, frame: &[u8], times: usize) -> Result<()> {
        ensure!(frame.len() <= BYTES, "a test frame of {} bytes", frame.len());
        let mut bytes = [0; BYTES];
        for (to, from) in
            bytes.iter_mut().zip(HOST_MAC.iter().chain(&CLIENT_MAC).chain(frame.iter().skip(12)))
        {
            *to = *from;
        }
        // The stack drops a wrong header checksum before any counter of ours sees the packet.
        if let [_, _, _, _, _, _, _, _, _, _, _, _, 8, 0, ip @ ..] = bytes.as_mut_slice() {
            let sum = header_checksum(ip.get(..20).unwrap_or_default()).to_be_bytes();
            if let Some(place) = ip.get_mut(10..12) {
                place.copy_from_slice(&sum);
            }
        }
        self.client.run(|| {
            let socket = packet_socket(if_nametoindex(CLIENT_INTERFACE)?)?;
            for _ in 0..times {
                while send_frames(socket.as_fd(), &[bytes])? == 0 {
                    thread::yield_now();
                }
            }
            Ok(())
        })
    }

    /// Counts packets that reach the host's network stack, by an nftables rule before everything else.
    ///
    /// # Errors
    /// With what `nft` said.
    pub fn count_in_stack(&self, name: &str, matches: &str) -> Result<()> {
        self.nft(&format!(
            "add table inet lab; add counter inet lab {name}; \
             add chain inet lab seen {{ type filter hook prerouting priority -400; }}; \
             add rule inet lab seen iifname {HOST_INTERFACE} {matches} counter name {name}"
        ))
        .map(|_| ())
    }

    /// Packets counted by [`Lab::count_in_stack`].
    ///
    /// # Errors
    /// With what `nft` said.
    pub fn in_stack(&self, name: &str) -> Result<u64> {
        let listed = self.nft(&format!("list counter inet lab {name}"))?;
        let mut words = listed.split_whitespace();
        words.by_ref().find(|word| *word == "packets");
        words.next().and_then(|word| word.parse().ok()).with_context(|| format!("no count in {listed}"))
    }

    fn nft(&self, commands: &str) -> Result<String> {
        self.run_in_host("nft", &[commands])
    }

    /// Runs a command in the host's namespace and demands that it succeed.
    ///
    /// # Errors
    /// With what it said.
    pub fn run_in_host(&self, name: &str, arguments: &[&str]) -> Result<String> {
        let output = self
            .host
            .command(Path::new(name))
            .args(arguments)
            .env("PATH", "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin")
            .output()
            .with_context(|| format!("this test needs `{name}`"))?;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(
            output.status.success(),
            "{name} {arguments:?} failed; `cargo xtask setup` installs it: {err}{out}"
        );
        Ok(out.into_owned())
    }
}

/// The checksum of an IPv4 header whose checksum field is zero (RFC 1071).
fn header_checksum(header: &[u8]) -> u16 {
    let sum: u32 = header
        .chunks_exact(2)
        .map(|pair| pair.iter().fold(0, |word, byte| word << 8 | u32::from(*byte)))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or(0)
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        // Removing the pins detaches and frees everything the daemon made in the kernel, also under names that a test derived
        // from the lab's.
        let (Some(folder), Some(name)) = (self.pins.parent(), self.pins.file_name()) else { return };
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(name.as_encoded_bytes()) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}
