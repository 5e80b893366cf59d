//! Answers.

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};
use tunica_core::{
    id::{BanTarget, PacketSource, Prefix},
    load_level,
    time::WallTime,
};

use crate::front::{CircuitRow, Digest, LoadOrder};

/// What the daemon answers: one of the views, or why not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Answer {
    /// To `status`.
    Status(Box<Status>),
    /// To `counters`.
    Counters(Counters),
    /// To `diff`.
    Differences(Differences),
    /// To `ban list`.
    Bans(Bans),
    /// To `allow list`.
    Allows(Allows),
    /// To every verb that changes something: what changed, or with `--dry-run` what would.
    Done(Done),
    /// To `sources`.
    Sources(Sources),
    /// To `explain`.
    Explanation(Box<Explanation>),
    /// To `tune`.
    Tuning(Tuning),
    /// To `incident list`.
    Incidents(Incidents),
    /// To `incident show`.
    Incident(Box<Incident>),
    /// To `candidate status`.
    Candidate(Box<Candidate>),
    /// To `candidate promote`: the first half of it.
    Promotion(Promotion),
    /// To `circuits`.
    Circuits(Box<Circuits>),
    /// To `explain circuit`.
    CircuitExplanation(Box<CircuitExplanation>),
    /// To `threat`.
    Threat(Box<Threat>),
    /// To `doctor`.
    Doctor(Doctor),
    /// The request was understood and refused, or could not be carried out.
    Refused(Refused),
}

/// Why a request was not carried out. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Stable word for scripts.
    pub code: RefusedCode,
    /// One sentence: what, why, and what to do instead.
    pub message: String,
}

/// Stable words for refusals; `tunica`'s exit code follows from them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusedCode {
    /// The source or range is on the allow list, in the never-ban set, or the host's own.
    Protected,
    /// Nothing there to remove.
    NotFound,
    /// A table is full.
    Full,
    /// A value is out of range or the request makes no sense.
    Invalid,
    /// The caller may only read, or its reports are not believed.
    Forbidden,
    /// The caller has used up its budget of reports.
    OverBudget,
    /// The new configuration has faults; the old one stays in force.
    BadConfig,
    /// The request was fine but the daemon failed at it.
    Failed,
}

/// The state of every defence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the daemon.
    pub version: String,
    /// When the daemon started.
    pub started: WallTime,
    /// The mode in force: `off`, `observe` or `enforce`.
    pub mode: String,
    /// Number of the policy in force; every reload adds one.
    pub generation: u32,
    /// Set while the shield is bypassed.
    pub bypass: Option<Bypass>,
    /// Set while `tunica panic` holds.
    #[serde(default)]
    pub attack_mode: Option<AttackMode>,
    /// Set while the configuration file is on trial, and after it was undone.
    #[serde(default)]
    pub trial: Option<Trial>,
    /// Set while a candidate is tried beside the configuration in force.
    #[serde(default)]
    pub candidate: Option<Tried>,
    /// Set while an incident is open.
    #[serde(default)]
    pub incident: Option<OpenIncident>,
    /// How loaded the service is; `threat` tells more.
    #[serde(default)]
    pub load: Option<LoadLine>,
    /// How new circuits compare with those of calm times; absent: no ingress of ours reports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_circuits: Option<NewCircuits>,
    /// One row for each configured interface.
    pub interfaces: Vec<Interface>,
    /// The program's identity.
    pub program: Program,
    /// One row for each defence.
    pub defences: Vec<Defence>,
    /// Whether ports over their SYN budget answer with cookies, and which are over it.
    #[serde(default)]
    pub cookies: Cookies,
    /// How full each table is.
    pub tables: Vec<Table>,
    /// The kernel's view of the daemon's heartbeat.
    pub heartbeat: Heartbeat,
    /// The set of addresses that may never be banned.
    pub never_ban: NeverBan,
    /// Optional parts that are not configured, and anything else an operator should know: one sentence each.
    pub warnings: Vec<String>,
}

/// How new circuits compare with those of calm times. Nobody is refused for any of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewCircuits {
    /// How many circuits what is usual rests on.
    pub known: u64,
    /// How many it takes to say anything.
    pub needed: u64,
    /// How many were new in the last minute and are compared; 0 while nothing can be said.
    pub compared: u32,
    /// The share of them that is alike, in ten-thousandths; absent while nothing can be said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alike: Option<u16>,
    /// The share of their like in calm times, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usual: Option<u16>,
    /// Whether those that are alike meet the service at one relay.
    pub at_one_relay: bool,
    /// Whether more are alike than `sybil.alike_percent` allows, or were within the last minute.
    pub too_many: bool,
}

