//! Transition tables, each limit from both sides.

use std::{num::NonZeroU32, time::Duration};

use super::{
    Action, Admission, Arrival, Ask, Budget, CircuitSettings, CircuitShard, Command, Decision, Hold, Lane,
    Load, MOST_DUE, Place, Ratio, RequestRates, Ruling, Serial, Statistics, Ticket, TokenId, TokenRefused,
    Usage, Want,
};
use crate::{
    ban_ladder::Ladder,
    circuit_orders::ToldBan,
    false_positives::Holders,
    id::{CircuitId, TorGeneration},
    refusal::Refusal,
    time::Monotime,
};

const DAY: u64 = 86_400;

pub(super) fn ladder() -> Ladder {
    let rungs = [300, 1_800, 14_400, DAY].map(Duration::from_secs).to_vec();
    Ladder::new(rungs, Duration::from_secs(DAY)).unwrap()
}

pub(super) fn circuit(number: u32) -> CircuitId {
    CircuitId::new(TorGeneration(1), NonZeroU32::new(number).unwrap())
}

/// One shard, the shared machine, a clock and every connection that is held.
pub(super) struct Front {
    pub(super) shard: CircuitShard,
    pub(super) admission: Admission,
    pub(super) now: Monotime,
    pub(super) holds: Vec<Hold>,
}

impl Front {
    pub(super) fn new(settings: &CircuitSettings) -> Self {
        let now = Monotime(1_000_000_000_000);
        let shard = CircuitShard::new(settings.clone(), NonZeroU32::MIN, TorGeneration(1), now);
        Self { shard, admission: Admission::new(settings.clone()), now, holds: Vec::new() }
    }

    pub(super) fn wait(&mut self, milliseconds: u64) {
        self.now = self.now.after(Duration::from_millis(milliseconds));
    }

    pub(super) fn arrive(&mut self, circuit: CircuitId) -> Arrival {
        let Self { shard, admission, now, .. } = self;
        shard.connect(circuit, *now, |ask| admission.admit(ask, *now))
    }

    /// Connects and keeps the connection.
    pub(super) fn connect(&mut self, number: u32) -> Ruling {
        let arrival = self.arrive(circuit(number));
        self.holds.extend(arrival.hold);
        arrival.ruling
    }

    pub(super) fn request(&mut self, number: u32) -> Ruling {
        let Self { shard, admission, now, .. } = self;
        shard.request(circuit(number), *now, |ticket| admission.request(ticket, *now))
    }

    /// Connects and closes at once.
    pub(super) fn visit(&mut self, number: u32) -> Refusal {
        let word = self.connect(number).word;
        self.close_all();
        word
    }

    pub(super) fn close(&mut self, hold: &Hold) {
        self.shard.close(hold, self.now);
        self.admission.close(hold.serial());
    }

    pub(super) fn close_all(&mut self) {
        for hold in std::mem::take(&mut self.holds) {
            self.close(&hold);
        }
    }

    fn bans(&mut self) -> Vec<(u64, Option<Refusal>)> {
        let commands = self.shard.take_commands().into_iter();
        commands
            .filter_map(|command| match command {
                Command::Ban { length, why, .. } => Some((length.as_secs(), why)),
                Command::Close { .. } | Command::ReleaseToken { .. } | Command::RevokeToken { .. } => None,
                Command::HolderRefused { .. } => None,
            })
            .collect()
    }

    fn statistics(&mut self, settings: &CircuitSettings) -> String {
        Statistics::of(settings, &mut self.admission, [self.shard.counts(self.now)], self.now).to_string()
    }
}

/// No limit but those that a test sets.
fn open() -> CircuitSettings {
    CircuitSettings {
        max_connections_per_second: NonZeroU32::new(100_000).unwrap(),
        max_per_circuit_per_minute: None,
        connections_per_10_seconds: None,
        max_concurrent_per_circuit: 1_000.try_into().unwrap(),
        ban_threshold: 255.try_into().unwrap(),
        ..CircuitSettings::web(ladder())
    }
}

/// There is no place, and who waits has had his turn or gone by then.
fn full() -> Decision {
    Decision::CapacityExceeded { retry_after: Duration::from_secs(5) }
}

fn high() -> Load {
    Load { ratio: Ratio::THREE_QUARTERS, difficulty: 20 }
}

/// How many of `attempts` in a row are served, and what the next one is.
fn until_refused(mut attempt: impl FnMut() -> Refusal, most: u32) -> (u32, Refusal) {
    for count in 0..most {
        let word = attempt();
        if word != Refusal::Served {
            return (count, word);
        }
    }
    (most, Refusal::Served)
}

// The ten shield cases: those of torrc and iptables text stand with their generators.

#[test]
fn shield_case_allow() {
    let mut front = Front::new(&CircuitSettings::messenger(ladder()));
    let ruling = front.connect(1);
    let expected = Ruling {
        decision: Decision::Allow,
        word: Refusal::Served,
        lane: Lane::Normal,
        action: Action::Serve,
    };
    assert_eq!(ruling, expected);
}

#[test]
fn shield_case_capacity() {
    let settings = CircuitSettings {
        max_connections_per_second: NonZeroU32::new(1_000).unwrap(),
        ..CircuitSettings::messenger(ladder())
    };
    let mut front = Front::new(&settings);
    let actions: Vec<Action> = (1..=501).map(|number| front.connect(number).action).collect();
    assert!(actions[..200].iter().all(|action| *action == Action::Serve));
    assert!(actions[200..500].iter().all(|action| *action == Action::Queue));
    assert_eq!(actions[500], Action::Deny);
    let refused = front.connect(502);
    assert_eq!((refused.decision, refused.word), (full(), Refusal::Capacity));
    assert_eq!((front.admission.served(), front.admission.waiting()), (200, 300));
    // The refused left the rate alone; a place that is free is given.
    assert_eq!(front.admission.rate(front.now), 500);
    let first = front.holds.remove(0);
    front.close(&first);
    assert_eq!(front.admission.start_next(), Some(front.holds[199].serial()));
    assert_eq!(front.admission.start_next(), None);
    assert_eq!(front.connect(502).action, Action::Queue);
}

#[test]
fn shield_case_per_circuit() {
    let mut front = Front::new(&CircuitSettings::messenger(ladder()));
    assert_eq!(until_refused(|| front.visit(1), 20), (10, Refusal::CircuitRate));
    assert_eq!(front.visit(2), Refusal::Served);
    let Decision::RateLimited { retry_after } = front.connect(1).decision else { panic!("not limited") };
    front.wait(u64::try_from(retry_after.as_millis()).unwrap() - 100);
    assert_eq!(front.visit(1), Refusal::CircuitRate);
    front.wait(100);
    assert_eq!(front.visit(1), Refusal::Served);
}

#[test]
fn shield_case_ban() {
    let mut front = Front::new(&CircuitSettings::messenger(ladder()));
    let words: Vec<Refusal> = (0..16).map(|_| front.visit(1)).collect();
    assert!(words[..10].iter().all(|word| *word == Refusal::Served));
    assert!(words[10..14].iter().all(|word| *word == Refusal::CircuitRate));
    assert!(words[14..].iter().all(|word| *word == Refusal::Banned));
    assert_eq!(front.bans(), [(300, Some(Refusal::CircuitRate))]);
    front.wait(299_900);
    let ruling = front.connect(1);
    assert_eq!(ruling.decision, Decision::Banned { remaining: Duration::from_millis(100) });
    assert_eq!((ruling.action, front.request(1).action), (Action::Reset, Action::Reset));
    front.wait(100);
    assert_eq!(front.visit(1), Refusal::Served);
}

#[test]
fn shield_case_puzzle() {
    // Profile, load below the threshold or at it, whether paid, decision and word.
    let below = Ratio::new(0.7499).unwrap();
    let asked = Decision::RequirePow { difficulty: 20 };
    let later = Decision::RateLimited { retry_after: Duration::from_secs(5) };
    let (web, messenger) = (CircuitSettings::web(ladder()), CircuitSettings::messenger(ladder()));
    for (settings, ratio, has_paid, decision, word) in [
        (&web, below, false, Decision::Allow, Refusal::Served),
        (&web, Ratio::THREE_QUARTERS, false, asked, Refusal::PuzzleRequired),
        (&web, Ratio::ALL, true, Decision::Allow, Refusal::Served),
        (&messenger, below, false, Decision::Allow, Refusal::Served),
        (&messenger, Ratio::THREE_QUARTERS, false, later, Refusal::PuzzleImpossible),
    ] {
        let mut front = Front::new(settings);
        front.shard.set_load(Load { ratio, difficulty: 20 });
        if has_paid {
            front.shard.pay(circuit(1), front.now);
        }
        let ruling = front.connect(1);
        assert_eq!((ruling.decision, ruling.word), (decision, word));
        let challenged = u32::from(word == Refusal::PuzzleRequired);
        assert_eq!(front.admission.challenged(), challenged);
        assert_eq!(front.holds.len(), usize::from(word != Refusal::PuzzleImpossible));
        // Requests are judged alike where there are any.
        if settings.requests.is_some() {
            assert_eq!(front.request(1).word, word);
        }
        // A puzzle is no offence, and costs nothing of the rate.
        assert_eq!(front.shard.look(circuit(1), front.now).unwrap().violations, 0);
        assert_eq!(front.admission.rate(front.now), u32::from(word == Refusal::Served));
    }
}

