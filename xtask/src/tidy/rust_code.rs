//! What Rust files must not contain. Comments and strings are blanked first, so that only code counts.

/// The files that may contain `unsafe`.
const UNSAFE_FILES: &[&str] = &[
    "common/src/pod.rs",
    "ebpf/src/circuit_gate.rs",
    "ebpf/src/handshake.rs",
    "ebpf/src/packet.rs",
    "ebpf/src/sockets.rs",
    "ebpf/src/syncookie.rs",
    "ebpf/src/tables.rs",
    "tests/src/sys.rs",
    "tests/src/sys/bpf.rs",
    "userspace/daemon/src/sys.rs",
    "userspace/front/src/sys.rs",
];

/// Modules are `foo.rs` and `foo/`.
pub(super) fn problems_of_names(files: &[String]) -> Vec<String> {
    let is_mod = |file: &&String| file.ends_with("/mod.rs") || *file == "mod.rs";
    files.iter().filter(is_mod).map(|file| format!("{file}: modules are `name.rs`, never `mod.rs`")).collect()
}

/// Every problem of one Rust file; `file` is its path from the root.
pub(super) fn problems(file: &str, source: &str) -> Vec<String> {
    let code = code_only(source);
    let mut problems = Vec::new();
    let mut has_unsafe = false;
    for (number, (line, raw)) in code.lines().zip(source.lines()).enumerate() {
        let mut report = |what: &str| problems.push(format!("{file}:{}: {what}", number + 1));
        for unfinished in ["todo", "unimplemented"] {
            if words(line).any(|(word, _, after)| word == unfinished && after.starts_with('!')) {
                report(&format!("`{unfinished}!` is unfinished work"));
            }
        }
        let is_attribute = line.contains("#[") || line.contains("#![");
        if is_attribute && words(line).any(|(word, _, _)| word == "ignore") {
            report("a test that is skipped proves nothing");
        }
        let skipped_example = raw.trim_start().starts_with("//") && raw.contains(concat!("``", "`ignore"));
        if skipped_example {
            report("an example that is skipped proves nothing");
        }
        // The kernel program's licence and entry points need attributes that are spelled `#[unsafe(…)]`.
        let is_unsafe = words(line).any(|(word, before, _)| {
            word == "unsafe" && !(file.starts_with("ebpf/src/") && before.ends_with("#["))
        });
        has_unsafe |= is_unsafe;
        if is_unsafe && !UNSAFE_FILES.contains(&file) {
            report("`unsafe` lives in the files that xtask/src/tidy/rust_code.rs names");
        }
    }
    if UNSAFE_FILES.contains(&file) && !has_unsafe {
        problems.push(format!("{file}: may contain `unsafe` but does not; take it off the list"));
    }
    problems
}

/// The identifiers of a line, with what stands before and behind each.
fn words(line: &str) -> impl Iterator<Item = (&str, &str, &str)> {
    let is_part = |character: char| character.is_alphanumeric() || character == '_';
    let mut rest = line;
    std::iter::from_fn(move || {
        let tail = rest.trim_start_matches(|character| !is_part(character));
        let after = tail.trim_start_matches(is_part);
        let word = tail.strip_suffix(after).filter(|word| !word.is_empty())?;
        let before = line.strip_suffix(tail)?;
        rest = after;
        Some((word, before, after))
    })
}

/// The source with every comment and the inside of every string and character blanked, line by line.
fn code_only(source: &str) -> String {
    let mut code = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let skipped =
            comment_length(rest).or_else(|| string_length(rest, &code)).or_else(|| char_length(rest));
        match skipped.and_then(|length| rest.split_at_checked(length)) {
            Some((blank, tail)) => {
                // Something must part the words around it, and lines must keep their numbers.
                code.push(' ');
                code.extend(blank.chars().filter(|character| *character == '\n'));
                rest = tail;
            }
            None => {
                code.push(first);
                rest = rest.strip_prefix(first).unwrap_or_default();
            }
        }
    }
    code
}

