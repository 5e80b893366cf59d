//! What a connection is doing and since when, so that each phase can have its time limit.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::{Buf, Bytes};
use pin_project_lite::pin_project;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
};

use crate::stream::Stream;

/// What an HTTP connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// The first byte of the first request.
    New,
    /// The rest of a request's head.
    Head,
    /// The body, the backend, or room to send the answer.
    Exchange,
    /// Another request.
    Idle,
}

/// Time and bytes of one connection. Times are milliseconds since it began.
#[derive(Debug)]
pub struct Pulse {
    began: Instant,
    phase: AtomicU8,
    phase_since: AtomicU64,
    /// When the client last took no more bytes, plus one; 0: it takes them.
    blocked_since: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    worked_nanoseconds: AtomicU64,
    is_reset: AtomicBool,
    idles: Notify,
}

/// How long each phase may last.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// From the first byte of a head, or from the beginning of the connection, to the head's end.
    pub head: Duration,
    /// Between requests.
    pub idle: Duration,
    /// For the client to take more bytes of an answer.
    pub client: Duration,
}

/// What took too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Late {
    /// The first byte of the first request.
    First,
    /// The head of a request.
    Head,
    /// Another request; nothing is wrong with that.
    Idle,
    /// The client takes no more of its answer.
    Reader,
}

impl Pulse {
    /// A connection that begins now.
    pub fn begin() -> Arc<Self> {
        Arc::new(Self {
            began: Instant::now(),
            phase: AtomicU8::new(Phase::New as u8),
            phase_since: AtomicU64::new(0),
            blocked_since: AtomicU64::new(0),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            worked_nanoseconds: AtomicU64::new(0),
            is_reset: AtomicBool::new(false),
            idles: Notify::new(),
        })
    }

    fn elapsed(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Another phase begins now.
    pub fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Relaxed);
        self.phase_since.store(self.elapsed(), Relaxed);
        if phase == Phase::Idle {
            self.idles.notify_one();
        }
    }

    /// Returns when the connection begins to idle: what [`Self::late`] said before may be too long.
    pub async fn idles(&self) {
        self.idles.notified().await;
    }

    /// The connection is to end with a reset.
    pub fn reset(&self) {
        self.is_reset.store(true, Relaxed);
    }

    /// Bytes from the client and to it.
    pub fn bytes(&self) -> (u64, u64) {
        (self.bytes_in.load(Relaxed), self.bytes_out.load(Relaxed))
    }

    /// How long a worker has worked for it, see [`metered`].
    pub fn worked_nanoseconds(&self) -> u64 {
        self.worked_nanoseconds.load(Relaxed)
    }

    /// What is late, or how long until something may be.
    pub fn late(&self, patience: &Patience) -> Result<Duration, Late> {
        let now = self.elapsed();
        let left = |since: u64, limit: Duration, late| {
            limit
                .checked_sub(Duration::from_millis(now.saturating_sub(since)))
                .filter(|left| !left.is_zero())
                .ok_or(late)
        };
        let since = self.phase_since.load(Relaxed);
        let phase = self.phase.load(Relaxed);
        // Whatever it waits for, the end of an answer goes first.
        if let Some(blocked) = self.blocked_since.load(Relaxed).checked_sub(1) {
            return left(blocked, patience.client, Late::Reader);
        }
        if phase == Phase::New as u8 {
            return left(since, patience.head, Late::First);
        }
        if phase == Phase::Head as u8 {
            return left(since, patience.head, Late::Head);
        }
        if phase == Phase::Idle as u8 {
            return left(since, patience.idle, Late::Idle);
        }
        // It may block or end at any time.
        Ok(patience.idle.min(patience.client))
    }

    /// Whether nothing has come yet.
    pub fn is_new(&self) -> bool {
        self.phase.load(Relaxed) == Phase::New as u8
    }

    /// Whether a request is being answered, or the end of its answer is still on its way.
    pub fn is_in_exchange(&self) -> bool {
        self.phase.load(Relaxed) == Phase::Exchange as u8 || self.blocked_since.load(Relaxed) != 0
    }

    /// Whether the connection waits for another request.
    pub fn is_idle(&self) -> bool {
        self.phase.load(Relaxed) == Phase::Idle as u8
    }

    /// So many bytes went from the client and to it, past [`Watched`].
    pub fn count(&self, bytes_in: usize, bytes_out: usize) {
        self.bytes_in.fetch_add(bytes_in as u64, Relaxed);
        self.bytes_out.fetch_add(bytes_out as u64, Relaxed);
    }

    fn read(&self, bytes: usize) {
        if bytes > 0 {
            self.bytes_in.fetch_add(bytes as u64, Relaxed);
            let phase = self.phase.load(Relaxed);
            if phase == Phase::New as u8 || phase == Phase::Idle as u8 {
                self.enter(Phase::Head);
            }
        }
    }

    fn wrote(&self, outcome: &Poll<io::Result<usize>>) {
        match outcome {
            Poll::Ready(Ok(bytes)) => {
                self.bytes_out.fetch_add(*bytes as u64, Relaxed);
                self.blocked_since.store(0, Relaxed);
                if self.phase.load(Relaxed) == Phase::Idle as u8 {
                    // The rest of an answer: only now does it begin to idle.
                    self.phase_since.store(self.elapsed(), Relaxed);
                }
            }
            Poll::Ready(Err(_)) => {}
            Poll::Pending => {
                let _ = self.blocked_since.compare_exchange(0, self.elapsed() + 1, Relaxed, Relaxed);
            }
        }
    }
}

