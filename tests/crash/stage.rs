//! A pair, the record beside it, and one crash after the other.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fs_driver::control::Request;
use harness::faulty::{Fate, Request as DiskRequest};
use harness::{Dice, Node, Options, Pair, Role, wait_until};

use crate::cases::Case;
use crate::look;
use crate::model::Left;
use crate::record::{Promise, Record};

/// Bytes of each node's disk.
pub(crate) const DISK: u64 = 48 << 20;

/// How long anything may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// How a node goes down.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Crash {
    /// Its disk has done so many requests more; what it was not told to flush may be gone.
    Power,
    /// It had so many effects more; the page cache stays.
    Kill,
}

/// Who goes down.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Victim {
    Primary,
    Secondary,
    Both,
}

/// Two nodes and the record of what was acknowledged.
pub(crate) struct Stage {
    pub(crate) pair: Pair,
    /// Which of them is primary: 0 is A.
    pub(crate) primary: usize,
    pub(crate) record: Record,
    pub(crate) crash: Crash,
    ack: &'static str,
}

/// Where the superblock of an ext4 ends. Torn, it would not be mounted any more: ext4 takes
/// it for granted that the disk replaces it as a whole.
const SUPERBLOCK: u64 = 2048;

/// What became of what the power cut found unflushed.
pub(crate) fn fate(mut dice: Dice) -> impl Fn(usize, &DiskRequest) -> Fate {
    let way = dice.below(4);
    let seed = dice.draw();
    move |index, request| {
        let mut dice = Dice::new(seed ^ index as u64);
        match (way, dice.below(3)) {
            (2 | 3, 2) if request.offset < SUPERBLOCK => Fate::Lost,
            (0, _) => Fate::Lost,
            (1, _) | (2 | 3, 0) => Fate::Kept,
            (2 | 3, 1) => Fate::Lost,
            // Torn at 512 or at 4096 bytes.
            (2, _) => Fate::Torn(dice.below(request.length.max(1)) / 4096 * 4096),
            _ => Fate::Torn(dice.below(request.length.max(1))),
        }
    }
}

impl Stage {
    /// A paired pair with a little data that must never change.
    pub(crate) fn new(crash: Crash, ack: &'static str) -> Stage {
        Stage::with(crash, ack, |_| ())
    }

    /// The same with other options.
    pub(crate) fn with(
        crash: Crash,
        ack: &'static str,
        change: impl FnOnce(&mut Options),
    ) -> Stage {
        let mut stage = Stage::stopped_with(crash, ack, change);
        stage.start(0, Role::Primary).unwrap();
        stage.start(1, Role::Secondary).unwrap();
        stage.pair.wait_paired();
        stage.record.adopt(&stage.mount());
        stage
    }

    /// The same, and no driver runs yet.
    pub(crate) fn stopped(crash: Crash, ack: &'static str) -> Stage {
        Stage::stopped_with(crash, ack, |_| ())
    }

