//! What a torrc publishes: [`tunica_onion::torrc`], from a file and from tor's answer to `GETCONF HiddenServiceOptions`.

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
    path::Path,
};

use tunica_onion::torrc::{Exposure, Listener, Target, Torrc};

const FILE: &str = "# HiddenServicePort 1\n\n  hiddenservicedir /a\n\thiddenServicePORT 2 \\\n# between\n  127.0.0.1:22\n\
                    +HiddenServicePort \"3 unix:\\\"/a b\\\"\" # why\n%include /etc/torrc.d/*.conf\nSocksPort 4\n\
                    HiddenServiceExportCircuitID haproxy\nHiddenServicePort 5 # \\\nHiddenServicePort 6 [::1]:7\n\
                    HiddenServiceDir /b\nHiddenServiceP 80 web.internal\nHiddenServicePort 81 localhost:9187\n\
                    HiddenServicePort x\nHiddenServicePort 80 unix:/run/app.sock\n";

/// A file with each form of a line, and each of these alone.
pub fn seeds() -> Vec<Vec<u8>> {
    let lines = FILE.lines().map(|line| format!("HiddenServiceDir /a\n{line}\n").into_bytes());
    std::iter::once(FILE.as_bytes().to_vec()).chain(lines).collect()
}

/// For all texts, what is read stands at a line of the text, no more than one thing a line; it is written and read the same,
/// from a file and as tor's options; and what a file does to listeners follows from its ports.
pub fn check(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let torrc = Torrc::parse(&text);
    let problems = torrc.problems.iter().map(|problem| problem.line);
    let ports = torrc.ports.iter().map(|port| port.line);
    let mut read: Vec<usize> = problems.chain(ports).chain(torrc.includes.iter().copied()).collect();
    read.sort_unstable();
    assert!(read.iter().all(|line| (1..=text.lines().count()).contains(line)), "{torrc:?}");
    assert!(read.is_sorted_by(|one, next| one < next), "a line was read twice: {torrc:?}");
    for problem in &torrc.problems {
        let shown = problem.to_string();
        assert!(shown.starts_with(&format!("line {}: ", problem.line)), "{shown}");
        assert!(!shown.chars().any(char::is_control), "{shown:?}");
    }

    for port in &torrc.ports {
        // An address that is taken for a name would reach no listener, whatever tor makes of it.
        if let Target::Name(name, _) = &port.target {
            assert!(name.parse::<IpAddr>().is_err() && !name.eq_ignore_ascii_case("localhost"));
        }
    }

    let options = written(&torrc);
    let mut file = String::new();
    for (key, value) in &options {
        let _ = writeln!(file, "{key} {}", quoted(value));
    }
    let pairs = options.iter().map(|(key, value)| (*key, value.as_str()));
    for again in [Torrc::parse(&file), Torrc::of_options(pairs)] {
        assert_eq!((again.problems.as_slice(), again.includes.as_slice()), (&[][..], &[][..]));
        assert!(facts(&again) == facts(&torrc), "{torrc:?} became {again:?}");
    }
    // Whatever tor may answer.
    let any = text.lines().map(|line| line.split_once(' ').unwrap_or((line, "")));
    let told = Torrc::of_options(any);
    assert!(told.ports.len() + told.problems.len() + told.includes.len() <= text.lines().count());

    let private = [("http.listen", Listener::Tcp(SocketAddr::from(([127, 0, 0, 1], 9_187))))];
    let ingress = [Listener::Unix(Path::new("/run/app.sock"))];
    let guarded = [Listener::Tcp(SocketAddr::from(([127, 0, 0, 1], 8_080)))];
    let exposures = torrc.exposures(&private, &ingress, &guarded);
    let leads = |port: &&Target| port.reaches(Listener::Unix(Path::new("/run/app.sock")));
    let has_ingress = torrc.ports.iter().map(|port| &port.target).any(|target| leads(&target));
    if exposures.contains(&Exposure::NotIngress) {
        assert!(!has_ingress && torrc.includes.is_empty() && torrc.problems.is_empty());
    }
    assert!(exposures.len() <= 3 * torrc.ports.len() + 1);
}

/// All that a port is, but its line.
fn facts(torrc: &Torrc) -> Vec<(NonZeroU16, &Target, bool)> {
    torrc.ports.iter().map(|port| (port.virtual_port, &port.target, port.exports_circuit)).collect()
}

/// Each port as a service of its own.
fn written(torrc: &Torrc) -> Vec<(&'static str, String)> {
    let mut options = Vec::new();
    for port in &torrc.ports {
        let target = match &port.target {
            Target::Unix(path) => format!("unix:{}", quoted(&path.display().to_string())),
            other @ (Target::Tcp(_) | Target::Localhost(_) | Target::Name(..)) => other.to_string(),
        };
        options.push(("HiddenServiceDir", "/a".to_owned()));
        options.push(("HiddenServicePort", format!("{} {target}", port.virtual_port)));
        if port.exports_circuit {
            options.push(("HiddenServiceExportCircuitID", "haproxy".to_owned()));
        }
    }
    options
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}
