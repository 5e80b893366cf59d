//! The daemon's state in the words of the API.

use std::{net::IpAddr, path::Path};

use tunica_api::view::{
    Allow, Allows, ArmedPort, AttackMode, Ban, Bans, Bypass, Change, Cookies, Counter, Counters, Defence,
    Difference, Differences, Done, Heartbeat, Incident, Incidents, Interface, NeverBan, OpenIncident,
    Program, Proposal, Refused, RefusedCode, SelfTest, Softirq, Source, Sources, Spoken, Status, Table,
    Trial, Tuning,
};
use tunica_common::{
    event::{self, difference_slot, tally_slot},
    verdict::{Action, Verdict},
};
use tunica_config::Config;
use tunica_core::{
    coordinator::{self, Coordinator, Reply},
    id::{BanTarget, PacketSource, Prefix},
    ledger::{AllowFact, BanFact, Command},
    self_test::Standing,
    time::{Monotime, Now, WallTime},
};

use crate::shell::xdp::{InterfaceState, Shield, attach::Wanted, hook::Mode, object, tables::Total};

/// One ban.
pub fn ban(target: BanTarget, fact: &BanFact) -> Ban {
    Ban {
        id: fact.id,
        source: target,
        since: fact.since,
        expires: fact.expires,
        rung: fact.rung,
        origin: fact.origin.label().to_owned(),
        reason: fact.reason.clone(),
    }
}

fn self_test(standing: &Standing, now: Monotime) -> Option<SelfTest> {
    let (outcome, at) = standing.last?;
    Some(SelfTest {
        outcome: outcome.label().to_owned(),
        clause: outcome.clause().to_owned(),
        seconds_ago: now.since(at).as_secs(),
        seconds_without_cookies: standing.without_cookies_until.map(|until| until.since(now).as_secs()),
    })
}

/// Every ban.
pub fn bans(coordinator: &Coordinator) -> Bans {
    Bans { bans: coordinator.ledger().all_bans().map(|(target, fact)| ban(target, fact)).collect() }
}

fn operator_allow(prefix: Prefix, fact: &AllowFact) -> Allow {
    Allow {
        id: Some(fact.id),
        prefix,
        since: Some(fact.since),
        expires: fact.expires,
        origin: fact.origin.label().to_owned(),
        reason: fact.reason.clone(),
    }
}

fn config_allow(prefix: Prefix) -> Allow {
    Allow {
        id: None,
        prefix,
        since: None,
        expires: None,
        origin: "config".to_owned(),
        reason: "shield.allow of the configuration".to_owned(),
    }
}

fn tor_allow(peer: IpAddr) -> Allow {
    Allow {
        id: None,
        prefix: Prefix::host(peer),
        since: None,
        expires: None,
        origin: "tor".to_owned(),
        reason: "far end of one of tor's own connections".to_owned(),
    }
}

/// The whole allow list.
pub fn allows(coordinator: &Coordinator) -> Allows {
    let config = coordinator.settings().config_allow.iter().map(|prefix| config_allow(*prefix));
    let operator = coordinator.ledger().allows.iter().map(|(prefix, fact)| operator_allow(*prefix, fact));
    let tor = coordinator.never_ban().peers().map(tor_allow);
    Allows { entries: config.chain(operator).chain(tor).collect() }
}

/// The entry of the allow list that covers `address`, the longest prefix first as the kernel looks it up.
pub fn allow_of(coordinator: &Coordinator, address: IpAddr) -> Option<Allow> {
    let mut entries: Vec<Allow> =
        allows(coordinator).entries.into_iter().filter(|entry| entry.prefix.contains(address)).collect();
    entries.sort_by_key(|entry| entry.prefix.length());
    entries.pop()
}

/// Every counter; `totals` is in slot order, and `directory` is where the counters are pinned.
pub fn counters(totals: &[Total], directory: &Path, started: WallTime, now: Now) -> Counters {
    Counters {
        started,
        now: now.wall,
        monotonic_milliseconds: now.mono.0 / 1_000_000,
        tables: directory.display().to_string(),
        rows: counter_rows(totals),
    }
}

/// A row for each verdict and action.
pub fn counter_rows(totals: &[Total]) -> Vec<Counter> {
    let row = |verdict: Verdict, action: Action| {
        let slot = tally_slot(verdict, action) as usize;
        let total = totals.get(slot).copied().unwrap_or_default();
        Counter {
            verdict: verdict.label().to_owned(),
            action: action.label().to_owned(),
            packets: total.packets,
            bytes: total.bytes,
        }
    };
    Verdict::ALL.iter().flat_map(|verdict| Action::ALL.map(|action| row(*verdict, action))).collect()
}

