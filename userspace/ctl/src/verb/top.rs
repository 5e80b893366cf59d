//! `top`: a live view in the terminal, or one frame of it as text.
//!
//! Asking takes a thread of its own, so that keys and signals act at once while the daemon is slow or silent.

mod controls;
mod frame;
mod model;
mod terminal;

use std::{
    env,
    io::{self, IsTerminal},
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, Sender, TryRecvError, channel},
    thread,
    time::{Duration, Instant},
};

use clap::Args;
use ratatui::{
    Terminal,
    backend::TestBackend,
    crossterm::{
        event::{self, Event},
        terminal::size,
    },
};
use serde::Serialize;
use tunica_api::{
    SCHEMA,
    request::Request,
    view::{Answer, Bans},
};

use self::{
    controls::{Controls, Pressed},
    frame::Look,
    model::{Model, Reading},
    terminal::{Screen, Signals},
};
use crate::{
    Failure, Global,
    client::{self, AskError},
    exit::Exit,
    say, say_json,
};

/// How many sources are asked for: more than a screen has lines.
const SOURCES: u32 = 100;
/// A list of bans is asked for again only after this many times what the last one took, since a full table is 131 072
/// rows to write and to read.
const REST: u32 = 20;
/// How soon a signal or an answer is noticed.
const GLANCE: Duration = Duration::from_millis(50);
/// Columns and lines of a frame where no terminal gives others.
const PLAIN: (u16, u16) = (80, 24);

/// See [`super::Verb::Top`].
#[derive(Debug, Args)]
pub(crate) struct Top {
    /// Seconds between readings, 0.2 to 60
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = interval)]
    interval: Interval,
    /// Print one frame as text after one interval
    #[arg(long)]
    once: bool,
    /// Use no colour; the variable NO_COLOR does the same
    #[arg(long)]
    monochrome: bool,
}

/// A span as it was given, and its length.
#[derive(Clone, Debug)]
struct Interval {
    text: String,
    length: Duration,
}

fn interval(text: &str) -> Result<Interval, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| (0.2..=60.0).contains(seconds));
    let seconds = seconds.ok_or_else(|| "write a number of seconds from 0.2 to 60".to_owned())?;
    Ok(Interval { text: text.to_owned(), length: Duration::from_secs_f64(seconds) })
}

impl Top {
    /// Shows it.
    ///
    /// # Errors
    /// If the daemon does not answer at the start, or there is no terminal to show it on.
    pub(crate) fn run(self, global: &Global) -> Result<Exit, Failure> {
        let no_colour = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let look = Look {
            is_monochrome: self.monochrome || no_colour,
            interval: self.interval.text.clone(),
            is_live: !self.once,
        };
        if self.once {
            return self.once(global, &look);
        }
        if global.json {
            let message = "--json goes with --once: nothing was asked; add --once";
            return Err(Failure::new(Exit::Usage, message));
        }
        if !io::stdout().is_terminal() {
            let message =
                "standard output is no terminal: nothing was asked; add --once for one frame as text";
            return Err(Failure::new(Exit::Usage, message));
        }
        self.live(global, &look)
    }

    fn once(&self, global: &Global, look: &Look) -> Result<Exit, Failure> {
        let mut asker = Asker::new(&global.socket);
        let mut model = Model::default();
        model.observe(asker.read()?);
        thread::sleep(self.interval.length);
        model.observe(asker.read()?);
        if global.json {
            say_json(&Report::of(&model))?;
            return Ok(Exit::Done);
        }
        let (columns, lines) = if io::stdout().is_terminal() { size().unwrap_or(PLAIN) } else { PLAIN };
        let mut terminal = match Terminal::new(TestBackend::new(columns, lines)) {
            Ok(terminal) => terminal,
            Err(never) => match never {},
        };
        match terminal.draw(|frame| frame::draw(frame, &model, &Controls::default(), look)) {
            Ok(drawn) => say(&frame::text(drawn.buffer))?,
            Err(never) => match never {},
        }
        Ok(Exit::Done)
    }

    fn live(&self, global: &Global, look: &Look) -> Result<Exit, Failure> {
        let failed = |error: io::Error| {
            Failure::new(
                Exit::Failed,
                format!("the terminal cannot be used ({error}): `tunica top --once` needs none"),
            )
        };
        let mut model = Model::default();
        let mut asker = Asker::new(&global.socket);
        // What is wrong from the start is said on the ordinary screen.
        model.observe(asker.read()?);
        let (questions, answers) = asker.start();
        let signals = Signals::take().map_err(failed)?;
        let mut screen = Screen::open().map_err(failed)?;
        let mut controls = Controls::default();
        let mut asked: Option<Instant> = None;
        let mut due = Instant::now() + self.interval.length;
        let mut must_draw = true;
        let ended_by = loop {
            if must_draw {
                screen.terminal.draw(|frame| frame::draw(frame, &model, &controls, look)).map_err(failed)?;
                must_draw = false;
            }
            if let Some(signal) = signals.arrived() {
                break Some(signal);
            }
            if event::poll(GLANCE).map_err(failed)? {
                match event::read().map_err(failed)? {
                    Event::Key(key) => {
                        let was_paused = controls.is_paused;
                        match controls.press(key, |panel| controls::rows(&model, panel)) {
                            Pressed::Quit => break None,
                            Pressed::Redraw => must_draw = true,
                            Pressed::Nothing => {}
                        }
                        if was_paused && !controls.is_paused {
                            model.interrupt();
                            due = Instant::now();
                        }
                    }
                    Event::Resize(..) => must_draw = true,
                    Event::FocusGained | Event::FocusLost | Event::Mouse(_) | Event::Paste(_) => {}
                }
            }
            match answers.try_recv() {
                Ok(answer) => {
                    asked = None;
                    // What was on its way when the pause began would move figures that should stand.
                    if !controls.is_paused {
                        match answer {
                            Ok(reading) => model.observe(reading),
                            Err(error) => model.miss(error.to_string()),
                        }
                        must_draw = true;
                    }
                }
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => {
                    return Err(Failure::new(
                        Exit::Failed,
                        "the thread that asks has ended; please report this",
                    ));
                }
            }
            let now = Instant::now();
            if asked.is_none() && !controls.is_paused && now >= due {
                // A thread that has ended shows at the next look for its answers.
                let _ = questions.send(());
                asked = Some(now);
                due = (due + self.interval.length).max(now);
            }
        };
        drop(screen);
        if let Some(signal) = ended_by {
            terminal::end_by(signal).map_err(failed)?;
        }
        Ok(Exit::Done)
    }
}

