//! Who is never banned: the host itself, tor's own peers, the allow list, and ranges that are nobody's address.
//!
//! A guard banned at the network card takes the onion service offline for everyone, so a ban is refused if any
//! protected address lies inside the range that it would hit, which for an IPv6 source is a whole /64.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use crate::{
    id::Prefix,
    ledger::AllowFact,
    time::{Monotime, Now, WallTime},
    timetable::Timetable,
};

/// Most peers of tor that are kept; beyond it the one seen longest ago goes. More than six times the relays there are.
pub const MOST_PEERS: usize = 65_536;

/// What the host told about itself and tor. `Debug` shows counts only.
pub struct NeverBan {
    /// When each peer was last seen.
    peers: Timetable<IpAddr>,
    own: BTreeSet<IpAddr>,
    keep: Duration,
    tor_last_read: Option<WallTime>,
}

/// Which rule protects a range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// One of the host's own addresses lies in the range.
    OwnAddress,
    /// The far end of one of tor's own connections lies in the range.
    TorPeer,
    /// The allow list covers the range or part of it.
    Allowed {
        /// The entry.
        prefix: Prefix,
        /// Who made it.
        by: AllowedBy,
    },
    /// The range holds addresses that are never a stranger's.
    SpecialRange(SpecialRange),
    /// Whoever asks for the ban is logged in from there.
    Operator,
}

/// Who made an entry of the allow list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllowedBy {
    /// The configuration file.
    Config,
    /// `tunica allow add`.
    Operator,
}

/// Ranges that are never a stranger's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpecialRange {
    /// 127.0.0.0/8 and ::1 (RFC 1122 section 3.2.1.3, RFC 4291 section 2.5.3).
    Loopback,
    /// 0.0.0.0 and :: (RFC 1122 section 3.2.1.3, RFC 4291 section 2.5.2).
    Unspecified,
    /// 169.254.0.0/16 and fe80::/10 (RFC 3927, RFC 4291 section 2.5.6).
    LinkLocal,
    /// 224.0.0.0/4 and ff00::/8 (RFC 5771, RFC 4291 section 2.7).
    Multicast,
}

const fn v4(a: u8, b: u8, length: u8) -> Prefix {
    Prefix::known(IpAddr::V4(Ipv4Addr::new(a, b, 0, 0)), length)
}

const fn v6(first: u16, last: u16, length: u8) -> Prefix {
    Prefix::known(IpAddr::V6(Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, last)), length)
}

const SPECIAL_RANGES: [(Prefix, SpecialRange); 8] = [
    (v4(127, 0, 8), SpecialRange::Loopback),
    (v6(0, 1, 128), SpecialRange::Loopback),
    (v4(0, 0, 32), SpecialRange::Unspecified),
    (v6(0, 0, 128), SpecialRange::Unspecified),
    (v4(169, 254, 16), SpecialRange::LinkLocal),
    (v6(0xfe80, 0, 10), SpecialRange::LinkLocal),
    (v4(224, 0, 4), SpecialRange::Multicast),
    (v6(0xff00, 0, 8), SpecialRange::Multicast),
];

impl NeverBan {
    /// An empty set that keeps tor's peers for `keep` after they were last seen.
    pub fn new(keep: Duration) -> Self {
        Self { peers: Timetable::default(), own: BTreeSet::new(), keep, tor_last_read: None }
    }

    /// Changes how long peers are kept.
    pub(crate) fn set_keep(&mut self, keep: Duration) {
        self.keep = keep;
    }

    /// Takes in the far ends of tor's connections as they are now. Addresses in special ranges need no entry.
    /// Returns whether a new one is among them.
    pub(crate) fn saw_peers(&mut self, peers: &[IpAddr], now: Now) -> bool {
        self.tor_last_read = Some(now.wall);
        let mut is_changed = false;
        for peer in peers.iter().map(IpAddr::to_canonical) {
            if special_range(Prefix::host(peer)).is_none() {
                is_changed |= self.peers.set(peer, Some(now.mono));
            }
        }
        while self.peers.len() > MOST_PEERS
            && let Some((_, oldest)) = self.peers.first()
        {
            self.peers.set(oldest, None);
        }
        is_changed
    }

    /// Replaces the host's own addresses.
    pub(crate) fn set_own(&mut self, own: &[IpAddr]) {
        self.own = own.iter().map(IpAddr::to_canonical).collect();
    }

    /// Forgets peers that were not seen for too long. Returns whether there were any.
    pub(crate) fn age_out(&mut self, now: Monotime) -> bool {
        let mut is_changed = false;
        while let Some((seen, peer)) = self.peers.first()
            && seen.after(self.keep) <= now
        {
            self.peers.set(peer, None);
            is_changed = true;
        }
        is_changed
    }

    /// When the next peer is forgotten.
    pub(crate) fn next_deadline(&self) -> Option<Monotime> {
        self.peers.first().map(|(seen, _)| seen.after(self.keep))
    }

    /// The peers of tor held in the set.
    pub fn peers(&self) -> impl Iterator<Item = IpAddr> {
        self.peers.keys()
    }

