//! Reports of sources that misbehaved towards an application: failed logins, floods of forms, spam.
//!
//! A report is proof, because the kernel says which account made it and the configuration names the accounts that are
//! believed. It is no better than the application behind it, so each account has a budget, one report bans nobody unless
//! the configuration says so, and whoever may never be banned cannot be reported. Memory is bounded in every direction and
//! gone with the daemon: nothing is kept of a source that was reported and not banned.

use std::{collections::BTreeMap, time::Duration};

use tunica_common::gcra::{self, Pace};

use crate::{id::PacketSource, notice::DropLog, time::Monotime, violations::Violations};

/// Longest name of a service in a report, in bytes.
pub const MOST_SERVICE_BYTES: usize = 32;
/// Most lines a minute about reports that were refused.
const LINES_PER_MINUTE: u32 = 5;

/// A report of one source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Whom; never a range.
    pub source: PacketSource,
    /// Who reports.
    pub reporter: Reporter,
    /// What the source did: at most [`crate::coordinator::MOST_REASON_CHARACTERS`] without control characters.
    pub reason: String,
    /// Towards which service: 1 to [`MOST_SERVICE_BYTES`] of ASCII letters, digits, `.`, `_` and `-`.
    pub service: Option<String>,
    /// Only say what would change.
    pub dry_run: bool,
}

/// Whoever reports, by the kernel's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reporter {
    /// The account's number.
    pub uid: u32,
    /// Whether it may ban whom it likes anyway, and so may report without being configured.
    pub is_operator: bool,
}

/// Why a reporter is not heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unheard {
    /// The configuration does not name the account.
    Stranger,
    /// The account has used up what the configuration gives it.
    OverBudget,
}

/// What is remembered of reports.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reports {
    by_source: Violations,
    /// How far each configured account has spent the budget it then had: the clock of [`gcra::paced`].
    spent: BTreeMap<u32, (Pace, u64)>,
    refusals: DropLog,
}

impl Reports {
    /// What the reporter's clock would be after one more report; `None` where it has no budget.
    ///
    /// # Errors
    /// If the reporter is not to be heard.
    pub(crate) fn hear(
        &self,
        reporter: Reporter,
        budgets: &BTreeMap<u32, Pace>,
        now: Monotime,
    ) -> Result<Option<u64>, Unheard> {
        let Some(pace) = budgets.get(&reporter.uid) else {
            return if reporter.is_operator { Ok(None) } else { Err(Unheard::Stranger) };
        };
        // Another budget begins unspent.
        let spent = self.spent.get(&reporter.uid).filter(|(before, _)| before == pace);
        gcra::paced(spent.map_or(0, |(_, spent)| *spent), now.0, *pace).map(Some).ok_or(Unheard::OverBudget)
    }

    /// Spends one report of the reporter's budget, if it has one and any of it is left.
    pub(crate) fn spend(&mut self, reporter: Reporter, budgets: &BTreeMap<u32, Pace>, now: Monotime) {
        if let (Some(pace), Ok(Some(spent))) = (budgets.get(&reporter.uid), self.hear(reporter, budgets, now))
        {
            self.spent.retain(|uid, _| budgets.contains_key(uid));
            self.spent.insert(reporter.uid, (*pace, spent));
        }
    }

    /// How many reports of `source` there would be in `window` with one more, at most `threshold`.
    pub(crate) fn with_one_more(
        &self,
        source: PacketSource,
        threshold: u32,
        window: Duration,
        now: Monotime,
    ) -> u32 {
        self.by_source.with_one_more(source, threshold, window, now)
    }

    /// Remembers a report of `source`.
    pub(crate) fn note(&mut self, source: PacketSource, threshold: u32, window: Duration, now: Monotime) {
        self.by_source.note(source, threshold, window, now);
    }

    /// Forgets the reports of a source, which is banned now.
    pub(crate) fn forget(&mut self, source: PacketSource) {
        self.by_source.forget(source);
    }

    /// Whether the log may have a line about a refused report now; if so, it counts.
    pub(crate) fn may_tell(&mut self, now: Monotime) -> bool {
        self.refusals.admits(Some(LINES_PER_MINUTE), now)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        coordinator::{Coordinator, Event, Outcome, RefusedCode, Reply},
        evidence::Forgeable,
        ledger::{BanOrigin, Ledger},
        limits::{Settings, tests::settings},
        notice::Notice,
        time::{Now, WallTime},
    };
    use tunica_common::{
        keys::BAN_DYNAMIC,
        verdict::{Action, Verdict},
    };

