//! Which keys differ between two configurations, by the one table of keys.

use std::{
    collections::BTreeMap,
    fmt,
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use crate::{config::Config, keys::REFERENCE};

/// The value of each key that is set or has a default.
pub(crate) type Values = BTreeMap<&'static str, Written>;

/// A value as TOML. Two ways to write the same value give the same text. `Debug` shows none of it, since it may be an
/// address.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Written {
    /// Anything but a list.
    One(String),
    /// The entries of a list.
    List(Vec<String>),
}

/// A key whose value differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The full name, such as `shield.syn.burst`.
    pub key: &'static str,
    /// The value before; `None` if the key was not set.
    pub old: Option<Written>,
    /// The value after; `None` if the key is not set.
    pub new: Option<Written>,
}

/// Every key whose value differs between `old` and `new`, in the order of the reference page.
///
/// What counts is the value: a default that is written out, another notation and another order of a list are no
/// changes. The order of a list never has a meaning: entries rise, or stand beside each other.
pub fn changes(old: &Config, new: &Config) -> Vec<Change> {
    let rows = REFERENCE.iter().map(|doc| Change {
        key: doc.key,
        old: old.values.get(doc.key).cloned(),
        new: new.values.get(doc.key).cloned(),
    });
    rows.filter(|change| {
        let is_same_set = change.old.as_ref().is_some_and(Written::is_list)
            && change.added().is_empty()
            && change.removed().is_empty();
        change.old != change.new && !is_same_set
    })
    .collect()
}

/// What the keys begin with that `tunica-front` goes by; `[bans]` has the ladder of its bans.
const FRONTS: [&str; 5] = ["ingress.", "circuits.", "arti.", "bans.", "log."];
/// Keys of `[ingress]` that only `tunicad` goes by.
const DAEMONS: [&str; 4] = ["ingress.enabled", "ingress.gate", "ingress.start_front", "ingress.user"];

/// A number for what `tunica-front` goes by. Two configurations that mean the same to it have the same one, and others very
/// likely not; it means something only between programs of one version.
pub fn front_mark(config: &Config) -> u64 {
    let mut hasher = DefaultHasher::new();
    for (key, value) in &config.values {
        let is_fronts = FRONTS.iter().any(|section| key.starts_with(section));
        if is_fronts && !DAEMONS.contains(key) {
            key.hash(&mut hasher);
            value.hash(&mut hasher);
        }
    }
    hasher.finish()
}

impl Written {
    pub(crate) fn text(text: &str) -> Self {
        Self::One(toml::Value::String(text.to_owned()).to_string())
    }

    const fn is_list(&self) -> bool {
        match self {
            Self::One(_) => false,
            Self::List(_) => true,
        }
    }

    fn entries(&self) -> &[String] {
        match self {
            Self::One(_) => &[],
            Self::List(entries) => entries,
        }
    }
}

impl fmt::Debug for Written {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Written(..)")
    }
}

impl fmt::Display for Written {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(text) => out.write_str(text),
            Self::List(entries) => write!(out, "[{}]", entries.join(", ")),
        }
    }
}

impl Change {
    /// Entries that only the new list has; empty where the value is no list.
    pub fn added(&self) -> Vec<String> {
        only_in(self.new.as_ref(), self.old.as_ref())
    }

    /// Entries that only the old list has; empty where the value is no list.
    pub fn removed(&self) -> Vec<String> {
        only_in(self.old.as_ref(), self.new.as_ref())
    }
}

fn only_in(these: Option<&Written>, those: Option<&Written>) -> Vec<String> {
    let those: std::collections::BTreeSet<&String> =
        those.map(Written::entries).unwrap_or_default().iter().collect();
    let these = these.map(Written::entries).unwrap_or_default();
    these.iter().filter(|entry| !those.contains(entry)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read;

    fn between(old: &str, new: &str) -> Vec<String> {
        let config =
            |text: &str| read(&format!("[shield]\ninterfaces = [\"eth0\"]\n{text}"), "a test").unwrap();
        let shown =
            |value: &Option<Written>| value.as_ref().map_or_else(|| "-".to_owned(), Written::to_string);
        changes(&config(old), &config(new))
            .iter()
            .map(|change| format!("{}: {} > {}", change.key, shown(&change.old), shown(&change.new)))
            .collect()
    }

    #[test]
    fn the_fronts_mark_is_that_of_its_own_keys() {
        let mark = |text: &str| {
            front_mark(&read(&format!("[shield]\ninterfaces = [\"eth0\"]\n{text}"), "a test").unwrap())
        };
        let plain = mark("");
        for (text, is_other) in [
            ("mode = \"enforce\"", false),
            ("[ingress]\ngate = \"off\"\nuser = \"other\"", false),
            ("[ingress]\nkeep_alive_seconds = 2", false),
            ("[ingress]\nkeep_alive_seconds = 3", true),
            ("[circuits]\nprofile = \"web\"", true),
            ("[arti]\nports = [443]", true),
            ("[bans]\nladder_seconds = [300, 301]", true),
            ("[bans]\nforgive_after_seconds = 90000", true),
            ("[log]\nlevel = \"debug\"", true),
        ] {
            assert_eq!(mark(text) != plain, is_other, "{text}");
        }
    }

    #[test]
    fn values_count_and_not_how_they_are_written() {
        for (old, new, expected) in [
            ("", "", &[][..]),
            ("", "mode = \"observe\"\nsyn = { burst = 0x14 }", &[]),
            ("allow = [\"192.0.2.7\"]", "allow = ['192.0.2.7/32']", &[]),
            ("allow = [\"192.0.2.7\", \"2001:db8::/32\"]", "allow = [\"2001:db8::/32\", \"192.0.2.7\"]", &[]),
            (
                "mode = \"enforce\"\n[tor]\nuser = \"tor\"",
                "",
                &["shield.mode: \"enforce\" > \"observe\"", "tor.user: \"tor\" > -"],
            ),
            (
                "",
                "pin_path = \"/sys/fs/bpf/a\\\\b\"\n[http]\nlisten = \"[::1]:80\"\n[bans]\nladder_seconds = [1, 2]",
                &[
                    "shield.pin_path: \"/sys/fs/bpf/tunica\" > '/sys/fs/bpf/a\\b'",
                    "bans.ladder_seconds: [300, 1800, 14400, 86400] > [1, 2]",
                    "http.listen: \"127.0.0.1:9187\" > \"[::1]:80\"",
                ],
            ),
        ] {
            assert_eq!(between(old, new), expected, "{old:?} {new:?}");
        }
    }

    #[test]
    fn lists_differ_by_their_entries() {
        let list = |entries: &[&str]| Some(Written::List(entries.iter().map(|e| (*e).to_owned()).collect()));
        let change = Change { key: "shield.allow", old: list(&["a", "b"]), new: list(&["c", "b"]) };
        assert_eq!((change.added(), change.removed()), (vec!["c".to_owned()], vec!["a".to_owned()]));
        let change = Change { key: "tor.user", old: None, new: Some(Written::text("tor")) };
        assert_eq!((change.added(), change.removed()), (vec![], vec![]));
    }

    /// So that a key which is read in a way that records nothing is noticed.
    #[test]
    fn every_key_that_a_file_sets_is_recorded() {
        let every =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/good/every_key.toml"));
        let config = read(&every.unwrap(), "every_key.toml").unwrap();
        let missing: Vec<_> =
            REFERENCE.iter().map(|doc| doc.key).filter(|key| !config.values.contains_key(key)).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }
}
