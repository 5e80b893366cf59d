//! Debian's kernels: the newest of a line, unpacked into `target/vm/kernels` and kept there.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use super::{Line, initramfs};
use crate::{
    process,
    setup::apt::{self, PrivateApt},
};

/// The modules that the guest needs; the rest of what it uses is built in. Below Linux 6.6 the circuit gate is a filter,
/// `cls_bpf`, of the queueing discipline `clsact`, which is in `sch_ingress`.
const MODULES: [&str; 3] = ["veth", "sch_ingress", "cls_bpf"];

/// A kernel to boot.
#[derive(Debug)]
pub(super) struct Kernel {
    /// As `uname -r` says.
    pub(super) release: String,
    /// The file that QEMU boots.
    pub(super) image: PathBuf,
    /// Modules to insert, in this order.
    pub(super) modules: Vec<PathBuf>,
}

impl Kernel {
    /// The newest kernel of the line. It is downloaded where `folder` has another or none; where the archive cannot be
    /// reached, the one from an earlier time is taken.
    ///
    /// # Errors
    /// Names the suite and the archives if there is no kernel to be had.
    pub(super) fn fetch(line: Line, folder: &Path) -> Result<Self> {
        let kept = folder.join(line.label());
        match apt::with_suite(line.suite(), |apt| refresh(line, apt, &kept)) {
            Ok(()) => Self::kept(&kept),
            Err(error) => match Self::kept(&kept) {
                Ok(kernel) => {
                    println!("Linux {} from an earlier time is used: {error:#}", kernel.release);
                    Ok(kernel)
                }
                Err(_) => Err(error),
            },
        }
    }

    fn kept(folder: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = folder.join(name);
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
        };
        let modules = read("modules")?.lines().map(|name| folder.join(name)).collect();
        Ok(Self { release: read("release")?, image: folder.join("vmlinuz"), modules })
    }
}

/// Makes `kept` hold the newest kernel of the line.
fn refresh(line: Line, apt: &PrivateApt, kept: &Path) -> Result<()> {
    // The suite's own line has the general name, others beside it have their series in theirs.
    let mut names = vec!["linux-image-cloud-amd64".to_owned()];
    names.extend(line.series().map(|series| format!("linux-image-{series}-cloud-amd64")));
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let Some(image) = newest(&apt.describe(&names)?, line.series()) else {
        bail!("{} has no kernel of the line {}", names.join(" and "), line.label());
    };
    // What was kept for fewer modules is not enough.
    let wanted = format!("{}={} with {}", image.name, image.version, MODULES.join(" "));
    if fs::read_to_string(kept.join("package")).is_ok_and(|package| package == wanted) {
        return Ok(());
    }
    println!("Downloading Debian's {} {}", image.name, image.version);
    let parts = parts(&apt.describe(&[&image.name])?, &image)?;
    let files = apt.unpack(&parts)?;
    // Renamed into place, so that an interrupted copy is never taken for the whole.
    let partial = kept.with_extension("partial");
    for stale in [&partial, &kept.to_path_buf()] {
        if stale.exists() {
            fs::remove_dir_all(stale).with_context(|| format!("removing {}", stale.display()))?;
        }
    }
    fs::create_dir_all(&partial).with_context(|| format!("making {}", partial.display()))?;
    keep(&files, image.release()?, &partial)?;
    fs::write(partial.join("package"), wanted).context("noting the package")?;
    fs::rename(&partial, kept).with_context(|| format!("renaming to {}", kept.display()))
}

/// Copies what a boot needs from an unpacked package.
fn keep(files: &Path, release: &str, to: &Path) -> Result<()> {
    // Packages of before and after Debian's move of `/lib`; since Linux 7.2 the kernel lies beside its modules.
    let folders = ["lib/modules", "usr/lib/modules"].map(|folder| files.join(folder).join(release));
    let images = [files.join("boot").join(format!("vmlinuz-{release}"))];
    let beside = folders.iter().map(|folder| folder.join("vmlinuz"));
    let Some(image) = images.into_iter().chain(beside).find(|path| path.is_file()) else {
        bail!("the package of Linux {release} has no kernel at a known place");
    };
    fs::copy(&image, to.join("vmlinuz")).with_context(|| format!("copying {}", image.display()))?;
    let mut available = Vec::new();
    for folder in folders.iter().filter(|folder| folder.is_dir()) {
        list_modules(folder, &mut available)?;
    }
    let mut inserted = Vec::new();
    for module in MODULES {
        take_module(module, &available, to, &mut inserted)?;
    }
    fs::write(to.join("modules"), inserted.iter().map(|name| format!("{name}.ko\n")).collect::<String>())?;
    fs::write(to.join("release"), release).context("noting the release")
}

