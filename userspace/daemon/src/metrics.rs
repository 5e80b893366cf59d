//! What `/metrics` shows, in Prometheus's text format 0.0.4.
//!
//! Every label value comes from a closed set or, for interfaces, from the configuration: never an address, and never a
//! word that a client or an operator typed. Series that can be named beforehand are there from the start with 0.

mod front;
mod load;
mod newcomers;

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
    core::{Collector, Desc},
    proto::MetricFamily,
};
use tunica_api::view::{Answer, RefusedCode as Refusal};
use tunica_common::{
    event::Difference,
    gate::GateOutcome,
    verdict::{Action, Verdict},
};
use tunica_core::{
    coordinator::{RefusedCode, Reply},
    defence::Defence,
    haproxy_table::{Edit, Standing},
    ledger::{BanOrigin, Command},
    limits::{CookieState, Mode},
    self_test::SelfTest,
};

use crate::shell::{
    gate,
    host::vitals::{MEMORY_EVENTS, Vitals},
    tor_control::CloseOutcome,
    xdp::{Repairs, tables::Total},
};

/// The tables whose fill is shown.
pub const TABLES: [&str; 5] = ["bans", "cidrs", "allow", "own", "verified"];
/// What the audit repairs.
const REPAIRED: [&str; 8] = ["bans", "cidrs", "ports", "allow", "own", "policy", "link", "nft"];
const ORIGINS: [BanOrigin; BanOrigin::ALL.len()] = BanOrigin::ALL;
const REPORTS: [&str; 7] = [
    "accepted",
    "refused_budget",
    "refused_protected",
    "refused_forbidden",
    "refused_full",
    "refused_invalid",
    "failed",
];
const CLOSES: [&str; 5] = ["accepted", "gone", "other_tor", "not_connected", "refused"];
/// The upper bounds of the buckets for tor's answers, in seconds: tor answers from memory, but one command after another and
/// between its other work. The last is how long a command has.
const RESPONSES: [f64; 9] = [0.000_5, 0.002, 0.01, 0.05, 0.2, 0.5, 1.0, 3.0, 10.0];
const BAN_REFUSALS: [&str; 3] = ["protected", "full", "invalid"];

/// A metric, as the reference lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetricDoc {
    /// Its name.
    pub name: &'static str,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// Names of its labels.
    pub labels: &'static [&'static str],
    /// What it shows, with the unit: one sentence.
    pub meaning: &'static str,
}

/// A type of metric in the registry.
trait Kind: Collector + Clone + Sized + 'static {
    const NAME: &'static str;

    fn make(options: Opts, labels: &[&str]) -> prometheus::Result<Self>;
}

macro_rules! kinds {
    ($( $type:ty, $name:literal, |$options:ident, $labels:ident| $make:expr; )+) => { $(
        impl Kind for $type {
            const NAME: &'static str = $name;

            fn make($options: Opts, $labels: &[&str]) -> prometheus::Result<Self> {
                $make
            }
        }
    )+ };
}

kinds! {
    IntCounter, "counter", |options, _labels| Self::with_opts(options);
    IntCounterVec, "counter", |options, labels| Self::new(options, labels);
    IntGauge, "gauge", |options, _labels| Self::with_opts(options);
    IntGaugeVec, "gauge", |options, labels| Self::new(options, labels);
    Gauge, "gauge", |options, _labels| Self::with_opts(options);
    GaugeVec, "gauge", |options, labels| Self::new(options, labels);
    Histogram, "histogram", |options, _labels| {
        Self::with_opts(HistogramOpts::from(options).buckets(newcomers::SCORES.to_vec()))
    };
    TorResponses, "histogram", |options, _labels| {
        Histogram::with_opts(HistogramOpts::from(options).buckets(RESPONSES.to_vec())).map(Self)
    };
}

macro_rules! metrics {
    ($( $field:ident: $type:ty, $name:literal, [$( $label:literal ),*], $meaning:literal; )+) => {
        /// Every metric, in the order of the reference.
        pub const METRICS: &[MetricDoc] = &[ $( MetricDoc {
            name: $name,
            kind: <$type as Kind>::NAME,
            labels: &[ $( $label ),* ],
            meaning: $meaning,
        }, )+ ];

        struct Families { $( $field: $type, )+ }

        impl Families {
            fn register(registry: &Registry) -> prometheus::Result<Self> {
                Ok(Self { $( $field: register(registry, $name, $meaning, &[ $( $label ),* ])?, )+ })
            }
        }
    };
}

