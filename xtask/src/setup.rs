//! `cargo xtask setup`: says what development and tests need and why, then installs what is missing.
//!
//! The machine's apt sources, running services and kernel settings are the same afterwards; the run compares them and
//! fails where they differ.

use std::{
    fs,
    io::{self, IsTerminal, Write as _},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{process, workspace};
use apt::PrivateApt;
use packages::{Delivery, PROGRAMS, Program};
use snapshot::Snapshot;

pub(crate) mod apt;
pub(crate) mod packages;
pub(crate) mod snapshot;

/// The linker's last version that uses the LLVM inside rustc; later ones need an LLVM of their own.
const BPF_LINKER: &str = "0.10.3";

/// The suite of Debian's archive that carries several Rust releases side by side.
const RUST_SUITE: &str = "trixie-backports";

/// Where programs and maps are pinned.
const BPFFS: &str = "/sys/fs/bpf";

/// What `cargo xtask setup` is asked.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Only say what would be installed.
    #[arg(long)]
    dry_run: bool,
    /// Do not ask before installing.
    #[arg(long)]
    yes: bool,
}

/// One thing that is missing on this machine.
#[derive(Debug)]
enum Part {
    RustSource { version: String, sysroot: PathBuf },
    BpfLinker,
    Packages(Vec<Program>),
    Unpacked { program: Program, file: &'static str, folder: PathBuf },
    Bpffs,
}

impl Part {
    /// What it is, what it is for, and how it gets here.
    fn plan(&self) -> [String; 3] {
        match self {
            Self::RustSource { version, sysroot } => [
                format!("source of Rust's core library {version}"),
                "the kernel program's target has no ready-made core library".to_owned(),
                format!(
                    "`rustup component add rust-src`; else Debian's package rust-src {version}, unpacked into {}",
                    workspace::rust_src(sysroot).display()
                ),
            ],
            Self::BpfLinker => [
                format!("bpf-linker {BPF_LINKER}"),
                "links the kernel program".to_owned(),
                format!("`cargo install bpf-linker --version {BPF_LINKER} --locked`"),
            ],
            Self::Packages(programs) => [
                programs.iter().map(|program| program.package).collect::<Vec<_>>().join(", "),
                programs
                    .iter()
                    .map(|program| format!("{}: {}", program.name, program.why))
                    .collect::<Vec<_>>()
                    .join("; "),
                format!("`{}` (none of them starts a service)", install_line(programs)),
            ],
            Self::Unpacked { program, folder, .. } => [
                program.name.to_owned(),
                program.why.to_owned(),
                format!(
                    "unpacked from Debian's package {}, which is not installed because it would start a service, \
                     into {}",
                    program.package,
                    folder.display()
                ),
            ],
            Self::Bpffs => [
                format!("a BPF file system on {BPFFS}"),
                "links and maps are pinned there".to_owned(),
                format!("`{}`", mount_line()),
            ],
        }
    }

    /// The command that an administrator must run, where this user may not.
    fn command_for_root(&self) -> Option<String> {
        match self {
            Self::Packages(programs) => Some(install_line(programs)),
            Self::Bpffs => Some(mount_line()),
            Self::RustSource { .. } | Self::BpfLinker | Self::Unpacked { .. } => None,
        }
    }

    /// Whether only `build-ebpf` needs it, so that the prebuilt object serves without it.
    fn is_ebpf_toolchain(&self) -> bool {
        match self {
            Self::RustSource { .. } | Self::BpfLinker => true,
            Self::Packages(_) | Self::Unpacked { .. } | Self::Bpffs => false,
        }
    }

