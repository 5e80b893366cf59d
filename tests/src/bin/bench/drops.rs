//! Packets dropped a second, of real frames on a real link.

use std::{collections::BTreeMap, fmt::Write as _, net::Ipv4Addr, os::fd::OwnedFd, path::Path};

use anyhow::{Context, Result, ensure};
use tunica_common::verdict::{Action, Verdict};
use tunica_core::id::PacketSource;
use tunica_tests::{
    netns::Namespace,
    program::{self, Sources},
};

use crate::{
    Pains,
    armed::{Armed, Rights, Stance},
    link::{INTERFACE, Link, counted_by_kernel, counted_by_rules, load_rules, syn},
    nanoseconds::{BANNED, MANY, many},
    series::{Aim, Bound, Series},
    tell,
    yardstick::{Enlarged, Filter, say},
};

/// Rounds that count; one more comes first and warms up.
const ROUNDS: usize = 5;
/// Frames of one call; whoever is slow gets the fewer.
const FRAMES: u32 = 2_000_000;
const FRAMES_THROUGH_THE_STACK: u32 = 500_000;

/// The source of tests with one source that nobody banned.
const STRANGER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
/// Sources of the tests that a limiter is to keep apart.
const BOTS: Sources = Sources::Block(Ipv4Addr::new(172, 16, 0, 0), 1_024);

/// What stands at the receiving end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Guard {
    BareDrop,
    Shield,
    Filter,
    NetdevMeter,
    RawMeter,
    NetdevSet,
    Hashlimit,
    Nothing,
}

impl Guard {
    const ALL: [Self; 8] = [
        Self::BareDrop,
        Self::Shield,
        Self::Filter,
        Self::NetdevMeter,
        Self::RawMeter,
        Self::NetdevSet,
        Self::Hashlimit,
        Self::Nothing,
    ];

    const fn title(self) -> &'static str {
        match self {
            Self::BareDrop => "bare `XDP_DROP`",
            Self::Shield => "shield",
            Self::Filter => "`xdp-filter`",
            Self::NetdevMeter => "nftables meter, netdev ingress",
            Self::RawMeter => "nftables meter, raw prerouting",
            Self::NetdevSet => "nftables set of 100 000, netdev ingress",
            Self::Hashlimit => "iptables hashlimit, raw prerouting",
            Self::Nothing => "nothing: the kernel answers with RST",
        }
    }

    const fn role(self) -> &'static str {
        match self {
            Self::BareDrop => "bare",
            Self::Shield => "shield",
            Self::Filter => "xdp-filter",
            Self::NetdevMeter => "netdev",
            Self::RawMeter => "raw",
            Self::NetdevSet => "set",
            Self::Hashlimit => "hashlimit",
            Self::Nothing => "nothing",
        }
    }

    /// nftables rules, if it is made of them.
    fn rules(self) -> Option<String> {
        let meter = |family: &str, hook: &str| {
            format!(
                "table {family} bench {{\n\
                 set sources {{ type ipv4_addr; flags dynamic; size 65536; timeout 60s; }}\n\
                 chain guard {{ type filter hook {hook}; policy accept;\n\
                 tcp flags & (syn | ack) == syn update @sources {{ ip saddr limit rate over 10/second burst 20 packets }} counter drop\n\
                 }}\n}}\n"
            )
        };
        let ingress = format!("ingress device \"{INTERFACE}\" priority 0");
        match self {
            Self::NetdevMeter => Some(meter("netdev", &ingress)),
            Self::RawMeter => Some(meter("ip", "prerouting priority raw")),
            Self::NetdevSet => {
                let elements: Vec<String> = many().map(|address| address.to_string()).collect();
                Some(format!(
                    "table netdev bench {{\n\
                     set banned {{ type ipv4_addr; size 131072; elements = {{ {} }} }}\n\
                     chain guard {{ type filter hook {ingress}; policy accept; ip saddr @banned counter drop; }}\n}}\n",
                    elements.join(", ")
                ))
            }
            Self::BareDrop | Self::Shield | Self::Filter | Self::Hashlimit | Self::Nothing => None,
        }
    }
}

