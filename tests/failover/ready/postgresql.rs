//! `postgresql`: a real server, whose clients are told of commits until its node goes.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::program::{Program, require, run};
use harness::{leave_root, wait_until};

use super::{NAME, becomes, running, said, wait};
use crate::PATIENCE;
use crate::stage::{Machine, Stage};

/// Commits that a client is told of before the node goes.
const BEFORE: usize = 100;

/// More than it gets to.
const ENDLESS: usize = 100_000;

/// A process id that only the first node's server gets near.
const FAR: u32 = 20_000;

struct Postgres {
    programs: PathBuf,
    user: u32,
}

impl Postgres {
    fn find() -> Postgres {
        let versions = std::fs::read_dir("/usr/lib/postgresql");
        let versions = versions.into_iter().flatten().flatten();
        let versions: Vec<_> = versions.map(|v| v.path().join("bin")).collect();
        let initdb = require("initdb", "postgresql", &versions);
        let users = std::fs::read_to_string("/etc/passwd").unwrap();
        let user = users.lines().find_map(|line| {
            let rest = line.strip_prefix("postgres:")?;
            rest.split(':').nth(1)?.parse().ok()
        });
        Postgres {
            programs: initdb.parent().unwrap().to_owned(),
            user: user.expect("there is no user `postgres`: apt-get install postgresql"),
        }
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        leave_root(&mut command, self.user)
            .current_dir("/")
            .env_clear()
            .env("LC_ALL", "C.UTF-8");
        command
    }

    /// Makes a database in a directory.
    fn make(&self, data: &Path) {
        std::fs::create_dir(data).unwrap();
        chown(data, Some(self.user), Some(self.user)).unwrap();
        let mut command = self.command("initdb");
        command
            .args(["--auth=trust", "--username=postgres", "--pgdata"])
            .arg(data);
        run(command);
    }

    /// A client of the server on a machine.
    fn client(&self, machine: &Machine) -> Command {
        let mut command = self.command("psql");
        command
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"])
            .args(["-U", "postgres", "-d", "postgres", "-h"])
            .arg(machine.home().join("sockets"));
        command
    }

    fn sql(&self, machine: &Machine, text: &str) -> String {
        let mut command = self.client(machine);
        command.args(["-c", text]);
        run(command).trim().to_owned()
    }

    /// Numbers, each committed and then printed.
    fn count(&self, machine: &Machine) -> Program {
        let path = machine.home().join("numbers");
        let mut script = std::io::BufWriter::new(File::create(&path).unwrap());
        for n in 1..=ENDLESS {
            writeln!(script, "INSERT INTO numbers VALUES ({n});\n\\echo {n}").unwrap();
        }
        script.flush().unwrap();
        Program::start_with(self.client(machine), File::open(path).unwrap())
    }
}

/// The last number a client was told of.
fn told(client: &Program) -> usize {
    let said = client.said();
    let whole = said.rfind('\n').map_or("", |end| &said[..end]);
    whole.lines().last().map_or(0, |n| n.parse().unwrap())
}

/// The server's process id, as the machine has it.
fn server(stage: &Machine) -> u32 {
    let path = stage.home().join("sockets/db.pid");
    let text = std::fs::read_to_string(&path).unwrap();
    text.trim().parse().unwrap()
}

/// Lets the next process of a shell have this number, where the kernel lets one say so
/// (`CONFIG_CHECKPOINT_RESTORE`).
fn next_process(number: u32) -> String {
    let file = "/proc/sys/kernel/ns_last_pid";
    format!("[ ! -e {file} ] || echo {} >{file};", number - 1)
}

#[test]
fn a_server_whose_node_goes_is_on_the_other_one_with_every_commit_that_was_told() {
    let postgres = Postgres::find();
    let programs = format!("PG_BIN={}", postgres.programs.display());
    let options = [programs.as_str(), "OPTIONS=-c listen_addresses="];
    let own = [("SOCKETS", "%HOME_OF_TEST%/sockets")];
    let mut stage = running("postgresql", &options, &own, |stage: &Stage| {
        postgres.make(&stage.a.home().join("db/data"));
        stage.a.inside(&next_process(FAR));
    });
    postgres.sql(&stage.a, "CREATE TABLE numbers (n int PRIMARY KEY)");
    becomes(&stage.a, "custom.server", "up");

    // The server dies, and the same node has it again.
    let first = server(&stage.a);
    stage.a.inside(&format!("kill -9 {first}"));
    let again = || {
        let answers = postgres.client(&stage.a).args(["-c", "SELECT 1"]).output();
        answers.unwrap().status.success()
    };
    assert!(wait_until(PATIENCE, again), "{}", said(&stage.a));
    wait(&stage.a, "PRIM");
    let second = server(&stage.a);
    assert_ne!(first, second);

    // The node goes. On the other one somebody else of the same user has the server's number.
    let mut client = postgres.count(&stage.a);
    let far = || told(&client) >= BEFORE;
    assert!(wait_until(PATIENCE, far), "{}", client.complained());
    let sleep = "sleep 1000 </dev/null >/dev/null 2>&1 & echo $!";
    let other = stage.b.inside(&format!(
        "{} setpriv --reuid={} --clear-groups {sleep}",
        next_process(second),
        postgres.user
    ));
    if Path::new("/proc/sys/kernel/ns_last_pid").exists() {
        assert_eq!(other, second.to_string());
    }
    stage.a.kill_everything();
    assert!(
        !client.wait(PATIENCE).success(),
        "the client noticed nothing"
    );
    let told = told(&client);
    wait(&stage.b, "ALONE");
    let there = postgres.sql(&stage.b, "SELECT count(*), max(n) FROM numbers");
    let exactly = |n: usize| there == format!("{n}|{n}");
    assert!(
        exactly(told) || exactly(told + 1),
        "{told} commits were told; number and last: {there}"
    );
    let log = said(&stage.b);
    assert!(log.contains("postmaster.pid is another machine's"), "{log}");
    becomes(&stage.b, "custom.server", "up");

    // It comes back, and gets the server back in order.
    stage.a.start_daemon();
    wait(&stage.a, "SECOND");
    wait(&stage.b, "PRIM");
    stage.b.must(&["swap", "-m", NAME]);
    wait(&stage.a, "PRIM");
    wait(&stage.b, "SECOND");
    assert_eq!(
        postgres.sql(&stage.a, "SELECT count(*), max(n) FROM numbers"),
        there
    );
    let log = said(&stage.b);
    assert!(log.contains("database system is shut down"), "{log}");
    let folder = stage.a.home().join(NAME).display().to_string();
    stage.a.must(&["fs", "verify", &folder]);
}
