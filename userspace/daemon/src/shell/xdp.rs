//! The kernel: program, maps, link.
//!
//! [`Shield`] makes the kernel hold what the coordinator wants: it writes the difference after each decision, and reads
//! everything back when asked, so that a row somebody removed or a program somebody detached heals by itself.

pub mod armed;
pub mod attach;
pub mod candidate;
pub mod handshakes;
pub mod hook;
pub mod object;
pub mod pins;
pub mod probe;
pub mod self_test;
pub mod tables;

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use aya::{
    Ebpf,
    maps::{MapData, RingBuf},
    programs::{ProgramError, TestRun, TestRunAttrs, TestRunOptions},
};
use thiserror::Error;
use tunica_common::policy::{CANDIDATE_BESIDE, CANDIDATE_NONE, Policy};
use tunica_core::{
    desired::{Desired, Tables as Rows},
    id::PacketSource,
    limits::Settings,
    reconcile::{self, Edit},
};

use self::{
    attach::{AttachError, Attachment, Wanted},
    candidate::Candidate,
    hook::{Hook, Mode},
    object::{LoadError, Sizes},
    pins::{Pins, PinsError},
    tables::{TableError, Tables},
};

/// What of the configuration concerns the kernel's objects rather than its rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Interfaces to attach to.
    pub interfaces: Vec<String>,
    /// Modes allowed.
    pub wanted: Wanted,
    /// Where pins go, one directory for each layout and size below it.
    pub root: PathBuf,
    /// Table sizes.
    pub sizes: Sizes,
}

/// What was put right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repairs {
    /// Rows of the ban table.
    pub bans: u64,
    /// Banned ranges.
    pub nets: u64,
    /// Rules of ports.
    pub ports: u64,
    /// Rows of the allow list.
    pub allow: u64,
    /// Own addresses.
    pub own: u64,
    /// Policies.
    pub policy: u64,
    /// Programs attached again, links pinned again.
    pub link: u64,
    /// Differences of the table in nftables.
    pub nft: u64,
}

impl Repairs {
    /// How many there were.
    pub const fn total(self) -> u64 {
        self.bans + self.nets + self.ports + self.allow + self.own + self.policy + self.link + self.nft
    }

    const fn count(&mut self, edit: Edit) {
        match edit {
            Edit::SetBan(..) | Edit::RemoveBan(_) => self.bans += 1,
            Edit::SetNet(..) | Edit::RemoveNet(_) => self.nets += 1,
            Edit::SetPort(..) | Edit::RemovePort(_) => self.ports += 1,
            Edit::SetAllow(..) | Edit::RemoveAllow(_) => self.allow += 1,
            Edit::AddOwn(_) | Edit::RemoveOwn(_) => self.own += 1,
        }
    }
}

/// Why the kernel's tables are not what they should be.
#[derive(Debug, Error)]
#[error("{failed} of {edits} rows could not be written; the first: {first}; the next look tries again")]
pub struct SyncError {
    failed: usize,
    edits: usize,
    #[source]
    first: TableError,
}

/// Why a shield could not be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The directory of the pins.
    #[error(transparent)]
    Pins(#[from] PinsError),
    /// Object or maps.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A map could not be read or written.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The kernel does not say what it loaded.
    #[error("cannot read what the kernel loaded: {0}")]
    Info(#[from] ProgramError),
    /// No randomness for the secret.
    #[error("no random numbers for the sketch's secret: {0}")]
    Random(#[source] io::Error),
    /// The program could not be pinned beside its maps.
    #[error("cannot pin the program at {path}: {source}", path = .path.display())]
    Pin {
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: aya::pin::PinError,
    },
}

/// One interface as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceState {
    /// Its name.
    pub name: String,
    /// What the kernel says of its hook; `None` if there is no such interface or the kernel did not answer.
    pub hook: Option<Hook>,
    /// Whether the program on the hook is the one this daemon loaded.
    pub is_ours: bool,
    /// Identity of our link.
    pub link_id: Option<u32>,
    /// Whether nftables stands in for it.
    pub by_nftables: bool,
    /// Why nothing of ours is attached, or how it differs from the request.
    pub problem: Option<String>,
}

/// What the tables hold.
fn read(tables: &Tables) -> Result<Rows, TableError> {
    Ok(Rows {
        bans: tables.bans()?,
        nets: tables.nets()?,
        ports: tables.ports()?,
        allow: tables.allow()?,
        own: tables.own()?,
    })
}

/// How a frame is run.
pub enum Run<'a> {
    /// The result goes here, and nowhere else.
    Dry(&'a mut [u8]),
    /// As if the interface had received the frame (`BPF_F_TEST_XDP_LIVE_FRAMES`, Linux 5.18).
    Live,
}

/// What came of a frame that was run dry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ran {
    /// What the program returned: an `enum xdp_action` of include/uapi/linux/bpf.h.
    pub action: u32,
    /// How long the result is.
    pub bytes: usize,
}

