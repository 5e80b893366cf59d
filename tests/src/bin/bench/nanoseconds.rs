//! What one packet costs: the program alone, run again and again on the same frame (`BPF_PROG_TEST_RUN`).

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::{Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, OwnedFd},
};

use anyhow::{Context, Result, ensure};
use nix::time::{ClockId, clock_gettime};
use tunica_common::verdict::{Action, Verdict};
use tunica_core::id::PacketSource;
use tunica_tests::{
    frame::{ACK, SYN, TCP, UDP, tcp, udp, v4, v6},
    sys::bpf,
};

use crate::{
    armed::{Armed, Rights},
    program::{self, Sources, Wrapped, XDP_DROP, XDP_PASS},
    series::{Aim, Bound, Series},
    tell,
    yardstick::Filter,
};

/// Runs of each program in a round.
pub(crate) const REPEAT: u32 = 300_000;
/// Rounds that count; one more comes first and warms up.
pub(crate) const ROUNDS: usize = 15;
/// How many sources are banned in the tests with many.
pub(crate) const MANY: i32 = 100_000;
/// The first of them; the only one in the tests with one.
pub(crate) const BANNED: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 0);

const BANNED_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xbad, 0, 0, 0, 0, 1);
const PEER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const PEER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x900d, 0, 0, 0, 0, 1);

/// One way through the shield.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Walk {
    Established,
    EstablishedV6,
    Datagram,
    NullFlags,
    SynRate,
    Banned,
    BannedV6,
    ForgedSyn,
    ForgedSynManyBans,
    ForgedAckManyBans,
    ManyBanned,
}

impl Walk {
    const ALL: [Self; 11] = [
        Self::Established,
        Self::EstablishedV6,
        Self::Datagram,
        Self::NullFlags,
        Self::SynRate,
        Self::Banned,
        Self::BannedV6,
        Self::ForgedSyn,
        Self::ForgedSynManyBans,
        Self::ForgedAckManyBans,
        Self::ManyBanned,
    ];

    const fn title(self) -> &'static str {
        match self {
            Self::Established => "established segment (ACK) passes, IPv4",
            Self::EstablishedV6 => "established segment (ACK) passes, IPv6",
            Self::Datagram => "UDP passes",
            Self::NullFlags => "sanity drop (no TCP flag)",
            Self::SynRate => "SYN over the limit is dropped, one source",
            Self::Banned => "ban drops, one source, IPv4",
            Self::BannedV6 => "ban drops, one source, IPv6",
            Self::ForgedSyn => "SYN passes, random sources, tables empty",
            Self::ForgedSynManyBans => "SYN passes, random sources, 100 000 others banned",
            Self::ForgedAckManyBans => "ACK passes, random sources, 100 000 others banned",
            Self::ManyBanned => "ban drops, random sources, all of 100 000 banned",
        }
    }

    fn frame(self) -> Vec<u8> {
        let segment = |source: Ipv4Addr, flags| v4(source.octets(), TCP).frame(&tcp(flags, 5));
        match self {
            Self::Established | Self::ForgedAckManyBans => segment(PEER, ACK),
            Self::EstablishedV6 => v6(PEER_V6.octets(), TCP).frame(&tcp(ACK, 5)),
            Self::Datagram => v4(PEER.octets(), UDP).frame(&udp(40_000, 443, 16, 0)),
            Self::NullFlags => segment(PEER, 0),
            Self::SynRate | Self::ForgedSyn | Self::ForgedSynManyBans => segment(PEER, SYN),
            Self::Banned | Self::ManyBanned => segment(BANNED, SYN),
            Self::BannedV6 => v6(BANNED_V6.octets(), TCP).frame(&tcp(SYN, 5)),
        }
    }

    /// Where its sources come from, if not from the frame.
    const fn sources(self) -> Option<Sources> {
        match self {
            Self::Established
            | Self::EstablishedV6
            | Self::Datagram
            | Self::NullFlags
            | Self::SynRate
            | Self::Banned
            | Self::BannedV6 => None,
            Self::ForgedSyn | Self::ForgedSynManyBans | Self::ForgedAckManyBans => {
                Some(Sources::HalfTheInternet)
            }
            Self::ManyBanned => Some(Sources::Block(BANNED, MANY)),
        }
    }

    const fn outcome(self) -> (Verdict, Action) {
        match self {
            Self::Established
            | Self::EstablishedV6
            | Self::Datagram
            | Self::ForgedSyn
            | Self::ForgedSynManyBans
            | Self::ForgedAckManyBans => (Verdict::Pass, Action::Pass),
            Self::NullFlags => (Verdict::NullFlags, Action::Drop),
            Self::SynRate => (Verdict::SynRate, Action::Drop),
            Self::Banned | Self::BannedV6 | Self::ManyBanned => (Verdict::Banned, Action::Drop),
        }
    }

    const fn tables(self) -> Filling {
        match self {
            Self::Established
            | Self::EstablishedV6
            | Self::Datagram
            | Self::NullFlags
            | Self::SynRate
            | Self::ForgedSyn => Filling::Empty,
            Self::Banned | Self::BannedV6 => Filling::One,
            Self::ForgedSynManyBans | Self::ForgedAckManyBans | Self::ManyBanned => Filling::Many,
        }
    }
}

