//! `tunica explain`: what the live program would do with packets of a source, and what would change that.

use std::net::IpAddr;

use tunica_api::{
    request,
    view::{Bucket, Explanation, Outcome},
};
use tunica_common::{
    gcra::{Limit, TICK_NANOSECONDS, debt, ticks},
    verdict::{Action, Class, Verdict},
};
use tunica_core::{
    coordinator::Coordinator,
    id::{PacketSource, Prefix},
    time::Now,
};

use crate::{
    shell::xdp::{
        Shield,
        probe::{self, About, Probe, ProbeError},
    },
    views,
};

/// Most probes in one request.
pub const MOST_PACKETS: u32 = 1_000;

/// Runs the probe on a copy of the shield; the live one is only read.
///
/// # Errors
/// [`ProbeError`].
pub fn explain(
    request: &request::Explain,
    coordinator: &Coordinator,
    shield: &Shield,
    probe: &mut Probe,
    now: Now,
) -> Result<Explanation, ProbeError> {
    let address = request.address.to_canonical();
    let source = PacketSource::of(address);
    let key = source.key();
    let port = request.port.unwrap_or(443);
    let packets = request.packets.unwrap_or(1).clamp(1, MOST_PACKETS);
    let policy = shield.tables().policy()?;
    let cells = shield.tables().cells(&key)?;
    let (_, address_bytes) = Prefix::host(address).kernel_key();
    let copy = probe.aim(shield.tables(), About { address: address_bytes, key, port })?;
    let mut outcomes: Vec<Outcome> = Vec::new();
    let mut verdicts = Vec::new();
    for number in 0..packets {
        let source_port = u16::try_from(40_000 + number % 20_000).unwrap_or(40_000);
        let (verdict, action) = copy.run(&probe::syn(address, source_port, port))?;
        verdicts.push((verdict, action));
        match outcomes.last_mut() {
            Some(last) if last.verdict == verdict.label() && last.action == action.label() => last.count += 1,
            _ => outcomes.push(Outcome {
                count: 1,
                verdict: verdict.label().to_owned(),
                action: action.label().to_owned(),
                sentence: verdict.sentence().to_owned(),
            }),
        }
    }
    let limit = Limit { cost_ticks: policy.syn_cost_ticks, tolerance_ticks: policy.syn_tolerance_ticks };
    let milliseconds = |ticks: u32| u64::from(ticks) * TICK_NANOSECONDS / 1_000_000;
    let debts = cells
        .iter()
        .map(|cell| milliseconds(debt(*cell, ticks(now.mono.0), policy.generation, limit)))
        .collect();
    let ban = coordinator.ledger().bans.get(&source).map(|fact| views::ban(source, fact));
    let allow = views::allow_of(coordinator, address);
    verdicts.dedup();
    Ok(Explanation {
        in_truth: views::in_truth(coordinator, shield),
        source,
        probe: describe(address, port, packets),
        outcomes,
        program_id: shield.program_id(),
        generation: policy.generation,
        mode: coordinator.settings().mode.label().to_owned(),
        undo: undo(&verdicts, source, allow.as_ref().map(|allow| (allow.prefix, allow.origin.as_str()))),
        ban,
        allow,
        bucket: Bucket {
            cells,
            debt_milliseconds: debts,
            limit_milliseconds: milliseconds(limit.tolerance_ticks),
        },
    })
}

fn describe(address: IpAddr, port: u16, packets: u32) -> String {
    let what = if packets == 1 { "a TCP SYN".to_owned() } else { format!("{packets} TCP SYNs in a row") };
    format!("{what} from {address} to port {port}, on a copy of the live program's state")
}

/// For each verdict seen, what the operator can do to change it.
fn undo(verdicts: &[(Verdict, Action)], source: PacketSource, allow: Option<(Prefix, &str)>) -> Vec<String> {
    let mut advice = Vec::new();
    for (verdict, action) in verdicts {
        match (verdict.class(), verdict) {
            (Class::Ban, _) => {
                advice.push(format!("lift the ban: `tunica ban remove {source}`"));
                advice.push(format!("or exempt the source: `tunica allow add {}`", source.prefix()));
            }
            (Class::Limit, _) => {
                advice.push(format!("exempt the source from limits: `tunica allow add {}`", source.prefix()));
                advice.push(
                    "or raise shield.syn.per_source_per_second or burst, then `tunica reload`".to_owned(),
                );
            }
            (Class::Port, Verdict::PortClosed) => {
                advice.push("open the port: name it in shield.ports.open, then `tunica reload`".to_owned());
            }
            (Class::Port, _) => {
                advice.push("raise the port's limit under [shield.ports], then `tunica reload`".to_owned());
            }
            (Class::NoSocket, _) => {
                advice.push("raise the limits under [shield.no_socket], then `tunica reload`".to_owned());
            }
            (Class::Icmp, _) => {
                advice.push("raise the limits under [shield.icmp], then `tunica reload`".to_owned());
            }
            (Class::Cookie, _) => {
                advice.push(
                    "nothing is lost: a peer that answers connects; or raise the budget under [shield.port_syn], then \
                     `tunica reload`"
                        .to_owned(),
                );
            }
            (Class::Sanity, verdict) => {
                advice.push(format!(
                    "add \"{}\" to off under [shield.sanity], then `tunica reload`",
                    verdict.label()
                ));
            }
            (Class::Uninspected, verdict) => {
                advice.push(format!(
                    "remove \"{}\" from drop under [shield.uninspected], then `tunica reload`",
                    verdict.label()
                ));
            }
            (Class::Pass, Verdict::Allowed) => match allow {
                Some((prefix, "operator")) => {
                    advice.push(format!("let bans and limits apply again: `tunica allow remove {prefix}`"));
                }
                Some((prefix, "config")) => advice.push(format!(
                    "let bans and limits apply again: remove {prefix} from shield.allow, then `tunica reload`"
                )),
                Some(_) | None => {}
            },
            (Class::Pass, Verdict::Unarmed) => {
                advice.push(
                    "arm the shield: set shield.mode = \"observe\" or \"enforce\", then `tunica reload`"
                        .to_owned(),
                );
            }
            (Class::Pass, _) => {}
        }
        if *action == Action::WouldDrop {
            advice.push("the shield observes: the packet passes until shield.mode = \"enforce\"".to_owned());
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    advice.retain(|line| seen.insert(line.clone()));
    advice
}
