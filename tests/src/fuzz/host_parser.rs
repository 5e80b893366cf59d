//! The host's reading of frames: [`crate::reference`].
//!
//! An input is sixteen bytes that describe policy, tables and limits, all zero for [`World::enforcing`] with every limit
//! kept, and a frame.

use std::{net::IpAddr, num::NonZeroU16};

use tunica_common::{
    gcra::Limit,
    policy::{COOKIES_OFF, COOKIES_PLAIN, MAX_VLAN_TAGS},
    verdict::{Action, Class, Verdict},
};
use tunica_core::{
    id::PacketSource,
    limits::{IcmpLimits, Port, PortSettings, Transport},
};

use crate::{
    frame::{IPV4, IPV6, SERVICE_VLAN, VLAN},
    reference::{self, Ban, Counted, Mode, OnStale, World},
    rows::rows,
};

const HEAD_BYTES: usize = 16;

/// The frames of the table of packets.
pub fn seeds() -> Vec<Vec<u8>> {
    rows().into_iter().map(|row| [[0; HEAD_BYTES].as_slice(), &row.frame].concat()).collect()
}

/// Which limits have no room left: a bit for each kind of [`Counted`].
#[derive(Clone, Copy)]
struct Exhausted(u16);

impl Exhausted {
    fn has_room(self, counted: Counted) -> bool {
        let bit = match counted {
            Counted::Syn(_) => 0,
            Counted::Budget(_) => 1,
            Counted::Trickle(_) => 2,
            Counted::NewConnections(_) => 3,
            Counted::Udp(_) => 4,
            Counted::Segments(_) => 5,
            Counted::Echo(_) => 6,
            Counted::EchoHost => 7,
            Counted::IcmpCeiling => 8,
            Counted::SegmentsHost => 9,
        };
        self.0 >> bit & 1 == 0
    }
}

/// For all worlds and frames, the outcome follows from the rules in force and from the packet alone.
pub fn check(bytes: &[u8]) {
    let (head, frame) = bytes.split_at(bytes.len().min(HEAD_BYTES));
    let mut head = head;
    let (world, exhausted) = world(&mut head, frame);
    let (verdict, action) = judge(&world, frame, exhausted);
    assert_eq!(judge(&world, frame, exhausted), (verdict, action), "the same packet twice");

    if world.mode == Mode::Off {
        assert_eq!((verdict, action), (Verdict::Unarmed, Action::Pass));
        return;
    }
    assert_ne!(verdict, Verdict::Unarmed);
    let class = verdict.class();
    match action {
        Action::Pass => assert!([Class::Pass, Class::Uninspected].contains(&class), "{verdict:?} is passed"),
        Action::Drop | Action::WouldDrop => {
            assert!(![Class::Pass, Class::Cookie].contains(&class), "{verdict:?} is dropped");
        }
        Action::Answer | Action::WouldAnswer => assert_eq!(class, Class::Cookie),
    }
    if action != Action::Pass && class == Class::Uninspected {
        assert!(world.drop_uninspected.contains(&verdict), "{verdict:?} is not to be dropped");
    }
    if class == Class::Sanity {
        sanity_looks_at_the_packet_alone(&world, frame, verdict, action);
    }
    if class == Class::Ban {
        let mut world = world.clone();
        world.bans.clear();
        world.banned_nets.clear();
        assert_ne!(judge(&world, frame, exhausted).0.class(), Class::Ban, "banned without a ban");
    }
    observe_says_what_enforce_does(&world, frame, exhausted);
    nothing_is_refused_without_a_rule(&world, frame);
    limits_with_room_refuse_nothing(&world, frame);
    the_allow_list_ends_bans_and_limits(&world, frame, exhausted);
    what_stands_behind_the_packet_is_not_read(&world, frame, exhausted);
}

fn judge(world: &World, frame: &[u8], exhausted: Exhausted) -> (Verdict, Action) {
    reference::judge(world, frame, |counted| {
        if let Counted::Syn(source) = counted {
            assert!(reference::syn_source(frame) == Some(source), "the limit is asked of another source");
        }
        exhausted.has_room(counted)
    })
}

