//! HAProxy's configuration as the ingress: what our own front does, in HAProxy's words, for 2.6 and later.
//!
//! Source: [HAProxy's Configuration Manual 2.6](https://docs.haproxy.org/2.6/configuration.html).
//!
//! A circuit is what the PROXY header names as the source, so it is tracked by `tcp-request session`: rules of `tcp-request
//! connection` run before the header is read, and would count all circuits as one. The circuit's state is `gpt0`, a tag; the
//! counter `gpc0` holds its violations.

use std::{
    fmt::{self, Write as _},
    net::SocketAddr,
    num::NonZeroU32,
    path::{Path, PathBuf},
    time::Duration,
};

use thiserror::Error;

use crate::haproxy_codec::TableName;

/// The tag of a circuit of which nothing is said.
pub const NORMAL: u32 = 0;
/// The tag of a circuit that goes past the queue.
pub const VIP: u32 = 1;
/// The tag of a circuit whose streams are refused.
pub const BANNED: u32 = 2;

/// Connections that may be held in the tarpit. HAProxy counts them as connections of the frontend, so its `maxconn` has room
/// for them beside those that are served or wait.
const MOST_TARPITS: u64 = 1_000;
/// Of these places, those that only VIPs and connections without violation and within the rate of all take. Without them
/// connections that are to be refused, and take their time to say anything, would fill the frontend for everybody.
const KEPT_FREE: u64 = MOST_TARPITS / 2;
/// How long a connection is held in the tarpit.
const TARPIT: Duration = Duration::from_secs(10);
/// Where the statistics page is.
const STATISTICS_PATH: &str = "/stats";
/// How long an old process serves its last connections after a reload.
const LAST_CONNECTIONS: &str = "10m";
/// Connections of the statistics page, of health checks and of the Runtime API, at most.
const OTHER_CONNECTIONS: u64 = 200;
/// Health checks in a row that say otherwise before a backend counts as ill, or as well again. After its start one is enough to
/// count as ill.
const CHECKS_TO_CHANGE: u32 = 2;
/// What HAProxy keeps free of its buffer for headers that rules add (`tune.maxrewrite`).
const REWRITE_BYTES: u32 = 1_024;
/// HAProxy's own buffer size, below which it is not set.
const LEAST_BUFFER: u32 = 16_384;
/// What visitors read while no backend is well, unless a file is named.
const MAINTENANCE: &str = "<!doctype html><title>Maintenance</title><p>The service is down for maintenance. Please come back in a few minutes.</p>";

/// Everything that the configuration is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HaproxyConfig {
    /// Where tor connects to, a loopback address.
    pub listen: SocketAddr,
    /// A Unix socket beside it.
    pub socket: Option<PathBuf>,
    /// Tor's account, whose that file becomes; `None`: nobody but root and HAProxy's own account can connect.
    pub tor_user: Option<String>,
    /// Rules for HTTP; `None`: streams carry other bytes.
    pub http: Option<HttpRules>,
    /// Where the service listens; not empty.
    pub backends: Vec<Backend>,
    /// Whether a circuit keeps its backend.
    pub is_sticky: bool,
    /// How often the backends are checked.
    pub health_every: Duration,
    /// Connections that are served or wait.
    pub maxconn: NonZeroU32,
    /// Connections that are served at once.
    pub most_served: NonZeroU32,
    /// New connections in a second, all circuits together.
    pub connections_per_second: Limit,
    /// Open connections of a circuit.
    pub most_open: Limit,
    /// The connection of a circuit within 10 s that is a violation, and all that follow.
    pub connections_per_10_seconds: Option<Limit>,
    /// Connections that a circuit may open in 60 s.
    pub connections_per_minute: Option<Limit>,
    /// Violations that ban a circuit.
    pub ban_threshold: u32,
    /// Circuits that are remembered.
    pub table_size: NonZeroU32,
    /// How long after their last use.
    pub keep: Duration,
    /// Longest wait for a turn.
    pub queue: Duration,
    /// For a connection to a backend.
    pub connect: Duration,
    /// For a client's next bytes.
    pub client: Duration,
    /// For a backend's answer.
    pub server: Duration,
    /// The stick table's name.
    pub table: TableName,
    /// The Runtime API's socket.
    pub api: PathBuf,
    /// The group that may use it.
    pub api_group: String,
    /// Where the statistics page is, on loopback.
    pub stats: SocketAddr,
    /// The account that HAProxy becomes; `None`: it stays who it is.
    pub user: Option<String>,
    /// And the group.
    pub group: Option<String>,
    /// The folder that it locks itself in.
    pub chroot: Option<PathBuf>,
    /// HAProxy processes of the same tor that share the table, this one first; on loopback.
    pub peers: Vec<Peer>,
}

