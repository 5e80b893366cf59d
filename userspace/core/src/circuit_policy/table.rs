//! The bounded table of circuits: found by number, evicted in order, never walked on the path of a decision.
//!
//! Records lie in one array, their links in another. A record is found through a chain of its hash; the banned form a heap by
//! the end of their ban, all others lists from the longest to the most recently used. Whether a circuit carries connections
//! moves it in no list. Whoever looks for the first one that may be evicted takes those that may not out of its way; each comes
//! back when it is closed, so that for one closed no more than one is ever passed over.
//!
//! Memory, once filled: per circuit one [`Record`] (96 bytes), one [`Links`] (12), one head of a chain (4) and one place
//! in the heap (4): 116 bytes. Each array is reserved at its full size at the start, so none ever doubles, and pages that
//! no circuit has reached are not resident. Besides there is one number for each tick at which circuits cease to be VIPs, so
//! that these can be counted without a walk.

use std::{
    collections::BTreeMap,
    ops::Bound::{Excluded, Unbounded},
};

use super::record::{APART, Home, Record};

/// No slot.
const NONE: u32 = u32::MAX;

/// What the table reserves for each circuit that it can hold, bytes.
pub const BYTES_PER_CIRCUIT: usize = size_of::<Record>() + size_of::<Links>() + 2 * size_of::<u32>();
const _: () = assert!(BYTES_PER_CIRCUIT <= 128, "the design allows 128 bytes a tracked circuit");

/// All circuits of one shard.
#[derive(Clone, Debug)]
pub(super) struct Table {
    capacity: u32,
    records: Vec<Record>,
    links: Vec<Links>,
    heads: Vec<u32>,
    /// First free slot, chained through `chain`.
    free: u32,
    len: u32,
    passing: List,
    known: List,
    /// Slots of the banned: a binary heap whose first has the ban that ends first.
    bans: Vec<u32>,
    /// How many are VIPs up to which tick: [`Record::vip_until`].
    vips: BTreeMap<u32, u32>,
}

#[derive(Clone, Copy, Debug)]
struct Links {
    chain: u32,
    /// The neighbour used longer ago; of a banned one its place in the heap.
    before: u32,
    after: u32,
}

#[derive(Clone, Copy, Debug)]
struct List {
    first: u32,
    last: u32,
}

/// Every slot holds a circuit with open connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full;

impl Table {
    /// An empty table for so many circuits, at least one.
    pub(super) fn new(capacity: u32) -> Self {
        let capacity = capacity.clamp(1, NONE - 1);
        let list = List { first: NONE, last: NONE };
        Self {
            capacity,
            records: Vec::with_capacity(capacity as usize),
            links: Vec::with_capacity(capacity as usize),
            heads: vec![NONE; capacity as usize],
            free: NONE,
            len: 0,
            passing: list,
            known: list,
            bans: Vec::with_capacity(capacity as usize),
            vips: BTreeMap::new(),
        }
    }

    pub(super) const fn len(&self) -> u32 {
        self.len
    }

    pub(super) const fn is_full(&self) -> bool {
        self.len >= self.capacity
    }

    /// How many are banned.
    pub(super) fn banned(&self) -> u32 {
        self.bans.len() as u32
    }

    /// How many go past the queue at the tick `now`; none of them is banned.
    pub(super) fn vips(&self, now: u32) -> u32 {
        self.vips.range((Excluded(now), Unbounded)).map(|(_, count)| count).sum()
    }

    pub(super) fn get(&self, number: u32) -> Option<&Record> {
        self.record(self.find(number)?)
    }

    /// Writes a record, which becomes the most recently used one of its home. A new one may take the place of another,
    /// which is returned.
    pub(super) fn put(&mut self, mut record: Record) -> Result<Option<Record>, Full> {
        if let Some(slot) = self.find(record.number) {
            if let Some(before) = self.record(slot)
                && stays(before, &record)
            {
                record.set(APART, before.has(APART));
                self.write(slot, record);
                return Ok(None);
            }
            self.leave_home(slot);
            self.write(slot, record);
            self.enter_home(slot);
            return Ok(None);
        }
        let evicted = if self.is_full() { Some(self.evict()?) } else { None };
        let slot = self.take_free();
        self.write(slot, record);
        let head = self.head(record.number);
        let next = self.heads.get(head).copied().unwrap_or(NONE);
        self.set_links(slot, Links { chain: next, before: NONE, after: NONE });
        self.set_head(head, slot);
        self.enter_home(slot);
        self.len += 1;
        Ok(evicted)
    }

