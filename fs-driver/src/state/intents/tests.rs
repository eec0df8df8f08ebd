use super::super::segment::strange_head;
use super::*;
use std::collections::BTreeSet;
use twinfold_protocol::ids::FileId;

fn extent(n: u32) -> Intent {
    Intent::Extent {
        file: FileId(9),
        extent: n,
    }
}

fn new_log(directory: &Path) -> IntentLog {
    IntentLog::create(directory).unwrap();
    IntentLog::open(directory, 0).unwrap().0
}

fn found(path: &Path, segment: u64) -> (usize, bool) {
    let mut found = Recovered::default();
    read_segment(path, &std::fs::read(path).unwrap(), segment, &mut found);
    (found.intents.len(), found.damaged)
}

#[test]
fn a_segment_that_is_missing_newer_damaged_or_under_another_name_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    let damaged = || read_from(dir.path(), 0).unwrap().damaged;
    assert!(damaged(), "no segment at all");
    let log = new_log(dir.path());
    for n in 0..3 {
        log.ensure(&[extent(n * 100)]).unwrap();
        log.rotate().unwrap();
    }
    assert!(!damaged());
    let path = path_of(dir.path(), 3);
    let good = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(damaged(), "one between two others");
    assert!(
        !read_from(dir.path(), 4).unwrap().damaged,
        "nobody needs it"
    );
    std::fs::rename(path_of(dir.path(), 5), &path).unwrap();
    assert!(damaged(), "another one under its name");
    for at in 0..RECORD {
        let mut bad = good.clone();
        bad[at] ^= 1;
        std::fs::write(&path, &bad).unwrap();
        assert!(damaged(), "byte {at} of the head");
    }
    let mut newer = good.clone();
    newer[8] = 2;
    let crc = crc32c::crc32c(&newer[..28]).to_le_bytes();
    newer[28..32].copy_from_slice(&crc);
    assert!(strange_head(&newer[..32], 3).contains("version 2"));
    std::fs::write(&path, &newer).unwrap();
    assert!(damaged(), "one of another version");
    std::fs::write(&path, [0; 4096]).unwrap();
    assert!(!damaged(), "a crash while it was made");
    std::fs::write(&path, &good).unwrap();
    assert!(!damaged());
}

#[test]
fn a_cold_range_costs_one_sync_and_a_hot_one_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let log = new_log(dir.path());
    let names = Intent::Directory {
        directory: FileId::ROOT,
    };
    log.ensure(&[extent(7), names]).unwrap();
    assert_eq!(log.syncs(), 1, "an op's notes together");
    for _ in 0..1000 {
        log.ensure(&[extent(7), names]).unwrap();
    }
    assert_eq!(log.syncs(), 1);
    log.rotate().unwrap();
    log.ensure(&[extent(7)]).unwrap();
    assert_eq!(log.syncs(), 2, "cold again after a checkpoint");
}

/// Neither after a checkpoint, nor while one runs: its flush stands in front of every sync.
#[test]
fn what_is_used_stays_hot_across_checkpoints_and_goes_cold_when_it_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let log = new_log(dir.path());
    let used = [
        extent(700),
        Intent::Directory {
            directory: FileId::ROOT,
        },
        Intent::Attributes { file: FileId(9) },
    ];
    let once = extent(100);
    let ids = Intent::NewIds {
        first: FileId(4096),
    };
    log.ensure(&[&used[..], &[once, ids]].concat()).unwrap();
    let syncs = log.syncs();
    let mut before = None;
    for n in 0..4 {
        if n == 2 {
            log.prepare().unwrap();
        }
        let segment = log.rotate_hot().unwrap().unwrap();
        log.ensure(&used).unwrap();
        if let Some(before) = before.replace(segment) {
            log.retire(before).unwrap();
        }
        assert_eq!(log.syncs(), syncs, "checkpoint {n}");
        assert!(
            !log.is_hot(ids),
            "what it covers would be compared as a whole"
        );
        let noted = log.all().unwrap();
        assert!(!noted.damaged && used.iter().all(|i| noted.intents.contains(i)));
    }
    assert!(!log.is_hot(once));
    assert_eq!(
        log.all().unwrap().intents,
        used.into(),
        "the rest is retired"
    );
    // Nobody asks for anything any more.
    for _ in 0..2 {
        let segment = log.rotate_hot().unwrap().unwrap();
        log.retire(segment).unwrap();
    }
    assert_eq!(log.all().unwrap(), Recovered::default());
    assert!(!log.has_notes());
}

