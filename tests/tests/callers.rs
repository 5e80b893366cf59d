//! Who calls the control socket: a crowd that only reads beside root, and operators who would lock themselves out.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper that fails is a test that fails"
)]

use std::{
    env, fs,
    io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _},
    os::unix::{fs::PermissionsExt as _, net::UnixStream, process::CommandExt as _},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
};

use nix::sys::signal::Signal;
use tunica_tests::{
    armed::install,
    frame::SYN,
    lab::{Lab, segment},
};
use tunicad::shell::xdp::{object, probe};

/// Names the socket to a copy of this executable that runs as a guest.
const SOCKET: &str = "TUNICA_TEST_GUEST_SOCKET";
const EXPLAIN: &[u8] = b"{\"schema\":1,\"verb\":\"explain\",\"address\":\"203.0.113.6\",\"packets\":1000}\n";

/// This executable, running one of its tests as user nobody of the control group.
struct Guest {
    child: Child,
    copy: PathBuf,
}

impl Guest {
    /// Starts `test` and waits until it says that it is ready.
    fn start(lab: &Lab, test: &str) -> Self {
        // The folders of the build and of the test are root's alone on some machines.
        let copy = PathBuf::from(format!("/dev/shm/tunica-{test}-{}", std::process::id()));
        install(&env::current_exe().unwrap(), &copy).unwrap();
        fs::set_permissions(lab.path(""), fs::Permissions::from_mode(0o755)).unwrap();
        let group = nix::unistd::Group::from_name("nogroup").unwrap().expect("the group nogroup");
        let mut command = Command::new(&copy);
        command.args(["--exact", "--nocapture", test]).env(SOCKET, lab.path("tunicad.sock")).current_dir("/");
        command.uid(65_534).gid(group.gid.as_raw()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let child = command.spawn().unwrap();
        let mut guest = Self { child, copy };
        guest.wait_for("ready");
        guest
    }

    /// What follows `word` on the line that begins with it.
    fn wait_for(&mut self, word: &str) -> String {
        // Unbuffered, so that nothing of the next line is lost.
        let out = self.child.stdout.as_mut().unwrap();
        let mut line = String::new();
        loop {
            let mut byte = [0];
            assert_eq!(out.read(&mut byte).unwrap(), 1, "the guest ended before it said {word}: {line}");
            if byte != [b'\n'] {
                line.push(byte[0].into());
            } else if let Some((_, rest)) = line.split_once(word) {
                return rest.trim().to_owned();
            } else {
                line.clear();
            }
        }
    }

    /// Ends the guest's standard input, for which it waits.
    fn release(&mut self) {
        drop(self.child.stdin.take());
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.copy);
    }
}

fn wait_for_release() {
    let mut rest = Vec::new();
    std::io::stdin().read_to_end(&mut rest).unwrap();
}

/// One line of question, one of answer, on a new connection.
fn ask(path: &PathBuf, line: &[u8]) -> String {
    let mut stream = UnixStream::connect(path).unwrap();
    // Whoever is refused unheard finds the other end closed.
    let _ = stream.write_all(line);
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    answer
}

#[test]
fn root_acts_while_guests_flood() {
    const CONNECTIONS: usize = 100;
    if let Some(path) = env::var_os(SOCKET).map(PathBuf::from) {
        let (answered, answers) = mpsc::channel();
        for _ in 0..CONNECTIONS {
            let (path, answered) = (path.clone(), answered.clone());
            // They end with this process.
            thread::spawn(move || {
                loop {
                    let answer = ask(&path, EXPLAIN);
                    assert!(answer.contains("\"kind\":\"explanation\""), "{answer}");
                    answered.send(()).unwrap();
                }
            });
        }
        for _ in 0..2 * CONNECTIONS {
            answers.recv().unwrap();
        }
        println!("ready");
        wait_for_release();
        return;
    }
    let mut lab = Lab::new("flooded").unwrap();
    lab.configure("mode = \"enforce\"", "").unwrap();
    lab.start().unwrap();
    let _guest = Guest::start(&lab, "root_acts_while_guests_flood");
    let explained = || {
        let series = "tunica_control_requests_total{result=\"ok\",verb=\"explain\"}";
        lab.metric(series).unwrap().unwrap()
    };
    let socket = lab.path("tunicad.sock");
    let mut fewest = f64::INFINITY;
    for _ in 0..5 {
        for request in [
            &b"{\"schema\":1,\"verb\":\"bypass_on\",\"reason\":\"test\"}\n"[..],
            b"{\"schema\":1,\"verb\":\"bypass_off\"}\n",
        ] {
            let before = explained();
            let answer = ask(&socket, request);
            assert!(answer.contains("\"kind\":\"done\""), "{answer}");
            fewest = fewest.min(explained() - before);
        }
    }
    // In one line with everybody else, root would wait for all of them each time.
    assert!(fewest < CONNECTIONS as f64 / 2.0, "{fewest} explanations went before root's request");
    assert!(lab.http("/health").is_ok());
}

