//! The one table of keys: range, default and meaning of each.

use std::{marker::PhantomData, sync::LazyLock};

use tunica_common::{gcra, verdict::Class};

use crate::{
    config::{
        Attach, Fallback, GateMode, Grant, LogFormat, LogLevel, Mode, OnStale, Profile, Protocol, Raise,
    },
    rule::{
        AbsolutePath, Account, AccountRate, Cidr, InterfaceName, List, LoopbackAddress, Number, OneOf,
        PortName, PortRate, Rule, Switch, VerdictOf,
        ingress::{BackendPlace, ControlPlace, OnionPort, OrOff, Part, ProxyName, ShadowLimit, UrlPath},
    },
};

/// One key of the file, in words: a row of the reference page.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyDoc {
    /// The full name, such as `shield.syn.burst`.
    pub key: &'static str,
    /// The kind of TOML value.
    pub kind: String,
    /// The value that counts where the key is absent, as TOML. `None`: see [`KeyDoc::is_required`].
    pub default: Option<&'static str>,
    /// A value that would do, as TOML, for a key without default.
    pub example: Option<&'static str>,
    /// Whether a file without this key is refused.
    pub is_required: bool,
    /// Range, unit, or the possible words.
    pub allowed: String,
    /// What it does, in sentences.
    pub meaning: &'static str,
}

/// One key of the file, as the reader uses it.
pub(crate) struct Key<R> {
    pub(crate) name: &'static str,
    pub(crate) absent: Absent,
    pub(crate) rule: R,
    pub(crate) meaning: &'static str,
}

