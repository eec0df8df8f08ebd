//! The application: it writes, syncs, reads back, makes and removes files, and ends the
//! test when it sees an error, or bytes that it did not write.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use harness::wait_until;

use super::PATIENCE;

const BLOCK: usize = 4096;

/// Blocks of each of the large files.
const BLOCKS: usize = 32;

/// Large files, open all the time.
const FILES: usize = 3;

/// What must be there, by name.
pub(crate) type Model = BTreeMap<String, Vec<u8>>;

/// A running application.
pub(crate) struct App {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicUsize>,
    thread: JoinHandle<Model>,
}

impl App {
    /// Starts it below a mount, and waits until it has done something.
    pub(crate) fn start(mount: &Path) -> App {
        App::begin(mount, Model::new())
    }

    /// Starts it where it was ended with this model.
    pub(crate) fn start_again(mount: &Path, model: &Model) -> App {
        App::begin(mount, model.clone())
    }

    fn begin(mount: &Path, model: Model) -> App {
        let stop = Arc::new(AtomicBool::new(false));
        let rounds = Arc::new(AtomicUsize::new(0));
        let thread = {
            let (stop, rounds, root) = (stop.clone(), rounds.clone(), mount.join("app"));
            std::thread::spawn(move || run(&root, model, &stop, &rounds))
        };
        let app = App {
            stop,
            rounds,
            thread,
        };
        app.go_on(20);
        app
    }

    /// Waits until it has done so many rounds more.
    pub(crate) fn go_on(&self, rounds: usize) {
        let until = self.rounds.load(Ordering::SeqCst) + rounds;
        let went = wait_until(PATIENCE, || {
            self.thread.is_finished() || self.rounds.load(Ordering::SeqCst) >= until
        });
        assert!(
            went && !self.thread.is_finished(),
            "the application stopped"
        );
    }

    /// Ends it; returns what must be there.
    pub(crate) fn stop(self) -> Model {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().expect("the application saw no error")
    }

    /// Waits until it ends with an error.
    pub(crate) fn fails(self) {
        let ended = wait_until(PATIENCE, || self.thread.is_finished());
        assert!(ended, "the application saw no error");
        assert!(self.thread.join().is_err());
    }
}

/// Fails the test unless everything is there, and nothing else.
pub(crate) fn check(mount: &Path, model: &Model) {
    let root = mount.join("app");
    let mut names: Vec<String> = fs::read_dir(&root)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, model.keys().cloned().collect::<Vec<_>>());
    for (name, bytes) in model {
        assert!(fs::read(root.join(name)).unwrap() == *bytes, "{name}");
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        // xorshift64 (Marsaglia, 2003).
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

fn run(root: &Path, mut model: Model, stop: &AtomicBool, rounds: &AtomicUsize) -> Model {
    let mut round = model.len() * 10_000;
    if model.is_empty() {
        fs::create_dir(root).unwrap();
    }
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let open = |n: usize| {
        let name = format!("large {n}");
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(root.join(&name))
            .unwrap();
        (name, file)
    };
    let files: Vec<(String, File)> = (0..FILES).map(open).collect();
    for (name, file) in &files {
        let bytes = vec![b'a'; BLOCKS * BLOCK];
        file.write_all_at(&bytes, 0).unwrap();
        file.sync_all().unwrap();
        model.insert(name.clone(), bytes);
    }
    while !stop.load(Ordering::SeqCst) {
        let (name, file) = &files[random.below(FILES)];
        let at = random.below(BLOCKS) * BLOCK;
        let mut block = [0; BLOCK];
        block.fill((round % 251) as u8);
        block[..8].copy_from_slice(&(round as u64).to_le_bytes());
        file.write_all_at(&block, at as u64).unwrap();
        let known = model.get_mut(name).unwrap();
        known[at..at + BLOCK].copy_from_slice(&block);
        match round % 4 {
            0 => file.sync_all().unwrap(),
            1 => file.sync_data().unwrap(),
            _ => {}
        }
        // What the kernel has cached is not asked.
        rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        let at = random.below(BLOCKS) * BLOCK;
        let mut found = [0; BLOCK];
        file.read_exact_at(&mut found, at as u64).unwrap();
        assert!(
            found[..] == known[at..at + BLOCK],
            "round {round}: {name} at {at}"
        );
        if round.is_multiple_of(5) {
            names(root, round, &mut model);
        }
        round += 1;
        rounds.fetch_add(1, Ordering::SeqCst);
    }
    for (_, file) in &files {
        file.sync_all().unwrap();
    }
    model
}

/// Makes a file, gives it its name when it is whole, lists, and removes an older one.
fn names(root: &Path, round: usize, model: &mut Model) {
    let path = |name: &str| -> PathBuf { root.join(name) };
    let bytes = format!("{round}\n").repeat(500).into_bytes();
    let mut file = File::create(path("new")).unwrap();
    file.write_all(&bytes).unwrap();
    file.sync_all().unwrap();
    drop(file);
    let name = format!("small {round}");
    fs::rename(path("new"), path(&name)).unwrap();
    File::open(root).unwrap().sync_all().unwrap();
    model.insert(name, bytes);
    let old: Vec<String> = model
        .keys()
        .filter(|n| n.starts_with("small"))
        .cloned()
        .collect();
    if old.len() > 6 {
        fs::remove_file(path(&old[0])).unwrap();
        model.remove(&old[0]);
    }
    let listed = fs::read_dir(root).unwrap().count();
    assert_eq!(listed, model.len(), "round {round}");
}
