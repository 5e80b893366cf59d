//! Whether all that carries streams still takes its turns: each part is asked, and answers by itself.
//!
//! A sign of life that one thread gave for all of them would tell nothing of a worker that hangs.

use std::sync::{
    Arc,
    atomic::{
        AtomicU64,
        Ordering::{Acquire, Release},
    },
};

use tokio::sync::{Notify, watch};

/// Whoever asks.
#[derive(Debug, Default)]
pub struct RollCall {
    asked: watch::Sender<u64>,
    /// The last question that each has answered.
    answered: Vec<Arc<AtomicU64>>,
    answer: Arc<Notify>,
}

/// Whoever has to answer.
#[derive(Debug)]
pub struct Member {
    asked: watch::Receiver<u64>,
    answered: Arc<AtomicU64>,
    answer: Arc<Notify>,
}

impl RollCall {
    /// One more that has to answer.
    pub fn enrol(&mut self) -> Member {
        let answered = Arc::new(AtomicU64::new(0));
        self.answered.push(Arc::clone(&answered));
        Member { asked: self.asked.subscribe(), answered, answer: Arc::clone(&self.answer) }
    }

    /// Asks once, and returns when each has answered. Never returns if one hangs or has ended.
    pub async fn call(&self) {
        self.asked.send_modify(|question| *question += 1);
        let question = *self.asked.borrow();
        while self.answered.iter().any(|answered| answered.load(Acquire) != question) {
            // An answer that came since is not missed: it leaves a permit.
            self.answer.notified().await;
        }
    }
}

impl Member {
    /// Answers as long as it is polled, so it belongs where it takes turns with what is to be watched. Never returns.
    pub async fn answer(mut self) {
        while self.asked.changed().await.is_ok() {
            self.answered.store(*self.asked.borrow_and_update(), Release);
            self.answer.notify_one();
        }
        // Nobody asks any more.
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        task::{Context, Waker},
    };

    use super::*;

    #[test]
    fn a_call_ends_once_each_has_answered_it_and_not_before() {
        let mut context = Context::from_waker(Waker::noop());
        let mut roll = RollCall::default();
        let (first, second) = (roll.enrol(), roll.enrol());
        let (mut first, mut second) = (pin!(first.answer()), pin!(second.answer()));
        for _ in 0..3 {
            let mut call = pin!(roll.call());
            assert!(call.as_mut().poll(&mut context).is_pending());
            assert!(first.as_mut().poll(&mut context).is_pending());
            assert!(call.as_mut().poll(&mut context).is_pending(), "the second has not answered");
            assert!(second.as_mut().poll(&mut context).is_pending());
            assert!(call.as_mut().poll(&mut context).is_ready());
        }
        // A call that nobody waited for to the end spoils none after it.
        assert!(pin!(roll.call()).poll(&mut context).is_pending());
        let mut call = pin!(roll.call());
        assert!(call.as_mut().poll(&mut context).is_pending());
        assert!(first.as_mut().poll(&mut context).is_pending());
        assert!(call.as_mut().poll(&mut context).is_pending());
        assert!(second.as_mut().poll(&mut context).is_pending());
        assert!(call.as_mut().poll(&mut context).is_ready());
    }

    #[test]
    fn whoever_has_ended_answers_no_more() {
        let mut context = Context::from_waker(Waker::noop());
        let mut roll = RollCall::default();
        let (there, gone) = (roll.enrol(), roll.enrol());
        drop(gone);
        let (mut there, mut call) = (pin!(there.answer()), pin!(roll.call()));
        for _ in 0..3 {
            assert!(call.as_mut().poll(&mut context).is_pending());
            assert!(there.as_mut().poll(&mut context).is_pending());
        }
    }
}