/// Packets that a candidate would refuse and that pass now, and the reverse, from the kernel's table of differences.
pub fn candidate_differences(totals: &[Total]) -> (Vec<Difference>, Vec<Difference>) {
    let rows = |difference| {
        let row = |verdict: &Verdict| {
            let total = totals.get(difference_slot(difference, verdict.slot()) as usize)?;
            (total.packets > 0).then(|| Difference {
                verdict: verdict.label().to_owned(),
                packets: total.packets,
                bytes: total.bytes,
            })
        };
        Verdict::ALL.iter().filter_map(row).collect()
    };
    (rows(event::Difference::Refuses), rows(event::Difference::Passes))
}

/// Keys that differ, and which of them are `fixed` until a restart.
pub fn changes(changes: Vec<tunica_config::Change>, fixed: &[&str]) -> Vec<Change> {
    changes
        .into_iter()
        .map(|change| Change {
            key: change.key.to_owned(),
            added: change.added(),
            removed: change.removed(),
            old: change.old.map(|value| value.to_string()),
            new: change.new.map(|value| value.to_string()),
            needs_restart: fixed.contains(&change.key),
        })
        .collect()
}

/// What a reload of `file` would do: keys that differ, those of them that are `fixed` until a restart, and the bans that
/// `commands` lift.
pub fn differences(
    file: &Path,
    changes: Vec<tunica_config::Change>,
    fixed: &[&str],
    commands: &[Command],
    obstacles: Vec<String>,
) -> Differences {
    let lifted = commands.iter().filter_map(|command| match command {
        Command::LiftBan { source } => Some(BanTarget::Source(*source)),
        Command::LiftNetBan { prefix } => Some(BanTarget::Range(*prefix)),
        Command::SetBan { .. }
        | Command::SetNetBan { .. }
        | Command::SetMemory { .. }
        | Command::ForgetMemory { .. }
        | Command::SetAllow { .. }
        | Command::LiftAllow { .. }
        | Command::SetBypass { .. }
        | Command::ClearBypass
        | Command::SetAttackMode { .. }
        | Command::ClearAttackMode
        | Command::SetLevelPin { .. }
        | Command::ClearLevelPin
        | Command::SetTrial { .. }
        | Command::UndoTrial
        | Command::ClearTrial
        | Command::SetIncident { .. }
        | Command::SetSyncookies { .. }
        | Command::ClearSyncookies => None,
    });
    Differences {
        file: file.display().to_string(),
        changes: self::changes(changes, fixed),
        lifted: lifted.collect(),
        obstacles,
    }
}

/// Sources in sampled events, at most `limit` of them.
pub fn sources(coordinator: &Coordinator, lost_events: u64, limit: u32) -> Sources {
    let top = coordinator.sources();
    Sources {
        since: top.since(),
        sampled_events: top.samples(),
        lost_events,
        sources: top
            .rows()
            .take(usize::try_from(limit).unwrap_or(usize::MAX))
            .map(|(source, row)| Source {
                source,
                events: row.count,
                overestimate: row.overestimate,
                verdict: row.verdict.label().to_owned(),
                action: row.action.label().to_owned(),
                last_seen: row.last_seen,
                banned: is_banned(coordinator, source),
            })
            .collect(),
    }
}

fn is_banned(coordinator: &Coordinator, source: PacketSource) -> bool {
    let ledger = coordinator.ledger();
    ledger.bans.contains_key(&source) || ledger.nets_around(source.prefix()).next().is_some()
}

/// The answer to a verb that changes something.
pub fn reply(reply: Reply) -> tunica_api::view::Answer {
    match reply {
        Reply::Done { changes, undo, dry_run } => {
            tunica_api::view::Answer::Done(Done { dry_run, changes, undo })
        }
        Reply::Refused { code, message } => {
            let code = match code {
                coordinator::RefusedCode::Protected => RefusedCode::Protected,
                coordinator::RefusedCode::NotFound => RefusedCode::NotFound,
                coordinator::RefusedCode::Full => RefusedCode::Full,
                coordinator::RefusedCode::Invalid => RefusedCode::Invalid,
                coordinator::RefusedCode::Forbidden => RefusedCode::Forbidden,
                coordinator::RefusedCode::OverBudget => RefusedCode::OverBudget,
            };
            refused(code, message)
        }
    }
}