/// Under load a circuit that has not paid has less: connections in 10 s, in 60 s, open ones, and requests in 10 s.
#[test]
fn a_share_of_the_limits_is_left_to_those_who_did_not_pay() {
    let messenger =
        CircuitSettings { ban_threshold: 255.try_into().unwrap(), ..CircuitSettings::messenger(ladder()) };
    let web = CircuitSettings {
        max_connections_per_second: NonZeroU32::new(1_000).unwrap(),
        ..CircuitSettings::web(ladder())
    };
    let tiny = CircuitSettings {
        max_concurrent_per_circuit: 1.try_into().unwrap(),
        connections_per_10_seconds: 2.try_into().ok(),
        ..open()
    };
    let quarter = Ratio::share(1, 4);
    for (settings, share, quick, at_once, requests) in [
        (&messenger, Ratio::ALL, (10, Refusal::CircuitRate), (10, Refusal::CircuitRate), None),
        (&messenger, Ratio::HALF, (5, Refusal::UnderLoad), (5, Refusal::UnderLoad), None),
        (&web, Ratio::ALL, (99, Refusal::ConnectionRate), (32, Refusal::TooManyOpen), Some(599)),
        (&web, Ratio::THREE_QUARTERS, (74, Refusal::UnderLoad), (24, Refusal::UnderLoad), Some(449)),
        (&web, Ratio::HALF, (49, Refusal::UnderLoad), (16, Refusal::UnderLoad), Some(299)),
        // Something is always left.
        (&tiny, quarter, (1, Refusal::ConnectionRate), (1, Refusal::TooManyOpen), Some(149)),
        (&tiny, Ratio::NONE, (1, Refusal::ConnectionRate), (1, Refusal::TooManyOpen), Some(1)),
    ] {
        let new = || {
            let mut front = Front::new(settings);
            front.shard.set_share(share);
            front
        };
        let mut front = new();
        assert_eq!(until_refused(|| front.visit(1), 1_000), quick, "{share:?}");
        if quick.1 == Refusal::UnderLoad {
            // It comes again as soon as it is told, and nothing is held against it.
            let ruling = front.connect(1);
            let Decision::RateLimited { retry_after } = ruling.decision else { panic!("{ruling:?}") };
            assert_eq!(front.shard.look(circuit(1), front.now).unwrap().violations, 0);
            front.wait(u64::try_from(retry_after.as_millis()).unwrap());
            assert_eq!(front.visit(1), Refusal::Served);
        }
        // Who paid has all of it, as has everybody once the load is over.
        let mut paid = new();
        paid.shard.pay(circuit(1), paid.now);
        let all = until_refused(|| paid.visit(1), 1_000);
        assert!(all.0 >= quick.0 && all.1 != Refusal::UnderLoad, "{all:?}");
        let mut front = new();
        assert_eq!(until_refused(|| front.connect(1).word, 1_000), at_once, "{share:?}");
        front.shard.set_share(Ratio::ALL);
        front.wait(20_000);
        if at_once.1 == Refusal::UnderLoad {
            assert_eq!(front.connect(1).word, Refusal::Served);
        }
        if let Some(requests) = requests {
            let mut front = new();
            let served = (0..1_000).take_while(|_| front.request(1).action != Action::Deny).count();
            assert_eq!(served, requests, "{share:?}");
        }
    }
}

#[test]
fn the_first_of_the_queue_tells_how_long_it_has_waited() {
    let mut front =
        Front::new(&CircuitSettings { max_concurrent_connections: 1.try_into().unwrap(), ..open() });
    let wait = |front: &Front| front.admission.first_wait(front.now).map(|wait| wait.as_millis());
    front.shard.promote(circuit(1), front.now);
    front.shard.promote(circuit(3), front.now);
    front.connect(1);
    assert_eq!(wait(&front), None, "one that is served waits no more");
    front.wait(100);
    front.connect(2);
    front.wait(700);
    front.connect(2);
    assert_eq!(wait(&front), Some(700));
    // Whose turn comes first, not who came first.
    front.wait(200);
    front.connect(3);
    front.wait(50);
    assert_eq!(wait(&front), Some(50));
    let vip = front.holds.pop().unwrap();
    front.close(&vip);
    assert_eq!(wait(&front), Some(950));
}

#[test]
fn who_need_not_solve_its_puzzle_any_more_is_served_as_one_that_did_not_pay() {
    // Two places, of which one is kept for those who paid.
    let settings = CircuitSettings { max_concurrent_connections: 2.try_into().unwrap(), ..open() };
    let mut front = Front::new(&CircuitSettings { asks_puzzles: true, paid_share: Ratio::HALF, ..settings });
    front.shard.set_load(Load { ratio: Ratio::ALL, difficulty: 20 });
    for number in 1..=3 {
        assert_eq!(front.connect(number).word, Refusal::PuzzleRequired);
    }
    let serials: Vec<_> = front.holds.iter().map(|hold| hold.serial()).collect();
    assert_eq!((front.admission.challenged(), front.admission.rate(front.now)), (3, 0));
    assert_eq!(front.admission.excused(serials[0], Lane::Normal, front.now), Some(Place::Served));
    assert_eq!(front.admission.excused(serials[1], Lane::Normal, front.now), Some(Place::Waiting));
    assert_eq!(front.admission.paid(serials[2], Lane::Normal, None, front.now), Some(Place::Served));
    // Said twice it changes nothing, and what was paid stays paid.
    assert_eq!(front.admission.excused(serials[2], Lane::Normal, front.now), Some(Place::Served));
    assert_eq!(
        (front.admission.challenged(), front.admission.served(), front.admission.waiting()),
        (0, 2, 1)
    );
    assert_eq!(front.admission.rate(front.now), 3, "each counts once, when it leaves its puzzle");
    front.admission.close(serials[2]);
    assert_eq!(front.admission.start_next(), None, "the place of one that paid is kept");
    front.admission.close(serials[0]);
    assert_eq!(front.admission.start_next(), Some(serials[1]));
    assert_eq!(front.admission.excused(serials[0], Lane::Normal, front.now), None);
}

#[test]
fn who_looks_at_a_puzzle_for_longest_gives_way_to_the_next_and_the_service_stays_reachable() {
    let settings = CircuitSettings {
        maxconn: 2.try_into().unwrap(),
        max_concurrent_connections: 2.try_into().unwrap(),
        asks_puzzles: true,
        ..open()
    };
    let mut front = Front::new(&settings);
    front.shard.set_load(high());
    for number in 1..=2 {
        assert_eq!(front.connect(number).word, Refusal::PuzzleRequired);
    }
    let first = front.holds[0].serial();
    let arrival = front.arrive(circuit(3));
    assert_eq!(
        (arrival.ruling.word, arrival.ends),
        (Refusal::PuzzleRequired, Some((first, Refusal::Displaced)))
    );
    front.holds.extend(arrival.hold);
    assert_eq!(front.admission.challenged(), 2);
    // Those who are served give way to nobody.
    let serials: Vec<_> = front.holds.iter().map(|hold| hold.serial()).collect();
    for serial in &serials[1..] {
        assert_eq!(front.admission.paid(*serial, Lane::Normal, None, front.now), Some(Place::Served));
    }
    assert_eq!(front.connect(4).word, Refusal::Capacity);
}

#[test]
fn shield_case_manual_ban() {
    let mut front = Front::new(&open());
    assert_eq!(front.shard.ban(circuit(1), None, front.now), Some(Duration::from_secs(300)));
    assert_eq!(front.visit(1), Refusal::Banned);
    assert!(front.shard.unban(circuit(1), front.now) && !front.shard.unban(circuit(1), front.now));
    assert_eq!(front.visit(1), Refusal::Served);
    let hour = Duration::from_secs(3_600);
    assert_eq!(front.shard.ban(circuit(1), Some(hour), front.now), Some(hour));
    assert_eq!(front.bans(), [(300, None), (3_600, None)]);
    let told = ToldBan { until: front.now.after(hour), rung: 2 };
    assert_eq!(front.shard.bans().collect::<Vec<_>>(), [(circuit(1), told)]);
    front.shard.promote(circuit(1), front.now);
    assert_eq!(front.connect(1).lane, Lane::Vip);
    front.shard.demote(circuit(1), front.now);
    assert_eq!(front.connect(1).lane, Lane::Normal);
}

/// Limits that only count.
fn shadow(words: &[Refusal], settings: CircuitSettings) -> CircuitSettings {
    CircuitSettings { shadow: words.iter().copied().collect(), ..settings }
}

fn counted(front: &Front, word: Refusal) -> (u64, u64) {
    let mut counts = front.shard.would_refuse().chain(front.admission.would_refuse());
    counts.find(|(each, _)| *each == word).map_or((0, 0), |(_, count)| (count.all, count.vips))
}

