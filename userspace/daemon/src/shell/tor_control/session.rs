//! One connection after its login: subscribes, keeps the event loop informed, does what it asks for.

use std::time::Duration;

use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tunica_core::id::{CircuitId, TorGeneration};
use tunica_onion::{
    circuit::RawCircuit,
    control_codec::{Command, Event, EventKind, Expected, Message, ParseError, circuits},
    torrc::Torrc,
};

use super::{
    CircuitChange, CloseOutcome, LinkError, TorAct, TorControlOptions, TorHeard, fact::TorCircuit,
    memory::Memory, outbox::Outbox, peers::Inquiry, process, wire::Wire,
};

/// What is subscribed to. Bytes come once a second for every circuit, so they are left to whoever carries the streams.
const EVENTS: &[EventKind] = &[EventKind::Circuit, EventKind::CircuitMinor, EventKind::Connection];
/// Least time between two lists of circuits.
const CIRCUITS_PAUSE: Duration = Duration::from_secs(1);
/// Least time between two lists of peers: a relay's connections come and go all the time.
const PEERS_PAUSE: Duration = Duration::from_secs(5);
/// How soon a young tor is asked once more which process it is: it cannot be recognised before
/// [`tunica_core::tor_process::SLACK`].
const SETTLING: Duration = Duration::from_secs(5);
/// Tor's status for a circuit that it does not know (control-spec, "Status codes").
const UNKNOWN_ENTITY: u16 = 552;

/// Whether the event loop has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Over {
    Yes,
    No,
}

/// See the module.
pub(super) struct Session<'a> {
    wire: Wire,
    acts: &'a mut mpsc::Receiver<TorAct>,
    news: News<'a>,
    memory: &'a mut Memory,
    /// When tor is to be asked once more which process it is: what is kept for the next daemon must not be out of date.
    process_due: Instant,
    peers_every: Duration,
    inquiry: Option<Inquiry>,
    /// When circuits were listed last.
    listed_at: Instant,
    /// Whether missed changes were reported; one line for a connection is enough.
    is_missed_reported: bool,
}

