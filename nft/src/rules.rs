//! The chains: the shield's order of checks in rules.
//!
//! A packet ends in exactly one counter, named after its verdict, as in the shield.

use nftables::{
    expr::{FibFlag, MetaKey},
    stmt::{Log, LogLevel, Statement},
};
use tunica_common::{gcra::Limit, verdict::Verdict};
use tunica_core::limits::{Mode, Port, PortSettings, Settings, Transport};

use crate::{
    CT_INVALID, DROP_LOG_PREFIX, Plan,
    elements::SetName,
    words::{
        Rate, Statements, address, connection_is, counter, field, fragment_v4, fragment_v6, goto, is,
        is_local, is_not, jump, meta, named_counter, number, one_of, range, socket_is_transparent,
        socket_is_wildcard, source, tcp_flags, text,
    },
};

/// A chain and its rules.
pub(crate) struct Chain {
    pub(crate) name: String,
    /// Priority in the prerouting hook, of a chain that packets enter by themselves.
    pub(crate) priority: Option<i32>,
    pub(crate) rules: Vec<Statements>,
}

/// Before connection tracking (priority -200), like XDP before everything.
const FIRST: i32 = -300;
/// After it.
const TRACKED: i32 = -150;

const FIN: u32 = 0x01;
const SYN: u32 = 0x02;
const RST: u32 = 0x04;
const PSH: u32 = 0x08;
const ACK: u32 = 0x10;
const URG: u32 = 0x20;

/// Verdict, flags looked at, flags that must be set among them; in the shield's order.
const FLAG_RULES: &[(Verdict, u32, u32)] = &[
    (Verdict::Xmas, FIN | PSH | URG | ACK, FIN | PSH | URG),
    (Verdict::Xmas, FIN | PSH | URG | SYN, FIN | PSH | URG | SYN),
    (Verdict::NullFlags, FIN | SYN | RST | PSH | ACK | URG, 0),
    (Verdict::SynFin, SYN | FIN, SYN | FIN),
    (Verdict::SynRst, SYN | RST, SYN | RST),
    (Verdict::FinNoAck, FIN | ACK, FIN),
];

/// IP in IP, IPv6 in IP, GRE, ESP, EtherIP, L2TP.
const TUNNELS: [u32; 6] = [4, 41, 47, 50, 97, 115];
/// Headers of IPv6 behind which nftables does not look: authentication, mobility, HIP, shim6.
const OPAQUE_HEADERS: [u32; 4] = [51, 135, 139, 140];

/// Every chain, those that others lead to before those that lead there.
pub(crate) fn chains(plan: &Plan<'_>) -> Vec<Chain> {
    let Plan { settings, ephemeral_low, translates, .. } = *plan;
    let rules = Rules { settings, ephemeral_low, translates };
    let mut chains = Vec::new();
    let mut chain = |name: &str, rules| {
        chains.push(Chain { name: name.to_owned(), priority: None, rules });
    };
    if let Some(lines) = plan.settings.log_lines_per_minute {
        chain("refused", vec![vec![Rate::each_minute(lines).within(), log()], vec![rules.outcome()]]);
    }
    for verdict in [Verdict::Banned, Verdict::BannedNet, Verdict::SynRate, Verdict::IcmpRate] {
        chain(&unless_allowed(verdict), rules.by_source(verdict));
    }
    chain("ceiling", rules.ceiling());
    chain("echo", rules.echo());
    chain("icmp", rules.icmp());
    chain("udp", rules.udp());
    chain("segment", rules.segment());
    if plan.settings.port_syn.is_some() {
        chain("over_budget", rules.over_budget());
    }
    chain("syn", rules.syn());
    chain("fragment", rules.fragment());
    chain("judge", rules.judge());
    let interfaces = || is(meta(MetaKey::Iifname), one_of(plan.interfaces.iter().cloned().map(text)));
    let mut first = Vec::new();
    for (port, pace) in plan.loopback {
        first.extend(Rate::of(*pace).map(|rate| {
            let port = is(field("tcp", "dport"), number(port.get().into()));
            let on_loopback = is(meta(MetaKey::Iifname), text("lo"));
            rules.refuse(Verdict::PortRate, vec![on_loopback, tcp_flags(SYN | ACK, SYN), port, rate.over()])
        }));
    }
    first.push(vec![interfaces(), goto("judge")]);
    chains.push(Chain { name: "shield".to_owned(), priority: Some(FIRST), rules: first });
    if plan.drop_invalid {
        let mut invalid = vec![interfaces(), connection_is("invalid"), named_counter(CT_INVALID)];
        invalid.push(rules.outcome());
        chains.push(Chain { name: "tracked".to_owned(), priority: Some(TRACKED), rules: vec![invalid] });
    }
    chains
}

