//! The coordinator against a model of everything around it, on one virtual clock: a ledger file that commands reach
//! first, a kernel that gets edits alone, clocks that step, restarts.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tunica_common::verdict::Verdict;

use super::*;
use crate::{
    circuit_features::{COUNT, Features, PathClass},
    desired::{AllowKey, Tables},
    limits::{self, tests::settings},
    newcomers::NewcomerSettings,
    reconcile::diff,
    time::WallTime,
};

const DAY: u64 = 86_400;

struct World {
    coordinator: Coordinator,
    file: Ledger,
    kernel: Tables,
    now: Now,
    heard: Vec<Notice>,
    /// What the daemon would read from the text of a configuration.
    texts: BTreeMap<String, Settings>,
}

impl World {
    fn new(settings: Settings) -> Self {
        let now = Now { mono: Monotime(1_000_000_000), wall: WallTime(20_000 * DAY) };
        let (file, kernel, heard) = (Ledger::default(), Tables::default(), Vec::new());
        let coordinator = Coordinator::new(settings, file.clone(), now);
        Self { coordinator, file, kernel, now, heard, texts: BTreeMap::new() }
    }

    /// Does what the daemon does with an outcome.
    fn carry_out(&mut self, outcome: Outcome) -> Option<Reply> {
        for command in &outcome.commands {
            ledger::apply(&mut self.file, command).unwrap();
        }
        self.heard.extend(outcome.notices);
        if let Some(settings) = outcome.settings {
            self.coordinator.adopt(*settings, self.now);
        }
        self.heard.extend(self.coordinator.commit(&outcome.commands, self.now).unwrap());
        assert_eq!(self.coordinator.ledger(), &self.file);
        for edit in diff(&self.kernel, &self.coordinator.desired().tables) {
            self.kernel.apply(edit);
        }
        if outcome.undoes_trial {
            let before = self.texts[&self.file.trial.as_ref().unwrap().before].clone();
            self.event(Event::Undone(Box::new(before)));
        }
        outcome.reply
    }

    fn event(&mut self, event: Event) -> Option<Reply> {
        let outcome = self.coordinator.handle(event, self.now);
        self.carry_out(outcome)
    }

    fn advance(&mut self) {
        let outcome = self.coordinator.advance(self.now);
        self.carry_out(outcome);
    }

    /// Lets time pass, waking at every deadline on the way.
    fn pass(&mut self, seconds: u64) {
        let end = Now {
            mono: self.now.mono.after(Duration::from_secs(seconds)),
            wall: self.now.wall.after(Duration::from_secs(seconds)),
        };
        while let Some(deadline) = self.coordinator.next_deadline().filter(|deadline| *deadline <= end.mono) {
            self.now.wall = self.now.wall.after(deadline.since(self.now.mono));
            self.now.mono = deadline.max(self.now.mono);
            self.advance();
            assert!(
                self.coordinator.next_deadline().is_none_or(|next| next > deadline),
                "advance leaves work undone"
            );
        }
        self.now = end;
    }

    /// The daemon dies and starts again from its file; the kernel keeps its tables.
    fn restart(&mut self) {
        self.restart_with(self.coordinator.configured().clone());
    }

    /// The same, where `written` is what the configuration file says.
    fn restart_with(&mut self, written: Settings) {
        let before = self.file.trial.as_ref().and_then(|trial| trial.returns_to(self.now.wall));
        let settings = before.map_or(written, |before| self.texts[before].clone());
        self.coordinator = Coordinator::new(settings, self.file.clone(), self.now);
        self.advance();
    }

    fn ban(&mut self, host: &str, length: Length) -> Option<Reply> {
        let (target, reason) = (host.parse().unwrap(), "scan".into());
        self.event(Event::Ban(BanRequest { target, length, reason, operator: None, dry_run: false }))
    }

    fn unban(&mut self, target: &str) -> Option<Reply> {
        self.event(Event::Unban { target: target.parse().unwrap(), dry_run: false })
    }

    fn allow(&mut self, prefix: &str, length: Length) -> Option<Reply> {
        let (prefix, reason) = (prefix.parse().unwrap(), "office".into());
        self.event(Event::Allow(AllowRequest { prefix, length, reason, dry_run: false }))
    }

    /// Whether the kernel drops packets of a source now.
    fn drops(&self, host: &str) -> bool {
        drops(&self.kernel, self.now, host.parse().unwrap())
    }

    fn names(&mut self) -> Vec<&'static str> {
        self.heard.drain(..).map(|notice| notice.name()).collect()
    }
}

/// Whether the kernel with these tables drops packets of a source.
fn drops(kernel: &Tables, now: Now, source: PacketSource) -> bool {
    let bits = u128::from_be_bytes(Prefix::host(source.prefix().address()).kernel_key().1);
    let holds = |(length, address): &AllowKey| {
        let differs = bits ^ u128::from_be_bytes(*address);
        differs.leading_zeros() >= *length
    };
    let is_allowed = kernel.allow.keys().any(holds);
    // As the kernel does: of ranges the longest alone.
    let net = kernel.nets.iter().filter(|(key, _)| holds(key)).max_by_key(|((length, _), _)| *length);
    let bans = [kernel.bans.get(&source.key()), net.map(|(_, ban)| ban)];
    !is_allowed && bans.into_iter().flatten().any(|ban| now.mono.0 < ban.expires_ns)
}

fn refused(reply: Option<Reply>) -> (RefusedCode, String) {
    match reply {
        Some(Reply::Refused { code, message }) => (code, message),
        other => panic!("not refused: {other:?}"),
    }
}

fn done(reply: Option<Reply>) -> (Vec<String>, Option<String>) {
    match reply {
        Some(Reply::Done { changes, undo, dry_run: false }) => (changes, undo),
        other => panic!("not done: {other:?}"),
    }
}

#[test]
fn three_weeks_of_one_source() {
    let mut world = World::new(settings());
    let host = "198.51.100.7";
    // Seconds that pass, then an offence: the rung it leads to and the seconds it costs.
    for (pause, rung, length) in [
        (0, 1, 300),
        (301, 2, 1_800),
        (60, 3, 14_400),
        (14_400, 4, DAY),
        (DAY - 1, 4, DAY),
        (DAY, 4, DAY),
        (2 * DAY, 3, 14_400),
        (5 * DAY, 1, 300),
        (DAY - 300, 2, 1_800),
        (10 * DAY, 1, 300),
    ] {
        world.pass(pause);
        world.ban(host, Length::Ladder);
        let fact = world.file.bans.values().next().unwrap();
        assert_eq!(fact.rung, Some(rung), "after {pause} s");
        assert_eq!(fact.expires, Some(world.now.wall.after(Duration::from_secs(length))));
        assert!(world.drops(host));
        let started = world.now;
        let end = started.mono.after(Duration::from_secs(length));
        assert_eq!(world.coordinator.desired().tables.bans.values().next().unwrap().expires_ns, end.0);
    }
    world.pass(299);
    assert!(world.drops(host));
    world.pass(1);
    assert!(!world.drops(host));
    assert!(world.file.bans.is_empty() && world.kernel.bans.is_empty());
    assert_eq!(world.file.memories.len(), 1);
    world.pass(DAY);
    assert!(world.file.memories.is_empty());
    assert_eq!(world.coordinator.next_deadline(), None);
    assert_eq!(world.names().last(), Some(&"ban_expired"));
}

#[test]
fn a_restart_keeps_bans_and_a_stepping_wall_clock_moves_none() {
    let mut world = World::new(settings());
    world.ban("198.51.100.7", Length::For(Duration::from_secs(1_000)));
    world.ban("198.51.100.8", Length::Forever);
    let kernel = world.kernel.clone();
    world.now.wall = WallTime(5);
    world.advance();
    world.pass(400);
    assert_eq!(world.kernel, kernel);
    world.now.wall = WallTime(20_000 * DAY + 400);
    world.restart();
    assert_eq!(world.kernel, kernel);
    // A clock that starts at 1970 after a reboot gives the ban its whole length again, and not one second more.
    world.now = Now { mono: Monotime(0), wall: WallTime(0) };
    world.restart();
    world.pass(999);
    assert!(world.drops("198.51.100.7"));
    world.pass(1);
    assert!(!world.drops("198.51.100.7"));
    assert!(world.drops("198.51.100.8"));
    // A clock far ahead ends it at the next start.
    world.ban("198.51.100.7", Length::For(Duration::from_secs(1_000)));
    world.now.wall = WallTime(30_000 * DAY);
    world.restart();
    assert!(!world.drops("198.51.100.7") && world.drops("198.51.100.8"));
}

