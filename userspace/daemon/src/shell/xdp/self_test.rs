//! Test connections to ports that answer with cookies, as [`tunica_core::self_test`] asks for them.
//!
//! Nothing comes from the network, and but for a listener's refusal nothing goes to it. The live program is run once with
//! a SYN (`BPF_PROG_TEST_RUN`): its answer holds the cookie and stays here. The segment that brings it back enters the
//! kernel as if the interface had received it (`BPF_F_TEST_XDP_LIVE_FRAMES`, Linux 5.18), so it walks through program, firewall
//! and stack. Whether a socket came of it, `sock_diag(7)` tells. A reset ends it at once: the service sees a connection
//! that its client gave up.

mod frame;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{LinkAttribute, LinkMessage},
    route::{RouteAttribute, RouteMessage, RouteType},
};
use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP},
    inet::{ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags},
};
use netlink_sys::protocols::{NETLINK_ROUTE, NETLINK_SOCK_DIAG};
use thiserror::Error;
use tunica_core::{
    id::{PacketSource, Prefix},
    self_test::{SOURCE_V4, SOURCE_V6, SelfTest, Untested},
    time::Monotime,
};

use self::frame::{ANSWER_BYTES, Cookie, Flow};
use super::{Run, Shield, hook, object::LoadError, tables::TableError};

/// `XDP_PASS` and `XDP_TX` in include/uapi/linux/bpf.h.
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
/// `TCP_LISTEN` in include/net/tcp_states.h.
const LISTEN: u8 = 10;
/// Most listeners of a port that are tried, each of another socket.
const MOST_LISTENERS: usize = 4;
/// Most own addresses at which listeners are looked for.
const MOST_ADDRESSES: usize = 64;
/// How often a SYN is tried: those that trickle through to the listener get no cookie.
const TRIES: usize = 4;
/// How old the last SYN that trickled through may be. The listener takes cookies for twice that long after it
/// (`TCP_SYNCOOKIE_VALID` in include/net/tcp.h).
const STAMP: Duration = Duration::from_secs(60);

/// Tests that wait for their outcome.
pub struct SelfTests {
    /// By port: what is known of each listener.
    begun: BTreeMap<u16, Vec<Probe>>,
    /// What source ports and sequence numbers follow from.
    next: u32,
}

/// How one listener was found to be.
#[derive(Clone, Copy)]
enum Probe {
    /// A socket came of its cookie.
    Took,
    /// None did.
    Missed,
    /// See [`Untested`].
    Untested(Untested),
    /// The cookie was brought back, and there is no socket yet.
    Waiting { flow: Flow, door: u32 },
}

impl SelfTests {
    /// Tests that begin with these numbers.
    pub const fn new(seed: u32) -> Self {
        Self { begun: BTreeMap::new(), next: seed }
    }

    /// Looks what came of the tests begun before, and begins those that are due. To be called every second: that is how
    /// long a socket may take to appear. `own` are the host's addresses.
    pub fn advance(
        &mut self,
        shield: &mut Shield,
        due: &[u16],
        own: &BTreeSet<IpAddr>,
        now: Monotime,
    ) -> Vec<(u16, SelfTest)> {
        let mut told = Vec::new();
        for (port, probes) in std::mem::take(&mut self.begun) {
            told.push((port, outcome(probes.into_iter().map(|probe| settle(shield, probe)))));
        }
        for port in due {
            if told.iter().any(|(told, _)| told == port) {
                continue;
            }
            let probes = self.begin(shield, *port, own, now);
            if probes.iter().any(|probe| matches!(probe, Probe::Waiting { .. })) {
                self.begun.insert(*port, probes);
            } else {
                told.push((*port, outcome(probes.into_iter())));
            }
        }
        told
    }

    /// Whether no test waits for its outcome.
    pub fn is_idle(&self) -> bool {
        self.begun.is_empty()
    }

