//! A shield loaded for a test: the real program in the real kernel, with maps of its own, attached to nothing.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr, TcpListener},
    os::fd::AsRawFd,
};

use anyhow::{Context, Result, ensure};
use aya::{
    Ebpf,
    maps::{MapData, PerCpuArray, PerCpuValues, RingBuf},
    programs::{TestRun, TestRunAttrs, TestRunOptions, TestRunResult},
};
use nix::{
    sched::{CloneFlags, unshare},
    sys::socket::{
        AddressFamily, Backlog, Shutdown, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt,
        shutdown, socket, sockopt,
    },
};
use tunica_common::{
    event::{Event, tally_slot},
    gcra::Limit,
    keys::{ALLOW_BY_OPERATOR, AddressBytes, AllowEntry, BAN_DYNAMIC, BanEntry},
    layout::{PROOFS, SEGMENT_GATE},
    policy::{CANDIDATE_NONE, DEFAULT_ALLOW, DEFAULT_BANS, DEFAULT_NETS, HostState, Policy, PortState},
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
use zerocopy::FromZeros;

use crate::{
    reference::{Ban, World},
    rows::Row,
};

/// What the program returns for a packet that is dropped (`XDP_DROP`, include/uapi/linux/bpf.h).
const XDP_DROP: u32 = 1;
/// What it returns for one that is passed (`XDP_PASS`).
const XDP_PASS: u32 = 2;
/// What it returns for one that is answered (`XDP_TX`).
const XDP_TX: u32 = 3;

/// The secret of test shields: fixed, so that a failure repeats.
pub const SECRET: [u64; 2] = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];

const DEFAULT_SIZES: Sizes =
    Sizes { bans: DEFAULT_BANS as u32, nets: DEFAULT_NETS as u32, allow: DEFAULT_ALLOW as u32 };

/// A loaded shield.
pub struct Shield {
    ebpf: Ebpf,
    /// Its maps.
    pub tables: Tables,
    events: RingBuf<MapData>,
    totals: Vec<Total>,
    generation: u32,
    /// Ports whose state may not be zero.
    touched: BTreeSet<u16>,
    listeners: Vec<TcpListener>,
}

impl Shield {
    /// Loads the embedded object.
    ///
    /// # Errors
    /// If this is not root, or the kernel refuses.
    pub fn load() -> Result<Self> {
        // The program looks for sockets where the caller is. This thread stays there.
        unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace for this thread")?;
        Self::load_sized(DEFAULT_SIZES)
    }

