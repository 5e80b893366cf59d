//! How a frame looks: pure functions of model and controls.
//!
//! Whatever colour says, a word says too: with and without colour the text of a frame is the same.

use std::cmp::Reverse;

use ratatui::{
    Frame,
    buffer::Buffer,
    layout::{Alignment, Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Text},
    widgets::{Cell, Row, Table as Rows},
};
use tunica_api::view::{Ban, Defence, Interface, Source, Status, Table};
use tunica_core::time::WallTime;

use super::{
    controls::{BanOrder, Controls, Panel},
    model::{Model, Reading, Track},
};
use crate::{
    render::{
        plural,
        status::{fill, status as status_text},
        text::{clean, count, duration},
    },
    verb::status::{is_attached_as_requested, is_stale, needs_attention},
};

/// Below this many columns nothing can be read.
const LEAST_COLUMNS: u16 = 60;
/// Below this many lines nothing can be read.
const LEAST_LINES: u16 = 16;
/// From this many columns on a panel shows its further columns.
const WIDE: u16 = 78;
/// Stands where a rate cannot be told.
const UNKNOWN: &str = "–";

/// How a frame is made, apart from what it shows.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Look {
    /// Whether no colour is used.
    pub(super) is_monochrome: bool,
    /// Seconds from one reading to the next, in words.
    pub(super) interval: String,
    /// Whether somebody can press keys.
    pub(super) is_live: bool,
}

/// Width of a column that takes what the others leave.
const REST: u16 = u16::MAX;

/// What a text is about; colour and weight follow from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tone {
    Plain,
    Good,
    Warning,
    Bad,
}

impl Look {
    fn style(&self, tone: Tone) -> Style {
        let (colour, weight) = match tone {
            Tone::Plain => (Color::Reset, Modifier::empty()),
            Tone::Good => (Color::Green, Modifier::empty()),
            Tone::Warning => (Color::Yellow, Modifier::empty()),
            Tone::Bad => (Color::Red, Modifier::BOLD),
        };
        let style = Style::new().add_modifier(weight);
        if self.is_monochrome { style } else { style.fg(colour) }
    }
}

/// A column of a panel.
struct Column {
    title: String,
    width: u16,
    is_number: bool,
}

fn words(title: &str, width: u16) -> Column {
    Column { title: title.to_owned(), width, is_number: false }
}

fn number(title: &str, width: u16) -> Column {
    Column { title: title.to_owned(), width, is_number: true }
}

/// Draws one frame.
pub(super) fn draw(frame: &mut Frame<'_>, model: &Model, controls: &Controls, look: &Look) {
    let area = frame.area();
    if area.width < LEAST_COLUMNS || area.height < LEAST_LINES {
        let text = format!(
            "This terminal has {}x{}; `tunica top` needs {LEAST_COLUMNS}x{LEAST_LINES}, better 80x24. q quits.",
            area.width, area.height
        );
        frame.render_widget(ratatui::widgets::Paragraph::new(text).wrap(Default::default()), area);
        return;
    }
    let Some(latest) = &model.latest else { return };
    let foot = u16::from(look.is_live);
    let lines = 4 + u16::from(passing(latest).is_some());
    let [head, body, footer] =
        Layout::vertical([Constraint::Length(lines), Constraint::Min(0), Constraint::Length(foot)])
            .areas(area);
    draw_head(frame, head, model, latest, controls, look);
    if look.is_live {
        frame.render_widget(Line::from(KEYS).style(Style::new().add_modifier(Modifier::REVERSED)), footer);
    }
    if controls.is_helping {
        frame.render_widget(Text::from(HELP), body);
        return;
    }
    if controls.is_zoomed {
        draw_panel(frame, body, controls.panel, model, latest, controls, look);
        return;
    }
    let defences = u16::try_from(latest.status.defences.len()).unwrap_or(u16::MAX).min(8).saturating_add(1);
    let [verdicts, middle, defences] =
        Layout::vertical([Constraint::Fill(3), Constraint::Fill(2), Constraint::Length(defences)])
            .areas(body);
    let [sources, bans] =
        Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).spacing(1).areas(middle);
    for (panel, area) in [
        (Panel::Verdicts, verdicts),
        (Panel::Sources, sources),
        (Panel::Bans, bans),
        (Panel::Defences, defences),
    ] {
        draw_panel(frame, area, panel, model, latest, controls, look);
    }
}

