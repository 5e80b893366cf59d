//! HAProxy's table of circuits: what it should hold, and what differs.
//!
//! HAProxy bans circuits by its own rules, operators and the front by ours; both are to last as long as they should, whoever of
//! HAProxy and the daemon starts again, and no longer than the tor process whose circuits they are. The machine never talks to
//! HAProxy: a shell tells it what the table holds, and does the edits.
//!
//! The table carries a mark that names the tor process. A table with another mark, or none, is of circuits that are not known
//! to be those of today: it is emptied, since otherwise its bans would hit strangers. As long as it is not known which tor
//! process hands over the streams, no table is.
//!
//! The mark is a row like others, so it can expire or make room in a full table. A table that is known to have borne a mark
//! bears it still when that row alone is gone, as long as the same HAProxy process answers and nobody emptied it.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU32,
    time::Duration,
};

use crate::time::Monotime;

/// What a circuit is to HAProxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Its streams are refused.
    Banned,
    /// It goes past the queue.
    Vip,
    /// As any other.
    Normal,
}

/// Circuits by number, with what they are.
pub type Standings = BTreeMap<NonZeroU32, Standing>;

/// What operators, or the front, say of a circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// To be refused.
    Banned,
    /// To go past the queue.
    Vip,
    /// Banned no longer, its violations forgotten; a VIP that it is it remains.
    Unbanned,
    /// A VIP no longer; a ban stays.
    Demoted,
}

impl Said {
    /// Whether it counts over what was found to be `standing`.
    fn overrules(self, standing: Standing) -> bool {
        match self {
            Self::Banned | Self::Vip => true,
            Self::Unbanned => standing == Standing::Banned,
            Self::Demoted => standing == Standing::Vip,
        }
    }

    /// What the table is to hold for it, whatever was found.
    const fn standing(self) -> Option<Standing> {
        match self {
            Self::Banned => Some(Standing::Banned),
            Self::Vip => Some(Standing::Vip),
            Self::Unbanned | Self::Demoted => None,
        }
    }
}

/// What is wanted of the table besides what HAProxy found itself.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Wish {
    /// Grows with each change of what operators said.
    pub revision: u64,
    /// The mark of the tor process whose circuits are meant; `None`: not known.
    pub mark: Option<u32>,
    /// What operators and the front say.
    pub said: BTreeMap<NonZeroU32, Said>,
}

/// What a table was seen to hold.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Which HAProxy process it is of: another process has another number.
    pub process: u64,
    /// Its mark.
    pub mark: Option<u32>,
    /// Circuits that are not [`Standing::Normal`].
    pub standings: Standings,
}

/// One change of the table.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Edit {
    /// Remove every row: they are of another tor process.
    Forget,
    /// Name the tor process.
    Mark(u32),
    /// Set what a circuit is. To be made normal means that its violations are forgotten, too.
    Set(NonZeroU32, Standing),
}

/// What HAProxy, or an earlier daemon, made of a circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Banned { until: Monotime },
    Vip,
}

impl Found {
    const fn standing(self) -> Standing {
        match self {
            Self::Banned { .. } => Standing::Banned,
            Self::Vip => Standing::Vip,
        }
    }
}

/// See the module.
#[derive(Clone)]
pub struct HaproxyTable {
    ban_length: Duration,
    wish: Wish,
    found: BTreeMap<NonZeroU32, Found>,
    /// What the table holds, once it was read.
    seen: Option<Seen>,
    process: Option<u64>,
    /// The process whose table was last seen to bear a mark, and which one it was.
    confirmed: Option<(u64, u32)>,
    /// Circuits that are not normal because of us, so that they are not taken for HAProxy's own finds.
    ours: BTreeSet<NonZeroU32>,
    /// Circuits that were made normal while the wish speaks of them.
    reset: BTreeSet<NonZeroU32>,
    /// The rows that are left after all were removed are in use, and of the tor process before.
    is_emptied: bool,
}

impl HaproxyTable {
    /// Bans that HAProxy found last `ban_length` from when they are first seen.
    pub fn new(ban_length: Duration) -> Self {
        Self {
            ban_length,
            wish: Wish::default(),
            found: BTreeMap::new(),
            seen: None,
            process: None,
            confirmed: None,
            ours: BTreeSet::new(),
            reset: BTreeSet::new(),
            is_emptied: false,
        }
    }

