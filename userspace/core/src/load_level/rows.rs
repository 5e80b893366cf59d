//! The machine's table, as rows.

use std::time::Duration;

use super::{
    Desired, Event, FrontReading, Ground, Input, Kind, Level, LoadLevel, LoadSettings, TorReading, Word,
    meter::FEWEST,
};
use crate::{
    circuit_policy::Ratio,
    id::TorGeneration,
    puzzle_level::{Pages, PuzzleSettings, Puzzles},
    time::Monotime,
};
use Level::{Calm, Heavy, Light, Moderate, UnderAttack};

/// What is read at a second.
type Growing<'a> = &'a dyn Fn(u64) -> Event;

/// What is fed and asked here: one reading a second, in ten-thousandths.
pub(super) struct Bench {
    pub(super) machine: LoadLevel,
    pub(super) second: u64,
}

pub(super) fn settings() -> LoadSettings {
    let most_puzzle_queue = LoadSettings::default().most_puzzle_queue.saturating_add(9_875);
    LoadSettings { most_puzzle_queue, ..LoadSettings::default() }
}

pub(super) fn at(seconds: u64) -> Monotime {
    Monotime(seconds * 1_000_000_000)
}

pub(super) fn connections(ratio: u32) -> Event {
    Event::Front(FrontReading {
        active: ratio,
        most_active: 10_000,
        challenged: 0,
        queued: 0,
        most_queued: 300,
        wait: Duration::ZERO,
        most_wait: Duration::from_secs(5),
    })
}

pub(super) fn silent_tor(generation: u64) -> TorReading {
    TorReading {
        generation: TorGeneration(generation),
        cpu: None,
        rendezvous: None,
        rejections: None,
        puzzle_queue: None,
    }
}

pub(super) fn puzzle_queue(length: i64) -> Event {
    Event::Tor(TorReading { puzzle_queue: Some(length), ..silent_tor(1) })
}

impl Bench {
    pub(super) fn new() -> Self {
        Self { machine: LoadLevel::new(settings()), second: 0 }
    }

    /// A second passes, then the front and tor's queue are read.
    pub(super) fn feed(&mut self, front: u32, tor: u32) -> Level {
        self.second += 1;
        self.machine.handle(connections(front), at(self.second));
        self.machine.handle(puzzle_queue(tor.into()), at(self.second));
        self.machine.desired().level
    }

    fn feed_for(&mut self, seconds: u64, front: u32, tor: u32) -> Level {
        (0..seconds).for_each(|_| _ = self.feed(front, tor));
        self.machine.desired().level
    }

    /// At this level for long.
    fn at_level(level: Level) -> Self {
        let mut bench = Self::new();
        let (front, tor) = match level {
            Calm => (0, 0),
            Light => (7_500, 0),
            Moderate => (8_334, 0),
            Heavy => (9_167, 0),
            UnderAttack => (10_000, 10_000),
        };
        assert_eq!(bench.feed_for(30, front, tor), level);
        bench
    }

    fn handle(&mut self, event: Event) -> Desired {
        self.machine.handle(event, at(self.second));
        self.machine.desired()
    }
}

/// From a level, with a load at front and tor, the level after 10 s and after 10 minutes.
#[test]
fn levels_begin_and_end_where_the_settings_say() {
    for (from, front, tor, soon, late) in [
        (Calm, 7_499, 0, Calm, Calm),
        (Calm, 7_500, 0, Light, Light),
        (Calm, 8_333, 0, Light, Light),
        (Calm, 8_334, 0, Moderate, Moderate),
        (Calm, 9_166, 0, Moderate, Moderate),
        (Calm, 9_167, 0, Heavy, Heavy),
        // Full load needs a witness, and is no worse for the place where it is seen.
        (Calm, 9_999, 9_999, Heavy, Heavy),
        (Calm, 10_000, 0, Heavy, Heavy),
        (Calm, 0, 10_000, Heavy, Heavy),
        (Calm, 10_000, 9_166, Heavy, Heavy),
        (Calm, 10_000, 9_167, UnderAttack, UnderAttack),
        (Calm, 9_167, 10_000, UnderAttack, UnderAttack),
        (Light, 10_000, 10_000, UnderAttack, UnderAttack),
        (Moderate, 9_167, 0, Heavy, Heavy),
        (Light, 6_000, 0, Light, Light),
        (Light, 5_999, 0, Light, Calm),
        (Moderate, 6_834, 0, Moderate, Moderate),
        (Moderate, 6_833, 0, Moderate, Light),
        (Heavy, 7_667, 0, Heavy, Heavy),
        (Heavy, 7_666, 0, Heavy, Moderate),
        (UnderAttack, 8_500, 0, UnderAttack, UnderAttack),
        (UnderAttack, 0, 8_500, UnderAttack, UnderAttack),
        (UnderAttack, 8_499, 8_499, UnderAttack, Heavy),
        (UnderAttack, 0, 0, UnderAttack, Calm),
    ] {
        let mut bench = Bench::at_level(from);
        let levels = [bench.feed_for(10, front, tor), bench.feed_for(590, front, tor)];
        assert_eq!(levels, [soon, late], "{from:?} {front} {tor}");
    }
}

