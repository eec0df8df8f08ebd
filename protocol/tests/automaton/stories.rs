//! Single histories that went wrong once, or would have.

use twinfold_protocol::automaton::{Arbiter, Effect, Isolation, Reason, Wanted};
use twinfold_protocol::ids::Side;

use super::promises::RETRY;
use super::steps::Step;
use super::world::{Judge, Setup, World};

/// Rounds in which everything that is going to happen has happened.
const ROUNDS: usize = 100;

fn paired(arbiter: Arbiter) -> (World, usize, usize) {
    let world = World::paired(arbiter, Isolation::Wait, 20, None);
    let primary = world.primary().unwrap();
    (world, primary, 1 - primary)
}

/// Everything that can happen without these steps does, and nothing is wrong at any time.
fn go_on(world: &mut World, but: &[Step]) {
    for round in 0..ROUNDS {
        world.round(round, but);
        assert_eq!(world.wrong(), None, "{}", world.brief());
    }
}

#[test]
fn a_word_typed_on_a_node_that_serves_or_follows_has_no_effect_at_any_time() {
    for word in [Wanted::Prim(true), Wanted::Prim(false), Wanted::Second] {
        for told in 0..2 {
            let (mut world, primary, secondary) = paired(Arbiter::Asked);
            world.take(Step::Want(told, word));
            assert_eq!(world.wanted(told), Wanted::Running);
            // Separated, both ask, and one gets it: no matter who was told what.
            world.take(Step::Cut(true));
            world.take(Step::Lost(primary));
            world.take(Step::Lost(secondary));
            world.take(Step::Silent(secondary));
            world.take(Step::Silent(primary));
            for n in [primary, secondary] {
                assert_eq!(world.doing(n), [Effect::Ask(world.generation(n))]);
            }
            go_on(&mut world, &[Step::Cut(false)]);
            world.settle(ROUNDS);
            assert!(world.is_together(), "{}", world.brief());
        }
    }
}

#[test]
fn a_stale_copy_is_not_promoted_by_a_word_that_was_typed_before() {
    let (mut world, primary, secondary) = paired(Arbiter::Asked);
    // The secondary is behind, and in the middle of its resync.
    world.take(Step::Crash(secondary));
    let resync = Step::Resynced;
    go_on(&mut world, &[Step::Boot(secondary)]);
    world.take(Step::Write(primary));
    go_on(&mut world, &[resync]);
    world.take(Step::Want(secondary, Wanted::Prim(true)));
    world.take(Step::Crash(primary));
    go_on(&mut world, &[resync, Step::Boot(primary)]);
    assert_eq!(world.primary(), None, "{}", world.brief());
}

#[test]
fn roles_that_could_not_be_exchanged_when_it_was_asked_for_are_not_later() {
    for told in 0..2 {
        let (mut world, primary, secondary) = paired(Arbiter::Asked);
        world.take(Step::Crash(secondary));
        go_on(&mut world, &[Step::Boot(secondary)]);
        world.take(Step::Boot(secondary));
        world.take(Step::Swap(told));
        world.settle(ROUNDS);
        go_on(&mut world, &[]);
        assert_eq!(world.primary(), Some(primary), "{}", world.brief());
    }
}

#[test]
fn a_peer_that_is_heard_and_whose_disk_hangs_for_ever_does_not_end_the_service() {
    let (mut world, primary, secondary) = paired(Arbiter::Asked);
    world.take(Step::Hang(secondary, true));
    go_on(&mut world, &[Step::Hang(secondary, false)]);
    assert!(world.is_served(), "{}", world.brief());
    assert!(world.acknowledges(primary));
    world.settle(ROUNDS);
    assert!(world.is_together(), "{}", world.brief());
}

#[test]
fn what_the_arbiter_granted_in_vain_does_not_decide_the_next_separation() {
    for (first, lost) in [(0, false), (1, false), (0, true), (1, true)] {
        for dies in 0..2 {
            let (mut world, primary, secondary) = paired(Arbiter::Asked);
            world.take(Step::Cut(true));
            for n in [primary, secondary] {
                world.take(Step::Lost(n));
                world.take(Step::Silent(n));
            }
            // The network is back and the session goes on before the answers come.
            world.take(Step::Cut(false));
            world.take(Step::Connect);
            for n in [first, 1 - first] {
                let ask = world
                    .doing(n)
                    .iter()
                    .position(|e| matches!(e, Effect::Ask(_)));
                world.take(Step::Done(n, ask.unwrap(), !lost));
            }
            go_on(&mut world, &[]);
            assert!(world.is_together(), "{}", world.brief());
            assert_eq!(world.primary(), Some(primary), "nobody went on");
            world.take(Step::Crash(dies));
            go_on(&mut world, &[Step::Boot(dies)]);
            assert!(world.is_served(), "{dies} died: {}", world.brief());
        }
    }
}