/// The chain that asks the allow list before it refuses.
fn unless_allowed(verdict: Verdict) -> String {
    format!("{}_unless_allowed", verdict.label())
}

/// A line in the kernel's log. It names the source, therefore the level.
fn log() -> Statement<'static> {
    let prefix = Some(DROP_LOG_PREFIX.into());
    Statement::Log(Some(Log { prefix, level: Some(LogLevel::Debug), ..Log::new(None) }))
}

struct Rules<'a> {
    settings: &'a Settings,
    ephemeral_low: u16,
    /// Connections of others behind the host have no socket here.
    translates: bool,
}

impl Rules<'_> {
    /// What becomes of a packet that is refused: observing, it passes.
    const fn outcome(&self) -> Statement<'static> {
        match self.settings.mode {
            Mode::Enforce => Statement::Drop(None),
            Mode::Off | Mode::Observe => Statement::Accept(None),
        }
    }

    fn refuse(&self, verdict: Verdict, mut matches: Statements) -> Statements {
        let is_logged = self.settings.log_lines_per_minute.is_some();
        matches.extend([counter(verdict), if is_logged { goto("refused") } else { self.outcome() }]);
        matches
    }

    fn by_source(&self, verdict: Verdict) -> Vec<Statements> {
        let excuse = |set: SetName| pass(Verdict::Allowed, vec![is(address(set.is_v4()), in_set(set))]);
        vec![excuse(SetName::Allow4), excuse(SetName::Allow6), self.refuse(verdict, Vec::new())]
    }

    /// One rate for every ICMP message but echo requests and neighbour discovery, path-MTU messages among them.
    fn ceiling(&self) -> Vec<Statements> {
        let rate = self.settings.icmp.and_then(|limits| Rate::of(limits.ceiling));
        rate.map(|rate| self.refuse(Verdict::IcmpCeiling, vec![rate.over()])).into_iter().collect()
    }

    fn echo(&self) -> Vec<Statements> {
        let mut rules = Vec::new();
        if let Some(limits) = self.settings.icmp {
            rules.extend(Self::each_source(["echo4", "echo6"], limits.per_source, Verdict::IcmpRate));
            let host = Rate::of(limits.host);
            rules.extend(host.map(|rate| self.refuse(Verdict::IcmpHostRate, vec![rate.over()])));
        }
        rules.push(pass(Verdict::Pass, Vec::new()));
        rules
    }

    fn icmp(&self) -> Vec<Statements> {
        vec![
            vec![is(field("icmp", "type"), number(8)), goto("echo")],
            vec![is(field("icmpv6", "type"), number(128)), goto("echo")],
            vec![jump("ceiling")],
            pass(Verdict::Pass, Vec::new()),
        ]
    }

    /// Leads what exceeds a per-source limit to the allow list.
    fn each_source(meters: [&str; 2], limit: Limit, verdict: Verdict) -> Vec<Statements> {
        let Some(rate) = Rate::of_limit(limit) else { return Vec::new() };
        let rule = |meter, is_v4| vec![rate.over_each(meter, source(is_v4)), goto(unless_allowed(verdict))];
        let [v4, v6] = meters;
        vec![rule(v4, true), rule(v6, false)]
    }

    fn udp(&self) -> Vec<Statements> {
        let mut rules = Vec::new();
        for (port, settings) in self.ports(Transport::Udp) {
            if let Some(rate) = settings.pace.and_then(Rate::of)
                && (settings.is_open || !self.settings.lockdown)
            {
                rules.push(self.refuse(Verdict::UdpRate, vec![to_port("udp", port), rate.over()]));
            }
        }
        if self.settings.lockdown {
            rules.extend(
                self.open_ports(Transport::Udp)
                    .map(|open| pass(Verdict::Pass, vec![is(field("udp", "dport"), open)])),
            );
            // Answers to what the host asked find the socket that asked.
            let asked = range(self.ephemeral_low.into(), u16::MAX.into());
            let mut answers = vec![is(field("udp", "dport"), asked)];
            if !self.translates {
                answers.push(is(socket_is_wildcard(), one_of([number(0), number(1)])));
            }
            rules.push(pass(Verdict::Pass, answers));
            rules.push(self.refuse(Verdict::PortClosed, Vec::new()));
        } else {
            rules.push(pass(Verdict::Pass, Vec::new()));
        }
        rules
    }

    /// Segments that are no SYN: below a rate nobody asks whose they are, and those of a connection find its socket.
    fn segment(&self) -> Vec<Statements> {
        let mut rules = Vec::new();
        if let Some(limits) = self.settings.no_socket.filter(|_| !self.translates) {
            rules.push(pass(Verdict::Pass, vec![Rate::each_second(limits.host_per_second).within()]));
            rules.push(pass(Verdict::Pass, vec![is_local(FibFlag::Daddr, false)]));
            // A connection's socket is bound to one address, most listeners to all.
            rules.push(pass(Verdict::Pass, vec![is(socket_is_wildcard(), number(0))]));
            if let Some(rate) = Rate::of_limit(limits.per_source) {
                for (meter, is_v4) in [("segments4", true), ("segments6", false)] {
                    let meter = rate.over_each(meter, source(is_v4));
                    rules.push(self.refuse(Verdict::NoSocket, vec![meter]));
                }
            }
        }
        rules.push(pass(Verdict::Pass, Vec::new()));
        rules
    }

    fn syn(&self) -> Vec<Statements> {
        let ours = || is_local(FibFlag::Daddr, true);
        let mut rules = Vec::new();
        if self.settings.lockdown {
            let mut closed = vec![ours()];
            closed.extend(self.open_ports(Transport::Tcp).map(|open| is_not(field("tcp", "dport"), open)));
            rules.push(self.refuse(Verdict::PortClosed, closed));
        }
        if let Some(limit) = self.settings.syn {
            rules.extend(Self::each_source(["syn4", "syn6"], limit, Verdict::SynRate));
        }
        for (port, settings) in self.ports(Transport::Tcp) {
            if let Some(rate) = settings.pace.and_then(Rate::of) {
                rules.push(self.refuse(Verdict::PortRate, vec![ours(), to_port("tcp", port), rate.over()]));
            }
        }
        if let Some(rate) = self.settings.port_syn.and_then(Rate::of) {
            let meter = rate.over_each("budget", field("tcp", "dport"));
            rules.push(vec![ours(), meter, goto("over_budget")]);
        }
        rules.push(pass(Verdict::Syn, Vec::new()));
        rules
    }

    /// Over its budget a port leaves the flood to the kernel's own cookies: counted, never dropped. Where nobody listens
    /// there is nothing to lose.
    fn over_budget(&self) -> Vec<Statements> {
        if self.translates {
            return vec![pass(Verdict::SynOverBudget, Vec::new())];
        }
        let has_socket = is(socket_is_transparent(), one_of([0, 1].map(number)));
        vec![pass(Verdict::SynOverBudget, vec![has_socket]), self.refuse(Verdict::NoListener, Vec::new())]
    }

    fn judge(&self) -> Vec<Statements> {
        // What rules say of ports and flags must not be asked of a fragment without them.
        let later = [is_not(fragment_v4(), number(0)), is_not(fragment_v6(), number(0))];
        let mut rules: Vec<_> = later.map(|later| vec![later, goto("fragment")]).into();
        rules.extend(exemptions());
        rules.extend(self.sanity());
        rules.extend(self.own_source());
        rules.extend(banned());
        let opaque = one_of(OPAQUE_HEADERS.into_iter().map(number));
        let opaque = vec![is(meta(MetaKey::Nfproto), text("ipv6")), is(meta(MetaKey::L4proto), opaque)];
        rules.push(self.uninspected(Verdict::ExtensionHeaders, opaque));
        let tunnels = one_of(TUNNELS.into_iter().map(number));
        rules.push(self.uninspected(Verdict::Tunnel, vec![is(meta(MetaKey::L4proto), tunnels)]));
        rules.push(self.uninspected(Verdict::Tunnel, vec![is(field("ip", "protocol"), number(51))]));
        let protocol = |number_of: u32| is(meta(MetaKey::L4proto), number(number_of));
        let family = |name: &'static str| is(meta(MetaKey::Nfproto), text(name));
        rules.push(vec![tcp_flags(SYN | ACK, SYN), goto("syn")]);
        rules.push(vec![protocol(6), goto("segment")]);
        rules.push(vec![protocol(17), goto("udp")]);
        rules.push(vec![family("ipv4"), protocol(1), goto("icmp")]);
        rules.push(vec![family("ipv6"), protocol(58), goto("icmp")]);
        if self.settings.lockdown {
            rules.push(self.refuse(Verdict::PortClosed, vec![is_local(FibFlag::Daddr, true)]));
        }
        rules.push(pass(Verdict::Pass, Vec::new()));
        rules
    }

    /// Later fragments: only their addresses tell.
    fn fragment(&self) -> Vec<Statements> {
        let tcp = || is(meta(MetaKey::L4proto), number(6));
        let mut rules = Vec::new();
        if self.has_rule(Verdict::BadFragment) {
            for offset in [fragment_v4(), fragment_v6()] {
                rules.push(self.refuse(Verdict::BadFragment, vec![tcp(), is(offset, number(1))]));
            }
        }
        rules.extend(self.own_source());
        rules.extend(banned());
        rules.push(self.uninspected(Verdict::LaterFragment, Vec::new()));
        rules
    }

    /// Whether this rule of class Sanity is in force.
    const fn has_rule(&self, verdict: Verdict) -> bool {
        self.settings.sanity_mask & verdict.bit() != 0
    }

    fn own_source(&self) -> Option<Statements> {
        let is_ours = || vec![is_local(FibFlag::Saddr, true)];
        self.has_rule(Verdict::OwnSource).then(|| self.refuse(Verdict::OwnSource, is_ours()))
    }

    fn sanity(&self) -> Vec<Statements> {
        let cut = [is(field("tcp", "doff"), range(0, 4)), is(field("udp", "length"), range(0, 7))]
            .map(|short| (Verdict::BadLength, vec![short]));
        let flags =
            FLAG_RULES.iter().map(|(verdict, mask, value)| (*verdict, vec![tcp_flags(*mask, *value)]));
        cut.into_iter()
            .chain(flags)
            .filter(|(verdict, _)| self.has_rule(*verdict))
            .map(|(verdict, matches)| self.refuse(verdict, matches))
            .collect()
    }

    fn uninspected(&self, verdict: Verdict, matches: Statements) -> Statements {
        if self.settings.uninspected_drop_mask & verdict.bit() == 0 {
            return pass(verdict, matches);
        }
        self.refuse(verdict, matches)
    }

    fn ports(&self, transport: Transport) -> impl Iterator<Item = (&Port, &PortSettings)> {
        self.settings.ports.iter().filter(move |(port, _)| port.transport == transport)
    }

    fn open_ports(&self, transport: Transport) -> Option<nftables::expr::Expression<'static>> {
        let open: Vec<_> = self.ports(transport).filter(|(_, settings)| settings.is_open).collect();
        (!open.is_empty()).then(|| one_of(open.iter().map(|(port, _)| number(port.number.get().into()))))
    }
}

