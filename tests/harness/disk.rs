//! A small disk for one node: an ext4 in a file.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::process::must;

/// Makes a file system of `size` bytes and mounts it at `directory/name`. The loop
/// device goes with the mount.
pub(crate) fn mount(directory: &Path, name: &str, size: u64) -> Result<()> {
    let image = directory.join(format!("{name}.image"));
    std::fs::File::create(&image)?.set_len(size)?;
    must(
        Command::new("mkfs.ext4")
            // No blocks set aside for root: full is full.
            .args(["-q", "-F", "-m", "0"])
            .arg(&image),
    )?;
    let path = directory.join(name);
    std::fs::create_dir_all(&path)?;
    must(
        Command::new("mount")
            .args(["-o", "loop"])
            .args([&image, &path]),
    )?;
    Ok(())
}
