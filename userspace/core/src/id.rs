//! Who a packet or a stream came from.
//!
//! A [`PacketSource`] is what the kernel can count and ban: an IPv4 host or an IPv6 /64. There is no conversion between
//! it and a Tor circuit ([`CircuitId`]), because every client of an onion service arrives through the host's own guards.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
    str::FromStr,
};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tunica_common::keys::{AddressBytes, SourceKey, WIDTH_V4_HOST};

mod circuit;

pub use circuit::{CircuitId, TorGeneration};

/// An IPv4 host or an IPv6 /64: the unit of bans and per-source limits.
///
/// `Debug` is scrubbed, so that a source cannot slip into a log; [`fmt::Display`] prints it for the operator who asked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PacketSource(Inner);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Inner {
    V4([u8; 4]),
    V6([u8; 8]),
}

/// An address range in CIDR notation, host bits cleared.
///
/// `Debug` is scrubbed like [`PacketSource`]'s.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

/// What a ban can name: a source, or a range of more than one.
///
/// `Debug` is scrubbed like [`PacketSource`]'s.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum BanTarget {
    /// One source.
    Source(PacketSource),
    /// An IPv4 range wider than a host, or an IPv6 range wider than a /64.
    Range(Prefix),
}

/// Why a text is no source or no prefix.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ParseIdError {
    /// Not an address at all.
    #[error(
        "`{0}` is not an IP address or CIDR prefix; write 192.0.2.7, 192.0.2.0/24, 2001:db8::7 or 2001:db8::/64"
    )]
    NotAnAddress(String),
    /// The prefix length is missing, no number, or beyond the family's 32 or 128 bits.
    #[error("`{text}`: the prefix length must be a whole number from 0 to {most}")]
    BadLength {
        /// What was given.
        text: String,
        /// 32 or 128.
        most: u8,
    },
    /// Bits are set beyond the prefix length, so the range meant is in doubt.
    #[error("`{text}` has bits set beyond its prefix length; did you mean {meant}?")]
    HostBits {
        /// What was given.
        text: String,
        /// The same prefix with host bits cleared.
        meant: String,
    },
    /// A range that is no single source.
    #[error(
        "`{0}` is a range; only an IPv4 host, an IPv6 host (its /64 is meant) or an IPv6 /64 can be named here"
    )]
    NotASource(String),
    /// Part of an IPv6 /64, but more than a host.
    #[error("`{text}` is part of an IPv6 /64, which is counted and banned as a whole; did you mean {meant}?")]
    PartOfASource {
        /// What was given.
        text: String,
        /// The /64 around it.
        meant: String,
    },
}

impl PacketSource {
    /// The source that packets from `address` count for. A mapped IPv4 address (`::ffff:192.0.2.7`) is that IPv4 host.
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self(Inner::V4(v4.octets())),
            IpAddr::V6(v6) => {
                let [a, b, c, d, e, f, g, h, ..] = v6.octets();
                Self(Inner::V6([a, b, c, d, e, f, g, h]))
            }
        }
    }

    /// The source's key in the kernel's tables.
    pub const fn key(self) -> SourceKey {
        match self.0 {
            Inner::V4(address) => SourceKey::v4(address),
            Inner::V6(prefix) => SourceKey::v6(prefix),
        }
    }

    /// The source behind a kernel key.
    pub const fn from_key(key: SourceKey) -> Self {
        let [a, b, c, d, ..] = key.prefix;
        if key.width == WIDTH_V4_HOST { Self(Inner::V4([a, b, c, d])) } else { Self(Inner::V6(key.prefix)) }
    }

    /// The range of addresses that this source covers.
    pub fn prefix(self) -> Prefix {
        match self.0 {
            Inner::V4(address) => Prefix { address: IpAddr::V4(address.into()), length: 32 },
            Inner::V6(high) => {
                let bits = u128::from(u64::from_be_bytes(high)) << 64;
                Prefix { address: IpAddr::V6(bits.into()), length: 64 }
            }
        }
    }
}

impl Prefix {
    /// The single address `address`.
    pub fn host(address: IpAddr) -> Self {
        let address = address.to_canonical();
        Self { address, length: if address.is_ipv4() { 32 } else { 128 } }
    }

    /// A range known when this crate is compiled. The caller has cleared the host bits.
    pub(crate) const fn known(address: IpAddr, length: u8) -> Self {
        Self { address, length }
    }

    /// The first address.
    pub const fn address(self) -> IpAddr {
        self.address
    }

    /// How many leading bits are fixed: 0 to 32 or 0 to 128.
    pub const fn length(self) -> u8 {
        self.length
    }