    fn install(&self, root: &Path) -> Result<()> {
        match self {
            Self::RustSource { version, sysroot } => install_rust_source(root, version, sysroot),
            Self::BpfLinker => {
                let mut cargo = process::command("cargo")?;
                cargo.args(["install", "bpf-linker", "--version", BPF_LINKER, "--locked"]);
                process::run(cargo.current_dir(root))
            }
            Self::Packages(programs) => install_packages(programs),
            Self::Unpacked { program, file, folder } => unpack_program(program, file, folder),
            Self::Bpffs => process::run(process::command("mount")?.args(["-t", "bpf", "bpf", BPFFS])),
        }
    }
}

/// Runs the command.
///
/// # Errors
/// When something other than the eBPF toolchain could not be installed, or when the machine differs afterwards in what
/// setup promises to leave alone.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let root = workspace::root()?;
    let parts = missing(&root)?;
    if parts.is_empty() {
        println!("Nothing to install: everything that development and tests need is here.");
        return Ok(());
    }
    go_through(&root, &parts, arguments)
}

/// Installs what is missing before another command goes on; says so only if something is.
///
/// # Errors
/// As [`run`].
pub(crate) fn ensure(with_ebpf_toolchain: bool) -> Result<()> {
    let root = workspace::root()?;
    let mut parts = missing(&root)?;
    parts.retain(|part| with_ebpf_toolchain || !part.is_ebpf_toolchain());
    if parts.is_empty() {
        return Ok(());
    }
    go_through(&root, &parts, &Arguments { dry_run: false, yes: true })
}

fn go_through(root: &Path, parts: &[Part], arguments: &Arguments) -> Result<()> {
    println!("Missing on this machine:");
    for part in parts {
        let [what, why, how] = part.plan();
        println!("\n  {what}\n    for   {why}\n    by    {how}");
    }
    println!();
    if arguments.dry_run {
        println!("Dry run: nothing was installed.");
        return Ok(());
    }
    if !arguments.yes && !is_confirmed()? {
        bail!("nothing was installed");
    }
    let before = Snapshot::take()?;
    let outcome = install(root, parts);
    before.verify()?;
    println!("Apt's sources, running services and kernel settings are as they were.");
    outcome
}

/// What this machine lacks, in the order in which it is installed.
fn missing(root: &Path) -> Result<Vec<Part>> {
    let mut parts = Vec::new();
    let sysroot = workspace::sysroot(root)?;
    if !workspace::has_rust_src(&sysroot) {
        parts.push(Part::RustSource { version: workspace::pinned_rust(root)?, sysroot });
    }
    if !has_bpf_linker()? {
        parts.push(Part::BpfLinker);
    }
    let mut to_install = Vec::new();
    let mut to_unpack = Vec::new();
    for program in PROGRAMS {
        if is_here(program)? {
            continue;
        }
        match program.delivery {
            Delivery::Install | Delivery::Library => to_install.push(*program),
            Delivery::Unpack { file } => {
                let folder = workspace::tools_bin(root);
                to_unpack.push(Part::Unpacked { program: *program, file, folder });
            }
        }
    }
    if !to_install.is_empty() {
        parts.push(Part::Packages(to_install));
    }
    parts.extend(to_unpack);
    if !is_bpffs_mounted(&fs::read_to_string("/proc/self/mountinfo").context("reading the mounts")?) {
        parts.push(Part::Bpffs);
    }
    Ok(parts)
}

fn is_here(program: &Program) -> Result<bool> {
    match program.delivery {
        Delivery::Install | Delivery::Unpack { .. } => Ok(process::find(program.name)?.is_some()),
        Delivery::Library => {
            let known = process::capture(process::command("ldconfig")?.arg("--print-cache"))?;
            Ok(known.lines().any(|line| line.split_whitespace().next() == Some(program.name)))
        }
    }
}

/// Checks that a program or library of [`PROGRAMS`] is on this machine.
///
/// # Errors
/// Names it, and the package that brings it, where it is not.
pub(crate) fn need(program: &Program) -> Result<()> {
    if !is_here(program)? {
        bail!(
            "`{}` is missing (Debian package `{}`): run `cargo xtask setup`",
            program.name,
            program.package
        );
    }
    Ok(())
}

