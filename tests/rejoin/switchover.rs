//! A planned switchover: what both nodes have flushed needs no second look.

use std::fs;

use harness::{Pair, Role};

#[test]
fn a_switchover_there_and_back_moves_nothing() {
    let pair = Pair::new();
    fs::create_dir(pair.on_a("d")).unwrap();
    for n in 0..200_u32 {
        fs::write(pair.on_a(format!("d/{n}")), n.to_string().repeat(3000)).unwrap();
    }
    for (from, to) in [(&pair.a, &pair.b), (&pair.b, &pair.a)] {
        from.demote(false).unwrap();
        to.promote(false).unwrap();
        pair.wait_paired();
        let status = to.status().unwrap();
        assert_eq!(status["resync"]["marked_bytes"], 0, "{status}");
        assert_eq!(status["resync"]["moved_bytes"], 0, "{status}");
        fs::write(to.mount().join("d/later"), to.name()).unwrap();
    }
    pair.assert_identical();
}

#[test]
fn a_primary_that_stops_in_order_leaves_nothing_to_compare() {
    let mut pair = Pair::new();
    for n in 0..50_u32 {
        fs::write(pair.on_a(format!("{n}")), n.to_string().repeat(9000)).unwrap();
    }
    pair.a.stop().unwrap();
    pair.b.promote(false).unwrap();
    fs::write(pair.on_b("later"), b"by b").unwrap();
    pair.a.start(Role::Secondary).unwrap();
    pair.wait_paired();
    let status = pair.b.status().unwrap();
    assert!(
        status["resync"]["moved_bytes"].as_u64() <= Some(4096),
        "{status}"
    );
    pair.assert_identical();
}

#[test]
fn a_secondary_that_leaves_right_behind_a_change_gets_its_exact_times() {
    let mut pair = Pair::new();
    for n in 0..8_u32 {
        fs::create_dir(pair.on_a(format!("d{n}"))).unwrap();
        fs::write(pair.on_a(format!("d{n}/f")), n.to_string().repeat(3000)).unwrap();
        // Before the times that A's file system gave them have been shipped.
        pair.b.stop().unwrap();
        pair.b.start(Role::Secondary).unwrap();
        pair.wait_paired();
    }
    pair.assert_identical();
}
