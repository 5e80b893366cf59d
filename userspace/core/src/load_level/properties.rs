//! What must hold for all sequences of readings.

use std::time::Duration;

use proptest::prelude::*;

use super::{
    Event, FrontReading, Level, LoadLevel, TorReading, Word,
    meter::{KEPT, LIFE},
    rows::{at, connections, puzzle_queue, settings, silent_tor},
};
use crate::{false_positives::Holders, id::TorGeneration, puzzle_level::Pages, time::Monotime};

/// An event, and the milliseconds that pass before it.
type Turn = (u64, Event);

fn after(now: Monotime, milliseconds: u64) -> Monotime {
    now.after(Duration::from_millis(milliseconds))
}

fn reading() -> impl Strategy<Value = Event> {
    let tor = (1u64..4, any::<[bool; 4]>(), 0u64..2_000, -2i64..12_000).prop_map(
        |(generation, known, count, queue)| {
            let [cpu, rendezvous, rejections, puzzle_queue] = known;
            Event::Tor(TorReading {
                generation: TorGeneration(generation),
                cpu: cpu.then_some(Duration::from_millis(count * 7)),
                rendezvous: rendezvous.then_some(count),
                rejections: rejections.then_some(count),
                puzzle_queue: puzzle_queue.then_some(queue),
            })
        },
    );
    let front =
        (0u32..300, 0u32..600, 0u32..400, 0u64..7_000).prop_map(|(active, challenged, queued, wait)| {
            Event::Front(FrontReading {
                active,
                most_active: 200,
                challenged,
                queued,
                most_queued: 300,
                wait: Duration::from_millis(wait),
                most_wait: Duration::from_secs(5),
            })
        });
    prop_oneof![
        4 => tor,
        4 => front,
        // Whole states, so that higher levels are common and last.
        4 => (0u32..=10_000).prop_map(connections),
        4 => (0i64..=10_000).prop_map(puzzle_queue),
        1 => (0u64..1_000).prop_map(|seconds| Event::CpuStalled(Duration::from_secs(seconds))),
        1 => (0u64..500, 0u64..500).prop_map(|(seen, refused)| Event::Holders(Holders { seen, refused })),
        1 => (0u64..500, 0u64..500).prop_map(|(issued, redeemed)| Event::Pages(Pages { issued, redeemed })),
    ]
}

fn level() -> impl Strategy<Value = Level> {
    (0..Level::ALL.len()).prop_map(|index| Level::ALL[index])
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        16 => reading(),
        1 => (level(), prop::option::of(0u64..400)).prop_map(|(level, until)| Event::Pin { level, until: until.map(at) }),
        1 => Just(Event::Unpin),
        1 => any::<bool>().prop_map(Event::AttackMode),
        1 => prop::option::of(level()).prop_map(Event::Crowd),
    ]
}

fn turns(event: impl Strategy<Value = Event>) -> impl Strategy<Value = Vec<Turn>> {
    prop::collection::vec((prop_oneof![8 => 0u64..3_000, 1 => 0u64..90_000], event), 1..150)
}

/// A load that lasts: each input on its own, in ten-thousandths of what it can bear.
#[derive(Clone, Copy, Debug)]
struct Steady {
    cpu: u32,
    rendezvous: u32,
    queue: u32,
    connections: u32,
    stalled: u32,
}

impl Steady {
    /// What is read at a second; counters as far as they have come.
    fn events(self, second: u64) -> [Event; 3] {
        let grown = |per_second: u32| u64::from(per_second) * second;
        let tor = TorReading {
            cpu: Some(Duration::from_micros(grown(self.cpu) * 90)),
            rendezvous: Some(grown(self.rendezvous)),
            puzzle_queue: Some(self.queue.into()),
            ..silent_tor(1)
        };
        [
            Event::Tor(tor),
            connections(self.connections),
            Event::CpuStalled(Duration::from_micros(grown(self.stalled) * 80)),
        ]
    }

    /// The machine after half a minute of it.
    fn settled(self) -> LoadLevel {
        let mut settings = settings();
        settings.most_rendezvous_per_second = settings.most_puzzle_queue;
        let mut machine = LoadLevel::new(settings);
        for second in 1..=30 {
            self.events(second).into_iter().for_each(|event| machine.handle(event, at(second)));
        }
        machine
    }
}

fn steady() -> impl Strategy<Value = Steady> {
    // Often near the places where a level begins.
    let part =
        || prop_oneof![0u32..=10_000, Just(7_500u32), Just(8_334), Just(9_167), Just(10_000), Just(9_999)];
    (part(), part(), part(), part(), part()).prop_map(|(cpu, rendezvous, queue, connections, stalled)| {
        Steady { cpu, rendezvous, queue, connections, stalled }
    })
}