#[test]
fn nodes_with_different_rules_do_not_both_go_on() {
    let others = [
        (Arbiter::None, Isolation::Alone),
        (Arbiter::None, Isolation::Wait),
    ];
    for (arbiter, isolation) in others {
        for (other, told, restarted) in [
            (0, false, false),
            (1, false, false),
            (0, true, false),
            (1, true, false),
            (0, true, true),
            (1, true, true),
        ] {
            let (mut world, primary, secondary) = paired(Arbiter::Asked);
            world.take(Step::Configure(other, arbiter, isolation));
            if told {
                go_on(&mut world, &[]);
            }
            world.take(Step::Cut(true));
            if restarted {
                world.take(Step::Crash(secondary));
                world.take(Step::Boot(secondary));
            }
            go_on(&mut world, &[Step::Cut(false)]);
            if told {
                assert!(!world.acknowledges(primary), "{}", world.brief());
            }
            // Equal again, they go on as ever.
            world.take(Step::Configure(other, Arbiter::Asked, Isolation::Wait));
            world.settle(ROUNDS);
            assert!(world.is_together(), "{}", world.brief());
        }
    }
}

#[test]
fn the_application_of_a_node_whose_disk_has_failed_moves_to_the_one_with_the_data() {
    for failover in [true, false] {
        let (mut world, primary, secondary) = paired(Arbiter::Asked);
        world.take(Step::Write(primary));
        world.no_failover(!failover);
        world.take(Step::DiskFails(primary));
        assert!(world.acknowledges(primary), "it works at the peer");
        go_on(&mut world, &[Step::Repair(primary)]);
        if !failover {
            assert!(world.is_served() && world.acknowledges(primary));
            world.take(Step::Swap(secondary));
            go_on(&mut world, &[Step::Repair(primary)]);
        }
        assert!(world.is_served(), "{}", world.brief());
        assert!(world.acknowledges(secondary), "{}", world.brief());
        world.settle(ROUNDS);
        assert!(world.is_together(), "{}", world.brief());
        assert_eq!(world.primary(), Some(secondary));
    }
}

#[test]
fn a_right_that_comes_after_the_peer_took_over_from_a_failed_disk_is_none() {
    let (mut world, primary, secondary) = paired(Arbiter::Asked);
    world.take(Step::Cut(true));
    world.take(Step::Lost(primary));
    world.take(Step::Lost(secondary));
    world.take(Step::Silent(primary));
    assert!(matches!(world.doing(primary), [Effect::Ask(_)]));
    world.take(Step::Cut(false));
    world.take(Step::Connect);
    world.take(Step::DiskFails(primary));
    world.take(Step::Done(primary, 0, true));
    // The application moves, and writes there; the disk comes back with what was on it.
    go_on(&mut world, &[Step::Repair(primary)]);
    world.take(Step::Write(secondary));
    let apart = [Step::Connect, Step::Resynced];
    go_on(&mut world, &apart);
    world.take(Step::Want(secondary, Wanted::Stopped));
    go_on(&mut world, &apart);
    assert!(!world.is_served(), "{}", world.brief());
    world.settle(ROUNDS);
    assert!(world.is_together(), "{}", world.brief());
}

#[test]
fn a_copy_that_its_power_cut_took_out_does_not_count_itself_in_again() {
    for dies in [false, true] {
        let (world, primary, secondary) = paired(Arbiter::Asked);
        let mut world = world.with_syncdelta();
        world.take(Step::Write(primary));
        world.take(Step::Arbiter(false));
        world.take(Step::PowerCut(primary));
        // The other one goes on with its consent alone, and they do not become equal.
        let apart = [Step::Arbiter(true), Step::Connect, Step::Resynced];
        go_on(&mut world, &apart);
        assert!(world.acknowledges(secondary), "{}", world.brief());
        world.take(Step::Write(secondary));
        world.take(Step::Cut(true));
        if dies {
            world.take(Step::Crash(secondary));
        }
        world.take(Step::Arbiter(true));
        go_on(&mut world, &[Step::Cut(false), Step::Boot(secondary)]);
        assert!(!world.acknowledges(primary), "{}", world.brief());
        world.settle(ROUNDS);
        assert!(world.is_together(), "{}", world.brief());
        assert_eq!(world.primary(), Some(secondary));
    }
}

