//! Power cuts for real: a node in a virtual machine that is killed with its page cache, as
//! secondary, as primary, and both nodes at once; with an application at work. After each,
//! nothing acknowledged is missing on the node that kept its power, nothing fsynced is
//! missing on one that did not, and the copies become equal.
//!
//! `TWINFOLD_POWER_ROUNDS` says how many rounds of each kind, one if not given.

// A test's helpers fail the test.
#![allow(clippy::unwrap_used)]

mod application;
mod machine;

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use fs_driver::control::Request;
use harness::guest::Boot;
use harness::{Dice, Role, Scope, Scratch, Tree};

use application::Application;
use machine::{Machine, wait_equal, wait_paired};

/// One test after the other: an emulated machine needs a processor for itself.
static ONE: Mutex<()> = Mutex::new(());

/// Steps before a power cut.
const BEFORE: u64 = 240;

/// Milliseconds after them within which the power is cut.
const SOON: u64 = 1500;

/// Steps that show that the application goes on.
const MORE: u64 = 60;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

fn rounds() -> u64 {
    number("TWINFOLD_POWER_ROUNDS").unwrap_or(1)
}

/// What all rounds of a kind add up to.
#[derive(Default)]
struct Sum {
    acknowledged: u64,
    synced: u64,
}

impl Sum {
    fn add(&mut self, application: &Application) {
        self.acknowledged += application.acknowledged();
        self.synced += application.synced();
    }

    fn tell(&self, rounds: u64, kind: &str, since: Instant) {
        println!(
            "{rounds} power cuts of {kind} in {:.0} s: {} steps acknowledged before them, {} of \
             them fsynced; lost: 0, different: 0",
            since.elapsed().as_secs_f64(),
            self.acknowledged,
            self.synced
        );
    }
}

/// Fails the test unless both stores are the same and hold what `check` looks for.
fn assert_equal(a: &Machine, b: &Machine, check: impl Fn(&std::path::Path) -> Vec<String>) {
    let look = |machine: &Machine| {
        let seen = machine.with_store(|store| (check(store), Tree::read(store, Scope::Store)));
        let (wrong, tree) = seen.unwrap();
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        let mut tree = tree.unwrap();
        tree.forget_reads_of_directories();
        tree
    };
    let found = look(a).changes(&look(b));
    assert!(found.is_empty(), "the copies differ:\n{}", found.join("\n"));
}

/// A node that keeps its power, and one that does not.
struct Uneven {
    host: Machine,
    guest: Machine,
    boot: Boot,
    dice: Dice,
    _scratch: Scratch,
}

impl Uneven {
    fn new() -> Uneven {
        let scratch = Scratch::new();
        let boot = Boot::prepare(scratch.path()).unwrap();
        let mut guest = Machine::guest(scratch.path(), "guest", &boot);
        let mut host = Machine::host(scratch.path());
        guest.as_guest().wait_booted().unwrap();
        host.init(&guest, "--good-copy");
        guest.init(&host, "--from-peer");
        host.start(Role::Primary);
        guest.start(Role::Secondary);
        wait_equal(&host, &guest);
        Uneven {
            host,
            guest,
            boot,
            dice: Dice::new(std::time::UNIX_EPOCH.elapsed().unwrap().as_secs()),
            _scratch: scratch,
        }
    }

    fn cut_power_soon(&mut self) {
        let ms = self.dice.below(SOON);
        std::thread::sleep(Duration::from_millis(ms));
        self.guest.as_guest().cut_power();
    }

    /// The guest returns while the last of the applications works on the host; both copies
    /// become equal, and hold what each application was told.
    fn comes_back(&mut self, applications: &mut [Application]) {
        self.guest.as_guest().power_on(&self.boot);
        self.guest.as_guest().wait_booted().unwrap();
        self.guest.start(Role::Secondary);
        let last = applications.last_mut().unwrap();
        last.expect(MORE, "while the guest returns");
        wait_paired(&self.host, &self.guest);
        last.expect(MORE, "with the guest again");
        last.end(&self.host);
        wait_equal(&self.host, &self.guest);
        self.guest.stop();
        assert_equal(&self.host, &self.guest, |store| {
            applications.iter().flat_map(|a| a.missing(store)).collect()
        });
        self.guest.mount();
        self.guest.start(Role::Secondary);
        wait_equal(&self.host, &self.guest);
    }