#[test]
fn protected_sources_are_refused_counted_and_heard() {
    let mut world =
        World::new(Settings { config_allow: vec!["192.0.2.0/24".parse().unwrap()], ..settings() });
    world.event(Event::OwnAddresses(vec!["203.0.113.1".parse().unwrap()]));
    world.event(Event::TorPeers(vec!["203.0.113.9".parse().unwrap(), "2001:db8::1".parse().unwrap()]));
    world.allow("198.51.100.0/24", Length::Forever);
    world.names();
    for (source, sentence) in [
        ("203.0.113.1", "203.0.113.1 cannot be banned: it holds one of this host's own addresses; "),
        (
            "203.0.113.9",
            "203.0.113.9 cannot be banned: it holds the far end of one of tor's own connections; ",
        ),
        ("2001:db8::/64", "2001:db8::/64 cannot be banned: it holds the far end of one of tor's"),
        ("192.0.2.7", "take 192.0.2.0/24 out of `shield.allow` and run `tunica reload` first"),
        ("198.51.100.7", "run `tunica allow remove 198.51.100.0/24` first"),
        ("127.0.0.1", "it holds a loopback address"),
        ("203.0.113.0/28", "203.0.113.0/28 cannot be banned: it holds one of this host's own addresses; "),
        ("203.0.113.8/29", "203.0.113.8/29 cannot be banned: it holds the far end of one of tor's own"),
        ("2001:db8::/47", "2001:db8::/47 cannot be banned: it holds the far end of one of tor's"),
        ("192.0.2.128/25", "take 192.0.2.0/24 out of `shield.allow` and run `tunica reload` first"),
        ("198.51.0.0/16", "run `tunica allow remove 198.51.100.0/24` first"),
        ("127.0.0.0/9", "it holds a loopback address"),
    ] {
        let (code, message) = refused(world.ban(source, Length::Forever));
        assert_eq!(code, RefusedCode::Protected);
        assert!(message.contains(sentence), "{message}");
        assert_eq!(world.names(), ["ban_refused_protected"]);
        let (target, length) = (source.parse().unwrap(), Length::Forever);
        let question = BanRequest { target, length, reason: String::new(), operator: None, dry_run: true };
        refused(world.event(Event::Ban(question)));
        assert!(world.names().is_empty());
    }
    assert_eq!(world.coordinator.refused_bans(), 12);
    assert_eq!(world.kernel.allow.len(), 4);
    world.pass(DAY);
    assert_eq!(world.kernel.allow.len(), 2);
    done(world.ban("203.0.113.9", Length::Ladder));
}

#[test]
fn operators_do_not_lock_themselves_out_unawares() {
    let mut world = World::new(settings());
    let mut ask = |source: &str, from: Option<&str>, dry_run| {
        world.event(Event::Ban(BanRequest {
            target: source.parse().unwrap(),
            length: Length::Forever,
            reason: String::new(),
            operator: from.map(|from| from.parse().unwrap()),
            dry_run,
        }))
    };
    for (source, from) in [
        ("198.51.100.7", "198.51.100.7"),
        ("198.51.100.7", "::ffff:198.51.100.7"),
        ("2001:db8::/64", "2001:db8::9"),
        ("198.51.100.0/29", "198.51.100.7"),
        ("2001:db8::/60", "2001:db8::9"),
    ] {
        for dry_run in [true, false] {
            let (code, message) = refused(ask(source, Some(from), dry_run));
            assert_eq!(code, RefusedCode::Protected);
            for part in
                ["it holds the place where you are logged in from; ", "cut this session off", "`--even-me`"]
            {
                assert!(message.contains(part), "{message}");
            }
        }
    }
    done(ask("198.51.100.8", Some("198.51.100.7"), false));
    done(ask("198.51.100.7", None, false));
    assert_eq!(world.coordinator.refused_bans(), 5);
    assert!(world.drops("198.51.100.7") && !world.drops("2001:db8::9"));
}

#[test]
fn what_becomes_protected_is_unbanned() {
    let mut world = World::new(settings());
    let hosts = ["198.51.100.1", "198.51.100.2", "2001:db8:5::/64", "198.51.100.4"];
    let ranges = ["198.51.100.0/30", "198.51.100.2/31", "2001:db8:5::/48", "198.51.100.4/30"];
    for target in hosts.into_iter().chain(ranges) {
        done(world.ban(target, Length::Forever));
    }
    world.names();
    world.event(Event::OwnAddresses(vec!["198.51.100.1".parse().unwrap()]));
    world.event(Event::TorPeers(vec!["2001:db8:5::7".parse().unwrap()]));
    let config_allow = vec!["198.51.100.2".parse().unwrap()];
    let (changes, _) = done(world.event(Event::Reloaded(Box::new(Settings { config_allow, ..settings() }))));
    assert_eq!(changes, ["allow list: 1 entries came, 0 went", "bans lifted because they must not be: 2"]);
    assert_eq!(world.names(), ["ban_withdrawn"; 6]);
    assert_eq!(
        ranges.map(|range| world.file.nets.contains_key(&range.parse().unwrap())),
        [false, false, false, true]
    );
    assert_eq!(
        hosts.map(|host| world.file.bans.contains_key(&host.parse().unwrap())),
        [false, false, false, true]
    );
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    let mut world =
        World::new(Settings { config_allow: vec!["192.0.2.0/24".parse().unwrap()], ..settings() });
    let peer = "203.0.113.9".parse().unwrap();
    world.event(Event::TorPeers(vec![peer]));
    let target: BanTarget = "198.51.100.7".parse().unwrap();
    let range = |range: &str, length| {
        let (target, reason) = (range.parse().unwrap(), String::new());
        Event::Ban(BanRequest { target, length, reason, operator: None, dry_run: false })
    };
    let unban = |range: &str| Event::Unban { target: range.parse().unwrap(), dry_run: false };
    let ban = |length, reason: &str| {
        Event::Ban(BanRequest { target, length, reason: reason.into(), operator: None, dry_run: false })
    };
    let allow = |prefix: &str, length| {
        let (prefix, reason) = (prefix.parse().unwrap(), String::new());
        Event::Allow(AllowRequest { prefix, length, reason, dry_run: false })
    };
    let disallow = |prefix: &str| Event::Disallow { prefix: prefix.parse().unwrap(), dry_run: false };
    let second = Duration::from_secs(1);
    for (event, code, part) in [
        (ban(Length::Forever, &"x".repeat(201)), RefusedCode::Invalid, "has 201 characters"),
        (ban(Length::Forever, "a\nb"), RefusedCode::Invalid, "control character"),
        (ban(Length::For(second / 2), ""), RefusedCode::Invalid, "0.5 s is no length"),
        (ban(Length::For(LONGEST + second), ""), RefusedCode::Invalid, "give 1 to 315360000 s"),
        (allow("198.51.100.7", Length::Ladder), RefusedCode::Invalid, "ladder"),
        (allow("::/0", Length::Forever), RefusedCode::Invalid, "name 2000::/3"),
        (unban("198.51.100.7"), RefusedCode::NotFound, "198.51.100.7 is not banned"),
        (unban("198.51.100.0/24"), RefusedCode::NotFound, "198.51.100.0/24 is not banned"),
        (range("198.51.100.0/24", Length::Ladder), RefusedCode::Invalid, "add `--for 1h`, another span, or"),
        (range("8.0.0.0/7", Length::Forever), RefusedCode::Invalid, "ranges of at least /8 (IPv4) or /19"),
        (range("0.0.0.0/0", Length::Forever), RefusedCode::Invalid, "a good part of the internet"),
        (range("2001::/18", Length::Forever), RefusedCode::Invalid, "a good part of the internet"),
        (range("::/48", Length::Forever), RefusedCode::Invalid, "holds all of IPv4 in mapped form"),
        (range("::/0", Length::Forever), RefusedCode::Invalid, "holds all of IPv4 in mapped form"),
        (disallow("198.51.100.7"), RefusedCode::NotFound, "no operator's entry"),
        (disallow("192.0.2.0/24"), RefusedCode::NotFound, "comes from the configuration file"),
        (disallow("203.0.113.9"), RefusedCode::NotFound, "tor's own connections"),
        (Event::BypassOff, RefusedCode::NotFound, "not bypassed"),
        (Event::BypassOn { reason: "\u{7}".into() }, RefusedCode::Invalid, "control character"),
    ] {
        let shown = format!("{event:?}");
        let (found, message) = refused(world.event(event));
        assert_eq!(found, code, "{shown}: {message}");
        assert!(message.contains(part), "{shown}: {message}");
    }
    assert_eq!(world.file, Ledger::default());
    for length in [SHORTEST, LONGEST] {
        done(world.event(ban(Length::For(length), &"ä".repeat(200))));
    }
    for widest in ["8.0.0.0/8", "2001::/19"] {
        done(world.event(range(widest, Length::Forever)));
    }
}

