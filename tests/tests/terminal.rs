//! `tunica top` on a terminal of its own: what it draws, and that it leaves the terminal as it was.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper that fails is a test that fails"
)]

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::{fd::OwnedFd, unix::process::ExitStatusExt as _},
    process::{Child, Command, ExitStatus},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use nix::{
    pty::{Winsize, openpty},
    sys::{
        signal::{Signal, kill},
        termios::{LocalFlags, Termios, tcgetattr},
    },
    unistd::Pid,
};
use tunica_tests::{
    armed::program,
    lab::{Lab, null_segment},
    sys::end_with_parent,
};

/// How long anything may take that should happen at once.
const PATIENCE: Duration = Duration::from_secs(60);

/// A terminal of 80 columns and 24 lines with `tunica top` on it.
struct Watched {
    child: Child,
    /// The terminal's own side, to look at its settings.
    side: OwnedFd,
    keyboard: File,
    before: Termios,
    written: Arc<Mutex<Vec<u8>>>,
}

impl Watched {
    fn start(lab: &Lab, arguments: &[&str]) -> Self {
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&size), None).unwrap();
        let before = tcgetattr(&pty.slave).unwrap();
        let mut command = Command::new(program("tunica").unwrap());
        command.args(["top", "--interval", "0.2"]).args(arguments);
        command.arg("--socket").arg(lab.path("tunicad.sock"));
        command.env_remove("NO_COLOR").env("TERM", "xterm-256color");
        let slave = || pty.slave.try_clone().unwrap();
        command.stdin(slave()).stdout(slave()).stderr(slave());
        let child = end_with_parent(&mut command).spawn().unwrap();
        let written = Arc::new(Mutex::new(Vec::new()));
        let keyboard = File::from(pty.master.try_clone().unwrap());
        let (mut master, kept) = (File::from(pty.master), Arc::clone(&written));
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = master.read(&mut bytes) {
                kept.lock().unwrap().extend_from_slice(&bytes[..count]);
            }
        });
        Self { child, side: pty.slave, keyboard, before, written }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.written.lock().unwrap()).into_owned()
    }

    /// Waits until `part` stands on the screen.
    fn wait_for(&self, part: &str) {
        self.wait(part, |watched| shown(&watched.text()).contains(part));
    }

    fn wait(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so(self) {
            let screen = shown(&self.text());
            assert!(Instant::now() < deadline, "waited in vain for {what:?}:\n{screen}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn press(&mut self, keys: &[u8]) {
        self.keyboard.write_all(keys).unwrap();
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    /// Waits for the end, and holds that the terminal is as it was before.
    fn end(mut self) -> (ExitStatus, String) {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "top does not end: {:?}", self.text());
            thread::sleep(Duration::from_millis(20));
        };
        self.wait("the screen before", |watched| watched.text().contains("\u{1b}[?1049l"));
        let text = self.text();
        let after = text.rsplit("\u{1b}[?1049l").next().unwrap_or_default();
        assert!(
            text.contains("\u{1b}[?25h") && !after.contains("\u{1b}[?25l"),
            "the cursor is hidden: {text:?}"
        );
        assert_eq!(tcgetattr(&self.side).unwrap(), self.before);
        (status, text)
    }
}

/// What stands on the screen after `written`: cursor addressing, clearing and text are followed, styles are skipped.
fn shown(written: &str) -> String {
    let mut cells = vec![vec![' '; 80]; 24];
    let (mut row, mut column) = (0, 0);
    let mut rest = written.chars();
    while let Some(c) = rest.next() {
        match c {
            '\u{1b}' => {
                // ECMA-48, 5.4: `[`, parameters, and a letter that says what they are of.
                let mut parameters = String::new();
                let end = rest.by_ref().skip(1).find(|c| {
                    let is_end = c.is_ascii_alphabetic();
                    if !is_end {
                        parameters.push(*c);
                    }
                    is_end
                });
                match (end, parameters.as_str()) {
                    (Some('H'), address) => {
                        let (line, place) = address.split_once(';').unwrap();
                        (row, column) =
                            (line.parse::<usize>().unwrap() - 1, place.parse::<usize>().unwrap() - 1);
                    }
                    (Some('J'), _) | (Some('h' | 'l'), "?1049") => cells = vec![vec![' '; 80]; 24],
                    (Some(_), _) | (None, _) => {}
                }
            }
            '\r' => column = 0,
            '\n' => row += 1,
            c => {
                if let Some(cell) = cells.get_mut(row).and_then(|line| line.get_mut(column)) {
                    *cell = c;
                }
                column += 1;
            }
        }
    }
    cells.into_iter().map(|line| line.into_iter().collect::<String>() + "\n").collect()
}