#[test]
fn a_limit_that_is_a_shadow_refuses_and_bans_nobody_and_counts_whom_it_would() {
    let settings = CircuitSettings::messenger(ladder());
    let mut front = Front::new(&shadow(&[Refusal::CircuitRate], settings));
    for _ in 0..100 {
        assert_eq!(front.visit(1), Refusal::Served);
        front.wait(100);
    }
    let facts = front.shard.look(circuit(1), front.now).unwrap();
    assert_eq!((facts.violations, facts.banned_for, facts.lane), (0, None, Lane::Normal));
    assert_eq!(counted(&front, Refusal::CircuitRate), (90, 0));
    // The limits that act still do.
    assert_eq!(until_refused(|| front.connect(2).word, 20), (15, Refusal::TooManyOpen));
    assert_eq!(counted(&front, Refusal::TooManyOpen), (0, 0));
    // Without the shadow it is as if it had never been one.
    front.shard.set_settings(CircuitSettings::messenger(ladder()));
    assert_eq!(front.visit(1), Refusal::CircuitRate);
}

#[test]
fn requests_rates_of_all_and_puzzles_can_be_shadows_and_vips_are_told_apart() {
    let words = [Refusal::RequestRate, Refusal::SlowLane, Refusal::VipRate, Refusal::PuzzleRequired];
    let mut front = Front::new(&shadow(&words, CircuitSettings::gated(ladder())));
    front.visit(1);
    for _ in 0..60 {
        assert_eq!(front.request(1).word, Refusal::Served);
    }
    assert_eq!(counted(&front, Refusal::RequestRate), (11, 0));
    // What both limits would meet is counted by the one that would have acted first, and then by the other.
    assert_eq!(counted(&front, Refusal::SlowLane), (41, 0));
    front.shard.promote(circuit(1), front.now);
    for _ in 0..200 {
        assert_eq!(front.request(1).word, Refusal::Served);
    }
    // From the two hundredth on, those before the promotion included.
    assert_eq!(counted(&front, Refusal::VipRate), (61, 61));
    front.shard.set_load(high());
    assert_eq!(front.visit(2), Refusal::Served);
    assert_eq!(counted(&front, Refusal::PuzzleRequired), (1, 0));

    let few = CircuitSettings { max_connections_per_second: NonZeroU32::new(2).unwrap(), ..open() };
    let mut front = Front::new(&shadow(&[Refusal::GlobalRate], few));
    assert!((1..=5).all(|number| front.visit(number) == Refusal::Served));
    // Half of it is kept for those who paid.
    assert_eq!(counted(&front, Refusal::GlobalRate), (4, 0));
    assert_eq!(front.shard.would_refuse().count(), 0);
}

#[test]
fn the_last_refusal_and_who_banned_are_remembered() {
    let mut front = Front::new(&CircuitSettings::messenger(ladder()));
    front.visit(1);
    let look = |front: &Front| front.shard.look(circuit(1), front.now).unwrap();
    assert_eq!((look(&front).last_refusal, look(&front).connections_per_10_seconds), (None, 1));
    for _ in 0..15 {
        front.visit(1);
    }
    // That it is banned now is no reason of its own.
    assert_eq!(front.visit(1), Refusal::Banned);
    let facts = look(&front);
    assert_eq!(facts.last_refusal, Some(Refusal::CircuitRate));
    assert!(facts.banned_for.is_some() && !facts.is_banned_by_operator);
    front.shard.unban(circuit(1), front.now);
    assert!(!look(&front).is_banned_by_operator);
    front.shard.ban(circuit(1), None, front.now);
    assert!(look(&front).is_banned_by_operator);
    front.shard.unban(circuit(1), front.now);
    assert!(!look(&front).is_banned_by_operator, "no ban, so nobody's");
    // What the front finds out by itself is remembered, whether it is a violation or not.
    front.shard.violation(circuit(1), Refusal::MethodDenied, front.now);
    let facts = look(&front);
    assert_eq!((facts.last_refusal, facts.violations), (Some(Refusal::MethodDenied), 0));
    for refusal in Refusal::ALL {
        let mut record = super::record::Record::new(1, 1);
        record.note(*refusal);
        let is_kept = !matches!(refusal.class(), crate::refusal::Class::Pass | crate::refusal::Class::Ban);
        assert_eq!(record.last_refusal(), is_kept.then_some(*refusal));
    }
}

#[test]
fn shield_case_statistics() {
    let settings = CircuitSettings { max_connections_per_second: NonZeroU32::new(50).unwrap(), ..open() };
    let mut front = Front::new(&CircuitSettings { asks_puzzles: false, ..settings.clone() });
    for number in 1..=12 {
        front.connect(number);
    }
    front.shard.ban(circuit(99), None, front.now);
    assert_eq!(
        front.statistics(&settings),
        "Active: 12/200 | Rate: 12/50/s | Circuits: 13 tracked, 1 banned"
    );
    front.wait(1_100);
    assert_eq!(front.statistics(&settings), "Active: 12/200 | Rate: 0/50/s | Circuits: 13 tracked, 1 banned");
}

#[test]
fn shield_case_cleanup() {
    let mut front = Front::new(&open());
    front.shard.ban(circuit(1), None, front.now);
    front.visit(2);
    assert_eq!(front.shard.next_deadline(), front.now.after(Duration::from_secs(120)));
    // Seconds from the start; tracked, banned.
    for (wait, tracked, banned) in
        [(299_900, 2, 1), (100, 2, 0), (1_499_900, 2, 0), (100, 1, 0), (299_900, 1, 0), (100, 0, 0)]
    {
        front.wait(wait);
        front.shard.advance(front.now);
        let counts = front.shard.counts(front.now);
        assert_eq!((counts.tracked, counts.banned), (tracked, banned));
        assert!(front.shard.next_deadline() > front.now);
    }
}

// Limits, each from both sides.

#[test]
fn connections_in_ten_seconds_tarpit_then_ban() {
    let settings = CircuitSettings { max_per_circuit_per_minute: None, ..CircuitSettings::gated(ladder()) };
    let mut front = Front::new(&settings);
    assert_eq!(until_refused(|| front.visit(1), 20), (9, Refusal::ConnectionRate));
    // What follows at once is the same offence, up to the threshold.
    let arrival = front.arrive(circuit(1));
    assert_eq!((arrival.ruling.action, arrival.ruling.lane), (Action::Tarpit, Lane::Suspect));
    assert_eq!((front.admission.tarpitted(), front.admission.served()), (1, 0));
    // A tarpitted connection is none of the circuit's open ones.
    assert_eq!(front.shard.look(circuit(1), front.now).unwrap().open, 0);
    front.close(&arrival.hold.unwrap());
    front.wait(12_000);
    assert_eq!(until_refused(|| front.visit(1), 20), (9, Refusal::Banned));
    assert_eq!(front.bans(), [(300, Some(Refusal::ConnectionRate))]);

    // The same flood without a pause meets the threshold instead.
    let mut front = Front::new(&settings);
    let words: Vec<Refusal> = (0..14).map(|_| front.visit(1)).collect();
    assert!(words[9..13].iter().all(|word| *word == Refusal::ConnectionRate));
    assert_eq!(words[13], Refusal::Banned);
}

#[test]
fn open_connections_of_a_circuit() {
    for (settings, most) in [(CircuitSettings::messenger(ladder()), 15), (CircuitSettings::web(ladder()), 32)]
    {
        let settings = CircuitSettings {
            max_per_circuit_per_minute: None,
            max_connections_per_second: 500.try_into().unwrap(),
            ..settings
        };
        let mut front = Front::new(&settings);
        assert_eq!(until_refused(|| front.connect(1).word, 100), (most, Refusal::TooManyOpen));
        let hold = front.holds.pop().unwrap();
        front.close(&hold);
        assert_eq!(front.connect(1).word, Refusal::Served);
        // VIPs hold no more.
        front.shard.promote(circuit(1), front.now);
        assert_eq!(front.connect(1).word, Refusal::TooManyOpen);
    }
}

#[test]
fn requests_in_ten_seconds() {
    for (settings, slow, deny) in
        [(CircuitSettings::gated(ladder()), 20, 50), (CircuitSettings::web(ladder()), 200, 600)]
    {
        let mut front = Front::new(&settings);
        assert_eq!(until_refused(|| front.request(1).word, 1_000), (slow - 1, Refusal::SlowLane));
        let ruling = front.request(1);
        assert_eq!(
            (ruling.decision, ruling.action, ruling.lane),
            (Decision::Allow, Action::SlowLane, Lane::Suspect)
        );
        (slow + 1..deny - 1).for_each(|_| assert_eq!(front.request(1).word, Refusal::SlowLane));
        assert_eq!(front.request(1).word, Refusal::RequestRate);
        // Those under way are no further violation; four more acts make five.
        (0..100).for_each(|_| assert_eq!(front.request(1).action, Action::Deny));
        for _ in 0..3 {
            front.wait(2_000);
            (0..9).for_each(|_| assert_eq!(front.request(1).word, Refusal::RequestRate));
        }
        front.wait(1_900);
        assert_eq!(front.request(1).word, Refusal::RequestRate);
        assert_eq!(front.shard.look(circuit(1), front.now).unwrap().violations, 4);
        assert_eq!(front.request(2).word, Refusal::Served);
    }
}

#[test]
fn retry_after_of_requests_is_true() {
    let mut front = Front::new(&CircuitSettings::gated(ladder()));
    for _ in 0..49 {
        front.request(1);
    }
    let Decision::RateLimited { retry_after } = front.request(1).decision else { panic!("not limited") };
    front.wait(u64::try_from(retry_after.as_millis()).unwrap() - 100);
    assert_eq!(front.request(1).word, Refusal::RequestRate);
    // The one just denied counts in the window of the next.
    front.wait(100);
    assert_eq!(front.request(1).word, Refusal::Served);
}