    /// The prefix as the kernel's allow list keys it: IPv4 mapped into `::ffff:0:0/96`, so lengths grow by 96.
    pub const fn kernel_key(self) -> (u32, AddressBytes) {
        match self.address {
            IpAddr::V4(v4) => (self.length as u32 + 96, v4.to_ipv6_mapped().octets()),
            IpAddr::V6(v6) => (self.length as u32, v6.octets()),
        }
    }

    /// The prefix behind a key of [`Self::kernel_key`]; `None` where the length is beyond 128 bits.
    pub fn from_kernel_key((length, bytes): (u32, AddressBytes)) -> Option<Self> {
        let length = u8::try_from(length).ok().filter(|length| *length <= 128)?;
        let address = Ipv6Addr::from(bytes);
        Some(match (address.to_ipv4_mapped(), length.checked_sub(96)) {
            (Some(v4), Some(length)) => Self { address: v4.into(), length },
            (Some(_) | None, _) => Self { address: address.into(), length },
        })
    }

    /// Whether `address` lies in the range. Families never mix.
    pub fn contains(self, address: IpAddr) -> bool {
        self.address.is_ipv4() == address.is_ipv4() && mask(address, self.length) == self.address
    }

    /// Whether the two ranges share an address.
    pub fn overlaps(self, other: Self) -> bool {
        let length = self.length.min(other.length);
        self.address.is_ipv4() == other.address.is_ipv4()
            && mask(self.address, length) == mask(other.address, length)
    }

    /// The sources that share an address with the range, first to last. A range inside one /64 has that one source.
    pub fn sources(self) -> RangeInclusive<PacketSource> {
        // Not `PacketSource::of`, which would take the mapped addresses at the border of a wide IPv6 range for IPv4.
        let source = |address: IpAddr| match address {
            IpAddr::V4(v4) => PacketSource(Inner::V4(v4.octets())),
            IpAddr::V6(v6) => PacketSource(Inner::V6(((u128::from(v6) >> 64) as u64).to_be_bytes())),
        };
        source(self.address)..=source(self.last())
    }

    /// The ranges that hold this one, itself among them, longest first.
    pub fn around(self) -> impl Iterator<Item = Self> {
        (0..=self.length).rev().map(move |length| Self { address: mask(self.address, length), length })
    }

    /// The ranges among `known` that share an address with this one, in no order.
    pub(crate) fn overlapping<V>(self, known: &BTreeMap<Self, V>) -> impl Iterator<Item = Self> {
        let first = Self { address: self.address, length: self.length };
        let last = Self { address: self.last(), length: u8::MAX };
        let inside = known.range(first..=last).map(|(prefix, _)| *prefix);
        inside.chain(self.around().skip(1).filter(|prefix| known.contains_key(prefix)))
    }

    fn last(self) -> IpAddr {
        let length = u32::from(self.length);
        match self.address {
            IpAddr::V4(first) => {
                IpAddr::V4((u32::from(first) | u32::MAX.checked_shr(length).unwrap_or(0)).into())
            }
            IpAddr::V6(first) => {
                IpAddr::V6((u128::from(first) | u128::MAX.checked_shr(length).unwrap_or(0)).into())
            }
        }
    }

    /// Whether an IPv6 range holds mapped IPv4 addresses (`::ffff:0:0/96`). As a row of the kernel's allow list, whose
    /// keys hold IPv4 in that form, it would cover IPv4 hosts that nobody named.
    pub fn reaches_into_ipv4(self) -> bool {
        let mapped = Self::known(IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0)), 96);
        self.overlaps(mapped)
    }
}

fn mask(address: IpAddr, length: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let kept = u32::MAX.checked_shl(32 - u32::from(length.min(32))).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from(u32::from(v4) & kept))
        }
        IpAddr::V6(v6) => {
            let kept = u128::MAX.checked_shl(128 - u32::from(length.min(128))).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from(u128::from(v6) & kept))
        }
    }
}

impl FromStr for Prefix {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (address, length) = match text.split_once('/') {
            None => (text, None),
            Some((address, length)) => (address, Some(length)),
        };
        let address: IpAddr = address.parse().map_err(|_| ParseIdError::NotAnAddress(text.to_owned()))?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let length = match length {
            None => most,
            Some(length) => length
                .parse()
                .ok()
                .filter(|length| *length <= most)
                .ok_or_else(|| ParseIdError::BadLength { text: text.to_owned(), most })?,
        };
        let masked = mask(address, length);
        if masked != address {
            let meant = Self { address: masked, length }.to_string();
            return Err(ParseIdError::HostBits { text: text.to_owned(), meant });
        }
        // A mapped prefix means the IPv4 range inside it.
        match (address.to_canonical(), length.checked_sub(96)) {
            (IpAddr::V4(v4), Some(length)) if address.is_ipv6() => {
                Ok(Self { address: IpAddr::V4(v4), length })
            }
            _ => Ok(Self { address, length }),
        }
    }
}

