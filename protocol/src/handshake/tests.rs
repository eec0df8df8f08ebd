//! The table, row by row and whole.

use super::*;

fn g(n: u128) -> Generation {
    Generation(n)
}

fn copy(current: u128, bases: &[u128], history: &[u128]) -> CopyState {
    CopyState {
        module: ModuleId(9),
        current: g(current),
        bases: bases.iter().map(|n| g(*n)).collect(),
        history: history.iter().map(|n| g(*n)).collect(),
        up_to_date: true,
        given_up: false,
        cut: false,
        gave_way: false,
        forced: false,
    }
}

fn sees(me: &CopyState, peer: &CopyState) -> Decision {
    decide((me, Role::Primary), (peer, Role::Secondary))
}

const FROM_ME: Decision = Decision::Resync {
    source: Which::Me,
    method: Method::Marks,
};

#[test]
fn a_copy_of_unknown_history_is_compared_with_its_peers_and_never_the_source() {
    let unknown = crate::lifecycle::Record::history_unknown(crate::ids::Epoch(2)).copy;
    let good = copy(3, &[2], &[2, 1]);
    let d = decide((&good, Role::Primary), (&unknown, Role::Secondary));
    assert_eq!(
        d,
        Decision::Resync {
            source: Which::Me,
            method: Method::Compare
        }
    );
    assert_eq!(
        decide((&unknown, Role::Secondary), (&good, Role::Primary)),
        d.mirrored()
    );
    for other in [&unknown, &CopyState::default()] {
        let d = decide((other, Role::Primary), (&unknown, Role::Secondary));
        assert!(!matches!(d, Decision::Resync { .. }), "{d:?}");
    }
    let adopted = unknown.adopt(ModuleId(9), g(3));
    assert!(!adopted.given_up && adopted.up_to_date);
}

#[test]
fn a_peer_that_was_away_is_resynced_from_the_marks() {
    let away = copy(1, &[], &[]);
    let alone = away.go_alone(g(2));
    assert_eq!(sees(&alone, &away), FROM_ME);
    assert_eq!(
        decide((&away, Role::Secondary), (&alone, Role::Primary)),
        FROM_ME.mirrored()
    );
}

#[test]
fn a_source_that_does_not_know_whether_the_resync_ended_keeps_both_bases() {
    let before = copy(1, &[], &[]);
    let source = before.go_alone(g(2));
    let adopted = before.adopt(ModuleId(9), g(2));
    // The connection broke around the end of the resync; the source goes on alone.
    let source = source.go_alone(g(3));
    assert_eq!(sees(&source, &before), FROM_ME);
    assert_eq!(sees(&source, &adopted), FROM_ME);
}

#[test]
fn going_on_twice_from_one_generation_is_a_split_brain() {
    let common = copy(1, &[], &[]);
    let (a, b) = (common.go_alone(g(2)), common.go_alone(g(3)));
    for role in [Role::Primary, Role::Secondary] {
        assert_eq!(
            decide((&a, Role::Primary), (&b, role)),
            Decision::SplitBrain
        );
    }
}

/// Whatever the failed node could still write, and as whatever it comes back.
#[test]
fn a_copy_whose_disk_failed_is_compared_whole_and_never_the_source() {
    let common = copy(1, &[], &[]);
    let heir = common.take_over(g(2));
    let mut behind = common.clone();
    behind.up_to_date = false;
    for failed in [common, behind] {
        let whole = Decision::Resync {
            source: Which::Me,
            method: Method::Compare,
        };
        assert_eq!(sees(&heir, &failed), whole);
        for (mine, theirs) in [
            (Role::Primary, Role::Primary),
            (Role::Secondary, Role::Primary),
            (Role::Secondary, Role::Secondary),
        ] {
            let decision = decide((&failed, theirs), (&heir, mine));
            assert!(!matches!(decision, Decision::Resync { .. }), "{decision:?}");
        }
    }
}

#[test]
fn an_old_copy_is_compared_whole() {
    let old = copy(1, &[], &[]);
    let new = copy(3, &[2], &[2, 1]);
    assert_eq!(
        sees(&new, &old),
        Decision::Resync {
            source: Which::Me,
            method: Method::Compare
        }
    );
}

