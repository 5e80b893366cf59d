//! Ledgers that earlier versions of the daemon wrote.
//!
//! `ledgers/NAME.redb` is the file as such a daemon left it, `ledgers/NAME.txt` the facts that were given to it. No
//! change of the file's format may lose or alter one of them. A new version's ledger is two files and no code.
#![allow(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

use std::{fs, path::Path};

use tunica_core::{
    ledger::{self, Command, Ledger},
    time::WallTime,
};
use tunicad::ledger_file::{LedgerFile, Opened};

const NOW: WallTime = WallTime(1_800_000_000);

/// Every fact, one a line, in words that have nothing to do with how the file holds them.
fn facts(ledger: &Ledger) -> String {
    let or = |value: Option<String>, absent: &str| value.unwrap_or_else(|| absent.to_owned());
    let until = |expires: Option<WallTime>| or(expires.map(|expires| expires.to_string()), "lifted");
    let mut lines = vec![format!("next number {}", ledger.next_id)];
    if let Some(bypass) = &ledger.bypass {
        lines.push(format!("bypassed since {}: {:?}", bypass.since, bypass.reason));
    }
    if let Some(before) = ledger.syncookies_before {
        lines.push(format!("tcp_syncookies was {before}"));
    }
    for (target, ban) in ledger.all_bans() {
        lines.push(format!(
            "ban {} of {target} from {} until {}, rung {}, by {}: {:?}",
            ban.id,
            ban.since,
            until(ban.expires),
            or(ban.rung.map(|rung| rung.to_string()), "none"),
            ban.origin.label(),
            ban.reason
        ));
    }
    for (source, memory) in &ledger.memories {
        lines.push(format!("offence of {source} at {}, rung {}", memory.last_offence, memory.rung));
    }
    for (prefix, allow) in &ledger.allows {
        lines.push(format!(
            "allow {} of {prefix} from {} until {}, by {}: {:?}",
            allow.id,
            allow.since,
            until(allow.expires),
            allow.origin.label(),
            allow.reason
        ));
    }
    lines.join("\n") + "\n"
}

fn open(path: &Path) -> Opened {
    let opened = LedgerFile::open(path, NOW).unwrap();
    assert_eq!(opened.damaged, None);
    opened
}

#[test]
fn ledgers_of_earlier_versions_keep_every_fact() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ledgers");
    let mut ledgers = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let original = entry.unwrap().path();
        if original.extension().is_none_or(|extension| extension != "redb") {
            continue;
        }
        ledgers += 1;
        let expected = fs::read_to_string(original.with_extension("txt")).unwrap();
        // Opening for writing changes the file.
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ledger.redb");
        fs::copy(&original, &path).unwrap();

        let Opened { mut file, mut ledger, .. } = open(&path);
        assert_eq!(facts(&ledger), expected, "{}", original.display());

        // This version goes on where that one stopped: it lifts what it found, and what it left alone stays.
        let source = *ledger.bans.keys().next().unwrap();
        let lift = Command::LiftBan { source };
        file.commit(&ledger, std::slice::from_ref(&lift)).unwrap();
        ledger::apply(&mut ledger, &lift).unwrap();
        drop(file);
        assert_eq!(open(&path).ledger, ledger);
    }
    assert!(ledgers > 0);
}
