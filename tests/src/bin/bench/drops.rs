//! Packets dropped a second, of real frames on a real link.
//!
//! A generator program sends live frames (`BPF_F_TEST_XDP_LIVE_FRAMES`) out of one end of a veth pair; at the other end,
//! in a namespace of its own, stands what is measured. The frames are no socket buffers, as on a network card: from a
//! packet socket they would be, and XDP on veth would have to copy them.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::Write as _,
    net::Ipv4Addr,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::net::if_::if_nametoindex;
use serde_json::Value;
use tunica_common::verdict::{Action, Verdict};
use tunica_core::id::PacketSource;
use tunica_tests::{
    flood::checksum,
    frame::{self, SYN, TCP, tcp},
    netns::{End, Namespace, join, mac_text},
    sys::bpf,
};

use crate::{
    armed::{Armed, OWN, Rights},
    nanoseconds::{BANNED, MANY, many},
    program::{self, Sources},
    series::{Aim, Bound, Series},
    tell,
    yardstick::{Enlarged, Filter, say},
};

/// Rounds that count; one more comes first and warms up.
const ROUNDS: usize = 5;
/// Frames of one call; whoever is slow gets the fewer.
const FRAMES: u32 = 2_000_000;
const FRAMES_THROUGH_THE_STACK: u32 = 500_000;
/// Frames of a call that is made to know what a call costs apart from its frames; one batch.
const ONE_BATCH: u32 = 64;

/// The source of tests with one source that nobody banned.
const STRANGER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
/// Sources of the tests that a limiter is to keep apart.
const BOTS: Sources = Sources::Block(Ipv4Addr::new(172, 16, 0, 0), 1_024);

const INTERFACE: &str = "eth0";

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
    namespace: Namespace,
    /// The generators' end of the pair.
    entrance: u32,
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

/// As [`frame::ethernet`] addresses its frames.
const GENERATOR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const POST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

impl Post {
    fn build(
        purpose: &str,
        guard: Guard,
        number: usize,
        generators: &Namespace,
        object: &[u8],
        filter: &Filter,
    ) -> Result<Self> {
        let namespace = Namespace::create(purpose, guard.role())?;
        let entrance = format!("to-{}", guard.role());
        let (near, far) = (format!("10.78.{number}.2/24"), format!("10.78.{number}.1/24"));
        join(
            End { namespace: generators, interface: &entrance, mac: GENERATOR_MAC, address: &near },
            End { namespace: &namespace, interface: INTERFACE, mac: POST_MAC, address: &far },
        )?;
        // Answers leave by the same link, and no address resolution takes place in the middle of a flood.
        let gateway = format!("10.78.{number}.2");
        let mac = mac_text(GENERATOR_MAC);
        namespace.ip(&[
            "neighbour",
            "add",
            &gateway,
            "lladdr",
            &mac,
            "dev",
            INTERFACE,
            "nud",
            "permanent",
        ])?;
        namespace.ip(&["route", "add", "default", "via", &gateway])?;
        namespace.ip(&["address", "add", &format!("{OWN}/32"), "dev", "lo"])?;
        for scope in ["all", "default", INTERFACE] {
            namespace.write_sysctl(&format!("net/ipv4/conf/{scope}/rp_filter"), "0")?;
        }
        // With receive offload a veth takes frames that are no socket buffers, even without a program (drivers/net/veth.c).
        say(namespace.command(Path::new("ethtool")).args(["-K", INTERFACE, "gro", "on"]))?;
        let kept = match guard {
            Guard::BareDrop => Kept::Link(attach(&namespace, program::drop()?)?),
            Guard::Shield => {
                let mut shield = Armed::load(
                    object,
                    Rights::Unit,
                    many().map(|address| PacketSource::of(address.into())),
                )?;
                let link = attach(&namespace, shield.program()?)?;
                Kept::Shield(Box::new(shield), link)
            }
            Guard::Filter => {
                let filter = filter.of_many(many())?;
                let link = attach(&namespace, filter.program()?)?;
                Kept::Filter(filter, link)
            }
            Guard::NetdevMeter | Guard::RawMeter | Guard::NetdevSet => {
                load_rules(&namespace, &guard.rules().unwrap_or_default())?;
                Kept::Rules
            }
            Guard::Hashlimit => {
                let rule = "-t raw -A PREROUTING -p tcp --syn -m hashlimit --hashlimit-name bench --hashlimit-mode srcip \
                            --hashlimit-above 10/second --hashlimit-burst 20 -j DROP";
                say(namespace.command(Path::new("iptables")).args(rule.split_whitespace()))?;
                Kept::Rules
            }
            Guard::Nothing => Kept::Rules,
        };
        let entrance = generators.run(|| Ok(if_nametoindex(entrance.as_str())?))?;
        Ok(Self { guard, namespace, entrance, kept })
    }

