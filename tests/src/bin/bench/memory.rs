//! What the tables take of the kernel's memory, at their shipped sizes.

use std::{collections::BTreeMap, fmt::Write as _, fs, net::Ipv6Addr, os::fd::AsRawFd};

use anyhow::{Context, Result};
use aya::{
    Ebpf,
    maps::MapInfo,
    programs::{ProgramInfo, SockOps, Xdp},
};
use tunica_common::{
    keys::{ALLOW_BY_OPERATOR, AllowEntry, BanEntry, SourceKey},
    policy::{DEFAULT_ALLOW, DEFAULT_BANS, DEFAULT_NETS},
};
use tunica_tests::report::grouped;
use tunicad::shell::xdp::{
    object::{COOKIE, PROGRAM, SEGMENT},
    tables::Tables,
};

use crate::{armed::load_all, tell};

/// The program that counts completed handshakes, by its name in the object.
const HANDSHAKE: &str = "handshake";

/// How many tables have a row of their own.
const SHOWN: usize = 10;

/// A table in the kernel.
#[derive(Clone, Debug)]
struct Table {
    name: String,
    entries: u32,
    bytes: u64,
}

/// A Markdown table of the largest tables and of all together, empty and full.
///
/// # Errors
/// When the kernel refuses a program, or does not say what a table takes.
pub(crate) fn measure(object: &[u8]) -> Result<String> {
    tell("memory of the tables");
    let mut ebpf = load_all(object)?;
    let handshake: &mut SockOps =
        ebpf.program_mut(HANDSHAKE).context("no program of handshakes")?.try_into()?;
    handshake.load()?;
    let programs = programs(&ebpf)?;
    let empty = tables(&programs)?;
    fill(&mut Tables::take(&mut ebpf, [1, 2])?)?;
    let full = tables(&programs)?;
    let code: u64 = programs.iter().map(|info| Ok(u64::from(info.memory_locked()?))).sum::<Result<u64>>()?;

    let mut order: Vec<(u32, &Table)> = full.iter().map(|(id, table)| (*id, table)).collect();
    order.sort_by_key(|(_, table)| std::cmp::Reverse(table.bytes));
    let mut text = "| table | rows | KiB empty | KiB full |\n|---|--:|--:|--:|\n".to_owned();
    let kib = |bytes: u64| grouped(bytes.div_ceil(1024));
    let at_first = |id: u32| empty.get(&id).map_or(0, |table| table.bytes);
    for (id, table) in order.iter().take(SHOWN) {
        let (before, after) = (kib(at_first(*id)), kib(table.bytes));
        let _ =
            writeln!(text, "| `{}` | {} | {before} | {after} |", table.name, grouped(table.entries.into()));
    }
    let rest = order.get(SHOWN..).unwrap_or_default();
    let before: u64 = rest.iter().map(|(id, _)| at_first(*id)).sum();
    let after: u64 = rest.iter().map(|(_, table)| table.bytes).sum();
    let _ = writeln!(text, "| {} others | | {} | {} |", rest.len(), kib(before), kib(after));
    let _ = writeln!(text, "| {} programs | | {} | {} |", programs.len(), kib(code), kib(code));
    let sum = |tables: &BTreeMap<u32, Table>| tables.values().map(|table| table.bytes).sum::<u64>() + code;
    let _ = writeln!(text, "| **all** | | **{}** | **{}** |", kib(sum(&empty)), kib(sum(&full)));
    Ok(text)
}

fn programs(ebpf: &Ebpf) -> Result<Vec<ProgramInfo>> {
    let mut found = Vec::new();
    for name in [PROGRAM, COOKIE, SEGMENT] {
        let program: &Xdp = ebpf.program(name).context("a program is missing")?.try_into()?;
        found.push(program.info()?);
    }
    let handshake: &SockOps = ebpf.program(HANDSHAKE).context("no program of handshakes")?.try_into()?;
    found.push(handshake.info()?);
    Ok(found)
}

/// Every table that one of the programs uses, by identity.
fn tables(programs: &[ProgramInfo]) -> Result<BTreeMap<u32, Table>> {
    let mut found = BTreeMap::new();
    for program in programs {
        for id in program.map_ids()?.context("the kernel does not say which tables a program uses")? {
            let info = MapInfo::from_id(id)?;
            let descriptor = info.fd()?;
            let path = format!("/proc/self/fdinfo/{}", std::os::fd::AsFd::as_fd(&descriptor).as_raw_fd());
            let said = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
            let bytes = said.lines().find_map(|line| line.strip_prefix("memlock:"));
            let bytes = bytes.context("the kernel does not say what a table takes")?.trim().parse()?;
            let name = info.name_as_str().context("a table without a name")?.to_owned();
            found.insert(id, Table { name, entries: info.max_entries(), bytes });
        }
    }
    Ok(found)
}

/// Fills the tables whose memory grows with what is in them, and the ban table.
fn fill(tables: &mut Tables) -> Result<()> {
    let ban = BanEntry { expires_ns: u64::MAX, ban_id: 1, flags: 0 };
    for number in 0..u32::try_from(DEFAULT_BANS)? {
        tables.set_ban(&SourceKey::v4(number.to_be_bytes()), &ban)?;
    }
    let network = |number: usize| Ipv6Addr::from_bits(0x2001_0db8 << 96 | (number as u128) << 64).octets();
    for number in 0..DEFAULT_NETS {
        tables.set_net((64, network(number)), &ban)?;
    }
    for number in 0..DEFAULT_ALLOW {
        let entry = AllowEntry { origin: ALLOW_BY_OPERATOR, allow_id: 1 };
        tables.set_allow((64, network(number)), &entry)?;
    }
    Ok(())
}
