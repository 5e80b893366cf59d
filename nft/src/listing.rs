//! The table as the kernel has it, read from `nft -j list table inet tunica`, and what somebody changed in it.
//!
//! nftables prints rules otherwise than it reads them, and each version a little otherwise. So two listings are compared,
//! the one right after the table was applied and the one of now; elements of sets, which come and go, are compared with
//! those that should be there.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    time::Duration,
};

use serde_json::Value;
use thiserror::Error;
use tunica_core::{
    id::{PacketSource, Prefix},
    time::Monotime,
};

use crate::elements::{Elements, SetName};

/// A table that was read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Listing {
    /// By kind and name, and the rules of each chain: everything but elements, without handles and counts.
    parts: BTreeMap<String, Value>,
    elements: BTreeSet<(SetName, Prefix)>,
    /// Packets by the counter's name.
    counts: BTreeMap<String, u64>,
}

/// Why a listing cannot be read.
#[derive(Debug, Error)]
pub enum ReadListingError {
    /// It is no JSON.
    #[error("what nft printed is no JSON")]
    NoJson(#[source] serde_json::Error),
    /// It is something else than a list of objects.
    #[error("what nft printed is no list of nftables objects")]
    NoList,
}

/// One way in which the table is not as it was applied.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Difference {
    /// A chain, its rules, a set or a counter is gone.
    Gone(String),
    /// One has come.
    Come(String),
    /// One reads otherwise.
    Changed(String),
    /// So many elements of the set are gone.
    ElementsGone(SetName, usize),
    /// So many have come.
    ElementsCome(SetName, usize),
}

impl Difference {
    /// Whether edits of elements repair it; else the whole table is applied again.
    pub const fn is_of_elements(&self) -> bool {
        match self {
            Self::ElementsGone(..) | Self::ElementsCome(..) => true,
            Self::Gone(_) | Self::Come(_) | Self::Changed(_) => false,
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone(what) => write!(out, "{what} is gone"),
            Self::Come(what) => write!(out, "{what} is not ours"),
            Self::Changed(what) => write!(out, "{what} was changed"),
            Self::ElementsGone(set, 1) => write!(out, "1 element of set {} is gone", set.label()),
            Self::ElementsGone(set, count) => write!(out, "{count} elements of set {} are gone", set.label()),
            Self::ElementsCome(set, 1) => write!(out, "1 element of set {} is not ours", set.label()),
            Self::ElementsCome(set, count) => {
                write!(out, "{count} elements of set {} are not ours", set.label())
            }
        }
    }
}

impl Listing {
    /// Reads what `nft -j list table inet tunica` printed.
    ///
    /// # Errors
    /// [`ReadListingError`].
    pub fn read(json: &str) -> Result<Self, ReadListingError> {
        let whole: Value = serde_json::from_str(json).map_err(ReadListingError::NoJson)?;
        let objects = whole.get("nftables").and_then(Value::as_array).ok_or(ReadListingError::NoList)?;
        let mut listing = Self::default();
        let mut rules_of: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        for object in objects {
            let Some((kind, body)) = object.as_object().and_then(|object| object.iter().next()) else {
                continue;
            };
            let name = body.get("name").and_then(Value::as_str).unwrap_or_default();
            let mut body = body.clone();
            let label = match kind.as_str() {
                "metainfo" => continue,
                "rule" => {
                    let chain = body.get("chain").and_then(Value::as_str).unwrap_or_default();
                    let rules = rules_of.entry(format!("rule list of chain {chain}")).or_default();
                    rules.extend(body.get("expr").cloned());
                    continue;
                }
                "counter" => {
                    let packets = body.get("packets").and_then(Value::as_u64).unwrap_or(0);
                    listing.counts.insert(name.to_owned(), packets);
                    format!("counter {name}")
                }
                kind => format!("{kind} {name}"),
            };
            let set = SetName::ALL.into_iter().find(|set| kind == "set" && set.label() == name);
            if let (Some(set), Some(elements)) = (set, body.get("elem").and_then(Value::as_array)) {
                listing
                    .elements
                    .extend(elements.iter().filter_map(|element| Some((set, element_of(set, element)?))));
            }
            if let Some(fields) = body.as_object_mut() {
                for changing in ["handle", "packets", "bytes"] {
                    fields.remove(changing);
                }
                if set.is_some() {
                    fields.remove("elem");
                }
            }
            listing.parts.insert(label, body);
        }
        listing.parts.extend(rules_of.into_iter().map(|(label, rules)| (label, Value::Array(rules))));
        Ok(listing)
    }

    /// Packets by the label of their verdict, as the table's counters say.
    pub const fn counts(&self) -> &BTreeMap<String, u64> {
        &self.counts
    }

    /// What differs in `self` from the table as it was `applied` and from the elements that are `wanted` at `now`.
    pub fn differences(&self, applied: &Self, wanted: &Elements, now: Monotime) -> Vec<Difference> {
        let mut all = Vec::new();
        for (label, was) in &applied.parts {
            match self.parts.get(label) {
                None => all.push(Difference::Gone(label.clone())),
                Some(is) if is != was => all.push(Difference::Changed(label.clone())),
                Some(_) => {}
            }
        }
        let come = self.parts.keys().filter(|label| !applied.parts.contains_key(*label));
        all.extend(come.map(|label| Difference::Come(label.clone())));
        // The kernel's timeouts are rounded to seconds, and to its own clock's.
        let soon = now.after(Duration::from_secs(2));
        for set in SetName::ALL {
            let gone = wanted
                .iter()
                .filter(|(key, ends)| key.0 == set && ends.is_none_or(|ends| ends > soon))
                .filter(|(key, _)| !self.elements.contains(*key))
                .count();
            let come = self.elements.iter().filter(|key| key.0 == set && !wanted.contains_key(*key)).count();
            all.extend((gone > 0).then_some(Difference::ElementsGone(set, gone)));
            all.extend((come > 0).then_some(Difference::ElementsCome(set, come)));
        }
        all
    }

    /// The elements found, each with the end that `wanted` gives it, for [`crate::edit`].
    pub fn elements(&self, wanted: &Elements) -> Elements {
        self.elements.iter().map(|key| (*key, wanted.get(key).copied().flatten())).collect()
    }
}

/// An element as nft prints it: an address, a prefix, or either with a timeout.
fn element_of(set: SetName, element: &Value) -> Option<Prefix> {
    if let Some(inner) = element.get("elem").and_then(|inner| inner.get("val")) {
        return element_of(set, inner);
    }
    if let Some(prefix) = element.get("prefix") {
        let (address, length) = (prefix.get("addr")?.as_str()?, prefix.get("len")?.as_u64()?);
        return format!("{address}/{length}").parse().ok();
    }
    let address: IpAddr = element.as_str()?.parse().ok()?;
    Some(match set {
        SetName::Bans4 | SetName::Bans6 => PacketSource::of(address).prefix(),
        SetName::Allow4 | SetName::Allow6 | SetName::Nets4 | SetName::Nets6 => Prefix::host(address),
    })
}