#[test]
fn a_level_rises_at_the_third_sample_and_falls_by_one_a_minute() {
    let mut bench = Bench::new();
    let levels: Vec<Level> = (0..8).map(|_| bench.feed(10_000, 10_000)).collect();
    // The front is read a moment before its witness.
    assert_eq!(levels, [Calm, Calm, Heavy, Heavy, Heavy, Heavy, Heavy, UnderAttack]);
    assert_eq!(FEWEST, 3);
    // In the last five samples the third calm one is the majority.
    bench.feed_for(30, 10_000, 10_000);
    let end = bench.second;
    let mut changes = Vec::new();
    let mut level = UnderAttack;
    for _ in 0..400 {
        let next = bench.feed(0, 0);
        if next != level {
            changes.push((bench.second - end, next));
            level = next;
        }
    }
    assert_eq!(changes, [(63, Heavy), (123, Moderate), (183, Light), (243, Calm)]);
}

#[test]
fn a_rise_keeps_its_distance_from_the_change_before() {
    let mut bench = Bench::new();
    assert_eq!(bench.feed_for(3, 7_500, 0), Light);
    let mut rises = Vec::new();
    for _ in 0..6 {
        rises.push(bench.feed(9_167, 0));
    }
    // Known to be heavy from the third sample on; five seconds after the rise at second 3 it is told.
    assert_eq!(rises, [Light, Light, Light, Light, Heavy, Heavy]);
    // No reading is needed for it, and the machine says when it is due.
    let mut bench = Bench::new();
    bench.feed_for(3, 7_500, 0);
    bench.feed_for(3, 9_167, 0);
    assert_eq!(bench.machine.next_deadline(), Some(at(8)));
    bench.machine.advance(Monotime(at(8).0 - 1));
    assert_eq!(bench.machine.desired().level, Light);
    bench.machine.advance(at(8));
    assert_eq!(bench.machine.desired().level, Heavy);
}

#[test]
fn a_fall_begins_again_when_the_load_comes_back() {
    let mut bench = Bench::at_level(Heavy);
    assert_eq!(bench.feed_for(59, 0, 0), Heavy);
    assert_eq!(bench.feed_for(3, 7_667, 0), Heavy);
    assert_eq!(bench.feed_for(62, 0, 0), Heavy);
    assert_eq!(bench.feed(0, 0), Moderate);
}

#[test]
fn other_settings_are_in_force_at_once_and_not_before() {
    let puzzles = PuzzleSettings { max: 12, ..PuzzleSettings::default() };
    let settings = LoadSettings { activation: Ratio::HALF, puzzles, ..settings() };
    let mut bench = Bench::at_level(Light);
    bench.machine.set_settings(settings, at(bench.second));
    let desired = bench.machine.desired();
    assert_eq!((desired.level, desired.load.difficulty), (Moderate, 12));
    // Long after the last sample: it had aged out before.
    let mut bench = Bench::at_level(Light);
    bench.machine.set_settings(settings, at(bench.second + 70));
    assert_eq!(bench.machine.desired().level, Light);
}

#[test]
fn each_fall_waits_for_its_own_time() {
    // Heavy until 30; then a reading every six seconds, which the next lower level bears.
    let mut bench = Bench::at_level(Heavy);
    for second in (36..=102).step_by(6) {
        bench.second = second - 1;
        bench.feed(7_666, 0);
    }
    // Below heavy since 48. At 110 two samples are left, which is to know nothing: below moderate from then on.
    for (second, level) in [(107, Heavy), (108, Moderate), (109, Moderate), (169, Moderate), (170, Light)] {
        bench.machine.advance(at(second));
        assert_eq!(bench.machine.desired().level, level, "{second}");
    }
}