/// One attack.
pub fn incident(id: u32, known: &tunica_core::incident::Incident) -> Incident {
    let percent = |thousandths: u32| f64::from(thousandths) / 10.0;
    Incident {
        id,
        start: known.start,
        end: known.is_over.then_some(known.last),
        last: known.last,
        defences: known.defences.clone(),
        peak_packets_per_second: known.peak_packets_per_second,
        dropped_packets: known.packets(Action::Drop),
        answered_packets: known.packets(Action::Answer),
        would_drop_packets: known.packets(Action::WouldDrop),
        would_answer_packets: known.packets(Action::WouldAnswer),
        rows: known
            .rows
            .iter()
            .map(|row| Spoken {
                verdict: row.verdict.clone(),
                action: row.action.clone(),
                packets: row.packets,
            })
            .collect(),
        ports_over_budget: known.ports.clone(),
        softirq: known.softirq.map(|load| Softirq {
            before_percent: load.before.map(percent),
            average_percent: percent(load.average),
            peak_percent: percent(load.peak),
        }),
    }
}

/// What limits follow from what was seen.
pub fn tuning(since: WallTime, minutes: u64, proposals: Vec<tunica_core::tune::Proposal>) -> Tuning {
    let toml = tunica_core::tune::toml(&proposals);
    let row = |row: tunica_core::tune::Proposal| Proposal {
        key: row.key.to_owned(),
        present: row.present,
        proposed: row.proposed,
        seen: row.seen,
        why: row.why,
    };
    Tuning { since, minutes, proposals: proposals.into_iter().map(row).collect(), toml }
}

/// The last attacks, the newest first.
pub fn incidents(coordinator: &Coordinator) -> Incidents {
    let known = coordinator.incidents();
    Incidents { incidents: known.iter().rev().map(|(id, known)| incident(*id, known)).collect() }
}

/// A refusal.
pub fn refused(code: RefusedCode, message: impl Into<String>) -> tunica_api::view::Answer {
    tunica_api::view::Answer::Refused(Refused { code, message: message.into() })
}

/// The word of a mode that the configuration asks for.
pub const fn requested(wanted: Wanted) -> &'static str {
    match wanted {
        Wanted::Native => "native",
        Wanted::NativeOrGeneric => "native-or-generic",
        Wanted::Nftables => "nftables",
    }
}

/// The word for what is true of an interface: our program's mode, `nftables` where that stands in, or `none`.
pub fn actual(state: &InterfaceState) -> &'static str {
    match (state.is_ours, state.hook) {
        (true, Some(hook)) => hook.mode.label(),
        _ if state.by_nftables => "nftables",
        _ => Mode::None.label(),
    }
}

/// Whether an interface is as the configuration asks.
pub fn is_as_requested(state: &InterfaceState, wanted: Wanted) -> bool {
    match (state.hook.map(|hook| hook.mode), wanted) {
        (_, Wanted::Nftables) => state.by_nftables,
        (Some(Mode::Native | Mode::Offloaded), Wanted::Native | Wanted::NativeOrGeneric) => state.is_ours,
        (Some(Mode::Generic), Wanted::NativeOrGeneric) => state.is_ours,
        (Some(Mode::Generic), Wanted::Native) => false,
        (Some(Mode::Multiple | Mode::None) | None, Wanted::Native | Wanted::NativeOrGeneric) => false,
    }
}

/// Whether the program that is attached is, on every interface for which nftables does not stand in, the one this daemon
/// carries and checked.
pub fn program_matches(interfaces: &[InterfaceState]) -> bool {
    object::object_sha256() == object::recorded_sha256()
        && !interfaces.is_empty()
        && interfaces.iter().all(|interface| interface.is_ours || interface.by_nftables)
}

/// What [`status`] needs beyond the coordinator and the shield.
pub struct Surroundings<'a> {
    /// The configuration in force.
    pub config: &'a Config,
    /// When the daemon started.
    pub started: WallTime,
    /// What the daemon has to say.
    pub warnings: Vec<String>,
    /// See [`tables`].
    pub verified: u64,
}

