//! The edits that lead from the tables as they are to the tables as they should be.
//!
//! Order is the point: allow entries are added first and removed last, bans are removed before others are added. So
//! at every moment in between, a ban touches a source only if it did so before the first edit or will after the last.
//! For that the allow list can pass its size for a moment; a shell that finds it full goes on with the rest, and the
//! next round finishes. Own addresses that left the host stop being guarded first, new ones are guarded last.

use std::collections::BTreeMap;

use tunica_common::{
    keys::{AddressBytes, AllowEntry, BanEntry, SourceKey},
    policy::PortRule,
};

use crate::desired::{AllowKey, Tables};

/// One change of one row. `Set…` adds the row or replaces it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Edit {
    /// Remove an own address.
    RemoveOwn(AddressBytes),
    /// Write a row of the allow list.
    SetAllow(AllowKey, AllowEntry),
    /// Remove a row of the ban table.
    RemoveBan(SourceKey),
    /// Write a row of the ban table.
    SetBan(SourceKey, BanEntry),
    /// Remove a banned range.
    RemoveNet(AllowKey),
    /// Write a banned range.
    SetNet(AllowKey, BanEntry),
    /// Remove what was said of a port.
    RemovePort(u32),
    /// Write what was said of a port.
    SetPort(u32, PortRule),
    /// Remove a row of the allow list.
    RemoveAllow(AllowKey),
    /// Add an own address.
    AddOwn(AddressBytes),
}

/// The edits, in the order in which they must be made; none if the two are equal.
pub fn diff(observed: &Tables, desired: &Tables) -> Vec<Edit> {
    let mut edits: Vec<Edit> =
        observed.own.difference(&desired.own).map(|own| Edit::RemoveOwn(*own)).collect();
    edits.extend(missing(&observed.allow, &desired.allow).map(|(key, entry)| Edit::SetAllow(key, entry)));
    edits.extend(surplus(&observed.bans, &desired.bans).map(Edit::RemoveBan));
    edits.extend(missing(&observed.bans, &desired.bans).map(|(key, entry)| Edit::SetBan(key, entry)));
    edits.extend(surplus(&observed.nets, &desired.nets).map(Edit::RemoveNet));
    edits.extend(missing(&observed.nets, &desired.nets).map(|(key, entry)| Edit::SetNet(key, entry)));
    // A port that opens is open before another one closes.
    edits.extend(missing(&observed.ports, &desired.ports).map(|(key, rule)| Edit::SetPort(key, rule)));
    edits.extend(surplus(&observed.ports, &desired.ports).map(Edit::RemovePort));
    edits.extend(surplus(&observed.allow, &desired.allow).map(Edit::RemoveAllow));
    edits.extend(desired.own.difference(&observed.own).map(|own| Edit::AddOwn(*own)));
    edits
}

/// The edits of the ban table for these sources alone: what [`diff`] would say of them, without a look at all others.
/// For changes that touch bans only, however many bans there are.
pub fn diff_bans(observed: &Tables, desired: &Tables, keys: &[SourceKey]) -> Vec<Edit> {
    let mut removals = Vec::new();
    let mut additions = Vec::new();
    for key in keys {
        match (observed.bans.get(key), desired.bans.get(key)) {
            (Some(_), None) => removals.push(Edit::RemoveBan(*key)),
            (was, Some(should)) if was != Some(should) => additions.push(Edit::SetBan(*key, *should)),
            (Some(_) | None, Some(_)) | (None, None) => {}
        }
    }
    removals.extend(additions);
    removals
}

/// Rows of `desired` that `observed` lacks or holds with another value.
fn missing<'a, K: Ord + Copy, V: PartialEq + Copy>(
    observed: &'a BTreeMap<K, V>,
    desired: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (K, V)> + 'a {
    desired.iter().filter(|(key, value)| observed.get(key) != Some(value)).map(|(key, value)| (*key, *value))
}

/// Keys of `observed` that `desired` lacks.
fn surplus<'a, K: Ord + Copy, V>(
    observed: &'a BTreeMap<K, V>,
    desired: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = K> + 'a {
    observed.keys().filter(|key| !desired.contains_key(key)).copied()
}

impl Tables {
    /// Makes one edit.
    pub fn apply(&mut self, edit: Edit) {
        match edit {
            Edit::RemoveOwn(address) => {
                self.own.remove(&address);
            }
            Edit::SetAllow(key, entry) => {
                self.allow.insert(key, entry);
            }
            Edit::RemoveBan(key) => {
                self.bans.remove(&key);
            }
            Edit::SetBan(key, entry) => {
                self.bans.insert(key, entry);
            }
            Edit::RemoveNet(key) => {
                self.nets.remove(&key);
            }
            Edit::SetNet(key, entry) => {
                self.nets.insert(key, entry);
            }
            Edit::RemovePort(key) => {
                self.ports.remove(&key);
            }
            Edit::SetPort(key, rule) => {
                self.ports.insert(key, rule);
            }
            Edit::RemoveAllow(key) => {
                self.allow.remove(&key);
            }
            Edit::AddOwn(address) => {
                self.own.insert(address);
            }
        }
    }
}

