//! pjdfstest (crates.io), as root, on the mount of a paired primary and on a plain
//! ext4 on the same machine: every test ends alike on both, but for those that
//! `differences.md` explains.

mod plain;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use harness::{Pair, tools};
use plain::Plain;

const VERSION: &str = "0.2.2";

/// Two ordinary users that every Debian has, and everything Linux can do.
/// `naptime` is longer than the kernel's clock tick, which is the grain of times.
const CONFIGURATION: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
stat_st_birthtime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.02
allow_remount = true
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;

/// Outcomes by test: `ok`, `FAILED` or `skipped`.
type Outcomes = BTreeMap<String, String>;

/// Runs the whole suite below `path`; returns the outcomes and all it printed.
fn run(program: &Path, configuration: &Path, path: &Path, elsewhere: &Path) -> (Outcomes, String) {
    let output = Command::new(program)
        .arg("--configuration-file")
        .arg(configuration)
        .arg("--path")
        .arg(path)
        .arg("--secondary-fs")
        .arg(elsewhere)
        .env("NO_COLOR", "1")
        .output()
        .expect("pjdfstest runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut outcomes = Outcomes::new();
    for line in text.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        if let [test, outcome @ ("ok" | "FAILED" | "skipped")] = words[..]
            && test.contains("::")
        {
            outcomes.insert(test.to_owned(), outcome.to_owned());
        }
    }
    let told = format!("{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(
        outcomes.len() > 300,
        "pjdfstest on {} did not run its tests:\n{told}",
        path.display()
    );
    (outcomes, told)
}

/// What the list explains: test, outcome on ext4, outcome on the mount.
fn explained() -> BTreeSet<[String; 3]> {
    include_str!("differences.md")
        .lines()
        .filter_map(|line| {
            let mut cells = line.split('|').map(str::trim);
            let row = [cells.next()?, cells.next()?, cells.next()?, cells.next()?];
            let [_, test, plain, mount] = row;
            let why = cells.next()?;
            if !test.starts_with('`') {
                return None;
            }
            assert!(why.len() > 20, "{test} is listed without a reason");
            Some([test.trim_matches('`'), plain, mount].map(str::to_owned))
        })
        .collect()
}

#[test]
fn every_posix_test_ends_as_on_a_plain_file_system() {
    let pair = Pair::new();
    let program = tools::install("pjdfstest", VERSION).expect("pjdfstest is installed");
    let plain = Plain::mount();
    let configuration = plain.beside("pjdfstest.toml");
    std::fs::write(&configuration, CONFIGURATION).unwrap();

    let elsewhere = std::env::temp_dir();
    let (expected, _) = run(&program, &configuration, plain.path(), &elsewhere);
    let (found, told) = run(&program, &configuration, &pair.a.mount(), &elsewhere);

    let tests: BTreeSet<_> = expected.keys().chain(found.keys()).collect();
    let of = |outcomes: &Outcomes, test: &String| match outcomes.get(test) {
        Some(outcome) => outcome.clone(),
        None => "missing".into(),
    };
    let differences: BTreeSet<_> = tests
        .into_iter()
        .map(|test| [test.clone(), of(&expected, test), of(&found, test)])
        .filter(|[_, plain, mount]| plain != mount)
        .collect();
    let explained = explained();
    let new: Vec<_> = differences.difference(&explained).collect();
    assert!(
        new.is_empty(),
        "not as on ext4, and not explained: {new:#?}\n{told}"
    );
    let gone: Vec<_> = explained.difference(&differences).collect();
    assert!(
        gone.is_empty(),
        "explained, but not so any more: take it out of differences.md: {gone:#?}"
    );
    pair.assert_identical();
}