#[test]
fn ranges_are_banned_expire_and_go() {
    let mut world = World::new(settings());
    let hour = Length::For(Duration::from_secs(3_600));
    let end = world.now.wall.after(Duration::from_secs(3_600));
    let (changes, undo) = done(world.ban("198.51.100.0/24", hour));
    assert_eq!(changes, [format!("198.51.100.0/24 is banned for 3600 s, until {end}")]);
    assert_eq!(undo.as_deref(), Some("tunica ban remove 198.51.100.0/24"));
    done(world.ban("2001:db8:5::/48", Length::Forever));
    assert!(world.drops("198.51.100.200") && !world.drops("198.51.101.1"));
    assert!(world.drops("2001:db8:5:9::/64") && !world.drops("2001:db8:6::/64"));
    assert!(world.file.bans.is_empty() && world.file.memories.is_empty());
    // A short ban inside a long one ends nothing, whether or not a daemon is there to take it away.
    done(world.ban("198.51.100.64/26", Length::For(Duration::from_secs(10))));
    world.now.mono = world.now.mono.after(Duration::from_secs(11));
    assert!(world.drops("198.51.100.65"));
    world.now.wall = world.now.wall.after(Duration::from_secs(11));
    world.advance();
    assert!(world.drops("198.51.100.65") && world.file.nets.len() == 2);
    // Nor does lifting it.
    done(world.ban("198.51.100.64/26", Length::Forever));
    let (changes, undo) = done(world.unban("198.51.100.64/26"));
    assert_eq!(changes, ["ban 4 of 198.51.100.64/26 is lifted", "ban 1 of 198.51.100.0/24 still hits it"]);
    assert_eq!(undo.as_deref(), Some("tunica ban add 198.51.100.64/26 --for forever --reason 'scan'"));
    assert!(world.drops("198.51.100.65"));
    // The allow list excuses a part.
    let (changes, _) = done(world.allow("198.51.100.65", Length::Forever));
    assert_eq!(changes[1], "bans without effect there while the entry holds: 1");
    assert!(!world.drops("198.51.100.65") && world.drops("198.51.100.66"));
    world.names();
    world.restart();
    world.pass(3_588);
    assert!(world.drops("198.51.100.66"));
    world.pass(1);
    assert!(!world.drops("198.51.100.66") && world.drops("2001:db8:5::/64"));
    assert_eq!(world.names(), ["ban_expired"]);
    assert!(world.kernel.nets.len() == 1 && world.file.nets.len() == 1);
}

#[test]
fn full_tables_refuse() {
    let mut world = World::new(settings());
    for host in 1..=8 {
        done(world.ban(&format!("198.51.100.{host}"), Length::Ladder));
    }
    let (code, message) = refused(world.ban("198.51.100.9", Length::Ladder));
    assert_eq!((code, message.contains("raise `shield.tables.bans`")), (RefusedCode::Full, true));
    // Who is banned already needs no new row.
    done(world.ban("198.51.100.1", Length::Ladder));
    for net in 1..=8 {
        done(world.ban(&format!("192.0.{net}.0/24"), Length::Forever));
    }
    let (code, message) = refused(world.ban("192.0.9.0/24", Length::Forever));
    assert_eq!((code, message.contains("raise `shield.tables.cidrs`")), (RefusedCode::Full, true));
    done(world.ban("192.0.1.0/24", Length::For(Duration::from_secs(7))));
    // Memories outlive bans; the one that would be forgotten first makes room for another.
    world.pass(1_800);
    done(world.ban("198.51.100.9", Length::Ladder));
    assert_eq!(world.file.memories.len(), 8);
    assert!(!world.file.memories.contains_key(&"198.51.100.2".parse().unwrap()));
    for net in 0..8 {
        done(world.allow(&format!("203.0.113.{net}"), Length::Forever));
    }
    assert_eq!(refused(world.allow("203.0.113.9", Length::Forever)).0, RefusedCode::Full);
    done(world.allow("203.0.113.1", Length::For(Duration::from_secs(5))));
    world.names();
    world.pass(5);
    assert_eq!(world.names(), ["allow_expired"]);
    done(world.allow("203.0.113.9", Length::Forever));
    // A range that the configuration allows too shares its row.
    let config_allow = vec!["203.0.113.9".parse().unwrap()];
    world.event(Event::Reloaded(Box::new(Settings { config_allow, allow_capacity: 9, ..settings() })));
    done(world.allow("203.0.113.9", Length::Forever));
    done(world.allow("203.0.113.10", Length::Forever));
    assert_eq!(refused(world.allow("203.0.113.11", Length::Forever)).0, RefusedCode::Full);
    let config_allow = vec!["203.0.113.200".parse().unwrap()];
    world.event(Event::Reloaded(Box::new(Settings { config_allow, allow_capacity: 9, ..settings() })));
    done(world.allow("203.0.113.200", Length::Forever));
}

#[test]
fn a_reload_takes_effect_at_once() {
    let mut world = World::new(settings());
    world.event(Event::TorPeers(vec!["203.0.113.9".parse().unwrap()]));
    world.ban("198.51.100.7", Length::Ladder);
    let ladder = Ladder::new(vec![Duration::from_secs(100)], Duration::from_secs(1_000)).unwrap();
    let (mode, tor_keep) = (Mode::Observe, Duration::from_secs(2_000));
    let new = Settings { ladder, mode, tor_keep, syn: None, ..settings() };
    let (changes, _) = done(world.event(Event::Reloaded(Box::new(new.clone()))));
    assert_eq!(
        changes,
        [
            "the mode is now `observe`",
            "the SYN limit is off",
            "the ban ladder changed, for bans from now on",
            "peers of tor stay protected for 2000 s",
        ]
    );
    assert_eq!(done(world.event(Event::Reloaded(Box::new(new)))), (vec![], None));
    let is_armed = |wanted| {
        let rows = world.coordinator.defences();
        rows.iter().any(|(defence, state): &(Defence, DefenceState)| {
            *defence == wanted && state.armed_since.is_some()
        })
    };
    assert!(is_armed(Defence::Bans) && !is_armed(Defence::SynRate));
    world.pass(999);
    assert_eq!((world.file.memories.len(), world.kernel.allow.len()), (1, 1));
    world.pass(1);
    assert_eq!((world.file.memories.len(), world.kernel.allow.len()), (0, 1));
    world.pass(1_000);
    assert_eq!(world.kernel.allow.len(), 0);
}

#[test]
fn a_reload_that_cannot_be_kept_changes_nothing() {
    let mut world = World::new(settings());
    world.event(Event::TorPeers(vec!["203.0.113.9".parse().unwrap()]));
    world.ban("198.51.100.7", Length::Ladder);
    let new = Settings {
        mode: Mode::Observe,
        config_allow: vec!["198.51.100.0/24".parse().unwrap()],
        tor_keep: Duration::from_secs(1),
        ..settings()
    };
    let before = format!("{:?}", world.coordinator);
    let outcome = world.coordinator.handle(Event::Reloaded(Box::new(new)), world.now);
    assert_eq!(outcome.commands, [Command::LiftBan { source: "198.51.100.7".parse().unwrap() }]);
    assert_eq!(format!("{:?}", world.coordinator), before);
    world.carry_out(outcome);
    assert_eq!(world.coordinator.settings().mode, Mode::Observe);
    assert!(world.file.bans.is_empty() && !world.drops("198.51.100.7"));
    world.pass(1);
    assert_eq!(world.kernel.allow.len(), 1);
}

