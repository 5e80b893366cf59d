//! Map keys, and the values of the ban and allow tables.

use crate::shared::shared_struct;

/// An IPv6 address, or an IPv4 address mapped into `::ffff:0:0/96` (RFC 4291 section 2.5.5.2), in network order.
pub type AddressBytes = [u8; 16];

/// [`SourceKey::width`] of an IPv4 host.
pub const WIDTH_V4_HOST: u32 = 32;
/// [`SourceKey::width`] of an IPv6 /64, the unit in which networks are assigned to sites (RFC 6177).
pub const WIDTH_V6_NET: u32 = 64;

shared_struct! {
    /// What bans and per-source limits count by: an IPv4 host or an IPv6 /64.
    ///
    /// A single IPv6 address is no unit: its owner has 2^64 of them.
    #[derive(Hash, PartialOrd, Ord)]
    pub struct SourceKey {
        /// The first eight bytes of the address in network order; IPv4: four bytes, then four zeros.
        pub prefix: [u8; 8],
        /// How many bits of `prefix` count: 32 is an IPv4 host, 64 an IPv6 /64.
        pub width: u32,
    }
    size = 12
}

impl SourceKey {
    /// The key of an IPv4 host.
    #[inline(always)]
    pub const fn v4(address: [u8; 4]) -> Self {
        let [a, b, c, d] = address;
        Self { prefix: [a, b, c, d, 0, 0, 0, 0], width: WIDTH_V4_HOST }
    }

    /// The key of the /64 around an IPv6 address, given the address's first eight bytes.
    #[inline(always)]
    pub const fn v6(prefix: [u8; 8]) -> Self {
        Self { prefix, width: WIDTH_V6_NET }
    }

    /// The prefix as one integer, the first byte lowest.
    #[inline(always)]
    pub const fn word(&self) -> u64 {
        u64::from_le_bytes(self.prefix)
    }
}

shared_struct! {
    /// A row of the ban table.
    pub struct BanEntry {
        /// When the ban ends, nanoseconds of `CLOCK_MONOTONIC`; `u64::MAX` for one that ends only by hand.
        pub expires_ns: u64,
        /// The ledger's number of this ban, which `tunica explain` looks up.
        pub ban_id: u32,
        /// Bit 0 ([`BAN_DYNAMIC`]): lapses while the daemon's heartbeat is missing.
        pub flags: u32,
    }
    size = 16
}

/// [`BanEntry::flags`]: the ban came from evidence, not from an operator's hand, and lapses without a heartbeat.
pub const BAN_DYNAMIC: u32 = 1;

shared_struct! {
    /// A row of the allow list.
    pub struct AllowEntry {
        /// Who asked for it: one of the `ALLOW_BY_…` numbers.
        pub origin: u32,
        /// The ledger's number of this entry; 0 where the entry is no ledger fact.
        pub allow_id: u32,
    }
    size = 8
}

/// [`AllowEntry::origin`]: the configuration file.
pub const ALLOW_BY_CONFIG: u32 = 1;
/// [`AllowEntry::origin`]: `tunica allow add`.
pub const ALLOW_BY_OPERATOR: u32 = 2;
/// [`AllowEntry::origin`]: the far end of one of tor's own connections.
pub const ALLOW_BY_TOR: u32 = 3;