    fn begin(&mut self, shield: &mut Shield, port: u16, own: &BTreeSet<IpAddr>, now: Monotime) -> Vec<Probe> {
        let mut probes = Vec::new();
        // Each socket once in each family, however many addresses it listens at.
        let mut listeners = BTreeMap::new();
        let mut stamped = BTreeSet::new();
        for address in own.iter().filter(|address| is_reachable(**address)).take(MOST_ADDRESSES) {
            let (local, remote) = (SocketAddr::new(*address, port), self.remote(*address));
            match socket(local, remote, 0) {
                Ok(Some(listener)) if listener.state == LISTEN => {
                    listeners.entry((listener.inode, address.is_ipv4())).or_insert((local, remote));
                    match is_stamped(shield, local, now) {
                        Ok(is_stamped) => stamped.extend(is_stamped.then_some(listener.inode)),
                        Err(error) => probes.push(failed("port", &error.to_string())),
                    }
                }
                Ok(_) => {}
                Err(error) => probes.push(failed("sock_diag", &error.to_string())),
            }
        }
        for ((inode, _), (local, remote)) in listeners.into_iter().take(MOST_LISTENERS) {
            probes.push(if stamped.contains(&inode) {
                self.probe(shield, local, remote)
            } else {
                Probe::Untested(Untested::Unstamped)
            });
        }
        probes
    }

    /// A source that was not used lately.
    fn remote(&mut self, local: IpAddr) -> SocketAddr {
        self.next = self.next.wrapping_add(1);
        let port = u16::try_from(1_024 + self.next % 64_000).unwrap_or(1_024);
        let source: IpAddr = if local.is_ipv4() { SOURCE_V4.into() } else { SOURCE_V6.into() };
        SocketAddr::new(source, port)
    }

    /// Asks the shield for a cookie and brings it back.
    fn probe(&self, shield: &mut Shield, local: SocketAddr, remote: SocketAddr) -> Probe {
        let door = match door(shield, local.ip(), remote.ip()) {
            Ok(Some(door)) => door,
            Ok(None) => return Probe::Untested(Untested::NoRoute),
            Err(error) => return failed("route", &error.to_string()),
        };
        // Any number does that differs from one test to the next.
        let sequence = self.next.wrapping_mul(0x9e37_79b9);
        let flow = Flow { mac: door.mac, remote, local, sequence };
        match socket(local, remote, door.interface) {
            Ok(Some(listener)) if listener.state == LISTEN && is_full(&listener) => {
                return Probe::Untested(Untested::QueueFull);
            }
            Ok(Some(listener)) if listener.state == LISTEN => {}
            Ok(_) => return Probe::Untested(Untested::NoListener),
            Err(error) => return failed("sock_diag", &error.to_string()),
        }
        match bring_back(shield, &flow, door.interface) {
            Ok(true) => {}
            Ok(false) => return Probe::Untested(Untested::Shield),
            Err(error) => return failed("run", &error.to_string()),
        }
        // As a rule the socket is there by now. The frame may still be on its way to another CPU (RPS).
        match socket(local, remote, door.interface) {
            Ok(Some(found)) if found.state != LISTEN => {
                settle(shield, Probe::Waiting { flow, door: door.interface })
            }
            Ok(_) | Err(_) => Probe::Waiting { flow, door: door.interface },
        }
    }
}

/// What the tests of all listeners of a port come to.
fn outcome(probes: impl Iterator<Item = Probe>) -> SelfTest {
    let (mut took, mut missed, mut untested) = (false, false, None);
    for probe in probes {
        match probe {
            Probe::Took => took = true,
            Probe::Missed | Probe::Waiting { .. } => missed = true,
            Probe::Untested(why) => untested = untested.or(Some(why)),
        }
    }
    match (took, missed) {
        (true, false) => SelfTest::Passed,
        (true, true) => SelfTest::Partly,
        (false, true) => SelfTest::Missed,
        (false, false) => SelfTest::Untested(untested.unwrap_or(Untested::NoListener)),
    }
}

/// Why a test could not be run goes to the log of those who look for it.
fn failed(step: &str, error: &str) -> Probe {
    tracing::debug!(message_id = "self_test_failed", step, error, "a test of cookies could not be run");
    Probe::Untested(Untested::Kernel)
}

/// The last look at a test that waits: whether a socket came of its cookie. Ends it, seen or not.
fn settle(shield: &mut Shield, probe: Probe) -> Probe {
    let (flow, door) = match probe {
        Probe::Waiting { flow, door } => (flow, door),
        Probe::Took | Probe::Missed | Probe::Untested(_) => return probe,
    };
    let found = socket(flow.local, flow.remote, door);
    let reset = shield.run(&flow.reset(), door, Run::Live);
    // Nothing remains of the handshake, which proves nothing.
    let forgotten = shield.tables_mut().forget_verified(&PacketSource::of(flow.remote.ip()).key());
    let reset = reset.err().map(|error| error.to_string());
    if let Some(error) = reset.or_else(|| Some(forgotten.err()?.to_string())) {
        tracing::debug!(
            message_id = "self_test_failed",
            step = "end",
            error,
            "a test of cookies was not ended"
        );
    }
    match found {
        Ok(Some(listener)) if listener.state == LISTEN && is_full(&listener) => {
            Probe::Untested(Untested::QueueFull)
        }
        Ok(Some(listener)) if listener.state == LISTEN => Probe::Missed,
        Ok(Some(_)) => Probe::Took,
        Ok(None) => Probe::Untested(Untested::NoListener),
        Err(error) => failed("sock_diag", &error.to_string()),
    }
}

