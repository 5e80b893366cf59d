//! Which known word a mistyped one was meant to be.

/// Longer words are nobody's slip of the finger, and comparing them would cost time for nothing.
const LONGEST: usize = 64;

/// The word of `known` closest to `word`, unless all are too far off to be what was meant: more than a third of the
/// letters differ.
pub(crate) fn nearest<'k>(word: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    known
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.len() / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// How many letters must be inserted, removed, replaced or swapped with their neighbour to make `b` of `a` (the optimal
/// string alignment distance).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    if a.len() > LONGEST || b.len() > LONGEST {
        return usize::MAX;
    }
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    let mut previous_in_a = None;
    for (i, &in_a) in a.iter().enumerate() {
        let mut next = vec![i + 1];
        let (mut diagonal, mut left) = (i, i + 1);
        let mut previous_in_b = None;
        for (j, &in_b) in b.iter().enumerate() {
            let above = row.get(j + 1).copied().unwrap_or(usize::MAX);
            let mut least = (diagonal + usize::from(in_a != in_b)).min(above + 1).min(left + 1);
            let swapped = previous_in_a == Some(in_b) && previous_in_b == Some(in_a);
            if swapped && let Some(two_back) = j.checked_sub(1).and_then(|j| before.get(j)) {
                least = least.min(two_back + 1);
            }
            next.push(least);
            (diagonal, left, previous_in_b) = (above, least, Some(in_b));
        }
        before = std::mem::replace(&mut row, next);
        previous_in_a = Some(in_a);
    }
    row.last().copied().unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn distances() {
        for (a, b, expected) in [
            ("", "", 0),
            ("", "abc", 3),
            ("burst", "burts", 1),
            ("burst", "bust", 1),
            ("ca", "abc", 3),
            ("mode", "node", 1),
        ] {
            assert_eq!(distance(a, b), expected, "{a} {b}");
            assert_eq!(distance(b, a), expected, "{b} {a}");
        }
    }

    #[test]
    fn far_words_are_not_proposed() {
        let known = || ["burst", "enabled"].into_iter();
        assert_eq!(nearest("burts", known()), Some("burst"));
        assert_eq!(nearest("colour", known()), None);
        assert_eq!(nearest(&"b".repeat(65), known()), None);
    }

    proptest! {
        /// For all words, the distance is 0 to itself, the same both ways, and never beyond the longer word's length.
        #[test]
        fn is_a_distance(a in ".{0,12}", b in ".{0,12}") {
            prop_assert_eq!(distance(&a, &a), 0);
            prop_assert_eq!(distance(&a, &b), distance(&b, &a));
            prop_assert!(distance(&a, &b) <= a.chars().count().max(b.chars().count()));
        }
    }
}
