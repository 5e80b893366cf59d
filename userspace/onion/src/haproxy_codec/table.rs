//! The answer to `show table`.

use std::{fmt, net::Ipv6Addr};

use thiserror::Error;

use super::Refused;

/// Stands for all rows where the socket may not read them.
const UNDER_PRIVILEGED: &str = "# contents not dumped due to insufficient privileges";

/// A table as it was when HAProxy was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Its name.
    pub name: String,
    /// How many rows it can have.
    pub capacity: u64,
    /// How many it has, also those that were not asked for.
    pub used: u64,
    /// Those that were asked for.
    pub rows: Vec<Row>,
}

/// A row. `Debug` is scrubbed.
#[derive(Clone, PartialEq, Eq)]
pub struct Row {
    /// Its key.
    pub key: Ipv6Addr,
    /// How many streams hold it at this moment. A row that is held does not expire.
    pub streams: u64,
    /// Milliseconds until it expires unless it is used; 0 where the table has no expiry.
    pub expires_milliseconds: u64,
    /// Its tag `gpt0`; absent where the table stores none.
    pub tag: Option<u32>,
    /// Its open connections, where the table stores `conn_cur`.
    pub open: Option<u64>,
    /// New connections in the time over which the table counts them (`conn_rate`).
    pub connections: Option<u64>,
    /// Requests likewise (`http_req_rate`).
    pub requests: Option<u64>,
    /// Its counter `gpc0`.
    pub violations: Option<u64>,
}

/// An answer that is no table. It is not quoted, since its keys name circuits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("line {line} of HAProxy's table {fault}; the answer is not used")]
pub struct TableError {
    /// From 1.
    pub line: usize,
    /// What is wrong.
    pub fault: TableFault,
}

/// What is wrong with an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TableFault {
    /// HAProxy refused.
    #[error("is a refusal: {0}")]
    Refused(Refused),
    /// It does not end in an empty line: the connection broke.
    #[error("is the last, without the empty line that ends an answer")]
    Truncated,
    /// The table's keys are no IPv6 addresses.
    #[error("tells of a table of another type than ipv6")]
    Type,
    /// The line with the table's name lacks a number, or a comma.
    #[error("is no `# table: NAME, type: TYPE, size:NUMBER, used:NUMBER`")]
    Heading,
    /// A row without a key that is an IPv6 address.
    #[error("has no key that is an IPv6 address")]
    Key,
    /// A row with a word that is no `name=value`, or with no number where one must stand.
    #[error("has a field that is no `name=value`, or no number where one must stand")]
    Field,
}

impl Table {
    /// Reads an answer, its empty line included. Fields other than those of [`Row`] are stepped over.
    ///
    /// # Errors
    /// When it is a refusal, is cut off, or has a line that cannot be read: a part of a table may pass for a whole one
    /// nowhere.
    pub fn parse(answer: &str) -> Result<Self, TableError> {
        let fault_at = |line| move |fault| TableError { line, fault };
        let whole = answer.strip_suffix("\n\n");
        let mut lines = whole.unwrap_or(answer).split('\n').zip(1..);
        let Some(heading) = lines.next().and_then(|(line, _)| line.strip_prefix("# table: ")) else {
            return Err(fault_at(1)(TableFault::Refused(Refused::of(answer))));
        };
        if whole.is_none() {
            return Err(fault_at(answer.lines().count())(TableFault::Truncated));
        }
        let mut table = Self::heading(heading).map_err(fault_at(1))?;
        for (line, number) in lines {
            if line == UNDER_PRIVILEGED {
                return Err(fault_at(number)(TableFault::Refused(Refused::Permission)));
            }
            table.rows.push(Row::parse(line).map_err(fault_at(number))?);
        }
        Ok(table)
    }

    fn heading(text: &str) -> Result<Self, TableFault> {
        let mut parts = text.split(", ");
        let name = parts.next().filter(|name| !name.is_empty()).ok_or(TableFault::Heading)?;
        let mut part = |prefix| parts.next().and_then(|part: &str| part.strip_prefix(prefix));
        if part("type: ").ok_or(TableFault::Heading)? != "ipv6" {
            return Err(TableFault::Type);
        }
        let mut number = |prefix| part(prefix).and_then(|text| text.parse().ok()).ok_or(TableFault::Heading);
        Ok(Self {
            name: name.to_owned(),
            capacity: number("size:")?,
            used: number("used:")?,
            rows: Vec::new(),
        })
    }
}

impl Row {
    /// `0x55e223129550: key=fc00:dead:beef:4dad::29a use=0 exp=1799907 gpt0=2 conn_rate(10000)=1`.
    fn parse(line: &str) -> Result<Self, TableFault> {
        let (_, fields) = line.split_once(": ").ok_or(TableFault::Key)?;
        let mut fields = fields.split(' ');
        let key = fields.next().and_then(|field| field.strip_prefix("key="));
        let key = key.and_then(|key| key.parse().ok()).ok_or(TableFault::Key)?;
        let mut row = Self {
            key,
            streams: 0,
            expires_milliseconds: 0,
            tag: None,
            open: None,
            connections: None,
            requests: None,
            violations: None,
        };
        for field in fields {
            let (name, value) = field.split_once('=').ok_or(TableFault::Field)?;
            let number = || value.parse::<u64>().map_err(|_| TableFault::Field);
            match name {
                "use" => row.streams = number()?,
                "exp" => row.expires_milliseconds = number()?,
                "gpt0" => row.tag = Some(value.parse().map_err(|_| TableFault::Field)?),
                "conn_cur" => row.open = Some(number()?),
                "gpc0" => row.violations = Some(number()?),
                // With the time over which is counted in brackets.
                _ if name.starts_with("conn_rate(") => row.connections = Some(number()?),
                _ if name.starts_with("http_req_rate(") => row.requests = Some(number()?),
                _ => {}
            }
        }
        Ok(row)
    }
}

impl fmt::Debug for Row {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Row(scrubbed)")
    }
}
