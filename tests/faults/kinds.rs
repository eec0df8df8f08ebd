//! The faults, each under load.

use std::time::{Duration, Instant};

use fs_driver::control::Request;
use harness::wait_until;

use crate::stage::Stage;

/// Operations after a fault that the application survives.
const AFTER: u64 = 60;

/// How long a fault may take to be seen.
const PATIENCE: Duration = Duration::from_secs(60);

/// A kind of fault.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    /// Does it, and says what it measured.
    pub(crate) happens: fn(&mut Stage) -> Option<String>,
}

macro_rules! kinds {
    ($($name:literal => $function:ident,)*) => {
        /// All of them.
        pub(crate) const ALL: &[Kind] = &[
            $(Kind { name: $name, happens: $function },)*
        ];
    };
}

kinds! {
    "secondary killed" => secondary_killed,
    "primary killed, peer promoted" => primary_killed,
    "primary killed and restarted" => primary_restarted,
    "both killed" => both_killed,
    "secondary frozen" => secondary_frozen,
    "primary frozen, peer promoted" => primary_frozen,
    "either frozen for a moment" => frozen_for_a_moment,
    "network cut" => network_cut,
    "network cut towards the secondary" => cut_towards_secondary,
    "network cut towards the primary" => cut_towards_primary,
    "network cut, peer promoted" => cut_and_promoted,
    "network cut for a moment" => cut_for_a_moment,
    "network flaps" => flapping,
    "cable pulled" => cable_pulled,
    "secondary's disk full" => secondary_full,
    "primary's disk full" => primary_full,
    "resync: target killed" => target_killed,
    "resync: source killed" => source_killed,
    "promotion: killed" => killed_in_promotion,
    "demotion: either killed" => killed_in_demotion,
    "checkpoint: either killed" => killed_in_checkpoint,
    "secondary stopped" => secondary_stopped,
    "primary stopped" => primary_stopped,
    "switchover" => switchover,
    "stale copy" => stale_copy,
}

/// The other node becomes primary; the application goes on there.
fn fail_over(stage: &mut Stage) {
    let order = [stage.secondary(), stage.primary];
    stage.find_primary(order);
    stage.work();
    stage.expect(AFTER, "on the other node");
}

fn secondary_killed(stage: &mut Stage) -> Option<String> {
    let other = stage.secondary();
    stage.kill(other);
    stage.expect(AFTER, "without the secondary");
    stage.start_secondary(other);
    stage.expect(AFTER, "with the secondary again");
    None
}

fn primary_killed(stage: &mut Stage) -> Option<String> {
    let old = stage.primary;
    stage.kill(old);
    fail_over(stage);
    if stage.primary != old {
        stage.start_secondary(old);
        stage.expect(AFTER, "while the old primary returns");
    }
    None
}

fn primary_restarted(stage: &mut Stage) -> Option<String> {
    let primary = stage.primary;
    stage.kill(primary);
    stage.try_primary(primary).unwrap();
    stage.work();
    stage.expect(AFTER, "after the restart");
    None
}

fn both_killed(stage: &mut Stage) -> Option<String> {
    let (primary, other) = (stage.primary, stage.secondary());
    for number in match stage.dice.percent(50) {
        true => [primary, other],
        false => [other, primary],
    } {
        stage.kill(number);
    }
    stage.try_primary(primary).unwrap();
    stage.work();
    stage.start_secondary(other);
    stage.expect(AFTER, "after the restart of both");
    None
}

fn secondary_frozen(stage: &mut Stage) -> Option<String> {
    let other = stage.secondary();
    let at = Instant::now();
    stage.freeze(other);
    let took = stage.goes_on_after(at);
    stage.expect(AFTER, "without the frozen one");
    stage.thaw(other);
    stage.expect(AFTER, "with it again");
    Some(format!(
        "the application went on after {} ms",
        took.as_millis()
    ))
}

