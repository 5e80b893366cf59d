//! What one packet costs: the program alone, run again and again on the same frame (`BPF_PROG_TEST_RUN`).

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, OwnedFd},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::time::{ClockId, clock_gettime};
use tunica_common::{
    policy::DEFAULT_NETS,
    verdict::{Action, Verdict},
};
use tunica_core::id::{PacketSource, Prefix};
use tunica_tests::{
    client::connected,
    frame::{ACK, ICMP, SYN, TCP, UDP, icmp, tcp, udp, v4, v6},
    program::{self, Sources, Wrapped, XDP_DROP, XDP_PASS, XDP_TX},
    shield::listen_at,
    sys::bpf,
};

use crate::{
    Pains,
    armed::{Armed, OWN, PORT, Rights, Stance},
    link::syn,
    series::{Aim, Bound, Series},
    tell,
    yardstick::{Filter, say},
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
    EstablishedFound,
    Datagram,
    NullFlags,
    SynRate,
    Banned,
    BannedV6,
    RangeBanned,
    PortClosed,
    UdpRate,
    IcmpRate,
    NoSocket,
    CookieAnswer,
    CookieReturned,
    ForgedSynNoBudget,
    ForgedSyn,
    ForgedSynManyBans,
    ForgedSynManyRanges,
    ForgedAck,
    ForgedAckManyBans,
    ForgedNoSocket,
    ForgedEcho,
    ForgedCookieAnswer,
    ManyBanned,
    ManyRangesBanned,
}

/// What a walk starts from and comes to.
struct Path {
    title: &'static str,
    tables: Filling,
    stance: Stance,
    outcome: (Verdict, Action),
    /// Where its sources come from, if not from the frame.
    sources: Option<Sources>,
}

impl Walk {
    const ALL: [Self; 26] = [
        Self::Established,
        Self::EstablishedV6,
        Self::EstablishedFound,
        Self::Datagram,
        Self::NullFlags,
        Self::SynRate,
        Self::Banned,
        Self::BannedV6,
        Self::RangeBanned,
        Self::PortClosed,
        Self::UdpRate,
        Self::IcmpRate,
        Self::NoSocket,
        Self::CookieAnswer,
        Self::CookieReturned,
        Self::ForgedSynNoBudget,
        Self::ForgedSyn,
        Self::ForgedSynManyBans,
        Self::ForgedSynManyRanges,
        Self::ForgedAck,
        Self::ForgedAckManyBans,
        Self::ForgedNoSocket,
        Self::ForgedEcho,
        Self::ForgedCookieAnswer,
        Self::ManyBanned,
        Self::ManyRangesBanned,
    ];

