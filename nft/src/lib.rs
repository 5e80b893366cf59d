//! The shield's policy in nftables' words, for hosts where XDP cannot attach.
//!
//! Pure: it builds the JSON objects that `nft -j -f` reads (libnftables-json(5)) and never opens a socket or starts a
//! process. Only our own table, `inet tunica`, is named, and it is replaced in one transaction; no other table is touched.
//!
//! What nftables cannot do as the shield does is listed in [`DIFFERENCES`].
#![forbid(unsafe_code)]

use std::{borrow::Cow, collections::HashSet, net::IpAddr};

use nftables::{
    expr::{
        BinaryOperation, Expression, Fib, FibFlag, FibResult, Meta, MetaKey, NamedExpression, Payload,
        PayloadField, Prefix as NftPrefix, Range, SetItem,
    },
    schema::{
        Chain, Counter, NfCmd, NfListObject, NfObject, Nftables, Rule, Set, SetFlag, SetType, SetTypeValue,
        Table,
    },
    stmt::{self, Match, Meter, Operator, Statement},
    types::{NfChainPolicy, NfChainType, NfFamily, NfHook},
};
use tunica_common::verdict::{Class, Verdict};
use tunica_core::{
    id::{PacketSource, Prefix},
    limits::{Mode, Settings},
};

/// Name of our table, in family `inet`.
pub const TABLE: &str = "tunica";
const CHAIN: &str = "shield";
/// Before connection tracking (priority -200), like XDP before everything.
const PRIORITY: i32 = -300;

/// What the table does otherwise than the shield: one sentence each.
pub const DIFFERENCES: &[&str] = &[
    "bad_length and bad_fragment: the kernel's own checks drop such packets later and count them elsewhere",
    "land: nftables cannot compare two fields of one packet; the kernel's reverse-path and martian checks drop them",
    "uninspected classes: nftables looks behind every tag and extension header, so they do not arise",
    "syn_rate: the meter holds a fixed number of sources; beyond it nftables stops limiting, where the shield's sketch goes on",
    "heartbeat: nftables has none; bans end by their timeout alone",
];

/// One ban to render: the source, and for how many seconds it still holds (`None`: until lifted).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ban {
    /// Whom.
    pub source: PacketSource,
    /// Seconds left, at least 1.
    pub seconds: Option<u32>,
}

/// The rate and burst of the per-source SYN limit, which [`Settings`] holds in the kernel's units only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SynLimit {
    /// SYNs a second in the long run.
    pub per_second: u32,
    /// SYNs at once.
    pub burst: u32,
}

/// The whole table as one transaction: created, deleted and created again, so that an older one goes without a gap.
pub fn ruleset(
    interfaces: &[String],
    settings: &Settings,
    syn: Option<SynLimit>,
    allow: &[Prefix],
    bans: &[Ban],
) -> Nftables<'static> {
    let table = || NfListObject::Table(Table { family: NfFamily::INet, name: TABLE.into(), handle: None });
    let mut objects = vec![add(table()), NfObject::CmdObject(NfCmd::Delete(table())), add(table())];
    if settings.mode == Mode::Off {
        return Nftables { objects: Cow::Owned(objects) };
    }
    for verdict in counted(settings, syn) {
        objects.push(add(NfListObject::Counter(Counter {
            family: NfFamily::INet,
            table: TABLE.into(),
            name: verdict.label().into(),
            handle: None,
            packets: Some(0),
            bytes: Some(0),
        })));
    }
    for is_v4 in [true, false] {
        objects.push(add(allow_set(allow, is_v4)));
        objects.push(add(ban_set(bans, is_v4, settings.ban_capacity)));
    }
    objects.push(add(NfListObject::Chain(Chain {
        family: NfFamily::INet,
        table: TABLE.into(),
        name: CHAIN.into(),
        newname: None,
        handle: None,
        _type: Some(NfChainType::Filter),
        hook: Some(NfHook::Prerouting),
        prio: Some(PRIORITY),
        dev: None,
        policy: Some(NfChainPolicy::Accept),
    })));
    objects.extend(rules(interfaces, settings, syn).into_iter().map(|expr| {
        add(NfListObject::Rule(Rule {
            family: NfFamily::INet,
            table: TABLE.into(),
            chain: CHAIN.into(),
            expr: Cow::Owned(expr),
            ..Rule::default()
        }))
    }));
    Nftables { objects: Cow::Owned(objects) }
}