#[test]
fn global_rate_keeps_its_share() {
    // Profile, how many are free to those who did not pay, and to all together.
    for (settings, unpaid, all) in
        [(CircuitSettings::web(ladder()), 25, 50), (CircuitSettings::messenger(ladder()), 50, 50)]
    {
        let mut front = Front::new(&settings);
        let mut number = 0;
        let mut connect = |front: &mut Front, is_paid: bool| {
            number += 1;
            if is_paid {
                front.shard.pay(circuit(number), front.now);
            }
            front.visit(number)
        };
        assert_eq!(until_refused(|| connect(&mut front, false), 100), (unpaid, Refusal::GlobalRate));
        assert_eq!(until_refused(|| connect(&mut front, true), 100), (all - unpaid, Refusal::GlobalRate));
        assert_eq!(front.admission.rate(front.now), all);
        front.wait(1_000);
        assert_eq!(connect(&mut front, false), Refusal::GlobalRate);
        front.wait(100);
        assert_eq!(connect(&mut front, false), Refusal::Served);
    }
}

#[test]
fn places_keep_their_share_and_queue_by_lane() {
    let settings = CircuitSettings {
        max_concurrent_connections: 4.try_into().unwrap(),
        maxconn: 7.try_into().unwrap(),
        ..open()
    };
    let mut front = Front::new(&settings);
    // Two places for those who did not pay; a suspect, a normal one and a VIP wait.
    assert_eq!(
        [1, 2, 3].map(|number| front.connect(number).action),
        [Action::Serve, Action::Serve, Action::Queue]
    );
    front.shard.violation(circuit(4), Refusal::SlowHeaders, front.now);
    assert_eq!(front.connect(4).lane, Lane::Suspect);
    front.shard.pay(circuit(5), front.now);
    front.shard.promote(circuit(6), front.now);
    assert_eq!([5, 5].map(|number| front.connect(number).action), [Action::Serve, Action::Serve]);
    assert_eq!(front.connect(6).action, Action::Queue);
    // Full. Who did not pay is refused; who did takes the place of the last in the queue, who is told.
    assert_eq!(front.connect(7).word, Refusal::Capacity);
    let arrival = front.arrive(circuit(5));
    let suspect = front.holds.iter().find(|hold| hold.circuit() == circuit(4)).unwrap().serial();
    assert_eq!(arrival.ends, Some((suspect, Refusal::Displaced)));
    assert_eq!(front.admission.place(suspect), None);
    front.holds.extend(arrival.hold);
    // Its end changes nothing any more.
    front.admission.close(suspect);
    assert_eq!((front.admission.served(), front.admission.waiting()), (4, 3));
    let of = |front: &Front, serial: Serial| {
        front.holds.iter().find(|hold| hold.serial() == serial).unwrap().circuit()
    };
    let mut order = Vec::new();
    while !front.holds.is_empty() {
        let at =
            front.holds.iter().position(|hold| front.admission.place(hold.serial()) == Some(Place::Served));
        let Some(at) = at else { break };
        let hold = front.holds.remove(at);
        front.close(&hold);
        while let Some(next) = front.admission.start_next() {
            order.push(of(&front, next));
        }
    }
    assert_eq!(order, [circuit(6), circuit(3), circuit(5)]);
}

#[test]
fn the_tarpit_resets_its_oldest() {
    let settings = CircuitSettings {
        connections_per_10_seconds: 2.try_into().ok(),
        most_tarpits: 2.try_into().unwrap(),
        ..open()
    };
    let mut front = Front::new(&settings);
    assert_eq!(front.visit(1), Refusal::Served);
    assert_eq!([1, 1].map(|number| front.connect(number).action), [Action::Tarpit; 2]);
    let arrival = front.arrive(circuit(1));
    assert_eq!(arrival.ends, Some((front.holds[0].serial(), Refusal::TarpitFull)));
    assert_eq!(front.admission.tarpitted(), 2);
}

#[test]
fn a_solved_puzzle_gets_a_place() {
    let mut front =
        Front::new(&CircuitSettings { max_concurrent_connections: 1.try_into().unwrap(), ..open() });
    front.shard.set_load(high());
    assert_eq!([1, 2].map(|number| front.connect(number).action), [Action::Challenge; 2]);
    front.shard.pay(circuit(1), front.now);
    let serials: Vec<Serial> = front.holds.iter().map(Hold::serial).collect();
    assert_eq!(front.admission.paid(serials[0], Lane::Normal, None, front.now), Some(Place::Served));
    assert_eq!(front.admission.paid(serials[1], Lane::Normal, None, front.now), Some(Place::Waiting));
    assert_eq!((front.request(1).word, front.request(2).word), (Refusal::Served, Refusal::PuzzleRequired));
    assert_eq!(
        (front.admission.challenged(), front.admission.waiting(), front.admission.served()),
        (0, 1, 1)
    );
}

#[test]
fn tokens_are_limited_over_all_their_circuits() {
    let mut front =
        Front::new(&CircuitSettings { max_concurrent_per_circuit: 700.try_into().unwrap(), ..open() });
    front.shard.set_load(high());
    let until = front.now.after(Duration::from_secs(1_800));
    let show = |front: &mut Front, number| {
        let ticket = front.admission.present(TokenId(7), circuit(number), until, front.now)?;
        front.shard.bind(circuit(number), ticket, until, front.now);
        Ok(())
    };
    assert_eq!(
        [1, 2, 3, 4, 1].map(|number| show(&mut front, number)),
        [Ok(()), Ok(()), Ok(()), Err(TokenRefused::InUse), Ok(())]
    );
    let mut turn = (1..=3).cycle();
    assert_eq!(until_refused(|| front.request(turn.next().unwrap()).word, 700), (599, Refusal::VipRate));
    // Connections are counted apart, and the puzzle is not asked.
    assert_eq!(until_refused(|| front.visit(turn.next().unwrap()), 700), (599, Refusal::VipRate));
    // A circuit that tor closed makes room for another.
    front.shard.forget(circuit(2));
    let commands = front.shard.take_commands();
    let [Command::ReleaseToken { ticket, circuit: gone }] = commands[..] else { panic!("{commands:?}") };
    front.admission.release(ticket, gone);
    assert_eq!(show(&mut front, 4), Ok(()));
    // Expiry demotes, to the tick.
    front.now = until;
    front.wait(0);
    front.now = Monotime(front.now.0 - 1);
    assert_eq!(front.connect(1).lane, Lane::Vip);
    front.now = until;
    assert_eq!(front.connect(1).word, Refusal::PuzzleRequired);
    assert_eq!(show(&mut front, 1), Err(TokenRefused::Expired));
    assert_eq!((front.admission.tokens(), front.admission.next_deadline()), (0, None));
}

#[test]
fn bypassed_nothing_is_refused_or_held_against_a_circuit_and_bans_are_remembered() {
    let settings = CircuitSettings {
        connections_per_10_seconds: 3.try_into().ok(),
        ban_threshold: 2.try_into().unwrap(),
        ..open()
    };
    let mut front = Front::new(&settings);
    front.shard.ban(circuit(1), Some(Duration::from_secs(60)), front.now);
    let bypassed = CircuitSettings { is_bypassed: true, ..settings.clone() };
    front.shard.set_settings(bypassed.clone());
    front.admission.set_settings(bypassed);
    assert!((0..9).all(|_| front.visit(1) == Refusal::Served && front.visit(2) == Refusal::Served));
    assert!((0..9).all(|_| front.shard.violation(circuit(2), Refusal::Malformed, front.now).is_none()));
    assert_eq!(front.request(2).word, Refusal::Served);
    front.shard.set_settings(settings.clone());
    front.admission.set_settings(settings);
    assert_eq!((front.visit(1), front.visit(2)), (Refusal::Banned, Refusal::ConnectionRate));
}

#[test]
fn a_token_holds_so_many_connections_over_all_its_circuits() {
    let mut front =
        Front::new(&CircuitSettings { max_concurrent_per_circuit: 4.try_into().unwrap(), ..open() });
    let until = front.now.after(Duration::from_secs(60));
    for number in [1, 2] {
        let ticket = front.admission.present(TokenId(7), circuit(number), until, front.now).unwrap();
        front.shard.bind(circuit(number), ticket, until, front.now);
    }
    let words = [1, 2, 1, 2, 1, 2, 3].map(|number| front.connect(number).word);
    let (served, refused) = (Refusal::Served, Refusal::TooManyOpen);
    assert_eq!(words, [served, served, served, served, refused, refused, served]);
    assert_eq!(front.admission.holders().refused, 1, "for the budget of false positives");
    let hold = front.holds.remove(0);
    front.close(&hold);
    assert_eq!([2, 1].map(|number| front.connect(number).word), [served, refused]);
}

