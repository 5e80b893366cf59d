//! What is in the sets: bans, banned ranges, the allow list.

use std::collections::BTreeMap;

use nftables::{
    expr::{Elem, Expression, NamedExpression, Prefix as NftPrefix},
    schema::{Element, NfCmd, NfListObject, NfObject, Nftables, Set, SetFlag, SetType, SetTypeValue},
    types::NfFamily,
};
use tunica_core::{
    desired::Tables,
    id::{PacketSource, Prefix},
    time::Monotime,
};

use crate::{TABLE, add, words::text};

/// A set of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetName {
    /// IPv4 ranges that no ban and no per-source limit touches.
    Allow4,
    /// The same of IPv6.
    Allow6,
    /// Banned IPv4 hosts.
    Bans4,
    /// Banned IPv6 /64.
    Bans6,
    /// Banned IPv4 ranges.
    Nets4,
    /// Banned IPv6 ranges.
    Nets6,
}

impl SetName {
    /// Every set.
    pub const ALL: [Self; 6] =
        [Self::Allow4, Self::Allow6, Self::Bans4, Self::Bans6, Self::Nets4, Self::Nets6];

    /// The name in the table.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Allow4 => "allow4",
            Self::Allow6 => "allow6",
            Self::Bans4 => "bans4",
            Self::Bans6 => "bans6",
            Self::Nets4 => "nets4",
            Self::Nets6 => "nets6",
        }
    }

    pub(crate) const fn is_v4(self) -> bool {
        matches!(self, Self::Allow4 | Self::Bans4 | Self::Nets4)
    }

    /// Sources of one width are looked up by hash; ranges need an ordered set (`interval`).
    const fn is_interval(self) -> bool {
        !matches!(self, Self::Bans4 | Self::Bans6)
    }

    const fn ends(self) -> bool {
        !matches!(self, Self::Allow4 | Self::Allow6)
    }

    pub(crate) fn object(self, capacity: u32) -> NfObject<'static> {
        let flags = [(SetFlag::Interval, self.is_interval()), (SetFlag::Timeout, self.ends())];
        add(NfListObject::Set(Box::new(Set {
            family: NfFamily::INet,
            table: TABLE.into(),
            name: self.label().into(),
            set_type: SetTypeValue::Single(if self.is_v4() { SetType::Ipv4Addr } else { SetType::Ipv6Addr }),
            flags: Some(flags.into_iter().filter(|(_, is_set)| *is_set).map(|(flag, _)| flag).collect()),
            // The kernel counts a range twice, at its start and its end, and the caller bounds those.
            size: (!self.is_interval()).then_some(capacity),
            ..Set::default()
        })))
    }

    /// An element as nftables writes it; a banned source stands for its width.
    fn key(self, prefix: Prefix) -> Expression<'static> {
        let address = text(prefix.address().to_string());
        let most = if self.is_v4() { 32 } else { 128 };
        if !self.is_interval() || prefix.length() == most {
            return address;
        }
        Expression::Named(NamedExpression::Prefix(NftPrefix {
            addr: Box::new(address),
            len: prefix.length().into(),
        }))
    }
}

/// Elements by their set, and when each ends; `None`: when it is removed.
pub type Elements = BTreeMap<(SetName, Prefix), Option<Monotime>>;

/// The elements that stand for these tables at `now`.
///
/// What already ended is left out, and so is a range inside another of its set, because nftables keeps ranges apart. When
/// the outer one ends, the next look at the tables brings the inner one back.
pub fn elements(tables: &Tables, now: Monotime) -> Elements {
    let end = |expires_ns: u64| (expires_ns != u64::MAX).then_some(Monotime(expires_ns));
    let mut all: Elements = BTreeMap::new();
    for (key, ban) in &tables.bans {
        let prefix = PacketSource::from_key(*key).prefix();
        all.insert(by(SetName::Bans4, SetName::Bans6, prefix), end(ban.expires_ns));
    }
    for (key, ban) in &tables.nets {
        if let Some(prefix) = Prefix::from_kernel_key(*key) {
            all.insert(by(SetName::Nets4, SetName::Nets6, prefix), end(ban.expires_ns));
        }
    }
    let allow = tables.allow.keys().filter_map(|key| Prefix::from_kernel_key(*key));
    all.extend(allow.map(|prefix| (by(SetName::Allow4, SetName::Allow6, prefix), None)));
    all.retain(|_, ends| ends.is_none_or(|ends| ends > now));
    apart(all)
}

