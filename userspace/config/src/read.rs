//! From text to a [`Config`] or to all its problems.

mod arti;
mod circuits;
mod ingress;
mod load;
mod sybil;

use std::{
    fs, io,
    num::NonZeroU32,
    ops::Range,
    path::{Path, PathBuf},
    time::Duration,
};

use thiserror::Error;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};
use tunica_common::gcra::{self, Limit};
use tunica_core::limits::SECOND_NS;

use crate::{
    changes::Values,
    circuits::Circuits,
    config::{
        Bans, Config, Control, Cookies, DropLog, Events, Evidence, Http, Icmp, Ledger, Log, Nft, NoSocket,
        PortSyn, Ports, Sanity, Shield, Syn, Tables, Tor, Uninspected,
    },
    ingress::Ingress,
    keys::{self, Absent, Key, LONGEST_DEBT_MINUTES, REFERENCE, SECTIONS},
    nearest::nearest,
    problem::{Problem, Problems},
    rule::Rule,
};

/// Why a file gave no configuration.
#[derive(Debug, Error)]
pub enum ReadFileError {
    /// The file could not be read.
    #[error("{}: cannot be read, so there is no configuration; name another file, or let tunicad read this one", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file has faults.
    #[error(transparent)]
    Problems(Problems),
}

/// Reads the file at `path`.
///
/// # Errors
///
/// When it cannot be read, is not UTF-8, or has faults; then all of them.
pub fn read_file(path: &Path) -> Result<Config, ReadFileError> {
    read_file_and_text(path).map(|(config, _)| config)
}

/// Reads the file at `path`, and keeps the text it was read from.
///
/// # Errors
///
/// See [`read_file`].
pub fn read_file_and_text(path: &Path) -> Result<(Config, String), ReadFileError> {
    let bytes = fs::read(path).map_err(|source| ReadFileError::Open { path: path.to_owned(), source })?;
    let origin = path.display().to_string();
    let text = String::from_utf8(bytes).map_err(|error| {
        let place = error.utf8_error().valid_up_to();
        let good = String::from_utf8_lossy(error.as_bytes().get(..place).unwrap_or_default()).into_owned();
        let mut reader = Reader::new(&good, &origin);
        reader.report(
            place..place,
            None,
            Some("a byte that is not UTF-8".to_owned()),
            "TOML is UTF-8, so the file cannot be understood",
            "save the file as UTF-8",
        );
        ReadFileError::Problems(Problems::new(reader.problems))
    })?;
    let config = read(&text, &origin).map_err(ReadFileError::Problems)?;
    Ok((config, text))
}

/// Reads a configuration from `text`; `origin` is what problems call it.
///
/// # Errors
///
/// All faults of the text. Where it is no TOML from some line on, those are the faults before that line, and the faults
/// of TOML.
pub fn read(text: &str, origin: &str) -> Result<Config, Problems> {
    let (document, errors) = DeTable::parse_recoverable(text);
    let root = document.get_ref();
    let mut reader = Reader::new(text, origin);

    let mut broken_from: Option<usize> = None;
    let mut open_lists = Vec::new();
    for error in &errors {
        let span = error.span().unwrap_or(text.len()..text.len());
        if error.message() == "duplicate key" {
            reader.report_repeated(root, span);
        } else {
            let (line, _) = reader.position(span.start);
            broken_from = Some(broken_from.map_or(line, |first| first.min(line)));
            // A list that is not closed swallows what follows; one report tells it all.
            let list = list_around(root, span.start);
            if list.is_none() || !open_lists.contains(&list) {
                reader.report_syntax(span, error.message(), list);
                open_lists.push(list);
            }
        }
    }
    reader.is_partial = broken_from.is_some();
    reader.check_names(root, &mut Vec::new());
    let config = reader.config(root);

    let mut problems = reader.problems;
    if let Some(first) = broken_from {
        // Beyond a fault of TOML the values are guesses.
        problems.retain(|problem| problem.key.is_none() || problem.line < first);
        problems.sort_by_key(|problem| (problem.line, problem.column));
        // A fault of TOML drags others after it on the same line.
        problems
            .dedup_by(|later, first| later.key.is_none() && first.key.is_none() && later.line == first.line);
    }
    match config {
        Some(config) if problems.is_empty() => Ok(config),
        Some(_) | None => Err(Problems::new(problems)),
    }
}

