//! How unusual what a circuit did is: how far its numbers lie from the medians of calm times.
//!
//! For each of [`Feature::ALL`] the distance from the median is divided by how far circuits usually lie from it (the median of
//! their distances, which no minority moves; Hampel's identifier). The score is the mean of the three largest of these: one number
//! that is out may be chance, and a circuit need not be unusual in everything. A score of 1.00 is a circuit whose three most
//! unusual numbers lie as far out as half of all circuits do in any one; it says nothing of what the circuit is for.
//!
//! Two properties are held by tests: a number that moves further out makes no smaller score, and as long as fewer than half of the
//! circuits that were learned are an attacker's, each median lies between numbers of honest ones.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::circuit_features::{COUNT, Feature, Features};

/// Distances below this are never far: half an octave, or the 32nd part of a share. Else a number that all circuits have alike
/// would make the least difference unusual.
pub const LEAST_SPREAD: u16 = 8;
/// No number counts for more than this, in hundredths.
pub const MOST: u16 = 2_000;
/// How many numbers, those that lie furthest out, make the score.
const FURTHEST: usize = 3;

/// How unusual a circuit is, in hundredths: from 0 to [`MOST`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Score(u16);

/// What is usual.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usual {
    medians: [u16; COUNT],
    spreads: [u16; COUNT],
}

impl Score {
    /// In hundredths.
    pub const fn hundredths(self) -> u16 {
        self.0
    }
}

impl fmt::Display for Score {
    /// With two decimals.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}.{:02}", self.0 / 100, self.0 % 100)
    }
}

impl Usual {
    /// What is usual where these circuits are; `None` if there are none.
    pub fn of<'a>(circuits: impl Iterator<Item = &'a Features> + Clone) -> Option<Self> {
        let mut usual = Self { medians: [0; COUNT], spreads: [LEAST_SPREAD; COUNT] };
        let places = usual.medians.iter_mut().zip(&mut usual.spreads).enumerate();
        for (place, (middle, spread)) in places {
            let values = || circuits.clone().filter_map(move |features| features.0.get(place).copied());
            *middle = median(values().collect())?;
            let distances = values().map(|value| value.abs_diff(*middle)).collect();
            *spread = median(distances)?.max(LEAST_SPREAD);
        }
        Some(usual)
    }

    /// How unusual a circuit with these numbers is.
    pub fn score(&self, features: &Features) -> Score {
        let mut distances = self.distances(features);
        distances.sort_unstable_by(|one, other| other.cmp(one));
        let sum: u32 = distances.iter().take(FURTHEST).map(|distance| u32::from(*distance)).sum();
        // A mean of three is no more than the largest of them.
        Score((sum / FURTHEST as u32) as u16)
    }

    /// The numbers that lie furthest out, as many as make the score, the furthest first; those that lie no further out than
    /// is usual are left out.
    pub fn furthest(&self, features: &Features) -> Vec<Feature> {
        let mut distances: Vec<_> = self.distances(features).into_iter().zip(Feature::ALL).collect();
        distances.sort_by_key(|(distance, _)| std::cmp::Reverse(*distance));
        let far = distances.into_iter().take(FURTHEST).filter(|(distance, _)| *distance > 100);
        far.map(|(_, feature)| feature).collect()
    }

    /// How far out each number lies, in hundredths of what is usual.
    fn distances(&self, features: &Features) -> [u16; COUNT] {
        let mut distances = [0; COUNT];
        let usual = self.medians.iter().zip(&self.spreads);
        for (distance, (value, (median, spread))) in distances.iter_mut().zip(features.0.iter().zip(usual)) {
            let far = u32::from(value.abs_diff(*median)) * 100 / u32::from((*spread).max(1));
            // No more than `MOST`, so the cast is exact.
            *distance = far.min(MOST.into()) as u16;
        }
        distances
    }
}

