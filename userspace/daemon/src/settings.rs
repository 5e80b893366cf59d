//! What of the configuration the daemon itself acts on: the kernel's objects, and what only a start can change.

use tunica_config::{Attach, Config};

use crate::shell::xdp::{Plan, attach::Wanted, object::Sizes};

/// What the kernel's objects are made by.
pub fn plan(config: &Config) -> Plan {
    let shield = &config.shield;
    Plan {
        interfaces: shield.interfaces.clone(),
        wanted: match shield.attach {
            Attach::Native => Wanted::Native,
            Attach::NativeOrGeneric => Wanted::NativeOrGeneric,
            Attach::Nftables => Wanted::Nftables,
        },
        root: shield.pin_path.clone(),
        sizes: Sizes {
            bans: shield.tables.bans.get(),
            nets: shield.tables.cidrs.get(),
            allow: shield.tables.allow.get(),
        },
    }
}

/// Keys that differ between two configurations and are read only when the daemon starts.
pub fn fixed_keys_changed(old: &Config, new: &Config) -> Vec<&'static str> {
    [
        ("http.enabled", old.http.enabled != new.http.enabled),
        ("http.listen", old.http.listen != new.http.listen),
        ("control.socket", old.control.socket != new.control.socket),
        ("control.group", old.control.group != new.control.group),
        ("ledger.path", old.ledger.path != new.ledger.path),
        ("log.format", old.log.format != new.log.format),
        ("shield.pin_path", old.shield.pin_path != new.shield.pin_path),
    ]
    .into_iter()
    .filter_map(|(key, changed)| changed.then_some(key))
    .collect()
}

/// Why `fixed`, which [`fixed_keys_changed`] gave, stands in the way of a reload; `None` if it is empty.
pub fn restart_needed(fixed: &[&str]) -> Option<String> {
    (!fixed.is_empty()).then(|| {
        let keys = fixed.join(", ");
        format!("{keys} can only change at a start; restart tunicad, or change the file back")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fixed_key_that_changed_is_named_and_is_among_the_differences() {
        let read = |more: &str| {
            tunica_config::read(&format!("shield.interfaces = [\"eth0\"]\n{more}"), "a test").unwrap()
        };
        let old = read("");
        for (key, value) in [
            ("http.enabled", "false"),
            ("http.listen", "\"127.0.0.1:1\""),
            ("control.socket", "\"/run/s\""),
            ("control.group", "\"adm\""),
            ("ledger.path", "\"/var/l\""),
            ("log.format", "\"json\""),
            ("shield.pin_path", "\"/sys/fs/bpf/other\""),
        ] {
            let new = read(&format!("{key} = {value}"));
            let fixed = fixed_keys_changed(&old, &new);
            assert_eq!(fixed, [key]);
            let differing: Vec<_> =
                tunica_config::changes(&old, &new).iter().map(|change| change.key).collect();
            assert_eq!(differing, [key]);
            assert!(restart_needed(&fixed).is_some_and(|message| message.starts_with(key)));
        }
        assert_eq!(restart_needed(&fixed_keys_changed(&old, &read("shield.mode = \"enforce\""))), None);
    }
}
