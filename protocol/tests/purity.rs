//! The core has no input, no output, no clock and no chance in it: the simulator
//! runs the same code as the driver, and a failing seed replays exactly.

#![allow(clippy::unwrap_used, reason = "a test may panic, its helpers too")]

use std::fs;
use std::path::{Path, PathBuf};

/// All that the core may depend on.
const ALLOWED: [&str; 3] = ["bytes", "roaring", "thiserror"];

/// What would bring the outside world into the core.
const FORBIDDEN: [&str; 7] = [
    "std::fs",
    "std::net",
    "std::thread",
    "std::env",
    "std::process",
    "Instant::now",
    "SystemTime::now",
];

/// Lines of one source file. Beyond it the file has more than one subject.
const MAX_LINES: usize = 700;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The crates that a manifest's tables of dependencies name, those for tests only excepted.
fn dependencies(manifest: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut inside = false;
    for line in manifest.lines() {
        let line = line.split('#').next().unwrap().trim();
        if let Some(table) = line.strip_prefix('[') {
            let path: Vec<&str> = table.trim_matches(['[', ']']).split('.').collect();
            let is_table = |p: &&str| matches!(*p, "dependencies" | "build-dependencies");
            let place = path.iter().position(is_table);
            inside = place.is_some_and(|p| p + 1 == path.len());
            // "[dependencies.name]"
            if let Some(name) = place.and_then(|p| path.get(p + 1)) {
                found.push((*name).to_owned());
            }
        } else if inside && let Some((key, value)) = line.split_once('=') {
            // "name.workspace = true", "name = { package = "other" }"
            let key = key.split('.').next().unwrap().trim().trim_matches('"');
            found.push(key.to_owned());
            if let Some((_, package)) = value.split_once("package") {
                found.extend(package.split('"').nth(1).map(str::to_owned));
            }
        }
    }
    found
}

/// Line numbers with something forbidden, and what it is.
fn offences(source: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in (1..).zip(source.lines()) {
        for token in FORBIDDEN.iter().filter(|t| line.contains(*t)) {
            found.push((number, (*token).to_owned()));
        }
    }
    // "use std::{fs, net::TcpStream};", over however many lines.
    for (place, group) in source.match_indices("std::{") {
        let rest = &source[place + group.len()..];
        let rest = &rest[..rest.find(';').unwrap_or(rest.len())];
        for word in rest.split(|c: char| !(c.is_alphanumeric() || c == '_')) {
            let token = format!("std::{word}");
            if FORBIDDEN.contains(&token.as_str()) {
                let number = source[..place].matches('\n').count() + 1;
                found.push((number, token));
            }
        }
    }
    found
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

fn all_sources() -> Vec<(PathBuf, String)> {
    let mut paths = Vec::new();
    sources(&root().join("src"), &mut paths);
    paths.sort();
    assert!(paths.len() > 10, "the sources were not found: {paths:?}");
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        (path, text)
    };
    paths.into_iter().map(read).collect()
}

#[test]
fn the_core_depends_on_nothing_that_does_input_or_output() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let found = dependencies(&manifest);
    assert!(found.contains(&"bytes".into()), "{found:?}");
    for name in found {
        assert!(
            ALLOWED.contains(&name.as_str()),
            "protocol/Cargo.toml depends on {name}; the core may depend on {ALLOWED:?}"
        );
    }
}

#[test]
fn the_core_touches_no_file_socket_thread_clock_or_process() {
    let mut found = Vec::new();
    for (path, text) in all_sources() {
        for (line, token) in offences(&text) {
            found.push(format!("{}:{line}: {token}", path.display()));
        }
    }
    assert!(found.is_empty(), "not in the core:\n{}", found.join("\n"));
}

#[test]
fn no_source_file_is_too_long() {
    for (path, text) in all_sources() {
        let lines = text.lines().count();
        assert!(
            lines <= MAX_LINES,
            "{} has {lines} lines, {MAX_LINES} are allowed",
            path.display()
        );
    }
}

#[test]
fn the_check_of_the_manifest_sees_every_way_to_name_a_crate() {
    let manifest = r#"
        [package]
        name = "x"
        [dependencies]
        a.workspace = true # why
        b = "1"
        c = { version = "1", package = "d" }
        [dependencies.e]
        version = "1"
        [target.'cfg(unix)'.dependencies]
        f = "1"
        [dev-dependencies]
        g = "1"
    "#;
    assert_eq!(dependencies(manifest), ["a", "b", "c", "d", "e", "f"]);
}

#[test]
fn the_check_of_the_sources_sees_every_way_to_name_a_module() {
    let source = "use std::fs::File;\nlet t = Instant::now();\nuse std::{\n    fmt, net,\n};\n";
    let found: Vec<_> = offences(source).into_iter().map(|(n, _)| n).collect();
    assert_eq!(found, [1, 2, 3]);
    assert!(offences("use std::{fmt, io};\nlet net = 1;\n").is_empty());
}