fn list_modules(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))? {
        let entry = entry.with_context(|| format!("listing {}", folder.display()))?;
        // Links lead to the folder of headers, which this package has not.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            list_modules(&entry.path(), found)?;
        } else {
            found.push(entry.path());
        }
    }
    Ok(())
}

/// Copies a module into `to`, what it depends on first, and notes the names in `taken`.
fn take_module(name: &str, available: &[PathBuf], to: &Path, taken: &mut Vec<String>) -> Result<()> {
    if taken.iter().any(|known| known == name) {
        return Ok(());
    }
    // In the names of files `-` and `_` are used at will.
    let is_it = |path: &&PathBuf| {
        let file = path.file_name().unwrap_or_default().to_string_lossy().replace('-', "_");
        file.strip_prefix(name).is_some_and(|rest| matches!(rest, ".ko" | ".ko.xz"))
    };
    let Some(source) = available.iter().find(is_it) else {
        bail!("the package has no module {name}.ko or {name}.ko.xz");
    };
    let target = to.join(format!("{name}.ko"));
    if source.extension().is_some_and(|extension| extension == "xz") {
        let file = fs::File::create(&target).with_context(|| format!("making {}", target.display()))?;
        let mut xz = process::command("xz")?;
        let status = xz.args(["--decompress", "--stdout"]).arg(source).stdout(file).status();
        if !status.context("starting xz")?.success() {
            bail!("xz cannot unpack {}", source.display());
        }
    } else {
        fs::copy(source, &target).with_context(|| format!("copying {}", source.display()))?;
    }
    let module = fs::read(&target).with_context(|| format!("reading {}", target.display()))?;
    for needed in initramfs::dependencies(&module) {
        take_module(&needed, available, to, taken)?;
    }
    taken.push(name.to_owned());
    Ok(())
}

/// A package at a version.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Package {
    name: String,
    version: String,
}

impl Package {
    /// The kernel's release, which stands in the name of its package.
    fn release(&self) -> Result<&str> {
        self.name.strip_prefix("linux-image-").with_context(|| format!("{} is no kernel's name", self.name))
    }
}

/// The package of the newest kernel that a metapackage of `described` (`apt-cache show`) stands for, if any is of the
/// series.
fn newest(described: &str, series: Option<&str>) -> Option<Package> {
    let of_series = |version: &str| {
        series.is_none_or(|series| version.strip_prefix(series).is_some_and(|rest| rest.starts_with('.')))
    };
    let metapackages = described.split("\n\n").filter(|text| field(text, "Version").is_some_and(of_series));
    let newest = metapackages.max_by_key(|text| numbers(field(text, "Version").unwrap_or_default()))?;
    // A metapackage depends on the kernel of its own version, and on nothing else of that name.
    let mut depends = relations(field(newest, "Depends")?);
    depends.find(|package| package.name.starts_with("linux-image-"))
}

/// The kernel's package and those of its release that it depends on, as apt is asked for them.
fn parts(described: &str, image: &Package) -> Result<Vec<String>> {
    let release = image.release()?;
    let of_version = |text: &&str| field(text, "Version") == Some(&image.version);
    let text = described.split("\n\n").find(of_version).context("the kernel's package is not described")?;
    let packages = relations(field(text, "Depends").unwrap_or_default());
    let mut names = BTreeSet::from([format!("{}={}", image.name, image.version)]);
    names.extend(
        packages
            .filter(|package| package.name.strip_suffix(release).is_some_and(|kind| kind.ends_with('-')))
            .map(|package| format!("{}={}", package.name, package.version)),
    );
    Ok(names.into_iter().collect())
}

/// A field of a deb822 paragraph; of the fields asked for here none goes over several lines.
fn field<'a>(paragraph: &'a str, name: &str) -> Option<&'a str> {
    paragraph.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()))
}

