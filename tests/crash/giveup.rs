//! Crashes while a copy is given up after a split brain.
//!
//! Both nodes went on alone. One copy is given up: what it has changed is kept in an archive,
//! then the other one's changes overwrite it. At each point either the losing copy is as it
//! was, or a complete archive has everything in which it differed from what the two had in
//! common.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::Ordering;

use fs_driver::archive::{self, Archive, Kept, Line};
use fs_driver::control::Request;
use harness::{Dice, Role, wait_until};

use crate::acts::{Act, Open};
use crate::cases::{CASES, Case};
use crate::look::{self, Look, Seen};
use crate::model::Left;
use crate::plan;
use crate::record::Promise;
use crate::scenes::Orders;
use crate::stage::{Crash, PATIENCE, Stage, Victim};

/// Who goes down, the primary being the one whose copy stays, and what both do before.
#[derive(Clone, Copy)]
struct Scene {
    victim: Victim,
    case: &'static Case,
}

impl std::fmt::Debug for Scene {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GiveUp of {:?}, {:?}", self.victim, self.case)
    }
}

fn scenes() -> Vec<Scene> {
    let mut all = Vec::new();
    for (n, victim) in [Victim::Secondary, Victim::Primary, Victim::Both]
        .into_iter()
        .enumerate()
    {
        // The one that loses has most of the points.
        let every = if victim == Victim::Secondary { 2 } else { 4 };
        for case in CASES.iter().skip(n).step_by(every) {
            all.push(Scene { victim, case });
        }
    }
    all
}

/// The losing side.
struct Loser {
    number: usize,
    /// What both had when they fell apart.
    common: Look,
    /// What it had when it was given up.
    had: Look,
}

/// Both go on alone, and both change the folder. The loser has done all of the workload, the
/// other one the first part of it. On the loser all of it is on the disk.
fn split(stage: &mut Stage, case: &Case, dice: &mut Dice) -> Loser {
    stage.pair.wait_settled();
    let common = look::look(&stage.record_root()).unwrap();
    stage.node(1 - stage.primary).promote(false).unwrap();
    for n in [0, 1] {
        let node = stage.node(n);
        let alone = || node.status().is_ok_and(|s| s["link"] == "alone");
        assert!(wait_until(PATIENCE, alone), "{:?}", node.status());
    }
    stage.primary = dice.below(2) as usize;
    let number = 1 - stage.primary;
    let part = dice.below(case.acts.len() as u64) as usize;
    stage.record.run(&case.acts[..part], &stage.mount());
    assert_eq!(stage.record.error(), None);
    run(case.acts, &stage.node(number).mount());
    if stage.crash == Crash::Power {
        rustix::fs::syncfs(File::open(stage.node(number).data()).unwrap()).unwrap();
    }
    let had = look::look(&stage.node(number).data()).unwrap();
    Loser {
        number,
        common,
        had,
    }
}

fn run(acts: &[Act], mount: &Path) {
    let mut open = Open::new();
    for act in acts {
        act.run(mount, &mut open)
            .unwrap_or_else(|e| panic!("{act:?} on the side that loses: {e}"));
    }
}

/// Whether an application that does not count names sees the same.
fn is_same(one: &Seen, other: &Seen) -> bool {
    let links = one.links;
    let other = Seen {
        links,
        ..other.clone()
    };
    *one == other
}

impl Loser {
    /// Fails the test unless all that it had is in its store or in an archive.
    fn assert_kept(&self, stage: &Stage) {
        let node = stage.node(self.number);
        let complete = || archive::list(&node.layout()).unwrap();
        let mut archives = complete();
        let mut wrong = Vec::new();
        if archives.is_empty() {
            wrong = match look::look(&node.data()) {
                Ok(found) => look::differences(&self.had, &found),
                Err(e) => vec![format!("the store cannot be read: {e}")],
            };
            if wrong.is_empty() {
                return;
            }
            // One that was completed meanwhile lets the store be overwritten.
            archives = complete();
        }
        for archive in archives {
            match self.missing_in(stage, &archive) {
                missing if missing.is_empty() => return,
                missing => wrong.extend(missing),
            }
        }
        panic!(
            "what the losing side had is not kept:\n{}",
            wrong.join("\n")
        );
    }

    /// What it had changed and the archive has not.
    fn missing_in(&self, stage: &Stage, archive: &Archive) -> Vec<String> {
        let layout = stage.node(self.number).layout();
        let (archive, lines) = archive::manifest(&layout, &archive.name).unwrap();
        let mut missing = Vec::new();
        for (path, had) in &self.had {
            if self.common.get(path).is_some_and(|c| is_same(c, had)) {
                continue;
            }
            let line = lines.iter().find(|line| Path::new(&line.path) == path);
            let objection = match line {
                Some(line) => {
                    let kept = look::seen(&archive.files().join(path));
                    kept.map_or_else(
                        |e| Some(format!("cannot be read: {e}")),
                        |kept| self.objection(path, line, had, &kept),
                    )
                }
                None if self.moved_with_its_directory(path, had, &lines) => None,
                None => Some("is not in the manifest".to_owned()),
            };
            missing.extend(objection.map(|o| format!("{}, {path:?}: {o}", archive.name)));
        }
        missing
    }

