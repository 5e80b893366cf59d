//! Debian's Chromium without a window, and its DevTools where a test drives it.
//!
//! Source of the messages: the [Chrome DevTools Protocol](https://chromedevtools.github.io/devtools-protocol/), spoken over the
//! browser's file descriptors 3 and 4, each message ended by a zero byte.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use serde_json::{Value, json};

use crate::sys::end_with_parent;

/// How long the browser may take for anything. Nothing is measured by it.
const PATIENCE: Duration = Duration::from_secs(120);

/// What every start has. The sandbox does not work for root.
const ARGUMENTS: [&str; 8] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
];

/// A browser with a profile of its own, which goes with it.
#[derive(Debug)]
pub struct Browser {
    child: Child,
    _folder: tempfile::TempDir,
}

impl Browser {
    /// Opens a page, with scripts or without, and stays there.
    ///
    /// # Errors
    /// If Debian's package `chromium` is not installed.
    pub fn open(url: &str, has_scripts: bool) -> Result<Self> {
        let mut command = Command::new("chromium");
        // Without a port it would end as soon as the first page is there.
        command.arg("--remote-debugging-port=0");
        command.arg(format!("--blink-settings=scriptEnabled={has_scripts}")).arg(url);
        Self::start(command.stdin(Stdio::null()).stdout(Stdio::null()))
    }