metrics! {
    packets: IntCounterVec, "tunica_shield_packets_total", ["verdict", "action"],
        "Packets that the shield judged, since its maps were made; what nftables judged in its stead is added, since the daemon started.";
    bytes: IntCounterVec, "tunica_shield_bytes_total", ["verdict", "action"],
        "Bytes of those packets, link header included.";
    mode: IntGaugeVec, "tunica_shield_mode", ["mode"],
        "1 for the mode in force, 0 for the others.";
    attached: IntGaugeVec, "tunica_shield_attached", ["interface", "requested", "actual"],
        "1 if the shield is attached to the interface as requested, else 0; one series an interface.";
    program_matches: IntGauge, "tunica_shield_program_matches", [],
        "1 if every attached program is the one that this daemon carries, else 0.";
    generation: IntGauge, "tunica_shield_policy_generation", [],
        "Number of the policy in force; every change adds 1.";
    bypassed: IntGauge, "tunica_shield_bypassed", [],
        "1 while an operator has the shield detached and no circuit is refused, else 0.";
    attack_mode: IntGauge, "tunica_attack_mode_active", [],
        "1 while `tunica panic` has stricter settings in force than the configured ones, else 0.";
    candidate: IntGauge, "tunica_candidate_loaded", [],
        "1 while a candidate is tried beside the configuration in force, else 0.";
    differences: IntCounterVec, "tunica_candidate_differences_total", ["verdict", "difference"],
        "Packets that a candidate would refuse and that pass now (`refuses`, by its verdict), or the reverse (`passes`, by the verdict in force).";
    attack_mode_left: Gauge, "tunica_attack_mode_left_seconds", [],
        "Seconds until attack mode ends by itself; 0 while it is not in force.";
    incidents: IntCounterVec, "tunica_incidents_total", ["kind"],
        "Attacks that began since the daemon started, by the defence that spoke first; `tunica incident list` shows them.";
    incident_active: IntGauge, "tunica_incident_active", [],
        "1 while a defence speaks against packets or has in the last minute, else 0.";
    trial: IntGauge, "tunica_config_trial_active", [],
        "1 while the configuration is on trial and waits for `tunica confirm`, else 0.";
    undone: IntGauge, "tunica_config_undone", [],
        "1 while the configuration before a trial is in force, because nobody confirmed the file, else 0.";
    used: IntGaugeVec, "tunica_table_used", ["table"],
        "Rows in use of a kernel table; those of `verified` are counted every 30 s.";
    capacity: IntGaugeVec, "tunica_table_capacity", ["table"],
        "Rows that a kernel table holds.";
    heartbeat_age: Gauge, "tunica_heartbeat_age_seconds", [],
        "Seconds since the kernel last had a sign of life of the daemon.";
    heartbeat_stale_after: Gauge, "tunica_heartbeat_stale_after_seconds", [],
        "Seconds without a sign of life after which the kernel falls back as `shield.on_stale` says.";
    sketch_busy: Gauge, "tunica_syn_sketch_busy_ratio", [],
        "Share of the SYN sketch's cells that would refuse a SYN now, from 0 to 1, estimated from a sample. A newcomer is refused about as often as the square of it.";
    cookies: IntGaugeVec, "tunica_cookies_state", ["state"],
        "1 for how ports over their SYN budget answer now, 0 for the others; `tunica status` explains the words.";
    over_budget: IntGauge, "tunica_ports_over_budget", [],
        "Ports over their SYN budget.";
    self_tests: IntCounterVec, "tunica_cookie_self_tests_total", ["outcome"],
        "Tests whether the listeners of a port take the cookies that are made for them: passed; partly, where one takes them and another, or the same over the other family, does not; missed; or untested, for which `tunica status` has the reason.";
    without_cookies: IntGauge, "tunica_ports_without_cookies", [],
        "Ports that answer with no cookies because their listener took none of the tests' cookies.";
    events_received: IntCounter, "tunica_events_received_total", [],
        "Sampled packets that the kernel reported.";
    events_lost: IntCounter, "tunica_events_lost_total", [],
        "Sampled packets that the kernel could not report because its buffer was full, since its maps were made.";
    proofs_lost: IntCounter, "tunica_proofs_lost_total", [],
        "Proven violations that the kernel could not report because its buffer was full, since its maps were made.";
    bans_set: IntCounterVec, "tunica_bans_set_total", ["origin"],
        "Bans that came into force or were replaced, of sources and of ranges.";
    bans_active: IntGaugeVec, "tunica_bans_active", ["origin"],
        "Bans in force, of sources and of ranges.";
    bans_refused: IntCounterVec, "tunica_bans_refused_total", ["reason"],
        "Bans that were asked for and refused: they would have hit a protected address, the table is full, or the request is invalid.";
    reports: IntCounterVec, "tunica_reports_total", ["result"],
        "Reports of sources by `tunica report`: accepted; refused because the account has used up its budget, the source is protected, the account is no reporter, the ban table is full or the report is invalid; or failed because the ledger could not be written.";
    tor_peers: IntGauge, "tunica_never_ban_tor_peers", [],
        "Far ends of tor's own connections that may not be banned.";
    never_ban_age: Gauge, "tunica_never_ban_age_seconds", [],
        "Seconds since tor's connections were last read; -1 where `tor.user` is not set.";
    ledger_commits: IntCounter, "tunica_ledger_commits_total", [],
        "Commits of the ledger that reached the disk.";
    ledger_failures: IntCounter, "tunica_ledger_failures_total", [],
        "Commits of the ledger that failed; nothing was changed by them.";
    ledger_damaged: IntGauge, "tunica_ledger_damaged", [],
        "1 while the daemon runs on a fresh ledger because the old file was unreadable, else 0.";
    edits: IntCounterVec, "tunica_reconcile_edits_total", ["table"],
        "Repairs of kernel state that had drifted, found by the audit every 30 s.";
    reconcile_failures: IntCounter, "tunica_reconcile_failures_total", [],
        "Times that kernel state could not be brought to what it should be.";
    host_changes: IntCounterVec, "tunica_host_changes_total", ["what"],
        "Times that the host's addresses, or the interfaces of the configuration, were seen to have changed.";
    disk_free: Gauge, "tunica_ledger_disk_free_bytes", [],
        "Bytes free on the file system of the ledger; -1 where that is not known.";
    disk_free_ratio: Gauge, "tunica_ledger_disk_free_ratio", [],
        "Free share of the file system of the ledger, from 0 to 1; -1 where that is not known.";
    memory_current: Gauge, "tunica_memory_current_bytes", [],
        "Bytes of memory that the daemon's cgroup uses, the kernel's tables included; -1 where that is not known.";
    memory_max: Gauge, "tunica_memory_max_bytes", [],
        "Bytes of memory that the daemon's cgroup may use; `+Inf` where there is no limit, -1 where that is not known.";
    memory_events: IntCounterVec, "tunica_memory_events_total", ["event"],
        "Times that the daemon's cgroup met a limit of its memory, by the names of cgroup v2's `memory.events`.";
    clock_synchronised: IntGauge, "tunica_clock_synchronised", [],
        "1 if a time service keeps the wall clock in step, 0 if none does, -1 where that is not known.";
    clock_error: Gauge, "tunica_clock_error_bound_seconds", [],
        "Seconds by which the wall clock may be wrong, as the kernel reckons; -1 where that is not known.";
    reloads: IntCounterVec, "tunica_config_reloads_total", ["result"],
        "Reloads of the configuration file.";
    control: IntCounterVec, "tunica_control_requests_total", ["verb", "result"],
        "Requests on the control socket; the verb is `unreadable` where the line was no request.";
    http: IntCounterVec, "tunica_http_requests_total", ["path", "status"],
        "HTTP requests answered; the path is `other` where there is no such page.";
    tor_control: IntGauge, "tunica_tor_control_up", [],
        "1 while tor's control port is connected, else 0.";
    tor_responses: TorResponses, "tunica_tor_control_response_seconds", [],
        "Seconds from a command on tor's control port to tor's answer; a command that has none in time counts with the time it had.";
    tor_control_wanted: IntGauge, "tunica_tor_control_wanted", [],
        "1 where `tor.control` names a control port, else 0.";
    tor_closes: IntCounterVec, "tunica_tor_circuits_closed_total", ["outcome"],
        "Circuits that tor was asked to close, by what came of it: accepted; gone, it had ended; other_tor, it belonged to a tor process before; not_connected or refused, which is tried again.";
    gate: IntGauge, "tunica_gate_attached", [],
        "1 while the circuit gate is attached to `lo`, else 0.";
    gate_wanted: IntGauge, "tunica_gate_wanted", [],
        "1 where the circuit gate is to be attached: where there is an ingress or HAProxy, and `ingress.gate` is not `off`; else 0.";
    gate_segments: IntCounterVec, "tunica_gate_segments_total", ["outcome"],
        "Segments with data to the ingress' port, by what the circuit gate did: refused; would_refuse; unanswered, of a banned circuit and passed because no reset could be made; or passed, because it carries not the first bytes of a connection (not_first), no PROXY header as tor writes it (no_header), part of one (split), or one of a circuit that is not banned (not_banned).";
    haproxy: IntGauge, "tunica_haproxy_up", [],
        "1 while HAProxy answers on the socket that `haproxy.socket` names, else 0.";
    haproxy_wanted: IntGauge, "tunica_haproxy_wanted", [],
        "1 where `haproxy.socket` names a socket of HAProxy, else 0.";
    haproxy_edits: IntCounterVec, "tunica_haproxy_edits_total", ["edit"],
        "Changes of HAProxy's table of circuits: ban, promote, reset (normal again), or clear (all of it, because tor has started again).";
    haproxy_failures: IntCounter, "tunica_haproxy_failures_total", [],
        "Visits to HAProxy's socket that failed: nobody answered in time, or a command was refused. Each is tried again.";
    haproxy_circuits: IntGaugeVec, "tunica_haproxy_circuits", ["state"],
        "Circuits in HAProxy's table: tracked, all of them; banned and vip, as far as they are.";
    front_up: IntGauge, "tunica_front_up", [],
        "1 while the ingress reports to this daemon, else 0.";
    front_wanted: IntGauge, "tunica_front_wanted", [],
        "1 where `ingress.enabled` says that there is to be an ingress, else 0.";
    front_active: IntGauge, "tunica_front_active", [],
        "Connections that the ingress serves now.";
    front_most_active: IntGauge, "tunica_front_active_max", [],
        "How many it serves at once at most.";
    front_waiting: IntGauge, "tunica_front_waiting", [],
        "Connections that wait for their turn.";
    front_most_waiting: IntGauge, "tunica_front_waiting_max", [],
        "How many may wait.";
    front_wait: Gauge, "tunica_front_wait_seconds", [],
        "Seconds that the connection whose turn is next has waited; 0 where nobody waits.";
    front_tarpitted: IntGauge, "tunica_front_tarpitted", [],
        "Connections that are held and get nothing.";
    circuits_tracked: IntGauge, "tunica_circuits_tracked", [],
        "Circuits that the ingress remembers.";
    circuits_capacity: IntGauge, "tunica_circuits_capacity", [],
        "How many circuits it can remember. Full is an ordinary state, so no alert watches it: the circuit that was used longest ago is forgotten first, before those that paid or broke a limit, and banned ones go last. None that carries connections is forgotten; where all do, newcomers are refused as `table_full`.";
    circuits_banned: IntGauge, "tunica_circuits_banned", [],
        "Circuits that are banned.";
    circuits_vip: IntGauge, "tunica_circuits_vip", [],
        "Circuits that go past the queue.";
    circuits_marked: IntGauge, "tunica_circuits_marked", [],
        "Circuits past `circuits.max_circuit_age_secs` or `circuits.max_circuit_latency_secs` that carry connections, as the last examination found; each is closed once it carries none.";
    circuits_closed: IntCounterVec, "tunica_circuits_closed_total", ["refusal"],
        "Circuits that were closed and not banned, by the word for why: circuit_aged and circuit_slow, without a connection; circuit_rotated, with all of them. Without tor's control port or Arti none is.";
    front_backend: IntGaugeVec, "tunica_front_backend_up", ["backend"],
        "1 if the backend answered its last health check, else 0; `backend` is its place in `ingress.backends`, from 1 on, and `tunica circuits` lists them in that order with their addresses.";
    front_connections: IntCounter, "tunica_front_connections_total", [],
        "Connections that tor handed to the ingress.";
    front_requests: IntCounter, "tunica_front_requests_total", [],
        "HTTP requests that came over them.";
    circuits_new: IntCounter, "tunica_circuits_new_total", [],
        "Circuits that were seen for the first time.";
    circuits_unwatched: IntCounter, "tunica_circuits_unwatched_total", [],
        "New circuits that were compared with nothing, because too many came at once.";
    circuits_known: IntGauge, "tunica_circuits_known", [],
        "Circuits of calm times with which new ones are compared; below 32 nothing is said of them.";
    circuits_alike: IntGauge, "tunica_circuits_alike", [],
        "1 while more new circuits are alike than `sybil.alike_percent` allows, else 0.";
    circuits_alike_ratio: Gauge, "tunica_circuits_alike_ratio", [],
        "The share of the last minute's new circuits in the crowd that exceeds its usual share by most, from 0 to 1; 0 where nothing can be said.";
    circuits_alike_usual: Gauge, "tunica_circuits_alike_usual_ratio", [],
        "The share of the like of that crowd in calm times, from 0 to 1.";
    circuits_score: Histogram, "tunica_circuits_anomaly_score", [],
        "How unusual the first seconds of new circuits were: 1 is as far from what is usual as half of all circuits are.";
    circuits_samples: IntCounterVec, "tunica_circuits_samples_total", ["outcome"],
        "Lines about new circuits for the file that `sybil.samples` asks for: written, or failed.";
    front_bytes: IntCounterVec, "tunica_front_bytes_total", ["direction"],
        "Bytes from clients (`in`) and to them (`out`).";
    front_refused: IntCounterVec, "tunica_front_refused_total", ["refusal"],
        "Connections and requests that the ingress refused or cut off, by the word for why.";
    front_would_refuse: IntCounterVec, "tunica_front_would_refuse_total", ["refusal", "whose"],
        "Connections and requests that limits under `circuits.shadow` would have refused, by the word and by whose they are: a `vip`'s, or `anybody` else's.";
    front_issued: IntCounterVec, "tunica_front_puzzles_issued_total", ["kind"],
        "Puzzles that circuits were given: to a browser by a page, to a program by headers or over TCP, to a person by a picture.";
    front_solved: IntCounterVec, "tunica_front_puzzles_solved_total", ["kind"],
        "Puzzles that were solved and redeemed, by how the answer came.";
    front_failed: IntCounterVec, "tunica_front_puzzles_failed_total", ["reason"],
        "Answers to puzzles that were not taken: malformed; expired; foreign, made up or of another circuit or process; unsolved; too_easy; replayed; crowded, no longer to be told from a replay; misread, of a picture.";
    front_room: IntGauge, "tunica_front_waiting_room", [],
        "Circuits in the waiting room, which did a part of the work that the load asks for.";
    front_let_in: IntCounter, "tunica_front_waiting_room_let_in_total", [],
        "Circuits that the waiting room let in.";
    front_tokens_issued: IntCounterVec, "tunica_front_tokens_issued_total", ["by"],
        "VIP tokens that were handed out: to circuits that solved a puzzle, or because a backend vouched for its client.";
    front_tokens_accepted: IntCounter, "tunica_front_tokens_accepted_total", [],
        "Connections on which a VIP token was shown and taken.";
    front_tokens_refused: IntCounterVec, "tunica_front_tokens_refused_total", ["reason"],
        "Connections on which a VIP token was shown and not taken; they were treated as any other.";
    front_tokens_revoked: IntCounter, "tunica_front_tokens_revoked_total", [],
        "VIP tokens that were revoked because one of their circuits was banned or demoted.";
    front_tokens: IntGauge, "tunica_front_tokens", [],
        "VIP tokens in use.";
    front_holders: IntCounterVec, "tunica_front_token_holders_total", ["outcome"],
        "Holders of VIP tokens, each once in each minute in which it was `seen`, and in which a limit of token holders `refused` it.";
    front_tokens_relaxed: IntGauge, "tunica_front_tokens_relaxed", [],
        "1 while limits of token holders are relaxed by one step, because more of them were refused than `circuits.false_positive_budget` allows.";
    front_arti: IntGaugeVec, "tunica_front_arti_state", ["state"],
        "Where the ingress hosts the onion service itself: 1 for how the service is by Arti's word, 0 for the others; waiting for another process to give it up; failed, until the next attempt.";
    front_arti_circuits: IntGauge, "tunica_front_arti_circuits", [],
        "Circuits of clients that are open there.";
    front_arti_rendezvous: IntCounter, "tunica_front_arti_rendezvous_total", [],
        "Rendezvous that clients asked for there.";
    front_panics: IntCounter, "tunica_front_panics_total", [],
        "Connections that ended in a fault of the ingress itself; the log has what went wrong.";
    load_level: IntGaugeVec, "tunica_load_level", ["level"],
        "1 for the load level in force, 0 for the others; `tunica threat` tells more.";
    load_measured: IntGaugeVec, "tunica_load_measured", ["level"],
        "1 for the load level that is measured, whoever has the word, 0 for the others.";
    load_pinned: IntGauge, "tunica_load_pinned", [],
        "1 while an operator has set the load level, else 0.";
    load_ratio: GaugeVec, "tunica_load_ratio", ["input"],
        "How much of what it can bear an input of the load level bears, from 0 to 1; an input of which nothing is known has no series.";
    load_changes: IntCounterVec, "tunica_load_changes_total", ["level"],
        "Times that the load level in force became this one.";
    load_failures: IntCounterVec, "tunica_load_reading_failures_total", ["part"],
        "Times that something that tells of load could not be read: the pressure on the CPUs, the CPU time of tor's process, or tor's metrics.";
    build: IntGaugeVec, "tunica_build_info", ["version", "object_sha256"],
        "Always 1; the labels say which daemon and which kernel object this is.";
}

