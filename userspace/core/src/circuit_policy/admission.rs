//! What all circuits share: the rate of new connections, the places, the tarpit and the tokens.
//!
//! One small machine for all shards. It knows every connection that is held by a serial number, so that no place can
//! be given back twice, and it says itself whose turn it is and who must make room.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU32,
    time::Duration,
};

use super::{
    Lane,
    settings::CircuitSettings,
    tokens::{TokenId, TokenRefused, Tokens},
    window::{Ring, begin, tick},
};
use crate::{
    false_positives::Holders,
    id::{CircuitId, TorGeneration},
    refusal::Refusal,
    shadow::{Shadows, WouldRefuse},
    time::Monotime,
};

/// New connections of all circuits, over one second.
type SecondRing = Ring<u32, 11, 1>;

/// A token in use: a number that is never given twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(NonZeroU32);

/// One connection that is held. Ascending; never given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Serial(u64);

/// What a shard asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// For which kind of place.
    pub want: Want,
    /// In which lane.
    pub lane: Lane,
    /// Whether the circuit paid, by puzzle, token or the operator's word.
    pub is_paid: bool,
    /// Its token, whose limits count.
    pub ticket: Option<Ticket>,
}

/// Kinds of places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// To be served, or to wait for it.
    Serve,
    /// To be given a puzzle.
    Challenge,
    /// To be held in the tarpit.
    Tarpit,
}

/// Where a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Being served: one of `max_concurrent_connections`.
    Served,
    /// In the queue.
    Waiting,
    /// Looking at a puzzle.
    Challenged,
    /// In the tarpit.
    Tarpit,
}

/// A place was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// The connection's number from now on.
    pub serial: Serial,
    /// Where it is.
    pub place: Place,
    /// The connection that must end to make room, and the word for it. It has left the books already.
    pub ends: Option<(Serial, Refusal)>,
}

/// No place was given, and nothing was counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Denied {
    /// Why.
    pub why: Refusal,
    /// When to try again.
    pub retry_after: Duration,
}

/// The machine; the front keeps one, behind one lock.
#[derive(Clone, Debug)]
pub struct Admission {
    settings: CircuitSettings,
    next_serial: u64,
    held: BTreeMap<Serial, Held>,
    /// Those that wait, whose turn comes first; those who did not pay apart.
    waiting_paid: BTreeSet<(Lane, Serial)>,
    waiting_unpaid: BTreeSet<(Lane, Serial)>,
    /// Those that look at a puzzle.
    challenged: BTreeSet<Serial>,
    tarpit: BTreeSet<Serial>,
    served_paid: u32,
    served_unpaid: BTreeSet<Serial>,
    rate: SecondRing,
    rate_unpaid: SecondRing,
    turned: u32,
    tokens: Tokens,
    shadows: Shadows,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    place: Place,
    lane: Lane,
    is_paid: bool,
    /// The token that it came with.
    ticket: Option<Ticket>,
    /// When it was admitted.
    since: Monotime,
}

impl Admission {
    /// A machine that holds nothing.
    pub fn new(settings: CircuitSettings) -> Self {
        Self {
            shadows: Shadows::new(settings.shadows()),
            settings,
            next_serial: 0,
            held: BTreeMap::new(),
            waiting_paid: BTreeSet::new(),
            waiting_unpaid: BTreeSet::new(),
            challenged: BTreeSet::new(),
            tarpit: BTreeSet::new(),
            served_paid: 0,
            served_unpaid: BTreeSet::new(),
            rate: SecondRing::new(),
            rate_unpaid: SecondRing::new(),
            turned: 0,
            tokens: Tokens::default(),
        }
    }

    /// Other limits from now on. Connections held stay, also those beyond a lowered limit.
    pub fn set_settings(&mut self, settings: CircuitSettings) {
        self.shadows.set_words(settings.shadows());
        self.settings = settings;
    }

