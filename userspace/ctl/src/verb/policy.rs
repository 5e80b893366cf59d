//! `render`: the configured policy in another program's words; needs no daemon.

use std::num::NonZeroU16;

use clap::{Args, Subcommand};
use tunica_config::{Config, ReadFileError};
use tunica_core::{
    limits::{HostFacts, each_second},
    time::Monotime,
};
use tunica_nft::{DIFFERENCES, Plan, SOCKS_PACE, allowing, script};

use super::{haproxy::Haproxy, torrc::Torrc};
use crate::{Failure, Global, exit::Exit, note, say};

/// The unit as it is shipped.
const UNIT: &str = include_str!("../../../../deploy/tunicad.service");

/// See [`super::Verb::Render`].
#[derive(Debug, Args)]
pub(crate) struct Render {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// JSON for `nft -j -f -`; names no table but our own, `inet tunica`
    Nft(Ports),
    /// A shell script: start, stop, status, dry-run; reads no configuration
    Iptables(Ports),
    /// A file for /etc/sysctl.d; reads no configuration
    Sysctl,
    /// The unit of tunicad for systemd
    Systemd(Unit),
    /// HAProxy's configuration, from the keys of ingress and circuits
    Haproxy(Haproxy),
    /// Lines for torrc: an onion service that leads to the ingress
    Torrc(Torrc),
}

/// What of a policy can be said on the command line.
#[derive(Clone, Copy, Debug, Args)]
struct Ports {
    /// SYNs a second of one port; burst threefold
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    syn_rate: Option<u32>,
    /// Loopback port: 20 connections per 10 s
    #[arg(long, value_name = "PORT")]
    socks_port: Option<NonZeroU16>,
    /// Onion virtual port; the ingress port is meant
    #[arg(long, value_name = "PORT")]
    hs_port: Option<NonZeroU16>,
    /// Loopback port of --hs-port
    #[arg(long, value_name = "PORT", default_value = "10000", requires = "hs_port")]
    ingress_port: NonZeroU16,
    /// Drop what connection tracking calls invalid
    #[arg(long)]
    drop_invalid: bool,
}

/// Where things are.
#[derive(Debug, Args)]
struct Unit {
    /// Folder of tunica and tunicad
    #[arg(long, value_name = "PATH", default_value = "/usr/bin")]
    bin_dir: String,
}

impl Ports {
    /// Says what becomes of the virtual port.
    fn explain(&self) {
        if let Some(port) = self.hs_port {
            note(&format!(
                "--hs-port {port}: no packet ever arrives at an onion service's virtual port, because clients reach it \
                 through tor's circuits; tor connects to the ingress port {} on loopback, and that port is limited",
                self.ingress_port
            ));
        }
    }

    fn ingress(&self) -> Option<NonZeroU16> {
        self.hs_port.map(|_| self.ingress_port)
    }
}

impl Render {
    /// Prints the text on standard output and what has to be known of it on standard error.
    ///
    /// Bans and the operator's allow entries are in the daemon's ledger and not in the file, so they are left out.
    pub(super) fn run(self, global: &Global) -> Result<Exit, Failure> {
        match self.what {
            What::Nft(ports) => nft(global, &ports),
            What::Iptables(ports) => {
                ports.explain();
                say(&script::iptables(&script::Options {
                    syn_rate: ports.syn_rate.unwrap_or(script::Options::default().syn_rate),
                    socks_port: ports.socks_port,
                    ingress_port: ports.ingress(),
                    drop_invalid: ports.drop_invalid,
                }))?;
                Ok(Exit::Done)
            }
            What::Haproxy(options) => options.run(&read(global)?),
            What::Torrc(options) => options.run(&read(global)?),
            What::Sysctl => say(script::sysctl()).map(|()| Exit::Done),
            What::Systemd(paths) => {
                let unit = UNIT
                    .replace("/usr/bin/tunica", &format!("{}/tunica", paths.bin_dir.trim_end_matches('/')));
                let config = global.config_or_default().display().to_string();
                say(&unit.replace(tunica_config::DEFAULT_PATH, &config))?;
                Ok(Exit::Done)
            }
        }
    }
}

fn nft(global: &Global, ports: &Ports) -> Result<Exit, Failure> {
    let config = read(global)?;
    let mut settings = config.settings().map_err(|error| Failure::new(Exit::BadConfig, error.to_string()))?;
    let budget = |count: u32| each_second(count, count.saturating_mul(3));
    if let Some(count) = ports.syn_rate {
        settings.port_syn = budget(count);
    }
    let socks = ports.socks_port.map(|port| (port, SOCKS_PACE));
    let ingress = ports.ingress().zip(settings.port_syn);
    let loopback: Vec<_> = socks.into_iter().chain(ingress).collect();
    let plan = Plan {
        interfaces: &config.shield.interfaces,
        settings: &settings,
        ephemeral_low: HostFacts::default().ephemeral_low,
        translates: false,
        drop_invalid: ports.drop_invalid || config.shield.nft.drop_invalid,
        loopback: &loopback,
    };
    let objects = plan.transaction(&allowing(&settings.config_allow), Monotime(0));
    let text = serde_json::to_string_pretty(&objects)
        .map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
    say(&format!("{text}\n"))?;
    ports.explain();
    for difference in DIFFERENCES {
        note(&format!("differs from the shield: {difference}\n"));
    }
    Ok(Exit::Done)
}

/// The configuration.
///
/// # Errors
/// Why there is none.
pub(super) fn read(global: &Global) -> Result<Config, Failure> {
    match tunica_config::read_file(&global.config_or_default()) {
        Ok(config) => Ok(config),
        Err(ReadFileError::Problems(problems)) => Err(Failure::new(Exit::BadConfig, problems.to_string())),
        Err(error @ ReadFileError::Open { .. }) => Err(Failure::new(Exit::NotFound, error.to_string())),
    }
}
