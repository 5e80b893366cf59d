//! The settings in force, as types.
//!
//! Every struct is `#[non_exhaustive]`, so that only [`crate::read`] makes one.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::{NonZeroU16, NonZeroU32},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use crate::{
    arti::Arti,
    changes::Values,
    circuits::Circuits,
    ingress::{Haproxy, Ingress, Place},
    load::Load,
    sybil::Sybil,
};
use thiserror::Error;
use tunica_common::{
    gcra::{Limit, Pace},
    verdict::{Class, Verdict},
};
use tunica_core::{
    ban_ladder::{Ladder, LadderError},
    circuit_policy::Ratio,
    id::Prefix,
    limits::{
        self, CookieSettings, IcmpLimits, NoSocketLimits, Port, PortSettings, Settings, Transport,
        each_second,
    },
};

/// A whole file, validated.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// `[shield]`: the packet filter.
    pub shield: Shield,
    /// `[bans]`: how long bans last.
    pub bans: Bans,
    /// `[evidence]`: what proves that a source is to blame.
    pub evidence: Evidence,
    /// `[tor]`: whose connections may never be banned.
    pub tor: Tor,
    /// `[ingress]`: what stands on the port that tor connects to.
    pub ingress: Ingress,
    /// `[arti]`: an onion service that `tunica-front` hosts itself.
    pub arti: Arti,
    /// `[circuits]`: what one circuit may do, and all together.
    pub circuits: Circuits,
    /// `[load]`: what makes a load level.
    pub load: Load,
    /// `[sybil]`: how new circuits are compared, and what follows from it.
    pub sybil: Sybil,
    /// `[haproxy]`: HAProxy in the place of `tunica-front`.
    pub haproxy: Haproxy,
    /// `[http]`: metrics and health.
    pub http: Http,
    /// `[control]`: the socket that `tunica` talks to.
    pub control: Control,
    /// `[ledger]`: what survives a restart.
    pub ledger: Ledger,
    /// `[log]`: the daemon's own log.
    pub log: Log,
    /// The same once more by the keys' names, for [`crate::changes()`].
    pub(crate) values: Values,
}

/// `[shield]`: the packet filter.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Shield {
    /// `interfaces`: names of 1 to 64 different network interfaces. Required.
    pub interfaces: Vec<String>,
    /// `mode`, `observe` by default.
    pub mode: Mode,
    /// `attach`, `native` by default.
    pub attach: Attach,
    /// `fallback`, `nftables` by default.
    pub fallback: Fallback,
    /// `on_stale`, `keep-limits` by default.
    pub on_stale: OnStale,
    /// `stale_after_seconds`: how long without the daemon's heartbeat until `on_stale` applies; 30 s by default.
    pub stale_after: Duration,
    /// `first_attach_confirm_seconds`: how long the very first start is on trial; unset: it is not.
    pub first_attach_confirm: Option<Duration>,
    /// `pin_path`: absolute directory on bpffs; `/sys/fs/bpf/tunica` by default.
    pub pin_path: PathBuf,
    /// `allow`: ranges free from bans and per-source limits, none inside another; empty by default.
    pub allow: Vec<Prefix>,
    /// `lockdown`; `false` by default.
    pub lockdown: bool,
    /// `[shield.syn]`.
    pub syn: Syn,
    /// `[shield.port_syn]`.
    pub port_syn: PortSyn,
    /// `[shield.cookies]`.
    pub cookies: Cookies,
    /// `[shield.no_socket]`.
    pub no_socket: NoSocket,
    /// `[shield.icmp]`.
    pub icmp: Icmp,
    /// `[shield.ports]`.
    pub ports: Ports,
    /// `[shield.nft]`.
    pub nft: Nft,
    /// `[shield.sanity]`.
    pub sanity: Sanity,
    /// `[shield.uninspected]`.
    pub uninspected: Uninspected,
    /// `[shield.tables]`.
    pub tables: Tables,
    /// `[shield.events]`.
    pub events: Events,
    /// `[shield.log]`.
    pub log: DropLog,
}