    const MAIL: u32 = 8;
    const STRANGER: u32 = 33;

    fn source(host: u8) -> PacketSource {
        PacketSource::of([198, 51, 100, host].into())
    }

    /// Account [`MAIL`] may make 20 reports in 60 s, and as many at once; five of them ban.
    fn reporting() -> Settings {
        let reporters = [(MAIL, gcra::pace(20, 60_000_000_000, 20).unwrap())].into();
        Settings { reporters, ..settings() }
    }

    fn report(uid: u32, host: u8) -> Report {
        let reporter = Reporter { uid, is_operator: uid == 0 };
        let (reason, service) = ("wrong password".into(), Some("imap".into()));
        Report { source: source(host), reporter, reason, service, dry_run: false }
    }

    struct World {
        coordinator: Coordinator,
        now: Now,
    }

    impl World {
        fn new(settings: Settings) -> Self {
            let now = Now { wall: WallTime(1_700_000_000), mono: Monotime(1_000_000_000) };
            Self { coordinator: Coordinator::new(settings, Ledger::default(), now), now }
        }

        fn pass(&mut self, milliseconds: u64) {
            self.now.mono = self.now.mono.after(Duration::from_millis(milliseconds));
            self.now.wall = self.now.wall.after(Duration::from_millis(milliseconds));
            let outcome = self.coordinator.advance(self.now);
            self.coordinator.commit(&outcome.commands, self.now).unwrap();
        }

        fn event(&mut self, event: Event) -> Outcome {
            let mut outcome = self.coordinator.handle(event, self.now);
            outcome.notices.extend(self.coordinator.commit(&outcome.commands, self.now).unwrap());
            outcome
        }

        fn says(&mut self, report: Report) -> Result<String, (RefusedCode, String)> {
            match self.event(Event::Report(report)).reply.unwrap() {
                Reply::Done { changes, .. } => Ok(changes.join("; ")),
                Reply::Refused { code, message } => Err((code, message)),
            }
        }
    }

    #[test]
    fn five_reports_ban_by_the_ladder_and_the_ban_lapses_without_a_heartbeat() {
        let mut world = World::new(reporting());
        for (round, length) in [(1, 300), (2, 1_800)] {
            for count in 1..=4 {
                assert_eq!(
                    world.says(report(MAIL, 7)).unwrap(),
                    format!(
                        "report {count} of 5 against 198.51.100.7 within 3600 s; the last of them bans it"
                    )
                );
                world.pass(1_000);
            }
            let outcome = world.event(Event::Report(report(MAIL, 7)));
            let until = world.now.wall.after(Duration::from_secs(length));
            let Some(Reply::Done { changes, undo, dry_run: false }) = outcome.reply else { panic!() };
            assert_eq!(
                changes,
                [
                    format!("198.51.100.7 is banned for {length} s, until {until}"),
                    format!("that is rung {round} of the 4 of the ban ladder"),
                ]
            );
            assert_eq!(undo.as_deref(), Some("tunica ban remove 198.51.100.7"));
            assert_eq!(outcome.notices.iter().map(Notice::name).collect::<Vec<_>>(), ["ban_set"]);
            let fact = &world.coordinator.ledger().bans[&source(7)];
            assert_eq!((fact.rung, fact.origin), (Some(round), BanOrigin::Report));
            assert_eq!(fact.reason, "5 reports, the last by uid 8 (imap): wrong password");
            assert_eq!(world.coordinator.desired().tables.bans[&source(7).key()].flags, BAN_DYNAMIC);
            // What was on its way when the ban came climbs no further rung.
            let late = world.says(report(MAIL, 7)).unwrap();
            assert_eq!(
                late,
                format!("198.51.100.7 is banned already, until {until}; the report changes nothing")
            );
            // The ban runs out, and its reports are settled.
            world.pass(length * 1_000);
            assert!(world.coordinator.ledger().bans.is_empty());
        }
    }

