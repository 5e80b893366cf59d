//! `tunica explain circuit`: what is done with a circuit's streams, and why. Everything is only read.

use std::{num::NonZeroU32, time::Duration};

use tunica_api::{
    front::{CircuitRow, TOKEN_IN_FORCE},
    view::{CircuitBan, CircuitExplanation, CircuitLimit, LastRefusal, TorCircuit},
};
use tunica_core::{
    circuit_orders::CircuitOrder,
    circuit_policy::{CircuitSettings, TokenRefused},
    circuit_registry::{CircuitRegistry, TorFacts},
    limits::Mode,
    refusal::Refusal,
    time::Monotime,
};

/// Where there is neither a control port nor Arti.
const NOBODY_CLOSES: &str = "nobody closes it, because control under [tor] is not set";

/// Everything that is known of one circuit, and what decides about it.
#[derive(Clone, Copy)]
pub struct Known<'a> {
    /// Its number in its tor process.
    pub circuit: NonZeroU32,
    /// What the ingress last said of it.
    pub row: Option<&'a CircuitRow>,
    /// Whether the ingress reports to this daemon.
    pub has_front: bool,
    /// What operators said of it.
    pub order: Option<CircuitOrder>,
    /// Whether that is a ban of an ingress that has ended, which nobody ordered.
    pub is_carried: bool,
    /// Whether HAProxy banned it.
    pub is_found_by_haproxy: bool,
    /// When the ban that is in force ends.
    pub banned_until: Option<Monotime>,
    /// What tor says.
    pub registry: &'a CircuitRegistry,
    /// Whether a control port is configured.
    pub has_control: bool,
    /// Whether the front hosts the service itself.
    pub is_hosted: bool,
    /// For what tor was asked to close it though nothing bans it.
    pub closed_for: Option<Refusal>,
    /// What the gate does with banned circuits; `None`: it is not attached.
    pub gate: Option<Mode>,
    /// The limits.
    pub settings: &'a CircuitSettings,
    /// Now.
    pub now: Monotime,
}

/// What tor says of a circuit, for the operator.
pub fn of_tor(circuit: NonZeroU32, facts: &TorFacts, now: Monotime) -> TorCircuit {
    TorCircuit {
        circuit,
        state: facts.state().to_owned(),
        joined_seconds: facts.age(now).map(|age| age.as_secs()),
        rendezvous: facts.rendezvous.map(|relay| relay.to_string()),
        pow_effort: facts.pow_effort,
    }
}

/// Says why a circuit is what it is; `None` if there is none of this number as far as anybody knows.
pub fn explain(known: &Known<'_>) -> Option<CircuitExplanation> {
    let facts = known.registry.get(known.circuit);
    let is_banned = known.banned_until.is_some();
    if known.row.is_none() && facts.is_none() && known.order.is_none() && !is_banned {
        return None;
    }
    let ban = known.banned_until.map(|until| CircuitBan {
        seconds_left: until.since(known.now).as_nanos().div_ceil(1_000_000_000) as u64,
        origin: known.origin().to_owned(),
    });
    let last = known.row.and_then(|row| row.last_refusal.as_deref());
    let last = last.and_then(Refusal::named);
    Some(CircuitExplanation {
        circuit: known.circuit,
        row: known.row.cloned(),
        known_to_tor: facts.map(|facts| of_tor(known.circuit, facts, known.now)),
        summary: known.summary(ban.as_ref()),
        limits: known.limits(),
        violations: known.violations(),
        gate: known.at_gate(),
        ingress: known.at_ingress(),
        tor: known.at_tor(facts),
        last_refusal: last.map(|refusal| LastRefusal {
            refusal: refusal.label().to_owned(),
            sentence: refusal.sentence().to_owned(),
        }),
        unusual: None,
        undo: known.undo(facts),
        ban,
    })
}

