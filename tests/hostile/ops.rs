//! A hostile primary against a real secondary, on the op stream: what breaks the
//! protocol or cannot be done ends the session with the reason, nothing of the op is
//! done, and the copy is not up to date until an honest primary has brought it up.

use std::os::unix::fs::MetadataExt;

use bytes::Bytes;
use harness::Role;
use twinfold_protocol::attr::Kind;
use twinfold_protocol::ids::FileId;
use twinfold_protocol::limits;
use twinfold_protocol::op::{
    AllocateMode, Change, Listing, Name, Object, Op, PutEntry, RenameMode, XattrMode,
};
use twinfold_protocol::time::Timestamp;
use twinfold_protocol::wire::Receipt;

use crate::frames::{bad_names, create, create_named, object, op, write};
use crate::impostor::Impostor;
use crate::stage::{Ids, Stage, assert_unharmed, store};
use crate::wire::{ending, run};

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

/// A listing that gives `object` a name in `directory`.
fn put(directory: FileId, at: &str, object: Object) -> Op {
    Op::PutDirectory {
        directory,
        listing: Listing::Names,
        entries: vec![PutEntry {
            name: name(at),
            object: Some(object),
        }],
    }
}

fn rename(parent: FileId, from: &str, file: FileId, new_parent: FileId, to: &str) -> Op {
    Op::Rename {
        parent,
        name: name(from),
        file,
        new_parent,
        new_name: name(to),
        replaced: None,
        mode: RenameMode::Replace,
    }
}

/// Frames that break the protocol, and what the secondary says about each.
fn violations(ids: Ids) -> Vec<(String, Vec<Bytes>, &'static str)> {
    let cut = |size| Op::Truncate {
        file: ids.file,
        size,
        clear_privileges: false,
    };
    let case = |what: &str, frames, says| (what.to_owned(), frames, says);
    let mut trailing = op(1, cut(1)).to_vec();
    trailing[0] += 1;
    trailing.push(0);
    let mut short = op(1, cut(1)).to_vec();
    short[0] -= 1;
    short.pop();
    let mut all = vec![
        case("a gap", vec![op(2, cut(1))], "op 2 came after op 0"),
        case("an op of long ago", vec![op(0, cut(1))], "op 0 came twice"),
        case(
            "an op of the far future",
            vec![op(u64::MAX, cut(1))],
            "came after op 0",
        ),
        case(
            "an op that comes twice",
            vec![op(1, Op::Checkpoint), op(1, cut(1))],
            "op 1 came twice",
        ),
        case(
            "an unknown kind",
            vec![crate::wire::frame(200, &[0; 28])],
            "unknown op 200",
        ),
        case(
            "a receipt in the wrong direction",
            vec![crate::wire::frame(65, &[0; 28])],
            "unknown op 65",
        ),
        case("bytes left over", vec![trailing.into()], "too many"),
        case(
            "a value cut short",
            vec![short.into()],
            "ends inside a value",
        ),
        case(
            "an empty frame",
            vec![Bytes::from_static(&[0; 4])],
            "ends inside a value",
        ),
        case(
            "a frame of nothing but a kind",
            vec![crate::wire::frame(1, &[])],
            "ends inside a value",
        ),
        case("no object at all", vec![op(1, write(FileId(0)))], "file id"),
    ];
    for (bytes, length, says) in bad_names() {
        let what = format!("the name {:?}", String::from_utf8_lossy(&bytes));
        all.push((what, vec![create_named(1, &bytes, length, Ids::NEW)], says));
    }
    all
}

