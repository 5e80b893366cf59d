//! The shield as it stands on a defended host: its own addresses known, bans by evidence, a live daemon.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsFd, OwnedFd},
    thread,
};

use anyhow::{Context, Result, bail};
use aya::{
    Ebpf,
    maps::{MapData, ProgramArray, RingBuf},
    programs::{TestRun, TestRunOptions, Xdp},
};
use tunica_common::{
    event::tally_slot,
    keys::{BAN_DYNAMIC, BanEntry},
    layout::JUMPS,
    policy::{HostState, JUMP_COOKIE, JUMP_SEGMENT, JUMP_SHIELD, Policy, PortState},
    verdict::{Action, Verdict},
};
use tunica_core::{
    id::{PacketSource, Prefix},
    limits::{self, HostFacts, Port, PortSettings, Presence, Settings, Transport},
};
use tunica_tests::{shield::address_bytes, sys::bpf::with_capabilities};
use tunicad::{
    shell::xdp::{
        object::{self, COOKIE, PROGRAM, SEGMENT},
        tables::Tables,
    },
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

/// The port that the benchmark's frames go to.
pub(crate) const PORT: u16 = 443;

/// An hour, nanoseconds.
const HOUR: u64 = 3_600_000_000_000;

/// A pace that nothing reaches.
const OUT_OF_REACH: [u64; 2] = [1, u64::MAX / 8];

/// A capability's number (include/uapi/linux/capability.h).
fn number_of(capability: &str) -> Result<u32> {
    match capability {
        "CAP_NET_ADMIN" => Ok(12),
        "CAP_PERFMON" => Ok(38),
        "CAP_BPF" => Ok(39),
        other => bail!("the unit grants {other}, whose number the benchmark does not know"),
    }
}

/// What the shield is told to do. Every stance is the shipped defaults, enforcing, but for what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stance {
    /// The shipped defaults.
    Shipped,
    /// What the whole port and the whole host may take is out of reach, since a flood exceeds it at once: what is left are
    /// limits by source.
    Calm,
    /// The same, and ports have no budget at all.
    NoBudget,
    /// The port is over its budget and answers with cookies.
    Cookies,
    /// Every port is closed.
    Lockdown,
    /// The port has a rate for UDP, which the frames exceed.
    UdpRate,
}

/// A loaded shield with maps of its own.
pub(crate) struct Armed {
    ebpf: Ebpf,
    tables: Tables,
    events: RingBuf<MapData>,
    presence: Presence,
    generation: u32,
    stance: Option<Stance>,
}

impl fmt::Debug for Armed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Armed").finish_non_exhaustive()
    }
}

