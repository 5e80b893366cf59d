//! `render haproxy`: HAProxy's configuration from `[ingress]` and `[circuits]`; needs no daemon.

use std::{net::SocketAddr, path::PathBuf, str::FromStr};

use clap::Args;
use tunica_config::{Config, HAPROXY_STATISTICS, Place, Protocol};
use tunica_core::{circuit_policy::CircuitSettings, refusal::Refusal};
use tunica_onion::{
    haproxy_codec::TableName,
    haproxy_config::{Backend, HaproxyConfig, HttpRules, Limit, Peer, RequestRates},
};

use crate::{Failure, exit::Exit, note, say};

/// Where the Runtime API's socket is unless the configuration says.
const USUAL_SOCKET: &str = "/run/haproxy/tunica.sock";

/// What the configuration of the daemon does not say.
#[derive(Debug, Args)]
pub(super) struct Haproxy {
    /// Its account; `-`: stays as started
    #[arg(long, value_name = "NAME", default_value = "haproxy")]
    user: String,
    /// Its group; `-`: stays as started
    #[arg(long, value_name = "NAME", default_value = "haproxy")]
    group: String,
    /// Folder that it locks itself in
    #[arg(long, value_name = "PATH")]
    chroot: Option<PathBuf>,
    /// Statistics page, on loopback
    #[arg(long, value_name = "ADDRESS", default_value_t = HAPROXY_STATISTICS)]
    stats: SocketAddr,
    /// NAME=ADDRESS shares the table; own one first
    #[arg(long = "peer", value_name = "PEER")]
    peers: Vec<PeerWord>,
}

/// A peer on the command line.
#[derive(Clone, Debug)]
struct PeerWord(Peer);

impl FromStr for PeerWord {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, address) = text.split_once('=').ok_or("write NAME=ADDRESS, such as a=127.0.0.1:10002")?;
        let name = TableName::new(name).map_err(|error| error.to_string())?;
        let address = address
            .parse()
            .map_err(|_| "the address must be numeric with a port, such as 127.0.0.1:10002")?;
        Ok(Self(Peer { name, address }))
    }
}

impl Haproxy {
    /// Prints the configuration on standard output and what has to be known of it on standard error.
    pub(super) fn run(self, config: &Config) -> Result<Exit, Failure> {
        let bad = |message: String| Failure::new(Exit::BadConfig, message);
        let circuits = config.circuit_settings().map_err(|error| bad(error.to_string()))?;
        let wanted = self.wanted(config, &circuits).map_err(bad)?;
        say(&wanted.render().map_err(|error| bad(error.to_string()))?)?;
        if config.haproxy.socket.is_none() {
            note(&format!(
                "haproxy.socket is not set, so tunicad will not follow this HAProxy; write socket = \"{USUAL_SOCKET}\" below \
                 [haproxy] and restart tunicad"
            ));
        }
        if config.ingress.socket.is_some() && config.tor.user.is_none() {
            note(
                "tor.user is not set, so the file of ingress.socket will be root's, and tor cannot connect to it; write \
                 user = \"debian-tor\" (or the account that your tor runs as) below [tor]",
            );
        }
        for difference in differences(config, &circuits) {
            note(&format!("differs from tunica-front: {difference}"));
        }
        Ok(Exit::Done)
    }

    fn wanted(self, config: &Config, circuits: &CircuitSettings) -> Result<HaproxyConfig, String> {
        let ingress = &config.ingress;
        let limit = |number: u32, word| Limit { number, is_shadow: circuits.shadow.contains(word) };
        let http = HttpRules {
            rates: circuits.requests.map(|rates| RequestRates {
                slow: limit(rates.slow.get().into(), Refusal::SlowLane),
                deny: limit(rates.deny.get().into(), Refusal::RequestRate),
            }),
            vip_rate: limit(circuits.vip_rate().get().into(), Refusal::VipRate),
            post_path: circuits.restricts_methods.then(|| ingress.post_path.clone()),
            health_path: ingress.health_path.clone(),
            request: ingress.request,
            keep_alive: ingress.keep_alive,
            header_bytes: ingress.header_bytes.get(),
            body_bytes: ingress.body_bytes.get(),
            maintenance_page: ingress.maintenance_page.clone(),
        };
        let named = |name: String| (name != "-").then_some(name);
        Ok(HaproxyConfig {
            listen: ingress.listen,
            socket: ingress.socket.clone(),
            tor_user: config.tor.user.clone(),
            http: match ingress.protocol {
                Protocol::Http => Some(http),
                Protocol::Tcp => None,
            },
            backends: ingress
                .backends
                .iter()
                .map(|place| match place {
                    Place::Tcp(address) => Backend::Tcp(*address),
                    Place::Unix(path) => Backend::Unix(path.clone()),
                })
                .collect(),
            is_sticky: ingress.sticky,
            health_every: ingress.health_every,
            maxconn: circuits.maxconn,
            most_served: circuits.max_concurrent_connections,
            connections_per_second: limit(circuits.max_connections_per_second.get(), Refusal::GlobalRate),
            most_open: limit(circuits.max_concurrent_per_circuit.get().into(), Refusal::TooManyOpen),
            connections_per_10_seconds: circuits
                .connections_per_10_seconds
                .map(|number| limit(number.get().into(), Refusal::ConnectionRate)),
            connections_per_minute: circuits
                .max_per_circuit_per_minute
                .map(|number| limit(number.get().into(), Refusal::CircuitRate)),
            ban_threshold: circuits.ban_threshold.get().into(),
            table_size: circuits.table_size,
            keep: circuits.reputation_life,
            queue: ingress.queue,
            connect: ingress.connect,
            client: ingress.client,
            server: ingress.server,
            table: TableName::new(&config.haproxy.table).map_err(|error| error.to_string())?,
            api: config.haproxy.socket.clone().unwrap_or_else(|| USUAL_SOCKET.into()),
            api_group: config.control.group.clone(),
            stats: self.stats,
            user: named(self.user),
            group: named(self.group),
            chroot: self.chroot,
            peers: self.peers.into_iter().map(|word| word.0).collect(),
        })
    }
}

