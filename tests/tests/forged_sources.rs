//! Ten million forged sources against the real program, attached to a host that serves real peers: not one row of what the
//! host decided or proved changes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper that fails is a test that fails"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use aya::{
    maps::{Map, MapData, MapInfo},
    programs::SockOps,
};
use nix::net::if_::if_nametoindex;
use tunica_common::{
    gcra::Limit,
    keys::{ALLOW_BY_OPERATOR, AllowEntry, BAN_DYNAMIC, BanEntry, SourceKey},
    layout::VERIFIED,
    policy::{COOKIES_PLAIN, DEFAULT_ALLOW, DEFAULT_BANS, DEFAULT_NETS, Policy, Verified},
    verdict::{Action, Verdict},
};
use tunica_core::limits::{IcmpLimits, each_second};
use tunica_tests::{
    client::{Service, connected},
    frame::{ACK, ICMP, ICMPV6, SYN, TCP, UDP, icmp, tcp, udp, v4, v6},
    netns::{End, Namespace, join},
    program::{self, COUNTED, Counter},
    reference::World,
    shield::Shield,
    sys::bpf,
};
use tunicad::{
    shell::xdp::{handshakes, tables::Total},
    sys::{monotonic_ns, netns_cookie},
};
use zerocopy::IntoBytes as _;

/// Packets that the program must have judged, each from a source of its own.
const FORGED: u64 = 10_000_000;
/// Frames of one call.
const FRAMES: u32 = 125_000;
/// Sources that completed a handshake.
const PEERS: u32 = 2_000;

/// The host's addresses, as the frames of the tests have them as their destination.
const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const HOST_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
/// The port of the frames, at which somebody listens.
const PORT: u16 = 443;

const INTERFACE: &str = "eth0";
const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const ATTACKERS_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// Peers come from here (RFC 2544), which is none of the forged sources.
const FIRST_PEER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// A stranger whom nobody banned.
const STRANGER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);

/// Every row of what no forged packet may touch, as bytes.
#[derive(Debug, PartialEq, Eq)]
struct Rows {
    bans: BTreeMap<Vec<u8>, Vec<u8>>,
    ranges: BTreeMap<(u32, [u8; 16]), Vec<u8>>,
    allow: BTreeMap<(u32, [u8; 16]), Vec<u8>>,
    own: BTreeSet<[u8; 16]>,
    verified: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Rows {
    fn read(shield: &mut Shield) -> Self {
        let tables = &shield.tables;
        let bytes = |entry: &BanEntry| entry.as_bytes().to_vec();
        let bans =
            tables.bans().unwrap().iter().map(|(key, ban)| (key.as_bytes().to_vec(), bytes(ban))).collect();
        let ranges = tables.nets().unwrap().iter().map(|(key, ban)| (*key, bytes(ban))).collect();
        let allow = tables.allow().unwrap();
        let allow = allow.iter().map(|(key, entry)| (*key, entry.as_bytes().to_vec())).collect();
        let own = tables.own().unwrap();
        let verified = verified_by(shield)
            .iter()
            .map(|row| row.map(|(key, row)| (key.as_bytes().to_vec(), row.as_bytes().to_vec())).unwrap())
            .collect();
        Self { bans, ranges, allow, own, verified }
    }
}

/// The table of sources that completed a handshake, as the program that fills it knows it.
fn verified_by(shield: &mut Shield) -> aya::maps::HashMap<MapData, SourceKey, Verified> {
    let program: &SockOps = shield.ebpf().program("handshake").unwrap().try_into().unwrap();
    let mut ids = program.info().unwrap().map_ids().unwrap().unwrap().into_iter();
    let id = ids.find(|id| MapInfo::from_id(*id).unwrap().name_as_str() == Some(VERIFIED)).unwrap();
    Map::from_map_data(MapData::from_id(id).unwrap()).unwrap().try_into().unwrap()
}

/// Banned sources: of a block that no frame comes from. 10.0.0.0 and on.
fn banned(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 0).to_bits() + number)
}