/// The elements of an allow list alone.
pub fn allowing(ranges: &[Prefix]) -> Elements {
    apart(ranges.iter().map(|prefix| (by(SetName::Allow4, SetName::Allow6, *prefix), None)).collect())
}

fn by(v4: SetName, v6: SetName, prefix: Prefix) -> (SetName, Prefix) {
    (if prefix.address().is_ipv4() { v4 } else { v6 }, prefix)
}

/// Leaves out every range inside another one of its set.
fn apart(mut all: Elements) -> Elements {
    // In this order a range comes right before those inside it.
    let mut outer: Option<(SetName, Prefix)> = None;
    all.retain(|(set, prefix), _| {
        let is_inside = outer.is_some_and(|(of, range)| of == *set && range.overlaps(*prefix));
        if !is_inside {
            outer = Some((*set, *prefix));
        }
        !is_inside
    });
    all
}

/// The edits that lead from the elements that are in the sets to those that should be; `None` if none is needed. One
/// transaction: all of them or none.
///
/// What ends by itself within a second is left to do so, because nftables refuses to delete what is gone.
pub fn edit(found: &Elements, wanted: &Elements, now: Monotime) -> Option<Nftables<'static>> {
    let soon = now.after(std::time::Duration::from_secs(1));
    let is_ending = |ends: &Option<Monotime>| ends.is_some_and(|ends| ends <= soon);
    let mut objects = Vec::new();
    for set in SetName::ALL {
        let of = |all: &Elements, other: &Elements| -> Elements {
            let differs = all.iter().filter(|(key, ends)| key.0 == set && other.get(key) != Some(ends));
            differs.filter(|(_, ends)| !is_ending(ends)).map(|(key, ends)| (*key, *ends)).collect()
        };
        let gone: Vec<_> = of(found, wanted).keys().map(|(_, prefix)| set.key(*prefix)).collect();
        if !gone.is_empty() {
            objects.push(NfObject::CmdObject(NfCmd::Delete(NfListObject::Element(of_set(set, gone)))));
        }
        objects.extend(additions(set, &of(wanted, found), now));
    }
    (!objects.is_empty()).then_some(Nftables { objects: objects.into() })
}

/// The command that adds the elements of one set.
pub(crate) fn additions(set: SetName, all: &Elements, now: Monotime) -> Option<NfObject<'static>> {
    let of_this = all.iter().filter(|((of, _), _)| *of == set);
    let come: Vec<_> = of_this.map(|((_, prefix), ends)| expression(set.key(*prefix), *ends, now)).collect();
    (!come.is_empty()).then(|| add(NfListObject::Element(of_set(set, come))))
}

fn of_set(set: SetName, elements: Vec<Expression<'static>>) -> Element<'static> {
    Element { family: NfFamily::INet, table: TABLE.into(), name: set.label().into(), elem: elements.into() }
}

fn expression(key: Expression<'static>, ends: Option<Monotime>, now: Monotime) -> Expression<'static> {
    let Some(ends) = ends else { return key };
    // Rounded up: a ban of half a second still is one.
    let seconds = u32::try_from(ends.since(now).as_secs().saturating_add(1)).unwrap_or(u32::MAX);
    Expression::Named(NamedExpression::Elem(Elem {
        val: Box::new(key),
        timeout: Some(seconds),
        expires: None,
        comment: None,
        counter: None,
    }))
}