impl Known<'_> {
    const fn is_banned(&self) -> bool {
        self.banned_until.is_some()
    }

    fn is_by_operator(&self) -> bool {
        match self.order {
            Some(CircuitOrder::Banned { .. }) => !self.is_carried,
            Some(
                CircuitOrder::Vip | CircuitOrder::Unbanned | CircuitOrder::Demoted | CircuitOrder::Closed,
            )
            | None => self.row.is_some_and(|row| row.banned_by_operator),
        }
    }

    fn origin(&self) -> &'static str {
        if self.is_by_operator() {
            "operator"
        } else if self.is_found_by_haproxy {
            "haproxy"
        } else {
            "front"
        }
    }

    fn is_vip(&self) -> bool {
        self.order == Some(CircuitOrder::Vip) || self.row.is_some_and(|row| row.state == "vip")
    }

    fn has_token(&self) -> bool {
        self.row.is_some_and(|row| row.token.as_deref() == Some(TOKEN_IN_FORCE))
    }

    fn summary(&self, ban: Option<&CircuitBan>) -> String {
        if let Some(ban) = ban {
            let by = match self.origin() {
                "operator" => "an operator",
                "haproxy" => "HAProxy, for its violations",
                _ => "the ingress, for its violations",
            };
            return format!("banned for {} s more, by {by}", ban.seconds_left);
        }
        let Some(row) = self.row else {
            return "not banned, and the ingress does not list it".to_owned();
        };
        let paid = match (self.is_vip(), self.has_token(), row.paid) {
            (true, true, _) => "vip: it shows a token that is in force",
            (true, false, _) => "vip: an operator promoted it",
            (false, _, true) => "it solved a puzzle",
            (false, _, false) => "it has not paid: no puzzle solved, no token",
        };
        let refused = row.token.as_deref().and_then(TokenRefused::named);
        let paid = match refused {
            Some(refused) => format!("{paid}; what it shows makes it no vip: {refused}"),
            None => paid.to_owned(),
        };
        match row.state.as_str() {
            "suspect" => format!("suspect, because it has {} violations; {paid}", row.violations),
            "vip" => paid,
            state => format!("{state}; {paid}"),
        }
    }

    fn limits(&self) -> Vec<CircuitLimit> {
        let settings = self.settings;
        let limit = |key: &str, what: &str, used: fn(&CircuitRow) -> u64, limit: u64, then: String| {
            CircuitLimit { key: key.to_owned(), what: what.to_owned(), used: self.row.map(used), limit, then }
        };
        let refused = |which: &str, refusal: Refusal| {
            let counts = if refusal.is_violation() { ", and it counts as a violation" } else { "" };
            format!("{which} is refused as {}{counts}", refusal.label())
        };
        let mut limits = vec![limit(
            "max_concurrent_per_circuit",
            "open connections",
            |row| row.open,
            (if self.has_token() {
                settings.max_concurrent_with_token()
            } else {
                settings.max_concurrent_per_circuit
            })
            .get()
            .into(),
            refused("one more", Refusal::TooManyOpen),
        )];
        if self.is_vip() {
            let most = if self.has_token() {
                settings.token_per_10_seconds().get()
            } else {
                settings.vip_rate().get()
            };
            let what = "requests in 10 s, going past the queue";
            limits.push(limit(
                "vip_requests_per_10_seconds",
                what,
                |row| row.requests_per_10_seconds,
                most.into(),
                refused("this one", Refusal::VipRate),
            ));
            limits.extend(self.ends());
            return limits;
        }
        if let Some(most) = settings.connections_per_10_seconds {
            limits.push(limit(
                "connections_per_10_seconds",
                "attempts to connect in 10 s",
                |row| row.connections_per_10_seconds,
                most.get().into(),
                refused("this one", Refusal::ConnectionRate),
            ));
        }
        if let Some(most) = settings.max_per_circuit_per_minute {
            limits.push(limit(
                "max_per_circuit_per_minute",
                "connections in 60 s",
                |row| row.connections_per_minute,
                most.get().into(),
                refused("one more", Refusal::CircuitRate),
            ));
        }
        if let Some(rates) = settings.requests {
            limits.push(limit(
                "slow_requests_per_10_seconds",
                "requests in 10 s",
                |row| row.requests_per_10_seconds,
                rates.slow.get().into(),
                "this one waits for those of quieter circuits".to_owned(),
            ));
            limits.push(limit(
                "requests_per_10_seconds",
                "requests in 10 s",
                |row| row.requests_per_10_seconds,
                rates.deny.get().into(),
                refused("this one", Refusal::RequestRate),
            ));
        }
        limits.extend(self.ends());
        limits
    }

    /// What ends it though it keeps every limit.
    fn ends(&self) -> Vec<CircuitLimit> {
        let settings = self.settings;
        let idle = |word: Refusal| match self.can_be_closed() {
            true => format!("it is closed as {} once it carries no connection", word.label()),
            false => NOBODY_CLOSES.to_owned(),
        };
        let limit = |key: &str, what: &str, used, limit: Duration, then| CircuitLimit {
            key: key.to_owned(),
            what: what.to_owned(),
            used,
            limit: limit.as_secs(),
            then,
        };
        let age = self.row.map(|row| row.age_seconds);
        let since = "seconds since its first stream";
        let latency = self.row.and_then(|row| row.latency_milliseconds).map(|mean| mean / 1_000);
        let hard = settings.rotate_hard_after.map(|most| {
            let then = if self.can_be_closed() { "it is closed with them" } else { "it stays" };
            let then =
                format!("its connections are cut once as {}, and {then}", Refusal::CircuitRotated.label());
            limit("rotate_hard_after_secs", since, age, most, then)
        });
        let each = [
            limit("max_circuit_age_secs", since, age, settings.max_circuit_age, idle(Refusal::CircuitAged)),
            limit(
                "max_circuit_latency_secs",
                "seconds that the backend takes",
                latency,
                settings.max_circuit_latency,
                idle(Refusal::CircuitSlow),
            ),
        ];
        each.into_iter().chain(hard).collect()
    }

    const fn can_be_closed(&self) -> bool {
        self.is_hosted || self.has_control
    }

    fn violations(&self) -> String {
        let settings = self.settings;
        let threshold = u32::from(settings.ban_threshold.get());
        if self.is_banned() {
            return format!("they begin anew after the ban; {threshold} lead to the next");
        }
        let (violations, rung) = self.row.map_or((0, 0), |row| (row.violations, row.rung));
        let length = if rung == 0 {
            settings.ban_duration
        } else {
            let next = settings.ladder.climb_after(rung, Duration::ZERO);
            settings.ladder.length(next).max(settings.ban_duration)
        };
        let most = if rung == 0 { "" } else { "at most " };
        let left = threshold.saturating_sub(violations).max(1);
        let seconds = length.as_secs();
        let next = match left {
            1 => format!("the next one bans it for {most}{seconds} s"),
            _ => format!("{left} more ban it for {most}{seconds} s"),
        };
        match self.row {
            Some(_) => format!("{violations} of {threshold}; {next}"),
            None => format!("unknown; {threshold} ban a circuit"),
        }
    }

    fn at_gate(&self) -> String {
        let Some(mode) = self.gate else {
            return "not attached to lo, so every stream reaches the ingress".to_owned();
        };
        match (mode, self.is_banned()) {
            (Mode::Off, _) => "looks at nothing, because it is off or the shield is bypassed".to_owned(),
            (Mode::Observe, true) => {
                "counts its new streams as those that it would refuse, and passes them".to_owned()
            }
            (Mode::Enforce, true) => "resets its new streams before the ingress wakes up".to_owned(),
            (Mode::Observe | Mode::Enforce, false) => {
                "passes its streams, because only banned circuits are refused there".to_owned()
            }
        }
    }

    fn at_ingress(&self) -> String {
        if !self.has_front {
            return "does not report to this daemon, so what it does is not known".to_owned();
        }
        if self.settings.is_bypassed {
            return "refuses nobody for a limit or a ban until `tunica bypass off`".to_owned();
        }
        if self.is_banned() {
            return format!("{}: each of its streams is reset", Refusal::Banned.sentence());
        }
        let Some(row) = self.row else {
            return "does not list it: it has no open connection, or many others have more".to_owned();
        };
        let serves = match row.state.as_str() {
            "vip" => "lets its streams go past the queue".to_owned(),
            "suspect" => "serves its streams after those of circuits without violations".to_owned(),
            _ => format!("serves its streams: {}", Refusal::Served.sentence()),
        };
        match row.marked.as_deref() {
            Some(word) if self.can_be_closed() => {
                format!("{serves}; it is marked as {word}, and closed once it carries no connection")
            }
            Some(word) => format!("{serves}; it is marked as {word}, and {NOBODY_CLOSES}"),
            None => serves,
        }
    }

    fn at_tor(&self, facts: Option<&TorFacts>) -> String {
        if self.is_hosted {
            return "is the ingress itself (Arti): whatever bans a circuit closes it as well".to_owned();
        }
        if !self.has_control {
            return "is not asked: set control under [tor] for its view of circuits, and so that bans close them"
                .to_owned();
        }
        if !self.registry.is_connected() {
            return "its control port is not connected; `tunica status` says why".to_owned();
        }
        let Some(facts) = facts else {
            return "has no open circuit of this number: it has ended".to_owned();
        };
        let what = match facts.state() {
            "joined" => match facts.age(self.now) {
                Some(age) => format!("its client came {} s ago", age.as_secs()),
                None => "its client is there since before the control port was connected".to_owned(),
            },
            "meeting" => "it waits at the rendezvous for its client".to_owned(),
            "building" => "it is on its way to the rendezvous".to_owned(),
            "introduction" => "it is an introduction point of the service".to_owned(),
            _ => "it is one that tor made for itself".to_owned(),
        };
        let relay = facts.rendezvous.map_or_else(String::new, |relay| format!(", at relay {relay}"));
        let paid = facts
            .pow_effort
            .map_or_else(String::new, |effort| format!(", having paid tor's puzzle with effort {effort}"));
        let then = match (self.is_banned(), self.closed_for) {
            (true, _) => "; tor was asked to close it".to_owned(),
            (false, Some(why)) => format!("; tor was asked to close it as {}", why.label()),
            (false, None) => String::new(),
        };
        format!("{what}{relay}{paid}{then}")
    }

    fn undo(&self, facts: Option<&TorFacts>) -> Vec<String> {
        let circuit = self.circuit;
        let mut undo = Vec::new();
        if self.is_banned() {
            undo.push(format!("lift the ban: `tunica circuit unban {circuit}`"));
        } else {
            if self.is_vip() {
                undo.push(format!("let it go past the queue no longer: `tunica circuit demote {circuit}`"));
            } else if self.row.is_some() {
                undo.push(format!("let it go past the queue: `tunica circuit promote {circuit}`"));
            }
            undo.push(format!("refuse its streams for a while: `tunica circuit ban {circuit}`"));
        }
        if facts.is_some_and(TorFacts::is_rendezvous) {
            undo.push(format!("end it at tor, without a ban: `tunica circuit close {circuit}`"));
        }
        undo
    }
}