    #[test]
    fn reports_that_do_not_count_say_why() {
        let mut world =
            World::new(Settings { config_allow: vec!["198.51.100.9".parse().unwrap()], ..reporting() });
        world.event(Event::TorPeers(vec![[198, 51, 100, 10].into()]));
        let with = |reason: &str, service: &str| Report {
            reason: reason.to_owned(),
            service: Some(service.to_owned()),
            ..report(MAIL, 7)
        };
        for (report, code, part) in [
            (report(STRANGER, 7), RefusedCode::Forbidden, "uid 33 is no reporter"),
            (report(MAIL, 9), RefusedCode::Protected, "198.51.100.9 cannot be banned: "),
            (report(MAIL, 10), RefusedCode::Protected, "tor's own connections"),
            (report(0, 10), RefusedCode::Protected, "tor's own connections"),
            (with(&"x".repeat(201), "imap"), RefusedCode::Invalid, "has 201 characters"),
            (with("a\nb", "imap"), RefusedCode::Invalid, "control character"),
            (with("a", ""), RefusedCode::Invalid, "1 to 32 letters"),
            (with("a", "im ap"), RefusedCode::Invalid, "1 to 32 letters"),
            (with("a", &"x".repeat(33)), RefusedCode::Invalid, "1 to 32 letters"),
        ] {
            for _ in 0..2 {
                let (found, message) = world.says(report.clone()).unwrap_err();
                assert_eq!(found, code, "{message}");
                assert!(message.contains(part), "{message}");
            }
        }
        assert!(world.says(report(MAIL, 7)).unwrap().starts_with("report 1 of 5"));
        assert_eq!(world.coordinator.ledger(), &Ledger::default());
    }

    #[test]
    fn a_spent_budget_is_refused_and_root_has_none() {
        let mut world = World::new(reporting());
        for host in 0..20 {
            world.says(report(MAIL, host)).unwrap();
        }
        let mut heard = Vec::new();
        for host in 20..40 {
            let outcome = world.event(Event::Report(report(MAIL, host)));
            let Some(Reply::Refused { code, message }) = outcome.reply else { panic!() };
            assert_eq!(code, RefusedCode::OverBudget);
            assert!(message.contains("uid 8 has used up its budget"), "{message}");
            heard.extend(outcome.notices.iter().map(Notice::name));
        }
        // However many are refused, the log has few lines.
        assert_eq!(heard, ["reporter_over_budget"; 5]);
        for host in 0..40 {
            world.says(report(0, host)).unwrap();
        }
        world.pass(3_000);
        world.says(report(MAIL, 40)).unwrap();
        assert_eq!(world.says(report(MAIL, 41)).unwrap_err().0, RefusedCode::OverBudget);
        // A larger budget counts at once, and root's holds where it has one.
        let pace = gcra::pace(1, 60_000_000_000, 1).unwrap();
        let reporters = [(MAIL, gcra::pace(100, 60_000_000_000, 100).unwrap()), (0, pace)].into();
        let outcome = world
            .coordinator
            .handle(Event::Reloaded(Box::new(Settings { reporters, ..reporting() })), world.now);
        world.coordinator.adopt(*outcome.settings.unwrap(), world.now);
        world.says(report(MAIL, 41)).unwrap();
        world.says(report(0, 41)).unwrap();
        assert_eq!(world.says(report(0, 41)).unwrap_err().0, RefusedCode::OverBudget);
    }

    #[test]
    fn old_reports_do_not_count() {
        let mut world = World::new(reporting());
        for _ in 0..4 {
            world.says(report(MAIL, 7)).unwrap();
        }
        world.pass(3_600_000);
        assert!(world.says(report(MAIL, 7)).unwrap().starts_with("report 1 of 5"));
    }

    #[test]
    fn a_ban_that_cannot_be_kept_is_tried_again_by_the_next_report() {
        let mut world = World::new(reporting());
        for _ in 0..4 {
            world.says(report(MAIL, 7)).unwrap();
        }
        // The disk is full: the commands never come back.
        assert!(!world.coordinator.handle(Event::Report(report(MAIL, 7)), world.now).commands.is_empty());
        assert!(world.says(report(MAIL, 7)).unwrap().contains("is banned for 300 s"));
        // The table is full: likewise.
        for host in 10..18 {
            for _ in 0..5 {
                let _ = world.says(report(0, host));
            }
        }
        assert_eq!(world.says(report(0, 17)).unwrap_err().0, RefusedCode::Full);
        world.pass(300_000);
        assert!(world.says(report(0, 17)).unwrap().contains("is banned for 300 s"));
    }

