//! The ledger after a crash at any moment of a commit.
//!
//! Every write of a commit is recorded on top of an image of the file. Then the file is put together as a crash may
//! leave it: with the writes up to any one of them, that one torn at any byte, and with any of those that no sync has
//! made durable missing or torn. The ledger must then be the one before the commit or the one after it.

use std::{
    io,
    ops::Bound,
    sync::{Arc, Mutex},
};

use redb::{BackendError, StorageBackend};
use tunica_core::{
    ban_ladder::Memory,
    id::{PacketSource, Prefix},
    ledger::{AllowFact, AllowOrigin, BanFact, BanOrigin, BypassFact},
};

use super::*;

/// What a disk is asked to do.
#[derive(Clone, Debug)]
enum Step {
    Write { offset: usize, data: Vec<u8> },
    SetLength(usize),
    Sync,
}

#[derive(Debug, Default)]
struct Disk {
    bytes: Vec<u8>,
    steps: Vec<Step>,
}

/// A disk that records what it is asked to do. Clones are the same disk.
#[derive(Clone, Debug, Default)]
struct Recorder(Arc<Mutex<Disk>>);

impl Recorder {
    fn of(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(Disk { bytes, steps: Vec::new() })))
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().bytes.clone()
    }

    fn take_steps(&self) -> Vec<Step> {
        std::mem::take(&mut self.0.lock().unwrap().steps)
    }
}

impl StorageBackend for Recorder {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().bytes.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let disk = self.0.lock().unwrap();
        let from = offset as usize;
        let found = disk.bytes.get(from..from + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(found);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.record(Step::SetLength(length as usize));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.record(Step::Sync);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.record(Step::Write { offset: offset as usize, data: data.to_vec() });
        Ok(())
    }

    fn try_lock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<bool, BackendError> {
        Ok(true)
    }

    fn unlock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<(), BackendError> {
        Ok(())
    }
}

impl Recorder {
    fn record(&self, step: Step) {
        let mut disk = self.0.lock().unwrap();
        carry_out(&step, usize::MAX, &mut disk.bytes);
        disk.steps.push(step);
    }
}

/// Does `step`, of a write only the first `most` bytes. A write beyond the end, whose growth a crash lost, is lost.
fn carry_out(step: &Step, most: usize, bytes: &mut Vec<u8>) {
    match step {
        Step::Write { offset, data } => {
            let (from, to) = (*offset, offset + data.len().min(most));
            if let Some(target) = bytes.get_mut(from..to) {
                target.copy_from_slice(&data[..to - from]);
            }
        }
        Step::SetLength(length) => bytes.resize(*length, 0),
        Step::Sync => {}
    }
}

/// Numbers that look random and are the same in every run (Marsaglia's xorshift64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end.max(1) as u64) as usize
    }
}

fn source(number: u32) -> PacketSource {
    PacketSource::of((0x0a00_0000 + number).to_be_bytes().into())
}

fn set_ban(number: u32, id: u32) -> Command {
    let (since, expires) = (WallTime(1_000), Some(WallTime(1_300)));
    let reason = format!("reason {id}");
    Command::SetBan {
        source: source(number),
        fact: BanFact { id, since, expires, rung: Some(1), origin: BanOrigin::Operator, reason },
    }
}

fn net(number: u32) -> Prefix {
    format!("203.0.{number}.0/24").parse().unwrap()
}

fn set_net_ban(number: u32, id: u32) -> Command {
    let reason = format!("reason {id}");
    let (since, origin) = (WallTime(1_000), BanOrigin::Operator);
    let fact = BanFact { id, since, expires: None, rung: None, origin, reason };
    Command::SetNetBan { prefix: net(number), fact }
}

fn set_allow(number: u32, id: u32) -> Command {
    let (origin, reason) = (AllowOrigin::Operator, "office".to_owned());
    let fact = AllowFact { id, since: WallTime(5), expires: None, origin, reason };
    Command::SetAllow { prefix: source(number).prefix(), fact }
}

