//! Short deterministic workloads: what is there before, and what is done.

use crate::acts::Act::{self, *};

/// One workload, in the directory `c` of the folder.
#[derive(Clone, Copy)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// Done, flushed and forgotten before.
    pub(crate) before: &'static [Act],
    pub(crate) acts: &'static [Act],
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

const MIB: u64 = 1 << 20;

/// All of them. Together they have every kind of change, cold and hot.
pub(crate) const CASES: &[Case] = &[
    Case {
        name: "new files",
        before: &[],
        acts: &[
            Mkdir("c/d"),
            Create("c/d/f"),
            Write("c/d/f", 0, 9000, 1),
            Fsync("c/d/f"),
            Create("c/e"),
            Write("c/e", 0, 100, 2),
            Write("c/d/f", 9000, 5000, 3),
            Fdatasync("c/d/f"),
            Write("c/e", 100, 70_000, 4),
        ],
    },
    Case {
        name: "overwrites",
        before: &[
            Create("c/f"),
            Write("c/f", 0, 60_000, 1),
            Write("c/f", 5 * MIB, 8192, 1),
        ],
        acts: &[
            Write("c/f", 4096, 4096, 2),
            WriteDsync("c/f", 8192, 4096, 3),
            Write("c/f", 5 * MIB, 4096, 4),
            Fdatasync("c/f"),
            Write("c/f", 100, 50_000, 5),
            Write("c/f", 5 * MIB + 3000, 3000, 6),
            Fsync("c/f"),
            Write("c/f", 4096, 512, 7),
        ],
    },
    Case {
        name: "sizes",
        before: &[
            Create("c/f"),
            Write("c/f", 0, 50_000, 1),
            Create("c/g"),
            Write("c/g", 0, 20_000, 1),
        ],
        acts: &[
            Truncate("c/f", 30_000),
            Truncate("c/f", 40_000),
            Punch("c/f", 4096, 8192),
            Fsync("c/f"),
            Allocate("c/g", 0, 40_000),
            Truncate("c/g", 5 * MIB),
            Write("c/g", 5 * MIB, 3000, 2),
            Fdatasync("c/g"),
            Truncate("c/f", 0),
            Write("c/f", 0, 6000, 3),
            Fsync("c/f"),
        ],
    },
    Case {
        name: "renames",
        before: &[
            Mkdir("c/d"),
            Mkdir("c/e"),
            Create("c/d/old"),
            Write("c/d/old", 0, 6000, 1),
            Create("c/e/there"),
            Write("c/e/there", 0, 3000, 2),
        ],
        acts: &[
            Create("c/new"),
            Write("c/new", 0, 10_000, 3),
            Fsync("c/new"),
            Rename("c/new", "c/d/old"),
            Rename("c/d/old", "c/e/moved"),
            Fsync("c/e/moved"),
            Rename("c/e/moved", "c/e/there"),
            Rename("c/e", "c/d/e"),
            Write("c/d/e/there", 500, 1000, 4),
            Fsync("c/d/e/there"),
        ],
    },
    Case {
        name: "exchanges",
        before: &[
            Create("c/one"),
            Write("c/one", 0, 5000, 1),
            Mkdir("c/d"),
            Create("c/d/in"),
            Write("c/d/in", 0, 4000, 2),
        ],
        acts: &[
            Create("c/two"),
            Write("c/two", 0, 5000, 3),
            Fsync("c/two"),
            Exchange("c/one", "c/two"),
            Exchange("c/one", "c/d"),
            Write("c/two", 1000, 1000, 4),
            Fsync("c/two"),
            Rename("c/one/in", "c/in"),
            Fsync("c/in"),
        ],
    },
    Case {
        name: "links",
        before: &[Create("c/f"), Write("c/f", 0, 8000, 1), Mkdir("c/d")],
        acts: &[
            Link("c/f", "c/d/g"),
            Write("c/d/g", 100, 300, 2),
            Fsync("c/f"),
            Unlink("c/f"),
            Link("c/d/g", "c/h"),
            Fsync("c/h"),
            Unlink("c/d/g"),
            Rename("c/h", "c/d/h"),
            Fsync("c/d/h"),
        ],
    },
    Case {
        name: "unlinked while open",
        before: &[
            Create("c/f"),
            Write("c/f", 0, 8000, 1),
            Create("c/g"),
            Write("c/g", 0, 8000, 2),
        ],
        acts: &[
            Open("c/f"),
            WriteOpen("c/f", 0, 500, 3),
            FsyncOpen("c/f"),
            Unlink("c/f"),
            WriteOpen("c/f", 500, 9000, 4),
            Create("c/f"),
            Write("c/f", 0, 700, 5),
            Fsync("c/f"),
            Open("c/g"),
            Rename("c/f", "c/g"),
            WriteOpen("c/g", 0, 500, 6),
            Close("c/g"),
            Close("c/f"),
            Unlink("c/g"),
        ],
    },
    Case {
        name: "directories",
        before: &[Mkdir("c/old"), Mkdir("c/old/er")],
        acts: &[
            Mkdir("c/a"),
            Mkdir("c/a/b"),
            Mkdir("c/a/b/c"),
            Create("c/a/b/c/f"),
            Write("c/a/b/c/f", 0, 5000, 1),
            Fsync("c/a/b/c/f"),
            Rename("c/a/b", "c/old/b"),
            Rmdir("c/old/er"),
            Rmdir("c/a"),
            Mkdir("c/a"),
            Rename("c/old/b/c", "c/a/c"),
            Write("c/a/c/f", 5000, 500, 2),
            Fsync("c/a/c/f"),
        ],
    },
    Case {
        name: "attributes",
        before: &[
            Create("c/f"),
            Write("c/f", 0, 3000, 1),
            Setxattr("c/f", "user.old", 10),
            Mkdir("c/d"),
        ],
        acts: &[
            Chmod("c/f", 0o604),
            Chown("c/f", 1234),
            Setxattr("c/f", "user.new", 500),
            Removexattr("c/f", "user.old"),
            Fsync("c/f"),
            Chmod("c/d", 0o711),
            Setxattr("c/d", "user.dir", 40),
            Create("c/g"),
            Setxattr("c/g", "user.x", 700),
            Chmod("c/g", 0o400),
            Fsync("c/g"),
            Setxattr("c/f", "user.new", 20),
        ],
    },
    Case {
        name: "special files",
        before: &[Symlink("c/l", "old/target"), Create("c/f")],
        acts: &[
            Symlink("c/m", "some/where"),
            Fifo("c/p"),
            Chown("c/m", 77),
            Unlink("c/l"),
            Symlink("c/l", "new/target"),
            Rename("c/m", "c/n"),
            Write("c/f", 0, 100, 1),
            Fsync("c/f"),
            Unlink("c/p"),
        ],
    },
    Case {
        name: "copies and many names",
        before: &[Create("c/from"), Write("c/from", 0, 60_000, 1)],
        acts: &[
            Create("c/to"),
            Copy("c/from", 4096, "c/to", 0, 20_000),
            Fsync("c/to"),
            Create("c/1"),
            Create("c/2"),
            Create("c/3"),
            Write("c/2", 0, 4000, 2),
            Fsync("c/2"),
            Unlink("c/1"),
            Unlink("c/3"),
            Create("c/1"),
            Copy("c/from", 0, "c/1", 100, 5000),
            Fsync("c/1"),
        ],
    },
    // The peer foresees the later syncs, and in the end one that does not come.
    Case {
        name: "commits",
        before: &[Create("c/log"), Write("c/log", 0, 30_000, 1)],
        acts: &[
            Write("c/log", 0, 4096, 2),
            Fdatasync("c/log"),
            Write("c/log", 4096, 4096, 3),
            Fdatasync("c/log"),
            Write("c/log", 8192, 4096, 4),
            Fdatasync("c/log"),
            Write("c/log", 12_288, 4096, 5),
            Fdatasync("c/log"),
            Write("c/log", 16_384, 4096, 6),
            Fdatasync("c/log"),
            Write("c/log", 30_000, 5000, 7),
            Fdatasync("c/log"),
            Write("c/log", 35_000, 5000, 8),
            Write("c/log", 0, 5000, 9),
            Fdatasync("c/log"),
        ],
    },
];
