//! Who may know whom: the table of ARCHITECTURE.md, compared with the manifests.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use toml::{Table, Value};

const LICENCE: &str = "MIT OR Apache-2.0";

/// Which crates of other people a crate may name.
#[derive(Clone, Copy, Debug)]
enum Foreign {
    /// Only these: the crate is pure, and a new name here is a decision about the architecture.
    Only(&'static [&'static str]),
    /// Anything but these.
    Not(&'static [&'static str]),
}

/// One crate's wall. Tests may use what they like of other people's, but no more of our own crates.
#[derive(Clone, Copy, Debug)]
struct Wall {
    name: &'static str,
    folder: &'static str,
    ours: &'static [&'static str],
    foreign: Foreign,
}

const RUNTIME: &[&str] = &[
    "aya",
    "hyper",
    "libc",
    "netlink-sys",
    "nix",
    "rand",
    "redb",
    "socket2",
    "tokio",
    "tracing",
    "tracing-subscriber",
];

const WALLS: &[Wall] = &[
    Wall { name: "tunica-common", folder: "common", ours: &[], foreign: Foreign::Only(&["aya", "zerocopy"]) },
    Wall {
        name: "tunica-ebpf",
        folder: "ebpf",
        ours: &["tunica-common"],
        foreign: Foreign::Only(&["aya-ebpf", "aya-log-ebpf"]),
    },
    Wall {
        name: "tunica-core",
        folder: "userspace/core",
        ours: &["tunica-common"],
        foreign: Foreign::Only(&["hex", "serde", "thiserror"]),
    },
    Wall {
        name: "tunica-nft",
        folder: "nft",
        ours: &["tunica-common", "tunica-core"],
        foreign: Foreign::Not(RUNTIME),
    },
    Wall {
        name: "tunica-onion",
        folder: "userspace/onion",
        ours: &[],
        foreign: Foreign::Only(&["crc", "hmac", "sha2", "thiserror"]),
    },
    Wall {
        name: "tunica-pow",
        folder: "userspace/pow",
        ours: &[],
        foreign: Foreign::Only(&["hmac", "sha3", "thiserror"]),
    },
    Wall {
        name: "tunica-systemd",
        folder: "userspace/systemd",
        ours: &[],
        foreign: Foreign::Only(&["command-fds", "nix", "thiserror"]),
    },
    Wall {
        name: "tunica-config",
        folder: "userspace/config",
        ours: &["tunica-common", "tunica-core", "tunica-nft"],
        foreign: Foreign::Not(RUNTIME),
    },
    Wall {
        name: "tunica-api",
        folder: "userspace/api",
        ours: &["tunica-common", "tunica-core"],
        foreign: Foreign::Not(RUNTIME),
    },
    Wall {
        name: "tunicad",
        folder: "userspace/daemon",
        ours: &[
            "tunica-api",
            "tunica-common",
            "tunica-config",
            "tunica-core",
            "tunica-nft",
            "tunica-onion",
            "tunica-systemd",
        ],
        foreign: Foreign::Not(&["arti-client", "aya-ebpf", "clap_mangen"]),
    },
    Wall {
        name: "tunica-front",
        folder: "userspace/front",
        ours: &["tunica-api", "tunica-config", "tunica-core", "tunica-onion", "tunica-pow", "tunica-systemd"],
        foreign: Foreign::Not(&["aya", "aya-obj", "netlink-sys", "nftables", "prometheus", "redb"]),
    },
    Wall {
        name: "tunica-ctl",
        folder: "userspace/ctl",
        ours: &[
            "tunica-api",
            "tunica-common",
            "tunica-config",
            "tunica-core",
            "tunica-nft",
            "tunica-onion",
            "tunica-pow",
        ],
        foreign: Foreign::Not(&["arti-client", "aya", "aya-obj", "hyper", "redb"]),
    },
    Wall {
        name: "tunica-tests",
        folder: "tests",
        ours: &[
            "tunica-api",
            "tunica-common",
            "tunica-config",
            "tunica-core",
            "tunica-ctl",
            "tunica-front",
            "tunica-nft",
            "tunica-onion",
            "tunica-pow",
            "tunicad",
        ],
        foreign: Foreign::Not(&[]),
    },
    Wall {
        name: "tunica-fuzz",
        folder: "tests/fuzz",
        ours: &["tunica-tests"],
        foreign: Foreign::Only(&["libfuzzer-sys"]),
    },
    Wall {
        name: "xtask",
        folder: "xtask",
        ours: &["tunica-api", "tunica-common", "tunica-config", "tunica-core", "tunica-nft", "tunica-tests"],
        foreign: Foreign::Not(&[]),
    },
];