    const fn path(self) -> Path {
        use Filling::{Empty, Many, One, Ranges};
        use Stance::{Calm, Cookies, Lockdown, NoBudget, Shipped};
        const PASSES: (Verdict, Action) = (Verdict::Pass, Action::Pass);
        const SYN_PASSES: (Verdict, Action) = (Verdict::Syn, Action::Pass);
        const fn drops(verdict: Verdict) -> (Verdict, Action) {
            (verdict, Action::Drop)
        }
        const ANSWERS: (Verdict, Action) = (Verdict::SynCookie, Action::Answer);
        const ANYONE: Option<Sources> = Some(Sources::HalfTheInternet);
        let (title, tables, stance, outcome, sources) = match self {
            Self::Established => ("established segment (ACK) passes, IPv4", Empty, Calm, PASSES, None),
            Self::EstablishedV6 => ("established segment (ACK) passes, IPv6", Empty, Calm, PASSES, None),
            Self::EstablishedFound => (
                "established segment passes, above the rate at which its socket is looked up",
                Empty,
                Shipped,
                PASSES,
                None,
            ),
            Self::Datagram => ("UDP passes", Empty, Shipped, PASSES, None),
            Self::NullFlags => ("sanity drop (no TCP flag)", Empty, Shipped, drops(Verdict::NullFlags), None),
            Self::SynRate => {
                ("SYN over the limit is dropped, one source", Empty, Shipped, drops(Verdict::SynRate), None)
            }
            Self::Banned => ("ban drops, one source, IPv4", One, Shipped, drops(Verdict::Banned), None),
            Self::BannedV6 => ("ban drops, one source, IPv6", One, Shipped, drops(Verdict::Banned), None),
            Self::RangeBanned => (
                "ban of a range drops, one source, 16 384 ranges",
                Ranges,
                Shipped,
                drops(Verdict::BannedNet),
                None,
            ),
            Self::PortClosed => (
                "SYN to a closed port is dropped (lockdown)",
                Empty,
                Lockdown,
                drops(Verdict::PortClosed),
                None,
            ),
            Self::UdpRate => {
                ("UDP over its port's rate is dropped", Empty, Stance::UdpRate, drops(Verdict::UdpRate), None)
            }
            Self::IcmpRate => {
                ("ping over the limit is dropped, one source", Empty, Shipped, drops(Verdict::IcmpRate), None)
            }
            Self::NoSocket => (
                "ACK of no connection, over the limit, is dropped, one source",
                Empty,
                Shipped,
                drops(Verdict::NoSocket),
                None,
            ),
            Self::CookieAnswer => {
                ("SYN to a port over its budget is answered, one source", Empty, Cookies, ANSWERS, None)
            }
            Self::CookieReturned => (
                "ACK that brings a good cookie back passes",
                Empty,
                Cookies,
                (Verdict::CookieAck, Action::Pass),
                None,
            ),
            Self::ForgedSynNoBudget => (
                "SYN passes, random sources, tables empty, ports without budget",
                Empty,
                NoBudget,
                SYN_PASSES,
                ANYONE,
            ),
            Self::ForgedSyn => ("SYN passes, random sources, tables empty", Empty, Calm, SYN_PASSES, ANYONE),
            Self::ForgedSynManyBans => {
                ("SYN passes, random sources, 100 000 others banned", Many, Calm, SYN_PASSES, ANYONE)
            }
            Self::ForgedSynManyRanges => (
                "SYN passes, random sources, 16 384 ranges of others banned",
                Ranges,
                Calm,
                SYN_PASSES,
                ANYONE,
            ),
            Self::ForgedAck => ("ACK passes, random sources, tables empty", Empty, Calm, PASSES, ANYONE),
            Self::ForgedAckManyBans => {
                ("ACK passes, random sources, 100 000 others banned", Many, Calm, PASSES, ANYONE)
            }
            Self::ForgedNoSocket => (
                "ACK of no connection, over the host's limit, is dropped, random sources",
                Empty,
                Shipped,
                drops(Verdict::NoSocket),
                ANYONE,
            ),
            Self::ForgedEcho => (
                "ping over the host's limit is dropped, random sources",
                Empty,
                Shipped,
                drops(Verdict::IcmpHostRate),
                ANYONE,
            ),
            Self::ForgedCookieAnswer => {
                ("SYN to a port over its budget is answered, random sources", Empty, Cookies, ANSWERS, ANYONE)
            }
            Self::ManyBanned => (
                "ban drops, random sources, all of 100 000 banned",
                Many,
                Shipped,
                drops(Verdict::Banned),
                Some(Sources::Block(BANNED, MANY)),
            ),
            Self::ManyRangesBanned => (
                "ban of a range drops, random sources, all of 16 384 ranges banned",
                Ranges,
                Shipped,
                drops(Verdict::BannedNet),
                Some(Sources::Block(BANNED, RANGES * 256)),
            ),
        };
        Path { title, tables, stance, outcome, sources }
    }

