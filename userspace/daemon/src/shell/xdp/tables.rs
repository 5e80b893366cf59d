//! Typed handles on the shield's maps.
//!
//! Everything durable is decided elsewhere; this file writes rows, keeps the ban filter true to the ban table, and swaps
//! policies so that a packet sees the old one or the new one.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap as Counts},
    os::fd::{AsFd as _, OwnedFd},
    time::Duration,
};

use aya::{
    Ebpf,
    maps::{
        Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, PerCpuValues, ProgramArray, RingBuf,
        lpm_trie::Key,
    },
};
use thiserror::Error;
use tunica_common::{
    event::{DIFFERENCE_SLOTS, TALLY_SLOTS, Tally},
    gcra::{self, Limit},
    keys::{AddressBytes, AllowEntry, BanEntry, SourceKey},
    layout::{
        ACTIVE, ALLOW, BAN_FILTER, BANNED_NETS, BANS, DIFFERENCES, EVENTS, HEARTBEAT, HOST_STATE, JUMPS,
        LOST_EVENTS, LOST_PROOFS, NET_STATE, OWN, POLICIES, PORT_STATE, PORTS, SYN_SKETCH, TALLIES, TRICKLES,
        VERIFIED,
    },
    policy::{
        BAN_FILTER_WORDS, HostState, NetState, Policy, PortRule, PortState, SKETCH_CELLS, SKETCH_ROWS,
        VERIFIED_SOURCES, Verified, ban_filter_position, keyed_hash, net_cell, own_bit, sketch_cells,
        trickle_cell,
    },
};

use zerocopy::FromZeros as _;

use super::object::LoadError;

/// How long a program run may still hold the policy slot that went out of force. A run takes microseconds.
const GRACE: Duration = Duration::from_millis(2);

/// The bytes of a /56, the first byte lowest.
const NARROW: u64 = 0x00ff_ffff_ffff_ffff;
/// The bytes of a /48.
const WIDE: u64 = 0x0000_ffff_ffff_ffff;

/// Cells of the sketch that one estimate reads: its standard error is at most 2.2 %.
const SAMPLED_CELLS: u32 = 512;

/// A map operation that failed.
#[derive(Debug, Error)]
#[error("cannot {doing} map {map}: {source}")]
pub struct TableError {
    doing: &'static str,
    map: &'static str,
    #[source]
    source: Box<MapError>,
}

impl TableError {
    pub(in crate::shell) fn new(doing: &'static str, map: &'static str) -> impl FnOnce(MapError) -> Self {
        move |source| Self { doing, map, source: Box::new(source) }
    }
}

/// All maps of a loaded shield.
pub struct Tables {
    active: Array<MapData, u32>,
    policies: Array<MapData, Policy>,
    heartbeat: Array<MapData, u64>,
    bans: HashMap<MapData, SourceKey, BanEntry>,
    ban_filter: Array<MapData, u64>,
    allow: LpmTrie<MapData, AddressBytes, AllowEntry>,
    own: HashMap<MapData, AddressBytes, u32>,
    nets: LpmTrie<MapData, AddressBytes, BanEntry>,
    ports: HashMap<MapData, u32, PortRule>,
    port_state: Array<MapData, PortState>,
    host_state: Array<MapData, HostState>,
    trickles: Array<MapData, u64>,
    net_state: Array<MapData, NetState>,
    verified: HashMap<MapData, SourceKey, Verified>,
    /// Held, because the kernel empties a map of programs once nobody holds it.
    jumps: ProgramArray<MapData>,
    differences: PerCpuArray<MapData, Tally>,
    /// The same map, to be read many rows at once.
    verified_fd: OwnedFd,
    sketch: Array<MapData, u32>,
    tallies: PerCpuArray<MapData, Tally>,
    lost: PerCpuArray<MapData, u64>,
    lost_proofs: PerCpuArray<MapData, u64>,
    events: Option<RingBuf<MapData>>,
    /// Secret of the hashes, kept as long as the maps are, because filter and sketch depend on it.
    secret: [u64; 2],
    /// How many banned sources share each bit of the ban filter.
    filter_counts: Counts<(u32, u64), u32>,
    own_filter: u64,
}

/// Packets and bytes of one tally slot, summed over the CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Total {
    /// Packets.
    pub packets: u64,
    /// Bytes, link header included.
    pub bytes: u64,
}

fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, LoadError> {
    ebpf.take_map(name).ok_or(LoadError::Missing { what: "map", name })
}

impl Tables {
    /// Takes the maps out of a loaded object. If they were pinned and in use, their secret and content stay.
    ///
    /// `fresh_secret` serves maps that were never used before.
    ///
    /// # Errors
    /// [`LoadError`] if a map is missing or of the wrong kind.
    pub fn take(ebpf: &mut Ebpf, fresh_secret: [u64; 2]) -> Result<Self, LoadError> {
        macro_rules! typed {
            ($name:ident) => {{
                let map = take(ebpf, $name)?;
                map.try_into().map_err(|source: MapError| LoadError::Map { name: $name, source })?
            }};
        }
        let verified = take(ebpf, VERIFIED)?;
        let Map::LruHashMap(data) = &verified else {
            return Err(LoadError::Missing { what: "map of LRU kind", name: VERIFIED });
        };
        let duplicate = |source| LoadError::Map { name: VERIFIED, source: MapError::IoError(source) };
        let verified_fd = data.fd().as_fd().try_clone_to_owned().map_err(duplicate)?;
        let mut tables = Self {
            active: typed!(ACTIVE),
            policies: typed!(POLICIES),
            heartbeat: typed!(HEARTBEAT),
            bans: typed!(BANS),
            ban_filter: typed!(BAN_FILTER),
            allow: typed!(ALLOW),
            own: typed!(OWN),
            nets: typed!(BANNED_NETS),
            ports: typed!(PORTS),
            port_state: typed!(PORT_STATE),
            host_state: typed!(HOST_STATE),
            trickles: typed!(TRICKLES),
            net_state: typed!(NET_STATE),
            verified: verified
                .try_into()
                .map_err(|source: MapError| LoadError::Map { name: VERIFIED, source })?,
            jumps: typed!(JUMPS),
            differences: typed!(DIFFERENCES),
            verified_fd,
            sketch: typed!(SYN_SKETCH),
            tallies: typed!(TALLIES),
            lost: typed!(LOST_EVENTS),
            lost_proofs: typed!(LOST_PROOFS),
            events: Some(typed!(EVENTS)),
            secret: fresh_secret,
            filter_counts: Counts::new(),
            own_filter: 0,
        };
        let used =
            tables.policy().map_err(|error| LoadError::Map { name: POLICIES, source: *error.source })?;
        if used.secret != [0; 2] {
            tables.secret = used.secret;
        }
        tables.own_filter = used.own_filter;
        for key in tables.bans.keys().flatten().collect::<Vec<_>>() {
            *tables.filter_counts.entry(tables.filter_position(&key)).or_default() += 1;
        }
        Ok(tables)
    }

    /// The ring buffer, once: whoever reads events owns it.
    pub fn take_events(&mut self) -> Option<RingBuf<MapData>> {
        self.events.take()
    }

    /// The secret that the hashes are keyed with.
    pub const fn secret(&self) -> [u64; 2] {
        self.secret
    }

    /// The filter over the own addresses last written.
    pub const fn own_filter(&self) -> u64 {
        self.own_filter
    }

    /// The policy in force.
    ///
    /// # Errors
    /// [`TableError`] if a map cannot be read.
    pub fn policy(&self) -> Result<Policy, TableError> {
        let active = self.active.get(&0, 0).map_err(TableError::new("read", ACTIVE))?;
        self.policies.get(&(active & 1), 0).map_err(TableError::new("read", POLICIES))
    }

    /// Puts `policy` in force: writes the slot that is not, then flips. Packets see one or the other.
    ///
    /// Blocks for 2 ms, so that no run still reads the slot that the next swap will write.
    ///
    /// # Errors
    /// [`TableError`]; the old policy is then still in force.
    pub fn swap_policy(&mut self, policy: &Policy) -> Result<(), TableError> {
        self.swap_policy_at_rest(policy)?;
        std::thread::sleep(GRACE);
        Ok(())
    }

    /// [`Tables::swap_policy`] without the wait; for clones only, whose program runs when asked.
    ///
    /// # Errors
    /// [`TableError`]; the old policy is then still in force.
    pub fn swap_policy_at_rest(&mut self, policy: &Policy) -> Result<(), TableError> {
        let active = self.active.get(&0, 0).map_err(TableError::new("read", ACTIVE))?;
        let next = (active & 1) ^ 1;
        self.policies.set(next, policy, 0).map_err(TableError::new("write", POLICIES))?;
        self.active.set(0, next, 0).map_err(TableError::new("write", ACTIVE))
    }

