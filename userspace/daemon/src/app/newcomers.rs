//! New circuits: what the front says of them is compared, shown and, if that is so configured, written down.

use std::{
    collections::BTreeMap,
    hash::{BuildHasher as _, RandomState},
    num::NonZeroU32,
    path::PathBuf,
};

use tunica_api::{
    front::{CircuitRow, Digest, MOST_NEWCOMERS},
    view::{NewCircuits, UnusualCircuit},
};
use tunica_core::{
    anomaly::Score,
    circuit_features::Feature,
    circuit_registry::RelayId,
    coordinator::Event,
    newcomers::{FEWEST_KNOWN, Newcomer},
};

use super::App;
use crate::{
    directory,
    shell::samples::{self, FILE_NAME, Sample, SampleFile},
};

/// Most circuits whose score is kept, and most that have ended of which the relay is: the newest.
const MOST_KEPT: usize = 4_096;

/// What is kept of new circuits, for operators alone.
#[derive(Default)]
pub(super) struct Judged {
    /// Its secret makes words and numbers of circuits and relays that say nothing outside this process.
    secret: RandomState,
    scores: BTreeMap<NonZeroU32, (Score, Vec<Feature>)>,
    /// Where circuits that have ended met the service: the front tells of them some seconds later.
    ended: BTreeMap<NonZeroU32, u16>,
    file: SampleFile,
}

impl Judged {
    fn relay_class(&self, relay: &RelayId) -> u16 {
        // The low bits of a keyed hash, so the cut is meant.
        self.secret.hash_one(relay) as u16
    }

    /// A word for a circuit.
    fn word(&self, generation: Option<u64>, circuit: NonZeroU32) -> String {
        format!("{:016x}", self.secret.hash_one((generation, circuit)))
    }
}

/// Keeps the newest: tor's numbers ascend.
fn keep<T>(kept: &mut BTreeMap<NonZeroU32, T>, circuit: NonZeroU32, value: T) {
    kept.insert(circuit, value);
    if kept.len() > MOST_KEPT {
        kept.pop_first();
    }
}

impl App {
    /// A circuit is about to be forgotten, because tor says that it has ended.
    pub(super) fn remember_relay(&mut self, circuit: NonZeroU32) {
        let relay = self.registry().get(circuit).and_then(|facts| facts.rendezvous);
        if let Some(relay) = relay {
            let class = self.judged.relay_class(&relay);
            keep(&mut self.judged.ended, circuit, class);
        }
    }

    /// Whoever stands behind a number now has done nothing yet.
    pub(super) fn forget_judged(&mut self) {
        self.judged.scores.clear();
        self.judged.ended.clear();
    }

    /// Takes in what the front says of new circuits; `is_present`: they are of the tor process that is meant.
    pub(super) fn read_newcomers(&mut self, digest: &Digest, is_present: bool) {
        // A front that tells of more is not ours to believe.
        let told = digest.newcomers.iter().take(MOST_NEWCOMERS).filter(|_| is_present);
        let newcomers = self.coordinator.newcomers();
        let circuits: Vec<(NonZeroU32, Newcomer, Option<Score>)> = told
            .map(|(circuit, path, features)| {
                let facts = self.registry().get(*circuit);
                let relay = facts.and_then(|facts| facts.rendezvous);
                let relay = relay.map(|relay| self.judged.relay_class(&relay));
                let relay = relay.or_else(|| self.judged.ended.get(circuit).copied());
                let newcomer = Newcomer { path: *path, relay, features: *features };
                (*circuit, newcomer, newcomers.score(features))
            })
            .collect();
        for (circuit, newcomer, score) in &circuits {
            if let Some(score) = *score {
                let furthest = self.coordinator.newcomers().furthest(&newcomer.features);
                self.metrics.observe_score(score);
                keep(&mut self.judged.scores, *circuit, (score, furthest));
            }
        }
        self.write_samples(digest.generation, &circuits);
        let circuits = circuits.into_iter().map(|(_, newcomer, _)| newcomer).collect();
        self.measured(Event::Newcomers { process: digest.process, circuits });
    }

    /// Writes a line for each, if that is so configured.
    fn write_samples(&mut self, generation: Option<u64>, circuits: &[(NonZeroU32, Newcomer, Option<Score>)]) {
        if !self.config.sybil.samples {
            self.judged.file.close();
            self.troubles.samples = None;
            return;
        }
        if circuits.is_empty() {
            return;
        }
        let hour = samples::hour(self.now().wall);
        let (level, alike) =
            (self.coordinator.load_level().level.name(), self.coordinator.newcomers().is_raised());
        let lines: Vec<Sample> = circuits
            .iter()
            .map(|(circuit, newcomer, score)| Sample {
                hour: hour.clone(),
                circuit: self.judged.word(generation, *circuit),
                path_class: newcomer.path.number(),
                relay_class: newcomer.relay,
                level,
                alike,
                score: score.map(in_whole),
                features: samples::named(&newcomer.features),
            })
            .collect();
        let path = self.sample_path();
        let written = self.judged.file.append(&path, &lines);
        self.metrics.count_samples(written.is_ok(), lines.len() as u64);
        let trouble = written.err().map(|error| {
            format!(
                "samples of new circuits cannot be written to {}: {error}; those of this time are lost; free or correct it, or \
                 set samples = false under [sybil]",
                path.display()
            )
        });
        if let Some(text) = trouble.as_ref().filter(|text| self.troubles.samples.as_ref() != Some(text)) {
            tracing::warn!(message_id = "samples_lost", "{text}");
        }
        self.troubles.samples = trouble;
    }

    fn sample_path(&self) -> PathBuf {
        directory::of(&self.config.ledger.path).join(FILE_NAME)
    }

    /// How new circuits compare with those of calm times; `None` without a front, which alone tells of them.
    pub(super) fn new_circuits(&self) -> Option<NewCircuits> {
        if !self.has_front() {
            return None;
        }
        let newcomers = self.coordinator.newcomers();
        let alike = newcomers.alike();
        Some(NewCircuits {
            known: newcomers.known() as u64,
            needed: FEWEST_KNOWN as u64,
            compared: alike.map_or(0, |alike| alike.circuits),
            alike: alike.map(|alike| alike.share.ten_thousandths()),
            usual: alike.map(|alike| alike.usual.ten_thousandths()),
            at_one_relay: alike.is_some_and(|alike| alike.is_one_relay),
            too_many: newcomers.is_raised(),
        })
    }

    /// The row with how unusual its circuit is.
    pub(super) fn scored(&self, row: &CircuitRow) -> CircuitRow {
        let score = self.judged.scores.get(&row.circuit).map(|(score, _)| score.hundredths());
        CircuitRow { score, ..row.clone() }
    }

    /// How unusual a circuit is and in what, and its word in the file of samples.
    pub(super) fn unusual(&self, circuit: NonZeroU32) -> Option<UnusualCircuit> {
        let (score, furthest) = self.judged.scores.get(&circuit)?;
        let generation = self.circuit_orders().generation().map(|generation| generation.0);
        Some(UnusualCircuit {
            score: score.hundredths(),
            furthest: furthest.iter().map(|feature| feature.name().to_owned()).collect(),
            word: self.config.sybil.samples.then(|| self.judged.word(generation, circuit)),
        })
    }
}

fn in_whole(score: Score) -> f64 {
    f64::from(score.hundredths()) / 100.0
}
