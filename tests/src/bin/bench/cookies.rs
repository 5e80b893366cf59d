//! SYNs answered with cookies, by the shield and by the kernel's listener.
//!
//! Every SYN has another, forged source. What receives the answers drops them without a word: resets would be work that no
//! forged source makes.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::fd::OwnedFd,
};

use anyhow::{Context, Result, ensure};
use tunica_common::verdict::{Action, Verdict};
use tunica_tests::{
    counters::received,
    netns::Namespace,
    program::{self, Sources},
    shield::listen_at,
};

use crate::{
    Pains,
    armed::{Armed, OWN, PORT, Rights, Stance},
    link::{INTERFACE, Link, attach, counted_by_kernel, load_rules, syn},
    series::{Aim, Bound, Series},
    tell,
};

/// Rounds that count; one more comes first and warms up.
const ROUNDS: usize = 5;
/// Frames of one call.
const FRAMES: u32 = 2_000_000;
const FRAMES_THROUGH_THE_STACK: u32 = 500_000;

/// Random sources that a host takes for real ones: 128.0.0.0/2.
pub(crate) const FORGED: Sources = Sources::Block(Ipv4Addr::new(128, 0, 0, 0), 1 << 30);

/// The source that stands in the frame, which the generator overwrites.
pub(crate) const ANYONE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);

/// What the answers meet with on their way back: the peers' stack drops all, before it looks for a route.
pub(crate) const DROP_ANSWERS: &str =
    "table ip bench {\nchain answers { type filter hook prerouting priority raw; policy drop; }\n}\n";

/// Who answers, and where the answers end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Answerer {
    ShieldToXdp,
    ShieldToStack,
    KernelToStack,
}

impl Answerer {
    const ALL: [Self; 3] = [Self::ShieldToXdp, Self::ShieldToStack, Self::KernelToStack];

    const fn title(self) -> [&'static str; 2] {
        match self {
            Self::ShieldToXdp => ["shield", "XDP"],
            Self::ShieldToStack => ["shield", "its stack"],
            Self::KernelToStack => ["the kernel's listener", "its stack"],
        }
    }

    const fn role(self) -> &'static str {
        match self {
            Self::ShieldToXdp => "cookies-xdp",
            Self::ShieldToStack => "cookies",
            Self::KernelToStack => "kernel",
        }
    }
}

/// A host with a listener.
struct Post {
    link: Link,
    shield: Option<Box<Armed>>,
    _listener: TcpListener,
    _attached: Vec<OwnedFd>,
}

impl Post {
    fn build(
        purpose: &str,
        answerer: Answerer,
        number: usize,
        generators: &Namespace,
        object: &[u8],
    ) -> Result<Self> {
        let link = Link::build(purpose, answerer.role(), number, generators)?;
        let listener = listen(&link)?;
        let mut attached = Vec::new();
        let shield = match answerer {
            Answerer::ShieldToXdp | Answerer::ShieldToStack => {
                let mut shield = Armed::load(object, Rights::Unit, std::iter::empty())?;
                attached.push(link.attach(&shield.program()?, INTERFACE)?);
                Some(Box::new(shield))
            }
            Answerer::KernelToStack => None,
        };
        // A veth drops what a program sends back unless its peer has one, too.
        let at_peer = match answerer {
            Answerer::ShieldToXdp => Some(program::drop()?),
            Answerer::ShieldToStack => Some(program::pass()?),
            Answerer::KernelToStack => None,
        };
        if let Some(program) = at_peer {
            attached.push(attach(generators, &program, &link.entrance)?);
        }
        Ok(Self { link, shield, _listener: listener, _attached: attached })
    }

    /// Cookies sent so far.
    fn answered(&self) -> Result<u64> {
        match &self.shield {
            Some(shield) => shield.packets(Verdict::SynCookie, Action::Answer),
            None => counted_by_kernel(&self.link.namespace, "TcpExt", "SyncookiesSent"),
        }
    }
}

/// The figures.
#[derive(Debug, Default)]
pub(crate) struct Cookies(BTreeMap<Answerer, Figures>);

#[derive(Debug, Default)]
struct Figures {
    /// Cookies a second.
    rate: Series,
    /// Of the SYNs that arrived, those that were answered.
    share: Series,
    /// Of the cookies, those that reached the peer.
    returned: Series,
    /// Nanoseconds of soft interrupts for each SYN that arrived.
    softirq: Series,
}

