//! Whether listeners take the cookies that are made for them: a test connection to each port over its budget.
//!
//! A port that answers with cookies its listener refuses serves nobody: each visitor is reset or hangs, which is worse
//! than no cookies. A firewall that drops segments of connections it does not know is enough. So the daemon makes a
//! connection of its own while a port answers, and a port whose listener takes none of its cookies answers with no more
//! for a while. What is decided here is when a port is tested and what an outcome means.
//!
//! | a port | outcome | then |
//! |---|---|---|
//! | answers | [`SelfTest::Passed`], [`SelfTest::Partly`] | tested again after [`EVERY`], misses forgotten |
//! | answers | [`SelfTest::Missed`], fewer than [`MISSES`] in a row | tested again at once |
//! | answers | [`SelfTest::Missed`] for the last time | without cookies for [`WITHOUT_COOKIES`] |
//! | answers | [`SelfTest::Untested`] | tested again after [`SOON`], misses stay |
//! | without cookies | any, or [`WITHOUT_COOKIES`] not over | – |
//! | without cookies | [`WITHOUT_COOKIES`] over | answers on probation, tested at once; the first miss is the last |
//! | answers | fell below half its budget | forgotten |
//!
//! A reload forgets everything, so an operator who mended the cause need not wait.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use crate::{armed::ArmedPort, id::PacketSource, notice::Notice, time::Monotime};

/// How long after a port went over its budget it is tested first: a SYN has to reach its listener before.
pub const FIRST_AFTER: Duration = Duration::from_secs(2);
/// How often a port is tested that answers with cookies.
pub const EVERY: Duration = Duration::from_secs(30);
/// After how long a test that could not be made is tried again.
pub const SOON: Duration = Duration::from_secs(10);
/// How many misses in a row take the cookies from a port.
pub const MISSES: u32 = 3;
/// Most ports that are tested at once.
pub const MOST_AT_ONCE: usize = 16;
/// How long a port is then without them.
pub const WITHOUT_COOKIES: Duration = Duration::from_secs(600);

/// Where IPv4 tests claim to come from: an address of TEST-NET-1 (RFC 5737), which is nobody's.
pub const SOURCE_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 253);
/// Where IPv6 tests claim to come from: an address of the documentation prefix (RFC 3849).
pub const SOURCE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0xffff, 0, 0, 0, 0xfd);

/// Whether this is what the kernel counts tests by.
pub(crate) fn is_source(source: PacketSource) -> bool {
    [IpAddr::V4(SOURCE_V4), IpAddr::V6(SOURCE_V6)].into_iter().any(|test| PacketSource::of(test) == source)
}

/// What a test of one port came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SelfTest {
    /// Each listener of the port took its cookies.
    Passed,
    /// A listener took its cookie, and another did not, or the same one over the other family. This takes the cookies
    /// from no port, since a port may be closed to one family altogether.
    Partly,
    /// Cookies came back, and no connection came of any.
    Missed,
    /// It says nothing of the listener.
    Untested(Untested),
}

/// Why a test says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Untested {
    /// Nobody listens on the port, at an address that others can reach.
    NoListener,
    /// What is sent to the test's source would leave by no interface that the shield is on, so what comes from it may be
    /// refused for that alone.
    NoRoute,
    /// No SYN has reached a listener of the port lately, so none takes cookies yet.
    Unstamped,
    /// The listener's queue of connections that wait to be accepted is full.
    QueueFull,
    /// The shield answered the test's SYN with no cookie, or let the segment that brings it back not pass.
    Shield,
    /// The kernel did not run the test.
    Kernel,
}

impl SelfTest {
    /// The stable word in `tunica status` and in metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Partly => "partly",
            Self::Missed => "missed",
            Self::Untested(_) => "untested",
        }
    }

    /// Every word.
    pub const LABELS: [&'static str; 4] = ["passed", "partly", "missed", "untested"];

    /// What it means: a clause.
    pub const fn clause(self) -> &'static str {
        match self {
            Self::Passed => "its listener takes cookies",
            Self::Partly => {
                "its listener takes cookies, but another one, or the same over the other family, does not"
            }
            Self::Missed => "its listener took no cookie at the last test",
            Self::Untested(why) => match why {
                Untested::NoListener => "not tested: nobody listens there",
                Untested::NoRoute => "not tested: no route back by an interface that the shield is on",
                Untested::Unstamped => "not tested: no SYN has reached its listener lately",
                Untested::QueueFull => "not tested: its listener's queue is full",
                Untested::Shield => "not tested: the shield did not let the test through",
                Untested::Kernel => "not tested: the kernel did not run the test",
            },
        }
    }
}