#[test]
fn what_is_taken_along_is_durable_before_the_new_segment_is_used_and_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let log = new_log(dir.path());
    let many: Vec<_> = (0..2 * MAX_TAKEN_ALONG as u64)
        .map(|n| Intent::Attributes { file: FileId(n) })
        .collect();
    log.ensure(&many).unwrap();
    log.prepare().unwrap();
    let path = path_of(dir.path(), 3);
    assert_eq!(found(&path, 3), (0, false), "made ahead");
    assert_eq!(log.next_segment(), 3, "and not begun");
    assert_eq!(log.rotate_hot().unwrap(), Some(3));
    assert_eq!(found(&path, 3), (MAX_TAKEN_ALONG, false));
    let hot: Vec<_> = many.iter().filter(|i| log.is_hot(**i)).copied().collect();
    log.ensure(&[extent(5)]).unwrap();
    log.retire(3).unwrap();
    drop(log);
    let (_, after) = IntentLog::open(dir.path(), 3).unwrap();
    assert_eq!(after.intents, hot.into_iter().chain([extent(5)]).collect());
    assert!(!after.damaged);
}

/// A crash after it was made, and before it was begun.
#[test]
fn a_segment_that_was_made_ahead_is_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    let log = new_log(dir.path());
    log.ensure(&[extent(1)]).unwrap();
    log.prepare().unwrap();
    log.ensure(&[extent(50)]).unwrap();
    let saved = log.next_segment();
    drop(log);
    let copy = tempfile::tempdir().unwrap();
    for segment in segments(dir.path()).unwrap() {
        std::fs::copy(path_of(dir.path(), segment), path_of(copy.path(), segment)).unwrap();
    }
    let (log, found) = IntentLog::open(dir.path(), 0).unwrap();
    assert_eq!((found.intents.len(), found.damaged), (2, false));
    log.ensure(&[extent(100)]).unwrap();
    assert_eq!(log.all().unwrap().intents, [1, 50, 100].map(extent).into());
    // Saved marks stand for the notes of that run.
    let (log, found) = IntentLog::open(copy.path(), saved).unwrap();
    assert_eq!(found, Recovered::default());
    log.ensure(&[extent(100)]).unwrap();
    assert_eq!(log.all().unwrap().intents, [extent(100)].into());
    // On a full disk it is gone on in.
    drop(log);
    let log = IntentLog::open(copy.path(), 0).unwrap().0;
    log.prepare().unwrap();
    drop(log);
    let began = begin(copy.path(), 0, full).unwrap();
    goes_on(copy.path(), began, 0);
}

#[test]
fn notes_for_which_saved_marks_stand_are_not_read_and_their_numbers_not_used_again() {
    let dir = tempfile::tempdir().unwrap();
    let log = new_log(dir.path());
    log.ensure(&[extent(1)]).unwrap();
    let next = log.next_segment();
    drop(log);
    let (log, found) = IntentLog::open(dir.path(), next).unwrap();
    assert_eq!(found, Recovered::default());
    assert_eq!(segments(dir.path()).unwrap(), [next]);
    log.ensure(&[extent(2)]).unwrap();
    assert_eq!(log.all().unwrap().intents.len(), 1);
}

#[test]
fn what_was_ensured_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    IntentLog::create(dir.path()).unwrap();
    let (log, before) = IntentLog::open(dir.path(), 0).unwrap();
    assert_eq!(before, Recovered::default());
    log.ensure(&[extent(5)]).unwrap();
    log.ensure(&[Intent::Directory {
        directory: FileId::ROOT,
    }])
    .unwrap();
    drop(log);
    let (log, after) = IntentLog::open(dir.path(), 0).unwrap();
    assert_eq!(after.intents.len(), 2);
    assert!(!after.damaged);
    log.ensure(&[extent(5)]).unwrap();
    assert_eq!(log.all().unwrap().intents.len(), 2);
}

#[test]
fn a_checkpoint_retires_what_came_before_it_only() {
    let dir = tempfile::tempdir().unwrap();
    let log = new_log(dir.path());
    log.ensure(&[extent(1)]).unwrap();
    let segment = log.rotate().unwrap().unwrap();
    log.ensure(&[extent(100)]).unwrap();
    log.retire(segment).unwrap();
    assert_eq!(
        log.all().unwrap().intents.into_iter().collect::<Vec<_>>(),
        [extent(100)]
    );
}