    pub(super) fn remove(&mut self, number: u32) -> Option<Record> {
        let slot = self.find(number)?;
        self.leave_home(slot);
        self.unchain(slot, number);
        let record = self.record(slot).copied()?;
        self.write(slot, Record { number: 0, ..record });
        self.set_links(slot, Links { chain: self.free, before: NONE, after: NONE });
        self.free = slot;
        self.len -= 1;
        Some(record)
    }

    /// The banned circuit whose ban ends first.
    pub(super) fn first_ban(&self) -> Option<&Record> {
        self.record(*self.bans.first()?)
    }

    /// All banned circuits, in no order.
    pub(super) fn bans(&self) -> impl Iterator<Item = &Record> {
        self.bans.iter().filter_map(|slot| self.record(*slot))
    }

    /// The longest unused of the circuits that are neither banned nor open.
    pub(super) fn longest_unused(&mut self) -> Option<&Record> {
        self.pass_held();
        self.firsts().min_by_key(|record| record.touched)
    }

    /// The first of either list. Those that carry connections may stand before the one that [`Self::longest_unused`] finds.
    pub(super) fn firsts(&self) -> impl Iterator<Item = &Record> {
        [self.passing.first, self.known.first].into_iter().filter_map(|slot| self.record(slot))
    }

    /// The circuits in up to `count` slots from `slot` on, and whether there are more behind them. No field that a home
    /// depends on may be changed.
    pub(super) fn slice_mut(&mut self, slot: u32, count: u32) -> (impl Iterator<Item = &mut Record>, bool) {
        let end = slot.saturating_add(count);
        let has_more = (end as usize) < self.records.len();
        let slots = self.records.iter_mut().skip(slot as usize).take(count as usize);
        (slots.filter(|record| record.number != 0), has_more)
    }

    fn evict(&mut self) -> Result<Record, Full> {
        self.pass_held();
        let candidates = [self.passing.first, self.known.first, self.bans.first().copied().unwrap_or(NONE)];
        let number = candidates.iter().find_map(|slot| self.record(*slot)).ok_or(Full)?.number;
        self.remove(number).ok_or(Full)
    }

    fn take_free(&mut self) -> u32 {
        if let Some(links) = self.link(self.free) {
            return std::mem::replace(&mut self.free, links.chain);
        }
        let slot = self.records.len() as u32;
        self.records.push(Record::new(0, 0));
        self.links.push(Links { chain: NONE, before: NONE, after: NONE });
        slot
    }

    // Finding.

    /// Fibonacci hashing: tor's numbers come in a row, and so spread without collisions.
    fn head(&self, number: u32) -> usize {
        let hash = u64::from(number.wrapping_mul(0x9e37_79b9));
        ((hash * u64::from(self.capacity)) >> 32) as usize
    }

    fn find(&self, number: u32) -> Option<u32> {
        let mut slot = *self.heads.get(self.head(number))?;
        loop {
            if self.record(slot)?.number == number {
                return Some(slot);
            }
            slot = self.link(slot)?.chain;
        }
    }

    fn unchain(&mut self, slot: u32, number: u32) {
        let next = self.link(slot).map_or(NONE, |links| links.chain);
        let head = self.head(number);
        let mut at = self.heads.get(head).copied().unwrap_or(NONE);
        if at == slot {
            self.set_head(head, next);
            return;
        }
        while let Some(links) = self.links.get_mut(at as usize) {
            if links.chain == slot {
                links.chain = next;
                return;
            }
            at = links.chain;
        }
    }

    // Homes.

    /// Takes those that carry connections from the fronts of the lists.
    fn pass_held(&mut self) {
        let is_held = |table: &Self, slot| table.record(slot).is_some_and(Record::is_held);
        while let Some(slot) =
            [self.passing.first, self.known.first].into_iter().find(|slot| is_held(self, *slot))
        {
            self.leave_home(slot);
            self.set_apart(slot, true);
        }
    }

    fn set_apart(&mut self, slot: u32, is_so: bool) {
        if let Some(record) = self.records.get_mut(slot as usize) {
            record.set(APART, is_so);
        }
    }