/// How a port stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// What its last test came to, and when that was told.
    pub last: Option<(SelfTest, Monotime)>,
    /// Until when it answers with no cookies; `None` while it does.
    pub without_cookies_until: Option<Monotime>,
    /// Misses in a row.
    misses: u32,
    /// Whether it was without cookies and has not passed since.
    is_on_probation: bool,
    /// When it is to be tested next.
    next: Monotime,
}

/// Every port that is tested, or without cookies.
#[derive(Clone, Debug, Default)]
pub(crate) struct SelfTests(BTreeMap<u16, Standing>);

impl SelfTests {
    /// Takes in all ports that are over their budget now.
    pub(crate) fn saw(&mut self, armed: &[ArmedPort], now: Monotime) {
        self.0.retain(|port, standing| {
            standing.without_cookies_until.is_some() || armed.iter().any(|armed| armed.port == *port)
        });
        for armed in armed {
            self.0.entry(armed.port).or_insert(Standing {
                last: None,
                without_cookies_until: None,
                misses: 0,
                is_on_probation: false,
                next: now.after(FIRST_AFTER),
            });
        }
    }

    /// The ports to be tested now, until an outcome is told of each: those that have waited longest, at most
    /// [`MOST_AT_ONCE`].
    pub(crate) fn due(&self, now: Monotime) -> Vec<u16> {
        let is_due = |standing: &Standing| standing.without_cookies_until.is_none() && standing.next <= now;
        let mut due: Vec<_> = self.0.iter().filter(|(_, standing)| is_due(standing)).collect();
        due.sort_by_key(|(_, standing)| standing.next);
        due.into_iter().take(MOST_AT_ONCE).map(|(port, _)| *port).collect()
    }

    /// Takes in an outcome.
    pub(crate) fn tested(&mut self, port: u16, outcome: SelfTest, now: Monotime) -> Option<Notice> {
        let standing = self.0.get_mut(&port)?;
        if standing.without_cookies_until.is_some() {
            return None;
        }
        standing.last = Some((outcome, now));
        match outcome {
            SelfTest::Passed | SelfTest::Partly => {
                standing.misses = 0;
                standing.next = now.after(EVERY);
                let was_on_probation = std::mem::take(&mut standing.is_on_probation);
                was_on_probation.then_some(Notice::CookieTest { port, without_cookies: None })
            }
            SelfTest::Untested(_) => {
                standing.next = now.after(SOON);
                None
            }
            SelfTest::Missed => {
                standing.misses += 1;
                standing.next = now;
                let is_last = standing.is_on_probation || standing.misses >= MISSES;
                is_last.then(|| {
                    standing.without_cookies_until = Some(now.after(WITHOUT_COOKIES));
                    Notice::CookieTest { port, without_cookies: Some(WITHOUT_COOKIES) }
                })
            }
        }
    }

    /// Gives ports their cookies back whose time without them is over, on probation. Returns whether there was one.
    pub(crate) fn advance(&mut self, now: Monotime) -> bool {
        let mut is_changed = false;
        for standing in self.0.values_mut() {
            if standing.without_cookies_until.is_some_and(|until| until <= now) {
                *standing =
                    Standing { without_cookies_until: None, is_on_probation: true, next: now, ..*standing };
                is_changed = true;
            }
        }
        is_changed
    }

    /// When [`Self::advance`] is to be called next.
    pub(crate) fn next_deadline(&self) -> Option<Monotime> {
        self.0.values().filter_map(|standing| standing.without_cookies_until).min()
    }

    /// The ports that answer with no cookies, and until when.
    pub(crate) fn without_cookies(&self) -> impl Iterator<Item = (u16, Monotime)> {
        self.0.iter().filter_map(|(port, standing)| Some((*port, standing.without_cookies_until?)))
    }

