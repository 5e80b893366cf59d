//! What the number of sources does to whoever keeps something of each.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::{Ipv4Addr, TcpListener},
    os::fd::OwnedFd,
};

use anyhow::{Context, Result, ensure};
use tunica_core::id::PacketSource;
use tunica_tests::{
    netns::Namespace,
    program::{self, Sources},
    report::grouped,
};

use crate::{
    Pains,
    armed::{Armed, Rights, Stance},
    cookies::{ANYONE, listen},
    link::{INTERFACE, Link, attach, load_rules, syn},
    series::Series,
    tell,
};

/// Rounds that count; one more comes first and warms up.
const ROUNDS: usize = 3;
/// Frames of one call.
const FRAMES: u32 = 1_000_000;
const FRAMES_THROUGH_THE_STACK: u32 = 300_000;

/// How many sources attack.
const COUNTS: [i32; 6] = [100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000];
/// The first of them; the others follow.
const FIRST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 0);

/// Sources that nftables' meter holds at least, and at most.
const METER: (i32, i32) = (65_536, 1_000_000);
/// Up to how many sources are banned. The shield's table has room for few more.
const MOST_BANNED: i32 = 100_000;

/// What stands at the receiving end. What a limit lets pass is dropped right behind it, by nftables at ingress, so that only
/// the limit is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Guard {
    /// The shield's limit by source.
    Limit,
    /// The shield as shipped: the port is over its budget at once.
    Cookies,
    /// nftables' meter.
    Meter,
    /// The shield, all sources banned.
    Bans,
    /// A set of nftables, all sources in it.
    Set,
}

impl Guard {
    const ALL: [Self; 5] = [Self::Limit, Self::Cookies, Self::Meter, Self::Bans, Self::Set];

    /// Whether it is measured with so many sources.
    const fn is_measured(self, count: i32) -> bool {
        match self {
            Self::Limit | Self::Cookies | Self::Meter => true,
            Self::Bans | Self::Set => count <= MOST_BANNED,
        }
    }

    /// Rules of nftables for so many sources.
    fn rules(self, count: i32) -> String {
        let chain = |rules: &str| {
            format!(
                "chain guard {{ type filter hook ingress device \"{INTERFACE}\" priority 0; policy accept;\n{rules}\n}}"
            )
        };
        let (set, rules) = match self {
            Self::Limit | Self::Cookies | Self::Bans => (String::new(), "drop".to_owned()),
            Self::Meter => (
                format!("set sources {{ type ipv4_addr; flags dynamic; size {}; timeout 60s; }}", room(count)),
                "tcp flags & (syn | ack) == syn update @sources { ip saddr limit rate over 10/second burst 20 packets } \
                 counter drop\ndrop"
                    .to_owned(),
            ),
            Self::Set => {
                let elements: Vec<String> = sources(count).map(|address| address.to_string()).collect();
                let size = MOST_BANNED;
                let elements = elements.join(", ");
                (
                    format!("set banned {{ type ipv4_addr; size {size}; elements = {{ {elements} }} }}"),
                    "ip saddr @banned counter drop\ndrop".to_owned(),
                )
            }
        };
        format!("table netdev bench {{\n{set}\n{}\n}}\n", chain(&rules))
    }
}

/// How many sources nftables' meter has room for.
fn room(count: i32) -> i32 {
    if count > METER.1 { METER.0 } else { count.max(METER.0) }
}

fn sources(count: i32) -> impl Iterator<Item = Ipv4Addr> {
    (0..count.cast_unsigned()).map(|number| Ipv4Addr::from_bits(FIRST.to_bits() + number))
}

/// The figures, in packets a second, by the number of sources.
#[derive(Debug, Default)]
pub(crate) struct Growth(BTreeMap<(i32, Guard), Series>);

/// The three receivers, and what they keep.
struct Posts {
    generators: Namespace,
    limited: (Link, Box<Armed>),
    banned: Link,
    bans: BTreeMap<i32, Armed>,
    ruled: Link,
    _kept: (TcpListener, Vec<OwnedFd>),
}

