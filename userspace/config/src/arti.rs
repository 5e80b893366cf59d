//! `[arti]`: an onion service that `tunica-front` hosts itself.

use std::{
    num::{NonZeroU16, NonZeroU32},
    path::PathBuf,
};

/// `[arti]`: an onion service that `tunica-front` hosts itself, with Arti instead of C tor.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Arti {
    /// `enabled`; `false` by default.
    pub enabled: bool,
    /// `state_dir`: where Arti keeps the service's keys and what it knows of the Tor network, absolute;
    /// /var/lib/tunica-front/arti by default.
    pub state_dir: PathBuf,
    /// `key_file`: C tor's `hs_ed25519_secret_key`, absolute; unset: a key of Arti's own.
    pub key_file: Option<PathBuf>,
    /// `ports`: 1 to 64 ports of the onion address; 80 by default.
    pub ports: Vec<NonZeroU16>,
    /// `num_intro_points`: 3 to 20; 3 by default.
    pub num_intro_points: NonZeroU32,
    /// `intro_per_second`: introductions that an introduction point passes on; `None`: what the network's consensus says.
    /// 50 by default.
    pub intro_per_second: Option<NonZeroU32>,
    /// `intro_burst`: introductions at once, at least as many as a second; 100 by default.
    pub intro_burst: NonZeroU32,
    /// `max_streams_per_circuit`; 100 by default.
    pub max_streams_per_circuit: NonZeroU32,
    /// `clients_dir`: a directory of `NAME.auth` files as C tor has them, absolute; unset: everybody may find the service.
    pub clients_dir: Option<PathBuf>,
    /// `pow`: Tor's own proof of work; `false` by default.
    pub pow: bool,
    /// `pow_queue_rate`: clients that are met in a second where there is proof of work; 25 by default.
    pub pow_queue_rate: NonZeroU32,
    /// `pow_queue_burst`: clients that are met at once, at least as many as in a second; 50 by default.
    pub pow_queue_burst: NonZeroU32,
    /// `network_file`: settings of Arti for another Tor network than the public one, absolute; unset: the public one.
    pub network_file: Option<PathBuf>,
}
