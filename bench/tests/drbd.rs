//! Two emulated machines measure beside DRBD. No figure is judged here.

// A test's helpers fail the test.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{end_within, start};
use serde_json::Value;

/// The emulation may take this many minutes on a busy machine.
const MINUTES: u64 = 15;

/// As in the tests of power cuts: the one that is named, or the one that `.ci/run` unpacks.
fn kernel() -> PathBuf {
    if let Some(named) = std::env::var_os("TWINFOLD_GUEST_KERNEL") {
        return named.into();
    }
    let bench = Path::new(env!("CARGO_BIN_EXE_twinfold-bench"));
    let boot = bench.ancestors().nth(2).unwrap().join("guest-kernel/boot");
    let mut images = std::fs::read_dir(&boot).unwrap().flatten();
    let image = images.find(|e| e.file_name().to_string_lossy().starts_with("vmlinuz-"));
    image.unwrap().path()
}

#[test]
fn both_are_measured_in_the_same_two_machines() {
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("report");
    let mut command = Command::new(env!("CARGO_BIN_EXE_twinfold-bench"));
    command
        .args([
            "drbd",
            "--rounds",
            "1",
            "--millis",
            "500",
            "--file-mib",
            "4",
        ])
        .args(["--only", "direct-4k-d1", "--minutes", &MINUTES.to_string()])
        .arg("--kernel")
        .arg(kernel())
        .arg("--dir")
        .arg(place.path())
        .arg("--out")
        .arg(&out);
    let ended = end_within(start(command), MINUTES * 60 + 60);
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{said}");
    let report = std::fs::read_to_string(out.join("report.json")).unwrap();
    let report: Value = serde_json::from_str(&report).unwrap();
    let cells = report["workloads"][0]["cells"].as_array().unwrap();
    for system in ["bare", "plain", "twinfold", "drbd"] {
        let cell = cells.iter().find(|c| c["system"] == system);
        let cell = cell.unwrap_or_else(|| panic!("{system} is missing: {said}"));
        assert!(cell["rounds"][0]["ops"].as_u64().unwrap() > 0, "{cell}");
    }
    assert!(report["drbd"][0][1]["median"].as_f64().unwrap() > 0.0);
    assert!(report["there"]["round_trip"].as_f64().unwrap() > 0.0);
    assert!(out.join("report.html").exists());
    // Nothing is left but the report.
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 1);
}