/// The shield in the kernel.
pub struct Shield {
    ebpf: Ebpf,
    tables: Tables,
    plan: Plan,
    pins: Arc<Pins>,
    directory: PathBuf,
    program_id: u32,
    tag: u64,
    attachments: BTreeMap<String, Attachment>,
    problems: BTreeMap<String, String>,
    has_cookies: bool,
    proofs: Option<RingBuf<MapData>>,
    /// Why handshakes prove nothing.
    without_handshakes: Option<String>,
    /// Interfaces for which nftables stands in.
    stand_ins: Vec<String>,
    candidate: Option<Candidate>,
    /// What this daemon last wrote; the kernel's own truth is read by [`Shield::audit`].
    written: Rows,
}

impl Shield {
    /// Claims the pins and loads program and maps, taking over the maps that an earlier daemon left if they have the same
    /// shape. Attaches nothing.
    ///
    /// # Errors
    /// See [`OpenError`]; what an earlier daemon attached stays attached.
    pub fn open(plan: Plan) -> Result<Self, OpenError> {
        let pins = Arc::new(Pins::claim(&plan.root)?);
        Self::load(plan, pins)
    }

    /// The pins that this shield claimed, for others who pin beside it.
    pub const fn pins(&self) -> &Arc<Pins> {
        &self.pins
    }

    /// Like [`Shield::open`], under the claim that this shield holds, so `plan` must have the same root.
    ///
    /// # Errors
    /// See [`OpenError`]; this shield stays as it is.
    pub fn open_beside(&self, plan: Plan) -> Result<Self, OpenError> {
        Self::load(plan, Arc::clone(&self.pins))
    }

    fn load(plan: Plan, pins: Arc<Pins>) -> Result<Self, OpenError> {
        let directory = pins.directory(&plan.sizes.directory())?;
        let mut ebpf = object::load(plan.sizes, Some(&directory))?;
        let mut tables = Tables::take(&mut ebpf, crate::sys::random_words().map_err(OpenError::Random)?)?;
        tables.repair_filter()?;
        // A candidate that an earlier daemon left is nobody's any more.
        let left = tables.policy()?;
        if left.candidate != CANDIDATE_NONE {
            tables.swap_policy(&Policy { candidate: CANDIDATE_NONE, ..left })?;
        }
        candidate::clear_jumps(&mut tables)?;
        let program = object::program(&mut ebpf)?;
        let info = program.info()?;
        let pin = directory.join(pins::PROGRAM);
        // A pin of the program that went before; bpffs cannot replace one.
        let _ = std::fs::remove_file(&pin);
        program.pin(&pin).map_err(|source| OpenError::Pin { path: pin, source })?;
        let written = read(&tables)?;
        let has_cookies = object::is_loaded(&mut ebpf, object::COOKIE);
        Ok(Self {
            tables,
            pins,
            directory,
            program_id: info.id(),
            tag: info.tag(),
            attachments: BTreeMap::new(),
            problems: BTreeMap::new(),
            has_cookies,
            proofs: handshakes::take_proofs(&mut ebpf),
            without_handshakes: handshakes::attach(&mut ebpf).err().map(|error| error.to_string()),
            ebpf,
            stand_ins: Vec::new(),
            candidate: None,
            plan,
            written,
        })
    }

    /// What this shield was opened with.
    pub const fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Whether the program could be attached to an interface that is not in the plan: it exists and its hook is free, or
    /// holds the program already because the interface was given another name.
    ///
    /// # Errors
    /// [`AttachError`] says why not. Whether the driver can do it shows only when it is tried.
    pub fn admit(&self, name: &str) -> Result<(), AttachError> {
        let interface = || name.to_owned();
        let hook = hook::read(name)
            .map_err(|source| AttachError::Read { interface: interface(), source })?
            .ok_or_else(|| AttachError::NoInterface { interface: interface() })?;
        if hook.mode == Mode::None || hook.program_id == Some(self.program_id) {
            return Ok(());
        }
        Err(attach::occupied(hook, &self.plan.root, name))
    }