/// Who attacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Attack {
    /// One source, banned.
    Banned,
    /// One source, not banned, far over its limit.
    Stranger,
    /// 1 024 sources in random order, not banned, each far over its limit.
    Bots,
    /// 100 000 sources in random order, all banned.
    ManyBanned,
}

impl Attack {
    const ALL: [Self; 4] = [Self::Banned, Self::Stranger, Self::Bots, Self::ManyBanned];

    const fn title(self) -> &'static str {
        match self {
            Self::Banned => "one banned source",
            Self::Stranger => "SYN flood of one source",
            Self::Bots => "SYN flood of 1 024 sources",
            Self::ManyBanned => "100 000 banned sources",
        }
    }

    const fn source(self) -> Ipv4Addr {
        match self {
            Self::Banned | Self::ManyBanned => BANNED,
            Self::Stranger | Self::Bots => STRANGER,
        }
    }

    const fn sources(self) -> Option<Sources> {
        match self {
            Self::Banned | Self::Stranger => None,
            Self::Bots => Some(BOTS),
            Self::ManyBanned => Some(Sources::Block(BANNED, MANY)),
        }
    }

    /// Who is measured under this attack: whoever has an answer to it.
    const fn guards(self) -> &'static [Guard] {
        match self {
            Self::Banned | Self::ManyBanned => {
                &[Guard::BareDrop, Guard::Shield, Guard::Filter, Guard::NetdevSet]
            }
            Self::Stranger => {
                &[Guard::Shield, Guard::NetdevMeter, Guard::RawMeter, Guard::Hashlimit, Guard::Nothing]
            }
            Self::Bots => &[Guard::Shield, Guard::NetdevMeter, Guard::RawMeter, Guard::Hashlimit],
        }
    }

    /// What the shield is told: bots together exceed their port's budget, which would be answered with cookies, and here it
    /// is the limit by source that is compared.
    const fn stance(self) -> Stance {
        match self {
            Self::Banned | Self::Stranger | Self::ManyBanned => Stance::Shipped,
            Self::Bots => Stance::Calm,
        }
    }

    const fn verdict(self) -> Verdict {
        match self {
            Self::Banned | Self::ManyBanned => Verdict::Banned,
            Self::Stranger | Self::Bots => Verdict::SynRate,
        }
    }
}

/// The receiving end, in its namespace.
struct Post {
    guard: Guard,
    link: Link,
    kept: Kept,
}

/// What must live as long as the post.
#[expect(dead_code, reason = "what is attached stays attached as long as these are held")]
enum Kept {
    Shield(Box<Armed>, OwnedFd),
    Filter(Enlarged, OwnedFd),
    Link(OwnedFd),
    Rules,
}

impl Post {
    fn build(
        purpose: &str,
        guard: Guard,
        number: usize,
        generators: &Namespace,
        object: &[u8],
        filter: &Filter,
    ) -> Result<Self> {
        let link = Link::build(purpose, guard.role(), number, generators)?;
        let kept = match guard {
            Guard::BareDrop => Kept::Link(link.attach(&program::drop()?, INTERFACE)?),
            Guard::Shield => {
                let banned = many().map(|address| PacketSource::of(address.into()));
                let mut shield = Armed::load(object, Rights::Unit, banned)?;
                let attached = link.attach(&shield.program()?, INTERFACE)?;
                Kept::Shield(Box::new(shield), attached)
            }
            Guard::Filter => {
                let filter = filter.of_many(many())?;
                let attached = link.attach(&filter.program()?, INTERFACE)?;
                Kept::Filter(filter, attached)
            }
            Guard::NetdevMeter | Guard::RawMeter | Guard::NetdevSet => {
                load_rules(&link.namespace, &guard.rules().unwrap_or_default())?;
                Kept::Rules
            }
            Guard::Hashlimit => {
                let rule = "-t raw -A PREROUTING -p tcp --syn -m hashlimit --hashlimit-name bench --hashlimit-mode srcip \
                            --hashlimit-above 10/second --hashlimit-burst 20 -j DROP";
                say(link.namespace.command(Path::new("iptables")).args(rule.split_whitespace()))?;
                Kept::Rules
            }
            Guard::Nothing => Kept::Rules,
        };
        Ok(Self { guard, link, kept })
    }

