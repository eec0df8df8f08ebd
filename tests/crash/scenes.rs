//! Crashes while the nodes come together, change their roles, or stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fs_driver::control::{self, Request};
use fs_driver::store::Layout;
use harness::{Dice, Role};

use crate::cases::{CASES, Case};
use crate::model::Left;
use crate::plan;
use crate::record::Promise;
use crate::stage::{Crash, Stage, Victim};

/// What goes on when the crash comes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    /// The secondary was away in order, and returns.
    Return,
    /// It was killed, and returns.
    ReturnOfTheKilled,
    /// It is new.
    First,
    /// The primary is demoted, the secondary promoted.
    Switchover,
    /// The primary is gone; the secondary is promoted.
    Promote,
    /// The secondary is gone; the primary goes on alone.
    GoAlone,
    /// The primary stops in order.
    StopPrimary,
    /// The secondary does.
    StopSecondary,
}

/// A way, who goes down in it, and the workload before it.
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

/// Each way with some of the workloads, a promotion with all of them.
fn scenes(ways: &[(Way, &[Victim])]) -> Vec<Scene> {
    let mut all = Vec::new();
    for (n, (way, victims)) in ways.iter().enumerate() {
        for (m, victim) in victims.iter().enumerate() {
            let (first, every) = match way {
                // Short, and the nodes' times have not met yet.
                Way::Promote => (0, 1),
                _ => ((n + m) % 5, 5),
            };
            for case in CASES.iter().skip(first).step_by(every) {
                all.push(Scene {
                    way: *way,
                    victim: *victim,
                    case,
                });
            }
        }
    }
    all
}

/// What the nodes are told to do while the crash comes, on a thread of its own: a node
/// whose disk hangs may answer late or never.
pub(crate) struct Orders {
    thread: std::thread::JoinHandle<()>,
    over: Arc<AtomicBool>,
    pub(crate) done: Arc<AtomicBool>,
}

impl Orders {
    /// Asks one after the other, until one is refused; then waits until both are paired,
    /// if that is where it leads.
    pub(crate) fn give(
        orders: Vec<(Layout, Request)>,
        nodes: [Layout; 2],
        then_paired: bool,
    ) -> Orders {
        let over = Arc::new(AtomicBool::new(false));
        let done = Arc::new(AtomicBool::new(false));
        let (stop, tell) = (over.clone(), done.clone());
        let thread = std::thread::spawn(move || {
            for (layout, order) in orders {
                if stop.load(Ordering::SeqCst) || control::ask(&layout, order).is_err() {
                    break;
                }
            }
            let paired = |layout| {
                control::ask(layout, Request::Status)
                    .is_ok_and(|s| s.is_some_and(|s| s["link"] == "paired"))
            };
            while then_paired && !stop.load(Ordering::SeqCst) && !nodes.iter().all(paired) {
                std::thread::sleep(std::time::Duration::from_millis(3));
            }
            tell.store(true, Ordering::SeqCst);
        });
        Orders { thread, over, done }
    }

    pub(crate) fn end(self) {
        self.over.store(true, Ordering::SeqCst);
        self.thread.join().unwrap();
    }
}

/// The private parts of a node's folder are made anew, and it knows nothing.
fn make_new(stage: &mut Stage, number: usize) {
    let mount = stage.node(number).mount();
    let path = mount.display().to_string();
    stage
        .node(number)
        .run(&["deinit", &path, "--force"])
        .unwrap();
    for entry in std::fs::read_dir(&mount).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => std::fs::remove_dir_all(path).unwrap(),
            false => std::fs::remove_file(path).unwrap(),
        }
    }
    let init: Vec<_> = stage
        .pair
        .init_arguments(number)
        .iter()
        .map(|a| match *a {
            "--good-copy" => "--from-peer",
            other => other,
        })
        .collect();
    stage.node(number).run(&init).unwrap();
}