    /// How many peers of tor the set holds.
    pub fn peer_count(&self) -> usize {
        self.peers.len()
    }

    /// The host's own addresses.
    pub fn own(&self) -> &BTreeSet<IpAddr> {
        &self.own
    }

    /// When tor's connections were last read.
    pub fn tor_last_read(&self) -> Option<WallTime> {
        self.tor_last_read
    }

    /// The rule that forbids to ban `range`, if one does. `allows` are the operator's entries, `config` the file's.
    pub fn protects(
        &self,
        range: Prefix,
        now: Monotime,
        allows: &BTreeMap<Prefix, AllowFact>,
        config: &[Prefix],
    ) -> Option<Protection> {
        let is_kept = |peer: &IpAddr| self.peers.get(*peer).is_some_and(|seen| now < seen.after(self.keep));
        if let Some(special) = special_range(range) {
            return Some(Protection::SpecialRange(special));
        }
        if self.own.iter().any(|own| range.contains(*own)) {
            return Some(Protection::OwnAddress);
        }
        if self.peers.keys().any(|peer| range.contains(peer) && is_kept(&peer)) {
            return Some(Protection::TorPeer);
        }
        let covers = |prefix: &&Prefix| prefix.overlaps(range);
        let by_config = config.iter().find(covers).map(|prefix| (*prefix, AllowedBy::Config));
        let by_operator = || allows.keys().find(covers).map(|prefix| (*prefix, AllowedBy::Operator));
        by_config.or_else(by_operator).map(|(prefix, by)| Protection::Allowed { prefix, by })
    }
}

fn special_range(range: Prefix) -> Option<SpecialRange> {
    SPECIAL_RANGES.iter().find(|(special, _)| special.overlaps(range)).map(|(_, name)| *name)
}

impl Protection {
    /// What an operator can do about it, as the end of a sentence.
    pub(crate) fn advice(self) -> String {
        match self {
            Self::OwnAddress => {
                "a ban would only hide forged packets, which the sanity rules drop already".into()
            }
            Self::TorPeer => "a ban would cut tor off; stop tor from using it first".into(),
            Self::Allowed { prefix, by: AllowedBy::Config } => {
                format!("take {prefix} out of `shield.allow` and run `tunica reload` first")
            }
            Self::Allowed { prefix, by: AllowedBy::Operator } => {
                format!("run `tunica allow remove {prefix}` first")
            }
            Self::SpecialRange(_) => "name the addresses that the traffic really comes from".into(),
            Self::Operator => {
                "the ban would cut this session off and keep the next one out; log in from elsewhere, or add \
                 `--even-me` to ban it all the same"
                    .into()
            }
        }
    }
}

impl fmt::Display for Protection {
    /// The rule as half a sentence, without an address: it may stand in a log.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::OwnAddress => "it holds one of this host's own addresses",
            Self::TorPeer => "it holds the far end of one of tor's own connections",
            Self::Allowed { by: AllowedBy::Config, .. } => "the configuration's allow list covers it",
            Self::Allowed { by: AllowedBy::Operator, .. } => {
                "an operator's entry on the allow list covers it"
            }
            Self::SpecialRange(SpecialRange::Loopback) => "it holds a loopback address",
            Self::SpecialRange(SpecialRange::Unspecified) => "it holds the unspecified address",
            Self::SpecialRange(SpecialRange::LinkLocal) => "it holds a link-local address",
            Self::SpecialRange(SpecialRange::Multicast) => "it holds a multicast address",
            Self::Operator => "it holds the place where you are logged in from",
        })
    }
}

impl fmt::Debug for NeverBan {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("NeverBan")
            .field("peers", &self.peers.len())
            .field("own", &self.own.len())
            .field("keep", &self.keep)
            .field("tor_last_read", &self.tor_last_read)
            .finish()
    }
}