    /// Packets dropped so far.
    fn dropped(&self, attack: Attack) -> Result<u64> {
        let namespace = &self.link.namespace;
        match (self.guard, &self.kept) {
            (Guard::Shield, Kept::Shield(shield, _)) => shield.packets(attack.verdict(), Action::Drop),
            (Guard::BareDrop | Guard::Filter | Guard::Shield, _) => {
                let shown = say(namespace.command(Path::new("ethtool")).args(["-S", INTERFACE]))?;
                sum_of(&shown, "_xdp_drops:").context("`ethtool -S` shows no drops by XDP")
            }
            (Guard::NetdevMeter | Guard::RawMeter | Guard::NetdevSet, _) => counted_by_rules(namespace),
            (Guard::Hashlimit, _) => {
                let arguments = ["-t", "raw", "-L", "PREROUTING", "-n", "-v", "-x"];
                let shown = say(namespace.command(Path::new("iptables")).args(arguments))?;
                let row =
                    shown.lines().find(|line| line.contains("DROP")).context("iptables shows no rule")?;
                let packets = row.split_whitespace().next().context("iptables shows no count")?;
                packets.parse().context("reading iptables' count")
            }
            // The kernel drops none: it answers each SYN with a RST, which it counts (RFC 1213, tcpOutRsts).
            (Guard::Nothing, _) => counted_by_kernel(namespace, "Tcp", "OutRsts"),
        }
    }
}

/// The numbers behind all words that end so, added up.
fn sum_of(text: &str, ending: &str) -> Option<u64> {
    let mut words = text.split_whitespace().peekable();
    let mut sum = None;
    while let Some(word) = words.next() {
        if word.ends_with(ending)
            && let Some(number) = words.peek().and_then(|next| next.parse::<u64>().ok())
        {
            sum = Some(sum.unwrap_or(0) + number);
        }
    }
    sum
}

/// The figures, in packets a second.
#[derive(Debug, Default)]
pub(crate) struct Drops(BTreeMap<(Attack, Guard), Figures>);

#[derive(Debug, Default)]
struct Figures {
    rate: Series,
    /// Of all frames sent, those that were dropped.
    share: Series,
    /// Nanoseconds of soft interrupts for each frame that arrived.
    softirq: Series,
}

/// Measures all pairs in turn, round by round.
///
/// # Errors
/// When something cannot be set up, or hardly anything was dropped where nearly all should be.
pub(crate) fn measure(purpose: &str, object: &[u8], pains: Pains) -> Result<Drops> {
    tell("building the links");
    let filter = Filter::of_one(purpose, BANNED)?;
    let generators = Namespace::create(purpose, "generators")?;
    let mut posts = BTreeMap::new();
    for (number, guard) in Guard::ALL.into_iter().enumerate() {
        posts.insert(guard, Post::build(purpose, guard, number, &generators, object, &filter)?);
    }
    let mut drops = Drops::default();
    let rounds = pains.rounds(ROUNDS);
    for round in 0..=rounds {
        for attack in Attack::ALL {
            tell(&format!("dropped packets a second, round {round} of {rounds}: {}", attack.title()));
            for guard in attack.guards() {
                let post = posts.get_mut(guard).context("a post that was not built")?;
                let (rate, share, softirq) = flood(attack, post, &generators)
                    .with_context(|| format!("{}, {}", attack.title(), guard.title()))?;
                if round > 0 {
                    let figures = drops.0.entry((attack, *guard)).or_default();
                    figures.rate.push(rate);
                    figures.share.push(share);
                    figures.softirq.push(softirq);
                }
            }
        }
    }
    Ok(drops)
}

