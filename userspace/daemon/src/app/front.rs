//! `circuits` and `circuit`: what the ingress says, and what it is told.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU32,
    time::Duration,
};

use tokio::sync::{mpsc, watch};
use tunica_api::{
    front::{
        Ban, CircuitOrder as Wire, CircuitRow, CircuitState as WireState, Closing, Digest, LoadOrder,
        MOST_ROWS, Orders,
    },
    request::{self, CircuitSort, CircuitState},
    view::{self, Answer, Done, RefusedCode},
};
use tunica_config::front_mark;
use tunica_core::{
    circuit_orders::{CircuitOrder, CircuitOrders, ToldBan},
    circuit_policy::CircuitSettings,
    circuit_registry::NotClosable,
    id::{CircuitId, TorGeneration},
    time::Monotime,
};

use super::App;
use crate::{
    explain::{self, circuit::Known},
    shell::{
        front::Heard,
        front_process::{FrontAct, FrontTold},
    },
    views,
};

/// How long another front may take to serve in the place of the one that runs.
const RENEWAL: Duration = Duration::from_secs(60);

/// What is known of the front.
pub(super) struct Front {
    /// What it last said, and when.
    last: Option<(Box<Digest>, Monotime)>,
    /// Which process of the front told of these bans. They outlive it: the next one is told of them.
    bans: (u64, BTreeMap<NonZeroU32, ToldBan>),
    orders: CircuitOrders,
    /// Circuits that the front wants closed and that tor does not have, as it was told last.
    ended: Vec<NonZeroU32>,
    sender: watch::Sender<Orders>,
    /// The shell that starts the front, where this daemon does.
    acts: Option<mpsc::Sender<FrontAct>>,
    /// The [`front_mark()`] for which another front was asked for, and when.
    renewed_for: Option<(u64, Monotime)>,
}

impl Default for Front {
    fn default() -> Self {
        Self {
            last: None,
            bans: Default::default(),
            orders: CircuitOrders::default(),
            ended: Vec::new(),
            sender: watch::Sender::new(Orders::default()),
            acts: None,
            renewed_for: None,
        }
    }
}

impl Front {
    /// What the front said of circuits, while these are of the tor process that is meant: after a restart of tor its last words
    /// are of the process before, whose numbers come again.
    fn rows(&self) -> &[CircuitRow] {
        match &self.last {
            Some((digest, _)) if self.is_present(digest) => &digest.circuits,
            Some(_) | None => &[],
        }
    }

    fn is_present(&self, digest: &Digest) -> bool {
        let generation = self.orders.generation().map(|generation| generation.0);
        generation.is_none() || digest.generation == generation
    }

    /// Whether it reports.
    const fn is_here(&self) -> bool {
        self.last.is_some()
    }

    /// What is wrong with the onion service that it hosts itself.
    pub(super) fn trouble_of_arti(&self) -> Option<String> {
        let arti = self.last.as_ref()?.0.arti.as_ref().filter(|arti| !arti.is_reachable())?;
        Some(format!(
            "the onion service that the ingress hosts is `{}`, so new visitors may not reach it; a start takes some seconds, and \
             tunica-front's log tells more",
            arti.state
        ))
    }

    /// What it was told of the load.
    pub(super) fn told(&self) -> Option<LoadOrder> {
        self.sender.borrow().load
    }

    /// What it holds to of the load.
    pub(super) fn held(&self) -> Option<LoadOrder> {
        self.last.as_ref().and_then(|(digest, _)| digest.load)
    }
}

impl App {
    /// Where the front's orders are, for its shell.
    pub fn orders(&self) -> watch::Receiver<Orders> {
        self.front.sender.subscribe()
    }

    /// Where the front's process is started.
    pub fn set_front(&mut self, acts: mpsc::Sender<FrontAct>) {
        self.front.acts = Some(acts);
    }

    /// Whether the front reports.
    pub(super) const fn has_front(&self) -> bool {
        self.front.is_here()
    }

