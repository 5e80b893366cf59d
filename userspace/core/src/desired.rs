//! What should be in force in the kernel.
//!
//! Wall-clock expiries become times of the boot's clock once, when a fact enters memory, and are then kept: the same
//! ban has the same row at every look, and no step of the wall clock moves the end of a ban in force.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use tunica_common::{
    keys::{
        ALLOW_BY_CONFIG, ALLOW_BY_OPERATOR, ALLOW_BY_TOR, AddressBytes, AllowEntry, BAN_DYNAMIC, BanEntry,
        SourceKey,
    },
    policy::{
        BAN_FILTER_WORDS, OWN_ADDRESSES, PORT_RULES, PORT_WITHOUT_COOKIES, Policy, PortRule,
        ban_filter_position, keyed_hash, own_bit, port_key,
    },
};

use crate::{
    candidate,
    id::Prefix,
    ledger::{AllowFact, AllowOrigin, BanFact, BanOrigin},
    limits::{self, HostFacts, PortSettings, Presence, Settings, Transport},
    time::{Monotime, Now, WallTime},
    timetable::Timetable,
};

/// The whole state that the kernel should be in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Whether the program should be attached: always, except while the operator bypasses it.
    pub attached: bool,
    /// What the host says of itself, which the policy follows.
    pub host: HostFacts,
    /// What the tables should hold.
    pub tables: Tables,
}

/// The tables that decisions fill; the ban filter follows from them and a secret, see [`Tables::ban_filter`].
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Tables {
    /// Banned sources.
    pub bans: BTreeMap<SourceKey, BanEntry>,
    /// Banned ranges.
    pub nets: BTreeMap<AllowKey, BanEntry>,
    /// What operators said of ports, by [`tunica_common::policy::port_key`].
    pub ports: BTreeMap<u32, PortRule>,
    /// Ranges that no ban and no per-source limit touches.
    pub allow: BTreeMap<AllowKey, AllowEntry>,
    /// The host's own addresses.
    pub own: BTreeSet<AddressBytes>,
}

/// A key of the allow list as [`Prefix::kernel_key`] makes it: prefix length, then address.
pub type AllowKey = (u32, AddressBytes);

impl Desired {
    /// The policy that goes with these tables; `generation` and `secret` come from the daemon, see
    /// [`limits::policy`].
    pub fn policy(&self, settings: &Settings, generation: u32, secret: [u64; 2]) -> Policy {
        self.policy_of(&self.host, settings, generation, secret)
    }

    /// [`Desired::policy`] on a host of which other things are true.
    pub(crate) fn policy_of(
        &self,
        host: &HostFacts,
        settings: &Settings,
        generation: u32,
        secret: [u64; 2],
    ) -> Policy {
        let tables = &self.tables;
        let presence = Presence {
            own_filter: tables.own_filter(),
            bans: !tables.bans.is_empty(),
            nets: !tables.nets.is_empty(),
            allow: !tables.allow.is_empty(),
            ports: !tables.ports.is_empty(),
        };
        limits::policy(settings, host, generation, secret, presence)
    }
}

impl Tables {
    /// The bits of the own addresses, for [`Policy::own_filter`].
    pub fn own_filter(&self) -> u64 {
        self.own.iter().fold(0, |filter, address| {
            let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *address;
            let high = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
            let low = u64::from_le_bytes([i, j, k, l, m, n, o, p]);
            filter | own_bit(high, low)
        })
    }

    /// The words of the ban filter under `secret`, [`BAN_FILTER_WORDS`] of them.
    pub fn ban_filter(&self, secret: [u64; 2]) -> Vec<u64> {
        let mut words = vec![0; BAN_FILTER_WORDS];
        for key in self.bans.keys() {
            let (word, bit) = ban_filter_position(keyed_hash(key, secret));
            if let Some(word) = words.get_mut(word as usize) {
                *word |= bit;
            }
        }
        words
    }
}

impl std::fmt::Debug for Tables {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { bans, nets, ports, allow, own } = self;
        let [bans, nets, ports, allow, own] = [bans.len(), nets.len(), ports.len(), allow.len(), own.len()];
        write!(out, "Tables {{ bans: {bans}, nets: {nets}, ports: {ports}, allow: {allow}, own: {own} }}")
    }
}

/// The row of a ban that ends at `ends`.
pub(crate) fn ban_entry(fact: &BanFact, ends: Option<Monotime>) -> BanEntry {
    BanEntry { expires_ns: ends.map_or(u64::MAX, |at| at.0), ban_id: fact.id, flags: ban_flags(fact.origin) }
}