/// Counts how long this thread works for a connection: from the beginning to the end of each turn of `task`.
///
/// Nothing here blocks, so that is CPU time, and a little more where something else took the CPU in the middle of a turn.
/// The clock of the thread's own CPU time would leave that out; but it is a system call, dearer than most turns.
pub fn metered<T: Future>(pulse: &Pulse, task: T) -> Metered<'_, T> {
    Metered { pulse, task }
}

pin_project! {
    /// See [`metered`]. An `async fn` would hold the task twice, as its argument and as what it waits for, and each connection
    /// has one.
    #[derive(Debug)]
    pub struct Metered<'p, T> {
        pulse: &'p Pulse,
        #[pin]
        task: T,
    }
}

impl<T: Future> Future for Metered<'_, T> {
    type Output = T::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T::Output> {
        let this = self.project();
        let began = Instant::now();
        let outcome = this.task.poll(context);
        let worked = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        this.pulse.worked_nanoseconds.fetch_add(worked, Relaxed);
        outcome
    }
}

/// A connection whose first bytes were read already, and whose bytes count.
#[derive(Debug)]
pub struct Watched {
    first: Bytes,
    stream: Stream,
    pulse: Arc<Pulse>,
}

impl Watched {
    /// `first` comes before what is still to be read from `stream`.
    pub fn new(first: Bytes, stream: Stream, pulse: Arc<Pulse>) -> Self {
        Self { first, stream, pulse }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if self.pulse.is_reset.load(Relaxed) {
            self.stream.set_reset();
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.first.has_remaining() {
            let bytes = this.first.split_to(this.first.len().min(buffer.remaining()));
            buffer.put_slice(&bytes);
            this.pulse.read(bytes.len());
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(context, buffer))?;
        this.pulse.read(buffer.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.stream).poll_write(context, bytes);
        this.pulse.wrote(&outcome);
        outcome
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.stream).poll_write_vectored(context, slices);
        this.pulse.wrote(&outcome);
        outcome
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the connection were late if no phase might last at all, and that it is not if each may last for an hour.
    fn late(pulse: &Pulse) -> Option<Late> {
        let (none, hour) = (Duration::ZERO, Duration::from_secs(3_600));
        assert!(pulse.late(&Patience { head: hour, idle: hour, client: hour }).is_ok());
        pulse.late(&Patience { head: none, idle: none, client: none }).err()
    }

    #[tokio::test]
    async fn the_time_of_turns_counts_and_the_time_between_them_does_not() {
        let (pulse, turn, between) = (Pulse::begin(), Duration::from_millis(30), Duration::from_millis(300));
        metered(&pulse, async {
            std::thread::sleep(turn);
            tokio::time::sleep(between).await;
            std::thread::sleep(turn);
        })
        .await;
        let worked = Duration::from_nanos(pulse.worked_nanoseconds());
        assert!(worked >= turn * 2, "{worked:?}");
        // Whatever else runs on this machine, not all of it comes in the middle of two turns.
        assert!(worked < pulse.began.elapsed().saturating_sub(between) + turn, "{worked:?}");
    }

    #[test]
    fn each_phase_has_its_limit() {
        let pulse = Pulse::begin();
        assert_eq!(late(&pulse), Some(Late::First));
        pulse.read(1);
        assert_eq!(late(&pulse), Some(Late::Head));
        assert!(!pulse.is_in_exchange());
        pulse.enter(Phase::Exchange);
        assert!(pulse.is_in_exchange());
        assert_eq!(late(&pulse), None, "whoever waits for the backend is not late");
        pulse.wrote(&Poll::Pending);
        assert_eq!(late(&pulse), Some(Late::Reader));
        pulse.wrote(&Poll::Ready(Ok(5)));
        assert_eq!(late(&pulse), None, "it takes bytes again");
        pulse.enter(Phase::Idle);
        assert_eq!(late(&pulse), Some(Late::Idle));
        pulse.wrote(&Poll::Pending);
        assert_eq!(late(&pulse), Some(Late::Reader), "the end of the answer is not with the client yet");
        assert!(pulse.is_idle() && pulse.is_in_exchange());
        pulse.wrote(&Poll::Ready(Ok(0)));
        assert_eq!(late(&pulse), Some(Late::Idle));
        assert!(pulse.is_idle() && !pulse.is_in_exchange());
        pulse.read(2);
        assert_eq!(late(&pulse), Some(Late::Head), "another request has begun");
        assert_eq!(pulse.bytes(), (3, 5));
    }
}