fn observe_says_what_enforce_does(world: &World, frame: &[u8], exhausted: Exhausted) {
    let in_mode = |mode| judge(&World { mode, ..world.clone() }, frame, exhausted);
    let (enforced, observed) = (in_mode(Mode::Enforce), in_mode(Mode::Observe));
    let expected = match enforced.1 {
        Action::Drop => Action::WouldDrop,
        Action::Answer => Action::WouldAnswer,
        Action::Pass => Action::Pass,
        Action::WouldDrop | Action::WouldAnswer => panic!("{enforced:?} where the shield enforces"),
    };
    assert_eq!(observed, (enforced.0, expected));
}

fn nothing_is_refused_without_a_rule(world: &World, frame: &[u8]) {
    let mut world = world.clone();
    world.sanity.clear();
    world.drop_uninspected.clear();
    without_tables_and_limits(&mut world);
    assert_eq!(judge(&world, frame, Exhausted(u16::MAX)).1, Action::Pass);
}

fn without_tables_and_limits(world: &mut World) {
    world.bans.clear();
    world.banned_nets.clear();
    world.syn = None;
    world.budget = None;
    world.lockdown = false;
    world.ports.clear();
    world.segments = None;
    world.icmp = None;
}

fn limits_with_room_refuse_nothing(world: &World, frame: &[u8]) {
    let verdict = judge(world, frame, Exhausted(0)).0;
    assert!(
        ![Class::Limit, Class::Icmp, Class::NoSocket].contains(&verdict.class()),
        "{verdict:?} within every limit"
    );
}

/// And nothing else: closed ports, budgets, cookies and sanity are not the source's affair.
fn the_allow_list_ends_bans_and_limits(world: &World, frame: &[u8], exhausted: Exhausted) {
    let mut allowing = world.clone();
    allow_all(&mut allowing);
    let mut other = world.clone();
    other.allow.clear();
    let (allowed, without) = (judge(&allowing, frame, exhausted), judge(&other, frame, exhausted));
    let class = without.0.class();
    if [Class::Ban, Class::Limit].contains(&class) || without.0 == Verdict::IcmpRate {
        assert_eq!(allowed, (Verdict::Allowed, Action::Pass));
    } else {
        assert_eq!(allowed, without);
    }
}

fn allow_all(world: &mut World) {
    world.allow = ["0.0.0.0/0", "::/0"].map(|all| all.parse().unwrap()).to_vec();
}

fn sanity_looks_at_the_packet_alone(world: &World, frame: &[u8], verdict: Verdict, action: Action) {
    assert!(world.sanity.contains(&verdict), "{verdict:?} is switched off");
    assert!(!(world.is_stale && world.on_stale == OnStale::Pass), "{verdict:?} while all is to pass");
    let mut other = world.clone();
    without_tables_and_limits(&mut other);
    allow_all(&mut other);
    let outcome = judge(&other, frame, Exhausted(u16::MAX));
    assert_eq!(outcome, (verdict, action), "tables or limits changed a sanity verdict");
    other.sanity.remove(&verdict);
    assert_ne!(judge(&other, frame, Exhausted(0)).0, verdict, "a rule that is switched off");
}

/// A short frame is padded to 60 bytes, with whatever the sender likes.
fn what_stands_behind_the_packet_is_not_read(world: &World, frame: &[u8], exhausted: Exhausted) {
    let Some(packet) = without_padding(frame) else { return };
    let outcome = judge(world, packet, exhausted);
    assert_eq!(judge(world, frame, exhausted), outcome, "padding changes the outcome");
    assert_eq!(
        judge(world, &[packet, &[0xff; 64]].concat(), exhausted),
        outcome,
        "padding changes the outcome"
    );
    assert_eq!(judge(world, &[packet, &[0; 64]].concat(), exhausted), outcome, "padding changes the outcome");
}

/// The frame up to the end that its IP header names, if that lies behind the header and within the frame.
fn without_padding(frame: &[u8]) -> Option<&[u8]> {
    let mut at = 12;
    for _ in 0..MAX_VLAN_TAGS {
        if [VLAN, SERVICE_VLAN].contains(&u16_at(frame, at)?) {
            at += 4;
        }
    }
    let ip = at + 2;
    let bytes = match u16_at(frame, at)? {
        IPV4 => usize::from(u16_at(frame, ip + 2)?).checked_sub(20)? + 20,
        IPV6 => usize::from(u16_at(frame, ip + 4)?) + 40,
        _ => return None,
    };
    frame.get(..ip + bytes)
}

