//! Two nodes in network namespaces of their own, on small disks of their own, with an
//! application at work; and what brings them together again after a fault.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use fs_driver::control::{self, Request};
use harness::app::{Application, Running};
use harness::{Dice, Node, Options, Pair, Role, wait_until};

use crate::witness::Witness;

/// How long a state may take to come about on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes of each node's disk.
const DISK: u64 = 192 << 20;

/// What takes the space on a full disk.
const FILLER: &str = "filler";

/// Writers of the application.
const WRITERS: u64 = 3;

/// Two nodes and the application.
pub(crate) struct Stage {
    // Dropped first: it asks the nodes.
    pub(crate) witness: Witness,
    pub(crate) pair: Pair,
    pub(crate) dice: Dice,
    /// The primary, 0 for A.
    pub(crate) primary: usize,
    application: Option<Application>,
    running: Option<Running>,
    /// Files written beside the application, which must be there for ever.
    pub(crate) marks: Vec<String>,
    /// Times a copy became primary by force, because both nodes were secondary.
    pub(crate) forced: u64,
}

impl Stage {
    /// A pair that is up to date, and the application at rest.
    pub(crate) fn new(seed: u64) -> Stage {
        let pair = Pair::with(Options {
            apart: true,
            small_disk: Some(DISK),
            both_small: true,
            // As an operator with a witness has it: nobody goes on by himself.
            on_peer_loss: "hold",
            deadlines: [1200, 10_000, 10_000],
            more: ["--bridge-ms", "400", "--checkpoint-s", "2"]
                .map(String::from)
                .into(),
            ..Options::default()
        });
        let witness = Witness::of([pair.a.layout(), pair.b.layout()]);
        witness.ask(0);
        Stage {
            witness,
            pair,
            dice: Dice::new(seed),
            primary: 0,
            application: Some(Application::new(seed, WRITERS)),
            running: None,
            marks: Vec::new(),
            forced: 0,
        }
    }

    pub(crate) fn secondary(&self) -> usize {
        1 - self.primary
    }

    pub(crate) fn node(&self, number: usize) -> &Node {
        match number {
            0 => &self.pair.a,
            _ => &self.pair.b,
        }
    }

    fn node_mut(&mut self, number: usize) -> &mut Node {
        match number {
            0 => &mut self.pair.a,
            _ => &mut self.pair.b,
        }
    }

    // --- the application ---

    /// Sets the application to work on the primary.
    pub(crate) fn work(&mut self) {
        let mut application = self.application.take().expect("it is at rest");
        if application.is_in_doubt() {
            // As an application does after a crash, it looks what has become of its last call.
            let wrong = application.check(&self.node(self.primary).mount());
            assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        }
        self.running = Some(application.start(&self.node(self.primary).mount()));
    }

    pub(crate) fn running(&self) -> &Running {
        self.running.as_ref().expect("it is at work")
    }

    /// Lets it work.
    pub(crate) fn expect(&self, more: u64, when: &str) -> Duration {
        self.running().expect(more, when)
    }

    /// Lets it finish what it does; it sees no error.
    pub(crate) fn rest(&mut self) {
        if let Some(running) = self.running.take() {
            self.application = Some(running.stop());
        }
    }

    pub(crate) fn application(&self) -> &Application {
        self.application.as_ref().expect("it is at rest")
    }

    /// Writes a file beside the application and remembers it.
    pub(crate) fn mark(&mut self, node: usize) {
        let name = format!("mark-{}", self.marks.len());
        std::fs::write(self.node(node).mount().join(&name), &name).unwrap();
        self.marks.push(name);
    }

    // --- nodes ---

    /// Kills a driver where it is. If it is the primary's, the application sees it.
    pub(crate) fn kill(&mut self, number: usize) {
        if number == self.primary {
            self.witness.ask_nobody();
            if let Some(running) = &self.running {
                running.mount_dies();
            }
        }
        self.node_mut(number).kill();
        if number == self.primary {
            self.rest();
        }
    }

    /// Ends a driver in order, the primary's under load.
    pub(crate) fn stop(&mut self, number: usize) {
        if number == self.primary {
            self.witness.ask_nobody();
            if let Some(running) = &self.running {
                running.mount_dies();
            }
        }
        let ended = self.node_mut(number).stop().unwrap();
        assert!(ended.success(), "{ended}");
        if number == self.primary {
            self.rest();
        }
    }

    pub(crate) fn start_secondary(&mut self, number: usize) {
        self.node_mut(number).start(Role::Secondary).unwrap();
    }

    /// Makes a node primary, running or not, without force.
    pub(crate) fn try_primary(&mut self, number: usize) -> Result<()> {
        let node = match number {
            0 => &mut self.pair.a,
            _ => &mut self.pair.b,
        };
        self.witness
            .let_be_primary(number, || match node.is_running() {
                true if node.status()?["role"] == "primary" => Ok(()),
                true => node.promote(false),
                false => node.start(Role::Primary),
            })?;
        self.primary = number;
        Ok(())
    }