/// Sends one call's frames. Returns packets dropped a second, the share of the frames that was dropped, and nanoseconds of
/// soft interrupts for each that arrived.
fn flood(attack: Attack, post: &mut Post, generators: &Namespace) -> Result<(f64, f64, f64)> {
    if let Kept::Shield(shield, _) = &mut post.kept {
        shield.stand(attack.stance())?;
    }
    let frames = match post.guard {
        Guard::BareDrop | Guard::Shield | Guard::Filter => FRAMES,
        Guard::NetdevMeter | Guard::RawMeter | Guard::NetdevSet | Guard::Hashlimit | Guard::Nothing => {
            FRAMES_THROUGH_THE_STACK
        }
    };
    let before = post.dropped(attack)?;
    let flood = post.link.flood(generators, attack.sources(), &syn(attack.source()), frames)?;
    let dropped = post.dropped(attack)? - before;
    let share = dropped as f64 / f64::from(flood.sent);
    // Frames that find the receiver's ring full are lost before they reach it, which takes many from whoever is slow.
    ensure!(share > 0.1, "only {dropped} of {frames} frames were dropped");
    Ok((dropped as f64 / flood.seconds, share, flood.softirq_nanoseconds()))
}

impl Drops {
    fn rate(&self, attack: Attack, guard: Guard) -> Series {
        self.0.get(&(attack, guard)).map(|figures| figures.rate.clone()).unwrap_or_default()
    }

    /// A Markdown table of everything.
    pub(crate) fn table(&self) -> String {
        let mut text =
            "| flood | receiver | min | median | max | of the frames | × shield | softirq ns a packet |\n\
                        |---|---|--:|--:|--:|--:|--:|--:|\n"
                .to_owned();
        for ((attack, guard), figures) in &self.0 {
            let millions = |rate: f64| rate / 1e6;
            let _ = writeln!(
                text,
                "| {} | {} | {:.2} | {:.2} | {:.2} | {:.1} % | {:.2} | {:.0} |",
                attack.title(),
                guard.title(),
                millions(figures.rate.least()),
                millions(figures.rate.median()),
                millions(figures.rate.most()),
                figures.share.median() * 100.0,
                figures.rate.ratio(&self.rate(*attack, Guard::Shield)),
                figures.softirq.median(),
            );
        }
        text
    }

    pub(crate) fn aims(&self) -> Vec<Aim> {
        let aim = |what, attack, least, other| {
            let found = self.rate(attack, Guard::Shield).ratio(&self.rate(attack, other));
            Aim { what, bound: Bound::AtLeast(least), found, unit: "×" }
        };
        let filter = Guard::Filter;
        vec![
            aim("packets/s dropped, one banned source, to `xdp-filter`", Attack::Banned, 0.95, filter),
            aim(
                "packets/s dropped, 100 000 banned sources, to `xdp-filter`",
                Attack::ManyBanned,
                0.95,
                filter,
            ),
            aim(
                "packets/s dropped, SYN flood of one source, to nftables' meter at ingress",
                Attack::Stranger,
                4.0,
                Guard::NetdevMeter,
            ),
            aim(
                "packets/s dropped, SYN flood of 1 024 sources, to nftables' meter at ingress",
                Attack::Bots,
                4.0,
                Guard::NetdevMeter,
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_programs_print_is_understood() {
        let ethtool = "NIC statistics:\n     rx_queue_0_xdp_drops: 12\n     rx_queue_1_xdp_drops: 30\n     peer_ifindex: 4\n";
        assert_eq!(sum_of(ethtool, "_xdp_drops:"), Some(42));
        assert_eq!(sum_of("NIC statistics:\n     peer_ifindex: 4\n", "_xdp_drops:"), None);
    }
}
