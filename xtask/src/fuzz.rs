//! `cargo xtask fuzz`: a search for bytes from outside that break a promise, led by the code they reach.
//!
//! The programs are built with the compiler's coverage instrumentation and libFuzzer's runtime, into `target/fuzz`, where
//! what the search learnt and what it found also lie. A finding is kept as `tests/fuzz/findings/TARGET/NAME`, which every
//! later search starts from and the tests replay.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{process, workspace};

/// What `cargo xtask fuzz` is asked.
#[derive(Args)]
pub(crate) struct Arguments {
    /// What to search; see `--list`.
    #[arg(required_unless_present = "list")]
    target: Option<String>,
    /// How long to search.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Only run this one input, such as a finding.
    #[arg(long, conflicts_with = "seconds")]
    input: Option<PathBuf>,
    /// Only name the targets.
    #[arg(long)]
    list: bool,
}

/// Something that reads bytes from outside.
#[derive(Debug)]
struct Target {
    /// Its program's name.
    name: &'static str,
    about: &'static str,
    /// Folders of inputs that lie in the tree anyway.
    seeds: &'static [&'static str],
}

const TARGETS: [Target; 11] = [
    Target { name: "host-parser", about: "frames, as the tests' reference judges them", seeds: &[] },
    Target {
        name: "config",
        about: "the configuration file",
        seeds: &["userspace/config/tests/good", "userspace/config/tests/bad"],
    },
    Target { name: "control-socket", about: "requests to the daemon and its answers", seeds: &[] },
    Target { name: "ledger", about: "the ledger's rows and commands", seeds: &[] },
    Target { name: "proxy-header", about: "the PROXY header before a stream", seeds: &[] },
    Target { name: "control-port", about: "what tor says, and commands to it", seeds: &[] },
    Target { name: "haproxy-api", about: "what HAProxy answers, and commands to it", seeds: &[] },
    Target { name: "pow-challenge", about: "challenges and nonces that clients bring", seeds: &[] },
    Target { name: "pow-token", about: "tokens that clients show, and the file of their keys", seeds: &[] },
    Target { name: "tor-metrics", about: "tor's metrics", seeds: &[] },
    Target { name: "torrc", about: "what a torrc publishes, and tor's answer of the same", seeds: &[] },
];

/// The programs' package.
const PACKAGE: &str = "tests/fuzz";

/// Longest input in bytes. Every header, key and field fits several times; longer ones only slow the search.
const MAX_BYTES: u32 = 4_096;
/// An input that takes so many seconds is a finding.
const TIMEOUT_SECONDS: u32 = 10;

/// Counts every edge of the code that is taken, and tells the fuzzer both sides of every comparison (LLVM's
/// SanitizerCoverage). Stable rustc has these passes; no flag here is a nightly one.
const INSTRUMENTATION: [&str; 5] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// Runs the command.
///
/// # Errors
/// When there is no such target, it does not build, or an input breaks a promise; the input's file is named.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let Some(name) = arguments.target.as_deref().filter(|_| !arguments.list) else {
        for Target { name, about, .. } in &TARGETS {
            println!("{name:<16}{about}");
        }
        return Ok(());
    };
    let Some(target) = TARGETS.iter().find(|target| target.name == name) else {
        let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        bail!("there is no target {name}, only: {}", names.join(", "));
    };
    let root = workspace::root()?;
    let program = build(&root, target)?;
    match &arguments.input {
        Some(input) => process::run(process::command_at(&program)?.arg(input)),
        None => search(&root, target, &program, arguments.seconds),
    }
}

/// Builds the target's program and returns its path.
fn build(root: &Path, target: &Target) -> Result<PathBuf> {
    process::need("g++")?;
    let mut rustc = process::command("rustc")?;
    let version = process::capture(rustc.arg("-vV").current_dir(root))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names no host")?;
    let folder = root.join("target/fuzz/build");
    let mut cargo = process::command("cargo")?;
    // With a target named, the flags are for the programs alone and not for build scripts and macros.
    cargo.args(["build", "--release", "--bin", target.name, "--target", host, "--target-dir"]).arg(&folder);
    cargo.env("CARGO_ENCODED_RUSTFLAGS", INSTRUMENTATION.join("\x1f")).current_dir(root.join(PACKAGE));
    process::run(&mut cargo)?;
    Ok(folder.join(host).join("release").join(target.name))
}

fn search(root: &Path, target: &Target, program: &Path, seconds: u32) -> Result<()> {
    let own = |kind: &str| -> Result<PathBuf> {
        let folder = root.join("target/fuzz").join(kind).join(target.name);
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        Ok(folder)
    };
    let artifacts = own("artifacts")?;
    let (corpus, seeds) = (own("corpus")?, own("seeds")?);
    let findings = root.join(PACKAGE).join("findings").join(target.name);
    let mut folders = vec![corpus, seeds.clone()];
    folders.extend(target.seeds.iter().map(|folder| root.join(folder)));
    folders.extend(findings.is_dir().then_some(findings));

    let mut fuzzer = process::command_at(program)?;
    fuzzer
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={MAX_BYTES}"))
        .arg(format!("-timeout={TIMEOUT_SECONDS}"))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .args(["-print_final_stats=1", "-use_value_profile=1"])
        .args(&folders)
        .env("TUNICA_FUZZ_SEEDS", &seeds)
        .current_dir(root);
    process::run(&mut fuzzer).with_context(|| {
        format!(
            "{} broke a promise; the input lies in {}; mend the cause and keep the input as {PACKAGE}/findings/{}/NAME",
            target.name,
            artifacts.display(),
            target.name
        )
    })?;
    println!("No finding in {seconds} s.");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_is_a_target_and_every_folder_of_seeds_is_there() {
        let root = workspace::root().unwrap();
        let mut programs: Vec<String> = fs::read_dir(root.join(PACKAGE).join("src/bin"))
            .unwrap()
            .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
            .collect();
        programs.sort();
        let mut names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        names.sort_unstable();
        assert_eq!(programs, names);
        for folder in TARGETS.iter().flat_map(|target| target.seeds) {
            assert!(root.join(folder).is_dir(), "{folder}");
        }
    }
}
