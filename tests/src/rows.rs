//! The table of packets: one row for each verdict and each branch of the parser, in both families.
//!
//! The kernel program and the host reference are both held against it. A new case is a new row and no code.

use std::{net::IpAddr, num::NonZeroU16};

use tunica_common::{
    gcra::{Limit, Pace},
    policy::{COOKIES_OFF, COOKIES_PLAIN},
    verdict::{Action, Verdict},
};
use tunica_core::{
    id::PacketSource,
    limits::{IcmpLimits, Port, PortSettings, Transport},
};

use crate::{
    frame::{
        ACK, FIN, ICMP, ICMPV6, IPV4, IPV6, PSH, RST, SERVICE_VLAN, SYN, TCP, UDP, URG, V4, V6, VLAN,
        ethernet, extension, fragment, icmp, tagged, tcp, udp, v4, v6,
    },
    reference::{Ban, Mode, OnStale, World},
};

/// One case.
pub struct Row {
    /// Says what is special about it.
    pub name: String,
    /// Policy and tables.
    pub world: World,
    /// The packet.
    pub frame: Vec<u8>,
    /// How many copies of the packet are sent before the one that counts.
    pub before: u32,
    /// What must come out.
    pub expect: (Verdict, Action),
}

/// A source in TEST-NET-2 (RFC 5737).
pub const SOURCE_V4: [u8; 4] = [198, 51, 100, 7];
/// A source in the documentation prefix (RFC 3849).
pub const SOURCE_V6: [u8; 16] = [0x20, 0x01, 0x0d, 0xb8, 0, 0x51, 0, 7, 0, 0, 0, 0, 0, 0, 0, 9];

fn source_v4() -> IpAddr {
    SOURCE_V4.into()
}

fn source_v6() -> IpAddr {
    SOURCE_V6.into()
}

const PASS: (Verdict, Action) = (Verdict::Pass, Action::Pass);
const NEW: (Verdict, Action) = (Verdict::Syn, Action::Pass);

fn dropped(verdict: Verdict) -> (Verdict, Action) {
    (verdict, Action::Drop)
}

fn passed(verdict: Verdict) -> (Verdict, Action) {
    (verdict, Action::Pass)
}

fn with(change: impl FnOnce(&mut World)) -> World {
    let mut world = World::enforcing();
    change(&mut world);
    world
}

fn banned(ban: Ban) -> World {
    with(|world| {
        world.bans.insert(PacketSource::of(source_v4()), ban);
        world.bans.insert(PacketSource::of(source_v6()), ban);
    })
}

/// The destination of every frame is the host's own.
fn ours(change: impl FnOnce(&mut World)) -> World {
    with(|world| {
        let destinations = [IpAddr::from([192, 0, 2, 1]), IpAddr::from(v6(SOURCE_V6, TCP).destination)];
        world.own.extend(destinations);
        change(world);
    })
}

fn port(transport: Transport, number: u16) -> Port {
    Port { transport, number: NonZeroU16::new(number).unwrap_or(NonZeroU16::MIN) }
}

/// Three at once, and one in ten minutes.
const SLOW_3: Pace = [600_000_000_000, 1_200_000_000_000];
/// A limit that nothing conforms to.
const NEVER: Limit = Limit { cost_ticks: 1, tolerance_ticks: 0 };

const STANDING: Ban = Ban { is_expired: false, is_dynamic: false };

/// Every row.
pub fn rows() -> Vec<Row> {
    let mut rows = Rows(Vec::new());
    rows.link();
    rows.lengths();
    rows.fragments();
    rows.extensions();
    rows.exempt();
    rows.flags();
    rows.addresses();
    rows.bans();
    rows.limit();
    rows.ports();
    rows.budget();
    rows.segments();
    rows.icmp_limits();
    rows.banned_nets();
    rows.policies();
    rows.0
}

struct Rows(Vec<Row>);

impl Rows {
    fn add(&mut self, name: impl Into<String>, world: World, frame: Vec<u8>, expect: (Verdict, Action)) {
        self.0.push(Row { name: name.into(), world, frame, before: 0, expect });
    }

    fn plain(&mut self, name: &str, frame: Vec<u8>, expect: (Verdict, Action)) {
        self.add(name, World::enforcing(), frame, expect);
    }

    /// The same transport bytes in both families.
    fn both(&mut self, name: &str, world: &World, protocol: u8, payload: &[u8], expect: (Verdict, Action)) {
        self.add(format!("{name}, v4"), world.clone(), v4(SOURCE_V4, protocol).frame(payload), expect);
        self.add(format!("{name}, v6"), world.clone(), v6(SOURCE_V6, protocol).frame(payload), expect);
    }

    fn link(&mut self) {
        let packet = v4(SOURCE_V4, TCP).packet(&tcp(ACK, 5));
        let packet6 = v6(SOURCE_V6, TCP).packet(&tcp(ACK, 5));
        self.plain("plain Ethernet, v4", ethernet(IPV4, &packet), PASS);
        self.plain("plain Ethernet, v6", ethernet(IPV6, &packet6), PASS);
        for (name, tags) in [
            ("one tag", &[VLAN][..]),
            ("a service tag", &[SERVICE_VLAN]),
            ("two tags", &[SERVICE_VLAN, VLAN]),
        ] {
            self.plain(&format!("{name}, v4"), tagged(tags, IPV4, &packet), PASS);
            self.plain(&format!("{name}, v6"), tagged(tags, IPV6, &packet6), PASS);
            self.plain(
                &format!("{name}, the packet behind them is judged"),
                tagged(tags, IPV4, &v4(SOURCE_V4, TCP).packet(&tcp(SYN | FIN, 5))),
                dropped(Verdict::SynFin),
            );
        }
        self.plain("three tags", tagged(&[VLAN, VLAN, VLAN], IPV4, &packet), passed(Verdict::VlanDepth));
        self.plain("a tag with nothing behind", ethernet(VLAN, &[0]), dropped(Verdict::BadLength));
        self.plain("ARP", ethernet(0x0806, &[0; 28]), passed(Verdict::Arp));
        self.plain("ARP behind a tag", tagged(&[VLAN], 0x0806, &[0; 28]), passed(Verdict::Arp));
        self.plain("LLDP", ethernet(0x88cc, &[0; 40]), passed(Verdict::UnknownEthertype));
        self.plain(
            "802.3 length instead of a type",
            ethernet(38, &[0; 38]),
            passed(Verdict::UnknownEthertype),
        );
        self.plain("PPPoE session", ethernet(0x8864, &[0; 40]), passed(Verdict::Tunnel));
    }