/// What events are made into; apart from the connection, because they come while an answer is waited for.
struct News<'a> {
    generation: TorGeneration,
    outbox: &'a mut Outbox,
    /// When peers are to be asked for, and when they were.
    peers_due: Instant,
    peers_asked: Instant,
    /// Whether an event that cannot be read was reported, too.
    is_unread_reported: bool,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        wire: Wire,
        generation: TorGeneration,
        memory: &'a mut Memory,
        outbox: &'a mut Outbox,
        acts: &'a mut mpsc::Receiver<TorAct>,
        options: &TorControlOptions,
    ) -> Self {
        let now = Instant::now();
        let news = News { generation, outbox, peers_due: now, peers_asked: now, is_unread_reported: false };
        let process_every =
            if memory.is_settled() { options.peers_every } else { options.peers_every.min(SETTLING) };
        Self {
            wire,
            acts,
            news,
            memory,
            process_due: now + process_every,
            peers_every: options.peers_every,
            inquiry: None,
            listed_at: now,
            is_missed_reported: false,
        }
    }

    /// Runs until the connection ends; `Ok` says that the event loop has gone.
    pub(super) async fn run(mut self) -> Result<(), LinkError> {
        self.wire.demand(&Command::SetEvents(EVENTS), |event| self.news.take(event)).await?;
        self.list_circuits().await?;
        loop {
            let outbox = &mut *self.news.outbox;
            let (is_empty, has_room, is_behind) = (outbox.is_empty(), outbox.has_room(), outbox.missed() > 0);
            tokio::select! {
                over = outbox.pass_on(), if !is_empty => {
                    if over == Over::Yes {
                        return Ok(());
                    }
                }
                act = self.acts.recv(), if has_room => match act {
                    None => return Ok(()),
                    Some(TorAct::Close(circuit)) => self.close(circuit).await?,
                },
                message = self.wire.message() => {
                    let message = message?;
                    if !message.is_event() {
                        return Err(LinkError::Unasked);
                    }
                    self.news.take(&message);
                }
                () = sleep_until(self.listed_at + CIRCUITS_PAUSE), if is_behind && is_empty => {
                    if !self.is_missed_reported {
                        self.is_missed_reported = true;
                        tracing::warn!(
                            message_id = "tor_control_missed",
                            missed = self.news.outbox.missed(),
                            "changes of tor's circuits were missed; the whole list is asked for"
                        );
                    }
                    self.list_circuits().await?;
                }
                () = sleep_until(self.news.peers_due), if self.inquiry.is_none() => {
                    let now = Instant::now();
                    (self.news.peers_asked, self.news.peers_due) = (now, now + self.peers_every);
                    self.ask_services().await?;
                    let inquiry = Inquiry::begin(&mut self.wire, |event| self.news.take(event)).await?;
                    self.inquiry = Some(inquiry);
                }
                () = sleep_until(self.process_due) => {
                    let answer = process::ask(&mut self.wire, |event| self.news.take(event)).await?;
                    self.memory.meet_again(answer.seen);
                    self.process_due = Instant::now() + self.peers_every;
                }
                () = std::future::ready(()), if self.inquiry.is_some() => self.look_up().await?,
            }
        }
    }

    /// Asks what tor publishes. One that refuses to say is not left for it.
    async fn ask_services(&mut self) -> Result<(), LinkError> {
        let command = Command::GetConf(&["HiddenServiceOptions"]);
        let answer = self.wire.ask(&command, |event| self.news.take(event)).await?;
        if let Ok(answer) = answer.accepted() {
            self.news.outbox.tell(TorHeard::Services(Torrc::of_options(answer.pairs())));
        }
        Ok(())
    }

    /// Looks up one peer; the last one's address completes the list.
    async fn look_up(&mut self) -> Result<(), LinkError> {
        let Some(mut inquiry) = self.inquiry.take() else { return Ok(()) };
        if inquiry.go_on(&mut self.wire, |event| self.news.take(event)).await? {
            self.news.outbox.tell(TorHeard::Peers(inquiry.end()));
        } else {
            self.inquiry = Some(inquiry);
        }
        Ok(())
    }

    async fn list_circuits(&mut self) -> Result<(), LinkError> {
        const KEY: &str = "circuit-status";
        let answer = self.wire.demand(&Command::GetInfo(&[KEY]), |event| self.news.take(event)).await?;
        let unreadable = |source| LinkError::Unreadable { command: "GETINFO", source };
        let absent = ParseError { line: 1, expected: Expected::Circuit };
        let value = answer.values(KEY).next().ok_or_else(|| unreadable(absent))?;
        let open = circuits(value).map_err(unreadable)?;
        let generation = self.news.generation;
        let open = open.into_iter().map(|(circuit, status)| {
            TorCircuit::of(generation, &circuit, CircuitChange::of(&status, None, None))
        });
        self.news.outbox.tell_all(open.collect());
        self.listed_at = Instant::now();
        Ok(())
    }

    async fn close(&mut self, circuit: CircuitId) -> Result<(), LinkError> {
        if circuit.generation() != self.news.generation {
            self.news.outbox.tell(TorHeard::Closed { circuit, outcome: CloseOutcome::OtherTor });
            return Ok(());
        }
        let raw = RawCircuit::new(circuit.number_for_this_node());
        let command = Command::CloseCircuit { circuit: raw, if_unused: false };
        let answer = self.wire.ask(&command, |event| self.news.take(event)).await;
        let outcome = match &answer {
            Ok(answer) => match answer.accepted() {
                Ok(_) => CloseOutcome::Accepted,
                Err(refused) if refused.status == UNKNOWN_ENTITY => CloseOutcome::NoSuchCircuit,
                Err(refused) => CloseOutcome::Refused { status: refused.status },
            },
            Err(_) => CloseOutcome::NotConnected,
        };
        self.news.outbox.tell(TorHeard::Closed { circuit, outcome });
        answer.map(drop)
    }
}

impl News<'_> {
    fn take(&mut self, message: &Message) {
        match Event::parse(message) {
            Ok(Event::Circuit { circuit, status, reason, remote_reason }) => {
                let change = CircuitChange::of(&status, reason, remote_reason);
                self.outbox.tell_change(TorCircuit::of(self.generation, &circuit, change));
            }
            Ok(Event::CircuitMinor { circuit, .. }) => {
                let change = CircuitChange::Repurposed;
                self.outbox.tell_change(TorCircuit::of(self.generation, &circuit, change));
            }
            Ok(Event::Connection { .. }) => {
                self.peers_due = self.peers_due.min(self.peers_asked + PEERS_PAUSE);
            }
            // Not subscribed to.
            Ok(
                Event::CircuitBandwidth { .. }
                | Event::Descriptor { .. }
                | Event::NetworkLiveness { .. }
                | Event::Status { .. }
                | Event::Other { .. },
            ) => {}
            Err(error) => {
                if !self.is_unread_reported {
                    self.is_unread_reported = true;
                    tracing::warn!(message_id = "tor_control_unread", "an event of tor's: {error}");
                }
                self.outbox.miss();
            }
        }
    }
}