    /// The frame; `world` knows those that depend on what went before.
    fn frame(self, world: &World) -> Vec<u8> {
        let segment = |source: Ipv4Addr, flags| v4(source.octets(), TCP).frame(&tcp(flags, 5));
        match self {
            Self::Established
            | Self::NoSocket
            | Self::ForgedAck
            | Self::ForgedAckManyBans
            | Self::ForgedNoSocket => segment(PEER, ACK),
            Self::EstablishedV6 => v6(PEER_V6.octets(), TCP).frame(&tcp(ACK, 5)),
            Self::EstablishedFound => from_port(segment(PEER, ACK), world.connected_from),
            Self::Datagram | Self::UdpRate => v4(PEER.octets(), UDP).frame(&udp(40_000, PORT, 16, 0)),
            Self::NullFlags => segment(PEER, 0),
            Self::SynRate
            | Self::PortClosed
            | Self::CookieAnswer
            | Self::ForgedSynNoBudget
            | Self::ForgedSyn
            | Self::ForgedSynManyBans
            | Self::ForgedSynManyRanges
            | Self::ForgedCookieAnswer => syn(PEER),
            Self::Banned | Self::ManyBanned | Self::RangeBanned | Self::ManyRangesBanned => syn(BANNED),
            Self::BannedV6 => v6(BANNED_V6.octets(), TCP).frame(&tcp(SYN, 5)),
            Self::IcmpRate | Self::ForgedEcho => v4(PEER.octets(), ICMP).frame(&icmp(8, 0, 56)),
            Self::CookieReturned => world.returned.clone(),
        }
    }

    /// Whether the program overwrites the frame, so that it has to be written anew for each run.
    const fn is_overwritten(self) -> bool {
        matches!(self, Self::CookieAnswer | Self::ForgedCookieAnswer)
    }
}

/// What some frames depend on, and the sockets that they find.
struct World {
    _listener: TcpListener,
    _connection: (TcpStream, OwnedFd),
    /// The port that the connection's peer has.
    connected_from: u16,
    /// An ACK that brings a cookie back. Cookies age, so it is renewed.
    returned: Vec<u8>,
}

impl World {
    /// Listens where the frames go, and connects from where they come.
    fn build() -> Result<Self> {
        for arguments in
            ["link set lo up", "address add 192.0.2.1/32 dev lo", "address add 198.51.100.7/32 dev lo"]
        {
            say(Command::new("ip").args(arguments.split_whitespace()))?;
        }
        let service = SocketAddr::new(OWN.into(), PORT);
        let listener = listen_at(service)?;
        let client = connected(IpAddr::V4(PEER), service, Duration::from_secs(5))
            .context("the peer's own socket")?
            .context("connecting over loopback")?;
        let (served, peer) = listener.accept().context("accepting the connection")?;
        Ok(Self {
            _listener: listener,
            _connection: (served, client),
            connected_from: peer.port(),
            returned: Vec::new(),
        })
    }

    /// Lets the shield make a cookie, and makes the ACK that brings it back (RFC 4987, section 3.6).
    fn renew(&mut self, shield: &mut Armed) -> Result<()> {
        let asked = from_port(syn(PEER), RETURNING_PORT);
        let answer = loop {
            // The trickle to the listener comes first, and leaves the frame as it was.
            let answer = shield.reply(&asked)?;
            if answer.get(47) == Some(&(SYN | ACK)) {
                break answer;
            }
        };
        let word = |bytes: Option<&[u8]>| -> Result<u32> {
            Ok(u32::from_be_bytes(bytes.context("an answer that is too short")?.try_into()?))
        };
        let (sequence, cookie) = (word(answer.get(42..46))?, word(answer.get(38..42))?);
        let mut segment = tcp(ACK, 5);
        segment.splice(4..12, [sequence.to_be_bytes(), cookie.wrapping_add(1).to_be_bytes()].concat());
        self.returned = from_port(v4(PEER.octets(), TCP).frame(&segment), RETURNING_PORT);
        Ok(())
    }
}

/// From which port the cookie comes back.
const RETURNING_PORT: u16 = 40_001;