/// Measures all in turn, round by round.
///
/// # Errors
/// When something cannot be set up, or hardly any SYN was answered.
pub(crate) fn measure(purpose: &str, object: &[u8], pains: Pains) -> Result<Cookies> {
    tell("building the links for cookies");
    let generators = Namespace::create(purpose, "asking")?;
    load_rules(&generators, DROP_ANSWERS)?;
    let mut posts = BTreeMap::new();
    for (number, answerer) in Answerer::ALL.into_iter().enumerate() {
        posts.insert(answerer, Post::build(purpose, answerer, number, &generators, object)?);
    }
    let mut cookies = Cookies::default();
    let rounds = pains.rounds(ROUNDS);
    for round in 0..=rounds {
        tell(&format!("cookies a second, round {round} of {rounds}"));
        for (answerer, post) in &mut posts {
            let frames = match &mut post.shield {
                Some(shield) => {
                    shield.stand(Stance::Cookies)?;
                    FRAMES
                }
                None => FRAMES_THROUGH_THE_STACK,
            };
            let (before, returned) = (post.answered()?, received(&generators, &post.link.entrance)?);
            let flood = post.link.flood(&generators, Some(FORGED), &syn(ANYONE), frames)?;
            let answered = post.answered()? - before;
            let share = answered as f64 / flood.arrived as f64;
            ensure!(share > 0.9, "{}: {answered} of {} SYNs were answered", answerer.role(), flood.arrived);
            // Answers that found the peer's ring full cost as much; but if hardly any came back, something is not as meant.
            let returned = received(&generators, &post.link.entrance)? - returned;
            ensure!(
                returned * 2 > answered,
                "{}: {returned} of {answered} cookies came back",
                answerer.role()
            );
            if round > 0 {
                let figures = cookies.0.entry(*answerer).or_default();
                figures.rate.push(answered as f64 / flood.seconds);
                figures.share.push(share);
                figures.returned.push(returned as f64 / answered as f64);
                figures.softirq.push(flood.softirq_nanoseconds());
            }
        }
    }
    Ok(cookies)
}

impl Cookies {
    fn rate(&self, answerer: Answerer) -> Series {
        self.0.get(&answerer).map(|figures| figures.rate.clone()).unwrap_or_default()
    }

    /// A Markdown table of everything.
    pub(crate) fn table(&self) -> String {
        let mut text = "| who answers | what drops the answers at the peer | min | median | max | of those that arrived | \
                        reached the peer | × kernel | softirq ns a SYN |\n|---|---|--:|--:|--:|--:|--:|--:|--:|\n"
            .to_owned();
        for (answerer, figures) in &self.0 {
            let [who, peer] = answerer.title();
            let _ = writeln!(
                text,
                "| {who} | {peer} | {:.2} | {:.2} | {:.2} | {:.1} % | {:.1} % | {:.2} | {:.0} |",
                figures.rate.least() / 1e6,
                figures.rate.median() / 1e6,
                figures.rate.most() / 1e6,
                figures.share.median() * 100.0,
                figures.returned.median() * 100.0,
                figures.rate.ratio(&self.rate(Answerer::KernelToStack)),
                figures.softirq.median(),
            );
        }
        text
    }

    pub(crate) fn aims(&self) -> Vec<Aim> {
        let found = self.rate(Answerer::ShieldToStack).ratio(&self.rate(Answerer::KernelToStack));
        let what = "SYNs/s answered with cookies, to the kernel's, the peer's stack dropping them";
        vec![Aim { what, bound: Bound::AtLeast(3.5), found, unit: "×" }]
    }
}

/// A listener that defends itself with cookies, so that every SYN has an answer: at the host that stands at the end of
/// `link`, and at the address and port that are attacked.
///
/// # Errors
/// When nobody can listen there.
pub(crate) fn listen(link: &Link) -> Result<TcpListener> {
    // The kernel then answers each SYN with a cookie, instead of keeping as many as its queue holds.
    link.namespace.write_sysctl("net/ipv4/tcp_syncookies", "2")?;
    link.namespace.run(|| listen_at(SocketAddr::new(OWN.into(), PORT))).context("listening")
}
