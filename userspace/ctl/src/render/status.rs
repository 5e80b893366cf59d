//! `status`: its first line answers whether the host is protected.

use tunica_api::view::{
    ArmedPort, AttackMode, Cookies, Defence, Interface, OpenIncident, Program, SelfTest, Status, Table, Trial,
};

use super::{
    circuits::new_circuits,
    text::{Align, count, duration, table, wrap},
    threat::in_short,
};
use crate::verb::status::{is_attached_as_requested, is_stale};

/// The state of every defence.
pub(crate) fn status(view: &Status) -> String {
    let mut out = wrap("", "  ", &headline(view));

    if let Some(attack_mode) = &view.attack_mode {
        let AttackMode { since, expires } = attack_mode;
        let text = format!(
            "ATTACK MODE since {since}: stricter than configured until {expires}; `tunica panic off` ends it"
        );
        out.push_str(&wrap("", "  ", &text));
    }

    if let Some(trial) = &view.trial {
        out.push_str(&wrap("", "  ", &on_trial(trial)));
    }

    if let Some(tried) = &view.candidate {
        let text = format!(
            "CANDIDATE {} since {}: would refuse {} packets that pass, would pass {} that are refused; `tunica candidate \
             status`",
            tried.name,
            tried.since,
            count(tried.refuses),
            count(tried.passes)
        );
        out.push_str(&wrap("", "  ", &text));
    }

    if let Some(incident) = &view.incident {
        let OpenIncident { id, since, defences } = incident;
        let text = format!(
            "INCIDENT since {since}: {}; `tunica incident show {id}` tells more",
            defences.join(", ")
        );
        out.push_str(&wrap("", "  ", &text));
    }

    out.push('\n');
    out.push_str(&interfaces(&view.interfaces));
    out.push('\n');
    out.push_str(&defences(&view.defences));
    out.push('\n');
    out.push_str(&tables(&view.tables));
    out.push('\n');
    out.push_str(&field(
        "daemon",
        &format!(
            "tunicad {} since {}, mode {}, generation {}",
            view.version, view.started, view.mode, view.generation
        ),
    ));
    out.push_str(&field("heartbeat", &heartbeat(view)));
    out.push_str(&field("program", &program(&view.program)));
    out.push_str(&field("object", &view.program.object_sha256));
    out.push_str(&field("pinned at", &view.program.pin_path));
    if !view.cookies.state.is_empty() {
        out.push_str(&field("cookies", &cookies(&view.cookies)));
    }
    if let Some(load) = &view.load {
        out.push_str(&field("load", &in_short(load)));
    }
    if let Some(view) = &view.new_circuits {
        out.push_str(&field("circuits", &new_circuits(view)));
    }
    out.push_str(&field("never ban", &never_ban(view)));
    for warning in &view.warnings {
        out.push_str(&field("warning", warning));
    }
    out
}

fn field(name: &str, text: &str) -> String {
    wrap(&format!("{name:<11}"), "           ", text)
}

/// How ports over their SYN budget answer, and which are over it.
fn cookies(view: &Cookies) -> String {
    let state = match view.state.as_str() {
        "ready" => "ready; cookie connections go without window scaling and SACK",
        "ready_with_options" => "ready",
        "waiting" => {
            "ready once tunicad has switched net.ipv4.tcp_syncookies to 2, which it does under attack"
        }
        "disabled" => "switched off by shield.cookies.enabled",
        "no_budget" => "none, because ports have no SYN budget (shield.port_syn.enabled)",
        "no_program" => "NONE: this kernel cannot run the cookie program",
        "sysctl" => "NONE: net.ipv4.tcp_syncookies is not 2",
        other => other,
    };
    if view.ports.is_empty() {
        return state.to_owned();
    }
    let port = |port: &ArmedPort| {
        let returned = port.cookies_returned;
        let tested = match &port.self_test {
            None => String::new(),
            Some(SelfTest { clause, seconds_without_cookies: None, .. }) => format!("; {clause}"),
            Some(SelfTest { clause, seconds_without_cookies: Some(seconds), .. }) => {
                format!("; WITHOUT COOKIES for {} more: {clause}", duration(*seconds))
            }
        };
        format!("{} for {} ({returned} cookies came back{tested})", port.port, duration(port.seconds))
    };
    let ports = view.ports.iter().map(port).collect::<Vec<_>>().join(", ");
    format!("{state}; OVER THE SYN BUDGET: port {ports}")
}

fn on_trial(trial: &Trial) -> String {
    if trial.undone {
        return format!(
            "UNDONE at {}: nobody confirmed the configuration file, so the one before is in force",
            trial.expires
        );
    }
    format!(
        "ON TRIAL since {}: `tunica confirm` within {}, or {}",
        trial.since,
        duration(trial.seconds_left),
        if trial.first_start {
            "the shield is bypassed"
        } else {
            "the configuration before is in force again"
        }
    )
}

