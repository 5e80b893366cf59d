//! `render torrc`: the lines of tor's configuration that lead an onion service to the ingress; needs no daemon.

use std::{num::NonZeroU16, path::PathBuf};

use clap::{Args, builder::RangedI64ValueParser};
use tunica_config::{Config, Place};
use tunica_onion::torrc::{Service, Size, Target};

use crate::{Failure, exit::Exit, note, say};

/// What the configuration of the daemon does not say.
#[derive(Debug, Args)]
pub(super) struct Torrc {
    /// Tor's keys
    #[arg(long, value_name = "PATH", default_value = "/var/lib/tor/onion_service")]
    service_dir: PathBuf,
    /// The port that clients see
    #[arg(long, value_name = "PORT", default_value = "80")]
    hs_port: NonZeroU16,
    /// Tor's puzzles for many clients
    #[arg(long)]
    large: bool,
    /// Relays that introduce clients, 3 to 20
    #[arg(long, value_name = "N", default_value_t = Service::USUAL_INTRO_POINTS, value_parser = intro_points())]
    intro_points: u8,
    /// One stream too many ends its circuit
    #[arg(long)]
    end_full_circuits: bool,
    /// This tor is a relay as well
    #[arg(long)]
    relay: bool,
}

fn intro_points() -> RangedI64ValueParser<u8> {
    let (least, most) = (*Service::INTRO_POINTS.start(), *Service::INTRO_POINTS.end());
    RangedI64ValueParser::new().range(i64::from(least)..=i64::from(most))
}

impl Torrc {
    /// Prints the lines on standard output and what has to be known of them on standard error.
    pub(super) fn run(self, config: &Config) -> Result<Exit, Failure> {
        if config.arti.enabled {
            return Err(Failure::new(
                Exit::BadConfig,
                "arti.enabled is true, so tunica-front hosts the onion service and takes nothing from a tor process: with these \
                 lines tor would publish a service that never answers; see \"Without C tor\" in docs/guide.md, or set arti.enabled \
                 to false",
            ));
        }
        let ingress = &config.ingress;
        // HAProxy is told of by its own socket; it listens where tunica-front would.
        let is_haproxy = config.haproxy.socket.is_some();
        let service = Service {
            folder: self.service_dir,
            virtual_port: self.hs_port,
            target: match config.ingress_place() {
                Place::Unix(socket) => Target::Unix(socket),
                Place::Tcp(address) => Target::Tcp(address),
            },
            size: if self.large { Size::Large } else { Size::Usual },
            intro_points: self.intro_points,
            ends_full_circuits: self.end_full_circuits,
            is_relay: self.relay,
        };
        say(&service.render().map_err(|error| Failure::new(Exit::BadConfig, error.to_string()))?)?;
        if !ingress.enabled && !is_haproxy {
            note(
                "ingress.enabled is false, so nothing listens there yet; set it and restart tunicad before tor has these lines",
            );
        }
        if !self.relay {
            note(
                "DoSCircuitCreation…, DoSConnection… and DoSRefuseSingleHopClientRendezvous act on relays alone and are left out; \
                 --relay adds them",
            );
        }
        Ok(Exit::Done)
    }
}
