//! A shield loaded for a test: the real program in the real kernel, with maps of its own, attached to nothing.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use aya::{
    Ebpf,
    maps::{MapData, RingBuf},
    programs::{TestRun, TestRunAttrs, TestRunOptions, TestRunResult},
};
use tunica_common::{
    event::{Event, tally_slot},
    keys::{ALLOW_BY_OPERATOR, AddressBytes, AllowEntry, BAN_DYNAMIC, BanEntry},
    policy::{DEFAULT_ALLOW, DEFAULT_BANS, Policy},
    verdict::{Action, Verdict},
};
use tunica_core::id::PacketSource;
use tunicad::{
    shell::xdp::{
        object::{self, Sizes},
        tables::{Tables, Total},
    },
    sys::monotonic_ns,
};

use crate::{reference::World, rows::Row};

/// What the program returns for a packet that is dropped (`XDP_DROP`, include/uapi/linux/bpf.h).
const XDP_DROP: u32 = 1;
/// What it returns for any other (`XDP_PASS`).
const XDP_PASS: u32 = 2;

/// The secret of test shields: fixed, so that a failure repeats.
pub const SECRET: [u64; 2] = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];

/// A loaded shield.
pub struct Shield {
    ebpf: Ebpf,
    /// Its maps.
    pub tables: Tables,
    events: RingBuf<MapData>,
    totals: Vec<Total>,
    generation: u32,
}

impl Shield {
    /// Loads the embedded object.
    ///
    /// # Errors
    /// If this is not root, or the kernel refuses.
    pub fn load() -> Result<Self> {
        Self::load_sized(Sizes { bans: DEFAULT_BANS as u32, allow: DEFAULT_ALLOW as u32 })
    }

    /// Loads the embedded object with tables of these sizes.
    ///
    /// # Errors
    /// If this is not root, or the kernel refuses.
    pub fn load_sized(sizes: Sizes) -> Result<Self> {
        ensure!(nix::unistd::geteuid().is_root(), "loading a BPF program needs root: run the tests as root");
        let mut ebpf = object::load(sizes, None)?;
        let mut tables = Tables::take(&mut ebpf, SECRET)?;
        let events = tables.take_events().context("events were taken already")?;
        let totals = tables.totals()?;
        Ok(Self { ebpf, tables, events, totals, generation: 0 })
    }

    /// Makes the maps say what `world` says. Rows of earlier worlds go.
    ///
    /// # Errors
    /// If a map cannot be written.
    pub fn set(&mut self, world: &World) -> Result<()> {
        for key in self.tables.bans()?.into_keys() {
            self.tables.remove_ban(&key)?;
        }
        for key in self.tables.allow()?.into_keys() {
            self.tables.remove_allow(key)?;
        }
        for address in self.tables.own()? {
            self.tables.remove_own(address)?;
        }
        let now = monotonic_ns()?;
        for (source, ban) in &world.bans {
            let entry = BanEntry {
                expires_ns: if ban.is_expired { 1 } else { now + 3_600_000_000_000 },
                ban_id: 1,
                flags: if ban.is_dynamic { BAN_DYNAMIC } else { 0 },
            };
            self.tables.set_ban(&source.key(), &entry)?;
        }
        for prefix in &world.allow {
            let entry = AllowEntry { origin: ALLOW_BY_OPERATOR, allow_id: 1 };
            self.tables.set_allow(prefix.kernel_key(), &entry)?;
        }
        for address in &world.own {
            self.tables.add_own(address_bytes(*address))?;
        }
        self.tables.beat(if world.is_stale { 1 } else { now })?;
        let policy = self.policy(world);
        self.tables.swap_policy(&policy)?;
        Ok(())
    }

    fn policy(&mut self, world: &World) -> Policy {
        self.generation += 1;
        let mask = |verdicts: &std::collections::BTreeSet<Verdict>| {
            verdicts.iter().fold(0, |mask, v| mask | v.bit())
        };
        Policy {
            secret: SECRET,
            sanity_mask: mask(&world.sanity),
            uninspected_drop_mask: mask(&world.drop_uninspected),
            own_filter: self.tables.own_filter(),
            // A machine that has just started has no beat of 30 s ago.
            stale_after_ns: if world.is_stale { 1 } else { 30_000_000_000 },
            event_interval_ns: 0,
            generation: self.generation,
            mode: world.mode.number(),
            on_stale: world.on_stale.number(),
            syn_cost_ticks: world.syn.map_or(0, |limit| limit.cost_ticks),
            syn_tolerance_ticks: world.syn.map_or(0, |limit| limit.tolerance_ticks),
            bans_present: u32::from(!world.bans.is_empty()),
            allow_present: u32::from(!world.allow.is_empty()),
            reserved: 0,
        }
    }

