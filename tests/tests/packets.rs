//! The table of packets, through the kernel program and through the host reference; and both against each other.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper that fails is a test that fails"
)]

use std::collections::BTreeSet;

use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};
use tunica_common::{
    gcra::{Limit, Pace, conforms, debt, ticks},
    verdict::{Action, Class, Verdict},
};
use tunica_core::{
    id::{PacketSource, Prefix},
    limits::{Port, PortSettings, Transport},
};
use tunica_tests::{
    frame::{SYN, TCP, tcp, v6},
    reference::{self, Ban, Counted, Mode, OnStale, World},
    rows::{Row, SOURCE_V4, SOURCE_V6, rows},
    shield::Shield,
};
use tunicad::sys::monotonic_ns;

#[test]
fn the_program_does_what_the_rows_say() {
    let mut shield = Shield::load().unwrap();
    let mut faults = Vec::new();
    for row in rows() {
        faults.extend(shield.fault(&row).unwrap());
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_reference_does_what_the_rows_say() {
    let mut faults = Vec::new();
    for row in rows() {
        // A row's source sent `before` copies of the same frame.
        let outcome = reference::judge(&row.world, &row.frame, |counted| is_within(&row, counted));
        if outcome != row.expect {
            faults.push(format!("{}: {outcome:?}, not {:?}", row.name, row.expect));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Whether a row's frame is inside a limit, after its copies.
fn is_within(row: &Row, counted: Counted) -> bool {
    let world = &row.world;
    let at_once = |limit: Limit| u64::from(limit.tolerance_ticks / limit.cost_ticks + 1);
    let paced = |pace: Pace| pace[1] / pace[0] + 1;
    let limit = |limit: Option<Limit>| limit.map_or(u64::MAX, at_once);
    let rule = |transport, number: u16| {
        let port = Port { transport, number: number.try_into().unwrap() };
        world.ports[&port].pace.map_or(u64::MAX, paced)
    };
    let icmp = world.icmp;
    let (allowed, passed_before) = match counted {
        Counted::Syn(_) => (limit(world.syn), 0),
        Counted::Budget(_) => (world.budget.map_or(u64::MAX, paced), 0),
        // Only SYNs beyond the budget come so far.
        Counted::Trickle(port) if world.armed.contains(&port) => (paced(world.trickle), 0),
        Counted::Trickle(_) => (paced(world.trickle), world.budget.map_or(0, paced)),
        Counted::NewConnections(port) => (rule(Transport::Tcp, port), 0),
        Counted::Udp(port) => (rule(Transport::Udp, port), 0),
        Counted::Segments(_) => (limit(world.segments), 0),
        Counted::SegmentsHost => (world.segments_host.map_or(u64::MAX, paced), 0),
        Counted::Echo(_) => (limit(icmp.map(|icmp| icmp.per_source)), 0),
        Counted::EchoHost => (icmp.map_or(u64::MAX, |icmp| paced(icmp.host)), 0),
        Counted::IcmpCeiling => (icmp.map_or(u64::MAX, |icmp| paced(icmp.ceiling)), 0),
    };
    u64::from(row.before).saturating_sub(passed_before) < allowed
}

#[test]
fn every_verdict_has_a_row() {
    let mut seen: BTreeSet<Verdict> = rows().iter().map(|row| row.expect.0).collect();
    // These need more than one packet, or a socket: tests of their own below and in `sockets.rs`.
    seen.extend([Verdict::SynRateNet, Verdict::CookieAck]);
    let missing: Vec<_> = Verdict::ALL.iter().filter(|verdict| !seen.contains(verdict)).collect();
    assert!(missing.is_empty(), "{missing:?}");
    let names: BTreeSet<String> = rows().into_iter().map(|row| row.name).collect();
    assert_eq!(names.len(), rows().len(), "two rows share a name");
}

#[test]
fn dropped_packets_are_sampled_and_lost_samples_are_counted() {
    let mut shield = Shield::load().unwrap();
    let row = rows().into_iter().find(|row| row.name == "no flag, v4").unwrap();
    shield.set(&row.world).unwrap();
    shield.run(&row.frame).unwrap();
    let [event] = shield.events().unwrap()[..] else { panic!("one drop, one event") };
    assert_eq!(event.source[12..], SOURCE_V4);
    assert_eq!(Verdict::from_slot(event.verdict), Some(Verdict::NullFlags));
    assert_eq!(Action::from_slot(event.action), Some(Action::Drop));
    assert_eq!((event.source_port, event.destination_port), (40_000, 443));
    assert_eq!((event.protocol, event.tcp_flags, event.generation), (6, 0, shield.generation()));
    assert_eq!(shield.tables.lost_events().unwrap(), 0);
    // With no interval between events, 10 000 drops overflow a ring of 256 KiB; not one of them is forgotten.
    shield.repeat(&row.frame, 10_000).unwrap();
    let kept = shield.events().unwrap().len() as u64;
    let lost = shield.tables.lost_events().unwrap();
    assert!(lost > 0 && kept > 0);
    assert_eq!(kept + lost, 10_000);
}

#[test]
fn a_new_generation_forgets_old_debts() {
    let mut shield = Shield::load().unwrap();
    let row = rows().into_iter().find(|row| row.name == "first SYN beyond the burst, v4").unwrap();
    shield.set(&row.world).unwrap();
    shield.repeat(&row.frame, 100).unwrap();
    shield.settle().unwrap();
    assert_eq!(shield.run(&row.frame).unwrap().0, Verdict::SynRate);
    shield.set(&row.world).unwrap();
    assert_eq!(shield.run(&row.frame).unwrap().0, Verdict::Syn);
}

/// An address in a /64 of the documentation prefix: /48, byte of the /56, byte of the /64.
fn in_network(site: u16, wide: u8, narrow: u8) -> [u8; 16] {
    let [high, low] = site.to_be_bytes();
    [0x20, 0x01, 0x0d, 0xb8, high, low, wide, narrow, 0, 0, 0, 0, 0, 0, 0, 9]
}

#[test]
fn neighbours_that_exceed_share_a_limit() {
    let mut shield = Shield::load().unwrap();
    let world = World { syn: Limit::new(1, 3), escalate: 8, ..World::enforcing() };
    shield.set(&world).unwrap();
    shield.settle().unwrap();
    let mut send = |source: [u8; 16]| shield.run(&v6(source, TCP).frame(&tcp(SYN, 5))).unwrap().0;
    let mut exceed = |source: [u8; 16], times: u32| {
        let verdicts: Vec<Verdict> = (0..times).map(|_| send(source)).collect();
        *verdicts.last().unwrap()
    };
    // Seven neighbours exceed their own limits, and nobody else suffers.
    for narrow in 0..7 {
        assert_eq!(exceed(in_network(1, 1, narrow), 4), Verdict::SynRate, "{narrow}");
    }
    assert_eq!(exceed(in_network(1, 1, 200), 1), Verdict::Syn);
    // The eighth makes the /56 share one limit, which is another cell, so it starts empty.
    assert_eq!(exceed(in_network(1, 1, 7), 4), Verdict::SynRate);
    assert_eq!(exceed(in_network(1, 1, 200), 3), Verdict::Syn);
    // An innocent /64 inside now pays for its neighbours; outside the /56 nobody does.
    assert_eq!(exceed(in_network(1, 1, 201), 1), Verdict::SynRateNet);
    assert_eq!(exceed(in_network(1, 2, 201), 3), Verdict::Syn);
    assert_eq!(exceed(in_network(1, 2, 202), 3), Verdict::Syn);
    // Eight such /56 make their /48 share one.
    for wide in 2..9 {
        for narrow in 0..8 {
            exceed(in_network(1, wide, narrow), 4);
        }
        assert_eq!(exceed(in_network(1, wide, 100), 4), Verdict::SynRateNet, "{wide}");
    }
    assert_eq!(exceed(in_network(1, 99, 1), 3), Verdict::Syn, "the /48's cell starts empty");
    assert_eq!(exceed(in_network(1, 98, 1), 1), Verdict::SynRateNet);
    assert_eq!(exceed(in_network(2, 98, 1), 3), Verdict::Syn, "another site");
}

/// For all frames and policies, the program and the reference agree.
///
/// Frames start as rows of the table and are mutated, so that most of them come far into the parser.
#[test]
fn program_and_reference_agree_on_random_packets() {
    const POLICIES: u32 = 60;
    const FRAMES_EACH: usize = 1_800;
    let seeds: Vec<Vec<u8>> =
        rows().into_iter().map(|row| row.frame).filter(|frame| frame.len() < 600).collect();
    let mut shield = Shield::load().unwrap();
    let mut verdicts = BTreeSet::new();
    let mut judged = 0;
    let mut undecided = 0;
    // A fresh seed for each run; the failing frame and policy are printed whole, so nothing needs to be replayed.
    let mut runner = TestRunner::default();
    let frames = mutated(seeds);
    // The first policies are given, so that every run meets bans, limits and the allow list.
    let given = [(true, false), (true, true), (false, false), (false, true)].map(|(ban, allow)| {
        let mut world = World::enforcing();
        if ban {
            add_bans(&mut world, Ban { is_expired: false, is_dynamic: false });
        }
        if allow {
            world.allow = allowed();
        }
        world.syn = Limit::new(1, 1);
        world
    });
    let mut given = given.into_iter();
    for _ in 0..POLICIES {
        let world = given.next().unwrap_or_else(|| draw(&worlds(), &mut runner));
        shield.set(&world).unwrap();
        shield.settle().unwrap();
        for _ in 0..FRAMES_EACH {
            let frame = draw(&frames, &mut runner);
            let (expected, is_open) = expect(&shield, &world, &frame);
            let (verdict, action, _) = shield.run(&frame).unwrap();
            if is_open {
                undecided += 1;
                continue;
            }
            judged += 1;
            verdicts.insert(verdict);
            assert_eq!((verdict, action), expected, "frame {frame:02x?}\nunder {world:#?}");
        }
    }
    assert!(judged >= 100_000, "only {judged} packets were compared");
    assert!(undecided < judged / 100, "{undecided} packets fell on the edge of their limit");
    for verdict in [
        Verdict::Banned,
        Verdict::SynRate,
        Verdict::Allowed,
        Verdict::LaterFragment,
        Verdict::ExtensionHeaders,
    ] {
        assert!(verdicts.contains(&verdict), "no random packet ended as {verdict:?}; seen {verdicts:?}");
    }
}

fn draw<S: Strategy>(strategy: &S, runner: &mut TestRunner) -> S::Value {
    strategy.new_tree(runner).unwrap().current()
}

/// What the reference expects, and whether the clock could tip the balance between now and the program's run.
fn expect(shield: &Shield, world: &World, frame: &[u8]) -> ((Verdict, Action), bool) {
    let mut is_open = false;
    let outcome = reference::judge(world, frame, |counted| {
        let Counted::Syn(source) = counted else { panic!("{counted:?} is not limited here") };
        let (Some(limit), Ok(cells), Ok(now)) = (world.syn, shield.cells(source), monotonic_ns()) else {
            return true;
        };
        let owed = |at: u64| {
            cells.iter().map(|cell| debt(*cell, ticks(at), shield.generation(), limit)).min().unwrap_or(0)
        };
        // The program's clock is up to 10 ms behind, and runs on until it looks.
        let (early, late) =
            (conforms(owed(now - 12_000_000), limit), conforms(owed(now + 50_000_000), limit));
        is_open = early != late;
        early
    });
    (outcome, is_open)
}

fn add_bans(world: &mut World, ban: Ban) {
    world.bans.insert(PacketSource::of(SOURCE_V4.into()), ban);
    world.bans.insert(PacketSource::of(SOURCE_V6.into()), ban);
}

fn allowed() -> Vec<Prefix> {
    ["198.51.100.0/28", "2001:db8:51:7::/65"].map(|prefix| prefix.parse().unwrap()).to_vec()
}

fn worlds() -> impl Strategy<Value = World> {
    let modes = prop::sample::select(vec![Mode::Enforce, Mode::Observe, Mode::Enforce, Mode::Off]);
    let stales = prop::sample::select(vec![OnStale::KeepLimits, OnStale::SanityOnly, OnStale::Pass]);
    let class = |class: Class| {
        let all: Vec<Verdict> =
            Verdict::ALL.iter().copied().filter(|verdict| verdict.class() == class).collect();
        let most = all.len();
        prop::sample::subsequence(all, 0..=most)
    };
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let more = (any::<bool>(), any::<bool>(), any::<bool>());
    (modes, stales, class(Class::Sanity), class(Class::Uninspected), flags, more, 0u32..4).prop_map(
        |(
            mode,
            on_stale,
            sanity,
            uninspected,
            (stale, ban, dynamic, allow, own),
            (ours, lockdown, net),
            burst,
        )| {
            let mut world = World::enforcing();
            (world.mode, world.on_stale, world.is_stale) = (mode, on_stale, stale);
            world.sanity = sanity.into_iter().collect();
            world.drop_uninspected = uninspected.into_iter().collect();
            if ban {
                add_bans(&mut world, Ban { is_expired: false, is_dynamic: dynamic });
            }
            if allow {
                world.allow = allowed();
            }
            if own {
                world.own.insert([198, 51, 100, 6].into());
            }
            if ours {
                world.own.insert([192, 0, 2, 1].into());
                world.own.insert("2001:db8::1".parse().unwrap());
                let settings = PortSettings { is_open: true, pace: None };
                let number = 443.try_into().unwrap();
                world.ports.insert(Port { transport: Transport::Tcp, number }, settings);
            }
            if net {
                let ban = Ban { is_expired: false, is_dynamic: dynamic };
                world.banned_nets = allowed().into_iter().map(|prefix| (prefix, ban)).collect();
            }
            world.lockdown = lockdown;
            world.syn = Limit::new(1, burst * 40);
            world
        },
    )
}

fn mutated(seeds: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let edits = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..8), 0..4);
    (prop::sample::select(seeds), edits, 0u8..12, any::<prop::sample::Index>()).prop_map(
        |(mut frame, edits, cut, at)| {
            for (index, byte, how) in edits {
                let end = frame.len().min(80);
                let place = index.index(end);
                frame[place] = match how {
                    0..=3 => byte,
                    4 | 5 => frame[place] ^ (1 << (byte & 7)),
                    6 => frame[place].wrapping_add(1),
                    _ => frame[place].wrapping_sub(1),
                };
            }
            if cut == 0 {
                frame.truncate(14 + at.index(frame.len() - 13));
            }
            frame
        },
    )
}