    /// Gives a place. Only a connection that is served or waits counts towards the rate.
    ///
    /// # Errors
    /// When a limit speaks against it; then nothing is counted.
    pub fn admit(&mut self, ask: Ask, now: Monotime) -> Result<Admitted, Denied> {
        match ask.want {
            Want::Tarpit => Ok(self.admit_to_tarpit(ask, now)),
            Want::Challenge => {
                let ends = self.make_room(&ask)?;
                Ok(self.hold(ask, Place::Challenged, ends, now))
            }
            Want::Serve => {
                let since = now;
                let now = self.turn(now);
                let is_vip = ask.lane == Lane::Vip;
                self.check_rate(ask.is_paid, now).or_else(|denied| self.pass_shadow(denied, is_vip))?;
                self.check_room(&ask)?;
                if let Some(ticket) = ask.ticket {
                    let counted = self.tokens.connect(ticket, self.settings.token_per_10_seconds(), now);
                    self.note_holder(ticket, counted, now);
                    counted.or_else(|denied| self.pass_shadow(denied, is_vip))?;
                    let room = self.tokens.check_open(ticket, self.settings.max_concurrent_with_token());
                    self.note_holder(ticket, room, now);
                    room.or_else(|denied| self.pass_shadow(denied, is_vip))?;
                }
                let ends = self.make_room(&ask)?;
                self.rate.add(now);
                if !ask.is_paid {
                    self.rate_unpaid.add(now);
                }
                let place =
                    if self.is_its_turn(ask.lane, ask.is_paid) { Place::Served } else { Place::Waiting };
                Ok(self.hold(ask, place, ends, since))
            }
        }
    }

    /// Lets pass what a limit that is a shadow denied.
    fn pass_shadow(&mut self, denied: Denied, is_vip: bool) -> Result<(), Denied> {
        if self.shadows.acts(denied.why, is_vip) { Err(denied) } else { Ok(()) }
    }

    /// What limits that are shadows would have refused, see [`CircuitSettings::shadow`].
    pub fn would_refuse(&self) -> impl Iterator<Item = (Refusal, WouldRefuse)> {
        self.shadows.counts()
    }

    /// Starts to serve the connection whose turn it is, if a place is free for it: VIP, normal, suspect, in each the one
    /// that waited longest. Call it after each [`Self::close`] until it returns `None`.
    pub fn start_next(&mut self) -> Option<Serial> {
        let serial = self.next()?;
        self.move_to(serial, Place::Served);
        Some(serial)
    }

    fn next(&self) -> Option<Serial> {
        let paid = self.waiting_paid.first().filter(|_| self.has_place(true));
        let unpaid = self.waiting_unpaid.first().filter(|_| self.has_place(false));
        paid.into_iter().chain(unpaid).min().map(|(_, serial)| *serial)
    }

    /// A connection that is served lets those that wait go before it, if one of them can start in its place: then it waits
    /// itself, behind them. Returns whether it does; call [`Self::start_next`] then.
    pub fn step_aside(&mut self, serial: Serial, now: Monotime) -> bool {
        let Some(held) = self.held.get(&serial).copied().filter(|held| held.place == Place::Served) else {
            return false;
        };
        self.forget(serial);
        self.remember(serial, Held { place: Place::Waiting, lane: Lane::Suspect, since: now, ..held });
        let steps = self.next().is_some_and(|next| next != serial);
        if !steps {
            self.forget(serial);
            self.remember(serial, held);
        }
        steps
    }

    /// The connection that must end for one that paid and waits: where all places are taken, and those who did not pay hold more
    /// than the part that is theirs, since it became less meanwhile. It is the one held longest, and none is that has not been
    /// held for as long as others wait at most: places that come free by themselves are enough then. It has left the books
    /// already; its word is [`Refusal::Displaced`]. Call [`Self::start_next`] after it.
    pub fn give_way(&mut self, now: Monotime) -> Option<Serial> {
        let part = self.settings.unpaid_part(self.settings.max_concurrent_connections);
        if self.waiting_paid.is_empty() || self.has_place(true) || self.served_unpaid.len() as u32 <= part {
            return None;
        }
        let first = *self.served_unpaid.first()?;
        let is_long = now.since(self.held.get(&first)?.since) > self.settings.queue_timeout;
        is_long.then(|| self.forget(first)).flatten().map(|_| first)
    }

    /// The circuit of a connection has paid, and uses this token, if any: one with a puzzle is served, or waits. It counts for the
    /// token from now on; where that has as many open as it may, it goes on as one that did not pay. Returns where it is; `None`
    /// where it had to make room already.
    pub fn paid(
        &mut self,
        serial: Serial,
        lane: Lane,
        ticket: Option<Ticket>,
        now: Monotime,
    ) -> Option<Place> {
        let held = self.held.get(&serial)?;
        let ticket = ticket.filter(|_| held.place != Place::Tarpit);
        let is_other = ticket.is_some() && ticket != held.ticket;
        if let Some(ticket) = ticket.filter(|_| is_other) {
            let room = self.tokens.check_open(ticket, self.settings.max_concurrent_with_token());
            if room.or_else(|denied| self.pass_shadow(denied, true)).is_err() {
                return self.leave_puzzle(serial, lane, false, now);
            }
            if let Some(held) = self.forget(serial) {
                self.remember(serial, Held { ticket: Some(ticket), ..held });
            }
        }
        self.leave_puzzle(serial, lane, true, now)
    }

