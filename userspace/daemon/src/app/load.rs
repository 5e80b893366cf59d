//! `threat`: how loaded the service is, what was read of it, and what the front is told.

use tunica_api::{
    front::{Digest, LoadOrder},
    view::{Answer, AttackMode, LevelPin, LoadGround, LoadLine, Threat},
};
use tunica_core::{
    coordinator::Event,
    false_positives::Holders,
    id::TorGeneration,
    load_level::{Desired, FrontReading, Input, TorReading, Word},
    puzzle_level::Pages,
};
use tunica_onion::tor_metrics::TorMetrics;

use super::{App, Reach, explained};
use crate::shell::load::{LoadPart, Reading, ReadingError};

impl App {
    /// Takes in what was read of the load.
    pub fn read_load(&mut self, reading: Reading) {
        let Reading { stalled, generation, cpu, metrics } = reading;
        if let Some(stalled) = self.note_reading(LoadPart::Pressure, Some(stalled)) {
            self.measured(Event::CpuStalled(stalled));
        }
        let cpu = self.note_reading(LoadPart::TorProcess, cpu);
        let metrics = self.note_reading(LoadPart::TorMetrics, metrics);
        let Some(generation) = generation.filter(|_| cpu.is_some() || metrics.is_some()) else { return };
        let TorMetrics { rendezvous, rejections, puzzle_queue, .. } = metrics.unwrap_or_default();
        self.measured(Event::TorLoad(TorReading { generation, cpu, rendezvous, rejections, puzzle_queue }));
    }

    /// Takes in how the front does.
    pub(super) fn read_front_load(&mut self, digest: &Digest) {
        let of_pages =
            |counts: &std::collections::BTreeMap<String, u64>| counts.get("page").copied().unwrap_or(0);
        let (issued, redeemed) = (of_pages(&digest.puzzles.issued), of_pages(&digest.puzzles.solved));
        self.measured(Event::Pages(Pages { issued, redeemed }));
        let (seen, refused) = (digest.tokens.holders, digest.tokens.holders_refused);
        self.measured(Event::Holders(Holders { seen, refused }));
        if let (Some(arti), Some(generation)) = (&digest.arti, digest.generation) {
            // The front is tor itself.
            self.measured(Event::TorLoad(TorReading {
                generation: TorGeneration(generation),
                cpu: None,
                rendezvous: Some(arti.rendezvous),
                rejections: None,
                puzzle_queue: None,
            }));
        }
        // A front of an older version does not tell.
        if digest.most_wait_milliseconds == 0 {
            return;
        }
        let count = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
        let span = std::time::Duration::from_millis;
        self.measured(Event::FrontLoad(FrontReading {
            active: count(digest.active),
            most_active: count(digest.most_active),
            challenged: count(digest.challenged),
            queued: count(digest.waiting),
            most_queued: count(digest.most_waiting),
            wait: span(digest.first_wait_milliseconds),
            most_wait: span(digest.most_wait_milliseconds),
        }));
    }

    /// Puts a reading through the coordinator. Most change nothing that the kernel knows.
    pub(super) fn measured(&mut self, event: Event) {
        let now = self.now();
        let was_tightened = self.coordinator.is_tightened();
        let outcome = self.coordinator.handle(event, now);
        let is_same = was_tightened == self.coordinator.is_tightened();
        let reach = if is_same { Reach::Nothing } else { Reach::Everything };
        // Nothing durable comes of a reading.
        let _ = self.carry_out(outcome, reach, now);
    }

    /// What was read; says once what was not, and that it is not known. `None`: it was not asked for.
    fn note_reading<T>(&mut self, part: LoadPart, read: Option<Result<T, ReadingError>>) -> Option<T> {
        let (value, trouble) = match read {
            None => (None, None),
            Some(Ok(value)) => (Some(value), None),
            Some(Err(error)) => {
                self.metrics.count_load_failure(part);
                let what = match part {
                    LoadPart::Pressure => "the load level does without the pressure on the CPUs",
                    LoadPart::TorProcess => "the load level does without tor's CPU time",
                    LoadPart::TorMetrics => "the load level does without tor's introductions and rendezvous",
                };
                (None, Some(format!("{}; {what}", explained(&error))))
            }
        };
        let known = LoadPart::ALL.iter().position(|each| *each == part);
        if let Some(known) = known.and_then(|at| self.troubles.load.get_mut(at))
            && *known != trouble
        {
            if let Some(text) = &trouble {
                tracing::warn!(message_id = "load_unread", part = part.label(), "{text}");
            }
            *known = trouble;
        }
        value
    }

    /// Has the front told what follows from the load level, if that is something else than before.
    pub(super) fn follow_load(&mut self) {
        let told = LoadOrder::from(self.coordinator.load_level().front());
        if self.front.told() != Some(told) {
            self.send_orders();
        }
    }

    /// How loaded the service is, and what follows from it.
    pub(super) fn threat(&self) -> Answer {
        let desired = self.coordinator.load_level();
        let ledger = self.coordinator.ledger();
        let is_known = |input: &Input| desired.grounds.iter().any(|ground| ground.input == *input);
        let unknown = Input::ALL.into_iter().filter(|input| !is_known(input));
        let LoadLine { level, word, measured, relaxes_tokens: _ } = line(&desired);
        Answer::Threat(Box::new(Threat {
            level,
            word,
            measured,
            demands: level.demands().to_owned(),
            pin: ledger.level_pin.map(|fact| LevelPin {
                level: fact.level,
                since: fact.since,
                expires: fact.expires,
            }),
            attack_mode: ledger
                .attack_mode
                .map(|fact| AttackMode { since: fact.since, expires: fact.expires }),
            grounds: desired
                .grounds
                .iter()
                .map(|ground| LoadGround {
                    input: ground.input.name().to_owned(),
                    ratio: ground.ratio.ten_thousandths(),
                    holds_level: ground.holds_level,
                })
                .collect(),
            unknown: unknown.map(|input| input.name().to_owned()).collect(),
            tightens_ports: self.coordinator.is_tightened(),
            told: desired.front().into(),
            held: self.front.held(),
        }))
    }
}

/// How loaded the service is, in short.
pub(super) fn line(desired: &Desired) -> LoadLine {
    let word = match desired.word {
        Word::Measured => "measured",
        Word::AttackMode => "attack_mode",
        Word::Crowd => "new_circuits",
        Word::Operator { .. } => "operator",
    };
    let relaxes_tokens = desired.relaxes_tokens;
    LoadLine { level: desired.level, word: word.to_owned(), measured: desired.measured, relaxes_tokens }
}