    /// A directory got another name, and this in it was not changed.
    fn moved_with_its_directory(&self, path: &Path, had: &Seen, lines: &[Line]) -> bool {
        let above = |line: &Line| {
            let directory = Path::new(&line.path);
            directory != path && path.starts_with(directory) && line.kept != Kept::Nothing
        };
        lines.iter().any(above)
            && self
                .common
                .iter()
                .any(|(old, seen)| old.file_name() == path.file_name() && is_same(seen, had))
    }

    fn objection(&self, path: &Path, line: &Line, had: &Seen, kept: &Seen) -> Option<String> {
        if line.kept == Kept::Nothing {
            return Some("nothing is kept".to_owned());
        }
        let mut whole = kept.clone();
        if line.kept == Kept::Ranges {
            // What lies between them was not changed.
            let common = self.common.get(path)?;
            let outside = |at: u64| {
                let within = |(from, length): &(u64, u64)| (*from..from + length).contains(&at);
                !line.ranges.iter().any(within)
            };
            for (at, byte) in whole.data.iter_mut().enumerate() {
                if outside(at as u64) {
                    *byte = common.data.get(at).copied().unwrap_or_default();
                }
            }
        }
        (!is_same(&whole, had)).then(|| format!("had {had:?}, kept as {kept:?} by {line:?}"))
    }
}

fn point(stage: &mut Stage, scene: &Scene, steps: u64, seed: u64) -> bool {
    let mut dice = Dice::new(seed);
    stage.prepare(scene.case, dice.percent(30));
    let loser = split(stage, scene.case, &mut dice);
    let (stays, number) = (stage.primary, loser.number);
    let victims = match scene.victim {
        Victim::Primary => vec![(stays, steps)],
        Victim::Secondary => vec![(number, steps)],
        Victim::Both => vec![(number, steps), (stays, dice.below(steps + 10))],
    };
    let discard = Request::Discard {
        without_archive: false,
    };
    let orders = [Request::Demote { force: false }, discard];
    let orders = orders.map(|order| (stage.node(number).layout(), order));
    let nodes = [0, 1].map(|n| stage.node(n).layout());
    stage.arm(&victims);
    let orders = Orders::give(orders.into(), nodes, true);
    let done = orders.done.clone();
    let came = stage.await_fall(&victims, || done.load(Ordering::SeqCst));
    stage.fall(&victims, dice.draw());
    orders.end();
    loser.assert_kept(stage);

    if !stage.runs(stays) {
        stage.start_primary(stays);
    }
    if !stage.runs(number) {
        stage.start(number, Role::Secondary).unwrap();
    }
    if stage.status(number).unwrap()["role"] == "primary" {
        stage.node(number).demote(false).unwrap();
    }
    let paired = wait_until(PATIENCE, || {
        let status = [0, 1].map(|n| stage.node(n).status().unwrap());
        let told = &status[number];
        if !told["conflict"].is_null() && told["given_up"] == false {
            loser.assert_kept(stage);
            stage.node(number).ask(discard).unwrap();
        }
        status.iter().all(|s| s["link"] == "paired")
    });
    assert!(
        paired,
        "{:?}\n{:?}",
        stage.pair.a.status(),
        stage.pair.b.status()
    );
    loser.assert_kept(stage);
    let layout = stage.node(number).layout();
    for archive in archive::list(&layout).unwrap() {
        archive::drop_archive(&layout, &archive.name).unwrap();
    }
    let cut = stage.crash == Crash::Power && scene.victim != Victim::Secondary;
    stage.conclude(match cut {
        true => Promise::Synced,
        // All calls were over.
        false => Promise::Acknowledged(Left::Whole),
    });
    came
}

fn run_all(test: &str, crash: Crash) {
    let mut stage = Stage::with(crash, "memory", |o| o.on_peer_loss = "alone");
    let most = match crash {
        Crash::Power => 80,
        Crash::Kill => 160,
    };
    plan::run(test, &scenes(), most, |scene, steps, seed| {
        point(&mut stage, scene, steps, seed)
    });
}

#[test]
fn a_copy_given_up_is_kept_or_whole_after_a_power_cut_of_any_node() {
    run_all("give up power", Crash::Power);
}

#[test]
fn a_copy_given_up_is_kept_or_whole_after_a_kill_of_any_node() {
    run_all("give up kill", Crash::Kill);
}
