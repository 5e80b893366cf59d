//! What tor's configuration publishes: the `HiddenServicePort` lines of a torrc, and whether one leads where it must not; and the
//! lines that make a service which leads to the ingress.
//!
//! Read as tor reads it (`parse_config_line_from_str_verbose` in confline.c, `hs_parse_port_config` in hs_common.c): comments, values
//! in quotes, lines that go on behind a backslash, option names in any case. `%include` is not followed, but told. No name is
//! looked up: of names only `localhost` is understood.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZeroU16,
    path::{Path, PathBuf},
};

use thiserror::Error;

pub use service::{PathNotWritable, Service, Size};

mod service;

/// Where streams of a virtual port go.
#[derive(Clone, PartialEq, Eq)]
pub enum Target {
    /// An address and a port.
    Tcp(SocketAddr),
    /// `localhost` and a port.
    Localhost(u16),
    /// A Unix socket.
    Unix(PathBuf),
    /// A name that tor looks up, and a port.
    Name(String, u16),
}

/// A `HiddenServicePort` line. `Debug` shows no place.
#[derive(Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// Its line in the file, counted from 1.
    pub line: usize,
    /// The port that clients see.
    pub virtual_port: NonZeroU16,
    /// Where their streams go.
    pub target: Target,
    /// Whether the service says `HiddenServiceExportCircuitID haproxy`, without which no stream tells its circuit.
    pub exports_circuit: bool,
}

/// What a torrc says of onion services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Torrc {
    /// Every port that is published, in the file's order.
    pub ports: Vec<ServicePort>,
    /// Lines that could not be read.
    pub problems: Vec<TorrcProblem>,
    /// Lines that take in other files, which were not read.
    pub includes: Vec<usize>,
}

/// A line that tor would refuse, or that is not understood here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("line {line}: {fault}; what it publishes is not known, so correct the line and check again")]
pub struct TorrcProblem {
    /// Its number, counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub fault: TorrcFault,
}

/// What is wrong with a line. The line itself is not repeated: it may hold a password's hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TorrcFault {
    /// No port, or zero.
    #[error("HiddenServicePort does not begin with a port from 1 to 65535")]
    VirtualPort,
    /// Not one of the forms of a target.
    #[error("the target of HiddenServicePort is none of port, address, address:port and unix:/path")]
    Target,
    /// More than port and target.
    #[error("HiddenServicePort has more than a port and a target")]
    Surplus,
    /// A quote without its end, something behind it, or an escape that is not known here.
    #[error("a value in quotes does not end, goes on behind them, or has an escape other than \\\" and \\\\")]
    Quotes,
    /// A port before any service.
    #[error("HiddenServicePort stands before any HiddenServiceDir")]
    NoService,
}

impl fmt::Debug for Target {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Target(scrubbed)")
    }
}

impl fmt::Debug for ServicePort {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "ServicePort {{ line: {}, exports_circuit: {} }}", self.line, self.exports_circuit)
    }
}

impl fmt::Display for Target {
    /// As in a torrc.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(out),
            Self::Localhost(port) => write!(out, "localhost:{port}"),
            Self::Unix(path) => write!(out, "unix:{}", path.display()),
            Self::Name(name, port) => write!(out, "{name}:{port}"),
        }
    }
}

/// A socket of this machine, to be compared with what is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener<'a> {
    /// A numeric address and a port.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(&'a Path),
}

impl Target {
    /// Whether a stream to it arrives at `listener`. Linux takes the unspecified address for loopback; a name that is not known
    /// here could be anything, so by it alone nothing is said.
    pub fn reaches(&self, listener: Listener<'_>) -> bool {
        match (self, listener) {
            (Self::Tcp(target), Listener::Tcp(listener)) => {
                let (target_host, host) = (target.ip().to_canonical(), listener.ip().to_canonical());
                let meant = match target_host {
                    IpAddr::V4(Ipv4Addr::UNSPECIFIED) => IpAddr::V4(Ipv4Addr::LOCALHOST),
                    IpAddr::V6(Ipv6Addr::UNSPECIFIED) => IpAddr::V6(Ipv6Addr::LOCALHOST),
                    IpAddr::V4(_) | IpAddr::V6(_) => target_host,
                };
                target.port() == listener.port() && (host == meant || host.is_unspecified())
            }
            (Self::Localhost(port), Listener::Tcp(listener)) => {
                let host = listener.ip().to_canonical();
                *port == listener.port() && (host.is_loopback() || host.is_unspecified())
            }
            (Self::Unix(target), Listener::Unix(listener)) => target == listener,
            (Self::Tcp(_) | Self::Localhost(_), Listener::Unix(_)) => false,
            (Self::Unix(_), Listener::Tcp(_)) | (Self::Name(..), _) => false,
        }
    }
}