    /// Loads the embedded object, its listeners in the caller's own network namespace.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn load_here() -> Result<Self> {
        Self::load_sized(DEFAULT_SIZES)
    }

    /// Loads the embedded object with tables of these sizes.
    ///
    /// # Errors
    /// If this is not root, or the kernel refuses.
    pub fn load_sized(sizes: Sizes) -> Result<Self> {
        ensure!(nix::unistd::geteuid().is_root(), "loading a BPF program needs root: run the tests as root");
        let mut ebpf = object::load(sizes, None)?;
        let gate = ebpf.map_mut(SEGMENT_GATE).context("the object has no gate of segments")?;
        let mut gate: PerCpuArray<_, u64> = PerCpuArray::try_from(gate)?;
        // Used up for years on every CPU, so that every segment is judged.
        let used_up = vec![monotonic_ns()? + u64::MAX / 8; aya::util::nr_cpus().map_err(|(_, error)| error)?];
        gate.set(0, PerCpuValues::try_from(used_up)?, 0)?;
        let mut tables = Tables::take(&mut ebpf, SECRET)?;
        let events = tables.take_events().context("events were taken already")?;
        let totals = tables.totals()?;
        Ok(Self {
            ebpf,
            tables,
            events,
            totals,
            generation: 0,
            touched: BTreeSet::new(),
            listeners: Vec::new(),
        })
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
            for port in &self.touched {
                self.tables.set_trickle(*port, address, 0)?;
            }
        }
        for key in self.tables.nets()?.into_keys() {
            self.tables.remove_net(key)?;
        }
        for key in self.tables.ports()?.into_keys() {
            self.tables.remove_port(key)?;
        }
        for port in std::mem::take(&mut self.touched) {
            self.tables.set_port_state(port, &PortState::new_zeroed())?;
        }
        let now = monotonic_ns()?;
        let entry = |ban: &Ban| BanEntry {
            expires_ns: if ban.is_expired { 1 } else { now + 3_600_000_000_000 },
            ban_id: 1,
            flags: if ban.is_dynamic { BAN_DYNAMIC } else { 0 },
        };
        for (source, ban) in &world.bans {
            self.tables.set_ban(&source.key(), &entry(ban))?;
        }
        for (prefix, ban) in &world.banned_nets {
            self.tables.set_net(prefix.kernel_key(), &entry(ban))?;
        }
        for (port, settings) in &world.ports {
            self.tables.set_port(port.key(), &settings.rule(port.transport))?;
            self.touched.insert(port.number.get());
        }
        let armed_until_ns = now + 3_600_000_000_000;
        for port in &world.armed {
            let state = PortState { armed_until_ns, armed_since_ns: now, ..PortState::new_zeroed() };
            self.tables.set_port_state(*port, &state)?;
        }
        // Whatever rows and random frames may have counted for.
        self.touched.extend(world.armed.iter().copied().chain([443]));
        for listener in self.listeners.drain(..) {
            // Closing it frees no port while a child that another thread is about to start has it as well.
            shutdown(listener.as_raw_fd(), Shutdown::Both)?;
        }
        for (address, port) in
            world.own.iter().flat_map(|own| world.listening.iter().map(move |port| (own, port)))
        {
            self.listeners.push(listen_at(SocketAddr::new(*address, *port))?);
        }
        let host = HostState {
            armed_until_ns: if world.armed.is_empty() { 0 } else { armed_until_ns },
            ..HostState::new_zeroed()
        };
        self.tables.set_host_state(&host)?;
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
        let mask = |verdicts: &BTreeSet<Verdict>| verdicts.iter().fold(0, |mask, v| mask | v.bit());
        let cost = |limit: Option<Limit>| limit.map_or(0, |limit| limit.cost_ticks);
        let tolerance = |limit: Option<Limit>| limit.map_or(0, |limit| limit.tolerance_ticks);
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
            syn_cost_ticks: cost(world.syn),
            syn_tolerance_ticks: tolerance(world.syn),
            escalate_children: world.escalate,
            bans_present: u32::from(!world.bans.is_empty()),
            nets_present: u32::from(!world.banned_nets.is_empty()),
            allow_present: u32::from(!world.allow.is_empty()),
            ports_present: u32::from(!world.ports.is_empty()),
            lockdown: u32::from(world.lockdown),
            cookies: world.cookies,
            ephemeral_low: u32::from(world.ephemeral_low),
            budget_pace: world.budget.unwrap_or_default(),
            armed_hold_ns: 60_000_000_000,
            trickle_pace: world.trickle,
            segment_pace: [u64::MAX / 4, 0],
            segment_host_pace: world.segments_host.unwrap_or_default(),
            segment_cost_ticks: cost(world.segments),
            segment_tolerance_ticks: tolerance(world.segments),
            icmp_cost_ticks: cost(world.icmp.map(|icmp| icmp.per_source)),
            icmp_tolerance_ticks: tolerance(world.icmp.map(|icmp| icmp.per_source)),
            icmp_host_pace: world.icmp.map(|icmp| icmp.host).unwrap_or_default(),
            icmp_ceiling_pace: world.icmp.map(|icmp| icmp.ceiling).unwrap_or_default(),
            handshake_pace: [0; 2],
            netns_cookie: 0,
            zero: 0,
            cookie_mss_v4: 1_460,
            cookie_mss_v6: 1_440,
            cookie_window_scale: 7,
            candidate: CANDIDATE_NONE,
            translates: u32::from(world.translates),
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
        self.run_and_see(frame).map(|(verdict, action, returned, _)| (verdict, action, returned))
    }

    /// As [`Shield::run`], and the frame as the program left it.
    ///
    /// # Errors
    /// As for [`Shield::run`].
    pub fn run_and_see(&mut self, frame: &[u8]) -> Result<(Verdict, Action, u32, Vec<u8>)> {
        let mut left = vec![0; frame.len() + 256];
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.data_out = Some(&mut left);
        options.repeat = 1;
        let result = object::program(&mut self.ebpf)?.test_run(options)?;
        left.truncate(result.data_size_out as usize);
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
        Ok((*verdict, *action, result.return_value, left))
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
        let expect_returned = match row.expect.1 {
            Action::Drop => XDP_DROP,
            Action::Answer => XDP_TX,
            Action::Pass | Action::WouldDrop | Action::WouldAnswer => XDP_PASS,
        };
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

    /// Takes every proof out of its ring buffer, and says how many there were.
    ///
    /// # Errors
    /// If the object has no such buffer.
    pub fn proofs(&mut self) -> Result<usize> {
        let ring = self.ebpf.map_mut(PROOFS).context("the object has no ring of proofs")?;
        let mut ring = RingBuf::try_from(ring)?;
        Ok(std::iter::from_fn(|| ring.next().map(|_| ())).count())
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

/// A listener at an address that no interface needs to have.
///
/// # Errors
/// The system's.
pub fn listen_at(address: SocketAddr) -> Result<TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    setsockopt(&socket, sockopt::IpFreebind, &true)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))
        .with_context(|| format!("binding {address}"))?;
    listen(&socket, Backlog::new(128)?)?;
    Ok(TcpListener::from(socket))
}

/// An address as the maps key it.
pub fn address_bytes(address: IpAddr) -> AddressBytes {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}