/// A limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// How much it allows, or the event that is judged by it, as the field says.
    pub number: u32,
    /// Whether it is a shadow: it refuses nobody, leaves no violation, and the log tells whom it would have refused.
    pub is_shadow: bool,
}

/// Rates of a circuit's requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestRates {
    /// The request within 10 s that goes behind those of quieter circuits, and all that follow.
    pub slow: Limit,
    /// The one that is denied, and all that follow.
    pub deny: Limit,
}

/// Rules for requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpRules {
    /// Rates of a circuit that is no VIP.
    pub rates: Option<RequestRates>,
    /// The request of a VIP within 10 s that is denied, and all that follow.
    pub vip_rate: Limit,
    /// The only path that may be posted to, where nothing but GET and HEAD is let through else.
    pub post_path: Option<String>,
    /// What a health check asks for.
    pub health_path: String,
    /// For the whole head of a request.
    pub request: Duration,
    /// Between requests.
    pub keep_alive: Duration,
    /// Largest head of a request.
    pub header_bytes: u32,
    /// Largest body of a request, as far as its head names a length.
    pub body_bytes: u32,
    /// An HTML file that visitors read while no backend is well.
    pub maintenance_page: Option<PathBuf>,
}

/// Where a backend listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// An address and a port.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

/// A HAProxy process that shares the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub name: TableName,
    /// Where it listens for the others, on loopback.
    pub address: SocketAddr,
}

/// Why no configuration can be written.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RenderError {
    /// Characters that mean something else in HAProxy's language.
    #[error(
        "{what} is {text:?}, in which HAProxy would read more than a name: nothing was written; use letters, digits and {allowed}"
    )]
    Unwritable {
        /// What it is.
        what: &'static str,
        /// What it says.
        text: String,
        /// What it may hold besides letters and digits.
        allowed: &'static str,
    },
    /// Another machine could hear of circuits, or of how the service does.
    #[error(
        "{what} is {address}, which other machines can reach: nothing was written; a circuit's number means nothing on \
         another machine and must not leave this one; give a loopback address"
    )]
    NotLoopback {
        /// What it is.
        what: &'static str,
        /// What it says.
        address: SocketAddr,
    },
}

impl HaproxyConfig {
    /// The configuration as a file.
    ///
    /// # Errors
    /// When a name or path cannot stand in such a file, or a table would be shared with another machine.
    pub fn render(&self) -> Result<String, RenderError> {
        for (what, address) in [("the statistics page", self.stats)]
            .into_iter()
            .chain(self.peers.iter().map(|p| ("a peer", p.address)))
        {
            if !address.ip().is_loopback() {
                return Err(RenderError::NotLoopback { what, address });
            }
        }
        let mut out = Text(String::from(HEAD));
        self.global(&mut out)?;
        self.defaults(&mut out);
        self.peers(&mut out);
        self.tables(&mut out);
        self.ingress(&mut out)?;
        self.service(&mut out)?;
        self.statistics(&mut out);
        Ok(out.0)
    }

    /// Whether any rule is a shadow, so that the log has a field for it.
    fn has_shadow(&self) -> bool {
        let of_requests = self.http.iter().flat_map(|http| {
            let rates = http.rates.into_iter().flat_map(|rates| [rates.slow, rates.deny]);
            rates.chain([http.vip_rate])
        });
        [self.connections_per_second, self.most_open]
            .into_iter()
            .chain(self.connections_per_10_seconds)
            .chain(self.connections_per_minute)
            .chain(of_requests)
            .any(|limit| limit.is_shadow)
    }

    /// Connections that the frontend takes.
    fn frontend_maxconn(&self) -> u64 {
        u64::from(self.maxconn.get()) + MOST_TARPITS
    }

