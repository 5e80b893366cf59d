//! HAProxy's Runtime API, as far as its table of circuits needs it: commands out, answers in.
//!
//! Source: [HAProxy's Management Guide](https://docs.haproxy.org/2.6/management.html), section 9.3, and answers of
//! HAProxy 2.6.12, which the tests read.
//!
//! The table is of type `ipv6`, its key is the address that stands for a circuit ([`RawCircuit::address`]), and the
//! circuit's state is its tag `gpt0`, which both HAProxy's rules and this API can set. There is no library for this.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
};

use thiserror::Error;

use crate::circuit::{NotACircuit, RawCircuit};

mod answer;
mod table;

pub use answer::{AnswerDecoder, AnswerTooLong};
pub use table::{Row, Table, TableError, TableFault};

/// Longest name of a table, in bytes.
const MOST_NAME_BYTES: usize = 64;

/// The key of a row that names the tor process whose circuits the table holds. No packet and no circuit has this address: it
/// lies in `100::/64`, which is for discarding (RFC 6666).
pub const MARK: Ipv6Addr = Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1);

/// A table's name, which is its proxy's. It can end no command and begin none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableName(String);

/// A text that cannot name a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "a table's name has 1 to {MOST_NAME_BYTES} letters and digits of ASCII, `-`, `_`, `.` or `:`, as HAProxy's \
     configuration demands of a proxy's name"
)]
pub struct NotATableName;

/// A command. HAProxy's socket must have `level operator` or `level admin`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// Switches to one connection for many commands; each answer then ends in a prompt. See [`AnswerDecoder`].
    Prompt,
    /// Sets a circuit's tag, and makes its row if there is none.
    SetTag {
        /// In which table.
        table: &'a TableName,
        /// Whose.
        circuit: RawCircuit,
        /// To what.
        tag: u32,
    },
    /// Makes a circuit normal and forgets its violations: tag and counter `gpc0` become 0. A row that is in use can be reset
    /// so, and cannot be removed.
    Reset {
        /// In which table.
        table: &'a TableName,
        /// Whose.
        circuit: RawCircuit,
    },
    /// Removes every row that is not in use.
    ClearAll {
        /// From which table.
        table: &'a TableName,
    },
    /// Writes the tag of the row at [`MARK`].
    SetMark {
        /// In which table.
        table: &'a TableName,
        /// Which.
        mark: u32,
    },
    /// Asks for the row at [`MARK`].
    ShowMark {
        /// Of which table.
        table: &'a TableName,
    },
    /// Asks for the rows of circuits with open connections; the table must store `conn_cur`.
    ShowOpen {
        /// Of which table.
        table: &'a TableName,
    },
    /// Removes a circuit's row. That there is none is no error.
    Clear {
        /// From which table.
        table: &'a TableName,
        /// Whose.
        circuit: RawCircuit,
    },
    /// Asks for a table's rows, which [`Table::parse`] reads.
    ShowTable {
        /// Which one.
        table: &'a TableName,
        /// Only rows with this tag.
        tag: Option<u32>,
    },
    /// Asks for facts about the process, which [`Info::parse`] reads.
    ShowInfo,
}

/// Why HAProxy refused a command. No tag was set and no row removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refused {
    /// No table of this name.
    #[error("HAProxy has no such table; no row was changed; is the rendered configuration the one it runs?")]
    NoSuchTable,
    /// The table's keys are no addresses. A table of type `ip` does not refuse: it sets a row that stands for nobody.
    #[error("HAProxy refuses the key; no row was changed; the table must be of type ipv6")]
    InvalidKey,
    /// The table stores no tag, or tags as `gpt(n)`, which this API cannot set by the name `gpt0`.
    #[error("HAProxy's table stores no gpt0; no tag was set; it must say `store gpt0`")]
    NoTag,
    /// The socket may only read.
    #[error(
        "HAProxy's socket may not touch tables; no row was changed or read; it must have `level operator` or `admin`"
    )]
    Permission,
    /// Anything else.
    #[error("HAProxy refuses the command in words that are unknown here; no row was changed")]
    Other,
}

/// What identifies a HAProxy process. Another process has another table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// Its version, such as `2.6.12-1+deb12u4`.
    pub version: String,
    /// Its process number.
    pub pid: u32,
    /// Seconds since its start.
    pub uptime_seconds: u64,
}

