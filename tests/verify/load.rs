//! An application that never rests: every kind of change, all the time.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Threads that change things below directories of their own.
const THREADS: u64 = 3;

/// Files of each.
const FILES: u64 = 12;

/// Largest file, in bytes.
const SIZE: u64 = 3 << 20;

/// Rest after each change, so that in every mode the disk keeps up.
const REST: Duration = Duration::from_millis(1);

/// Changes until it is dropped.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    changes: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

/// Numbers that look random, the same in each run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

impl Load {
    pub(crate) fn begin(below: &Path) -> Load {
        let (stop, changes) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let threads = (0..THREADS)
            .map(|n| {
                let directory = below.join(format!("load{n}"));
                fs::create_dir_all(directory.join("sub")).unwrap();
                let (stop, changes) = (stop.clone(), changes.clone());
                std::thread::spawn(move || {
                    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15 + n);
                    while !stop.load(Ordering::Relaxed) {
                        change(&directory, &mut numbers);
                        changes.fetch_add(1, Ordering::Relaxed);
                        std::thread::sleep(REST);
                    }
                })
            })
            .collect();
        Load {
            stop,
            changes,
            threads,
        }
    }

    /// Changes made so far.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // When the test has failed, a write may be held, and nobody lets it go before the
            // nodes are ended, behind this one.
            if !std::thread::panicking() {
                assert!(thread.join().is_ok());
            }
        }
    }
}

fn path(directory: &Path, numbers: &mut Numbers) -> PathBuf {
    let below = match numbers.below(3) {
        0 => directory.join("sub"),
        _ => directory.to_owned(),
    };
    below.join(format!("f{}", numbers.below(FILES)))
}

/// One change. That a name is there or not is for chance to decide.
fn change(directory: &Path, numbers: &mut Numbers) {
    let target = path(directory, numbers);
    let open = || File::options().read(true).write(true).open(&target);
    match numbers.below(16) {
        0..=6 => {
            if let Ok(file) = open() {
                let data = vec![numbers.below(256) as u8; 1 + numbers.below(30_000) as usize];
                file.write_all_at(&data, numbers.below(SIZE)).unwrap();
            }
        }
        7 => {
            if let Ok(file) = open() {
                file.set_len(numbers.below(SIZE)).unwrap();
            }
        }
        8 => {
            let _ = fs::write(&target, b"new");
        }
        9 => {
            let _ = fs::rename(&target, path(directory, numbers));
        }
        10 => {
            let _ = fs::remove_file(&target);
        }
        11 => {
            let _ = fs::hard_link(&target, path(directory, numbers));
        }
        12 => {
            let mode = 0o600 + numbers.below(64) as u32;
            let _ = fs::set_permissions(&target, fs::Permissions::from_mode(mode));
        }
        13 => {
            let name = format!("user.x{}", numbers.below(3));
            let value = vec![7; numbers.below(200) as usize];
            let _ = rustix::fs::setxattr(&target, &name, &value, rustix::fs::XattrFlags::empty());
        }
        14 => {
            let link = target.with_extension("link");
            let _ = fs::remove_file(&link);
            let _ = symlink(format!("{}", numbers.below(1000)), link);
        }
        _ => {
            let made = target.with_extension("d");
            let _ = fs::create_dir(&made);
            let _ = fs::rename(&made, path(directory, numbers).with_extension("e"));
            let _ = fs::remove_dir(path(directory, numbers).with_extension("e"));
        }
    }
}