/// Every address that is protected by more than an operator's entry, as ranges: bans inside them are withdrawn.
pub(crate) fn firm_ranges<'a>(set: &'a NeverBan, config: &'a [Prefix]) -> impl Iterator<Item = Prefix> + 'a {
    let special = SPECIAL_RANGES.iter().map(|(range, _)| *range);
    let hosts = set.own.iter().copied().chain(set.peers()).map(Prefix::host);
    special.chain(hosts).chain(config.iter().copied())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        id::{BanTarget, PacketSource},
        ledger::AllowOrigin,
    };

    const KEEP: Duration = Duration::from_secs(100);

    fn at(seconds: u64) -> Now {
        Now { mono: Monotime(seconds * 1_000_000_000), wall: WallTime(seconds) }
    }

    fn set() -> NeverBan {
        let mut set = NeverBan::new(KEEP);
        set.set_own(&["203.0.113.1".parse().unwrap(), "2001:db8:1::1".parse().unwrap()]);
        set.saw_peers(&["192.0.2.9".parse().unwrap(), "2001:db8:2::9".parse().unwrap()], at(10));
        set
    }

    #[test]
    fn every_rule_protects() {
        let fact = AllowFact {
            id: 1,
            since: WallTime(0),
            expires: None,
            origin: AllowOrigin::Operator,
            reason: String::new(),
        };
        let (office, home): (Prefix, Prefix) =
            ("198.51.100.0/24".parse().unwrap(), "2001:db8:3::7".parse().unwrap());
        let allows = BTreeMap::from([(office, fact)]);
        let operator = Protection::Allowed { prefix: office, by: AllowedBy::Operator };
        let config = Protection::Allowed { prefix: home, by: AllowedBy::Config };
        let special = Protection::SpecialRange;
        for (source, seconds, expected) in [
            ("203.0.113.1", 10, Some(Protection::OwnAddress)),
            ("203.0.113.2", 10, None),
            ("2001:db8:1::/64", 10, Some(Protection::OwnAddress)),
            ("192.0.2.9", 10, Some(Protection::TorPeer)),
            ("192.0.2.9", 109, Some(Protection::TorPeer)),
            ("192.0.2.9", 110, None),
            ("2001:db8:2::1", 10, Some(Protection::TorPeer)),
            ("2001:db8:2:1::9", 10, None),
            ("198.51.100.77", 10, Some(operator)),
            ("198.51.101.77", 10, None),
            ("2001:db8:3::1", 10, Some(config)),
            ("127.9.9.9", 10, Some(special(SpecialRange::Loopback))),
            ("::1", 10, Some(special(SpecialRange::Loopback))),
            ("0.0.0.0", 10, Some(special(SpecialRange::Unspecified))),
            ("169.254.3.4", 10, Some(special(SpecialRange::LinkLocal))),
            ("febf::1", 10, Some(special(SpecialRange::LinkLocal))),
            ("239.1.1.1", 10, Some(special(SpecialRange::Multicast))),
            ("ff02::1", 10, Some(special(SpecialRange::Multicast))),
            ("203.0.113.0/30", 10, Some(Protection::OwnAddress)),
            ("203.0.113.2/31", 10, None),
            ("2001:db8:1::/48", 10, Some(Protection::OwnAddress)),
            ("192.0.0.0/16", 10, Some(Protection::TorPeer)),
            ("192.0.0.0/16", 110, None),
            ("198.51.96.0/20", 10, Some(operator)),
            ("2001:db8:3::/60", 10, Some(config)),
            ("169.0.0.0/8", 10, Some(special(SpecialRange::LinkLocal))),
        ] {
            let range = source.parse::<BanTarget>().unwrap().prefix();
            let protection = set().protects(range, at(seconds).mono, &allows, &[home]);
            assert_eq!(protection, expected, "{source} at {seconds} s");
        }
    }

    #[test]
    fn peers_age_out_unless_seen_again() {
        let mut set = set();
        assert!(!set.saw_peers(&["192.0.2.9".parse().unwrap(), "127.0.0.1".parse().unwrap()], at(60)));
        assert_eq!((set.peer_count(), set.next_deadline()), (2, Some(at(110).mono)));
        assert!(set.age_out(at(110).mono));
        assert_eq!((set.peer_count(), set.next_deadline()), (1, Some(at(160).mono)));
        assert!(!set.age_out(at(159).mono));
        assert_eq!(set.tor_last_read(), Some(WallTime(60)));
    }

    #[test]
    fn the_set_of_peers_is_bounded() {
        let mut set = set();
        let many: Vec<IpAddr> =
            (0..MOST_PEERS as u32).map(|low| IpAddr::from((0x0a00_0000 + low).to_be_bytes())).collect();
        set.saw_peers(&many, at(20));
        assert_eq!(set.peer_count(), MOST_PEERS);
        assert!(set.protects("192.0.2.9".parse().unwrap(), at(20).mono, &BTreeMap::new(), &[]).is_none());
    }

    proptest! {
        /// For all own addresses and peers, the source that counts their packets is protected with every range around it,
        /// and so is every source that shares an address with a configured range.
        #[test]
        fn a_protected_address_protects_its_source(bits: u128, mapped: bool, length in 0u8..=128, other: u64) {
            let address = if mapped { IpAddr::from((bits as u32).to_be_bytes()) } else { IpAddr::from(bits.to_be_bytes()) };
            let mut own = NeverBan::new(KEEP);
            own.set_own(&[address]);
            let mut peer = NeverBan::new(KEEP);
            peer.saw_peers(&[address], at(1));
            // The source, and every range around it.
            for range in PacketSource::of(address).prefix().around() {
                prop_assert!(own.protects(range, at(1).mono, &BTreeMap::new(), &[]).is_some());
                prop_assert!(peer.protects(range, at(1).mono, &BTreeMap::new(), &[]).is_some());
            }

            let other = PacketSource::of(IpAddr::from((u128::from(other) << 64).to_be_bytes()));
            let range: Prefix = match format!("{}/{length}", IpAddr::from((bits & u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)).to_be_bytes())).parse() {
                Ok(range) => range,
                Err(_) => return Ok(()),
            };
            let set = NeverBan::new(KEEP);
            let is_inside = range.sources().contains(&other);
            prop_assert_eq!(range.overlaps(other.prefix()), is_inside);
            let found = set.protects(other.prefix(), at(1).mono, &BTreeMap::new(), &[range]);
            prop_assert!(found.is_some() || !is_inside);
        }
    }
}
