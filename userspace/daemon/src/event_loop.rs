//! The one loop: whatever happens outside becomes an event, one at a time.
//!
//! The watchdog is fed here and nowhere else, and `/health` is answered here: a loop that hangs shows as such.

use std::{marker::PhantomData, time::Duration};

use aya::maps::{MapData, RingBuf};
use tokio::{
    io::unix::AsyncFd,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, interval_at},
};
use tunica_api::request::{self, Request};
use tunica_common::event::{Event as KernelEvent, Proof};
use tunica_systemd::Systemd;
use zerocopy::FromBytes;

use crate::{
    app::{AUDIT_EVERY, App},
    shell::{
        control_socket::{ControlQueues, ControlRequest},
        front::Heard,
        front_process::FrontTold,
        haproxy::HaproxyHeard,
        host::watch::Watch,
        http::HttpQuestion,
        load::Reading,
        tor_control::TorHeard,
    },
    telemetry,
};

/// How often the kernel gets a sign of life and the counters are read.
const TICK: Duration = Duration::from_secs(1);
/// Most events taken in one turn, so that a flood of them cannot keep requests waiting.
const EVENTS_A_TURN: usize = 1_024;

/// What the loop waits for besides time and signals.
pub struct Inputs {
    /// Requests of `tunica`.
    pub control: ControlQueues,
    /// Questions of the HTTP server.
    pub http: mpsc::Receiver<HttpQuestion>,
    /// What the ingress says.
    pub front: mpsc::Receiver<Heard>,
    /// How the ingress' process is, where this daemon starts it.
    pub front_process: mpsc::Receiver<FrontTold>,
    /// What HAProxy says.
    pub haproxy: mpsc::Receiver<HaproxyHeard>,
    /// What tor says over its control port.
    pub tor: mpsc::Receiver<TorHeard>,
    /// What was read of the load.
    pub load: mpsc::Receiver<Reading>,
    /// Whoever started the daemon.
    pub systemd: Systemd,
}

/// Runs until SIGTERM or SIGINT. The shield stays attached: its link is pinned.
///
/// # Errors
/// If signals or the ring buffer cannot be waited for.
pub async fn run(app: &mut App, mut inputs: Inputs) -> anyhow::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut events = Ring::watch(app.shield_mut().take_events())?;
    let mut proofs = Ring::watch(app.shield_mut().take_proofs())?;
    let mut host = Host::listen(app);
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut audit = interval_at(Instant::now() + AUDIT_EVERY, AUDIT_EVERY);
    audit.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut tor_scan = Box::pin(tokio::time::sleep(app.config().tor.scan_every));
    inputs.systemd.ready();
    tracing::info!(message_id = "daemon_ready", "tunicad is ready");

    loop {
        tokio::select! {
            biased;
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = tick.tick() => {
                inputs.systemd.feed_watchdog();
                app.tick();
                // A trial that was undone may have brought other tables.
                events = Ring::watch(app.shield_mut().take_events())?.or(events);
                proofs = Ring::watch(app.shield_mut().take_proofs())?.or(proofs);
            }
            Some(request) = inputs.control.changes.recv() => {
                let is_reload = matches!(request.request, Request::Reload(_));
                answer(app, request);
                if is_reload {
                    events = Ring::watch(app.shield_mut().take_events())?.or(events);
                    proofs = Ring::watch(app.shield_mut().take_proofs())?.or(proofs);
                }
            }
            _ = hangup.recv() => {
                let _span = telemetry::event_span("reload").entered();
                inputs.systemd.reloading();
                app.reload(request::Reload::default());
                events = Ring::watch(app.shield_mut().take_events())?.or(events);
                proofs = Ring::watch(app.shield_mut().take_proofs())?.or(proofs);
                inputs.systemd.ready();
            }
            // In no order, so that none of these can keep another waiting for ever.
            next = async {
                tokio::select! {
                    Some(request) = inputs.control.reads.recv() => Next::Read(request),
                    Some(question) = inputs.http.recv() => Next::Http(question),
                    Some(heard) = inputs.front.recv() => Next::Front(heard),
                    Some(told) = inputs.front_process.recv() => Next::FrontProcess(told),
                    Some(heard) = inputs.tor.recv() => Next::Tor(heard),
                    Some(reading) = inputs.load.recv() => Next::Load(reading),
                    Some(heard) = inputs.haproxy.recv() => Next::Haproxy(heard),
                    batch = events.next() => Next::Samples(batch),
                    batch = proofs.next() => Next::Proofs(batch),
                    () = &mut tor_scan => Next::TorScan,
                    heard = host.changed() => Next::Host(heard),
                    _ = audit.tick() => Next::Audit,
                }
            } => match next {
                Next::Read(request) => {
                    answer(app, request);
                    // The sockets run on this thread, too: what came in meanwhile is read before the next answer.
                    tokio::task::yield_now().await;
                }
                Next::Front(heard) => app.heard(heard),
                Next::FrontProcess(told) => app.told_of_front(told),
                Next::Haproxy(heard) => {
                    let _span = telemetry::event_span("haproxy").entered();
                    app.heard_haproxy(heard);
                }
                Next::Tor(heard) => {
                    let _span = telemetry::event_span("tor").entered();
                    app.heard_tor(heard);
                }
                Next::Load(reading) => {
                    let _span = telemetry::event_span("load").entered();
                    app.read_load(reading);
                }
                Next::Http(HttpQuestion::Metrics(reply)) => { let _ = reply.send(app.metrics_text()); }
                Next::Http(HttpQuestion::Ready(reply)) => { let _ = reply.send(app.unready()); }
                Next::Http(HttpQuestion::Health(reply)) => { let _ = reply.send(()); }
                Next::Samples(batch) => {
                    let _span = telemetry::event_span("samples").entered();
                    app.sampled(&batch?);
                }
                Next::Proofs(batch) => {
                    let _span = telemetry::event_span("proofs").entered();
                    app.proved(&batch?);
                }
                Next::TorScan => {
                    let _span = telemetry::event_span("tor_scan").entered();
                    app.read_tor_peers();
                    let next = Instant::now() + app.config().tor.scan_every;
                    tor_scan.as_mut().reset(next);
                }
                Next::Host(Ok(())) => {
                    let _span = telemetry::event_span("host").entered();
                    app.host_changed();
                }
                Next::Host(Err(error)) => {
                    host = Host(None);
                    app.is_deaf(&error);
                }
                Next::Audit => {
                    let _span = telemetry::event_span("audit").entered();
                    app.audit();
                }
            },
        }
    }
    tracing::info!(message_id = "daemon_stopping", "tunicad stops; the shield stays attached");
    inputs.systemd.stopping();
    Ok(())
}

