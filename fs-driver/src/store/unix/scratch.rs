//! A store for a test, and a process for one that takes what others need as well.

use std::fs::File;

use rustix::process::{Resource, getrlimit, setrlimit};

use super::{Layout, Store};

/// An empty store of its own. Needs root, and a disk with extended attributes and file
/// handles.
pub(crate) fn scratch() -> (tempfile::TempDir, Store) {
    let place = tempfile::tempdir_in("/var/tmp").unwrap();
    let layout = Layout::new(place.path());
    for part in [layout.data(), layout.aside(), layout.state()] {
        std::fs::create_dir(part).unwrap();
    }
    let store = Store::open(layout).unwrap();
    (place, store)
}

/// Whether this process is one of the test's own; else one is started for it, and has to
/// succeed.
pub(crate) fn alone_in_a_process(test: &str) -> bool {
    const ALONE: &str = "TWINFOLD_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let done = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(ALONE, "1")
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&done.stdout);
    let worked = done.status.success() && told.contains("1 passed");
    assert!(worked, "{told}{}", String::from_utf8_lossy(&done.stderr));
    false
}

/// Sets the number of descriptors that this process may have.
pub(crate) fn limit_descriptors(most: u64) {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = Some(most);
    setrlimit(Resource::Nofile, limit).unwrap();
}

/// Takes all descriptors that this process may have.
pub(crate) fn take_all_descriptors() -> Vec<File> {
    limit_descriptors(100);
    let mut held = Vec::new();
    loop {
        match File::open("/dev/null") {
            Ok(file) => held.push(file),
            Err(e) => {
                assert_eq!(e.raw_os_error(), Some(libc::EMFILE));
                return held;
            }
        }
    }
}