    /// Takes in what is wanted now, in place of what was wanted before.
    pub fn wish(&mut self, wish: Wish) {
        if wish.mark != self.wish.mark {
            let is_same = self.wish.mark.is_none()
                && self.seen.as_ref().is_some_and(|seen| self.borne(seen) == wish.mark);
            if !is_same {
                self.found.clear();
                self.ours.clear();
                self.reset.clear();
            }
        }
        if wish.revision != self.wish.revision {
            // It may be said again.
            self.reset.clear();
        }
        self.wish = wish;
        let said = &self.wish.said;
        self.found
            .retain(|circuit, found| !said.get(circuit).is_some_and(|it| it.overrules(found.standing())));
    }

    /// Takes in what the table holds.
    pub fn observe(&mut self, seen: Seen, now: Monotime) {
        let is_same_process = self.process == Some(seen.process);
        self.process = Some(seen.process);
        let is_emptied = std::mem::take(&mut self.is_emptied);
        if let Some(mark) = seen.mark {
            self.confirmed = Some((seen.process, mark));
        }
        let is_trusted = !is_emptied && (self.wish.mark.is_none() || self.borne(&seen) == self.wish.mark);
        if !is_same_process {
            self.ours.clear();
        }
        if is_trusted {
            if is_same_process {
                // Rows of VIPs end with their circuits. Those of bans may have made room for others.
                self.found
                    .retain(|circuit, found| *found != Found::Vip || seen.standings.contains_key(circuit));
            }
            let until = now.after(self.ban_length);
            for (circuit, standing) in &seen.standings {
                let is_overruled = self.wish.said.get(circuit).is_some_and(|said| said.overrules(*standing));
                let is_known = is_overruled || self.ours.contains(circuit);
                match (standing, self.found.get(circuit)) {
                    (Standing::Normal, _) | (Standing::Vip, Some(_)) => {}
                    (Standing::Banned, Some(Found::Banned { .. })) => {}
                    (Standing::Banned, Some(Found::Vip)) if is_overruled => {}
                    (Standing::Banned, Some(Found::Vip)) => {
                        self.found.insert(*circuit, Found::Banned { until });
                    }
                    (_, None) if is_known => {}
                    (Standing::Banned, None) => drop(self.found.insert(*circuit, Found::Banned { until })),
                    (Standing::Vip, None) => drop(self.found.insert(*circuit, Found::Vip)),
                }
            }
        }
        let (standings, wish) = (&seen.standings, &self.wish.said);
        self.ours.retain(|circuit| standings.contains_key(circuit) || wish.contains_key(circuit));
        self.seen = Some(seen);
    }

    /// HAProxy cannot be reached: what its table holds has to be read anew.
    pub fn lost(&mut self) {
        self.seen = None;
    }

    /// Whether the table has to be read.
    pub const fn is_unread(&self) -> bool {
        self.seen.is_none()
    }

    /// Lifts bans that are over.
    pub fn advance(&mut self, now: Monotime) {
        let ours = &mut self.ours;
        self.found.retain(|circuit, found| {
            let is_over = matches!(found, Found::Banned { until } if *until <= now);
            if is_over {
                // Its row says so until it is made normal, which is no find of HAProxy's any more.
                ours.insert(*circuit);
            }
            !is_over
        });
    }

    /// When [`Self::advance`] has something to do.
    pub fn next_deadline(&self) -> Option<Monotime> {
        self.found_bans().map(|(_, until)| until).min()
    }

    /// The mark of the tor process whose circuits are meant, see [`Wish::mark`].
    pub const fn mark(&self) -> Option<u32> {
        self.wish.mark
    }

    /// The mark that the table bears as it should, and that is to be written again and again so that its row does not expire;
    /// `None` as long as the table was not read, or has to be emptied first.
    pub fn mark_to_keep(&self) -> Option<u32> {
        let borne = self.borne(self.seen.as_ref()?);
        borne.filter(|_| borne == self.wish.mark)
    }