    /// Removes the pinned maps of other sizes and layouts, unless a link is pinned beside them.
    pub fn sweep(&self) {
        pins::sweep(&self.plan.root, &self.directory);
    }

    /// Detaches from every interface that is not in `keep`. An interface that has another name now is then free to be
    /// attached to by that name.
    pub fn release(&mut self, keep: &[String]) {
        let held = std::mem::take(&mut self.attachments);
        let (kept, gone) = held.into_iter().partition(|(name, _)| keep.contains(name));
        self.attachments = kept;
        self.detach(gone);
    }

    /// Changes interfaces and modes; [`Shield::follow`] then acts on it. Maps and pins stay, so `plan` must have the same
    /// sizes and root.
    pub fn set_plan(&mut self, plan: Plan) {
        self.release(&plan.interfaces);
        self.problems.retain(|name, _| plan.interfaces.contains(name));
        self.plan = plan;
    }

    /// The maps.
    pub const fn tables(&self) -> &Tables {
        &self.tables
    }

    /// The maps, to beat the heart or to take the events.
    pub const fn tables_mut(&mut self) -> &mut Tables {
        &mut self.tables
    }

    /// The ring buffer, once.
    pub fn take_events(&mut self) -> Option<RingBuf<MapData>> {
        self.tables.take_events()
    }

    /// Identity of the program this daemon loaded.
    pub const fn program_id(&self) -> u32 {
        self.program_id
    }

    /// Notes for which interfaces nftables stands in, to be told by [`Shield::interfaces`].
    pub fn set_stand_ins(&mut self, interfaces: &[String]) {
        interfaces.clone_into(&mut self.stand_ins);
    }

    /// Whether the kernel took the program that answers with cookies.
    pub const fn has_cookies(&self) -> bool {
        self.has_cookies
    }

    /// The proofs that handshakes make, once.
    pub fn take_proofs(&mut self) -> Option<RingBuf<MapData>> {
        self.proofs.take()
    }

    /// Why handshakes prove nothing; `None` if they do.
    pub fn without_handshakes(&self) -> Option<&str> {
        self.without_handshakes.as_deref()
    }

    /// Tag of the program this daemon loaded.
    pub const fn tag(&self) -> u64 {
        self.tag
    }

    /// The directory of the pins.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Writes what differs between the last state written and `desired`, then the policy if it changed.
    ///
    /// # Errors
    /// [`SyncError`] after everything that could be written was.
    pub fn sync(&mut self, desired: &Desired, settings: &Settings) -> Result<Repairs, SyncError> {
        let edits = reconcile::diff(&self.written, &desired.tables);
        self.write(&edits, desired, settings)
    }

    /// Like [`Shield::sync`] for a change that touched the bans of these sources and nothing else.
    ///
    /// # Errors
    /// [`SyncError`] after everything that could be written was.
    pub fn sync_bans(
        &mut self,
        sources: &[PacketSource],
        desired: &Desired,
        settings: &Settings,
    ) -> Result<Repairs, SyncError> {
        let keys: Vec<_> = sources.iter().map(|source| source.key()).collect();
        let edits = reconcile::diff_bans(&self.written, &desired.tables, &keys);
        self.write(&edits, desired, settings)
    }

    /// Reads the tables back and writes what differs from `desired`.
    ///
    /// # Errors
    /// [`SyncError`] after everything that could be repaired was.
    pub fn audit(&mut self, desired: &Desired, settings: &Settings) -> Result<Repairs, SyncError> {
        let one = |first| SyncError { failed: 1, edits: 1, first };
        self.written = read(&self.tables).map_err(one)?;
        let edits = reconcile::diff(&self.written, &desired.tables);
        self.write(&edits, desired, settings)
    }

