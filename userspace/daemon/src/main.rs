//! `tunicad`: arguments → configuration (78 on error) → ledger and kernel → sockets → ready → loop → drain.

use std::{io::Write, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use tokio::sync::mpsc;
use tunica_api::{view::Answer, wire};
use tunica_config::Config;
use tunica_onion::haproxy_codec::TableName;
use tunica_systemd::Systemd;
use tunicad::{
    app::{self, App},
    event_loop::{self, Inputs},
    metrics,
    shell::{control_socket, front, front_process, haproxy, http, load, tor_control},
    telemetry::{self, Telemetry},
};

/// `EX_CONFIG` of sysexits.h.
const BAD_CONFIGURATION: u8 = 78;

/// Tunica's daemon: attaches the shield, keeps it true to the ledger, and answers `tunica`.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The configuration file.
    #[arg(long, default_value = tunica_config::DEFAULT_PATH)]
    config: PathBuf,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Look at this host as `tunica doctor` does, without a running daemon, and change nothing.
    Preflight {
        /// Accepted for `tunica doctor`; the output is one line of JSON either way.
        #[arg(long)]
        json: bool,
        /// The configuration file.
        #[arg(long)]
        config: Option<PathBuf>,
    },
    /// Print a reference page in Markdown.
    #[command(hide = true)]
    Reference {
        /// Which.
        page: Page,
    },
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Page {
    Messages,
    Metrics,
}

fn main() -> ExitCode {
    end_at_a_panic();
    let arguments = Arguments::parse();
    let result = match arguments.command {
        Some(Command::Reference { page: Page::Messages }) => print(&telemetry::messages_markdown()),
        Some(Command::Reference { page: Page::Metrics }) => print(&metrics::metrics_markdown()),
        Some(Command::Preflight { json: _, config }) => {
            return with_config(config.unwrap_or(arguments.config), |_, config, _| preflight(&config));
        }
        None => return with_config(arguments.config, serve),
    };
    finish(result)
}

/// Half a decision must not be acted on. The shield goes on by its last rules, and systemd starts the daemon again.
fn end_at_a_panic() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        std::process::abort();
    }));
}

/// Reads the configuration and goes on, or prints every problem and ends with 78.
fn with_config(path: PathBuf, go_on: impl FnOnce(PathBuf, Config, String) -> anyhow::Result<()>) -> ExitCode {
    match tunica_config::read_file_and_text(&path) {
        Ok((config, text)) => finish(go_on(path, config, text)),
        Err(problems) => {
            complain(&problems.to_string());
            ExitCode::from(BAD_CONFIGURATION)
        }
    }
}

fn finish(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("tunicad: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn preflight(config: &Config) -> anyhow::Result<()> {
    let line = wire::write_answer(&Answer::Doctor(app::doctor(config)))?;
    std::io::stdout().write_all(&line)?;
    Ok(())
}

fn serve(path: PathBuf, config: Config, text: String) -> anyhow::Result<()> {
    let telemetry = Telemetry::init(&config.log)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (control_sender, control) = control_socket::queues();
        let (http_sender, http) = mpsc::channel(64);
        // Sockets first: a second daemon must fail before it touches the kernel.
        let socket = control_socket::bind(&config.control)?;
        let (front_sender, front) = mpsc::channel(16);
        let ingress = if config.ingress.enabled { Some(front::bind(&config)?) } else { None };
        let pages = if config.http.enabled { Some(http::bind(config.http.listen).await?) } else { None };
        let mut app = App::start(&path, config, text, telemetry)?;
        let control_task =
            tokio::spawn(control_socket::serve(socket, control_sender, app.metrics().control()));
        let http_task =
            pages.map(|pages| tokio::spawn(http::serve(pages, http_sender, app.metrics().http())));
        let front_task = ingress.map(|socket| tokio::spawn(front::serve(socket, front_sender, app.orders())));
        let ingress = &app.config().ingress;
        let (process_task, front_process) = if ingress.enabled && ingress.start_front {
            let (process, acts, told) = front_process::link(app.config(), &path);
            app.set_front(acts);
            (Some(tokio::spawn(process.run())), told)
        } else {
            (None, mpsc::channel(1).1)
        };
        let (tor_task, tor) = match tor_options(app.config())? {
            Some(options) => {
                let (control, ends) = tor_control::link(options);
                app.set_tor(ends.acts);
                (Some(tokio::spawn(control.counting(app.metrics().tor_responses()).run())), ends.heard)
            }
            None => (None, mpsc::channel(1).1),
        };
        let (load_sender, load) = mpsc::channel(4);
        let load_task = tokio::spawn(load::watch(
            app.config().tor.metrics,
            app.config().tor.control.is_some(),
            app.tor_process(),
            load_sender,
        ));
        let (haproxy_task, haproxy) = match haproxy_options(app.config())? {
            Some(options) => {
                let (task, heard) = haproxy::link(options, app.haproxy_wish());
                (Some(tokio::spawn(task.run())), heard)
            }
            None => (None, mpsc::channel(1).1),
        };
        let inputs = Inputs {
            control,
            http,
            front,
            front_process,
            tor,
            haproxy,
            load,
            systemd: Systemd::from_environment()?,
        };
        let result = event_loop::run(&mut app, inputs).await;
        control_task.abort();
        load_task.abort();
        let tasks = http_task.into_iter().chain(front_task).chain(process_task).chain(tor_task);
        for task in tasks.chain(haproxy_task) {
            task.abort();
        }
        result
    })
}

/// How HAProxy is reached, where it is the ingress.
fn haproxy_options(config: &Config) -> anyhow::Result<Option<haproxy::HaproxyOptions>> {
    let Some(socket) = &config.haproxy.socket else { return Ok(None) };
    let table = TableName::new(&config.haproxy.table)?;
    Ok(Some(haproxy::HaproxyOptions::new(socket.clone(), table, config.circuits.ban_duration)))
}

/// How tor's control port is reached, where one is named.
fn tor_options(config: &Config) -> anyhow::Result<Option<tor_control::TorControlOptions>> {
    let tor = &config.tor;
    let Some(place) = &tor.control else { return Ok(None) };
    let mut options = tor_control::TorControlOptions::new(place.to_string().parse()?);
    options.cookie_file.clone_from(&tor.control_cookie_file);
    options.process_file = Some(config.tor_process());
    if let Some(path) = &tor.control_password_file {
        let password = std::fs::read_to_string(path).map_err(|error| {
            anyhow::anyhow!(
                "tor.control_password_file {} cannot be read ({error}): circuits could be neither watched nor closed; see to \
                 its permissions, or remove the key",
                path.display()
            )
        })?;
        options.password = Some(tor_control::Password::new(password.trim_end_matches('\n').to_owned()));
    }
    Ok(Some(options))
}

fn print(text: &str) -> anyhow::Result<()> {
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

fn complain(text: &str) {
    // Nothing is left to do if even standard error is closed.
    let _ = writeln!(std::io::stderr(), "{text}");
}