/// How unusual a circuit's first seconds were.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnusualCircuit {
    /// In hundredths: 100 is as far from what is usual as half of all circuits are.
    pub score: u16,
    /// In what most, by the words of the reference of `circuits.jsonl`; what is as usual is left out.
    pub furthest: Vec<String>,
    /// Its word in `circuits.jsonl`; absent: no samples are written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub word: Option<String>,
}

/// How the ingress does, and its busiest circuits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Circuits {
    /// What the front last said; [`Digest::circuits`] holds as many rows as were asked for.
    pub digest: Digest,
    /// How many seconds ago.
    pub age_seconds: u64,
    /// The version of HAProxy, where that is the ingress: then the digest holds what its table tells and
    /// nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub haproxy: Option<String>,
    /// What tor says of those circuits, and, as far as the limit leaves room, of rendezvous circuits that the ingress does not
    /// list: no stream has come through them, or none is open. Absent: tor's control port is not connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tor: Option<Vec<TorCircuit>>,
    /// How those that are new compare with those of calm times.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_circuits: Option<NewCircuits>,
}

/// What tor says of a circuit.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TorCircuit {
    /// Its number in its tor process.
    pub circuit: NonZeroU32,
    /// `building`: on its way to the rendezvous; `meeting`: there, and waiting for its client; `joined`: its client is there;
    /// `introduction`, `other`: one of tor's own.
    pub state: String,
    /// Seconds since its client came; absent: it was there before tor's control port was connected, or has not come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joined_seconds: Option<u64>,
    /// The fingerprint of the relay where service and client meet; absent until it is reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rendezvous: Option<String>,
    /// The effort of the puzzle that its client solved for tor; absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pow_effort: Option<u64>,
}

impl std::fmt::Debug for TorCircuit {
    /// Neither circuit nor relay.
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "TorCircuit {{ state: {:?} }}", self.state)
    }
}

/// What is done with a circuit's streams, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CircuitExplanation {
    /// Its number in its tor process.
    pub circuit: NonZeroU32,
    /// What the ingress says of it; absent: it does not list it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub row: Option<CircuitRow>,
    /// What tor says of it; absent: tor does not know it, or is not connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known_to_tor: Option<TorCircuit>,
    /// What it is, in one sentence.
    pub summary: String,
    /// Its limits with what counts against them.
    pub limits: Vec<CircuitLimit>,
    /// Its violations, and what the next of them leads to.
    pub violations: String,
    /// Set while it is banned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ban: Option<CircuitBan>,
    /// What the gate, the ingress and tor do with it: one sentence each.
    pub gate: String,
    /// See `gate`.
    pub ingress: String,
    /// See `gate`.
    pub tor: String,
    /// The word of its last stream or request that was refused for another reason than a ban, and the sentence for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_refusal: Option<LastRefusal>,
    /// How unusual its first seconds were; absent: that is not known, or not any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unusual: Option<UnusualCircuit>,
    /// What would change it: one command with its effect each.
    pub undo: Vec<String>,
}

/// A limit of one circuit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CircuitLimit {
    /// Its key under `[circuits]`.
    pub key: String,
    /// What is counted.
    pub what: String,
    /// How many are counted now; absent: the ingress does not list the circuit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<u64>,
    /// From how many on it acts, or, of what may be open, how many may be.
    pub limit: u64,
    /// What happens then.
    pub then: String,
}

/// A circuit's ban.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CircuitBan {
    /// Until it ends.
    pub seconds_left: u64,
    /// `operator`, `front` or `haproxy`.
    pub origin: String,
}

/// See [`CircuitExplanation::last_refusal`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastRefusal {
    /// The word of the refusals' page.
    pub refusal: String,
    /// Its sentence.
    pub sentence: String,
}

/// How loaded the service is, in short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadLine {
    /// The level in force.
    pub level: load_level::Level,
    /// Who says so: `measured`, `new_circuits` (measured, and one more because they are alike), `attack_mode` or `operator`.
    pub word: String,
    /// What was measured.
    pub measured: load_level::Level,
    /// Whether limits of token holders are relaxed by one step, because too many of them were refused.
    #[serde(default)]
    pub relaxes_tokens: bool,
}

