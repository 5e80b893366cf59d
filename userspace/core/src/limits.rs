//! What the operator set, as plain typed values, and the policy that the kernel reads.

use std::{collections::BTreeMap, fmt, num::NonZeroU16, time::Duration};

use tunica_common::{
    gcra,
    policy::{
        CANDIDATE_NONE, COOKIES_OFF, COOKIES_PLAIN, COOKIES_WITH_OPTIONS, MODE_ENFORCE, MODE_OBSERVE,
        MODE_OFF, PORT_OPEN, Policy, PortRule, STALE_KEEP_LIMITS, STALE_PASS, STALE_SANITY_ONLY, port_key,
    },
};

use crate::{ban_ladder::Ladder, id::Prefix, load_level::LoadSettings, newcomers::NewcomerSettings};

/// Everything of the configuration that decisions depend on. The configuration crate has checked every range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Whether to drop.
    pub mode: Mode,
    /// Sanity rules in force, by [`tunica_common::verdict::Verdict::bit`].
    pub sanity_mask: u64,
    /// Uninspected classes that are dropped, by [`tunica_common::verdict::Verdict::bit`].
    pub uninspected_drop_mask: u64,
    /// What the kernel falls back to without a heartbeat.
    pub on_stale: OnStale,
    /// After how long without a heartbeat.
    pub stale_after: Duration,
    /// Least time between two sampled events of one verdict on one CPU.
    pub event_interval: Duration,
    /// The per-source SYN limit; `None` where it is switched off.
    pub syn: Option<gcra::Limit>,
    /// How many exceeding /64 make their /56 share one limit, and /56 their /48.
    pub escalate_after: u32,
    /// SYNs to one port beyond which the port answers with cookies; `None` where ports have no budget.
    pub port_syn: Option<gcra::Pace>,
    /// Answers with cookies.
    pub cookies: CookieSettings,
    /// Segments that belong to no connection; `None` where they are not judged.
    pub no_socket: Option<NoSocketLimits>,
    /// ICMP; `None` where it is not limited.
    pub icmp: Option<IcmpLimits>,
    /// Completed handshakes of one source, beyond which each is a proven violation; `None`: none is.
    pub handshakes: Option<gcra::Pace>,
    /// How many proven violations of one source in `violation_window` ban it.
    pub ban_threshold: u32,
    /// See `ban_threshold`.
    pub violation_window: Duration,
    /// Accounts that may report sources, by number, and how often each may; the daemon looks them up.
    pub reporters: BTreeMap<u32, gcra::Pace>,
    /// How long a report counts towards `ban_threshold`.
    pub report_window: Duration,
    /// Whether only the open ports of `ports` are open.
    pub lockdown: bool,
    /// What was said of single ports.
    pub ports: BTreeMap<Port, PortSettings>,
    /// Lengths of bans.
    pub ladder: Ladder,
    /// The allow list of the configuration file. None of them [reaches into IPv4](Prefix::reaches_into_ipv4).
    pub config_allow: Vec<Prefix>,
    /// How many bans the kernel's table holds.
    pub ban_capacity: u32,
    /// How many banned ranges the kernel's table holds.
    pub net_capacity: u32,
    /// How many rows the kernel's allow list holds.
    pub allow_capacity: u32,
    /// How long an address stays in the never-ban set after tor was last seen connected to it.
    pub tor_keep: Duration,
    /// Most lines of the drop log in any minute; `None` where it is switched off.
    pub log_lines_per_minute: Option<u32>,
    /// From which load on which level, and how fast.
    pub load: LoadSettings,
    /// What new circuits are compared by, and what follows from it.
    pub newcomers: NewcomerSettings,
}

/// How ports over their budget answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CookieSettings {
    /// Whether they may answer with cookies at all.
    pub enabled: bool,
    /// Whether the daemon may switch `net.ipv4.tcp_syncookies` from 1 to 2 while they do.
    pub manage_syncookies: bool,
    /// SYNs that still reach each listener.
    pub trickle: gcra::Pace,
    /// How long a port goes on after its SYNs last exceeded half its budget.
    pub hold: Duration,
}