/// Ops that no store can do, and what the secondary says about each.
fn impossible(ids: Ids) -> Vec<(&'static str, Op, &'static str)> {
    let data = |file| Op::PutData {
        file,
        offset: 0,
        data: Bytes::from_static(b"!").into(),
    };
    let own = |file| Op::SetXattr {
        file,
        name: Bytes::from_static(b"trusted.twinfold"),
        value: Bytes::copy_from_slice(&1u64.to_le_bytes()),
        mode: XattrMode::Either,
    };
    let directory = |at| object(at, Kind::Directory);
    vec![
        ("a write to nobody", write(Ids::NOBODY), "drifted apart"),
        ("a write through a link", write(ids.victim), "write of"),
        ("a write to a directory", write(ids.dir), "write of"),
        ("a write to a pipe", write(ids.pipe), "write of"),
        ("resync data through a link", data(ids.victim), "data"),
        ("resync data for nobody", data(Ids::NOBODY), "data"),
        (
            "a cut through a link",
            Op::Truncate {
                file: ids.victim,
                size: 0,
                clear_privileges: true,
            },
            "truncate of",
        ),
        (
            "a file in nobody",
            create(Ids::NOBODY, "new", Ids::NEW, Kind::Regular),
            "drifted apart",
        ),
        (
            "a file behind a link",
            create(ids.out, "new", Ids::NEW, Kind::Regular),
            "drifted apart",
        ),
        (
            "a directory in a file",
            create(ids.file, "new", Ids::NEW, Kind::Directory),
            "drifted apart",
        ),
        (
            "a file in place of another",
            create(FileId::ROOT, "file", Ids::NEW, Kind::Regular),
            "drifted apart",
        ),
        (
            "a second object with one id",
            create(FileId::ROOT, "new", ids.file, Kind::Regular),
            "drifted apart",
        ),
        (
            "a second root",
            create(FileId::ROOT, "new", FileId::ROOT, Kind::Directory),
            "drifted apart",
        ),
        (
            "a link to a directory",
            Op::Link {
                file: ids.dir,
                parent: FileId::ROOT,
                name: name("new"),
            },
            "link of",
        ),
        (
            "a link behind a link",
            Op::Link {
                file: ids.file,
                parent: ids.out,
                name: name("new"),
            },
            "drifted apart",
        ),
        (
            "the removal of somebody else's name",
            Op::Unlink {
                parent: ids.out,
                name: name("victim"),
                file: ids.victim,
            },
            "Not a directory",
        ),
        (
            "the removal of what is not there",
            Op::Unlink {
                parent: FileId::ROOT,
                name: name("nothing"),
                file: ids.file,
            },
            "drifted apart",
        ),
        (
            "the removal of a full directory",
            Op::RemoveDirectory {
                parent: FileId::ROOT,
                name: name("dir"),
                file: ids.dir,
            },
            "drifted apart",
        ),
        (
            "a directory moved below itself",
            rename(FileId::ROOT, "dir", ids.dir, ids.below, "dir"),
            "rename of",
        ),
        (
            "a file moved behind a link",
            rename(FileId::ROOT, "file", ids.file, ids.out, "file"),
            "Not a directory",
        ),
        (
            "other names than there are",
            rename(FileId::ROOT, "file", ids.dir, FileId::ROOT, "new"),
            "drifted apart",
        ),
        (
            "an object of another kind",
            Op::PutObject {
                object: directory(ids.file),
                xattrs: Vec::new(),
            },
            "on the primary",
        ),
        (
            "the root as a file",
            Op::PutObject {
                object: object(FileId::ROOT, Kind::Regular),
                xattrs: Vec::new(),
            },
            "on the primary",
        ),
        (
            "a listing of a file",
            put(ids.file, "new", directory(Ids::NEW)),
            "Not a directory",
        ),
        (
            "a listing behind a link",
            put(ids.out, "victim", directory(Ids::NEW)),
            "Not a directory",
        ),
        (
            "an empty listing of a file",
            Op::PutDirectory {
                directory: ids.file,
                listing: Listing::Whole {
                    first: true,
                    last: true,
                },
                entries: Vec::new(),
            },
            "Not a directory",
        ),
        (
            "an empty listing behind a link",
            Op::PutDirectory {
                directory: ids.out,
                listing: Listing::Whole {
                    first: true,
                    last: true,
                },
                entries: Vec::new(),
            },
            "directory: ",
        ),
        (
            "a listing that moves the root",
            put(ids.dir, "root", directory(FileId::ROOT)),
            "below itself",
        ),
        ("a twinfold attribute", own(ids.file), "not permitted"),
        (
            "a twinfold attribute in a resync",
            Op::PutObject {
                object: object(FileId::ROOT, Kind::Directory),
                xattrs: vec![(
                    Bytes::from_static(b"trusted.twinfold"),
                    Bytes::from_static(b"12345678"),
                )],
            },
            "not permitted",
        ),
        (
            "a change of nobody",
            Op::SetAttributes {
                file: Ids::NOBODY,
                change: Change {
                    mode: Some(0o777),
                    ..Change::default()
                },
            },
            "drifted apart",
        ),
        (
            "a size beyond all disks",
            Op::Truncate {
                file: ids.file,
                size: limits::MAX_OFFSET,
                clear_privileges: false,
            },
            "truncate of",
        ),
        (
            "space beyond all disks",
            Op::Allocate {
                file: ids.file,
                mode: AllocateMode::Allocate,
                offset: 0,
                length: limits::MAX_OFFSET,
            },
            "allocate of",
        ),
        (
            "a hole through a link",
            Op::Allocate {
                file: ids.victim,
                mode: AllocateMode::PunchHole,
                offset: 0,
                length: limits::MAX_OFFSET,
            },
            "allocate of",
        ),
        (
            "a copy of more than there is",
            Op::CopyRange {
                from: ids.file,
                from_offset: 20_000,
                to: ids.file,
                to_offset: 30_000,
                length: 1 << 62,
            },
            "drifted apart",
        ),
    ]
}