    /// Takes in how the front's process is.
    pub fn told_of_front(&mut self, told: FrontTold) {
        self.troubles.front_process = match told {
            FrontTold::Runs => None,
            FrontTold::Trouble(text) => {
                tracing::warn!(message_id = "front_trouble", "{text}");
                Some(text)
            }
        };
    }

    /// Has a front that gave up try again, where this daemon starts it.
    pub(super) fn retry_front(&self) {
        self.tell_process(FrontAct::Retry);
    }

    /// Has a front with the present configuration take the place of the one that runs, where this daemon starts it.
    pub(super) fn renew_front(&mut self) {
        self.front.renewed_for = Some((front_mark(&self.config), self.now().mono));
        self.tell_process(FrontAct::Renew);
    }

    /// A front of another configuration or version is replaced where this daemon starts it, once: what is installed, or stands
    /// in the file, may be other than what this daemon is or has read.
    fn check_front(&mut self, digest: &Digest) {
        let mark = front_mark(&self.config);
        let is_ours = digest.version == env!("CARGO_PKG_VERSION") && digest.configuration == mark;
        let now = self.now().mono;
        let asked = self.front.renewed_for.filter(|(of, _)| *of == mark).map(|(_, when)| when);
        let advice = match (is_ours, &self.front.acts, asked) {
            (true, _, _) => None,
            (false, None, _) if self.config.arti.enabled => Some(
                "`systemctl reload tunica-front` has it read the file again; until it has published the onion service anew, new \
                 visitors do not reach it",
            ),
            (false, None, _) => {
                Some("`systemctl reload tunica-front` has it read the file again, and refuses nobody")
            }
            (false, Some(_), None) => {
                self.renew_front();
                None
            }
            (false, Some(_), Some(when)) => (now.since(when) > RENEWAL).then_some(
                "another one that was started is no other; `tunica reload` has this daemon read the file that the ingress reads, \
                 and both programs must be of one version",
            ),
        };
        self.troubles.front_configuration = advice.map(|advice| {
            format!(
                "the ingress runs with another configuration, or in another version, than this daemon: its limits are others \
                 than shown; {advice}"
            )
        });
    }

    fn tell_process(&self, act: FrontAct) {
        if let Some(acts) = &self.front.acts
            && acts.try_send(act).is_err()
        {
            tracing::warn!(message_id = "front_trouble", "the ingress' process cannot be told of {act:?}");
        }
    }

    /// Takes in what the front said.
    pub fn heard(&mut self, heard: Heard) {
        match heard {
            Heard::Here { pid } => {
                if let Some(pid) = pid {
                    self.tell_process(FrontAct::Here { pid });
                }
            }
            Heard::Digest(mut digest) => {
                self.revoked_by_front(std::mem::take(&mut digest.revoked));
                if self.front.last.is_none() {
                    tracing::info!(
                        message_id = "front_here",
                        version = digest.version,
                        "the ingress reports to this daemon"
                    );
                }
                self.check_front(&digest);
                self.metrics.set_front(Some(&digest));
                self.read_front_load(&digest);
                if let Some(generation) =
                    digest.generation.map(TorGeneration).filter(|_| self.config.arti.enabled)
                    && self.front.orders.generation().is_none_or(|before| before < generation)
                {
                    // The front is tor itself, and began anew.
                    self.begin_generation(generation);
                }
                let is_present = self.front.is_present(&digest);
                self.read_newcomers(&digest, is_present);
                let unwanted = std::mem::take(&mut digest.closing);
                if is_present {
                    self.follow_unwanted(&unwanted);
                }
                let rungs: BTreeMap<_, _> = std::mem::take(&mut digest.rungs).into_iter().collect();
                let ban = |(circuit, until): &Ban| {
                    let rung = rungs.get(circuit).copied().unwrap_or(1);
                    (*circuit, ToldBan { until: Monotime(*until), rung })
                };
                let bans = digest.bans.iter().filter(|_| is_present).map(ban).collect();
                let (before, lost) = std::mem::replace(&mut self.front.bans, (digest.process, bans));
                let process = digest.process;
                self.front.last = Some((digest, self.now().mono));
                self.orders_followed();
                if before != process {
                    let now = self.now();
                    self.change_orders(|orders| orders.carry(lost, now));
                }
                self.follow_bans();
            }
            Heard::Gone => {
                self.front.last = None;
                self.troubles.front_configuration = None;
                self.metrics.set_front(None);
            }
        }
    }

