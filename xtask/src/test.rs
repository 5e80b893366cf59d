//! `cargo xtask test`: every check and every test, the cheap ones first, beside those that mostly wait.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::Value;

use crate::{
    build_ebpf, generate, process,
    setup::{self, packages::PROGRAMS},
    tidy,
    workspace::{self, Targets},
};

mod binary;
mod lanes;
mod long;

use binary::Binary;

/// The package of tests that need root, namespaces and the real kernel.
const SYSTEM_TESTS: &str = "tunica-tests";

/// How many binaries of that package run at a time.
const LANES: usize = 3;

/// Test binaries of that package that take longer than a few seconds, which `--quick` leaves to the full run; those that take
/// longest first, so that no lane works on one of them while the others have nothing left.
const SLOW: &[&str] = &[
    "demo",
    "circuits",
    "cookies",
    "sybil",
    "front",
    "load",
    "testnet",
    "soak",
    "haproxy",
    "arti",
    "handover",
    "tor_control",
    "challenge",
    "metrics",
    "crowd",
    "self_test",
    "front_process",
    "abuse",
    "translation",
    "operations",
    "privacy",
    "evidence",
    "deploy",
    "tokens",
    "forged_sources",
    "aged",
    "browse",
    "effort",
];

/// What `cargo xtask test` is asked.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Unit tests of all crates and the fast tests of the kernel program; says what it leaves to the full run.
    #[arg(long)]
    quick: bool,
}

/// Runs the command.
///
/// # Errors
/// Names the first step that failed, or everything that the steps lack on this machine.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let root = workspace::root()?;
    let started = Instant::now();
    if process::is_root() {
        setup::ensure(true)?;
    }
    need_everything()?;
    let left = if arguments.quick { quick(&root)? } else { full(&root)? };
    println!("Passed in {} s.", started.elapsed().as_secs());
    if !left.is_empty() {
        println!("Left to `cargo xtask test`: {}.", left.join(", "));
    }
    Ok(())
}

/// Whether the machine can run the tests at all.
///
/// # Errors
/// Names everything that is missing.
fn need_everything() -> Result<()> {
    let mut missing = Vec::new();
    if !process::is_root() {
        missing.push("root: the tests load kernel programs and make network namespaces".to_owned());
    }
    let others =
        ["cargo", "cargo-clippy", "cargo-fmt", "git"].map(|program| process::need(program).map(drop));
    let needs = PROGRAMS.iter().map(setup::need).chain(others);
    missing.extend(needs.filter_map(Result::err).map(|error| format!("{error:#}")));
    if !missing.is_empty() {
        bail!("the tests cannot run on this machine:\n  {}", missing.join("\n  "));
    }
    Ok(())
}

fn cargo(root: &Path) -> Result<Command> {
    let mut cargo = process::command("cargo")?;
    cargo.current_dir(root);
    Ok(cargo)
}

/// Runs one named step and says how long it took.
fn step(name: &str, act: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("\n== {name}");
    let started = Instant::now();
    act().with_context(|| format!("the step `{name}` failed"))?;
    println!("== {name}: passed in {} s", started.elapsed().as_secs());
    Ok(())
}

fn full(root: &Path) -> Result<Vec<String>> {
    let mut binaries = Vec::new();
    step("programs and test binaries", || {
        binaries = binary::build_all(root)?;
        Ok(())
    })?;
    let mut long = long::Running::none(root)?;
    step("tests that run beside everything else: start", || long.start(&binaries, long::FIRST))?;
    step("lock files", || locked(root))?;
    step("format", || process::run(cargo(root)?.args(["fmt", "--all", "--check"])))?;
    step("format of the kernel program", || {
        process::run(cargo(root)?.args(["fmt", "--check"]).current_dir(root.join("ebpf")))
    })?;
    step("format of the fuzzing programs", || {
        process::run(cargo(root)?.args(["fmt", "--check"]).current_dir(root.join("tests/fuzz")))
    })?;
    step("tidy", tidy::run)?;
    step("generated files", || generate::check(Targets::All))?;
    lints_and_documentation(root)?;
    let build = |check, prove, log| build_ebpf::run(&build_ebpf::Arguments { check, prove, log });
    step("the prebuilt kernel program", || build(true, false, false))?;
    step("the same bytes from two folders", || build(false, true, false))?;
    step("the kernel program with its debugging log", || build(false, false, true))?;
    step("the ingress with Arti", || with_arti(root))?;
    step("tests that run beside the rest: start", || long.start(&binaries, long::WITH_ARTI))?;
    let (system, units) = parted(root, binaries);
    let outcomes = [
        // They compute more than they wait.
        step("unit tests", || lanes::run(root, units, 1).and_then(Sum::judge)),
        step("examples in the documentation", || {
            run_tests(cargo(root)?.args(["test", "--workspace", "--doc", "--no-fail-fast"]))
        }),
        step("tests of the system", || lanes::run(root, system, LANES).and_then(Sum::judge)),
        // Also after a failure: they are nearly done.
        step("tests that run beside everything else: outcome", || long.finish().and_then(Sum::judge)),
    ];
    outcomes.into_iter().reduce(both).unwrap_or(Ok(()))?;
    Ok(Vec::new())
}