    fn write(
        &mut self,
        edits: &[Edit],
        desired: &Desired,
        settings: &Settings,
    ) -> Result<Repairs, SyncError> {
        let mut repairs = Repairs::default();
        let mut failures = Vec::new();
        if !desired.tables.allow.is_empty()
            && let Err(error) = self.read_allow_list()
        {
            failures.push(error);
        }
        for edit in edits {
            let done = match *edit {
                Edit::RemoveOwn(address) => self.tables.remove_own(address),
                Edit::SetAllow(key, entry) => self.tables.set_allow(key, &entry),
                Edit::RemoveBan(key) => self.tables.remove_ban(&key),
                Edit::RemoveNet(key) => self.tables.remove_net(key),
                Edit::SetNet(key, entry) => self.tables.set_net(key, &entry),
                Edit::RemovePort(key) => self.tables.remove_port(key),
                Edit::SetPort(key, rule) => self.tables.set_port(key, &rule),
                Edit::SetBan(key, entry) => self.tables.set_ban(&key, &entry),
                Edit::RemoveAllow(key) => self.tables.remove_allow(key),
                Edit::AddOwn(address) => self.tables.add_own(address),
            };
            match done {
                Ok(()) => {
                    self.written.apply(*edit);
                    repairs.count(*edit);
                }
                Err(error) => failures.push(error),
            }
        }
        match self.write_policy(desired, settings) {
            Ok(changed) => repairs.policy = u64::from(changed),
            Err(error) => failures.push(error),
        }
        if let Some(candidate) = &mut self.candidate
            && let Err(error) = candidate.follow(desired)
        {
            failures.push(error);
        }
        let failed = failures.len();
        match failures.into_iter().next() {
            None => Ok(repairs),
            Some(first) => Err(SyncError { failed, edits: edits.len() + 1, first }),
        }
    }

    /// Makes the program look at the allow list from now on, before the first ban is written that an entry of it excuses.
    fn read_allow_list(&mut self) -> Result<(), TableError> {
        let current = self.tables.policy()?;
        if current.allow_present != 0 {
            return Ok(());
        }
        self.tables.swap_policy(&Policy { allow_present: 1, ..current })
    }

    /// Puts the policy in force that `desired` and `settings` ask for. Only a change of rules takes a new generation.
    fn write_policy(&mut self, desired: &Desired, settings: &Settings) -> Result<bool, TableError> {
        let current = self.tables.policy()?;
        let mut next = desired.policy(settings, current.generation, self.tables.secret());
        next.candidate = if self.candidate.is_some() { CANDIDATE_BESIDE } else { CANDIDATE_NONE };
        if next == current {
            return Ok(false);
        }
        let same_rules = Policy {
            own_filter: current.own_filter,
            bans_present: current.bans_present,
            nets_present: current.nets_present,
            ports_present: current.ports_present,
            cookies: current.cookies,
            allow_present: current.allow_present,
            candidate: current.candidate,
            ..next
        } == current;
        if !same_rules {
            // 0 marks maps that were never used.
            next.generation = current.generation.wrapping_add(1).max(1);
        }
        self.tables.swap_policy(&next)?;
        Ok(true)
    }

    /// Attaches to every configured interface, or detaches from all; detaches from interfaces that are no longer configured.
    /// Returns how many links it had to make, replace or pin again.
    pub fn follow(&mut self, attached: bool) -> u64 {
        if !attached {
            return self.detach_all();
        }
        let mut changes = 0;
        for name in &self.plan.interfaces {
            if let Some(attachment) = self.attachments.remove(name) {
                match keep(attachment, self.program_id) {
                    Ok((attachment, was_pinned)) => {
                        changes += u64::from(!was_pinned);
                        self.attachments.insert(name.clone(), attachment);
                        continue;
                    }
                    Err(Some(error)) => note_problem(&mut self.problems, name, &error),
                    Err(None) => {}
                }
            }
            match attach::attach(&mut self.ebpf, &self.plan.root, &self.directory, name, self.plan.wanted) {
                Ok(attachment) => {
                    changes += 1;
                    tracing::info!(message_id = "shield_attached", interface = %name, "the shield is attached");
                    self.problems.remove(name);
                    self.attachments.insert(name.clone(), attachment);
                }
                Err(error) => note_problem(&mut self.problems, name, &error),
            }
        }
        pins::detach_others(&self.plan.root, &self.plan.interfaces);
        if self.problems.is_empty() {
            self.sweep();
        }
        changes
    }

    fn detach_all(&mut self) -> u64 {
        let all = std::mem::take(&mut self.attachments);
        let changes = self.detach(all);
        // Links that an earlier daemon left.
        pins::detach_others(&self.plan.root, &[]);
        changes
    }

