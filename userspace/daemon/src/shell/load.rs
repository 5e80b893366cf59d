//! What tells of load besides the front: the pressure on the CPUs, tor's CPU time, tor's MetricsPort.
//!
//! [`watch()`] reads them every [`READ_EVERY`] and tells what came of it; it decides nothing. Every file is read to a bound, and
//! tor's answer has 1.5 s and the bound of its codec.

use std::{
    fs::File,
    io::{self, Read as _},
    net::SocketAddr,
    path::PathBuf,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Request, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use nix::{time::clock_getcpuclockid, unistd::Pid};
use thiserror::Error;
use tokio::{
    net::TcpStream,
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval, timeout},
};
use tunica_core::id::TorGeneration;
use tunica_onion::tor_metrics::{MOST_BYTES, MetricsError, TorMetrics};

/// How often.
pub const READ_EVERY: Duration = Duration::from_secs(2);
/// How long tor may take to answer; less than [`READ_EVERY`], so that a slow tor delays no other reading.
const TIMEOUT: Duration = Duration::from_millis(1_500);
/// Longest file in `/proc` that is read.
const MOST_FILE_BYTES: u64 = 4_096;
/// The kernel's pressure on the CPUs (Linux, Documentation/accounting/psi.rst).
const PRESSURE: &str = "/proc/pressure/cpu";

/// What is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadPart {
    /// The pressure on the CPUs.
    Pressure,
    /// The CPU time of tor's process.
    TorProcess,
    /// Tor's MetricsPort.
    TorMetrics,
}

/// A tor process that is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TorProcess {
    /// Which.
    pub generation: TorGeneration,
    /// Its pid, if that is known to be one of this machine as the daemon sees it.
    pub pid: Option<u32>,
}

/// What was read at one moment. `None`: it was not asked for.
#[derive(Debug)]
pub struct Reading {
    /// How long somebody waited for a CPU since the host's start.
    pub stalled: Result<Duration, ReadingError>,
    /// The tor process that the rest is of; without one of which it is known, nothing of it can be compared with other readings.
    pub generation: Option<TorGeneration>,
    /// CPU time of tor's process since its start.
    pub cpu: Option<Result<Duration, ReadingError>>,
    /// Tor's metrics.
    pub metrics: Option<Result<TorMetrics, ReadingError>>,
}

/// Why something was not read.
#[derive(Debug, Error)]
pub enum ReadingError {
    /// The file cannot be read.
    #[error("{} cannot be read", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The file is not as the kernel writes it.
    #[error("{} is not as this daemon knows it", path.display())]
    Form {
        /// Which.
        path: PathBuf,
    },
    /// The clock of tor's process cannot be read.
    #[error("the CPU clock of tor's process cannot be read")]
    Clock(#[source] io::Error),
    /// Tor's MetricsPort cannot be reached.
    #[error("tor's metrics at {address} cannot be reached")]
    Connect {
        /// Where it should be.
        address: SocketAddr,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// It does not answer in time.
    #[error("tor's metrics at {address} did not come within {} ms", TIMEOUT.as_millis())]
    Late {
        /// Where.
        address: SocketAddr,
    },
    /// It does not speak HTTP.
    #[error("what answers at {address} does not speak HTTP as tor's MetricsPort does")]
    Http {
        /// Where.
        address: SocketAddr,
        /// What is wrong.
        #[source]
        source: hyper::Error,
    },
    /// It refuses.
    #[error("tor's metrics at {address} are refused with status {status}; see to MetricsPortPolicy in torrc")]
    Status {
        /// Where.
        address: SocketAddr,
        /// With this.
        status: u16,
    },
    /// Its answer breaks off, or is longer than any of tor's.
    #[error("tor's metrics at {0} break off, or have more than {MOST_BYTES} bytes")]
    Body(SocketAddr),
    /// Its answer is not text.
    #[error("tor's metrics at {0} are not text")]
    NotText(SocketAddr),
    /// Its answer cannot be understood.
    #[error(transparent)]
    Metrics(MetricsError),
}

impl LoadPart {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Pressure, Self::TorProcess, Self::TorMetrics];

    /// The word in labels.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Pressure => "pressure",
            Self::TorProcess => "tor_process",
            Self::TorMetrics => "tor_metrics",
        }
    }
}

/// Reads until nobody listens. `tor` is the process that the control port speaks to; `has_control` says whether there is one to
/// be spoken to, so that without it the metrics are those of the one tor there is.
pub async fn watch(
    metrics: Option<SocketAddr>,
    has_control: bool,
    tor: watch::Receiver<Option<TorProcess>>,
    readings: mpsc::Sender<Reading>,
) {
    let mut tick = interval(READ_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let process = *tor.borrow();
        let asked = match metrics {
            Some(address) => Some(ask(address).await),
            None => None,
        };
        // Tor may have started anew while it was asked.
        let is_same = process == *tor.borrow();
        let generation = match process {
            Some(process) => Some(process.generation).filter(|_| is_same),
            None => (!has_control).then_some(TorGeneration(0)),
        };
        let reading = Reading {
            stalled: pressure(),
            generation,
            cpu: process.filter(|_| is_same).and_then(|process| process.pid).map(cpu_time),
            metrics: asked,
        };
        if readings.send(reading).await.is_err() {
            return;
        }
    }
}

/// How long somebody waited for a CPU since the host's start.
///
/// # Errors
/// If this kernel does not tell: pressure is an option of its build and of its command line (`psi=1`).
pub fn pressure() -> Result<Duration, ReadingError> {
    let path = PathBuf::from(PRESSURE);
    let text = read(&path)?;
    stalled_of(&text).ok_or(ReadingError::Form { path })
}

