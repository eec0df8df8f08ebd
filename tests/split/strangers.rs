//! Copies of different modules.

use std::fs;

use harness::{Pair, Role};

use crate::stage::{conflict, give_up, options};

#[test]
fn copies_of_different_modules_never_come_together() {
    let mut pair = Pair::with(options());
    pair.wait_settled();
    pair.b.stop().unwrap();
    fs::write(pair.on_a("of-a"), "a").unwrap();
    // B's folder is given back, and becomes a module of its own.
    let (mount, key) = (pair.b.mount().display().to_string(), pair.b.key_directory());
    let key = key.display().to_string();
    pair.b.run(&["deinit", &mount, "--force"]).unwrap();
    fs::write(pair.b.mount().join("of-b"), "b").unwrap();
    let id = pair.a.key_directory().display().to_string();
    let id = pair.a.run(&["identity", "--identity", &id]).unwrap();
    let [here, there] = [&pair.b, &pair.a].map(|n| n.addresses()[0].to_string());
    let arguments = [
        "init",
        &mount,
        "--identity",
        &key,
        "--good-copy",
        "--listen",
        &here,
        "--peer",
        &there,
        "--peer-id",
        &id,
    ];
    pair.b.run(&arguments).unwrap();
    pair.b.start(Role::Secondary).unwrap();
    for node in [&pair.a, &pair.b] {
        let text = conflict(node);
        assert!(
            text.contains("different modules") && text.contains("deinit"),
            "{text}"
        );
    }
    // Not even when one of them is given up: their ids mean different objects.
    give_up(&pair.b).unwrap();
    let from = pair.b.log_text().len();
    pair.b.kill();
    pair.b.start(Role::Secondary).unwrap();
    pair.b.expect_log(from, "different modules");
    assert!(pair.on_b("of-b").exists() && !pair.on_b("of-a").exists());
    assert!(!pair.on_a("of-b").exists());
    pair.b.kill();
}
