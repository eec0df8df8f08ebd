//! A primary that sends much at once hears of the progress while it is made: a slow
//! secondary is told from a dead one by that alone.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use twinfold_protocol::attr::Kind;
use twinfold_protocol::ids::FileId;
use twinfold_protocol::op::{Listing, Name, Op, PutEntry};
use twinfold_protocol::wire::Receipt;

use crate::frames::{object, op};
use crate::impostor::Impostor;
use crate::stage::{Ids, Stage};
use crate::wire::{Stream, run, soon};

/// Ops in the burst, each of which makes many files.
const OPS: u64 = 250;

/// Files made by one op.
const FILES: u64 = 16;

/// How long nothing comes, a few times, when all that was sent is here.
const SILENCE: Duration = Duration::from_millis(30);

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

/// How many ops the secondary has applied, as it tells next.
async fn applied(ops: &mut Stream) -> u64 {
    loop {
        let frame = ops.frame().await.expect("a receipt");
        match Receipt::decode(frame).unwrap() {
            Receipt::Applied { applied, .. } => return applied.0,
            Receipt::Busy => {}
            other => panic!("{other:?}"),
        }
    }
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
        let made = || names(&stage.pair.b.data()) / FILES;
        soon("the first ops of the burst", async {
            while made() < OPS / 4 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
        // What it has told by now arrives while it stands still, however slow this process is.
        stage.pair.b.freeze();
        let (mut told, mut silent) = (0, 0);
        while silent < 3 {
            match tokio::time::timeout(SILENCE, applied(&mut ops)).await {
                Ok(now) => (told, silent) = (now, 0),
                Err(_) => silent += 1,
            }
        }
        let untold = made().saturating_sub(told);
        stage.pair.b.thaw();
        assert!(
            untold < OPS / 5,
            "{untold} of {OPS} ops had been applied before a receipt for the first of them came"
        );
        while told != OPS {
            told = applied(&mut ops).await;
        }
    });
    stage.end_with_the_honest_primary();
}