/// Crates that are workspaces of their own, so that they cannot inherit.
const OWN_WORKSPACES: &[&str] = &["ebpf", "tests/fuzz"];

/// Crates that may implement `aya::Pod` for the shared types, since they hand them to the kernel.
const MAY_LOAD: &[&str] = &["tunicad", "tunica-tests", "xtask"];

/// A manifest, as far as the walls care.
struct Manifest {
    path: String,
    table: Table,
}

/// Every crate whose manifest breaks a wall.
///
/// # Errors
/// When a manifest cannot be read.
pub(super) fn problems(root: &Path) -> Result<Vec<String>> {
    let workspace = read(root, "Cargo.toml")?;
    let members = list(workspace.table.get("workspace").and_then(|table| table.get("members")));
    let mut problems = Vec::new();
    for folder in members.iter().map(String::as_str).chain(OWN_WORKSPACES.iter().copied()) {
        let path = PathBuf::from(folder).join("Cargo.toml");
        if !root.join(&path).is_file() {
            problems.push(format!("{}: missing, though the workspace needs it", path.display()));
            continue;
        }
        problems.extend(of_manifest(&read(root, &path.display().to_string())?, folder));
    }
    Ok(problems)
}

fn read(root: &Path, path: &str) -> Result<Manifest> {
    let text = fs::read_to_string(root.join(path)).with_context(|| format!("reading {path}"))?;
    Ok(Manifest { path: path.to_owned(), table: text.parse().with_context(|| format!("reading {path}"))? })
}

