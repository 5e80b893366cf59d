//! The words of rules: expressions and statements of the `nftables` crate, each in one line.

use std::{borrow::Cow, net::Ipv6Addr};

use nftables::{
    expr::{
        BinaryOperation, CT, Elem, Expression, Exthdr, Fib, FibFlag, FibResult, Meta, MetaKey,
        NamedExpression, Payload, PayloadField, Range, SetItem, Socket, SocketAttr,
    },
    stmt::{self, JumpTarget, Match, Meter, Operator, Statement},
};
use tunica_common::{
    gcra::{self, Pace},
    verdict::Verdict,
};

/// A rule's statements, in order.
pub(crate) type Statements = Vec<Statement<'static>>;

/// A rate as nftables writes it: whole packets in a unit of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    count: u32,
    unit: &'static str,
    burst: u32,
    /// After so long without a packet a counter is as good as new, seconds.
    idle_seconds: u32,
}

impl Rate {
    /// The rate of a pace, `None` where it admits everything. Of the units in which it is a whole number within half a
    /// percent, the shortest.
    pub(crate) fn of([cost_ns, tolerance_ns]: Pace) -> Option<Self> {
        const UNITS: [(&str, u64); 4] = [
            ("second", 1_000_000_000),
            ("minute", 60_000_000_000),
            ("hour", 3_600_000_000_000),
            ("day", 86_400_000_000_000),
        ];
        if cost_ns == 0 {
            return None;
        }
        let rounded = |span: u64| (span + cost_ns / 2) / cost_ns;
        let (unit, span) = UNITS
            .into_iter()
            .find(|(_, span)| (rounded(*span) * cost_ns).abs_diff(*span) * 200 <= *span)
            .unwrap_or(("day", 86_400_000_000_000));
        let narrow = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        Some(Self {
            count: narrow(rounded(span).max(1)),
            unit,
            burst: narrow(tolerance_ns / cost_ns + 1),
            idle_seconds: narrow((tolerance_ns + cost_ns) / 1_000_000_000 + 2),
        })
    }

    /// The rate of a per-source limit.
    pub(crate) fn of_limit(limit: gcra::Limit) -> Option<Self> {
        let nanoseconds = |ticks: u32| u64::from(ticks) * gcra::TICK_NANOSECONDS;
        Self::of([nanoseconds(limit.cost_ticks), nanoseconds(limit.tolerance_ticks)])
    }

    /// So many a second, and as many at once.
    pub(crate) const fn each_second(count: u32) -> Self {
        Self { count, unit: "second", burst: count, idle_seconds: 2 }
    }

    /// So many a minute, and as many at once.
    pub(crate) const fn each_minute(count: u32) -> Self {
        Self { count, unit: "minute", burst: count, idle_seconds: 61 }
    }

    fn limit(self, is_over: bool) -> Statement<'static> {
        Statement::Limit(stmt::Limit {
            rate: self.count,
            rate_unit: None,
            per: Some(self.unit.into()),
            burst: Some(self.burst),
            burst_unit: None,
            inv: is_over.then_some(true),
        })
    }

    /// Matches packets beyond the rate.
    pub(crate) fn over(self) -> Statement<'static> {
        self.limit(true)
    }

    /// Matches packets within the rate.
    pub(crate) fn within(self) -> Statement<'static> {
        self.limit(false)
    }

    /// Matches packets beyond the rate of their `key`.
    pub(crate) fn over_each(self, name: &str, key: Expression<'static>) -> Statement<'static> {
        let key = Expression::Named(NamedExpression::Elem(Elem {
            val: Box::new(key),
            timeout: Some(self.idle_seconds),
            expires: None,
            comment: None,
            counter: None,
        }));
        Statement::Meter(Meter { name: name.to_owned().into(), key, stmt: Box::new(self.over()) })
    }
}

pub(crate) fn text(words: impl Into<Cow<'static, str>>) -> Expression<'static> {
    Expression::String(words.into())
}

pub(crate) const fn number(value: u32) -> Expression<'static> {
    Expression::Number(value)
}

pub(crate) fn range(low: u32, high: u32) -> Expression<'static> {
    Expression::Range(Box::new(Range { range: [number(low), number(high)] }))
}

pub(crate) fn one_of(items: impl IntoIterator<Item = Expression<'static>>) -> Expression<'static> {
    Expression::Named(NamedExpression::Set(items.into_iter().map(SetItem::Element).collect()))
}

pub(crate) fn field(protocol: &'static str, name: &'static str) -> Expression<'static> {
    let field = PayloadField { protocol: protocol.into(), field: name.into() };
    Expression::Named(NamedExpression::Payload(Payload::PayloadField(field)))
}

pub(crate) const fn meta(key: MetaKey) -> Expression<'static> {
    Expression::Named(NamedExpression::Meta(Meta { key }))
}

