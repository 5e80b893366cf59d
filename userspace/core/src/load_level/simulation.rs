//! A service on one virtual clock: visitors, attackers, tor, the front. The level is read every two seconds, and what it
//! demands acts back: attackers solve no puzzle, so that they get no places but those where they look at it, and do not lose
//! their way to tor.

use std::time::Duration;

use super::{
    Event, FrontReading, Level, LoadLevel, LoadSettings, TorReading,
    rows::{at, silent_tor},
};
use crate::id::TorGeneration;
use Level::{Calm, Heavy, Light, UnderAttack};

/// CPU time of tor's for one rendezvous circuit, and for one rejected introduction.
const CIRCUIT_CPU: Duration = Duration::from_millis(8);
const REJECTION_CPU: Duration = Duration::from_millis(2);
/// Seconds for which a visitor keeps a place.
const VISIT_SECONDS: u32 = 8;
/// Seconds for which a connection that solves no puzzle is held: as long as it may rest between requests.
const LOOK_SECONDS: u32 = 2;
const PLACES: u32 = 200;
const QUEUE: u32 = 300;

/// What comes in one second.
#[derive(Clone, Copy, Default)]
struct Traffic {
    visitors: u32,
    attackers: u32,
    forged: u32,
}

struct World {
    machine: LoadLevel,
    second: u64,
    generation: u64,
    is_tor_up: bool,
    /// Whether tor, and the host, tell of themselves.
    is_tor_read: bool,
    cpu: Duration,
    rendezvous: u64,
    rejections: u64,
    stalled: Duration,
    /// Connections that end after so many more seconds.
    places: [u32; VISIT_SECONDS as usize],
    queued: u32,
    /// Connections that look at a puzzle, likewise.
    challenged: [u32; LOOK_SECONDS as usize],
    /// Each change of the level.
    changes: Vec<(u64, Level)>,
    /// The highest rate that any reading told, in ten-thousandths.
    highest: u16,
}

impl World {
    fn new() -> Self {
        Self {
            machine: LoadLevel::new(LoadSettings::default()),
            second: 0,
            generation: 1,
            is_tor_up: true,
            is_tor_read: true,
            cpu: Duration::ZERO,
            rendezvous: 0,
            rejections: 0,
            stalled: Duration::ZERO,
            places: [0; VISIT_SECONDS as usize],
            queued: 0,
            challenged: [0; LOOK_SECONDS as usize],
            changes: Vec::new(),
            highest: 0,
        }
    }

    fn level(&self) -> Level {
        self.machine.desired().level
    }

    /// For so many seconds, what comes in each.
    fn run(&mut self, seconds: u64, traffic: impl Fn(u64) -> Traffic) -> Level {
        for turn in 0..seconds {
            self.pass(traffic(turn));
        }
        self.level()
    }

    fn pass(&mut self, traffic: Traffic) {
        self.second += 1;
        let before = self.level();
        self.places.rotate_left(1);
        if let Some(last) = self.places.last_mut() {
            *last = 0;
        }
        self.challenged.rotate_left(1);
        let mut challenged = 0;
        if self.is_tor_up {
            // Tor rejects first, then builds circuits until its second is over.
            let rejecting = REJECTION_CPU * traffic.forged;
            let room = Duration::from_secs(1).saturating_sub(rejecting).as_nanos() / CIRCUIT_CPU.as_nanos();
            let wanted = traffic.visitors + traffic.attackers;
            let built = wanted.min(u32::try_from(room).unwrap());
            let spent = (rejecting + CIRCUIT_CPU * built).min(Duration::from_secs(1));
            self.cpu += spent;
            self.stalled += spent / 2;
            self.rejections += u64::from(traffic.forged);
            self.rendezvous += u64::from(built);
            let visitors = built * traffic.visitors / wanted.max(1);
            let is_kept_out =
                self.machine.desired().load.difficulty > 8 && self.machine.desired().asks_puzzles;
            let attackers = if is_kept_out { 0 } else { built - visitors };
            challenged = built - visitors - attackers;
            self.queued = (self.queued + visitors + attackers).min(QUEUE);
        }
        if let Some(last) = self.challenged.last_mut() {
            *last = challenged;
        }
        let free = PLACES - self.places.iter().sum::<u32>();
        let served = free.min(self.queued);
        self.queued -= served;
        if let Some(last) = self.places.last_mut() {
            *last = served;
        }
        let now = at(self.second);
        self.machine.advance(now);
        if self.second.is_multiple_of(2) {
            self.read().into_iter().for_each(|event| self.machine.handle(event, now));
        }
        let level = self.level();
        if level != before {
            self.changes.push((self.second, level));
        }
        for ground in self.machine.desired().grounds {
            if !matches!(ground.input.kind(), super::Kind::Front) {
                self.highest = self.highest.max(ground.ratio.ten_thousandths());
            }
        }
    }

