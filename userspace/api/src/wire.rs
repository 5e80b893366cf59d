//! The envelope around requests and answers.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use thiserror::Error;

use crate::{SCHEMA, request::Request, view::Answer};

/// A request line, its newline included, may not be longer: 64 KiB.
pub const MAX_REQUEST_BYTES: usize = 64 * 1024;
/// An answer line may not be longer: 64 MiB, some 300 bytes for each of 131 072 bans and room to grow.
pub const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;

/// Why a line is no message of ours.
#[derive(Debug, Error)]
pub enum WireError {
    /// Not JSON, or not the shape asked for.
    #[error(
        "byte {column} of line {line}: {reason}; the message is ignored; send one JSON object a line, as the reference shows"
    )]
    Malformed {
        /// Line of the fault, from 1.
        line: usize,
        /// Byte in that line, from 1.
        column: usize,
        /// What serde says.
        reason: String,
    },
    /// A schema this side does not know.
    #[error(
        "the message has schema {got}, this side speaks {SCHEMA}; use `tunica` and `tunicad` of one version"
    )]
    Schema {
        /// The number received.
        got: u32,
    },
}

#[derive(Deserialize)]
struct SchemaOnly {
    schema: u32,
}

#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    schema: u32,
    #[serde(flatten)]
    body: T,
}

fn read<T: DeserializeOwned>(line: &[u8]) -> Result<T, WireError> {
    let malformed = |error: serde_json::Error| WireError::Malformed {
        line: error.line(),
        column: error.column(),
        reason: error.to_string(),
    };
    // The schema first, so that a newer peer is told its version is the problem and not some field.
    let SchemaOnly { schema } = serde_json::from_slice(line).map_err(malformed)?;
    if schema != SCHEMA {
        return Err(WireError::Schema { got: schema });
    }
    let envelope: Envelope<T> = serde_json::from_slice(line).map_err(malformed)?;
    Ok(envelope.body)
}

fn write<T: Serialize>(body: T) -> Result<Vec<u8>, serde_json::Error> {
    let mut line = serde_json::to_vec(&Envelope { schema: SCHEMA, body })?;
    line.push(b'\n');
    Ok(line)
}

/// Reads a line of [`crate::front`].
///
/// # Errors
/// [`WireError`] names the byte or the schema number.
pub fn read_message<T: DeserializeOwned>(line: &[u8]) -> Result<T, WireError> {
    read(line)
}

/// A line of [`crate::front`], with its newline.
///
/// # Errors
/// None in practice: the types have no shape that JSON lacks.
pub fn write_message<T: Serialize>(message: &T) -> Result<Vec<u8>, serde_json::Error> {
    write(message)
}

/// Reads a request line.
///
/// # Errors
/// [`WireError`] names the byte or the schema number.
pub fn read_request(line: &[u8]) -> Result<Request, WireError> {
    read(line)
}

/// Reads an answer line.
///
/// # Errors
/// [`WireError`] names the byte or the schema number.
pub fn read_answer(line: &[u8]) -> Result<Answer, WireError> {
    read(line)
}

/// A request as a line, newline included.
///
/// # Errors
/// Only if serialisation itself fails, which these types give no cause for.
pub fn write_request(request: &Request) -> Result<Vec<u8>, serde_json::Error> {
    write(request)
}