/// `[shield.syn]`: how fast one source may open connections.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Syn {
    /// `enabled`: whether the limit is in force; `true` by default.
    pub enabled: bool,
    /// `per_source_per_second`: SYNs a second in the long run; 10 by default.
    pub per_source_per_second: NonZeroU32,
    /// `burst`: SYNs at once; 20 by default.
    pub burst: NonZeroU32,
    /// The two numbers above in the kernel's units.
    pub limit: Limit,
    /// `escalate_after`: how many exceeding parts make an IPv6 network share a limit; 8 by default.
    pub escalate_after: NonZeroU32,
}

/// `[shield.port_syn]`: SYNs to one port beyond which it answers with cookies.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PortSyn {
    /// `enabled`; `true` by default.
    pub enabled: bool,
    /// `per_second`: SYNs a second in the long run; 100 by default.
    pub per_second: NonZeroU32,
    /// `burst`: SYNs at once; 300 by default.
    pub burst: NonZeroU32,
    /// The two numbers above in the kernel's units.
    pub pace: Pace,
}

/// `[shield.cookies]`: how ports over their budget answer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Cookies {
    /// `enabled`; `true` by default.
    pub enabled: bool,
    /// `manage_syncookies`: whether the daemon switches the sysctl; `false` by default.
    pub manage_syncookies: bool,
    /// `trickle_per_second`: SYNs that still reach the listener; 2 by default.
    pub trickle_per_second: NonZeroU32,
    /// `hold_seconds`: how long a port goes on; 60 s by default.
    pub hold: Duration,
}

/// `[shield.no_socket]`: segments that belong to no connection.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NoSocket {
    /// `enabled`; `true` by default.
    pub enabled: bool,
    /// `host_per_second`: segments that pass unjudged; 1 000 by default.
    pub host_per_second: NonZeroU32,
    /// `per_source_per_second`, and as many at once; 100 by default.
    pub per_source_per_second: NonZeroU32,
    /// The number above in the kernel's units.
    pub limit: Limit,
}

/// `[shield.icmp]`: ICMP.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Icmp {
    /// `enabled`; `true` by default.
    pub enabled: bool,
    /// `per_source_per_second`: echo requests; 1 by default.
    pub per_source_per_second: NonZeroU32,
    /// `burst`: echo requests at once; 4 by default.
    pub burst: NonZeroU32,
    /// `host_per_second`: echo requests of all sources; 100 by default.
    pub host_per_second: NonZeroU32,
    /// `ceiling_per_second`: other messages; 1 000 by default.
    pub ceiling_per_second: NonZeroU32,
    /// The first two numbers in the kernel's units.
    pub limit: Limit,
}

/// `[shield.ports]`: what is said of single ports.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ports {
    /// `open`: ports that stay open under `lockdown`; none by default.
    pub open: Vec<Port>,
    /// `new_connections`: limits of TCP ports; none by default.
    pub new_connections: Vec<PortLimit>,
    /// `udp`: limits of UDP ports; none by default.
    pub udp: Vec<PortLimit>,
}

/// How much of something a port takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PortLimit {
    /// The port.
    pub number: NonZeroU16,
    /// How much, and as much at once.
    pub count: NonZeroU32,
    /// In how many seconds.
    pub seconds: NonZeroU32,
    /// The two numbers above in the kernel's units.
    pub pace: Pace,
}

impl fmt::Display for PortLimit {
    /// As in a configuration file: `443 20/10s`.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {}/{}s", self.number, self.count, self.seconds)
    }
}

impl Ports {
    /// What is said of each port.
    fn settings(&self) -> BTreeMap<Port, PortSettings> {
        let mut ports: BTreeMap<Port, PortSettings> = BTreeMap::new();
        for port in &self.open {
            ports.entry(*port).or_default().is_open = true;
        }
        for (transport, limits) in [(Transport::Tcp, &self.new_connections), (Transport::Udp, &self.udp)] {
            for limit in limits {
                ports.entry(Port { transport, number: limit.number }).or_default().pace = Some(limit.pace);
            }
        }
        ports
    }
}