#[cfg(test)]
mod tests {
    use tunica_core::{
        ban_ladder::Ladder,
        circuit_registry::{CircuitUse, CircuitWord, RelayId, Step},
        id::{CircuitId, TorGeneration},
    };

    use super::*;

    fn settings() -> CircuitSettings {
        let rungs = [300, 3_600].map(Duration::from_secs);
        CircuitSettings::web(Ladder::new(rungs.to_vec(), Duration::from_secs(86_400)).unwrap())
    }

    fn circuit() -> NonZeroU32 {
        NonZeroU32::new(33).unwrap()
    }

    fn row(state: &str) -> CircuitRow {
        CircuitRow {
            circuit: circuit(),
            state: state.to_owned(),
            age_seconds: 61,
            open: 2,
            connections_per_minute: 4,
            requests: 10,
            latency_milliseconds: Some(2_900),
            marked: None,
            bytes_in: 1,
            bytes_out: 2,
            violations: 0,
            banned_seconds: None,
            banned_by_operator: false,
            cpu_microseconds: 0,
            paid: false,
            token: None,
            rung: 0,
            connections_per_10_seconds: 3,
            requests_per_10_seconds: 5,
            last_refusal: None,
            score: None,
        }
    }

    fn registry(used_for: CircuitUse) -> CircuitRegistry {
        let mut registry = CircuitRegistry::default();
        registry.begin(TorGeneration(4));
        let circuit = CircuitId::new(TorGeneration(4), circuit());
        let rendezvous = Some(RelayId::new([0xab; 20]));
        let word = CircuitWord { circuit, used_for, step: Step::Repurposed, rendezvous, pow_effort: Some(9) };
        registry.heard(word, Monotime(0));
        registry
    }