#[test]
fn what_was_equal_recently_goes_on_alone_after_a_power_cut_of_both() {
    for first in 0..2 {
        let (world, _, _) = paired(Arbiter::Asked);
        let mut world = world.with_syncdelta();
        world.take(Step::PowerCut(first));
        world.take(Step::PowerCut(1 - first));
        go_on(&mut world, &[Step::Boot(1 - first)]);
        assert!(world.acknowledges(first), "{}", world.brief());
        world.settle(ROUNDS);
        assert!(world.is_together(), "{}", world.brief());
        assert_eq!(world.primary(), Some(first));
    }
}

#[test]
fn a_disk_that_comes_back_with_what_was_on_it_is_not_recent() {
    let (world, primary, secondary) = paired(Arbiter::Asked);
    let mut world = world.with_syncdelta();
    world.take(Step::DiskFails(primary));
    go_on(&mut world, &[Step::Repair(primary)]);
    world.take(Step::Write(secondary));
    world.take(Step::Crash(secondary));
    go_on(&mut world, &[Step::Boot(secondary)]);
    assert!(!world.acknowledges(primary), "{}", world.brief());
    world.settle(ROUNDS);
    assert!(world.is_together(), "{}", world.brief());
}

#[test]
fn a_silent_daemon_decides_nothing_while_the_drivers_are_together() {
    let (mut world, primary, secondary) = paired(Arbiter::Asked);
    for n in [secondary, primary] {
        world.take(Step::Silent(n));
        assert_eq!(world.doing(n), []);
    }
    world.take(Step::Write(primary));
    assert!(world.is_together(), "{}", world.brief());
    go_on(&mut world, &[]);
    assert_eq!(world.primary(), Some(primary), "{}", world.brief());
    assert!(world.is_together(), "{}", world.brief());
}

#[test]
fn processes_that_died_and_run_again_before_the_arbiter_has_answered_leave_one_that_serves() {
    for dies in 0..2 {
        for silent_first in [true, false] {
            for granted in [true, false] {
                let (mut world, primary, _) = paired(Arbiter::Asked);
                world.take(Step::Write(primary));
                world.take(Step::Crash(dies));
                // Both are noticed at once, in any order.
                let mut noticed = [Step::Silent(1 - dies), Step::Lost(1 - dies)];
                if !silent_first {
                    noticed.reverse();
                }
                noticed.into_iter().for_each(|step| world.take(step));
                let left = world.generation(1 - dies);
                assert_eq!(world.doing(1 - dies), [Effect::Ask(left)]);
                world.take(Step::Boot(dies));
                world.take(Step::Arrive(1 - dies));
                world.take(Step::Done(1 - dies, 0, granted));
                go_on(&mut world, &[]);
                assert!(world.is_together(), "{}", world.brief());
            }
        }
    }
}

fn of(setup: Setup) -> (World, usize, usize) {
    let world = World::of(setup, 20, None);
    let primary = world.primary().unwrap();
    (world, primary, 1 - primary)
}

#[test]
fn roles_are_exchanged_where_nobody_takes_over_by_itself_and_a_lost_primary_is_left_to_the_operator()
 {
    let setup = Setup {
        failover: false,
        ..Setup::new(Arbiter::Asked, Isolation::Wait)
    };
    for told in 0..2 {
        let (mut world, primary, secondary) = of(setup);
        world.take(Step::Swap(told));
        go_on(&mut world, &[]);
        assert!(world.is_together(), "{}", world.brief());
        assert_eq!(world.primary(), Some(secondary), "{}", world.brief());
        // Neither a crash nor a stop gives it back.
        for loss in [
            Step::Crash(secondary),
            Step::Want(secondary, Wanted::Stopped),
        ] {
            let mut world = world.clone();
            world.take(loss);
            go_on(&mut world, &[Step::Boot(secondary)]);
            assert!(!world.acknowledges(primary), "{}", world.brief());
        }
    }
}

#[test]
fn a_default_primary_gets_its_role_where_nobody_takes_over_by_itself() {
    let setup = Setup {
        failover: false,
        default_prim: Some(Side::Odd),
        ..Setup::new(Arbiter::None, Isolation::Wait)
    };
    let (mut world, primary, _) = of(setup);
    assert!(world.is_as_configured(), "{}", world.brief());
    world.take(Step::Crash(primary));
    go_on(&mut world, &[]);
    assert!(
        world.is_together() && world.is_as_configured(),
        "{}",
        world.brief()
    );
}

