//! The configurations of a module that were applied, the same on both nodes.
//!
//! ```text
//! /etc/twinfold/modules/NAME/            where an operator edits: userconfig.xml, bin/*
//! /var/lib/twinfold/NAME/config/
//!   active                               {"number":3,"hash":"..."}: what the daemon runs
//!   3/userconfig.xml  3/bin/start_prim   that version; the last three are kept
//!   new/                                 one that is being looked at
//!   removed/                             what was edited when `deconfig` took the module away
//! ```
//!
//! A module that was never configured by `config` runs what is in `/etc`.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::places::{Places, replace};

/// The configuration's file.
pub(crate) const FILE: &str = "userconfig.xml";

/// Files of a configuration, at most: one, and its scripts.
const MAX_FILES: usize = 256;

/// Bytes of all of them, at most. What is larger is no script, and belongs into the folder.
pub(crate) const MAX_BYTES: usize = 8 << 20;

/// How many applied ones are kept.
const KEPT: usize = 3;

/// A configuration on its way.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Bundle {
    files: Vec<File>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct File {
    /// `userconfig.xml`, or a name in `bin/`.
    name: String,
    executable: bool,
    /// In base64.
    content: String,
}

/// Which one is applied.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub(crate) struct Version {
    /// How many were applied on this node before, and one.
    pub(crate) number: u64,
    /// Of all that is in it: the same on both nodes, or they differ.
    pub(crate) hash: String,
}

impl Bundle {
    /// Reads what is in a directory.
    pub(crate) fn read(directory: &Path) -> Result<Bundle> {
        let mut files = vec![File::read(directory, FILE.to_owned())?];
        let bin = directory.join("bin");
        if bin.is_dir() {
            for entry in
                std::fs::read_dir(&bin).with_context(|| format!("cannot list {}", bin.display()))?
            {
                let name = entry?.file_name();
                let name = name.to_str().context("a script's name is no text")?;
                files.push(File::read(directory, format!("bin/{name}"))?);
            }
        }
        files.sort_by(|a, b| a.name.cmp(&b.name));
        let bundle = Bundle { files };
        bundle.check()?;
        Ok(bundle)
    }

    /// Whether it is one: names that lead nowhere else, and not too much. The other node's
    /// are looked at, too.
    pub(crate) fn check(&self) -> Result<()> {
        ensure!(
            self.files.len() <= MAX_FILES,
            "more than {MAX_FILES} scripts"
        );
        let mut bytes = 0;
        for file in &self.files {
            let inside = file.name.strip_prefix("bin/").is_some_and(|name| {
                !name.is_empty() && !name.contains(['/', '\0']) && name != "." && name != ".."
            });
            ensure!(
                inside || file.name == FILE,
                "{:?} has no place in a configuration",
                file.name
            );
            bytes += file.bytes()?.len();
        }
        ensure!(
            bytes <= MAX_BYTES,
            "the scripts have more than {MAX_BYTES} bytes: keep programs elsewhere, on both nodes"
        );
        let files = self.files.iter().filter(|f| f.name == FILE).count();
        ensure!(files == 1, "it has {files} times {FILE}");
        Ok(())
    }

    /// Of everything in it.
    pub(crate) fn hash(&self) -> Result<String> {
        let mut hasher = blake3::Hasher::new();
        for file in &self.files {
            let bytes = file.bytes()?;
            hasher.update(&(file.name.len() as u64).to_le_bytes());
            hasher.update(file.name.as_bytes());
            hasher.update(&[u8::from(file.executable)]);
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(&bytes);
        }
        Ok(hasher.finalize().to_hex()[..16].to_owned())
    }

    /// Writes it into a directory that is made anew.
    fn write(&self, directory: &Path) -> Result<()> {
        let made = || -> std::io::Result<()> {
            if directory.exists() {
                std::fs::remove_dir_all(directory)?;
            }
            std::fs::create_dir_all(directory.join("bin"))
        };
        made().with_context(|| format!("cannot make {}", directory.display()))?;
        self.write_over(directory)
    }