/// How loaded the service is, and what follows from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Threat {
    /// The level in force.
    pub level: load_level::Level,
    /// Who says so: `measured`, `new_circuits` (measured, and one more because they are alike), `attack_mode` or `operator`.
    pub word: String,
    /// What was measured, whoever has the word.
    pub measured: load_level::Level,
    /// What follows from the level in force: a clause.
    pub demands: String,
    /// Set while an operator's word is to be the level.
    pub pin: Option<LevelPin>,
    /// Set while `tunica panic` holds, with which the level is heavy at least.
    pub attack_mode: Option<AttackMode>,
    /// What is known of the load, the most telling input first.
    pub grounds: Vec<LoadGround>,
    /// The inputs of which nothing is known.
    pub unknown: Vec<String>,
    /// Whether the port rules are tightened, by the load or by attack mode.
    pub tightens_ports: bool,
    /// What the ingress was told.
    pub told: LoadOrder,
    /// What the ingress holds to; absent where it does not report, or holds to the limits as they are configured.
    pub held: Option<LoadOrder>,
}

/// The load level that an operator set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LevelPin {
    /// To which level.
    pub level: load_level::Level,
    /// Since when.
    pub since: WallTime,
    /// Until when; absent: until it is cleared.
    pub expires: Option<WallTime>,
}

/// What one input says of the load.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadGround {
    /// Which.
    pub input: String,
    /// How much of what it can bear it bears, in ten-thousandths.
    pub ratio: u16,
    /// Whether it keeps the measured level from falling.
    pub holds_level: bool,
}

/// Since when and why the shield is detached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bypass {
    /// Since when.
    pub since: WallTime,
    /// The operator's reason.
    pub reason: String,
}

/// Since when and until when stricter settings lie over the configured ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttackMode {
    /// Since when.
    pub since: WallTime,
    /// Until when, unless it is ended before.
    pub expires: WallTime,
}

/// The configuration file's trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// Since when.
    pub since: WallTime,
    /// Until when it could be confirmed.
    pub expires: WallTime,
    /// How many seconds are left for that.
    pub seconds_left: u64,
    /// Whether nobody confirmed it, so that the configuration before is in force and not the file.
    pub undone: bool,
    /// Whether it is the first start that is on trial, so that the shield is bypassed if nobody confirms.
    #[serde(default)]
    pub first_start: bool,
}

/// The incident that is open; `incident show` tells more of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenIncident {
    /// Its number.
    pub id: u32,
    /// When its first packet was counted.
    pub since: WallTime,
    /// The defences that spoke, in the order in which they began.
    pub defences: Vec<String>,
}

/// Attachment to one interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// The interface's name.
    pub name: String,
    /// What the configuration asks for: `native` or `native-or-generic`.
    pub requested: String,
    /// What is true: `native`, `generic`, `offloaded` or `none`.
    pub actual: String,
    /// Identity of the kernel's link object, where one is attached.
    pub link_id: Option<u32>,
    /// Identity of the attached program, where one is attached.
    pub program_id: Option<u32>,
    /// Why nothing is attached, or what differs from the request.
    pub problem: Option<String>,
}

/// Which program is in the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// SHA-256 of the object that the daemon carries, in hexadecimal.
    pub object_sha256: String,
    /// The tag the kernel computed when this daemon loaded that object.
    pub expected_tag: String,
    /// The tag of this daemon's program, where an interface runs that; absent where none does. A program is known by the
    /// identity that the kernel gave it at loading, not by its tag: the tag of somebody else's program is not read.
    pub attached_tag: Option<String>,
    /// Whether every interface runs the program that this daemon loaded, and the object it loaded it from has the checksum
    /// recorded at build time.
    pub matches: bool,
    /// Directory of the pinned link and maps.
    pub pin_path: String,
}

/// One defence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Defence {
    /// `sanity`, `bans`, `syn_rate`, `uninspected`.
    pub name: String,
    /// Whether it drops (or, observing, counts) anything now.
    pub armed: bool,
    /// Since when it is armed.
    pub active_since: Option<WallTime>,
    /// When it last spoke against a packet.
    pub last_trigger: Option<WallTime>,
    /// Packets dropped since the maps were made.
    pub dropped_packets: u64,
    /// Packets that `enforce` would have dropped.
    pub would_drop_packets: u64,
}

/// How ports over their SYN budget answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cookies {
    /// `ready`, `ready_with_options` (window scale and SACK survive), `waiting` (the daemon switches the sysctl once a port
    /// needs it), `disabled`, `no_budget`, `no_program` or `sysctl`.
    pub state: String,
    /// The ports over their budget now, by number.
    pub ports: Vec<ArmedPort>,
}