    fn read(&self) -> Vec<Event> {
        let front = FrontReading {
            active: self.places.iter().sum(),
            most_active: PLACES,
            challenged: self.challenged.iter().sum(),
            queued: self.queued,
            most_queued: QUEUE,
            // Places come free at 25 a second.
            wait: Duration::from_secs(u64::from(self.queued * VISIT_SECONDS / PLACES)),
            most_wait: Duration::from_secs(5),
        };
        let tor = TorReading {
            generation: TorGeneration(self.generation),
            cpu: Some(self.cpu),
            rendezvous: Some(self.rendezvous),
            rejections: Some(self.rejections),
            ..silent_tor(1)
        };
        let mut events = vec![Event::Front(front)];
        if self.is_tor_read {
            events.push(Event::CpuStalled(self.stalled));
        }
        if self.is_tor_up && self.is_tor_read {
            events.push(Event::Tor(tor));
        }
        events
    }

    /// Another tor process, which counts from zero.
    fn restart_tor(&mut self) {
        self.generation += 1;
        (self.is_tor_up, self.cpu, self.rendezvous, self.rejections) = (true, Duration::ZERO, 0, 0);
    }

    /// As a reload does it.
    fn zero_metrics(&mut self) {
        (self.rendezvous, self.rejections) = (0, 0);
    }

    /// The levels that it came to, in their order.
    fn levels(&self) -> Vec<Level> {
        self.changes.iter().map(|(_, level)| *level).collect()
    }
}

const fn usual(_: u64) -> Traffic {
    Traffic { visitors: 5, attackers: 0, forged: 0 }
}

const fn attack(_: u64) -> Traffic {
    Traffic { visitors: 5, attackers: 200, forged: 0 }
}

#[test]
fn an_attack_comes_stays_and_goes() {
    let mut world = World::new();
    assert_eq!(world.run(600, usual), Calm);
    assert_eq!(world.changes, []);
    // Four more a second with each second.
    world.run(50, |second| Traffic { attackers: 4 * u32::try_from(second).unwrap(), ..usual(second) });
    assert_eq!(world.level(), UnderAttack);
    assert!(world.levels().is_sorted(), "{:?}", world.changes);
    let risen = world.changes.len();
    // Puzzles keep the attackers off the places, and tor still tells that they are there.
    assert_eq!(world.run(1_800, attack), UnderAttack);
    assert_eq!(world.changes.len(), risen, "{:?}", world.changes);
    let end = world.second;
    assert_eq!(world.run(600, usual), Calm);
    let falls = &world.changes[risen..];
    assert_eq!(
        falls.iter().map(|(_, level)| *level).collect::<Vec<_>>(),
        [Heavy, Level::Moderate, Light, Calm]
    );
    for (turn, (second, _)) in (1..).zip(falls) {
        // A dwell each, and before the first the samples that show it: three of two seconds.
        assert!((60 * turn..60 * turn + 8).contains(&(second - end)), "{falls:?}");
    }
}

