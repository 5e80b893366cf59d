//! A candidate policy in the kernel: the object loaded once more, with limits, clocks and counters of its own.

use aya::Ebpf;
use tunica_common::policy::{CANDIDATE_JUMPS, JUMP_CANDIDATE, JUMP_COOKIE, JUMP_SEGMENT};
use tunica_core::{candidate, desired::Desired, limits::Settings};

use super::{
    OpenError, Shield, object,
    tables::{TableError, Tables, Total},
};

/// Where the candidate's programs stand among those that are jumped to.
const JUMPS: [u32; 3] = [JUMP_CANDIDATE, CANDIDATE_JUMPS + JUMP_COOKIE, CANDIDATE_JUMPS + JUMP_SEGMENT];

/// A candidate that sees the packets.
pub struct Candidate {
    tables: Tables,
    settings: Settings,
    /// The programs.
    _ebpf: Ebpf,
}

impl Candidate {
    /// What the candidate decided about packets, in the order of [`Tables::totals`].
    ///
    /// # Errors
    /// [`TableError`].
    pub fn totals(&self) -> Result<Vec<Total>, TableError> {
        self.tables.totals()
    }

    /// Has the candidate follow what is known of the host and its bans.
    ///
    /// # Errors
    /// [`TableError`]; the candidate then judges by what was known before.
    pub(super) fn follow(&mut self, desired: &Desired) -> Result<(), TableError> {
        let current = self.tables.policy()?;
        let generation = current.generation.max(1);
        let next = candidate::policy(&self.settings, desired, generation, self.tables.secret());
        if next == current { Ok(()) } else { self.tables.swap_policy(&next) }
    }
}

impl Shield {
    /// The candidate that is tried.
    pub const fn candidate(&self) -> Option<&Candidate> {
        self.candidate.as_ref()
    }

    /// Has `settings` tried on every packet from now on, in place of another candidate if there is one.
    ///
    /// # Errors
    /// [`OpenError`]; there is no candidate then.
    pub fn load_candidate(
        &mut self,
        candidate: Settings,
        desired: &Desired,
        settings: &Settings,
    ) -> Result<(), OpenError> {
        self.drop_candidate(desired, settings)?;
        let loaded = self.try_load_candidate(candidate, desired, settings);
        if loaded.is_err() {
            // Nothing of it may stay.
            self.candidate = None;
            self.write_policy(desired, settings)?;
            clear_jumps(&mut self.tables)?;
        }
        loaded
    }

    fn try_load_candidate(
        &mut self,
        candidate: Settings,
        desired: &Desired,
        settings: &Settings,
    ) -> Result<(), OpenError> {
        self.tables.clear_differences()?;
        let mut ebpf = object::load_candidate(self.plan.sizes, &self.directory)?;
        let mut tables = Tables::take(&mut ebpf, self.tables.secret())?;
        for (key, rule) in candidate::ports(&candidate) {
            tables.set_port(key, &rule)?;
        }
        let mut loaded = Candidate { tables, settings: candidate, _ebpf: ebpf };
        loaded.follow(desired)?;
        self.candidate = Some(loaded);
        self.write_policy(desired, settings)?;
        Ok(())
    }

    /// Ends the trial of a candidate; nothing happens if there is none.
    ///
    /// # Errors
    /// [`TableError`]; a candidate that could not be ended goes on judging, and decides nothing.
    pub fn drop_candidate(&mut self, desired: &Desired, settings: &Settings) -> Result<(), TableError> {
        let Some(candidate) = self.candidate.take() else { return Ok(()) };
        if let Err(error) = self.write_policy(desired, settings) {
            self.candidate = Some(candidate);
            return Err(error);
        }
        clear_jumps(&mut self.tables)
    }
}

/// Takes the candidate's programs away. No policy may name them any more.
pub(super) fn clear_jumps(tables: &mut Tables) -> Result<(), TableError> {
    JUMPS.into_iter().try_for_each(|index| tables.clear_jump(index))
}