/// An answer as a line, newline included.
///
/// # Errors
/// Only if serialisation itself fails, which these types give no cause for.
pub fn write_answer(answer: &Answer) -> Result<Vec<u8>, serde_json::Error> {
    write(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tunica_core::time::WallTime;

    use crate::{
        request::{BanAdd, Length, Report},
        view::{Change, Counter, Counters, Differences},
    };

    #[test]
    fn requests_survive_the_wire() {
        let request = Request::BanAdd(BanAdd {
            source: "192.0.2.7".parse().unwrap(),
            length: Length::Seconds(300),
            reason: "scan".to_owned(),
            operator: Some("2001:db8::9".parse().unwrap()),
            dry_run: true,
        });
        let line = write_request(&request).unwrap();
        assert_eq!(
            String::from_utf8(line.clone()).unwrap(),
            "{\"schema\":1,\"verb\":\"ban_add\",\"source\":\"192.0.2.7\",\"length\":{\"seconds\":300},\"reason\":\"scan\",\"operator\":\"2001:db8::/64\",\"dry_run\":true}\n"
        );
        assert_eq!(read_request(&line).unwrap(), request);
    }

    #[test]
    fn reports_name_a_source_and_no_range() {
        let line =
            "{\"schema\":1,\"verb\":\"report\",\"source\":\"2001:db8::9\",\"reason\":\"wrong password\"}\n";
        let request = Request::Report(Report {
            source: "2001:db8::/64".parse().unwrap(),
            reason: "wrong password".to_owned(),
            service: None,
            dry_run: false,
        });
        assert_eq!(read_request(line.as_bytes()).unwrap(), request);
        assert!(request.is_report() && !request.is_read_only());
        let range = line.replace("2001:db8::9", "192.0.2.0/24");
        let message = read_request(range.as_bytes()).unwrap_err().to_string();
        assert!(message.contains("192.0.2.0/24"), "{message}");
    }

    #[test]
    fn requests_without_fields_take_none() {
        for (request, line) in [
            (Request::Counters {}, "{\"schema\":1,\"verb\":\"counters\"}\n"),
            (Request::Diff {}, "{\"schema\":1,\"verb\":\"diff\"}\n"),
        ] {
            assert_eq!(String::from_utf8(write_request(&request).unwrap()).unwrap(), line);
            assert_eq!(read_request(line.as_bytes()).unwrap(), request);
            assert!(line.contains(request.verb()));
            assert!(request.is_read_only());
            let more = line.replace('}', ",\"more\":1}");
            assert!(read_request(more.as_bytes()).unwrap_err().to_string().contains("unknown field `more`"));
        }
    }

    #[test]
    fn counters_and_differences_survive_the_wire() {
        let counters = Answer::Counters(Counters {
            started: WallTime(1_000),
            now: WallTime(1_060),
            monotonic_milliseconds: 60_500,
            tables: "/sys/fs/bpf/tunica/x".to_owned(),
            rows: vec![Counter {
                verdict: "syn_rate".to_owned(),
                action: "drop".to_owned(),
                packets: u64::MAX,
                bytes: 60,
            }],
        });
        let differences = Answer::Differences(Differences {
            file: "/etc/tunica/tunica.toml".to_owned(),
            changes: vec![Change {
                key: "shield.mode".to_owned(),
                old: Some("\"observe\"".to_owned()),
                new: None,
                added: Vec::new(),
                removed: Vec::new(),
                needs_restart: false,
            }],
            lifted: vec!["192.0.2.7".parse().unwrap()],
            obstacles: Vec::new(),
        });
        for (answer, line) in [
            (
                counters,
                "{\"schema\":1,\"kind\":\"counters\",\"started\":1000,\"now\":1060,\
                 \"monotonic_milliseconds\":60500,\"tables\":\"/sys/fs/bpf/tunica/x\",\"rows\":[\
                 {\"verdict\":\"syn_rate\",\"action\":\"drop\",\"packets\":18446744073709551615,\"bytes\":60}]}\n",
            ),
            (
                differences,
                "{\"schema\":1,\"kind\":\"differences\",\"file\":\"/etc/tunica/tunica.toml\",\"changes\":[\
                 {\"key\":\"shield.mode\",\"old\":\"\\\"observe\\\"\",\"new\":null,\"added\":[],\"removed\":[],\
                 \"needs_restart\":false}],\"lifted\":[\"192.0.2.7\"],\"obstacles\":[]}\n",
            ),
        ] {
            assert_eq!(String::from_utf8(write_answer(&answer).unwrap()).unwrap(), line);
            assert_eq!(read_answer(line.as_bytes()).unwrap(), answer);
        }
    }

    #[test]
    fn faults_are_named() {
        for (line, part) in [
            ("", "line 1"),
            ("{\"schema\":2,\"verb\":\"status\",\"more\":1}", "schema 2"),
            ("{\"schema\":1,\"verb\":\"reboot\"}", "unknown variant `reboot`"),
            (
                "{\"schema\":1,\"verb\":\"ban_add\",\"source\":\"2001:db8::/80\",\"length\":\"forever\",\"reason\":\"\"}",
                "did you mean 2001:db8::/64",
            ),
        ] {
            let message = read_request(line.as_bytes()).unwrap_err().to_string();
            assert!(message.contains(part), "{line}: {message}");
        }
    }
}