/// The same segment over IPv4 from another port.
fn from_port(mut frame: Vec<u8>, port: u16) -> Vec<u8> {
    frame.splice(34..36, port.to_be_bytes());
    frame
}

/// What is banned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Filling {
    Empty,
    /// One IPv4 source and one IPv6 network.
    One,
    Many,
    /// As many /24 as the table holds, in a row.
    Ranges,
}

/// How many ranges that is.
const RANGES: i32 = DEFAULT_NETS as i32;

impl Filling {
    const ALL: [Self; 4] = [Self::Empty, Self::One, Self::Many, Self::Ranges];

    fn load(self, object: &[u8], rights: Rights) -> Result<Armed> {
        let one = [BANNED.into(), BANNED_V6.into()];
        match self {
            Self::Empty => Armed::load(object, rights, std::iter::empty()),
            Self::One => Armed::load(object, rights, one.into_iter().map(PacketSource::of)),
            Self::Many => Armed::load(object, rights, many().map(|address| PacketSource::of(address.into()))),
            Self::Ranges => {
                let mut shield = Armed::load(object, rights, std::iter::empty())?;
                let range = |number: u32| Ipv4Addr::from_bits(BANNED.to_bits() + 256 * number);
                let ranges: Result<Vec<Prefix>> = (0..RANGES.cast_unsigned())
                    .map(|number| Ok(format!("{}/24", range(number)).parse()?))
                    .collect();
                shield.ban_ranges(ranges?.into_iter())?;
                Ok(shield)
            }
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
    /// A wrapper, then two instructions.
    Wrapped(Wrapper),
    /// `xdp-filter` drops one source.
    FilterOne,
    /// `xdp-filter` drops random sources, all of 100 000 in its table.
    FilterMany,
    /// The shield.
    Shield(Walk, Rights),
}

/// A program that writes into the packet before another one runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Wrapper {
    /// A source of half the internet.
    Random,
    /// A source of a block.
    OfMany,
    /// The whole frame.
    Renewed,
    /// The whole frame and a source of half the internet.
    RenewedRandom,
}

impl Wrapper {
    const ALL: [Self; 4] = [Self::Random, Self::OfMany, Self::Renewed, Self::RenewedRandom];

    const fn title(self) -> &'static str {
        match self {
            Self::Random => "random source by the wrapper, then bare `XDP_DROP`",
            Self::OfMany => "the same from a block of 100 000",
            Self::Renewed => "whole frame by the wrapper, then bare `XDP_DROP`",
            Self::RenewedRandom => "the same with a random source",
        }
    }

    /// What stands before the programs of this walk.
    const fn of(walk: Walk) -> Option<Self> {
        match (walk.is_overwritten(), walk.path().sources) {
            (false, None) => None,
            (false, Some(Sources::Block(..))) => Some(Self::OfMany),
            (false, Some(_)) => Some(Self::Random),
            (true, None) => Some(Self::Renewed),
            (true, Some(_)) => Some(Self::RenewedRandom),
        }
    }
}

