//! The daemon's log: lines on standard error, as text or JSON.
//!
//! Every line bears a `message_id` that never changes meaning and, inside an event or request, an `event_id` that all
//! lines of that event share. What identifies a client appears at the debug level alone.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering},
};

use thiserror::Error;
use tracing::{Span, Subscriber};
use tracing_subscriber::{
    Layer, Registry,
    filter::LevelFilter,
    fmt::MakeWriter,
    layer::SubscriberExt,
    registry::LookupSpan,
    reload,
    util::{SubscriberInitExt, TryInitError},
};
use tunica_config::{Log, LogFormat, LogLevel};
use tunica_core::{
    message::{Message, table},
    notice::{Level, Notice},
};

/// The log, once it is set up.
#[derive(Clone, Debug)]
pub struct Telemetry {
    level: reload::Handle<LevelFilter, Registry>,
}

/// Why there is no log.
#[derive(Debug, Error)]
#[error(
    "the log cannot be set up ({0}): nothing would be reported, so the daemon does not start; please report this"
)]
pub struct InitError(#[source] TryInitError);

impl Telemetry {
    /// Sets up the log of this process, on standard error.
    ///
    /// # Errors
    /// If the process has one already.
    pub fn init(log: &Log) -> Result<Self, InitError> {
        let (subscriber, telemetry) = subscriber(log.level, log.format, io::stderr);
        subscriber.try_init().map_err(InitError)?;
        Ok(telemetry)
    }

    /// Changes from which level on lines are written. The format stays until the next start.
    pub fn set_level(&self, level: LogLevel) {
        // It fails only if the log is gone, and then nobody can be told.
        let _ = self.level.modify(|filter| *filter = filter_of(level));
    }
}

const fn filter_of(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

fn subscriber<W>(level: LogLevel, format: LogFormat, writer: W) -> (impl Subscriber + Send + Sync, Telemetry)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(filter_of(level));
    let subscriber = tracing_subscriber::registry().with(filter).with(lines(format, writer));
    (subscriber, Telemetry { level: handle })
}

fn lines<S, W>(format: LogFormat, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(false).with_target(false);
    match format {
        LogFormat::Text => layer.boxed(),
        LogFormat::Json => layer.json().flatten_event(true).with_span_list(false).boxed(),
    }
}

/// A span for one event of the loop or one request; its lines bear the next number as `event_id`.
///
/// `kind` says what sort of event it is.
pub fn event_span(kind: &'static str) -> Span {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let event_id = NEXT.fetch_add(1, Ordering::Relaxed);
    // At the error level, so that no level loses the number.
    tracing::error_span!("event", event_id, kind)
}

/// Writes a notice: its sentence at its level, and whom it concerns at the debug level.
pub fn log_notice(notice: &Notice) {
    let message_id = notice.name();
    match notice.level() {
        Level::Info => tracing::info!(message_id, "{notice}"),
        Level::Warn => tracing::warn!(message_id, "{notice}"),
    }
    if let Some(subject) = notice.subject() {
        tracing::debug!(message_id, %subject, "whom the line before concerns");
    }
}

tunica_core::messages! {
    /// The messages of the daemon itself; the coordinator's notices are the others.
    "daemon_ready", "info", "The daemon has started and answers on its sockets.";
    "daemon_stopping", "info", "The daemon ends; the shield stays attached and goes on with what it was told last.";
    "shield_attached", "info", "The shield was attached to an interface.";
    "services_misled", "error", "By tor's own configuration an onion service publishes what must stay on this host, or none leads to the ingress, or one leads there without telling circuits, or past it to a backend; the message says what to write in torrc. `tunica status` shows it until tor says otherwise.";
    "shield_attach_failed", "error",
        "The shield could not be attached to an interface, which stays unprotected; it is tried again every 30 s.";
    "shield_detached", "warn", "The shield was detached from an interface, because of a bypass or because the configuration no longer names it.";
    "nft_applied", "info", "nftables stands in for the program on the interfaces named, because it cannot be attached there or because `shield.attach` says so.";
    "nft_removed", "info", "The table `inet tunica` was removed: the program is attached, or the shield is bypassed.";
    "nft_failed", "error", "nftables cannot stand in, or its table cannot be removed; it is tried again every 30 s.";
    "stale_pin_left", "warn", "A pin of an earlier daemon could not be removed; remove it by hand if `tunica doctor` names it.";
    "program_refused", "warn", "The kernel took the shield but refused a program that it jumps to: `cookie` answers SYN floods, `segment` judges segments by their sockets. The shield does without it; the message names the kernel's reason.";
    "self_test_failed", "debug", "A test of the cookies of a port could not be run or ended; the message names the step and the kernel's reason. The port counts as not tested.";
    "policy_in_force", "info", "The kernel judges by the policy that the configuration asks for.";
    "drift_repaired", "warn", "The kernel's state was not what it should be and was repaired; look who else changes it.";
    "reconcile_failed", "error", "The kernel's state could not be brought to what it should be; it is tried again every 30 s.";
    "own_addresses_unread", "warn", "The host's own addresses could not be read; those known before stay in force.";
    "own_addresses_changed", "info", "The host's own addresses changed and are guarded as they are now.";
    "interfaces_changed", "info",
        "An interface of the configuration came, went, was set up or down, or changed in another way; the shield follows.";
    "samples_lost", "warn", "Lines about new circuits, which `sybil.samples` asks for, could not be written; the message names the system's reason. Those of that time are lost, nothing else is.";
    "load_unread", "warn",
        "Something that tells of load cannot be read, so the load level does without it; `tunica doctor` says what to do. It is said again when the reason changes.";
    "host_concern", "warn",
        "Disk, memory or clock of the host is not well or not known; it is said again only after it was well.";
    "host_watch_failed", "warn",
        "The kernel's messages about addresses and interfaces cannot be heard; changes are found every 30 s instead.";
    "ledger_failed", "error", "A change could not be made durable and, unless it is a bypass or attack mode, was not made; see to the disk.";
    "ledger_damaged", "error", "The ledger could not be read and was set aside; bans and allow entries made before are not in force.";
    "config_reloaded", "info", "The configuration file was read again and is in force.";
    "first_start_on_trial", "warn", "This is the first start, and `shield.first_attach_confirm_seconds` puts it on trial: unless `tunica confirm` comes in time, the shield is bypassed.";
    "config_undone", "error", "The daemon started with the configuration before a trial that nobody confirmed; `tunica reload` brings the file into force.";
    "config_refused", "error", "The configuration file was read again and has faults; the one before stays in force.";
    "candidate_loaded", "info", "A candidate is tried on every packet beside the configuration in force, and decides nothing.";
    "candidate_dropped", "info", "The candidate is tried no more; the field `why` says what ended it.";
    "configuration_warning", "warn", "The configuration is in force, but something in it is rarely what is wanted.";
    "tor_control_connected", "info", "Tor's control port is connected and the login done; the field `generation` grows with each start of tor.";
    "tor_control_lost", "warn", "Tor's control port cannot be reached, or no longer; the message names the reason. It is tried again, each time after a longer pause, and said again only for another reason.";
    "tor_control_login", "debug", "Tor accepted the login; the message says by which proof.";
    "tor_control_missed", "warn", "Changes of tor's circuits were dropped because the daemon was too slow, or could not be read; the whole list of circuits is asked for instead. It is said once for a connection.";
    "tor_control_unread", "warn", "An event from tor could not be read; it is said once for a connection. Tor may be older or newer than the versions that are known.";
    "tor_process_unkept", "warn", "Which tor process the daemon speaks to could not be read from its file or kept there; the message says what follows. It is said again only for another reason.";
    "tor_peers_read_failed", "warn", "Tor's connections could not be read; the peers known before stay protected for `tor.keep_seconds`.";
    "control_request_refused", "info", "A request on the control socket was refused by the socket's own rules.";
    "control_socket_closed_to_group", "warn", "The control socket could not be opened to its group, so only root and the daemon's user can use it.";
    "control_failed", "warn", "A connection to the control socket could not be taken; the daemon goes on.";
    "metrics_failed", "error", "The metrics could not be written as text; please report this.";
    "gate_attached", "info", "The circuit gate is attached to `lo`: banned circuits are refused before the ingress wakes up for them.";
    "gate_detached", "info", "The circuit gate is detached from `lo`, because there is no ingress any more, or `ingress.gate` is `off`.";
    "gate_failed", "warn", "The circuit gate is not attached or could not be changed; the ingress refuses banned circuits itself, at more cost. It is tried again every 30 s.";
    "front_adopted", "info", "The ingress that an earlier daemon started serves on, and this daemon looks after it.";
    "front_ended", "error", "The ingress that this daemon started has ended; the message says how, and whether it is started again.";
    "front_socket_busy", "debug", "The ingress' sockets are taken, most likely by an ingress that an earlier daemon started.";
    "token_keys_amiss", "warn", "The keys of VIP tokens could not be read or kept, or others could read them; the message says what follows. `tunica status` shows it.";
    "tokens_revoked", "warn", "An operator made every VIP token worthless by `tunica token revoke --all`.";
    "front_trouble", "warn", "The ingress could not be started or told something; the message says why. `tunica status` shows it until it runs.";
    "haproxy_connected", "info", "HAProxy answers on its socket; its table of circuits follows what operators and the daemon say.";
    "haproxy_lost", "warn", "HAProxy does not answer on its socket, or refuses; the message names the reason. Its own rules go on, bans of operators do not reach it. It is tried again every 2 s, and said again only for another reason.";
    "front_here", "info", "The ingress reports to this daemon.";
    "front_lost", "warn", "The ingress broke off or does not speak as it should; it serves on with its last orders.";
    "front_refused", "warn", "An account that is neither root nor `ingress.user` spoke to the daemon as the ingress; nothing of it was read.";
    "http_failed", "warn", "A connection to the HTTP server could not be taken; the daemon goes on.";
}

/// The table of the reference: every message of the log with level and meaning, as Markdown.
pub fn messages_markdown() -> String {
    let notices = Notice::KINDS.iter().map(|kind| {
        let level = match kind.level {
            Level::Info => "info",
            Level::Warn => "warn",
        };
        Message { name: kind.name, level, meaning: kind.meaning }
    });
    table(MESSAGES.iter().copied().chain(notices))
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        fs,
        path::Path,
        sync::{Arc, Mutex},
    };

    use tunica_core::id::PacketSource;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Lines {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    /// What `act` writes to the log.
    fn logged(level: LogLevel, format: LogFormat, act: impl FnOnce(&Telemetry)) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let (subscriber, telemetry) = subscriber(level, format, move || writer.clone());
        tracing::subscriber::with_default(subscriber, || act(&telemetry));
        lines.text()
    }

    fn lifted() -> Notice {
        Notice::BanLifted { target: PacketSource::of([198, 51, 100, 7].into()).into(), id: 7 }
    }

    #[test]
    fn a_notice_shows_its_subject_at_debug_alone() {
        for (level, format) in [
            (LogLevel::Info, LogFormat::Text),
            (LogLevel::Info, LogFormat::Json),
            (LogLevel::Warn, LogFormat::Text),
        ] {
            let text = logged(level, format, |_| log_notice(&lifted()));
            assert!(!text.contains("198.51"), "{text}");
            assert_eq!(text.contains("ban 7 lifted"), level == LogLevel::Info, "{text}");
        }
        let text = logged(LogLevel::Debug, LogFormat::Text, |_| log_notice(&lifted()));
        assert!(text.contains("198.51.100.7/32"), "{text}");
        let withdrawn = Notice::BypassOn;
        let text = logged(LogLevel::Warn, LogFormat::Text, |_| log_notice(&withdrawn));
        assert!(text.contains("WARN") && text.contains("message_id=\"bypass_on\""), "{text}");
    }

    #[test]
    fn lines_of_one_event_share_its_number() {
        let text = logged(LogLevel::Warn, LogFormat::Json, |_| {
            for _ in 0..2 {
                let _span = event_span("control").entered();
                tracing::warn!(message_id = "stale_pin_left", "first");
                tracing::error!(message_id = "ledger_failed", "second");
            }
        });
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let ids: Vec<u64> = lines.iter().map(|line| line["span"]["event_id"].as_u64().unwrap()).collect();
        assert_eq!((ids[0], ids[2]), (ids[1], ids[3]));
        assert!(ids[2] > ids[0]);
        assert_eq!(lines[1]["message_id"], "ledger_failed");
        assert_eq!(lines[1]["message"], "second");
        assert_eq!(lines[1]["level"], "ERROR");
        assert_eq!(lines[1]["span"]["kind"], "control");
    }

    #[test]
    fn the_level_changes_while_running() {
        let text = logged(LogLevel::Error, LogFormat::Text, |telemetry| {
            tracing::info!(message_id = "daemon_ready", "unheard");
            telemetry.set_level(LogLevel::Info);
            tracing::info!(message_id = "daemon_ready", "heard");
            telemetry.set_level(LogLevel::Warn);
            tracing::info!(message_id = "daemon_ready", "unheard again");
        });
        assert_eq!(text.matches("heard").count(), 1, "{text}");
    }

    #[test]
    fn names_are_unique_and_the_reference_lists_each() {
        let names: BTreeSet<&str> = MESSAGES
            .iter()
            .map(|message| message.name)
            .chain(Notice::KINDS.iter().map(|kind| kind.name))
            .collect();
        assert_eq!(names.len(), MESSAGES.len() + Notice::KINDS.len());
        let page = messages_markdown();
        assert_eq!(page.lines().filter(|line| line.starts_with("| `")).count(), names.len());
        for message in MESSAGES {
            assert!(message.meaning.ends_with('.'), "{}", message.meaning);
        }
    }

    /// Every `tracing::level!(message_id = "name"` of this crate, as name and level.
    fn written(folder: &Path, found: &mut Vec<(String, String)>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                written(&path, found);
                continue;
            }
            // The tests of this module write messages as they like.
            let text = fs::read_to_string(&path).unwrap();
            let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
            found.extend(text.split("tracing::").skip(1).filter_map(|call| {
                let (level, (_, name)) = (call.split_once('!')?.0, call.split_once("message_id = \"")?);
                Some((name.split_once('"')?.0.to_owned(), level.to_owned()))
            }));
        }
    }

    #[test]
    fn the_messages_that_the_daemon_writes_are_those_that_are_listed() {
        let mut found = Vec::new();
        written(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
        let found: BTreeSet<(String, String)> = found.into_iter().collect();
        let listed: BTreeSet<(String, String)> =
            MESSAGES.iter().map(|message| (message.name.to_owned(), message.level.to_owned())).collect();
        assert_eq!(found, listed);
    }
}