    fn enter_home(&mut self, slot: u32) {
        self.set_apart(slot, false);
        let list = match self.record(slot).map(Record::home) {
            Some(Home::Passing) => &mut self.passing,
            Some(Home::Known) => &mut self.known,
            Some(Home::Banned) => {
                self.bans.push(slot);
                self.rise(self.bans.len() - 1);
                return;
            }
            None => return,
        };
        let last = std::mem::replace(&mut list.last, slot);
        if last == NONE {
            list.first = slot;
        }
        self.link_up(last, slot);
        self.link_up(slot, NONE);
    }

    fn leave_home(&mut self, slot: u32) {
        if self.record(slot).is_some_and(|record| record.has(APART)) {
            return;
        }
        let Some(links) = self.link(slot) else { return };
        let list = match self.record(slot).map(Record::home) {
            Some(Home::Passing) => &mut self.passing,
            Some(Home::Known) => &mut self.known,
            Some(Home::Banned) => {
                let place = links.before as usize;
                self.bans.swap_remove(place);
                if place < self.bans.len() {
                    self.rise(place);
                    self.sink(place);
                }
                return;
            }
            None => return,
        };
        if list.first == slot {
            list.first = links.after;
        }
        if list.last == slot {
            list.last = links.before;
        }
        self.link_up(links.before, links.after);
    }

    /// Makes two slots neighbours; either may be none.
    fn link_up(&mut self, before: u32, after: u32) {
        if let Some(links) = self.links.get_mut(before as usize) {
            links.after = after;
        }
        if let Some(links) = self.links.get_mut(after as usize) {
            links.before = before;
        }
    }

    // The heap.

    fn ban_end(&self, place: usize) -> Option<u32> {
        Some(self.record(*self.bans.get(place)?)?.banned_until)
    }

    fn rise(&mut self, mut place: usize) {
        while place > 0 && self.ban_end(place) < self.ban_end((place - 1) / 2) {
            self.swap_bans(place, (place - 1) / 2);
            place = (place - 1) / 2;
        }
        self.note_place(place);
    }

    fn sink(&mut self, mut place: usize) {
        loop {
            let children = [2 * place + 1, 2 * place + 2].into_iter();
            let ends = children.filter_map(|child| Some((self.ban_end(child)?, child)));
            match ends.min() {
                Some((end, child)) if Some(end) < self.ban_end(place) => {
                    self.swap_bans(place, child);
                    place = child;
                }
                Some(_) | None => break,
            }
        }
        self.note_place(place);
    }

    fn swap_bans(&mut self, one: usize, other: usize) {
        self.bans.swap(one, other);
        self.note_place(one);
        self.note_place(other);
    }

    fn note_place(&mut self, place: usize) {
        let slot = self.bans.get(place).copied().unwrap_or(NONE);
        if let Some(links) = self.links.get_mut(slot as usize) {
            links.before = place as u32;
        }
    }

    // Access.

    fn record(&self, slot: u32) -> Option<&Record> {
        self.records.get(slot as usize)
    }

    fn link(&self, slot: u32) -> Option<Links> {
        self.links.get(slot as usize).copied()
    }

    fn write(&mut self, slot: u32, record: Record) {
        if let Some(place) = self.records.get_mut(slot as usize) {
            let before = std::mem::replace(place, record);
            self.count_vip(before.vip_until(), record.vip_until());
        }
    }

    fn count_vip(&mut self, before: u32, after: u32) {
        if before == after {
            return;
        }
        if let Some(count) = self.vips.get_mut(&before) {
            *count -= 1;
            if *count == 0 {
                self.vips.remove(&before);
            }
        }
        if after > 0 {
            *self.vips.entry(after).or_default() += 1;
        }
    }

    fn set_links(&mut self, slot: u32, links: Links) {
        if let Some(place) = self.links.get_mut(slot as usize) {
            *place = links;
        }
    }

    fn set_head(&mut self, head: usize, slot: u32) {
        if let Some(place) = self.heads.get_mut(head) {
            *place = slot;
        }
    }
}

