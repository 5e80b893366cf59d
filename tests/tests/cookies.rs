//! SYN cookies against forged floods, for longer than the two minutes in which a listener accepts cookies after its last
//! overflow: shorter tests pass by luck.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper that fails is a test that fails"
)]

use std::{
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
    thread,
    time::{Duration, Instant},
};

use tunica_common::verdict::Verdict;
use tunica_tests::{
    armed::{COUNTS_LAG, Daemon, Packets, Setup, program},
    client::{Service, Visitors, Visits},
    flood::{Flood, Pattern},
    stage::{ATTACK_SIDE, ATTACKERS_INTERFACE, CLIENT_SIDE, SERVICE, Stage, VISITORS},
};

/// Longer than a listener's stamp lives.
const ATTACK: Duration = Duration::from_secs(180);
/// Forged SYNs a second: 30 times a port's budget.
const RATE: u32 = 3_000;
/// The sysctl, as a path below `/proc/sys`.
const SYNCOOKIES: &str = "net/ipv4/tcp_syncookies";

static NEVER: AtomicBool = AtomicBool::new(false);

/// A stage with a daemon's folder and pins, which go with it.
struct Scene {
    stage: Stage,
    folder: tempfile::TempDir,
    pins: PathBuf,
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.pins);
    }
}

impl Scene {
    fn new(purpose: &str, syncookies: &str) -> Self {
        let stage = Stage::build(purpose).unwrap();
        stage.host.write_sysctl(SYNCOOKIES, syncookies).unwrap();
        let pins = Path::new("/sys/fs/bpf").join(format!("tunica-{purpose}-{}", std::process::id()));
        Self { stage, folder: tempfile::tempdir().unwrap(), pins }
    }

    fn daemon(&self, more: &str) -> Daemon<'_> {
        let program = Box::leak(Box::new(program("tunicad").unwrap()));
        let more = Box::leak(more.to_owned().into_boxed_str());
        let setup = Setup {
            namespace: &self.stage.host,
            program,
            folder: self.folder.path(),
            pins: &self.pins,
            interfaces: &[ATTACK_SIDE, CLIENT_SIDE],
            mode: "enforce",
            more,
        };
        Daemon::start(setup, &NEVER).unwrap()
    }

    /// Visitors under attack, and what the shield counted of it.
    fn attack(&self, daemon: &Daemon<'_>, length: Duration) -> (Visits, Packets) {
        let before = daemon.packets().unwrap();
        let flood =
            Flood { rate: RATE, ..forged() }.start(&self.stage.attackers, ATTACKERS_INTERFACE).unwrap();
        // The flood is on before the first visitor comes.
        thread::sleep(Duration::from_secs(1));
        let visitors = Visitors { count: 5, ..VISITORS }.start(&self.stage.client).unwrap();
        thread::sleep(length);
        let visits = visitors.stop().unwrap();
        assert!(flood.stop().unwrap() > u64::from(RATE) * length.as_secs() / 2, "the flood was no flood");
        thread::sleep(COUNTS_LAG);
        let after = daemon.packets().unwrap();
        let grown =
            after.into_iter().map(|(key, count)| (key, count - before.get(&key).copied().unwrap_or(0)));
        (visits, grown.collect())
    }

    fn syncookies(&self) -> String {
        self.stage.host.read_sysctl(SYNCOOKIES).unwrap()
    }
}

fn forged() -> Flood {
    Flood { pattern: Pattern::ForgedSyn, ..Stage::attack(tunica_tests::report::Act::Forged).unwrap() }
}

fn count(packets: &Packets, verdict: Verdict, action: &'static str) -> u64 {
    packets.get(&(verdict, action)).copied().unwrap_or(0)
}

/// Everyone was served, and nobody was reset.
fn all_served(visits: &Visits) {
    assert!(visits.attempts() > 1_000, "{} visits", visits.attempts());
    assert_eq!(visits.resets, 0, "of {} visits", visits.attempts());
    assert!(visits.success().unwrap() >= 0.99, "{} of {} failed", visits.failures, visits.attempts());
}

