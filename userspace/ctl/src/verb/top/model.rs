//! What `top` knows: the latest answers, and the rates of the last readings. Pure.

use std::collections::{BTreeMap, VecDeque};

use tunica_api::view::{Bans, Counter, Counters, Sources, Status};

/// Most intervals that are remembered: as many as the widest terminal has columns for, in practice.
const REMEMBERED: usize = 400;

/// One round of answers.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Reading {
    /// To `counters`.
    pub(super) counters: Counters,
    /// To `status`.
    pub(super) status: Status,
    /// To `sources`.
    pub(super) sources: Sources,
    /// To `ban list`; absent where it was not asked for, and the list before still counts.
    pub(super) bans: Option<Bans>,
}

/// How fast one counter grew.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rate {
    /// Packets a second.
    pub(super) packets: f64,
    /// Bytes a second.
    pub(super) bytes: f64,
}

/// One verdict and action, and how fast it grew in the last intervals.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Track {
    /// The counter as it was read last.
    pub(super) counter: Counter,
    /// Oldest first; `None` where no rate can be told.
    pub(super) rates: VecDeque<Option<Rate>>,
}

/// Everything that is shown.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Model {
    /// The latest answers.
    pub(super) latest: Option<Reading>,
    /// The latest list of bans.
    pub(super) bans: Option<Bans>,
    /// One row for each verdict and action, in the daemon's order.
    pub(super) tracks: Vec<Track>,
    /// Why the latest question has no answer.
    pub(super) trouble: Option<String>,
    /// Whether the next reading is compared with the latest.
    is_continuous: bool,
}

/// How fast each row of `after` grew since `before`, in packets and bytes a second.
///
/// `None` for every row where the counters began anew in between: the daemon was restarted, its tables were made anew,
/// or a counter went back. `None` for a row that `before` has not.
pub(super) fn rates(before: &Counters, after: &Counters) -> Vec<Option<Rate>> {
    let known: BTreeMap<(&str, &str), &Counter> =
        before.rows.iter().map(|row| ((row.verdict.as_str(), row.action.as_str()), row)).collect();
    let earlier = |row: &Counter| known.get(&(row.verdict.as_str(), row.action.as_str())).copied().cloned();
    let went_back = |row: &Counter| {
        earlier(row).is_some_and(|earlier| row.packets < earlier.packets || row.bytes < earlier.bytes)
    };
    let milliseconds = after.monotonic_milliseconds.checked_sub(before.monotonic_milliseconds);
    let seconds = match milliseconds {
        Some(milliseconds) if milliseconds > 0 => milliseconds as f64 / 1_000.0,
        Some(_) | None => return vec![None; after.rows.len()],
    };
    let is_same = (before.started, &before.tables) == (after.started, &after.tables);
    if !is_same || after.rows.iter().any(went_back) {
        return vec![None; after.rows.len()];
    }
    let rate = |row: &Counter| {
        let earlier = earlier(row)?;
        Some(Rate {
            packets: row.packets.checked_sub(earlier.packets)? as f64 / seconds,
            bytes: row.bytes.checked_sub(earlier.bytes)? as f64 / seconds,
        })
    };
    after.rows.iter().map(rate).collect()
}

impl Model {
    /// Takes in a round of answers.
    pub(super) fn observe(&mut self, mut reading: Reading) {
        let rates = match &self.latest {
            Some(before) if self.is_continuous => rates(&before.counters, &reading.counters),
            Some(_) => vec![None; reading.counters.rows.len()],
            // Before the first reading there was no interval, so there is no gap to show either.
            None => Vec::new(),
        };
        let mut known = std::mem::take(&mut self.tracks);
        for (index, counter) in reading.counters.rows.iter().enumerate() {
            let place = known.iter().position(|track| {
                (&track.counter.verdict, &track.counter.action) == (&counter.verdict, &counter.action)
            });
            let rates_before = place.map(|place| known.swap_remove(place).rates).unwrap_or_default();
            let mut track = Track { counter: counter.clone(), rates: rates_before };
            if let Some(rate) = rates.get(index) {
                track.push(*rate);
            }
            self.tracks.push(track);
        }
        if let Some(bans) = reading.bans.take() {
            self.bans = Some(bans);
        }
        self.latest = Some(reading);
        self.trouble = None;
        self.is_continuous = true;
    }

