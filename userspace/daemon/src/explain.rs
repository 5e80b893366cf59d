//! `tunica explain`: what the live program would do with packets of a source, and what would change that.

use std::{collections::BTreeSet, net::IpAddr};

use tunica_api::{
    request,
    view::{Ban, Bucket, Explanation, Network, Outcome, OverBudget},
};
use tunica_common::{
    gcra::{Limit, TICK_NANOSECONDS, debt, ticks},
    keys::SourceKey,
    policy::{COOKIES_OFF, PORT_WITHOUT_COOKIES, Policy, port_key},
    verdict::{Action, Class, Verdict},
};
use tunica_core::{
    coordinator::Coordinator,
    id::{BanTarget, PacketSource, Prefix},
    limits::{Mode, Transport},
    self_test,
    time::{Monotime, Now, WallTime},
};

use crate::{
    shell::{
        listeners,
        xdp::{
            Shield,
            probe::{self, About, Probe, ProbeError},
            tables::{TableError, Tables},
        },
    },
    views,
};

pub mod circuit;

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
    let allow = views::allow_of(coordinator, address);
    let network = network(&policy, source, shield.tables(), allow.as_ref().map(|allow| allow.prefix), now)?;
    let cells = shield.tables().cells(&network.as_ref().map_or(key, |network| counted_by(network.prefix)))?;
    let over_budget = over_budget(&policy, port, coordinator, shield.tables(), now)?;
    let (_, address_bytes) = Prefix::host(address).kernel_key();
    // A kernel that does not tell who listens leaves any address of this host.
    let listening = listeners::on(port).unwrap_or_default();
    let destination = probe::destination(address, coordinator.never_ban().own(), &listening);
    let (_, destination_bytes) = Prefix::host(destination).kernel_key();
    let about = About { address: address_bytes, key, destination: destination_bytes, port };
    let copy = probe.aim(shield.tables(), about)?;
    let mut outcomes: Vec<Outcome> = Vec::new();
    let mut verdicts = Vec::new();
    for number in 0..packets {
        let source_port = u16::try_from(40_000 + number % 20_000).unwrap_or(40_000);
        let (verdict, action) = copy.run(&probe::syn(address, source_port, destination, port))?;
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
    let ledger = coordinator.ledger();
    let ban = ledger.bans.get(&source).map(|fact| views::ban(source.into(), fact));
    let range_bans: Vec<Ban> = ledger
        .nets_around(source.prefix())
        .map(|(prefix, fact)| views::ban(BanTarget::Range(prefix), fact))
        .collect();
    verdicts.dedup();
    let mut undo = undo(
        &verdicts,
        source,
        &range_bans,
        allow.as_ref().map(|allow| (allow.prefix, allow.origin.as_str())),
    );
    if network.is_some() && allow.is_none() {
        undo.push(exempt_from_limits(source));
    }
    Ok(Explanation {
        in_truth: views::in_truth(coordinator, shield),
        source,
        probe: describe(address, destination, port, packets),
        outcomes,
        program_id: shield.program_id(),
        generation: policy.generation,
        mode: coordinator.settings().mode.label().to_owned(),
        undo: distinct(undo),
        ban,
        range_bans,
        allow,
        network,
        over_budget,
        bucket: Bucket {
            cells,
            debt_milliseconds: debts,
            limit_milliseconds: milliseconds(limit.tolerance_ticks),
        },
    })
}

fn describe(address: IpAddr, destination: IpAddr, port: u16, packets: u32) -> String {
    let what = if packets == 1 { "a TCP SYN".to_owned() } else { format!("{packets} TCP SYNs in a row") };
    format!("{what} from {address} to port {port} of {destination}, on a copy of the live program's state")
}

/// The key in the SYN sketch of an IPv6 network.
fn counted_by(network: Prefix) -> SourceKey {
    let key = PacketSource::of(network.address()).key();
    SourceKey { width: u32::from(network.length()), ..key }
}