/// The network with this number of 16 384, from 2001:db8:1000::/64 and on; no frame comes from there either.
fn network(number: u32) -> [u8; 16] {
    Ipv6Addr::from_bits(0x2001_0db8_1000 << 80 | u128::from(number) << 64).octets()
}

/// The same from 2001:db8:2000::/64 and on.
fn allowed(number: u32) -> [u8; 16] {
    Ipv6Addr::from_bits(0x2001_0db8_2000 << 80 | u128::from(number) << 64).octets()
}

fn syn_from(source: Ipv4Addr) -> Vec<u8> {
    v4(source.octets(), TCP).frame(&tcp(SYN, 5))
}

/// Frames of every kind that a limit, a port or a socket decides about. Their sources are written by the generator.
fn frames() -> [(&'static str, Vec<u8>); 8] {
    let (four, six) = ([128, 0, 0, 1], [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
    [
        ("SYN over IPv4", v4(four, TCP).frame(&tcp(SYN, 5))),
        ("ACK over IPv4", v4(four, TCP).frame(&tcp(ACK, 5))),
        ("UDP over IPv4", v4(four, UDP).frame(&udp(40_000, 5_353, 16, 0))),
        ("ping over IPv4", v4(four, ICMP).frame(&icmp(8, 0, 56))),
        ("SYN over IPv6", v6(six, TCP).frame(&tcp(SYN, 5))),
        ("ACK over IPv6", v6(six, TCP).frame(&tcp(ACK, 5))),
        ("UDP over IPv6", v6(six, UDP).frame(&udp(40_000, 5_353, 16, 0))),
        ("ping over IPv6", v6(six, ICMPV6).frame(&icmp(128, 0, 56))),
    ]
}

/// A host, its attackers, and a wire between them.
struct Scene {
    host: Namespace,
    attackers: Namespace,
}

impl Scene {
    fn build() -> Self {
        let host = Namespace::create("forged", "host").unwrap();
        let attackers = Namespace::create("forged", "attackers").unwrap();
        join(
            End { namespace: &host, interface: INTERFACE, mac: HOST_MAC, address: "10.77.3.1/24" },
            End { namespace: &attackers, interface: INTERFACE, mac: ATTACKERS_MAC, address: "10.77.3.2/24" },
        )
        .unwrap();
        let run = |namespace: &Namespace, line: &str| {
            namespace.ip(&line.split_whitespace().collect::<Vec<_>>()).unwrap();
        };
        for scope in ["all", INTERFACE] {
            host.write_sysctl(&format!("net/ipv4/conf/{scope}/rp_filter"), "0").unwrap();
        }
        for (key, value) in [("addr_gen_mode", "1"), ("accept_ra", "0"), ("disable_ipv6", "0")] {
            host.write_sysctl(&format!("net/ipv6/conf/{INTERFACE}/{key}"), value).unwrap();
        }
        host.write_sysctl("net/ipv6/conf/lo/disable_ipv6", "0").unwrap();
        // The listener accepts the cookies that the shield makes.
        host.write_sysctl("net/ipv4/tcp_syncookies", "2").unwrap();
        run(&host, "neighbour add 10.77.3.2 lladdr 02:00:00:00:00:02 dev eth0 nud permanent");
        run(&attackers, "neighbour add 10.77.3.1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent");
        run(&host, "address add 192.0.2.1/32 dev lo");
        run(&host, "-6 address add 2001:db8::1/128 dev lo nodad");
        run(&host, "route add default via 10.77.3.2");
        run(&host, "-6 address add fd77:3::1/64 dev eth0 nodad");
        run(&host, "-6 neighbour add fd77:3::2 lladdr 02:00:00:00:00:02 dev eth0 nud permanent");
        run(&host, "-6 route add default via fd77:3::2");
        // Every address of the block is the peers' own.
        run(&attackers, "route add local 198.18.0.0/15 dev lo");
        run(&attackers, "route add 192.0.2.1/32 via 10.77.3.1");
        Self { host, attackers }
    }

    fn attach(namespace: &Namespace, program: &OwnedFd) -> OwnedFd {
        namespace.run(|| Ok(bpf::attach_xdp(program.as_fd(), if_nametoindex(INTERFACE)?)?)).unwrap()
    }

    /// Peers connect, one after the other.
    fn connect(&self, peers: std::ops::Range<u32>) {
        let service = SocketAddr::new(HOST.into(), PORT);
        self.attackers
            .run(|| {
                for number in peers {
                    let own = IpAddr::V4(Ipv4Addr::from_bits(FIRST_PEER.to_bits() + number));
                    connected(own, service, Duration::from_secs(10))??;
                }
                Ok(())
            })
            .unwrap();
    }

    /// Sends frames of one kind, each from another source.
    fn flood(&self, counter: &Counter, frame: &[u8]) {
        let sources = Some(counter.sources());
        self.attackers
            .run(|| {
                let generator = program::generator(if_nametoindex(INTERFACE)?, sources, frame)?;
                Ok(bpf::send_live_frames(generator.as_fd(), frame, FRAMES)?)
            })
            .unwrap();
    }
}

/// Full tables of everything that is decided outside, and rules of every kind.
fn arm(shield: &mut Shield) {
    let world = World {
        own: [HOST.into(), HOST_V6.into()].into(),
        syn: Limit::new(10, 20),
        escalate: 8,
        budget: each_second(100, 300),
        cookies: COOKIES_PLAIN,
        trickle: each_second(2, 2).unwrap(),
        segments: Limit::new(100, 100),
        segments_host: each_second(1_000, 1_000),
        icmp: Some(IcmpLimits {
            per_source: Limit::new(1, 4).unwrap(),
            host: each_second(100, 100).unwrap(),
            ceiling: each_second(1_000, 1_000).unwrap(),
        }),
        ..World::enforcing()
    };
    shield.set(&world).unwrap();
    let tables = &mut shield.tables;
    let expires_ns = monotonic_ns().unwrap() + 3_600_000_000_000;
    let full = |rows: usize| 0..u32::try_from(rows).unwrap();
    for number in full(DEFAULT_BANS) {
        let ban = BanEntry { expires_ns, ban_id: number + 1, flags: BAN_DYNAMIC * (number & 1) };
        tables.set_ban(&SourceKey::v4(banned(number).octets()), &ban).unwrap();
    }
    for number in full(DEFAULT_NETS) {
        let ban = BanEntry { expires_ns, ban_id: number + 1, flags: 0 };
        tables.set_net((64, network(number)), &ban).unwrap();
    }
    for number in full(DEFAULT_ALLOW) {
        let entry = AllowEntry { origin: ALLOW_BY_OPERATOR, allow_id: number + 1 };
        tables.set_allow((64, allowed(number)), &entry).unwrap();
    }
    // Not one more.
    let one_more = BanEntry { expires_ns, ban_id: 0, flags: 0 };
    tables.set_ban(&SourceKey::v4(STRANGER.octets()), &one_more).unwrap_err();

    let policy = Policy {
        bans_present: 1,
        nets_present: 1,
        allow_present: 1,
        handshake_pace: each_second(5, 40).unwrap(),
        netns_cookie: netns_cookie().unwrap(),
        event_interval_ns: 1_000_000,
        ..tables.policy().unwrap()
    };
    tables.swap_policy(&policy).unwrap();
}

/// Packets by verdict and action since `before`.
fn judged(shield: &Shield, before: &[Total]) -> BTreeMap<(&'static str, &'static str), u64> {
    let now = shield.tables.totals().unwrap();
    let mut judged = BTreeMap::new();
    for verdict in Verdict::ALL {
        for action in Action::ALL {
            let slot = tunica_common::event::tally_slot(*verdict, action) as usize;
            let count = now[slot].packets - before[slot].packets;
            if count > 0 {
                judged.insert((verdict.label(), action.label()), count);
            }
        }
    }
    judged
}

#[test]
fn ten_million_forged_sources_evict_nothing() {
    let scene = Scene::build();
    scene
        .host
        .run(|| {
            attack(&scene);
            Ok(())
        })
        .unwrap();
}

/// Everything that needs to be in the host's namespace.
fn attack(scene: &Scene) {
    let mut shield = Shield::load_here().unwrap();
    arm(&mut shield);
    handshakes::attach(shield.ebpf()).unwrap();
    let program = tunicad::shell::xdp::object::program(shield.ebpf()).unwrap();
    let program = program.fd().unwrap().as_fd().try_clone_to_owned().unwrap();
    let _links = [
        Scene::attach(&scene.host, &program),
        // A veth drops what a program sends back unless its peer has one, too.
        Scene::attach(&scene.attackers, &program::pass().unwrap()),
    ];
    let service = [SocketAddr::new(HOST.into(), PORT), SocketAddr::new(HOST_V6.into(), PORT)];
    let _services = service.map(|address| Service::start(&scene.host, address).unwrap());
    scene.connect(0..PEERS);

    let before = Rows::read(&mut shield);
    let rows = (before.bans.len(), before.ranges.len(), before.allow.len(), before.verified.len());
    assert_eq!(rows, (DEFAULT_BANS, DEFAULT_NETS, DEFAULT_ALLOW, PEERS as usize));

    // Frames that find the host's ring full are lost before the program sees them, so the program's own counters say when
    // it has seen enough; each that it saw had a source of its own.
    let counter = Counter::new().unwrap();
    let at_first = shield.tables.totals().unwrap();
    let mut sampled = Vec::new();
    let seen = loop {
        for (_, frame) in frames() {
            shield.tables.beat(monotonic_ns().unwrap()).unwrap();
            scene.flood(&counter, &frame);
            sampled.extend(shield.events().unwrap());
        }
        let seen = judged(&shield, &at_first);
        if seen.values().sum::<u64>() >= FORGED {
            break seen;
        }
        assert!(counter.count().unwrap() < 8 * FORGED, "too few frames arrive: {seen:?}");
    };
    assert!(counter.count().unwrap() <= COUNTED, "sources came twice");
    // It met with every kind of rule.
    let met = [
        ("syn_cookie", "answer"),
        ("syn_trickle", "pass"),
        ("no_socket", "drop"),
        ("icmp_host_rate", "drop"),
        ("pass", "pass"),
    ];
    assert!(met.iter().all(|outcome| seen.contains_key(outcome)), "{seen:?}");
    let sources: BTreeSet<[u8; 16]> = sampled.iter().map(|event| event.source).collect();
    assert!(sampled.len() > 20 && sources.len() == sampled.len(), "{} of {}", sources.len(), sampled.len());

    let after = Rows::read(&mut shield);
    assert!(before == after, "rows changed");

    // Every ban holds, in the table and in what the program does.
    let counted = |shield: &Shield, verdict| shield.packets(verdict, Action::Drop).unwrap();
    let drops = counted(&shield, Verdict::Banned);
    for number in 0..u32::try_from(DEFAULT_BANS).unwrap() {
        shield.repeat(&syn_from(banned(number)), 1).unwrap();
    }
    assert_eq!(counted(&shield, Verdict::Banned) - drops, DEFAULT_BANS as u64);
    let drops = counted(&shield, Verdict::BannedNet);
    for number in 0..u32::try_from(DEFAULT_NETS).unwrap() {
        shield.repeat(&v6(network(number), TCP).frame(&tcp(SYN, 5)), 1).unwrap();
    }
    assert_eq!(counted(&shield, Verdict::BannedNet) - drops, DEFAULT_NETS as u64);
    // Who was never banned is not.
    shield.settle().unwrap();
    let stranger = shield.run(&syn_from(STRANGER)).unwrap();
    assert!(matches!(stranger.0, Verdict::SynCookie | Verdict::SynTrickle | Verdict::Syn), "{stranger:?}");
    // Whoever proved itself is known by the same row.
    scene.connect(0..1);
    let deadline = Instant::now() + Duration::from_secs(60);
    while handshakes_of(&mut shield, FIRST_PEER) != 2 {
        assert!(Instant::now() < deadline, "the peer's second handshake is not counted");
        thread::sleep(Duration::from_millis(20));
    }
}

/// How many handshakes of a source were counted.
fn handshakes_of(shield: &mut Shield, source: Ipv4Addr) -> u64 {
    verified_by(shield).get(&SourceKey::v4(source.octets()), 0).unwrap().handshakes
}
