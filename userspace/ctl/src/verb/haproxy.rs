//! `render haproxy`: HAProxy's configuration from `[ingress]` and `[circuits]`; needs no daemon.

use std::{net::SocketAddr, path::PathBuf, str::FromStr};

use clap::Args;
use tunica_config::{Config, Place, Protocol};
use tunica_onion::{
    haproxy_codec::TableName,
    haproxy_config::{Backend, HaproxyConfig, HttpRules, Peer},
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
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9000")]
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
        let wanted = self.wanted(config).map_err(bad)?;
        say(&wanted.render().map_err(|error| bad(error.to_string()))?)?;
        if config.haproxy.socket.is_none() {
            note(&format!(
                "haproxy.socket is not set, so tunicad will not follow this HAProxy; write socket = \"{USUAL_SOCKET}\" below \
                 [haproxy] and restart tunicad"
            ));
        }
        for difference in DIFFERENCES {
            note(&format!("differs from tunica-front: {difference}"));
        }
        Ok(Exit::Done)
    }

    fn wanted(self, config: &Config) -> Result<HaproxyConfig, String> {
        let circuits = config.circuit_settings().map_err(|error| error.to_string())?;
        let ingress = &config.ingress;
        let number = |number: std::num::NonZeroU8| u32::from(number.get());
        let http = HttpRules {
            rates: circuits.requests.map(|rates| (rates.slow.get().into(), rates.deny.get().into())),
            vip_rate: circuits.vip_rate().get().into(),
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
            connections_per_second: circuits.max_connections_per_second,
            most_open: circuits.max_concurrent_per_circuit.get().into(),
            connections_per_10_seconds: circuits.connections_per_10_seconds.map(number),
            connections_per_minute: circuits.max_per_circuit_per_minute.map(number),
            ban_threshold: number(circuits.ban_threshold),
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

/// What HAProxy has no words for.
const DIFFERENCES: [&str; 5] = [
    "refused attempts count towards the limits of connections, and violations are forgotten only with their circuit",
    "a slow body is bounded by client_seconds of silence alone, and one without a length by nothing; body_bytes counts only \
     where the request names its length",
    "a head that is too large is answered with 400, and a banned stream that has sent nothing is closed with FIN, not RST; \
     the circuit gate resets both",
    "a ban ends no request that is being served, unless tor.control is set, so that tor closes the circuit",
    "max_concurrent_connections is shared out among the backends, and those of one that is ill serve nobody",
];