    /// Packets dropped so far.
    fn dropped(&self, attack: Attack) -> Result<u64> {
        match (self.guard, &self.kept) {
            (Guard::Shield, Kept::Shield(shield, _)) => shield.packets(attack.verdict(), Action::Drop),
            (Guard::BareDrop | Guard::Filter | Guard::Shield, _) => {
                let shown = say(self.namespace.command(Path::new("ethtool")).args(["-S", INTERFACE]))?;
                sum_of(&shown, "_xdp_drops:").context("`ethtool -S` shows no drops by XDP")
            }
            (Guard::NetdevMeter | Guard::RawMeter | Guard::NetdevSet, _) => {
                let shown =
                    say(self.namespace.command(Path::new("nft")).args(["-j", "-t", "list", "ruleset"]))?;
                let shown: Value = serde_json::from_str(&shown).context("reading `nft -j list ruleset`")?;
                counter(&shown).context("nftables shows no counter")
            }
            (Guard::Hashlimit, _) => {
                let arguments = ["-t", "raw", "-L", "PREROUTING", "-n", "-v", "-x"];
                let shown = say(self.namespace.command(Path::new("iptables")).args(arguments))?;
                let row =
                    shown.lines().find(|line| line.contains("DROP")).context("iptables shows no rule")?;
                let packets = row.split_whitespace().next().context("iptables shows no count")?;
                packets.parse().context("reading iptables' count")
            }
            // The kernel drops none: it answers each SYN with a RST, which it counts (RFC 1213, tcpOutRsts).
            (Guard::Nothing, _) => {
                let shown = self.namespace.run(|| {
                    std::fs::read_to_string("/proc/thread-self/net/snmp").context("reading /proc/net/snmp")
                })?;
                let mut rows = shown.lines().filter_map(|line| line.strip_prefix("Tcp: "));
                let (names, values) =
                    rows.next().zip(rows.next()).context("/proc/net/snmp has no row for TCP")?;
                let mut pairs = names.split_whitespace().zip(values.split_whitespace());
                let value = pairs.find(|(name, _)| *name == "OutRsts").context("no count of RSTs")?.1;
                value.parse().context("reading the count of RSTs")
            }
        }
    }
}

fn attach(namespace: &Namespace, program: OwnedFd) -> Result<OwnedFd> {
    namespace.run(|| {
        let interface = if_nametoindex(INTERFACE).context("looking for the veth")?;
        bpf::attach_xdp(program.as_fd(), interface).context("attaching to a veth in native mode")
    })
}