fn register<M: Kind>(
    registry: &Registry,
    name: &str,
    meaning: &str,
    labels: &[&str],
) -> prometheus::Result<M> {
    let metric = M::make(Opts::new(name, meaning), labels)?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

/// The states of circuits in HAProxy's table.
const HAPROXY_STATES: [&str; 3] = ["tracked", "banned", "vip"];
/// The changes of HAProxy's table.
const EDITS: [&str; 4] = ["ban", "promote", "reset", "clear"];

const fn edit_label(edit: Edit) -> Option<&'static str> {
    let [ban, promote, reset, clear] = EDITS;
    match edit {
        Edit::Set(_, Standing::Banned) => Some(ban),
        Edit::Set(_, Standing::Vip) => Some(promote),
        Edit::Set(_, Standing::Normal) => Some(reset),
        Edit::Forget => Some(clear),
        // It changes no circuit.
        Edit::Mark(_) => None,
    }
}

const fn close_label(outcome: CloseOutcome) -> &'static str {
    let [accepted, gone, other_tor, not_connected, refused] = CLOSES;
    match outcome {
        CloseOutcome::Accepted => accepted,
        CloseOutcome::NoSuchCircuit => gone,
        CloseOutcome::OtherTor => other_tor,
        CloseOutcome::NotConnected => not_connected,
        CloseOutcome::Refused { .. } => refused,
    }
}