    /// A connection with a puzzle need not solve it any more, because the load fell: it is served, or waits, as one that did
    /// not pay. Returns where it is; `None` where it had to make room already.
    pub fn excused(&mut self, serial: Serial, lane: Lane, now: Monotime) -> Option<Place> {
        self.leave_puzzle(serial, lane, false, now)
    }

    /// Where a connection is; `None` once it had to make room.
    pub fn place(&self, serial: Serial) -> Option<Place> {
        Some(self.held.get(&serial)?.place)
    }

    /// A connection has ended, for whatever reason.
    pub fn close(&mut self, serial: Serial) {
        self.forget(serial);
    }

    /// Connections being served.
    pub fn served(&self) -> u32 {
        self.served_paid + self.served_unpaid.len() as u32
    }

    /// Connections in the queue.
    pub fn waiting(&self) -> u32 {
        (self.waiting_paid.len() + self.waiting_unpaid.len()) as u32
    }

    /// How long the first of the queue has waited: the one that is served next once any place is free. `None` where nobody waits.
    pub fn first_wait(&self, now: Monotime) -> Option<Duration> {
        let first = self.waiting_paid.first().into_iter().chain(self.waiting_unpaid.first()).min();
        first.and_then(|(_, serial)| Some(now.since(self.held.get(serial)?.since)))
    }

    /// Connections that look at a puzzle.
    pub fn challenged(&self) -> u32 {
        self.challenged.len() as u32
    }

    /// Connections in the tarpit.
    pub fn tarpitted(&self) -> u32 {
        self.tarpit.len() as u32
    }

    /// New connections in the last second, as the limit counts them.
    pub fn rate(&mut self, now: Monotime) -> u32 {
        self.turn(now);
        self.rate.sum()
    }

    /// Tokens in use.
    pub fn tokens(&self) -> u32 {
        self.tokens.len()
    }

    // Tokens.

    /// A circuit showed a token that the caller has verified and that is good until `until`; the answer goes to
    /// [`super::CircuitShard::bind`].
    ///
    /// # Errors
    /// When the token has expired, is used by as many circuits as may, or too many tokens are in use. The circuit stays
    /// what it was.
    pub fn present(
        &mut self,
        token: TokenId,
        circuit: CircuitId,
        until: Monotime,
        now: Monotime,
    ) -> Result<Ticket, TokenRefused> {
        self.tokens.present(token, circuit, until, self.settings.circuits_per_token.get(), now)
    }

    /// A request of a circuit with this token.
    ///
    /// # Errors
    /// When the token is over its rate, or counts no longer.
    pub fn request(&mut self, ticket: Ticket, now: Monotime) -> Result<(), Denied> {
        let now = tick(now);
        let counted = self.tokens.request(ticket, self.settings.token_per_10_seconds(), now);
        self.note_holder(ticket, counted, now);
        counted
    }

    /// Counts the holder of a token as seen, and as refused where a limit that acts speaks against it.
    fn note_holder(&mut self, ticket: Ticket, counted: Result<(), Denied>, now: u32) {
        let acts = |denied: Denied| {
            denied.why != Refusal::TokenGone && !self.settings.shadows().contains(denied.why)
        };
        let is_refused = counted.is_err_and(acts);
        self.tokens.note(ticket, is_refused, now);
    }

    /// The holder of a token was refused by a limit of its circuit: see [`super::Command::HolderRefused`].
    pub fn note_refused(&mut self, ticket: Ticket, now: Monotime) {
        self.tokens.note(ticket, true, tick(now));
    }

    /// Holders of tokens, for [`crate::false_positives`].
    pub const fn holders(&self) -> Holders {
        self.tokens.holders()
    }

    /// A circuit uses its token no longer; see [`super::Command::ReleaseToken`].
    pub fn release(&mut self, ticket: Ticket, circuit: CircuitId) {
        self.tokens.release(ticket, circuit);
    }

