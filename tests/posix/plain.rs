//! A plain ext4 to compare with, in a file, so that tests may remount it read-only.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// Enough for the suite's largest file and 65,000 links.
const SIZE: u64 = 1 << 30;

/// A mounted image; unmounted and removed when dropped.
pub(crate) struct Plain {
    directory: TempDir,
    path: PathBuf,
}

fn must(command: &mut Command) {
    let output = command
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

impl Plain {
    pub(crate) fn mount() -> Plain {
        let directory = tempfile::Builder::new()
            .prefix("twinfold-plain.")
            .tempdir_in("/var/tmp")
            .expect("a temporary directory");
        // Ordinary users pass through it.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(directory.path(), open).expect("its mode is set");
        let image = directory.path().join("image");
        let file = std::fs::File::create(&image).expect("an image file");
        file.set_len(SIZE).expect("its size is set");
        must(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image));
        let path = directory.path().join("mount");
        std::fs::create_dir(&path).expect("a mount point");
        must(
            Command::new("mount")
                .args(["-o", "loop"])
                .args([&image, &path]),
        );
        Plain { directory, path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A path outside of it that goes with it.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        // The loop device goes with the mount.
        if let Err(e) = Command::new("umount").arg("-l").arg(&self.path).output() {
            eprintln!("{} stays mounted: {e}", self.path.display());
        }
    }
}