/// What is banned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Filling {
    Empty,
    /// One IPv4 source and one IPv6 network.
    One,
    Many,
}

impl Filling {
    const ALL: [Self; 3] = [Self::Empty, Self::One, Self::Many];

    fn load(self, object: &[u8], rights: Rights) -> Result<Armed> {
        let one = [BANNED.into(), BANNED_V6.into()];
        match self {
            Self::Empty => Armed::load(object, rights, std::iter::empty()),
            Self::One => Armed::load(object, rights, one.into_iter().map(PacketSource::of)),
            Self::Many => Armed::load(object, rights, many().map(|address| PacketSource::of(address.into()))),
        }
    }
}

/// The many banned sources.
pub(crate) fn many() -> impl Iterator<Item = Ipv4Addr> {
    (0..MANY.cast_unsigned()).map(|number| Ipv4Addr::from_bits(BANNED.to_bits() + number))
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Case {
    /// Two instructions.
    Drop,
    /// The wrapper, then two instructions; with random sources as in [`Walk::ForgedSyn`].
    WrappedDrop,
    /// As above, with random sources as in [`Walk::ManyBanned`].
    WrappedDropOfMany,
    /// `xdp-filter` drops one source.
    FilterOne,
    /// `xdp-filter` drops random sources, all of 100 000 in its table.
    FilterMany,
    /// The shield.
    Shield(Walk, Rights),
}

impl Case {
    /// The case whose cost is the wrapper's and two instructions', if this one is wrapped.
    const fn wrapper(self) -> Option<Self> {
        match self {
            Self::Drop | Self::FilterOne => None,
            Self::WrappedDrop | Self::WrappedDropOfMany => Some(self),
            Self::FilterMany => Some(Self::WrappedDropOfMany),
            Self::Shield(walk, _) => match walk.sources() {
                None => None,
                Some(Sources::HalfTheInternet) => Some(Self::WrappedDrop),
                Some(Sources::Block(..)) => Some(Self::WrappedDropOfMany),
            },
        }
    }
}

/// A program and the frame it is run on.
struct Candidate {
    program: Box<dyn AsFd>,
    frame: Vec<u8>,
    /// What the program must return.
    returned: u32,
}

/// The figures, in nanoseconds a packet.
#[derive(Debug, Default)]
pub(crate) struct Costs(BTreeMap<Case, Series>);

/// Measures all cases in turn, round by round.
///
/// # Errors
/// When something cannot be loaded, or a packet came to another end than the case is about.
pub(crate) fn measure(purpose: &str, object: &[u8]) -> Result<Costs> {
    tell("loading the programs");
    let filter = Filter::of_one(purpose, BANNED)?;
    let many_filtered = filter.of_many(many())?;
    let mut shields = BTreeMap::new();
    for rights in [Rights::Unit, Rights::Root] {
        for filling in Filling::ALL {
            shields.insert((filling, rights), filling.load(object, rights)?);
        }
    }
    let candidates = candidates(&filter, many_filtered.program()?, &mut shields)?;
    let mut costs = Costs::default();
    for round in 0..=ROUNDS {
        tell(&format!("cost of a packet, round {round} of {ROUNDS}"));
        for (case, candidate) in &candidates {
            let nanoseconds = match case {
                Case::Shield(walk, rights) => {
                    let shield =
                        shields.get_mut(&(walk.tables(), *rights)).context("a shield that was not loaded")?;
                    shield.tend()?;
                    let (verdict, action) = walk.outcome();
                    let before = shield.packets(verdict, action)?;
                    let nanoseconds = candidate.run()?;
                    let counted = shield.packets(verdict, action)? - before;
                    // Some SYNs of a source over its limit conform, and some forged sources share cells with others.
                    ensure!(
                        counted >= u64::from(REPEAT) / 100 * 99,
                        "{}: only {counted} of {REPEAT} packets came to this end",
                        walk.title()
                    );
                    nanoseconds
                }
                Case::Drop
                | Case::WrappedDrop
                | Case::WrappedDropOfMany
                | Case::FilterOne
                | Case::FilterMany => candidate.run()?,
            };
            if round > 0 {
                costs.0.entry(*case).or_default().push(nanoseconds);
            }
        }
    }
    Ok(costs)
}

fn candidates(
    filter: &Filter,
    many_filtered: OwnedFd,
    shields: &mut BTreeMap<(Filling, Rights), Armed>,
) -> Result<Vec<(Case, Candidate)>> {
    let drop = program::drop()?;
    let anyone = Sources::HalfTheInternet;
    let of_many = Sources::Block(BANNED, MANY);
    let banned = || Walk::Banned.frame();
    let mut candidates = vec![
        (Case::WrappedDrop, Candidate::new(Wrapped::around(drop.as_fd(), anyone)?, banned(), XDP_DROP)),
        (
            Case::WrappedDropOfMany,
            Candidate::new(Wrapped::around(drop.as_fd(), of_many)?, banned(), XDP_DROP),
        ),
        (Case::Drop, Candidate::new(drop, banned(), XDP_DROP)),
        (Case::FilterOne, Candidate::new(filter.program().try_clone()?, banned(), XDP_DROP)),
        (
            Case::FilterMany,
            Candidate::new(Wrapped::around(many_filtered.as_fd(), of_many)?, banned(), XDP_DROP),
        ),
    ];
    for ((filling, rights), shield) in shields {
        for walk in Walk::ALL.into_iter().filter(|walk| walk.tables() == *filling) {
            let returned = match walk.outcome().1 {
                Action::Pass | Action::WouldDrop | Action::WouldAnswer => XDP_PASS,
                Action::Drop => XDP_DROP,
                Action::Answer => 3,
            };
            let program = shield.program()?;
            let candidate = match walk.sources() {
                None => Candidate::new(program, walk.frame(), returned),
                Some(sources) => {
                    Candidate::new(Wrapped::around(program.as_fd(), sources)?, walk.frame(), returned)
                }
            };
            candidates.push((Case::Shield(walk, *rights), candidate));
        }
    }
    Ok(candidates)
}

impl Candidate {
    fn new(program: impl AsFd + 'static, frame: Vec<u8>, returned: u32) -> Self {
        Self { program: Box::new(program), frame, returned }
    }

    /// Nanoseconds a packet. The thread's processor time is taken, since the kernel's own figure has no decimals and
    /// elapsed time would count other processes.
    fn run(&self) -> Result<f64> {
        let before = thread_nanoseconds()?;
        let returned =
            bpf::run_xdp(self.program.as_fd(), &self.frame, REPEAT).context("running a program")?;
        let spent = thread_nanoseconds()? - before;
        ensure!(returned == self.returned, "a program returned {returned} where {} is right", self.returned);
        Ok(spent / f64::from(REPEAT))
    }
}

fn thread_nanoseconds() -> Result<f64> {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).context("reading the thread's clock")?;
    Ok(time.tv_sec() as f64 * 1e9 + time.tv_nsec() as f64)
}