#[test]
fn a_stale_primary_is_named_and_nothing_moves() {
    let old = copy(1, &[], &[]);
    let new = old.go_alone(g(2));
    assert_eq!(
        decide((&old, Role::Primary), (&new, Role::Primary)),
        Decision::StalePrimary {
            source: Which::Peer
        }
    );
    assert_eq!(
        decide((&old, Role::Primary), (&new, Role::Secondary)),
        Decision::SourceNotPrimary {
            source: Which::Peer
        }
    );
}

#[test]
fn an_interrupted_target_is_no_source() {
    let mut target = copy(2, &[1], &[1]);
    target.up_to_date = false;
    let other = copy(1, &[], &[]);
    assert_eq!(
        sees(&target, &other),
        Decision::SourceIncomplete { source: Which::Me }
    );
}

fn decide_both(a: (&CopyState, Role), b: (&CopyState, Role)) -> Decision {
    let decision = decide(a, b);
    assert_eq!(decision.mirrored(), decide(b, a), "{a:?} {b:?}");
    decision
}

const P: Role = Role::Primary;
const S: Role = Role::Secondary;

const COMPARED: Decision = Decision::Resync {
    source: Which::Me,
    method: Method::Compare,
};

/// One row for each way in which two nodes have come apart.
#[test]
fn every_way_to_come_apart_has_its_row() {
    let paired = copy(1, &[], &[]);
    let behind = CopyState {
        up_to_date: false,
        ..paired.clone()
    };
    let alone = paired.go_alone(g(2));
    let cases = [
        ("the secondary crashed", &alone, P, &paired, S, FROM_ME),
        (
            "the secondary left in order",
            &alone,
            P,
            &behind,
            S,
            FROM_ME,
        ),
        (
            "the primary crashed, the peer waits",
            &paired,
            P,
            &paired,
            S,
            FROM_ME,
        ),
        (
            "the primary crashed, the peer was promoted",
            &alone,
            P,
            &paired,
            S,
            FROM_ME,
        ),
        ("both crashed", &paired, S, &paired, S, Decision::NoPrimary),
        (
            "both crashed, one is back as primary",
            &alone,
            P,
            &paired,
            S,
            FROM_ME,
        ),
        (
            "the target crashed during the resync",
            &alone,
            P,
            &behind,
            S,
            FROM_ME,
        ),
        (
            "the source crashed during the resync, and is not primary yet",
            &alone,
            S,
            &behind,
            S,
            Decision::SourceNotPrimary { source: Which::Me },
        ),
        (
            "the source crashed around the end of the resync",
            &alone.go_alone(g(3)),
            P,
            &paired.adopt(ModuleId(9), g(2)),
            S,
            FROM_ME,
        ),
        (
            "the target was made the good copy in the middle of its resync",
            &behind.go_alone(g(3)),
            P,
            &alone,
            S,
            Decision::SplitBrain,
        ),
        (
            "the old primary does not know that its peer was promoted",
            &alone,
            P,
            &paired,
            P,
            Decision::StalePrimary { source: Which::Me },
        ),
    ];
    for (what, a, role_a, b, role_b, expected) in cases {
        assert_eq!(decide_both((a, role_a), (b, role_b)), expected, "{what}");
    }
}

#[test]
fn a_split_ends_from_the_marks_of_both_when_one_side_gives_up() {
    let common = copy(1, &[], &[]);
    let (kept, lost) = (common.go_alone(g(2)), common.go_alone(g(3)).give_up());
    assert_eq!(decide_both((&kept, P), (&lost, S)), FROM_ME);
    // Whatever happens before the resync has ended.
    let half = CopyState {
        up_to_date: false,
        ..lost.clone()
    };
    assert_eq!(decide_both((&kept, P), (&half, S)), FROM_ME);
    let kept = kept.go_alone(g(4));
    assert_eq!(decide_both((&kept, P), (&half, S)), FROM_ME);
    let adopted = half.adopt(kept.module, kept.current);
    assert!(!adopted.given_up);
    assert_eq!(decide_both((&kept, P), (&adopted, S)), FROM_ME);
    // Also the newer one may be given up for the older one.
    let (old, new) = (copy(1, &[], &[]), copy(2, &[1], &[1]).give_up());
    assert_eq!(decide_both((&old, P), (&new, S)), FROM_ME);
}