    /// The secondary loses its power.
    fn as_secondary(&mut self, round: u64, sum: &mut Sum) {
        let application = Application::start(&self.host, &format!("s-{round}"));
        application.expect(BEFORE, "before the cut");
        self.cut_power_soon();
        sum.add(&application);
        self.host.wait("question", |s| s["question"].is_string());
        self.host.ask(Request::GoAlone).unwrap();
        application.expect(MORE, "without the guest");
        self.comes_back(&mut [application]);
    }

    /// The primary loses its power, with the application.
    fn as_primary(&mut self, round: u64, sum: &mut Sum) {
        self.host.ask(Request::Demote { force: false }).unwrap();
        self.guest.ask(Request::Promote { force: false }).unwrap();
        wait_equal(&self.guest, &self.host);
        let mut application = Application::start(&self.guest, &format!("p-{round}"));
        application.expect(BEFORE, "before the cut");
        self.cut_power_soon();
        application.is_gone();
        sum.add(&application);
        self.host.wait("loss", |s| s["link"] == "waiting");
        self.host.ask(Request::Promote { force: false }).unwrap();
        let wrong = self.host.with_store(|store| application.missing(store));
        assert_eq!(wrong.unwrap(), Vec::<String>::new(), "on the promoted node");
        let successor = Application::start(&self.host, &format!("q-{round}"));
        successor.expect(MORE, "on the promoted node");
        self.comes_back(&mut [application, successor]);
    }
}

#[test]
fn a_node_that_loses_its_power_takes_nothing_acknowledged_with_it() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (mut pair, begun) = (Uneven::new(), Instant::now());
    let (mut as_secondary, mut as_primary) = (Sum::default(), Sum::default());
    for round in 0..rounds() {
        pair.as_secondary(round, &mut as_secondary);
        println!("{:4.0} s  {round} secondary", begun.elapsed().as_secs_f64());
        pair.as_primary(round, &mut as_primary);
        println!("{:4.0} s  {round} primary", begun.elapsed().as_secs_f64());
    }
    as_secondary.tell(rounds(), "the secondary", begun);
    as_primary.tell(rounds(), "the primary", begun);
}

#[test]
fn two_nodes_that_lose_their_power_together_keep_what_was_fsynced() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let scratch = Scratch::new();
    let boot = Boot::prepare(scratch.path()).unwrap();
    let mut nodes = ["a", "b"].map(|name| Machine::guest(scratch.path(), name, &boot));
    for node in &mut nodes {
        node.as_guest().wait_booted().unwrap();
    }
    let [a, b] = &nodes;
    a.init(b, "--good-copy");
    b.init(a, "--from-peer");
    let (mut dice, begun, mut sum) = (Dice::new(1), Instant::now(), Sum::default());
    let [mut primary, mut secondary] = nodes;
    primary.start(Role::Primary);
    secondary.start(Role::Secondary);
    for round in 0..rounds() {
        wait_equal(&primary, &secondary);
        let mut application = Application::start(&primary, &format!("b-{round}"));
        application.expect(BEFORE, "before the cut");
        std::thread::sleep(Duration::from_millis(dice.below(SOON)));
        // One after the other, as it happens; a moment is too short to be noticed.
        let mut both = [&mut primary, &mut secondary];
        if dice.percent(50) {
            both.reverse();
        }
        for node in both {
            node.as_guest().cut_power();
        }
        application.is_gone();
        sum.add(&application);
        for node in [&primary, &secondary] {
            let wrong = node.with_store(|store| application.missing_of_synced(store));
            assert_eq!(wrong.unwrap(), Vec::<String>::new(), "on a disk");
        }
        // Either may be the one that an operator lets go on: who that is he must say himself.
        if dice.percent(50) {
            std::mem::swap(&mut primary, &mut secondary);
        }
        for node in [&mut primary, &mut secondary] {
            node.as_guest().power_on(&boot);
        }
        for node in [&mut primary, &mut secondary] {
            node.as_guest().wait_booted().unwrap();
        }
        primary.start(Role::ForcedPrimary);
        secondary.start(Role::Secondary);
        wait_equal(&primary, &secondary);
        primary.stop();
        secondary.stop();
        assert_equal(&primary, &secondary, |store| {
            application.missing_of_synced(store)
        });
        for node in [&mut primary, &mut secondary] {
            node.mount();
        }
        primary.start(Role::Primary);
        secondary.start(Role::Secondary);
        println!("{:4.0} s  {round} both", begun.elapsed().as_secs_f64());
    }
    sum.tell(rounds(), "both nodes", begun);
}