/// All failures at once are worth more than one.
fn both(one: Result<()>, other: Result<()>) -> Result<()> {
    match (one, other) {
        (Err(one), Err(other)) => bail!("{one:#}; and {other:#}"),
        (one, other) => one.and(other),
    }
}

fn lints_and_documentation(root: &Path) -> Result<()> {
    let lints = ["--all-targets", "--", "-D", "warnings"];
    step("clippy", || process::run(cargo(root)?.args(["clippy", "--workspace"]).args(lints)))?;
    step("clippy of the ingress with Arti", || {
        process::run(cargo(root)?.arg("clippy").args(INGRESS).args(WITH_POW).args(lints))
    })?;
    step("documentation", || {
        let mut doc = cargo(root)?;
        process::run(doc.args(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))
    })
}

/// The system's tests, in the order in which they begin, and all others. Those that run beside everything else are in neither.
fn parted(root: &Path, mut binaries: Vec<Binary>) -> (Vec<Binary>, Vec<Binary>) {
    binaries.retain(|binary| !long::is_one(binary));
    let (mut system, units): (Vec<_>, Vec<_>) =
        binaries.into_iter().partition(|binary| binary.is_of(&root.join("tests")));
    let place = |binary: &Binary| SLOW.iter().position(|slow| *slow == binary.name).unwrap_or(SLOW.len());
    system.sort_by_key(place);
    (system, units)
}

/// Whether every lock file says what its manifests ask for.
fn locked(root: &Path) -> Result<()> {
    for workspace in workspace::LOCKED {
        let mut metadata = cargo(&root.join(workspace))?;
        process::capture(metadata.args(["metadata", "--locked", "--format-version=1"])).with_context(
            || {
                format!(
                    "{workspace}/Cargo.lock is behind the manifests: run `cargo metadata` there and commit it"
                )
            },
        )?;
    }
    Ok(())
}

/// Returns what it left to the full run.
fn quick(root: &Path) -> Result<Vec<String>> {
    let mut left: Vec<String> = [
        "format",
        "tidy",
        "generated files",
        "clippy",
        "documentation and its examples",
        "the kernel program's rebuild",
    ]
    .map(str::to_owned)
    .to_vec();
    let Some(targets) = system_test_targets(root)? else {
        bail!("no package {SYSTEM_TESTS} in the workspace");
    };
    if let Some(unknown) = SLOW.iter().find(|slow| !targets.iter().any(|target| target == *slow)) {
        bail!("xtask/src/test.rs calls `{unknown}` slow, but {SYSTEM_TESTS} has no such test");
    }
    let (slow, fast): (Vec<_>, Vec<_>) =
        targets.iter().map(String::as_str).partition(|target| SLOW.contains(target));
    left.extend(slow.iter().map(|target| format!("{SYSTEM_TESTS}'s {target}")));
    programs(root)?;
    let mut binaries = Vec::new();
    step("test binaries", || {
        binaries = binary::build(root, &["--workspace", "--exclude", SYSTEM_TESTS])?;
        let mut system = vec!["--package", SYSTEM_TESTS, "--lib", "--bins"];
        system.extend(fast.iter().flat_map(|target| ["--test", target]));
        binaries.extend(binary::build(root, &system)?);
        Ok(())
    })?;
    step("unit tests, and fast tests of the system", || {
        lanes::run(root, binaries, LANES).and_then(Sum::judge)
    })?;
    Ok(left)
}

/// Builds the programs that the system tests start.
fn programs(root: &Path) -> Result<()> {
    step("programs", || process::run(cargo(root)?.args(Targets::Programs.build())))
}

const INGRESS: [&str; 2] = ["--package", "tunica-front"];
const WITH_ARTI: [&str; 2] = ["--features", "arti"];
/// With Arti's proof of work as well.
const WITH_POW: [&str; 2] = ["--features", "arti-pow"];