#[test]
fn root_is_heard_while_silent_guests_hold_every_place_of_theirs() {
    /// All that may wait, and some more.
    const CONNECTIONS: usize = 140;
    if let Some(path) = env::var_os(SOCKET).map(PathBuf::from) {
        let mut silent: Vec<UnixStream> =
            (0..CONNECTIONS).map(|_| UnixStream::connect(&path).unwrap()).collect();
        let mut last = String::new();
        silent.pop().unwrap().read_to_string(&mut last).unwrap();
        println!("ready {last}");
        wait_for_release();
        let is_open = |stream: &&UnixStream| {
            let mut stream = *stream;
            stream.set_nonblocking(true).unwrap();
            stream.read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
        };
        println!("open {}", silent.iter().filter(is_open).count());
        return;
    }
    let mut lab = Lab::new("crowded").unwrap();
    lab.configure("mode = \"enforce\"", "").unwrap();
    lab.start().unwrap();
    let mut guest = Guest::start(&lab, "root_is_heard_while_silent_guests_hold_every_place_of_theirs");
    lab.must(&["bypass", "on", "--reason", "test"]).unwrap();
    assert_eq!(lab.json(&["status"]).unwrap()["bypass"]["reason"], "test");
    guest.release();
    let open: usize = guest.wait_for("open").parse().unwrap();
    assert!(open > 60, "only {open} guests were still waiting");
}

#[test]
fn the_copy_is_the_same_program_and_keeps_nothing_of_earlier_questions() {
    let mut lab = Lab::new("copy").unwrap();
    lab.configure(
        "mode = \"enforce\"\nallow = [\"198.51.100.0/28\"]\nsyn = { per_source_per_second = 1, burst = 3 }",
        "",
    )
    .unwrap();
    lab.start().unwrap();
    let mut copy = object::load(probe::SIZES, None).unwrap();
    let tag = object::program(&mut copy).unwrap().info().unwrap().tag();
    let status = lab.json(&["status"]).unwrap();
    assert_eq!(status["program"]["attached_tag"], format!("{tag:016x}"));

    lab.must(&["ban", "add", "203.0.113.5", "--for", "1h"]).unwrap();
    let labels = |source: &str| -> Vec<String> {
        let answer = lab.json(&["explain", source, "--packets", "4"]).unwrap();
        let outcomes = answer["outcomes"].as_array().unwrap().iter();
        outcomes.map(|run| format!("{} {}", run["count"], run["verdict"].as_str().unwrap())).collect()
    };
    let round = || {
        assert_eq!(labels("203.0.113.5"), ["4 banned"]);
        assert_eq!(labels("203.0.113.6"), ["3 syn", "1 syn_rate"]);
        assert_eq!(labels("198.51.100.3"), ["3 syn", "1 allowed"]);
        assert_eq!(labels("10.77.0.1"), ["4 own_source"]);
        assert_eq!(labels("2001:db8::7"), ["3 syn", "1 syn_rate"]);
    };
    round();
    round();
    // The live state is asked anew each time.
    lab.must(&["ban", "remove", "203.0.113.5"]).unwrap();
    assert_eq!(labels("203.0.113.5"), ["3 syn", "1 syn_rate"]);
    // Maps of another size have another secret, by which sources find their cells.
    lab.configure(
        "mode = \"enforce\"\ntables = { bans = 2048 }\nsyn = { per_source_per_second = 1, burst = 2 }",
        "",
    )
    .unwrap();
    lab.must(&["reload"]).unwrap();
    assert_eq!(labels("198.51.100.3"), ["2 syn", "2 syn_rate"]);
    assert_eq!(labels("203.0.113.5"), ["2 syn", "2 syn_rate"]);
}