/// The network around an IPv6 source that shares one limit now: the wider one, as the kernel looks them up.
fn network(
    policy: &Policy,
    source: PacketSource,
    tables: &Tables,
    allow: Option<Prefix>,
    now: Now,
) -> Result<Option<Network>, TableError> {
    let range = source.prefix();
    if range.address().is_ipv4() || policy.escalate_children == 0 || policy.syn_cost_ticks == 0 {
        return Ok(None);
    }
    let [narrow, wide] = tables.networks_of(source.key().word())?;
    let Some((width, state)) =
        [wide, narrow].into_iter().find(|(_, state)| state.shared_until_ns > now.mono.0)
    else {
        return Ok(None);
    };
    let around = |width: u32| range.around().find(|prefix| u32::from(prefix.length()) == width);
    let (Some(prefix), Some(part)) = (around(width), around(width + 8)) else { return Ok(None) };
    let exceeded = state.children.iter().map(|word| word.count_ones()).sum();
    // The part's number within the network is the byte after the network's own.
    let child = source.key().prefix.get(width as usize / 8).copied().unwrap_or(0);
    let word = state.children.get(usize::from(child / 64)).copied().unwrap_or(0);
    let part_exceeded = word >> (child % 64) & 1 == 1;
    let until = wall(state.shared_until_ns, now);
    let length = part.length();
    let whose = match (part_exceeded, allow) {
        (_, Some(allowed)) => format!("the allow list excuses {allowed}"),
        (true, None) => format!("{part} is one of them"),
        (false, None) => format!("{part} is none of them, and is limited with them"),
    };
    let sentence = format!(
        "{prefix} shares one SYN limit until {until}, or longer while it exceeds that, because {exceeded} of its /{length} \
         exceeded theirs; {whose}"
    );
    Ok(Some(Network { prefix, exceeded, part, part_exceeded, until, sentence }))
}

/// The port, if it is over its SYN budget now.
fn over_budget(
    policy: &Policy,
    port: u16,
    coordinator: &Coordinator,
    tables: &Tables,
    now: Now,
) -> Result<Option<OverBudget>, TableError> {
    let state = tables.port_state(port)?;
    let [cost, _] = policy.budget_pace;
    if cost == 0 || state.armed_until_ns <= now.mono.0 {
        return Ok(None);
    }
    let settings = coordinator.settings();
    let flags = tables.ports()?.get(&port_key(Transport::Tcp.protocol(), port)).map_or(0, |rule| rule.flags);
    let can_answer = policy.cookies != COOKIES_OFF && flags & PORT_WITHOUT_COOKIES == 0;
    let answers = can_answer && settings.mode == Mode::Enforce;
    let (since, until) = (wall(state.armed_since_ns, now), wall(state.armed_until_ns, now));
    let how = if answers {
        "it answers SYNs with cookies, and no SYN counts against its source".to_owned()
    } else if can_answer {
        "in mode `enforce` it would answer SYNs with cookies".to_owned()
    } else {
        let refused = coordinator.without_cookies().find(|(refused, _)| *refused == port);
        let refused = refused.map(|(port, until)| self_test::advice(port, until.since(now.mono)));
        let why = coordinator.cookies().advice().or(refused);
        why.map_or_else(
            || "it answers with no cookies, and the kernel's own defence has its SYNs".to_owned(),
            |why| format!("it answers with no cookies: {why}"),
        )
    };
    let sentence = format!(
        "port {port} has been over its SYN budget since {since} and counts as such until {until} at least; {how}"
    );
    Ok(Some(OverBudget { port, since, until, answers, sentence }))
}

/// A time of the boot's clock by the wall clock, as it is now.
fn wall(mono_ns: u64, now: Now) -> WallTime {
    let at = Monotime(mono_ns);
    match at >= now.mono {
        true => now.wall.after(at.since(now.mono)),
        false => WallTime(now.wall.0.saturating_sub(now.mono.since(at).as_secs())),
    }
}

fn exempt_from_limits(source: PacketSource) -> String {
    format!("exempt the source from limits: `tunica allow add {}`", source.prefix())
}

/// The lines, each once.
fn distinct(mut lines: Vec<String>) -> Vec<String> {
    let mut seen = BTreeSet::new();
    lines.retain(|line| seen.insert(line.clone()));
    lines
}

/// For each verdict seen, what the operator can do to change it.
fn undo(
    verdicts: &[(Verdict, Action)],
    source: PacketSource,
    range_bans: &[Ban],
    allow: Option<(Prefix, &str)>,
) -> Vec<String> {
    let mut advice = Vec::new();
    for (verdict, action) in verdicts {
        match (verdict.class(), verdict) {
            (Class::Ban, verdict) => {
                if *verdict == Verdict::Banned {
                    advice.push(format!("lift the ban: `tunica ban remove {source}`"));
                }
                let lift =
                    |ban: &Ban| format!("lift the ban of the range: `tunica ban remove {}`", ban.source);
                advice.extend(range_bans.iter().map(lift));
                advice.push(format!("or exempt the source: `tunica allow add {}`", source.prefix()));
            }
            (Class::Limit, _) => {
                advice.push(exempt_from_limits(source));
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
            (Class::NoSocket, Verdict::NoListener) => {
                advice.push("start the service that should listen there".to_owned());
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
    advice
}
