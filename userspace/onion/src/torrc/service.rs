//! The lines of a torrc that make an onion service which leads to the ingress, with tor's own defences.

use std::{
    fmt,
    fmt::Write as _,
    num::NonZeroU16,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use thiserror::Error;

use super::Target;

/// How many clients come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// A service as most are.
    Usual,
    /// One that is meant to serve several hundred new clients a minute while it asks for puzzles.
    Large,
}

impl Size {
    /// Introductions a second that tor takes from its queue of puzzles, and how many at once.
    const fn puzzle_queue(self) -> (u32, u32) {
        match self {
            Self::Usual => (25, 50),
            Self::Large => (100, 200),
        }
    }
}

/// An onion service in front of the ingress. `Debug` shows no place.
#[derive(Clone, PartialEq, Eq)]
pub struct Service {
    /// `HiddenServiceDir`: where tor keeps the service's keys.
    pub folder: PathBuf,
    /// The port that clients see.
    pub virtual_port: NonZeroU16,
    /// Where the ingress listens.
    pub target: Target,
    /// How many clients come.
    pub size: Size,
    /// Relays that introduce clients (`HiddenServiceNumIntroductionPoints`), within [`Self::INTRO_POINTS`].
    pub intro_points: u8,
    /// Whether a stream beyond [`Self::MOST_STREAMS`] ends its circuit with all that it has
    /// (`HiddenServiceMaxStreamsCloseCircuit`), rather than only itself.
    pub ends_full_circuits: bool,
    /// Whether this tor is a relay as well: then it has the defences that act on relays alone (dos.c: `public_server_mode`).
    pub is_relay: bool,
}

impl fmt::Debug for Service {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Service {{ size: {:?}, is_relay: {} }}", self.size, self.is_relay)
    }
}

/// A path that cannot stand in a torrc. It is not repeated: it tells where keys lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "the {what} has a control character or is no UTF-8, which tor would not read as meant; name it otherwise"
)]
pub struct PathNotWritable {
    /// Whose path.
    pub what: &'static str,
}

impl Service {
    /// How many introduction points tor has (config.c, `HiddenServiceNumIntroductionPoints`): fewer than three are gone whenever
    /// a relay or two are, and clients refuse a descriptor with more than twenty.
    pub const INTRO_POINTS: RangeInclusive<u8> = 3..=20;
    /// As many as tor has unless it is told.
    pub const USUAL_INTRO_POINTS: u8 = 3;
    /// Streams of one circuit at a time (`HiddenServiceMaxStreams`).
    pub const MOST_STREAMS: u16 = 100;

    /// The lines, each group with a comment that says what it is for.
    ///
    /// Names and ranges are those of tor's manual, which `tor --verify-config` checks.
    ///
    /// # Errors
    /// When a path cannot be written so that tor reads it as it is.
    pub fn render(&self) -> Result<String, PathNotWritable> {
        let folder = quoted(&self.folder, "folder of the service")?;
        let target = match &self.target {
            Target::Unix(path) => {
                // Quotes within quotes: the value is one string, of which the path is another.
                let path = quoted(path, "socket of the ingress")?;
                let value = format!("{} unix:{path}", self.virtual_port);
                format!("\"{}\"", escaped(&value))
            }
            other @ (Target::Tcp(_) | Target::Localhost(_) | Target::Name(..)) => {
                format!("{} {other}", self.virtual_port)
            }
        };
        let (rate, burst) = self.size.puzzle_queue();
        let (points, streams) = (self.intro_points, Self::MOST_STREAMS);
        let full = if self.ends_full_circuits {
            "# One more ends the circuit and every stream of it, those of an honest visitor with many tabs as well.\n\
             HiddenServiceMaxStreamsCloseCircuit 1\n"
        } else {
            "# One more is ignored, and the circuit's others go on; `--end-full-circuits` has tor end them all.\n\
             HiddenServiceMaxStreamsCloseCircuit 0\n"
        };
        let mut text = format!(
            "# Written by `tunica render torrc`. The lines of a service belong together.\n\
             HiddenServiceDir {folder}\n\
             HiddenServicePort {target}\n\
             # Each stream says through which circuit it comes; the ingress takes none that does not.\n\
             HiddenServiceExportCircuitID haproxy\n\
             # So many relays introduce clients.\n\
             HiddenServiceNumIntroductionPoints {points}\n\
             # Introduction points pass on so many introductions a second each, and so many at once.\n\
             HiddenServiceEnableIntroDoSDefense 1\n\
             HiddenServiceEnableIntroDoSRatePerSec 50\n\
             HiddenServiceEnableIntroDoSBurstPerSec 100\n\
             # Tor's own puzzle, solved before a circuit is built; the effort follows the load, from none on.\n\
             HiddenServicePoWDefensesEnabled 1\n\
             HiddenServicePoWQueueRate {rate}\n\
             HiddenServicePoWQueueBurst {burst}\n\
             # Streams of one circuit at a time. The ingress refuses earlier; this is what tor keeps to without it.\n\
             HiddenServiceMaxStreams {streams}\n\
             {full}"
        );
        if self.is_relay {
            text.push_str(
                "# Of relays alone: on a tor that is none, these do nothing for an onion service.\n\
                 DoSCircuitCreationEnabled 1\n\
                 DoSCircuitCreationMinConnections 5\n\
                 DoSCircuitCreationRate 10\n\
                 DoSCircuitCreationBurst 20\n\
                 # 2: an address over these limits gets no circuit for one to two hours.\n\
                 DoSCircuitCreationDefenseType 2\n\
                 DoSConnectionEnabled 1\n\
                 DoSConnectionMaxConcurrentCount 200\n\
                 # 2: an address has no more connections than that; others are closed at once.\n\
                 DoSConnectionDefenseType 2\n\
                 # Who asks for a rendezvous over a single hop is not answered.\n\
                 DoSRefuseSingleHopClientRendezvous 1\n",
            );
        }
        Ok(text)
    }
}