/// The state of every defence.
pub fn status(coordinator: &Coordinator, shield: &Shield, around: &Surroundings<'_>, now: Now) -> Status {
    let interfaces = shield.interfaces();
    let settings = coordinator.settings();
    let wanted = shield.plan().wanted;
    let beat = shield.tables().last_beat().unwrap_or(0);
    let tag = |tag: u64| format!("{tag:016x}");
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started: around.started,
        mode: settings.mode.label().to_owned(),
        generation: shield.tables().policy().map_or(0, |policy| policy.generation),
        bypass: coordinator
            .ledger()
            .bypass
            .as_ref()
            .map(|fact| Bypass { since: fact.since, reason: fact.reason.clone() }),
        attack_mode: coordinator
            .ledger()
            .attack_mode
            .map(|fact| AttackMode { since: fact.since, expires: fact.expires }),
        trial: coordinator
            .ledger()
            .trial
            .as_ref()
            .filter(|fact| !(fact.is_undone && fact.is_of_first_start()))
            .map(|fact| Trial {
                since: fact.since,
                expires: fact.expires,
                seconds_left: coordinator.trial_left(now).map_or(0, |left| left.as_secs()),
                undone: fact.is_undone,
                first_start: fact.is_of_first_start(),
            }),
        candidate: None,
        load: None,
        new_circuits: None,
        incident: coordinator.open_incident().map(|(id, known)| OpenIncident {
            id,
            since: known.start,
            defences: known.defences.clone(),
        }),
        program: Program {
            object_sha256: object::object_sha256(),
            expected_tag: tag(shield.tag()),
            attached_tag: interfaces.iter().any(|interface| interface.is_ours).then(|| tag(shield.tag())),
            matches: program_matches(&interfaces),
            pin_path: shield.directory().display().to_string(),
        },
        defences: coordinator
            .defences()
            .into_iter()
            .map(|(defence, state)| Defence {
                name: defence.name().to_owned(),
                armed: state.armed_since.is_some(),
                active_since: state.armed_since,
                last_trigger: state.last_trigger,
                dropped_packets: state.dropped_packets,
                would_drop_packets: state.would_drop_packets,
            })
            .collect(),
        cookies: Cookies {
            state: coordinator.cookies().label().to_owned(),
            ports: coordinator
                .armed_ports()
                .map(|armed| ArmedPort {
                    port: armed.port,
                    seconds: now.mono.since(armed.since).as_secs(),
                    seconds_left: armed.until.since(now.mono).as_secs(),
                    cookies_returned: armed.cookies_returned,
                    self_test: coordinator
                        .self_test(armed.port)
                        .and_then(|standing| self_test(standing, now.mono)),
                })
                .collect(),
        },
        tables: tables(coordinator, around.verified),
        heartbeat: Heartbeat {
            age_seconds: now.mono.since(Monotime(beat)).as_secs_f64(),
            stale_after_seconds: settings.stale_after.as_secs(),
            on_stale: settings.on_stale.label().to_owned(),
        },
        never_ban: NeverBan {
            tor_peers: count(coordinator.never_ban().peer_count()),
            own_addresses: count(coordinator.never_ban().own().len()),
            tor_last_read: coordinator.never_ban().tor_last_read(),
            refused_bans: coordinator.refused_bans(),
        },
        warnings: around.warnings.clone(),
        interfaces: interfaces
            .into_iter()
            .map(|state| Interface {
                actual: actual(&state).to_owned(),
                requested: requested(wanted).to_owned(),
                link_id: state.link_id,
                program_id: state.hook.and_then(|hook| hook.program_id),
                problem: state.problem,
                name: state.name,
            })
            .collect(),
    }
}

/// Why packets do not meet the verdicts of the program, where the shield does not stand; `None` where it stands.
pub fn in_truth(coordinator: &Coordinator, shield: &Shield) -> Option<String> {
    if let Some(fact) = &coordinator.ledger().bypass {
        return Some(format!(
            "bypassed since {}: no packet is inspected; `tunica bypass off` ends it",
            fact.since
        ));
    }
    let bare: Vec<_> = shield.interfaces().into_iter().filter(|state| !state.is_ours).collect();
    let names = bare.iter().map(|state| state.name.as_str()).collect::<Vec<_>>().join(", ");
    let then = if bare.iter().all(|state| state.by_nftables) {
        "nftables stands in there, with the same rules; `tunica render nft` says where it differs"
    } else {
        "packets that arrive there are not inspected; `tunica status` says why"
    };
    (!bare.is_empty()).then(|| format!("not attached on {names}: {then}"))
}

/// How full each table is; `verified` is how many sources the kernel's table of them was last seen to hold.
pub fn tables(coordinator: &Coordinator, verified: u64) -> Vec<Table> {
    let rows = &coordinator.desired().tables;
    let settings = coordinator.settings();
    [
        ("bans", count(rows.bans.len()), u64::from(settings.ban_capacity)),
        ("cidrs", count(rows.nets.len()), u64::from(settings.net_capacity)),
        ("allow", count(rows.allow.len()), u64::from(settings.allow_capacity)),
        ("own", count(rows.own.len()), count(tunica_common::policy::OWN_ADDRESSES)),
        ("verified", verified, count(tunica_common::policy::VERIFIED_SOURCES)),
    ]
    .map(|(name, used, capacity)| Table { name: name.to_owned(), used, capacity })
    .to_vec()
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}
