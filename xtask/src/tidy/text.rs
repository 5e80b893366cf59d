//! What no file may contain: folders and hosts of one machine, untidy line ends.

use std::path::Path;

/// Folders of a developer's or builder's machine, without the leading slash.
const MACHINE_FOLDERS: &[&str] = &["home", "root", "work"];

/// Hosts of package registries, as name and domain: which one is used is each machine's affair.
const REGISTRY_HOSTS: &[(&str, &str)] = &[
    ("deb", "debian.org"),
    ("index", "crates.io"),
    ("proxy", "golang.org"),
    ("registry", "npmjs.org"),
    ("security", "debian.org"),
    ("static", "crates.io"),
    ("static", "rust-lang.org"),
];

/// The only source of crates in a lock file.
const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Endings of files whose lines must not end in blanks. Transcripts of programs are not among them.
const NO_TRAILING_BLANKS: &[&str] =
    &["conf", "md", "nft", "rs", "service", "sh", "socket", "toml", "yml", "yaml"];

/// Files that test how odd line ends are read.
const ODD_LINE_ENDS: &[&str] = &["userspace/config/tests/good/byte_order_mark_and_crlf.toml"];

/// Every problem of one file; `file` is its path from the root.
pub(super) fn problems(file: &str, bytes: &[u8]) -> Vec<String> {
    // Invalid parts of a binary become replacement characters, and paths in it stay as they are.
    let content = String::from_utf8_lossy(bytes);
    let mut problems = Vec::new();
    if bytes.contains(&0) {
        let mut named: Vec<String> = content.split('\0').flat_map(machine_names).collect();
        named.sort();
        named.dedup();
        problems.extend(named.iter().map(|name| format!("{file}: {name}")));
        return problems;
    }
    for (number, line) in content.lines().enumerate() {
        problems.extend(machine_names(line).iter().map(|name| format!("{file}:{}: {name}", number + 1)));
        let source = line.strip_prefix("source = \"").and_then(|rest| rest.strip_suffix('"'));
        if file.ends_with("Cargo.lock") && source.is_some_and(|source| source != CRATES_IO) {
            problems.push(format!("{file}:{}: a crate from elsewhere than crates.io", number + 1));
        }
    }
    if !ODD_LINE_ENDS.contains(&file) {
        problems.extend(line_end_problems(file, &content));
    }
    problems
}

/// What a line tells of one machine.
fn machine_names(line: &str) -> Vec<String> {
    let folders = MACHINE_FOLDERS.iter().filter(|folder| names_folder(line, folder));
    let hosts = REGISTRY_HOSTS.iter().map(|(name, domain)| format!("{name}.{domain}"));
    folders
        .map(|folder| format!("names a folder of one machine, /{folder}"))
        .chain(
            hosts.filter(|host| line.contains(host)).map(|host| format!("names a registry's host, {host}")),
        )
        .collect()
}

fn line_end_problems(file: &str, content: &str) -> Vec<String> {
    let mut problems = Vec::new();
    if !content.is_empty() && (!content.ends_with('\n') || content.ends_with("\n\n")) {
        problems.push(format!("{file}: does not end in exactly one line end"));
    }
    if content.contains('\r') {
        problems.push(format!("{file}: has carriage returns"));
    }
    let extension = Path::new(file).extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    if NO_TRAILING_BLANKS.contains(&extension) {
        for (number, _) in content.lines().enumerate().filter(|(_, line)| line.ends_with([' ', '\t'])) {
            problems.push(format!("{file}:{}: ends in blanks", number + 1));
        }
    }
    problems
}

/// Whether the line has the absolute path of something in `/folder`. The folder alone tells nothing of a machine.
fn names_folder(line: &str, folder: &str) -> bool {
    let is_path = |character: char| character.is_alphanumeric() || "._-/~}".contains(character);
    line.match_indices(&format!("/{folder}/")).any(|(at, found)| {
        let (before, rest) = line.split_at_checked(at).unwrap_or_default();
        let after = rest.strip_prefix(found).unwrap_or_default();
        !before.ends_with(is_path)
            && after.starts_with(|character: char| character.is_alphanumeric() || character == '.')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_line(line: &str) -> usize {
        problems("notes.txt", format!("{line}\n").as_bytes()).len()
    }

    #[test]
    fn machine_folders_are_found_as_absolute_paths_only() {
        for folder in MACHINE_FOLDERS {
            assert_eq!(in_line(&format!("see /{folder}/x")), 1);
            assert_eq!(in_line(&format!("\"/{folder}/.cargo\"")), 1);
            for good in [
                format!("https://tunica.example/{folder}/x"),
                format!("a/{folder}/b"),
                format!("~/{folder}/x"),
                format!("/{folder}fs/x"),
                format!("x:0:0::/{folder}:/bin/sh"),
                format!("../{folder}/x"),
            ] {
                assert_eq!(in_line(&good), 0, "{good}");
            }
        }
    }

    #[test]
    fn a_binary_is_searched_too() {
        let mut object = b"\x7fELF\0\xff\0".to_vec();
        object.extend(format!("/{}/registry\0", "root").bytes());
        assert_eq!(problems("shield.o", &object).len(), 1);
    }

    #[test]
    fn registry_hosts_are_found() {
        for (name, domain) in REGISTRY_HOSTS {
            assert_eq!(in_line(&format!("from {name}.{domain}/x")), 1);
        }
    }

    #[test]
    fn crates_come_from_one_place() {
        let lock =
            |source: &str| problems("ebpf/Cargo.lock", format!("source = \"{source}\"\n").as_bytes()).len();
        assert_eq!(lock(CRATES_IO), 0);
        assert_eq!(lock("registry+https://mirror.example/index"), 1);
        assert_eq!(lock("git+https://forge.example/crate"), 1);
    }

    #[test]
    fn line_ends_are_uniform() {
        assert_eq!(problems("a.md", b"one\ntwo\n"), [""; 0]);
        for bad in [&b"one"[..], b"one\n\n", b"one\r\ntwo\n", b"one \ntwo\n", b"one\t\ntwo\n"] {
            assert_eq!(problems("a.md", bad).len(), 1, "{bad:?}");
        }
        assert_eq!(problems("case.stdout", b"one \n"), [""; 0]);
    }
}
