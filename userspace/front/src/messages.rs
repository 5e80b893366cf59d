//! The lines of this program's log, for the reference. Each bears a `message_id` that never changes meaning.

use tunica_core::message::table;

tunica_core::messages! {
    /// All of them. Lines of libraries, such as Arti's own, bear no id.
    "front_ready", "info", "The ingress has started, and every worker takes streams.";
    "front_stopping", "info", "The ingress takes no more streams, and ends once those that it has are done, at most 30 s later.";
    "front_succeeded", "info", "After a reload (SIGHUP) another process serves from the same sockets; this one ends once what it has is done, at most 30 s later.";
    "front_reload_failed", "error", "After a reload no other process serves: the message and its own lines before this one say why. This process goes on as it was.";
    "front_reload_refused", "warn", "SIGHUP came to an ingress that `tunicad` started (`ingress.start_front`), and nothing was done: `tunica reload` replaces it.";
    "daemon_away", "warn", "`tunicad` does not answer; the ingress goes on with its last orders and asks again every second. It is said once until `tunicad` has answered. If `tunicad` runs, see that the account of `ingress.user` is a member of `control.group`.";
    "load_lapsed", "warn", "Nothing was heard of the load for 30 s, so limits and puzzles are as the configuration says until `tunicad` tells again.";
    "accept_failed", "warn", "A connection of tor could not be taken, most likely because no file descriptor is free; see `LimitNOFILE=` of the unit.";
    "stream_unknown", "debug", "A stream was closed unanswered because its PROXY header names no circuit; see that torrc has `HiddenServiceExportCircuitID haproxy`.";
    "streams_refused", "info", "Streams or requests were refused; `refusal` says by which word, and `count` how many since the line before. It is said with `circuits.log_refusals = true` alone, at most once a second for each word, and names no circuit.";
    "backend_up", "info", "A backend answers its health check again and gets requests.";
    "backend_down", "error", "A backend failed its health check twice in a row, and nothing is sent there until it has passed it twice in a row.";
    "arti_waits", "info", "Another process hosts the onion service; this one takes it over once that one gives it up.";
    "arti_waits", "debug", "What Arti holds in `arti.state_dir` is not free yet; it is tried again every second.";
    "arti_state", "info", "How the onion service is, in one of the words of `tunica_front_arti_state`; it is said when it changes.";
    "arti_bootstrap", "warn", "Arti does not reach the Tor network; the message says why. It is tried again every 5 s.";
    "arti_failed", "error", "The onion service is not hosted; the message says why, and whether it is tried again every 5 s or this process ends so that another one can.";
    "arti_full", "warn", "So many circuits are open that no more are held; the message says which keys bear on that. It is said again only after there was room.";
    "arti_rendezvous", "debug", "A client that asked to be met was not; the message says why.";
    "arti_stream", "debug", "A stream broke off before it was handed on; the message says why.";
}

/// The table of the reference, as Markdown.
pub fn messages_markdown() -> String {
    table(MESSAGES.iter().copied())
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;

    /// Every `tracing::level!(message_id = "name"` of this crate, as name and level.
    fn written(folder: &Path, found: &mut BTreeSet<(String, String)>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                written(&path, found);
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
            for call in text.split("tracing::").skip(1) {
                let Some((level, rest)) = call.split_once("!(") else { continue };
                let name = rest.trim_start().strip_prefix("message_id = \"");
                let name = name.unwrap_or_else(|| panic!("{}: a line without an id: {call}", path.display()));
                found.insert((name.split_once('"').unwrap().0.to_owned(), level.to_owned()));
            }
        }
    }

    #[test]
    fn the_messages_that_the_front_writes_are_those_that_are_listed() {
        let mut found = BTreeSet::new();
        written(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
        let listed: BTreeSet<(String, String)> =
            MESSAGES.iter().map(|message| (message.name.to_owned(), message.level.to_owned())).collect();
        assert_eq!(found, listed);
        assert_eq!(listed.len(), MESSAGES.len(), "an id stands there twice at one level");
        assert!(MESSAGES.iter().all(|message| message.meaning.ends_with('.')));
    }
}
