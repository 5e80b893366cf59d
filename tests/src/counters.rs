//! What the kernel counts: packets of an interface, time in soft interrupts, half-open connections.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::netns::Namespace;

/// `/proc/stat` counts in hundredths of a second on every architecture that Tunica runs on (`USER_HZ`, proc(5)).
pub const TICK: Duration = Duration::from_millis(10);

/// How long the kernel may take to work off what an attack left behind.
const DRAIN: Duration = Duration::from_secs(10);

/// Processor time since the boot, in units of [`TICK`] (proc_stat(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessorTime {
    /// user, nice, system, irq and softirq. Idle and iowait are no work, steal is others', guest is contained in user.
    pub busy: u64,
    /// What of it was spent in soft interrupts.
    pub softirq: u64,
    /// What a hypervisor gave to others though there was work here (steal).
    pub stolen: u64,
}

impl ProcessorTime {
    /// Of all processors together.
    ///
    /// # Errors
    /// When `/proc/stat` cannot be read or is not as proc_stat(5) describes it.
    pub fn of_all() -> Result<Self> {
        Self::read("cpu")
    }

    /// Of one processor, by its number.
    ///
    /// # Errors
    /// As those of [`Self::of_all`], and when there is no such processor.
    pub fn of(processor: usize) -> Result<Self> {
        Self::read(&format!("cpu{processor}"))
    }

    fn read(name: &str) -> Result<Self> {
        let text = fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
        Self::parse(&text, name)
            .with_context(|| format!("/proc/stat has no row {name}, or lacks columns of it"))
    }

    fn parse(stat: &str, name: &str) -> Option<Self> {
        let row = stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        let fields: Vec<u64> =
            row.split_whitespace().map(|field| field.parse().ok()).collect::<Option<_>>()?;
        let [user, nice, system, _, _, irq, softirq, stolen, ..] = fields[..] else { return None };
        Some(Self { busy: user + nice + system + irq + softirq, softirq, stolen })
    }

    /// The percentage of the time that was asked for since `before` that went to others, rounded down.
    pub fn percent_stolen_since(&self, before: &Self) -> u64 {
        let stolen = self.stolen.saturating_sub(before.stolen);
        let asked = self.busy.saturating_sub(before.busy) + stolen;
        (stolen * 100).checked_div(asked).unwrap_or(0)
    }
}

/// Packets that reached `interface` in `namespace`, those included that an XDP program dropped.
///
/// # Errors
/// When there is no such interface.
pub fn received(namespace: &Namespace, interface: &str) -> Result<u64> {
    // `/proc/net` would show the namespace of the process, not of the thread that asks.
    let text =
        namespace.run(|| fs::read_to_string("/proc/thread-self/net/dev").context("reading /proc/net/dev"))?;
    received_of(&text, interface).with_context(|| format!("/proc/net/dev has no row for {interface}"))
}

fn received_of(dev: &str, interface: &str) -> Option<u64> {
    let row = dev.lines().find_map(|line| line.trim_start().strip_prefix(interface)?.strip_prefix(':'))?;
    row.split_whitespace().nth(1)?.parse().ok()
}

/// Waits until nothing of an attack is on its way any more: no packet arrives at `interface`, no processor has a
/// backlog, and no connection is half open, which a closed listener sees to.
///
/// # Errors
/// When that takes longer than ten seconds.
pub fn wait_until_drained(namespace: &Namespace, interface: &str) -> Result<()> {
    let deadline = Instant::now() + DRAIN;
    let mut before = received(namespace, interface)?;
    loop {
        thread::sleep(Duration::from_millis(100));
        let now = received(namespace, interface)?;
        let backlog =
            backlog_of(&fs::read_to_string("/proc/net/softnet_stat").context("reading softnet_stat")?);
        let half_open = namespace.run(|| {
            let mut half_open = 0;
            for table in ["tcp", "tcp6"] {
                let table = format!("/proc/thread-self/net/{table}");
                half_open +=
                    half_open_of(&fs::read_to_string(&table).with_context(|| format!("reading {table}"))?);
            }
            Ok(half_open)
        })?;
        if now == before && backlog == 0 && half_open == 0 {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!(
                "the backlog does not drain: {backlog} packets wait, {half_open} connections are half open"
            );
        }
        before = now;
    }
}

/// Packets that wait for a processor, from the 12th column of each row (`softnet_seq_show`, kernel 5.10 and later).
fn backlog_of(softnet: &str) -> u64 {
    let column = |row: &str| u64::from_str_radix(row.split_whitespace().nth(11)?, 16).ok();
    softnet.lines().filter_map(column).sum()
}

/// Connections in state `SYN_RECV`, 03 (`include/net/tcp_states.h`).
fn half_open_of(table: &str) -> usize {
    table.lines().filter(|row| row.split_whitespace().nth(3) == Some("03")).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_and_stolen_time_is_no_work() {
        let stat =
            "cpu  100 20 3 4000 500 6 7 8000 90000 0\ncpu0 1 1 1 1 1 1 1 1 1 1\ncpu1 1 2 3 4 5 6 7 8 9 10\n";
        let of = |name| ProcessorTime::parse(stat, name).map(|time| (time.busy, time.softirq, time.stolen));
        assert_eq!(of("cpu"), Some((136, 7, 8_000)));
        assert_eq!(of("cpu1"), Some((19, 7, 8)));
        assert_eq!(of("cpu2"), None);
        assert_eq!(ProcessorTime::parse("intr 1\n", "cpu"), None);
        assert_eq!(ProcessorTime::parse("cpu  1 2 3 4\n", "cpu"), None);
        assert!(ProcessorTime::of_all().unwrap().busy > 0);
        assert!(ProcessorTime::of(0).is_ok() && ProcessorTime::of(1_000_000).is_err());
    }

    #[test]
    fn what_others_had_is_a_share_of_what_was_asked_for() {
        let before = ProcessorTime { busy: 200, softirq: 50, stolen: 10 };
        let percent =
            |busy, stolen| ProcessorTime { busy, softirq: 60, stolen }.percent_stolen_since(&before);
        assert_eq!((percent(290, 30), percent(1_200, 11), percent(200, 10)), (18, 0, 0));
    }

    #[test]
    fn the_right_columns_are_read() {
        let dev = "Inter-| Receive\n face |bytes packets\n    lo:    3193      29    0\nattack0: 99 12 0 0\n";
        assert_eq!(received_of(dev, "attack0"), Some(12));
        assert_eq!(received_of(dev, "attack"), None);
        let softnet = "2a 0 0 0 0 0 0 0 0 0 0 10 0 8 8\n1 0 0 0 0 0 0 0 0 0 0 1 1 1 0\n";
        assert_eq!(backlog_of(softnet), 17);
        let table = "sl local rem st\n 0: 0:1F90 0:0 0A 0\n 1: 0:1F90 1:1 03 0\n";
        assert_eq!(half_open_of(table), 1);
    }
}