fn primary_frozen(stage: &mut Stage) -> Option<String> {
    let (old, other) = (stage.primary, stage.secondary());
    stage.freeze(old);
    stage.wait_link(other, &["waiting"]);
    let at = Instant::now();
    if let Err(e) = stage.try_primary(other) {
        // It was being brought up to date.
        stage.thaw(old);
        stage.witness.ask(old);
        return Some(format!("not promoted: {e:#}"));
    }
    let took = at.elapsed();
    stage.mark(other);
    stage.thaw(old);
    stage.wait_link(old, &["holding"]);
    stays_silent(stage);
    give_up(stage, old);
    Some(format!("promoted in {} ms", took.as_millis()))
}

/// Nothing more is acknowledged by a primary that holds. What its peer had confirmed
/// before may still come out first, and the application may hear of it a moment later.
fn stays_silent(stage: &Stage) {
    let is_silent = || {
        let before = stage.running().acknowledged();
        std::thread::sleep(Duration::from_millis(300));
        stage.running().acknowledged() == before
    };
    let silent = wait_until(PATIENCE, is_silent);
    assert!(silent, "acknowledged by a node that had no right to");
}

/// The old primary is ended, the application goes on where the new one is.
fn give_up(stage: &mut Stage, old: usize) {
    stage.running().mount_dies();
    let new = stage.primary;
    // It is the old one whose mount the application uses.
    stage.primary = old;
    stage.kill(old);
    stage.primary = new;
    stage.witness.ask(new);
    stage.pair.network().heal().unwrap();
    stage.work();
    stage.start_secondary(old);
    stage.expect(AFTER, "on the promoted node");
}

fn frozen_for_a_moment(stage: &mut Stage) -> Option<String> {
    let number = stage.dice.below(2) as usize;
    if number == stage.primary {
        stage.witness.ask_nobody();
    }
    stage.freeze(number);
    stage.pause(20, 700);
    stage.thaw(number);
    stage.witness.ask(stage.primary);
    stage.expect(AFTER, "after the moment");
    None
}

fn network_cut(stage: &mut Stage) -> Option<String> {
    stage.pair.network().cut().unwrap();
    goes_on_and_heals(stage)
}

fn cut_towards_secondary(stage: &mut Stage) -> Option<String> {
    stage.pair.network().silence(stage.primary).unwrap();
    goes_on_and_heals(stage)
}

fn cut_towards_primary(stage: &mut Stage) -> Option<String> {
    stage.pair.network().silence(stage.secondary()).unwrap();
    goes_on_and_heals(stage)
}

fn cable_pulled(stage: &mut Stage) -> Option<String> {
    let end = stage.dice.below(2) as usize;
    stage.pair.network().pull(end).unwrap();
    goes_on_and_heals(stage)
}

fn goes_on_and_heals(stage: &mut Stage) -> Option<String> {
    let took = stage.goes_on_after(Instant::now());
    stage.expect(AFTER, "without the peer");
    stage.pair.network().heal().unwrap();
    stage.expect(AFTER, "with the peer again");
    Some(format!(
        "the application went on after {} ms",
        took.as_millis()
    ))
}

fn cut_and_promoted(stage: &mut Stage) -> Option<String> {
    let (old, other) = (stage.primary, stage.secondary());
    stage.witness.be_silent(true);
    match stage.dice.below(3) {
        0 => stage.pair.network().cut(),
        n => stage.pair.network().silence(n as usize - 1),
    }
    .unwrap();
    stage.wait_link(old, &["holding"]);
    stage.wait_link(other, &["waiting"]);
    stage.witness.be_silent(false);
    if let Err(e) = stage.try_primary(other) {
        return Some(format!("not promoted: {e:#}"));
    }
    stage.mark(other);
    stays_silent(stage);
    give_up(stage, old);
    None
}

fn cut_for_a_moment(stage: &mut Stage) -> Option<String> {
    let before = stage.witness.granted();
    stage.pair.network().cut().unwrap();
    stage.pause(20, 900);
    stage.pair.network().heal().unwrap();
    stage.expect(AFTER, "after the moment");
    Some(bridged(stage, before))
}