/// What the absence of a key means.
pub(crate) enum Absent {
    /// This value, as TOML, counts.
    Default(&'static str),
    /// The key is not set. The example is a value that would do, as TOML.
    Unset { example: &'static str },
    /// The file is refused. The example is a value that would do, as TOML.
    Refused { example: &'static str },
}

impl<R: Rule> Key<R> {
    fn doc(&self) -> KeyDoc {
        let (default, example) = match self.absent {
            Absent::Default(default) => (Some(default), None),
            Absent::Unset { example } | Absent::Refused { example } => (None, Some(example)),
        };
        KeyDoc {
            key: self.name,
            kind: self.rule.kind(),
            default,
            example,
            is_required: matches!(self.absent, Absent::Refused { .. }),
            allowed: self.rule.allowed(),
            meaning: self.meaning,
        }
    }
}

/// Sections in the order of the reference page, each with its purpose.
pub(crate) const SECTIONS: &[(&str, &str)] = &[
    ("shield", "The packet filter."),
    ("shield.syn", "How fast one source may open TCP connections."),
    ("shield.port_syn", "How many TCP connections may be opened to one port before it answers with cookies."),
    (
        "shield.cookies",
        "How a port over its SYN budget answers: with SYN cookies, which cost the host no memory.",
    ),
    (
        "shield.no_socket",
        "TCP segments that belong to no connection of this host: floods of ACK, SYN-ACK, RST and FIN.",
    ),
    ("shield.icmp", "Ping and other ICMP messages. Neighbour discovery is always free."),
    ("shield.ports", "Rules for single ports of this host."),
    ("shield.nft", "The table `inet tunica`, where `shield.fallback` has nftables stand in."),
    ("shield.sanity", "Drops of packets that no honest sender makes."),
    ("shield.uninspected", "Packets that the shield cannot look into."),
    ("shield.tables", "How much the kernel's tables hold."),
    ("shield.events", "The sample of packets that the kernel reports to the daemon."),
    ("shield.log", "The drop log: lines that begin with `SHIELD_DOS_DROP:`."),
    ("bans", "How long bans last."),
    ("evidence", "What proves that a source is to blame, so that it can be banned."),
    ("tor", "Whose connections may never be banned, and what tor tells of itself."),
    ("ingress", "What stands on the port that tor connects to; it needs `tunica-front`."),
    (
        "arti",
        "An onion service that `tunica-front` hosts itself, so that no C tor is needed; it takes a `tunica-front` that was built with the feature `arti`.",
    ),
    ("circuits", "What one circuit may do, and all together."),
    ("load", "What makes a load level; `tunica threat` shows it."),
    (
        "sybil",
        "How new circuits are compared with those of calm times, which needs `tunica-front`. Nothing here bans or refuses anybody.",
    ),
    (
        "haproxy",
        "HAProxy in the place of `tunica-front`; `tunica render haproxy` writes its configuration from `[ingress]` and `[circuits]`.",
    ),
    ("http", "Metrics and health over HTTP."),
    ("control", "The socket that `tunica` talks to."),
    ("ledger", "What survives a restart."),
    ("log", "The daemon's own log."),
];

const YEAR: u32 = 31_536_000;

/// Longest time that a source may need to pay off its burst, in minutes; the kernel's limiter counts no further.
pub(crate) const LONGEST_DEBT_MINUTES: u64 =
    gcra::MAX_TOLERANCE_TICKS as u64 * gcra::TICK_NANOSECONDS / 60_000_000_000;
const _: () = assert!(LONGEST_DEBT_MINUTES == 73, "the meaning of shield.syn.burst names this number");

macro_rules! keys {
    ($( $name:ident: $rule:ty = $key:literal, $absent:expr, $value:expr, $meaning:literal; )+) => {
        $( pub(crate) static $name: Key<$rule> =
            Key { name: $key, absent: $absent, rule: $value, meaning: $meaning }; )+

        /// Every key, in the order of the reference page.
        pub static REFERENCE: LazyLock<Vec<KeyDoc>> = LazyLock::new(|| vec![$( $name.doc() ),+]);
    };
}

keys! {
    INTERFACES: List<InterfaceName> = "shield.interfaces",
        Absent::Refused { example: r#"["eth0"]"# },
        List { each: InterfaceName, least: 1, most: Some(64), below: "an empty list protects nothing" },
        "The network interfaces that face the internet.";
    MODE: OneOf<Mode> = "shield.mode",
        Absent::Default(r#""observe""#),
        OneOf(PhantomData),
        "`observe` counts what `enforce` would drop; `off` inspects nothing. Observe first, and enforce once the counters show nobody you want to reach you.";
    ALLOW: List<Cidr> = "shield.allow",
        Absent::Default("[]"),
        List { each: Cidr, least: 0, most: None, below: "" },
        "Your own addresses and those you trust. They are free from bans and per-source limits, never from sanity drops.";
    ATTACH: OneOf<Attach> = "shield.attach",
        Absent::Default(r#""native""#),
        OneOf(PhantomData),
        "`native` uses the network driver's own XDP hook or none; `native-or-generic` falls back to the kernel's generic hook, which costs more for each packet; `nftables` uses no XDP but the table that `fallback` speaks of.";
    FALLBACK: OneOf<Fallback> = "shield.fallback",
        Absent::Default(r#""nftables""#),
        OneOf(PhantomData),
        "What protects the interfaces while the program cannot be attached to one of them as `attach` asks: `nftables` puts the same policy into a table of its own, `inet tunica`, and touches no other; `none` leaves them unprotected.";
    ON_STALE: OneOf<OnStale> = "shield.on_stale",
        Absent::Default(r#""keep-limits""#),
        OneOf(PhantomData),
        "What stays in force while the daemon's heartbeat is missing: `keep-limits` keeps limits and sanity drops and lets dynamic bans lapse, `sanity-only` keeps sanity drops alone, `pass` drops nothing.";
    STALE_AFTER: Number = "shield.stale_after_seconds",
        Absent::Default("30"),
        Number {
            least: 5, most: 3_600, unit: "seconds",
            below: "a short pause of the daemon would already count as its death",
            above: "bans of a dead daemon would stay in force for more than an hour",
        },
        "How long without a heartbeat until `on_stale` applies.";
    FIRST_ATTACH_CONFIRM: Number = "shield.first_attach_confirm_seconds",
        Absent::Unset { example: "120" },
        Number {
            least: 10, most: 3_600, unit: "seconds",
            below: "there would be no time to try another login",
            above: "a host that is cut off would stay so for more than an hour",
        },
        "Where it is set, the very first start, without a ledger from before, is on trial: unless `tunica confirm` comes within this time, the shield is bypassed, and no circuit refused, until `tunica bypass off`. Without it nothing undoes the first attach by itself.";
    PIN_PATH: AbsolutePath = "shield.pin_path",
        Absent::Default(r#""/sys/fs/bpf/tunica""#),
        AbsolutePath {
            example: "/sys/fs/bpf/tunica", is_file: false, longest: None,
            // Linux, kernel/bpf/inode.c, bpf_lookup.
            dotless: Some("the BPF file system refuses names with a dot, so nothing could be kept there"),
        },
        "Directory on a BPF file system for the link and the maps, so that they outlive the daemon.";
    LOCKDOWN: Switch = "shield.lockdown",
        Absent::Default("false"),
        Switch,
        "Whether everything is closed but what `shield.ports.open` names. Connections that this host opens, and their answers, stay; so do ARP, DHCP, neighbour discovery and limited ICMP. It is what a host wants that serves an onion service alone.";

    SYN_ENABLED: Switch = "shield.syn.enabled",
        Absent::Default("true"),
        Switch,
        "Whether the limit is in force.";
    SYN_RATE: Number = "shield.syn.per_source_per_second",
        Absent::Default("10"),
        Number {
            least: 1, most: 1_000, unit: "SYNs a second",
            below: "no source could ever connect",
            above: "the kernel's clock is too coarse to measure such a rate, so the limit would not hold",
        },
        "How many connections a second one source (an IPv4 host or an IPv6 /64) may open in the long run.";
    SYN_BURST: Number = "shield.syn.burst",
        Absent::Default("20"),
        Number {
            least: 1, most: 10_000, unit: "SYNs",
            below: "no source could ever connect",
            above: "one source could flood the host before its limit acts",
        },
        "How many connections an idle source may open at once. The burst must be paid off within 73 minutes at `per_source_per_second`, so the smallest rates go with smaller bursts only.";
    SYN_ESCALATE: Number = "shield.syn.escalate_after",
        Absent::Default("8"),
        Number {
            least: 2, most: 256, unit: "networks",
            below: "one neighbour that floods would slow all others down",
            above: "a /56 holds 256 networks of /64, so none would ever share a limit",
        },
        "How many /64 of one IPv6 /56 must exceed the limit until all of the /56 shares one; and so for the /56 of a /48. It ends 60 s after the last excess.";

    PORT_SYN_ENABLED: Switch = "shield.port_syn.enabled",
        Absent::Default("true"),
        Switch,
        "Whether ports have a budget. Without one no port answers with cookies.";
    PORT_SYN_RATE: Number = "shield.port_syn.per_second",
        Absent::Default("100"),
        Number {
            least: 1, most: 1_000_000, unit: "SYNs a second",
            below: "every connection would be made through a cookie",
            above: "no flood would ever be answered with cookies",
        },
        "How many SYNs a second one port takes in the long run. More drop nothing: the port answers with cookies until fewer than half come.";
    PORT_SYN_BURST: Number = "shield.port_syn.burst",
        Absent::Default("300"),
        Number {
            least: 1, most: 3_000_000, unit: "SYNs",
            below: "every connection would be made through a cookie",
            above: "no flood would ever be answered with cookies",
        },
        "How many SYNs an idle port takes at once. The burst must be paid off within a day at `per_second`.";

    COOKIES_ENABLED: Switch = "shield.cookies.enabled",
        Absent::Default("true"),
        Switch,
        "Whether ports over their budget answer with cookies. It needs Linux 6.0 and `net.ipv4.tcp_syncookies = 2`; where they cannot be had, the kernel's own defence answers.";
    MANAGE_SYNCOOKIES: Switch = "shield.cookies.manage_syncookies",
        Absent::Default("false"),
        Switch,
        "Whether the daemon switches `net.ipv4.tcp_syncookies` from 1 to 2 while a port is over its budget, and back afterwards.";
    TRICKLE: Number = "shield.cookies.trickle_per_second",
        Absent::Default("2"),
        Number {
            least: 1, most: 100, unit: "SYNs a second",
            below: "the listener would refuse every cookie, because it accepts them only while SYNs reach it",
            above: "the flood would reach the listener",
        },
        "How many SYNs still reach the listener of a port that answers with cookies.";
    COOKIE_HOLD: Number = "shield.cookies.hold_seconds",
        Absent::Default("60"),
        Number {
            least: 10, most: 3_600, unit: "seconds",
            below: "a flood that comes in bursts would find the port unprepared each time",
            above: "connections would go on without window scaling long after the flood",
        },
        "How long a port goes on answering after its SYNs last exceeded half the budget.";

    NO_SOCKET_ENABLED: Switch = "shield.no_socket.enabled",
        Absent::Default("true"),
        Switch,
        "Whether segments are judged by the sockets of this host.";
    NO_SOCKET_HOST: Number = "shield.no_socket.host_per_second",
        Absent::Default("1000"),
        Number {
            least: 1, most: 1_000_000, unit: "segments a second",
            below: "every segment's socket would be looked up",
            above: "no flood would be noticed",
        },
        "How many segments other than SYNs, connections' own among them, the host takes unjudged. Each CPU judges from its share on. Of those that then belong to no connection, the host takes as many again, all sources together. Where the host translates addresses (NAT), none is refused.";
    NO_SOCKET_RATE: Number = "shield.no_socket.per_source_per_second",
        Absent::Default("100"),
        Number {
            least: 1, most: 1_000, unit: "segments a second",
            below: "the last segments of connections that just ended would be dropped",
            above: "the kernel's clock is too coarse to measure such a rate, so the limit would not hold",
        },
        "How many segments without a connection one source may send once they are judged, and as many at once.";

    ICMP_ENABLED: Switch = "shield.icmp.enabled",
        Absent::Default("true"),
        Switch,
        "Whether ICMP is limited.";
    ICMP_RATE: Number = "shield.icmp.per_source_per_second",
        Absent::Default("1"),
        Number {
            least: 1, most: 1_000, unit: "echo requests a second",
            below: "nobody could ping this host",
            above: "the kernel's clock is too coarse to measure such a rate, so the limit would not hold",
        },
        "How many echo requests a second one source may send in the long run.";
    ICMP_BURST: Number = "shield.icmp.burst",
        Absent::Default("4"),
        Number {
            least: 1, most: 1_000, unit: "echo requests",
            below: "nobody could ping this host",
            above: "one source could flood the host before its limit acts",
        },
        "How many echo requests an idle source may send at once.";
    ICMP_HOST: Number = "shield.icmp.host_per_second",
        Absent::Default("100"),
        Number {
            least: 1, most: 1_000_000, unit: "echo requests a second",
            below: "nobody could ping this host",
            above: "no flood would be noticed",
        },
        "How many echo requests a second all sources together may send, and as many at once.";
    ICMP_CEILING: Number = "shield.icmp.ceiling_per_second",
        Absent::Default("1000"),
        Number {
            least: 1, most: 1_000_000, unit: "messages a second",
            below: "path-MTU messages would be lost, and with them large segments",
            above: "no flood would be noticed",
        },
        "How many other ICMP messages a second the host takes, path-MTU messages among them, and as many at once.";

    PORTS_OPEN: List<PortName> = "shield.ports.open",
        Absent::Default("[]"),
        List { each: PortName, least: 0, most: Some(512), below: "" },
        "The ports that stay open under `shield.lockdown`. Name your SSH port.";
    PORTS_NEW: List<PortRate> = "shield.ports.new_connections",
        Absent::Default("[]"),
        List { each: PortRate { of: "new connections" }, least: 0, most: Some(256), below: "" },
        "TCP ports whose new connections are limited, whoever makes them: an attacker can use the limit up. While the port answers with cookies, connections count once their cookie has come back.";
    PORTS_UDP: List<PortRate> = "shield.ports.udp",
        Absent::Default("[]"),
        List { each: PortRate { of: "packets" }, least: 0, most: Some(256), below: "" },
        "UDP ports whose packets are limited, whoever sends them: an attacker can use the limit up. Other ports are not limited.";

    DROP_INVALID: Switch = "shield.nft.drop_invalid",
        Absent::Default("false"),
        Switch,
        "Whether packets that connection tracking calls invalid are dropped too, and counted as `ct_invalid`. It makes the kernel track every connection, whose table an attacker can fill.";

    SANITY_OFF: List<VerdictOf> = "shield.sanity.off",
        Absent::Default("[]"),
        List { each: VerdictOf(Class::Sanity), least: 0, most: None, below: "" },
        "Sanity rules that are switched off, by the label of their verdict.";

    UNINSPECTED_DROP: List<VerdictOf> = "shield.uninspected.drop",
        Absent::Default("[]"),
        List { each: VerdictOf(Class::Uninspected), least: 0, most: None, below: "" },
        "Kinds of packets that are dropped although, and because, nothing inside them can be judged. The others pass.";

    TABLE_BANS: Number = "shield.tables.bans",
        Absent::Default("131072"),
        Number {
            least: 1_024, most: 1_048_576, unit: "sources",
            below: "a small attack would fill the table, and its other sources could not be banned",
            above: "the table would take more of the kernel's memory than a host can spare",
        },
        "Rows of the ban table. Each costs about 100 bytes of the kernel's memory whether it is used or not, and the daemon as much again for each ban.";
    TABLE_CIDRS: Number = "shield.tables.cidrs",
        Absent::Default("16384"),
        Number {
            least: 64, most: 1_048_576, unit: "ranges",
            below: "the ranges of an ordinary block list would not fit",
            above: "the table would take more of the kernel's memory than a host can spare",
        },
        "Rows of the table of banned ranges.";
    TABLE_ALLOW: Number = "shield.tables.allow",
        Absent::Default("16384"),
        Number {
            least: 64, most: 1_048_576, unit: "ranges",
            below: "the networks of an ordinary operator would not fit",
            above: "the table would take more of the kernel's memory than a host can spare",
        },
        "Rows of the allow list: at least as many as `shield.allow` has entries, with room for what `tunica allow add` adds.";

    EVENTS_PER_SECOND: Number = "shield.events.per_second",
        Absent::Default("100"),
        Number {
            least: 1, most: 10_000, unit: "events a second for each verdict and CPU",
            below: "no packet would ever be reported, so `tunica sources` would stay empty",
            above: "reporting packets would cost more than dropping them",
        },
        "How many packets the kernel reports at most. Its clock tick (100 to 1000 a second) bounds this too. Counters are exact whatever stands here.";

    LOG_DROPS: Switch = "shield.log.enable_logging",
        Absent::Default("true"),
        Switch,
        "Whether drops are logged. Sources are named at level debug only.";
    LOG_LINES: Number = "shield.log.lines_per_minute",
        Absent::Default("5"),
        Number {
            least: 1, most: 600, unit: "lines a minute",
            below: "no line would ever be written, which `enable_logging = false` says more clearly",
            above: "an attacker could fill the disk by way of the log",
        },
        "How many lines are written at most.";

    LADDER: List<Number> = "bans.ladder_seconds",
        Absent::Default("[300, 1800, 14400, 86400]"),
        List {
            each: Number {
                least: 1, most: YEAR, unit: "seconds",
                below: "the ban would be over before it began",
                above: "by its end the address has long passed to someone else",
            },
            least: 1, most: Some(16), below: "an empty ladder has no length for any ban",
        },
        "Length of a source's first, second, third ban and so on. The last one repeats.";
    FORGIVE_AFTER: Number = "bans.forgive_after_seconds",
        Absent::Default("86400"),
        Number {
            least: 60, most: YEAR, unit: "seconds",
            below: "an attacker who pauses for a minute would start anew each time",
            above: "by its end the address has long passed to someone else",
        },
        "After this long without offence a source climbs down one rung of the ladder, and so on.";

    HANDSHAKES_ENABLED: Switch = "evidence.handshakes",
        Absent::Default("true"),
        Switch,
        "Whether completed connections count: nobody completes one with a forged address. Needs a mounted control group hierarchy of version 2.";
    HANDSHAKE_RATE: Number = "evidence.connections_per_second",
        Absent::Default("10"),
        Number {
            least: 1, most: 1_000, unit: "connections a second",
            below: "every visitor would be an offender",
            above: "no source could connect so fast, so none would ever offend",
        },
        "How many connections a second one source may complete in the long run; each one beyond is a violation. So is a good SYN cookie that comes back beyond the limit of `[shield.syn]`. A number below `shield.syn.per_source_per_second` makes offenders of sources that the limit lets through.";
    HANDSHAKE_BURST: Number = "evidence.burst",
        Absent::Default("100"),
        Number {
            least: 1, most: 10_000, unit: "connections",
            below: "every visitor would be an offender",
            above: "no source could connect so fast, so none would ever offend",
        },
        "How many connections an idle source may complete at once.";

    BAN_THRESHOLD: Number = "evidence.ban_threshold",
        Absent::Default("5"),
        Number {
            least: 1, most: 1_000, unit: "violations",
            below: "nobody would have to do anything to be banned",
            above: "nobody would ever be banned",
        },
        "How many proven violations of one source within `window_seconds`, or how many reports of it within `report_window_seconds`, ban it by the ladder.";
    VIOLATION_WINDOW: Number = "evidence.window_seconds",
        Absent::Default("60"),
        Number {
            least: 10, most: 86_400, unit: "seconds",
            below: "violations would be forgotten before they add up",
            above: "a busy visitor would be banned for what it did yesterday",
        },
        "How long a violation counts.";
    REPORTERS: List<AccountRate> = "evidence.reporters",
        Absent::Default("[]"),
        List { each: AccountRate, least: 0, most: Some(64), below: "" },
        "Accounts whose `tunica report` is believed, each with its budget; they must be members of `control.group` to reach the socket. Their names are looked up at start and at a reload. Root needs no entry, and has a budget only if it has one.";
    REPORT_WINDOW: Number = "evidence.report_window_seconds",
        Absent::Default("3600"),
        Number {
            least: 10, most: 86_400, unit: "seconds",
            below: "reports would be forgotten before they add up",
            above: "people would be banned for what they mistyped days ago",
        },
        "How long a report counts.";

    TOR_USER: Account = "tor.user",
        Absent::Unset { example: r#""debian-tor""# },
        Account { of: "user", example: "debian-tor" },
        "The account that tor runs as. The remote ends of its connections are never banned, so that no attacker can have you ban your own guards.";
    SCAN_EVERY: Number = "tor.scan_every_seconds",
        Absent::Default("10"),
        Number {
            least: 1, most: 3_600, unit: "seconds",
            below: "the daemon would do nothing but read connections",
            above: "a new guard could be banned for more than an hour before it is noticed",
        },
        "How often tor's connections are read.";
    KEEP: Number = "tor.keep_seconds",
        Absent::Default("86400"),
        Number {
            least: 60, most: 2_592_000, unit: "seconds",
            below: "a guard could be banned while tor reconnects to it",
            above: "addresses that tor no longer uses would stay free from bans for over a month",
        },
        "How long an address stays protected after tor was last connected to it. At least `scan_every_seconds`.";
    TOR_CONTROL: ControlPlace = "tor.control",
        Absent::Unset { example: r#""unix:/run/tor/control""# },
        ControlPlace,
        "Tor's control port (`ControlPort` or `ControlSocket` in torrc). With it the daemon knows when tor starts again, has tor close banned circuits, and learns tor's guards and relays from tor itself, so that they are never banned. `tunicad`'s account must be able to open it, and to read the cookie where tor asks for one.";
    TOR_COOKIE: AbsolutePath = "tor.control_cookie_file",
        Absent::Unset { example: r#""/run/tor/control.authcookie""# },
        AbsolutePath { example: "/run/tor/control.authcookie", is_file: true, longest: None, dotless: None },
        "Where tor writes its cookie. Unset: where tor says that it is, which serves unless tor sees other paths than the daemon.";
    TOR_PASSWORD: AbsolutePath = "tor.control_password_file",
        Absent::Unset { example: r#""/etc/tunica/tor-control-password""# },
        AbsolutePath { example: "/etc/tunica/tor-control-password", is_file: true, longest: None, dotless: None },
        "A file with the password that torrc has as `HashedControlPassword`. Readable by the daemon alone.";
    TOR_METRICS: LoopbackAddress = "tor.metrics",
        Absent::Unset { example: r#""127.0.0.1:9035""# },
        LoopbackAddress {
            port: 9_035,
            exposes: "whoever listens on the way could read which onion services tor has",
            elsewhere: "tor's metrics are read from this host alone",
        },
        "Where tor serves its metrics (`MetricsPort` and `MetricsPortPolicy accept 127.0.0.1` in torrc). They tell of introductions and rendezvous before any stream arrives. Unset: the load level goes by what else is known.";

    INGRESS_ENABLED: Switch = "ingress.enabled",
        Absent::Default("false"),
        Switch,
        "Whether `tunica-front` serves. It runs as a process of its own.";
    START_FRONT: Switch = "ingress.start_front",
        Absent::Default("false"),
        Switch,
        "Whether the daemon holds the sockets that tor connects to, and starts `tunica-front` itself, for hosts without systemd. Where systemd runs, tunica-front.service does that.";
    INGRESS_USER: Account = "ingress.user",
        Absent::Default(r#""tunica-front""#),
        Account { of: "user", example: "tunica-front" },
        "The account that `tunica-front` runs as. The daemon believes what it and root say of circuits.";
    INGRESS_LISTEN: LoopbackAddress = "ingress.listen",
        Absent::Default(r#""127.0.0.1:10000""#),
        LoopbackAddress {
            port: 10_000,
            exposes: "whoever reaches it could forge circuits, and find the service without Tor",
            elsewhere: "tor must run on this host, or reach it through a tunnel that ends here",
        },
        "Where tor connects to: name it in `HiddenServicePort`, with `HiddenServiceExportCircuitID haproxy`. Each stream must begin with a PROXY header that names a circuit. Any process of this host can forge one here; `socket` is for those who do not trust them all.";
    INGRESS_SOCKET: AbsolutePath = "ingress.socket",
        Absent::Unset { example: r#""/run/tunica-front/ingress.sock""# },
        AbsolutePath {
            example: "/run/tunica-front/ingress.sock", is_file: true, dotless: None,
            longest: Some((107, "the kernel takes at most 107 for a socket (unix(7)), so none could be made")),
        },
        "A Unix socket to which tor connects as well. Its permissions keep other processes out.";
    GATE: OneOf<GateMode> = "ingress.gate",
        Absent::Default(r#""enforce""#),
        OneOf(PhantomData),
        "Whether a program on `lo` refuses the streams of banned circuits before the ingress wakes up for them: `enforce` resets them, `observe` counts them, `off` attaches nothing. It reads the PROXY header on `ingress.listen` alone; streams through `ingress.socket` are refused by the ingress itself.";
    INGRESS_PROTOCOL: OneOf<Protocol> = "ingress.protocol",
        Absent::Default(r#""http""#),
        OneOf(PhantomData),
        "What streams carry: `http` looks at each request, `tcp` carries bytes.";
    BACKENDS: List<BackendPlace> = "ingress.backends",
        Absent::Default(r#"["127.0.0.1:10001"]"#),
        List { each: BackendPlace, least: 1, most: Some(64), below: "nothing could be served" },
        "Where the service itself listens. Several take turns; one that fails its health check is left out.";
    STICKY: Switch = "ingress.sticky",
        Absent::Default("false"),
        Switch,
        "Whether a circuit keeps its backend as long as that is well.";
    HEALTH_PATH: UrlPath = "ingress.health_path",
        Absent::Default(r#""/health""#),
        UrlPath { example: "/health" },
        "What a health check asks a backend for; a status from 200 to 399 is well. With `protocol = \"tcp\"` a connection is enough.";
    HEALTH_EVERY: Number = "ingress.health_every_seconds",
        Absent::Default("5"),
        Number {
            least: 1, most: 3600, unit: "seconds",
            below: "the backend would do nothing but answer health checks",
            above: "visitors would be sent to a dead backend for an hour",
        },
        "How often the backends are checked.";
    MAINTENANCE_PAGE: AbsolutePath = "ingress.maintenance_page",
        Absent::Unset { example: r#""/etc/tunica/maintenance.html""# },
        AbsolutePath { example: "/etc/tunica/maintenance.html", is_file: true, longest: None, dotless: None },
        "An HTML file that visitors read while no backend is well, at most 256 KiB. Unset: a short page of our own.";
    MAXCONN: Number = "ingress.maxconn",
        Absent::Default("500"),
        Number {
            least: 1, most: 100000, unit: "connections",
            below: "nobody could connect",
            above: "no machine holds so many",
        },
        "Most connections that are accepted at once. Those beyond it are refused; of those within, `circuits.max_concurrent_connections` are served at once, and the rest wait.";
    QUEUE: Number = "ingress.queue_seconds",
        Absent::Default("5"),
        Number {
            least: 1, most: 300, unit: "seconds",
            below: "nobody would wait for a turn",
            above: "visitors would wait for minutes for nothing",
        },
        "How long a connection waits for its turn. Then it is answered with 503 (`http`) or closed (`tcp`).";
    CONNECT: Number = "ingress.connect_seconds",
        Absent::Default("5"),
        Number {
            least: 1, most: 300, unit: "seconds",
            below: "a busy backend would count as dead",
            above: "a dead end would hold its place for an hour",
        },
        "How long a connection to a backend may take.";
    CLIENT: Number = "ingress.client_seconds",
        Absent::Default("30"),
        Number {
            least: 1, most: 3600, unit: "seconds",
            below: "ordinary pauses over Tor would end connections",
            above: "a dead end would hold its place for an hour",
        },
        "How long a client may send or take nothing while it is its turn.";
    SERVER: Number = "ingress.server_seconds",
        Absent::Default("30"),
        Number {
            least: 1, most: 3600, unit: "seconds",
            below: "a slow page would be an error",
            above: "a dead end would hold its place for an hour",
        },
        "How long a backend may take to begin its answer.";
    REQUEST: Number = "ingress.request_seconds",
        Absent::Default("10"),
        Number {
            least: 1, most: 300, unit: "seconds",
            below: "visitors with a slow circuit could ask for nothing",
            above: "slow heads of requests would hold their places for minutes",
        },
        "How long a request's head may take, from its first byte.";
    KEEP_ALIVE: Number = "ingress.keep_alive_seconds",
        Absent::Default("2"),
        Number {
            least: 1, most: 300, unit: "seconds",
            below: "each request would need a connection of its own",
            above: "idle connections would hold their places for minutes",
        },
        "How long a connection is kept for another request.";
    HEADER_BYTES: Number = "ingress.header_bytes",
        Absent::Default("16384"),
        Number {
            least: 1024, most: 65536, unit: "bytes",
            below: "ordinary cookies would not fit",
            above: "each connection could hold that much memory",
        },
        "Largest head of a request. A larger one is answered with 431.";
    BODY_BYTES: Number = "ingress.body_bytes",
        Absent::Default("10485760"),
        Number {
            least: 1, most: 4294967295, unit: "bytes",
            below: "no form could be sent",
            above: "this is more than the number can hold",
        },
        "Largest body of a request. A larger one is answered with 413.";
    BODY_RATE: Number = "ingress.body_bytes_per_second",
        Absent::Default("512"),
        Number {
            least: 1, most: 1048576, unit: "bytes a second",
            below: "a body could take for ever",
            above: "visitors with a slow circuit could send nothing",
        },
        "Slowest body of a request: after `request_seconds` it may take one second more for each so many bytes that have come.";
    POST_PATH: UrlPath = "ingress.post_path",
        Absent::Default(r#""/verify-captcha""#),
        UrlPath { example: "/verify-captcha" },
        "Where `circuits.profile` lets only GET and HEAD through, POST passes to this path alone.";

    ARTI_ENABLED: Switch = "arti.enabled",
        Absent::Default("false"),
        Switch,
        "Whether `tunica-front` hosts the onion service. It then accepts no connection: `ingress.socket` and `ingress.gate` mean nothing, `ingress.listen` neither, and no local process can forge a circuit. What `tunica-front.socket` listens on all the same is never answered.";
    ARTI_STATE: AbsolutePath = "arti.state_dir",
        Absent::Default(r#""/var/lib/tunica-front/arti""#),
        AbsolutePath { example: "/var/lib/tunica-front/arti", is_file: false, longest: None, dotless: None },
        "Where Arti keeps the service's secret key, and what it knows of the Tor network. Only `ingress.user` may be able to write there or above, and to read there. One process at a time hosts what is in it.";
    ARTI_KEY: AbsolutePath = "arti.key_file",
        Absent::Unset { example: r#""/var/lib/tunica-front/hs_ed25519_secret_key""# },
        AbsolutePath { example: "/var/lib/tunica-front/hs_ed25519_secret_key", is_file: true, longest: None, dotless: None },
        "The secret key of a C tor service, `hs_ed25519_secret_key`, whose onion address is to stay. It is taken over into `state_dir` at the first start; later it must be the same, and may be removed together with this line. C tor must not serve it any more. Unset: Arti makes a key, and `tunica-front --onion-address` says its address.";
    ARTI_PORTS: List<OnionPort> = "arti.ports",
        Absent::Default("[80]"),
        List { each: OnionPort, least: 1, most: Some(64), below: "nobody could reach the service" },
        "The ports of the onion address that are served, all by the same ingress. Streams to others are refused.";
    ARTI_INTRO_POINTS: Number = "arti.num_intro_points",
        Absent::Default("3"),
        Number {
            least: 3, most: 20, unit: "introduction points",
            below: "the service would be gone whenever a relay or two are",
            above: "clients refuse a descriptor with more",
        },
        "How many relays introduce clients to the service.";
    ARTI_INTRO_RATE: OrOff = "arti.intro_per_second",
        Absent::Default("50"),
        OrOff(Number {
            least: 1, most: 2_147_483_647, unit: "introductions a second",
            below: "nobody could be introduced",
            above: "this is more than the message to an introduction point can hold",
        }),
        "How many introductions each introduction point passes on. It is the relay that refuses those beyond, so they cost this host nothing; whom it refuses it cannot choose.";
    ARTI_INTRO_BURST: Number = "arti.intro_burst",
        Absent::Default("100"),
        Number {
            least: 1, most: 2_147_483_647, unit: "introductions",
            below: "nobody could be introduced",
            above: "this is more than the message to an introduction point can hold",
        },
        "How many at once. At least `intro_per_second`.";
    ARTI_STREAMS: Number = "arti.max_streams_per_circuit",
        Absent::Default("100"),
        Number {
            least: 1, most: 65_535, unit: "streams",
            below: "nobody could be served",
            above: "a circuit has no more",
        },
        "How many streams one circuit may have open. Arti closes a circuit that opens another, with all that it has. `circuits.max_concurrent_per_circuit` is below it, and refuses only the one stream.";
    ARTI_CLIENTS: AbsolutePath = "arti.clients_dir",
        Absent::Unset { example: r#""/etc/tunica/authorized_clients""# },
        AbsolutePath { example: "/etc/tunica/authorized_clients", is_file: false, longest: None, dotless: None },
        "A directory with a file `NAME.auth` for each client that may find the service, as C tor's `authorized_clients`: `descriptor:x25519:KEY`. At most 160. It is read when the front starts. Unset: whoever knows the address.";
    ARTI_POW: Switch = "arti.pow",
        Absent::Default("false"),
        Switch,
        "Tor's own proof of work: of clients who wait, those who solved the hardest puzzle are met first. `pow_queue_rate` says what Arti asks of all. It takes a `tunica-front` that was built with the feature `arti-pow`, parts of which are under the LGPL.";
    ARTI_POW_RATE: Number = "arti.pow_queue_rate",
        Absent::Default("25"),
        Number {
            least: 1, most: 1_000_000, unit: "clients a second",
            below: "nobody would be met",
            above: "no client would ever wait, and so no puzzle would matter",
        },
        "With `pow`: how many clients are met in a second, those with the hardest puzzle first; more of them wait. Every 300 s Arti asks for more if at least as many came with the effort that it asks for as could have been met, and for less otherwise. It does not begin to ask by itself, unlike C tor: where nobody sends a puzzle unasked it asks for none, however many wait. 100 for a large service.";
    ARTI_POW_BURST: Number = "arti.pow_queue_burst",
        Absent::Default("50"),
        Number {
            least: 1, most: 1_000_000, unit: "clients",
            below: "nobody would be met",
            above: "no client would ever wait, and so no puzzle would matter",
        },
        "How many at once after a quiet moment. At least `pow_queue_rate`. 200 for a large service.";
    ARTI_NETWORK: AbsolutePath = "arti.network_file",
        Absent::Unset { example: r#""/etc/tunica/arti-network.toml""# },
        AbsolutePath { example: "/etc/tunica/arti-network.toml", is_file: true, longest: None, dotless: None },
        "Settings of Arti in its own words, such as `[tor_network]`, for another Tor network than the public one. For tests: whoever names other authorities decides about everything that Arti believes.";

    PROFILE: OneOf<Profile> = "circuits.profile",
        Absent::Default(r#""gated""#),
        OneOf(PhantomData),
        "What kind of service stands behind: `messenger` carries TCP, `gated` is HTTP behind a challenge and lets only GET and HEAD through, `web` is open HTTP with all tabs of a browser on one circuit. Keys of this section that are not set are as in the profile.";
    ALL_PER_SECOND: Number = "circuits.max_connections_per_second",
        Absent::Default("50"),
        Number {
            least: 1, most: 100000, unit: "connections a second",
            below: "nobody could connect",
            above: "an attacker would not notice it",
        },
        "How many connections all circuits together may open in a second.";
    ALL_AT_ONCE: Number = "circuits.max_concurrent_connections",
        Absent::Default("200"),
        Number {
            least: 1, most: 100000, unit: "connections",
            below: "nobody would be served",
            above: "no machine serves so many",
        },
        "How many connections are served at once, no more than `ingress.maxconn`; the rest wait.";
    PER_MINUTE: OrOff = "circuits.max_per_circuit_per_minute",
        Absent::Unset { example: "10" },
        OrOff(Number {
            least: 2, most: 255, unit: "connections",
            below: "the first connection would be an offence",
            above: "an attacker would not notice it",
        }),
        "How many connections one circuit may open in any 60 s. By profile: 10, 10, none.";
    AT_ONCE: Number = "circuits.max_concurrent_per_circuit",
        Absent::Unset { example: "15" },
        Number {
            least: 1, most: 60000, unit: "connections",
            below: "nobody could connect",
            above: "an attacker would not notice it",
        },
        "How many connections one circuit may hold open. By profile: 15, 15, 32.";
    CONNECTIONS_PER_10: OrOff = "circuits.connections_per_10_seconds",
        Absent::Unset { example: "10" },
        OrOff(Number {
            least: 2, most: 255, unit: "connections",
            below: "the first connection would be an offence",
            above: "an attacker would not notice it",
        }),
        "The connection of a circuit within 10 s that is an offence, and all that follow: the first offence is held in the tarpit, those that follow it count towards `ban_threshold`, and one after 10 s of quiet is a ban at once. By profile: none, 10, 100.";
    SLOW_PER_10: Number = "circuits.slow_requests_per_10_seconds",
        Absent::Unset { example: "20" },
        Number {
            least: 2, most: 60000, unit: "requests",
            below: "the first request would wait",
            above: "an attacker would not notice it",
        },
        "The request of a circuit within 10 s that goes behind those of quieter circuits, and all that follow. By profile: none, 20, 200.";
    REQUESTS_PER_10: Number = "circuits.requests_per_10_seconds",
        Absent::Unset { example: "50" },
        Number {
            least: 2, most: 60000, unit: "requests",
            below: "the first request would be denied",
            above: "an attacker would not notice it",
        },
        "The request of a circuit within 10 s that is denied, and all that follow. By profile: none, 50, 600.";
    MEBIBYTES_PER_MINUTE: OrOff = "circuits.mebibytes_per_minute",
        Absent::Default("1024"),
        OrOff(Number {
            least: 1, most: 1_048_576, unit: "MiB",
            below: "a page with pictures would use it up",
            above: "no circuit carries so much",
        }),
        "Mebibytes that a circuit may move in 60 s, both directions together. Beyond it new connections and requests are refused; a circuit whose open connections go on beyond twice as much is banned in the end.";
    CPU_PER_MINUTE: OrOff = "circuits.cpu_milliseconds_per_minute",
        Absent::Default("12000"),
        OrOff(Number {
            least: 10, most: 6_000_000, unit: "ms",
            below: "ordinary pages would use it up",
            above: "it is more than all cores have",
        }),
        "Likewise, milliseconds of the ingress' CPU time that it may cost.";
    VIP_PER_10: Number = "circuits.vip_requests_per_10_seconds",
        Absent::Default("200"),
        Number {
            least: 2, most: 60000, unit: "requests",
            below: "the first request would be denied",
            above: "an attacker would not notice it",
        },
        "The same for circuits that go past the queue, for a token over all its circuits; never less than `requests_per_10_seconds`, so that nobody is worse off for having paid.";
    CIRCUIT_BAN_THRESHOLD: Number = "circuits.ban_threshold",
        Absent::Default("5"),
        Number {
            least: 1, most: 255, unit: "violations",
            below: "nobody would have to do anything to be banned",
            above: "nobody would ever be banned",
        },
        "How many violations of one circuit ban it.";
    SHADOW: List<ShadowLimit> = "circuits.shadow",
        Absent::Default("[]"),
        List { each: ShadowLimit, least: 0, most: None, below: "" },
        "Limits that refuse nobody and ban nobody, and only count whom they would have refused.";
    LOG_REFUSALS: Switch = "circuits.log_refusals",
        Absent::Default("false"),
        Switch,
        "Whether `tunica-front` logs what it refuses: a line `streams_refused` for each word, at most once a second, with how many there were. No line names a circuit.";
    CIRCUIT_BAN: Number = "circuits.ban_duration_seconds",
        Absent::Default("300"),
        Number {
            least: 1, most: 86400, unit: "seconds",
            below: "a ban would be over before it is noticed",
            above: "no circuit lives so long",
        },
        "How long the first ban of a circuit lasts; later ones follow `bans.ladder_seconds`.";
    CIRCUIT_TABLE: Number = "circuits.table_size",
        Absent::Default("100000"),
        Number {
            least: 1024, most: 4194304, unit: "circuits",
            below: "a handful of new circuits would push out what is known of the others",
            above: "it would take more than half a gigabyte",
        },
        "How many circuits are remembered, 128 bytes each at most.";
    CIRCUIT_KEEP: Number = "circuits.keep_seconds",
        Absent::Default("1800"),
        Number {
            least: 60, most: 86400, unit: "seconds",
            below: "an offender who pauses for a minute would start anew",
            above: "no circuit lives so long",
        },
        "How long a circuit is remembered after its last use.";
    CIRCUIT_HEALTH: Number = "circuits.circuit_health_interval_secs",
        Absent::Default("120"),
        Number {
            least: 1, most: 3600, unit: "seconds",
            below: "the front would do nothing but examine circuits",
            above: "circuits would stay for an hour beyond their age",
        },
        "How often circuits are examined.";
    CIRCUIT_AGE: Number = "circuits.max_circuit_age_secs",
        Absent::Default("600"),
        Number {
            least: 10, most: 86400, unit: "seconds",
            below: "visitors would build circuits all the time",
            above: "no circuit lives so long",
        },
        "How long after its first stream a circuit without connections is closed; one with connections is marked and counted. It takes `tor.control`, or `arti.enabled`.";
    CIRCUIT_LATENCY: Number = "circuits.max_circuit_latency_secs",
        Absent::Default("10"),
        Number {
            least: 1, most: 300, unit: "seconds",
            below: "ordinary circuits would be closed",
            above: "nobody waits so long",
        },
        "Likewise, of the mean time that the backend takes: over HTTP to answer its requests, over TCP to take its connections.";
    ROTATE_HARD: OrOff = "circuits.rotate_hard_after_secs",
        Absent::Default("0"),
        OrOff(Number {
            least: 60, most: 86400, unit: "seconds",
            below: "downloads could not end",
            above: "no circuit lives so long",
        }),
        "How long after its first stream a circuit is closed even with connections. Where nobody can close it they are cut once, and it stays.";
    POW_THRESHOLD: Part = "circuits.pow_activation_threshold",
        Absent::Default("0.75"),
        Part { unit: "of the load" },
        "The load from which on circuits that have not paid must solve a puzzle; at 0.0 they always must. In TCP nobody is asked without `pow_tcp`, and at 0.0 everybody is refused.";
    POW_DIFFICULTY: Number = "circuits.pow_difficulty",
        Absent::Default("16"),
        Number {
            least: 8, most: 24, unit: "bits",
            below: "asking would cost this host as much as solving costs the client",
            above: "an honest client would search for half a minute and more",
        },
        "How many leading zero bits are asked, until the load level says otherwise. Each bit more doubles the work.";
    POW_MIN: Number = "circuits.pow_difficulty_min",
        Absent::Default("8"),
        Number {
            least: 8, most: 24, unit: "bits",
            below: "asking would cost this host as much as solving costs the client",
            above: "an honest client would search for half a minute and more",
        },
        "The least that the load level asks.";
    POW_MAX: Number = "circuits.pow_difficulty_max",
        Absent::Default("24"),
        Number {
            least: 8, most: 24, unit: "bits",
            below: "asking would cost this host as much as solving costs the client",
            above: "an honest client would search for half a minute and more",
        },
        "The most that the load level asks.";
    POW_PAGE_MAX: Number = "circuits.pow_page_max",
        Absent::Default("17"),
        Number {
            least: 8, most: 24, unit: "bits",
            below: "asking would cost this host as much as solving costs the client",
            above: "phones would search for minutes",
        },
        "The most that a page asks of a browser; 17 bits are seconds on a phone. Where more is asked, the page leads to the waiting room.";
    POW_EXPIRES: Number = "circuits.pow_expires_seconds",
        Absent::Default("300"),
        Number {
            least: 5, most: 3600, unit: "seconds",
            below: "slow clients could never bring a solution back in time",
            above: "solutions could be collected for an hour and be used at once",
        },
        "How long a puzzle or a picture is good.";
    POW_TCP: Switch = "circuits.pow_tcp",
        Absent::Default("false"),
        Switch,
        "Whether TCP clients are asked for puzzles, which takes a client that knows the handshake. Without it nobody is asked, whatever the load.";
    POW_GRANTS: OneOf<Grant> = "circuits.pow_grants",
        Absent::Default(r#""normal""#),
        OneOf(PhantomData),
        "What a circuit is once it has solved a puzzle: `normal` has the part of `paid_share`; `vip` gets a token, which makes the circuits that show it go past the queue and the limits of normal circuits as well.";
    TOKEN_LIFE: Number = "circuits.token_life_seconds",
        Absent::Default("1800"),
        Number {
            least: 5, most: 86400, unit: "seconds",
            below: "it would be over before the next page is there",
            above: "keys turn daily, so no token could be checked so long",
        },
        "How long a VIP token is good. When it is over its circuits are as any other.";
    TOKEN_CIRCUITS: Number = "circuits.token_circuits",
        Absent::Default("3"),
        Number {
            least: 1, most: 8, unit: "circuits",
            below: "nobody could use a token",
            above: "a token is for one visitor, and this would be a crowd",
        },
        "How many circuits with open connections may use a VIP token at once. One more is served as if it showed none.";
    BACKEND_GRANTS: Switch = "circuits.backend_grants",
        Absent::Default("false"),
        Switch,
        "Whether an answer of a backend with the header `X-Tunica-Grant: vip`, as after a login, hands its client a VIP token. The client never sees the header.";
    FALSE_POSITIVES: Part = "circuits.false_positive_budget",
        Absent::Default("0.05"),
        Part { unit: "of the token holders that are seen in a minute" },
        "The part of token holders that limits of theirs may refuse. Beyond it these limits relax by half, once, up to moderate load; at 1.0 they never do.";
    LEAST_HOLDERS: Number = "circuits.false_positive_least_holders",
        Absent::Default("20"),
        Number {
            least: 2, most: 10000, unit: "token holders",
            below: "one who asks for too much would relax the limits of all",
            above: "a limit that is wrong would not be noticed",
        },
        "Token holders in a minute without which it says nothing about limits.";
    PAID_SHARE: Part = "circuits.paid_share",
        Absent::Default("0.5"),
        Part { unit: "of `max_connections_per_second` and `max_concurrent_connections`" },
        "The part that is kept for circuits that paid, by puzzle, token or the operator's word, while circuits are asked for a puzzle. At any other time nothing is kept.";

    LOAD_RISE: Number = "load.rise_seconds",
        Absent::Default("5"),
        Number {
            least: 1, most: 60, unit: "seconds",
            below: "one burst would run through all levels before the first can show",
            above: "an attack would have its way for longer than a level takes to fall",
        },
        "The least time between a change of the load level and a rise.";
    LOAD_FALL: Number = "load.fall_seconds",
        Absent::Default("60"),
        Number {
            least: 10, most: 3_600, unit: "seconds",
            below: "an attacker who pauses for some seconds would meet no defence",
            above: "visitors would meet the defence for hours after the attack",
        },
        "How long the load must be below a level, without interruption, before the level falls by one.";
    LOAD_RENDEZVOUS: Number = "load.rendezvous_per_second",
        Absent::Default("50"),
        Number {
            least: 1, most: 100_000, unit: "circuits",
            below: "every visitor would be an attack",
            above: "no tor builds so many, so this would never tell",
        },
        "How many rendezvous circuits in a second are full load.";
    LOAD_REJECTIONS: Number = "load.rejections_per_second",
        Absent::Default("50"),
        Number {
            least: 1, most: 100_000, unit: "introductions",
            below: "a single broken client would be an attack",
            above: "no tor decrypts so many, so this would never tell",
        },
        "How many rejected introductions in a second are full load.";
    LOAD_PUZZLE_QUEUE: Number = "load.puzzle_queue",
        Absent::Default("125"),
        Number {
            least: 1, most: 100_000, unit: "introductions",
            below: "every visitor would be an attack",
            above: "tor's queue holds fewer, so this would never tell",
        },
        "How many introductions in the queue of Tor's own proof of work are full load.";

    SYBIL_ALIKE: Number = "sybil.alike_percent",
        Absent::Default("50"),
        Number {
            least: 30, most: 90, unit: "percent",
            below: "chance alone would make a few dozen visitors look alike now and then",
            above: "a crowd would go unseen beside a handful of visitors",
        },
        "By how much the share of new circuits that are alike (in their pace, in the path that they ask for first, and in the relay where they meet the service) must exceed the share of their like in calm times, so that it is told.";
    SYBIL_LEARN: Number = "sybil.learn_seconds",
        Absent::Default("10"),
        Number {
            least: 1, most: 3_600, unit: "seconds",
            below: "whoever comes in numbers would make his own ways the usual ones",
            above: "it would take weeks to know what is usual",
        },
        "The least time between two circuits from which it is learned what is usual; 32 must be known before anything is said, and 1 024 are kept. Nothing is learned while anything speaks of an attack.";
    SYBIL_RAISES: OneOf<Raise> = "sybil.raises_level",
        Absent::Default(r#""off""#),
        OneOf(PhantomData),
        "Up to which load level new circuits that are alike raise the measured one, by one. Visitors who follow a link from one page are alike, too.";
    SYBIL_SAMPLES: Switch = "sybil.samples",
        Absent::Default("false"),
        Switch,
        "Whether each new circuit has a line in `circuits.jsonl` beside the ledger: eleven numbers about its first seconds, how unusual they were, and no path, address or circuit number. The file and the one before it have at most 8 MiB each.";

    HAPROXY_SOCKET: AbsolutePath = "haproxy.socket",
        Absent::Unset { example: r#""/run/haproxy/tunica.sock""# },
        AbsolutePath {
            example: "/run/haproxy/tunica.sock", is_file: true, dotless: None,
            longest: Some((107, "the kernel takes at most 107 for a socket (unix(7)), so none could be made")),
        },
        "Where HAProxy takes commands of its Runtime API. With it the daemon keeps HAProxy's table of circuits as it should be: bans and promotions of operators, and what HAProxy found itself, also after HAProxy has started again. Members of `control.group` must be able to open it.";
    HAPROXY_TABLE: ProxyName = "haproxy.table",
        Absent::Default(r#""tunica_circuits""#),
        ProxyName,
        "The name of that table.";

    HTTP_ENABLED: Switch = "http.enabled",
        Absent::Default("true"),
        Switch,
        "Whether `/metrics`, `/health` and `/ready` are served.";
    HTTP_LISTEN: LoopbackAddress = "http.listen",
        Absent::Default(r#""127.0.0.1:9187""#),
        LoopbackAddress {
            port: 9_187,
            exposes: "other machines could read this host's defences without a password",
            elsewhere: "for readers elsewhere put a proxy that asks for one before it",
        },
        "Where they are served. There is no password, so other addresses than loopback are refused.";

    CONTROL_SOCKET: AbsolutePath = "control.socket",
        Absent::Default(r#""/run/tunica/tunicad.sock""#),
        AbsolutePath {
            example: "/run/tunica/tunicad.sock", is_file: true, dotless: None,
            longest: Some((107, "the kernel takes at most 107 for a socket (unix(7)), so none could be made")),
        },
        "Where the daemon listens for `tunica`.";
    CONTROL_GROUP: Account = "control.group",
        Absent::Default(r#""tunica""#),
        Account { of: "group", example: "tunica" },
        "The group whose members may read the daemon's state without being root.";

    LEDGER_PATH: AbsolutePath = "ledger.path",
        Absent::Default(r#""/var/lib/tunica/ledger.redb""#),
        AbsolutePath { example: "/var/lib/tunica/ledger.redb", is_file: true, longest: None, dotless: None },
        "The file that keeps bans and offences over a restart.";

    LOG_LEVEL: OneOf<LogLevel> = "log.level",
        Absent::Default(r#""info""#),
        OneOf(PhantomData),
        "The least important lines that are written. Addresses appear at `debug` and `trace` only.";
    LOG_FORMAT: OneOf<LogFormat> = "log.format",
        Absent::Default(r#""text""#),
        OneOf(PhantomData),
        "`text` is for people, `json` writes one object a line.";
}
