//! The host's reading of frames: [`crate::reference`].
//!
//! An input is eight bytes that describe policy and tables, all zero for [`World::enforcing`], and a frame.

use std::{cell::Cell, net::IpAddr};

use tunica_common::{
    policy::MAX_VLAN_TAGS,
    verdict::{Action, Class, Verdict},
};
use tunica_core::id::PacketSource;

use crate::{
    frame::{IPV4, IPV6, SERVICE_VLAN, VLAN},
    reference::{self, Ban, Mode, OnStale, World},
    rows::rows,
};

const HEAD_BYTES: usize = 8;

/// The frames of the table of packets.
pub fn seeds() -> Vec<Vec<u8>> {
    rows().into_iter().map(|row| [[0; HEAD_BYTES].as_slice(), &row.frame].concat()).collect()
}

/// For all worlds and frames, the outcome follows from the rules in force and from the packet alone.
pub fn check(bytes: &[u8]) {
    let (head, frame) = bytes.split_at(bytes.len().min(HEAD_BYTES));
    let mut head = head;
    let (world, conforms) = world(&mut head, frame);
    let (verdict, action) = judge(&world, frame, conforms);
    assert_eq!(judge(&world, frame, conforms), (verdict, action), "the same packet twice");

    let is_refused = action != Action::Pass;
    match world.mode {
        Mode::Off => assert_eq!((verdict, action), (Verdict::Unarmed, Action::Pass)),
        Mode::Observe => assert_ne!(action, Action::Drop),
        Mode::Enforce => assert_ne!(action, Action::WouldDrop),
    }
    let class = verdict.class();
    assert!(!is_refused || class != Class::Pass, "{verdict:?} is refused");
    let always_refused = [Class::Sanity, Class::Ban, Class::Limit].contains(&class);
    assert!(is_refused || !always_refused, "{verdict:?} is passed");
    if world.mode != Mode::Off {
        assert_ne!(verdict, Verdict::Unarmed);
        modes_agree(&world, frame, conforms);
        nothing_is_refused_without_a_rule(&world, frame);
        the_allow_list_ends_bans_and_limits(&world, frame, conforms);
    }
    if is_refused && class == Class::Uninspected {
        assert!(world.drop_uninspected.contains(&verdict), "{verdict:?} is not to be dropped");
    }
    if class == Class::Sanity {
        sanity_looks_at_the_packet_alone(&world, frame, verdict, action);
    }
    if verdict == Verdict::Banned {
        let mut world = world.clone();
        world.bans.clear();
        assert_ne!(judge(&world, frame, conforms).0, Verdict::Banned, "banned without a ban");
    }
    what_stands_behind_the_packet_is_not_read(&world, frame, conforms);
}

fn judge(world: &World, frame: &[u8], conforms: bool) -> (Verdict, Action) {
    let asked = Cell::new(None);
    let outcome = reference::judge(world, frame, |source| {
        asked.set(Some(source));
        conforms
    });
    if let Some(asked) = asked.get() {
        assert!(reference::syn_source(frame) == Some(asked), "the limit is asked of another source");
    }
    if outcome.0 == Verdict::SynRate {
        assert!(asked.get().is_some() && !conforms, "refused by a limit that was not asked");
    }
    outcome
}

fn modes_agree(world: &World, frame: &[u8], conforms: bool) {
    let in_mode = |mode| judge(&World { mode, ..world.clone() }, frame, conforms);
    let (enforced, observed) = (in_mode(Mode::Enforce), in_mode(Mode::Observe));
    assert_eq!(enforced.0, observed.0, "observe does not say what enforce does");
    assert_eq!(enforced.1 == Action::Drop, observed.1 == Action::WouldDrop);
}

fn nothing_is_refused_without_a_rule(world: &World, frame: &[u8]) {
    let mut world = world.clone();
    world.sanity.clear();
    world.bans.clear();
    world.drop_uninspected.clear();
    world.syn = None;
    assert_eq!(judge(&world, frame, false).1, Action::Pass);
}