    fn at(seconds: u64) -> Monotime {
        Monotime(seconds * 1_000_000_000)
    }

    /// A circuit of which nobody knows anything.
    fn blank<'a>(registry: &'a CircuitRegistry, settings: &'a CircuitSettings, now: Monotime) -> Known<'a> {
        Known {
            circuit: circuit(),
            row: None,
            has_front: true,
            order: None,
            is_carried: false,
            is_found_by_haproxy: false,
            banned_until: None,
            registry,
            has_control: false,
            is_hosted: false,
            closed_for: None,
            gate: None,
            settings,
            now,
        }
    }

    #[test]
    fn each_state_is_said_as_it_is() {
        let settings = settings();
        let joined = registry(CircuitUse::ServiceRendezvous { is_joined: true });
        let nothing = CircuitRegistry::default();
        let (normal, suspect, vip) = (row("normal"), row("suspect"), row("vip"));
        let suspect = CircuitRow { violations: 4, rung: 1, ..suspect };
        let with_token = CircuitRow { token: Some("in_force".to_owned()), ..row("vip") };
        let fourth = CircuitRow { token: Some("in_use".to_owned()), ..row("normal") };
        let blank = blank(&nothing, &settings, at(30));
        assert_eq!(explain(&blank), None, "nobody knows it");
        let ban = Some(CircuitOrder::Banned { until: at(130) });
        // What is known, and what of it must be said: summary, violations, gate, ingress, tor.
        for (known, says) in [
            (
                Known { row: Some(&normal), gate: Some(Mode::Enforce), ..blank },
                [
                    "normal; it has not paid",
                    "0 of 5; 5 more ban it for 300 s",
                    "passes",
                    "nothing in the policy",
                    "is not asked",
                ],
            ),
            (
                Known { row: Some(&suspect), gate: Some(Mode::Off), has_control: true, ..blank },
                [
                    "suspect, because it has 4 violations",
                    "4 of 5; the next one bans it for at most 3600 s",
                    "is off",
                    "after those of circuits without violations",
                    "is not connected",
                ],
            ),
            (
                Known { row: Some(&vip), registry: &joined, has_control: true, ..blank },
                [
                    "vip: an operator promoted it",
                    "0 of 5",
                    "not attached",
                    "past the queue",
                    "came 30 s ago, at relay ABABAB",
                ],
            ),
            (
                Known { row: Some(&with_token), ..blank },
                [
                    "vip: it shows a token that is in force",
                    "0 of 5",
                    "not attached",
                    "past the queue",
                    "not asked",
                ],
            ),
            (
                Known { row: Some(&fourth), ..blank },
                [
                    "normal; it has not paid: no puzzle solved, no token; what it shows makes it no vip: the token is in use by",
                    "0 of 5",
                    "not attached",
                    "nothing in the policy",
                    "not asked",
                ],
            ),
            (
                Known { row: Some(&normal), is_hosted: true, ..blank },
                ["normal", "0 of 5", "not attached", "nothing in the policy", "closes it as well"],
            ),
            (
                Known { registry: &joined, has_control: true, ..blank },
                ["does not list it", "unknown; 5 ban", "not attached", "does not list it", "effort 9"],
            ),
            (
                Known {
                    order: ban,
                    banned_until: Some(at(130)),
                    gate: Some(Mode::Enforce),
                    has_front: false,
                    ..blank
                },
                [
                    "banned for 100 s more, by an operator",
                    "begin anew",
                    "resets",
                    "does not report",
                    "is not asked",
                ],
            ),
            (
                Known { order: ban, is_carried: true, banned_until: Some(at(130)), ..blank },
                ["by the ingress", "begin anew", "not attached", "the circuit is banned", "is not asked"],
            ),
            (
                Known {
                    row: Some(&normal),
                    banned_until: Some(at(40)),
                    gate: Some(Mode::Observe),
                    registry: &joined,
                    has_control: true,
                    ..blank
                },
                [
                    "banned for 10 s more, by the ingress",
                    "begin anew",
                    "would refuse",
                    "the circuit is banned",
                    "tor was asked to close it",
                ],
            ),
        ] {
            let view = explain(&known).unwrap();
            let said = [&view.summary, &view.violations, &view.gate, &view.ingress, &view.tor];
            for (text, part) in said.into_iter().zip(says) {
                assert!(text.contains(part), "{part} in {text}");
            }
            let can_lift = view.undo.iter().any(|undo| undo.contains("circuit unban 33"));
            assert_eq!(can_lift, known.banned_until.is_some());
            let can_close = view.undo.iter().any(|undo| undo.contains("circuit close 33"));
            assert_eq!(can_close, view.known_to_tor.is_some());
        }
    }