#[test]
fn defences_fall_quiet_by_themselves_and_an_incident_is_kept() {
    let mut world = World::new(settings());
    let mut totals = Totals::default();
    world.event(Event::Totals(Box::new(totals.clone())));
    totals.set(Verdict::Land, Action::Drop, 1);
    world.event(Event::Totals(Box::new(totals.clone())));
    assert_eq!(world.names(), ["defence_triggered", "incident_begun"]);
    assert!(world.coordinator.is_under_attack() && world.file.incidents.is_empty());
    world.pass(59);
    assert!(world.names().is_empty());
    assert!(!world.file.incidents[&1].is_over);
    world.pass(1);
    assert_eq!(world.names(), ["defence_quiet", "incident_ended"]);
    assert!(world.file.incidents[&1].is_over && !world.coordinator.is_under_attack());
    assert_eq!(world.coordinator.next_deadline(), None);
    assert_eq!(world.coordinator.incidents(), world.file.incidents);

    // The next begins after a restart, which an incident outlives.
    world.restart();
    world.event(Event::Totals(Box::new(totals.clone())));
    totals.set(Verdict::SynRate, Action::WouldDrop, 40);
    world.event(Event::Totals(Box::new(totals.clone())));
    world.pass(30);
    world.restart();
    assert!(world.coordinator.is_under_attack());
    world.event(Event::Totals(Box::new(totals.clone())));
    totals.set(Verdict::SynRate, Action::WouldDrop, 50);
    world.event(Event::Totals(Box::new(totals)));
    world.pass(60);
    let incident = &world.file.incidents[&2];
    assert_eq!((incident.is_over, incident.packets(Action::WouldDrop)), (true, 50));
    assert_eq!(incident.last.since(incident.start), Duration::from_secs(30));
}

#[test]
fn replies_say_what_changes_and_how_to_undo_it() {
    let mut world = World::new(settings());
    let host = "198.51.100.7";
    let until = |world: &World, seconds| world.now.wall.after(Duration::from_secs(seconds));
    let (changes, undo) = done(world.ban(host, Length::Ladder));
    assert_eq!(
        changes,
        [
            format!("198.51.100.7 is banned for 300 s, until {}", until(&world, 300)),
            "that is rung 1 of the 4 of the ban ladder".into(),
        ]
    );
    assert_eq!(undo.as_deref(), Some("tunica ban remove 198.51.100.7"));
    world.pass(100);
    let (changes, undo) = done(world.ban(host, Length::Forever));
    assert_eq!(
        changes,
        [
            "198.51.100.7 is banned until lifted".to_owned(),
            format!("it replaces ban 1, until {}", until(&world, 200)),
        ]
    );
    assert_eq!(undo.as_deref(), Some("tunica ban add 198.51.100.7 --for 200s --reason 'scan'"));
    let (changes, undo) = done(world.allow("198.51.100.0/24", Length::Forever));
    assert_eq!(
        changes,
        [
            "198.51.100.0/24 is on the allow list until lifted",
            "bans without effect there while the entry holds: 1",
        ]
    );
    assert_eq!(undo.as_deref(), Some("tunica allow remove 198.51.100.0/24"));
    assert!(!world.drops(host));
    let (changes, undo) =
        done(world.event(Event::Disallow { prefix: "198.51.100.0/24".parse().unwrap(), dry_run: false }));
    assert_eq!(
        changes,
        ["entry 3 for 198.51.100.0/24 is off the allow list", "bans that take effect there again: 1"]
    );
    assert_eq!(undo.as_deref(), Some("tunica allow add 198.51.100.0/24 --for forever --reason 'office'"));
    assert!(world.drops(host));
    let (changes, undo) = done(world.unban(host));
    assert_eq!(
        changes,
        ["ban 2 of 198.51.100.7 is lifted", "the ban ladder still remembers the source on rung 1",]
    );
    assert_eq!(undo.as_deref(), Some("tunica ban add 198.51.100.7 --for forever --reason 'scan'"));
    let names = ["ban_set", "ban_set", "allow_set", "allow_lifted", "ban_lifted"];
    assert_eq!(world.names(), names);
}

#[test]
fn a_bypass_detaches_until_it_ends() {
    let mut world = World::new(settings());
    assert!(world.coordinator.desired().attached);
    let (_, undo) = done(world.event(Event::BypassOn { reason: "it's a test".into() }));
    assert_eq!(undo.as_deref(), Some("tunica bypass off"));
    assert_eq!(refused(world.event(Event::BypassOn { reason: String::new() })).0, RefusedCode::Invalid);
    assert!(world.coordinator.defences().iter().all(|(_, state)| state.armed_since.is_none()));
    world.restart();
    assert!(!world.coordinator.desired().attached);
    assert!(world.coordinator.defences().iter().all(|(_, state)| state.armed_since.is_none()));
    let (changes, _) = done(world.ban("198.51.100.7", Length::Forever));
    assert!(changes.iter().any(|change| change.contains("nothing is dropped until `tunica bypass off`")));
    let (_, undo) = done(world.event(Event::BypassOff));
    assert_eq!(undo.as_deref(), Some(r"tunica bypass on --reason 'it'\''s a test'"));
    assert!(world.coordinator.desired().attached);
    assert_eq!(world.names(), ["bypass_on", "ban_set", "bypass_off"]);
}

#[test]
fn attack_mode_tightens_for_a_while_and_ends_by_itself() {
    let observing = || Settings { mode: Mode::Observe, ..settings() };
    let mut world = World::new(observing());
    let on = |seconds, dry_run| Event::AttackModeOn { length: Duration::from_secs(seconds), dry_run };
    for seconds in [0, 59, 86_401] {
        assert_eq!(refused(world.event(on(seconds, false))).0, RefusedCode::Invalid);
    }
    assert_eq!(refused(world.event(Event::AttackModeOff { dry_run: false })).0, RefusedCode::NotFound);
    let told = world.event(on(3_600, true));
    assert!(matches!(&told, Some(Reply::Done { dry_run: true, .. })), "{told:?}");
    assert_eq!(world.coordinator.settings(), &observing());

    let (changes, undo) = done(world.event(on(3_600, false)));
    assert_eq!(undo.as_deref(), Some("tunica panic off"));
    assert!(changes.iter().any(|change| change.starts_with("the mode is `enforce` instead of `observe`")));
    assert_eq!(world.coordinator.settings(), &attack_mode::overlay(&observing()));
    assert_eq!(world.coordinator.configured(), &observing());
    world.pass(3_599);
    assert_eq!(world.coordinator.settings().mode, Mode::Enforce);
    // It survives a restart, follows a reload, and ends on time all the same.
    world.restart();
    assert_eq!(world.coordinator.settings().mode, Mode::Enforce);
    let slower = Settings { syn: tunica_common::gcra::Limit::new(4, 8), ..observing() };
    let (changes, _) = done(world.event(Event::Reloaded(Box::new(slower.clone()))));
    assert!(changes.iter().any(|change| change.starts_with("attack mode goes on over them")), "{changes:?}");
    assert_eq!(world.coordinator.settings(), &attack_mode::overlay(&slower));
    world.pass(1);
    assert_eq!(world.coordinator.settings(), &slower);
    assert_eq!(world.file.attack_mode, None);
    assert_eq!(world.names(), ["attack_mode_on", "load_level", "load_level", "attack_mode_off"]);

    // Its end can be moved, and brought about.
    done(world.event(on(60, false)));
    world.pass(59);
    done(world.event(on(600, false)));
    world.pass(500);
    assert_eq!(world.coordinator.settings().mode, Mode::Enforce);
    done(world.event(Event::AttackModeOff { dry_run: false }));
    assert_eq!(world.coordinator.settings(), &slower);
}