    #[derive(Clone, Debug)]
    enum Move {
        Report { uid: u32, host: u8, dry_run: bool },
        Samples(u8),
        Pass(u64),
    }

    fn moves() -> impl Strategy<Value = Move> {
        let uid = prop::sample::select(vec![0, MAIL, MAIL, STRANGER, u32::MAX]);
        prop_oneof![
            6 => (uid, 0u8..6, prop::bool::weighted(0.2))
                .prop_map(|(uid, host, dry_run)| Move::Report { uid, host, dry_run }),
            1 => (0u8..6).prop_map(Move::Samples),
            2 => (0u64..600_000).prop_map(Move::Pass),
        ]
    }

    fn samples(host: u8) -> Event {
        let (verdict, action) = (Verdict::SynRate, Action::Drop);
        Event::Samples(vec![Forgeable { source: source(host), verdict, action, destination_port: 22 }; 40])
    }

    proptest! {
        /// For all sequences of forgeable samples and of reports by accounts that the configuration does not name, no
        /// source is banned and nothing is remembered.
        #[test]
        fn strangers_ban_nobody(history in prop::collection::vec(moves(), 1..150)) {
            let mut world = World::new(reporting());
            for step in history {
                match step {
                    Move::Report { uid: 0 | MAIL, .. } => {}
                    Move::Report { uid, host, dry_run } => {
                        let (code, _) = world.says(Report { dry_run, ..report(uid, host) }).unwrap_err();
                        prop_assert_eq!(code, RefusedCode::Forbidden);
                    }
                    Move::Samples(host) => prop_assert!(world.event(samples(host)).commands.is_empty()),
                    Move::Pass(milliseconds) => world.pass(milliseconds),
                }
                prop_assert_eq!(world.coordinator.ledger(), &Ledger::default());
            }
            prop_assert!(world.says(report(0, 0)).unwrap().starts_with("report 1 of 5"));
        }

        /// For all histories, an account is heard no more often than its budget allows, a source is banned only with
        /// `threshold` reports of it within the window, protected ones never, and a dry run says what the report then
        /// says and changes nothing.
        #[test]
        fn budgets_and_thresholds_hold(history in prop::collection::vec(moves(), 1..200)) {
            let (mut world, protected) = (World::new(reporting()), source(5));
            world.event(Event::TorPeers(vec![[198, 51, 100, 5].into()]));
            let mut heard: Vec<Monotime> = Vec::new();
            let mut counted: BTreeMap<PacketSource, Vec<Monotime>> = BTreeMap::new();
            for step in history {
                match step {
                    Move::Samples(host) => drop(world.event(samples(host))),
                    Move::Pass(milliseconds) => world.pass(milliseconds),
                    Move::Report { uid, host, dry_run } => {
                        let before = world.coordinator.ledger().clone();
                        let told = world.says(Report { dry_run: true, ..report(uid, host) });
                        prop_assert_eq!(world.coordinator.ledger(), &before);
                        if dry_run {
                            continue;
                        }
                        let outcome = world.says(report(uid, host));
                        prop_assert_eq!(&outcome, &told);
                        let is_heard = outcome.as_ref().map_or_else(|(code, _)| *code == RefusedCode::Protected, |_| true);
                        if is_heard && uid == MAIL {
                            heard.push(world.now.mono);
                        }
                        let (who, now) = (source(host), world.now.mono);
                        if outcome.is_ok() {
                            counted.entry(who).or_default().push(now);
                        }
                        if before.bans.get(&who) != world.coordinator.ledger().bans.get(&who) {
                            let window = Duration::from_secs(3_600);
                            let recent = counted[&who].iter().filter(|at| now.since(**at) < window).count();
                            prop_assert!(recent >= 5, "{recent} reports");
                            counted.remove(&who);
                        }
                    }
                }
                prop_assert!(!world.coordinator.ledger().bans.contains_key(&protected));
            }
            // In any span of time: as many as at once, and those that it pays off.
            for (first, begin) in heard.iter().enumerate() {
                for (last, end) in heard.iter().enumerate().skip(first) {
                    let earned = end.since(*begin).as_millis() / 3_000;
                    prop_assert!((last - first + 1) as u128 <= 20 + earned);
                }
            }
        }
    }
}