/// A frame as text, without blanks at the ends of lines and without empty lines at its end.
pub(super) fn text(buffer: &Buffer) -> String {
    let mut text = String::new();
    for line in buffer.content().chunks(usize::from(buffer.area.width).max(1)) {
        let line: String = line.iter().map(ratatui::buffer::Cell::symbol).collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

const KEYS: &str = " q quit  ? help  p pause  Tab panel  Enter zoom  arrows scroll  s order of bans";

const HELP: &str = "
 q, Ctrl-C       quit
 p               pause: nothing is asked, the figures stay
 Tab, left right choose a panel; its heading begins with >
 Enter, Esc      zoom the panel to the whole screen, and back
 up down, Page   scroll the panel
 s               bans: newest first, or those first that end next

 The lines at the top are a panel, too: zoomed they are `tunica status`.
 PACKETS/S  over the last interval; – where it cannot be told, because the
            counters began anew, nobody answered, or it is the first reading
 TREND      the intervals before, each row by its own highest; . is none
 SOURCES    as the packets claim, from samples; a flood's may be forged
 ACTION     would_drop passed, because the shield observes

 Any key ends this help.
";

/// State, what passes, interfaces, daemon and warnings: a line each, but none where nothing passes.
fn draw_head(
    frame: &mut Frame<'_>,
    area: Rect,
    model: &Model,
    latest: &Reading,
    controls: &Controls,
    look: &Look,
) {
    let status = &latest.status;
    let marker = if look.is_live && controls.panel == Panel::Host { ">" } else { "" };
    let pace = if controls.is_paused { "PAUSED".to_owned() } else { format!("every {} s", look.interval) };
    let [state, mut rest] = Layout::vertical([Constraint::Length(1), Constraint::Min(0)]).areas(area);
    let width = u16::try_from(pace.chars().count()).unwrap_or(u16::MAX);
    let [left, right] =
        Layout::horizontal([Constraint::Fill(1), Constraint::Length(width)]).spacing(1).areas(state);
    let (sentence, tone) = match &model.trouble {
        Some(trouble) => (format!("NO ANSWER since {}: {trouble}", latest.counters.now), Tone::Bad),
        None => state_of(status),
    };
    let mut lines = vec![(format!("{marker}{sentence}"), tone)];
    frame.render_widget(Line::from(pace), right);
    lines.extend(passing(latest));
    lines.push(interfaces(&status.interfaces));
    lines.push(daemon(latest));
    lines.push(match status.warnings.as_slice() {
        [] => ("no warnings".to_owned(), Tone::Plain),
        [first, ..] => (format!("{}: {first}", plural(status.warnings.len(), "warning")), Tone::Warning),
    });
    let mut place = left;
    for (text, tone) in lines {
        let line = shorten(&clean(&text), place.width);
        frame.render_widget(Line::from(line).style(look.style(tone)), place);
        place = Rect { height: 1, ..rest };
        rest = Rect { y: rest.y.saturating_add(1), height: rest.height.saturating_sub(1), ..rest };
    }
}

/// Whether the host is protected, what is wrong first.
fn state_of(status: &Status) -> (String, Tone) {
    let mut parts = Vec::new();
    if let Some(bypass) = &status.bypass {
        parts.push(format!("BYPASSED since {}: {}", bypass.since, bypass.reason));
    } else {
        if !status.interfaces.iter().all(is_attached_as_requested) {
            parts.push("NOT ATTACHED AS CONFIGURED".to_owned());
        }
        if is_stale(&status.heartbeat) {
            parts.push(format!("HEARTBEAT STALE ({})", status.heartbeat.on_stale));
        }
        // Where something is not attached, that says it all.
        if !status.program.matches && status.interfaces.iter().all(is_attached_as_requested) {
            parts.push("ANOTHER PROGRAM THAN THE CHECKED ONE".to_owned());
        }
        parts.push(match status.mode.as_str() {
            "enforce" => "enforcing".to_owned(),
            "observe" => "observing, drops nothing".to_owned(),
            "off" => "OFF by configuration, every packet passes".to_owned(),
            other => format!("mode {other}"),
        });
    }
    let tone = match (needs_attention(status), status.mode.as_str()) {
        (true, _) => Tone::Bad,
        (false, "enforce") => Tone::Good,
        (false, _) => Tone::Warning,
    };
    (parts.join(", "), tone)
}

/// What ends by itself: a trial, attack mode, an incident. It fits in 80 columns.
fn passing(latest: &Reading) -> Option<(String, Tone)> {
    let Reading { counters, status, .. } = latest;
    let mut parts = Vec::new();
    let mut tone = Tone::Warning;
    match &status.trial {
        None => {}
        Some(trial) if trial.undone => {
            parts.push("TRIAL UNDONE".to_owned());
            tone = Tone::Bad;
        }
        Some(trial) => parts.push(format!("ON TRIAL {} left", span(trial.seconds_left))),
    }
    if let Some(attack_mode) = &status.attack_mode {
        parts.push(format!("ATTACK MODE {} left", span(attack_mode.expires.since(counters.now).as_secs())));
    }
    if let Some(incident) = &status.incident {
        let kind = incident.defences.first().map_or("", String::as_str);
        let more = match incident.defences.len() {
            0 | 1 => String::new(),
            defences => format!(" +{}", defences - 1),
        };
        let length = span(counters.now.since(incident.since).as_secs());
        parts.push(format!("INCIDENT {kind}{more} for {length}"));
    }
    (!parts.is_empty()).then(|| (parts.join(" | "), tone))
}

/// A span in its largest unit, and below two minutes in seconds.
fn span(seconds: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(86_400, "d"), (3_600, "h"), (60, "m")];
    match UNITS.iter().find(|(length, _)| seconds >= 2 * length) {
        Some((length, name)) => format!("{} {name}", seconds / length),
        None => format!("{seconds} s"),
    }
}

/// Every interface with what is true of it, those first that are not as configured.
fn interfaces(rows: &[Interface]) -> (String, Tone) {
    let (good, bad): (Vec<_>, Vec<_>) = rows.iter().partition(|row| is_attached_as_requested(row));
    let tone = if bad.is_empty() { Tone::Good } else { Tone::Bad };
    let bad = bad.into_iter().map(|row| {
        let actual = if row.actual == "none" { "NO SHIELD" } else { row.actual.as_str() };
        format!("{} {actual}, {} wanted", row.name, row.requested)
    });
    let good = good.into_iter().map(|row| format!("{} {}", row.name, row.actual));
    (bad.chain(good).collect::<Vec<_>>().join(" | "), tone)
}

fn daemon(latest: &Reading) -> (String, Tone) {
    let Reading { counters, status, .. } = latest;
    let heartbeat = &status.heartbeat;
    let mut tables: Vec<&Table> = status.tables.iter().collect();
    // The fullest first, so that it is seen where the line is cut. `verified` is full in ordinary life: its rows give way.
    tables.sort_by_key(|table| {
        let fill = u128::from(table.used) * 1_000_000 / u128::from(table.capacity.max(1));
        (table.name == "verified", Reverse(fill))
    });
    let tables = tables.into_iter().map(|table| format!("{} {}", table.name, fill(table)));
    let text = format!(
        "generation {}, up {}, heartbeat {:.1} s of {} s; full: {}",
        status.generation,
        duration(counters.now.since(counters.started).as_secs()),
        heartbeat.age_seconds,
        heartbeat.stale_after_seconds,
        tables.collect::<Vec<_>>().join(", "),
    );
    (text, if is_stale(heartbeat) { Tone::Bad } else { Tone::Plain })
}

fn draw_panel(
    frame: &mut Frame<'_>,
    area: Rect,
    panel: Panel,
    model: &Model,
    latest: &Reading,
    controls: &Controls,
    look: &Look,
) {
    let view = View {
        is_wide: area.width >= WIDE,
        width: area.width,
        now: latest.counters.now,
        look,
        skip: if controls.panel == panel { controls.scroll } else { 0 },
        most: usize::from(area.height.saturating_sub(1)),
        is_chosen: look.is_live && controls.panel == panel,
    };
    match panel {
        Panel::Host => {
            let text = status_text(&latest.status);
            let lines: Vec<Line<'_>> = text.lines().skip(view.skip).map(Line::from).collect();
            frame.render_widget(Text::from(lines), area);
        }
        Panel::Verdicts => view.verdicts(frame, area, model),
        Panel::Sources => {
            let rows: Vec<&Source> = latest.sources.sources.iter().collect();
            view.sources(frame, area, &rows);
        }
        Panel::Bans => {
            let mut rows: Vec<&Ban> = model.bans.iter().flat_map(|bans| &bans.bans).collect();
            match controls.ban_order {
                BanOrder::Newest => rows.sort_by_key(|ban| Reverse((ban.since, ban.id))),
                BanOrder::Ending => rows.sort_by_key(|ban| (ban.expires.is_none(), ban.expires, ban.id)),
            }
            view.bans(frame, area, &rows, controls.ban_order);
        }
        Panel::Defences => view.defences(frame, area, &latest.status.defences),
    }
}

/// What every panel is drawn by.
struct View<'a> {
    is_wide: bool,
    width: u16,
    now: WallTime,
    look: &'a Look,
    skip: usize,
    most: usize,
    is_chosen: bool,
}

