//! What a kind needs on this node, before anything is made.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::Chosen;

/// Looks for what the kind needs, and chooses what was left open. Returns what it found.
pub(super) fn check(kind: &str, chosen: &mut Chosen, path: &OsStr) -> Result<String> {
    match kind {
        "mirror" => {
            let systemctl = on_path(path, "systemctl");
            let systemctl = systemctl.context("there is no systemctl: services need systemd")?;
            Ok(format!("with {}", systemctl.display()))
        }
        "kvm" => {
            let via = chosen.get("VIA").cloned();
            let virsh = || on_path(path, "virsh");
            let via = via.unwrap_or_else(|| match virsh() {
                Some(_) => "libvirt".to_owned(),
                None => "qemu".to_owned(),
            });
            let qemu = chosen.get("QEMU").cloned();
            let qemu = qemu.unwrap_or_else(|| format!("qemu-system-{}", std::env::consts::ARCH));
            let found = match via.as_str() {
                "libvirt" => virsh().context("there is no virsh (package libvirt-clients)")?,
                "qemu" => on_path(path, &qemu).with_context(|| {
                    format!("there is neither virsh nor {qemu}: install libvirt, or QEMU alone")
                })?,
                other => bail!("VIA={other} is neither libvirt nor qemu"),
            };
            one_of(chosen, "STOP", &["powerdown", "save", "off"])?;
            one_of(chosen, "FORCE_STOP", &["save", "off"])?;
            if let Some(seconds) = chosen.get("AGENT_TIMEOUT") {
                let number: Result<u32, _> = seconds.parse();
                number.with_context(|| format!("AGENT_TIMEOUT={seconds} is no number"))?;
            }
            chosen.insert("VIA".to_owned(), via);
            chosen.insert("QEMU".to_owned(), qemu);
            Ok(format!("with {}", found.display()))
        }
        "postgresql" => {
            let named = chosen.get("PG_BIN").map(PathBuf::from);
            let installed = || versions().into_iter().chain(std::env::split_paths(path));
            let places = named.map_or_else(|| installed().collect(), |bin| vec![bin]);
            let bin = places
                .iter()
                .find(|bin| is_program(&bin.join("pg_ctl")))
                .with_context(|| {
                    let shown = places.iter().map(|p| p.display().to_string());
                    let shown = shown.collect::<Vec<_>>().join(", ");
                    format!("there is no pg_ctl of PostgreSQL in {shown}")
                })?;
            let shown = bin.display().to_string();
            chosen.insert("PG_BIN".to_owned(), shown.clone());
            Ok(format!("with the PostgreSQL of {shown}"))
        }
        other => bail!("{other} needs nothing known"),
    }
}

fn one_of(chosen: &Chosen, name: &str, words: &[&str]) -> Result<()> {
    match chosen.get(name) {
        Some(word) if !words.contains(&word.as_str()) => {
            bail!("{name}={word} is none of {}", words.join(", "))
        }
        _ => Ok(()),
    }
}

/// Where Debian has PostgreSQL's programs, the newest first.
fn versions() -> Vec<PathBuf> {
    let entries = std::fs::read_dir("/usr/lib/postgresql");
    let versions = entries.into_iter().flatten().flatten();
    let mut versions: Vec<(u32, PathBuf)> = versions
        .filter_map(|v| Some((v.file_name().to_str()?.parse().ok()?, v.path().join("bin"))))
        .collect();
    versions.sort();
    versions.into_iter().rev().map(|(_, bin)| bin).collect()
}

/// A program, as a shell finds it.
fn on_path(path: &OsStr, name: &str) -> Option<PathBuf> {
    std::env::split_paths(path)
        .map(|directory| directory.join(name))
        .find(|program| is_program(program))
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}
