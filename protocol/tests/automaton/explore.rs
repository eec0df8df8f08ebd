//! The search: which states there are, and which of them are known to be good.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Mutex;

use super::PATIENCE;
use super::promises::RETRY;
use super::steps::Step;
use super::world::World;

/// Rounds in which a pair that is left alone has done everything, also what is tried again.
const ROUNDS: usize = 60;

/// What stands for a state: of millions, two have the same number once in a million runs.
fn number(world: &World, round: usize) -> u64 {
    let mut hasher = DefaultHasher::new();
    (world, round).hash(&mut hasher);
    hasher.finish()
}

/// Does this for each of them, on all processors.
pub(crate) fn in_parallel<T: Send>(all: Vec<T>, each: impl Fn(T) + Sync) {
    let left = Mutex::new(all.into_iter());
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let next = left.lock().unwrap().next();
                    let Some(next) = next else { return };
                    each(next);
                }
            });
        }
    });
}

/// States of a repaired pair from which it comes together and survives every loss.
#[derive(Debug, Default)]
pub(crate) struct Checked(HashSet<u64>);

impl Checked {
    /// What is wrong with a state, or with what comes of it when everything is repaired.
    fn fails(&mut self, world: &World) -> Option<String> {
        let mut healed = world.at_rest();
        healed.repair();
        let mut passed = Vec::new();
        for round in 0..PATIENCE {
            if healed.is_together() {
                break;
            }
            let number = number(&healed, round % RETRY);
            if self.0.contains(&number) {
                self.0.extend(passed);
                return None;
            }
            passed.push(number);
            healed.operate(round);
            healed.round(round, &[]);
        }
        if let Some(wrong) = healed.wrong() {
            return Some(format!("after the repair: {wrong}: {}", healed.brief()));
        }
        if !healed.is_together() {
            let (from, to) = (world.brief(), healed.brief());
            return Some(format!("no progress after the repair of {from}\nto {to}"));
        }
        let together = number(&healed, RETRY);
        if self.0.insert(together)
            && let Some(wrong) = survives(&healed)
        {
            self.0.remove(&together);
            return Some(format!("after the repair of {}\n{wrong}", world.brief()));
        }
        self.0.extend(passed);
        None
    }
}

/// With an arbiter, the loss of one node of a pair that is together never ends the service,
/// however the pair came there.
fn survives(together: &World) -> Option<String> {
    let mut world = together.clone();
    // What is tried again from time to time is done.
    (0..ROUNDS).for_each(|round| world.round(round, &[]));
    if let Some(wrong) = world.wrong() {
        return Some(format!("together, and then {wrong}: {}", world.brief()));
    }
    if !world.is_as_configured() {
        return Some(format!("the default primary follows: {}", world.brief()));
    }
    if !world.has_arbiter() || !world.takes_over() {
        return None;
    }
    let primary = world.primary()?;
    let losses = [
        vec![Step::Crash(primary)],
        vec![Step::Crash(1 - primary)],
        vec![Step::Freeze(primary, true)],
        vec![Step::Freeze(1 - primary, true)],
        vec![Step::Hang(1 - primary, true)],
        vec![Step::Deaf(primary, true)],
        vec![Step::Deaf(1 - primary, true)],
        vec![Step::DiskFails(primary)],
        vec![Step::DiskFails(primary), Step::Crash(primary)],
        vec![Step::DiskFails(primary), Step::Cut(true)],
    ];
    let never: Vec<_> = (0..2)
        .flat_map(|n| {
            let node = [Step::Boot(n), Step::Freeze(n, false), Step::Hang(n, false)];
            let network = [Step::Repair(n), Step::Deaf(n, false)];
            node.into_iter().chain(network)
        })
        .chain([Step::Cut(false)])
        .collect();
    losses.into_iter().find_map(|loss| {
        let mut world = world.clone();
        world.allow(loss.len());
        loss.iter().for_each(|step| world.take(*step));
        for round in 0..ROUNDS {
            world.round(round, &never);
            if let Some(wrong) = world.wrong() {
                return Some(format!("{loss:?}: {wrong}: {}", world.brief()));
            }
        }
        (!world.is_served()).then(|| format!("{loss:?}: nobody serves: {}", world.brief()))
    })
}

fn wrong(world: &World) -> Option<String> {
    let wrong = world.wrong()?;
    Some(format!("{wrong}: {}", world.brief()))
}

/// All histories of up to `depth` steps; how many states were seen, and the first failure.
pub(crate) fn all_histories(start: World, depth: usize) -> (usize, Option<String>) {
    let mut checked = Checked::default();
    let mut seen = HashSet::from([number(&start, 0)]);
    let mut layer = vec![(start, Vec::<Step>::new())];
    for _ in 0..depth {
        let mut next = Vec::new();
        for (world, path) in layer {
            for step in world.steps(true) {
                let mut after = world.clone();
                after.take(step);
                if !seen.insert(number(&after, 0)) {
                    continue;
                }
                let mut path = path.clone();
                path.push(step);
                if let Some(wrong) = wrong(&after).or_else(|| checked.fails(&after)) {
                    return (seen.len(), Some(format!("{path:?}: {wrong}")));
                }
                next.push((after, path));
            }
        }
        layer = next;
    }
    (seen.len(), None)
}

/// What is wrong with a random history from a seed.
pub(crate) fn one_history(
    start: &World,
    seed: u64,
    length: usize,
    checked: &mut Checked,
) -> Option<String> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as usize % below
    };
    let mut world = start.clone();
    let mut path = Vec::new();
    for _ in 0..length {
        // Faults are rarer than what follows from them, and tries again rarer than both.
        let (faults, retries) = (random(6) == 0, random(10) == 0);
        let mut steps = world.steps(faults);
        steps.retain(|s| retries || !matches!(s, Step::Retry(_)));
        if steps.is_empty() {
            continue;
        }
        let step = steps[random(steps.len())];
        world.take(step);
        path.push(step);
        if let Some(wrong) = wrong(&world) {
            return Some(format!("seed {seed}, {path:?}: {wrong}"));
        }
    }
    let wrong = checked.fails(&world)?;
    Some(format!("seed {seed}, {path:?}: {wrong}"))
}