/// A port over its SYN budget.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArmedPort {
    /// Its number.
    pub port: u16,
    /// For how many seconds it has been over.
    pub seconds: u64,
    /// In how many seconds it answers as usual again, unless more SYNs come.
    pub seconds_left: u64,
    /// Good cookies that came back to it since the kernel's tables were made.
    pub cookies_returned: u64,
    /// What the last test of its cookies came to; `None` if it was not tested yet.
    #[serde(default)]
    pub self_test: Option<SelfTest>,
}

/// A test of a port's cookies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelfTest {
    /// `passed`, `partly`, `missed` or `untested`.
    pub outcome: String,
    /// What that means: a clause.
    pub clause: String,
    /// How long ago it was told.
    pub seconds_ago: u64,
    /// For how long the port answers with no cookies, because its listener took none; `None` while it may.
    pub seconds_without_cookies: Option<u64>,
}

/// One table's fill.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// The map's name.
    pub name: String,
    /// Rows in use.
    pub used: u64,
    /// Rows there are.
    pub capacity: u64,
}

/// The kernel's view of the daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// How long ago the daemon last wrote it, in seconds.
    pub age_seconds: f64,
    /// After how many seconds the kernel falls back.
    pub stale_after_seconds: u64,
    /// What it falls back to: `keep-limits`, `sanity-only` or `pass`.
    pub on_stale: String,
}

/// The never-ban set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NeverBan {
    /// Far ends of tor's own connections held in the set.
    pub tor_peers: u64,
    /// The host's own addresses.
    pub own_addresses: u64,
    /// When tor's connections were last read, if ever.
    pub tor_last_read: Option<WallTime>,
    /// Bans refused because of the set since the daemon started.
    pub refused_bans: u64,
}

/// Every counter of packets at one moment.
///
/// Two readings give a rate only if `started` and `tables` are the same in both: else the counters began anew between.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// When the daemon started.
    pub started: WallTime,
    /// The daemon's wall clock at the reading.
    pub now: WallTime,
    /// The host's monotonic clock at the reading, in milliseconds: the time between two readings is their difference.
    pub monotonic_milliseconds: u64,
    /// Where the counters are pinned. Tables of another size are other counters, which begin at zero.
    pub tables: String,
    /// One row for each verdict and action.
    pub rows: Vec<Counter>,
}

/// The packets of one outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counter {
    /// The verdict's word.
    pub verdict: String,
    /// `pass`, `drop` or `would_drop`.
    pub action: String,
    /// Packets since the tables were made.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// How the configuration file differs from what is in force. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Differences {
    /// The file that was read.
    pub file: String,
    /// One row for each key whose value differs, in the order of the reference page.
    pub changes: Vec<Change>,
    /// Bans that a reload would lift because the new file protects what they hit.
    pub lifted: Vec<BanTarget>,
    /// Why `reload` would refuse the file although it is valid: one sentence each, empty if it would not.
    pub obstacles: Vec<String>,
}

/// One key whose value differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The full name, such as `shield.syn.burst`.
    pub key: String,
    /// The value in force as TOML; absent where the key is not set.
    pub old: Option<String>,
    /// The value in the file, or its default, as TOML; absent where the key is not set.
    pub new: Option<String>,
    /// Of a list: entries that only the file has.
    pub added: Vec<String>,
    /// Of a list: entries that the file no longer has.
    pub removed: Vec<String>,
    /// Whether only a restart of the daemon can bring the value into force.
    pub needs_restart: bool,
}

/// A configuration that is tried beside the one in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// What the operator calls it.
    pub name: String,
    /// Since when it is tried.
    pub since: WallTime,
    /// One row for each key whose value differs from the one in force.
    pub changes: Vec<Change>,
    /// Those of them that the kernel program does not try: they come into force with the promotion alone.
    pub untried: Vec<String>,
    /// Packets that the candidate would refuse and that pass or are answered now, by the candidate's verdict.
    pub refuses: Vec<Difference>,
    /// Packets that the candidate would pass or answer and that are refused now, or would be if the mode were `enforce`,
    /// by the verdict in force.
    pub passes: Vec<Difference>,
    /// What the candidate decided about each packet that it saw: one row for each verdict and action that was counted.
    pub counters: Vec<Counter>,
}