/// Limits of segments that belong to no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoSocketLimits {
    /// Segments a second on the whole host, those of connections too, below which nothing is judged; above it, as many
    /// without a socket pass, all sources together.
    pub host_per_second: u32,
    /// What each source may send of them above that.
    pub per_source: gcra::Limit,
}

/// Limits of ICMP and ICMPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpLimits {
    /// Echo requests of one source.
    pub per_source: gcra::Limit,
    /// Echo requests to the host.
    pub host: gcra::Pace,
    /// All other messages to the host but neighbour discovery.
    pub ceiling: gcra::Pace,
}

/// A transport protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// TCP, protocol 6.
    Tcp,
    /// UDP, protocol 17.
    Udp,
}

/// A port of a transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port {
    /// Of which protocol.
    pub transport: Transport,
    /// Which.
    pub number: NonZeroU16,
}

/// What an operator said of one port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortSettings {
    /// Whether it is open while the host is locked down.
    pub is_open: bool,
    /// New TCP connections, or UDP packets; `None`: unlimited.
    pub pace: Option<gcra::Pace>,
}

/// What the host itself has to say; read by the daemon, see [`crate::coordinator::Event::Host`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostFacts {
    /// `net.ipv4.tcp_syncookies`; `None` where it cannot be read.
    pub tcp_syncookies: Option<u32>,
    /// `net.ipv4.tcp_timestamps`; `None` where it cannot be read.
    pub tcp_timestamps: Option<u32>,
    /// Whether the kernel has the helpers for cookies, and the program that answers is loaded.
    pub has_cookie_program: bool,
    /// Smallest MTU of the protected interfaces, bytes.
    pub mtu: u32,
    /// Window scale that the kernel's listeners use (RFC 7323).
    pub window_scale: u32,
    /// First port of `net.ipv4.ip_local_port_range`.
    pub ephemeral_low: u16,
    /// CPUs that may receive packets, at least 1.
    pub cpus: u32,
    /// Whether it translates addresses (NAT), so that connections of others behind it have no socket here.
    pub translates: bool,
    /// Whether a protected interface takes the tags of its VLANs off, so that an answer would leave without one.
    pub hides_tags: bool,
    /// Which network namespace the host is, as the kernel numbers them; 0 where it does not say.
    pub netns_cookie: u64,
}

impl Default for HostFacts {
    /// What is true of an ordinary host before anything was read: no cookies, Ethernet's MTU, one CPU.
    fn default() -> Self {
        Self {
            tcp_syncookies: None,
            tcp_timestamps: None,
            has_cookie_program: false,
            mtu: 1_500,
            window_scale: 7,
            ephemeral_low: 32_768,
            cpus: 1,
            translates: false,
            hides_tags: false,
            netns_cookie: 0,
        }
    }
}

/// Whether ports over their budget can answer with cookies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CookieState {
    /// They can. `with_options`: window scale and SACK survive too.
    Ready {
        /// See [`COOKIES_WITH_OPTIONS`].
        with_options: bool,
    },
    /// They can once the daemon has switched `net.ipv4.tcp_syncookies` to 2, which it does when a port needs it.
    Waiting,
    /// The configuration says no.
    Disabled,
    /// Ports have no budget.
    NoBudget,
    /// The kernel lacks the helpers (Linux 6.0), or its verifier refused the program.
    NoProgram,
    /// An interface hides the tags of its VLANs, see [`HostFacts::hides_tags`].
    HiddenTags,
    /// `net.ipv4.tcp_syncookies` is not 2, and the daemon may not change it.
    Sysctl {
        /// What it is.
        found: Option<u32>,
    },
}

