//! The ledger: its rows as they stand in the file, and its commands.
//!
//! The first byte of an input tells what the rest is: `r` rows of the file, one a line (a letter for the table, the key,
//! a blank, the value); `j` commands in JSON, one a line; `f` what commands are drawn from that are then written to the
//! file; anything else what commands are drawn from.
//!
//! The file is a redb database in memory. Damage to the database itself is redb's to find, so no input forges that.

use std::sync::LazyLock;

use arbitrary::{Result, Unstructured};
use redb::{Builder, Database, Durability, TableDefinition, backends::InMemoryBackend};
use tunica_core::{
    ban_ladder::Memory,
    id::{PacketSource, Prefix},
    incident::{Incident, Row, Softirq},
    ledger::{
        self, AllowFact, AllowOrigin, AttackModeFact, BanFact, BanOrigin, BypassFact, Command, Ledger,
        LevelPinFact, Rejection, TrialFact,
    },
    load_level::Level,
    time::WallTime,
};
use tunicad::ledger_file::{
    SCHEMA,
    rows::{self, LoadError},
};

use super::control_socket::{prefix, source};

/// Most commands of one input.
const MOST_COMMANDS: usize = 64;

/// The tables of the file, by the letter of a row.
const TABLES: [(u8, &str); 7] = [
    (b'm', "meta"),
    (b'b', "bans"),
    (b'n', "nets"),
    (b'a', "allows"),
    (b'l', "memories"),
    (b's', "singles"),
    (b'i', "incidents"),
];

/// Where rows are forged.
static FORGED: LazyLock<Database> = LazyLock::new(in_memory);
/// Where ledgers are written by the daemon's own code.
static KEPT: LazyLock<Database> = LazyLock::new(in_memory);

/// Rows and commands of each kind, and bytes to draw from.
pub fn seeds() -> Vec<Vec<u8>> {
    let rows = r#"r
mschema 1
b192.0.2.7 {"id":1,"since":10,"expires":310,"rung":1,"origin":"operator","reason":"scan"}
b2001:db8::/64 {"id":2,"since":10,"expires":null,"rung":null,"origin":"operator","reason":""}
n203.0.113.0/24 {"id":4,"since":10,"expires":310,"rung":null,"origin":"operator","reason":"rented"}
a198.51.100.0/24 {"id":3,"since":10,"expires":null,"origin":"operator","reason":"office"}
l192.0.2.7 {"rung":1,"last_offence":10}
snext_id 5
sbypass {"since":10,"reason":"maintenance"}
ssyncookies_before 1
sattack_mode {"since":10,"expires":310}
strial {"since":10,"expires":310,"before":"[shield]\n","is_undone":false}
i1 {"start":10,"last":20,"is_over":true,"defences":["syn_rate"],"peak_packets_per_second":7,"rows":[],"ports":[443],"softirq":null}
"#;
    let refused = [
        "b198.51.100.0/24 {}",
        "b198.51.100.007 {}",
        "b198.51.100.7 {\"id\":1}",
        "n203.0.113.7/24 {}",
        "a2001:db8::1/48 {}",
        "mschema 2",
        "snext_id -1",
    ];
    let refused = refused.map(|row| format!("r\n{row}\n").into_bytes());
    let mut commands = b"j".to_vec();
    // The second time every number is taken, and last one number is asked for twice.
    let mut all = [commands_of_each_kind(), commands_of_each_kind()].concat();
    for mut command in commands_of_each_kind() {
        if let Command::SetBan { fact: BanFact { id, .. }, .. }
        | Command::SetNetBan { fact: BanFact { id, .. }, .. }
        | Command::SetAllow { fact: AllowFact { id, .. }, .. } = &mut command
        {
            *id = 9;
            all.push(command);
        }
    }
    for command in all {
        commands.extend(serde_json::to_vec(&command).unwrap());
        commands.push(b'\n');
    }
    let drawn = (0..16u8).map(|seed| {
        let kind = if seed % 4 == 0 { b'f' } else { seed };
        let bytes = (0..=255u8).map(|at| at.wrapping_mul(37).wrapping_add(seed));
        std::iter::once(kind).chain(bytes).collect()
    });
    [rows.as_bytes().to_vec(), commands].into_iter().chain(refused).chain(drawn).collect()
}

