//! `cargo xtask tidy`: cheap checks of the tree's structure. It reports every problem at once.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context, Result, bail};

use crate::{build_ebpf, workspace};

mod links;
mod rust_code;
mod text;
mod walls;

/// Everything that stands in the root folder, besides names that begin with a dot.
const ROOT_ENTRIES: &[&str] = &[
    "ARCHITECTURE.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "clippy.toml",
    "common",
    "deny.toml",
    "deploy",
    "docs",
    "ebpf",
    "nft",
    "rust-toolchain.toml",
    "rustfmt.toml",
    "tests",
    "userspace",
    "xtask",
];

/// Runs the command.
///
/// # Errors
/// When the tree has a problem (each is printed) or cannot be read.
pub(crate) fn run() -> Result<()> {
    let root = workspace::root()?;
    let files = workspace::files(&root)?;
    let names: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();

    let mut problems = root_problems(&names);
    problems.extend(walls::problems(&root)?);
    problems.extend(rust_code::problems_of_names(&names));
    let mut pages = Vec::new();
    for name in &names {
        let bytes = fs::read(root.join(name)).with_context(|| format!("reading {name}"))?;
        problems.extend(text::problems(name, &bytes));
        let Ok(content) = String::from_utf8(bytes) else { continue };
        if Path::new(name).extension().is_some_and(|extension| extension == "rs") {
            problems.extend(rust_code::problems(name, &content));
        }
        if Path::new(name).extension().is_some_and(|extension| extension == "md") {
            pages.push((name.as_str(), content));
        }
    }
    problems.extend(links::problems(&names, &pages));
    if let Err(error) = build_ebpf::check_sums(&root) {
        problems.push(format!("{error:#}"));
    }

    for problem in &problems {
        println!("{problem}");
    }
    if !problems.is_empty() {
        bail!("{} problems in the tree's structure", problems.len());
    }
    println!("{} files are tidy.", names.len());
    Ok(())
}

fn root_problems(files: &[String]) -> Vec<String> {
    let present: BTreeSet<&str> = files
        .iter()
        .filter_map(|file| file.split('/').next())
        .filter(|entry| !entry.starts_with('.'))
        .collect();
    let expected: BTreeSet<&str> = ROOT_ENTRIES.iter().copied().collect();
    let unexpected = present.difference(&expected).map(|entry| {
        format!("{entry}: has no place in the root folder; the list stands in xtask/src/tidy.rs")
    });
    let absent = expected.difference(&present).map(|entry| format!("{entry}: missing in the root folder"));
    unexpected.chain(absent).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_folder_holds_exactly_the_list() {
        let mut files: Vec<String> = ROOT_ENTRIES.iter().map(|entry| format!("{entry}/inner")).collect();
        files.push(".gitignore".to_owned());
        assert!(root_problems(&files).is_empty());
        files.push("notes/idea.md".to_owned());
        files.retain(|file| !file.starts_with("nft/"));
        let problems = root_problems(&files);
        assert_eq!(problems.len(), 2);
        assert!(problems[0].starts_with("notes: has no place") && problems[1].starts_with("nft: missing"));
    }
}