impl CookieState {
    /// What follows from settings and host.
    pub const fn of(settings: &Settings, host: &HostFacts) -> Self {
        if settings.port_syn.is_none() {
            return Self::NoBudget;
        }
        if !settings.cookies.enabled {
            return Self::Disabled;
        }
        if !host.has_cookie_program {
            return Self::NoProgram;
        }
        if host.hides_tags {
            return Self::HiddenTags;
        }
        match host.tcp_syncookies {
            Some(2) => Self::Ready { with_options: matches!(host.tcp_timestamps, Some(2)) },
            Some(1) if settings.cookies.manage_syncookies => Self::Waiting,
            found => Self::Sysctl { found },
        }
    }

    /// The number in [`Policy::cookies`].
    pub const fn number(self) -> u32 {
        match self {
            Self::Ready { with_options: true } => COOKIES_WITH_OPTIONS,
            Self::Ready { with_options: false } => COOKIES_PLAIN,
            Self::Waiting
            | Self::Disabled
            | Self::NoBudget
            | Self::NoProgram
            | Self::HiddenTags
            | Self::Sysctl { .. } => COOKIES_OFF,
        }
    }

    /// The stable word in `tunica status` and in metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Ready { with_options: true } => "ready_with_options",
            Self::Ready { with_options: false } => "ready",
            Self::Waiting => "waiting",
            Self::Disabled => "disabled",
            Self::NoBudget => "no_budget",
            Self::NoProgram => "no_program",
            Self::HiddenTags => "hidden_tags",
            Self::Sysctl { .. } => "sysctl",
        }
    }

    /// Every word.
    pub const LABELS: [&'static str; 8] = [
        "ready_with_options",
        "ready",
        "waiting",
        "disabled",
        "no_budget",
        "no_program",
        "hidden_tags",
        "sysctl",
    ];

    /// What it means, and what to do; `None` where all is as the configuration asks.
    pub fn advice(self) -> Option<String> {
        let then = "ports over their SYN budget leave the flood to the kernel";
        match self {
            Self::Ready { .. } | Self::Waiting | Self::Disabled | Self::NoBudget => None,
            Self::NoProgram => Some(format!(
                "this kernel cannot run the cookie program, so {then}; it needs Linux 6.0 or later"
            )),
            Self::HiddenTags => Some(format!(
                "an interface takes the tags of its VLANs off, and a cookie would leave without one, so {then}; `tunica \
                 doctor` names it, and `ethtool -K INTERFACE rxvlan off` mends it"
            )),
            Self::Sysctl { found } => {
                let found = found.map_or_else(|| "cannot be read".to_owned(), |value| format!("is {value}"));
                Some(format!(
                    "net.ipv4.tcp_syncookies {found}, so {then}; set it to 2, or set it to 1 and \
                     shield.cookies.manage_syncookies = true"
                ))
            }
        }
    }
}

impl Transport {
    /// The protocol's number in the IP header.
    pub const fn protocol(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

impl fmt::Display for Port {
    /// As in a configuration file: `443/tcp`.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let transport = match self.transport {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        };
        write!(out, "{}/{transport}", self.number)
    }
}

impl Port {
    /// The port's key in the kernel's table.
    pub const fn key(self) -> u32 {
        port_key(self.transport.protocol(), self.number.get())
    }
}

impl PortSettings {
    /// The port's row in the kernel's table.
    pub fn rule(self, transport: Transport) -> PortRule {
        let pace = self.pace.unwrap_or_default();
        let (new_pace, udp_pace) = match transport {
            Transport::Tcp => (pace, [0; 2]),
            Transport::Udp => ([0; 2], pace),
        };
        PortRule { new_pace, udp_pace, flags: if self.is_open { PORT_OPEN } else { 0 }, reserved: 0 }
    }
}

/// Whether packets are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Every packet passes uninspected.
    Off,
    /// What `enforce` would drop is counted and passes.
    Observe,
    /// Drop.
    Enforce,
}

/// What the kernel does once the daemon has been silent for `stale_after`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnStale {
    /// Bans that rest on evidence lapse; limits and sanity rules stay.
    KeepLimits,
    /// Every ban and limit lapses; sanity rules stay.
    SanityOnly,
    /// Nothing is dropped.
    Pass,
}