    fn lengths(&mut self) {
        let world = World::enforcing();
        let segment = tcp(ACK, 5);
        let mut cut = v4(SOURCE_V4, TCP).frame(&segment);
        cut.truncate(14 + 19);
        self.plain("IPv4 header cut", cut, dropped(Verdict::BadLength));
        let mut cut = v6(SOURCE_V6, TCP).frame(&segment);
        cut.truncate(14 + 39);
        self.plain("IPv6 header cut", cut, dropped(Verdict::BadLength));
        let mut frame = v4(SOURCE_V4, TCP).frame(&segment);
        set(&mut frame, 14, 0x65);
        self.plain("version 6 under the IPv4 type", frame.clone(), dropped(Verdict::BadLength));
        set(&mut frame, 14, 0x44);
        self.plain("IPv4 header of four words", frame, dropped(Verdict::BadLength));
        let mut frame = v6(SOURCE_V6, TCP).frame(&segment);
        set(&mut frame, 14, 0x40);
        self.plain("version 4 under the IPv6 type", frame, dropped(Verdict::BadLength));
        for (name, error, expect) in [
            ("total length one beyond the frame", 1, dropped(Verdict::BadLength)),
            ("total length below the header", -30, dropped(Verdict::BadLength)),
            ("total length cuts the TCP header", -1, dropped(Verdict::BadLength)),
        ] {
            self.plain(
                &format!("{name}, v4"),
                V4 { length_error: error, ..v4(SOURCE_V4, TCP) }.frame(&segment),
                expect,
            );
        }
        for (name, error) in [
            ("payload length one beyond the frame", 1),
            ("payload length cuts the TCP header", -1),
            ("payload length 0", -20),
        ] {
            self.plain(
                &format!("{name}, v6"),
                V6 { length_error: error, ..v6(SOURCE_V6, TCP) }.frame(&segment),
                dropped(Verdict::BadLength),
            );
        }
        let mut padded = v4(SOURCE_V4, TCP).frame(&segment);
        padded.resize(60, 0);
        self.plain("Ethernet padding behind the packet, v4", padded, PASS);
        let mut padded = v6(SOURCE_V6, TCP).frame(&segment);
        padded.resize(90, 0);
        self.plain("Ethernet padding behind the packet, v6", padded, PASS);
        for options in [4, 40] {
            self.plain(
                &format!("{options} bytes of IPv4 options"),
                V4 { options, ..v4(SOURCE_V4, TCP) }.frame(&segment),
                PASS,
            );
        }
        self.plain(
            "IPv4 options, the packet behind them is judged",
            V4 { options: 8, ..v4(SOURCE_V4, TCP) }.frame(&tcp(0, 5)),
            dropped(Verdict::NullFlags),
        );
        self.both("TCP with options", &world, TCP, &tcp(ACK, 15), PASS);
        self.both("TCP header of four words", &world, TCP, &tcp(ACK, 4), dropped(Verdict::BadLength));
        let mut short = tcp(ACK, 8);
        short.truncate(24);
        self.both("TCP options beyond the packet", &world, TCP, &short, dropped(Verdict::BadLength));
        self.both("TCP of 19 bytes", &world, TCP, &[0; 19], dropped(Verdict::BadLength));
        self.both("TCP of no byte", &world, TCP, &[], dropped(Verdict::BadLength));
        self.both("UDP", &world, UDP, &udp(53, 4_000, 10, 0), PASS);
        self.both("UDP that ends before the packet", &world, UDP, &udp(53, 4_000, 10, -2), PASS);
        self.both(
            "UDP longer than the packet",
            &world,
            UDP,
            &udp(53, 4_000, 10, 1),
            dropped(Verdict::BadLength),
        );
        self.both("UDP length 7", &world, UDP, &udp(53, 4_000, 10, -11), dropped(Verdict::BadLength));
        self.both("UDP of 7 bytes", &world, UDP, &[0; 7], dropped(Verdict::BadLength));
        self.plain(
            "ICMP of 7 bytes",
            v4(SOURCE_V4, ICMP).frame(&[8, 0, 0, 0, 0, 0, 0]),
            dropped(Verdict::BadLength),
        );
        self.plain(
            "ICMPv6 of 7 bytes",
            v6(SOURCE_V6, ICMPV6).frame(&[128, 0, 0, 0, 0, 0, 0]),
            dropped(Verdict::BadLength),
        );
        for (name, protocol) in
            [("IP in IP", 4), ("IPv6 in IP", 41), ("GRE", 47), ("ESP", 50), ("EtherIP", 97), ("L2TP", 115)]
        {
            self.both(name, &world, protocol, &[0; 4], passed(Verdict::Tunnel));
        }
        self.plain(
            "an authentication header in IPv4",
            v4(SOURCE_V4, 51).frame(&[0; 24]),
            passed(Verdict::Tunnel),
        );
        self.both("a protocol without payload", &world, 132, &[], PASS);
        self.plain("no next header", v6(SOURCE_V6, 59).frame(&[]), PASS);
        self.plain("ICMP under IPv6 is no ICMPv6", v6(SOURCE_V6, ICMP).frame(&[3, 4]), PASS);
        self.plain(
            "a large segment in several buffers",
            v4(SOURCE_V4, TCP).frame(&[tcp(ACK, 5), vec![7; 8_000]].concat()),
            PASS,
        );
        self.plain(
            "a large segment that claims still more",
            V4 { length_error: 1, ..v4(SOURCE_V4, TCP) }.frame(&[tcp(ACK, 5), vec![7; 8_000]].concat()),
            dropped(Verdict::BadLength),
        );
    }

