//! What is told on stderr while the demonstration runs.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Between two updates of the line on a terminal, and between two lines elsewhere.
const ON_TERMINAL: Duration = Duration::from_millis(100);
const ELSEWHERE: Duration = Duration::from_secs(5);

/// A line that is rewritten in place on a terminal.
#[derive(Debug)]
pub(crate) struct Progress {
    began: Instant,
    shown: Instant,
    terminal: bool,
    /// An unfinished line is on the terminal.
    open: bool,
}

impl Progress {
    pub(crate) fn new() -> Progress {
        let now = Instant::now();
        Progress {
            began: now,
            shown: now,
            terminal: std::io::stderr().is_terminal(),
            open: false,
        }
    }

    /// Since the beginning.
    pub(crate) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Tells what is done next, on a line that stays.
    pub(crate) fn say(&mut self, what: &str) {
        let seconds = self.elapsed().as_secs_f64();
        self.write(&format!("{}{seconds:6.1}s  {what}\n", self.start()));
        self.open = false;
        self.shown = Instant::now();
    }

    /// How far it is; told now and then.
    pub(crate) fn tick(&mut self, what: impl FnOnce() -> String) {
        let every = match self.terminal {
            true => ON_TERMINAL,
            false => ELSEWHERE,
        };
        if self.shown.elapsed() < every {
            return;
        }
        self.shown = Instant::now();
        let seconds = self.elapsed().as_secs_f64();
        let end = if self.terminal { "" } else { "\n" };
        let line = format!("{}{seconds:6.1}s    {}{end}", self.start(), what());
        self.write(&line);
        self.open = self.terminal;
    }

    fn start(&self) -> &'static str {
        if self.open { "\r\x1b[K" } else { "" }
    }

    fn write(&self, text: &str) {
        let mut err = std::io::stderr().lock();
        // Nobody reads it: no reason to stop.
        let _ = err.write_all(text.as_bytes()).and_then(|()| err.flush());
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.open {
            self.write("\n");
        }
    }
}