fn set_memory(number: u32) -> Command {
    Command::SetMemory { source: source(number), memory: Memory { rung: 2, last_offence: WallTime(1_000) } }
}

fn applied(ledger: &Ledger, commands: &[Command]) -> Ledger {
    let mut ledger = ledger.clone();
    for command in commands {
        ledger::apply(&mut ledger, command).unwrap();
    }
    ledger
}

/// A commit that was recorded: the file before it, and every write of it.
struct Recorded {
    image: Vec<u8>,
    steps: Vec<Step>,
    before: Ledger,
    after: Ledger,
}

/// Commits `history`, each alone, and then records the commit of `last`.
fn record(history: &[Vec<Command>], last: &[Command]) -> Recorded {
    let disk = Recorder::default();
    let database = builder().create_with_backend(disk.clone()).unwrap();
    rows::initialise(&database).unwrap();
    let mut file = LedgerFile { path: PathBuf::from("in memory"), database: Some(database) };
    let mut before = Ledger::default();
    for commands in history {
        file.commit(&before, commands).unwrap();
        before = applied(&before, commands);
    }
    let image = disk.bytes();
    disk.take_steps();
    file.commit(&before, last).unwrap();
    Recorded { image, steps: disk.take_steps(), after: applied(&before, last), before }
}

/// The ledger of the file that a crash left behind.
fn opened(image: Vec<u8>) -> Ledger {
    let mut database = builder().create_with_backend(Recorder::of(image)).unwrap();
    check(&mut database).unwrap()
}

/// Where a write is torn: everywhere if it is small, else at both ends, at sector borders and now and then between.
fn tears(length: usize, dice: &mut Dice) -> Vec<usize> {
    if length <= 512 {
        return (0..=length).collect();
    }
    let mut tears: Vec<usize> = (0..=length).step_by(512).flat_map(|at| [at, at + 1]).collect();
    tears.extend((0..8).map(|_| dice.below(length)));
    tears.retain(|at| *at <= length);
    tears
}

/// How often the ledger was the one before, and the one after.
#[derive(Debug, Default)]
struct Seen {
    before: usize,
    after: usize,
}

impl Seen {
    fn count(&mut self, recorded: &Recorded, image: Vec<u8>, what: impl FnOnce() -> String) {
        let ledger = opened(image);
        if ledger == recorded.before {
            self.before += 1;
        } else if ledger == recorded.after {
            self.after += 1;
        } else {
            panic!("neither the ledger before nor the one after: {}", what());
        }
    }
}

fn tear_every_write(recorded: &Recorded, seen: &mut Seen) {
    let mut dice = Dice(7);
    let mut image = recorded.image.clone();
    for (at, step) in recorded.steps.iter().enumerate() {
        if let Step::Write { data, .. } = step {
            for tear in tears(data.len(), &mut dice) {
                let mut torn = image.clone();
                carry_out(step, tear, &mut torn);
                seen.count(recorded, torn, || format!("write {at} torn at byte {tear}"));
            }
        }
        carry_out(step, usize::MAX, &mut image);
    }
    seen.count(recorded, image, || "every write".to_owned());
}

/// A disk may do in any order what it was asked between two syncs, in whole sectors.
fn lose_unsynced_writes(recorded: &Recorded, rounds: usize, seen: &mut Seen) {
    let mut dice = Dice(11);
    for round in 0..rounds {
        let crash = dice.below(recorded.steps.len() + 1);
        let begun = &recorded.steps[..crash];
        let synced = begun.iter().rposition(|step| matches!(step, Step::Sync)).unwrap_or(0);
        let mut image = recorded.image.clone();
        for (at, step) in begun.iter().enumerate() {
            let most = match (at < synced, step) {
                (true, _) | (false, Step::Sync) => usize::MAX,
                // The length is changed by the file system's journal, in order and as a whole.
                (false, Step::SetLength(_)) => usize::MAX,
                (false, Step::Write { data, .. }) => match dice.below(3) {
                    0 => 0,
                    1 => dice.below(data.len() / 512 + 1) * 512,
                    _ => usize::MAX,
                },
            };
            carry_out(step, most, &mut image);
        }
        seen.count(recorded, image, || format!("round {round}, crash before step {crash}"));
    }
}