/// The middle one; of an even number the lower of the two.
fn median(mut values: Vec<u16>) -> Option<u16> {
    let middle = values.len().checked_sub(1)? / 2;
    values.sort_unstable();
    values.get(middle).copied()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Circuits whose numbers are all the same.
    fn flat(values: impl IntoIterator<Item = u16>) -> Vec<Features> {
        values.into_iter().map(|value| Features([value; COUNT])).collect()
    }

    fn usual(circuits: &[Features]) -> Usual {
        Usual::of(circuits.iter()).unwrap()
    }

    /// All as the median but for these.
    fn but(changes: &[(Feature, u16)]) -> Features {
        let value = |feature| changes.iter().find(|(of, _)| *of == feature).map_or(100, |(_, value)| *value);
        Features(Feature::ALL.map(value))
    }

    #[test]
    fn the_three_that_lie_furthest_out_make_the_score() {
        // The median is 100, and half of all lie within 20 of it.
        let usual = usual(&flat([60, 80, 90, 100, 100, 110, 120, 140]));
        assert_eq!((usual.medians[0], usual.spreads[0]), (100, 10));
        for (changes, score) in [
            (&[][..], "0.00"),
            (&[(Feature::Gap, 110)], "0.33"),
            (&[(Feature::Gap, 130)], "1.00"),
            (&[(Feature::Gap, 70), (Feature::BytesIn, 130), (Feature::Variety, 70)], "3.00"),
            (
                &[
                    (Feature::Gap, 70),
                    (Feature::BytesIn, 130),
                    (Feature::Variety, 70),
                    (Feature::Faults, 120),
                ],
                "3.00",
            ),
            (&[(Feature::Gap, u16::MAX)], "6.66"),
        ] {
            assert_eq!(usual.score(&but(changes)).to_string(), score, "{changes:?}");
        }
        let all = Features([u16::MAX; COUNT]);
        assert_eq!(usual.score(&all).hundredths(), MOST);
        let far =
            usual.furthest(&but(&[(Feature::Gap, 130), (Feature::BytesIn, 150), (Feature::Faults, 110)]));
        assert_eq!(far, [Feature::BytesIn, Feature::Gap]);
    }

    #[test]
    fn where_all_are_alike_a_little_is_not_much() {
        let usual = usual(&flat([100; 40]));
        assert_eq!(usual.spreads, [LEAST_SPREAD; COUNT]);
        assert_eq!(usual.score(&Features([108; COUNT])).to_string(), "1.00");
        assert_eq!(Usual::of([].iter()), None);
    }

    proptest! {
        /// For all circuits and every number of theirs, moving it further out makes no smaller score.
        #[test]
        fn further_out_is_no_less_unusual(
            known in prop::collection::vec(prop::array::uniform11(0u16..1_024), 1..60),
            circuit in prop::array::uniform11(0u16..1_024),
            place in 0..COUNT,
            further in 0u16..2_000,
        ) {
            let known: Vec<_> = known.into_iter().map(Features).collect();
            let usual = usual(&known);
            let mut moved = circuit;
            moved[place] = if circuit[place] >= usual.medians[place] {
                circuit[place].saturating_add(further)
            } else {
                circuit[place].saturating_sub(further)
            };
            prop_assert!(usual.score(&Features(moved)) >= usual.score(&Features(circuit)));
        }

        /// For all circuits of an attacker that are fewer than the honest ones, each median lies between numbers of honest ones.
        #[test]
        fn a_minority_moves_no_median_past_the_honest(
            honest in prop::collection::vec(prop::array::uniform11(0u16..1_024), 2..40),
            attacker in prop::collection::vec(prop::array::uniform11(any::<u16>()), 0..39),
        ) {
            let attacker = &attacker[..attacker.len().min(honest.len() - 1)];
            let all: Vec<_> = honest.iter().chain(attacker).copied().map(Features).collect();
            let usual = usual(&all);
            for (place, median) in usual.medians.iter().enumerate() {
                let of_honest = || honest.iter().map(|features| features[place]);
                prop_assert!((of_honest().min().unwrap()..=of_honest().max().unwrap()).contains(median));
            }
        }
    }
}