impl Costs {
    fn of(&self, case: Case) -> Series {
        self.0.get(&case).cloned().unwrap_or_default()
    }

    /// The case without the wrapper that draws its sources.
    fn net(&self, case: Case) -> Series {
        let raw = self.of(case);
        match case.wrapper() {
            None => raw,
            Some(wrapper) => {
                let added = self.of(wrapper).with(&self.of(Case::Drop), |wrapped, bare| wrapped - bare);
                raw.with(&added, |raw, added| raw - added)
            }
        }
    }

    /// A Markdown table of everything.
    pub(crate) fn table(&self) -> String {
        let mut text = "| path | min | median | max | without the wrapper | × bare drop | loaded by root |\n\
                        |---|--:|--:|--:|--:|--:|--:|\n"
            .to_owned();
        let bare = self.of(Case::Drop);
        let mut row = |title: &str, case: Case, root: Option<Case>| {
            let raw = self.of(case);
            let net = self.net(case);
            let without =
                if case.wrapper().is_some() { format!("{:.1}", net.median()) } else { String::new() };
            let root = root.map_or(String::new(), |root| format!("{:.1}", self.of(root).median()));
            let _ = writeln!(
                text,
                "| {title} | {:.1} | {:.1} | {:.1} | {without} | {:.1} | {root} |",
                raw.least(),
                raw.median(),
                raw.most(),
                net.ratio(&bare),
            );
        };
        row("bare `XDP_DROP`, two instructions", Case::Drop, None);
        row("random source by the wrapper, then bare `XDP_DROP`", Case::WrappedDrop, None);
        row("the same from a block of 100 000", Case::WrappedDropOfMany, None);
        row("`xdp-filter` drops one source", Case::FilterOne, None);
        row("`xdp-filter` drops random sources, all of 100 000 in its table", Case::FilterMany, None);
        for walk in Walk::ALL {
            let title = format!("shield: {}", walk.title());
            row(&title, Case::Shield(walk, Rights::Unit), Some(Case::Shield(walk, Rights::Root)));
        }
        text
    }

