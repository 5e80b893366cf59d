//! A naive model with complete logs, compared with the machines over random sequences and settings; and properties of
//! the machines alone.

use std::{collections::BTreeMap, num::NonZeroU8, time::Duration};

use proptest::prelude::*;

use super::{
    CircuitSettings, Hold, Lane, Load, Place, Ratio, RequestRates,
    record::EPOCH,
    rows::{Front, circuit, ladder},
    window::{tick, tick_from, ticks},
};
use crate::refusal::Refusal;

/// Everything that ever happened to a circuit, in ticks.
#[derive(Clone, Debug, Default)]
struct Life {
    attempts: Vec<u32>,
    admitted: Vec<u32>,
    requests: Vec<u32>,
    open: usize,
    violations: u32,
    last_violation: u32,
    was_tarpitted: bool,
    banned_until: u32,
    last_ban: u32,
    rung: u32,
    has_solved: bool,
    is_promoted: bool,
    last_use: u32,
}

#[derive(Clone, Copy, Debug)]
struct Connection {
    lane: Lane,
    is_paid: bool,
    place: Place,
}

struct Model {
    settings: CircuitSettings,
    is_high: bool,
    lives: BTreeMap<u32, Life>,
    /// When those that are forgotten were used last.
    faded: BTreeMap<u32, u32>,
    /// By arrival; gone ones stay as `None`.
    connections: Vec<Option<Connection>>,
    starts: Vec<(u32, bool)>,
}

/// How many of `log` lie in the last `buckets` sub-buckets of `width` ticks.
fn count(log: &[u32], width: u32, buckets: u32, now: u32) -> u32 {
    log.iter().filter(|at| now / width - **at / width < buckets).count() as u32
}

impl Model {
    fn life(&mut self, number: u32, now: u32) -> &mut Life {
        let reputation = ticks(self.settings.reputation_life);
        let life = self.lives.entry(number).or_default();
        if now - life.last_violation >= reputation {
            (life.violations, life.was_tarpitted) = (0, false);
        }
        life.last_use = now;
        life
    }

    fn advance(&mut self, now: u32) {
        let reputation = ticks(self.settings.reputation_life);
        for life in self.lives.values_mut().filter(|life| life.banned_until > 0 && now >= life.banned_until) {
            (life.banned_until, life.last_use) = (0, now);
        }
        let is_kept =
            |life: &Life| life.open > 0 || life.banned_until > 0 || now - life.last_use < reputation;
        let faded = self.lives.iter().filter(|(_, life)| !is_kept(life));
        self.faded.extend(faded.map(|(number, life)| (*number, life.last_use)));
        self.lives.retain(|_, life| is_kept(life));
        let lives = &self.lives;
        self.faded.retain(|number, used| !lives.contains_key(number) && now - *used < reputation + EPOCH);
    }

    fn offend(&mut self, number: u32, why: Refusal, now: u32) -> bool {
        let (threshold, ladder) = (self.settings.ban_threshold, self.settings.ladder.clone());
        let first = self.settings.ban_duration;
        let life = self.life(number, now);
        let quiet = now - life.last_violation;
        let is_request = matches!(why, Refusal::RequestRate | Refusal::VipRate);
        if !why.is_violation() || (is_request && life.violations > 0 && quiet < 20) {
            return false;
        }
        let is_repeat = why == Refusal::ConnectionRate && life.was_tarpitted && quiet >= 100;
        life.was_tarpitted |= why == Refusal::ConnectionRate;
        (life.violations, life.last_violation) = (life.violations + 1, now);
        if !is_repeat && life.violations < u32::from(threshold.get()) {
            return false;
        }
        life.rung = ladder.climb_after(life.rung, Duration::from_millis(100) * (now - life.last_ban));
        let length = if life.rung == 1 { first } else { ladder.length(life.rung).max(first) };
        (life.last_ban, life.banned_until, life.violations) = (now, now + ticks(length), 0);
        true
    }

    fn judge(&mut self, number: u32, now: u32) -> Refusal {
        let (settings, is_high) = (self.settings.clone(), self.is_high);
        let life = self.life(number, now);
        if now < life.banned_until {
            return Refusal::Banned;
        }
        life.attempts.push(now);
        let is_over = |log: &[u32], limit: Option<NonZeroU8>, width, buckets| {
            limit.is_some_and(|limit| count(log, width, buckets, now) >= u32::from(limit.get()))
        };
        if life.open >= usize::from(settings.max_concurrent_per_circuit.get()) {
            Refusal::TooManyOpen
        } else if life.is_promoted {
            Refusal::Served
        } else if is_over(&life.attempts, settings.connections_per_10_seconds, 20, 6) {
            Refusal::ConnectionRate
        } else if is_over(&life.admitted, settings.max_per_circuit_per_minute, 60, 11) {
            Refusal::CircuitRate
        } else if is_high && !life.has_solved {
            if settings.asks_puzzles { Refusal::PuzzleRequired } else { Refusal::PuzzleImpossible }
        } else {
            Refusal::Served
        }
    }

