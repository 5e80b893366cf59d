//! Figures of many rounds, and what is expected of them.

/// One figure of each round, in the order of the rounds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Series(Vec<f64>);

impl Series {
    pub(crate) fn push(&mut self, figure: f64) {
        self.0.push(figure);
    }

    pub(crate) fn least(&self) -> f64 {
        self.0.iter().copied().fold(f64::NAN, f64::min)
    }

    pub(crate) fn most(&self) -> f64 {
        self.0.iter().copied().fold(f64::NAN, f64::max)
    }

    /// Not a number if there are no figures.
    pub(crate) fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let half = sorted.len() / 2;
        let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
        if sorted.len() % 2 == 1 { at(half) } else { f64::midpoint(at(half.wrapping_sub(1)), at(half)) }
    }

    /// The series of `act` on the figures of each round.
    pub(crate) fn with(&self, other: &Self, act: impl Fn(f64, f64) -> f64) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(one, other)| act(*one, *other)).collect())
    }

    /// The median of the rounds' ratios to `other`. Whatever slows a whole round down cancels out.
    pub(crate) fn ratio(&self, other: &Self) -> f64 {
        self.with(other, |one, other| one / other).median()
    }
}

/// Which way an aim points.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

/// Something that the shield is meant to achieve.
#[derive(Clone, Debug)]
pub(crate) struct Aim {
    /// What is compared with what.
    pub(crate) what: &'static str,
    /// What is wanted.
    pub(crate) bound: Bound,
    /// What was found.
    pub(crate) found: f64,
    /// Behind the numbers: `×` or ` %`.
    pub(crate) unit: &'static str,
}

impl Aim {
    pub(crate) fn is_met(&self) -> bool {
        match self.bound {
            Bound::AtMost(most) => self.found <= most,
            Bound::AtLeast(least) => self.found >= least,
        }
    }

    /// The aim as a row of a Markdown table.
    pub(crate) fn row(&self) -> String {
        let unit = self.unit;
        let wanted = match self.bound {
            Bound::AtMost(most) => format!("at most {most}{unit}"),
            Bound::AtLeast(least) => format!("at least {least}{unit}"),
        };
        let outcome = if self.is_met() { "met" } else { "**missed**" };
        format!("| {} | {wanted} | {:.2}{unit} | {outcome} |\n", self.what, self.found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_ratios() {
        let series = |figures: &[f64]| Series(figures.to_vec());
        assert_eq!(series(&[9.0, 1.0, 5.0]).median(), 5.0);
        assert_eq!(series(&[9.0, 1.0, 5.0, 6.0]).median(), 5.5);
        assert!(Series::default().median().is_nan());
        // The machine was half as fast in the second round: the ratio stays.
        assert_eq!(series(&[10.0, 20.0, 10.0]).ratio(&series(&[5.0, 10.0, 5.0])), 2.0);
    }

    #[test]
    fn an_aim_without_a_figure_is_missed() {
        for bound in [Bound::AtMost(1.0), Bound::AtLeast(1.0)] {
            assert!(!Aim { what: "", bound, found: f64::NAN, unit: "×" }.is_met());
        }
    }
}