/// The load as it is when the front is full and so are the CPUs, read each second for ten.
fn load_up(world: &mut World) {
    use crate::load_level::FrontReading;
    for second in 1..=10 {
        world.pass(1);
        world.event(Event::CpuStalled(Duration::from_secs(second)));
        world.event(Event::FrontLoad(FrontReading {
            active: 200,
            most_active: 200,
            challenged: 0,
            queued: 0,
            most_queued: 300,
            wait: Duration::ZERO,
            most_wait: Duration::from_secs(5),
        }));
    }
}

#[test]
fn circuits_that_are_alike_are_told_once_and_ban_nobody() {
    let newcomer = |number: u16| Newcomer {
        path: PathClass::of_hash(number.into()),
        relay: Some(number),
        features: Features([number; COUNT]),
    };
    let told = |circuits: Vec<Newcomer>| Event::Newcomers { process: 1, circuits };
    for (raises_to, level) in [(Level::Calm, Level::Calm), (Level::Moderate, Level::Light)] {
        let configured = Settings {
            newcomers: NewcomerSettings { raises_to, ..NewcomerSettings::default() },
            ..settings()
        };
        let mut world = World::new(configured.clone());
        for turn in 0..40 {
            world.event(told(vec![newcomer(turn)]));
            world.pass(10);
        }
        assert_eq!(world.names(), [""; 0]);
        let before = world.kernel.clone();
        for _ in 0..3 {
            assert_eq!(world.event(told(vec![newcomer(500); 60])), None);
            world.pass(5);
        }
        let raised = level > Level::Calm;
        let names = if raised { vec!["circuits_alike", "load_level"] } else { vec!["circuits_alike"] };
        assert_eq!(world.names(), names);
        let desired = world.coordinator.load_level();
        assert_eq!((desired.level, desired.measured), (level, Level::Calm));
        assert_eq!(world.coordinator.newcomers().known(), 40, "none of them is learned");
        // Nothing else comes of it: no ban, no memory, no rule.
        assert_eq!((&world.file, world.kernel == before), (&Ledger::default(), true));
        assert_eq!(world.coordinator.settings(), &configured);
        world.pass(600);
        assert_eq!(
            world.names(),
            if raised { vec!["circuits_alike", "load_level"] } else { vec!["circuits_alike"] }
        );
        assert_eq!(world.coordinator.load_level().level, Level::Calm);
    }
}

#[test]
fn a_heavy_load_tightens_ports_without_dropping_what_was_observed() {
    for mode in [Mode::Observe, Mode::Enforce] {
        let configured = Settings { mode, ..settings() };
        let mut world = World::new(configured.clone());
        load_up(&mut world);
        assert_eq!(world.coordinator.load_level().level, Level::UnderAttack);
        assert_eq!(world.coordinator.settings(), &attack_mode::tightened(&configured));
        assert_eq!((world.coordinator.settings().mode, world.coordinator.is_tightened()), (mode, true));
        // Attack mode lies over it, and leaves it when it ends.
        done(world.event(Event::AttackModeOn { length: Duration::from_secs(60), dry_run: false }));
        assert_eq!(world.coordinator.settings(), &attack_mode::overlay(&configured));
        done(world.event(Event::AttackModeOff { dry_run: false }));
        assert_eq!(world.coordinator.settings(), &attack_mode::tightened(&configured));
        // Nothing is read any more: all of it ends by time alone.
        world.pass(600);
        assert_eq!(world.coordinator.settings(), &configured);
        assert_eq!(
            world.names(),
            [
                "load_level",
                "load_level",
                "attack_mode_on",
                "attack_mode_off",
                "load_level",
                "load_level",
                "load_level",
                "load_level"
            ]
        );
        assert_eq!(world.file, Ledger::default(), "what was measured is no durable fact");
    }
}

#[test]
fn an_operators_level_survives_a_restart_and_ends_on_time() {
    let pin = |level, seconds: Option<u64>, dry_run| Event::PinLevel {
        level,
        length: seconds.map(Duration::from_secs),
        dry_run,
    };
    let level = |world: &World| world.coordinator.load_level().level;
    let mut world = World::new(settings());
    assert_eq!(refused(world.event(Event::UnpinLevel { dry_run: false })).0, RefusedCode::NotFound);
    assert_eq!(refused(world.event(pin(Level::Heavy, Some(0), false))).0, RefusedCode::Invalid);
    let told = world.event(pin(Level::Heavy, Some(60), true));
    assert!(matches!(&told, Some(Reply::Done { dry_run: true, .. })), "{told:?}");
    assert_eq!((level(&world), world.file.level_pin), (Level::Calm, None));

    let (changes, undo) = done(world.event(pin(Level::Heavy, Some(60), false)));
    assert_eq!(undo.as_deref(), Some("tunica threat clear"));
    assert!(changes[0].starts_with("the load level is heavy, and not the measured calm"), "{changes:?}");
    assert!(changes[1].starts_with("this ends by itself after 60 s"), "{changes:?}");
    assert_eq!(world.coordinator.settings(), &attack_mode::tightened(&settings()));
    world.pass(30);
    world.restart();
    assert_eq!(world.coordinator.settings(), &attack_mode::tightened(&settings()));
    world.pass(29);
    assert_eq!(level(&world), Level::Heavy);
    world.pass(1);
    assert_eq!((level(&world), world.file.level_pin), (Level::Calm, None));
    assert_eq!(world.coordinator.settings(), &settings());

    // One without an end is replaced by another, and undone by the command line that is told.
    done(world.event(pin(Level::Light, None, false)));
    let (changes, undo) = done(world.event(pin(Level::Calm, None, false)));
    assert!(changes.contains(&"it replaces light, set by hand".to_owned()), "{changes:?}");
    assert_eq!(undo.as_deref(), Some("tunica threat set light"));
    world.pass(DAY);
    load_up(&mut world);
    let desired = world.coordinator.load_level();
    assert_eq!((desired.level, desired.measured), (Level::Calm, Level::UnderAttack));
    assert_eq!(world.coordinator.settings(), &settings());
    done(world.event(Event::UnpinLevel { dry_run: false }));
    assert_eq!(level(&world), Level::UnderAttack);
}

#[test]
fn attack_mode_is_above_a_lower_level_set_by_hand_and_says_so() {
    let level = |world: &World| world.coordinator.load_level().level;
    let pin = |level| Event::PinLevel { level, length: None, dry_run: false };
    let panic = || Event::AttackModeOn { length: Duration::from_secs(60), dry_run: false };
    let mut world = World::new(settings());
    done(world.event(pin(Level::Calm)));
    let (changes, _) = done(world.event(panic()));
    assert!(
        changes.iter().any(|change| change.starts_with("the load level is heavy at least")),
        "{changes:?}"
    );
    let rests = "the load level calm, which was set by hand, rests until then";
    assert!(changes.iter().any(|change| change == rests), "{changes:?}");
    assert_eq!(level(&world), Level::Heavy);
    world.restart();
    assert_eq!(level(&world), Level::Heavy);
    // One that is set meanwhile hears when it begins; a higher one begins at once.
    let (changes, _) = done(world.event(pin(Level::Light)));
    assert!(changes.iter().any(|change| change.contains("so this begins when that ends")), "{changes:?}");
    assert_eq!(level(&world), Level::Heavy);
    world.pass(60);
    assert_eq!(level(&world), Level::Light);
    done(world.event(panic()));
    let (changes, _) = done(world.event(pin(Level::UnderAttack)));
    assert!(!changes.iter().any(|change| change.contains("so this begins")), "{changes:?}");
    assert_eq!(level(&world), Level::UnderAttack);
    let (changes, _) = done(world.event(panic()));
    assert!(!changes.iter().any(|change| change.contains("rests")), "{changes:?}");
}

/// A host where ports over their budget answer with cookies.
fn answering() -> HostFacts {
    HostFacts { tcp_syncookies: Some(2), has_cookie_program: true, ..HostFacts::default() }
}