/// The front's feature that hosts the onion service, in a folder of its own below the others, so that neither program takes the
/// other's place: the programs that the system tests start, and its unit tests.
fn with_arti(root: &Path) -> Result<()> {
    const FOLDER: [&str; 2] = ["--target-dir", "target/arti"];
    // All that the unit tests need is built with the programs, so that nothing is built twice.
    const TARGETS: [&str; 3] = ["--lib", "--bins", "--tests"];
    let ingress = |command: &str, feature: [&str; 2]| -> Result<Command> {
        let mut cargo = cargo(root)?;
        // Only what comes out has a folder of its own: some hundred crates are the same for both.
        cargo.env("CARGO_BUILD_BUILD_DIR", root.join("target"));
        cargo.arg(command).args(INGRESS).args(FOLDER).args(feature);
        Ok(cargo)
    };
    process::run(ingress("build", WITH_POW)?.args(TARGETS))?;
    // Cargo gives both programs one place, so this one moves away before the other comes.
    let built = root.join("target/arti/debug");
    fs::rename(built.join("tunica-front"), built.join("tunica-front-pow")).context("keeping the program")?;
    process::run(ingress("build", WITH_ARTI)?.args(TARGETS))?;
    run_tests(ingress("test", WITH_ARTI)?.args(["--lib", "arti"]))
}

/// The test binaries of the system tests, or `None` where the workspace has no such package.
fn system_test_targets(root: &Path) -> Result<Option<Vec<String>>> {
    let text = process::capture(cargo(root)?.args(["metadata", "--no-deps", "--format-version=1"]))?;
    let metadata: Value = serde_json::from_str(&text).context("reading `cargo metadata`")?;
    Ok(test_targets(&metadata, SYSTEM_TESTS))
}

fn test_targets(metadata: &Value, package: &str) -> Option<Vec<String>> {
    let packages = metadata.get("packages")?.as_array()?;
    let package = packages.iter().find(|known| known.get("name").is_some_and(|name| name == package))?;
    let is_test = |target: &&Value| {
        let kinds = target.get("kind").and_then(Value::as_array);
        kinds.is_some_and(|kinds| kinds.iter().any(|kind| kind == "test"))
    };
    let names = package.get("targets")?.as_array()?.iter().filter(is_test);
    Some(names.filter_map(|target| target.get("name")?.as_str()).map(str::to_owned).collect())
}

/// Closing lines of the test runner, added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum {
    binaries: u64,
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Sum {
    /// Both together.
    fn and(self, other: Self) -> Self {
        Self {
            binaries: self.binaries + other.binaries,
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            ignored: self.ignored + other.ignored,
        }
    }

    /// Adds a line such as `test result: ok. 3 passed; 0 failed; 0 ignored; …`; any other line is none.
    fn add(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else { return };
        self.binaries += 1;
        let words: Vec<&str> = result.split([' ', ';']).filter(|word| !word.is_empty()).collect();
        for pair in words.windows(2) {
            let [number, kind] = pair else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            match *kind {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }

    /// Shows the sum, and whether it is good.
    ///
    /// # Errors
    /// When a test failed or was ignored, or none ran.
    fn judge(self) -> Result<()> {
        println!(
            "{} passed, {} failed, {} ignored in {} test binaries",
            self.passed, self.failed, self.ignored, self.binaries
        );
        if self.failed > 0 {
            bail!("tests failed");
        }
        if self.ignored > 0 {
            bail!("{} tests were ignored, and a test that is skipped proves nothing", self.ignored);
        }
        if self.passed == 0 {
            bail!("no test ran");
        }
        Ok(())
    }
}

/// Runs `cargo test`, shows its output, and at the end its closing lines once more, added up.
fn run_tests(command: &mut Command) -> Result<()> {
    let mut child = command.stdout(Stdio::piped()).spawn().context("starting `cargo test`")?;
    let output = child.stdout.take().context("the output of `cargo test`")?;
    let mut closing = Vec::new();
    let mut sum = Sum::default();
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("reading the output of `cargo test`")?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        if line.starts_with("test result: ") {
            sum.add(&line);
            closing.push(line.into_owned());
        }
    }
    let status = child.wait().context("waiting for `cargo test`")?;
    println!("\nThe runner's closing lines:\n  {}", closing.join("\n  "));
    if !status.success() {
        bail!("tests failed ({} passed, {} failed)", sum.passed, sum.failed);
    }
    sum.judge()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_are_added_up() {
        let mut sum = Sum::default();
        sum.add("running 3 tests");
        sum.add(
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.00s",
        );
        sum.add("test result: FAILED. 4 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.25s");
        assert_eq!(sum, Sum { binaries: 2, passed: 7, failed: 2, ignored: 1 });
    }

    #[test]
    fn test_binaries_are_found_in_cargos_metadata() {
        let metadata = serde_json::json!({ "packages": [
            { "name": "other", "targets": [{ "name": "x", "kind": ["test"] }] },
            { "name": "tunica-tests", "targets": [
                { "name": "tunica_tests", "kind": ["lib"] }, { "name": "packets", "kind": ["test"] },
            ] },
        ] });
        assert_eq!(test_targets(&metadata, "tunica-tests"), Some(vec!["packets".to_owned()]));
        assert_eq!(test_targets(&metadata, "absent"), None);
    }
}
