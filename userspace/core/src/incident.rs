//! What an attack was, once it is over: when, which defences, how fast, what was done, and what it cost.
//!
//! An incident begins when a defence speaks against a packet while none is open, and is over once no defence has spoken
//! for [`QUIET_AFTER`]. It is a durable fact from its beginning on, and is written again every minute, so that a crash in
//! the middle of an attack costs a minute of figures and no incident. It holds no address.
//!
//! | state | input | next | what follows |
//! |---|---|---|---|
//! | none open | a defence spoke | open | begun; to be kept |
//! | open | a defence spoke | open, last packet now | – |
//! | open | [`KEEP_EVERY`] since it was kept | open | to be kept |
//! | open | [`QUIET_AFTER`] without a word | none open | ended; to be kept |

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tunica_common::verdict::{Action, Verdict};

use crate::{
    defence::{Defence, QUIET_AFTER},
    ledger::Command,
    notice::Notice,
    time::{Monotime, Now, WallTime},
};

/// How many incidents are kept; the oldest goes.
pub const MOST: usize = 100;
/// How often an open incident is written.
pub const KEEP_EVERY: Duration = Duration::from_secs(60);
/// Most ports that an incident names.
pub const MOST_PORTS: usize = 64;
/// Seconds without an attack whose load an attack's is compared with.
const SECONDS_BEFORE: usize = 60;
/// Shortest time between two readings of which a rate is told.
const SHORTEST_WINDOW: Duration = Duration::from_millis(900);

/// One attack. This form is part of the ledger's file format.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incident {
    /// When the first defence spoke.
    pub start: WallTime,
    /// When a defence spoke last.
    pub last: WallTime,
    /// Whether it is over.
    pub is_over: bool,
    /// [`Defence::name`] of those that spoke, in the order in which they began.
    pub defences: Vec<String>,
    /// Most packets in a second that defences spoke against, as an average between two readings of the counters.
    pub peak_packets_per_second: u64,
    /// Packets that defences spoke against, by outcome.
    pub rows: Vec<Row>,
    /// Ports that were over their SYN budget, in order, at most [`MOST_PORTS`].
    pub ports: Vec<u16>,
    /// Load by software interrupts; `None` where it could not be read.
    pub softirq: Option<Softirq>,
}

/// Packets of one outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// The verdict's word.
    pub verdict: String,
    /// The action's word.
    pub action: String,
    /// How many packets.
    pub packets: u64,
}

/// Share of all CPUs' time that went into software interrupts, in thousandths. All of the host's network traffic is in
/// it, and all of the shield's work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Softirq {
    /// On average in the minute before the incident; `None` where nothing was read before.
    pub before: Option<u32>,
    /// On average from its beginning to its last packet.
    pub average: u32,
    /// At most, between two readings.
    pub peak: u32,
    /// Of how many readings.
    pub readings: u32,
}

/// Time that all CPUs together have spent since boot, in any one unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuTimes {
    /// In software interrupts.
    pub softirq: u64,
    /// In everything, idling included.
    pub all: u64,
}

impl Incident {
    /// Packets that ended in `action`.
    pub fn packets(&self, action: Action) -> u64 {
        self.rows.iter().filter(|row| row.action == action.label()).map(|row| row.packets).sum()
    }

    fn add(&mut self, verdict: Verdict, action: Action, packets: u64) {
        let [verdict, action] = [verdict.label(), action.label()];
        match self.rows.iter_mut().find(|row| row.verdict == verdict && row.action == action) {
            Some(row) => row.packets = row.packets.saturating_add(packets),
            None => self.rows.push(Row { verdict: verdict.to_owned(), action: action.to_owned(), packets }),
        }
    }
}

/// What defences said between two readings of the counters.
pub(crate) struct Spoken {
    /// Packets that defences spoke against, by outcome; none that is zero.
    pub(crate) packets: Vec<(Verdict, Action, u64)>,
    /// The defences that spoke.
    pub(crate) defences: Vec<Defence>,
}

/// The open incident, and those that are not kept yet.
#[derive(Clone, Debug, Default)]
pub(crate) struct Incidents {
    open: Option<Open>,
    unkept: BTreeMap<u32, Incident>,
    /// Packets since the last rate was told, and since when.
    window: Option<(u64, Monotime)>,
    cpu: Option<CpuTimes>,
    /// Thousandths, oldest first, while nothing is open.
    quiet_load: VecDeque<u32>,
}

#[derive(Clone, Debug)]
struct Open {
    id: u32,
    incident: Incident,
    last: Monotime,
    kept: Monotime,
    ports: BTreeSet<u16>,
    /// Sum of the readings in [`Softirq::average`].
    load: u64,
    /// Readings since the last packet, which count only if another comes.
    pending: Vec<u32>,
}

