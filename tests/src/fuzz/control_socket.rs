//! The control socket's lines: the daemon's reading of requests, and `tunica`'s of answers.
//!
//! The first byte of an input tells what the rest is: `r` a request's bytes, `a` an answer's, anything else what a
//! request and changes to its line are drawn from.

use std::{net::IpAddr, num::NonZeroU32, sync::LazyLock};

use arbitrary::{Result, Unstructured};
use tokio::{
    io::AsyncReadExt,
    runtime::{Builder, Runtime},
};
use tunica_api::{
    request::{
        AllowAdd, BanAdd, CandidateLoad, CircuitOrder, CircuitSort, CircuitState, Explain, Length, Reload,
        Report, Request,
    },
    wire::{MAX_REQUEST_BYTES, read_answer, read_request, write_answer, write_request},
};
use tunica_core::{
    id::{BanTarget, PacketSource, Prefix},
    load_level::Level,
};
use tunicad::shell::control_socket::read_line;

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_current_thread().enable_time().build().unwrap());

/// A line of each verb, answers of several kinds, and bytes to draw from.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = requests()
        .iter()
        .map(|request| [b"r\0\0", write_request(request).unwrap().as_slice()].concat())
        .collect();
    seeds.extend(
        [
            r#"{"schema":1,"kind":"bans","bans":[]}"#,
            r#"{"schema":1,"kind":"done","changed":["a"],"dry_run":true}"#,
            r#"{"schema":1,"kind":"refused","code":"not_found","message":"no such ban"}"#,
            r#"{"schema":2,"kind":"later"}"#,
        ]
        .map(|line| format!("a{line}\n").into_bytes()),
    );
    seeds.extend((0..16).map(|seed| (0..96u8).map(|at| at.wrapping_mul(29).wrapping_add(seed)).collect()));
    seeds
}

/// For all bytes, the daemon takes the first line whatever pieces it comes in, and what it understands is what it would
/// write.
pub fn check(bytes: &[u8]) {
    let mut rest = bytes;
    match super::take_byte(&mut rest) {
        b'r' => {
            let (padding, cut) = (super::take_byte(&mut rest), super::take_byte(&mut rest));
            a_request_is_read(rest, padding, cut);
        }
        b'a' => an_answer_is_read(rest),
        _ => {
            let mut drawn = Unstructured::new(rest);
            // Drawing ends early only where the bytes run out.
            let _ = a_changed_request_is_read(&mut drawn);
        }
    }
}

/// `padding` blanks of 1 KiB stand before the bytes, because few inputs are as long as the limit.
fn a_request_is_read(bytes: &[u8], padding: u8, cut: u8) {
    let sent = [&b" ".repeat(usize::from(padding) * 1024), bytes].concat();
    let (first, second) = sent.split_at(usize::from(cut).min(sent.len()));
    let line = RUNTIME.block_on(read_line(&mut first.chain(second)));
    let end = sent.iter().position(|byte| *byte == b'\n').map_or(sent.len(), |at| at + 1);
    let Some(line) = line else {
        assert!(sent.is_empty(), "the daemon says nothing");
        return;
    };
    match line {
        Ok(line) => {
            assert!(end <= MAX_REQUEST_BYTES, "{end} bytes are taken");
            assert!(sent.get(..end) == Some(&line), "not the first line");
            if let Ok(request) = read_request(&line) {
                survives_the_wire(&request);
            }
        }
        Err(reason) => {
            assert!(end > MAX_REQUEST_BYTES, "{end} bytes are refused: {reason}");
        }
    }
}

fn an_answer_is_read(bytes: &[u8]) {
    if let Ok(answer) = read_answer(bytes) {
        let line = write_answer(&answer).unwrap();
        assert_eq!(read_answer(&line).unwrap(), answer);
    }
}

fn survives_the_wire(request: &Request) {
    let line = write_request(request).unwrap();
    assert_eq!(line.iter().position(|byte| *byte == b'\n'), Some(line.len() - 1), "one line");
    assert_eq!(read_request(&line).unwrap(), *request);
    let object: serde_json::Value = serde_json::from_slice(&line).unwrap();
    assert_eq!(object.get("verb").and_then(|verb| verb.as_str()), Some(request.verb()));
}

fn a_changed_request_is_read(drawn: &mut Unstructured<'_>) -> Result<()> {
    let request = request(drawn)?;
    survives_the_wire(&request);
    let mut line = write_request(&request).unwrap();
    let cut = drawn.arbitrary()?;
    for _ in 0..drawn.int_in_range(0..=6)? {
        let at = drawn.choose_index(line.len() + 1)?;
        let until = (at + drawn.int_in_range(0..=8)?).min(line.len());
        let length = drawn.int_in_range(0..=8)?;
        line.splice(at..until, drawn.bytes(length)?.iter().copied());
    }
    a_request_is_read(&line, 0, cut);
    Ok(())
}

