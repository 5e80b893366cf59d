//! Asking the live program what it would do, without touching its state.
//!
//! `BPF_PROG_TEST_RUN` changes maps like a real packet would. So the same object is loaded once more with small maps of
//! its own, and everything the program can consult about one source is copied into them: policy, heartbeat, ban row, allow-list
//! answer, own-address row, sketch cells. The copy has the live program's tag, so it is the same code.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use aya::{
    Ebpf,
    programs::{ProgramError, TestRun, TestRunOptions},
};
use thiserror::Error;
use tunica_common::{
    event::tally_slot,
    keys::{AddressBytes, SourceKey, WIDTH_V6_NET},
    policy::port_key,
    verdict::{Action, Verdict},
};

use super::{
    object::{self, LoadError, Sizes},
    tables::{TableError, Tables, Total},
};

/// Why a probe could not be run.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// The copy could not be loaded.
    #[error("cannot load a copy of the shield: {0}")]
    Load(#[from] LoadError),
    /// A map could not be read or written.
    #[error("cannot copy the shield's state: {0}")]
    Table(#[from] TableError),
    /// The kernel refused to run the packet.
    #[error("the kernel did not run the probe: {0}")]
    Run(#[from] ProgramError),
    /// The program ran but counted nothing.
    #[error(
        "the program counted the probe under no verdict this daemon knows; program and daemon are of different versions"
    )]
    Uncounted,
}

/// Table sizes of a copy, which holds rows of one source. The program's code does not depend on them.
pub const SIZES: Sizes = Sizes { bans: 1, nets: 1, allow: 1 };

/// Where probes go if this host has no address of its own for them: an address of TEST-NET-1 (RFC 5737).
const NOWHERE_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The same, an address of the documentation prefix (RFC 3849).
const NOWHERE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
/// TCP's number in the IP header.
const TCP: u8 = 6;

/// Where the copy is kept from one question to the next: verifying the program again would take a third of a second.
#[derive(Default)]
pub struct Probe(Option<Copy>);

impl Probe {
    /// A copy that holds everything that matters for these packets, and nothing else.
    ///
    /// # Errors
    /// [`ProbeError`]; the live shield is only read.
    pub fn aim(&mut self, live: &Tables, about: About) -> Result<&mut Copy, ProbeError> {
        // Taken out, so that a copy which could not be filled whole is not used again.
        let mut copy = match self.0.take() {
            Some(copy) if copy.tables.secret() == live.secret() => copy,
            Some(_) | None => Copy::load(live.secret())?,
        };
        copy.fill(live, about)?;
        Ok(self.0.insert(copy))
    }
}

/// A private copy of the shield.
pub struct Copy {
    ebpf: Ebpf,
    tables: Tables,
    totals: Vec<Total>,
    /// What the packet before came to. Packets in a row mostly come to the same.
    last: Option<(Verdict, Action)>,
    /// Whose rows the tables hold.
    filled: Option<About>,
}

/// Which packets are asked about.
#[derive(Clone, Copy)]
pub struct About {
    /// Their source.
    pub address: AddressBytes,
    /// What the source counts by.
    pub key: SourceKey,
    /// Where they go, which counts as an address of this host.
    pub destination: AddressBytes,
    /// Their TCP port there.
    pub port: u16,
}

/// Where probes from `source` go: to the address of this host that somebody listens on, since the program asks the kernel
/// for a listener; else to any address of this host, and without one to an address that is set aside for documentation.
///
/// Never to `source` itself, which would be another question.
pub fn destination(source: IpAddr, own: &BTreeSet<IpAddr>, listening: &BTreeSet<IpAddr>) -> IpAddr {
    let is_of_family = |address: &&IpAddr| address.is_ipv4() == source.is_ipv4() && **address != source;
    let is_reachable = |address: &&IpAddr| {
        let is_link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
        !address.is_loopback() && !address.is_unspecified() && !is_link_local
    };
    let candidates = || own.iter().filter(is_of_family).filter(is_reachable);
    let listener = candidates().find(|address| listening.contains(address));
    let nowhere = match source {
        IpAddr::V4(_) => NOWHERE_V4.into(),
        IpAddr::V6(_) => NOWHERE_V6.into(),
    };
    listener.or_else(|| candidates().next()).copied().unwrap_or(nowhere)
}

impl Copy {
    fn load(secret: [u64; 2]) -> Result<Self, ProbeError> {
        let mut ebpf = object::load(SIZES, None)?;
        let tables = Tables::take(&mut ebpf, secret)?;
        let totals = tables.totals()?;
        Ok(Self { ebpf, tables, totals, last: None, filled: None })
    }

