//! An application that notes what was acknowledged to it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use harness::wait_until;

/// Places in a file, each written again and again.
const SLOTS: usize = 64;

/// Bytes written at once.
const SIZE: usize = 3000;

/// How long writers may take to come forward on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What one writer knows of its file.
#[derive(Default)]
struct Written {
    /// The number of the last write of each place that was acknowledged, and of the
    /// last that was begun.
    slots: Vec<(u64, u64)>,
    error: Option<std::io::Error>,
}

/// Some writers, each in a file of its own, as long as they are not told to stop.
pub(crate) struct Writers {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    threads: Vec<(String, JoinHandle<Written>)>,
}

/// What was acknowledged.
pub(crate) struct Record(Vec<(String, Written)>);

impl Writers {
    /// Starts `count` writers in `folder`; each tenth write is followed by an fsync.
    pub(crate) fn start(folder: PathBuf, count: usize) -> Writers {
        let stop = Arc::<AtomicBool>::default();
        let acknowledged = Arc::<AtomicU64>::default();
        let threads = (0..count)
            .map(|n| {
                let name = format!("writer-{n}");
                let path = folder.join(&name);
                let (stop, acknowledged) = (stop.clone(), acknowledged.clone());
                let thread = std::thread::spawn(move || write(&path, &stop, &acknowledged));
                (name, thread)
            })
            .collect();
        Writers {
            stop,
            acknowledged,
            threads,
        }
    }

    /// How many writes were acknowledged so far.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::SeqCst)
    }

    /// Waits until `more` further writes are acknowledged.
    pub(crate) fn expect(&self, more: u64, when: &str) {
        let goal = self.acknowledged() + more;
        assert!(
            wait_until(PATIENCE, || self.acknowledged() >= goal),
            "{when}: only {} of {goal} writes were acknowledged",
            self.acknowledged()
        );
    }

    /// Lets every writer finish the call it is in. The application never sees an error.
    pub(crate) fn finish(self) -> Record {
        let record = self.finish_whatever_happened();
        for (name, written) in &record.0 {
            assert!(written.error.is_none(), "{name}: {:?}", written.error);
        }
        record
    }

    /// The same where the primary was taken away.
    pub(crate) fn finish_whatever_happened(self) -> Record {
        self.stop.store(true, Ordering::SeqCst);
        let done = |(name, thread): (String, JoinHandle<Written>)| (name, thread.join().unwrap());
        Record(self.threads.into_iter().map(done).collect())
    }
}

fn block(number: u64) -> Vec<u8> {
    let mut bytes = number.to_le_bytes().repeat(SIZE / 8 + 1);
    bytes.truncate(SIZE);
    bytes
}

fn write(path: &Path, stop: &AtomicBool, acknowledged: &AtomicU64) -> Written {
    let mut written = Written {
        slots: vec![(0, 0); SLOTS],
        error: None,
    };
    let result = (|| {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        let mut number = 0;
        while !stop.load(Ordering::SeqCst) {
            number += 1;
            let slot = number as usize * 37 % SLOTS;
            written.slots[slot].1 = number;
            file.write_all_at(&block(number), (slot * SIZE) as u64)?;
            written.slots[slot].0 = number;
            acknowledged.fetch_add(1, Ordering::SeqCst);
            if number % 10 == 0 {
                file.sync_data()?;
            }
        }
        Ok(())
    })();
    written.error = result.err();
    written
}

impl Record {
    /// Fails the test if an acknowledged write is not in `folder`. A write that was
    /// begun and not acknowledged may be there or not, but not in part.
    pub(crate) fn check(&self, folder: &Path) {
        for (name, written) in &self.0 {
            let file = File::open(folder.join(name)).unwrap();
            for (slot, (acknowledged, begun)) in written.slots.iter().enumerate() {
                if *acknowledged == 0 {
                    continue;
                }
                let mut found = vec![0; SIZE];
                file.read_exact_at(&mut found, (slot * SIZE) as u64)
                    .unwrap();
                let number = u64::from_le_bytes(found[..8].try_into().unwrap());
                assert!(
                    number == *acknowledged || number == *begun,
                    "{name}: write {acknowledged} was acknowledged (and {begun} begun), found {number}"
                );
                assert_eq!(found, block(number), "{name}: a write in part");
            }
        }
    }
}