    /// Takes in that there was no answer.
    pub(super) fn miss(&mut self, trouble: String) {
        self.trouble = Some(trouble);
        for track in &mut self.tracks {
            track.push(None);
        }
        self.interrupt();
    }

    /// Compares the next reading with nothing: the time up to it is no interval.
    pub(super) fn interrupt(&mut self) {
        self.is_continuous = false;
    }

    /// The rows that ever counted a packet, those first that counted most in the last `intervals`.
    pub(super) fn busiest(&self, intervals: usize) -> Vec<&Track> {
        let mut rows: Vec<(&Track, f64)> = self
            .tracks
            .iter()
            .filter(|track| track.counter.packets > 0)
            .map(|track| {
                let recent = track.rates.iter().rev().take(intervals).flatten();
                (track, recent.map(|rate| rate.packets).sum())
            })
            .collect();
        // A stable sort: rows that are equally busy keep the daemon's order.
        rows.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        rows.into_iter().map(|(track, _)| track).collect()
    }
}

impl Track {
    fn push(&mut self, rate: Option<Rate>) {
        self.rates.push_back(rate);
        if self.rates.len() > REMEMBERED {
            self.rates.pop_front();
        }
    }

    /// The rate of the latest interval.
    pub(super) fn now(&self) -> Option<Rate> {
        self.rates.back().copied().flatten()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;
    use tunica_api::{view::Answer, wire};
    use tunica_core::time::WallTime;

    use super::*;

    /// Rows `pass pass` and `syn_rate drop` with these packets of 60 bytes each.
    pub(in crate::verb::top) fn counters(milliseconds: u64, packets: [u64; 2]) -> Counters {
        let rows = [("pass", "pass"), ("syn_rate", "drop")].iter().zip(packets);
        Counters {
            started: WallTime(1_772_359_200),
            now: WallTime(1_772_366_402),
            monotonic_milliseconds: milliseconds,
            tables: "/sys/fs/bpf/tunica/a".to_owned(),
            rows: rows
                .map(|((verdict, action), packets)| Counter {
                    verdict: (*verdict).to_owned(),
                    action: (*action).to_owned(),
                    packets,
                    bytes: packets.saturating_mul(60),
                })
                .collect(),
        }
    }

    /// A recorded answer of `tests/answers`.
    pub(in crate::verb::top) fn recorded(name: &str) -> Answer {
        let path = format!("{}/tests/answers/{name}.json", env!("CARGO_MANIFEST_DIR"));
        wire::read_answer(&std::fs::read(path).unwrap()).unwrap()
    }

    /// A round of recorded answers around `counters`.
    pub(in crate::verb::top) fn reading(status: &str, counters: Counters) -> Reading {
        let (Answer::Status(status), Answer::Sources(sources), Answer::Bans(bans)) =
            (recorded(status), recorded("sources"), recorded("bans"))
        else {
            panic!("the recorded answers are of other kinds")
        };
        Reading { counters, status: *status, sources, bans: Some(bans) }
    }

    fn last_packets(model: &Model) -> Vec<Option<f64>> {
        model.tracks.iter().map(|track| track.now().map(|rate| rate.packets)).collect()
    }

    #[test]
    fn rates_are_differences_by_the_daemons_clock() {
        let mut model = Model::default();
        model.observe(reading("status-enforcing", counters(1_000, [10, 0])));
        assert_eq!(last_packets(&model), [None, None]);
        assert!(model.tracks.iter().all(|track| track.rates.is_empty()));
        model.observe(reading("status-enforcing", counters(1_500, [20, 0])));
        assert_eq!(last_packets(&model), [Some(20.0), Some(0.0)]);
        model.observe(reading("status-enforcing", counters(3_500, [20, 1_000_000])));
        assert_eq!(last_packets(&model), [Some(0.0), Some(500_000.0)]);
        assert_eq!(model.tracks[1].now().unwrap().bytes, 30_000_000.0);
    }

    #[test]
    fn no_rate_is_told_where_the_counters_began_anew() {
        let before = counters(1_000, [10, 10]);
        let smaller = counters(2_000, [20, 9]);
        let restarted = Counters { started: WallTime(1), ..counters(2_000, [20, 20]) };
        let resized = Counters { tables: "/sys/fs/bpf/tunica/b".to_owned(), ..counters(2_000, [20, 20]) };
        let same_moment = counters(1_000, [20, 20]);
        let earlier = counters(999, [20, 20]);
        for after in [smaller, restarted, resized, same_moment, earlier] {
            assert_eq!(rates(&before, &after), [None, None], "{after:?}");
        }
        let mut more = counters(2_000, [20, 20]);
        more.rows.push(Counter {
            verdict: "new".to_owned(),
            action: "drop".to_owned(),
            packets: 9,
            bytes: 9,
        });
        let told: Vec<_> = rates(&before, &more).iter().map(Option::is_some).collect();
        assert_eq!(told, [true, true, false]);
    }

    #[test]
    fn a_gap_is_no_interval() {
        let mut model = Model::default();
        model.observe(reading("status-enforcing", counters(1_000, [10, 0])));
        model.miss("gone".to_owned());
        assert_eq!(model.trouble.as_deref(), Some("gone"));
        model.observe(reading("status-enforcing", counters(9_000, [20, 0])));
        assert_eq!((last_packets(&model), &model.trouble), (vec![None, None], &None));
        model.observe(reading("status-enforcing", counters(10_000, [21, 0])));
        assert_eq!(last_packets(&model), [Some(1.0), Some(0.0)]);
        assert_eq!(model.tracks[0].rates, [None, None, Some(Rate { packets: 1.0, bytes: 60.0 })]);
    }

    #[test]
    fn the_busiest_row_of_late_stands_first() {
        let mut model = Model::default();
        for (milliseconds, packets) in [(1_000, [0, 0]), (2_000, [500, 1]), (3_000, [500, 101])] {
            model.observe(reading("status-enforcing", counters(milliseconds, packets)));
        }
        let words = |intervals| {
            model.busiest(intervals).iter().map(|track| track.counter.verdict.clone()).collect::<Vec<_>>()
        };
        assert_eq!(words(1), ["syn_rate", "pass"]);
        assert_eq!(words(2), ["pass", "syn_rate"]);
    }

    /// What the daemon may do between two readings.
    #[derive(Clone, Debug)]
    enum Step {
        Count([u64; 2]),
        Restart,
        Resize([u64; 2]),
        Miss,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => [0_u64..1 << 40, 0_u64..1 << 40].prop_map(Step::Count),
            1 => Just(Step::Restart),
            1 => [any::<u64>(), any::<u64>()].prop_map(Step::Resize),
            1 => Just(Step::Miss),
        ]
    }