    fn stopped_with(crash: Crash, ack: &'static str, change: impl FnOnce(&mut Options)) -> Stage {
        let disks = match crash {
            Crash::Power => [Some(DISK); 2],
            Crash::Kill => [None; 2],
        };
        let mut options = Options {
            ack,
            disks,
            watched: crash == Crash::Kill,
            // A secondary notices only so that its primary came back as another process.
            deadlines: [3_000, 45_000, 60_000],
            populate: |mount| {
                std::fs::create_dir(mount.join("keep")).unwrap();
                for n in 0..5u8 {
                    let path = mount.join("keep").join(format!("{n}"));
                    std::fs::write(path, vec![n; 3000 * usize::from(n)]).unwrap();
                }
            },
            ..Options::default()
        };
        change(&mut options);
        let pair = Pair::stopped(options);
        let record = Record::new(&pair.beside("record"));
        Stage {
            pair,
            primary: 0,
            record,
            crash,
            ack,
        }
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

    pub(crate) fn mount(&self) -> PathBuf {
        self.node(self.primary).mount()
    }

    /// Everything of the workload before is there, flushed by both and forgotten by most
    /// notes; `hot` leaves the notes.
    pub(crate) fn prepare(&self, case: &Case, hot: bool) {
        self.record.begin();
        std::fs::create_dir(self.mount().join("c")).unwrap();
        std::fs::create_dir(self.record_root().join("c")).unwrap();
        self.record.run(case.before, &self.mount());
        assert_eq!(self.record.error(), None, "before the crash");
        if !hot {
            self.flush();
        } else if self.ack == "flush" {
            // The peer has what the workload stands on.
            self.pair.wait_settled();
        }
        self.record.begin();
    }

    pub(crate) fn record_root(&self) -> PathBuf {
        self.pair.beside("record")
    }

    /// Both nodes have everything on their disks.
    fn flush(&self) {
        self.pair.wait_settled();
        let primary = self.node(self.primary);
        let done = wait_until(PATIENCE, || {
            primary.ask(Request::Checkpoint).unwrap();
            primary.status().unwrap()["unflushed_objects"] == 0
        });
        assert!(done, "{:?}", primary.status());
    }

    /// From now on the nodes in `victims` go down behind so many steps.
    pub(crate) fn arm(&self, victims: &[(usize, u64)]) {
        for (number, steps) in victims {
            match self.crash {
                Crash::Power => self.disk(*number).hold_after(*steps),
                Crash::Kill => self.node(*number).effects().kill_after(*steps),
            }
        }
    }

    pub(crate) fn disk(&self, number: usize) -> &harness::faulty::ProgrammableDisk {
        match number {
            0 => self.pair.disk_a(),
            _ => self.pair.disk_b(),
        }
    }

    pub(crate) fn is_down(&self, number: usize) -> bool {
        match self.crash {
            Crash::Power => self.disk(number).look().held > 0,
            Crash::Kill => self.node(number).effects().has_killed(),
        }
    }

    /// Waits until all victims are down, or `done`, or, when one of several is down, a
    /// moment has passed: then the others cannot get any further.
    pub(crate) fn await_fall(&self, victims: &[(usize, u64)], done: impl Fn() -> bool) -> bool {
        let mut first: Option<Instant> = None;
        let fell = wait_until(PATIENCE, || {
            let down = victims.iter().filter(|(n, _)| self.is_down(*n)).count();
            if down > 0 {
                first.get_or_insert_with(Instant::now);
            }
            down == victims.len()
                || done()
                || first.is_some_and(|at| at.elapsed() > Duration::from_millis(300))
        });
        assert!(fell, "neither the end nor the crash came");
        victims.iter().any(|(n, _)| self.is_down(*n))
    }

    /// Waits until a node is down or what it was started for is done.
    pub(crate) fn await_end(&mut self, number: usize) -> bool {
        let ended = wait_until(PATIENCE, || {
            self.is_down(number) || self.node_mut(number).has_ended()
        });
        assert!(ended, "neither the end nor the crash came");
        self.is_down(number)
    }

    /// The victims go down now, all at once.
    pub(crate) fn fall(&mut self, victims: &[(usize, u64)], seed: u64) {
        for (number, _) in victims {
            self.node(*number).begin_to_kill();
        }
        for (number, _) in victims {
            match self.crash {
                Crash::Power => {
                    let dice = Dice::new(seed ^ *number as u64);
                    self.pair.cut_power(*number, fate(dice));
                }
                Crash::Kill => self.node_mut(*number).kill(),
            }
        }
    }

    pub(crate) fn start(&mut self, number: usize, role: Role) -> anyhow::Result<()> {
        self.node_mut(number).start(role)
    }

    pub(crate) fn begin_as(&mut self, number: usize, role: Role) {
        self.node_mut(number).begin_as(role).unwrap();
    }

    pub(crate) fn kill_after(&mut self, number: usize, effects: u64) {
        self.node_mut(number).kill_after(effects);
    }

    /// A secondary stops in order, and its primary goes on alone.
    pub(crate) fn stop(&mut self, secondary: usize) {
        self.node_mut(secondary).stop().unwrap();
        // Else the application would wait without end.
        let primary = self.node(1 - secondary);
        let alone = wait_until(PATIENCE, || primary.status().unwrap()["link"] == "alone");
        assert!(alone, "{:?}", primary.status());
    }

    /// A secondary is killed; its primary holds.
    pub(crate) fn kill_and_hold(&mut self, secondary: usize) {
        self.kill(secondary);
        let primary = self.node(1 - secondary);
        let holds = wait_until(PATIENCE, || primary.status().unwrap()["link"] == "holding");
        assert!(holds, "{:?}", primary.status());
    }

    /// A secondary is killed, and its primary goes on alone.
    pub(crate) fn lose(&mut self, secondary: usize) {
        self.kill_and_hold(secondary);
        let primary = self.node(1 - secondary);
        primary.go_alone().unwrap();
        // It is said at once, and is so as soon as it is noted.
        let alone = wait_until(PATIENCE, || primary.status().unwrap()["link"] == "alone");
        assert!(alone, "{:?}", primary.status());
    }

    /// What a driver that may just have been started says of itself, unless it ends.
    pub(crate) fn status(&mut self, number: usize) -> Option<serde_json::Value> {
        let mut status = None;
        wait_until(PATIENCE, || {
            status = self.node(number).status().ok();
            status.is_some() || self.node_mut(number).has_ended()
        });
        status
    }

    /// Whether its driver runs; one that has ended is buried.
    pub(crate) fn runs(&mut self, number: usize) -> bool {
        let node = self.node_mut(number);
        if node.has_ended() {
            node.kill();
        }
        node.is_running()
    }

    /// Waits until a node that was told to stop has ended, or a victim is down.
    pub(crate) fn await_end_of(&mut self, number: usize, victims: &[(usize, u64)]) {
        let ended = wait_until(PATIENCE, || {
            self.node_mut(number).has_ended() || victims.iter().any(|(n, _)| self.is_down(*n))
        });
        assert!(ended, "it does not stop");
    }

    /// Waits until both are paired, and returns true, or until something else is so.
    pub(crate) fn pairs_up_or(&self, else_is: impl Fn(&Stage) -> bool) -> bool {
        let link = |n: usize| self.node(n).status().map(|s| s["link"].clone());
        let mut paired = false;
        let over = wait_until(PATIENCE, || {
            paired = [0, 1].iter().all(|n| link(*n).is_ok_and(|l| l == "paired"));
            paired || else_is(self)
        });
        assert!(
            over,
            "{:?}\n{:?}",
            self.pair.a.status(),
            self.pair.b.status()
        );
        paired
    }

    /// Waits until both are paired. `may_split`: the secondary's copy may be of another
    /// history, and is then given up.
    pub(crate) fn pair_up(&self, may_split: bool) {
        let mut given_up = false;
        let paired = wait_until(PATIENCE, || {
            let link = |n: usize| self.node(n).status().map(|s| s["link"].clone());
            if may_split && !given_up {
                let status = self.node(1 - self.primary).status().unwrap();
                if status["trouble"]
                    .to_string()
                    .contains("--discard-this-copy")
                {
                    self.node(1 - self.primary)
                        .ask(Request::Discard {
                            without_archive: true,
                        })
                        .unwrap();
                    given_up = true;
                }
            }
            [0, 1].iter().all(|n| link(*n).is_ok_and(|l| l == "paired"))
        });
        assert!(
            paired,
            "{:?}\n{:?}",
            self.pair.a.status(),
            self.pair.b.status()
        );
    }

    /// Starts a node as primary, by force if it asks for the operator's word. Returns
    /// whether it did.
    pub(crate) fn start_primary(&mut self, number: usize) -> bool {
        self.primary = number;
        let Err(objection) = self.start(number, Role::Primary) else {
            return false;
        };
        self.node_mut(number).kill();
        assert!(
            format!("{objection:#}").contains("--force"),
            "it does not say what to do: {objection:#}"
        );
        self.start(number, Role::ForcedPrimary).unwrap();
        true
    }

    /// Ends what is left of a driver that did not start.
    pub(crate) fn kill(&mut self, number: usize) {
        self.node_mut(number).kill();
    }

    /// What node `good`'s copy has to hold when its calls, with the peer beside it,
    /// were broken off. `primary`: who was; `fell`: this node went down, too.
    pub(crate) fn promise_of(&self, good: usize, primary: usize, fell: bool) -> Promise {
        let left = match (fell, self.crash) {
            (false, _) => Left::Whole,
            (true, Crash::Kill) => Left::Pages,
            (true, Crash::Power) => Left::Sectors,
        };
        match (self.ack, left) {
            ("disk", _) if good != primary => Promise::Acknowledged(left),
            (_, Left::Sectors) => Promise::Synced,
            ("flush", _) if good != primary => Promise::Prefix(left),
            _ => Promise::Acknowledged(left),
        }
    }

    /// Both copies are equal and hold what they must; the stage is ready for the next.
    pub(crate) fn conclude(&self, promise: Promise) {
        self.pair.wait_settled();
        let wrong = self.record.check(promise, &self.mount());
        assert!(wrong.is_empty(), "not {promise:?}:\n{}", wrong.join("\n"));
        self.pair.assert_identical();
        let mount = self.mount();
        if promise != Promise::Synced || mount.join("c").exists() {
            std::fs::remove_dir_all(mount.join("c")).unwrap();
        }
        // On both disks: no power cut of a later point brings back what this one had.
        std::fs::File::open(&mount).unwrap().sync_all().unwrap();
        let root = self.record_root();
        std::fs::remove_dir_all(root.join("c")).unwrap();
        let kept = |at: &Path| look::look(&at.join("keep")).unwrap();
        let wrong = look::differences(&kept(&root), &kept(&mount));
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}