    /// The mark of a table, be it that its row alone is gone.
    fn borne(&self, seen: &Seen) -> Option<u32> {
        let confirmed = self.confirmed.filter(|(process, _)| *process == seen.process);
        seen.mark.or(confirmed.map(|(_, mark)| mark))
    }

    /// The bans that HAProxy found, and when they end.
    pub fn found_bans(&self) -> impl Iterator<Item = (NonZeroU32, Monotime)> {
        self.found.iter().filter_map(|(circuit, found)| match found {
            Found::Banned { until } => Some((*circuit, *until)),
            Found::Vip => None,
        })
    }

    /// What the table should hold; all other circuits are normal.
    pub fn desired(&self) -> Standings {
        let found = self.found.iter().map(|(circuit, found)| (*circuit, found.standing()));
        let said = self.wish.said.iter();
        found.chain(said.filter_map(|(circuit, said)| Some((*circuit, said.standing()?)))).collect()
    }

    /// What has to be done to the table, bans first; nothing as long as it was not read.
    pub fn edits(&self) -> Vec<Edit> {
        let Some(seen) = &self.seen else { return Vec::new() };
        if let Some(mark) = self.wish.mark
            && seen.mark != Some(mark)
        {
            let is_known = self.borne(seen) == Some(mark);
            return if is_known { vec![Edit::Mark(mark)] } else { vec![Edit::Forget, Edit::Mark(mark)] };
        }
        let desired = self.desired();
        let mut changes = differences(&seen.standings, &desired);
        let to_reset = self.wish.said.iter().filter(|(circuit, said)| {
            **said == Said::Unbanned && !self.reset.contains(circuit) && !desired.contains_key(circuit)
        });
        changes.extend(to_reset.map(|(circuit, _)| (Standing::Normal, *circuit)));
        changes.into_iter().map(|(standing, circuit)| Edit::Set(circuit, standing)).collect()
    }

    /// An edit was done.
    pub fn applied(&mut self, edit: Edit) {
        match edit {
            Edit::Forget => {
                self.is_emptied = true;
                // Should the mark not be written after it, nobody knows whose rows are in the table then.
                self.confirmed = None;
            }
            // What is left now has to be looked at.
            Edit::Mark(_) => self.seen = None,
            Edit::Set(circuit, standing) => {
                let Some(seen) = &mut self.seen else { return };
                match standing {
                    Standing::Banned | Standing::Vip => {
                        seen.standings.insert(circuit, standing);
                        self.ours.insert(circuit);
                    }
                    Standing::Normal => {
                        seen.standings.remove(&circuit);
                        self.ours.remove(&circuit);
                        if self.wish.said.contains_key(&circuit) {
                            self.reset.insert(circuit);
                        }
                    }
                }
            }
        }
    }

    /// The wish that the table follows: nothing is left to be done for it.
    pub fn followed(&self) -> Option<u64> {
        (self.seen.is_some() && self.edits().is_empty()).then_some(self.wish.revision)
    }
}

/// What makes `observed` into `desired`, each circuit once.
pub fn differences(observed: &Standings, desired: &Standings) -> BTreeSet<(Standing, NonZeroU32)> {
    let missing = desired.iter().filter(|(circuit, standing)| observed.get(circuit) != Some(standing));
    let surplus = observed.keys().filter(|circuit| !desired.contains_key(circuit));
    missing
        .map(|(circuit, standing)| (*standing, *circuit))
        .chain(surplus.map(|circuit| (Standing::Normal, *circuit)))
        .collect()
}

macro_rules! scrubbed {
    ($( $name:ident ),+) => { $(
        impl std::fmt::Debug for $name {
            fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                out.write_str(concat!(stringify!($name), "(scrubbed)"))
            }
        }
    )+ };
}