fn flapping(stage: &mut Stage) -> Option<String> {
    let before = stage.witness.granted();
    for _ in 0..8 {
        match stage.dice.below(4) {
            0 => stage.pair.network().pull(0),
            1 => stage.pair.network().silence(0),
            2 => stage.pair.network().silence(1),
            _ => stage.pair.network().cut(),
        }
        .unwrap();
        stage.pause(10, 400);
        stage.pair.network().heal().unwrap();
        stage.pause(10, 300);
    }
    stage.expect(AFTER, "after all that");
    Some(bridged(stage, before))
}

fn bridged(stage: &Stage, before: u64) -> String {
    match stage.witness.granted() - before {
        0 => "bridged".into(),
        n => format!("went on alone {n} times"),
    }
}

fn secondary_full(stage: &mut Stage) -> Option<String> {
    let other = stage.secondary();
    stage.fill(other).unwrap();
    let dropped = || {
        let status = stage.node(stage.primary).status();
        status.is_ok_and(|s| s["link"] != "paired")
    };
    assert!(
        wait_until(PATIENCE, dropped),
        "the full disk is not noticed"
    );
    stage.expect(AFTER, "beside a full peer");
    stage.pause(1, 300);
    stage.free(other);
    stage.expect(AFTER, "with the peer again");
    None
}

fn primary_full(stage: &mut Stage) -> Option<String> {
    let primary = stage.primary;
    let tally = stage.running().tally().clone();
    let before = tally.full();
    stage.running().disk_may_be_full(true);
    stage.fill(primary).unwrap();
    let told = || tally.full() >= before + 20;
    assert!(wait_until(PATIENCE, told), "the application is not told");
    stage.free(primary);
    stage.expect(AFTER, "with space again");
    stage.running().disk_may_be_full(false);
    Some(format!("refused {}", tally.full() - before))
}

/// The secondary is away while much is written, and returns.
fn resync_begins(stage: &mut Stage) {
    let other = stage.secondary();
    stage.kill(other);
    let far = 300 + stage.dice.below(600);
    stage.expect(far, "without the secondary");
    stage.start_secondary(other);
    // It may be over before it is seen.
    let begun = || {
        let status = stage.node(stage.primary).status();
        let words = ["comparing", "syncing", "paired"];
        status.is_ok_and(|s| s["link"].as_str().is_some_and(|l| words.contains(&l)))
    };
    assert!(wait_until(PATIENCE, begun), "no resync begins");
    let most = *stage.dice.pick(&[1, 30, 250]);
    stage.pause(0, most);
}

fn target_killed(stage: &mut Stage) -> Option<String> {
    resync_begins(stage);
    let other = stage.secondary();
    let seen = stage.node(stage.primary).status().unwrap()["link"].clone();
    stage.kill(other);
    stage.expect(AFTER, "after the target's death");
    stage.start_secondary(other);
    stage.expect(AFTER, "with the target again");
    Some(format!("killed while {seen}"))
}

fn source_killed(stage: &mut Stage) -> Option<String> {
    resync_begins(stage);
    let (primary, other) = (stage.primary, stage.secondary());
    let seen = stage.node(primary).status().unwrap()["link"].clone();
    stage.kill(primary);
    if seen != "paired" && stage.dice.percent(50) {
        // A half-resynced copy is refused; one that was ready meanwhile is not.
        if stage.try_primary(other).is_ok() {
            // It says so a moment after it has noted it.
            let whole = || {
                let said = stage.node(other).log_text();
                said.rfind("this copy is up to date") > said.rfind("this copy is being")
            };
            assert!(wait_until(PATIENCE, whole), "a half copy was promoted");
        }
    }
    if stage.primary != other || !stage.node(other).is_running() {
        stage.primary = primary;
    }
    if stage.primary == primary {
        stage.try_primary(primary).unwrap();
    }
    stage.work();
    stage.expect(AFTER, "after the source's death");
    Some(format!("killed while {seen}"))
}