#[test]
fn top_leaves_the_terminal_as_it_was() {
    let mut lab = Lab::new("terminal").unwrap();
    lab.configure("mode = \"observe\"", "").unwrap();
    lab.start().unwrap();
    for (keys, signal) in [
        (&b"q"[..], None),
        (b"\x03", None),
        (b"", Some(Signal::SIGTERM)),
        (b"", Some(Signal::SIGINT)),
        (b"", Some(Signal::SIGHUP)),
    ] {
        let mut watched = Watched::start(&lab, &[]);
        watched.wait_for("DEFENCE");
        let during = tcgetattr(&watched.side).unwrap();
        assert!(!during.local_flags.intersects(LocalFlags::ICANON | LocalFlags::ECHO));
        watched.press(keys);
        if let Some(signal) = signal {
            watched.signal(signal);
        }
        let (status, text) = watched.end();
        match signal {
            None => assert_eq!(status.code(), Some(0), "{keys:?}: {text:?}"),
            // As a program without a handler, so that a shell's loop around it ends too.
            Some(signal) => assert_eq!(status.signal(), Some(signal as i32), "{text:?}"),
        }
    }
}

#[test]
fn top_follows_keys_colours_and_the_daemons_absence() {
    let mut lab = Lab::new("terminal-keys").unwrap();
    lab.configure("mode = \"observe\"", "").unwrap();
    lab.start().unwrap();

    let mut watched = Watched::start(&lab, &["--monochrome"]);
    watched.wait_for("every 0.2 s");
    watched.press(b"?");
    watched.wait_for("Any key ends this help.");
    watched.press(b" p");
    watched.wait_for("PAUSED");
    watched.press(b"p");
    // The host's panel stands before the one chosen at first; zoomed it is what `status` says.
    watched.press(b"\x1b[D\r");
    watched.wait_for("INTERFACE");
    watched.press(b"q");
    let (status, text) = watched.end();
    assert_eq!(status.code(), Some(0));
    let has_colour = |text: &str| text.contains("\u{1b}[38;");
    assert!(!has_colour(&text), "{text:?}");

    let mut watched = Watched::start(&lab, &[]);
    watched.wait("colours", |watched| has_colour(&watched.text()));
    lab.end(Signal::SIGKILL).unwrap();
    watched.wait_for("NO ANSWER");
    lab.start().unwrap();
    watched.wait_for("observing, drops nothing");
    watched.press(b"q");
    assert_eq!(watched.end().0.code(), Some(0));
}

#[test]
fn top_shows_attack_mode_a_trial_and_an_incident() {
    let mut lab = Lab::new("terminal-passing").unwrap();
    lab.configure("mode = \"observe\"", "").unwrap();
    lab.start().unwrap();
    let mut watched = Watched::start(&lab, &["--monochrome"]);
    watched.wait_for("observing, drops nothing");
    assert!(!shown(&watched.text()).contains("ATTACK MODE"));
    lab.must(&["panic", "--for", "10m"]).unwrap();
    watched.wait_for("ATTACK MODE 9 m left");
    lab.must(&["reload", "--confirm", "100"]).unwrap();
    watched.wait_for("ON TRIAL 9");
    // A segment without flags.
    lab.send(&null_segment(), 5).unwrap();
    watched.wait_for("| INCIDENT sanity for ");
    let screen = shown(&watched.text());
    assert!(screen.lines().any(|line| line.contains(" left | ATTACK MODE 9 m left | INCIDENT")), "{screen}");
    // None of it pushes the rest off the screen.
    assert!(screen.contains("DEFENCE") && screen.contains("null_flags"), "{screen}");
    let status = lab.json(&["status"]).unwrap();
    assert_eq!(status["incident"]["defences"], serde_json::json!(["sanity"]));
    lab.must(&["panic", "off"]).unwrap();
    lab.must(&["confirm"]).unwrap();
    watched.wait("the end of both", |watched| {
        let screen = shown(&watched.text());
        !screen.contains("ATTACK MODE") && !screen.contains("ON TRIAL") && screen.contains("INCIDENT sanity")
    });
    watched.press(b"q");
    assert_eq!(watched.end().0.code(), Some(0));
}