impl std::fmt::Debug for Edit {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Self::RemoveOwn(_) => "RemoveOwn(scrubbed)",
            Self::SetAllow(..) => "SetAllow(scrubbed)",
            Self::RemoveBan(_) => "RemoveBan(scrubbed)",
            Self::SetBan(..) => "SetBan(scrubbed)",
            Self::RemoveNet(_) => "RemoveNet(scrubbed)",
            Self::SetNet(..) => "SetNet(scrubbed)",
            Self::RemovePort(key) => return write!(out, "RemovePort({key})"),
            Self::SetPort(key, _) => return write!(out, "SetPort({key})"),
            Self::RemoveAllow(_) => "RemoveAllow(scrubbed)",
            Self::AddOwn(_) => "AddOwn(scrubbed)",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use proptest::prelude::*;

    use super::*;
    use crate::id::{PacketSource, Prefix};

    const HOSTS: u8 = 8;

    fn address(host: u8) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(192, 0, 2, host))
    }

    /// Lengths 29 to 32 inside 192.0.2.0/29, so that entries nest.
    fn prefix(host: u8, length: u8) -> Prefix {
        let host = host & u8::MAX.checked_shl(u32::from(32 - length)).unwrap_or(0);
        format!("192.0.2.{host}/{length}").parse().unwrap()
    }

    fn tables() -> impl Strategy<Value = Tables> {
        let ban = |expires_ns| BanEntry { expires_ns, ban_id: 1, flags: 0 };
        let bans = prop::collection::btree_map(0..HOSTS, 1u64..3, 0..6).prop_map(move |rows| {
            rows.into_iter().map(|(host, at)| (PacketSource::of(address(host)).key(), ban(at))).collect()
        });
        let allow = prop::collection::vec((0..HOSTS, 29u8..=32, 1u32..3), 0..4).prop_map(|rows| {
            let row = |(host, length, origin)| {
                (prefix(host, length).kernel_key(), AllowEntry { origin, allow_id: 0 })
            };
            rows.into_iter().map(row).collect()
        });
        let own = prop::collection::btree_set(any::<[u8; 16]>(), 0..4);
        let nets = prop::collection::vec((0..HOSTS, 29u8..=32, 1u64..3), 0..4).prop_map(move |rows| {
            rows.into_iter().map(|(host, length, at)| (prefix(host, length).kernel_key(), ban(at))).collect()
        });
        let rule = |flags| PortRule { new_pace: [0; 2], udp_pace: [0; 2], flags, reserved: 0 };
        let ports = prop::collection::btree_map(0u32..9, 0u32..2, 0..4)
            .prop_map(move |rows| rows.into_iter().map(|(port, flags)| (port, rule(flags))).collect());
        (bans, nets, ports, allow, own).prop_map(|(bans, nets, ports, allow, own)| Tables {
            bans,
            nets,
            ports,
            allow,
            own,
        })
    }

    fn is_dropped(tables: &Tables, host: u8) -> bool {
        let is_allowed =
            (29..=32).any(|length| tables.allow.contains_key(&prefix(host, length).kernel_key()));
        let is_net_banned =
            (29..=32).any(|length| tables.nets.contains_key(&prefix(host, length).kernel_key()));
        let is_banned = tables.bans.contains_key(&PacketSource::of(address(host)).key());
        (is_banned || is_net_banned) && !is_allowed
    }

    proptest! {
        /// For all pairs of tables, the edits lead from one to the other, none is idle, and equals need none.
        #[test]
        fn edits_lead_there(observed in tables(), desired in tables()) {
            let mut reached = observed.clone();
            for edit in diff(&observed, &desired) {
                let before = reached.clone();
                reached.apply(edit);
                prop_assert_ne!(&before, &reached);
            }
            prop_assert_eq!(&reached, &desired);
            prop_assert_eq!(diff(&reached, &desired), vec![]);
        }

        /// For all pairs of tables and all choices of sources, the short way says of them what the long way says.
        #[test]
        fn the_short_way_agrees(observed in tables(), desired in tables(), hosts in prop::collection::btree_set(0..HOSTS, 0..8)) {
            let keys: Vec<SourceKey> = hosts.into_iter().map(|host| PacketSource::of(address(host)).key()).collect();
            let about = |edit: &Edit| match edit {
                Edit::SetBan(key, _) | Edit::RemoveBan(key) => keys.contains(key),
                Edit::SetNet(..) | Edit::RemoveNet(_) | Edit::SetPort(..) | Edit::RemovePort(_) => false,
                Edit::SetAllow(..) | Edit::RemoveAllow(_) | Edit::AddOwn(_) | Edit::RemoveOwn(_) => false,
            };
            let long: Vec<Edit> = diff(&observed, &desired).into_iter().filter(about).collect();
            prop_assert_eq!(diff_bans(&observed, &desired, &keys), long);
        }

        /// For all pairs of tables and all moments in between, a ban touches a source only if it did so before the
        /// first edit or does so after the last.
        #[test]
        fn nobody_is_dropped_in_between(observed in tables(), desired in tables()) {
            let mut between = observed.clone();
            for edit in diff(&observed, &desired) {
                between.apply(edit);
                for host in 0..HOSTS {
                    let is_due = is_dropped(&observed, host) || is_dropped(&desired, host);
                    prop_assert!(is_due || !is_dropped(&between, host));
                }
            }
        }
    }
}