fn add(object: NfListObject<'static>) -> NfObject<'static> {
    NfObject::CmdObject(NfCmd::Add(object))
}

/// Verdicts that a rule of the table can end with.
fn counted(settings: &Settings, syn: Option<SynLimit>) -> Vec<Verdict> {
    let flags = FLAG_RULES.iter().map(|(verdict, ..)| *verdict).chain([Verdict::OwnSource]);
    let sanity = flags.filter(|verdict| settings.sanity_mask & verdict.bit() != 0);
    let mut seen = HashSet::new();
    sanity
        .chain([Verdict::Banned])
        .chain(syn.map(|_| Verdict::SynRate))
        .filter(|verdict| seen.insert(*verdict))
        .collect()
}

fn set_name(kind: &str, is_v4: bool) -> String {
    format!("{kind}{}", if is_v4 { 4 } else { 6 })
}

fn allow_set(allow: &[Prefix], is_v4: bool) -> NfListObject<'static> {
    let elements: Vec<Expression<'static>> = allow
        .iter()
        .filter(|prefix| prefix.address().is_ipv4() == is_v4)
        .map(|prefix| range(*prefix))
        .collect();
    set(set_name("allow", is_v4), is_v4, elements, [SetFlag::Interval].into(), None)
}

fn ban_set(bans: &[Ban], is_v4: bool, capacity: u32) -> NfListObject<'static> {
    let elements = bans
        .iter()
        .map(|ban| (ban.source.prefix(), ban.seconds))
        .filter(|(prefix, _)| prefix.address().is_ipv4() == is_v4)
        .map(|(prefix, seconds)| match seconds {
            None => range(prefix),
            Some(seconds) => Expression::Named(NamedExpression::Elem(nftables::expr::Elem {
                val: Box::new(range(prefix)),
                timeout: Some(seconds.max(1)),
                expires: None,
                comment: None,
                counter: None,
            })),
        })
        .collect();
    set(
        set_name("bans", is_v4),
        is_v4,
        elements,
        [SetFlag::Interval, SetFlag::Timeout].into(),
        Some(capacity),
    )
}

fn set(
    name: String,
    is_v4: bool,
    elements: Vec<Expression<'static>>,
    flags: HashSet<SetFlag>,
    size: Option<u32>,
) -> NfListObject<'static> {
    NfListObject::Set(Box::new(Set {
        family: NfFamily::INet,
        table: TABLE.into(),
        name: name.into(),
        handle: None,
        set_type: SetTypeValue::Single(if is_v4 { SetType::Ipv4Addr } else { SetType::Ipv6Addr }),
        policy: None,
        flags: Some(flags),
        elem: (!elements.is_empty()).then_some(Cow::Owned(elements)),
        timeout: None,
        gc_interval: None,
        size,
        comment: None,
    }))
}

/// A prefix, or the plain address where the prefix is one address.
fn range(prefix: Prefix) -> Expression<'static> {
    let most = if prefix.address().is_ipv4() { 32 } else { 128 };
    let address = text(prefix.address().to_string());
    if prefix.length() == most {
        return address;
    }
    Expression::Named(NamedExpression::Prefix(NftPrefix {
        addr: Box::new(address),
        len: prefix.length().into(),
    }))
}

type Statements = Vec<Statement<'static>>;

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

fn rules(interfaces: &[String], settings: &Settings, syn: Option<SynLimit>) -> Vec<Statements> {
    let on =
        || is(Expression::Named(NamedExpression::Meta(Meta { key: MetaKey::Iifname })), one_of(interfaces));
    let is_enforcing = settings.mode == Mode::Enforce;
    let mut rules: Vec<Statements> = exemptions()
        .into_iter()
        .map(|matches| [vec![on()], matches, vec![Statement::Accept(None)]].concat())
        .collect();
    let mut refuse = |verdict: Verdict, matches: Statements| {
        let mut rule = vec![on()];
        rule.extend(matches);
        rule.push(Statement::Counter(stmt::Counter::Named(verdict.label().into())));
        // One packet, one verdict: observing, the rest of the chain is left out too.
        rule.push(if is_enforcing { Statement::Drop(None) } else { Statement::Accept(None) });
        rules.push(rule);
    };
    for (verdict, mask, value) in FLAG_RULES {
        if settings.sanity_mask & verdict.bit() != 0 {
            refuse(*verdict, vec![flags(*mask, *value)]);
        }
    }
    if settings.sanity_mask & Verdict::OwnSource.bit() != 0 {
        let fib = Fib { result: FibResult::Type, flags: [FibFlag::Saddr].into() };
        refuse(Verdict::OwnSource, vec![is(Expression::Named(NamedExpression::Fib(fib)), text("local"))]);
    }
    for is_v4 in [true, false] {
        let banned =
            vec![not_allowed(is_v4), is(source(is_v4), text(format!("@{}", set_name("bans", is_v4))))];
        refuse(Verdict::Banned, banned);
    }
    if let Some(limit) = syn {
        for is_v4 in [true, false] {
            refuse(Verdict::SynRate, vec![not_allowed(is_v4), flags(SYN | ACK, SYN), meter(limit, is_v4)]);
        }
    }
    rules
}

