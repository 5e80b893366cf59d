//! Ports over their SYN budget, and the one sysctl that their cookies need.
//!
//! The kernel program arms a port by itself, and remembers until when. What is decided here is whether
//! `net.ipv4.tcp_syncookies` has to be 2 meanwhile, and when it is put back.
//!
//! | remembered | some port armed and may be managed | sysctl is | command | wanted |
//! |---|---|---|---|---|
//! | nothing | yes | 1 | remember 1 | – |
//! | nothing | yes | else | – | – |
//! | nothing | no | any | – | – |
//! | before | yes | any | – | 2 |
//! | before | no | 2 | – | before |
//! | before | no | else | forget | – |
//!
//! It is remembered before it is changed and forgotten after it was put back, so a crash in between leaves nothing
//! behind. If somebody else changes it meanwhile to something that is not 2, that stands.

use std::collections::BTreeMap;

use crate::{
    ledger::{Command, Ledger},
    limits::{HostFacts, Mode, Settings},
    notice::Notice,
    time::Monotime,
};

/// A port over its budget, as the kernel remembers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArmedPort {
    /// Its number.
    pub port: u16,
    /// Since when.
    pub since: Monotime,
    /// Until when, unless more SYNs come.
    pub until: Monotime,
    /// Good cookies that came back to it since the maps were made.
    pub cookies_returned: u64,
}

/// The ports that are over their budget now.
#[derive(Clone, Debug, Default)]
pub(crate) struct ArmedPorts(BTreeMap<u16, ArmedPort>);

impl ArmedPorts {
    /// Takes in all of them. Says which came and went.
    pub(crate) fn saw(&mut self, ports: &[ArmedPort]) -> Vec<Notice> {
        let now: BTreeMap<u16, ArmedPort> = ports.iter().map(|port| (port.port, *port)).collect();
        let come = now.keys().filter(|port| !self.0.contains_key(port));
        let gone = self.0.keys().filter(|port| !now.contains_key(port));
        let notice = |port: &u16, is_armed| Notice::PortArmed { port: *port, is_armed };
        let notices =
            come.map(|port| notice(port, true)).chain(gone.map(|port| notice(port, false))).collect();
        self.0 = now;
        notices
    }

    /// All of them, by number.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &ArmedPort> {
        self.0.values()
    }

    /// Whether the sysctl is to be 2 for them.
    fn needs_syncookies(&self, settings: &Settings, host: &HostFacts) -> bool {
        settings.mode == Mode::Enforce
            && settings.cookies.enabled
            && settings.cookies.manage_syncookies
            && settings.port_syn.is_some()
            && host.has_cookie_program
            && !self.0.is_empty()
    }

    /// What is to be remembered or forgotten of the sysctl.
    pub(crate) fn syncookies_command(
        &self,
        settings: &Settings,
        host: &HostFacts,
        ledger: &Ledger,
    ) -> Option<Command> {
        let found = host.tcp_syncookies;
        match (ledger.syncookies_before, self.needs_syncookies(settings, host)) {
            (None, true) if found == Some(1) => Some(Command::SetSyncookies { before: 1 }),
            (Some(_), false) if found.is_some_and(|found| found != 2) => Some(Command::ClearSyncookies),
            (None, _) | (Some(_), _) => None,
        }
    }

    /// What the sysctl is to be set to; `None`: it is left alone.
    pub(crate) fn syncookies_wanted(
        &self,
        settings: &Settings,
        host: &HostFacts,
        ledger: &Ledger,
    ) -> Option<u32> {
        let before = ledger.syncookies_before?;
        if self.needs_syncookies(settings, host) {
            return Some(2);
        }
        (host.tcp_syncookies == Some(2)).then_some(before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{CookieSettings, tests::settings};

    fn port(port: u16) -> ArmedPort {
        ArmedPort { port, since: Monotime(1), until: Monotime(2), cookies_returned: 0 }
    }

    #[test]
    fn ports_come_and_go() {
        let mut armed = ArmedPorts::default();
        let notice = |port, is_armed| Notice::PortArmed { port, is_armed };
        assert_eq!(armed.saw(&[port(22), port(443)]), [notice(22, true), notice(443, true)]);
        assert_eq!(armed.saw(&[port(443)]), [notice(22, false)]);
        assert_eq!(armed.saw(&[port(443)]), []);
        assert_eq!(armed.iter().count(), 1);
    }

    #[test]
    fn the_sysctl_follows_the_table() {
        let managed = Settings {
            cookies: CookieSettings { manage_syncookies: true, ..settings().cookies },
            ..settings()
        };
        // Remembered, a port is armed, found, command, wanted.
        for (before, is_armed, found, command, wanted) in [
            (None, true, Some(1), set_of(1), None),
            (None, true, Some(2), None, None),
            (None, true, Some(0), None, None),
            (None, true, None, None, None),
            (None, false, Some(1), None, None),
            (Some(1), true, Some(1), None, Some(2)),
            (Some(1), true, Some(2), None, Some(2)),
            (Some(1), false, Some(2), None, Some(1)),
            (Some(1), false, Some(1), Some(Command::ClearSyncookies), None),
            (Some(1), false, Some(0), Some(Command::ClearSyncookies), None),
            (Some(1), false, None, None, None),
        ] {
            let mut armed = ArmedPorts::default();
            if is_armed {
                armed.saw(&[port(443)]);
            }
            let ledger = Ledger { syncookies_before: before, ..Ledger::default() };
            let host = HostFacts { tcp_syncookies: found, has_cookie_program: true, ..HostFacts::default() };
            let row = (before, is_armed, found);
            assert_eq!(armed.syncookies_command(&managed, &host, &ledger), command, "{row:?}");
            assert_eq!(armed.syncookies_wanted(&managed, &host, &ledger), wanted, "{row:?}");
            // Nobody who did not ask for it has it changed; what was changed before is put back.
            for other in [
                settings(),
                Settings { mode: Mode::Observe, ..managed.clone() },
                Settings { port_syn: None, ..managed.clone() },
            ] {
                assert_ne!(armed.syncookies_command(&other, &host, &ledger), set_of(1), "{row:?}");
                assert_ne!(armed.syncookies_wanted(&other, &host, &ledger), Some(2), "{row:?}");
            }
        }
    }

    fn set_of(before: u32) -> Option<Command> {
        Some(Command::SetSyncookies { before })
    }
}