fn list(value: Option<&Value>) -> Vec<String> {
    let items = value.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    items.iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn of_manifest(manifest: &Manifest, folder: &str) -> Vec<String> {
    let path = &manifest.path;
    let package = manifest.table.get("package");
    let name = package.and_then(|package| package.get("name")).and_then(Value::as_str).unwrap_or_default();
    let mut problems = Vec::new();
    let Some(wall) = WALLS.iter().find(|wall| wall.name == name) else {
        return vec![format!("{path}: `{name}` has no row in the table of walls, xtask/src/tidy/walls.rs")];
    };
    if wall.folder != folder {
        problems.push(format!("{path}: `{name}` belongs into {}", wall.folder));
    }
    let inherits = |field: &str| {
        package.and_then(|package| package.get(field)).and_then(|value| value.get("workspace")).is_some()
    };
    let licence = package.and_then(|package| package.get("license")).and_then(Value::as_str);
    if !inherits("license") && licence != Some(LICENCE) {
        problems.push(format!("{path}: the licence is not `{LICENCE}`"));
    }
    let lints = manifest.table.get("lints");
    if !OWN_WORKSPACES.contains(&folder)
        && lints.and_then(|lints| lints.get("workspace")) != Some(&Value::Boolean(true))
    {
        problems.push(format!("{path}: does not take the workspace's lints"));
    }
    for (key, kind, value) in dependencies(&manifest.table) {
        let named = value.get("package").and_then(Value::as_str).unwrap_or(key);
        let is_ours = WALLS.iter().any(|other| other.name == named) || named.starts_with("tunica-");
        if is_ours && !wall.ours.contains(&named) {
            problems.push(format!("{path}: `{name}` must not know `{named}`"));
        }
        let may_name = match wall.foreign {
            Foreign::Only(names) => names.contains(&named),
            Foreign::Not(names) => !names.contains(&named),
        };
        if !is_ours && kind != Kind::Test && !may_name {
            problems.push(format!("{path}: `{name}` must not know `{named}`"));
        }
        let loads = list(value.get("features")).iter().any(|feature| feature == "aya");
        if named == "tunica-common" && loads && !MAY_LOAD.contains(&name) {
            problems.push(format!("{path}: `{name}` must not know `aya`, also not through `tunica-common`"));
        }
    }
    problems
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Product,
    Test,
}

/// Every dependency of the manifest, those for particular targets included.
fn dependencies(table: &Table) -> Vec<(&str, Kind, &Value)> {
    let targets = table.get("target").and_then(Value::as_table).into_iter().flat_map(Table::values);
    let tables = targets.filter_map(Value::as_table).chain([table]);
    let mut found = Vec::new();
    for table in tables {
        for (section, kind) in [
            ("dependencies", Kind::Product),
            ("build-dependencies", Kind::Product),
            ("dev-dependencies", Kind::Test),
        ] {
            let entries = table.get(section).and_then(Value::as_table).into_iter().flatten();
            found.extend(entries.map(|(name, value)| (name.as_str(), kind, value)));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(folder: &str, name: &str, rest: &str) -> Vec<String> {
        let text = format!(
            "package = {{ name = \"{name}\", license.workspace = true }}\nlints = {{ workspace = true }}\n{rest}"
        );
        of_manifest(&Manifest { path: "Cargo.toml".to_owned(), table: text.parse().unwrap() }, folder)
    }

    #[test]
    fn core_may_know_serde_and_nothing_that_acts() {
        let good =
            "[dependencies]\nserde = \"1\"\ntunica-common.workspace = true\n[dev-dependencies]\nrand = \"1\"";
        assert_eq!(check("userspace/core", "tunica-core", good), [""; 0]);
        for forbidden in ["tokio", "tracing", "rand", "aya", "hyper", "libc", "getrandom"] {
            for section in ["dependencies", "build-dependencies", "target.'cfg(unix)'.dependencies"] {
                assert_eq!(
                    check("userspace/core", "tunica-core", &format!("[{section}]\n{forbidden} = \"1\"")),
                    [format!("Cargo.toml: `tunica-core` must not know `{forbidden}`")]
                );
            }
        }
    }

    #[test]
    fn no_arrow_runs_back_not_even_in_tests() {
        for (folder, name, known) in [
            ("common", "tunica-common", "tunica-core"),
            ("userspace/core", "tunica-core", "tunica-onion"),
            ("userspace/onion", "tunica-onion", "tunica-core"),
            ("userspace/core", "tunica-core", "tunica-config"),
            ("userspace/config", "tunica-config", "tunicad"),
            ("userspace/api", "tunica-api", "tunica-ctl"),
            ("nft", "tunica-nft", "tunica-config"),
            ("ebpf", "tunica-ebpf", "tunica-core"),
        ] {
            for section in ["dependencies", "dev-dependencies"] {
                assert_eq!(
                    check(folder, name, &format!("[{section}]\n{known} = {{ path = \"x\" }}")),
                    [format!("Cargo.toml: `{name}` must not know `{known}`")]
                );
            }
        }
    }

    #[test]
    fn a_renamed_dependency_is_still_seen() {
        assert_eq!(
            check(
                "userspace/ctl",
                "tunica-ctl",
                "[dependencies]\nkernel = { package = \"aya\", version = \"0.14\" }"
            ),
            ["Cargo.toml: `tunica-ctl` must not know `aya`"]
        );
        assert_eq!(
            check(
                "userspace/ctl",
                "tunica-ctl",
                "[dependencies]\ntunica-common = { workspace = true, features = [\"aya\"] }"
            ),
            ["Cargo.toml: `tunica-ctl` must not know `aya`, also not through `tunica-common`"]
        );
    }

    #[test]
    fn every_crate_has_a_row_a_place_a_licence_and_the_lints() {
        assert!(check("x", "tunica-new", "")[0].contains("no row"));
        assert_eq!(
            check("lib/common", "tunica-common", ""),
            ["Cargo.toml: `tunica-common` belongs into common"]
        );
        let bare = "package = { name = \"tunica-common\", license = \"GPL-3.0\" }".parse().unwrap();
        let problems = of_manifest(&Manifest { path: "Cargo.toml".to_owned(), table: bare }, "common");
        assert_eq!(problems.len(), 2, "{problems:?}");
    }

    #[test]
    fn the_table_has_no_circle() {
        // Rows stand in such an order that a crate knows only crates of rows above its own, `tests` and xtask apart.
        for (index, wall) in WALLS.iter().enumerate() {
            for ours in wall.ours {
                let knows = WALLS.iter().position(|other| other.name == *ours);
                assert!(knows.is_some_and(|known| known < index), "{} → {ours}", wall.name);
            }
        }
    }
}