/// `total` of the line `some`, microseconds.
fn stalled_of(text: &str) -> Option<Duration> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let total = some.split(' ').find_map(|word| word.strip_prefix("total="))?;
    Some(Duration::from_micros(total.parse().ok()?))
}

/// User and system time of all threads of a process since its start.
///
/// The kernel shows this clock of any process to any other (`pid_for_clock` in kernel/time/posix-cpu-timers.c), also where
/// `/proc` hides the processes of other accounts, as it does from the daemon's unit.
fn cpu_time(pid: u32) -> Result<Duration, ReadingError> {
    let clock = |error: nix::Error| ReadingError::Clock(error.into());
    // Zero would mean the caller (clock_getcpuclockid(3)).
    let pid = i32::try_from(pid)
        .ok()
        .filter(|pid| *pid > 0)
        .ok_or(ReadingError::Clock(io::ErrorKind::NotFound.into()))?;
    let time = clock_getcpuclockid(Pid::from_raw(pid)).and_then(|id| id.now()).map_err(clock)?;
    Ok(time.into())
}

fn read(path: &PathBuf) -> Result<String, ReadingError> {
    let mut text = String::new();
    let opened = File::open(path);
    opened
        .and_then(|file| file.take(MOST_FILE_BYTES).read_to_string(&mut text))
        .map_err(|source| ReadingError::File { path: path.clone(), source })?;
    Ok(text)
}

async fn ask(address: SocketAddr) -> Result<TorMetrics, ReadingError> {
    timeout(TIMEOUT, answer(address)).await.map_err(|_| ReadingError::Late { address })?
}

async fn answer(address: SocketAddr) -> Result<TorMetrics, ReadingError> {
    let http = |source| ReadingError::Http { address, source };
    let stream =
        TcpStream::connect(address).await.map_err(|source| ReadingError::Connect { address, source })?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(http)?;
    // Tor ends the connection after its answer; an error of the connection shows as one of the answer, too.
    let connection = tokio::spawn(connection);
    let outcome = async {
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.uri_mut() = hyper::Uri::from_static("/metrics");
        request.headers_mut().insert(HOST, hyper::header::HeaderValue::from_static("localhost"));
        let response = sender.send_request(request).await.map_err(http)?;
        let status = response.status();
        if !status.is_success() {
            return Err(ReadingError::Status { address, status: status.as_u16() });
        }
        let body = Limited::new(response.into_body(), MOST_BYTES).collect().await;
        let body = body.map_err(|_| ReadingError::Body(address))?.to_bytes();
        let text = str::from_utf8(&body).map_err(|_| ReadingError::NotText(address))?;
        TorMetrics::parse(text).map_err(ReadingError::Metrics)
    }
    .await;
    connection.abort();
    outcome
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    #[test]
    fn the_kernels_files_are_read() {
        let whole = "some avg10=0.12 avg60=1.05 avg300=0.76 total=3600000001\nfull avg10=0.00 total=7\n";
        for (text, expected) in [
            (whole, Some(Duration::from_micros(3_600_000_001))),
            ("some avg10=0.12 total=-1\n", None),
            ("full avg10=0.00 total=7\n", None),
            ("", None),
        ] {
            assert_eq!(stalled_of(text), expected, "{text}");
        }
    }

    #[test]
    fn the_cpu_time_of_another_process_is_its_own() {
        let mut busy = std::process::Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        let first = cpu_time(busy.id()).unwrap();
        while cpu_time(busy.id()).unwrap() < first + Duration::from_millis(20) {
            std::thread::yield_now();
        }
        busy.kill().unwrap();
        busy.wait().unwrap();
        for gone in [busy.id(), 0, u32::MAX] {
            let error = cpu_time(gone).unwrap_err();
            assert!(error.to_string().contains("CPU clock of tor's process cannot be read"), "{error}");
        }
    }

    /// What a server that gives this answer and closes is read as.
    async fn answered(answer: &'static [u8]) -> Result<TorMetrics, ReadingError> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1_024];
            let length = stream.read(&mut request).await.unwrap();
            assert!(request[..length].starts_with(b"GET /metrics HTTP/1.1\r\n"));
            // Whoever has read enough may have gone.
            let _ = stream.write_all(answer).await;
        });
        let outcome = ask(address).await;
        server.await.unwrap();
        outcome
    }

    #[tokio::test]
    async fn answers_of_tor_are_read_and_others_named() {
        let good = b"HTTP/1.0 200 OK\r\nContent-Length: 26\r\n\r\ntor_hs_rdv_num_total{} 12\n";
        assert_eq!(answered(good).await.unwrap().rendezvous, Some(12));
        for (answer, expected) in [
            (b"HTTP/1.0 403 Forbidden\r\n\r\n".as_slice(), "refused with status 403"),
            (b"SSH-2.0-x\r\n\r\n", "does not speak HTTP"),
            (b"", "does not speak HTTP"),
            (b"HTTP/1.0 200 OK\r\nContent-Length: 99\r\n\r\ntor", "break off"),
            (b"HTTP/1.0 200 OK\r\n\r\n\xff\n", "are not text"),
            (b"HTTP/1.0 200 OK\r\n\r\ntor_hs_rdv_num_total{} x\n", "line 1 of tor's metrics"),
        ] {
            let error = answered(answer).await.unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        assert!(ask(free).await.unwrap_err().to_string().contains("cannot be reached"));
        // One that takes the connection and is silent.
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let error = ask(silent.local_addr().unwrap()).await.unwrap_err().to_string();
        assert!(error.contains("did not come within"), "{error}");
    }
}
