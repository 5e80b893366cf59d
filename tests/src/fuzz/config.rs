//! The configuration file: [`tunica_config::read`].
//!
//! An input is the file's text; what is not UTF-8 in it is replaced.

use tunica_config::{Config, Problems, example, read};

const ORIGIN: &str = "tunica.toml";

/// A problem is read on a terminal: so many characters must do.
const LONGEST_PROBLEM: usize = 1_000;

/// The example, as it is and with every key switched on. The fuzzer also starts from the files that the configuration's
/// own tests read.
pub fn seeds() -> Vec<Vec<u8>> {
    let example = example();
    let switched_on = example.replace("\n#", "\n").replace("\n ", "\n# ");
    [example, switched_on].map(String::into_bytes).to_vec()
}

/// For all texts, reading ends with a configuration that reads back from another writer's TOML, or with problems that
/// say where, what and why.
pub fn check(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    match read(&text, ORIGIN) {
        Ok(config) => is_sound(&text, &config),
        Err(problems) => are_useful(&text, &problems),
    }
}

fn is_sound(text: &str, config: &Config) {
    assert!(config.settings().is_ok(), "a validated ladder is refused");
    for warning in config.warnings() {
        assert!(!warning.chars().any(char::is_control), "{warning:?}");
    }
    let table: toml::Table = toml::from_str(text).unwrap();
    let rewritten = toml::to_string(&table).unwrap();
    assert_eq!(read(&rewritten, ORIGIN).as_ref(), Ok(config), "rewritten as\n{rewritten}");
}

fn are_useful(text: &str, problems: &Problems) {
    let problems = problems.as_slice();
    assert!(!problems.is_empty(), "refused without a reason");
    assert!(problems.is_sorted_by_key(|problem| (problem.line, problem.column)));
    for problem in problems {
        let line = text.split('\n').nth(problem.line.wrapping_sub(1));
        let columns = line.unwrap_or_else(|| panic!("no such line: {problem}")).chars().count();
        assert!((1..=columns + 1).contains(&problem.column), "no such column: {problem}");
        let names_something = problem.key.as_ref().or(problem.found.as_ref());
        assert!(
            names_something.is_some_and(|name| !name.is_empty()),
            "names neither key nor text: {problem}"
        );
        assert!(!problem.consequence.is_empty() && !problem.fix.is_empty(), "{problem}");
        let shown = problem.to_string();
        assert!(!shown.chars().any(char::is_control), "would control a terminal: {shown:?}");
        assert!(shown.chars().count() <= LONGEST_PROBLEM, "too long: {shown}");
    }
}
