//! The demo's stage: a host, its visitors, its attackers, each in a network namespace, joined by veth pairs.
//!
//! ```text
//! client ── eth0 ═══ client0 ── host ── attack0 ═══ eth0 ── attackers
//!           10.77.1.2   10.77.1.1   10.77.2.1   10.77.2.2
//!           fd77:1::2   fd77:1::1   fd77:2::1   fd77:2::2
//! ```
//!
//! The service is at 10.77.0.1 and fd77::1, addresses of the host's loopback. The host's default routes lead to the
//! attackers, so answers to forged sources leave the host as they would towards the Internet, and end there: nobody
//! forwards them.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsFd, OwnedFd},
};

use anyhow::{Context, Result};
use nix::net::if_::if_nametoindex;

use crate::{
    client::Visitors,
    connections::{self, Connections},
    flood::{self, Flood, Pattern},
    netns::{End, Namespace, join, mac_text},
    report::Act,
    sys::bpf,
};

/// The service that visitors want and attackers attack.
pub const SERVICE: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 1), 8080));

/// The service over IPv6.
pub const SERVICE_V6: SocketAddr =
    SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1), 8080, 0, 0));

/// The host's interface towards the visitors.
pub const CLIENT_SIDE: &str = "client0";

/// The host's interface towards the attackers.
pub const ATTACK_SIDE: &str = "attack0";

/// The attackers' interface.
pub const ATTACKERS_INTERFACE: &str = FAR_END;

/// The far end of both pairs.
const FAR_END: &str = "eth0";

const CLIENT_SIDE_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 1, 2];
const ATTACKERS_MAC: [u8; 6] = [2, 0, 0, 0, 2, 2];
const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 2, 1];

/// Visitors: 20, none faster than eight visits a second, which is below the default limit of ten for each source.
pub const VISITORS: Visitors = Visitors {
    count: 20,
    first: IpAddr::V4(Ipv4Addr::new(10, 77, 1, 10)),
    service: SERVICE,
    think_milliseconds: (125, 175),
};

/// The same visitors over IPv6.
pub const VISITORS_V6: Visitors = Visitors {
    first: IpAddr::V6(Ipv6Addr::new(0xfd77, 1, 0, 10, 0, 0, 0, 1)),
    service: SERVICE_V6,
    ..VISITORS
};

/// Those who attack by real connections: each ten times faster than the default limit of ten a second.
pub const CONNECTIONS: Connections =
    Connections { sources: 64, first: Ipv4Addr::new(192, 0, 2, 1), rate: 100, service: SERVICE };

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
            End { namespace: &host, interface: CLIENT_SIDE, mac: CLIENT_SIDE_MAC, address: "10.77.1.1/24" },
            End { namespace: &client, interface: FAR_END, mac: CLIENT_MAC, address: "10.77.1.2/24" },
        )?;
        join(
            End { namespace: &host, interface: ATTACK_SIDE, mac: HOST_MAC, address: "10.77.2.1/24" },
            End { namespace: &attackers, interface: FAR_END, mac: ATTACKERS_MAC, address: "10.77.2.2/24" },
        )?;
        host.ip(&["address", "add", &format!("{}/32", SERVICE.ip()), "dev", "lo"])?;
        for number in 0..u32::from(VISITORS.count) {
            let address = VISITORS.address(number);
            client.ip(&["address", "add", &format!("{address}/24"), "dev", FAR_END])?;
        }
        client.ip(&["route", "add", "default", "via", "10.77.1.1"])?;
        for number in 0..u32::from(CONNECTIONS.sources) {
            let address = CONNECTIONS.address(number);
            attackers.ip(&["address", "add", &format!("{address}/32"), "dev", FAR_END])?;
        }
        attackers.ip(&["route", "add", &format!("{}/32", SERVICE.ip()), "via", "10.77.2.1"])?;
        // Fixed neighbours, so that no address resolution takes place in the middle of a flood.
        neighbour(&host, ATTACK_SIDE, "10.77.2.2", ATTACKERS_MAC)?;
        neighbour(&attackers, FAR_END, "10.77.2.1", HOST_MAC)?;
        host.ip(&["route", "add", "default", "via", "10.77.2.2"])?;
        enable_v6(&host, &client)?;
        // Attackers claim addresses that a strict reverse-path filter would refuse on this side.
        for scope in ["all", "default", ATTACK_SIDE, CLIENT_SIDE] {
            host.write_sysctl(&format!("net/ipv4/conf/{scope}/rp_filter"), "0")?;
        }
        let receivers = [passing(&client)?, passing(&attackers)?];
        Ok(Self { host, client, attackers, _receivers: receivers })
    }

    /// The flood of `act`, if it has one, with its rate in packets a second.
    pub fn attack(act: Act) -> Option<Flood> {
        let (pattern, rate) = match act {
            Act::Quiet | Act::Connections => return None,
            Act::Forged | Act::Forged6 => (Pattern::ForgedSyn, 100_000),
            Act::Fixed => (Pattern::FixedSyn { sources: 64 }, 100_000),
            Act::Scan => (Pattern::Scan, 50_000),
            Act::Ack | Act::Ack6 => (Pattern::ForgedAck, 100_000),
            Act::Closed => (Pattern::Closed, 50_000),
            Act::Icmp => (Pattern::ForgedEcho, 100_000),
        };
        let macs = (ATTACKERS_MAC, HOST_MAC);
        Some(Flood { pattern, rate, macs, victim: Self::visitors(act).service, seed: 0x7475_6e69_6361 })
    }

    /// The visitors of `act`, who know the service by the address that is attacked.
    pub const fn visitors(act: Act) -> Visitors {
        if act.is_v6() { VISITORS_V6 } else { VISITORS }
    }

    /// Starts the attack of `act`, if it has one.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start_attack(&self, act: Act) -> Result<Option<Attack>> {
        if act == Act::Connections {
            return Ok(Some(Attack::Connections(CONNECTIONS.start(&self.attackers)?)));
        }
        let flood = Self::attack(act).map(|flood| flood.start(&self.attackers, ATTACKERS_INTERFACE));
        Ok(flood.transpose()?.map(Attack::Flood))
    }
}