    /// Writes it over what is in a directory.
    fn write_over(&self, directory: &Path) -> Result<()> {
        let bin = directory.join("bin");
        std::fs::create_dir_all(&bin).with_context(|| format!("cannot make {}", bin.display()))?;
        for file in &self.files {
            let path = directory.join(&file.name);
            let mode = match (file.executable, file.name == FILE) {
                (true, _) => 0o755,
                // Variables may be secrets.
                (false, true) => 0o600,
                (false, false) => 0o644,
            };
            let bytes = file.bytes()?;
            let write = || -> std::io::Result<()> {
                std::fs::write(&path, bytes)?;
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
                std::fs::File::open(&path)?.sync_all()
            };
            write().with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}

impl File {
    fn read(directory: &Path, name: String) -> Result<File> {
        let path = directory.join(&name);
        let metadata =
            std::fs::metadata(&path).with_context(|| format!("cannot read {}", path.display()))?;
        if !metadata.is_file() {
            bail!("{} is no file: there are only files in bin", path.display());
        }
        ensure!(
            metadata.len() <= MAX_BYTES as u64,
            "{} is larger than {MAX_BYTES} bytes",
            path.display()
        );
        let bytes =
            std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(File {
            name,
            executable: metadata.permissions().mode() & 0o111 != 0,
            content: STANDARD.encode(bytes),
        })
    }

    fn bytes(&self) -> Result<Vec<u8>> {
        let bytes = STANDARD.decode(&self.content);
        bytes.with_context(|| format!("the content of {} is broken", self.name))
    }
}

fn home(places: &Places, module: &str) -> PathBuf {
    places.configurations(module)
}

/// Where one is put to be looked at.
pub(crate) fn stage(places: &Places, module: &str, bundle: &Bundle) -> Result<PathBuf> {
    bundle.check()?;
    let path = home(places, module).join("new");
    bundle.write(&path)?;
    Ok(path)
}

/// What is applied, if `config` was ever used.
pub(crate) fn active(places: &Places, module: &str) -> Result<Option<Version>> {
    let path = home(places, module).join("active");
    match std::fs::read(&path) {
        Ok(bytes) => {
            Ok(Some(serde_json::from_slice(&bytes).with_context(|| {
                format!("{} is damaged", path.display())
            })?))
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Where the daemon finds what it runs.
pub(crate) fn directory(places: &Places, module: &str) -> Result<(Option<Version>, PathBuf)> {
    let version = active(places, module)?;
    let path = match &version {
        Some(version) => home(places, module).join(version.number.to_string()),
        None => places.modules().join(module),
    };
    Ok((version, path))
}

/// Applied versions that are kept, oldest first.
pub(crate) fn kept(places: &Places, module: &str) -> Vec<u64> {
    let entries = std::fs::read_dir(home(places, module));
    let mut all: Vec<u64> = entries
        .into_iter()
        .flatten()
        .filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    all.sort_unstable();
    all
}

/// Applies what was put there to be looked at: durable when this returns.
pub(crate) fn apply(places: &Places, module: &str, bundle: &Bundle) -> Result<Version> {
    let home = home(places, module);
    let number = kept(places, module).last().map_or(1, |last| last + 1);
    let version = Version {
        number,
        hash: bundle.hash()?,
    };
    let path = home.join(number.to_string());
    bundle.write(&path)?;
    let _ = std::fs::remove_dir_all(home.join("new"));
    replace(&home.join("active"), &serde_json::to_vec(&version)?)
        .with_context(|| format!("cannot write into {}", home.display()))?;
    let all = kept(places, module);
    for old in &all[..all.len().saturating_sub(KEPT)] {
        if let Err(error) = std::fs::remove_dir_all(home.join(old.to_string())) {
            tracing::warn!(%error, old, "an old configuration cannot be removed");
        }
    }
    Ok(version)
}

/// What an operator edits on this node becomes what was applied. What else lies there stays.
pub(crate) fn edit(places: &Places, module: &str, bundle: &Bundle) -> Result<()> {
    let directory = places.modules().join(module);
    if Bundle::read(&directory).is_ok_and(|edited| edited == *bundle) {
        return Ok(());
    }
    let bin = directory.join("bin");
    if bin.exists() {
        std::fs::remove_dir_all(&bin)
            .with_context(|| format!("cannot replace {}", bin.display()))?;
    }
    bundle.write_over(&directory)
}

/// Nothing is applied any more; what was edited is put where nothing is run from.
pub(crate) fn forget(places: &Places, module: &str) -> Result<PathBuf> {
    let home = home(places, module);
    let aside = home.join("removed");
    let edited = places.modules().join(module);
    let move_away = || -> std::io::Result<()> {
        std::fs::create_dir_all(&home)?;
        if edited.exists() {
            if aside.exists() {
                std::fs::remove_dir_all(&aside)?;
            }
            copy(&edited, &aside)?;
            std::fs::remove_dir_all(&edited)?;
        }
        match std::fs::remove_file(home.join("active")) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    };
    move_away().with_context(|| format!("cannot take away the configuration of {module}"))?;
    Ok(aside)
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy(&entry.path(), &to)?,
            false => drop(std::fs::copy(entry.path(), to)?),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(directory: &Path, text: &str) {
        let path = directory.join("bin/start_prim");
        std::fs::create_dir_all(directory.join("bin")).unwrap();
        std::fs::write(directory.join(FILE), "<safe/>").unwrap();
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
    }

    #[test]
    fn the_last_three_are_kept_and_equal_ones_have_the_same_hash() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places::new(Some(dir.path()));
        let edited = places.modules().join("vm");
        assert_eq!(active(&places, "vm").unwrap(), None);
        let mut hashes = Vec::new();
        for n in [1, 2, 3, 4, 1] {
            script(&edited, &format!("exit {n}"));
            let bundle = Bundle::read(&edited).unwrap();
            let version = apply(&places, "vm", &bundle).unwrap();
            hashes.push(version.hash.clone());
            assert_eq!(active(&places, "vm").unwrap(), Some(version));
        }
        assert_eq!(kept(&places, "vm"), [3, 4, 5]);
        assert_eq!(hashes[0], hashes[4]);
        assert_ne!(hashes[0], hashes[1]);
        let (_, path) = directory(&places, "vm").unwrap();
        let text = std::fs::read_to_string(path.join("bin/start_prim")).unwrap();
        assert_eq!(text, "exit 1");
        assert_eq!(Bundle::read(&path).unwrap().hash().unwrap(), hashes[4]);
        let aside = forget(&places, "vm").unwrap();
        assert!(aside.join("bin/start_prim").exists() && !edited.exists());
        assert_eq!(active(&places, "vm").unwrap(), None);
    }

    #[test]
    fn what_the_other_node_sends_leads_nowhere_else_and_is_bounded() {
        let file = |name: &str, content: &str| File {
            name: name.into(),
            executable: true,
            content: content.into(),
        };
        let with = |other: File| Bundle {
            files: vec![file(FILE, ""), other],
        };
        with(file("bin/a", "")).check().unwrap();
        for name in [
            "bin/../x",
            "bin/..",
            "bin/",
            "/etc/passwd",
            "bin/a/b",
            "x",
            FILE,
        ] {
            with(file(name, "")).check().unwrap_err();
        }
        with(file("bin/a", "%")).check().unwrap_err();
        let long = STANDARD.encode(vec![0; MAX_BYTES + 1]);
        with(file("bin/a", &long)).check().unwrap_err();
        Bundle { files: Vec::new() }.check().unwrap_err();
    }
}