proptest! {
    /// For all steady loads, a single reading never changes the level: neither at its time nor later, wherever it stands and
    /// whatever it says.
    #[test]
    fn one_reading_decides_nothing(
        load in steady(),
        spacing in 1u64..=4,
        place in 10u64..30,
        stray in reading(),
        replaces in any::<bool>(),
    ) {
        let mut settings = settings();
        settings.most_rendezvous_per_second = settings.most_puzzle_queue;
        let mut machine = LoadLevel::new(settings);
        // Of another process, a reading would say something else: that tor was restarted.
        let mut stray = stray;
        if let Event::Tor(reading) = &mut stray {
            reading.generation = TorGeneration(1);
        }
        let mut settled = None;
        for turn in 1..60 {
            let now = at(turn * spacing);
            if turn == place {
                settled = Some(machine.desired().level);
                machine.handle(stray, now);
            }
            if turn != place || !replaces {
                load.events(turn * spacing).into_iter().for_each(|event| machine.handle(event, now));
            }
            if let Some(settled) = settled {
                prop_assert_eq!(machine.desired().level, settled, "{}", turn);
            }
        }
    }

    /// For all inputs, silence leads to calm within the life of a sample and one dwell for each level, and then there is
    /// nothing left to wait for.
    #[test]
    fn silence_leads_to_calm(turns in turns(reading())) {
        let mut machine = LoadLevel::new(settings());
        let mut now = Monotime::default();
        for (milliseconds, event) in turns {
            now = after(now, milliseconds);
            machine.handle(event, now);
        }
        let dwell = settings().fall_dwell;
        machine.advance(now.after(LIFE + 4 * dwell));
        let desired = machine.desired();
        prop_assert_eq!((desired.level, desired.grounds.len()), (Level::Calm, 0));
        prop_assert_eq!(machine.next_deadline(), None);
    }

    /// For all events, how often the machine is advanced makes no difference, and each deadline is later than the one before.
    #[test]
    fn advancing_late_is_advancing_in_time(turns in turns(any_event()), ticks in 200u64..5_000) {
        let mut lazy = LoadLevel::new(settings());
        let mut busy = lazy.clone();
        let mut now = Monotime::default();
        for (milliseconds, event) in turns {
            let next = after(now, milliseconds);
            while now < next {
                let tick = after(now, ticks);
                now = busy.next_deadline().filter(|due| *due > now).unwrap_or(tick).min(tick).min(next);
                busy.advance(now);
                prop_assert!(busy.next_deadline().is_none_or(|due| due > now));
            }
            lazy.handle(event, next);
            busy.handle(event, next);
            prop_assert_eq!(lazy.desired(), busy.desired());
            prop_assert_eq!(lazy.next_deadline(), busy.next_deadline());
        }
    }

    /// For all events, the measured level never rises sooner after a change than the one dwell, never falls sooner than the
    /// other, and never by more than one.
    #[test]
    fn a_level_dwells(turns in turns(any_event())) {
        let mut machine = LoadLevel::new(settings());
        let (mut now, mut changed) = (Monotime::default(), None);
        let mut before = machine.desired().measured;
        for (milliseconds, event) in turns {
            let next = after(now, milliseconds);
            loop {
                let due = machine.next_deadline().filter(|due| *due <= next);
                now = due.unwrap_or(next);
                match due {
                    Some(_) => machine.advance(now),
                    None => machine.handle(event, now),
                }
                let level = machine.desired().measured;
                let dwelt = changed.map(|changed| now.since(changed));
                if level > before {
                    prop_assert!(dwelt.is_none_or(|dwelt| dwelt >= settings().rise_dwell), "{dwelt:?}");
                } else if level < before {
                    prop_assert!(dwelt.is_some_and(|dwelt| dwelt >= settings().fall_dwell), "{dwelt:?}");
                    prop_assert_eq!(before.lower(), level);
                }
                if level != before {
                    changed = Some(now);
                    before = level;
                }
                if due.is_none() {
                    break;
                }
            }
        }
    }

    /// For all events, a pin is the level until it ends, unless attack mode asks for more, and what is measured is as it would be
    /// without.
    #[test]
    fn a_pin_wins(turns in turns(reading()), level in level(), until in prop::option::of(1u64..200), panics in any::<bool>()) {
        let mut pinned = LoadLevel::new(settings());
        let mut plain = pinned.clone();
        pinned.handle(Event::AttackMode(panics), Monotime::default());
        pinned.handle(Event::Pin { level, until: until.map(at) }, Monotime::default());
        let mut now = Monotime::default();
        for (milliseconds, event) in turns {
            now = after(now, milliseconds);
            pinned.handle(event, now);
            plain.handle(event, now);
            let [desired, free] = [pinned.desired(), plain.desired()];
            prop_assert_eq!(desired.measured, free.level);
            let counts = level >= Level::Heavy || !panics;
            let expected = if counts && until.is_none_or(|until| now < at(until)) {
                level
            } else if panics {
                free.level.max(Level::Heavy)
            } else {
                free.level
            };
            prop_assert_eq!(desired.level, expected);
        }
    }

    /// For all events, a crowd raises the level by one at most, never past what it may raise to, and changes nothing of what is
    /// measured.
    #[test]
    fn a_crowd_is_one_level_more(turns in turns(reading()), most in level()) {
        let mut crowded = LoadLevel::new(settings());
        let mut plain = crowded.clone();
        crowded.handle(Event::Crowd(Some(most)), Monotime::default());
        let mut now = Monotime::default();
        for (milliseconds, event) in turns {
            now = after(now, milliseconds);
            crowded.handle(event, now);
            plain.handle(event, now);
            let [desired, free] = [crowded.desired(), plain.desired()];
            prop_assert_eq!(desired.measured, free.level);
            let higher = free.level.higher().filter(|higher| *higher <= most);
            prop_assert_eq!(desired.level, higher.unwrap_or(free.level));
            prop_assert_eq!(desired.word == Word::Crowd, higher.is_some());
            prop_assert_eq!(crowded.next_deadline(), plain.next_deadline());
        }
    }

    /// For all loads that last, more of any never gives a lower level, an easier puzzle, wider limits or a lower ratio.
    #[test]
    fn more_load_is_never_a_lower_level(load in steady(), more in steady()) {
        let more = Steady {
            cpu: load.cpu.max(more.cpu),
            rendezvous: load.rendezvous.max(more.rendezvous),
            queue: load.queue.max(more.queue),
            connections: load.connections.max(more.connections),
            stalled: load.stalled.max(more.stalled),
        };
        let [less, more] = [load.settled().desired(), more.settled().desired()];
        prop_assert!(less.level <= more.level && less.load.ratio <= more.load.ratio);
        prop_assert!(less.load.difficulty <= more.load.difficulty);
        prop_assert!(less.puzzles.page_difficulty <= more.puzzles.page_difficulty);
        prop_assert!(less.front_share >= more.front_share && less.tightens_ports <= more.tightens_ports);
        prop_assert!(less.asks_puzzles <= more.asks_puzzles);
    }

    /// For all loads that last, the level rests on an input that alone would hold it, and a calm one on none.
    #[test]
    fn a_level_rests_on_something(load in steady()) {
        let desired = load.settled().desired();
        let holds = desired.grounds.iter().any(|ground| ground.holds_level);
        prop_assert_eq!(holds, desired.level > Level::Calm);
        prop_assert_eq!(desired.grounds.len(), 8);
    }

    /// For all events, the shard's comparison with the threshold says what the level says, and the ratio lies in the
    /// level's own range.
    #[test]
    fn ratio_and_level_agree(turns in turns(any_event())) {
        let mut machine = LoadLevel::new(settings());
        let mut now = Monotime::default();
        for (milliseconds, event) in turns {
            now = after(now, milliseconds);
            machine.handle(event, now);
            let desired = machine.desired();
            prop_assert_eq!(desired.asks_puzzles, desired.level >= Level::Light);
            prop_assert!(desired.load.ratio >= settings().up(desired.level));
            let higher = desired.level.higher().map(|higher| settings().up(higher));
            prop_assert!(higher.is_none_or(|higher| desired.load.ratio < higher));
        }
    }

    /// For all restarts and reloads of tor, a tor with little to do is calm: whatever is counted anew is no load.
    #[test]
    fn a_reset_is_no_load(
        turns in prop::collection::vec((500u64..8_000, 0u64..200, 0u8..20), 1..200),
    ) {
        let mut machine = LoadLevel::new(settings());
        let (mut now, mut generation, mut count) = (at(1), 1, 1_000_000);
        for (milliseconds, odd, what) in turns {
            now = after(now, milliseconds);
            // A third of the 50 a second that it can bear.
            count += milliseconds * 16 / 1_000;
            let mut queue = 40;
            match what {
                0 => (generation, count) = (generation + 1, odd),
                1 => (count, queue) = (odd.min(milliseconds * 16 / 1_000), -1),
                _ => {}
            }
            let reading = TorReading {
                rendezvous: Some(count),
                rejections: Some(count),
                cpu: Some(Duration::from_millis(count * 10)),
                puzzle_queue: Some(queue),
                generation: TorGeneration(generation),
            };
            machine.handle(Event::Tor(reading), now);
            let desired = machine.desired();
            prop_assert_eq!(desired.level, Level::Calm);
            prop_assert!(desired.grounds.iter().all(|ground| ground.ratio < settings().up(Level::Light)));
        }
    }

    /// For all events, at whatever times, the machine keeps five samples of each input and no more.
    #[test]
    fn memory_is_bounded(turns in prop::collection::vec((any::<u64>(), any_event()), 1..300)) {
        let mut machine = LoadLevel::new(settings());
        for (time, event) in turns {
            // Times in any order: an earlier one is taken for the latest.
            machine.handle(event, Monotime(time >> (time % 60)));
            for (_, samples) in &machine.samples {
                prop_assert!(samples.len() <= KEPT);
            }
        }
    }
}