    /// What all who act on orders follow needs no word of ours any more.
    pub(super) fn orders_followed(&mut self) {
        let by_front = self.front.last.as_ref().map(|(digest, _)| digest.revision);
        let by_haproxy = self.is_haproxy_configured().then_some(self.haproxy.followed);
        if let Some(revision) = by_front.into_iter().chain(by_haproxy).min() {
            self.front.orders.followed(revision);
        }
    }

    /// Another tor process hands over the streams, or it is known now which.
    pub(super) fn begin_generation(&mut self, generation: TorGeneration) {
        // Whoever stands behind a number now has done nothing yet. Without a word of tor until now the front's bans were taken as
        // they came; it may have said of which process they are.
        let by_front = self.front.last.as_ref().and_then(|(digest, _)| digest.generation).map(TorGeneration);
        let before = self.front.orders.generation().or(by_front);
        if before.is_some_and(|before| before != generation) {
            self.front.bans.1.clear();
            self.front.ended.clear();
            self.forget_judged();
            self.forget_haproxy_finds();
        }
        self.change_orders(|orders| orders.begin(generation));
    }

    /// A circuit has ended at tor.
    pub(super) fn forget_circuit(&mut self, circuit: CircuitId) {
        if self.front.orders.generation() == Some(circuit.generation()) {
            self.front.bans.1.remove(&circuit.number_for_this_node());
            self.change_orders(|orders| orders.forget(circuit.number_for_this_node()));
        }
    }

    /// Every circuit that is banned, and until when.
    pub(super) fn banned_circuits(&self) -> BTreeMap<NonZeroU32, Monotime> {
        self.front.orders.banned(self.found_by_haproxy().chain(self.banned_by_front()))
    }

