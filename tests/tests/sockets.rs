//! What the shield does where real sockets decide: cookies that come back, connections that stand, listeners.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper that fails is a test that fails"
)]

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
};

use tunica_common::{
    gcra::Limit,
    policy::{COOKIES_OFF, COOKIES_PLAIN, COOKIES_WITH_OPTIONS},
    verdict::{Action, Verdict},
};
use tunica_tests::{
    flood::checksum,
    frame::{ACK, IPV4, IPV6, PSH, RST, SYN, TCP, UDP, V4, V6, ethernet, udp, v4, v6},
    reference::World,
    rows::{SOURCE_V4, SOURCE_V6},
    shield::{Shield, listen_at},
};

const PORT: u16 = 443;

/// A port that answers every SYN with a cookie.
fn armed(cookies: u32) -> World {
    let own: BTreeSet<IpAddr> =
        [IpAddr::from([192, 0, 2, 1]), IpAddr::from(v6(SOURCE_V6, TCP).destination)].into();
    World {
        own,
        budget: Some([600_000_000_000, 0]),
        armed: [PORT].into(),
        listening: [PORT].into(),
        cookies,
        // One packet at once, used up by the first SYN.
        trickle: [u64::MAX / 4, 0],
        segments: Limit::new(1, 2),
        ..World::enforcing()
    }
}