struct Reader<'t> {
    text: &'t str,
    origin: &'t str,
    /// Where each line begins, in bytes.
    lines: Vec<usize>,
    /// Whether part of the text is no TOML, so that a key that seems absent may stand there.
    is_partial: bool,
    /// The good values, by key, defaults included.
    values: Values,
    problems: Vec<Problem>,
}

/// A value and where it stands; `None` where it is the default.
struct Read<T> {
    value: T,
    span: Option<Range<usize>>,
}

/// Most characters of a text that a problem repeats.
const SHOWN: usize = 60;

impl<'t> Reader<'t> {
    fn new(text: &'t str, origin: &'t str) -> Self {
        let starts = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(place, _)| place + 1);
        Self {
            text,
            origin,
            lines: std::iter::once(0).chain(starts).collect(),
            is_partial: false,
            values: Values::new(),
            problems: Vec::new(),
        }
    }

    /// Line and column of a byte, both from 1, the column in characters.
    fn position(&self, place: usize) -> (usize, usize) {
        let place = self.text.floor_char_boundary(place);
        let line = self.lines.partition_point(|start| *start <= place);
        let start = line.checked_sub(1).and_then(|line| self.lines.get(line)).copied().unwrap_or(0);
        let before = self.text.get(start..place).unwrap_or_default().trim_start_matches('\u{feff}');
        (line, before.chars().count() + 1)
    }

    fn report(
        &mut self,
        span: Range<usize>,
        key: Option<String>,
        found: Option<String>,
        consequence: impl Into<String>,
        fix: impl Into<String>,
    ) {
        let (line, column) = self.position(span.start);
        let (origin, consequence, fix) = (self.origin.to_owned(), consequence.into(), fix.into());
        self.problems.push(Problem { origin, line, column, key, found, consequence, fix });
    }

    /// The text of `span` as one short line without control characters.
    fn excerpt(&self, span: Range<usize>) -> String {
        let bounds = self.text.floor_char_boundary(span.start)..self.text.floor_char_boundary(span.end);
        shorten(self.text.get(bounds).unwrap_or_default())
    }

    /// The rest of the line from `place` on.
    fn rest_of_line(&self, place: usize) -> &'t str {
        let rest = self.text.get(self.text.floor_char_boundary(place)..).unwrap_or_default();
        rest.split('\n').next().unwrap_or_default()
    }

    /// Reports text that is no TOML; `list` is where the list around it begins.
    fn report_syntax(&mut self, span: Range<usize>, message: &str, list: Option<usize>) {
        let (line, _) = self.position(span.start);
        let start = line.checked_sub(1).and_then(|line| self.lines.get(line)).copied().unwrap_or(0);
        let found = shorten(self.rest_of_line(start));
        let found = if found.is_empty() { "end of a line".to_owned() } else { found };
        let inside = match list.map(|list| self.position(list).0) {
            Some(opened) if opened < line => format!(", in the list that line {opened} opens"),
            Some(_) | None => String::new(),
        };
        self.report(
            span,
            None,
            Some(found),
            format!("this is not TOML ({message}{inside}), so nothing in the file can take effect"),
            "correct the line: `key = value`, texts in quotes, lists in brackets",
        );
    }

    fn report_repeated(&mut self, root: &DeTable<'_>, span: Range<usize>) {
        let raw = self.excerpt(span.clone());
        let (line, _) = self.position(span.start);
        let start = line.checked_sub(1).and_then(|line| self.lines.get(line)).copied().unwrap_or(0);
        let header = self.rest_of_line(start).trim();
        if header.starts_with('[') {
            let key = Some(shorten(header));
            self.report(
                span,
                key,
                None,
                "this section is opened twice, so its keys are in doubt",
                "join the two",
            );
            return;
        }
        let first = first_before(root, &mut Vec::new(), raw.trim_matches(['"', '\'']), span.start);
        let tail = self.rest_of_line(span.end).trim_start().trim_start_matches('=').trim_start();
        let value = DeValue::parse_recoverable(tail).0.span();
        let found = tail.get(value).filter(|value| !value.is_empty()).unwrap_or(tail);
        let (key, fix) = match first {
            Some((name, first)) => (
                name,
                format!(
                    "remove this line or line {}, where the key has a value already",
                    self.position(first).0
                ),
            ),
            None => (raw, "remove one of the two".to_owned()),
        };
        self.report(
            span,
            Some(key),
            Some(shorten(found)),
            "the key is given twice, so which value counts is in doubt",
            fix,
        );
    }

    /// Reports each key that is unknown, and each value that stands where a section belongs.
    fn check_names(&mut self, table: &DeTable<'_>, path: &mut Vec<String>) {
        for (key, value) in table.iter() {
            path.push(bare_or_quoted(key.get_ref()));
            let name = path.join(".");
            let is_section = SECTIONS.iter().any(|(section, _)| *section == name);
            match (is_section, value.get_ref().as_table()) {
                (true, Some(section)) => self.check_names(section, path),
                (true, None) => self.report_no_section(&name, key.span(), value),
                (false, section) => {
                    if !REFERENCE.iter().any(|doc| doc.key == name) {
                        self.report_unknown(&name, key.span(), value, section.is_some());
                    }
                }
            }
            path.pop();
        }
    }

    fn report_no_section(&mut self, name: &str, key: Range<usize>, value: &Spanned<DeValue<'_>>) {
        if value.span().contains(&key.start) {
            let consequence = "double brackets make a list of sections, and there is only one of this name";
            self.report(
                value.span(),
                Some(format!("[[{name}]]")),
                None,
                consequence,
                format!("write [{name}]"),
            );
            return;
        }
        let found = self.excerpt(value.span());
        let keys = section_keys(name).collect::<Vec<_>>().join(", ");
        self.report(
            key,
            Some(name.to_owned()),
            Some(found),
            "this is the name of a section, so a value has no meaning here",
            format!("write [{name}] on a line of its own, and below it its keys, which are {keys}"),
        );
    }

    fn report_unknown(
        &mut self,
        name: &str,
        span: Range<usize>,
        value: &Spanned<DeValue<'_>>,
        is_section: bool,
    ) {
        let name_shown = shorten(name);
        if is_section {
            let known = SECTIONS.iter().map(|(section, _)| *section);
            let fix = match nearest_path(name, known.clone()) {
                Some(meant) => format!("did you mean [{meant}]?"),
                None => format!("remove it; the sections are {}", known.collect::<Vec<_>>().join(", ")),
            };
            let consequence = "there is no such section, so nothing in it would take effect";
            self.report(span, Some(format!("[{name_shown}]")), None, consequence, fix);
            return;
        }
        let section = name.rsplit_once('.').map_or("", |(section, _)| section);
        let fix = match nearest_path(name, REFERENCE.iter().map(|doc| doc.key)) {
            Some(meant) => format!("did you mean {meant}?"),
            None if section.is_empty() => "remove it, or put it below the header of its section".to_owned(),
            None => {
                format!(
                    "remove it; the keys of [{section}] are {}",
                    section_keys(section).collect::<Vec<_>>().join(", ")
                )
            }
        };
        let found = self.excerpt(value.span());
        self.report(
            span,
            Some(name_shown),
            Some(found),
            "there is no such key, so it would have no effect",
            fix,
        );
    }

    /// The value of `key`, or its default. `None`: its problems are reported.
    fn value<R: Rule>(&mut self, root: &DeTable<'_>, key: &Key<R>) -> Option<Read<R::Value>> {
        match (find(root, key.name), &key.absent) {
            (Found::Value(value), _) => {
                self.judge(key, value).map(|read| Read { value: read, span: Some(value.span()) })
            }
            (Found::Absent { .. }, Absent::Default(default)) => {
                let (value, _) = DeValue::parse_recoverable(default);
                self.judge(key, &value).map(|read| Read { value: read, span: None })
            }
            (Found::Absent { section }, Absent::Unset { example } | Absent::Refused { example }) => {
                self.report_missing(key, section, example);
                None
            }
        }
    }

    /// The value of `key` if it is present. `Err`: its problems are reported.
    fn optional<R: Rule>(&mut self, root: &DeTable<'_>, key: &Key<R>) -> Option<Option<R::Value>> {
        match find(root, key.name) {
            Found::Value(value) => self.judge(key, value).map(Some),
            Found::Absent { .. } => Some(None),
        }
    }

    fn judge<R: Rule>(&mut self, key: &Key<R>, value: &Spanned<DeValue<'_>>) -> Option<R::Value> {
        match key.rule.check(value) {
            Ok(read) => {
                self.values.insert(key.name, key.rule.write(&read));
                Some(read)
            }
            Err(faults) => {
                for fault in faults {
                    let name = match fault.entry {
                        Some(entry) => format!("{} (entry {entry})", key.name),
                        None => key.name.to_owned(),
                    };
                    let found = self.excerpt(fault.span.clone());
                    self.report(fault.span, Some(name), Some(found), fault.consequence, fault.fix);
                }
                None
            }
        }
    }

    fn report_missing<R>(&mut self, key: &Key<R>, section: Option<Range<usize>>, example: &str) {
        if self.is_partial {
            return;
        }
        let (section_name, last) = key.name.rsplit_once('.').unwrap_or(("", key.name));
        let fix = format!("write {last} = {example} below [{section_name}]");
        let consequence = "this is missing, so nothing would be protected";
        self.report(section.unwrap_or(0..0), Some(key.name.to_owned()), None, consequence, fix);
    }

    /// All keys, and what they must be together. `None`: problems are reported.
    fn config(&mut self, root: &DeTable<'_>) -> Option<Config> {
        let shield = self.shield(root);
        let ladder = self.value(root, &keys::LADDER);
        let forgive_after = self.value(root, &keys::FORGIVE_AFTER);
        let handshakes = self.value(root, &keys::HANDSHAKES_ENABLED);
        let connections_per_second = self.value(root, &keys::HANDSHAKE_RATE);
        let handshake_burst = self.value(root, &keys::HANDSHAKE_BURST);
        let ban_threshold = self.value(root, &keys::BAN_THRESHOLD);
        let violation_window = self.value(root, &keys::VIOLATION_WINDOW);
        let reporters = self.value(root, &keys::REPORTERS);
        let report_window = self.value(root, &keys::REPORT_WINDOW);
        let tor = self.tor(root);
        let ingress = self.ingress(root);
        let arti = self.arti(root);
        let circuits = self.circuits(root);
        let load = self.load(root);
        let sybil = self.sybil(root);
        let haproxy = self.haproxy(root);
        let http_enabled = self.value(root, &keys::HTTP_ENABLED);
        let listen = self.value(root, &keys::HTTP_LISTEN);
        let socket = self.value(root, &keys::CONTROL_SOCKET);
        let group = self.value(root, &keys::CONTROL_GROUP);
        let path = self.value(root, &keys::LEDGER_PATH);
        let level = self.value(root, &keys::LOG_LEVEL);
        let format = self.value(root, &keys::LOG_FORMAT);

        if let (Some(socket), Some(path)) = (&socket, &path)
            && socket.value == path.value
        {
            self.report_together(
                &keys::LEDGER_PATH,
                path,
                &keys::CONTROL_SOCKET,
                socket,
                "control.socket and ledger.path are the same file, which cannot be both".to_owned(),
                "give each its own path".to_owned(),
            );
            return None;
        }
        self.check_places(root, ingress.as_ref()?, circuits.as_ref()?)?;

        Some(Config {
            shield: shield?,
            bans: Bans {
                ladder: ladder?.value.into_iter().map(seconds).collect(),
                forgive_after: seconds(forgive_after?.value),
            },
            evidence: Evidence {
                handshakes: handshakes?.value,
                connections_per_second: connections_per_second?.value,
                burst: handshake_burst?.value,
                ban_threshold: ban_threshold?.value,
                window: seconds(violation_window?.value),
                reporters: reporters?.value,
                report_window: seconds(report_window?.value),
            },
            tor: tor?,
            ingress: ingress?,
            arti: arti?,
            circuits: circuits?,
            load: load?,
            sybil: sybil?,
            haproxy: haproxy?,
            http: Http { enabled: http_enabled?.value, listen: listen?.value },
            control: Control { socket: socket?.value, group: group?.value },
            ledger: Ledger { path: path?.value },
            log: Log { level: level?.value, format: format?.value },
            values: std::mem::take(&mut self.values),
        })
    }

    /// No more may be served than are accepted.
    fn check_places(&mut self, root: &DeTable<'_>, ingress: &Ingress, circuits: &Circuits) -> Option<()> {
        let (served, accepted) = (circuits.max_concurrent_connections, ingress.maxconn);
        if served <= accepted {
            return Some(());
        }
        let (served_read, accepted_read) =
            (self.value(root, &keys::ALL_AT_ONCE)?, self.value(root, &keys::MAXCONN)?);
        self.report_together(
            &keys::ALL_AT_ONCE,
            &served_read,
            &keys::MAXCONN,
            &accepted_read,
            format!(
                "circuits.max_concurrent_connections ({served}) is above ingress.maxconn ({accepted}), so those beyond \
                 {accepted} would be refused, nobody would wait, and no load would show"
            ),
            "make ingress.maxconn at least as much: what it has beyond is the queue".to_owned(),
        );
        None
    }

    fn shield(&mut self, root: &DeTable<'_>) -> Option<Shield> {
        let interfaces = self.value(root, &keys::INTERFACES);
        let mode = self.value(root, &keys::MODE);
        let allow = self.value(root, &keys::ALLOW);
        let attach = self.value(root, &keys::ATTACH);
        let fallback = self.value(root, &keys::FALLBACK);
        let on_stale = self.value(root, &keys::ON_STALE);
        let stale_after = self.value(root, &keys::STALE_AFTER);
        let first_attach_confirm = self.optional(root, &keys::FIRST_ATTACH_CONFIRM);
        let pin_path = self.value(root, &keys::PIN_PATH);
        let lockdown = self.value(root, &keys::LOCKDOWN);
        let syn = self.syn(root);
        let port_syn = self.port_syn(root);
        let cookies = self.cookies(root);
        let no_socket = self.no_socket(root);
        let icmp = self.icmp(root);
        let ports = self.ports(root);
        let drop_invalid = self.value(root, &keys::DROP_INVALID);
        let off = self.value(root, &keys::SANITY_OFF);
        let drop = self.value(root, &keys::UNINSPECTED_DROP);
        let table_bans = self.value(root, &keys::TABLE_BANS);
        let table_cidrs = self.value(root, &keys::TABLE_CIDRS);
        let table_allow = self.value(root, &keys::TABLE_ALLOW);
        let per_second = self.value(root, &keys::EVENTS_PER_SECOND);
        let enable_logging = self.value(root, &keys::LOG_DROPS);
        let lines_per_minute = self.value(root, &keys::LOG_LINES);

        if let (Some(allow), Some(rows)) = (&allow, &table_allow)
            && allow.value.len() > usize::try_from(rows.value.get()).unwrap_or(usize::MAX)
        {
            let entries = allow.value.len();
            self.report_together(
                &keys::TABLE_ALLOW,
                rows,
                &keys::ALLOW,
                allow,
                format!(
                    "shield.allow has {entries} entries, but shield.tables.allow has room for {}",
                    rows.value
                ),
                format!("give shield.tables.allow = {entries} or more, or name fewer, wider ranges"),
            );
            return None;
        }

        Some(Shield {
            interfaces: interfaces?.value,
            mode: mode?.value,
            attach: attach?.value,
            fallback: fallback?.value,
            on_stale: on_stale?.value,
            stale_after: seconds(stale_after?.value),
            first_attach_confirm: first_attach_confirm?.map(seconds),
            pin_path: pin_path?.value,
            allow: allow?.value,
            lockdown: lockdown?.value,
            syn: syn?,
            port_syn: port_syn?,
            cookies: cookies?,
            no_socket: no_socket?,
            icmp: icmp?,
            ports: ports?,
            nft: Nft { drop_invalid: drop_invalid?.value },
            sanity: Sanity { off: off?.value },
            uninspected: Uninspected { drop: drop?.value },
            tables: Tables { bans: table_bans?.value, cidrs: table_cidrs?.value, allow: table_allow?.value },
            events: Events { per_second: per_second?.value },
            log: DropLog { enable_logging: enable_logging?.value, lines_per_minute: lines_per_minute?.value },
        })
    }

    fn syn(&mut self, root: &DeTable<'_>) -> Option<Syn> {
        let enabled = self.value(root, &keys::SYN_ENABLED);
        let rate = self.value(root, &keys::SYN_RATE);
        let burst = self.value(root, &keys::SYN_BURST);
        let escalate_after = self.value(root, &keys::SYN_ESCALATE);
        let (rate, burst) = (rate?, burst?);
        let (per_second, at_once) = (rate.value.get(), burst.value.get());
        let Some(limit) = Limit::new(per_second, at_once) else {
            let fits = |burst: u32| Limit::new(per_second, burst).is_some();
            let largest = (1..at_once).rev().find(|burst| fits(*burst)).unwrap_or(1);
            let rates = per_second..=keys::SYN_RATE.rule.most;
            let slowest = rates.into_iter().find(|rate| Limit::new(*rate, at_once).is_some());
            let or_rate = slowest
                .map_or_else(String::new, |rate| format!(", or per_source_per_second = {rate} or more"));
            self.report_together(
                &keys::SYN_BURST,
                &burst,
                &keys::SYN_RATE,
                &rate,
                format!(
                    "at {per_second} a second a source needs more than {LONGEST_DEBT_MINUTES} minutes to pay off a burst of \
                     {at_once}, longer than the kernel's limiter can count"
                ),
                format!("give burst = {largest} or less{or_rate}"),
            );
            return None;
        };
        Some(Syn {
            enabled: enabled?.value,
            per_source_per_second: rate.value,
            burst: burst.value,
            limit,
            escalate_after: escalate_after?.value,
        })
    }

    fn port_syn(&mut self, root: &DeTable<'_>) -> Option<PortSyn> {
        let enabled = self.value(root, &keys::PORT_SYN_ENABLED);
        let rate = self.value(root, &keys::PORT_SYN_RATE);
        let burst = self.value(root, &keys::PORT_SYN_BURST);
        let (rate, burst) = (rate?, burst?);
        let (per_second, at_once) = (rate.value.get(), burst.value.get());
        let Some(pace) = gcra::pace(per_second, SECOND_NS, at_once) else {
            let largest = u64::from(per_second) * 86_400;
            self.report_together(
                &keys::PORT_SYN_BURST,
                &burst,
                &keys::PORT_SYN_RATE,
                &rate,
                format!(
                    "at {per_second} a second a port needs more than a day to pay off a burst of {at_once}"
                ),
                format!("give burst = {largest} or less, or a higher per_second"),
            );
            return None;
        };
        Some(PortSyn { enabled: enabled?.value, per_second: rate.value, burst: burst.value, pace })
    }

    fn cookies(&mut self, root: &DeTable<'_>) -> Option<Cookies> {
        let enabled = self.value(root, &keys::COOKIES_ENABLED);
        let manage_syncookies = self.value(root, &keys::MANAGE_SYNCOOKIES);
        let trickle = self.value(root, &keys::TRICKLE);
        let hold = self.value(root, &keys::COOKIE_HOLD);
        Some(Cookies {
            enabled: enabled?.value,
            manage_syncookies: manage_syncookies?.value,
            trickle_per_second: trickle?.value,
            hold: seconds(hold?.value),
        })
    }

    fn no_socket(&mut self, root: &DeTable<'_>) -> Option<NoSocket> {
        let enabled = self.value(root, &keys::NO_SOCKET_ENABLED);
        let host = self.value(root, &keys::NO_SOCKET_HOST);
        let rate = self.value(root, &keys::NO_SOCKET_RATE)?.value;
        Some(NoSocket {
            enabled: enabled?.value,
            host_per_second: host?.value,
            per_source_per_second: rate,
            limit: Limit::new(rate.get(), rate.get())?,
        })
    }

    fn icmp(&mut self, root: &DeTable<'_>) -> Option<Icmp> {
        let enabled = self.value(root, &keys::ICMP_ENABLED);
        let rate = self.value(root, &keys::ICMP_RATE);
        let burst = self.value(root, &keys::ICMP_BURST);
        let host = self.value(root, &keys::ICMP_HOST);
        let ceiling = self.value(root, &keys::ICMP_CEILING);
        let (rate, burst) = (rate?.value, burst?.value);
        Some(Icmp {
            enabled: enabled?.value,
            per_source_per_second: rate,
            burst,
            host_per_second: host?.value,
            ceiling_per_second: ceiling?.value,
            limit: Limit::new(rate.get(), burst.get())?,
        })
    }

    fn ports(&mut self, root: &DeTable<'_>) -> Option<Ports> {
        let open = self.value(root, &keys::PORTS_OPEN);
        let new_connections = self.value(root, &keys::PORTS_NEW);
        let udp = self.value(root, &keys::PORTS_UDP);
        Some(Ports { open: open?.value, new_connections: new_connections?.value, udp: udp?.value })
    }

    fn tor(&mut self, root: &DeTable<'_>) -> Option<Tor> {
        let user = self.optional(root, &keys::TOR_USER);
        let scan_every = self.value(root, &keys::SCAN_EVERY);
        let keep = self.value(root, &keys::KEEP);
        let control = self.optional(root, &keys::TOR_CONTROL);
        let cookie_file = self.optional(root, &keys::TOR_COOKIE);
        let password_file = self.optional(root, &keys::TOR_PASSWORD);
        let metrics = self.optional(root, &keys::TOR_METRICS);
        let (scan_every, keep) = (scan_every?, keep?);
        if keep.value < scan_every.value {
            self.report_together(
                &keys::KEEP,
                &keep,
                &keys::SCAN_EVERY,
                &scan_every,
                format!(
                    "tor's connections are read every {} s but remembered for {} s, so in between its guards could be banned",
                    scan_every.value, keep.value
                ),
                format!("give keep_seconds = {} or more, or scan_every_seconds = {} or less", scan_every.value, keep.value),
            );
            return None;
        }
        Some(Tor {
            user: user?,
            scan_every: seconds(scan_every.value),
            keep: seconds(keep.value),
            control: control?,
            control_cookie_file: cookie_file?,
            control_password_file: password_file?,
            metrics: metrics?,
        })
    }

    /// Reports two values that do not fit together, at the first that the file gives.
    fn report_together<A: Rule, B: Rule>(
        &mut self,
        key: &Key<A>,
        value: &Read<A::Value>,
        other: &Key<B>,
        other_value: &Read<B::Value>,
        consequence: String,
        fix: String,
    ) {
        let (span, name) = match (&value.span, &other_value.span) {
            (Some(span), _) => (span.clone(), key.name),
            (None, Some(span)) => (span.clone(), other.name),
            (None, None) => (0..0, key.name),
        };
        let found = self.excerpt(span.clone());
        self.report(span, Some(name.to_owned()), Some(found), consequence, fix);
    }
}

