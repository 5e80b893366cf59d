//! The benchmark: what shield, gate, ingress and policy cost, against the least that is possible and against other programs.
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
mod ingress;
mod lasting;
mod link;
mod load;
mod machine;
mod memory;
mod nanoseconds;
mod policy;
mod proxy;
mod puzzle;
mod refusal;
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

/// Where `--write-docs` writes.
const PAGE: &str = "docs/benchmarks.md";

/// What Tunica costs.
#[derive(Parser)]
#[command(name = "bench", bin_name = "cargo xtask bench")]
struct Arguments {
    /// Which groups of parts, separated by commas [default: all].
    #[arg(long, value_enum, value_delimiter = ',', conflicts_with = "parts")]
    groups: Vec<Group>,
    /// Which parts, separated by commas [default: all].
    #[arg(long, value_enum, value_delimiter = ',')]
    parts: Vec<Part>,
    /// One round of everything, and a short long flood: shows that it runs, and no more.
    #[arg(long)]
    short: bool,
    /// Measures another build of the shield than the one in the tree.
    #[arg(long)]
    object: Option<PathBuf>,
    /// Writes the figures into `docs/benchmarks.md`; takes whole groups and the tree's build, and leaves the other groups'
    /// figures as they are.
    #[arg(long, conflicts_with_all = ["parts", "object", "short"])]
    write_docs: bool,
}

/// Parts whose figures stand together in the documentation, and are written together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Group {
    /// The shield.
    Packets,
    /// Ingress, gate, policy and puzzle.
    Circuits,
}

impl Group {
    const ALL: [Self; 2] = [Self::Packets, Self::Circuits];

    /// The lines of the documentation between which its figures stand.
    const fn marks(self) -> [&'static str; 2] {
        match self {
            Self::Packets => ["<!-- measured packets: begin -->\n", "<!-- measured packets: end -->\n"],
            Self::Circuits => ["<!-- measured circuits: begin -->\n", "<!-- measured circuits: end -->\n"],
        }
    }
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
    /// Requests and connections carried.
    Ingress,
    /// Streams of banned circuits refused.
    Refusal,
    /// Decisions about circuits.
    Policy,
    /// Puzzles solved and verified.
    Puzzle,
}

impl Part {
    const ALL: [Self; 11] = [
        Self::Cost,
        Self::Drops,
        Self::Cookies,
        Self::Lasting,
        Self::Growth,
        Self::Bulk,
        Self::Memory,
        Self::Ingress,
        Self::Refusal,
        Self::Policy,
        Self::Puzzle,
    ];

    const fn group(self) -> Group {
        match self {
            Self::Cost
            | Self::Drops
            | Self::Cookies
            | Self::Lasting
            | Self::Growth
            | Self::Bulk
            | Self::Memory => Group::Packets,
            Self::Ingress | Self::Refusal | Self::Policy | Self::Puzzle => Group::Circuits,
        }
    }
}

impl Arguments {
    /// The parts of a group that were asked for.
    fn parts_of(&self, group: Group) -> Vec<Part> {
        let asks_all = self.groups.is_empty() && self.parts.is_empty();
        let asked = |part: &Part| asks_all || self.groups.contains(&group) || self.parts.contains(part);
        Part::ALL.into_iter().filter(|part| part.group() == group).filter(asked).collect()
    }
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
    let object = match &arguments.object {
        Some(path) => fs::read(path).with_context(|| format!("reading {}", path.display()))?,
        None => OBJECT.to_vec(),
    };
    withdraw().context("making a mount namespace")?;
    let pains = if arguments.short { Pains::Short } else { Pains::Whole };
    for group in Group::ALL {
        let parts = arguments.parts_of(group);
        if parts.is_empty() {
            continue;
        }
        let text = measure(group, &parts, &object, pains)?;
        println!("{text}");
        if arguments.write_docs {
            write(Path::new(PAGE), group, &text)?;
        }
    }
    Ok(())
}