    /// The circuits that use a token. Whoever finds one among them that carries no connection may [`Self::release`] it.
    pub fn token_users(&self, token: TokenId) -> Option<(Ticket, &[CircuitId])> {
        self.tokens.users(token)
    }

    /// A token counts no longer, and never again. Returns its circuits, for [`super::CircuitShard::unbind`].
    pub fn revoke(&mut self, ticket: Ticket, now: Monotime) -> Vec<CircuitId> {
        self.tokens.revoke(ticket, now)
    }

    /// A token was revoked elsewhere: by the front before this one. Returns whether that is news, and its circuits likewise.
    pub fn learn_revoked(
        &mut self,
        token: TokenId,
        until: Monotime,
        now: Monotime,
    ) -> (bool, Vec<CircuitId>) {
        self.tokens.learn_revoked(token, until, now)
    }

    /// Every token that was revoked and has not expired.
    pub fn revoked(&self) -> impl Iterator<Item = (TokenId, Monotime)> {
        self.tokens.revoked()
    }

    /// No token counts any more, because the keys are others. Returns all their circuits likewise.
    pub fn forget_tokens(&mut self) -> Vec<CircuitId> {
        self.tokens.forget_all()
    }

    /// Another tor process has begun: the circuits of earlier ones use no token any more.
    pub fn begin(&mut self, generation: TorGeneration) {
        self.tokens.begin(generation);
    }

    /// Forgets expired tokens. Their circuits know the time themselves.
    pub fn advance(&mut self, now: Monotime) {
        self.tokens.forget_expired(now);
    }

    /// When [`Self::advance`] has something to do.
    pub fn next_deadline(&self) -> Option<Monotime> {
        self.tokens.next_expiry()
    }

    // Places.

    fn admit_to_tarpit(&mut self, ask: Ask, now: Monotime) -> Admitted {
        let is_full = self.tarpit.len() as u64 >= u64::from(self.settings.most_tarpits.get());
        let oldest = self.tarpit.first().copied().filter(|_| is_full);
        if let Some(oldest) = oldest {
            self.forget(oldest);
        }
        self.hold(ask, Place::Tarpit, oldest.map(|oldest| (oldest, Refusal::TarpitFull)), now)
    }

    fn accepted(&self) -> u32 {
        self.served() + self.waiting() + self.challenged()
    }

    /// Whom a newcomer may push out. One that paid: a connection that did not and is not served, first the one that has
    /// looked at a puzzle for longest, then the last of the queue. One that is to be given a puzzle: the one that has
    /// looked at its own for longest, else nobody could pay any more once others have filled all places with puzzles that
    /// they do not solve.
    fn displaceable(&self, ask: &Ask) -> Option<Serial> {
        let challenged = self.challenged.first().copied();
        let queued = || self.waiting_unpaid.last().map(|(_, serial)| *serial);
        match (ask.is_paid, ask.want) {
            (true, _) => challenged.or_else(queued),
            (false, Want::Challenge) => challenged,
            (false, Want::Serve | Want::Tarpit) => None,
        }
    }

    fn check_room(&self, ask: &Ask) -> Result<(), Denied> {
        let is_full = self.accepted() >= self.settings.maxconn.get();
        if is_full && self.displaceable(ask).is_none() {
            let why = Refusal::Capacity;
            return Err(Denied { why, retry_after: self.settings.retry_after(why) });
        }
        Ok(())
    }

    fn make_room(&mut self, ask: &Ask) -> Result<Option<(Serial, Refusal)>, Denied> {
        self.check_room(ask)?;
        if self.accepted() < self.settings.maxconn.get() {
            return Ok(None);
        }
        let displaced = self.displaceable(ask);
        if let Some(serial) = displaced {
            self.forget(serial);
        }
        Ok(displaced.map(|serial| (serial, Refusal::Displaced)))
    }

    fn has_place(&self, is_paid: bool) -> bool {
        let most = self.settings.max_concurrent_connections;
        self.served() < most.get()
            && (is_paid || (self.served_unpaid.len() as u32) < self.settings.unpaid_part(most))
    }

    /// Whether a place is free and nobody of this lane or a better one waits for it.
    fn is_its_turn(&self, lane: Lane, is_paid: bool) -> bool {
        let comes_before =
            |queue: &BTreeSet<(Lane, Serial)>| queue.first().is_some_and(|(first, _)| *first <= lane);
        self.has_place(is_paid)
            && !comes_before(&self.waiting_paid)
            && !(self.has_place(false) && comes_before(&self.waiting_unpaid))
    }

