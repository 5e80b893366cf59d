//! The benchmark: what the shield costs, against the least that is possible and against other programs.
//!
//! `cargo xtask bench` builds and starts it. It needs root. Its namespaces, mounts, pins and locks are in a mount
//! namespace of its own, its programs and links are held by descriptors: when it ends, however it ends, the kernel
//! removes all of it.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "its output is for the person at the terminal")]

mod armed;
mod bulk;
mod cookies;
mod drops;
mod growth;
mod lasting;
mod link;
mod machine;
mod memory;
mod nanoseconds;
mod series;
mod yardstick;

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    unistd::geteuid,
};
use tunicad::shell::xdp::object::OBJECT;

const PURPOSE: &str = "bench";

/// Where `--write-docs` writes, and the lines between which it does.
const PAGE: &str = "docs/benchmarks.md";
const BEGIN: &str = "<!-- measured: begin -->\n";
const END: &str = "<!-- measured: end -->\n";

/// What the shield costs.
#[derive(Parser)]
#[command(name = "bench", bin_name = "cargo xtask bench")]
struct Arguments {
    /// Which parts, separated by commas.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Part::ALL)]
    parts: Vec<Part>,
    /// One round of everything, and a short long flood: shows that it runs, and no more.
    #[arg(long)]
    short: bool,
    /// Measures another build of the shield than the one in the tree.
    #[arg(long)]
    object: Option<PathBuf>,
    /// Writes the figures into `docs/benchmarks.md`; takes all parts and the tree's build.
    #[arg(long, conflicts_with_all = ["parts", "object", "short"])]
    write_docs: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Nanoseconds a packet.
    Cost,
    /// Packets dropped a second.
    Drops,
    /// SYNs answered with cookies a second.
    Cookies,
    /// Half a minute of random sources.
    Lasting,
    /// Packets a second, by the number of sources.
    Growth,
    /// Throughput of an established TCP connection.
    Bulk,
    /// What the tables take.
    Memory,
}

impl Part {
    const ALL: [Self; 7] =
        [Self::Cost, Self::Drops, Self::Cookies, Self::Lasting, Self::Growth, Self::Bulk, Self::Memory];
}

/// How much trouble is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pains {
    Whole,
    Short,
}

impl Pains {
    /// Of so many rounds, those that are made.
    const fn rounds(self, whole: usize) -> usize {
        match self {
            Self::Whole => whole,
            Self::Short => 1,
        }
    }
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    if !geteuid().is_root() {
        bail!("the benchmark needs root, because it makes network namespaces and loads kernel programs");
    }
    let begun = Instant::now();
    let object = match &arguments.object {
        Some(path) => fs::read(path).with_context(|| format!("reading {}", path.display()))?,
        None => OBJECT.to_vec(),
    };
    let mut text = machine::describe()?;
    withdraw().context("making a mount namespace")?;
    let pains = if arguments.short { Pains::Short } else { Pains::Whole };
    let mut aims = Vec::new();
    let mut tables = String::new();
    for part in Part::ALL {
        if !arguments.parts.contains(&part) {
            continue;
        }
        let (title, table) = match part {
            Part::Cost => {
                let costs = nanoseconds::measure(PURPOSE, &object, pains)?;
                aims.extend(costs.aims());
                ("Nanoseconds a packet", costs.table())
            }
            Part::Drops => {
                let drops = drops::measure(PURPOSE, &object, pains)?;
                aims.extend(drops.aims());
                ("Millions of packets dropped a second", drops.table())
            }
            Part::Cookies => {
                let cookies = cookies::measure(PURPOSE, &object, pains)?;
                aims.extend(cookies.aims());
                ("Millions of SYNs answered with cookies a second", cookies.table())
            }
            Part::Lasting => {
                let lasting = lasting::measure(PURPOSE, &object, pains)?;
                aims.extend(lasting.aims());
                ("Random sources for half a minute", lasting.table())
            }
            Part::Growth => {
                let growth = growth::measure(PURPOSE, &object, pains)?;
                ("Millions of packets a second, by the number of sources", growth.table())
            }
            Part::Memory => ("Memory of the tables", memory::measure(&object)?),
            Part::Bulk => {
                let bulk = bulk::measure(PURPOSE, &object, pains)?;
                aims.extend(bulk.aims());
                ("Gigabits a second of one TCP connection", bulk.table())
            }
        };
        let _ = write!(tables, "\n### {title}\n\n{table}");
    }
    let _ = writeln!(text, "The whole run took {} s.", begun.elapsed().as_secs());
    text.push_str("\n### Aims\n\n| what | aim | found | |\n|---|--:|--:|---|\n");
    text.extend(aims.iter().map(series::Aim::row));
    text.push_str(&tables);
    println!("{text}");
    if arguments.write_docs { write(Path::new(PAGE), &text) } else { Ok(()) }
}

/// Leaves the machine's mounts and network: what is mounted from now on, nobody else sees, and it ends with this process.
/// That goes for `/run`, where `ip` keeps namespaces and `xdp-filter` its lock, and for the BPF file system, where it pins.
/// In the network there is loopback alone, for the sockets that the shield looks up when it is run without a link.
fn withdraw() -> Result<()> {
    let none: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none)?;
    mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), none)?;
    Ok(())
}

/// Says what is being done.
fn tell(what: &str) {
    eprintln!("{what}");
}

/// Replaces what stands between the marks.
fn write(page: &Path, text: &str) -> Result<()> {
    let old = fs::read_to_string(page).with_context(|| format!("reading {}", page.display()))?;
    let new = replaced(&old, text).with_context(|| format!("{} lacks its marks", page.display()))?;
    fs::write(page, new).with_context(|| format!("writing {}", page.display()))?;
    println!("Wrote {}.", page.display());
    Ok(())
}

fn replaced(old: &str, text: &str) -> Option<String> {
    let (before, rest) = old.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}{text}{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stands_between_the_marks_is_replaced() {
        let old = format!("head\n{BEGIN}old\n{END}tail\n");
        assert_eq!(replaced(&old, "new\n"), Some(format!("head\n{BEGIN}new\n{END}tail\n")));
        assert_eq!(replaced("no marks\n", "new\n"), None);
    }
}