#[test]
fn a_port_whose_listener_takes_no_cookies_loses_them_for_a_while() {
    use tunica_common::policy::{PORT_OPEN, PORT_WITHOUT_COOKIES};
    let port =
        |number: u16| limits::Port { transport: limits::Transport::Tcp, number: number.try_into().unwrap() };
    let open = limits::PortSettings { is_open: true, pace: None };
    let mut world = World::new(Settings { lockdown: true, ports: [(port(443), open)].into(), ..settings() });
    let flags =
        |world: &World, number: u16| world.kernel.ports.get(&port(number).key()).map(|rule| rule.flags);
    let over =
        |number| ArmedPort { port: number, since: Monotime(1), until: Monotime(2), cookies_returned: 0 };
    let due = |world: &World| world.coordinator.self_tests_due(world.now.mono);
    let miss = |world: &mut World, port| {
        for _ in 0..self_test::MISSES {
            world.event(Event::SelfTested { port, outcome: SelfTest::Missed });
        }
    };
    world.event(Event::ArmedPorts(vec![over(22), over(443)]));
    world.pass(10);
    assert_eq!(due(&world), [], "the host cannot answer with cookies yet");
    world.event(Event::Host(answering()));
    assert_eq!(due(&world), [22, 443]);
    assert_eq!(flags(&world, 443), Some(PORT_OPEN));
    world.heard.clear();
    miss(&mut world, 443);
    miss(&mut world, 22);
    assert_eq!(world.names(), ["cookie_test", "cookie_test"]);
    // What the operator said of the port stays; the other port, of which nothing was said, gets a row of its own.
    assert_eq!(flags(&world, 443), Some(PORT_OPEN | PORT_WITHOUT_COOKIES));
    assert_eq!(flags(&world, 22), Some(PORT_WITHOUT_COOKIES));
    let policy = |world: &World| world.coordinator.desired().policy(world.coordinator.settings(), 1, [0; 2]);
    assert_eq!(policy(&world).ports_present, 1);
    assert_eq!(due(&world), []);
    // Ten minutes later they answer again, and lose their cookies at the next miss, or keep them.
    world.pass(600);
    assert_eq!((flags(&world, 443), flags(&world, 22)), (Some(PORT_OPEN), None));
    assert_eq!(due(&world), [22, 443]);
    world.event(Event::SelfTested { port: 443, outcome: SelfTest::Missed });
    world.event(Event::SelfTested { port: 22, outcome: SelfTest::Passed });
    assert_eq!(world.names(), ["cookie_test", "cookie_test"]);
    assert_eq!((flags(&world, 443), flags(&world, 22)), (Some(PORT_OPEN | PORT_WITHOUT_COOKIES), None));
    // A reload does not wait. In mode `observe` nothing is answered, so nothing is tested.
    let observing = Settings { mode: Mode::Observe, ports: BTreeMap::new(), ..settings() };
    world.event(Event::Reloaded(Box::new(observing)));
    assert_eq!((flags(&world, 443), policy(&world).ports_present), (None, 0));
    world.event(Event::ArmedPorts(vec![over(443)]));
    world.pass(10);
    assert_eq!(due(&world), []);
    world.event(Event::Reloaded(Box::new(settings())));
    world.event(Event::ArmedPorts(vec![over(443)]));
    world.pass(10);
    assert_eq!(due(&world), [443]);
    // Whatever is proven against the tests' own source bans nobody.
    let source = PacketSource::of(self_test::SOURCE_V4.into());
    for _ in 0..9 {
        world.event(Event::Handshake(Handshake { source, port: 443 }));
    }
    assert!(world.file.bans.is_empty());
}

#[test]
fn attack_mode_ends_even_where_its_end_cannot_be_kept() {
    let mut world = World::new(Settings { mode: Mode::Observe, ..settings() });
    world.event(Event::AttackModeOn { length: Duration::from_secs(60), dry_run: false });
    world.now.mono = world.now.mono.after(Duration::from_secs(60));
    let outcome = world.coordinator.advance(world.now);
    assert_eq!(outcome.commands, [Command::ClearAttackMode]);
    assert_eq!(world.coordinator.settings().mode, Mode::Observe);
    // It comes again until it is kept.
    assert!(world.coordinator.next_deadline().is_some_and(|at| at <= world.now.mono));
    let again = world.coordinator.advance(world.now);
    world.carry_out(again);
    assert_eq!((world.file.attack_mode, world.coordinator.next_deadline()), (None, None));
}

/// A world in observe, whose file says enforce, and the trial of that.
fn on_trial(seconds: u64) -> (World, Settings, Settings) {
    let (observing, enforcing) = (Settings { mode: Mode::Observe, ..settings() }, settings());
    let mut world = World::new(observing.clone());
    world.texts.insert("observe".into(), observing.clone());
    let (changes, _) = done(world.event(tried(&enforcing, seconds, "observe")));
    let promise = format!("unless `tunica confirm` comes within {seconds} s");
    assert!(changes.iter().any(|change| change.starts_with(&promise)), "{changes:?}");
    assert!(!changes.iter().any(|change| change.starts_with("nothing undoes")), "{changes:?}");
    assert_eq!(world.coordinator.settings(), &enforcing);
    assert_eq!(world.coordinator.trial_left(world.now), Some(Duration::from_secs(seconds)));
    (world, observing, enforcing)
}

fn tried(settings: &Settings, seconds: u64, before: &str) -> Event {
    Event::Tried(Box::new(TrialRequest {
        settings: settings.clone(),
        length: Duration::from_secs(seconds),
        before: before.into(),
    }))
}

#[test]
fn a_trial_that_nobody_confirms_is_undone_and_stays_so() {
    let (mut world, observing, enforcing) = on_trial(120);
    world.pass(119);
    assert_eq!(world.coordinator.settings(), &enforcing);
    world.pass(1);
    assert_eq!(world.coordinator.settings(), &observing);
    assert_eq!(world.names(), ["trial_begun", "trial_undone"]);
    assert_eq!((world.coordinator.trial_left(world.now), world.coordinator.next_deadline()), (None, None));
    assert_eq!(refused(world.event(Event::Confirmed)).0, RefusedCode::Invalid);
    // The file still says otherwise. A clock that steps back does not bring the trial back.
    world.now.wall = WallTime(5);
    world.restart_with(enforcing.clone());
    assert_eq!(world.coordinator.settings(), &observing);
    // A reload means it.
    let (changes, _) = done(world.event(Event::Reloaded(Box::new(enforcing.clone()))));
    assert!(changes.iter().any(|change| change.starts_with("nothing undoes this by itself")), "{changes:?}");
    world.restart_with(enforcing.clone());
    assert_eq!((world.coordinator.settings(), &world.file.trial), (&enforcing, &None));
    assert_eq!(world.names(), ["trial_ended"]);
}

#[test]
fn a_trial_outlives_the_daemon() {
    // Seconds until the daemon dies and until another starts, and what is in force then.
    for (lives, gone, is_undone) in [(10, 10, false), (10, 109, false), (10, 110, true), (10, 9_999, true)] {
        let (mut world, observing, enforcing) = on_trial(120);
        world.pass(lives);
        world.now.mono = world.now.mono.after(Duration::from_secs(gone));
        world.now.wall = world.now.wall.after(Duration::from_secs(gone));
        world.restart_with(enforcing.clone());
        let expected = if is_undone { &observing } else { &enforcing };
        assert_eq!(world.coordinator.settings(), expected, "{lives} {gone}");
        assert_eq!(world.file.trial.as_ref().map(|trial| trial.is_undone), Some(is_undone));
        world.pass(120);
        assert_eq!(world.coordinator.settings(), &observing);
    }
}