/// The source address; of IPv6 the first 64 bits, by which the shield counts and bans.
pub(crate) fn source(is_v4: bool) -> Expression<'static> {
    if is_v4 {
        return field("ip", "saddr");
    }
    let mask = Ipv6Addr::from(u128::MAX << 64).to_string();
    masked(field("ip6", "saddr"), text(mask))
}

/// The whole source address.
pub(crate) fn address(is_v4: bool) -> Expression<'static> {
    field(if is_v4 { "ip" } else { "ip6" }, "saddr")
}

pub(crate) fn masked(value: Expression<'static>, mask: Expression<'static>) -> Expression<'static> {
    Expression::BinaryOperation(Box::new(BinaryOperation::AND(value, mask)))
}

/// `left == right`, or membership where `right` is a set.
pub(crate) const fn is(left: Expression<'static>, right: Expression<'static>) -> Statement<'static> {
    Statement::Match(Match { left, right, op: Operator::EQ })
}

pub(crate) const fn is_not(left: Expression<'static>, right: Expression<'static>) -> Statement<'static> {
    Statement::Match(Match { left, right, op: Operator::NEQ })
}

pub(crate) fn tcp_flags(mask: u32, value: u32) -> Statement<'static> {
    is(masked(field("tcp", "flags"), number(mask)), number(value))
}

/// Whether an address of the packet is this host's own.
pub(crate) fn is_local(which: FibFlag, expected: bool) -> Statement<'static> {
    let kind =
        Expression::Named(NamedExpression::Fib(Fib { result: FibResult::Type, flags: [which].into() }));
    if expected { is(kind, text("local")) } else { is_not(kind, text("local")) }
}

/// The offset of an IPv4 fragment, in units of eight bytes.
pub(crate) fn fragment_v4() -> Expression<'static> {
    masked(field("ip", "frag-off"), number(0x1fff))
}

/// The offset of an IPv6 fragment, in units of eight bytes.
pub(crate) fn fragment_v6() -> Expression<'static> {
    let header = Exthdr { name: "frag".into(), field: Some("frag-off".into()), offset: None };
    Expression::Named(NamedExpression::Exthdr(header))
}

/// Whether the packet's socket is bound to every address: 0 or 1; matches nothing where there is no socket.
pub(crate) const fn socket_is_wildcard() -> Expression<'static> {
    Expression::Named(NamedExpression::Socket(Socket { key: Cow::Borrowed(&SocketAttr::Wildcard) }))
}

/// Whether the packet's socket is a transparent proxy's: 0 or 1; matches nothing where there is no socket. Unlike
/// [`socket_is_wildcard`] it also tells of connections that are being made or have just ended.
pub(crate) const fn socket_is_transparent() -> Expression<'static> {
    Expression::Named(NamedExpression::Socket(Socket { key: Cow::Borrowed(&SocketAttr::Transparent) }))
}

/// What connection tracking says of a packet is a mask of bits.
pub(crate) fn connection_is(state: &'static str) -> Statement<'static> {
    let left = Expression::Named(NamedExpression::CT(CT { key: "state".into(), family: None, dir: None }));
    Statement::Match(Match { left, right: text(state), op: Operator::IN })
}

pub(crate) fn counter(verdict: Verdict) -> Statement<'static> {
    named_counter(verdict.label())
}

pub(crate) fn named_counter(name: &'static str) -> Statement<'static> {
    Statement::Counter(stmt::Counter::Named(name.into()))
}

pub(crate) fn goto(chain: impl Into<Cow<'static, str>>) -> Statement<'static> {
    Statement::Goto(JumpTarget { target: chain.into() })
}

pub(crate) fn jump(chain: impl Into<Cow<'static, str>>) -> Statement<'static> {
    Statement::Jump(JumpTarget { target: chain.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_whole_numbers_of_the_shortest_unit() {
        for (packets, span_ns, burst, expected) in [
            (100, 1_000_000_000, 300, (100, "second", 300)),
            (20, 10_000_000_000, 20, (2, "second", 20)),
            (3, 10_000_000_000, 3, (18, "minute", 3)),
            (1, 600_000_000_000, 3, (6, "hour", 3)),
            (1, 7_000_000_000, 1, (514, "hour", 1)),
        ] {
            let rate = Rate::of(gcra::pace(packets, span_ns, burst).unwrap()).unwrap();
            assert_eq!((rate.count, rate.unit, rate.burst), expected, "{packets} in {span_ns}");
        }
        for (per_second, burst) in [(1, 4), (10, 20), (100, 100), (1_000, 1)] {
            let rate = Rate::of_limit(gcra::Limit::new(per_second, burst).unwrap()).unwrap();
            assert_eq!((rate.unit, rate.burst), ("second", burst));
            assert!(rate.count.abs_diff(per_second) * 50 <= per_second, "{} for {per_second}", rate.count);
        }
        assert_eq!(Rate::of([0, 0]), None);
    }
}