    fn fragments(&mut self) {
        let first = V4 { more: true, ..v4(SOURCE_V4, TCP) };
        self.plain("first fragment, v4", first.frame(&tcp(ACK, 5)), PASS);
        self.plain("first fragment is judged, v4", first.frame(&tcp(SYN | RST, 5)), dropped(Verdict::SynRst));
        self.plain("tiny first fragment, v4", first.frame(&[0; 8]), dropped(Verdict::BadFragment));
        self.plain("empty first fragment, v4", first.frame(&[]), dropped(Verdict::BadFragment));
        let mut options_cut = tcp(ACK, 8);
        options_cut.truncate(24);
        self.plain(
            "first fragment cuts TCP options, v4",
            first.frame(&options_cut),
            dropped(Verdict::BadFragment),
        );
        let later = V4 { fragment: 185, ..v4(SOURCE_V4, TCP) };
        self.plain("later fragment, v4", later.frame(&[0; 8]), passed(Verdict::LaterFragment));
        self.plain(
            "later fragment with more to come, v4",
            V4 { more: true, ..later }.frame(&[0; 8]),
            passed(Verdict::LaterFragment),
        );
        self.plain(
            "TCP fragment at offset 8, v4",
            V4 { fragment: 1, ..v4(SOURCE_V4, TCP) }.frame(&[0; 8]),
            dropped(Verdict::BadFragment),
        );
        self.plain(
            "UDP fragment at offset 8, v4",
            V4 { fragment: 1, ..v4(SOURCE_V4, UDP) }.frame(&[0; 8]),
            passed(Verdict::LaterFragment),
        );
        self.plain(
            "UDP first fragment announces the whole datagram, v4",
            V4 { more: true, ..v4(SOURCE_V4, UDP) }.frame(&udp(53, 4_000, 8, 1_000)),
            PASS,
        );
        self.plain(
            "UDP first fragment of 7 bytes, v4",
            V4 { more: true, ..v4(SOURCE_V4, UDP) }.frame(&[0; 7]),
            dropped(Verdict::BadFragment),
        );
        self.plain(
            "ICMP first fragment of 4 bytes, v4",
            V4 { more: true, ..v4(SOURCE_V4, ICMP) }.frame(&[8, 0, 0, 0]),
            dropped(Verdict::BadFragment),
        );

        let ip = v6(SOURCE_V6, 44);
        let join = |header: Vec<u8>, rest: &[u8]| [header, rest.to_vec()].concat();
        self.plain("first fragment, v6", ip.frame(&join(fragment(TCP, 0, true), &tcp(ACK, 5))), PASS);
        self.plain("atomic fragment, v6", ip.frame(&join(fragment(TCP, 0, false), &tcp(ACK, 5))), PASS);
        self.plain(
            "atomic fragment is judged, v6",
            ip.frame(&join(fragment(TCP, 0, false), &tcp(0, 5))),
            dropped(Verdict::NullFlags),
        );
        self.plain(
            "tiny first fragment, v6",
            ip.frame(&join(fragment(TCP, 0, true), &[0; 8])),
            dropped(Verdict::BadFragment),
        );
        self.plain(
            "empty first fragment, v6",
            ip.frame(&fragment(TCP, 0, true)),
            dropped(Verdict::BadFragment),
        );
        self.plain(
            "later fragment, v6",
            ip.frame(&join(fragment(TCP, 185, false), &[0; 8])),
            passed(Verdict::LaterFragment),
        );
        self.plain(
            "TCP fragment at offset 8, v6",
            ip.frame(&join(fragment(TCP, 1, true), &[0; 8])),
            dropped(Verdict::BadFragment),
        );
        self.plain(
            "UDP fragment at offset 8, v6",
            ip.frame(&join(fragment(UDP, 1, true), &[0; 8])),
            passed(Verdict::LaterFragment),
        );
        self.plain("fragment header cut, v6", ip.frame(&[TCP, 0]), dropped(Verdict::BadLength));
        let padded = ethernet(IPV6, &join(ip.packet(&[]), &fragment(TCP, 185, false)));
        self.plain("fragment header in the padding, v6", padded, dropped(Verdict::BadLength));
        self.plain(
            "first fragment behind a destination header, v6",
            v6(SOURCE_V6, 60)
                .frame(&join(extension(44, 0), &join(fragment(TCP, 0, true), &tcp(SYN | FIN, 5)))),
            dropped(Verdict::SynFin),
        );
    }

    fn extensions(&mut self) {
        let join = |parts: &[Vec<u8>]| parts.concat();
        for (name, number) in [
            ("hop-by-hop", 0),
            ("routing", 43),
            ("destination", 60),
            ("mobility", 135),
            ("HIP", 139),
            ("shim6", 140),
        ] {
            self.plain(
                &format!("{name} header, the packet behind it is judged"),
                v6(SOURCE_V6, number).frame(&join(&[extension(TCP, 1), tcp(SYN | FIN, 5)])),
                dropped(Verdict::SynFin),
            );
        }
        // RFC 4302: the length counts four-byte words, less two.
        let mut authentication = vec![0; 24];
        set(&mut authentication, 0, TCP);
        set(&mut authentication, 1, 4);
        self.plain(
            "authentication header, the packet behind it is judged",
            v6(SOURCE_V6, 51).frame(&join(&[authentication, tcp(SYN | FIN, 5)])),
            dropped(Verdict::SynFin),
        );
        let chain = |count: usize| {
            let mut parts: Vec<Vec<u8>> = (1..count).map(|_| extension(60, 0)).collect();
            parts.push(extension(TCP, 0));
            parts.push(tcp(SYN | FIN, 5));
            v6(SOURCE_V6, 60).frame(&parts.concat())
        };
        self.plain(
            "six extension headers, the packet behind them is judged",
            chain(6),
            dropped(Verdict::SynFin),
        );
        self.plain("seven extension headers", chain(7), passed(Verdict::ExtensionHeaders));
        self.plain(
            "extension header beyond the packet",
            v6(SOURCE_V6, 60).frame(&[TCP]),
            dropped(Verdict::BadLength),
        );
        let mut long = extension(TCP, 0);
        set(&mut long, 1, 9);
        self.plain(
            "extension header longer than the packet",
            v6(SOURCE_V6, 60).frame(&join(&[long, tcp(ACK, 5)])),
            dropped(Verdict::BadLength),
        );
        self.plain(
            "nothing behind an extension header",
            v6(SOURCE_V6, 60).frame(&extension(TCP, 0)),
            dropped(Verdict::BadLength),
        );
        let jumbo = V6 { length_error: -28, ..v6(SOURCE_V6, 0) };
        self.plain(
            "jumbogram",
            jumbo.frame(&join(&[extension(TCP, 0), tcp(ACK, 5)])),
            passed(Verdict::ExtensionHeaders),
        );
        self.plain(
            "headers beyond the first buffer",
            v6(SOURCE_V6, 60).frame(&join(&[
                extension(60, 255),
                extension(TCP, 255),
                tcp(SYN | FIN, 5),
                vec![0; 2_000],
            ])),
            dropped(Verdict::SynFin),
        );
        self.plain(
            "long headers inside the first buffer",
            v6(SOURCE_V6, 60).frame(&join(&[extension(TCP, 255), tcp(SYN | FIN, 5)])),
            dropped(Verdict::SynFin),
        );
    }