fn load_rules(namespace: &Namespace, rules: &str) -> Result<()> {
    let mut command = namespace.command(Path::new("nft"));
    let mut child = command
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting `nft`")?;
    child.stdin.take().context("nft's input")?.write_all(rules.as_bytes()).context("handing rules to nft")?;
    let output = child.wait_with_output().context("waiting for nft")?;
    if !output.status.success() {
        bail!("`nft -f -` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
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

/// Packets of the first counter in nft's JSON.
fn counter(value: &Value) -> Option<u64> {
    match value {
        Value::Object(fields) => match fields.get("counter").and_then(|counter| counter.get("packets")) {
            Some(packets) => packets.as_u64(),
            None => fields.values().find_map(counter),
        },
        Value::Array(values) => values.iter().find_map(counter),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    }
}

/// The figures, in packets a second.
#[derive(Debug, Default)]
pub(crate) struct Drops(BTreeMap<(Attack, Guard), Figures>);

#[derive(Debug, Default)]
struct Figures {
    rate: Series,
    /// Of all frames sent, those that were dropped.
    share: Series,
}

/// Measures all pairs in turn, round by round.
///
/// # Errors
/// When something cannot be set up, or hardly anything was dropped where nearly all should be.
pub(crate) fn measure(purpose: &str, object: &[u8]) -> Result<Drops> {
    tell("building the links");
    let filter = Filter::of_one(purpose, BANNED)?;
    let generators = Namespace::create(purpose, "generators")?;
    let mut posts = BTreeMap::new();
    for (number, guard) in Guard::ALL.into_iter().enumerate() {
        posts.insert(guard, Post::build(purpose, guard, number, &generators, object, &filter)?);
    }
    let mut drops = Drops::default();
    for round in 0..=ROUNDS {
        for attack in Attack::ALL {
            tell(&format!("dropped packets a second, round {round} of {ROUNDS}: {}", attack.title()));
            for guard in attack.guards() {
                let post = posts.get_mut(guard).context("a post that was not built")?;
                let (rate, share) = flood(attack, post, &generators)
                    .with_context(|| format!("{}, {}", attack.title(), guard.title()))?;
                if round > 0 {
                    let figures = drops.0.entry((attack, *guard)).or_default();
                    figures.rate.push(rate);
                    figures.share.push(share);
                }
            }
        }
    }
    Ok(drops)
}

/// The frame of an IPv4 header without options and a TCP header, with its checksums.
fn valid(frame: &[u8]) -> Vec<u8> {
    let (link, packet) = frame.split_at(14.min(frame.len()));
    let (ip, segment) = packet.split_at(20.min(packet.len()));
    let with = |part: &[u8], at: usize, sum: [u8; 2]| {
        let mut part = part.to_vec();
        part.splice(at..at + 2, sum);
        part
    };
    let addresses = ip.get(12..20).unwrap_or_default();
    let length = u16::try_from(segment.len()).unwrap_or(u16::MAX).to_be_bytes();
    let sum = checksum(&[addresses, &[0, TCP], &length, segment]);
    [link.to_vec(), with(ip, 10, checksum(&[ip])), with(segment, 16, sum)].concat()
}

/// Sends one call's frames. Returns packets dropped a second, and the share of the frames that was dropped.
fn flood(attack: Attack, post: &mut Post, generators: &Namespace) -> Result<(f64, f64)> {
    if let Kept::Shield(shield, _) = &mut post.kept {
        shield.tend()?;
    }
    let frame = valid(&frame::v4(attack.source().octets(), TCP).frame(&tcp(SYN, 5)));
    let frames = match post.guard {
        Guard::BareDrop | Guard::Shield | Guard::Filter => FRAMES,
        Guard::NetdevMeter | Guard::RawMeter | Guard::NetdevSet | Guard::Hashlimit | Guard::Nothing => {
            FRAMES_THROUGH_THE_STACK
        }
    };
    let entrance = post.entrance;
    let before = post.dropped(attack)?;
    let seconds = generators.run(|| {
        let program = program::generator(entrance, attack.sources(), &frame)?;
        let send = |count| -> Result<f64> {
            let begun = Instant::now();
            bpf::send_live_frames(program.as_fd(), &frame, count).context("sending live frames")?;
            Ok(begun.elapsed().as_secs_f64())
        };
        // What a call costs before its first and after its last frame.
        let around = send(ONE_BATCH)?;
        Ok(send(frames)? - around)
    })?;
    // What the receiver still had in its ring.
    thread::sleep(Duration::from_millis(20));
    let dropped = post.dropped(attack)? - before;
    let share = dropped as f64 / f64::from(frames + ONE_BATCH);
    // Frames that find the receiver's ring full are lost before they reach it, which takes many from whoever is slow.
    ensure!(share > 0.1, "only {dropped} of {frames} frames were dropped");
    Ok((dropped as f64 / seconds, share))
}

impl Drops {
    fn rate(&self, attack: Attack, guard: Guard) -> Series {
        self.0.get(&(attack, guard)).map(|figures| figures.rate.clone()).unwrap_or_default()
    }

    /// A Markdown table of everything.
    pub(crate) fn table(&self) -> String {
        let mut text = "| flood | receiver | min | median | max | of the frames | × shield |\n\
                        |---|---|--:|--:|--:|--:|--:|\n"
            .to_owned();
        for ((attack, guard), figures) in &self.0 {
            let millions = |rate: f64| rate / 1e6;
            let _ = writeln!(
                text,
                "| {} | {} | {:.2} | {:.2} | {:.2} | {:.1} % | {:.2} |",
                attack.title(),
                guard.title(),
                millions(figures.rate.least()),
                millions(figures.rate.median()),
                millions(figures.rate.most()),
                figures.share.median() * 100.0,
                figures.rate.ratio(&self.rate(*attack, Guard::Shield)),
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
        let nft = serde_json::json!({ "nftables": [
            { "metainfo": {} },
            { "rule": { "expr": [{ "match": {} }, { "counter": { "packets": 7, "bytes": 9 } }, { "drop": null }] } },
        ] });
        assert_eq!(counter(&nft), Some(7));
    }

    #[test]
    fn frames_have_the_checksums_that_the_kernel_wants() {
        let frame = valid(&frame::v4([198, 51, 100, 7], TCP).frame(&tcp(SYN, 5)));
        let pseudo = [&frame[26..34], &[0, TCP, 0, 20]].concat();
        assert_eq!(checksum(&[&frame[14..34]]), [0, 0]);
        assert_eq!(checksum(&[&pseudo, &frame[34..]]), [0, 0]);
    }
}
