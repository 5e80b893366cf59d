//! HAProxy as the ingress: what its table holds, and what it should hold.

use std::{collections::BTreeMap, num::NonZeroU32};

use tokio::sync::watch;
use tunica_api::{
    front::{CircuitRow, Digest},
    view::{self, Answer},
};
use tunica_core::{
    circuit_orders::CircuitOrder,
    circuit_policy::{ShardCounts, Statistics},
    haproxy_table::{Said, Standing, Wish},
    time::Monotime,
};

use super::App;
use crate::shell::haproxy::{CircuitSeen, HaproxyHeard, TableView};

/// What is known of HAProxy.
pub(super) struct AtHaproxy {
    /// What its table held when it was last read, and when that was; `None`: HAProxy does not answer.
    last: Option<(Box<TableView>, Monotime)>,
    /// Bans that it found itself. They last although it may have gone.
    found: BTreeMap<NonZeroU32, Monotime>,
    /// The last orders that its table follows.
    pub(super) followed: u64,
    wish: watch::Sender<Wish>,
}

impl Default for AtHaproxy {
    fn default() -> Self {
        Self { last: None, found: BTreeMap::new(), followed: 0, wish: watch::Sender::new(Wish::default()) }
    }
}

impl App {
    /// Where it stands what HAProxy's table should hold, for its shell.
    pub fn haproxy_wish(&self) -> watch::Receiver<Wish> {
        self.haproxy.wish.subscribe()
    }

    /// Takes in what HAProxy's shell said.
    pub fn heard_haproxy(&mut self, heard: HaproxyHeard) {
        match heard {
            HaproxyHeard::Table(view) => {
                self.troubles.haproxy = None;
                self.metrics.set_haproxy(Some([view.tracked, view.banned, view.vips]));
                // Tor may have started again since it was read; then it tells of circuits of the process before.
                let is_present = view.mark == self.mark();
                let is_news = is_present && self.haproxy.found != view.found;
                if is_news {
                    self.haproxy.found.clone_from(&view.found);
                }
                self.haproxy.last = Some((view, self.now().mono));
                if is_news {
                    self.follow_bans();
                }
            }
            HaproxyHeard::Edited(edit) => self.metrics.count_haproxy_edit(edit),
            HaproxyHeard::Followed(revision) => {
                self.haproxy.followed = revision;
                self.orders_followed();
            }
            HaproxyHeard::Gone { why } => {
                self.haproxy.last = None;
                self.metrics.set_haproxy(None);
                self.metrics.count_haproxy_failure();
                self.troubles.haproxy = Some(why.to_string());
            }
        }
    }

    /// Whether HAProxy is the ingress and answers.
    pub(super) const fn is_haproxy_here(&self) -> bool {
        self.haproxy.last.is_some()
    }

    /// Whether HAProxy is the ingress.
    pub(super) const fn is_haproxy_configured(&self) -> bool {
        self.config.haproxy.socket.is_some()
    }

    /// The bans that HAProxy found itself.
    pub(super) fn found_by_haproxy(&self) -> impl Iterator<Item = (NonZeroU32, Monotime)> + '_ {
        let now = self.now().mono;
        self.haproxy
            .found
            .iter()
            .map(|(circuit, until)| (*circuit, *until))
            .filter(move |(_, until)| *until > now)
    }

    /// Another tor process has other circuits.
    pub(super) fn forget_haproxy_finds(&mut self) {
        self.haproxy.found.clear();
    }

    /// Which tor process the circuits are of. As at the gate: starts of tor are some ticks apart.
    fn mark(&self) -> Option<u32> {
        self.circuit_orders().generation().map(|generation| generation.0 as u32)
    }

    /// Says what HAProxy's table should hold.
    pub(super) fn send_wish(&self) {
        let orders = self.circuit_orders();
        let mut said: BTreeMap<_, _> =
            self.banned_by_front().map(|(circuit, _)| (circuit, Said::Banned)).collect();
        for (circuit, order, _) in orders.desired() {
            let what = match order {
                CircuitOrder::Banned { .. } => Said::Banned,
                CircuitOrder::Vip => Said::Vip,
                CircuitOrder::Unbanned => Said::Unbanned,
                // The front's ban stays.
                CircuitOrder::Demoted => said.get(&circuit).copied().unwrap_or(Said::Demoted),
                // That is for a front that hosts the service.
                CircuitOrder::Closed => continue,
            };
            said.insert(circuit, what);
        }
        let wish = Wish { revision: orders.revision(), mark: self.mark(), said };
        self.haproxy.wish.send_if_modified(|before| {
            let is_news = *before != wish;
            *before = wish;
            is_news
        });
    }

    /// The busiest circuits in HAProxy's table; `None`: HAProxy does not answer.
    pub(super) fn haproxy_circuits(&self, limit: u32) -> Option<Answer> {
        let (table, since) = self.haproxy.last.as_ref()?;
        let now = self.now().mono;
        let row = |row: &CircuitSeen| CircuitRow {
            circuit: row.circuit,
            state: match row.standing {
                Standing::Banned => "banned",
                Standing::Vip => "vip",
                Standing::Normal if row.violations > 0 => "suspect",
                Standing::Normal => "normal",
            }
            .to_owned(),
            open: row.open,
            requests_per_10_seconds: row.requests,
            connections_per_10_seconds: row.connections,
            violations: u32::try_from(row.violations).unwrap_or(u32::MAX),
            banned_seconds: self.ban_of(row.circuit).map(|until| until.since(now).as_secs()),
            banned_by_operator: row.standing == Standing::Banned
                && self.circuit_orders().get(row.circuit).is_some(),
            token: None,
            paid: row.standing == Standing::Vip,
            // Its table does not tell.
            requests: 0,
            connections_per_minute: 0,
            rung: 0,
            last_refusal: None,
            latency_milliseconds: None,
            marked: None,
            score: None,
            age_seconds: 0,
            bytes_in: 0,
            bytes_out: 0,
            cpu_microseconds: 0,
        };
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let number = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
        let statistics = Statistics {
            active: number(table.open),
            most_active: self.config.circuits.max_concurrent_connections.get(),
            rate: number(table.connections.div_ceil(10)),
            most_rate: self.config.circuits.max_connections_per_second.get(),
            circuits: ShardCounts {
                tracked: number(table.tracked),
                banned: number(table.banned),
                vips: number(table.vips),
                marked: 0,
            },
        };
        let digest = Digest {
            active: table.open,
            most_active: statistics.most_active.into(),
            tracked: table.tracked,
            most_tracked: table.capacity,
            banned: table.banned,
            vips: table.vips,
            statistics: statistics.to_string(),
            circuits: table.rows.iter().take(limit).map(row).collect(),
            ..Digest::default()
        };
        let age_seconds = now.since(*since).as_secs();
        Some(Answer::Circuits(Box::new(view::Circuits {
            digest,
            age_seconds,
            haproxy: Some(table.version.clone()),
            tor: None,
            new_circuits: None,
        })))
    }

    /// Whether a circuit is among those that HAProxy's table shows.
    pub(super) fn is_known_to_haproxy(&self, circuit: NonZeroU32) -> bool {
        let rows = self.haproxy.last.iter().flat_map(|(table, _)| &table.rows);
        rows.into_iter().any(|row| row.circuit == circuit)
    }
}