/// A counter that follows a total which somebody else counts.
#[derive(Debug)]
struct Follower {
    counter: IntCounter,
    seen: AtomicU64,
}

impl Follower {
    fn new(counter: IntCounter) -> Self {
        Self { counter, seen: AtomicU64::new(0) }
    }

    /// The next total is of something that begins at 0.
    fn begin_anew(&self) {
        self.seen.store(0, Ordering::Relaxed);
    }

    /// Takes in the total as it is now. A total below the last one was started anew, so all of it is new.
    fn follow(&self, total: u64) {
        let seen = self.seen.swap(total, Ordering::Relaxed);
        self.counter.inc_by(total.checked_sub(seen).unwrap_or(total));
    }
}

/// Every metric of the daemon.
pub struct Metrics {
    registry: Registry,
    families: Families,
    /// By verdict and action: packets, bytes.
    shield: Vec<(Verdict, Action, Follower, Follower)>,
    /// In the order of the kernel's table.
    differences: Vec<Follower>,
    events_lost: Follower,
    proofs_lost: Follower,
    /// In the order of [`MEMORY_EVENTS`].
    memory_events: [Follower; MEMORY_EVENTS.len()],
    front: front::FrontFollowers,
    /// In the order of [`GateOutcome::ALL`].
    gate: [Follower; GateOutcome::ALL.len()],
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Metrics")
    }
}

impl Metrics {
    /// All metrics at 0. `object_sha256` is the checksum of the kernel object that the daemon carries, in hexadecimal.
    ///
    /// # Errors
    /// If two metrics bear one name; the tests hold that there are none.
    pub fn new(object_sha256: &str) -> prometheus::Result<Self> {
        let registry = Registry::new();
        let families = Families::register(&registry)?;
        let mut shield = Vec::new();
        for verdict in Verdict::ALL {
            for action in Action::ALL {
                let labels = [verdict.label(), action.label()];
                let packets = Follower::new(families.packets.with_label_values(&labels));
                let bytes = Follower::new(families.bytes.with_label_values(&labels));
                shield.push((*verdict, action, packets, bytes));
            }
        }
        let differences = Difference::ALL
            .iter()
            .flat_map(|difference| {
                Verdict::ALL.iter().map(move |verdict| [verdict.label(), difference.label()])
            })
            .map(|labels| Follower::new(families.differences.with_label_values(&labels)))
            .collect();
        for mode in Mode::ALL {
            families.mode.with_label_values(&[mode.label()]);
        }
        for table in TABLES {
            families.used.with_label_values(&[table]);
            families.capacity.with_label_values(&[table]);
        }
        for origin in ORIGINS {
            families.bans_set.with_label_values(&[origin.label()]);
            families.bans_active.with_label_values(&[origin.label()]);
        }
        for result in REPORTS {
            families.reports.with_label_values(&[result]);
        }
        for reason in BAN_REFUSALS {
            families.bans_refused.with_label_values(&[reason]);
        }
        for outcome in SelfTest::LABELS {
            families.self_tests.with_label_values(&[outcome]);
        }
        for state in CookieState::LABELS {
            families.cookies.with_label_values(&[state]);
        }
        for table in REPAIRED {
            families.edits.with_label_values(&[table]);
        }
        for what in HostChange::ALL {
            families.host_changes.with_label_values(&[what.label()]);
        }
        for result in ["ok", "refused"] {
            families.reloads.with_label_values(&[result]);
        }
        for kind in Defence::ALL {
            families.incidents.with_label_values(&[kind.name()]);
        }
        load::prepare(&families);
        newcomers::prepare(&families);
        families.never_ban_age.set(-1.0);
        families.build.with_label_values(&[env!("CARGO_PKG_VERSION"), object_sha256]).set(1);
        let events_lost = Follower::new(families.events_lost.clone());
        let proofs_lost = Follower::new(families.proofs_lost.clone());
        let memory_events =
            MEMORY_EVENTS.map(|event| Follower::new(families.memory_events.with_label_values(&[event])));
        let gate = GateOutcome::ALL
            .map(|outcome| Follower::new(families.gate_segments.with_label_values(&[outcome.label()])));
        for label in EDITS {
            families.haproxy_edits.with_label_values(&[label]);
        }
        for label in HAPROXY_STATES {
            families.haproxy_circuits.with_label_values(&[label]);
        }
        for label in CLOSES {
            families.tor_closes.with_label_values(&[label]);
        }
        let front = front::FrontFollowers::new(&families);
        Ok(Self {
            registry,
            families,
            shield,
            differences,
            events_lost,
            proofs_lost,
            memory_events,
            front,
            gate,
        })
    }

    /// Shows whether the circuit gate is to be attached, and whether it is.
    pub fn set_gate(&self, is_wanted: bool, is_attached: bool) {
        self.families.gate_wanted.set(i64::from(is_wanted));
        self.families.gate.set(i64::from(is_attached));
    }

    /// Takes in what the circuit gate has counted since its maps were made.
    pub fn set_gate_totals(&self, totals: &gate::Totals) {
        for (outcome, follower) in GateOutcome::ALL.into_iter().zip(&self.gate) {
            follower.follow(totals.of(outcome));
        }
    }

    /// Shows whether a control port of tor is configured.
    pub fn set_tor_control_wanted(&self, is_wanted: bool) {
        self.families.tor_control_wanted.set(i64::from(is_wanted));
    }

    /// Shows whether tor's control port is connected.
    pub fn set_tor_control(&self, is_up: bool) {
        self.families.tor_control.set(i64::from(is_up));
    }

    /// Shows whether there is to be an ingress of ours, and whether HAProxy is to be one.
    pub fn set_ingresses_wanted(&self, is_front: bool, is_haproxy: bool) {
        self.families.front_wanted.set(i64::from(is_front));
        self.families.haproxy_wanted.set(i64::from(is_haproxy));
    }