/// For all rows, loading ends with a ledger that is written and read back the same, or says why not without an address.
/// For all commands, they mean the same after a trip through their JSON form, one that is rejected changes nothing, and
/// the file is what `apply` makes of them.
pub fn check(bytes: &[u8]) {
    let mut rest = bytes;
    match super::take_byte(&mut rest) {
        b'r' => rows_are_read(rest),
        b'j' => {
            let lines = rest.split(|byte| *byte == b'\n');
            applied(&lines.filter_map(|line| serde_json::from_slice(line).ok()).collect::<Vec<_>>());
        }
        b'f' => commands_are_kept(&commands(&mut Unstructured::new(rest))),
        _ => {
            applied(&commands(&mut Unstructured::new(rest)));
        }
    }
}

/// A ledger without facts. One database serves all inputs: a new one costs more than all that is done with it.
fn empty(database: &'static LazyLock<Database>) -> &'static Database {
    let mut transaction = database.begin_write().unwrap();
    transaction.set_durability(Durability::None).unwrap();
    for (_, table) in TABLES {
        transaction.open_table(rows_of(table)).unwrap().retain(|_, _| false).unwrap();
    }
    transaction.commit().unwrap();
    rows::initialise(database).unwrap();
    database
}

fn in_memory() -> Database {
    Builder::new().create_with_backend(InMemoryBackend::new()).unwrap()
}

const fn rows_of(table: &str) -> TableDefinition<'_, &'static [u8], &'static [u8]> {
    TableDefinition::new(table)
}

fn rows_are_read(bytes: &[u8]) {
    let database = empty(&FORGED);
    let mut transaction = database.begin_write().unwrap();
    transaction.set_durability(Durability::None).unwrap();
    let mut secrets = Vec::new();
    for line in bytes.split(|byte| *byte == b'\n') {
        let mut row = line;
        let letter = super::take_byte(&mut row);
        let Some((_, table)) = TABLES.iter().find(|(known, _)| *known == letter) else { continue };
        let (key, value) = match row.iter().position(|byte| *byte == b' ') {
            Some(at) => (row.get(..at).unwrap_or_default(), row.get(at + 1..).unwrap_or_default()),
            None => (row, [].as_slice()),
        };
        transaction.open_table(rows_of(table)).unwrap().insert(key, value).unwrap();
        // No reason has one of these characters by itself.
        secrets.extend(
            [key, value]
                .map(String::from_utf8_lossy)
                .into_iter()
                .filter(|text| text.contains(['.', ':', '{'])),
        );
    }
    transaction.commit().unwrap();
    match rows::load(database) {
        Ok(ledger) => is_kept(&Ledger::default(), &ledger, empty(&KEPT)),
        Err(LoadError::Damaged(reason)) => {
            let tells = secrets.iter().any(|secret| reason.contains(secret.as_ref()));
            assert!(!tells, "{reason}");
        }
        Err(LoadError::NewerSchema(found)) => assert!(found > SCHEMA, "schema {found}"),
        Err(LoadError::Storage(error)) => panic!("memory cannot fail: {error}"),
    }
}

/// Writes what makes `after` of `before` to the database that holds `before`, and reads it back.
fn is_kept(before: &Ledger, after: &Ledger, database: &Database) {
    rows::write_difference(database, before, after).unwrap();
    assert_eq!(rows::load(database).unwrap(), *after, "the file holds another ledger");
}

/// What `apply` makes of the commands.
fn applied(commands: &[Command]) -> Ledger {
    let (mut ledger, mut twin) = (Ledger::default(), Ledger::default());
    for command in commands {
        let text = serde_json::to_vec(command).unwrap();
        let decoded: Command = serde_json::from_slice(&text).unwrap();
        assert_eq!(decoded, *command);
        let before = ledger.clone();
        let outcome = ledger::apply(&mut ledger, command);
        assert_eq!(ledger::apply(&mut twin, &decoded), outcome);
        is_consistent(&before, &ledger, outcome);
    }
    assert_eq!(ledger, twin);
    let text = serde_json::to_vec(&ledger).unwrap();
    assert_eq!(serde_json::from_slice::<Ledger>(&text).unwrap(), ledger);
    ledger
}