    fn exempt(&mut self) {
        let world = banned(STANDING);
        self.add(
            "fragmentation needed, from a banned source",
            world.clone(),
            v4(SOURCE_V4, ICMP).frame(&icmp(3, 4, 28)),
            passed(Verdict::PathMtu),
        );
        self.add(
            "packet too big, from a banned source",
            world.clone(),
            v6(SOURCE_V6, ICMPV6).frame(&icmp(2, 0, 40)),
            passed(Verdict::PathMtu),
        );
        self.add(
            "port unreachable is no exemption",
            world.clone(),
            v4(SOURCE_V4, ICMP).frame(&icmp(3, 3, 28)),
            dropped(Verdict::Banned),
        );
        for kind in 133..=137 {
            let near = V6 { hops: 255, ..v6(SOURCE_V6, ICMPV6) };
            self.add(
                format!("neighbour discovery {kind}, from a banned source"),
                world.clone(),
                near.frame(&icmp(kind, 0, 16)),
                passed(Verdict::NeighbourDiscovery),
            );
        }
        self.add(
            "neighbour discovery from afar",
            world.clone(),
            v6(SOURCE_V6, ICMPV6).frame(&icmp(135, 0, 16)),
            dropped(Verdict::Banned),
        );
        self.add(
            "neighbour discovery with a code",
            world.clone(),
            V6 { hops: 255, ..v6(SOURCE_V6, ICMPV6) }.frame(&icmp(135, 1, 16)),
            dropped(Verdict::Banned),
        );
        for (from, to) in [(67, 68), (68, 67), (67, 67)] {
            self.add(
                format!("DHCP {from} to {to}, from a banned source"),
                world.clone(),
                v4(SOURCE_V4, UDP).frame(&udp(from, to, 240, 0)),
                passed(Verdict::Dhcp),
            );
        }
        self.add(
            "DHCPv6, from a banned source",
            world.clone(),
            v6(SOURCE_V6, UDP).frame(&udp(547, 546, 30, 0)),
            passed(Verdict::Dhcp),
        );
        self.add(
            "DHCP ports of the other family",
            world.clone(),
            v6(SOURCE_V6, UDP).frame(&udp(67, 68, 30, 0)),
            dropped(Verdict::Banned),
        );
        self.add(
            "one DHCP port only",
            world.clone(),
            v4(SOURCE_V4, UDP).frame(&udp(53, 68, 30, 0)),
            dropped(Verdict::Banned),
        );
        self.add(
            "DHCP of the wrong length",
            world,
            v4(SOURCE_V4, UDP).frame(&udp(67, 68, 240, 4)),
            dropped(Verdict::BadLength),
        );
    }

    fn flags(&mut self) {
        let world = World::enforcing();
        for (name, flags, expect) in [
            ("SYN", SYN, NEW),
            ("SYN ACK", SYN | ACK, PASS),
            ("ACK", ACK, PASS),
            ("RST", RST, PASS),
            ("RST ACK", RST | ACK, PASS),
            ("FIN ACK", FIN | ACK, PASS),
            ("FIN PSH URG ACK", FIN | PSH | URG | ACK, PASS),
            ("PSH alone", PSH, PASS),
            ("SYN with ECN flags", SYN | 0xc0, NEW),
            ("no flag", 0, dropped(Verdict::NullFlags)),
            ("ECN flags only", 0xc0, dropped(Verdict::NullFlags)),
            ("FIN PSH URG", FIN | PSH | URG, dropped(Verdict::Xmas)),
            ("all six flags", 0x3f, dropped(Verdict::Xmas)),
            ("SYN FIN", SYN | FIN, dropped(Verdict::SynFin)),
            ("SYN FIN ACK", SYN | FIN | ACK, dropped(Verdict::SynFin)),
            ("SYN RST", SYN | RST, dropped(Verdict::SynRst)),
            ("SYN RST FIN", SYN | RST | FIN, dropped(Verdict::SynFin)),
            ("FIN", FIN, dropped(Verdict::FinNoAck)),
            ("FIN RST", FIN | RST, dropped(Verdict::FinNoAck)),
        ] {
            self.both(name, &world, TCP, &tcp(flags, 5), expect);
        }
        let lenient = with(|world| {
            world.sanity.remove(&Verdict::SynFin);
            world.sanity.remove(&Verdict::FinNoAck);
        });
        self.both("SYN FIN with both rules off", &lenient, TCP, &tcp(SYN | FIN, 5), NEW);
        let observing = with(|world| world.mode = Mode::Observe);
        self.both("no flag, observing", &observing, TCP, &tcp(0, 5), (Verdict::NullFlags, Action::WouldDrop));
    }

    fn addresses(&mut self) {
        let world = World::enforcing();
        let land4 = V4 { destination: SOURCE_V4, ..v4(SOURCE_V4, UDP) };
        let land6 = V6 { destination: SOURCE_V6, ..v6(SOURCE_V6, UDP) };
        self.add("LAND, v4", world.clone(), land4.frame(&udp(1, 2, 0, 0)), dropped(Verdict::Land));
        self.add("LAND, v6", world, land6.frame(&udp(1, 2, 0, 0)), dropped(Verdict::Land));
        let own = with(|world| world.own.extend([source_v4(), source_v6()]));
        self.both("own address as source", &own, UDP, &udp(1, 2, 0, 0), dropped(Verdict::OwnSource));
        self.add(
            "own address as source, a later fragment",
            own.clone(),
            V4 { fragment: 9, ..v4(SOURCE_V4, UDP) }.frame(&[0; 8]),
            dropped(Verdict::OwnSource),
        );
        self.add(
            "a stranger while own addresses are known, v4",
            own.clone(),
            v4([203, 0, 113, 9], UDP).frame(&udp(1, 2, 0, 0)),
            PASS,
        );
        // Same value in the filter: the table decides.
        self.add(
            "a stranger in the own /64, v6",
            own,
            v6(neighbour(SOURCE_V6), UDP).frame(&udp(1, 2, 0, 0)),
            PASS,
        );
        let off = with(|world| {
            world.own.extend([source_v4(), source_v6()]);
            world.sanity.remove(&Verdict::OwnSource);
        });
        self.both("own address as source with the rule off", &off, UDP, &udp(1, 2, 0, 0), PASS);
    }

