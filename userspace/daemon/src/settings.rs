//! What of the configuration the daemon itself acts on: the kernel's objects, and what only a start can change.

use tunica_config::{Attach, Config, Mode};
use tunica_core::{ban_ladder::LadderError, limits::Settings};

use crate::shell::{
    host,
    xdp::{Plan, attach::Wanted, object::Sizes},
};

/// What the coordinator decides by, accounts looked up, and a sentence about those that there are none of.
///
/// # Errors
/// [`LadderError`], which a validated ladder gives no cause for.
pub fn of(config: &Config) -> Result<(Settings, Option<String>), LadderError> {
    let mut settings = config.settings()?;
    let mut missing = Vec::new();
    for reporter in &config.evidence.reporters {
        match host::uid(&reporter.account) {
            Ok(Some(uid)) => drop(settings.reporters.insert(uid, reporter.pace)),
            Ok(None) => missing.push(reporter.account.clone()),
            Err(error) => missing.push(format!("{} ({error})", reporter.account)),
        }
    }
    let sentence = (!missing.is_empty()).then(|| {
        format!(
            "evidence.reporters names accounts that cannot be found: {}; their reports do not count; correct the names, or \
             run `tunica reload` once the accounts exist",
            missing.join(", ")
        )
    });
    Ok((settings, sentence))
}

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

/// The configuration that was in force before a trial, from the text that the ledger kept, with what only a start can
/// change as in `present`. The sentence says what is amiss if this version cannot read the text: then `present` is in
/// force, and drops nothing.
pub fn before_trial(text: &str, present: &Config) -> (Config, Option<String>) {
    match tunica_config::read(text, "the configuration before the trial") {
        Ok(mut before) => {
            before.http = present.http.clone();
            before.control = present.control.clone();
            before.ledger = present.ledger.clone();
            before.log.format = present.log.format;
            before.shield.pin_path.clone_from(&present.shield.pin_path);
            (before, None)
        }
        Err(problems) => {
            let mut harmless = present.clone();
            harmless.shield.mode = Mode::Observe;
            harmless.shield.lockdown = false;
            let sentence = format!(
                "the configuration before the trial cannot be read by this tunicad, so the present one is in force and \
                 drops nothing; correct the file and run `tunica reload`: {problems}"
            );
            (harmless, Some(sentence))
        }
    }
}