    /// How this port stands; `None` if it is not tested.
    pub(crate) fn get(&self, port: u16) -> Option<&Standing> {
        self.0.get(&port)
    }

    /// Forgets everything that was found.
    pub(crate) fn forget(&mut self) {
        self.0.clear();
    }
}

/// What it means that a port answers with no cookies for `left` more, and what to do: one sentence.
pub fn advice(port: u16, left: Duration) -> String {
    format!(
        "port {port} answers with no cookies for {} s more, because its listener took none of the test's, so the flood is \
         left to the kernel; see that no firewall drops segments of connections that it does not know \
         (net.netfilter.nf_conntrack_tcp_loose must not be 0), then `tunica reload` tries again at once",
        left.as_secs()
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PORT: u16 = 443;

    fn armed(port: u16) -> ArmedPort {
        ArmedPort { port, since: Monotime(1), until: Monotime(2), cookies_returned: 0 }
    }

    /// The tests of one port over its budget, at a time of its own.
    struct World {
        tests: SelfTests,
        now: Monotime,
    }

    impl World {
        fn new() -> Self {
            let mut world = Self { tests: SelfTests::default(), now: Monotime(7_000_000_000) };
            world.tests.saw(&[armed(PORT)], world.now);
            world.pass(FIRST_AFTER);
            world
        }

        fn pass(&mut self, length: Duration) {
            self.now = self.now.after(length);
            self.tests.advance(self.now);
        }

        fn is_due(&self) -> bool {
            self.tests.due(self.now).contains(&PORT)
        }

        fn has_cookies(&self) -> bool {
            self.tests.without_cookies().next().is_none()
        }

        /// Tells an outcome, and returns whether there was a notice.
        fn tested(&mut self, outcome: SelfTest) -> bool {
            self.tests.tested(PORT, outcome, self.now).is_some()
        }
    }

    const UNTESTED: SelfTest = SelfTest::Untested(Untested::Kernel);

    #[test]
    fn outcomes_decide_what_is_next() {
        use SelfTest::{Missed, Partly, Passed};
        // Outcomes in a row, whether the port has its cookies after them, and after how long it is due again.
        for (outcomes, has_cookies, due_after) in [
            (vec![], true, Duration::ZERO),
            (vec![Passed], true, EVERY),
            (vec![Partly], true, EVERY),
            (vec![UNTESTED], true, SOON),
            (vec![Missed], true, Duration::ZERO),
            (vec![Missed, Missed], true, Duration::ZERO),
            (vec![Missed, Missed, Missed], false, WITHOUT_COOKIES),
            (vec![Missed, Missed, Passed], true, EVERY),
            (vec![Missed, Missed, Partly, Missed, Missed], true, Duration::ZERO),
            (vec![Missed, UNTESTED, Missed, UNTESTED, Missed], false, WITHOUT_COOKIES),
            (vec![UNTESTED; 9], true, SOON),
            // What comes late changes nothing.
            (vec![Missed, Missed, Missed, Passed, Missed], false, WITHOUT_COOKIES),
        ] {
            let mut world = World::new();
            for outcome in &outcomes {
                world.tested(*outcome);
            }
            assert_eq!(world.has_cookies(), has_cookies, "{outcomes:?}");
            if due_after > Duration::ZERO {
                world.pass(due_after - Duration::from_nanos(1));
                assert!(!world.is_due(), "{outcomes:?}");
                world.pass(Duration::from_nanos(1));
            }
            assert!(world.is_due(), "{outcomes:?}");
            assert!(world.has_cookies(), "{outcomes:?}");
        }
    }

    #[test]
    fn cookies_come_back_on_probation() {
        let mut world = World::new();
        let said: Vec<bool> = (0..3).map(|_| world.tested(SelfTest::Missed)).collect();
        assert_eq!(said, [false, false, true]);
        assert_eq!(world.tests.next_deadline(), Some(world.now.after(WITHOUT_COOKIES)));
        // That the flood ends, and that another begins, changes nothing meanwhile.
        world.tests.saw(&[], world.now);
        world.tests.saw(&[armed(PORT)], world.now);
        assert!(!world.has_cookies() && !world.is_due());
        world.pass(WITHOUT_COOKIES);
        assert!(world.has_cookies() && world.is_due());
        // Not mended: one miss is enough. An outcome that says nothing ends no probation.
        assert!(!world.tested(UNTESTED));
        assert!(world.tested(SelfTest::Missed));
        assert!(!world.has_cookies());
        // Mended: it is said once, and the next misses are counted anew.
        world.pass(WITHOUT_COOKIES);
        assert!(world.tested(SelfTest::Passed));
        assert!(!world.tested(SelfTest::Passed) && !world.tested(SelfTest::Missed));
        assert!(world.has_cookies());
    }

    #[test]
    fn ports_are_tested_only_while_they_are_over_their_budget() {
        let mut world = World::new();
        assert!(world.is_due());
        world.tests.saw(&[], world.now);
        assert!(!world.is_due());
        assert_eq!(world.tests.tested(PORT, SelfTest::Missed, world.now), None);
        world.tests.saw(&[armed(PORT), armed(22)], world.now);
        assert_eq!(world.tests.due(world.now), []);
        world.pass(FIRST_AFTER);
        assert_eq!(world.tests.due(world.now), [22, PORT]);
        world.tests.tested(22, SelfTest::Passed, world.now);
        assert_eq!(world.tests.due(world.now), [PORT]);
        world.tests.forget();
        assert!(world.tests.get(PORT).is_none());
        // Those that have waited longest come first, and none is left out for good.
        let ports: Vec<u16> = (1..=20).collect();
        world.tests.saw(&ports.iter().map(|port| armed(*port)).collect::<Vec<_>>(), world.now);
        world.pass(FIRST_AFTER);
        let mut tested = Vec::new();
        while let due = world.tests.due(world.now)
            && !due.is_empty()
        {
            assert!(due.len() <= MOST_AT_ONCE);
            for port in &due {
                assert_eq!(world.tests.tested(*port, UNTESTED, world.now), None);
            }
            tested.extend(due);
        }
        assert_eq!(tested, ports);
    }

    #[test]
    fn words_are_those_of_the_list() {
        for outcome in [SelfTest::Passed, SelfTest::Partly, SelfTest::Missed, UNTESTED] {
            assert!(SelfTest::LABELS.contains(&outcome.label()));
        }
        for (address, is_test) in
            [(SOURCE_V4.into(), true), (SOURCE_V6.into(), true), (IpAddr::from([192, 0, 2, 252]), false)]
        {
            assert_eq!(is_source(PacketSource::of(address)), is_test);
        }
    }

    proptest! {
        /// For all sequences of outcomes and waits, a port loses its cookies only by a miss, and never before the third in
        /// a row unless it had lost them before; it is without them for exactly ten minutes, and never tested meanwhile.
        #[test]
        fn only_misses_take_cookies(steps in prop::collection::vec((0u8..4, 0u64..700), 1..60)) {
            let mut world = World::new();
            let (mut in_row, mut has_lost) = (0, false);
            for (kind, seconds) in steps {
                let lost_at = (!world.has_cookies()).then_some(world.now);
                let until = world.tests.next_deadline();
                world.pass(Duration::from_secs(seconds));
                if let (Some(_), Some(until)) = (lost_at, until) {
                    prop_assert_eq!(world.has_cookies(), until <= world.now);
                    prop_assert!(world.has_cookies() || !world.is_due());
                }
                let outcome = [SelfTest::Passed, SelfTest::Partly, SelfTest::Missed, UNTESTED][usize::from(kind)];
                let had_cookies = world.has_cookies();
                world.tested(outcome);
                if had_cookies {
                    in_row = match outcome {
                        SelfTest::Missed => in_row + 1,
                        SelfTest::Untested(_) => in_row,
                        SelfTest::Passed | SelfTest::Partly => { has_lost = false; 0 }
                    };
                    if world.has_cookies() {
                        prop_assert!(in_row < MISSES);
                    } else {
                        prop_assert!(outcome == SelfTest::Missed && (in_row >= MISSES || has_lost));
                        prop_assert_eq!(world.tests.next_deadline(), Some(world.now.after(WITHOUT_COOKIES)));
                        (in_row, has_lost) = (0, true);
                    }
                }
            }
        }
    }
}
