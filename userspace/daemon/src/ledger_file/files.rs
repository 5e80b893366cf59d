//! The ledger in real files.

use std::{
    env,
    io::{BufRead, BufReader, Write},
    os::unix::fs::MetadataExt,
    process::{Command as Process, Stdio},
};

use proptest::prelude::*;
use redb::ReadableDatabase;
use tunica_core::{
    ban_ladder::Memory,
    id::{PacketSource, Prefix},
    incident::{self, Incident, Row, Softirq},
    ledger::{
        AllowFact, AllowOrigin, AttackModeFact, BanFact, BanOrigin, BypassFact, LevelPinFact, TrialFact,
    },
    load_level::Level,
};

use super::*;

const NOW: WallTime = WallTime(1_700_000_000);

fn source(number: u32) -> PacketSource {
    PacketSource::of((0xc633_6400 + number).to_be_bytes().into())
}

fn fact(id: u32) -> BanFact {
    let (since, reason) = (NOW, "scan".to_owned());
    BanFact { id, since, expires: None, rung: None, origin: BanOrigin::Operator, reason }
}

fn ban(number: u32, id: u32) -> Command {
    Command::SetBan { source: source(number), fact: fact(id) }
}

fn net_ban(prefix: Prefix, id: u32) -> Command {
    Command::SetNetBan { prefix, fact: fact(id) }
}

fn incident(id: u32) -> Incident {
    Incident {
        start: NOW,
        last: NOW,
        is_over: id.is_multiple_of(2),
        defences: vec!["syn_rate".to_owned()],
        peak_packets_per_second: 7,
        rows: vec![Row { verdict: "syn_rate".to_owned(), action: "drop".to_owned(), packets: 9 }],
        ports: vec![443],
        softirq: Some(Softirq { before: Some(1), average: 2, peak: 3, readings: 4 }),
    }
}

#[test]
fn incidents_are_kept_and_a_ledger_that_knows_none_opens() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ledger.redb");
    let mut opened = reopened(&path);
    for id in 1..=incident::MOST as u32 + 5 {
        commit(&mut opened, &[Command::SetIncident { id, incident: incident(id) }]);
    }
    commit(&mut opened, &[ban(1, 1)]);
    let ledger = opened.ledger.clone();
    drop(opened);
    assert_eq!(reopened(&path).ledger, ledger);
    // What an earlier version wrote: the table is not there.
    let database = builder().open(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    let rows: redb::TableDefinition<'_, &[u8], &[u8]> = redb::TableDefinition::new("incidents");
    assert!(transaction.delete_table(rows).unwrap());
    transaction.commit().unwrap();
    drop(database);
    let mut opened = reopened(&path);
    assert_eq!((opened.ledger.incidents.len(), opened.ledger.bans.len()), (0, 1));
    commit(&mut opened, &[Command::SetIncident { id: 1, incident: incident(1) }]);
    let ledger = opened.ledger.clone();
    drop(opened);
    assert_eq!(reopened(&path).ledger, ledger);
}

fn commit(opened: &mut Opened, commands: &[Command]) {
    opened.file.commit(&opened.ledger, commands).unwrap();
    for command in commands {
        ledger::apply(&mut opened.ledger, command).unwrap();
    }
}

fn reopened(path: &Path) -> Opened {
    let opened = LedgerFile::open(path, NOW).unwrap();
    assert_eq!(opened.damaged, None);
    opened
}

/// Changes a row of a closed file behind the ledger's back.
fn forge(path: &Path, table: &'static str, key: &str, value: &str) {
    let database = builder().open(path).unwrap();
    let transaction = database.begin_write().unwrap();
    let rows: redb::TableDefinition<'_, &[u8], &[u8]> = redb::TableDefinition::new(table);
    transaction.open_table(rows).unwrap().insert(key.as_bytes(), value.as_bytes()).unwrap();
    transaction.commit().unwrap();
}

fn has_row(database: &Database, table: &'static str, key: &str) -> bool {
    let rows: redb::TableDefinition<'_, &[u8], &[u8]> = redb::TableDefinition::new(table);
    let table = database.begin_read().unwrap().open_table(rows).unwrap();
    table.get(key.as_bytes()).unwrap().is_some()
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_new_ledger_is_empty_closed_to_others_and_complete() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ledger.redb");
    // What a crash during an earlier first start leaves.
    fs::write(directory.path().join("ledger.redb.new"), b"half").unwrap();
    let opened = reopened(&path);
    assert_eq!(opened.ledger, Ledger::default());
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
    assert_eq!(names(directory.path()), ["ledger.redb"]);
}

