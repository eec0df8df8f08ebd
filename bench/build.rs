//! What the program was built from, for its reports: it may run on a machine without the tree.

use std::process::Command;

/// Where a change makes another program.
const SOURCES: [&str; 6] = [
    "src",
    "Cargo.toml",
    "../Cargo.toml",
    "../Cargo.lock",
    "../fs-driver",
    "../protocol",
];

fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

fn main() {
    let commit = git(&["rev-parse", "HEAD"]).unwrap_or_else(|| "unknown".into());
    let status = ["status", "--porcelain", "-uno", "--"];
    let changed = git(&[&status[..], &SOURCES[..]].concat()).is_some_and(|s| !s.is_empty());
    println!("cargo::rustc-env=TWINFOLD_COMMIT={commit}");
    println!("cargo::rustc-env=TWINFOLD_CHANGED={changed}");
    // The log of HEAD grows with each commit and each change to another one.
    let head = git(&["rev-parse", "--git-path", "logs/HEAD"]);
    for path in SOURCES.into_iter().chain(head.as_deref()) {
        if std::path::Path::new(path).exists() {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    println!("cargo::rerun-if-changed=build.rs");
}
