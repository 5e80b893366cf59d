//! What operators said of circuits, for the front to follow.
//!
//! Circuits end with their tor process, so nothing here is durable, and all of it goes with a new generation.

use std::{collections::BTreeMap, num::NonZeroU32, time::Duration};

use crate::{
    id::TorGeneration,
    time::{Monotime, Now},
};

/// Most circuits that operators may have said something of; see [`OrderError::Full`].
pub const MOST_ORDERS: usize = 10_000;
/// Most bans of fronts that have ended, beside [`MOST_ORDERS`]: they take no room from operators. As many as a front tells of.
pub const MOST_CARRIED: usize = 16_384;
/// The length of a ban without one: the first rung of the ladder for circuits.
pub const USUAL_BAN: Duration = Duration::from_secs(300);

/// What a circuit is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CircuitOrder {
    /// Each of its streams is refused until then.
    Banned {
        /// When that ends.
        until: Monotime,
    },
    /// It goes past the queue.
    Vip,
    /// Banned no longer, whoever banned it. What it is otherwise stays.
    Unbanned,
    /// It goes past the queue no longer, and its token counts nowhere. A ban stays.
    Demoted,
    /// It ends with its streams, where the front hosts the service.
    Closed,
}

/// Why an order was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// There are too many.
    #[error(
        "{MOST_ORDERS} circuits have orders already: nothing was changed; lift some with `tunica circuit unban`, or set limits \
         under [circuits] that do the work"
    )]
    Full,
}

/// The orders in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CircuitOrders {
    generation: Option<TorGeneration>,
    revision: u64,
    orders: BTreeMap<NonZeroU32, Standing>,
    /// Those of them that are bans of fronts that have ended, and nobody ordered; and the rung of the ladder that each was on.
    carried: BTreeMap<NonZeroU32, u8>,
}

/// A ban that a front told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ToldBan {
    /// When it ends.
    pub until: Monotime,
    /// The rung of the ladder that it is on, counted from 1.
    pub rung: u8,
}

/// An order, and what is needed to see whether it was followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Standing {
    order: CircuitOrder,
    said: Monotime,
    revision: u64,
}

impl CircuitOrder {
    fn bans_at(self, now: Monotime) -> bool {
        matches!(self, Self::Banned { until } if until > now)
    }

    /// Whether it stands until something else is said; the others are done with once they were followed.
    const fn stands(self) -> bool {
        match self {
            Self::Banned { .. } | Self::Vip => true,
            Self::Unbanned | Self::Demoted | Self::Closed => false,
        }
    }
}

impl CircuitOrders {
    /// Says what a circuit of the present generation is to be, in place of what was said before. A promotion outlives the end of
    /// a ban, which it has ended itself; a ban has ended what made its circuit a VIP, and outlives the word that says so. It has
    /// closed its circuit, too.
    ///
    /// # Errors
    /// [`OrderError`]; nothing is changed then.
    pub fn set(&mut self, circuit: NonZeroU32, order: CircuitOrder, now: Now) -> Result<(), OrderError> {
        let before = self.orders.get(&circuit).map(|it| it.order);
        let order = match order {
            CircuitOrder::Unbanned if before == Some(CircuitOrder::Vip) => CircuitOrder::Vip,
            CircuitOrder::Demoted | CircuitOrder::Closed
                if before.is_some_and(|before| before.bans_at(now.mono)) =>
            {
                return Ok(());
            }
            CircuitOrder::Banned { .. } | CircuitOrder::Vip => order,
            CircuitOrder::Unbanned | CircuitOrder::Demoted | CircuitOrder::Closed => order,
        };
        let is_more = before.is_none() || self.carried.contains_key(&circuit);
        if is_more && self.orders.len().saturating_sub(self.carried.len()) >= MOST_ORDERS {
            return Err(OrderError::Full);
        }
        // Also if it was said before: the front may have found out something else since.
        self.revision += 1;
        self.carried.remove(&circuit);
        self.orders.insert(circuit, Standing { order, said: now.mono, revision: self.revision });
        Ok(())
    }

    /// Another tor process hands over the streams.
    pub fn begin(&mut self, generation: TorGeneration) {
        if self.generation == Some(generation) {
            return;
        }
        // The first one only has a name now: what operators said meant its circuits.
        if self.generation.is_some() {
            self.orders.clear();
            self.carried.clear();
        }
        self.generation = Some(generation);
        self.revision += 1;
    }

