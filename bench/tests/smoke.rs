//! The harness measures what it says, on tiny sizes, and its report can be read back. No
//! figure is judged here.

// A test's helpers fail the test.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};
use std::process::Output;

use common::bench;
use serde_json::Value;

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&text(path)).unwrap()
}

/// Every measurement was made: something was done in every round, and the latencies are
/// in order.
fn check_cells(report: &Value) {
    let rows = report["workloads"].as_array().unwrap();
    assert!(rows.len() >= 20, "{} workloads", rows.len());
    for row in rows {
        let cells = row["cells"].as_array().unwrap();
        assert!(!cells.is_empty(), "{row}");
        for cell in cells {
            let place = format!("{} on {}", row["name"], cell["system"]);
            let rounds = cell["rounds"].as_array().unwrap();
            assert_eq!(rounds.len(), 1, "{place}");
            assert!(rounds[0]["ops"].as_u64().unwrap() > 0, "{place}");
            assert!(rounds[0]["bytes"].as_u64().unwrap() > 0, "{place}");
            let latency = |key: &str| cell["latency"][key].as_f64().unwrap();
            let order = ["p50", "p90", "p99", "p999", "p9999", "max"].map(latency);
            assert!(order[0] > 0.0 && order.is_sorted(), "{place}: {order:?}");
            assert!(cell["rate"]["median"].as_f64().unwrap() > 0.0, "{place}");
            assert!(!cell["curve"].as_array().unwrap().is_empty(), "{place}");
        }
    }
}

/// What is replicated is put beside its floor.
fn check_floors(report: &Value) {
    let with_floor = |system: &str| {
        let rows = report["workloads"].as_array().unwrap();
        let cells = rows.iter().flat_map(|r| r["cells"].as_array().unwrap());
        cells
            .filter(|c| c["system"] == system && !c["floor"].is_null())
            .count()
    };
    assert!(with_floor("twinfold") >= 17);
    assert!(with_floor("alone") >= 3);
    assert_eq!(with_floor("plain"), 0);
    for target in report["targets"].as_array().unwrap() {
        let name = target["name"].as_str().unwrap();
        let measured = !target["value"].is_null();
        assert_eq!(measured, !name.contains("GlusterFS"), "{name}");
    }
    let of = |t: &&Value| t["name"] == "memory of a driver, 30 files, 1 GiB image, in MiB";
    let memory = report["targets"]
        .as_array()
        .unwrap()
        .iter()
        .find(of)
        .unwrap();
    assert_eq!(memory["limit"], 200.0);
    assert!(
        memory["value"]["median"].as_f64().unwrap() > 1.0,
        "{memory}"
    );
    assert_eq!(report["large"]["held"].as_array().unwrap().len(), 5);
    let absent = report["absent"].as_object().unwrap();
    let absent: Vec<&str> = absent.keys().map(String::as_str).collect();
    assert_eq!(absent, ["gluster", "strict"]);
}

/// The page has every workload with its plots, and needs nothing from elsewhere.
fn check_page(report: &Value, page: &str) {
    for row in report["workloads"].as_array().unwrap() {
        let id = format!("id=\"{}\"", row["name"].as_str().unwrap());
        let section = page.split("<section ").find(|s| s.contains(&id)).unwrap();
        for cell in row["cells"].as_array().unwrap() {
            let system = cell["system"].as_str().unwrap();
            for mark in [
                format!("<rect class=\"{system}\""),
                format!("<path class=\"line {system}\""),
            ] {
                assert!(section.contains(&mark), "{id} lacks {mark}");
            }
        }
    }
    assert!(page.contains("<svg class=\"overview\""));
    for foreign in [
        "http:", "https:", "src=", "href=", "url(", "@import", "NaN", "\"inf", " inf", ">inf",
    ] {
        assert!(!page.contains(foreign), "the page contains {foreign}");
    }
}

