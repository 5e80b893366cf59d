//! The demo's stage: a host, its visitors, its attackers, each in a network namespace, joined by veth pairs.
//!
//! ```text
//! client ── eth0 ═══ client0 ── host ── attack0 ═══ eth0 ── attackers
//!           10.77.1.2   10.77.1.1   10.77.2.1   10.77.2.2
//! ```
//!
//! The service is at 10.77.0.1, an address of the host's loopback. The host's default route leads to the attackers, so
//! answers to forged sources leave the host as they would towards the Internet, and end there: nobody forwards them.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::{AsFd, OwnedFd},
};

use anyhow::{Context, Result};
use nix::net::if_::if_nametoindex;

use crate::{
    client::Visitors,
    flood::{Flood, Pattern},
    netns::{End, Namespace, join, mac_text},
    report::Act,
    sys::bpf,
};

/// The service that visitors want and attackers attack.
pub const SERVICE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 1), 8080);

/// The host's interface towards the visitors.
pub const CLIENT_SIDE: &str = "client0";

/// The host's interface towards the attackers.
pub const ATTACK_SIDE: &str = "attack0";

/// The attackers' interface.
pub const ATTACKERS_INTERFACE: &str = FAR_END;

/// The far end of both pairs.
const FAR_END: &str = "eth0";

const ATTACKERS_MAC: [u8; 6] = [2, 0, 0, 0, 2, 2];
const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 2, 1];

/// Visitors: 20, none faster than eight visits a second, which is below the default limit of ten for each source.
pub const VISITORS: Visitors = Visitors {
    count: 20,
    first: Ipv4Addr::new(10, 77, 1, 10),
    service: SERVICE,
    think_milliseconds: (125, 175),
};

/// The namespaces. Dropping the stage removes them.
#[derive(Debug)]
pub struct Stage {
    /// The defended machine.
    pub host: Namespace,
    /// Where the visitors are.
    pub client: Namespace,
    /// Where the attackers are.
    pub attackers: Namespace,
    /// Programs on the far ends. A veth drops what an XDP program sends back unless its peer has one, too.
    _receivers: [OwnedFd; 2],
}

impl Stage {
    /// Makes the namespaces of this process.
    ///
    /// # Errors
    /// Says which command failed.
    pub fn build(purpose: &str) -> Result<Self> {
        let host = Namespace::create(purpose, "host")?;
        let client = Namespace::create(purpose, "client")?;
        let attackers = Namespace::create(purpose, "attackers")?;
        join(
            End {
                namespace: &host,
                interface: CLIENT_SIDE,
                mac: [2, 0, 0, 0, 1, 1],
                address: "10.77.1.1/24",
            },
            End { namespace: &client, interface: FAR_END, mac: [2, 0, 0, 0, 1, 2], address: "10.77.1.2/24" },
        )?;
        join(
            End { namespace: &host, interface: ATTACK_SIDE, mac: HOST_MAC, address: "10.77.2.1/24" },
            End { namespace: &attackers, interface: FAR_END, mac: ATTACKERS_MAC, address: "10.77.2.2/24" },
        )?;
        host.ip(&["address", "add", &format!("{}/32", SERVICE.ip()), "dev", "lo"])?;
        for number in 0..u32::from(VISITORS.count) {
            let address = Ipv4Addr::from_bits(VISITORS.first.to_bits() + number);
            client.ip(&["address", "add", &format!("{address}/24"), "dev", FAR_END])?;
        }
        client.ip(&["route", "add", "default", "via", "10.77.1.1"])?;
        // A fixed neighbour, so that no address resolution takes place in the middle of a flood.
        let mac = mac_text(ATTACKERS_MAC);
        host.ip(&["neighbour", "add", "10.77.2.2", "lladdr", &mac, "dev", ATTACK_SIDE, "nud", "permanent"])?;
        host.ip(&["route", "add", "default", "via", "10.77.2.2"])?;
        // Attackers claim addresses that a strict reverse-path filter would refuse on this side.
        for scope in ["all", "default", ATTACK_SIDE, CLIENT_SIDE] {
            host.write_sysctl(&format!("net/ipv4/conf/{scope}/rp_filter"), "0")?;
        }
        let receivers = [passing(&client)?, passing(&attackers)?];
        Ok(Self { host, client, attackers, _receivers: receivers })
    }

    /// The attack of `act`, if it has one, with its rate in packets a second.
    pub fn attack(act: Act) -> Option<Flood> {
        let (pattern, rate) = match act {
            Act::Quiet => return None,
            Act::Forged => (Pattern::ForgedSyn, 100_000),
            Act::Fixed => (Pattern::FixedSyn { sources: 64 }, 100_000),
            Act::Scan => (Pattern::Scan, 50_000),
        };
        let victim = (*SERVICE.ip(), SERVICE.port());
        Some(Flood { pattern, rate, macs: (ATTACKERS_MAC, HOST_MAC), victim, seed: 0x7475_6e69_6361 })
    }
}

/// Attaches a program that passes everything to the far end in `namespace`.
fn passing(namespace: &Namespace) -> Result<OwnedFd> {
    // r0 = XDP_PASS; exit
    const PASS: [u64; 2] = [0x0000_0002_0000_00b7, 0x95];
    namespace.run(|| {
        let program = bpf::load_xdp(&PASS, true).context("loading a program that passes")?;
        let interface = if_nametoindex(FAR_END).context("looking for the far end")?;
        bpf::attach_xdp(program.as_fd(), interface).context("attaching a program that passes")
    })
}