    pub(crate) fn aims(&self) -> Vec<Aim> {
        let shield = |walk| Case::Shield(walk, Rights::Unit);
        let aim = |what, bound, found| Aim { what, bound: Bound::AtMost(bound), found, unit: "×" };
        let [one, bare] = [self.of(Case::FilterOne), self.of(Case::Drop)];
        vec![
            aim("ban, one source, to `xdp-filter`", 0.7, self.of(shield(Walk::Banned)).ratio(&one)),
            aim(
                "ban, random sources of 100 000, to `xdp-filter` with the same",
                1.7,
                self.of(shield(Walk::ManyBanned)).ratio(&self.of(Case::FilterMany)),
            ),
            aim(
                "ban, random sources of 100 000, to `xdp-filter` with one source",
                1.7,
                self.net(shield(Walk::ManyBanned)).ratio(&one),
            ),
            aim(
                "SYN over the limit, one source, to `xdp-filter`",
                1.1,
                self.of(shield(Walk::SynRate)).ratio(&one),
            ),
            aim(
                "SYN, random sources, tables empty, to bare drop",
                8.0,
                self.net(shield(Walk::ForgedSyn)).ratio(&bare),
            ),
            aim(
                "SYN, random sources, 100 000 bans, to bare drop",
                14.0,
                self.net(shield(Walk::ForgedSynManyBans)).ratio(&bare),
            ),
        ]
    }
}