    /// Those that the front banned.
    pub(super) fn banned_by_front(&self) -> impl Iterator<Item = (NonZeroU32, Monotime)> + '_ {
        let now = self.now().mono;
        let by_front = self.front.bans.1.iter().map(|(circuit, ban)| (*circuit, ban.until));
        by_front.filter(move |(_, until)| *until > now)
    }

    /// When a circuit's ban ends, if it is banned.
    pub(super) fn ban_of(&self, circuit: NonZeroU32) -> Option<Monotime> {
        match self.front.orders.get(circuit) {
            Some(CircuitOrder::Banned { until }) => Some(until),
            Some(CircuitOrder::Vip | CircuitOrder::Unbanned) => None,
            Some(CircuitOrder::Demoted | CircuitOrder::Closed) | None => {
                self.found_by_haproxy().find(|(of, _)| *of == circuit).map(|(_, until)| until)
            }
        }
    }

    /// Bans act at the gate and at tor, too.
    pub(super) fn follow_bans(&mut self) {
        self.close_banned();
        self.follow_gate();
        self.send_wish();
    }

    /// Circuits that the front wants closed are closed at tor, and it hears which have ended.
    fn follow_unwanted(&mut self, unwanted: &[Closing]) {
        let ended = self.close_unwanted(unwanted);
        let is_news = !ended.is_empty() && ended != self.front.ended;
        self.front.ended = ended;
        if is_news {
            self.send_orders();
        }
    }

    /// What operators said of circuits.
    pub(super) const fn circuit_orders(&self) -> &CircuitOrders {
        &self.front.orders
    }

    fn change_orders(&mut self, change: impl FnOnce(&mut CircuitOrders)) {
        let before = self.front.orders.revision();
        change(&mut self.front.orders);
        if self.front.orders.revision() != before {
            self.send_orders();
            self.follow_bans();
        }
    }

    /// Lifts what is over.
    pub(super) fn advance_orders(&mut self) {
        let now = self.now();
        self.change_orders(|orders| orders.advance(now));
    }

    pub(super) fn send_orders(&self) {
        let orders = &self.front.orders;
        let state = |order| match order {
            CircuitOrder::Banned { until } => WireState::Banned { until: until.0 },
            CircuitOrder::Vip => WireState::Vip,
            CircuitOrder::Unbanned => WireState::Unbanned,
            CircuitOrder::Demoted => WireState::Demoted,
            CircuitOrder::Closed => WireState::Closed,
        };
        let circuits = orders.desired().map(|(circuit, order, said)| Wire {
            circuit,
            said: said.0,
            state: state(order),
        });
        self.front.sender.send_replace(Orders {
            revision: orders.revision(),
            generation: orders.generation().map(|generation| generation.0),
            circuits: circuits.collect(),
            load: Some(self.coordinator.load_level().front().into()),
            tokens: self.tokens.order(),
            ended: self.front.ended.clone(),
            rungs: orders.rungs().collect(),
            bypass: self.is_bypassed(),
        });
    }

    /// Whether nothing is to be refused by an operator's word.
    pub(super) fn is_bypassed(&self) -> bool {
        !self.coordinator.desired().attached
    }

    /// Has ingress and gate refuse nobody, or do so again, as the shield does.
    pub(super) fn follow_bypass(&mut self) {
        if self.front.sender.borrow().bypass != self.is_bypassed() {
            self.send_orders();
            self.follow_bans();
        }
    }

    /// How the ingress does, with `limit` circuits beside what tor says of them.
    pub(super) fn circuits(&self, limit: u32, sort: CircuitSort) -> Answer {
        let Some((digest, since)) = &self.front.last else {
            return self.haproxy_circuits(limit).unwrap_or_else(|| self.no_front());
        };
        let now = self.now().mono;
        let limit = usize::try_from(limit).unwrap_or(usize::MAX).min(MOST_ROWS);
        let mut rows: Vec<_> = self.front.rows().iter().map(|row| self.scored(row)).collect();
        order_rows(&mut rows, sort);
        let registry = self.registry();
        let tor = registry.is_connected().then(|| {
            let listed: BTreeSet<_> = rows.iter().map(|row| row.circuit).collect();
            let beside =
                rows.iter().take(limit).filter_map(|row| Some((row.circuit, registry.get(row.circuit)?)));
            let alone = registry
                .circuits()
                .rev()
                .filter(|(circuit, facts)| facts.is_rendezvous() && !listed.contains(circuit));
            let alone = alone.take(limit.saturating_sub(rows.len()));
            beside
                .chain(alone)
                .map(|(circuit, facts)| explain::circuit::of_tor(circuit, facts, now))
                .collect()
        });
        rows.truncate(limit);
        let mut digest = Digest { circuits: rows, newcomers: Vec::new(), ..Digest::clone(digest) };
        digest.bans =
            self.front.bans.1.iter().map(|(circuit, ban)| (*circuit, ban.until.0)).take(limit).collect();
        for (why, count) in self.closed_circuits() {
            *digest.closed.entry((*why).to_owned()).or_default() += count;
        }
        let age_seconds = now.since(*since).as_secs();
        Answer::Circuits(Box::new(view::Circuits {
            digest,
            age_seconds,
            haproxy: None,
            tor,
            new_circuits: self.new_circuits(),
        }))
    }

    /// Why a circuit is what it is. Nothing is changed by asking.
    pub(super) fn explain_circuit(&self, circuit: NonZeroU32) -> Answer {
        let relaxes_tokens = self.front.held().is_some_and(|held| held.relaxes_tokens);
        let settings = match self.config.circuit_settings() {
            Ok(settings) => CircuitSettings { relaxes_tokens, is_bypassed: self.is_bypassed(), ..settings },
            Err(error) => return views::refused(RefusedCode::Failed, error.to_string()),
        };
        let known = Known {
            circuit,
            row: self.front.rows().iter().find(|row| row.circuit == circuit),
            has_front: self.front.last.is_some(),
            order: self.front.orders.get(circuit),
            is_carried: self.front.orders.is_carried(circuit),
            is_found_by_haproxy: self.found_by_haproxy().any(|(of, _)| of == circuit),
            banned_until: self.banned_circuits().get(&circuit).copied(),
            registry: self.registry(),
            has_control: self.config.tor.control.is_some(),
            is_hosted: self.config.arti.enabled,
            closed_for: self.unwanted_for(circuit),
            gate: self.gate_mode(),
            settings: &settings,
            now: self.now().mono,
        };
        match explain::circuit::explain(&known) {
            Some(mut explanation) => {
                explanation.unusual = self.unusual(circuit);
                Answer::CircuitExplanation(Box::new(explanation))
            }
            None => {
                let message = format!(
                    "nothing is known of circuit {circuit}: it has no open connection and no ban at the ingress{}; \
                     `tunica circuits` shows those that have",
                    if self.registry().is_connected() {
                        ", and tor has no open circuit of this number"
                    } else {
                        ""
                    }
                );
                views::refused(RefusedCode::NotFound, message)
            }
        }
    }

    fn no_front(&self) -> Answer {
        let why = if self.is_haproxy_configured() {
            "HAProxy does not answer on haproxy.socket; `tunica status` says why"
        } else if self.config.ingress.enabled {
            "tunica-front does not run or does not reach this daemon; look at `systemctl status tunica-front`"
        } else {
            "the ingress is not configured; set `enabled = true` under [ingress] and start tunica-front, or set haproxy.socket where HAProxy is the ingress"
        };
        views::refused(RefusedCode::NotFound, why.to_owned())
    }

    /// Has the front, which hosts the service, end a circuit.
    pub(super) fn close_hosted(&mut self, circuit: NonZeroU32, dry_run: bool) -> Answer {
        if self.front.last.is_none() {
            return self.no_front();
        }
        let mut changes = vec![format!(
            "circuit {circuit}: the ingress ends it with its streams; it is not banned, so its client may come back by a new circuit"
        )];
        changes.extend(self.doubt(circuit));
        if let Err(refused) = self.order(circuit, CircuitOrder::Closed, dry_run) {
            return refused;
        }
        Answer::Done(Done { dry_run, changes, undo: None })
    }

    /// Has what an operator said of a circuit followed, unless it is only tried.
    fn order(&mut self, circuit: NonZeroU32, order: CircuitOrder, dry_run: bool) -> Result<(), Answer> {
        if dry_run {
            return Ok(());
        }
        let set = self.front.orders.set(circuit, order, self.now());
        set.map_err(|error| views::refused(RefusedCode::Failed, error.to_string()))?;
        self.send_orders();
        self.follow_bans();
        Ok(())
    }

    /// What to say of a circuit that nothing is known of.
    fn doubt(&self, circuit: NonZeroU32) -> Option<String> {
        let is_known = self.front.rows().iter().any(|row| row.circuit == circuit)
            || self.registry().get(circuit).is_some()
            || self.is_known_to_haproxy(circuit);
        (!is_known).then(|| {
            "it is not among the busiest circuits, so whether there is one of this number is not known"
                .to_owned()
        })
    }

    /// Has the front treat a circuit otherwise.
    pub(super) fn order_circuit(&mut self, request: request::CircuitOrder) -> Answer {
        let request::CircuitOrder { circuit, state, dry_run } = request;
        if self.front.last.is_none() && !self.is_haproxy_here() {
            return self.no_front();
        }
        if matches!(state, CircuitState::Banned { .. } | CircuitState::Vip) && self.is_tors_own(circuit) {
            return views::refused(
                RefusedCode::Protected,
                format!(
                    "circuit {circuit}: {}; it carries no stream, so nothing was changed",
                    NotClosable::TorsOwn
                ),
            );
        }
        let mut said = vec![match state {
            CircuitState::Banned { seconds } => {
                format!(
                    "circuit {circuit}: each of its streams is refused for {seconds} s, and those that are open are reset"
                )
            }
            CircuitState::Vip => format!("circuit {circuit}: it goes past the queue until it ends"),
            CircuitState::Unbanned => {
                format!("circuit {circuit}: it is banned no longer, whoever banned it; what else it is stays")
            }
            CircuitState::Demoted => format!(
                "circuit {circuit}: it goes past the queue no longer, and a token that it uses counts no more, for all circuits \
                 that use it; a ban stays"
            ),
        }];
        said.extend(self.doubt(circuit));
        if let Err(refused) = self.order(circuit, order(state, self.now().mono), dry_run) {
            return refused;
        }
        Answer::Done(Done { dry_run, changes: said, undo: undo(circuit, state) })
    }
}

