//! How far a run is, on standard error.

use std::io::{IsTerminal, Write};
use std::time::Instant;

/// Tells how far it is: a line that is written over on a terminal, a line for each round
/// otherwise.
#[derive(Debug)]
pub(super) struct Progress {
    steps: usize,
    rounds: usize,
    done: usize,
    begun: Instant,
    terminal: bool,
}

impl Progress {
    /// So many measurements in each of so many rounds, and a warm-up.
    pub(super) fn new(steps: usize, rounds: usize) -> Progress {
        Progress {
            steps,
            rounds,
            done: 0,
            begun: Instant::now(),
            terminal: std::io::stderr().is_terminal(),
        }
    }

    /// A measurement begins.
    pub(super) fn step(&mut self, round: usize, workload: &str, system: &str) {
        let first = self.done.is_multiple_of(self.steps.max(1));
        if self.terminal || first {
            let what = match round {
                0 => "warm-up".to_owned(),
                n => format!("round {n} of {}", self.rounds),
            };
            let left = self.left();
            if self.terminal {
                let line: String = format!("{what}{left}: {workload}, {system}")
                    .chars()
                    .take(100)
                    .collect();
                eprint!("\r\x1b[2K{line}");
                let _ = std::io::stderr().flush();
            } else {
                eprintln!("{what}{left}");
            }
        }
        self.done += 1;
    }

    /// The time left, once a round tells how long one takes.
    fn left(&self) -> String {
        if self.done <= self.steps {
            return String::new();
        }
        let all = self.steps * (self.rounds + 1);
        let each = self.begun.elapsed().as_secs_f64() / self.done as f64;
        let seconds = (each * (all - self.done) as f64) as u64;
        format!(", {}:{:02} left", seconds / 60, seconds % 60)
    }

    /// Nothing more is measured.
    pub(super) fn end(&self) {
        if self.terminal {
            eprint!("\r\x1b[2K");
        }
    }
}
