//! PostgreSQL under load: its recovery on the other node finds every acknowledged
//! commit, and every page sound.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::program::{PATIENCE, Program, require, run};
use harness::{Pair, leave_root, wait_until};

/// Clients that commit increasing numbers beside pgbench's.
const CLIENTS: u64 = 2;

/// Numbers each of them has committed before the primary is killed.
const BEFORE: u64 = 200;

/// Transactions pgbench has been told of before the primary is killed.
const TRANSACTIONS: usize = 500;

/// More than a client can commit until then.
const ENDLESS: u64 = 200_000;

/// Seconds pgbench would run.
const LONG: &str = "600";

/// What differs from PostgreSQL's own choice: no network, and checkpoints and reused
/// segments of the log in a run of seconds.
const SETTINGS: [&str; 6] = [
    "listen_addresses=",
    "checkpoint_timeout=30s",
    "max_wal_size=32MB",
    "min_wal_size=32MB",
    "shared_buffers=8MB",
    "bgwriter_delay=10ms",
];

/// An installed PostgreSQL, and the user it runs as.
struct Postgres {
    programs: PathBuf,
    user: u32,
    /// Sockets and records, outside the folder.
    outside: tempfile::TempDir,
}

impl Postgres {
    fn find() -> Postgres {
        let mut versions: Vec<_> = std::fs::read_dir("/usr/lib/postgresql")
            .into_iter()
            .flatten()
            .flatten()
            .map(|version| version.path().join("bin"))
            .collect();
        versions.sort();
        versions.reverse();
        for program in ["pg_checksums", "pgbench", "pg_amcheck", "psql", "postgres"] {
            require(program, "postgresql", &versions);
        }
        let initdb = require("initdb", "postgresql", &versions);
        let users = std::fs::read_to_string("/etc/passwd").unwrap();
        let user = users
            .lines()
            .find_map(|line| {
                line.strip_prefix("postgres:")?
                    .split(':')
                    .nth(1)?
                    .parse()
                    .ok()
            })
            .expect("there is no user `postgres`: apt-get install postgresql");
        let outside = tempfile::tempdir().unwrap();
        chown(outside.path(), Some(user), Some(user)).unwrap();
        Postgres {
            programs: initdb.parent().unwrap().to_owned(),
            user,
            outside,
        }
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        leave_root(&mut command, self.user)
            .current_dir(self.outside.path())
            .env_clear()
            .env("LC_ALL", "C.UTF-8")
            .env("PGHOST", self.outside.path())
            .env("PGUSER", "postgres")
            .env("PGDATABASE", "postgres");
        command
    }

    fn data(folder: &Path) -> PathBuf {
        folder.join("postgres/data")
    }

    fn make(&self, folder: &Path) {
        let own = folder.join("postgres");
        std::fs::create_dir(&own).unwrap();
        chown(&own, Some(self.user), Some(self.user)).unwrap();
        let mut command = self.command("initdb");
        command
            .args(["--data-checksums", "--auth=trust", "--username=postgres"])
            .arg("--pgdata")
            .arg(Self::data(folder));
        run(command);
    }

    /// Starts the server and waits until it takes calls, which is after its recovery.
    fn start(&self, folder: &Path) -> Program {
        let mut command = self.command("postgres");
        command
            .arg("-D")
            .arg(Self::data(folder))
            .arg("-k")
            .arg(self.outside.path());
        for setting in SETTINGS {
            command.args(["-c", setting]);
        }
        let mut server = Program::start(command);
        let ready = wait_until(PATIENCE, || {
            !server.is_running() || {
                let mut asked = Program::start(self.command("pg_isready"));
                asked.wait(PATIENCE).success()
            }
        });
        assert!(
            ready && server.is_running(),
            "PostgreSQL does not start:\n{}",
            server.complained()
        );
        server
    }

    /// Stops the server in order.
    fn stop(server: Program) {
        server.signal(libc::SIGINT);
        server.finish();
    }

    fn sql(&self, text: &str) -> String {
        let mut command = self.psql();
        command.args(["-c", text]);
        run(command).trim().to_owned()
    }

    fn psql(&self) -> Command {
        let mut command = self.command("psql");
        command.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"]);
        command
    }

    /// A client that commits the numbers of a range and prints each when it is told
    /// that it is committed.
    fn count(&self, client: u64, numbers: std::ops::RangeInclusive<u64>) -> Program {
        let path = self
            .outside
            .path()
            .join(format!("client-{client}-{}", numbers.start()));
        let mut script = std::io::BufWriter::new(File::create(&path).unwrap());
        for n in numbers {
            writeln!(
                script,
                "BEGIN; INSERT INTO numbers VALUES ({client}, {n}); COMMIT;\n\\echo {n}"
            )
            .unwrap();
        }
        script.flush().unwrap();
        Program::start_with(self.psql(), File::open(path).unwrap())
    }