/// The stage is set: what is left to do, and whether it leads to a pair.
fn set(stage: &mut Stage, scene: &Scene) -> (Vec<(Layout, Request)>, bool) {
    let (primary, secondary) = (stage.primary, 1 - stage.primary);
    let layout = |n: usize| stage.node(n).layout();
    let (here, there) = (layout(primary), layout(secondary));
    let mount = stage.mount();
    let away = matches!(scene.way, Way::Return | Way::First);
    if away {
        stage.stop(secondary);
    }
    if scene.way == Way::ReturnOfTheKilled {
        stage.lose(secondary);
    }
    stage.record.run(scene.case.acts, &mount);
    assert_eq!(stage.record.error(), None);
    match scene.way {
        Way::Return | Way::ReturnOfTheKilled => (Vec::new(), true),
        Way::First => {
            make_new(stage, secondary);
            (Vec::new(), true)
        }
        Way::Switchover => {
            let orders = vec![
                (here, Request::Demote { force: false }),
                (there, Request::Promote { force: false }),
            ];
            (orders, true)
        }
        Way::Promote => {
            stage.kill(primary);
            (vec![(there, Request::Promote { force: false })], false)
        }
        Way::GoAlone => {
            stage.kill_and_hold(secondary);
            (vec![(here, Request::GoAlone)], false)
        }
        Way::StopPrimary => (vec![(here, Request::Stop)], false),
        Way::StopSecondary => (vec![(there, Request::Stop)], false),
    }
}

fn point(stage: &mut Stage, scene: &Scene, steps: u64, seed: u64) -> bool {
    let mut dice = Dice::new(seed);
    stage.prepare(scene.case, dice.percent(30));
    let (primary, secondary) = (stage.primary, 1 - stage.primary);
    let (orders, then_paired) = set(stage, scene);
    let victims: Vec<(usize, u64)> = match scene.victim {
        Victim::Primary => vec![(primary, steps)],
        Victim::Secondary => vec![(secondary, steps)],
        Victim::Both => vec![(secondary, steps), (primary, dice.below(steps + 10))],
    };
    let returns = matches!(scene.way, Way::Return | Way::ReturnOfTheKilled | Way::First);
    for victim in &victims {
        // One that starts only now has its effects counted from the start.
        match stage.crash == Crash::Kill && returns && victim.0 == secondary {
            true => stage.kill_after(secondary, victim.1),
            false => stage.arm(&[*victim]),
        }
    }
    if returns {
        stage.begin_as(secondary, Role::Secondary);
    }
    let nodes = [0, 1].map(|n| stage.node(n).layout());
    let orders = Orders::give(orders, nodes, then_paired);
    let done = orders.done.clone();
    let came = stage.await_fall(&victims, || done.load(Ordering::SeqCst));
    if matches!(scene.way, Way::StopPrimary | Way::StopSecondary) && !came {
        // It was told to stop, and has its time for that.
        let stopping = match scene.way {
            Way::StopPrimary => primary,
            _ => secondary,
        };
        stage.await_end_of(stopping, &victims);
    }
    let came = came || victims.iter().any(|(n, _)| stage.is_down(*n));
    stage.fall(&victims, dice.draw());
    orders.end();
    let stopping = match scene.way {
        Way::StopPrimary => Some(primary),
        Way::StopSecondary => Some(secondary),
        _ => None,
    };
    if let Some(stopping) = stopping.filter(|n| victims.iter().all(|(v, _)| v != n)) {
        // It was told, whatever became of the other one.
        let _ = stage.node(stopping).ask(Request::Stop);
        stage.await_end_of(stopping, &[]);
    }
    let promise = recover(stage, scene, &victims, &mut dice);
    stage.conclude(promise);
    came
}

