//! The rules of the source tree: who may name whom, and how long a file may be.

// A test's helpers fail the test.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

/// Longer files hide a seam.
const MAX_LINES: usize = 700;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// All Rust files below a directory of the workspace, with their text.
fn sources(below: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut directories = vec![root().join(below)];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                if !path.ends_with("target") {
                    directories.push(path);
                }
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    assert!(!found.is_empty(), "{below} has no sources");
    found
}

/// Lines that name one of `words`; comments do not count.
fn naming(text: &str, words: &[&str]) -> Vec<String> {
    let code = |line: &&str| !line.trim_start().starts_with("//");
    text.lines()
        .filter(code)
        .filter(|line| words.iter().any(|word| line.contains(word)))
        .map(str::to_owned)
        .collect()
}

fn forbid(below: &str, words: &[&str]) {
    for (path, text) in sources(below) {
        let found = naming(&text, words);
        assert!(found.is_empty(), "{}: {found:#?}", path.display());
    }
}

#[test]
fn no_platform_is_named_above_the_adapter_and_the_store() {
    let platform = ["libc::", "rustix", "fuser", "std::os::", "winfsp", "/proc/"];
    forbid("fs-driver/src/vfs", &platform);
    forbid("fs-driver/src/engine", &platform);
}

#[test]
fn only_the_adapter_knows_fuse() {
    for (path, text) in sources("fs-driver/src") {
        if path.components().any(|c| c.as_os_str() == "adapter") {
            continue;
        }
        let found = naming(&text, &["fuser::", "use fuser"]);
        assert!(found.is_empty(), "{}: {found:#?}", path.display());
    }
}

#[test]
fn dependencies_point_inward() {
    let outer = [
        "crate::adapter",
        "crate::cli",
        "crate::daemon",
        "crate::control",
    ];
    forbid("fs-driver/src/vfs", &outer);
    forbid("fs-driver/src/engine", &outer);
    forbid("fs-driver/src/engine", &["crate::vfs", "crate::link"]);
    let inner = [
        "crate::vfs",
        "crate::engine",
        "crate::link",
        "crate::adapter",
    ];
    forbid("fs-driver/src/store", &inner);
    forbid(
        "fs-driver/src/state",
        &["crate::vfs", "crate::engine", "crate::adapter"],
    );
    forbid("protocol/src", &["fs_driver", "quinn", "tokio"]);
}

/// It waits for nothing but its inbox, and the kernel may keep whoever asks it waiting.
#[test]
fn the_thread_of_a_module_does_not_ask_for_interfaces() {
    forbid("controller/src/runner", &["netlink", "is_only_here"]);
}

#[test]
fn no_source_file_is_too_long() {
    for below in ["protocol", "fs-driver", "controller", "bench", "tests"] {
        for (path, text) in sources(below) {
            let lines = text.lines().count();
            assert!(lines <= MAX_LINES, "{}: {lines} lines", path.display());
        }
    }
}

#[test]
fn the_rules_see_what_they_forbid() {
    let text = "// libc::A\nlet a = libc::A;\n    /// rustix\nuse rustix::fs;\n";
    assert_eq!(naming(text, &["libc::", "rustix"]).len(), 2);
}
