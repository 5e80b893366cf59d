//! The terminal while `top` has it: taken at the start, given back however `top` ends.

use std::{
    io::{self, Stdout},
    panic,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use ratatui::{
    Terminal,
    backend::CrosstermBackend,
    crossterm::{
        cursor, execute,
        terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode},
    },
};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM},
    flag, low_level,
};

/// Raw mode and the alternate screen, until dropped.
pub(super) struct Screen {
    /// Where frames are drawn.
    pub(super) terminal: Terminal<CrosstermBackend<Stdout>>,
}

impl Screen {
    /// Takes the terminal.
    ///
    /// # Errors
    /// What the terminal said; it is then as it was.
    pub(super) fn open() -> io::Result<Self> {
        // Release builds abort on a panic, so nothing is dropped then; the hook runs before that.
        let told_before = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            give_back();
            told_before(panic);
        }));
        let taken = enable_raw_mode()
            .and_then(|()| execute!(io::stdout(), EnterAlternateScreen))
            .and_then(|()| Terminal::new(CrosstermBackend::new(io::stdout())));
        match taken {
            Ok(terminal) => Ok(Self { terminal }),
            Err(error) => {
                give_back();
                Err(error)
            }
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

/// Makes the terminal what it was. Where it is gone there is nobody left to tell.
fn give_back() {
    drop(execute!(io::stdout(), LeaveAlternateScreen, cursor::Show));
    drop(disable_raw_mode());
}

/// Signals that ask for the end; they wait until the terminal is given back.
pub(super) struct Signals(Arc<AtomicUsize>);

impl Signals {
    /// Takes the signals.
    ///
    /// # Errors
    /// If the kernel refuses a handler.
    pub(super) fn take() -> io::Result<Self> {
        let arrived = Arc::new(AtomicUsize::new(0));
        for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTERM] {
            // None of these numbers is negative.
            let number = usize::try_from(signal).unwrap_or_default();
            flag::register_usize(signal, Arc::clone(&arrived), number)?;
        }
        Ok(Self(arrived))
    }

    /// The last signal that arrived.
    pub(super) fn arrived(&self) -> Option<i32> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            signal => i32::try_from(signal).ok(),
        }
    }
}

/// Ends this process as `signal` would have without a handler, so that the shell sees what ended it.
///
/// # Errors
/// If the signal cannot be sent.
pub(super) fn end_by(signal: i32) -> io::Result<()> {
    low_level::emulate_default_handler(signal)
}