/// What HAProxy has no words for, as far as it matters by this configuration: a sentence each.
fn differences(config: &Config, circuits: &CircuitSettings) -> Vec<String> {
    let (is_http, ingress) = (config.ingress.protocol == Protocol::Http, &config.ingress);
    let mut all = Vec::new();
    let mut tell = |is_so: bool, sentence: &str| all.extend(is_so.then(|| sentence.to_owned()));
    let in_shadow: Vec<_> = Refusal::ALL.iter().filter(|word| circuits.shadow.contains(**word)).collect();
    let (here, nowhere): (Vec<_>, Vec<_>) =
        in_shadow.into_iter().partition(|word| is_rendered(**word, is_http));
    let names = |words: Vec<&Refusal>| words.iter().map(|word| word.label()).collect::<Vec<_>>().join(", ");
    if !here.is_empty() {
        tell(
            true,
            &format!(
                "{}, in circuits.shadow: refuses and bans nobody here either, and no metric counts it; the field would_refuse \
                 of HAProxy's log names it",
                names(here)
            ),
        );
    }
    if !nowhere.is_empty() {
        tell(true, &format!("{}, in circuits.shadow: neither judged nor counted here", names(nowhere)));
    }
    tell(
        true,
        "nobody is asked for a puzzle and nobody refused for not having solved one, whatever the load: pow_… and paid_share of \
         [circuits] mean nothing here, and there is no waiting room",
    );
    tell(
        true,
        "no token is handed out or taken, be it for a puzzle, from a backend or by `tunica token`; `tunica circuit promote` \
         alone makes a VIP",
    );
    tell(
        true,
        "the load level takes nothing from a circuit's limits: `tunica threat set` and `tunica panic` act on the shield \
         alone",
    );
    let budgets = [
        (circuits.bytes.is_some(), "mebibytes_per_minute"),
        (circuits.cpu.is_some(), "cpu_milliseconds_per_minute"),
    ];
    let budgets: Vec<_> = budgets.iter().filter(|(is_set, _)| *is_set).map(|(_, key)| *key).collect();
    tell(
        !budgets.is_empty(),
        &format!("what a circuit uses up is not bounded ({} of [circuits])", budgets.join(" and ")),
    );
    tell(
        true,
        "circuits are neither examined nor closed for their age or latency: max_circuit_…, circuit_health_interval_secs and \
         rotate_hard_after_secs mean nothing here",
    );
    tell(true, "new circuits are not compared: [sybil] means nothing here");
    tell(
        true,
        "a ban lasts ban_duration_seconds each time, as bans.ladder is not climbed; without haproxy.socket, until the circuit \
         has been silent for keep_seconds",
    );
    tell(
        circuits.connections_per_10_seconds.is_some(),
        "who was tarpitted and after 10 s of quiet connects too fast again is not banned at once: that counts towards \
         ban_threshold like any other violation",
    );
    tell(
        is_http,
        "only limits of connections and the rate of requests are violations; slow or malformed heads, slow bodies and a VIP's \
         rate are refused and never counted towards ban_threshold",
    );
    tell(
        config.circuits.log_refusals,
        "circuits.log_refusals means nothing here: HAProxy's log has a line for each request that it answered, and none for a \
         stream that it reset",
    );
    tell(
        true,
        "refused attempts count towards a circuit's limits of connections, violations are forgotten only with their circuit, and \
         Retry-After is the same for everybody",
    );
    tell(
        is_http,
        "a slow body is bounded by client_seconds of silence alone, and one without a length by nothing; body_bytes counts only \
         where the request names its length",
    );
    tell(is_http, "a head that is too large is answered with 400, and so is HTTP/2");
    tell(
        true,
        "of the connections that are to be refused as many are answered or held as have room; then the newest is reset, not the \
         oldest",
    );
    tell(
        true,
        "a banned stream that has sent nothing is closed with FIN, not RST; the circuit gate resets it, where it is attached",
    );
    tell(
        config.tor.control.is_none(),
        "a ban ends no request that is being served; set tor.control, so that tor closes the circuit",
    );
    tell(
        ingress.backends.len() > 1,
        "max_concurrent_connections is shared out among the backends, and those of one that is ill serve nobody",
    );
    tell(true, "after HAProxy's start one failed health check is enough, and two in a row from then on");
    all
}

/// Whether the limit that has this word is among HAProxy's rules.
const fn is_rendered(word: Refusal, is_http: bool) -> bool {
    use Refusal::{CircuitRate, ConnectionRate, GlobalRate, RequestRate, SlowLane, TooManyOpen, VipRate};
    matches!(word, ConnectionRate | CircuitRate | TooManyOpen | GlobalRate)
        || is_http && matches!(word, RequestRate | SlowLane | VipRate)
}