    fn bans(&mut self) {
        let world = banned(STANDING);
        self.both("banned, TCP", &world, TCP, &tcp(ACK, 5), dropped(Verdict::Banned));
        self.both("banned, UDP", &world, UDP, &udp(1, 2, 0, 0), dropped(Verdict::Banned));
        self.both("banned, another protocol", &world, 47, &[0; 4], dropped(Verdict::Banned));
        self.add(
            "banned, a later fragment",
            world.clone(),
            V4 { fragment: 9, ..v4(SOURCE_V4, UDP) }.frame(&[0; 8]),
            dropped(Verdict::Banned),
        );
        self.add(
            "banned, too many extension headers",
            world.clone(),
            v6(SOURCE_V6, 60).frame(
                &[
                    extension(60, 0),
                    extension(60, 0),
                    extension(60, 0),
                    extension(60, 0),
                    extension(60, 0),
                    extension(60, 0),
                ]
                .concat(),
            ),
            dropped(Verdict::Banned),
        );
        self.add(
            "banned, behind a tag",
            world.clone(),
            tagged(&[VLAN], IPV4, &v4(SOURCE_V4, TCP).packet(&tcp(ACK, 5))),
            dropped(Verdict::Banned),
        );
        self.add(
            "a neighbour in the banned /64",
            world.clone(),
            v6(neighbour(SOURCE_V6), TCP).frame(&tcp(ACK, 5)),
            dropped(Verdict::Banned),
        );
        self.add(
            "a stranger while others are banned, v4",
            world.clone(),
            v4([198, 51, 100, 8], TCP).frame(&tcp(ACK, 5)),
            PASS,
        );
        self.add(
            "sanity speaks before the ban",
            world,
            v4(SOURCE_V4, TCP).frame(&tcp(0, 5)),
            dropped(Verdict::NullFlags),
        );
        self.both("ban ended", &banned(Ban { is_expired: true, is_dynamic: false }), TCP, &tcp(ACK, 5), PASS);
        let mut allowed = banned(STANDING);
        allowed.allow = parse(&["198.51.100.0/24", "2001:db8:51::/48"]);
        self.both("banned but allowed", &allowed, TCP, &tcp(ACK, 5), passed(Verdict::Allowed));
        self.add(
            "the allow list does not excuse sanity",
            allowed.clone(),
            v4(SOURCE_V4, TCP).frame(&tcp(0, 5)),
            dropped(Verdict::NullFlags),
        );
        let mut observing = banned(STANDING);
        observing.mode = Mode::Observe;
        self.both("banned, observing", &observing, TCP, &tcp(ACK, 5), (Verdict::Banned, Action::WouldDrop));
        for (name, on_stale, is_dynamic, expect) in [
            (
                "operator's ban, no heartbeat, keep-limits",
                OnStale::KeepLimits,
                false,
                dropped(Verdict::Banned),
            ),
            ("dynamic ban, no heartbeat, keep-limits", OnStale::KeepLimits, true, PASS),
            ("operator's ban, no heartbeat, sanity-only", OnStale::SanityOnly, false, PASS),
            ("operator's ban, no heartbeat, pass", OnStale::Pass, false, PASS),
        ] {
            let mut world = banned(Ban { is_expired: false, is_dynamic });
            (world.is_stale, world.on_stale) = (true, on_stale);
            self.both(name, &world, TCP, &tcp(ACK, 5), expect);
        }
        let fresh = banned(Ban { is_expired: false, is_dynamic: true });
        self.both("dynamic ban with a heartbeat", &fresh, TCP, &tcp(ACK, 5), dropped(Verdict::Banned));
    }

    fn limit(&mut self) {
        let limited = with(|world| world.syn = Limit::new(1, 3));
        let mut repeat = |name: &str, world: &World, flags: u8, before: u32, expect: (Verdict, Action)| {
            self.0.push(Row {
                name: format!("{name}, v4"),
                world: world.clone(),
                frame: v4(SOURCE_V4, TCP).frame(&tcp(flags, 5)),
                before,
                expect,
            });
            self.0.push(Row {
                name: format!("{name}, v6"),
                world: world.clone(),
                frame: v6(SOURCE_V6, TCP).frame(&tcp(flags, 5)),
                before,
                expect,
            });
        };
        repeat("last SYN of the burst", &limited, SYN, 2, NEW);
        repeat("first SYN beyond the burst", &limited, SYN, 3, dropped(Verdict::SynRate));
        repeat("SYN with data flags beyond the burst", &limited, SYN | PSH, 3, dropped(Verdict::SynRate));
        repeat("ACKs are not counted", &limited, ACK, 50, PASS);
        repeat("SYN ACKs are not counted", &limited, SYN | ACK, 50, PASS);
        let mut allowed = limited.clone();
        allowed.allow = parse(&["198.51.100.7/32", "2001:db8:51:7::/64"]);
        repeat("allowed beyond the burst", &allowed, SYN, 3, passed(Verdict::Allowed));
        let mut observing = limited.clone();
        observing.mode = Mode::Observe;
        repeat("beyond the burst, observing", &observing, SYN, 3, (Verdict::SynRate, Action::WouldDrop));
        let mut off = limited.clone();
        off.syn = None;
        repeat("SYN limit off", &off, SYN, 50, NEW);
        for (name, on_stale, expect) in [
            ("keep-limits", OnStale::KeepLimits, dropped(Verdict::SynRate)),
            ("sanity-only", OnStale::SanityOnly, NEW),
            ("pass", OnStale::Pass, NEW),
        ] {
            let mut world = limited.clone();
            (world.is_stale, world.on_stale) = (true, on_stale);
            repeat(&format!("beyond the burst, no heartbeat, {name}"), &world, SYN, 3, expect);
        }
    }

    /// `before` copies, then the one that counts, in both families.
    fn after(
        &mut self,
        name: &str,
        world: &World,
        protocol: u8,
        payload: &[u8],
        before: u32,
        expect: (Verdict, Action),
    ) {
        self.both(name, world, protocol, payload, expect);
        self.0.iter_mut().rev().take(2).for_each(|row| row.before = before);
    }