    /// Starts a command that becomes the browser.
    fn start(command: &mut Command) -> Result<Self> {
        let folder = tempfile::tempdir().context("making a folder for the browser")?;
        command.args(ARGUMENTS).arg(format!("--user-data-dir={}", folder.path().display()));
        command
            .env("HOME", folder.path())
            .env("TMPDIR", folder.path())
            .stderr(Stdio::null())
            .process_group(0);
        let child =
            end_with_parent(command).spawn().context("starting chromium of Debian's package chromium")?;
        Ok(Self { child, _folder: folder })
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It has many processes, which are one group.
        if let Ok(group) = i32::try_from(self.child.id()) {
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
        let _ = self.child.wait();
    }
}

/// A tab that a test drives, whose browser asks through a SOCKS port for everything, names included.
#[derive(Debug)]
pub struct Tab {
    commands: ChildStdin,
    messages: Receiver<Value>,
    events: Vec<Value>,
    session: Option<String>,
    last: u64,
    _browser: Browser,
}

impl Tab {
    /// Starts a browser. `run` makes the command that runs a program at the place where the SOCKS port is.
    ///
    /// # Errors
    /// If it does not start, or its DevTools do not answer.
    pub fn open(run: impl FnOnce(&Path) -> Command, socks: SocketAddr) -> Result<Self> {
        let mut command = run(Path::new("sh"));
        // The shell gives the browser this side's pipes where it looks for them.
        command.args(["-c", "exec chromium \"$@\" 3<&0 4>&1 0</dev/null 1>/dev/null", "sh"]);
        command.arg("--remote-debugging-pipe").arg(format!("--proxy-server=socks5://{socks}"));
        // A name that is looked up here, rather than by tor, is an error.
        command.arg(format!("--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE {}", socks.ip()));
        let mut browser = Browser::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()))?;
        let commands = browser.child.stdin.take().context("no pipe to the browser")?;
        let output = browser.child.stdout.take().context("no pipe from the browser")?;
        let messages = read(output);
        let mut tab =
            Self { commands, messages, events: Vec::new(), session: None, last: 0, _browser: browser };
        tab.attach()?;
        Ok(tab)
    }

    fn attach(&mut self) -> Result<()> {
        let target = self.call("Target.createTarget", &json!({ "url": "about:blank" }))?;
        let target = json!({ "targetId": target.get("targetId"), "flatten": true });
        let attached = self.call("Target.attachToTarget", &target)?;
        self.session = attached.get("sessionId").and_then(Value::as_str).map(str::to_owned);
        for domain in ["Page", "Network", "Runtime"] {
            self.call(&format!("{domain}.enable"), &json!({}))?;
        }
        Ok(())
    }

    /// Gives a command and returns its result. What happened meanwhile is kept for [`Self::events`].
    ///
    /// # Errors
    /// The browser's, or that it does not answer.
    pub fn call(&mut self, method: &str, parameters: &Value) -> Result<Value> {
        self.last += 1;
        let mut message = json!({ "id": self.last, "method": method, "params": parameters });
        if let (Some(session), Some(fields)) = (&self.session, message.as_object_mut()) {
            fields.insert("sessionId".to_owned(), session.as_str().into());
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        self.commands.write_all(&bytes).with_context(|| format!("asking the browser for {method}"))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.next(deadline).with_context(|| format!("waiting for {method}"))?;
            if answer.get("id").and_then(Value::as_u64) != Some(self.last) {
                self.events.push(answer);
            } else if let Some(error) = answer.get("error") {
                bail!("{method}: {error}");
            } else {
                return Ok(answer.get("result").cloned().unwrap_or_default());
            }
        }
    }

    fn next(&mut self, deadline: Instant) -> Result<Value> {
        let left = deadline.saturating_duration_since(Instant::now());
        match self.messages.recv_timeout(left) {
            Ok(message) => Ok(message),
            Err(RecvTimeoutError::Timeout) => bail!("the browser says nothing"),
            Err(RecvTimeoutError::Disconnected) => bail!("the browser has ended"),
        }
    }

    /// What an expression of JavaScript in the page comes to, as JSON.
    ///
    /// # Errors
    /// If it throws.
    pub fn evaluate(&mut self, expression: &str) -> Result<Value> {
        let asked = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let answer = self.call("Runtime.evaluate", &asked)?;
        if let Some(thrown) = answer.get("exceptionDetails") {
            bail!("{expression}: {thrown}");
        }
        Ok(answer.pointer("/result/value").cloned().unwrap_or_default())
    }

    /// Goes to an address and waits until the page has loaded with all that belongs to it.
    ///
    /// # Errors
    /// With what the browser says of a page that does not come.
    pub fn go(&mut self, url: &str) -> Result<()> {
        let from = self.events.len();
        let answer = self.call("Page.navigate", &json!({ "url": url }))?;
        if let Some(error) = answer.get("errorText") {
            bail!("{error}");
        }
        self.loaded_after(from)
    }

    /// Clicks with the mouse in the middle of the element that a selector names, and waits until the page to which that leads
    /// has loaded with all that belongs to it.
    ///
    /// # Errors
    /// If there is no such element, or no other page comes.
    pub fn click(&mut self, selector: &str) -> Result<()> {
        let from = self.events.len();
        let middle = self.evaluate(&format!(
            "(() => {{ const place = document.querySelector('{selector}').getBoundingClientRect(); \
             return {{ x: place.x + place.width / 2, y: place.y + place.height / 2 }}; }})()"
        ))?;
        for kind in ["mousePressed", "mouseReleased"] {
            let mut event = json!({ "type": kind, "button": "left", "clickCount": 1 });
            if let (Some(event), Some(middle)) = (event.as_object_mut(), middle.as_object()) {
                event.extend(middle.clone());
            }
            self.call("Input.dispatchMouseEvent", &event)?;
        }
        self.loaded_after(from)
    }

    /// Types into the field that a selector names.
    ///
    /// # Errors
    /// If there is none.
    pub fn enter(&mut self, selector: &str, text: &str) -> Result<()> {
        self.evaluate(&format!("document.querySelector('{selector}').focus()"))?;
        self.call("Input.insertText", &json!({ "text": text })).map(drop)
    }

    fn loaded_after(&mut self, from: usize) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let is_load =
            |event: &Value| event.get("method").is_some_and(|method| method == "Page.loadEventFired");
        while !self.events.iter().skip(from).any(is_load) {
            let event = self.next(deadline).context("waiting for a page")?;
            self.events.push(event);
        }
        Ok(())
    }

    /// The parameters of all events of this name so far.
    pub fn events(&self, method: &str) -> Vec<&Value> {
        let named = |event: &&Value| event.get("method").is_some_and(|known| known == method);
        self.events.iter().filter(named).filter_map(|event| event.get("params")).collect()
    }
}

/// Reads messages until the browser ends.
fn read(output: ChildStdout) -> Receiver<Value> {
    let (messages, inbox) = channel();
    thread::spawn(move || {
        for message in BufReader::new(output).split(0).map_while(Result::ok) {
            let Ok(message) = serde_json::from_slice(&message) else { break };
            if messages.send(message).is_err() {
                break;
            }
        }
    });
    inbox
}