/// What comes after time, signals and changes.
enum Next {
    Read(ControlRequest),
    Http(HttpQuestion),
    Front(Heard),
    FrontProcess(FrontTold),
    Tor(TorHeard),
    Load(Reading),
    Haproxy(HaproxyHeard),
    Samples(std::io::Result<Vec<KernelEvent>>),
    Proofs(std::io::Result<Vec<Proof>>),
    TorScan,
    Host(std::io::Result<()>),
    Audit,
}

fn answer(app: &mut App, request: ControlRequest) {
    let _span = request.span.enter();
    let answer = app.answer(request.request, request.caller);
    // The client may have gone; what was asked is done all the same.
    let _ = request.reply.send(answer);
}

/// Where the kernel tells of changed addresses and interfaces; without it the audit alone finds them.
struct Host(Option<Watch>);

impl Host {
    fn listen(app: &mut App) -> Self {
        Self(Watch::open().map_err(|error| app.is_deaf(&error)).ok())
    }

    async fn changed(&mut self) -> std::io::Result<()> {
        match self.0.as_mut() {
            Some(watch) => watch.changed().await,
            None => std::future::pending().await,
        }
    }
}

/// A ring buffer of `T`, if this daemon holds it.
struct Ring<T>(Option<AsyncFd<RingBuf<MapData>>>, PhantomData<T>);

impl<T: FromBytes> Ring<T> {
    fn watch(ring: Option<RingBuf<MapData>>) -> std::io::Result<Self> {
        Ok(Self(ring.map(crate::sys::watch).transpose()?, PhantomData))
    }

    /// This one if it holds a ring buffer, else `other`.
    fn or(self, other: Self) -> Self {
        if self.0.is_some() { self } else { other }
    }

    /// Waits for items and takes them, at most [`EVENTS_A_TURN`].
    async fn next(&mut self) -> std::io::Result<Vec<T>> {
        let Some(ring) = self.0.as_mut() else {
            return std::future::pending().await;
        };
        let mut guard = ring.readable_mut().await?;
        let mut batch = Vec::new();
        while batch.len() < EVENTS_A_TURN {
            let Some(item) = guard.get_inner_mut().next() else {
                guard.clear_ready();
                break;
            };
            // The kernel program writes whole items only.
            batch.extend(T::read_from_bytes(&item));
        }
        Ok(batch)
    }
}