/// `[shield.nft]`: what stands in for the program.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Nft {
    /// `drop_invalid`: whether what connection tracking calls invalid is dropped; `false` by default.
    pub drop_invalid: bool,
}

/// `[shield.sanity]`: drops of packets that no honest sender makes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sanity {
    /// `off`: rules that are switched off, each of class Sanity; none by default.
    pub off: Vec<Verdict>,
}

/// `[shield.uninspected]`: packets that the shield cannot look into.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Uninspected {
    /// `drop`: kinds that are dropped instead of passed, each of class Uninspected; none by default.
    pub drop: Vec<Verdict>,
}

/// `[shield.tables]`: how much the kernel's tables hold.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tables {
    /// `bans`: rows of the ban table; 131 072 by default.
    pub bans: NonZeroU32,
    /// `cidrs`: rows of the table of banned ranges; 16 384 by default.
    pub cidrs: NonZeroU32,
    /// `allow`: rows of the allow list; 16 384 by default.
    pub allow: NonZeroU32,
}

/// `[shield.events]`: the sample of packets that the kernel reports.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Events {
    /// `per_second`: most events a second of one verdict on one CPU; 100 by default.
    pub per_second: NonZeroU32,
}

/// `[shield.log]`: the drop log.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DropLog {
    /// `enable_logging`: whether drops are logged at all; `true` by default.
    pub enable_logging: bool,
    /// `lines_per_minute`: most lines a minute; 5 by default.
    pub lines_per_minute: NonZeroU32,
}

/// `[bans]`: how long bans last.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Bans {
    /// `ladder_seconds`: length of the first, second, … ban; 1 to 16 rungs, each longer than the one before. 300 s,
    /// 30 min, 4 h, 24 h by default.
    pub ladder: Vec<Duration>,
    /// `forgive_after_seconds`: how long without offence until a source climbs down one rung; 24 h by default.
    pub forgive_after: Duration,
}

/// `[evidence]`: what proves that a source is to blame.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Evidence {
    /// `handshakes`: whether completed connections count; `true` by default.
    pub handshakes: bool,
    /// `connections_per_second`: what one source may complete in the long run; 10 by default.
    pub connections_per_second: NonZeroU32,
    /// `burst`: connections at once; 100 by default.
    pub burst: NonZeroU32,
    /// `ban_threshold`: violations that ban a source; 5 by default.
    pub ban_threshold: NonZeroU32,
    /// `window_seconds`: how long a violation counts; 60 s by default.
    pub window: Duration,
    /// `reporters`: accounts whose reports are believed; none by default.
    pub reporters: Vec<Reporter>,
    /// `report_window_seconds`: how long a report counts; an hour by default.
    pub report_window: Duration,
}

/// An account whose reports are believed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reporter {
    /// Its name.
    pub account: String,
    /// How many reports it may make, and as many at once.
    pub count: NonZeroU32,
    /// In how many seconds.
    pub seconds: NonZeroU32,
    /// The two numbers above in core's units.
    pub pace: Pace,
}

impl fmt::Display for Reporter {
    /// As in a configuration file: `mail 20/60s`.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {}/{}s", self.account, self.count, self.seconds)
    }
}

/// `[tor]`: whose connections may never be banned.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tor {
    /// `user`: the account that tor runs as; absent by default.
    pub user: Option<String>,
    /// `scan_every_seconds`: how often tor's connections are read; 10 s by default.
    pub scan_every: Duration,
    /// `control`: tor's control port, on loopback or a Unix socket; unset: it is not used.
    pub control: Option<Place>,
    /// `control_cookie_file`; unset: where tor says that it is.
    pub control_cookie_file: Option<PathBuf>,
    /// `control_password_file`: a file with the control port's password; unset: none.
    pub control_password_file: Option<PathBuf>,
    /// `metrics`: where tor serves its metrics, on loopback; unset: they are not read.
    pub metrics: Option<SocketAddr>,
    /// `keep_seconds`: how long a peer stays protected after it was last seen, never below `scan_every`; 24 h by default.
    pub keep: Duration,
}

