//! nftables, where XDP cannot attach: the table `inet tunica`, made and changed by the real `nft`.
//!
//! Every change is one transaction, so no packet meets half a table. Only that table is named.

mod counters;

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nftables::schema::Nftables;
use thiserror::Error;
use tunica_common::{
    event::tally_slot,
    verdict::{Action, Verdict},
};
use tunica_core::{desired::Desired, limits::Settings, time::Monotime};
use tunica_nft::{Difference, Elements, Listing, Plan, ReadListingError, TABLE, edit, elements, removal};

use crate::shell::xdp::tables::Total;

/// Where distributions install it.
const PLACES: [&str; 4] = ["/usr/sbin/nft", "/sbin/nft", "/usr/local/sbin/nft", "/usr/bin/nft"];
/// How long one call may take. A full table of bans takes about a second on a slow machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why the table is not as it should be.
#[derive(Debug, Error)]
pub enum NftError {
    /// The program is not installed.
    #[error("there is no nft in {}; install the package nftables", PLACES.join(", "))]
    NoProgram,
    /// It cannot be started, or not be spoken to.
    #[error("{}: {source}", program.display())]
    Run {
        /// The program.
        program: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It does not end.
    #[error("nft gave no answer within {} s", PATIENCE.as_secs())]
    Slow,
    /// It, or the kernel, says no.
    #[error("nft refused: {0}")]
    Refused(String),
    /// The transaction has no JSON form.
    #[error("the table has no form in JSON")]
    Write(#[source] serde_json::Error),
    /// Its counters cannot be read.
    #[error("the counters of the table inet {TABLE} cannot be read")]
    Count(#[source] io::Error),
    /// What it printed cannot be read.
    #[error(transparent)]
    Read(#[from] ReadListingError),
}

/// What the table should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// The interfaces that nftables protects; not empty.
    pub interfaces: Vec<String>,
    /// The policy.
    pub settings: Settings,
    /// See [`Plan::ephemeral_low`].
    pub ephemeral_low: u16,
    /// See [`Plan::translates`].
    pub translates: bool,
    /// See [`Plan::drop_invalid`].
    pub drop_invalid: bool,
}

/// The table in the kernel.
#[derive(Debug, Default)]
pub struct Nft {
    applied: Option<Applied>,
    /// Whether this daemon knows that it left no table; an earlier one may have.
    is_known_absent: bool,
    /// What all tables of this daemon have counted, by [`tally_slot`].
    counted: BTreeMap<u32, Counted>,
}

/// Packets of one verdict and action.
#[derive(Debug)]
struct Counted {
    verdict: Verdict,
    action: Action,
    all: Total,
    /// What of it is new since [`Nft::take_new`].
    new: Total,
}

#[derive(Debug)]
struct Applied {
    wish: Wish,
    elements: Elements,
    /// The table as it was read right after.
    listing: Listing,
    /// What each of its counters says of packets.
    actions: BTreeMap<Verdict, Action>,
    /// Its counters as they were read last.
    seen: BTreeMap<Verdict, Total>,
}

impl Nft {
    /// The interfaces that the table in force protects.
    pub fn interfaces(&self) -> &[String] {
        self.applied.as_ref().map_or(&[], |applied| &applied.wish.interfaces)
    }

    /// Puts the table in force, changes in it what changed, or removes it where there is no wish.
    ///
    /// # Errors
    /// See [`NftError`]; the table before stays.
    pub fn follow(&mut self, wish: Option<Wish>, desired: &Desired, now: Monotime) -> Result<(), NftError> {
        let Some(wish) = wish else { return self.remove() };
        let wanted = elements(&desired.tables, now);
        if let Some(applied) = self.applied.as_mut().filter(|applied| applied.wish == wish) {
            let Some(objects) = edit(&applied.elements, &wanted, now) else { return Ok(()) };
            if run(&objects).is_ok() {
                applied.elements = wanted;
                return Ok(());
            }
            // An element that was to go had gone: the whole table says what should be.
        }
        self.apply(wish, wanted, now)
    }

    /// Removes the table.
    ///
    /// # Errors
    /// See [`NftError`]; the table stays.
    pub fn remove(&mut self) -> Result<(), NftError> {
        if self.is_known_absent {
            return Ok(());
        }
        // What comes instead is in force already, so hardly anything is counted between this and the end.
        let _ = self.count();
        match run(&removal()) {
            Ok(_) => {
                if self.applied.take().is_some() {
                    tracing::info!(message_id = "nft_removed", "the table inet {TABLE} is removed");
                }
            }
            // Without the program no daemon can have made the table.
            Err(NftError::NoProgram) if self.applied.is_none() => {}
            Err(error) => return Err(error),
        }
        self.is_known_absent = true;
        Ok(())
    }

    /// Reads the table back and repairs it. Returns what differed.
    ///
    /// # Errors
    /// See [`NftError`].
    pub fn audit(&mut self, now: Monotime) -> Result<Vec<Difference>, NftError> {
        let Some(applied) = self.applied.as_mut() else { return Ok(Vec::new()) };
        // What ended by itself is gone from both.
        applied.elements.retain(|_, ends| ends.is_none_or(|ends| ends > now));
        let found = match list() {
            Ok(found) => found,
            // There is no table to list.
            Err(NftError::Refused(_)) => Listing::default(),
            Err(error) => return Err(error),
        };
        let differences = found.differences(&applied.listing, &applied.elements, now);
        if differences.is_empty() {
            return Ok(differences);
        }
        let is_mended = differences.iter().all(Difference::is_of_elements)
            && edit(&found.elements(&applied.elements), &applied.elements, now)
                .is_some_and(|objects| run(&objects).is_ok());
        if !is_mended {
            let (wish, wanted) = (applied.wish.clone(), applied.elements.clone());
            self.apply(wish, wanted, now)?;
        }
        Ok(differences)
    }

    fn apply(&mut self, wish: Wish, wanted: Elements, now: Monotime) -> Result<(), NftError> {
        let plan = Plan {
            interfaces: &wish.interfaces,
            settings: &wish.settings,
            ephemeral_low: wish.ephemeral_low,
            translates: wish.translates,
            drop_invalid: wish.drop_invalid,
            loopback: &[],
        };
        let _ = self.count();
        run(&plan.transaction(&wanted, now))?;
        self.is_known_absent = false;
        let listing = list()?;
        let interfaces = wish.interfaces.join(", ");
        tracing::info!(
            message_id = "nft_applied",
            interfaces,
            "nftables stands in for the program: the table inet {TABLE} is in force"
        );
        let actions = plan.actions();
        self.applied = Some(Applied { wish, elements: wanted, listing, actions, seen: BTreeMap::new() });
        Ok(())
    }

    /// Reads the table's counters.
    ///
    /// # Errors
    /// [`NftError::Count`].
    pub fn count(&mut self) -> Result<(), NftError> {
        let Some(applied) = self.applied.as_mut() else { return Ok(()) };
        for (name, now) in counters::read(TABLE).map_err(NftError::Count)? {
            let known = applied.actions.iter().find(|(verdict, _)| verdict.label() == name);
            let Some((&verdict, &action)) = known else { continue };
            let before = applied.seen.insert(verdict, now).unwrap_or_default();
            // Somebody who sets them back counts anew.
            let more = |before: u64, now: u64| now.checked_sub(before).unwrap_or(now);
            let counted = self.counted.entry(tally_slot(verdict, action)).or_insert_with(|| Counted {
                verdict,
                action,
                all: Total::default(),
                new: Total::default(),
            });
            for total in [&mut counted.all, &mut counted.new] {
                total.packets = total.packets.saturating_add(more(before.packets, now.packets));
                total.bytes = total.bytes.saturating_add(more(before.bytes, now.bytes));
            }
        }
        Ok(())
    }

    /// Adds what all tables of this daemon have counted to tallies, which are in slot order.
    pub fn add_to(&self, tallies: &mut [Total]) {
        for (slot, counted) in &self.counted {
            if let Some(total) = tallies.get_mut(*slot as usize) {
                total.packets = total.packets.saturating_add(counted.all.packets);
                total.bytes = total.bytes.saturating_add(counted.all.bytes);
            }
        }
    }

    /// What of that is new since the last call.
    pub fn take_new(&mut self) -> Vec<(Verdict, Action, Total)> {
        let new = self
            .counted
            .values_mut()
            .map(|counted| (counted.verdict, counted.action, std::mem::take(&mut counted.new)));
        new.filter(|(.., total)| *total != Total::default()).collect()
    }

    /// Begins at zero with what [`Self::add_to`] adds, as the program's tallies do with new maps.
    pub fn forget_totals(&mut self) {
        for counted in self.counted.values_mut() {
            counted.all = Total::default();
        }
    }
}

fn list() -> Result<Listing, NftError> {
    Ok(Listing::read(&call(&["-j", "list", "table", "inet", TABLE], "")?)?)
}

/// Carries out one transaction.
fn run(objects: &Nftables<'_>) -> Result<String, NftError> {
    call(&["-j", "-f", "-"], &serde_json::to_string(objects).map_err(NftError::Write)?)
}

/// Runs nft with `input` on its standard input, and returns what it printed.
fn call(arguments: &[&str], input: &str) -> Result<String, NftError> {
    let program =
        PLACES.into_iter().map(Path::new).find(|place| place.is_file()).ok_or(NftError::NoProgram)?;
    let fault = |source| NftError::Run { program: program.to_owned(), source };
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(fault)?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    thread::scope(|scope| {
        let writer = scope.spawn(move || stdin.map_or(Ok(()), |mut pipe| pipe.write_all(input.as_bytes())));
        let reader = scope.spawn(move || read_all(stdout));
        let listener = scope.spawn(move || read_all(stderr));
        let status = wait(&mut child).map_err(fault)?;
        let gone = || fault(io::Error::other("a pipe to it broke"));
        let written = writer.join().map_err(|_| gone())?;
        let printed = reader.join().map_err(|_| gone())?.map_err(fault)?;
        let said = listener.join().map_err(|_| gone())?.map_err(fault)?;
        let status = status.ok_or(NftError::Slow)?;
        if !status.success() {
            // Each line names the same place of our text again.
            let first = said.lines().next().unwrap_or("it said nothing").trim();
            return Err(NftError::Refused(first.to_owned()));
        }
        written.map_err(fault)?;
        Ok(printed)
    })
}

fn read_all(pipe: Option<impl Read>) -> io::Result<String> {
    let mut text = String::new();
    if let Some(mut pipe) = pipe {
        pipe.read_to_string(&mut text)?;
    }
    Ok(text)
}

/// Waits for the child's end; kills it and returns `None` if that does not come.
fn wait(child: &mut Child) -> io::Result<Option<std::process::ExitStatus>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(2));
    }
}