fn killed_in_promotion(stage: &mut Stage) -> Option<String> {
    let (old, new) = (stage.primary, stage.secondary());
    stage.kill(old);
    if !stage.witness.is_allowed(new) {
        stage.try_primary(old).unwrap();
        stage.work();
        return Some("the secondary was not up to date".into());
    }
    let done = stage.meanwhile(new, Request::Promote { force: false });
    stage.pause(0, 25);
    stage.kill(new);
    done();
    // Whoever it is now: the promoted one if it came so far, else the old one.
    stage.find_primary([new, old]);
    let now = stage.node(stage.primary).name();
    stage.work();
    stage.expect(AFTER, "after the promotion that broke off");
    Some(format!("{now} of {} goes on", stage.node(new).name()))
}

fn killed_in_demotion(stage: &mut Stage) -> Option<String> {
    let (old, new) = (stage.primary, stage.secondary());
    stage.rest();
    let victim = stage.dice.below(2) as usize;
    stage.witness.ask_nobody();
    let done = stage.meanwhile(old, Request::Demote { force: false });
    stage.pause(0, 40);
    stage.kill(victim);
    done();
    let order = match victim == old {
        true => [new, old],
        false => [old, new],
    };
    stage.find_primary(order);
    stage.work();
    stage.expect(AFTER, "after the demotion that broke off");
    let (died, now) = (stage.node(victim).name(), stage.node(stage.primary).name());
    Some(format!("{died} died, {now} goes on"))
}

fn killed_in_checkpoint(stage: &mut Stage) -> Option<String> {
    let (primary, victim) = (stage.primary, stage.dice.below(2) as usize);
    let done = [0, 1].map(|number| stage.meanwhile(number, Request::Checkpoint));
    stage.pause(0, 25);
    stage.kill(victim);
    for done in done {
        done();
    }
    if victim == primary {
        fail_over(stage);
    } else {
        stage.expect(AFTER, "without the secondary");
    }
    None
}

fn secondary_stopped(stage: &mut Stage) -> Option<String> {
    let other = stage.secondary();
    stage.stop(other);
    stage.expect(AFTER, "without the secondary");
    stage.start_secondary(other);
    stage.expect(AFTER, "with the secondary again");
    None
}

fn primary_stopped(stage: &mut Stage) -> Option<String> {
    let (primary, other) = (stage.primary, stage.secondary());
    stage.stop(primary);
    match stage.dice.percent(50) {
        true => stage.find_primary([other, primary]),
        false => stage.find_primary([primary, other]),
    }
    stage.work();
    stage.expect(AFTER, "after the stop");
    None
}

fn switchover(stage: &mut Stage) -> Option<String> {
    let (old, new) = (stage.primary, stage.secondary());
    let at = Instant::now();
    let under_load = stage.dice.percent(60);
    match under_load {
        true => stage.running().mount_dies(),
        false => stage.rest(),
    }
    stage.witness.ask_nobody();
    stage.node(old).demote(under_load).unwrap();
    stage.rest();
    stage.find_primary([new, old]);
    stage.work();
    stage.expect(AFTER, "after the switchover");
    Some(format!(
        "in {} ms, under load: {under_load}",
        at.elapsed().as_millis()
    ))
}

/// A secondary that was away while the primary went on is never made primary without force.
fn stale_copy(stage: &mut Stage) -> Option<String> {
    let (primary, other) = (stage.primary, stage.secondary());
    stage.kill(other);
    stage.expect(AFTER, "without the secondary");
    stage.mark(primary);
    stage.kill(primary);
    // Told to, against all advice of the witness.
    stage.refuses(other);
    stage.start_secondary(other);
    stage.refuses(other);
    stage.try_primary(primary).unwrap();
    stage.work();
    stage.expect(AFTER, "with the good copy");
    None
}