fn seconds(number: NonZeroU32) -> Duration {
    Duration::from_secs(number.get().into())
}

enum Found<'d, 'i> {
    Value(&'d Spanned<DeValue<'i>>),
    /// Not there; where the innermost section around it begins, if that is there.
    Absent {
        section: Option<Range<usize>>,
    },
}

fn find<'d, 'i>(root: &'d DeTable<'i>, name: &str) -> Found<'d, 'i> {
    let (mut table, mut section) = (root, None);
    let mut parts = name.split('.').peekable();
    while let Some(part) = parts.next() {
        let Some(value) = table.get(part) else {
            return Found::Absent { section };
        };
        if parts.peek().is_none() {
            return Found::Value(value);
        }
        let Some(inner) = value.get_ref().as_table() else {
            return Found::Absent { section };
        };
        (table, section) = (inner, Some(value.span()));
    }
    Found::Absent { section }
}

/// The full name and place of the last key called `last` that begins before `place`.
fn first_before(
    table: &DeTable<'_>,
    path: &mut Vec<String>,
    last: &str,
    place: usize,
) -> Option<(String, usize)> {
    let mut best: Option<(String, usize)> = None;
    for (key, value) in table.iter() {
        path.push(bare_or_quoted(key.get_ref()));
        let here =
            (key.get_ref() == last && key.span().start < place).then(|| (path.join("."), key.span().start));
        let inside = value.get_ref().as_table().and_then(|inner| first_before(inner, path, last, place));
        best = [best, here, inside].into_iter().flatten().max_by_key(|(_, start)| *start);
        path.pop();
    }
    best
}