/// Policy, tables and limits as the head describes them.
fn world(head: &mut &[u8], frame: &[u8]) -> (World, Exhausted) {
    let mut world = World::enforcing();
    let modes = super::take_byte(head);
    world.mode = match modes & 3 {
        1 => Mode::Observe,
        2 => Mode::Off,
        _ => Mode::Enforce,
    };
    world.is_stale = modes & 4 != 0;
    world.on_stale = match modes >> 3 & 3 {
        1 => OnStale::SanityOnly,
        2 => OnStale::Pass,
        _ => OnStale::KeepLimits,
    };

    let tables = super::take_byte(head);
    let ban = Ban { is_expired: tables & 1 != 0, is_dynamic: tables & 2 != 0 };
    let ip = 14 + 4 * usize::from(super::take_byte(head) % 3);
    for (source, destination) in addresses(frame, ip) {
        if tables & 4 != 0 {
            world.bans.insert(PacketSource::of(source), ban);
        }
        if tables & 8 != 0 {
            world.banned_nets.push((PacketSource::of(source).prefix(), ban));
        }
        if tables & 0x10 != 0 {
            world.allow.push(PacketSource::of(source).prefix());
        }
        if tables & 0x20 != 0 {
            world.own.insert(source);
        }
        if tables & 0x40 != 0 {
            world.own.insert(destination);
        }
    }

    let rules = u16::from_be_bytes([super::take_byte(head), super::take_byte(head)]);
    let of_class = |class| Verdict::ALL.iter().filter(move |verdict| verdict.class() == class).enumerate();
    for (index, rule) in of_class(Class::Sanity) {
        if rules >> (index % 16) & 1 != 0 {
            world.sanity.remove(rule);
        }
    }
    let dropped = super::take_byte(head);
    for (index, kind) in of_class(Class::Uninspected) {
        if dropped >> (index % 8) & 1 != 0 {
            world.drop_uninspected.insert(*kind);
        }
    }

    let limits = super::take_byte(head);
    if limits & 1 != 0 {
        world.syn = None;
    }
    // The numbers do not matter: whether there is room is drawn, too.
    let (per_source, pace) = (Limit::new(1, 1), [1, 1]);
    world.budget = (limits & 2 != 0).then_some(pace);
    world.cookies = if limits & 4 != 0 { COOKIES_PLAIN } else { COOKIES_OFF };
    world.segments = per_source.filter(|_| limits & 8 != 0);
    let icmp = per_source.map(|per_source| IcmpLimits { per_source, host: pace, ceiling: pace });
    world.icmp = icmp.filter(|_| limits & 0x10 != 0);
    world.lockdown = limits & 0x20 != 0;
    let rule = PortSettings { is_open: limits & 0x40 != 0, pace: (limits & 0x80 != 0).then_some(pace) };
    let ports = super::take_byte(head);
    for number in [ip + 20, ip + 40].into_iter().filter_map(|transport| u16_at(frame, transport + 2)) {
        if ports & 1 != 0 {
            world.armed.insert(number);
        }
        if let (true, Some(number)) = (ports & 2 != 0, NonZeroU16::new(number)) {
            for transport in [Transport::Tcp, Transport::Udp] {
                world.ports.insert(Port { transport, number }, rule);
            }
        }
    }
    (world, Exhausted(u16::from_be_bytes([super::take_byte(head), super::take_byte(head)])))
}

fn u16_at(frame: &[u8], at: usize) -> Option<u16> {
    frame.get(at..at + 2)?.try_into().ok().map(u16::from_be_bytes)
}

/// What stands where a packet that begins at `ip` has its addresses, source first, in both families.
fn addresses(frame: &[u8], ip: usize) -> Vec<(IpAddr, IpAddr)> {
    let v4 =
        |at: usize| frame.get(at..at + 4).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok()).map(IpAddr::from);
    let v6 = |at: usize| {
        frame.get(at..at + 16).and_then(|bytes| <[u8; 16]>::try_from(bytes).ok()).map(IpAddr::from)
    };
    [v4(ip + 12).zip(v4(ip + 16)), v6(ip + 8).zip(v6(ip + 24))].into_iter().flatten().collect()
}