impl View<'_> {
    fn verdicts(&self, frame: &mut Frame<'_>, area: Rect, model: &Model) {
        let mut columns = vec![words("", 20), words("ACTION", 10), number("PACKETS/S", 10)];
        let mut after = vec![number("PACKETS", 11)];
        if self.width >= 100 {
            after.insert(0, number("BYTES/S", 10));
        }
        let taken: u16 = columns.iter().chain(&after).map(|column| column.width + 1).sum();
        let room = self.width.saturating_sub(taken);
        columns.push(words("TREND", room));
        columns.append(&mut after);

        let rows = model.busiest(usize::from(room));
        let row = |track: &&Track| {
            let counter = &track.counter;
            let tone = match counter.action.as_str() {
                "drop" => Tone::Bad,
                "would_drop" => Tone::Warning,
                _ => Tone::Plain,
            };
            let now = track.now();
            let mut cells = vec![
                counter.verdict.clone(),
                counter.action.clone(),
                now.map_or_else(|| UNKNOWN.to_owned(), |rate| pace(rate.packets)),
                trend(track, usize::from(room)),
            ];
            if self.width >= 100 {
                cells.push(now.map_or_else(|| UNKNOWN.to_owned(), |rate| pace(rate.bytes)));
            }
            cells.push(count(counter.packets));
            (cells, tone)
        };
        self.table(frame, area, "VERDICT", columns, &rows, row);
    }

    fn sources(&self, frame: &mut Frame<'_>, area: Rect, rows: &[&Source]) {
        let mut columns = vec![words("", 23)];
        if self.is_wide {
            columns.extend([number("EVENTS", 11), number("LAST SEEN", 13)]);
            columns.extend([words("STATE", 6), words("LAST VERDICT", REST)]);
        } else {
            columns.extend([number("EVENTS", 6), words("LAST", REST)]);
        }
        let row = |source: &&Source| {
            let events = if self.is_wide { count(source.events) } else { brief(source.events) };
            let mut cells = vec![source.source.to_string(), events];
            if self.is_wide {
                cells.push(ago(self.now, source.last_seen));
                cells.push(if source.banned { "banned" } else { "" }.to_owned());
                cells.push(format!("{} {}", source.verdict, source.action));
            } else if source.banned {
                cells.push("banned".to_owned());
            } else {
                cells.push(source.verdict.clone());
            }
            (cells, if source.banned { Tone::Bad } else { Tone::Plain })
        };
        self.table(frame, area, "SOURCE", columns, rows, row);
    }

    fn bans(&self, frame: &mut Frame<'_>, area: Rect, rows: &[&Ban], order: BanOrder) {
        let mut columns = vec![words("", 23), number("ENDS IN", 10), number("RUNG", 4)];
        if self.is_wide {
            columns.extend([number("SET", 13), words("BY", 9), words("REASON", REST)]);
        }
        let row = |ban: &&Ban| {
            let ends = ban
                .expires
                .map_or_else(|| "forever".to_owned(), |expires| duration(expires.since(self.now).as_secs()));
            let rung = ban.rung.map_or_else(|| "-".to_owned(), |rung| rung.to_string());
            let mut cells = vec![ban.source.to_string(), ends, rung];
            if self.is_wide {
                cells.extend([ago(self.now, ban.since), ban.origin.clone(), ban.reason.clone()]);
            }
            (cells, Tone::Plain)
        };
        let name = match order {
            BanOrder::Newest => "BAN newest",
            BanOrder::Ending => "BAN ending",
        };
        self.table(frame, area, name, columns, rows, row);
    }

    fn defences(&self, frame: &mut Frame<'_>, area: Rect, rows: &[Defence]) {
        let columns = vec![
            words("", 19),
            words("STATE", 9),
            number("ACTIVE FOR", 11),
            number("LAST ACTED", 13),
            number("DROPPED", 11),
            number("WOULD DROP", 11),
        ];
        let row = |defence: &Defence| {
            let active = defence.active_since.map(|since| duration(self.now.since(since).as_secs()));
            let last = defence.last_trigger.map(|last| ago(self.now, last));
            let cells = vec![
                defence.name.clone(),
                if defence.armed { "armed" } else { "NOT ARMED" }.to_owned(),
                active.unwrap_or_else(|| "-".to_owned()),
                last.unwrap_or_else(|| "never".to_owned()),
                count(defence.dropped_packets),
                count(defence.would_drop_packets),
            ];
            (cells, if defence.armed { Tone::Good } else { Tone::Plain })
        };
        self.table(frame, area, "DEFENCE", columns, rows, row);
    }

    /// Rows under a heading whose first cell names the panel and, where not all rows fit, says which are shown.
    fn table<T>(
        &self,
        frame: &mut Frame<'_>,
        area: Rect,
        name: &str,
        columns: Vec<Column>,
        rows: &[T],
        row: impl Fn(&T) -> (Vec<String>, Tone),
    ) {
        let columns = fitting(columns, self.width);
        let total = rows.len();
        let first = self.skip.min(total.saturating_sub(self.most));
        let shown = total.saturating_sub(first).min(self.most);
        let mut name = format!("{}{name}", if self.is_chosen { ">" } else { "" });
        if shown < total {
            name.push_str(&format!(" {}-{} of {total}", first + 1, first + shown));
        }
        let aligned = |text: String, is_number: bool| {
            let alignment = if is_number { Alignment::Right } else { Alignment::Left };
            Cell::from(Text::from(text).alignment(alignment))
        };
        let heads = columns.iter().enumerate().map(|(index, column)| {
            // A name that is longer than its column is cut there, and the count with it, so the words go first.
            let title = if index == 0 { fit(&name, column.width) } else { column.title.clone() };
            aligned(title, column.is_number)
        });
        let head = Row::new(heads.collect::<Vec<_>>())
            .style(Style::new().add_modifier(Modifier::BOLD | Modifier::REVERSED));
        let body = rows.iter().skip(first).take(shown).map(|item| {
            let (cells, tone) = row(item);
            let cells = cells.into_iter().zip(&columns).map(|(cell, column)| {
                let text = shorten(&clean(&cell), column.width);
                aligned(text, column.is_number)
            });
            Row::new(cells.collect::<Vec<_>>()).style(self.look.style(tone))
        });
        let widths = columns.iter().map(|column| Constraint::Length(column.width));
        let table = Rows::new(body.collect::<Vec<_>>(), widths.collect::<Vec<_>>()).header(head);
        frame.render_widget(table.column_spacing(1), area);
        if total == 0 {
            let below =
                Rect { y: area.y.saturating_add(1), height: area.height.saturating_sub(1).min(1), ..area };
            frame.render_widget(Line::from("none"), below);
        }
    }
}