scrubbed!(Wish, Seen, Edit, HaproxyTable);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Standing::*, *};

    const LENGTH: Duration = Duration::from_secs(300);

    fn at(seconds: u64) -> Monotime {
        Monotime(seconds * 1_000_000_000)
    }

    fn circuit(number: u32) -> NonZeroU32 {
        NonZeroU32::new(number).unwrap()
    }

    fn standings(rows: &[(u32, Standing)]) -> Standings {
        rows.iter().map(|(number, standing)| (circuit(*number), *standing)).collect()
    }

    fn wish(revision: u64, mark: Option<u32>, rows: &[(u32, Said)]) -> Wish {
        Wish { revision, mark, said: rows.iter().map(|(number, said)| (circuit(*number), *said)).collect() }
    }

    /// A HAProxy as far as its table goes: rows in use outlast [`Edit::Forget`].
    #[derive(Clone, Debug, Default)]
    struct Model {
        process: u64,
        mark: Option<u32>,
        rows: Standings,
        in_use: BTreeSet<NonZeroU32>,
        /// How often all rows were removed.
        emptied: u32,
    }

    impl Model {
        fn seen(&self) -> Seen {
            Seen { process: self.process, mark: self.mark, standings: self.rows.clone() }
        }

        fn restart(&mut self) {
            *self = Self { process: self.process + 1, ..Self::default() };
        }

        fn apply(&mut self, edit: Edit) {
            match edit {
                Edit::Forget => {
                    self.emptied += 1;
                    self.mark = None;
                    self.rows.retain(|circuit, _| self.in_use.contains(circuit));
                }
                Edit::Mark(mark) => self.mark = Some(mark),
                Edit::Set(circuit, Normal) => drop(self.rows.remove(&circuit)),
                Edit::Set(circuit, standing) => drop(self.rows.insert(circuit, standing)),
            }
        }

        /// As the shell does: read, edit, and once more where that is asked for. Returns how many edits there were.
        fn visit(&mut self, table: &mut HaproxyTable, now: Monotime) -> usize {
            table.advance(now);
            table.observe(self.seen(), now);
            let mut done = 0;
            for _ in 0..2 {
                if table.is_unread() {
                    table.observe(self.seen(), now);
                }
                for edit in table.edits() {
                    self.apply(edit);
                    table.applied(edit);
                    done += 1;
                }
            }
            done
        }
    }

    #[test]
    fn what_is_wished_is_set_once_and_lifted_when_it_is_not_wished_any_more() {
        let (mut table, mut haproxy) = (HaproxyTable::new(LENGTH), Model::default());
        table.wish(wish(1, Some(7), &[(1, Said::Banned), (2, Said::Vip)]));
        assert!(table.edits().is_empty(), "nothing is known of the table");
        assert_eq!(table.followed(), None);
        haproxy.visit(&mut table, at(0));
        assert_eq!((haproxy.mark, haproxy.rows.clone()), (Some(7), standings(&[(1, Banned), (2, Vip)])));
        assert_eq!(table.followed(), Some(1));
        assert_eq!(haproxy.visit(&mut table, at(1)), 0);
        table.wish(wish(2, Some(7), &[(2, Said::Vip)]));
        assert_eq!(haproxy.visit(&mut table, at(2)), 1);
        assert_eq!(haproxy.rows, standings(&[(2, Vip)]));
        assert_eq!(table.found_bans().count(), 0, "our own ban is no find of HAProxy's");
    }

    #[test]
    fn what_haproxy_found_lasts_its_time_over_its_own_restart_and_ours() {
        let (mut table, mut haproxy) = (HaproxyTable::new(LENGTH), Model::default());
        table.wish(wish(0, Some(7), &[]));
        haproxy.visit(&mut table, at(0));
        haproxy.rows = standings(&[(5, Banned), (6, Vip)]);
        assert_eq!(haproxy.visit(&mut table, at(10)), 0);
        assert_eq!(table.found_bans().collect::<Vec<_>>(), [(circuit(5), at(310))]);
        haproxy.restart();
        haproxy.visit(&mut table, at(20));
        assert_eq!((haproxy.mark, haproxy.rows.clone()), (Some(7), standings(&[(5, Banned), (6, Vip)])));
        // Another daemon knows what the table says, and that it is of the same tor process.
        let mut next = HaproxyTable::new(LENGTH);
        haproxy.visit(&mut next, at(30));
        next.wish(wish(0, Some(7), &[]));
        assert_eq!(haproxy.visit(&mut next, at(31)), 0);
        assert_eq!(next.next_deadline(), Some(at(330)));
        // The first daemon's time is over.
        assert_eq!(table.next_deadline(), Some(at(310)));
        haproxy.visit(&mut table, at(310));
        assert_eq!(haproxy.rows, standings(&[(6, Vip)]));
        // A row that made room for others comes back as long as it is a ban.
        haproxy.rows = standings(&[(8, Banned)]);
        haproxy.visit(&mut table, at(311));
        haproxy.rows.clear();
        haproxy.visit(&mut table, at(312));
        assert_eq!(haproxy.rows, standings(&[(8, Banned)]));
    }

    #[test]
    fn a_ban_that_haproxy_found_ends_even_if_the_table_is_read_in_that_moment() {
        let (mut table, mut haproxy) = (HaproxyTable::new(LENGTH), Model::default());
        table.wish(wish(0, Some(7), &[]));
        haproxy.visit(&mut table, at(0));
        haproxy.rows = standings(&[(5, Banned)]);
        haproxy.visit(&mut table, at(10));
        table.lost();
        haproxy.visit(&mut table, at(310));
        assert_eq!((haproxy.rows.clone(), table.next_deadline()), (standings(&[]), None));
        // Another offence is another find.
        haproxy.rows = standings(&[(5, Banned)]);
        haproxy.visit(&mut table, at(320));
        assert_eq!(table.next_deadline(), Some(at(620)));
    }

    #[test]
    fn nothing_outlives_the_tor_process() {
        let (mut table, mut haproxy) = (HaproxyTable::new(LENGTH), Model::default());
        table.wish(wish(1, Some(7), &[(1, Said::Banned)]));
        haproxy.visit(&mut table, at(0));
        haproxy.rows.insert(circuit(5), Banned);
        haproxy.in_use.insert(circuit(5));
        haproxy.visit(&mut table, at(1));
        assert_eq!(table.found_bans().count(), 1);
        table.wish(wish(2, Some(8), &[]));
        haproxy.visit(&mut table, at(2));
        assert_eq!((haproxy.mark, haproxy.rows.len(), table.found_bans().count()), (Some(8), 0, 0));
        // A daemon that comes later finds a table of another tor process, or of none that it knows.
        for mark in [Some(7), None] {
            let (mut next, mut haproxy) = (HaproxyTable::new(LENGTH), haproxy.clone());
            (haproxy.mark, haproxy.rows) = (mark, standings(&[(3, Banned), (4, Vip)]));
            haproxy.visit(&mut next, at(3));
            assert_eq!(haproxy.rows.len(), 2, "which tor it is, is not known yet");
            next.wish(wish(0, Some(8), &[]));
            haproxy.visit(&mut next, at(4));
            assert_eq!((haproxy.mark, haproxy.rows.len(), next.found_bans().count()), (Some(8), 0, 0));
        }
    }

    #[test]
    fn a_mark_that_expired_is_written_again_and_nothing_else_is_touched() {
        let (mut table, mut haproxy) = (HaproxyTable::new(LENGTH), Model::default());
        assert_eq!(table.mark_to_keep(), None, "nothing is known of the table");
        table.wish(wish(0, Some(7), &[]));
        haproxy.visit(&mut table, at(0));
        assert_eq!(table.mark_to_keep(), Some(7));
        // What HAProxy found since the table was read, and its mark's row made room.
        (haproxy.mark, haproxy.rows) = (None, standings(&[(5, Banned), (6, Vip)]));
        table.observe(haproxy.seen(), at(1));
        assert!(table.edits() == [Edit::Mark(7)] && table.mark_to_keep() == Some(7));
        assert_eq!(haproxy.visit(&mut table, at(2)), 1);
        assert_eq!((haproxy.mark, haproxy.rows.clone()), (Some(7), standings(&[(5, Banned), (6, Vip)])));
        assert_eq!(table.found_bans().collect::<Vec<_>>(), [(circuit(5), at(301))]);
        // As well while HAProxy did not answer, or it was not known which tor process it is.
        haproxy.mark = None;
        table.lost();
        assert_eq!((table.mark_to_keep(), haproxy.visit(&mut table, at(3))), (None, 1));
        haproxy.mark = None;
        table.wish(wish(1, None, &[]));
        assert_eq!((haproxy.visit(&mut table, at(4)), table.mark_to_keep()), (0, None));
        table.wish(wish(2, Some(7), &[]));
        assert_eq!(haproxy.visit(&mut table, at(5)), 1);
        assert_eq!((haproxy.rows.len(), table.found_bans().count()), (2, 1));
    }

    #[test]
    fn a_table_without_its_mark_is_emptied_where_it_may_be_of_another_tor_process() {
        let marked = || {
            let (mut table, mut haproxy) = (HaproxyTable::new(LENGTH), Model::default());
            table.wish(wish(0, Some(7), &[]));
            haproxy.visit(&mut table, at(0));
            (haproxy.mark, haproxy.rows) = (None, standings(&[(5, Banned)]));
            (table, haproxy)
        };
        let begins_anew = |table: &HaproxyTable, mark| {
            table.edits() == [Edit::Forget, Edit::Mark(mark)] && table.mark_to_keep().is_none()
        };
        // Another HAProxy process.
        let (mut table, mut haproxy) = marked();
        haproxy.process += 1;
        table.observe(haproxy.seen(), at(1));
        assert!(begins_anew(&table, 7));
        // Another tor process.
        let (mut table, haproxy) = marked();
        table.wish(wish(1, Some(8), &[]));
        table.observe(haproxy.seen(), at(1));
        assert!(begins_anew(&table, 8));
        // Another mark.
        let (mut table, mut haproxy) = marked();
        haproxy.mark = Some(9);
        table.observe(haproxy.seen(), at(1));
        assert!(begins_anew(&table, 7));
        // One that was emptied, and whose mark was not written any more: its rows in use are of the tor process before.
        let (mut table, haproxy) = marked();
        table.wish(wish(1, Some(8), &[]));
        table.observe(haproxy.seen(), at(1));
        table.applied(Edit::Forget);
        table.lost();
        table.wish(wish(2, Some(7), &[]));
        table.observe(haproxy.seen(), at(2));
        assert!(begins_anew(&table, 7) && table.found_bans().count() == 0);
    }

    #[test]
    fn the_end_of_a_ban_forgets_what_was_found_and_is_done_once_each_time_it_is_said() {
        let (mut table, mut haproxy) = (HaproxyTable::new(LENGTH), Model::default());
        haproxy.rows = standings(&[(5, Banned)]);
        haproxy.visit(&mut table, at(0));
        table.wish(wish(1, None, &[(5, Said::Unbanned), (6, Said::Unbanned)]));
        assert_eq!(haproxy.visit(&mut table, at(1)), 2, "violations without a ban are forgotten, too");
        assert_eq!((haproxy.rows.len(), table.found_bans().count()), (0, 0));
        assert_eq!(haproxy.visit(&mut table, at(2)), 0);
        table.wish(wish(2, None, &[(5, Said::Unbanned)]));
        assert_eq!(haproxy.visit(&mut table, at(3)), 1);
        // What an operator said counts, not what HAProxy finds meanwhile.
        haproxy.rows = standings(&[(5, Banned)]);
        assert_eq!(haproxy.visit(&mut table, at(4)), 1);
        assert_eq!(haproxy.rows.len(), 0);
    }

    #[test]
    fn the_end_of_a_ban_demotes_nobody_and_a_demotion_ends_no_ban() {
        let (mut table, mut haproxy) = (HaproxyTable::new(LENGTH), Model::default());
        haproxy.rows = standings(&[(5, Banned), (6, Vip), (7, Banned), (8, Vip)]);
        haproxy.visit(&mut table, at(0));
        let said = [(5, Said::Demoted), (6, Said::Unbanned), (7, Said::Unbanned), (8, Said::Demoted)];
        table.wish(wish(1, None, &said));
        assert_eq!(haproxy.visit(&mut table, at(1)), 2);
        assert_eq!(haproxy.rows, standings(&[(5, Banned), (6, Vip)]));
        assert_eq!(table.found_bans().collect::<Vec<_>>(), [(circuit(5), at(300))]);
        // As well where another daemon finds them while it is said.
        haproxy.rows = standings(&[(5, Banned), (6, Vip), (7, Banned), (8, Vip)]);
        let mut next = HaproxyTable::new(LENGTH);
        next.wish(wish(1, None, &said));
        haproxy.visit(&mut next, at(2));
        assert_eq!(haproxy.rows, standings(&[(5, Banned), (6, Vip)]));
        // What HAProxy finds of a VIP meanwhile does not count, as of any other.
        haproxy.rows = standings(&[(5, Banned), (6, Banned)]);
        haproxy.visit(&mut next, at(3));
        assert_eq!(haproxy.rows, standings(&[(5, Banned), (6, Vip)]));
    }

    #[test]
    fn differences_name_each_circuit_once_and_bans_first() {
        let observed = standings(&[(1, Banned), (2, Vip), (3, Banned), (4, Vip)]);
        let desired = standings(&[(1, Banned), (2, Banned), (5, Vip)]);
        let found: Vec<_> = differences(&observed, &desired).into_iter().collect();
        assert_eq!(
            found,
            [(Banned, circuit(2)), (Vip, circuit(5)), (Normal, circuit(3)), (Normal, circuit(4))]
        );
    }

    #[test]
    fn nothing_names_a_circuit() {
        let seen = Seen { process: 1, mark: Some(77), standings: standings(&[(77, Banned)]) };
        let text =
            format!("{seen:?} {:?} {:?}", wish(1, Some(77), &[(77, Said::Vip)]), Edit::Set(circuit(77), Vip));
        assert!(!text.contains("77"), "{text}");
    }

    fn rows() -> impl Strategy<Value = Standings> {
        let standing = prop_oneof![Just(Banned), Just(Vip), Just(Normal)];
        proptest::collection::btree_map((1_u32..6).prop_map(circuit), standing, 0..5)
    }

    fn said() -> impl Strategy<Value = BTreeMap<NonZeroU32, Said>> {
        let said =
            prop_oneof![Just(Said::Banned), Just(Said::Vip), Just(Said::Unbanned), Just(Said::Demoted)];
        proptest::collection::btree_map((1_u32..6).prop_map(circuit), said, 0..5)
    }

    #[derive(Clone, Debug)]
    enum Happening {
        Wish(Option<u32>, BTreeMap<NonZeroU32, Said>),
        Rules(Standings),
        Restart,
        MarkExpires,
        Gone,
        Visit,
    }

    fn happening() -> impl Strategy<Value = Happening> {
        prop_oneof![
            (proptest::option::of(1_u32..4), said()).prop_map(|(mark, said)| Happening::Wish(mark, said)),
            rows().prop_map(Happening::Rules),
            Just(Happening::Restart),
            Just(Happening::MarkExpires),
            Just(Happening::Gone),
            Just(Happening::Visit),
        ]
    }

    proptest! {
        /// For all wishes, finds and restarts, a visit leaves the table as it is desired, and a second one finds nothing to do.
        /// A mark that expires removes no row.
        #[test]
        fn the_table_comes_to_what_is_desired(happenings in proptest::collection::vec(happening(), 0..40)) {
            let (mut table, mut haproxy) = (HaproxyTable::new(LENGTH), Model::default());
            let mut revision = 0;
            for (second, happening) in (0..).zip(happenings) {
                let (emptied, expires) = (haproxy.emptied, matches!(happening, Happening::MarkExpires));
                match happening {
                    Happening::Wish(mark, said) => {
                        revision += 1;
                        table.wish(Wish { revision, mark, said });
                    }
                    Happening::Rules(rows) => {
                        haproxy.rows.extend(rows);
                        haproxy.rows.retain(|_, standing| *standing != Normal);
                    }
                    Happening::Restart => haproxy.restart(),
                    Happening::MarkExpires => haproxy.mark = None,
                    Happening::Gone => table.lost(),
                    Happening::Visit => {}
                }
                haproxy.visit(&mut table, at(second));
                prop_assert!(!expires || haproxy.emptied == emptied);
                prop_assert_eq!(&haproxy.rows, &table.desired());
                prop_assert_eq!(table.followed(), Some(revision));
                prop_assert_eq!(haproxy.visit(&mut table, at(second)), 0);
            }
        }
    }
}