#[test]
fn a_sudden_attack_is_met_within_ten_seconds_of_its_first_reading() {
    let mut world = World::new();
    world.run(100, usual);
    world.run(10, attack);
    assert!(world.level() >= Heavy, "{:?}", world.changes);
    world.run(5, attack);
    assert_eq!(world.level(), UnderAttack, "{:?}", world.changes);
}

#[test]
fn an_attack_that_the_front_alone_sees_stays_as_long_as_it_looks_at_puzzles() {
    let mut world = World { is_tor_read: false, ..World::new() };
    world.run(100, usual);
    assert_eq!(world.run(100, attack), Heavy, "{:?}", world.changes);
    let risen = world.changes.len();
    assert_eq!(world.run(1_800, attack), Heavy);
    assert_eq!(world.changes.len(), risen, "{:?}", world.changes);
    assert_eq!(world.run(400, usual), Calm);
}

#[test]
fn a_crowd_of_visitors_is_heavy_load_and_no_attack() {
    let mut world = World::new();
    world.run(100, usual);
    // Forty a second, for whom there are 25 places a second: they fill the places and the queue.
    world.run(300, |_| Traffic { visitors: 40, ..Traffic::default() });
    assert_eq!(world.level(), Heavy);
    assert!(world.levels().is_sorted() && !world.levels().contains(&UnderAttack), "{:?}", world.changes);
    assert_eq!(world.run(400, usual), Calm);
}

#[test]
fn a_moments_crowd_changes_nothing() {
    let mut world = World::new();
    world.run(100, usual);
    // Everybody comes within two seconds: tor tells of 45 circuits a second once, and two thirds of the places are taken.
    world.run(2, |_| Traffic { visitors: 45, ..Traffic::default() });
    assert_eq!(world.run(300, usual), Calm);
    assert_eq!(world.changes, []);
    assert_eq!(world.highest, 1_000, "of tor's inputs only what lasts is told: 5 circuits of 50 a second");
}

#[test]
fn forged_introductions_are_seen_without_a_stream() {
    let mut world = World::new();
    world.run(100, usual);
    world.run(60, |_| Traffic { forged: 480, ..usual(0) });
    assert_eq!(world.level(), UnderAttack);
}

#[test]
fn an_attack_survives_a_restart_of_tor() {
    let mut world = World::new();
    world.run(100, usual);
    world.run(100, attack);
    let risen = world.changes.len();
    world.is_tor_up = false;
    world.run(30, attack);
    world.restart_tor();
    assert_eq!(world.run(300, attack), UnderAttack);
    assert_eq!(world.changes.len(), risen, "{:?}", world.changes);
    // One that stays away is no reason to stay.
    world.is_tor_up = false;
    assert_eq!(world.run(400, usual), Calm);
}

#[test]
fn restarts_and_reloads_of_tor_are_no_load() {
    let mut world = World::new();
    for turn in 0..60 {
        world.run(7 + turn % 5, usual);
        if turn % 3 == 0 {
            world.restart_tor();
        } else {
            world.zero_metrics();
        }
    }
    assert_eq!(world.changes, []);
    // Five a second of 50 that it can bear, and as much CPU.
    assert!(world.highest <= 1_100, "{}", world.highest);
}

#[test]
fn a_reload_in_an_attack_changes_nothing() {
    let mut world = World::new();
    world.run(100, usual);
    world.run(100, attack);
    let risen = world.changes.len();
    for _ in 0..20 {
        world.zero_metrics();
        world.run(15, attack);
    }
    assert_eq!((world.level(), world.changes.len()), (UnderAttack, risen));
}

#[test]
fn pulses_do_not_wear_the_defence_down() {
    let mut world = World::new();
    world.run(100, usual);
    world.run(60, attack);
    let risen = world.changes.len();
    // Twenty seconds of attack in each minute.
    world.run(1_200, |second| if second % 60 < 20 { attack(second) } else { usual(second) });
    assert_eq!((world.level(), world.changes.len()), (UnderAttack, risen), "{:?}", world.changes);
}