    fn global(&self, out: &mut Text) -> Result<(), RenderError> {
        out.section("global");
        if let Some(user) = &self.user {
            out.line(format_args!("user {}", name("the account", user)?));
        }
        if let Some(group) = &self.group {
            out.line(format_args!("group {}", name("the group", group)?));
        }
        if let Some(folder) = &self.chroot {
            out.line(format_args!("chroot {}", path("the folder of chroot", folder)?));
        }
        out.line(format_args!("maxconn {}", self.frontend_maxconn() + OTHER_CONNECTIONS));
        out.comment(
            "tunicad reads and sets the table here. A reload takes over the listening sockets here, too.",
        );
        let api = path("haproxy.socket", &self.api)?;
        let rights = "level operator expose-fd listeners";
        if self.user.is_some() {
            // tunicad is root, and whoever may use the socket decides who is banned and who is a VIP.
            out.line(format_args!("stats socket {api} mode 600 user root {rights}"));
        } else {
            let group = name("the group of haproxy.socket", &self.api_group)?;
            out.line(format_args!("stats socket {api} mode 660 group {group} {rights}"));
        }
        out.line(format_args!("stats timeout 30s"));
        out.line(format_args!("hard-stop-after {LAST_CONNECTIONS}"));
        out.comment(
            "A ring in memory: it waits for nobody and reaches no disk. `show events tunica_log` reads it.",
        );
        out.line(format_args!("log ring@tunica_log local0 info"));
        if let Some(peer) = self.peers.first() {
            out.line(format_args!("localpeer {}", peer.name));
        }
        if let Some(http) = &self.http {
            out.comment("Another one in each process, so that no word for a circuit outlives it.");
            out.line(format_args!("set-var proc.tunica_salt uuid()"));
            let buffer = http.header_bytes.saturating_add(REWRITE_BYTES).max(LEAST_BUFFER);
            out.line(format_args!("tune.bufsize {buffer}"));
        }
        out.section("ring tunica_log");
        out.line(format_args!("description \"streams of circuits\""));
        out.line(format_args!("format rfc5424"));
        out.line(format_args!("maxlen 1024"));
        out.line(format_args!("size 1048576"));
        Ok(())
    }

    fn defaults(&self, out: &mut Text) {
        out.section("defaults tunica");
        out.line(format_args!("mode {}", if self.http.is_some() { "http" } else { "tcp" }));
        out.line(format_args!("log global"));
        out.comment("Refused streams would push all others out of the ring.");
        out.line(format_args!("option dontlognull"));
        if self.http.is_some() {
            out.comment(
                "A client that begins with HTTP/2's preface would have a hundred requests under way in a connection that counts as one.",
            );
            out.line(format_args!("option disable-h2-upgrade"));
        }
        for (what, time) in [
            ("connect", self.connect),
            ("client", self.client),
            ("server", self.server),
            ("queue", self.queue),
            ("tarpit", TARPIT),
        ] {
            out.line(format_args!("timeout {what} {}s", time.as_secs()));
        }
        match &self.http {
            Some(http) => {
                out.line(format_args!("timeout http-request {}s", http.request.as_secs()));
                out.line(format_args!("timeout http-keep-alive {}s", http.keep_alive.as_secs()));
            }
            None => out.line(format_args!("option splice-auto")),
        }
    }

    fn peers(&self, out: &mut Text) {
        if self.peers.is_empty() {
            return;
        }
        out.comment_before_section(
            "HAProxy processes of one tor, never of two: each tor numbers its circuits from 1. With itself as a peer a process\n# hands its table to the next one at a reload, unless it has run for a few seconds only.",
        );
        out.section("peers tunica_peers");
        for peer in &self.peers {
            out.line(format_args!("peer {} {}", peer.name, peer.address));
        }
    }