/// The columns that there is room for. The last one may be narrower if it holds words; a number is never cut.
fn fitting(columns: Vec<Column>, width: u16) -> Vec<Column> {
    const LEAST: u16 = 4;
    let mut room = width;
    let mut fitting = Vec::new();
    for mut column in columns {
        if room < column.width {
            if column.is_number || room < LEAST {
                break;
            }
            column.width = room;
        }
        room = room.saturating_sub(column.width).saturating_sub(1);
        fitting.push(column);
    }
    fitting
}

/// `name` without its middle words where it does not fit.
fn fit(name: &str, width: u16) -> String {
    if name.chars().count() <= usize::from(width) {
        return name.to_owned();
    }
    let (first, rest) = name.split_once(' ').unwrap_or((name, ""));
    let counted = rest.rsplitn(4, ' ').take(3).collect::<Vec<_>>();
    format!("{first} {}", counted.into_iter().rev().collect::<Vec<_>>().join(" "))
}

/// `text`, its end replaced by an ellipsis where it does not fit.
fn shorten(text: &str, width: u16) -> String {
    let width = usize::from(width);
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let kept: String = text.chars().take(width.saturating_sub(1)).collect();
    format!("{kept}…")
}

/// A count in at most 6 columns, so to three digits where it is large.
fn brief(number: u64) -> String {
    match number {
        0..100_000 => count(number),
        100_000..1_000_000 => format!("{} k", number / 1_000),
        1_000_000..1_000_000_000 => format!("{} M", number / 1_000_000),
        1_000_000_000..1_000_000_000_000 => format!("{} G", number / 1_000_000_000),
        1_000_000_000_000.. => ">999 G".to_owned(),
    }
}