impl Posts {
    fn build(purpose: &str, object: &[u8]) -> Result<Self> {
        let generators = Namespace::create(purpose, "many")?;
        let links = ["limited", "banned", "ruled"].into_iter().enumerate();
        let links: Result<Vec<Link>> =
            links.map(|(number, role)| Link::build(purpose, role, number, &generators)).collect();
        let links: Result<[Link; 3], _> = links?.try_into();
        let Ok([limited, banned, ruled]) = links else { anyhow::bail!("three links") };
        for link in [&limited, &banned] {
            load_rules(&link.namespace, &Guard::Limit.rules(0))?;
        }
        let listener = listen(&limited)?;
        let mut shield = Armed::load(object, Rights::Unit, std::iter::empty())?;
        let attached = vec![
            limited.attach(&shield.program()?, INTERFACE)?,
            attach(&generators, &program::drop()?, &limited.entrance)?,
        ];
        let mut bans = BTreeMap::new();
        for count in COUNTS.into_iter().filter(|count| *count <= MOST_BANNED) {
            let banned = sources(count).map(|address| PacketSource::of(address.into()));
            bans.insert(count, Armed::load(object, Rights::Unit, banned)?);
        }
        let limited = (limited, Box::new(shield));
        Ok(Self { generators, limited, banned, bans, ruled, _kept: (listener, attached) })
    }

    /// Packets a second.
    fn flood(&mut self, guard: Guard, count: i32) -> Result<f64> {
        let from = Some(Sources::Block(FIRST, count));
        let frame = syn(ANYONE);
        let generators = &self.generators;
        let flood = match guard {
            Guard::Limit | Guard::Cookies => {
                let (link, shield) = &mut self.limited;
                shield.stand(if guard == Guard::Limit { Stance::Calm } else { Stance::Shipped })?;
                link.flood(generators, from, &frame, FRAMES)?
            }
            Guard::Bans => {
                let shield = self.bans.get_mut(&count).context("a shield that was not loaded")?;
                shield.stand(Stance::Shipped)?;
                let _attached = self.banned.attach(&shield.program()?, INTERFACE)?;
                self.banned.flood(generators, from, &frame, FRAMES)?
            }
            Guard::Meter | Guard::Set => {
                load_rules(&self.ruled.namespace, &guard.rules(count))?;
                if guard == Guard::Meter {
                    // So that its set holds as many sources as it can.
                    let known = room(count).cast_unsigned();
                    self.ruled.flood(generators, from, &frame, known)?;
                }
                self.ruled.flood(generators, from, &frame, FRAMES_THROUGH_THE_STACK)?
            }
        };
        // Frames that find the receiver's ring full are lost before they reach it.
        ensure!(flood.arrived * 10 > u64::from(flood.sent), "only {} frames arrived", flood.arrived);
        Ok(flood.arrived as f64 / flood.seconds)
    }
}

/// Measures all in turn, round by round.
///
/// # Errors
/// When something cannot be set up, or hardly any frame arrived.
pub(crate) fn measure(purpose: &str, object: &[u8], pains: Pains) -> Result<Growth> {
    tell("building the links for many sources");
    let mut posts = Posts::build(purpose, object)?;
    let mut growth = Growth::default();
    let rounds = pains.rounds(ROUNDS);
    for round in 0..=rounds {
        for count in COUNTS {
            tell(&format!("packets a second, round {round} of {rounds}: {count} sources"));
            for guard in Guard::ALL.into_iter().filter(|guard| guard.is_measured(count)) {
                let rate =
                    posts.flood(guard, count).with_context(|| format!("{guard:?}, {count} sources"))?;
                if round > 0 {
                    growth.0.entry((count, guard)).or_default().push(rate);
                }
            }
        }
    }
    Ok(growth)
}

impl Growth {
    /// A Markdown table of everything.
    pub(crate) fn table(&self) -> String {
        let mut text = "| sources | shield: limit by source | shield: as shipped, cookies | nftables: meter | its room | \
                        shield: ban table | nftables: set |\n|--:|--:|--:|--:|--:|--:|--:|\n"
            .to_owned();
        for count in COUNTS {
            let cell = |guard: Guard| match self.0.get(&(count, guard)) {
                Some(series) => format!("{:.2}", series.median() / 1e6),
                None => "–".to_owned(),
            };
            let [limit, cookies, meter, bans, set] = Guard::ALL.map(cell);
            let room = room(count);
            let full = if room < count { " (full)" } else { "" };
            let [count, room] = [count, room].map(|number| grouped(number.unsigned_abs().into()));
            let _ =
                writeln!(text, "| {count} | {limit} | {cookies} | {meter} | {room}{full} | {bans} | {set} |");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_meter_has_room_for_all_sources_up_to_a_million() {
        assert_eq!(COUNTS.map(room), [65_536, 65_536, 65_536, 100_000, 1_000_000, 65_536]);
    }
}