/// Packets on which candidate and policy in force differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// The verdict's word.
    pub verdict: String,
    /// Packets since the candidate was loaded.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What has to be written to bring the candidate into force.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promotion {
    /// The daemon's configuration file.
    pub file: String,
    /// What the file was read as when it came into force.
    pub before: String,
    /// What it has to be.
    pub after: String,
}

impl std::fmt::Debug for Promotion {
    /// Without the texts, in which addresses may stand.
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Promotion {{ file: {:?} }}", self.file)
    }
}

/// In `status`: how much the candidate differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tried {
    /// What the operator calls it.
    pub name: String,
    /// Since when it is tried.
    pub since: WallTime,
    /// Packets that it would refuse and that pass or are answered now.
    pub refuses: u64,
    /// Packets that it would pass or answer and that are refused now.
    pub passes: u64,
}

/// Bans in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bans {
    /// One row a ban: those of sources, then those of ranges.
    pub bans: Vec<Ban>,
}

/// One ban.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ban {
    /// The ledger's number.
    pub id: u32,
    /// Whom: a source, or a range.
    pub source: BanTarget,
    /// Since when.
    pub since: WallTime,
    /// Until when; absent means until lifted.
    pub expires: Option<WallTime>,
    /// Rung of the ladder, counted from 1; absent where the length was given by hand.
    pub rung: Option<u32>,
    /// Who banned: `operator`, or the kind of evidence.
    pub origin: String,
    /// Why.
    pub reason: String,
}

/// The allow list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allows {
    /// One row an entry, by prefix.
    pub entries: Vec<Allow>,
}

/// One entry of the allow list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allow {
    /// The ledger's number; absent where the entry is no ledger fact.
    pub id: Option<u32>,
    /// Which addresses.
    pub prefix: Prefix,
    /// Since when; absent for entries of the configuration file.
    pub since: Option<WallTime>,
    /// Until when; absent means until removed.
    pub expires: Option<WallTime>,
    /// `config`, `operator` or `tor`.
    pub origin: String,
    /// Why.
    pub reason: String,
}

/// What a verb changed, or would.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// True if nothing was changed because the caller only asked.
    pub dry_run: bool,
    /// One sentence a change.
    pub changes: Vec<String>,
    /// How to undo it, as a command line, where there is a way.
    pub undo: Option<String>,
}

/// Sources in sampled events, most frequent first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sources {
    /// Since when the samples were gathered.
    pub since: WallTime,
    /// Events received in that time.
    pub sampled_events: u64,
    /// Events the kernel could not deliver in that time.
    pub lost_events: u64,
    /// One row a source.
    pub sources: Vec<Source>,
}

/// One source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Who, as the packets claimed; a flood's sources may be forged.
    pub source: PacketSource,
    /// Sampled events, an upper bound.
    pub events: u64,
    /// By how much `events` may be too high (space-saving sketch).
    pub overestimate: u64,
    /// Verdict of the latest event.
    pub verdict: String,
    /// What was done with the packet of the latest event.
    pub action: String,
    /// When the latest event was.
    pub last_seen: WallTime,
    /// Whether the source is banned now, by itself or within a range.
    pub banned: bool,
}

/// What the live program does with packets of a source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// One sentence if the shield does not stand where packets arrive, so that the outcomes are not what happens to them.
    #[serde(default)]
    pub in_truth: Option<String>,
    /// The source that packets of the address count for.
    pub source: PacketSource,
    /// What was tried, in words.
    pub probe: String,
    /// Runs of equal outcomes, in order.
    pub outcomes: Vec<Outcome>,
    /// Identity of the program asked.
    pub program_id: u32,
    /// Number of the policy that judged.
    pub generation: u32,
    /// Mode in force.
    pub mode: String,
    /// The ban of the source itself that holds, if one does.
    pub ban: Option<Ban>,
    /// The bans of ranges around the source that hold, longest range first, as the kernel looks them up.
    #[serde(default)]
    pub range_bans: Vec<Ban>,
    /// The allow-list entry that holds, if one does.
    pub allow: Option<Allow>,
    /// The IPv6 network whose limit the source shares now, if it does.
    #[serde(default)]
    pub network: Option<Network>,
    /// Set while the port asked about is over its SYN budget.
    #[serde(default)]
    pub over_budget: Option<OverBudget>,
    /// The cells of the SYN sketch that the source's SYNs count in, before the probe: its own, or its network's.
    pub bucket: Bucket,
    /// One sentence for each thing that would change the outcome, each with its command.
    pub undo: Vec<String>,
}