/// Leads what a ban names to the allow list.
fn banned() -> [Statements; 4] {
    [
        (source(true), SetName::Bans4, Verdict::Banned),
        (source(false), SetName::Bans6, Verdict::Banned),
        (address(true), SetName::Nets4, Verdict::BannedNet),
        (address(false), SetName::Nets6, Verdict::BannedNet),
    ]
    .map(|(looked_up, set, verdict)| vec![is(looked_up, in_set(set)), goto(unless_allowed(verdict))])
}

/// Neighbour discovery, DHCP, and path-MTU messages under the ceiling. ARP is not of family `inet`.
fn exemptions() -> Vec<Statements> {
    let dhcp = |family: &'static str, low: u32, high: u32| {
        let is_either = |name| is(field("udp", name), range(low, high));
        let family = is(meta(MetaKey::Nfproto), text(family));
        pass(Verdict::Dhcp, vec![family, is_either("sport"), is_either("dport")])
    };
    let needed = || vec![is(field("icmp", "type"), number(3)), is(field("icmp", "code"), number(4))];
    let too_big = || vec![is(field("icmpv6", "type"), number(2))];
    let under_ceiling = |matches: Statements| [matches, vec![jump("ceiling")]].concat();
    vec![
        pass(
            Verdict::NeighbourDiscovery,
            vec![
                is(field("ip6", "hoplimit"), number(255)),
                is(field("icmpv6", "type"), range(133, 137)),
                is(field("icmpv6", "code"), number(0)),
            ],
        ),
        dhcp("ipv4", 67, 68),
        dhcp("ipv6", 546, 547),
        under_ceiling(needed()),
        pass(Verdict::PathMtu, needed()),
        under_ceiling(too_big()),
        pass(Verdict::PathMtu, too_big()),
    ]
}

fn pass(verdict: Verdict, mut matches: Statements) -> Statements {
    matches.extend([counter(verdict), Statement::Accept(None)]);
    matches
}

fn to_port(protocol: &'static str, port: &Port) -> Statement<'static> {
    is(field(protocol, "dport"), number(port.number.get().into()))
}

fn in_set(set: SetName) -> nftables::expr::Expression<'static> {
    text(format!("@{}", set.label()))
}