#[test]
fn an_input_at_the_end_of_a_level_holds_it() {
    for (ratio, holds_level) in [(7_667, true), (7_666, false)] {
        let mut bench = Bench::at_level(Heavy);
        bench.feed_for(10, ratio, 0);
        let desired = bench.machine.desired();
        let ground = desired.grounds.iter().find(|ground| ground.input == Input::Connections);
        assert_eq!(ground.map(|ground| ground.holds_level), Some(holds_level));
    }
}

#[test]
fn who_looks_at_a_puzzle_holds_the_level_that_asks() {
    for (challenged, level) in [(7_667, Heavy), (7_666, Moderate)] {
        let mut bench = Bench::at_level(Heavy);
        for _ in 0..70 {
            bench.second += 1;
            let Event::Front(front) = connections(0) else { panic!("a reading of the front") };
            bench.machine.handle(Event::Front(FrontReading { challenged, ..front }), at(bench.second));
        }
        let desired = bench.machine.desired();
        assert_eq!(desired.level, level, "{challenged}");
        let ground = desired.grounds.iter().find(|ground| ground.input == Input::Challenged);
        // What does not hold heavy load holds moderate load.
        assert_eq!(ground.map(|ground| ground.holds_level), Some(true));
    }
}

/// Each input alone, growing or standing for 10 s: its ratio, and the level.
#[test]
fn each_input_is_a_share_of_what_it_can_bear() {
    let tor = silent_tor(1);
    let front = FrontReading {
        active: 0,
        most_active: 200,
        challenged: 0,
        queued: 0,
        most_queued: 300,
        wait: Duration::ZERO,
        most_wait: Duration::from_secs(5),
    };
    let second = |turn: u64, milliseconds: u64| Some(Duration::from_millis(turn * milliseconds));
    let rows: [(Input, Growing<'_>, u16, Level); 20] = [
        (Input::TorCpu, &|turn| Event::Tor(TorReading { cpu: second(turn, 450), ..tor }), 5_000, Calm),
        (Input::TorCpu, &|turn| Event::Tor(TorReading { cpu: second(turn, 675), ..tor }), 7_500, Light),
        (Input::TorCpu, &|turn| Event::Tor(TorReading { cpu: second(turn, 1_900), ..tor }), 10_000, Heavy),
        (
            Input::Rendezvous,
            &|turn| Event::Tor(TorReading { rendezvous: Some(25 * turn), ..tor }),
            5_000,
            Calm,
        ),
        (
            Input::Rendezvous,
            &|turn| Event::Tor(TorReading { rendezvous: Some(50 * turn), ..tor }),
            10_000,
            Heavy,
        ),
        (
            Input::Rejections,
            &|turn| Event::Tor(TorReading { rejections: Some(40 * turn), ..tor }),
            8_000,
            Light,
        ),
        (
            Input::Rejections,
            &|turn| Event::Tor(TorReading { rejections: Some(51 * turn), ..tor }),
            10_000,
            Heavy,
        ),
        (Input::PuzzleQueue, &|_| Event::Tor(TorReading { puzzle_queue: Some(0), ..tor }), 0, Calm),
        (Input::PuzzleQueue, &|_| Event::Tor(TorReading { puzzle_queue: Some(100), ..tor }), 8_000, Light),
        (Input::Queue, &|_| Event::Front(FrontReading { queued: 150, ..front }), 5_000, Calm),
        (Input::Queue, &|_| Event::Front(FrontReading { queued: 300, ..front }), 10_000, Heavy),
        (
            Input::Wait,
            &|_| Event::Front(FrontReading { wait: Duration::from_secs(4), ..front }),
            8_000,
            Light,
        ),
        (
            Input::Wait,
            &|_| Event::Front(FrontReading { wait: Duration::from_secs(9), ..front }),
            10_000,
            Heavy,
        ),
        (Input::Connections, &|_| Event::Front(FrontReading { active: 150, ..front }), 7_500, Light),
        (Input::Connections, &|_| Event::Front(FrontReading { active: 200, ..front }), 10_000, Heavy),
        // Lowered by a reload while connections are open.
        (
            Input::Connections,
            &|_| Event::Front(FrontReading { active: 200, most_active: 50, ..front }),
            10_000,
            Heavy,
        ),
        (Input::Challenged, &|_| Event::Front(FrontReading { challenged: 150, ..front }), 7_500, Light),
        (Input::Challenged, &|_| Event::Front(FrontReading { challenged: 500, ..front }), 10_000, Heavy),
        (Input::CpuPressure, &|turn| Event::CpuStalled(Duration::from_millis(400 * turn)), 5_000, Calm),
        (Input::CpuPressure, &|turn| Event::CpuStalled(Duration::from_millis(1_000 * turn)), 10_000, Calm),
    ];
    for (input, event, ratio, level) in rows {
        let mut machine = LoadLevel::new(LoadSettings::default());
        for turn in 1..=10 {
            machine.handle(event(turn), at(turn));
        }
        let desired = machine.desired();
        let ground = desired.grounds.iter().find(|ground| ground.input == input);
        let holds_level = level > Calm && input.kind() != Kind::Host;
        let expected = Ground { input, ratio: Ratio::share(ratio.into(), 10_000), holds_level };
        assert_eq!(ground, Some(&expected), "{input:?}");
        assert_eq!(desired.level, level, "{input:?} {ratio}");
        // Whatever else that reading tells is at rest; what it does not tell is not known.
        for other in desired.grounds.iter().filter(|ground| ground.input != input) {
            assert_eq!((other.input.kind(), other.ratio), (input.kind(), Ratio::NONE));
        }
        let of_front = desired.grounds.iter().filter(|ground| ground.input.kind() == Kind::Front).count();
        assert_eq!(of_front, if input.kind() == Kind::Front { 4 } else { 0 });
    }
}

#[test]
fn the_hosts_pressure_is_a_witness() {
    let mut bench = Bench::new();
    for second in 1..=10 {
        bench.machine.handle(Event::CpuStalled(Duration::from_millis(735 * second)), at(second));
        bench.feed(10_000, 0);
    }
    // 735 of 800 is 0.91875: heavy load.
    let desired = bench.machine.desired();
    assert_eq!(desired.level, UnderAttack);
    let holding: Vec<Input> =
        desired.grounds.iter().filter(|ground| ground.holds_level).map(|ground| ground.input).collect();
    assert_eq!(holding, [Input::Connections]);
}

#[test]
fn another_tor_begins_again() {
    let reading = |generation, rendezvous| {
        Event::Tor(TorReading {
            rendezvous: Some(rendezvous),
            puzzle_queue: Some(3),
            ..silent_tor(generation)
        })
    };
    let mut bench = Bench::new();
    let feed = |bench: &mut Bench, generation, counts: &[u64]| {
        for count in counts {
            bench.second += 1;
            bench.handle(reading(generation, *count));
        }
        let grounds = bench.machine.desired().grounds;
        grounds.iter().map(|ground| (ground.input, ground.ratio.ten_thousandths())).collect::<Vec<_>>()
    };
    let known = [(Input::Rendezvous, 2_000), (Input::PuzzleQueue, 3)];
    assert_eq!(feed(&mut bench, 7, &[100, 110, 120, 130]), known);
    // A new process: nothing is known until it has told three times.
    assert_eq!(feed(&mut bench, 8, &[1_000, 1_020]), []);
    assert_eq!(feed(&mut bench, 8, &[1_040]), [(Input::PuzzleQueue, 3)], "a rate is one behind");
    assert_eq!(feed(&mut bench, 8, &[1_060]), [(Input::Rendezvous, 4_000), (Input::PuzzleQueue, 3)]);
    // The old one's last words come late.
    assert_eq!(feed(&mut bench, 7, &[140, 9_000]), [(Input::Rendezvous, 4_000), (Input::PuzzleQueue, 3)]);
    // A reload of the same process: one reading tells nothing, and a queue below zero nothing at all.
    bench.second += 1;
    bench.handle(Event::Tor(TorReading { rendezvous: Some(0), puzzle_queue: Some(-1), ..silent_tor(8) }));
    assert_eq!(feed(&mut bench, 8, &[10, 20, 30]), [(Input::Rendezvous, 2_000), (Input::PuzzleQueue, 3)]);
}

#[test]
fn what_a_level_demands() {
    let all = Ratio::ALL;
    for (level, ratio, asks, difficulty, page, waits, share, tightens) in [
        (Calm, 0, false, 8, 8, false, all, false),
        (Light, 7_500, true, 8, 8, false, all, false),
        (Moderate, 8_334, true, 16, 16, false, all, false),
        (Heavy, 9_167, true, 20, 17, true, Ratio::THREE_QUARTERS, true),
        (UnderAttack, 10_000, true, 24, 17, true, Ratio::HALF, true),
    ] {
        let desired = Bench::new().handle(Event::Pin { level, until: None });
        assert_eq!(desired.level, level);
        assert_eq!(desired.word, Word::Operator { until: None });
        assert_eq!((desired.measured, desired.grounds.len()), (Calm, 0));
        assert_eq!(desired.load.ratio.ten_thousandths(), ratio, "{level:?}");
        assert_eq!(desired.load.difficulty, difficulty);
        assert_eq!(desired.asks_puzzles, asks);
        assert_eq!(desired.puzzles, Puzzles { difficulty, page_difficulty: page, page_waits: waits });
        assert_eq!((desired.front_share, desired.tightens_ports), (share, tightens));
    }
    // A ratio goes with the load as far as the level covers it.
    for (level, covered) in [(Calm, 7_499), (Light, 8_000), (Heavy, 9_167)] {
        let mut bench = Bench::new();
        bench.feed_for(4, 8_000, 0);
        let desired = bench.handle(Event::Pin { level, until: None });
        assert_eq!((desired.load.ratio.ten_thousandths(), desired.measured), (covered, Light));
    }
}

#[test]
fn an_activation_of_nothing_asks_always() {
    let settings = LoadSettings { activation: Ratio::NONE, ..LoadSettings::default() };
    let mut machine = LoadLevel::new(settings);
    assert!(machine.desired().asks_puzzles);
    machine.handle(Event::AttackMode(false), at(1));
    assert_eq!((machine.desired().level, machine.desired().asks_puzzles), (Light, true));
    // And one of all asks only at full load.
    let settings = LoadSettings { activation: Ratio::ALL, ..settings };
    machine.set_settings(settings, at(10));
    let mut asked = Vec::new();
    for (second, ratio) in (10..).zip([9_999, 9_999, 9_999, 10_000, 10_000, 10_000]) {
        machine.handle(connections(ratio), at(second));
        machine.handle(puzzle_queue(ratio.into()), at(second));
        asked.push(machine.desired().measured);
    }
    // At first the light level of the old settings still lasts.
    assert_eq!(asked, [Light, Light, Light, Light, Light, UnderAttack]);
}

#[test]
fn the_operators_word_is_above_what_is_measured_and_attack_mode_is_heavy_at_least() {
    let mut bench = Bench::at_level(Moderate);
    let now = bench.second;
    let word = |desired: Desired| (desired.level, desired.word, desired.measured);
    assert_eq!(word(bench.handle(Event::AttackMode(true))), (Heavy, Word::AttackMode, Moderate));
    let until = Some(at(now + 30));
    let pinned = bench.handle(Event::Pin { level: Light, until });
    assert_eq!(word(pinned), (Heavy, Word::AttackMode, Moderate), "a lower pin rests");
    let without = bench.handle(Event::AttackMode(false));
    assert_eq!(word(without), (Light, Word::Operator { until }, Moderate), "and is back once it ends");
    assert_eq!(word(bench.handle(Event::AttackMode(true))).0, Heavy);
    assert_eq!(bench.machine.next_deadline(), Some(at(now + 16)), "the oldest sample's end");
    for level in [Heavy, UnderAttack] {
        let until = Some(at(now + 30));
        let expected = (level, Word::Operator { until }, Moderate);
        assert_eq!(word(bench.handle(Event::Pin { level, until })), expected, "a pin that is as high counts");
    }
    bench.machine.advance(Monotime(at(now + 30).0 - 1));
    assert_eq!(bench.machine.desired().level, UnderAttack);
    bench.machine.advance(at(now + 30));
    assert_eq!(bench.machine.desired().level, Heavy);
    // A later pin takes an earlier one's place; one in the past is none.
    bench.handle(Event::Pin { level: UnderAttack, until: None });
    assert_eq!(word(bench.handle(Event::Pin { level: Calm, until: None })).0, Heavy);
    assert_eq!(word(bench.handle(Event::Unpin)), (Heavy, Word::AttackMode, Moderate));
    assert_eq!(word(bench.handle(Event::Pin { level: Calm, until: Some(at(1)) })).0, Heavy);
    assert_eq!(word(bench.handle(Event::AttackMode(false))), (Moderate, Word::Measured, Moderate));
    // An earlier time is taken for the latest, at which this pin is over.
    bench.machine.handle(Event::Pin { level: UnderAttack, until: Some(at(now + 1)) }, at(1));
    assert_eq!(bench.machine.desired().level, Moderate);
    // From heavy on, the inputs have the word.
    let mut bench = Bench::at_level(Heavy);
    assert_eq!(word(bench.handle(Event::AttackMode(true))), (Heavy, Word::Measured, Heavy));
    let mut bench = Bench::at_level(UnderAttack);
    assert_eq!(word(bench.handle(Event::AttackMode(true))), (UnderAttack, Word::Measured, UnderAttack));
    // Also those that a resting pin held down before.
    let until = None;
    let pinned = bench.handle(Event::Pin { level: Calm, until });
    assert_eq!(word(pinned), (UnderAttack, Word::Measured, UnderAttack));
    let without = bench.handle(Event::AttackMode(false));
    assert_eq!(word(without), (Calm, Word::Operator { until }, UnderAttack));
}

#[test]
fn a_crowd_raises_what_is_measured_by_one_and_no_other_word() {
    let word = |desired: Desired| (desired.level, desired.word, desired.measured);
    // Measured, raised up to, in force.
    for (measured, most, expected) in [
        (Calm, Light, (Light, Word::Crowd, Calm)),
        (Calm, Moderate, (Light, Word::Crowd, Calm)),
        (Light, Light, (Light, Word::Measured, Light)),
        (Light, Moderate, (Moderate, Word::Crowd, Light)),
        (Heavy, Moderate, (Heavy, Word::Measured, Heavy)),
        (UnderAttack, UnderAttack, (UnderAttack, Word::Measured, UnderAttack)),
    ] {
        let mut bench = Bench::at_level(measured);
        assert_eq!(word(bench.handle(Event::Crowd(Some(most)))), expected);
        assert_eq!(word(bench.handle(Event::Crowd(None))), (measured, Word::Measured, measured));
    }
    let mut bench = Bench::at_level(Calm);
    bench.handle(Event::Crowd(Some(Light)));
    assert_eq!(word(bench.handle(Event::AttackMode(true))), (Heavy, Word::AttackMode, Calm));
    bench.handle(Event::AttackMode(false));
    let pinned = bench.handle(Event::Pin { level: Calm, until: None });
    assert_eq!(word(pinned), (Calm, Word::Operator { until: None }, Calm));
}

#[test]
fn pages_ask_less_at_the_level_in_force() {
    let mut bench = Bench::at_level(Calm);
    bench.handle(Event::Pin { level: Moderate, until: None });
    bench.handle(Event::Pages(Pages { issued: 0, redeemed: 0 }));
    bench.second += 60;
    let desired = bench.handle(Event::Pages(Pages { issued: 100, redeemed: 10 }));
    assert_eq!((desired.load.difficulty, desired.puzzles.page_difficulty), (16, 15));
}

#[test]
fn words_are_distinct() {
    let levels = Level::ALL.map(Level::name);
    assert_eq!(levels, ["calm", "light", "moderate", "heavy", "under_attack"]);
    let inputs = Input::ALL.map(Input::name);
    let expected = [
        "tor_cpu",
        "rendezvous",
        "rejections",
        "puzzle_queue",
        "queue",
        "wait",
        "connections",
        "challenged",
        "cpu_pressure",
    ];
    assert_eq!(inputs, expected);
    assert!(Level::ALL.is_sorted() && Level::ALL.windows(2).all(|pair| pair[0].higher() == Some(pair[1])));
    assert!(Level::ALL.windows(2).all(|pair| pair[1].lower() == pair[0]));
    assert_eq!((Calm.lower(), UnderAttack.higher()), (Calm, None));
}