    #[test]
    fn limits_have_their_counts_and_the_last_refusal_its_sentence() {
        let settings = settings();
        let registry = registry(CircuitUse::Other);
        let row = CircuitRow { last_refusal: Some("too_many_open".to_owned()), ..row("normal") };
        let known = Known { row: Some(&row), has_control: true, ..blank(&registry, &settings, at(1)) };
        let view = explain(&known).unwrap();
        let limits: Vec<_> =
            view.limits.iter().map(|limit| (limit.key.as_str(), limit.used, limit.limit)).collect();
        assert_eq!(
            limits,
            [
                ("max_concurrent_per_circuit", Some(2), 32),
                ("connections_per_10_seconds", Some(3), 100),
                ("slow_requests_per_10_seconds", Some(5), 200),
                ("requests_per_10_seconds", Some(5), 600),
                ("max_circuit_age_secs", Some(61), 600),
                ("max_circuit_latency_secs", Some(2), 10),
            ]
        );
        let last = view.last_refusal.unwrap();
        assert_eq!(
            (last.refusal.as_str(), last.sentence.as_str()),
            ("too_many_open", Refusal::TooManyOpen.sentence())
        );
        assert!(view.tor.contains("made for itself") && !view.undo.iter().any(|undo| undo.contains("close")));
        // Who goes past the queue has other limits; what the ingress does not list has no counts.
        let vip = Known { order: Some(CircuitOrder::Vip), row: None, ..known };
        let view = explain(&vip).unwrap();
        let limits: Vec<_> = view.limits.iter().map(|limit| (limit.key.as_str(), limit.used)).collect();
        let keys = [
            "max_concurrent_per_circuit",
            "vip_requests_per_10_seconds",
            "max_circuit_age_secs",
            "max_circuit_latency_secs",
        ];
        assert_eq!(limits, keys.map(|key| (key, None)));
        // A token has its own, which may be relaxed.
        let holder = CircuitRow { token: Some("in_force".to_owned()), ..row.clone() };
        let relaxed = CircuitSettings { relaxes_tokens: true, ..settings.clone() };
        let holder = CircuitRow { state: "vip".to_owned(), ..holder };
        let holder = Known { row: Some(&holder), settings: &relaxed, ..known };
        let limits = explain(&holder).unwrap().limits;
        assert_eq!(limits.iter().map(|limit| limit.limit).collect::<Vec<_>>(), [48, 900, 600, 10]);
        let messenger = CircuitSettings { requests: None, ..settings.clone() };
        assert_eq!(explain(&Known { settings: &messenger, ..known }).unwrap().limits.len(), 4);
    }