    fn connect(&mut self, number: u32, now: u32) -> (Refusal, Option<Place>) {
        let word = self.judge(number, now);
        if self.offend(number, word, now) {
            return (Refusal::Banned, None);
        }
        let life = self.life(number, now).clone();
        let is_paid = life.has_solved || life.is_promoted;
        let lane = if life.is_promoted {
            Lane::Vip
        } else if life.violations > 0 {
            Lane::Suspect
        } else {
            Lane::Normal
        };
        let mut connection = Connection { lane, is_paid, place: Place::Waiting };
        if word == Refusal::ConnectionRate {
            connection.place = Place::Tarpit;
            self.connections.push(Some(connection));
            return (word, Some(Place::Tarpit));
        } else if word == Refusal::PuzzleRequired {
            connection.place = Place::Challenged;
        } else if word != Refusal::Served {
            return (word, None);
        } else {
            let most = self.settings.max_connections_per_second;
            let lately = |is_counted: &dyn Fn(bool) -> bool| {
                let starts = self.starts.iter().filter(|(_, is_paid)| is_counted(*is_paid));
                count(&starts.map(|(at, _)| *at).collect::<Vec<_>>(), 1, 11, now)
            };
            let is_over_share = !is_paid && lately(&|is_paid| !is_paid) >= self.settings.unpaid_part(most);
            if lately(&|_| true) >= most.get() || is_over_share {
                return (Refusal::GlobalRate, None);
            }
        }
        if self.accepted() >= self.settings.maxconn.get() as usize {
            let challenged = self
                .connections
                .iter()
                .position(|at| matches!(at, Some(Connection { place: Place::Challenged, .. })));
            let queued = (0..self.connections.len())
                .filter_map(|at| Some((self.connections[at]?, at)))
                .filter(|(other, _)| other.place == Place::Waiting && !other.is_paid)
                .max_by_key(|(other, at)| (other.lane, *at));
            let gives_way = if is_paid {
                challenged.or(queued.map(|(_, at)| at))
            } else {
                challenged.filter(|_| word == Refusal::PuzzleRequired)
            };
            match gives_way {
                None => return (Refusal::Capacity, None),
                Some(victim) => self.connections[victim] = None,
            }
        }
        if word == Refusal::Served {
            self.starts.push((now, is_paid));
        }
        let life = self.life(number, now);
        life.open += 1;
        life.admitted.push(now);
        self.connections.push(Some(connection));
        if connection.place == Place::Waiting {
            self.start();
        }
        (word, self.connections.last().unwrap().map(|last| last.place))
    }

    fn request(&mut self, number: u32, now: u32) -> Refusal {
        let (settings, is_high) = (self.settings.clone(), self.is_high);
        let life = self.life(number, now);
        if now < life.banned_until {
            return Refusal::Banned;
        }
        life.requests.push(now);
        let made = count(&life.requests, 20, 6, now);
        let most_of_others = settings.requests.map_or(0, |rates| rates.deny.get());
        let most_of_vips = u32::from(settings.vip_per_10_seconds.get().max(most_of_others));
        let word = match settings.requests {
            _ if life.is_promoted && made >= most_of_vips => Refusal::VipRate,
            Some(rates) if !life.is_promoted && made >= u32::from(rates.deny.get()) => Refusal::RequestRate,
            Some(_) if !life.is_promoted && is_high && !life.has_solved && settings.asks_puzzles => {
                Refusal::PuzzleRequired
            }
            Some(_) if !life.is_promoted && is_high && !life.has_solved => Refusal::PuzzleImpossible,
            Some(rates) if !life.is_promoted && made >= u32::from(rates.slow.get()) => Refusal::SlowLane,
            _ => Refusal::Served,
        };
        if self.offend(number, word, now) { Refusal::Banned } else { word }
    }

    fn places(&self, place: Place) -> usize {
        self.connections.iter().flatten().filter(|other| other.place == place).count()
    }

    fn accepted(&self) -> usize {
        self.places(Place::Served) + self.places(Place::Waiting) + self.places(Place::Challenged)
    }

    /// Serves whoever may be served, best lane first.
    fn start(&mut self) {
        loop {
            let most = self.settings.max_concurrent_connections;
            let unpaid = self
                .connections
                .iter()
                .flatten()
                .filter(|other| other.place == Place::Served && !other.is_paid)
                .count();
            let is_free = self.places(Place::Served) < most.get() as usize;
            let is_free_to_all = is_free && unpaid < self.settings.unpaid_part(most) as usize;
            let next = (0..self.connections.len())
                .filter_map(|at| Some((self.connections[at]?, at)))
                .filter(|(other, _)| {
                    other.place == Place::Waiting && is_free && (other.is_paid || is_free_to_all)
                })
                .min_by_key(|(other, at)| (other.lane, *at));
            let Some((_, at)) = next else { return };
            self.connections[at].as_mut().unwrap().place = Place::Served;
        }
    }