    /// Shows whether HAProxy answers, and what its table held last: all circuits, banned ones, VIPs.
    pub fn set_haproxy(&self, held: Option<[u64; 3]>) {
        let families = &self.families;
        families.haproxy.set(i64::from(held.is_some()));
        for (state, count) in HAPROXY_STATES.into_iter().zip(held.unwrap_or_default()) {
            families
                .haproxy_circuits
                .with_label_values(&[state])
                .set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// Counts a change of HAProxy's table.
    pub fn count_haproxy_edit(&self, edit: Edit) {
        if let Some(label) = edit_label(edit) {
            self.families.haproxy_edits.with_label_values(&[label]).inc();
        }
    }

    /// Counts a visit to HAProxy that failed.
    pub fn count_haproxy_failure(&self) {
        self.families.haproxy_failures.inc();
    }

    /// Counts a circuit that tor was asked to close.
    pub fn count_close(&self, outcome: CloseOutcome) {
        self.families.tor_closes.with_label_values(&[close_label(outcome)]).inc();
    }

    /// Takes in what the kernel has counted for `verdict` ending in `action` since its maps were made.
    pub fn set_shield_total(&self, verdict: Verdict, action: Action, packets: u64, bytes: u64) {
        let row = self.shield.iter().find(|row| (row.0, row.1) == (verdict, action));
        if let Some((_, _, all_packets, all_bytes)) = row {
            all_packets.follow(packets);
            all_bytes.follow(bytes);
        }
    }

    /// Counts packets that nftables judged in the program's stead.
    pub fn count_beside_shield(&self, verdict: Verdict, action: Action, packets: u64, bytes: u64) {
        let labels = [verdict.label(), action.label()];
        self.families.packets.with_label_values(&labels).inc_by(packets);
        self.families.bytes.with_label_values(&labels).inc_by(bytes);
    }

    /// Shows the mode in force.
    pub fn set_mode(&self, mode: Mode) {
        for each in Mode::ALL {
            self.families.mode.with_label_values(&[each.label()]).set(i64::from(each == mode));
        }
    }

    /// Shows every configured interface: its name, the requested and the actual way of attachment as labels, and
    /// whether the one satisfies the other. What was shown before goes.
    pub fn set_interfaces<'a>(&self, interfaces: impl Iterator<Item = (&'a str, &'a str, &'a str, bool)>) {
        self.families.attached.reset();
        for (name, requested, actual, is_as_requested) in interfaces {
            let series = self.families.attached.with_label_values(&[name, requested, actual]);
            series.set(i64::from(is_as_requested));
        }
    }

    /// Shows whether every attached program is the daemon's own.
    pub fn set_program_matches(&self, matches: bool) {
        self.families.program_matches.set(i64::from(matches));
    }

    /// Shows the number of the policy in force.
    pub fn set_generation(&self, generation: u32) {
        self.families.generation.set(i64::from(generation));
    }

    /// Shows whether an operator has the shield detached.
    pub fn set_bypassed(&self, is_bypassed: bool) {
        self.families.bypassed.set(i64::from(is_bypassed));
    }

    /// Shows for how long attack mode is still in force; `None` while it is not.
    pub fn set_attack_mode(&self, left: Option<Duration>) {
        self.families.attack_mode.set(i64::from(left.is_some()));
        self.families.attack_mode_left.set(left.unwrap_or_default().as_secs_f64());
    }

    /// Counts an attack that began with this defence's word.
    pub fn count_incident(&self, kind: Defence) {
        self.families.incidents.with_label_values(&[kind.name()]).inc();
    }

    /// Shows whether a candidate is tried, and takes in the kernel's table of differences.
    pub fn set_candidate(&self, is_loaded: bool, differences: &[Total]) {
        self.families.candidate.set(i64::from(is_loaded));
        for (follower, total) in self.differences.iter().zip(differences) {
            follower.follow(total.packets);
        }
    }

    /// Shows whether an attack goes on.
    pub fn set_under_attack(&self, is_under_attack: bool) {
        self.families.incident_active.set(i64::from(is_under_attack));
    }

    /// Shows whether the configuration is on trial, and whether one was undone.
    pub fn set_trial(&self, is_on_trial: bool, is_undone: bool) {
        self.families.trial.set(i64::from(is_on_trial));
        self.families.undone.set(i64::from(is_undone));
    }

    /// Shows how full one of [`TABLES`] is, in rows. Other tables are not shown.
    pub fn set_table(&self, table: &str, used: u64, capacity: u64) {
        if TABLES.contains(&table) {
            self.families.used.with_label_values(&[table]).set(whole(used));
            self.families.capacity.with_label_values(&[table]).set(whole(capacity));
        }
    }

    /// Shows how long ago the kernel had a sign of life.
    pub fn set_heartbeat_age(&self, age: Duration) {
        self.families.heartbeat_age.set(age.as_secs_f64());
    }

    /// Shows after how long without a sign of life the kernel falls back.
    pub fn set_heartbeat_stale_after(&self, limit: Duration) {
        self.families.heartbeat_stale_after.set(limit.as_secs_f64());
    }

    /// Shows which share of the SYN sketch would refuse a SYN, from 0 to 1.
    pub fn set_sketch_busy(&self, share: f64) {
        self.families.sketch_busy.set(share);
    }

    /// Shows how ports over their SYN budget answer, and how many there are.
    pub fn set_cookies(&self, state: CookieState, over_budget: usize) {
        for label in CookieState::LABELS {
            self.families.cookies.with_label_values(&[label]).set(i64::from(label == state.label()));
        }
        self.families.over_budget.set(i64::try_from(over_budget).unwrap_or(i64::MAX));
    }

    /// Counts a test of a port's cookies.
    pub fn count_self_test(&self, outcome: SelfTest) {
        self.families.self_tests.with_label_values(&[outcome.label()]).inc();
    }

    /// Shows how many ports answer with no cookies because their listener takes none.
    pub fn set_without_cookies(&self, ports: usize) {
        self.families.without_cookies.set(i64::try_from(ports).unwrap_or(i64::MAX));
    }

    /// Counts sampled packets that the kernel reported.
    pub fn count_events(&self, events: u64) {
        self.families.events_received.inc_by(events);
    }

    /// Takes in how many samples the kernel has lost since its maps were made.
    pub fn set_events_lost(&self, total: u64) {
        self.events_lost.follow(total);
    }

    /// Takes in how many proven violations found the kernel's buffer full.
    pub fn set_proofs_lost(&self, total: u64) {
        self.proofs_lost.follow(total);
    }

    /// Shows the origins of all bans in force.
    pub fn set_bans_active(&self, origins: impl Iterator<Item = BanOrigin>) {
        let origins: Vec<BanOrigin> = origins.collect();
        for origin in ORIGINS {
            let bans = origins.iter().filter(|each| **each == origin).count();
            self.families.bans_active.with_label_values(&[origin.label()]).set(whole(bans as u64));
        }
    }

    /// Counts what became of a request for a ban; replies to other requests are not to be given here.
    pub fn count_ban_reply(&self, reply: &Reply) {
        let reason = match reply {
            Reply::Done { .. } => return,
            Reply::Refused { code, .. } => match code {
                RefusedCode::Protected => "protected",
                RefusedCode::Full => "full",
                RefusedCode::Invalid | RefusedCode::NotFound => "invalid",
                // Of reports alone.
                RefusedCode::Forbidden | RefusedCode::OverBudget => return,
            },
        };
        self.families.bans_refused.with_label_values(&[reason]).inc();
    }

    /// Counts what became of a report; `None` if what came of it could not be made durable.
    pub fn count_report(&self, reply: Option<&Reply>) {
        let result = match reply {
            None => "failed",
            Some(Reply::Done { .. }) => "accepted",
            Some(Reply::Refused { code, .. }) => match code {
                RefusedCode::Protected => "refused_protected",
                RefusedCode::OverBudget => "refused_budget",
                RefusedCode::Forbidden => "refused_forbidden",
                RefusedCode::Full => "refused_full",
                RefusedCode::Invalid | RefusedCode::NotFound => "refused_invalid",
            },
        };
        self.families.reports.with_label_values(&[result]).inc();
    }

    /// Shows the set of addresses that may not be banned: tor's peers in it, and how long ago tor's connections were
    /// read; `None` where `tor.user` is not set.
    pub fn set_never_ban(&self, tor_peers: u64, age: Option<Duration>) {
        self.families.tor_peers.set(whole(tor_peers));
        self.families.never_ban_age.set(age.map_or(-1.0, |age| age.as_secs_f64()));
    }