/// What was measured, as it stands in the documentation.
fn measure(group: Group, parts: &[Part], object: &[u8], pains: Pains) -> Result<String> {
    let begun = Instant::now();
    let mut text = machine::describe(group)?;
    let mut aims = Vec::new();
    let mut tables = String::new();
    for part in parts {
        let (title, table) = match part {
            Part::Cost => {
                let costs = nanoseconds::measure(PURPOSE, object, pains)?;
                aims.extend(costs.aims());
                ("Nanoseconds a packet", costs.table())
            }
            Part::Drops => {
                let drops = drops::measure(PURPOSE, object, pains)?;
                aims.extend(drops.aims());
                ("Millions of packets dropped a second", drops.table())
            }
            Part::Cookies => {
                let cookies = cookies::measure(PURPOSE, object, pains)?;
                aims.extend(cookies.aims());
                ("Millions of SYNs answered with cookies a second", cookies.table())
            }
            Part::Lasting => {
                let lasting = lasting::measure(PURPOSE, object, pains)?;
                aims.extend(lasting.aims());
                ("Random sources for half a minute", lasting.table())
            }
            Part::Growth => {
                let growth = growth::measure(PURPOSE, object, pains)?;
                ("Millions of packets a second, by the number of sources", growth.table())
            }
            Part::Memory => ("Memory of the tables", memory::measure(object)?),
            Part::Bulk => {
                let bulk = bulk::measure(PURPOSE, object, pains)?;
                aims.extend(bulk.aims());
                ("Gigabits a second of one TCP connection", bulk.table())
            }
            Part::Ingress => {
                let ingress = ingress::measure(PURPOSE, pains)?;
                aims.extend(ingress.aims());
                ("Requests and connections a second", ingress.table())
            }
            Part::Refusal => {
                let refusal = refusal::measure(PURPOSE, pains)?;
                aims.extend(refusal.aims());
                ("Streams of banned circuits refused", refusal.table())
            }
            Part::Policy => {
                let policy = policy::measure(pains)?;
                aims.extend(policy.aims());
                ("Millions of decisions a second of one core", policy.table())
            }
            Part::Puzzle => ("Thousands of puzzles a second", puzzle::measure(pains)?.table()),
        };
        let _ = write!(tables, "\n### {title}\n\n{table}");
    }
    let _ = writeln!(text, "The whole run took {} s.", begun.elapsed().as_secs());
    if !aims.is_empty() {
        text.push_str("\n### Aims\n\n| what | aim | found | |\n|---|--:|--:|---|\n");
        text.extend(aims.iter().map(series::Aim::row));
    }
    text.push_str(&tables);
    Ok(text)
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

/// Replaces what stands between the group's marks.
fn write(page: &Path, group: Group, text: &str) -> Result<()> {
    let old = fs::read_to_string(page).with_context(|| format!("reading {}", page.display()))?;
    let [begin, end] = group.marks();
    let new = replaced(&old, group, text)
        .with_context(|| format!("{} lacks `{}` or `{}`", page.display(), begin.trim(), end.trim()))?;
    fs::write(page, new).with_context(|| format!("writing {}", page.display()))?;
    println!("Wrote {}.", page.display());
    Ok(())
}

fn replaced(old: &str, group: Group, text: &str) -> Option<String> {
    let [begin, end] = group.marks();
    let (before, rest) = old.split_once(begin)?;
    let (_, after) = rest.split_once(end)?;
    Some(format!("{before}{begin}{text}{end}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stands_between_a_groups_marks_is_replaced() {
        let section = |group: Group, text: &str| {
            let [begin, end] = group.marks();
            format!("{begin}{text}\n{end}")
        };
        let page = |packets: &str, circuits: &str| {
            let [packets, circuits] = [section(Group::Packets, packets), section(Group::Circuits, circuits)];
            format!("head\n{packets}between\n{circuits}tail\n")
        };
        let old = page("old", "old");
        assert_eq!(replaced(&old, Group::Packets, "new\n"), Some(page("new", "old")));
        assert_eq!(replaced(&old, Group::Circuits, "new\n"), Some(page("old", "new")));
        assert_eq!(replaced("no marks\n", Group::Packets, "new\n"), None);
    }

    #[test]
    fn the_page_has_every_groups_marks() {
        let page = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/benchmarks.md"));
        for group in Group::ALL {
            assert!(replaced(page, group, "").is_some(), "{group:?}");
        }
    }

    #[test]
    fn parts_are_asked_for_by_group_by_name_or_not_at_all() {
        let asked = |line: &[&str]| {
            let arguments = Arguments::try_parse_from([&["bench"], line].concat()).unwrap();
            Group::ALL.map(|group| arguments.parts_of(group))
        };
        let of = |group: Group| -> Vec<Part> {
            Part::ALL.into_iter().filter(|part| part.group() == group).collect()
        };
        assert_eq!(asked(&[]), [of(Group::Packets), of(Group::Circuits)]);
        assert_eq!(asked(&["--groups", "circuits"]), [vec![], of(Group::Circuits)]);
        assert_eq!(asked(&["--parts", "bulk,puzzle"]), [vec![Part::Bulk], vec![Part::Puzzle]]);
        for line in [["--parts", "bulk", "--write-docs"], ["--groups", "circuits", "--short"]] {
            let parsed = Arguments::try_parse_from([&["bench"], &line[..]].concat());
            assert_eq!(parsed.is_ok(), line.contains(&"--short"), "{line:?}");
        }
    }
}