impl Mode {
    /// Every mode.
    pub const ALL: [Self; 3] = [Self::Off, Self::Observe, Self::Enforce];

    /// The word in the configuration file.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Observe => "observe",
            Self::Enforce => "enforce",
        }
    }

    /// The mode with this label.
    pub fn from_label(label: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.label() == label)
    }

    /// The number in [`Policy::mode`].
    pub const fn number(self) -> u32 {
        match self {
            Self::Off => MODE_OFF,
            Self::Observe => MODE_OBSERVE,
            Self::Enforce => MODE_ENFORCE,
        }
    }
}

impl OnStale {
    /// Every fallback.
    pub const ALL: [Self; 3] = [Self::KeepLimits, Self::SanityOnly, Self::Pass];

    /// The word in the configuration file.
    pub const fn label(self) -> &'static str {
        match self {
            Self::KeepLimits => "keep-limits",
            Self::SanityOnly => "sanity-only",
            Self::Pass => "pass",
        }
    }

    /// The fallback with this label.
    pub fn from_label(label: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|fallback| fallback.label() == label)
    }

    /// The number in [`Policy::on_stale`].
    pub const fn number(self) -> u32 {
        match self {
            Self::KeepLimits => STALE_KEEP_LIMITS,
            Self::SanityOnly => STALE_SANITY_ONLY,
            Self::Pass => STALE_PASS,
        }
    }
}

/// What of the policy follows from the tables rather than from settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Presence {
    /// See [`Policy::own_filter`].
    pub own_filter: u64,
    /// Whether any source is banned.
    pub bans: bool,
    /// Whether any range is banned.
    pub nets: bool,
    /// Whether the allow list holds anything.
    pub allow: bool,
    /// Whether there is a rule of any port, be it one of which the settings say nothing.
    pub ports: bool,
}

/// The policy as the kernel reads it.
///
/// `generation` counts applied policies and `secret` is drawn anew at each load, both by the daemon; `presence` follows
/// from the tables, see [`crate::desired::Desired::policy`].
pub fn policy(
    settings: &Settings,
    host: &HostFacts,
    generation: u32,
    secret: [u64; 2],
    presence: Presence,
) -> Policy {
    let cost = |limit: Option<gcra::Limit>| limit.map_or(0, |limit| limit.cost_ticks);
    let tolerance = |limit: Option<gcra::Limit>| limit.map_or(0, |limit| limit.tolerance_ticks);
    let segments = settings.no_socket.map(|limits| limits.per_source);
    let icmp = settings.icmp.map(|limits| limits.per_source);
    // Each CPU judges from its share on: sooner than the host's rate where packets are spread unevenly, never later.
    let share = settings.no_socket.map(|limits| (limits.host_per_second / host.cpus.max(1)).max(1));
    Policy {
        secret,
        sanity_mask: settings.sanity_mask,
        uninspected_drop_mask: settings.uninspected_drop_mask,
        own_filter: presence.own_filter,
        stale_after_ns: nanoseconds(settings.stale_after),
        event_interval_ns: nanoseconds(settings.event_interval),
        budget_pace: settings.port_syn.unwrap_or_default(),
        armed_hold_ns: nanoseconds(settings.cookies.hold),
        trickle_pace: settings.cookies.trickle,
        segment_pace: share.and_then(|share| gcra::pace(share, SECOND_NS, share)).unwrap_or_default(),
        segment_host_pace: settings
            .no_socket
            .and_then(|limits| gcra::pace(limits.host_per_second, SECOND_NS, limits.host_per_second))
            .unwrap_or_default(),
        icmp_host_pace: settings.icmp.map(|limits| limits.host).unwrap_or_default(),
        icmp_ceiling_pace: settings.icmp.map(|limits| limits.ceiling).unwrap_or_default(),
        handshake_pace: settings.handshakes.unwrap_or_default(),
        netns_cookie: host.netns_cookie,
        zero: 0,
        generation,
        mode: settings.mode.number(),
        on_stale: settings.on_stale.number(),
        syn_cost_ticks: cost(settings.syn),
        syn_tolerance_ticks: tolerance(settings.syn),
        segment_cost_ticks: cost(segments),
        segment_tolerance_ticks: tolerance(segments),
        icmp_cost_ticks: cost(icmp),
        icmp_tolerance_ticks: tolerance(icmp),
        escalate_children: settings.escalate_after,
        bans_present: u32::from(presence.bans),
        nets_present: u32::from(presence.nets),
        allow_present: u32::from(presence.allow),
        ports_present: u32::from(presence.ports || !settings.ports.is_empty()),
        lockdown: u32::from(settings.lockdown),
        cookies: CookieState::of(settings, host).number(),
        ephemeral_low: u32::from(host.ephemeral_low),
        // Headers without options: 20 and 40 bytes of IP, 20 of TCP. A segment below 536 bytes helps nobody (RFC 9293).
        cookie_mss_v4: host.mtu.saturating_sub(40).clamp(536, 65_495),
        cookie_mss_v6: host.mtu.saturating_sub(60).clamp(536, 65_475),
        cookie_window_scale: host.window_scale.min(14),
        candidate: CANDIDATE_NONE,
        translates: u32::from(host.translates),
    }
}