#[test]
fn connections_from_before_its_token_count_for_it_once_they_have_paid() {
    let settings = CircuitSettings {
        max_concurrent_per_circuit: 2.try_into().unwrap(),
        asks_puzzles: true,
        paid_share: Ratio::HALF,
        ..open()
    };
    let mut front = Front::new(&settings);
    front.shard.set_load(high());
    for number in [1, 1, 2, 2] {
        assert_eq!(front.connect(number).word, Refusal::PuzzleRequired);
    }
    let until = front.now.after(Duration::from_secs(60));
    for number in [1, 2] {
        let ticket = front.admission.present(TokenId(7), circuit(number), until, front.now).unwrap();
        front.shard.bind(circuit(number), ticket, until, front.now);
    }
    let ticket = front.shard.ticket(circuit(1), front.now);
    assert!(ticket.is_some() && ticket == front.shard.ticket(circuit(2), front.now));
    let serials: Vec<_> = front.holds.iter().map(|hold| hold.serial()).collect();
    for serial in &serials {
        assert_eq!(front.admission.paid(*serial, Lane::Vip, ticket, front.now), Some(Place::Served));
    }
    // Two of them count for the token, and said twice none counts again; the others go on as those who did not pay.
    assert_eq!(front.admission.paid(serials[0], Lane::Vip, ticket, front.now), Some(Place::Served));
    let by_token =
        |front: &mut Front| front.admission.admit(vip(ticket), front.now).map_err(|denied| denied.why);
    assert_eq!(by_token(&mut front).unwrap_err(), Refusal::TooManyOpen);
    front.admission.close(serials[0]);
    assert_eq!(by_token(&mut front).unwrap().place, Place::Served);
    assert_eq!(by_token(&mut front).unwrap_err(), Refusal::TooManyOpen);
}

const fn vip(ticket: Option<Ticket>) -> Ask {
    Ask { want: Want::Serve, lane: Lane::Vip, is_paid: true, ticket }
}

#[test]
fn a_rate_in_shadow_leaves_a_token_its_number_of_connections() {
    let settings = CircuitSettings {
        max_concurrent_per_circuit: 4.try_into().unwrap(),
        requests: Some(RequestRates { slow: 2.try_into().unwrap(), deny: 2.try_into().unwrap() }),
        vip_per_10_seconds: 2.try_into().unwrap(),
        shadow: [Refusal::VipRate].into_iter().collect(),
        ..open()
    };
    let mut front = Front::new(&settings);
    let until = front.now.after(Duration::from_secs(60));
    let ticket = front.admission.present(TokenId(7), circuit(1), until, front.now).unwrap();
    let words: Vec<_> = (0..6)
        .map(|_| front.admission.admit(vip(Some(ticket)), front.now).map_err(|denied| denied.why))
        .collect();
    assert_eq!(words.iter().filter(|word| word.is_ok()).count(), 4, "{words:?}");
    assert_eq!(words[5].unwrap_err(), Refusal::TooManyOpen);
}

#[test]
fn a_token_buys_no_bytes() {
    let settings = CircuitSettings { bytes: Some(Budget::a_minute(6_000.try_into().unwrap())), ..open() };
    let mut front = Front::new(&settings);
    let until = front.now.after(Duration::from_secs(60));
    let ticket = front.admission.present(TokenId(7), circuit(1), until, front.now).unwrap();
    front.shard.bind(circuit(1), ticket, until, front.now);
    assert_eq!((front.visit(1), front.request(1).word), (Refusal::Served, Refusal::Served));
    uses(&mut front, 1, 6_000, Duration::ZERO);
    assert_eq!((front.request(1).word, front.visit(1)), (Refusal::ByteBudget, Refusal::ByteBudget));
}

#[test]
fn who_is_in_the_slow_lane_gives_up_its_place_to_those_who_can_take_it() {
    let settings = CircuitSettings { max_concurrent_connections: 1.try_into().unwrap(), ..open() };
    let mut front = Front::new(&settings);
    front.connect(1);
    let slow = front.holds[0].serial();
    assert!(!front.admission.step_aside(slow, front.now), "nobody waits");
    assert_eq!(front.admission.place(slow), Some(Place::Served));
    front.connect(2);
    front.connect(3);
    let [_, second, third] = [0, 1, 2].map(|at| front.holds[at].serial());
    front.wait(1_000);
    assert!(front.admission.step_aside(slow, front.now));
    assert_eq!(front.admission.start_next(), Some(second));
    assert_eq!((front.admission.place(slow), front.admission.waiting()), (Some(Place::Waiting), 2));
    // It waits from now on, behind those who came after it.
    front.wait(2_000);
    assert_eq!(front.admission.first_wait(front.now), Some(Duration::from_secs(3)));
    assert!(!front.admission.step_aside(slow, front.now), "it waits already");
    front.admission.close(second);
    assert_eq!(front.admission.start_next(), Some(third));
    front.admission.close(third);
    assert_eq!(front.admission.start_next(), Some(slow));
    assert_eq!((front.admission.served(), front.admission.waiting()), (1, 0));
}

#[test]
fn places_that_were_taken_before_the_share_was_kept_come_free_for_those_who_pay() {
    let calm = CircuitSettings {
        max_concurrent_connections: 4.try_into().unwrap(),
        paid_share: Ratio::NONE,
        ..open()
    };
    let mut front = Front::new(&calm);
    for number in 1..=4 {
        front.connect(number);
    }
    let held: Vec<Serial> = front.holds.iter().map(Hold::serial).collect();
    front.wait(1_000);
    // Nobody who paid waits, then nobody has been served for long enough.
    front.admission.set_settings(CircuitSettings { paid_share: Ratio::HALF, ..calm.clone() });
    front.connect(5);
    front.wait(3_000);
    assert_eq!(front.admission.give_way(front.now), None);
    for number in 6..=8 {
        front.shard.promote(circuit(number), front.now);
        front.connect(number);
    }
    assert_eq!(front.admission.give_way(front.now), None);
    let queue = u64::try_from(calm.queue_timeout.as_millis()).unwrap();
    front.wait(queue - 4_000);
    assert_eq!(front.admission.give_way(front.now), None, "to the tick");
    front.wait(1);
    let mut ends = Vec::new();
    while let Some(serial) = front.admission.give_way(front.now) {
        ends.push((serial, front.admission.start_next().unwrap()));
    }
    let waiting: Vec<Serial> = front.holds[5..].iter().map(Hold::serial).collect();
    // Those who did not pay keep their part; the third who paid waits on.
    assert_eq!(ends, [(held[0], waiting[0]), (held[1], waiting[1])]);
    assert_eq!((front.admission.served(), front.admission.waiting()), (4, 2));
}

#[test]
fn vips_are_counted_whether_they_are_open_or_not() {
    let mut front = Front::new(&open());
    let until = front.now.after(Duration::from_secs(60));
    let vips = |front: &Front| front.shard.counts(front.now).vips;
    for number in [1, 2] {
        let ticket = front.admission.present(TokenId(7), circuit(number), until, front.now).unwrap();
        front.shard.bind(circuit(number), ticket, until, front.now);
    }
    front.shard.promote(circuit(3), front.now);
    front.shard.promote(circuit(4), front.now);
    front.connect(1);
    assert_eq!((vips(&front), front.visit(5)), (4, Refusal::Served));
    // A ban costs the token, and an operator's the promotion as well.
    front.shard.ban(circuit(2), None, front.now);
    front.shard.ban(circuit(3), Some(Duration::from_secs(5)), front.now);
    assert_eq!(vips(&front), 2);
    front.wait(5_100);
    front.shard.advance(front.now);
    assert_eq!(vips(&front), 2);
    front.shard.promote(circuit(3), front.now);
    assert!(!front.shard.unban(circuit(3), front.now));
    assert_eq!(vips(&front), 3);
    front.shard.demote(circuit(4), front.now);
    front.shard.forget(circuit(3));
    assert_eq!(vips(&front), 1);
    // A token expires by itself, to the tick.
    front.now = Monotime(until.0 - 1);
    assert_eq!(vips(&front), 1);
    front.now = until;
    assert_eq!(vips(&front), 0);
}

#[test]
fn a_holder_counts_once_a_minute_and_meets_relaxed_limits_alone() {
    let settings = CircuitSettings {
        max_concurrent_per_circuit: 4.try_into().unwrap(),
        vip_per_10_seconds: 10.try_into().unwrap(),
        requests: None,
        ..open()
    };
    let holders = |front: &Front| {
        let Holders { seen, refused } = front.admission.holders();
        (seen, refused)
    };
    for (is_relaxed, rate, most) in [(false, 9, 4), (true, 14, 6)] {
        let mut front = Front::new(&CircuitSettings { relaxes_tokens: is_relaxed, ..settings.clone() });
        let until = front.now.after(Duration::from_secs(1_800));
        let ticket = front.admission.present(TokenId(7), circuit(1), until, front.now).unwrap();
        front.shard.bind(circuit(1), ticket, until, front.now);
        assert_eq!(until_refused(|| front.request(1).word, 50), (rate, Refusal::VipRate));
        assert_eq!((front.request(1).word, holders(&front)), (Refusal::VipRate, (1, 1)));
        // In the next minute it is another one.
        front.wait(60_000);
        assert_eq!((front.request(1).word, holders(&front)), (Refusal::Served, (2, 1)));
        assert_eq!(until_refused(|| front.connect(1).word, 50), (most, Refusal::TooManyOpen));
        for command in front.shard.take_commands() {
            if command == (Command::HolderRefused { ticket }) {
                front.admission.note_refused(ticket, front.now);
            }
        }
        assert_eq!(holders(&front), (2, 2));
        // Circuits without one have their limits, those that an operator promoted as well.
        front.shard.promote(circuit(2), front.now);
        assert_eq!(until_refused(|| front.request(2).word, 50), (9, Refusal::VipRate));
        for number in [2, 3] {
            assert_eq!(until_refused(|| front.connect(number).word, 50), (4, Refusal::TooManyOpen));
        }
        assert_eq!(holders(&front), (2, 2));
        // A limit that is a shadow refuses nobody.
        let shadow = [Refusal::VipRate].into_iter().collect();
        let mut front =
            Front::new(&CircuitSettings { relaxes_tokens: is_relaxed, shadow, ..settings.clone() });
        let ticket = front.admission.present(TokenId(7), circuit(1), until, front.now).unwrap();
        front.shard.bind(circuit(1), ticket, until, front.now);
        assert_eq!(until_refused(|| front.request(1).word, 50), (50, Refusal::Served));
        assert_eq!(holders(&front), (1, 0));
    }
}

