//! A primary that sends much at once hears of the progress while it is made: a slow
//! secondary is told from a dead one by that alone.

use std::path::Path;

use bytes::Bytes;
use twinfold_protocol::attr::Kind;
use twinfold_protocol::ids::FileId;
use twinfold_protocol::op::{Listing, Name, Op, PutEntry};
use twinfold_protocol::wire::Receipt;

use crate::frames::{object, op};
use crate::impostor::Impostor;
use crate::stage::{Ids, Stage};
use crate::wire::run;

/// Ops in the burst, each of which makes many files.
const OPS: u64 = 250;

/// Files made by one op.
const FILES: u64 = 16;

fn burst() -> Bytes {
    let entry = |n: u64| PutEntry {
        name: Name::new(format!("burst-{n}").as_bytes()).unwrap(),
        object: Some(object(FileId(Ids::NEW.0 + n), Kind::Regular)),
    };
    let all = (0..OPS).map(|number| {
        let files = number * FILES..(number + 1) * FILES;
        op(
            number + 1,
            Op::PutDirectory {
                directory: FileId::ROOT,
                listing: Listing::Names,
                entries: files.map(entry).collect(),
            },
        )
    });
    all.collect::<Vec<Bytes>>().concat().into()
}

fn names(directory: &Path) -> u64 {
    std::fs::read_dir(directory).unwrap().count() as u64
}

#[test]
fn a_secondary_tells_its_progress_while_it_applies_a_burst() {
    let stage = Stage::without_a();
    run(async {
        let impostor = Impostor::of(&stage.pair.a);
        let (_caller, mut ops) = impostor.begin().await;
        ops.send(&burst()).await;
        let (mut applied, mut latest) = (0, 0);
        while applied != OPS {
            let frame = ops.frame().await.expect("a receipt");
            applied = match Receipt::decode(frame).unwrap() {
                Receipt::Applied { applied, .. } => applied.0,
                other => panic!("{other:?}"),
            };
            let made = names(&stage.pair.b.data()) / FILES;
            latest = latest.max(made.saturating_sub(applied));
        }
        assert!(
            latest < OPS / 5,
            "{latest} of {OPS} ops had been applied before a receipt for the first of them came"
        );
    });
    stage.end_with_the_honest_primary();
}