#[test]
fn marks_that_do_not_reach_back_to_the_common_generation_are_not_believed() {
    // The lost side was together with another copy since, and has forgotten its marks.
    let lost = copy(5, &[4], &[4, 1]).give_up();
    let kept = copy(2, &[1], &[1]);
    assert_eq!(decide_both((&kept, P), (&lost, S)), COMPARED);
    let stranger = copy(7, &[], &[]).give_up();
    assert_eq!(decide_both((&kept, P), (&stranger, S)), COMPARED);
}

#[test]
fn giving_up_both_copies_or_one_of_another_module_moves_nothing() {
    let a = copy(2, &[1], &[1]).give_up();
    let b = copy(3, &[1], &[1]).give_up();
    assert_eq!(decide_both((&a, S), (&b, S)), Decision::BothGivenUp);
    assert_eq!(decide_both((&a, P), (&b, S)), Decision::BothGivenUp);
    let nothing = CopyState::default();
    assert_eq!(decide_both((&nothing, S), (&a, S)), Decision::NoGoodCopy);
    let other = CopyState {
        module: ModuleId(8),
        ..b
    };
    let kept = copy(2, &[1], &[1]);
    assert_eq!(decide_both((&kept, P), (&other, S)), Decision::OtherModule);
    assert!(!nothing.give_up().given_up, "there is nothing to give up");
}

#[test]
fn a_peer_that_was_away_all_the_time_is_known_after_any_number_of_generations() {
    let away = copy(1, &[], &[]);
    let mut alone = away.clone();
    for n in 2..100 {
        alone = alone.go_alone(g(n));
        assert!(alone.bases.len() <= crate::limits::MAX_HISTORY);
        assert_eq!(decide_both((&alone, P), (&away, S)), FROM_ME, "{n}");
    }
}

/// Three generations from one: whoever meets, nobody is overwritten unasked.
#[test]
fn three_lines_from_one_generation_are_three_sides_of_a_split() {
    let common = copy(1, &[], &[]);
    let lines = [2, 3, 4].map(|n| common.go_alone(g(n)));
    for a in &lines {
        for b in lines.iter().filter(|b| b.current != a.current) {
            assert_eq!(decide_both((a, P), (b, S)), Decision::SplitBrain);
        }
    }
    // One is given up for another: the third is still a split from both.
    let followed = lines[1].adopt(ModuleId(9), g(2));
    assert_eq!(
        decide_both((&lines[2], P), (&followed, S)),
        Decision::SplitBrain
    );
    assert_eq!(
        decide_both((&lines[2], P), (&followed.give_up(), S)),
        COMPARED
    );
}

/// Every pair of copies over a small universe, in every pair of roles: the two
/// decisions mirror each other, a resync never takes an incomplete copy, one that was
/// given up, or a secondary for its source, never overwrites a newer copy with an
/// older unasked, believes marks only where they reach back, and where nothing moves
/// there is a way out.
#[test]
fn the_whole_table_is_mirrored_and_safe() {
    let copies = universe();
    let roles = [Role::Primary, Role::Secondary];
    let mut seen = std::collections::HashSet::new();
    for a in &copies {
        for b in &copies {
            for ra in roles {
                for rb in roles {
                    let d = decide((a, ra), (b, rb));
                    assert_eq!(d.mirrored(), decide((b, rb), (a, ra)), "{a:?} {b:?}");
                    seen.insert(d);
                    if let Decision::Resync { source, method } = d {
                        assert_eq!(d.advice(), None);
                        match source {
                            Which::Me => safe((a, ra), (b, rb), method),
                            Which::Peer => safe((b, rb), (a, ra), method),
                        }
                    } else {
                        assert!(d.advice().is_some());
                    }
                }
            }
            ends_when_one_gives_up(a, b);
        }
    }
    assert!(seen.len() >= 17, "the universe is too small: {seen:?}");
}