/// `count` probes in a row with the same outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// How many.
    pub count: u32,
    /// The verdict's word.
    pub verdict: String,
    /// `pass`, `drop` or `would_drop`.
    pub action: String,
    /// The verdict's sentence.
    pub sentence: String,
}

/// An IPv6 network that shares one SYN limit, because many of its parts exceeded theirs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// The network: a /56 whose parts are /64, or a /48 whose parts are /56.
    pub prefix: Prefix,
    /// How many of its parts exceeded their limit.
    pub exceeded: u32,
    /// The part that the source lies in.
    pub part: Prefix,
    /// Whether that is one of those which exceeded theirs.
    pub part_exceeded: bool,
    /// Until when, and longer while the network exceeds its limit.
    pub until: WallTime,
    /// All that in words.
    pub sentence: String,
}

/// A TCP port over its SYN budget.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverBudget {
    /// Its number.
    pub port: u16,
    /// Since when.
    pub since: WallTime,
    /// Until when, and longer while more SYNs come than half the budget.
    pub until: WallTime,
    /// Whether SYNs to it are answered with cookies now.
    pub answers: bool,
    /// All that in words.
    pub sentence: String,
}

/// A share of the SYN sketch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bucket {
    /// Cell of each row.
    pub cells: Vec<u32>,
    /// Milliseconds of debt in each cell.
    pub debt_milliseconds: Vec<u64>,
    /// Milliseconds of debt beyond which a SYN is refused.
    pub limit_milliseconds: u64,
}

/// What limits follow from what was seen since they last changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tuning {
    /// Since when.
    pub since: WallTime,
    /// For how many minutes.
    pub minutes: u64,
    /// One row a key.
    pub proposals: Vec<Proposal>,
    /// The values proposed as lines of a configuration file; empty where nothing is to be changed.
    pub toml: String,
}

/// What is proposed for one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal {
    /// The full name, such as `shield.syn.burst`.
    pub key: String,
    /// The configured value; absent where the part is switched off.
    pub present: Option<u64>,
    /// The value to be; absent where it should stay.
    pub proposed: Option<u64>,
    /// What was seen.
    pub seen: String,
    /// Why that value.
    pub why: String,
}

/// The last attacks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Incidents {
    /// One row an incident, the newest first.
    pub incidents: Vec<Incident>,
}

/// One attack: from the first packet that a defence spoke against to the last, with less than a minute of silence between.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Incident {
    /// Its number.
    pub id: u32,
    /// When its first packet was counted.
    pub start: WallTime,
    /// When its last packet was counted; absent while it goes on.
    pub end: Option<WallTime>,
    /// When its last packet so far was counted.
    pub last: WallTime,
    /// The defences that spoke, in the order in which they began.
    pub defences: Vec<String>,
    /// Most packets in a second that defences spoke against.
    pub peak_packets_per_second: u64,
    /// Packets that were dropped.
    pub dropped_packets: u64,
    /// Packets that were answered with cookies.
    pub answered_packets: u64,
    /// Packets that `enforce` would have dropped.
    pub would_drop_packets: u64,
    /// Packets that `enforce` would have answered.
    pub would_answer_packets: u64,
    /// The same packets by outcome.
    pub rows: Vec<Spoken>,
    /// Ports that were over their SYN budget, at most 64.
    pub ports_over_budget: Vec<u16>,
    /// Cost in CPU; absent where it could not be read.
    pub softirq: Option<Softirq>,
}

/// Packets of one outcome that a defence spoke against.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spoken {
    /// The verdict's word.
    pub verdict: String,
    /// The action's word.
    pub action: String,
    /// How many packets.
    pub packets: u64,
}

/// Share of all CPUs' time in software interrupts, in percent; the host's own network traffic is in it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Softirq {
    /// On average in the minute before; absent where nothing was read before.
    pub before_percent: Option<f64>,
    /// On average during the attack.
    pub average_percent: f64,
    /// At most, over one second.
    pub peak_percent: f64,
}

/// What this host can do for the shield.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Doctor {
    /// One row a finding, worst first.
    pub findings: Vec<Finding>,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What was looked at, as a stable word.
    pub check: String,
    /// How bad.
    pub level: Level,
    /// What was found.
    pub found: String,
    /// What it means and what to do; empty where all is well.
    pub advice: String,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Works, but less well than it could.
    Warning,
    /// The shield cannot do its work.
    Failure,
}