/// Commits the commands in two halves.
fn commands_are_kept(commands: &[Command]) {
    let (first, _) = commands.split_at(commands.len() / 2);
    let (half, whole) = (applied(first), applied(commands));
    let database = empty(&KEPT);
    is_kept(&Ledger::default(), &half, database);
    is_kept(&half, &whole, database);
}

fn is_consistent(before: &Ledger, after: &Ledger, outcome: std::result::Result<(), Rejection>) {
    if outcome.is_err() {
        assert_eq!(after, before, "a rejected command changed the ledger");
    }
    assert!(after.next_id >= before.next_id);
    let bans = after.all_bans().map(|(_, fact)| fact.id);
    let mut ids: Vec<u32> = bans.chain(after.allows.values().map(|fact| fact.id)).collect();
    ids.sort_unstable();
    assert!(ids.is_sorted_by(|lower, upper| lower < upper), "a number stands twice: {ids:?}");
    assert!(ids.iter().all(|id| (1..after.next_id).contains(id)), "{ids:?} below {}", after.next_id);
}

fn commands(drawn: &mut Unstructured<'_>) -> Vec<Command> {
    let mut commands = Vec::new();
    // Few keys, so that commands meet each other's facts.
    let Ok((sources, prefixes)) = keys(drawn) else { return commands };
    let mut id = 1;
    while commands.len() < MOST_COMMANDS && !drawn.is_empty() {
        match command(drawn, &sources, &prefixes, &mut id) {
            Ok(command) => commands.push(command),
            Err(_) => break,
        }
    }
    commands
}

fn incident(start: WallTime, words: Vec<String>, packets: u64) -> Incident {
    let row = |verdict: &String| Row { verdict: verdict.clone(), action: "drop".to_owned(), packets };
    Incident {
        start,
        last: start,
        is_over: true,
        rows: words.iter().map(row).collect(),
        defences: words,
        peak_packets_per_second: packets,
        ports: vec![443],
        softirq: Some(Softirq { before: None, average: 2, peak: 3, readings: 4 }),
    }
}

fn keys(drawn: &mut Unstructured<'_>) -> Result<([PacketSource; 3], [Prefix; 3])> {
    let sources = [source(drawn)?, source(drawn)?, source(drawn)?];
    Ok((sources, [prefix(drawn)?, prefix(drawn)?, prefix(drawn)?]))
}