/// The packages that a field such as `Depends` asks for in exactly one version (Debian Policy 7.1).
fn relations(text: &str) -> impl Iterator<Item = Package> {
    text.split([',', '|']).filter_map(|relation| {
        let (name, rest) = relation.trim().split_once(" (= ")?;
        Some(Package { name: name.to_owned(), version: rest.strip_suffix(')')?.to_owned() })
    })
}

/// The numbers of a version, in order, for comparing kernels' versions.
fn numbers(version: &str) -> Vec<u64> {
    version
        .split(|character: char| !character.is_ascii_digit())
        .filter_map(|part| part.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const METAPACKAGES: &str = "Package: linux-image-cloud-amd64\nVersion: 6.1.99-2\n\
        Depends: linux-image-6.1.0-9-cloud-amd64 (= 6.1.99-2)\nDescription: x\n more\n\n\
        Package: linux-image-cloud-amd64\nVersion: 6.1.192-2\n\
        Depends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)\n\n\
        Package: linux-image-6.12-cloud-amd64\nVersion: 6.12.9-1~deb12u1\n\
        Depends: linux-base-cloud-amd64 (= 6.12.9-1~deb12u1), linux-image-6.12.9+deb12-cloud-amd64 (= 6.12.9-1~deb12u1)\n";

    #[test]
    fn the_newest_of_a_line_is_taken() {
        let newest = |series| newest(METAPACKAGES, series).map(|package| (package.name, package.version));
        let pair = |name: &str, version: &str| Some((name.to_owned(), version.to_owned()));
        assert_eq!(newest(Some("6.1")), pair("linux-image-6.1.0-56-cloud-amd64", "6.1.192-2"));
        let newer = pair("linux-image-6.12.9+deb12-cloud-amd64", "6.12.9-1~deb12u1");
        assert_eq!(newest(Some("6.12")), newer);
        assert_eq!(newest(None), newer);
        assert_eq!(newest(Some("6")).map(|(name, _)| name), newer.map(|(name, _)| name));
        assert_eq!(newest(Some("5.10")), None);
    }

    #[test]
    fn a_kernel_in_several_packages_is_taken_whole() {
        let release = "7.2.12+deb13-cloud-amd64";
        let image = Package { name: format!("linux-image-{release}"), version: "7.2.12-1".to_owned() };
        let described = format!(
            "Package: linux-image-{release}\nVersion: 7.2.11-1\nDepends: linux-binary-{release} (= 7.2.11-1)\n\n\
             Package: linux-image-{release}\nVersion: 7.2.12-1\n\
             Depends: dracut | initramfs-tools (>= 0.120), other-x{release} (= 1), linux-binary-{release} (= 7.2.12-1), \
             linux-modules-{release} (= 7.2.12-1)\n"
        );
        assert_eq!(
            parts(&described, &image).unwrap(),
            ["binary", "image", "modules"].map(|kind| format!("linux-{kind}-{release}=7.2.12-1"))
        );
    }

    #[test]
    fn versions_are_compared_by_number() {
        assert!(numbers("6.1.99-2") < numbers("6.1.192-1"));
        assert!(numbers("6.12.95-1~bpo12+1") < numbers("6.12.117-1~deb12u1"));
        assert!(numbers("7.2.12-1~bpo13+1") > numbers("6.19.14-1~bpo13+1"));
    }

    #[test]
    fn modules_come_behind_what_they_need() {
        let folder = tempfile::TempDir::new().unwrap();
        let (source, to) = (folder.path().join("net/x"), folder.path().join("to"));
        fs::create_dir_all(&source).unwrap();
        fs::create_dir(&to).unwrap();
        fs::write(source.join("pps-core.ko"), b"\0depends=\0").unwrap();
        fs::write(source.join("ptp.ko"), b"\0depends=pps_core\0").unwrap();
        fs::write(source.join("veth.ko"), b"\0depends=ptp,pps_core\0").unwrap();
        fs::write(source.join("veth.ko.old"), b"\0depends=nothing\0").unwrap();
        let mut available = Vec::new();
        list_modules(folder.path(), &mut available).unwrap();
        let mut taken = Vec::new();
        take_module("veth", &available, &to, &mut taken).unwrap();
        assert_eq!(taken, ["pps_core", "ptp", "veth"]);
        assert!(to.join("pps_core.ko").is_file());
        let error = take_module("absent", &available, &to, &mut taken).unwrap_err().to_string();
        assert!(error.contains("absent.ko"), "{error}");
    }
}