impl Torrc {
    /// Reads a torrc.
    pub fn parse(text: &str) -> Self {
        Self::of(entries(text))
    }

    /// Reads what `GETCONF HiddenServiceOptions` says; lines are counted in its answer.
    pub fn of_options<'a>(options: impl Iterator<Item = (&'a str, &'a str)>) -> Self {
        Self::of(
            (1..).zip(options).map(|(line, (key, value))| (line, Ok((key.to_owned(), value.to_owned())))),
        )
    }

    fn of(entries: impl Iterator<Item = (usize, Result<(String, String), TorrcFault>)>) -> Self {
        let mut torrc = Self::default();
        // The ports of the service that is being read begin here; the line that exports circuits may stand behind them.
        let mut service: Option<usize> = None;
        let mut exports = false;
        for (line, entry) in entries {
            let (key, value) = match entry {
                Ok(entry) => entry,
                Err(fault) => {
                    torrc.problems.push(TorrcProblem { line, fault });
                    continue;
                }
            };
            // "+" adds to what stands before, which a list of ports does anyway; "/" clears.
            match Key::of(&key) {
                Key::Include => torrc.includes.push(line),
                Key::Directory => {
                    torrc.end_service(service, exports);
                    (service, exports) = (Some(torrc.ports.len()), false);
                }
                Key::ExportCircuit => exports = value.eq_ignore_ascii_case("haproxy"),
                Key::Port => match service.ok_or(TorrcFault::NoService).and_then(|_| port(&value)) {
                    Ok((virtual_port, target)) => {
                        torrc.ports.push(ServicePort { line, virtual_port, target, exports_circuit: false });
                    }
                    Err(fault) => torrc.problems.push(TorrcProblem { line, fault }),
                },
                Key::Other => {}
            }
        }
        torrc.end_service(service, exports);
        torrc
    }

    fn end_service(&mut self, service: Option<usize>, exports: bool) {
        if let Some(first) = service.filter(|_| exports) {
            self.ports.iter_mut().skip(first).for_each(|port| port.exports_circuit = true);
        }
    }
}

/// The options that matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Include,
    Directory,
    ExportCircuit,
    Port,
    Other,
}

impl Key {
    /// Tor takes the first option of its list that begins with what is written, in any case (`config_find_option`), so these
    /// may be cut off down to the letters that no option before them shares.
    fn of(key: &str) -> Self {
        const OPTIONS: [(&str, &str, Key); 4] = [
            ("%include", "%include", Key::Include),
            ("hiddenserviced", "hiddenservicedir", Key::Directory),
            ("hiddenserviceex", "hiddenserviceexportcircuitid", Key::ExportCircuit),
            ("hiddenservicep", "hiddenserviceport", Key::Port),
        ];
        let key = key.strip_prefix('+').unwrap_or(key).to_ascii_lowercase();
        let is_meant = |least: &str, whole: &str| key.starts_with(least) && whole.starts_with(&key);
        let meant = OPTIONS.iter().find(|(least, whole, _)| is_meant(least, whole));
        meant.map_or(Self::Other, |(_, _, meant)| *meant)
    }
}