impl Case {
    /// The wrapper that is in its figure, too.
    const fn wrapper(self) -> Option<Wrapper> {
        match self {
            Self::Drop | Self::FilterOne => None,
            Self::Wrapped(wrapper) => Some(wrapper),
            Self::FilterMany => Some(Wrapper::OfMany),
            Self::Shield(walk, _) => Wrapper::of(walk),
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
pub(crate) fn measure(purpose: &str, object: &[u8], pains: Pains) -> Result<Costs> {
    tell("loading the programs");
    let filter = Filter::of_one(purpose, BANNED)?;
    let many_filtered = filter.of_many(many())?;
    let mut shields = BTreeMap::new();
    for rights in [Rights::Unit, Rights::Root] {
        for filling in Filling::ALL {
            shields.insert((filling, rights), filling.load(object, rights)?);
        }
    }
    let mut world = World::build()?;
    let mut candidates = candidates(&filter, many_filtered.program()?, &mut shields, &world)?;
    let mut costs = Costs::default();
    let rounds = pains.rounds(ROUNDS);
    for round in 0..=rounds {
        tell(&format!("cost of a packet, round {round} of {rounds}"));
        for (case, candidate) in &mut candidates {
            let nanoseconds = match case {
                Case::Shield(walk, rights) => {
                    let Path { title, tables, stance, outcome: (verdict, action), .. } = walk.path();
                    let shield =
                        shields.get_mut(&(tables, *rights)).context("a shield that was not loaded")?;
                    shield.stand(stance)?;
                    if *walk == Walk::CookieReturned {
                        world.renew(shield)?;
                        candidate.frame.clone_from(&world.returned);
                    }
                    let before = shield.packets(verdict, action)?;
                    let nanoseconds = candidate.run().with_context(|| title)?;
                    let counted = shield.packets(verdict, action)? - before;
                    // Some SYNs of a source over its limit conform, and some forged sources share cells with others.
                    ensure!(
                        counted >= u64::from(REPEAT) / 100 * 97,
                        "{title}: only {counted} of {REPEAT} packets came to this end",
                    );
                    nanoseconds
                }
                Case::Drop | Case::Wrapped(_) | Case::FilterOne | Case::FilterMany => candidate.run()?,
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
    world: &World,
) -> Result<Vec<(Case, Candidate)>> {
    let drop = program::drop()?;
    let anyone = Sources::HalfTheInternet;
    let of_many = Sources::Block(BANNED, MANY);
    let banned = || syn(BANNED);
    let mut candidates = Vec::new();
    for wrapper in Wrapper::ALL {
        let (drop, frame) = (drop.as_fd(), banned());
        let wrapped = match wrapper {
            Wrapper::Random => Wrapped::around(drop, anyone),
            Wrapper::OfMany => Wrapped::around(drop, of_many),
            Wrapper::Renewed => Wrapped::renewing(drop, None, &frame),
            Wrapper::RenewedRandom => Wrapped::renewing(drop, Some(anyone), &frame),
        };
        candidates.push((Case::Wrapped(wrapper), Candidate::new(wrapped?, frame, XDP_DROP)));
    }
    let filter_many = Wrapped::around(many_filtered.as_fd(), of_many)?;
    candidates.extend([
        (Case::Drop, Candidate::new(drop, banned(), XDP_DROP)),
        (Case::FilterOne, Candidate::new(filter.program().try_clone()?, banned(), XDP_DROP)),
        (Case::FilterMany, Candidate::new(filter_many, banned(), XDP_DROP)),
    ]);
    for ((filling, rights), shield) in shields {
        for walk in Walk::ALL.into_iter().filter(|walk| walk.path().tables == *filling) {
            let Path { outcome, sources, .. } = walk.path();
            let returned = match outcome.1 {
                Action::Pass | Action::WouldDrop | Action::WouldAnswer => XDP_PASS,
                Action::Drop => XDP_DROP,
                Action::Answer => XDP_TX,
            };
            let (program, frame) = (shield.program()?, walk.frame(world));
            let candidate = match (walk.is_overwritten(), sources) {
                (false, None) => Candidate::new(program, frame, returned),
                (false, Some(sources)) => {
                    Candidate::new(Wrapped::around(program.as_fd(), sources)?, frame, returned)
                }
                (true, sources) => {
                    Candidate::new(Wrapped::renewing(program.as_fd(), sources, &frame)?, frame, returned)
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
                let added = self
                    .of(Case::Wrapped(wrapper))
                    .with(&self.of(Case::Drop), |wrapped, bare| wrapped - bare);
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
        for wrapper in Wrapper::ALL {
            row(wrapper.title(), Case::Wrapped(wrapper), None);
        }
        row("`xdp-filter` drops one source", Case::FilterOne, None);
        row("`xdp-filter` drops random sources, all of 100 000 in its table", Case::FilterMany, None);
        for walk in Walk::ALL {
            let title = format!("shield: {}", walk.path().title);
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