#[test]
fn a_ledger_open_to_others_is_closed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ledger.redb");
    drop(reopened(&path));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    drop(reopened(&path));
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
}

#[test]
fn one_daemon_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ledger.redb");
    let first = reopened(&path);
    let second = LedgerFile::open(&path, NOW).unwrap_err();
    assert!(matches!(second, OpenError::InUse { .. }), "{second}");
    drop(first);
    let claim = directory::claim(directory.path()).unwrap();
    let second = LedgerFile::open(&path, NOW).unwrap_err();
    assert!(matches!(second, OpenError::InUse { .. }), "{second}");
    drop(claim);
    reopened(&path);
}

#[test]
fn a_directory_that_cannot_be_used_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("none");
    let file = directory.path().join("file");
    fs::write(&file, b"").unwrap();
    for directory in [missing, file] {
        let error = LedgerFile::open(&directory.join("ledger.redb"), NOW).unwrap_err();
        let message = error.to_string();
        assert!(message.contains(&format!("install -d -m 0700 {}", directory.display())), "{message}");
        assert!(message.contains("would not survive a restart"), "{message}");
    }
    // A directory that may be read and not be written: even root may not create a file in /proc.
    let error = LedgerFile::open(Path::new("/proc/ledger.redb"), NOW).unwrap_err();
    assert!(matches!(error, OpenError::Directory { .. }), "{error}");
    // A directory in the ledger's place says nothing about a ledger, so it stays where it is.
    let error = LedgerFile::open(directory.path(), NOW).unwrap_err();
    assert!(matches!(error, OpenError::Unreachable { .. }), "{error}");
}

#[test]
fn a_newer_schema_is_named_and_the_file_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ledger.redb");
    drop(reopened(&path));
    forge(&path, "meta", "schema", "7");
    let before = fs::read(&path).unwrap();
    let message = LedgerFile::open(&path, NOW).unwrap_err().to_string();
    assert!(message.contains("has schema 7, this tunicad knows 1"), "{message}");
    assert!(message.contains("install the tunicad that wrote it"), "{message}");
    assert_eq!(fs::read(&path).unwrap(), before);
    assert_eq!(names(directory.path()), ["ledger.redb"]);
}

#[test]
fn a_file_made_before_ranges_could_be_banned_opens_and_takes_them() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ledger.redb");
    let mut opened = reopened(&path);
    commit(&mut opened, &[ban(1, 1)]);
    drop(opened);
    // Such a file has every table but this one.
    let database = builder().open(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    let nets: redb::TableDefinition<'_, &[u8], &[u8]> = redb::TableDefinition::new("nets");
    assert!(transaction.delete_table(nets).unwrap());
    transaction.commit().unwrap();
    drop(database);

    let mut opened = reopened(&path);
    assert!(opened.ledger.nets.is_empty());
    assert_eq!(opened.ledger.bans.len(), 1);
    let prefix = "203.0.113.0/24".parse().unwrap();
    commit(&mut opened, &[net_ban(prefix, 2)]);
    drop(opened);
    let opened = reopened(&path);
    assert_eq!(opened.ledger.nets.get(&prefix).map(|fact| fact.id), Some(2));
    assert_eq!(opened.ledger.bans.len(), 1);
}