/// Each line with something in it: its number, key and value.
fn entries(text: &str) -> impl Iterator<Item = (usize, Result<(String, String), TorrcFault>)> {
    let mut lines = text.lines().enumerate().map(|(index, line)| (index + 1, line.trim()));
    std::iter::from_fn(move || {
        loop {
            let (number, line) = lines.next()?;
            let (key, rest) = line.split_once([' ', '\t']).unwrap_or((line, ""));
            if key.is_empty() || key.starts_with('#') {
                continue;
            }
            let rest = rest.trim_start();
            if let Some(quoted) = rest.strip_prefix('"') {
                return Some((number, unquote(quoted).map(|value| (key.to_owned(), value))));
            }
            // A comment ends a value, also in the middle of a line.
            let (key, rest) =
                if key.contains('#') { (key.split('#').next().unwrap_or(key), "") } else { (key, rest) };
            let mut value = String::new();
            let mut part = rest;
            loop {
                let bare = part.split('#').next().unwrap_or("");
                let Some(kept) = bare.strip_suffix('\\').filter(|_| bare.len() == part.len()) else {
                    value.push_str(bare);
                    break;
                };
                value.push_str(kept);
                // Comments in between begin at the beginning of their line.
                match lines.by_ref().find(|(_, line)| !line.starts_with('#')) {
                    Some((_, next)) => part = next,
                    None => break,
                }
            }
            return Some((number, Ok((key.to_owned(), value.trim().to_owned()))));
        }
    })
}

/// What stands between quotes, of which the first is gone.
fn unquote(text: &str) -> Result<String, TorrcFault> {
    let mut value = String::new();
    let mut letters = text.chars();
    loop {
        match letters.next().ok_or(TorrcFault::Quotes)? {
            '"' => break,
            '\\' => match letters.next() {
                Some(letter @ ('"' | '\\')) => value.push(letter),
                Some(_) | None => return Err(TorrcFault::Quotes),
            },
            letter => value.push(letter),
        }
    }
    let rest = letters.as_str().trim_start();
    if rest.is_empty() || rest.starts_with('#') { Ok(value) } else { Err(TorrcFault::Quotes) }
}

/// `VIRTPORT [TARGET]`.
fn port(value: &str) -> Result<(NonZeroU16, Target), TorrcFault> {
    // Only spaces part them.
    let (first, rest) = value.split_once(' ').unwrap_or((value, ""));
    let virtual_port: NonZeroU16 = first.parse().map_err(|_| TorrcFault::VirtualPort)?;
    let rest = rest.trim();
    if rest.is_empty() {
        return Ok((virtual_port, Target::Tcp((Ipv4Addr::LOCALHOST, virtual_port.get()).into())));
    }
    if let Some(path) = rest.strip_prefix("unix:") {
        let path = match path.strip_prefix('"') {
            Some(quoted) => unquote(quoted)?,
            None if path.contains([' ', '\t']) => return Err(TorrcFault::Surplus),
            None => path.to_owned(),
        };
        return Ok((virtual_port, Target::Unix(path.into())));
    }
    if rest.contains([' ', '\t']) {
        return Err(TorrcFault::Surplus);
    }
    target(rest, virtual_port.get()).map(|target| (virtual_port, target)).ok_or(TorrcFault::Target)
}

fn target(text: &str, virtual_port: u16) -> Option<Target> {
    // tor reads numbers by strtol(3), which takes a sign; so does Rust alone, but not behind an address.
    if text.strip_prefix('+').unwrap_or(text).bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(Target::Tcp((Ipv4Addr::LOCALHOST, text.parse::<NonZeroU16>().ok()?.get()).into()));
    }
    let unsigned = text
        .rsplit_once(":+")
        .filter(|(host, port)| {
            (host.ends_with(']') || !host.contains(':'))
                && port.starts_with(|digit: char| digit.is_ascii_digit())
        })
        .map(|(host, port)| format!("{host}:{port}"));
    let text = unsigned.as_deref().unwrap_or(text);
    if let Ok(address) = text.parse::<SocketAddr>() {
        return (address.port() > 0).then_some(Target::Tcp(address));
    }
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    if let Ok(host) = bare.parse::<IpAddr>() {
        return Some(Target::Tcp((host, virtual_port).into()));
    }
    let (name, port) = match text.split_once(':') {
        Some((name, port)) => (name, port.parse::<NonZeroU16>().ok()?.get()),
        // Without either it must be a port.
        None if text.contains('.') => (text, virtual_port),
        None => return None,
    };
    let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'));
    if name.is_empty() || !is_name {
        return None;
    }
    let is_localhost = name.eq_ignore_ascii_case("localhost");
    Some(if is_localhost { Target::Localhost(port) } else { Target::Name(name.to_owned(), port) })
}