/// Brings the two together by the rules: whoever is primary stays it; a secondary that is
/// up to date is promoted; a node that may start as primary does; and where each asks for
/// the operator's word, it is given for one whose copy is up to date.
fn recover(stage: &mut Stage, scene: &Scene, victims: &[(usize, u64)], dice: &mut Dice) -> Promise {
    let (old, new) = match scene.way {
        // Who was made primary last.
        Way::Switchover | Way::Promote => (1 - stage.primary, stage.primary),
        _ => (stage.primary, 1 - stage.primary),
    };
    let runs: Vec<usize> = [0, 1].into_iter().filter(|n| stage.runs(*n)).collect();
    let is = |stage: &mut Stage, n: usize, role: &str| {
        stage.status(n).expect("it answers")["role"] == role
    };
    let lost = |n: usize| stage.crash == Crash::Power && victims.iter().any(|(v, _)| *v == n);
    let (lost_old, lost_new) = (lost(old), lost(new));
    let promise = |n: usize| match if n == old { lost_old } else { lost_new } {
        true => Promise::Synced,
        // All calls were over.
        false => Promise::Acknowledged(Left::Whole),
    };
    let chosen = 'chosen: {
        if let Some(n) = runs.iter().find(|n| is(stage, **n, "primary")) {
            break 'chosen *n;
        }
        if let Some(n) = runs.iter().find(|n| stage.node(**n).promote(false).is_ok()) {
            break 'chosen *n;
        }
        let mut may = Vec::new();
        for n in [old, new] {
            if runs.contains(&n) {
                // It runs, and wants the word.
                if stage.node(n).status().unwrap()["up_to_date"] == true {
                    may.push(n);
                }
                continue;
            }
            let Err(e) = stage.start(n, Role::Primary) else {
                break 'chosen n;
            };
            let e = format!("{e:#}");
            let stale = ["is not up to date", "was never synchronised"];
            if !stale.iter().any(|s| e.contains(s)) {
                may.push(n);
            }
        }
        assert!(!may.is_empty(), "no copy may be used");
        // What runs has lost nothing.
        may.sort_by_key(|n| promise(*n) == Promise::Synced);
        let n = match promise(may[0]) {
            Promise::Acknowledged(_) => may[0],
            _ => *dice.pick(&may),
        };
        match runs.contains(&n) {
            true => stage.node(n).promote(true).unwrap(),
            false => stage.start(n, Role::ForcedPrimary).unwrap(),
        }
        n
    };
    stage.primary = chosen;
    if !stage.runs(1 - chosen) {
        stage.start(1 - chosen, Role::Secondary).unwrap();
    }
    // A promotion that was broken off has made another history, which nobody has used.
    stage.pair_up(scene.way == Way::Switchover || scene.way == Way::Promote);
    promise(chosen)
}

fn run(test: &str, crash: Crash, ways: &[(Way, &[Victim])]) {
    let mut stage = Stage::new(crash, "memory");
    let most = match crash {
        Crash::Power => 30,
        Crash::Kill => 80,
    };
    plan::run(test, &scenes(ways), most, |scene, steps, seed| {
        point(&mut stage, scene, steps, seed)
    });
}

const ALL: &[Victim] = &[Victim::Primary, Victim::Secondary, Victim::Both];

const RESYNCS: &[(Way, &[Victim])] = &[
    (Way::Return, ALL),
    (Way::ReturnOfTheKilled, &[Victim::Secondary]),
    (Way::First, ALL),
];

const ROLES: &[(Way, &[Victim])] = &[
    (Way::Switchover, ALL),
    (Way::GoAlone, &[Victim::Primary]),
    (Way::StopPrimary, ALL),
    (Way::StopSecondary, ALL),
];

const PROMOTION: &[(Way, &[Victim])] = &[(Way::Promote, &[Victim::Secondary])];

#[test]
fn a_resync_broken_off_by_a_power_cut_of_any_node_is_completed() {
    run("resync power", Crash::Power, RESYNCS);
}

#[test]
fn a_resync_broken_off_by_a_kill_of_any_node_is_completed() {
    run("resync kill", Crash::Kill, RESYNCS);
}

#[test]
fn a_change_of_roles_broken_off_by_a_power_cut_loses_nothing() {
    run("roles power", Crash::Power, ROLES);
}

#[test]
fn a_change_of_roles_broken_off_by_a_kill_loses_nothing() {
    run("roles kill", Crash::Kill, ROLES);
}

#[test]
fn a_promotion_broken_off_by_a_kill_loses_nothing() {
    run("promotion kill", Crash::Kill, PROMOTION);
}

#[test]
fn a_promotion_broken_off_by_a_power_cut_loses_nothing() {
    run("promotion power", Crash::Power, PROMOTION);
}
