//! What a circuit may use of something within a minute: a bucket that holds a minute's worth and leaks at the budget's pace
//! (the leaky bucket as a meter, ITU-T I.371).
//!
//! The bucket's level is one byte for each circuit: seconds of the budget's pace, so that 60 is a minute's worth. Nothing is lost
//! to rounding, because both what comes in and what leaks are differences of totals in whole seconds.

use std::num::NonZeroU64;

/// Seconds of pace that a circuit may have used at once.
const WHOLE: u8 = 60;
/// At so many, what is under way is held against the circuit as well.
const TWICE: u8 = 2 * WHOLE;
/// Ticks of a second.
const SECOND: u32 = 10;

/// How much of something a circuit may use in a minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    a_minute: NonZeroU64,
}

/// How much of a [`Budget`] a circuit has used, as far as it has not leaked yet: 0 to 255 s of the budget's pace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Debt(u8);

impl Budget {
    /// So much in a minute.
    pub const fn a_minute(amount: NonZeroU64) -> Self {
        Self { a_minute: amount }
    }

    /// So much in a minute.
    pub const fn in_a_minute(self) -> u64 {
        self.a_minute.get()
    }

    /// How many seconds of its pace an amount is, rounded down.
    fn seconds(self, amount: u64) -> u64 {
        // Asked for each report; what would not fit into 64 bits no circuit uses.
        amount.saturating_mul(u64::from(WHOLE)) / self.a_minute
    }
}

impl Debt {
    /// Leaks from tick `before` to tick `now`.
    pub(super) fn turn(&mut self, before: u32, now: u32) {
        let elapsed = (now / SECOND).saturating_sub(before / SECOND);
        self.0 = self.0.saturating_sub(u8::try_from(elapsed).unwrap_or(u8::MAX));
    }

    /// The circuit's total has grown.
    pub(super) fn add(&mut self, budget: Budget, before: u64, after: u64) {
        let seconds = budget.seconds(after).saturating_sub(budget.seconds(before));
        self.0 = self.0.saturating_add(u8::try_from(seconds).unwrap_or(u8::MAX));
    }

    /// Whether the budget is used up.
    pub(super) const fn is_spent(self) -> bool {
        self.0 >= WHOLE
    }

    /// Whether twice the budget is used up.
    pub(super) const fn is_spent_twice(self) -> bool {
        self.0 >= TWICE
    }

    /// Seconds until [`Self::is_spent`] ends.
    pub(super) const fn seconds_left(self) -> u8 {
        self.0.saturating_sub(WHOLE - 1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn budget(a_minute: u64) -> Budget {
        Budget::a_minute(a_minute.try_into().unwrap())
    }

    #[test]
    fn a_minutes_worth_is_the_limit_and_leaks_in_a_minute() {
        let (mut debt, budget) = (Debt::default(), budget(600));
        debt.add(budget, 0, 599);
        assert_eq!((debt.is_spent(), debt.seconds_left()), (false, 0));
        debt.add(budget, 599, 600);
        assert_eq!((debt.is_spent(), debt.seconds_left()), (true, 1));
        debt.turn(5, 9);
        assert!(debt.is_spent(), "no second has passed");
        debt.turn(9, 10);
        assert!(!debt.is_spent());
        debt.add(budget, 600, 1_210);
        assert!(debt.is_spent_twice());
        // It never holds more than some minutes' worth, whatever was used.
        debt.add(budget, 1_210, u64::MAX);
        debt.turn(10, 10 + 195 * SECOND);
        assert_eq!((debt.is_spent(), debt.seconds_left()), (true, 1));
        debt.turn(0, u32::MAX);
        assert_eq!(debt, Debt::default());
        // A clock that steps back leaks nothing.
        debt.add(budget, 0, 600);
        debt.turn(100, 0);
        assert!(debt.is_spent());
    }

    proptest! {
        /// However it is cut into reports, the level is that of a bucket that leaks continuously, but for a second or two.
        #[test]
        fn as_an_exact_bucket(a_minute in 60u64..100_000, uses in prop::collection::vec((0u32..80, 0u64..4_000), 1..200)) {
            let (budget, mut debt, mut exact, mut total, mut now) = (budget(a_minute), Debt::default(), 0.0, 0, 7u32);
            for (wait, used) in uses {
                debt.turn(now, now + wait);
                now += wait;
                exact = f64::max(0.0, exact - f64::from(wait) / f64::from(SECOND));
                // Beyond what the byte holds there is nothing to compare.
                let used = used.min(a_minute / 4);
                if exact > 200.0 {
                    continue;
                }
                debt.add(budget, total, total + used);
                total += used;
                exact += used as f64 * f64::from(WHOLE) / a_minute as f64;
                prop_assert!((f64::from(debt.0) - exact).abs() <= 2.0, "{debt:?} {exact}");
            }
        }
    }
}