/// Keys that differ between two configurations and are read only when the daemon starts.
pub fn fixed_keys_changed(old: &Config, new: &Config) -> Vec<&'static str> {
    [
        ("http.enabled", old.http.enabled != new.http.enabled),
        ("http.listen", old.http.listen != new.http.listen),
        ("control.socket", old.control.socket != new.control.socket),
        ("control.group", old.control.group != new.control.group),
        ("ingress.enabled", old.ingress.enabled != new.ingress.enabled),
        ("ingress.start_front", old.ingress.start_front != new.ingress.start_front),
        ("ingress.listen", old.ingress.listen != new.ingress.listen),
        ("ingress.socket", old.ingress.socket != new.ingress.socket),
        ("ingress.gate", old.ingress.gate != new.ingress.gate),
        ("ingress.user", old.ingress.user != new.ingress.user),
        ("arti.enabled", old.arti.enabled != new.arti.enabled),
        ("haproxy.socket", old.haproxy.socket != new.haproxy.socket),
        ("haproxy.table", old.haproxy.table != new.haproxy.table),
        ("ledger.path", old.ledger.path != new.ledger.path),
        ("log.format", old.log.format != new.log.format),
        ("tor.control", old.tor.control != new.tor.control),
        ("tor.control_cookie_file", old.tor.control_cookie_file != new.tor.control_cookie_file),
        ("tor.control_password_file", old.tor.control_password_file != new.tor.control_password_file),
        ("tor.metrics", old.tor.metrics != new.tor.metrics),
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
    fn what_was_before_a_trial_comes_back_but_for_what_a_start_fixes() {
        let read = |text: &str| tunica_config::read(text, "a test").unwrap();
        let text = "shield = { interfaces = [\"eth0\"], mode = \"observe\", allow = [\"192.0.2.7\"] }";
        let present = read(
            "shield = { interfaces = [\"eth1\"], mode = \"enforce\", lockdown = true, pin_path = \"/sys/fs/bpf/x\" }\n\
             ledger = { path = \"/var/l\" }\nlog = { format = \"json\", level = \"debug\" }",
        );
        let (before, problem) = before_trial(text, &present);
        assert_eq!((before.shield.interfaces.as_slice(), problem), (&["eth0".to_owned()][..], None));
        assert_eq!((before.shield.mode, before.shield.lockdown), (Mode::Observe, false));
        assert_eq!(before.shield.allow, read(text).shield.allow);
        assert_eq!(before.log.level, read(text).log.level);
        assert!(fixed_keys_changed(&present, &before).is_empty());

        let (before, problem) = before_trial("shield = 7", &present);
        assert_eq!((before.shield.mode, before.shield.lockdown), (Mode::Observe, false));
        assert_eq!(before.shield.interfaces, present.shield.interfaces);
        assert!(problem.is_some_and(|problem| problem.contains("drops nothing")));
    }

    #[test]
    fn reporters_are_looked_up_and_strangers_named_in_one_sentence() {
        let evidence = "[evidence]\nreporters = [\"no-such-a 1/1s\", \"root 20/60s\", \"no-such-b 1/1s\"]";
        let text = format!("shield.interfaces = [\"eth0\"]\n{evidence}");
        let (settings, sentence) = of(&tunica_config::read(&text, "a test").unwrap()).unwrap();
        assert_eq!(settings.reporters, [(0, [3_000_000_000, 57_000_000_000])].into());
        assert!(sentence.unwrap().contains("no-such-a, no-such-b; their reports do not count"));
        let (settings, sentence) =
            of(&tunica_config::read("shield.interfaces = [\"eth0\"]", "a test").unwrap()).unwrap();
        assert_eq!((settings.reporters.len(), sentence), (0, None));
    }

    #[test]
    fn a_fixed_key_that_changed_is_named_and_is_among_the_differences() {
        let read = |more: &str| {
            tunica_config::read(&format!("shield.interfaces = [\"eth0\"]\n{more}"), "a test").unwrap()
        };
        let old = read("");
        let guide = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/guide.md");
        let guide = std::fs::read_to_string(guide).unwrap();
        let told = guide.lines().find(|line| line.starts_with("These keys need a restart")).unwrap();
        for (key, value) in [
            ("http.enabled", "false"),
            ("http.listen", "\"127.0.0.1:1\""),
            ("control.socket", "\"/run/s\""),
            ("control.group", "\"adm\""),
            ("ingress.enabled", "true"),
            ("ingress.start_front", "true"),
            ("ingress.listen", "\"127.0.0.1:7\""),
            ("ingress.socket", "\"/run/i.sock\""),
            ("ingress.gate", "\"off\""),
            ("ingress.user", "\"front\""),
            ("haproxy.socket", "\"/run/h\""),
            ("haproxy.table", "\"t\""),
            ("ledger.path", "\"/var/l\""),
            ("log.format", "\"json\""),
            ("tor.control", "\"127.0.0.1:9\""),
            ("tor.control_cookie_file", "\"/run/c\""),
            ("tor.control_password_file", "\"/run/p\""),
            ("tor.metrics", "\"127.0.0.1:9\""),
            ("shield.pin_path", "\"/sys/fs/bpf/other\""),
        ] {
            let new = read(&format!("{key} = {value}"));
            let fixed = fixed_keys_changed(&old, &new);
            assert_eq!(fixed, [key]);
            let differing: Vec<_> =
                tunica_config::changes(&old, &new).iter().map(|change| change.key).collect();
            assert_eq!(differing, [key]);
            assert!(restart_needed(&fixed).is_some_and(|message| message.starts_with(key)));
            let section = format!("`[{}]`", key.split('.').next().unwrap());
            assert!(told.contains(&format!("`{key}`")) || told.contains(&section), "the guide lacks {key}");
        }
        assert_eq!(restart_needed(&fixed_keys_changed(&old, &read("shield.mode = \"enforce\""))), None);
    }
}
