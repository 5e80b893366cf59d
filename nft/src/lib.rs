//! The shield's policy in other programs' words, for hosts where XDP cannot attach: nftables, iptables, sysctl.
//!
//! Pure: it builds the JSON objects that `nft -j -f` reads (libnftables-json(5)), says what somebody changed in a table
//! that was read again, and writes texts; it never opens a socket or starts a process. Only our own table,
//! `inet tunica`, is named, and it is replaced in one transaction; no other table is touched.
//!
//! What nftables cannot do as the shield does is listed in [`DIFFERENCES`].
#![forbid(unsafe_code)]

mod elements;
mod listing;
mod rules;
pub mod script;
mod words;

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU16,
};

use nftables::{
    schema::{Chain, Counter, NfCmd, NfListObject, NfObject, Nftables, Rule, Table},
    stmt::{self, Statement},
    types::{NfChainPolicy, NfChainType, NfFamily, NfHook},
};
use tunica_common::{
    gcra::Pace,
    verdict::{Action, Verdict},
};
use tunica_core::{
    limits::{Mode, Settings},
    time::Monotime,
};

pub use elements::{Elements, SetName, allowing, edit, elements};
pub use listing::{Difference, Listing, ReadListingError};

/// Name of our table, in family `inet`.
pub const TABLE: &str = "tunica";
/// The counter of packets that connection tracking calls invalid; it is no verdict of the shield.
pub const CT_INVALID: &str = "ct_invalid";
/// How every line of the drop log begins.
pub const DROP_LOG_PREFIX: &str = "SHIELD_DOS_DROP: ";

/// New connections of tor's SOCKS port: 20 per 10 s.
pub const SOCKS_PACE: Pace = [500_000_000, 19 * 500_000_000];

/// What the table does otherwise than the shield: one sentence each.
pub const DIFFERENCES: &[&str] = &[
    "headers that contradict each other: the kernel drops most such packets itself, before nftables (IP) or behind it \
     (TCP, UDP, ICMP), and counts them elsewhere; here bad_length and bad_fragment cover what one field tells",
    "land: nftables cannot compare two fields of one packet; from this host's own addresses it is own_source, else the \
     kernel's martian check drops it",
    "frames that are no IP, and more VLAN tags than the host has interfaces for, never reach nftables",
    "extension_headers: nftables looks behind any number of them, but not behind authentication, mobility, HIP and shim6 \
     headers, which count so",
    "syn_rate, icmp_rate, no_socket: a meter holds 65 535 sources; beyond them nftables stops limiting, where the \
     shield's sketch goes on",
    "syn_rate_net: neighbouring IPv6 /64 never share a limit",
    "syn_cookie: nothing is answered here; SYNs over a port's budget are counted as syn_over_budget, and the kernel's \
     own cookies answer them (net.ipv4.tcp_syncookies = 1)",
    "no_socket: a returned cookie counts like any segment without a socket; a listener bound to one address counts as \
     a connection; there is no limit for all sources together, because the segment that completes a handshake would \
     count too",
    "heartbeat: nftables has none; bans end by their timeout alone",
    "banned_net: a range inside another one has no end of its own until the outer one ended",
    "the drop log goes to the kernel's log, without the verdict",
    "bytes are counted without link header and padding",
];

/// What the table is made from.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    /// The protected interfaces.
    pub interfaces: &'a [String],
    /// The policy.
    pub settings: &'a Settings,
    /// First port at which answers over UDP come back; see [`tunica_core::limits::HostFacts::ephemeral_low`].
    pub ephemeral_low: u16,
    /// Whether the host translates addresses; see [`tunica_core::limits::HostFacts::translates`].
    pub translates: bool,
    /// Whether packets that connection tracking calls invalid are dropped. It makes the kernel track every connection.
    pub drop_invalid: bool,
    /// TCP ports on loopback and the new connections that each takes, such as tor's SOCKS port: [`SOCKS_PACE`].
    pub loopback: &'a [(NonZeroU16, Pace)],
}

