//! `cargo xtask test-vm`: boots Debian's kernels in QEMU and tries the shield in each.
//!
//! It needs no root and no virtualisation by the processor: QEMU emulates one. Kernels and, where the machine has none,
//! QEMU itself are unpacked into `target/vm`; nothing is installed. What runs inside is `tests/src/bin/vm_guest.rs`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::{process, workspace};
use kernels::Kernel;
use machine::Emulator;
use report::Report;

mod initramfs;
mod kernels;
mod machine;
mod report;

/// The target that the guest is linked for. It is named, so that its flags reach no build script and no other build.
const GUEST_TARGET: &str = "x86_64-unknown-linux-gnu";

/// What `cargo xtask test-vm` is asked.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Which kernels, separated by commas.
    #[arg(long = "kernel", value_enum, value_delimiter = ',', default_values_t = Line::ALL)]
    kernels: Vec<Line>,
}

/// A line of kernels that Debian keeps up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Line {
    /// The oldest that the shield supports.
    #[value(name = "6.1")]
    V6_1,
    /// The long-term line after it.
    #[value(name = "6.12")]
    V6_12,
    /// The newest that Debian has outside its unstable part.
    #[value(name = "newest")]
    Newest,
    /// Too old for the shield, which must say so.
    #[value(name = "5.10")]
    V5_10,
}

impl Line {
    const ALL: [Self; 4] = [Self::V6_1, Self::V6_12, Self::Newest, Self::V5_10];

    /// As the command line names it.
    fn label(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
            Self::Newest => "newest",
            Self::V5_10 => "5.10",
        }
    }

    /// The suite of Debian's archive that has it.
    fn suite(self) -> &'static str {
        match self {
            Self::V6_1 | Self::V6_12 => "bookworm-security",
            Self::Newest => "trixie-backports",
            Self::V5_10 => "bullseye-security",
        }
    }

    /// What its versions begin with, or `None` where any will do.
    fn series(self) -> Option<&'static str> {
        match self {
            Self::V6_1 | Self::V6_12 | Self::V5_10 => Some(self.label()),
            Self::Newest => None,
        }
    }

    /// Whether the shield must refuse to load.
    fn is_too_old(self) -> bool {
        match self {
            Self::V6_1 | Self::V6_12 | Self::Newest => false,
            Self::V5_10 => true,
        }
    }

    /// What the circuit gate hangs on: TCX came with Linux 6.6.
    fn gate_hook(self) -> &'static str {
        match self {
            Self::V5_10 | Self::V6_1 => "clsact",
            Self::V6_12 | Self::Newest => "tcx",
        }
    }
}

/// Runs the command.
///
/// # Errors
/// Names the kernels that failed; why stands on each kernel's line.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("the virtual machines are x86-64 and the guest is built without a cross compiler");
    }
    let root = workspace::root()?;
    let folder = root.join("target/vm");
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let emulator = Emulator::find(&folder)?;
    let guest = build_guest(&root, &folder)?;
    let mut failed = Vec::new();
    for line in &arguments.kernels {
        match try_kernel(*line, &folder, &emulator, &guest) {
            Ok(seen) => println!("{:<6} {seen}", line.label()),
            Err(error) => {
                println!("{:<6} FAILED: {error:#}", line.label());
                failed.push(line.label());
            }
        }
    }
    if !failed.is_empty() {
        bail!("failed with these kernels: {}", failed.join(", "));
    }
    Ok(())
}

/// Links the guest statically: its machine has no libraries. Returns the program.
fn build_guest(root: &Path, folder: &Path) -> Result<PathBuf> {
    let target = folder.join("build");
    let mut cargo = process::command("cargo")?;
    cargo
        .args(["build", "--package", "tunica-tests", "--bin", "vm_guest", "--target", GUEST_TARGET])
        .arg("--target-dir")
        .arg(&target)
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static\x1f-Cstrip=symbols")
        .current_dir(root);
    process::run(&mut cargo)?;
    Ok(target.join(GUEST_TARGET).join("debug/vm_guest"))
}

/// Boots one kernel; returns what was seen, if everything was as it should be.
fn try_kernel(line: Line, folder: &Path, emulator: &Emulator, guest: &Path) -> Result<String> {
    let kernel = Kernel::fetch(line, &folder.join("kernels"))?;
    let archive = folder.join(format!("{}.cpio", line.label()));
    let image = initramfs::build(guest, &kernel.modules)?;
    fs::write(&archive, image).with_context(|| format!("writing {}", archive.display()))?;
    println!("Booting Linux {}", kernel.release);
    let console = folder.join(format!("{}.console", line.label()));
    let ended = emulator.boot(&kernel.image, &archive, &console);
    let words = fs::read(&console)
        .with_context(|| format!("reading the machine's console, {}", console.display()))?;
    let words = String::from_utf8_lossy(&words);
    let report = Report::read(&words);
    let mut problems = report.problems(line, &kernel.release);
    if let Err(error) = ended {
        problems.push(format!("{error:#}"));
    }
    if problems.is_empty() {
        return Ok(report.summary());
    }
    let last: Vec<&str> = words.lines().rev().take(15).collect();
    println!("The end of {}:", console.display());
    for line in last.iter().rev() {
        println!("  | {line}");
    }
    bail!("{}", problems.join("; "))
}
