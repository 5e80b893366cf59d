//! What kind of machine the figures are from, without its name.

use std::{fmt::Write as _, fs, process::Command, thread};

use anyhow::{Context, Result};

use crate::{Group, armed::granted};

/// As a Markdown list, with what a group of parts depends on.
///
/// # Errors
/// When a program that takes part is not installed.
pub(crate) fn describe(group: Group) -> Result<String> {
    let read = |path: &str| fs::read_to_string(path).with_context(|| format!("reading {path}"));
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let information = read("/proc/cpuinfo")?;
    let field = |name: &str| {
        let line =
            information.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name));
        line.and_then(|line| line.split_once(": ")).map_or("unnamed", |(_, value)| value)
    };
    let mut text = String::new();
    let _ = writeln!(
        text,
        "- {cores} cores, {}, family {}, model {}{}",
        field("model name"),
        field("cpu family"),
        field("model"),
        if field("flags").split(' ').any(|flag| flag == "hypervisor") { ", virtual" } else { "" },
    );
    let _ = writeln!(text, "- Linux {}", read("/proc/sys/kernel/osrelease")?.trim());
    for (what, file) in [
        ("Spectre v1", "spectre_v1"),
        ("Spectre v2", "spectre_v2"),
        ("speculative store bypass", "spec_store_bypass"),
        ("return stack", "spec_rstack_overflow"),
    ] {
        // Older kernels do not know of all of them.
        if let Ok(state) = fs::read_to_string(format!("/sys/devices/system/cpu/vulnerabilities/{file}")) {
            let _ = writeln!(text, "- {what}: {}", state.trim());
        }
    }
    let mut versions = Vec::new();
    let programs: &[(&str, &[&str])] = match group {
        Group::Packets => {
            let _ = writeln!(text, "- the shield is loaded with {}", granted()?.join(" and "));
            &[
                ("xdp-filter", &["status", "--version"]),
                ("nft", &["--version"]),
                ("iptables", &["--version"]),
                ("iperf3", &["--version"]),
            ]
        }
        Group::Circuits => &[("haproxy", &["-v"]), ("nginx", &["-v"])],
    };
    for (program, arguments) in programs.iter().copied() {
        // Some say it on the error channel and call that a failure.
        let output = Command::new(program).args(arguments).output();
        let output = output.with_context(|| format!("starting `{program}`"))?;
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        versions.push(said.lines().next().unwrap_or(program).trim().to_owned());
    }
    let _ = writeln!(text, "- {}", versions.join("; "));
    text.push('\n');
    Ok(text)
}