    fn ports(&mut self) {
        let (syn, answer) = (tcp(SYN, 5), udp(53, 40_000, 8, 0));
        let locked = ours(|world| world.lockdown = true);
        let open = |ports: &[(Transport, u16)]| {
            ours(|world| {
                world.lockdown = true;
                let settings = PortSettings { is_open: true, pace: None };
                world.ports =
                    ports.iter().map(|(transport, number)| (port(*transport, *number), settings)).collect();
            })
        };
        let closed = dropped(Verdict::PortClosed);
        self.both("lockdown, SYN", &locked, TCP, &syn, closed);
        self.both("lockdown, UDP", &locked, UDP, &udp(53, 4_000, 8, 0), closed);
        self.both("lockdown, UDP to an ephemeral port without a socket", &locked, UDP, &answer, closed);
        let mut translating = locked.clone();
        translating.translates = true;
        self.both("lockdown and translation, an answer to somebody behind", &translating, UDP, &answer, PASS);
        let mut high = syn.clone();
        if let [_, _, port @ .., _] = high.as_mut_slice()
            && let Some(port) = port.first_chunk_mut::<2>()
        {
            *port = 40_001_u16.to_be_bytes();
        }
        self.both("lockdown and translation, SYN to an ephemeral port", &translating, TCP, &high, closed);
        self.both("lockdown and translation, UDP", &translating, UDP, &udp(53, 4_000, 8, 0), closed);
        self.both("lockdown, another protocol", &locked, 132, &[0; 8], closed);
        self.both("lockdown, segments of connections", &locked, TCP, &tcp(ACK, 5), PASS);
        self.plain_in("lockdown, echo request, v4", &locked, v4(SOURCE_V4, ICMP).frame(&icmp(8, 0, 0)), PASS);
        self.plain_in(
            "lockdown, echo request, v6",
            &locked,
            v6(SOURCE_V6, ICMPV6).frame(&icmp(128, 0, 0)),
            PASS,
        );
        self.both("lockdown, open TCP port", &open(&[(Transport::Tcp, 443)]), TCP, &syn, NEW);
        self.both(
            "lockdown, the number is open for UDP only",
            &open(&[(Transport::Udp, 443)]),
            TCP,
            &syn,
            closed,
        );
        self.both(
            "lockdown, open UDP port",
            &open(&[(Transport::Udp, 4_000)]),
            UDP,
            &udp(53, 4_000, 8, 0),
            PASS,
        );
        let mut elsewhere = World::enforcing();
        elsewhere.lockdown = true;
        self.both("lockdown, forwarded", &elsewhere, TCP, &syn, NEW);
        let mut allowed = locked.clone();
        allowed.allow = parse(&["198.51.100.7/32", "2001:db8:51:7::/64"]);
        self.both("lockdown, the allow list opens no port", &allowed, TCP, &syn, closed);
        let mut observing = locked.clone();
        observing.mode = Mode::Observe;
        self.both("lockdown, observing", &observing, TCP, &syn, (Verdict::PortClosed, Action::WouldDrop));
        for (name, on_stale, expect) in [
            ("keep-limits", OnStale::KeepLimits, closed),
            ("sanity-only", OnStale::SanityOnly, NEW),
            ("pass", OnStale::Pass, NEW),
        ] {
            let mut world = locked.clone();
            (world.is_stale, world.on_stale) = (true, on_stale);
            self.both(&format!("lockdown, no heartbeat, {name}"), &world, TCP, &syn, expect);
        }
        let limited = |transport, number| {
            ours(|world| {
                let settings = PortSettings { is_open: false, pace: Some(SLOW_3) };
                world.ports.insert(port(transport, number), settings);
            })
        };
        let tcp_limited = limited(Transport::Tcp, 443);
        self.after("last new connection of a port", &tcp_limited, TCP, &syn, 2, NEW);
        self.after(
            "first new connection beyond a port's limit",
            &tcp_limited,
            TCP,
            &syn,
            3,
            dropped(Verdict::PortRate),
        );
        let mut allowed = tcp_limited.clone();
        allowed.allow = parse(&["198.51.100.7/32", "2001:db8:51:7::/64"]);
        self.after("a port's limit knows no allow list", &allowed, TCP, &syn, 3, dropped(Verdict::PortRate));
        let udp_limited = limited(Transport::Udp, 4_000);
        let datagram = udp(53, 4_000, 8, 0);
        self.after("last UDP packet of a port", &udp_limited, UDP, &datagram, 2, PASS);
        self.after(
            "first UDP packet beyond a port's limit",
            &udp_limited,
            UDP,
            &datagram,
            3,
            dropped(Verdict::UdpRate),
        );
        self.after("UDP to another port", &udp_limited, UDP, &udp(53, 4_001, 8, 0), 9, PASS);
    }