#[test]
fn a_trial_is_confirmed_renewed_and_bypassed() {
    let (mut world, observing, enforcing) = on_trial(120);
    done(world.event(Event::Confirmed));
    assert_eq!(refused(world.event(Event::Confirmed)).0, RefusedCode::NotFound);
    world.pass(1_000);
    assert_eq!((world.coordinator.settings(), &world.file.trial), (&enforcing, &None));
    assert_eq!(world.names(), ["trial_begun", "trial_ended"]);

    // What comes back is what was confirmed last, however often another is tried, and whether or not a plain reload
    // comes between.
    let (mut world, _, _) = on_trial(120);
    let lockdown = Settings { lockdown: true, ..enforcing.clone() };
    world.pass(100);
    done(world.event(tried(&lockdown, 60, "enforce")));
    let (changes, _) = done(world.event(Event::Reloaded(Box::new(lockdown.clone()))));
    assert!(changes.iter().any(|change| change.starts_with("the trial goes on")), "{changes:?}");
    world.pass(59);
    assert_eq!(world.coordinator.settings(), &lockdown);
    // A bypass detaches meanwhile, and goes on after the trial.
    done(world.event(Event::BypassOn { reason: "locked out".into() }));
    assert!(!world.coordinator.desired().attached);
    world.pass(1);
    assert_eq!(world.coordinator.settings(), &observing);
    assert!(!world.coordinator.desired().attached);

    for (seconds, before) in
        [(9, "observe".into()), (3_601, "observe".into()), (60, "x".repeat(MOST_TRIAL_BYTES + 1))]
    {
        assert_eq!(refused(world.event(tried(&enforcing, seconds, &before))).0, RefusedCode::Invalid);
        assert_eq!(world.coordinator.settings(), &observing);
    }
}

#[test]
fn a_first_start_that_nobody_confirms_ends_in_a_bypass() {
    let first = || {
        let mut world = World::new(settings());
        ledger::apply(&mut world.file, &first_trial(Duration::from_secs(60), world.now)).unwrap();
        world.restart();
        world
    };
    let mut world = first();
    world.pass(59);
    assert!(world.coordinator.desired().attached);
    done(world.event(Event::Confirmed));
    world.pass(1_000);
    assert!(world.coordinator.desired().attached && world.file.trial.is_none());

    // While a daemon runs, and while none does.
    for restarts in [false, true] {
        let mut world = first();
        if restarts {
            world.now.mono = world.now.mono.after(Duration::from_secs(60));
            world.now.wall = world.now.wall.after(Duration::from_secs(60));
            world.restart();
            world.pass(0);
        } else {
            world.pass(60);
        }
        assert!(!world.coordinator.desired().attached, "{restarts}");
        let bypass = world.file.bypass.clone().unwrap();
        assert!(bypass.reason.starts_with("nobody confirmed the first start"), "{bypass:?}");
        assert_eq!(world.coordinator.settings(), &settings());
        assert_eq!(refused(world.event(Event::Confirmed)).0, RefusedCode::Invalid);
        // It goes on until somebody wants the shield, and is no trial then.
        world.restart();
        assert!(!world.coordinator.desired().attached);
        done(world.event(Event::BypassOff));
        assert!(world.coordinator.desired().attached && world.file.trial.is_none());
    }

    // A reload within it may be tried longer, and what nobody confirmed is still no configuration to return to.
    let mut world = first();
    let lockdown = Settings { lockdown: true, ..settings() };
    done(world.event(tried(&lockdown, 100, "enforce")));
    world.pass(99);
    assert!(world.coordinator.desired().attached);
    world.pass(1);
    assert!(!world.coordinator.desired().attached);
}

#[test]
fn a_trial_ends_attack_mode_or_not_as_each_says() {
    let (mut world, observing, _) = on_trial(120);
    done(world.event(Event::AttackModeOn { length: Duration::from_secs(600), dry_run: false }));
    world.pass(120);
    assert_eq!(world.coordinator.configured(), &observing);
    assert_eq!(world.coordinator.settings(), &attack_mode::overlay(&observing));
    world.pass(480);
    assert_eq!(world.coordinator.settings(), &observing);
}

#[test]
fn reloads_that_can_cut_off_say_so() {
    let observing = Settings { mode: Mode::Observe, ..settings() };
    let lockdown = Settings { lockdown: true, ..settings() };
    for (before, after, clauses) in [
        (observing.clone(), settings(), 1),
        (observing.clone(), lockdown.clone(), 2),
        (settings(), lockdown.clone(), 1),
        (observing.clone(), Settings { lockdown: true, ..observing.clone() }, 0),
        (lockdown, observing, 0),
        (settings(), Settings { syn: None, ..settings() }, 0),
    ] {
        assert_eq!(after.hazards_from(&before).len(), clauses);
        let mut world = World::new(before);
        let (changes, _) = done(world.event(Event::Reloaded(Box::new(after))));
        assert_eq!(changes.iter().any(|change| change.starts_with("nothing undoes this")), clauses > 0);
    }
}

#[test]
fn tuning_waits_begins_anew_with_other_limits_and_leaves_attack_mode_out() {
    let mut world = World::new(settings());
    let mut totals = Totals::default();
    let mut refused_syns = |world: &mut World| {
        totals.set(Verdict::SynRate, Action::Drop, totals.get(Verdict::SynRate, Action::Drop) + 5);
        world.event(Event::Totals(Box::new(totals.clone())));
        world.pass(60);
    };
    world.event(Event::Totals(Box::default()));
    (0..59).for_each(|_| refused_syns(&mut world));
    assert!(world.coordinator.tune(false, world.now).unwrap_err().contains("for 59 minutes only"));
    assert!(world.coordinator.tune(true, world.now).is_ok());
    refused_syns(&mut world);
    let changed = |world: &World| {
        let (_, minutes, proposals) = world.coordinator.tune(false, world.now).unwrap();
        (minutes, proposals.iter().filter(|row| row.proposed.is_some()).count())
    };
    assert_eq!(changed(&world), (60, 2));
    // The same settings again are no new observation; others are.
    world.event(Event::Reloaded(Box::new(settings())));
    assert_eq!(changed(&world), (60, 2));
    world.event(Event::Reloaded(Box::new(Settings { lockdown: true, ..settings() })));
    assert!(world.coordinator.tune(false, world.now).is_err());
    world.event(Event::AttackModeOn { length: Duration::from_secs(7_200), dry_run: false });
    (0..60).for_each(|_| refused_syns(&mut world));
    assert_eq!(changed(&world), (60, 0));
    world.pass(3_600);
    world.event(Event::Totals(Box::default()));
    assert_eq!(changed(&world), (120, 0));
    world.event(Event::Reloaded(Box::new(Settings { mode: Mode::Off, ..settings() })));
    assert!(world.coordinator.tune(true, world.now).unwrap_err().contains("`off`"));
}

#[test]
fn samples_are_listed_and_logged_within_bounds() {
    let mut world = World::new(settings());
    let source: PacketSource = "198.51.100.7".parse().unwrap();
    let sample = |action| Forgeable { source, verdict: Verdict::SynRate, action, destination_port: 443 };
    world.event(Event::Samples(vec![sample(Action::WouldDrop); 3]));
    assert!(world.heard.is_empty());
    world.event(Event::Samples(vec![sample(Action::Drop); 9]));
    assert_eq!(world.names(), ["drop_sample"; 5]);
    world.pass(60);
    world.event(Event::Samples(vec![sample(Action::Drop)]));
    assert_eq!(world.names(), ["drop_sample"]);
    let (_, row) = world.coordinator.sources().rows().next().unwrap();
    assert_eq!((row.count, row.last_seen), (13, world.now.wall));
    let quiet = Settings { log_lines_per_minute: None, mode: Mode::Observe, ..settings() };
    world.event(Event::Reloaded(Box::new(quiet)));
    world.pass(60);
    world.event(Event::Samples(vec![sample(Action::Drop)]));
    assert!(world.names().is_empty());
}

#[test]
fn a_command_that_does_not_apply_is_named_and_the_rest_left() {
    let mut world = World::new(settings());
    let source = "198.51.100.7".parse().unwrap();
    let commands = [Command::LiftBan { source }, Command::ClearBypass];
    assert_eq!(world.coordinator.commit(&commands, world.now), Err(Rejection::NoSuchBan));
}

/// One move of the world around the coordinator.
#[derive(Clone, Debug)]
enum Move {
    Ban(u8, Length),
    Unban(u8),
    BanNet(u8, Length),
    UnbanNet(u8),
    Allow(u8, Length),
    Disallow(u8),
    Peers(Vec<u8>),
    Own(Vec<u8>),
    Pass(u64),
    StepWall(u64),
    Restart,
}