fn ago(now: WallTime, then: WallTime) -> String {
    format!("{} ago", duration(now.since(then).as_secs()))
}

/// A rate: a tenth is shown below 10, whole numbers from there on. What is not zero never looks like it.
fn pace(rate: f64) -> String {
    if rate <= 0.0 {
        "0".to_owned()
    } else if rate < 0.05 {
        "<0.1".to_owned()
    } else if rate < 9.95 {
        format!("{rate:.1}")
    } else {
        // Rates are differences of u64 by at least a millisecond; a conversion beyond u64 stays at its end.
        count(rate.round() as u64)
    }
}

/// The last rates as bars by the highest of them, the latest at the right; blank where no rate is known.
fn trend(track: &Track, width: usize) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let skipped = track.rates.len().saturating_sub(width);
    let shown: Vec<Option<f64>> =
        track.rates.iter().skip(skipped).map(|rate| rate.map(|rate| rate.packets)).collect();
    let highest = shown.iter().flatten().copied().fold(0.0, f64::max);
    let bar = |rate: &Option<f64>| match rate {
        None => ' ',
        Some(rate) if *rate <= 0.0 => '.',
        Some(rate) => {
            let eighths = (rate / highest * 8.0).ceil() as usize;
            BARS.get(eighths.clamp(1, 8) - 1).copied().unwrap_or('█')
        }
    };
    let bars: String = shown.iter().map(bar).collect();
    format!("{bars:>width$}")
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use ratatui::{Terminal, backend::TestBackend};
    use tunica_api::view::Counter;

    use super::{
        super::model::tests::{counters, reading},
        *,
    };

    /// Name of the file, what is shown, how, and on how many columns and lines.
    type Recorded = (&'static str, Model, Controls, Look, (u16, u16));

    fn look() -> Look {
        Look { is_monochrome: true, interval: "1".to_owned(), is_live: true }
    }

    fn drawn(model: &Model, controls: &Controls, look: &Look, (columns, lines): (u16, u16)) -> Buffer {
        let mut terminal = Terminal::new(TestBackend::new(columns, lines)).unwrap();
        terminal.draw(|frame| draw(frame, model, controls, look)).unwrap().buffer.clone()
    }

    /// A flood that rises and falls, with a restart of the daemon in the middle.
    fn flood(status: &str) -> Model {
        let mut model = Model::default();
        let mut total = [1_000, 0];
        for second in 0..40_u64 {
            let level = (second * 37 % 23) * 1_000 * u64::from(second > 5);
            total = [total[0] + 3 + second % 2, total[1] + level];
            let mut counters = counters(1_000 * (second + 1), total);
            counters.started.0 += u64::from(second > 20);
            for (verdict, packets) in [("neighbour_discovery", 12), ("xmas", 0), ("later_fragment", 7)] {
                let (verdict, action) = (verdict.to_owned(), "pass".to_owned());
                counters.rows.push(Counter { verdict, action, packets, bytes: packets * 86 });
            }
            model.observe(reading(status, counters));
        }
        model
    }

    fn many(mut model: Model) -> Model {
        let latest = model.latest.as_mut().unwrap();
        latest.status.warnings =
            ["tor.user is not set: \u{1b}[31mthe addresses of tor are not known", "another"]
                .map(str::to_owned)
                .to_vec();
        let source = latest.sources.sources[1].clone();
        latest.sources.sources.extend(vec![source; 40]);
        let cookies = Defence { name: "cookies".to_owned(), ..latest.status.defences[0].clone() };
        latest.status.defences.push(cookies);
        let bans = model.bans.as_mut().unwrap();
        for id in 100..1_200 {
            let ban = bans.bans[0].clone();
            bans.bans.push(Ban {
                id,
                since: ban.since.after(std::time::Duration::from_secs(id.into())),
                ..ban
            });
        }
        model
    }

    /// Each frame looks as its file under `tests/top` says.
    #[test]
    fn frames_look_as_recorded() {
        let usual = Controls::default();
        let zoomed = |panel| Controls { panel, is_zoomed: true, ..Controls::default() };
        let mut first = Model::default();
        first.observe(reading("status-enforcing", counters(1_000, [5, 0])));
        let mut silent = flood("status-enforcing");
        silent.miss("tunicad is not running or listens elsewhere (/run/tunica/tunicad.sock)".to_owned());
        let rows: Vec<Recorded> = vec![
            ("flood", flood("status-enforcing"), usual.clone(), look(), (80, 24)),
            ("first-reading", first, usual.clone(), look(), (80, 24)),
            ("full", many(flood("status-partly-attached")), usual.clone(), look(), (80, 24)),
            ("bypassed", flood("status-bypassed"), usual.clone(), look(), (80, 24)),
            ("stale", flood("status-stale"), usual.clone(), look(), (80, 24)),
            ("passing", flood("status-passing"), usual.clone(), look(), (80, 24)),
            ("passing-smallest", flood("status-passing"), usual.clone(), look(), (60, 16)),
            ("undone", flood("status-undone"), usual.clone(), look(), (80, 24)),
            ("no-answer", silent, usual.clone(), look(), (80, 24)),
            (
                "paused",
                flood("status-observing-generic"),
                Controls { is_paused: true, panel: Panel::Host, ..usual.clone() },
                look(),
                (80, 24),
            ),
            (
                "help",
                flood("status-enforcing"),
                Controls { is_helping: true, ..usual.clone() },
                look(),
                (80, 24),
            ),
            ("host", many(flood("status-many-interfaces")), zoomed(Panel::Host), look(), (80, 40)),
            (
                "bans-ending",
                many(flood("status-enforcing")),
                Controls { ban_order: BanOrder::Ending, scroll: 1_099, ..zoomed(Panel::Bans) },
                look(),
                (80, 24),
            ),
            ("sources", many(flood("status-enforcing")), zoomed(Panel::Sources), look(), (80, 24)),
            ("wide", many(flood("status-enforcing")), usual.clone(), look(), (120, 40)),
            ("smallest", flood("status-enforcing"), usual.clone(), look(), (60, 16)),
            ("too-small", flood("status-enforcing"), usual.clone(), look(), (40, 12)),
            ("once", flood("status-enforcing"), usual.clone(), Look { is_live: false, ..look() }, (80, 24)),
        ];
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/top");
        let mut faults = Vec::new();
        for (name, model, controls, look, size) in rows {
            let monochrome = drawn(&model, &controls, &look, size);
            let shown = text(&monochrome);
            if fs::read_to_string(directory.join(format!("{name}.txt"))).unwrap_or_default() != shown {
                faults.push(format!("{name} looks like\n{shown}"));
            }
            assert!(shown.lines().all(|line| !line.contains('\u{1b}')), "{name}: {shown}");
            // Without colour no cell has one, and colour changes no text.
            let is_plain = |cell: &ratatui::buffer::Cell| (cell.fg, cell.bg) == (Color::Reset, Color::Reset);
            assert!(monochrome.content().iter().all(is_plain), "{name} has colours");
            let coloured = drawn(&model, &controls, &Look { is_monochrome: false, ..look }, size);
            assert_eq!(text(&coloured), shown, "{name}");
            if name != "too-small" && name != "help" {
                assert!(!coloured.content().iter().all(is_plain), "{name} has no colours");
            }
        }
        assert!(faults.is_empty(), "{}", faults.join("\n"));
    }

    #[test]
    fn spans_take_at_most_five_columns() {
        for (seconds, text) in [
            (0, "0 s"),
            (119, "119 s"),
            (120, "2 m"),
            (7_199, "119 m"),
            (7_200, "2 h"),
            (172_799, "47 h"),
            (172_800, "2 d"),
        ] {
            assert_eq!(span(seconds), text);
            assert!(text.len() <= 5);
        }
    }

    #[test]
    fn counts_fit() {
        for (number, text) in [
            (99_999, "99 999"),
            (100_000, "100 k"),
            (999_999, "999 k"),
            (1_000_000, "1 M"),
            (u64::MAX, ">999 G"),
        ] {
            assert_eq!(brief(number), text);
            assert!(text.len() <= 6);
        }
    }

    #[test]
    fn rates_read_well() {
        for (rate, text) in [
            (0.0, "0"),
            (0.01, "<0.1"),
            (0.05, "0.1"),
            (9.94, "9.9"),
            (9.96, "10"),
            (1_234.4, "1 234"),
            (123_456_789.0, "123.456 M"),
            (f64::MAX, "18446.744 P"),
        ] {
            assert_eq!(pace(rate), text);
        }
    }

    #[test]
    fn trends_are_drawn_by_their_highest() {
        let rate = |packets: f64| Some(super::super::model::Rate { packets, bytes: 0.0 });
        let counter = counters(0, [0, 0]).rows.remove(0);
        for (rates, expected) in [
            (vec![], "      "),
            (vec![rate(0.0), None], "    . "),
            (vec![rate(1.0), rate(8.0), rate(4.0), rate(0.001)], "  ▁█▄▁"),
            (vec![rate(1_000.0); 3], "   ███"),
            (vec![rate(9.0), rate(1.0), rate(1.0), rate(1.0), rate(1.0), rate(1.0), rate(1.0)], "██████"),
        ] {
            let track = Track { counter: counter.clone(), rates: rates.into() };
            assert_eq!(trend(&track, 6), expected);
        }
    }
}