impl Incidents {
    /// Takes up what an earlier daemon left open.
    pub(crate) fn new(kept: &BTreeMap<u32, Incident>, now: Now) -> Self {
        let open = kept.last_key_value().filter(|(_, incident)| !incident.is_over).map(|(id, incident)| {
            let load = incident.softirq.map_or(0, |load| u64::from(load.average) * u64::from(load.readings));
            Open {
                id: *id,
                incident: incident.clone(),
                last: now.mono,
                kept: now.mono,
                ports: incident.ports.iter().copied().collect(),
                load,
                pending: Vec::new(),
            }
        });
        Self { open, ..Self::default() }
    }

    /// Takes in how the CPUs spent their time. To be told before the counters of the same second.
    pub(crate) fn load(&mut self, times: CpuTimes) {
        let before = self.cpu.replace(times);
        let Some(before) = before.filter(|before| before.all < times.all) else { return };
        let softirq = times.softirq.saturating_sub(before.softirq);
        let share = softirq.saturating_mul(1_000) / (times.all - before.all);
        let share = u32::try_from(share.min(1_000)).unwrap_or(1_000);
        match &mut self.open {
            // A quiet minute follows the last packet, in which nothing else ends the list.
            Some(open) if open.pending.len() < 4 * SECONDS_BEFORE => open.pending.push(share),
            Some(_) => {}
            None => {
                self.quiet_load.push_back(share);
                if self.quiet_load.len() > SECONDS_BEFORE + 1 {
                    self.quiet_load.pop_front();
                }
            }
        }
    }

    /// Takes in what the counters say; `newest` is the ledger's last number.
    pub(crate) fn count(&mut self, spoken: &Spoken, newest: Option<u32>, now: Now) -> Option<Notice> {
        let packets = spoken.packets.iter().fold(0u64, |sum, (_, _, packets)| sum.saturating_add(*packets));
        let (sum, since) = self.window.unwrap_or((0, now.mono));
        let (sum, elapsed) = (sum.saturating_add(packets), now.mono.since(since));
        let is_long_enough = elapsed >= SHORTEST_WINDOW;
        self.window = Some(if is_long_enough { (0, now.mono) } else { (sum, since) });
        let mut begun = None;
        if self.open.is_none()
            && let Some(defence) = spoken.defences.first()
        {
            let id = self.next_id(newest);
            self.open = Some(self.begin(id, now));
            begun = Some(Notice::IncidentBegun { id, defence: *defence });
        }
        let Some(open) = &mut self.open else { return begun };
        if is_long_enough {
            let nanoseconds = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
            let rate = u128::from(sum) * 1_000_000_000 / u128::from(nanoseconds.max(1));
            let peak = &mut open.incident.peak_packets_per_second;
            *peak = (*peak).max(u64::try_from(rate).unwrap_or(u64::MAX));
        }
        for (verdict, action, packets) in &spoken.packets {
            open.incident.add(*verdict, *action, *packets);
        }
        for defence in &spoken.defences {
            let name = defence.name();
            if !open.incident.defences.iter().any(|known| known == name) {
                open.incident.defences.push(name.to_owned());
            }
        }
        if !spoken.defences.is_empty() {
            (open.last, open.incident.last) = (now.mono, now.wall);
            open.take_load();
        }
        if begun.is_some() {
            open.kept = now.mono;
            let (id, incident) = (open.id, open.incident.clone());
            self.keep(id, incident);
        }
        begun
    }

    /// Takes in the ports that are over their budget.
    pub(crate) fn armed(&mut self, ports: impl Iterator<Item = u16>) {
        let Some(open) = &mut self.open else { return };
        for port in ports {
            if open.ports.len() < MOST_PORTS {
                open.ports.insert(port);
            }
        }
        open.incident.ports = open.ports.iter().copied().collect();
    }

    /// Does what time alone makes due.
    pub(crate) fn advance(&mut self, now: Monotime) -> Option<Notice> {
        let open = self.open.as_mut()?;
        if open.last.after(QUIET_AFTER) <= now {
            let mut open = self.open.take()?;
            open.incident.is_over = true;
            let length = open.incident.last.since(open.incident.start);
            let peak = open.incident.peak_packets_per_second;
            self.keep(open.id, open.incident);
            return Some(Notice::IncidentEnded { id: open.id, length, peak });
        }
        if open.kept.after(KEEP_EVERY) <= now {
            open.kept = now;
            let (id, incident) = (open.id, open.incident.clone());
            self.keep(id, incident);
        }
        None
    }