    fn tables(&self, out: &mut Text) {
        out.comment_before_section(
            "What is known of each circuit. gpt0: 0 normal, 1 VIP, 2 banned. gpc0: violations. gpc1: connections.",
        );
        out.section(&format!("backend {}", self.table));
        let peers = if self.peers.is_empty() { "" } else { " peers tunica_peers" };
        let minute = if self.connections_per_minute.is_some() { ",gpc1,gpc1_rate(60s)" } else { "" };
        let requests = if self.http.is_some() { ",http_req_rate(10s)" } else { "" };
        out.line(format_args!(
            "stick-table type ipv6 size {} expire {}s{peers} store gpt0,gpc0,conn_cur,conn_rate(10s){requests}{minute}",
            self.table_size,
            self.keep.as_secs()
        ));
        out.comment_before_section(
            "New connections of all circuits together; those that are refused do not count.",
        );
        out.section("backend tunica_all");
        out.line(format_args!("stick-table type integer size 1 expire 60s store conn_rate(1s)"));
    }

    fn ingress(&self, out: &mut Text) -> Result<(), RenderError> {
        let table = &self.table;
        out.section("frontend tunica_ingress");
        out.line(format_args!("bind {} accept-proxy defer-accept", self.listen));
        if let Some(socket) = &self.socket {
            let owner = match &self.tor_user {
                Some(user) => format!(" user {}", name("tor.user", user)?),
                None => String::new(),
            };
            let path = path("ingress.socket", socket)?;
            out.line(format_args!("bind unix@{path} mode 660{owner} accept-proxy"));
        }
        out.comment(&format!(
            "ingress.maxconn is {}. The other {MOST_TARPITS} are for the tarpit, and for whoever has not said yet what it wants.",
            self.maxconn
        ));
        out.line(format_args!("maxconn {}", self.frontend_maxconn()));
        let status =
            if self.http.is_some() { "status=%ST requests_in_10s=%[sc0_http_req_rate] " } else { "" };
        let shadow = match (self.has_shadow(), &self.http) {
            (false, _) => "",
            (true, Some(_)) => "would_refuse=%[var(txn.would_refuse)] ",
            (true, None) => "would_refuse=%[var(sess.would_refuse)] ",
        };
        out.line(format_args!(
            "log-format \"circuit=%[src] state=%[sc0_get_gpt0] {status}{shadow}end=%ts wait_ms=%Tw in=%U out=%B backend=%s\""
        ));
        out.blank();
        out.line(format_args!("acl from_tor src fc00:dead:beef:4dad::/64"));
        out.line(format_args!("acl vip sc0_get_gpt0 eq {VIP}"));
        out.line(format_args!("acl banned sc0_get_gpt0 eq {BANNED}"));
        out.line(format_args!("acl violation var(sess.violation) -m found"));
        out.line(format_args!("acl held var(sess.violation) -m str connection_rate"));
        if !self.connections_per_second.is_shadow {
            out.line(format_args!("acl over var(sess.over) -m bool"));
        }
        out.comment("Who is no circuit, and whose circuit is banned, is reset before it is read.");
        out.line(format_args!("tcp-request session reject if !from_tor"));
        out.line(format_args!("tcp-request session track-sc0 src table {table}"));
        out.line(format_args!("tcp-request session reject if banned"));
        out.comment("One violation a connection; enough of them ban the circuit.");
        if self.has_shadow() {
            out.comment("Limits in circuits.shadow refuse nobody: the log names the first that would have.");
        }
        if self.connections_per_minute.is_some() {
            out.line(format_args!("tcp-request session sc-inc-gpc1(0)"));
        }
        let mut violation = |word: &str, limit: Limit, condition: fmt::Arguments<'_>| {
            let (variable, unless) =
                if limit.is_shadow { ("would_refuse,ifnotset", "") } else { ("violation", "!violation ") };
            out.line(format_args!(
                "tcp-request session set-var(sess.{variable}) str({word}) if {unless}{condition}"
            ));
        };
        let limit = self.most_open;
        violation("too_many_open", limit, format_args!("{{ sc0_conn_cur gt {} }}", limit.number));
        if let Some(limit) = self.connections_per_10_seconds {
            violation("connection_rate", limit, format_args!("!vip {{ sc0_conn_rate ge {} }}", limit.number));
        }
        if let Some(limit) = self.connections_per_minute {
            violation("circuit_rate", limit, format_args!("!vip {{ sc0_gpc1_rate gt {} }}", limit.number));
        }
        out.line(format_args!("tcp-request session sc-inc-gpc0(0) if violation"));
        out.line(format_args!(
            "tcp-request session sc-set-gpt0(0) {BANNED} if violation !vip {{ sc0_get_gpc0 ge {} }}",
            self.ban_threshold
        ));
        out.line(format_args!("tcp-request session reject if banned"));
        self.rate_of_all(out);
        match &self.http {
            Some(http) => self.requests(out, http)?,
            None => self.bytes(out),
        }
        out.line(format_args!("default_backend tunica_service"));
        Ok(())
    }

    /// Rules about the connections of all circuits together.
    fn rate_of_all(&self, out: &mut Text) {
        let limit = self.connections_per_second;
        let over = format!("!violation !vip {{ int(1),table_conn_rate(tunica_all) ge {} }}", limit.number);
        let refuse = if limit.is_shadow {
            out.line(format_args!(
                "tcp-request session set-var(sess.would_refuse,ifnotset) str(global_rate) if {over}"
            ));
            ""
        } else {
            out.comment(
                "Too many within this second. It is judged before it is counted: what is refused takes no place in the rate from others.",
            );
            out.line(format_args!("tcp-request session set-var(sess.over) bool(true) if {over}"));
            " !over"
        };
        let most = self.frontend_maxconn() - KEPT_FREE;
        out.comment(&format!(
            "Whoever is to be refused is told so while there is room, and reset unread otherwise: above {most} connections the last {KEPT_FREE} places are for the others.",
        ));
        if !limit.is_shadow {
            out.line(format_args!("tcp-request session reject if over {{ fe_conn gt {most} }}"));
        }
        out.line(format_args!("tcp-request session reject if violation !vip {{ fe_conn gt {most} }}"));
        out.line(format_args!("tcp-request session track-sc1 int(1) table tunica_all if !violation{refuse}"));
    }

    /// Rules of `mode http`.
    fn requests(&self, out: &mut Text, http: &HttpRules) -> Result<(), RenderError> {
        let deny = |status: u16, seconds: u64| format!("deny deny_status {status} hdr Retry-After {seconds}");
        out.blank();
        out.comment("A connection that was open when its circuit was banned.");
        out.line(format_args!("http-request reject if banned"));
        out.line(format_args!("http-request tarpit deny_status 429 hdr Retry-After 10 if held"));
        out.line(format_args!("http-request {} if violation", deny(429, 10)));
        if self.has_shadow() {
            out.comment("A connection that a limit in circuits.shadow would have refused.");
            out.line(format_args!(
                "http-request set-var(txn.would_refuse) var(sess.would_refuse) if {{ http_first_req }} {{ var(sess.would_refuse) -m found }}"
            ));
        }
        out.comment("Everything that is denied here is denied before a backend hears of it.");
        if let Some(RequestRates { deny: limit, .. }) = http.rates {
            let over = format!("!vip {{ sc0_http_req_rate ge {} }}", limit.number);
            if limit.is_shadow {
                out.line(format_args!("{} if {over}", would_refuse("request_rate")));
            } else {
                out.line(format_args!("http-request sc-inc-gpc0(0) if {over}"));
                out.line(format_args!(
                    "http-request sc-set-gpt0(0) {BANNED} if {over} {{ sc0_get_gpc0 ge {} }}",
                    self.ban_threshold
                ));
                out.line(format_args!("http-request reject if banned"));
                out.line(format_args!("http-request {} if {over}", deny(429, 10)));
            }
        }
        let act = |limit: Limit, word: &str, action: String| {
            if limit.is_shadow { would_refuse(word) } else { format!("http-request {action}") }
        };
        let limit = http.vip_rate;
        out.line(format_args!(
            "{} if vip {{ sc0_http_req_rate ge {} }}",
            act(limit, "vip_rate", deny(429, 10)),
            limit.number
        ));
        out.line(format_args!("http-request deny deny_status 405 if {{ method CONNECT }}"));
        if let Some(post_path) = &http.post_path {
            out.line(format_args!(
                "http-request deny deny_status 405 if !{{ method GET HEAD }} !{{ method POST }} || {{ method POST }} !{{ path {} }}",
                quoted("ingress.post_path", post_path)?
            ));
        }
        out.line(format_args!(
            "http-request deny deny_status 413 if {{ req.body_size gt {} }}",
            http.body_bytes
        ));
        out.comment(
            "Only WebSockets are switched to: within another protocol nobody here could judge requests.",
        );
        out.line(format_args!(
            "http-request del-header Upgrade if !{{ req.hdr(Upgrade) -m str -i websocket }}"
        ));
        out.comment("What a client could pose by as a proxy, or as us.");
        out.line(format_args!(
            "http-request del-header ^(x[-_]onion[-_]circuit|tunica[-_](solution|token)|forwarded|x[-_]forwarded[-_](for|host|proto)|x[-_]real[-_]ip|proxy|proxy[-_]connection|http2[-_]settings)$ -m reg"
        ));
        out.line(format_args!(
            "http-request set-header X-Onion-Circuit %[src,concat(,proc.tunica_salt),sha2(256),bytes(0,8),hex,lower]"
        ));
        out.comment("No place for it, or too many came within this second. VIPs go past both.");
        out.line(format_args!(
            "http-request {} if !vip {{ be_conn(tunica_service) ge {} }}",
            deny(503, self.queue.as_secs()),
            self.maxconn
        ));
        if !self.connections_per_second.is_shadow {
            out.line(format_args!("http-request {} if !vip over {{ http_first_req }}", deny(503, 1)));
        }
        out.comment(
            "Who waits: VIPs first, then those without violation, then the others; many requests go last.",
        );
        out.line(format_args!("http-request set-priority-class int(-1) if vip"));
        out.line(format_args!("http-request set-priority-class int(1) if !vip {{ sc0_get_gpc0 gt 0 }}"));
        if let Some(RequestRates { slow: limit, .. }) = http.rates {
            out.line(format_args!(
                "{} if !vip {{ sc0_http_req_rate ge {} }}",
                act(limit, "slow_lane", "set-priority-class int(2)".to_owned()),
                limit.number
            ));
        }
        out.comment("What is meant for tunica-front.");
        out.line(format_args!("http-response del-header X-Tunica-Grant"));
        Ok(())
    }

    /// Rules of `mode tcp`.
    fn bytes(&self, out: &mut Text) {
        out.blank();
        out.comment("The tarpit: such a connection is held, and then ends.");
        out.line(format_args!("tcp-request inspect-delay {}s", TARPIT.as_secs()));
        out.line(format_args!("tcp-request content reject if held WAIT_END"));
        out.line(format_args!("tcp-request content reject if !held violation"));
        out.line(format_args!(
            "tcp-request content reject if !vip {{ be_conn(tunica_service) ge {} }}",
            self.maxconn
        ));
        if !self.connections_per_second.is_shadow {
            out.line(format_args!("tcp-request content reject if !vip over"));
        }
        out.line(format_args!("tcp-request content set-priority-class int(-1) if vip"));
        out.line(format_args!(
            "tcp-request content set-priority-class int(1) if !vip {{ sc0_get_gpc0 gt 0 }}"
        ));
    }

    fn service(&self, out: &mut Text) -> Result<(), RenderError> {
        out.section("backend tunica_service");
        if self.is_sticky {
            out.line(format_args!("balance source"));
            out.line(format_args!("hash-type consistent"));
        } else {
            out.line(format_args!("balance roundrobin"));
        }
        if let Some(http) = &self.http {
            out.line(format_args!("option httpchk"));
            out.line(format_args!(
                "http-check send meth GET uri {} ver HTTP/1.1 hdr Host localhost hdr Connection close",
                quoted("ingress.health_path", &http.health_path)?
            ));
            out.line(format_args!("http-check expect status 200-399"));
            let page = match &http.maintenance_page {
                Some(file) => format!("file {}", path("ingress.maintenance_page", file)?),
                None => format!("string \"{MAINTENANCE}\""),
            };
            let ill: String = (1..=self.backends.len())
                .map(|n| format!(" !{{ srv_is_up(tunica_service/backend{n}) }}"))
                .collect();
            out.comment("The maintenance page. Not by nbsrv(), which counts no server in a process that a reload replaces.");
            out.line(format_args!(
                "http-request return status 503 content-type \"text/html; charset=utf-8\" hdr Retry-After 60 {page} if{ill}"
            ));
            out.comment("Whoever waited in vain.");
            out.line(format_args!(
                "http-error status 503 content-type text/plain hdr Retry-After {} string \"busy\"",
                self.queue.as_secs()
            ));
        }
        let count = u32::try_from(self.backends.len()).unwrap_or(u32::MAX).max(1);
        out.comment(&format!(
            "circuits.max_concurrent_connections is {}, of all together.",
            self.most_served
        ));
        let share = (self.most_served.get() / count).max(1);
        for (number, backend) in (1_u32..).zip(&self.backends) {
            let place = match backend {
                Backend::Tcp(address) => address.to_string(),
                Backend::Unix(socket) => format!("unix@{}", path("ingress.backends", socket)?),
            };
            out.line(format_args!(
                "server backend{number} {place} maxconn {share} check inter {}s rise {CHECKS_TO_CHANGE} fall {CHECKS_TO_CHANGE}",
                self.health_every.as_secs()
            ));
        }
        Ok(())
    }

    fn statistics(&self, out: &mut Text) {
        out.section("frontend tunica_stats");
        out.line(format_args!("bind {}", self.stats));
        out.line(format_args!("mode http"));
        out.line(format_args!("no log"));
        out.line(format_args!("timeout http-request 10s"));
        out.comment("A page of another site cannot read this one through the operator's browser.");
        out.line(format_args!(
            "http-request deny if !{{ req.hdr(Host),field(1,:) -m str -i localhost }} !{{ req.hdr(Host) -m str {} }}",
            self.stats
        ));
        out.line(format_args!("http-request redirect location {STATISTICS_PATH} if {{ path / }}"));
        out.line(format_args!("stats enable"));
        out.line(format_args!("stats uri {STATISTICS_PATH}"));
        out.line(format_args!("stats hide-version"));
        out.line(format_args!("stats show-node"));
        out.line(format_args!("stats show-legends"));
        out.line(format_args!("stats refresh 5s"));
    }
}

