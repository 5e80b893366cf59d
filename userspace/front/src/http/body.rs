//! Bodies on their way through: how large, how slow, and what is held while they pass.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper_util::client::legacy;
use thiserror::Error;
use tokio::{
    sync::Notify,
    time::{Sleep, sleep},
};
use tunica_core::refusal::Refusal;

use super::HttpSettings;
use crate::{circuits::Stay, pulse::Phase};

/// A request's body, which may be neither too large nor too slow.
pub(super) struct Asked {
    body: Incoming,
    began: Instant,
    bytes: u64,
    most: u64,
    /// For the next bytes.
    patience: Duration,
    grace: Duration,
    bytes_per_second: u64,
    alarm: Option<Pin<Box<Sleep>>>,
    /// Told of each piece that goes on, and of the end.
    progress: Arc<Notify>,
}

/// Why a body ended early.
#[derive(Debug)]
pub(super) enum BodyError {
    TooLarge,
    TooSlow,
    Client(hyper::Error),
}

impl BodyError {
    /// The word for it; `None`: the client broke off.
    fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::TooLarge => Some(Refusal::BodyTooLarge),
            Self::TooSlow => Some(Refusal::SlowBody),
            Self::Client(error) => error.is_parse().then_some(Refusal::Malformed),
        }
    }
}

impl fmt::Display for BodyError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge => write!(out, "the request's body is too large"),
            Self::TooSlow => write!(out, "the request's body comes too slowly"),
            Self::Client(error) => write!(out, "the request's body broke off: {error}"),
        }
    }
}

impl std::error::Error for BodyError {}

impl Asked {
    pub(super) fn new(body: Incoming, settings: &HttpSettings, progress: Arc<Notify>) -> Self {
        Self {
            body,
            began: Instant::now(),
            bytes: 0,
            most: settings.body_bytes,
            patience: settings.client,
            grace: settings.request,
            bytes_per_second: settings.body_bytes_per_second.max(1),
            alarm: None,
            progress,
        }
    }

    /// Until when more must have come.
    fn deadline(&self) -> Duration {
        let earned = self.grace + Duration::from_secs(self.bytes / self.bytes_per_second);
        earned.saturating_sub(self.began.elapsed()).min(self.patience)
    }
}

impl Body for Asked {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) {
            this.alarm = None;
            this.progress.notify_one();
            return Poll::Ready(match frame {
                Some(Ok(frame)) => {
                    this.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
                    Some(if this.bytes > this.most { Err(BodyError::TooLarge) } else { Ok(frame) })
                }
                Some(Err(error)) => Some(Err(BodyError::Client(error))),
                None => None,
            });
        }
        let deadline = this.deadline();
        ready!(this.alarm.get_or_insert_with(|| Box::pin(sleep(deadline))).as_mut().poll(context));
        Poll::Ready(Some(Err(BodyError::TooSlow)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Reads a whole form of at most `most` bytes, within the limits of any body. An error without a word: the client broke off.
pub(super) async fn form(
    body: Incoming,
    settings: &HttpSettings,
    most: u64,
) -> Result<String, Option<Refusal>> {
    let asked = Asked { most, ..Asked::new(body, settings, Arc::default()) };
    let whole = asked.collect().await.map_err(|error| error.refusal())?;
    String::from_utf8(whole.to_bytes().into()).map_err(|_| Some(Refusal::Malformed))
}

/// Why the backend did not answer; `None`: the client broke off.
pub(super) fn why(error: &legacy::Error) -> Option<Refusal> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    let mut is_late = false;
    while let Some(error) = cause {
        if let Some(body) = error.downcast_ref::<BodyError>() {
            return body.refusal();
        }
        let io = error.downcast_ref::<std::io::Error>();
        is_late |= io.is_some_and(|io| io.kind() == std::io::ErrorKind::TimedOut);
        cause = error.source();
    }
    Some(match (error.is_connect(), is_late) {
        (true, true) => Refusal::BackendConnectTimeout,
        (true, false) => Refusal::BackendDown,
        (false, _) => Refusal::BackendBroken,
    })
}

/// An answer's body. The request is over when it ends, whichever way.
pub(super) struct Answer {
    body: Incoming,
    visit: Arc<Stay>,
    /// How long the backend may be silent.
    patience: Duration,
    alarm: Option<Pin<Box<Sleep>>>,
}

/// Why an answer broke off.
#[derive(Debug, Error)]
pub(super) enum AnswerError {
    #[error("the backend fell silent in the middle of its answer")]
    Silent,
    #[error(transparent)]
    Backend(#[from] hyper::Error),
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.visit.pulse().enter(Phase::Idle);
    }
}

impl Answer {
    pub(super) fn new(body: Incoming, visit: Arc<Stay>, patience: Duration) -> Self {
        Self { body, visit, patience, alarm: None }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = AnswerError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, AnswerError>>> {
        let this = self.get_mut();
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) {
            this.alarm = None;
            return Poll::Ready(frame.map(|frame| frame.map_err(AnswerError::Backend)));
        }
        // Only while more is wanted: a client that is slow to take it has its own limit.
        let patience = this.patience;
        ready!(this.alarm.get_or_insert_with(|| Box::pin(sleep(patience))).as_mut().poll(context));
        this.visit.refused(Refusal::BackendTimeout);
        Poll::Ready(Some(Err(AnswerError::Silent)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