/// One of each verb.
fn requests() -> Vec<Request> {
    let source = PacketSource::of([192, 0, 2, 7].into());
    let prefix: Prefix = "2001:db8::/48".parse().unwrap();
    let reason = || "scan \"\u{1f9c5}\"\n".to_owned();
    vec![
        Request::Status {},
        Request::Counters {},
        Request::Diff {},
        Request::BanList {},
        Request::BanAdd(BanAdd {
            source: source.into(),
            length: Length::Seconds(300),
            reason: reason(),
            operator: Some(PacketSource::of([198, 51, 100, 1].into())),
            dry_run: true,
        }),
        Request::BanRemove { source: source.into(), dry_run: false },
        Request::BanRemove { source: BanTarget::Range(prefix), dry_run: true },
        Request::Report(Report { source, reason: reason(), service: Some("imap".to_owned()), dry_run: true }),
        Request::AllowList {},
        Request::AllowAdd(AllowAdd { prefix, length: Length::Forever, reason: reason(), dry_run: false }),
        Request::AllowRemove { prefix, dry_run: true },
        Request::Sources { limit: 10 },
        Request::Explain(Explain { address: prefix.address(), port: Some(443), packets: Some(30) }),
        Request::Reload(Reload { confirm_seconds: Some(120), session: Some(prefix.address()) }),
        Request::Confirm {},
        Request::PanicOn { seconds: 3_600, dry_run: true },
        Request::PanicOff { dry_run: false },
        Request::IncidentList {},
        Request::IncidentShow { id: 7 },
        Request::Tune { force: true },
        Request::BypassOn { reason: reason() },
        Request::BypassOff {},
        Request::CandidateLoad(CandidateLoad { name: "/tmp/\u{1f9c5}.toml".to_owned(), text: reason() }),
        Request::CandidateStatus {},
        Request::CandidatePromote {},
        Request::CandidateDrop {},
        Request::CircuitList { limit: 20, sort: CircuitSort::Bytes },
        Request::CircuitClose { circuit: NonZeroU32::MIN, dry_run: true },
        Request::CircuitExplain { circuit: NonZeroU32::MAX },
        Request::CircuitOrder(CircuitOrder {
            circuit: NonZeroU32::MIN,
            state: CircuitState::Banned { seconds: 300 },
            dry_run: true,
        }),
        Request::Threat {},
        Request::ThreatSet { level: Level::UnderAttack, seconds: Some(300), dry_run: true },
        Request::ThreatClear { dry_run: true },
        Request::TokenRevokeAll { dry_run: true },
        Request::Doctor {},
    ]
}

