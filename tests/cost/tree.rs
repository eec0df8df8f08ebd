//! A tree of many files of which few change.

use std::fs;
use std::path::Path;

use harness::Options;

use crate::stage::{Stage, most_memory, number, write};

/// Files in one directory; there are ten directories at least.
fn each() -> u64 {
    number("TWINFOLD_COST_EACH", 1000)
}

/// Bytes of memory that each driver may take.
const MEMORY: u64 = 200 << 20;

fn files() -> u64 {
    number("TWINFOLD_COST_FILES", 10_000)
}

/// No driver has taken more memory than it may since it was started.
fn memory_is_small(stage: &Stage) {
    for node in [&stage.pair.a, &stage.pair.b] {
        let memory = most_memory(node);
        println!("{}: at most {} MiB of memory", node.name(), memory >> 20);
        assert!(memory < MEMORY, "{} took {memory} bytes", node.name());
    }
}

/// Bytes of the large file that moves.
fn moved() -> usize {
    (number("TWINFOLD_COST_MOVED_MIB", 16) << 20) as usize
}

fn path(n: u64) -> String {
    format!("d{}/f{n}", n / each())
}

fn populate(root: &Path) {
    for n in 0..files() {
        if n % each() == 0 {
            fs::create_dir(root.join(format!("d{}", n / each()))).unwrap();
        }
        // Most are empty: a million blocks twice would say no more.
        let data = if n % 10 == 0 {
            &n.to_le_bytes()[..]
        } else {
            &[]
        };
        fs::write(root.join(path(n)), data).unwrap();
    }
    write(&root.join("d0/large"), moved(), 3);
}

#[test]
fn of_many_files_only_those_that_changed_cost_anything() {
    let mut stage = Stage::new(Options {
        populate,
        ..Options::default()
    });
    memory_is_small(&stage);
    stage.rest();
    let step = files() / 100;
    let cost = stage.away(|pair| {
        for n in 0..100 {
            write(&pair.on_a(path(n * step)), 4096, n);
        }
        for n in 0..10 {
            let renamed = pair.on_a(format!("d{n}/renamed"));
            fs::rename(pair.on_a(path(n * each() + 1)), renamed).unwrap();
        }
        fs::rename(pair.on_a("d0/large"), pair.on_a("d1/large")).unwrap();
    });
    println!("{} files: {cost:?}", files());
    cost.at_most(100 * 4096);
    memory_is_small(&stage);
    // Looks at each file through both mounts.
    stage.pair.assert_identical_but_for_reads();
    memory_is_small(&stage);
}

#[test]
fn names_links_moves_and_deletions_move_no_data() {
    let mut stage = Stage::new(Options::default());
    let on = |path: &str| stage.pair.on_a(path);
    for directory in ["one/deep/er", "two", "gone/below"] {
        fs::create_dir_all(on(directory)).unwrap();
    }
    for (n, name) in [
        "one/a",
        "one/deep/b",
        "one/deep/er/c",
        "two/d",
        "gone/below/e",
        "f",
        "g",
    ]
    .into_iter()
    .enumerate()
    {
        write(&on(name), 1 << 20, n as u64);
    }
    fs::hard_link(on("f"), on("two/f")).unwrap();
    stage.pair.wait_settled();
    let cost = stage.away(|pair| {
        let on = |path: &str| pair.on_a(path);
        // Names exchanged, a tree moved below another one, one below what was below it.
        fs::rename(on("one/a"), on("t")).unwrap();
        fs::rename(on("two/d"), on("one/a")).unwrap();
        fs::rename(on("t"), on("two/d")).unwrap();
        fs::rename(on("one/deep"), on("two/deep")).unwrap();
        fs::rename(on("one"), on("two/deep/er/one")).unwrap();
        // Links more and less.
        fs::hard_link(on("g"), on("two/deep/g")).unwrap();
        fs::remove_file(on("g")).unwrap();
        fs::remove_file(on("two/f")).unwrap();
        fs::hard_link(on("f"), on("two/deep/er/f")).unwrap();
        fs::remove_dir_all(on("gone")).unwrap();
    });
    cost.at_most(0);
    stage.pair.assert_identical();
}
