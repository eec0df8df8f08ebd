//! For tests: the engine of a node that has a copy in a directory of its own, and no peer.

use std::sync::Arc;

use twinfold_protocol::ids::Side;

use super::Engine;
use crate::setup::{Init, default_base, init};
use crate::state::Settings;
use crate::store::Layout;

/// An engine without a role yet, and its place, which goes when it is dropped.
pub(super) fn opened(good_copy: bool) -> (Arc<Engine>, tempfile::TempDir) {
    let place = tempfile::tempdir_in("/var/tmp").unwrap();
    let mount = place.path().join("vm");
    std::fs::create_dir(&mount).unwrap();
    let peer = format!("tf1-{}-2ada", "0".repeat(64));
    let mut settings = Settings::new("vm", &mount, &peer);
    settings.listen = vec!["127.0.0.1:1".parse().unwrap()];
    settings.peer = vec!["127.0.0.1:2".parse().unwrap()];
    let base = default_base(&mount).unwrap();
    let what = Init {
        settings: settings.clone(),
        base: base.clone(),
        good_copy,
        seed: false,
        side: Side::Even,
    };
    init(&what, |_| ()).unwrap();
    let engine = Engine::open(Layout::new(base), settings, Side::Even, false).unwrap();
    (Arc::new(engine), place)
}