/// `[http]`: metrics and health.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Http {
    /// `enabled`; `true` by default.
    pub enabled: bool,
    /// `listen`: an address on loopback, and a port; `127.0.0.1:9187` by default.
    pub listen: SocketAddr,
}

/// `[control]`: the socket that `tunica` talks to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Control {
    /// `socket`: absolute path of at most 107 bytes; `/run/tunica/tunicad.sock` by default.
    pub socket: PathBuf,
    /// `group`: the group whose members may read without being root; `tunica` by default.
    pub group: String,
}

/// `[ledger]`: what survives a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ledger {
    /// `path`: absolute; `/var/lib/tunica/ledger.redb` by default.
    pub path: PathBuf,
}

/// `[log]`: the daemon's own log.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Log {
    /// `level`; `info` by default.
    pub level: LogLevel,
    /// `format`; `text` by default.
    pub format: LogFormat,
}

/// So many a second, and as many at once.
fn as_many_at_once(count: NonZeroU32) -> Pace {
    each_second(count.get(), count.get()).unwrap_or_default()
}

/// Where `tunica render haproxy` puts the statistics page unless it is told another place.
pub const HAPROXY_STATISTICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9_000);

/// Where the shipped `tunica-front.socket` listens for tor, beside what the file names.
const SHIPPED_INGRESS_SOCKET: &str = "/run/tunica-front/ingress.sock";

impl Config {
    /// What no onion service may publish, each with the key that names it: pages without a password, and sockets that take
    /// orders.
    pub fn private_places(&self) -> Vec<(&'static str, Place)> {
        let mut places = vec![
            ("control.socket", Place::Unix(self.control.socket.clone())),
            ("the socket of tunica-front beside control.socket", Place::Unix(self.front_socket())),
        ];
        places.extend(self.http.enabled.then_some(("http.listen", Place::Tcp(self.http.listen))));
        places.extend(self.tor.control.clone().map(|place| ("tor.control", place)));
        places.extend(self.tor.metrics.map(|address| ("tor.metrics", Place::Tcp(address))));
        if let Some(socket) = &self.haproxy.socket {
            places.push(("haproxy.socket", Place::Unix(socket.clone())));
            places.push(("HAProxy's statistics", Place::Tcp(HAPROXY_STATISTICS)));
        }
        places
    }

    /// What visitors should reach through the ingress alone; nothing where there is none.
    pub fn guarded_places(&self) -> &[Place] {
        let has_ingress = self.ingress.enabled || self.haproxy.socket.is_some();
        if has_ingress { &self.ingress.backends } else { &[] }
    }

    /// Where tor is meant to connect to; nowhere without an ingress, or where Arti hosts the service.
    pub fn ingress_places(&self) -> Vec<Place> {
        // HAProxy listens where tunica-front would, but not where systemd listens for that.
        let is_haproxy = self.haproxy.socket.is_some();
        if self.arti.enabled || !(self.ingress.enabled || is_haproxy) {
            return Vec::new();
        }
        let socket = self.ingress.socket.clone().map(Place::Unix);
        let shipped = (!is_haproxy).then(|| Place::Unix(SHIPPED_INGRESS_SOCKET.into()));
        [Some(Place::Tcp(self.ingress.listen)), socket, shipped].into_iter().flatten().collect()
    }

    /// The one of them that tor should connect to: the socket, which other local processes cannot reach, where it is
    /// tunica-front's.
    pub fn ingress_place(&self) -> Place {
        match &self.ingress.socket {
            Some(socket) if self.haproxy.socket.is_none() => Place::Unix(socket.clone()),
            Some(_) | None => Place::Tcp(self.ingress.listen),
        }
    }

    /// The accounts whose connections to the Tor network are this host's own: tor's, and the front's where it hosts the service.
    pub fn tor_users(&self) -> Vec<&str> {
        let front = self.arti.enabled.then_some(self.ingress.user.as_str());
        self.tor.user.as_deref().into_iter().chain(front).collect()
    }

    /// The socket at which the daemon listens for `tunica-front`: `front.sock` beside [`Control::socket`].
    pub fn front_socket(&self) -> PathBuf {
        self.control.socket.with_file_name("front.sock")
    }

