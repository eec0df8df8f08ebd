//! Crashes on top of a disk that fails: while the peer takes over and serves the application,
//! and while the repaired node returns.
//!
//! The primary's disk fails, so the peer's copy is the one that counts from then on. What is
//! promised for the loss of a node is promised for it, whatever else befalls the node that
//! failed already: nothing acknowledged is missing on the peer. When the peer goes down as
//! well, both are lost: a kill leaves its page cache, and with it everything acknowledged; of
//! a power cut what was synced survives. The application may then be told of errors.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use fs_driver::control::{self, Request};
use fs_driver::store::Layout;
use harness::faulty::{ALL, Faults};
use harness::{Dice, Role, wait_until};

use crate::cases::{CASES, Case};
use crate::model::Left;
use crate::plan;
use crate::record::{Promise, Record};
use crate::scenes::Orders;
use crate::stage::{Crash, DISK, PATIENCE, Stage, Victim, fate};

/// What goes on when the crash comes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    /// The disk of the primary fails; the peer takes over, serves, and is promoted.
    TakeOver,
    /// The failed node is repaired and returns.
    ReturnOfTheRepaired,
}

/// A way, who goes down in it, and what the application does meanwhile or before. The primary
/// is the one that was it before a take-over, and the one that is it at a return.
#[derive(Clone, Copy)]
struct Scene {
    way: Way,
    victim: Victim,
    case: &'static Case,
}

impl std::fmt::Debug for Scene {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} of {:?}, {:?}", self.way, self.victim, self.case)
    }
}

fn scenes() -> Vec<Scene> {
    // A file without a name that is still open stays with the failed disk.
    let cases = CASES.iter().filter(|c| c.name != "unlinked while open");
    let cases: Vec<_> = cases.collect();
    let ways = [(Way::TakeOver, 3), (Way::ReturnOfTheRepaired, 6)];
    let mut all = Vec::new();
    for (way, every) in ways {
        for (n, victim) in [Victim::Primary, Victim::Secondary, Victim::Both]
            .into_iter()
            .enumerate()
        {
            for case in cases.iter().skip(n).step_by(every) {
                all.push(Scene { way, victim, case });
            }
        }
    }
    all
}

/// The ways in which a disk fails for good.
fn faults(dice: &mut Dice) -> Faults {
    match dice.below(4) {
        0 => Faults::everything(),
        1 => Faults {
            writes: vec![ALL],
            ..Faults::default()
        },
        2 => Faults {
            flushes: u64::MAX,
            ..Faults::default()
        },
        // ext4 goes read-only for that.
        _ => Faults {
            flushes: 1,
            ..Faults::default()
        },
    }
}

/// The operator, on a thread of its own: a node whose disk hangs may answer late or never.
struct Operator {
    thread: JoinHandle<()>,
    over: Arc<AtomicBool>,
    done: Arc<AtomicBool>,
}

impl Operator {
    /// Waits for the take-over, then for the application, and swaps that over to the heir.
    fn swaps(failing: Layout, heir: Layout, record: Record) -> Operator {
        let over = Arc::new(AtomicBool::new(false));
        let done = Arc::new(AtomicBool::new(false));
        let (stop, tell) = (over.clone(), done.clone());
        let thread = std::thread::spawn(move || {
            let wait_for = |what: &dyn Fn() -> bool| {
                while !stop.load(Ordering::SeqCst) && !what() {
                    std::thread::sleep(Duration::from_millis(5));
                }
            };
            wait_for(&|| {
                // What the application has written may be in no need of the disk.
                let _ = control::ask(&failing, Request::Checkpoint);
                let status = control::ask(&failing, Request::Status);
                status.is_ok_and(|s| s.is_some_and(|s| s["swap"] == "to-peer"))
            });
            wait_for(&|| record.is_done());
            wait_for(&|| control::ask(&heir, Request::Promote { force: false }).is_ok());
            tell.store(!stop.load(Ordering::SeqCst), Ordering::SeqCst);
        });
        Operator { thread, over, done }
    }

    fn end(self) {
        self.over.store(true, Ordering::SeqCst);
        self.thread.join().unwrap();
    }
}

/// Whose copy the application goes on with after its disk has failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Goes {
    /// The peer has taken over and is primary; the other node is down. By force: the peer went
    /// down before it could say that it had, and the failed node may have tried to go on alone.
    ToTheHeir { by_force: bool },
    /// The heir was lost before it could be asked, and the failed node lost its own state: it
    /// changes nothing any more, but has brought the heir up to date, which is primary now; the
    /// other node is down.
    ToTheHeirLater,
    /// The heir was lost before it could be asked; the primary stays the same, and has brought
    /// the heir up to date.
    OnHere,
}