    proptest! {
        /// For all histories of a daemon, a rate is told exactly where the counters went on, and is what was counted
        /// by the time that passed: never negative, never more.
        #[test]
        fn rates_are_what_was_counted(steps in prop::collection::vec((step(), 1_u64..100_000), 1..40)) {
            let mut model = Model::default();
            let mut now = counters(0, [0, 0]);
            let first = reading("status-enforcing", now.clone());
            model.observe(first.clone());
            let mut missed = false;
            let mut resizes = 0;
            for (step, milliseconds) in steps {
                now.monotonic_milliseconds += milliseconds;
                let before = now.clone();
                let mut grown = None;
                match step {
                    Step::Count(more) => {
                        let packets = [0, 1].map(|at: usize| now.rows[at].packets.saturating_add(more[at]));
                        now.rows = counters(0, packets).rows;
                        grown = Some([0, 1].map(|at: usize| packets[at] - before.rows[at].packets));
                    }
                    Step::Restart => {
                        now.started = WallTime(now.started.0 + 1);
                    }
                    Step::Resize(packets) => {
                        resizes += 1;
                        now.tables = format!("/sys/fs/bpf/tunica/{resizes}");
                        now.rows = counters(0, packets).rows;
                    }
                    Step::Miss => {
                        model.miss("gone".to_owned());
                        missed = true;
                        continue;
                    }
                }
                if std::mem::take(&mut missed) {
                    grown = None;
                }
                model.observe(Reading { counters: now.clone(), ..first.clone() });
                for (index, track) in model.tracks.iter().enumerate() {
                    let expected = grown.map(|grown| grown[index] as f64 / (milliseconds as f64 / 1_000.0));
                    prop_assert_eq!(track.now().map(|rate| rate.packets), expected);
                    if let Some(rate) = track.now() {
                        prop_assert!(rate.packets >= 0.0 && rate.bytes >= 0.0 && rate.bytes.is_finite());
                    }
                }
            }
        }
    }
}