    /// The file of the keys of tokens: `token.keys` beside [`Ledger::path`].
    pub fn token_keys(&self) -> PathBuf {
        self.ledger.path.with_file_name("token.keys")
    }

    /// The file that says which tor process the daemon spoke to last: `tor.process` beside [`Ledger::path`].
    pub fn tor_process(&self) -> PathBuf {
        self.ledger.path.with_file_name("tor.process")
    }

    /// What the coordinator decides by. Names of accounts are for the daemon to look up, so nobody may report yet.
    ///
    /// # Errors
    /// [`LadderError`], which a validated ladder gives no cause for.
    pub fn settings(&self) -> Result<Settings, LadderError> {
        let shield = &self.shield;
        let mask = |verdicts: &[Verdict]| verdicts.iter().fold(0, |mask, verdict| mask | verdict.bit());
        Ok(Settings {
            mode: match shield.mode {
                Mode::Off => limits::Mode::Off,
                Mode::Observe => limits::Mode::Observe,
                Mode::Enforce => limits::Mode::Enforce,
            },
            sanity_mask: Verdict::mask_of(Class::Sanity) & !mask(&shield.sanity.off),
            uninspected_drop_mask: mask(&shield.uninspected.drop),
            on_stale: match shield.on_stale {
                OnStale::KeepLimits => limits::OnStale::KeepLimits,
                OnStale::SanityOnly => limits::OnStale::SanityOnly,
                OnStale::Pass => limits::OnStale::Pass,
            },
            stale_after: shield.stale_after,
            event_interval: Duration::from_secs(1) / shield.events.per_second.get(),
            syn: shield.syn.enabled.then_some(shield.syn.limit),
            escalate_after: shield.syn.escalate_after.get(),
            port_syn: shield.port_syn.enabled.then_some(shield.port_syn.pace),
            cookies: CookieSettings {
                enabled: shield.cookies.enabled,
                manage_syncookies: shield.cookies.manage_syncookies,
                trickle: as_many_at_once(shield.cookies.trickle_per_second),
                hold: shield.cookies.hold,
            },
            no_socket: shield.no_socket.enabled.then(|| NoSocketLimits {
                host_per_second: shield.no_socket.host_per_second.get(),
                per_source: shield.no_socket.limit,
            }),
            icmp: shield.icmp.enabled.then(|| IcmpLimits {
                per_source: shield.icmp.limit,
                host: as_many_at_once(shield.icmp.host_per_second),
                ceiling: as_many_at_once(shield.icmp.ceiling_per_second),
            }),
            handshakes: self.evidence.handshakes.then(|| {
                let (rate, burst) = (self.evidence.connections_per_second, self.evidence.burst);
                each_second(rate.get(), burst.get()).unwrap_or_default()
            }),
            ban_threshold: self.evidence.ban_threshold.get(),
            violation_window: self.evidence.window,
            reporters: BTreeMap::new(),
            report_window: self.evidence.report_window,
            lockdown: shield.lockdown,
            ports: shield.ports.settings(),
            net_capacity: shield.tables.cidrs.get(),
            ladder: Ladder::new(self.bans.ladder.clone(), self.bans.forgive_after)?,
            config_allow: shield.allow.clone(),
            ban_capacity: shield.tables.bans.get(),
            allow_capacity: shield.tables.allow.get(),
            tor_keep: self.tor.keep,
            log_lines_per_minute: shield.log.enable_logging.then_some(shield.log.lines_per_minute.get()),
            load: self.load_settings(),
            newcomers: self.newcomer_settings(),
        })
    }

