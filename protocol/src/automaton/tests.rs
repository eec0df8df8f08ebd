//! What single situations lead to; all others are in `tests/automaton.rs`.

use super::*;
use crate::ids::{ModuleId, SessionId};

fn secondary_whose_power_was_cut(recent: bool, arbiter: Arbiter) -> Automaton {
    let config = Config {
        side: Side::Odd,
        arbiter,
        isolation: Isolation::Alone,
        failover: true,
        default_prim: None,
        rules: 1,
    };
    let state = CopyState {
        module: ModuleId(1),
        current: Generation(1),
        cut: true,
        ..CopyState::default()
    };
    let copy = Copy {
        state,
        was: Some(Role::Secondary),
        shared: true,
        current: false,
        session: Some(SessionId(1)),
        recent,
    };
    let mut automaton = Automaton::new(config, copy, None).has_agreed(Some(1));
    automaton.handle(Event::Want(Wanted::Running));
    automaton.handle(Event::Silent);
    automaton
}

#[test]
fn a_node_that_lost_its_power_goes_on_without_a_silent_peer_only_if_the_copies_were_equal_recently()
{
    let up = Event::DriverUp(Role::Secondary);
    for arbiter in [Arbiter::None, Arbiter::Asked] {
        let effects = secondary_whose_power_was_cut(false, arbiter).handle(up.clone());
        assert!(effects.iter().all(|e| *e == Effect::Tell), "{effects:?}");
    }
    let effects = secondary_whose_power_was_cut(true, Arbiter::None).handle(up.clone());
    assert!(
        effects.contains(&Effect::Promote(Claim::Right)),
        "{effects:?}"
    );
    // And with somebody to ask, only if that one lets it.
    let effects = secondary_whose_power_was_cut(true, Arbiter::Asked).handle(up);
    assert!(effects.contains(&Effect::Ask(Generation(1))), "{effects:?}");
    assert!(
        !effects.contains(&Effect::Promote(Claim::Right)),
        "{effects:?}"
    );
}

#[test]
fn an_answer_that_comes_when_the_nodes_are_together_again_is_none_for_the_next_separation() {
    for answer in [Event::Denied(Generation(1)), Event::Unreachable] {
        for late in [false, true] {
            let mut automaton = secondary_whose_power_was_cut(true, Arbiter::Asked);
            let ask = Effect::Ask(Generation(1));
            let asked = automaton.handle(Event::DriverUp(Role::Secondary));
            assert!(asked.contains(&ask), "{asked:?}");
            let together = Event::Link(Link::Paired);
            let order = match late {
                true => [together, answer.clone()],
                false => [answer.clone(), together],
            };
            for event in order {
                automaton.handle(event);
            }
            automaton.handle(Event::Released(Generation(1)));
            let effects = automaton.handle(Event::Link(Link::None));
            assert!(effects.contains(&ask), "{answer:?} {late} {effects:?}");
        }
    }
}

#[test]
fn with_failover_off_only_a_peer_that_gives_its_role_is_followed_by_this_node() {
    let state = CopyState {
        module: ModuleId(1),
        current: Generation(1),
        up_to_date: true,
        ..CopyState::default()
    };
    let config = |side| Config {
        side,
        arbiter: Arbiter::None,
        isolation: Isolation::Wait,
        failover: false,
        default_prim: None,
        rules: 1,
    };
    let copy = |was| Copy {
        state: state.clone(),
        was: Some(was),
        shared: true,
        current: false,
        session: Some(SessionId(1)),
        recent: false,
    };
    // Whatever it is shown as: one that waits for a rule's sake is stopped.
    let held = View {
        state: State::Wait,
        willing: false,
        ..Automaton::new(config(Side::Even), copy(Role::Primary), None).view()
    };
    for (view, asks) in [
        (held.clone(), None),
        (
            View {
                swaps: true,
                ..held
            },
            Some(Generation(1)),
        ),
    ] {
        let mut automaton = Automaton::new(config(Side::Odd), copy(Role::Secondary), None);
        automaton.handle(Event::Want(Wanted::Running));
        automaton.handle(Event::Heard(view));
        automaton.handle(Event::DriverUp(Role::Secondary));
        assert_eq!(automaton.view().asks, asks);
    }
}