/// The length in bytes of the comment that `text` begins with. Block comments nest.
fn comment_length(text: &str) -> Option<usize> {
    if text.starts_with("//") {
        return Some(text.find('\n').unwrap_or(text.len()));
    }
    if !text.starts_with("/*") {
        return None;
    }
    let mut depth = 0usize;
    let mut rest = text;
    while !rest.is_empty() {
        if let Some(tail) = rest.strip_prefix("/*") {
            depth += 1;
            rest = tail;
        } else if let Some(tail) = rest.strip_prefix("*/") {
            depth -= 1;
            rest = tail;
            if depth == 0 {
                break;
            }
        } else {
            let mut characters = rest.chars();
            characters.next();
            rest = characters.as_str();
        }
    }
    Some(text.len() - rest.len())
}

/// The length in bytes of the string literal that `text` begins with, raw ones included; `before` tells a raw
/// string's `r` from the end of a name.
fn string_length(text: &str, before: &str) -> Option<usize> {
    let follows_name = before.ends_with(|character: char| character.is_alphanumeric() || character == '_');
    let bare = match text.strip_prefix(['b', 'c']) {
        Some(tail) if !follows_name => tail,
        Some(_) | None => text,
    };
    if let Some(raw) = bare.strip_prefix('r').filter(|_| !follows_name) {
        let quoted = raw.trim_start_matches('#');
        let hashes = raw.strip_suffix(quoted)?;
        if let Some(inside) = quoted.strip_prefix('"') {
            let end = format!("\"{hashes}");
            let length = inside.find(&end).map_or(inside.len(), |at| at + end.len());
            return Some(text.len() - inside.len() + length);
        }
    }
    let inside = bare.strip_prefix('"')?;
    let mut is_escaped = false;
    for (at, character) in inside.char_indices() {
        match character {
            '"' if !is_escaped => return Some(text.len() - inside.len() + at + 1),
            '\\' => is_escaped = !is_escaped,
            _ => is_escaped = false,
        }
    }
    Some(text.len())
}

/// The length in bytes of the character literal that `text` begins with; a lifetime is none.
fn char_length(text: &str) -> Option<usize> {
    let inside = text.strip_prefix('\'')?;
    let mut characters = inside.chars();
    let tail = match characters.next()? {
        // `'\''`, `'\n'`, `'\u{1F9C5}'`: the quote after at least one escaped character ends it.
        '\\' => {
            characters.next()?;
            characters.as_str().split_once('\'').map(|(_, tail)| tail)?
        }
        _ => characters.as_str().strip_prefix('\'')?,
    };
    Some(text.len() - tail.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_counts() {
        let source = "// unsafe\n/* unsafe /* unsafe */ unsafe */ let a = \"unsafe \\\" unsafe\";\n\
                      let b = r#\"unsafe \" unsafe\"#; let c = '\"'; let d = '\\''; let e: &'static str = b\"unsafe\";\n\
                      let bar = for_\"x\"; unsafe {}\n";
        let problems = problems("x.rs", source);
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].starts_with("x.rs:4: `unsafe`"), "{problems:?}");
    }

    #[test]
    fn unsafe_is_allowed_where_it_is_listed_and_must_be_there() {
        assert!(problems("common/src/pod.rs", "unsafe impl X for Y {}").is_empty());
        assert_eq!(problems("common/src/pod.rs", "fn f() {}").len(), 1);
        assert_eq!(problems("userspace/core/src/id.rs", "#[unsafe(no_mangle)]").len(), 1);
        assert!(problems("ebpf/src/main.rs", "#[unsafe(no_mangle)]").is_empty());
        assert_eq!(problems("ebpf/src/main.rs", "unsafe { read() }").len(), 1);
    }

    #[test]
    fn unfinished_and_skipped_work_is_named() {
        for bad in [
            "todo!()",
            "unimplemented!(\"later\")",
            "#[ignore]",
            "#[ignore = \"slow\"]",
            "#[cfg_attr(windows, ignore)]",
            concat!("/// ``", "`ignore"),
        ] {
            assert_eq!(problems("x.rs", bad).len(), 1, "{bad}");
        }
        for good in ["let todo = 1;", "ignore(x)", "#[ignored_fields]", "// todo!()"] {
            assert_eq!(problems("x.rs", good), [""; 0], "{good}");
        }
    }

    #[test]
    fn mod_rs_is_named() {
        let files = ["a/src/mod.rs", "a/src/modern.rs"].map(str::to_owned);
        assert_eq!(problems_of_names(&files).len(), 1);
    }
}