impl Plan<'_> {
    /// The whole table as one transaction: created, deleted and created again, so that an older one goes without a gap.
    pub fn transaction(&self, elements: &Elements, now: Monotime) -> Nftables<'static> {
        let mut objects = vec![add(table()), NfObject::CmdObject(NfCmd::Delete(table())), add(table())];
        if self.settings.mode == Mode::Off {
            return Nftables { objects: objects.into() };
        }
        let chains = rules::chains(self);
        let counters: BTreeSet<String> =
            chains.iter().flat_map(|chain| &chain.rules).flatten().filter_map(counter_name).collect();
        objects.extend(counters.into_iter().map(|name| {
            add(NfListObject::Counter(Counter {
                family: NfFamily::INet,
                table: TABLE.into(),
                name: name.into(),
                handle: None,
                packets: Some(0),
                bytes: Some(0),
            }))
        }));
        objects.extend(SetName::ALL.map(|set| set.object(self.settings.ban_capacity)));
        objects.extend(SetName::ALL.into_iter().filter_map(|set| elements::additions(set, elements, now)));
        for chain in &chains {
            objects.push(add(NfListObject::Chain(chain_object(chain))));
        }
        for chain in chains {
            objects.extend(chain.rules.into_iter().map(|expr| {
                add(NfListObject::Rule(Rule {
                    family: NfFamily::INet,
                    table: TABLE.into(),
                    chain: chain.name.clone().into(),
                    expr: expr.into(),
                    ..Rule::default()
                }))
            }));
        }
        Nftables { objects: objects.into() }
    }

    /// What becomes of the packets that each counter of the table counts.
    pub fn actions(&self) -> BTreeMap<Verdict, Action> {
        let refused = match self.settings.mode {
            Mode::Off => return BTreeMap::new(),
            Mode::Observe => Action::WouldDrop,
            Mode::Enforce => Action::Drop,
        };
        // Observing, all rules end alike; and a line in the log stands between a refusal and its end.
        let plain = Settings { mode: Mode::Enforce, log_lines_per_minute: None, ..self.settings.clone() };
        let plain = Plan { settings: &plain, ..*self };
        let chains = rules::chains(&plain);
        let rules = chains.iter().flat_map(|chain| &chain.rules);
        rules
            .filter_map(|rule| {
                let name = rule.iter().find_map(counter_name)?;
                let verdict = Verdict::ALL.iter().find(|verdict| verdict.label() == name)?;
                let is_refusal = matches!(rule.last(), Some(Statement::Drop(_)));
                Some((*verdict, if is_refusal { refused } else { Action::Pass }))
            })
            .collect()
    }
}

/// The transaction after which the table is gone, whether there was one or not.
pub fn removal() -> Nftables<'static> {
    Nftables { objects: vec![add(table()), NfObject::CmdObject(NfCmd::Delete(table()))].into() }
}

fn table() -> NfListObject<'static> {
    NfListObject::Table(Table { family: NfFamily::INet, name: TABLE.into(), handle: None })
}

pub(crate) const fn add(object: NfListObject<'static>) -> NfObject<'static> {
    NfObject::CmdObject(NfCmd::Add(object))
}

fn counter_name(statement: &Statement<'_>) -> Option<String> {
    if let Statement::Counter(stmt::Counter::Named(name)) = statement { Some(name.to_string()) } else { None }
}

fn chain_object(chain: &rules::Chain) -> Chain<'static> {
    let is_base = chain.priority.is_some();
    Chain {
        family: NfFamily::INet,
        table: TABLE.into(),
        name: chain.name.clone().into(),
        newname: None,
        handle: None,
        _type: is_base.then_some(NfChainType::Filter),
        hook: is_base.then_some(NfHook::Prerouting),
        prio: chain.priority,
        dev: None,
        policy: is_base.then_some(NfChainPolicy::Accept),
    }
}