/// The table of banned ranges. The kernel looks at the longest range around an address alone, so a row lasts as long as
/// the last ban of the range itself and of the ranges around it: a short ban inside a long one ends nothing early, even
/// if no daemon is there to remove its row.
pub(crate) fn net_table(
    nets: &BTreeMap<Prefix, BanFact>,
    ends: &Timetable<Prefix>,
) -> BTreeMap<AllowKey, BanEntry> {
    let mut around: Vec<(Prefix, u64)> = Vec::new();
    let mut table = BTreeMap::new();
    // In the order of the map a range comes before those inside it.
    for (prefix, fact) in nets {
        while around.last().is_some_and(|(outer, _)| !outer.overlaps(*prefix)) {
            around.pop();
        }
        let own = ban_entry(fact, ends.get(*prefix));
        let expires_ns = around.last().map_or(own.expires_ns, |(_, outer)| own.expires_ns.max(*outer));
        around.push((*prefix, expires_ns));
        table.insert(prefix.kernel_key(), BanEntry { expires_ns, ..own });
    }
    table
}

/// [`BanEntry::flags`] of a ban of this origin. An operator's ban holds even while the daemon is silent, whether its
/// length was given by hand or by the ladder; a ban that rests on evidence alone lapses.
pub const fn ban_flags(origin: BanOrigin) -> u32 {
    match origin {
        BanOrigin::Operator => 0,
        BanOrigin::Evidence | BanOrigin::Report => BAN_DYNAMIC,
    }
}

/// When a fact that enters memory at `now` ends. What is left is never more than the length it was given, so that a
/// wall clock which stepped back makes nothing longer; a fact that is past ends at once.
pub(crate) fn ends_at(since: WallTime, expires: Option<WallTime>, now: Now) -> Option<Monotime> {
    expires.map(|expires| now.mono.after(expires.since(now.wall).min(expires.since(since))))
}

/// The allow list: the configuration file's entries, then the operators', then tor's peers, so that peers are the
/// first to go without a row when there are more than `capacity`. They stay in the never-ban set all the same.
pub(crate) fn allow_table(
    config: &[Prefix],
    operator: &BTreeMap<Prefix, AllowFact>,
    tor_peers: impl Iterator<Item = IpAddr>,
    capacity: u32,
) -> BTreeMap<AllowKey, AllowEntry> {
    let config = config.iter().map(|prefix| (*prefix, AllowEntry { origin: ALLOW_BY_CONFIG, allow_id: 0 }));
    let operator = operator.iter().map(|(prefix, fact)| (*prefix, allow_entry(fact)));
    let tor_peers =
        tor_peers.map(|peer| (Prefix::host(peer), AllowEntry { origin: ALLOW_BY_TOR, allow_id: 0 }));
    let capacity = usize::try_from(capacity).unwrap_or(usize::MAX);
    let mut table = BTreeMap::new();
    // Nobody can name a range that reaches into IPv4; should one come in, it must not open IPv4.
    let rows = config.chain(operator).chain(tor_peers).filter(|(prefix, _)| !prefix.reaches_into_ipv4());
    for (prefix, entry) in rows {
        if table.len() >= capacity {
            break;
        }
        table.entry(prefix.kernel_key()).or_insert(entry);
    }
    table
}

const fn allow_entry(fact: &AllowFact) -> AllowEntry {
    let origin = match fact.origin {
        AllowOrigin::Operator => ALLOW_BY_OPERATOR,
    };
    AllowEntry { origin, allow_id: fact.id }
}

/// The rules of ports: what the operator said, and those `without_cookies`, whatever the operator said, as long as there
/// are rows.
pub(crate) fn port_table(
    settings: &Settings,
    without_cookies: impl Iterator<Item = (u16, Monotime)>,
) -> BTreeMap<u32, PortRule> {
    let mut table = candidate::ports(settings);
    for (port, _) in without_cookies {
        let (key, has_room) = (port_key(Transport::Tcp.protocol(), port), table.len() < PORT_RULES);
        if has_room || table.contains_key(&key) {
            let unnamed = PortSettings::default().rule(Transport::Tcp);
            table.entry(key).or_insert(unnamed).flags |= PORT_WITHOUT_COOKIES;
        }
    }
    table
}