    /// Number of the policy in force.
    pub const fn generation(&self) -> u32 {
        self.generation
    }

    /// Runs one frame and returns what it was counted as, and the XDP action returned.
    ///
    /// # Errors
    /// If the kernel refuses the run, or not exactly one tally moved by one.
    pub fn run(&mut self, frame: &[u8]) -> Result<(Verdict, Action, u32)> {
        let result = self.repeat(frame, 1)?;
        let after = self.tables.totals()?;
        let before = std::mem::replace(&mut self.totals, after);
        let mut moved = Vec::new();
        for verdict in Verdict::ALL {
            for action in Action::ALL {
                let slot = tally_slot(*verdict, action) as usize;
                let (now, then) = (self.totals.get(slot).copied(), before.get(slot).copied());
                let packets = now.unwrap_or_default().packets - then.unwrap_or_default().packets;
                moved.extend(std::iter::repeat_n(
                    (*verdict, action),
                    packets.try_into().unwrap_or(usize::MAX),
                ));
            }
        }
        let [(verdict, action)] = moved.as_slice() else {
            anyhow::bail!("one packet moved {} tallies: {moved:?}", moved.len());
        };
        Ok((*verdict, *action, result.return_value))
    }

    /// Runs a row of the table and says how the outcome differs from what the row expects, if it does.
    ///
    /// # Errors
    /// As [`Shield::set`] and [`Shield::run`].
    pub fn fault(&mut self, row: &Row) -> Result<Option<String>> {
        self.set(&row.world)?;
        if row.before > 0 {
            self.repeat(&row.frame, row.before)?;
        }
        self.settle()?;
        let (verdict, action, returned) = self.run(&row.frame)?;
        let expect_returned = if row.expect.1 == Action::Drop { XDP_DROP } else { XDP_PASS };
        let is_right = (verdict, action) == row.expect && returned == expect_returned;
        Ok((!is_right).then(|| {
            format!("{}: {verdict:?} {action:?} returned {returned}, not {:?}", row.name, row.expect)
        }))
    }

    /// How many packets ended so.
    ///
    /// # Errors
    /// If a map cannot be read, or lacks this tally.
    pub fn packets(&self, verdict: Verdict, action: Action) -> Result<u64> {
        let totals = self.tables.totals()?;
        let total = totals.get(tally_slot(verdict, action) as usize).context("the tallies lack a verdict")?;
        Ok(total.packets)
    }

    /// Runs one frame `times` times without looking at what it was counted as.
    ///
    /// # Errors
    /// If the kernel refuses the run.
    pub fn repeat(&mut self, frame: &[u8], times: u32) -> Result<TestRunResult> {
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.repeat = times;
        Ok(object::program(&mut self.ebpf)?.test_run(options)?)
    }

    /// Sends `times` live frames through the program (`BPF_F_TEST_XDP_LIVE_FRAMES`).
    ///
    /// # Errors
    /// If the kernel refuses the run.
    pub fn live(&mut self, frame: &[u8], times: u32) -> Result<TestRunResult> {
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.repeat = times;
        options.attrs = TestRunAttrs::new().xdp_live_frames(64);
        Ok(object::program(&mut self.ebpf)?.test_run(options)?)
    }

    /// Takes every event out of the ring buffer.
    ///
    /// # Errors
    /// If an event has the wrong size.
    pub fn events(&mut self) -> Result<Vec<Event>> {
        let mut events = Vec::new();
        while let Some(item) = self.events.next() {
            let event = zerocopy::FromBytes::read_from_bytes(&item)
                .map_err(|_| anyhow::anyhow!("an event of {} bytes", item.len()))?;
            events.push(event);
        }
        Ok(events)
    }

    /// Reads every tally anew, so that the next [`Shield::run`] counts from here.
    ///
    /// # Errors
    /// If a map cannot be read.
    pub fn settle(&mut self) -> Result<()> {
        self.totals = self.tables.totals()?;
        Ok(())
    }

    /// The cells of a source in the SYN sketch.
    ///
    /// # Errors
    /// If a map cannot be read.
    pub fn cells(&self, source: PacketSource) -> Result<Vec<u32>> {
        Ok(self.tables.cells(&source.key())?)
    }

    /// The kernel object, for attaching.
    pub const fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }
}

/// An address as the maps key it.
pub fn address_bytes(address: IpAddr) -> AddressBytes {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}