impl FromStr for PacketSource {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let prefix: Prefix = text.parse()?;
        match (prefix.address, prefix.length) {
            (IpAddr::V4(_), 32) | (IpAddr::V6(_), 64 | 128) => Ok(Self::of(prefix.address)),
            (IpAddr::V4(_) | IpAddr::V6(_), _) => Err(ParseIdError::NotASource(text.to_owned())),
        }
    }
}

impl BanTarget {
    /// Every address that the ban hits.
    pub fn prefix(self) -> Prefix {
        match self {
            Self::Source(source) => source.prefix(),
            Self::Range(prefix) => prefix,
        }
    }
}

impl From<PacketSource> for BanTarget {
    fn from(source: PacketSource) -> Self {
        Self::Source(source)
    }
}

impl FromStr for BanTarget {
    type Err = ParseIdError;

    /// An IPv6 host stands for its /64. Another part of a /64 is an error: whoever writes /120 means less than a /64.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let prefix: Prefix = text.parse()?;
        match (prefix.address, prefix.length) {
            (IpAddr::V4(_), 32) | (IpAddr::V6(_), 64 | 128) => {
                Ok(Self::Source(PacketSource::of(prefix.address)))
            }
            (IpAddr::V6(_), 65..) => {
                let meant = PacketSource::of(prefix.address).to_string();
                Err(ParseIdError::PartOfASource { text: text.to_owned(), meant })
            }
            (IpAddr::V4(_) | IpAddr::V6(_), _) => Ok(Self::Range(prefix)),
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.address, self.length)
    }
}

impl fmt::Display for PacketSource {
    /// An IPv4 host without, an IPv6 /64 with its length.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Inner::V4(address) => Ipv4Addr::from(address).fmt(out),
            Inner::V6(_) => self.prefix().fmt(out),
        }
    }
}

impl fmt::Display for BanTarget {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Source(source) => source.fmt(out),
            Self::Range(prefix) => prefix.fmt(out),
        }
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(if self.address.is_ipv4() { "Prefix(v4 scrubbed)" } else { "Prefix(v6 scrubbed)" })
    }
}

impl fmt::Debug for PacketSource {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self.0 {
            Inner::V4(_) => "PacketSource(v4 scrubbed)",
            Inner::V6(_) => "PacketSource(v6 scrubbed)",
        })
    }
}

impl From<PacketSource> for String {
    fn from(source: PacketSource) -> Self {
        source.to_string()
    }
}

impl From<Prefix> for String {
    fn from(prefix: Prefix) -> Self {
        prefix.to_string()
    }
}

impl From<BanTarget> for String {
    fn from(target: BanTarget) -> Self {
        target.to_string()
    }
}

