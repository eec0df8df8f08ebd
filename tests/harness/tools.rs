//! Programs from crates.io that tests run: installed once, beside the build.

use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};

/// Builds a program of `version` from crates.io unless it is there; returns its path.
pub fn install(name: &str, version: &str) -> Result<PathBuf> {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    // target/debug/deps/test -> target
    let me = std::env::current_exe()?;
    let target = me
        .ancestors()
        .nth(3)
        .context("the test does not lie in a target directory")?;
    let root = target.join("tools").join(format!("{name}-{version}"));
    let program = root.join("bin").join(name);
    if program.is_file() {
        return Ok(program);
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["install", name, "--locked", "--version", version, "--root"])
        .arg(&root)
        .arg("--target-dir")
        .arg(target.join("tools").join("build"))
        .current_dir("/")
        .output()
        .context("cargo cannot be started")?;
    ensure!(
        output.status.success(),
        "cargo install {name} {version} failed:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(program)
}