/// Whether a SYN trickled through to the listener at this address not long ago.
fn is_stamped(shield: &Shield, local: SocketAddr, now: Monotime) -> Result<bool, TableError> {
    let address = Prefix::host(local.ip()).kernel_key().1;
    let tat = Monotime(shield.tables().trickle(local.port(), address)?);
    Ok(tat != Monotime(0) && now.since(tat) < STAMP)
}

/// Whether others can reach this host at this address, by a route that a test can ask for.
fn is_reachable(address: IpAddr) -> bool {
    let is_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !is_local && !address.is_loopback() && !address.is_unspecified() && !address.is_multicast()
}

/// Gets a cookie and hands it in. False if the shield made none, or does not let it pass.
fn bring_back(shield: &mut Shield, flow: &Flow, door: u32) -> Result<bool, ProbeError> {
    let (port, address) = (flow.local.port(), Prefix::host(flow.local.ip()).kernel_key().1);
    let trickled = shield.tables().trickle(port, address)?;
    let cookie = ask(shield, flow, door);
    // A SYN of ours that trickled went to nobody, so it must not pass for one that stamped the listener. Afterwards only: a
    // clock that is put back lets the next SYN trickle too.
    if shield.tables().trickle(port, address)? != trickled {
        shield.tables_mut().set_trickle(port, address, trickled)?;
    }
    let Some(cookie) = cookie? else { return Ok(false) };
    let back = flow.ack(cookie);
    // The second run of the same segment comes to the same as the first, and is counted for its source once.
    if shield.run(&back, door, Run::Dry(&mut [0; ANSWER_BYTES]))?.action != XDP_PASS {
        return Ok(false);
    }
    shield.run(&back, door, Run::Live)?;
    Ok(true)
}

/// The cookie that the shield answers a SYN with; `None` if it makes none.
fn ask(shield: &mut Shield, flow: &Flow, door: u32) -> Result<Option<Cookie>, LoadError> {
    for _ in 0..TRIES {
        let mut answer = [0; ANSWER_BYTES];
        let ran = shield.run(&flow.syn(), door, Run::Dry(&mut answer))?;
        if ran.action != XDP_TX {
            continue;
        }
        return Ok(answer.get(..ran.bytes).and_then(|answer| flow.cookie(answer)));
    }
    Ok(None)
}

