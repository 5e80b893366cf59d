//! The ledger as rows of redb tables: one row a fact, its key the text of the source or range, its value the fact's
//! JSON form.
//!
//! Keys and values are byte strings to redb, because redb panics where a text column holds no text.

use std::{collections::BTreeMap, fmt::Display, io, str::FromStr};

use redb::{
    Database, Durability, ReadableDatabase, ReadableTable, TableDefinition, TableError, TableHandle,
    WriteTransaction,
};
use serde::{Serialize, de::DeserializeOwned};
use tunica_core::ledger::Ledger;

use super::SCHEMA;

type Rows = TableDefinition<'static, &'static [u8], &'static [u8]>;

const META: Rows = TableDefinition::new("meta");
const BANS: Rows = TableDefinition::new("bans");
const NETS: Rows = TableDefinition::new("nets");
const ALLOWS: Rows = TableDefinition::new("allows");
const MEMORIES: Rows = TableDefinition::new("memories");
const INCIDENTS: Rows = TableDefinition::new("incidents");
const SINGLES: Rows = TableDefinition::new("singles");

const KEY_SCHEMA: &str = "schema";
const KEY_BYPASS: &str = "bypass";
const KEY_ATTACK_MODE: &str = "attack_mode";
const KEY_LEVEL_PIN: &str = "level_pin";
const KEY_NEXT_ID: &str = "next_id";
const KEY_TRIAL: &str = "trial";
const KEY_SYNCOOKIES: &str = "syncookies_before";

/// Why a database is not read.
#[derive(Debug)]
pub enum LoadError {
    /// What it holds is no ledger; in a few words why.
    Damaged(String),
    /// It has a later schema.
    NewerSchema(u32),
    /// It could not be read now; another time it may be.
    Storage(redb::Error),
}

impl<E: Into<redb::Error>> From<E> for LoadError {
    fn from(error: E) -> Self {
        let error = error.into();
        if is_damage(&error) { Self::Damaged(error.to_string()) } else { Self::Storage(error) }
    }
}

/// Whether the error lies in what the file holds, and not in reaching it.
fn is_damage(error: &redb::Error) -> bool {
    if let redb::Error::Io(error) = error {
        return matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData);
    }
    matches!(
        error,
        redb::Error::Corrupted(_)
            | redb::Error::UpgradeRequired(_)
            | redb::Error::TableDoesNotExist(_)
            | redb::Error::TableTypeMismatch { .. }
            | redb::Error::TableIsMultimap(_)
            | redb::Error::TypeDefinitionChanged { .. }
            | redb::Error::UnorderedKey
    )
}

/// Makes the tables of an empty ledger.
///
/// # Errors
/// When the database cannot be written.
pub fn initialise(database: &Database) -> Result<(), redb::Error> {
    let transaction = begin(database)?;
    put(&mut transaction.open_table(META)?, KEY_SCHEMA, &SCHEMA)?;
    put(&mut transaction.open_table(SINGLES)?, KEY_NEXT_ID, &Ledger::default().next_id)?;
    for table in [BANS, NETS, ALLOWS, MEMORIES, INCIDENTS] {
        transaction.open_table(table)?;
    }
    transaction.commit()?;
    Ok(())
}

/// Fails unless the database has the schema that this code knows.
pub(super) fn check_schema(database: &impl ReadableDatabase) -> Result<(), LoadError> {
    let table = match database.begin_read()?.open_table(META) {
        Err(TableError::TableDoesNotExist(_)) => {
            return Err(LoadError::Damaged("no table `meta`".to_owned()));
        }
        table => table?,
    };
    let found: u32 = get(&table, META, KEY_SCHEMA)?
        .ok_or_else(|| LoadError::Damaged("no schema number in table `meta`".to_owned()))?;
    match found {
        SCHEMA => Ok(()),
        0 => Err(LoadError::Damaged("schema number 0 in table `meta`".to_owned())),
        newer => Err(LoadError::NewerSchema(newer)),
    }
}

/// Reads every fact.
///
/// # Errors
/// [`LoadError`]; what it says names no address.
pub fn load(database: &impl ReadableDatabase) -> Result<Ledger, LoadError> {
    check_schema(database)?;
    let transaction = database.begin_read()?;
    let singles = transaction.open_table(SINGLES)?;
    // Files made before these facts were known have no such tables; the first commit makes them.
    let nets = match transaction.open_table(NETS) {
        Err(TableError::TableDoesNotExist(_)) => BTreeMap::new(),
        table => load_table(&table?, NETS)?,
    };
    let incidents = match transaction.open_table(INCIDENTS) {
        Err(TableError::TableDoesNotExist(_)) => BTreeMap::new(),
        table => load_table(&table?, INCIDENTS)?,
    };
    Ok(Ledger {
        incidents,
        bans: load_table(&transaction.open_table(BANS)?, BANS)?,
        nets,
        allows: load_table(&transaction.open_table(ALLOWS)?, ALLOWS)?,
        memories: load_table(&transaction.open_table(MEMORIES)?, MEMORIES)?,
        bypass: get(&singles, SINGLES, KEY_BYPASS)?,
        attack_mode: get(&singles, SINGLES, KEY_ATTACK_MODE)?,
        level_pin: get(&singles, SINGLES, KEY_LEVEL_PIN)?,
        trial: get(&singles, SINGLES, KEY_TRIAL)?,
        syncookies_before: get(&singles, SINGLES, KEY_SYNCOOKIES)?,
        next_id: get(&singles, SINGLES, KEY_NEXT_ID)?
            .ok_or_else(|| LoadError::Damaged("no row `next_id` in table `singles`".to_owned()))?,
    })
}

