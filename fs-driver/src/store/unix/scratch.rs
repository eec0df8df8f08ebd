//! A store for a test.

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