/// A path in quotes.
fn quoted(path: &Path, what: &'static str) -> Result<String, PathNotWritable> {
    let text = path.to_str().filter(|text| !text.chars().any(char::is_control));
    let mut quoted = String::new();
    // Writing to a text does not fail.
    let _ = write!(quoted, "\"{}\"", escaped(text.ok_or(PathNotWritable { what })?));
    Ok(quoted)
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::{Listener, Torrc},
        *,
    };

    fn service(folder: &str, target: Target) -> Service {
        Service {
            folder: folder.into(),
            virtual_port: NonZeroU16::new(80).unwrap(),
            target,
            size: Size::Usual,
            intro_points: Service::USUAL_INTRO_POINTS,
            ends_full_circuits: false,
            is_relay: false,
        }
    }

    #[test]
    fn shield_case_torrc_text() {
        let usual = service("/var/lib/tor/shop", Target::Tcp(([127, 0, 0, 1], 10_000).into()));
        let text = usual.render().unwrap();
        let lines = |text: &str| -> Vec<String> {
            text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
        };
        let of_service = [
            "HiddenServiceDir \"/var/lib/tor/shop\"",
            "HiddenServicePort 80 127.0.0.1:10000",
            "HiddenServiceExportCircuitID haproxy",
            "HiddenServiceNumIntroductionPoints 3",
            "HiddenServiceEnableIntroDoSDefense 1",
            "HiddenServiceEnableIntroDoSRatePerSec 50",
            "HiddenServiceEnableIntroDoSBurstPerSec 100",
            "HiddenServicePoWDefensesEnabled 1",
            "HiddenServicePoWQueueRate 25",
            "HiddenServicePoWQueueBurst 50",
            "HiddenServiceMaxStreams 100",
            "HiddenServiceMaxStreamsCloseCircuit 0",
        ];
        assert_eq!(lines(&text), of_service);
        let ending = Service { intro_points: 7, ends_full_circuits: true, ..usual.clone() }.render().unwrap();
        assert!(ending.contains("\nHiddenServiceNumIntroductionPoints 7\n"), "{ending}");
        assert!(ending.ends_with("\nHiddenServiceMaxStreamsCloseCircuit 1\n"), "{ending}");
        let large = Service { size: Size::Large, is_relay: true, ..usual }.render().unwrap();
        assert!(large.contains("QueueRate 100\n") && large.contains("QueueBurst 200\n"), "{large}");
        let of_relays = [
            "DoSCircuitCreationEnabled 1",
            "DoSCircuitCreationMinConnections 5",
            "DoSCircuitCreationRate 10",
            "DoSCircuitCreationBurst 20",
            "DoSCircuitCreationDefenseType 2",
            "DoSConnectionEnabled 1",
            "DoSConnectionMaxConcurrentCount 200",
            "DoSConnectionDefenseType 2",
            "DoSRefuseSingleHopClientRendezvous 1",
        ];
        assert_eq!(lines(&large).split_off(of_service.len()), of_relays);
        for bad in ["/a\nHiddenServicePort 22", "/a\u{7f}"] {
            let error = service(bad, Target::Localhost(1)).render().unwrap_err();
            assert!(
                error.to_string().starts_with("the folder of the service ")
                    && !error.to_string().contains("/a")
            );
            let error = service("/a", Target::Unix(bad.into())).render().unwrap_err();
            assert_eq!(error.what, "socket of the ingress");
        }
    }

    proptest! {
        /// For all paths that are written, what is written is read as it was meant, and has nothing wrong with it.
        #[test]
        fn what_is_written_is_read(folder in "/[ -~é]{0,20}", socket in "/[ -~é]{0,20}", port in 1u16..) {
            let socket = PathBuf::from(socket);
            for target in [Target::Unix(socket.clone()), Target::Tcp(([127, 0, 0, 1], port).into())] {
                let torrc = Torrc::parse(&service(&folder, target.clone()).render().unwrap());
                prop_assert_eq!(&torrc.problems, &[]);
                prop_assert!(torrc.ports.len() == 1 && torrc.ports[0].target == target && torrc.ports[0].exports_circuit);
                let ingress = [Listener::Unix(&socket), Listener::Tcp(([127, 0, 0, 1], port).into())];
                prop_assert_eq!(torrc.exposures(&[], &ingress, &[]), vec![]);
            }
        }
    }
}
