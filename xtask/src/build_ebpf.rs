//! `cargo xtask build-ebpf`: the kernel programs, the same bytes wherever they are built.
//!
//! The objects are committed, so that a plain `cargo build` needs stable Rust alone. `--check` is the proof that they came
//! from this source; `--prove` that neither the folder of the tree nor cargo's home leave a trace in them.

use std::{
    env,
    ffi::OsString,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::Args;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::{process, setup, setup::snapshot::hex, workspace};

pub(crate) mod compiler;

const TARGET: &str = "bpfel-unknown-none";
/// Not `ebpf/target`: cargo would take over what somebody built by hand, with cargo's own metadata.
const TARGET_DIR: &str = "target/ebpf";
const PREBUILT: &str = "ebpf/prebuilt";
const SUMS: &str = "ebpf/prebuilt/SHA256SUMS";
/// The programs; each is an object of its own. The checksums stand in this order.
const PROGRAMS: [&str; 2] = [SHIELD, "gate"];
const SHIELD: &str = "shield";

/// A program and its bytes.
type Object = (&'static str, Vec<u8>);

/// What `cargo xtask build-ebpf` is asked.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Rebuilds and fails where a committed object differs; writes nothing.
    #[arg(long)]
    pub(crate) check: bool,
    /// Builds once here and once in another folder with another home of cargo, and compares; writes nothing.
    #[arg(long, conflicts_with = "check")]
    pub(crate) prove: bool,
    /// Builds a program that also prints every drop through aya-log into `target/ebpf/shield-log.o`; bpftool cannot
    /// load it, and nothing embeds it.
    #[arg(long, conflicts_with_all = ["check", "prove"])]
    pub(crate) log: bool,
}

/// Runs the command.
///
/// # Errors
/// When the toolchain is missing, the program does not build, or the bytes differ from those they are compared with.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let root = workspace::root()?;
    need_toolchain(&root)?;
    if arguments.log {
        return write_log(&root);
    }
    let objects = build(&root, &process::cargo_home()?, &PROGRAMS, &[])?;
    if arguments.check {
        check(&root, &objects)
    } else if arguments.prove {
        prove(&root, &objects)
    } else {
        write(&root, &objects)
    }
}

/// Whether the toolchain for the kernel programs is here.
///
/// # Errors
/// Names each part that is missing.
fn need_toolchain(root: &Path) -> Result<()> {
    let mut missing = Vec::new();
    if !workspace::has_rust_src(&workspace::sysroot(root)?) {
        missing.push("rust-src of the pinned toolchain");
    }
    if !setup::has_bpf_linker()? {
        missing.push("bpf-linker in the pinned version");
    }
    if !missing.is_empty() {
        bail!("the eBPF toolchain is incomplete: {}; run `cargo xtask setup`", missing.join(" and "));
    }
    Ok(())
}