    /// When [`Self::advance`] has something to do; at once while something is not kept.
    pub(crate) fn next_deadline(&self) -> Option<Monotime> {
        if !self.unkept.is_empty() {
            return Some(Monotime(0));
        }
        self.open.as_ref().map(|open| open.last.after(QUIET_AFTER).min(open.kept.after(KEEP_EVERY)))
    }

    /// What is to be made durable.
    pub(crate) fn commands(&self) -> impl Iterator<Item = Command> {
        self.unkept.iter().map(|(id, incident)| Command::SetIncident { id: *id, incident: incident.clone() })
    }

    /// An incident is durable.
    pub(crate) fn kept(&mut self, id: u32) {
        self.unkept.remove(&id);
    }

    /// The one that is open, with its number.
    pub(crate) fn open(&self) -> Option<(u32, &Incident)> {
        self.open.as_ref().map(|open| (open.id, &open.incident))
    }

    /// All that are known: those `kept`, and what is newer.
    pub(crate) fn all(&self, kept: &BTreeMap<u32, Incident>) -> BTreeMap<u32, Incident> {
        let mut all = kept.clone();
        all.extend(self.unkept.iter().map(|(id, incident)| (*id, incident.clone())));
        all.extend(self.open.iter().map(|open| (open.id, open.incident.clone())));
        trim(&mut all);
        all
    }

    fn keep(&mut self, id: u32, incident: Incident) {
        self.unkept.insert(id, incident);
        trim(&mut self.unkept);
    }

    fn next_id(&self, newest: Option<u32>) -> u32 {
        let unkept = self.unkept.last_key_value().map(|(id, _)| *id);
        newest.max(unkept).unwrap_or(0).saturating_add(1)
    }

    fn begin(&mut self, id: u32, now: Now) -> Open {
        // The reading of this second belongs to the attack already.
        let first = self.quiet_load.pop_back();
        let readings = u32::try_from(self.quiet_load.len()).unwrap_or(u32::MAX);
        let before = self.quiet_load.drain(..).sum::<u32>().checked_div(readings);
        let incident = Incident {
            start: now.wall,
            last: now.wall,
            is_over: false,
            defences: Vec::new(),
            peak_packets_per_second: 0,
            rows: Vec::new(),
            ports: Vec::new(),
            softirq: first.map(|_| Softirq { before, average: 0, peak: 0, readings: 0 }),
        };
        Open {
            id,
            incident,
            last: now.mono,
            kept: now.mono,
            ports: BTreeSet::new(),
            load: 0,
            pending: first.into_iter().collect(),
        }
    }
}

impl Open {
    /// Counts the readings up to the packet that was just seen.
    fn take_load(&mut self) {
        for share in self.pending.drain(..) {
            let softirq = self.incident.softirq.get_or_insert(Softirq {
                before: None,
                average: 0,
                peak: 0,
                readings: 0,
            });
            self.load = self.load.saturating_add(u64::from(share));
            softirq.readings = softirq.readings.saturating_add(1);
            softirq.peak = softirq.peak.max(share);
            let average = self.load.checked_div(u64::from(softirq.readings));
            softirq.average = average.and_then(|average| u32::try_from(average).ok()).unwrap_or(0);
        }
    }
}

