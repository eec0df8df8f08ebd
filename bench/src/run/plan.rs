//! The workloads, as a table.

use crate::load::{Access, Act, Load};
use crate::systems::System;

/// What is done.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Work {
    /// A load on a folder: as fast as it goes with so many workers.
    Folder(Load, usize),
    /// Writes of so many bytes past the page cache, so many under way at once from one thread.
    Queue(usize, usize),
    /// A load on a folder, but steps begin at a fixed rate.
    Paced(Load, usize),
    /// Requests of 4 KiB and small answers, one after the other.
    RoundTrips,
    /// One stream of data.
    Stream,
    /// A load on a folder while a resync runs.
    DuringResync(Load, usize),
}

/// What a workload cannot be faster than on two nodes.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Floor {
    /// The plain pass-through.
    Plain,
    /// The plain pass-through, and so many round trips of bare QUIC, one after the other:
    /// what each change of the step has to wait for.
    PlainAndTrips(u32),
    /// Bytes through one stream of bare QUIC.
    Stream,
    /// It is a floor, or has none.
    None,
}

/// A row of the table.
#[derive(Clone, Debug)]
pub(crate) struct Workload {
    /// Short, for options and files.
    pub(crate) name: &'static str,
    /// What a person is told.
    pub(crate) title: &'static str,
    pub(crate) work: Work,
    pub(crate) floor: Floor,
    pub(crate) systems: Vec<System>,
}

impl Workload {
    /// Where this build is measured, another one is, too.
    pub(crate) fn add_other(&mut self) {
        if self.systems.contains(&System::Twinfold) {
            self.systems.push(System::Other);
        }
    }

    /// Whether each step ends with a sync, which waits for the peer in every mode.
    pub(crate) fn syncs(&self) -> bool {
        matches!(
            self.work,
            Work::Folder(
                Load::File(Access {
                    act: Act::WriteSync,
                    ..
                }),
                _
            )
        )
    }

    /// Where a peer is measured, DRBD is, too.
    pub(crate) fn add_drbd(&mut self) {
        if self.systems.contains(&System::Gluster) {
            self.systems.push(System::Drbd);
        }
    }
}

const PAGE: usize = 4096;
const MIB: usize = 1 << 20;

/// Folders that everything is measured on.
const FOLDERS: &[System] = &[
    System::Bare,
    System::Plain,
    System::Twinfold,
    System::Gluster,
];

/// And a peer that promises as much of a write.
const AND_STRICT: &[System] = &[
    System::Bare,
    System::Plain,
    System::Twinfold,
    System::Gluster,
    System::Strict,
];

/// And a primary without a peer.
const AND_ALONE: &[System] = &[
    System::Bare,
    System::Plain,
    System::Twinfold,
    System::Alone,
    System::Gluster,
    System::Strict,
];

/// And all ways to run a pair.
const ALL: &[System] = &[
    System::Bare,
    System::Plain,
    System::Twinfold,
    System::Flush,
    System::Alone,
    System::Gluster,
    System::Strict,
];

const WIRES: &[System] = &[System::Quic, System::Stock, System::Tcp];

const fn file(act: Act, bytes: usize, direct: bool, sequential: bool) -> Load {
    Load::File(Access {
        act,
        bytes,
        direct,
        sequential,
    })
}

const WRITE: Load = file(Act::Write, PAGE, false, false);
const DIRECT: Load = file(Act::Write, PAGE, true, false);
const SYNC: Load = file(Act::WriteSync, PAGE, false, false);