fn moves() -> impl Strategy<Value = Move> {
    let host = 1u8..7;
    let length = prop_oneof![
        Just(Length::Ladder),
        Just(Length::Forever),
        (1u64..5_000).prop_map(|seconds| Length::For(Duration::from_secs(seconds))),
    ];
    let some = prop::collection::vec(host.clone(), 0..2);
    prop_oneof![
        4 => (host.clone(), length.clone()).prop_map(|(host, length)| Move::Ban(host, length)),
        1 => host.clone().prop_map(Move::Unban),
        3 => (0..NETS, length.clone()).prop_map(|(net, length)| Move::BanNet(net, length)),
        1 => (0..NETS).prop_map(Move::UnbanNet),
        1 => (host.clone(), length).prop_map(|(host, length)| Move::Allow(host, length)),
        1 => host.prop_map(Move::Disallow),
        1 => some.clone().prop_map(Move::Peers),
        1 => some.prop_map(Move::Own),
        3 => (0u64..2 * DAY).prop_map(Move::Pass),
        1 => (0u64..40_000 * DAY).prop_map(Move::StepWall),
        1 => Just(Move::Restart),
    ]
}

const NETS: u8 = 5;

/// Ranges around the hosts, some inside others.
fn net(number: u8) -> &'static str {
    ["198.51.100.0/29", "198.51.100.0/30", "198.51.100.2/31", "198.51.100.4/31", "198.51.100.0/24"]
        [usize::from(number)]
}

fn host(number: u8) -> String {
    format!("198.51.100.{number}")
}

fn hosts(numbers: &[u8]) -> Vec<IpAddr> {
    numbers.iter().map(|number| host(*number).parse().unwrap()).collect()
}

impl World {
    fn make(&mut self, step: Move) {
        match step {
            Move::Ban(number, length) => drop(self.ban(&host(number), length)),
            Move::Unban(number) => drop(self.unban(&host(number))),
            Move::BanNet(number, length) => drop(self.ban(net(number), length)),
            Move::UnbanNet(number) => drop(self.unban(net(number))),
            Move::Allow(number, length) => drop(self.allow(&host(number), length)),
            Move::Disallow(number) => {
                drop(self.event(Event::Disallow { prefix: host(number).parse().unwrap(), dry_run: false }));
            }
            Move::Peers(numbers) => drop(self.event(Event::TorPeers(hosts(&numbers)))),
            Move::Own(numbers) => drop(self.event(Event::OwnAddresses(hosts(&numbers)))),
            Move::Pass(seconds) => self.pass(seconds),
            Move::StepWall(seconds) => self.now.wall = WallTime(seconds),
            Move::Restart => self.restart(),
        }
    }
}

proptest! {
    /// For all histories, the kernel holds exactly the ledger's bans, drops no protected source, ends no ban later than
    /// the length it was given after the last start, and drops a source as long as one of the bans that hit it holds.
    #[test]
    fn the_kernel_follows_the_ledger(history in prop::collection::vec(moves(), 1..40)) {
        let mut world = World::new(settings());
        let mut latest_end: BTreeMap<u32, u64> = BTreeMap::new();
        for step in history {
            let restarts = matches!(step, Move::Restart);
            world.make(step);
            let (ledger, desired) = (world.coordinator.ledger(), world.coordinator.desired());
            let by_ledger: BTreeMap<_, _> = ledger.bans.iter().map(|(source, fact)| (source.key(), fact.id)).collect();
            let by_kernel: BTreeMap<_, _> = world.kernel.bans.iter().map(|(key, row)| (*key, row.ban_id)).collect();
            prop_assert_eq!(by_ledger, by_kernel);
            let by_ledger: BTreeMap<_, _> = ledger.nets.iter().map(|(net, fact)| (net.kernel_key(), fact.id)).collect();
            let by_kernel: BTreeMap<_, _> = world.kernel.nets.iter().map(|(key, row)| (*key, row.ban_id)).collect();
            prop_assert_eq!(by_ledger, by_kernel);
            let own: Vec<IpAddr> = world.kernel.own.iter().map(|own| IpAddr::from(*own).to_canonical()).collect();
            prop_assert!(own.iter().eq(world.coordinator.never_ban().own()));
            let in_force = &world.coordinator.in_force;
            let ending = ledger.bans.iter().filter(|(_, fact)| fact.expires.is_some());
            prop_assert!(in_force.ban_ends.keys().eq(ending.map(|(source, _)| *source)));
            let ending = ledger.nets.iter().filter(|(_, fact)| fact.expires.is_some());
            prop_assert!(in_force.net_ends.keys().eq(ending.map(|(prefix, _)| *prefix)));
            let ending = ledger.allows.iter().filter(|(_, fact)| fact.expires.is_some());
            prop_assert!(in_force.allow_ends.keys().eq(ending.map(|(prefix, _)| *prefix)));
            prop_assert!(in_force.forgets.keys().eq(ledger.memories.keys().copied()));
            prop_assert_eq!(&world.kernel, &desired.tables);
            for fact in ledger.bans.values() {
                let row = world.kernel.bans.values().find(|row| row.ban_id == fact.id).unwrap();
                if restarts {
                    latest_end.remove(&fact.id);
                }
                let end = *latest_end.entry(fact.id).or_insert(row.expires_ns);
                prop_assert_eq!(row.flags, 0, "an operator's ban must not lapse with the heartbeat");
                prop_assert_eq!(row.expires_ns, end, "a ban in force moved its end");
                match fact.expires {
                    None => prop_assert_eq!(row.expires_ns, u64::MAX),
                    Some(expires) => {
                        let left = Monotime(row.expires_ns).since(world.now.mono);
                        prop_assert!(left <= expires.since(fact.since));
                    }
                }
            }
            for number in 1..7 {
                let source: PacketSource = host(number).parse().unwrap();
                let is_protected = world.coordinator.protection(source.prefix(), world.now.mono).is_some();
                prop_assert!(!(is_protected && world.drops(&host(number))));
            }
            // No daemon takes rows away in between, and yet each host is dropped as long as one of its bans holds.
            let (now, in_force) = (world.now, &world.coordinator.in_force);
            for (number, seconds) in (1..7).flat_map(|number| [0, 7, 400, 2_000].map(|seconds| (number, seconds))) {
                let source: PacketSource = host(number).parse().unwrap();
                let later = now.mono.after(Duration::from_secs(seconds));
                let holds = |ends: Option<Monotime>| ends.is_none_or(|ends| later < ends);
                let nets = ledger.nets_around(source.prefix());
                let mut is_due = nets.map(|(prefix, _)| prefix).any(|prefix| holds(in_force.net_ends.get(prefix)));
                is_due |= ledger.bans.contains_key(&source) && holds(in_force.ban_ends.get(source));
                let is_allowed = world.kernel.allow.keys().any(|key| *key == source.prefix().kernel_key());
                let at = Now { mono: later, wall: now.wall };
                prop_assert_eq!(drops(&world.kernel, at, source), is_due && !is_allowed);
            }
        }
    }

    /// For all histories, a dry run changes nothing and says what the real request then says.
    #[test]
    fn dry_runs_are_true(history in prop::collection::vec(moves(), 0..20), number in 1u8..7, is_net: bool, seconds in 0u64..20) {
        let mut world = World::new(settings());
        for step in history {
            world.make(step);
        }
        let length = if seconds == 0 { Length::Ladder } else { Length::For(Duration::from_secs(seconds)) };
        let request = |dry_run| {
            let target = if is_net { net(number % NETS).into() } else { host(number) };
            let target = target.parse().unwrap();
            Event::Ban(BanRequest { target, length, reason: "why".into(), operator: None, dry_run })
        };
        let (before, refused_bans) = (world.file.clone(), world.coordinator.refused_bans());
        let asked = world.event(request(true));
        prop_assert_eq!(&world.file, &before);
        prop_assert_eq!(world.coordinator.refused_bans(), refused_bans);
        let told = world.event(request(false));
        match (asked, told) {
            (
                Some(Reply::Done { changes, undo, dry_run: true }),
                Some(Reply::Done { changes: same, undo: like, dry_run: false }),
            ) => prop_assert_eq!((changes, undo), (same, like)),
            (asked, told) => prop_assert_eq!(asked, told),
        }
    }
}