/// Whether the linker is here in the version that the kernel program is built with.
///
/// # Errors
/// When the folders to look in are unknown.
pub(crate) fn has_bpf_linker() -> Result<bool> {
    if process::find("bpf-linker")?.is_none() {
        return Ok(false);
    }
    // One that does not start, such as after its LLVM left, counts as missing.
    let version = process::capture(process::command("bpf-linker")?.arg("--version")).unwrap_or_default();
    Ok(version.split_whitespace().any(|word| word == BPF_LINKER))
}

fn is_confirmed() -> Result<bool> {
    if !io::stdin().is_terminal() {
        bail!("nothing was installed: say `--yes` where no terminal can answer");
    }
    print!("Install? [y/N] ");
    io::stdout().flush().context("asking")?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).context("reading the answer")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn install(root: &Path, parts: &[Part]) -> Result<()> {
    let mut for_root = Vec::new();
    let mut toolchain = Vec::new();
    let mut failed = Vec::new();
    for part in parts {
        let [what, _, _] = part.plan();
        if let (Some(command), false) = (part.command_for_root(), process::is_root()) {
            for_root.push(command);
            continue;
        }
        println!("Installing {what}");
        match part.install(root) {
            Ok(()) => {}
            Err(error) if part.is_ebpf_toolchain() => toolchain.push(format!("{what}: {error:#}")),
            Err(error) => failed.push(format!("{what}: {error:#}")),
        }
    }
    if !toolchain.is_empty() {
        println!(
            "\nThe eBPF toolchain cannot be had on this machine:\n  {}\n\
             The kernel program cannot be rebuilt here, so `cargo xtask build-ebpf` will refuse. Everything else \
             works: the daemon embeds the prebuilt object ebpf/prebuilt/shield.o.\n",
            toolchain.join("\n  ")
        );
    }
    if !for_root.is_empty() {
        failed.push(format!("run as root:\n    {}", for_root.join("\n    ")));
    }
    if !failed.is_empty() {
        bail!("not everything is installed:\n  {}", failed.join("\n  "));
    }
    Ok(())
}

fn install_rust_source(root: &Path, version: &str, sysroot: &Path) -> Result<()> {
    let by_rustup = rust_source_by_rustup(root, version);
    if by_rustup.is_ok() && workspace::has_rust_src(sysroot) {
        return Ok(());
    }
    let by_rustup = by_rustup.err().map_or("it brought no source".to_owned(), |error| format!("{error:#}"));
    println!("rustup could not ({by_rustup}); trying Debian's archive");
    rust_source_from_debian(version, sysroot)
        .with_context(|| format!("neither rustup ({by_rustup}) nor Debian's archive has it"))?;
    if !workspace::has_rust_src(sysroot) {
        bail!("{} is incomplete after the installation", workspace::rust_src(sysroot).display());
    }
    Ok(())
}

fn rust_source_by_rustup(root: &Path, version: &str) -> Result<()> {
    let mut rustup = process::command("rustup")?;
    rustup.args(["component", "add", "rust-src", "--toolchain", version]);
    process::capture(rustup.current_dir(root)).map(drop)
}

/// Takes Debian's package of exactly this release from an archive that the machine already uses.
fn rust_source_from_debian(version: &str, sysroot: &Path) -> Result<()> {
    apt::with_suite(RUST_SUITE, |apt| rust_source_from(apt, version, sysroot))
}

fn rust_source_from(apt: &PrivateApt, version: &str, sysroot: &Path) -> Result<()> {
    let versions = apt.versions("rust-src")?;
    let Some(package) = apt::matching_version(&versions, version) else {
        bail!("{RUST_SUITE} has no rust-src {version}, only: {}", versions.join(", "));
    };
    println!("Downloading Debian's rust-src {package}");
    let files = apt.unpack(&[format!("rust-src={package}")])?;
    let library = files.join(format!("usr/src/rustc-{version}/library"));
    let target = workspace::rust_src(sysroot);
    let folder = target.parent().context("the library's folder has no parent")?;
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    // Renamed into place, so that an interrupted copy is never taken for the whole.
    let partial = folder.join("library.partial");
    for stale in [&partial, &target] {
        if stale.exists() {
            fs::remove_dir_all(stale).with_context(|| format!("removing {}", stale.display()))?;
        }
    }
    process::capture(process::command("cp")?.arg("-a").arg(&library).arg(&partial))?;
    fs::rename(&partial, &target).with_context(|| format!("renaming to {}", target.display()))
}