#[test]
fn a_segment_has_a_limit_beyond_which_one_note_stands_for_everything() {
    let dir = tempfile::tempdir().unwrap();
    let log = new_log(dir.path());
    let attributes = |n: usize| Intent::Attributes {
        file: FileId(n as u64 + 5000),
    };
    let note = |from: usize| {
        let some: Vec<_> = (from..from + 4096).map(attributes).collect();
        log.ensure(&some).unwrap();
    };
    (0..MAX_NOTES).step_by(4096).for_each(note);
    assert_eq!(log.hot.read().len(), MAX_NOTES);
    let all = log.all().unwrap();
    assert_eq!((all.intents.len(), all.damaged), (MAX_NOTES, false));
    assert!(!log.is_hot(attributes(MAX_NOTES)));
    note(MAX_NOTES);
    assert!(log.is_hot(attributes(3 * MAX_NOTES)), "everything is noted");
    assert_eq!(log.hot.read().capacity(), 0, "and takes no memory");
    assert!(log.all().unwrap().damaged, "and is compared after a crash");
    let syncs = log.syncs();
    (2 * MAX_NOTES..4 * MAX_NOTES).step_by(4096).for_each(note);
    assert_eq!(log.syncs(), syncs);
    let size = std::fs::metadata(path_of(dir.path(), 2)).unwrap().len();
    assert!(size <= (MAX_NOTES * RECORD) as u64 + 2 * CHUNK, "{size}");
    let segment = log.rotate().unwrap().unwrap();
    assert!(!log.is_hot(attributes(0)), "a new one tells apart again");
    log.ensure(&[attributes(7)]).unwrap();
    log.retire(segment).unwrap();
    let left = log.all().unwrap();
    assert_eq!((left.intents.len(), left.damaged), (1, false));
}

#[test]
fn a_sequential_writer_is_noted_ahead() {
    let dir = tempfile::tempdir().unwrap();
    let log = new_log(dir.path());
    for n in 0..40 {
        log.ensure(&[extent(n)]).unwrap();
    }
    let syncs = log.syncs();
    assert!(syncs < 12, "{syncs} syncs for 40 extents in a row");
}

#[test]
fn a_torn_end_is_ignored_and_a_hole_in_the_middle_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    let log = new_log(dir.path());
    for n in [10, 20, 30] {
        log.ensure(&[extent(n)]).unwrap();
    }
    drop(log);
    let path = path_of(dir.path(), 2);
    let good = std::fs::read(&path).unwrap();

    let mut torn = good.clone();
    torn[3 * RECORD + 9] ^= 1;
    std::fs::write(&path, &torn).unwrap();
    assert_eq!(found(&path, 2), (2, false));

    let mut hole = good;
    hole[2 * RECORD + 9] ^= 1;
    std::fs::write(&path, &hole).unwrap();
    assert_eq!(found(&path, 2), (2, true));
}

#[test]
fn many_threads_share_syncs_and_all_of_theirs_is_durable() {
    // On a disk: a sync has to take time.
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let log = new_log(dir.path());
    const THREADS: u32 = 8;
    const ROUNDS: u32 = 20;
    let together = std::sync::Barrier::new(THREADS as usize);
    std::thread::scope(|s| {
        for t in 0..THREADS {
            let (log, together) = (&log, &together);
            s.spawn(move || {
                for n in 0..ROUNDS {
                    together.wait();
                    // Far apart, so that nothing is noted ahead.
                    log.ensure(&[extent(t * 100_000 + n * 100)]).unwrap();
                }
            });
        }
    });
    let notes = u64::from(THREADS * ROUNDS);
    assert_eq!(log.all().unwrap().intents.len() as u64, notes);
    // Who comes while one syncs shares the next one.
    assert!(log.syncs() < notes, "{} syncs for {notes}", log.syncs());
}

fn full(_: &Path, _: u64) -> io::Result<(File, u64)> {
    Err(io::ErrorKind::StorageFull.into())
}

