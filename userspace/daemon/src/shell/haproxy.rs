//! HAProxy's Runtime API: its table of circuits is read, compared with what it should hold, and edited.
//!
//! Each visit is a connection of its own and short. One that stayed would stay with the old process after a reload, keep it
//! alive, and edit a table that nobody asks any more. Visits come every [`HaproxyOptions::visit_every`], and at once when
//! something else is wanted; the table itself is read every [`HaproxyOptions::read_every`], and whenever another process
//! answers. Each visit writes the mark of a table that bears it once more, which `show table` would not do: its row is one that
//! HAProxy's rules never touch, and the first to expire or to make room.
//!
//! Of the table only the rows that matter are asked for: what is not normal, and circuits with open connections.

use std::{collections::BTreeMap, io, num::NonZeroU32, path::PathBuf, time::Duration};

use thiserror::Error;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout},
};
use tracing::Instrument;
use tunica_core::{
    haproxy_table::{Edit, HaproxyTable, Seen, Standing, Standings, Wish},
    time::Monotime,
};
use tunica_onion::{
    circuit::RawCircuit,
    haproxy_codec::{
        AnswerDecoder, AnswerTooLong, Command, Info, InfoLacks, Refused, Row, Table, TableError, TableName,
        changed, mark,
    },
    haproxy_config::{BANNED, NORMAL, VIP},
};

use crate::telemetry;

/// Longest answer that is taken: some 300 000 rows.
const ANSWER_BYTES: usize = 64 * 1024 * 1024;
/// Bytes that are read at once.
const READ_BYTES: usize = 16 * 1024;
/// Most rows that are passed on.
const MOST_ROWS: usize = 1_000;
/// Most edits of one visit; the rest is for the next, so that HAProxy does other work in between.
const MOST_EDITS: usize = 10_000;

/// How to reach one HAProxy.
#[derive(Clone, Debug)]
pub struct HaproxyOptions {
    /// Its socket.
    pub socket: PathBuf,
    /// Its table of circuits.
    pub table: TableName,
    /// How long the bans last that it finds.
    pub ban_length: Duration,
    /// How often it is visited.
    pub visit_every: Duration,
    /// How often its table is read: bans that HAProxy found are known elsewhere so late, and lost if it ends before. It looks
    /// at every row for each of three answers, which takes it some 20 ms for 100 000 rows, or 0.4 % of a core's time.
    pub read_every: Duration,
    /// How long connecting, and each command, may take.
    pub command_timeout: Duration,
}

impl HaproxyOptions {
    /// HAProxy at this socket, and the usual patience.
    pub const fn new(socket: PathBuf, table: TableName, ban_length: Duration) -> Self {
        Self {
            socket,
            table,
            ban_length,
            visit_every: Duration::from_secs(2),
            read_every: Duration::from_secs(5),
            command_timeout: Duration::from_secs(5),
        }
    }
}

/// What the event loop hears.
#[derive(Debug)]
pub enum HaproxyHeard {
    /// What its table holds.
    Table(Box<TableView>),
    /// The table was changed.
    Edited(Edit),
    /// The table follows this revision of the wish.
    Followed(u64),
    /// HAProxy does not answer.
    Gone {
        /// Why.
        why: HaproxyError,
    },
}

/// A table, as far as it is shown and acted on. `Debug` tells no circuit.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct TableView {
    /// HAProxy's version.
    pub version: String,
    /// Circuits in the table, and how many it can hold.
    pub tracked: u64,
    /// See `tracked`.
    pub capacity: u64,
    /// Circuits that are banned.
    pub banned: u64,
    /// Circuits that go past the queue.
    pub vips: u64,
    /// Open connections of all circuits.
    pub open: u64,
    /// New connections in the last 10 s, of the circuits that have open ones.
    pub connections: u64,
    /// The tor process whose circuits these are, see [`Wish::mark`].
    pub mark: Option<u32>,
    /// Bans that HAProxy found itself, and when they end.
    pub found: BTreeMap<NonZeroU32, Monotime>,
    /// The busiest circuits and those that are not normal, at most 1 000.
    pub rows: Vec<CircuitSeen>,
}