/// An answer to `show info` without a version, a process number or a time since its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "HAProxy's answer to `show info` lacks `{0}`; the process is not recognised; is this HAProxy 2.6 or later?"
)]
pub struct InfoLacks(pub &'static str);

impl TableName {
    /// Takes a name.
    ///
    /// # Errors
    /// When HAProxy could not have a table of this name.
    pub fn new(name: &str) -> Result<Self, NotATableName> {
        let is_part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':');
        let is_name = (1..=MOST_NAME_BYTES).contains(&name.len()) && name.bytes().all(is_part);
        is_name.then(|| Self(name.to_owned())).ok_or(NotATableName)
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

impl Command<'_> {
    /// The command's line, its end included.
    pub fn encode(&self) -> String {
        match self {
            Self::Prompt => "prompt\n".to_owned(),
            Self::SetTag { table, circuit, tag } => {
                format!("set table {table} key {} data.gpt0 {tag}\n", circuit.address())
            }
            Self::Clear { table, circuit } => format!("clear table {table} key {}\n", circuit.address()),
            Self::Reset { table, circuit } => {
                format!("set table {table} key {} data.gpt0 0 data.gpc0 0\n", circuit.address())
            }
            Self::ClearAll { table } => format!("clear table {table}\n"),
            Self::SetMark { table, mark } => format!("set table {table} key {MARK} data.gpt0 {mark}\n"),
            Self::ShowMark { table } => format!("show table {table} key {MARK}\n"),
            Self::ShowOpen { table } => format!("show table {table} data.conn_cur gt 0\n"),
            Self::ShowTable { table, tag: None } => format!("show table {table}\n"),
            Self::ShowTable { table, tag: Some(tag) } => format!("show table {table} data.gpt0 eq {tag}\n"),
            Self::ShowInfo => "show info\n".to_owned(),
        }
    }
}

/// Reads the answer to [`Command::SetTag`] or [`Command::Clear`]: nothing but an empty line is success.
///
/// # Errors
/// When HAProxy refused.
pub fn changed(answer: &str) -> Result<(), Refused> {
    if answer.trim_end_matches('\n').is_empty() { Ok(()) } else { Err(Refused::of(answer)) }
}

/// Reads the answer to [`Command::ShowMark`]: the mark, if there is one. HAProxy has nothing to say of a key without a row.
///
/// # Errors
/// As [`Table::parse`].
pub fn mark(answer: &str) -> Result<Option<u32>, TableError> {
    if answer.trim_end_matches('\n').is_empty() {
        return Ok(None);
    }
    let table = Table::parse(answer)?;
    Ok(table.rows.iter().find(|row| row.key == MARK).and_then(|row| row.tag))
}

impl Refused {
    fn of(answer: &str) -> Self {
        match answer.lines().next().unwrap_or_default().trim_end() {
            "No such table" => Self::NoSuchTable,
            "Invalid key" => Self::InvalidKey,
            "Unknown data type" | "Data type not stored in this table" => Self::NoTag,
            "Filter entry #1: Unknown data type" | "Filter entry #1: Data type not stored in this table" => {
                Self::NoTag
            }
            "Permission denied" => Self::Permission,
            _ => Self::Other,
        }
    }
}

impl Info {
    /// Reads the answer to [`Command::ShowInfo`].
    ///
    /// # Errors
    /// When it lacks one of the three.
    pub fn parse(answer: &str) -> Result<Self, InfoLacks> {
        let value = |key: &'static str| {
            let find = |line: &'_ str| Some(line.strip_prefix(key)?.strip_prefix(": ")?.to_owned());
            answer.lines().find_map(find).ok_or(InfoLacks(key))
        };
        Ok(Self {
            version: value("Version")?,
            pid: value("Pid")?.parse().map_err(|_| InfoLacks("Pid"))?,
            uptime_seconds: value("Uptime_sec")?.parse().map_err(|_| InfoLacks("Uptime_sec"))?,
        })
    }
}

impl Row {
    /// The circuit whose row it is.
    ///
    /// # Errors
    /// When the key stands for none, as where HAProxy tracked a connection before it had read its PROXY header.
    pub fn circuit(&self) -> Result<RawCircuit, NotACircuit> {
        RawCircuit::of(IpAddr::V6(self.key))
    }
}