    /// Replaces what the tables hold by what `live` holds for these packets.
    fn fill(&mut self, live: &Tables, about: About) -> Result<(), ProbeError> {
        let tables = &mut self.tables;
        if let Some(before) = self.filled.replace(about) {
            tables.remove_ban(&before.key)?;
            tables.remove_net((128, before.address))?;
            tables.remove_allow((128, before.address))?;
            tables.remove_own(before.address)?;
            tables.remove_own(before.destination)?;
            tables.remove_port(port_key(TCP, before.port))?;
        }
        let About { address, key, destination, port } = about;
        tables.beat(live.last_beat()?)?;
        if let Some(ban) = live.ban(&key)? {
            tables.set_ban(&key, &ban)?;
        }
        if let Some(ban) = live.net_of(address)? {
            tables.set_net((128, address), &ban)?;
        }
        if let Some(entry) = live.allow_of(address)? {
            tables.set_allow((128, address), &entry)?;
        }
        if live.is_own(address)? {
            tables.add_own(address)?;
        }
        tables.add_own(destination)?;
        if let Some(rule) = live.ports()?.get(&port_key(TCP, port)) {
            tables.set_port(port_key(TCP, port), rule)?;
        }
        tables.set_port_state(port, &live.port_state(port)?)?;
        tables.set_trickle(port, destination, live.trickle(port, destination)?)?;
        tables.set_host_state(&live.host_state()?)?;
        if key.width == WIDTH_V6_NET {
            for (width, state) in live.networks_of(key.word())? {
                tables.set_network(width, &state)?;
            }
        }
        // All cells of the source are written, so what other sources left in the sketch is never read.
        for key in counted_keys(key) {
            tables.set_cells(&key, &live.cells(&key)?)?;
        }
        let mut policy = live.policy()?;
        policy.own_filter |= tables.own_filter();
        tables.swap_policy_at_rest(&policy)?;
        Ok(())
    }

    /// Runs one frame through the copy and says what became of it.
    ///
    /// # Errors
    /// [`ProbeError`].
    pub fn run(&mut self, frame: &[u8]) -> Result<(Verdict, Action), ProbeError> {
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        object::program(&mut self.ebpf)?.test_run(options)?;
        if let Some(last) = self.last
            && self.is_counted(last)?
        {
            return Ok(last);
        }
        for verdict in Verdict::ALL {
            for action in Action::ALL {
                if self.is_counted((*verdict, action))? {
                    self.last = Some((*verdict, action));
                    return Ok((*verdict, action));
                }
            }
        }
        Err(ProbeError::Uncounted)
    }

    /// Whether packets were counted so since the last look at it.
    fn is_counted(&mut self, (verdict, action): (Verdict, Action)) -> Result<bool, ProbeError> {
        let slot = tally_slot(verdict, action);
        let now = self.tables.total(slot)?;
        let Some(before) = self.totals.get_mut(slot as usize) else {
            return Ok(false);
        };
        let is_counted = now.packets > before.packets;
        *before = now;
        Ok(is_counted)
    }
}

/// What packets of a source can be counted by: the source, and the larger networks that may share a limit.
fn counted_keys(key: SourceKey) -> impl Iterator<Item = SourceKey> {
    let [a, b, c, d, e, f, g, _] = key.prefix;
    let larger = [
        SourceKey { prefix: [a, b, c, d, e, f, g, 0], width: 56 },
        SourceKey { prefix: [a, b, c, d, e, f, 0, 0], width: 48 },
    ];
    std::iter::once(key).chain(larger.into_iter().filter(move |_| key.width == WIDTH_V6_NET))
}

/// An Ethernet frame with a TCP SYN from `source` to port `port` of `destination`, as [`destination`] gives it.
///
/// Checksums are left zero: the shield reads none.
pub fn syn(source: IpAddr, source_port: u16, destination: IpAddr, port: u16) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            frame.extend([0x08, 0x00, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0]);
            frame.extend([source.octets(), destination.octets()].as_flattened());
        }
        (source, destination) => {
            let v6 = |address: IpAddr| match address {
                IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                IpAddr::V6(v6) => v6.octets(),
            };
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, 6, 64]);
            frame.extend([v6(source), v6(destination)].as_flattened());
        }
    }
    frame.extend(source_port.to_be_bytes());
    frame.extend(port.to_be_bytes());
    frame.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_go_where_somebody_listens() {
        let set = |addresses: &[&str]| addresses.iter().map(|text| text.parse().unwrap()).collect();
        let own = ["127.0.0.1", "10.0.0.1", "10.0.0.2", "::1", "fe80::1", "2001:db8:5::1"];
        for (source, own, listening, expected) in [
            ("203.0.113.9", &own[..], &["10.0.0.2"][..], "10.0.0.2"),
            ("203.0.113.9", &own, &["10.0.0.2", "2001:db8:5::1"], "10.0.0.2"),
            // A listener on all addresses, on loopback alone, or none.
            ("203.0.113.9", &own, &["0.0.0.0"], "10.0.0.1"),
            ("203.0.113.9", &own, &["127.0.0.1"], "10.0.0.1"),
            ("203.0.113.9", &own, &[], "10.0.0.1"),
            ("2001:db8::9", &own, &["10.0.0.2"], "2001:db8:5::1"),
            // Not to itself.
            ("10.0.0.1", &own, &["10.0.0.1"], "10.0.0.2"),
            ("2001:db8:5::1", &own, &[], "2001:db8::1"),
            ("203.0.113.9", &own[..1], &[], "192.0.2.1"),
        ] {
            let found = destination(source.parse().unwrap(), &set(own), &set(listening));
            assert_eq!(found.to_string(), expected, "{source} {listening:?}");
        }
    }
}