impl TryFrom<String> for BanTarget {
    type Error = ParseIdError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl TryFrom<String> for PacketSource {
    type Error = ParseIdError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl TryFrom<String> for Prefix {
    type Error = ParseIdError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sources_read_and_print() {
        for (text, printed) in [
            ("192.0.2.7", "192.0.2.7"),
            ("192.0.2.7/32", "192.0.2.7"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
            ("2001:db8:1:2::/64", "2001:db8:1:2::/64"),
        ] {
            let source: PacketSource = text.parse().unwrap();
            assert_eq!(source.to_string(), printed);
            assert_eq!(PacketSource::from_key(source.key()), source);
        }
    }

    #[test]
    fn bad_ids_say_what_is_wrong() {
        for (text, part) in [
            ("host.example", "not an IP address"),
            ("192.0.2.7/33", "from 0 to 32"),
            ("192.0.2.7/24", "did you mean 192.0.2.0/24"),
            ("192.0.2.0/24", "is a range"),
            ("2001:db8::/48", "is a range"),
        ] {
            let message = text.parse::<PacketSource>().unwrap_err().to_string();
            assert!(message.contains(part), "{text}: {message}");
        }
    }

    #[test]
    fn targets_are_sources_or_ranges() {
        for (text, printed, is_range) in [
            ("192.0.2.7", "192.0.2.7", false),
            ("192.0.2.7/32", "192.0.2.7", false),
            ("192.0.2.6/31", "192.0.2.6/31", true),
            ("::ffff:192.0.2.0/120", "192.0.2.0/24", true),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64", false),
            ("2001:db8:1:2::/64", "2001:db8:1:2::/64", false),
            ("2001:db8:1:2::/63", "2001:db8:1:2::/63", true),
        ] {
            let target: BanTarget = text.parse().unwrap();
            assert_eq!(
                (target.to_string().as_str(), matches!(target, BanTarget::Range(_))),
                (printed, is_range)
            );
            assert_eq!(printed.parse(), Ok(target));
            assert!(!format!("{target:?}").contains(['1', '2']));
        }
        let message = "2001:db8:1:2:3::/80".parse::<BanTarget>().unwrap_err().to_string();
        assert!(message.contains("did you mean 2001:db8:1:2::/64"), "{message}");
    }

    #[test]
    fn debug_shows_no_address() {
        let source: PacketSource = "192.0.2.7".parse().unwrap();
        assert!(!format!("{source:?} {:?}", source.prefix()).contains("192"));
    }

    #[test]
    fn ranges_know_their_sources() {
        for (range, first, last) in [
            ("192.0.2.7", "192.0.2.7", "192.0.2.7"),
            ("192.0.2.0/24", "192.0.2.0", "192.0.2.255"),
            ("0.0.0.0/0", "0.0.0.0", "255.255.255.255"),
            ("2001:db8::/48", "2001:db8::", "2001:db8:0:ffff::"),
            ("2001:db8:1:2::5/128", "2001:db8:1:2::", "2001:db8:1:2::"),
            ("::/0", "::", "ffff:ffff:ffff:ffff::"),
        ] {
            let prefix: Prefix = range.parse().unwrap();
            let (first, last): (PacketSource, PacketSource) = (first.parse().unwrap(), last.parse().unwrap());
            assert!(prefix.sources() == (first..=last), "{range}");
        }
    }

    #[test]
    fn only_wide_ranges_around_zero_reach_into_ipv4() {
        for (range, reaches) in
            [("::/0", true), ("::/80", true), ("2000::/3", false), ("192.0.2.0/24", false)]
        {
            assert_eq!(range.parse::<Prefix>().unwrap().reaches_into_ipv4(), reaches, "{range}");
        }
    }

    fn any_prefix() -> impl Strategy<Value = Prefix> {
        // Few addresses and long prefixes, so that ranges nest and share borders.
        let v4 = (0u8..32, 24u8..=32).prop_map(|(host, length)| (IpAddr::from([192, 0, 2, host]), length));
        let v6 = (0u16..32, 120u8..=128)
            .prop_map(|(host, length)| (IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, host]), length));
        let edge = (any::<bool>(), any::<u32>(), 0u8..=32).prop_map(|(is_v4, bits, length)| match is_v4 {
            true => (IpAddr::from(bits.to_be_bytes()), length),
            false => (IpAddr::from((u128::from(bits) << 96 | 1 << 120).to_be_bytes()), length),
        });
        prop_oneof![v4, v6, edge]
            .prop_map(|(address, length)| Prefix { address: mask(address, length), length })
    }

    #[test]
    fn kernel_keys_read_back() {
        for text in ["192.0.2.7/32", "0.0.0.0/0", "10.0.0.0/8", "2001:db8::/32", "2001:db8::7/128", "::/0"] {
            let prefix: Prefix = text.parse().unwrap();
            assert_eq!(Prefix::from_kernel_key(prefix.kernel_key()), Some(prefix), "{text}");
        }
        assert_eq!(Prefix::from_kernel_key((129, [0; 16])), None);
    }

    proptest! {
        /// For all sets of ranges, the short way finds exactly those that overlap, each once.
        #[test]
        fn overlaps_are_found(known in prop::collection::btree_map(any_prefix(), Just(()), 0..20), range in any_prefix()) {
            let mut found: Vec<Prefix> = range.overlapping(&known).collect();
            found.sort_unstable();
            let slowly: Vec<Prefix> = known.keys().copied().filter(|prefix| prefix.overlaps(range)).collect();
            prop_assert_eq!(found, slowly);
        }

        /// For all addresses and lengths, a prefix made by masking contains its address, and reads back from its text.
        #[test]
        fn masking_contains(bits: u128, length in 0u8..=128) {
            let address = IpAddr::V6(bits.into());
            prop_assume!(address.to_canonical() == address);
            let prefix = Prefix { address: mask(address, length), length };
            prop_assert!(prefix.contains(address));
            prop_assume!(prefix.address.to_canonical() == prefix.address);
            prop_assert_eq!(prefix.to_string().parse(), Ok(prefix));
        }
    }
}