    fn close(&mut self, at: usize, number: u32, is_tarpit: bool, now: u32) {
        self.connections[at] = None;
        if !is_tarpit {
            self.life(number, now).open -= 1;
        }
        self.start();
    }
}

fn settings() -> impl Strategy<Value = CircuitSettings> {
    let circuit =
        (0u8..8, 1u16..5, prop_oneof![Just(0u8), 2u8..9], 1u8..5, prop::option::of((2u16..5, 3u16..9)));
    let global = (
        1u32..9,
        1u32..6,
        0u32..4,
        prop_oneof![Just(Ratio::NONE), Just(Ratio::HALF), Just(Ratio::ALL)],
        any::<bool>(),
    );
    (circuit, global).prop_map(
        |((minute, open, ten, threshold, requests), (rate, served, waiting, paid_share, asks_puzzles))| {
            CircuitSettings {
                max_per_circuit_per_minute: NonZeroU8::new(minute),
                max_concurrent_per_circuit: open.try_into().unwrap(),
                connections_per_10_seconds: NonZeroU8::new(ten),
                ban_threshold: threshold.try_into().unwrap(),
                requests: requests.map(|(slow, deny)| RequestRates {
                    slow: slow.try_into().unwrap(),
                    deny: deny.try_into().unwrap(),
                }),
                vip_per_10_seconds: 6.try_into().unwrap(),
                max_connections_per_second: rate.try_into().unwrap(),
                max_concurrent_connections: served.try_into().unwrap(),
                maxconn: (served + waiting).try_into().unwrap(),
                paid_share,
                asks_puzzles,
                ..CircuitSettings::web(ladder())
            }
        },
    )
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Connect(u32),
    Request(u32),
    Close(usize),
    Wait(u64),
    Pay(u32),
    Promote(u32),
    Load(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (1u32..5).prop_map(Step::Connect),
        5 => (1u32..5).prop_map(Step::Request),
        4 => any::<usize>().prop_map(Step::Close),
        4 => prop_oneof![4 => 1u64..30, 3 => 30u64..700, 1 => 700u64..20_000].prop_map(Step::Wait),
        1 => (1u32..5).prop_map(Step::Pay),
        1 => (3u32..5).prop_map(Step::Promote),
        1 => any::<bool>().prop_map(Step::Load),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// For all settings and sequences, the machines decide as the model with complete logs does, and hold the same
    /// connections in the same places.
    #[test]
    fn machines_decide_like_the_model(settings in settings(), steps in prop::collection::vec(step(), 1..150)) {
        let mut front = Front::new(&settings);
        let mut model = Model { settings, is_high: false, lives: BTreeMap::new(), faded: BTreeMap::new(), connections: Vec::new(), starts: Vec::new() };
        // The machine's connections in the model's order, which ends none.
        let mut holds: Vec<Option<(u32, bool, Hold)>> = Vec::new();
        for step in steps {
            let now = tick(front.now);
            match step {
                Step::Connect(number) => {
                    let arrival = front.arrive(circuit(number));
                    let (word, place) = model.connect(number, now);
                    prop_assert_eq!(arrival.ruling.word, word);
                    let serial = arrival.hold.as_ref().map(Hold::serial);
                    prop_assert_eq!(serial.and_then(|serial| front.admission.place(serial)), place);
                    holds.extend(arrival.hold.map(|hold| Some((number, place == Some(Place::Tarpit), hold))));
                    prop_assert_eq!(holds.len(), model.connections.len());
                }
                Step::Request(number) => prop_assert_eq!(front.request(number).word, model.request(number, now)),
                Step::Close(which) => {
                    let held: Vec<usize> = (0..holds.len()).filter(|at| holds[*at].is_some()).collect();
                    if !held.is_empty() {
                        let at = held[which % held.len()];
                        let (number, is_tarpit, hold) = holds[at].take().unwrap();
                        front.close(&hold);
                        while front.admission.start_next().is_some() {}
                        model.close(at, number, is_tarpit, now);
                    }
                }
                Step::Wait(ticks) => {
                    front.wait(ticks * 100);
                    front.shard.advance(front.now);
                    model.advance(tick(front.now));
                }
                Step::Pay(number) => {
                    front.shard.pay(circuit(number), front.now);
                    model.life(number, now).has_solved = true;
                }
                Step::Promote(number) => {
                    front.shard.promote(circuit(number), front.now);
                    let life = model.life(number, now);
                    (life.is_promoted, life.banned_until) = (true, 0);
                }
                Step::Load(is_high) => {
                    let ratio = if is_high { Ratio::THREE_QUARTERS } else { Ratio::NONE };
                    front.shard.set_load(Load { ratio, difficulty: 16 });
                    model.is_high = is_high;
                }
            }
            for (at, hold) in holds.iter().enumerate() {
                let place = hold.as_ref().and_then(|(_, _, hold)| front.admission.place(hold.serial()));
                prop_assert_eq!(place, model.connections[at].map(|connection| connection.place));
                // Who made room is still to be closed, and of its circuit's open ones until then.
                prop_assert!(hold.is_some() || model.connections[at].is_none());
            }
            let counts = front.shard.counts(front.now);
            // What is forgotten goes from the table in order of its last use, which is as exact as an epoch.
            model.faded.retain(|number, _| !model.lives.contains_key(number));
            let extra = (counts.tracked as usize).checked_sub(model.lives.len());
            prop_assert!(extra.is_some_and(|extra| extra <= model.faded.len()), "{} circuits", counts.tracked);
            let banned = model.lives.values().filter(|life| life.banned_until > 0).count();
            prop_assert_eq!(counts.banned as usize, banned);
            let open: usize = model.lives.values().map(|life| life.open).sum();
            let known: u16 = (1..5).filter_map(|number| front.shard.look(circuit(number), front.now)).map(|facts| facts.open).sum();
            prop_assert_eq!(usize::from(known), open);
        }
    }

    /// For all sequences of connections, in no 60 s does a circuit get more than its limit, in no second all together
    /// more than theirs, and a circuit that waits 66 s gets in.
    #[test]
    fn limits_hold_in_every_window(gaps in prop::collection::vec((0u64..4_000, 1u32..4), 1..200)) {
        let limits = CircuitSettings { ban_threshold: NonZeroU8::MAX, max_connections_per_second: 3.try_into().unwrap(), ..CircuitSettings::messenger(ladder()) };
        let mut front = Front::new(&limits);
        let mut admitted = Vec::new();
        for (gap, number) in gaps {
            front.wait(gap);
            if front.visit(number) == Refusal::Served {
                admitted.push((number, front.now));
            }
        }
        let within = |start: crate::time::Monotime, span: u64| admitted.iter().filter(move |(_, at)| *at >= start && at.since(start) < Duration::from_secs(span));
        for (number, start) in &admitted {
            prop_assert!(within(*start, 60).filter(|(other, _)| other == number).count() <= 10);
            prop_assert!(within(*start, 1).count() <= 3);
        }
        front.wait(66_000);
        prop_assert_eq!([1, 2, 3].map(|number| front.visit(number)), [Refusal::Served; 3]);
    }

    /// For all floods in which every connection brings a new circuit, the table stays at its size, and neither the
    /// banned nor those with open connections are forgotten.
    #[test]
    fn a_flood_of_new_circuits_pushes_out_its_own(banned in 0u32..100, open in 0u32..100, flood in 1_000u32..4_000) {
        let limits = CircuitSettings {
            table_size: 256.try_into().unwrap(),
            max_connections_per_second: 100_000.try_into().unwrap(),
            ..CircuitSettings::messenger(ladder())
        };
        let mut front = Front::new(&limits);
        for number in 1..=banned {
            front.shard.ban(circuit(number), None, front.now);
        }
        for number in 101..101 + open {
            front.connect(number);
        }
        for number in 1_000..1_000 + flood {
            if let Some(hold) = front.arrive(circuit(number)).hold {
                front.close(&hold);
            }
            prop_assert!(front.shard.counts(front.now).tracked <= 256);
        }
        prop_assert_eq!(front.shard.counts(front.now).tracked, 256);
        prop_assert_eq!(front.shard.counts(front.now).banned, banned);
        for number in 101..101 + open {
            prop_assert_eq!(front.shard.look(circuit(number), front.now).map(|facts| facts.open), Some(1));
        }
    }

    /// For all moments, a ban lasts its length and at most one tick more.
    #[test]
    fn bans_last_their_length(start in 0u64..10_000_000_000, length in 1u64..100_000) {
        let mut front = Front::new(&CircuitSettings::messenger(ladder()));
        front.now.0 += start;
        let began = front.now;
        front.shard.ban(circuit(1), Some(Duration::from_millis(length)), began);
        front.now = began.after(Duration::from_millis(length)).after(Duration::ZERO);
        front.now.0 -= 1;
        prop_assert_eq!(front.visit(1), Refusal::Banned);
        front.now.0 += 100_000_001;
        prop_assert!(front.now > super::window::begin(tick_from(began)));
        prop_assert_eq!(front.visit(1), Refusal::Served);
    }
}