    /// pgbench's own transactions, each noted outside when it is acknowledged.
    fn load(&self, seconds: &str, record: &str) -> Program {
        let mut command = self.command("pgbench");
        command.args(["-n", "-c", "4", "-T", seconds, "-l", "--log-prefix", record]);
        Program::start(command)
    }

    /// How many transactions of `load` were acknowledged; pgbench keeps back some lines.
    fn acknowledged(&self, record: &str) -> usize {
        std::fs::read_dir(self.outside.path())
            .unwrap()
            .flatten()
            .filter(|file| file.file_name().to_string_lossy().starts_with(record))
            .map(|file| {
                let log = std::fs::read(file.path()).unwrap();
                log.iter().filter(|byte| **byte == b'\n').count()
            })
            .sum()
    }

    /// Fails the test unless tables, indexes and sums are sound.
    fn check(&self) {
        let mut command = self.command("pg_amcheck");
        command.args([
            "--install-missing",
            "--heapallindexed",
            "--rootdescend",
            "-a",
        ]);
        run(command);
        let sums = "SELECT count(DISTINCT s) FROM (\
             SELECT sum(abalance) s FROM pgbench_accounts UNION ALL \
             SELECT sum(bbalance) FROM pgbench_branches UNION ALL \
             SELECT sum(tbalance) FROM pgbench_tellers UNION ALL \
             SELECT sum(delta) FROM pgbench_history) t";
        assert_eq!(self.sql(sums), "1", "a transaction was applied in part");
        // Every row of every table is read, all its columns.
        run(self.command("pg_dumpall"));
    }

    /// Fails the test unless all pages of a stopped server have the right checksum.
    fn check_pages(&self, folder: &Path) {
        let mut command = self.command("pg_checksums");
        command.arg("--check").arg("-D").arg(Self::data(folder));
        let said = run(command);
        assert!(said.contains("Bad checksums:  0"), "{said}");
    }
}

/// The last number a client was told of.
fn last(client: &Program) -> u64 {
    let said = client.said();
    let whole = said.rfind('\n').map_or("", |end| &said[..end]);
    whole.lines().last().map_or(0, |n| n.parse().unwrap())
}

#[test]
fn a_database_under_load_recovers_with_every_acknowledged_commit() {
    let postgres = Postgres::find();
    let mut pair = Pair::new();
    let folder = pair.a.mount();
    postgres.make(&folder);
    let mut server = postgres.start(&folder);
    run({
        let mut command = postgres.command("pgbench");
        command.args(["-i", "-q", "-s", "2"]);
        command
    });
    postgres.sql("CREATE TABLE numbers (client int, n int, PRIMARY KEY (client, n))");

    let mut load = postgres.load(LONG, "before");
    let mut clients: Vec<_> = (0..CLIENTS)
        .map(|client| postgres.count(client, 1..=ENDLESS))
        .collect();
    let far = wait_until(PATIENCE, || {
        !load.is_running()
            || clients.iter().all(|client| last(client) >= BEFORE)
                && postgres.acknowledged("before") >= TRANSACTIONS
    });
    assert!(
        far && load.is_running() && clients.iter_mut().all(Program::is_running),
        "the load did not go on: {} {}\n{}",
        load.complained(),
        clients[0].complained(),
        server.complained()
    );
    pair.fail_over();

    // Its processes still hold on to the dead mount; it has to give up, and does when asked.
    server.signal(libc::SIGQUIT);
    server.wait(PATIENCE);
    load.wait(PATIENCE);
    let committed: Vec<_> = clients
        .iter_mut()
        .map(|client| {
            assert!(!client.wait(PATIENCE).success(), "a client noticed nothing");
            last(client)
        })
        .collect();
    let transactions = postgres.acknowledged("before");

    let folder = pair.b.mount();
    let server = postgres.start(&folder);
    assert!(
        server
            .complained()
            .contains("automatic recovery in progress"),
        "PostgreSQL saw no crash:\n{}",
        server.complained()
    );
    for (client, committed) in committed.iter().enumerate() {
        let there = postgres.sql(&format!(
            "SELECT count(*), max(n) FROM numbers WHERE client = {client}"
        ));
        let exactly = |n: u64| there == format!("{n}|{n}");
        assert!(
            exactly(*committed) || exactly(committed + 1),
            "client {client} was told of {committed} commits; number and last: {there}"
        );
    }
    let there: usize = postgres
        .sql("SELECT count(*) FROM pgbench_history")
        .parse()
        .unwrap();
    assert!(
        there >= transactions,
        "pgbench was told of {transactions} transactions, {there} are there"
    );
    postgres.check();
    Postgres::stop(server);
    postgres.check_pages(&folder);

    // The dead node returns while the database works.
    let server = postgres.start(&folder);
    let load = postgres.load("3", "after");
    pair.bring_back();
    load.finish();
    postgres.check();
    Postgres::stop(server);
    postgres.check_pages(&folder);
    pair.assert_identical();
}
