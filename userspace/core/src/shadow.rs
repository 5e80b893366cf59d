//! Limits that are tried before they act: what they would have refused is counted, and served.
//!
//! A limit that is a shadow leaves no trace on its circuit: no violation, so no ban, and no puzzle. How many of those that it
//! would have refused are VIPs, by token or by the operator's word, says how often it would have met those whom it should not.

use crate::refusal::Refusal;

/// Some of [`Refusal::ALL`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Words(u64);

/// What limits would have refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WouldRefuse {
    /// Connections and requests.
    pub all: u64,
    /// Those of VIPs among them.
    pub vips: u64,
}

/// Which limits are shadows, and what each would have refused.
#[derive(Clone, Debug)]
pub(crate) struct Shadows {
    words: Words,
    counts: Vec<WouldRefuse>,
}

const _: () = assert!(Refusal::ALL.len() <= 64, "a word has one bit");

impl Refusal {
    /// Whether it is a limit that may be a shadow. The others guard memory and places, which a shadow would give away, or judge
    /// what is no matter of a number.
    pub const fn may_be_shadow(self) -> bool {
        matches!(
            self,
            Self::ConnectionRate
                | Self::CircuitRate
                | Self::TooManyOpen
                | Self::RequestRate
                | Self::ByteBudget
                | Self::CpuBudget
                | Self::SlowLane
                | Self::VipRate
                | Self::GlobalRate
                | Self::PuzzleRequired
        )
    }
}

impl Words {
    const fn bit(word: Refusal) -> u64 {
        1 << word as u64
    }

    /// Every limit that may be a shadow.
    pub(crate) fn of_all_limits() -> Self {
        Refusal::ALL.iter().copied().filter(|word| word.may_be_shadow()).collect()
    }

    /// Whether the word is one of them.
    pub const fn contains(self, word: Refusal) -> bool {
        self.0 & Self::bit(word) != 0
    }
}

impl FromIterator<Refusal> for Words {
    fn from_iter<T: IntoIterator<Item = Refusal>>(words: T) -> Self {
        Self(words.into_iter().fold(0, |bits, word| bits | Self::bit(word)))
    }
}

impl Shadows {
    /// Counts nothing yet.
    pub(crate) fn new(words: Words) -> Self {
        Self { words, counts: vec![WouldRefuse::default(); Refusal::ALL.len()] }
    }

    /// Others from now on; what was counted stays.
    pub(crate) const fn set_words(&mut self, words: Words) {
        self.words = words;
    }

    /// Whether a limit that speaks against a stream acts. One that does not counts it.
    pub(crate) fn acts(&mut self, word: Refusal, is_vip: bool) -> bool {
        if !self.words.contains(word) {
            return true;
        }
        if let Some(count) = self.counts.get_mut(word as usize) {
            count.all = count.all.saturating_add(1);
            count.vips = count.vips.saturating_add(u64::from(is_vip));
        }
        false
    }

    /// What each limit would have refused, those that would have refused something.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (Refusal, WouldRefuse)> {
        Refusal::ALL.iter().copied().zip(self.counts.iter().copied()).filter(|(_, count)| count.all > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stand_at_their_place() {
        for (place, word) in Refusal::ALL.iter().enumerate() {
            assert_eq!(*word as usize, place);
            let one: Words = [*word].into_iter().collect();
            assert!(Refusal::ALL.iter().all(|other| one.contains(*other) == (other == word)));
        }
    }

    #[test]
    fn a_shadow_counts_and_does_not_act() {
        let mut shadows = Shadows::new([Refusal::RequestRate].into_iter().collect());
        assert!(shadows.acts(Refusal::CircuitRate, false));
        assert!(!shadows.acts(Refusal::RequestRate, false) && !shadows.acts(Refusal::RequestRate, true));
        let counted = WouldRefuse { all: 2, vips: 1 };
        assert_eq!(shadows.counts().collect::<Vec<_>>(), [(Refusal::RequestRate, counted)]);
        shadows.set_words(Words::default());
        assert!(shadows.acts(Refusal::RequestRate, false));
        assert_eq!(shadows.counts().count(), 1);
    }
}
