//! What the disk under the store has done, as the kernel counts it: whether a call waits for
//! a disk that is busy, or for one that hangs.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, major, minor};

use crate::mounts;

/// The columns of a block device's `stat` that say what it has done (the kernel's
/// `Documentation/block/stat.rst`): requests and sectors read, requests and sectors written,
/// requests discarded, flushes. The others are of what it has still to do, or times.
const DONE: [usize; 6] = [0, 2, 4, 6, 11, 15];

/// The block device that holds a file system.
#[derive(Debug)]
pub(crate) struct Disk {
    /// Where the kernel counts. None: it is on no block device, or not known on which.
    stat: Option<PathBuf>,
}

impl Disk {
    /// The one under a directory. One of several where a file system is on several.
    pub(crate) fn under(directory: &Path) -> Disk {
        Disk {
            stat: stat_of(directory).ok().flatten(),
        }
    }

    /// A number that changes whenever the disk has done something. None where nobody counts.
    pub(crate) fn has_done(&self) -> Option<u64> {
        let text = std::fs::read_to_string(self.stat.as_ref()?).ok()?;
        Some(done(&text))
    }
}

/// The sum of what was done, from the text of a `stat`.
fn done(text: &str) -> u64 {
    let columns: Vec<u64> = text
        .split_ascii_whitespace()
        .map(|column| column.parse().unwrap_or(0))
        .collect();
    let done = DONE.iter().filter_map(|at| columns.get(*at));
    done.fold(0, |sum, column| sum.wrapping_add(*column))
}

fn stat_of(directory: &Path) -> io::Result<Option<PathBuf>> {
    let there = |dev: u64| {
        let path = format!("/sys/dev/block/{}:{}/stat", major(dev), minor(dev));
        let path = PathBuf::from(path);
        path.is_file().then_some(path)
    };
    let device = rustix::fs::stat(directory)?.st_dev;
    if let Some(path) = there(device) {
        return Ok(Some(path));
    }
    // Some file systems (btrfs) have devices of their own, which stand for no disk.
    let table = std::fs::read("/proc/self/mountinfo")?;
    let Some(source) = source_of(&table, &std::fs::canonicalize(directory)?) else {
        return Ok(None);
    };
    let source = rustix::fs::stat(&source)?;
    Ok(match FileType::from_raw_mode(source.st_mode) {
        FileType::BlockDevice => there(source.st_rdev),
        _ => None,
    })
}

/// What is mounted where a path is, by the kernel's table (`proc_pid_mountinfo(5)`).
fn source_of(table: &[u8], path: &Path) -> Option<PathBuf> {
    let mut found: Option<(usize, PathBuf)> = None;
    for line in table.split(|byte| *byte == b'\n') {
        let fields: Vec<_> = line.split(|byte| *byte == b' ').collect();
        let Some(end) = fields.iter().position(|field| *field == b"-") else {
            continue;
        };
        let (Some(point), Some(source)) = (fields.get(4), fields.get(end + 2)) else {
            continue;
        };
        let point = mounts::unescaped(point);
        // Of several at one place the last is on top.
        let depth = point.as_os_str().len();
        if path.starts_with(&point) && found.as_ref().is_none_or(|(most, _)| depth >= *most) {
            found = Some((depth, mounts::unescaped(source)));
        }
    }
    found.map(|(_, source)| source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_counts_and_what_waits_does_not() {
        let before = "  10 1 80 5  20 2 160 9  3 100 200  4 0 8 1  6 7\n";
        let waits = "  10 1 80 5  20 2 160 9  9 999 999  4 0 8 1  6 7\n";
        assert_eq!(done(before), 10 + 80 + 20 + 160 + 4 + 6);
        assert_eq!(done(before), done(waits));
        for column in DONE {
            let mut more: Vec<_> = before.split_ascii_whitespace().collect();
            more[column] = "9999";
            assert_ne!(done(before), done(&more.join(" ")), "column {column}");
        }
        // An older kernel counts neither discards nor flushes.
        assert_eq!(done("1 0 2 0 3 0 4 0 0 0 0"), 10);
    }

    #[test]
    fn what_is_mounted_where_a_path_is_is_found() {
        let table = b"22 1 254:0 / / rw shared:1 - ext4 /dev/root rw\n\
            40 22 0:40 /@ /srv rw - btrfs /dev/sdb rw,subvol=/@\n\
            41 22 0:41 / /srv\\040data rw shared:2 master:1 - btrfs /dev/my\\040disk rw\n\
            broken\n";
        let found = |path: &str| source_of(table, Path::new(path));
        assert_eq!(found("/srv/x"), Some("/dev/sdb".into()));
        assert_eq!(found("/srv data/x"), Some("/dev/my disk".into()));
        assert_eq!(found("/srvx"), Some("/dev/root".into()));
        assert_eq!(source_of(b"", Path::new("/")), None);
    }

    #[test]
    fn a_file_system_in_memory_is_on_no_disk() {
        assert_eq!(Disk::under(Path::new("/proc")).has_done(), None);
        assert_eq!(Disk::under(Path::new("/does/not/exist")).has_done(), None);
    }
}