/// Opens as many streams as the secondary allows and says nothing on them.
pub(crate) async fn on_streams(impostor: &Impostor) {
    let (caller, mut ops) = impostor.begin().await;
    let mut streams = Vec::new();
    let enough = std::time::Duration::from_millis(300);
    while let Ok(Ok(stream)) = tokio::time::timeout(enough, caller.connection.open_bi()).await {
        streams.push(stream);
        assert!(
            streams.len() < 100,
            "the secondary puts no limit on streams"
        );
    }
    let uni = tokio::time::timeout(enough, caller.connection.open_uni()).await;
    assert!(uni.is_err(), "nobody needs streams of one direction");
    for (tx, _) in &mut streams {
        let _ = tx.write_all(b"\x01").await;
    }
    let _ = ops.tx.finish();
    ending(&caller.connection).await;
}

#[test]
fn a_secondary_refuses_ops_that_break_the_protocol() {
    let stage = Stage::without_a();
    let b = &stage.pair.b;
    let before = store(b);
    run(async {
        let impostor = Impostor::of(&stage.pair.a);
        for (what, frames, says) in violations(stage.ids) {
            println!("{}", what);
            let told = impostor.ship(&frames).await;
            assert!(told.contains(says), "{what}: the primary was told {told:?}");
            // Once: the same reason is not said again until the copy is up to date.
            b.expect_log(0, says);
            assert_unharmed(b, &before, &what);
            assert_eq!(b.status().unwrap()["up_to_date"], false, "{what}");
        }
        stage.assert_outside_untouched("a violation");
    });
    stage.end_with_the_honest_primary();
}