    /// What is allowed but probably not meant: one sentence each, with its consequence and how to change it.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.tor.user.is_none() && !self.arti.enabled {
            warnings.push(
                "tor.user is not set: the addresses that tor is connected to are not known, so a ban could cut off one \
                 of its guards; set user = \"debian-tor\" (or the account that your tor runs as) under [tor]"
                    .to_owned(),
            );
        }
        if self.shield.interfaces.iter().any(|name| name == "lo")
            && !self.shield.sanity.off.contains(&Verdict::OwnSource)
        {
            warnings.push(
                "shield.interfaces names lo, where every packet comes from this host itself: with mode = \"enforce\" \
                 the rule own_source would drop them all, tor's streams to your service included; remove \"lo\", or \
                 add \"own_source\" to off under [shield.sanity]"
                    .to_owned(),
            );
        }
        if self.haproxy.socket.is_some() && self.tor.control.is_none() {
            warnings.push(
                "haproxy.socket is set and tor.control is not: the daemon is not told when tor starts again, so a ban \
                 goes on to hit whoever gets the circuit's number next; set control under [tor]"
                    .to_owned(),
            );
        }
        let is_closed_by_nobody = self.tor.control.is_none() && !self.arti.enabled;
        if self.ingress.enabled && is_closed_by_nobody && self.asks_for_rotation() {
            warnings.push(
                "circuits.max_circuit_age_secs, max_circuit_latency_secs or rotate_hard_after_secs is set and tor.control is \
                 not: nobody can close circuits, so they stay however old or slow they are; set control under [tor]"
                    .to_owned(),
            );
        }
        if self.ingress.enabled && !self.arti.enabled && self.tor.control.is_none() {
            warnings.push(
                "ingress.enabled is true and tor.control is not set: the ingress is not told when tor starts again, so \
                 whoever gets a circuit's number next inherits its ban and what it used of its limits; set control \
                 under [tor]"
                    .to_owned(),
            );
        }
        let always_asks = self.circuits.pow_activation_threshold == Ratio::NONE;
        let cannot_ask = self.ingress.protocol == Protocol::Tcp && !self.circuits.pow_tcp;
        if self.ingress.enabled && always_asks && cannot_ask {
            warnings.push(
                "circuits.pow_activation_threshold is 0.0, so that every circuit must pay, and over TCP without \
                 circuits.pow_tcp none can: everybody but those whom you promote is refused (puzzle_impossible); set \
                 pow_tcp = true, or a threshold above 0.0"
                    .to_owned(),
            );
        }
        if self.haproxy.socket.is_some() && self.ingress.enabled {
            warnings.push(
                "haproxy.socket is set and ingress.enabled is true: tunica-front and HAProxy cannot both listen where \
                 tor connects to; remove one of the two"
                    .to_owned(),
            );
        }
        if self.arti.enabled && !self.ingress.enabled {
            warnings.push(
                "arti.enabled is true and ingress.enabled is false: tunica-front does not serve, so nobody hosts the \
                 onion service; set enabled = true under [ingress]"
                    .to_owned(),
            );
        }
        let has_open_tcp = self.shield.ports.open.iter().any(|port| port.transport == Transport::Tcp);
        if self.shield.lockdown && !has_open_tcp {
            warnings.push(
                "shield.lockdown is on and no TCP port is open: with mode = \"enforce\" nobody can connect to this host, \
                 you over SSH included; add open = [\"22/tcp\"] (or your SSH port) under [shield.ports], unless you have \
                 another way in"
                    .to_owned(),
            );
        }
        // All public IPv6 addresses are in 2000::/3 (IANA, IPv6 Global Unicast Address Space).
        for everyone in self.shield.allow.iter().filter(|prefix| prefix.length() <= 3) {
            warnings.push(format!(
                "shield.allow names {everyone}: a large part of all sources can be neither banned nor limited; name \
                 single hosts and networks, or use mode = \"observe\" if nothing is to be dropped"
            ));
        }
        if !self.http.enabled {
            warnings.push(
                "http.enabled is false: there are no metrics and no /ready, so no alert tells when the host is not \
                 protected; remove the line unless something else watches `tunica status`"
                    .to_owned(),
            );
        } else if self.http.listen.port() == 0 {
            warnings.push(
                "http.listen has port 0: the kernel picks another port at each start, which no monitoring knows; give \
                 a fixed port such as 127.0.0.1:9187"
                    .to_owned(),
            );
        }
        warnings
    }
}