    /// The front that knew these bans has ended, and the one after it knows none: they become orders, as far as there is room
    /// and nothing else was said of their circuits. The next ban of such a circuit is as long as if one front had known of all.
    pub fn carry(&mut self, bans: impl IntoIterator<Item = (NonZeroU32, ToldBan)>, now: Now) {
        // Where there is no room the front finds out again.
        let room = MOST_CARRIED.saturating_sub(self.carried.len());
        let is_new = |(circuit, ban): &(NonZeroU32, ToldBan)| {
            ban.until > now.mono && !self.orders.contains_key(circuit)
        };
        let new: Vec<_> = bans.into_iter().filter(is_new).take(room).collect();
        for (circuit, ToldBan { until, rung }) in new {
            self.revision += 1;
            let order = CircuitOrder::Banned { until };
            self.orders.insert(circuit, Standing { order, said: now.mono, revision: self.revision });
            self.carried.insert(circuit, rung);
        }
    }

    /// Forgets bans that are over.
    pub fn advance(&mut self, now: Now) {
        let before = self.orders.len();
        self.orders.retain(|_, it| !matches!(it.order, CircuitOrder::Banned { until } if until <= now.mono));
        if self.orders.len() != before {
            self.revision += 1;
            self.carried.retain(|circuit, _| self.orders.contains_key(circuit));
        }
    }

    /// When [`Self::advance`] has something to do.
    pub fn next_deadline(&self) -> Option<Monotime> {
        let ends = self.orders.values().filter_map(|it| match it.order {
            CircuitOrder::Banned { until } => Some(until),
            CircuitOrder::Vip | CircuitOrder::Unbanned => None,
            CircuitOrder::Demoted | CircuitOrder::Closed => None,
        });
        ends.min()
    }

    /// Grows with each change.
    pub const fn revision(&self) -> u64 {
        self.revision
    }

    /// The tor process that is meant, where that is known.
    pub const fn generation(&self) -> Option<TorGeneration> {
        self.generation
    }

    /// A circuit has ended, and its number is never given again.
    pub fn forget(&mut self, circuit: NonZeroU32) {
        if self.orders.remove(&circuit).is_some() {
            self.revision += 1;
            self.carried.remove(&circuit);
        }
    }

    /// What was said of a circuit.
    pub fn get(&self, circuit: NonZeroU32) -> Option<CircuitOrder> {
        self.orders.get(&circuit).map(|it| it.order)
    }

    /// Whether what stands of a circuit is a ban that an earlier front set by its own rules.
    pub fn is_carried(&self, circuit: NonZeroU32) -> bool {
        self.carried.contains_key(&circuit)
    }

    /// The rungs of bans that earlier fronts set by their own rules, for the front to know: none of the first, on which every ban
    /// begins.
    pub fn rungs(&self) -> impl Iterator<Item = (NonZeroU32, u8)> {
        self.carried.iter().map(|(circuit, rung)| (*circuit, *rung)).filter(|(_, rung)| *rung > 1)
    }

    /// The front follows this revision: what it has done once needs no word of ours any more.
    pub fn followed(&mut self, revision: u64) {
        self.orders.retain(|_, it| it.order.stands() || it.revision > revision);
    }

    /// Every circuit that is banned, by the front or by an operator, and until when. What an operator said counts: the front
    /// follows it, a moment later.
    pub fn banned(
        &self,
        by_front: impl Iterator<Item = (NonZeroU32, Monotime)>,
    ) -> BTreeMap<NonZeroU32, Monotime> {
        let mut banned: BTreeMap<_, _> = by_front.collect();
        for (circuit, it) in &self.orders {
            match it.order {
                CircuitOrder::Banned { until } => drop(banned.insert(*circuit, until)),
                CircuitOrder::Vip | CircuitOrder::Unbanned => drop(banned.remove(circuit)),
                CircuitOrder::Demoted | CircuitOrder::Closed => {}
            }
        }
        banned
    }