/// All of them.
pub(crate) fn workloads() -> Vec<Workload> {
    use Floor::{Plain, PlainAndTrips};
    use Work::{Folder, Paced};
    let row = |name, title, work, floor, systems: &[System]| Workload {
        name,
        title,
        work,
        floor,
        // In the same turns as what it is the floor of.
        systems: match floor {
            PlainAndTrips(_) => [systems, &[System::Quic]].concat(),
            Floor::Stream => [systems, &[System::Quic, System::Stock]].concat(),
            Plain | Floor::None => systems.to_vec(),
        },
    };
    let one = PlainAndTrips(1);
    vec![
        row(
            "round-trip-4k",
            "request of 4 KiB and answer",
            Work::RoundTrips,
            Floor::None,
            WIRES,
        ),
        row("stream", "one stream", Work::Stream, Floor::None, WIRES),
        row(
            "write-4k-d1",
            "4 KiB random write, depth 1",
            Folder(WRITE, 1),
            one,
            ALL,
        ),
        row(
            "write-4k-d8",
            "4 KiB random write, depth 8",
            Folder(WRITE, 8),
            Plain,
            FOLDERS,
        ),
        row(
            "write-4k-d32",
            "4 KiB random write, depth 32",
            Folder(WRITE, 32),
            Plain,
            AND_STRICT,
        ),
        row(
            "direct-4k-d1",
            "4 KiB O_DIRECT write, depth 1",
            Folder(DIRECT, 1),
            one,
            AND_ALONE,
        ),
        row(
            "direct-4k-d8",
            "4 KiB O_DIRECT write, depth 8",
            Folder(DIRECT, 8),
            Plain,
            FOLDERS,
        ),
        row(
            "direct-4k-d32",
            "4 KiB O_DIRECT write, depth 32",
            Folder(DIRECT, 32),
            Plain,
            AND_STRICT,
        ),
        row(
            "queue-4k-d32",
            "4 KiB O_DIRECT write, asynchronous, depth 32",
            Work::Queue(PAGE, 32),
            Plain,
            AND_STRICT,
        ),
        row(
            "fsync-4k-d1",
            "4 KiB write + fsync, depth 1",
            Folder(SYNC, 1),
            one,
            ALL,
        ),
        row(
            "fsync-4k-d8",
            "4 KiB write + fsync, depth 8",
            Folder(SYNC, 8),
            Plain,
            FOLDERS,
        ),
        row(
            "fsync-4k-d32",
            "4 KiB write + fsync, depth 32",
            Folder(SYNC, 32),
            Plain,
            AND_STRICT,
        ),
        row(
            "paced-4k-d8",
            "4 KiB random write at a fixed rate",
            Paced(WRITE, 8),
            Floor::None,
            FOLDERS,
        ),
        row(
            "write-1m",
            "1 MiB sequential write",
            Folder(file(Act::Write, MIB, false, true), 1),
            Floor::Stream,
            AND_STRICT,
        ),
        row(
            "read-1m",
            "1 MiB sequential read, direct",
            Folder(file(Act::Read, MIB, true, true), 1),
            Plain,
            FOLDERS,
        ),
        row(
            "read-4k-cached",
            "4 KiB random read, cached",
            Folder(file(Act::Read, PAGE, false, false), 1),
            Plain,
            FOLDERS,
        ),
        row(
            "read-4k-direct",
            "4 KiB random read, direct",
            Folder(file(Act::Read, PAGE, true, false), 1),
            Plain,
            FOLDERS,
        ),
        row(
            "create-unlink",
            "create, write 4 KiB, close, unlink",
            Folder(Load::Names { rename: false }, 1),
            PlainAndTrips(3),
            AND_ALONE,
        ),
        row(
            "create-rename-unlink",
            "create, write 4 KiB, close, rename, unlink; depth 8",
            Folder(Load::Names { rename: true }, 8),
            Plain,
            FOLDERS,
        ),
        row(
            "database",
            "database commits (write-ahead log)",
            Folder(Load::Database, 1),
            PlainAndTrips(4),
            FOLDERS,
        ),
        row(
            "vm-image",
            "virtual disk, depth 8",
            Folder(Load::Image, 8),
            Plain,
            FOLDERS,
        ),
        row(
            "append-log",
            "append to a log",
            Folder(Load::Log, 1),
            one,
            FOLDERS,
        ),
        row(
            "write-4k-d1-resync",
            "4 KiB random write during a resync",
            Work::DuringResync(WRITE, 1),
            Floor::None,
            &[System::Twinfold],
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_floor_needs_is_measured_beside_it() {
        for w in workloads() {
            let has = |system| w.systems.contains(&system);
            let measured = match w.floor {
                Floor::Plain => has(System::Plain),
                Floor::PlainAndTrips(_) => has(System::Plain) && has(System::Quic),
                Floor::Stream => has(System::Quic) && has(System::Stock),
                Floor::None => true,
            };
            assert!(measured, "{}", w.name);
        }
    }

    #[test]
    fn names_are_used_once() {
        let mut names: Vec<_> = workloads().iter().map(|w| w.name).collect();
        names.sort_unstable();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