    fn budget(&mut self) {
        let syn = tcp(SYN, 10);
        let budget = |cookies| {
            ours(|world| {
                (world.budget, world.cookies, world.listening) = (Some(SLOW_3), cookies, [443].into());
            })
        };
        let (without, with) = (budget(COOKIES_OFF), budget(COOKIES_PLAIN));
        let cookie = (Verdict::SynCookie, Action::Answer);
        self.after("last SYN of a port's budget", &with, TCP, &syn, 2, NEW);
        self.after("first SYN beyond the budget trickles", &with, TCP, &syn, 3, passed(Verdict::SynTrickle));
        self.after("second SYN beyond the budget is answered", &with, TCP, &syn, 4, cookie);
        self.after(
            "beyond the budget without cookies",
            &without,
            TCP,
            &syn,
            9,
            passed(Verdict::SynOverBudget),
        );
        for (name, world) in [("with", &with), ("without", &without)] {
            let mut deaf = world.clone();
            deaf.listening.clear();
            self.after(&format!("last SYN to a deaf port, {name} cookies"), &deaf, TCP, &syn, 2, NEW);
            self.after(
                &format!("SYN beyond a deaf port's budget, {name} cookies"),
                &deaf,
                TCP,
                &syn,
                3,
                dropped(Verdict::NoListener),
            );
            let mut translating = deaf.clone();
            translating.translates = true;
            self.after(
                &format!("SYN beyond a budget, somebody behind may listen, {name} cookies"),
                &translating,
                TCP,
                &syn,
                3,
                passed(Verdict::SynOverBudget),
            );
        }
        let mut source_limited = with.clone();
        (source_limited.syn, source_limited.armed) = (Limit::new(1, 1), [443].into());
        self.after("an armed port does not count SYNs by source", &source_limited, TCP, &syn, 1, cookie);
        let mut translating = source_limited.clone();
        (translating.translates, translating.listening) = (true, [].into());
        self.after(
            "an armed port of somebody behind counts SYNs by source",
            &translating,
            TCP,
            &syn,
            1,
            dropped(Verdict::SynRate),
        );
        source_limited.cookies = COOKIES_OFF;
        self.after(
            "a port over its budget without cookies goes on counting by source",
            &source_limited,
            TCP,
            &syn,
            1,
            dropped(Verdict::SynRate),
        );
        let mut allowed = with.clone();
        allowed.allow = parse(&["198.51.100.7/32", "2001:db8:51:7::/64"]);
        self.after("cookies know no allow list", &allowed, TCP, &syn, 4, cookie);
        let mut observing = with.clone();
        observing.mode = Mode::Observe;
        self.after(
            "beyond the budget, observing",
            &observing,
            TCP,
            &syn,
            4,
            (Verdict::SynCookie, Action::WouldAnswer),
        );
        for (name, on_stale, expect) in [
            ("keep-limits", OnStale::KeepLimits, cookie),
            ("sanity-only", OnStale::SanityOnly, NEW),
            ("pass", OnStale::Pass, NEW),
        ] {
            let mut world = with.clone();
            (world.is_stale, world.on_stale) = (true, on_stale);
            self.after(&format!("beyond the budget, no heartbeat, {name}"), &world, TCP, &syn, 4, expect);
        }
        let mut armed = with.clone();
        armed.armed = [443].into();
        self.after("a port that is armed already", &armed, TCP, &syn, 1, cookie);
        self.after(
            "SYN with data to an armed port",
            &armed,
            TCP,
            &[syn.clone(), vec![7; 100]].concat(),
            1,
            cookie,
        );
        self.after("SYN without options to an armed port", &armed, TCP, &tcp(SYN, 5), 1, cookie);
        let unanswered = passed(Verdict::SynOverBudget);
        let mut odd = |name: &str, frame| {
            self.0.push(Row {
                name: name.to_owned(),
                world: armed.clone(),
                frame,
                before: 1,
                expect: unanswered,
            });
        };
        odd("SYN with IPv4 options to an armed port", V4 { options: 4, ..v4(SOURCE_V4, TCP) }.frame(&syn));
        odd("SYN behind a tag to an armed port", tagged(&[VLAN], IPV4, &v4(SOURCE_V4, TCP).packet(&syn)));
        odd(
            "SYN behind an extension header to an armed port",
            v6(SOURCE_V6, 60).frame(&[extension(TCP, 0), syn.clone()].concat()),
        );
        let mut other = armed.clone();
        other.armed = [80].into();
        self.after("another port is armed", &other, TCP, &syn, 0, NEW);
        let mut forwarded = armed.clone();
        forwarded.own.clear();
        self.after("forwarded SYNs have no budget", &forwarded, TCP, &syn, 9, NEW);
        let mut unlimited = armed.clone();
        unlimited.budget = None;
        self.after("no budget, no cookies", &unlimited, TCP, &syn, 1, NEW);
    }

    fn segments(&mut self) {
        let judged = ours(|world| world.segments = Limit::new(1, 3));
        let refused = dropped(Verdict::NoSocket);
        for (name, flags) in
            [("ACK", ACK), ("SYN ACK", SYN | ACK), ("RST", RST), ("FIN ACK", FIN | ACK), ("data", PSH | ACK)]
        {
            let segment = tcp(flags, 5);
            self.after(&format!("last {name} without a socket"), &judged, TCP, &segment, 2, PASS);
            self.after(
                &format!("{name} without a socket beyond the limit"),
                &judged,
                TCP,
                &segment,
                3,
                refused,
            );
        }
        let ack = tcp(ACK, 5);
        let mut allowed = judged.clone();
        allowed.allow = parse(&["198.51.100.7/32", "2001:db8:51:7::/64"]);
        self.after("the no-socket limit knows no allow list", &allowed, TCP, &ack, 3, refused);
        let mut observing = judged.clone();
        observing.mode = Mode::Observe;
        self.after("no socket, observing", &observing, TCP, &ack, 4, (Verdict::NoSocket, Action::WouldDrop));
        let mut forwarded = judged.clone();
        forwarded.own.clear();
        self.after("forwarded segments are not judged by sockets", &forwarded, TCP, &ack, 9, PASS);
        let mut translating = judged.clone();
        translating.translates = true;
        self.after(
            "a host that translates refuses no segment for want of a socket",
            &translating,
            TCP,
            &ack,
            9,
            PASS,
        );
        let crowd = ours(|world| (world.segments, world.segments_host) = (Limit::new(1, 9), Some(SLOW_3)));
        self.after("the last segment without a socket that all sources have", &crowd, TCP, &ack, 2, PASS);
        self.after("segments without a socket beyond what all sources have", &crowd, TCP, &ack, 3, refused);
        let mut stale = judged.clone();
        (stale.is_stale, stale.on_stale) = (true, OnStale::SanityOnly);
        self.after("no socket, no heartbeat, sanity-only", &stale, TCP, &ack, 4, PASS);
        self.after("no-socket limit off", &ours(|_| {}), TCP, &ack, 50, PASS);
    }

    fn icmp_limits(&mut self) {
        let limits = |per_source, host, ceiling| {
            with(|world| {
                world.icmp =
                    Some(IcmpLimits { per_source: Limit::new(1, per_source).unwrap_or(NEVER), host, ceiling })
            })
        };
        let by_source = limits(3, [1, 1_000_000_000_000], SLOW_3);
        let by_host = limits(100, SLOW_3, SLOW_3);
        let mut both = |name: &str, world: &World, of_v4: (u8, u8), of_v6: (u8, u8), before: u32, expect| {
            for (family, frame) in [
                ("v4", v4(SOURCE_V4, ICMP).frame(&icmp(of_v4.0, of_v4.1, 8))),
                ("v6", v6(SOURCE_V6, ICMPV6).frame(&icmp(of_v6.0, of_v6.1, 8))),
            ] {
                self.0.push(Row {
                    name: format!("{name}, {family}"),
                    world: world.clone(),
                    frame,
                    before,
                    expect,
                });
            }
        };
        let (echo, echo6, reply, reply6) = ((8, 0), (128, 0), (0, 0), (129, 0));
        both("last echo request of a source", &by_source, echo, echo6, 2, PASS);
        both(
            "echo request beyond the source's limit",
            &by_source,
            echo,
            echo6,
            3,
            dropped(Verdict::IcmpRate),
        );
        both("last echo request of the host", &by_host, echo, echo6, 2, PASS);
        both(
            "echo request beyond the host's limit",
            &by_host,
            echo,
            echo6,
            3,
            dropped(Verdict::IcmpHostRate),
        );
        both("last echo reply under the ceiling", &by_source, reply, reply6, 2, PASS);
        both("echo reply beyond the ceiling", &by_source, reply, reply6, 3, dropped(Verdict::IcmpCeiling));
        both("path MTU under the ceiling", &by_source, (3, 4), (2, 0), 2, passed(Verdict::PathMtu));
        both("path MTU beyond the ceiling", &by_source, (3, 4), (2, 0), 3, dropped(Verdict::IcmpCeiling));
        let mut allowed = by_source.clone();
        allowed.allow = parse(&["198.51.100.7/32", "2001:db8:51:7::/64"]);
        both("allowed echo requests", &allowed, echo, echo6, 3, passed(Verdict::Allowed));
        both("the ceiling knows no allow list", &allowed, reply, reply6, 3, dropped(Verdict::IcmpCeiling));
        let neighbour = V6 { hops: 255, ..v6(SOURCE_V6, ICMPV6) }.frame(&icmp(135, 0, 16));
        self.0.push(Row {
            name: "neighbour discovery has no limit".to_owned(),
            world: limits(1, SLOW_3, SLOW_3),
            frame: neighbour,
            before: 50,
            expect: passed(Verdict::NeighbourDiscovery),
        });
    }

