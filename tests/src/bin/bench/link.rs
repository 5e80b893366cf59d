//! A link with a receiver at its end, and floods over it.
//!
//! A generator program sends live frames (`BPF_F_TEST_XDP_LIVE_FRAMES`) out of one end of a veth pair; at the other end,
//! in a namespace of its own, stands what is measured. The frames are no socket buffers, as on a network card: from a
//! packet socket they would be, and XDP on veth would have to copy them.

use std::{
    fs,
    io::Write as _,
    net::Ipv4Addr,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    net::if_::if_nametoindex,
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use serde_json::Value;
use tunica_tests::{
    counters::{ProcessorTime, TICK, received},
    frame::{self, SYN, TCP},
    netns::{End, Namespace, join, mac_text},
    program::{self, Sources},
    sys::bpf,
};

use crate::{
    armed::{OWN, PORT},
    yardstick::say,
};

/// The receiver's interface.
pub(crate) const INTERFACE: &str = "eth0";

/// Frames of a call that is made to know what a call costs apart from its frames; one batch.
const ONE_BATCH: u32 = 64;

/// As [`frame::ethernet`] addresses its frames.
const GENERATOR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const POST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// A veth pair between the generators and a receiver in a namespace of its own.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) namespace: Namespace,
    /// The generators' end, by name and index.
    pub(crate) entrance: String,
    index: u32,
}

impl Link {
    /// Makes the pair; `number` keeps the addresses of several apart.
    ///
    /// # Errors
    /// With what the failing command said.
    pub(crate) fn build(purpose: &str, role: &str, number: usize, generators: &Namespace) -> Result<Self> {
        let namespace = Namespace::create(purpose, role)?;
        let entrance = format!("to-{role}");
        let (near, far) = (format!("10.78.{number}.2/24"), format!("10.78.{number}.1/24"));
        join(
            End { namespace: generators, interface: &entrance, mac: GENERATOR_MAC, address: &near },
            End { namespace: &namespace, interface: INTERFACE, mac: POST_MAC, address: &far },
        )?;
        // Answers leave by the same link, and no address resolution takes place in the middle of a flood.
        let gateway = format!("10.78.{number}.2");
        let mac = mac_text(GENERATOR_MAC);
        namespace.ip(&[
            "neighbour",
            "add",
            &gateway,
            "lladdr",
            &mac,
            "dev",
            INTERFACE,
            "nud",
            "permanent",
        ])?;
        namespace.ip(&["route", "add", "default", "via", &gateway])?;
        namespace.ip(&["address", "add", &format!("{OWN}/32"), "dev", "lo"])?;
        for scope in ["all", "default", INTERFACE] {
            namespace.write_sysctl(&format!("net/ipv4/conf/{scope}/rp_filter"), "0")?;
        }
        take_frames(&namespace, INTERFACE)?;
        let index = generators.run(|| Ok(if_nametoindex(entrance.as_str())?))?;
        Ok(Self { namespace, entrance, index })
    }

    /// Attaches a program to an interface of the receiver.
    ///
    /// # Errors
    /// When the driver refuses it.
    pub(crate) fn attach(&self, program: &OwnedFd, interface: &str) -> Result<OwnedFd> {
        attach(&self.namespace, program, interface)
    }

    /// Packets that reached the receiver so far, whatever became of them.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub(crate) fn arrived(&self) -> Result<u64> {
        received(&self.namespace, INTERFACE)
    }

    /// Sends so many frames.
    ///
    /// # Errors
    /// When the kernel refuses the generator, or does not say what the flood cost.
    pub(crate) fn flood(
        &self,
        generators: &Namespace,
        sources: Option<Sources>,
        frame: &[u8],
        frames: u32,
    ) -> Result<Flood> {
        let arrived = self.arrived()?;
        let (seconds, softirq) = generators.run(|| {
            let processor = pin()?;
            let program = program::generator(self.index, sources, frame)?;
            let send = |count| -> Result<f64> {
                let begun = Instant::now();
                bpf::send_live_frames(program.as_fd(), frame, count).context("sending live frames")?;
                Ok(begun.elapsed().as_secs_f64())
            };
            // What a call costs before its first and after its last frame.
            let around = send(ONE_BATCH)?;
            let before = ProcessorTime::of(processor)?.softirq;
            let seconds = send(frames)? - around;
            Ok((seconds, ProcessorTime::of(processor)?.softirq - before))
        })?;
        // What the receiver still had in its ring.
        thread::sleep(Duration::from_millis(20));
        let arrived = self.arrived()? - arrived;
        Ok(Flood { seconds, sent: frames + ONE_BATCH, arrived, softirq: softirq as f64 * TICK.as_secs_f64() })
    }
}

/// What a flood was.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flood {
    /// How long it took.
    pub(crate) seconds: f64,
    /// Frames sent.
    pub(crate) sent: u32,
    /// Frames that found room in the receiver's ring.
    pub(crate) arrived: u64,
    /// Seconds of soft interrupts on the processor that everything ran on.
    softirq: f64,
}

