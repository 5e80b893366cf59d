//! Lines of a log, as the reference lists them.

use std::fmt::Write as _;

/// A message of the log of one of our programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// The stable message id.
    pub name: &'static str,
    /// `error`, `warn`, `info` or `debug`.
    pub level: &'static str,
    /// What it means and what to do about it: one sentence or more.
    pub meaning: &'static str,
}

/// The messages of a program, as its constant `MESSAGES`: what it is, then each one's id, level and meaning.
#[macro_export]
macro_rules! messages {
    ($( #[$about:meta] )* $( $name:literal, $level:literal, $meaning:literal; )+) => {
        $( #[$about] )*
        pub const MESSAGES: &[$crate::message::Message] =
            &[ $( $crate::message::Message { name: $name, level: $level, meaning: $meaning }, )+ ];
    };
}

/// A table of messages in Markdown, by their names.
pub fn table(messages: impl IntoIterator<Item = Message>) -> String {
    let mut messages: Vec<Message> = messages.into_iter().collect();
    messages.sort_by_key(|message| message.name);
    let mut table = String::from("| message_id | level | meaning |\n|---|---|---|\n");
    for Message { name, level, meaning } in messages {
        // Writing to a string cannot fail.
        let _ = writeln!(table, "| `{name}` | {level} | {meaning} |");
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_stand_by_their_names() {
        let later = Message { name: "b_ended", level: "warn", meaning: "It ended." };
        let first = Message { name: "a_began", level: "info", meaning: "It began." };
        let rows = "| `a_began` | info | It began. |\n| `b_ended` | warn | It ended. |\n";
        assert!(table([later, first]).ends_with(rows));
    }
}