    /// Counts commands that were made durable in one commit, and the bans among them.
    pub fn count_commit(&self, commands: &[Command]) {
        self.families.ledger_commits.inc();
        for command in commands {
            if let Command::SetBan { fact, .. } | Command::SetNetBan { fact, .. } = command {
                self.families.bans_set.with_label_values(&[fact.origin.label()]).inc();
            }
        }
    }

    /// Counts a commit that failed.
    pub fn count_ledger_failure(&self) {
        self.families.ledger_failures.inc();
    }

    /// Shows, until the daemon ends, that it started on a fresh ledger because the old one was unreadable.
    pub fn set_ledger_damaged(&self) {
        self.families.ledger_damaged.set(1);
    }

    /// Counts repairs of drift.
    pub fn count_repairs(&self, repairs: Repairs) {
        let Repairs { bans, nets, ports, allow, own, policy, link, nft } = repairs;
        for (table, count) in REPAIRED.into_iter().zip([bans, nets, ports, allow, own, policy, link, nft]) {
            self.families.edits.with_label_values(&[table]).inc_by(count);
        }
    }

    /// Counts an attempt to bring the kernel to what it should hold that failed.
    pub fn count_reconcile_failure(&self) {
        self.families.reconcile_failures.inc();
    }

    /// Shows disk, memory and clock.
    pub fn set_vitals(&self, vitals: &Vitals) {
        const UNKNOWN: f64 = -1.0;
        let families = &self.families;
        let disk = vitals.disk.as_ref().ok();
        families.disk_free.set(disk.map_or(UNKNOWN, |disk| disk.free as f64));
        families.disk_free_ratio.set(disk.map_or(UNKNOWN, |disk| disk.free_ratio()));
        let memory = vitals.memory.as_ref().ok();
        families.memory_current.set(memory.map_or(UNKNOWN, |memory| memory.current as f64));
        let most = |most: Option<u64>| most.map_or(f64::INFINITY, |most| most as f64);
        families.memory_max.set(memory.map_or(UNKNOWN, |memory| most(memory.most)));
        if let Some(memory) = memory {
            for (event, total) in self.memory_events.iter().zip(memory.events) {
                event.follow(total);
            }
        }
        let clock = vitals.clock.as_ref().ok();
        families.clock_synchronised.set(clock.map_or(-1, |clock| i64::from(clock.is_synchronised)));
        families.clock_error.set(clock.map_or(UNKNOWN, |clock| clock.most_error.as_secs_f64()));
    }

    /// Counts a change of the host that the kernel told of.
    pub fn count_host_change(&self, what: HostChange) {
        self.families.host_changes.with_label_values(&[what.label()]).inc();
    }

    /// Counts a reload of the configuration, done or refused.
    pub fn count_reload(&self, is_done: bool) {
        let result = if is_done { "ok" } else { "refused" };
        self.families.reloads.with_label_values(&[result]).inc();
    }

    /// Where the control socket counts its requests.
    pub fn control(&self) -> ControlRequests {
        ControlRequests(self.families.control.clone())
    }

    /// Where the HTTP server counts its requests.
    pub fn http(&self) -> HttpRequests {
        HttpRequests(self.families.http.clone())
    }

    /// Where the shell of tor's control port counts how long tor takes to answer.
    pub fn tor_responses(&self) -> TorResponses {
        self.families.tor_responses.clone()
    }

    /// Everything in text format 0.0.4.
    ///
    /// # Errors
    /// If a family cannot be written; the tests hold that every one can.
    pub fn render(&self) -> prometheus::Result<String> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

/// What of the host changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostChange {
    /// Its own addresses.
    Addresses,
    /// The interfaces that the configuration names.
    Interfaces,
}

impl HostChange {
    const ALL: [Self; 2] = [Self::Addresses, Self::Interfaces];

    const fn label(self) -> &'static str {
        match self {
            Self::Addresses => "addresses",
            Self::Interfaces => "interfaces",
        }
    }
}

/// Counts requests on the control socket.
#[derive(Clone, Debug)]
pub struct ControlRequests(IntCounterVec);

impl ControlRequests {
    /// Counts one request with its answer. `verb` is a request's own, or `None` where the line was no request.
    pub fn count(&self, verb: Option<&'static str>, answer: &Answer) {
        let result = match answer {
            Answer::Refused(refused) => match refused.code {
                Refusal::Failed => "failed",
                Refusal::Protected
                | Refusal::NotFound
                | Refusal::Full
                | Refusal::Invalid
                | Refusal::Forbidden
                | Refusal::OverBudget
                | Refusal::BadConfig => "refused",
            },
            Answer::Status(_)
            | Answer::Counters(_)
            | Answer::Differences(_)
            | Answer::Bans(_)
            | Answer::Allows(_)
            | Answer::Done(_)
            | Answer::Sources(_)
            | Answer::Explanation(_)
            | Answer::Tuning(_)
            | Answer::Incidents(_)
            | Answer::Incident(_)
            | Answer::Candidate(_)
            | Answer::Circuits(_)
            | Answer::CircuitExplanation(_)
            | Answer::Threat(_)
            | Answer::Promotion(_)
            | Answer::Doctor(_) => "ok",
        };
        self.0.with_label_values(&[verb.unwrap_or("unreadable"), result]).inc();
    }
}

/// Counts how long tor takes to answer on its control port.
#[derive(Clone, Debug)]
pub struct TorResponses(Histogram);

impl TorResponses {
    /// Counts one command, which tor answered after this time, or did not answer in it.
    pub fn observe(&self, after: Duration) {
        self.0.observe(after.as_secs_f64());
    }
}

impl Collector for TorResponses {
    fn desc(&self) -> Vec<&Desc> {
        self.0.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.0.collect()
    }
}

/// Counts HTTP requests.
#[derive(Clone, Debug)]
pub struct HttpRequests(IntCounterVec);

impl HttpRequests {
    /// Counts one answered request.
    pub fn count(&self, path: HttpPath, status: u16) {
        self.0.with_label_values(&[path.label(), &status.to_string()]).inc();
    }
}

/// The pages of the HTTP server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpPath {
    /// `/metrics`.
    Metrics,
    /// `/health`.
    Health,
    /// `/ready`.
    Ready,
    /// Anything else; there is no page.
    Other,
}

impl HttpPath {
    /// The page at `path`.
    pub fn of(path: &str) -> Self {
        match path {
            "/metrics" => Self::Metrics,
            "/health" => Self::Health,
            "/ready" => Self::Ready,
            _ => Self::Other,
        }
    }

    const fn label(self) -> &'static str {
        match self {
            Self::Metrics => "/metrics",
            Self::Health => "/health",
            Self::Ready => "/ready",
            Self::Other => "other",
        }
    }
}