impl Flood {
    /// Nanoseconds of soft interrupts for each frame that arrived.
    pub(crate) fn softirq_nanoseconds(&self) -> f64 {
        self.softirq * 1e9 / self.arrived as f64
    }
}

/// With receive offload a veth takes frames that are no socket buffers, even without a program (drivers/net/veth.c).
///
/// # Errors
/// With ethtool's last words.
fn take_frames(namespace: &Namespace, interface: &str) -> Result<()> {
    say(namespace.command(Path::new("ethtool")).args(["-K", interface, "gro", "on"])).map(|_| ())
}

/// Attaches a program to an interface of `namespace`.
///
/// # Errors
/// When the driver refuses it.
pub(crate) fn attach(namespace: &Namespace, program: &OwnedFd, interface: &str) -> Result<OwnedFd> {
    namespace.run(|| {
        let interface = if_nametoindex(interface).context("looking for the veth")?;
        bpf::attach_xdp(program.as_fd(), interface).context("attaching to a veth in native mode")
    })
}

/// Keeps this thread on the last processor, and with it whatever the kernel does at once for it: sending, and receiving
/// in soft interrupts. Its number is the result.
fn pin() -> Result<usize> {
    let processor = thread::available_parallelism().map_or(1, usize::from) - 1;
    let mut set = CpuSet::new();
    set.set(processor)?;
    sched_setaffinity(Pid::from_raw(0), &set).context("staying on one processor")?;
    Ok(processor)
}

/// A SYN to the defended address with an MSS option, as every real SYN has one.
pub(crate) fn syn(source: Ipv4Addr) -> Vec<u8> {
    let mut segment = frame::tcp(SYN, 6);
    segment.truncate(20);
    segment.extend([2, 4, 0x05, 0xb4]);
    if let Some(port) = segment.get_mut(2..4) {
        port.copy_from_slice(&PORT.to_be_bytes());
    }
    frame::v4(source.octets(), TCP).frame(&segment)
}

/// Replaces all rules of nftables in `namespace`.
///
/// # Errors
/// With nft's last words.
pub(crate) fn load_rules(namespace: &Namespace, rules: &str) -> Result<()> {
    let mut command = namespace.command(Path::new("nft"));
    let mut child = command
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting `nft`")?;
    let rules = format!("flush ruleset\n{rules}");
    child.stdin.take().context("nft's input")?.write_all(rules.as_bytes()).context("handing rules to nft")?;
    let output = child.wait_with_output().context("waiting for nft")?;
    if !output.status.success() {
        bail!("`nft -f -` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Packets of the first counter of nftables in `namespace`.
///
/// # Errors
/// When there is none.
pub(crate) fn counted_by_rules(namespace: &Namespace) -> Result<u64> {
    let shown = say(namespace.command(Path::new("nft")).args(["-j", "-t", "list", "ruleset"]))?;
    let shown: Value = serde_json::from_str(&shown).context("reading `nft -j list ruleset`")?;
    counter(&shown).context("nftables shows no counter")
}

/// A counter of the protocols in `namespace`: `kind` is a row of `/proc/net/snmp` or `/proc/net/netstat`.
///
/// # Errors
/// When the kernel has no such counter.
pub(crate) fn counted_by_kernel(namespace: &Namespace, kind: &str, name: &str) -> Result<u64> {
    let shown = namespace.run(|| {
        let files = ["/proc/thread-self/net/snmp", "/proc/thread-self/net/netstat"].map(fs::read_to_string);
        let [snmp, netstat] = files;
        Ok(snmp.context("reading /proc/net/snmp")? + &netstat.context("reading /proc/net/netstat")?)
    })?;
    let kind = format!("{kind}: ");
    let mut rows = shown.lines().filter_map(|line| line.strip_prefix(&kind));
    let (names, values) = rows.next().zip(rows.next()).with_context(|| format!("no row {kind}"))?;
    let mut pairs = names.split_whitespace().zip(values.split_whitespace());
    let value = pairs.find(|(found, _)| *found == name).with_context(|| format!("no count of {name}"))?.1;
    value.parse().with_context(|| format!("reading the count of {name}"))
}

/// Packets of the first counter in nft's JSON.
fn counter(value: &Value) -> Option<u64> {
    match value {
        Value::Object(fields) => match fields.get("counter").and_then(|counter| counter.get("packets")) {
            Some(packets) => packets.as_u64(),
            None => fields.values().find_map(counter),
        },
        Value::Array(values) => values.iter().find_map(counter),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nft_prints_is_understood() {
        let nft = serde_json::json!({ "nftables": [
            { "metainfo": {} },
            { "rule": { "expr": [{ "match": {} }, { "counter": { "packets": 7, "bytes": 9 } }, { "drop": null }] } },
        ] });
        assert_eq!(counter(&nft), Some(7));
    }

    #[test]
    fn the_flood_sends_whole_syns() {
        let frame = syn(Ipv4Addr::new(198, 51, 100, 7));
        assert_eq!(frame.len(), 58);
        assert_eq!((&frame[36..38], frame[46], frame[47]), (&PORT.to_be_bytes()[..], 6 << 4, SYN));
    }
}