/// The rows of the host's own addresses. Beyond the table's size the rest is still never banned, but a packet forged
/// from one of them passes the own-source rule.
pub(crate) fn own_table<'a>(own: impl Iterator<Item = &'a IpAddr>) -> BTreeSet<AddressBytes> {
    own.map(|address| Prefix::host(*address).kernel_key().1).take(OWN_ADDRESSES).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::id::PacketSource;

    #[test]
    fn wall_times_become_boot_times() {
        // Since, expires, wall now, seconds left.
        for (since, expires, wall, left) in [
            (1_000, Some(1_300), 1_000, Some(300)),
            (1_000, Some(1_300), 1_200, Some(100)),
            (1_000, Some(1_300), 1_300, Some(0)),
            (1_000, Some(1_300), 9_999, Some(0)),
            (1_000, Some(1_300), 5, Some(300)),
            (1_000, None, 1_200, None),
        ] {
            let now = Now { mono: Monotime(7), wall: WallTime(wall) };
            let expected = left.map(|seconds| Monotime(7).after(Duration::from_secs(seconds)));
            assert_eq!(
                ends_at(WallTime(since), expires.map(WallTime), now),
                expected,
                "{since} {expires:?} {wall}"
            );
        }
    }

    #[test]
    fn peers_give_way_when_the_allow_list_is_full() {
        let [config, operator, peer] =
            ["192.0.2.0/24", "198.51.100.0/24", "203.0.113.9"].map(|text| text.parse::<Prefix>().unwrap());
        let fact = AllowFact {
            id: 4,
            since: WallTime(0),
            expires: None,
            origin: AllowOrigin::Operator,
            reason: String::new(),
        };
        let facts = BTreeMap::from([(operator, fact.clone()), (config, fact)]);
        let origins = |capacity| -> BTreeMap<AllowKey, (u32, u32)> {
            let table = allow_table(&[config], &facts, std::iter::once(peer.address()), capacity);
            table.into_iter().map(|(key, entry)| (key, (entry.origin, entry.allow_id))).collect()
        };
        let both = BTreeMap::from([
            (config.kernel_key(), (ALLOW_BY_CONFIG, 0)),
            (operator.kernel_key(), (ALLOW_BY_OPERATOR, 4)),
        ]);
        assert_eq!(origins(2), both);
        let mut all = both;
        all.insert(peer.kernel_key(), (ALLOW_BY_TOR, 0));
        assert_eq!(origins(9), all);
    }

    #[test]
    fn a_range_over_all_of_ipv6_opens_no_ipv4() {
        let all = ["::/0".parse().unwrap()];
        assert!(allow_table(&all, &BTreeMap::new(), std::iter::empty(), 9).is_empty());
    }

    proptest! {
        /// For all tables and secrets, no filter hides a row that it stands for.
        #[test]
        fn filters_hide_nothing(hosts in prop::collection::btree_set(any::<u128>(), 0..40), secret: [u64; 2]) {
            let addresses: Vec<IpAddr> = hosts.iter().map(|bits| IpAddr::from(bits.to_be_bytes())).collect();
            let entry = BanEntry { expires_ns: 1, ban_id: 1, flags: 0 };
            let bans = addresses.iter().map(|address| (PacketSource::of(*address).key(), entry)).collect();
            let tables = Tables { bans, own: own_table(addresses.iter()), ..Tables::default() };
            prop_assert_eq!(tables.own.len(), addresses.len());
            let filter = tables.ban_filter(secret);
            for key in tables.bans.keys() {
                let (word, bit) = ban_filter_position(keyed_hash(key, secret));
                prop_assert!(filter[word as usize] & bit != 0);
            }
            for address in &tables.own {
                let [high, low] = [&address[..8], &address[8..]].map(|half| u64::from_le_bytes(half.try_into().unwrap()));
                prop_assert!(tables.own_filter() & own_bit(high, low) != 0);
            }
            prop_assert_eq!(filter.iter().all(|word| *word == 0), tables.bans.is_empty());
        }

        /// For all clocks, a fact lasts no longer than it was given.
        #[test]
        fn nothing_grows(since: u64, length in 0u64..1_000_000, wall: u64, mono in 0u64..1_000_000) {
            let now = Now { mono: Monotime(mono), wall: WallTime(wall) };
            let expires = WallTime(since).after(Duration::from_secs(length));
            let ends = ends_at(WallTime(since), Some(expires), now).unwrap();
            prop_assert!(ends.since(now.mono) <= Duration::from_secs(length));
        }
    }
}
