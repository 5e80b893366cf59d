//! What of new circuits is shown: shares and scores, and nothing of any one of them.

use tunica_core::{anomaly::Score, circuit_policy::Ratio, newcomers::Newcomers};

use super::{Families, Metrics};

/// The upper bounds of the histogram's buckets.
pub(super) const SCORES: [f64; 9] = [0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0];

const OUTCOMES: [&str; 2] = ["written", "failed"];

/// Has every series that can be named beforehand there from the start.
pub(super) fn prepare(families: &Families) {
    for outcome in OUTCOMES {
        families.circuits_samples.with_label_values(&[outcome]);
    }
}

fn part(ratio: Option<Ratio>) -> f64 {
    ratio.map_or(0.0, |ratio| f64::from(ratio.ten_thousandths()) / 10_000.0)
}

impl Metrics {
    /// Shows how new circuits compare with those of calm times.
    pub fn set_newcomers(&self, newcomers: &Newcomers) {
        let families = &self.families;
        let alike = newcomers.alike();
        families.circuits_known.set(i64::try_from(newcomers.known()).unwrap_or(i64::MAX));
        families.circuits_alike.set(i64::from(newcomers.is_raised()));
        families.circuits_alike_ratio.set(part(alike.map(|alike| alike.share)));
        families.circuits_alike_usual.set(part(alike.map(|alike| alike.usual)));
    }

    /// Counts how unusual one circuit is.
    pub fn observe_score(&self, score: Score) {
        self.families.circuits_score.observe(f64::from(score.hundredths()) / 100.0);
    }

    /// Counts lines of the file of samples.
    pub fn count_samples(&self, are_written: bool, lines: u64) {
        let [written, failed] = OUTCOMES;
        let outcome = if are_written { written } else { failed };
        self.families.circuits_samples.with_label_values(&[outcome]).inc_by(lines);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tunica_core::{
        circuit_features::{Features, PathClass},
        newcomers::{Newcomer, NewcomerSettings},
        time::Monotime,
    };

    use super::*;
    use crate::metrics::tests::metrics;

    #[test]
    fn a_crowd_and_its_scores_have_their_series() {
        let metrics = metrics();
        let mut newcomers = Newcomers::new(NewcomerSettings {
            learn_every: Duration::from_secs(1),
            ..NewcomerSettings::default()
        });
        let circuit = |number: u16| Newcomer {
            path: PathClass::of_hash(number.into()),
            relay: None,
            features: Features([number; 11]),
        };
        for turn in 0..40 {
            let now = Monotime(u64::from(turn) * 1_000_000_000);
            newcomers.tell(1, &[circuit(turn)], true, now);
        }
        let now = Monotime(100_000_000_000);
        newcomers.tell(1, &[circuit(500); 60], true, now);
        metrics.set_newcomers(&newcomers);
        let score = newcomers.score(&circuit(500).features).unwrap();
        metrics.observe_score(score);
        metrics.count_samples(true, 3);
        metrics.count_samples(false, 2);
        let text = metrics.render().unwrap();
        for series in [
            "tunica_circuits_known 40",
            "tunica_circuits_alike 1",
            "tunica_circuits_alike_ratio 1",
            "tunica_circuits_alike_usual_ratio 0",
            "tunica_circuits_anomaly_score_bucket{le=\"12\"} 0",
            "tunica_circuits_anomaly_score_bucket{le=\"+Inf\"} 1",
            "tunica_circuits_anomaly_score_sum 20",
            "tunica_circuits_samples_total{outcome=\"written\"} 3",
            "tunica_circuits_samples_total{outcome=\"failed\"} 2",
        ] {
            assert!(text.contains(&format!("\n{series}\n")), "{series} in\n{text}");
        }
    }
}