const HEAD: &str = "\
# HAProxy 2.6 or later as the ingress of an onion service.
# Written by `tunica render haproxy` from tunica.toml; make another one rather than edit this one.
#
#   check     haproxy -c -f FILE
#   start     haproxy -W -f FILE, which is what Debian's unit does
#   reload    kill -USR2 of that process (`systemctl reload haproxy`): no connection is refused and none is cut
#
# In torrc: HiddenServiceExportCircuitID haproxy
# What tunica-front does and this does not: docs/reference/rendering.md, and what `tunica render haproxy` says beside it.
# The log and the table name circuits. Neither leaves this machine; see that it stays so.
";

/// The file as it grows.
struct Text(String);

impl Text {
    fn line(&mut self, words: fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "    {words}");
    }

    fn comment(&mut self, words: &str) {
        self.line(format_args!("# {words}"));
    }

    fn blank(&mut self) {
        self.0.push('\n');
    }

    fn comment_before_section(&mut self, words: &str) {
        let _ = write!(self.0, "\n# {words}");
    }

    fn section(&mut self, words: &str) {
        let _ = writeln!(self.0, "\n{words}");
    }
}

/// What stands in the place of a refusal where a limit is a shadow.
fn would_refuse(word: &str) -> String {
    format!("http-request set-var(txn.would_refuse,ifnotset) str({word})")
}

/// A name of an account or group, as HAProxy reads it.
fn name<'t>(what: &'static str, text: &'t str) -> Result<&'t str, RenderError> {
    plain(what, text, "-_.")
}

/// A file's path as HAProxy reads it.
fn path<'t>(what: &'static str, file: &'t Path) -> Result<&'t str, RenderError> {
    plain(what, file.to_str().unwrap_or("a name that is not UTF-8"), "-_./+")
}

fn plain<'t>(what: &'static str, text: &'t str, allowed: &'static str) -> Result<&'t str, RenderError> {
    let is_plain = |sign: char| sign.is_ascii_alphanumeric() || allowed.contains(sign);
    if !text.is_empty() && text.chars().all(is_plain) {
        return Ok(text);
    }
    Err(RenderError::Unwritable { what, text: text.to_owned(), allowed })
}

/// A path of a URL in quotes within which nothing but the quote has a meaning.
fn quoted(what: &'static str, text: &str) -> Result<String, RenderError> {
    if text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\'') {
        return Ok(format!("'{text}'"));
    }
    let allowed = "any sign of ASCII but ' and blanks";
    Err(RenderError::Unwritable { what, text: text.to_owned(), allowed })
}