/// Two runs are compared by what each costs over its own floor.
fn check_compare(dir: &Path, report: &Value) {
    let old = dir.join("report.json");
    let old = old.to_str().unwrap();
    let same = bench(&["compare", old, old]);
    assert_eq!(same.status.code(), Some(0), "{same:?}");
    let mut worse = report.clone();
    let rows = worse["workloads"].as_array_mut().unwrap();
    let row = rows
        .iter_mut()
        .find(|r| r["name"] == "write-4k-d1")
        .unwrap();
    let cells = row["cells"].as_array_mut().unwrap();
    let cell = cells
        .iter_mut()
        .find(|c| c["system"] == "twinfold")
        .unwrap();
    for key in ["median", "low", "high"] {
        let ratio = &mut cell["floor"]["ratio"][key];
        *ratio = (2.0 * ratio.as_f64().unwrap()).into();
    }
    let new = dir.join("worse.json");
    std::fs::write(&new, worse.to_string()).unwrap();
    let found = bench(&["compare", old, new.to_str().unwrap()]);
    assert_eq!(found.status.code(), Some(1), "{found:?}");
    let said = String::from_utf8_lossy(&found.stdout);
    let named = |l: &&str| l.starts_with("write-4k-d1, twinfold,") && l.ends_with("WORSE");
    assert_eq!(said.lines().filter(named).count(), 1, "{said}");
    assert_eq!(said.matches("WORSE").count(), 1, "{said}");
}

/// A run below a directory, with its report there.
fn run(dir: &Path, args: &[&str]) -> (Output, PathBuf) {
    let out = dir.join("report");
    let places = [
        "--dir",
        dir.to_str().unwrap(),
        "--out",
        out.to_str().unwrap(),
    ];
    let how = [
        "run",
        "--rounds=1",
        "--millis=40",
        "--skip=gluster,strict",
        "--memory",
    ];
    (bench(&[&how[..], args, &places[..]].concat()), out)
}

#[test]
fn a_run_measures_everything_and_its_report_can_be_read_back() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let sizes = [
        "--file-mib=4",
        "--resync-mib=24",
        "--memory-files=30",
        "--memory-image-gib=1",
        "--memory-writes=20",
    ];
    let (ran, out) = run(dir.path(), &sizes);
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(
        ran.status.success(),
        "{said}\n{}",
        String::from_utf8_lossy(&ran.stdout)
    );
    let report = json(&out.join("report.json"));
    assert_eq!(report["failures"], serde_json::json!([]));
    assert!(
        report["machine"]["kernel"]
            .as_str()
            .is_some_and(|k| !k.is_empty())
    );
    check_cells(&report);
    check_floors(&report);
    check_page(&report, &text(&out.join("report.html")));
    check_compare(&out, &report);
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

#[test]
fn a_large_folder_that_cannot_be_made_leaves_what_was_measured_before() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    // Larger than a file can be.
    let image = "--memory-image-gib=1000000000";
    let args = ["--only=write-4k-d1", "--memory-files=3", image];
    let (ran, out) = run(dir.path(), &args);
    assert_eq!(ran.status.code(), Some(1), "{ran:?}");
    let report = json(&out.join("report.json"));
    assert_eq!(report["failures"][0]["workload"], "memory", "{report}");
    assert!(!report["workloads"][0]["cells"][0].is_null(), "{report}");
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(said.contains("File too large"), "{said}");
}

#[test]
fn a_name_that_no_workload_has_is_refused_with_the_names_there_are() {
    let ran = bench(&["run", "--only=nothing", "--dir=/var/tmp"]);
    assert_eq!(ran.status.code(), Some(2));
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(
        said.contains("write-4k-d1") && said.contains("database"),
        "{said}"
    );
}

/// The exit code and the last words of a command with a target.
fn judged(args: &[&str]) -> (Option<i32>, String) {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let place = ["--dir", dir.path().to_str().unwrap()];
    let ran = bench(&[args, &place[..]].concat());
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    let said = String::from_utf8_lossy(&ran.stdout).into_owned();
    (ran.status.code(), said)
}

#[test]
fn a_resync_that_misses_its_target_ends_with_an_error() {
    let of = |least: &str| {
        let least = format!("--at-least={least}");
        judged(&["resync", "--rounds=1", "--millis=50", "--mib=48", &least])
    };
    let (code, said) = of("1000000");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("target >= 1000000 MISSED"), "{said}");
    let (code, said) = of("0");
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("target >= 0     met"), "{said}");
}

#[test]
fn drivers_that_hold_too_much_memory_end_with_an_error() {
    let of = |most: &str| {
        let most = format!("--at-most-mib={most}");
        judged(&[
            "memory",
            "--files=30",
            "--image-gib=1",
            "--writes=20",
            &most,
        ])
    };
    let (code, said) = of("0");
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("MISSED") && said.contains("resynced"),
        "{said}"
    );
    let (code, said) = of("1000000");
    assert_eq!(code, Some(0), "{said}");
}