#[test]
fn a_secondary_fails_what_its_store_cannot_do_and_does_nothing_of_it() {
    let mut stage = Stage::without_a();
    let before = store(&stage.pair.b);
    run(async {
        let impostor = Impostor::of(&stage.pair.a);
        for (what, bad, says) in impossible(stage.ids) {
            println!("{what}");
            let from = stage.pair.b.log_text().len();
            let told = impostor.ship(&[op(1, bad)]).await;
            assert!(told.contains(says), "{what}: the primary was told {told:?}");
            stage.pair.b.expect_log(from, says);
            assert_unharmed(&stage.pair.b, &before, what);
            let status = stage.pair.b.status().unwrap();
            assert_eq!(status["up_to_date"], false, "{what}");
            stage.assert_outside_untouched(what);
            // It would wait longer and longer; a new driver begins at once.
            stage.pair.b.kill();
            stage.pair.b.start(Role::Secondary).unwrap();
        }
    });
    stage.end_with_the_honest_primary();
}

#[test]
fn attributes_of_a_link_stay_with_the_link() {
    let stage = Stage::without_a();
    let change = Change {
        mode: Some(0o777),
        uid: Some(1234),
        gid: Some(1234),
        accessed: Some(Timestamp { secs: 1, nanos: 1 }),
        modified: Some(Timestamp { secs: 2, nanos: 2 }),
    };
    let attribute = |file| Op::SetXattr {
        file,
        name: Bytes::from_static(b"trusted.note"),
        value: Bytes::from_static(b"x"),
        mode: XattrMode::Either,
    };
    let ids = stage.ids;
    run(async {
        let impostor = Impostor::of(&stage.pair.a);
        let told = impostor
            .ship(&[
                op(
                    1,
                    Op::SetAttributes {
                        file: ids.out,
                        change,
                    },
                ),
                op(
                    2,
                    Op::SetAttributes {
                        file: ids.victim,
                        change,
                    },
                ),
                op(3, attribute(ids.out)),
                op(4, attribute(ids.victim)),
                op(6, Op::Checkpoint),
            ])
            .await;
        assert!(told.contains("op 6 came after op 4"), "{told}");
    });
    stage.assert_outside_untouched("a change of a link's attributes");
    stage.end_with_the_honest_primary();
}

/// As if the two had changed places, but the name that has to go for it is never told of. What
/// was taken out of its place is still there, and gets its names again.
#[test]
fn a_listing_that_moves_a_directory_below_itself_loses_nothing() {
    let stage = Stage::without_a();
    let ids = stage.ids;
    let inode = |stage: &Stage| {
        let leaf = stage.pair.b.data().join("dir/below/leaf");
        std::fs::metadata(leaf).unwrap().ino()
    };
    let before = inode(&stage);
    let moved = put(ids.below, "loop", object(ids.dir, Kind::Directory));
    let frames = [op(1, moved), op(2, Op::ResyncEnd)];
    let told = run(async { Impostor::of(&stage.pair.a).ship(&frames).await });
    assert!(told.contains("below itself"), "{told}");
    let status = stage.pair.b.status().unwrap();
    assert_eq!(status["up_to_date"], false);
    let stage = stage.end_with_the_honest_primary();
    assert_eq!(inode(&stage), before, "it was removed, and sent again");
}

#[test]
fn a_copy_that_is_up_to_date_takes_no_resync_ops() {
    let stage = Stage::without_a();
    let b = &stage.pair.b;
    let before = store(b);
    run(async {
        let impostor = Impostor::of(&stage.pair.a);
        let (caller, mut ops) = impostor.begin().await;
        ops.send(&op(1, Op::ResyncEnd)).await;
        // Applied, then synced; between them it may tell that its disk is busy.
        loop {
            let frame = ops.frame().await.unwrap();
            if let Receipt::Synced { .. } = Receipt::decode(frame).unwrap() {
                break;
            }
        }
        assert_eq!(b.status().unwrap()["up_to_date"], true);
        let late = put(FileId::ROOT, "late", object(Ids::NEW, Kind::Regular));
        ops.send(&op(2, late)).await;
        let told = ending(&caller.connection).await;
        assert!(told.contains("came after the end of the resync"), "{told}");
    });
    assert_unharmed(b, &before, "a late resync op");
}