fn order(state: CircuitState, now: Monotime) -> CircuitOrder {
    match state {
        CircuitState::Banned { seconds } => {
            CircuitOrder::Banned { until: now.after(Duration::from_secs(seconds)) }
        }
        CircuitState::Vip => CircuitOrder::Vip,
        CircuitState::Unbanned => CircuitOrder::Unbanned,
        CircuitState::Demoted => CircuitOrder::Demoted,
    }
}

fn undo(circuit: NonZeroU32, state: CircuitState) -> Option<String> {
    match state {
        CircuitState::Banned { .. } => Some(format!("tunica circuit unban {circuit}")),
        CircuitState::Vip => Some(format!("tunica circuit demote {circuit}")),
        CircuitState::Unbanned | CircuitState::Demoted => None,
    }
}

/// Puts first what was asked for, and of equals the busier.
fn order_rows(rows: &mut [CircuitRow], sort: CircuitSort) {
    rows.sort_by_key(|row| {
        let first = match sort {
            CircuitSort::Busy => 0,
            CircuitSort::Age => row.age_seconds,
            CircuitSort::Bytes => row.bytes_in.saturating_add(row.bytes_out),
            CircuitSort::Violations if row.banned_seconds.is_some() => u64::MAX,
            CircuitSort::Violations => row.violations.into(),
        };
        Reverse((first, row.open, row.requests))
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_stand_as_asked_for() {
        // Number, age, open, requests, bytes in, bytes out, violations, banned.
        let rows = [
            (1, 10, 1, 5, 100, 0, 0, None),
            (2, 90, 1, 9, 0, 50, 3, None),
            (3, 50, 4, 1, 10, 10, 0, Some(7)),
            (4, 50, 0, 1, 10, 10, 3, None),
        ];
        let rows =
            rows.map(|(number, age_seconds, open, requests, bytes_in, bytes_out, violations, banned)| {
                CircuitRow {
                    circuit: NonZeroU32::new(number).unwrap(),
                    state: "normal".to_owned(),
                    age_seconds,
                    open,
                    connections_per_minute: 0,
                    requests,
                    latency_milliseconds: None,
                    marked: None,
                    bytes_in,
                    bytes_out,
                    violations,
                    banned_seconds: banned,
                    banned_by_operator: false,
                    paid: false,
                    token: None,
                    cpu_microseconds: 0,
                    rung: 0,
                    connections_per_10_seconds: 0,
                    requests_per_10_seconds: 0,
                    last_refusal: None,
                    score: None,
                }
            });
        for (sort, expected) in [
            (CircuitSort::Busy, [3, 2, 1, 4]),
            (CircuitSort::Age, [2, 3, 4, 1]),
            (CircuitSort::Bytes, [1, 2, 3, 4]),
            (CircuitSort::Violations, [3, 2, 4, 1]),
        ] {
            let mut rows = rows.clone();
            order_rows(&mut rows, sort);
            assert_eq!(rows.map(|row| row.circuit.get()), expected, "{sort:?}");
        }
    }
}
