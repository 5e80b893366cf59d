//! What keys change: which panel is looked at, and how. Pure.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::model::Model;

/// A part of the screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Panel {
    /// State, interfaces, heartbeat, warnings; in full what `tunica status` prints.
    Host,
    /// Counters and their rates.
    Verdicts,
    /// Sources in sampled events.
    Sources,
    /// Bans in force.
    Bans,
    /// Every defence.
    Defences,
}

/// In which order bans stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BanOrder {
    /// The latest first.
    Newest,
    /// The next to end first.
    Ending,
}

/// What the operator chose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Controls {
    /// The panel that keys act on.
    pub(super) panel: Panel,
    /// Whether it has the screen to itself.
    pub(super) is_zoomed: bool,
    /// Rows of it that are scrolled past.
    pub(super) scroll: usize,
    /// In which order bans stand.
    pub(super) ban_order: BanOrder,
    /// Whether nothing is asked.
    pub(super) is_paused: bool,
    /// Whether the help is shown.
    pub(super) is_helping: bool,
}

/// What follows from a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pressed {
    /// The screen has to be drawn anew.
    Redraw,
    /// Nothing.
    Nothing,
    /// The end.
    Quit,
}

impl Panel {
    const ALL: [Self; 5] = [Self::Host, Self::Verdicts, Self::Sources, Self::Bans, Self::Defences];

    fn moved(self, steps: usize) -> Self {
        let here = Self::ALL.iter().position(|panel| *panel == self).unwrap_or(0);
        Self::ALL.iter().copied().cycle().nth(here + steps).unwrap_or(self)
    }
}

impl Default for Controls {
    fn default() -> Self {
        Self {
            panel: Panel::Verdicts,
            is_zoomed: false,
            scroll: 0,
            ban_order: BanOrder::Newest,
            is_paused: false,
            is_helping: false,
        }
    }
}

impl Controls {
    /// Follows a key; `rows` says how many rows a panel has.
    pub(super) fn press(&mut self, key: KeyEvent, rows: impl Fn(Panel) -> usize) -> Pressed {
        if key.kind == KeyEventKind::Release {
            return Pressed::Nothing;
        }
        let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
        // In raw mode the terminal sends Ctrl-C as a key.
        if is_control && key.code == KeyCode::Char('c') {
            return Pressed::Quit;
        }
        if self.is_helping {
            self.is_helping = false;
            return if key.code == KeyCode::Char('q') { Pressed::Quit } else { Pressed::Redraw };
        }
        let most = rows(self.panel).saturating_sub(1);
        if key.code == KeyCode::Char('q') {
            return Pressed::Quit;
        } else if key.code == KeyCode::Char('?') {
            self.is_helping = true;
        } else if key.code == KeyCode::Char('p') {
            self.is_paused = !self.is_paused;
        } else if key.code == KeyCode::Char('s') {
            self.ban_order = match self.ban_order {
                BanOrder::Newest => BanOrder::Ending,
                BanOrder::Ending => BanOrder::Newest,
            };
        } else if matches!(key.code, KeyCode::Tab | KeyCode::Right) {
            (self.panel, self.scroll) = (self.panel.moved(1), 0);
        } else if matches!(key.code, KeyCode::BackTab | KeyCode::Left) {
            (self.panel, self.scroll) = (self.panel.moved(Panel::ALL.len() - 1), 0);
        } else if key.code == KeyCode::Enter {
            (self.is_zoomed, self.scroll) = (!self.is_zoomed, 0);
        } else if key.code == KeyCode::Esc {
            (self.is_zoomed, self.scroll) = (false, 0);
        } else if key.code == KeyCode::Up {
            self.scroll = self.scroll.min(most).saturating_sub(1);
        } else if key.code == KeyCode::Down {
            self.scroll = self.scroll.saturating_add(1).min(most);
        } else if key.code == KeyCode::PageUp {
            self.scroll = self.scroll.min(most).saturating_sub(10);
        } else if key.code == KeyCode::PageDown {
            self.scroll = self.scroll.saturating_add(10).min(most);
        } else if key.code == KeyCode::Home {
            self.scroll = 0;
        } else if key.code == KeyCode::End {
            self.scroll = most;
        } else {
            return Pressed::Nothing;
        }
        Pressed::Redraw
    }
}

/// How many rows a panel has.
pub(super) fn rows(model: &Model, panel: Panel) -> usize {
    let Some(latest) = &model.latest else { return 0 };
    match panel {
        Panel::Host => crate::render::status::status(&latest.status).lines().count(),
        Panel::Verdicts => model.busiest(0).len(),
        Panel::Sources => latest.sources.sources.len(),
        Panel::Bans => model.bans.as_ref().map_or(0, |bans| bans.bans.len()),
        Panel::Defences => latest.status.defences.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn press(controls: &mut Controls, code: KeyCode) -> Pressed {
        controls.press(KeyEvent::new(code, KeyModifiers::NONE), |_| 25)
    }

    #[test]
    fn keys_do_what_the_help_says() {
        let mut controls = Controls::default();
        for (code, expected) in [
            (KeyCode::Tab, Controls { panel: Panel::Sources, ..Controls::default() }),
            (KeyCode::BackTab, Controls::default()),
            (KeyCode::Left, Controls { panel: Panel::Host, ..Controls::default() }),
            (KeyCode::Left, Controls { panel: Panel::Defences, ..Controls::default() }),
            (KeyCode::Right, Controls { panel: Panel::Host, ..Controls::default() }),
            (KeyCode::Right, Controls::default()),
            (KeyCode::Enter, Controls { is_zoomed: true, ..Controls::default() }),
            (KeyCode::Down, Controls { is_zoomed: true, scroll: 1, ..Controls::default() }),
            (KeyCode::End, Controls { is_zoomed: true, scroll: 24, ..Controls::default() }),
            (KeyCode::PageDown, Controls { is_zoomed: true, scroll: 24, ..Controls::default() }),
            (KeyCode::PageUp, Controls { is_zoomed: true, scroll: 14, ..Controls::default() }),
            (KeyCode::Esc, Controls::default()),
            (KeyCode::Up, Controls::default()),
            (KeyCode::Char('s'), Controls { ban_order: BanOrder::Ending, ..Controls::default() }),
            (KeyCode::Char('s'), Controls::default()),
            (KeyCode::Char('p'), Controls { is_paused: true, ..Controls::default() }),
            (KeyCode::Char('p'), Controls::default()),
            (KeyCode::Char('?'), Controls { is_helping: true, ..Controls::default() }),
            (KeyCode::Char('p'), Controls::default()),
        ] {
            assert_eq!(press(&mut controls, code), Pressed::Redraw);
            assert_eq!(controls, expected, "{code:?}");
        }
        assert_eq!(press(&mut controls, KeyCode::Char('x')), Pressed::Nothing);
        assert_eq!(press(&mut controls, KeyCode::Char('q')), Pressed::Quit);
        let control_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(controls.press(control_c, |_| 0), Pressed::Quit);
        let released = KeyEvent { kind: KeyEventKind::Release, ..control_c };
        assert_eq!(controls.press(released, |_| 0), Pressed::Nothing);
    }

    #[test]
    fn scrolling_ends_where_the_rows_end() {
        let mut controls = Controls { scroll: 24, ..Controls::default() };
        // The panel has become shorter meanwhile.
        controls.press(KeyEvent::new(KeyCode::Up, KeyModifiers::NONE), |_| 3);
        assert_eq!(controls.scroll, 1);
        controls.press(KeyEvent::new(KeyCode::Down, KeyModifiers::NONE), |_| 0);
        assert_eq!(controls.scroll, 0);
    }
}