#[test]
fn what_a_witness_that_answers_both_has_granted_is_of_the_past_once_the_peer_went_on() {
    for dies in [false, true] {
        let setup = Setup {
            judge: Judge::Ping,
            ..Setup::new(Arbiter::Asked, Isolation::Wait)
        };
        let (mut world, primary, secondary) = of(setup);
        world.take(Step::Cut(true));
        for n in [primary, secondary] {
            world.take(Step::Lost(n));
            world.take(Step::Silent(n));
            assert!(matches!(world.doing(n), [Effect::Ask(_)]));
        }
        // This one has it, and cannot use it any more.
        world.take(Step::Want(secondary, Wanted::Stopped));
        if dies {
            world.take(Step::KillDriver(secondary));
        }
        world.take(Step::Done(secondary, 0, true));
        go_on(&mut world, &[Step::Cut(false)]);
        // The other one has gone on, writes, and is stopped.
        world.take(Step::Write(primary));
        world.take(Step::Want(primary, Wanted::Stopped));
        go_on(&mut world, &[Step::Cut(false)]);
        world.take(Step::Cut(false));
        world.take(Step::Want(secondary, Wanted::Running));
        go_on(&mut world, &[]);
        assert!(!world.acknowledges(secondary), "{}", world.brief());
        world.settle(ROUNDS);
        assert!(world.is_together(), "{}", world.brief());
        assert_eq!(world.primary(), Some(primary));
    }
}

#[test]
fn a_node_that_gave_way_does_not_end_a_peer_that_is_slow_to_give_way_in_turn() {
    let setup = Setup {
        judge: Judge::Fence,
        ..Setup::new(Arbiter::Asked, Isolation::Wait)
    };
    let (mut world, primary, secondary) = of(setup);
    // It gives way to the one that is to have the role, which loses its power then.
    world.take(Step::Swap(primary));
    let taken = |world: &World| {
        let promotes = |e: &Effect| matches!(e, Effect::Promote(_));
        world.doing(secondary).iter().any(promotes)
    };
    for round in 0..ROUNDS {
        if taken(&world) {
            break;
        }
        world.round(round, &[]);
    }
    assert!(taken(&world), "{}", world.brief());
    world.take(Step::PowerCut(secondary));
    world.take(Step::Boot(secondary));
    // As soon as that is noted, its disk hangs: it does not give way in turn.
    for round in 0..ROUNDS {
        if world.nodes[secondary].disk.record.copy.cut {
            break;
        }
        world.round(round, &[]);
    }
    world.take(Step::Hang(secondary, true));
    let mut asked = false;
    for round in 0..3 * RETRY {
        world.round(round, &[Step::Hang(secondary, false)]);
        let asks = |e: &Effect| matches!(e, Effect::Ask(_));
        assert!(!world.doing(primary).iter().any(asks), "{}", world.brief());
        let shown = world.nodes[primary].automaton.as_ref().unwrap().shown();
        asked |= shown.2 == Reason::Asking;
    }
    assert!(asked, "{}", world.brief());
    world.settle(ROUNDS);
    assert!(world.is_together(), "{}", world.brief());
}

#[test]
fn what_was_granted_while_the_peer_was_away_is_not_used_when_it_is_back() {
    let setup = Setup {
        judge: Judge::Fence,
        ..Setup::new(Arbiter::Asked, Isolation::Wait)
    };
    let mut world = World::of(setup, 6, None);
    // The secondary is dead, and made sure to be; the primary's driver has died meanwhile.
    for step in [Step::Crash(1), Step::Lost(0), Step::Silent(0)] {
        world.take(step);
    }
    assert_eq!(world.doing(0), [Effect::Ask(world.generation(0))]);
    world.take(Step::KillDriver(0));
    while let Some(n) = (0..world.doing(0).len()).next_back() {
        world.take(Step::Done(0, n, true));
    }
    // The secondary is back, is not answered, and is about to end the other one: what that one
    // acknowledged meanwhile would be lost.
    for step in [
        Step::Boot(1),
        Step::Arrive(0),
        Step::Arrive(1),
        Step::Begin(1),
    ] {
        world.take(step);
    }
    world.take(Step::Done(1, 0, true));
    world.take(Step::Unanswered(1));
    assert_eq!(world.doing(1), [Effect::Ask(world.generation(1))]);
    world.take(Step::Retry(0));
    assert_eq!(world.doing(0), []);
    go_on(&mut world, &[]);
}