/// A circuit in the table.
#[derive(Clone, PartialEq, Eq)]
pub struct CircuitSeen {
    /// Its number.
    pub circuit: NonZeroU32,
    /// What it is.
    pub standing: Standing,
    /// Its open connections.
    pub open: u64,
    /// Its new connections in the last 10 s.
    pub connections: u64,
    /// Its requests in the last 10 s.
    pub requests: u64,
    /// Its violations.
    pub violations: u64,
}

impl std::fmt::Debug for TableView {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "TableView({} rows scrubbed)", self.rows.len())
    }
}

/// Why a visit failed. No message names a circuit.
#[derive(Debug, Error)]
pub enum HaproxyError {
    /// Nobody listens.
    #[error(
        "HAProxy's socket {} cannot be connected to ({source}): what operators say of circuits does not reach it; is HAProxy \
         running with the configuration of `tunica render haproxy`, and may tunicad open the socket?",
        socket.display()
    )]
    Connect {
        /// Where.
        socket: PathBuf,
        /// The system's word.
        #[source]
        source: io::Error,
    },
    /// It was not quick enough.
    #[error(
        "HAProxy did not answer {command} within {after:?}: its table is not followed; is it stopped, or the host overloaded?"
    )]
    Timeout {
        /// What was asked.
        command: &'static str,
        /// How long it had.
        after: Duration,
    },
    /// The connection broke.
    #[error(
        "HAProxy's connection ended before the answer to {command} ({source}): its table is not followed; did HAProxy end?"
    )]
    Broken {
        /// What was asked.
        command: &'static str,
        /// The system's word.
        #[source]
        source: io::Error,
    },
    /// It says too much.
    #[error("{0}; its table is not followed")]
    TooLong(#[from] AnswerTooLong),
    /// It does not say which process it is.
    #[error("{0}; its table is not followed")]
    Info(#[from] InfoLacks),
    /// The table cannot be read.
    #[error(
        "{0}; it is not followed; see that HAProxy runs the configuration of `tunica render haproxy`, and haproxy.table"
    )]
    Table(#[from] TableError),
    /// It refuses.
    #[error("{0}; the table is not followed")]
    Refused(#[from] Refused),
}

/// The task.
#[derive(Debug)]
pub struct Haproxy {
    options: HaproxyOptions,
    heard: mpsc::Sender<HaproxyHeard>,
    wish: watch::Receiver<Wish>,
    table: HaproxyTable,
    /// The process that answered last.
    process: Process,
    read_at: Option<Instant>,
    /// The reason that was told last, while HAProxy does not answer; empty before the first visit.
    gone: Option<String>,
    followed: Option<u64>,
}

/// Which HAProxy process answers. Pids may be the same in each container, so the time it has run counts as well.
#[derive(Clone, Copy, Debug, Default)]
struct Process {
    number: u64,
    pid: u32,
    uptime_seconds: u64,
}

impl Process {
    /// The process that says this of itself, after this one.
    fn next(self, info: &Info) -> Self {
        let is_same = self.number > 0 && info.pid == self.pid && info.uptime_seconds >= self.uptime_seconds;
        let number = if is_same { self.number } else { self.number + 1 };
        Self { number, pid: info.pid, uptime_seconds: info.uptime_seconds }
    }
}

/// A task for one HAProxy, and what it says.
pub fn link(options: HaproxyOptions, wish: watch::Receiver<Wish>) -> (Haproxy, mpsc::Receiver<HaproxyHeard>) {
    let (heard, ends) = mpsc::channel(64);
    let table = HaproxyTable::new(options.ban_length);
    let haproxy = Haproxy {
        options,
        heard,
        wish,
        table,
        process: Process::default(),
        read_at: None,
        gone: Some(String::new()),
        followed: None,
    };
    (haproxy, ends)
}

/// The event loop has gone.
struct Over;

impl Haproxy {
    /// Runs until the event loop has dropped its end.
    pub async fn run(mut self) {
        loop {
            let next = Instant::now() + self.options.visit_every;
            let span = telemetry::event_span("haproxy");
            if self.round().instrument(span).await.is_err() {
                return;
            }
            tokio::select! {
                () = sleep_until(next) => {}
                changed = self.wish.changed() => if changed.is_err() { return },
            }
        }
    }

    /// One visit, and what is said of it.
    async fn round(&mut self) -> Result<(), Over> {
        let wish = self.wish.borrow_and_update().clone();
        self.table.wish(wish);
        self.table.advance(now());
        match self.visit().await {
            Ok(said) => {
                if self.gone.take().is_some() {
                    tracing::info!(message_id = "haproxy_connected", "HAProxy answers on its socket");
                }
                for heard in said {
                    self.tell(heard).await?;
                }
                let followed = self.table.followed();
                if followed != self.followed {
                    self.followed = followed;
                    if let Some(revision) = followed {
                        self.tell(HaproxyHeard::Followed(revision)).await?;
                    }
                }
                Ok(())
            }
            Err(why) => {
                self.table.lost();
                let text = why.to_string();
                if self.gone.as_ref() != Some(&text) {
                    tracing::warn!(message_id = "haproxy_lost", "{text}");
                }
                self.gone = Some(text);
                self.tell(HaproxyHeard::Gone { why }).await
            }
        }
    }

    async fn tell(&self, heard: HaproxyHeard) -> Result<(), Over> {
        self.heard.send(heard).await.map_err(|_| Over)
    }

    async fn visit(&mut self) -> Result<Vec<HaproxyHeard>, HaproxyError> {
        let mut line = Line::connect(&self.options).await?;
        let info = Info::parse(&line.ask("show info", &Command::ShowInfo).await?)?;
        let process = self.process.next(&info);
        if process.number != self.process.number {
            self.table.lost();
        }
        self.process = process;
        let is_due = self.read_at.is_none_or(|at| at.elapsed() >= self.options.read_every);
        let mut view = None;
        if is_due || self.table.is_unread() {
            view = Some(self.read(&mut line, &info).await?);
        }
        let mut said = Vec::new();
        // What follows the removal of all rows is known once the table was read again.
        for _ in 0..2 {
            if self.table.is_unread() {
                view = Some(self.read(&mut line, &info).await?);
            }
            for edit in self.table.edits().into_iter().take(MOST_EDITS) {
                self.apply(&mut line, edit).await?;
                said.push(HaproxyHeard::Edited(edit));
            }
        }
        if !said.is_empty() {
            view = Some(self.read(&mut line, &info).await?);
        }
        if let Some(mark) = self.table.mark_to_keep() {
            // No edit: it says what the table says already.
            self.set_mark(&mut line, mark).await?;
        }
        said.extend(view.map(|view| HaproxyHeard::Table(Box::new(view))));
        Ok(said)
    }

    async fn set_mark(&self, line: &mut Line, mark: u32) -> Result<(), HaproxyError> {
        let command = Command::SetMark { table: &self.options.table, mark };
        Ok(changed(&line.ask("a change of its table", &command).await?)?)
    }

    async fn apply(&mut self, line: &mut Line, edit: Edit) -> Result<(), HaproxyError> {
        let table = &self.options.table;
        let set = |circuit, tag| Command::SetTag { table, circuit: RawCircuit::new(circuit), tag };
        let command = match edit {
            Edit::Forget => Command::ClearAll { table },
            Edit::Mark(mark) => Command::SetMark { table, mark },
            Edit::Set(circuit, Standing::Banned) => set(circuit, BANNED),
            Edit::Set(circuit, Standing::Vip) => set(circuit, VIP),
            Edit::Set(circuit, Standing::Normal) => {
                Command::Reset { table, circuit: RawCircuit::new(circuit) }
            }
        };
        changed(&line.ask("a change of its table", &command).await?)?;
        self.table.applied(edit);
        Ok(())
    }

    /// Reads what matters of the table, and shows it to the machine.
    async fn read(&mut self, line: &mut Line, info: &Info) -> Result<TableView, HaproxyError> {
        let table = &self.options.table;
        let mark = mark(&line.ask("show table", &Command::ShowMark { table }).await?)?;
        let mut rows = BTreeMap::new();
        let mut view = TableView { version: info.version.clone(), ..TableView::default() };
        for command in [
            Command::ShowTable { table, tag: Some(BANNED) },
            Command::ShowTable { table, tag: Some(VIP) },
            Command::ShowOpen { table },
        ] {
            let answer = Table::parse(&line.ask("show table", &command).await?)?;
            (view.tracked, view.capacity) = (answer.used, answer.capacity);
            rows.extend(answer.rows.iter().filter_map(seen));
        }
        // The mark is no circuit.
        view.tracked = view.tracked.saturating_sub(u64::from(mark.is_some()));
        let standings: Standings = rows
            .values()
            .filter(|row| row.standing != Standing::Normal)
            .map(|row| (row.circuit, row.standing))
            .collect();
        let count = |of| standings.values().filter(|standing| **standing == of).count() as u64;
        (view.banned, view.vips) = (count(Standing::Banned), count(Standing::Vip));
        self.table.observe(Seen { process: self.process.number, mark, standings }, now());
        self.read_at = Some(Instant::now());
        (view.mark, view.found) = (self.table.mark(), self.table.found_bans().collect());
        view.open = rows.values().map(|row| row.open).sum();
        view.connections = rows.values().map(|row| row.connections).sum();
        view.rows = rows.into_values().collect();
        view.rows.sort_by_key(|row| std::cmp::Reverse((row.open, row.requests, row.connections)));
        view.rows.truncate(MOST_ROWS);
        Ok(view)
    }
}

/// The kernel's clock that bans are counted by.
fn now() -> Monotime {
    // It stood still if it failed: then nothing ends before its time.
    Monotime(crate::sys::monotonic_ns().unwrap_or(0))
}

/// A row as one of a circuit, if it is.
fn seen(row: &Row) -> Option<(NonZeroU32, CircuitSeen)> {
    let circuit = row.circuit().ok()?.number();
    let standing = match row.tag.unwrap_or(NORMAL) {
        BANNED => Standing::Banned,
        VIP => Standing::Vip,
        // Tags that others gave have no meaning here.
        _ => Standing::Normal,
    };
    let number = |count: Option<u64>| count.unwrap_or(0);
    Some((
        circuit,
        CircuitSeen {
            circuit,
            standing,
            open: number(row.open),
            connections: number(row.connections),
            requests: number(row.requests),
            violations: number(row.violations),
        },
    ))
}

/// One connection.
struct Line {
    stream: UnixStream,
    decoder: AnswerDecoder,
    after: Duration,
}

impl Line {
    async fn connect(options: &HaproxyOptions) -> Result<Self, HaproxyError> {
        let after = options.command_timeout;
        let connected = timeout(after, UnixStream::connect(&options.socket)).await;
        let connected = connected.map_err(|_| HaproxyError::Timeout { command: "the connection", after })?;
        let stream =
            connected.map_err(|source| HaproxyError::Connect { socket: options.socket.clone(), source })?;
        let mut line = Self { stream, decoder: AnswerDecoder::new(ANSWER_BYTES), after };
        line.ask("prompt", &Command::Prompt).await?;
        Ok(line)
    }

    async fn ask(&mut self, name: &'static str, command: &Command<'_>) -> Result<String, HaproxyError> {
        let after = self.after;
        let broken = |source| HaproxyError::Broken { command: name, source };
        let exchange = async {
            self.stream.write_all(command.encode().as_bytes()).await.map_err(broken)?;
            let mut buffer = vec![0; READ_BYTES];
            loop {
                let read = self.stream.read(&mut buffer).await.map_err(broken)?;
                if read == 0 {
                    return Err(broken(io::ErrorKind::UnexpectedEof.into()));
                }
                // Nothing is sent before the answer, so nothing comes behind it.
                let mut bytes = buffer.get(..read).unwrap_or_default();
                if let Some(answer) = self.decoder.decode(&mut bytes)? {
                    return Ok(answer);
                }
            }
        };
        timeout(after, exchange).await.map_err(|_| HaproxyError::Timeout { command: name, after })?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_pid_and_by_how_long_it_has_run() {
        let info = |pid, uptime_seconds| Info { version: String::new(), pid, uptime_seconds };
        let first = Process::default().next(&info(1, 0));
        assert_eq!(first.number, 1);
        let later = first.next(&info(1, 9));
        assert_eq!((later.number, later.next(&info(1, 9)).number), (1, 1));
        assert_eq!(later.next(&info(1, 8)).number, 2, "started again in another container");
        assert_eq!(later.next(&info(2, 99)).number, 2);
    }
}
