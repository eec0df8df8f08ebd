//! What the operators of two nodes that went on alone are told.

use std::fs;

use harness::Pair;

use crate::stage::{conflict, conflict_that_says, options, split, wait_status};

#[test]
fn two_primaries_learn_of_each_other_and_both_name_both_histories() {
    let pair = Pair::with(options());
    split(&pair);
    fs::write(pair.on_a("of-a"), "a").unwrap();
    fs::write(pair.on_b("of-b"), "b").unwrap();
    let told = [&pair.a, &pair.b].map(|node| conflict_that_says(node, "split brain"));
    for (node, text) in [&pair.a, &pair.b].into_iter().zip(&told) {
        assert!(text.contains("split brain"), "{text}");
        for other in [&pair.a, &pair.b] {
            let generation = other.status().unwrap()["generation"].clone();
            assert!(text.contains(generation.as_str().unwrap()), "{text}");
            let mount = other.mount().display().to_string();
            let command = format!(
                "twinfold-fs demote {mount} && twinfold-fs resync {mount} --discard-this-copy"
            );
            assert!(text.contains(&command), "{text}");
        }
        assert_eq!(text.matches("alone since").count(), 2, "{text}");
        node.expect_log(0, "split brain: both copies went on alone");
        // Said, and nothing else: both go on, and nothing is merged.
        let said = node.log_text().matches("split brain:").count();
        assert_eq!(said, 1, "{}", node.log_text());
        assert_eq!(node.status().unwrap()["role"], "primary");
        let shown = node.run(&["status", &node.mount().display().to_string()]);
        assert!(shown.unwrap().contains("NOT REPLICATING: split brain"));
    }
    fs::write(pair.on_a("of-a"), "still a").unwrap();
    fs::write(pair.on_b("of-b"), "still b").unwrap();
    assert!(!pair.on_a("of-b").exists() && !pair.on_b("of-a").exists());
}

#[test]
fn a_stale_primary_that_holds_learns_that_its_peer_went_on() {
    let pair = Pair::new();
    fs::write(pair.on_a("f"), "both").unwrap();
    pair.wait_settled();
    pair.b.promote(false).unwrap();
    wait_status(&pair.a, "holding", |s| s["link"] == "holding");
    let told = [conflict(&pair.a), conflict(&pair.b)];
    let command = format!("twinfold-fs demote {}", pair.a.mount().display());
    for (text, on) in told.iter().zip(["this node", "the peer"]) {
        assert!(text.contains(&format!("Run on {on}: {command}")), "{text}");
    }
    pair.a.demote(false).unwrap();
    pair.assert_identical();
    for node in [&pair.a, &pair.b] {
        assert_eq!(node.status().unwrap()["conflict"], serde_json::Value::Null);
    }
}