    #[test]
    fn what_ends_a_circuit_that_keeps_its_limits_is_said() {
        let settings = CircuitSettings { rotate_hard_after: Some(Duration::from_secs(900)), ..settings() };
        let registry = registry(CircuitUse::ServiceRendezvous { is_joined: true });
        let marked = CircuitRow { marked: Some("circuit_slow".to_owned()), ..row("normal") };
        let known = Known {
            row: Some(&marked),
            closed_for: Some(Refusal::CircuitAged),
            ..blank(&registry, &settings, at(1))
        };
        // Control port, Arti; what is said of the ingress, and of age, latency and hard age.
        for (has_control, is_hosted, ingress, then) in [
            (
                false,
                false,
                "marked as circuit_slow, and nobody closes it",
                ["nobody closes", "nobody closes", "cut once as circuit_rotated, and it stays"],
            ),
            (
                true,
                false,
                "marked as circuit_slow, and closed once",
                ["closed as circuit_aged once", "closed as circuit_slow once", "and it is closed with them"],
            ),
            (
                false,
                true,
                "marked as circuit_slow, and closed once",
                ["closed as circuit_aged once", "closed as circuit_slow once", "and it is closed with them"],
            ),
        ] {
            let view = explain(&Known { has_control, is_hosted, ..known }).unwrap();
            assert!(view.ingress.contains(ingress), "{}", view.ingress);
            assert_eq!(view.tor.contains("asked to close it as circuit_aged"), has_control, "{}", view.tor);
            let ends = view.limits.iter().rev().take(3).rev();
            for (limit, part) in ends.zip(then) {
                assert!(limit.then.contains(part), "{part} in {}", limit.then);
            }
            assert_eq!(view.limits.len(), 7);
        }
    }
}
