//! What a witness does, done by the test: of two nodes that cannot see each other it
//! lets one go on.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Result, ensure};
use fs_driver::control::{self, Request};
use fs_driver::store::Layout;

/// How often the primary is asked.
const EVERY: Duration = Duration::from_millis(5);

#[derive(Default)]
struct State {
    /// The node that may hold what the other one lacks.
    ahead: Option<usize>,
    /// The primary, as far as it can be asked.
    asked: Option<usize>,
    /// The test decides otherwise.
    silent: bool,
    /// How often a node was let go on.
    granted: u64,
    over: bool,
}

/// The witness; it ends when dropped.
pub(crate) struct Witness {
    state: Arc<Mutex<State>>,
    thread: Option<JoinHandle<()>>,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Witness {
    pub(crate) fn of(layouts: [Layout; 2]) -> Witness {
        let state = Arc::<Mutex<State>>::default();
        let thread = std::thread::spawn({
            let state = state.clone();
            move || {
                while !lock(&state).over {
                    look(&mut lock(&state), &layouts);
                    std::thread::sleep(EVERY);
                }
            }
        });
        Witness {
            state,
            thread: Some(thread),
        }
    }

    /// Whether this node may become primary: not if the other one went on without it.
    pub(crate) fn is_allowed(&self, node: usize) -> bool {
        lock(&self.state).ahead != Some(1 - node)
    }

    /// Makes this node the one that may go on while `work` makes it primary; if that
    /// fails, all is as before.
    pub(crate) fn let_be_primary(
        &self,
        node: usize,
        work: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let before = {
            let mut state = lock(&self.state);
            ensure!(state.ahead != Some(1 - node), "the other node went on");
            (state.ahead.replace(node), state.asked.take())
        };
        let done = work();
        let mut state = lock(&self.state);
        match done {
            Ok(()) => state.asked = Some(node),
            Err(_) => (state.ahead, state.asked) = before,
        }
        done
    }

    /// No node can be asked: what comes next kills or freezes one.
    pub(crate) fn ask_nobody(&self) {
        lock(&self.state).asked = None;
    }

    /// This node is primary, and can be asked.
    pub(crate) fn ask(&self, node: usize) {
        lock(&self.state).asked = Some(node);
    }

    /// Lets nobody go on, whoever asks.
    pub(crate) fn be_silent(&self, silent: bool) {
        lock(&self.state).silent = silent;
    }

    /// How often a primary was let go on without its peer.
    pub(crate) fn granted(&self) -> u64 {
        lock(&self.state).granted
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        lock(&self.state).over = true;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn look(state: &mut State, layouts: &[Layout; 2]) {
    let Some(node) = state.asked else { return };
    let Ok(Some(status)) = control::ask(&layouts[node], Request::Status) else {
        return;
    };
    if status["role"] != "primary" {
        return;
    }
    if status["link"] == "paired" {
        // The other one has everything.
        state.ahead = None;
    } else if status["question"].is_string() && !state.silent && state.ahead != Some(1 - node) {
        state.ahead = Some(node);
        // It may have found its peer meanwhile.
        if control::ask(&layouts[node], Request::GoAlone).is_ok() {
            state.granted += 1;
        }
    }
}