fn small() -> Recorded {
    let history = [
        vec![set_ban(1, 1), set_memory(1)],
        vec![set_allow(2, 2)],
        vec![set_ban(3, 3), set_memory(3)],
        vec![set_net_ban(1, 4)],
        vec![Command::LiftBan { source: source(1) }],
    ];
    let bypass = BypassFact { since: WallTime(9), reason: "maintenance".to_owned() };
    let last = [
        set_ban(4, 5),
        set_net_ban(2, 6),
        Command::LiftNetBan { prefix: net(1) },
        set_memory(4),
        Command::LiftBan { source: source(3) },
        Command::ForgetMemory { source: source(1) },
        Command::LiftAllow { prefix: source(2).prefix() },
        Command::SetBypass { fact: bypass },
        Command::SetSyncookies { before: 1 },
    ];
    record(&history, &last)
}

#[test]
fn a_torn_write_leaves_the_ledger_before_or_after() {
    let recorded = small();
    let mut seen = Seen::default();
    tear_every_write(&recorded, &mut seen);
    assert!(seen.before > 100 && seen.after > 100, "{seen:?}");
}

#[test]
fn writes_that_no_sync_made_durable_may_be_lost() {
    let recorded = small();
    let mut seen = Seen::default();
    lose_unsynced_writes(&recorded, 2_000, &mut seen);
    assert!(seen.before > 100 && seen.after > 100, "{seen:?}");
}

#[test]
fn a_commit_that_grows_the_file_is_no_different() {
    let many: Vec<Command> = (0..12_000).map(|number| set_ban(number, number + 1)).collect();
    let recorded = record(&[vec![set_memory(1)]], &many);
    assert!(recorded.steps.iter().any(|step| matches!(step, Step::SetLength(_))), "the file grew");
    let mut seen = Seen::default();
    lose_unsynced_writes(&recorded, 100, &mut seen);
    // One tear in each twentieth write, and every moment around a change of length.
    let mut dice = Dice(13);
    let mut image = recorded.image.clone();
    for (at, step) in recorded.steps.iter().enumerate() {
        let tear = match step {
            Step::Write { data, .. } => (dice.below(20) == 0).then(|| dice.below(data.len())),
            Step::SetLength(_) | Step::Sync => Some(0),
        };
        if let Some(tear) = tear {
            let mut torn = image.clone();
            carry_out(step, tear, &mut torn);
            seen.count(&recorded, torn, || format!("step {at} torn at byte {tear}"));
        }
        carry_out(step, usize::MAX, &mut image);
    }
    assert!(seen.before > 0 && seen.after > 0, "{seen:?}");
}

#[test]
fn a_crash_while_the_file_is_repaired_changes_nothing() {
    let recorded = small();
    let mut image = recorded.image.clone();
    let mut seen = Seen::default();
    for step in &recorded.steps {
        carry_out(step, 100, &mut image);
        let disk = Recorder::of(image.clone());
        let mut database = builder().create_with_backend(disk.clone()).unwrap();
        check(&mut database).unwrap();
        let repair = Recorded {
            image: image.clone(),
            steps: disk.take_steps(),
            before: recorded.before.clone(),
            after: recorded.after.clone(),
        };
        lose_unsynced_writes(&repair, 50, &mut seen);
        carry_out(step, usize::MAX, &mut image);
    }
    assert!(seen.before > 0 && seen.after > 0, "{seen:?}");
}