/// Whether a record may be written without leaving its place.
fn stays(before: &Record, after: &Record) -> bool {
    let same = before.home() == after.home() && before.turn_to_go() == after.turn_to_go();
    same && (after.is_held() || !before.has(APART))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::{
        super::record::{PROMOTED, SOLVED},
        *,
    };

    fn record(number: u32, now: u32, open: u16, banned_until: u32, has_solved: bool) -> Record {
        let mut record = Record { open, banned_until, ..Record::new(number, now) };
        record.set(SOLVED, has_solved);
        record
    }

    /// What the table should evict: the lowest home; in it the longest unused, or of the banned the one free first.
    fn victim(model: &BTreeMap<u32, Record>) -> Option<(Home, u32)> {
        let free = model.values().filter(|record| !record.is_held());
        free.map(|record| (record.home(), record.turn_to_go())).min()
    }

    #[test]
    fn arrays_are_reserved_once_and_nothing_else_is_held() {
        let capacity = 1_000;
        let mut table = Table::new(capacity);
        for number in 1..=3 * capacity {
            // Every circuit is banned: the most that the heap can hold.
            table.put(record(number, number, 0, number + 1, false)).unwrap();
        }
        let bytes = table.records.capacity() * size_of::<Record>()
            + table.links.capacity() * size_of::<Links>()
            + (table.heads.capacity() + table.bans.capacity()) * size_of::<u32>();
        assert_eq!(table.len(), capacity);
        assert_eq!(bytes, capacity as usize * BYTES_PER_CIRCUIT);
        assert_eq!(BYTES_PER_CIRCUIT, 116);
    }

    proptest! {
        /// For all sequences of writes and removals, the table holds what a map would, never more than its capacity,
        /// evicts in order, and never a circuit with open connections.
        #[test]
        fn like_a_map_but_bounded(
            steps in prop::collection::vec((1u32..24, 0u16..3, prop_oneof![Just(0u32), 1u32..50], any::<bool>(), 0u8..5, prop_oneof![3 => Just(0u32), 1 => 1u32..2_000, 1 => Just(u32::MAX)]), 1..200),
            capacity in 1u32..12,
        ) {
            let (mut table, mut model) = (Table::new(capacity), BTreeMap::new());
            for (step, (number, open, banned_until, has_solved, kind, vip_until)) in (3..).zip(steps) {
                // Some in the same tick and some in the same epoch, as it is where a circuit sends many requests.
                let now = step / 3 * 30;
                if kind == 0 {
                    prop_assert_eq!(table.remove(number).map(|gone| gone.touched), model.remove(&number).map(|gone: Record| gone.touched));
                } else {
                    let is_promoted = vip_until == u32::MAX;
                    let (ticket, ticket_until) = if is_promoted { (0, 0) } else { (vip_until, vip_until) };
                    let mut written = Record { ticket, ticket_until, ..record(number, now, open.saturating_sub(1), banned_until, has_solved) };
                    written.set(PROMOTED, is_promoted);
                    let is_new = !model.contains_key(&number);
                    let expected = if is_new && model.len() == capacity as usize { Some(victim(&model)) } else { None };
                    match (table.put(written), expected) {
                        (Ok(None), None) => { model.insert(number, written); }
                        (Ok(Some(gone)), Some(Some((home, rank)))) => {
                            prop_assert_eq!(gone.home(), home);
                            prop_assert_eq!(gone.turn_to_go(), rank);
                            prop_assert!(model.remove(&gone.number).is_some());
                            model.insert(number, written);
                        }
                        (Err(Full), Some(None)) => {}
                        (result, expected) => prop_assert!(false, "{:?}, expected {:?}", result.map(|gone| gone.map(|gone| gone.home())), expected),
                    }
                }
                prop_assert_eq!(table.len() as usize, model.len());
                for number in 1..24 {
                    prop_assert_eq!(table.get(number).map(|found| found.touched), model.get(&number).map(|found| found.touched));
                }
                let banned = || model.values().filter(|record| record.home() == Home::Banned);
                prop_assert_eq!(table.banned() as usize, banned().count());
                let vips = model.values().filter(|record| record.home() < Home::Banned && record.is_vip(now));
                prop_assert_eq!(table.vips(now) as usize, vips.count());
                prop_assert_eq!(table.first_ban().map(|record| record.banned_until), banned().map(|record| record.banned_until).min());
                let unused = model.values().filter(|record| record.home() < Home::Banned && !record.is_held());
                let turn = unused.map(Record::turn_to_go).min();
                prop_assert_eq!(table.longest_unused().map(Record::turn_to_go), turn);
                prop_assert_eq!(table.slice_mut(0, u32::MAX).0.count(), model.len());
            }
        }
    }
}
