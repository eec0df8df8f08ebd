//! A pair with something in it, and something outside that nobody may touch.

use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use harness::{Node, Options, Pair, Role, Scope, Tree, wait_until};
use tempfile::TempDir;
use twinfold_protocol::ids::FileId;

/// Ids of what is in the folder.
#[derive(Clone, Copy)]
pub(crate) struct Ids {
    /// A regular file with two names, `file` and `second`.
    pub(crate) file: FileId,
    /// `dir`, which holds `below`.
    pub(crate) dir: FileId,
    /// `dir/below`, which holds a file.
    pub(crate) below: FileId,
    /// A symbolic link to a directory outside.
    pub(crate) out: FileId,
    /// A symbolic link to a file outside.
    pub(crate) victim: FileId,
    /// A named pipe.
    pub(crate) pipe: FileId,
}

impl Ids {
    /// An id that no object has.
    pub(crate) const NOBODY: FileId = FileId((77 << FileId::COUNTER_BITS) | 5);
    /// Ids for new objects.
    pub(crate) const NEW: FileId = FileId((1 << FileId::COUNTER_BITS) | 900_000);
}

/// The pair, and what it looked like before.
pub(crate) struct Stage {
    pub(crate) pair: Pair,
    pub(crate) ids: Ids,
    outside: TempDir,
    outside_before: Tree,
}

impl Stage {
    /// A pair that was paired and has been filled. Both nodes run.
    pub(crate) fn new(options: Options) -> Stage {
        let pair = Pair::with(options);
        let outside = tempfile::tempdir_in("/var/tmp").unwrap();
        std::fs::create_dir(outside.path().join("home")).unwrap();
        std::fs::write(outside.path().join("home/victim"), "not yours").unwrap();
        fill(&pair.on_a(""), outside.path());
        pair.assert_identical();
        // Neither node has a note left that could hide what is done to its copy now.
        for round in 0..3 {
            std::fs::write(pair.on_a("round"), round.to_string()).unwrap();
            pair.wait_settled();
            pair.checkpoint();
            let flushed = || pair.a.status().unwrap()["unflushed_objects"] == 0;
            assert!(wait_until(Duration::from_secs(60), flushed));
        }
        let id = |name: &str| {
            let meta = std::fs::symlink_metadata(pair.on_a(name)).unwrap();
            FileId(meta.ino())
        };
        let ids = Ids {
            file: id("file"),
            dir: id("dir"),
            below: id("dir/below"),
            out: id("out"),
            victim: id("victim"),
            pipe: id("pipe"),
        };
        let outside_before = Tree::read(outside.path(), Scope::Mount).unwrap();
        Stage {
            pair,
            ids,
            outside,
            outside_before,
        }
    }

    /// The same with A stopped: B waits for a primary, and somebody else may be it.
    pub(crate) fn without_a() -> Stage {
        let mut stage = Stage::new(Options {
            // What stalls within a frame is given up after the first of these.
            deadlines: [3000, 45_000, 60_000],
            ..Options::default()
        });
        stage.pair.a.stop().unwrap();
        stage
    }

    /// Fails unless nothing outside the folder has changed.
    pub(crate) fn assert_outside_untouched(&self, what: &str) {
        let now = Tree::read(self.outside.path(), Scope::Mount).unwrap();
        let changes = self.outside_before.changes(&now);
        assert!(changes.is_empty(), "{what} reached out:\n{changes:#?}");
    }

    /// Starts the honest A on B as it is; both end equal.
    pub(crate) fn end_with_the_honest_primary(mut self) -> Stage {
        self.pair.a.start(Role::Primary).unwrap();
        self.pair.assert_identical();
        std::fs::write(self.pair.on_a("afterwards"), "still here").unwrap();
        self.pair.assert_identical();
        self.assert_outside_untouched("the honest primary");
        self
    }
}

fn fill(folder: &Path, outside: &Path) {
    let path = |name: &str| -> PathBuf { folder.join(name) };
    std::fs::write(path("file"), vec![7; 10_000]).unwrap();
    std::fs::hard_link(path("file"), path("second")).unwrap();
    std::fs::create_dir_all(path("dir/below")).unwrap();
    std::fs::write(path("dir/below/leaf"), "leaf").unwrap();
    std::fs::create_dir(path("empty")).unwrap();
    symlink(outside.join("home"), path("out")).unwrap();
    symlink(outside.join("home/victim"), path("victim")).unwrap();
    let pipe = rustix::fs::mknodat(
        rustix::fs::CWD,
        path("pipe"),
        rustix::fs::FileType::Fifo,
        0o600.into(),
        0,
    );
    pipe.unwrap();
}

/// What a node's store holds.
pub(crate) fn store(node: &Node) -> Tree {
    Tree::read(&node.data(), Scope::Store).unwrap()
}

/// Waits until a primary is alone: a peer that was about to become current may be
/// missed for a moment.
pub(crate) fn wait_alone(node: &Node) {
    let alone = || node.status().unwrap()["link"] == "alone";
    assert!(
        wait_until(Duration::from_secs(60), alone),
        "{:?}",
        node.status()
    );
}

/// Fails unless the node answers and its store is what it was.
pub(crate) fn assert_unharmed(node: &Node, before: &Tree, what: &str) {
    node.status()
        .unwrap_or_else(|e| panic!("{what}: {e:#}\n{}", node.last_words()));
    let changes = before.changes(&store(node));
    assert!(
        changes.is_empty(),
        "{what} changed the store of {}:\n{}",
        node.name(),
        changes.join("\n")
    );
}
