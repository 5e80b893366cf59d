//! `tunica-front`: arguments → configuration (78 on error) → sockets → workers → ready → signal → drain.

use std::io::IsTerminal as _;
use std::{
    fs,
    io::Write,
    num::NonZeroU32,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use bytes::Bytes;
use clap::Parser;
use nix::sys::{
    resource::{Resource, getrlimit, setrlimit},
    stat::{Mode, umask},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::sleep,
};
use tracing_subscriber::EnvFilter;
use tunica_config::{Config, LogFormat, LogLevel, Protocol};
use tunica_core::refusal_log::RefusalLog;
use tunica_front::{
    arti::{self, Hosted, Plan},
    backend::{self, Backends},
    challenge::{ChallengeSettings, Challenges},
    circuits::{self, Circuits},
    http::{Http, HttpSettings},
    link, listener, memory, messages, refusals,
    roll_call::RollCall,
    successor::{self, Succession, Successor},
    welcome::{Carrier, Host},
    worker::{self, Room, Source},
};
use tunica_systemd::Systemd;

/// `EX_CONFIG` of sysexits.h.
const BAD_CONFIGURATION: u8 = 78;
/// Connections that are held beyond those that the policy counts: they have not said yet whose they are, or read why they
/// are refused.
const BESIDE: usize = 1_024;
/// Longest time for what was begun to end; tunica-front.service waits a little longer (`TimeoutStopSec=`).
const MOST_DRAIN: Duration = Duration::from_secs(30);
/// Largest maintenance page, bytes.
const MOST_PAGE_BYTES: u64 = 256 * 1024;
/// The maintenance page, unless the configuration names one.
const MAINTENANCE: &str = "<!doctype html><title>Maintenance</title><p>The service is down for maintenance. Please come \
                           back in a few minutes.</p>\n";

/// Tunica's ingress: takes what tor hands over, asks the circuit policy, and forwards what may pass.
///
/// SIGHUP starts another one in its place, which reads the configuration anew and serves before this one ends what it began.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The configuration file.
    #[arg(long, default_value = tunica_config::DEFAULT_PATH)]
    config: PathBuf,
    /// So many sockets are handed over, from descriptor 3 on. For tunicad.
    #[arg(long, hide = true)]
    sockets: Option<i32>,
    /// Say on standard output when it serves. For the process in whose place this one is started, see SIGHUP.
    #[arg(long, hide = true, requires = "sockets")]
    succeeds: bool,
    /// Print the address of the onion service that is hosted here (`arti.enabled`), and end.
    #[arg(long)]
    onion_address: bool,
    /// Print the messages of the log as a table in Markdown, and end. For the reference.
    #[arg(long, hide = true)]
    messages: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let handed_over = tunica_front::handed_over(arguments.sockets);
    if arguments.messages {
        return finish(print(&messages::messages_markdown()));
    }
    let config = match tunica_config::read_file(&arguments.config) {
        Ok(config) if config.ingress.enabled || arguments.onion_address => config,
        Ok(_) => {
            complain(&format!(
                "{}: ingress.enabled = false: nothing would be served; set it to true, or stop tunica-front.service",
                arguments.config.display()
            ));
            return ExitCode::from(BAD_CONFIGURATION);
        }
        Err(problems) => {
            complain(&problems.to_string());
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    if config.arti.enabled {
        // Arti reads nothing of what others could have written, and asks for no mode where it makes its locks.
        umask(Mode::from_bits_truncate(0o077));
    }
    let plan = match config.arti.enabled.then(|| Plan::new(&config)).transpose() {
        Ok(plan) => plan,
        Err(error) => {
            complain(&format!("{}: {error}", arguments.config.display()));
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    if arguments.onion_address {
        return finish(say_address(plan));
    }
    let origin = match (arguments.succeeds, arguments.sockets) {
        (true, _) => Origin::Predecessor,
        (false, Some(_)) => Origin::Daemon,
        (false, None) => Origin::Outside,
    };
    finish(serve(&config, &arguments.config, origin, handed_over, plan))
}

/// Who started this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// systemd, or somebody at a terminal.
    Outside,
    /// `tunicad` (`ingress.start_front`), which also replaces it.
    Daemon,
    /// The process in whose place it is.
    Predecessor,
}

/// How the time in which streams are taken ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Farewell {
    /// Nobody takes them any more.
    Stopped,
    /// Another process takes them.
    Succeeded,
}

fn finish(outcome: anyhow::Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("tunica-front: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Prints the onion address. No line of a log of ours has it.
fn say_address(plan: Option<Plan>) -> anyhow::Result<()> {
    let plan = plan.context(
        "arti.enabled is false, so the onion service is a tor process'; its address is in `hostname` in the HiddenServiceDir",
    )?;
    print(&format!("{}\n", plan.onion_address()?))
}

fn print(text: &str) -> anyhow::Result<()> {
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

/// What is logged. Arti tells much of its own steps, and of relays that a small network lacks.
fn filter(level: LogLevel) -> EnvFilter {
    match level {
        LogLevel::Debug => EnvFilter::new("debug,arti_=info,tor_=info,tor_netdir=error"),
        LogLevel::Info => EnvFilter::new("info,arti_=warn,tor_=warn,tor_netdir=error"),
        LogLevel::Error | LogLevel::Warn | LogLevel::Trace => EnvFilter::new(level.label()),
    }
}

fn serve(
    config: &Config,
    file: &Path,
    origin: Origin,
    handed_over: Vec<OwnedFd>,
    plan: Option<Plan>,
) -> anyhow::Result<()> {
    let filter = filter(config.log.level);
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match config.log.format {
        LogFormat::Text => subscriber.init(),
        LogFormat::Json => subscriber.json().init(),
    }
    let systemd = Systemd::from_environment()?;
    let ingress = &config.ingress;
    // As many as the administrator allows at most.
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raise the limit of open files")?;
    }
    // It has no use for what a program that it started could gain.
    nix::sys::prctl::set_no_new_privs().context("give up new privileges")?;
    let listens = plan.is_none();
    let was_handed_over = !handed_over.is_empty();
    // Where the service is hosted here nothing is listened on, and what was handed over is held for the next process alone: a
    // stream that came by it could claim any circuit.
    let sockets = if plan.is_some() { handed_over } else { listener::sockets(ingress, handed_over)? };
    let sockets = Arc::new(sockets);
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let shards = u32::try_from(workers).ok().and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN);
    let settings = config.circuit_settings()?;
    let most = settings.maxconn.get().saturating_add(settings.most_tarpits.get());
    let room = Room::new(usize::try_from(most).unwrap_or(usize::MAX).saturating_add(BESIDE));
    let restricts_methods = settings.restricts_methods;
    let asks_puzzles = settings.asks_puzzles;
    let challenges = Challenges::new(ChallengeSettings::of(config)).context("random bytes for puzzles")?;
    let circuits = Circuits::new(settings, challenges, shards);
    let backends = Backends::new(ingress.backends.clone(), ingress.sticky);
    let http = Arc::new(HttpSettings {
        request: ingress.request,
        keep_alive: ingress.keep_alive,
        client: ingress.client,
        server: ingress.server,
        connect: ingress.connect,
        head_bytes: usize::try_from(ingress.header_bytes.get()).unwrap_or(usize::MAX),
        body_bytes: ingress.body_bytes.get().into(),
        body_bytes_per_second: ingress.body_bytes_per_second.get().into(),
        maintenance: maintenance_page(ingress)?,
        backend_again: backend::again(ingress.health_every),
        post_path: restricts_methods.then(|| ingress.post_path.clone()),
        asks_puzzles,
        backend_grants: config.circuits.backend_grants,
    });
    let mut threads = Vec::new();
    let (ended, ends) = tokio::sync::mpsc::channel(workers.saturating_add(1));
    let mut within = Vec::new();
    let (intro, patience) = (ingress.request, ingress.server.min(MOST_DRAIN));
    let mut roll = RollCall::default();
    for number in 0..workers {
        let carrier = match ingress.protocol {
            Protocol::Http => {
                let (settings, backends) = (Arc::clone(&http), Arc::clone(&backends));
                Err((settings, backends))
            }
            Protocol::Tcp => Ok((Arc::clone(&backends), ingress.connect, ingress.client)),
        };
        let (circuits, room, sockets) = (Arc::clone(&circuits), Arc::clone(&room), Arc::clone(&sockets));
        let (ended, member) = (Ended(ended.clone()), roll.enrol());
        let streams = plan.is_some().then(|| {
            let (sender, streams) = tokio::sync::mpsc::channel(arti::WAITING);
            within.push(sender);
            streams
        });
        let body = move || {
            let carrier = match carrier {
                Err((settings, backends)) => Carrier::Http(Box::new(Http::new(settings, backends))),
                Ok((backends, connect, idle)) => Carrier::Tcp { backends, connect, idle },
            };
            let source = streams.map_or(Source::Sockets(&sockets), Source::Within);
            let outcome = worker::run(source, Host { circuits, carrier, intro }, &room, member, patience);
            drop(ended);
            outcome
        };
        threads.push(thread::Builder::new().name(format!("worker{number}")).spawn(body)?);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = Ended(ended);
    let hosted = match plan {
        Some(plan) => Some(Hosted::begin(plan, Arc::clone(&circuits), within, roll.enrol(), ended)?),
        None => {
            drop(within);
            None
        }
    };
    let mut log = config.circuits.log_refusals.then(RefusalLog::default);
    let succession = Succession::new(file).context("find this program")?;
    let own = Own { config, origin, succession, systemd, sockets: &sockets };
    let farewell = runtime.block_on(watch_over(&own, &circuits, &backends, &roll, log.as_mut(), ends))?;
    circuits.drain();
    let until = Instant::now() + patience;
    for thread in threads {
        match thread.join() {
            Ok(result) => result.context("serve")?,
            Err(_) => anyhow::bail!("a worker ended in a fault of its own"),
        }
    }
    if let Some(log) = &mut log {
        refusals::say(&circuits, log);
    }
    if let Some(hosted) = hosted {
        hosted.end(until.saturating_duration_since(Instant::now()));
    }
    let is_left = listens && farewell == Farewell::Stopped;
    if let Some(path) = listener::socket_files(ingress, was_handed_over).filter(|_| is_left) {
        // A file that stays is found to be stale by the next process.
        let _ = fs::remove_file(path);
    }
    Ok(())
}

/// This process, as it was started.
struct Own<'o> {
    config: &'o Config,
    origin: Origin,
    succession: Succession,
    systemd: Systemd,
    sockets: &'o [OwnedFd],
}

/// Health checks, the line to the daemon and signs of life, until somebody wants this process to end, or another one is in its
/// place.
async fn watch_over(
    own: &Own<'_>,
    circuits: &Arc<Circuits>,
    backends: &Arc<Backends>,
    roll: &RollCall,
    log: Option<&mut RefusalLog>,
    mut ends: tokio::sync::mpsc::Receiver<()>,
) -> anyhow::Result<Farewell> {
    let Own { config, origin, systemd, .. } = own;
    let ingress = &config.ingress;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let path = (ingress.protocol == Protocol::Http).then(|| ingress.health_path.clone());
    let socket = config.front_socket();
    // Numbers of processes come again, in a container as a rule.
    let process = circuits::now().0;
    let speaker = link::Speaker { process, configuration: tunica_config::front_mark(config) };
    let serving = async {
        // Each worker listens from here on, so that whoever hears of this one may end another in its place. Where the service is
        // hosted here it is begun; that it is reached may take long, and starting this again would not help.
        roll.call().await;
        match origin {
            Origin::Outside | Origin::Daemon => systemd.ready(),
            // That one tells systemd. Where it was ended meanwhile, this one was meant as well.
            Origin::Predecessor => successor::say_that_it_serves()
                .context("tell the process in whose place this one was started, which has ended already")?,
        }
        tracing::info!(message_id = "front_ready", "the ingress serves");
        tokio::select! {
            () = Arc::clone(backends).watch(path, ingress.health_every, ingress.connect) => {}
            () = link::speak(&socket, Arc::clone(circuits), Arc::clone(backends), speaker) => {}
            () = give_signs_of_life(systemd, roll) => {}
            () = refusals::tell(circuits, log) => {}
            () = memory::give_back() => {}
        }
        anyhow::Ok(())
    };
    let succeeded = async {
        loop {
            if hangup.recv().await.is_none() {
                std::future::pending::<()>().await;
            }
            if let Some(successor) = own.replace().await {
                return successor;
            }
        }
    };
    tokio::select! {
        outcome = serving => outcome?,
        next = succeeded => {
            systemd.succeeded_by(next.pid);
            tracing::info!(
                message_id = "front_succeeded", pid = next.pid,
                "another process serves in this one's place, which ends what it has"
            );
            return Ok(Farewell::Succeeded);
        }
        // A worker that cannot go on: the others end what they have, and this process says why.
        _ = ends.recv() => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    systemd.stopping();
    tracing::info!(message_id = "front_stopping", "the ingress takes no more streams, and ends those it has");
    Ok(Farewell::Stopped)
}

impl Own<'_> {
    /// Has another process in this one's place, if that can be.
    async fn replace(&self) -> Option<Successor> {
        if self.origin == Origin::Daemon {
            tracing::warn!(
                message_id = "front_reload_refused",
                "tunicad started this ingress and replaces it: `tunica reload` has both read the configuration anew"
            );
            return None;
        }
        self.systemd.reloading();
        match self.succession.begin(self.sockets).await {
            Ok(successor) => Some(successor),
            Err(error) => {
                tracing::error!(
                    message_id = "front_reload_failed", %error,
                    "no other process serves in this one's place, which goes on as it is: mend what the message says, and \
                     reload again"
                );
                self.systemd.ready();
                None
            }
        }
    }
}

/// Feeds systemd's watchdog as long as all that carries streams takes its turns. Never returns.
async fn give_signs_of_life(systemd: &Systemd, roll: &RollCall) {
    let Some(every) = systemd.watchdog_every() else { return std::future::pending().await };
    loop {
        roll.call().await;
        systemd.feed_watchdog();
        sleep(every).await;
    }
}

/// Tells that a worker has ended, however it did.
struct Ended(tokio::sync::mpsc::Sender<()>);

impl Drop for Ended {
    fn drop(&mut self) {
        // Nobody listens any more where the whole process ends.
        let _ = self.0.try_send(());
    }
}

fn maintenance_page(ingress: &tunica_config::Ingress) -> anyhow::Result<Bytes> {
    let Some(path) = &ingress.maintenance_page else { return Ok(Bytes::from_static(MAINTENANCE.as_bytes())) };
    let what = || {
        format!(
            "read ingress.maintenance_page {}: visitors would see nothing while no backend is well",
            path.display()
        )
    };
    let length = fs::metadata(path).with_context(what)?.len();
    anyhow::ensure!(
        length <= MOST_PAGE_BYTES,
        "ingress.maintenance_page {} has {length} bytes and may have {MOST_PAGE_BYTES}; make it smaller",
        path.display()
    );
    Ok(fs::read(path).with_context(what)?.into())
}

fn complain(text: &str) {
    // Nothing is left to do if even standard error is closed.
    let _ = writeln!(std::io::stderr(), "{text}");
}
