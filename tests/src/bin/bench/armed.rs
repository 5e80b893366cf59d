//! The shield as it stands on a defended host: default limits, its own address known, bans by evidence, a live daemon.

use std::{
    fmt,
    net::Ipv4Addr,
    os::fd::{AsFd, OwnedFd},
};

use anyhow::{Context, Result, bail};
use aya::{
    Ebpf,
    maps::{MapData, RingBuf},
};
use tunica_common::{
    event::tally_slot,
    gcra::Limit,
    keys::{BAN_DYNAMIC, BanEntry},
    policy::{MODE_ENFORCE, Policy, STALE_KEEP_LIMITS},
    verdict::{Action, Class, Verdict},
};
use tunica_core::id::PacketSource;
use tunica_tests::{shield::address_bytes, sys::bpf::with_capabilities};
use tunicad::{
    shell::xdp::{object, tables::Tables},
    sys::{monotonic_ns, random_words},
};
use zerocopy::FromZeros;

/// The daemon's unit file, which says what the program is loaded with.
const UNIT: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/tunicad.service"));

/// With which capabilities the program is loaded. They decide how it is compiled: without CAP_PERFMON the verifier adds
/// instructions against speculative execution (Spectre).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rights {
    /// What the daemon's unit grants.
    Unit,
    /// All that root has.
    Root,
}

/// Names of the capabilities that the unit grants.
///
/// # Errors
/// When the unit file does not say.
pub(crate) fn granted() -> Result<Vec<&'static str>> {
    let line = UNIT.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    Ok(line.context("the unit grants no capability")?.split_whitespace().collect())
}

/// The address that the shield defends, which is the destination of every frame of the benchmark.
pub(crate) const OWN: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// A capability's number (include/uapi/linux/capability.h).
fn number_of(capability: &str) -> Result<u32> {
    match capability {
        "CAP_NET_ADMIN" => Ok(12),
        "CAP_PERFMON" => Ok(38),
        "CAP_BPF" => Ok(39),
        other => bail!("the unit grants {other}, whose number the benchmark does not know"),
    }
}

/// A loaded shield with maps of its own.
pub(crate) struct Armed {
    ebpf: Ebpf,
    tables: Tables,
    events: RingBuf<MapData>,
}

impl fmt::Debug for Armed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Armed").finish_non_exhaustive()
    }
}

impl Armed {
    /// Loads the object and bans these sources for an hour.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn load(
        object: &[u8],
        rights: Rights,
        banned: impl Iterator<Item = PacketSource>,
    ) -> Result<Self> {
        let secret = random_words().context("drawing a secret")?;
        let load = || -> Result<(Ebpf, Tables)> {
            let mut ebpf = Ebpf::load(object)?;
            object::program(&mut ebpf)?.load()?;
            let tables = Tables::take(&mut ebpf, secret)?;
            Ok((ebpf, tables))
        };
        let (ebpf, mut tables) = match rights {
            Rights::Unit => {
                let granted = granted()?.into_iter().map(number_of).collect::<Result<Vec<_>>>()?;
                with_capabilities(&granted, load).context("giving up capabilities")??
            }
            Rights::Root => load()?,
        };
        let events = tables.take_events().context("events were taken already")?;
        let entry =
            BanEntry { expires_ns: monotonic_ns()? + 3_600_000_000_000, ban_id: 1, flags: BAN_DYNAMIC };
        let mut bans_present = 0;
        for source in banned {
            tables.set_ban(&source.key(), &entry)?;
            bans_present = 1;
        }
        tables.add_own(address_bytes(OWN.into()))?;
        let limit = Limit::new(10, 20).context("the default SYN limit")?;
        let sanity = Verdict::ALL.iter().filter(|verdict| verdict.class() == Class::Sanity);
        tables.swap_policy(&Policy {
            secret,
            sanity_mask: sanity.fold(0, |mask, verdict| mask | verdict.bit()),
            uninspected_drop_mask: 0,
            own_filter: tables.own_filter(),
            stale_after_ns: 30_000_000_000,
            event_interval_ns: 10_000_000,
            generation: 1,
            mode: MODE_ENFORCE,
            on_stale: STALE_KEEP_LIMITS,
            syn_cost_ticks: limit.cost_ticks,
            syn_tolerance_ticks: limit.tolerance_ticks,
            bans_present,
            ..Policy::new_zeroed()
        })?;
        let mut armed = Self { ebpf, tables, events };
        armed.tend()?;
        Ok(armed)
    }

    /// What the daemon does meanwhile: says that it lives and reads the events.
    ///
    /// # Errors
    /// When a map cannot be written.
    pub(crate) fn tend(&mut self) -> Result<()> {
        self.tables.beat(monotonic_ns()?)?;
        while self.events.next().is_some() {}
        Ok(())
    }

    /// The program.
    ///
    /// # Errors
    /// When it is not loaded, which cannot be.
    pub(crate) fn program(&mut self) -> Result<OwnedFd> {
        Ok(object::program(&mut self.ebpf)?.fd()?.as_fd().try_clone_to_owned()?)
    }

    /// Packets counted so far with this outcome.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub(crate) fn packets(&self, verdict: Verdict, action: Action) -> Result<u64> {
        let slot = tally_slot(verdict, action) as usize;
        Ok(self.tables.totals()?.get(slot).context("a verdict without a tally")?.packets)
    }
}