    /// Writes the daemon's sign of life, nanoseconds of `CLOCK_MONOTONIC`.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn beat(&mut self, now_ns: u64) -> Result<(), TableError> {
        self.heartbeat.set(0, now_ns, 0).map_err(TableError::new("write", HEARTBEAT))
    }

    /// The heartbeat as the kernel program sees it, nanoseconds of `CLOCK_MONOTONIC`; 0 if there never was one.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn last_beat(&self) -> Result<u64, TableError> {
        self.heartbeat.get(&0, 0).map_err(TableError::new("read", HEARTBEAT))
    }

    /// Every row of the ban table.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn bans(&self) -> Result<BTreeMap<SourceKey, BanEntry>, TableError> {
        self.bans.iter().collect::<Result<_, _>>().map_err(TableError::new("read", BANS))
    }

    /// The ban table's row of `key`.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn ban(&self, key: &SourceKey) -> Result<Option<BanEntry>, TableError> {
        absent_is_none(self.bans.get(key, 0)).map_err(TableError::new("read", BANS))
    }

    /// Adds or replaces a ban. The filter's bit is set first: a set bit without a row is harmless, the reverse is not.
    ///
    /// # Errors
    /// [`TableError`], for one if the table is full.
    pub fn set_ban(&mut self, key: &SourceKey, entry: &BanEntry) -> Result<(), TableError> {
        let is_new = self.ban(key)?.is_none();
        let position = self.filter_position(key);
        self.write_filter(position, true)?;
        self.bans.insert(key, entry, 0).map_err(TableError::new("write", BANS))?;
        if is_new {
            *self.filter_counts.entry(position).or_default() += 1;
        }
        Ok(())
    }

    /// Removes a ban; it is no error if there was none.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn remove_ban(&mut self, key: &SourceKey) -> Result<(), TableError> {
        if absent_is_none(self.bans.remove(key)).map_err(TableError::new("write", BANS))?.is_none() {
            return Ok(());
        }
        let position = self.filter_position(key);
        let count = self.filter_counts.entry(position).or_default();
        *count = count.saturating_sub(1);
        if *count == 0 {
            self.filter_counts.remove(&position);
            self.write_filter(position, false)?;
        }
        Ok(())
    }

    /// Makes every word of the filter agree with the ban table. Needed once, when maps are taken over from a daemon that
    /// may have died between two writes.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn repair_filter(&mut self) -> Result<(), TableError> {
        let mut words: BTreeMap<u32, u64> = BTreeMap::new();
        for (word, bit) in self.filter_counts.keys() {
            *words.entry(*word).or_default() |= bit;
        }
        for index in 0..BAN_FILTER_WORDS as u32 {
            let should = words.get(&index).copied().unwrap_or(0);
            let is = self.ban_filter.get(&index, 0).map_err(TableError::new("read", BAN_FILTER))?;
            if is != should {
                self.ban_filter.set(index, should, 0).map_err(TableError::new("write", BAN_FILTER))?;
            }
        }
        Ok(())
    }

    fn filter_position(&self, key: &SourceKey) -> (u32, u64) {
        ban_filter_position(keyed_hash(key, self.secret))
    }

    fn write_filter(&mut self, (word, bit): (u32, u64), set: bool) -> Result<(), TableError> {
        let is = self.ban_filter.get(&word, 0).map_err(TableError::new("read", BAN_FILTER))?;
        let should = if set { is | bit } else { is & !bit };
        if is == should {
            return Ok(());
        }
        self.ban_filter.set(word, should, 0).map_err(TableError::new("write", BAN_FILTER))
    }

    /// How many sources the kernel holds that completed a handshake. It reads them all, in a few calls.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn count_verified(&self) -> Result<u64, TableError> {
        let most = VERIFIED_SOURCES as u64;
        let (key, value) = (size_of::<SourceKey>(), size_of::<Verified>());
        crate::sys::count_rows(self.verified_fd.as_fd(), key, value, most)
            .map_err(MapError::IoError)
            .map_err(TableError::new("count", VERIFIED))
    }

    /// Every row of the allow list, by prefix length (IPv4 counted from 96) and address.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn allow(&self) -> Result<BTreeMap<(u32, AddressBytes), AllowEntry>, TableError> {
        self.allow
            .iter()
            .map(|row| row.map(|(key, entry)| ((key.prefix_len(), key.data()), entry)))
            .collect::<Result<_, _>>()
            .map_err(TableError::new("read", ALLOW))
    }

    /// The longest allow-list prefix that covers `address` says this.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn allow_of(&self, address: AddressBytes) -> Result<Option<AllowEntry>, TableError> {
        absent_is_none(self.allow.get(&Key::new(128, address), 0)).map_err(TableError::new("read", ALLOW))
    }

    /// Adds or replaces an allow-list prefix.
    ///
    /// # Errors
    /// [`TableError`], for one if the list is full.
    pub fn set_allow(
        &mut self,
        (length, address): (u32, AddressBytes),
        entry: &AllowEntry,
    ) -> Result<(), TableError> {
        self.allow.insert(&Key::new(length, address), entry, 0).map_err(TableError::new("write", ALLOW))
    }

    /// Removes an allow-list prefix; it is no error if there was none.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn remove_allow(&mut self, (length, address): (u32, AddressBytes)) -> Result<(), TableError> {
        absent_is_none(self.allow.remove(&Key::new(length, address)))
            .map(|_| ())
            .map_err(TableError::new("write", ALLOW))
    }

    /// Every banned range, by prefix length (IPv4 counted from 96) and address.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn nets(&self) -> Result<BTreeMap<(u32, AddressBytes), BanEntry>, TableError> {
        self.nets
            .iter()
            .map(|row| row.map(|(key, entry)| ((key.prefix_len(), key.data()), entry)))
            .collect::<Result<_, _>>()
            .map_err(TableError::new("read", BANNED_NETS))
    }

    /// The ban of the longest banned range that covers `address`.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn net_of(&self, address: AddressBytes) -> Result<Option<BanEntry>, TableError> {
        absent_is_none(self.nets.get(&Key::new(128, address), 0))
            .map_err(TableError::new("read", BANNED_NETS))
    }

    /// Adds or replaces a banned range.
    ///
    /// # Errors
    /// [`TableError`], for one if the table is full.
    pub fn set_net(
        &mut self,
        (length, address): (u32, AddressBytes),
        entry: &BanEntry,
    ) -> Result<(), TableError> {
        self.nets.insert(&Key::new(length, address), entry, 0).map_err(TableError::new("write", BANNED_NETS))
    }

    /// Removes a banned range; it is no error if there was none.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn remove_net(&mut self, (length, address): (u32, AddressBytes)) -> Result<(), TableError> {
        absent_is_none(self.nets.remove(&Key::new(length, address)))
            .map(|_| ())
            .map_err(TableError::new("write", BANNED_NETS))
    }

    /// What was said of ports.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn ports(&self) -> Result<BTreeMap<u32, PortRule>, TableError> {
        self.ports.iter().collect::<Result<_, _>>().map_err(TableError::new("read", PORTS))
    }

    /// Adds or replaces what is said of a port.
    ///
    /// # Errors
    /// [`TableError`], for one if the table is full.
    pub fn set_port(&mut self, key: u32, rule: &PortRule) -> Result<(), TableError> {
        self.ports.insert(key, rule, 0).map_err(TableError::new("write", PORTS))
    }

    /// Removes what is said of a port; it is no error if there was nothing.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn remove_port(&mut self, key: u32) -> Result<(), TableError> {
        absent_is_none(self.ports.remove(&key)).map(|_| ()).map_err(TableError::new("write", PORTS))
    }

    /// What the program remembers of a port.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn port_state(&self, port: u16) -> Result<PortState, TableError> {
        self.port_state.get(&u32::from(port), 0).map_err(TableError::new("read", PORT_STATE))
    }

    /// Writes what the program remembers of a port; for clones only.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn set_port_state(&mut self, port: u16, state: &PortState) -> Result<(), TableError> {
        self.port_state.set(u32::from(port), state, 0).map_err(TableError::new("write", PORT_STATE))
    }

    /// Removes what handshakes of this source left, if anything.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn forget_verified(&mut self, source: &SourceKey) -> Result<(), TableError> {
        absent_is_none(self.verified.remove(source)).map(|_| ()).map_err(TableError::new("write", VERIFIED))
    }

    /// The clock of the trickle to a port of an own address, nanoseconds of `CLOCK_MONOTONIC`; 0: no SYN trickled.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn trickle(&self, port: u16, address: AddressBytes) -> Result<u64, TableError> {
        let [high, low] = address_words(address);
        self.trickles.get(&trickle_cell(port, high, low), 0).map_err(TableError::new("read", TRICKLES))
    }

    /// Writes the clock of the trickle to a port of an own address; for clones only.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn set_trickle(&mut self, port: u16, address: AddressBytes, tat: u64) -> Result<(), TableError> {
        let [high, low] = address_words(address);
        self.trickles.set(trickle_cell(port, high, low), tat, 0).map_err(TableError::new("write", TRICKLES))
    }

    /// What the program remembers of the host.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn host_state(&self) -> Result<HostState, TableError> {
        self.host_state.get(&0, 0).map_err(TableError::new("read", HOST_STATE))
    }

    /// Writes what the program remembers of the host; for clones only.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn set_host_state(&mut self, state: &HostState) -> Result<(), TableError> {
        self.host_state.set(0, state, 0).map_err(TableError::new("write", HOST_STATE))
    }

    /// What the program remembers of the /56 and the /48 around an IPv6 prefix of eight bytes, first byte lowest; each with
    /// its width.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn networks_of(&self, word: u64) -> Result<[(u32, NetState); 2], TableError> {
        let read = |prefix, width| {
            let state = self.net_state.get(&net_cell(prefix, width == 48, self.secret), 0);
            let state = state.map_err(TableError::new("read", NET_STATE))?;
            // Another network may have the cell.
            let is_this = state.prefix == prefix;
            let none = NetState { prefix, shared_until_ns: 0, since_ns: 0, children: [0; 4] };
            Ok((width, if is_this { state } else { none }))
        };
        Ok([read(word & NARROW, 56)?, read(word & WIDE, 48)?])
    }

    /// Writes what the program remembers of an IPv6 network; for clones only.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn set_network(&mut self, width: u32, state: &NetState) -> Result<(), TableError> {
        let cell = net_cell(state.prefix, width == 48, self.secret);
        self.net_state.set(cell, state, 0).map_err(TableError::new("write", NET_STATE))
    }

    /// The own addresses in the table.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn own(&self) -> Result<BTreeSet<AddressBytes>, TableError> {
        self.own.keys().collect::<Result<_, _>>().map_err(TableError::new("read", OWN))
    }

    /// Whether the table of own addresses holds this one.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn is_own(&self, address: AddressBytes) -> Result<bool, TableError> {
        let row = absent_is_none(self.own.get(&address, 0)).map_err(TableError::new("read", OWN))?;
        Ok(row.is_some())
    }

    /// Adds an own address. It counts from the next policy on, whose filter must cover it.
    ///
    /// # Errors
    /// [`TableError`], for one if the table is full.
    pub fn add_own(&mut self, address: AddressBytes) -> Result<(), TableError> {
        self.own.insert(address, 1, 0).map_err(TableError::new("write", OWN))?;
        let [high, low] = address_words(address);
        self.own_filter |= own_bit(high, low);
        Ok(())
    }

    /// Removes an own address; it is no error if there was none.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn remove_own(&mut self, address: AddressBytes) -> Result<(), TableError> {
        absent_is_none(self.own.remove(&address)).map_err(TableError::new("write", OWN))?;
        self.own_filter = self
            .own()?
            .into_iter()
            .map(address_words)
            .fold(0, |filter, [high, low]| filter | own_bit(high, low));
        Ok(())
    }

    /// The cells of `key` in the SYN sketch, one for each row.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn cells(&self, key: &SourceKey) -> Result<Vec<u32>, TableError> {
        sketch_cells(keyed_hash(key, self.secret))
            .iter()
            .map(|index| self.sketch.get(index, 0))
            .collect::<Result<_, _>>()
            .map_err(TableError::new("read", SYN_SKETCH))
    }

    /// Share of the sketch's cells in which a SYN would be refused at `now_ns`, from 0 to 1, estimated from
    /// 512 of them; 0 while the limit is off.
    ///
    /// A source's cells are spread by a keyed hash, so cells at even distances are as good as cells at random.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn sketch_busy(&self, now_ns: u64) -> Result<f64, TableError> {
        let policy = self.policy()?;
        if policy.syn_cost_ticks == 0 {
            return Ok(0.0);
        }
        let limit = Limit { cost_ticks: policy.syn_cost_ticks, tolerance_ticks: policy.syn_tolerance_ticks };
        let stride = (SKETCH_ROWS * SKETCH_CELLS) as u32 / SAMPLED_CELLS;
        let mut busy = 0;
        for sample in 0..SAMPLED_CELLS {
            let cell = self.sketch.get(&(sample * stride), 0).map_err(TableError::new("read", SYN_SKETCH))?;
            let owed = gcra::debt(cell, gcra::ticks(now_ns), policy.generation, limit);
            busy += u32::from(!gcra::conforms(owed, limit));
        }
        Ok(f64::from(busy) / f64::from(SAMPLED_CELLS))
    }

    /// Writes the cells of `key`; for clones only, since the live sketch belongs to the kernel program.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn set_cells(&mut self, key: &SourceKey, cells: &[u32]) -> Result<(), TableError> {
        for (index, cell) in sketch_cells(keyed_hash(key, self.secret)).iter().zip(cells) {
            self.sketch.set(*index, cell, 0).map_err(TableError::new("write", SYN_SKETCH))?;
        }
        Ok(())
    }

    /// Every tally, summed over the CPUs, in slot order ([`tunica_common::event::tally_slot`]).
    ///
    /// # Errors
    /// [`TableError`].
    pub fn totals(&self) -> Result<Vec<Total>, TableError> {
        (0..TALLY_SLOTS as u32).map(|slot| self.total(slot)).collect()
    }

    /// One tally, summed over the CPUs.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn total(&self, slot: u32) -> Result<Total, TableError> {
        sum(&self.tallies, TALLIES, slot)
    }

    /// Packets on which candidate and policy in force differ, summed over the CPUs, in slot order
    /// ([`tunica_common::event::difference_slot`]).
    ///
    /// # Errors
    /// [`TableError`].
    pub fn differences(&self) -> Result<Vec<Total>, TableError> {
        (0..DIFFERENCE_SLOTS as u32).map(|slot| sum(&self.differences, DIFFERENCES, slot)).collect()
    }

    /// Counts differences from nothing again.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn clear_differences(&mut self) -> Result<(), TableError> {
        for slot in 0..DIFFERENCE_SLOTS as u32 {
            let each = self.differences.get(&slot, 0).map_err(TableError::new("read", DIFFERENCES))?;
            let zeros = PerCpuValues::try_from(vec![Tally::new_zeroed(); each.len()])
                .map_err(|error| TableError::new("write", DIFFERENCES)(MapError::IoError(error)))?;
            self.differences.set(slot, zeros, 0).map_err(TableError::new("write", DIFFERENCES))?;
        }
        Ok(())
    }

    /// Takes a program out of those that are jumped to; it is no error if it was not there.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn clear_jump(&mut self, index: u32) -> Result<(), TableError> {
        absent_is_none(self.jumps.clear_index(&index)).map(|_| ()).map_err(TableError::new("write", JUMPS))
    }

    /// Events lost because the ring buffer was full, summed over the CPUs.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn lost_events(&self) -> Result<u64, TableError> {
        let each = self.lost.get(&0, 0).map_err(TableError::new("read", LOST_EVENTS))?;
        Ok(each.iter().sum())
    }

    /// Proven violations lost because the ring buffer was full, summed over the CPUs.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn lost_proofs(&self) -> Result<u64, TableError> {
        let each = self.lost_proofs.get(&0, 0).map_err(TableError::new("read", LOST_PROOFS))?;
        Ok(each.iter().sum())
    }
}

/// One row of tallies, summed over the CPUs.
fn sum(tallies: &PerCpuArray<MapData, Tally>, map: &'static str, slot: u32) -> Result<Total, TableError> {
    let each = tallies.get(&slot, 0).map_err(TableError::new("read", map))?;
    Ok(each.iter().fold(Total::default(), |sum, tally| Total {
        packets: sum.packets + tally.packets,
        bytes: sum.bytes + tally.bytes,
    }))
}

/// The two words that the kernel program makes of an address.
pub(crate) fn address_words(address: AddressBytes) -> [u64; 2] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = address;
    [u64::from_le_bytes([a, b, c, d, e, f, g, h]), u64::from_le_bytes([i, j, k, l, m, n, o, p])]
}

fn absent_is_none<T>(result: Result<T, MapError>) -> Result<Option<T>, MapError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}
