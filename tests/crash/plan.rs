//! Which points are tried: all of them, or as many as time allows, from a seed.
//!
//! `TWINFOLD_CRASH=all` tries every point; any other value tries the points whose
//! description contains it; `list` only prints the scenes. `TWINFOLD_CRASH_SECONDS` is how long each test goes on with
//! points of its scenes in turn, `TWINFOLD_CRASH_SEED` another sample.

use std::time::{Duration, Instant};

use harness::Dice;

/// Seconds for each test, in which it goes on with random points: all tests together stay
/// below two minutes, two at a time.
const SECONDS: u64 = 6;

/// Steps that no scene has.
const MOST: u64 = 500;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

/// Tries points of `scenes`. `most` is about how many points a scene has; `point` tries
/// the one behind so many steps, in a way that the seed decides, and returns whether
/// there are later ones.
pub(crate) fn run<S: std::fmt::Debug>(
    test: &str,
    scenes: &[S],
    most: u64,
    mut point: impl FnMut(&S, u64, u64) -> bool,
) {
    let wanted = std::env::var("TWINFOLD_CRASH").unwrap_or_default();
    let seed = number("TWINFOLD_CRASH_SEED").unwrap_or(20_261_128);
    // One point as it was described.
    let exact: Option<u64> = wanted
        .rsplit_once(" with ")
        .and_then(|(_, seed)| seed.parse().ok());
    if wanted == "list" {
        scenes.iter().for_each(|s| println!("{test}: {s:?} behind"));
        return;
    }
    let begun = Instant::now();
    let mut tried = 0;
    let mut one = |scene: &S, steps: u64, seed: u64| {
        let what = format!("{test}: {scene:?} behind {steps} with {seed}");
        if !wanted.is_empty() && wanted != "all" && !what.contains(&wanted) {
            // Another one of this scene may be meant.
            return steps < MOST;
        }
        println!("{what}");
        tried += 1;
        point(scene, steps, seed)
    };
    if wanted.is_empty() {
        let time = Duration::from_secs(number("TWINFOLD_CRASH_SECONDS").unwrap_or(SECONDS));
        let mut dice = Dice::new(seed ^ test.len() as u64);
        let mut order: Vec<&S> = scenes.iter().collect();
        let mut next = 0;
        while next == 0 || begun.elapsed() < time {
            // Each of them once, in an order of its own, before any comes again.
            let at = next % order.len();
            let other = at + dice.below((order.len() - at) as u64) as usize;
            order.swap(at, other);
            one(order[at], dice.below(most), dice.draw());
            next += 1;
        }
    } else {
        for (n, scene) in scenes.iter().enumerate() {
            // The end comes long before; a scene that never ends is a failure.
            for steps in 0.. {
                assert!(steps <= MOST, "{scene:?} does not end");
                let seed = exact.unwrap_or(seed ^ (n as u64) << 32 ^ steps);
                if !one(scene, steps, seed) {
                    break;
                }
            }
        }
    }
    println!("{test}: {tried} points in {} s", begun.elapsed().as_secs());
    assert!(tried > 0, "no point is called {wanted:?}");
}