    /// Makes one of the nodes primary, the first that is good for it. Both are secondary
    /// where a change of roles broke off: then the first, by force, as an operator does
    /// who knows that neither went on.
    pub(crate) fn find_primary(&mut self, order: [usize; 2]) {
        let mut refusals = Vec::new();
        for number in order {
            match self.try_primary(number) {
                Ok(()) => return,
                Err(e) => {
                    let why = format!("{e:#}");
                    let why = why.lines().last().unwrap_or_default().to_owned();
                    refusals.push(format!("{}: {why}", self.node(number).name()));
                }
            }
        }
        println!("     both refuse: {}", refusals.join("; "));
        self.forced += 1;
        self.force_primary(order[0]);
    }

    /// A copy that lacks what was acknowledged refuses to be primary.
    pub(crate) fn refuses(&mut self, number: usize) {
        let node = self.node_mut(number);
        let done = match node.is_running() {
            true => node.promote(false),
            false => node.start(Role::Primary),
        };
        assert!(
            done.is_err(),
            "{} became primary with a stale copy",
            node.name()
        );
    }

    fn force_primary(&mut self, number: usize) {
        self.witness.ask(number);
        let node = self.node_mut(number);
        match node.is_running() {
            true => node.promote(true).unwrap(),
            false => node.start(Role::ForcedPrimary).unwrap(),
        }
        self.primary = number;
    }

    /// Stops a driver in the middle of everything, without a word.
    pub(crate) fn freeze(&self, number: usize) {
        if number == self.primary {
            self.witness.ask_nobody();
        }
        self.node(number).freeze();
    }

    pub(crate) fn thaw(&self, number: usize) {
        self.node(number).thaw();
    }

    /// Asks a driver something while something else happens to it.
    pub(crate) fn meanwhile(&self, number: usize, request: Request) -> impl FnOnce() + use<> {
        let layout = self.node(number).layout();
        let asking = std::thread::spawn(move || drop(control::ask(&layout, request)));
        move || asking.join().unwrap()
    }

    /// Waits for the relation that a node has to its peer.
    pub(crate) fn wait_link(&self, number: usize, wanted: &[&str]) {
        let node = self.node(number);
        let there = || {
            node.status()
                .is_ok_and(|s| s["link"].as_str().is_some_and(|l| wanted.contains(&l)))
        };
        assert!(
            wait_until(PATIENCE, there),
            "{} is not {wanted:?}: {:?}\n{}",
            node.name(),
            node.status(),
            node.last_words()
        );
    }

    /// A moment, in milliseconds, that the dice tell.
    pub(crate) fn pause(&mut self, from: u64, to: u64) {
        let ms = from + self.dice.below(to - from);
        std::thread::sleep(Duration::from_millis(ms));
    }

    // --- disks ---

    fn filler(&self, number: usize) -> PathBuf {
        self.node(number).directory().join(FILLER)
    }

    /// Takes all the space that is left on a node's disk.
    pub(crate) fn fill(&self, number: usize) -> Result<()> {
        let file = File::create(self.filler(number))?;
        let mut size = 0;
        // In ever smaller pieces, until not even a block is left.
        let mut piece: i64 = 64 << 20;
        while piece >= 4096 {
            // SAFETY: a system call on an open descriptor, without memory.
            match unsafe { libc::fallocate(file.as_raw_fd(), 0, size, piece) } {
                0 => size += piece,
                _ => piece /= 2,
            }
        }
        Ok(())
    }

    /// Gives it back.
    pub(crate) fn free(&self, number: usize) {
        let _ = std::fs::remove_file(self.filler(number));
    }

    // --- afterwards ---

    /// Mends everything, lets the nodes become equal, and looks whether they are, and
    /// whether all is there that was acknowledged. Returns what is wrong.
    pub(crate) fn bring_together(&mut self) -> Vec<String> {
        self.pair.network().heal().unwrap();
        for number in [0, 1] {
            self.thaw(number);
            self.free(number);
        }
        self.witness.be_silent(false);
        self.witness.ask(self.primary);
        let other = self.secondary();
        if !self.node(other).is_running() {
            self.start_secondary(other);
        }
        self.rest();
        self.pair.wait_paired();
        let mut wrong = self.pair.compare();
        let stores = [0, 1].map(|number| self.node(number).data());
        for number in [0, 1] {
            let aside = self.node(number).layout().aside();
            let left = std::fs::read_dir(&aside).unwrap().count();
            if left > 0 {
                wrong.push(format!("{left} objects are left in {}", aside.display()));
            }
        }
        for store in stores {
            let application = self.application.as_mut().expect("it is at rest");
            wrong.extend(application.check(&store));
            for name in &self.marks {
                let found = harness::read_quietly(&store.join(name));
                if !found.is_ok_and(|text| text == name.as_bytes()) {
                    wrong.push(format!("{} in {} is lost", name, store.display()));
                }
            }
        }
        wrong
    }

    /// Waits until an application at work is answered again, since a moment.
    pub(crate) fn goes_on_after(&self, since: Instant) -> Duration {
        // What was on its way is answered by whatever happens; after as many more as
        // there are writers, each was answered anew.
        self.expect(2 * WRITERS, "the application goes on");
        since.elapsed()
    }
}