/// An attack that runs, and ends when it is dropped.
#[derive(Debug)]
pub enum Attack {
    /// Frames.
    Flood(flood::Running),
    /// Real connections.
    Connections(connections::Running),
}

impl Attack {
    /// Ends the attack.
    ///
    /// # Errors
    /// What stopped it early.
    pub fn stop(self) -> Result<()> {
        match self {
            Self::Flood(flood) => flood.stop()?,
            Self::Connections(connections) => connections.stop()?,
        };
        Ok(())
    }
}

/// A fixed entry of the neighbour table.
fn neighbour(namespace: &Namespace, interface: &str, address: &str, mac: [u8; 6]) -> Result<()> {
    let mac = mac_text(mac);
    namespace.ip(&["neighbour", "add", address, "lladdr", &mac, "dev", interface, "nud", "permanent"])
}

/// Gives host and visitors IPv6, without anything that speaks unasked. The attackers need none: they send whole frames,
/// and what comes back ends at their interface.
fn enable_v6(host: &Namespace, client: &Namespace) -> Result<()> {
    let sides =
        [(host, CLIENT_SIDE, CLIENT_MAC, "fd77:1::1"), (client, FAR_END, CLIENT_SIDE_MAC, "fd77:1::2")];
    for (namespace, interface, far_mac, own) in sides {
        // No link-local address either: it would be announced.
        namespace.write_sysctl(&format!("net/ipv6/conf/{interface}/addr_gen_mode"), "1")?;
        namespace.write_sysctl(&format!("net/ipv6/conf/{interface}/accept_ra"), "0")?;
        namespace.write_sysctl(&format!("net/ipv6/conf/{interface}/disable_ipv6"), "0")?;
        namespace.ip(&["address", "add", &format!("{own}/64"), "dev", interface, "nodad"])?;
        let far = if own == "fd77:1::1" { "fd77:1::2" } else { "fd77:1::1" };
        neighbour(namespace, interface, far, far_mac)?;
    }
    for number in 0..u32::from(VISITORS_V6.count) {
        let address = VISITORS_V6.address(number);
        client.ip(&["address", "add", &format!("{address}/128"), "dev", FAR_END, "nodad"])?;
    }
    client.ip(&["-6", "route", "add", "default", "via", "fd77:1::1", "dev", FAR_END])?;

    host.write_sysctl(&format!("net/ipv6/conf/{ATTACK_SIDE}/addr_gen_mode"), "1")?;
    host.write_sysctl(&format!("net/ipv6/conf/{ATTACK_SIDE}/accept_ra"), "0")?;
    for interface in ["lo", ATTACK_SIDE] {
        host.write_sysctl(&format!("net/ipv6/conf/{interface}/disable_ipv6"), "0")?;
    }
    host.ip(&["address", "add", &format!("{}/128", SERVICE_V6.ip()), "dev", "lo", "nodad"])?;
    host.ip(&["address", "add", "fd77:2::1/64", "dev", ATTACK_SIDE, "nodad"])?;
    neighbour(host, ATTACK_SIDE, "fd77:2::2", ATTACKERS_MAC)?;
    host.ip(&["-6", "route", "add", "fd77:1::/48", "via", "fd77:1::2", "dev", CLIENT_SIDE])?;
    host.ip(&["-6", "route", "add", "default", "via", "fd77:2::2", "dev", ATTACK_SIDE])
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
