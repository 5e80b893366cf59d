//! Pages and files made from the table of keys.

use crate::keys::{KeyDoc, REFERENCE, SECTIONS};

/// Keys that the example file sets; the others stand there as comments. They are the lines a new installation needs.
const SET_IN_EXAMPLE: [&str; 3] = ["shield.interfaces", "shield.mode", "shield.allow"];
/// Width of the example file's comments, in characters.
const WIDTH: usize = 100;

/// The reference page: every key with kind, default, range and meaning, as Markdown.
pub fn reference_markdown() -> String {
    let mut page = String::from(
        "# Configuration\n\
         \n\
         `tunicad` reads one TOML file, `/etc/tunica/tunica.toml` unless told otherwise.\n\
         Every key but `shield.interfaces` may be left out; then its default counts.\n\
         A key that is not on this page, and a value that is not allowed, are refused, all of them at once, each with its line and column.\n\
         A refused file changes nothing: at a reload the settings before it stay in force.\n",
    );
    for (section, purpose) in SECTIONS {
        page.push_str(&format!("\n## `[{section}]`\n\n{purpose}\n\n"));
        page.push_str("| key | kind | default | allowed | meaning |\n|---|---|---|---|---|\n");
        for (last, doc) in keys_of(section) {
            let default = match (doc.default, doc.is_required) {
                (Some(default), _) => format!("`{default}`"),
                (None, true) => "none: required".to_owned(),
                (None, false) => "not set".to_owned(),
            };
            let KeyDoc { kind, allowed, meaning, .. } = doc;
            page.push_str(&format!("| `{last}` | {kind} | {default} | {allowed} | {meaning} |\n"));
        }
    }
    page
}

/// An example file: every key with its meaning; those that a new installation need not set are comments that show the
/// default.
pub fn example() -> String {
    let mut file = String::from(
        "# Configuration of Tunica. `tunica check` reads it and reports every fault at once.\n\
         # Lines such as `#attach = \"native\"` show the default, or where there is none an example; remove the # to change it.\n",
    );
    for (section, purpose) in SECTIONS {
        file.push('\n');
        push_comment(&mut file, purpose);
        file.push_str(&format!("[{section}]\n"));
        for (last, doc) in keys_of(section) {
            push_comment(&mut file, doc.meaning);
            push_comment(&mut file, &format!("Allowed: {}.", doc.allowed));
            let off = if SET_IN_EXAMPLE.contains(&doc.key) { "" } else { "#" };
            let value = doc.default.or(doc.example).unwrap_or_default();
            file.push_str(&format!("{off}{last} = {value}\n"));
        }
    }
    file
}

fn keys_of(section: &str) -> impl Iterator<Item = (&'static str, &'static KeyDoc)> {
    REFERENCE
        .iter()
        .filter_map(|doc| doc.key.rsplit_once('.').map(|(of, last)| (of, last, doc)))
        .filter(move |(of, ..)| *of == section)
        .map(|(_, last, doc)| (last, doc))
}

/// Adds `text` as comment lines, wrapped between words.
fn push_comment(file: &mut String, text: &str) {
    let mut line = String::from("#");
    for word in text.split(' ') {
        if line.chars().count() + word.chars().count() >= WIDTH {
            file.push_str(&line);
            file.push('\n');
            line = String::from("#");
        }
        line.push(' ');
        line.push_str(word);
    }
    file.push_str(&line);
    file.push('\n');
}