/// What a torrc does to the listeners of one host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exposure {
    /// A service publishes what must stay on this machine.
    Published {
        /// The key of the configuration whose listener it is.
        key: &'static str,
        /// The line.
        line: usize,
    },
    /// A service leads to a backend past the ingress.
    PastIngress {
        /// The line.
        line: usize,
    },
    /// No service leads to the ingress.
    NotIngress,
    /// A service leads to the ingress and does not say through which circuit its streams come.
    NoCircuit {
        /// The line.
        line: usize,
    },
}

impl Torrc {
    /// What is wrong, where `private` are listeners that no service may publish, each with its key, and `ingress` those that
    /// tor is meant to connect to; empty where there is no ingress. Only the ingress is meant to connect to those that are
    /// `guarded`.
    pub fn exposures(
        &self,
        private: &[(&'static str, Listener<'_>)],
        ingress: &[Listener<'_>],
        guarded: &[Listener<'_>],
    ) -> Vec<Exposure> {
        let mut exposures = Vec::new();
        let mut has_ingress = ingress.is_empty();
        for port in &self.ports {
            let published = private.iter().filter(|(_, listener)| port.target.reaches(*listener));
            exposures.extend(published.map(|(key, _)| Exposure::Published { key, line: port.line }));
            if guarded.iter().any(|listener| port.target.reaches(*listener)) {
                exposures.push(Exposure::PastIngress { line: port.line });
            }
            if ingress.iter().any(|listener| port.target.reaches(*listener)) {
                has_ingress = true;
                if !port.exports_circuit {
                    exposures.push(Exposure::NoCircuit { line: port.line });
                }
            }
        }
        // What was not read may lead there.
        if !has_ingress && self.includes.is_empty() && self.problems.is_empty() {
            exposures.push(Exposure::NotIngress);
        }
        exposures
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DIRECTORY: &str = "HiddenServiceDir /var/lib/tor/shop\n";

    #[test]
    fn targets_in_every_form() {
        for (value, virtual_port, target) in [
            ("80", 80, "127.0.0.1:80"),
            ("80 8080", 80, "127.0.0.1:8080"),
            ("80   8080", 80, "127.0.0.1:8080"),
            ("\"80 8080\"", 80, "127.0.0.1:8080"),
            ("80#8080", 80, "127.0.0.1:80"),
            ("80 127.0.0.1", 80, "127.0.0.1:80"),
            ("80 127.0.0.1:8080", 80, "127.0.0.1:8080"),
            ("80 [::1]:8080", 80, "[::1]:8080"),
            ("80 [::1]", 80, "[::1]:80"),
            ("80 ::1", 80, "[::1]:80"),
            // tor takes these.
            ("+80 +8080", 80, "127.0.0.1:8080"),
            ("80 127.0.0.1:+9187", 80, "127.0.0.1:9187"),
            ("80 127.0.0.1:09187", 80, "127.0.0.1:9187"),
            ("80 [::1]:+9187", 80, "[::1]:9187"),
            ("80 localhost:+9187", 80, "localhost:9187"),
            ("80 localhost:8080", 80, "localhost:8080"),
            ("80 LOCALHOST:80", 80, "localhost:80"),
            ("80 web.internal", 80, "web.internal:80"),
            ("80 web.internal:8080", 80, "web.internal:8080"),
            ("65535 unix:/run/app.sock", 65_535, "unix:/run/app.sock"),
            ("80 unix:\"/run/my app.sock\"", 80, "unix:/run/my app.sock"),
            ("80 127.0.0.1:8080 # the shop", 80, "127.0.0.1:8080"),
        ] {
            let torrc = Torrc::parse(&format!("{DIRECTORY}HiddenServicePort {value}\n"));
            assert_eq!(torrc.problems, [], "{value}");
            let read: Vec<_> =
                torrc.ports.iter().map(|port| (port.virtual_port.get(), port.target.to_string())).collect();
            assert_eq!(read, [(virtual_port, target.to_owned())], "{value}");
        }
    }

    #[test]
    fn bad_lines_are_named_and_the_others_read() {
        use TorrcFault::{NoService, Quotes, Surplus, Target, VirtualPort};
        for (line, fault) in [
            ("HiddenServicePort", VirtualPort),
            ("HiddenServicePort 0", VirtualPort),
            ("HiddenServicePort 65536", VirtualPort),
            ("HiddenServicePort http", VirtualPort),
            ("HiddenServicePort 80 0", Target),
            ("HiddenServicePort 80 99999", Target),
            ("HiddenServicePort 80 127.0.0.1:", Target),
            ("HiddenServicePort 80 127.0.0.1:0", Target),
            ("HiddenServicePort 80 127.0.0.1:x", Target),
            ("HiddenServicePort 80 127.0.0.1:++1", Target),
            ("HiddenServicePort 80 +", Target),
            ("HiddenServicePort 80 a/b", Target),
            ("HiddenServicePort 80 :80", Target),
            ("HiddenServicePort 80 localhost", Target),
            ("HiddenServicePort 80\t8080", VirtualPort),
            ("HiddenServicePort 80 unix:/a b", Surplus),
            ("HiddenServicePort 80 unix:\"/a", Quotes),
            ("HiddenServicePort 80 127.0.0.1:80 90", Surplus),
            ("HiddenServicePort \"80 8080", Quotes),
            ("HiddenServicePort \"80\" 8080", Quotes),
            ("HiddenServicePort \"80\\n\"", Quotes),
        ] {
            let torrc = Torrc::parse(&format!("{DIRECTORY}{line}\nHiddenServicePort 443\n"));
            assert_eq!(torrc.problems, [TorrcProblem { line: 2, fault }], "{line}");
            assert_eq!(torrc.ports.len(), 1, "{line}");
            assert!(torrc.problems[0].to_string().starts_with("line 2: "));
        }
        let early = Torrc::parse("HiddenServicePort 80\n");
        assert_eq!(early.problems, [TorrcProblem { line: 1, fault: NoService }]);
    }

    #[test]
    fn lines_are_those_that_tor_sees() {
        let text = "# HiddenServicePort 1\n\n  hiddenservicedir /a\n\thiddenServicePORT 2 \\\n# between\n  127.0.0.1:22\n\
                    +HiddenServicePort \"3 unix:\\\"/a b\\\"\" # why\n%include /etc/torrc.d/*.conf\nSocksPort 4\n\
                    HiddenServicePort 5 # \\\nHiddenServicePort 6\nHiddenServiceP 7\n\
                    HiddenServicePoWQueueRate 8\nHiddenServiceDirGroupReadable 1\n/HiddenServicePort 9";
        let torrc = Torrc::parse(text);
        assert_eq!((torrc.problems.as_slice(), torrc.includes.as_slice()), (&[][..], &[8][..]));
        let read: Vec<_> = torrc.ports.iter().map(|port| (port.line, port.target.to_string())).collect();
        let expected = [
            (4, "127.0.0.1:22"),
            (7, "unix:/a b"),
            (10, "127.0.0.1:5"),
            (11, "127.0.0.1:6"),
            (12, "127.0.0.1:7"),
        ];
        assert_eq!(read, expected.map(|(line, target)| (line, target.to_owned())));
    }

    #[test]
    fn each_service_says_for_itself_whether_it_tells_circuits() {
        let text = "HiddenServiceDir /a\nHiddenServicePort 1\nHiddenServiceExportCircuitID haproxy\nHiddenServicePort 2\n\
                    HiddenServiceDir /b\nHiddenServicePort 3\nHiddenServiceDir /c\nHiddenServiceExportCircuitID none\n\
                    HiddenServicePort 4\nHiddenServiceDir /d\nHiddenServiceExportCircuitID HAProxy\nHiddenServicePort 5\n";
        let exports: Vec<_> = Torrc::parse(text).ports.iter().map(|port| port.exports_circuit).collect();
        assert_eq!(exports, [true, true, false, false, true]);
    }

    #[test]
    fn options_are_read_as_lines_are() {
        let options = [
            ("HiddenServiceDir", "/a"),
            ("HiddenServicePort", "80 127.0.0.1:8080"),
            ("HiddenServiceExportCircuitID", "haproxy"),
            ("HiddenServiceDir", "/b"),
            ("HiddenServicePort", "9187"),
            ("HiddenServicePort", "x"),
        ];
        let torrc = Torrc::of_options(options.into_iter());
        let text: String = options.iter().map(|(key, value)| format!("{key} {value}\n")).collect();
        assert_eq!(torrc, Torrc::parse(&text));
        assert_eq!((torrc.ports.len(), torrc.problems.len()), (2, 1));
    }

    #[test]
    fn who_is_reached() {
        let tcp = |text: &str| text.parse::<SocketAddr>().unwrap();
        for (target, listener, reaches) in [
            ("127.0.0.1:9187", "127.0.0.1:9187", true),
            ("127.0.0.1:9187", "127.0.0.1:9188", false),
            ("127.0.0.2:9187", "127.0.0.1:9187", false),
            ("[::1]:9187", "127.0.0.1:9187", false),
            ("[::ffff:127.0.0.1]:9187", "127.0.0.1:9187", true),
            ("0.0.0.0:9187", "127.0.0.1:9187", true),
            ("[::]:9187", "[::1]:9187", true),
            ("localhost:9187", "127.0.0.1:9187", true),
            ("localhost:9187", "[::1]:9187", true),
            ("9187", "127.0.0.1:9187", true),
            ("127.0.0.1:9187", "0.0.0.0:9187", true),
            ("example.org:9187", "127.0.0.1:9187", false),
            ("unix:/run/a.sock", "127.0.0.1:9187", false),
        ] {
            let read =
                super::target(target, 80).or_else(|| port(&format!("80 {target}")).ok().map(|port| port.1));
            assert_eq!(read.unwrap().reaches(Listener::Tcp(tcp(listener))), reaches, "{target} {listener}");
        }
        let socket = Target::Unix("/run/a.sock".into());
        assert!(socket.reaches(Listener::Unix(Path::new("/run/a.sock"))));
        assert!(!socket.reaches(Listener::Unix(Path::new("/run/b.sock"))));
        assert!(!Target::Localhost(80).reaches(Listener::Unix(Path::new("/run/b.sock"))));
    }

    #[test]
    fn what_is_wrong_with_the_ports_of_a_host() {
        let private = [("http.listen", Listener::Tcp(([127, 0, 0, 1], 9_187).into()))];
        let ingress =
            [Listener::Tcp(([127, 0, 0, 1], 10_000).into()), Listener::Unix(Path::new("/run/in.sock"))];
        let guarded = [Listener::Tcp(([127, 0, 0, 1], 8_080).into())];
        let good = format!("{DIRECTORY}HiddenServicePort 80 10000\nHiddenServiceExportCircuitID haproxy\n");
        for (text, is_ingress, expected) in [
            (good.clone(), true, vec![]),
            (good.replace("10000", "unix:/run/in.sock"), true, vec![]),
            (good.replace("haproxy", "none"), true, vec![Exposure::NoCircuit { line: 2 }]),
            (good.replace("10000", "10001"), true, vec![Exposure::NotIngress]),
            (format!("{good}HiddenServicePort 81 8080\n"), true, vec![Exposure::PastIngress { line: 4 }]),
            (String::new(), true, vec![Exposure::NotIngress]),
            (String::new(), false, vec![]),
            ("%include /etc/torrc.d\n".to_owned(), true, vec![]),
            (
                format!("{good}HiddenServicePort 9187\n"),
                true,
                vec![Exposure::Published { key: "http.listen", line: 4 }],
            ),
        ] {
            let ingress = if is_ingress { &ingress[..] } else { &[] };
            assert_eq!(Torrc::parse(&text).exposures(&private, ingress, &guarded), expected, "{text}");
        }
    }

    #[test]
    fn debug_shows_no_place() {
        let torrc = Torrc::parse(&format!("{DIRECTORY}HiddenServicePort 80 192.0.2.7:8080\n"));
        assert!(!format!("{torrc:?} {:?}", torrc.ports[0].target).contains("192.0.2.7"));
    }

    proptest! {
        /// For all texts, reading ends, never panics, and no more ports and problems come out than there are lines.
        #[test]
        fn any_text_is_read(text in "([ -~\\t\\\\\"#é]{0,30}\\n|HiddenService(Dir|Port) [ -~]{0,20}\\n){0,12}") {
            let torrc = Torrc::parse(&text);
            prop_assert!(torrc.ports.len() + torrc.problems.len() <= text.lines().count());
        }
    }
}