    fn detach(&mut self, attachments: BTreeMap<String, Attachment>) -> u64 {
        let mut changes = 0;
        for (name, attachment) in attachments {
            match attachment.detach() {
                Ok(()) => {
                    changes += 1;
                    self.problems.remove(&name);
                    tracing::warn!(message_id = "shield_detached", interface = %name, "the shield is detached");
                }
                Err(error) => {
                    self.problems.insert(
                        name,
                        format!("cannot remove the pin of the link: {error}; the shield is still attached"),
                    );
                }
            }
        }
        changes
    }

    /// Runs the live program with one frame, as if it had come in by the interface of this index. It counts the frame and
    /// remembers it like any other.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn run(&mut self, frame: &[u8], interface: u32, run: Run<'_>) -> Result<Ran, LoadError> {
        // `struct xdp_md` in include/uapi/linux/bpf.h: where data begins, ends, and has its metadata; the interface, its
        // queue, and where it would go.
        let length = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        let context: Vec<u8> =
            [0, length, 0, interface, 0, 0].into_iter().flat_map(u32::to_ne_bytes).collect();
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.ctx_in = Some(&context);
        match run {
            Run::Dry(answer) => options.data_out = Some(answer),
            Run::Live => options.attrs = TestRunAttrs::new().xdp_live_frames(1),
        }
        let ran = object::program(&mut self.ebpf)?
            .test_run(options)
            .map_err(|source| LoadError::Run { source: Box::new(source) })?;
        Ok(Ran { action: ran.return_value, bytes: ran.data_size_out as usize })
    }

    /// Whether the hook of this interface runs our program.
    pub fn is_on(&self, name: &str) -> bool {
        hook::read(name).is_ok_and(|hook| hook.is_some_and(|hook| hook.program_id == Some(self.program_id)))
    }

    /// Every configured interface as it is now.
    pub fn interfaces(&self) -> Vec<InterfaceState> {
        self.plan.interfaces.iter().map(|name| self.interface(name)).collect()
    }

    /// What every configured interface is like now, whatever is attached to it; `None` for one that is not there.
    pub fn places(&self) -> Vec<Option<Hook>> {
        let place = |hook: Hook| Hook { mode: Mode::None, program_id: None, ..hook };
        self.plan.interfaces.iter().map(|name| hook::read(name).ok().flatten().map(place)).collect()
    }

    /// Whether something that was attached is so no more.
    pub fn has_lost(&self) -> bool {
        self.attachments.keys().any(|name| !holds(name, self.program_id))
    }

    fn interface(&self, name: &str) -> InterfaceState {
        let (hook, unread) = match hook::read(name) {
            Ok(hook) => (hook, None),
            Err(error) => (None, Some(format!("the kernel does not tell what is attached: {error}"))),
        };
        let is_ours = hook.is_some_and(|hook| hook.program_id == Some(self.program_id));
        let is_slower = is_ours
            && self.plan.wanted == Wanted::Native
            && hook.is_some_and(|hook| matches!(hook.mode, Mode::Generic | Mode::Multiple));
        let differs = is_slower.then(|| {
            "attached in generic mode although native was asked for; `tunica bypass on` and `off` attach anew".to_owned()
        });
        InterfaceState {
            name: name.to_owned(),
            hook,
            is_ours,
            by_nftables: hook.is_some() && !is_ours && self.stand_ins.iter().any(|stand_in| stand_in == name),
            link_id: self.attachments.get(name).and_then(Attachment::link_id),
            problem: unread.or_else(|| self.problems.get(name).cloned()).or(differs),
        }
    }
}

/// The attachment, if its hook still runs our program, and whether it was still pinned. `Err(None)`: the hook lost it.
fn keep(attachment: Attachment, program_id: u32) -> Result<(Attachment, bool), Option<AttachError>> {
    if !holds(attachment.interface(), program_id) {
        return Err(None);
    }
    if attachment.is_pinned() {
        return Ok((attachment, true));
    }
    attachment.pin_again().map(|attachment| (attachment, false)).map_err(Some)
}

/// Whether the hook of this interface runs this program.
fn holds(interface: &str, program_id: u32) -> bool {
    hook::read(interface).is_ok_and(|hook| hook.is_some_and(|hook| hook.program_id == Some(program_id)))
}

fn note_problem(problems: &mut BTreeMap<String, String>, name: &str, error: &AttachError) {
    let text = error.to_string();
    // Said once, not every 30 s.
    if problems.get(name) != Some(&text) {
        tracing::error!(message_id = "shield_attach_failed", interface = %name, "{text}");
    }
    problems.insert(name.to_owned(), text);
}