#[test]
fn a_ban_of_ones_own_ssh_session_is_refused_unless_meant() {
    let mut lab = Lab::new("ssh").unwrap();
    lab.configure("mode = \"enforce\"", "").unwrap();
    lab.start().unwrap();
    for (peer, source) in [("203.0.113.5", "203.0.113.5"), ("2001:db8::9", "2001:db8::/64")] {
        let ran = lab.tunica_over_ssh(peer, &["ban", "add", source]).unwrap();
        assert_eq!(ran.code, Some(3), "{ran:?}");
        for part in ["where you are logged in from", "cut this session off", "--even-me"] {
            assert!(ran.err.contains(part), "no {part}: {ran:?}");
        }
    }
    assert_eq!(lab.json(&["ban", "list"]).unwrap()["bans"].as_array().unwrap().len(), 0);
    let ran = lab.tunica_over_ssh("203.0.113.5", &["ban", "add", "203.0.113.6"]).unwrap();
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let ran = lab.tunica_over_ssh("203.0.113.5", &["ban", "add", "203.0.113.5", "--even-me"]).unwrap();
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(lab.json(&["ban", "list"]).unwrap()["bans"].as_array().unwrap().len(), 2);
}

/// The numbers of Debian's base-passwd.
const MAIL: u32 = 8;
const NEWS: u32 = 9;

#[test]
fn reports_of_configured_accounts_ban_and_those_of_others_do_not() {
    let mut lab = Lab::new("reports").unwrap();
    lab.configure(
        "mode = \"enforce\"\nstale_after_seconds = 5",
        "[evidence]\nban_threshold = 3\nreporters = [\"mail 6/3600s\", \"no-such-account 1/1s\"]",
    )
    .unwrap();
    lab.count_in_stack("seen", "ip saddr 203.0.113.5").unwrap();
    lab.start().unwrap();
    let warnings = lab.json(&["status"]).unwrap()["warnings"].to_string();
    assert!(warnings.contains("accounts that cannot be found: no-such-account;"), "{warnings}");

    let group = nix::unistd::Group::from_name("nogroup").unwrap().expect("the group nogroup").gid.as_raw();
    let report = |lab: &Lab, uid: u32, source: &str, more: &[&str]| {
        let arguments = [&["report", source, "--reason", "wrong password"], more].concat();
        lab.tunica_by(uid, group, &arguments).unwrap()
    };
    let bans = |lab: &Lab| lab.json(&["ban", "list"]).unwrap()["bans"].as_array().unwrap().clone();
    let reports = |lab: &Lab, result: &str| {
        lab.metric(&format!("tunica_reports_total{{result=\"{result}\"}}")).unwrap()
    };

    // Members of the group whom the configuration does not name are heard by nobody.
    for _ in 0..4 {
        let ran = report(&lab, NEWS, "203.0.113.5", &[]);
        assert_eq!(ran.code, Some(5), "{ran:?}");
        assert!(ran.err.contains("uid 9 is no reporter"), "{ran:?}");
    }
    // A reporter outside the group does not reach the socket, and one inside may do nothing else.
    let ran = lab.tunica_by(MAIL, MAIL, &["report", "203.0.113.5", "--reason", "x"]).unwrap();
    assert_eq!(ran.code, Some(5), "{ran:?}");
    assert!(ran.err.contains("join the group"), "{ran:?}");
    let ran = lab.tunica_by(MAIL, group, &["ban", "add", "203.0.113.5"]).unwrap();
    assert_eq!(ran.code, Some(5), "{ran:?}");
    assert_eq!(lab.tunica_by(MAIL, group, &["ban", "list"]).unwrap().code, Some(0));

    let syn = segment([203, 0, 113, 5], SYN);
    for count in 1..=2 {
        let expected =
            format!("report {count} of 3 against 203.0.113.5 within 3600 s; the last of them bans it\n");
        let as_words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let dry = report(&lab, MAIL, "203.0.113.5", &["--dry-run"]);
        assert!(as_words(&dry.out).ends_with(&as_words(&expected)), "{dry:?}");
        let ran = report(&lab, MAIL, "203.0.113.5", &["--service", "imap"]);
        assert_eq!(as_words(&ran.out), as_words(&expected), "{ran:?}");
    }
    lab.send(&syn, 5).unwrap();
    assert_eq!(lab.in_stack("seen").unwrap(), 5);
    let ran = report(&lab, MAIL, "203.0.113.5", &["--service", "imap"]);
    assert!(ran.out.contains("203.0.113.5 is banned for 300 s") && ran.out.contains("rung 1"), "{ran:?}");
    lab.send(&syn, 5).unwrap();
    assert_eq!(lab.in_stack("seen").unwrap(), 5);
    let ban = &bans(&lab)[0];
    assert_eq!((ban["origin"].as_str(), ban["rung"].as_u64()), (Some("report"), Some(1)));
    assert_eq!(ban["reason"], "3 reports, the last by uid 8 (imap): wrong password");
    assert_eq!(lab.metric("tunica_bans_active{origin=\"report\"}").unwrap(), Some(1.0));

    // Whoever is protected cannot be reported, and a budget is a budget; root has none.
    let ran = report(&lab, MAIL, "10.77.0.1", &[]);
    assert_eq!(ran.code, Some(3), "{ran:?}");
    assert!(ran.err.contains("own addresses"), "{ran:?}");
    for source in ["203.0.113.6", "203.0.113.7"] {
        assert_eq!(report(&lab, MAIL, source, &[]).code, Some(0));
    }
    for more in [&[][..], &["--dry-run"]] {
        let ran = report(&lab, MAIL, "203.0.113.6", more);
        assert_eq!(ran.code, Some(3), "{ran:?}");
        assert!(ran.err.contains("uid 8 has used up its budget"), "{ran:?}");
    }
    lab.must(&["report", "203.0.113.6", "--reason", "by root"]).unwrap();
    assert_eq!(bans(&lab).len(), 1);
    for (result, count) in [
        ("accepted", 6.0),
        ("refused_budget", 1.0),
        ("refused_protected", 1.0),
        ("refused_forbidden", 4.0),
        ("refused_full", 0.0),
    ] {
        assert_eq!(reports(&lab, result), Some(count), "{result}");
    }
    let log = lab.log();
    assert!(log.contains("reporter_over_budget") && log.contains("report_refused_protected"), "{log}");
    assert!(!log.contains("203.0.113") && !log.contains("wrong password"), "{log}");

    // The ban rests on somebody's word, so it lapses with the daemon that took it.
    lab.signal(Signal::SIGSTOP).unwrap();
    lab.wait_for("the ban to lapse", |lab| {
        lab.send(&syn, 1)?;
        Ok(lab.in_stack("seen")? > 5)
    })
    .unwrap();
    lab.signal(Signal::SIGCONT).unwrap();
}