#[test]
fn a_ban_revokes_its_token() {
    let mut front = Front::new(&open());
    let until = front.now.after(Duration::from_secs(1_800));
    for number in [1, 2] {
        let ticket = front.admission.present(TokenId(7), circuit(number), until, front.now).unwrap();
        front.shard.bind(circuit(number), ticket, until, front.now);
    }
    front.shard.ban(circuit(1), None, front.now);
    let ticket = front.shard.take_commands().into_iter().find_map(|command| match command {
        Command::RevokeToken { ticket } => Some(ticket),
        Command::Ban { .. } | Command::Close { .. } | Command::ReleaseToken { .. } => None,
        Command::HolderRefused { .. } => None,
    });
    // A circuit that was not told is refused once, not served as a VIP, and from then on it is as any other.
    let (other, since) = (front.shard.clone(), front.now);
    assert_eq!(front.admission.revoke(ticket.unwrap(), front.now), [circuit(1), circuit(2)]);
    assert_eq!((front.request(2).word, front.visit(2)), (Refusal::TokenGone, Refusal::Served));
    assert_eq!(front.connect(2).lane, Lane::Normal);
    (front.shard, front.now) = (other, since);
    assert_eq!((front.visit(2), front.request(2).word), (Refusal::TokenGone, Refusal::Served));
    front.shard.promote(circuit(2), front.now);
    front.shard.unbind(circuit(2), front.now);
    assert_eq!((front.request(2).word, front.visit(2)), (Refusal::Served, Refusal::Served));
    assert_eq!(front.connect(2).lane, Lane::Vip, "the operator's word is another's");
    // It is good nowhere any more, until it would have expired.
    let mut show = |number| front.admission.present(TokenId(7), circuit(number), until, front.now).map(drop);
    assert_eq!([show(2), show(3)], [Err(TokenRefused::Revoked); 2]);
    assert_eq!(front.admission.revoked().collect::<Vec<_>>(), [(TokenId(7), until)]);
    front.admission.advance(until);
    assert_eq!(front.admission.revoked().count(), 0);
}

#[test]
fn a_circuit_without_a_connection_yields_its_place_at_a_token_and_no_other() {
    let mut front = Front::new(&open());
    let until = front.now.after(Duration::from_secs(1_800));
    let show = |front: &mut Front, token, number| {
        let ticket = front.admission.present(TokenId(token), circuit(number), until, front.now).unwrap();
        front.shard.bind(circuit(number), ticket, until, front.now);
        ticket
    };
    let ticket = show(&mut front, 7, 1);
    assert_eq!(front.connect(1).word, Refusal::Served);
    assert!(front.shard.uses(circuit(1), ticket, front.now));
    assert!(!front.shard.yields(circuit(1), ticket, front.now), "it carries a connection");
    front.close_all();
    // The word of a release that was under way is late: the circuit came back.
    let other = show(&mut front, 8, 1);
    assert_eq!(front.shard.take_commands(), [Command::ReleaseToken { ticket, circuit: circuit(1) }]);
    assert!(!front.shard.uses(circuit(1), ticket, front.now));
    assert_eq!(show(&mut front, 7, 1), ticket);
    assert!(
        front.shard.uses(circuit(1), ticket, front.now) && !front.shard.uses(circuit(1), other, front.now)
    );
    // It has gone over to another token, or was never seen: nothing to take from it.
    assert!(
        front.shard.yields(circuit(1), other, front.now) && front.shard.yields(circuit(5), ticket, front.now)
    );
    assert!(front.shard.uses(circuit(1), ticket, front.now));
    assert!(front.shard.yields(circuit(1), ticket, front.now));
    assert!(!front.shard.look(circuit(1), front.now).unwrap().has_token);
}

#[test]
fn an_operator_who_demotes_a_circuit_revokes_its_token() {
    let mut front = Front::new(&open());
    let until = front.now.after(Duration::from_secs(1_800));
    let ticket = front.admission.present(TokenId(7), circuit(1), until, front.now).unwrap();
    front.shard.bind(circuit(1), ticket, until, front.now);
    assert!(front.shard.look(circuit(1), front.now).unwrap().has_token);
    front.shard.demote(circuit(1), front.now);
    assert_eq!(front.shard.take_commands(), [Command::RevokeToken { ticket }]);
    assert_eq!(front.connect(1).lane, Lane::Normal);
    assert!(!front.shard.look(circuit(1), front.now).unwrap().has_token);
    front.shard.demote(circuit(1), front.now);
    assert_eq!(front.shard.take_commands(), []);
}

#[test]
fn a_token_is_revoked_by_whoever_knows_its_id_and_all_by_other_keys() {
    let mut front = Front::new(&open());
    let until = front.now.after(Duration::from_secs(1_800));
    for (token, number) in [(7, 1), (7, 2), (8, 3), (9, 3)] {
        front.admission.present(TokenId(token), circuit(number), until, front.now).unwrap();
    }
    let (ticket, users) = front.admission.token_users(TokenId(7)).unwrap();
    assert_eq!(users, [circuit(1), circuit(2)]);
    front.admission.release(ticket, circuit(1));
    assert_eq!(front.admission.learn_revoked(TokenId(7), until, front.now), (true, vec![circuit(2)]));
    assert_eq!(front.admission.learn_revoked(TokenId(7), until, front.now), (false, Vec::new()));
    assert_eq!(front.admission.token_users(TokenId(7)), None);
    assert_eq!(front.admission.tokens(), 2);
    assert_eq!(front.admission.forget_tokens(), [circuit(3), circuit(3)]);
    assert_eq!((front.admission.tokens(), front.admission.next_deadline()), (0, None));
    // Other keys make other tokens, so nothing need be remembered of those before, revoked or not.
    assert_eq!(front.admission.revoked().count(), 0);
    for token in [7, 8] {
        assert!(front.admission.present(TokenId(token), circuit(3), until, front.now).is_ok());
    }
}

#[test]
fn bans_climb_and_a_new_tor_forgets_them() {
    let mut front = Front::new(&open());
    for length in [300, 1_800, 14_400, DAY, DAY] {
        assert_eq!(front.shard.ban(circuit(1), None, front.now), Some(Duration::from_secs(length)));
        front.wait(1_000);
    }
    let next = CircuitId::new(TorGeneration(2), NonZeroU32::MIN);
    assert_eq!(front.arrive(next).ruling.word, Refusal::Served);
    assert_eq!(front.shard.counts(front.now).banned, 0);
    // What is left of the old one is reset, and changes nothing.
    assert_eq!((front.connect(1).word, front.request(1).word), (Refusal::OldCircuit, Refusal::OldCircuit));
    assert_eq!(front.connect(1).action, Action::Reset);
    front.shard.forget(circuit(1));
    assert_eq!(front.shard.ban(circuit(1), None, front.now), None);
    assert_eq!(front.shard.counts(front.now).tracked, 1);
    assert!(front.shard.look(circuit(1), front.now).is_none() && front.shard.look(next, front.now).is_some());
}

#[test]
fn a_rung_that_a_front_before_knew_is_climbed_from() {
    for (rung, lengths) in [(0, [1_800, 14_400]), (1, [1_800, 14_400]), (2, [14_400, DAY]), (9, [DAY, DAY])] {
        let mut front = Front::new(&open());
        // Of a circuit that is not banned nothing need be known.
        front.shard.remember_rung(circuit(1), rung, front.now);
        assert!(front.shard.look(circuit(1), front.now).is_none());
        // The ban that goes on is as long as it was.
        front.shard.ban(circuit(1), Some(Duration::from_secs(7)), front.now);
        front.shard.remember_rung(circuit(1), rung, front.now);
        let facts = front.shard.look(circuit(1), front.now).unwrap();
        assert_eq!((facts.rung, facts.banned_for), (rung.max(1), Some(Duration::from_secs(7))));
        for length in lengths {
            front.wait(1_000);
            assert_eq!(
                front.shard.ban(circuit(1), None, front.now),
                Some(Duration::from_secs(length)),
                "{rung}"
            );
        }
    }
}

