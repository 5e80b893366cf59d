//! What of the load level is shown.

use tunica_core::load_level::{Desired, Level};

use super::{Families, Metrics};
use crate::shell::load::LoadPart;

/// Has every series that can be named beforehand there from the start.
pub(super) fn prepare(families: &Families) {
    for level in Level::ALL {
        families.load_changes.with_label_values(&[level.name()]);
    }
    set_level(&families.load_level, Level::Calm);
    set_level(&families.load_measured, Level::Calm);
    for part in LoadPart::ALL {
        families.load_failures.with_label_values(&[part.label()]);
    }
}

fn set_level(family: &prometheus::IntGaugeVec, level: Level) {
    for each in Level::ALL {
        family.with_label_values(&[each.name()]).set(i64::from(each == level));
    }
}

impl Metrics {
    /// Shows the load level, what it rests on, and whether an operator has set it.
    pub fn set_load(&self, desired: &Desired, is_pinned: bool) {
        let families = &self.families;
        set_level(&families.load_level, desired.level);
        set_level(&families.load_measured, desired.measured);
        families.front_tokens_relaxed.set(i64::from(desired.relaxes_tokens));
        families.load_pinned.set(i64::from(is_pinned));
        families.load_ratio.reset();
        for ground in &desired.grounds {
            let share = f64::from(ground.ratio.ten_thousandths()) / 10_000.0;
            families.load_ratio.with_label_values(&[ground.input.name()]).set(share);
        }
    }

    /// Counts a load level that came into force.
    pub fn count_load_change(&self, level: Level) {
        self.families.load_changes.with_label_values(&[level.name()]).inc();
    }

    /// Counts something that tells of load and could not be read.
    pub fn count_load_failure(&self, part: LoadPart) {
        self.families.load_failures.with_label_values(&[part.label()]).inc();
    }
}

#[cfg(test)]
pub(super) mod tests {
    use tunica_core::{
        circuit_policy::Ratio,
        load_level::{Event, Ground, Input, LoadLevel, LoadSettings},
        time::Monotime,
    };

    use super::*;
    use crate::metrics::tests::metrics;

    /// A pinned level, and one input that is known.
    pub(in crate::metrics) fn desired() -> Desired {
        let mut machine = LoadLevel::new(LoadSettings::default());
        machine.handle(Event::Pin { level: Level::Heavy, until: None }, Monotime(1));
        let ground = Ground { input: Input::Wait, ratio: Ratio::HALF, holds_level: false };
        Desired { grounds: vec![ground], ..machine.desired() }
    }

    #[test]
    fn a_level_and_its_grounds_have_their_series() {
        let metrics = metrics();
        let calm = "tunica_load_level{level=\"calm\"} 1";
        assert!(metrics.render().unwrap().contains(calm));
        metrics.set_load(&desired(), true);
        metrics.count_load_change(Level::Heavy);
        metrics.count_load_failure(LoadPart::TorMetrics);
        let text = metrics.render().unwrap();
        for series in [
            "tunica_load_level{level=\"heavy\"} 1",
            "tunica_load_level{level=\"calm\"} 0",
            "tunica_load_measured{level=\"calm\"} 1",
            "tunica_load_pinned 1",
            "tunica_load_ratio{input=\"wait\"} 0.5",
            "tunica_load_changes_total{level=\"heavy\"} 1",
            "tunica_load_changes_total{level=\"under_attack\"} 0",
            "tunica_load_reading_failures_total{part=\"tor_metrics\"} 1",
            "tunica_load_reading_failures_total{part=\"pressure\"} 0",
        ] {
            assert!(text.contains(&format!("\n{series}\n")), "{series} in\n{text}");
        }
        // What is not known any more is shown no more.
        metrics.set_load(&Desired { grounds: Vec::new(), ..desired() }, true);
        assert!(!metrics.render().unwrap().contains("tunica_load_ratio{"));
    }
}
