//! SQLite: writers commit numbered rows in each journal mode, and no committed row is
//! missing after a failover.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::program::{PATIENCE, Program, require, run};
use harness::{Options, Pair, wait_until};

/// Every mode in which a crash is survived.
const MODES: [&str; 4] = ["delete", "truncate", "persist", "wal"];

/// Rows each writer has committed before the primary is killed.
const BEFORE: u64 = 150;

/// More than a writer can commit until then.
const ENDLESS: u64 = 100_000;

/// Rows written while the dead node returns.
const AFTER: u64 = 200;

/// The text of row `n`, as an SQL expression: of varying length, up to two pages.
const BODY: &str = "printf('%.*c', 10 + n * 379 % 8000, char(97 + n % 26))";

struct Database {
    mode: &'static str,
    /// `PRAGMA synchronous`: with what a commit is durable.
    synchronous: &'static str,
    /// The scripts of the writer, outside the folder.
    scripts: PathBuf,
}

impl Database {
    fn sqlite(&self, folder: &Path) -> Command {
        // The answers line by line, not when the buffer is full.
        let mut command = Command::new("stdbuf");
        command
            .args(["-oL", "sqlite3", "-batch", "-bail", "-init", "/dev/null"])
            .arg(folder.join(self.mode))
            .env_remove("HOME");
        command
    }

    /// Commits the rows of a range, one transaction each, and prints the number of each
    /// after its commit. The pages of the write-ahead log are moved often.
    fn write(&self, folder: &Path, rows: std::ops::RangeInclusive<u64>) -> Program {
        let path = self.scripts.join(format!("{}-{}", self.mode, rows.start()));
        let mut script = std::io::BufWriter::new(File::create(&path).unwrap());
        writeln!(
            script,
            "PRAGMA journal_mode={}; PRAGMA synchronous={}; PRAGMA wal_autocheckpoint=40;\n\
             CREATE TABLE IF NOT EXISTS rows (n INTEGER PRIMARY KEY, body TEXT);\n\
             CREATE TABLE IF NOT EXISTS tally (last INTEGER);\n\
             INSERT INTO tally SELECT 0 WHERE NOT EXISTS (SELECT * FROM tally);",
            self.mode, self.synchronous
        )
        .unwrap();
        for n in rows {
            writeln!(
                script,
                "BEGIN; INSERT INTO rows SELECT n, {BODY} FROM (SELECT {n} AS n); \
                 UPDATE tally SET last = {n}; COMMIT; SELECT {n};"
            )
            .unwrap();
        }
        script.flush().unwrap();
        Program::start_with(self.sqlite(folder), File::open(path).unwrap())
    }

    /// The number of the last row a writer has been told is committed.
    fn committed(&self, writer: &Program) -> u64 {
        let said = writer.said();
        let mut lines = said.lines();
        // The mode the database really is in comes first.
        let mode = lines.next();
        assert!(
            mode.is_none_or(|m| m == self.mode),
            "not in mode {}: {said}",
            self.mode
        );
        // A line without its end may be half a number.
        match said.rfind('\n') {
            Some(end) => said[..end].lines().skip(1).last(),
            None => None,
        }
        .map_or(0, |n| n.parse().unwrap())
    }

    /// Fails the test unless the database is sound and has the rows 1 to `committed`, at
    /// most one more, and nothing else. Returns the last.
    fn check(&self, folder: &Path, committed: u64) -> u64 {
        let mut command = self.sqlite(folder);
        command.arg(format!(
            "PRAGMA integrity_check; SELECT count(*) FROM rows; SELECT max(n) FROM rows; \
             SELECT last FROM tally; SELECT count(*) FROM rows WHERE body IS NOT {BODY};"
        ));
        let said = run(command);
        let told: Vec<_> = said.lines().collect();
        let last: u64 = told[1].parse().unwrap();
        assert_eq!(
            told,
            ["ok", told[1], told[1], told[1], "0"],
            "the database in mode {}: soundness, rows, last row, tally, wrong rows",
            self.mode
        );
        assert!(
            last == committed || last == committed + 1,
            "{committed} rows were committed in mode {}, {last} are there",
            self.mode
        );
        last
    }
}

fn survive(ack: &'static str, synchronous: &'static str) {
    require("sqlite3", "sqlite3", &[]);
    require("stdbuf", "coreutils", &[]);
    let outside = tempfile::tempdir().unwrap();
    let databases = MODES.map(|mode| Database {
        mode,
        synchronous,
        scripts: outside.path().to_owned(),
    });
    let mut pair = Pair::with(Options {
        ack,
        ..Options::default()
    });

    let folder = pair.a.mount();
    let mut writers: Vec<_> = databases
        .iter()
        .map(|database| (database, database.write(&folder, 1..=ENDLESS)))
        .collect();
    let far = wait_until(PATIENCE, || {
        writers
            .iter_mut()
            .all(|(database, writer)| database.committed(writer) >= BEFORE || !writer.is_running())
    });
    let states = || -> Vec<_> {
        writers
            .iter()
            .map(|(d, w)| (d.mode, d.committed(w), w.complained()))
            .collect()
    };
    assert!(far, "the writers are slow: {:?}", states());
    for (database, writer) in &mut writers {
        assert!(
            writer.is_running(),
            "the writer in mode {} ended before the failover: {}",
            database.mode,
            writer.complained()
        );
    }
    pair.fail_over();

    let folder = pair.b.mount();
    let mut again = Vec::new();
    for (database, mut writer) in writers {
        let status = writer.wait(PATIENCE);
        assert!(!status.success(), "a writer did not notice the failure");
        let last = database.check(&folder, database.committed(&writer));
        let writer = database.write(&folder, last + 1..=last + AFTER);
        again.push((database, writer, last + AFTER));
    }
    pair.bring_back();
    for (database, writer, last) in again {
        writer.finish();
        assert_eq!(database.check(&folder, last), last);
    }
    pair.assert_identical();
}

#[test]
fn committed_rows_survive_a_failover_in_every_journal_mode() {
    survive("memory", "FULL");
}

/// Only what is synced is promised in this mode, and `FULL` does not sync the directory
/// in which the end of a transaction removes the journal.
#[test]
fn so_do_they_with_writes_that_run_ahead() {
    survive("flush", "EXTRA");
}