#[test]
fn health_closes_marks_and_rarely_cuts() {
    let ms = Duration::from_millis;
    let (aged, slow) = (Some(Refusal::CircuitAged), Some(Refusal::CircuitSlow));
    // Age in ms at the examination, latency in ms, open connections, hard limit in s; closed for what; marked for what.
    for (age, latency, is_open, hard, closed, marked) in [
        (600_000, 0, false, None, None, None),
        (600_100, 0, false, None, aged, None),
        (600_100, 0, true, None, None, aged),
        (1_000, 10_000, false, None, None, None),
        (1_000, 10_001, false, None, slow, None),
        (1_000, 10_001, true, None, None, slow),
        (700_000, 0, true, Some(700), None, aged),
        (700_100, 0, true, Some(700), Some(Refusal::CircuitRotated), None),
    ] {
        let rotate_hard_after = hard.map(Duration::from_secs);
        let settings = CircuitSettings { rotate_hard_after, health_interval: ms(1_000), ..open() };
        let mut front = Front::new(&settings);
        let arrival = front.arrive(circuit(1));
        if !is_open {
            front.close(&arrival.hold.unwrap());
        }
        let usage = Usage { latency: (latency > 0).then(|| ms(latency)), ..Usage::default() };
        front.shard.report(circuit(1), usage, front.now);
        front.wait(age);
        let commands = front.shard.advance(front.now);
        let expected = closed.map(|why| Command::Close { circuit: circuit(1), why });
        assert_eq!(commands, Vec::from_iter(expected), "{age} {latency} {is_open}");
        assert_eq!(
            front.shard.closing().collect::<Vec<_>>(),
            Vec::from_iter(closed.map(|why| (circuit(1), why)))
        );
        assert_eq!(front.shard.counts(front.now).marked, u32::from(marked.is_some()));
        assert_eq!(front.shard.look(circuit(1), front.now).unwrap().marked, marked);
    }
}

#[test]
fn what_is_due_for_closing_is_said_once_and_stays_so_until_it_is_used_again_or_has_ended() {
    let ms = Duration::from_millis;
    let settings = CircuitSettings { health_interval: ms(1_000), ..open() };
    let mut front = Front::new(&settings);
    let closing = |front: &mut Front| {
        front.shard.closing().map(|(of, _)| of.number_for_this_node().get()).collect::<Vec<_>>()
    };
    let close = |number| Command::Close { circuit: circuit(number), why: Refusal::CircuitAged };
    front.visit(1);
    front.visit(2);
    front.visit(3);
    front.wait(600_100);
    assert_eq!(front.shard.advance(front.now), [close(1), close(2), close(3)]);
    front.wait(1_000);
    assert_eq!(front.shard.advance(front.now), [], "said already");
    assert_eq!(closing(&mut front), [1, 2, 3]);
    // A stream comes, and ends after another examination.
    let hold = front.arrive(circuit(2)).hold.unwrap();
    assert_eq!(closing(&mut front), [1, 3]);
    front.wait(1_000);
    assert_eq!((front.shard.advance(front.now), front.shard.counts(front.now).marked), (Vec::new(), 1));
    // What carries a connection is not forgotten, whatever tor says.
    front.shard.ended(circuit(2));
    front.close(&hold);
    front.wait(1_000);
    assert_eq!((front.shard.advance(front.now), front.shard.counts(front.now).marked), (vec![close(2)], 0));
    assert_eq!(closing(&mut front), [1, 2, 3]);
    front.shard.ban(circuit(3), None, front.now);
    front.shard.take_commands();
    front.shard.ended(circuit(1));
    front.shard.ended(circuit(3));
    assert_eq!(closing(&mut front), [2]);
    assert!(front.shard.look(circuit(1), front.now).is_none());
    assert!(front.shard.look(circuit(3), front.now).is_some(), "a ban stays");
    front.arrive(CircuitId::new(TorGeneration(2), NonZeroU32::MIN));
    assert_eq!(closing(&mut front), [0; 0], "of another tor process");
}

#[test]
fn a_circuit_is_cut_once_for_its_age() {
    let rotate_hard_after = Some(Duration::from_secs(700));
    let settings = CircuitSettings { rotate_hard_after, health_interval: Duration::from_secs(1), ..open() };
    let mut front = Front::new(&settings);
    let hold = front.arrive(circuit(1)).hold.unwrap();
    front.wait(700_100);
    let cut = Command::Close { circuit: circuit(1), why: Refusal::CircuitRotated };
    assert_eq!(front.shard.advance(front.now), [cut]);
    front.close(&hold);
    // Nobody closed it, and its client uses it again.
    let hold = front.arrive(circuit(1)).hold.unwrap();
    for _ in 0..2 {
        front.wait(1_000);
        assert_eq!((front.shard.advance(front.now), front.shard.counts(front.now).marked), (Vec::new(), 1));
        // Whoever can close it still does.
        assert_eq!(front.shard.closing().collect::<Vec<_>>(), [(circuit(1), Refusal::CircuitRotated)]);
    }
    front.close(&hold);
}

#[test]
fn no_more_circuits_are_due_for_closing_at_a_time_than_are_said() {
    let settings = CircuitSettings { health_interval: Duration::from_secs(1), ..open() };
    let mut front = Front::new(&settings);
    let most = u32::try_from(MOST_DUE).unwrap();
    for number in 1..=most + 9 {
        front.shard.pay(circuit(number), front.now);
    }
    // As many calls as look at all of them.
    let examine = |front: &mut Front| (0..8).for_each(|_| drop(front.shard.advance(front.now)));
    front.wait(600_100);
    examine(&mut front);
    assert_eq!(front.shard.closing().count(), MOST_DUE);
    for number in 1..=most {
        front.shard.ended(circuit(number));
    }
    front.wait(1_000);
    examine(&mut front);
    assert_eq!(front.shard.closing().count(), 9);
}

#[test]
fn usage_adds_up_and_latency_moves_slowly() {
    let mut front = Front::new(&open());
    front.visit(1);
    let usage = |milliseconds| Usage {
        bytes_in: 1,
        bytes_out: 2,
        cpu_nanoseconds: 3,
        latency: Some(Duration::from_millis(milliseconds)),
    };
    for (sample, average) in [(80, 80), (160, 90), (90, 90)] {
        front.shard.report(circuit(1), usage(sample), front.now);
        let facts = front.shard.look(circuit(1), front.now).unwrap();
        assert_eq!(facts.usage.latency, Some(Duration::from_millis(average)));
    }
    let facts = front.shard.look(circuit(1), front.now).unwrap();
    assert_eq!((facts.usage.bytes_in, facts.usage.bytes_out, facts.usage.cpu_nanoseconds), (3, 6, 9));
}

#[test]
fn violations_are_forgotten_with_the_reputation() {
    for (wait, next) in [(1_799_900, Some(Duration::from_secs(300))), (1_800_000, None)] {
        let mut front = Front::new(&CircuitSettings { ban_threshold: 2.try_into().unwrap(), ..open() });
        assert_eq!(front.shard.violation(circuit(1), Refusal::MethodDenied, front.now), None);
        assert_eq!(front.shard.violation(circuit(1), Refusal::SlowHeaders, front.now), None);
        front.wait(wait);
        assert_eq!(front.shard.violation(circuit(1), Refusal::SlowBody, front.now), next);
    }
}

#[test]
fn a_table_full_of_open_circuits_takes_no_more() {
    let settings = CircuitSettings { table_size: 2.try_into().unwrap(), asks_puzzles: false, ..open() };
    let mut front = Front::new(&settings);
    assert_eq!([1, 2].map(|number| front.connect(number).word), [Refusal::Served; 2]);
    let refused = front.connect(3);
    assert_eq!((refused.word, refused.decision), (Refusal::TableFull, full()));
    let hold = front.holds.remove(0);
    front.close(&hold);
    assert_eq!(front.connect(3).word, Refusal::Served);
    assert!(front.shard.look(circuit(1), front.now).is_none());
}

#[test]
fn a_new_tor_frees_the_places_of_a_token() {
    let mut front = Front::new(&open());
    let until = front.now.after(Duration::from_secs(60));
    let of = |generation, number| CircuitId::new(TorGeneration(generation), NonZeroU32::new(number).unwrap());
    let mut show = |circuit| front.admission.present(TokenId(7), circuit, until, front.now).map(drop);
    assert_eq!(
        [1, 2, 3, 4].map(|number| show(of(1, number))),
        [Ok(()), Ok(()), Ok(()), Err(TokenRefused::InUse)]
    );
    front.admission.begin(TorGeneration(2));
    let mut show = |circuit| front.admission.present(TokenId(7), circuit, until, front.now).map(drop);
    assert_eq!(
        [1, 2, 3, 4].map(|number| show(of(2, number))),
        [Ok(()), Ok(()), Ok(()), Err(TokenRefused::InUse)]
    );
}

#[test]
fn an_examination_of_many_goes_in_slices() {
    let mut front = Front::new(&open());
    for number in 1..=2_500 {
        front.visit(number);
    }
    // Just past their age, when an examination is due.
    front.wait(600_100);
    let mut closed = Vec::new();
    while front.shard.next_deadline() <= front.now {
        closed.push(front.shard.advance(front.now).len());
    }
    assert_eq!(closed, [1_024, 1_024, 452]);
    assert_eq!(front.shard.next_deadline(), front.now.after(Duration::from_secs(120)));
}