/// The guide's hook for sshd reads lines in which strangers choose the name, so nothing but sshd's own words may count.
#[test]
fn the_guides_hook_for_sshd_reads_the_peer_and_no_name() {
    let guide = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/guide.md")).unwrap();
    let (_, rest) = guide.split_once("sed -un '").expect("the hook");
    let (pattern, _) = rest.split_once('\'').unwrap();
    for (line, peer) in [
        ("Failed password for root from 203.0.113.5 port 4242 ssh2", "203.0.113.5"),
        ("Failed password for invalid user a from 2001:db8::9 port 1 ssh2", "2001:db8::9"),
        ("Failed keyboard-interactive/pam for root from 203.0.113.5 port 4242 ssh2", "203.0.113.5"),
        (
            "Failed password for invalid user from 192.0.2.1 port 1 ssh2 from 203.0.113.5 port 4242 ssh2",
            "203.0.113.5",
        ),
        ("Failed publickey for root from 203.0.113.5 port 4242 ssh2: RSA SHA256:abc", ""),
        ("Accepted password for root from 203.0.113.5 port 4242 ssh2", ""),
        ("Invalid user Failed password for a from 192.0.2.1 port 1 ssh2 from 203.0.113.5 port 4242", ""),
        ("Failed password for root from host.example port 4242 ssh2", ""),
    ] {
        let mut sed = Command::new("sed")
            .args(["-un", pattern])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        writeln!(sed.stdin.take().unwrap(), "{line}").unwrap();
        let found = String::from_utf8(sed.wait_with_output().unwrap().stdout).unwrap();
        assert_eq!(found.trim_end(), peer, "{line}");
    }
}