/// The flood was answered with cookies, visitors brought theirs back, and a few SYNs reached the listener.
fn answered(packets: &Packets, visits: &Visits) {
    let answers = count(packets, Verdict::SynCookie, "answer");
    assert!(answers > u64::from(RATE) * ATTACK.as_secs() / 2, "{packets:?}");
    let returned = count(packets, Verdict::CookieAck, "pass");
    assert!(returned * 10 > visits.successes() * 9, "{returned} of {}: {packets:?}", visits.successes());
    let trickle = count(packets, Verdict::SynTrickle, "pass");
    assert!(trickle > ATTACK.as_secs() && trickle < 4 * ATTACK.as_secs(), "{packets:?}");
    assert_eq!(count(packets, Verdict::SynRate, "drop"), 0, "{packets:?}");
}

/// All four at once, because each takes three minutes.
#[test]
fn no_visitor_is_reset_whatever_the_sysctl() {
    let scenes: [(&str, fn()); 4] = [
        ("sysctl 2", sysctl_2_cookies_serve_everyone),
        ("sysctl 1, managed", sysctl_1_managed_is_switched_and_put_back),
        ("sysctl 1", sysctl_1_unmanaged_leaves_the_flood_to_the_kernel),
        ("sysctl 0", sysctl_0_resets_nobody),
    ];
    let threads =
        scenes.map(|(name, scene)| thread::Builder::new().name(name.to_owned()).spawn(scene).unwrap());
    let failed = threads.into_iter().filter_map(|thread| thread.join().err()).count();
    assert_eq!(failed, 0, "of four scenes; the panics above name them");
}

fn sysctl_2_cookies_serve_everyone() {
    let scene = Scene::new("cookies2", "2");
    let _service = Service::start(&scene.stage.host, SERVICE).unwrap();
    let daemon = scene.daemon("");
    let (visits, packets) = scene.attack(&daemon, ATTACK);
    all_served(&visits);
    answered(&packets, &visits);
    assert_eq!(scene.syncookies(), "2");
}

fn sysctl_1_managed_is_switched_and_put_back() {
    let scene = Scene::new("cookies1m", "1");
    let _service = Service::start(&scene.stage.host, SERVICE).unwrap();
    let daemon = scene.daemon("[shield.cookies]\nmanage_syncookies = true\nhold_seconds = 10\n");
    assert_eq!(scene.syncookies(), "1");
    let (visits, packets) = scene.attack(&daemon, ATTACK);
    all_served(&visits);
    answered(&packets, &visits);
    let deadline = Instant::now() + Duration::from_secs(60);
    while scene.syncookies() != "1" {
        assert!(Instant::now() < deadline, "the sysctl was not put back");
        thread::sleep(Duration::from_millis(200));
    }
}

fn sysctl_1_unmanaged_leaves_the_flood_to_the_kernel() {
    let scene = Scene::new("cookies1", "1");
    let _service = Service::start(&scene.stage.host, SERVICE).unwrap();
    let daemon = scene.daemon("");
    let (visits, packets) = scene.attack(&daemon, ATTACK);
    all_served(&visits);
    assert_eq!(count(&packets, Verdict::SynCookie, "answer"), 0, "{packets:?}");
    assert!(
        count(&packets, Verdict::SynOverBudget, "pass") > u64::from(RATE) * ATTACK.as_secs() / 2,
        "{packets:?}"
    );
    assert_eq!(scene.syncookies(), "1");
}

fn sysctl_0_resets_nobody() {
    let scene = Scene::new("cookies0", "0");
    let _service = Service::start(&scene.stage.host, SERVICE).unwrap();
    let daemon = scene.daemon("[shield.cookies]\nmanage_syncookies = true\n");
    let (visits, packets) = scene.attack(&daemon, ATTACK);
    // Without any cookies the listener's queue is full of forged SYNs: visitors wait in vain, but none is reset.
    assert!(visits.attempts() > 100);
    assert_eq!(visits.resets, 0);
    assert_eq!(count(&packets, Verdict::SynCookie, "answer"), 0, "{packets:?}");
    assert_eq!(scene.syncookies(), "0", "0 is the operator's own choice");
}
