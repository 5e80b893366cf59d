//! Tor's MetricsPort: how much a tor has to do, read from its answer.
//!
//! Source: the [text format 0.0.4](https://prometheus.io/docs/instrumenting/exposition_formats/) and answers of tor 0.4.9.11,
//! which the tests read. Only the families that tell of load are read, each summed over onion services and reasons; a
//! service's name is looked at nowhere and kept nowhere. All other families are stepped over, their lines unread.
//!
//! A reload of tor's configuration (SIGHUP, SETCONF) sets all of these back to zero in the same process, and what ends
//! afterwards is still subtracted, so that a gauge goes below zero (seen: -5). Whoever compares two readings must expect
//! both.
//!
//! Prometheus client libraries write this format; the one parser for it, `prometheus-parse` 0.2, keeps all series with all
//! labels in maps and takes every number for a float, which is inexact from 2^53.

use thiserror::Error;

/// The longest answer that is read, in bytes. A service has 5 KB, and what belongs to none 26 KB.
pub const MOST_BYTES: usize = 4 << 20;

/// The load of one tor process, all its onion services together; `None` where the answer has no such family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TorMetrics {
    /// Introductions received, `tor_hs_intro_num_total`.
    pub introductions: Option<u64>,
    /// Introductions rejected, for whatever reason, `tor_hs_intro_rejected_intro_req_count`.
    pub rejections: Option<u64>,
    /// Rendezvous circuits made, `tor_hs_rdv_num_total`.
    pub rendezvous: Option<u64>,
    /// Rendezvous circuits open, `tor_hs_rdv_established_count`. May be below zero.
    pub open_rendezvous: Option<i64>,
    /// Introductions that wait in the queue of Tor's own proof of work, `tor_hs_rdv_pow_pqueue_count`. May be below zero.
    pub puzzle_queue: Option<i64>,
    /// What Tor's own proof of work suggests to clients, `tor_hs_pow_suggested_effort`: the highest of all services, since
    /// efforts are no amounts to add.
    pub suggested_effort: Option<u64>,
}

/// An answer that cannot be read. It is not quoted: it names onion services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("line {line} of tor's metrics {fault}; the answer is not used")]
pub struct MetricsError {
    /// From 1.
    pub line: usize,
    /// What is wrong.
    pub fault: MetricsFault,
}

/// What is wrong with an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MetricsFault {
    /// More than [`MOST_BYTES`].
    #[error("and those before it have more than {MOST_BYTES} bytes")]
    TooLong,
    /// The last line has no end: the connection broke.
    #[error("is the last and has no end")]
    Truncated,
    /// A family that is read, and what follows its name is no `{label="value",…}`.
    #[error("has labels that are no `{{name=\"value\",…}}`")]
    Labels,
    /// A family that is read, without a whole number that fits; a counter's is not below zero.
    #[error("has no whole number, or one that does not fit")]
    Number,
    /// A family that is read, whose sum over services does not fit.
    #[error("brings a sum beyond 64 bits")]
    Sum,
}

impl TorMetrics {
    /// Reads the body of an answer.
    ///
    /// # Errors
    /// When it is too long, is cut off, or says something of a family that is read that cannot be understood.
    pub fn parse(body: &str) -> Result<Self, MetricsError> {
        if body.len() > MOST_BYTES {
            let read = body.as_bytes().get(..MOST_BYTES).unwrap_or_default();
            let line = 1 + read.iter().filter(|byte| **byte == b'\n').count();
            return Err(MetricsError { line, fault: MetricsFault::TooLong });
        }
        let mut metrics = Self::default();
        for (line, number) in body.split_inclusive('\n').zip(1..) {
            let fault_at = |fault| MetricsError { line: number, fault };
            let line = line.strip_suffix('\n').ok_or(fault_at(MetricsFault::Truncated))?;
            metrics.take(line).map_err(fault_at)?;
        }
        Ok(metrics)
    }

    fn take(&mut self, line: &str) -> Result<(), MetricsFault> {
        let end = line.find(|letter: char| !(letter.is_ascii_alphanumeric() || matches!(letter, '_' | ':')));
        let (name, rest) = line.split_at(end.unwrap_or(line.len()));
        match name {
            "tor_hs_intro_num_total" => add(&mut self.introductions, value(rest)?, u64::checked_add),
            "tor_hs_intro_rejected_intro_req_count" => {
                add(&mut self.rejections, value(rest)?, u64::checked_add)
            }
            "tor_hs_rdv_num_total" => add(&mut self.rendezvous, value(rest)?, u64::checked_add),
            "tor_hs_rdv_established_count" => add(&mut self.open_rendezvous, value(rest)?, i64::checked_add),
            "tor_hs_rdv_pow_pqueue_count" => add(&mut self.puzzle_queue, value(rest)?, i64::checked_add),
            "tor_hs_pow_suggested_effort" => {
                add(&mut self.suggested_effort, value(rest)?, |one, other| Some(one.max(other)))
            }
            // Other families, comments, empty lines.
            _ => Ok(()),
        }
    }
}

fn add<N: Copy>(
    sum: &mut Option<N>,
    value: N,
    with: impl FnOnce(N, N) -> Option<N>,
) -> Result<(), MetricsFault> {
    *sum = Some(match *sum {
        Some(before) => with(before, value).ok_or(MetricsFault::Sum)?,
        None => value,
    });
    Ok(())
}

/// The number behind labels, if there are any: `{onion="…",reason="replay"} 0`, with a time behind it or without.
fn value<N: std::str::FromStr>(rest: &str) -> Result<N, MetricsFault> {
    let rest = match rest.strip_prefix('{') {
        Some(labels) => behind_labels(labels).ok_or(MetricsFault::Labels)?,
        None if rest.starts_with([' ', '\t']) => rest,
        None => return Err(MetricsFault::Labels),
    };
    let mut words = rest.split([' ', '\t']).filter(|word| !word.is_empty());
    let number = words.next().filter(|word| !word.starts_with('+')).and_then(|word| word.parse().ok());
    let is_time = words.next().is_none_or(|word| word.parse::<i64>().is_ok());
    number.filter(|_| is_time && words.next().is_none()).ok_or(MetricsFault::Number)
}

/// What stands behind the brace that ends labels. A value in quotes may hold anything, braces and escaped quotes too.
fn behind_labels(labels: &str) -> Option<&str> {
    let mut rest = labels;
    loop {
        if let Some(behind) = rest.strip_prefix('}') {
            return Some(behind);
        }
        let (name, quoted) = rest.split_once("=\"")?;
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        if name.is_empty() || !name.bytes().all(is_name) {
            return None;
        }
        let behind = behind_quote(quoted)?;
        rest = behind.strip_prefix(',').or(behind.starts_with('}').then_some(behind))?;
    }
}

/// What stands behind the quote that ends a value.
fn behind_quote(quoted: &str) -> Option<&str> {
    let mut is_escaped = false;
    let end = quoted.bytes().position(|byte| {
        let is_end = byte == b'"' && !is_escaped;
        is_escaped = byte == b'\\' && !is_escaped;
        is_end
    })?;
    quoted.get(end + 1..)
}