fn request(drawn: &mut Unstructured<'_>) -> Result<Request> {
    Ok(match drawn.choose_iter(requests())? {
        Request::BanAdd(_) => Request::BanAdd(BanAdd {
            source: target(drawn)?,
            length: length(drawn)?,
            reason: drawn.arbitrary()?,
            operator: if drawn.arbitrary()? { Some(source(drawn)?) } else { None },
            dry_run: drawn.arbitrary()?,
        }),
        Request::BanRemove { .. } => {
            Request::BanRemove { source: target(drawn)?, dry_run: drawn.arbitrary()? }
        }
        Request::Report(_) => Request::Report(Report {
            source: source(drawn)?,
            reason: drawn.arbitrary()?,
            service: drawn.arbitrary()?,
            dry_run: drawn.arbitrary()?,
        }),
        Request::AllowAdd(_) => Request::AllowAdd(AllowAdd {
            prefix: prefix(drawn)?,
            length: length(drawn)?,
            reason: drawn.arbitrary()?,
            dry_run: drawn.arbitrary()?,
        }),
        Request::AllowRemove { .. } => {
            Request::AllowRemove { prefix: prefix(drawn)?, dry_run: drawn.arbitrary()? }
        }
        Request::Sources { .. } => Request::Sources { limit: drawn.arbitrary()? },
        Request::Explain(_) => Request::Explain(Explain {
            address: address(drawn)?,
            port: drawn.arbitrary()?,
            packets: drawn.arbitrary()?,
        }),
        Request::Reload(_) => {
            let session = if drawn.arbitrary()? { Some(address(drawn)?) } else { None };
            Request::Reload(Reload { confirm_seconds: drawn.arbitrary()?, session })
        }
        Request::PanicOn { .. } => {
            Request::PanicOn { seconds: drawn.arbitrary()?, dry_run: drawn.arbitrary()? }
        }
        Request::PanicOff { .. } => Request::PanicOff { dry_run: drawn.arbitrary()? },
        Request::IncidentShow { .. } => Request::IncidentShow { id: drawn.arbitrary()? },
        Request::Tune { .. } => Request::Tune { force: drawn.arbitrary()? },
        Request::BypassOn { .. } => Request::BypassOn { reason: drawn.arbitrary()? },
        Request::CandidateLoad(_) => {
            Request::CandidateLoad(CandidateLoad { name: drawn.arbitrary()?, text: drawn.arbitrary()? })
        }
        Request::CircuitList { .. } => Request::CircuitList {
            limit: drawn.arbitrary()?,
            sort: match drawn.int_in_range(0..=3)? {
                0 => CircuitSort::Busy,
                1 => CircuitSort::Age,
                2 => CircuitSort::Bytes,
                _ => CircuitSort::Violations,
            },
        },
        Request::CircuitClose { .. } => {
            Request::CircuitClose { circuit: drawn.arbitrary()?, dry_run: drawn.arbitrary()? }
        }
        Request::CircuitExplain { .. } => Request::CircuitExplain { circuit: drawn.arbitrary()? },
        Request::CircuitOrder(_) => Request::CircuitOrder(CircuitOrder {
            circuit: drawn.arbitrary()?,
            state: match drawn.int_in_range(0..=3)? {
                0 => CircuitState::Banned { seconds: drawn.arbitrary()? },
                1 => CircuitState::Vip,
                2 => CircuitState::Unbanned,
                _ => CircuitState::Demoted,
            },
            dry_run: drawn.arbitrary()?,
        }),
        Request::ThreatSet { .. } => Request::ThreatSet {
            level: drawn.choose_iter(Level::ALL)?,
            seconds: drawn.arbitrary()?,
            dry_run: drawn.arbitrary()?,
        },
        Request::ThreatClear { .. } => Request::ThreatClear { dry_run: drawn.arbitrary()? },
        Request::TokenRevokeAll { .. } => Request::TokenRevokeAll { dry_run: drawn.arbitrary()? },
        plain @ (Request::Status {}
        | Request::Counters {}
        | Request::Diff {}
        | Request::BanList {}
        | Request::AllowList {}
        | Request::Confirm {}
        | Request::IncidentList {}
        | Request::BypassOff {}
        | Request::CandidateStatus {}
        | Request::CandidatePromote {}
        | Request::CandidateDrop {}
        | Request::Threat {}
        | Request::Doctor {}) => plain,
    })
}

fn length(drawn: &mut Unstructured<'_>) -> Result<Length> {
    let seconds = Length::Seconds(drawn.arbitrary()?);
    drawn.choose_iter([Length::Ladder, seconds, Length::Forever])
}

/// Any address of either family.
pub(super) fn address(drawn: &mut Unstructured<'_>) -> Result<IpAddr> {
    if drawn.arbitrary()? {
        Ok(drawn.arbitrary::<[u8; 4]>()?.into())
    } else {
        Ok(drawn.arbitrary::<[u8; 16]>()?.into())
    }
}

/// Any source.
pub(super) fn source(drawn: &mut Unstructured<'_>) -> Result<PacketSource> {
    Ok(PacketSource::of(address(drawn)?))
}

/// Any source, or any range that can be banned.
fn target(drawn: &mut Unstructured<'_>) -> Result<BanTarget> {
    let prefix = prefix(drawn)?;
    Ok(prefix.to_string().parse().unwrap_or_else(|_| PacketSource::of(prefix.address()).into()))
}

/// Any range: an address, a source's, or the one that stands in the drawn text.
pub(super) fn prefix(drawn: &mut Unstructured<'_>) -> Result<Prefix> {
    let address = address(drawn)?;
    let length = drawn.int_in_range(0..=if address.is_ipv4() { 32 } else { 128 })?;
    let masked = match address {
        IpAddr::V4(v4) => {
            IpAddr::from((v4.to_bits() & u32::MAX.checked_shl(32 - length).unwrap_or(0)).to_be_bytes())
        }
        IpAddr::V6(v6) => {
            IpAddr::from((v6.to_bits() & u128::MAX.checked_shl(128 - length).unwrap_or(0)).to_be_bytes())
        }
    };
    Ok(format!("{masked}/{length}").parse().unwrap())
}