/// Why a test could not be run.
#[derive(Debug, Error)]
enum ProbeError {
    #[error(transparent)]
    Run(#[from] LoadError),
    #[error(transparent)]
    Table(#[from] TableError),
}

/// The listener's queue of connections that wait to be accepted (`sk_acceptq_is_full` in include/net/sock.h).
const fn is_full(listener: &InetResponseHeader) -> bool {
    listener.recv_queue > listener.send_queue
}

/// The socket that a segment from `remote` to `local` would find: its own, or a listener.
fn socket(local: SocketAddr, remote: SocketAddr, interface: u32) -> io::Result<Option<InetResponseHeader>> {
    let request = InetRequest {
        family: if local.is_ipv4() { AF_INET } else { AF_INET6 },
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::all(),
        socket_id: SocketId {
            source_port: local.port(),
            destination_port: remote.port(),
            source_address: local.ip(),
            destination_address: remote.ip(),
            interface_id: interface,
            // Any (`INET_DIAG_NOCOOKIE` in include/uapi/linux/inet_diag.h).
            cookie: [0xff; 8],
        },
    };
    let mut found = None;
    let asked =
        crate::netlink::ask(NETLINK_SOCK_DIAG, SockDiagMessage::InetRequest(request), false, |answer| {
            if let SockDiagMessage::InetResponse(socket) = answer {
                found = Some(socket.header);
            }
        });
    match asked {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        asked => asked.map(|()| found),
    }
}

/// Where a test comes in.
struct Door {
    /// Index of the interface that the shield is on.
    interface: u32,
    /// The link-layer address that the host is known by there.
    mac: [u8; 6],
}

/// The interface by which the answer to a test would leave, since what comes from there by another one may be refused for
/// that alone (`rp_filter`). If it is a bridge or a bond, the one of its ports that the shield is on.
fn door(shield: &Shield, local: IpAddr, remote: IpAddr) -> io::Result<Option<Door>> {
    let Some(way) = way(local, remote)? else { return Ok(None) };
    let Some(mac) = link(way)?.0 else { return Ok(None) };
    for name in &shield.plan().interfaces {
        let Some(hook) = hook::read(name)?.filter(|hook| hook.program_id == Some(shield.program_id())) else {
            continue;
        };
        if hook.interface == way || link(hook.interface)?.1 == Some(way) {
            return Ok(Some(Door { interface: hook.interface, mac }));
        }
    }
    Ok(None)
}

/// Index of the interface by which the host sends from `local` to `remote`.
fn way(local: IpAddr, remote: IpAddr) -> io::Result<Option<u32>> {
    let mut question = RouteMessage::default();
    let (family, length) =
        if local.is_ipv4() { (AddressFamily::Inet, 32) } else { (AddressFamily::Inet6, 128) };
    question.header.address_family = family;
    question.header.destination_prefix_length = length;
    question.header.source_prefix_length = length;
    question.attributes =
        vec![RouteAttribute::Destination(remote.into()), RouteAttribute::Source(local.into())];
    let mut way = None;
    let asked =
        crate::netlink::ask(NETLINK_ROUTE, RouteNetlinkMessage::GetRoute(question), false, |answer| {
            if let RouteNetlinkMessage::NewRoute(route) = answer
                && route.header.kind == RouteType::Unicast
            {
                for attribute in route.attributes {
                    if let RouteAttribute::Oif(index) = attribute {
                        way = Some(index);
                    }
                }
            }
        });
    match asked {
        // The ways in which a route can say no.
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL)
            ) =>
        {
            Ok(None)
        }
        asked => asked.map(|()| way),
    }
}

/// The link-layer address of an interface, if it is like Ethernet's, and what it is a port of.
fn link(index: u32) -> io::Result<(Option<[u8; 6]>, Option<u32>)> {
    let mut question = LinkMessage::default();
    question.header.index = index;
    let mut found = (None, None);
    crate::netlink::ask(NETLINK_ROUTE, RouteNetlinkMessage::GetLink(question), false, |answer| {
        if let RouteNetlinkMessage::NewLink(link) = answer {
            for attribute in link.attributes {
                if let LinkAttribute::Address(bytes) = attribute {
                    found.0 = bytes.try_into().ok();
                } else if let LinkAttribute::Controller(index) = attribute {
                    found.1 = Some(index);
                }
            }
        }
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_listener_that_takes_its_cookie_speaks_for_the_port() {
        let (full, none) = (Probe::Untested(Untested::QueueFull), Probe::Untested(Untested::NoRoute));
        for (probes, expected) in [
            (vec![Probe::Took], SelfTest::Passed),
            (vec![Probe::Took, full], SelfTest::Passed),
            (vec![Probe::Missed, Probe::Took], SelfTest::Partly),
            (vec![Probe::Missed, Probe::Missed, none], SelfTest::Missed),
            (vec![none, full], SelfTest::Untested(Untested::NoRoute)),
            (vec![], SelfTest::Untested(Untested::NoListener)),
        ] {
            assert_eq!(outcome(probes.into_iter()), expected);
        }
    }

    #[test]
    fn only_addresses_that_others_can_reach_are_tried() {
        for (address, expected) in [
            ("198.51.100.7", true),
            ("10.1.2.3", true),
            ("2001:db8::7", true),
            ("fd00::7", true),
            ("127.0.0.1", false),
            ("::1", false),
            ("fe80::1", false),
            ("169.254.1.1", false),
        ] {
            assert_eq!(is_reachable(address.parse().unwrap()), expected, "{address}");
        }
    }

    #[test]
    fn sockets_are_found_by_both_ends() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let local = listener.local_addr().unwrap();
        let stranger: SocketAddr = "127.0.0.1:1".parse().unwrap();
        assert_eq!(socket(local, stranger, 0).unwrap().map(|found| found.state), Some(LISTEN));
        let client = std::net::TcpStream::connect(local).unwrap();
        let own = socket(local, client.local_addr().unwrap(), 0).unwrap().unwrap();
        assert_ne!(own.state, LISTEN);
        let waiting = socket(local, stranger, 0).unwrap().unwrap();
        assert_eq!((waiting.recv_queue, is_full(&waiting)), (1, false));
        drop(listener);
        assert_eq!(socket(local, stranger, 0).unwrap(), None);
    }
}