#[test]
fn refused_newcomers_push_nobody_out() {
    let settings =
        CircuitSettings { table_size: 2.try_into().unwrap(), ..CircuitSettings::messenger(ladder()) };
    let settings = CircuitSettings { max_connections_per_second: 2.try_into().unwrap(), ..settings };
    let mut front = Front::new(&settings);
    assert_eq!(
        [1, 2, 3].map(|number| front.visit(number)),
        [Refusal::Served, Refusal::Served, Refusal::GlobalRate]
    );
    assert!(
        front.shard.look(circuit(1), front.now).is_some()
            && front.shard.look(circuit(3), front.now).is_none()
    );
    // Neither does a refusal count towards the circuit's 60 s.
    assert_eq!(front.visit(1), Refusal::GlobalRate);
    assert_eq!(front.shard.look(circuit(1), front.now).unwrap().connections_per_minute, 1);
}

#[test]
fn an_offence_ends_after_ten_quiet_seconds() {
    for (wait, word) in [(9_900, Refusal::ConnectionRate), (10_000, Refusal::Banned)] {
        let mut front =
            Front::new(&CircuitSettings { connections_per_10_seconds: 2.try_into().ok(), ..open() });
        assert_eq!([front.visit(1), front.visit(1)], [Refusal::Served, Refusal::ConnectionRate]);
        front.wait(wait);
        assert_eq!(front.visit(1), word);
    }
}

#[test]
fn nobody_overtakes_his_own_lane() {
    let mut front =
        Front::new(&CircuitSettings { max_concurrent_connections: 1.try_into().unwrap(), ..open() });
    assert_eq!([1, 2].map(|number| front.connect(number).action), [Action::Serve, Action::Queue]);
    // A place is free, but has not been given yet.
    let hold = front.holds.remove(0);
    front.close(&hold);
    assert_eq!(front.connect(3).action, Action::Queue);
    front.shard.promote(circuit(4), front.now);
    assert_eq!(front.connect(4).action, Action::Serve);
}

#[test]
fn tokens_in_use_are_bounded() {
    let mut front = Front::new(&open());
    let until = front.now.after(Duration::from_secs(60));
    let mut show = |token| front.admission.present(TokenId(token), circuit(1), until, front.now).map(drop);
    for token in 0..u128::from(super::MOST_TOKENS) {
        assert_eq!(show(token), Ok(()));
    }
    assert_eq!([show(1 << 20), show(0)], [Err(TokenRefused::TooMany), Ok(())]);
    front.now = until;
    let later = until.after(Duration::from_secs(60));
    assert!(front.admission.present(TokenId(1 << 20), circuit(1), later, front.now).is_ok());
}

#[test]
fn retry_after_of_connections_is_true() {
    let mut front = Front::new(&CircuitSettings { connections_per_10_seconds: 5.try_into().ok(), ..open() });
    for _ in 0..4 {
        front.visit(1);
        front.wait(2_000);
    }
    // The fifth and its successor differ: room for both comes a sub-bucket later than for one.
    let Decision::RateLimited { retry_after } = front.connect(1).decision else { panic!("not limited") };
    assert_eq!(retry_after, Duration::from_millis(6_000));
    front.wait(6_000);
    assert_eq!(front.visit(1), Refusal::Served);
}

#[test]
fn an_evicted_circuit_gives_its_token_back() {
    let settings = CircuitSettings { table_size: 1.try_into().unwrap(), ..open() };
    let mut front = Front::new(&settings);
    let until = front.now.after(Duration::from_secs(60));
    let ticket = front.admission.present(TokenId(7), circuit(1), until, front.now).unwrap();
    front.shard.bind(circuit(1), ticket, until, front.now);
    assert!(!front.shard.has_commands());
    front.visit(2);
    assert_eq!(front.shard.take_commands(), [Command::ReleaseToken { ticket, circuit: circuit(1) }]);
}

#[test]
fn health_leaves_the_banned_alone() {
    let mut front = Front::new(&open());
    front.shard.ban(circuit(1), Some(Duration::from_secs(3_600)), front.now);
    front.shard.take_commands();
    front.wait(700_000);
    assert_eq!(front.shard.advance(front.now), []);
}

/// Uses so many bytes, or so much CPU time.
fn uses(front: &mut Front, number: u32, bytes: u64, cpu: Duration) {
    let cpu_nanoseconds = u64::try_from(cpu.as_nanos()).unwrap();
    let usage = Usage { bytes_in: bytes / 3, bytes_out: bytes - bytes / 3, cpu_nanoseconds, latency: None };
    front.shard.report(circuit(number), usage, front.now);
}

#[test]
fn what_a_circuit_uses_is_bounded_and_comes_back() {
    let a_minute = |amount: u64| Some(Budget::a_minute(amount.try_into().unwrap()));
    let settings = CircuitSettings { bytes: a_minute(6_000), cpu: a_minute(600_000_000), ..open() };
    let none = Duration::ZERO;
    for (bytes, cpu, word) in [
        (5_999, none, Refusal::Served),
        (6_000, none, Refusal::ByteBudget),
        (0, Duration::from_micros(599_999), Refusal::Served),
        (0, Duration::from_millis(600), Refusal::CpuBudget),
    ] {
        let mut front = Front::new(&settings);
        assert_eq!(front.visit(1), Refusal::Served);
        uses(&mut front, 1, bytes, cpu);
        assert_eq!((front.visit(1), front.request(1).word), (word, word));
        assert_eq!(front.visit(2), Refusal::Served, "another circuit");
        if word == Refusal::Served {
            continue;
        }
        let Decision::RateLimited { retry_after } = front.request(1).decision else { panic!("{word:?}") };
        front.wait(u64::try_from(retry_after.as_millis()).unwrap());
        assert_eq!((front.visit(1), front.request(1).word), (Refusal::Served, Refusal::Served));
        // One burst of refusals is one violation.
        assert_eq!(front.shard.look(circuit(1), front.now).unwrap().violations, 1);
        // One that an operator promoted has no such limit.
        uses(&mut front, 1, bytes, cpu);
        assert_eq!(front.visit(1), word);
        front.shard.promote(circuit(1), front.now);
        assert_eq!((front.visit(1), front.request(1).word), (Refusal::Served, Refusal::Served));
    }
    let off = CircuitSettings { bytes: None, cpu: None, ..settings.clone() };
    let mut front = Front::new(&off);
    front.connect(1);
    uses(&mut front, 1, u64::MAX, Duration::from_secs(1_000_000));
    assert_eq!((front.visit(1), front.request(1).word), (Refusal::Served, Refusal::Served));
    // A limit that is a shadow refuses nobody.
    let shadow = [Refusal::ByteBudget, Refusal::CpuBudget].into_iter().collect();
    let mut front = Front::new(&CircuitSettings { shadow, ..settings });
    front.connect(1);
    uses(&mut front, 1, 1_000_000, Duration::from_secs(60));
    assert_eq!((front.visit(1), front.request(1).word), (Refusal::Served, Refusal::Served));
    assert_eq!(front.bans(), []);
    assert!(front.shard.would_refuse().all(|(_, count)| count.all > 0), "both were counted");
}

#[test]
fn who_stops_in_time_and_what_a_vip_used_is_no_offence() {
    let a_minute = Some(Budget::a_minute(6_000.try_into().unwrap()));
    let settings = CircuitSettings { bytes: a_minute, ban_threshold: 2.try_into().unwrap(), ..open() };
    // All at once, and then a connection that is open and still.
    let mut front = Front::new(&settings);
    front.connect(1);
    uses(&mut front, 1, 15_000, Duration::ZERO);
    for _ in 0..60 {
        front.wait(1_000);
        uses(&mut front, 1, 0, Duration::ZERO);
    }
    assert_eq!(front.bans(), []);
    assert_eq!(front.shard.look(circuit(1), front.now).unwrap().violations, 1);
    // A VIP, and what it is afterwards.
    let mut front = Front::new(&settings);
    front.connect(1);
    front.shard.promote(circuit(1), front.now);
    uses(&mut front, 1, 1_000_000, Duration::ZERO);
    front.shard.demote(circuit(1), front.now);
    for _ in 0..10 {
        front.wait(1_000);
        uses(&mut front, 1, 1, Duration::ZERO);
    }
    assert_eq!((front.bans(), front.visit(1)), (vec![], Refusal::Served));
}

#[test]
fn a_stream_that_goes_on_far_beyond_the_budget_is_banned_in_the_end() {
    let a_minute = Some(Budget::a_minute(6_000.try_into().unwrap()));
    let settings = CircuitSettings { bytes: a_minute, ban_threshold: 3.try_into().unwrap(), ..open() };
    // Twice the pace, which is three times in all before anything happens; and the pace itself, for ever.
    for (a_second, is_banned) in [(200, true), (100, false)] {
        let mut front = Front::new(&settings);
        front.connect(1);
        let mut banned_after = None;
        for second in 1..=300 {
            front.wait(1_000);
            uses(&mut front, 1, a_second, Duration::ZERO);
            if let [(300, Some(Refusal::ByteBudget))] = front.bans()[..] {
                banned_after = Some(second);
                break;
            }
        }
        assert_eq!(banned_after.is_some(), is_banned, "{a_second}");
        assert!(banned_after.is_none_or(|seconds| (120..130).contains(&seconds)), "{banned_after:?}");
    }
}