/// The disk of the primary fails, and the application works. `victims` go down meanwhile.
/// Returns whether they did, and what became of the application.
fn take_over(
    stage: &mut Stage,
    case: &Case,
    victims: &[(usize, u64)],
    dice: &mut Dice,
) -> (bool, Goes) {
    let (failing, heir) = (stage.primary, 1 - stage.primary);
    stage.disk(failing).fail(faults(dice));
    stage.arm(victims);
    let (record, mount, acts) = (stage.record.clone(), stage.mount(), case.acts);
    let mut worker = Some(std::thread::spawn(move || record.run(acts, &mount)));
    let mut join = move || {
        if let Some(worker) = worker.take() {
            worker.join().unwrap();
        }
    };
    let layout = |n: usize| stage.node(n).layout();
    let operator = Operator::swaps(layout(failing), layout(heir), stage.record.clone());
    let done = operator.done.clone();
    let came = stage.await_fall(victims, || done.load(Ordering::SeqCst));
    if !came {
        assert_eq!(stage.record.error(), None, "it sees nothing of the disk");
    }
    stage.fall(victims, dice.draw());
    let fell = |n: usize| victims.iter().any(|(v, _)| *v == n);
    if fell(heir) && !fell(failing) && dice.percent(25) {
        // The heir is there again before anybody ends the failed node.
        if stage.start(heir, Role::Primary).is_err() {
            stage.start(heir, Role::Secondary).unwrap();
        }
        let told = wait_until(PATIENCE, || stage.record.is_done());
        assert!(told, "a call never ends");
    }
    let mut spared = fell(heir) && !fell(failing) && went_on(stage, failing);
    if spared {
        // The heir was gone before it could be asked, and the disk took the note of that: what
        // was acknowledged since is here only. The operator keeps this copy.
        stage.disk(failing).heal();
        if !stage.runs(heir) {
            stage.start(heir, Role::Secondary).unwrap();
        }
        // The heir may be up to date again, and asked, before the disk is mended.
        spared = stage.pairs_up_or(|stage| is_away(stage, failing));
        if spared && stage.node(failing).status().unwrap()["fenced"].is_null() {
            join();
            // A failure of before may be noticed only now.
            let _ = stage.node(failing).ask(Request::Checkpoint);
            spared = stage.pairs_up_or(|stage| is_away(stage, failing));
            if spared {
                operator.end();
                return (came, Goes::OnHere);
            }
        }
    }
    // Of what the failed disk was given, any part is there when it is repaired.
    stage.pair.cut_power(failing, fate(Dice::new(dice.draw())));
    join();
    operator.end();
    let by_force = succeed(stage, heir, fell(heir) && !spared);
    match spared {
        true => (came, Goes::ToTheHeirLater),
        false => (came, Goes::ToTheHeir { by_force }),
    }
}

/// Whether the node's calls are carried out by the peer, or that is asked for it.
fn is_away(stage: &Stage, failing: usize) -> bool {
    let status = stage.node(failing).status();
    status.is_ok_and(|s| s["link"] == "at-peer" || s["link"] == "handing-over")
}

/// Whether the node whose disk fails went on by itself when its peer was lost, and is or was
/// the only one to know of what was acknowledged since.
fn went_on(stage: &Stage, failing: usize) -> bool {
    let mut on = false;
    wait_until(PATIENCE, || {
        let Ok(status) = stage.node(failing).status() else {
            return false;
        };
        let link = status["link"].as_str().unwrap_or_default();
        on = status["up_to_date"] == true
            && ["alone", "comparing", "syncing", "paired"].contains(&link);
        // A decision is not known yet.
        !["bridging", "holding"].contains(&link)
    });
    on
}

/// The heir becomes primary, if it is not. Returns whether by force.
fn succeed(stage: &mut Stage, heir: usize, fell: bool) -> bool {
    stage.primary = heir;
    if !stage.runs(heir) {
        return stage.start_primary(heir);
    }
    let mut by_force = false;
    let serves_itself = |stage: &Stage| {
        let status = stage.node(heir).status().unwrap();
        status["role"] == "primary" && status["serves_peer"] == false
    };
    let promoted = wait_until(PATIENCE, || {
        // While the peer has not been told of the take-over yet, it is refused for a moment.
        if serves_itself(stage) || stage.node(heir).promote(false).is_ok() {
            return true;
        }
        // One that went down does not know any more how far it was.
        by_force = fell && stage.node(heir).promote(true).is_ok();
        by_force
    });
    assert!(promoted, "{:?}", stage.node(heir).status());
    by_force
}