/// What a log that began so has afterwards, with a note more.
fn goes_on(directory: &Path, began: Began, oldest: u64) -> BTreeSet<Intent> {
    let log = IntentLog::going_on(directory, began, oldest);
    log.ensure(&[extent(77_000)]).unwrap();
    let found = log.all().unwrap();
    assert!(!found.damaged);
    drop(log);
    let (log, again) = IntentLog::open(directory, oldest).unwrap();
    assert_eq!(found, again, "after a restart");
    log.ensure(&[extent(78_000)]).unwrap();
    again.intents
}

#[test]
fn a_full_file_system_does_not_keep_a_log_with_notes_from_being_opened() {
    let dir = tempfile::tempdir().unwrap();
    let log = new_log(dir.path());
    for n in [10, 2000, 3000] {
        log.ensure(&[extent(n)]).unwrap();
    }
    drop(log);
    // The last note is torn, and a new segment was being made once before.
    let path = path_of(dir.path(), 2);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[3 * RECORD + 9] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    std::fs::write(path_of(dir.path(), 3), [0; 100]).unwrap();
    let began = begin(dir.path(), 0, full).unwrap();
    assert_eq!((began.segment, began.end), (2, 3 * RECORD as u64));
    let noted = goes_on(dir.path(), began, 0);
    assert_eq!(noted, [10, 2000, 77_000].map(extent).into());
}

#[test]
fn a_full_file_system_does_not_keep_a_log_from_being_opened_for_which_marks_stand() {
    let dir = tempfile::tempdir().unwrap();
    let log = new_log(dir.path());
    log.ensure(&[extent(10)]).unwrap();
    let oldest = log.next_segment();
    drop(log);
    let began = begin(dir.path(), oldest, full).unwrap();
    assert_eq!(began.segment, oldest);
    assert_eq!(segments(dir.path()).unwrap(), [oldest]);
    assert_eq!(goes_on(dir.path(), began, oldest), [extent(77_000)].into());
}

#[test]
fn a_damaged_log_is_not_gone_on_with_on_a_full_file_system() {
    let dir = tempfile::tempdir().unwrap();
    let log = new_log(dir.path());
    log.ensure(&[extent(10)]).unwrap();
    drop(log);
    let path = path_of(dir.path(), 2);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[3] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let refused = begin(dir.path(), 0, full).err().unwrap();
    assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
    assert_eq!(std::fs::read(&path).unwrap(), bytes, "it is as it was");
}

#[test]
fn a_note_that_says_everything_outlives_a_start_on_a_full_file_system() {
    let dir = tempfile::tempdir().unwrap();
    let log = new_log(dir.path());
    log.ensure(&[extent(10)]).unwrap();
    drop(log);
    let path = path_of(dir.path(), 2);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[2 * RECORD..3 * RECORD].copy_from_slice(&everything(2));
    std::fs::write(&path, &bytes).unwrap();
    let began = begin(dir.path(), 0, full).unwrap();
    assert_eq!((began.segment, began.end), (2, 3 * RECORD as u64));
    let log = IntentLog::going_on(dir.path(), began, 0);
    log.ensure(&[extent(2000)]).unwrap();
    let all = log.all().unwrap();
    assert!(all.damaged, "everything is compared");
    assert_eq!(all.intents, [10, 2000].map(extent).into());
}

/// Whatever the application holds open, nothing of the node's own state fails for it.
#[test]
fn without_a_descriptor_left_notes_are_made_and_the_rest_waits() {
    let name = "state::intents::tests::without_a_descriptor_left_notes_are_made_and_the_rest_waits";
    if !crate::store::alone_in_a_process(name) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let log = new_log(dir.path());
    super::super::MarksFile::create(dir.path()).unwrap();
    let record = super::super::Record::default();
    let (marks, _) = super::super::MarksFile::open(dir.path(), &record);
    let save = || marks.save(record.next_marks(), None, &Default::default());
    let held = crate::store::take_all_descriptors();
    log.ensure(&[extent(10)]).unwrap();
    assert_eq!(log.rotate().unwrap(), None);
    assert!(!save().unwrap());
    let refused = log.all().unwrap_err();
    assert!(super::super::not_now(&refused), "{refused}");
    log.ensure(&[extent(2000)]).unwrap();
    drop(held);
    assert_eq!(log.rotate().unwrap(), Some(3));
    assert!(save().unwrap());
    assert_eq!(log.all().unwrap().intents, [10, 2000].map(extent).into());
}