fn universe() -> Vec<CopyState> {
    let mut copies = Vec::new();
    let sets: [&[u128]; 5] = [&[], &[1], &[2], &[1, 2], &[3]];
    for (module, given_up) in [(0, false), (9, false), (8, false), (9, true)] {
        for current in 0..4 {
            for bases in sets {
                for history in sets {
                    for up_to_date in [false, true] {
                        let mut state = copy(current, bases, history);
                        state.module = ModuleId(module);
                        state.up_to_date = up_to_date;
                        state.given_up = given_up;
                        copies.push(state);
                    }
                }
            }
        }
    }
    copies
}

fn safe(source: (&CopyState, Role), target: (&CopyState, Role), method: Method) {
    let ((source, role), (target, target_role)) = (source, target);
    assert!(source.up_to_date && role == Role::Primary);
    assert!(source.current.is_some() && !source.given_up);
    assert!(target_role == Role::Secondary);
    assert!(!source.module.is_some() || !target.module.is_some() || source.module == target.module);
    let same = target.current == source.current;
    // A copy that went on from the source's generation is never the target unasked, nor
    // one that went on from an older one that the source came from.
    if !target.given_up && target.current.is_some() && !same {
        assert!(
            !target.bases.contains(&source.current),
            "{source:?} {target:?}"
        );
        let knows = |g: &Generation| source.bases.contains(g) || source.history.contains(g);
        assert!(knows(&target.current), "{source:?} {target:?}");
    }
    match method {
        Method::Everything => assert!(!target.current.is_some()),
        Method::Compare => {}
        Method::Marks => {
            let back = |a: &CopyState, b: &CopyState| a.bases.contains(&b.current);
            let common = source.bases.iter().any(|g| target.bases.contains(g));
            assert!(
                same || back(source, target)
                    || (target.given_up && (back(target, source) || common)),
                "{source:?} {target:?}"
            );
        }
    }
}

/// Two copies of one module of which one is given up come together as soon as the other
/// one is served: the operator has made it primary, by force where that was needed.
fn ends_when_one_gives_up(kept: &CopyState, lost: &CopyState) {
    let strangers = kept.module.is_some() && lost.module.is_some() && kept.module != lost.module;
    if strangers || !kept.current.is_some() {
        return;
    }
    let lost = lost.give_up();
    let served = CopyState {
        up_to_date: true,
        given_up: false,
        ..kept.clone()
    };
    for served in [served.go_alone(g(77)), served] {
        let d = decide((&served, Role::Primary), (&lost, Role::Secondary));
        assert!(
            matches!(
                d,
                Decision::Resync {
                    source: Which::Me,
                    ..
                }
            ),
            "{served:?} {lost:?} {d:?}"
        );
    }
}

/// A primary that holds for a peer which may be up to date goes on when it is not.
#[test]
fn a_peer_that_nobody_can_promote_is_left_behind_whatever_it_had() {
    let mine = copy(5, &[4], &[4, 3]);
    let with = |current: u128, up_to_date: bool| CopyState {
        up_to_date,
        ..copy(current, &[], &[])
    };
    // The same generation, an earlier one, one before that, and none yet.
    for current in [5, 4, 3] {
        let behind = |up_to_date| {
            let peer = with(current, up_to_date);
            is_left_behind(&mine, (&peer, Role::Secondary))
        };
        assert!(behind(false), "{current}");
        assert!(!behind(true), "{current}");
    }
    assert!(is_left_behind(
        &mine,
        (&CopyState::default(), Role::Secondary)
    ));
    // Somebody made it go on: its history has this copy's generation behind it.
    let mut newer = copy(9, &[5], &[5]);
    newer.up_to_date = false;
    assert!(!is_left_behind(&mine, (&newer, Role::Secondary)));
    assert!(!is_left_behind(&mine, (&with(5, false), Role::Primary)));
    assert!(!is_left_behind(&mine, (&with(77, false), Role::Secondary)));
}