fn point(stage: &mut Stage, scene: &Scene, steps: u64, seed: u64) -> bool {
    let mut dice = Dice::new(seed);
    stage.prepare(scene.case, dice.percent(30));
    let mut victims = |primary: usize| match scene.victim {
        Victim::Primary => vec![(primary, steps)],
        Victim::Secondary => vec![(1 - primary, steps)],
        Victim::Both => vec![(1 - primary, steps), (primary, dice.below(steps + 10))],
    };
    let (failing, heir) = (stage.primary, 1 - stage.primary);
    let mut may_split = false;
    let (came, victims) = match scene.way {
        Way::TakeOver => {
            let victims = victims(failing);
            let (came, goes) = take_over(stage, scene.case, &victims, &mut dice);
            let Goes::ToTheHeir { by_force } = goes else {
                if goes == Goes::ToTheHeirLater {
                    stage.start(failing, Role::Secondary).unwrap();
                    stage.pair_up(false);
                }
                stage.conclude(Promise::Acknowledged(Left::Whole));
                return came;
            };
            may_split = by_force;
            if !by_force && dice.percent(30) {
                // It knows that its copy is not the one that counts.
                assert!(stage.start(failing, Role::Primary).is_err());
                stage.kill(failing);
            }
            stage.start(failing, Role::Secondary).unwrap();
            (came, victims)
        }
        Way::ReturnOfTheRepaired => {
            let victims = victims(heir);
            let (_, goes) = take_over(stage, scene.case, &[], &mut dice);
            assert_eq!(goes, Goes::ToTheHeir { by_force: false });
            let came = come_back(stage, failing, &victims, &mut dice);
            (came, victims)
        }
    };
    stage.pair_up(may_split);
    let fell = victims.iter().any(|(n, _)| *n == heir);
    stage.conclude(match (fell, stage.crash, scene.way) {
        (true, Crash::Power, _) => Promise::Synced,
        (true, Crash::Kill, Way::TakeOver) => Promise::Acknowledged(Left::Pages),
        // It did not go down, or all calls were over.
        _ => Promise::Acknowledged(Left::Whole),
    });
    came
}

/// The repaired node returns, `victims` go down meanwhile, and are started again.
fn come_back(stage: &mut Stage, back: usize, victims: &[(usize, u64)], dice: &mut Dice) -> bool {
    for victim in victims {
        // One that starts only now has its effects counted from the start.
        match stage.crash == Crash::Kill && victim.0 == back {
            true => stage.kill_after(back, victim.1),
            false => stage.arm(&[*victim]),
        }
    }
    stage.begin_as(back, Role::Secondary);
    let layouts = [0, 1].map(|n| stage.node(n).layout());
    let orders = Orders::give(Vec::new(), layouts, true);
    let done = orders.done.clone();
    let came = stage.await_fall(victims, || done.load(Ordering::SeqCst));
    stage.fall(victims, dice.draw());
    orders.end();
    let primary = stage.primary;
    if !stage.runs(primary) {
        stage.start_primary(primary);
    }
    if !stage.runs(back) {
        stage.start(back, Role::Secondary).unwrap();
    }
    came
}

fn run(test: &str, crash: Crash) {
    let mut stage = Stage::with(crash, "memory", |o| {
        o.disks = [Some(DISK); 2];
        o.on_peer_loss = "alone";
        // What waits for a peer that is gone is told of it before patience ends.
        o.deadlines = [3_000, 15_000, 20_000];
    });
    let most = match crash {
        Crash::Power => 30,
        Crash::Kill => 100,
    };
    plan::run(test, &scenes(), most, |scene, steps, seed| {
        point(&mut stage, scene, steps, seed)
    });
}

#[test]
fn nothing_acknowledged_is_missing_after_a_power_cut_on_top_of_a_failed_disk() {
    run("take-over power", Crash::Power);
}

#[test]
fn nothing_acknowledged_is_missing_after_a_kill_on_top_of_a_failed_disk() {
    run("take-over kill", Crash::Kill);
}