/// Where the outermost list around `place` begins.
fn list_around(table: &DeTable<'_>, place: usize) -> Option<usize> {
    table.iter().find_map(|(_, value)| {
        let span = value.span();
        match value.get_ref().as_table() {
            Some(inner) => list_around(inner, place),
            None => {
                (value.get_ref().is_array() && span.start < place && place <= span.end).then_some(span.start)
            }
        }
    })
}

fn section_keys(section: &str) -> impl Iterator<Item = &'static str> {
    REFERENCE
        .iter()
        .filter_map(|doc| doc.key.rsplit_once('.'))
        .filter(move |(of, _)| *of == section)
        .map(|(_, last)| last)
}

/// The known name that `name` was meant to be: one of the same section with nearly the same last part, else one with the
/// same, else one with nearly the same last part in any section.
fn nearest_path<'k>(name: &str, known: impl Iterator<Item = &'k str> + Clone) -> Option<&'k str> {
    fn last(path: &str) -> &str {
        path.rsplit('.').next().unwrap_or(path)
    }
    // Someone may have put the whole name in quotes.
    let name = name.replace('"', "");
    let section = name.strip_suffix(last(&name)).unwrap_or_default();
    let named = |word: &str| known.clone().find(|path| last(path) == word);
    let siblings = known.clone().filter(|path| path.strip_suffix(last(path)) == Some(section));
    nearest(last(&name), siblings.clone().map(last))
        .and_then(|meant| siblings.clone().find(|path| last(path) == meant))
        .or_else(|| named(last(&name)))
        .or_else(|| nearest(last(&name), known.clone().map(last)).and_then(named))
}

/// The key as TOML would have it: in quotes unless all its characters are plain.
fn bare_or_quoted(key: &str) -> String {
    let is_bare = !key.is_empty()
        && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    if is_bare { key.to_owned() } else { format!("\"{}\"", key.escape_debug()) }
}

/// `text` as one line of at most [`SHOWN`] characters, without control characters.
fn shorten(text: &str) -> String {
    let line = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    let line = line.collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", line.get(..end).unwrap_or_default()),
        None => line,
    }
}