const INSTALL: [&str; 4] = ["install", "--yes", "--no-install-recommends", "--no-upgrade"];

fn install_line(programs: &[Program]) -> String {
    let packages: Vec<&str> = programs.iter().map(|program| program.package).collect();
    format!("apt-get {} {}", INSTALL.join(" "), packages.join(" "))
}

fn mount_line() -> String {
    format!("mount -t bpf -o mode=0700 bpf {BPFFS}")
}

fn install_packages(programs: &[Program]) -> Result<()> {
    let install = || -> Result<()> {
        let mut apt = process::command("apt-get")?;
        // needrestart, where present, would restart services that the administrator did not ask about.
        apt.env("DEBIAN_FRONTEND", "noninteractive").env("NEEDRESTART_SUSPEND", "1");
        apt.args(INSTALL).args(programs.iter().map(|program| program.package));
        process::run(&mut apt)
    };
    if install().is_err() {
        println!("The package lists are missing or too old; fetching them and trying once more.");
        process::run(process::command("apt-get")?.arg("update"))?;
        install()?;
    }
    programs.iter().try_for_each(need)
}

fn unpack_program(program: &Program, file: &str, folder: &Path) -> Result<()> {
    // With lists of its own: the machine's may be missing or old, and a user may not refresh them.
    let apt = PrivateApt::new(None)?;
    let unpacked = apt.unpack(&[program.package.to_owned()])?.join(file);
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    let target = folder.join(program.name);
    fs::copy(&unpacked, &target)
        .with_context(|| format!("copying {file} of {} into {}", program.package, folder.display()))?;
    // A module that a program loads need not be executable in its package; here it is found as programs are.
    fs::set_permissions(&target, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("making {} executable", target.display()))?;
    process::need(program.name).map(drop)
}

/// Whether these mounts (`/proc/self/mountinfo`, see `proc_pid_mountinfo(5)`) have a BPF file system on [`BPFFS`].
fn is_bpffs_mounted(mountinfo: &str) -> bool {
    mountinfo.lines().any(|line| {
        let kind = line.split_once(" - ").and_then(|(_, tail)| tail.split_whitespace().next());
        line.split_whitespace().nth(4) == Some(BPFFS) && kind == Some("bpf")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bpffs_is_told_from_other_mounts() {
        let bpffs = "33 26 0:29 / /sys/fs/bpf rw,relatime shared:10 - bpf bpf rw,mode=700";
        assert!(is_bpffs_mounted(bpffs));
        assert!(!is_bpffs_mounted(&bpffs.replace(" - bpf", " - tmpfs")));
        assert!(!is_bpffs_mounted(&bpffs.replace("/sys/fs/bpf", "/sys/fs/bpf/inner")));
        assert!(!is_bpffs_mounted(""));
    }

    #[test]
    fn what_only_root_may_do_is_said_as_a_command() {
        let programs: Vec<Program> = PROGRAMS
            .iter()
            .copied()
            .filter(|program| program.delivery == Delivery::Install)
            .take(2)
            .collect();
        assert_eq!(
            Part::Packages(programs).command_for_root().as_deref(),
            Some("apt-get install --yes --no-install-recommends --no-upgrade iproute2 bpftool")
        );
        assert_eq!(
            Part::Bpffs.command_for_root().as_deref(),
            Some("mount -t bpf -o mode=0700 bpf /sys/fs/bpf")
        );
        assert_eq!(Part::BpfLinker.command_for_root(), None);
    }

    #[test]
    fn each_program_is_listed_once_and_says_what_for() {
        for (index, program) in PROGRAMS.iter().enumerate() {
            assert!(!program.why.is_empty() && !program.package.is_empty());
            assert!(PROGRAMS.iter().skip(index + 1).all(|other| other.name != program.name));
        }
    }
}