fn whole(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// The reference page: every metric with kind, labels and meaning, as Markdown.
pub fn metrics_markdown() -> String {
    let mut page = String::from(
        "# Metrics\n\
         \n\
         `/metrics` on `http.listen` shows these, in Prometheus's text format 0.0.4.\n\
         Label values come from closed sets; no label holds an address.\n\
         Counters of the shield go on counting over a restart of the daemon, because the kernel keeps them.\n\
         What nftables counted in its stead is not kept, so a restart sets them back by that much.\n\
         \n\
         | metric | kind | labels | meaning |\n|---|---|---|---|\n",
    );
    for MetricDoc { name, kind, labels, meaning } in METRICS {
        let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
        let labels = if labels.is_empty() { "none".to_owned() } else { labels.join(", ") };
        // Writing to a string cannot fail.
        let _ = writeln!(page, "| `{name}` | {kind} | {labels} | {meaning} |");
    }
    page
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use tunica_api::view::{Bans, Refused};
    use tunica_core::{id::PacketSource, ledger::BanFact, refusal::Refusal as StreamRefusal, time::WallTime};

    use crate::shell::host::vitals::{Clock, Disk, Memory};

    use super::*;

    pub(super) fn metrics() -> Metrics {
        Metrics::new("abc123").unwrap()
    }

    /// The value of a series, written as in the text format.
    fn value(metrics: &Metrics, series: &str) -> Option<f64> {
        let text = metrics.render().unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map(|number| number.parse().unwrap())
    }

    fn refused(code: Refusal) -> Answer {
        Answer::Refused(Refused { code, message: String::new() })
    }

    #[test]
    fn every_metric_of_the_reference_is_exported_and_no_other() {
        let metrics = metrics();
        metrics.set_interfaces([("eth0", "native", "none", false)].into_iter());
        metrics.control().count(Some("status"), &Answer::Bans(Bans { bans: Vec::new() }));
        metrics.http().count(HttpPath::Health, 200);
        metrics.set_front(Some(&front::tests::digest()));
        metrics.set_load(&load::tests::desired(), false);
        let text = metrics.render().unwrap();
        let types: BTreeSet<String> =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).map(str::to_owned).collect();
        let listed: BTreeSet<String> =
            METRICS.iter().map(|metric| format!("{} {}", metric.name, metric.kind)).collect();
        assert_eq!(types, listed);
        for metric in METRICS {
            let series = text.lines().find(|line| line.starts_with(metric.name)).unwrap();
            for label in metric.labels {
                assert!(series.contains(&format!("{label}=\"")), "{series}");
            }
            assert_eq!(metric.kind == "counter", metric.name.ends_with("_total"), "{}", metric.name);
            assert!(metric.meaning.ends_with('.'), "{}", metric.meaning);
            assert!(metrics_markdown().contains(&format!("| `{}` | {} |", metric.name, metric.kind)));
        }
    }

    #[test]
    fn every_pair_of_verdict_and_action_is_there_from_the_start() {
        let metrics = metrics();
        for verdict in Verdict::ALL {
            for action in Action::ALL {
                for name in ["packets", "bytes"] {
                    let (action, verdict) = (action.label(), verdict.label());
                    let series =
                        format!("tunica_shield_{name}_total{{action=\"{action}\",verdict=\"{verdict}\"}}");
                    assert_eq!(value(&metrics, &series), Some(0.0), "{series}");
                }
            }
        }
    }

    #[test]
    fn totals_of_the_kernel_are_followed_and_never_go_back() {
        let metrics = metrics();
        let packets = "tunica_shield_packets_total{action=\"drop\",verdict=\"banned\"}";
        let bytes = "tunica_shield_bytes_total{action=\"drop\",verdict=\"banned\"}";
        // What the kernel says, and what is shown; the third reading is of maps that were made anew.
        for (total, shown) in [(100, 100.0), (130, 130.0), (7, 137.0), (7, 137.0), (10, 140.0)] {
            metrics.set_shield_total(Verdict::Banned, Action::Drop, total, total * 60);
            metrics.set_events_lost(total);
            assert_eq!(value(&metrics, packets), Some(shown));
            assert_eq!(value(&metrics, bytes), Some(shown * 60.0));
            assert_eq!(value(&metrics, "tunica_events_lost_total"), Some(shown));
        }
    }

    #[test]
    fn what_nftables_counts_is_added_once() {
        let metrics = metrics();
        let packets = "tunica_shield_packets_total{action=\"drop\",verdict=\"xmas\"}";
        metrics.set_shield_total(Verdict::Xmas, Action::Drop, 100, 6_000);
        metrics.count_beside_shield(Verdict::Xmas, Action::Drop, 7, 280);
        metrics.set_shield_total(Verdict::Xmas, Action::Drop, 101, 6_060);
        assert_eq!(value(&metrics, packets), Some(108.0));
        // Maps that were made anew bring back nothing of it.
        metrics.set_shield_total(Verdict::Xmas, Action::Drop, 0, 0);
        assert_eq!(value(&metrics, packets), Some(108.0));
        assert_eq!(value(&metrics, &packets.replace("packets", "bytes")), Some(6_340.0));
    }

    #[test]
    fn an_interface_has_one_series() {
        let metrics = metrics();
        metrics.set_interfaces(
            [("eth0", "native", "none", false), ("eth1", "native", "native", true)].into_iter(),
        );
        metrics.set_interfaces([("eth0", "native", "generic", false)].into_iter());
        let text = metrics.render().unwrap();
        let series: Vec<&str> =
            text.lines().filter(|line| line.starts_with("tunica_shield_attached")).collect();
        assert_eq!(
            series,
            ["tunica_shield_attached{actual=\"generic\",interface=\"eth0\",requested=\"native\"} 0"]
        );
    }

    #[test]
    fn every_setter_moves_its_own_series() {
        let source = PacketSource::of([198, 51, 100, 7].into());
        let (since, origin, reason) = (WallTime(1), BanOrigin::Operator, String::new());
        let ban = Command::SetBan {
            source,
            fact: BanFact { id: 1, since, expires: None, rung: None, origin, reason: reason.clone() },
        };
        let net_ban = Command::SetNetBan {
            prefix: "203.0.113.0/24".parse().unwrap(),
            fact: BanFact { id: 2, since, expires: None, rung: None, origin, reason },
        };
        let lift = Command::LiftBan { source };
        let reply = |code| Reply::Refused { code, message: String::new() };
        type Cause = Box<dyn Fn(&Metrics)>;
        let rows: Vec<(&str, f64, Cause)> = vec![
            ("tunica_shield_mode{mode=\"observe\"}", 1.0, Box::new(|it| it.set_mode(Mode::Observe))),
            ("tunica_shield_mode{mode=\"off\"}", 0.0, Box::new(|it| it.set_mode(Mode::Observe))),
            ("tunica_shield_program_matches", 1.0, Box::new(|it| it.set_program_matches(true))),
            ("tunica_shield_policy_generation", 9.0, Box::new(|it| it.set_generation(9))),
            ("tunica_shield_bypassed", 1.0, Box::new(|it| it.set_bypassed(true))),
            (
                "tunica_circuits_closed_total{refusal=\"circuit_rotated\"}",
                1.0,
                Box::new(|it| it.count_closed_circuit(StreamRefusal::CircuitRotated)),
            ),
            (
                "tunica_attack_mode_active",
                1.0,
                Box::new(|it| it.set_attack_mode(Some(Duration::from_secs(90)))),
            ),
            (
                "tunica_attack_mode_left_seconds",
                90.0,
                Box::new(|it| it.set_attack_mode(Some(Duration::from_secs(90)))),
            ),
            (
                "tunica_attack_mode_left_seconds",
                0.0,
                Box::new(|it| {
                    it.set_attack_mode(Some(Duration::from_secs(90)));
                    it.set_attack_mode(None);
                }),
            ),
            (
                "tunica_incidents_total{kind=\"sanity\"}",
                1.0,
                Box::new(|it| it.count_incident(Defence::Sanity)),
            ),
            ("tunica_incidents_total{kind=\"icmp\"}", 0.0, Box::new(|it| it.count_incident(Defence::Sanity))),
            ("tunica_incident_active", 1.0, Box::new(|it| it.set_under_attack(true))),
            ("tunica_config_trial_active", 1.0, Box::new(|it| it.set_trial(true, false))),
            ("tunica_config_undone", 1.0, Box::new(|it| it.set_trial(false, true))),
            ("tunica_table_used{table=\"bans\"}", 3.0, Box::new(|it| it.set_table("bans", 3, 8))),
            ("tunica_table_used{table=\"cidrs\"}", 2.0, Box::new(|it| it.set_table("cidrs", 2, 8))),
            ("tunica_table_capacity{table=\"bans\"}", 8.0, Box::new(|it| it.set_table("bans", 3, 8))),
            (
                "tunica_heartbeat_age_seconds",
                1.5,
                Box::new(|it| it.set_heartbeat_age(Duration::from_millis(1_500))),
            ),
            (
                "tunica_heartbeat_stale_after_seconds",
                30.0,
                Box::new(|it| it.set_heartbeat_stale_after(Duration::from_secs(30))),
            ),
            ("tunica_syn_sketch_busy_ratio", 0.25, Box::new(|it| it.set_sketch_busy(0.25))),
            (
                "tunica_cookies_state{state=\"waiting\"}",
                1.0,
                Box::new(|it| it.set_cookies(CookieState::Waiting, 0)),
            ),
            ("tunica_ports_over_budget", 2.0, Box::new(|it| it.set_cookies(CookieState::Waiting, 2))),
            (
                "tunica_cookie_self_tests_total{outcome=\"partly\"}",
                1.0,
                Box::new(|it| it.count_self_test(SelfTest::Partly)),
            ),
            ("tunica_ports_without_cookies", 3.0, Box::new(|it| it.set_without_cookies(3))),
            ("tunica_events_received_total", 4.0, Box::new(|it| it.count_events(4))),
            ("tunica_bans_set_total{origin=\"operator\"}", 2.0, {
                let commands = [ban.clone(), net_ban, lift.clone()];
                Box::new(move |it| it.count_commit(&commands))
            }),
            (
                "tunica_ledger_commits_total",
                1.0,
                Box::new(move |it| it.count_commit(std::slice::from_ref(&lift))),
            ),
            (
                "tunica_bans_active{origin=\"operator\"}",
                2.0,
                Box::new(|it| it.set_bans_active([BanOrigin::Operator; 2].into_iter())),
            ),
            (
                "tunica_bans_refused_total{reason=\"protected\"}",
                1.0,
                Box::new(move |it| it.count_ban_reply(&reply(RefusedCode::Protected))),
            ),
            (
                "tunica_bans_refused_total{reason=\"full\"}",
                1.0,
                Box::new(move |it| it.count_ban_reply(&reply(RefusedCode::Full))),
            ),
            (
                "tunica_bans_refused_total{reason=\"invalid\"}",
                1.0,
                Box::new(move |it| it.count_ban_reply(&reply(RefusedCode::Invalid))),
            ),
            ("tunica_reports_total{result=\"failed\"}", 1.0, Box::new(|it| it.count_report(None))),
            (
                "tunica_reports_total{result=\"refused_budget\"}",
                1.0,
                Box::new(move |it| it.count_report(Some(&reply(RefusedCode::OverBudget)))),
            ),
            (
                "tunica_reports_total{result=\"refused_forbidden\"}",
                1.0,
                Box::new(move |it| it.count_report(Some(&reply(RefusedCode::Forbidden)))),
            ),
            (
                "tunica_reports_total{result=\"refused_full\"}",
                1.0,
                Box::new(move |it| it.count_report(Some(&reply(RefusedCode::Full)))),
            ),
            ("tunica_never_ban_tor_peers", 5.0, Box::new(|it| it.set_never_ban(5, None))),
            ("tunica_never_ban_age_seconds", -1.0, Box::new(|it| it.set_never_ban(5, None))),
            (
                "tunica_never_ban_age_seconds",
                10.0,
                Box::new(|it| it.set_never_ban(5, Some(Duration::from_secs(10)))),
            ),
            ("tunica_ledger_failures_total", 1.0, Box::new(Metrics::count_ledger_failure)),
            ("tunica_ledger_damaged", 1.0, Box::new(Metrics::set_ledger_damaged)),
            (
                "tunica_reconcile_edits_total{table=\"policy\"}",
                2.0,
                Box::new(|it| it.count_repairs(Repairs { policy: 2, link: 1, ..Repairs::default() })),
            ),
            (
                "tunica_reconcile_edits_total{table=\"link\"}",
                1.0,
                Box::new(|it| it.count_repairs(Repairs { policy: 2, link: 1, ..Repairs::default() })),
            ),
            ("tunica_reconcile_failures_total", 1.0, Box::new(Metrics::count_reconcile_failure)),
            (
                "tunica_host_changes_total{what=\"addresses\"}",
                1.0,
                Box::new(|it| it.count_host_change(HostChange::Addresses)),
            ),
            ("tunica_config_reloads_total{result=\"ok\"}", 1.0, Box::new(|it| it.count_reload(true))),
            ("tunica_config_reloads_total{result=\"refused\"}", 1.0, Box::new(|it| it.count_reload(false))),
            (
                "tunica_control_requests_total{result=\"refused\",verb=\"reload\"}",
                1.0,
                Box::new(|it| it.control().count(Some("reload"), &refused(Refusal::Forbidden))),
            ),
            (
                "tunica_control_requests_total{result=\"failed\",verb=\"status\"}",
                1.0,
                Box::new(|it| it.control().count(Some("status"), &refused(Refusal::Failed))),
            ),
            (
                "tunica_control_requests_total{result=\"refused\",verb=\"unreadable\"}",
                1.0,
                Box::new(|it| it.control().count(None, &refused(Refusal::Invalid))),
            ),
            (
                "tunica_http_requests_total{path=\"other\",status=\"404\"}",
                1.0,
                Box::new(|it| it.http().count(HttpPath::of("/favicon.ico"), 404)),
            ),
        ];
        for (series, expected, cause) in rows {
            let metrics = metrics();
            cause(&metrics);
            assert_eq!(value(&metrics, series), Some(expected), "{series}");
        }
        assert_eq!(
            value(
                &metrics(),
                &format!(
                    "tunica_build_info{{object_sha256=\"abc123\",version=\"{}\"}}",
                    env!("CARGO_PKG_VERSION")
                )
            ),
            Some(1.0)
        );
    }

    #[test]
    fn what_is_not_known_of_the_host_shows_as_such() {
        let metrics = metrics();
        let known = Vitals {
            disk: Ok(Disk { free: 25, whole: 100 }),
            memory: Ok(Memory { current: 7, most: None, events: [1, 2, 3, 4] }),
            clock: Ok(Clock { is_synchronised: true, most_error: Duration::from_millis(250) }),
        };
        let unknown = || String::from("not told");
        let nothing = Vitals { disk: Err(unknown()), memory: Err(unknown()), clock: Err(unknown()) };
        let limited = Vitals {
            memory: Ok(Memory { current: 7, most: Some(9), events: [1, 2, 3, 5] }),
            ..known.clone()
        };
        let inf = f64::INFINITY;
        for (vitals, expected) in [
            (known, [25.0, 0.25, 7.0, inf, 4.0, 1.0, 0.25]),
            (nothing, [-1.0, -1.0, -1.0, -1.0, 4.0, -1.0, -1.0]),
            (limited, [25.0, 0.25, 7.0, 9.0, 5.0, 1.0, 0.25]),
        ] {
            metrics.set_vitals(&vitals);
            let shown = [
                "tunica_ledger_disk_free_bytes",
                "tunica_ledger_disk_free_ratio",
                "tunica_memory_current_bytes",
                "tunica_memory_max_bytes",
                "tunica_memory_events_total{event=\"oom_kill\"}",
                "tunica_clock_synchronised",
                "tunica_clock_error_bound_seconds",
            ]
            .map(|series| value(&metrics, series).unwrap());
            assert_eq!(shown, expected);
        }
    }

    #[test]
    fn a_table_that_is_not_listed_is_not_shown() {
        let metrics = metrics();
        metrics.set_table("secrets", 1, 1);
        assert!(!metrics.render().unwrap().contains("secrets"));
    }
}