    fn banned_nets(&mut self) {
        let nets = |rows: &[(&str, Ban)]| {
            with(|world| {
                world.banned_nets = rows
                    .iter()
                    .flat_map(|(text, ban)| parse(&[text]).into_iter().map(|prefix| (prefix, *ban)))
                    .collect();
            })
        };
        let ack = tcp(ACK, 5);
        let ended = Ban { is_expired: true, is_dynamic: false };
        let (wide, refused) =
            (nets(&[("198.51.0.0/16", STANDING), ("2001:db8::/32", STANDING)]), dropped(Verdict::BannedNet));
        self.both("banned range", &wide, TCP, &ack, refused);
        self.both(
            "beside a banned range",
            &nets(&[("198.52.0.0/16", STANDING), ("2001:db9::/32", STANDING)]),
            TCP,
            &ack,
            PASS,
        );
        self.both(
            "banned range, ended",
            &nets(&[("198.51.0.0/16", ended), ("2001:db8::/32", ended)]),
            TCP,
            &ack,
            PASS,
        );
        self.both(
            "the longest range decides",
            &nets(&[
                ("198.51.0.0/16", STANDING),
                ("198.51.100.0/24", ended),
                ("2001:db8::/32", STANDING),
                ("2001:db8:51::/48", ended),
            ]),
            TCP,
            &ack,
            PASS,
        );
        let mut allowed = wide.clone();
        allowed.allow = parse(&["198.51.100.7/32", "2001:db8:51:7::/64"]);
        self.both("allowed in a banned range", &allowed, TCP, &ack, passed(Verdict::Allowed));
        let mut observing = wide.clone();
        observing.mode = Mode::Observe;
        self.both("banned range, observing", &observing, TCP, &ack, (Verdict::BannedNet, Action::WouldDrop));
        let neighbour = V6 { hops: 255, ..v6(SOURCE_V6, ICMPV6) }.frame(&icmp(135, 0, 16));
        self.add(
            "neighbour discovery from a banned range",
            wide.clone(),
            neighbour,
            passed(Verdict::NeighbourDiscovery),
        );
    }

    fn plain_in(&mut self, name: &str, world: &World, frame: Vec<u8>, expect: (Verdict, Action)) {
        self.add(name, world.clone(), frame, expect);
    }

    fn policies(&mut self) {
        let packet = v4(SOURCE_V4, TCP).packet(&tcp(ACK, 5));
        let strict = with(|world| {
            world.drop_uninspected.extend([
                Verdict::UnknownEthertype,
                Verdict::VlanDepth,
                Verdict::ExtensionHeaders,
                Verdict::LaterFragment,
                Verdict::Tunnel,
            ]);
        });
        let deep = [vec![VLAN; 3]].concat();
        let seven: Vec<u8> = (0..7).flat_map(|_| extension(60, 0)).collect();
        for (name, frame, verdict) in [
            ("unknown EtherType", ethernet(0x88cc, &[0; 40]), Verdict::UnknownEthertype),
            ("three tags", tagged(&deep, IPV4, &packet), Verdict::VlanDepth),
            ("seven extension headers", v6(SOURCE_V6, 60).frame(&seven), Verdict::ExtensionHeaders),
            ("tunnel", v4(SOURCE_V4, 47).frame(&[0; 4]), Verdict::Tunnel),
            (
                "later fragment",
                V4 { fragment: 9, ..v4(SOURCE_V4, UDP) }.frame(&[0; 8]),
                Verdict::LaterFragment,
            ),
        ] {
            self.add(format!("{name}, dropped by policy"), strict.clone(), frame.clone(), dropped(verdict));
            let mut observing = strict.clone();
            observing.mode = Mode::Observe;
            self.add(
                format!("{name}, dropped by policy, observing"),
                observing,
                frame.clone(),
                (verdict, Action::WouldDrop),
            );
            let mut silent = strict.clone();
            (silent.is_stale, silent.on_stale) = (true, OnStale::Pass);
            self.add(
                format!("{name}, dropped by policy, no heartbeat, pass"),
                silent,
                frame,
                passed(verdict),
            );
        }
        self.add(
            "ARP under the strictest policy",
            strict.clone(),
            ethernet(0x0806, &[0; 28]),
            passed(Verdict::Arp),
        );
        let off = with(|world| world.mode = Mode::Off);
        self.both("switched off", &off, TCP, &tcp(0, 5), passed(Verdict::Unarmed));
        for (name, on_stale, expect) in [
            ("keep-limits", OnStale::KeepLimits, dropped(Verdict::NullFlags)),
            ("sanity-only", OnStale::SanityOnly, dropped(Verdict::NullFlags)),
            ("pass", OnStale::Pass, PASS),
        ] {
            let world = with(|world| (world.is_stale, world.on_stale) = (true, on_stale));
            self.both(&format!("no flag, no heartbeat, {name}"), &world, TCP, &tcp(0, 5), expect);
        }
    }
}

fn parse(prefixes: &[&str]) -> Vec<tunica_core::id::Prefix> {
    prefixes.iter().filter_map(|prefix| prefix.parse().ok()).collect()
}

/// Another address in the same /64.
fn neighbour(mut address: [u8; 16]) -> [u8; 16] {
    address[15] ^= 0x55;
    address
}

fn set(frame: &mut [u8], offset: usize, value: u8) {
    if let Some(byte) = frame.get_mut(offset) {
        *byte = value;
    }
}