/// Whether the host is protected.
fn headline(view: &Status) -> String {
    if let Some(bypass) = &view.bypass {
        return format!("BYPASSED since {}: {}", bypass.since, bypass.reason);
    }
    let (attached, bare): (Vec<_>, Vec<_>) =
        view.interfaces.iter().partition(|interface| is_attached_as_requested(interface));
    let shortfalls = bare.iter().copied().map(shortfall).collect::<Vec<_>>().join(", ");
    if attached.is_empty() {
        let what = if bare.iter().all(|interface| interface.actual == "none") {
            "NOT ATTACHED"
        } else {
            "NOT ATTACHED AS CONFIGURED"
        };
        return format!("{what}: {shortfalls}");
    }
    let places = attached
        .iter()
        .map(|interface| format!("{} ({})", interface.name, interface.actual))
        .collect::<Vec<_>>()
        .join(", ");
    let mut line = match view.mode.as_str() {
        "enforce" => format!("enforcing on {places}"),
        "observe" => format!("observing on {places}, drops nothing"),
        "off" => format!("OFF by configuration on {places}, every packet passes"),
        other => format!("mode {other} on {places}"),
    };
    if !bare.is_empty() {
        line.push_str(&format!(", NOT ATTACHED AS CONFIGURED: {shortfalls}"));
    }
    if view.program.matches {
        line.push_str(", runs the checked program");
    } else if bare.is_empty() {
        line.push_str(", RUNS ANOTHER PROGRAM THAN THE CHECKED ONE");
    }
    if is_stale(&view.heartbeat) {
        line.push_str(", HEARTBEAT STALE");
    }
    line
}

/// What an interface has instead of what its configuration asks for.
fn shortfall(interface: &Interface) -> String {
    match interface.actual.as_str() {
        "none" => format!("{} has no shield", interface.name),
        actual => format!("{} has {actual} instead of {}", interface.name, interface.requested),
    }
}

fn interfaces(rows: &[Interface]) -> String {
    let number = |number: Option<u32>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
    let row = |interface: &Interface| {
        [
            interface.name.clone(),
            interface.requested.clone(),
            interface.actual.clone(),
            number(interface.link_id),
            number(interface.program_id),
            interface.problem.clone().unwrap_or_default(),
        ]
    };
    table(
        [
            ("INTERFACE", Align::Left),
            ("REQUESTED", Align::Left),
            ("ACTUAL", Align::Left),
            ("LINK", Align::Right),
            ("PROGRAM", Align::Right),
            ("PROBLEM", Align::Left),
        ],
        &rows.iter().map(row).collect::<Vec<_>>(),
    )
}

fn defences(rows: &[Defence]) -> String {
    let row = |defence: &Defence| {
        let armed = match (defence.armed, defence.active_since) {
            (false, _) => "not armed".to_owned(),
            (true, None) => "armed".to_owned(),
            (true, Some(since)) => since.to_string(),
        };
        [
            defence.name.clone(),
            armed,
            defence.last_trigger.map_or_else(|| "never".to_owned(), |last| last.to_string()),
            count(defence.dropped_packets),
            count(defence.would_drop_packets),
        ]
    };
    table(
        [
            ("DEFENCE", Align::Left),
            ("ARMED SINCE", Align::Left),
            ("LAST TRIGGER", Align::Left),
            ("DROPPED", Align::Right),
            ("WOULD DROP", Align::Right),
        ],
        &rows.iter().map(row).collect::<Vec<_>>(),
    )
}

fn tables(rows: &[Table]) -> String {
    let row = |table: &Table| [table.name.clone(), count(table.used), count(table.capacity), fill(table)];
    table(
        [("TABLE", Align::Left), ("USED", Align::Right), ("CAPACITY", Align::Right), ("FILL", Align::Right)],
        &rows.iter().map(row).collect::<Vec<_>>(),
    )
}

/// In whole percent, rounded up, so that 0 % means empty and 100 % full only if the table is.
pub(crate) fn fill(table: &Table) -> String {
    let (used, capacity) = (u128::from(table.used), u128::from(table.capacity.max(1)));
    let percent = (used * 100).div_ceil(capacity);
    if percent == 100 && used < capacity { "99 %".to_owned() } else { format!("{percent} %") }
}

fn heartbeat(view: &Status) -> String {
    let heartbeat = &view.heartbeat;
    let limit = duration(heartbeat.stale_after_seconds);
    if is_stale(heartbeat) {
        format!(
            "STALE: {:.1} s old, more than {limit}; the kernel went over to {}",
            heartbeat.age_seconds, heartbeat.on_stale
        )
    } else {
        format!(
            "{:.1} s old; after {limit} the kernel goes over to {}",
            heartbeat.age_seconds, heartbeat.on_stale
        )
    }
}

fn program(program: &Program) -> String {
    match &program.attached_tag {
        None => format!("none attached; tag {} expected", program.expected_tag),
        Some(tag) if *tag == program.expected_tag => format!("tag {tag}, as expected"),
        Some(tag) => format!("tag {tag}, {} EXPECTED", program.expected_tag),
    }
}

fn never_ban(view: &Status) -> String {
    let set = &view.never_ban;
    let read = set.tor_last_read.map_or_else(|| "never read".to_owned(), |when| format!("read {when}"));
    format!(
        "{} tor peers ({read}), {} own addresses; {} bans refused",
        count(set.tor_peers),
        count(set.own_addresses),
        count(set.refused_bans)
    )
}