    /// Everything that should be in force: circuit, order, and when it was said.
    pub fn desired(&self) -> impl Iterator<Item = (NonZeroU32, CircuitOrder, Monotime)> {
        self.orders.iter().map(|(circuit, it)| (*circuit, it.order, it.said))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::WallTime;

    fn at(seconds: u64) -> Now {
        Now { mono: Monotime(seconds * 1_000_000_000), wall: WallTime(1_000_000 + seconds) }
    }

    fn told(seconds: u64, rung: u8) -> ToldBan {
        ToldBan { until: at(seconds).mono, rung }
    }

    fn circuit(number: u32) -> NonZeroU32 {
        NonZeroU32::new(number).unwrap()
    }

    #[test]
    fn a_ban_ends_and_every_change_has_a_number() {
        let mut orders = CircuitOrders::default();
        let ban = CircuitOrder::Banned { until: at(10).mono };
        orders.set(circuit(7), ban, at(1)).unwrap();
        orders.set(circuit(8), CircuitOrder::Vip, at(1)).unwrap();
        assert_eq!((orders.revision(), orders.next_deadline()), (2, Some(at(10).mono)));
        orders.advance(at(9));
        assert_eq!((orders.revision(), orders.get(circuit(7))), (2, Some(ban)));
        orders.advance(at(10));
        assert_eq!((orders.revision(), orders.get(circuit(7)), orders.next_deadline()), (3, None, None));
        assert_eq!(orders.desired().collect::<Vec<_>>(), [(circuit(8), CircuitOrder::Vip, at(1).mono)]);
    }

    #[test]
    fn nothing_is_carried_over_to_another_tor_process() {
        let mut orders = CircuitOrders::default();
        orders.set(circuit(7), CircuitOrder::Vip, at(1)).unwrap();
        // That it is known which process it is changes nothing about its circuits.
        orders.begin(TorGeneration(4));
        orders.begin(TorGeneration(4));
        assert_eq!((orders.revision(), orders.get(circuit(7))), (2, Some(CircuitOrder::Vip)));
        orders.begin(TorGeneration(5));
        assert_eq!((orders.revision(), orders.get(circuit(7))), (3, None));
        assert_eq!(orders.generation(), Some(TorGeneration(5)));
    }

    #[test]
    fn what_has_ended_is_forgotten() {
        let mut orders = CircuitOrders::default();
        orders.set(circuit(7), CircuitOrder::Vip, at(1)).unwrap();
        orders.forget(circuit(8));
        orders.forget(circuit(7));
        assert_eq!((orders.revision(), orders.get(circuit(7))), (2, None));
    }

    #[test]
    fn the_word_of_an_operator_counts_over_what_the_front_found() {
        let mut orders = CircuitOrders::default();
        orders.set(circuit(1), CircuitOrder::Unbanned, at(1)).unwrap();
        orders.set(circuit(2), CircuitOrder::Banned { until: at(9).mono }, at(1)).unwrap();
        orders.set(circuit(4), CircuitOrder::Vip, at(1)).unwrap();
        // Who is demoted is no VIP, and banned as before.
        orders.set(circuit(5), CircuitOrder::Demoted, at(1)).unwrap();
        let by_front = [1, 2, 3, 4, 5].map(|number| (circuit(number), at(5).mono));
        let banned = orders.banned(by_front.into_iter());
        let expected = [(2, 9), (3, 5), (5, 5)].map(|(number, until)| (circuit(number), at(until).mono));
        assert_eq!(banned, expected.into());
    }

    #[test]
    fn the_end_of_a_ban_demotes_nobody_and_a_demotion_ends_no_ban() {
        let ban = CircuitOrder::Banned { until: at(9).mono };
        for (before, said, second, after) in [
            (None, CircuitOrder::Unbanned, 2, CircuitOrder::Unbanned),
            (None, CircuitOrder::Demoted, 2, CircuitOrder::Demoted),
            (Some(ban), CircuitOrder::Unbanned, 2, CircuitOrder::Unbanned),
            (Some(ban), CircuitOrder::Demoted, 2, ban),
            (None, CircuitOrder::Closed, 2, CircuitOrder::Closed),
            (Some(ban), CircuitOrder::Closed, 2, ban),
            (Some(ban), CircuitOrder::Demoted, 9, CircuitOrder::Demoted),
            (Some(ban), CircuitOrder::Vip, 2, CircuitOrder::Vip),
            (Some(CircuitOrder::Vip), CircuitOrder::Unbanned, 2, CircuitOrder::Vip),
            (Some(CircuitOrder::Vip), CircuitOrder::Demoted, 2, CircuitOrder::Demoted),
            (Some(CircuitOrder::Vip), ban, 2, ban),
        ] {
            let mut orders = CircuitOrders::default();
            before.into_iter().for_each(|before| orders.set(circuit(7), before, at(1)).unwrap());
            orders.set(circuit(7), said, at(second)).unwrap();
            assert_eq!(orders.get(circuit(7)), Some(after), "{before:?} {said:?}");
            // A ban that is only kept is no other ban, which would be one more to the front.
            let said_at = if after == ban && said != ban { at(1) } else { at(second) };
            assert_eq!(orders.desired().next(), Some((circuit(7), after, said_at.mono)));
        }
    }

    #[test]
    fn what_is_said_twice_is_said_anew_and_what_is_done_once_ends_with_being_followed() {
        let mut orders = CircuitOrders::default();
        orders.set(circuit(7), CircuitOrder::Unbanned, at(1)).unwrap();
        orders.set(circuit(7), CircuitOrder::Demoted, at(2)).unwrap();
        orders.set(circuit(8), CircuitOrder::Vip, at(2)).unwrap();
        assert_eq!(orders.desired().next(), Some((circuit(7), CircuitOrder::Demoted, at(2).mono)));
        orders.followed(1);
        assert_eq!(orders.desired().count(), 2);
        orders.followed(3);
        assert_eq!(orders.desired().collect::<Vec<_>>(), [(circuit(8), CircuitOrder::Vip, at(2).mono)]);
        assert_eq!(orders.revision(), 3, "nothing that the front has to hear");
    }

    #[test]
    fn bans_outlive_the_front_and_take_nothing_from_operators() {
        let mut orders = CircuitOrders::default();
        orders.set(circuit(1), CircuitOrder::Unbanned, at(1)).unwrap();
        orders.set(circuit(2), CircuitOrder::Vip, at(1)).unwrap();
        orders.carry([(1, 2), (2, 3), (3, 4)].map(|(number, rung)| (circuit(number), told(9, rung))), at(2));
        orders.carry([(circuit(4), told(2, 1))], at(2));
        let ban = CircuitOrder::Banned { until: at(9).mono };
        assert_eq!(
            [1, 2, 3, 4].map(|number| orders.get(circuit(number))),
            [Some(CircuitOrder::Unbanned), Some(CircuitOrder::Vip), Some(ban), None]
        );
        assert_eq!([1, 2, 3].map(|number| orders.is_carried(circuit(number))), [false, false, true]);
        assert_eq!((orders.revision(), orders.rungs().collect()), (3, vec![(circuit(3), 4)]));
        // No more than there is room for, and no harm in more. None of it is operators' room.
        orders.carry((10..30_000).map(|number| (circuit(number), told(9, 1))), at(2));
        assert_eq!(orders.desired().count(), MOST_CARRIED + 2);
        for number in 40_002..50_000 {
            orders.set(circuit(number), ban, at(2)).unwrap();
        }
        assert_eq!(orders.set(circuit(50_000), ban, at(2)), Err(OrderError::Full));
        assert_eq!(
            orders.set(circuit(10), ban, at(2)),
            Err(OrderError::Full),
            "it would be one more of theirs"
        );
        orders.forget(circuit(40_002));
        // What an operator says of a carried one is his from then on, and leaves room for another.
        orders.set(circuit(10), CircuitOrder::Unbanned, at(3)).unwrap();
        orders.carry([10, 29_999, 29_998].map(|number| (circuit(number), told(9, 2))), at(3));
        assert_eq!(orders.desired().count(), MOST_ORDERS + MOST_CARRIED);
        assert_eq!(
            [10, 29_999, 29_998].map(|number| orders.is_carried(circuit(number))),
            [false, true, false]
        );
        // The first rung is where every ban begins, and needs no word.
        assert_eq!(orders.rungs().collect::<Vec<_>>(), [(circuit(3), 4), (circuit(29_999), 2)]);
        orders.advance(at(9));
        assert_eq!((orders.desired().count(), orders.rungs().count()), (3, 0));
    }

    #[test]
    fn there_is_room_for_so_many_and_those_that_are_there_can_change() {
        let mut orders = CircuitOrders::default();
        for number in 1..=u32::try_from(MOST_ORDERS).unwrap() {
            orders.set(circuit(number), CircuitOrder::Vip, at(1)).unwrap();
        }
        assert_eq!(orders.set(circuit(4_000_000), CircuitOrder::Vip, at(1)), Err(OrderError::Full));
        assert_eq!(orders.set(circuit(1), CircuitOrder::Unbanned, at(1)), Ok(()));
    }
}