fn the_allow_list_ends_bans_and_limits(world: &World, frame: &[u8], conforms: bool) {
    let mut world = world.clone();
    world.allow = ["0.0.0.0/0", "::/0"].map(|all| all.parse().unwrap()).to_vec();
    let (verdict, action) = judge(&world, frame, conforms);
    let class = verdict.class();
    assert!(![Class::Ban, Class::Limit].contains(&class), "{verdict:?} {action:?} of an allowed source");
}

fn sanity_looks_at_the_packet_alone(world: &World, frame: &[u8], verdict: Verdict, action: Action) {
    assert!(world.sanity.contains(&verdict), "{verdict:?} is switched off");
    assert!(!(world.is_stale && world.on_stale == OnStale::Pass), "{verdict:?} while all is to pass");
    let mut other = world.clone();
    other.bans.clear();
    other.allow = ["0.0.0.0/0", "::/0"].map(|all| all.parse().unwrap()).to_vec();
    other.syn = None;
    assert_eq!(judge(&other, frame, false), (verdict, action), "bans or allow list changed a sanity verdict");
    other.sanity.remove(&verdict);
    assert_ne!(judge(&other, frame, false).0, verdict, "a rule that is switched off");
}

/// A short frame is padded to 60 bytes, with whatever the sender likes.
fn what_stands_behind_the_packet_is_not_read(world: &World, frame: &[u8], conforms: bool) {
    let Some(packet) = without_padding(frame) else { return };
    let outcome = judge(world, packet, conforms);
    assert_eq!(judge(world, frame, conforms), outcome, "padding changes the outcome");
    assert_eq!(
        judge(world, &[packet, &[0xff; 64]].concat(), conforms),
        outcome,
        "padding changes the outcome"
    );
    assert_eq!(judge(world, &[packet, &[0; 64]].concat(), conforms), outcome, "padding changes the outcome");
}

/// The frame up to the end that its IP header names, if that lies behind the header and within the frame.
fn without_padding(frame: &[u8]) -> Option<&[u8]> {
    let u16_at = |at: usize| frame.get(at..at + 2)?.try_into().ok().map(u16::from_be_bytes);
    let mut at = 12;
    for _ in 0..MAX_VLAN_TAGS {
        if [VLAN, SERVICE_VLAN].contains(&u16_at(at)?) {
            at += 4;
        }
    }
    let ip = at + 2;
    let bytes = match u16_at(at)? {
        IPV4 => usize::from(u16_at(ip + 2)?).checked_sub(20)? + 20,
        IPV6 => usize::from(u16_at(ip + 4)?) + 40,
        _ => return None,
    };
    frame.get(..ip + bytes)
}

/// Policy and tables as the head describes them, and whether SYNs are inside their limit.
fn world(head: &mut &[u8], frame: &[u8]) -> (World, bool) {
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
    if modes & 0x20 != 0 {
        world.syn = None;
    }
    let conforms = modes & 0x40 == 0;

    let tables = super::take_byte(head);
    for address in addresses(frame, usize::from(super::take_byte(head) % 3)) {
        let source = PacketSource::of(address);
        if tables & 1 != 0 {
            world.bans.insert(source, Ban { is_expired: tables & 2 != 0, is_dynamic: tables & 4 != 0 });
        }
        if tables & 8 != 0 {
            world.allow.push(source.prefix());
        }
        if tables & 0x10 != 0 {
            world.own.insert(address);
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
    (world, conforms)
}

/// Where a frame with so many VLAN tags has its source address, in both families.
fn addresses(frame: &[u8], tags: usize) -> Vec<IpAddr> {
    let ip = 14 + 4 * tags;
    let v4 = frame.get(ip + 12..ip + 16).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
    let v6 = frame.get(ip + 8..ip + 24).and_then(|bytes| <[u8; 16]>::try_from(bytes).ok());
    v4.map(IpAddr::from).into_iter().chain(v6.map(IpAddr::from)).collect()
}
