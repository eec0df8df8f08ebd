//! What a run has found: kept as JSON, shown on a terminal and as a page.

pub(crate) mod compare;
mod html;
mod machine;
pub(crate) mod model;
mod plot;
mod table;
pub(crate) mod targets;
mod units;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

pub(crate) use machine::Machine;
pub(crate) use model::Report;
pub(crate) use table::show;

/// Writes the report as JSON and as a page into `dir`; returns the page's path.
pub(crate) fn save(report: &Report, dir: &Path) -> Result<PathBuf> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let put = |name: &str, text: String| -> Result<PathBuf> {
        let path = dir.join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    };
    put("report.json", serde_json::to_string(report)?)?;
    put("report.html", html::page(report))
}

/// Reads a report back.
pub(crate) fn load(path: &Path) -> Result<Report> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let report: Report = serde_json::from_str(&text)
        .with_context(|| format!("{} is no report of this program", path.display()))?;
    anyhow::ensure!(
        report.format == model::FORMAT,
        "{} has format {}, this program reads {}: measure anew",
        path.display(),
        report.format,
        model::FORMAT
    );
    Ok(report)
}