fn command(
    drawn: &mut Unstructured<'_>,
    sources: &[PacketSource],
    prefixes: &[Prefix],
    next: &mut u32,
) -> Result<Command> {
    let source = *drawn.choose(sources)?;
    let prefix = *drawn.choose(prefixes)?;
    let (since, expires) = (WallTime(drawn.arbitrary()?), drawn.arbitrary::<Option<u64>>()?.map(WallTime));
    // Mostly the next number, now and then any.
    let id = if drawn.ratio(7, 8)? { *next } else { drawn.arbitrary()? };
    *next = id.wrapping_add(1);
    Ok(match drawn.choose_iter(commands_of_each_kind())? {
        Command::SetBan { .. } => {
            let (rung, reason) = (drawn.arbitrary()?, drawn.arbitrary()?);
            let origin = drawn.choose_iter(BanOrigin::ALL)?;
            Command::SetBan { source, fact: BanFact { id, since, expires, rung, origin, reason } }
        }
        Command::LiftBan { .. } => Command::LiftBan { source },
        Command::SetNetBan { .. } => {
            let (rung, origin, reason) = (None, BanOrigin::Operator, drawn.arbitrary()?);
            Command::SetNetBan { prefix, fact: BanFact { id, since, expires, rung, origin, reason } }
        }
        Command::LiftNetBan { .. } => Command::LiftNetBan { prefix },
        Command::SetAllow { .. } => {
            let (origin, reason) = (AllowOrigin::Operator, drawn.arbitrary()?);
            Command::SetAllow { prefix, fact: AllowFact { id, since, expires, origin, reason } }
        }
        Command::LiftAllow { .. } => Command::LiftAllow { prefix },
        Command::SetMemory { .. } => {
            Command::SetMemory { source, memory: Memory { rung: drawn.arbitrary()?, last_offence: since } }
        }
        Command::ForgetMemory { .. } => Command::ForgetMemory { source },
        Command::SetBypass { .. } => {
            Command::SetBypass { fact: BypassFact { since, reason: drawn.arbitrary()? } }
        }
        Command::ClearBypass => Command::ClearBypass,
        Command::SetAttackMode { .. } => {
            let fact = AttackModeFact { since, expires: WallTime(drawn.arbitrary()?) };
            Command::SetAttackMode { fact }
        }
        Command::ClearAttackMode => Command::ClearAttackMode,
        Command::SetLevelPin { .. } => {
            let expires = drawn.arbitrary::<Option<u64>>()?.map(WallTime);
            let fact = LevelPinFact { level: drawn.choose_iter(Level::ALL)?, since, expires };
            Command::SetLevelPin { fact }
        }
        Command::ClearLevelPin => Command::ClearLevelPin,
        Command::SetTrial { .. } => {
            let (before, is_undone) = (drawn.arbitrary()?, drawn.arbitrary()?);
            let expires = WallTime(drawn.arbitrary()?);
            Command::SetTrial { fact: TrialFact { since, expires, before, is_undone } }
        }
        Command::UndoTrial => Command::UndoTrial,
        Command::ClearTrial => Command::ClearTrial,
        Command::SetIncident { .. } => {
            let (ports, words): (Vec<u16>, Vec<String>) = (drawn.arbitrary()?, drawn.arbitrary()?);
            let (is_over, packets) = (drawn.arbitrary()?, drawn.arbitrary()?);
            Command::SetIncident {
                id,
                incident: Incident { ports, is_over, ..incident(since, words, packets) },
            }
        }
        Command::SetSyncookies { .. } => Command::SetSyncookies { before: drawn.arbitrary()? },
        Command::ClearSyncookies => Command::ClearSyncookies,
    })
}

/// One of each kind; the last takes back the one before.
fn commands_of_each_kind() -> Vec<Command> {
    let source = PacketSource::of([192, 0, 2, 7].into());
    let prefix: Prefix = "2001:db8::/48".parse().unwrap();
    let (since, expires, reason) = (WallTime(10), Some(WallTime(310)), "scan".to_owned());
    let origin = BanOrigin::Operator;
    let ban = BanFact { id: 1, since, expires, rung: Some(1), origin, reason: reason.clone() };
    let net_ban = BanFact { id: 3, rung: None, ..ban.clone() };
    let allow = AllowFact { id: 2, since, expires, origin: AllowOrigin::Operator, reason: reason.clone() };
    let memory = Memory { rung: 1, last_offence: since };
    vec![
        Command::SetBan { source, fact: ban },
        Command::LiftBan { source },
        Command::SetAllow { prefix, fact: allow },
        Command::LiftAllow { prefix },
        Command::SetNetBan { prefix, fact: net_ban },
        Command::LiftNetBan { prefix },
        Command::SetMemory { source, memory },
        Command::ForgetMemory { source },
        Command::SetBypass { fact: BypassFact { since, reason } },
        Command::ClearBypass,
        Command::SetAttackMode { fact: AttackModeFact { since, expires: WallTime(310) } },
        Command::ClearAttackMode,
        Command::SetLevelPin {
            fact: LevelPinFact { level: Level::Heavy, since, expires: Some(WallTime(310)) },
        },
        Command::ClearLevelPin,
        Command::SetTrial {
            fact: TrialFact {
                since,
                expires: WallTime(310),
                before: "[shield]\n".to_owned(),
                is_undone: false,
            },
        },
        Command::UndoTrial,
        Command::ClearTrial,
        Command::SetIncident { id: 1, incident: incident(since, vec!["syn_rate".to_owned()], 9) },
        Command::SetSyncookies { before: 1 },
        Command::ClearSyncookies,
    ]
}