/// What always passes, as in the shield: path-MTU messages, neighbour discovery, DHCP. ARP is not of family `inet`.
fn exemptions() -> Vec<Statements> {
    let ports = |protocol: &'static str, low: u32, high: u32| {
        let span = || {
            Expression::Range(Box::new(Range { range: [Expression::Number(low), Expression::Number(high)] }))
        };
        vec![
            is(Expression::Named(NamedExpression::Meta(Meta { key: MetaKey::Nfproto })), text(protocol)),
            is(field("udp", "sport"), span()),
            is(field("udp", "dport"), span()),
        ]
    };
    let span = |low, high| {
        Expression::Range(Box::new(Range { range: [Expression::Number(low), Expression::Number(high)] }))
    };
    vec![
        vec![
            is(field("icmp", "type"), Expression::Number(3)),
            is(field("icmp", "code"), Expression::Number(4)),
        ],
        vec![is(field("icmpv6", "type"), Expression::Number(2))],
        vec![
            is(field("ip6", "hoplimit"), Expression::Number(255)),
            is(field("icmpv6", "type"), span(133, 137)),
            is(field("icmpv6", "code"), Expression::Number(0)),
        ],
        ports("ipv4", 67, 68),
        ports("ipv6", 546, 547),
    ]
}

fn text(words: impl Into<Cow<'static, str>>) -> Expression<'static> {
    Expression::String(words.into())
}

fn one_of(words: &[String]) -> Expression<'static> {
    Expression::Named(NamedExpression::Set(
        words.iter().map(|word| SetItem::Element(text(word.clone()))).collect(),
    ))
}

fn field(protocol: &'static str, name: &'static str) -> Expression<'static> {
    Expression::Named(NamedExpression::Payload(Payload::PayloadField(PayloadField {
        protocol: protocol.into(),
        field: name.into(),
    })))
}

fn source(is_v4: bool) -> Expression<'static> {
    field(if is_v4 { "ip" } else { "ip6" }, "saddr")
}

fn is(left: Expression<'static>, right: Expression<'static>) -> Statement<'static> {
    Statement::Match(Match { left, right, op: Operator::EQ })
}

fn not_allowed(is_v4: bool) -> Statement<'static> {
    let right = text(format!("@{}", set_name("allow", is_v4)));
    Statement::Match(Match { left: source(is_v4), right, op: Operator::NEQ })
}

fn flags(mask: u32, value: u32) -> Statement<'static> {
    let masked = BinaryOperation::AND(field("tcp", "flags"), Expression::Number(mask));
    is(Expression::BinaryOperation(Box::new(masked)), Expression::Number(value))
}

fn meter(limit: SynLimit, is_v4: bool) -> Statement<'static> {
    let key = if is_v4 {
        source(true)
    } else {
        // The /64, as the shield counts; only the first 64 bits are kept.
        let mask = IpAddr::V6(std::net::Ipv6Addr::from(u128::MAX << 64)).to_string();
        Expression::BinaryOperation(Box::new(BinaryOperation::AND(source(false), text(mask))))
    };
    let over = stmt::Limit {
        rate: limit.per_second,
        rate_unit: None,
        per: Some("second".into()),
        burst: Some(limit.burst),
        burst_unit: None,
        inv: Some(true),
    };
    Statement::Meter(Meter {
        name: set_name("syn", is_v4).into(),
        key,
        stmt: Box::new(Statement::Limit(over)),
    })
}

/// Verdicts of the shield that no rule of the table can end with.
pub fn not_covered() -> impl Iterator<Item = Verdict> {
    Verdict::ALL.iter().copied().filter(|verdict| match verdict.class() {
        Class::Pass => false,
        Class::Uninspected => true,
        Class::Sanity => !matches!(
            verdict,
            Verdict::Xmas
                | Verdict::NullFlags
                | Verdict::SynFin
                | Verdict::SynRst
                | Verdict::FinNoAck
                | Verdict::OwnSource
        ),
        Class::Ban | Class::Limit => matches!(verdict, Verdict::BannedNet | Verdict::SynRateNet),
        Class::Port | Class::NoSocket | Class::Icmp | Class::Cookie => true,
    })
}