/// Nanoseconds in a second.
pub const SECOND_NS: u64 = 1_000_000_000;

/// The pace of so many a second in the long run and `burst` at once; `None` where [`gcra::pace`] has none.
pub const fn each_second(count: u32, burst: u32) -> Option<gcra::Pace> {
    gcra::pace(count, SECOND_NS, burst)
}

impl Settings {
    /// In how far these settings can cut off an operator whom those `before` let in: a clause each.
    pub(crate) fn hazards_from(&self, before: &Self) -> Vec<&'static str> {
        let drops = |settings: &Self| settings.mode == Mode::Enforce;
        let closes = |settings: &Self| drops(settings) && settings.lockdown;
        let rows = [
            (drops(self) && !drops(before), "packets are dropped that passed before"),
            (closes(self) && !closes(before), "ports that are not named in `shield.ports` are closed"),
        ];
        rows.into_iter().filter(|(is_so, _)| *is_so).map(|(_, clause)| clause).collect()
    }

    /// One sentence for each way in which these settings differ from those `before`.
    pub(crate) fn changes_from(&self, before: &Self) -> Vec<String> {
        let gone = before.config_allow.iter().filter(|prefix| !self.config_allow.contains(prefix)).count();
        let come = self.config_allow.iter().filter(|prefix| !before.config_allow.contains(prefix)).count();
        let rows = [
            (self.mode != before.mode, format!("the mode is now `{}`", self.mode.label())),
            (self.sanity_mask != before.sanity_mask, "the sanity rules in force changed".into()),
            (
                self.uninspected_drop_mask != before.uninspected_drop_mask,
                "the uninspected classes that are dropped changed".into(),
            ),
            (
                (self.on_stale, self.stale_after) != (before.on_stale, before.stale_after),
                format!(
                    "without a heartbeat for {} s the kernel falls back to `{}`",
                    self.stale_after.as_secs(),
                    self.on_stale.label()
                ),
            ),
            (self.event_interval != before.event_interval, "the rate of sampled events changed".into()),
            (
                self.syn != before.syn,
                format!("the SYN limit {}", if self.syn.is_some() { "changed" } else { "is off" }),
            ),
            (
                self.escalate_after != before.escalate_after,
                format!(
                    "IPv6 networks share a limit once {} of their parts exceed theirs",
                    self.escalate_after
                ),
            ),
            (self.port_syn != before.port_syn, "the SYN budget of ports changed".into()),
            (self.cookies != before.cookies, "answering with cookies changed".into()),
            (self.no_socket != before.no_socket, "the limit of segments without a connection changed".into()),
            (
                (self.ban_threshold, self.violation_window)
                    != (before.ban_threshold, before.violation_window),
                format!(
                    "{} violations in {} s ban a source",
                    self.ban_threshold,
                    self.violation_window.as_secs()
                ),
            ),
            (self.handshakes != before.handshakes, "what counts as too many connections changed".into()),
            (
                self.reporters != before.reporters,
                format!("accounts that may report sources: {}", self.reporters.len()),
            ),
            (
                self.report_window != before.report_window,
                format!("a report counts for {} s", self.report_window.as_secs()),
            ),
            (self.icmp != before.icmp, "the ICMP limits changed".into()),
            (
                self.lockdown != before.lockdown,
                format!("the host is {}locked down", if self.lockdown { "" } else { "no longer " }),
            ),
            (self.ports != before.ports, format!("rules for {} ports are in force", self.ports.len())),
            (self.ladder != before.ladder, "the ban ladder changed, for bans from now on".into()),
            (come + gone > 0, format!("allow list: {come} entries came, {gone} went")),
            (
                (self.ban_capacity, self.net_capacity, self.allow_capacity)
                    != (before.ban_capacity, before.net_capacity, before.allow_capacity),
                format!(
                    "tables hold {} bans, {} banned ranges and {} allow entries",
                    self.ban_capacity, self.net_capacity, self.allow_capacity
                ),
            ),
            (
                self.tor_keep != before.tor_keep,
                format!("peers of tor stay protected for {} s", self.tor_keep.as_secs()),
            ),
            (
                self.log_lines_per_minute != before.log_lines_per_minute,
                format!("the drop log has at most {} lines a minute", self.log_lines_per_minute.unwrap_or(0)),
            ),
            (self.load != before.load, "what makes a load level changed".into()),
            (self.newcomers != before.newcomers, "how new circuits are compared changed".into()),
        ];
        rows.into_iter().filter(|(differs, _)| *differs).map(|(_, sentence)| sentence).collect()
    }
}

