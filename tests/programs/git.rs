//! git: a failover in the middle of commits and of a repacking leaves a repository that
//! is sound and has every commit git had reported.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use harness::program::{PATIENCE, Program, require, run};
use harness::{Pair, leave_root, wait_until};

/// The user who works on the repository; it needs no name.
const USER: u32 = 4242;

/// Commits of the imported history.
const HISTORY: u32 = 300;

/// Files of the imported history.
const FILES: u32 = 200;

/// Commits before the primary is killed.
const BEFORE: usize = 25;

/// Repackings before the primary is killed.
const PACKED: usize = 2;

/// Commits on the other node while the dead one returns.
const AFTER: u32 = 15;

/// What differs from git's own choice: only what the test starts works on the repository,
/// and who finds a lock taken waits for it.
const SETTINGS: [(&str, &str); 4] = [
    ("gc.auto", "0"),
    ("maintenance.auto", "false"),
    ("core.filesRefLockTimeout", "-1"),
    ("core.packedRefsTimeout", "-1"),
];

/// A home outside the folder.
struct Git {
    home: tempfile::TempDir,
}

impl Git {
    fn new() -> Git {
        require("git", "git", &[]);
        require("sh", "dash", &[]);
        let home = tempfile::tempdir().unwrap();
        chown(home.path(), Some(USER), Some(USER)).unwrap();
        Git { home }
    }

    /// Goes into a directory by itself, so that it can be started also where the
    /// directory's mount has just died, and fail.
    fn program(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        leave_root(&mut command, USER)
            .current_dir("/")
            .env("HOME", self.home.path())
            .env("LC_ALL", "C")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_TERMINAL_PROMPT", "0");
        command.env("GIT_CONFIG_COUNT", SETTINGS.len().to_string());
        for (n, (key, value)) in SETTINGS.iter().enumerate() {
            command
                .env(format!("GIT_CONFIG_KEY_{n}"), key)
                .env(format!("GIT_CONFIG_VALUE_{n}"), value);
        }
        for who in ["AUTHOR", "COMMITTER"] {
            command
                .env(format!("GIT_{who}_NAME"), "somebody")
                .env(format!("GIT_{who}_EMAIL"), "somebody@example.org");
        }
        command
    }

    fn git(&self, directory: &Path, arguments: &[&str]) -> Command {
        let mut command = self.program("git");
        command.arg("-C").arg(directory).args(arguments);
        command
    }

    fn run(&self, directory: &Path, arguments: &[&str]) -> String {
        run(self.git(directory, arguments)).trim().to_owned()
    }

    /// A bare repository outside the folder with a history of its own.
    fn origin(&self) -> PathBuf {
        let origin = self.home.path().join("origin.git");
        let path = origin.display().to_string();
        self.run(
            self.home.path(),
            &["init", "-q", "--bare", "-b", "main", &path],
        );
        let stream = self.home.path().join("stream");
        fs::write(&stream, history()).unwrap();
        let command = self.git(&origin, &["fast-import", "--quiet"]);
        Program::start_with(command, File::open(stream).unwrap()).finish();
        origin
    }

    /// Makes a commit; an error when git did not report it.
    fn commit(&self, repository: &Path, n: u32) -> Result<String, String> {
        // Text that is part of the history, and a file of its own.
        let changes = || -> std::io::Result<()> {
            let old = repository.join(file_name(n * 7 % FILES));
            File::options()
                .append(true)
                .open(old)?
                .write_all(format!("appended {n}\n").as_bytes())?;
            let new = repository.join(format!("new-{n}"));
            fs::write(&new, content(n, n + 1000))?;
            chown(&new, Some(USER), Some(USER))
        };
        changes().map_err(|e| e.to_string())?;
        let message = format!("commit {n}");
        let script = "cd \"$2\" && git add -A && git commit -q -m \"$1\" && git rev-parse HEAD";
        let mut command = self.program("sh");
        command.args(["-c", script, "sh", &message]).arg(repository);
        let mut committing = Program::start(command);
        match committing.wait(PATIENCE).success() {
            true => Ok(committing.said().trim().to_owned()),
            false => Err(committing.complained()),
        }
    }

    /// Fails the test unless every object git knows of is there and right.
    fn check(&self, repository: &Path) {
        let said = self.run(
            repository,
            &[
                "fsck",
                "--full",
                "--strict",
                "--no-dangling",
                "--no-progress",
            ],
        );
        assert_eq!(said, "", "git fsck complains");
    }
}

fn file_name(n: u32) -> String {
    format!("dir-{}/file-{n}", n % 12)
}

/// Lines that differ a little from one generation to the next.
fn content(file: u32, generation: u32) -> String {
    (0..40 + file % 60).fold(String::new(), |mut text, line| {
        let of = if line % 11 == generation % 11 {
            generation
        } else {
            0
        };
        let noise = u64::from(file * 1000 + line + of * 77).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let _ = writeln!(text, "{file} {line} {of} {noise:016x}");
        text
    })
}