#[test]
fn what_cannot_be_read_is_set_aside_and_never_lost() {
    type Damage = fn(&Path);
    let damages: [(Damage, &str); 10] = [
        (|path| fs::write(path, b"").unwrap(), "empty"),
        (|path| fs::write(path, b"[bans]\n").unwrap(), "magic number"),
        (|path| fs::write(path, [0; 8_192]).unwrap(), "magic number"),
        (|path| OpenOptions::new().write(true).open(path).unwrap().set_len(20_000).unwrap(), "truncated"),
        (|path| forge(path, "meta", "schema", "one"), "table `meta` is unreadable at byte 1"),
        (|path| forge(path, "bans", "198.51.100.0/24", "{}"), "a key in table `bans`"),
        (|path| forge(path, "bans", "198.51.100.007", "{}"), "a key in table `bans`"),
        (|path| forge(path, "nets", "198.51.100.7/24", "{}"), "a key in table `nets`"),
        (|path| forge(path, "bans", "198.51.100.7", "{\"id\":1}"), "table `bans` is unreadable at byte 8"),
        (|path| forge(path, "singles", "next_id", "-1"), "table `singles` is unreadable"),
    ];
    for (damage, part) in damages {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ledger.redb");
        commit(&mut reopened(&path), &[ban(1, 1)]);
        damage(&path);
        let bytes = fs::read(&path).unwrap();
        let opened = LedgerFile::open(&path, NOW).unwrap();
        let damaged = opened.damaged.clone().unwrap();
        assert!(damaged.reason.contains(part), "{}", damaged.reason);
        assert!(!damaged.reason.contains("198.51"), "{}", damaged.reason);
        assert_eq!(damaged.moved_to, directory.path().join("ledger.redb.damaged-1700000000"));
        match builder().open(&damaged.moved_to) {
            Err(_) => assert_eq!(fs::read(&damaged.moved_to).unwrap(), bytes),
            Ok(database) => assert!(has_row(&database, "bans", "198.51.100.1")),
        }
        assert_eq!(opened.ledger, Ledger::default());
        drop(opened);
        reopened(&path);
    }
}

#[test]
fn damaged_files_of_one_second_do_not_overwrite_each_other() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ledger.redb");
    for content in ["first", "second", "third"] {
        fs::write(&path, content).unwrap();
        let moved_to = LedgerFile::open(&path, NOW).unwrap().damaged.unwrap().moved_to;
        assert_eq!(fs::read_to_string(moved_to).unwrap(), content);
    }
    let aside = [
        "ledger.redb.damaged-1700000000",
        "ledger.redb.damaged-1700000000-2",
        "ledger.redb.damaged-1700000000-3",
    ];
    assert_eq!(names(directory.path())[1..], aside);
}

#[test]
fn a_rejected_command_takes_the_others_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ledger.redb");
    let mut opened = reopened(&path);
    commit(&mut opened, &[ban(1, 1)]);
    let error = opened.file.commit(&opened.ledger, &[ban(2, 2), ban(3, 2)]).unwrap_err();
    assert!(matches!(error, CommitError::Rejected(Rejection::IdTaken { id: 2, next: 3 })), "{error}");
    commit(&mut opened, &[ban(4, 2)]);
    let ledger = opened.ledger.clone();
    drop(opened);
    assert_eq!(reopened(&path).ledger, ledger);
}

#[test]
fn a_failed_commit_is_made_good_by_the_next() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ledger.redb");
    let mut opened = reopened(&path);
    commit(&mut opened, &[ban(1, 1), ban(2, 2)]);
    // A commit whose failure came after its writes: the file has it, the ledger in memory has not.
    opened.file.commit(&opened.ledger, &[ban(3, 3), Command::LiftBan { source: source(1) }]).unwrap();
    opened.file.database = None;
    commit(&mut opened, &[ban(4, 3)]);
    // While another process has the file, there is no commit, and then there is.
    opened.file.database = None;
    let other = builder().open(&path).unwrap();
    let error = opened.file.commit(&opened.ledger, &[ban(5, 4)]).unwrap_err();
    assert!(matches!(error, CommitError::Storage { .. }), "{error}");
    drop(other);
    commit(&mut opened, &[ban(5, 4)]);
    let ledger = opened.ledger.clone();
    drop(opened);
    let bans: Vec<PacketSource> = [1, 2, 4, 5].map(source).to_vec();
    assert!(ledger.bans.keys().copied().eq(bans));
    assert_eq!(reopened(&path).ledger, ledger);
}