/// A text that is none of a setting's words.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{found}` is unknown here; the words are {known}")]
pub struct UnknownWord {
    /// What was given.
    pub found: String,
    /// The words that are possible.
    pub known: String,
}

/// A setting that is one of a few words.
pub(crate) trait Choice: Copy + 'static {
    const ALL: &'static [Self];
    fn label(self) -> &'static str;
}

macro_rules! choices {
    ($( $(#[$doc:meta])* $name:ident { $( $(#[$of_word:meta])* $word:ident = $label:literal, )+ } )+) => { $(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $( $(#[$of_word])* $word, )+ }

        impl $name {
            /// The word as the file has it.
            pub const fn label(self) -> &'static str {
                match self { $( Self::$word => $label, )+ }
            }
        }

        impl Choice for $name {
            const ALL: &'static [Self] = &[ $( Self::$word, )+ ];

            fn label(self) -> &'static str {
                self.label()
            }
        }

        impl FromStr for $name {
            type Err = UnknownWord;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                match text {
                    $( $label => Ok(Self::$word), )+
                    _ => Err(UnknownWord { found: text.to_owned(), known: [$( $label ),+].join(", ") }),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str(self.label())
            }
        }
    )+ };
}

choices! {
    /// `shield.mode`: what the shield does about a packet that its rules speak against.
    Mode {
        /// Nothing is inspected.
        Off = "off",
        /// Counted, not dropped.
        Observe = "observe",
        /// Dropped.
        Enforce = "enforce",
    }
    /// `shield.attach`: which way into the kernel is taken.
    Attach {
        /// The driver's own XDP hook, or none.
        Native = "native",
        /// The driver's hook where it has one, else the kernel's generic hook, which is slower.
        NativeOrGeneric = "native-or-generic",
        /// No XDP: the policy in nftables.
        Nftables = "nftables",
    }
    /// `shield.fallback`: what protects the interfaces while the program cannot be attached.
    Fallback {
        /// Nothing.
        None = "none",
        /// The same policy in nftables.
        Nftables = "nftables",
    }
    /// `shield.on_stale`: what stays in force while the daemon's heartbeat is missing.
    OnStale {
        /// Limits and sanity rules stay; dynamic bans lapse.
        KeepLimits = "keep-limits",
        /// Sanity rules stay; every ban and limit lapses.
        SanityOnly = "sanity-only",
        /// Nothing is dropped.
        Pass = "pass",
    }
    /// `ingress.gate`: whether the kernel refuses banned circuits.
    GateMode {
        /// No program is attached to `lo`.
        Off = "off",
        /// Counted, not refused.
        Observe = "observe",
        /// Refused.
        Enforce = "enforce",
    }
    /// `ingress.protocol`: what streams carry.
    Protocol {
        /// HTTP/1.1.
        Http = "http",
        /// Anything.
        Tcp = "tcp",
    }
    /// `circuits.profile`: what kind of service stands behind.
    Profile {
        /// TCP.
        Messenger = "messenger",
        /// HTTP behind a challenge.
        Gated = "gated",
        /// Open HTTP.
        Web = "web",
    }
    /// `circuits.pow_grants`: what a circuit is once it has solved a puzzle.
    Grant {
        /// One that paid.
        Normal = "normal",
        /// One that goes past the queue.
        Vip = "vip",
    }
    /// `sybil.raises_level`: up to where new circuits that are alike raise the load level.
    Raise {
        /// They do not.
        Off = "off",
        /// Where puzzles are asked, they cost nobody anything.
        Light = "light",
        /// Where puzzles are asked, a person does not notice them.
        Moderate = "moderate",
    }
    /// `log.level`: the least important lines that are written.
    LogLevel {
        /// Something does not work.
        Error = "error",
        /// Something may soon not work.
        Warn = "warn",
        /// What an operator wants to have read.
        Info = "info",
        /// For those who look for a fault; may name addresses.
        Debug = "debug",
        /// Every step.
        Trace = "trace",
    }
    /// `log.format`: how a line is written.
    LogFormat {
        /// For people.
        Text = "text",
        /// One JSON object a line.
        Json = "json",
    }
}