/// A history in the form `git fast-import` reads.
fn history() -> String {
    let mut stream = String::new();
    for n in 0..HISTORY {
        let message = format!("imported {n}");
        let _ = write!(
            stream,
            "commit refs/heads/main\ncommitter somebody <somebody@example.org> {} +0000\n\
             data {}\n{message}\n",
            1_700_000_000 + n * 60,
            message.len()
        );
        let files: Vec<_> = match n {
            0 => (0..FILES).collect(),
            n => vec![n % FILES, n * 13 % FILES, n * 31 % FILES],
        };
        for file in files {
            let content = content(file, n);
            let name = file_name(file);
            let _ = write!(
                stream,
                "M 100644 inline {name}\ndata {}\n{content}\n",
                content.len()
            );
        }
    }
    stream
}

/// Takes away the locks that processes left which are no more, as git tells its user to.
fn remove_locks(git: &Path) {
    let mut waiting = vec![git.to_owned()];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                waiting.push(path);
            } else if path.extension().is_some_and(|e| e == "lock")
                || path.file_name().is_some_and(|n| n == "gc.pid")
            {
                fs::remove_file(path).unwrap();
            }
        }
    }
}

#[test]
fn commits_survive_a_failover_in_the_middle_of_a_repacking() {
    let git = Git::new();
    let origin = git.origin();
    let mut pair = Pair::new();
    let work = pair.on_a("work");
    fs::create_dir(&work).unwrap();
    chown(&work, Some(USER), Some(USER)).unwrap();
    let from = format!("file://{}", origin.display());
    git.run(&work, &["clone", "-q", &from, "repository"]);
    let repository = work.join("repository");
    let imported = git.run(&repository, &["rev-list", "--count", "HEAD"]);
    assert_eq!(imported, HISTORY.to_string());
    git.run(
        &repository,
        &["worktree", "add", "-q", "../tree", "HEAD~100"],
    );
    git.check(&repository);

    let reported = Mutex::new(Vec::new());
    let packed = AtomicUsize::new(0);
    let ended = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0.. {
                match git.commit(&repository, n) {
                    Ok(id) => reported.lock().unwrap().push(id),
                    Err(e) => return ended.lock().unwrap().push(e),
                }
            }
        });
        scope.spawn(|| {
            loop {
                let arguments = ["gc", "-q", "--aggressive"];
                let mut packing = Program::start(git.git(&repository, &arguments));
                if !packing.wait(PATIENCE).success() {
                    return ended.lock().unwrap().push(packing.complained());
                }
                packed.fetch_add(1, Ordering::SeqCst);
            }
        });
        let far = wait_until(PATIENCE, || {
            let enough = reported.lock().unwrap().len() >= BEFORE;
            let failed = !ended.lock().unwrap().is_empty();
            failed || enough && packed.load(Ordering::SeqCst) >= PACKED
        });
        let early = ended.lock().unwrap().clone();
        // Whatever was found, the threads end with the mount.
        pair.fail_over();
        assert!(far && early.is_empty(), "before the failover: {early:?}");
    });

    let reported = reported.into_inner().unwrap();
    let repository = pair.on_b("work/repository");
    remove_locks(&repository.join(".git"));
    git.check(&repository);
    let history = git.run(&repository, &["rev-list", "HEAD"]);
    let there: Vec<_> = history.lines().collect();
    for id in &reported {
        assert!(
            there.contains(&id.as_str()),
            "commit {id} was reported and is not in the history"
        );
    }
    let expected = HISTORY as usize + reported.len();
    assert!(
        there.len() == expected || there.len() == expected + 1,
        "{} commits instead of {expected}",
        there.len()
    );
    git.run(&repository, &["reset", "-q", "--hard"]);
    git.run(&repository, &["clean", "-q", "-fdx"]);
    assert_eq!(git.run(&repository, &["status", "--porcelain"]), "");
    // The second working tree knows the repository by a path on the dead mount.
    let tree = pair.on_b("work/tree").display().to_string();
    git.run(&repository, &["worktree", "repair", &tree]);
    let tree = Path::new(&tree);
    assert_eq!(git.run(tree, &["status", "--porcelain"]), "");
    git.run(tree, &["checkout", "-q", "--detach", "main"]);

    std::thread::scope(|scope| {
        let working = scope.spawn(|| {
            for n in 10_000..10_000 + AFTER {
                git.commit(&repository, n).expect("a commit on B");
            }
            git.run(&repository, &["gc", "-q", "--aggressive", "--prune=now"]);
        });
        pair.bring_back();
        working.join().unwrap();
    });
    git.check(&repository);
    pair.assert_identical();
}