/// Asks all that one reading needs.
struct Asker {
    socket: PathBuf,
    /// Before this the list of bans is not asked for.
    next_bans: Instant,
}

type Answered = Result<Reading, NoReading>;

/// Why there is no reading.
#[derive(Debug, thiserror::Error)]
enum NoReading {
    /// The daemon does not answer.
    #[error(transparent)]
    Ask(AskError),
    /// The daemon refuses.
    #[error("{message}")]
    Refused {
        /// What it says.
        message: String,
        /// The exit status for it.
        exit: Exit,
    },
    /// The answer is of another kind.
    #[error("tunicad answers `{verb}` with something else: use `tunica` and `tunicad` of one version")]
    Unfit {
        /// What was asked.
        verb: &'static str,
    },
}

impl From<NoReading> for Failure {
    fn from(error: NoReading) -> Self {
        match error {
            NoReading::Ask(error) => error.into(),
            NoReading::Refused { message, exit } => Self::new(exit, message),
            unfit @ NoReading::Unfit { .. } => Self::new(Exit::Failed, unfit.to_string()),
        }
    }
}

impl Asker {
    fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned(), next_bans: Instant::now() }
    }

    fn ask<T>(&self, request: &Request, pick: impl Fn(Answer) -> Option<T>) -> Result<T, NoReading> {
        let answer = client::ask(&self.socket, request).map_err(NoReading::Ask)?.answer;
        if let Answer::Refused(refused) = &answer {
            let (message, exit) = (refused.message.clone(), crate::exit::of(&answer));
            return Err(NoReading::Refused { message, exit });
        }
        pick(answer).ok_or(NoReading::Unfit { verb: request.verb() })
    }

    fn read(&mut self) -> Answered {
        // The counters first, because time counts for them.
        let counters = self.ask(&Request::Counters {}, |answer| {
            if let Answer::Counters(counters) = answer { Some(counters) } else { None }
        })?;
        let status = self.ask(&Request::Status {}, |answer| {
            if let Answer::Status(status) = answer { Some(*status) } else { None }
        })?;
        let sources = self.ask(&Request::Sources { limit: SOURCES }, |answer| {
            if let Answer::Sources(sources) = answer { Some(sources) } else { None }
        })?;
        Ok(Reading { counters, status, sources, bans: self.bans()? })
    }

    fn bans(&mut self) -> Result<Option<Bans>, NoReading> {
        let begun = Instant::now();
        if begun < self.next_bans {
            return Ok(None);
        }
        let bans =
            self.ask(
                &Request::BanList {},
                |answer| if let Answer::Bans(bans) = answer { Some(bans) } else { None },
            )?;
        let ended = Instant::now();
        self.next_bans = ended + ended.duration_since(begun) * REST;
        Ok(Some(bans))
    }

    /// From now on asks in a thread of its own: one answer for each question.
    fn start(mut self) -> (Sender<()>, Receiver<Answered>) {
        let (questions, asked) = channel();
        let (answered, answers) = channel();
        thread::spawn(move || {
            for () in asked {
                if answered.send(self.read()).is_err() {
                    break;
                }
            }
        });
        (questions, answers)
    }
}

/// `--once --json`: counters with their rates.
#[derive(Serialize)]
struct Report<'a> {
    schema: u32,
    kind: &'static str,
    mode: &'a str,
    rows: Vec<ReportRow<'a>>,
}

#[derive(Serialize)]
struct ReportRow<'a> {
    verdict: &'a str,
    action: &'a str,
    packets: u64,
    bytes: u64,
    packets_per_second: Option<f64>,
    bytes_per_second: Option<f64>,
}

impl<'a> Report<'a> {
    fn of(model: &'a Model) -> Self {
        let rows = model.tracks.iter().map(|track| {
            let now = track.now();
            ReportRow {
                verdict: &track.counter.verdict,
                action: &track.counter.action,
                packets: track.counter.packets,
                bytes: track.counter.bytes,
                packets_per_second: now.map(|rate| rate.packets),
                bytes_per_second: now.map(|rate| rate.bytes),
            }
        });
        let mode = model.latest.as_ref().map_or("", |latest| latest.status.mode.as_str());
        Self { schema: SCHEMA, kind: "top", mode, rows: rows.collect() }
    }
}