/// Builds these programs of the tree at `root` with this home of cargo, and returns the objects.
fn build(
    root: &Path,
    cargo_home: &Path,
    programs: &[&'static str],
    features: &[&str],
) -> Result<Vec<Object>> {
    let folder = root.join("ebpf");
    // The sources must lie unpacked before the build, because each registry's folder is remapped by name.
    let mut fetch = process::command("cargo")?;
    fetch.args(["fetch", "--quiet", "--locked"]).env("CARGO_HOME", cargo_home).current_dir(&folder);
    process::run(&mut fetch)?;

    let target_dir = root.join(TARGET_DIR);
    let mut cargo = process::command("cargo")?;
    cargo
        .args(["build", "--release", "--locked", "-Z", "build-std=core", "--target", TARGET])
        .args(programs.iter().flat_map(|program| ["--bin", program]))
        .args(features)
        .arg("--target-dir")
        .arg(&target_dir)
        // The flag `-Z build-std` is the only one that stable cargo withholds.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags(root, cargo_home, &workspace::sysroot(root)?)?)
        .env("RUSTC_WRAPPER", process::own_program()?)
        .env(compiler::TREE, root)
        .env("CARGO_HOME", cargo_home)
        .current_dir(&folder);
    process::run(&mut cargo)?;
    programs
        .iter()
        .map(|program| Ok((*program, read(&target_dir.join(TARGET).join("release").join(program))?)))
        .collect()
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}

/// Where a program's object lies in the repository.
fn place(program: &str) -> String {
    format!("{PREBUILT}/{program}.o")
}

/// Compiler flags, in cargo's encoding.
///
/// Debug information names every source file, so that each folder that differs from machine to machine gets a fixed
/// name. The compiler takes the last prefix that fits: the more particular stand behind. A registry's folder is named
/// after the host it was fetched from, which may be a mirror, so it is remapped whole.
fn flags(root: &Path, cargo_home: &Path, sysroot: &Path) -> Result<OsString> {
    let mut flags: Vec<OsString> =
        ["-Cdebuginfo=2", "-Clink-arg=--btf", "-Ctarget-cpu=v3"].map(OsString::from).to_vec();
    let mut remap = |from: &Path, to: &str| {
        let mut flag = OsString::from("--remap-path-prefix=");
        flag.push(from);
        flag.push("=");
        flag.push(to);
        flags.push(flag);
    };
    remap(root, "/tunica");
    remap(&sysroot.join("lib/rustlib/src/rust"), "/rust");
    let registries = cargo_home.join("registry/src");
    for entry in fs::read_dir(&registries).with_context(|| format!("listing {}", registries.display()))? {
        remap(&entry.with_context(|| format!("listing {}", registries.display()))?.path(), "/registry");
    }
    Ok(flags.join(OsString::from("\x1f").as_os_str()))
}

fn hash(object: &[u8]) -> String {
    hex(&Sha256::digest(object))
}

fn write_log(root: &Path) -> Result<()> {
    let objects = build(root, &process::cargo_home()?, &[SHIELD], &["--features", "log"])?;
    for (program, object) in objects {
        let path = root.join(format!("{TARGET_DIR}/{program}-log.o"));
        fs::write(&path, &object).with_context(|| format!("writing {}", path.display()))?;
        println!("{}: {} bytes", path.display(), object.len());
    }
    Ok(())
}

fn write(root: &Path, objects: &[Object]) -> Result<()> {
    let folder = root.join(PREBUILT);
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    for (program, object) in objects {
        let place = place(program);
        fs::write(root.join(&place), object).with_context(|| format!("writing {place}"))?;
        println!("{place}: {} bytes, SHA-256 {}", object.len(), hash(object));
    }
    fs::write(root.join(SUMS), sums(objects)).with_context(|| format!("writing {SUMS}"))
}

/// The checksum file's text, as `sha256sum` writes and reads it.
fn sums(objects: &[Object]) -> String {
    objects.iter().map(|(program, object)| format!("{}  {program}.o\n", hash(object))).collect()
}

fn check(root: &Path, objects: &[Object]) -> Result<()> {
    for (program, object) in objects {
        let place = place(program);
        let committed = read(&root.join(&place))?;
        if committed != *object {
            bail!(
                "{place} is not what this source builds: committed {}, built {}; run `cargo xtask build-ebpf`",
                hash(&committed),
                hash(object)
            );
        }
        println!("{place} is what this source builds: SHA-256 {}", hash(object));
    }
    check_sums(root)
}

/// Whether the committed objects have their committed checksums.
///
/// # Errors
/// When one of the files cannot be read, or names both hashes where they differ.
pub(crate) fn check_sums(root: &Path) -> Result<()> {
    let objects: Vec<Object> = PROGRAMS
        .iter()
        .map(|program| Ok((*program, read(&root.join(place(program)))?)))
        .collect::<Result<_>>()?;
    let written = fs::read_to_string(root.join(SUMS)).with_context(|| format!("reading {SUMS}"))?;
    let found = sums(&objects);
    if written != found {
        bail!("{SUMS} says\n{written}and the objects have\n{found}run `cargo xtask build-ebpf`");
    }
    Ok(())
}

/// Builds a copy of the tree in another folder with another home of cargo, and compares with `here`.
fn prove(root: &Path, here: &[Object]) -> Result<()> {
    let elsewhere = TempDir::with_prefix("tunica-prove-").context("making a temporary folder")?;
    let tree = elsewhere.path().join("another/place/for-the-tree");
    for file in workspace::files(root)? {
        let copy = tree.join(&file);
        let folder = copy.parent().context("a file without a folder")?;
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        fs::copy(root.join(&file), &copy).with_context(|| format!("copying {}", file.display()))?;
    }
    let there = build(&tree, &second_cargo_home(&elsewhere.path().join("home-of-cargo"))?, &PROGRAMS, &[])?;
    if here != there {
        bail!(
            "the bytes depend on the folder or on cargo's home: here\n{}elsewhere\n{}",
            sums(here),
            sums(&there)
        );
    }
    let is_in = |path: &str| {
        here.iter().any(|(_, object)| object.windows(path.len()).any(|window| window == path.as_bytes()))
    };
    let traces: Vec<String> = [root.to_path_buf(), process::cargo_home()?, workspace::sysroot(root)?]
        .iter()
        .chain(env::var_os("HOME").map(PathBuf::from).iter())
        .map(|path| path.display().to_string())
        .filter(|path| is_in(path))
        .collect();
    if !traces.is_empty() {
        bail!("the objects name folders of this machine: {}", traces.join(", "));
    }
    print!("The same bytes from two folders and two homes of cargo:\n{}", sums(here));
    Ok(())
}

/// A home of cargo that shares the downloads of the machine's, but unpacks them in its own folder.
fn second_cargo_home(home: &Path) -> Result<PathBuf> {
    let registry = process::cargo_home()?.join("registry");
    fs::create_dir_all(home.join("registry")).with_context(|| format!("making {}", home.display()))?;
    for shared in ["cache", "index"] {
        symlink(registry.join(shared), home.join("registry").join(shared)).context("sharing downloads")?;
    }
    for settings in ["config.toml", "config"] {
        let from = process::cargo_home()?.join(settings);
        if from.is_file() {
            fs::copy(&from, home.join(settings)).context("copying cargo's settings")?;
        }
    }
    Ok(home.to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_folder_of_the_machine_is_remapped_and_the_particular_ones_last() {
        let home = TempDir::new().unwrap();
        fs::create_dir_all(home.path().join("registry/src/mirror-0123")).unwrap();
        let flags = flags(Path::new("/tree"), home.path(), Path::new("/toolchain")).unwrap();
        let flags = flags.into_string().unwrap();
        let remaps: Vec<&str> =
            flags.split('\x1f').filter_map(|flag| flag.strip_prefix("--remap-path-prefix=")).collect();
        let registry = format!("{}/registry/src/mirror-0123=/registry", home.path().display());
        assert_eq!(remaps, ["/tree=/tunica", "/toolchain/lib/rustlib/src/rust=/rust", registry.as_str()]);
    }

    fn objects(gate: &[u8]) -> Vec<Object> {
        vec![(SHIELD, b"shield".to_vec()), ("gate", gate.to_vec())]
    }

    fn tree_with(gate: &[u8], sums: &str) -> TempDir {
        let root = TempDir::new().unwrap();
        write(root.path(), &objects(gate)).unwrap();
        fs::write(root.path().join(SUMS), sums).unwrap();
        root
    }

    #[test]
    fn drift_names_both_hashes() {
        let root = tree_with(b"old", &sums(&objects(b"old")));
        let error = check(root.path(), &objects(b"new")).unwrap_err().to_string();
        assert!(error.contains(&hash(b"old")) && error.contains(&hash(b"new")), "{error}");
        check(root.path(), &objects(b"old")).unwrap();
    }

    #[test]
    fn a_wrong_checksum_file_is_drift() {
        let root = tree_with(b"object", &sums(&objects(b"other")));
        let error = check(root.path(), &objects(b"object")).unwrap_err().to_string();
        assert!(error.contains(&hash(b"object")) && error.contains(&hash(b"other")), "{error}");
    }
}