/// The newest [`MOST`].
pub(crate) fn trim(incidents: &mut BTreeMap<u32, Incident>) {
    while incidents.len() > MOST {
        incidents.pop_first();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Now {
        Now { mono: Monotime(seconds * 1_000_000_000), wall: WallTime(5_000 + seconds) }
    }

    fn spoken(packets: &[(Verdict, Action, u64)], defences: &[Defence]) -> Spoken {
        Spoken { packets: packets.to_vec(), defences: defences.to_vec() }
    }

    fn load(incidents: &mut Incidents, second: u64, softirq: u64) {
        // A hundred ticks a second; `softirq` of them this second.
        let before = incidents.cpu.map_or(0, |times| times.softirq);
        incidents.load(CpuTimes { softirq: before + softirq, all: 100 * (second + 1) });
    }

    #[test]
    fn an_attack_is_told_from_its_first_packet_to_its_last() {
        let mut incidents = Incidents::default();
        let (quiet, drop) = (spoken(&[], &[]), Action::Drop);
        for second in 0..30 {
            load(&mut incidents, second, 2);
            assert_eq!(incidents.count(&quiet, None, at(second)), None);
        }
        assert_eq!(incidents.next_deadline(), None);
        // Ten seconds of attack; another defence joins; the load rises and falls.
        let begun = Notice::IncidentBegun { id: 8, defence: Defence::SynRate };
        for second in 30..40 {
            load(&mut incidents, second, if second == 35 { 60 } else { 20 });
            let mut packets = vec![(Verdict::SynRate, drop, if second == 35 { 9_000 } else { 1_000 })];
            let mut defences = vec![Defence::SynRate];
            if second >= 36 {
                packets.push((Verdict::Xmas, Action::WouldDrop, 5));
                defences.insert(0, Defence::Sanity);
            }
            let notice = incidents.count(&spoken(&packets, &defences), Some(7), at(second));
            assert_eq!(notice, (second == 30).then_some(begun));
            incidents.armed([443, 22].into_iter());
        }
        assert!(incidents.open().is_some());
        // The quiet minute counts for nothing.
        for second in 40..99 {
            load(&mut incidents, second, 90);
            assert_eq!(incidents.count(&quiet, Some(8), at(second)), None);
            assert_eq!(incidents.advance(at(second).mono), None);
        }
        let ended = Notice::IncidentEnded { id: 8, length: Duration::from_secs(9), peak: 9_000 };
        assert_eq!(incidents.advance(at(99).mono), Some(ended));
        assert!(incidents.open().is_none());
        let all = incidents.all(&BTreeMap::new());
        let incident = &all[&8];
        assert_eq!(
            (incident.start, incident.last, incident.is_over),
            (WallTime(5_030), WallTime(5_039), true)
        );
        assert_eq!(incident.defences, ["syn_rate", "sanity"]);
        assert_eq!(incident.ports, [22, 443]);
        assert_eq!((incident.packets(drop), incident.packets(Action::WouldDrop)), (18_000, 20));
        assert_eq!(
            incident.softirq,
            Some(Softirq { before: Some(20), average: 240, peak: 600, readings: 10 })
        );
    }

    #[test]
    fn what_is_not_kept_comes_again_and_stays_bounded() {
        let mut incidents = Incidents::default();
        for round in 0..150 {
            let attack = spoken(&[(Verdict::Land, Action::Drop, 1)], &[Defence::Sanity]);
            assert!(incidents.count(&attack, None, at(round * 100)).is_some());
            assert!(incidents.advance(at(round * 100 + 60).mono).is_some());
            assert_eq!(incidents.next_deadline(), Some(Monotime(0)));
        }
        let ids: Vec<u32> = incidents.all(&BTreeMap::new()).into_keys().collect();
        assert_eq!(ids, (51..=150).collect::<Vec<u32>>());
        for command in incidents.commands().collect::<Vec<_>>() {
            let Command::SetIncident { id, .. } = command else { panic!("{command:?}") };
            incidents.kept(id);
        }
        assert_eq!(incidents.next_deadline(), None);
    }

    #[test]
    fn a_rate_needs_most_of_a_second() {
        let mut incidents = Incidents::default();
        let attack = spoken(&[(Verdict::Land, Action::Drop, 100)], &[Defence::Sanity]);
        // Milliseconds at which a hundred packets are read, and the peak so far.
        for (milliseconds, peak) in [(0, 0), (10, 0), (1_000, 300), (1_100, 300), (3_000, 300), (3_900, 300)]
        {
            let now = Now { mono: Monotime(milliseconds * 1_000_000), wall: WallTime(1) };
            incidents.count(&attack, None, now);
            let all = incidents.all(&BTreeMap::new());
            assert_eq!(all[&1].peak_packets_per_second, peak, "{milliseconds}");
        }
    }

    #[test]
    fn an_open_incident_outlives_the_daemon() {
        let mut incidents = Incidents::default();
        let attack = spoken(&[(Verdict::Land, Action::Drop, 10)], &[Defence::Sanity]);
        incidents.count(&attack, None, at(0));
        load(&mut incidents, 0, 0);
        load(&mut incidents, 1, 50);
        incidents.count(&attack, None, at(1));
        assert_eq!(incidents.advance(at(60).mono), None);
        let kept = incidents.all(&BTreeMap::new());
        // Another daemon, after a while: the attack goes on.
        let mut next = Incidents::new(&kept, at(100));
        assert!(next.open().is_some());
        assert_eq!(next.count(&attack, Some(1), at(110)), None);
        assert!(next.advance(at(170).mono).is_some());
        let incident = &next.all(&kept)[&1];
        assert_eq!((incident.packets(Action::Drop), incident.last), (30, WallTime(5_110)));
        assert_eq!(incident.softirq.map(|load| (load.average, load.readings)), Some((500, 1)));
        // Or it was over: it ends when it was last seen.
        let mut silent = Incidents::new(&kept, at(100));
        assert!(silent.advance(at(160).mono).is_some());
        assert_eq!(silent.all(&kept)[&1].last, WallTime(5_001));
        assert!(Incidents::new(&silent.all(&kept), at(200)).open().is_none());
    }
}