/// A TCP segment with these options.
fn segment(ports: (u16, u16), sequence: u32, acknowledged: u32, flags: u8, options: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(ports.0.to_be_bytes());
    bytes.extend(ports.1.to_be_bytes());
    bytes.extend(sequence.to_be_bytes());
    bytes.extend(acknowledged.to_be_bytes());
    let words = u8::try_from(5 + options.len() / 4).unwrap();
    bytes.extend([words << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    bytes.extend(options);
    bytes
}

/// The same segment in both families.
fn both(source_host: u8, bytes: &[u8]) -> [Vec<u8>; 2] {
    let [mut of_v4, mut of_v6] = [SOURCE_V4.to_vec(), SOURCE_V6.to_vec()];
    (of_v4[3], of_v6[7]) = (source_host, source_host);
    let of_v4: [u8; 4] = of_v4.try_into().unwrap();
    let of_v6: [u8; 16] = of_v6.try_into().unwrap();
    [v4(of_v4, TCP).frame(bytes), v6(of_v6, TCP).frame(bytes)]
}

/// What an answer says.
#[derive(Debug)]
struct Answer {
    cookie: u32,
    acknowledged: u32,
    flags: u8,
    options: Vec<u8>,
}

/// Checks every field of an answer that follows from the frame it answers, both checksums among them.
fn read_answer(asked: &[u8], answer: &[u8]) -> Answer {
    assert_eq!((&answer[..6], &answer[6..12], &answer[12..14]), (&asked[6..12], &asked[..6], &asked[12..14]));
    let is_v4 = asked[12] == 8;
    let (ip, addresses, protocol_and_length) = if is_v4 { (20, 26..34, 23) } else { (40, 22..54, 20) };
    let half = addresses.start + addresses.len() / 2;
    assert_eq!(answer[addresses.start..half], asked[half..addresses.end]);
    assert_eq!(answer[half..addresses.end], asked[addresses.start..half]);
    assert_eq!(answer[protocol_and_length], 6);
    let tcp = &answer[14 + ip..];
    if is_v4 {
        assert_eq!(usize::from(u16::from_be_bytes([answer[16], answer[17]])), answer.len() - 14);
        assert_eq!(checksum(&[&answer[14..34]]), [0, 0], "the IPv4 header's checksum");
    } else {
        assert_eq!(usize::from(u16::from_be_bytes([answer[18], answer[19]])), tcp.len());
    }
    let length = u16::try_from(tcp.len()).unwrap().to_be_bytes();
    assert_eq!(checksum(&[&answer[addresses], &[0, 6], &length, tcp]), [0, 0], "the TCP checksum");
    let asked_tcp = &asked[14 + ip..];
    assert_eq!((&tcp[..2], &tcp[2..4]), (&asked_tcp[2..4], &asked_tcp[..2]));
    assert_eq!(usize::from(tcp[12] >> 4) * 4, tcp.len());
    let word = |at: usize| u32::from_be_bytes(tcp[at..at + 4].try_into().unwrap());
    Answer { cookie: word(4), acknowledged: word(8), flags: tcp[13], options: tcp[20..].to_vec() }
}

/// MSS 1460, SACK, timestamps 7 and 0, a filler, window scale 9: what Linux sends.
const LINUX: [u8; 20] = [2, 4, 5, 180, 4, 2, 8, 10, 0, 0, 0, 7, 0, 0, 0, 0, 1, 3, 3, 9];

fn answered(shield: &mut Shield, frame: &[u8]) -> Answer {
    let (verdict, action, _, sent) = shield.run_and_see(frame).unwrap();
    assert_eq!((verdict, action), (Verdict::SynCookie, Action::Answer));
    read_answer(frame, &sent)
}

#[test]
fn a_cookie_that_comes_back_proves_its_source() {
    let mut shield = Shield::load().unwrap();
    shield.set(&armed(COOKIES_PLAIN)).unwrap();
    for family in 0..2 {
        shield.set(&armed(COOKIES_PLAIN)).unwrap();
        let ports = (40_000, PORT);
        let syn = &both(7, &segment(ports, 1_000, 0, SYN, &LINUX))[family];
        shield.repeat(syn, 1).unwrap();
        shield.settle().unwrap();
        let answer = answered(&mut shield, syn);
        assert_eq!((answer.acknowledged, answer.flags), (1_001, SYN | ACK));
        let mss = if family == 0 { 1_460u16 } else { 1_440 };
        assert_eq!(answer.options, [[2, 4], mss.to_be_bytes()].concat());
        let ack = |cookie: u32| both(7, &segment(ports, 1_001, cookie, ACK, &[]))[family].clone();
        let good = ack(answer.cookie.wrapping_add(1));
        for _ in 0..5 {
            assert_eq!(shield.run(&good).unwrap().0, Verdict::CookieAck);
        }
        // Another number is no cookie; neither is a good one with another sender, port, or with RST.
        let wrong = [
            ack(answer.cookie.wrapping_add(0x0010_0001)),
            both(8, &segment(ports, 1_001, answer.cookie.wrapping_add(1), ACK, &[]))[family].clone(),
            both(7, &segment((40_001, PORT), 1_001, answer.cookie.wrapping_add(1), ACK, &[]))[family].clone(),
            both(7, &segment(ports, 1_001, answer.cookie.wrapping_add(1), ACK | RST, &[]))[family].clone(),
        ];
        for frame in &wrong {
            let verdict = shield.run(frame).unwrap().0;
            assert!(matches!(verdict, Verdict::Pass | Verdict::NoSocket), "{verdict:?}");
        }
        assert_eq!(shield.run(&wrong[0]).unwrap().0, Verdict::NoSocket, "bad cookies are limited by source");
    }
}

#[test]
fn returned_cookies_count_for_their_source_once_each() {
    use Verdict::{CookieAck, SynRate};
    let mut shield = Shield::load().unwrap();
    for family in 0..2 {
        let world = World { syn: Limit::new(1, 3), ..armed(COOKIES_PLAIN) };
        shield.set(&world).unwrap();
        let syn = |port: u16| both(7, &segment((port, PORT), 1_000, 0, SYN, &LINUX))[family].clone();
        shield.repeat(&syn(1), 1).unwrap();
        shield.settle().unwrap();
        let mut outcomes = Vec::new();
        for port in 40_000..40_005 {
            let cookie = answered(&mut shield, &syn(port)).cookie;
            let back = segment((port, PORT), 1_001, cookie.wrapping_add(1), ACK, &[]);
            let data = segment((port, PORT), 1_001, cookie.wrapping_add(1), ACK | PSH, &[]);
            outcomes.push(shield.run(&both(7, &back)[family]).unwrap().0);
            // What follows before the listener has made a socket belongs to the same connection and shares its fate.
            for _ in 0..3 {
                assert_eq!(Some(&shield.run(&both(7, &data)[family]).unwrap().0), outcomes.last());
            }
        }

        assert_eq!(outcomes, [CookieAck, CookieAck, CookieAck, SynRate, SynRate]);
        // Each connection too many is one proof, however many segments it has.
        assert_eq!(shield.proofs().unwrap(), 2);
    }
}

#[test]
fn cookies_of_the_kernel_are_not_counted_again() {
    let mut shield = Shield::load().unwrap();
    for family in 0..2 {
        // A cookie of this host, made while the shield may.
        shield.set(&armed(COOKIES_PLAIN)).unwrap();
        let syn = &both(7, &segment((40_000, PORT), 1_000, 0, SYN, &LINUX))[family];
        shield.repeat(syn, 1).unwrap();
        shield.settle().unwrap();
        let cookie = answered(&mut shield, syn).cookie;
        // The port is over its budget, and the shield may not answer: the SYN was counted when it came.
        let world = World { syn: Limit::new(1, 1), cookies: COOKIES_OFF, ..armed(COOKIES_OFF) };
        shield.set(&world).unwrap();
        shield.settle().unwrap();
        let back = &both(7, &segment((40_000, PORT), 1_001, cookie.wrapping_add(1), ACK, &[]))[family];
        for _ in 0..5 {
            assert_eq!(shield.run(back).unwrap().0, Verdict::CookieAck);
        }
        assert_eq!(shield.proofs().unwrap(), 0);
    }
}

#[test]
fn options_travel_in_the_timestamp_where_the_listener_reads_them() {
    let mut shield = Shield::load().unwrap();
    for (name, options, scale, sack) in [
        ("Linux", LINUX.to_vec(), Some(9), true),
        ("no SACK", [vec![2, 4, 5, 180, 1, 1], LINUX[6..].to_vec()].concat(), Some(9), false),
        ("no window scale", [LINUX[..16].to_vec(), vec![1, 1, 1, 1]].concat(), None, true),
        ("a scale too large counts as 14", [LINUX[..19].to_vec(), vec![77]].concat(), Some(14), true),
        ("another order", vec![1, 3, 3, 2, 1, 1, 8, 10, 0, 0, 0, 7, 0, 0, 0, 0, 4, 2, 0, 0], Some(2), true),
    ] {
        for family in 0..2 {
            shield.set(&armed(COOKIES_WITH_OPTIONS)).unwrap();
            let syn = &both(7, &segment((40_000, PORT), 1_000, 0, SYN, &options))[family];
            shield.repeat(syn, 1).unwrap();
            shield.settle().unwrap();
            let answer = answered(&mut shield, syn);
            let [_, _, _, _, s0, s1, 8, 10, t0, t1, t2, t3, 0, 0, 0, 7, rest @ ..] =
                answer.options.as_slice()
            else {
                panic!("{name}: {:?}", answer.options);
            };
            assert_eq!([*s0, *s1], if sack { [4, 2] } else { [1, 1] }, "{name}");
            assert_eq!(rest, if scale.is_some() { [1, 3, 3, 7] } else { [1, 1, 1, 1] }, "{name}");
            // net/ipv4/syncookies.c, cookie_timestamp_decode.
            let carried = t3 & 0x3f;
            assert_eq!(carried & 0xf, scale.unwrap_or(0xf), "{name}");
            assert_eq!(carried & 0x10 != 0, sack, "{name}");
            let milliseconds = tunicad::sys::monotonic_ns().unwrap() / 1_000_000;
            let age = (milliseconds as u32).wrapping_sub(u32::from_be_bytes([*t0, *t1, *t2, *t3]));
            assert!(age < 5_000, "{name}: {age} ms old");
        }
    }
    // Without a timestamp nothing can be carried; a list that ends too early or has a length of 0 carries nothing.
    for options in [
        vec![],
        vec![2, 4, 5, 180],
        vec![2, 4, 5, 180, 3, 3, 9, 1],
        vec![8, 0, 0, 0, 3, 3, 9, 1, 8, 10, 0, 0, 0, 7, 0, 0, 0, 0, 1, 1],
        vec![1, 1, 8, 10],
        vec![0, 0, 8, 10, 0, 0, 0, 7, 0, 0, 0, 0],
    ] {
        for family in 0..2 {
            shield.set(&armed(COOKIES_WITH_OPTIONS)).unwrap();
            let syn = &both(7, &segment((40_000, PORT), 1_000, 0, SYN, &options))[family];
            shield.repeat(syn, 1).unwrap();
            shield.settle().unwrap();
            assert_eq!(answered(&mut shield, syn).options.len(), 4, "{options:?}");
        }
    }
}

#[test]
fn connections_that_stand_are_left_alone() {
    let mut shield = Shield::load().unwrap();
    // A real connection on loopback, between two addresses, since one alone would be a LAND attack.
    std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
    let listener = listen_at(SocketAddr::from(([127, 0, 0, 1], PORT))).unwrap();
    let mut client = connect([127, 0, 0, 2], listener.local_addr().unwrap());
    let (mut served, peer) = listener.accept().unwrap();
    let mut world = armed(COOKIES_PLAIN);
    world.own = [IpAddr::from([127, 0, 0, 1])].into();
    world.listening.clear();
    world.segments = Limit::new(1, 1);
    shield.set(&world).unwrap();
    shield.settle().unwrap();
    let frame = |port: u16, flags: u8| {
        let bytes = segment((port, PORT), 1, 1, flags, &[]);
        ethernet(IPV4, &V4 { destination: [127, 0, 0, 1], ..v4([127, 0, 0, 2], TCP) }.packet(&bytes))
    };
    for _ in 0..50 {
        assert_eq!(shield.run(&frame(peer.port(), ACK)).unwrap().0, Verdict::Pass);
    }
    // A SYN for it is the kernel's to judge, however armed the port.
    assert_eq!(shield.run(&frame(peer.port(), SYN)).unwrap().0, Verdict::Syn);
    // The same in TIME_WAIT, which a client may reopen.
    served.write_all(b"done").unwrap();
    drop(served);
    // Unread data would make it a reset.
    client.read_to_end(&mut Vec::new()).unwrap();
    drop(client);
    let verdicts: Vec<Verdict> = (0..3).map(|_| shield.run(&frame(peer.port(), SYN)).unwrap().0).collect();
    assert_eq!(verdicts, [Verdict::Syn; 3]);
    // No connection of ours.
    let strangers: Vec<Verdict> = (0..3).map(|_| shield.run(&frame(9, ACK)).unwrap().0).collect();
    assert_eq!(strangers, [Verdict::Pass, Verdict::NoSocket, Verdict::NoSocket]);
}

#[test]
fn a_locked_down_host_takes_answers_where_a_socket_waits() {
    let mut shield = Shield::load().unwrap();
    std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
    let socket = UdpSocket::bind("127.0.0.1:50000").unwrap();
    let own = IpAddr::from([127, 0, 0, 1]);
    shield.set(&World { own: [own].into(), lockdown: true, ..World::enforcing() }).unwrap();
    shield.settle().unwrap();
    let packet = |port: u16| {
        ethernet(
            IPV4,
            &V4 { destination: [127, 0, 0, 1], ..v4([127, 0, 0, 2], UDP) }.packet(&udp(53, port, 8, 0)),
        )
    };
    assert_eq!(shield.run(&packet(50_000)).unwrap().0, Verdict::Pass);
    assert_eq!(shield.run(&packet(50_001)).unwrap().0, Verdict::PortClosed);
    drop(socket);
    assert_eq!(shield.run(&packet(50_000)).unwrap().0, Verdict::PortClosed);
    // A socket below the ephemeral ports is a service, and needs to be listed.
    let _service = UdpSocket::bind("127.0.0.1:4000").unwrap();
    assert_eq!(shield.run(&packet(4_000)).unwrap().0, Verdict::PortClosed);
    let v6_packet = ethernet(IPV6, &V6 { ..v6(SOURCE_V6, UDP) }.packet(&udp(53, 50_000, 8, 0)));
    assert_eq!(shield.run(&v6_packet).unwrap().0, Verdict::Pass, "not for this host");
}

/// A connection from an address of loopback.
fn connect(from: [u8; 4], to: SocketAddr) -> TcpStream {
    use nix::sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrStorage, bind, connect, socket,
    };
    use std::os::fd::AsRawFd;
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    let [a, b, c, d] = from;
    bind(socket.as_raw_fd(), &SockaddrIn::new(a, b, c, d, 0)).unwrap();
    connect(socket.as_raw_fd(), &SockaddrStorage::from(to)).unwrap();
    TcpStream::from(socket)
}