/// Writes the rows in which `before` and `after` differ, durably and all or none.
///
/// # Errors
/// When the database cannot be written.
pub fn write_difference(database: &Database, before: &Ledger, after: &Ledger) -> Result<(), redb::Error> {
    let Ledger {
        bans,
        nets,
        allows,
        memories,
        bypass,
        attack_mode,
        level_pin,
        trial,
        syncookies_before,
        incidents,
        next_id,
    } = after;
    let transaction = begin(database)?;
    write_table(&transaction, BANS, &before.bans, bans)?;
    write_table(&transaction, NETS, &before.nets, nets)?;
    write_table(&transaction, ALLOWS, &before.allows, allows)?;
    write_table(&transaction, MEMORIES, &before.memories, memories)?;
    if before.incidents != *incidents {
        write_table(&transaction, INCIDENTS, &before.incidents, incidents)?;
    }
    let singles = |ledger: &Ledger| {
        let (bypass, trial) = (ledger.bypass.clone(), ledger.trial.clone());
        (ledger.next_id, bypass, trial, ledger.attack_mode, ledger.level_pin, ledger.syncookies_before)
    };
    if singles(before) != singles(after) {
        let mut table = transaction.open_table(SINGLES)?;
        put(&mut table, KEY_NEXT_ID, next_id)?;
        put_or_remove(&mut table, KEY_BYPASS, bypass.as_ref())?;
        put_or_remove(&mut table, KEY_ATTACK_MODE, attack_mode.as_ref())?;
        put_or_remove(&mut table, KEY_LEVEL_PIN, level_pin.as_ref())?;
        put_or_remove(&mut table, KEY_TRIAL, trial.as_ref())?;
        put_or_remove(&mut table, KEY_SYNCOOKIES, syncookies_before.as_ref())?;
    }
    transaction.commit()?;
    Ok(())
}

/// A transaction whose commit is on the disk when it returns.
///
/// Two phases: a file that is damaged later is then reported as damaged, where one phase would fall back to the commit
/// before without a word. No quick repair: after a crash the whole file is checked, which for a ledger takes
/// milliseconds.
fn begin(database: &Database) -> Result<WriteTransaction, redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    transaction.set_two_phase_commit(true);
    Ok(transaction)
}

fn load_table<K, V>(
    table: &impl ReadableTable<&'static [u8], &'static [u8]>,
    definition: Rows,
) -> Result<BTreeMap<K, V>, LoadError>
where
    K: FromStr + Display + Ord,
    V: DeserializeOwned,
{
    let mut facts = BTreeMap::new();
    for row in table.iter()? {
        let (key, value) = row?;
        let key = read_key(key.value()).ok_or_else(|| {
            LoadError::Damaged(format!(
                "a key in table `{}` names no source, range or number",
                definition.name()
            ))
        })?;
        facts.insert(key, read_value(value.value(), definition)?);
    }
    Ok(facts)
}

/// The key behind the text, if that is how the key prints.
fn read_key<K: FromStr + Display>(bytes: &[u8]) -> Option<K> {
    let text = str::from_utf8(bytes).ok()?;
    text.parse().ok().filter(|key: &K| key.to_string() == text)
}

/// Says where the fault is and not what stands there, which may be an address.
fn read_value<V: DeserializeOwned>(bytes: &[u8], definition: Rows) -> Result<V, LoadError> {
    serde_json::from_slice(bytes).map_err(|error| {
        let (table, byte) = (definition.name(), error.column());
        LoadError::Damaged(format!("a row of table `{table}` is unreadable at byte {byte}"))
    })
}

fn get<V: DeserializeOwned>(
    table: &impl ReadableTable<&'static [u8], &'static [u8]>,
    definition: Rows,
    key: &str,
) -> Result<Option<V>, LoadError> {
    let row = table.get(key.as_bytes())?;
    row.map(|value| read_value(value.value(), definition)).transpose()
}

fn write_table<K, V>(
    transaction: &WriteTransaction,
    definition: Rows,
    before: &BTreeMap<K, V>,
    after: &BTreeMap<K, V>,
) -> Result<(), redb::Error>
where
    K: Display + Ord,
    V: Serialize + PartialEq,
{
    let mut table = transaction.open_table(definition)?;
    for key in before.keys().filter(|key| !after.contains_key(key)) {
        table.remove(key.to_string().as_bytes())?;
    }
    for (key, fact) in after.iter().filter(|(key, fact)| before.get(key) != Some(fact)) {
        put(&mut table, &key.to_string(), fact)?;
    }
    Ok(())
}

fn put_or_remove(
    table: &mut redb::Table<'_, &'static [u8], &'static [u8]>,
    key: &str,
    fact: Option<&impl Serialize>,
) -> Result<(), redb::Error> {
    match fact {
        Some(fact) => put(table, key, fact)?,
        None => drop(table.remove(key.as_bytes())?),
    }
    Ok(())
}

fn put(
    table: &mut redb::Table<'_, &'static [u8], &'static [u8]>,
    key: &str,
    fact: &impl Serialize,
) -> Result<(), redb::Error> {
    let value = serde_json::to_vec(fact).map_err(|error| redb::Error::Io(error.into()))?;
    table.insert(key.as_bytes(), value.as_slice())?;
    Ok(())
}