impl Armed {
    /// Loads the object, bans these sources for an hour, and stands as shipped.
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
            let mut ebpf = load_all(object)?;
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
        let presence = Presence::default();
        let mut armed = Self { ebpf, tables, events, presence, generation: 0, stance: None };
        let entry = ban()?;
        for source in banned {
            armed.tables.set_ban(&source.key(), &entry)?;
            armed.presence.bans = true;
        }
        armed.own(OWN.into())?;
        Ok(armed)
    }

    /// Bans ranges, too.
    ///
    /// # Errors
    /// When a map cannot be written.
    pub(crate) fn ban_ranges(&mut self, ranges: impl Iterator<Item = Prefix>) -> Result<()> {
        let entry = ban()?;
        for range in ranges {
            self.tables.set_net(range.kernel_key(), &entry)?;
        }
        self.presence.nets = true;
        self.stance = None;
        self.stand(Stance::Shipped)
    }

    /// Makes an address one of the host's own.
    ///
    /// # Errors
    /// When a map cannot be written.
    pub(crate) fn own(&mut self, address: IpAddr) -> Result<()> {
        self.tables.add_own(address_bytes(address))?;
        self.presence.own_filter = self.tables.own_filter();
        self.stance = None;
        self.stand(Stance::Shipped)
    }

    /// Takes a stance. What was owed under another one is forgotten.
    ///
    /// # Errors
    /// When a map cannot be written.
    pub(crate) fn stand(&mut self, stance: Stance) -> Result<()> {
        self.tend()?;
        let now = monotonic_ns()?;
        let (port, host) = match stance {
            Stance::Cookies => (
                PortState { armed_until_ns: now + HOUR, armed_since_ns: now, ..PortState::new_zeroed() },
                HostState { armed_until_ns: now + HOUR, ..HostState::new_zeroed() },
            ),
            Stance::Shipped | Stance::Calm | Stance::NoBudget | Stance::Lockdown | Stance::UdpRate => {
                (PortState::new_zeroed(), HostState::new_zeroed())
            }
        };
        self.tables.set_port_state(PORT, &port)?;
        self.tables.set_host_state(&host)?;
        if self.stance == Some(stance) {
            return Ok(());
        }
        let mut settings = shipped()?;
        let udp = Port { transport: Transport::Udp, number: PORT.try_into().context("port 0")? };
        self.tables.remove_port(udp.key())?;
        match stance {
            Stance::Shipped | Stance::Cookies => {}
            Stance::Calm => settings.port_syn = Some(OUT_OF_REACH),
            Stance::NoBudget => settings.port_syn = None,
            Stance::Lockdown => settings.lockdown = true,
            Stance::UdpRate => {
                let rule = PortSettings { is_open: true, pace: limits::each_second(100, 100) };
                self.tables.set_port(udp.key(), &rule.rule(udp.transport))?;
                settings.ports.insert(udp, rule);
            }
        }
        self.generation += 1;
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let host = HostFacts {
            tcp_syncookies: Some(2),
            tcp_timestamps: Some(1),
            has_cookie_program: true,
            cpus: u32::try_from(cores)?,
            ..HostFacts::default()
        };
        let secret = self.tables.secret();
        let presence = Presence { ports: stance == Stance::UdpRate, ..self.presence };
        let mut policy = limits::policy(&settings, &host, self.generation, secret, presence);
        if matches!(stance, Stance::Calm | Stance::NoBudget) {
            policy = Policy { segment_pace: OUT_OF_REACH, icmp_host_pace: OUT_OF_REACH, ..policy };
        }
        self.tables.swap_policy(&policy)?;
        self.stance = Some(stance);
        Ok(())
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

    /// Runs the program once on a frame; what it left of it.
    ///
    /// # Errors
    /// When the kernel refuses the run.
    pub(crate) fn reply(&mut self, frame: &[u8]) -> Result<Vec<u8>> {
        let mut left = vec![0; frame.len() + 64];
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.data_out = Some(&mut left);
        options.repeat = 1;
        let result = object::program(&mut self.ebpf)?.test_run(options)?;
        left.truncate(result.data_size_out as usize);
        Ok(left)
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

/// The shield and the programs that it jumps to, as the daemon loads them.
///
/// # Errors
/// When the kernel refuses one.
pub(crate) fn load_all(object: &[u8]) -> Result<Ebpf> {
    let mut ebpf = Ebpf::load(object)?;
    for (name, index) in [(PROGRAM, JUMP_SHIELD), (COOKIE, JUMP_COOKIE), (SEGMENT, JUMP_SEGMENT)] {
        let program: &mut Xdp = ebpf.program_mut(name).context("a program is missing")?.try_into()?;
        program.load().with_context(|| format!("loading {name}"))?;
        let program = program.fd()?.try_clone()?;
        let jumps = ebpf.map_mut(JUMPS).context("the map of jumps is missing")?;
        ProgramArray::try_from(jumps)?.set(index, &program, 0)?;
    }
    Ok(ebpf)
}

/// The shipped defaults, enforcing.
///
/// # Errors
/// When they are not valid, which cannot be.
fn shipped() -> Result<Settings> {
    let text = "[shield]\ninterfaces = [\"eth0\"]\nmode = \"enforce\"\n";
    let config = tunica_config::read(text, "the shipped defaults")
        .map_err(|problems| anyhow::anyhow!("{problems}"))?;
    config.settings().context("the shipped defaults")
}

/// A ban for an hour that rests on evidence.
fn ban() -> Result<BanEntry> {
    Ok(BanEntry { expires_ns: monotonic_ns()? + HOUR, ban_id: 1, flags: BAN_DYNAMIC })
}