    fn hold(&mut self, ask: Ask, place: Place, ends: Option<(Serial, Refusal)>, since: Monotime) -> Admitted {
        let serial = Serial(self.next_serial);
        self.next_serial += 1;
        self.remember(
            serial,
            Held { place, lane: ask.lane, is_paid: ask.is_paid, ticket: ask.ticket, since },
        );
        Admitted { serial, place, ends }
    }

    fn leave_puzzle(&mut self, serial: Serial, lane: Lane, pays: bool, now: Monotime) -> Option<Place> {
        let held = *self.held.get(&serial)?;
        let is_paid = pays || held.is_paid;
        if held.place == Place::Challenged {
            // It came to be given a puzzle, which counts towards no rate; now it is one that is served.
            let now = self.turn(now);
            self.rate.add(now);
            if !is_paid {
                self.rate_unpaid.add(now);
            }
        }
        self.forget(serial);
        // What is being served keeps its place; the tarpit keeps what it has.
        let place = match held.place {
            Place::Challenged | Place::Waiting if self.is_its_turn(lane, is_paid) => Place::Served,
            Place::Challenged | Place::Waiting => Place::Waiting,
            Place::Served | Place::Tarpit => held.place,
        };
        self.remember(serial, Held { place, lane, is_paid, ..held });
        Some(place)
    }

    fn move_to(&mut self, serial: Serial, place: Place) {
        if let Some(held) = self.forget(serial) {
            self.remember(serial, Held { place, ..held });
        }
    }

    fn remember(&mut self, serial: Serial, held: Held) {
        self.held.insert(serial, held);
        held.ticket.into_iter().for_each(|ticket| self.tokens.opened(ticket));
        match (held.place, held.is_paid) {
            (Place::Served, true) => self.served_paid += 1,
            (Place::Served, false) => {
                self.served_unpaid.insert(serial);
            }
            (Place::Waiting, true) => {
                self.waiting_paid.insert((held.lane, serial));
            }
            (Place::Waiting, false) => {
                self.waiting_unpaid.insert((held.lane, serial));
            }
            (Place::Challenged, true | false) => {
                self.challenged.insert(serial);
            }
            (Place::Tarpit, true | false) => {
                self.tarpit.insert(serial);
            }
        }
    }

    fn forget(&mut self, serial: Serial) -> Option<Held> {
        let held = self.held.remove(&serial)?;
        held.ticket.into_iter().for_each(|ticket| self.tokens.closed(ticket));
        match (held.place, held.is_paid) {
            (Place::Served, true) => self.served_paid -= 1,
            (Place::Served, false) => {
                self.served_unpaid.remove(&serial);
            }
            (Place::Waiting, true) => {
                self.waiting_paid.remove(&(held.lane, serial));
            }
            (Place::Waiting, false) => {
                self.waiting_unpaid.remove(&(held.lane, serial));
            }
            (Place::Challenged, true | false) => {
                self.challenged.remove(&serial);
            }
            (Place::Tarpit, true | false) => {
                self.tarpit.remove(&serial);
            }
        }
        Some(held)
    }

    // The rate.

    fn turn(&mut self, now: Monotime) -> u32 {
        let now = tick(now).max(self.turned);
        self.rate.turn(self.turned, now);
        self.rate_unpaid.turn(self.turned, now);
        self.turned = now;
        now
    }

    fn check_rate(&self, is_paid: bool, now: u32) -> Result<(), Denied> {
        let most = self.settings.max_connections_per_second;
        let unpaid = self.settings.unpaid_part(most);
        let is_over = self.rate.sum() >= most.get() || (!is_paid && self.rate_unpaid.sum() >= unpaid);
        if !is_over {
            return Ok(());
        }
        // With nothing left for those who did not pay, waiting longer than the window helps no more.
        let mut free = self.rate.below_from(most.get(), now);
        if !is_paid {
            free = free.max(self.rate_unpaid.below_from(unpaid, now));
        }
        Err(Denied { why: Refusal::GlobalRate, retry_after: begin(free).since(begin(now)) })
    }
}

impl Ticket {
    pub(super) fn new(number: u32) -> Option<Self> {
        NonZeroU32::new(number).map(Self)
    }

    pub(super) const fn number(self) -> u32 {
        self.0.get()
    }
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Ticket(scrubbed)")
    }
}