fn command() -> impl Strategy<Value = Command> {
    let host = 0u32..4;
    let allow = |id| {
        let (origin, reason) = (AllowOrigin::Operator, "\u{1f9c5} \"quoted\"\n".to_owned());
        AllowFact { id, since: NOW, expires: Some(WallTime(u64::MAX)), origin, reason }
    };
    let prefix = |bits: u32| -> Prefix { format!("2001:db8::/{}", 32 + bits).parse().unwrap() };
    prop_oneof![
        (host.clone(), 1u32..60).prop_map(|(host, id)| ban(host, id)),
        host.clone().prop_map(|host| Command::LiftBan { source: source(host) }),
        (host.clone(), 1u32..60).prop_map(move |(bits, id)| net_ban(prefix(bits), id)),
        host.clone().prop_map(move |bits| Command::LiftNetBan { prefix: prefix(bits) }),
        (host.clone(), 1u32..60)
            .prop_map(move |(bits, id)| Command::SetAllow { prefix: prefix(bits), fact: allow(id) }),
        host.clone().prop_map(move |bits| Command::LiftAllow { prefix: prefix(bits) }),
        (host.clone(), 1u32..5).prop_map(|(host, rung)| {
            Command::SetMemory { source: source(host), memory: Memory { rung, last_offence: NOW } }
        }),
        host.prop_map(|host| Command::ForgetMemory { source: source(host) }),
        Just(Command::SetBypass { fact: BypassFact { since: NOW, reason: String::new() } }),
        Just(Command::ClearBypass),
        (0u64..9).prop_map(|end| Command::SetAttackMode {
            fact: AttackModeFact { since: NOW, expires: WallTime(end) }
        }),
        Just(Command::ClearAttackMode),
        (0usize..5, prop::option::of(0u64..9)).prop_map(|(level, end)| Command::SetLevelPin {
            fact: LevelPinFact { level: Level::ALL[level], since: NOW, expires: end.map(WallTime) }
        }),
        Just(Command::ClearLevelPin),
        (0u64..9).prop_map(|end| Command::SetTrial {
            fact: TrialFact {
                since: NOW,
                expires: WallTime(end),
                before: "[shield]\n".to_owned(),
                is_undone: false,
            }
        }),
        Just(Command::UndoTrial),
        Just(Command::ClearTrial),
        (0u32..9).prop_map(|id| Command::SetIncident { id, incident: incident(id) }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// For all batches of commands, the file is what `apply` makes of those that apply as a whole.
    #[test]
    fn the_file_never_disagrees_with_apply(batches in prop::collection::vec(prop::collection::vec(command(), 0..6), 0..12)) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ledger.redb");
        let mut opened = reopened(&path);
        for commands in batches {
            let mut after = opened.ledger.clone();
            let applied = commands.iter().try_for_each(|command| ledger::apply(&mut after, command));
            match (applied, opened.file.commit(&opened.ledger, &commands)) {
                (Ok(()), Ok(())) => opened.ledger = after,
                (Err(expected), Err(CommitError::Rejected(found))) => prop_assert_eq!(found, expected),
                (applied, committed) => prop_assert!(false, "{:?} but {:?}", applied, committed),
            }
        }
        let ledger = opened.ledger.clone();
        drop(opened);
        prop_assert_eq!(reopened(&path).ledger, ledger);
    }
}

const KILLED: &str = "TUNICA_TEST_LEDGER";

/// Runs itself as a child that commits until it is killed, and looks for every commit the child had acknowledged.
#[test]
fn acknowledged_commits_survive_kill_9() {
    if let Some(path) = env::var_os(KILLED) {
        let mut opened = reopened(Path::new(&path));
        loop {
            let id = opened.ledger.next_id;
            commit(&mut opened, &[ban(id % 50, id)]);
            println!("committed {id}");
            io::stdout().flush().unwrap();
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ledger.redb");
    for round in 0..25 {
        let mut child = Process::new(env::current_exe().unwrap())
            .args(["--exact", "--nocapture", "ledger_file::files::acknowledged_commits_survive_kill_9"])
            .env(KILLED, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut acknowledged = 0;
        let mut count = 0;
        for line in lines {
            if let Some(id) = line.unwrap().strip_prefix("committed ") {
                acknowledged = id.parse::<u32>().unwrap();
                count += 1;
                if count == 1 + round * 3 {
                    child.kill().unwrap();
                }
            }
        }
        assert_eq!(child.wait().unwrap().code(), None, "the child ends by the signal alone");
        let ledger = reopened(&path).ledger;
        // The child may have been killed between a commit and its acknowledgement.
        assert!([acknowledged + 1, acknowledged + 2].contains(&ledger.next_id), "round {round}");
        let newest = ledger.bans.values().map(|fact| fact.id).max();
        assert_eq!(newest, Some(ledger.next_id - 1));
        assert_eq!(ledger.bans.len(), 50.min(ledger.next_id as usize - 1));
    }
}