fn nanoseconds(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub(crate) mod tests {
    use tunica_common::verdict::{Class, Verdict};

    use super::*;

    /// The shipped defaults, enforcing, with small tables.
    pub(crate) fn settings() -> Settings {
        Settings {
            mode: Mode::Enforce,
            sanity_mask: Verdict::mask_of(Class::Sanity),
            uninspected_drop_mask: 0,
            on_stale: OnStale::KeepLimits,
            stale_after: Duration::from_secs(30),
            event_interval: Duration::from_millis(10),
            syn: gcra::Limit::new(10, 20),
            escalate_after: 8,
            port_syn: gcra::pace(100, SECOND_NS, 300),
            cookies: CookieSettings {
                enabled: true,
                manage_syncookies: false,
                trickle: gcra::pace(2, SECOND_NS, 2).unwrap(),
                hold: Duration::from_secs(60),
            },
            no_socket: Some(NoSocketLimits {
                host_per_second: 1_000,
                per_source: gcra::Limit::new(100, 100).unwrap(),
            }),
            icmp: Some(IcmpLimits {
                per_source: gcra::Limit::new(1, 4).unwrap(),
                host: gcra::pace(100, SECOND_NS, 100).unwrap(),
                ceiling: gcra::pace(1_000, SECOND_NS, 1_000).unwrap(),
            }),
            handshakes: gcra::pace(5, SECOND_NS, 40),
            reporters: BTreeMap::new(),
            report_window: Duration::from_secs(3_600),
            ban_threshold: 5,
            violation_window: Duration::from_secs(60),
            lockdown: false,
            ports: BTreeMap::new(),
            net_capacity: 8,
            ladder: Ladder::new(
                [300, 1_800, 14_400, 86_400].map(Duration::from_secs).to_vec(),
                Duration::from_secs(86_400),
            )
            .unwrap(),
            config_allow: Vec::new(),
            ban_capacity: 8,
            allow_capacity: 8,
            tor_keep: Duration::from_secs(86_400),
            log_lines_per_minute: Some(5),
            load: LoadSettings::default(),
            newcomers: NewcomerSettings::default(),
        }
    }

    #[test]
    fn labels_read_back() {
        for mode in Mode::ALL {
            assert_eq!(Mode::from_label(mode.label()), Some(mode));
        }
        for fallback in OnStale::ALL {
            assert_eq!(OnStale::from_label(fallback.label()), Some(fallback));
        }
        assert_eq!(Mode::from_label("Enforce"), None);
    }

    #[test]
    fn the_policy_says_what_was_set() {
        let host = HostFacts { cpus: 4, ..HostFacts::default() };
        let presence = Presence { own_filter: 5, bans: true, nets: false, allow: false, ports: false };
        let with = policy(&settings(), &host, 7, [1, 2], presence);
        assert_eq!((with.generation, with.secret, with.own_filter), (7, [1, 2], 5));
        assert_eq!((with.bans_present, with.nets_present, with.allow_present), (1, 0, 0));
        assert_eq!((with.mode, with.on_stale), (MODE_ENFORCE, STALE_KEEP_LIMITS));
        assert_eq!((with.stale_after_ns, with.event_interval_ns), (30_000_000_000, 10_000_000));
        assert_eq!((with.syn_cost_ticks, with.syn_tolerance_ticks), (1_526, 19 * 1_526));
        assert_eq!(with.budget_pace, [10_000_000, 2_990_000_000]);
        assert_eq!(with.segment_pace, [4_000_000, 249 * 4_000_000]);
        assert_eq!((with.cookie_mss_v4, with.cookie_mss_v6), (1_460, 1_440));
        assert_eq!((with.ports_present, with.lockdown, with.cookies), (0, 0, COOKIES_OFF));
        let presence = Presence { allow: true, nets: true, ..Presence::default() };
        let bare = Settings { syn: None, port_syn: None, no_socket: None, icmp: None, ..settings() };
        let without = policy(&bare, &host, 8, [1, 2], presence);
        assert_eq!((without.syn_cost_ticks, without.bans_present), (0, 0));
        assert_eq!((without.nets_present, without.allow_present), (1, 1));
        assert_eq!(
            (without.budget_pace, without.segment_pace, without.icmp_host_pace),
            ([0; 2], [0; 2], [0; 2])
        );
    }

    #[test]
    fn cookies_need_budget_program_and_sysctl() {
        let ready = HostFacts { tcp_syncookies: Some(2), has_cookie_program: true, ..HostFacts::default() };
        let managed = |manage_syncookies| Settings {
            cookies: CookieSettings { manage_syncookies, ..settings().cookies },
            ..settings()
        };
        let off = Settings { cookies: CookieSettings { enabled: false, ..settings().cookies }, ..settings() };
        for (settings, host, label, number) in [
            (settings(), ready, "ready", COOKIES_PLAIN),
            (
                settings(),
                HostFacts { tcp_timestamps: Some(2), ..ready },
                "ready_with_options",
                COOKIES_WITH_OPTIONS,
            ),
            (settings(), HostFacts { tcp_timestamps: Some(1), ..ready }, "ready", COOKIES_PLAIN),
            (settings(), HostFacts { tcp_syncookies: Some(1), ..ready }, "sysctl", COOKIES_OFF),
            (managed(true), HostFacts { tcp_syncookies: Some(1), ..ready }, "waiting", COOKIES_OFF),
            (managed(true), HostFacts { tcp_syncookies: Some(0), ..ready }, "sysctl", COOKIES_OFF),
            (managed(true), HostFacts { tcp_syncookies: None, ..ready }, "sysctl", COOKIES_OFF),
            (managed(true), ready, "ready", COOKIES_PLAIN),
            (settings(), HostFacts { has_cookie_program: false, ..ready }, "no_program", COOKIES_OFF),
            (Settings { port_syn: None, ..settings() }, ready, "no_budget", COOKIES_OFF),
            (off, ready, "disabled", COOKIES_OFF),
        ] {
            let state = CookieState::of(&settings, &host);
            assert_eq!((state.label(), state.number()), (label, number));
            assert!(CookieState::LABELS.contains(&label));
            assert_eq!(state.advice().is_some(), matches!(label, "sysctl" | "no_program"));
        }
    }
}
